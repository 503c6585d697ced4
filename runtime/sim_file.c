/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Simulated files. A medium holds what a read sees now, and for every write that is not
 * known to be durable what was there before (`undo`, oldest first).
 *
 * Happy path: a submitted operation is an event; when it runs, a write saves what it
 * overwrites, then changes the medium; a sync forgets the undo records of the writes
 * that had completed when it was submitted.
 *
 * A power cut walks the undo records from the newest to the oldest and puts back some
 * sectors of some of them. So each sector ends as any of: what was last written, what
 * any write since the last sync had overwritten, what was there at that sync. That is
 * lost, kept, torn, reordered and older content, all in one rule.
 *
 * A sync that fails dooms the records it was to cover: no later sync forgets them, only
 * one that covers a newer write of the same sector settles that sector. This is what
 * Linux does: it marks the pages clean and reports the error once.
 *
 * F1  The records are in the order of `number`, and their sectors are inside the medium.
 * F2  A sector that no record covers survives everything except rot.
 */
#include "runtime/buffer.h"
#include "runtime/file.h"
#include "runtime/sim_internal.h"
#include "runtime/trace.h"

#define CHUNK_BYTES ((size_t)(64 * KIB))

struct undo {
    uint64_t number, offset_bytes;
    size_t len;
    uint64_t doomed_by; /* the first sync that failed to cover it; 0: none has */
    uint8_t *settled;   /* one byte a sector; NULL: none is */
    TAILQ_ENTRY(undo) link;
    uint8_t before[];
};
TAILQ_HEAD(undo_list, undo);

struct file_medium {
    struct sim_medium base;
    struct sim_world *world;
    uint64_t size_bytes;
    uint8_t **chunks; /* NULL: zeros */
    size_t chunk_count;
    struct undo_list undo;
    uint64_t undo_number; /* of the newest ever */
    uint64_t sync_number; /* the same of syncs */
    uint64_t *bad;        /* sectors that cannot be read */
    size_t bad_count;
    /* The file system around it. NULL: it is endless. */
    bool *backed;        /* chunks that have space in it */
    uint64_t free_bytes; /* of it, for chunks that have none */
    bool can_allocate;
};

struct sim_file {
    struct file base;
    struct sim_handle handle;
};

/* One operation in flight. */
struct sim_io {
    struct sim_event event;
    struct file_io *io;
    bool fails;
    uint64_t covers; /* a sync: undo records up to this number */
    uint64_t number; /* a sync: of those of this medium */
};

static struct file_medium *medium_of(const struct file *file)
{
    const struct sim_file *f = container_of(file, const struct sim_file, base);
    return container_of(f->handle.medium, struct file_medium, base);
}

static struct sim_process *process_of(const struct file *file)
{
    return sim_process_of(file->loop);
}

/* --- bytes --- */

/* The part of [offset, offset + len) that lies in offset's chunk. */
static size_t part_in_chunk(uint64_t offset_bytes, size_t len)
{
    size_t left = CHUNK_BYTES - offset_bytes % CHUNK_BYTES;
    return len < left ? len : left;
}

static void medium_read(const struct file_medium *m, uint64_t offset_bytes, uint8_t *ret,
                        size_t len)
{
    assert(offset_bytes + len <= m->size_bytes);
    while (len > 0) {
        size_t part = part_in_chunk(offset_bytes, len);
        const uint8_t *chunk = m->chunks[offset_bytes / CHUNK_BYTES];
        if (chunk == NULL)
            memset(ret, 0, part);
        else
            memcpy(ret, chunk + offset_bytes % CHUNK_BYTES, part);
        offset_bytes += part;
        ret += part;
        len -= part;
    }
}

