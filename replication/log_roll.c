/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rolls: the log goes on in the next extent.
 *
 * Happy path, the planned roll: a batch does not fit any more; the extent ends, the next
 * one that was opened ahead becomes current and gets its roll record as first block. The
 * old one's final length is decided when all of it is flushed.
 *
 * What can fail: a member. The forced roll decides at once that every extent without a
 * decided length ends where it is flushed, and all that lies above is submitted again, in
 * order, with its old numbers and bytes, to the next extent. Nobody is told an address
 * twice: committed blocks are reported as moved when they lie safely in their new place.
 * Rolls that lead to no flush are spaced out; if there are no other members to go to,
 * the log gives up after some.
 *
 * On close the current extent is decided like a full one, at what is flushed: all of it.
 */
#include "replication/disk_log_internal.h"

struct tail_extent *tail_create(struct disk_log *log, struct address extent,
                                uint64_t epoch)
{
    struct tail_extent *tail = calloc(1, sizeof *tail);
    if (tail == NULL)
        return NULL;
    tail->log = log;
    tail->extent = extent;
    tail->epoch = epoch;
    tail->phase = TAIL_OPENING;
    tail->proposer = PROPOSER_NONE;
    TAILQ_INSERT_TAIL(&log->tails, tail, link);
    log->tail_count++;
    return tail;
}

void tail_destroy(struct tail_extent *tail)
{
    assert(tail->ops == 0 && tail != tail->log->current);
    TAILQ_REMOVE(&tail->log->tails, tail, link);
    tail->log->tail_count--;
    buffer_put(tail->roll_header);
    free(tail);
}

void tail_decide(struct tail_extent *tail, uint64_t needs_flushed)
{
    assert(tail->phase < TAIL_DECIDED); /* L6 */
    if (tail->phase == TAIL_AHEAD)
        tail->log->ahead_count -= !tail->is_reserve;
    if (tail == tail->log->current)
        tail->log->current = NULL;
    tail->phase = TAIL_DECIDED;
    tail->length = tail->flushed_length;
    tail->last_number = tail->flushed_number;
    tail->needs_flushed = needs_flushed;
    tail->log->has_given_up |= tail->ops > 0;
    trace(tail->log->loop, "log decide", tail->extent.v, tail->length,
          tail->last_number);
}

/* --- the roll record --- */

static void roll_record_done(struct replica_append *append)
{
    struct roll_op *op = container_of(append, struct roll_op, append);
    struct tail_extent *tail = op->tail;
    assert(tail->ops > 0 && tail->log->owed > 0);
    uint32_t member = (uint32_t)(op - tail->roll_ops);
    tail->ops--;
    tail->log->owed--;
    tail->roll_answers |= 1U << member;
    if (append->result == 0)
        tail->roll_acks++;
    else
        log_member_failed(tail, member, append->result);
    if (tail->roll_result == 0)
        tail->roll_result = append->result;
    log_advance(tail->log);
}

/* Names every extent whose length is decided but not yet committed. */
static void encode_roll_record(struct disk_log *log, struct tail_extent *tail)
{
    struct roll_entry entries[ROLL_ENTRIES_MAX];
    uint32_t count = 0;
    const struct tail_extent *other;
    TAILQ_FOREACH(other, &log->tails, link)
    {
        if (other->phase != TAIL_DECIDED)
            continue;
        assert(count < ROLL_ENTRIES_MAX);
        entries[count++] = (struct roll_entry){.extent = other->extent,
                                               .length = other->length,
                                               .last_number = other->last_number};
    }
    struct header head = {.kind = HEADER_ROLL,
                          .cluster = log->uid,
                          .disk = log->disk,
                          .extent = tail->extent,
                          .block = 0,
                          .epoch = log->epoch,
                          .nonce = tail->nonce,
                          .committed = log->committed,
                          .flushed = log->flushed,
                          .count = count};
    tail->last_crc = roll_encode(&head, entries, slice_data(tail->roll_slice));
}

static void send_roll_record(struct tail_extent *tail)
{
    tail->end = 1;
    tail->log->owed += tail->member_count;
    tail->ops += tail->member_count;
    for (uint32_t i = 0; i < tail->member_count; i++) {
        struct roll_op *op = &tail->roll_ops[i];
        *op = (struct roll_op){.tail = tail,
                               .append.done = roll_record_done,
                               .append.store = {.extent = tail->extent,
                                                .epoch = tail->epoch,
                                                .block = 0,
                                                .slices = &tail->roll_slice,
                                                .slice_count = 1,
                                                .use_reserve = true}};
        tail->members[i]->ops->append(tail->members[i], &op->append);
    }
}

void log_cancel_roll_record(struct tail_extent *tail)
{
    for (uint32_t i = 0; tail->roll_header != NULL && i < tail->member_count; i++) {
        struct replica *member = tail->members[i];
        if ((tail->roll_answers & 1U << i) == 0)
            member->ops->cancel_append(member, &tail->roll_ops[i].append);
    }
}

/* --- the planned roll --- */

/* Reserve much at once where an extent fills quickly. */
static uint32_t slabs_for(uint64_t fill_ns)
{
    if (fill_ns < NS_PER_S / 4)
        return EXTENT_SLABS;
    if (fill_ns < NS_PER_S)
        return EXTENT_SLABS / 4;
    return fill_ns < 4 * NS_PER_S ? 4 : 1;
}

