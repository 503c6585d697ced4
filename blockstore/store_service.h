/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Offers a store to other nodes, over runtime/rpc.h. The other end of it is
 * replication/replica_remote.c; store_rpc_format.h is what goes between them.
 *
 * Every operation means what store.h says, with these additions:
 * - A request names the incarnation of the store it is meant for; another one answers
 *   -PLX_EMISSING.
 * - CREATE is refused unless `admit` finds the extent in the cluster's state.
 * - FINALIZE with length 0 deletes, and is refused unless `may_delete` says so.
 * - SYNC answers -PLX_ESTOPPED unless the extent is open, under the epoch it was created
 *   with. A store that was started again since has stopped its extents: what it lost
 *   cannot be synced any more, and must not be called durable.
 */
#ifndef PARALLAX_BLOCKSTORE_STORE_SERVICE_H
#define PARALLAX_BLOCKSTORE_STORE_SERVICE_H

#include "blockstore/store.h"
#include "runtime/rpc.h"

struct store_service;

struct store_service_options {
    struct store *store;
    struct loop *loop;
    struct buffer_pool *buffers; /* for blocks that are read */
    /* May this extent be created here? It waits, within bounds, until this node has
     * applied the cluster's log up to `index`. 0, or why not: -PLX_EEPOCH,
     * -PLX_EPRECONDITION, -ETIMEDOUT ... */
    async int (*admit)(void *arg, struct address extent, uint64_t disk, uint64_t epoch,
                       uint64_t index);
    /* May this extent, which is to end at 0, be deleted here? It waits, within bounds,
     * until this node's own state says that it ended so, or is listed no more. What was
     * stopped, also before it was created, must stay so until then: `admit` would let a
     * create through that is late. 0, or -EAGAIN. */
    async int (*may_delete)(void *arg, struct address extent);
    void *arg;
};

/* -ENOMEM */
int store_service_create(const struct store_service_options *options,
                         struct store_service **ret_service);
/* Refuses what comes from now on, and waits for what is being worked on. */
async void store_service_stop(struct store_service *service);
/* After it was stopped, when no request can come any more: the rpc is gone. NULL ok. */
void store_service_destroy(struct store_service *service);

/* What it understands. Whoever owns the rpc offers these, with a handler that hands the
 * requests on. `handle` is NULL here. */
#define STORE_SERVICE_OPS 11U
extern const struct rpc_op store_service_ops[STORE_SERVICE_OPS];
/* Answers the request, now or later. */
void store_service_handle(struct store_service *service, struct rpc_request *request);

#endif
