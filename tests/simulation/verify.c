/* SPDX-License-Identifier: Apache-2.0 */
/*
 * After a start: does everything that must be there exist, and is all of it as it was at
 * one moment? What was MAYBE becomes known here.
 *
 * A disk is read as a whole and then matched: there must be one batch, between the least
 * that had to survive and the last that was sealed, at which every block was as it is.
 */
#include <stdio.h>

#include "tests/simulation/content.h"
#include "tests/simulation/workload.h"

#define CHUNK_BLOCKS 256U
#define SAMPLES      16U /* blocks of a large disk that nobody wrote */

/* --- names --- */

static struct model_disk *disk_named(struct run *run, const char *name)
{
    struct model_disk *disk;
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (strcmp(disk->name, name) == 0 ||
            (disk->maybe_name[0] && strcmp(disk->maybe_name, name) == 0))
            return disk;
    }
    return NULL;
}

static void check_disk_info(struct run *run, const struct disk_info *info)
{
    struct model_disk *disk = disk_named(run, info->name);
    if (disk == NULL || disk->found)
        run_fail(run, "there is a disk %s that nobody made", info->name);
    disk->found = true;
    if (disk->id != 0 && disk->id != info->id)
        run_fail(run, "disk %s has another identity than before", info->name);
    if (info->size_bytes != disk->size_bytes &&
        (disk->maybe_size_bytes == 0 || info->size_bytes != disk->maybe_size_bytes))
        run_fail(run, "disk %s has %llu bytes, not %llu", info->name,
                 (unsigned long long)info->size_bytes,
                 (unsigned long long)disk->size_bytes);
    disk->id = info->id;
    disk->existence = EXISTS;
    disk->size_bytes = info->size_bytes;
    disk->maybe_size_bytes = 0;
    if (strcmp(disk->name, info->name) != 0)
        memcpy(disk->name, disk->maybe_name, sizeof disk->name);
    disk->maybe_name[0] = '\0';
    if (disk->maybe_line == NULL)
        disk->exclusive = false;
}

/* Clones of one command exist all or none. */
static void check_group(struct run *run, const struct model_disk *missing)
{
    const struct model_disk *disk;
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (missing->group != 0 && disk->group == missing->group && disk->found)
            run_fail(run, "clone %s exists, but not %s of the same command", disk->name,
                     missing->name);
    }
}

static void drop_missing_disks(struct run *run)
{
    struct model_disk *disk, *next;
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (!disk->found && disk->existence == EXISTS)
            run_fail(run, "disk %s is gone", disk->name);
        if (!disk->found)
            check_group(run, disk);
    }
    TAILQ_FOREACH_SAFE (disk, &run->model.disks, link, next) {
        if (!disk->found)
            model_disk_remove(&run->model, disk);
    }
}

static struct model_snap *snap_named(struct run *run, const struct model_disk *disk,
                                     const char *name)
{
    struct model_snap *snap;
    TAILQ_FOREACH (snap, &run->model.snaps, link) {
        if (snap->disk == disk && strcmp(snap->name, name) == 0)
            return snap;
    }
    return NULL;
}

static void check_snapshot_info(struct run *run, struct model_disk *disk,
                                const struct snapshot_info *info)
{
    struct model_snap *snap = snap_named(run, disk, info->name);
    if (snap == NULL || snap->found)
        run_fail(run, "there is a snapshot %s@%s that nobody made", disk->name,
                 info->name);
    snap->found = true;
    if (snap->number == 0)
        run_fail(run, "snapshot %s@%s exists, but its marker is in no batch", disk->name,
                 info->name);
    if (info->size_bytes != snap->size_bytes)
        run_fail(run, "snapshot %s@%s has %llu bytes, not %llu", disk->name, info->name,
                 (unsigned long long)info->size_bytes,
                 (unsigned long long)snap->size_bytes);
    /* It is committed only when all before it is durable. */
    if (snap->line == disk->line && disk->line->crashed) {
        disk->line->acked = max_u64(disk->line->acked, snap->number);
        disk->line->flushed = max_u64(disk->line->flushed, snap->number);
    }
    snap->existence = EXISTS;
}

