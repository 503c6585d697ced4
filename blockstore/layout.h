/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the blocks of an extent lie: runs of pieces, in the order of the blocks, and the
 * two bitmaps of a compacted extent. Pure: no I/O, no state.
 *
 * A compacted extent stores only the blocks whose bit is set in its layout bitmap, one
 * after the other: a block's place is its rank, the number of set bits before it. The
 * rank is always taken from the layout bitmap, never from the live one.
 */
#ifndef PARALLAX_BLOCKSTORE_LAYOUT_H
#define PARALLAX_BLOCKSTORE_LAYOUT_H

#include "blockstore/record_format.h"
#include "runtime/runtime.h"

struct run {
    uint32_t start, count; /* in pieces */
};

struct runs {
    struct run *at; /* malloc'd, exactly count of them */
    uint32_t count;
};

/* Joins the run to the last one if it follows it. -ENOMEM changes nothing. */
int runs_add(struct runs *runs, struct run run);
void runs_done(struct runs *runs);
/* Adds the pieces [from, to) of `src`, counted through its runs. -ENOMEM: some of them
 * were added. */
int runs_add_part(struct runs *runs, const struct runs *src, uint32_t from, uint32_t to);
uint32_t runs_pieces(const struct runs *runs);
static inline uint32_t runs_blocks(const struct runs *runs)
{
    return runs_pieces(runs) * PIECE_BLOCKS;
}
/* Takes away and returns the last run, or as much of it as lies behind the first
 * `pieces` pieces; count 0 when nothing does. */
struct run runs_cut_last(struct runs *runs, uint32_t pieces);
/* How many of the places from `place` on lie side by side, at most max; 0: none is in
 * these runs. */
uint32_t runs_find(const struct runs *runs, uint32_t place, uint32_t max,
                   uint64_t *ret_offset_bytes);

/* Bitmaps of EXTENT_BLOCKS bits, BITMAP_BYTES bytes, bit 0 of byte 0 first. */
static inline bool bitmap_get(const uint8_t *map, uint32_t bit)
{
    return map[bit / 8] >> (bit % 8) & 1;
}
void bitmap_fill(uint8_t *map, uint32_t count); /* the first count set, the rest not */
void bitmap_set(uint8_t *map, uint32_t bit);
void bitmap_clear(uint8_t *map, uint32_t bit);
/* Clears the bits from `limit` on. */
void bitmap_cut(uint8_t *map, uint32_t limit);
/* No bit of `a` is missing in `b`. */
bool bitmap_within(const uint8_t *a, const uint8_t *b);
/* Set bits below `limit`. */
uint32_t bitmap_rank(const uint8_t *map, uint32_t limit);
/* The bit that has `rank` set bits before it; EXTENT_BLOCKS if there are not so many. */
uint32_t bitmap_select(const uint8_t *map, uint32_t rank);
/* Set bits in a row from `bit` on, at most max. */
uint32_t bitmap_span(const uint8_t *map, uint32_t bit, uint32_t max);

/* The same as runs_find for a block; layout NULL: its place is its number. */
uint32_t layout_find(const struct runs *runs, const uint8_t *layout, uint32_t block,
                     uint32_t max, uint64_t *ret_offset_bytes);

#endif
