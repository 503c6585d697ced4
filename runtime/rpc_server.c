/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls, the server's side: connections that others made, and their requests.
 *
 * Happy path: a request is checked against its operation, counted, and given to the
 * handler; rpc_answer sends the answer on the same connection and frees it.
 *
 * What can fail: what does not pass the checks is answered here and never reaches a
 * handler. A connection that ends leaves its requests to themselves ("orphans"): their
 * answers go nowhere. A peer gets no new connection while too many of them are left.
 *
 * On rpc_destroy all requests become nobody's; rpc_answer only frees them.
 *
 * Q1  Reading stops while a connection has RPC_INFLIGHT_MAX requests, or too many bytes
 *     of answers that the peer does not read. Callers that keep to their own limits are
 *     never stopped; so their pings are always read.
 */
#include "runtime/log.h"
#include "runtime/rpc_internal.h"
#include "runtime/trace.h"

/* Answers that the peer does not read. A caller that keeps to the rules has at most so
 * many under way. */
#define ANSWER_BYTES_MAX (RPC_INFLIGHT_MAX * (NET_PAYLOAD_MAX + NET_HEAD_MAX))
#define NOBODY_BYTES_MAX (1 * MIB)

static struct request_state *request_state_of(struct rpc_request *request)
{
    return (void *)request->priv;
}

void rpc_server_init(struct rpc *rpc)
{
    TAILQ_INIT(&rpc->incoming);
    TAILQ_INIT(&rpc->orphans);
}

/* --- connections --- */

void rpc_incoming_throttle(struct rpc_incoming *in)
{
    uint64_t bytes_max = in->link.peer->node == 0 ? NOBODY_BYTES_MAX : ANSWER_BYTES_MAX;
    bool is_full = in->request_count >= RPC_INFLIGHT_MAX ||
                   net_conn_queued_bytes(in->link.conn) > bytes_max;
    net_conn_pause(in->link.conn, is_full); /* Q1 */
}

/* The connection is gone already. */
static void incoming_free(struct rpc_incoming *in)
{
    struct rpc *rpc = in->link.rpc;
    struct rpc_peer *peer = in->link.peer;
    struct request_state *state;
    while ((state = TAILQ_FIRST(&in->requests)) != NULL) {
        TAILQ_REMOVE(&in->requests, state, link);
        state->incoming = NULL;
        TAILQ_INSERT_TAIL(&rpc->orphans, state, link);
    }
    rpc_link_stop(&in->link);
    TAILQ_REMOVE(&rpc->incoming, in, entry);
    peer->incoming_count--;
    free(in);
    rpc_peer_check(peer);
}

void rpc_incoming_lost(struct rpc_incoming *in)
{
    net_conn_close(in->link.conn);
    incoming_free(in);
}

static void server_opened(void *arg, struct net_conn *conn)
{
    (void)arg, (void)conn; /* all was done when it was accepted */
}

static void server_closed(void *arg, struct net_conn *conn, int code, const char *why)
{
    struct rpc_incoming *in = arg;
    (void)conn;
    log_debug(in->link.rpc->loop, "node %llu: its connection has ended: %s (%s)",
              (unsigned long long)in->link.peer->node, why, err_name(code));
    incoming_free(in);
}

/* --- requests --- */

/* Without memory there is no answer; so that the caller knows, the connection ends. in
 * is gone then (false). */
static bool answer_short(struct rpc_incoming *in, const struct rpc_head *request,
                         int code)
{
    struct rpc_head head = {
        .kind = RPC_KIND_ANSWER,
        .op = request->op,
        .code = code,
        .call = request->call,
    };
    if (rpc_send_short(in->link.rpc, in->link.conn, &head) != -ENOMEM)
        return true;
    rpc_incoming_lost(in);
    return false;
}

/* What can be said of a request without its handler. */
static int request_check(const struct rpc_incoming *in, const struct rpc_head *head,
                         const struct rpc_op *op, uint32_t payload_len)
{
    if (op == NULL)
        return -ENOSYS;
    if (in->link.peer->node == 0 && !op->allows_nobody)
        return -PLX_EDENIED;
    if (op->is_one_way != (head->kind == RPC_KIND_ONE_WAY))
        return -EPROTO;
    if (head->rest_len > op->head_max || payload_len > op->payload_max)
        return -EMSGSIZE;
    return 0;
}

static struct rpc_request *request_create(struct rpc_incoming *in,
                                          const struct rpc_op *op,
                                          const struct rpc_head *head,
                                          struct slice payload)
{
    struct rpc_request *request = malloc(sizeof *request + head->rest_len);
    if (request == NULL)
        return NULL;
    void *copy = request + 1;
    memcpy(copy, head->rest, head->rest_len);
    *request = (struct rpc_request){
        .op = op,
        .peer = net_conn_peer(in->link.conn),
        .head = copy,
        .head_len = head->rest_len,
        .payload = payload,
        .rpc = in->link.rpc,
    };
    *request_state_of(request) = (struct request_state){
        .incoming = in,
        .peer = in->link.peer,
        .call = head->call,
        .request = request,
    };
    return request;
}

static void request_free(struct rpc_request *request)
{
    struct buffer *buffer = request->payload.buffer;
    free(request);
    buffer_put(buffer);
}

static void request_refuse(struct rpc_incoming *in, const struct rpc_head *head, int code,
                           struct slice payload)
{
    struct rpc *rpc = in->link.rpc;
    metric_add(rpc->refusals, 1);
    trace(rpc->loop, "rpc.refuse", head->call, head->op, (uint64_t) - (int64_t)code);
    if (head->kind != RPC_KIND_REQUEST || answer_short(in, head, code))
        rpc_incoming_throttle(in);
    buffer_put(payload.buffer);
}

