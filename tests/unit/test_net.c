/* SPDX-License-Identifier: Apache-2.0 */
/* What holds for every network: the same bodies on the real one and on others. */
#include "tests/unit/net_ends.h"

static struct test_pki pki;
static struct pair pair; /* too large for the stack of a task */

/* --- messages whose number says all of them --- */

static const uint32_t head_lens[] = {4,     5,     15,    16,    17,
                                     511,   512,   513,   4096,  16367,
                                     16368, 16369, 16384, 65536, NET_HEAD_MAX};
static const uint32_t payload_lens[] = {0,     1,     4095, 4096,   16383,          16384,
                                        16385, 65536, 0,    250000, NET_PAYLOAD_MAX};

static uint32_t head_len_of(uint32_t number)
{
    return head_lens[number % ARRAY_LEN(head_lens)];
}

static uint32_t payload_len_of(uint32_t number)
{
    return payload_lens[number % ARRAY_LEN(payload_lens)];
}

static void fill(uint8_t *bytes, size_t len, uint32_t number)
{
    for (size_t i = 0; i < len; i++)
        bytes[i] = (uint8_t)(number * 37 + i + (i >> 8) * 3 + (i >> 16));
}

static bool is_filled(const uint8_t *bytes, size_t len, uint32_t number)
{
    for (size_t i = 0; i < len; i++)
        if (bytes[i] != (uint8_t)(number * 37 + i + (i >> 8) * 3 + (i >> 16)))
            return false;
    return true;
}

/* The payload in slices of one buffer, some of them empty. */
static uint32_t slices_of(struct buffer *buffer, uint32_t len, uint32_t pieces,
                          struct slice *ret)
{
    uint32_t count = 0, at = 0;
    for (uint32_t i = 0; i < pieces && at < len; i++) {
        uint32_t n = i % 3 == 1 ? 0 : (len - at) / (pieces - i);
        if (i + 1 == pieces)
            n = len - at;
        ret[count++] = (struct slice){buffer, at, n};
        at += n;
    }
    return count;
}

static void send_numbered(struct end *end, struct buffer_pool *pool, uint32_t number)
{
    uint32_t head_len = head_len_of(number), payload_len = payload_len_of(number);
    uint8_t *head = malloc(head_len);
    struct slice slices[NET_SLICES_MAX];
    struct net_send send = {.head = head, .head_len = head_len, .slices = slices};
    struct buffer *buffer = NULL;
    CHECK(head != NULL);
    fill(head, head_len, number);
    memcpy(head, &number, sizeof number);
    if (payload_len > 0) {
        buffer = buffer_create(pool, payload_len);
        CHECK(buffer != NULL);
        fill(buffer->data, payload_len, number);
        uint32_t pieces = number % 5 == 4 ? NET_SLICES_MAX : 1 + number % 7;
        send.slice_count = slices_of(buffer, payload_len, pieces, slices);
    }
    CHECK_EQ(end_send(end, &send), 0);
    buffer_put(buffer);
    free(head);
}

static void check_numbered(struct end *end, const void *head, size_t head_len,
                           struct slice payload)
{
    uint32_t number;
    CHECK(head_len >= sizeof number);
    memcpy(&number, head, sizeof number);
    CHECK_EQ(number, end->received);
    CHECK_EQ(head_len, head_len_of(number));
    const uint8_t *rest = (const uint8_t *)head + sizeof number;
    for (size_t i = sizeof number; i < head_len; i++, rest++)
        CHECK_EQ(*rest, (uint8_t)(number * 37 + i + (i >> 8) * 3 + (i >> 16)));
    CHECK_EQ(payload.buffer != NULL ? payload.len : 0, payload_len_of(number));
    if (payload.buffer == NULL)
        return;
    CHECK_EQ(payload.offset, 0);
    CHECK_EQ((uintptr_t)slice_data(payload) % BLOCK_SIZE, 0);
    CHECK(is_filled(slice_data(payload), payload.len, number));
}

static void send_text(struct end *end, const char *text)
{
    struct net_send send = {.head = text, .head_len = strlen(text)};
    CHECK_EQ(end_send(end, &send), 0);
}

/* --- the bodies --- */

/* Pays for what a process does once. */
static void test_first(struct body *body)
{
    pair_open(&pair, body->loop, &pki);
    pair_close(&pair);
}

