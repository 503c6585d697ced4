/* SPDX-License-Identifier: Apache-2.0 */
/* Simulated nodes that call each other: the operations they offer, and calls that check
 * their own answers. */
#ifndef PARALLAX_TESTS_UNIT_RPC_MACHINE_H
#define PARALLAX_TESTS_UNIT_RPC_MACHINE_H

#include "runtime/rpc_internal.h"
#include "runtime/runtime.h"
#include "runtime/sim_internal.h"
#include "tests/unit/check.h"

#define ADDRESS        "node1:1"
#define HELD_MAX       2048U
#define NOTES_MAX      8192U
#define ECHO_HEAD_MAX  1000U
#define ECHO_BYTES_MAX (64U * 1024)
/* Silence is noticed twice, each time within a tick. */
#define LOST_NS (5 * RPC_SILENCE_MS / 2 * NS_PER_MS)

enum { OP_ECHO = 1, OP_HOLD, OP_NOTE, OP_FAIL, OP_JOIN };

struct node {
    struct sim_world *world;
    struct loop *loop;
    struct buffer_pool *pool;
    struct rpc *rpc;
    uint32_t number;
    struct rpc_request *held[HELD_MAX]; /* of OP_HOLD, in order of arrival */
    uint32_t held_count, held_peak, handled;
    uint64_t notes[NOTES_MAX];
    uint32_t note_count, up_count, down_count;
    void *arg;
    struct node *next_dead;
};

static inline uint64_t number_of(const struct rpc_request *request)
{
    uint64_t number = 0;
    if (request->head_len >= sizeof number)
        memcpy(&number, request->head, sizeof number);
    return number;
}

static inline void answer_echo(struct rpc_request *request)
{
    struct slice payload = request->payload;
    rpc_answer(request, 0, request->head, request->head_len, &payload,
               payload.buffer != NULL);
}

static inline void handle_echo(void *arg, struct rpc_request *request)
{
    struct node *node = arg;
    CHECK(task_current() == NULL);
    node->handled++;
    answer_echo(request);
}

static inline void handle_hold(void *arg, struct rpc_request *request)
{
    struct node *node = arg;
    CHECK(node->held_count < HELD_MAX);
    node->held[node->held_count++] = request;
    node->handled++;
    if (node->held_peak < node->held_count)
        node->held_peak = node->held_count;
}

static inline void handle_note(void *arg, struct rpc_request *request)
{
    struct node *node = arg;
    CHECK(node->note_count < NOTES_MAX);
    node->notes[node->note_count++] = number_of(request);
}

static inline void handle_fail(void *arg, struct rpc_request *request)
{
    struct node *node = arg;
    node->handled++;
    rpc_answer(request, -(int)number_of(request), NULL, 0, NULL, 0);
}

static const struct rpc_op op_echo = {
    OP_ECHO, "echo", false, false, ECHO_HEAD_MAX, ECHO_BYTES_MAX, handle_echo};
static const struct rpc_op op_hold = {
    OP_HOLD, "hold", false, false, ECHO_HEAD_MAX, 1024 * 1024, handle_hold};
static const struct rpc_op op_note = {OP_NOTE, "note", true, false, 8, 65536,
                                      handle_note};
static const struct rpc_op op_fail = {OP_FAIL, "fail", false, false, 8, 0, handle_fail};
static const struct rpc_op op_join = {OP_JOIN, "join", false, true, 1000, 65536,
                                      handle_echo};
static const struct rpc_op *const all_ops[] = {&op_echo, &op_hold, &op_note,
                                               &op_fail, &op_join, NULL};
static const struct rpc_op *const member_ops[] = {&op_echo, NULL};

static inline void on_peer_changed(void *arg, uint64_t number, bool is_connected)
{
    struct node *node = arg;
    CHECK(number != 0);
    CHECK_EQ(rpc_is_connected(node->rpc, number), is_connected);
    node->up_count += is_connected;
    node->down_count += !is_connected;
}

static inline const char *address_of(uint32_t number)
{
    static char text[32];
    snprintf(text, sizeof text, "node%u:1", number);
    return text;
}

static inline int rpc_start_on(struct node *node, struct net_identity self,
                               const struct rpc_op *const *ops)
{
    struct rpc_options options = {
        .loop = node->loop,
        .self = self,
        .buffers = node->pool,
        .ops = ops,
        .arg = node,
        .peer_changed = on_peer_changed,
    };
    return rpc_create(&options, &node->rpc, NULL);
}

