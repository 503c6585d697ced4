/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The writer: a queue of records becomes batches, batches commit in order.
 *
 * Happy path: log_append queues the record and posts the work, so that requests which
 * arrive in the same turn of the loop share a batch. log_advance seals while fewer than a
 * window of batches are in flight; the window is small as long as little is queued, so
 * that batches grow under load and a lone write leaves at once. When every member has the
 * first batch in flight its pieces are reported and it is retained until it is flushed.
 *
 * What can fail: a member answers an append with an error. If all of them have no space
 * nothing was written, the guest's records fail and the log goes on. If some have none,
 * what lies before is flushed, then the log rolls on. Epoch over or store out of service:
 * the log gives up. Anything else is a forced roll. When too much is retained or no
 * extent is ready the queue waits, visibly, and a sync or the opener is started.
 *
 * On close the queue runs empty first (log_close.c).
 */
#include "replication/disk_log_internal.h"

void log_kick(struct disk_log *log)
{
    loop_post(log->loop, &log->work);
}

void log_wait_buffer(struct disk_log *log)
{
    if (!log->buffer_waiter.posted)
        buffer_pool_wait(log->buffers, &log->buffer_waiter);
}

void log_append(struct disk_log *log, struct log_record *record)
{
    assert(!log->is_closing);
    assert(record->count > 0 || record->kind == ENTRY_MARKER);
    assert(!entry_has_block(record->kind) ||
           (record->data.len == record->count * BLOCK_SIZE &&
            record->data.offset % BLOCK_SIZE == 0));
    record->sealed = 0;
    record->result = 0;
    if (!entry_has_block(record->kind))
        record->data.buffer = NULL;
    else
        log->queued_blocks += record->count;
    STAILQ_INSERT_TAIL(&log->queued, record, link);
    log_kick(log); /* L9 */
}

/* --- commits --- */

static void tell_committed(struct batch *batch)
{
    for (uint32_t i = 0; i < batch->piece_count; i++) {
        struct piece_owner owner = batch->owners[i];
        batch->owners[i].record = NULL;
        if (owner.record == NULL) /* failed with what came behind this piece */
            continue;
        if (owner.last)
            buffer_put(take(owner.record->data.buffer)); /* the batch has its own */
        owner.record->callbacks->committed(owner.record->callbacks, owner.record,
                                           &batch->pieces[i], owner.last);
    }
}

static void tell_moved(struct disk_log *log, struct batch *batch)
{
    struct address here = address_plus(batch->tail->extent, batch->block);
    for (uint32_t i = 0; i < batch->piece_count; i++) {
        const struct log_piece *piece = &batch->pieces[i];
        if (piece->crcs == NULL)
            continue;
        uint32_t offset = (uint32_t)(piece->address.v - here.v);
        log->callbacks->moved(log->callbacks, piece, address_plus(batch->home, offset));
    }
}

static bool is_placed(const struct batch *batch)
{
    uint32_t members = batch->tail->member_count;
    if (planted(PLANT_ACK_EARLY))
        return true;
    if (planted(PLANT_ACK_MISSING) && batch->acks > 0)
        return batch->acks + 1 >= members;
    return batch->acks == members && batch->tail->roll_acks == members;
}

static void commit_one(struct disk_log *log, struct batch *batch)
{
    struct tail_extent *tail = batch->tail;
    assert(batch->number == log->placed + 1); /* L1 L2 */
    TAILQ_REMOVE(&log->inflight, batch, link);
    log->inflight_count--;
    TAILQ_INSERT_TAIL(&log->committed_list, batch, link);
    log->placed = batch->number;
    log->unsynced_bytes += batch->bytes;
    tail->placed_end = batch->block + 1 + batch->blocks;
    tail->placed_number = batch->number;
    if (tail->first_number == 0)
        tail->first_number = batch->number;
    assert(tail->placed_end <= tail->end); /* L5 */
    bool is_new = address_is_null(batch->home);
    if (!is_new)
        tell_moved(log, batch);
    batch->home = address_plus(tail->extent, batch->block);
    if (is_new) {
        assert(batch->number == log->committed + 1);
        log->committed = batch->number;
        trace(log->loop, "log commit", log->disk, batch->number, batch->blocks);
        tell_committed(batch);
    }
}

static void commit_ready(struct disk_log *log)
{
    struct batch *batch;
    while ((batch = TAILQ_FIRST(&log->inflight)) != NULL && is_placed(batch))
        commit_one(log, batch);
    if (!TAILQ_EMPTY(&log->committed_list) && !log->sync_timer.armed)
        timer_start(log->loop, &log->sync_timer, SYNC_EVERY_MS * NS_PER_MS);
}

/* --- failures --- */

