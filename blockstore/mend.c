/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For who rebuilds a block that rotted: what an extent's headers or digest say of its
 * blocks, and writing the block again where it was.
 *
 * Happy path: headers are dead once their disk's log does not need them, but stay where
 * they are until the extent is compacted; from then on the digest says the same, without
 * generations and without what owns no block.
 *
 * What can fail: a header or digest that is damaged itself ends the list. While a block
 * is written the extent is locked, so its space stays its own; a compaction that has read
 * the block before may still carry the rotten bytes on, and they are found again then.
 */
#include "blockstore/inspect.h"

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
    struct inspect *ins = inspect_create(store, extent);
    if (ins == NULL)
        return -ENOMEM;
    int result = list_digest(ins, &lister);
    inspect_destroy(ins);
    return result;
}

async int store_mend_block(struct store *store, struct address address, const void *bytes,
                           uint32_t crc)
{
    uint32_t block = address_block(address);
    uint64_t offset_bytes = 0;
    assert(crc32c(bytes, BLOCK_SIZE) == crc);
    struct extent *e = extent_lock(store, address_extent(address));
    if (e == NULL)
        return -PLX_EMISSING;
    int result = 0;
    if (store->failed)
        result = -PLX_EFAILED;
    else if (block >= e->length)
        result = -PLX_ENOTHERE;
    else if (!extent_is_live(e, block, 1) ||
             extent_place(e, block, 1, &offset_bytes) != 1)
        result = -PLX_EDEAD;
    if (result == 0)
        result = file_write(store->file, bytes, BLOCK_SIZE, offset_bytes);
    if (result == 0)
        result = sync_always_wait(store);
    extent_unlock(store, e);
    return result;
}
