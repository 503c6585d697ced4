/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a node tells the leader of itself. doc/format-rpc.md, "Heartbeats".
 *
 * A later version may be longer: what an older leader does not know it does not read. So
 * what is new comes last.
 */
#ifndef PARALLAX_REPLICATION_NODE_RPC_FORMAT_H
#define PARALLAX_REPLICATION_NODE_RPC_FORMAT_H

#include "runtime/format.h"
#include "runtime/limits.h"

#define HEARTBEAT_RPC     0x41U /* number of the operation; one-way, no payload */
#define HEARTBEAT_VERSION 3U

enum {
    HEARTBEAT_BROKEN = 1, /* its store is out of service */
};

/* Then the address: so many bytes, without a NUL. */
struct heartbeat_head {
    le16 version;
    le16 flags;
    le16 address_len;
    le16 hears; /* nodes that it is connected to, itself included; 0: an older version */
    le64 capacity_bytes, used_bytes, free_bytes; /* of its store; 0: it has none */
    le64 applied;                                /* index in the cluster's log */
};
static_assert(sizeof(struct heartbeat_head) == 40, "packed");

/* Behind the address, since version 3: what it does to become whole. */
struct heartbeat_recovery {
    le32 groups; /* in which something may be missing */
    le32 reserved;
    le64 left_bytes, rate_bytes_s;
};
static_assert(sizeof(struct heartbeat_recovery) == 24, "packed");

#define HEARTBEAT_MAX 1024U /* bytes of all of it, in any version */
static_assert(sizeof(struct heartbeat_head) + DISK_NAME_MAX +
                      sizeof(struct heartbeat_recovery) <=
                  HEARTBEAT_MAX,
              "it fits");

#endif
