/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replies, and what an error becomes on the wire. A success without data is a simple
 * reply, which is shorter, also where structured ones were agreed on; a READ's data and
 * all errors then are chunks, errors with a sentence for people.
 *
 * Nothing can fail here but memory for a block status, which becomes an error reply.
 *
 * A reply lies in the request or piece it answers, and releases it once it is sent or
 * the session is over.
 */
#include <stdio.h>

#include "nbdserver/nbd_internal.h"

/* The one place where a code becomes a number of the protocol. */
enum nbd_error nbd_error_of(int code)
{
    switch (err_to_errno(code)) {
    case 0:
        return NBD_SUCCESS;
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case EOPNOTSUPP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

void request_fail(struct request *request, int error, const char *detail)
{
    assert(error < 0);
    if (request->error != 0)
        return;
    request->error = error;
    request->detail = detail;
}

static void queue(struct session *s, struct reply *reply)
{
    STAILQ_INSERT_TAIL(&s->replies, reply, link);
}

static void set_simple(struct reply *reply, const struct request *request)
{
    struct nbd_simple_reply head = {
        .magic = be32_of(NBD_SIMPLE_REPLY_MAGIC),
        .error = be32_of(nbd_error_of(request->error)),
    };
    memcpy(head.cookie, request->cookie, sizeof head.cookie);
    memcpy(reply->head, &head, sizeof head);
    reply->head_len = sizeof head;
}

/* len: of what follows the chunk's own header. */
static struct nbd_chunk chunk_of(const struct request *request, uint16_t type,
                                 uint64_t len, bool is_last)
{
    struct nbd_chunk chunk = {
        .magic = be32_of(NBD_CHUNK_MAGIC),
        .flags = be16_of(is_last ? NBD_CHUNK_FLAG_DONE : 0),
        .type = be16_of(type),
        .len = be32_of((uint32_t)len),
    };
    memcpy(chunk.cookie, request->cookie, sizeof chunk.cookie);
    return chunk;
}

void reply_data(struct piece *piece, bool is_last)
{
    struct request *request = piece->request;
    struct reply *reply = &piece->reply;
    const struct disk_io *io = &piece->io;
    reply->head_len = 0;
    reply->body = io->buffer->data + io->offset_bytes % BLOCK_SIZE;
    reply->body_len = (uint32_t)io->len_bytes;
    if (request->session->structured) {
        struct nbd_chunk_data head = {
            .chunk = chunk_of(request, NBD_CHUNK_OFFSET_DATA,
                              sizeof(be64) + io->len_bytes, is_last),
            .offset_bytes = be64_of(io->offset_bytes),
        };
        memcpy(reply->head, &head, sizeof head);
        reply->head_len = sizeof head;
    } else if (!request->header_sent) {
        set_simple(reply, request);
        request->header_sent = true;
    }
    queue(request->session, reply);
}

void reply_status_add(const struct request *request, struct writer *out, uint32_t context,
                      const struct nbd_status_range *ranges, uint32_t count, bool is_last)
{
    size_t len = count * sizeof *ranges;
    assert(count > 0);
    struct nbd_chunk_status head = {
        .chunk = chunk_of(request, NBD_CHUNK_BLOCK_STATUS, sizeof(be32) + len, is_last),
        .context = be32_of(context),
    };
    write_bytes(out, &head, sizeof head);
    write_bytes(out, ranges, len);
}

void reply_status(struct request *request, struct writer *out)
{
    struct reply *reply = &request->reply;
    if (out->bad) {
        writer_done(out);
        request_fail(request, -ENOMEM, NULL);
        return;
    }
    request->status = out->bytes;
    reply->head_len = 0;
    reply->body = out->bytes;
    reply->body_len = (uint32_t)out->len;
}

static void set_error(struct reply *reply, struct request *request)
{
    const char *name = request->command ? request->command->name : "request";
    const char *detail = request->detail ? request->detail : err_text(request->error);
    if (request->error == -PLX_EFULL)
        detail = "no space in the store; 'parallax status' says what can be freed";
    snprintf(request->text, sizeof request->text, "%s %u at %llu: %s", name,
             request->len_bytes, (unsigned long long)request->offset_bytes, detail);
    size_t len = strlen(request->text);
    struct nbd_chunk_error head = {
        .chunk = chunk_of(request, NBD_CHUNK_ERROR, sizeof(be32) + sizeof(be16) + len,
                          true),
        .error = be32_of(nbd_error_of(request->error)),
        .text_len = be16_of((uint16_t)len),
    };
    memcpy(reply->head, &head, sizeof head);
    reply->head_len = sizeof head;
    reply->body = (const uint8_t *)request->text;
    reply->body_len = (uint32_t)len;
}

static void set_none(struct reply *reply, const struct request *request)
{
    struct nbd_chunk head = chunk_of(request, NBD_CHUNK_NONE, 0, true);
    memcpy(reply->head, &head, sizeof head);
    reply->head_len = sizeof head;
}

/* The reply of a request that is over. */
void reply_result(struct request *request)
{
    struct session *s = request->session;
    struct reply *reply = &request->reply;
    reply->of = REPLY_OF_REQUEST;
    if (request->error != 0 && s->structured)
        set_error(reply, request);
    else if (request->type == NBD_CMD_READ && s->structured)
        set_none(reply, request); /* of nothing */
    else if (request->error != 0 || !request->status)
        set_simple(reply, request);
    request->reply_queued = true;
    queue(s, reply);
}

void reply_sent(struct session *s, struct reply *reply)
{
    if (reply->of == REPLY_OF_PIECE) {
        struct piece *piece = container_of(reply, struct piece, reply);
        struct request *request = piece->request;
        piece_free(piece);
        request_release(request);
        return;
    }
    struct request *request = container_of(reply, struct request, reply);
    assert(request->session == s);
    request->reply_queued = false;
    request_release(request);
}
