/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A change (write, trim, zero) becomes records of the log: stretches of data, and
 * intervals for what is zeros; all-zero blocks of a write count as zeros. When the last
 * record is committed, which puts it into the top layer, the change is done; a forced
 * one is flushed first. Parts of blocks are read, merged and written on a task, alone
 * among the changes that overlap them (D6).
 *
 * What the log cannot take (no space, log down) fails the whole change; parts of it may
 * be on the disk, as on any disk. While the log or the overlay is too far ahead of the
 * checkpoint, changes wait at the door; if that checkpoint fails, so do they.
 *
 * A closing disk has no clients, so nothing is in flight here.
 */
#include "cow/disk_internal.h"

struct write_part {
    struct log_record record; /* first: found from it */
    struct disk_io *io;       /* NULL: somebody waits on `finished` */
    struct event *finished;
    int *ret_result;
};

static bool overlaps(const struct disk_io *a, const struct disk_io *b)
{
    return a->first < b->end && b->first < a->end;
}

/* D6: true if no earlier change stands in the way of io. */
static bool range_is_free(const struct disk *disk, const struct disk_io *io)
{
    const struct disk_io *other;

    if (disk->partial_count == 0 || planted(PLANT_RANGE_UNLOCKED))
        return true;
    TAILQ_FOREACH (other, &disk->ranges, link) {
        if (other == io)
            return true;
        if (overlaps(other, io) && (other->partial || io->partial))
            return false;
    }
    return true;
}

static void leave_range(struct disk *disk, struct disk_io *io)
{
    if (!io->listed)
        return;
    io->listed = false;
    TAILQ_REMOVE(&disk->ranges, io, link);
    disk->change_count--;
    if (io->partial)
        disk->partial_count--;
    if (disk->waiting_count > 0)
        disk_resume(disk);
}

static void flush_finished(struct log_flush *flush);

struct pending_flush {
    struct log_flush flush;
    struct disk *disk;
    struct disk_io *io;
};

/* Makes what is committed durable, then calls done. */
static void flush_then_done(struct disk *disk, struct disk_io *io)
{
    struct pending_flush *pending = malloc(sizeof *pending);

    if (!pending) {
        disk_finish(disk, io, -ENOMEM);
        return;
    }
    *pending = (struct pending_flush){
        .flush = {.done = flush_finished}, .disk = disk, .io = io,
    };
    log_flush(disk->log, &pending->flush);
}

static void flush_finished(struct log_flush *flush)
{
    struct pending_flush *pending = container_of(flush, struct pending_flush, flush);
    struct disk *disk = pending->disk;
    struct disk_io *io = pending->io;
    int result = flush->result;

    free(pending);
    disk_done(disk, io, result);
}

void disk_flush(struct disk *disk, struct disk_io *io)
{
    if (!disk->log)
        disk_finish(disk, io, 0);
    else
        flush_then_done(disk, io);
}

/* All records of io are done. */
static void change_done(struct disk *disk, struct disk_io *io)
{
    leave_range(disk, io);
    if (io->result == 0 && (io->flags & DISK_FUA))
        flush_then_done(disk, io);
    else
        disk_done(disk, io, io->result);
}

static void part_done(struct disk *disk, struct write_part *part, int result)
{
    struct disk_io *io = part->io;

    if (io) {
        if (result < 0)
            io->result = result;
        assert(io->parts > 0);
        if (--io->parts == 0)
            change_done(disk, io);
    } else {
        *part->ret_result = result;
        event_set(part->finished);
    }
    free(part);
}

void write_committed(struct disk *disk, struct log_record *record,
                     const struct log_piece *piece, bool last)
{
    struct write_part *part = container_of(record, struct write_part, record);
    int rc = disk->down ? 0 : layers_take(disk, piece);

    /* In the log, but not to be seen: only a fresh replay can show it. */
    if (rc < 0)
        disk_go_down(disk, rc);
    if (last)
        part_done(disk, part, disk->down);
}

void write_failed(struct disk *disk, struct log_record *record, int code)
{
    if (code == -PLX_EFULL)
        checkpoint_request(disk);
    part_done(disk, container_of(record, struct write_part, record), code);
}

/* Logs blocks [first, first + count) for io: data from its buffer, or zeros. False when
 * memory is out. */
