/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads, writes, zeroes, trims and flushes of guests.
 *
 * A read may see the line at any batch from the last one acknowledged when the read was
 * submitted to the last one sealed when it is done; what it has seen is committed, so
 * that it counts as acknowledged from then on.
 */
#include "tests/simulation/content.h"
#include "tests/simulation/workload.h"

#define SPOTS      4U
#define SPOT_BYTES (512 * KIB)
#define GARBAGE    0xa5

/* --- what and where --- */

static struct client *pick_client(struct run *run, bool writable)
{
    struct client *client, *chosen = NULL;
    uint64_t seen = 0;
    TAILQ_FOREACH (client, &run->load.clients, link) {
        if (client->is_closing || (writable && client->snap != NULL))
            continue;
        if (run_random(run, ++seen) == 0)
            chosen = client;
    }
    return chosen;
}

/* What is imported is as large as can be until it is published. */
static uint64_t size_of(const struct client *client)
{
    return client->md->existence == IMPORTING ? client->md->size_bytes
                                              : disk_size_bytes(client->disk);
}

/* Small disks are used all over, large ones in a few spots. */
static void draw_range(struct run *run, const struct client *client, uint64_t limit,
                       uint64_t *ret_offset, uint64_t *ret_len)
{
    uint64_t size = size_of(client), start = 0, area = size;
    uint64_t kind = run_random(run, 100), len;
    if (size > BLOCKS_WHOLE * BLOCK_SIZE || run_chance(run, 40)) {
        area = min_u64(SPOT_BYTES, size);
        start = round_down_u64((size - area) / SPOTS * run_random(run, SPOTS),
                               BLOCK_SIZE);
    }
    if (kind < 50)
        len = BLOCK_SIZE;
    else if (kind < 80)
        len = run_between(run, 1, 16) * BLOCK_SIZE;
    else if (kind < 92)
        len = run_between(run, 1, 3 * BLOCK_SIZE);
    else
        len = run_between(run, 1, limit);
    len = min_u64(min_u64(len, limit), area);
    uint64_t offset = run_between(run, 0, area - len);
    if (kind < 80 || run_chance(run, 30)) {
        offset = round_down_u64(offset, BLOCK_SIZE);
        if (len > BLOCK_SIZE)
            len = round_down_u64(len, BLOCK_SIZE);
    }
    *ret_offset = start + offset;
    *ret_len = len;
}

static struct op *io_begin(struct run *run, const char *name, struct client *client)
{
    struct op *op = op_begin(run, name);
    op->client = client;
    op->md = client->md;
    op->line = client->snap != NULL ? client->snap->line : client->md->line;
    op->lo = client->snap != NULL ? client->snap->number : op->line->acked;
    client->inflight++;
    return op;
}

static void io_end(struct op *op, int result)
{
    struct run *run = op->run;
    struct client *client = op->client;
    client->inflight--;
    if (result < 0 && !op->may_be_refused && run->profile.may_fail)
        client->is_closing = true; /* come back later, or never */
    op_end(op, result);
    if (client->is_closing && client->inflight == 0)
        client_leave(run, client);
}

void client_enter(struct run *run, struct disk *disk, struct model_disk *md,
                  struct model_snap *snap)
{
    struct client *client = run_alloc(sizeof *client);
    *client = (struct client){.disk = disk, .md = md, .snap = snap};
    if (snap == NULL)
        md->clients++;
    else
        md->snap_clients++;
    md->uses++;
    TAILQ_INSERT_TAIL(&run->load.clients, client, link);
    run->load.client_count++;
}

void client_leave(struct run *run, struct client *client)
{
    struct model_disk *md = client->md;
    assert(client->inflight == 0);
    if (client->snap == NULL)
        md->clients--;
    else
        md->snap_clients--;
    disk_close(client->disk);
    TAILQ_REMOVE(&run->load.clients, client, link);
    run->load.client_count--;
    free(client);
    if (md->existence == IMPORTING)
        admin_import_end(run, md);
}

/* --- changes --- */

