/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a log.
 *
 * Happy path: the queue runs empty, a last flush covers everything, the opener and the
 * janitors end, every extent is decided and stopped, LEASE_CLOSE commits the lengths and
 * gives the lease up, and the members make them final.
 *
 * What can fail: the log goes down meanwhile, or gets on no more; a stop fails; the
 * commit is refused. The log is freed all the same; the lease stays with this node, and
 * the next log_open is a take-over as after a crash.
 *
 * log_abandon fails what is queued, gives up what other nodes owe, and waits for what the
 * store here still writes from the log's memory.
 */
#include "replication/disk_log_internal.h"

void log_free(struct disk_log *log)
{
    assert(log->owed == 0 && !log->opener_runs);
    assert(TAILQ_EMPTY(&log->inflight) && TAILQ_EMPTY(&log->moving) &&
           TAILQ_EMPTY(&log->committed_list) && log->retained_bytes == 0); /* L7 */
    struct tail_extent *tail;
    log->current = NULL;
    if (log->epoch != 0)
        cluster_off_apply(log->cluster, &log->watcher);
    log_janitors_leave(log);
    log_creations_leave(log);
    while ((tail = TAILQ_FIRST(&log->tails)) != NULL)
        tail_destroy(tail);
    timer_stop(log->loop, &log->tick_timer);
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

/* What goes on at other nodes goes on without the log. */
static bool is_quiet(const struct disk_log *log)
{
    return log->owed == 0 && !log->opener_runs && !log_creates_here(log) &&
           !log_cleans_here(log) && !log->advancing && TAILQ_EMPTY(&log->orphans);
}

async void log_abandon(struct disk_log *log)
{
    log->is_closing = true;
    log->down_told = true; /* the caller knows */
    log_go_down(log, -PLX_ECANCELLED);
    do {
        while (!is_quiet(log))
            waitlist_wait(&log->changed);
        log_advance(log); /* which may have something said to this node's store */
    } while (!is_quiet(log));
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

/* How far it was, and since when. */
struct progress {
    uint64_t placed, flushed, since_ns;
};

static bool gets_on(const struct disk_log *log, struct progress *progress,
                    uint64_t limit_ns)
{
    uint64_t now_ns = loop_now_ns(log->loop);
    bool is_new = log->placed > progress->placed || log->flushed > progress->flushed;
    if (is_new || log->local != NULL)
        *progress = (struct progress){log->placed, log->flushed, now_ns};
    return now_ns - progress->since_ns < limit_ns;
}

async int log_flush_all(struct disk_log *log, uint64_t limit_ns)
{
    struct progress progress = {.since_ns = loop_now_ns(log->loop)};
    bool is_begun = false;
    struct last_flush last = {.flush.done = last_flush_done};
    event_init(&last.over);
    while (!last.over.is_set) {
        bool is_written = STAILQ_EMPTY(&log->queued) && log->committed == log->sealed;
        if (log->down != 0 && !is_begun)
            return log->down;
        if (is_written && !is_begun) {
            is_begun = true;
            log_flush(log, &last.flush);
        }
        if (!gets_on(log, &progress, limit_ns))
            log_go_down(log, -ETIMEDOUT);
        waitlist_wait(&log->changed);
    }
    return last.flush.result;
}

/* Of those that seem to be in reach, or of the others. 0: one did. */
static async int stop_any(struct tail_extent *tail, bool in_reach)
{
    struct replica_directory *directory = tail->log->directory;
    int failed = -EHOSTUNREACH;
    for (uint32_t i = 0; i < tail->member_count; i++) {
        struct replica *member = tail->members[i];
        uint32_t length;
        bool restart_scanned;
        if (directory->in_reach(directory, member->node) != in_reach)
            continue;
        int rc = member->ops->stop(member, tail->extent, &length, &restart_scanned);
        if (rc == 0)
            return length < tail->flushed_length ? -PLX_EDAMAGED : 0;
        failed = rc;
    }
    return failed;
}

/* Nothing is under way any more, so one member is enough that can still tell how much it
 * has: the others hear of the length when they can. */
static async int stop_one(struct tail_extent *tail)
{
    int rc = stop_any(tail, true);
    return rc == 0 || rc == -PLX_EDAMAGED ? rc : stop_any(tail, false);
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
    log->is_watching = false;
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
    log_clean_up_all(log);
    return 0;
}

async int log_close(struct disk_log *log, struct error *err)
{
    log->is_closing = true;
    int rc = log_flush_all(log, CLOSE_LIMIT_NS);
    while (rc == 0 && log->down == 0 && !is_quiet(log))
        waitlist_wait(&log->changed);
    if (rc == 0)
        rc = log->down;
    if (rc != 0) {
        err_set(err, rc, "the log could not be flushed: %s%s%s", err_text(rc),
                log->stall.code != 0 ? ": " : "",
                log->stall.code != 0 ? log->stall.text : "");
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
