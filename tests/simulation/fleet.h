/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole cluster in one simulated world: 3 to 9 machines, each with a process that is a
 * node, guests on all of them, and what goes wrong. One seed is one history:
 *
 *      founded --> guests work, faults come and go --> healed --> whole --> all compared
 *
 * The founded cluster is the same for all seeds of its size; the random numbers of a
 * history begin behind it.
 */
#ifndef PARALLAX_TESTS_SIMULATION_FLEET_H
#define PARALLAX_TESTS_SIMULATION_FLEET_H

#include "cow/cow.h"
#include "replication/membership.h"
#include "runtime/sim.h"
#include "tests/simulation/fleet_model.h"

#define FLEET_NODES_MAX  9U
#define FLEET_PLACES_MAX 14U /* with those that come in place of others */
#define FLEET_GUESTS_MAX 3U  /* on one machine */
#define FLEET_DISKS_MAX  8U
#define FLEET_ROTS_MAX   32U /* in one history */

struct fleet;
struct fleet_profile;
struct place;

/* Somebody who uses disks, one operation at a time; a task of his node's process. */
struct guest {
    struct place *place;
    struct task_call task;
    struct disk *disk; /* open; NULL: none */
    struct fleet_disk *md;
    uint32_t opened; /* disk_opened, of when he opened it */
    struct disk_io io;
    struct task *waiting;
    struct fleet_change change; /* in flight; count 0: none */
    struct fleet_look look;     /* likewise */
    struct fleet_snap *snap;    /* being made, or being read */
    uint64_t begun_ns;          /* of what he does now; 0: nothing */
    const char *what;
    bool is_over, is_done;
};

enum place_state {
    PLACE_NONE,     /* there is no machine, or not any more */
    PLACE_MADE,     /* it has a store, but is no node yet */
    PLACE_OFF,      /* it has no process */
    PLACE_STARTING, /* it is on its way to be up */
    PLACE_UP,
    PLACE_CLOSING,
};

/* A machine; its number is that of the host, and of the node. */
struct place {
    struct fleet *fleet;
    uint32_t number;
    enum place_state state;
    bool has_failed;   /* the process cannot go on, and says so */
    uint64_t start_ns; /* when it is started again, if it is off */
    uint64_t stalled_until_ns;
    uint64_t slow_until_ns, slow_ns; /* its disk; 0: it is not */
    uint64_t full_until_ns;          /* its file system has no room; 0: it has */
    int32_t clock_ppm;               /* its monotonic clock is so much too fast, */
    uint64_t clock_ahead_max_ns;     /* and each process finds it anywhere below that */
    int64_t wall_step_ns;            /* its wall clock is wrong by so much */
    uint64_t starts;                 /* so far */
    struct loop *loop;
    struct kv *kv;
    struct store *store;
    struct membership *membership;
    struct host *host;
    char address[24], store_path[24], kv_path[24];
    struct task_call task; /* of what the process does as a whole */
    void (*run)(struct place *place);
    bool is_over;
    struct guest guests[FLEET_GUESTS_MAX];
};

/* A command that some machine gives until it has been carried out. */
struct errand {
    struct place *by;
    uint64_t starts; /* of that machine, when it began */
    uint64_t due_ns;
    struct task_call task;
    bool is_running, is_done;
};

/* A node for one that is lost. */
struct replacement {
    bool is_under_way;
    uint64_t begun_ns;
    uint32_t lost, newcomer;
    bool is_impatient; /* it is declared lost with what only it has */
    struct errand declaring, joining;
};

/* A block that rotted. */
struct fleet_rot {
    struct address address;
    bool is_header;
    bool is_young; /* its extent was open when the last scrub began */
};

struct fleet {
    uint64_t seed;
    int verbosity; /* 1: what happens; 2: what the nodes say, too */
    struct sim_world *world;
    uint32_t node_count;                       /* that it has when all is well */
    uint32_t place_count;                      /* places ever used */
    struct place places[FLEET_PLACES_MAX + 1]; /* by number, from 1 */
    struct fleet_model model;
    const struct fleet_profile *profile;
    uint32_t guest_count; /* on each machine */
    uint64_t pause_max_ns;
    uint64_t checkpoint_log_bytes;
    uint32_t idle_close_ms;
    uint64_t work_ns; /* for so long guests work, and things go wrong */
    bool is_draining; /* guests are to end */
    bool is_healed;   /* nothing is allowed to fail any more */
    struct replacement replacement;
    uint32_t rotten; /* the machine whose blocks rot; 0: none yet */
    bool has_power;  /* no machine loses it any more */
    uint32_t rot_count;
    struct fleet_rot rots[FLEET_ROTS_MAX];
    uint64_t next_fault_ns, blocked_until_ns, noise_until_ns;
    uint64_t ops_done, ops_failed, faults_done, hand_overs;
};