static bool log_blocks(struct disk *disk, struct disk_io *io, uint64_t first,
                       uint64_t count, bool zeros)
{
    struct write_part *part = calloc(1, sizeof *part);

    if (!part)
        return false;
    part->io = io;
    part->record = (struct log_record){
        .kind = zeros ? ENTRY_ZERO : ENTRY_DATA,
        .key = first,
        .count = count,
        .generation = disk->append_generation,
        .callbacks = &disk->callbacks,
    };
    if (!zeros)
        part->record.data = (struct slice){
            .buffer = buffer_get(io->buffer),
            .offset = (uint32_t)((first - io->first) * BLOCK_SIZE),
            .len = (uint32_t)(count * BLOCK_SIZE),
        };
    io->parts++;
    log_append(disk->log, &part->record);
    return true;
}

static bool block_is_zero(const struct disk_io *io, uint64_t block)
{
    return bytes_are_zero(io->buffer->data + (block - io->first) * BLOCK_SIZE,
                          BLOCK_SIZE);
}

/* Gives up the start-up share of `parts`; the change may be done by that. */
static void release_start(struct disk *disk, struct disk_io *io, bool ok)
{
    if (!ok)
        io->result = -ENOMEM;
    if (--io->parts > 0)
        return;
    leave_range(disk, io);
    disk_finish(disk, io, io->result);
}

/* Logs a write whose buffer holds whole blocks. */
static void log_write(struct disk *disk, struct disk_io *io)
{
    uint64_t block = io->first;
    bool ok = true;

    io->parts = 1;
    while (block < io->end && ok) {
        bool zeros = block_is_zero(io, block);
        uint64_t to = block + 1;

        while (to < io->end && block_is_zero(io, to) == zeros)
            to++;
        ok = log_blocks(disk, io, block, to - block, zeros);
        block = to;
    }
    release_start(disk, io, ok);
}

static bool starts_inside(const struct disk_io *io)
{
    return io->offset_bytes % BLOCK_SIZE != 0;
}

static bool ends_inside(const struct disk_io *io)
{
    return (io->offset_bytes + io->len_bytes) % BLOCK_SIZE != 0;
}

/* Fills the parts of the first and last block that the guest did not give. */
static async int merge_edges(struct disk *disk, struct disk_io *io)
{
    uint32_t head = (uint32_t)(io->offset_bytes % BLOCK_SIZE);
    uint32_t tail = (uint32_t)((io->offset_bytes + io->len_bytes) % BLOCK_SIZE);
    uint64_t last = io->end - 1;
    cleanup(free_ptr) uint8_t *old = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    int rc = old ? 0 : -ENOMEM;

    if (rc == 0 && head) {
        rc = read_blocks(disk, io->first, 1, old);
        if (rc == 0)
            memcpy(io->buffer->data, old, head);
    }
    if (rc == 0 && tail) {
        if (!head || last != io->first)
            rc = read_blocks(disk, last, 1, old);
        uint8_t *block = io->buffer->data + (last - io->first) * BLOCK_SIZE;
        if (rc == 0)
            memcpy(block + tail, old + tail, BLOCK_SIZE - tail);
    }
    return rc;
}

/* The edge blocks of a zero, with zeros merged in, written one by one. */
static async int zero_edge(struct disk *disk, struct disk_io *io, uint64_t block)
{
    uint64_t start = block * BLOCK_SIZE;
    uint64_t from = max_u64(io->offset_bytes, start);
    uint64_t to = min_u64(io->offset_bytes + io->len_bytes, start + BLOCK_SIZE);
    struct buffer *buffer;
    int rc = buffer_await(disk->host->log_buffers, BLOCK_SIZE, &buffer);

    if (rc < 0)
        return rc;
    rc = read_blocks(disk, block, 1, buffer->data);
    if (rc == 0) {
        memset(buffer->data + (from - start), 0, to - from);
        io->buffer = buffer;
        uint64_t first = io->first;
        io->first = block; /* where the buffer starts, for log_blocks */
        bool zeros = bytes_are_zero(buffer->data, BLOCK_SIZE);
        rc = log_blocks(disk, io, block, 1, zeros) ? 0 : -ENOMEM;
        io->first = first;
        io->buffer = NULL;
    }
    buffer_put(buffer);
    return rc;
}

static async int zero_partial(struct disk *disk, struct disk_io *io)
{
    uint64_t first = io->first, end = io->end;
    int rc = 0;

    if (starts_inside(io))
        rc = zero_edge(disk, io, first++);
    if (rc == 0 && ends_inside(io) && end > first)
        rc = zero_edge(disk, io, --end);
    if (rc == 0 && end > first)
        rc = log_blocks(disk, io, first, end - first, true) ? 0 : -ENOMEM;
    return rc;
}

