/* SPDX-License-Identifier: Apache-2.0 */
/* Dead sets against a model, dead lists as bytes and back, foreign bytes. */
#include "cow/dead.h"

#include "tests/unit/check.h"

#define EXTENTS 3U
#define BLOCKS  (EXTENTS * EXTENT_BLOCKS)

static uint64_t random_state = 88172645463325252U;

static uint64_t draw(uint64_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % n;
}

static struct address address_at(uint32_t n)
{
    return address_of(1, 5 + n / EXTENT_BLOCKS, n % EXTENT_BLOCKS);
}

static uint32_t index_of(struct address address)
{
    return (uint32_t)(address.v - address_of(1, 5, 0).v);
}

/* --- sets --- */

static void check_set(const struct dead_set *set, const bool *model)
{
    static bool seen[BLOCKS];
    struct dead_cursor cursor = {.begun = false};
    struct dead_run run;
    uint64_t count = 0;
    memset(seen, 0, sizeof seen);
    while (dead_set_next(set, &cursor, &run)) {
        CHECK(run.count > 0);
        for (uint32_t i = 0; i < run.count; i++) {
            CHECK(!seen[index_of(run.address) + i]);
            seen[index_of(run.address) + i] = true;
            count++;
        }
    }
    CHECK_EQ(count, set->count);
    CHECK(memcmp(seen, model, sizeof seen) == 0);
}

/* A stretch within one extent. */
static uint32_t some(uint32_t *ret_count)
{
    uint32_t first = (uint32_t)draw(BLOCKS);
    *ret_count = 1 + (uint32_t)draw(min_u64(200, EXTENT_BLOCKS - first % EXTENT_BLOCKS));
    return first;
}

static void test_set(void)
{
    static bool model[BLOCKS], other[BLOCKS];
    struct dead_set set, from;
    uint32_t count;
    dead_set_init(&set);
    dead_set_init(&from);
    memset(model, 0, sizeof model);
    memset(other, 0, sizeof other);
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t first = some(&count);
        if (draw(3) > 0) {
            CHECK_EQ(dead_set_put(&set, address_at(first), count), 0);
            memset(model + first, true, count);
            continue;
        }
        uint32_t to = (uint32_t)draw(EXTENTS) * EXTENT_BLOCKS +
                      (uint32_t)draw(EXTENT_BLOCKS - count);
        if (first < to + count && to < first + count)
            continue;
        CHECK_EQ(dead_set_move(&set, count, address_at(first), address_at(to)), 0);
        for (uint32_t j = 0; j < count; j++) {
            model[to + j] = model[to + j] || model[first + j];
            model[first + j] = false;
        }
    }
    check_set(&set, model);
    for (uint32_t i = 0; i < 50; i++) {
        uint32_t first = some(&count);
        CHECK_EQ(dead_set_put(&from, address_at(first), count), 0);
        memset(other + first, true, count);
    }
    dead_set_take(&set, &from);
    for (uint32_t i = 0; i < BLOCKS; i++)
        model[i] = model[i] || other[i];
    check_set(&set, model);
    CHECK_EQ(from.count, 0);
    CHECK_EQ(from.bytes, 0);
    dead_set_done(&set);
    dead_set_done(&from);
}

/* The last block of an extent and the first of the next are two runs. */
static void test_set_edges(void)
{
    struct dead_set set;
    struct dead_cursor cursor = {.begun = false};
    struct dead_run run;
    uint32_t runs = 0;
    dead_set_init(&set);
    CHECK_EQ(dead_set_put(&set, address_at(EXTENT_BLOCKS - 1), 1), 0);
    CHECK_EQ(dead_set_put(&set, address_at(EXTENT_BLOCKS), 1), 0);
    CHECK_EQ(dead_set_put(&set, address_at(0), 1), 0);
    while (dead_set_next(&set, &cursor, &run)) {
        CHECK_EQ(run.count, 1);
        runs++;
    }
    CHECK_EQ(runs, 3);
    dead_set_done(&set);
}

/* --- lists --- */

static void add_runs(struct dead_entries *entries, const struct dead_entries *from)
{
    for (uint32_t i = 0; i < from->run_count; i++)
        CHECK_EQ(dead_entries_add(entries, from->runs[i].address, from->runs[i].count),
                 0);
    for (uint32_t i = 0; i < from->subtree_count; i++)
        CHECK_EQ(dead_entries_add_subtree(entries, &from->subtrees[i]), 0);
}

static void test_sort(void)
{
    struct dead_entries entries = {.runs = NULL};
    static const uint32_t starts[] = {10, 5, 12, 7, 100, EXTENT_BLOCKS,
                                      EXTENT_BLOCKS - 1};
    for (uint32_t i = 0; i < ARRAY_LEN(starts); i++)
        CHECK_EQ(dead_entries_add(&entries, address_at(starts[i]), 1 + (i == 1)), 0);
    dead_entries_sort(&entries); /* 5-7, 10, 12, 100, the last, the next first */
    CHECK_EQ(entries.run_count, 6);
    CHECK_EQ(entries.runs[0].count, 3);
    CHECK_EQ(index_of(entries.runs[4].address), EXTENT_BLOCKS - 1);
    CHECK_EQ(entries.runs[4].count, 1);
    struct dead_entries more = {.runs = NULL};
    CHECK_EQ(dead_entries_append(&more, &entries), 0);
    CHECK_EQ(dead_entries_append(&more, &entries), 0);
    dead_entries_drop(&more, 6, 0);
    CHECK_EQ(more.run_count, 6);
    CHECK_EQ(index_of(more.runs[0].address), 5);
    dead_entries_done(&more);
    dead_entries_done(&entries);
}

