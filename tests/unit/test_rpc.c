/* SPDX-License-Identifier: Apache-2.0 */
/* Calls between nodes: what each promise of runtime/rpc.h comes to, one by one. Random
 * faults are in test_rpc_random.c. */
#include "tests/unit/rpc_machine.h"

/* Node 1 answers, node 2 calls it. */
struct pair {
    struct sim_world *world;
    struct node *server, *client;
};

static struct pair pair_start(uint64_t seed)
{
    struct pair p = {.world = sim_world_create(seed)};
    p.server = node_start(p.world, 1);
    p.client = node_start(p.world, 2);
    CHECK_EQ(rpc_set_address(p.client->rpc, 1, ADDRESS), 0);
    return p;
}

static void pair_stop(struct pair *p)
{
    node_stop(p->client);
    node_stop(p->server);
    sim_world_destroy(p->world);
}

static void server_restart(struct pair *p, enum sim_end how)
{
    node_kill(p->server, how);
    p->server = node_start(p->world, 1);
}

/* --- answers --- */

static void test_echo(void)
{
    struct pair p = pair_start(1);
    CHECK(!rpc_is_connected(p.client->rpc, 1));
    CHECK_EQ(rpc_heard_ns(p.client->rpc, 1), 0);
    CHECK_EQ(echo(p.client, 1, 5, 0), 0);
    CHECK_EQ(echo(p.client, 1, 6, 1), 0);
    CHECK_EQ(echo(p.client, 1, 7, ECHO_BYTES_MAX), 0);
    CHECK(rpc_is_connected(p.client->rpc, 1));
    CHECK(rpc_heard_ns(p.client->rpc, 1) > 0);
    CHECK(rpc_heard_ns(p.server->rpc, 2) > 0); /* though it never called */
    CHECK_EQ(p.client->up_count, 1);
    CHECK_EQ(p.server->up_count, 0);
    struct test_call call;
    call_init(&call, p.client, 1, OP_FAIL, ENOSPC);
    call_start(&call, 0);
    CHECK_EQ(call_wait(&call), -ENOSPC);
    CHECK(call.call.was_sent);
    call_init(&call, p.client, 1, OP_FAIL, PLX_ESTOPPED);
    call_start(&call, 0);
    CHECK_EQ(call_wait(&call), -PLX_ESTOPPED);
    CHECK_EQ(p.client->rpc->calls->value, 5);
    CHECK_EQ(p.client->rpc->failures->value, 0);
    pair_stop(&p);
}

#define MANY 1000U

static void test_many(void)
{
    static struct test_call calls[MANY];
    struct pair p = pair_start(1);
    for (uint32_t i = 0; i < MANY; i++) {
        call_init(&calls[i], p.client, 1, OP_HOLD, i);
        call_start(&calls[i], i % 10 == 0 ? 20000 : 0);
    }
    run_for(p.world, NS_PER_S);
    CHECK_EQ(p.server->held_count, RPC_CALLS_INFLIGHT_MAX);
    for (uint32_t i = 0; i < RPC_CALLS_INFLIGHT_MAX; i++)
        CHECK_EQ(number_of(p.server->held[i]), i); /* in order */
    CHECK(net_conn_is_reading(TAILQ_FIRST(&p.server->rpc->incoming)->link.conn));
    for (uint32_t next = RPC_CALLS_INFLIGHT_MAX; !calls[MANY - 1].is_done;) {
        /* The newest first; each makes room for one. */
        CHECK(p.server->held_count > 0);
        answer_echo(p.server->held[--p.server->held_count]);
        run_for(p.world, 5 * NS_PER_MS);
        if (next < MANY)
            CHECK_EQ(number_of(p.server->held[p.server->held_count - 1]), next++);
    }
    node_release_held(p.server);
    run_for(p.world, NS_PER_S);
    CHECK_EQ(p.server->held_peak, RPC_CALLS_INFLIGHT_MAX);
    for (uint32_t i = 0; i < MANY; i++)
        CHECK(calls[i].is_done && calls[i].call.result == 0);
    pair_stop(&p);
}