static void change_finished(struct disk_io *io)
{
    struct op *op = container_of(io, struct op, io);
    struct run *run = op->run;
    op_check_result(op, io->result, NULL);
    uint64_t last = change_done(&run->model, op->md, &op->change, io->result);
    if (io->result == 0 && (io->flags & DISK_FUA))
        op->line->flushed = max_u64(op->line->flushed, last);
    if (io->buffer != NULL)
        buffer_put(io->buffer);
    io_end(op, io->result);
}

static void submit_change(struct run *run, struct client *client, const char *name,
                          struct disk_io io, struct change change)
{
    change.offset_bytes = io.offset_bytes;
    change.len_bytes = io.len_bytes;
    if (change_is_ambiguous(client->md, &change)) {
        buffer_put(io.buffer);
        return;
    }
    struct op *op = io_begin(run, name, client);
    op->io = io;
    op->io.done = change_finished;
    op->change = change;
    change_begin(&run->model, client->md, &op->change);
    disk_submit(client->disk, &op->io);
}

/* The guest's bytes, and rubbish around them. */
static struct buffer *fill_buffer(struct run *run, const struct disk_io *io,
                                  const struct change *change)
{
    uint64_t start = round_down_u64(io->offset_bytes, BLOCK_SIZE);
    uint64_t end = round_up_u64(io->offset_bytes + io->len_bytes, BLOCK_SIZE);
    struct buffer *buffer = buffer_create(host_buffers(run->host), end - start);
    if (buffer == NULL)
        return NULL;
    memset(buffer->data, GARBAGE, end - start);
    uint64_t id = run->model.next_change;
    uint64_t at = io->offset_bytes, to = io->offset_bytes + io->len_bytes;
    while (at < to) {
        uint64_t part_end = min_u64(to, round_down_u64(at, BLOCK_SIZE) + BLOCK_SIZE);
        size_t len = (size_t)(part_end - at);
        bool zeros = change->is_zero ||
                     (change->is_mixed && content_block_is_zero(id, at / BLOCK_SIZE));
        if (zeros)
            memset(buffer->data + (at - start), 0, len);
        else
            content_fill(id, at, buffer->data + (at - start), len);
        at = part_end;
    }
    return buffer;
}

static unsigned draw_fua(struct run *run)
{
    return run_chance(run, 6) ? DISK_FUA : 0;
}

/* A megabyte, if there is room for one. */
static void draw_bulk(struct run *run, const struct client *client, struct disk_io *io)
{
    uint64_t size = size_of(client);
    if (size < DISK_IO_BYTES_MAX)
        return;
    io->len_bytes = DISK_IO_BYTES_MAX;
    io->offset_bytes = round_down_u64(run_between(run, 0, size - io->len_bytes),
                                      BLOCK_SIZE);
}

void io_write_begin(struct run *run)
{
    struct client *client = pick_client(run, true);
    if (client == NULL)
        return;
    struct disk_io io = {.op = DISK_WRITE, .flags = draw_fua(run)};
    struct change change = {.kind = CHANGE_WRITE};
    uint64_t limit = run_chance(run, run->profile.is_small ? 60 : 20)
                         ? DISK_IO_BYTES_MAX - BLOCK_SIZE
                         : 64 * KIB;
    draw_range(run, client, limit, &io.offset_bytes, &io.len_bytes);
    if (run->is_bulky)
        draw_bulk(run, client, &io);
    change.is_zero = run_chance(run, 3);
    change.is_mixed = !change.is_zero && io.len_bytes > BLOCK_SIZE && run_chance(run, 8);
    io.buffer = fill_buffer(run, &io, &change);
    if (io.buffer != NULL)
        submit_change(run, client, "write", io, change);
}

/* Sometimes much more than a write may be. */
static void draw_interval(struct run *run, const struct client *client,
                          struct disk_io *io)
{
    uint64_t size = size_of(client);
    draw_range(run, client, MIB, &io->offset_bytes, &io->len_bytes);
    if (run_chance(run, 10)) {
        io->offset_bytes = run_random(run, size);
        io->len_bytes = run_between(run, 1, size - io->offset_bytes);
    }
}

