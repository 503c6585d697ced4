/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of runtime/ share about a loop. The common part (posted work, timers,
 * tasks; loop.c, task.c) is one piece of code for the real and the simulated loop; only
 * what is behind loop_ops differs.
 */
#ifndef PARALLAX_RUNTIME_LOOP_INTERNAL_H
#define PARALLAX_RUNTIME_LOOP_INTERNAL_H

#include "runtime/file.h"
#include "runtime/kv.h"
#include "runtime/loop.h"
#include "runtime/net.h"
#include "runtime/task.h"

RB_HEAD(timer_tree, timer);
RB_PROTOTYPE(timer_tree, timer, node, timer_compare)
TAILQ_HEAD(work_list, work);
STAILQ_HEAD(task_call_list, task_call);

struct task_pool; /* task.c */

struct loop_ops {
    uint64_t (*now_ns)(const struct loop *loop);
    uint64_t (*wall_ns)(const struct loop *loop);
    void (*random_bytes)(struct loop *loop, void *ret, size_t len);
    /* Work or a runnable task appeared: make sure loop_run_ready is called soon. */
    void (*wake)(struct loop *loop);
    /* The earliest timer changed; UINT64_MAX: none. */
    void (*arm)(struct loop *loop, uint64_t deadline_ns);
    async int (*file_open)(struct loop *loop, const char *path,
                           const struct file_options *options, struct file **ret,
                           struct error *err);
    async int (*kv_open)(struct loop *loop, const char *path, bool create,
                         struct kv **ret, struct error *err);
    int (*net_create)(const struct net_options *options, struct net **ret,
                      struct error *err);
    void (*plug)(struct loop *loop);
    void (*unplug)(struct loop *loop);
};

struct loop {
    const struct loop_ops *ops;
    struct work_list ready;
    struct timer_tree timers;
    uint64_t timer_order;
    struct task_pool *tasks;
    struct trace *trace;
    struct metrics *metrics;
    struct log *log;
};

/* Sets up and tears down the common part. loop_done checks that tasks have ended (or
 * were abandoned), not that timers and posted work are gone: a killed simulated process
 * leaves its own behind. */
int loop_init(struct loop *loop, const struct loop_ops *ops);
void loop_done(struct loop *loop);
/* Runs work posted before the call (at most `max`), each once. True: some work is ready
 * now, left over or posted meanwhile. */
bool loop_run_ready(struct loop *loop, uint32_t max);
/* Fires timers whose deadline is at or before now, then arms the next. */
void loop_fire_timers(struct loop *loop);

/* task.c, for loop.c and the simulator */
struct task_pool *task_pool_create(struct loop *loop);
void task_pool_destroy(struct task_pool *pool);
/* Frees stacks of a killed simulated process without running them. The pool is empty
 * then and still to be destroyed (by loop_done). */
void task_pool_abandon(struct task_pool *pool);

/* trace.c, metrics.c, log.c, for loop.c */
struct trace *trace_create(void);
void trace_destroy(struct trace *trace);
struct metrics *metrics_create(void);
void metrics_destroy(struct metrics *metrics);
/* A log without a thread: its lines go nowhere, or, once log_set_fd was called, are
 * written by the caller. */
struct log *log_create(void);
/* Gives it a writer thread, and stderr to write to. */
int log_start_writer(struct log *log);
/* Writes out what is in the ring first. */
void log_destroy(struct log *log);

/* --- files and key-value stores: what an implementation provides --- */
struct file_ops {
    void (*submit)(struct file *file, struct file_io *io);
    async int (*grow)(struct file *file, uint64_t size_bytes);
    async int (*punch)(struct file *file, uint64_t offset_bytes, uint64_t len_bytes);
    async int (*allocate)(struct file *file, uint64_t offset_bytes, uint64_t len_bytes);
    async int (*space)(struct file *file, struct file_space *ret_space);
    void (*close)(struct file *file);
};
struct file {
    const struct file_ops *ops;
    struct loop *loop;
    uint64_t size_bytes;
    bool is_device;
    uint32_t inflight;
};
/* Gives io its result and calls done; io and its file may be gone afterwards. */
void file_io_finish(struct file_io *io, int result);

struct kv_ops {
    void (*submit)(struct kv *kv, struct kv_write *write);
    async int (*get)(struct kv *kv, const void *key, size_t key_len, void **ret_value,
                     size_t *ret_len);
    async int (*scan)(struct kv *kv, const void *prefix, size_t prefix_len,
                      const void *after, size_t after_len, uint32_t max_pairs,
                      struct kv_page *ret_page);
    async void (*close)(struct kv *kv);
};
struct kv {
    const struct kv_ops *ops;
    struct loop *loop;
};

/* The changes of a batch one after the other; start with *at == 0. False at the end. */
struct kv_change {
    bool is_put; /* else a deletion */
    const uint8_t *key, *value;
    size_t key_len, value_len;
};
bool kv_batch_next(const struct kv_batch *batch, size_t *at, struct kv_change *ret);
/* Copies a pair to the end of a page. -ENOMEM. */
int kv_page_add(struct kv_page *page, const void *key, size_t key_len, const void *value,
                size_t value_len);
/* The page has max_pairs, or enough bytes of values for one answer. */
bool kv_page_full(const struct kv_page *page, uint32_t max_pairs);

#endif