static void test_queue_full(void)
{
    static struct test_call calls[RPC_QUEUED_MAX + 2];
    static uint8_t head[RPC_HEAD_MAX];
    struct pair p = pair_start(1);
    CHECK_EQ(rpc_set_address(p.client->rpc, 1, NULL), 0);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
        call_init(&calls[i], p.client, 1, OP_ECHO, i);
        call_start(&calls[i], 0);
    }
    run_for(p.world, NS_PER_MS);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++)
        CHECK_EQ(calls[i].call.result, i < RPC_QUEUED_MAX ? 0 : -PLX_ELIMIT);
    CHECK_EQ(rpc_set_address(p.client->rpc, 1, ADDRESS), 0);
    for (uint32_t i = 0; i < RPC_QUEUED_MAX; i++)
        CHECK_EQ(call_wait(&calls[i]), 0);
    /* Few, but large. */
    node_kill(p.server, SIM_KILL);
    run_for(p.world, NS_PER_S);
    uint32_t refused = 0;
    for (uint32_t i = 0; i < 70; i++) {
        call_init(&calls[i], p.client, 1, OP_ECHO, i);
        calls[i].call.head = head;
        calls[i].call.head_len = sizeof head;
        call_start(&calls[i], 0);
    }
    run_for(p.world, NS_PER_S);
    for (uint32_t i = 0; i < 70; i++)
        refused += calls[i].call.result == -PLX_ELIMIT;
    CHECK_EQ(refused, 6);
    node_stop(p.client);
    sim_world_destroy(p.world);
}

/* --- time --- */

static void test_deadline(void)
{
    static struct test_call calls[RPC_CALLS_INFLIGHT_MAX], late;
    struct pair p = pair_start(1);
    for (uint32_t i = 0; i < RPC_CALLS_INFLIGHT_MAX; i++) {
        call_init(&calls[i], p.client, 1, OP_HOLD, i);
        calls[i].call.timeout_ns = 3 * NS_PER_S;
        call_start(&calls[i], 100);
    }
    for (uint32_t i = 0; i < RPC_CALLS_INFLIGHT_MAX; i++) {
        CHECK_EQ(call_wait(&calls[i]), -ETIMEDOUT);
        CHECK(calls[i].call.was_sent);
        CHECK_EQ(calls[i].ended_ns - calls[i].begun_ns, 3 * NS_PER_S);
    }
    /* The server still works on them, and gets no more. */
    call_init(&late, p.client, 1, OP_HOLD, 1000);
    late.call.timeout_ns = NS_PER_S;
    call_start(&late, 0);
    CHECK_EQ(call_wait(&late), -ETIMEDOUT);
    CHECK(!late.call.was_sent);
    CHECK_EQ(p.server->held_count, RPC_CALLS_INFLIGHT_MAX);
    CHECK_EQ(p.client->down_count, 0); /* slow is not dead */
    /* Answers that come late are for nobody. */
    call_init(&late, p.client, 1, OP_HOLD, 1001);
    call_start(&late, 0);
    node_release_held(p.server);
    run_for(p.world, NS_PER_S);
    CHECK(!late.is_done && p.server->held_count == 1);
    CHECK_EQ(buffer_pool_used_bytes(p.client->pool), 0);
    node_release_held(p.server);
    CHECK_EQ(call_wait(&late), 0);
    CHECK_EQ(late.done_count, 1);
    pair_stop(&p);
}

static void test_unknown_address(void)
{
    struct pair p = pair_start(1);
    struct test_call call, other;
    call_init(&call, p.client, 7, OP_ECHO, 1);
    call_start(&call, 100);
    CHECK_EQ(call_wait(&call), -ETIMEDOUT);
    CHECK(!call.call.was_sent);
    CHECK(rpc_peer_find(p.client->rpc, 7) == NULL); /* nothing is left of it */
    CHECK_EQ(rpc_set_address(p.client->rpc, 1, NULL), 0);
    call_init(&call, p.client, 1, OP_ECHO, 2);
    call_start(&call, 100);
    run_for(p.world, NS_PER_S);
    CHECK(!call.is_done);
    CHECK_EQ(rpc_set_address(p.client->rpc, 1, ADDRESS), 0);
    CHECK_EQ(call_wait(&call), 0);
    /* Forgotten: what is sent is lost, what waits has no way. */
    CHECK_EQ(rpc_set_address(p.client->rpc, 3, "node3:1"), 0);
    call_init(&call, p.client, 1, OP_HOLD, 3);
    call_init(&other, p.client, 3, OP_ECHO, 4);
    call_start(&call, 0);
    call_start(&other, 0);
    run_for(p.world, NS_PER_S);
    CHECK_EQ(rpc_set_address(p.client->rpc, 1, NULL), 0);
    CHECK_EQ(rpc_set_address(p.client->rpc, 3, NULL), 0);
    CHECK(!call.is_done && !other.is_done);
    CHECK_EQ(call_wait(&call), -ECONNRESET);
    CHECK(call.call.was_sent);
    CHECK_EQ(call_wait(&other), -EHOSTUNREACH);
    CHECK(!other.call.was_sent);
    char address[300];
    memset(address, 'a', sizeof address);
    address[299] = '\0';
    CHECK_EQ(rpc_set_address(p.client->rpc, 3, address), -EINVAL);
    pair_stop(&p);
}

