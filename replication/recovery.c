/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker that makes this node whole.
 *
 * Happy path: when the state says something new of this node's groups, a pass begins with
 * a barrier, so that whatever is decided is decided by a state that is not older than the
 * pass. It ends copies here whose length is known, drops what is here of groups that this
 * node has left, counts what there is to copy, and makes one group after the other whole.
 *
 * What can fail: the barrier (no leader), a member, the store's space. Then something is
 * left, and a while later there is another pass.
 *
 * On close calls to others are given up, copies are abandoned, and the worker ends.
 */
#include <stdarg.h>
#include <stdio.h>

#include "replication/recovery_internal.h"

#define IDLE_MS       60000U /* between passes that nobody asked for */
#define RATE_NS       (5 * NS_PER_S)
#define REST_SLICE_NS (50 * NS_PER_MS)
#define GROUPS        (UINT16_MAX + 1U)

/* --- small things --- */

int address_list_add(struct address_list *list, struct address address)
{
    if (list->count == list->cap) {
        size_t cap = list->cap == 0 ? 64 : list->cap * 2;
        struct address *at = realloc(list->at, cap * sizeof *at);
        if (at == NULL)
            return -ENOMEM;
        list->at = at;
        list->cap = cap;
    }
    list->at[list->count++] = address;
    return 0;
}

void address_list_done(struct address_list *list)
{
    free(list->at);
    *list = (struct address_list){0};
}

bool recovery_may_serve(const struct cluster_state *state, uint64_t node, uint16_t group)
{
    const struct cluster_group *g = cluster_group_by_id(state, group);
    const struct group_member *member = g != NULL ? cluster_group_member(g, node) : NULL;
    return member != NULL && member->missing_since == 0;
}

/* --- the state, from the cluster --- */

static const struct cluster_state *view_state(void *arg)
{
    return cluster_state(arg);
}

static async int view_barrier(void *arg)
{
    return cluster_barrier(arg);
}

static async int view_submit(void *arg, const struct cluster_command *command,
                             struct cluster_result *ret_result)
{
    return cluster_submit(arg, command, ret_result);
}

static void applied(struct cluster_watcher *watcher)
{
    recovery_wake(container_of(watcher, struct recovery, watcher));
}

/* --- what it says of itself --- */

void recovery_say(struct recovery *r, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(r->status.what, sizeof r->status.what, fmt, args);
    va_end(args);
}

void recovery_count(struct recovery *r, int64_t extents, int64_t bytes)
{
    struct recovery_status *s = &r->status;
    s->extents_left = extents < 0 && s->extents_left < (uint64_t)-extents
                          ? 0
                          : s->extents_left + (uint64_t)extents;
    s->bytes_left = bytes < 0 && s->bytes_left < (uint64_t)-bytes
                        ? 0
                        : s->bytes_left + (uint64_t)bytes;
}

static void count_rate(struct recovery *r, uint64_t bytes)
{
    uint64_t now_ns = loop_now_ns(r->options.loop);
    r->status.bytes_done += bytes;
    r->rate_bytes += bytes;
    uint64_t took_ns = now_ns - r->rate_since_ns;
    if (took_ns < NS_PER_S)
        return;
    if (took_ns > 2 * RATE_NS) { /* the first after a pause, which does not count */
        r->status.rate_bytes_s = 0;
        r->rate_since_ns = now_ns;
        r->rate_bytes = 0;
        return;
    }
    uint64_t rate = r->rate_bytes * NS_PER_MS / (took_ns / 1000);
    r->status.rate_bytes_s = r->status.rate_bytes_s == 0
                                 ? rate
                                 : (r->status.rate_bytes_s * 3 + rate) / 4;
    r->rate_since_ns = now_ns;
    r->rate_bytes = 0;
}

static uint32_t count_due(const struct recovery *r)
{
    const struct cluster_group *g = NULL;
    uint32_t due = 0;
    while ((g = cluster_group_next(recovery_state(r), g)) != NULL)
        due += recovery_is_due(r, g);
    return due;
}

