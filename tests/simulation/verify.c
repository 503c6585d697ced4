/* SPDX-License-Identifier: Apache-2.0 */
/*
 * After a start: is everything that is there as it was at one moment?
 *
 * A disk is read as a whole and then matched: there must be one batch, between the least
 * that had to survive and the last that was sealed, at which every block was as it is.
 */
#include <stdio.h>

#include "tests/simulation/content.h"
#include "tests/simulation/workload.h"

#define CHUNK_BLOCKS 256U
#define SAMPLES      16U /* blocks of a large disk that nobody wrote */

/* --- reading --- */

struct reading {
    struct run *run;
    struct disk *disk;
    const char *name;
    struct seen *seen;
    size_t count, cap;
    bool is_whole; /* no block was unreadable */
};

struct wait_io {
    struct disk_io io;
    struct event finished;
};

static void wait_done(struct disk_io *io)
{
    event_set(&container_of(io, struct wait_io, io)->finished);
}

static void note_block(struct reading *r, uint64_t block, const uint8_t *bytes)
{
    if (r->count == r->cap) {
        r->cap = r->cap ? r->cap * 2 : 1024;
        r->seen = realloc(r->seen, r->cap * sizeof *r->seen);
        assert(r->seen != NULL);
    }
    struct seen *seen = &r->seen[r->count++];
    *seen = (struct seen){.block = block, .is_zero = bytes_are_zero(bytes, BLOCK_SIZE)};
    if (!seen->is_zero)
        seen->crc = crc32c(bytes, BLOCK_SIZE);
}

/* Blocks [first, first + count), at most CHUNK_BLOCKS; one by one if that fails. */
static async void read_chunk(struct reading *r, uint64_t first, uint64_t count)
{
    struct run *run = r->run;
    struct wait_io wait = {
        .io = {.op = DISK_READ,
               .offset_bytes = first * BLOCK_SIZE,
               .len_bytes = count * BLOCK_SIZE,
               .buffer = buffer_create(host_buffers(run->host), count * BLOCK_SIZE),
               .done = wait_done},
    };
    assert(wait.io.buffer != NULL);
    event_init(&wait.finished);
    disk_submit(r->disk, &wait.io);
    event_wait(&wait.finished);
    int rc = wait.io.result;
    for (uint64_t i = 0; rc == 0 && i < count; i++)
        note_block(r, first + i, wait.io.buffer->data + i * BLOCK_SIZE);
    buffer_put(wait.io.buffer);
    if (rc == 0)
        return;
    if (!faults_allow(run, rc))
        run_fail(run, "%s: block %llu, %llu blocks: %s", r->name,
                 (unsigned long long)first, (unsigned long long)count, err_text(rc));
    r->is_whole = false;
    for (uint64_t i = 0; run->profile.media_rot && count > 1 && i < count; i++)
        read_chunk(r, first + i, 1);
}

static void read_all(struct reading *r, uint64_t blocks)
{
    uint64_t at = 0;
    while (at < blocks) {
        uint64_t count = min_u64(run_between(r->run, 1, CHUNK_BLOCKS), blocks - at);
        read_chunk(r, at, count);
        at += count;
    }
}

/* Every block that was ever touched, and some that were not. */
static async void read_spots(struct reading *r, const struct line *line, uint64_t blocks)
{
    size_t count = SAMPLES, at = 0;
    for (const struct line *l = line; l != NULL; l = l->base ? l->base->line : NULL)
        count += l->slots_used;
    uint64_t *list = run_alloc(count * sizeof *list);
    for (const struct line *l = line; l != NULL; l = l->base ? l->base->line : NULL) {
        for (size_t i = 0; i < l->slot_count; i++) {
            if (l->slots[i].block_plus_one != 0)
                list[at++] = l->slots[i].block_plus_one - 1;
        }
    }
    while (at < count)
        list[at++] = run_random(r->run, blocks);
    count = blocks_unique(list, count);
    for (size_t i = 0; i < count && list[i] < blocks; i++) {
        uint64_t first = list[i], n = 1;
        while (n < CHUNK_BLOCKS && i + 1 < count && list[i + 1] == first + n &&
               list[i + 1] < blocks) {
            n++;
            i++;
        }
        read_chunk(r, first, n);
    }
    free(list);
}

/* --- matching --- */

/* The batches of the line that fit become its range. False: none does. */
static bool settle_line(struct run *run, struct line *line, uint64_t lo, uint64_t hi,
                        const struct reading *r, char *text, size_t cap)
{
    if (line->crashed) { /* may have become known more closely meanwhile */
        lo = max_u64(lo, line->acked);
        hi = min_u64(hi, line->last);
    } else {
        lo = hi = line->cut;
    }
    bool *ok = run_alloc((size_t)(hi - lo + 1));
    bool fits = line_match(line, lo, hi, r->seen, r->count, ok, text, cap);
    if (fits && line->crashed && r->is_whole) {
        while (!ok[line->acked - lo])
            line->acked++;
        uint64_t last = hi;
        while (!ok[last - lo])
            last--;
        line_truncate(line, last);
        line->flushed = line->acked; /* a take-over cuts and makes durable */
    }
    free(ok);
    (void)run;
    return fits;
}

