/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session takes bytes up, piece by piece: a message of the handshake, a request's
 * header, or payload, which goes to the buffer of the write it belongs to. What is to be
 * sent is a list of replies whose bodies lie in the buffers the disk filled; they are
 * sent by whoever owns the session, all that there are at once, when the loop has done
 * what came with them.
 *
 * When a bound is reached the session is blocked and leaves its input where it is, until
 * a reply was sent or a buffer is free. A broken protocol or socket breaks the session:
 * what is queued is dropped, what is at the disk is waited for. Errors of the disk are
 * answers, never a reason to end.
 *
 * A session that drains (the client said goodbye, or the server stops) takes up nothing
 * more, answers all it has taken up, and ends when the last byte is sent. Ending gives
 * the disk back and tells the owner, from the loop, never from inside another call.
 */
#include "nbdserver/nbd_internal.h"

void nbd_shared_init(struct nbd_shared *shared, struct loop *loop, struct host *host)
{
    *shared = (struct nbd_shared){
        .loop = loop, .host = host, .buffers = host_buffers(host)};
    TAILQ_INIT(&shared->sessions);
    shared->requests =
        metric_counter(loop, "parallax_nbd_requests_total", "NBD requests received");
    shared->errors =
        metric_counter(loop, "parallax_nbd_errors_total", "NBD requests that failed");
    shared->bytes_in =
        metric_counter(loop, "parallax_nbd_received_bytes_total", "bytes from clients");
    shared->bytes_out =
        metric_counter(loop, "parallax_nbd_sent_bytes_total", "bytes to clients");
}

bool session_is_live(const struct session *s)
{
    return s->phase < PHASE_BROKEN;
}

static bool takes_input(const struct session *s)
{
    return s->phase < PHASE_DRAINING;
}

bool session_wants_input(const struct session *s)
{
    return takes_input(s) && s->blocked == BLOCKED_NOT;
}

static bool has_output(const struct session *s)
{
    return s->handshake_out.len > s->handshake_sent || !STAILQ_EMPTY(&s->replies);
}

/* --- blocked --- */

void session_block(struct session *s, enum session_blocked why)
{
    assert(s->blocked == BLOCKED_NOT && why != BLOCKED_NOT);
    s->blocked = why;
}

void session_unblock(struct session *s, enum session_blocked why)
{
    if (s->blocked == why && takes_input(s))
        loop_post(s->shared->loop, &s->resume_work);
}

static void resume_run(struct work *work)
{
    struct session *s = container_of(work, struct session, resume_work);
    s->blocked = BLOCKED_NOT;
    if (takes_input(s))
        s->events->resume(s);
}

/* The pool has room: taken here, because later it may be gone again. */
static void buffer_waiter_run(struct work *work)
{
    struct session *s = container_of(work, struct session, buffer_waiter);
    assert(s->blocked == BLOCKED_BUFFER && !s->granted);
    s->granted = buffer_create(s->shared->buffers, s->wanted_bytes);
    if (!s->granted) {
        buffer_pool_wait(s->shared->buffers, work);
        return;
    }
    s->shared->buffer_waiters--;
    session_unblock(s, BLOCKED_BUFFER);
}

static void stop_waiting(struct session *s)
{
    if (s->buffer_waiter.posted) {
        buffer_pool_wait_cancel(s->shared->buffers, &s->buffer_waiter);
        s->shared->buffer_waiters--;
    }
    struct buffer *granted = take(s->granted);
    buffer_put(granted);
}

/* Memory that was refused by the system, not by the pool's limit: no put will tell. */
void session_retry(struct session *s)
{
    if (!s->buffer_waiter.posted)
        return;
    struct buffer *buffer = buffer_create(s->shared->buffers, s->wanted_bytes);
    if (!buffer)
        return;
    stop_waiting(s);
    s->granted = buffer;
    session_unblock(s, BLOCKED_BUFFER);
}

/* --- input --- */

static size_t take_payload(struct session *s, const uint8_t *bytes, size_t len)
{
    size_t n = min_u64(len, s->receive_left);
    memcpy(s->receive_at, bytes, n);
    session_direct_done(s, n);
    return n;
}

