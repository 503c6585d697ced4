/* SPDX-License-Identifier: Apache-2.0 */
/* When compaction works, on what, and how hard. Pure. */
#ifndef PARALLAX_BLOCKSTORE_COMPACT_POLICY_H
#define PARALLAX_BLOCKSTORE_COMPACT_POLICY_H

#include "blockstore/address.h"
#include "blockstore/layout.h"
#include "blockstore/slab.h"

#define COMPACT_RESERVE_SLABS 4U  /* that only compaction may use; fewer if small */
#define COMPACT_CHOICES       64U /* extents found by one look at all of them */

/* What it goes by. */
struct compact_space {
    uint32_t slabs;     /* of the store */
    uint32_t free;      /* of these, wholly free */
    uint32_t kept;      /* of these, not for guests' appends */
    uint32_t part_free; /* pieces: free, in slabs that are held in part */
    uint64_t idle_ns;   /* since anybody used the store */
    bool active;        /* it is at work: it goes on a bit further than it begins */
};

uint32_t compact_reserve_slabs(uint32_t slabs);

/* What an extent would hold afterwards, in thousandths of what it holds. */
uint32_t compact_permille(uint32_t held_pieces, uint32_t live_blocks);
/* How much that may be at most to be worth the work now. 0: there is none to do. */
uint32_t compact_goal(const struct compact_space *space);
#define COMPACT_GOAL_MAX  1000U /* whatever gains a piece */
#define COMPACT_GOAL_IDLE 750U  /* the highest one without need */
/* Whether free pieces are so many that whole slabs are rather made from those. */
bool compact_evacuates(const struct compact_space *space);
/* Whether it pays to empty a slab of so many held pieces. */
bool compact_slab_pays(const struct compact_space *space, uint32_t held);
/* How many pieces one change may take before it gives back what it replaces. */
uint32_t compact_budget(const struct compact_space *space);
/* How long to stand back after work that took `worked_ns`. */
uint64_t compact_pause_ns(const struct compact_space *space, uint64_t worked_ns);

/* The stretch of pieces whose live blocks fit into `budget` pieces that gains most.
 * live: of each piece. Returns the pieces gained; 0: none does. */
uint32_t compact_stretch(const uint8_t *live, uint32_t pieces, uint32_t budget,
                         uint32_t *ret_from, uint32_t *ret_to);

/* The best extents seen, best first. */
struct compact_choices {
    uint32_t count, next;
    struct compact_choice {
        struct address extent;
        uint32_t permille;
    } at[COMPACT_CHOICES];
};
void compact_choose(struct compact_choices *choices, struct address extent,
                    uint32_t permille);

#endif
