/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of a connection. In: one recv of up to NET_INPUT_BYTES into memory of the
 * net, through the session straight to where a message is put together, and each message
 * to its handler. Out: messages are gathered into whole TLS records and sealed one behind
 * the other, up to NET_OUTPUT_BYTES, and go with one send.
 *
 * Reading stops while the owner has paused, or while the pool has no buffer for the next
 * payload: what came already and is not taken up (one recv at most) is kept in the stash,
 * the rest stays in the kernel and holds the peer up. What the kernel does not take is
 * kept, and nothing more is sealed until it did.
 *
 * All of it happens in conn_step. A step that fails still sends what is sealed: it may be
 * the alert or the refusal that tells the peer why.
 */
#include <sys/socket.h>

#include "runtime/net_tls_internal.h"

#define STEP_SEND_BYTES (1 * MIB)              /* then the others' turn */
#define REST_BYTES_MAX  (4 * NET_OUTPUT_BYTES) /* only a peer at fault gets there */

struct out_message {
    STAILQ_ENTRY(out_message) link;
    uint32_t head_len; /* with the frame's header */
    uint32_t slice_count;
    uint32_t piece, piece_at; /* gathered up to there; piece 0 is the head */
    uint8_t *head;            /* behind the slices */
    struct slice slices[];
};

/* --- messages to send --- */

static struct out_message *message_new(const struct net_send *send, uint64_t payload_len)
{
    size_t head_len = sizeof(struct net_frame) + send->head_len;
    size_t slices_len = send->slice_count * sizeof(struct slice);
    struct out_message *m = malloc(sizeof *m + slices_len + head_len);
    if (m == NULL)
        return NULL;
    struct net_frame frame = {
        .magic = le32_of(NET_FRAME_MAGIC),
        .version = le16_of(NET_FRAME_VERSION),
        .kind = le16_of(NET_FRAME_MESSAGE),
        .head_len = le32_of((uint32_t)send->head_len),
        .payload_len = le32_of((uint32_t)payload_len),
    };
    *m = (struct out_message){.head_len = (uint32_t)head_len,
                              .slice_count = send->slice_count};
    m->head = (uint8_t *)m->slices + slices_len;
    memcpy(m->head, &frame, sizeof frame);
    memcpy(m->head + sizeof frame, send->head, send->head_len);
    for (uint32_t i = 0; i < send->slice_count; i++) {
        m->slices[i] = send->slices[i];
        buffer_get(m->slices[i].buffer);
    }
    return m;
}

static void message_free(struct out_message *m)
{
    for (uint32_t i = 0; i < m->slice_count; i++)
        buffer_put(m->slices[i].buffer);
    free(m);
}

int conn_send(struct net_conn *conn, const struct net_send *send)
{
    struct tls_conn *c = container_of(conn, struct tls_conn, conn);
    if (c->phase >= CONN_FAILED)
        return -ENOTCONN;
    uint64_t payload_len = net_send_payload(send);
    struct out_message *m = message_new(send, payload_len);
    if (m == NULL)
        return -ENOMEM;
    STAILQ_INSERT_TAIL(&c->queue, m, link);
    conn->queued_bytes += m->head_len + payload_len;
    if (c->phase == CONN_OPEN && !c->waits_for_room)
        loop_post(conn->net->loop, &c->work);
    return 0;
}

/* --- gathering and sealing --- */

static bool message_is_gathered(const struct out_message *m)
{
    return m->piece > m->slice_count;
}

/* What is left of the current piece; of none that is empty. */
static const uint8_t *message_piece(struct out_message *m, size_t *ret_len)
{
    while (!message_is_gathered(m)) {
        size_t len = m->piece == 0 ? m->head_len : m->slices[m->piece - 1].len;
        if (m->piece_at < len) {
            const uint8_t *start = m->piece == 0 ? m->head
                                                 : slice_data(m->slices[m->piece - 1]);
            *ret_len = len - m->piece_at;
            return start + m->piece_at;
        }
        m->piece++;
        m->piece_at = 0;
    }
    return NULL;
}

/* The next record's worth: where it lies if it is in one piece, else copied together,
 * over the bounds of messages. */
