/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Appends: from the caller's slices straight into the extent's slabs.
 *
 * Happy path: store_append checks place and epoch, sees to space, and gives one vectored
 * write to the file for each stretch of the blocks that is contiguous there (nearly
 * always one). When all of an append's parts are done, its space is durably reserved and
 * all appends before it are through, `length` moves over it and done is called.
 *
 * What can fail: a part fails. Then the extent is cut before that append: it answers the
 * error, whatever is behind it -PLX_ESTOPPED once its own parts have ended, and new ones
 * are refused. What was before it completes as if nothing had happened. If the store
 * fails, all answer -PLX_EFAILED. Appends are never answered out of order, so `length`
 * never has a gap before it.
 *
 * On close nothing is in flight; the extent stays open in its record and the next start
 * stops it at its valid prefix.
 */
#include "blockstore/store_internal.h"

/* --- the end --- */

/* Whether the first append can be answered; sets its result. */
static bool is_through(struct store *store, struct extent_open *open,
                       struct store_append *append)
{
    if (append->pending > 0)
        return false;
    if (append->result == 0 && store->failed)
        append->result = -PLX_EFAILED;
    if (append->result != 0 || append->block + append->blocks <= open->recorded)
        return true;
    if (open->is_recording)
        return false;
    assert(open->cut != 0); /* E4: else a record write would be under way */
    append->result = open->cut;
    return true;
}

void append_finish(struct store *store, struct extent *e)
{
    struct extent_open *open = e->open;
    struct store_append *append;
    while ((append = TAILQ_FIRST(&open->appends)) != NULL &&
           (is_through(store, open, append) ||
            (planted(PLANT_APPEND_UNORDERED) &&
             is_through(store, open, TAILQ_LAST(&open->appends, extent_appends))))) {
        TAILQ_REMOVE(&open->appends, append, link);
        assert(append->block >= e->length);
        if (append->result == 0 && append->block > e->length)
            append->result = -PLX_ESTOPPED; /* one before it has failed */
        if (append->result == 0) {
            bitmap_set(e->headers, append->block); /* E10 */
            e->length += append->blocks;           /* E1 */
            extent_count(&store->extents, e, e->length, e->length);
            sync_mark_dirty(store, e);
        } else if (open->cut == 0) {
            open->cut = append->result;
        }
        append->done(append);
    }
    if (TAILQ_EMPTY(&open->appends))
        waitlist_wake_all(&open->changed);
}

static void part_done(struct file_io *io)
{
    struct part *part = container_of(io, struct part, io);
    struct store *store = part->store;
    struct store_append *append = part->of.append;
    struct extent *e = append->cursor.extent;
    append->pending--;
    if (io->result == -ENOSPC)
        allocate_failed(store);
    if (io->result >= 0 || e->open->cut == 0)
        store_wrote(store, io->result);
    if (io->result < 0 && append->result == 0) {
        append->result = io->result;
        if (e->open->cut == 0) {
            log_warning(store->loop,
                        "store %s: write of extent %llx block %u: %s; extent stopped",
                        store->path, (unsigned long long)e->address.v, append->block,
                        err_text(io->result));
            e->open->cut = io->result;
        }
    }
    part_put(store, part);
    if (append->pending == 0)
        append_finish(store, e);
    parts_resume(store);
}

/* --- the way down --- */

/* Moves up to `bytes` bytes of the append's slices into the part; returns how many. */
static uint64_t fill_part(struct store_append *append, uint64_t bytes, struct part *part)
{
    struct store_cursor *cursor = &append->cursor;
    uint64_t left = bytes;
    uint32_t count = 0;
    while (left > 0) {
        const struct slice *slice = &append->slices[cursor->vector];
        uint8_t *from = slice_data(*slice) + cursor->vector_at;
        uint64_t n = min_u64(left, slice->len - cursor->vector_at);
        struct iovec *last = count > 0 ? &part->iov[count - 1] : NULL;
        if (last != NULL && (uint8_t *)last->iov_base + last->iov_len == from) {
            last->iov_len += n;
        } else if (count < FILE_IOV_MAX) {
            part->iov[count++] = (struct iovec){.iov_base = from, .iov_len = n};
        } else {
            break;
        }
        left -= n;
        cursor->vector_at += (uint32_t)n;
        if (cursor->vector_at == slice->len) {
            cursor->vector++;
            cursor->vector_at = 0;
        }
    }
    part->io.iov_count = count;
    return bytes - left;
}

