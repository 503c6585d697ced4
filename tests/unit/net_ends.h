/* SPDX-License-Identifier: Apache-2.0 */
/* Nets and the ends of their connections, for tests on both loops. Each end counts what
 * happens to it and wakes the test's task. */
#ifndef PARALLAX_TESTS_UNIT_NET_ENDS_H
#define PARALLAX_TESTS_UNIT_NET_ENDS_H

#include "runtime/net.h"
#include "tests/unit/on_loops.h"

#define TEST_NODES  3U
#define POOL_BYTES  (64 * MIB)
#define CLUSTER_UID ((struct uid){{0xc1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}})

/* Keys of a cluster; made outside of any task. */
struct test_pki {
    struct uid cluster;
    struct net_pki_pair authority;
    struct net_pki_pair nodes[TEST_NODES + 1]; /* from 1 */
};

static inline void test_pki_certify(struct test_pki *pki, uint64_t node, uint32_t days)
{
    struct net_identity identity = {pki->cluster, node};
    struct net_pki_pair request;
    char *certificate;
    CHECK_EQ(net_pki_create_request(&request, NULL), 0);
    CHECK_EQ(net_pki_sign(&pki->authority, request.certificate, identity, days,
                          &certificate, NULL),
             0);
    free(request.certificate);
    pki->nodes[node] = (struct net_pki_pair){certificate, request.key};
}

static inline void test_pki_create(struct test_pki *pki, struct uid cluster)
{
    *pki = (struct test_pki){.cluster = cluster};
    CHECK_EQ(net_pki_create_authority(cluster, &pki->authority, NULL), 0);
    for (uint64_t node = 1; node <= TEST_NODES; node++)
        test_pki_certify(pki, node, 30);
}

static inline void test_pki_free(struct test_pki *pki)
{
    free(pki->authority.certificate);
    net_pki_free_key(pki->authority.key);
    for (uint64_t node = 1; node <= TEST_NODES; node++) {
        free(pki->nodes[node].certificate);
        net_pki_free_key(pki->nodes[node].key);
    }
}

static inline struct net_credentials test_credentials(const struct test_pki *pki,
                                                      uint64_t node)
{
    return (struct net_credentials){
        .authority = pki->authority.certificate,
        .certificate = node == 0 ? NULL : pki->nodes[node].certificate,
        .key = node == 0 ? NULL : pki->nodes[node].key,
    };
}

struct end;
/* What an end does besides counting; each may close it. */
typedef void end_act_fn(struct end *end);

struct end {
    struct task *task;     /* woken whenever something happens */
    struct net_conn *conn; /* NULL: closed, or not there yet */
    uint32_t opened, received, closed;
    uint64_t received_bytes;
    int code;
    char why[480];
    bool may_be_late; /* is tried again */
    bool inside;      /* a net_ function was called with it: no handler may run */
    end_act_fn *on_opened, *on_received, *on_closed;
    void (*check)(struct end *end, const void *head, size_t head_len,
                  struct slice payload);
    bool keeps_payload;
    struct slice kept[64];
    uint32_t kept_count;
};

static inline void end_opened(void *arg, struct net_conn *conn)
{
    struct end *end = arg;
    CHECK(!end->inside && task_current() == NULL);
    CHECK(end->conn == conn && net_conn_is_open(conn));
    CHECK_EQ(end->opened, 0);
    end->opened++;
    task_wake(end->task);
    if (end->on_opened != NULL)
        end->on_opened(end);
}

static inline void end_received(void *arg, struct net_conn *conn, const void *head,
                                size_t head_len, struct slice payload)
{
    struct end *end = arg;
    CHECK(!end->inside && task_current() == NULL);
    CHECK(end->conn == conn && end->opened == 1 && end->closed == 0);
    if (end->check != NULL)
        end->check(end, head, head_len, payload);
    end->received++;
    end->received_bytes += head_len + (payload.buffer != NULL ? payload.len : 0);
    if (end->keeps_payload && end->kept_count < ARRAY_LEN(end->kept))
        end->kept[end->kept_count++] = payload;
    else
        buffer_put(payload.buffer);
    task_wake(end->task);
    if (end->on_received != NULL)
        end->on_received(end);
}

static inline void end_closed(void *arg, struct net_conn *conn, int code, const char *why)
{
    struct end *end = arg;
    CHECK(!end->inside && task_current() == NULL);
    CHECK(end->conn == conn && end->closed == 0);
    end->closed++;
    end->code = code;
    /* On a machine that is very slow: better said than waited for. */
    if (code == -ETIMEDOUT && !end->may_be_late) {
        fprintf(stderr, "%s\n", why);
        exit(1);
    }
    snprintf(end->why, sizeof end->why, "%s", why);
    end->conn = NULL;
    task_wake(end->task);
    if (end->on_closed != NULL)
        end->on_closed(end);
}

