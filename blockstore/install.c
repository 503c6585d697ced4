/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Installs copies of final extents that come from other stores.
 *
 * Happy path: pieces are taken for all that is live; blocks are checked and written to
 * their places, in any order; a digest behind them, if their headers are dead; a sync;
 * then one synced record, and only with it the copy is there. What was there before, a
 * stopped copy, is replaced by the same record, and its space is free when the reads that
 * began before have drained.
 *
 * What can fail: a block that does not fit its checksum is refused, and can be put again.
 * Whatever fails before the record leaves nothing but free pieces; a failed sync or
 * record is the store's end, and nothing is given back, since the record may be there.
 *
 * Trims and deletions go on meanwhile: they are noted here, too, under the extent's lock
 * where there is one. From the moment the record is made the extent is locked, and they
 * wait until it is an ordinary one.
 *
 * On close none may be under way.
 */
#include "blockstore/install.h"

#include "blockstore/digest.h"
#include "blockstore/store_internal.h"

struct store_install {
    struct store *store;
    struct address address;
    struct extent *copy; /* as it will be, in no table; NULL: not planned */
    bool headers_died, is_cancelled;
    uint32_t putting;
    struct digest_entry_format *entries; /* by place; kind 0: none. NULL: has headers */
    SLIST_ENTRY(store_install) link;
    uint8_t planned[BITMAP_BYTES]; /* live when it was planned */
    uint8_t dead[BITMAP_BYTES];    /* since it began */
    uint8_t put[BITMAP_BYTES];
};

/* --- what others do to the extent meanwhile --- */

static struct store_install *find(const struct store *store, struct address address)
{
    struct store_install *in;
    SLIST_FOREACH (in, &store->installs, link) {
        if (address_equal(in->address, address))
            return in;
    }
    return NULL;
}

bool install_is_under_way(const struct store *store, struct address address)
{
    return find(store, address) != NULL;
}

bool install_trim(struct store *store, struct address address, const uint32_t *blocks,
                  uint32_t count)
{
    struct store_install *in = planted(PLANT_TRIM_UNNOTED) ? NULL : find(store, address);
    for (uint32_t i = 0; in != NULL && i < count && blocks[i] < EXTENT_BLOCKS; i++)
        bitmap_set(in->dead, blocks[i]);
    return in != NULL;
}

bool install_trim_headers(struct store *store, struct address address)
{
    struct store_install *in = find(store, address);
    if (in != NULL)
        in->headers_died = true;
    return in != NULL;
}

void install_cancel(struct store *store, struct address address)
{
    struct store_install *in = find(store, address);
    if (in != NULL)
        in->is_cancelled = true;
}

void install_each(const struct store *store, void (*fn)(void *arg, struct extent *copy),
                  void *arg)
{
    struct store_install *in;
    SLIST_FOREACH (in, &store->installs, link) {
        if (in->copy != NULL)
            fn(arg, in->copy);
    }
}

static bool is_live(const struct store_install *in, uint32_t block)
{
    const uint8_t *headers = in->copy->headers;
    if (!bitmap_get(in->planned, block))
        return false;
    if (headers != NULL && bitmap_get(headers, block))
        return !in->headers_died; /* they die together */
    return !bitmap_get(in->dead, block);
}

/* A copy that keeps its places is checked by its headers, dead or not. */
static bool is_needed(const struct store_install *in, uint32_t block)
{
    const uint8_t *headers = in->copy->headers;
    return is_live(in, block) || (headers != NULL && bitmap_get(headers, block));
}

/* --- begin, abandon --- */

int store_install_begin(struct store *store, struct address extent,
                        struct store_install **ret_install)
{
    assert(address_group(extent) != 0 && address_block(extent) == 0);
    const struct extent *e = extent_find(&store->extents, extent);
    if (store->failed)
        return -PLX_EFAILED;
    if (e != NULL && e->state == EXTENT_FINAL)
        return -PLX_EEXISTS;
    if (find(store, extent) != NULL)
        return -PLX_EBUSY;
    if (store->install_count == STORE_INSTALLS_MAX)
        return -PLX_ELIMIT;
    struct store_install *in = calloc(1, sizeof *in);
    if (in == NULL)
        return -ENOMEM;
    in->store = store;
    in->address = extent;
    SLIST_INSERT_HEAD(&store->installs, in, link);
    store->install_count++;
    *ret_install = in;
    return 0;
}

