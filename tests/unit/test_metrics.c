/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/loop.h"
#include "runtime/metrics.h"
#include "tests/unit/check.h"

static void test_find_or_make(struct loop *loop)
{
    struct metric *writes = metric_counter(loop, "t_writes_total", "Writes.");
    CHECK(metric_counter(loop, "t_writes_total", "Writes.") == writes);
    CHECK(metric_counter(loop, "t_other", "Others.") != writes);
    metric_add(writes, 3);
    metric_add(writes, 4);
    metric_set(metric_counter(loop, "t_other", "Others."), 11);
}

static void test_buckets(struct loop *loop)
{
    struct metric *m = metric_histogram(loop, "t_seconds", "Times.");
    const uint64_t times[][2] = {
        {0, 0},    {256, 0},     {257, 1},          {512, 1},
        {513, 2},  {1024, 2},    {UINT64_MAX, 39},  {(uint64_t)256 << 38, 38},
    };
    for (size_t i = 0; i < ARRAY_LEN(times); i++) {
        uint64_t before = m->bucket[times[i][1]];
        metric_observe_ns(m, times[i][0]);
        CHECK_EQ(m->bucket[times[i][1]], before + 1);
    }
    CHECK_EQ(m->value, ARRAY_LEN(times));
}

static void test_text(struct loop *loop)
{
    struct metric *m = metric_histogram(loop, "t_short_seconds", "Short times.");
    metric_observe_ns(m, 300);
    metric_observe_ns(m, NS_PER_S);
    char *text = metrics_text(loop_metrics(loop));
    const char *const parts[] = {
        "# HELP t_writes_total Writes.\n# TYPE t_writes_total counter\n"
        "t_writes_total 7\n",
        "# TYPE t_other gauge\nt_other 11\n",
        "# TYPE t_short_seconds histogram\n"
        "t_short_seconds_bucket{le=\"2.56e-07\"} 0\n"
        "t_short_seconds_bucket{le=\"5.12e-07\"} 1\n",
        "t_short_seconds_bucket{le=\"0.536870912\"} 1\n"
        "t_short_seconds_bucket{le=\"1.07374182\"} 2\n",
        "t_short_seconds_bucket{le=\"+Inf\"} 2\n"
        "t_short_seconds_sum 1.000000300\nt_short_seconds_count 2\n",
    };
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        CHECK(strstr(text, parts[i]) != NULL);
    free(text);
}

static void test_full(struct loop *loop)
{
    static char names[METRICS_MAX + 2][16];
    struct metric *last = NULL, *before_last = NULL;
    for (uint32_t i = 0; i < ARRAY_LEN(names); i++) {
        snprintf(names[i], sizeof names[i], "t_many_%u", i);
        before_last = last;
        last = metric_counter(loop, names[i], "Many.");
        metric_add(last, 1);
    }
    CHECK(last == before_last); /* the spare */
    char *text = metrics_text(loop_metrics(loop));
    CHECK(strstr(text, "t_many_0 1\n") != NULL);
    CHECK(strstr(text, names[ARRAY_LEN(names) - 1]) == NULL);
    free(text);
}

int main(void)
{
    struct loop *loop = loop_create();
    test_find_or_make(loop);
    test_buckets(loop);
    test_text(loop);
    test_full(loop);
    loop_destroy(loop);
    return 0;
}
