/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a store says to other nodes: the heads of requests and answers of its service.
 * Blocks travel as payload. doc/format-rpc.md describes it.
 *
 * A number means the same for ever. A request that grows gets a new number.
 */
#ifndef PARALLAX_BLOCKSTORE_STORE_RPC_FORMAT_H
#define PARALLAX_BLOCKSTORE_STORE_RPC_FORMAT_H

#include "runtime/format.h"
#include "runtime/limits.h"

enum store_rpc_op {
    STORE_RPC_CREATE = 0x10,
    STORE_RPC_APPEND = 0x11,
    STORE_RPC_SYNC = 0x12,
    STORE_RPC_STOP = 0x13,
    STORE_RPC_FINALIZE = 0x14,
    STORE_RPC_TRIM_HEADERS = 0x15,
    STORE_RPC_WALK = 0x16,
    STORE_RPC_READ = 0x17,
};

/* Every request begins with it. A store that was replaced or formatted anew is another
 * one: what was meant for its predecessor is refused. */
struct store_rpc_target {
    struct uid incarnation; /* of the store that is meant */
    le64 extent;            /* address of its block 0 */
};
static_assert(sizeof(struct store_rpc_target) == 24, "packed");

/* Answer: nothing. */
struct store_rpc_create {
    struct store_rpc_target target;
    le64 disk, epoch, nonce;
    le64 index; /* of the command that opened it, in the cluster's log */
    le32 slabs_hint;
    le32 reserved;
};
static_assert(sizeof(struct store_rpc_create) == 64, "packed");

#define STORE_RPC_USE_RESERVE 1U

/* Payload: the blocks. Answer: nothing. */
struct store_rpc_append {
    struct store_rpc_target target;
    le64 epoch;
    le32 block;
    le32 flags;
};
static_assert(sizeof(struct store_rpc_append) == 40, "packed");

/* Answer: nothing. The extent must be open still, under this epoch. */
struct store_rpc_sync {
    struct store_rpc_target target;
    le64 epoch;
};
static_assert(sizeof(struct store_rpc_sync) == 32, "packed");

/* STOP and TRIM_HEADERS have the target alone. Answer of STOP: */
struct store_rpc_stopped {
    le32 length;
    uint8_t restart_scanned;
    uint8_t reserved[3];
};
static_assert(sizeof(struct store_rpc_stopped) == 8, "packed");

/* Answer: nothing. */
struct store_rpc_finalize {
    struct store_rpc_target target;
    le32 length;
    le32 reserved;
};
static_assert(sizeof(struct store_rpc_finalize) == 32, "packed");

/* Headers from the `skip`th on, as many as one payload takes. */
struct store_rpc_walk {
    struct store_rpc_target target;
    le32 skip;
    le32 reserved;
};
static_assert(sizeof(struct store_rpc_walk) == 32, "packed");

/* In the payload each header is a le32 with its length and so many bytes of its block:
 * the block without its checksum and the zeros before that, then the checksum. */
struct store_rpc_headers {
    le32 count;
    le32 end;   /* block where the sound part ends, once all are told */
    uint8_t more;
    uint8_t reserved[3];
    le32 code;  /* why the walk ended, negated: 0, or e.g. PLX_EDAMAGED; not with more */
};
static_assert(sizeof(struct store_rpc_headers) == 16, "packed");

/* Answer: `count` blocks as payload. */
struct store_rpc_read {
    struct store_rpc_target target;
    le32 block; /* within the extent */
    le32 count; /* 1 to STORE_RPC_READ_BLOCKS */
};
static_assert(sizeof(struct store_rpc_read) == 32, "packed");

#define STORE_RPC_READ_BLOCKS 256U

#endif
