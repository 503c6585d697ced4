/* SPDX-License-Identifier: Apache-2.0 */
/* Where a log ends, as tables: what was found, what is decided. */
#include "replication/take_over_plan.h"
#include "tests/unit/check.h"

/* A copy: numbers first to last. Every batch takes 10 blocks, after the roll record. */
#define COPY(f, l)                                                                       \
    {                                                                                    \
        .node = 1, .first = (f), .last = (l), .end_number = (l),                         \
        .end = (l) == 0 ? 1 : 1 + 10 * ((l) - (f) + 1)                                   \
    }
#define OPEN(e, f, l)                                                                    \
    {                                                                                    \
        .epoch = (e), .copy_count = 1, .member_count = 1, .copies = {COPY(f, l)}         \
    }
#define LOST(e)                                                                          \
    {                                                                                    \
        .epoch = (e)                                                                     \
    }
#define LOST_FINAL(e, l)                                                                 \
    {                                                                                    \
        .epoch = (e), .is_final = true, .length = 31, .last_number = (l)                 \
    }
#define FINAL(e, f, l, committed)                                                        \
    {                                                                                    \
        .epoch = (e), .is_final = true, .last_number = (committed),                      \
        .length = 1 + 10 * ((committed) - (f) + 1), .copy_count = 1, .member_count = 1,  \
        .copies = {COPY(f, l)}                                                           \
    }
#define ROLLED(e, f, l, number)                                                          \
    {                                                                                    \
        .epoch = (e), .is_rolled = true, .rolled_number = (number), .copy_count = 1,     \
        .member_count = 1, .copies = {COPY(f, l)}                                        \
    }

struct row {
    const char *story;
    uint64_t covers, flushed;
    struct cluster_cut cuts[2];
    struct plan_extent extents[4];
    uint32_t count;
    int code;
    uint64_t last;
    uint64_t keep[4];
};

