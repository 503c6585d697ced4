/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What changed on a disk since its map was written: an ordered set of disjoint
 * intervals of blocks, each either at consecutive addresses of the log or zeros. A disk
 * has a stack of these layers; a snapshot or a checkpoint freezes the top one.
 *
 * What a newer interval of the same overlay supersedes is dead at once: no version can
 * need it, because no overlay goes on over a snapshot. It is collected in `dead`.
 *
 * Intervals cost about 80 bytes and 4 for each block, `dead` 2 KiB for each extent;
 * `used` of the shared budget says what all of them take.
 */
#ifndef PARALLAX_COW_OVERLAY_H
#define PARALLAX_COW_OVERLAY_H

#include <bsd/sys/tree.h>

#include "cow/dead_set.h"
#include "cow/map_format.h"

struct overlay_budget {
    uint64_t limit_bytes, used_bytes;
    uint64_t leaf_count;  /* of all overlays: leaves that checkpoints may write */
    uint64_t data_blocks; /* of all intervals: each may supersede one of the map */
    uint64_t dead_blocks; /* of all overlays */
};

struct interval {
    RB_ENTRY(interval) node;
    uint64_t start, count;  /* blocks of the disk */
    struct address address; /* of its first block; null: zeros */
    uint64_t allocated;     /* checksums there is memory for; cutting keeps it */
    uint32_t crcs[];        /* one per block, unless zeros */
};

RB_HEAD(interval_tree, interval);

struct overlay {
    struct interval_tree intervals;
    uint32_t generation;    /* of every block in it */
    uint64_t interval_count, data_blocks;
    uint64_t leaf_count;    /* of each interval's own, shared ones several times */
    uint64_t bytes;         /* `dead` included */
    struct dead_set dead;
    struct overlay_budget *budget;
};

void overlay_init(struct overlay *overlay, uint32_t generation,
                  struct overlay_budget *budget);
void overlay_done(struct overlay *overlay);
static inline bool overlay_empty(const struct overlay *overlay)
{
    return overlay->interval_count == 0;
}

/* Sets blocks [start, start + count) to count addresses from `address` on, with these
 * checksums (copied), or to zeros (address null, crcs NULL). -ENOMEM: nothing changed. */
int overlay_put(struct overlay *overlay, uint64_t start, uint64_t count,
                struct address address, const uint32_t *crcs);

/* The interval that holds `block`, or the first one after it, or NULL. */
const struct interval *overlay_at_or_after(const struct overlay *overlay, uint64_t block);
const struct interval *overlay_next(const struct interval *interval);

/* Where blocks of [start, start + count) still have the addresses from `was` on, gives
 * them those from `now` on; in `dead`, too. -ENOMEM: some still have the old ones. */
int overlay_move(struct overlay *overlay, uint64_t start, uint64_t count,
                 struct address was, struct address now);

static inline uint64_t interval_end(const struct interval *interval)
{
    return interval->start + interval->count;
}

#endif