static void test_open(struct body *body)
{
    side_start(&pair.a, body->loop, &pki, 1);
    side_start(&pair.b, body->loop, &pki, 2);
    struct end *near = &pair.near, *far = &pair.b.ends[0];
    *near = (struct end){0};
    end_connect(near, &pair.a, pair.b.address, 2);
    CHECK(!net_conn_is_open(near->conn));
    CHECK_STR(net_conn_address(near->conn), pair.b.address);
    CHECK_EQ(near->opened, 0);
    send_text(near, "early"); /* kept until it is open */
    CHECK(net_conn_queued_bytes(near->conn) > 0);
    WAIT_UNTIL(near->opened == 1 && far->received == 1);
    CHECK_EQ(net_conn_peer(near->conn).node, 2);
    CHECK_EQ(net_conn_peer(far->conn).node, 1);
    CHECK(uid_equal(net_conn_peer(near->conn).cluster, pki.cluster));
    CHECK(uid_equal(net_conn_peer(far->conn).cluster, pki.cluster));
    CHECK(strlen(net_conn_address(far->conn)) > 0);
    CHECK(net_conn_heard_ns(near->conn) <= loop_now_ns(body->loop));
    send_text(far, "back");
    WAIT_UNTIL(near->received == 1);
    CHECK_EQ(net_conn_queued_bytes(near->conn), 0);
    CHECK_EQ(net_conn_queued_bytes(far->conn), 0);
    pair_close(&pair);
}

static void test_sizes(struct body *body)
{
    uint32_t count = ARRAY_LEN(head_lens) * ARRAY_LEN(payload_lens);
    pair_open(&pair, body->loop, &pki);
    pair.far->check = check_numbered;
    for (uint32_t i = 0; i < count; i++) {
        send_numbered(&pair.near, pair.a.pool, i);
        if (i % 40 == 39) /* sometimes many wait, sometimes one */
            WAIT_UNTIL(pair.far->received == i + 1);
    }
    WAIT_UNTIL(pair.far->received == count);
    WAIT_UNTIL(net_conn_queued_bytes(pair.near.conn) == 0);
    CHECK_EQ(buffer_pool_used_bytes(pair.a.pool), 0);
    pair_close(&pair);
}

static void test_limits(struct body *body)
{
    static uint8_t head[NET_HEAD_MAX + 1];
    pair_open(&pair, body->loop, &pki);
    struct buffer *buffer = buffer_create(pair.a.pool, NET_PAYLOAD_MAX);
    memset(buffer->data, 1, NET_PAYLOAD_MAX);
    struct slice slices[NET_SLICES_MAX + 1];
    for (uint32_t i = 0; i < ARRAY_LEN(slices); i++)
        slices[i] = (struct slice){buffer, 0, 1};
    struct net_send send = {head, sizeof head, NULL, 0};
    CHECK_EQ(end_send(&pair.near, &send), -EMSGSIZE);
    send = (struct net_send){head, 4, slices, NET_SLICES_MAX + 1};
    CHECK_EQ(end_send(&pair.near, &send), -EMSGSIZE);
    slices[0].len = NET_PAYLOAD_MAX;
    send.slice_count = 2;
    CHECK_EQ(end_send(&pair.near, &send), -EMSGSIZE);
    CHECK_EQ(net_conn_queued_bytes(pair.near.conn), 0);
    CHECK_EQ(buffer->refs, 1);
    send.slice_count = 1;
    CHECK_EQ(end_send(&pair.near, &send), 0);
    WAIT_UNTIL(pair.far->received == 1);
    buffer_put(buffer);
    pair_close(&pair);
}

static void test_both_directions(struct body *body)
{
    enum { COUNT = 60 };
    pair_open(&pair, body->loop, &pki);
    pair.far->check = pair.near.check = check_numbered;
    for (uint32_t i = 0; i < COUNT; i++) {
        send_numbered(&pair.near, pair.a.pool, i);
        send_numbered(pair.far, pair.b.pool, i);
    }
    WAIT_UNTIL(pair.far->received == COUNT && pair.near.received == COUNT);
    pair_close(&pair);
}

/* Much more than any kernel takes at once; the payload of all is one buffer. */
static void test_backlog(struct body *body)
{
    enum { COUNT = 300, BYTES = 65536, HEAD = 10 };
    pair_open(&pair, body->loop, &pki);
    struct buffer *buffer = buffer_create(pair.a.pool, BYTES);
    fill(buffer->data, BYTES, 7);
    struct slice slice = {buffer, 0, BYTES};
    struct net_send send = {"0123456789", HEAD, &slice, 1};
    for (uint32_t i = 0; i < COUNT; i++)
        CHECK_EQ(end_send(&pair.near, &send), 0);
    uint64_t queued = net_conn_queued_bytes(pair.near.conn);
    CHECK(queued >= (uint64_t)COUNT * (BYTES + HEAD));
    CHECK(queued <= (uint64_t)COUNT * (BYTES + HEAD + 64));
    while (pair.far->received < COUNT) {
        CHECK(net_conn_queued_bytes(pair.near.conn) <= queued);
        queued = net_conn_queued_bytes(pair.near.conn);
        task_park();
    }
    CHECK_EQ(pair.far->received_bytes, (uint64_t)COUNT * (BYTES + HEAD));
    WAIT_UNTIL(buffer->refs == 1);
    buffer_put(buffer);
    pair_close(&pair);
}