static const uint8_t *gather(struct tls_conn *c, size_t *ret_len)
{
    uint8_t *plain = conn_net(c)->plain;
    size_t len = 0;
    struct out_message *m = STAILQ_FIRST(&c->queue);
    while (m != NULL && len < TLS_RECORD_BYTES) {
        size_t piece_len;
        const uint8_t *piece = message_piece(m, &piece_len);
        if (piece == NULL) {
            m = STAILQ_NEXT(m, link);
            continue;
        }
        size_t n = min_u64(piece_len, TLS_RECORD_BYTES - len);
        m->piece_at += (uint32_t)n;
        if (n == TLS_RECORD_BYTES) {
            *ret_len = n;
            return piece;
        }
        memcpy(plain + len, piece, n);
        len += n;
    }
    *ret_len = len;
    return plain;
}

static void drop_gathered(struct tls_conn *c)
{
    struct out_message *m;
    size_t len;
    while ((m = STAILQ_FIRST(&c->queue)) != NULL && message_piece(m, &len) == NULL) {
        STAILQ_REMOVE_HEAD(&c->queue, link);
        message_free(m);
    }
}

/* Fills the net's output from the queue. */
static void seal(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    struct error err = {0};
    while (net->out_len < NET_OUTPUT_BYTES && conn_is_alive(c)) {
        size_t len;
        const uint8_t *plain = gather(c, &len);
        if (len == 0)
            return;
        if (tls_session_write(&c->session, plain, len, &err) < 0)
            conn_fail(c, err.code, "%s", err.text);
        c->plain_unsent += len;
        drop_gathered(c);
    }
}

void conn_greet(struct tls_conn *c, enum net_frame_kind kind)
{
    struct error err = {0};
    struct net_frame frame = {
        .magic = le32_of(NET_FRAME_MAGIC),
        .version = le16_of(NET_FRAME_VERSION),
        .kind = le16_of((uint16_t)kind),
    };
    if (tls_session_write(&c->session, &frame, sizeof frame, &err) < 0)
        conn_fail(c, err.code, "%s", err.text);
}

/* --- to the socket --- */

static bool rest_add(struct tls_conn *c, const void *bytes, size_t len)
{
    size_t kept = c->rest_len - c->rest_at;
    if (len > REST_BYTES_MAX - kept)
        return false;
    if (c->rest_len + len > c->rest_cap) {
        uint8_t *grown = malloc(kept + len);
        if (grown == NULL)
            return false;
        if (kept > 0)
            memcpy(grown, c->rest + c->rest_at, kept);
        free(c->rest);
        c->rest = grown;
        c->rest_at = 0;
        c->rest_len = kept;
        c->rest_cap = kept + len;
    }
    memcpy(c->rest + c->rest_len, bytes, len);
    c->rest_len += len;
    return true;
}

bool conn_take_output(void *arg, const void *bytes, size_t len)
{
    struct tls_conn *c = arg;
    struct tls_net *net = conn_net(c);
    if (c->rest_len > 0)
        return rest_add(c, bytes, len);
    if (len > OUT_CAP - net->out_len)
        return false;
    memcpy(net->output + net->out_len, bytes, len);
    net->out_len += len;
    return true;
}

/* left sealed bytes remain: no more of the plaintext than that can be untaken (N4). */
static void note_sent(struct tls_conn *c, size_t sent, size_t left)
{
    uint64_t unsent = min_u64(c->plain_unsent, left);
    assert(c->conn.queued_bytes >= c->plain_unsent - unsent);
    c->conn.queued_bytes -= c->plain_unsent - unsent;
    c->plain_unsent = unsent;
    metric_add(conn_net(c)->sent_bytes, sent);
}

/* Returns how many of the bytes the kernel took. A failed connection's last words are
 * sent too, and nobody hears if that does not work. */
static size_t socket_send(struct tls_conn *c, const uint8_t *bytes, size_t len)
{
    size_t at = 0;
    while (at < len && !c->waits_for_room) {
        ssize_t n = send(c->fd, bytes + at, len - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            at += (size_t)n;
            c->waits_for_room = at < len;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            c->waits_for_room = true;
        } else if (errno != EINTR) {
            conn_fail(c, -errno, "%s", err_text(errno));
            break;
        }
    }
    note_sent(c, at, len - at);
    return at;
}

