/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The free space of a store: a bitmap rebuilt from the extent records at start. Pure.
 *
 * A slab is free when none of its 16 pieces is held. Slabs below `fresh` were written at
 * least once (or zero-filled), those above never: a sync after writing into those costs
 * a journal commit of the file system, so they are taken last, in ascending order. From
 * `limit` on they cannot be had at all: the file system has no room for them.
 */
#ifndef PARALLAX_BLOCKSTORE_SLAB_H
#define PARALLAX_BLOCKSTORE_SLAB_H

#include "blockstore/layout.h"

#define SLAB_PIECES ((uint32_t)(SLAB_BYTES / PIECE_BYTES))
#define SLABS_MAX   (UINT32_MAX / SLAB_PIECES) /* a piece number has 32 bits */

static_assert(SLAB_PIECES == 16, "a mask of 16 bits for each slab");

struct slabs {
    uint32_t count;       /* slabs of the store; number 0 is the superblock's */
    uint32_t fresh;       /* this one and those after it were never written */
    uint32_t limit;       /* this one and those after it are not given out */
    uint32_t free_count;  /* wholly free slabs */
    uint32_t ready_count; /* of these, below fresh */
    uint32_t first_free;  /* none below it is free */
    uint32_t part_count;  /* slabs that are held in part */
    uint32_t part_free;   /* free pieces in these */
    uint32_t part_next;   /* where the next search for one begins */
    uint32_t avoid;       /* no piece is taken of this one; 0: none such */
    uint16_t *held;       /* for each slab a mask of its pieces in use */
    uint64_t *free_map;   /* a bit for each wholly free slab */
    uint64_t *part_map;   /* a bit for each slab held in part */
};

/* Everything free but slab 0. -ENOMEM. */
int slabs_init(struct slabs *slabs, uint32_t count, uint32_t fresh);
void slabs_done(struct slabs *slabs);
/* Slabs from `limit` on, or those never written if these are fewer, are not given out. */
void slabs_set_limit(struct slabs *slabs, uint32_t limit);
/* How many are wholly free, but not given out. */
static inline uint32_t slabs_withheld(const struct slabs *slabs)
{
    return slabs->count - slabs->limit;
}
/* How many are wholly free and can be had. */
static inline uint32_t slabs_available(const struct slabs *slabs)
{
    return slabs->free_count - slabs_withheld(slabs);
}
/* Marks what a record says is in use. False: outside of the store, or already held. */
bool slabs_claim(struct slabs *slabs, struct run run);
/* Takes up to `want` adjacent slabs and returns how many (0: none is free). `near`: the
 * piece that would continue what the caller has; 0 if there is none. */
uint32_t slabs_take(struct slabs *slabs, uint32_t want, uint32_t near,
                    struct run *ret_run);
/* Takes the first slab never written, to fill it. False: there is none. */
bool slabs_take_fresh(struct slabs *slabs, struct run *ret_run);
/* Takes up to `want` adjacent pieces of one slab and returns how many: of one that is
 * held in part, a full one rather than an empty one; else of one that was free. 0: there
 * is none. */
uint32_t slabs_take_pieces(struct slabs *slabs, uint32_t want, struct run *ret_run);
/* Of the slabs held in part whose bit is not set in `pinned`, one that has the fewest
 * pieces held; 0: there is none. */
uint32_t slabs_emptiest(const struct slabs *slabs, const uint64_t *pinned);
/* How many of its pieces are. */
uint32_t slabs_held(const struct slabs *slabs, uint32_t slab);
/* Gives back what was taken or claimed, whole or in part. */
void slabs_release(struct slabs *slabs, struct run run);

#endif