static void pause_after_third(struct end *end)
{
    if (end->received == 3)
        net_conn_pause(end->conn, true);
}

static void test_pause(struct body *body)
{
    enum { COUNT = 40 };
    pair_open(&pair, body->loop, &pki);
    pair.far->check = pair.near.check = check_numbered;
    pair.far->on_received = pause_after_third;
    for (uint32_t i = 0; i < COUNT; i++)
        send_numbered(&pair.near, pair.a.pool, i);
    WAIT_UNTIL(pair.far->received == 3);
    /* The other direction goes on. */
    for (uint32_t i = 0; i < COUNT; i++) {
        send_numbered(pair.far, pair.b.pool, i);
        WAIT_UNTIL(pair.near.received == i + 1);
    }
    task_sleep_ns(50 * NS_PER_MS);
    CHECK_EQ(pair.far->received, 3);
    pair.far->on_received = NULL;
    net_conn_pause(pair.far->conn, false);
    net_conn_pause(pair.far->conn, true);
    task_sleep_ns(10 * NS_PER_MS);
    CHECK_EQ(pair.far->received, 3);
    net_conn_pause(pair.far->conn, false);
    WAIT_UNTIL(pair.far->received == COUNT);
    CHECK_EQ(net_conn_queued_bytes(pair.near.conn), 0);
    pair_close(&pair);
}

/* Who is paused from the start opens all the same. */
static void test_pause_before_open(struct body *body)
{
    side_start(&pair.a, body->loop, &pki, 1);
    side_start(&pair.b, body->loop, &pki, 2);
    struct end *near = &pair.near, *far = &pair.b.ends[0];
    *near = (struct end){0};
    end_connect(near, &pair.a, pair.b.address, 2);
    net_conn_pause(near->conn, true);
    WAIT_UNTIL(near->opened == 1 && far->opened == 1);
    send_text(far, "one");
    task_sleep_ns(20 * NS_PER_MS);
    CHECK_EQ(near->received, 0);
    net_conn_pause(near->conn, false);
    WAIT_UNTIL(near->received == 1);
    pair_close(&pair);
}

static void pause_always(struct end *end)
{
    net_conn_pause(end->conn, true);
}

/* Whoever is paused after each message gets them one by one. */
static void test_pause_each(struct body *body)
{
    enum { COUNT = 30 };
    pair_open(&pair, body->loop, &pki);
    pair.far->check = check_numbered;
    pair.far->on_received = pause_always;
    for (uint32_t i = 0; i < COUNT; i++)
        send_numbered(&pair.near, pair.a.pool, i);
    for (uint32_t i = 1; i <= COUNT; i++) {
        WAIT_UNTIL(pair.far->received == i);
        task_yield();
        CHECK_EQ(pair.far->received, i);
        net_conn_pause(pair.far->conn, false);
    }
    pair_close(&pair);
}

/* No buffer for the next payload: it waits, and so does what stands behind it. */
static void test_pool_is_empty(struct body *body)
{
    enum { COUNT = 24 };
    pair_open(&pair, body->loop, &pki);
    struct buffer *all[POOL_BYTES / BUFFER_BYTES_MAX];
    for (uint32_t i = 0; i < ARRAY_LEN(all); i++)
        CHECK((all[i] = buffer_create(pair.b.pool, BUFFER_BYTES_MAX)) != NULL);
    pair.far->check = check_numbered;
    for (uint32_t i = 0; i < COUNT; i++)
        send_numbered(&pair.near, pair.a.pool, i);
    WAIT_UNTIL(pair.far->received == 1); /* which has no payload */
    while (net_conn_is_reading(pair.far->conn))
        task_sleep_ns(NS_PER_MS);
    task_sleep_ns(50 * NS_PER_MS);
    CHECK_EQ(pair.far->received, 1);
    CHECK(net_conn_is_reading(pair.near.conn));
    buffer_put(all[0]);
    WAIT_UNTIL(pair.far->received == COUNT);
    CHECK(net_conn_is_reading(pair.far->conn));
    for (uint32_t i = 1; i < ARRAY_LEN(all); i++)
        buffer_put(all[i]);
    pair_close(&pair);
}