/* What is done to a cluster, in odds. What must hold: doc/testing.md. */
struct fleet_profile {
    const char *name;
    uint32_t share; /* of all seeds, percent */
    uint32_t kills, cuts, pauses, blocks, noises, losses, rots;
    uint32_t slows, fulls, steps;
    int32_t clock_ppm_max; /* clocks are wrong by up to so much; 0: they are not */
};

_Noreturn void fleet_fail(struct fleet *fleet, const char *fmt, ...) attr_printf(2, 3);
void fleet_note(struct fleet *fleet, const char *fmt, ...) attr_printf(2, 3);
uint64_t fleet_between(struct fleet *fleet, uint64_t low, uint64_t high);
static inline uint64_t fleet_random(struct fleet *fleet, uint64_t n)
{
    return sim_world_random(fleet->world, n);
}
static inline bool fleet_chance(struct fleet *fleet, uint32_t percent)
{
    return sim_world_random(fleet->world, 100) < percent;
}
/* Steps until *flag; ends the program, saying what did not end, after so long. */
void fleet_run_until(struct fleet *fleet, const bool *flag, uint64_t limit_ns,
                     const char *what);
/* Lets so much time pass. */
void fleet_run_for(struct fleet *fleet, uint64_t duration_ns);

/* --- fleet.c --- */

/* A cluster of so many nodes, up and whole; the same each time. */
struct fleet *fleet_found(uint32_t node_count, int verbosity);
uint32_t fleet_size_of(uint64_t seed);
/* Every machine is up, and as far as any of them knows, no copy is missing. */
bool fleet_has_all_copies(const struct fleet *fleet);
/* The history of a seed, in a founded cluster of its size, which is used up. Returns if
 * nothing is wrong. */
void fleet_run_seed(struct fleet *fleet, uint64_t seed);

/* --- fleet_place.c --- */

void place_init(struct fleet *fleet, uint32_t number);
/* The first node: founds the cluster in its store. */
void place_found(struct place *place, uint8_t copies, uint8_t min_copies);
/* One that joins: the store, and what `by`, which is up, has to do for it. */
void place_join(struct place *place, struct place *by);
/* The first half of it: the machine has a store, but is no node. */
void place_make(struct fleet *fleet, uint32_t number);
/* The second one: `by`, on a task of which this is called, lets it in. False: not known
 * to be so; may be repeated. */
async bool place_admit(const struct place *place, struct place *by);
void place_start(struct place *place);
/* Its process is ended, with all that is on it. */
void place_end(struct place *place, enum sim_end how);
/* It has no process; now it has no store either, and will never be again. */
void place_lose(struct place *place);
/* In order; may not be waited for: `is_over` tells. */
void place_close(struct place *place);
/* Runs it on a task of the process. */
void place_run(struct place *place, void (*run)(struct place *place));
/* NULL: none is up. */
struct place *fleet_any_up(struct fleet *fleet);
const struct cluster_state *place_state(const struct place *place);

/* --- fleet_guest.c --- */

void guests_start(struct place *place);
/* The process is gone, and with it whatever it had in flight. */
void guests_forget(struct place *place);
/* No guest of any machine does anything any more. */
bool guests_are_done(const struct fleet *fleet);
/* Ends the program if one has waited for too long, all being well. */
void guests_check_hang(struct fleet *fleet, uint64_t limit_ns);
/* The first few disks. */
async void guests_prepare(struct place *place);
/* Reads everything there is from this machine, and compares. */
async void guests_verify(struct place *place);

/* --- fleet_copies.c --- */

/* All is whole, and no guest does anything: waits until every store says the same of each
 * extent, and ends the program if that takes too long, or if their bytes differ. */
void fleet_compare_copies(struct fleet *fleet);

/* --- fleet_faults.c --- */

/* Seeds that have the profiles of the later kind. */
bool faults_are_later(uint64_t seed);
void faults_draw_profile(struct fleet *fleet);
void faults_draw_clock(struct fleet *fleet, struct place *place);
/* Now and then: ends what is over, begins something new. */
void faults_tick(struct fleet *fleet);
/* Everything is repaired, and every machine starts. */
void faults_heal(struct fleet *fleet);

/* --- fleet_replace.c --- */

/* The machine is lost, if nothing else is lost now. */
bool fleet_replace(struct fleet *fleet, struct place *place);
void fleet_replace_tick(struct fleet *fleet);
/* No node is still to be declared lost, or to join. */
bool fleet_is_replaced(const struct fleet *fleet);
/* What is to be done for it is done at once. */
void fleet_replace_soon(struct fleet *fleet);

/* --- fleet_rot.c --- */

/* A block rots, on this machine, or on that where one did before. */
bool fleet_rot(struct fleet *fleet, struct place *place);
/* Is it rotten there, and no scrub has read it? */
bool fleet_rot_may_stay(const struct fleet *fleet, const struct place *place,
                        struct address address);
/* May this block be live there, though its extent is nowhere else? */
bool fleet_rot_is_left(const struct fleet *fleet, const struct place *place,
                       struct address address);
/* Some more rot that nobody reads, then a scrub, which mends it. */
void fleet_rot_end(struct fleet *fleet);

#endif