static void test_address_change(void)
{
    struct pair p = pair_start(1);
    struct test_call call, queued;
    call_init(&call, p.client, 1, OP_HOLD, 1);
    call_start(&call, 0);
    run_for(p.world, NS_PER_S);
    CHECK_EQ(rpc_listen(p.server->rpc, "other:9", NULL, NULL), 0);
    CHECK_EQ(rpc_set_address(p.client->rpc, 1, ADDRESS), 0); /* the same: nothing */
    run_for(p.world, NS_PER_S);
    CHECK(!call.is_done);
    CHECK_EQ(rpc_set_address(p.client->rpc, 1, "other:9"), 0);
    call_init(&queued, p.client, 1, OP_ECHO, 2);
    call_start(&queued, 0);
    CHECK_EQ(call_wait(&call), -ECONNRESET);
    CHECK_EQ(call_wait(&queued), 0);
    CHECK_EQ(p.client->up_count, 2);
    pair_stop(&p);
}

/* --- connections that end --- */

static void test_silence(void)
{
    for (uint32_t i = 0; i < 4; i++) {
        struct pair p = pair_start(i);
        struct test_call call, next;
        CHECK_EQ(echo(p.client, 1, 1, 0), 0);
        run_for(p.world, 30 * NS_PER_S); /* idle is not silent */
        CHECK_EQ(p.client->down_count, 0);
        CHECK(sim_world_now_ns(p.world) - rpc_heard_ns(p.client->rpc, 1) <
              3 * NS_PER_S / 2);
        call_init(&call, p.client, 1, OP_HOLD, 2);
        call_start(&call, 0);
        run_for(p.world, NS_PER_S / 10);
        if (i != 0)
            sim_net_block(p.world, 1, 2, true);
        if (i != 1)
            sim_net_block(p.world, 2, 1, true);
        if (i == 3)
            node_kill(p.server, SIM_POWER_CUT);
        CHECK_EQ(call_wait(&call), -ECONNRESET);
        CHECK(call.call.was_sent);
        CHECK(call.ended_ns - call.begun_ns <= LOST_NS + NS_PER_S / 10);
        CHECK_EQ(p.client->down_count, 1);
        run_for(p.world, NS_PER_S);
        if (i < 3)
            CHECK(TAILQ_EMPTY(&p.server->rpc->incoming)); /* it noticed as well */
        call_init(&next, p.client, 1, OP_ECHO, 3);
        call_start(&next, 0);
        sim_net_open_all(p.world);
        if (i == 3)
            p.server = node_start(p.world, 1);
        CHECK_EQ(call_wait(&next), 0);
        CHECK_EQ(p.client->up_count, 2);
        pair_stop(&p);
    }
}

/* What was sent fails, what waits survives. */
static void test_server_dies(void)
{
    static struct test_call calls[200];
    for (uint32_t i = 0; i < 2; i++) {
        struct pair p = pair_start(i);
        for (uint32_t j = 0; j < 200; j++) {
            call_init(&calls[j], p.client, 1, OP_HOLD, j);
            call_start(&calls[j], 50);
        }
        run_for(p.world, NS_PER_S / 2);
        uint64_t died_ns = sim_world_now_ns(p.world);
        server_restart(&p, i == 0 ? SIM_KILL : SIM_POWER_CUT);
        for (uint32_t j = 0; j < RPC_CALLS_INFLIGHT_MAX; j++) {
            CHECK_EQ(call_wait(&calls[j]), -ECONNRESET);
            CHECK(calls[j].call.was_sent);
            CHECK(calls[j].ended_ns - died_ns <= LOST_NS);
        }
        run_for(p.world, NS_PER_S);
        CHECK_EQ(p.server->held_count, 200 - RPC_CALLS_INFLIGHT_MAX);
        node_release_held(p.server);
        for (uint32_t j = RPC_CALLS_INFLIGHT_MAX; j < 200; j++)
            CHECK_EQ(call_wait(&calls[j]), 0);
        pair_stop(&p);
    }
}

/* Nobody listens for a long time: attempts get rare, the call waits, and as soon as the
 * node itself calls, there is no more waiting. */
