/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real loop, on libuv; the only file that knows it.
 *
 * An iteration: libuv polls, and watches call their owners, who post work and wake
 * tasks. Then, in the prepare step of the next iteration, before the next poll: timers
 * fire, posted work and tasks run in rounds, and the idle hook submits the disk I/O that
 * the rounds collected and reaps what is done. Only when a round brings nothing new does
 * the loop sleep, after it has looked again for a while (spin.h).
 *
 *   poll -> watches -> [ timers -> ( work and tasks -> idle hook )* ] -> poll
 *
 * A loop that always has work polls without waiting, at least once in ROUNDS_NS plus
 * the length of one round.
 *
 * What can fail: creation, for want of memory or descriptors. On close everything that
 * was made on the loop must be gone.
 */
#include "runtime/loop_uv.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/random.h>
#include <time.h>
#include <uv.h>

#include "runtime/net_internal.h"
#include "runtime/spin.h"

#define ROUNDS_NS    (50 * NS_PER_US)
/* Submitting takes longer than a round: what goes to other nodes leaves before it. */
#define ROUNDS_BEFORE_IO 3U
#define RANDOM_BYTES 256U /* one getrandom of at most this much is never interrupted */

struct real_loop {
    struct loop loop;
    uv_loop_t uv;
    uv_prepare_t prepare;
    uv_idle_t no_sleep; /* active: the next poll does not wait */
    uv_timer_t timer;
    uv_async_t remote_posted;
    uv_signal_t terminate, interrupt;
    bool running;

    uint64_t now_ns;
    bool now_stale;
    uint64_t armed_ns; /* what timer is set for; UINT64_MAX: it is not */
    uint32_t watch_count;

    struct spin spin;
    bool has_found; /* something to do, since it was idle last */

    bool (*idle_hook)(void *arg);
    void *idle_arg;
    void *aio;
    void (*on_signal)(void *arg, int signo);
    void *signal_arg;

    pthread_mutex_t lock;
    struct work_list remote; /* under lock: posted by other threads */

    uint8_t random[RANDOM_BYTES];
    size_t random_left;
};

static const struct loop_ops real_ops;

static struct real_loop *real(struct loop *loop)
{
    assert(loop->ops == &real_ops);
    return container_of(loop, struct real_loop, loop);
}

/* --- clock and random --- */

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Read at most twice in an iteration: after the poll and before the rounds. The const of
 * the face is about what callers see. */
static uint64_t now_ns(const struct loop *loop)
{
    struct real_loop *r = real((struct loop *)(uintptr_t)loop);
    if (r->now_stale || !r->running) {
        r->now_ns = clock_ns(CLOCK_MONOTONIC);
        r->now_stale = false;
    }
    return r->now_ns;
}

static uint64_t wall_ns(const struct loop *loop)
{
    (void)loop;
    return clock_ns(CLOCK_REALTIME);
}

