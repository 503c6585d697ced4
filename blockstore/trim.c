/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks of final extents die.
 *
 * Happy path: bits of the live bitmap are cleared and the record is written, unsynced:
 * whoever must know that it is durable syncs the key-value store later. Headers die
 * together, when the extent has left its disk's log; until then they count as live,
 * so that an extent which may still be walked is neither deleted nor compacted.
 *
 * What dies of a copy that is being installed is noted there, and in what it replaces if
 * that is final by now.
 *
 * What can fail: a record write, which is the store's end. Without memory for it the
 * blocks are dead here and the next record of the extent says so.
 *
 * On close no such call may be under way.
 */
#include "blockstore/store_internal.h"

/* Each final extent gets its live bitmap with its first trim. */
static int live_map_make(struct extent *e)
{
    if (e->live_map != NULL)
        return 0;
    uint8_t *map = malloc(BITMAP_BYTES);
    if (map == NULL)
        return -ENOMEM;
    if (e->layout != NULL)
        memcpy(map, e->layout, BITMAP_BYTES);
    else
        bitmap_fill(map, e->length);
    e->live_map = map;
    return 0;
}

/* How many were live. */
static uint32_t live_clear(struct extent *e, const uint32_t *blocks, uint32_t count)
{
    uint32_t died = 0;
    for (uint32_t i = 0; i < count; i++) {
        assert(i == 0 || blocks[i - 1] <= blocks[i]);
        if (blocks[i] >= e->length)
            break;
        if (!bitmap_get(e->live_map, blocks[i]) ||
            (e->headers != NULL && bitmap_get(e->headers, blocks[i])))
            continue;
        bitmap_clear(e->live_map, blocks[i]);
        died++;
    }
    return died;
}

/* All of them. */
static uint32_t headers_clear(struct extent *e)
{
    uint32_t died = bitmap_rank(e->headers, e->length);
    for (uint32_t i = 0; i < BITMAP_BYTES; i++)
        e->live_map[i] &= (uint8_t)~e->headers[i];
    headers_drop(e);
    return died;
}

/* The locked extent, fit to be trimmed; NULL and a code else. */
static async struct extent *lock_final(struct store *store, struct address extent,
                                       int *ret_result)
{
    struct extent *e = extent_lock(store, extent);
    if (store->failed)
        *ret_result = -PLX_EFAILED;
    else if (e == NULL)
        *ret_result = -PLX_EMISSING;
    else if (e->state != EXTENT_FINAL)
        *ret_result = -PLX_EPRECONDITION;
    else
        *ret_result = live_map_make(e);
    if (*ret_result == 0)
        return e;
    if (e != NULL)
        extent_unlock(store, e);
    return NULL;
}

/* Makes a record of what died in a locked extent, and unlocks it. */
static async int trimmed(struct store *store, struct extent *e, uint32_t died)
{
    int result = 0;
    extent_count(&store->extents, e, e->stored, e->live - died); /* E7 */
    compact_changed(store);
    if (e->live == 0) {
        result = extent_delete(store, e);
        if (result == 0)
            return 0;
    } else {
        result = record_write(store, e, RECORD_PIECES_MAX, KV_UNSYNCED);
    }
    extent_unlock(store, e);
    return result;
}

/* A copy that is on its way in has noted it: there is nothing else to trim yet. */
static int trimmed_install(bool is_noted, int result)
{
    bool is_none = result == -PLX_EMISSING || result == -PLX_EPRECONDITION;
    return is_noted && is_none ? 0 : result;
}

async int store_trim(struct store *store, struct address extent, const uint32_t *blocks,
                     uint32_t count)
{
    int result;
    struct extent *e = lock_final(store, extent, &result);
    bool is_noted = install_trim(store, extent, blocks, count);
    if (e == NULL)
        return trimmed_install(is_noted, result);
    return trimmed(store, e, live_clear(e, blocks, count));
}

async int store_trim_headers(struct store *store, struct address extent)
{
    int result;
    struct extent *e = lock_final(store, extent, &result);
    bool is_noted = install_trim_headers(store, extent);
    if (e == NULL)
        return trimmed_install(is_noted, result);
    if (e->headers == NULL) {
        extent_unlock(store, e);
        return 0;
    }
    return trimmed(store, e, headers_clear(e));
}

/* Of what is no header, or all: what is dead in the other copy. */
static uint32_t merge(struct extent *e, const struct store_copy *other)
{
    uint32_t died = 0;
    if (!other->has_headers && e->headers != NULL)
        died = headers_clear(e);
    uint32_t live = bitmap_rank(e->live_map, e->length);
    for (uint32_t i = 0; i < BITMAP_BYTES; i++) {
        uint8_t kept = e->headers != NULL ? e->headers[i] : 0;
        e->live_map[i] &= (uint8_t)(other->live[i] | kept);
    }
    return died + live - bitmap_rank(e->live_map, e->length);
}

async int store_merge_live(struct store *store, struct address extent,
                           const struct store_copy *other)
{
    int result;
    struct extent *e = lock_final(store, extent, &result);
    if (e == NULL)
        return result;
    if (e->length != other->length || e->nonce != other->nonce)
        result = -PLX_EPRECONDITION;
    uint32_t died = result == 0 ? merge(e, other) : 0;
    if (died > 0)
        return trimmed(store, e, died);
    extent_unlock(store, e);
    return result;
}

int store_live_map(const struct store *store, struct address extent, uint8_t *ret_map)
{
    const struct extent *e = extent_find(&store->extents, extent);
    if (e == NULL)
        return -PLX_EMISSING;
    const uint8_t *map = e->live_map != NULL ? e->live_map : e->layout;
    if (map != NULL)
        memcpy(ret_map, map, BITMAP_BYTES);
    else
        bitmap_fill(ret_map, e->length);
    return 0;
}
