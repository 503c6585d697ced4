/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The nth allocation or system call on the way from two nets to answered messages fails,
 * for n = 0, 1, 2 ... until nothing fails any more. Whatever fails: nothing hangs,
 * nothing leaks, what arrives is right, and who sees an error gets words for it. The
 * linker puts our functions before those of the system.
 */
#include <sys/socket.h>

#include "tests/unit/net_ends.h"

#define MESSAGES 6U

static struct test_pki pki;
static struct pair pair;

/* Only the loop's thread counts, and only while armed. */
static int64_t left = -1;
static bool failed;
static uint32_t of_calls; /* 0: allocations, 1: system calls */

static bool must_fail(uint32_t kind)
{
    if (left < 0 || kind != of_calls)
        return false;
    if (left > 0) {
        left--;
        return false;
    }
    failed = true;
    left = -1;
    return true;
}

void *__real_malloc(size_t len);
void *__wrap_malloc(size_t len);
void *__wrap_malloc(size_t len)
{
    return must_fail(0) ? NULL : __real_malloc(len);
}

void *__real_calloc(size_t count, size_t len);
void *__wrap_calloc(size_t count, size_t len);
void *__wrap_calloc(size_t count, size_t len)
{
    return must_fail(0) ? NULL : __real_calloc(count, len);
}

int __real_socket(int domain, int type, int protocol);
int __wrap_socket(int domain, int type, int protocol);
int __wrap_socket(int domain, int type, int protocol)
{
    if (must_fail(1)) {
        errno = EMFILE;
        return -1;
    }
    return __real_socket(domain, type, protocol);
}

int __real_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags)
{
    if (must_fail(1)) {
        errno = EMFILE;
        return -1;
    }
    return __real_accept4(fd, address, len, flags);
}

ssize_t __real_send(int fd, const void *bytes, size_t len, int flags);
ssize_t __wrap_send(int fd, const void *bytes, size_t len, int flags);
ssize_t __wrap_send(int fd, const void *bytes, size_t len, int flags)
{
    if (must_fail(1)) {
        errno = EPIPE;
        return -1;
    }
    return __real_send(fd, bytes, len, flags);
}

ssize_t __real_recv(int fd, void *bytes, size_t len, int flags);
ssize_t __wrap_recv(int fd, void *bytes, size_t len, int flags);
ssize_t __wrap_recv(int fd, void *bytes, size_t len, int flags)
{
    if (must_fail(1)) {
        errno = ECONNRESET;
        return -1;
    }
    return __real_recv(fd, bytes, len, flags);
}

int __real_listen(int fd, int backlog);
int __wrap_listen(int fd, int backlog);
int __wrap_listen(int fd, int backlog)
{
    if (must_fail(1)) {
        errno = EADDRINUSE;
        return -1;
    }
    return __real_listen(fd, backlog);
}

/* --- a life --- */

static uint32_t payload_of(uint32_t number)
{
    return number * 30000;
}

static bool send_message(struct end *end, struct buffer *buffer, uint32_t number)
{
    struct slice slice = {buffer, 0, payload_of(number)};
    struct net_send send = {&number, sizeof number, &slice, number > 0 ? 1U : 0U};
    int rc = end_send(end, &send);
    CHECK(rc == 0 || rc == -ENOMEM);
    return rc == 0;
}

static void check_message(struct end *end, const void *head, size_t head_len,
                          struct slice payload)
{
    uint32_t number;
    CHECK_EQ(head_len, sizeof number);
    memcpy(&number, head, sizeof number);
    CHECK_EQ(number, end->received);
    CHECK_EQ(payload.buffer != NULL ? payload.len : 0, payload_of(number));
}

static void exchange(struct buffer *buffer)
{
    struct end *near = &pair.near, *far = &pair.b.ends[0];
    WAIT_UNTIL(near->closed == 1 || (near->opened == 1 && far->opened == 1));
    if (near->closed > 0 || far->closed > 0)
        return;
    near->check = far->check = check_message;
    for (uint32_t i = 0; i < MESSAGES; i++) {
        if (!send_message(near, buffer, i) || !send_message(far, buffer, i))
            return;
    }
    WAIT_UNTIL(near->closed == 1 || far->closed == 1 ||
               (near->received == MESSAGES && far->received == MESSAGES));
}

static bool start(struct side *side, struct body *body, uint64_t node)
{
    struct net_options options = side_options(side, body->loop, &pki, node);
    struct error err = {0};
    uint16_t port;
    int rc = net_create(&options, &side->net, &err);
    if (rc == 0)
        rc = net_listen(side->net, "127.0.0.1:0", &port, &err);
    if (rc < 0) {
        CHECK(err.text[0] != '\0' && failed);
        return false;
    }
    snprintf(side->address, sizeof side->address, "127.0.0.1:%u", port);
    return true;
}

static void live(struct body *body, struct buffer *buffer)
{
    if (!start(&pair.a, body, 1) || !start(&pair.b, body, 2))
        return;
    struct end *near = &pair.near;
    near->task = task_current();
    near->conn = net_connect(pair.a.net, pair.b.address, 2, &end_handlers, near);
    if (near->conn != NULL)
        exchange(buffer);
    else
        CHECK(failed);
    CHECK(near->closed == 0 || (near->code < 0 && near->why[0] != '\0' && failed));
}

static void test_failures(struct body *body)
{
    for (int64_t n = 0; n == 0 || failed; n++) {
        pair = (struct pair){.far = NULL};
        pair.a.pool = buffer_pool_create(POOL_BYTES);
        pair.b.pool = buffer_pool_create(POOL_BYTES);
        struct buffer_pool *sent = buffer_pool_create(POOL_BYTES);
        struct buffer *buffer = buffer_create(sent, payload_of(MESSAGES));
        memset(buffer->data, 1, payload_of(MESSAGES));
        failed = false;
        left = n;
        live(body, buffer);
        left = -1;
        net_destroy(pair.a.net);
        net_destroy(pair.b.net);
        CHECK_EQ(buffer->refs, 1);
        buffer_put(buffer);
        CHECK_EQ(buffer_pool_used_bytes(pair.a.pool), 0);
        CHECK_EQ(buffer_pool_used_bytes(pair.b.pool), 0);
        buffer_pool_destroy(pair.a.pool);
        buffer_pool_destroy(pair.b.pool);
        buffer_pool_destroy(sent);
        CHECK(n < 2000);
        if (!failed)
            CHECK(n > 10);
    }
    CHECK_EQ(pair.near.received, MESSAGES);
    CHECK_EQ(pair.b.ends[0].received, MESSAGES);
}

/* Pays for what a process does once. */
static void test_first(struct body *body)
{
    pair_open(&pair, body->loop, &pki);
    pair_close(&pair);
}

int main(void)
{
    test_pki_create(&pki, CLUSTER_UID);
    run_on_real(test_first);
    for (of_calls = 0; of_calls < 2; of_calls++)
        run_on_real(test_failures);
    test_pki_free(&pki);
    return 0;
}
