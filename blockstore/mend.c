/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For who rebuilds a block that rotted: what an extent's headers or digest say of its
 * blocks, and writing the block again where it was. A header is one like others as long
 * as it is live. Once it is dead only what it says is needed; with that, from elsewhere,
 * the extent is compacted.
 *
 * Happy path: headers are dead once their disk's log does not need them, but stay where
 * they are until the extent is compacted; from then on the digest says the same, without
 * generations and without what owns no block.
 *
 * What can fail: a header or digest that is damaged itself ends the list. While a block
 * is written the extent is locked, so its space stays its own; a compaction that has read
 * the block before may still carry the rotten bytes on, and they are found again then.
 */
#include "blockstore/compact.h"

struct lister {
    stored_entry_fn *fn;
    void *arg;
};

static int list_header(void *arg, const struct header *head, const struct entry *entries,
                       const struct roll_entry *rolls)
{
    const struct lister *lister = arg;
    uint32_t block = head->block;
    int result = 0;
    (void)rolls;
    for (uint32_t i = 0; entries != NULL && i < head->count && result == 0; i++) {
        block += entry_has_block(entries[i].kind);
        const struct stored_entry stored = {entries[i], block, head->generation};
        result = lister->fn(lister->arg, &stored);
    }
    return result;
}

static async int list_digest(struct inspect *ins, const struct lister *lister)
{
    struct inspected in;
    int more = inspect_resume(ins);
    if (more < 0)
        return more;
    ins->from = ins->to = 0; /* the bytes are of no interest */
    while ((more = inspect_next(ins, &in)) > 0) {
        const struct stored_entry stored = {in.entry, in.block, 0};
        int result = in.is_known ? lister->fn(lister->arg, &stored) : 0;
        if (result == 0 && in.block % BATCH_BLOCKS == 0)
            task_yield();
        if (result != 0) {
            more = result;
            break;
        }
    }
    if (more == 0)
        more = ins->digest_code;
    inspect_release(ins);
    return more;
}

static bool is_compacted(struct store *store, struct address extent)
{
    const struct extent *e = extent_find(&store->extents, extent);
    return e != NULL && e->layout != NULL;
}

async int store_list_entries(struct store *store, struct address extent,
                             stored_entry_fn *fn, void *arg)
{
    struct lister lister = {fn, arg};
    if (!is_compacted(store, extent)) {
        int result = store_walk_headers(store, extent, list_header, &lister, NULL);
        if (result >= 0 || !is_compacted(store, extent))
            return result;
    }
    struct inspect *ins = inspect_create(store, extent, COMPACT_CHUNK_BYTES);
    if (ins == NULL)
        return -ENOMEM;
    int result = list_digest(ins, &lister);
    inspect_destroy(ins);
    return result;
}

/* Where a live block of a locked extent is. */
static int locate(const struct store *store, const struct extent *e, uint32_t block,
                  uint64_t *ret_offset_bytes)
{
    if (store->failed)
        return -PLX_EFAILED;
    if (block >= e->length)
        return -PLX_ENOTHERE;
    bool is_there = extent_is_live(e, block, 1) &&
                    extent_place(e, block, 1, ret_offset_bytes) == 1;
    return is_there ? 0 : -PLX_EDEAD;
}

static async int write_again(struct store *store, const void *bytes,
                             uint64_t offset_bytes)
{
    int result = file_write(store->file, bytes, BLOCK_SIZE, offset_bytes);
    return result == 0 ? sync_always_wait(store) : result;
}

async int store_mend_block(struct store *store, struct address address, const void *bytes,
                           uint32_t crc)
{
    uint64_t offset_bytes = 0;
    assert(crc32c(bytes, BLOCK_SIZE) == crc);
    struct extent *e = extent_lock(store, address_extent(address));
    if (e == NULL)
        return -PLX_EMISSING;
    int result = locate(store, e, address_block(address), &offset_bytes);
    if (result == 0)
        result = write_again(store, bytes, offset_bytes);
    extent_unlock(store, e);
    return result;
}

/* --- headers --- */

bool is_header_at(const struct store *store, const struct extent *e, uint32_t block,
                  const void *bytes)
{
    struct header head;
    int result = block == 0 ? roll_decode(bytes, &head, NULL)
                            : header_decode(bytes, &head, NULL);
    return result == 0 && uid_equal(head.cluster, store->super.cluster) &&
           head.disk == e->disk && address_equal(head.extent, e->address) &&
           head.epoch == e->epoch && head.nonce == e->nonce && head.block == block;
}

static async bool is_header_sound(struct store *store, const struct extent *e,
                                  uint32_t block, uint64_t offset_bytes)
{
    cleanup(free_ptr) uint8_t *bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    return bytes != NULL &&
           file_read(store->file, bytes, BLOCK_SIZE, offset_bytes) == 0 &&
           is_header_at(store, e, block, bytes);
}

/* Of a locked extent whose headers are live. */
static async int mend_header(struct store *store, struct extent *e, uint32_t block,
                             const void *bytes)
{
    uint64_t offset_bytes = 0;
    int result = locate(store, e, block, &offset_bytes);
    if (result < 0)
        return result;
    if (!is_header_at(store, e, block, bytes))
        return -PLX_ECHECKSUM;
    bool is_known = bitmap_get(e->headers, block);
    if (!is_header_sound(store, e, block, offset_bytes))
        result = write_again(store, bytes, offset_bytes);
    else if (is_known)
        return -PLX_EEXISTS;
    if (result < 0 || is_known)
        return result;
    bitmap_set(e->headers, block); /* E10 */
    return record_write(store, e, RECORD_PIECES_MAX, KV_SYNCED);
}

async int store_mend_header(struct store *store, struct address address,
                            const void *bytes)
{
    struct extent *e = extent_lock(store, address_extent(address));
    if (e == NULL)
        return -PLX_EMISSING;
    int result = e->state == EXTENT_FINAL ? -PLX_EDEAD : -PLX_EPRECONDITION;
    if (e->state == EXTENT_FINAL && e->headers != NULL)
        result = mend_header(store, e, address_block(address), bytes);
    extent_unlock(store, e);
    return result;
}

int store_headers_map(const struct store *store, struct address extent, uint8_t *ret_map)
{
    const struct extent *e = extent_find(&store->extents, extent);
    if (e == NULL)
        return -PLX_EMISSING;
    if (e->headers == NULL)
        return -PLX_EDEAD;
    memcpy(ret_map, e->headers, BITMAP_BYTES);
    bitmap_cut(ret_map, e->length);
    return 0;
}

static async int yield_between(void *arg)
{
    const struct store *store = arg;
    task_yield();
    return store->failed ? -PLX_EFAILED : 0;
}

async int store_describe_again(struct store *store, struct address extent,
                               const struct digest_entry_format *known)
{
    const struct section all = {.address = extent, .to = UINT32_MAX, .known = known};
    int result = compact_section(store, &all, yield_between, store);
    if (result == 0)
        compact_changed(store);
    return result;
}
