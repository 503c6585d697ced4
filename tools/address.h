/* SPDX-License-Identifier: Apache-2.0 */
/* Where a daemon listens and a command connects: a Unix socket or TCP. */
#ifndef PARALLAX_TOOLS_ADDRESS_H
#define PARALLAX_TOOLS_ADDRESS_H

#include <sys/un.h>

#include "runtime/base.h"
#include "runtime/error.h"

enum address_kind { ADDRESS_UNIX, ADDRESS_TCP };

struct socket_address {
    enum address_kind kind;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* UNIX */
    char host[64];                                          /* TCP, without brackets */
    char port[8];
};

/* "unix:PATH", a PATH with a slash, "HOST:PORT", "[::1]:PORT"; anything else without a
 * colon is a path in the current folder. */
int address_parse(const char *text, struct socket_address *ret, struct error *err);
int address_of_path(const char *path, struct socket_address *ret, struct error *err);
/* A relative path becomes one from the root. */
int address_make_absolute(struct socket_address *address, struct error *err);
/* "DIR/nbd.sock" or "127.0.0.1:10809", for messages. */
struct address_text {
    char text[128];
};
struct address_text address_text(const struct socket_address *address);

/* A connected stream socket, blocking. -errno without a text. */
int address_connect(const struct socket_address *address, int *ret_fd);
/* A listening one, close-on-exec and non-blocking. Of TCP only loopback. A Unix socket
 * nobody listens on is replaced; the new one can be used by its owner alone. */
int address_listen(const struct socket_address *address, int *ret_fd, struct error *err);

/* Could a program that others connect to listen there? Of this machine, and free. Of TCP
 * any address; of a name one of its addresses, but not only loopback ones, unless it is
 * "localhost". Must not be called on a task. */
int address_try(const struct socket_address *address, struct error *err);

/* -EADDRNOTAVAIL with a text if it is TCP and not loopback. */
int address_check_loopback(const struct socket_address *address, struct error *err);

#endif