static bool all_answered_from(struct batch *batch)
{
    for (; batch != NULL; batch = TAILQ_NEXT(batch, link)) {
        if (batch->owed > 0)
            return false;
    }
    return true;
}

/* Says the member that it did not even begin to write it? Any other error may come after
 * that, and an answer that is lost says nothing. Behind one that found no space nothing
 * is at the end of the extent. */
static bool is_refused_by(const struct batch *batch, uint32_t member, bool is_first)
{
    int code = batch->ops[member].append.result;
    return code == -PLX_EFULL || (code == -PLX_ENOTEND && !is_first);
}

/* All have answered, from this one on. */
static bool nobody_has_from(struct batch *first)
{
    const struct tail_extent *current = first->log->current;
    for (const struct batch *batch = first; batch != NULL;
         batch = TAILQ_NEXT(batch, link)) {
        if (batch->tail != current)
            return false;
        for (uint32_t i = 0; i < current->member_count; i++) {
            if (!is_refused_by(batch, i, batch == first))
                return false;
        }
    }
    return true;
}

/* What lies before it needs no other place, for nothing is wrong with the members: it is
 * flushed where it is, and takes no space a second time. True: that is not over. */
static bool flushes_first(struct disk_log *log)
{
    if (log->flushed == log->placed)
        return false;
    log->sync_due |= log->round_owed == 0 || log->round_cover < log->placed;
    return true;
}

static bool is_new_from(const struct batch *batch)
{
    while (batch != NULL && !batch->is_again)
        batch = TAILQ_NEXT(batch, link);
    return batch == NULL;
}

/* Others had room. */
static void avoid_full(struct disk_log *log)
{
    struct batch *batch;
    TAILQ_FOREACH(batch, &log->inflight, link)
    {
        for (uint32_t i = 0; i < batch->tail->member_count; i++) {
            bool has_answered = batch->answers & 1U << i;
            if (has_answered && batch->ops[i].append.result == -PLX_EFULL)
                log_member_failed(batch->tail, i, -PLX_EFULL);
        }
    }
}

/* If no member has it or anything behind it, what is new is refused. What was told before
 * is kept for another try, and what some members have goes elsewhere. */
static bool batch_found_no_space(struct disk_log *log, struct batch *batch)
{
    bool nobody_has = nobody_has_from(batch);
    if (nobody_has && is_new_from(batch)) {
        trace(log->loop, "log full", log->disk, batch->number, false);
        batch_withdraw(log, batch);
        return false;
    }
    if (flushes_first(log))
        return true;
    trace(log->loop, "log full", log->disk, batch->number, true);
    if (!nobody_has)
        avoid_full(log);
    log_roll_forced(log, -PLX_EFULL);
    if (nobody_has && log->down == 0)
        timer_start(log->loop, &log->retry_timer, RETRY_NS);
    return false;
}

/* The first batch with an error decides. True: wait for further answers. */
static bool batch_failed(struct disk_log *log, struct batch *batch)
{
    int code = batch->result;
    if (tail_failure_is_final(batch->tail, code)) {
        log_go_down(log, code);
        return false;
    }
    /* Not at the end: because an earlier one failed, whose answer tells more. */
    if (code == -PLX_ENOTEND && !all_answered_from(TAILQ_FIRST(&log->inflight)))
        return true;
    /* Of a record that began in an earlier batch, that part is committed first: what is
     * in the log must also be in the overlay. */
    if (code == -PLX_EFULL &&
        (batch != TAILQ_FIRST(&log->inflight) || !all_answered_from(batch)))
        return true;
    if (code == -PLX_EFULL)
        return batch_found_no_space(log, batch);
    log_roll_forced(log, code);
    return false;
}

/* Without its roll record nothing in the extent counts. True: that is seen to. */
static bool roll_record_failed(struct disk_log *log, struct tail_extent *tail)
{
    if (tail == NULL || tail->roll_result == 0)
        return false;
    if (tail_failure_is_final(tail, tail->roll_result))
        log_go_down(log, tail->roll_result);
    else
        log_roll_forced(log, tail->roll_result);
    return true;
}

/* False: nothing new may be sent until more answers are in. */
static bool settle_failures(struct disk_log *log)
{
    if (roll_record_failed(log, log->current))
        return log->down == 0;
    struct batch *batch;
    TAILQ_FOREACH(batch, &log->inflight, link)
    {
        if (roll_record_failed(log, batch->tail)) /* it may have ended since */
            return log->down == 0;
        if (batch->result != 0)
            return !batch_failed(log, batch) && log->down == 0;
    }
    return true;
}

