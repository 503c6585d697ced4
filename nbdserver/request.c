/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request's header is checked against the table of commands, and the request goes to
 * the disk as one piece, or, if it is longer than a buffer, as several; a WRITE's pieces
 * as their payload arrives. When the last piece is done the reply is queued; a READ's
 * pieces are replies themselves. Requests finish in any order.
 *
 *     header -> current -> [pieces at the disk] -> [replies queued] -> sent, released
 *
 * A request that may not be is answered with an error, after the payload it brought has
 * been skipped. The first error of a piece is the error of the request. A long READ
 * without structured replies cannot be answered in parts that stand apart: it has the
 * connection to itself, its pieces go out in order, and an error after the first ends
 * the connection, as the protocol asks for.
 *
 * When the session ends, a request whose payload is not whole is forgotten; the pieces
 * it has at the disk are waited for.
 */
#include "nbdserver/nbd_internal.h"

static const struct command *command_of(uint16_t type);

/* --- requests and pieces --- */

static struct request *request_create(struct session *s)
{
    struct request *request = SLIST_FIRST(&s->idle_requests);
    if (request)
        SLIST_REMOVE_HEAD(&s->idle_requests, link);
    else
        request = malloc(sizeof *request);
    if (!request)
        return NULL;
    memset(request, 0, offsetof(struct request, text));
    request->session = s;
    s->request_count++;
    return request;
}

void request_release(struct request *request)
{
    struct session *s = request->session;
    if (request->issuing || request->pieces > 0 || request->pending > 0 ||
        request->reply_queued)
        return;
    assert(s->request_count > 0); /* N2 */
    s->request_count--;
    free(request->status);
    SLIST_INSERT_HEAD(&s->idle_requests, request, link);
    session_unblock(s, BLOCKED_ROOM);
}

void session_free_idle(struct session *s)
{
    struct request *request;
    while ((request = SLIST_FIRST(&s->idle_requests))) {
        SLIST_REMOVE_HEAD(&s->idle_requests, link);
        free(request);
    }
    struct piece *piece;
    while ((piece = SLIST_FIRST(&s->idle_pieces))) {
        SLIST_REMOVE_HEAD(&s->idle_pieces, link);
        free(piece);
    }
}

void piece_free(struct piece *piece)
{
    struct session *s = piece->request->session;
    struct buffer *buffer = take(piece->io.buffer);
    if (buffer) {
        assert(s->payload_bytes >= buffer->capacity); /* N3 */
        s->payload_bytes -= buffer->capacity;
    }
    assert(s->piece_count > 0 && piece->request->pieces > 0);
    s->piece_count--;
    piece->request->pieces--;
    SLIST_INSERT_HEAD(&s->idle_pieces, piece, link);
    session_unblock(s, BLOCKED_ROOM);
    /* Last, because it may call whoever waits for buffers. */
    buffer_put(buffer);
}

static void piece_done(struct disk_io *io)
{
    struct piece *piece = container_of(io, struct piece, io);
    struct request *request = piece->request;
    struct session *s = request->session;
    session_work_end(s);
    request->pending--;
    if (io->result < 0)
        request_fail(request, io->result, NULL);
    bool is_last = request->pending == 0 && !request->issuing;
    if (io->op == DISK_READ && request->error == 0 && session_is_live(s))
        reply_data(piece, is_last);
    else
        piece_free(piece);
    request_work_done(request);
}

static void finish(struct request *request)
{
    bool is_answered = request->type == NBD_CMD_READ && request->issued_bytes > 0;
    if (!session_is_live(request->session))
        return;
    if (request->error == 0 && is_answered)
        return;
    if (!request->header_sent) {
        reply_result(request);
        return;
    }
    request->pending++; /* the caller is not done with it */
    session_break(request->session, "a long read failed half-way");
    request->pending--;
}

void request_work_done(struct request *request)
{
    struct session *s = request->session;
    if (!request->issuing && request->pending == 0)
        finish(request);
    else if (request->issuing)
        session_unblock(s, BLOCKED_ROOM);
    request_release(request);
    if (session_is_live(s))
        session_kick(s);
    else
        session_settle(s);
}

/* All that the request asks for is at the disk, or it is refused. */
static void issued(struct request *request)
{
    request->issuing = false;
    if (request->pending == 0)
        finish(request);
    request_release(request);
}