void log_end_current(struct disk_log *log)
{
    struct tail_extent *tail = log->current;
    bool has_batches = tail->end > 1;
    log->current = NULL;
    tail->phase = TAIL_ENDED;
    log->slabs_hint = slabs_for(loop_now_ns(log->loop) - tail->begun_ns);
    if (tail->flushed_length == tail->end || !has_batches)
        tail_decide(tail, tail->flushed_number);
}

struct tail_extent *log_first_ahead(const struct disk_log *log, bool use_reserve)
{
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase == TAIL_AHEAD && (use_reserve || !tail->is_reserve))
            return tail;
    }
    return NULL;
}

bool log_room_for(struct disk_log *log, uint32_t blocks, bool use_reserve)
{
    const struct tail_extent *current = log->current;
    if (current != NULL && current->end + 1 + blocks <= EXTENT_BLOCKS &&
        (use_reserve || !current->is_reserve))
        return true;
    struct tail_extent *next = log_first_ahead(log, use_reserve);
    if (next == NULL) {
        log->wants_extent = true;
        return false;
    }
    struct buffer *header = buffer_create(log->buffers, BLOCK_SIZE);
    if (header == NULL) {
        log_wait_buffer(log);
        return false;
    }
    if (log->current != NULL)
        log_end_current(log);
    log->current = next;
    log->ahead_count -= !next->is_reserve;
    next->phase = TAIL_CURRENT;
    next->begun_ns = loop_now_ns(log->loop);
    next->roll_header = header;
    next->roll_slice =
        (struct slice){.buffer = header, .offset = 0, .len = BLOCK_SIZE};
    trace(log->loop, "log roll", log->disk, log->sealed, next->extent.v);
    encode_roll_record(log, next);
    send_roll_record(next);
    return true;
}

struct address log_end_extent(struct disk_log *log)
{
    if (log->down != 0 || log->is_closing || log->current == NULL ||
        log_first_ahead(log, false) == NULL || log->current->end <= 1)
        return ADDRESS_NULL;
    struct address extent = log->current->extent;
    log_end_current(log);
    log_kick(log);
    return extent;
}

/* --- the forced roll --- */

/* In order of number: committed, in flight, and what an earlier roll left over. */
static void gather_moving(struct disk_log *log)
{
    TAILQ_CONCAT(&log->inflight, &log->moving, link);
    if (!planted(PLANT_RETAINED_EARLY))
        TAILQ_CONCAT(&log->moving, &log->committed_list, link);
    TAILQ_CONCAT(&log->moving, &log->inflight, link);
    log->inflight_count = 0;
    log->placed = log->flushed;
    log->unsynced_bytes = 0;
    struct batch *batch;
    TAILQ_FOREACH(batch, &log->moving, link)
    {
        batch->is_again = true;
        /* Not for the extent it is in now, whatever is answered yet. */
        batch->acks = 0;
        batch->result = 0;
    }
}

/* It can but come back to the members that failed, and waiting is of no use. */
static bool is_lonely(const struct disk_log *log)
{
    const struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        bool is_in_use = tail->phase == TAIL_CURRENT || tail->phase == TAIL_ENDED;
        if (is_in_use && tail_has_others(tail))
            return false;
    }
    return true;
}

/* A planted bug: as if all of it was flushed. */
static void leave_unflushed(struct disk_log *log)
{
    struct tail_extent *tail;
    struct batch *batch;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        bool is_in_use = tail->phase == TAIL_CURRENT || tail->phase == TAIL_ENDED;
        if (!is_in_use || tail->placed_end <= tail->flushed_length)
            continue;
        tail->flushed_length = tail->placed_end;
        tail->flushed_number = tail->placed_number;
    }
    log->flushed = log->placed;
    while ((batch = TAILQ_FIRST(&log->committed_list)) != NULL) {
        TAILQ_REMOVE(&log->committed_list, batch, link);
        batch_release(batch);
    }
}

void log_roll_forced(struct disk_log *log, int cause)
{
    if (++log->fruitless_rolls > FRUITLESS_ROLLS_MAX && is_lonely(log)) {
        log_go_down(log, cause);
        return;
    }
    log_warning(log->loop, "disk %llu: %s: the log rolls on from batch %llu",
                (unsigned long long)log->disk, err_text(cause),
                (unsigned long long)log->flushed);
    trace(log->loop, "log forced roll", log->disk, log->flushed, log->sealed);
    log_round_void(log);
    if (planted(PLANT_UNFLUSHED_STAYS))
        leave_unflushed(log);
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase != TAIL_CURRENT && tail->phase != TAIL_ENDED)
            continue;
        tail_decide(tail, log->sealed);
        tail->is_hurried = log->local == NULL;
    }
    log_skip_ahead(log);
    gather_moving(log);
    log->has_given_up = true;
    if (log->fruitless_rolls > 1)
        timer_start(log->loop, &log->retry_timer,
                    ROLL_BACKOFF_NS << min_u32(log->fruitless_rolls - 2,
                                               FRUITLESS_ROLLS_MAX));
    log_kick(log);
}
