/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flushes: what is committed becomes durable on all members, and its memory is released.
 *
 * Happy path: a round asks every member of every extent with unflushed batches to sync.
 * It is begun by a guest's flush, by so many bytes, by time, or because too much is
 * retained, and covers the batches that are placed when it begins. When all members have
 * answered, `flushed` advances over all these extents at once, in order; batches up to it
 * are released and the flushes up to it answered. What arrives meanwhile waits for the
 * next round.
 *
 * What can fail: a sync. If the store went out of service, and there is no other, the log
 * gives up; else it is a forced roll, and the batches are flushed where they go then. The
 * first failure does it, others are not waited for. A forced roll makes the round under
 * way void.
 *
 * On close a last flush is waited for; if the log is down its flushes have failed.
 */
#include "replication/disk_log_internal.h"

void log_flush(struct disk_log *log, struct log_flush *flush)
{
    flush->number = log->committed;
    flush->result = 0;
    STAILQ_INSERT_TAIL(&log->flushes, flush, link);
    log_kick(log); /* L9 */
}

void log_flushes_finish(struct disk_log *log)
{
    struct log_flush *flush;
    while ((flush = STAILQ_FIRST(&log->flushes)) != NULL &&
           flush->number <= log->flushed) {
        STAILQ_REMOVE_HEAD(&log->flushes, link);
        flush->done(flush); /* flush may be gone */
    }
}

void log_flushes_fail(struct disk_log *log, int code)
{
    struct log_flush *flush;
    while ((flush = STAILQ_FIRST(&log->flushes)) != NULL) {
        STAILQ_REMOVE_HEAD(&log->flushes, link);
        flush->result = code;
        flush->done(flush);
    }
}

static void advance_tail(struct tail_extent *tail)
{
    if (tail->cover_length == 0)
        return;
    assert(tail->flushed_length <= tail->cover_length &&
           tail->cover_length <= tail->placed_end); /* L5 */
    tail->flushed_length = tail->cover_length;
    tail->flushed_number = tail->cover_number;
    tail->cover_length = 0;
    if (tail->phase == TAIL_ENDED && tail->flushed_length == tail->end)
        tail_decide(tail, tail->flushed_number);
}

static void round_succeeded(struct disk_log *log)
{
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
        advance_tail(tail);
    assert(log->flushed < log->round_cover && log->round_cover <= log->placed); /* L8 */
    log->flushed = log->round_cover;
    log->fruitless_rolls = 0;
    trace(log->loop, "log flush", log->disk, log->flushed, log->retained_bytes);
    struct batch *batch;
    while ((batch = TAILQ_FIRST(&log->committed_list)) != NULL &&
           batch->number <= log->flushed) {
        TAILQ_REMOVE(&log->committed_list, batch, link);
        batch_release(batch);
    }
}

/* No other answer changes it. */
static void round_failed(struct tail_extent *tail, int code)
{
    if (tail_failure_is_final(tail, code))
        log_go_down(tail->log, code);
    else
        log_roll_forced(tail->log, code);
}

static void sync_done(struct replica_sync *sync)
{
    struct sync_op *op = container_of(sync, struct sync_op, sync);
    struct tail_extent *tail = op->tail;
    struct disk_log *log = tail->log;
    uint32_t member = (uint32_t)(op - tail->sync_ops);
    assert(tail->ops > 0 && log->owed > 0 && (tail->sync_owed & 1U << member));
    if (--tail->ops == 0 && tail->phase >= TAIL_DECIDED)
        log->wants_cleaning = true;
    log->owed--;
    tail->sync_owed &= ~(1U << member);
    if (op->round == log->round) {
        assert(log->round_owed > 0);
        log->round_owed--;
        if (sync->result != 0) {
            log_member_failed(tail, member, sync->result);
            round_failed(tail, sync->result);
        } else if (log->round_owed == 0) {
            round_succeeded(log);
        }
    }
    log_advance(log);
}

void log_round_void(struct disk_log *log)
{
    log->round++; /* no answer has this number */
    log->round_owed = 0;
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
        tail->cover_length = 0;
}

static bool has_unflushed(const struct tail_extent *tail)
{
    return (tail->phase == TAIL_CURRENT || tail->phase == TAIL_ENDED) &&
           tail->placed_end > tail->flushed_length;
}

/* What was synced when a round failed was decided, so no request is under way. One that
 * fails at once makes the round void. */
static void sync_tail(struct tail_extent *tail)
{
    assert(tail->sync_owed == 0);
    struct disk_log *log = tail->log;
    for (uint32_t i = 0; i < tail->member_count && tail->cover_length > 0; i++) {
        struct sync_op *op = &tail->sync_ops[i];
        tail->sync_owed |= 1U << i;
        *op = (struct sync_op){.tail = tail,
                               .round = log->round,
                               .sync.extent = tail->extent,
                               .sync.epoch = tail->epoch,
                               .sync.done = sync_done};
        tail->ops++;
        log->owed++;
        tail->members[i]->ops->sync(tail->members[i], &op->sync);
    }
}

void log_cancel_syncs(struct tail_extent *tail)
{
    for (uint32_t i = 0; i < tail->member_count; i++) {
        struct replica *member = tail->members[i];
        if (tail->sync_owed & 1U << i)
            member->ops->cancel_sync(member, &tail->sync_ops[i].sync);
    }
}

/* All is counted before the first request: it may be answered at once. */
static void begin_round(struct disk_log *log)
{
    struct tail_extent *tail;
    log->round++;
    log->round_begun_ns = loop_now_ns(log->loop);
    log->round_cover = log->placed;
    log->unsynced_bytes = 0;
    log->sync_due = log->is_starved = false;
    timer_stop(log->loop, &log->sync_timer);
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (!has_unflushed(tail))
            continue;
        tail->cover_length = tail->placed_end;
        tail->cover_number = tail->placed_number;
        log->round_owed += tail->member_count;
    }
    assert(log->round_owed > 0);
    uint64_t round = log->round;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (round == log->round && tail->cover_length > 0)
            sync_tail(tail);
    }
}

void log_sync_if_wanted(struct disk_log *log)
{
    if (log->round_owed > 0 || TAILQ_EMPTY(&log->committed_list))
        return;
    const struct log_flush *flush = STAILQ_FIRST(&log->flushes);
    bool is_asked =
        flush != NULL && flush->number > log->flushed && flush->number <= log->placed;
    if (is_asked || log->sync_due || log->is_starved ||
        log->unsynced_bytes >= SYNC_EVERY_BYTES)
        begin_round(log);
}
