/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/nbdserver/fake_disk.h"

#include <stdio.h>
#include <sys/mman.h>

static void finish_run(struct work *work);

struct host *fake_host_create(struct loop *loop, uint64_t buffer_bytes)
{
    struct host *host = calloc(1, sizeof *host);
    assert(host);
    host->loop = loop;
    host->buffers = buffer_pool_create(buffer_bytes);
    assert(host->buffers);
    host->bad_offset = UINT64_MAX;
    host->work.run = finish_run;
    TAILQ_INIT(&host->done);
    TAILQ_INIT(&host->held);
    return host;
}

void fake_host_destroy(struct host *host)
{
    assert(fake_openings(host) == 0);
    assert(TAILQ_EMPTY(&host->done) && TAILQ_EMPTY(&host->held));
    for (uint32_t i = 0; i < host->disk_count; i++) {
        struct disk *disk = &host->disks[i];
        munmap(disk->bytes, disk->size_bytes + BLOCK_SIZE);
        free(disk->is_data);
    }
    buffer_pool_destroy(host->buffers);
    free(host);
}

struct disk *fake_disk_add(struct host *host, const char *name, uint64_t size_bytes)
{
    assert(host->disk_count < FAKE_DISKS_MAX);
    struct disk *disk = &host->disks[host->disk_count++];
    *disk = (struct disk){.host = host, .name = name, .size_bytes = size_bytes};
    disk->read_only = strchr(name, '@') != NULL;
    disk->bytes = mmap(NULL, size_bytes + BLOCK_SIZE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert(disk->bytes != MAP_FAILED);
    disk->is_data = calloc(1, div_up_u64(size_bytes, BLOCK_SIZE) + 1);
    assert(disk->is_data);
    return disk;
}

uint32_t fake_openings(const struct host *host)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < host->disk_count; i++)
        count += host->disks[i].openings;
    return count;
}

/* --- operations --- */

static void copy(struct disk *disk, struct disk_io *io)
{
    uint8_t *payload = io->buffer->data + io->offset_bytes % BLOCK_SIZE;
    uint64_t first = io->offset_bytes / BLOCK_SIZE;
    uint64_t end = div_up_u64(io->offset_bytes + io->len_bytes, BLOCK_SIZE);
    assert((end - first) * BLOCK_SIZE <= io->buffer->capacity);
    if (io->op == DISK_READ) {
        memcpy(payload, disk->bytes + io->offset_bytes, io->len_bytes);
        return;
    }
    memcpy(disk->bytes + io->offset_bytes, payload, io->len_bytes);
    memset(disk->is_data + first, 1, end - first);
}

static void zero(struct disk *disk, const struct disk_io *io)
{
    uint64_t first = div_up_u64(io->offset_bytes, BLOCK_SIZE);
    uint64_t end = (io->offset_bytes + io->len_bytes) / BLOCK_SIZE;
    memset(disk->bytes + io->offset_bytes, 0, io->len_bytes);
    if (end > first)
        memset(disk->is_data + first, 0, end - first);
}

static void count(struct host *host, const struct disk_io *io)
{
    switch (io->op) {
    case DISK_READ:
        host->reads++;
        break;
    case DISK_WRITE:
        host->writes++;
        break;
    case DISK_FLUSH:
        host->flushes++;
        break;
    case DISK_TRIM:
        host->trims++;
        break;
    case DISK_ZERO:
        host->zeroes++;
        break;
    }
    host->fua += (io->flags & DISK_FUA) != 0;
    host->no_hole += (io->flags & DISK_NO_HOLE) != 0;
}

static int run(struct disk *disk, struct disk_io *io)
{
    struct host *host = disk->host;
    uint64_t end;
    count(host, io);
    if (io->op == DISK_FLUSH)
        return 0;
    if (io->op != DISK_READ && disk->read_only)
        return -EROFS;
    if (!add_u64(io->offset_bytes, io->len_bytes, &end) || end > disk->size_bytes)
        return -EINVAL;
    if (host->bad_offset >= io->offset_bytes && host->bad_offset < end)
        return -PLX_ECHECKSUM;
    if (io->op == DISK_READ || io->op == DISK_WRITE)
        copy(disk, io);
    else
        zero(disk, io);
    return 0;
}

