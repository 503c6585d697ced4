/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the simulator share: the world, its events and its media.
 *
 * S1  Everything that happens is an event of one tree, ordered by time and then by a
 *     number drawn from the seed, so equal seeds give equal runs.
 * S2  No decision depends on an address, on real time, or on an unordered container.
 * S3  An event belongs to a process and is dropped with it.
 * S4  A medium outlives processes; a handle to it (file, kv) does not.
 */
#ifndef PARALLAX_RUNTIME_SIM_INTERNAL_H
#define PARALLAX_RUNTIME_SIM_INTERNAL_H

#include "runtime/loop_internal.h"
#include "runtime/sim.h"

#define SECTOR_BYTES 512U

struct sim_process;

struct sim_event {
    uint64_t time_ns, order;
    struct sim_process *process;
    void (*run)(struct sim_event *event);
    /* Its process ends: frees what is the simulator's. NULL: nothing to do. */
    void (*drop)(struct sim_event *event);
    bool is_pending;
    RB_ENTRY(sim_event) node;
};
RB_HEAD(sim_event_tree, sim_event);

/* What files and key-value stores have in common: a path, and at most one user. */
struct sim_medium {
    char *path;
    struct sim_process *user;  /* has it open; NULL: nobody */
    uint64_t last_user_number; /* loses power with that process */
    void (*power_cut)(struct sim_medium *medium);
    void (*free)(struct sim_medium *medium);
    bool is_file;
    TAILQ_ENTRY(sim_medium) link; /* in the order of creation */
};

/* An open file or kv of a process. */
struct sim_handle {
    struct sim_medium *medium;
    struct sim_process *process;
    void (*free)(struct sim_handle *handle);
    TAILQ_ENTRY(sim_handle) link;
};

struct sim_net;
struct sim_listener;
struct sim_way;
TAILQ_HEAD(sim_net_list, sim_net);

struct sim_process {
    struct loop loop;
    struct sim_world *world;
    uint64_t number; /* from 1, in the order of creation */
    bool is_ended;
    uint64_t stalled_until_ns;
    uint64_t slow_max_ns;    /* added to each I/O, at most */
    uint64_t wall_offset_ns; /* modulo 2^64 */
    /* Its monotonic clock: what it said when it was set, and when that was. */
    uint64_t clock_ns, clock_set_ns;
    int32_t clock_ppm;    /* it is so much faster than the world's */
    uint64_t deadline_ns; /* of the timer, by this clock */
    struct sim_event ready, timer;
    TAILQ_HEAD(, sim_handle) handles;
    uint32_t host;
    struct sim_net_list nets;
    TAILQ_ENTRY(sim_process) link;
};

struct sim_world {
    uint64_t random[4]; /* xoshiro256** */
    uint64_t now_ns;
    uint64_t event_count, process_count;
    struct sim_event_tree events;
    struct sim_faults faults;
    int64_t fail_nth; /* -1: off */
    bool failure_happened;
    struct sim_process *running;
    TAILQ_HEAD(, sim_process) processes;
    TAILQ_HEAD(, sim_medium) media;
    TAILQ_HEAD(, sim_listener) listeners; /* also of processes that have ended */
    TAILQ_HEAD(, sim_way) blocked;
    uint64_t conn_count;
};

/* --- sim_loop.c --- */

static inline struct sim_process *sim_process_of(struct loop *loop)
{
    return container_of(loop, struct sim_process, loop);
}

/* Memory of the simulator itself: a test that runs out of it ends. */
void *sim_alloc(size_t bytes);

bool sim_chance(struct sim_world *world, uint32_t ppm);
/* Uniform from low to high, both included. */
uint64_t sim_random_between(struct sim_world *world, uint64_t low, uint64_t high);

/* Runs event->run (set by the caller) after delay_ns. */
void sim_event_add(struct sim_process *process, struct sim_event *event,
                   uint64_t delay_ns);
void sim_event_cancel(struct sim_world *world, struct sim_event *event);
/* How long an I/O takes, now and then seconds. */
uint64_t sim_latency_ns(struct sim_process *process);
/* Suspends the running task for that long. */
async void sim_pause(struct sim_process *process);
/* Counts an operation for sim_fail_nth_io; true: it must fail, for that reason or by
 * the chance of its kind. */
bool sim_must_fail(struct sim_world *world, uint32_t ppm);

struct sim_medium *sim_medium_find(const struct sim_world *world, const char *path);
void sim_medium_add(struct sim_world *world, struct sim_medium *medium, const char *path);
void sim_handle_add(struct sim_process *process, struct sim_handle *handle,
                    struct sim_medium *medium);
/* The medium is free for others then. */
void sim_handle_remove(struct sim_handle *handle);

/* --- sim_file.c, sim_kv.c --- */

async int sim_file_open(struct loop *loop, const char *path,
                        const struct file_options *options, struct file **ret,
                        struct error *err);
async int sim_kv_open(struct loop *loop, const char *path, bool create, struct kv **ret,
                      struct error *err);

/* --- sim_net.c; sim_net_create is in net_internal.h --- */

/* Its events are dropped already, and none may be added to it any more. */
void sim_net_end_process(struct sim_process *process, enum sim_end how);
/* No process is left. */
void sim_net_free_world(struct sim_world *world);

#endif
