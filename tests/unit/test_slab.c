/* SPDX-License-Identifier: Apache-2.0 */
/* The slab allocator: what it prefers, and against a simple model. */
#include "blockstore/slab.h"
#include "tests/unit/check.h"

static uint64_t state = 1;

static uint32_t random_below(uint32_t n)
{
    state = state * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)(state >> 33) % n;
}

static struct run slabs_run(uint32_t slab, uint32_t count)
{
    return (struct run){slab * SLAB_PIECES, count * SLAB_PIECES};
}

#define TAKE(want, near, first, taken)                                                   \
    do {                                                                                 \
        struct run run_ = {0};                                                           \
        CHECK_EQ(slabs_take(&s, want, near, &run_), taken);                              \
        CHECK_EQ(run_.start, (first)*SLAB_PIECES);                                       \
        CHECK_EQ(run_.count, (taken)*SLAB_PIECES);                                       \
    } while (0)

static void test_preferences(void)
{
    struct slabs s;
    CHECK_EQ(slabs_init(&s, 100, 1), 0);
    CHECK_EQ(s.free_count, 99); /* not the superblock's */
    CHECK_EQ(s.ready_count, 0);
    TAKE(4, 0, 1, 4); /* all are fresh: the lowest */
    TAKE(8, 0, 5, 8);
    CHECK_EQ(s.fresh, 13);
    slabs_release(&s, slabs_run(2, 1));
    slabs_release(&s, slabs_run(6, 3));
    CHECK_EQ(s.ready_count, 4);
    TAKE(2, 0, 6, 2); /* the first written run that is long enough */
    TAKE(5, 0, 2, 1); /* the longest, though short; before fresh ones */
    TAKE(1, 8 * SLAB_PIECES, 8, 1);
    TAKE(3, 0, 13, 3);
    slabs_release(&s, slabs_run(3, 5));
    TAKE(2, 5 * SLAB_PIECES, 5, 2); /* next to what the caller has */
    TAKE(9, 7 * SLAB_PIECES, 7, 1); /* as far as it goes */
    struct run run;
    CHECK(slabs_take_fresh(&s, &run));
    CHECK_EQ(run.start, 16 * SLAB_PIECES);
    CHECK_EQ(s.fresh, 17);
    TAKE(2, 0, 3, 2);
    TAKE(99, 0, 17, 83);
    CHECK_EQ(s.free_count, 0);
    CHECK_EQ(slabs_take(&s, 1, 0, &run), 0);
    CHECK(!slabs_take_fresh(&s, &run));
    slabs_done(&s);
}

static void test_pieces(void)
{
    struct slabs s;
    CHECK_EQ(slabs_init(&s, 10, 1), 0);
    CHECK(slabs_claim(&s, (struct run){16 + 3, 5}));
    CHECK(slabs_claim(&s, (struct run){16 + 8, 10}));
    CHECK_EQ(s.free_count, 7);
    CHECK_EQ(s.fresh, 3);
    CHECK(!slabs_claim(&s, (struct run){16 + 7, 1}));     /* held */
    CHECK(!slabs_claim(&s, (struct run){0, 1}));          /* the superblock's */
    CHECK(!slabs_claim(&s, (struct run){159, 2}));        /* beyond the end */
    CHECK(!slabs_claim(&s, (struct run){UINT32_MAX, 2})); /* far beyond */
    CHECK(!slabs_claim(&s, (struct run){50, 0}));
    slabs_release(&s, (struct run){16 + 3, 5});
    CHECK_EQ(s.free_count, 7);
    slabs_release(&s, (struct run){16 + 8, 8});
    CHECK_EQ(s.free_count, 8); /* its last piece */
    slabs_release(&s, (struct run){32, 2});
    CHECK_EQ(s.free_count, 9);
    CHECK_EQ(s.ready_count, 2);
    slabs_done(&s);
}

#define COUNT 300U

