/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ways out of the open state: create, stop, finalize, delete.
 *
 * Happy path: a stop refuses new appends, waits for those in flight, syncs what is not
 * durable, and writes the record; only then is it answered. Finalizing cuts off what is
 * beyond the committed length; deleting removes the record.
 *
 * What can fail: a sync or a record write, which is the store's end. Without memory for
 * a record nothing changes but that the extent takes no appends any more; the call can
 * be repeated. Space goes back to the allocator only after the record that gives it up
 * is durable and the reads that may be on it have drained.
 *
 * On close no such call may be under way.
 */
#include "blockstore/store_internal.h"

/* --- create --- */

static struct extent *extent_create(struct address address, uint64_t disk, uint64_t epoch,
                                    uint64_t nonce)
{
    struct extent *e = calloc(1, sizeof *e);
    if (e == NULL)
        return NULL;
    e->address = address;
    e->disk = disk;
    e->epoch = epoch;
    e->nonce = nonce;
    e->state = EXTENT_OPEN;
    return e;
}

/* An extent that no record knows goes away again. */
static void discard(struct store *store, struct extent *e)
{
    if (e->open != NULL)
        extent_open_end(store, e);
    space_cut(store, e, 0);
    extent_remove(&store->extents, e);
    extent_unlock(store, e);
    extent_free(e);
}

async int store_create_extent(struct store *store, struct address extent, uint64_t disk,
                              uint64_t epoch, uint64_t nonce, uint32_t slabs_hint,
                              bool keep_reserve)
{
    assert(address_group(extent) != 0 && address_block(extent) == 0);
    assert(slabs_hint >= 1 && slabs_hint <= EXTENT_SLABS);
    if (store->failed)
        return -PLX_EFAILED;
    if (extent_find(&store->extents, extent) != NULL ||
        install_is_under_way(store, extent))
        return -PLX_EEXISTS;
    struct extent *e = extent_create(extent, disk, epoch, nonce);
    if (e == NULL)
        return -ENOMEM;
    e->is_locked = true;
    extent_insert(&store->extents, e);
    int result = extent_open_start(store, e);
    if (result == 0)
        result = space_begin(store, e, slabs_hint, keep_reserve);
    if (result == 0)
        result = record_write(store, e, RECORD_PIECES_MAX, KV_SYNCED);
    if (result == -PLX_EFAILED) {
        /* Nobody knows whether the record is there. */
        extent_unlock(store, e);
        return result;
    }
    if (result < 0) {
        discard(store, e);
        return result;
    }
    struct extent_open *open = e->open;
    open->recorded = runs_blocks(&e->runs);
    while (open->slabs_next < runs_pieces(&e->runs) / SLAB_PIECES)
        open->slabs_next *= 2;
    trace(store->loop, "extent.create", extent.v, open->recorded, epoch);
    extent_unlock(store, e);
    return 0;
}

/* --- stop --- */

void headers_drop(struct extent *e)
{
    free(e->headers);
    e->headers = NULL;
}

static async void appends_drain(struct extent_open *open)
{
    open->is_stopping = true;
    while (!TAILQ_EMPTY(&open->appends) || open->is_recording)
        waitlist_wait(&open->changed);
}

static async int stop_open(struct store *store, struct extent *e)
{
    appends_drain(e->open);
    if (store->failed)
        return -PLX_EFAILED;
    uint32_t length = e->length;
    if (e->durable < length) {
        int result = sync_wait(store);
        if (result < 0)
            return result;
    }
    assert(e->length == length && e->durable == length); /* E5 */
    uint32_t pieces = pieces_of(length);
    struct extent after = *e; /* for the record alone */
    after.state = EXTENT_STOPPED;
    int result = record_write(store, &after, pieces, KV_SYNCED);
    if (result < 0)
        return result;
    extent_open_end(store, e);
    e->state = EXTENT_STOPPED;
    extent_count(&store->extents, e, length, length);
    if (length == 0)
        headers_drop(e);
    space_cut(store, e, pieces); /* nobody reads beyond the length */
    trace(store->loop, "extent.stop", e->address.v, length, 0);
    return 0;
}

/* It remembers that it never had the extent, so that no late create gets through. */
static async int stop_absent(struct store *store, struct address address)
{
    if (planted(PLANT_ABSENT_FORGOTTEN))
        return 0;
    struct extent *e = extent_create(address, 0, 0, 0);
    if (e == NULL)
        return -ENOMEM;
    e->state = EXTENT_STOPPED;
    e->is_locked = true;
    extent_insert(&store->extents, e);
    int result = record_write(store, e, 0, KV_SYNCED);
    if (result == -ENOMEM)
        discard(store, e);
    else
        extent_unlock(store, e);
    return result;
}

