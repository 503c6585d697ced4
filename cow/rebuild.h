/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A map node that rotted, made again from the headers and digests of its log. They say
 * what was written and where, not which of it the node named; but the node's checksum
 * stands in its parent, so a guess is known to be right or is not used.
 */
#ifndef PARALLAX_COW_REBUILD_H
#define PARALLAX_COW_REBUILD_H

#include "cow/disk_internal.h"

struct rebuild {
    struct host *host;
    unsigned level;          /* of the node, */
    uint64_t index;          /* its place within the level, */
    struct map_entry entry;  /* and what its parent has of it */
    /* The map it is in grows from: a head of this disk, if not 0, and */
    uint64_t disk;
    uint64_t version;        /* this version, if not 0, and so on up */
    bool (*cancelled)(void *arg); /* may be NULL */
    void *arg;
};

/* BLOCK_SIZE bytes that have the node's checksum. -PLX_ECHECKSUM: none were found;
 * -PLX_ECANCELLED, -ENOMEM. Reads what tells of the blocks of all extents of the disk,
 * and of those it was cloned from. Whoever calls it holds the map. */
async int node_rebuild(const struct rebuild *rebuild, struct map_node_format *ret_node);

#endif
