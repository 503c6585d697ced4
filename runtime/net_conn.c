/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Happy path: net_connect makes a connection and posts its work; the work looks the
 * address up, makes a socket and connects; then both sides shake hands (net_session.c).
 * The side that accepted asks its owner, and greets; the side that connected is open once
 * the greeting has come: before that it cannot know that it was let in.
 *
 * What fails before that tries the next address of the name, if there is one, or ends the
 * connection. All ends go through conn_fail, which only notes it: the handler is called
 * by net_leave's caller, conn_leave, when nothing of the connection is in use any more.
 *
 * On close the socket goes at once, with all that was not sent. The memory goes when the
 * loop's call into us has returned (N2).
 */
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "runtime/log.h"
#include "runtime/net_tls_internal.h"

#define KEEPALIVE_IDLE_S  10
#define KEEPALIVE_EVERY_S 5
#define KEEPALIVE_COUNT   3
#define DAY_S             86400U

static void conn_run(struct work *work);
static void conn_late(struct timer *timer);
static void conn_ready(void *arg, unsigned events);

/* These make it faster, or its end known sooner; it works without. Not TCP_USER_TIMEOUT:
 * it would also break the connection of a peer that does not read for a while. */
void socket_prepare(int fd)
{
    int on = 1, idle = KEEPALIVE_IDLE_S, every = KEEPALIVE_EVERY_S;
    int count = KEEPALIVE_COUNT;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof every);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

static struct tls_conn *conn_new(struct tls_net *net, const char *address,
                                 const struct net_handlers *handlers, void *arg)
{
    struct tls_conn *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    net_conn_init(&c->conn, &net->net, address, handlers, arg);
    c->context = tls_context_get(net->context);
    c->fd = -1;
    c->work.run = conn_run;
    c->timer.fire = conn_late;
    c->buffer_waiter.run = conn_buffer_freed;
    STAILQ_INIT(&c->queue);
    TAILQ_INSERT_TAIL(&net->conns, c, link);
    return c;
}

static void socket_close(struct tls_conn *c)
{
    watch_destroy(take(c->watch));
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

/* Takes from it all that the loop or others know of (N2). */
static void conn_retire(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    assert(c->phase != CONN_CLOSED);
    c->phase = CONN_CLOSED;
    c->conn.is_open = false;
    socket_close(c);
    timer_stop(net->net.loop, &c->timer);
    loop_post_cancel(net->net.loop, &c->work);
    buffer_pool_wait_cancel(net->net.options.buffers, &c->buffer_waiter);
    if (c->lookup != NULL)
        lookup_cancel(take(c->lookup));
    TAILQ_REMOVE(&net->conns, c, link);
    TAILQ_INSERT_TAIL(&net->closed, c, link);
    if (c->counts_as_nobody)
        net->nobody_count--;
    if (c->counts_as_opening)
        net_opening_ended(c);
}

void conn_free(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    assert(c->phase == CONN_CLOSED);
    TAILQ_REMOVE(&net->closed, c, link);
    conn_io_done(c);
    if (c->session.ssl != NULL)
        tls_session_done(&c->session);
    frame_in_done(&c->in);
    tls_context_put(c->context);
    free(c->addresses);
    free(c);
}

/* Inside a handler it is freed later, by the caller's net_leave. */
void conn_close(struct net_conn *conn)
{
    struct tls_conn *c = container_of(conn, struct tls_conn, conn);
    struct tls_net *net = conn_net(c);
    if (c->phase == CONN_CLOSED)
        return; /* from inside its own `closed` */
    net_enter(net);
    conn_retire(c);
    net_leave(net);
}

/* --- the end --- */

void conn_fail(struct tls_conn *c, int code, const char *fmt, ...)
{
    assert(code < 0 && code != -EAGAIN);
    if (c->phase >= CONN_FAILED)
        return;
    char why[sizeof c->failure.text];
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, sizeof why, fmt, args);
    va_end(args);
    err_set(&c->failure, code, "%s: %s", c->conn.address, why);
    c->phase = CONN_FAILED;
}

/* Newcomers that are not let in have no owner to tell; strangers could fill the log. */
static void complain(struct tls_net *net, const struct tls_conn *c)
{
    uint64_t now_ns = loop_now_ns(net->net.loop);
    metric_add(net->refused, 1);
    if (net->complained_ns != 0 && now_ns - net->complained_ns < NS_PER_S)
        return;
    net->complained_ns = now_ns;
    log_warning(net->net.loop, "net: not let in: %s", c->failure.text);
}

static void conn_report(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    conn_retire(c);
    if (c->conn.handlers == NULL)
        complain(net, c);
    else
        c->conn.handlers->closed(c->conn.arg, &c->conn, c->failure.code, c->failure.text);
}

