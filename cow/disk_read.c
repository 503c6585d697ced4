/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A read asks the layers, newest first, then the map, and turns what it finds into
 * stretches: zeros are filled in, blocks at consecutive addresses of one extent become
 * one copies_read with their checksums. If a map node is not in memory the rest goes on
 * on a task. Reads never see part of a later state: the root is the one that belonged to
 * the layers at the moment they were asked (D3).
 *
 * What the read was told of may be superseded, and trimmed after a checkpoint, before it
 * gets there: then it is dead, and the read begins again with what is true now.
 *
 * A block that cannot be read or verified fails the whole operation with -EIO after all
 * parts have ended; the failure is logged here, once.
 *
 * There is nothing to close: parts hold no pins, an address keeps its content.
 */
#include "cow/disk_internal.h"

struct read_gap {
    uint64_t first, end;
};

struct read_part {
    struct log_read read;
    struct iovec iov;
    struct read_job *job;
    uint32_t crcs[];
};

/* More than once only if checkpoints follow each other faster than a block is read. */
#define TRIES_MAX 5U

static void begin(struct read_job *job, bool inside);

static async void again_main(struct task_call *call)
{
    struct read_job *job = container_of(call, struct read_job, task);

    if (!job->disk->is_remote) {
        begin(job, false);
        return;
    }
    job->result = -PLX_EDEAD; /* there is nothing to look at any more */
    job->done(job);
}

static void job_unref(struct read_job *job)
{
    assert(job->pending > 0);
    if (--job->pending > 0)
        return;
    free(take(job->gaps));
    if (job->is_stale && job->result == 0) {
        job->inside = false;
        job->task = (struct task_call){.main = again_main, .name = "read again"};
        task_start(job->disk->loop, &job->task);
        return;
    }
    job->done(job);
}

bool read_is_stale(int code)
{
    return code == -PLX_EDEAD || code == -PLX_ENOTHERE;
}

/* True if the whole read is to be tried again. */
static bool note_stale(struct read_job *job, int code)
{
    bool again = read_is_stale(code) && job->tries < TRIES_MAX &&
                 disk_serves_reads(job->disk) && !job->disk->is_remote;

    job->is_stale = job->is_stale || again;
    return again;
}

static void log_failure(struct read_job *job, const struct log_read *read, uint64_t block)
{
    struct address at = address_plus(read->address, read->bad_block);

    log_error(job->disk->loop, "disk %s: read at %llu: extent %llx block %u: %s",
              job->disk->name,
              (unsigned long long)((block + read->bad_block) * BLOCK_SIZE),
              (unsigned long long)address_extent(at).v, address_block(at),
              err_text(read->result));
}

static void part_done(struct log_read *read)
{
    struct read_part *part = container_of(read, struct read_part, read);
    struct read_job *job = part->job;

    if (read->result < 0 && !note_stale(job, read->result)) {
        uint64_t skip = (uint64_t)((uint8_t *)part->iov.iov_base - job->bytes);
        log_failure(job, read, job->first + skip / BLOCK_SIZE);
        job->result = read->result;
    }
    free(part);
    job_unref(job);
}

static uint8_t *place(const struct read_job *job, uint64_t block)
{
    return job->bytes + (block - job->first) * BLOCK_SIZE;
}

static void fill_zeros(struct read_job *job, uint64_t block, uint64_t count)
{
    memset(place(job, block), 0, count * BLOCK_SIZE);
}

static void start_part(struct read_job *job, uint64_t block, uint32_t count,
                       struct address address, const uint32_t *crcs)
{
    struct read_part *part = malloc(sizeof *part + count * sizeof *crcs);

    if (!part) {
        job->result = -ENOMEM;
        return;
    }
    memcpy(part->crcs, crcs, count * sizeof *crcs);
    part->job = job;
    part->iov = (struct iovec){place(job, block), (size_t)count * BLOCK_SIZE};
    part->read = (struct log_read){
        .address = address,
        .count = count,
        .iov = &part->iov,
        .iov_count = 1,
        .crcs = part->crcs,
        .done = part_done,
    };
    job->pending++;
    job->parts++;
    copies_read(job->disk->host->copies, &part->read);
}

/* Reads [block, end) of one span of the map; end lies within it. */
static void read_span(struct read_job *job, const struct map_span *span, uint64_t block,
                      uint64_t end)
{
    uint32_t crcs[MAP_FANOUT];

    if (!span->leaf) {
        fill_zeros(job, block, end - block);
        return;
    }
    while (block < end) {
        struct map_entry entry = map_span_entry(span, block);
        uint32_t count = 1;

        if (address_is_null(entry.address)) {
            fill_zeros(job, block++, 1);
            continue;
        }
        crcs[0] = entry.crc;
        while (block + count < end && count < MAP_FANOUT) {
            struct map_entry next = map_span_entry(span, block + count);
            if (next.address.v != entry.address.v + count ||
                !address_equal(address_extent(next.address),
                               address_extent(entry.address)))
                break;
            crcs[count++] = next.crc;
        }
        start_part(job, block, count, entry.address, crcs);
        block += count;
    }
}

