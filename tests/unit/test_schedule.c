/* SPDX-License-Identifier: Apache-2.0 */
/* When snapshots are due and which ones go, as tables. */
#include "cow/schedule.h"
#include "tests/unit/check.h"

#define HOUR 3600U
#define DAY  86400U
#define T    1769864400U /* 2026-01-31 13:00:00 UTC */
#define EVER UINT64_MAX

static void test_names(void)
{
    static const struct {
        uint64_t every_s, time_s;
        const char *name;
    } rows[] = {
        {HOUR, T, "auto-1h-20260131-130000"},
        {DAY, T + 61, "auto-1d-20260131-130101"},
        {7 * DAY, 0, "auto-7d-19700101-000000"},
        {90 * 60, T, "auto-90m-20260131-130000"},
        {61, T, "auto-61s-20260131-130000"},
        {36 * HOUR, T, "auto-36h-20260131-130000"},
    };

    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        char name[SCHEDULE_NAME_MAX];
        uint64_t time_s = 1;
        schedule_name(rows[i].every_s, rows[i].time_s, name);
        CHECK_STR(name, rows[i].name);
        CHECK(schedule_parse(name, rows[i].every_s, &time_s));
        CHECK_EQ(time_s, rows[i].time_s);
        CHECK(!schedule_parse(name, rows[i].every_s + 1, &time_s));
    }
}

static void test_foreign_names(void)
{
    static const char *const names[] = {
        "", "auto", "auto-1h-", "auto-1h-20260131-13000", "auto-1h-20260131-1300000",
        "auto-1h-20261331-130000", "auto-1h-20260230-130000", "auto-1h-20260131-246000",
        "auto-01h-20260131-130000", "auto-60m-20260131-130000", "auto-1h-2026013x-130000",
        "auto-1d-20260131-130000", "before-1h-20260131-130000", "auto-1h-00000000-000000",
        "auto-1h-99999999-999999", "auto-1h--0260131-130000", "auto-1h-20260131+130000",
        "an-ordinary-snapshot-whose-name-is-rather-a-long-one",
    };
    uint64_t time_s;

    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        CHECK(!schedule_parse(names[i], HOUR, &time_s));
}

/* Snapshots are hours from T, in order of making; 99 ends them. */
struct row {
    const char *what;
    uint64_t every_s;
    uint32_t keep;
    int64_t now_s; /* from T */
    int64_t had[8];
    int64_t handled_s; /* from T; INT64_MIN: never */
    uint64_t quiet_s;
    bool make;
    int64_t next_s; /* from T */
    uint32_t remove_count;
    uint32_t removes[4];
};
#define END 99
#define NO  INT64_MIN

static const struct row rows[] = {
    {"the first one at once", HOUR, 3, 1800, {END}, NO, EVER, true, HOUR, 0, {0}},
    {"one in this period", HOUR, 3, 1800, {0, END}, NO, EVER, false, HOUR, 0, {0}},
    {"the last one is of before", HOUR, 3, 1800, {-1, END}, NO, EVER, true, HOUR, 0, {0}},
    {"at the very second", HOUR, 3, HOUR, {0, END}, NO, EVER, true, 2 * HOUR, 0, {0}},
    {"the second before", HOUR, 3, HOUR - 1, {0, END}, NO, EVER, false, HOUR, 0, {0}},
    {"after a long silence one", HOUR, 9, 999 * HOUR, {-2, -1, 0, END}, NO, EVER, true,
     1000 * HOUR, 0, {0}},
    {"restarted a moment ago", HOUR, 3, 1800, {0, END}, 5, 1795, false, HOUR, 0, {0}},
    {"nothing was written", HOUR, 3, 1800, {-3, END}, 0, 1800, false, HOUR, 0, {0}},
    {"days begin at midnight", DAY, 3, 1800, {END}, NO, EVER, true, 11 * HOUR, 0, {0}},
    {"one too many", HOUR, 2, 10, {-2, -1, 0, END}, NO, EVER, false, HOUR, 1, {0}},
    {"others' are not counted", DAY, 1, 10, {-2, -1, 0, END}, NO, EVER, true, 11 * HOUR,
     0, {0}},
    {"keep was lowered", HOUR, 1, 10, {-3, -2, -1, 0, END}, NO, EVER, false, HOUR, 3,
     {0, 1, 2}},
    {"exactly as many, one is due", HOUR, 2, 10, {-2, -1, END}, NO, EVER, true, HOUR, 0,
     {0}},
    /* the clock */
    {"set back by 3 h", HOUR, 9, 10, {1, 2, 3, END}, 3 * HOUR, 5000, true, HOUR, 0, {0}},
    {"set back just now", HOUR, 9, 10, {1, 2, 3, END}, 3 * HOUR, 600, false, 10 + 1200, 0,
     {0}},
    {"set back, there is one of then", HOUR, 9, 10, {0, 1, END}, HOUR, 600, false, HOUR,
     0, {0}},
    {"set forward just now", HOUR, 9, 50 * HOUR, {0, END}, 0, 10, false,
     50 * HOUR + 1790, 0, {0}},
    {"set forward a while ago", HOUR, 9, 50 * HOUR, {0, END}, 0, 1800, true, 51 * HOUR, 0,
     {0}},
    {"the oldest is that made first", HOUR, 2, 10, {5, -1, 0, END}, NO, EVER, false, HOUR,
     1, {0}},
};

