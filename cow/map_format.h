/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A map node: 256 entries, one block. A leaf's entries name the disk's blocks, a higher
 * node's the nodes below. A null address at any level reads as zeros; its other fields
 * are zero then. A node's checksum stands beside its address, in its parent or in the
 * root. doc/format-map.md.
 */
#ifndef PARALLAX_COW_MAP_FORMAT_H
#define PARALLAX_COW_MAP_FORMAT_H

#include "runtime/format.h"

#define MAP_FANOUT       256U
#define MAP_FANOUT_SHIFT 8
#define MAP_HEIGHT_MAX   4U /* 256^4 blocks are 16 TiB */

struct map_entry_format {
    le64 address;
    le32 crc;
    le32 generation; /* of the version it was born in; never above its node's */
};
static_assert(sizeof(struct map_entry_format) == 16, "packed");

struct map_node_format {
    struct map_entry_format entries[MAP_FANOUT];
};
static_assert(sizeof(struct map_node_format) == BLOCK_SIZE, "one block");

#endif
