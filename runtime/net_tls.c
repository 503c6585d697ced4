/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real network: what belongs to no single connection. A net holds its credentials,
 * listens, and accepts; net_conn.c and net_conn_io.c do the rest.
 *
 * Strangers can connect, so what one of them can hold is bounded: NET_OPENING_MAX
 * connections are in their handshake at a time, for NET_OPEN_MS each; others wait in the
 * kernel. So that strangers do not keep nodes out, one gives way to a newcomer when it
 * has had NET_OPENING_KEEP_MS, which is enough for who means it, or has said nothing at
 * all for NET_SILENT_KEEP_MS. When descriptors are out, accepting rests for a moment.
 *
 * Destroying closes everything at once. From inside a handler, the memory goes when that
 * has returned.
 */
#include <unistd.h>

#include "runtime/log.h"
#include "runtime/net_tls_internal.h"

#define LISTEN_BACKLOG  1024 /* the kernel keeps so many waiting */
#define ACCEPTS_AT_ONCE 16U
#define ACCEPT_REST_MS  100U

struct tls_listener {
    SLIST_ENTRY(tls_listener) link;
    struct tls_net *net;
    int fd;
    struct watch *watch;
};

static void net_free(struct tls_net *net)
{
    assert(TAILQ_EMPTY(&net->conns) && TAILQ_EMPTY(&net->closed));
    assert(net->opening_count == 0 && net->nobody_count == 0);
    lookups_destroy(net->lookups);
    tls_context_put(net->context);
    free(net->input);
    free(net->plain);
    free(net->output);
    free(net);
}

void net_enter(struct tls_net *net)
{
    net->depth++;
}

void net_leave(struct tls_net *net)
{
    struct tls_conn *c;
    assert(net->depth > 0);
    if (net->depth > 1) {
        net->depth--;
        return;
    }
    while ((c = TAILQ_FIRST(&net->closed)) != NULL)
        conn_free(c); /* may call others, through buffer_put */
    net->depth--;
    if (net->is_destroyed)
        net_free(net);
}

/* --- accepting --- */

static void accepts_pause(struct tls_net *net, uint64_t look_again_ms)
{
    struct tls_listener *listener;
    net->accepts_paused = true;
    timer_start(net->net.loop, &net->accept_timer, look_again_ms * NS_PER_MS);
    SLIST_FOREACH (listener, &net->listeners, link)
        watch_set(listener->watch, 0);
}

static void accepts_resume(struct tls_net *net)
{
    struct tls_listener *listener;
    net->accepts_paused = false;
    SLIST_FOREACH (listener, &net->listeners, link) {
        if (watch_set(listener->watch, WATCH_READ) < 0)
            net->accepts_paused = true;
    }
    if (net->accepts_paused)
        timer_start(net->net.loop, &net->accept_timer, ACCEPT_REST_MS * NS_PER_MS);
    else
        timer_stop(net->net.loop, &net->accept_timer);
}

static void accept_again(struct timer *timer)
{
    struct tls_net *net = container_of(timer, struct tls_net, accept_timer);
    net->accepts_rest = false;
    accepts_resume(net);
}

void net_opening_begun(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    c->counts_as_opening = true;
    c->accepted_ns = loop_now_ns(net->net.loop);
    TAILQ_INSERT_TAIL(&net->opening, c, opening_link);
    net->opening_count++;
}

void net_opening_ended(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    assert(net->opening_count > 0 && c->counts_as_opening);
    c->counts_as_opening = false;
    TAILQ_REMOVE(&net->opening, c, opening_link);
    net->opening_count--;
    if (net->accepts_paused && !net->accepts_rest && !net->is_destroyed)
        accepts_resume(net);
}

/* How long it keeps its place in any case. */
static uint64_t keeps_until_ns(const struct tls_conn *c)
{
    bool is_silent = c->conn.heard_ns <= c->accepted_ns;
    uint64_t keep_ms = is_silent ? NET_SILENT_KEEP_MS : NET_OPENING_KEEP_MS;
    return c->accepted_ns + keep_ms * NS_PER_MS;
}

