/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Space of open extents: slabs are reserved 1, 2, 4 ... 64 at a time, side by side where
 * that can be had, ahead of need.
 *
 * Happy path: when half of what an extent has is used, more slabs are taken and a synced
 * record says so; by the time appends get there it is durable. An append that comes
 * first writes its data at once and is answered when the record is durable, too.
 *
 * What can fail: no slab is free, or no more than the reserve would be left: the append
 * answers -PLX_EFULL, nothing else changes; reserving ahead is given up long before.
 * Memory: as with a full store, but for an append that already waits for the record;
 * that one ends the extent. A failed record write takes the store out of service.
 *
 * On close a record write in flight is waited for. Space that a record in flight was to
 * reserve is free again after a restart: nothing in it was answered.
 */
#include "blockstore/compact.h"

/* Reserving ahead leaves this share of the free slabs to others. */
#define AHEAD_SHARE 8U

static uint32_t slabs_allowed(const struct store *store, bool use_reserve)
{
    uint64_t kept = use_reserve ? 0 : div_up_u64(store->reserve_bytes, SLAB_BYTES);
    kept += compact_reserve_slabs(store->slabs.count);
    uint32_t available = slabs_available(&store->slabs);
    return kept < available ? available - (uint32_t)kept : 0;
}

static uint32_t piece_after(const struct runs *runs)
{
    if (runs->count == 0)
        return 0;
    return runs->at[runs->count - 1].start + runs->at[runs->count - 1].count;
}

/* Whoever hears of it may be another host, or recovery, and just tries again later: what
 * may gain space is asked to here. */
static int is_full(struct store *store)
{
    compact_wanted(store);
    allocate_wanted(store);
    return -PLX_EFULL;
}

/* Up to `slabs` more, as the reserve allows; returns how many. */
static uint32_t space_add(struct store *store, struct extent *e, uint32_t slabs,
                          bool use_reserve)
{
    uint32_t added = 0;
    slabs = min_u32(slabs, slabs_allowed(store, use_reserve));
    slabs = min_u32(slabs, EXTENT_SLABS - runs_blocks(&e->runs) / SLAB_BLOCKS);
    while (added < slabs) {
        struct run run;
        uint32_t n = slabs_take(&store->slabs, slabs - added, piece_after(&e->runs),
                                &run);
        if (n == 0)
            break;
        if (runs_add(&e->runs, run) < 0) {
            space_release(store, run);
            break;
        }
        added += n;
    }
    if (added > 0) {
        zero_fill_slabs_taken(store, added);
        zero_fill_wanted(store);
        allocate_wanted(store);
    }
    if (slabs > 0)
        compact_wanted(store);
    return added;
}

int space_begin(struct store *store, struct extent *e, uint32_t slabs,
                bool keep_reserve)
{
    uint32_t share = slabs_allowed(store, false) / AHEAD_SHARE;
    slabs = min_u32(slabs, share > 1 ? share : 1);
    if (space_add(store, e, slabs, false) > 0 ||
        (!keep_reserve && space_add(store, e, 1, true) > 0))
        return 0;
    return is_full(store);
}

/* What an extent has beyond `end` is as good as free for checkpoints, not for guests: the
 * more they write there, the more a checkpoint needs. */
static bool leaves_reserve(const struct store *store, uint32_t end, uint32_t have)
{
    uint64_t free_blocks = (uint64_t)slabs_allowed(store, true) * SLAB_BLOCKS;
    return (free_blocks + have - end) * BLOCK_SIZE >= store->reserve_bytes;
}

int space_ensure(struct store *store, struct extent *e, uint32_t end, bool use_reserve)
{
    uint32_t have = runs_blocks(&e->runs);
    assert(end <= EXTENT_BLOCKS);
    if (end <= have)
        return use_reserve || leaves_reserve(store, end, have) ? 0 : is_full(store);
    uint32_t need = (uint32_t)div_up_u64(end - have, SLAB_BLOCKS);
    if (need > slabs_allowed(store, use_reserve))
        return is_full(store);
    /* What it got of them stays: a later append will use it. */
    return space_add(store, e, need, use_reserve) == need ? 0 : -ENOMEM;
}

