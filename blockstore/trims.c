/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Happy path: the payload is checked as a whole, then cleared extent by extent, and one
 * synced write makes all of it durable.
 *
 * What can fail: the payload breaks a rule, and nothing is done; memory, or the store,
 * and some of it may be done. Doing it again is harmless.
 */
#include "blockstore/trims.h"

#include "blockstore/store_rpc_format.h"
#include "runtime/task.h"

/* Block numbers of one call of the store: 8 KiB of a task's stack. */
#define BLOCKS_AT_ONCE 2048U

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

uint32_t trims_of_extent(const struct block_run *runs, uint32_t count)
{
    struct address extent = address_extent(runs[0].address);
    uint32_t n = 1;
    while (n < count && address_equal(address_extent(runs[n].address), extent))
        n++;
    return n;
}

/* --- into a store --- */

/* Block numbers on their way to the store. */
struct clearing {
    struct store *store;
    struct address extent;
    uint32_t count;
    uint32_t next; /* a block may be named twice */
    uint32_t blocks[BLOCKS_AT_ONCE];
};

static async int clear_some(struct clearing *clearing)
{
    uint32_t count = clearing->count;
    clearing->count = 0;
    return count == 0 ? 0
                      : store_trim(clearing->store, clearing->extent, clearing->blocks,
                                   count);
}

static async int clear_run(struct clearing *clearing, uint32_t block, uint32_t count)
{
    uint32_t end = block + count;
    int rc = 0;
    for (block = larger(block, clearing->next); rc == 0 && block < end; block++) {
        clearing->blocks[clearing->count++] = block;
        if (clearing->count == BLOCKS_AT_ONCE)
            rc = clear_some(clearing);
    }
    clearing->next = larger(clearing->next, end);
    return rc;
}

async int trims_clear(struct store *store, const struct block_run *runs, uint32_t count)
{
    struct clearing clearing = {.store = store,
                                .extent = address_extent(runs[0].address)};
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < count; i++)
        rc = clear_run(&clearing, address_block(runs[i].address), runs[i].count);
    return rc == 0 ? clear_some(&clearing) : rc;
}

/* --- as bytes --- */

static bool put(struct trims_writer *w, const void *bytes, size_t len)
{
    if (len > w->cap - w->len)
        return false;
    memcpy(w->bytes + w->len, bytes, len);
    w->len += len;
    return true;
}

static bool begin_extent(struct trims_writer *w, struct address extent)
{
    struct store_rpc_trimmed head = {.extent = le64_of(extent.v)};
    size_t at = w->len;
    if (w->cap - w->len < sizeof head + sizeof(struct store_rpc_run))
        return false;
    (void)put(w, &head, sizeof head);
    w->extent_count++;
    w->extent_at = at;
    w->extent = extent;
    w->next = 0;
    return true;
}

bool trims_add(struct trims_writer *w, struct block_run run)
{
    struct address extent = address_extent(run.address);
    uint32_t block = address_block(run.address), end = block + run.count;
    assert(run.count > 0 && end <= EXTENT_BLOCKS);
    bool is_new = w->extent_count == 0 || !address_equal(extent, w->extent);
    assert(w->extent_count == 0 || extent.v >= w->extent.v);
    if (is_new && !begin_extent(w, extent))
        return false;
    block = larger(block, w->next);
    if (block >= end)
        return true;
    struct store_rpc_run wire = {.block = le16_of((uint16_t)block),
                                 .count = le16_of((uint16_t)(end - block))};
    if (!put(w, &wire, sizeof wire))
        return false;
    w->next = end;
    struct store_rpc_trimmed head;
    memcpy(&head, w->bytes + w->extent_at, sizeof head);
    head.run_count = le32_of(le32_get(head.run_count) + 1);
    memcpy(w->bytes + w->extent_at, &head, sizeof head);
    return true;
}

/* Takes the next extent's head off the bytes; NULL: there is not one whole. */
static const struct store_rpc_run *next_extent(struct reader *r,
                                               struct store_rpc_trimmed *ret_head)
{
    const void *head = read_bytes(r, sizeof *ret_head);
    if (head == NULL)
        return NULL;
    memcpy(ret_head, head, sizeof *ret_head);
    uint32_t count = le32_get(ret_head->run_count);
    if (count == 0 || count > EXTENT_BLOCKS)
        return NULL;
    return (const void *)read_bytes(r, count * sizeof(struct store_rpc_run));
}

static bool runs_are_sound(const struct store_rpc_run *runs, uint32_t count)
{
    uint32_t next = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = le16_get(runs[i].block), n = le16_get(runs[i].count);
        if (block < next || n == 0 || block >= EXTENT_BLOCKS ||
            n > EXTENT_BLOCKS - block)
            return false;
        next = block + n;
    }
    return true;
}

int trims_check(const void *bytes, size_t len, uint32_t extent_count)
{
    struct reader r = reader_of(bytes, len);
    uint64_t last = 0;
    for (uint32_t i = 0; i < extent_count; i++) {
        struct store_rpc_trimmed head;
        const struct store_rpc_run *runs = next_extent(&r, &head);
        struct address extent = {runs != NULL ? le64_get(head.extent) : 0};
        if (runs == NULL || extent.v <= last || address_block(extent) != 0 ||
            address_group(extent) == 0 || le32_get(head.reserved) != 0 ||
            !runs_are_sound(runs, le32_get(head.run_count)))
            return -PLX_EFORMAT;
        last = extent.v;
    }
    return extent_count > 0 && r.left == 0 ? 0 : -PLX_EFORMAT;
}

static async int apply_extent(struct store *store, const struct store_rpc_trimmed *head,
                              const struct store_rpc_run *runs)
{
    struct clearing clearing = {.store = store, .extent = {le64_get(head->extent)}};
    uint32_t count = le32_get(head->run_count);
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < count; i++)
        rc = clear_run(&clearing, le16_get(runs[i].block), le16_get(runs[i].count));
    return rc == 0 ? clear_some(&clearing) : rc;
}

async int trims_apply(struct store *store, const void *bytes, size_t len,
                      uint32_t *ret_not_final)
{
    struct reader r = reader_of(bytes, len);
    uint32_t not_final = 0;
    while (r.left > 0) {
        struct store_rpc_trimmed head;
        const struct store_rpc_run *runs = next_extent(&r, &head);
        assert(runs != NULL); /* it was checked */
        int rc = apply_extent(store, &head, runs);
        not_final += rc == -PLX_EPRECONDITION;
        if (rc != 0 && rc != -PLX_EPRECONDITION && rc != -PLX_EMISSING)
            return rc;
        task_yield();
    }
    int rc = store_settle(store);
    if (rc == 0)
        *ret_not_final = not_final;
    return rc;
}
