/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated network: what arrives, in which order, and what each fault takes. */
#include "runtime/runtime.h"
#include "runtime/net.h"
#include "runtime/sim.h"
#include "tests/unit/check.h"

#define ADDRESS   "server:1"
#define POOL      (4 * MIB)
#define LIMIT_NS  (1000 * NS_PER_S)
#define SEEN_MAX  4096U

/* One process with one net, and one connection at most. */
struct node {
    struct sim_world *world;
    struct loop *loop;
    struct net *net;
    struct buffer_pool *pool;
    struct net_conn *conn;
    uint64_t seen[SEEN_MAX], bytes; /* numbers of the messages that came */
    uint32_t seen_count, opened_count, closed_count;
    int code;
    bool refuses, is_opened, is_closed, has_all;
    uint32_t wanted; /* seen_count at which has_all becomes true */
};

static struct uid cluster_of(uint8_t n)
{
    return (struct uid){{n}};
}

static void on_opened(void *arg, struct net_conn *conn)
{
    struct node *node = arg;
    CHECK(node->conn == conn && net_conn_is_open(conn));
    node->is_opened = true;
    node->opened_count++;
}

static void on_received(void *arg, struct net_conn *conn, const void *head, size_t len,
                        struct slice payload)
{
    struct node *node = arg;
    uint64_t number;
    CHECK(node->conn == conn && node->seen_count < SEEN_MAX && len >= sizeof number);
    memcpy(&number, head, sizeof number);
    CHECK_EQ(net_conn_heard_ns(conn), loop_now_ns(node->loop));
    if (payload.buffer != NULL) {
        const uint8_t *bytes = slice_data(payload);
        CHECK((uintptr_t)bytes % BLOCK_SIZE == 0);
        for (uint32_t i = 0; i < payload.len; i += 511)
            CHECK_EQ(bytes[i], (uint8_t)number);
        node->bytes += payload.len;
        buffer_put(payload.buffer);
    }
    node->seen[node->seen_count++] = number;
    node->has_all = node->seen_count == node->wanted;
}

static void on_closed(void *arg, struct net_conn *conn, int code, const char *why)
{
    struct node *node = arg;
    CHECK(node->conn == conn && why[0] != '\0' && code < 0);
    node->conn = NULL;
    node->code = code;
    node->is_closed = true;
    node->closed_count++;
}

static const struct net_handlers handlers = {on_opened, on_received, on_closed};

static bool on_accepted(void *arg, struct net_conn *conn,
                        const struct net_handlers **ret_handlers, void **ret_arg)
{
    struct node *node = arg;
    if (node->refuses || node->conn != NULL)
        return false;
    node->conn = conn;
    *ret_handlers = &handlers;
    *ret_arg = node;
    return true;
}

static void node_start_as(struct node *node, struct sim_world *world, uint32_t host,
                          struct net_options options)
{
    *node = (struct node){.world = world};
    node->loop = sim_process_create(world);
    node->pool = buffer_pool_create(POOL);
    sim_process_set_host(node->loop, host);
    options.loop = node->loop;
    options.buffers = node->pool;
    options.accepted = on_accepted;
    options.arg = node;
    CHECK_EQ(net_create(&options, &node->net, NULL), 0);
}

/* Node n of the cluster, on host n. */
static void node_start(struct node *node, struct sim_world *world, uint32_t n)
{
    struct net_options options = {.self = {cluster_of(1), n}};
    node_start_as(node, world, n, options);
}

static void node_end(struct node *node, enum sim_end how)
{
    sim_process_end(node->loop, how);
    if (buffer_pool_used_bytes(node->pool) == 0) /* else as lost as the process */
        buffer_pool_destroy(node->pool);
}

static void connect_to(struct node *node, const char *address, uint64_t asked)
{
    node->is_opened = node->is_closed = false;
    node->conn = net_connect(node->net, address, asked, &handlers, node);
    CHECK(node->conn != NULL);
}

static void run_for(struct sim_world *world, uint64_t ns)
{
    bool never = false;
    sim_world_run_until(world, &never, ns);
}

static void send_number(struct node *node, uint64_t number, uint32_t len)
{
    struct buffer *buffer = NULL;
    struct slice slices[2] = {{0}};
    if (len > 0) {
        buffer = buffer_create(node->pool, len);
        CHECK(buffer != NULL);
        memset(buffer->data, (uint8_t)number, len);
        slices[0] = (struct slice){buffer, 0, len / 3};
        slices[1] = (struct slice){buffer, len / 3, len - len / 3};
    }
    struct net_send send = {&number, sizeof number, slices, len > 0 ? 2 : 0};
    CHECK_EQ(net_send(node->conn, &send), 0);
    buffer_put(buffer);
}