void recovery_status(const struct recovery *r, struct recovery_status *ret_status)
{
    *ret_status = r->status;
    ret_status->groups = count_due(r); /* the worker may be at something else */
    if (loop_now_ns(r->options.loop) - r->rate_since_ns > 2 * RATE_NS)
        ret_status->rate_bytes_s = 0;
    uint64_t rate = ret_status->rate_bytes_s;
    ret_status->left_s = r->status.bytes_left == 0 ? 0 : UINT64_MAX;
    if (r->status.bytes_left > 0 && rate > 0)
        ret_status->left_s = r->status.bytes_left / rate;
}

/* --- making room --- */

async void recovery_rest(struct recovery *r, uint64_t bytes)
{
    struct loop *loop = r->options.loop;
    uint64_t limit = r->options.limit_bytes_s;
    count_rate(r, bytes);
    if (r->options.rest != NULL)
        r->options.rest(r->options.rest_arg, bytes);
    if (limit == 0)
        return;
    /* What was missed is not made good. */
    r->allowed_ns = max_u64(r->allowed_ns, loop_now_ns(loop)) + bytes * NS_PER_S / limit;
    uint64_t until_ns = r->allowed_ns;
    while (loop_now_ns(loop) < until_ns && !r->is_stopping)
        task_sleep_ns(min_u64(until_ns - loop_now_ns(loop), REST_SLICE_NS));
}

void recovery_set_limit(struct recovery *r, uint64_t limit_bytes_s)
{
    r->options.limit_bytes_s = limit_bytes_s;
    r->allowed_ns = 0;
}

/* --- what there is to do --- */

/* Something that changes whenever this node's part in the groups does. */
static uint64_t what_is_said(const struct recovery *r)
{
    const struct cluster_state *state = recovery_state(r);
    const struct cluster_group *g = NULL;
    uint64_t sum = 0;
    while ((g = cluster_group_next(state, g)) != NULL) {
        const struct group_member *self = cluster_group_member(g, r->options.node);
        if (self == NULL)
            continue;
        uint64_t one = g->epoch * 31 + self->missing_since + 1;
        if (g->unsure_below != 0)
            one += recovery_others(r, g);
        sum = sum * 0x9e3779b97f4a7c15U + one * 131 + g->id;
    }
    return sum;
}

/* What is here: which groups, and which extents are not final. */
struct census {
    struct recovery *r;
    struct address_list unfinished;
    uint8_t groups[GROUPS / 8];
    int rc;
};

static void census_take(void *arg, const struct extent_info *info)
{
    struct census *census = arg;
    uint32_t group = address_group(info->extent);
    census->groups[group / 8] |= (uint8_t)(1U << group % 8);
    if (info->is_damaged && !census->r->has_begun)
        recovery_mend(census->r, info->extent, false);
    if (info->state != EXTENT_FINAL && census->rc == 0)
        census->rc = address_list_add(&census->unfinished, info->extent);
}

static bool is_here(const struct census *census, uint32_t group)
{
    return (census->groups[group / 8] >> group % 8 & 1) != 0;
}

static bool is_member(const struct recovery *r, uint16_t group)
{
    const struct cluster_group *g = cluster_group_by_id(recovery_state(r), group);
    return g != NULL && cluster_group_member(g, r->options.node) != NULL;
}

/* Ends what can end, and drops what is of no use. */
static async int tidy(struct recovery *r)
{
    struct census *census = calloc(1, sizeof *census);
    if (census == NULL)
        return -ENOMEM;
    census->r = r;
    store_look_at_all(r->options.store, census_take, census);
    r->has_begun = true;
    int rc = census->rc;
    for (size_t i = 0; i < census->unfinished.count && !r->is_stopping; i++) {
        int ended = recovery_end(r, census->unfinished.at[i]);
        rc = rc != 0 ? rc : ended; /* others may wait for the next one */
    }
    for (uint32_t group = 1; group < GROUPS && !r->is_stopping; group++) {
        if (!is_here(census, group) || is_member(r, (uint16_t)group))
            continue;
        int left = recovery_leave(r, (uint16_t)group);
        rc = rc != 0 ? rc : left;
    }
    address_list_done(&census->unfinished);
    free(census);
    return rc;
}