/* Goes as far as the nodes in memory allow; returns where it stopped. */
static uint64_t read_mapped(struct read_job *job, uint64_t block, uint64_t end)
{
    while (block < end) {
        struct node_cache *nodes = job->disk->host->nodes;
        struct map_span span;

        if (map_try(nodes, &job->root, block, &span) < 0)
            break;
        uint64_t to = min_u64(end, span.start + span.count);
        read_span(job, &span, block, to);
        if (span.leaf)
            node_put(nodes, span.leaf);
        block = to;
    }
    return block;
}

static void keep_gap(struct read_job *job, uint64_t first, uint64_t end)
{
    if (!job->gaps)
        job->gaps = malloc(job->count * sizeof *job->gaps);
    if (!job->gaps) {
        job->result = -ENOMEM;
        return;
    }
    job->gaps[job->gap_count++] = (struct read_gap){first, end};
}

static async void gaps_main(struct task_call *call)
{
    struct read_job *job = container_of(call, struct read_job, task);
    struct node_cache *nodes = job->disk->host->nodes;

    for (uint32_t i = 0; i < job->gap_count && job->result == 0 && !job->is_stale; i++) {
        uint64_t block = job->gaps[i].first, end = job->gaps[i].end;
        while (block < end) {
            struct map_span span;
            int rc = map_get(nodes, &job->root, block, &span);
            if (rc < 0 && note_stale(job, rc))
                break;
            if (rc < 0) {
                log_error(job->disk->loop, "disk %s: map of block %llu: %s",
                          job->disk->name, (unsigned long long)block, err_text(rc));
                job->result = rc;
                break;
            }
            uint64_t to = min_u64(end, span.start + span.count);
            read_span(job, &span, block, to);
            if (span.leaf)
                node_put(nodes, span.leaf);
            block = to;
        }
    }
    job_unref(job);
}

static void begin(struct read_job *job, bool inside)
{
    uint64_t block = job->first, end = job->first + job->count;

    job->result = 0;
    job->tries++;
    job->is_stale = false;
    job->inside = inside;
    job->pending = 1;
    job->parts = 0;
    job->gaps = NULL;
    job->gap_count = 0;
    job->root = job->disk->root; /* D3 */
    while (block < end) {
        struct layer_run run = layers_find(job->disk, block, end);
        uint64_t to = block + run.count;

        if (!run.in_layers) {
            uint64_t stopped = read_mapped(job, block, to);
            if (stopped < to)
                keep_gap(job, stopped, to);
        } else if (address_is_null(run.address)) {
            fill_zeros(job, block, run.count);
        } else {
            start_part(job, block, (uint32_t)run.count, run.address, run.crcs);
        }
        block = to;
    }
    if (job->gap_count > 0 && job->result == 0) {
        job->inside = false;
        job->task = (struct task_call){.main = gaps_main, .name = "read"};
        task_start(job->disk->loop, &job->task);
    } else {
        job->inside = inside && job->pending == 1;
        job_unref(job);
    }
}

void read_start(struct read_job *job)
{
    job->tries = 0;
    begin(job, true);
}

struct read_wait {
    struct read_job job;
    struct event finished;
};

static void wait_done(struct read_job *job)
{
    event_set(&container_of(job, struct read_wait, job)->finished);
}

async int read_blocks(struct disk *disk, uint64_t first, uint64_t count, uint8_t *bytes)
{
    struct read_wait wait = {
        .job = {.disk = disk, .first = first, .count = count, .bytes = bytes,
                .done = wait_done},
    };

    event_init(&wait.finished);
    read_start(&wait.job);
    event_wait(&wait.finished);
    return wait.job.result;
}

static void io_done(struct read_job *job)
{
    struct disk_io *io = job->arg;
    struct disk *disk = job->disk;
    int result = job->result;
    bool inside = job->inside;

    if (job->ordered)
        locality_read(disk, job->first, job->count, job->parts);
    free(job);
    if (result < 0 && disk->is_remote) { /* it was handed over meanwhile */
        if (!(io->flags & DISK_FOR_OTHERS)) {
            remote_submit(disk, io);
            return;
        }
        result = -EAGAIN;
    }
    if (inside)
        disk_finish(disk, io, result);
    else
        disk_done(disk, io, result);
}

void disk_read(struct disk *disk, struct disk_io *io)
{
    struct read_job *job = malloc(sizeof *job);

    if (!job) {
        disk_finish(disk, io, -ENOMEM);
        return;
    }
    *job = (struct read_job){
        .disk = disk,
        .first = io->first,
        .count = io->end - io->first,
        .bytes = io->buffer->data,
        .done = io_done,
        .arg = io,
        .ordered = read_is_ordered(&disk->streams, io->first, io->end),
    };
    read_start(job);
}
