/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A socket and its session. When the socket is readable, as much as there is, up to
 * NBD_AREA_BYTES, comes into the server's area in one call and goes through the session;
 * payload of a write that has begun goes straight to its buffer in the same call. What
 * the session cannot take up (part of a header, or all that follows when it is blocked)
 * is kept for the connection. Replies go out with one call for all there are.
 *
 * A socket error breaks the session; end of input drains it. A connection that takes too
 * long over its handshake, its payload or our replies is broken by connection_tick, and
 * much sooner while others wait for the buffers it holds.
 *
 * The socket is closed when the session has ended.
 */
#include <sys/socket.h>
#include <unistd.h>

#include "nbdserver/server_internal.h"

static struct connection *connection_of(struct session *s)
{
    return container_of(s, struct connection, session);
}

/* --- output --- */

/* A blocked session's socket stays watched until it is found readable: mostly the reason
 * is gone by then. */
static void watch_update(struct connection *c)
{
    struct session *s = &c->session;
    if (session_wants_input(s))
        c->watches_input = true;
    unsigned wanted = (c->watches_input ? WATCH_READ : 0U) |
                      (c->waits_for_room ? WATCH_WRITE : 0U);
    if (!session_is_live(s))
        wanted = 0;
    if (watch_set(c->watch, wanted) < 0)
        session_break(s, "its socket cannot be watched");
}

static void output(struct session *s)
{
    struct connection *c = connection_of(s);
    struct iovec iov[NBD_IOV_MAX];
    struct msghdr message = {.msg_iov = iov};
    while (session_is_live(s) && !c->waits_for_room) {
        size_t len = 0;
        message.msg_iovlen = session_output(s, iov, NBD_IOV_MAX);
        if (message.msg_iovlen == 0)
            return;
        for (size_t i = 0; i < message.msg_iovlen; i++)
            len += iov[i].iov_len;
        ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN) {
            session_break(s, "the client does not listen any more");
            return;
        }
        if (n > 0)
            session_sent(s, (size_t)n);
        c->waits_for_room = n < 0 || (size_t)n < len;
    }
    watch_update(c);
}

/* --- input --- */

static void stash_free(struct connection *c)
{
    if (c->stash != c->small)
        free(c->stash);
    c->stash = NULL;
    c->stash_len = 0;
}

static void stash_keep(struct connection *c, const uint8_t *bytes, size_t len)
{
    assert(!c->stash && len <= NBD_AREA_BYTES);
    if (len == 0)
        return;
    c->stash = len <= sizeof c->small ? c->small : malloc(len);
    if (!c->stash) {
        session_break(&c->session, "out of memory");
        return;
    }
    memcpy(c->stash, bytes, len);
    c->stash_len = (uint32_t)len;
}

/* The stash goes back to the front of the area. */
static size_t stash_take(struct connection *c)
{
    size_t len = c->stash_len;
    if (len > 0)
        memcpy(c->server->area, c->stash, len);
    stash_free(c);
    return len;
}

static void feed(struct connection *c, size_t len)
{
    uint8_t *area = c->server->area;
    size_t taken = session_input(&c->session, area, len);
    stash_keep(c, area + taken, len - taken);
}

/* Where large payload is to be expected, little of it should take the detour through the
 * area. */
static size_t area_wanted(const struct session *s, size_t used)
{
    size_t wanted = s->expects_large ? used + NBD_AREA_SMALL_BYTES : NBD_AREA_BYTES;
    return min_u64(wanted, NBD_AREA_BYTES) - used;
}

static void received(struct connection *c, size_t direct, size_t kept, size_t len)
{
    struct session *s = &c->session;
    metric_add(s->shared->bytes_in, len);
    size_t n = min_u64(direct, len);
    if (n > 0)
        session_direct_done(s, n);
    feed(c, kept + len - n);
}

static void input(struct connection *c)
{
    struct session *s = &c->session;
    struct iovec iov[2];
    uint8_t *direct_at = NULL;
    size_t direct = 0;
    int count = 0;
    size_t kept = stash_take(c);
    if (session_direct(s, &direct_at, &direct)) {
        assert(kept == 0); /* payload takes all there is */
        iov[count++] = (struct iovec){direct_at, direct};
    }
    iov[count++] = (struct iovec){c->server->area + kept, area_wanted(s, kept)};
    ssize_t n = readv(c->fd, iov, count);
    if (n > 0) {
        received(c, direct, kept, (size_t)n);
    } else if (n == 0) {
        session_drain(s);
    } else {
        stash_keep(c, c->server->area, kept);
        if (errno != EAGAIN && errno != EINTR)
            session_break(s, "its socket failed");
    }
}

static void resume(struct session *s)
{
    struct connection *c = connection_of(s);
    feed(c, stash_take(c));
    watch_update(c);
}

static void ready(void *arg, unsigned events)
{
    struct connection *c = arg;
    struct session *s = &c->session;
    if (events & WATCH_WRITE) {
        c->waits_for_room = false;
        output(s);
    }
    if (events & WATCH_READ) {
        c->watches_input = session_wants_input(s);
        if (c->watches_input)
            input(c);
        /* Many clients send a header and its payload with one call each: the second is
         * most likely here by now, and a turn of the loop costs more than a look. */
        if (s->receiving && session_wants_input(s))
            input(c);
    }
    watch_update(c);
}

/* --- life --- */

static void ended(struct session *s)
{
    struct connection *c = connection_of(s);
    watch_destroy(c->watch);
    close(c->fd);
    stash_free(c);
    server_forget(c->server, c);
    free(c);
}

static const struct session_events events = {
    .output = output,
    .resume = resume,
    .ended = ended,
};

int connection_create(struct nbd_server *server, int fd)
{
    struct connection *c = calloc(1, sizeof *c);
    if (!c)
        goto fail;
    c->server = server;
    c->fd = fd;
    c->since_ns = loop_now_ns(server->shared.loop);
    c->watch = watch_create(server->shared.loop, fd, ready, c);
    if (!c->watch || watch_set(c->watch, WATCH_READ) < 0)
        goto fail;
    c->watches_input = true;
    session_init(&c->session, &server->shared, &events);
    TAILQ_INSERT_TAIL(&server->connections, c, link);
    server->connection_count++;
    return 0;
fail:
    if (c)
        watch_destroy(c->watch);
    free(c);
    close(fd);
    return -ENOMEM;
}

void connection_tick(struct connection *c, bool pressed)
{
    struct session *s = &c->session;
    uint64_t age_ns = loop_now_ns(s->shared->loop) - c->since_ns;
    uint64_t stalled_ns = session_stalled_ns(s);
    uint64_t limit_ns = NBD_STALL_MS * NS_PER_MS;
    if (pressed && s->payload_bytes > 0)
        limit_ns = NBD_STALL_PRESSED_MS * NS_PER_MS;
    const char *why = NULL;
    if (s->phase < PHASE_OPENING && age_ns > NBD_HANDSHAKE_MS * NS_PER_MS)
        why = "the handshake takes too long";
    else if (stalled_ns > limit_ns)
        why = "the client has stalled";
    if (!why) {
        session_retry(s);
        return;
    }
    if (session_is_live(s))
        metric_add(c->server->dropped, 1);
    session_break(s, why);
}
