/* SPDX-License-Identifier: Apache-2.0 */
/* Calls under random faults, with failing memory, and with peers that do not keep to the
 * rules. What always holds: a call ends once and in time, gets its own answer, and is
 * handled at most once; one that was never sent is not handled at all.
 *
 *     test_rpc_random [SEED]
 */
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/rpc_machine.h"

/* --- allocations that fail --- */

static int64_t alloc_left = -1; /* -1: off */
static bool alloc_failed;
static unsigned in_simulator;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__real_sim_alloc(size_t bytes);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
void *__wrap_sim_alloc(size_t bytes);

static bool alloc_fails(void)
{
    if (alloc_left < 0 || in_simulator > 0)
        return false;
    bool fails = alloc_left == 0;
    alloc_failed = alloc_failed || fails;
    alloc_left--;
    return fails;
}

void *__wrap_malloc(size_t size)
{
    return alloc_fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return alloc_fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *p, size_t size)
{
    return alloc_fails() ? NULL : __real_realloc(p, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
    return alloc_fails() ? NULL : __real_aligned_alloc(align, size);
}

void *__wrap_sim_alloc(size_t bytes)
{
    in_simulator++;
    void *p = __real_sim_alloc(bytes);
    in_simulator--;
    return p;
}

static void check_memory_result(int result)
{
    /* The last: a server without memory lets nobody in. */
    CHECK(result == 0 || result == -ENOMEM || result == -ECONNRESET ||
          result == -PLX_EDENIED);
}

/* Two processes do all there is while the nth allocation fails; then all is well again,
 * and nothing has leaked. */
static bool memory_fails(int64_t nth)
{
    struct test_call calls[6];
    struct sim_world *world = sim_world_create(1);
    struct node *server = node_start(world, 1), *client = node_start(world, 2);
    struct buffer *buffer = buffer_create(client->pool, 5000);
    struct slice slice = {.buffer = buffer, .len = 5000};
    memset(buffer->data, 1, 5000);
    alloc_left = nth;
    alloc_failed = false;
    int rc = rpc_set_address(client->rpc, 1, ADDRESS);
    CHECK_EQ(rc, alloc_failed ? -ENOMEM : 0);
    if (rc != 0)
        CHECK_EQ(rpc_set_address(client->rpc, 1, ADDRESS), 0);
    rpc_post(client->rpc, 1, OP_NOTE, "12345678", 8, &slice, 1);
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
        static const uint16_t ops[] = {OP_ECHO, OP_HOLD, OP_FAIL, 99, OP_JOIN, OP_ECHO};
        call_init(&calls[i], client, i == 4 ? 0 : 1, ops[i], 1);
        calls[i].call.address = ADDRESS;
        calls[i].call.slices = &slice;
        calls[i].call.slice_count = i == 2 ? 0 : 1;
        calls[i].payload_len = 5000;
        rpc_start(client->rpc, &calls[i].call);
        run_for(world, 100 * NS_PER_MS);
    }
    node_release_held(server);
    run_for(world, 15 * NS_PER_S);
    alloc_left = -1;
    for (uint32_t i = 0; i < ARRAY_LEN(calls); i++) {
        CHECK_EQ(calls[i].done_count, 1);
        if (i != 2 && i != 3)
            check_memory_result(calls[i].call.result);
    }
    CHECK_EQ(rpc_set_address(client->rpc, 1, ADDRESS), 0);
    CHECK_EQ(echo(client, 1, 7, 5000), 0);
    buffer_put(buffer);
    node_stop(client);
    node_stop(server);
    sim_world_destroy(world);
    return alloc_failed;
}

static void test_memory(void)
{
    int64_t nth = 0;
    while (memory_fails(nth))
        nth++;
    CHECK(nth > 20);
    struct sim_world *world = sim_world_create(1);
    struct node *node = node_create(world, 1, MIB);
    struct net_identity self = {.cluster = {{1}}, .node = 1};
    for (nth = 0, alloc_failed = true; alloc_failed; nth++) {
        alloc_failed = false;
        alloc_left = nth;
        int rc = rpc_start_on(node, self, all_ops);
        alloc_left = -1;
        CHECK_EQ(rc, alloc_failed ? -ENOMEM : 0);
    }
    CHECK(nth > 2);
    node_stop(node);
    sim_world_destroy(world);
}