static void check_prefix(const struct node *node, uint64_t first)
{
    for (uint32_t i = 0; i < node->seen_count; i++)
        CHECK_EQ(node->seen[i], first + i);
}

struct pair {
    struct sim_world *world;
    struct node server, client;
};

/* Server on host 1, client on host 2, connected. */
static void pair_start(struct pair *pair, uint64_t seed)
{
    pair->world = sim_world_create(seed);
    node_start(&pair->server, pair->world, 1);
    node_start(&pair->client, pair->world, 2);
    CHECK_EQ(net_listen(pair->server.net, ADDRESS, NULL, NULL), 0);
    connect_to(&pair->client, ADDRESS, 1);
    CHECK(sim_world_run_until(pair->world, &pair->client.is_opened, LIMIT_NS));
    CHECK(pair->server.is_opened);
    CHECK_EQ(net_conn_peer(pair->server.conn).node, 2);
    CHECK_EQ(net_conn_peer(pair->client.conn).node, 1);
}

static void pair_end(struct pair *pair)
{
    node_end(&pair->client, SIM_KILL);
    node_end(&pair->server, SIM_KILL);
    sim_world_destroy(pair->world);
}

/* --- what arrives --- */

static uint64_t exchange(uint64_t seed)
{
    static struct pair p;
    pair_start(&p, seed);
    p.server.wanted = p.client.wanted = 300;
    sim_world_faults(p.world)->net_stuck_ppm = 5000;
    for (uint64_t i = 0; i < 300; i++) {
        send_number(&p.client, i, i % 7 == 0 ? (uint32_t)(i * 100 + 1) : 0);
        send_number(&p.server, 1000 + i, i % 5 == 0 ? 4096 : 0);
        if (i % 50 == 0)
            run_for(p.world, NS_PER_MS);
    }
    CHECK(sim_world_run_until(p.world, &p.server.has_all, LIMIT_NS));
    while (!p.client.has_all)
        CHECK(sim_world_step(p.world));
    check_prefix(&p.server, 0);
    check_prefix(&p.client, 1000);
    CHECK_EQ(buffer_pool_used_bytes(p.server.pool), 0);
    CHECK_EQ(net_conn_queued_bytes(p.client.conn), 0);
    uint64_t digest = trace_digest(loop_trace(p.server.loop)) ^
                      sim_world_now_ns(p.world);
    pair_end(&p);
    return digest;
}

static void test_order_and_repetition(void)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        void *elsewhere = malloc(12345 * seed);
        uint64_t digest = exchange(seed);
        free(elsewhere);
        CHECK(digest == exchange(seed));
        CHECK(digest != exchange(seed + 100));
    }
}

/* What is sent while it connects is kept; a message takes its time. */
static void test_early_and_latency(void)
{
    struct sim_world *world = sim_world_create(1);
    struct node server, client;
    node_start(&server, world, 1);
    node_start(&client, world, 2);
    sim_world_faults(world)->net_latency_min_ns = 5 * NS_PER_MS;
    sim_world_faults(world)->net_latency_max_ns = 6 * NS_PER_MS;
    CHECK_EQ(net_listen(server.net, ADDRESS, NULL, NULL), 0);
    connect_to(&client, ADDRESS, 0);
    send_number(&client, 0, 100);
    CHECK(!net_conn_is_open(client.conn));
    CHECK_EQ(net_conn_queued_bytes(client.conn), 108);
    server.wanted = 1;
    CHECK(sim_world_run_until(world, &server.has_all, LIMIT_NS));
    CHECK(sim_world_now_ns(world) >= 15 * NS_PER_MS); /* there, back, there */
    CHECK(sim_world_now_ns(world) <= 19 * NS_PER_MS);
    node_end(&client, SIM_KILL);
    node_end(&server, SIM_KILL);
    sim_world_destroy(world);
}

/* --- back-pressure --- */

static void test_pause(void)
{
    static struct pair p;
    pair_start(&p, 1);
    net_conn_pause(p.server.conn, true);
    CHECK(!net_conn_is_reading(p.server.conn));
    for (uint64_t i = 0; i < 40; i++)
        send_number(&p.client, i, 64 * KIB);
    run_for(p.world, NS_PER_S);
    CHECK_EQ(p.server.seen_count, 0);
    CHECK(net_conn_queued_bytes(p.client.conn) > 36 * 64 * KIB);
    CHECK(buffer_pool_used_bytes(p.client.pool) > 36 * 64 * KIB);
    net_conn_pause(p.server.conn, false);
    p.server.wanted = 40;
    CHECK(sim_world_run_until(p.world, &p.server.has_all, LIMIT_NS));
    check_prefix(&p.server, 0);
    CHECK_EQ(buffer_pool_used_bytes(p.client.pool), 0);
    pair_end(&p);
}

