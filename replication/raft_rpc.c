/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of consensus over calls between nodes.
 *
 * Happy path, out: a small message is posted. A large one is copied, and goes in parts of
 * 1 MiB, the next when the one before it was answered. In: a first part makes the
 * receiver begin; the following ones must continue it; the last one delivers it.
 *
 * What can fail: a call, memory, buffers, the receiver's bounds. The message is dropped
 * on the side that notices, and the other one notices by the next part, or by time.
 *
 * On close calls are cancelled and what is half there is freed.
 */
#include "replication/consensus_rpc.h"

/* The head of a part; little endian (doc/format-consensus.md). */
struct part_head {
    le64 message; /* counts those of the sender's binding; never the same one after the
                   * other, also of two processes */
    le32 total;
    le32 offset;
};
static_assert(sizeof(struct part_head) == CONSENSUS_PART_HEAD_BYTES, "no padding");
static_assert(CONSENSUS_MESSAGE_MAX <= UINT32_MAX, "lengths have 32 bits");

struct outgoing {
    struct rpc_call call;
    struct consensus_rpc *binding;
    uint64_t node, message;
    size_t len, offset, part_len;
    uint8_t *bytes;
    LIST_ENTRY(outgoing) link;
};

struct incoming {
    uint64_t node, message;
    size_t total, len;
    uint8_t *bytes;
    uint64_t heard_ns;
    LIST_ENTRY(incoming) link;
};

struct consensus_rpc {
    struct loop *loop;
    struct rpc *rpc;
    struct buffer_pool *buffers;
    struct consensus *consensus;
    uint64_t next_message;
    bool is_closing;
    uint64_t incoming_bytes; /* totals of all */
    LIST_HEAD(, outgoing) outgoing;
    LIST_HEAD(, incoming) incoming;
};

/* --- out --- */

static void outgoing_free(struct outgoing *out)
{
    LIST_REMOVE(out, link);
    free(out->bytes);
    free(out);
}

static void part_done(struct rpc_call *call);

/* Starts the call of the next part. */
static bool send_part(struct outgoing *out)
{
    struct consensus_rpc *binding = out->binding;
    size_t len = (size_t)min_u64(out->len - out->offset, CONSENSUS_PART_MAX);
    struct buffer *buffer = buffer_create(binding->buffers, len);
    if (buffer == NULL)
        return false;
    memcpy(buffer->data, out->bytes + out->offset, len);
    struct slice slice = {.buffer = buffer, .len = (uint32_t)len};
    struct part_head head = {.message = le64_of(out->message),
                             .total = le32_of((uint32_t)out->len),
                             .offset = le32_of((uint32_t)out->offset)};
    out->part_len = len;
    out->call = (struct rpc_call){.node = out->node,
                                  .op = CONSENSUS_RPC_PART,
                                  .head = &head,
                                  .head_len = sizeof head,
                                  .slices = &slice,
                                  .slice_count = 1,
                                  .timeout_ns = CONSENSUS_PART_MS * NS_PER_MS,
                                  .done = part_done};
    rpc_start(binding->rpc, &out->call);
    buffer_put(buffer);
    return true;
}

static void part_done(struct rpc_call *call)
{
    struct outgoing *out = container_of(call, struct outgoing, call);
    buffer_put(call->payload.buffer);
    out->offset += out->part_len;
    if (call->result != 0 || out->binding->is_closing || out->offset == out->len ||
        !send_part(out))
        outgoing_free(out);
}

static void send_large(struct consensus_rpc *binding, uint64_t node, const void *bytes,
                       size_t len)
{
    struct outgoing *out;
    LIST_FOREACH (out, &binding->outgoing, link)
        if (out->node == node)
            return;
    out = calloc(1, sizeof *out);
    uint8_t *copy = malloc(len);
    if (out == NULL || copy == NULL) {
        free(out);
        free(copy);
        return;
    }
    memcpy(copy, bytes, len);
    out->binding = binding;
    out->node = node;
    out->message = binding->next_message++;
    out->bytes = copy;
    out->len = len;
    LIST_INSERT_HEAD(&binding->outgoing, out, link);
    if (!send_part(out))
        outgoing_free(out);
}

static void send_message(void *arg, uint64_t node, const void *bytes, size_t len)
{
    struct consensus_rpc *binding = arg;
    assert(len != 0 && len <= CONSENSUS_MESSAGE_MAX);
    if (len > CONSENSUS_POST_MAX)
        send_large(binding, node, bytes, len);
    else
        rpc_post(binding->rpc, node, CONSENSUS_RPC_POST, bytes, (uint32_t)len, NULL, 0);
}

/* --- in --- */

static void deliver(struct consensus_rpc *binding, uint64_t node, const void *bytes,
                    size_t len)
{
    if (binding->consensus != NULL)
        consensus_received(binding->consensus, node, bytes, len);
}

