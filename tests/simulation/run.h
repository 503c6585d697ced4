/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One seed: one random history. A run is a sequence of rounds; in each a process opens
 * the host, checks everything against the model, works, and ends: killed, without power,
 * or in order. The last one ends in order and everything is read once more.
 */
#ifndef PARALLAX_TESTS_SIMULATION_RUN_H
#define PARALLAX_TESTS_SIMULATION_RUN_H

#include "cow/cow.h"
#include "runtime/sim.h"
#include "tests/simulation/faults.h"
#include "tests/simulation/model.h"

#define STORE_PATH "machine/store"
#define KV_PATH    "machine/kv"
#define DISKS_MAX  14U

struct client;
struct op;

struct workload {
    TAILQ_HEAD(, client) clients;
    TAILQ_HEAD(op_list, op) ops; /* in flight, by age */
    uint32_t client_count, op_count, depth;
    uint64_t pause_max_ns;
    struct timer tick;
    bool is_draining;
    bool is_trash_busy; /* restored, emptied or set by somebody */
    bool is_trash_emptied; /* all of it is being */
    bool is_failing; /* a fault took the store, or it is full: no more changes */
    uint64_t ops_begun, ops_done, ops_failed;
};

struct run {
    uint64_t seed;
    bool is_verbose;
    unsigned round, rounds;
    struct sim_world *world;
    struct profile profile;
    struct host_options options;
    bool is_bulky;      /* writes so much that extents fill up */
    uint32_t disks_max; /* few: what one does is not made durable by what others do */
    bool had_faults;    /* in this process */
    struct loop *loop;  /* of the process; NULL: there is none */
    struct host *host;
    struct model model;
    struct workload load;
    struct task_call task; /* of what the process does as a whole */
    bool is_booted, is_created, is_over;
    bool is_last;  /* the full check at the end */
    bool is_count; /* and then where the space is */
    int boot_result;
    struct error boot_error;
    uint64_t digest;
};

_Noreturn void run_fail(struct run *run, const char *fmt, ...) attr_printf(2, 3);
void run_note(struct run *run, const char *fmt, ...) attr_printf(2, 3);
void *run_alloc(size_t bytes); /* zeroed; ends the program when there is none */
static inline uint64_t run_random(struct run *run, uint64_t n)
{
    return sim_world_random(run->world, n);
}
static inline bool run_chance(struct run *run, uint32_t percent)
{
    return sim_world_random(run->world, 100) < percent;
}
uint64_t run_between(struct run *run, uint64_t low, uint64_t high); /* both included */

/* All of one seed; returns if nothing is wrong. */
void run_seed(uint64_t seed, bool is_verbose);

/* --- workload.c --- */
void workload_start(struct run *run);
/* No more operations are begun; true when none is in flight and all clients are gone. */
bool workload_drained(struct run *run);
/* Ends the run if an operation has been in flight for too long. */
void workload_check_hang(struct run *run);
/* The process is gone. */
void workload_forget(struct run *run);

/* --- verify_names.c --- */
/* The names, sizes and snapshots that there are; settles what was MAYBE. */
void verify_names(struct run *run);
/* The trash alone, from which time may have taken something. */
void verify_trash(struct run *run);

/* --- verify.c; on a task --- */
/* The content of every disk and snapshot, or of some. */
async void verify_content(struct run *run, bool all);
/* Some disks come back from the trash. */
async void verify_restore(struct run *run);

/* --- verify_space.c; on a task --- */
async void verify_check(struct run *run, bool beside_guests); /* host_check */
/* Waits until all is closed and reclaimed, and compares what is live with the model. */
async void verify_space(struct run *run);
/* Loses some blocks, which a check must find, and free. */
async void verify_repair(struct run *run);
async void verify_scrub(struct run *run);

#endif
