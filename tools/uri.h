/* SPDX-License-Identifier: Apache-2.0 */
/* NBD URIs, as doc/uri.md of the NBD project has them. */
#ifndef PARALLAX_TOOLS_URI_H
#define PARALLAX_TOOLS_URI_H

#include "runtime/base.h"
#include "tools/address.h"

/* "nbd+unix:///EXPORT?socket=PATH" or "nbd://HOST:PORT/EXPORT"; malloc'd, NULL when
 * memory is out. */
char *uri_of_address(const struct socket_address *address, const char *export_name);
/* A URI of the server (made with the empty export name) with that of an export. */
char *uri_with_export(const char *server_uri, const char *export_name);
/* nbd:, nbds:, nbd+unix: and so on. */
bool uri_is_nbd(const char *text);

#endif