/* --- groups --- */

static void forget_settling(struct recovery *r, struct settling *s)
{
    STAILQ_REMOVE(&r->settling, s, settling, link);
    address_list_done(&s->taken_over);
    free(s);
}

/* What came in for it is looked at once more. */
static void settle_later(struct recovery *r, uint16_t group)
{
    struct settling *s = r->taken_over.count > 0 ? calloc(1, sizeof *s) : NULL;
    if (s == NULL)
        return; /* some dead blocks may be kept: a check frees them */
    s->group = group;
    s->due_ns = loop_now_ns(r->options.loop) + RECOVERY_SETTLE_MS * NS_PER_MS;
    s->taken_over = r->taken_over;
    r->taken_over = (struct address_list){0};
    STAILQ_INSERT_TAIL(&r->settling, s, link);
}

static async void settle_due(struct recovery *r)
{
    struct settling *s, *next;
    STAILQ_FOREACH_SAFE (s, &r->settling, link, next) {
        if (s->due_ns > loop_now_ns(r->options.loop) || r->is_stopping)
            break;
        STAILQ_REMOVE(&r->settling, s, settling, link);
        recovery_settle(r, s->group, &s->taken_over);
        address_list_done(&s->taken_over);
        free(s);
        next = STAILQ_FIRST(&r->settling);
    }
}

/* Calls fn for each group of which something is missing here. */
static async int each_missing(struct recovery *r,
                              async int (*fn)(struct recovery *r, uint16_t group))
{
    int rc = 0;
    for (uint32_t id = 1; !r->is_stopping; id++) {
        const struct cluster_state *state = recovery_state(r);
        if (id > cluster_group_count(state))
            break;
        const struct cluster_group *g = cluster_group_by_id(state, (uint16_t)id);
        if (g == NULL || !recovery_is_due(r, g))
            continue;
        int one = fn(r, (uint16_t)id);
        rc = rc != 0 ? rc : one;
    }
    return rc;
}

static async int survey(struct recovery *r, uint16_t group)
{
    recovery_survey(r, group);
    return 0;
}

static async int make_whole(struct recovery *r, uint16_t group)
{
    int rc = recovery_group(r, group);
    if (rc == 0)
        settle_later(r, group);
    address_list_done(&r->taken_over);
    return rc;
}

/* 0: nothing is left to do. */
static async int pass(struct recovery *r)
{
    r->said = what_is_said(r);
    r->status.extents_left = r->status.bytes_left = 0;
    r->status.waiting = 0;
    int rc = r->options.view.barrier(r->options.view.arg);
    if (rc != 0) {
        recovery_say(r, "the cluster: %s", err_text(rc));
        return rc;
    }
    r->said = what_is_said(r);
    rc = tidy(r);
    address_list_done(&r->taken_over); /* of no group that is made whole */
    (void)each_missing(r, survey);
    int made = each_missing(r, make_whole);
    return rc != 0 ? rc : made;
}

/* --- the worker --- */

static void timer_fired(struct timer *timer)
{
    struct recovery *r = container_of(timer, struct recovery, timer);
    waitlist_wake_all(&r->changed);
}

/* Until somebody wakes it, or for so long. */
static async void doze(struct recovery *r, uint64_t ms)
{
    if (r->is_stopping || r->is_woken)
        return;
    timer_start(r->options.loop, &r->timer, ms * NS_PER_MS);
    while (!r->is_stopping && !r->is_woken && r->timer.armed)
        waitlist_wait(&r->changed);
    timer_stop(r->options.loop, &r->timer);
}

