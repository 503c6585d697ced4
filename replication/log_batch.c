/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batches: from queued records to a header and slices on their way to all members.
 *
 * Happy path: batch_peek looks how much the next batch will hold; batch_seal takes that
 * from the queue, checksums each block once, and gives it a number; batch_place fixes its
 * addresses and builds the header; batch_submit sends it to every member at once.
 *
 * What can fail: there is no memory for the batch or its header: the queue waits for the
 * pool. Members refuse it for lack of space: batch_withdraw fails its records, puts those
 * of later batches back at the head of the queue, and the numbers are used again.
 *
 * After a forced roll a batch goes on elsewhere while members may still read its memory:
 * those behind the network its header, until that is sent or forgotten; a store here all
 * of it, until it answers. So it gets a new header, or is left behind for a copy (L10).
 *
 * On close batches whose answers are still owed stay allocated until the last one came.
 */
#include "replication/disk_log_internal.h"

static const uint32_t CLASS_PIECES[BATCH_CLASSES] = {8, BATCH_BLOCKS_BUSY + 1,
                                                     BATCH_BLOCKS};

/* --- memory --- */

static size_t class_bytes(unsigned class)
{
    size_t n = CLASS_PIECES[class];
    return sizeof(struct batch) +
           n * (sizeof(struct log_piece) + sizeof(struct piece_owner) +
                sizeof(struct slice) + sizeof(uint32_t)) +
           sizeof(struct slice);
}

static unsigned class_of(uint32_t entries)
{
    unsigned class = 0;
    while (CLASS_PIECES[class] < entries)
        class++;
    assert(class < BATCH_CLASSES);
    return class;
}

static struct batch *batch_alloc(struct disk_log *log, unsigned class)
{
    struct idle_batch *idle = SLIST_FIRST(&log->idle[class]);
    struct batch *batch = (void *)idle;
    if (idle != NULL) {
        SLIST_REMOVE_HEAD(&log->idle[class], link);
        log->idle_count[class]--;
        log->budget->idle_bytes -= class_bytes(class);
    } else {
        batch = malloc(class_bytes(class));
    }
    if (batch == NULL)
        return NULL;
    uint32_t n = CLASS_PIECES[class];
    *batch = (struct batch){.log = log, .class = class};
    batch->pieces = (void *)(batch + 1);
    batch->owners = (void *)(batch->pieces + n);
    batch->slices = (void *)(batch->owners + n);
    batch->crcs = (void *)(batch->slices + n + 1);
    return batch;
}

void batch_free(struct batch *batch)
{
    struct disk_log *log = batch->log;
    unsigned class = batch->class;
    assert(batch->owed == 0); /* L10 */
    for (uint32_t i = 0; i < batch->slice_count; i++)
        buffer_put(batch->slices[i].buffer);
    if (log->idle_count[class] >= BATCH_IDLE_MAX ||
        log->budget->idle_bytes + class_bytes(class) > BATCH_IDLE_BYTES_TOTAL) {
        free(batch);
        return;
    }
    log->budget->idle_bytes += class_bytes(class);
    struct idle_batch *idle = (void *)batch;
    SLIST_INSERT_HEAD(&log->idle[class], idle, link);
    log->idle_count[class]++;
}

void batch_idle_free(struct disk_log *log)
{
    for (unsigned class = 0; class < BATCH_CLASSES; class++) {
        struct idle_batch *idle;
        while ((idle = SLIST_FIRST(&log->idle[class])) != NULL) {
            SLIST_REMOVE_HEAD(&log->idle[class], link);
            log->budget->idle_bytes -= class_bytes(class);
            free(idle);
        }
        log->idle_count[class] = 0;
    }
}

void batch_release(struct batch *batch)
{
    struct disk_log *log = batch->log;
    assert(log->retained_bytes >= batch->bytes); /* L7 */
    log->retained_bytes -= batch->bytes;
    assert(log->budget->used_bytes >= batch->bytes);
    log->budget->used_bytes -= batch->bytes;
    waitlist_wake_all(&log->budget->waiting);
    if (batch->owed > 0)
        TAILQ_INSERT_TAIL(&log->orphans, batch, link);
    else
        batch_free(batch);
}

/* --- sealing --- */

/* What of the queue's head goes into one batch. */
struct share {
    uint32_t blocks;  /* data blocks */
    uint32_t entries; /* blocks and intervals */
};