/* Of those in their handshake the one that gives way next. */
static struct tls_conn *next_to_go(const struct tls_net *net)
{
    struct tls_conn *c, *next = TAILQ_FIRST(&net->opening);
    TAILQ_FOREACH (c, &net->opening, opening_link) {
        if (keeps_until_ns(c) < keeps_until_ns(next))
            next = c;
    }
    return next;
}

/* Milliseconds until a newcomer can be taken; 0: now. */
static uint64_t ms_until_room(const struct tls_net *net)
{
    if (net->opening_count < NET_OPENING_MAX)
        return 0;
    uint64_t now_ns = loop_now_ns(net->net.loop);
    uint64_t until_ns = keeps_until_ns(next_to_go(net));
    return now_ns >= until_ns ? 0 : (until_ns - now_ns) / NS_PER_MS + 1;
}

/* False: nobody waits, or accepting must rest. */
static bool accept_one(struct tls_listener *listener)
{
    struct tls_net *net = listener->net;
    union net_address from = {.any.sa_family = AF_UNSPEC};
    socklen_t len = sizeof from;
    uint64_t wait_ms = ms_until_room(net);
    if (wait_ms > 0) {
        accepts_pause(net, wait_ms);
        return false;
    }
    int fd = accept4(listener->fd, &from.any, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        socket_prepare(fd);
        if (net->opening_count >= NET_OPENING_MAX)
            conn_give_way(next_to_go(net));
        return conn_accept(net, fd, &from) == 0;
    }
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        log_warning(net->net.loop, "net: accept: %s", err_text(errno));
        net->accepts_rest = true;
        accepts_pause(net, ACCEPT_REST_MS);
    }
    return false;
}

static void listener_ready(void *arg, unsigned events)
{
    struct tls_listener *listener = arg;
    struct tls_net *net = listener->net;
    (void)events;
    net_enter(net);
    for (uint32_t i = 0; i < ACCEPTS_AT_ONCE && !net->is_destroyed; i++)
        if (!accept_one(listener))
            break;
    net_leave(net);
}

/* --- listening --- */

static void listener_close(struct tls_listener *listener)
{
    watch_destroy(listener->watch);
    if (listener->fd >= 0)
        close(listener->fd);
    free(listener);
}

