/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the warden share:
 *
 *   warden.c         heartbeats, ticks, and who runs when
 *   warden_duties.c  what the leader does, one step at a time
 */
#ifndef PARALLAX_REPLICATION_WARDEN_INTERNAL_H
#define PARALLAX_REPLICATION_WARDEN_INTERNAL_H

#include "replication/cluster_internal.h"
#include "replication/liveness.h"
#include "replication/warden.h"

/* What one node has said of itself. */
struct node_report {
    uint64_t node;
    struct warden_usage usage;
    uint64_t applied;
    uint32_t hears; /* nodes that it is connected to, itself included; 0: not known */
    char address[DISK_NAME_MAX + 1];
};

/*
 * Something that the leader sees to. A task does it, step by step, as long as there is
 * something to do; then it ends, until the next tick. Each has its own, so that one that
 * waits for a node to catch up does not keep others from being marked.
 */
struct duty {
    struct warden *warden;
    /* One step. True: there may be more to do at once. */
    async bool (*step)(struct warden *w);
    struct task_call call;
    bool is_running;
};

enum { DUTY_MARK, DUTY_PLACE, DUTY_VOTE, DUTIES };

struct warden {
    struct warden_options options;
    struct loop *loop;
    struct timer tick;
    bool leads; /* as of the last tick */
    bool stopping;
    uint64_t term; /* in which it leads */
    struct liveness liveness;
    struct node_report *reports; /* by node, since it leads */
    uint32_t report_count, report_cap;
    uint64_t failed_voter, failed_ns; /* that did not catch up, and when */
    uint64_t better, better_ns; /* a voter that hears more nodes, and since when; or 0 */
    uint64_t kept_ns;           /* until then it goes on leading all the same */
    struct duty duties[DUTIES];
    uint32_t running; /* duties */
    struct waitlist idle;
    struct metric *down, *steps;
};

/* NULL: it has said nothing. */
const struct node_report *warden_find_report(const struct warden *w, uint64_t node);
bool warden_leads(const struct warden *w);

async bool warden_mark_step(struct warden *w);
async bool warden_place_step(struct warden *w);
async bool warden_vote_step(struct warden *w);

#endif
