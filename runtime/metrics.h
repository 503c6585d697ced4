/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters and latency histograms of a loop, printed in Prometheus text form.
 * Adding to one is an addition; names are static and registered once.
 */
#ifndef PARALLAX_RUNTIME_METRICS_H
#define PARALLAX_RUNTIME_METRICS_H

#include "runtime/base.h"

struct loop;
struct metrics;

#define METRICS_MAX      256U
#define METRIC_BUCKETS   40U /* powers of two of nanoseconds, from 256 ns */

struct metric {
    const char *name; /* "parallax_disk_writes_total" */
    const char *help;
    bool is_histogram;
    uint64_t value; /* counter or gauge; a histogram's count */
    uint64_t sum_ns;
    uint64_t bucket[METRIC_BUCKETS];
};

/* Finds or makes. Never NULL: when the table is full a spare that is never printed. */
struct metric *metric_counter(struct loop *loop, const char *name, const char *help);
struct metric *metric_histogram(struct loop *loop, const char *name, const char *help);
static inline void metric_add(struct metric *m, uint64_t n)
{
    m->value += n;
}
static inline void metric_set(struct metric *m, uint64_t n)
{
    m->value = n;
}
void metric_observe_ns(struct metric *m, uint64_t ns);
/* Prometheus text; malloc'd and the caller's; NULL when memory is out. */
char *metrics_text(const struct metrics *metrics);

#endif