async int store_stop_extent(struct store *store, struct address extent,
                            uint32_t *ret_length, bool *ret_restart_scanned)
{
    int result = 0;
    struct extent *e = extent_lock(store, extent);
    if (store->failed) {
        result = -PLX_EFAILED;
    } else if (e == NULL) {
        result = stop_absent(store, extent);
        if (result == 0) {
            *ret_length = 0;
            *ret_restart_scanned = false;
        }
        return result;
    } else if (e->state == EXTENT_OPEN) {
        result = stop_open(store, e);
    }
    if (result == 0) {
        *ret_length = e->length;
        *ret_restart_scanned = e->restart_scanned;
    }
    if (e != NULL)
        extent_unlock(store, e);
    return result;
}

/* --- delete --- */

async int extent_delete(struct store *store, struct extent *e)
{
    if (e->state == EXTENT_OPEN)
        appends_drain(e->open);
    install_cancel(store, e->address);
    int result = record_delete(store, e);
    if (result < 0)
        return result;
    trace(store->loop, "extent.delete", e->address.v, e->length, 0);
    if (e->open != NULL)
        extent_open_end(store, e);
    extent_remove(&store->extents, e);
    waitlist_wake_all(&store->unlocked); /* they find nothing */
    readers_drain(store, e);
    space_cut(store, e, 0);
    extent_free(e);
    compact_changed(store);
    return 0;
}

async int store_delete_extent(struct store *store, struct address extent)
{
    struct extent *e = extent_lock(store, extent);
    if (e == NULL) {
        install_cancel(store, extent);
        return store->failed ? -PLX_EFAILED : 0;
    }
    int result = extent_delete(store, e);
    if (result < 0)
        extent_unlock(store, e);
    return result;
}

async int store_delete_mark(struct store *store, struct address extent)
{
    struct extent *e = extent_lock(store, extent);
    if (e == NULL)
        return store->failed ? -PLX_EFAILED : 0;
    bool is_mark = e->state == EXTENT_STOPPED && e->length == 0;
    int result = is_mark ? extent_delete(store, e) : 0;
    if (!is_mark || result < 0)
        extent_unlock(store, e);
    return result;
}

/* --- finalize --- */

static async int finalize_stopped(struct store *store, struct extent *e, uint32_t length)
{
    uint32_t pieces = pieces_of(length);
    struct extent after = *e; /* for the record alone */
    after.state = EXTENT_FINAL;
    after.length = after.durable = length;
    int result = record_write(store, &after, pieces, KV_SYNCED);
    if (result < 0)
        return result;
    e->state = EXTENT_FINAL;
    e->length = e->durable = length;
    extent_count(&store->extents, e, length, length);
    if (e->headers != NULL)
        bitmap_cut(e->headers, length);
    readers_drain(store, e); /* some may still be beyond the length */
    space_cut(store, e, pieces);
    trace(store->loop, "extent.final", e->address.v, length, 0);
    return 0;
}

static async int finalize_locked(struct store *store, struct extent *e, uint32_t length)
{
    if (store->failed)
        return -PLX_EFAILED;
    if (e->state == EXTENT_OPEN) {
        int result = stop_open(store, e);
        if (result < 0)
            return result;
    }
    if (e->state == EXTENT_FINAL)
        return e->length == length ? 0 : -PLX_EPRECONDITION;
    if (length > e->length)
        return -PLX_ENOTHERE;
    return finalize_stopped(store, e, length);
}

async int store_finalize_extent(struct store *store, struct address extent,
                                uint32_t length)
{
    assert(length <= EXTENT_BLOCKS);
    struct extent *e = extent_lock(store, extent);
    if (e == NULL && store->failed)
        return -PLX_EFAILED;
    if (e == NULL && length == 0)
        install_cancel(store, extent);
    if (e == NULL)
        return length == 0 ? 0 : -PLX_EMISSING;
    int result;
    if (length == 0 && e->state != EXTENT_FINAL) {
        result = extent_delete(store, e);
        if (result == 0)
            return 0;
    } else {
        result = finalize_locked(store, e, length);
    }
    extent_unlock(store, e);
    return result;
}