static void test_no_buffer(void)
{
    static struct pair p;
    pair_start(&p, 1);
    struct buffer *all[POOL / BUFFER_BYTES_MAX];
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        all[i] = buffer_create(p.server.pool, BUFFER_BYTES_MAX);
    send_number(&p.client, 0, 0); /* needs none */
    send_number(&p.client, 1, 100);
    send_number(&p.client, 2, 0); /* must not overtake */
    run_for(p.world, NS_PER_S);
    CHECK_EQ(p.server.seen_count, 1);
    CHECK(!net_conn_is_reading(p.server.conn));
    p.server.wanted = 3;
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        buffer_put(all[i]);
    CHECK(sim_world_run_until(p.world, &p.server.has_all, LIMIT_NS));
    CHECK(net_conn_is_reading(p.server.conn));
    check_prefix(&p.server, 0);
    /* Closed while it waits. */
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        all[i] = buffer_create(p.server.pool, BUFFER_BYTES_MAX);
    send_number(&p.client, 3, 100);
    run_for(p.world, NS_PER_S);
    net_conn_close(p.server.conn);
    p.server.conn = NULL;
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        buffer_put(all[i]);
    CHECK(sim_world_run_until(p.world, &p.client.is_closed, LIMIT_NS));
    CHECK_EQ(p.client.code, -ECONNRESET);
    pair_end(&p);
}

/* --- blocked ways --- */

static void test_blocked_way(void)
{
    static struct pair p;
    pair_start(&p, 1);
    sim_net_block(p.world, 2, 1, true);
    for (uint64_t i = 0; i < 10; i++) {
        send_number(&p.client, i, 0);
        send_number(&p.server, i, 0);
    }
    run_for(p.world, SIM_NET_STUCK_NS / 2);
    CHECK_EQ(p.server.seen_count, 0);
    CHECK_EQ(p.client.seen_count, 10);
    sim_net_open_all(p.world);
    p.server.wanted = 10;
    CHECK(sim_world_run_until(p.world, &p.server.has_all, NS_PER_S));
    check_prefix(&p.server, 0);
    /* Patience begins anew. */
    sim_net_block(p.world, 1, 2, true);
    run_for(p.world, SIM_NET_STUCK_NS * 3 / 4);
    CHECK(!p.client.is_closed && !p.server.is_closed);
    run_for(p.world, SIM_NET_STUCK_NS / 2);
    CHECK(p.client.is_closed && p.server.is_closed);
    CHECK_EQ(p.client.code, -ETIMEDOUT);
    CHECK_EQ(p.server.code, -ETIMEDOUT);
    pair_end(&p);
}

/* In either direction a connection comes about only when both ways are open. */
static void test_connect_blocked(void)
{
    for (uint32_t i = 0; i < 4; i++) {
        struct sim_world *world = sim_world_create(i);
        struct node server, client;
        node_start(&server, world, 1);
        node_start(&client, world, 2);
        CHECK_EQ(net_listen(server.net, ADDRESS, NULL, NULL), 0);
        sim_net_block(world, i % 2 == 0 ? 1 : 2, i % 2 == 0 ? 2 : 1, true);
        connect_to(&client, ADDRESS, 1);
        run_for(world, SIM_NET_STUCK_NS / 2);
        CHECK(!client.is_opened && !client.is_closed);
        if (i < 2) {
            sim_net_open_all(world);
            CHECK(sim_world_run_until(world, &client.is_opened, NS_PER_S));
        } else {
            CHECK(sim_world_run_until(world, &client.is_closed, SIM_NET_STUCK_NS));
            CHECK_EQ(client.code, -ETIMEDOUT);
        }
        node_end(&client, SIM_KILL);
        node_end(&server, SIM_KILL);
        sim_world_destroy(world);
    }
}

/* --- ends of processes --- */