uint64_t log_blocks_left(const struct log_record *record)
{
    return entry_has_block(record->kind) ? record->count - record->sealed : 0;
}

static uint64_t entries_left(const struct log_record *record)
{
    return entry_has_block(record->kind) ? record->count - record->sealed : 1;
}

/* A long batch delays the small records behind it; for a large record each further
 * header is waste. One that needs several batches gets equal parts. */
static uint32_t block_limit(const struct disk_log *log, const struct log_record *head)
{
    uint64_t left = log_blocks_left(head);
    if (left > BATCH_BLOCKS)
        return (uint32_t)div_up_u64(left, div_up_u64(left, BATCH_BLOCKS));
    if (left > BATCH_BLOCKS_BUSY || log->queued_blocks <= BATCH_BLOCKS_BUSY)
        return BATCH_BLOCKS;
    return BATCH_BLOCKS_BUSY;
}

static bool same_header(const struct log_record *a, const struct log_record *b)
{
    return a->generation == b->generation && a->checkpoint == b->checkpoint &&
           a->use_reserve == b->use_reserve;
}

/* Only the first record of a batch may be split. */
static struct share share_of(const struct disk_log *log)
{
    const struct log_record *head = STAILQ_FIRST(&log->queued);
    uint32_t limit = block_limit(log, head);
    struct share share = {.blocks = (uint32_t)min_u64(log_blocks_left(head), limit),
                          .entries = (uint32_t)min_u64(entries_left(head), limit)};
    const struct log_record *record = head;
    if (log_blocks_left(head) > limit)
        return share;
    while (record->kind != ENTRY_MARKER &&
           (record = STAILQ_NEXT(record, link)) != NULL) {
        if (!same_header(head, record) ||
            share.blocks + log_blocks_left(record) > limit ||
            share.entries + entries_left(record) > BATCH_BLOCKS)
            break;
        share.blocks += (uint32_t)log_blocks_left(record);
        share.entries += (uint32_t)entries_left(record);
    }
    return share;
}

uint32_t batch_peek(const struct disk_log *log)
{
    return share_of(log).blocks;
}

static void checksum(struct batch *batch, struct log_piece *piece, struct slice data)
{
    uint32_t *crcs = batch->crcs + batch->crc_count;
    for (uint32_t i = 0; i < piece->count; i++)
        crcs[i] = crc32c(slice_data(data) + (size_t)i * BLOCK_SIZE, BLOCK_SIZE);
    piece->crcs = crcs;
    batch->crc_count += (uint32_t)piece->count;
}

static void describe(struct batch *batch, const struct log_piece *piece)
{
    struct entry *entries = batch->log->entries;
    struct entry entry = {.kind = piece->kind, .key = piece->key, .aux = piece->aux};
    if (!entry_has_block(piece->kind)) {
        entry.count = piece->count;
        entries[batch->entry_count++] = entry;
        return;
    }
    entry.count = 1;
    for (uint32_t i = 0; i < piece->count; i++, entry.key++) {
        entry.crc = piece->crcs[i];
        entries[batch->entry_count++] = entry;
    }
}

/* Up to `blocks` blocks of the record, or all of an interval, become a piece. */
static uint32_t add_piece(struct batch *batch, struct log_record *record, uint32_t blocks)
{
    bool has_block = entry_has_block(record->kind);
    uint64_t count =
        has_block ? min_u64(record->count - record->sealed, blocks) : record->count;
    struct log_piece *piece = &batch->pieces[batch->piece_count];
    *piece = (struct log_piece){.kind = record->kind,
                                .key = record->key + record->sealed,
                                .count = count,
                                .aux = record->aux,
                                .generation = record->generation,
                                .checkpoint = record->checkpoint,
                                .address = ADDRESS_NULL,
                                .number = batch->number};
    if (has_block) {
        struct slice data = {
            .buffer = buffer_get(record->data.buffer),
            .offset = record->data.offset + (uint32_t)(record->sealed * BLOCK_SIZE),
            .len = (uint32_t)(count * BLOCK_SIZE)};
        batch->slices[batch->slice_count++] = data;
        checksum(batch, piece, data);
        batch->blocks += (uint32_t)count;
    }
    record->sealed += count;
    batch->owners[batch->piece_count++] =
        (struct piece_owner){.record = record, .last = record->sealed == record->count};
    describe(batch, piece);
    return has_block ? (uint32_t)count : 0;
}