/* --- random faults --- */

#define NODES   3U
#define CALLS   1500U
#define ACTIONS 3000U

struct chaos {
    struct sim_world *world;
    struct node *nodes[NODES + 1]; /* by number; NULL: not running */
    struct test_call calls[CALLS];
    bool is_lost[CALLS]; /* its process died */
    uint32_t handled[CALLS];
    uint32_t started;
    bool nobody_dies;
    uint64_t stalled_ns; /* at most, all processes */
    uint32_t answered, failed, unsent;
};
static struct chaos chaos; /* the handlers see it */

static uint64_t below(uint64_t n)
{
    return sim_world_random(chaos.world, n);
}

static void note_handled(const struct rpc_request *request)
{
    uint64_t number = number_of(request);
    CHECK(number < chaos.started);
    CHECK_EQ(chaos.handled[number]++, 0); /* at most once */
    uint32_t len = request->payload.buffer != NULL ? request->payload.len : 0;
    check_payload(request->payload, number, len);
    CHECK_EQ(request->peer.node, chaos.calls[number].node->number);
}

static void chaos_echo(void *arg, struct rpc_request *request)
{
    note_handled(request);
    handle_echo(arg, request);
}

static void chaos_hold(void *arg, struct rpc_request *request)
{
    note_handled(request);
    handle_hold(arg, request);
}

static const struct rpc_op chaos_op_echo = {
    OP_ECHO, "echo", false, false, 100, ECHO_BYTES_MAX, chaos_echo};
static const struct rpc_op chaos_op_hold = {
    OP_HOLD, "hold", false, false, 100, ECHO_BYTES_MAX, chaos_hold};
static const struct rpc_op *const chaos_ops[] = {&chaos_op_echo, &chaos_op_hold,
                                                 &op_note, NULL};

static void chaos_start_node(uint32_t number)
{
    struct node *node = node_create(chaos.world, number, 4 * MIB);
    struct net_identity self = {.cluster = {{1}}, .node = number};
    CHECK_EQ(rpc_start_on(node, self, chaos_ops), 0);
    CHECK_EQ(rpc_listen(node->rpc, address_of(number), NULL, NULL), 0);
    for (uint32_t i = 1; i <= NODES; i++)
        CHECK_EQ(rpc_set_address(node->rpc, i, address_of(i)), 0);
    chaos.nodes[number] = node;
}

static void chaos_kill(uint32_t number)
{
    struct node *node = chaos.nodes[number];
    for (uint32_t i = 0; i < chaos.started; i++)
        chaos.is_lost[i] |= chaos.calls[i].node == node && !chaos.calls[i].is_done;
    chaos.nodes[number] = NULL;
    node_kill(node, below(2) == 0 ? SIM_KILL : SIM_POWER_CUT);
}

static void chaos_call(struct node *from)
{
    if (chaos.started == CALLS)
        return;
    struct test_call *call = &chaos.calls[chaos.started];
    uint64_t to = 1 + below(NODES);
    call_init(call, from, to, below(2) == 0 ? OP_ECHO : OP_HOLD, chaos.started);
    call->call.timeout_ns = 1 + below(8 * NS_PER_S);
    chaos.started++;
    uint32_t len = below(3) == 0 ? (uint32_t)below(20000) : 0;
    struct buffer *room = len > 0 ? buffer_create(from->pool, len) : NULL;
    buffer_put(room);
    call_start(call, room != NULL ? len : 0);
}

static void chaos_cancel(struct node *node)
{
    for (uint32_t tries = 0; tries < 10 && chaos.started > 0; tries++) {
        struct test_call *call = &chaos.calls[below(chaos.started)];
        if (call->node != node || call->is_done)
            continue;
        rpc_cancel(node->rpc, &call->call);
        CHECK(call->is_done && call->call.result == -ECANCELED);
        return;
    }
}

static void chaos_answer(struct node *node)
{
    if (node->held_count == 0)
        return;
    uint64_t i = below(node->held_count);
    struct rpc_request *request = node->held[i];
    node->held[i] = node->held[--node->held_count];
    answer_echo(request);
}