static void test_kill_and_power_cut(void)
{
    uint32_t none = 0, some = 0, all = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        static struct pair p;
        pair_start(&p, seed);
        for (uint64_t i = 0; i < 5; i++)
            send_number(&p.server, i, 10);
        run_for(p.world, 10 * NS_PER_US);
        enum sim_end how = seed % 2 == 0 ? SIM_KILL : SIM_POWER_CUT;
        node_end(&p.server, how);
        run_for(p.world, 100 * NS_PER_S);
        check_prefix(&p.client, 0);
        none += p.client.seen_count == 0;
        some += p.client.seen_count > 0 && p.client.seen_count < 5;
        all += p.client.seen_count == 5;
        CHECK_EQ(p.client.is_closed, how == SIM_KILL);
        if (how == SIM_KILL)
            CHECK_EQ(p.client.code, -ECONNRESET);
        node_end(&p.client, SIM_KILL);
        sim_world_destroy(p.world);
    }
    CHECK(none > 0 && some > 0 && all > 0);
}

/* Silent until it is asked; then its successor, or patience, tells. */
static void test_successor(void)
{
    static struct pair p;
    for (uint32_t has_successor = 0; has_successor < 2; has_successor++) {
        struct node other;
        pair_start(&p, 1);
        node_end(&p.server, SIM_POWER_CUT);
        run_for(p.world, 100 * NS_PER_S);
        send_number(&p.client, 1, 0);
        run_for(p.world, SIM_NET_STUCK_NS / 2);
        CHECK(!p.client.is_closed);
        if (has_successor)
            node_start(&other, p.world, 1);
        run_for(p.world, has_successor ? NS_PER_S : SIM_NET_STUCK_NS);
        CHECK(p.client.is_closed);
        CHECK_EQ(p.client.code, has_successor ? -ECONNRESET : -ETIMEDOUT);
        /* Nor does the address answer before somebody listens there. */
        connect_to(&p.client, ADDRESS, 1);
        run_for(p.world, 2 * SIM_NET_STUCK_NS);
        CHECK_EQ(p.client.code, has_successor ? -ECONNREFUSED : -ETIMEDOUT);
        if (has_successor) {
            CHECK_EQ(net_listen(other.net, ADDRESS, NULL, NULL), 0);
            connect_to(&p.client, ADDRESS, 1);
            CHECK(sim_world_run_until(p.world, &p.client.is_opened, NS_PER_S));
            node_end(&other, SIM_KILL);
        }
        node_end(&p.client, SIM_KILL);
        sim_world_destroy(p.world);
    }
}

static void test_close(void)
{
    static struct pair p;
    pair_start(&p, 1);
    for (uint64_t i = 0; i < 5; i++)
        send_number(&p.client, i, 10);
    run_for(p.world, 10 * NS_PER_US);
    net_conn_close(p.client.conn); /* all of it had been taken */
    CHECK(sim_world_run_until(p.world, &p.server.is_closed, NS_PER_S));
    CHECK_EQ(p.server.seen_count, 5);
    CHECK_EQ(p.server.code, -ECONNRESET);
    connect_to(&p.client, ADDRESS, 1);
    CHECK(sim_world_run_until(p.world, &p.client.is_opened, NS_PER_S));
    net_destroy(p.server.net); /* closes all, tells nobody here */
    CHECK(sim_world_run_until(p.world, &p.client.is_closed, NS_PER_S));
    CHECK_EQ(p.server.closed_count, 1);
    connect_to(&p.client, ADDRESS, 1);
    CHECK(sim_world_run_until(p.world, &p.client.is_closed, NS_PER_S));
    CHECK_EQ(p.client.code, -ECONNREFUSED);
    pair_end(&p);
}

/* Closed at any moment of its making. */
static void test_close_early(void)
{
    for (uint64_t ns = 0; ns < 2 * NS_PER_MS; ns += 20 * NS_PER_US) {
        static struct pair p;
        pair_start(&p, ns + 1);
        net_conn_close(p.client.conn);
        CHECK(sim_world_run_until(p.world, &p.server.is_closed, NS_PER_S));
        connect_to(&p.client, ADDRESS, 1);
        run_for(p.world, ns);
        if (ns % (40 * NS_PER_US) == 0)
            net_conn_close(p.client.conn);
        else
            net_destroy(p.server.net);
        run_for(p.world, NS_PER_S);
        CHECK_EQ(p.server.opened_count - (ns % (40 * NS_PER_US) != 0 &&
                                          p.server.conn != NULL),
                 p.server.closed_count);
        pair_end(&p);
    }
}

/* --- resets --- */

