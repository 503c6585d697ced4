/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters and histograms. Bucket i of a histogram counts what took at most 256 << i
 * nanoseconds and more than the bucket before it; the last one takes all the rest.
 */
#include "runtime/metrics.h"

#include <stdio.h>

#include "runtime/loop_internal.h"

#define FIRST_BUCKET_NS    256U
#define FIRST_BUCKET_SHIFT 8

struct metrics {
    uint32_t count;
    struct metric table[METRICS_MAX];
    struct metric spare; /* takes what found no place */
};

struct metrics *metrics_create(void)
{
    return calloc(1, sizeof(struct metrics));
}

void metrics_destroy(struct metrics *metrics)
{
    free(metrics);
}

static struct metric *find_or_make(struct metrics *metrics, const char *name,
                                   const char *help, bool is_histogram)
{
    for (uint32_t i = 0; i < metrics->count; i++) {
        struct metric *m = &metrics->table[i];
        if (strcmp(m->name, name) == 0) {
            assert(m->is_histogram == is_histogram);
            return m;
        }
    }
    if (metrics->count == METRICS_MAX)
        return &metrics->spare;
    struct metric *m = &metrics->table[metrics->count++];
    *m = (struct metric){.name = name, .help = help, .is_histogram = is_histogram};
    return m;
}

struct metric *metric_counter(struct loop *loop, const char *name, const char *help)
{
    return find_or_make(loop->metrics, name, help, false);
}

struct metric *metric_histogram(struct loop *loop, const char *name, const char *help)
{
    return find_or_make(loop->metrics, name, help, true);
}

void metric_observe_ns(struct metric *m, uint64_t ns)
{
    uint32_t bucket = 0;
    if (ns > FIRST_BUCKET_NS)
        bucket = 64 - FIRST_BUCKET_SHIFT - (uint32_t)__builtin_clzll(ns - 1);
    m->bucket[min_u32(bucket, METRIC_BUCKETS - 1)]++;
    m->value++;
    m->sum_ns += ns;
}

static double seconds_of(uint64_t ns)
{
    return (double)ns / (double)NS_PER_S;
}

/* Prometheus wants each bucket to include the smaller ones, and seconds. */
static void print_histogram(FILE *out, const struct metric *m)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < METRIC_BUCKETS - 1; i++) {
        sum += m->bucket[i];
        fprintf(out, "%s_bucket{le=\"%.9g\"} %llu\n", m->name,
                seconds_of((uint64_t)FIRST_BUCKET_NS << i), (unsigned long long)sum);
    }
    fprintf(out, "%s_bucket{le=\"+Inf\"} %llu\n", m->name, (unsigned long long)m->value);
    fprintf(out, "%s_sum %.9f\n", m->name, seconds_of(m->sum_ns));
    fprintf(out, "%s_count %llu\n", m->name, (unsigned long long)m->value);
}

/* The names follow the convention that a counter ends in _total. */
static const char *type_of(const struct metric *m)
{
    static const char suffix[] = "_total";
    size_t len = strlen(m->name), suffix_len = sizeof suffix - 1;
    if (m->is_histogram)
        return "histogram";
    if (len > suffix_len && strcmp(m->name + len - suffix_len, suffix) == 0)
        return "counter";
    return "gauge";
}

char *metrics_text(const struct metrics *metrics)
{
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    if (out == NULL)
        return NULL;
    for (uint32_t i = 0; i < metrics->count; i++) {
        const struct metric *m = &metrics->table[i];
        fprintf(out, "# HELP %s %s\n", m->name, m->help);
        fprintf(out, "# TYPE %s %s\n", m->name, type_of(m));
        if (m->is_histogram)
            print_histogram(out, m);
        else
            fprintf(out, "%s %llu\n", m->name, (unsigned long long)m->value);
    }
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}