static async void rest_between(struct recovery *r)
{
    const struct settling *first = STAILQ_FIRST(&r->settling);
    uint64_t ms = r->is_pending ? RECOVERY_RETRY_MS : IDLE_MS;
    uint64_t now_ns = loop_now_ns(r->options.loop);
    if (first != NULL)
        ms = min_u64(ms, first->due_ns > now_ns ? (first->due_ns - now_ns) / NS_PER_MS + 1
                                                : 1);
    doze(r, ms);
    /* Commands come in crowds. */
    if (r->is_woken && !r->is_stopping)
        task_sleep_ns(RECOVERY_LOOK_MS * NS_PER_MS);
    r->is_woken = false;
}

static async void worker_main(struct task_call *call)
{
    struct recovery *r = container_of(call, struct recovery, task);
    uint64_t next_ns = 0;
    recovery_mend_load(r);
    while (!r->is_stopping) {
        uint64_t now_ns = loop_now_ns(r->options.loop);
        if (what_is_said(r) != r->said || now_ns >= next_ns) {
            r->is_pending = pass(r) != 0;
            if (!r->is_pending)
                r->status.what[0] = '\0';
            next_ns = loop_now_ns(r->options.loop) +
                      (r->is_pending ? RECOVERY_RETRY_MS : IDLE_MS) * NS_PER_MS;
        }
        settle_due(r);
        rest_between(r);
    }
    r->is_running = false;
    waitlist_wake_all(&r->changed);
}

void recovery_wake(struct recovery *r)
{
    r->is_woken = true;
    waitlist_wake_all(&r->changed);
    recovery_mend_wake(r);
}

/* --- the whole --- */

int recovery_create(const struct recovery_options *options,
                    struct recovery **ret_recovery)
{
    struct recovery *r = calloc(1, sizeof *r);
    if (r == NULL)
        return -ENOMEM;
    r->options = *options;
    if (r->options.parallel == 0)
        r->options.parallel = RECOVERY_PARALLEL;
    r->options.parallel = min_u32(r->options.parallel, RECOVERY_PARALLEL_MAX);
    if (options->cluster != NULL)
        r->options.view = (struct recovery_view){.state = view_state,
                                                 .barrier = view_barrier,
                                                 .submit = view_submit,
                                                 .arg = options->cluster};
    r->timer.fire = timer_fired;
    waitlist_init(&r->changed);
    LIST_INIT(&r->calls);
    STAILQ_INIT(&r->settling);
    TAILQ_INIT(&r->mends);
    waitlist_init(&r->mends_changed);
    r->extents_copied = metric_counter(options->loop, "parallax_recovery_extents_total",
                                       "Extents copied from other nodes");
    r->bytes_copied = metric_counter(options->loop, "parallax_recovery_bytes_total",
                                     "Bytes copied from other nodes");
    r->extents_mended = metric_counter(options->loop, "parallax_mended_extents_total",
                                       "Damaged extents made as other copies are");
    *ret_recovery = r;
    return 0;
}

void recovery_start(struct recovery *r)
{
    assert(!r->is_running && !r->is_stopping);
    r->is_running = true;
    r->task = (struct task_call){.main = worker_main, .name = "recovery", .system = true};
    if (r->options.cluster != NULL) {
        r->watcher.applied = applied;
        cluster_on_apply(r->options.cluster, &r->watcher);
    }
    task_start(r->options.loop, &r->task);
}

async void recovery_stop(struct recovery *r)
{
    if (r->is_running && r->options.cluster != NULL)
        cluster_off_apply(r->options.cluster, &r->watcher);
    r->is_stopping = true;
    waitlist_wake_all(&r->changed);
    waitlist_wake_all(&r->mends_changed);
    source_cancel_all(r);
    while (r->is_running || r->mends_run)
        waitlist_wait(&r->changed);
}

void recovery_destroy(struct recovery *r)
{
    if (r == NULL)
        return;
    assert(!r->is_running && !r->mends_run && LIST_EMPTY(&r->calls));
    recovery_mend_forget(r);
    while (!STAILQ_EMPTY(&r->settling))
        forget_settling(r, STAILQ_FIRST(&r->settling));
    address_list_done(&r->taken_over);
    free(r->united);
    free(r);
}