static void finish_run(struct work *work)
{
    struct host *host = container_of(work, struct host, work);
    struct fake_io_list list;
    struct disk_io *io;
    TAILQ_INIT(&list);
    TAILQ_CONCAT(&list, &host->done, link);
    while ((io = TAILQ_FIRST(&list))) {
        TAILQ_REMOVE(&list, io, link);
        io->disk->inflight--;
        io->done(io);
    }
}

void disk_submit(struct disk *disk, struct disk_io *io)
{
    struct host *host = disk->host;
    struct fake_io_list *list = host->hold ? &host->held : &host->done;
    assert(disk->openings > 0);
    assert(io->opened == FAKE_OPENED);
    disk->inflight++;
    assert(disk->inflight <= DISK_IO_INFLIGHT_MAX);
    io->disk = disk;
    io->result = run(disk, io);
    if (host->reorder)
        TAILQ_INSERT_HEAD(list, io, link);
    else
        TAILQ_INSERT_TAIL(list, io, link);
    if (!host->hold)
        loop_post(host->loop, &host->work);
}

void fake_release(struct host *host)
{
    host->hold = false;
    TAILQ_CONCAT(&host->done, &host->held, link);
    loop_post(host->loop, &host->work);
}

async int disk_block_status(struct disk *disk, uint64_t offset_bytes, uint64_t len_bytes,
                            struct disk_range *ret_ranges, uint32_t max,
                            uint32_t *ret_count)
{
    uint64_t end = offset_bytes + len_bytes;
    uint32_t n = 0;
    task_yield();
    assert(max > 0 && len_bytes > 0 && end <= disk->size_bytes);
    while (offset_bytes < end) {
        uint8_t is_data = disk->is_data[offset_bytes / BLOCK_SIZE];
        uint64_t to = min_u64(end, round_down_u64(offset_bytes, BLOCK_SIZE) + BLOCK_SIZE);
        enum disk_status_kind kind = is_data ? DISK_DATA : DISK_HOLE;
        if (n > 0 && ret_ranges[n - 1].kind == kind)
            ret_ranges[n - 1].len_bytes += to - offset_bytes;
        else if (n == max)
            break;
        else
            ret_ranges[n++] = (struct disk_range){to - offset_bytes, kind};
        offset_bytes = to;
    }
    *ret_count = n;
    return 0;
}

/* --- changes --- */

/* A version is the index of its disk, plus 1. */
int disk_find_snapshot(struct disk *disk, const char *snapshot, uint64_t *ret_version,
                       struct error *err)
{
    char name[2 * DISK_NAME_MAX + 2];
    snprintf(name, sizeof name, "%.*s@%s", (int)strcspn(disk->name, "@"), disk->name,
             snapshot);
    for (uint32_t i = 0; i < disk->host->disk_count; i++) {
        if (strcmp(disk->host->disks[i].name, name) == 0) {
            *ret_version = i + 1;
            return 0;
        }
    }
    return err_set(err, -PLX_EMISSING, "there is no %s", name);
}

/* Beyond its end a disk is zero; its memory has that much room. */
static bool block_differs(const struct disk *a, const struct disk *b, uint64_t offset)
{
    static const uint8_t zeros[BLOCK_SIZE];
    bool in_a = offset < a->size_bytes, in_b = offset < b->size_bytes;
    return memcmp(in_a ? a->bytes + offset : zeros, in_b ? b->bytes + offset : zeros,
                  BLOCK_SIZE) != 0;
}

async int disk_changed_since(struct disk *disk, uint64_t version, uint64_t offset_bytes,
                             uint64_t len_bytes, struct disk_change_range *ret_ranges,
                             uint32_t max, uint32_t *ret_count)
{
    struct host *host = disk->host;
    uint64_t end = offset_bytes + len_bytes;
    uint32_t n = 0;
    task_yield();
    assert(max > 0 && len_bytes > 0 && end <= disk->size_bytes);
    assert(version > 0 && version <= host->disk_count);
    if (host->bases_gone)
        return -PLX_EMISSING;
    while (offset_bytes < end) {
        uint64_t start = round_down_u64(offset_bytes, BLOCK_SIZE);
        uint64_t to = min_u64(end, start + BLOCK_SIZE);
        bool changed = block_differs(disk, &host->disks[version - 1], start);
        if (n > 0 && ret_ranges[n - 1].changed == changed)
            ret_ranges[n - 1].len_bytes += to - offset_bytes;
        else if (n == max)
            break;
        else
            ret_ranges[n++] = (struct disk_change_range){to - offset_bytes, changed};
        offset_bytes = to;
    }
    *ret_count = n;
    return 0;
}

