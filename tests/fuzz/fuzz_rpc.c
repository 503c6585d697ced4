/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of a peer that sends whatever it likes, to a node of the simulator that serves
 * and calls. An input is records, each
 *
 *   byte 0   low bits: what to do; the highest: the head is made right first
 *   byte 1   length of the head (times 16 with bit 6 of byte 0)
 *   byte 2   length of the payload, in units of 700 bytes
 *   head
 *
 * The node must neither crash nor take more requests than it may; each of its calls ends
 * once; and all is put back in the end.
 */
#include "runtime/rpc.c"
#include "runtime/rpc_peer.c"
#include "runtime/rpc_server.c"

#include "runtime/sim.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

enum { SEALED = 0x80, LARGE = 0x40, DO_MASK = 0x0f };
enum { DO_SEND, DO_ANSWER, DO_CALL, DO_RELEASE, DO_STEP, DO_POST, DO_CANCEL, DO_CLOSE };

#define HELD_MAX  (8 * RPC_INFLIGHT_MAX)
#define CALLS_MAX 64U
#define POOL      (8 * MIB)

struct victim {
    struct sim_world *world;
    struct loop *loop, *other_loop;
    struct buffer_pool *pool, *other_pool;
    struct rpc *rpc;
    struct net *net;        /* the attacker's */
    struct net_conn *out;   /* it calls the node */
    struct net_conn *in;    /* the node calls it */
    struct rpc_request *held[HELD_MAX];
    uint32_t held_count;
    struct rpc_call calls[CALLS_MAX];
    bool is_running[CALLS_MAX];
    uint64_t asked; /* the last call id the attacker saw */
};

/* --- the node --- */

static void hold(void *arg, struct rpc_request *request)
{
    struct victim *v = arg;
    assert(request->head_len <= 100 && v->held_count < HELD_MAX);
    assert(request->payload.buffer == NULL || request->payload.len <= 5000);
    v->held[v->held_count++] = request;
}

static void echo(void *arg, struct rpc_request *request)
{
    (void)arg;
    struct slice payload = request->payload;
    rpc_answer(request, 0, request->head, request->head_len, &payload,
               payload.buffer != NULL);
}

static void note(void *arg, struct rpc_request *request)
{
    (void)arg;
    assert(request->head_len <= 50);
}

static const struct rpc_op op_hold = {1, "hold", false, false, 100, 5000, hold};
static const struct rpc_op op_echo = {2, "echo", false, true, 1000, 70000, echo};
static const struct rpc_op op_note = {3, "note", true, false, 50, 1000, note};
static const struct rpc_op *const ops[] = {&op_hold, &op_echo, &op_note, NULL};

static void call_done(struct rpc_call *call)
{
    assert(call->timeout_ns != 0); /* once */
    buffer_put(call->payload.buffer);
    call->timeout_ns = 0; /* as a sign that it is over */
}

static void start_call(struct victim *v)
{
    for (uint32_t i = 0; i < CALLS_MAX; i++) {
        if (v->is_running[i] && v->calls[i].timeout_ns != 0)
            continue;
        v->is_running[i] = true;
        v->calls[i] = (struct rpc_call){
            .node = 2,
            .op = (uint16_t)(i % 4 + 1),
            .head = "head",
            .head_len = 4,
            .timeout_ns = NS_PER_S,
            .done = call_done,
        };
        rpc_start(v->rpc, &v->calls[i]);
        return;
    }
}

static void cancel_call(struct victim *v)
{
    for (uint32_t i = 0; i < CALLS_MAX; i++) {
        if (v->is_running[i] && v->calls[i].timeout_ns != 0) {
            rpc_cancel(v->rpc, &v->calls[i]);
            return;
        }
    }
}

static void release(struct victim *v)
{
    for (uint32_t i = 0; i < v->held_count; i++)
        rpc_answer(v->held[i], 0, NULL, 0, NULL, 0);
    v->held_count = 0;
}

/* --- the attacker --- */

static void attacker_opened(void *arg, struct net_conn *conn)
{
    (void)arg, (void)conn;
}

static void attacker_received(void *arg, struct net_conn *conn, const void *head,
                              size_t len, struct slice payload)
{
    struct victim *v = arg;
    struct rpc_head decoded;
    int rc = rpc_head_decode(head, len, &decoded);
    assert(rc == 0);
    if (conn == v->in && decoded.kind == RPC_KIND_REQUEST)
        v->asked = decoded.call;
    buffer_put(payload.buffer);
}

static void attacker_closed(void *arg, struct net_conn *conn, int code, const char *why)
{
    struct victim *v = arg;
    (void)code, (void)why;
    if (conn == v->out)
        v->out = NULL;
    if (conn == v->in)
        v->in = NULL;
}

static const struct net_handlers attacker = {attacker_opened, attacker_received,
                                             attacker_closed};

static bool attacker_accepted(void *arg, struct net_conn *conn,
                              const struct net_handlers **ret_handlers, void **ret_arg)
{
    struct victim *v = arg;
    if (v->in != NULL)
        return false;
    v->in = conn;
    *ret_handlers = &attacker;
    *ret_arg = v;
    return true;
}