/* The connection is closed while it waits for a buffer. */
static void test_close_while_waiting(struct body *body)
{
    pair_open(&pair, body->loop, &pki);
    struct buffer *all[POOL_BYTES / BUFFER_BYTES_MAX];
    for (uint32_t i = 0; i < ARRAY_LEN(all); i++)
        CHECK((all[i] = buffer_create(pair.b.pool, BUFFER_BYTES_MAX)) != NULL);
    send_numbered(&pair.near, pair.a.pool, 0);
    send_numbered(&pair.near, pair.a.pool, 3);
    WAIT_UNTIL(pair.far->received == 1);
    task_sleep_ns(20 * NS_PER_MS);
    end_close(pair.far);
    WAIT_UNTIL(pair.near.closed == 1);
    for (uint32_t i = 0; i < ARRAY_LEN(all); i++)
        buffer_put(all[i]);
    pair_close(&pair);
}

/* --- ends --- */

static void test_peer_closes(struct body *body)
{
    pair_open(&pair, body->loop, &pki);
    end_close(pair.far);
    WAIT_UNTIL(pair.near.closed == 1);
    CHECK_EQ(pair.near.code, -ECONNRESET);
    CHECK(strstr(pair.near.why, pair.b.address) != NULL);
    CHECK_EQ(pair.far->closed, 0);
    pair_close(&pair);
}

static void test_refused(struct body *body)
{
    pair_open(&pair, body->loop, &pki);
    char address[64];
    snprintf(address, sizeof address, "%s", pair.b.address);
    net_destroy(pair.b.net);
    WAIT_UNTIL(pair.near.closed == 1);
    struct end late = {0};
    end_connect(&late, &pair.a, address, 2);
    WAIT_UNTIL(late.closed == 1);
    CHECK_EQ(late.code, -ECONNREFUSED);
    CHECK(strstr(late.why, address) != NULL);
    CHECK_EQ(late.opened, 0);
    buffer_pool_destroy(pair.b.pool);
    side_stop(&pair.a);
}

static void test_not_wanted(struct body *body)
{
    side_start(&pair.a, body->loop, &pki, 1);
    side_start(&pair.b, body->loop, &pki, 2);
    struct end one = {0}, other = {0};
    pair.b.refuses = true;
    end_connect(&one, &pair.a, pair.b.address, 2);
    end_connect(&other, &pair.a, pair.b.address, 3);
    WAIT_UNTIL(one.closed == 1 && other.closed == 1);
    CHECK_EQ(one.code, -PLX_EDENIED);
    CHECK_EQ(other.code, -PLX_EDENIED);
    CHECK_EQ(one.opened + other.opened, 0);
    CHECK(strstr(other.why, "3") != NULL);
    pair_close(&pair);
}

static void test_any_node(struct body *body)
{
    pair_open(&pair, body->loop, &pki);
    struct end any = {0};
    end_connect(&any, &pair.a, pair.b.address, 0);
    WAIT_UNTIL(any.opened == 1);
    CHECK_EQ(net_conn_peer(any.conn).node, 2);
    end_close(&any);
    WAIT_UNTIL(pair.b.ends[1].closed == 1);
    pair_close(&pair);
}

static void test_close_while_opening(struct body *body)
{
    side_start(&pair.a, body->loop, &pki, 1);
    side_start(&pair.b, body->loop, &pki, 2);
    for (uint32_t i = 0; i < 4; i++) {
        struct end end = {0};
        end_connect(&end, &pair.a, pair.b.address, 2);
        for (uint32_t j = 0; j < i; j++)
            task_yield();
        end_close(&end);
    }
    task_sleep_ns(20 * NS_PER_MS);
    for (uint32_t i = 0; i < pair.b.end_count; i++)
        WAIT_UNTIL(pair.b.ends[i].closed == 1);
    pair_close(&pair);
}

static void test_close_in_opened(struct body *body)
{
    side_start(&pair.a, body->loop, &pki, 1);
    side_start(&pair.b, body->loop, &pki, 2);
    pair.near = (struct end){.on_opened = end_close};
    end_connect(&pair.near, &pair.a, pair.b.address, 2);
    WAIT_UNTIL(pair.near.opened == 1 && pair.b.ends[0].closed == 1);
    CHECK_EQ(pair.near.closed, 0);
    struct end other = {0};
    pair.b.ends[1].on_opened = end_close;
    end_connect(&other, &pair.a, pair.b.address, 2);
    WAIT_UNTIL(pair.b.ends[1].opened == 1 && other.closed == 1);
    CHECK_EQ(pair.b.ends[1].closed, 0);
    pair_close(&pair);
}

