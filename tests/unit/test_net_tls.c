/* SPDX-License-Identifier: Apache-2.0 */
/* What only the real network has: certificates, strangers, names, and what comes from
 * peers that do not keep to the rules. */
#include <arpa/inet.h>
#include <malloc.h>
#include <netdb.h>
#include <pthread.h>
#include <sys/socket.h>
#include <time.h>

#include "runtime/net_pki_internal.h"
#include "runtime/net_tls_internal.h"
#include "tests/unit/net_ends.h"

#define DAY_S 86400

static struct test_pki pki, foreign; /* of the same cluster's name, another CA */
static struct test_pki elsewhere;    /* another cluster */
static struct side a, b;
static struct end near;

/* --- helpers --- */

static char *joined(const char *one, const char *other)
{
    char *text = malloc(strlen(one) + strlen(other) + 1);
    CHECK(text != NULL);
    strcpy(text, one);
    strcat(text, other);
    return text;
}

static void side_start_with(struct side *side, const struct net_options *options)
{
    side_create(side, options);
    if (options->credentials.certificate != NULL)
        side_listen(side);
}

static struct net_options options_of(struct side *side, struct body *body,
                                     struct test_pki *of, uint64_t node)
{
    *side = (struct side){.pool = buffer_pool_create(POOL_BYTES)};
    return side_options(side, body->loop, of, node);
}

static void stop_both(void)
{
    side_stop(&a);
    side_stop(&b);
}

/* a connects to node `node` at b, and it comes to nothing. */
static void expect_denied(uint64_t node, const char *words)
{
    near = (struct end){0};
    uint32_t before = b.end_count;
    end_connect(&near, &a, b.address, node);
    WAIT_UNTIL(near.closed == 1 || near.opened == 1);
    if (near.opened > 0 || strstr(near.why, words) == NULL)
        fprintf(stderr, "%s: opened %u, %s\n", words, near.opened, near.why);
    CHECK_EQ(near.opened, 0);
    CHECK_EQ(near.code, -PLX_EDENIED);
    CHECK(strstr(near.why, words) != NULL);
    CHECK(strstr(near.why, b.address) != NULL);
    CHECK_EQ(b.end_count, before);
}

static void expect_open(uint64_t node)
{
    near = (struct end){0};
    uint32_t before = b.end_count;
    end_connect(&near, &a, b.address, node);
    WAIT_UNTIL(near.opened == 1 || near.closed == 1);
    if (near.closed > 0)
        fprintf(stderr, "%s\n", near.why);
    CHECK_EQ(near.closed, 0);
    CHECK_EQ(b.end_count, before + 1);
    end_close(&near);
    WAIT_UNTIL(b.ends[before].closed == 1);
    b.end_count = 0;
    memset(b.ends, 0, sizeof b.ends);
}

/* Pays for what a process does once. */
static void test_first(struct body *body)
{
    static struct pair pair;
    pair_open(&pair, body->loop, &pki);
    pair_close(&pair);
}

/* --- who is refused --- */

static void test_server_of_other_authority(struct body *body)
{
    struct net_options one = options_of(&a, body, &pki, 1);
    struct net_options other = options_of(&b, body, &foreign, 2);
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    expect_denied(2, "certificate is not accepted");
    stop_both();
}

/* The client takes the server for what it is, but is not of the cluster itself. */
static void test_client_of_other_authority(struct body *body)
{
    struct net_options one = options_of(&a, body, &foreign, 1);
    struct net_options other = options_of(&b, body, &pki, 2);
    one.credentials.authority = pki.authority.certificate;
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    expect_denied(2, "does not accept our certificate");
    stop_both();
}

