/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls: the life of an rpc, its messages, and the watch over its connections.
 *
 * Happy path of a call: rpc_start queues it at its peer (rpc_peer.c), which sends it when
 * it has a connection and a free slot; at the other node rpc_server.c checks it against
 * the table of operations and calls the handler; rpc_answer sends the answer, which finds
 * its call by the slot.
 *
 * What can fail. A connection that breaks fails what was sent on it; what is queued waits
 * for the next one. Silence is found by `tick`: it pings, and then gives up. Bytes that
 * are no message of ours end the connection.
 *
 * On rpc_destroy the connections go first, silently; then the requests are left to
 * whoever answers them, and the calls are failed.
 *
 * R1  A call is in exactly one of: its peer's queue, a slot of its peer, rpc.ending; and
 *     its timer is armed.
 * R2  done is called last: after it nothing of the call, the peer or the rpc is touched.
 * R3  Putting a buffer may run anybody's code, so it comes when all is in order; and
 *     peers are freed by `reap`, from the loop, never under the feet of such code.
 */
#include "runtime/rpc_internal.h"

#define TICK_NS    (RPC_SILENCE_MS / 4 * NS_PER_MS)
#define SILENCE_NS (RPC_SILENCE_MS * NS_PER_MS)

/* --- messages --- */

int rpc_head_decode(const void *bytes, size_t len, struct rpc_head *ret)
{
    struct reader r = reader_of(bytes, len);
    const struct rpc_head_format *f = (const void *)read_bytes(&r, sizeof *f);
    if (f == NULL)
        return -PLX_EFORMAT;
    struct rpc_head head = {
        .kind = f->kind,
        .op = le16_get(f->op),
        .code = (int32_t)le32_get(f->code),
        .call = le64_get(f->call),
        .rest = r.at,
        .rest_len = r.left,
    };
    bool is_answer = head.kind == RPC_KIND_ANSWER;
    if (head.kind < RPC_KIND_REQUEST || head.kind > RPC_KIND_ONE_WAY || f->reserved != 0)
        return -PLX_EFORMAT;
    if (head.code > 0 || head.code < RPC_CODE_MIN || (!is_answer && head.code != 0))
        return -PLX_EFORMAT;
    /* Ids of calls are not 0, those of everything else are. */
    bool has_call = head.kind != RPC_KIND_ONE_WAY && head.op != RPC_OP_PING;
    if (has_call != (head.call != 0) || (head.op == RPC_OP_PING && head.rest_len > 0))
        return -PLX_EFORMAT;
    if (head.op == RPC_OP_PING && head.kind == RPC_KIND_ONE_WAY)
        return -PLX_EFORMAT;
    *ret = head;
    return 0;
}

static struct rpc_head_format head_encode(const struct rpc_head *head)
{
    return (struct rpc_head_format){
        .kind = (uint8_t)head->kind,
        .op = le16_of(head->op),
        .code = le32_of((uint32_t)head->code),
        .call = le64_of(head->call),
    };
}

struct rpc_message *rpc_message_create(const struct rpc_head *head,
                                       const struct slice *slices, uint32_t slice_count)
{
    struct rpc_head_format f = head_encode(head);
    struct rpc_message *m = NULL;
    size_t slices_size = slice_count * sizeof m->slices[0];
    assert(head->rest_len <= RPC_HEAD_MAX && slice_count <= NET_SLICES_MAX);
    m = malloc(sizeof *m + slices_size + sizeof f + head->rest_len);
    if (m == NULL)
        return NULL;
    m->head = (uint8_t *)&m->slices[slice_count];
    m->head_len = (uint32_t)(sizeof f + head->rest_len);
    m->bytes = m->head_len;
    m->slice_count = slice_count;
    memcpy(m->head, &f, sizeof f);
    if (head->rest_len > 0)
        memcpy(m->head + sizeof f, head->rest, head->rest_len);
    for (uint32_t i = 0; i < slice_count; i++) {
        m->slices[i] = slices[i];
        buffer_get(slices[i].buffer);
        m->bytes += slices[i].len;
    }
    assert(m->bytes - m->head_len <= NET_PAYLOAD_MAX);
    return m;
}

void rpc_message_set_call(struct rpc_message *m, uint64_t call)
{
    struct rpc_head_format *f = (void *)m->head;
    f->call = le64_of(call);
}

void rpc_message_free(struct rpc_message *m)
{
    if (m == NULL)
        return;
    for (uint32_t i = 0; i < m->slice_count; i++)
        buffer_put(m->slices[i].buffer);
    free(m);
}

