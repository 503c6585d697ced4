/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When compaction works and on what: single answers, and what they come to in the long
 * run on a simulated store, block by block.
 *
 *     test_compact_policy [LIVE_GIB...]: figures for so much live data on 8 GiB
 */
#include <stdio.h>

#include "blockstore/compact_policy.h"
#include "blockstore/digest.h"
#include "tests/unit/check.h"

static uint64_t state = 1;

static uint32_t random_below(uint32_t n)
{
    state = state * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)((state >> 33) * n >> 31);
}

/* --- single answers --- */

static void test_goals(void)
{
    static const struct {
        struct compact_space space;
        uint32_t low, high; /* the goal lies between */
    } table[] = {
        {{.slabs = 8192, .free = 8000, .kept = 4}, 0, 0},
        {{.slabs = 8192, .free = 8000, .kept = 4, .idle_ns = 6 * NS_PER_S}, 500, 500},
        {{.slabs = 8192, .free = 8000, .kept = 4, .idle_ns = NS_PER_S * 90}, 750, 750},
        {{.slabs = 8192, .free = 132, .kept = 4}, 0, 0},
        {{.slabs = 8192, .free = 131, .kept = 4}, 550, 560},
        {{.slabs = 8192, .free = 140, .kept = 4, .active = true}, 600, 650},
        {{.slabs = 8192, .free = 164, .kept = 4, .active = true}, 0, 0},
        {{.slabs = 8192, .free = 150, .kept = 100}, 800, 900},
        {{.slabs = 8192, .free = 20, .kept = 4}, 1000, 1000},
        {{.slabs = 8192, .free = 3, .kept = 4}, 1000, 1000},
        {{.slabs = 16, .free = 9, .kept = 1}, 0, 0},
        {{.slabs = 16, .free = 7, .kept = 1}, 600, 750},
        {{.slabs = 16, .free = 1, .kept = 1}, 1000, 1000},
        {{.slabs = 16, .free = 0, .kept = 16}, 1000, 1000},
    };
    for (uint32_t i = 0; i < ARRAY_LEN(table); i++) {
        uint32_t goal = compact_goal(&table[i].space);
        CHECK(goal >= table[i].low && goal <= table[i].high);
    }
    /* The less is free, the more it takes on, and the less it stands back. */
    uint32_t before = UINT32_MAX;
    uint64_t pause_before = 0;
    for (uint32_t n = 0; n < 400; n++) {
        struct compact_space space = {.slabs = 8192, .free = n, .kept = 4};
        uint32_t goal = compact_goal(&space);
        uint64_t pause_ns = compact_pause_ns(&space, NS_PER_MS);
        CHECK(goal <= before && pause_ns >= pause_before);
        before = goal;
        pause_before = pause_ns;
        CHECK(compact_budget(&space) <= n * SLAB_PIECES);
    }
    CHECK_EQ(compact_reserve_slabs(16), 1);
    CHECK_EQ(compact_reserve_slabs(64), 2);
    CHECK_EQ(compact_reserve_slabs(8192), COMPACT_RESERVE_SLABS);
}

static void test_gains(void)
{
    CHECK_EQ(compact_permille(1024, EXTENT_BLOCKS), COMPACT_GOAL_MAX + 1);
    CHECK_EQ(compact_permille(1024, 8192), (512 + 3) * 1000 / 1024);
    CHECK_EQ(compact_permille(2, 1), COMPACT_GOAL_MAX + 1); /* a piece and a digest */
    CHECK_EQ(compact_permille(3, 16), 666);
    struct compact_space space = {.slabs = 8192, .free = 10, .kept = 4, .part_free = 100};
    CHECK(!compact_evacuates(&space));
    space.part_free = 64 + 2048;
    CHECK(compact_evacuates(&space));
    CHECK(compact_slab_pays(&space, 1) && compact_slab_pays(&space, 15));
    CHECK(!compact_slab_pays(&space, 16));
    space.free = 1000;
    CHECK(!compact_evacuates(&space));
    space.free = space.kept; /* whole slabs are what the reserve is made of */
    space.part_free = 2 * SLAB_PIECES;
    CHECK(compact_evacuates(&space));
    space.part_free--;
    CHECK(!compact_evacuates(&space));
    space.part_free = 20;
    CHECK(!compact_slab_pays(&space, 1)); /* 5 elsewhere */
    space.part_free = 30;
    CHECK(compact_slab_pays(&space, 10));
}