/* Records in the order they came in: those in flight, then those queued. */
static void collect_records(struct disk_log *log, struct batch_list *batches,
                            struct record_list *failing)
{
    struct batch *batch;
    const struct log_record *before = STAILQ_FIRST(&log->queued);
    TAILQ_FOREACH(batch, batches, link)
    {
        for (uint32_t i = 0; i < batch->piece_count; i++) {
            struct log_record *record = batch->owners[i].record;
            batch->owners[i].record = NULL;
            if (record == NULL || record == before ||
                record == STAILQ_LAST(failing, log_record, link))
                continue;
            STAILQ_INSERT_TAIL(failing, record, link);
        }
    }
}

static void release_list(struct batch_list *batches)
{
    struct batch *batch;
    while ((batch = TAILQ_FIRST(batches)) != NULL) {
        TAILQ_REMOVE(batches, batch, link);
        batch_release(batch);
    }
}

static void fail_all(struct record_list *failing, int code)
{
    struct log_record *record;
    while ((record = STAILQ_FIRST(failing)) != NULL) {
        STAILQ_REMOVE_HEAD(failing, link);
        buffer_put(take(record->data.buffer));
        record->result = code;
        record->callbacks->failed(record->callbacks, record, code); /* L9 */
    }
}

static void fail_queued(struct disk_log *log, int code)
{
    struct record_list failing = STAILQ_HEAD_INITIALIZER(failing);
    STAILQ_CONCAT(&failing, &log->queued);
    log->queued_blocks = 0;
    fail_all(&failing, code);
}

void log_go_down(struct disk_log *log, int code)
{
    if (log->down != 0)
        return;
    assert(code < 0);
    log->down = code;
    trace(log->loop, "log down", log->disk, log->committed, (uint64_t)-code);
    timer_stop(log->loop, &log->sync_timer);
    timer_stop(log->loop, &log->retry_timer);
    log_round_void(log);
    log->has_given_up = true;
    struct record_list failing = STAILQ_HEAD_INITIALIZER(failing);
    collect_records(log, &log->inflight, &failing);
    collect_records(log, &log->moving, &failing);
    STAILQ_CONCAT(&failing, &log->queued);
    log->queued_blocks = 0;
    release_list(&log->committed_list);
    release_list(&log->inflight);
    release_list(&log->moving);
    log->inflight_count = 0;
    fail_all(&failing, code);
    log_kick(log);
}

void log_give_up(struct disk_log *log, int code)
{
    log_go_down(log, code);
}

/* --- sending --- */

/* They are as small as they were sealed. */
static bool may_move_more(const struct disk_log *log)
{
    uint64_t blocks = 0;
    const struct batch *batch;
    if (log->inflight_count < BATCHES_INFLIGHT)
        return true;
    TAILQ_FOREACH(batch, &log->inflight, link)
        blocks += batch->blocks + 1;
    return log->inflight_count < BATCHES_INFLIGHT_AGAIN &&
           blocks < BATCHES_INFLIGHT * BATCH_BLOCKS;
}

/* After a forced roll: what is retained goes first, in order, to the next extent. */
static void send_moving(struct disk_log *log)
{
    struct batch *batch;
    while ((batch = TAILQ_FIRST(&log->moving)) != NULL && may_move_more(log) &&
           log_room_for(log, batch->blocks, true) &&
           (batch = batch_renew(batch)) != NULL) {
        TAILQ_REMOVE(&log->moving, batch, link);
        TAILQ_INSERT_TAIL(&log->inflight, batch, link);
        log->inflight_count++;
        batch_place(batch);
        batch_submit(batch);
    }
}

static bool too_much_retained(struct disk_log *log)
{
    bool over = log->retained_bytes >= RETAINED_BYTES_DISK ||
                log->budget->used_bytes >= log->budget->limit_bytes;
    if (!over)
        return false;
    log->is_starved = true;
    /* What others retain is released without a word to this log. */
    if (log->retained_bytes == 0 && !log->retry_timer.armed)
        timer_start(log->loop, &log->retry_timer, ROLL_BACKOFF_NS);
    return true;
}

static bool may_seal(struct disk_log *log)
{
    uint32_t window = log->queued_blocks > BATCH_BLOCKS_BUSY ? BATCHES_INFLIGHT
                                                             : BATCHES_INFLIGHT_SMALL;
    return !STAILQ_EMPTY(&log->queued) && TAILQ_EMPTY(&log->moving) &&
           log->inflight_count < window && !log->buffer_waiter.posted &&
           !too_much_retained(log) &&
           log_room_for(log, batch_peek(log), STAILQ_FIRST(&log->queued)->use_reserve);
}