static void install_free(struct store_install *in)
{
    struct store *store = in->store;
    assert(in->putting == 0);
    SLIST_REMOVE(&store->installs, in, store_install, link);
    store->install_count--;
    extent_free(in->copy);
    free(in->entries);
    free(in);
}

void store_install_abandon(struct store_install *install)
{
    if (install == NULL)
        return;
    if (install->copy != NULL)
        space_give_back(install->store, &install->copy->runs);
    install_free(install);
}

/* --- plan --- */

static bool plan_is_sound(const struct install_plan *plan)
{
    uint32_t live = bitmap_rank(plan->live, EXTENT_BLOCKS);
    if (plan->length == 0 || plan->length > EXTENT_BLOCKS || live == 0 ||
        live != bitmap_rank(plan->live, plan->length))
        return false;
    return plan->headers == NULL ||
           (bitmap_get(plan->headers, 0) && bitmap_within(plan->headers, plan->live));
}

static uint8_t *copy_of(const uint8_t *map)
{
    uint8_t *copy = malloc(BITMAP_BYTES);
    if (copy != NULL)
        memcpy(copy, map, BITMAP_BYTES);
    return copy;
}

static struct extent *extent_of(const struct store_install *in,
                                const struct install_plan *plan)
{
    struct extent *e = calloc(1, sizeof *e);
    if (e == NULL)
        return NULL;
    *e = (struct extent){
        .address = in->address,
        .disk = plan->disk,
        .epoch = plan->epoch,
        .nonce = plan->nonce,
        .state = EXTENT_FINAL,
        .length = plan->length,
        .durable = plan->length,
        .stored = plan->length,
        .is_unfit = true, /* to be compacted, so far */
    };
    uint8_t **map = plan->headers != NULL ? &e->headers : &e->layout;
    *map = copy_of(plan->headers != NULL ? plan->headers : plan->live);
    if (*map == NULL) {
        extent_free(e);
        return NULL;
    }
    if (plan->headers == NULL)
        e->stored = bitmap_rank(plan->live, EXTENT_BLOCKS);
    return e;
}

int store_install_plan(struct store_install *install, const struct install_plan *plan)
{
    struct store *store = install->store;
    assert(install->copy == NULL);
    if (store->failed)
        return -PLX_EFAILED;
    if (!plan_is_sound(plan))
        return -PLX_EFORMAT;
    struct extent *e = extent_of(install, plan);
    if (e == NULL)
        return -ENOMEM;
    uint32_t pieces = pieces_of(e->stored);
    if (e->layout != NULL) {
        pieces += pieces_of(digest_blocks(e->stored));
        install->entries = calloc(e->stored, sizeof *install->entries);
    }
    int result = e->layout != NULL && install->entries == NULL ? -ENOMEM : 0;
    if (result == 0)
        result = space_has_room(store, pieces) ? 0 : -PLX_EFULL;
    if (result == 0)
        result = space_take_pieces(store, &e->runs, pieces);
    if (result < 0) {
        space_give_back(store, &e->runs);
        extent_free(e);
        free(take(install->entries));
        return result;
    }
    memcpy(install->planned, plan->live, BITMAP_BYTES);
    install->copy = e;
    return 0;
}

/* --- put --- */

uint32_t store_install_missing(const struct store_install *install, uint32_t from)
{
    assert(install->copy != NULL);
    for (uint32_t block = from; block < install->copy->length; block++)
        if (is_needed(install, block) && !bitmap_get(install->put, block))
            return block;
    return EXTENT_BLOCKS;
}

void store_install_bury(struct store_install *install, uint32_t block)
{
    assert(block < EXTENT_BLOCKS);
    bitmap_set(install->dead, block);
}

static int check_block(const struct store_install *in, const struct install_block *b,
                       const uint8_t *bytes)
{
    const uint8_t *headers = in->copy->headers;
    if (b->block >= EXTENT_BLOCKS || !bitmap_get(in->planned, b->block) ||
        (b->is_known && !entry_has_block(b->entry.kind)))
        return -PLX_EFORMAT;
    if (b->is_bad)
        return 0;
    if (headers != NULL && bitmap_get(headers, b->block))
        return is_header_at(in->store, in->copy, b->block, bytes) ? 0 : -PLX_ECHECKSUM;
    return !b->is_known || crc32c(bytes, BLOCK_SIZE) == b->entry.crc ? 0 : -PLX_ECHECKSUM;
}

static uint32_t place_of(const struct extent *e, uint32_t block)
{
    return e->layout != NULL ? bitmap_rank(e->layout, block) : block;
}