static void medium_write(struct file_medium *m, uint64_t offset_bytes,
                         const uint8_t *bytes, size_t len)
{
    assert(offset_bytes + len <= m->size_bytes);
    while (len > 0) {
        size_t part = part_in_chunk(offset_bytes, len);
        uint8_t **chunk = &m->chunks[offset_bytes / CHUNK_BYTES];
        if (*chunk == NULL && !bytes_are_zero(bytes, part))
            *chunk = sim_alloc(CHUNK_BYTES);
        if (*chunk != NULL)
            memcpy(*chunk + offset_bytes % CHUNK_BYTES, bytes, part);
        offset_bytes += part;
        bytes += part;
        len -= part;
    }
}

static void medium_resize(struct file_medium *m, uint64_t size_bytes)
{
    assert(size_bytes >= m->size_bytes);
    size_t count = (size_t)div_up_u64(size_bytes, CHUNK_BYTES);
    uint8_t **chunks = sim_alloc((count + 1) * sizeof *chunks);
    if (m->chunk_count > 0)
        memcpy(chunks, m->chunks, m->chunk_count * sizeof *chunks);
    free(m->chunks);
    m->chunks = chunks;
    m->chunk_count = count;
    m->size_bytes = size_bytes;
}

/* --- unreadable sectors --- */

static void bad_add(struct file_medium *m, uint64_t sector)
{
    uint64_t *bad = realloc(m->bad, (m->bad_count + 1) * sizeof *bad);
    assert(bad != NULL);
    m->bad = bad;
    m->bad[m->bad_count++] = sector;
}

static bool bad_in(const struct file_medium *m, uint64_t offset_bytes, uint64_t len)
{
    for (size_t i = 0; i < m->bad_count; i++) {
        uint64_t at = m->bad[i] * SECTOR_BYTES;
        if (at >= offset_bytes && at - offset_bytes < len)
            return true;
    }
    return false;
}

/* Written again, they read well. */
static void bad_remove(struct file_medium *m, uint64_t offset_bytes, uint64_t len)
{
    size_t kept = 0;
    for (size_t i = 0; i < m->bad_count; i++) {
        uint64_t at = m->bad[i] * SECTOR_BYTES;
        if (at < offset_bytes || at - offset_bytes >= len)
            m->bad[kept++] = m->bad[i];
    }
    m->bad_count = kept;
}

/* --- space in the file system --- */

/* Of all or, without enough of it, of nothing. */
static int room_take(struct file_medium *m, uint64_t offset_bytes, uint64_t len_bytes)
{
    size_t first = (size_t)(offset_bytes / CHUNK_BYTES);
    size_t end = (size_t)div_up_u64(offset_bytes + len_bytes, CHUNK_BYTES);
    uint64_t bytes = 0;
    if (m->backed == NULL)
        return 0;
    for (size_t i = first; i < end; i++)
        bytes += m->backed[i] ? 0 : CHUNK_BYTES;
    if (bytes > m->free_bytes)
        return -ENOSPC;
    m->free_bytes -= bytes;
    for (size_t i = first; i < end; i++)
        m->backed[i] = true;
    return 0;
}

/* --- what is not durable yet --- */

static void undo_save(struct file_medium *m, uint64_t offset_bytes, size_t len)
{
    assert(offset_bytes % SECTOR_BYTES == 0 && len % SECTOR_BYTES == 0);
    struct undo *undo = sim_alloc(sizeof *undo + len);
    undo->number = ++m->undo_number; /* F1 */
    undo->offset_bytes = offset_bytes;
    undo->len = len;
    medium_read(m, offset_bytes, undo->before, len);
    TAILQ_INSERT_TAIL(&m->undo, undo, link);
}

static void undo_free(struct file_medium *m, struct undo *undo)
{
    TAILQ_REMOVE(&m->undo, undo, link);
    free(undo->settled);
    free(undo);
}

