/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Take-over, step 4: what was found on some members only is written again, to extents of
 * the new epoch, so that it is on all of their members and flushed before the cut.
 *
 * Happy path: the extents that hold these batches are walked once for an index of their
 * headers. Then batch after batch is read, checked, and handed to the log as after a
 * forced roll: same number, same bytes, new header. Flushes keep the memory bounded.
 *
 * What can fail: a copy cannot be read, or is rotten: the next one that has the batch is
 * tried. No extent can be opened, or the log goes down: the take-over fails, and what was
 * written is one more copy of old batches, which the next take-over finds.
 *
 * What these batches hold was told to nobody in this process; the disk hears of them by
 * the replay, at their new places.
 */
#include "replication/take_over_internal.h"

struct indexed {
    uint64_t number;
    uint32_t block, blocks; /* header and data */
};

struct again {
    struct take_over *over;
    const struct plan_extent *extent; /* that is indexed now */
    struct indexed *index;
    uint32_t count, cap;
};

/* --- the index of one extent --- */

static int index_header(void *arg, const struct header *head, const struct entry *entries,
                        const struct roll_entry *rolls)
{
    struct again *again = arg;
    (void)rolls;
    if (head->kind != HEADER_BATCH || head->number <= again->over->found_flushed)
        return 0;
    if (again->count == again->cap) {
        uint32_t cap = again->cap * 2 + 64;
        struct indexed *index = realloc(again->index, cap * sizeof *index);
        if (index == NULL)
            return -ENOMEM;
        again->index = index;
        again->cap = cap;
    }
    again->index[again->count++] =
        (struct indexed){.number = head->number,
                         .block = head->block,
                         .blocks = 1 + header_data_blocks(entries, head->count)};
    return 0;
}

/* Of a number that lies in several extents the last one counts, as in a replay. */
static const struct plan_extent *extent_with(const struct take_over *over,
                                             uint64_t number)
{
    for (uint32_t i = over->plan.extent_count; i-- > 0;) {
        const struct plan_extent *extent = &over->extents[i];
        if (!extent->is_skipped && extent->first != 0 && extent->first <= number &&
            number <= extent->last)
            return extent;
    }
    return NULL;
}

static bool copy_has(const struct plan_copy *copy, uint64_t number)
{
    return !copy->is_damaged && !copy->is_broken && copy->first != 0 &&
           copy->first <= number && number <= copy->last;
}

static async int index_extent_once(struct again *again, const struct plan_extent *extent,
                                   uint64_t number)
{
    struct take_over *over = again->over;
    int rc = -PLX_EDAMAGED, silence = 0;
    for (uint32_t i = 0; rc != 0 && i < extent->copy_count; i++) {
        struct replica *member =
            over->log->directory->find(over->log->directory, extent->copies[i].node);
        if (member == NULL || !copy_has(&extent->copies[i], number))
            continue;
        again->count = 0;
        rc = member->ops->walk_headers(member, extent->extent, index_header, again, NULL);
        silence = log_is_silence(rc) ? rc : silence;
    }
    again->extent = rc == 0 ? extent : NULL;
    return rc != 0 && silence != 0 ? silence : rc;
}

static async int index_extent(struct again *again, const struct plan_extent *extent,
                              uint64_t number)
{
    uint64_t until_ns = 0;
    int rc;
    do
        rc = index_extent_once(again, extent, number);
    while (rc != 0 && log_may_ask_again(again->over->log, rc, &until_ns));
    return rc;
}

static const struct indexed *find_indexed(const struct again *again, uint64_t number)
{
    for (uint32_t i = 0; i < again->count; i++) {
        if (again->index[i].number == number)
            return &again->index[i];
    }
    return NULL;
}

/* --- one batch --- */

struct batch_read {
    struct replica_read read;
    struct iovec iov;
    struct event over;
};

static void read_done(struct replica_read *read)
{
    event_set(&container_of(read, struct batch_read, read)->over);
}

static async int read_blocks(struct replica *member, struct address address,
                             uint32_t count, void *ret)
{
    struct batch_read batch = {.iov = {.iov_base = ret, .iov_len = count * BLOCK_SIZE}};
    event_init(&batch.over);
    batch.read.store = (struct store_read){
        .address = address, .count = count, .iov = &batch.iov, .iov_count = 1};
    batch.read.done = read_done;
    member->ops->read(member, &batch.read);
    event_wait(&batch.over);
    return batch.read.result;
}