static void record_done(struct kv_write *write);

static int record_start(struct store *store, struct extent_open *open)
{
    struct extent *e = open->extent;
    assert(!open->is_recording && e->state == EXTENT_OPEN);
    kv_batch_init(&open->write.batch);
    record_put(store, &open->write.batch, e, RECORD_PIECES_MAX);
    if (open->write.batch.bad) {
        kv_batch_done(&open->write.batch);
        return -ENOMEM;
    }
    open->recording = runs_blocks(&e->runs);
    open->is_recording = true;
    open->write.durability = KV_SYNCED;
    open->write.done = record_done;
    kv_submit(store->kv, &open->write);
    return 0;
}

static void record_done(struct kv_write *write)
{
    struct extent_open *open = container_of(write, struct extent_open, write);
    struct store *store = open->store;
    struct extent *e = open->extent;
    open->is_recording = false;
    if (write->result < 0) {
        store_fail(store, "metadata write", write->result);
    } else {
        open->recorded = open->recording;
        if (open->recorded < runs_blocks(&e->runs) && !store->failed &&
            record_start(store, open) < 0 && open->end > open->recorded)
            open->cut = -ENOMEM;
    }
    append_finish(store, e);
    waitlist_wake_all(&open->changed);
    store_settled(store);
}

int space_ahead(struct store *store, struct extent *e)
{
    struct extent_open *open = e->open;
    uint32_t have = runs_blocks(&e->runs);
    if (open->end > have / 2 && have < EXTENT_BLOCKS) {
        uint32_t share = slabs_allowed(store, false) / AHEAD_SHARE;
        if (store->fills_under_load && store->slabs.ready_count > 0)
            share = min_u32(share, store->slabs.ready_count);
        if (space_add(store, e, min_u32(open->slabs_next, share), false) > 0)
            open->slabs_next = min_u32(open->slabs_next * 2, RESERVE_SLABS);
    }
    if (open->is_recording || open->recorded >= runs_blocks(&e->runs))
        return 0;
    return record_start(store, open);
}

void space_release(struct store *store, struct run run)
{
    uint32_t before = store->slabs.free_count;
    slabs_release(&store->slabs, run);
    if (store->slabs.free_count > before && store->on_space != NULL)
        loop_post(store->loop, store->on_space);
}

bool space_has_room(struct store *store, uint32_t pieces)
{
    uint32_t part_free = store->slabs.part_free;
    uint32_t slabs = (uint32_t)div_up_u64(pieces > part_free ? pieces - part_free : 0,
                                          SLAB_PIECES);
    if (slabs <= slabs_allowed(store, false))
        return true;
    (void)is_full(store);
    return false;
}

int space_take_pieces(struct store *store, struct runs *runs, uint32_t want)
{
    int result = 0;
    while (want > 0 && result == 0) {
        struct run run;
        uint32_t n = slabs_take_pieces(&store->slabs, want, &run);
        if (n == 0)
            result = -PLX_EFULL;
        else
            result = runs_add(runs, run);
        if (result < 0 && n > 0)
            space_release(store, run);
        want -= n;
    }
    zero_fill_wanted(store);
    allocate_wanted(store);
    return result;
}

void space_give_back(struct store *store, struct runs *runs)
{
    for (uint32_t i = 0; i < runs->count; i++)
        space_release(store, runs->at[i]);
    runs_done(runs);
}

void space_cut(struct store *store, struct extent *e, uint32_t pieces)
{
    for (;;) {
        struct run run = runs_cut_last(&e->runs, pieces);
        if (run.count == 0)
            break;
        space_release(store, run);
    }
    if (e->runs.count == 0) {
        runs_done(&e->runs);
        return;
    }
    /* A smaller array, where memory allows. */
    struct run *at = realloc(e->runs.at, e->runs.count * sizeof *at);
    if (at != NULL)
        e->runs.at = at;
}
