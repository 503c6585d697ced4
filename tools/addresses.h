/* SPDX-License-Identifier: Apache-2.0 */
/* Where the nodes of a cluster are, as one of them has it in its folder: changed by hand
 * while its daemon is stopped, when they cannot tell each other. */
#ifndef PARALLAX_TOOLS_ADDRESSES_H
#define PARALLAX_TOOLS_ADDRESSES_H

#include "tools/identity.h"

#define ADDRESSES_MAX (JOIN_PEERS_MAX + 1) /* with its own */

/* "NODE=HOST:PORT". -EINVAL. */
int addresses_parse(const char *text, struct join_peer *ret, struct error *err);
/* Of the node itself, or of those it knows; count is at most ADDRESSES_MAX. If anything
 * is wrong with them, or two nodes would be at one address, nothing is changed.
 * -PLX_EMISSING, -EINVAL, -PLX_EEXISTS. */
int addresses_set(struct identity *identity, const struct join_peer *changes,
                  uint32_t count, struct error *err);

#endif
