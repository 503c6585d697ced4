/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block by block through an extent that takes no more appends, with what its headers, or
 * its digest, say of each: for compaction, and for whoever looks for rot.
 *
 * Happy path: a window goes over the extent's space, and the blocks that are
 * wanted are checked in it. Without a layout the headers on the way tell what comes
 * behind them; with one the digest is read first.
 *
 * What can fail: a read that fails is repeated block by block, so that one bad block
 * costs no other. Behind a damaged header nothing is known of the blocks up to the next
 * one, which is recognized by its nonce. Without a digest nothing is known of any.
 *
 * It counts as a reader of its extent, but not while it is released; what it knows is
 * looked at again then, since the extent may have been moved, shortened or deleted.
 */
#include "blockstore/inspect.h"

struct inspect *inspect_create(struct store *store, struct address address,
                               uint32_t window_bytes)
{
    struct inspect *ins = calloc(1, sizeof *ins);
    if (ins == NULL)
        return NULL;
    ins->window = aligned_alloc(BLOCK_SIZE, window_bytes);
    ins->window_places = window_bytes / BLOCK_SIZE;
    if (ins->window == NULL) {
        free(ins);
        return NULL;
    }
    ins->store = store;
    ins->address = address;
    ins->to = EXTENT_BLOCKS;
    return ins;
}

void inspect_destroy(struct inspect *ins)
{
    if (ins == NULL)
        return;
    assert(ins->extent == NULL);
    free(ins->digest);
    free(ins->window);
    free(ins);
}

void inspect_release(struct inspect *ins)
{
    reader_left(ins->store, ins->extent, ins->phase);
    ins->extent = NULL;
}

static void hold(struct inspect *ins, struct extent *e)
{
    ins->extent = e;
    ins->phase = e->phase;
    e->readers[ins->phase]++;
}

/* --- the window --- */

/* The bytes at a place, valid until the next suspension. */
static async int place_load(struct inspect *ins, uint32_t place, uint32_t limit,
                            const uint8_t **ret_bytes)
{
    uint32_t want = min_u32(ins->window_places, limit - place);
    if (place < ins->window_place || place - ins->window_place >= ins->window_count) {
        ins->window_count = 0;
        for (;;) {
            uint64_t offset_bytes = 0;
            uint32_t n = runs_find(&ins->extent->runs, place, want, &offset_bytes);
            if (n == 0)
                return -PLX_EDAMAGED;
            int result = file_read(ins->store->file, ins->window,
                                   (uint64_t)n * BLOCK_SIZE, offset_bytes);
            ins->bytes_read += (uint64_t)n * BLOCK_SIZE;
            if (result == 0) {
                ins->window_place = place;
                ins->window_count = n;
                break;
            }
            if (want == 1)
                return result;
            want = 1;
        }
    }
    *ret_bytes = ins->window + (size_t)(place - ins->window_place) * BLOCK_SIZE;
    return 0;
}

/* --- the digest --- */

static bool digest_belongs(const struct inspect *ins, const struct digest_head *head)
{
    const struct extent *e = ins->extent;
    return uid_equal(head->cluster, ins->store->super.cluster) && head->disk == e->disk &&
           address_equal(head->extent, e->address) && head->nonce == e->nonce;
}

/* One block of it. *blocks: how many there are. */
static int digest_take(struct inspect *ins, const uint8_t *bytes, uint32_t index,
                       uint32_t *blocks)
{
    struct digest_head head;
    uint32_t count = 0, had = ins->digest_count;
    int result = digest_decode(bytes, &head, ins->digest + had, &count);
    if (result < 0)
        return result;
    if (!digest_belongs(ins, &head) || head.index != index ||
        (index > 0 && head.blocks != *blocks))
        return -PLX_EDAMAGED;
    if (had > 0 && count > 0 &&
        digest_entry_block(&ins->digest[had]) <=
            digest_entry_block(&ins->digest[had - 1]))
        return -PLX_EDAMAGED;
    *blocks = head.blocks;
    ins->digest_count = had + count;
    return 0;
}

/* -ENOMEM, or what is wrong with the digest is in digest_code. */
static async int digest_load(struct inspect *ins)
{
    uint64_t serial = ins->serial;
    uint32_t first = pieces_of(ins->extent->stored) * PIECE_BLOCKS;
    uint32_t limit = runs_blocks(&ins->extent->runs), blocks = 1;
    if (ins->digest == NULL)
        ins->digest = malloc(DIGEST_BLOCKS_MAX * DIGEST_ENTRIES * sizeof *ins->digest);
    if (ins->digest == NULL)
        return -ENOMEM;
    ins->digest_count = ins->digest_at = 0;
    ins->digest_code = 0;
    for (uint32_t i = 0; i < blocks && ins->digest_code == 0; i++) {
        const uint8_t *bytes = NULL;
        if (first + i >= limit)
            ins->digest_code = -PLX_EDAMAGED;
        else
            ins->digest_code = place_load(ins, first + i, limit, &bytes);
        if (ins->extent->serial != serial)
            return 0; /* the caller sees it, too */
        if (ins->digest_code == 0)
            ins->digest_code = digest_take(ins, bytes, i, &blocks);
    }
    if (ins->digest_code != 0)
        ins->digest_count = 0;
    return 0;
}

/* --- beginning, and beginning again --- */

