/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source is walked from its start. Each chunk of it takes a slot, is read, and is
 * written when the read is done; NBD requests of several slots are in flight at once,
 * files are read and written on the spot. Holes of the source, and zeros found in its
 * data, are written only if the destination would otherwise not read as zeros.
 *
 * What fails first ends the copy: requests in flight are abandoned, and the caller closes
 * both endpoints. There is nothing to do on close beyond that.
 *
 *     FREE --fill--> READING --done--> READ --drain--> WRITING --done--> FREE
 *
 * CP1: a slot is FREE when and only when nothing refers to its data.
 * CP2: a stream is written in order: slot->offset == copy->stream_offset.
 */
#include "tools/copy.h"

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define CHUNK_BYTES (1 * MIB)
#define SLOTS       16U
/* Zeros are looked for in pieces of this size. */
#define GRAIN_BYTES (64 * KIB)
/* How much of the source one question about its holes covers, and how many answers are
 * kept. */
#define STATUS_BYTES (1 * GIB)
#define STATUS_MAX   1024U
/* A hole is one request up to this; an NBD length has 32 bits. */
#define HOLE_BYTES (256 * MIB)
/* Progress is shown, and interruption seen, at least this often. */
#define POLL_MS 200

enum slot_state { SLOT_FREE, SLOT_READING, SLOT_READ, SLOT_WRITING };

struct copy;

struct slot {
    enum slot_state state;
    struct copy *copy;
    uint64_t offset, len;
    bool hole;        /* zeros; data is not used */
    uint32_t pending; /* requests in flight, plus one while they are being made */
    uint8_t *data;
};

struct range {
    uint64_t len;
    bool hole;
};

struct copy {
    struct endpoint *source, *destination;
    const struct copy_options *options;
    struct error *err;
    int failed; /* 0 or the first error */
    uint64_t chunk_bytes;
    uint64_t offset;        /* what is to be filled next */
    uint64_t stream_offset; /* what is to be written next, of a stream */
    uint64_t done_bytes;
    bool at_end; /* the source is all in slots */
    struct range ranges[STATUS_MAX];
    uint32_t range_at, range_count;
    uint8_t *zeros; /* a chunk of them */
    struct slot slots[SLOTS];
};

/* Remembers the first error. */
static void attr_printf(4, 5)
    copy_fail(struct copy *c, int code, const struct endpoint *e, const char *fmt, ...)
{
    if (c->failed != 0)
        return;
    char text[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    c->failed = err_set(c->err, code, "%s: %s", e->name, text);
}

/* Requests that were in flight when the server went away end with ENOTCONN, which would
 * tell less. */
static void fail_errno(struct copy *c, int code, const struct endpoint *e,
                       const char *what, uint64_t offset)
{
    if (code == ENOTCONN)
        copy_fail(c, -ECONNRESET, e, "the NBD server closed the connection");
    else
        copy_fail(c, -code, e, "%s at %llu: %s", what, (unsigned long long)offset,
                  code == ENOSPC ? "no space left" : strerror(code));
}

static void fail_nbd(struct copy *c, const struct endpoint *e)
{
    int code = nbd_get_errno();
    const char *text = nbd_get_error();
    if (nbd_aio_is_dead(e->nbd) > 0)
        copy_fail(c, -ECONNRESET, e, "the NBD server closed the connection");
    else
        copy_fail(c, code > 0 ? -code : -EIO, e, "%s", text != NULL ? text : "NBD error");
}

static bool all_zero(const uint8_t *bytes, size_t len)
{
    return len == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0);
}

/* --- what the source consists of --- */

static int on_extent(void *arg, const char *context, uint64_t offset attr_unused,
                     uint32_t *entries, size_t count, int *error attr_unused)
{
    struct copy *c = arg;
    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
        return 0;
    for (size_t i = 0; i + 1 < count && c->range_count < STATUS_MAX; i += 2)
        c->ranges[c->range_count++] = (struct range){
            entries[i], (entries[i + 1] & LIBNBD_STATE_ZERO) != 0};
    return 0;
}

static void ask_nbd(struct copy *c, uint64_t left)
{
    nbd_extent_callback callback = {.callback = on_extent, .user_data = c};
    uint64_t len = min_u64(left, STATUS_BYTES);
    if (nbd_block_status(c->source->nbd, len, c->offset, callback, 0) < 0) {
        c->source->has_status = false; /* reading still tells */
        c->range_count = 0;
    }
}