static void rest_send(struct tls_conn *c)
{
    c->rest_at += socket_send(c, c->rest + c->rest_at, c->rest_len - c->rest_at);
    if (c->rest_at < c->rest_len)
        return;
    free(take(c->rest));
    c->rest_at = c->rest_len = c->rest_cap = 0;
}

/* What is sealed in the net's output; the part that does not go is the connection's. */
static size_t output_send(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    size_t len = net->out_len, sent = socket_send(c, net->output, len);
    net->out_len = 0;
    if (sent < len && conn_is_alive(c) && !rest_add(c, net->output + sent, len - sent))
        conn_fail(c, -ENOMEM, "%s", err_text(ENOMEM));
    return sent;
}

static void send_all(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    size_t sent = 0;
    for (;;) {
        if (c->rest_len > 0)
            rest_send(c);
        if (c->rest_len > 0) {
            assert(net->out_len == 0);
            return;
        }
        if (c->phase == CONN_OPEN)
            seal(c);
        if (net->out_len == 0)
            return;
        sent += output_send(c);
        if (sent >= STEP_SEND_BYTES && c->phase == CONN_OPEN) {
            loop_post(net->net.loop, &c->work);
            return;
        }
    }
}

/* --- from the socket --- */

static bool reading_waits(const struct tls_conn *c)
{
    return (c->conn.is_paused && c->phase == CONN_OPEN) || c->buffer_waiter.posted;
}

/* Called from inside somebody's buffer_put: takes the buffer and leaves the rest to the
 * loop. */
void conn_buffer_freed(struct work *waiter)
{
    struct tls_conn *c = container_of(waiter, struct tls_conn, buffer_waiter);
    struct net *net = c->conn.net;
    assert(frame_in_wants_buffer(&c->in));
    c->in.payload = buffer_create(net->options.buffers, c->in.payload_len);
    c->conn.is_starved = c->in.payload == NULL;
    if (c->in.payload == NULL)
        buffer_pool_wait(net->options.buffers, waiter);
    else
        loop_post(net->loop, &c->work);
}

/* The payload that begins needs a place; without one reading waits, unless there is
 * nothing that could be put back. */
static bool get_buffer(struct tls_conn *c)
{
    struct buffer_pool *pool = c->conn.net->options.buffers;
    c->in.payload = buffer_create(pool, c->in.payload_len);
    if (c->in.payload == NULL && buffer_pool_used_bytes(pool) == 0) {
        conn_fail(c, -ENOMEM, "no memory for a payload of %u bytes", c->in.payload_len);
    } else if (c->in.payload == NULL) {
        c->conn.is_starved = true;
        buffer_pool_wait(pool, &c->buffer_waiter);
    }
    return c->in.payload != NULL;
}

static void take_greeting(struct tls_conn *c)
{
    if (c->in.kind == NET_FRAME_REFUSAL) {
        conn_fail(c, -PLX_EDENIED, "it does not let us in");
        return;
    }
    frame_in_next(&c->in);
    c->in.limits = (struct frame_limits){.head_max = (uint32_t)NET_HEAD_MAX,
                                         .payload_max = (uint32_t)NET_PAYLOAD_MAX};
    conn_opened(c);
}

/* One whole frame. The handler may close the connection. */
static void take_frame(struct tls_conn *c)
{
    if (c->phase == CONN_GREETING) {
        take_greeting(c);
        return;
    }
    struct slice payload = {.buffer = take(c->in.payload), .len = c->in.payload_len};
    c->conn.handlers->received(c->conn.arg, &c->conn, c->in.head, c->in.head_len,
                               payload);
    if (conn_is_alive(c))
        frame_in_next(&c->in);
}

/* False: nothing more can be read from the session for now. */
static bool read_some(struct tls_conn *c)
{
    struct error err = {0};
    size_t len, got;
    if (frame_in_wants_buffer(&c->in) && !get_buffer(c))
        return false;
    uint8_t *place = frame_in_place(&c->in, &len);
    int rc = tls_session_read(&c->session, place, len, &got, &err);
    if (rc == -EAGAIN)
        return false;
    if (rc == 0)
        rc = frame_in_got(&c->in, got, &err);
    if (rc < 0)
        conn_fail(c, rc, "%s", err.text);
    return rc == 0;
}