static void chaos_act(void)
{
    uint32_t number = (uint32_t)(1 + below(NODES));
    struct node *node = chaos.nodes[number];
    uint64_t choice = below(1000);
    if (node == NULL) {
        if (choice < 200)
            chaos_start_node(number);
    } else if (choice < 500) {
        chaos_call(node);
    } else if (choice < 900) {
        chaos_answer(node);
    } else if (choice < 930) {
        chaos_cancel(node);
    } else if (choice < 950) {
        uint64_t note = 1;
        rpc_post(node->rpc, 1 + below(NODES), OP_NOTE, &note, sizeof note, NULL, 0);
    } else if (choice < 965) {
        sim_net_block(chaos.world, (uint32_t)(1 + below(NODES)), number, true);
    } else if (choice < 975) {
        sim_net_open_all(chaos.world);
    } else if (choice < 980) {
        uint64_t other = 1 + below(NODES);
        CHECK_EQ(rpc_set_address(node->rpc, other, NULL), 0);
        CHECK_EQ(rpc_set_address(node->rpc, other, address_of((uint32_t)other)), 0);
    } else if (choice < 985 && !chaos.nobody_dies) {
        chaos_kill(number);
    } else if (choice < 990) {
        chaos.stalled_ns += 3 * NS_PER_S;
        sim_process_stall(node->loop, below(3 * NS_PER_S));
    }
    run_for(chaos.world, below(50) == 0 ? below(2 * NS_PER_S) : below(5 * NS_PER_MS));
}

static void chaos_check(void)
{
    for (uint32_t i = 0; i < chaos.started; i++) {
        const struct test_call *call = &chaos.calls[i];
        if (chaos.is_lost[i])
            continue;
        int result = call->call.result;
        CHECK_EQ(call->done_count, 1);
        CHECK(call->ended_ns - call->begun_ns <=
              call->call.timeout_ns + chaos.stalled_ns);
        CHECK(result == 0 || result == -ECONNRESET || result == -ETIMEDOUT ||
              result == -ECANCELED || result == -EHOSTUNREACH);
        CHECK(result != -EHOSTUNREACH || !call->call.was_sent);
        CHECK(result != -ECONNRESET || call->call.was_sent);
        if (result == 0)
            CHECK_EQ(chaos.handled[i], 1);
        if (!call->call.was_sent)
            CHECK_EQ(chaos.handled[i], 0);
        chaos.answered += result == 0;
        chaos.failed += result != 0;
        chaos.unsent += !call->call.was_sent;
    }
}

static uint64_t chaos_run(uint64_t seed)
{
    uint64_t digest = 0;
    chaos = (struct chaos){.world = sim_world_create(seed), .nobody_dies = seed % 3 == 0};
    struct sim_faults *faults = sim_world_faults(chaos.world);
    for (uint32_t i = 1; i <= NODES; i++)
        chaos_start_node(i);
    faults->net_reset_ppm = (uint32_t)below(3000);
    faults->net_stuck_ppm = (uint32_t)below(1000);
    for (uint32_t i = 0; i < ACTIONS; i++)
        chaos_act();
    faults->net_reset_ppm = faults->net_stuck_ppm = 0;
    sim_net_open_all(chaos.world);
    run_for(chaos.world, 30 * NS_PER_S);
    chaos_check();
    /* And then everything works. */
    for (uint32_t i = 1; i <= NODES; i++) {
        if (chaos.nodes[i] == NULL)
            chaos_start_node(i);
        node_release_held(chaos.nodes[i]);
    }
    uint32_t first = chaos.started;
    for (uint32_t i = 0; i < NODES * NODES && chaos.started < CALLS; i++) {
        struct test_call *call = &chaos.calls[chaos.started++];
        call_init(call, chaos.nodes[1 + i / NODES], 1 + i % NODES, OP_ECHO,
                  (uint64_t)(call - chaos.calls));
        call_start(call, 100);
    }
    for (; first < chaos.started; first++)
        CHECK_EQ(call_wait(&chaos.calls[first]), 0);
    for (uint32_t i = 1; i <= NODES; i++) {
        digest ^= trace_digest(loop_trace(chaos.nodes[i]->loop));
        node_stop(chaos.nodes[i]);
    }
    digest ^= sim_world_now_ns(chaos.world);
    sim_world_destroy(chaos.world);
    return digest;
}