static void ask_file(struct copy *c, uint64_t left)
{
    off_t at = (off_t)c->offset, data = lseek(c->source->fd, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) {
        c->ranges[c->range_count++] = (struct range){left, true};
        return;
    }
    if (data > at) {
        c->ranges[c->range_count++] = (struct range){(uint64_t)(data - at), true};
        return;
    }
    off_t hole = data < 0 ? -1 : lseek(c->source->fd, at, SEEK_HOLE);
    c->ranges[c->range_count++] = (struct range){hole > at ? (uint64_t)(hole - at) : left,
                                                 false};
}

/* The range that begins at c->offset, not beyond the end of the source. */
static struct range *find_range(struct copy *c)
{
    uint64_t left = c->source->size_bytes - c->offset;
    if (c->range_at == c->range_count) {
        c->range_at = c->range_count = 0;
        if (c->source->has_status && c->source->kind == ENDPOINT_NBD)
            ask_nbd(c, left);
        else if (c->source->has_status)
            ask_file(c, left);
        if (c->range_count == 0)
            c->ranges[c->range_count++] = (struct range){left, false};
    }
    struct range *range = &c->ranges[c->range_at];
    range->len = min_u64(range->len, left);
    return range;
}

static void range_advance(struct copy *c, uint64_t len)
{
    struct range *range = &c->ranges[c->range_at];
    assert(len <= range->len);
    range->len -= len;
    c->offset += len;
    if (range->len == 0)
        c->range_at++;
}

/* --- reading --- */

static void slot_free(struct slot *slot)
{
    assert(slot->pending == 0); /* CP1 */
    slot->copy->done_bytes += slot->len;
    slot->state = SLOT_FREE;
}

static int on_read(void *arg, int *error)
{
    struct slot *slot = arg;
    slot->pending--;
    slot->state = SLOT_READ;
    if (*error != 0)
        fail_errno(slot->copy, *error, slot->copy->source, "cannot read", slot->offset);
    return 1;
}

static void read_nbd(struct copy *c, struct slot *slot)
{
    nbd_completion_callback callback = {.callback = on_read, .user_data = slot};
    slot->state = SLOT_READING;
    slot->pending = 1;
    if (nbd_aio_pread(c->source->nbd, slot->data, slot->len, slot->offset, callback, 0) <
        0)
        fail_nbd(c, c->source);
}

/* Reads until the slot is full or the source ends; *ret_len is what came. */
static bool read_fd(struct copy *c, struct slot *slot, uint64_t *ret_len)
{
    uint64_t got = 0;
    while (got < slot->len) {
        ssize_t n = c->source->kind == ENDPOINT_STREAM
                        ? read(c->source->fd, slot->data + got, slot->len - got)
                        : pread(c->source->fd, slot->data + got, slot->len - got,
                                (off_t)(slot->offset + got));
        if (n < 0 && errno == EINTR &&
            !(c->options->interrupted != NULL && c->options->interrupted()))
            continue;
        if (n < 0) {
            fail_errno(c, errno, c->source, "cannot read", slot->offset + got);
            return false;
        }
        if (n == 0)
            break;
        got += (uint64_t)n;
    }
    *ret_len = got;
    return true;
}

/* The next chunk of a stream; its end is only seen by reading. */
static bool fill_from_stream(struct copy *c, struct slot *slot)
{
    *slot = (struct slot){
        .copy = c, .data = slot->data, .offset = c->offset, .len = c->chunk_bytes};
    uint64_t len;
    if (!read_fd(c, slot, &len))
        return false;
    c->at_end = len < slot->len;
    slot->len = len;
    c->offset += len;
    if (len > 0)
        slot->state = SLOT_READ;
    return true;
}

/* Holes that need no writing are passed over. */
static void skip_holes(struct copy *c)
{
    if (!c->destination->is_zero)
        return;
    while (c->offset < c->source->size_bytes) {
        struct range *range = find_range(c);
        if (!range->hole)
            return;
        c->done_bytes += range->len;
        range_advance(c, range->len);
    }
}

static bool fill(struct copy *c, struct slot *slot)
{
    if (c->source->kind == ENDPOINT_STREAM)
        return fill_from_stream(c, slot);
    skip_holes(c);
    c->at_end = c->offset == c->source->size_bytes;
    if (c->at_end)
        return true;
    const struct range *range = find_range(c);
    bool long_hole = range->hole && c->destination->can_zero;
    uint64_t max = long_hole ? HOLE_BYTES : c->chunk_bytes;
    *slot = (struct slot){.copy = c,
                          .data = slot->data,
                          .offset = c->offset,
                          .len = min_u64(range->len, max),
                          .hole = range->hole};
    range_advance(c, slot->len);
    if (slot->hole) {
        slot->state = SLOT_READ;
        return true;
    }
    if (c->source->kind == ENDPOINT_NBD) {
        read_nbd(c, slot);
        return c->failed == 0;
    }
    uint64_t len;
    if (!read_fd(c, slot, &len))
        return false;
    if (len < slot->len) {
        copy_fail(c, -EIO, c->source, "became shorter while it was read");
        return false;
    }
    slot->state = SLOT_READ;
    return true;
}