bool session_direct(const struct session *s, uint8_t **ret_at, size_t *ret_len)
{
    if (!s->receiving)
        return false;
    *ret_at = s->receive_at;
    *ret_len = s->receive_left;
    return true;
}

void session_direct_done(struct session *s, size_t len)
{
    assert(s->receiving && len <= s->receive_left); /* N5 */
    s->receive_at += len;
    s->receive_left -= (uint32_t)len;
    if (s->receive_left == 0)
        request_received(s);
}

static size_t skip(struct session *s, size_t len)
{
    size_t n = min_u64(len, s->skip_bytes);
    s->skip_bytes -= n;
    if (s->skip_bytes == 0)
        request_skipped(s);
    return n;
}

static size_t take_message(struct session *s, const uint8_t *bytes, size_t len)
{
    switch (s->phase) {
    case PHASE_HELLO:
        return handshake_hello(s, bytes, len);
    case PHASE_OPTIONS:
        return handshake_option(s, bytes, len);
    case PHASE_OPENING:
        session_block(s, BLOCKED_OPENING);
        return 0;
    case PHASE_SERVING:
        return request_header(s, bytes, len);
    case PHASE_DRAINING:
    case PHASE_BROKEN:
    case PHASE_ENDED:
        break;
    }
    return 0;
}

size_t session_input(struct session *s, const uint8_t *bytes, size_t len)
{
    size_t at = 0;
    while (session_wants_input(s)) {
        size_t n;
        if (s->skip_bytes > 0) {
            n = skip(s, len - at);
        } else if (s->receiving) {
            n = take_payload(s, bytes + at, len - at);
        } else if (s->current) {
            if (!request_go_on(s))
                break;
            continue;
        } else {
            n = take_message(s, bytes + at, len - at);
        }
        if (n == 0)
            break;
        at += n;
    }
    session_kick(s);
    return takes_input(s) ? at : len; /* nobody wants what follows a goodbye */
}

/* --- output --- */

static uint32_t add_reply(const struct reply *reply, uint32_t skip_bytes,
                          struct iovec *iov)
{
    uint32_t count = 0;
    if (skip_bytes < reply->head_len) {
        iov[count].iov_base = (void *)(uintptr_t)(reply->head + skip_bytes);
        iov[count++].iov_len = reply->head_len - skip_bytes;
        skip_bytes = 0;
    } else {
        skip_bytes -= reply->head_len;
    }
    if (skip_bytes < reply->body_len) {
        iov[count].iov_base = (void *)(uintptr_t)(reply->body + skip_bytes);
        iov[count++].iov_len = reply->body_len - skip_bytes;
    }
    return count;
}

uint32_t session_output(const struct session *s, struct iovec *iov, uint32_t max)
{
    uint32_t count = 0, skip_bytes = s->first_sent;
    assert(max >= 3);
    if (s->handshake_out.len > s->handshake_sent) {
        iov[count].iov_base = s->handshake_out.bytes + s->handshake_sent;
        iov[count++].iov_len = s->handshake_out.len - s->handshake_sent;
    }
    const struct reply *reply;
    STAILQ_FOREACH(reply, &s->replies, link) {
        if (count + 2 > max)
            break;
        count += add_reply(reply, skip_bytes, iov + count);
        skip_bytes = 0;
    }
    return count;
}

static void handshake_out_done(struct session *s)
{
    writer_done(&s->handshake_out);
    s->handshake_out = (struct writer){0};
    s->handshake_sent = 0;
    if (s->listing)
        s->shared->lists--;
    s->listing = false;
}

static size_t handshake_bytes_sent(struct session *s, size_t len)
{
    size_t n = min_u64(len, s->handshake_out.len - s->handshake_sent);
    s->handshake_sent += n;
    if (n > 0 && s->handshake_sent == s->handshake_out.len) {
        handshake_out_done(s);
        session_unblock(s, BLOCKED_OUTPUT);
    }
    return n;
}

