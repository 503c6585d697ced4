/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations come in through disk_submit, are checked, and go to the read or the write
 * path. A read or write of whole blocks whose map nodes are in memory runs without a
 * task from here to done.
 *
 * What is refused is answered from the loop, never from inside disk_submit. When the
 * log gives up, the disk is down: whatever waits and whatever comes fails with that code
 * until the last client has left; the next opening is a new take-over. Only reads go on
 * if the store is out of service.
 *
 * disk_close gives back one client; disk_table.c decides what becomes of the disk.
 */
#include "cow/disk_internal.h"

uint64_t disk_size_bytes(const struct disk *disk)
{
    return disk->size_bytes;
}

uint32_t disk_opened(const struct disk *disk)
{
    return disk->stance;
}

bool disk_is_read_only(const struct disk *disk)
{
    return disk->version != 0;
}

const char *disk_name(const struct disk *disk)
{
    return disk->name;
}

struct loop *disk_loop(const struct disk *disk)
{
    return disk->loop;
}

static void count_done(struct disk *disk, const struct disk_io *io, int result)
{
    struct host *host = disk->host;
    uint64_t took_ns = loop_now_ns(disk->loop) - io->started_ns;

    if (result < 0)
        metric_add(host->errors, 1);
    switch (io->op) {
    case DISK_READ:
        metric_add(host->reads, 1);
        metric_observe_ns(host->read_ns, took_ns);
        break;
    case DISK_WRITE:
        metric_add(host->writes, 1);
        metric_observe_ns(host->write_ns, took_ns);
        break;
    case DISK_FLUSH:
        metric_add(host->flushes, 1);
        metric_observe_ns(host->flush_ns, took_ns);
        break;
    case DISK_TRIM:
    case DISK_ZERO:
        metric_add(host->trims, 1);
        break;
    }
}

void disk_done(struct disk *disk, struct disk_io *io, int result)
{
    assert(disk->io_count > 0);
    disk->io_count--;
    io->result = result;
    count_done(disk, io, result);
    io->done(io);
}

static void finish_run(struct work *work)
{
    struct disk *disk = container_of(work, struct disk, finish_work);
    struct disk_io_list list;
    struct disk_io *io;

    /* done may submit again and free the disk's last client: take the list first. */
    TAILQ_INIT(&list);
    TAILQ_CONCAT(&list, &disk->finished, link);
    while ((io = TAILQ_FIRST(&list))) {
        TAILQ_REMOVE(&list, io, link);
        disk_done(disk, io, io->result);
    }
}

void disk_finish(struct disk *disk, struct disk_io *io, int result)
{
    io->result = result;
    TAILQ_INSERT_TAIL(&disk->finished, io, link);
    disk->finish_work.run = finish_run;
    loop_post(disk->loop, &disk->finish_work);
}

void disk_go_down(struct disk *disk, int code)
{
    if (disk->down)
        return;
    disk->down = code;
    log_error(disk->loop, "disk %s: out of service: %s", disk->name, err_text(code));
    waitlist_wake_all(&disk->settled);
    waitlist_wake_all(&disk->drained);
    space_disk_down(disk);
    disk_resume(disk);
    /* Its part of the budget is for others now. A checkpoint does it at its end. */
    if (!disk_serves_reads(disk) && !disk->checkpoint_running)
        layers_clear(disk);
    if (disk->users == 0 && disk->state == DISK_OPEN)
        disk_close_soon(disk);
}

/* 0, or why the operation is refused. */
static int check(const struct disk *disk, const struct disk_io *io)
{
    uint64_t end;

    if (disk->down && !(io->op == DISK_READ && disk_serves_reads(disk)))
        return disk->down;
    if (io->op == DISK_FLUSH)
        return 0;
    if (io->op != DISK_READ && disk_is_read_only(disk))
        return -EROFS;
    /* It went to another host and came back for somebody else. */
    if (io->op != DISK_READ && !disk->is_remote && io->opened < disk->oldest)
        return -PLX_EEPOCH;
    if (!add_u64(io->offset_bytes, io->len_bytes, &end) || end > disk->size_bytes)
        return io->op == DISK_WRITE || io->op == DISK_ZERO ? -ENOSPC : -EINVAL;
    if ((io->op == DISK_READ || io->op == DISK_WRITE) && io->len_bytes > 0) {
        uint64_t start = round_down_u64(io->offset_bytes, BLOCK_SIZE);
        if (!io->buffer ||
            round_up_u64(end, BLOCK_SIZE) - start > io->buffer->capacity)
            return -EINVAL;
    }
    if (disk->io_count >= DISK_IO_INFLIGHT_MAX)
        return -PLX_ELIMIT;
    return 0;
}

static void start(struct disk *disk, struct disk_io *io)
{
    io->first = io->offset_bytes / BLOCK_SIZE;
    io->end = div_up_u64(io->offset_bytes + io->len_bytes, BLOCK_SIZE);
    if (disk->is_remote)
        remote_submit(disk, io);
    else if ((io->op == DISK_READ && disk->gives_up) ||
             (io->op == DISK_FLUSH && disk->state == DISK_CLOSING))
        TAILQ_INSERT_TAIL(&disk->late, io, link);
    else if (io->op == DISK_READ)
        disk_read(disk, io);
    else if (io->op == DISK_FLUSH)
        disk_flush(disk, io);
    else
        disk_change(disk, io);
}

void disk_go_on(struct disk *disk, struct disk_io *io)
{
    assert(disk->io_count > 0);
    disk->io_count--; /* it is counted already */
    int rc = check(disk, io);
    disk->io_count++;
    if (rc < 0)
        disk_finish(disk, io, rc);
    else
        start(disk, io);
}

void disk_submit(struct disk *disk, struct disk_io *io)
{
    int rc = check(disk, io);

    disk->io_count++;
    disk->host->guest_ops += 1 + (io->buffer != NULL ? io->len_bytes / ROOM_OP_BYTES : 0);
    io->disk = disk;
    io->started_ns = loop_now_ns(disk->loop);
    io->parts = 0;
    io->result = 0;
    io->waiting = io->listed = io->partial = false;
    if (rc < 0 || (io->op != DISK_FLUSH && io->len_bytes == 0)) {
        disk_finish(disk, io, rc);
        return;
    }
    start(disk, io);
}