/* Against all stretches there are. */
static void test_stretches(void)
{
    for (uint32_t round = 0; round < 300; round++) {
        uint8_t live[40];
        uint32_t pieces = 1 + random_below(40), budget = random_below(30), best = 0;
        for (uint32_t i = 0; i < pieces; i++)
            live[i] = (uint8_t)(random_below(3) > 0 ? random_below(17) : 16);
        for (uint32_t from = 0; from < pieces; from++) {
            uint32_t blocks = 0;
            for (uint32_t to = from + 1; to <= pieces; to++) {
                blocks += live[to - 1];
                uint32_t after = (blocks + PIECE_BLOCKS - 1) / PIECE_BLOCKS;
                if (blocks <= budget * PIECE_BLOCKS && to - from - after > best)
                    best = to - from - after;
            }
        }
        uint32_t from = 0, to = 0, blocks = 0;
        CHECK_EQ(compact_stretch(live, pieces, budget, &from, &to), best);
        for (uint32_t i = from; i < to; i++)
            blocks += live[i];
        CHECK(blocks <= budget * PIECE_BLOCKS && to <= pieces);
    }
}

static void test_choices(void)
{
    struct compact_choices choices = {0};
    uint32_t all[500];
    for (uint32_t i = 0; i < ARRAY_LEN(all); i++) {
        all[i] = random_below(1000);
        compact_choose(&choices, address_of(1, i, 0), all[i]);
    }
    CHECK_EQ(choices.count, COMPACT_CHOICES);
    for (uint32_t i = 0; i < choices.count; i++) {
        uint64_t which = choices.at[i].extent.v >> 14 & 0xffff;
        CHECK_EQ(choices.at[i].permille, all[which]);
        uint32_t better = 0;
        for (uint32_t j = 0; j < ARRAY_LEN(all); j++)
            better += all[j] < all[which];
        CHECK(better <= i);
    }
}

/* --- the long run --- */

#define GIB_BLOCKS ((uint32_t)(GIB / BLOCK_SIZE))
#define SLABS      8192U
#define KEPT       64U           /* for checkpoints, and compaction */
#define BATCH      17U           /* blocks, a header among them */
#define LAG_BLOCKS (256U * 256U) /* until the dead are known: a checkpoint's log */
#define EXTENTS    2048U

struct sim_extent {
    uint32_t held, live;
    bool is_fit; /* its headers were trimmed */
};

struct sim {
    struct sim_extent extents[EXTENTS];
    uint16_t *where; /* of each block of the disk: its extent */
    uint16_t *dying; /* extents that lose a block, in order; a ring */
    uint32_t dying_at;
    uint32_t open, open_end;
    uint64_t held; /* pieces */
    uint64_t written, moved;
    struct compact_choices choices;
    bool active;
    uint32_t waits;
};

static struct compact_space space_of(const struct sim *s)
{
    uint32_t used = (uint32_t)div_up_u64(s->held, SLAB_PIECES);
    return (struct compact_space){.slabs = SLABS,
                                  .free = SLABS - 1 > used ? SLABS - 1 - used : 0,
                                  .kept = KEPT,
                                  .active = s->active};
}

static void resize(struct sim *s, struct sim_extent *e, uint32_t held)
{
    s->held += (uint64_t)held - e->held;
    e->held = held;
}