static struct piece *piece_create(struct request *request)
{
    struct session *s = request->session;
    struct piece *piece = SLIST_FIRST(&s->idle_pieces);
    if (piece)
        SLIST_REMOVE_HEAD(&s->idle_pieces, link);
    else
        piece = malloc(sizeof *piece);
    if (!piece)
        return NULL;
    piece->request = request;
    piece->reply.of = REPLY_OF_PIECE;
    piece->io = (struct disk_io){.done = piece_done, .opened = s->opened};
    s->piece_count++;
    request->pieces++;
    return piece;
}

static void piece_submit(struct piece *piece)
{
    struct session *s = piece->request->session;
    if (piece->request->flags & NBD_CMD_FLAG_FUA)
        piece->io.flags |= DISK_FUA;
    piece->request->pending++;
    session_work_begin(s);
    disk_submit(s->disk, &piece->io);
}

/* --- payload --- */

/* A buffer, or NULL: blocked. Those who wait already go first. */
static struct buffer *payload_buffer(struct session *s, uint64_t bytes)
{
    if (s->payload_bytes > 0 && s->payload_bytes + bytes > NBD_PAYLOAD_BYTES_MAX) {
        session_block(s, BLOCKED_ROOM);
        return NULL;
    }
    struct buffer *buffer = take(s->granted);
    if (!buffer && s->shared->buffer_waiters == 0)
        buffer = buffer_create(s->shared->buffers, bytes);
    if (buffer) {
        assert(buffer->capacity >= bytes);
        return buffer;
    }
    session_block(s, BLOCKED_BUFFER);
    s->wanted_bytes = bytes;
    s->shared->buffer_waiters++;
    buffer_pool_wait(s->shared->buffers, &s->buffer_waiter);
    return NULL;
}

/* The next piece of a READ or WRITE, with its buffer. NULL: blocked. */
static struct piece *payload_piece(struct request *request)
{
    struct session *s = request->session;
    uint64_t offset_bytes = request->offset_bytes + request->issued_bytes;
    uint64_t start = round_down_u64(offset_bytes, BLOCK_SIZE);
    uint64_t end = min_u64(start + DISK_IO_BYTES_MAX,
                           request->offset_bytes + request->len_bytes);
    if (s->piece_count >= NBD_PIECES_MAX) {
        session_block(s, BLOCKED_ROOM);
        return NULL;
    }
    struct buffer *buffer =
        payload_buffer(s, round_up_u64(end - start, BLOCK_SIZE));
    if (!buffer)
        return NULL;
    struct piece *piece = piece_create(request);
    if (!piece) {
        buffer_put(buffer);
        session_break(s, "out of memory");
        return NULL;
    }
    s->payload_bytes += buffer->capacity;
    piece->io.buffer = buffer;
    piece->io.offset_bytes = offset_bytes;
    piece->io.len_bytes = end - offset_bytes;
    request->issued_bytes += (uint32_t)piece->io.len_bytes;
    return piece;
}

/* --- to the disk, by command --- */

static bool issue_read(struct request *request)
{
    struct session *s = request->session;
    uint64_t start = round_down_u64(request->offset_bytes, BLOCK_SIZE);
    uint64_t span = request->offset_bytes + request->len_bytes - start;
    bool is_alone = !s->structured && span > DISK_IO_BYTES_MAX;
    for (;;) {
        if (is_alone && (request->pending > 0 || s->request_count > 1)) {
            session_block(s, BLOCKED_ROOM);
            return false;
        }
        if (request->issued_bytes == request->len_bytes || request->error != 0)
            return true;
        struct piece *piece = payload_piece(request);
        if (!piece)
            return false;
        piece->io.op = DISK_READ;
        piece_submit(piece);
    }
}

/* The payload of each piece is received before the next begins. */
static bool issue_write(struct request *request)
{
    struct session *s = request->session;
    if (request->issued_bytes == request->len_bytes)
        return true;
    struct piece *piece = payload_piece(request);
    if (!piece)
        return false;
    piece->io.op = DISK_WRITE;
    s->receiving = piece;
    s->receive_at = piece->io.buffer->data + piece->io.offset_bytes % BLOCK_SIZE;
    s->receive_left = (uint32_t)piece->io.len_bytes;
    s->receive_since_ns = loop_now_ns(s->shared->loop);
    return false;
}

