/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots by the clock: what one rule of one disk wants, decided without a clock, a
 * disk or memory; and the service that does it. doc/schedule.md.
 */
#ifndef PARALLAX_COW_SCHEDULE_H
#define PARALLAX_COW_SCHEDULE_H

#include "replication/cluster_state.h"

/* "auto-", EVERY, "-YYYYMMDD-HHMMSS" */
#define SCHEDULE_NAME_MAX 48U
/* Removed in one turn; the rest follows in the next. */
#define SCHEDULE_REMOVES  64U

/* The name of a snapshot taken at this time: auto-1h-20260131-130000, in UTC. EVERY is
 * in the largest of d, h, m, s that divides it. */
void schedule_name(uint64_t every_s, uint64_t time_s, char ret[SCHEDULE_NAME_MAX]);
/* True if a rule of this period gives such names; *ret_time_s is when it was taken. */
bool schedule_parse(const char *name, uint64_t every_s, uint64_t *ret_time_s);

/* What is known of one rule. Times of day are seconds since 1970. */
struct schedule_facts {
    uint64_t every_s;
    uint32_t keep;
    uint64_t now_s;
    const char *const *names; /* the disk's snapshots in order of their making */
    uint32_t name_count;
    uint64_t handled_s;       /* a time at which this process last saw to the rule; 0 */
    uint64_t quiet_s;         /* how long ago that was by a clock that never steps;
                               * UINT64_MAX: it never did */
};

struct schedule_decision {
    bool make;                /* one named after now_s */
    uint64_t next_s;          /* look again then, if not before; above now_s */
    uint32_t remove_count;    /* indices of names, oldest first */
    uint32_t removes[SCHEDULE_REMOVES];
};

/*
 * A period begins at each multiple of every_s, and wants one snapshot: due is one if
 * there is none from now's period. What lies in the future (the clock was set back) says
 * nothing of the present. However the clock is set, half a period of real time lies
 * between two. Beyond the newest `keep`, by order of making, all go.
 */
void schedule_decide(const struct schedule_facts *facts, struct schedule_decision *ret);

/* --- schedule.c: the service. Its face is schedule_set and _get of cow/host.h --- */
struct error;
struct host;
int scheduler_open(struct host *host, struct error *err);
/* Waits for what it is doing. */
async void scheduler_close(struct host *host);

#endif
