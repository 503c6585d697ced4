/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What copy_rpc_format.h describes, decoded. Decoders take foreign bytes: they check
 * everything and assert nothing.
 */
#ifndef PARALLAX_BLOCKSTORE_COPY_RPC_H
#define PARALLAX_BLOCKSTORE_COPY_RPC_H

#include "blockstore/address.h"
#include "blockstore/copy_rpc_format.h"
#include "blockstore/header.h"

struct copy_extent {
    struct address extent;
    enum copy_rpc_state state; /* ABSENT: nothing else is said */
    uint64_t disk, epoch, nonce;
    uint32_t length, live, live_crc;
    bool has_headers;
};
void copy_extent_encode(const struct copy_extent *extent, struct copy_rpc_extent *ret);
/* -PLX_EFORMAT */
int copy_extent_decode(const struct copy_rpc_extent *f, struct copy_extent *ret);

/* Extents of one group, in order, none below `from`. */
int copy_page_decode(const void *head, size_t head_len, const void *payload, size_t len,
                     struct address from, struct copy_extent *ret_extents,
                     uint32_t *ret_count, bool *ret_more);

/* What a store says of one extent. */
struct copy_description {
    struct copy_extent extent;
    uint8_t live[BITMAP_BYTES];    /* if it is final */
    uint8_t headers[BITMAP_BYTES]; /* if it has some */
};
int copy_description_decode(const void *head, size_t head_len, const void *payload,
                            size_t len, struct address extent,
                            struct copy_description *ret);

struct copy_block {
    uint32_t block;
    struct entry entry; /* if is_known */
    bool is_known, is_header, is_bad;
    bool has_bytes;
};
struct copy_blocks {
    uint32_t count, next;
    bool has_headers;
    uint32_t bytes_count; /* of these blocks the payload has the bytes */
    struct copy_block at[COPY_RPC_FETCH_MAX];
};
void copy_block_encode(const struct copy_block *block, struct copy_rpc_block *ret);
/* The answer to a request for at most `max` blocks from `from` on; payload_len: of what
 * came with it. */
int copy_blocks_decode(const void *head, size_t head_len, size_t payload_len,
                       uint32_t from, uint32_t max, struct copy_blocks *ret);

#endif