void request_received(struct session *s)
{
    struct piece *piece = take(s->receiving);
    assert(piece->request == s->current); /* N4, N5 */
    piece_submit(piece);
    if (piece->request->issued_bytes == piece->request->len_bytes) {
        s->current = NULL;
        issued(piece->request);
    }
}

/* What needs no buffer: FLUSH, TRIM, WRITE_ZEROES. */
static bool issue_plain(struct request *request)
{
    struct session *s = request->session;
    if (s->piece_count >= NBD_PIECES_MAX) {
        session_block(s, BLOCKED_ROOM);
        return false;
    }
    struct piece *piece = piece_create(request);
    if (!piece) {
        session_break(s, "out of memory");
        return false;
    }
    piece->io.op = request->command->op;
    piece->io.offset_bytes = request->offset_bytes;
    piece->io.len_bytes = request->len_bytes;
    if (request->flags & NBD_CMD_FLAG_NO_HOLE)
        piece->io.flags |= DISK_NO_HOLE;
    piece_submit(piece);
    return true;
}

/* A snapshot never changes, so all of it is durable. */
static bool issue_flush(struct request *request)
{
    return disk_is_read_only(request->session->disk) || issue_plain(request);
}

static const struct command commands[] = {
    [NBD_CMD_READ] = {.name = "read",
                      .flags = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF,
                      .has_range = true,
                      .past_end = -EINVAL,
                      .len_max = NBD_REQUEST_BYTES_MAX,
                      .issue = issue_read},
    [NBD_CMD_WRITE] = {.name = "write",
                       .flags = NBD_CMD_FLAG_FUA,
                       .changes = true,
                       .has_range = true,
                       .past_end = -ENOSPC,
                       .len_max = NBD_REQUEST_BYTES_MAX,
                       .issue = issue_write},
    [NBD_CMD_FLUSH] = {.name = "flush",
                       .flags = NBD_CMD_FLAG_FUA,
                       .op = DISK_FLUSH,
                       .issue = issue_flush},
    [NBD_CMD_TRIM] = {.name = "trim",
                      .flags = NBD_CMD_FLAG_FUA,
                      .changes = true,
                      .has_range = true,
                      .past_end = -EINVAL,
                      .len_max = UINT32_MAX,
                      .op = DISK_TRIM,
                      .issue = issue_plain},
    [NBD_CMD_CACHE] = {.name = "cache",
                       .flags = NBD_CMD_FLAG_FUA,
                       .has_range = true,
                       .past_end = -EINVAL,
                       .len_max = UINT32_MAX,
                       .issue = NULL}, /* advice that is not taken up yet */
    /* Zeroing costs nothing per byte, so FAST_ZERO can always be kept. */
    [NBD_CMD_WRITE_ZEROES] = {.name = "write zeroes",
                              .flags = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE |
                                       NBD_CMD_FLAG_FAST_ZERO,
                              .changes = true,
                              .has_range = true,
                              .past_end = -ENOSPC,
                              .len_max = UINT32_MAX,
                              .op = DISK_ZERO,
                              .issue = issue_plain},
    [NBD_CMD_BLOCK_STATUS] = {.name = "block status",
                              .flags = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE,
                              .has_range = true,
                              .past_end = -EINVAL,
                              .len_max = UINT32_MAX,
                              .issue = status_issue},
};

static const struct command *command_of(uint16_t type)
{
    if (type >= ARRAY_LEN(commands) || !commands[type].name)
        return NULL;
    return &commands[type];
}

/* --- checks --- */

static void check_read(struct request *request)
{
    uint64_t start = request->offset_bytes % BLOCK_SIZE;
    if (!(request->flags & NBD_CMD_FLAG_DF))
        return;
    if (!request->session->structured)
        request_fail(request, -EINVAL, "DF needs structured replies");
    else if (start + request->len_bytes > DISK_IO_BYTES_MAX)
        request_fail(request, -EOVERFLOW, "too long for one chunk");
}

