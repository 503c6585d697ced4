/* SPDX-License-Identifier: Apache-2.0 */
/* Runs of pieces, bitmaps, and the place of a block by its rank. */
#include "blockstore/layout.h"
#include "tests/unit/check.h"

static uint64_t state = 1;

static uint32_t random_below(uint32_t n)
{
    state = state * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)(state >> 33) % n;
}

static void test_runs(void)
{
    struct runs runs = {0};
    uint64_t at = 0;
    CHECK_EQ(runs_find(&runs, 0, 5, &at), 0);
    CHECK_EQ(runs_add(&runs, (struct run){32, 16}), 0);
    CHECK_EQ(runs_add(&runs, (struct run){48, 16}), 0); /* joins the first */
    CHECK_EQ(runs.count, 1);
    CHECK_EQ(runs_add(&runs, (struct run){16, 3}), 0);
    CHECK_EQ(runs.count, 2);
    CHECK_EQ(runs_pieces(&runs), 35);
    CHECK_EQ(runs_blocks(&runs), 560);
    CHECK_EQ(runs_find(&runs, 0, 10, &at), 10);
    CHECK_EQ(at, 2 * MIB);
    CHECK_EQ(runs_find(&runs, 500, 100, &at), 12); /* up to the end of the first */
    CHECK_EQ(at, 2 * MIB + 500 * BLOCK_SIZE);
    CHECK_EQ(runs_find(&runs, 512, 100, &at), 48);
    CHECK_EQ(at, 1 * MIB);
    CHECK_EQ(runs_find(&runs, 559, 100, &at), 1);
    CHECK_EQ(runs_find(&runs, 560, 100, &at), 0);
    struct run cut = runs_cut_last(&runs, 20);
    CHECK_EQ(cut.start, 16);
    CHECK_EQ(cut.count, 3);
    cut = runs_cut_last(&runs, 20);
    CHECK_EQ(cut.start, 52);
    CHECK_EQ(cut.count, 12);
    CHECK_EQ(runs_cut_last(&runs, 20).count, 0);
    CHECK_EQ(runs_pieces(&runs), 20);
    runs_done(&runs);
}

/* Two entries side by side, as old records may have them, are one stretch. */
static void test_adjacent_entries(void)
{
    struct run at[] = {{16, 2}, {18, 1}, {40, 1}};
    struct runs runs = {.at = at, .count = 3};
    uint64_t offset = 0;
    CHECK_EQ(runs_find(&runs, 30, 100, &offset), 18);
    CHECK_EQ(offset, 16 * PIECE_BYTES + 30 * BLOCK_SIZE);
}

static void test_bitmaps(void)
{
    uint8_t map[BITMAP_BYTES];
    for (uint32_t n = 0; n <= 200; n++) {
        bitmap_fill(map, n);
        CHECK_EQ(bitmap_rank(map, EXTENT_BLOCKS), n);
        CHECK_EQ(bitmap_rank(map, n), n);
        CHECK_EQ(bitmap_span(map, 0, EXTENT_BLOCKS), n);
    }
    bitmap_fill(map, EXTENT_BLOCKS);
    CHECK_EQ(bitmap_span(map, 0, UINT32_MAX), EXTENT_BLOCKS);
    bitmap_clear(map, 70);
    CHECK(!bitmap_get(map, 70));
    CHECK(bitmap_get(map, 69) && bitmap_get(map, 71));
    CHECK_EQ(bitmap_rank(map, 71), 70);
    CHECK_EQ(bitmap_span(map, 60, 100), 10);
    CHECK_EQ(bitmap_span(map, 70, 100), 0);
}