static const struct row ROWS[] = {
    {.story = "nothing was ever written",
     .last = 0,
     .keep = {0}},
    {.story = "nothing since the checkpoint",
     .covers = 7, .flushed = 7,
     .last = 7,
     .keep = {0}},
    {.story = "one extent",
     .flushed = 3,
     .extents = {OPEN(1, 1, 5)},
     .count = 1,
     .last = 5,
     .keep = {5}},
    {.story = "one opened ahead, unused",
     .flushed = 3,
     .extents = {OPEN(1, 1, 5), OPEN(1, 0, 0)},
     .count = 2,
     .last = 5,
     .keep = {5, 0}},
    {.story = "a planned roll",
     .flushed = 3,
     .extents = {OPEN(1, 1, 5), OPEN(1, 6, 9)},
     .count = 2,
     .last = 9,
     .keep = {5, 9}},
    {.story = "a gap: the first one's unflushed tail was lost",
     .flushed = 3,
     .extents = {OPEN(1, 1, 4), OPEN(1, 6, 9)},
     .count = 2,
     .last = 4,
     .keep = {4, 0}},
    {.story = "a gap below what was flushed",
     .flushed = 8,
     .extents = {OPEN(1, 1, 4), OPEN(1, 6, 9)},
     .count = 2,
     .code = -PLX_EDAMAGED},
    {.story = "a forced roll, copies in both",
     .flushed = 3,
     .extents = {ROLLED(1, 1, 6, 3), OPEN(1, 4, 9)},
     .count = 2,
     .last = 9,
     .keep = {3, 9}},
    {.story = "a forced roll half done",
     .flushed = 3,
     .extents = {ROLLED(1, 1, 9, 3), OPEN(1, 4, 6)},
     .count = 2,
     .last = 9,
     .keep = {9, 6}},
    {.story = "a roll record never hides a batch",
     .flushed = 3,
     .extents = {ROLLED(1, 1, 9, 3), OPEN(1, 0, 0)},
     .count = 2,
     .last = 9,
     .keep = {9, 0}},
    {.story = "two forced rolls without a flush between",
     .flushed = 3,
     .extents = {ROLLED(1, 1, 6, 3), ROLLED(1, 4, 5, 0), OPEN(1, 4, 8)},
     .count = 3,
     .last = 8,
     .keep = {3, 0, 8}},
    {.story = "copies of which the later one lost its tail",
     .flushed = 3,
     .extents = {ROLLED(1, 1, 9, 3), OPEN(1, 4, 6), OPEN(1, 8, 9)},
     .count = 3,
     .last = 9,
     .keep = {7, 6, 9}},
    {.story = "copies below what the checkpoint covers",
     .covers = 8, .flushed = 8,
     .extents = {ROLLED(1, 1, 6, 3), OPEN(1, 4, 9)},
     .count = 2,
     .last = 9,
     .keep = {3, 9}},
    {.story = "a committed length hides what is beyond",
     .flushed = 3,
     .extents = {FINAL(1, 1, 6, 3), OPEN(1, 7, 9)},
     .count = 2,
     .last = 3,
     .keep = {3, 0}},
    {.story = "a final one and its successor",
     .flushed = 3,
     .extents = {FINAL(1, 1, 6, 3), OPEN(1, 4, 9)},
     .count = 2,
     .last = 9,
     .keep = {3, 9}},
    {.story = "rot in a final one",
     .flushed = 3,
     .extents = {FINAL(1, 1, 2, 3), OPEN(1, 4, 9)},
     .count = 2,
     .code = -PLX_EDAMAGED},
    {.story = "rot below F, known by the next extent",
     .flushed = 9,
     .extents = {OPEN(1, 1, 3), OPEN(1, 6, 9)},
     .count = 2,
     .code = -PLX_EDAMAGED},
    {.story = "rot below F that the checkpoint covers would cut off what the map needs",
     .covers = 9, .flushed = 9,
     .extents = {OPEN(1, 1, 3), OPEN(1, 6, 9)},
     .count = 2,
     .code = -PLX_EDAMAGED},
    {.story = "rot below F, known by a roll record",
     .flushed = 5,
     .extents = {ROLLED(1, 1, 3, 5), OPEN(1, 4, 9)},
     .count = 2,
     .code = -PLX_EDAMAGED},
    {.story = "rot below F in the last extent",
     .flushed = 7,
     .extents = {OPEN(1, 1, 5)},
     .count = 1,
     .code = -PLX_EDAMAGED},
    {.story = "an empty one that should have had the flushed numbers",
     .flushed = 7,
     .extents = {OPEN(1, 1, 5), OPEN(1, 0, 0)},
     .count = 2,
     .code = -PLX_EDAMAGED},
    {.story = "a cut voids what an older epoch wrote above it",
     .flushed = 4,
     .cuts = {{.epoch = 1, .number = 4}},
     .extents = {OPEN(1, 1, 9), OPEN(2, 5, 6)},
     .count = 2,
     .last = 6,
     .keep = {4, 6}},
    {.story = "void as a whole",
     .flushed = 4,
     .cuts = {{.epoch = 1, .number = 4}},
     .extents = {OPEN(1, 1, 4), OPEN(1, 6, 9), OPEN(2, 5, 6)},
     .count = 3,
     .last = 6,
     .keep = {4, 0, 6}},
    {.story = "a newer epoch is not void",
     .flushed = 4,
     .cuts = {{.epoch = 1, .number = 4}},
     .extents = {OPEN(2, 1, 6)},
     .count = 1,
     .last = 6,
     .keep = {6}},
    {.story = "batches covered by the checkpoint are kept, too",
     .covers = 4, .flushed = 4,
     .extents = {OPEN(1, 1, 6)},
     .count = 1,
     .last = 6,
     .keep = {6}},
    {.story = "one opened ahead whose members are all lost for ever",
     .flushed = 3,
     .extents = {OPEN(1, 1, 5), LOST(1)},
     .count = 2,
     .last = 5,
     .keep = {5, 0}},
    {.story = "the last one is lost for ever with what was not flushed",
     .flushed = 5,
     .extents = {OPEN(1, 1, 5), LOST(1), OPEN(1, 9, 12)},
     .count = 3,
     .last = 5,
     .keep = {5, 0, 0}},
    {.story = "the last one is lost for ever, with what was flushed",
     .flushed = 7,
     .extents = {OPEN(1, 1, 5), LOST(1)},
     .count = 2,
     .code = -PLX_EDAMAGED},
    {.story = "a final one is lost for ever",
     .flushed = 5,
     .extents = {LOST_FINAL(1, 3), OPEN(1, 4, 5)},
     .count = 2,
     .code = -PLX_EDAMAGED},
    {.story = "one in the middle that got nothing is lost for ever",
     .flushed = 5,
     .extents = {OPEN(1, 1, 5), LOST(1), OPEN(1, 6, 9)},
     .count = 3,
     .last = 9,
     .keep = {5, 0, 9}},
    {.story = "after a checkpoint nothing was written into the new one",
     .covers = 9, .flushed = 9,
     .extents = {OPEN(2, 0, 0)},
     .count = 1,
     .last = 9,
     .keep = {0}},
};

static void check_row(const struct row *row)
{
    struct plan_extent extents[4];
    memcpy(extents, row->extents, sizeof extents);
    for (uint32_t i = 0; i < row->count; i++)
        extents[i].extent = address_of(1, i + 1, 0);
    uint32_t cut_count = 0;
    while (cut_count < 2 && row->cuts[cut_count].epoch != 0)
        cut_count++;
    struct take_over_plan plan = {.covers = row->covers,
                                  .known_flushed = row->flushed,
                                  .committed = row->covers,
                                  .cuts = row->cuts,
                                  .cut_count = cut_count,
                                  .extents = extents,
                                  .extent_count = row->count};
    struct error err = {0};
    int code = take_over_decide(&plan, &err);
    bool good = code == row->code && (code != 0 || plan.last == row->last);
    for (uint32_t i = 0; good && code == 0 && i < row->count; i++)
        good = extents[i].keep == row->keep[i];
    if (!good)
        fprintf(stderr, "%s: %d %s, last %llu\n", row->story, code, err.text,
                (unsigned long long)plan.last);
    CHECK(good);
    CHECK(code == 0 || err.text[0] != '\0');
    if (code == 0)
        CHECK_EQ(plan.flushed, plan.last); /* one member has what all have */
}