static async void partial_main(struct task_call *call)
{
    struct disk_io *io = container_of(call, struct disk_io, task);
    struct disk *disk = io->disk;
    int rc;

    if (io->op == DISK_WRITE) {
        rc = merge_edges(disk, io);
        if (rc == 0 && disk->down == 0) {
            log_write(disk, io);
            return;
        }
        io->parts = 1;
    } else {
        io->parts = 1;
        rc = zero_partial(disk, io);
    }
    if (rc == 0)
        rc = disk->down;
    if (rc < 0)
        io->result = rc;
    release_start(disk, io, true);
}

static void begin(struct disk *disk, struct disk_io *io)
{
    if (io->partial) {
        io->task = (struct task_call){.main = partial_main, .name = "partial"};
        task_start(disk->loop, &io->task);
    } else if (io->op == DISK_WRITE) {
        log_write(disk, io);
    } else {
        io->parts = 1;
        bool ok = log_blocks(disk, io, io->first, io->end - io->first, true);
        release_start(disk, io, ok);
    }
}

/* 0: changes may start; 1: they wait for a checkpoint; or why they fail. */
static int door(const struct disk *disk)
{
    if (disk->down)
        return disk->down;
    if (!checkpoint_behind(disk))
        return 0;
    return disk->checkpoint_error < 0 ? disk->checkpoint_error : 1;
}

static void refuse(struct disk *disk, struct disk_io *io, int code)
{
    TAILQ_REMOVE(&disk->ranges, io, link);
    io->listed = false;
    disk->change_count--;
    if (io->partial)
        disk->partial_count--;
    disk_finish(disk, io, code);
}

void disk_change(struct disk *disk, struct disk_io *io)
{
    if (io->op == DISK_TRIM) {
        io->first = div_up_u64(io->offset_bytes, BLOCK_SIZE);
        io->end = (io->offset_bytes + io->len_bytes) / BLOCK_SIZE;
        if (io->first >= io->end) {
            disk_finish(disk, io, 0);
            return;
        }
    } else {
        io->partial = starts_inside(io) || ends_inside(io);
    }
    TAILQ_INSERT_TAIL(&disk->ranges, io, link);
    io->listed = true;
    disk->change_count++;
    if (io->partial)
        disk->partial_count++;
    int rc = door(disk);
    if (rc < 0) {
        refuse(disk, io, rc);
    } else if (rc > 0 || !range_is_free(disk, io)) {
        io->waiting = true;
        disk->waiting_count++;
        checkpoint_consider(disk);
    } else {
        begin(disk, io);
    }
}

/* The first waiting change that may start now, or NULL. */
static struct disk_io *next_startable(struct disk *disk)
{
    struct disk_io *io;

    TAILQ_FOREACH (io, &disk->ranges, link)
        if (io->waiting && range_is_free(disk, io))
            return io;
    return NULL;
}

void disk_resume(struct disk *disk)
{
    struct disk_io *io;
    int rc;

    if (disk->resuming) /* a change that failed at once left its range */
        return;
    disk->resuming = true;
    while (disk->waiting_count > 0 && (rc = door(disk)) <= 0 &&
           (io = next_startable(disk))) {
        io->waiting = false;
        disk->waiting_count--;
        if (rc < 0)
            refuse(disk, io, rc);
        else
            begin(disk, io);
    }
    disk->resuming = false;
}

struct flush_wait {
    struct log_flush flush;
    struct event finished;
};

static void wait_finished(struct log_flush *flush)
{
    event_set(&container_of(flush, struct flush_wait, flush)->finished);
}

async int disk_flush_wait(struct disk *disk)
{
    struct flush_wait wait = {.flush = {.done = wait_finished}};

    event_init(&wait.finished);
    log_flush(disk->log, &wait.flush);
    event_wait(&wait.finished);
    return wait.flush.result;
}

async int disk_zero_wait(struct disk *disk, uint64_t first, uint64_t count)
{
    struct write_part *part = calloc(1, sizeof *part);
    struct event finished;
    int result = 0;

    if (!part)
        return -ENOMEM;
    event_init(&finished);
    part->finished = &finished;
    part->ret_result = &result;
    part->record = (struct log_record){
        .kind = ENTRY_ZERO,
        .key = first,
        .count = count,
        .generation = disk->append_generation,
        .use_reserve = true,
        .callbacks = &disk->callbacks,
    };
    log_append(disk->log, &part->record);
    event_wait(&finished);
    return result;
}