static int listener_bind(struct tls_listener *listener, const union net_address *address)
{
    int on = 1, off = 0;
    listener->fd = socket(address->any.sa_family,
                          SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener->fd < 0)
        return -errno;
    setsockopt(listener->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    /* "[::]" is for IPv4 too, whatever the system's default. */
    if (address->any.sa_family == AF_INET6)
        setsockopt(listener->fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(listener->fd, &address->any, net_address_len(address)) < 0 ||
        listen(listener->fd, LISTEN_BACKLOG) < 0)
        return -errno;
    listener->watch = watch_create(listener->net->net.loop, listener->fd, listener_ready,
                                   listener);
    if (listener->watch == NULL)
        return -ENOMEM;
    return watch_set(listener->watch, WATCH_READ) < 0 ? -ENOMEM : 0;
}

static uint16_t port_of(int fd)
{
    union net_address bound;
    socklen_t len = sizeof bound;
    if (getsockname(fd, &bound.any, &len) < 0)
        return 0;
    bool is_in = bound.any.sa_family == AF_INET;
    return ntohs(is_in ? bound.in.sin_port : bound.in6.sin6_port);
}

static int listen_at(struct tls_net *net, const union net_address *address,
                     uint16_t *ret_port)
{
    struct tls_listener *listener = calloc(1, sizeof *listener);
    if (listener == NULL)
        return -ENOMEM;
    listener->net = net;
    listener->fd = -1;
    int rc = listener_bind(listener, address);
    if (rc < 0) {
        listener_close(listener);
        return rc;
    }
    SLIST_INSERT_HEAD(&net->listeners, listener, link);
    net->listener_count++;
    if (ret_port != NULL)
        *ret_port = port_of(listener->fd);
    return 0;
}

/* A name may have addresses that are not of this machine, or of a kind that it does not
 * have, and the same one twice. One will do. */
static int listen_at_some(struct tls_net *net, const union net_address *addresses,
                          uint32_t count, uint16_t *ret_port)
{
    int result = -EADDRNOTAVAIL;
    for (uint32_t i = 0; i < count; i++) {
        bool is_same = false;
        for (uint32_t j = 0; j < i; j++)
            is_same |= memcmp(&addresses[i], &addresses[j], sizeof *addresses) == 0;
        int rc = is_same ? -EADDRNOTAVAIL : listen_at(net, &addresses[i], ret_port);
        if (rc == 0)
            result = 0;
        else if (rc != -EADDRNOTAVAIL && rc != -EAFNOSUPPORT)
            return rc;
    }
    return result;
}

static int tls_listen(struct net *net, const char *address, uint16_t *ret_port,
                      struct error *err)
{
    struct tls_net *tls = tls_net_of(net);
    union net_address found[NET_ADDRESSES_MAX];
    struct error why = {0};
    uint32_t count;
    if (tls_context_is_nobody(tls->context))
        return err_set(err, -PLX_EDENIED, "listen on %s: without a certificate", address);
    int rc = net_address_find(address, found, &count, &why);
    if (rc < 0)
        return err_set(err, rc, "listen on %s: %s", address, why.text);
    if (tls->listener_count + count > NET_LISTENERS_MAX)
        return err_set(err, -PLX_ELIMIT, "listen on %s: %s", address,
                       err_text(PLX_ELIMIT));
    rc = listen_at_some(tls, found, count, ret_port);
    return rc == 0 ? 0 : err_set(err, rc, "listen on %s: %s", address, err_text(rc));
}

/* --- life --- */

static int tls_set_credentials(struct net *net, const struct net_credentials *credentials,
                               struct error *err)
{
    struct tls_net *tls = tls_net_of(net);
    struct tls_context *context;
    int rc = tls_context_create(&net->options, credentials, &context, err);
    if (rc < 0)
        return rc;
    tls_context_put(tls->context);
    tls->context = context;
    return 0;
}

static void tls_destroy(struct net *net)
{
    struct tls_net *tls = tls_net_of(net);
    struct tls_listener *listener;
    struct tls_conn *c;
    assert(!tls->is_destroyed);
    net_enter(tls);
    tls->is_destroyed = true;
    while ((listener = SLIST_FIRST(&tls->listeners)) != NULL) {
        SLIST_REMOVE_HEAD(&tls->listeners, link);
        listener_close(listener);
    }
    timer_stop(net->loop, &tls->accept_timer);
    while ((c = TAILQ_FIRST(&tls->conns)) != NULL)
        conn_close(&c->conn);
    net_leave(tls);
}

static const struct net_ops tls_ops = {
    .destroy = tls_destroy,
    .set_credentials = tls_set_credentials,
    .listen = tls_listen,
    .connect = conn_connect,
    .close = conn_close,
    .pause = conn_pause,
    .send = conn_send,
};

int net_tls_create(const struct net_options *options, struct net **ret, struct error *err)
{
    struct tls_net *net = calloc(1, sizeof *net);
    if (net == NULL)
        return err_set(err, -ENOMEM, "net: %s", err_text(ENOMEM));
    net_init(&net->net, &tls_ops, options);
    TAILQ_INIT(&net->conns);
    TAILQ_INIT(&net->closed);
    TAILQ_INIT(&net->opening);
    SLIST_INIT(&net->listeners);
    net->accept_timer.fire = accept_again;
    net->lookups = lookups_create();
    net->input = malloc(NET_INPUT_BYTES);
    net->plain = malloc(TLS_RECORD_BYTES);
    net->output = malloc(OUT_CAP);
    int rc;
    if (net->lookups == NULL || net->input == NULL || net->plain == NULL ||
        net->output == NULL)
        rc = err_set(err, -ENOMEM, "net: %s", err_text(ENOMEM));
    else
        rc = tls_context_create(options, &options->credentials, &net->context, err);
    if (rc < 0) {
        net_free(net);
        return rc;
    }
    net->refused = metric_counter(options->loop, "parallax_net_refused_total",
                                  "Connections of other nodes that were not let in");
    net->sent_bytes = metric_counter(options->loop, "parallax_net_sent_bytes_total",
                                     "Bytes sent to other nodes, sealed");
    net->received_bytes = metric_counter(options->loop,
                                         "parallax_net_received_bytes_total",
                                         "Bytes received from other nodes, sealed");
    *ret = &net->net;
    return 0;
}