static void test_reconnect(void)
{
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct pair p = pair_start(seed);
        struct test_call call;
        CHECK_EQ(echo(p.client, 1, 1, 0), 0);
        node_kill(p.server, SIM_KILL);
        uint64_t before = p.world->conn_count;
        run_for(p.world, 10 * NS_PER_S);
        CHECK(p.world->conn_count - before >= 8 && p.world->conn_count - before <= 20);
        CHECK_EQ(p.client->up_count, 1);
        call_init(&call, p.client, 1, OP_ECHO, 2);
        call_start(&call, 0);
        run_for(p.world, NS_PER_S);
        p.server = node_start(p.world, 1);
        uint64_t begun_ns = sim_world_now_ns(p.world);
        CHECK_EQ(rpc_set_address(p.server->rpc, 2, address_of(2)), 0);
        CHECK_EQ(echo(p.server, 2, 3, 0), 0);
        CHECK_EQ(call_wait(&call), 0);
        CHECK(call.ended_ns - begun_ns < 3 * RPC_RETRY_MIN_MS * NS_PER_MS);
        /* Pauses grew again; but the connection after that was a sound one. */
        node_kill(p.server, SIM_KILL);
        run_for(p.world, 10 * NS_PER_S);
        p.server = node_start(p.world, 1);
        run_for(p.world, 4 * NS_PER_S);
        CHECK(rpc_is_connected(p.client->rpc, 1));
        server_restart(&p, SIM_KILL);
        run_for(p.world, 3 * RPC_RETRY_MIN_MS * NS_PER_MS);
        CHECK(rpc_is_connected(p.client->rpc, 1));
        pair_stop(&p);
    }
}

/* --- cancel --- */

static void test_cancel(void)
{
    static struct test_call calls[RPC_CALLS_INFLIGHT_MAX + 2], ending;
    struct pair p = pair_start(1);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
        call_init(&calls[i], p.client, 1, OP_HOLD, i);
        call_start(&calls[i], 10);
    }
    run_for(p.world, NS_PER_S);
    rpc_cancel(p.client->rpc, &calls[3].call); /* sent */
    CHECK_EQ(calls[3].call.result, -ECANCELED);
    CHECK(calls[3].is_done && calls[3].call.was_sent);
    rpc_cancel(p.client->rpc, &calls[RPC_CALLS_INFLIGHT_MAX].call); /* queued */
    CHECK(!calls[RPC_CALLS_INFLIGHT_MAX].call.was_sent);
    call_init(&ending, p.client, 9, OP_ECHO, 5);
    call_start(&ending, 10);
    CHECK_EQ(rpc_set_address(p.client->rpc, 9, "nine:1"), 0);
    CHECK_EQ(rpc_set_address(p.client->rpc, 9, NULL), 0);
    rpc_cancel(p.client->rpc, &ending.call); /* about to be told of */
    CHECK_EQ(ending.call.result, -ECANCELED);
    node_release_held(p.server);
    run_for(p.world, NS_PER_S);
    node_release_held(p.server);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
        bool is_cancelled = i == 3 || i == RPC_CALLS_INFLIGHT_MAX;
        CHECK_EQ(call_wait(&calls[i]), is_cancelled ? -ECANCELED : 0);
        CHECK_EQ(calls[i].done_count, 1);
    }
    CHECK_EQ(p.server->handled, RPC_CALLS_INFLIGHT_MAX + 1);
    pair_stop(&p);
}

/* --- one-way messages --- */

static void post(struct pair *p, uint64_t number, uint32_t len)
{
    struct buffer *buffer = len > 0 ? buffer_create(p->client->pool, len) : NULL;
    struct slice slice = {.buffer = buffer, .len = len};
    if (buffer != NULL)
        memset(buffer->data, 1, len);
    rpc_post(p->client->rpc, 1, OP_NOTE, &number, sizeof number, &slice,
             buffer != NULL ? 1 : 0);
    buffer_put(buffer);
}

