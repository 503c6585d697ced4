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
 * Rolls that lead to no flush are spaced out; after some the log gives up.
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
        tail->log->ahead_count--;
    if (tail == tail->log->current)
        tail->log->current = NULL;
    tail->phase = TAIL_DECIDED;
    tail->length = tail->flushed_length;
    tail->last_number = tail->flushed_number;
    tail->needs_flushed = needs_flushed;
    trace(tail->log->loop, "log decide", tail->extent.v, tail->length,
          tail->last_number);
}

/* --- the roll record --- */

static void roll_record_done(struct replica_append *append)
{
    struct roll_op *op = container_of(append, struct roll_op, append);
    struct tail_extent *tail = op->tail;
    assert(tail->ops > 0 && tail->log->owed > 0);
    tail->ops--;
    tail->log->owed--;
    if (append->result == 0)
        tail->roll_acks++;
    else
        log_member_failed(tail, (uint32_t)(op - tail->roll_ops), append->result);
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

static void end_current(struct disk_log *log)
{
    struct tail_extent *tail = log->current;
    log->current = NULL;
    tail->phase = TAIL_ENDED;
    log->slabs_hint = slabs_for(loop_now_ns(log->loop) - tail->begun_ns);
    if (tail->flushed_length == tail->end)
        tail_decide(tail, tail->flushed_number);
}

static struct tail_extent *first_ahead(const struct disk_log *log)
{
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase == TAIL_AHEAD)
            return tail;
    }
    return NULL;
}

/* --- members that fail --- */

/* The list is in order of failure, the latest first. One that only waits for an earlier
 * append, or is fenced, has not failed. */
void log_member_failed(struct tail_extent *tail, uint32_t member, int code)
{
    struct disk_log *log = tail->log;
    assert(member < tail->member_count);
    if (log->local != NULL || code == -PLX_ENOTEND || code == -PLX_EEPOCH)
        return;
    uint64_t node = tail->members[member]->node;
    uint32_t at = 0;
    while (at < ARRAY_LEN(log->avoided) - 1 && log->avoided[at].node != node)
        at++;
    memmove(log->avoided + 1, log->avoided, at * sizeof log->avoided[0]);
    log->avoided[0] =
        (struct avoided){.node = node, .until_ns = loop_now_ns(log->loop) + AVOID_NS};
}

static uint32_t list_avoided(const struct disk_log *log, uint64_t ret_nodes[REPLICAS_MAX])
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < ARRAY_LEN(log->avoided); i++) {
        const struct avoided *avoided = &log->avoided[i];
        if (avoided->node != 0 && avoided->until_ns > loop_now_ns(log->loop))
            ret_nodes[count++] = avoided->node;
    }
    return count;
}

struct chosen log_choose(struct disk_log *log, uint64_t ret_avoid[REPLICAS_MAX],
                         uint32_t *ret_avoid_count)
{
    struct replica_directory *from = log->directory;
    uint32_t avoid_count = list_avoided(log, ret_avoid);
    struct chosen chosen = from->choose(from, log->disk, ret_avoid, avoid_count);
    while (chosen.count == 0 && avoid_count > 0)
        chosen = from->choose(from, log->disk, ret_avoid, --avoid_count);
    *ret_avoid_count = avoid_count;
    return chosen;
}

static bool has_any_of(const struct tail_extent *tail, const uint64_t *nodes,
                       uint32_t count)
{
    for (uint32_t i = 0; i < tail->member_count; i++) {
        for (uint32_t j = 0; j < count; j++) {
            if (tail->members[i]->node == nodes[j])
                return true;
        }
    }
    return false;
}

/* An extent with a silent member would only lead to the next roll. */
static void skip_ahead(struct disk_log *log)
{
    struct tail_extent *tail;
    uint64_t avoid[REPLICAS_MAX];
    uint32_t count;
    (void)log_choose(log, avoid, &count);
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase == TAIL_AHEAD && has_any_of(tail, avoid, count))
            tail_decide(tail, 0);
    }
}

bool tail_failure_is_final(const struct tail_extent *tail, int code)
{
    return code == -PLX_EEPOCH || (code == -PLX_EFAILED && tail->member_count == 1);
}

bool log_room_for(struct disk_log *log, uint32_t blocks)
{
    if (log->current != NULL && log->current->end + 1 + blocks <= EXTENT_BLOCKS)
        return true;
    struct tail_extent *next = first_ahead(log);
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
        end_current(log);
    log->current = next;
    log->ahead_count--;
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
        first_ahead(log) == NULL || log->current->end <= 1)
        return ADDRESS_NULL;
    struct address extent = log->current->extent;
    end_current(log);
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

void log_roll_forced(struct disk_log *log, int cause)
{
    if (++log->fruitless_rolls > FRUITLESS_ROLLS_MAX) {
        log_go_down(log, cause);
        return;
    }
    log_warning(log->loop, "disk %llu: %s: the log rolls on from batch %llu",
                (unsigned long long)log->disk, err_text(cause),
                (unsigned long long)log->flushed);
    trace(log->loop, "log forced roll", log->disk, log->flushed, log->sealed);
    log_round_void(log);
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase == TAIL_CURRENT || tail->phase == TAIL_ENDED)
            tail_decide(tail, log->sealed);
    }
    skip_ahead(log);
    gather_moving(log);
    if (log->fruitless_rolls > 1)
        timer_start(log->loop, &log->retry_timer,
                    ROLL_BACKOFF_NS << (log->fruitless_rolls - 2));
    log_kick(log);
}
