/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls to members that have what is missing here. The other end of them is
 * blockstore/copy_service.c; of them all only `finalize` and `info` are the store
 * service's.
 *
 * Happy path: one call, whose answer is checked like the foreign bytes it is.
 *
 * What can fail: the network, within the call's time; or the answer breaks a rule, which
 * is as bad as none.
 *
 * On close the calls under way are given up, and later ones refused.
 */
#include "replication/recovery_internal.h"

#define CALL_TIMEOUT_NS  (10 * NS_PER_S)
#define FETCH_TIMEOUT_NS (30 * NS_PER_S) /* the other side makes room for its guests */

static void call_done(struct rpc_call *done)
{
    struct source_call *call = container_of(done, struct source_call, call);
    call->result = done->result;
    call->payload = done->payload;
    if (done->result == 0)
        write_bytes(&call->head, done->answer, done->answer_len);
    if (call->head.bad)
        call->result = -ENOMEM;
    LIST_REMOVE(call, link);
    event_set(&call->over);
}

/* Then `over` is awaited. The head stays as it is until then. */
static void call_begin(struct recovery *r, const struct recovery_source *source,
                       struct source_call *call, uint16_t op, const void *head,
                       size_t len)
{
    *call = (struct source_call){
        .call = {.node = source->node,
                 .op = op,
                 .head = head,
                 .head_len = (uint32_t)len,
                 .timeout_ns = op == COPY_RPC_FETCH ? FETCH_TIMEOUT_NS : CALL_TIMEOUT_NS,
                 .done = call_done}};
    event_init(&call->over);
    call->result = r->is_stopping ? -PLX_ECANCELLED : -EHOSTUNREACH;
    if (r->is_stopping || r->options.rpc == NULL) {
        event_set(&call->over);
        return;
    }
    LIST_INSERT_HEAD(&r->calls, call, link);
    rpc_start(r->options.rpc, &call->call);
}

/* Afterwards call_end, whatever it returns. */
static async int call_wait(struct recovery *r, const struct recovery_source *source,
                           struct source_call *call, uint16_t op, const void *head,
                           size_t len)
{
    call_begin(r, source, call, op, head, len);
    event_wait(&call->over);
    return call->result;
}

static void call_end(struct source_call *call)
{
    writer_done(&call->head);
    buffer_put(take(call->payload.buffer));
}

static const void *payload_of(const struct source_call *call, size_t *ret_len)
{
    *ret_len = call->payload.buffer != NULL ? call->payload.len : 0;
    return call->payload.buffer != NULL ? slice_data(call->payload) : NULL;
}

static struct store_rpc_target target_of(const struct recovery_source *source,
                                         struct address extent)
{
    return (struct store_rpc_target){.incarnation = source->store,
                                     .extent = le64_of(extent.v)};
}

async int source_inventory(struct recovery *r, const struct recovery_source *source,
                           struct address from, struct copy_extent *ret_extents,
                           uint32_t *ret_count, bool *ret_more)
{
    struct copy_rpc_inventory head = {.target = target_of(source, from),
                                      .group = le16_of(address_group(from)),
                                      .max = le16_of(COPY_RPC_PAGE_MAX)};
    struct source_call call;
    size_t len;
    int rc = call_wait(r, source, &call, COPY_RPC_INVENTORY, &head, sizeof head);
    const void *payload = payload_of(&call, &len);
    if (rc == 0)
        rc = copy_page_decode(call.head.bytes, call.head.len, payload, len, from,
                              ret_extents, ret_count, ret_more);
    call_end(&call);
    return rc;
}

async int source_describe(struct recovery *r, const struct recovery_source *source,
                          struct address extent, struct copy_description *ret)
{
    struct store_rpc_target head = target_of(source, extent);
    struct source_call call;
    size_t len;
    int rc = call_wait(r, source, &call, COPY_RPC_DESCRIBE, &head, sizeof head);
    const void *payload = payload_of(&call, &len);
    if (rc == 0)
        rc = copy_description_decode(call.head.bytes, call.head.len, payload, len, extent,
                                     ret);
    call_end(&call);
    return rc;
}