static void test_posts(void)
{
    struct pair p = pair_start(1);
    for (uint32_t i = 0; i < 100; i++)
        post(&p, i, i); /* kept while it connects */
    run_for(p.world, NS_PER_S);
    for (uint32_t i = 100; i < 200; i++)
        post(&p, i, 0);
    run_for(p.world, NS_PER_S);
    CHECK_EQ(p.server->note_count, 200);
    for (uint32_t i = 0; i < 200; i++)
        CHECK_EQ(p.server->notes[i], i);
    /* Too much for a blocked way: the newest are dropped, memory is bounded. */
    sim_net_block(p.world, 2, 1, true);
    for (uint32_t i = 0; i < 300; i++)
        post(&p, 1000 + i, 64 * KIB);
    CHECK(p.client->rpc->dropped->value > 200);
    CHECK(buffer_pool_used_bytes(p.client->pool) <= RPC_POST_QUEUED_MAX + 64 * KIB);
    sim_net_open_all(p.world);
    run_for(p.world, NS_PER_S);
    CHECK(p.server->note_count >= 210 && p.server->note_count < 300);
    for (uint32_t i = 200; i < p.server->note_count; i++)
        CHECK_EQ(p.server->notes[i], 800 + i);
    /* Afterwards there is room again, for any number one after the other. */
    uint32_t before = p.server->note_count;
    for (uint32_t i = 0; i < 200; i++) {
        post(&p, i, 64 * KIB);
        run_for(p.world, NS_PER_MS);
    }
    run_for(p.world, NS_PER_S);
    CHECK_EQ(p.server->note_count, before + 200);
    pair_stop(&p);
}

/* A connection that always has something to send still takes them, as they leave. */
static void test_posts_busy(void)
{
    enum { ROUNDS = 60, EACH = 8 };
    static struct test_call calls[ROUNDS * EACH];
    struct pair p = pair_start(1);
    CHECK_EQ(echo(p.client, 1, 1, 0), 0);
    const struct net_conn *conn = rpc_peer_find(p.client->rpc, 1)->link.conn;
    sim_world_faults(p.world)->net_latency_min_ns = 300 * NS_PER_US;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        for (uint32_t j = 0; j < EACH; j++) {
            struct test_call *call = &calls[i * EACH + j];
            call_init(call, p.client, 1, OP_ECHO, i);
            call_start(call, ECHO_BYTES_MAX);
        }
        post(&p, i, 60000);
        while (net_conn_queued_bytes(conn) > 200 * KIB)
            CHECK(sim_world_step(p.world));
        CHECK(net_conn_queued_bytes(conn) > 0);
    }
    run_for(p.world, NS_PER_S);
    CHECK_EQ(p.client->rpc->dropped->value, 0);
    CHECK_EQ(p.server->note_count, ROUNDS);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++)
        CHECK_EQ(call_wait(&calls[i]), 0);
    pair_stop(&p);
}

static void test_posts_lost(void)
{
    struct pair p = pair_start(1);
    node_kill(p.server, SIM_KILL);
    for (uint32_t i = 0; i < 300; i++)
        post(&p, i, 64 * KIB);
    CHECK(p.client->rpc->dropped->value >= 284);
    run_for(p.world, NS_PER_S);
    CHECK_EQ(buffer_pool_used_bytes(p.client->pool), 0); /* lost with the attempt */
    CHECK_EQ(p.client->rpc->dropped->value, 300);
    rpc_post(p.client->rpc, 77, OP_NOTE, NULL, 0, NULL, 0); /* who? */
    CHECK_EQ(p.client->rpc->dropped->value, 301);
    node_stop(p.client);
    sim_world_destroy(p.world);
}

/* --- refusals --- */

static int call_with(struct pair *p, uint16_t op, uint32_t head_len, uint32_t payload_len)
{
    static uint8_t head[RPC_HEAD_MAX];
    struct test_call call;
    call_init(&call, p->client, 1, op, 0);
    call.call.head = head;
    call.call.head_len = head_len;
    call_start(&call, payload_len);
    return call_wait(&call);
}

static void test_refusals(void)
{
    struct pair p = pair_start(1);
    CHECK_EQ(call_with(&p, 99, 8, 0), -ENOSYS);
    CHECK_EQ(call_with(&p, 65535, 8, 100), -ENOSYS);
    CHECK_EQ(call_with(&p, OP_ECHO, ECHO_HEAD_MAX + 1, 0), -EMSGSIZE);
    CHECK_EQ(call_with(&p, OP_ECHO, RPC_HEAD_MAX, 0), -EMSGSIZE);
    CHECK_EQ(call_with(&p, OP_ECHO, 8, ECHO_BYTES_MAX + 1), -EMSGSIZE);
    CHECK_EQ(call_with(&p, OP_ECHO, 8, 1024 * 1024), -EMSGSIZE);
    CHECK_EQ(call_with(&p, OP_NOTE, 8, 0), -EPROTO);
    CHECK_EQ(p.server->handled, 0);
    CHECK_EQ(p.server->note_count, 0);
    CHECK_EQ(p.client->down_count, 0);
    rpc_post(p.client->rpc, 1, OP_ECHO, NULL, 0, NULL, 0);
    rpc_post(p.client->rpc, 1, OP_NOTE, "123456789", 9, NULL, 0);
    run_for(p.world, NS_PER_S);
    CHECK_EQ(p.server->rpc->refusals->value, 9);
    CHECK_EQ(p.server->handled, 0);
    CHECK_EQ(p.server->note_count, 0);
    CHECK_EQ(call_with(&p, OP_ECHO, 8, ECHO_BYTES_MAX), 0);
    CHECK_EQ(p.server->handled, 1);
    pair_stop(&p);
}

