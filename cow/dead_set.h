/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dead blocks of a few extents: a bitmap of 2 KiB for each extent, so that what random
 * overwrites leave behind in the log takes no more memory than what ordered ones do.
 * For blocks that were born lately: a layer's, or those of an abandoned checkpoint.
 */
#ifndef PARALLAX_COW_DEAD_SET_H
#define PARALLAX_COW_DEAD_SET_H

#include "blockstore/address.h"
#include "runtime/runtime.h"

/* Blocks at consecutive addresses of one extent. */
struct dead_run {
    struct address address;
    uint32_t count;
};

#define DEAD_WORDS (EXTENT_BLOCKS / 64)

struct dead_map {
    struct address extent;
    SLIST_ENTRY(dead_map) link;
    uint64_t words[DEAD_WORDS];
};

struct dead_set {
    SLIST_HEAD(, dead_map) maps; /* the newest first */
    uint64_t count;              /* blocks */
    size_t bytes;                /* of memory */
};

void dead_set_init(struct dead_set *set);
void dead_set_done(struct dead_set *set);

/* Makes room for blocks of this address's extent, so that adding them cannot fail. */
int dead_set_reserve(struct dead_set *set, struct address address);
/* Adds blocks of one extent, for which there is room. Those that are there already are
 * fine. */
void dead_set_add(struct dead_set *set, struct address address, uint32_t count);
/* Both in one. */
int dead_set_put(struct dead_set *set, struct address address, uint32_t count);
/* What is in the set of the `count` blocks from `was` on is at `now` instead. -ENOMEM
 * changes nothing. */
int dead_set_move(struct dead_set *set, uint32_t count, struct address was,
                  struct address now);
/* All of `from`, which is empty then. Cannot fail. */
void dead_set_take(struct dead_set *set, struct dead_set *from);

/* Runs in turn, from {0} on; false at the end. Adding meanwhile is allowed. */
struct dead_cursor {
    const struct dead_map *map;
    uint32_t block;
    bool begun;
};
bool dead_set_next(const struct dead_set *set, struct dead_cursor *cursor,
                   struct dead_run *ret_run);

#endif