void source_fetch_begin(struct recovery *r, const struct recovery_source *source,
                        const struct copy_extent *extent, uint32_t from, uint32_t max,
                        bool wants_bad, struct source_fetch *fetch)
{
    fetch->from = from;
    fetch->max = max;
    fetch->head = (struct copy_rpc_fetch){
        .target = target_of(source, extent->extent),
        .nonce = le64_of(extent->nonce),
        .length = le32_of(extent->length),
        .from = le32_of(from),
        .max = le32_of(max),
        .flags = le32_of(wants_bad ? COPY_RPC_WANTS_BAD : 0),
    };
    call_begin(r, source, &fetch->call, COPY_RPC_FETCH, &fetch->head, sizeof fetch->head);
}

async int source_fetch_end(struct source_fetch *fetch, struct copy_blocks *ret,
                           struct slice *ret_payload)
{
    struct source_call *call = &fetch->call;
    size_t len;
    event_wait(&call->over);
    int rc = call->result;
    (void)payload_of(call, &len);
    if (rc == 0)
        rc = copy_blocks_decode(call->head.bytes, call->head.len, len, fetch->from,
                                fetch->max, ret);
    *ret_payload = call->payload;
    if (rc == 0)
        call->payload.buffer = NULL;
    else
        ret_payload->buffer = NULL;
    call_end(call);
    return rc;
}

async int source_fetch(struct recovery *r, const struct recovery_source *source,
                       const struct copy_extent *extent, uint32_t from, uint32_t max,
                       bool wants_bad, struct copy_blocks *ret, struct slice *ret_payload)
{
    struct source_fetch fetch;
    source_fetch_begin(r, source, extent, from, max, wants_bad, &fetch);
    return source_fetch_end(&fetch, ret, ret_payload);
}

async int source_finalize(struct recovery *r, const struct recovery_source *source,
                          struct address extent, uint32_t length)
{
    struct store_rpc_finalize head = {.target = target_of(source, extent),
                                      .length = le32_of(length)};
    struct source_call call;
    int rc = call_wait(r, source, &call, STORE_RPC_FINALIZE, &head, sizeof head);
    call_end(&call);
    return rc;
}

static int info_decode(const struct source_call *call, struct copy_extent *ret)
{
    static const enum copy_rpc_state states[] = {[EXTENT_OPEN] = COPY_RPC_OPEN,
                                                 [EXTENT_STOPPED] = COPY_RPC_STOPPED,
                                                 [EXTENT_FINAL] = COPY_RPC_FINAL};
    struct store_rpc_extents head;
    struct store_rpc_extent wire;
    size_t len;
    const void *payload = payload_of(call, &len);
    if (call->head.len != sizeof head)
        return -PLX_EFORMAT;
    memcpy(&head, call->head.bytes, sizeof head);
    if (le32_get(head.count) > 1 || len != le32_get(head.count) * sizeof wire)
        return -PLX_EFORMAT;
    if (len == 0)
        return 0;
    memcpy(&wire, payload, sizeof wire);
    if (wire.state > EXTENT_FINAL || le32_get(wire.length) > EXTENT_BLOCKS)
        return -PLX_EFORMAT;
    if (le64_get(wire.extent) == ret->extent.v) {
        ret->state = states[wire.state];
        ret->nonce = le64_get(wire.nonce);
        ret->length = le32_get(wire.length);
    }
    return 0;
}

async int source_info(struct recovery *r, const struct recovery_source *source,
                      struct address extent, uint64_t disk, struct copy_extent *ret)
{
    struct store_rpc_list head = {.target = target_of(source, extent),
                                  .disk = le64_of(disk),
                                  .max = le32_of(1)};
    struct source_call call;
    *ret = (struct copy_extent){.extent = extent, .state = COPY_RPC_ABSENT};
    int rc = call_wait(r, source, &call, STORE_RPC_LIST, &head, sizeof head);
    if (rc == 0)
        rc = info_decode(&call, ret);
    call_end(&call);
    return rc;
}

void source_cancel_all(struct recovery *r)
{
    struct source_call *call;
    while ((call = LIST_FIRST(&r->calls)) != NULL)
        rpc_cancel(r->options.rpc, &call->call);
}

bool source_has_answered(int code)
{
    return code == 0 || code == -PLX_EMISSING || code == -PLX_EPRECONDITION;
}