void session_sent(struct session *s, size_t len)
{
    metric_add(s->shared->bytes_out, len);
    len -= handshake_bytes_sent(s, len);
    while (len > 0) {
        struct reply *reply = STAILQ_FIRST(&s->replies);
        assert(reply);
        uint32_t left = reply->head_len + reply->body_len - s->first_sent;
        if (len < left) {
            s->first_sent += (uint32_t)len;
            break;
        }
        len -= left;
        s->first_sent = 0;
        s->output_since_ns = loop_now_ns(s->shared->loop);
        STAILQ_REMOVE_HEAD(&s->replies, link);
        reply_sent(s, reply);
    }
    if (!has_output(s)) {
        s->output_since_ns = 0;
        session_settle(s);
    }
}

static void output_run(struct work *work)
{
    struct session *s = container_of(work, struct session, output_work);
    if (session_is_live(s) && has_output(s))
        s->events->output(s);
}

/* While the disk has more to answer, replies are collected until the loop has handed out
 * what is done; the last one need not wait. */
void session_kick(struct session *s)
{
    if (!session_is_live(s))
        return;
    if (!has_output(s)) {
        session_settle(s);
        return;
    }
    if (s->output_since_ns == 0)
        s->output_since_ns = loop_now_ns(s->shared->loop);
    if (s->at_work == 0)
        s->events->output(s);
    else
        loop_post(s->shared->loop, &s->output_work);
}

uint64_t session_stalled_ns(const struct session *s)
{
    uint64_t now_ns = loop_now_ns(s->shared->loop), stalled_ns = 0;
    if (s->receiving)
        stalled_ns = now_ns - s->receive_since_ns;
    if (s->output_since_ns != 0)
        stalled_ns = max_u64(stalled_ns, now_ns - s->output_since_ns);
    return stalled_ns;
}

/* --- life --- */

static void end_run(struct work *work);

void session_init(struct session *s, struct nbd_shared *shared,
                  const struct session_events *events)
{
    *s = (struct session){.shared = shared, .events = events};
    s->number = ++shared->sessions_made;
    s->buffer_waiter.run = buffer_waiter_run;
    s->output_work.run = output_run;
    s->resume_work.run = resume_run;
    s->end_work.run = end_run;
    STAILQ_INIT(&s->replies);
    TAILQ_INSERT_TAIL(&shared->sessions, s, link);
    handshake_begin(s);
}

void session_work_begin(struct session *s)
{
    s->at_work++;
}

void session_work_end(struct session *s)
{
    assert(s->at_work > 0); /* N1 */
    s->at_work--;
}

void session_settle(struct session *s)
{
    if (s->at_work > 0 || takes_input(s) || s->phase == PHASE_ENDED)
        return;
    if (s->phase == PHASE_DRAINING && has_output(s))
        return;
    loop_post(s->shared->loop, &s->end_work);
}

static void end_run(struct work *work)
{
    struct session *s = container_of(work, struct session, end_work);
    assert(s->at_work == 0 && s->request_count == 0); /* N1, N2 */
    assert(s->payload_bytes == 0 && s->piece_count == 0); /* N3 */
    s->phase = PHASE_ENDED;
    loop_post_cancel(s->shared->loop, &s->output_work);
    loop_post_cancel(s->shared->loop, &s->resume_work);
    TAILQ_REMOVE(&s->shared->sessions, s, link);
    handshake_out_done(s);
    session_free_idle(s);
    if (s->disk)
        disk_close(s->disk);
    s->events->ended(s);
}

void session_drain(struct session *s)
{
    if (!takes_input(s))
        return;
    s->phase = PHASE_DRAINING;
    stop_waiting(s);
    request_drop_current(s);
    session_kick(s);
}

static void drop_output(struct session *s)
{
    struct reply *reply;
    while ((reply = STAILQ_FIRST(&s->replies))) {
        STAILQ_REMOVE_HEAD(&s->replies, link);
        reply_sent(s, reply);
    }
    handshake_out_done(s);
    s->first_sent = 0;
    s->output_since_ns = 0;
}

void session_break(struct session *s, const char *why)
{
    if (!session_is_live(s))
        return;
    s->phase = PHASE_BROKEN;
    s->broken_why = why;
    log_debug(s->shared->loop, "nbd client %llu of %s: %s", (unsigned long long)s->number,
              s->export[0] ? s->export : "no disk", why);
    stop_waiting(s);
    request_drop_current(s);
    drop_output(s);
    session_settle(s);
}