/* A rollback was in flight: one of the two lines it is. If both fit, they look alike. */
static bool settle_rollback(struct run *run, struct model_disk *disk,
                            const struct reading *r, char *text, size_t cap)
{
    struct line *lines[2] = {disk->maybe_line, disk->line};
    line_follow(disk->maybe_line, disk->line);
    for (size_t i = 0; i < 2; i++) {
        struct line *line = lines[i];
        if (!settle_line(run, line, line->acked, line->last, r, text, cap))
            continue;
        disk->line = line;
        disk->maybe_line = NULL;
        disk->is_in_doubt = disk->exclusive = false;
        return true;
    }
    return false;
}

static async bool open_for_reading(struct run *run, struct reading *r)
{
    struct error err = {0};
    bool is_snapshot = strchr(r->name, '@') != NULL;
    int rc = disk_open(run->host, r->name, is_snapshot ? DISK_READ_ONLY : DISK_READ_WRITE,
                       &r->disk, &err);
    if (!faults_allow(run, rc))
        run_fail(run, "%s cannot be opened: %s", r->name, err.text);
    return rc == 0;
}

static void read_disk(struct reading *r, const struct line *line)
{
    uint64_t blocks = disk_size_bytes(r->disk) / BLOCK_SIZE;
    if (blocks <= BLOCKS_WHOLE)
        read_all(r, blocks);
    else
        read_spots(r, line, blocks);
}

static async void verify_head(struct run *run, struct model_disk *disk)
{
    struct reading r = {.run = run, .name = disk->name, .is_whole = true};
    struct line *line = disk->line;
    uint64_t lo = line->acked, hi = line->last;
    char text[1000];
    bool fits;
    if (!open_for_reading(run, &r))
        return;
    if (disk_size_bytes(r.disk) != disk->size_bytes)
        run_fail(run, "disk %s has a wrong size when open", disk->name);
    read_disk(&r, line);
    if (disk->maybe_line != NULL)
        fits = settle_rollback(run, disk, &r, text, sizeof text);
    else
        fits = settle_line(run, line, lo, hi, &r, text, sizeof text);
    if (!fits)
        run_fail(run, "disk %s (batches %llu to %llu allowed): %s", disk->name,
                 (unsigned long long)lo, (unsigned long long)hi, text);
    run_note(run, "disk %s: batches %llu to %llu were allowed, it is at %llu to %llu",
             disk->name, (unsigned long long)lo, (unsigned long long)hi,
             (unsigned long long)disk->line->acked, (unsigned long long)disk->line->last);
    disk_close(r.disk);
    free(r.seen);
}

static async void verify_snapshot(struct run *run, struct model_snap *snap)
{
    char name[2 * MODEL_NAME_MAX + 2], text[1000];
    struct reading r = {.run = run, .name = name, .is_whole = true};
    bool ok;
    snprintf(name, sizeof name, "%s@%s", snap->disk->name, snap->name);
    if (!open_for_reading(run, &r))
        return;
    if (disk_size_bytes(r.disk) != snap->size_bytes)
        run_fail(run, "snapshot %s has a wrong size when open", name);
    read_disk(&r, snap->line);
    if (!line_match(snap->line, snap->number, snap->number, r.seen, r.count, &ok, text,
                    sizeof text))
        run_fail(run, "snapshot %s, taken at batch %llu: %s", name,
                 (unsigned long long)snap->number, text);
    disk_close(r.disk);
    free(r.seen);
}

async void verify_content(struct run *run, bool all)
{
    struct model_disk *disk;
    struct model_snap *snap;
    bool is_power = run->profile.cuts > 0;
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        bool is_small = disk->size_bytes <= 16 * MIB;
        if (disk->existence == TRASHED)
            continue;
        if (all || disk->maybe_line != NULL || run_chance(run, is_power ? 90 : 60) ||
            is_small)
            verify_head(run, disk);
    }
    TAILQ_FOREACH (snap, &run->model.snaps, link) {
        if (snap->name[0] != '\0' && snap->disk->existence != TRASHED &&
            (all || run_chance(run, 25)))
            verify_snapshot(run, snap);
    }
}

/* --- the trash --- */

async void verify_restore(struct run *run)
{
    struct model_disk *disk;
    struct error err = {0};
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (disk->existence != TRASHED || run_chance(run, 50))
            continue;
        int rc = trash_restore(run->host, disk->name, NULL, &err);
        if (rc == -PLX_EMISSING && (model_disk_places(&run->model, disk) & AT_NONE))
            continue;
        if (!faults_allow(run, rc))
            run_fail(run, "%s cannot be restored: %s", disk->name, err.text);
        disk->existence = EXISTS;
    }
}