static void test_parts(void)
{
    struct run at[] = {{10, 5}, {40, 1}, {90, 10}};
    struct runs from = {.at = at, .count = 3}, to = {0};
    for (uint32_t first = 0; first <= 16; first++) {
        for (uint32_t end = first; end <= 17; end++) {
            CHECK_EQ(runs_add_part(&to, &from, first, end), 0);
            CHECK_EQ(runs_pieces(&to), min_u32(end, 16) - first);
            for (uint32_t i = first; i < end && i < 16; i++) {
                uint64_t want = 0, got = 0;
                CHECK_EQ(runs_find(&from, i * PIECE_BLOCKS, 1, &want), 1);
                CHECK_EQ(runs_find(&to, (i - first) * PIECE_BLOCKS, 1, &got), 1);
                CHECK_EQ(got, want);
            }
            runs_done(&to);
        }
    }
}

static void test_bitmap_parts(void)
{
    uint8_t map[BITMAP_BYTES] = {0}, other[BITMAP_BYTES];
    uint32_t bits[3000], count = 0;
    for (uint32_t bit = random_below(9); bit < EXTENT_BLOCKS; bit += 1 + random_below(40))
        if (count < ARRAY_LEN(bits)) {
            bits[count++] = bit;
            bitmap_set(map, bit);
        }
    for (uint32_t i = 0; i < count; i++)
        CHECK_EQ(bitmap_select(map, i), bits[i]);
    CHECK_EQ(bitmap_select(map, count), EXTENT_BLOCKS);
    for (uint32_t i = 0; i < 200; i++) {
        uint32_t limit = i < 20 ? i : random_below(EXTENT_BLOCKS + 1);
        memcpy(other, map, sizeof map);
        bitmap_cut(other, limit);
        CHECK_EQ(bitmap_rank(other, EXTENT_BLOCKS), bitmap_rank(map, limit));
        CHECK_EQ(bitmap_rank(other, limit), bitmap_rank(map, limit));
        CHECK(bitmap_within(other, map));
        CHECK_EQ(bitmap_within(map, other),
                 bitmap_rank(map, limit) == bitmap_rank(map, EXTENT_BLOCKS));
    }
    bitmap_cut(map, EXTENT_BLOCKS);
    CHECK_EQ(bitmap_rank(map, EXTENT_BLOCKS), count);
}

/* Against the slow way: count the bits before, one by one. */
static void test_places(void)
{
    uint8_t layout[BITMAP_BYTES] = {0};
    struct runs runs = {0};
    static uint64_t place_of[EXTENT_BLOCKS];
    uint32_t stored = 0;
    for (uint32_t piece = 1000; runs_pieces(&runs) < EXTENT_PIECES; piece += 40) {
        uint32_t count = 1 + random_below(20);
        count = min_u32(count, EXTENT_PIECES - runs_pieces(&runs));
        CHECK_EQ(runs_add(&runs, (struct run){piece, count}), 0);
    }
    for (uint32_t block = 0; block < EXTENT_BLOCKS; block++) {
        uint64_t at = 0;
        if (random_below(3) == 0)
            continue;
        layout[block / 8] |= (uint8_t)(1U << (block % 8));
        CHECK_EQ(runs_find(&runs, stored++, 1, &at), 1);
        place_of[block] = at;
    }
    for (uint32_t i = 0; i < 20000; i++) {
        uint32_t block = random_below(EXTENT_BLOCKS), max = 1 + random_below(64);
        uint64_t at = 0;
        uint32_t n = layout_find(&runs, layout, block, max, &at);
        if (place_of[block] == 0) {
            CHECK_EQ(n, 0);
            continue;
        }
        CHECK(n >= 1 && n <= max);
        for (uint32_t j = 0; j < n; j++)
            CHECK_EQ(place_of[block + j], at + (uint64_t)j * BLOCK_SIZE);
        CHECK_EQ(layout_find(&runs, NULL, block, 1, &at), 1);
    }
    runs_done(&runs);
}

int main(void)
{
    test_runs();
    test_adjacent_entries();
    test_parts();
    test_bitmaps();
    test_bitmap_parts();
    test_places();
    return 0;
}
