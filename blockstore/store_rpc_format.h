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
    STORE_RPC_TRIM = 0x18,
    STORE_RPC_LIST = 0x19,
    STORE_RPC_USAGE = 0x1a,
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
    le32 flags;
};
static_assert(sizeof(struct store_rpc_create) == 64, "packed");

#define STORE_RPC_KEEP_RESERVE 1U /* of a create */
#define STORE_RPC_USE_RESERVE  1U /* of an append */

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

/*
 * Of many extents at once; target.extent is 0. In the payload each extent is a
 * store_rpc_trimmed and so many runs behind it. Extents rise, and so do the runs of each,
 * which do not overlap. What is trimmed is durable when it is answered.
 */
struct store_rpc_trim {
    struct store_rpc_target target;
    le32 extent_count; /* at least 1 */
    le32 reserved;
};
static_assert(sizeof(struct store_rpc_trim) == 32, "packed");

struct store_rpc_trimmed {
    le64 extent;
    le32 run_count; /* at least 1 */
    le32 reserved;
};
static_assert(sizeof(struct store_rpc_trimmed) == 16, "packed");

struct store_rpc_run {
    le16 block; /* within the extent */
    le16 count; /* at least 1 */
};
static_assert(sizeof(struct store_rpc_run) == 4, "packed");

/* An extent that is absent is trimmed; one that is not final is left alone. */
struct store_rpc_trim_answer {
    le32 not_final; /* so many extents */
    le32 reserved;
};
static_assert(sizeof(struct store_rpc_trim_answer) == 8, "packed");

/* The extents from target.extent on, in order of address. */
struct store_rpc_list {
    struct store_rpc_target target;
    le64 disk; /* 0: of all */
    le32 max;  /* 1 to STORE_RPC_LIST_MAX */
    le32 reserved;
};
static_assert(sizeof(struct store_rpc_list) == 40, "packed");

#define STORE_RPC_LIST_MAX 16384U

/* Payload: `count` times a store_rpc_extent. */
struct store_rpc_extents {
    le32 count;
    uint8_t more; /* there are others behind these */
    uint8_t reserved[3];
};
static_assert(sizeof(struct store_rpc_extents) == 8, "packed");

#define STORE_RPC_HAS_HEADERS     1U
#define STORE_RPC_RESTART_SCANNED 2U

/* struct extent_info */
struct store_rpc_extent {
    le64 extent, disk, epoch, nonce;
    le32 length, durable, stored, live;
    le32 create_flags;
    uint8_t state; /* 0 open, 1 stopped, 2 final */
    uint8_t flags;
    uint8_t reserved[2];
};
static_assert(sizeof(struct store_rpc_extent) == 56, "packed");
/*
 * How many blocks live in the extents of each disk, of some groups. Payload: the groups,
 * rising, as le16.
 */
struct store_rpc_usage {
    struct store_rpc_target target; /* extent 0 */
    le64 after; /* disks behind this one */
    le32 max;   /* 1 to STORE_RPC_USAGE_MAX */
    le32 group_count;
};
static_assert(sizeof(struct store_rpc_usage) == 40, "packed");

#define STORE_RPC_USAGE_MAX 65536U

/* Answer: store_rpc_extents. Payload: `count` of these, rising. */
struct store_rpc_disk {
    le64 disk;
    le64 live; /* blocks */
};
static_assert(sizeof(struct store_rpc_disk) == 16, "packed");
static_assert(STORE_RPC_USAGE_MAX * sizeof(struct store_rpc_disk) <= 1 * MIB,
              "one payload takes them");
static_assert(STORE_RPC_LIST_MAX * sizeof(struct store_rpc_extent) <= 1 * MIB,
              "one payload takes them");

#endif