/* The batch is what its header says, block for block. */
static int check_batch(const struct take_over *over, const uint8_t *bytes,
                       const struct indexed *at, struct header *ret_head)
{
    struct entry *entries = over->log->entries;
    int rc = header_decode(bytes, ret_head, entries);
    if (rc != 0)
        return rc;
    if (ret_head->number != at->number || ret_head->disk != over->log->disk ||
        1 + header_data_blocks(entries, ret_head->count) != at->blocks)
        return -PLX_EDAMAGED;
    const uint8_t *block = bytes + BLOCK_SIZE;
    for (uint32_t i = 0; i < ret_head->count; i++) {
        if (!entry_has_block(entries[i].kind))
            continue;
        if (crc32c(block, BLOCK_SIZE) != entries[i].crc)
            return -PLX_ECHECKSUM;
        block += BLOCK_SIZE;
    }
    return 0;
}

/* Header and data in one buffer, from whichever copy has them whole. */
static async int load_once(struct again *again, const struct indexed *at,
                           struct buffer *buffer, struct header *ret_head)
{
    struct take_over *over = again->over;
    const struct plan_extent *extent = again->extent;
    int rc = -PLX_EDAMAGED, silence = 0;
    for (uint32_t i = 0; rc != 0 && i < extent->copy_count; i++) {
        struct replica *member =
            over->log->directory->find(over->log->directory, extent->copies[i].node);
        if (member == NULL || !copy_has(&extent->copies[i], at->number))
            continue;
        rc = read_blocks(member, address_plus(extent->extent, at->block), at->blocks,
                         buffer->data);
        if (rc == 0)
            rc = check_batch(over, buffer->data, at, ret_head);
        silence = log_is_silence(rc) ? rc : silence;
    }
    return rc != 0 && silence != 0 ? silence : rc;
}

static async int load(struct again *again, const struct indexed *at,
                      struct buffer *buffer, struct header *ret_head)
{
    uint64_t until_ns = 0;
    int rc;
    do
        rc = load_once(again, at, buffer, ret_head);
    while (rc != 0 && log_may_ask_again(again->over->log, rc, &until_ns));
    return rc;
}

static async struct buffer *wait_for_buffer(struct disk_log *log, uint32_t blocks)
{
    struct buffer *buffer = NULL;
    while (log->down == 0) {
        buffer = buffer_create(log->buffers, (uint64_t)blocks * BLOCK_SIZE);
        if (buffer != NULL)
            break;
        task_sleep_ns(RETRY_NS);
    }
    return buffer;
}

static async int write_one(struct again *again, uint64_t number)
{
    struct disk_log *log = again->over->log;
    const struct indexed *at = find_indexed(again, number);
    struct header head;
    if (at == NULL)
        return -PLX_EDAMAGED; /* a copy has less than it said */
    struct buffer *buffer = wait_for_buffer(log, at->blocks);
    if (buffer == NULL)
        return log->down;
    int rc = load(again, at, buffer, &head);
    if (rc == 0)
        rc = log->down; /* the lease may be another's by now */
    if (rc == 0 && !batch_restore(log, &head, buffer, at->blocks - 1))
        rc = -ENOMEM;
    buffer_put(buffer);
    if (rc == 0)
        log_kick(log);
    return rc;
}

/* --- all of them --- */

static async int flush_all(struct take_over *over)
{
    struct disk_log *log = over->log;
    int rc = log_flush_all(log, TAKE_OVER_WAIT_NS);
    bool is_stalled = rc != 0 && log->stall.code != 0;
    if (rc != 0)
        err_set(over->err, rc, "writing batches again up to %llu: %s%s%s",
                (unsigned long long)over->plan.last, err_text(rc),
                is_stalled ? ": " : "", is_stalled ? log->stall.text : "");
    return rc;
}

static async int write_all(struct again *again)
{
    struct take_over *over = again->over;
    struct disk_log *log = over->log;
    int rc = 0;
    for (uint64_t n = over->found_flushed + 1; rc == 0 && n <= over->plan.last; n++) {
        const struct plan_extent *extent = extent_with(over, n);
        assert(extent != NULL); /* the plan found no gap */
        /* Another copy may go on where the one that was walked ends. */
        if (extent != again->extent || find_indexed(again, n) == NULL)
            rc = index_extent(again, extent, n);
        if (rc == 0 && log->retained_bytes >= TAKE_OVER_BYTES)
            rc = flush_all(over);
        if (rc == 0)
            rc = write_one(again, n);
        if (rc != 0 && over->err->code == 0)
            err_set(over->err, rc, "extent %llx: writing batch %llu again: %s",
                    (unsigned long long)extent->extent.v, (unsigned long long)n,
                    err_text(rc));
    }
    return rc == 0 ? flush_all(over) : rc;
}

async int take_over_write_again(struct take_over *over)
{
    struct disk_log *log = over->log;
    struct again again = {.over = over};
    log->sealed = log->committed = log->placed = log->flushed = over->found_flushed;
    log->down_told = true; /* log_open tells */
    trace(log->loop, "log again", log->disk, over->found_flushed, over->plan.last);
    int rc = write_all(&again);
    free(again.index);
    return rc;
}