static void join_init(struct test_call *call, struct node *node, const char *address,
                      uint16_t op)
{
    call_init(call, node, 0, op, 5);
    call->call.address = address;
}

static void test_nobody(void)
{
    static struct test_call calls[2 * RPC_NOBODIES_MAX];
    struct pair p = pair_start(1);
    struct node *joiner = node_create(p.world, 3, 1 * MIB);
    struct node *closed = node_create(p.world, 4, 1 * MIB);
    struct net_identity nobody = {.cluster = {{1}}};
    struct net_identity four = {.cluster = {{1}}, .node = 4};
    CHECK_EQ(rpc_start_on(joiner, nobody, all_ops), 0);
    CHECK_EQ(rpc_start_on(closed, four, member_ops), 0);
    CHECK_EQ(rpc_listen(closed->rpc, "closed:1", NULL, NULL), 0);
    struct test_call call;
    join_init(&call, joiner, ADDRESS, OP_JOIN);
    call_start(&call, 0);
    CHECK_EQ(call_wait(&call), 0);
    join_init(&call, joiner, ADDRESS, OP_ECHO);
    call_start(&call, 0);
    CHECK_EQ(call_wait(&call), -PLX_EDENIED);
    CHECK(call.call.was_sent);
    join_init(&call, joiner, "closed:1", OP_JOIN);
    call_start(&call, 0);
    CHECK_EQ(call_wait(&call), -PLX_EDENIED);
    CHECK(!call.call.was_sent);
    join_init(&call, joiner, "nowhere:1", OP_JOIN);
    call_start(&call, 0);
    CHECK_EQ(call_wait(&call), -ECONNREFUSED);
    CHECK(!call.call.was_sent);
    sim_net_block(p.world, 1, 3, true);
    join_init(&call, joiner, ADDRESS, OP_JOIN);
    call_start(&call, 0);
    CHECK_EQ(call_wait(&call), -ETIMEDOUT);
    CHECK(!call.call.was_sent);
    CHECK(call.ended_ns - call.begun_ns <= (RPC_CONNECT_MS + 1) * NS_PER_MS);
    sim_net_open_all(p.world);
    /* Payloads are for members. */
    join_init(&call, joiner, ADDRESS, OP_JOIN);
    call_start(&call, 1000);
    CHECK_EQ(call_wait(&call), -ECONNRESET);
    /* A member may ask by address as well. */
    join_init(&call, p.client, ADDRESS, OP_ECHO);
    call_start(&call, 1000);
    CHECK_EQ(call_wait(&call), 0);
    /* There is room for so many of them. */
    uint32_t answered = 0;
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
        join_init(&calls[i], joiner, ADDRESS, OP_JOIN);
        call_start(&calls[i], 0);
    }
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++)
        answered += call_wait(&calls[i]) == 0;
    CHECK(answered >= RPC_NOBODIES_MAX);
    run_for(p.world, NS_PER_S); /* their connections are gone */
    CHECK(TAILQ_EMPTY(&joiner->rpc->singles));
    CHECK_EQ(p.server->rpc->nobody->incoming_count, 0);
    node_stop(joiner);
    node_stop(closed);
    pair_stop(&p);
}

static void test_wrong_node(void)
{
    struct pair p = pair_start(1);
    CHECK_EQ(rpc_set_address(p.client->rpc, 9, ADDRESS), 0);
    CHECK_EQ(echo(p.client, 9, 1, 0), -PLX_EDENIED); /* when its time was over */
    CHECK_EQ(p.client->up_count, 0);
    CHECK_EQ(echo(p.client, 1, 1, 0), 0);
    pair_stop(&p);
}

/* --- memory that is full --- */