/* --- writing --- */

static void write_fd(struct copy *c, const uint8_t *data, uint64_t len, uint64_t offset)
{
    const struct endpoint *d = c->destination;
    while (len > 0) {
        ssize_t n = d->kind == ENDPOINT_STREAM ? write(d->fd, data, len)
                                               : pwrite(d->fd, data, len, (off_t)offset);
        if (n < 0 && errno == EINTR &&
            !(c->options->interrupted != NULL && c->options->interrupted()))
            continue;
        if (n < 0) {
            fail_errno(c, errno, d, "cannot write", offset);
            return;
        }
        data += n;
        len -= (uint64_t)n;
        offset += (uint64_t)n;
    }
}

static int on_written(void *arg, int *error)
{
    struct slot *slot = arg;
    if (*error != 0)
        fail_errno(slot->copy, *error, slot->copy->destination, "cannot write",
                   slot->offset);
    if (--slot->pending == 0)
        slot_free(slot);
    return 1;
}

static void write_data(struct slot *slot, const uint8_t *data, uint64_t len,
                       uint64_t offset)
{
    struct copy *c = slot->copy;
    if (c->destination->kind != ENDPOINT_NBD) {
        write_fd(c, data, len, offset);
        return;
    }
    nbd_completion_callback callback = {.callback = on_written, .user_data = slot};
    slot->pending++;
    if (nbd_aio_pwrite(c->destination->nbd, data, len, offset, callback, 0) < 0)
        fail_nbd(c, c->destination);
}

/* Makes a range of a destination zero that may not be. */
static void write_zeros(struct slot *slot, uint64_t len, uint64_t offset)
{
    struct copy *c = slot->copy;
    struct endpoint *d = c->destination;
    if (d->can_zero && d->kind == ENDPOINT_NBD) {
        nbd_completion_callback callback = {.callback = on_written, .user_data = slot};
        slot->pending++;
        if (nbd_aio_zero(d->nbd, len, offset, callback, 0) < 0)
            fail_nbd(c, d);
        return;
    }
    if (d->can_zero) {
        const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        if (fallocate(d->fd, mode, (off_t)offset, (off_t)len) == 0)
            return;
        d->can_zero = false;
    }
    for (uint64_t done = 0; done < len && c->failed == 0; done += c->chunk_bytes)
        write_data(slot, c->zeros, min_u64(len - done, c->chunk_bytes), offset + done);
}

/* Writes runs of grains that are all zero, or all not. */
static void write_runs(struct slot *slot)
{
    struct copy *c = slot->copy;
    for (uint64_t at = 0, len; at < slot->len && c->failed == 0; at += len) {
        len = min_u64(GRAIN_BYTES, slot->len - at);
        bool zero = all_zero(slot->data + at, len);
        while (at + len < slot->len) {
            uint64_t next = min_u64(GRAIN_BYTES, slot->len - at - len);
            if (all_zero(slot->data + at + len, next) != zero)
                break;
            len += next;
        }
        if (!zero)
            write_data(slot, slot->data + at, len, slot->offset + at);
        else if (!c->destination->is_zero)
            write_zeros(slot, len, slot->offset + at);
    }
}

static void drain(struct slot *slot)
{
    struct copy *c = slot->copy;
    slot->state = SLOT_WRITING;
    slot->pending = 1;
    if (c->destination->kind == ENDPOINT_STREAM) {
        assert(slot->offset == c->stream_offset); /* CP2 */
        write_data(slot, slot->hole ? c->zeros : slot->data, slot->len, slot->offset);
        c->stream_offset += slot->len;
    } else if (slot->hole) {
        write_zeros(slot, slot->len, slot->offset);
    } else {
        write_runs(slot);
    }
    if (--slot->pending == 0)
        slot_free(slot);
}

/* --- the loop --- */