/* The longest copy counts, a damaged one does not. */
static void check_copies(void)
{
    struct plan_extent extent = {.extent = address_of(1, 1, 0),
                                 .epoch = 1,
                                 .copy_count = 3,
                                 .member_count = 3,
                                 .copies = {COPY(1, 2), COPY(1, 6), COPY(1, 5)}};
    struct take_over_plan plan = {
        .known_flushed = 4, .extents = &extent, .extent_count = 1};
    CHECK_EQ(take_over_decide(&plan, NULL), 0);
    CHECK_EQ(plan.last, 6);
    CHECK_EQ(plan.flushed, 4); /* the damaged one has 2 of them, but F is known */
    CHECK_EQ(extent.source, 1);
    CHECK(extent.copies[0].is_damaged && !extent.copies[2].is_damaged);
    extent.copies[1].is_broken = true;
    CHECK_EQ(take_over_decide(&plan, NULL), 0);
    CHECK_EQ(plan.last, 5);
}

/* Two members, of which both or one have answered. */
#define PAIR(f, l, m)                                                                    \
    {                                                                                    \
        .epoch = 1, .copy_count = 2, .member_count = 2,                                  \
        .copies = {COPY(f, l), COPY((m) == 0 ? 0 : (f), m)}                              \
    }
#define HALF(f, l)                                                                       \
    {                                                                                    \
        .epoch = 1, .copy_count = 1, .member_count = 2, .copies = {COPY(f, l)}           \
    }

/* What may stay where it is, and what has to be written again. */
static const struct {
    const char *story;
    uint64_t flushed, committed;
    struct plan_extent extents[3];
    uint32_t count;
    uint64_t last, stays;
    uint64_t keep[3];
} PAIRS[] = {
    {"the end is on one member alone", 3, 3, {PAIR(1, 6, 5)}, 1, 6, 5, {5}},
    {"a member is out of reach", 4, 2, {HALF(1, 6)}, 1, 6, 4, {4}},
    {"all of one extent, some of the roll that followed",
     3, 3, {PAIR(1, 9, 9), PAIR(4, 9, 6)}, 2, 9, 6, {3, 6}},
    {"the roll was flushed, and a member of it is out of reach",
     9, 9, {PAIR(1, 9, 9), HALF(4, 9)}, 2, 9, 9, {3, 9}},
    {"flushed, but in which of the two is not known",
     9, 3, {HALF(1, 9), HALF(4, 9)}, 2, 9, 3, {3, 0}},
    {"a dead take-over had begun to write again what was on all members",
     9, 3, {PAIR(1, 9, 9), PAIR(4, 8, 0)}, 2, 9, 3, {3, 0}},
    {"a dead take-over had not got as far as the batch that was on all members",
     9, 3, {PAIR(1, 9, 9), PAIR(4, 7, 7)}, 2, 9, 9, {9, 7}},
};

static void check_pairs(void)
{
    for (size_t i = 0; i < ARRAY_LEN(PAIRS); i++) {
        struct plan_extent extents[3];
        memcpy(extents, PAIRS[i].extents, sizeof extents);
        for (uint32_t j = 0; j < PAIRS[i].count; j++)
            extents[j].extent = address_of(1, j + 1, 0);
        struct take_over_plan plan = {.known_flushed = PAIRS[i].flushed,
                                      .committed = PAIRS[i].committed,
                                      .extents = extents,
                                      .extent_count = PAIRS[i].count};
        CHECK_EQ(take_over_decide(&plan, NULL), 0);
        bool good = plan.last == PAIRS[i].last && plan.flushed == PAIRS[i].stays;
        for (uint32_t j = 0; j < PAIRS[i].count; j++)
            good = good && extents[j].keep == PAIRS[i].keep[j];
        if (!good)
            fprintf(stderr, "%s: last %llu, stays %llu, keep %llu %llu\n",
                    PAIRS[i].story, (unsigned long long)plan.last,
                    (unsigned long long)plan.flushed,
                    (unsigned long long)extents[0].keep,
                    (unsigned long long)extents[1].keep);
        CHECK(good);
    }
}

int main(void)
{
    check_pairs();
    for (size_t i = 0; i < ARRAY_LEN(ROWS); i++)
        check_row(&ROWS[i]);
    check_copies();
    return 0;
}