int rpc_message_send(struct rpc *rpc, struct net_conn *conn, const struct rpc_message *m)
{
    struct net_send send = {
        .head = m->head,
        .head_len = m->head_len,
        .slices = m->slices,
        .slice_count = m->slice_count,
    };
    metric_add(rpc->sent_bytes, m->bytes);
    int rc = net_send(conn, &send);
    assert(rc != -EMSGSIZE); /* was checked when the message was made */
    return rc;
}

int rpc_send_short(struct rpc *rpc, struct net_conn *conn, const struct rpc_head *head)
{
    struct rpc_head_format f = head_encode(head);
    struct net_send send = {.head = &f, .head_len = sizeof f};
    metric_add(rpc->sent_bytes, sizeof f);
    return net_send(conn, &send);
}

/* --- the watch over connections --- */

void rpc_link_start(struct rpc_link *link)
{
    struct rpc *rpc = link->rpc;
    link->listened_ns = loop_now_ns(rpc->loop);
    link->pinged_ns = 0;
    TAILQ_INSERT_TAIL(&rpc->links, link, entry);
    if (rpc->link_count++ > 0)
        return;
    rpc->ticked_ns = link->listened_ns;
    timer_start(rpc->loop, &rpc->tick, TICK_NS);
}

void rpc_link_stop(struct rpc_link *link)
{
    struct rpc *rpc = link->rpc;
    TAILQ_REMOVE(&rpc->links, link, entry);
    if (--rpc->link_count == 0)
        timer_stop(rpc->loop, &rpc->tick);
}

static void send_ping(struct rpc_link *link)
{
    struct rpc_head head = {.kind = RPC_KIND_REQUEST, .op = RPC_OP_PING};
    (void)rpc_send_short(link->rpc, link->conn, &head);
}

/* Where something waits to be sent, the other side will hear from us anyway; and one that
 * does not read what it asks for fills no memory of ours. */
static void answer_ping(struct rpc_link *link)
{
    struct rpc_head head = {.kind = RPC_KIND_ANSWER, .op = RPC_OP_PING};
    if (net_conn_queued_bytes(link->conn) == 0)
        (void)rpc_send_short(link->rpc, link->conn, &head);
}

bool rpc_link_heard(struct rpc_link *link, const struct rpc_head *head, uint64_t bytes)
{
    metric_add(link->rpc->received_bytes, bytes);
    link->peer->heard_ns = loop_now_ns(link->rpc->loop);
    if (head->op != RPC_OP_PING)
        return false;
    if (head->kind == RPC_KIND_REQUEST)
        answer_ping(link);
    return true;
}

static void link_lost(struct rpc_link *link)
{
    metric_add(link->rpc->lost, 1);
    if (link->incoming != NULL)
        rpc_incoming_lost(link->incoming);
    else
        rpc_peer_lost(link->peer, -ETIMEDOUT, "nothing was heard for too long");
}

/* has_stood: this process did not run for a while, and could hear nobody. */
static void link_check(struct rpc_link *link, uint64_t now_ns, bool has_stood)
{
    bool is_reading = net_conn_is_reading(link->conn);
    if (!is_reading || has_stood)
        link->listened_ns = now_ns;
    if (!is_reading) {
        if (net_conn_queued_bytes(link->conn) == 0)
            send_ping(link); /* we are still here */
        if (link->incoming != NULL)
            rpc_incoming_throttle(link->incoming);
        return;
    }
    uint64_t heard_ns = max_u64(net_conn_heard_ns(link->conn), link->listened_ns);
    if (link->pinged_ns != 0 && heard_ns >= link->pinged_ns)
        link->pinged_ns = 0;
    if (link->pinged_ns != 0 && now_ns - link->pinged_ns >= SILENCE_NS) {
        link_lost(link);
    } else if (link->pinged_ns == 0 && now_ns - heard_ns >= SILENCE_NS) {
        link->pinged_ns = now_ns;
        send_ping(link);
    }
}

/* Whatever a check leads to may add and remove links; so each goes to the end of the list
 * before it is looked at. */
static void tick(struct timer *timer)
{
    struct rpc *rpc = container_of(timer, struct rpc, tick);
    uint64_t now_ns = loop_now_ns(rpc->loop);
    bool has_stood = now_ns - rpc->ticked_ns > 4 * TICK_NS;
    rpc->ticked_ns = now_ns;
    timer_start(rpc->loop, &rpc->tick, TICK_NS);
    for (uint32_t left = rpc->link_count; left > 0; left--) {
        struct rpc_link *link = TAILQ_FIRST(&rpc->links);
        if (link == NULL)
            break;
        TAILQ_REMOVE(&rpc->links, link, entry);
        TAILQ_INSERT_TAIL(&rpc->links, link, entry);
        link_check(link, now_ns, has_stood);
    }
}