/* Has the second block its place right behind that of the first? */
static bool follows(const struct extent *e, uint32_t block, uint32_t next)
{
    while (++block < next && e->layout != NULL && !bitmap_get(e->layout, block))
        ;
    return block == next;
}

/* How many of the blocks have their places one behind the other. */
static uint32_t in_a_row(const struct extent *e, const struct install_block *blocks,
                         uint32_t count)
{
    uint32_t n = 1;
    while (n < count && follows(e, blocks[n - 1].block, blocks[n].block))
        n++;
    return n;
}

/* To places one behind the other, wherever these are. */
static async int write_places(struct store_install *in, uint32_t place, uint32_t count,
                              const uint8_t *bytes)
{
    while (count > 0) {
        uint64_t offset_bytes = 0;
        uint32_t n = runs_find(&in->copy->runs, place, count, &offset_bytes);
        assert(n > 0);
        int result = file_write(in->store->file, bytes, (uint64_t)n * BLOCK_SIZE,
                                offset_bytes);
        store_wrote(in->store, result);
        if (result == -ENOSPC)
            allocate_failed(in->store);
        if (result < 0)
            return result;
        place += n;
        count -= n;
        bytes += (size_t)n * BLOCK_SIZE;
    }
    return 0;
}

static async int put_blocks(struct store_install *in, const struct install_block *blocks,
                            uint32_t count, const uint8_t *bytes)
{
    const struct extent *e = in->copy;
    while (count > 0) {
        if (in->store->failed || in->is_cancelled)
            return in->store->failed ? -PLX_EFAILED : -PLX_EMISSING;
        uint32_t n = in_a_row(e, blocks, count), place = place_of(e, blocks[0].block);
        int result = write_places(in, place, n, bytes);
        if (result < 0)
            return result;
        for (uint32_t i = 0; i < n; i++) {
            bitmap_set(in->put, blocks[i].block);
            if (in->entries != NULL && blocks[i].is_known)
                digest_entry_encode(blocks[i].block, &blocks[i].entry, blocks[i].is_bad,
                                    &in->entries[place + i]);
        }
        blocks += n;
        count -= n;
        bytes += (size_t)n * BLOCK_SIZE;
    }
    return 0;
}

async int store_install_put(struct store_install *install,
                            const struct install_block *blocks, uint32_t count,
                            const void *bytes)
{
    assert(install->copy != NULL && (uintptr_t)bytes % BLOCK_SIZE == 0);
    for (uint32_t i = 0; i < count; i++) {
        assert(i == 0 || blocks[i - 1].block < blocks[i].block);
        int result = check_block(install, &blocks[i],
                                 (const uint8_t *)bytes + (size_t)i * BLOCK_SIZE);
        if (result < 0)
            return result;
    }
    install->store->put_ns = loop_now_ns(install->store->loop);
    install->putting++;
    int result = put_blocks(install, blocks, count, bytes);
    install->putting--;
    return result;
}

/* --- finish --- */

/* Moves the entries of live blocks to the front; returns how many. */
static uint32_t pack_entries(struct store_install *in)
{
    const struct extent *e = in->copy;
    uint32_t count = 0, place = 0;
    for (uint32_t block = 0; block < e->length; block++) {
        if (!bitmap_get(e->layout, block))
            continue;
        if (in->entries[place].kind != 0 && is_live(in, block))
            in->entries[count++] = in->entries[place];
        place++;
    }
    return count;
}

static async int write_digest(struct store_install *in)
{
    const struct extent *e = in->copy;
    uint32_t count = pack_entries(in);
    struct digest_head head = {
        .cluster = in->store->super.cluster,
        .disk = e->disk,
        .extent = e->address,
        .nonce = e->nonce,
        .blocks = digest_blocks(count),
    };
    cleanup(free_ptr)
        uint8_t *bytes = aligned_alloc(BLOCK_SIZE, (size_t)head.blocks * BLOCK_SIZE);
    if (bytes == NULL)
        return -ENOMEM;
    for (; head.index < head.blocks; head.index++)
        digest_encode(&head, in->entries, count, bytes + (size_t)head.index * BLOCK_SIZE);
    return write_places(in, pieces_of(e->stored) * PIECE_BLOCKS, head.blocks, bytes);
}

