/* SPDX-License-Identifier: Apache-2.0 */
/* Calls over real connections, with TLS, and over simulated ones: the same bodies. */
#include "tests/unit/net_ends.h"
#include "tests/unit/rpc_machine.h"

static struct test_pki pki;

struct place {
    struct node node;
    char address[64];
};
static struct place server, client; /* too large for the stack of a task */

static void place_start(struct place *place, struct body *body, uint32_t number,
                        const char *address)
{
    struct error err = {0};
    uint16_t port = 0;
    *place = (struct place){.node = {.loop = body->loop, .number = number}};
    place->node.pool = buffer_pool_create(64 * MIB);
    struct rpc_options options = {
        .loop = body->loop,
        .self = {pki.cluster, number},
        .credentials = test_credentials(&pki, number),
        .buffers = place->node.pool,
        .ops = all_ops,
        .arg = &place->node,
        .peer_changed = on_peer_changed,
    };
    CHECK_EQ(rpc_create(&options, &place->node.rpc, &err), 0);
    if (number == 0)
        return;
    CHECK_EQ(rpc_listen(place->node.rpc, address, &port, &err), 0);
    snprintf(place->address, sizeof place->address, "127.0.0.1:%u", port);
}

static void place_stop(struct place *place)
{
    rpc_destroy(place->node.rpc);
    node_release_held(&place->node);
    CHECK_EQ(buffer_pool_used_bytes(place->node.pool), 0);
    buffer_pool_destroy(place->node.pool);
}

static void both_start(struct body *body)
{
    place_start(&server, body, 1, "127.0.0.1:0");
    place_start(&client, body, 2, "127.0.0.1:0");
    CHECK_EQ(rpc_set_address(client.node.rpc, 1, server.address), 0);
}

static void both_stop(void)
{
    place_stop(&client);
    place_stop(&server);
}

static async int wait_for(struct test_call *call)
{
    while (!call->is_done)
        task_sleep_ns(NS_PER_MS);
    return call->call.result;
}

static async int call_once(struct place *from, uint64_t to, uint16_t op, uint64_t number,
                           uint32_t payload_len)
{
    struct test_call call;
    call_init(&call, &from->node, to, op, number);
    call_start(&call, payload_len);
    return wait_for(&call);
}

/* --- the bodies --- */

static void test_answers(struct body *body)
{
    both_start(body);
    CHECK_EQ(call_once(&client, 1, OP_ECHO, 1, 0), 0);
    CHECK_EQ(call_once(&client, 1, OP_ECHO, 2, 1), 0);
    CHECK_EQ(call_once(&client, 1, OP_ECHO, 3, ECHO_BYTES_MAX), 0);
    CHECK_EQ(call_once(&client, 1, OP_ECHO, 4, ECHO_BYTES_MAX + 1), -EMSGSIZE);
    CHECK_EQ(call_once(&client, 1, OP_FAIL, PLX_EDEAD, 0), -PLX_EDEAD);
    CHECK_EQ(call_once(&client, 1, 99, 6, 100), -ENOSYS);
    CHECK(rpc_is_connected(client.node.rpc, 1));
    CHECK_EQ(client.node.up_count, 1);
    uint64_t number = 7;
    struct writer answer = {0};
    struct rpc_call call = {
        .node = 1,
        .op = OP_ECHO,
        .head = &number,
        .head_len = sizeof number,
        .timeout_ns = 10 * NS_PER_S,
    };
    CHECK_EQ(rpc_wait(client.node.rpc, &call, &answer, NULL), 0);
    CHECK(answer.len == sizeof number && memcmp(answer.bytes, &number, answer.len) == 0);
    writer_done(&answer);
    both_stop();
}

static void test_many_at_once(struct body *body)
{
    static struct test_call calls[500];
    both_start(body);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
        call_init(&calls[i], &client.node, 1, OP_HOLD, i);
        calls[i].call.timeout_ns = 100 * NS_PER_S;
        call_start(&calls[i], i % 3 == 0 ? i * 100 : 0);
    }
    while (server.node.held_count < RPC_CALLS_INFLIGHT_MAX)
        task_sleep_ns(NS_PER_MS);
    for (uint32_t i = 0; i < server.node.held_count; i++)
        CHECK_EQ(number_of(server.node.held[i]), i);
    while (server.node.handled < ARRAY_LEN(calls) || server.node.held_count > 0) {
        node_release_held(&server.node);
        task_sleep_ns(NS_PER_MS);
    }
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++)
        CHECK_EQ(wait_for(&calls[i]), 0);
    CHECK_EQ(server.node.held_peak, RPC_CALLS_INFLIGHT_MAX);
    both_stop();
}

