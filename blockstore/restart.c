/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The restart scan: finds the valid prefix of every extent that a former process left
 * open, and stops it there.
 *
 * Happy path: a few tasks walk the extents in parallel. Headers are checked from block 0
 * on, since each names the CRC of the one before; data only beyond the length that was
 * known to be synced. Then one sync makes durable what was found, and one write of the
 * metadata records the stops.
 *
 * What can fail: a header or data that does not fit ends the prefix; that is how a crash
 * looks. If the device cannot read, or the prefix ends below what was synced, the extent
 * is damaged: it keeps all of its space, for whoever looks at it later, and a line says
 * so. A failed sync or metadata write refuses the store; the next start scans again.
 *
 * Nothing of a scan is left when store_open returns.
 */
#include "blockstore/store_internal.h"

struct job {
    struct extent *extent;
    uint32_t pieces; /* what it keeps */
};

struct scan_call {
    struct task_call call;
    struct restart *restart;
};

struct restart {
    struct store *store;
    struct job *jobs;
    uint32_t count, next;
    uint32_t running; /* tasks */
    int result;
    struct event over;
    struct scan_call calls[SCAN_TASKS];
};

static void collect(void *arg, struct extent *e)
{
    struct restart *restart = arg;
    if (e->state != EXTENT_OPEN)
        return;
    if (restart->jobs != NULL)
        restart->jobs[restart->count].extent = e;
    restart->count++;
}

/* Walks on as far as all fits. */
static async int walk_prefix(struct walk *walk, uint32_t known_synced, uint8_t *headers)
{
    while (walk->chain.block < walk->limit) {
        walk->wants_data = walk->chain.block >= known_synced;
        int result = walk_head(walk);
        if (result == 0 && walk->head.block + 1 + walk->data_blocks > known_synced)
            result = walk_data(walk);
        if (result < 0)
            return result;
        bitmap_set(headers, walk->chain.block); /* E10 */
        walk_next(walk);
    }
    return 0;
}

static async int scan(struct store *store, struct job *job)
{
    struct extent *e = job->extent;
    uint32_t space = runs_blocks(&e->runs);
    e->headers = calloc(1, BITMAP_BYTES);
    struct walk *walk = walk_create(store, e, space);
    if (walk == NULL || e->headers == NULL) {
        if (walk != NULL)
            walk_destroy(walk);
        return -ENOMEM;
    }
    int result = walk_prefix(walk, e->durable, e->headers);
    e->length = walk->chain.block;
    walk_destroy(walk);
    trace(store->loop, "extent.scan", e->address.v, e->length, e->durable);
    bool is_end = result == 0 || result == -PLX_EDAMAGED || result == -PLX_ECHECKSUM;
    bool is_damaged = e->length < e->durable || !is_end;
    job->pieces = pieces_of(is_damaged ? space : e->length);
    if (is_damaged)
        log_warning(store->loop,
                    "store %s: extent %llx of disk %llu: damaged at block %u, synced up "
                    "to %u: %s",
                    store->path, (unsigned long long)e->address.v,
                    (unsigned long long)e->disk, e->length, e->durable, err_text(result));
    return 0;
}

static void scan_task(struct task_call *call)
{
    struct restart *restart = container_of(call, struct scan_call, call)->restart;
    while (restart->next < restart->count && restart->result == 0) {
        int result = scan(restart->store, &restart->jobs[restart->next++]);
        if (result < 0)
            restart->result = result;
    }
    if (--restart->running == 0)
        event_set(&restart->over);
}

static async void scan_all(struct restart *restart)
{
    restart->running = min_u32(SCAN_TASKS, restart->count);
    for (uint32_t i = 0; i < restart->running; i++) {
        restart->calls[i] = (struct scan_call){
            .call = {.main = scan_task, .name = "restart scan", .system = true},
            .restart = restart,
        };
        task_start(restart->store->loop, &restart->calls[i].call);
    }
    event_wait(&restart->over);
}

/* All of them stopped, in one write. */
static async int record_stops(struct restart *restart)
{
    struct store *store = restart->store;
    struct kv_batch batch;
    kv_batch_init(&batch);
    for (uint32_t i = 0; i < restart->count; i++) {
        struct extent *e = restart->jobs[i].extent;
        e->state = EXTENT_STOPPED;
        e->restart_scanned = true;
        e->durable = e->length;
        extent_count(&store->extents, e, e->length, e->length);
        if (e->length == 0)
            headers_drop(e);
        record_put(store, &batch, e, restart->jobs[i].pieces);
    }
    if (batch.bad) {
        kv_batch_done(&batch);
        return -ENOMEM;
    }
    int result = kv_write_wait(store->kv, &batch, KV_SYNCED);
    if (result < 0)
        return result;
    for (uint32_t i = 0; i < restart->count; i++)
        space_cut(store, restart->jobs[i].extent, restart->jobs[i].pieces);
    return 0;
}

static async int scan_and_stop(struct restart *restart, struct error *err)
{
    const char *path = restart->store->path;
    scan_all(restart);
    if (restart->result < 0)
        return err_set(err, restart->result, "%s: scan of open extents: %s", path,
                       err_text(restart->result));
    int result = file_sync(restart->store->file);
    if (result < 0)
        return err_set(err, result, "%s: sync after the scan: %s", path,
                       err_text(result));
    result = record_stops(restart);
    if (result < 0)
        return err_set(err, result, "%s: metadata write: %s", path, err_text(result));
    return 0;
}

async int restart_scan(struct store *store, struct error *err)
{
    cleanup(free_ptr) struct restart *restart = calloc(1, sizeof *restart);
    if (restart == NULL)
        return err_set(err, -ENOMEM, "%s: out of memory", store->path);
    restart->store = store;
    event_init(&restart->over);
    extent_each(&store->extents, collect, restart);
    if (restart->count == 0)
        return 0;
    cleanup(free_ptr) struct job *jobs = calloc(restart->count, sizeof *jobs);
    if (jobs == NULL)
        return err_set(err, -ENOMEM, "%s: out of memory", store->path);
    restart->jobs = jobs;
    restart->count = 0;
    extent_each(&store->extents, collect, restart);
    return scan_and_stop(restart, err);
}