/* Killed processes leave their memory behind, so those runs are children. */
static void test_random(void)
{
    enum { ANSWERED, FAILED, UNSENT, COUNTS };
    uint64_t *counts = mmap(NULL, COUNTS * sizeof *counts, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(counts != MAP_FAILED);
    for (uint64_t seed = 1; seed <= seeds_of(60); seed++) {
        pid_t child = seed % 3 == 0 ? 0 : fork();
        CHECK(child >= 0);
        if (child == 0) {
            uint64_t digest = chaos_run(seed);
            counts[ANSWERED] += chaos.answered;
            counts[FAILED] += chaos.failed;
            counts[UNSENT] += chaos.unsent;
            if (seed == 1)
                CHECK(digest == chaos_run(seed));
            if (seed % 3 != 0)
                _exit(0);
        } else {
            int status = 0;
            CHECK_EQ(waitpid(child, &status, 0), child);
            if (status != 0)
                fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
            CHECK_EQ(status, 0);
        }
    }
    CHECK(counts[ANSWERED] > counts[FAILED] && counts[FAILED] > 2 * seeds_of(60));
    CHECK(counts[UNSENT] > 0);
    munmap(counts, COUNTS * sizeof *counts);
}

/* --- peers that do not keep to the rules --- */

/* A node with a bare net: it sends what it likes. */
struct hostile {
    struct net *net;
    struct net_conn *conn;
    uint32_t received, answers;
    struct rpc_head last;
    bool is_closed;
    /* As a server: how it answers. */
    void (*reply)(struct hostile *h, const struct rpc_head *request);
};

static void hostile_send(struct hostile *h, struct rpc_head head, const void *rest,
                         size_t len)
{
    struct rpc_head_format f = {
        .kind = (uint8_t)head.kind,
        .op = le16_of(head.op),
        .code = le32_of((uint32_t)head.code),
        .call = le64_of(head.call),
    };
    uint8_t bytes[200];
    memcpy(bytes, &f, sizeof f);
    if (len > 0)
        memcpy(bytes + sizeof f, rest, len);
    struct net_send send = {.head = bytes, .head_len = sizeof f + len};
    CHECK_EQ(net_send(h->conn, &send), 0);
}

static void hostile_opened(void *arg, struct net_conn *conn)
{
    (void)arg, (void)conn;
}

static void hostile_received(void *arg, struct net_conn *conn, const void *bytes,
                             size_t len, struct slice payload)
{
    struct hostile *h = arg;
    (void)conn;
    CHECK_EQ(rpc_head_decode(bytes, len, &h->last), 0);
    h->received++;
    h->answers += h->last.kind == RPC_KIND_ANSWER;
    buffer_put(payload.buffer);
    if (h->reply != NULL && h->last.op != RPC_OP_PING)
        h->reply(h, &h->last);
}

static void hostile_closed(void *arg, struct net_conn *conn, int code, const char *why)
{
    struct hostile *h = arg;
    (void)conn, (void)code, (void)why;
    h->conn = NULL;
    h->is_closed = true;
}

static const struct net_handlers hostile_handlers = {hostile_opened, hostile_received,
                                                     hostile_closed};

static bool hostile_accepted(void *arg, struct net_conn *conn,
                             const struct net_handlers **ret_handlers, void **ret_arg)
{
    struct hostile *h = arg;
    h->conn = conn;
    *ret_handlers = &hostile_handlers;
    *ret_arg = h;
    return true;
}

static struct node *hostile_start(struct hostile *h, struct sim_world *world,
                                  uint64_t number)
{
    struct node *node = node_create(world, 9, 64 * MIB);
    struct net_options options = {
        .loop = node->loop,
        .self = {{{1}}, number},
        .buffers = node->pool,
        .accepted = hostile_accepted,
        .arg = h,
    };
    *h = (struct hostile){0};
    CHECK_EQ(net_create(&options, &h->net, NULL), 0);
    CHECK_EQ(net_listen(h->net, address_of(9), NULL, NULL), 0);
    return node;
}

static void hostile_connect(struct hostile *h, struct sim_world *world)
{
    h->is_closed = false;
    h->conn = net_connect(h->net, ADDRESS, 1, &hostile_handlers, h);
    run_for(world, NS_PER_S / 2);
    CHECK(h->conn != NULL && net_conn_is_open(h->conn));
}

static void hostile_stop(struct hostile *h, struct node *node)
{
    net_destroy(h->net);
    node_stop(node);
}

/* More requests than there may be: the server reads no further. */
static void test_too_many_requests(void)
{
    struct sim_world *world = sim_world_create(1);
    struct node *server = node_start(world, 1);
    struct hostile h;
    struct node *node = hostile_start(&h, world, 9);
    hostile_connect(&h, world);
    for (uint64_t i = 1; i <= 1000; i++)
        hostile_send(&h, (struct rpc_head){RPC_KIND_REQUEST, OP_HOLD, 0, 5, NULL, 0}, &i,
                     sizeof i); /* and all with the same id */
    run_for(world, NS_PER_S);
    CHECK_EQ(server->held_count, RPC_INFLIGHT_MAX);
    CHECK_EQ(server->held_peak, RPC_INFLIGHT_MAX);
    run_for(world, 20 * NS_PER_S);
    CHECK(!h.is_closed); /* it is told that we live */
    while (h.answers < 1000) {
        CHECK(server->held_count > 0);
        node_release_held(server);
        run_for(world, NS_PER_S / 10);
        CHECK(server->held_count <= RPC_INFLIGHT_MAX);
    }
    CHECK_EQ(server->handled, 1000);
    hostile_stop(&h, node);
    node_stop(server);
    sim_world_destroy(world);
}

/* Answers that are asked for and not read: bounded for a peer without certificate; and
 * for all as far as pings go. */
static void test_answers_not_read(bool are_pings)
{
    struct sim_world *world = sim_world_create(1);
    struct node *server = node_start(world, 1);
    struct hostile h;
    struct node *node = hostile_start(&h, world, are_pings ? 9 : 0);
    uint64_t peak = 0;
    struct rpc_head request = {RPC_KIND_REQUEST, are_pings ? RPC_OP_PING : 99,
                               0,                !are_pings,
                               NULL,             0};
    hostile_connect(&h, world);
    const struct net_conn *conn = TAILQ_FIRST(&server->rpc->incoming)->link.conn;
    net_conn_pause(h.conn, true);
    for (uint32_t i = 0; i < 100000; i++) {
        hostile_send(&h, request, NULL, 0);
        if (i % 1000 == 0)
            run_for(world, NS_PER_MS);
        peak = max_u64(peak, net_conn_queued_bytes(conn));
    }
    for (uint32_t i = 0; i < 10; i++) {
        run_for(world, 90 * NS_PER_MS);
        peak = max_u64(peak, net_conn_queued_bytes(conn));
    }
    CHECK(peak > (are_pings ? 0 : MIB / 2) && peak <= (are_pings ? 1000 : MIB + 1000));
    net_conn_pause(h.conn, false);
    run_for(world, 30 * NS_PER_S);
    CHECK(are_pings || h.answers >= 100000);
    hostile_stop(&h, node);
    node_stop(server);
    sim_world_destroy(world);
}

/* What is no message ends the connection; what nobody asked for does nothing. */
static void test_nonsense_to_server(void)
{
    static const struct rpc_head bad[] = {
        {0, OP_ECHO, 0, 1, NULL, 0},
        {4, OP_ECHO, 0, 1, NULL, 0},
        {RPC_KIND_REQUEST, OP_ECHO, 0, 0, NULL, 0},
        {RPC_KIND_REQUEST, OP_ECHO, -5, 1, NULL, 0},
        {RPC_KIND_REQUEST, RPC_OP_PING, 0, 1, NULL, 0},
        {RPC_KIND_ONE_WAY, OP_NOTE, 0, 1, NULL, 0},
        {RPC_KIND_ONE_WAY, RPC_OP_PING, 0, 0, NULL, 0},
        {RPC_KIND_ANSWER, OP_ECHO, 1, 1, NULL, 0},
        {RPC_KIND_ANSWER, OP_ECHO, RPC_CODE_MIN - 1, 1, NULL, 0},
    };
    struct sim_world *world = sim_world_create(1);
    struct node *server = node_start(world, 1);
    struct hostile h;
    struct node *node = hostile_start(&h, world, 9);
    for (uint32_t i = 0; i <= ARRAY_LEN(bad); i++) {
        hostile_connect(&h, world);
        hostile_send(&h, (struct rpc_head){RPC_KIND_ANSWER, OP_ECHO, 0, 3, NULL, 0}, "x",
                     1);
        run_for(world, NS_PER_S / 2);
        CHECK(!h.is_closed);
        if (i < ARRAY_LEN(bad)) {
            hostile_send(&h, bad[i], NULL, 0);
        } else {
            struct net_send send = {.head = "fifteen bytes..", .head_len = 15};
            CHECK_EQ(net_send(h.conn, &send), 0);
        }
        run_for(world, NS_PER_S / 2);
        CHECK(h.is_closed);
    }
    CHECK_EQ(server->handled, 0);
    hostile_stop(&h, node);
    node_stop(server);
    sim_world_destroy(world);
}

/* One node has so many connections, and no more. */
static void test_too_many_connections(void)
{
    struct sim_world *world = sim_world_create(1);
    struct node *server = node_start(world, 1);
    struct hostile all[2 * RPC_INCOMING_MAX], h;
    struct node *node = hostile_start(&h, world, 9);
    uint32_t open = 0;
    for (uint32_t i = 0; i < ARRAY_LEN(all); i++) {
        all[i] = (struct hostile){0};
        all[i].conn = net_connect(h.net, ADDRESS, 1, &hostile_handlers, &all[i]);
    }
    run_for(world, NS_PER_S);
    for (uint32_t i = 0; i < ARRAY_LEN(all); i++)
        open += !all[i].is_closed;
    CHECK_EQ(open, RPC_INCOMING_MAX);
    CHECK_EQ(rpc_peer_find(server->rpc, 9)->incoming_count, RPC_INCOMING_MAX);
    hostile_stop(&h, node);
    run_for(world, NS_PER_S);
    CHECK(rpc_peer_find(server->rpc, 9) == NULL);
    node_stop(server);
    sim_world_destroy(world);
}

static void reply_twice(struct hostile *h, const struct rpc_head *request)
{
    struct rpc_head head = {.kind = RPC_KIND_ANSWER, .op = request->op};
    uint64_t number;
    memcpy(&number, request->rest, sizeof number);
    uint64_t wrong = number + 1;
    for (uint64_t call = 0; call < 300; call++) {
        head.call = call + 1;
        if (head.call != request->call)
            hostile_send(h, head, &wrong, sizeof wrong); /* of no call */
    }
    head.call = request->call;
    head.op = OP_FAIL;
    hostile_send(h, head, &wrong, sizeof wrong); /* of another operation */
    head.op = request->op;
    hostile_send(h, head, &number, sizeof number);
    hostile_send(h, head, &wrong, sizeof wrong); /* once more */
}

static void reply_with_request(struct hostile *h, const struct rpc_head *request)
{
    (void)request;
    hostile_send(h, (struct rpc_head){RPC_KIND_REQUEST, OP_ECHO, 0, 1, NULL, 0}, NULL, 0);
}

static void test_nonsense_to_client(void)
{
    struct sim_world *world = sim_world_create(1);
    struct node *client = node_start(world, 1);
    struct hostile h;
    struct node *node = hostile_start(&h, world, 9);
    CHECK_EQ(rpc_set_address(client->rpc, 9, address_of(9)), 0);
    h.reply = reply_twice;
    for (uint64_t i = 0; i < 250; i++)
        CHECK_EQ(echo(client, 9, i, 0), 0);
    CHECK_EQ(client->down_count, 0);
    CHECK_EQ(rpc_peer_find(client->rpc, 9)->slots_used, 0);
    h.reply = reply_with_request;
    CHECK_EQ(echo(client, 9, 1, 0), -ECONNRESET);
    CHECK_EQ(client->handled, 0);
    hostile_stop(&h, node);
    node_stop(client);
    sim_world_destroy(world);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        chaos_run(strtoull(argv[1], NULL, 10));
        printf("%u answered, %u failed, %u not sent\n", chaos.answered, chaos.failed,
               chaos.unsent);
        return 0;
    }
    test_memory();
    test_too_many_requests();
    test_answers_not_read(false);
    test_answers_not_read(true);
    test_too_many_connections();
    test_nonsense_to_server();
    test_nonsense_to_client();
    test_random();
    return 0;
}