static void run_row(const struct row *row)
{
    char names[8][SCHEDULE_NAME_MAX];
    const char *list[8 * 2];
    struct schedule_facts facts = {
        .every_s = row->every_s,
        .keep = row->keep,
        .now_s = (uint64_t)((int64_t)T + row->now_s),
        .names = list,
        .handled_s = row->handled_s == NO ? 0 : (uint64_t)((int64_t)T + row->handled_s),
        .quiet_s = row->quiet_s,
    };
    struct schedule_decision decision;
    uint32_t n = 0;

    for (uint32_t i = 0; row->had[i] != END; i++) {
        schedule_name(HOUR, (uint64_t)((int64_t)T + row->had[i] * HOUR), names[i]);
        list[n++] = names[i];
        list[n++] = "a-user-made-this";
    }
    facts.name_count = n;
    schedule_decide(&facts, &decision);
    fprintf(stderr, "%s\n", row->what);
    CHECK_EQ(decision.make, row->make);
    CHECK_EQ((int64_t)decision.next_s - (int64_t)T, row->next_s);
    CHECK_EQ(decision.remove_count, row->remove_count);
    for (uint32_t i = 0; i < row->remove_count; i++)
        CHECK_EQ(decision.removes[i], row->removes[i] * 2);
}

/* More to remove than one turn does. */
static void test_many(void)
{
    enum { COUNT = 200 };
    static char names[COUNT][SCHEDULE_NAME_MAX];
    const char *list[COUNT];
    struct schedule_decision decision;
    struct schedule_facts facts = {
        .every_s = 60, .keep = 10, .now_s = T, .names = list, .name_count = COUNT,
        .quiet_s = EVER,
    };

    for (uint32_t i = 0; i < COUNT; i++) {
        schedule_name(60, T - 60 * (COUNT - i), names[i]);
        list[i] = names[i];
    }
    schedule_decide(&facts, &decision);
    CHECK_EQ(decision.remove_count, SCHEDULE_REMOVES);
    facts.name_count = 70;
    schedule_decide(&facts, &decision);
    CHECK_EQ(decision.remove_count, 60);
    CHECK_EQ(decision.removes[59], 59);
}

/* However the clock jumps about, no rule makes more than one in half its period. */
static void test_no_bursts(void)
{
    static char names[512][SCHEDULE_NAME_MAX];
    const char *list[512];
    uint64_t wall_s = T, handled_s = 0, since_s = UINT64_MAX, random = 7;
    uint32_t count = 0;

    for (uint32_t minute = 0; minute < 60 * 48; minute++) {
        struct schedule_decision decision;
        struct schedule_facts facts = {
            .every_s = HOUR, .keep = 1000, .now_s = wall_s, .names = list,
            .name_count = count, .handled_s = handled_s, .quiet_s = since_s,
        };
        schedule_decide(&facts, &decision);
        CHECK(decision.next_s > wall_s);
        if (decision.make) {
            CHECK(since_s >= HOUR / 2);
            schedule_name(HOUR, wall_s, names[count]);
            list[count] = names[count];
            count++;
            handled_s = wall_s;
            since_s = 0;
        }
        wall_s += 60;
        since_s = since_s == UINT64_MAX ? since_s : since_s + 60;
        random = random * 6364136223846793005U + 1442695040888963407U;
        if (random >> 60 == 0)
            wall_s += (random >> 32) % (4 * HOUR);
        else if (random >> 60 == 1)
            wall_s -= (random >> 32) % (4 * HOUR);
    }
    CHECK(count >= 40 && count <= 2 * 48);
}

int main(void)
{
    test_names();
    test_foreign_names();
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        run_row(&rows[i]);
    test_many();
    test_no_bursts();
    return 0;
}