/* The sectors of `by` are durable, so the older record must not put back its own. */
static void undo_settle(struct undo *undo, const struct undo *by)
{
    uint64_t start = max_u64(undo->offset_bytes, by->offset_bytes);
    uint64_t end = min_u64(undo->offset_bytes + undo->len, by->offset_bytes + by->len);
    if (start >= end)
        return;
    if (undo->settled == NULL)
        undo->settled = sim_alloc(undo->len / SECTOR_BYTES);
    memset(undo->settled + (start - undo->offset_bytes) / SECTOR_BYTES, 1,
           (size_t)(end - start) / SECTOR_BYTES);
}

/* A sync that fails while this one is under way takes nothing from it. */
static void sync_succeeded(struct file_medium *m, const struct sim_io *sync)
{
    struct undo *undo, *next, *older;
    TAILQ_FOREACH_SAFE (undo, &m->undo, link, next) {
        if (undo->number > sync->covers)
            break;
        if (undo->doomed_by != 0 && undo->doomed_by < sync->number)
            continue;
        /* Everything before it that is still there is doomed. */
        for (older = TAILQ_FIRST(&m->undo); older != undo;
             older = TAILQ_NEXT(older, link))
            undo_settle(older, undo);
        undo_free(m, undo);
    }
}

static void sync_failed(struct file_medium *m, const struct sim_io *sync)
{
    struct undo *undo;
    TAILQ_FOREACH (undo, &m->undo, link) {
        if (undo->number <= sync->covers && undo->doomed_by == 0)
            undo->doomed_by = sync->number;
    }
}

/* How one cut treats all records of a medium; real devices do all of these. */
enum cut_style { CUT_KEEPS, CUT_LOSES, CUT_WRITES, CUT_SECTORS, CUT_TEARS, CUT_STYLES };

struct cut {
    enum cut_style style;
    uint64_t odds; /* CUT_SECTORS: of 8 sectors, so many are lost */
};

/* Puts back the sectors of one record that the cut takes. */
static void undo_apply(struct file_medium *m, const struct undo *undo, struct cut cut)
{
    struct sim_world *world = m->world;
    size_t sectors = undo->len / SECTOR_BYTES;
    bool coin = sim_world_random(world, 2) == 0;
    size_t tear = (size_t)sim_world_random(world, sectors + 1);
    for (size_t i = 0; i < sectors; i++) {
        bool lost = cut.style == CUT_LOSES || (cut.style == CUT_WRITES && coin) ||
                    (cut.style == CUT_TEARS && (i < tear) == coin) ||
                    (cut.style == CUT_SECTORS && sim_world_random(world, 8) < cut.odds);
        if (!lost || (undo->settled != NULL && undo->settled[i]))
            continue;
        medium_write(m, undo->offset_bytes + i * SECTOR_BYTES,
                     undo->before + i * SECTOR_BYTES, SECTOR_BYTES);
    }
}

static void power_cut(struct sim_medium *medium)
{
    struct file_medium *m = container_of(medium, struct file_medium, base);
    struct cut cut = {
        .style = (enum cut_style)sim_world_random(m->world, CUT_STYLES),
        .odds = sim_random_between(m->world, 1, 7),
    };
    struct undo *undo;
    while ((undo = TAILQ_LAST(&m->undo, undo_list)) != NULL) {
        undo_apply(m, undo, cut);
        undo_free(m, undo);
    }
}

static void medium_free(struct sim_medium *medium)
{
    struct file_medium *m = container_of(medium, struct file_medium, base);
    struct undo *undo;
    while ((undo = TAILQ_FIRST(&m->undo)) != NULL)
        undo_free(m, undo);
    for (size_t i = 0; i < m->chunk_count; i++)
        free(m->chunks[i]);
    free(m->chunks);
    free(m->bad);
    free(m->backed);
    free(m);
}

/* --- writes --- */

static uint8_t *gather(const struct file_io *io)
{
    uint8_t *bytes = sim_alloc(io->bytes);
    size_t at = 0;
    for (uint32_t i = 0; i < io->iov_count; i++) {
        memcpy(bytes + at, io->iov[i].iov_base, io->iov[i].iov_len);
        at += io->iov[i].iov_len;
    }
    return bytes;
}

