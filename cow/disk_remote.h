/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hand-over of a disk between hosts, and who reads what: what a host answers to others.
 * Each takes a request of its number in cow/disk_rpc_format.h; the table of operations,
 * which the process makes, leads here. None may come in any more once host_close has
 * returned.
 * doc/hand-over.md
 */
#ifndef PARALLAX_COW_DISK_REMOTE_H
#define PARALLAX_COW_DISK_REMOTE_H

#include "cow/disk_rpc_format.h"
#include "cow/host.h"
#include "runtime/rpc.h"

/* What other hosts may have under way here. */
#define REMOTE_READS_SERVED_MAX 64U /* of 1 MiB at most, in the front ends' buffers */
#define HAND_OVERS_MAX          16U /* each holds a task */
#define HELDS_MAX               16U /* likewise */

/* Heads are at most this long; there is no payload. */
#define DISK_RPC_HEAD_MAX 24U

void disk_serve_read(struct host *host, struct rpc_request *request);
void disk_serve_hand_over(struct host *host, struct rpc_request *request);
void disk_serve_prepare(struct host *host, struct rpc_request *request);
void disk_serve_held(struct host *host, struct rpc_request *request);

#endif