static void test_resets(void)
{
    uint32_t lost = 0, unequal = 0;
    for (uint64_t seed = 1; seed <= 50; seed++) {
        static struct pair p;
        pair_start(&p, seed);
        sim_world_faults(p.world)->net_reset_ppm = 50000;
        for (uint64_t i = 0; i < 60; i++) {
            send_number(&p.client, i, 0);
            send_number(&p.server, i, 0);
        }
        CHECK(sim_world_run_until(p.world, &p.client.is_closed, NS_PER_S));
        while (!p.server.is_closed)
            CHECK(sim_world_step(p.world));
        CHECK_EQ(p.client.code, -ECONNRESET);
        check_prefix(&p.client, 0);
        check_prefix(&p.server, 0);
        lost += p.client.seen_count < 10;
        unequal += p.client.seen_count != p.server.seen_count;
        pair_end(&p);
    }
    CHECK(lost > 0 && unequal > 10);
}

/* --- who may --- */

static int outcome(struct net_options server_options, struct net_options client_options,
                   uint64_t asked)
{
    struct sim_world *world = sim_world_create(1);
    struct node server, client;
    node_start_as(&server, world, 1, server_options);
    node_start_as(&client, world, 2, client_options);
    CHECK_EQ(net_listen(server.net, ADDRESS, NULL, NULL), 0);
    connect_to(&client, ADDRESS, asked);
    run_for(world, NS_PER_S);
    CHECK(client.is_opened != client.is_closed);
    CHECK_EQ(server.opened_count, client.opened_count);
    if (server.conn != NULL)
        CHECK_EQ(net_conn_peer(server.conn).node, client_options.self.node);
    int code = client.code;
    node_end(&client, SIM_KILL);
    node_end(&server, SIM_KILL);
    sim_world_destroy(world);
    return code;
}

static void test_identities(void)
{
    static const uint8_t digest[NET_DIGEST_BYTES];
    struct net_options one = {.self = {cluster_of(1), 1}};
    struct net_options two = {.self = {cluster_of(1), 2}};
    struct net_options other = {.self = {cluster_of(2), 2}};
    struct net_options nobody = {.self = {cluster_of(1), 0}};
    struct net_options open = {.self = {cluster_of(1), 1}, .allow_nobody = true};
    struct net_options joiner = {.credentials = {.authority_digest = digest}};
    CHECK_EQ(outcome(one, two, 1), 0);
    CHECK_EQ(outcome(one, two, 0), 0);
    CHECK_EQ(outcome(one, two, 7), -PLX_EDENIED);
    CHECK_EQ(outcome(one, other, 1), -PLX_EDENIED);
    CHECK_EQ(outcome(one, nobody, 1), -PLX_EDENIED);
    CHECK_EQ(outcome(open, nobody, 1), 0);
    CHECK_EQ(outcome(open, joiner, 0), 0);
    CHECK_EQ(outcome(one, joiner, 0), -PLX_EDENIED);
    CHECK_EQ(outcome(nobody, two, 0), -PLX_EDENIED);
}

static void test_addresses(void)
{
    struct sim_world *world = sim_world_create(1);
    struct node a, b;
    uint16_t port = 0, other_port = 0;
    struct error err;
    node_start(&a, world, 1);
    node_start(&b, world, 2);
    CHECK_EQ(net_listen(a.net, "name:0", &port, NULL), 0);
    CHECK_EQ(net_listen(b.net, "name:0", &other_port, NULL), 0);
    CHECK(port != 0 && other_port != 0 && port != other_port);
    CHECK_EQ(net_listen(a.net, ADDRESS, NULL, NULL), 0);
    CHECK_EQ(net_listen(b.net, ADDRESS, NULL, &err), -EADDRINUSE);
    CHECK_EQ(net_listen(b.net, "nothing", NULL, &err), -EINVAL);
    CHECK_EQ(net_listen(b.net, "a:70000", NULL, &err), -EINVAL);
    a.refuses = true;
    connect_to(&b, ADDRESS, 0);
    CHECK(sim_world_run_until(world, &b.is_closed, NS_PER_S));
    CHECK_EQ(b.code, -PLX_EDENIED);
    connect_to(&b, "nowhere:1", 0);
    CHECK(sim_world_run_until(world, &b.is_closed, NS_PER_S));
    CHECK_EQ(b.code, -ECONNREFUSED);
    node_end(&a, SIM_KILL);
    CHECK_EQ(net_listen(b.net, ADDRESS, NULL, NULL), 0);
    node_end(&b, SIM_KILL);
    sim_world_destroy(world);
}

int main(void)
{
    test_order_and_repetition();
    test_early_and_latency();
    test_pause();
    test_no_buffer();
    test_blocked_way();
    test_connect_blocked();
    test_kill_and_power_cut();
    test_successor();
    test_close();
    test_close_early();
    test_resets();
    test_identities();
    test_addresses();
    return 0;
}
