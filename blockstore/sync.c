/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Group commit: one sync of the file serves all who wait.
 *
 * Happy path: the first request issues a sync; those that come while it runs share the
 * next one. A sync covers what was complete when it was *issued*: each dirty extent's
 * length of that moment becomes its durable length. When nothing is dirty there is
 * nothing to do, and the answer comes without a sync.
 *
 * What can fail: the sync. After that nobody knows what the device holds, and a second
 * sync that succeeds would say nothing: the store is out of service for good, and all
 * who wait hear so. For the same reason no two syncs of a file are ever under way: the
 * one that succeeds could be the one that does not know.
 *
 * On close a sync in flight is waited for.
 */
#include "blockstore/store_internal.h"

static void sync_issue(struct store *store);

static void mark_durable(struct store *store, bool is_synced)
{
    struct extent_open *open;
    while ((open = TAILQ_FIRST(&store->syncing)) != NULL) {
        TAILQ_REMOVE(&store->syncing, open, syncing_link);
        open->is_syncing = false;
        struct extent *e = open->extent;
        if (!is_synced)
            continue;
        assert(open->sync_length <= e->length);
        assert(open->sync_length >= e->durable); /* E2 */
        e->durable = open->sync_length;
    }
}

static void sync_done(struct file_io *io)
{
    struct store *store = container_of(io, struct store, sync_io);
    uint64_t now_ns = loop_now_ns(store->loop);
    metric_observe_ns(store->sync_ns, now_ns - store->sync_started_ns);
    if (io->result < 0)
        store_fail(store, "sync", io->result);
    int result = store->failed ? -PLX_EFAILED : 0;
    mark_durable(store, result == 0);
    struct store_sync *sync;
    /* Those who ask again from inside done share the next one with those who wait. */
    while ((sync = STAILQ_FIRST(&store->sync_running)) != NULL) {
        STAILQ_REMOVE_HEAD(&store->sync_running, link);
        sync->result = result;
        sync->done(sync);
    }
    store->sync_busy = false;
    if (!STAILQ_EMPTY(&store->sync_waiting))
        sync_issue(store);
    store_settled(store);
}

static void sync_issue(struct store *store)
{
    assert(!store->sync_busy && STAILQ_EMPTY(&store->sync_running));
    bool is_needed = !TAILQ_EMPTY(&store->dirty) || store->sync_forced;
    if (!is_needed || store->failed || planted(PLANT_FLUSH_WITHOUT_SYNC)) {
        struct store_sync *sync;
        STAILQ_FOREACH (sync, &store->sync_waiting, link)
            sync->result = store->failed ? -PLX_EFAILED : 0;
        STAILQ_CONCAT(&store->answered_syncs, &store->sync_waiting);
        answer_soon(store);
        return;
    }
    struct extent_open *open;
    while ((open = TAILQ_FIRST(&store->dirty)) != NULL) {
        TAILQ_REMOVE(&store->dirty, open, dirty_link);
        open->is_dirty = false;
        open->is_syncing = true;
        open->sync_length = open->extent->length;
        TAILQ_INSERT_TAIL(&store->syncing, open, syncing_link);
    }
    STAILQ_CONCAT(&store->sync_running, &store->sync_waiting);
    store->sync_busy = true;
    store->sync_started_ns = loop_now_ns(store->loop);
    store->syncs_since_slab++;
    store->sync_forced = false;
    metric_add(store->sync_count, 1);
    file_submit(store->file, &store->sync_io);
}

void store_sync(struct store *store, struct store_sync *sync)
{
    sync->result = 0;
    if (store->sync_busy && planted(PLANT_FLUSH_JOINS_SYNC))
        STAILQ_INSERT_TAIL(&store->sync_running, sync, link);
    else
        STAILQ_INSERT_TAIL(&store->sync_waiting, sync, link);
    if (!store->sync_busy)
        sync_issue(store);
}

void sync_always(struct store *store, struct store_sync *sync)
{
    store->sync_forced = true;
    store_sync(store, sync);
}

void sync_init(struct store *store)
{
    STAILQ_INIT(&store->sync_waiting);
    STAILQ_INIT(&store->sync_running);
    TAILQ_INIT(&store->dirty);
    TAILQ_INIT(&store->syncing);
    store->sync_io = (struct file_io){.op = FILE_SYNC, .done = sync_done};
}

void sync_mark_dirty(struct store *store, struct extent *e)
{
    struct extent_open *open = e->open;
    if (open->is_dirty)
        return;
    open->is_dirty = true;
    TAILQ_INSERT_TAIL(&store->dirty, open, dirty_link);
}

void sync_forget(struct store *store, struct extent_open *open)
{
    if (open->is_dirty)
        TAILQ_REMOVE(&store->dirty, open, dirty_link);
    if (open->is_syncing)
        TAILQ_REMOVE(&store->syncing, open, syncing_link);
    open->is_dirty = open->is_syncing = false;
}

struct waiting_sync {
    struct store_sync sync;
    struct event over;
};

static void wake(struct store_sync *sync)
{
    event_set(&container_of(sync, struct waiting_sync, sync)->over);
}

async int sync_wait(struct store *store)
{
    struct waiting_sync w = {.sync.done = wake};
    event_init(&w.over);
    store_sync(store, &w.sync);
    event_wait(&w.over);
    return w.sync.result;
}

async int sync_always_wait(struct store *store)
{
    store->sync_forced = true;
    return sync_wait(store);
}