/* Sets the request's error if it may not be. */
static void check(struct request *request)
{
    const struct command *command = request->command;
    const struct session *s = request->session;
    uint64_t end;
    if (!command)
        request_fail(request, -EINVAL, "unknown command");
    else if (request->flags & ~(unsigned)command->flags)
        request_fail(request, -EINVAL, "a flag this command does not have");
    else if (command->changes && disk_is_read_only(s->disk))
        request_fail(request, -EROFS, "snapshots are read-only");
    else if (!command->has_range && (request->offset_bytes | request->len_bytes) != 0)
        request_fail(request, -EINVAL, "must have neither offset nor length");
    else if (request->len_bytes > command->len_max)
        request_fail(request, -EOVERFLOW, "longer than 32 MiB");
    else if (!add_u64(request->offset_bytes, request->len_bytes, &end) ||
             (command->has_range && end > disk_size_bytes(s->disk)))
        request_fail(request, command->past_end ? command->past_end : -EINVAL,
                     "beyond the end of the disk");
    else if (request->type == NBD_CMD_READ)
        check_read(request);
    else if (request->type == NBD_CMD_BLOCK_STATUS && s->context_count == 0)
        request_fail(request, -EINVAL, "no metadata context was selected");
    else if (request->type == NBD_CMD_BLOCK_STATUS && request->len_bytes == 0)
        request_fail(request, -EINVAL, "of nothing");
}

static void refuse(struct request *request)
{
    struct session *s = request->session;
    metric_add(s->shared->errors, 1);
    s->current = NULL;
    if (request->type != NBD_CMD_WRITE || request->len_bytes == 0) {
        issued(request);
        return;
    }
    s->skip_bytes = request->len_bytes;
    s->skipping = request;
    if (request->len_bytes > NBD_SKIP_BYTES_MAX)
        session_break(s, "a write of excessive length");
}

void request_skipped(struct session *s)
{
    struct request *request = take(s->skipping);
    if (request) /* else it was an option's data */
        issued(request);
}

/* --- input --- */

bool request_go_on(struct session *s)
{
    struct request *request = s->current;
    bool is_idle = request->len_bytes == 0 && request->command->has_range;
    if (!is_idle && request->command->issue && !request->command->issue(request))
        return s->receiving != NULL;
    /* It was waiting for a buffer when an earlier piece failed: not needed any more. */
    struct buffer *unused = take(s->granted);
    buffer_put(unused);
    s->current = NULL;
    issued(request);
    return true;
}

static void request_begin(struct session *s, const struct nbd_request *header)
{
    struct request *request = request_create(s);
    if (!request) {
        session_break(s, "out of memory");
        return;
    }
    memcpy(request->cookie, header->cookie, sizeof request->cookie);
    request->type = be16_get(header->type);
    request->flags = be16_get(header->flags);
    request->offset_bytes = be64_get(header->offset_bytes);
    request->len_bytes = be32_get(header->len_bytes);
    request->command = command_of(request->type);
    request->issuing = true;
    s->current = request;
    s->expects_large = request->type == NBD_CMD_WRITE &&
                       request->len_bytes > NBD_LARGE_PAYLOAD_BYTES;
    metric_add(s->shared->requests, 1);
    trace(s->shared->loop, "nbd request", s->number, request->offset_bytes,
          (uint64_t)request->type << 32 | request->len_bytes);
    check(request);
    if (request->error != 0)
        refuse(request);
}

size_t request_header(struct session *s, const uint8_t *bytes, size_t len)
{
    struct nbd_request header;
    if (len < sizeof header)
        return 0;
    memcpy(&header, bytes, sizeof header);
    if (be32_get(header.magic) != NBD_REQUEST_MAGIC) {
        session_break(s, "not a request");
        return 0;
    }
    if (be16_get(header.type) == NBD_CMD_DISC) {
        session_drain(s);
        return sizeof header;
    }
    if (s->request_count >= NBD_REQUESTS_MAX) {
        session_block(s, BLOCKED_ROOM);
        return 0;
    }
    request_begin(s, &header);
    return sizeof header;
}

/* Input has ended: what is not whole by now will not be. */
void request_drop_current(struct session *s)
{
    struct piece *piece = take(s->receiving);
    struct request *current = take(s->current);
    struct request *skipping = take(s->skipping);
    s->skip_bytes = 0;
    if (piece)
        piece_free(piece);
    if (current) {
        request_fail(current, -ESHUTDOWN, NULL);
        issued(current);
    }
    if (skipping)
        issued(skipping);
}