void consensus_rpc_post(struct consensus_rpc *binding, struct rpc_request *request)
{
    deliver(binding, request->peer.node, request->head, request->head_len);
}

static void incoming_free(struct consensus_rpc *binding, struct incoming *in)
{
    LIST_REMOVE(in, link);
    binding->incoming_bytes -= in->total;
    free(in->bytes);
    free(in);
}

static struct incoming *incoming_find(struct consensus_rpc *binding, uint64_t node)
{
    struct incoming *in;
    LIST_FOREACH (in, &binding->incoming, link)
        if (in->node == node)
            return in;
    return NULL;
}

static void forget_idle(struct consensus_rpc *binding)
{
    struct incoming *in, *next;
    uint64_t now_ns = loop_now_ns(binding->loop);
    LIST_FOREACH_SAFE (in, &binding->incoming, link, next)
        if (now_ns - in->heard_ns >= CONSENSUS_PARTS_IDLE_MS * NS_PER_MS)
            incoming_free(binding, in);
}

/* Another message of the same node takes the place of what is there. */
static int incoming_begin(struct consensus_rpc *binding, uint64_t node, uint64_t message,
                          size_t total)
{
    struct incoming *old = incoming_find(binding, node);
    if (old != NULL)
        incoming_free(binding, old);
    forget_idle(binding);
    if (total > CONSENSUS_MESSAGE_MAX)
        return -EMSGSIZE;
    if (binding->incoming_bytes + total > CONSENSUS_PARTS_BYTES)
        return -PLX_ELIMIT;
    struct incoming *in = calloc(1, sizeof *in);
    if (in == NULL)
        return -ENOMEM;
    *in = (struct incoming){.node = node, .message = message, .total = total};
    LIST_INSERT_HEAD(&binding->incoming, in, link);
    binding->incoming_bytes += total;
    return 0;
}

/* Memory grows with what has come. */
static int incoming_add(struct incoming *in, const struct part_head *head,
                        struct slice payload)
{
    if (in->message != le64_get(head->message) || in->total != le32_get(head->total) ||
        in->len != le32_get(head->offset))
        return -PLX_EPRECONDITION;
    if (payload.len == 0 || payload.len > in->total - in->len)
        return -EPROTO;
    uint8_t *bytes = realloc(in->bytes, in->len + payload.len);
    if (bytes == NULL)
        return -ENOMEM;
    memcpy(bytes + in->len, slice_data(payload), payload.len);
    in->bytes = bytes;
    in->len += payload.len;
    return 0;
}

static int take_part(struct consensus_rpc *binding, const struct rpc_request *request)
{
    struct part_head head;
    uint64_t node = request->peer.node;
    if (request->head_len != sizeof head || request->payload.buffer == NULL)
        return -EPROTO;
    memcpy(&head, request->head, sizeof head);
    int rc = 0;
    if (le32_get(head.offset) == 0)
        rc = incoming_begin(binding, node, le64_get(head.message), le32_get(head.total));
    struct incoming *in = incoming_find(binding, node);
    if (rc != 0 || in == NULL)
        return rc != 0 ? rc : -PLX_EPRECONDITION;
    in->heard_ns = loop_now_ns(binding->loop);
    rc = incoming_add(in, &head, request->payload);
    if (rc == 0 && in->len == in->total)
        deliver(binding, node, in->bytes, in->len);
    if (rc != 0 || in->len == in->total)
        incoming_free(binding, in);
    return rc;
}

void consensus_rpc_part(struct consensus_rpc *binding, struct rpc_request *request)
{
    rpc_answer(request, take_part(binding, request), NULL, 0, NULL, 0);
}

/* --- the whole --- */

int consensus_rpc_create(struct loop *loop, struct rpc *rpc, struct buffer_pool *buffers,
                         struct consensus_rpc **ret_binding)
{
    struct consensus_rpc *binding = calloc(1, sizeof *binding);
    if (binding == NULL)
        return -ENOMEM;
    binding->loop = loop;
    binding->rpc = rpc;
    binding->buffers = buffers;
    binding->next_message = loop_random_u64(loop);
    LIST_INIT(&binding->outgoing);
    LIST_INIT(&binding->incoming);
    *ret_binding = binding;
    return 0;
}

void consensus_rpc_destroy(struct consensus_rpc *binding)
{
    struct outgoing *out;
    struct incoming *in;
    binding->is_closing = true;
    while ((out = LIST_FIRST(&binding->outgoing)) != NULL)
        rpc_cancel(binding->rpc, &out->call); /* frees it, from inside */
    while ((in = LIST_FIRST(&binding->incoming)) != NULL)
        incoming_free(binding, in);
    free(binding);
}

struct consensus_link consensus_rpc_link(struct consensus_rpc *binding)
{
    return (struct consensus_link){.arg = binding, .send = send_message};
}

void consensus_rpc_attach(struct consensus_rpc *binding, struct consensus *consensus)
{
    binding->consensus = consensus;
}
