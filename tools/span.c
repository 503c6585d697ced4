/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/span.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

static const struct {
    char letter;
    uint64_t seconds;
} units[] = {{'w', 7 * 24 * 3600}, {'d', 24 * 3600}, {'h', 3600}, {'m', 60}, {'s', 1}};

static uint64_t unit_of(const char *text)
{
    for (size_t i = 0; i < ARRAY_LEN(units); i++)
        if (text[0] == units[i].letter && text[1] == '\0')
            return units[i].seconds;
    return 0;
}

/* The digits text begins with; NULL: none, or far too many. */
static const char *parse_digits(const char *text, uint64_t *ret)
{
    uint64_t n = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (at - text == 12)
            return NULL;
        n = 10 * n + (uint64_t)(*at - '0');
    }
    *ret = n;
    return at != text ? at : NULL;
}

int span_parse(const char *text, uint64_t *ret_seconds, struct error *err)
{
    uint64_t n = 0, unit = 0;
    const char *end = parse_digits(text, &n);
    if (end != NULL)
        unit = n == 0 && *end == '\0' ? 1 : unit_of(end);
    if (unit == 0)
        return err_set(err, -EINVAL,
                       "'%s' is not a span of time; write 30m, 12h, 7d or 2w", text);
    if (n > SPAN_SECONDS_MAX / unit)
        return err_set(err, -EINVAL, "span '%s' is too long", text);
    *ret_seconds = n * unit;
    return 0;
}

struct span_text span_text(uint64_t seconds)
{
    struct span_text ret = {"0"};
    for (size_t i = 0; i < ARRAY_LEN(units) && seconds > 0; i++) {
        if (seconds % units[i].seconds != 0)
            continue;
        snprintf(ret.text, sizeof ret.text, "%" PRIu64 "%c", seconds / units[i].seconds,
                 units[i].letter);
        break;
    }
    return ret;
}

/* --- moments --- */

/* The number that stands in text at `at`, of that many digits; -1: none. */
static int number_at(const char *text, size_t at, size_t digits)
{
    int n = 0;
    for (size_t i = at; i < at + digits; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        n = 10 * n + (text[i] - '0');
    }
    return n;
}

/* text looks like form, in which 0 stands for a digit and T for T or a blank. */
static bool has_form(const char *text, const char *form)
{
    size_t len = strlen(form);
    if (strnlen(text, len) < len)
        return false;
    for (size_t i = 0; i < len; i++) {
        bool good = form[i] == '0'   ? text[i] >= '0' && text[i] <= '9'
                    : form[i] == 'T' ? text[i] == 'T' || text[i] == ' '
                                     : text[i] == form[i];
        if (!good)
            return false;
    }
    return text[len] == '\0' || strcmp(text + len, "Z") == 0;
}

static bool parse_date(const char *text, uint64_t *ret_s)
{
    bool has_seconds = has_form(text, "0000-00-00T00:00:00");
    bool has_minutes = has_seconds || has_form(text, "0000-00-00T00:00");
    if (!has_minutes && !has_form(text, "0000-00-00"))
        return false;
    const struct tm asked = {
        .tm_year = number_at(text, 0, 4) - 1900,
        .tm_mon = number_at(text, 5, 2) - 1,
        .tm_mday = number_at(text, 8, 2),
        .tm_hour = has_minutes ? number_at(text, 11, 2) : 0,
        .tm_min = has_minutes ? number_at(text, 14, 2) : 0,
        .tm_sec = has_seconds ? number_at(text, 17, 2) : 0,
    };
    struct tm tm = asked;
    time_t seconds = timegm(&tm);
    /* The 31st of February becomes a day in March: no date. */
    if (seconds < 0 || tm.tm_mon != asked.tm_mon || tm.tm_mday != asked.tm_mday ||
        tm.tm_hour != asked.tm_hour || tm.tm_min != asked.tm_min ||
        tm.tm_sec != asked.tm_sec)
        return false;
    *ret_s = (uint64_t)seconds;
    return true;
}

int moment_parse(const char *text, uint64_t now_s, uint64_t *ret_s, struct error *err)
{
    uint64_t span;
    if (parse_date(text, ret_s))
        return 0;
    if (span_parse(text, &span, NULL) < 0)
        return err_set(err, -EINVAL,
                       "'%s' is not a time; write 12h, 7d or 2w, or a date like "
                       "2026-01-31 or 2026-01-31T12:00 (UTC)",
                       text);
    *ret_s = now_s > span ? now_s - span : 0;
    return 0;
}

struct moment_text moment_text(uint64_t seconds)
{
    struct moment_text ret = {"never"};
    time_t time = (time_t)seconds;
    struct tm tm;
    if (seconds > 0 && gmtime_r(&time, &tm) != NULL)
        strftime(ret.text, sizeof ret.text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    return ret;
}