static void check_model(const struct slabs *s, const bool *held)
{
    uint32_t free_count = 0, ready = 0;
    for (uint32_t i = 1; i < COUNT; i++) {
        CHECK_EQ(s->free_map[i / 64] >> (i % 64) & 1, !held[i]);
        CHECK_EQ(s->held[i] == 0, !held[i]);
        free_count += !held[i];
        ready += !held[i] && i < s->fresh;
        CHECK(i < s->fresh || !held[i]);
    }
    CHECK_EQ(s->free_count, free_count);
    CHECK_EQ(s->ready_count, ready);
}

static void test_against_model(void)
{
    struct slabs s;
    bool held[COUNT] = {true};
    struct run runs[COUNT];
    uint32_t count = 0;
    CHECK_EQ(slabs_init(&s, COUNT, 1), 0);
    for (uint32_t i = 0; i < 20000; i++) {
        uint32_t want = 1 + random_below(20);
        uint32_t near = random_below(COUNT) * SLAB_PIECES;
        struct run run;
        if (count > 0 && random_below(100) < 48) {
            uint32_t victim = random_below(count);
            run = runs[victim];
            runs[victim] = runs[--count];
            slabs_release(&s, run);
            for (uint32_t j = 0; j < run.count; j++)
                held[(run.start + j) / SLAB_PIECES] = false;
        } else if (slabs_take(&s, want, near, &run) > 0) {
            CHECK(run.count <= want * SLAB_PIECES);
            runs[count++] = run;
            for (uint32_t j = 0; j < run.count / SLAB_PIECES; j++) {
                CHECK(!held[run.start / SLAB_PIECES + j]);
                held[run.start / SLAB_PIECES + j] = true;
            }
        } else {
            CHECK_EQ(s.free_count, 0);
        }
        check_model(&s, held);
    }
    slabs_done(&s);
}

/* --- single pieces --- */

static void test_take_pieces(void)
{
    struct slabs s;
    struct run run;
    uint64_t pinned[2] = {0};
    CHECK_EQ(slabs_init(&s, 20, 1), 0);
    CHECK_EQ(slabs_emptiest(&s, pinned), 0);
    CHECK_EQ(slabs_take_pieces(&s, 20, &run), 16); /* never beyond a slab */
    CHECK_EQ(run.start, 16);
    CHECK_EQ(s.part_count, 0);
    CHECK_EQ(slabs_take_pieces(&s, 5, &run), 5);
    CHECK_EQ(run.start, 32);
    CHECK_EQ(s.part_count, 1);
    CHECK_EQ(s.part_free, 11);
    CHECK(slabs_claim(&s, (struct run){48, 14}));
    CHECK(slabs_claim(&s, (struct run){64, 1}));
    CHECK_EQ(s.part_free, 11 + 2 + 15);
    CHECK_EQ(slabs_emptiest(&s, pinned), 4);
    CHECK_EQ(slabs_held(&s, 4), 1);
    pinned[0] |= 1U << 4;
    CHECK_EQ(slabs_emptiest(&s, pinned), 2);
    CHECK_EQ(slabs_take_pieces(&s, 8, &run), 2); /* the fullest first */
    CHECK_EQ(run.start, 62);
    s.avoid = 2;
    CHECK_EQ(slabs_take_pieces(&s, 8, &run), 8);
    CHECK_EQ(run.start, 65);
    s.avoid = 0;
    /* The shortest stretch that is long enough. */
    slabs_release(&s, (struct run){16 + 3, 4});
    slabs_release(&s, (struct run){16 + 9, 2});
    CHECK_EQ(slabs_take_pieces(&s, 2, &run), 2);
    CHECK_EQ(run.start, 16 + 9);
    CHECK_EQ(slabs_take_pieces(&s, 9, &run), 4);
    CHECK_EQ(run.start, 16 + 3);
    CHECK_EQ(s.fresh, 5);
    slabs_done(&s);
}