void io_zero_begin(struct run *run)
{
    struct client *client = pick_client(run, true);
    if (client == NULL)
        return;
    struct disk_io io = {.op = DISK_ZERO, .flags = draw_fua(run)};
    draw_interval(run, client, &io);
    if (run_chance(run, 30))
        io.flags |= DISK_NO_HOLE;
    submit_change(run, client, "zero", io, (struct change){.kind = CHANGE_ZERO});
}

void io_trim_begin(struct run *run)
{
    struct client *client = pick_client(run, true);
    if (client == NULL)
        return;
    struct disk_io io = {.op = DISK_TRIM, .flags = draw_fua(run)};
    draw_interval(run, client, &io);
    submit_change(run, client, "trim", io, (struct change){.kind = CHANGE_TRIM});
}

/* --- flushes --- */

static void flush_finished(struct disk_io *io)
{
    struct op *op = container_of(io, struct op, io);
    op_check_result(op, io->result, NULL);
    if (io->result == 0 && op->client->snap == NULL)
        op->line->flushed = max_u64(op->line->flushed, op->lo);
    io_end(op, io->result);
}

void io_flush_begin(struct run *run)
{
    struct client *client = pick_client(run, false);
    if (client == NULL)
        return;
    struct op *op = io_begin(run, "flush", client);
    op->io = (struct disk_io){.op = DISK_FLUSH, .done = flush_finished};
    disk_submit(client->disk, &op->io);
}

/* --- reads --- */

static void check_read_block(struct op *op, uint64_t block, uint32_t from, uint32_t to)
{
    struct run *run = op->run;
    const struct disk_io *io = &op->io;
    uint64_t start = round_down_u64(io->offset_bytes, BLOCK_SIZE);
    const uint8_t *bytes = io->buffer->data + (block * BLOCK_SIZE - start);
    bool is_head = op->client->snap == NULL;
    uint64_t hi = is_head ? op->line->last : op->lo, number;
    if (line_explains(op->line, block, op->lo, hi, bytes + from, from, to - from,
                      &number)) {
        if (is_head)
            op->line->acked = max_u64(op->line->acked, number);
        return;
    }
    char got[400], history[400];
    content_describe(bytes, got, sizeof got);
    line_history(op->line, block, history, sizeof history);
    run_fail(run,
             "read of %s%s%s at %llu, %llu bytes: block %llu is none of what it was "
             "from batch %llu to %llu; batches that changed it:%s; it is:%s",
             op->md->name, is_head ? "" : "@", is_head ? "" : op->client->snap->name,
             (unsigned long long)io->offset_bytes, (unsigned long long)io->len_bytes,
             (unsigned long long)block, (unsigned long long)op->lo,
             (unsigned long long)hi, history, got);
}

static void check_read(struct op *op)
{
    uint64_t at = op->io.offset_bytes, end = at + op->io.len_bytes;
    while (at < end) {
        uint64_t block = at / BLOCK_SIZE;
        uint64_t to = min_u64(end, (block + 1) * BLOCK_SIZE);
        check_read_block(op, block, (uint32_t)(at % BLOCK_SIZE),
                         (uint32_t)(to - block * BLOCK_SIZE));
        at = to;
    }
}

static void read_finished(struct disk_io *io)
{
    struct op *op = container_of(io, struct op, io);
    op_check_result(op, io->result, NULL);
    if (io->result == 0)
        check_read(op);
    buffer_put(io->buffer);
    io_end(op, io->result);
}

void io_read_begin(struct run *run)
{
    struct client *client = pick_client(run, false);
    if (client == NULL)
        return;
    struct disk_io io = {.op = DISK_READ, .done = read_finished};
    draw_range(run, client, 256 * KIB, &io.offset_bytes, &io.len_bytes);
    uint64_t start = round_down_u64(io.offset_bytes, BLOCK_SIZE);
    uint64_t end = round_up_u64(io.offset_bytes + io.len_bytes, BLOCK_SIZE);
    io.buffer = buffer_create(host_buffers(run->host), end - start);
    if (io.buffer == NULL)
        return;
    memset(io.buffer->data, GARBAGE, end - start);
    struct op *op = io_begin(run, "read", client);
    op->io = io;
    disk_submit(client->disk, &op->io);
}

