/* SPDX-License-Identifier: Apache-2.0 */
/* Runs of pieces and bitmaps of blocks. */
#include "blockstore/layout.h"

int runs_add(struct runs *runs, struct run run)
{
    assert(run.count > 0);
    if (runs->count > 0) {
        struct run *last = &runs->at[runs->count - 1];
        if (last->start + last->count == run.start) {
            last->count += run.count;
            return 0;
        }
    }
    struct run *at = realloc(runs->at, (runs->count + 1) * sizeof *at);
    if (at == NULL)
        return -ENOMEM;
    runs->at = at;
    runs->at[runs->count++] = run;
    return 0;
}

int runs_add_part(struct runs *runs, const struct runs *src, uint32_t from, uint32_t to)
{
    uint32_t at = 0; /* piece of the extent where the run begins */
    for (uint32_t i = 0; i < src->count && at < to; i++) {
        const struct run *run = &src->at[i];
        uint32_t first = from > at ? from - at : 0;
        uint32_t end = min_u32(run->count, to - at);
        if (first < end) {
            int result = runs_add(runs, (struct run){run->start + first, end - first});
            if (result < 0)
                return result;
        }
        at += run->count;
    }
    return 0;
}

void runs_done(struct runs *runs)
{
    free(runs->at);
    *runs = (struct runs){0};
}

uint32_t runs_pieces(const struct runs *runs)
{
    uint32_t pieces = 0;
    for (uint32_t i = 0; i < runs->count; i++)
        pieces += runs->at[i].count;
    return pieces;
}

struct run runs_cut_last(struct runs *runs, uint32_t pieces)
{
    uint32_t all = runs_pieces(runs);
    if (all <= pieces)
        return (struct run){0};
    struct run *last = &runs->at[runs->count - 1];
    uint32_t cut = min_u32(last->count, all - pieces);
    last->count -= cut;
    struct run run = {.start = last->start + last->count, .count = cut};
    if (last->count == 0)
        runs->count--;
    return run;
}

uint32_t runs_find(const struct runs *runs, uint32_t place, uint32_t max,
                   uint64_t *ret_offset_bytes)
{
    uint32_t found = 0;
    uint64_t next = 0; /* the piece that would go on from what was found */
    for (uint32_t i = 0; i < runs->count && found < max; i++) {
        const struct run *run = &runs->at[i];
        uint32_t blocks = run->count * PIECE_BLOCKS;
        if (found == 0 && place >= blocks) {
            place -= blocks;
            continue;
        }
        if (found == 0)
            *ret_offset_bytes = run->start * PIECE_BYTES + (uint64_t)place * BLOCK_SIZE;
        else if (run->start != next)
            break;
        found += min_u32(max - found, blocks - place);
        place = 0;
        next = (uint64_t)run->start + run->count;
    }
    return found;
}

void bitmap_fill(uint8_t *map, uint32_t count)
{
    assert(count <= EXTENT_BLOCKS);
    memset(map, 0, BITMAP_BYTES);
    memset(map, 0xff, count / 8);
    if (count % 8 != 0)
        map[count / 8] = (uint8_t)((1U << (count % 8)) - 1);
}

void bitmap_set(uint8_t *map, uint32_t bit)
{
    map[bit / 8] |= (uint8_t)(1U << (bit % 8));
}

void bitmap_clear(uint8_t *map, uint32_t bit)
{
    map[bit / 8] &= (uint8_t) ~(1U << (bit % 8));
}

void bitmap_cut(uint8_t *map, uint32_t limit)
{
    assert(limit <= EXTENT_BLOCKS);
    uint32_t whole = (limit + 7) / 8;
    if (limit % 8 != 0)
        map[limit / 8] &= (uint8_t)((1U << (limit % 8)) - 1);
    memset(map + whole, 0, BITMAP_BYTES - whole);
}

bool bitmap_within(const uint8_t *a, const uint8_t *b)
{
    for (uint32_t i = 0; i < BITMAP_BYTES; i++)
        if ((a[i] & ~b[i]) != 0)
            return false;
    return true;
}

static uint64_t word(const uint8_t *map, uint32_t index)
{
    uint64_t bits;
    memcpy(&bits, map + (size_t)index * 8, sizeof bits);
    return le64toh(bits);
}

uint32_t bitmap_rank(const uint8_t *map, uint32_t limit)
{
    assert(limit <= EXTENT_BLOCKS);
    uint32_t rank = 0, whole = limit / 64;
    for (uint32_t i = 0; i < whole; i++)
        rank += (uint32_t)__builtin_popcountll(word(map, i));
    if (limit % 64 != 0)
        rank += (uint32_t)__builtin_popcountll(word(map, whole) &
                                               (((uint64_t)1 << (limit % 64)) - 1));
    return rank;
}

uint32_t bitmap_select(const uint8_t *map, uint32_t rank)
{
    for (uint32_t i = 0; i < EXTENT_BLOCKS / 64; i++) {
        uint64_t bits = word(map, i);
        uint32_t n = (uint32_t)__builtin_popcountll(bits);
        if (rank >= n) {
            rank -= n;
            continue;
        }
        for (; rank > 0; rank--)
            bits &= bits - 1;
        return i * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return EXTENT_BLOCKS;
}

uint32_t bitmap_span(const uint8_t *map, uint32_t bit, uint32_t max)
{
    uint32_t span = 0;
    while (span < max && bit + span < EXTENT_BLOCKS && bitmap_get(map, bit + span))
        span++;
    return span;
}

uint32_t layout_find(const struct runs *runs, const uint8_t *layout, uint32_t block,
                     uint32_t max, uint64_t *ret_offset_bytes)
{
    assert(block < EXTENT_BLOCKS);
    if (layout == NULL)
        return runs_find(runs, block, max, ret_offset_bytes);
    uint32_t span = bitmap_span(layout, block, max);
    if (span == 0)
        return 0;
    return runs_find(runs, bitmap_rank(layout, block), span, ret_offset_bytes);
}
