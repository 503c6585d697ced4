/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reclaim: versions without a name and disks removed for good go away, a few at a time,
 * in tasks of the host. doc/reclaim.md says why that may be interrupted anywhere.
 *
 * What can go is found in the cluster state, so nothing has to be remembered: whoever
 * takes a name away, or releases what held something back, only wakes the task.
 */
#ifndef PARALLAX_COW_RECLAIM_H
#define PARALLAX_COW_RECLAIM_H

#include "cow/disk_internal.h"

enum reclaim_kind {
    RECLAIM_NOTHING,
    RECLAIM_VERSION, /* collapses it */
    RECLAIM_SETTLE,  /* writes its map first */
    RECLAIM_DISK,    /* a removed disk, or its head */
    RECLAIM_RECORD,  /* what is left of a disk when nothing of it is left */
};

struct reclaim_job {
    enum reclaim_kind kind;
    uint64_t id; /* of the version or disk */
};

/* A job at work, or just done. */
struct reclaim_slot {
    struct reclaim *reclaim;
    struct task_call task;
    struct reclaim_job job; /* RECLAIM_NOTHING: the slot is free */
    bool is_done;
    int result;
    struct error err;
};
/* Most of a small one is waiting for commits, which those that wait share. */
#define RECLAIM_AT_ONCE 4U

struct reclaim {
    struct host *host;
    struct task_call task;
    struct reclaim_slot slots[RECLAIM_AT_ONCE];
    bool is_running, is_stopping;
    bool woken;              /* since the last look at the state */
    bool is_resting;         /* the last look found nothing to do */
    bool is_out;             /* store or cluster are out of service */
    bool empty_trash;        /* the store is full: the oldest of it goes */
    uint32_t active;         /* jobs at work that do not pause */
    uint32_t holds;
    struct waitlist changed; /* any of these */
    struct timer timer;
    uint32_t failures;       /* looks in a row; the more, the later the next */
    uint64_t turn_ns;        /* when work began again after guests went first */
    uint64_t record_last;    /* disk whose record may go, that all nodes were asked for */
    uint64_t record_ns;      /* not again before that */
    uint64_t freed_blocks;
};

int reclaim_create(struct host *host);
void reclaim_destroy(struct host *host);
/* Once the host is open. */
void reclaim_start(struct host *host);
/* Before its disks are closed: what is at work is left as it is. */
async void reclaim_stop(struct host *host);
void reclaim_wake(struct host *host);

/* Between these nothing is freed by reclaim. They nest. */
async void reclaim_hold(struct host *host);
void reclaim_release(struct host *host);

/* Somebody here reads the version. */
bool reclaim_version_is_held(struct host *host, uint64_t version);
/* Somebody here reads its head, or one of its versions. */
bool reclaim_disk_is_held(struct host *host, uint64_t disk);

/* A PIN_HEAD that holds no more versions than it must. */
void reclaim_pin_head(struct host *host, struct pin *pin, uint64_t disk);

/* A guest found the store full: true if reclaim may still find space, in which case it is
 * at it now, the trash included. */
bool reclaim_space_coming(struct host *host);

/* Versions and disks that are on their way out. */
uint64_t reclaim_pending(const struct host *host);
bool reclaim_is_busy(const struct host *host);

/* --- reclaim_others.c --- */
/* Does nobody on any other host read the version (0: anything of the disk)? -EAGAIN: he
 * does, or it is not known. */
async int reclaim_ask_others(struct host *host, uint64_t disk, uint64_t version,
                             struct error *err);

/* --- reclaim_walk.c --- */
/* For long work: lets guests go first, and stays while reclaim is held. -PLX_ECANCELLED:
 * the host is closing. */
async int reclaim_pause(struct host *host);
/* Frees what a collapsing version alone reaches. */
async int reclaim_version(struct host *host, uint64_t version, struct error *err);
/* Frees what the head of a removed disk alone reaches. */
async int reclaim_head(struct host *host, uint64_t disk, struct error *err);

#endif