/* --- what must be refused --- */

static void bad_finished(struct disk_io *io)
{
    struct op *op = container_of(io, struct op, io);
    if (io->result == 0)
        run_fail(op->run, "%s of %s was not refused", op->name, op->md->name);
    if (io->buffer != NULL)
        buffer_put(io->buffer);
    io_end(op, io->result);
}

void io_bad_begin(struct run *run)
{
    struct client *client = pick_client(run, false);
    if (client == NULL)
        return;
    uint64_t size = disk_size_bytes(client->disk);
    struct disk_io io = {.op = run_chance(run, 50) ? DISK_WRITE : DISK_READ,
                         .offset_bytes = size - run_random(run, BLOCK_SIZE),
                         .len_bytes = BLOCK_SIZE,
                         .done = bad_finished};
    if (client->snap != NULL && io.op == DISK_WRITE)
        io.offset_bytes = 0;
    else if (io.offset_bytes + io.len_bytes <= size)
        io.offset_bytes = size;
    io.buffer = buffer_create(host_buffers(run->host), 2 * BLOCK_SIZE);
    if (io.buffer == NULL)
        return;
    memset(io.buffer->data, GARBAGE, 2 * BLOCK_SIZE);
    struct op *op = io_begin(run, "bad request", client);
    op->io = io;
    op->may_be_refused = true;
    disk_submit(client->disk, &op->io);
}

/* --- block status --- */

/* Blocks of the line, or of one below it, that lie in a hole must be zeros. */
static void check_hole(struct op *op, const struct line *line, uint64_t first,
                       uint64_t end, uint64_t hi)
{
    static const uint8_t zeros[BLOCK_SIZE];
    uint64_t number;
    for (; line != NULL; line = line->base != NULL ? line->base->line : NULL) {
        for (size_t i = 0; i < line->slot_count; i++) {
            uint64_t block = line->slots[i].block_plus_one - 1;
            if (line->slots[i].block_plus_one == 0 || block < first || block >= end)
                continue;
            if (!line_explains(op->line, block, op->lo, hi, zeros, 0, BLOCK_SIZE,
                               &number))
                run_fail(op->run, "block status of %s: block %llu is not a hole",
                         op->md->name, (unsigned long long)block);
        }
    }
}

static async void status_main(struct op *op)
{
    struct disk_range ranges[64];
    struct run *run = op->run;
    uint64_t at = op->io.offset_bytes, end = at + op->io.len_bytes;
    bool is_head = op->client->snap == NULL;
    int rc = 0;
    while (rc == 0 && at < end) {
        uint32_t count = 0;
        rc = disk_block_status(op->client->disk, at, end - at, ranges,
                               (uint32_t)run_between(run, 1, ARRAY_LEN(ranges)), &count);
        op_check_result(op, rc, NULL);
        if (rc == 0 && count == 0)
            run_fail(run, "block status of %s says nothing", op->md->name);
        for (uint32_t i = 0; rc == 0 && i < count; i++) {
            if (ranges[i].len_bytes == 0 || ranges[i].len_bytes > end - at)
                run_fail(run, "block status of %s has a wrong length", op->md->name);
            uint64_t to = at + ranges[i].len_bytes;
            if (ranges[i].kind == DISK_HOLE)
                check_hole(op, op->line, div_up_u64(at, BLOCK_SIZE), to / BLOCK_SIZE,
                           is_head ? op->line->last : op->lo);
            at = to;
        }
    }
    io_end(op, rc);
}

void io_status_begin(struct run *run)
{
    struct client *client = pick_client(run, false);
    if (client == NULL)
        return;
    struct op *op = io_begin(run, "block status", client);
    draw_interval(run, client, &op->io);
    op_start_task(op, status_main);
}
