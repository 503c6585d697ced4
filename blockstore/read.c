/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads: from the extent's slabs or pieces straight into the caller's vectors.
 *
 * Happy path: one file operation with the caller's own vectors. Blocks that do not lie
 * side by side become several.
 *
 * What can fail: blocks that are not there or no longer live are refused at once; a
 * device error is the read's result. Neither changes anything.
 *
 * A read counts among the extent's readers until it is done, and space is given to
 * others only after those drained who may still be reading it. There are two counts, so
 * that waiting for the reads of before ends while new ones go on.
 *
 * On close nothing is in flight.
 */
#include "blockstore/store_internal.h"

/* --- readers --- */

void reader_left(struct store *store, struct extent *e, uint8_t phase)
{
    assert(e->readers[phase] > 0);
    if (--e->readers[phase] == 0)
        waitlist_wake_all(&store->readers_gone);
}

async void readers_drain(struct store *store, struct extent *e)
{
    assert(e->is_locked); /* so no two drains of an extent overlap */
    uint8_t old = e->phase;
    e->phase ^= 1;
    assert(e->readers[e->phase] == 0); /* E6 */
    while (e->readers[old] > 0)
        waitlist_wait(&store->readers_gone);
}

/* --- reads --- */

void read_finish(struct store *store, struct store_read *read)
{
    reader_left(store, read->cursor.extent, read->cursor.phase);
    read->done(read);
}

static void part_done(struct file_io *io)
{
    struct part *part = container_of(io, struct part, io);
    struct store *store = part->store;
    struct store_read *read = part->of.read;
    if (io->result < 0 && read->result == 0)
        read->result = io->result;
    part_put(store, part);
    if (--read->pending == 0)
        read_finish(store, read);
    parts_resume(store);
}

/* Moves up to `bytes` bytes of the read's vectors into the part; returns how many. */
static uint64_t fill_part(struct store_read *read, uint64_t bytes, struct part *part)
{
    struct store_cursor *cursor = &read->cursor;
    if (cursor->issued == 0 && bytes == (uint64_t)read->count * BLOCK_SIZE &&
        read->iov_count <= FILE_IOV_MAX) {
        part->io.iov = read->iov;
        part->io.iov_count = read->iov_count;
        return bytes;
    }
    uint64_t left = bytes;
    uint32_t count = 0;
    for (; left > 0 && count < FILE_IOV_MAX; count++) {
        const struct iovec *iov = &read->iov[cursor->vector];
        uint64_t n = min_u64(left, iov->iov_len - cursor->vector_at);
        part->iov[count].iov_base = (uint8_t *)iov->iov_base + cursor->vector_at;
        part->iov[count].iov_len = n;
        left -= n;
        cursor->vector_at += (uint32_t)n;
        if (cursor->vector_at == iov->iov_len) {
            cursor->vector++;
            cursor->vector_at = 0;
        }
    }
    part->io.iov = part->iov;
    part->io.iov_count = count;
    return bytes - left;
}

void read_issue(struct store *store, struct store_read *read)
{
    struct store_cursor *cursor = &read->cursor;
    assert(!cursor->is_whole);
    while (cursor->issued < read->count) {
        struct part *part = part_get(store);
        if (part == NULL)
            return;
        uint64_t offset_bytes = 0;
        uint32_t n = extent_place(cursor->extent,
                                  address_block(read->address) + cursor->issued,
                                  read->count - cursor->issued, &offset_bytes);
        if (n == 0) { /* it died, and the rest was moved, while it waited for a part */
            part_put(store, part);
            read->result = -PLX_EDEAD;
            break;
        }
        uint64_t bytes = fill_part(read, (uint64_t)n * BLOCK_SIZE, part);
        cursor->issued += (uint32_t)(bytes / BLOCK_SIZE);
        part->of.read = read;
        part->io.op = FILE_READ;
        part->io.offset_bytes = offset_bytes;
        part->io.done = part_done;
        read->pending++;
        file_submit(store->file, &part->io);
    }
    cursor->is_whole = true;
    read->pending--;
}

static int read_check(const struct extent *e, const struct store_read *read)
{
    uint32_t block = address_block(read->address);
    if (e == NULL || read->count > EXTENT_BLOCKS - block)
        return -PLX_ENOTHERE;
    if (block + read->count > e->length)
        return e->state == EXTENT_FINAL ? -PLX_EDEAD : -PLX_ENOTHERE;
    return extent_is_live(e, block, read->count) ? 0 : -PLX_EDEAD;
}

void store_read(struct store *store, struct store_read *read)
{
    assert(read->count > 0 && read->iov_count > 0);
    struct extent *e = extent_find(&store->extents, address_extent(read->address));
    read->store = store;
    read->result = read_check(e, read);
    if (read->result < 0) {
        STAILQ_INSERT_TAIL(&store->refused_reads, read, waiting);
        answer_soon(store);
        return;
    }
    store->used_ns = loop_now_ns(store->loop);
    metric_add(store->read_count, 1);
    read->pending = 1; /* until all of it was given to the file */
    read->cursor = (struct store_cursor){.extent = e, .phase = e->phase};
    e->readers[e->phase]++;
    if (STAILQ_EMPTY(&store->starved_reads))
        read_issue(store, read);
    if (!read->cursor.is_whole)
        STAILQ_INSERT_TAIL(&store->starved_reads, read, waiting);
    assert(read->pending > 0); /* E3: its blocks have their places */
}

struct waiting_read {
    struct store_read read;
    struct event over;
};

static void waiting_done(struct store_read *read)
{
    event_set(&container_of(read, struct waiting_read, read)->over);
}

async int store_read_wait(struct store *store, struct address address, uint32_t count,
                          void *ret_bytes)
{
    struct iovec iov = {ret_bytes, (size_t)count * BLOCK_SIZE};
    struct waiting_read mine = {.read = {.address = address,
                                         .count = count,
                                         .iov = &iov,
                                         .iov_count = 1,
                                         .done = waiting_done}};
    event_init(&mine.over);
    store_read(store, &mine.read);
    event_wait(&mine.over);
    return mine.read.result;
}
