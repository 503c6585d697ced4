/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dead blocks of many extents at once: in one message between nodes (STORE_RPC_TRIM in
 * store_rpc_format.h), and into a store.
 */
#ifndef PARALLAX_BLOCKSTORE_TRIMS_H
#define PARALLAX_BLOCKSTORE_TRIMS_H

#include "blockstore/store.h"

/* Blocks of one extent. */
struct block_run {
    struct address address;
    uint32_t count; /* at least 1 */
};

/* How many of these runs, from the first on, lie in the same extent as the first. */
uint32_t trims_of_extent(const struct block_run *runs, uint32_t count);

/* Clears runs of one extent, sorted; some may overlap. As store_trim. */
async int trims_clear(struct store *store, const struct block_run *runs, uint32_t count);

/* A payload that is being filled. */
struct trims_writer {
    uint8_t *bytes;
    size_t cap, len;
    uint32_t extent_count;
    /* private: */
    size_t extent_at;
    struct address extent;
    uint32_t next; /* blocks of this extent below were written */
};
/* Sorted runs; what two name is written once. False: there is no room for it. */
bool trims_add(struct trims_writer *w, struct block_run run);

/* Of foreign bytes: 0, or -PLX_EFORMAT. */
int trims_check(const void *bytes, size_t len, uint32_t extent_count);
/* Bytes that were checked. Extents that are absent are passed over, those that are not
 * final are counted. Durable when it returns 0. */
async int trims_apply(struct store *store, const void *bytes, size_t len,
                      uint32_t *ret_not_final);

#endif