/* Both CAs are known to both; the identity decides. */
static void test_other_cluster(struct body *body)
{
    char *both = joined(pki.authority.certificate, elsewhere.authority.certificate);
    struct net_options one = options_of(&a, body, &elsewhere, 1);
    struct net_options other = options_of(&b, body, &pki, 2);
    one.credentials.authority = other.credentials.authority = both;
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    expect_denied(2, "another cluster");
    stop_both();
    /* And where only the server minds: the client pins the server's CA. */
    uint8_t digest[NET_DIGEST_BYTES];
    memcpy(digest, body->arg, sizeof digest);
    one = options_of(&a, body, &elsewhere, 1);
    one.credentials.authority_digest = digest;
    other = options_of(&b, body, &pki, 2);
    other.credentials.authority = both;
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    expect_denied(2, "does not accept our certificate");
    stop_both();
    free(both);
}

static void test_wrong_node(struct body *body)
{
    struct net_options one = options_of(&a, body, &pki, 1);
    struct net_options other = options_of(&b, body, &pki, 2);
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    expect_denied(3, "node 2, not node 3");
    expect_open(2);
    expect_open(0);
    stop_both();
}

static void test_nobody(struct body *body)
{
    struct net_options one = options_of(&a, body, &pki, 0);
    struct net_options other = options_of(&b, body, &pki, 2);
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    struct error err = {0};
    uint16_t port;
    CHECK_EQ(net_listen(a.net, "127.0.0.1:0", &port, &err), -PLX_EDENIED);
    expect_denied(2, "without a certificate");
    stop_both();
}

static const uint8_t some_head[NET_NOBODY_HEAD_MAX + 1];

/* Allowed, a nobody may say little. */
static void test_nobody_allowed(struct body *body)
{
    struct net_options one = options_of(&a, body, &pki, 0);
    struct net_options other = options_of(&b, body, &pki, 2);
    other.allow_nobody = true;
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    for (uint32_t i = 0; i < 2; i++) {
        near = (struct end){0};
        end_connect(&near, &a, b.address, 2);
        WAIT_UNTIL(near.opened == 1);
        struct end *far = &b.ends[i];
        CHECK_EQ(net_conn_peer(far->conn).node, 0);
        CHECK_EQ(net_conn_peer(near.conn).node, 2);
        struct net_send send = {some_head, NET_NOBODY_HEAD_MAX, NULL, 0};
        CHECK_EQ(end_send(&near, &send), 0);
        WAIT_UNTIL(far->received == 1);
        struct buffer *buffer = buffer_create(a.pool, 4096);
        memset(buffer->data, 0, 4096);
        struct slice slice = {buffer, 0, 4096};
        send = (struct net_send){some_head, 4, &slice, 1};
        if (i == 1)
            send = (struct net_send){some_head, sizeof some_head, NULL, 0};
        CHECK_EQ(end_send(&near, &send), 0);
        buffer_put(buffer);
        WAIT_UNTIL(far->closed == 1 && near.closed == 1);
        CHECK_EQ(far->code, -EPROTO);
        CHECK_EQ(far->received, 1);
    }
    CHECK_EQ(tls_net_of(b.net)->nobody_count, 0);
    stop_both();
}

/* --- time --- */

static char *certificate_of(uint64_t node, int64_t from_s, int64_t until_s,
                            char **ret_key)
{
    struct net_pki_pair request;
    char *certificate = NULL;
    uint64_t now_s = (uint64_t)time(NULL);
    struct pki_span span = {now_s + (uint64_t)from_s, now_s + (uint64_t)until_s};
    CHECK_EQ(net_pki_create_request(&request, NULL), 0);
    CHECK_EQ(pki_sign_span(&pki.authority, request.certificate,
                           (struct net_identity){pki.cluster, node}, span, &certificate,
                           NULL),
             0);
    free(request.certificate);
    *ret_key = request.key;
    return certificate;
}

/* Made outside of tasks: too old, old, and of tomorrow. */
enum { TOO_OLD, OLD, TOMORROW, SPANS };
static struct net_pki_pair timed[SPANS][2]; /* of nodes 1 and 2 */

