/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slabs of a file that were never written are filled with zeros while nothing else
 * happens, because a sync after the first write into such space costs the file system a
 * journal commit.
 *
 * Happy path: when fewer than ZERO_POOL_SLABS written slabs are free and the store was
 * quiet for a while (nor do copies come in, which would only wait for it), one slab after
 * the other is filled, then all are synced together.
 * The same goes on under a load that gains more by it than the filling costs: one that
 * syncs often, or one that leaves the device time (the completion of a write into
 * unwritten space takes a detour through a kernel thread).
 *
 * What can fail: a write: filling ends until the next start, and the slab is used as it
 * is. If the file system is full it ends until there is room. A failed sync is the
 * store's end, like any.
 *
 * On close the timer ends and the write in flight is waited for.
 */
#include "blockstore/store_internal.h"

/* A slab in 1 MiB of zeros costs about a millisecond; a journal commit some 50 us. */
#define SYNCS_PER_SLAB_HEAVY 8U
/* Slower than this the device has time to spare: below 250 MiB/s. */
#define LIGHT_NS_PER_SLAB (4 * NS_PER_MS)

static bool is_wanted(const struct store *store)
{
    uint64_t kept = div_up_u64(store->reserve_bytes, SLAB_BYTES) + ZERO_POOL_SLABS;
    return store->zeros != NULL && !store->failed && !store->is_closing &&
           store->slabs.ready_count < ZERO_POOL_SLABS &&
           store->slabs.fresh < store->slabs.limit &&
           slabs_available(&store->slabs) > kept;
}

static bool may_fill(const struct store *store)
{
    uint64_t last_ns = max_u64(store->used_ns, store->put_ns);
    return store->fills_under_load || loop_now_ns(store->loop) - last_ns >= IDLE_NS;
}

void zero_fill_slabs_taken(struct store *store, uint32_t count)
{
    uint64_t now_ns = loop_now_ns(store->loop);
    bool syncs_often = store->syncs_since_slab >= (uint64_t)count * SYNCS_PER_SLAB_HEAVY;
    /* What was taken last time has been used since. */
    bool is_light = store->slabs_taken_last > 0 &&
                    now_ns - store->slabs_taken_ns >=
                        store->slabs_taken_last * LIGHT_NS_PER_SLAB;
    store->fills_under_load = store->zeros != NULL && (syncs_often || is_light);
    store->syncs_since_slab = 0;
    store->slabs_taken_ns = now_ns;
    store->slabs_taken_last = count;
}

static void fill_synced(struct store_sync *sync)
{
    struct store *store = container_of(sync, struct store, fill_sync);
    store->fill_busy = false;
    zero_fill_wanted(store);
    store_settled(store);
}

static void fill_written(struct file_io *io);

/* The next slab, or the sync after the last one. */
static void fill_on(struct store *store)
{
    store->fill_busy = true;
    if (!is_wanted(store) || !may_fill(store) ||
        !slabs_take_fresh(&store->slabs, &store->fill_run)) {
        store->fill_sync.done = fill_synced;
        sync_always(store, &store->fill_sync);
        return;
    }
    store->fill_io = (struct file_io){
        .op = FILE_WRITE,
        .offset_bytes = store->fill_run.start * PIECE_BYTES,
        .iov = store->fill_iov,
        .iov_count = SLAB_PIECES,
        .done = fill_written,
    };
    file_submit(store->file, &store->fill_io);
}

static void fill_written(struct file_io *io)
{
    struct store *store = container_of(io, struct store, fill_io);
    space_release(store, store->fill_run);
    if (io->result == -ENOSPC) {
        allocate_failed(store);
    } else if (io->result < 0) {
        log_warning(store->loop, "store %s: filling unused space with zeros: %s; no more",
                    store->path, err_text(io->result));
        free(store->zeros);
        store->zeros = NULL;
    }
    fill_on(store);
}

static void idle_fired(struct timer *timer)
{
    struct store *store = container_of(timer, struct store, idle);
    if (store->fill_busy || !is_wanted(store))
        return;
    if (may_fill(store))
        fill_on(store);
    else
        timer_start(store->loop, timer, IDLE_NS);
}

void zero_fill_wanted(struct store *store)
{
    if (store->fill_busy || !is_wanted(store))
        return;
    if (store->fills_under_load)
        timer_start(store->loop, &store->idle, 0);
    else if (!store->idle.armed)
        timer_start(store->loop, &store->idle, IDLE_NS);
}

int zero_fill_init(struct store *store)
{
    store->idle.fire = idle_fired;
    store->zeros = aligned_alloc(BLOCK_SIZE, PIECE_BYTES);
    if (store->zeros == NULL)
        return -ENOMEM;
    memset(store->zeros, 0, PIECE_BYTES);
    for (uint32_t i = 0; i < SLAB_PIECES; i++)
        store->fill_iov[i] = (struct iovec){store->zeros, PIECE_BYTES};
    return 0;
}

void zero_fill_done(struct store *store)
{
    assert(!store->fill_busy);
    timer_stop(store->loop, &store->idle);
    free(store->zeros);
    store->zeros = NULL;
}