/* Everything comes out again, in as many blocks as it takes. */
static void test_blocks(void)
{
    static uint8_t bytes[BLOCK_SIZE];
    struct dead_entries in = {.runs = NULL}, out = {.runs = NULL};
    uint32_t blocks = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        CHECK_EQ(dead_entries_add(&in, address_at(i * 3), 1 + i % 2), 0);
        struct dead_subtree subtree = {
            .entry = {address_at(i * 3 + 2), i * 7, i + 1}, .bound = i, .level = i % 4};
        if (i % 5 == 0)
            CHECK_EQ(dead_entries_add_subtree(&in, &subtree), 0);
    }
    while (in.run_count + in.subtree_count > 0) {
        struct dead_block block;
        dead_block_encode(9, address_at(blocks), blocks, &in, bytes);
        CHECK_EQ(dead_block_decode(bytes, &block), 0);
        CHECK_EQ(block.checkpoint, 9);
        CHECK_EQ(block.previous.v, address_at(blocks).v);
        CHECK_EQ(block.previous_crc, blocks);
        add_runs(&out, &block.entries);
        dead_entries_done(&block.entries);
        blocks++;
    }
    CHECK_EQ(blocks, 6); /* 1400 entries */
    CHECK_EQ(out.run_count, 1000);
    CHECK_EQ(out.subtree_count, 200);
    dead_entries_sort(&out);
    for (uint32_t i = 0; i < out.run_count; i++) {
        CHECK_EQ(index_of(out.runs[i].address), i * 3);
        CHECK_EQ(out.runs[i].count, 1 + i % 2);
    }
    for (uint32_t i = 0; i < out.subtree_count; i++) {
        const struct dead_subtree *subtree = &out.subtrees[199 - i];
        CHECK_EQ(index_of(subtree->entry.address), i * 15 + 2);
        CHECK_EQ(subtree->entry.crc, i * 35);
        CHECK_EQ(subtree->entry.generation, i * 5 + 1);
        CHECK_EQ(subtree->bound, i * 5);
        CHECK_EQ(subtree->level, i * 5 % 4);
    }
    dead_entries_done(&in);
    dead_entries_done(&out);
}

static void fill_block(struct dead_block_format *format)
{
    struct dead_entries entries = {.runs = NULL};
    struct dead_subtree subtree = {.entry = {address_at(77), 1, 2}, .level = 1};
    CHECK_EQ(dead_entries_add(&entries, address_at(1), 3), 0);
    CHECK_EQ(dead_entries_add_subtree(&entries, &subtree), 0);
    dead_block_encode(4, ADDRESS_NULL, 0, &entries, format);
    dead_entries_done(&entries);
}

/* Refused, or sound: nothing an extent cannot have. */
static void check_foreign(const struct dead_block_format *format)
{
    struct dead_block block;
    if (dead_block_decode(format, &block) < 0)
        return;
    for (uint32_t i = 0; i < block.entries.run_count; i++) {
        const struct dead_run *run = &block.entries.runs[i];
        CHECK(run->count > 0 &&
              address_block(run->address) + run->count <= EXTENT_BLOCKS);
    }
    for (uint32_t i = 0; i < block.entries.subtree_count; i++)
        CHECK(block.entries.subtrees[i].level < MAP_HEIGHT_MAX);
    dead_entries_done(&block.entries);
}

static void test_foreign(void)
{
    static struct dead_block_format format;
    struct dead_block block;
    fill_block(&format);
    format.magic = le32_of(1);
    CHECK_EQ(dead_block_decode(&format, &block), -PLX_EFORMAT);
    fill_block(&format);
    format.version = le16_of(2);
    CHECK_EQ(dead_block_decode(&format, &block), -PLX_ENEWER);
    fill_block(&format);
    format.count = le16_of(DEAD_ENTRIES_MAX + 1);
    CHECK_EQ(dead_block_decode(&format, &block), -PLX_EFORMAT);
    fill_block(&format);
    format.count = le16_of(1); /* a subtree without its second half */
    CHECK_EQ(dead_block_decode(&format, &block), -PLX_EFORMAT);
    fill_block(&format);
    format.entries[0].level = MAP_HEIGHT_MAX;
    CHECK_EQ(dead_block_decode(&format, &block), -PLX_EFORMAT);
    fill_block(&format);
    format.entries[2].value = le32_of(EXTENT_BLOCKS);
    CHECK_EQ(dead_block_decode(&format, &block), -PLX_EFORMAT);
    for (uint32_t i = 0; i < 20000; i++) {
        fill_block(&format);
        for (uint64_t n = 1 + draw(4); n > 0; n--)
            ((uint8_t *)&format)[draw(64 + 4 * 16)] = (uint8_t)draw(256);
        check_foreign(&format);
    }
}

int main(void)
{
    test_set();
    test_set_edges();
    test_sort();
    test_blocks();
    test_foreign();
    return 0;
}