static void write_bytes_of(struct file_medium *m, const struct file_io *io,
                           const uint8_t *bytes)
{
    undo_save(m, io->offset_bytes, io->bytes);
    bad_remove(m, io->offset_bytes, io->bytes);
    medium_write(m, io->offset_bytes, bytes, io->bytes);
}

static void write_whole(struct file_medium *m, const struct file_io *io)
{
    uint8_t *bytes = gather(io);
    write_bytes_of(m, io, bytes);
    free(bytes);
}

/* A write that failed or was in flight when its process ended: whole, not at all, its
 * beginning, some of its vectors, or any of its sectors. */
static void write_partly(struct file_medium *m, const struct file_io *io)
{
    enum { NOTHING, WHOLE, START, VECTORS, SECTORS, STYLES };
    struct sim_world *world = m->world;
    uint64_t style = sim_world_random(world, STYLES);
    if (style == NOTHING)
        return;
    uint8_t *bytes = gather(io);
    size_t end = (size_t)sim_world_random(world, io->bytes / SECTOR_BYTES + 1);
    size_t at = 0; /* in sectors */
    for (uint32_t i = 0; i < io->iov_count; i++) {
        bool vector_lost = sim_world_random(world, 2) == 0;
        size_t vector_end = at + io->iov[i].iov_len / SECTOR_BYTES;
        for (; at < vector_end; at++) {
            bool lost = (style == START && at >= end) ||
                        (style == VECTORS && vector_lost) ||
                        (style == SECTORS && sim_world_random(world, 2) == 0);
            if (lost)
                medium_read(m, io->offset_bytes + at * SECTOR_BYTES,
                            bytes + at * SECTOR_BYTES, SECTOR_BYTES);
        }
    }
    write_bytes_of(m, io, bytes);
    free(bytes);
}

/* --- reads --- */

static int read_result(struct file_medium *m, const struct file_io *io)
{
    struct sim_world *world = m->world;
    if (sim_chance(world, world->faults.read_error_ppm))
        bad_add(m, io->offset_bytes / SECTOR_BYTES +
                       sim_world_random(world, io->bytes / SECTOR_BYTES));
    if (bad_in(m, io->offset_bytes, io->bytes))
        return -EIO;
    if (sim_chance(world, world->faults.rot_ppm)) {
        uint64_t at = io->offset_bytes + sim_world_random(world, io->bytes);
        uint8_t byte;
        medium_read(m, at, &byte, 1);
        byte ^= (uint8_t)(1U << sim_world_random(world, 8));
        medium_write(m, at, &byte, 1);
    }
    uint64_t at = io->offset_bytes;
    for (uint32_t i = 0; i < io->iov_count; i++) {
        medium_read(m, at, io->iov[i].iov_base, io->iov[i].iov_len);
        at += io->iov[i].iov_len;
    }
    return 0;
}

/* --- operations --- */

static void complete(struct sim_event *event)
{
    struct sim_io *s = container_of(event, struct sim_io, event);
    struct file_io *io = s->io;
    struct file_medium *m = medium_of(io->file);
    static const char *const names[] = {
        [FILE_READ] = "sim.read",
        [FILE_WRITE] = "sim.write",
        [FILE_SYNC] = "sim.sync",
    };
    int result = s->fails ? -EIO : 0;
    if (io->op == FILE_SYNC) {
        if (!s->fails)
            sync_succeeded(m, s);
    } else if (io->op == FILE_READ) {
        if (!s->fails)
            result = read_result(m, io);
    } else if (s->fails) {
        write_partly(m, io);
    } else {
        result = room_take(m, io->offset_bytes, io->bytes);
        if (result == 0)
            write_whole(m, io);
    }
    free(s);
    trace(io->file->loop, names[io->op], io->offset_bytes, io->bytes,
          (uint64_t) - (int64_t)result);
    file_io_finish(io, result);
}

