/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a log.
 *
 * Happy path: the queue runs empty, a last flush covers everything, the opener and the
 * janitor end, every extent is decided and stopped, LEASE_CLOSE commits the lengths and
 * gives the lease up, and the members make them final.
 *
 * What can fail: the log goes down meanwhile, a stop fails, the commit is refused. The
 * log is freed all the same; the lease stays with this node, and the next log_open is a
 * take-over as after a crash.
 *
 * log_abandon fails what is queued and waits for the answers that members owe: they write
 * from the log's memory.
 */
#include "replication/disk_log_internal.h"

void log_free(struct disk_log *log)
{
    assert(log->owed == 0 && !log->opener_runs && !log->janitor_runs);
    assert(TAILQ_EMPTY(&log->inflight) && TAILQ_EMPTY(&log->moving) &&
           TAILQ_EMPTY(&log->committed_list) && log->retained_bytes == 0); /* L7 */
    struct tail_extent *tail;
    log->current = NULL;
    while ((tail = TAILQ_FIRST(&log->tails)) != NULL)
        tail_destroy(tail);
    timer_stop(log->loop, &log->sync_timer);
    timer_stop(log->loop, &log->retry_timer);
    loop_post_cancel(log->loop, &log->work);
    buffer_pool_wait_cancel(log->buffers, &log->buffer_waiter);
    batch_idle_free(log);
    if (log->local != NULL)
        log->local->ops->destroy(log->local);
    free(log->ranges);
    free(log);
}

static bool is_quiet(const struct disk_log *log)
{
    return log->owed == 0 && !log->opener_runs && !log->janitor_runs &&
           !log->advancing && TAILQ_EMPTY(&log->orphans);
}

async void log_abandon(struct disk_log *log)
{
    log->is_closing = true;
    log->down_told = true; /* the caller knows */
    log_go_down(log, -PLX_ECANCELLED);
    while (!is_quiet(log))
        waitlist_wait(&log->changed);
    log_advance(log);
    log_free(log);
}

struct last_flush {
    struct log_flush flush;
    struct event over;
};

static void last_flush_done(struct log_flush *flush)
{
    event_set(&container_of(flush, struct last_flush, flush)->over);
}

static async int flush_all(struct disk_log *log)
{
    while (log->down == 0 &&
           (!STAILQ_EMPTY(&log->queued) || log->committed < log->sealed))
        waitlist_wait(&log->changed);
    if (log->down != 0)
        return log->down;
    struct last_flush last = {.flush.done = last_flush_done};
    event_init(&last.over);
    log_flush(log, &last.flush);
    event_wait(&last.over);
    return last.flush.result;
}

/* Nothing is under way any more, so one member that is out of reach does no harm: it
 * hears of the length when it comes back. */
static async int stop_one(struct tail_extent *tail)
{
    uint32_t stopped = 0;
    int failed = -EHOSTUNREACH;
    for (uint32_t i = 0; i < tail->member_count; i++) {
        struct replica *member = tail->members[i];
        uint32_t length;
        bool restart_scanned;
        int rc = member->ops->stop(member, tail->extent, &length, &restart_scanned);
        if (rc == 0 && length < tail->flushed_length)
            return -PLX_EDAMAGED;
        if (rc == 0)
            stopped++;
        else
            failed = rc;
    }
    return stopped > 0 ? 0 : failed;
}

static async int stop_all(struct disk_log *log)
{
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase >= TAIL_DECIDED)
            continue;
        int rc = stop_one(tail);
        if (rc != 0)
            return rc;
        tail_decide(tail, log->flushed);
    }
    return 0;
}

static async int give_up_lease(struct disk_log *log, struct error *err)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(log->cluster), log->disk);
    if (disk == NULL)
        return err_set(err, -PLX_EMISSING, "the disk is gone");
    struct cluster_command command = {.op = CLUSTER_LEASE_CLOSE};
    log_finals_fill(log, PROPOSER_OPENER, disk->checkpoint.covers, &command);
    struct cluster_result result;
    int rc = cluster_submit(log->cluster, &command, &result);
    if (rc != 0)
        return err_set(err, rc, "giving the lease up: %s", result.text);
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase == TAIL_DECIDED)
            tail->phase = TAIL_COMMITTED;
        else if (tail->phase == TAIL_FINAL && tail->leaving)
            tail->phase = TAIL_LEFT;
        tail->proposer = PROPOSER_NONE;
        tail->finalize_failed = false;
    }
    log_finalize_all(log);
    return 0;
}

async int log_close(struct disk_log *log, struct error *err)
{
    log->is_closing = true;
    int rc = flush_all(log);
    while (rc == 0 && log->down == 0 && !is_quiet(log))
        waitlist_wait(&log->changed);
    if (rc == 0)
        rc = log->down;
    if (rc != 0) {
        err_set(err, rc, "the log could not be flushed: %s", err_text(rc));
        log_abandon(log);
        return rc;
    }
    rc = stop_all(log);
    if (rc != 0)
        err_set(err, rc, "an extent could not be stopped: %s", err_text(rc));
    else
        rc = give_up_lease(log, err);
    log_abandon(log);
    return rc;
}