static void test_late_answer(struct body *body)
{
    both_start(body);
    struct test_call call;
    CHECK_EQ(call_once(&client, 1, OP_ECHO, 1, 0), 0);
    call_init(&call, &client.node, 1, OP_HOLD, 2);
    call.call.timeout_ns = 20 * NS_PER_MS;
    call_start(&call, 5000);
    CHECK_EQ(wait_for(&call), -ETIMEDOUT);
    CHECK(call.call.was_sent);
    while (server.node.held_count == 0)
        task_sleep_ns(NS_PER_MS);
    node_release_held(&server.node);
    CHECK_EQ(call_once(&client, 1, OP_ECHO, 3, 0), 0);
    CHECK_EQ(call.done_count, 1);
    both_stop();
}

static void test_server_restarts(struct body *body)
{
    static struct test_call calls[RPC_CALLS_INFLIGHT_MAX + 10];
    both_start(body);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
        call_init(&calls[i], &client.node, 1, OP_HOLD, i);
        calls[i].call.timeout_ns = 100 * NS_PER_S;
        call_start(&calls[i], 100);
    }
    while (server.node.held_count < RPC_CALLS_INFLIGHT_MAX)
        task_sleep_ns(NS_PER_MS);
    char address[64];
    snprintf(address, sizeof address, "%s", server.address);
    place_stop(&server);
    for (uint32_t i = 0; i < RPC_CALLS_INFLIGHT_MAX; i++)
        CHECK_EQ(wait_for(&calls[i]), -ECONNRESET);
    place_start(&server, body, 1, address);
    while (server.node.held_count < 10)
        task_sleep_ns(NS_PER_MS);
    node_release_held(&server.node);
    for (uint32_t i = RPC_CALLS_INFLIGHT_MAX; i < ARRAY_LEN(calls); i++)
        CHECK_EQ(wait_for(&calls[i]), 0);
    CHECK_EQ(client.node.up_count, 2);
    CHECK_EQ(client.node.down_count, 1);
    both_stop();
}

static void test_notes(struct body *body)
{
    both_start(body);
    for (uint64_t i = 0; i < 200; i++) {
        rpc_post(client.node.rpc, 1, OP_NOTE, &i, sizeof i, NULL, 0);
        if (i == 100)
            CHECK_EQ(call_once(&client, 1, OP_ECHO, 1, 0), 0);
    }
    while (server.node.note_count < 200)
        task_sleep_ns(NS_PER_MS);
    for (uint32_t i = 0; i < 200; i++)
        CHECK_EQ(server.node.notes[i], i);
    both_stop();
}

static void test_who_may(struct body *body)
{
    static struct place stranger;
    struct test_call call;
    both_start(body);
    place_start(&stranger, body, 0, NULL);
    call_init(&call, &stranger.node, 0, OP_JOIN, 1);
    call.call.address = server.address;
    call_start(&call, 0);
    CHECK_EQ(wait_for(&call), 0);
    call_init(&call, &stranger.node, 0, OP_ECHO, 2);
    call.call.address = server.address;
    call_start(&call, 0);
    CHECK_EQ(wait_for(&call), -PLX_EDENIED);
    CHECK_EQ(rpc_set_address(client.node.rpc, 3, server.address), 0);
    call_init(&call, &client.node, 3, OP_ECHO, 3);
    call.call.timeout_ns = NS_PER_S;
    call_start(&call, 0);
    CHECK_EQ(wait_for(&call), -PLX_EDENIED);
    CHECK(!call.call.was_sent);
    CHECK_EQ(server.node.handled, 1);
    place_stop(&stranger);
    both_stop();
}

static void test_destroy_under_way(struct body *body)
{
    static struct test_call calls[RPC_CALLS_INFLIGHT_MAX + 10];
    both_start(body);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
        call_init(&calls[i], &client.node, 1, OP_HOLD, i);
        call_start(&calls[i], 100);
    }
    while (server.node.held_count < RPC_CALLS_INFLIGHT_MAX)
        task_sleep_ns(NS_PER_MS);
    place_stop(&client);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++)
        CHECK_EQ(calls[i].call.result, -ECANCELED);
    while (!TAILQ_EMPTY(&server.node.rpc->incoming))
        task_sleep_ns(NS_PER_MS);
    place_stop(&server);
}

int main(void)
{
    static void (*const bodies[])(struct body *body) = {
        test_answers, test_many_at_once, test_late_answer,       test_server_restarts,
        test_notes,   test_who_may,      test_destroy_under_way,
    };
    test_pki_create(&pki, CLUSTER_UID);
    for (size_t i = 0; i < ARRAY_LEN(bodies); i++)
        run_on_both(bodies[i]);
    test_pki_free(&pki);
    return 0;
}