/* --- life --- */

static int ops_index(struct rpc *rpc, bool *ret_allows_nobody)
{
    bool allows_nobody = false;
    rpc->op_count = 0;
    for (const struct rpc_op *const *op = rpc->options.ops; *op != NULL; op++) {
        assert((*op)->number != RPC_OP_PING && (*op)->number < RPC_OPS_MAX);
        assert((*op)->head_max <= RPC_HEAD_MAX && (*op)->payload_max <= NET_PAYLOAD_MAX);
        if ((*op)->number >= rpc->op_count)
            rpc->op_count = (*op)->number + 1U;
        allows_nobody |= (*op)->allows_nobody;
    }
    rpc->ops = calloc(rpc->op_count + 1U, sizeof(const struct rpc_op *));
    if (rpc->ops == NULL)
        return -ENOMEM;
    for (const struct rpc_op *const *op = rpc->options.ops; *op != NULL; op++) {
        assert(rpc->ops[(*op)->number] == NULL);
        rpc->ops[(*op)->number] = *op;
    }
    *ret_allows_nobody = allows_nobody;
    return 0;
}

static void metrics_init(struct rpc *rpc)
{
    struct loop *loop = rpc->loop;
    rpc->calls = metric_counter(loop, "parallax_rpc_calls_total", "Calls started");
    rpc->failures = metric_counter(loop, "parallax_rpc_failures_total",
                                   "Calls that ended without an answer");
    rpc->requests = metric_counter(loop, "parallax_rpc_requests_total",
                                   "Requests and one-way messages of others handled");
    rpc->refusals = metric_counter(loop, "parallax_rpc_refusals_total",
                                   "Requests and one-way messages that were refused");
    rpc->dropped = metric_counter(loop, "parallax_rpc_dropped_total",
                                  "One-way messages dropped");
    rpc->sent_bytes = metric_counter(loop, "parallax_rpc_sent_bytes_total",
                                     "Bytes of messages given to connections");
    rpc->received_bytes = metric_counter(loop, "parallax_rpc_received_bytes_total",
                                         "Bytes of messages received");
    rpc->lost = metric_counter(loop, "parallax_rpc_silent_total",
                               "Connections given up because nothing was heard");
}

int rpc_create(const struct rpc_options *options, struct rpc **ret_rpc, struct error *err)
{
    struct rpc *rpc = calloc(1, sizeof *rpc);
    bool allows_nobody = false;
    if (rpc == NULL)
        return err_set(err, -ENOMEM, "no memory for calls between nodes");
    rpc->options = *options;
    rpc->options.credentials = (struct net_credentials){0};
    rpc->loop = options->loop;
    rpc->tick.fire = tick;
    TAILQ_INIT(&rpc->links);
    rpc_peers_init(rpc);
    rpc_server_init(rpc);
    metrics_init(rpc);
    int rc = ops_index(rpc, &allows_nobody);
    if (rc == 0)
        rpc->nobody = rpc_peer_get(rpc, 0);
    if (rpc->nobody == NULL) {
        rc = err_set(err, -ENOMEM, "no memory for calls between nodes");
    } else {
        struct net_options net_options = {
            .loop = options->loop,
            .self = options->self,
            .credentials = options->credentials,
            .allow_nobody = allows_nobody,
            .buffers = options->buffers,
            .accepted = rpc_server_accepted,
            .arg = rpc,
        };
        rc = net_create(&net_options, &rpc->net, err);
    }
    if (rc != 0) {
        rpc_destroy(rpc);
        return rc;
    }
    *ret_rpc = rpc;
    return 0;
}

void rpc_destroy(struct rpc *rpc)
{
    if (rpc == NULL)
        return;
    assert(!rpc->is_ending);
    rpc->is_ending = true;
    net_destroy(rpc->net);
    timer_stop(rpc->loop, &rpc->tick);
    rpc_server_destroy(rpc);
    rpc_peers_destroy(rpc);
    free(rpc->ops);
    free(rpc);
}

int rpc_listen(struct rpc *rpc, const char *address, uint16_t *ret_port,
               struct error *err)
{
    return net_listen(rpc->net, address, ret_port, err);
}

int rpc_set_credentials(struct rpc *rpc, const struct net_credentials *credentials,
                        struct error *err)
{
    return net_set_credentials(rpc->net, credentials, err);
}