/* --- opening --- */

static struct disk *find(struct host *host, const char *name)
{
    for (uint32_t i = 0; i < host->disk_count; i++) {
        if (strcmp(host->disks[i].name, name) == 0)
            return &host->disks[i];
    }
    return NULL;
}

async int disk_open(struct host *host, const char *name, enum disk_access access,
                    struct disk **ret_disk, struct error *err)
{
    struct disk *disk = find(host, name);
    if (host->open_ns > 0)
        task_sleep_ns(host->open_ns);
    else
        task_yield();
    if (host->open_error != 0)
        return err_set(err, host->open_error, "disk %s: %s", name,
                       err_text(host->open_error));
    if (!disk)
        return err_set(err, -PLX_EMISSING, "there is no disk %s", name);
    assert(disk->read_only == (access == DISK_READ_ONLY));
    disk->openings++;
    host->incoming += access == DISK_INCOMING;
    *ret_disk = disk;
    return 0;
}

void disk_close(struct disk *disk)
{
    assert(disk->openings > 0);
    disk->openings--;
    assert(disk->openings > 0 || disk->inflight == 0);
}

uint64_t disk_size_bytes(const struct disk *disk)
{
    return disk->size_bytes;
}

uint32_t disk_opened(const struct disk *disk)
{
    (void)disk;
    return FAKE_OPENED;
}

bool disk_is_read_only(const struct disk *disk)
{
    return disk->read_only;
}

const char *disk_name(const struct disk *disk)
{
    return disk->name;
}

struct loop *disk_loop(const struct disk *disk)
{
    return disk->host->loop;
}

/* --- the host --- */

struct loop *host_loop(struct host *host)
{
    return host->loop;
}

struct buffer_pool *host_buffers(struct host *host)
{
    return host->buffers;
}

static void fill_info(const struct disk *disk, struct disk_info *ret)
{
    *ret = (struct disk_info){.size_bytes = disk->size_bytes, .snapshot_count = 1};
    snprintf(ret->name, sizeof ret->name, "%s", disk->name);
}

int disk_list(struct host *host, struct disk_info **ret_infos, size_t *ret_count)
{
    struct disk_info *infos = calloc(FAKE_DISKS_MAX, sizeof *infos);
    size_t n = 0;
    if (!infos)
        return -ENOMEM;
    for (uint32_t i = 0; i < host->disk_count; i++) {
        if (!host->disks[i].read_only)
            fill_info(&host->disks[i], &infos[n++]);
    }
    *ret_infos = infos;
    *ret_count = n;
    return 0;
}

int disk_show(struct host *host, const char *name, struct disk_info *ret_info,
              struct error *err)
{
    const struct disk *disk = find(host, name);
    if (!disk)
        return err_set(err, -PLX_EMISSING, "there is no disk %s", name);
    fill_info(disk, ret_info);
    return 0;
}

int snapshot_list(struct host *host, const char *disk, struct snapshot_info **ret_infos,
                  size_t *ret_count, struct error *err)
{
    size_t len = strlen(disk), n = 0;
    if (!find(host, disk))
        return err_set(err, -PLX_EMISSING, "there is no disk %s", disk);
    struct snapshot_info *infos = calloc(FAKE_DISKS_MAX, sizeof *infos);
    if (!infos)
        return -ENOMEM;
    for (uint32_t i = 0; i < host->disk_count; i++) {
        const struct disk *snapshot = &host->disks[i];
        if (strncmp(snapshot->name, disk, len) != 0 || snapshot->name[len] != '@')
            continue;
        infos[n].size_bytes = snapshot->size_bytes;
        snprintf(infos[n].name, sizeof infos[n].name, "%s", snapshot->name + len + 1);
        n++;
    }
    *ret_infos = infos;
    *ret_count = n;
    return 0;
}
