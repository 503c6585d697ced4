/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The event loop, and what it gives: clock, random, timers, posted work, tasks, files
 * and key-value stores. Two implementations behind one face: the real one (libuv,
 * libaio, LevelDB) and the simulated one (runtime/sim.h) in which all of these are
 * driven by a seed. Nothing above the runtime can tell which one it runs on.
 *
 * A loop and everything made on it belong to one thread, unless said otherwise.
 */
#ifndef PARALLAX_RUNTIME_LOOP_H
#define PARALLAX_RUNTIME_LOOP_H

#include <bsd/sys/tree.h>

#include "runtime/base.h"
#include "runtime/error.h"

struct loop;

/* A real loop. NULL when memory or descriptors are out. */
struct loop *loop_create(void);
/* Nothing may be left on it: files, kvs and watches closed, timers stopped, tasks
 * ended. */
void loop_destroy(struct loop *loop);
/* Runs until loop_stop. */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);

uint64_t loop_now_ns(const struct loop *loop);  /* monotonic, cached per iteration */
uint64_t loop_wall_ns(const struct loop *loop); /* since 1970; for people only */
uint64_t loop_random_u64(struct loop *loop);
void loop_random_bytes(struct loop *loop, void *ret, size_t len);

/* Work to do soon on the loop's own thread. Posting what is already posted does
 * nothing. */
struct work {
    void (*run)(struct work *work);
    bool posted;
    TAILQ_ENTRY(work) link;
};
void loop_post(struct loop *loop, struct work *work);
void loop_post_cancel(struct loop *loop, struct work *work);
/* The same from any thread (real loop only); the work must not be posted already, nor be
 * cancelled. */
void loop_post_from_thread(struct loop *loop, struct work *work);

/* Timers: one-shot, restarted by hand. Equal deadlines fire in order of start. */
struct timer {
    void (*fire)(struct timer *timer);
    uint64_t deadline_ns, order;
    bool armed;
    RB_ENTRY(timer) node;
};
void timer_start(struct loop *loop, struct timer *timer, uint64_t delay_ns);
void timer_stop(struct loop *loop, struct timer *timer);

/* Readiness of a descriptor (real loop only). Level-triggered. */
enum { WATCH_READ = 1, WATCH_WRITE = 2 };
struct watch;
struct watch *watch_create(struct loop *loop, int fd,
                           void (*ready)(void *arg, unsigned events), void *arg);
/* events: 0 or a combination of WATCH_*. */
int watch_set(struct watch *watch, unsigned events);
void watch_destroy(struct watch *watch); /* leaves fd open; allowed inside ready */

/* SIGTERM and SIGINT of this process, delivered on the loop (real loop only). */
int loop_on_signal(struct loop *loop, void (*fn)(void *arg, int signo), void *arg);

struct trace;
struct metrics;
struct log;
/* Each loop owns one of these. */
struct trace *loop_trace(struct loop *loop);
struct metrics *loop_metrics(struct loop *loop);
struct log *loop_log(struct loop *loop);

#endif