/* The batch is retained from here on. */
static void account(struct disk_log *log, struct batch *batch)
{
    batch->bytes =
        (uint64_t)(batch->blocks + 1) * BLOCK_SIZE + class_bytes(batch->class);
    log->retained_bytes += batch->bytes;
    log->budget->used_bytes += batch->bytes;
}

struct batch *batch_seal(struct disk_log *log)
{
    const struct log_record *head = STAILQ_FIRST(&log->queued);
    struct share share = share_of(log);
    struct buffer *header = buffer_create(log->buffers, BLOCK_SIZE);
    if (header == NULL) {
        log_wait_buffer(log);
        return NULL;
    }
    struct batch *batch = batch_alloc(log, class_of(share.entries));
    if (batch == NULL) {
        buffer_put(header);
        timer_start(log->loop, &log->retry_timer, RETRY_NS);
        return NULL;
    }
    batch->number = ++log->sealed;
    batch->generation = head->generation;
    batch->checkpoint = head->checkpoint;
    batch->use_reserve = head->use_reserve;
    batch->slices[batch->slice_count++] =
        (struct slice){.buffer = header, .offset = 0, .len = BLOCK_SIZE};
    uint32_t room = share.blocks;
    while (batch->entry_count < share.entries) {
        struct log_record *record = STAILQ_FIRST(&log->queued);
        room -= add_piece(batch, record, room);
        if (record->sealed == record->count)
            STAILQ_REMOVE_HEAD(&log->queued, link);
    }
    assert(room == 0 && batch->entry_count == share.entries);
    account(log, batch);
    log->queued_blocks -= batch->blocks;
    return batch;
}

/* Its pieces belong to no record and are told to nobody. */
bool batch_restore(struct disk_log *log, const struct header *head,
                   struct buffer *buffer, uint32_t blocks)
{
    assert(head->number == log->sealed + 1);
    struct batch *batch = batch_alloc(log, class_of(1));
    if (batch == NULL)
        return false;
    batch->number = ++log->sealed;
    batch->generation = head->generation;
    batch->checkpoint = head->checkpoint;
    batch->use_reserve = true;
    batch->is_again = true;
    batch->blocks = blocks;
    batch->entry_count = head->count;
    batch->slices[batch->slice_count++] =
        (struct slice){.buffer = buffer_get(buffer), .offset = 0, .len = BLOCK_SIZE};
    if (blocks > 0)
        batch->slices[batch->slice_count++] =
            (struct slice){.buffer = buffer_get(buffer),
                           .offset = BLOCK_SIZE,
                           .len = blocks * (uint32_t)BLOCK_SIZE};
    account(log, batch);
    TAILQ_INSERT_TAIL(&log->moving, batch, link);
    return true;
}

/* --- placing and sending --- */

/* The entries of a batch that is placed again are in its old header. */
static void recall_entries(struct batch *batch)
{
    struct header head;
    int rc = header_decode(slice_data(batch->slices[0]), &head, batch->log->entries);
    assert(rc == 0 && head.number == batch->number);
    (void)rc;
}

void batch_place(struct batch *batch)
{
    struct disk_log *log = batch->log;
    struct tail_extent *tail = log->current;
    assert(tail->end + 1 + batch->blocks <= EXTENT_BLOCKS); /* L4 L5 */
    assert(batch->owed == 0);                               /* L10 */
    if (batch->is_again)
        recall_entries(batch);
    batch->tail = tail;
    batch->block = tail->end;
    batch->previous_crc = tail->last_crc;
    batch->acks = 0;
    batch->result = 0;
    uint32_t block = tail->end + 1;
    for (uint32_t i = 0; i < batch->piece_count; i++) {
        struct log_piece *piece = &batch->pieces[i];
        if (piece->crcs == NULL)
            continue;
        piece->address = address_plus(tail->extent, block);
        block += (uint32_t)piece->count;
    }
    struct header head = {.kind = HEADER_BATCH,
                          .cluster = log->uid,
                          .disk = log->disk,
                          .extent = tail->extent,
                          .block = batch->block,
                          .epoch = log->epoch,
                          .number = batch->number,
                          .generation = batch->generation,
                          .previous_crc = batch->previous_crc,
                          .nonce = tail->nonce,
                          .committed = log->committed,
                          .flushed = log->flushed,
                          .checkpoint = batch->checkpoint,
                          .count = batch->entry_count};
    tail->last_crc = header_encode(&head, log->entries, slice_data(batch->slices[0]));
    tail->end = batch->block + 1 + batch->blocks;
    assert(batch->piece_count == 0 || block == tail->end);
    log->appended_bytes += (uint64_t)(batch->blocks + 1) * BLOCK_SIZE;
}

