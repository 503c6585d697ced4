/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is done to the machine of a run, and what it must survive.
 *
 *   profile   what happens                      what must hold
 *   none      nothing; ends in order            no operation fails, nothing is lost
 *   kill      kill -9                           all that was acknowledged is there
 *   power     power cuts                        a prefix that holds the last flush
 *   both      either of them
 *   writes    writes fail, then any end         the same; an operation may fail
 *   reads     sectors go bad, bits rot          an error or the right bytes
 *   rot       the same, and kills and cuts      an error, or a prefix of the commits
 *   sync      a sync fails, then a power cut    no flush is acknowledged after it
 *   metadata  the key-value store fails         as with kill and power
 *   stuck     I/O takes seconds, then any end   nothing fails, only late
 *   full      a small store, then any end       ENOSPC for changes, reads go on
 *   small     a small store, little kept        nothing fails: space comes back
 *
 * Two things no store with one copy survives: bits that rot in a log that was not closed
 * (a restart cannot always tell them from a torn tail, hence the profile "rot"), and a
 * device that reports a failed sync, later shows the data, and loses it at a power cut
 * (hence only power cuts in "sync").
 */
#ifndef PARALLAX_TESTS_SIMULATION_FAULTS_H
#define PARALLAX_TESTS_SIMULATION_FAULTS_H

#include "runtime/sim.h"

struct run;

enum ending { ENDING_KILL, ENDING_POWER_CUT, ENDING_CLEAN };

struct profile {
    const char *name;
    uint32_t share;               /* of all seeds, percent */
    uint32_t kills, cuts, cleans; /* odds of an ending */
    struct sim_faults faults;     /* in the workload; latencies are drawn */
    bool may_fail;                /* operations, because of the faults */
    bool media_rot;               /* for good */
    bool may_lose;                /* what was acknowledged; but not mix it up */
    bool fills;                   /* the store gets full */
    bool is_small;                /* it would if nothing was reclaimed */
    uint64_t op_limit_ns;         /* of virtual time, for any operation */
};

/* Draws the profile of a run and all other parameters of its machine. */
void faults_draw(struct run *run);
void faults_on(struct run *run);
void faults_off(struct run *run);
enum ending faults_ending(struct run *run);
/* True if this result of an operation is explained by what was done to the machine. */
bool faults_allow(struct run *run, int result);

#endif