static void conn_leave(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    if (c->phase == CONN_FAILED)
        conn_report(c);
    net_leave(net);
}

static void conn_late(struct timer *timer)
{
    struct tls_conn *c = container_of(timer, struct tls_conn, timer);
    net_enter(conn_net(c));
    if (c->phase == CONN_OPEN)
        conn_fail(c, -ETIMEDOUT, "stays too long without a certificate");
    else if (c->phase == CONN_LOOKUP)
        conn_fail(c, -ETIMEDOUT, "its name is not found in time");
    else if (c->phase == CONN_CONNECT)
        conn_fail(c, -ETIMEDOUT, "cannot be reached");
    else
        conn_fail(c, -ETIMEDOUT, "does not shake hands");
    conn_leave(c);
}

void conn_give_way(struct tls_conn *c)
{
    net_enter(conn_net(c));
    conn_fail(c, -PLX_ELIMIT, "does not shake hands, and others wait");
    conn_leave(c);
}

/* --- connecting --- */

static bool socket_watch(struct tls_conn *c, unsigned events)
{
    c->watch = watch_create(conn_net(c)->net.loop, c->fd, conn_ready, c);
    return c->watch != NULL && watch_set(c->watch, events) == 0;
}

/* Whether it is on its way; *ret_rc says why not. */
static bool connect_to(struct tls_conn *c, const union net_address *address, int *ret_rc)
{
    c->fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        *ret_rc = -errno;
        return false;
    }
    socket_prepare(c->fd);
    if (connect(c->fd, &address->any, net_address_len(address)) < 0 &&
        errno != EINPROGRESS) {
        *ret_rc = -errno;
    } else if (!socket_watch(c, WATCH_WRITE)) {
        *ret_rc = -ENOMEM;
    } else {
        return true;
    }
    socket_close(c);
    return false;
}

/* Goes on with the next address; rc is what the last one gave. */
static void connect_next(struct tls_conn *c, int rc)
{
    c->phase = CONN_CONNECT;
    while (c->address_at < c->address_count) {
        uint32_t left = c->address_count - c->address_at;
        if (connect_to(c, &c->addresses[c->address_at++], &rc)) {
            timer_start(conn_net(c)->net.loop, &c->timer, NET_OPEN_MS * NS_PER_MS / left);
            return;
        }
    }
    conn_fail(c, rc, "%s", err_text(rc));
}

static void handshake_start(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    struct error err = {0};
    struct frame_limits limits = {.takes_greeting = true};
    c->session.out = conn_take_output;
    c->session.arg = c;
    frame_in_init(&c->in, &limits);
    if (tls_session_init(&c->session, c->context, c->is_accepted, &err) < 0) {
        conn_fail(c, err.code, "%s", err.text);
        return;
    }
    tls_context_put(take(c->context));
    c->phase = CONN_HANDSHAKE;
    timer_start(net->net.loop, &c->timer, NET_OPEN_MS * NS_PER_MS);
}

static void connect_ended(struct tls_conn *c)
{
    int error = 0;
    socklen_t len = sizeof error;
    if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
        error = errno;
    if (error != 0) {
        socket_close(c);
        connect_next(c, -error);
        return;
    }
    free(take(c->addresses));
    handshake_start(c);
    conn_step(c, false);
}

static void use_addresses(struct tls_conn *c, const union net_address *addresses,
                          uint32_t count)
{
    c->addresses = calloc(count, sizeof *addresses);
    if (c->addresses == NULL) {
        conn_fail(c, -ENOMEM, "%s", err_text(ENOMEM));
        return;
    }
    memcpy(c->addresses, addresses, count * sizeof *addresses);
    c->address_count = count;
    connect_next(c, -EHOSTUNREACH);
}

static void looked_up(void *arg, int code, const char *why,
                      const union net_address *addresses, uint32_t count)
{
    struct tls_conn *c = arg;
    net_enter(conn_net(c));
    c->lookup = NULL;
    if (code < 0)
        conn_fail(c, code, "%s", why);
    else
        use_addresses(c, addresses, count);
    conn_leave(c);
}

static void connect_start(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    union net_address address;
    struct error err = {0};
    if (net_address_parse(c->conn.address, &address)) {
        use_addresses(c, &address, 1);
        return;
    }
    c->phase = CONN_LOOKUP;
    timer_start(net->net.loop, &c->timer, NET_OPEN_MS * NS_PER_MS);
    int rc = lookup_start(net->lookups, net->net.loop, c->conn.address, looked_up, c,
                          &c->lookup, &err);
    if (rc < 0)
        conn_fail(c, rc, "%s", err.text);
}