static void test_close_in_received(struct body *body)
{
    pair_open(&pair, body->loop, &pki);
    pair.far->check = check_numbered;
    pair.far->on_received = end_close;
    for (uint32_t i = 0; i < 20; i++)
        send_numbered(&pair.near, pair.a.pool, i);
    WAIT_UNTIL(pair.near.closed == 1);
    CHECK_EQ(pair.far->received, 1);
    CHECK_EQ(pair.far->closed, 0);
    pair_close(&pair);
}

static void connect_again(struct end *end)
{
    struct end *next = end + 1;
    end_connect(next, &pair.a, pair.b.address, 2);
}

static void test_connect_in_closed(struct body *body)
{
    static struct end ends[2];
    pair_open(&pair, body->loop, &pki);
    memset(ends, 0, sizeof ends);
    ends[0].on_closed = connect_again;
    end_connect(&ends[0], &pair.a, pair.b.address, 2);
    WAIT_UNTIL(ends[0].opened == 1 && pair.b.ends[1].opened == 1);
    end_close(&pair.b.ends[1]);
    WAIT_UNTIL(ends[1].opened == 1);
    CHECK_EQ(ends[0].closed, 1);
    pair_close(&pair);
}

/* Closes another connection of the same net than the one whose handler runs. */
static void close_other(struct end *end)
{
    struct end *other = end + 1;
    end_close(other);
}

static void test_close_other_in_received(struct body *body)
{
    pair_open(&pair, body->loop, &pki);
    struct end other = {0};
    end_connect(&other, &pair.a, pair.b.address, 2);
    WAIT_UNTIL(pair.b.ends[1].opened == 1);
    pair.b.ends[0].on_received = close_other;
    send_text(&pair.near, "one");
    send_text(&other, "other");
    WAIT_UNTIL(pair.far->received == 1 && other.closed == 1);
    pair_close(&pair);
}

static void destroy_net(struct end *end)
{
    (void)end;
    net_destroy(pair.b.net);
    pair.b.net = NULL;
    for (uint32_t i = 0; i < pair.b.end_count; i++)
        pair.b.ends[i].conn = NULL;
}

static void test_destroy_in_received(struct body *body)
{
    pair_open(&pair, body->loop, &pki);
    pair.far->check = check_numbered;
    pair.far->on_received = destroy_net;
    for (uint32_t i = 0; i < 10; i++)
        send_numbered(&pair.near, pair.a.pool, i);
    WAIT_UNTIL(pair.near.closed == 1);
    CHECK_EQ(pair.far->received, 1);
    buffer_pool_destroy(pair.b.pool);
    side_stop(&pair.a);
}

/* Payloads may be kept as long as one likes. */
static void test_kept_payloads(struct body *body)
{
    enum { COUNT = 22 };
    pair_open(&pair, body->loop, &pki);
    pair.far->check = check_numbered;
    pair.far->keeps_payload = true;
    for (uint32_t i = 0; i < COUNT; i++)
        send_numbered(&pair.near, pair.a.pool, i);
    WAIT_UNTIL(pair.far->received == COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        struct slice kept = pair.far->kept[i];
        if (kept.buffer == NULL)
            continue;
        CHECK_EQ(kept.buffer->refs, 1);
        CHECK(is_filled(slice_data(kept), kept.len, i));
        buffer_put(kept.buffer);
    }
    pair_close(&pair);
}

int main(void)
{
    static void (*const bodies[])(struct body * body) = {
        test_first,
        test_open,
        test_sizes,
        test_limits,
        test_both_directions,
        test_backlog,
        test_pause,
        test_pause_before_open,
        test_pause_each,
        test_pool_is_empty,
        test_close_while_waiting,
        test_peer_closes,
        test_refused,
        test_not_wanted,
        test_any_node,
        test_close_while_opening,
        test_close_in_opened,
        test_close_in_received,
        test_connect_in_closed,
        test_close_other_in_received,
        test_destroy_in_received,
        test_kept_payloads,
    };
    test_pki_create(&pki, CLUSTER_UID);
    for (size_t i = 0; i < ARRAY_LEN(bodies); i++)
        run_on_both(bodies[i]);
    test_pki_free(&pki);
    return 0;
}