static void append_done(struct replica_append *append)
{
    struct batch_op *op = container_of(append, struct batch_op, append);
    struct batch *batch = op->batch;
    struct disk_log *log = batch->log;
    uint32_t member = (uint32_t)(op - batch->ops);
    assert(batch->owed > 0 && batch->tail->ops > 0 && log->owed > 0);
    batch->owed--;
    batch->answers |= 1U << member;
    log->owed--;
    if (--batch->tail->ops == 0 && batch->tail->phase >= TAIL_DECIDED)
        log->wants_cleaning = true;
    if (append->result == 0)
        batch->acks++;
    else if (append->result != -PLX_EFULL) /* others may be full, too */
        log_member_failed(batch->tail, member, append->result);
    if (batch->result == 0)
        batch->result = append->result;
    log_advance(log);
}

/* What was acknowledged must find room. */
static bool may_use_reserve(const struct batch *batch)
{
    if (planted(PLANT_AGAIN_NO_RESERVE))
        return batch->use_reserve && !batch->is_again;
    return batch->use_reserve || batch->is_again;
}

void batch_submit(struct batch *batch)
{
    struct disk_log *log = batch->log;
    struct tail_extent *tail = batch->tail;
    uint32_t count = tail->member_count;
    batch->owed += count;
    batch->answers = 0;
    batch->sent_ns = loop_now_ns(log->loop);
    tail->ops += count;
    log->owed += count;
    for (uint32_t i = 0; i < count; i++) {
        struct batch_op *op = &batch->ops[i];
        *op = (struct batch_op){
            .batch = batch,
            .append.done = append_done,
            .append.store = {.extent = tail->extent,
                             .epoch = tail->epoch,
                             .block = batch->block,
                             .slices = batch->slices,
                             .slice_count = batch->slice_count,
                             .use_reserve = may_use_reserve(batch)}};
        tail->members[i]->ops->append(tail->members[i], &op->append);
    }
}

void batch_cancel(struct batch *batch)
{
    struct tail_extent *tail = batch->tail;
    for (uint32_t i = 0; batch->owed > 0 && i < tail->member_count; i++) {
        struct replica *member = tail->members[i];
        if ((batch->answers & 1U << i) == 0)
            member->ops->cancel_append(member, &batch->ops[i].append);
    }
}

/* --- going on elsewhere --- */

/* All but what the members know of it. */
static void copy_batch(struct batch *to, struct batch *from)
{
    to->number = from->number;
    to->generation = from->generation;
    to->checkpoint = from->checkpoint;
    to->use_reserve = from->use_reserve;
    to->blocks = from->blocks;
    to->entry_count = from->entry_count;
    to->bytes = from->bytes;
    to->home = from->home;
    to->is_again = from->is_again;
    to->tail = from->tail;
    to->piece_count = from->piece_count;
    to->slice_count = from->slice_count;
    to->crc_count = from->crc_count;
    memcpy(to->crcs, from->crcs, from->crc_count * sizeof *from->crcs);
    for (uint32_t i = 0; i < from->piece_count; i++) {
        to->pieces[i] = from->pieces[i];
        if (from->pieces[i].crcs != NULL)
            to->pieces[i].crcs = to->crcs + (from->pieces[i].crcs - from->crcs);
        to->owners[i] = from->owners[i];
        from->owners[i].record = NULL;
    }
    for (uint32_t i = 0; i < from->slice_count; i++) {
        to->slices[i] = from->slices[i];
        buffer_get(to->slices[i].buffer);
    }
}

/* What members have begun goes on from the old one's memory. */
static struct batch *leave_behind(struct batch *batch)
{
    struct disk_log *log = batch->log;
    struct batch *copy = batch_alloc(log, batch->class);
    if (copy == NULL) {
        timer_start(log->loop, &log->retry_timer, RETRY_NS);
        return NULL;
    }
    copy_batch(copy, batch);
    TAILQ_INSERT_BEFORE(batch, copy, link);
    TAILQ_REMOVE(&log->moving, batch, link);
    TAILQ_INSERT_TAIL(&log->orphans, batch, link);
    return copy;
}