/* Its process ends. */
static void drop(struct sim_event *event)
{
    struct sim_io *s = container_of(event, struct sim_io, event);
    if (s->io->op == FILE_WRITE)
        write_partly(medium_of(s->io->file), s->io);
    free(s);
}

static void submit(struct file *file, struct file_io *io)
{
    struct sim_process *process = process_of(file);
    struct sim_world *world = process->world;
    struct file_medium *m = medium_of(file);
    struct sim_io *s = sim_alloc(sizeof *s);
    /* A failing read leaves a sector bad; the one failed by number is a passing fault,
     * so that a failure loop can go on. */
    uint32_t ppm = io->op == FILE_READ    ? 0
                   : io->op == FILE_WRITE ? world->faults.write_error_ppm
                                          : world->faults.sync_error_ppm;
    s->io = io;
    s->fails = sim_must_fail(world, ppm);
    s->event.run = complete;
    s->event.drop = drop;
    s->covers = m->undo_number;
    s->number = io->op == FILE_SYNC ? ++m->sync_number : 0;
    /* Now, not when it is reported: another sync may overtake it. */
    if (io->op == FILE_SYNC && s->fails)
        sync_failed(m, s);
    sim_event_add(process, &s->event, sim_latency_ns(process));
}

static async int grow(struct file *file, uint64_t size_bytes)
{
    struct sim_process *process = process_of(file);
    bool fails = sim_must_fail(process->world, 0);
    sim_pause(process);
    if (fails)
        return -ENOSPC;
    struct file_medium *m = medium_of(file);
    if (size_bytes > m->size_bytes)
        medium_resize(m, size_bytes);
    file->size_bytes = m->size_bytes;
    return 0;
}

static async int allocate(struct file *file, uint64_t offset_bytes, uint64_t len_bytes)
{
    struct file_medium *m = medium_of(file);
    if (m->backed != NULL && !m->can_allocate)
        return -ENOTSUP;
    return room_take(m, offset_bytes, len_bytes);
}

static async int space(struct file *file, struct file_space *ret_space)
{
    struct file_medium *m = medium_of(file);
    *ret_space = (struct file_space){.free_bytes = UINT64_MAX};
    if (m->backed == NULL)
        return 0;
    ret_space->free_bytes = m->free_bytes;
    for (size_t i = 0; i < m->chunk_count; i++)
        ret_space->stored_bytes += m->backed[i] ? CHUNK_BYTES : 0;
    return 0;
}

static async int punch(struct file *file, uint64_t offset_bytes, uint64_t len_bytes)
{
    struct sim_process *process = process_of(file);
    bool fails = sim_must_fail(process->world, 0);
    sim_pause(process);
    if (fails)
        return -EIO;
    struct file_medium *m = medium_of(file);
    bad_remove(m, offset_bytes, len_bytes);
    while (len_bytes > 0) {
        size_t part = part_in_chunk(offset_bytes, (size_t)len_bytes);
        uint8_t **chunk = &m->chunks[offset_bytes / CHUNK_BYTES];
        if (*chunk != NULL) {
            undo_save(m, offset_bytes, part);
            memset(*chunk + offset_bytes % CHUNK_BYTES, 0, part);
        }
        if (*chunk != NULL && part == CHUNK_BYTES) {
            free(*chunk);
            *chunk = NULL;
        }
        offset_bytes += part;
        len_bytes -= part;
    }
    return 0;
}

static void handle_free(struct sim_handle *handle)
{
    struct sim_file *f = container_of(handle, struct sim_file, handle);
    sim_handle_remove(handle);
    free(f);
}

static void close_file(struct file *file)
{
    handle_free(&container_of(file, struct sim_file, base)->handle);
}

static const struct file_ops sim_file_ops = {
    .submit = submit,
    .grow = grow,
    .punch = punch,
    .allocate = allocate,
    .space = space,
    .close = close_file,
};

