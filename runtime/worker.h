/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread for calls that block: opening and growing files, LevelDB. Jobs run one after
 * the other in the order of submission; the loop never waits for them.
 */
#ifndef PARALLAX_RUNTIME_WORKER_H
#define PARALLAX_RUNTIME_WORKER_H

#include "runtime/base.h"
#include "runtime/loop.h"

struct task;
struct worker;

/* Embedded in what the job works on; valid until done, or until run if done is NULL. */
struct worker_job {
    void (*run)(struct worker_job *job);  /* on the thread */
    void (*done)(struct worker_job *job); /* on the loop; NULL: not needed */
    /* private: */
    struct work finished;
    struct task *task;
    bool over;
    STAILQ_ENTRY(worker_job) link;
};

/* NULL when memory or threads are out. */
struct worker *worker_create(struct loop *loop);
/* Runs what was submitted, then ends the thread. Every job's done must have been
 * called. */
void worker_destroy(struct worker *worker);
/* From the loop or from the thread itself. */
void worker_submit(struct worker *worker, struct worker_job *job);
/* Submits the job and suspends the task until it ran; sets done by itself. */
async void worker_call(struct worker *worker, struct worker_job *job);

/* Makes a new entry in path's folder durable. May block: for use inside a job. */
int sync_parent_folder(const char *path);

#endif