static void timed_create(void)
{
    static const int64_t from_s[SPANS] = {-90 * DAY_S, -90 * DAY_S, DAY_S};
    static const int64_t until_s[SPANS] = {-31 * DAY_S, -29 * DAY_S, 9 * DAY_S};
    for (uint32_t i = 0; i < SPANS; i++)
        for (uint32_t node = 1; node <= 2; node++)
            timed[i][node - 1].certificate = certificate_of(node, from_s[i], until_s[i],
                                                            &timed[i][node - 1].key);
}

static void timed_free(void)
{
    for (uint32_t i = 0; i < SPANS; i++) {
        for (uint32_t j = 0; j < 2; j++) {
            free(timed[i][j].certificate);
            net_pki_free_key(timed[i][j].key);
        }
    }
}

static void use_timed(struct net_credentials *credentials, uint32_t span, uint64_t node)
{
    credentials->certificate = timed[span][node - 1].certificate;
    credentials->key = timed[span][node - 1].key;
}

static void test_times(struct body *body)
{
    for (uint32_t i = 0; i < 2 * SPANS; i++) {
        uint32_t span = i / 2;
        struct net_options one = options_of(&a, body, &pki, 1);
        struct net_options other = options_of(&b, body, &pki, 2);
        if (i % 2 == 0)
            use_timed(&one.credentials, span, 1);
        else
            use_timed(&other.credentials, span, 2);
        side_start_with(&a, &one);
        side_start_with(&b, &other);
        if (span == TOO_OLD)
            expect_denied(2, "expired");
        else
            expect_open(2);
        stop_both();
    }
}

/* --- credentials --- */

static void test_renewal(struct body *body)
{
    struct net_options one = options_of(&a, body, &pki, 1);
    struct net_options other = options_of(&b, body, &pki, 2);
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    struct end first = {0};
    end_connect(&first, &a, b.address, 2);
    WAIT_UNTIL(first.opened == 1);
    use_timed(&other.credentials, TOO_OLD, 2);
    CHECK_EQ(net_set_credentials(b.net, &other.credentials, NULL), 0);
    expect_denied(2, "expired");
    /* What was open goes on. */
    struct net_send send = {"x", 1, NULL, 0};
    CHECK_EQ(end_send(&first, &send), 0);
    WAIT_UNTIL(b.ends[0].received == 1);
    other.credentials = test_credentials(&pki, 2);
    CHECK_EQ(net_set_credentials(b.net, &other.credentials, NULL), 0);
    near = (struct end){0};
    end_connect(&near, &a, b.address, 2);
    WAIT_UNTIL(near.opened == 1);
    /* What cannot be used changes nothing. */
    struct net_credentials bad = other.credentials;
    bad.key = pki.nodes[1].key;
    CHECK_EQ(net_set_credentials(b.net, &bad, NULL), -PLX_EFORMAT);
    struct end last = {0};
    end_connect(&last, &a, b.address, 2);
    WAIT_UNTIL(last.opened == 1);
    stop_both();
}

static void expect_bad(struct body *body, const struct net_credentials *credentials,
                       const char *words)
{
    struct error err = {0};
    struct net_options options = options_of(&a, body, &pki, 1);
    options.credentials = *credentials;
    CHECK_EQ(net_create(&options, &a.net, &err), -PLX_EFORMAT);
    if (strstr(err.text, words) == NULL)
        fprintf(stderr, "%s\n", err.text);
    CHECK(strstr(err.text, words) != NULL);
    CHECK(strstr(err.text, "PRIVATE") == NULL);
    CHECK(a.net == NULL);
    buffer_pool_destroy(a.pool);
}