static struct sim_medium *medium_create(struct sim_world *world, const char *path,
                                        uint64_t size_bytes)
{
    struct file_medium *m = sim_alloc(sizeof *m);
    m->base.power_cut = power_cut;
    m->base.free = medium_free;
    m->base.is_file = true;
    m->world = world;
    TAILQ_INIT(&m->undo);
    medium_resize(m, size_bytes);
    sim_medium_add(world, &m->base, path);
    return &m->base;
}

async int sim_file_open(struct loop *loop, const char *path,
                        const struct file_options *options, struct file **ret,
                        struct error *err)
{
    struct sim_process *process = sim_process_of(loop);
    struct sim_world *world = process->world;
    bool fails = sim_must_fail(world, 0);
    sim_pause(process);
    if (fails)
        return err_set(err, -EIO, "%s: cannot be opened: %s", path, err_text(-EIO));
    struct sim_medium *medium = sim_medium_find(world, path);
    if (medium == NULL && !options->create)
        return err_set(err, -ENOENT, "%s: cannot be opened: %s", path, err_text(-ENOENT));
    if (medium != NULL && options->create)
        return err_set(err, -EEXIST, "%s: exists already and is not overwritten", path);
    if (medium != NULL && !medium->is_file)
        return err_set(err, -EISDIR, "%s: cannot be opened: %s", path, err_text(-EISDIR));
    if (medium != NULL && medium->user != NULL)
        return err_set(err, -EBUSY, "%s: in use: another process has it open", path);
    if (medium == NULL)
        medium = medium_create(world, path, options->size_bytes);
    struct sim_file *f = sim_alloc(sizeof *f);
    f->handle.free = handle_free;
    sim_handle_add(process, &f->handle, medium);
    f->base = (struct file){
        .ops = &sim_file_ops,
        .loop = loop,
        .size_bytes = container_of(medium, struct file_medium, base)->size_bytes,
    };
    *ret = &f->base;
    return 0;
}

/* --- for tests --- */

static struct file_medium *find(const struct sim_world *world, const char *path)
{
    struct sim_medium *medium = sim_medium_find(world, path);
    if (medium == NULL || !medium->is_file)
        return NULL;
    return container_of(medium, struct file_medium, base);
}

uint64_t sim_file_size_bytes(const struct sim_world *world, const char *path)
{
    const struct file_medium *m = find(world, path);
    return m == NULL ? 0 : m->size_bytes;
}

static int check_range(const struct file_medium *m, uint64_t offset_bytes, size_t len)
{
    if (m == NULL)
        return -ENOENT;
    bool inside = offset_bytes <= m->size_bytes && len <= m->size_bytes - offset_bytes;
    return inside ? 0 : -ERANGE;
}

int sim_file_peek(const struct sim_world *world, const char *path, uint64_t offset_bytes,
                  void *ret, size_t len)
{
    const struct file_medium *m = find(world, path);
    int rc = check_range(m, offset_bytes, len);
    if (rc == 0)
        medium_read(m, offset_bytes, ret, len);
    return rc;
}

int sim_file_set_room(struct sim_world *world, const char *path, uint64_t free_bytes,
                      bool can_allocate)
{
    struct file_medium *m = find(world, path);
    if (m == NULL)
        return -ENOENT;
    if (m->backed == NULL) {
        m->backed = sim_alloc(m->chunk_count * sizeof *m->backed);
        for (size_t i = 0; i < m->chunk_count; i++)
            m->backed[i] = m->chunks[i] != NULL;
    }
    m->free_bytes = free_bytes;
    m->can_allocate = can_allocate;
    return 0;
}

int sim_file_poke(struct sim_world *world, const char *path, uint64_t offset_bytes,
                  const void *bytes, size_t len)
{
    struct file_medium *m = find(world, path);
    int rc = check_range(m, offset_bytes, len);
    if (rc == 0)
        medium_write(m, offset_bytes, bytes, len);
    return rc;
}
