/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a store says of its copies to nodes that lack them: heads of requests and answers.
 * doc/format-rpc.md describes it. A number means the same for ever.
 */
#ifndef PARALLAX_BLOCKSTORE_COPY_RPC_FORMAT_H
#define PARALLAX_BLOCKSTORE_COPY_RPC_FORMAT_H

#include "blockstore/record_format.h"
#include "blockstore/store_rpc_format.h"

enum copy_rpc_op {
    COPY_RPC_INVENTORY = 0x20,
    COPY_RPC_DESCRIBE = 0x21,
    COPY_RPC_FETCH = 0x22,
};

enum copy_rpc_state {
    COPY_RPC_ABSENT = 0,
    COPY_RPC_OPEN = 1,
    COPY_RPC_STOPPED = 2,
    COPY_RPC_FINAL = 3,
};

#define COPY_RPC_HAS_HEADERS 1U /* its headers are live */

struct copy_rpc_extent {
    le64 extent, disk, epoch, nonce;
    le32 length;
    le32 live;     /* how many blocks are */
    le32 live_crc; /* of the bitmap of these */
    uint8_t state;
    uint8_t flags;
    uint8_t reserved[2];
};
static_assert(sizeof(struct copy_rpc_extent) == 48, "packed");

/* Extents of a group from target.extent on, in order of address. */
struct copy_rpc_inventory {
    struct store_rpc_target target;
    le16 group;
    le16 max; /* 1 to COPY_RPC_PAGE_MAX */
    le32 reserved;
};
static_assert(sizeof(struct copy_rpc_inventory) == 32, "packed");

#define COPY_RPC_PAGE_MAX 4096U

/* Payload: `count` of struct copy_rpc_extent. */
struct copy_rpc_page {
    le32 count;
    uint8_t more; /* others follow */
    uint8_t reserved[3];
};
static_assert(sizeof(struct copy_rpc_page) == 8, "packed");

/* DESCRIBE has the target alone. Answer: struct copy_rpc_extent; payload, if it is final:
 * the bitmap of live blocks, and that of headers if these are live. */

struct copy_rpc_fetch {
    struct store_rpc_target target;
    le64 nonce;  /* it must be that, */
    le32 length; /* final, and so long */
    le32 from;   /* block in the extent */
    le32 max;    /* blocks, 1 to COPY_RPC_FETCH_MAX */
    le32 flags;
};
static_assert(sizeof(struct copy_rpc_fetch) == 48, "packed");

#define COPY_RPC_FETCH_MAX 256U
#define COPY_RPC_WANTS_BAD 1U /* bytes that do not fit their checksum as well */

enum copy_rpc_block_flags {
    COPY_RPC_BAD = 1,    /* the bytes do not fit, or cannot be read */
    COPY_RPC_KNOWN = 2,  /* key, kind, aux and crc are what its header said */
    COPY_RPC_HEADER = 4, /* it is a header or the roll record */
    COPY_RPC_BYTES = 8,  /* its bytes are in the payload */
    COPY_RPC_BLOCK_FLAGS_ALL = 15,
};

/* All live blocks from `from` on up to `next`. */
struct copy_rpc_blocks {
    le32 count;
    le32 next;     /* where to go on; EXTENT_BLOCKS: these were all */
    uint8_t flags; /* COPY_RPC_HAS_HEADERS */
    uint8_t reserved[7];
    /* Then `count` of struct copy_rpc_block, in ascending order. */
};
static_assert(sizeof(struct copy_rpc_blocks) == 16, "packed");

struct copy_rpc_block {
    uint8_t key[6];
    uint8_t kind, aux;
    le32 crc;
    le16 block;
    uint8_t flags;
    uint8_t reserved;
};
static_assert(sizeof(struct copy_rpc_block) == 16, "packed");

#endif
