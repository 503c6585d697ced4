/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Offers the copies of a store to nodes that lack them, over runtime/rpc.h: what is
 * there, what of it is live, and the blocks, checked before they leave. copy_rpc_format.h
 * is what goes between them; who asks is replication/recovery.h.
 *
 * What is said here is taken for the truth about a group: what this store has not is
 * dead. So INVENTORY and DESCRIBE are refused (-PLX_EPRECONDITION) unless this node
 * believes that it is a whole member of the group. A request for another incarnation of
 * the store is refused with the same code, so that it cannot be taken for "there is
 * none".
 */
#ifndef PARALLAX_BLOCKSTORE_COPY_SERVICE_H
#define PARALLAX_BLOCKSTORE_COPY_SERVICE_H

#include "blockstore/copy_rpc.h"
#include "blockstore/store.h"
#include "runtime/rpc.h"

struct copy_service;

struct copy_service_options {
    struct store *store;
    struct loop *loop;
    struct buffer_pool *buffers; /* for what is sent */
    /* Is this node whole in this group, as far as it knows? Must not suspend. */
    bool (*is_whole)(void *arg, uint16_t group);
    /* So many bytes were read: makes room for guests. NULL: does not. */
    async void (*rest)(void *arg, uint64_t bytes);
    /* Something in this extent is not what it should be. Must not suspend. NULL ok. */
    void (*bad)(void *arg, struct address extent);
    void *arg;
};

/* -ENOMEM */
int copy_service_create(const struct copy_service_options *options,
                        struct copy_service **ret_service);
/* Refuses what comes from now on, and waits for what is being worked on. */
async void copy_service_stop(struct copy_service *service);
/* After it was stopped, when no request can come any more. NULL ok. */
void copy_service_destroy(struct copy_service *service);

/* As store_service_ops. */
#define COPY_SERVICE_OPS 3U
extern const struct rpc_op copy_service_ops[COPY_SERVICE_OPS];
void copy_service_handle(struct copy_service *service, struct rpc_request *request);

#endif