/* For 20 s one of them has no buffer; nobody takes it for dead. */
static void test_starved(void)
{
    for (uint32_t i = 0; i < 2; i++) {
        struct pair p = pair_start(i);
        struct node *poor = i == 0 ? p.server : p.client;
        struct test_call call;
        CHECK_EQ(echo(p.client, 1, 1, 0), 0);
        call_init(&call, p.client, 1, OP_HOLD, 2);
        call.call.timeout_ns = 100 * NS_PER_S;
        call_start(&call, 5000);
        if (poor == p.client)
            run_for(p.world, NS_PER_S);
        struct buffer *all[65];
        uint32_t count = 0;
        while ((all[count] = buffer_create(poor->pool, MIB)) != NULL)
            count++;
        struct buffer *rest[255];
        uint32_t rest_count = 0;
        while (rest_count < 255 && (rest[rest_count] = buffer_create(poor->pool, 1)))
            rest_count++;
        node_release_held(p.server);
        run_for(p.world, 20 * NS_PER_S);
        CHECK(!call.is_done);
        CHECK_EQ(p.client->down_count, 0);
        CHECK_EQ(p.server->rpc->nobody->incoming_count, 0);
        CHECK(!TAILQ_EMPTY(&p.server->rpc->incoming));
        while (count > 0)
            buffer_put(all[--count]);
        while (rest_count > 0)
            buffer_put(rest[--rest_count]);
        run_for(p.world, NS_PER_S);
        node_release_held(p.server);
        CHECK_EQ(call_wait(&call), 0);
        pair_stop(&p);
    }
}

/* Nor does one that did not read take its peer for dead when it reads again, though it
 * had asked and got no answer. */
static void test_own_silence(void)
{
    struct pair p = pair_start(1);
    CHECK_EQ(echo(p.client, 1, 1, 0), 0);
    struct rpc_link *link = &rpc_peer_find(p.client->rpc, 1)->link;
    sim_net_block(p.world, 1, 2, true);
    while (link->pinged_ns == 0)
        CHECK(sim_world_step(p.world));
    net_conn_pause(link->conn, true);
    run_for(p.world, 5 * NS_PER_S);
    net_conn_pause(link->conn, false);
    run_for(p.world, NS_PER_S * 9 / 10);
    CHECK_EQ(p.client->down_count, 0);
    run_for(p.world, 2 * NS_PER_S);
    CHECK_EQ(p.client->down_count, 1);
    pair_stop(&p);
}

/* A process that stood still finds its answers waiting; it must look at them first. */
static void test_stall(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct pair p = pair_start(seed);
        CHECK_EQ(echo(p.client, 1, 1, 0), 0);
        const struct rpc_link *link = &rpc_peer_find(p.client->rpc, 1)->link;
        while (link->pinged_ns == 0)
            CHECK(sim_world_step(p.world));
        uint64_t begun_ns = sim_world_now_ns(p.world);
        run_for(p.world, 10 * NS_PER_US); /* the ping is on its way, no answer yet */
        sim_process_stall(p.client->loop, NS_PER_S * 19 / 10);
        run_for(p.world, 5 * NS_PER_S);
        CHECK(link->pinged_ns == 0 || link->pinged_ns > begun_ns + NS_PER_S);
        CHECK_EQ(p.client->down_count, 0);
        /* The others do not wait for ever. */
        sim_process_stall(p.client->loop, 10 * NS_PER_S);
        run_for(p.world, LOST_NS);
        CHECK(TAILQ_EMPTY(&p.server->rpc->incoming));
        run_for(p.world, 20 * NS_PER_S);
        CHECK_EQ(p.client->down_count, 1);
        CHECK_EQ(p.client->up_count, 2);
        pair_stop(&p);
    }
}

/* --- the end of an rpc --- */

static void test_destroy(void)
{
    static struct test_call calls[RPC_CALLS_INFLIGHT_MAX + 5], other, join, ending;
    struct pair p = pair_start(1);
    CHECK_EQ(rpc_set_address(p.server->rpc, 2, address_of(2)), 0);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
        call_init(&calls[i], p.client, 1, OP_HOLD, i);
        call_start(&calls[i], 100);
    }
    call_init(&other, p.server, 2, OP_HOLD, 1); /* the other way */
    call_start(&other, 100);
    run_for(p.world, NS_PER_S);
    join_init(&join, p.client, ADDRESS, OP_JOIN);
    call_start(&join, 100);
    call_init(&ending, p.client, 9, OP_ECHO, 1);
    call_start(&ending, 100);
    CHECK_EQ(rpc_set_address(p.client->rpc, 9, "a:1"), 0);
    CHECK_EQ(rpc_set_address(p.client->rpc, 9, NULL), 0);
    post(&p, 1, 100);
    rpc_destroy(p.client->rpc);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
        CHECK(calls[i].is_done);
        CHECK_EQ(calls[i].call.result, -ECANCELED);
        CHECK_EQ(calls[i].call.was_sent, i < RPC_CALLS_INFLIGHT_MAX);
    }
    CHECK(join.is_done && ending.is_done);
    CHECK_EQ(p.client->held_count, 1);
    CHECK(p.client->held[0]->rpc == NULL);
    node_release_held(p.client); /* goes nowhere */
    CHECK_EQ(buffer_pool_used_bytes(p.client->pool), 0);
    CHECK_EQ(call_wait(&other), -ECONNRESET);
    run_for(p.world, NS_PER_S);
    /* Here it is the connection that is gone; with its requests the server is done
     * later. */
    CHECK_EQ(p.server->held_count, RPC_CALLS_INFLIGHT_MAX);
    CHECK(TAILQ_EMPTY(&p.server->rpc->incoming));
    CHECK_EQ(rpc_peer_find(p.server->rpc, 2)->requests, RPC_CALLS_INFLIGHT_MAX);
    node_release_held(p.server);
    CHECK_EQ(rpc_peer_find(p.server->rpc, 2)->requests, 0);
    p.client->rpc = NULL;
    pair_stop(&p);
}