static void run_for(struct victim *v, uint64_t ns)
{
    bool never = false;
    sim_world_run_until(v->world, &never, ns);
    assert(v->held_count <= RPC_REQUESTS_MAX + RPC_INFLIGHT_MAX);
}

static void attacker_send(struct victim *v, struct net_conn *conn, unsigned choice,
                          const uint8_t *head, uint32_t head_len, uint32_t payload_len)
{
    uint8_t *copy = malloc(head_len); /* exactly, so that reading on is noticed */
    struct buffer *buffer = NULL;
    assert(copy != NULL);
    memcpy(copy, head, head_len);
    if ((choice & SEALED) && head_len >= sizeof(struct rpc_head_format)) {
        struct rpc_head_format *f = (void *)copy;
        f->kind = (uint8_t)(f->kind % 3 + 1);
        f->reserved = 0;
        f->op = le16_of((uint16_t)(le16_get(f->op) % 5));
        f->code = le32_of(0);
        if (f->kind == RPC_KIND_ONE_WAY || le16_get(f->op) == RPC_OP_PING)
            f->call = le64_of(0);
        else if (f->kind == RPC_KIND_ANSWER && f->call.b[0] < 200)
            f->call = le64_of(v->asked);
    }
    if (payload_len > 0)
        buffer = buffer_create(v->other_pool, payload_len);
    if (buffer != NULL)
        memset(buffer->data, 7, payload_len);
    struct slice slice = {.buffer = buffer, .len = payload_len};
    struct net_send send = {copy, head_len, &slice, buffer != NULL ? 1 : 0};
    (void)net_send(conn, &send);
    buffer_put(buffer);
    free(copy);
}

/* --- one input --- */

static void victim_create(struct victim *v)
{
    struct uid cluster = {{1}};
    v->world = sim_world_create(1);
    v->loop = sim_process_create(v->world);
    v->other_loop = sim_process_create(v->world);
    v->pool = buffer_pool_create(POOL);
    v->other_pool = buffer_pool_create(POOL);
    struct net_options options = {
        .loop = v->other_loop,
        .self = {cluster, 2},
        .buffers = v->other_pool,
        .accepted = attacker_accepted,
        .arg = v,
    };
    struct rpc_options rpc_options = {
        .loop = v->loop,
        .self = {cluster, 1},
        .buffers = v->pool,
        .ops = ops,
        .arg = v,
    };
    int rc = net_create(&options, &v->net, NULL);
    rc |= net_listen(v->net, "attacker:1", NULL, NULL);
    rc |= rpc_create(&rpc_options, &v->rpc, NULL);
    rc |= rpc_listen(v->rpc, "victim:1", NULL, NULL);
    assert(rc == 0);
}

static void victim_destroy(struct victim *v)
{
    run_for(v, 4 * NS_PER_S); /* longer than calls, silence and connecting take */
    rpc_destroy(v->rpc);
    release(v);
    for (uint32_t i = 0; i < CALLS_MAX; i++)
        assert(!v->is_running[i] || v->calls[i].timeout_ns == 0);
    net_destroy(v->net);
    assert(buffer_pool_used_bytes(v->pool) == 0);
    assert(buffer_pool_used_bytes(v->other_pool) == 0);
    sim_world_destroy(v->world);
    buffer_pool_destroy(v->pool);
    buffer_pool_destroy(v->other_pool);
}

static void act(struct victim *v, unsigned choice, const uint8_t *head, uint32_t head_len,
                uint32_t payload_len)
{
    switch (choice & DO_MASK) {
    case DO_SEND:
        if (v->out == NULL)
            v->out = net_connect(v->net, "victim:1", 1, &attacker, v);
        if (head_len > 0)
            attacker_send(v, v->out, choice, head, head_len, payload_len);
        break;
    case DO_ANSWER:
        if (v->in != NULL && head_len > 0)
            attacker_send(v, v->in, choice, head, head_len, payload_len);
        break;
    case DO_CALL:
        start_call(v);
        break;
    case DO_RELEASE:
        release(v);
        break;
    case DO_POST:
        rpc_post(v->rpc, 2, 3, head, head_len, NULL, 0);
        break;
    case DO_CANCEL:
        cancel_call(v);
        break;
    case DO_CLOSE:
        if (v->out != NULL)
            net_conn_close(take(v->out));
        break;
    default:
        run_for(v, (head_len + 1) * NS_PER_MS);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct victim *v = calloc(1, sizeof *v);
    struct reader r = reader_of(bytes, len);
    if (v == NULL)
        return 0;
    victim_create(v);
    int rc = rpc_set_address(v->rpc, 2, "attacker:1");
    assert(rc == 0);
    while (r.left >= 3) {
        unsigned choice = read_u8(&r);
        uint32_t head_len = read_u8(&r);
        uint32_t payload_len = read_u8(&r) * 700U;
        if (choice & LARGE)
            head_len *= 16;
        head_len = (uint32_t)min_u64(head_len, r.left);
        act(v, choice, read_bytes(&r, head_len), head_len, payload_len);
    }
    victim_destroy(v);
    free(v);
    return 0;
}