/* One extent, if one is worth it. */
static bool compact_one(struct sim *s)
{
    struct compact_space space = space_of(s);
    uint32_t goal = compact_goal(&space);
    s->active = false;
    if (goal == 0)
        return false;
    for (uint32_t looked = 0; looked < 2; looked++) {
        while (s->choices.next < s->choices.count) {
            uint64_t which = s->choices.at[s->choices.next++].extent.v >> 14 & 0xffff;
            struct sim_extent *e = &s->extents[which];
            if (!e->is_fit || e->live == 0 || compact_permille(e->held, e->live) > goal)
                continue;
            uint32_t digest = digest_blocks(e->live);
            s->moved += e->live + digest;
            resize(s, e, (e->live + 15) / 16 + (digest + 15) / 16);
            s->active = true;
            return true;
        }
        s->choices = (struct compact_choices){0};
        for (uint32_t i = 1; i < EXTENTS; i++)
            if (s->extents[i].is_fit && s->extents[i].live > 0)
                compact_choose(&s->choices, address_of(1, i, 0),
                               compact_permille(s->extents[i].held, s->extents[i].live));
    }
    return false;
}

static void open_next(struct sim *s)
{
    if (s->open != 0)
        s->extents[s->open].is_fit = true;
    s->open = 1;
    while (s->extents[s->open].held > 0)
        s->open++;
    CHECK(s->open < EXTENTS);
    s->open_end = 0;
    s->extents[s->open] = (struct sim_extent){0};
}

static void append(struct sim *s)
{
    if (s->open == 0 || s->open_end == EXTENT_BLOCKS)
        open_next(s);
    if (s->open_end % SLAB_BLOCKS == 0) {
        struct compact_space space = space_of(s);
        while (space.free <= space.kept) {
            s->waits++;
            CHECK(compact_one(s)); /* else it is stuck */
            space = space_of(s);
        }
        resize(s, &s->extents[s->open], s->extents[s->open].held + SLAB_PIECES);
        compact_one(s);
    }
    s->open_end++;
    s->written++;
}

static void overwrite(struct sim *s, uint32_t block)
{
    if (s->written % BATCH == 0)
        append(s);
    append(s);
    /* What it replaces dies when a checkpoint has said so. */
    uint16_t *dying = &s->dying[s->dying_at];
    s->dying_at = (s->dying_at + 1) % LAG_BLOCKS;
    struct sim_extent *e = &s->extents[*dying];
    if (*dying != 0 && --e->live == 0 && *dying != s->open) {
        resize(s, e, 0);
        e->is_fit = false;
    }
    *dying = s->where[block];
    s->where[block] = (uint16_t)s->open;
    s->extents[s->open].live++;
}

/* Bytes moved for each byte written, in thousandths, once the store is in its stride. */
static uint32_t long_run(uint32_t live_blocks, uint32_t *ret_waits)
{
    struct sim *s = calloc(1, sizeof *s);
    s->where = calloc(live_blocks, sizeof *s->where);
    s->dying = calloc(LAG_BLOCKS, sizeof *s->dying);
    for (uint32_t i = 0; i < live_blocks; i++)
        overwrite(s, i);
    uint32_t rounds = 20 * GIB_BLOCKS;
    for (uint32_t i = 0; i < rounds; i++) {
        if (i == rounds / 2) {
            s->written = s->moved = 0;
            s->waits = 0;
        }
        overwrite(s, random_below(live_blocks));
    }
    uint32_t permille = (uint32_t)(s->moved * 1000 / s->written);
    *ret_waits = s->waits;
    free(s->where);
    free(s->dying);
    free(s);
    return permille;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        uint32_t waits = 0;
        double gib = strtod(argv[i], NULL);
        uint32_t moved = long_run((uint32_t)(gib * GIB_BLOCKS), &waits);
        printf("%s GiB live: %u.%03u moved for each byte written, %u waits\n", argv[i],
               moved / 1000, moved % 1000, waits);
    }
    if (argc > 1)
        return 0;
    test_goals();
    test_gains();
    test_stretches();
    test_choices();
    uint32_t waits = 0;
    CHECK(long_run(4 * GIB_BLOCKS, &waits) < 400 && waits == 0);
    CHECK(long_run(6 * GIB_BLOCKS + GIB_BLOCKS / 5, &waits) < 2500);
    return 0;
}
