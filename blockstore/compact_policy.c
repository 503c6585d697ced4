/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The policy of compaction.
 *
 * Dead blocks cost nothing as long as space is free, and the longer an extent is left
 * alone the less of it is left to move. So nothing is done before few slabs are free;
 * then the emptiest extents come first, and how full one may be depends on how little is
 * left: where live data leaves room, the free slabs settle where the dead of half-empty
 * extents suffices; a store that is nearly full gets down to the last piece.
 */
#include "blockstore/compact_policy.h"

#include "blockstore/digest.h"

/* It begins when fewer slabs are free than this share of the store, and at least: */
#define LOW_SHARE     64U
#define LOW_SLABS_MIN 8U
/* Above LOW by this share of it, it ends. */
#define HIGH_SHARE 4U
/* The goal where it begins; it rises to the highest at an eighth of that. */
#define GOAL_FIRST 550U
#define LAST_SHARE 8U

#define IDLE_NS      (5 * NS_PER_S)
#define IDLE_GOAL    500U
#define IDLE_LONG_NS (60 * NS_PER_S)
/* Free pieces: so many at least, or so many for each slab of the store. */
#define SCATTERED_MIN   (4 * SLAB_PIECES)
#define SCATTERED_SHARE 4U
/* When only the reserve is left, which is counted in whole slabs: */
#define SCATTERED_FEW (2 * SLAB_PIECES)
#define PAUSE_MAX_NS    (20 * NS_PER_MS)

uint32_t compact_reserve_slabs(uint32_t slabs)
{
    uint32_t share = slabs / 32;
    return share > COMPACT_RESERVE_SLABS ? COMPACT_RESERVE_SLABS : share > 0 ? share : 1;
}

static uint32_t pieces_after(uint32_t live_blocks)
{
    return (uint32_t)(div_up_u64(live_blocks, PIECE_BLOCKS) +
                      div_up_u64(digest_blocks(live_blocks), PIECE_BLOCKS));
}

uint32_t compact_permille(uint32_t held_pieces, uint32_t live_blocks)
{
    uint32_t after = pieces_after(live_blocks);
    if (after >= held_pieces)
        return COMPACT_GOAL_MAX + 1;
    return after * 1000U / held_pieces;
}

static uint32_t available(const struct compact_space *space)
{
    return space->free > space->kept ? space->free - space->kept : 0;
}

static uint32_t low_mark(const struct compact_space *space)
{
    uint32_t low = space->slabs / LOW_SHARE;
    return low > LOW_SLABS_MIN ? low : LOW_SLABS_MIN;
}

static uint32_t mark(const struct compact_space *space)
{
    uint32_t low = low_mark(space);
    return space->active ? low + low / HIGH_SHARE : low;
}

uint32_t compact_goal(const struct compact_space *space)
{
    uint32_t first = mark(space), last = low_mark(space) / LAST_SHARE;
    uint32_t left = available(space);
    if (left >= first) {
        if (space->idle_ns >= IDLE_LONG_NS)
            return COMPACT_GOAL_IDLE;
        return space->idle_ns >= IDLE_NS ? IDLE_GOAL : 0;
    }
    if (left <= last)
        return COMPACT_GOAL_MAX;
    return GOAL_FIRST + (COMPACT_GOAL_MAX - GOAL_FIRST) * (first - left) / (first - last);
}

bool compact_evacuates(const struct compact_space *space)
{
    uint32_t many = SCATTERED_MIN + space->slabs / SCATTERED_SHARE;
    if (available(space) == 0)
        many = min_u32(many, SCATTERED_FEW);
    return space->part_free >= many && available(space) < mark(space);
}

bool compact_slab_pays(const struct compact_space *space, uint32_t held)
{
    uint32_t own = SLAB_PIECES - held;
    uint32_t elsewhere = space->part_free > own ? space->part_free - own : 0;
    /* A digest may have to be written anew. */
    return held < SLAB_PIECES && elsewhere >= held + DIGEST_PIECES_MAX;
}

uint32_t compact_budget(const struct compact_space *space)
{
    uint32_t slabs = available(space) / 4;
    if (slabs < COMPACT_RESERVE_SLABS)
        slabs = COMPACT_RESERVE_SLABS;
    return min_u32(slabs, space->free) * SLAB_PIECES + space->part_free;
}

uint64_t compact_pause_ns(const struct compact_space *space, uint64_t worked_ns)
{
    uint32_t left = available(space), low = low_mark(space);
    if (left < low / 4)
        return 0;
    if (left < low / 2)
        worked_ns /= 2;
    else if (left >= low)
        worked_ns *= 4;
    return min_u64(worked_ns, PAUSE_MAX_NS);
}

uint32_t compact_stretch(const uint8_t *live, uint32_t pieces, uint32_t budget,
                         uint32_t *ret_from, uint32_t *ret_to)
{
    uint32_t best = 0, from = 0, blocks = 0;
    for (uint32_t to = 1; to <= pieces; to++) {
        blocks += live[to - 1];
        while (blocks > budget * PIECE_BLOCKS)
            blocks -= live[from++];
        uint32_t gain = to - from - (uint32_t)div_up_u64(blocks, PIECE_BLOCKS);
        if (to > from && gain > best) {
            best = gain;
            *ret_from = from;
            *ret_to = to;
        }
    }
    return best;
}

void compact_choose(struct compact_choices *choices, struct address extent,
                    uint32_t permille)
{
    uint32_t at = choices->count;
    while (at > 0 && choices->at[at - 1].permille > permille)
        at--;
    if (at == COMPACT_CHOICES)
        return;
    uint32_t behind = choices->count - at;
    if (choices->count == COMPACT_CHOICES)
        behind--;
    else
        choices->count++;
    memmove(&choices->at[at + 1], &choices->at[at], behind * sizeof choices->at[0]);
    choices->at[at] = (struct compact_choice){extent, permille};
}