static void test_bad_credentials(struct body *body)
{
    struct net_credentials good = test_credentials(&pki, 1), bad = good;
    bad.key = NULL;
    expect_bad(body, &bad, "key");
    bad = good;
    bad.certificate = NULL;
    expect_bad(body, &bad, "certificate");
    bad = good;
    bad.authority = NULL;
    expect_bad(body, &bad, "CA");
    bad.authority = "nonsense";
    expect_bad(body, &bad, "CA");
    bad = good;
    bad.certificate = "nonsense";
    expect_bad(body, &bad, "certificate");
    bad = good;
    bad.key = "nonsense";
    expect_bad(body, &bad, "key");
    bad = test_credentials(&pki, 2);
    expect_bad(body, &bad, "node 2");
    bad = test_credentials(&elsewhere, 1);
    bad.authority = good.authority;
    expect_bad(body, &bad, "another cluster");
    bad = good;
    bad.certificate = pki.authority.certificate;
    bad.key = pki.authority.key;
    expect_bad(body, &bad, "names no node");
}

/* A key that has sealed much is changed, and nothing is lost by it. */
static void test_next_key(struct body *body)
{
    struct net_options one = options_of(&a, body, &pki, 1);
    struct net_options other = options_of(&b, body, &pki, 2);
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    near = (struct end){0};
    end_connect(&near, &a, b.address, 2);
    WAIT_UNTIL(near.opened == 1);
    struct tls_session *session =
        &container_of(near.conn, struct tls_conn, conn)->session;
    struct net_send send = {"x", 1, NULL, 0};
    session->key_records = TLS_KEY_RECORDS - 2;
    for (uint32_t i = 1; i <= 5; i++) {
        CHECK_EQ(end_send(&near, &send), 0);
        WAIT_UNTIL(b.ends[0].received == i);
    }
    CHECK_EQ(session->key_records, 3);
    CHECK_EQ(end_send(&b.ends[0], &send), 0);
    WAIT_UNTIL(near.received == 1);
    stop_both();
}

/* Who joins knows nothing but the digest. */
static void test_joining(struct body *body)
{
    struct net_options one = options_of(&a, body, &pki, 0);
    struct net_options other = options_of(&b, body, &pki, 2);
    one.self = (struct net_identity){.node = 0};
    one.credentials = (struct net_credentials){.authority_digest = body->arg};
    other.allow_nobody = true;
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    struct end *far = &b.ends[0];
    near = (struct end){0};
    end_connect(&near, &a, b.address, 0);
    WAIT_UNTIL(near.opened == 1);
    CHECK_EQ(net_conn_peer(near.conn).node, 2);
    CHECK(uid_equal(net_conn_peer(near.conn).cluster, pki.cluster));
    struct net_send send = {"join", 4, NULL, 0};
    CHECK_EQ(end_send(&near, &send), 0);
    WAIT_UNTIL(far->received == 1);
    end_close(&near);
    WAIT_UNTIL(far->closed == 1);
    expect_denied(3, "node 2, not node 3");
    uint8_t wrong[NET_DIGEST_BYTES];
    memcpy(wrong, body->arg, sizeof wrong);
    wrong[31] ^= 1;
    one.credentials.authority_digest = wrong;
    CHECK_EQ(net_set_credentials(a.net, &one.credentials, NULL), 0);
    expect_denied(0, "digest");
    stop_both();
}

/* --- strangers --- */

