/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/span.h"

#include "tests/unit/check.h"

#define DAY (24 * (uint64_t)3600)

static uint64_t parse(const char *text)
{
    uint64_t seconds = 0;
    struct error err = {0};
    CHECK_EQ(span_parse(text, &seconds, &err), 0);
    return seconds;
}

static void test_spans(void)
{
    static const char *const bad[] = {
        "",     "m",  "30",   "-1h", "+1h", " 1h", "1h ", "1 h",           "1hour",
        "1.5h", "1H", "1d2h", "1y",  "h1",  "01",  "1mm", "9999999999999s"};
    CHECK_EQ(parse("0"), 0);
    CHECK_EQ(parse("0d"), 0);
    CHECK_EQ(parse("90s"), 90);
    CHECK_EQ(parse("30m"), 1800);
    CHECK_EQ(parse("12h"), 12 * 3600);
    CHECK_EQ(parse("7d"), 7 * DAY);
    CHECK_EQ(parse("2w"), 14 * DAY);
    CHECK_EQ(parse("1000d"), 1000 * DAY);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        uint64_t seconds = 7;
        struct error err = {0};
        CHECK_EQ(span_parse(bad[i], &seconds, &err), -EINVAL);
        CHECK_EQ(seconds, 7); /* untouched */
        CHECK(strstr(err.text, bad[i]) != NULL);
    }
    uint64_t seconds = 7;
    CHECK_EQ(span_parse("999999999999w", &seconds, NULL), -EINVAL);
    CHECK_EQ(seconds, 7);
}

static void test_print(void)
{
    static const char *const same[] = {"0",  "1s",  "59s", "1m",  "90m",
                                       "1h", "25h", "1d",  "13d", "2w"};
    for (size_t i = 0; i < ARRAY_LEN(same); i++)
        CHECK_STR(span_text(parse(same[i])).text, same[i]);
    CHECK_STR(span_text(7 * DAY).text, "1w");
    CHECK_STR(span_text(86401).text, "86401s");
}

static uint64_t moment(const char *text, uint64_t now_s)
{
    uint64_t seconds = 7;
    struct error err = {0};
    CHECK_EQ(moment_parse(text, now_s, &seconds, &err), 0);
    return seconds;
}

static void test_moments(void)
{
    static const char *const bad[] = {"",
                                      "2026",
                                      "2026-02-30",
                                      "2026-13-01",
                                      "2026-01-00",
                                      "2026-01-31T",
                                      "2026-01-31T24:00",
                                      "2026-01-31T12:60",
                                      "26-01-31",
                                      "2026-01-31T12:00X",
                                      "2026/01/31",
                                      "yesterday",
                                      "1900-01-01"};
    CHECK_EQ(moment("1h", 10000), 6400);
    CHECK_EQ(moment("1d", 10000), 0);
    CHECK_EQ(moment("0", 10000), 10000);
    CHECK_EQ(moment("1970-01-02", 5), 86400);
    CHECK_EQ(moment("2026-01-31", 5), 1769817600);
    CHECK_EQ(moment("2026-01-31T12:00", 5), 1769860800);
    CHECK_EQ(moment("2026-01-31 12:00", 5), 1769860800);
    CHECK_EQ(moment("2026-01-31T12:00:01Z", 5), 1769860801);
    CHECK_EQ(moment("2024-02-29Z", 5), 1709164800);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        uint64_t seconds = 7;
        CHECK_EQ(moment_parse(bad[i], 5, &seconds, NULL), -EINVAL);
        CHECK_EQ(seconds, 7);
    }
    CHECK_STR(moment_text(1769860801).text, "2026-01-31T12:00:01Z");
    CHECK_STR(moment_text(0).text, "never");
}

int main(void)
{
    test_spans();
    test_print();
    test_moments();
    return 0;
}
