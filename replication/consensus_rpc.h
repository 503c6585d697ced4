/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Consensus over runtime/rpc.h. A message that fits a head is a one-way post. A larger
 * one (a snapshot, a few large commands) is cut into parts, which are calls, one after
 * the other; the receiver puts them together. Where one part fails all of it is given up,
 * as if it was lost: Raft repeats it. While one is under way to a node other large ones
 * for that node are dropped.
 *
 * Whoever owns the rpc offers both operations, and hands their requests on.
 */
#ifndef PARALLAX_REPLICATION_CONSENSUS_RPC_H
#define PARALLAX_REPLICATION_CONSENSUS_RPC_H

#include "replication/consensus.h"

#define CONSENSUS_RPC_POST 0x30U /* numbers of operations */
#define CONSENSUS_RPC_PART 0x31U

#define CONSENSUS_POST_MAX        RPC_HEAD_MAX /* bytes of a message that is a post */
#define CONSENSUS_PART_HEAD_BYTES 16U
#define CONSENSUS_PART_MAX        NET_PAYLOAD_MAX
#define CONSENSUS_PART_MS         10000U /* of one call */
/* Of all messages that are being put together. More: refused. */
#define CONSENSUS_PARTS_BYTES CONSENSUS_INBOX_BYTES
/* A message of which so long no part came is forgotten. */
#define CONSENSUS_PARTS_IDLE_MS (2 * CONSENSUS_PART_MS)

struct consensus_rpc;

/* -ENOMEM. `buffers`: for parts on their way out. */
int consensus_rpc_create(struct loop *loop, struct rpc *rpc, struct buffer_pool *buffers,
                         struct consensus_rpc **ret_binding);
/* Before rpc_destroy, and after consensus_close. */
void consensus_rpc_destroy(struct consensus_rpc *binding);
/* For consensus_options; stays valid until it is destroyed. */
struct consensus_link consensus_rpc_link(struct consensus_rpc *binding);
/* Who gets what comes from now on; NULL: nobody. */
void consensus_rpc_attach(struct consensus_rpc *binding, struct consensus *consensus);

/* The handlers of CONSENSUS_RPC_POST (one-way; head_max CONSENSUS_POST_MAX, no payload)
 * and CONSENSUS_RPC_PART (head_max CONSENSUS_PART_HEAD_BYTES, payload_max
 * CONSENSUS_PART_MAX). */
void consensus_rpc_post(struct consensus_rpc *binding, struct rpc_request *request);
void consensus_rpc_part(struct consensus_rpc *binding, struct rpc_request *request);

#endif
