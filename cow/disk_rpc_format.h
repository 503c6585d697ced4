/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What hosts say to each other of a disk that one of them owns and another has open:
 * the heads of requests and answers. doc/hand-over.md describes them.
 *
 * A number means the same for ever. A request that grows gets a new number.
 */
#ifndef PARALLAX_COW_DISK_RPC_FORMAT_H
#define PARALLAX_COW_DISK_RPC_FORMAT_H

#include "runtime/format.h"
#include "runtime/limits.h"

enum disk_rpc_op {
    DISK_RPC_READ = 0x48,
    DISK_RPC_HAND_OVER = 0x49,
    DISK_RPC_PREPARE = 0x4a, /* one-way */
    DISK_RPC_HELD = 0x4b,
};

#define DISK_RPC_READ_BYTES_MAX (1 * MIB)

/* Whole blocks, from the host that owns the disk. Answer: as many bytes of payload. */
struct disk_rpc_read {
    le64 disk;
    le64 offset_bytes;
    le32 len_bytes; /* 1 to DISK_RPC_READ_BYTES_MAX / BLOCK_SIZE blocks */
    le32 reserved;
};
static_assert(sizeof(struct disk_rpc_read) == 24, "packed");

enum hand_over_kind {
    HAND_OVER_INCOMING = 1,  /* a client that came after the last hand-over writes */
    HAND_OVER_RETURNING = 2, /* only if the one who is asked has no clients of it */
};

/* The owner is asked to give the disk up; or, if nobody owns it, whoever it was given to
 * is asked whether he still wants it. */
struct disk_rpc_hand_over {
    le64 disk;
    le64 epoch; /* of the lease that is meant: a request that comes late does nothing */
    uint8_t kind;
    uint8_t reserved[7];
};
static_assert(sizeof(struct disk_rpc_hand_over) == 24, "packed");

/* Whatever the outcome: the state that it is of, which the asking side applies first. */
struct disk_rpc_handed_over {
    le64 index; /* of the newest command in the cluster's log that is applied */
};
static_assert(sizeof(struct disk_rpc_handed_over) == 8, "packed");

/* Somebody may ask for the disk before long: there should be little left to do then. */
struct disk_rpc_prepare {
    le64 disk;
};
static_assert(sizeof(struct disk_rpc_prepare) == 8, "packed");

/* Does anybody read this version, or anything of this disk? Asked of a host that has
 * applied the cluster's log up to `index`. Answer: nothing; the code is -PLX_EBUSY if so.
 * doc/reclaim.md */
struct disk_rpc_held {
    le64 index;
    le64 disk;
    le64 version; /* 0: all of the disk */
};
static_assert(sizeof(struct disk_rpc_held) == 24, "packed");

#endif