/* Starts all that can be started; false: nothing could. */
static bool pump(struct copy *c)
{
    bool any = false;
    for (uint32_t i = 0; i < SLOTS && c->failed == 0; i++) {
        struct slot *slot = &c->slots[i];
        if (slot->state == SLOT_FREE && !c->at_end) {
            any = true;
            if (!fill(c, slot))
                return false;
        }
        bool in_turn = c->destination->kind != ENDPOINT_STREAM ||
                       slot->offset == c->stream_offset;
        if (slot->state == SLOT_READ && in_turn && c->failed == 0) {
            any = true;
            drain(slot);
        }
    }
    return any;
}

static bool all_free(const struct copy *c)
{
    for (uint32_t i = 0; i < SLOTS; i++)
        if (c->slots[i].state != SLOT_FREE)
            return false;
    return true;
}

static void notify(struct copy *c, const struct endpoint *e, short events)
{
    int r = 0;
    unsigned direction = nbd_aio_get_direction(e->nbd);
    if ((events & (POLLIN | POLLHUP | POLLERR)) &&
        (direction & LIBNBD_AIO_DIRECTION_READ))
        r = nbd_aio_notify_read(e->nbd);
    else if ((events & POLLOUT) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
        r = nbd_aio_notify_write(e->nbd);
    if (r < 0)
        fail_nbd(c, e);
    else if (nbd_aio_is_dead(e->nbd) > 0)
        copy_fail(c, -ECONNRESET, e, "the NBD server closed the connection");
}

/* Waits until a request makes progress. */
static void wait_nbd(struct copy *c)
{
    const struct endpoint *ends[2] = {c->source, c->destination};
    struct pollfd fds[2];
    for (int i = 0; i < 2; i++) {
        fds[i] = (struct pollfd){.fd = -1};
        if (ends[i]->kind != ENDPOINT_NBD)
            continue;
        unsigned direction = nbd_aio_get_direction(ends[i]->nbd);
        fds[i].fd = nbd_aio_get_fd(ends[i]->nbd);
        if (direction & LIBNBD_AIO_DIRECTION_READ)
            fds[i].events |= POLLIN;
        if (direction & LIBNBD_AIO_DIRECTION_WRITE)
            fds[i].events |= POLLOUT;
    }
    if (poll(fds, 2, POLL_MS) < 0)
        return; /* EINTR: the caller looks why */
    for (int i = 0; i < 2; i++)
        if (fds[i].fd >= 0 && fds[i].revents != 0 && c->failed == 0)
            notify(c, ends[i], fds[i].revents);
}

static void run_loop(struct copy *c)
{
    while (c->failed == 0 && !(c->at_end && all_free(c))) {
        bool started = pump(c);
        if (c->options->progress != NULL)
            c->options->progress(c->options->arg, c->done_bytes, c->source->size_bytes);
        if (c->options->interrupted != NULL && c->options->interrupted()) {
            c->failed = err_set(c->err, -EINTR, "interrupted");
            return;
        }
        if (!started && c->failed == 0)
            wait_nbd(c);
    }
}

/* The largest request both servers take. */
static uint64_t choose_chunk(const struct endpoint *a, const struct endpoint *b)
{
    uint64_t chunk = CHUNK_BYTES;
    const struct endpoint *ends[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        int64_t max = ends[i]->kind == ENDPOINT_NBD
                          ? nbd_get_block_size(ends[i]->nbd, LIBNBD_SIZE_MAXIMUM)
                          : 0;
        if (max > 0)
            chunk = min_u64(chunk, (uint64_t)max);
    }
    return max_u64(round_down_u64(chunk, BLOCK_SIZE), BLOCK_SIZE);
}

static int run_prepared(struct copy *c)
{
    c->zeros = calloc(1, CHUNK_BYTES);
    bool good = c->zeros != NULL;
    for (uint32_t i = 0; i < SLOTS && good; i++) {
        c->slots[i].copy = c;
        c->slots[i].data = malloc(CHUNK_BYTES);
        good = c->slots[i].data != NULL;
    }
    if (good)
        run_loop(c);
    /* After a failure libnbd may still know of these, but nothing makes it look at them
     * before it is closed. */
    for (uint32_t i = 0; i < SLOTS; i++)
        free(c->slots[i].data);
    free(c->zeros);
    return good ? c->failed : -ENOMEM;
}

int copy_run(struct endpoint *source, struct endpoint *destination,
             const struct copy_options *options, uint64_t *ret_bytes, struct error *err)
{
    struct copy *c = calloc(1, sizeof *c);
    if (c == NULL)
        return -ENOMEM;
    c->source = source;
    c->destination = destination;
    c->options = options;
    c->err = err;
    c->chunk_bytes = choose_chunk(source, destination);
    int r = run_prepared(c);
    if (r == 0)
        *ret_bytes = c->offset;
    free(c);
    return r;
}
