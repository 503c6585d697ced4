/* SPDX-License-Identifier: Apache-2.0 */
#include "cow/schedule.h"

#include <stdio.h>
#include <time.h>

#define PREFIX "auto-"

static uint64_t every_unit(uint64_t every_s, char *ret_unit)
{
    static const struct {
        uint64_t seconds;
        char letter;
    } units[] = {{86400, 'd'}, {3600, 'h'}, {60, 'm'}, {1, 's'}};
    uint32_t i = 0;

    while (every_s % units[i].seconds != 0)
        i++;
    *ret_unit = units[i].letter;
    return every_s / units[i].seconds;
}

void schedule_name(uint64_t every_s, uint64_t time_s, char ret[SCHEDULE_NAME_MAX])
{
    char unit, when[20] = "00000000-000000";
    uint64_t count = every_unit(every_s, &unit);
    time_t time = (time_t)time_s;
    struct tm tm;

    if (gmtime_r(&time, &tm))
        strftime(when, sizeof when, "%Y%m%d-%H%M%S", &tm);
    snprintf(ret, SCHEDULE_NAME_MAX, PREFIX "%llu%c-%s", (unsigned long long)count, unit,
             when);
}

/* n digits; -1 if they are none. */
static int digits(const char *text, uint32_t n)
{
    int value = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        value = value * 10 + (text[i] - '0');
    }
    return value;
}

bool schedule_parse(const char *name, uint64_t every_s, uint64_t *ret_time_s)
{
    static const char pattern[] = "YYYYMMDD-HHMMSS";
    char again[SCHEDULE_NAME_MAX];
    size_t len = strlen(name);

    if (len >= SCHEDULE_NAME_MAX || len < sizeof pattern)
        return false;
    const char *when = name + len - (sizeof pattern - 1);
    struct tm tm = {
        .tm_year = digits(when, 4) - 1900, .tm_mon = digits(when + 4, 2) - 1,
        .tm_mday = digits(when + 6, 2),    .tm_hour = digits(when + 9, 2),
        .tm_min = digits(when + 11, 2),    .tm_sec = digits(when + 13, 2),
    };
    time_t time = timegm(&tm);
    if (time < 0)
        return false;
    /* Whatever else is wrong with it makes it another name than this one's. */
    schedule_name(every_s, (uint64_t)time, again);
    if (strcmp(name, again) != 0)
        return false;
    *ret_time_s = (uint64_t)time;
    return true;
}

void schedule_decide(const struct schedule_facts *facts, struct schedule_decision *ret)
{
    uint64_t begin_s = facts->now_s - facts->now_s % facts->every_s;
    uint64_t newest_s = facts->handled_s <= facts->now_s ? facts->handled_s : 0;
    uint64_t least_s = facts->every_s / 2;
    uint32_t count = 0;

    *ret = (struct schedule_decision){.next_s = begin_s + facts->every_s};
    for (uint32_t i = facts->name_count; i-- > 0;) { /* newest first */
        uint64_t time_s;
        if (!schedule_parse(facts->names[i], facts->every_s, &time_s))
            continue;
        count++;
        if (time_s <= facts->now_s)
            newest_s = max_u64(newest_s, time_s);
    }
    if (newest_s < begin_s || newest_s == 0) {
        ret->make = facts->quiet_s >= least_s;
        if (!ret->make)
            ret->next_s = facts->now_s + (least_s - facts->quiet_s);
    }
    for (uint32_t i = 0; i < facts->name_count && count > facts->keep &&
                         ret->remove_count < SCHEDULE_REMOVES; i++) {
        uint64_t time_s;
        if (!schedule_parse(facts->names[i], facts->every_s, &time_s))
            continue;
        ret->removes[ret->remove_count++] = i;
        count--;
    }
}
