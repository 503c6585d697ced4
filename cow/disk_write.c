/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A change (write, trim, zero) becomes records of the log: stretches of data, and
 * intervals for what is zeros; all-zero blocks of a write count as zeros. When the last
 * record is committed, which puts it into the top layer, the change is done; a forced
 * one is flushed first. Parts of blocks are read, merged and written on a task, alone
 * among the changes that overlap them (D6).
 *
 * A record that finds no space waits for some, and what of it was not committed is logged
 * again (space.c): blocks that can be read already may be superseded meanwhile. Only if
 * no space comes, or when the log is down, the whole change fails. Parts of it may be on
 * the disk, as on any disk. Zeros may use the reserve: they are how space comes back.
 * While the log or the overlay is too far ahead of the checkpoint, changes wait at the
 * door; if that checkpoint fails, so do they.
 *
 * A closing disk has no clients, so nothing is in flight here.
 */
#include "cow/disk_internal.h"
#include "cow/locality.h"

struct write_part {
    struct log_record record; /* first: found from it */
    struct disk_io *io;       /* NULL: a task waits */
    struct write_wait *wait;
    struct slice data;        /* of its own, to log it again; no buffer: zeros */
    uint64_t taken;           /* blocks of data that are committed since it was logged */
    struct space_wait space;
};

/* A task that waits for records of its own. */
struct write_wait {
    struct event finished;
    uint32_t parts;           /* not done yet, and one while they are being queued */
    int result;
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
    if (disk->door_closed)
        waitlist_wake_all(&disk->drained);
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

static void wait_unref(struct write_wait *wait, int result)
{
    if (result < 0)
        wait->result = result;
    assert(wait->parts > 0);
    if (--wait->parts == 0)
        event_set(&wait->finished);
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
        wait_unref(part->wait, result);
    }
    buffer_put(part->data.buffer);
    free(part);
}

void write_committed(struct disk *disk, struct log_record *record,
                     const struct log_piece *piece, bool last)
{
    struct write_part *part = container_of(record, struct write_part, record);
    int rc = disk->down ? 0 : layers_take(disk, piece);

    part->taken += piece->count;
    /* In the log, but not to be seen: only a fresh replay can show it. */
    if (rc < 0)
        disk_go_down(disk, rc);
    if (last)
        part_done(disk, part, disk->down);
}

/* --- logging, and waiting for space --- */

/* A record is committed from its start on. */
static void drop_taken(struct write_part *part)
{
    uint64_t taken = part->taken;

    part->taken = 0;
    if (!part->data.buffer)
        return;
    part->record.key += taken;
    part->record.count -= taken;
    part->data.offset += (uint32_t)(taken * BLOCK_SIZE);
    part->data.len -= (uint32_t)(taken * BLOCK_SIZE);
}

static void submit_part(struct disk *disk, struct write_part *part)
{
    drop_taken(part);
    part->record.generation = disk->append_generation;
    part->record.data = part->data;
    if (part->data.buffer) {
        (void)buffer_get(part->data.buffer);
        part->space.of_quota = space_over_quota(disk);
    }
    if (part->space.of_quota) {
        buffer_put(take(part->record.data.buffer));
        space_wait(disk, &part->space);
        return;
    }
    log_append(disk->log, &part->record);
}

static void wait_over(struct space_wait *wait, int code)
{
    struct write_part *part = container_of(wait, struct write_part, space);
    struct disk *disk = wait->disk;

    if (code == 0)
        code = disk->down;
    if (code < 0)
        part_done(disk, part, code);
    else
        submit_part(disk, part);
}

void write_failed(struct disk *disk, struct log_record *record, int code)
{
    struct write_part *part = container_of(record, struct write_part, record);

    if (code != -PLX_EFULL || !part->io || disk->down) {
        part_done(disk, part, code);
        return;
    }
    if (part->record.kind == ENTRY_ZERO && !part->record.use_reserve) {
        checkpoint_request(disk); /* before many of them have used it up */
        part->record.use_reserve = true;
        part->record.generation = disk->append_generation; /* it may follow a marker */
        log_append(disk->log, &part->record);
        return;
    }
    space_wait(disk, &part->space);
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
    part->space.over = wait_over;
    part->record = (struct log_record){
        .kind = zeros ? ENTRY_ZERO : ENTRY_DATA,
        .key = first,
        .count = count,
        .callbacks = &disk->callbacks,
    };
    if (!zeros)
        part->data = (struct slice){
            .buffer = buffer_get(io->buffer),
            .offset = (uint32_t)((first - io->first) * BLOCK_SIZE),
            .len = (uint32_t)(count * BLOCK_SIZE),
        };
    io->parts++;
    submit_part(disk, part);
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

/* 0: changes may start; 1: they wait for a checkpoint or a hand-over; or why they
 * fail. */
static int door(const struct disk *disk)
{
    if (disk->down)
        return disk->down;
    if (disk->door_closed)
        return 1;
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

void disk_unlist(struct disk *disk, struct disk_io *io)
{
    assert(io->waiting && io->listed);
    TAILQ_REMOVE(&disk->ranges, io, link);
    io->waiting = io->listed = false;
    disk->waiting_count--;
    disk->change_count--;
    if (io->partial)
        disk->partial_count--;
    io->partial = false;
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
    locality_changed(disk, io->first, io->end);
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
        if (!disk->door_closed)
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

/* Queues a record that `wait` waits for; a reference of data is taken over. */
static void wait_append(struct disk *disk, struct write_wait *wait,
                        const struct log_record *record)
{
    struct write_part *part = calloc(1, sizeof *part);

    if (!part) {
        buffer_put(record->data.buffer);
        wait->result = -ENOMEM;
        return;
    }
    part->wait = wait;
    part->record = *record;
    part->record.generation = disk->append_generation;
    part->record.callbacks = &disk->callbacks;
    wait->parts++;
    log_append(disk->log, &part->record);
}

static async int wait_for_parts(struct write_wait *wait)
{
    wait_unref(wait, 0);
    event_wait(&wait->finished);
    return wait->result;
}

async int disk_zero_wait(struct disk *disk, uint64_t first, uint64_t count)
{
    struct write_wait wait = {.parts = 1};
    struct log_record record = {
        .kind = ENTRY_ZERO, .key = first, .count = count, .use_reserve = true,
    };

    event_init(&wait.finished);
    locality_changed(disk, first, first + count);
    wait_append(disk, &wait, &record);
    return wait_for_parts(&wait);
}

async int disk_data_wait(struct disk *disk, uint64_t first, uint64_t count,
                         const bool *wanted, struct buffer *buffer)
{
    struct write_wait wait = {.parts = 1};
    uint64_t to;

    event_init(&wait.finished);
    for (uint64_t at = 0; at < count && wait.result == 0; at = to) {
        to = at + 1;
        if (!wanted[at])
            continue;
        while (to < count && wanted[to])
            to++;
        struct log_record record = {
            .kind = ENTRY_DATA,
            .key = first + at,
            .count = to - at,
            .data = {.buffer = buffer_get(buffer),
                     .offset = (uint32_t)(at * BLOCK_SIZE),
                     .len = (uint32_t)((to - at) * BLOCK_SIZE)},
        };
        wait_append(disk, &wait, &record);
    }
    return wait_for_parts(&wait);
}
