/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From header to header through one extent.
 *
 * Happy path: each header says how many blocks of data follow it, so the next one is
 * behind them. A window of the extent is held in memory: 64 KiB where headers are far
 * apart, up to 1 MiB where they are close together or the data is wanted, too.
 *
 * What can fail: a header that is not the one that must stand there (rot, a recycled
 * slab, a forgery in a guest's data) ends the walk. A read that fails is repeated block
 * by block, so that one bad block costs no other.
 *
 * A walk counts as a reader of its extent: its space stays until the walk is over.
 */
#include "blockstore/store_internal.h"

/* So many headers in one window make the next one larger. */
#define HEADS_DENSE 4U

/* --- the chain --- */

static bool is_of_extent(const struct chain *chain, const struct header *head)
{
    return uid_equal(head->cluster, chain->cluster) && head->disk == chain->disk &&
           address_equal(head->extent, chain->extent) && head->epoch == chain->epoch &&
           head->nonce == chain->nonce;
}

bool chain_accepts(const struct chain *chain, const struct header *head)
{
    if (planted(PLANT_RECYCLED_HEADER) && chain->block > 0)
        return head->kind == HEADER_BATCH && head->disk == chain->disk &&
               head->block == chain->block;
    if (!is_of_extent(chain, head))
        return false;
    if (head->block != chain->block || head->previous_crc != chain->previous_crc)
        return false;
    if (chain->block == 0)
        return head->kind == HEADER_ROLL;
    if (head->kind != HEADER_BATCH)
        return false;
    return chain->number == 0 || head->number == chain->number + 1;
}

void chain_advance(struct chain *chain, const struct header *head, uint32_t data_blocks)
{
    chain->block = head->block + 1 + data_blocks;
    chain->previous_crc = head->crc;
    chain->number = head->number;
}

/* --- the window --- */

struct walk *walk_create(struct store *store, const struct extent *e, uint32_t limit)
{
    struct walk *walk = calloc(1, sizeof *walk);
    if (walk == NULL)
        return NULL;
    walk->window = aligned_alloc(BLOCK_SIZE, (size_t)WINDOW_BLOCKS * BLOCK_SIZE);
    if (walk->window == NULL) {
        free(walk);
        return NULL;
    }
    walk->store = store;
    walk->extent = e;
    walk->limit = limit;
    walk->window_want = WINDOW_HOP;
    walk->chain = (struct chain){
        .cluster = store->super.cluster,
        .disk = e->disk,
        .epoch = e->epoch,
        .nonce = e->nonce,
        .extent = e->address,
    };
    return walk;
}

void walk_destroy(struct walk *walk)
{
    free(walk->window);
    free(walk);
}

static bool is_in_window(const struct walk *walk, uint32_t block)
{
    return block >= walk->window_start && block - walk->window_start < walk->window_count;
}

/* Reads `want` blocks from `block` on, or as many as lie side by side there. */
static async int window_load(struct walk *walk, uint32_t block, uint32_t want)
{
    int result = -PLX_EDEAD; /* not stored any more */
    want = min_u32(want, walk->limit - block);
    walk->window_count = 0;
    for (int alone = 0; alone < 2;) {
        uint64_t offset_bytes = 0;
        uint32_t n = extent_place(walk->extent, block, want, &offset_bytes);
        if (n == 0)
            return result;
        result = file_read(walk->store->file, walk->window, (uint64_t)n * BLOCK_SIZE,
                           offset_bytes);
        if (result == 0) {
            walk->window_start = block;
            walk->window_count = n;
            return 0;
        }
        alone += want == 1;
        want = 1;
    }
    return result;
}

static const uint8_t *window_at(const struct walk *walk, uint32_t block)
{
    assert(is_in_window(walk, block));
    return walk->window + (size_t)(block - walk->window_start) * BLOCK_SIZE;
}

/* --- headers --- */

/* Larger windows where headers are close together. */
static void window_adapt(struct walk *walk)
{
    if (walk->heads_in_window >= HEADS_DENSE)
        walk->window_want = min_u32(walk->window_want * 2, WINDOW_BLOCKS);
    else
        walk->window_want = WINDOW_HOP;
    walk->heads_in_window = 0;
}

async int walk_head(struct walk *walk)
{
    uint32_t block = walk->chain.block;
    assert(block < walk->limit);
    if (!is_in_window(walk, block)) {
        if (!walk->wants_data)
            window_adapt(walk);
        int result = window_load(walk, block,
                                 walk->wants_data ? WINDOW_BLOCKS : walk->window_want);
        if (result < 0)
            return result;
    }
    walk->heads_in_window++;
    const uint8_t *bytes = window_at(walk, block);
    int result = block == 0 ? roll_decode(bytes, &walk->head, walk->rolls)
                            : header_decode(bytes, &walk->head, walk->entries);
    if (result < 0 || !chain_accepts(&walk->chain, &walk->head))
        return -PLX_EDAMAGED;
    walk->data_blocks = block == 0 ? 0
                                   : header_data_blocks(walk->entries, walk->head.count);
    return block + 1 + walk->data_blocks <= walk->limit ? 0 : -PLX_EDAMAGED;
}

async int walk_data(struct walk *walk)
{
    uint32_t block = walk->head.block + 1;
    uint32_t entry_count = walk->head.kind == HEADER_BATCH ? walk->head.count : 0;
    for (uint32_t i = 0; i < entry_count; i++) {
        if (!entry_has_block(walk->entries[i].kind))
            continue;
        walk->data_block = block;
        if (!is_in_window(walk, block)) {
            int result = window_load(walk, block, WINDOW_BLOCKS);
            if (result < 0)
                return result;
        }
        if (crc32c(window_at(walk, block), BLOCK_SIZE) != walk->entries[i].crc &&
            !planted(PLANT_SCAN_UNVERIFIED))
            return -PLX_ECHECKSUM;
        block++;
    }
    assert(block == walk->head.block + 1 + walk->data_blocks);
    return 0;
}

void walk_next(struct walk *walk)
{
    chain_advance(&walk->chain, &walk->head, walk->data_blocks);
}

async bool walk_peek(struct walk *walk, uint32_t block, struct header *ret_head,
                     uint32_t *ret_data_blocks)
{
    const struct chain *chain = &walk->chain;
    assert(block > chain->block && block < walk->limit);
    if (!is_in_window(walk, block) && window_load(walk, block, WINDOW_BLOCKS) < 0)
        return false;
    if (header_decode(window_at(walk, block), ret_head, walk->entries) < 0)
        return false;
    *ret_data_blocks = header_data_blocks(walk->entries, ret_head->count);
    return is_of_extent(chain, ret_head) && ret_head->block == block &&
           ret_head->number > chain->number;
}

bool walk_was_header(const struct walk *walk, uint32_t block)
{
    struct header_head_format head;
    if (!is_in_window(walk, block))
        return false;
    memcpy(&head, window_at(walk, block), sizeof head);
    return le64_get(head.nonce) == walk->chain.nonce && le32_get(head.block) == block;
}

/* --- for callers --- */

static async int walk_all(struct walk *walk, const struct extent *e, header_fn *fn,
                          void *arg)
{
    for (;;) {
        /* It may have been cut meanwhile. */
        walk->limit = min_u32(walk->limit, e->length);
        if (walk->chain.block >= walk->limit)
            return 0;
        int result = walk_head(walk);
        if (result < 0)
            return result;
        bool is_roll = walk->head.kind == HEADER_ROLL;
        result = fn(arg, &walk->head, is_roll ? NULL : walk->entries,
                    is_roll ? walk->rolls : NULL);
        if (result != 0)
            return result;
        walk_next(walk);
    }
}

async int store_walk_headers(struct store *store, struct address extent, header_fn *fn,
                             void *arg, uint32_t *ret_end)
{
    struct extent *e = extent_find(&store->extents, extent);
    if (e == NULL)
        return -PLX_EMISSING;
    struct walk *walk = walk_create(store, e, e->length);
    if (walk == NULL)
        return -ENOMEM;
    uint8_t phase = e->phase;
    e->readers[phase]++;
    int result = walk_all(walk, e, fn, arg);
    if (ret_end != NULL)
        *ret_end = walk->chain.block;
    walk_destroy(walk);
    reader_left(store, e, phase);
    return result;
}