void append_issue(struct store *store, struct store_append *append)
{
    struct store_cursor *cursor = &append->cursor;
    struct extent *e = cursor->extent;
    assert(!cursor->is_whole);
    while (cursor->issued < append->blocks && append->result == 0) {
        struct part *part = part_get(store);
        if (part == NULL)
            return;
        uint64_t offset_bytes = 0;
        uint32_t n = extent_place(e, append->block + cursor->issued,
                                  append->blocks - cursor->issued, &offset_bytes);
        assert(n > 0); /* E3: its space was reserved before */
        uint64_t bytes = fill_part(append, (uint64_t)n * BLOCK_SIZE, part);
        cursor->issued += (uint32_t)(bytes / BLOCK_SIZE);
        part->of.append = append;
        part->io.op = FILE_WRITE;
        part->io.offset_bytes = offset_bytes;
        part->io.iov = part->iov;
        part->io.done = part_done;
        append->pending++;
        file_submit(store->file, &part->io);
    }
    cursor->is_whole = true;
    append->pending--;
}

static int append_check(struct store *store, struct store_append *append,
                        struct extent **ret_extent)
{
    uint64_t bytes = 0;
    assert(append->slice_count <= BATCH_BLOCKS + 1);
    for (uint32_t i = 0; i < append->slice_count; i++) {
        assert(append->slices[i].len % BLOCK_SIZE == 0 && append->slices[i].len > 0);
        bytes += append->slices[i].len;
    }
    assert(bytes > 0 && bytes <= (BATCH_BLOCKS + 1) * (uint64_t)BLOCK_SIZE);
    append->blocks = (uint32_t)(bytes / BLOCK_SIZE);
    if (store->failed)
        return -PLX_EFAILED;
    struct extent *e = extent_find(&store->extents, append->extent);
    if (e == NULL)
        return -PLX_EMISSING;
    if (append->epoch != e->epoch)
        return -PLX_EEPOCH;
    if (e->state != EXTENT_OPEN || e->open->is_stopping || e->open->cut != 0)
        return -PLX_ESTOPPED;
    if (append->block != e->open->end || append->blocks > EXTENT_BLOCKS - append->block)
        return -PLX_ENOTEND;
    *ret_extent = e;
    return 0;
}

/* Space for the append, and a record of it under way. */
static int append_space(struct store *store, struct extent *e,
                        struct store_append *append)
{
    struct extent_open *open = e->open;
    uint32_t end = append->block + append->blocks;
    int result = space_ensure(store, e, end, append->use_reserve);
    if (result < 0)
        return result;
    open->end = end;
    result = space_ahead(store, e);
    if (result < 0 && end > open->recorded && !open->is_recording) {
        open->end = append->block;
        return result;
    }
    return 0;
}

void store_append(struct store *store, struct store_append *append)
{
    struct extent *e = NULL;
    append->store = store;
    append->pending = 1; /* until all of it was given to the file */
    append->cursor = (struct store_cursor){0};
    append->result = append_check(store, append, &e);
    if (append->result == 0)
        append->result = append_space(store, e, append);
    if (append->result < 0) {
        STAILQ_INSERT_TAIL(&store->refused_appends, append, waiting);
        answer_soon(store);
        return;
    }
    store->used_ns = loop_now_ns(store->loop);
    metric_add(store->append_count, 1);
    metric_add(store->append_bytes, (uint64_t)append->blocks * BLOCK_SIZE);
    append->cursor.extent = e;
    TAILQ_INSERT_TAIL(&e->open->appends, append, link);
    if (STAILQ_EMPTY(&store->starved_appends))
        append_issue(store, append);
    if (!append->cursor.is_whole)
        STAILQ_INSERT_TAIL(&store->starved_appends, append, waiting);
}