/* Pieces and slabs together, against a byte for each piece. */
static void test_pieces_model(void)
{
    static bool held[COUNT * SLAB_PIECES];
    static struct run runs[COUNT * SLAB_PIECES];
    struct slabs s;
    uint32_t count = 0;
    CHECK_EQ(slabs_init(&s, COUNT, 1), 0);
    for (uint32_t i = 0; i < SLAB_PIECES; i++)
        held[i] = true;
    for (uint32_t i = 0; i < 20000; i++) {
        uint32_t want = 1 + random_below(30);
        struct run run = {0};
        s.avoid = random_below(COUNT);
        if (count > 0 && random_below(100) < (i / 3000 % 2 == 0 ? 30 : 60)) {
            uint32_t victim = random_below(count);
            run = runs[victim];
            runs[victim] = runs[--count];
            slabs_release(&s, run);
        } else if (random_below(4) > 0 ? slabs_take_pieces(&s, want, &run) > 0
                                       : slabs_take(&s, 1 + want / 8, 0, &run) > 0) {
            CHECK(run.count <= want || run.count % SLAB_PIECES == 0);
            runs[count++] = run;
        } else {
            CHECK_EQ(s.free_count, 0);
        }
        for (uint32_t j = 0; j < run.count; j++)
            held[run.start + j] = !held[run.start + j];
        uint32_t part = 0, part_free = 0, free_count = 0;
        for (uint32_t slab = 1; slab < COUNT; slab++) {
            uint32_t n = 0;
            for (uint32_t j = 0; j < SLAB_PIECES; j++) {
                CHECK_EQ(s.held[slab] >> j & 1, held[slab * SLAB_PIECES + j]);
                n += held[slab * SLAB_PIECES + j];
            }
            bool is_part = n > 0 && n < SLAB_PIECES;
            CHECK_EQ(s.part_map[slab / 64] >> (slab % 64) & 1, is_part);
            CHECK_EQ(s.free_map[slab / 64] >> (slab % 64) & 1, n == 0);
            part += is_part;
            part_free += is_part ? SLAB_PIECES - n : 0;
            free_count += n == 0;
        }
        CHECK_EQ(s.part_count, part);
        CHECK_EQ(s.part_free, part_free);
        CHECK_EQ(s.free_count, free_count);
    }
    slabs_done(&s);
}

/* --- what the file system has no room for --- */

static void test_limit(void)
{
    struct slabs s;
    struct run run;
    CHECK_EQ(slabs_init(&s, 100, 1), 0);
    slabs_set_limit(&s, 10);
    CHECK_EQ(s.free_count, 99);
    CHECK_EQ(slabs_withheld(&s), 90);
    CHECK_EQ(slabs_available(&s), 9);
    CHECK_EQ(slabs_take(&s, 20, 0, &run), 9);
    CHECK_EQ(slabs_available(&s), 0);
    CHECK_EQ(slabs_take(&s, 1, 0, &run), 0);
    CHECK_EQ(slabs_take_pieces(&s, 1, &run), 0);
    CHECK(!slabs_take_fresh(&s, &run));
    /* What was used before can be used again. */
    slabs_release(&s, (struct run){4 * SLAB_PIECES, 2 * SLAB_PIECES});
    CHECK_EQ(slabs_available(&s), 2);
    CHECK_EQ(slabs_take(&s, 3, 0, &run), 2);
    CHECK_EQ(run.start, 4 * SLAB_PIECES);
    /* What was written is never withheld, nor what a record claims. */
    slabs_set_limit(&s, 5);
    CHECK_EQ(s.limit, 10);
    CHECK(slabs_claim(&s, (struct run){20 * SLAB_PIECES, 1}));
    CHECK_EQ(s.limit, 21);
    CHECK_EQ(slabs_available(&s), 10);
    slabs_set_limit(&s, 100);
    CHECK_EQ(slabs_withheld(&s), 0);
    CHECK_EQ(slabs_take_pieces(&s, 15, &run), 15); /* held in part: first */
    CHECK_EQ(slabs_take(&s, 100, 0, &run), 10);
    CHECK_EQ(slabs_take(&s, 100, 0, &run), 79);
    CHECK_EQ(s.free_count, 0);
    slabs_done(&s);
}

int main(void)
{
    test_limit();
    test_preferences();
    test_pieces();
    test_against_model();
    test_take_pieces();
    test_pieces_model();
    return 0;
}