struct net_conn *conn_connect(struct net *net, const char *address, uint64_t node,
                              const struct net_handlers *handlers, void *arg)
{
    struct tls_net *tls = tls_net_of(net);
    struct tls_conn *c = conn_new(tls, address, handlers, arg);
    if (c == NULL)
        return NULL;
    c->session.asked_node = node;
    loop_post(net->loop, &c->work);
    return &c->conn;
}

int conn_accept(struct tls_net *net, int fd, const union net_address *from)
{
    char address[NET_ADDRESS_MAX];
    net_address_print(from, address, sizeof address);
    struct tls_conn *c = conn_new(net, address, NULL, NULL);
    if (c == NULL) {
        close(fd);
        return -ENOMEM;
    }
    c->fd = fd;
    c->is_accepted = true;
    net_opening_begun(c);
    net_enter(net);
    handshake_start(c);
    if (conn_is_alive(c) && !socket_watch(c, WATCH_READ))
        conn_fail(c, -ENOMEM, "%s", err_text(ENOMEM));
    conn_leave(c);
    return 0;
}

/* --- opening --- */

static void warn_of_expiry(struct tls_conn *c)
{
    uint64_t days = c->session.expired_s / DAY_S;
    if (c->session.expired_s > 0)
        log_warning(conn_net(c)->net.loop,
                    "net: %s: the certificate of node %" PRIu64 " expired %" PRIu64
                    " days ago; it will not be accepted for ever",
                    c->conn.address, c->conn.peer.node, days);
}

void conn_opened(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    c->phase = CONN_OPEN;
    c->conn.is_open = true;
    timer_stop(net->net.loop, &c->timer);
    if (c->counts_as_nobody)
        timer_start(net->net.loop, &c->timer, NET_NOBODY_MS * NS_PER_MS);
    if (c->conn.handlers->opened != NULL)
        c->conn.handlers->opened(c->conn.arg, &c->conn);
}

/* Asks the owner of the net, and tells the peer what came of it. */
static void let_in(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    const struct net_options *options = &net->net.options;
    const struct net_handlers *handlers = NULL;
    void *arg = NULL;
    if (c->is_nobody && net->nobody_count >= NET_NOBODIES_MAX) {
        conn_greet(c, NET_FRAME_REFUSAL);
        conn_fail(c, -PLX_ELIMIT, "too many without a certificate");
        return;
    }
    bool fine = options->accepted(options->arg, &c->conn, &handlers, &arg);
    if (!conn_is_alive(c))
        return; /* closed it */
    if (!fine) {
        conn_greet(c, NET_FRAME_REFUSAL);
        if (c->is_nobody)
            conn_fail(c, -PLX_ELIMIT, "has no certificate, and others have none as well");
        else
            conn_fail(c, -PLX_EDENIED, "node %" PRIu64 " is not wanted",
                      c->conn.peer.node);
        return;
    }
    assert(handlers != NULL);
    c->conn.handlers = handlers;
    c->conn.arg = arg;
    if (c->is_nobody) {
        c->counts_as_nobody = true;
        net->nobody_count++;
    }
    c->in.limits = (struct frame_limits){
        .head_max = c->is_nobody ? NET_NOBODY_HEAD_MAX : (uint32_t)NET_HEAD_MAX,
        .payload_max = c->is_nobody ? NET_NOBODY_PAYLOAD_MAX : (uint32_t)NET_PAYLOAD_MAX,
    };
    conn_greet(c, NET_FRAME_HELLO);
    if (conn_is_alive(c))
        conn_opened(c);
}

void conn_handshake_over(struct tls_conn *c)
{
    c->conn.peer = c->session.peer;
    c->is_nobody = c->conn.peer.node == 0;
    warn_of_expiry(c);
    if (!c->is_accepted) {
        c->phase = CONN_GREETING;
        return;
    }
    net_opening_ended(c);
    let_in(c);
}

/* --- where the loop calls --- */

static void conn_run(struct work *work)
{
    struct tls_conn *c = container_of(work, struct tls_conn, work);
    net_enter(conn_net(c));
    if (c->phase == CONN_START)
        connect_start(c);
    else if (conn_is_alive(c))
        conn_step(c, false);
    conn_leave(c);
}

static void conn_ready(void *arg, unsigned events)
{
    struct tls_conn *c = arg;
    net_enter(conn_net(c));
    if (c->phase == CONN_CONNECT) {
        connect_ended(c);
    } else if (conn_is_alive(c)) {
        if (events & WATCH_WRITE)
            c->waits_for_room = false;
        conn_step(c, events & WATCH_READ);
    }
    conn_leave(c);
}