struct batch *batch_renew(struct batch *batch)
{
    struct disk_log *log = batch->log;
    struct slice *old = &batch->slices[0];
    assert(batch->is_again);
    if (batch->tail == NULL || (batch->owed == 0 && old->buffer->refs == 1))
        return batch;
    struct buffer *header = buffer_create(log->buffers, BLOCK_SIZE);
    if (header == NULL) {
        log_wait_buffer(log);
        /* What holds the old one may let it go, which nobody says. */
        timer_start(log->loop, &log->retry_timer, ROLL_BACKOFF_NS);
        return NULL;
    }
    memcpy(header->data, slice_data(*old), BLOCK_SIZE);
    struct batch *renewed = batch->owed > 0 ? leave_behind(batch) : batch;
    if (renewed == NULL) {
        buffer_put(header);
        return NULL;
    }
    buffer_put(renewed->slices[0].buffer);
    renewed->slices[0] = (struct slice){.buffer = header, .len = BLOCK_SIZE};
    return renewed;
}

/* --- taking back --- */

static void disown(struct batch *from, const struct log_record *record)
{
    for (struct batch *batch = from; batch != NULL; batch = TAILQ_NEXT(batch, link)) {
        for (uint32_t i = 0; i < batch->piece_count; i++) {
            if (batch->owners[i].record == record)
                batch->owners[i].record = NULL;
        }
    }
}

/* The record will hear no more: of its pieces before this batch, in it, and behind. */
static void forget_record(struct disk_log *log, struct batch *from,
                          const struct log_record *record)
{
    disown(TAILQ_FIRST(&log->inflight), record);
    disown(from, record);
    if (STAILQ_FIRST(&log->queued) == record) {
        log->queued_blocks -= log_blocks_left(record);
        STAILQ_REMOVE_HEAD(&log->queued, link);
    }
}

/* Back to the head of the queue, last piece first. */
static void unseal(struct disk_log *log, struct batch *batch)
{
    for (uint32_t i = batch->piece_count; i-- > 0;) {
        struct log_record *record = batch->owners[i].record;
        if (record == NULL)
            continue;
        record->sealed -= batch->pieces[i].count;
        if (entry_has_block(record->kind))
            log->queued_blocks += batch->pieces[i].count;
        if (STAILQ_FIRST(&log->queued) != record)
            STAILQ_INSERT_HEAD(&log->queued, record, link);
    }
}

static void fail_records(struct disk_log *log, struct batch *batch, int code)
{
    for (uint32_t i = 0; i < batch->piece_count; i++) {
        struct log_record *record = batch->owners[i].record;
        if (record == NULL)
            continue;
        forget_record(log, batch, record); /* L9 */
        buffer_put(record->data.buffer);
        record->result = code;
        record->callbacks->failed(record->callbacks, record, code);
    }
}

void batch_withdraw(struct disk_log *log, struct batch *from)
{
    struct tail_extent *tail = from->tail;
    struct batch_list taken = TAILQ_HEAD_INITIALIZER(taken);
    struct batch *batch, *previous;
    log->appended_bytes -= (uint64_t)(tail->end - from->block) * BLOCK_SIZE;
    tail->end = from->block;
    tail->last_crc = from->previous_crc;
    log->sealed = from->number - 1;
    for (batch = TAILQ_LAST(&log->inflight, batch_list);; batch = previous) {
        previous = TAILQ_PREV(batch, batch_list, link);
        assert(batch->owed == 0 && batch->acks == 0 && batch->tail == tail);
        TAILQ_REMOVE(&log->inflight, batch, link);
        log->inflight_count--;
        TAILQ_INSERT_HEAD(&taken, batch, link);
        if (batch == from)
            break;
    }
    TAILQ_FOREACH_REVERSE(batch, &taken, batch_list, link)
    {
        if (batch != from)
            unseal(log, batch);
    }
    /* A record that goes on behind `from` was put back; its rest is forgotten. */
    fail_records(log, from, -PLX_EFULL);
    while ((batch = TAILQ_FIRST(&taken)) != NULL) {
        TAILQ_REMOVE(&taken, batch, link);
        batch_release(batch);
    }
}