/* A node whose requests are never answered cannot pile up more by connecting again. */
static void test_orphans(void)
{
    static struct test_call calls[RPC_CALLS_INFLIGHT_MAX];
    struct pair p = pair_start(1);
    for (uint32_t round = 0; round < 10; round++) {
        for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
            call_init(&calls[i], p.client, 1, OP_HOLD, i);
            calls[i].call.timeout_ns = NS_PER_S;
            call_start(&calls[i], 0);
        }
        run_for(p.world, NS_PER_S / 2);
        CHECK_EQ(rpc_set_address(p.client->rpc, 1, NULL), 0);
        CHECK_EQ(rpc_set_address(p.client->rpc, 1, ADDRESS), 0);
        run_for(p.world, NS_PER_S);
    }
    CHECK(p.server->held_peak >= RPC_REQUESTS_MAX);
    CHECK(p.server->held_peak < RPC_REQUESTS_MAX + RPC_INFLIGHT_MAX);
    node_release_held(p.server);
    CHECK_EQ(echo(p.client, 1, 1, 0), 0);
    pair_stop(&p);
}

/* --- tasks --- */

struct waiting {
    struct task_call task;
    struct node *node;
    bool is_over;
};

static void wait_main(struct task_call *task)
{
    struct waiting *w = container_of(task, struct waiting, task);
    uint64_t number = 9;
    struct writer answer = {0};
    struct slice payload = {0};
    struct buffer *buffer = buffer_create(w->node->pool, 5000);
    memset(buffer->data, 9, 5000);
    struct slice slice = {.buffer = buffer, .len = 5000};
    struct rpc_call call = {
        .node = 1,
        .op = OP_ECHO,
        .head = &number,
        .head_len = sizeof number,
        .slices = &slice,
        .slice_count = 1,
        .timeout_ns = NS_PER_S,
    };
    CHECK_EQ(rpc_wait(w->node->rpc, &call, &answer, &payload), 0);
    CHECK_EQ(rpc_wait(w->node->rpc, &call, &answer, NULL), 0); /* replaced */
    CHECK_EQ(answer.len, sizeof number);
    CHECK(memcmp(answer.bytes, &number, sizeof number) == 0);
    check_payload(payload, 9, 5000);
    buffer_put(payload.buffer);
    CHECK_EQ(rpc_wait(w->node->rpc, &call, NULL, NULL), 0);
    writer_done(&answer);
    call.op = 99;
    CHECK_EQ(rpc_wait(w->node->rpc, &call, NULL, NULL), -ENOSYS);
    buffer_put(buffer);
    w->is_over = true;
}

static void test_wait(void)
{
    struct pair p = pair_start(1);
    struct waiting w = {.node = p.client, .task = {.main = wait_main, .name = "wait"}};
    task_start(p.client->loop, &w.task);
    CHECK(sim_world_run_until(p.world, &w.is_over, 10 * NS_PER_S));
    pair_stop(&p);
}

int main(void)
{
    test_echo();
    test_many();
    test_queue_full();
    test_deadline();
    test_unknown_address();
    test_address_change();
    test_silence();
    test_server_dies();
    test_reconnect();
    test_cancel();
    test_posts();
    test_posts_busy();
    test_posts_lost();
    test_refusals();
    test_nobody();
    test_wrong_node();
    test_starved();
    test_own_silence();
    test_stall();
    test_destroy();
    test_orphans();
    test_wait();
    return 0;
}