static void shake_hands(struct tls_conn *c)
{
    struct error err = {0};
    int rc = tls_session_handshake(&c->session, &err);
    if (rc == 0)
        conn_handshake_over(c);
    else if (rc != -EAGAIN)
        conn_fail(c, rc, "%s", err.text);
}

/* With all that has come: until it is used up, or reading must wait. */
static void decode(struct tls_conn *c)
{
    if (c->phase == CONN_HANDSHAKE)
        shake_hands(c);
    if (c->phase == CONN_HANDSHAKE)
        return; /* all was used, and it goes on */
    c->has_input = true;
    while (conn_is_alive(c) && !reading_waits(c)) {
        bool more = read_some(c);
        if (!more && conn_is_alive(c) && !reading_waits(c)) {
            c->has_input = false;
            return;
        }
        if (more && frame_in_is_whole(&c->in))
            take_frame(c);
    }
}

/* What the session has not taken must outlive the net's input memory. */
static void stash_rest(struct tls_conn *c)
{
    struct tls_session *session = &c->session;
    size_t left = session->in_len;
    if (left > 0 && c->stash == NULL) {
        c->stash = malloc(left);
        if (c->stash == NULL) {
            conn_fail(c, -ENOMEM, "%s", err_text(ENOMEM));
            return;
        }
        memcpy(c->stash, session->in, left);
        c->stash_at = 0;
        c->stash_len = left;
    } else if (left > 0) {
        c->stash_at = c->stash_len - left;
    } else {
        free(take(c->stash));
    }
}

static void decode_stash(struct tls_conn *c)
{
    if (c->stash != NULL) {
        c->session.in = c->stash + c->stash_at;
        c->session.in_len = c->stash_len - c->stash_at;
    }
    decode(c);
    if (conn_is_alive(c))
        stash_rest(c);
    c->session.in_len = 0;
}

static void receive(struct tls_conn *c)
{
    struct tls_net *net = conn_net(c);
    ssize_t n;
    do {
        n = recv(c->fd, net->input, NET_INPUT_BYTES, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return;
    if (n < 0) {
        conn_fail(c, -errno, "%s", err_text(errno));
        return;
    }
    if (n == 0) {
        conn_fail(c, -ECONNRESET, "it has closed the connection");
        return;
    }
    c->conn.heard_ns = loop_now_ns(net->net.loop);
    metric_add(net->received_bytes, (uint64_t)n);
    c->session.in = net->input;
    c->session.in_len = (size_t)n;
    decode(c);
    if (conn_is_alive(c))
        stash_rest(c);
    c->session.in_len = 0;
}

void conn_pause(struct net_conn *conn, bool paused)
{
    struct tls_conn *c = container_of(conn, struct tls_conn, conn);
    if (!paused && conn_is_alive(c))
        loop_post(conn->net->loop, &c->work);
}

/* --- a step --- */

static void watch_update(struct tls_conn *c)
{
    unsigned events = (reading_waits(c) ? 0U : WATCH_READ) |
                      (c->waits_for_room ? WATCH_WRITE : 0U);
    if (watch_set(c->watch, events) < 0)
        conn_fail(c, -ENOMEM, "its socket cannot be watched");
}

void conn_step(struct tls_conn *c, bool is_readable)
{
    struct tls_net *net = conn_net(c);
    assert(net->out_len == 0); /* N3 */
    if (!c->is_accepted && c->phase == CONN_HANDSHAKE && !is_readable)
        decode(c); /* begins it */
    if (conn_is_alive(c) && c->has_input && !reading_waits(c))
        decode_stash(c);
    if (conn_is_alive(c) && is_readable && !c->has_input && !reading_waits(c))
        receive(c);
    if (c->phase == CONN_CLOSED) {
        net->out_len = 0; /* the owner does not care any more */
        return;
    }
    if (c->session.ssl != NULL)
        send_all(c);
    net->out_len = 0;
    if (conn_is_alive(c))
        watch_update(c);
}

void conn_io_done(struct tls_conn *c)
{
    struct out_message *m;
    while ((m = STAILQ_FIRST(&c->queue)) != NULL) {
        STAILQ_REMOVE_HEAD(&c->queue, link);
        message_free(m);
    }
    free(take(c->rest));
    free(take(c->stash));
}