static void random_fill(void *ret, size_t len)
{
    uint8_t *at = ret;
    while (len > 0) {
        ssize_t n = getrandom(at, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            abort(); /* identities would not be unique */
        at += n;
        len -= (size_t)n;
    }
}

static void random_bytes(struct loop *loop, void *ret, size_t len)
{
    struct real_loop *r = real(loop);
    if (len > RANDOM_BYTES) {
        random_fill(ret, len);
        return;
    }
    if (r->random_left < len) {
        random_fill(r->random, RANDOM_BYTES);
        r->random_left = RANDOM_BYTES;
    }
    r->random_left -= len;
    memcpy(ret, r->random + r->random_left, len);
}

/* --- an iteration --- */

/* Nothing to do: both are looked at before each poll, on this thread. */
static void wake(struct loop *loop)
{
    (void)loop;
}

static void arm(struct loop *loop, uint64_t deadline_ns)
{
    (void)loop, (void)deadline_ns;
}

/* Runs work until there is none or it took too long. True: there may be more. */
static bool run_rounds(struct real_loop *r)
{
    uint64_t end_ns = 0;
    for (;;) {
        r->has_found |= !TAILQ_EMPTY(&r->loop.ready);
        bool more = loop_run_ready(&r->loop, UINT32_MAX);
        for (uint32_t i = 0; more && i < ROUNDS_BEFORE_IO; i++)
            more = loop_run_ready(&r->loop, UINT32_MAX);
        if (r->idle_hook != NULL && r->idle_hook(r->idle_arg))
            more = true;
        more = more || !TAILQ_EMPTY(&r->loop.ready);
        if (!more || !r->running)
            return more;
        /* Most iterations end after one or two rounds: the clock is read late. */
        uint64_t time_ns = clock_ns(CLOCK_MONOTONIC);
        if (end_ns == 0)
            end_ns = now_ns(&r->loop) + ROUNDS_NS;
        if (time_ns >= end_ns)
            return true;
    }
}

static void timer_fired(uv_timer_t *timer)
{
    struct real_loop *r = timer->data;
    r->armed_ns = UINT64_MAX; /* the timers fire in the prepare step that follows */
}

/* libuv's timers have milliseconds: ours fire up to one late, never early. */
static void arm_timer(struct real_loop *r)
{
    const struct timer *first = RB_MIN(timer_tree, &r->loop.timers);
    uint64_t deadline_ns = first == NULL ? UINT64_MAX : first->deadline_ns;
    if (deadline_ns == r->armed_ns)
        return;
    r->armed_ns = deadline_ns;
    if (deadline_ns == UINT64_MAX) {
        uv_timer_stop(&r->timer);
        return;
    }
    uint64_t time_ns = clock_ns(CLOCK_MONOTONIC);
    uint64_t left_ns = deadline_ns - min_u64(time_ns, deadline_ns);
    uv_update_time(&r->uv);
    uv_timer_start(&r->timer, timer_fired, div_up_u64(left_ns, NS_PER_MS), 0);
}

static void keep_awake(uv_idle_t *idle)
{
    (void)idle;
}

/* Whether to look once more instead of sleeping. Others may want the processor. */
static bool look_again(struct real_loop *r, uint64_t began_ns)
{
    if (r->has_found)
        spin_found(&r->spin, began_ns);
    r->has_found = false;
    bool again = r->running && spin_idle(&r->spin, clock_ns(CLOCK_MONOTONIC));
    if (again)
        sched_yield();
    return again;
}

static void before_poll(uv_prepare_t *prepare)
{
    struct real_loop *r = prepare->data;
    r->now_stale = true;
    uint64_t began_ns = now_ns(&r->loop);
    loop_fire_timers(&r->loop);
    if (run_rounds(r) || look_again(r, began_ns))
        uv_idle_start(&r->no_sleep, keep_awake);
    else
        uv_idle_stop(&r->no_sleep);
    arm_timer(r);
    r->now_stale = true;
}

void loop_run(struct loop *loop)
{
    struct real_loop *r = real(loop);
    assert(!r->running);
    r->running = true;
    r->now_stale = true;
    while (r->running)
        uv_run(&r->uv, UV_RUN_DEFAULT);
}

void loop_stop(struct loop *loop)
{
    struct real_loop *r = real(loop);
    r->running = false;
    uv_stop(&r->uv);
}

/* --- work from other threads --- */

void loop_post_from_thread(struct loop *loop, struct work *work)
{
    struct real_loop *r = real(loop);
    pthread_mutex_lock(&r->lock);
    assert(!work->posted);
    work->posted = true;
    bool was_empty = TAILQ_EMPTY(&r->remote);
    TAILQ_INSERT_TAIL(&r->remote, work, link);
    /* Under the lock: once the loop has run the last work it may be destroyed. */
    if (was_empty)
        uv_async_send(&r->remote_posted);
    pthread_mutex_unlock(&r->lock);
}

static void take_remote(uv_async_t *posted)
{
    struct real_loop *r = posted->data;
    pthread_mutex_lock(&r->lock);
    TAILQ_CONCAT(&r->loop.ready, &r->remote, link);
    pthread_mutex_unlock(&r->lock);
}

/* --- watches --- */

struct watch {
    uv_poll_t poll;
    struct real_loop *r;
    unsigned events; /* WATCH_*, what poll is started with */
    void (*ready)(void *arg, unsigned events);
    void *arg;
};

static void watch_event(uv_poll_t *poll, int status, int events);

struct watch *watch_create(struct loop *loop, int fd,
                           void (*ready)(void *arg, unsigned events), void *arg)
{
    struct real_loop *r = real(loop);
    struct watch *watch = calloc(1, sizeof *watch);
    if (watch == NULL)
        return NULL;
    if (uv_poll_init(&r->uv, &watch->poll, fd) != 0) {
        free(watch);
        return NULL;
    }
    watch->poll.data = watch;
    watch->r = r;
    watch->ready = ready;
    watch->arg = arg;
    r->watch_count++;
    return watch;
}

static int poll_start(struct watch *watch)
{
    int uv_events = 0;
    if (watch->events & WATCH_READ)
        uv_events |= UV_READABLE;
    if (watch->events & WATCH_WRITE)
        uv_events |= UV_WRITABLE;
    return uv_poll_start(&watch->poll, uv_events, watch_event);
}

/* A descriptor with an error is ready for all its owner waits for: the next read or
 * write tells which error. libuv stops watching it then, so it is started again. */
static void watch_event(uv_poll_t *poll, int status, int events)
{
    struct watch *watch = poll->data;
    unsigned ready = 0;
    watch->r->has_found = true;
    if (status < 0) {
        ready = watch->events;
        poll_start(watch);
    }
    if (events & UV_READABLE)
        ready |= WATCH_READ;
    if (events & UV_WRITABLE)
        ready |= WATCH_WRITE;
    ready &= watch->events;
    if (ready != 0)
        watch->ready(watch->arg, ready); /* watch may be closing */
}

int watch_set(struct watch *watch, unsigned events)
{
    assert((events & ~(unsigned)(WATCH_READ | WATCH_WRITE)) == 0);
    if (events == watch->events) /* libuv would make two system calls */
        return 0;
    unsigned before = watch->events;
    watch->events = events;
    int rc = events == 0 ? uv_poll_stop(&watch->poll) : poll_start(watch);
    if (rc != 0)
        watch->events = before;
    return rc;
}

static void watch_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void watch_destroy(struct watch *watch)
{
    if (watch == NULL)
        return;
    assert(watch->r->watch_count > 0);
    watch->r->watch_count--;
    uv_close((uv_handle_t *)&watch->poll, watch_closed);
}

/* --- signals --- */

static void signal_arrived(uv_signal_t *handle, int signo)
{
    struct real_loop *r = handle->data;
    r->on_signal(r->signal_arg, signo);
}

int loop_on_signal(struct loop *loop, void (*fn)(void *arg, int signo), void *arg)
{
    struct real_loop *r = real(loop);
    r->on_signal = fn;
    r->signal_arg = arg;
    int rc = uv_signal_start(&r->terminate, signal_arrived, SIGTERM);
    if (rc != 0)
        return rc;
    return uv_signal_start(&r->interrupt, signal_arrived, SIGINT);
}

/* --- for file_aio.c --- */

void loop_set_idle_hook(struct loop *loop, bool (*fn)(void *arg), void *arg)
{
    struct real_loop *r = real(loop);
    r->idle_hook = fn;
    r->idle_arg = arg;
}

void **loop_uv_aio_slot(struct loop *loop)
{
    return &real(loop)->aio;
}

/* --- life --- */

static const struct loop_ops real_ops = {
    .now_ns = now_ns,
    .wall_ns = wall_ns,
    .random_bytes = random_bytes,
    .wake = wake,
    .arm = arm,
    .file_open = file_aio_open,
    .kv_open = kv_leveldb_open,
    .net_create = net_tls_create,
    .plug = file_aio_plug,
    .unplug = file_aio_unplug,
};

/* Only uv_async_init and the first uv_signal_init need descriptors and can fail. */
static int handles_init(struct real_loop *r)
{
    int rc = uv_async_init(&r->uv, &r->remote_posted, take_remote);
    if (rc != 0)
        return rc;
    rc = uv_signal_init(&r->uv, &r->terminate);
    if (rc != 0)
        return rc;
    rc = uv_signal_init(&r->uv, &r->interrupt);
    if (rc != 0)
        return rc;
    uv_timer_init(&r->uv, &r->timer);
    uv_idle_init(&r->uv, &r->no_sleep);
    uv_prepare_init(&r->uv, &r->prepare);
    r->remote_posted.data = r->terminate.data = r->interrupt.data = r;
    r->timer.data = r->no_sleep.data = r->prepare.data = r;
    return uv_prepare_start(&r->prepare, before_poll);
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

static void uv_done(struct real_loop *r)
{
    uv_walk(&r->uv, close_handle, NULL);
    /* Without an active handle this ends once all close callbacks have run. */
    uv_run(&r->uv, UV_RUN_DEFAULT);
    int rc = uv_loop_close(&r->uv);
    assert(rc == 0);
    (void)rc;
}

struct loop *loop_create(void)
{
    struct real_loop *r = calloc(1, sizeof *r);
    if (r == NULL)
        return NULL;
    r->armed_ns = UINT64_MAX;
    TAILQ_INIT(&r->remote);
    pthread_mutex_init(&r->lock, NULL);
    if (loop_init(&r->loop, &real_ops) != 0)
        goto fail_lock;
    if (uv_loop_init(&r->uv) != 0)
        goto fail_common;
    if (handles_init(r) != 0 || log_start_writer(r->loop.log) != 0)
        goto fail_uv;
    return &r->loop;
fail_uv:
    uv_done(r);
fail_common:
    loop_done(&r->loop);
fail_lock:
    pthread_mutex_destroy(&r->lock);
    free(r);
    return NULL;
}

void loop_destroy(struct loop *loop)
{
    if (loop == NULL)
        return;
    struct real_loop *r = real(loop);
    assert(!r->running);
    assert(TAILQ_EMPTY(&loop->ready) && RB_EMPTY(&loop->timers));
    assert(r->watch_count == 0 && r->aio == NULL);
    /* A thread may still be on its way out of loop_post_from_thread. */
    pthread_mutex_lock(&r->lock);
    assert(TAILQ_EMPTY(&r->remote));
    pthread_mutex_unlock(&r->lock);
    uv_done(r);
    loop_done(loop);
    pthread_mutex_destroy(&r->lock);
    free(r);
}