static void check_snapshots(struct run *run, struct model_disk *disk)
{
    struct error err = {0};
    struct snapshot_info *infos;
    size_t count;
    int rc = snapshot_list(run->host, disk->name, &infos, &count, &err);
    if (rc < 0)
        run_fail(run, "snapshots of %s: %s", disk->name, err.text);
    for (size_t i = 0; i < count; i++) {
        if (infos[i].name[0] != '\0')
            check_snapshot_info(run, disk, &infos[i]);
    }
    free(infos);
}

/* Unnamed ones are seen through their clones only. */
static void drop_missing_snaps(struct run *run)
{
    struct model_snap *snap, *next;
    TAILQ_FOREACH_SAFE (snap, &run->model.snaps, link, next) {
        if (snap->found || (snap->name[0] == '\0' && snap->existence == EXISTS))
            continue;
        if (snap->existence == EXISTS)
            run_fail(run, "snapshot %s@%s is gone", snap->disk->name, snap->name);
        model_snap_remove(&run->model, snap);
    }
}

async void verify_names(struct run *run)
{
    struct model_disk *disk;
    struct model_snap *snap;
    struct disk_info *infos;
    size_t count;
    int rc = disk_list(run->host, &infos, &count);
    if (rc < 0)
        run_fail(run, "disk_list: %s", err_text(rc));
    TAILQ_FOREACH (disk, &run->model.disks, link)
        disk->found = false;
    TAILQ_FOREACH (snap, &run->model.snaps, link)
        snap->found = false;
    for (size_t i = 0; i < count; i++)
        check_disk_info(run, &infos[i]);
    free(infos);
    drop_missing_disks(run);
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        struct model_snap *base = disk->line->base;
        if (base != NULL && base->name[0] == '\0' && base->existence == MAYBE) {
            if (base->number == 0)
                run_fail(run,
                         "clone %s exists, but the marker of its parent is in no "
                         "batch",
                         disk->name);
            base->existence = EXISTS;
        }
        check_snapshots(run, disk);
    }
    drop_missing_snaps(run);
}

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

static int compare_blocks(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
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
    qsort(list, count, sizeof *list, compare_blocks);
    for (size_t i = 0; i < count; i++) {
        if (list[i] >= blocks || (i > 0 && list[i] == list[i - 1]))
            continue;
        uint64_t n = 1;
        while (n < CHUNK_BLOCKS && i + 1 < count && list[i + 1] <= list[i] + 1 &&
               list[i + 1] < blocks) {
            n += list[i + 1] > list[i];
            i++;
        }
        read_chunk(r, list[i] + 1 - n, n);
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
    lines[0]->acked = lines[1]->acked;
    lines[0]->flushed = lines[1]->flushed;
    lines[0]->last = lines[1]->last;
    lines[0]->cut = lines[1]->cut;
    lines[0]->crashed = lines[1]->crashed;
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
        if (all || disk->maybe_line != NULL || run_chance(run, is_power ? 90 : 60) ||
            is_small)
            verify_head(run, disk);
    }
    TAILQ_FOREACH (snap, &run->model.snaps, link) {
        if (snap->name[0] != '\0' && (all || run_chance(run, 25)))
            verify_snapshot(run, snap);
    }
}

/* --- host_check --- */

static void on_finding(void *arg, const char *line)
{
    struct run *run = arg;
    bool is_full = run->profile.fills && strstr(line, err_text(-PLX_EFULL)) != NULL;
    if (!faults_allow(run, -EIO) && !is_full)
        run_fail(run, "check: %s", line);
}

async void verify_check(struct run *run)
{
    struct check_callbacks callbacks = {.finding = on_finding, .arg = run};
    struct check_report report;
    struct error err = {0};
    int rc = host_check(run->host, &callbacks, &report, &err);
    if (!faults_allow(run, rc))
        run_fail(run, "check: %s", err.text);
}