/* What is live now goes into the copy. -ENOMEM. */
static int settle(struct store_install *in)
{
    struct extent *e = in->copy;
    uint8_t *live = calloc(1, BITMAP_BYTES);
    if (live == NULL)
        return -ENOMEM;
    for (uint32_t block = 0; block < e->length; block++)
        if (is_live(in, block))
            bitmap_set(live, block);
    e->live = bitmap_rank(live, EXTENT_BLOCKS);
    e->live_map = live;
    if (in->headers_died)
        headers_drop(e);
    if (e->live == e->stored)
        free(take(e->live_map));
    return 0;
}

static int may_enter(const struct store_install *in, const struct extent *e)
{
    if (in->store->failed)
        return -PLX_EFAILED;
    if (in->is_cancelled)
        return -PLX_EMISSING;
    if (e == NULL)
        return 0;
    if (e->state == EXTENT_FINAL)
        return -PLX_EEXISTS;
    if (e->state == EXTENT_OPEN || (e->length > 0 && e->nonce != in->copy->nonce))
        return -PLX_EPRECONDITION;
    return 0;
}

/* Keeps others from making a record of the extent, and answers reads as if it was not
 * there. NULL: no memory. */
static struct extent *place_holder(struct store *store, struct address address)
{
    struct extent *e = calloc(1, sizeof *e);
    if (e == NULL)
        return NULL;
    e->address = address;
    e->state = EXTENT_STOPPED;
    e->is_locked = true;
    extent_insert(&store->extents, e);
    return e;
}

/* The record is durable: the locked extent becomes what it says. */
static async void become(struct store *store, struct extent *e, struct extent *copy)
{
    struct runs old = e->runs;
    extent_count(&store->extents, e, copy->stored, copy->live);
    free(e->live_map);
    free(e->headers);
    e->disk = copy->disk;
    e->epoch = copy->epoch;
    e->nonce = copy->nonce;
    e->state = EXTENT_FINAL;
    e->length = e->durable = copy->length;
    e->restart_scanned = e->is_unfit = false;
    e->runs = copy->runs;
    copy->runs = (struct runs){0};
    e->live_map = take(copy->live_map);
    e->layout = take(copy->layout);
    e->headers = take(copy->headers);
    e->serial = ++store->extents.serials;
    readers_drain(store, e);
    space_give_back(store, &old); /* E8 */
    trace(store->loop, "extent.install", e->address.v, e->length, e->live);
}

/* With the extent locked. */
static async int record_copy(struct store_install *in, struct extent *e)
{
    int result = record_write(in->store, in->copy, RECORD_PIECES_MAX, KV_SYNCED);
    if (result == 0)
        become(in->store, e, in->copy);
    return result;
}

/* All of it died: so it is gone, and what was there before with it. */
static async int enter_nothing(struct store *store, struct extent *e)
{
    int result = e != NULL ? extent_delete(store, e) : 0;
    if (result < 0)
        extent_unlock(store, e);
    return result;
}

static async int enter_new(struct store_install *in)
{
    struct store *store = in->store;
    struct extent *e = place_holder(store, in->address);
    if (e == NULL)
        return -ENOMEM;
    int result = record_copy(in, e);
    bool is_nothing = result < 0 && result != -PLX_EFAILED;
    if (is_nothing)
        extent_remove(&store->extents, e);
    extent_unlock(store, e);
    if (is_nothing)
        extent_free(e);
    return result;
}

static async int enter(struct store_install *in)
{
    struct store *store = in->store;
    struct extent *e = extent_lock(store, in->address);
    int result = may_enter(in, e);
    if (result == 0)
        result = settle(in);
    if (result == 0 && in->copy->live == 0)
        return enter_nothing(store, e);
    if (result == 0 && e == NULL)
        return enter_new(in);
    if (result == 0)
        result = record_copy(in, e);
    if (e != NULL)
        extent_unlock(store, e);
    return result;
}

async int store_install_finish(struct store_install *install)
{
    struct store *store = install->store;
    int result = -PLX_ENOTHERE;
    assert(install->putting == 0);
    if (store->failed || install->is_cancelled)
        result = store->failed ? -PLX_EFAILED : -PLX_EMISSING;
    else if (install->copy != NULL && store_install_missing(install, 0) == EXTENT_BLOCKS)
        result = install->entries != NULL ? write_digest(install) : 0;
    if (result == 0)
        result = sync_always_wait(store);
    if (result == 0)
        result = enter(install);
    /* A record that failed may be there all the same: then nothing of it is free. */
    if (result == -PLX_EFAILED && install->copy != NULL)
        runs_done(&install->copy->runs);
    store_install_abandon(install);
    if (result == 0)
        compact_changed(store);
    return result;
}