/* A process on host `number`, without an rpc so far. */
static inline struct node *node_create(struct sim_world *world, uint32_t number,
                                       uint64_t pool_bytes)
{
    struct node *node = calloc(1, sizeof *node);
    CHECK(node != NULL);
    node->world = world;
    node->number = number;
    node->loop = sim_process_create(world);
    node->pool = buffer_pool_create(pool_bytes);
    sim_process_set_host(node->loop, number);
    return node;
}

/* Node `number` of the cluster; it listens. */
static inline struct node *node_start(struct sim_world *world, uint32_t number)
{
    struct node *node = node_create(world, number, 64 * MIB);
    struct net_identity self = {.cluster = {{1}}, .node = number};
    CHECK_EQ(rpc_start_on(node, self, all_ops), 0);
    CHECK_EQ(rpc_listen(node->rpc, address_of(number), NULL, NULL), 0);
    return node;
}

/* What a process had when it died is lost, but not for the leak checker. */
static inline void node_kill(struct node *node, enum sim_end how)
{
    static struct node *dead;
    node->next_dead = dead;
    dead = node;
    sim_process_end(node->loop, how);
}

static inline void node_release_held(struct node *node)
{
    for (uint32_t i = 0; i < node->held_count; i++)
        answer_echo(node->held[i]);
    node->held_count = 0;
}

/* In order: nothing may be left. */
static inline void node_stop(struct node *node)
{
    rpc_destroy(node->rpc);
    node_release_held(node);
    CHECK_EQ(buffer_pool_used_bytes(node->pool), 0);
    sim_process_end(node->loop, SIM_KILL);
    buffer_pool_destroy(node->pool);
    free(node);
}

static inline void run_for(struct sim_world *world, uint64_t ns)
{
    bool never = false;
    sim_world_run_until(world, &never, ns);
}

/* --- calls --- */

struct test_call {
    struct rpc_call call;
    struct node *node;
    uint64_t number;
    uint32_t payload_len, done_count;
    uint64_t begun_ns, ended_ns;
    bool is_done;
};

static inline void check_payload(struct slice payload, uint64_t number, uint32_t len)
{
    CHECK_EQ(payload.buffer != NULL ? payload.len : 0, len);
    for (uint32_t i = 0; i < len; i += 333)
        CHECK_EQ(slice_data(payload)[i], (uint8_t)number);
}

/* An answer carries what its request did. */
static inline void test_call_done(struct rpc_call *rpc_call)
{
    struct test_call *call = container_of(rpc_call, struct test_call, call);
    CHECK(task_current() == NULL || rpc_call->result == -ECANCELED);
    CHECK_EQ(call->done_count++, 0);
    call->is_done = true;
    call->ended_ns = loop_now_ns(call->node->loop);
    if (rpc_call->result == 0) {
        uint64_t number;
        CHECK_EQ(rpc_call->answer_len, sizeof number);
        memcpy(&number, rpc_call->answer, sizeof number);
        CHECK_EQ(number, call->number);
        CHECK(rpc_call->was_sent);
        check_payload(rpc_call->payload, call->number, call->payload_len);
    }
    buffer_put(rpc_call->payload.buffer);
}

static inline void call_init(struct test_call *call, struct node *node, uint64_t to,
                             uint16_t op, uint64_t number)
{
    *call = (struct test_call){.node = node, .number = number};
    call->call = (struct rpc_call){
        .node = to,
        .op = op,
        .head = &call->number,
        .head_len = sizeof call->number,
        .timeout_ns = 10 * NS_PER_S,
        .done = test_call_done,
    };
}

/* With payload_len bytes of payload. */
static inline void call_start(struct test_call *call, uint32_t payload_len)
{
    struct buffer *buffer = NULL;
    struct slice slice;
    call->begun_ns = loop_now_ns(call->node->loop);
    call->payload_len = payload_len;
    if (payload_len > 0) {
        buffer = buffer_create(call->node->pool, payload_len);
        CHECK(buffer != NULL);
        memset(buffer->data, (uint8_t)call->number, payload_len);
        slice = (struct slice){.buffer = buffer, .len = payload_len};
        call->call.slices = &slice;
        call->call.slice_count = 1;
    }
    rpc_start(call->node->rpc, &call->call);
    CHECK(!call->is_done);
    call->call.slices = NULL;
    buffer_put(buffer);
}

static inline int call_wait(struct test_call *call)
{
    CHECK(sim_world_run_until(call->node->world, &call->is_done, 1000 * NS_PER_S));
    return call->call.result;
}

/* One echo, from start to end. */
static inline int echo(struct node *node, uint64_t to, uint64_t number,
                       uint32_t payload_len)
{
    struct test_call call;
    call_init(&call, node, to, OP_ECHO, number);
    call_start(&call, payload_len);
    return call_wait(&call);
}

#endif