static void request_begin(struct rpc_incoming *in, const struct rpc_head *head,
                          struct slice payload)
{
    struct rpc *rpc = in->link.rpc;
    const struct rpc_op *op = head->op < rpc->op_count ? rpc->ops[head->op] : NULL;
    int rc = request_check(in, head, op, payload.buffer != NULL ? payload.len : 0);
    struct rpc_request *request = NULL;
    if (rc == 0)
        request = request_create(in, op, head, payload);
    if (request == NULL) {
        request_refuse(in, head, rc != 0 ? rc : -ENOMEM, payload);
        return;
    }
    metric_add(rpc->requests, 1);
    trace(rpc->loop, "rpc.request", head->call, head->op, in->link.peer->node);
    if (op->is_one_way) {
        op->handle(rpc->options.arg, request);
        request_free(request);
        return;
    }
    TAILQ_INSERT_TAIL(&in->requests, request_state_of(request), link);
    in->request_count++;
    in->link.peer->requests++;
    rpc_incoming_throttle(in);
    op->handle(rpc->options.arg, request); /* request, and in, may be gone */
}

static void server_received(void *arg, struct net_conn *conn, const void *bytes,
                            size_t len, struct slice payload)
{
    struct rpc_incoming *in = arg;
    struct rpc_head head;
    uint64_t payload_len = payload.buffer != NULL ? payload.len : 0;
    int rc = rpc_head_decode(bytes, len, &head);
    if (rc != 0) {
        log_warning(in->link.rpc->loop,
                    "node %llu at %s sent what is no message; connection closed",
                    (unsigned long long)in->link.peer->node, net_conn_address(conn));
        rpc_incoming_lost(in);
        buffer_put(payload.buffer);
    } else if (rpc_link_heard(&in->link, &head, len + payload_len) ||
               head.kind == RPC_KIND_ANSWER) {
        buffer_put(payload.buffer); /* nothing was asked on this connection */
    } else {
        request_begin(in, &head, payload);
    }
}

bool rpc_server_accepted(void *arg, struct net_conn *conn,
                         const struct net_handlers **ret_handlers, void **ret_arg)
{
    static const struct net_handlers handlers = {
        .opened = server_opened,
        .received = server_received,
        .closed = server_closed,
    };
    struct rpc *rpc = arg;
    struct net_identity identity = net_conn_peer(conn);
    struct rpc_peer *peer = rpc_peer_get(rpc, identity.node);
    uint32_t max = identity.node == 0 ? RPC_NOBODIES_MAX : RPC_INCOMING_MAX;
    if (peer == NULL)
        return false;
    struct rpc_incoming *in = NULL;
    if (peer->incoming_count < max && peer->requests < RPC_REQUESTS_MAX)
        in = malloc(sizeof *in);
    if (in == NULL) {
        rpc_peer_check(peer);
        return false;
    }
    *in = (struct rpc_incoming){
        .link = {.rpc = rpc, .conn = conn, .peer = peer, .incoming = in},
    };
    TAILQ_INIT(&in->requests);
    TAILQ_INSERT_TAIL(&rpc->incoming, in, entry);
    peer->incoming_count++;
    peer->heard_ns = loop_now_ns(rpc->loop);
    rpc_link_start(&in->link);
    rpc_peer_hurry(peer);
    *ret_handlers = &handlers;
    *ret_arg = in;
    return true;
}

/* --- answers --- */

/* Takes it out of everything; returns where its answer goes, or NULL. */
static struct rpc_incoming *request_end(struct rpc_request *request)
{
    struct request_state *state = request_state_of(request);
    struct rpc_incoming *in = state->incoming;
    if (in != NULL) {
        TAILQ_REMOVE(&in->requests, state, link);
        in->request_count--;
    } else if (request->rpc != NULL) {
        TAILQ_REMOVE(&request->rpc->orphans, state, link);
    }
    if (request->rpc != NULL) {
        state->peer->requests--;
        rpc_peer_check(state->peer);
    }
    return in;
}

void rpc_answer(struct rpc_request *request, int code, const void *bytes, size_t len,
                const struct slice *slices, uint32_t slice_count)
{
    assert(code <= 0 && code >= RPC_CODE_MIN && !request->op->is_one_way);
    struct rpc_head head = {
        .kind = RPC_KIND_ANSWER,
        .op = request->op->number,
        .code = code,
        .call = request_state_of(request)->call,
        .rest = bytes,
        .rest_len = len,
    };
    struct rpc_incoming *in = request_end(request);
    struct rpc_message *m = NULL;
    if (in != NULL) {
        trace(in->link.rpc->loop, "rpc.answer", head.call, head.op, slice_count);
        m = rpc_message_create(&head, slices, slice_count);
        bool is_sent = m != NULL &&
                       rpc_message_send(in->link.rpc, in->link.conn, m) != -ENOMEM;
        if (is_sent || answer_short(in, &head, -ENOMEM))
            rpc_incoming_throttle(in);
    }
    rpc_message_free(m);
    request_free(request);
}

void rpc_server_destroy(struct rpc *rpc)
{
    struct rpc_incoming *in;
    struct request_state *state;
    while ((in = TAILQ_FIRST(&rpc->incoming)) != NULL)
        incoming_free(in);
    while ((state = TAILQ_FIRST(&rpc->orphans)) != NULL) {
        TAILQ_REMOVE(&rpc->orphans, state, link);
        state->peer->requests--;
        state->peer = NULL;
        state->request->rpc = NULL;
    }
}
