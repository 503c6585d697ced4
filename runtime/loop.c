/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part that the real and the simulated loop share: posted work and timers.
 *
 * L1  A work's `posted` is true exactly while it is in a list.
 * L2  A timer's `armed` is true exactly while it is in the tree.
 * L3  The implementation knows the earliest deadline: `arm` was called with it.
 */
#include "runtime/loop_internal.h"

#include "runtime/log.h"
#include "runtime/metrics.h"
#include "runtime/trace.h"

static int timer_compare(const struct timer *a, const struct timer *b)
{
    if (a->deadline_ns != b->deadline_ns)
        return a->deadline_ns < b->deadline_ns ? -1 : 1;
    if (a->order != b->order)
        return a->order < b->order ? -1 : 1;
    return 0;
}

RB_GENERATE(timer_tree, timer, node, timer_compare)

int loop_init(struct loop *loop, const struct loop_ops *ops)
{
    *loop = (struct loop){.ops = ops};
    TAILQ_INIT(&loop->ready);
    RB_INIT(&loop->timers);
    loop->trace = trace_create();
    loop->metrics = metrics_create();
    loop->log = log_create();
    loop->tasks = task_pool_create(loop);
    if (loop->trace != NULL && loop->metrics != NULL && loop->log != NULL &&
        loop->tasks != NULL)
        return 0;
    loop_done(loop);
    return -ENOMEM;
}

void loop_done(struct loop *loop)
{
    task_pool_destroy(loop->tasks);
    log_destroy(loop->log);
    metrics_destroy(loop->metrics);
    trace_destroy(loop->trace);
    *loop = (struct loop){0};
}

uint64_t loop_now_ns(const struct loop *loop)
{
    return loop->ops->now_ns(loop);
}

uint64_t loop_wall_ns(const struct loop *loop)
{
    return loop->ops->wall_ns(loop);
}

uint64_t loop_random_u64(struct loop *loop)
{
    uint64_t n;
    loop->ops->random_bytes(loop, &n, sizeof n);
    return n;
}

void loop_random_bytes(struct loop *loop, void *ret, size_t len)
{
    loop->ops->random_bytes(loop, ret, len);
}

struct trace *loop_trace(struct loop *loop)
{
    return loop->trace;
}

struct metrics *loop_metrics(struct loop *loop)
{
    return loop->metrics;
}

struct log *loop_log(struct loop *loop)
{
    return loop->log;
}

void loop_post(struct loop *loop, struct work *work)
{
    if (work->posted)
        return;
    work->posted = true;
    TAILQ_INSERT_TAIL(&loop->ready, work, link);
    loop->ops->wake(loop);
}

void loop_post_cancel(struct loop *loop, struct work *work)
{
    if (!work->posted)
        return;
    work->posted = false;
    TAILQ_REMOVE(&loop->ready, work, link);
}

/* A marker tells what was posted before from what comes meanwhile; a count would not
 * survive a cancel. */
bool loop_run_ready(struct loop *loop, uint32_t max)
{
    if (TAILQ_EMPTY(&loop->ready))
        return false;
    struct work marker = {.posted = true};
    TAILQ_INSERT_TAIL(&loop->ready, &marker, link);
    struct work *work;
    for (uint32_t i = 0; i < max; i++) {
        work = TAILQ_FIRST(&loop->ready);
        if (work == &marker)
            break;
        assert(work->posted); /* L1 */
        TAILQ_REMOVE(&loop->ready, work, link);
        work->posted = false;
        work->run(work); /* work may be gone */
    }
    TAILQ_REMOVE(&loop->ready, &marker, link);
    return !TAILQ_EMPTY(&loop->ready);
}

static void arm_earliest(struct loop *loop)
{
    const struct timer *first = RB_MIN(timer_tree, &loop->timers);
    loop->ops->arm(loop, first == NULL ? UINT64_MAX : first->deadline_ns); /* L3 */
}

void timer_start(struct loop *loop, struct timer *timer, uint64_t delay_ns)
{
    timer_stop(loop, timer);
    if (!add_u64(loop_now_ns(loop), delay_ns, &timer->deadline_ns))
        timer->deadline_ns = UINT64_MAX;
    timer->order = loop->timer_order++;
    timer->armed = true;
    struct timer *same = RB_INSERT(timer_tree, &loop->timers, timer);
    assert(same == NULL);
    (void)same;
    if (RB_MIN(timer_tree, &loop->timers) == timer)
        arm_earliest(loop);
}

void timer_stop(struct loop *loop, struct timer *timer)
{
    if (!timer->armed)
        return;
    bool was_first = RB_MIN(timer_tree, &loop->timers) == timer;
    RB_REMOVE(timer_tree, &loop->timers, timer);
    timer->armed = false;
    if (was_first)
        arm_earliest(loop);
}

/* Timers started meanwhile wait for the next call, or one that restarts itself with no
 * delay would keep the loop here. They have a later order, and at the same deadline they
 * stand behind all older ones. */
void loop_fire_timers(struct loop *loop)
{
    struct timer *timer = RB_MIN(timer_tree, &loop->timers);
    if (timer == NULL)
        return;
    uint64_t now_ns = loop_now_ns(loop);
    uint64_t order_end = loop->timer_order;
    bool any = false;
    while (timer != NULL && timer->deadline_ns <= now_ns && timer->order < order_end) {
        RB_REMOVE(timer_tree, &loop->timers, timer);
        timer->armed = false;
        any = true;
        timer->fire(timer); /* timer may be gone */
        timer = RB_MIN(timer_tree, &loop->timers);
    }
    if (any)
        arm_earliest(loop);
}