/* Nothing could be made for what is next, and nothing in flight may free any space. */
static bool is_refused(const struct disk_log *log)
{
    const struct log_record *next = STAILQ_FIRST(&log->queued);
    return next != NULL && log->wants_extent && log->was_wanted && !log->opener_runs &&
           (next->use_reserve ? log->is_exhausted : log->is_full) &&
           TAILQ_EMPTY(&log->moving) && TAILQ_EMPTY(&log->inflight);
}

/* What must find room is tried by itself, when it is next. */
static void refuse_queued(struct disk_log *log)
{
    struct record_list failing = STAILQ_HEAD_INITIALIZER(failing);
    struct log_record *record = STAILQ_FIRST(&log->queued);
    bool use_reserve = record->use_reserve;
    while (record != NULL && record->use_reserve == use_reserve) {
        log->queued_blocks -= log_blocks_left(record);
        STAILQ_REMOVE_HEAD(&log->queued, link);
        STAILQ_INSERT_TAIL(&failing, record, link);
        record = STAILQ_FIRST(&log->queued);
    }
    log->is_full = log->is_exhausted = log->wants_extent = false;
    log->again = true;
    fail_all(&failing, -PLX_EFULL);
}

static void send_queued(struct disk_log *log)
{
    while (may_seal(log)) {
        struct batch *batch = batch_seal(log);
        if (batch == NULL)
            return;
        TAILQ_INSERT_TAIL(&log->inflight, batch, link);
        log->inflight_count++;
        batch_place(batch);
        trace(log->loop, "log seal", log->disk, batch->number, batch->blocks);
        if (log->sealed_fn != NULL)
            log->sealed_fn(log->sealed_arg, log->disk, batch->pieces, batch->piece_count,
                           batch->number);
        batch_submit(batch);
    }
    if (is_refused(log))
        refuse_queued(log);
}

static void free_orphans(struct disk_log *log)
{
    struct batch *batch, *next;
    TAILQ_FOREACH_SAFE(batch, &log->orphans, link, next)
    {
        if (batch->owed > 0)
            continue;
        TAILQ_REMOVE(&log->orphans, batch, link);
        batch_free(batch);
    }
}

static void cancel_list(const struct batch_list *batches)
{
    struct batch *batch;
    TAILQ_FOREACH(batch, batches, link)
    {
        if (batch->owed > 0)
            batch_cancel(batch);
    }
}

/* Nobody waits for these answers any more. */
static void cancel_given_up(struct disk_log *log)
{
    log->has_given_up = false;
    cancel_list(&log->moving);
    cancel_list(&log->orphans);
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        bool is_over = tail->phase >= TAIL_DECIDED || log->down != 0;
        if (!is_over || tail->ops == 0)
            continue;
        log_cancel_roll_record(tail);
        log_cancel_syncs(tail);
    }
}

static void advance_once(struct disk_log *log)
{
    if (cluster_state_applied(cluster_state(log->cluster)) != log->applied_seen)
        log_look_at_state(log);
    free_orphans(log);
    if (log->down == 0)
        commit_ready(log);
    bool may_send = log->down == 0 && settle_failures(log);
    if (log->has_given_up)
        cancel_given_up(log);
    if (log->renews && log->ahead_count > 0)
        log_renew(log);
    if (may_send && !log->retry_timer.armed) {
        log->wants_extent = false;
        send_moving(log);
        send_queued(log);
        log_want_extents(log);
    }
    if (log->wants_cleaning)
        log_clean_up(log);
    log_flushes_finish(log); /* the next one may want a round */
    if (log->down == 0)
        log_sync_if_wanted(log);
    if (log->down != 0) {
        fail_queued(log, log->down);
        log_flushes_fail(log, log->down);
    }
    if (log->down != 0 && !log->down_told) {
        log->down_told = true;
        log->callbacks->down(log->callbacks, log->down);
    }
}

void log_advance(struct disk_log *log)
{
    log->again = true;
    if (log->advancing)
        return;
    log->advancing = true;
    while (log->again) {
        log->again = false;
        advance_once(log);
    }
    log->advancing = false;
    log_tick(log);
    assert(log->flushed <= log->placed && log->flushed <= log->committed &&
           log->committed <= log->sealed); /* L1 */
    waitlist_wake_all(&log->changed);
}

uint64_t log_epoch(const struct disk_log *log)
{
    return log->epoch;
}

uint64_t log_last_number(const struct disk_log *log)
{
    return log->sealed;
}

uint64_t log_committed_number(const struct disk_log *log)
{
    return log->committed;
}

uint64_t log_flushed_number(const struct disk_log *log)
{
    return log->flushed;
}

uint64_t log_retained_bytes(const struct disk_log *log)
{
    return log->retained_bytes;
}

uint64_t log_appended_bytes(const struct disk_log *log)
{
    return log->appended_bytes;
}