static int stranger(const char *address)
{
    union net_address at;
    CHECK(net_address_parse(address, &at));
    int fd = socket(at.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK_EQ(connect(fd, &at.any, net_address_len(&at)), 0);
    return fd;
}

/* Waits until the other end has closed it. */
static async void stranger_is_dropped(int fd)
{
    char bytes[512];
    for (;;) {
        ssize_t n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            break;
        task_sleep_ns(NS_PER_MS);
    }
    close(fd);
}

static const uint8_t half_greeting[] = {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc};

static void test_garbage(struct body *body)
{
    static const char http[] = "GET / HTTP/1.0\r\n\r\n";
    static uint8_t noise[200000];
    struct net_options other = options_of(&b, body, &pki, 2);
    side_start_with(&b, &other);
    uint32_t random = 1;
    for (size_t i = 0; i < sizeof noise; i++) {
        random = random * 1664525 + 1013904223;
        noise[i] = (uint8_t)(random >> 24);
    }
    size_t before = 0;
    for (uint32_t i = 0; i < 40; i++) {
        int fd = stranger(b.address);
        if (i % 4 == 0)
            send(fd, http, sizeof http, MSG_NOSIGNAL);
        else if (i % 4 == 1)
            send(fd, noise + i * 1000, 50000, MSG_NOSIGNAL | MSG_DONTWAIT);
        else if (i % 4 == 2)
            send(fd, "\x16\x03\x01\xff\xff", 5, MSG_NOSIGNAL); /* a record too long */
        else
            shutdown(fd, SHUT_WR);
        stranger_is_dropped(fd);
        if (i == 7)
            before = mallinfo2().uordblks;
    }
    CHECK(mallinfo2().uordblks <= before + 16 * KIB);
    CHECK_EQ(tls_net_of(b.net)->opening_count, 0);
    CHECK_EQ(b.end_count, 0);
    CHECK(TAILQ_EMPTY(&tls_net_of(b.net)->conns));
    side_stop(&b);
}

/* Half of a greeting, then nothing, as many as may be at once. They go when their time is
 * over. */
static void test_silence(struct body *body)
{
    static int fds[NET_OPENING_MAX];
    struct net_options other = options_of(&b, body, &pki, 2);
    side_start_with(&b, &other);
    struct tls_net *net = tls_net_of(b.net);
    for (uint32_t i = 0; i < NET_OPENING_MAX; i++) {
        fds[i] = stranger(b.address);
        send(fds[i], half_greeting, sizeof half_greeting, MSG_NOSIGNAL);
    }
    while (net->opening_count < NET_OPENING_MAX)
        task_sleep_ns(NS_PER_MS);
    for (uint32_t i = 0; i < NET_OPENING_MAX; i++)
        stranger_is_dropped(fds[i]);
    CHECK_EQ(b.end_count, 0);
    CHECK_EQ(net->opening_count, 0);
    side_stop(&b);
}

/* More of these than may be at once, and others that say nothing. Nobody waits until
 * their time is over: who comes later and means it is let in. */
static void test_crowd(struct body *body)
{
    enum { COUNT = 3 * NET_OPENING_MAX };
    static int fds[COUNT];
    struct net_options one = options_of(&a, body, &pki, 1);
    struct net_options other = options_of(&b, body, &pki, 2);
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    struct tls_net *net = tls_net_of(b.net);
    for (uint32_t i = 0; i < COUNT; i++) {
        fds[i] = stranger(b.address);
        if (i % 2 == 0)
            send(fds[i], half_greeting, sizeof half_greeting, MSG_NOSIGNAL);
        task_sleep_ns(NS_PER_MS);
        CHECK(net->opening_count <= NET_OPENING_MAX);
    }
    expect_open(2);
    CHECK_EQ(b.end_count, 0);
    for (uint32_t i = 0; i < COUNT; i++)
        close(fds[i]);
    stop_both();
}

/* --- peers that are let in, and break the rules --- */

/* A client on a thread of its own, with blocking calls. */
struct rogue {
    pthread_t thread;
    struct tls_context *context;
    const char *address;
    const void *bytes;
    size_t len;
    bool is_over;
};

static bool rogue_out(void *arg, const void *bytes, size_t len)
{
    int fd = *(int *)arg;
    const char *at = bytes;
    while (len > 0) {
        ssize_t n = send(fd, at, len, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        at += n;
        len -= (size_t)n;
    }
    return true;
}

static bool rogue_more(int fd, struct tls_session *session, uint8_t *area, size_t cap)
{
    ssize_t n = recv(fd, area, cap, 0);
    session->in = area;
    session->in_len = n > 0 ? (size_t)n : 0;
    return n > 0;
}

static void *rogue_main(void *arg)
{
    struct rogue *rogue = arg;
    struct tls_session session = {.out = rogue_out};
    static uint8_t area[16384];
    struct net_frame hello;
    size_t got;
    int fd = stranger(rogue->address), rc;
    session.arg = &fd;
    CHECK_EQ(tls_session_init(&session, rogue->context, false, NULL), 0);
    while ((rc = tls_session_handshake(&session, NULL)) == -EAGAIN)
        CHECK(rogue_more(fd, &session, area, sizeof area));
    CHECK_EQ(rc, 0);
    while ((rc = tls_session_read(&session, &hello, sizeof hello, &got, NULL)) == -EAGAIN)
        CHECK(rogue_more(fd, &session, area, sizeof area));
    CHECK_EQ(rc, 0);
    CHECK_EQ(got, sizeof hello);
    CHECK_EQ(le16_get(hello.kind), NET_FRAME_HELLO);
    CHECK_EQ(tls_session_write(&session, rogue->bytes, rogue->len, NULL), 0);
    shutdown(fd, SHUT_WR);
    while (rogue_more(fd, &session, area, sizeof area))
        ;
    close(fd);
    tls_session_done(&session);
    __atomic_store_n(&rogue->is_over, true, __ATOMIC_RELEASE);
    return NULL;
}

/* Sends the bytes to b; what becomes of the connection there. */
static async void rogue_sends(struct body *body, const void *bytes, size_t len, int code,
                              const char *words)
{
    struct net_options one = side_options(&a, body->loop, &pki, 1);
    struct rogue rogue = {.address = b.address, .bytes = bytes, .len = len};
    CHECK_EQ(tls_context_create(&one, &one.credentials, &rogue.context, NULL), 0);
    memset(b.ends, 0, sizeof b.ends);
    b.end_count = 0;
    CHECK_EQ(pthread_create(&rogue.thread, NULL, rogue_main, &rogue), 0);
    struct end *far = &b.ends[0];
    WAIT_UNTIL(far->closed == 1);
    while (!__atomic_load_n(&rogue.is_over, __ATOMIC_ACQUIRE))
        task_sleep_ns(NS_PER_MS);
    pthread_join(rogue.thread, NULL);
    tls_context_put(rogue.context);
    if (far->code != code || strstr(far->why, words) == NULL)
        fprintf(stderr, "%s: %s\n", words, far->why);
    CHECK_EQ(far->code, code);
    CHECK(strstr(far->why, words) != NULL);
    CHECK_EQ(far->received, 0);
    CHECK_EQ(buffer_pool_used_bytes(b.pool), 0);
}

static struct net_frame frame_of(uint16_t kind, uint32_t head_len, uint32_t payload_len)
{
    return (struct net_frame){
        .magic = le32_of(NET_FRAME_MAGIC),
        .version = le16_of(NET_FRAME_VERSION),
        .kind = le16_of(kind),
        .head_len = le32_of(head_len),
        .payload_len = le32_of(payload_len),
    };
}

static void test_rogues(struct body *body)
{
    struct net_options other = options_of(&b, body, &pki, 2);
    side_start_with(&b, &other);
    struct net_frame frame = frame_of(NET_FRAME_MESSAGE, 0, 0);
    rogue_sends(body, &frame, sizeof frame, -EPROTO, "head of 0 bytes");
    frame = frame_of(NET_FRAME_MESSAGE, NET_HEAD_MAX + 1, 0);
    rogue_sends(body, &frame, sizeof frame, -EPROTO, "head of 262145 bytes");
    frame = frame_of(NET_FRAME_MESSAGE, 1, NET_PAYLOAD_MAX + 1);
    rogue_sends(body, &frame, sizeof frame, -EPROTO, "payload of 1048577 bytes");
    frame = frame_of(NET_FRAME_MESSAGE, UINT32_MAX, UINT32_MAX);
    rogue_sends(body, &frame, sizeof frame, -EPROTO, "head of 4294967295 bytes");
    frame = frame_of(NET_FRAME_HELLO, 0, 0);
    rogue_sends(body, &frame, sizeof frame, -EPROTO, "unknown kind 1");
    frame = frame_of(9, 1, 0);
    rogue_sends(body, &frame, sizeof frame, -EPROTO, "unknown kind 9");
    frame = frame_of(NET_FRAME_MESSAGE, 1, 0);
    frame.version = le16_of(2);
    rogue_sends(body, &frame, sizeof frame, -EPROTO, "version 2");
    rogue_sends(body, "GET / HTTP/1.0\r\n\r\n", 18, -EPROTO, "not a frame");
    /* Cut off in its header, in its head, in its payload. */
    uint8_t part[sizeof frame + 8] = {0};
    frame = frame_of(NET_FRAME_MESSAGE, 4, 5000);
    memcpy(part, &frame, sizeof frame);
    rogue_sends(body, part, 7, -ECONNRESET, "closed");
    rogue_sends(body, part, sizeof frame + 2, -ECONNRESET, "closed");
    rogue_sends(body, part, sizeof part, -ECONNRESET, "closed");
    side_stop(&b);
}

/* A payload for which there never will be room. */
static void test_pool_too_small(struct body *body)
{
    struct net_options one = options_of(&a, body, &pki, 1);
    b = (struct side){.pool = buffer_pool_create(64 * KIB)};
    struct net_options other = side_options(&b, body->loop, &pki, 2);
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    near = (struct end){0};
    end_connect(&near, &a, b.address, 2);
    WAIT_UNTIL(near.opened == 1);
    struct buffer *buffer = buffer_create(a.pool, 65 * KIB);
    memset(buffer->data, 0, 65 * KIB);
    struct slice slice = {buffer, 0, 65 * KIB};
    struct net_send send = {"x", 1, &slice, 1};
    CHECK_EQ(end_send(&near, &send), 0);
    WAIT_UNTIL(near.closed == 1 && b.ends[0].closed == 1);
    CHECK_EQ(b.ends[0].code, -ENOMEM);
    buffer_put(buffer);
    stop_both();
}

/* --- addresses --- */

static async void expect_unreachable(const char *address, int code)
{
    near = (struct end){0};
    end_connect(&near, &a, address, 0);
    WAIT_UNTIL(near.closed == 1);
    if (near.code != code)
        fprintf(stderr, "%s\n", near.why);
    CHECK_EQ(near.code, code);
}

struct naming {
    const char *address;
    uint16_t port;
    int rc;
};

static void listen_by_name(void *arg)
{
    struct naming *naming = arg;
    naming->rc = net_listen(b.net, naming->address, &naming->port, NULL);
}

/* localhost is one or two addresses of this machine. */
static async void expect_listening_by_name(void)
{
    struct naming naming = {.address = "localhost:0"};
    char address[64];
    task_outside(listen_by_name, &naming);
    CHECK_EQ(naming.rc, 0);
    snprintf(address, sizeof address, "localhost:%u", naming.port);
    near = (struct end){0};
    end_connect(&near, &a, address, 2);
    WAIT_UNTIL(near.opened == 1 && b.end_count == 1);
    end_close(&near);
    WAIT_UNTIL(b.ends[0].closed == 1);
}

static void test_addresses(struct body *body)
{
    static const char *const bad[] = {"",     "nonsense", "1.2.3.4", "::1:80",
                                      "[::1", "a:99999",  "a:",      ":80",
                                      "a:8o", "[]:80",    "a:-1"};
    struct net_options one = options_of(&a, body, &pki, 1);
    struct net_options other = options_of(&b, body, &pki, 2);
    struct error err = {0};
    uint16_t port;
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        expect_unreachable(bad[i], -EINVAL);
        CHECK_EQ(net_listen(b.net, bad[i], &port, NULL), -EINVAL);
    }
    CHECK_EQ(net_listen(b.net, b.address, &port, &err), -EADDRINUSE);
    CHECK(strstr(err.text, b.address) != NULL);
    /* A name, looked up on a thread; a bare root may know none, not even this one. */
    struct addrinfo *found = NULL;
    near = (struct end){0};
    snprintf(b.address, sizeof b.address, "localhost:%s", strchr(a.address, ':') + 1);
    end_connect(&near, &a, b.address, 1);
    if (getaddrinfo("localhost", NULL, NULL, &found) == 0) {
        freeaddrinfo(found);
        WAIT_UNTIL(near.opened == 1 && a.end_count == 1);
        end_close(&near);
        WAIT_UNTIL(a.ends[0].closed == 1);
        expect_listening_by_name();
    } else {
        WAIT_UNTIL(near.closed == 1);
        CHECK(strstr(near.why, "localhost") != NULL);
    }
    /* Cancelled at any time; the thread ends when it can. */
    for (uint32_t i = 0; i < 4; i++) {
        struct end end = {0};
        end_connect(&end, &a, b.address, 1);
        if (i > 0)
            task_sleep_ns(i * 100 * NS_PER_US);
        end_close(&end);
    }
    stop_both();
}

static void test_any_address(struct body *body)
{
    struct net_options one = options_of(&a, body, &pki, 1);
    struct net_options other = options_of(&b, body, &pki, 2);
    uint16_t port;
    side_start_with(&a, &one);
    side_start_with(&b, &other);
    int rc = net_listen(b.net, "[::]:0", &port, NULL);
    if (rc == 0) { /* there is IPv6 */
        snprintf(b.address, sizeof b.address, "127.0.0.1:%u", port);
        near = (struct end){0};
        end_connect(&near, &a, b.address, 2);
        WAIT_UNTIL(near.opened == 1);
        CHECK(strncmp(net_conn_address(b.ends[0].conn), "127.0.0.1:", 10) == 0);
        end_close(&near);
        WAIT_UNTIL(b.ends[0].closed == 1);
        snprintf(b.address, sizeof b.address, "[::1]:%u", port);
        near = (struct end){0};
        end_connect(&near, &a, b.address, 2);
        WAIT_UNTIL(near.opened == 1);
        CHECK(strncmp(net_conn_address(b.ends[1].conn), "[::1]:", 6) == 0);
    }
    stop_both();
}

static uint8_t authority_digest[NET_DIGEST_BYTES];

/* body->arg is the digest of our CA: it cannot be made on a task. */
static void (*with_digest)(struct body *body);
static void run_with_digest(struct body *body)
{
    body->arg = authority_digest;
    with_digest(body);
}

int main(void)
{
    static void (*const bodies[])(struct body * body) = {
        test_first,
        test_server_of_other_authority,
        test_client_of_other_authority,
        test_other_cluster,
        test_wrong_node,
        test_nobody,
        test_nobody_allowed,
        test_times,
        test_renewal,
        test_bad_credentials,
        test_next_key,
        test_joining,
        test_garbage,
        test_rogues,
        test_pool_too_small,
        test_addresses,
        test_any_address,
        test_silence,
        test_crowd,
    };
    struct uid other = CLUSTER_UID;
    other.b[15] ^= 1;
    test_pki_create(&pki, CLUSTER_UID);
    test_pki_create(&foreign, CLUSTER_UID);
    test_pki_create(&elsewhere, other);
    timed_create();
    CHECK_EQ(net_pki_digest(pki.authority.certificate, authority_digest, NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(bodies); i++) {
        with_digest = bodies[i];
        run_on_real(run_with_digest);
    }
    timed_free();
    test_pki_free(&pki);
    test_pki_free(&foreign);
    test_pki_free(&elsewhere);
    return 0;
}
