/* SPDX-License-Identifier: Apache-2.0 */
/* Gives ranges that are read in order their runs back, and moves disks to other pools.
 * doc/locality.md. */
#ifndef PARALLAX_COW_REWRITE_H
#define PARALLAX_COW_REWRITE_H

#include "cow/map.h"

struct disk;
struct error;
struct host;

int rewriter_open(struct host *host, struct error *err);
/* Waits for what it is doing. */
async void rewriter_close(struct host *host);
/* Some range has become worthy of it, or a disk is to move. */
void rewriter_wanted(struct host *host);

/* Blocks that are being rewritten, from their reading to their logging. */
struct rewrite {
    uint64_t first, end;
    bool disturbed; /* something else changed one of them */
};

/* Of an open disk that is moving to another pool: how far it is. Zeros: a pass, over all
 * of the disk, is to begin. */
struct pool_move {
    uint64_t next;   /* block: what is below was looked at in this pass */
    bool is_running; /* the pass has begun */
    bool has_moved;  /* something: there will be another pass */
    bool has_let_be; /* something: the same, but later */
};
/* The part of the disk that the pass has looked at; 0: it is not moving, or not here. */
uint32_t rewrite_move_percent(const struct disk *disk);
/* [first, end) is about to change. */
void rewrite_disturbed(struct disk *disk, uint64_t first, uint64_t end);
/* The disk's counters are of no use any more. */
void rewrite_forget(struct disk *disk);

/* Is a leaf worth it? Only if all its data is the head's own (born after `bound`, so that
 * the old copies die) and lies in many pieces. ret_wanted: which of its MAP_FANOUT blocks
 * are data. Pure. */
bool rewrite_leaf_wanted(const struct map_node_format *leaf, uint32_t bound,
                         bool *ret_wanted);

#endif
