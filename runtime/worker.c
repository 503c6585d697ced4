/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Happy path: worker_submit puts a job in the queue and wakes the thread; the thread
 * takes the first, runs it without the lock, and posts its `finished` work to the loop,
 * which calls done.
 *
 * Nothing can fail once the thread runs: a job carries its own result.
 *
 * On close the thread empties the queue, then ends; the caller joins it.
 */
#include "runtime/worker.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "runtime/task.h"

struct worker {
    struct loop *loop;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t appeared;
    STAILQ_HEAD(, worker_job) queue; /* under lock */
    bool stopping;                   /* under lock */
};

static void finished(struct work *work)
{
    struct worker_job *job = container_of(work, struct worker_job, finished);
    job->done(job);
}

/* Waits for a job; NULL when stopping and none is left. */
static struct worker_job *next_job(struct worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    while (STAILQ_EMPTY(&worker->queue) && !worker->stopping)
        pthread_cond_wait(&worker->appeared, &worker->lock);
    struct worker_job *job = STAILQ_FIRST(&worker->queue);
    if (job != NULL)
        STAILQ_REMOVE_HEAD(&worker->queue, link);
    pthread_mutex_unlock(&worker->lock);
    return job;
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct worker_job *job;
    while ((job = next_job(worker)) != NULL) {
        /* Asked before it runs: a job that wants no done may be gone once it ran, and
         * any other once it is posted. */
        bool wants_done = job->done != NULL;
        job->run(job);
        if (wants_done)
            loop_post_from_thread(worker->loop, &job->finished);
    }
    return NULL;
}

struct worker *worker_create(struct loop *loop)
{
    struct worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL)
        return NULL;
    worker->loop = loop;
    STAILQ_INIT(&worker->queue);
    pthread_mutex_init(&worker->lock, NULL);
    pthread_cond_init(&worker->appeared, NULL);
    /* Signals are the loop's; a handler must not run in the middle of LevelDB. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&worker->thread, NULL, worker_main, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        pthread_cond_destroy(&worker->appeared);
        pthread_mutex_destroy(&worker->lock);
        free(worker);
        return NULL;
    }
    return worker;
}

void worker_destroy(struct worker *worker)
{
    if (worker == NULL)
        return;
    pthread_mutex_lock(&worker->lock);
    worker->stopping = true;
    pthread_cond_signal(&worker->appeared);
    pthread_mutex_unlock(&worker->lock);
    pthread_join(worker->thread, NULL);
    assert(STAILQ_EMPTY(&worker->queue));
    pthread_cond_destroy(&worker->appeared);
    pthread_mutex_destroy(&worker->lock);
    free(worker);
}

void worker_submit(struct worker *worker, struct worker_job *job)
{
    job->finished = (struct work){.run = finished};
    pthread_mutex_lock(&worker->lock);
    assert(!worker->stopping);
    STAILQ_INSERT_TAIL(&worker->queue, job, link);
    pthread_cond_signal(&worker->appeared);
    pthread_mutex_unlock(&worker->lock);
}

static void wake_caller(struct worker_job *job)
{
    job->over = true;
    task_wake(job->task);
}

async void worker_call(struct worker *worker, struct worker_job *job)
{
    assert(task_current() != NULL);
    job->task = task_current();
    job->over = false;
    job->done = wake_caller;
    worker_submit(worker, job);
    while (!job->over)
        task_park();
}

int sync_parent_folder(const char *path)
{
    cleanup(free_ptr) char *folder = strdup(path);
    if (folder == NULL)
        return -ENOMEM;
    char *end = folder + strlen(folder);
    while (end > folder + 1 && end[-1] == '/')
        *--end = '\0';
    char *slash = strrchr(folder, '/');
    if (slash != NULL)
        slash[slash == folder ? 1 : 0] = '\0';
    int fd = open(slash != NULL ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = fsync(fd) == 0 ? 0 : -errno;
    close(fd);
    return rc;
}
