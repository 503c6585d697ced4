/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated runtime: clock, random, disk and key-value store of a machine, all
 * driven by one seed and virtual time. For tests only.
 *
 * A `sim_world` holds simulated machines' media (files and key-value stores by path).
 * A loop made on it is one process of such a machine. Killing the process or cutting
 * its power ends the loop at once: its tasks and callbacks simply never run again. What
 * they had allocated is not released (their stacks are): a test runs its seeds in child
 * processes, a few dozen each.
 *
 * What a cut does to unsynced writes, each chosen per 512-byte sector by the seed: lost,
 * kept, torn, or replaced by what an earlier write (or the zeroes before it) left there.
 * Writes in flight at a kill may or may not happen, whole or torn; completed ones stay.
 * A key-value store loses a suffix of its unsynced writes at a cut, none at a kill.
 */
#ifndef PARALLAX_RUNTIME_SIM_H
#define PARALLAX_RUNTIME_SIM_H

#include "runtime/base.h"
#include "runtime/error.h"

struct loop;
struct sim_world;

struct sim_faults {
    uint32_t write_error_ppm; /* a write fails; its data may or may not be on media */
    uint32_t read_error_ppm;  /* a latent sector error: fails until rewritten */
    uint32_t sync_error_ppm;
    uint32_t kv_error_ppm;
    uint32_t stuck_ppm; /* an I/O takes seconds */
    uint32_t rot_ppm;   /* of reads: one bit of the answer differs, on media too */
    uint64_t latency_min_ns, latency_max_ns;
    uint64_t net_latency_min_ns, net_latency_max_ns; /* of a message, one way */
    uint32_t net_reset_ppm; /* of messages: the connection breaks, and some of what is
                             * on its way is lost */
    uint32_t net_stuck_ppm; /* of messages: takes a second or more longer */
};

struct sim_world *sim_world_create(uint64_t seed);
void sim_world_destroy(struct sim_world *world);
/* Random numbers begin anew, as in a world just made with this seed: for many histories
 * that go on from the same past. */
void sim_world_seed(struct sim_world *world, uint64_t seed);
uint64_t sim_world_now_ns(const struct sim_world *world);
/* May be changed at any time. */
struct sim_faults *sim_world_faults(struct sim_world *world);
/* Uniform below n; the same stream everything else draws from. */
uint64_t sim_world_random(struct sim_world *world, uint64_t n);

/* A process: a loop that works like a real one. */
struct loop *sim_process_create(struct sim_world *world);
/* Runs one event of the world (work, timer, I/O completion), advancing virtual time as
 * needed. False if there is none. */
bool sim_world_step(struct sim_world *world);
/* Steps until *flag is true. False if limit_ns of virtual time passed or nothing is
 * left to do first. */
bool sim_world_run_until(struct sim_world *world, const bool *flag, uint64_t limit_ns);

enum sim_end { SIM_KILL, SIM_POWER_CUT };
/* Ends a process where it stands, running none of its code; `loop` is gone after it. */
void sim_process_end(struct loop *loop, enum sim_end how);

/* A process stands still for so long, as a machine that is paused: nothing of it runs,
 * and then all that was due at once, in any order. */
void sim_process_stall(struct loop *loop, uint64_t duration_ns);

/* From now on each I/O of this process takes up to max_ns longer; 0: as others. */
void sim_process_slow_disk(struct loop *loop, uint64_t max_ns);

/* The wall clock of a process jumps, ahead or back. */
void sim_process_step_wall(struct loop *loop, int64_t by_ns);
/* Its monotonic clock says so much more from now on, and is so much faster than that of
 * the world (ppm; negative: slower). Ahead only before the process has done anything. */
#define SIM_CLOCK_PPM_MAX 100000
void sim_process_set_clock(struct loop *loop, uint64_t ahead_ns, int32_t ppm);

/* Cuts the power of media that no process has open: those whose path starts with
 * prefix. For a machine that lost power while its process was not running. */
void sim_power_cut_media(struct sim_world *world, const char *prefix);

/* The medium of a file, for tests that damage or inspect it. Size 0: there is none. */
uint64_t sim_file_size_bytes(const struct sim_world *world, const char *path);
/* Bytes as a read would now see them; -ENOENT, or -ERANGE beyond the end. */
int sim_file_peek(const struct sim_world *world, const char *path, uint64_t offset_bytes,
                  void *ret, size_t len);
int sim_file_poke(struct sim_world *world, const char *path, uint64_t offset_bytes,
                  const void *bytes, size_t len);
/* From now on the file lies in a file system that has so much space left for what of it
 * is a hole, in pieces of 64 KiB: a write into more of them is -ENOSPC, and leaves
 * nothing. can_allocate: it can set space aside. The file may not grow any more. */
int sim_file_set_room(struct sim_world *world, const char *path, uint64_t free_bytes,
                      bool can_allocate);
/* Every later open of the key-value store at path fails with -PLX_EDAMAGED. */
void sim_kv_damage(struct sim_world *world, const char *path);
/* Takes the medium of a file or key-value store away, as if the disk was replaced. No
 * process may have it open. */
void sim_media_remove(struct sim_world *world, const char *path);

/*
 * --- the network ---
 *
 * A process is on a host (its number; 0 at first). Any "NAME:PORT" is an address that a
 * process may listen on; it is free again when the process ends. Messages between two
 * hosts take net_latency, keep their order within a connection, and wait while their way
 * is blocked; a connection whose way is blocked for SIM_NET_STUCK_NS breaks on both
 * sides. A killed process resets its connections at once; one that lost power is silent,
 * and its peers find out by their own limits, or by a reset from its successor.
 */
#define SIM_NET_STUCK_NS (20 * NS_PER_S)
/* Before the process makes a net. */
void sim_process_set_host(struct loop *loop, uint32_t host);
/* Blocks or opens the way from one host to another, one direction. */
void sim_net_block(struct sim_world *world, uint32_t from_host, uint32_t to_host,
                   bool is_blocked);
void sim_net_open_all(struct sim_world *world);

/* Makes the nth file or key-value operation from now, of any process, fail (0: the
 * next); -1 switches off. For failure loops. */
void sim_fail_nth_io(struct sim_world *world, int64_t nth);
/* True once the failure armed by sim_fail_nth_io has happened. */
bool sim_failure_happened(const struct sim_world *world);

#endif