static const struct net_handlers end_handlers = {
    .opened = end_opened,
    .received = end_received,
    .closed = end_closed,
};

static inline void end_close(struct end *end)
{
    if (end->conn == NULL)
        return;
    end->inside = true;
    net_conn_close(end->conn);
    end->inside = false;
    end->conn = NULL;
}

static inline int end_send(struct end *end, const struct net_send *send)
{
    end->inside = true;
    int rc = net_send(end->conn, send);
    end->inside = false;
    return rc;
}

/* A net, and the ends of what it accepts. */
struct side {
    struct net *net;
    struct buffer_pool *pool;
    struct task *task;
    struct end ends[4]; /* taken in turn */
    uint32_t end_count;
    bool refuses;
    char address[64];
};

static inline bool side_accepted(void *arg, struct net_conn *conn,
                                 const struct net_handlers **ret_handlers, void **ret_arg)
{
    struct side *side = arg;
    CHECK(task_current() == NULL);
    if (side->refuses)
        return false;
    CHECK(side->end_count < ARRAY_LEN(side->ends));
    struct end *end = &side->ends[side->end_count++];
    end->task = side->task;
    end->conn = conn;
    *ret_handlers = &end_handlers;
    *ret_arg = end;
    task_wake(side->task);
    return true;
}

static inline struct net_options side_options(struct side *side, struct loop *loop,
                                              struct test_pki *pki, uint64_t node)
{
    side->task = task_current();
    return (struct net_options){
        .loop = loop,
        .self = {pki->cluster, node},
        .credentials = test_credentials(pki, node),
        .buffers = side->pool,
        .accepted = side_accepted,
        .arg = side,
    };
}

static inline void side_create(struct side *side, const struct net_options *options)
{
    struct error err = {0};
    int rc = net_create(options, &side->net, &err);
    if (rc != 0)
        fprintf(stderr, "%s\n", err.text);
    CHECK_EQ(rc, 0);
}

static inline void side_listen(struct side *side)
{
    struct error err = {0};
    uint16_t port = 0;
    CHECK_EQ(net_listen(side->net, "127.0.0.1:0", &port, &err), 0);
    CHECK(port != 0);
    snprintf(side->address, sizeof side->address, "127.0.0.1:%u", port);
}

/* Node `node`, listening. */
static inline void side_start(struct side *side, struct loop *loop, struct test_pki *pki,
                              uint64_t node)
{
    *side = (struct side){.pool = buffer_pool_create(POOL_BYTES)};
    CHECK(side->pool != NULL);
    struct net_options options = side_options(side, loop, pki, node);
    side_create(side, &options);
    side_listen(side);
}

static inline void side_stop(struct side *side)
{
    net_destroy(side->net);
    CHECK_EQ(buffer_pool_used_bytes(side->pool), 0);
    buffer_pool_destroy(side->pool);
    side->net = NULL;
}

static inline void end_connect(struct end *end, struct side *side, const char *address,
                               uint64_t node)
{
    end->task = side->task;
    end->inside = true;
    end->conn = net_connect(side->net, address, node, &end_handlers, end);
    end->inside = false;
    CHECK(end->conn != NULL);
}

#define WAIT_UNTIL(cond)                                                                 \
    do {                                                                                 \
        while (!(cond))                                                                  \
            task_park();                                                                 \
    } while (0)

/* Two nodes and one open connection from a to b. */
struct pair {
    struct side a, b;
    struct end near; /* at a */
    struct end *far; /* at b */
};

static inline void pair_close(struct pair *pair)
{
    side_stop(&pair->a);
    side_stop(&pair->b);
}

/* Again if it takes too long: the first handshake of a process under valgrind does, on a
 * busy machine. */
static inline async void pair_open(struct pair *pair, struct loop *loop,
                                   struct test_pki *pki)
{
    for (;;) {
        *pair = (struct pair){.near.may_be_late = true};
        side_start(&pair->a, loop, pki, 1);
        side_start(&pair->b, loop, pki, 2);
        pair->far = &pair->b.ends[0];
        pair->far->may_be_late = true;
        end_connect(&pair->near, &pair->a, pair->b.address, 2);
        WAIT_UNTIL(pair->near.closed == 1 ||
                   (pair->near.opened == 1 && pair->far->opened == 1));
        if (pair->near.closed == 0)
            return;
        CHECK_EQ(pair->near.code, -ETIMEDOUT);
        pair_close(pair);
    }
}

#endif