/* Learns where it is in an extent that is held. */
static async int learn(struct inspect *ins)
{
    struct extent *e;
    do {
        e = ins->extent;
        ins->serial = e->serial;
        ins->window_count = 0;
        ins->entry_at = ins->entry_count = 0;
        ins->is_lost = ins->block > 0;
        ins->chain = (struct chain){
            .cluster = ins->store->super.cluster,
            .disk = e->disk,
            .epoch = e->epoch,
            .nonce = e->nonce,
            .extent = e->address,
        };
        if (e->layout == NULL)
            return 0;
        ins->place = bitmap_rank(e->layout, ins->block);
        int result = digest_load(ins);
        if (result < 0)
            return result;
    } while (e->serial != ins->serial && e->serial != 0);
    return e->serial == 0 ? -PLX_EMISSING : 0;
}

async int inspect_resume(struct inspect *ins)
{
    struct extent *e = extent_find(&ins->store->extents, ins->address);
    if (e == NULL)
        return -PLX_EMISSING;
    if (e->state == EXTENT_OPEN)
        return -PLX_EPRECONDITION;
    hold(ins, e);
    int result = e->serial == ins->serial ? 0 : learn(ins);
    if (result < 0)
        inspect_release(ins);
    return result;
}

/* --- by headers --- */

static int header_take(struct inspect *ins, uint32_t block, const uint8_t *bytes)
{
    struct header head;
    int result = block == 0 ? roll_decode(bytes, &head, NULL)
                            : header_decode(bytes, &head, ins->entries);
    if (result < 0)
        return result == -PLX_ECHECKSUM ? result : -PLX_EDAMAGED;
    if (ins->is_lost) {
        ins->chain.block = block;
        ins->chain.previous_crc = head.previous_crc;
        ins->chain.number = 0;
    }
    if (!chain_accepts(&ins->chain, &head))
        return -PLX_EDAMAGED;
    uint32_t count = 0;
    for (uint32_t i = 0; block > 0 && i < head.count; i++)
        if (entry_has_block(ins->entries[i].kind))
            ins->entries[count++] = ins->entries[i];
    if (block + 1 + count > ins->extent->length)
        return -PLX_EDAMAGED;
    chain_advance(&ins->chain, &head, count);
    ins->entry_count = count;
    ins->entry_at = 0;
    return 0;
}

static async int next_by_headers(struct inspect *ins, struct inspected *ret)
{
    struct extent *e = ins->extent;
    const uint8_t *bytes = NULL;
    if (ins->block >= e->length)
        return 0;
    ret->block = ins->block++;
    if (ins->entry_at < ins->entry_count) {
        ret->entry = ins->entries[ins->entry_at++];
        ret->is_known = true;
        return 1;
    }
    bool was_lost = ins->is_lost;
    int code = place_load(ins, ret->block, e->length, &bytes);
    if (code == 0)
        code = header_take(ins, ret->block, bytes);
    ins->is_lost = code != 0;
    ret->is_header = !was_lost || code == 0 ||
                     (e->headers != NULL && bitmap_get(e->headers, ret->block));
    if (ret->is_header) {
        ret->code = code;
        ret->bytes = bytes;
    }
    return 1;
}

/* --- by the digest --- */

static int next_by_digest(struct inspect *ins, struct inspected *ret)
{
    const uint8_t *layout = ins->extent->layout;
    while (ins->block < EXTENT_BLOCKS && !bitmap_get(layout, ins->block))
        ins->block++;
    if (ins->block == EXTENT_BLOCKS)
        return 0;
    ret->block = ins->block++;
    ins->place++;
    const struct digest_entry_format *digest = ins->digest;
    while (ins->digest_at < ins->digest_count &&
           digest_entry_block(&digest[ins->digest_at]) < ret->block)
        ins->digest_at++;
    if (ins->digest_at < ins->digest_count &&
        digest_entry_block(&digest[ins->digest_at]) == ret->block) {
        ret->is_known = digest_entry_decode(&digest[ins->digest_at], &ret->entry);
        ret->was_bad = digest_entry_is_bad(&digest[ins->digest_at]);
    }
    return 1;
}

/* --- */

static async int next_one(struct inspect *ins, struct inspected *ret)
{
    struct extent *e = ins->extent;
    bool has_layout = e->layout != NULL;
    int result = has_layout ? next_by_digest(ins, ret) : next_by_headers(ins, ret);
    if (result <= 0 || ret->is_header)
        return result;
    if (!ret->is_known && ins->known != NULL)
        ret->is_known = digest_entry_decode(&ins->known[ret->block], &ret->entry);
    if (ret->block < ins->from || ret->block >= ins->to ||
        !extent_is_live(e, ret->block, 1))
        return 1;
    uint32_t place = has_layout ? ins->place - 1 : ret->block;
    ret->code = place_load(ins, place, e->stored, &ret->bytes);
    if (ret->code == 0 && ret->is_known &&
        crc32c(ret->bytes, BLOCK_SIZE) != ret->entry.crc)
        ret->code = -PLX_ECHECKSUM;
    return 1;
}

async int inspect_next(struct inspect *ins, struct inspected *ret)
{
    struct extent *e = ins->extent;
    for (;;) {
        *ret = (struct inspected){0};
        if (e->serial != ins->serial) {
            int result = e->serial == 0 ? -PLX_EMISSING : learn(ins);
            if (result < 0)
                return result;
        }
        int result = next_one(ins, ret);
        if (result <= 0 || ret->code == 0 || e->serial == ins->serial)
            return result;
        ins->block = ret->block; /* it was moved while it was read */
    }
}
