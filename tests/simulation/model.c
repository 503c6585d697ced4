/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/simulation/model.h"

#include <stdio.h>

#include "tests/simulation/content.h"
#include "tests/simulation/run.h"

#define TRASH_KEEP_S 86400U /* of a new cluster */
#define CLOCK_SKEW_S 6U     /* between two processes */

static const struct version never_written = {.is_zero = true};

static void *grow(void *array, size_t *cap, size_t used, size_t size)
{
    if (used < *cap)
        return array;
    *cap = *cap ? *cap * 2 : 16;
    array = realloc(array, *cap * size);
    assert(array != NULL);
    return array;
}

/* --- disks and snapshots --- */

void model_init(struct model *model, struct run *run)
{
    *model = (struct model){
        .run = run, .next_change = 1, .next_group = 1, .keep_s = TRASH_KEEP_S};
    model->maybe_keep_s = model->keep_s;
    model->keep_ns = model_keep_ns(model->keep_s);
    TAILQ_INIT(&model->disks);
    TAILQ_INIT(&model->snaps);
}

struct line *line_create(struct model_snap *base)
{
    struct line *line = run_alloc(sizeof *line);
    line->base = base;
    return line;
}

void line_follow(struct line *line, const struct line *before)
{
    line->acked = before->acked;
    line->flushed = before->flushed;
    line->last = before->last;
    line->cut = before->cut;
    line->crashed = before->crashed;
}

void model_rollback_settle(struct model_disk *disk, bool has_happened)
{
    line_follow(disk->maybe_line, disk->line);
    if (has_happened)
        disk->line = disk->maybe_line;
    disk->maybe_line = NULL;
    disk->is_in_doubt = false;
}

struct model_disk *model_disk_add(struct model *model, const char *name,
                                  uint64_t size_bytes, struct model_snap *base)
{
    struct model_disk *disk = run_alloc(sizeof *disk);
    snprintf(disk->name, sizeof disk->name, "%s", name);
    disk->existence = MAYBE;
    disk->places = AT_HOME | AT_NONE;
    disk->size_bytes = size_bytes;
    disk->line = line_create(base);
    TAILQ_INIT(&disk->changes);
    TAILQ_INSERT_TAIL(&model->disks, disk, link);
    model->disk_count++;
    return disk;
}

void model_disk_remove(struct model *model, struct model_disk *disk)
{
    TAILQ_REMOVE(&model->disks, disk, link);
    model->disk_count--;
}

struct model_disk *model_disk_by_id(struct model *model, uint64_t id)
{
    struct model_disk *disk;
    TAILQ_FOREACH (disk, &model->disks, link) {
        if (disk->id == id)
            return disk;
    }
    return NULL;
}

struct model_snap *model_snap_add(struct model *model, struct model_disk *disk,
                                  const char *name)
{
    struct model_snap *snap = run_alloc(sizeof *snap);
    snprintf(snap->name, sizeof snap->name, "%s", name);
    snap->disk = disk;
    snap->existence = MAYBE;
    snap->line = disk->line;
    snap->size_bytes = disk->size_bytes;
    TAILQ_INSERT_TAIL(&model->snaps, snap, link);
    return snap;
}

void model_snap_remove(struct model *model, struct model_snap *snap)
{
    if (!snap->is_out)
        TAILQ_REMOVE(&model->snaps, snap, link);
    snap->is_out = true;
}

void model_snap_unname(struct model_snap *snap)
{
    snap->name[0] = '\0';
    snap->existence = EXISTS;
    snap->is_removing = false;
}

uint32_t model_snap_count(const struct model *model)
{
    const struct model_snap *snap;
    uint32_t count = 0;
    TAILQ_FOREACH (snap, &model->snaps, link)
        count += snap->name[0] != '\0' || snap->existence != EXISTS;
    return count;
}

void model_disk_purge(struct model *model, struct model_disk *disk)
{
    struct model_snap *snap, *next;
    TAILQ_FOREACH_SAFE (snap, &model->snaps, link, next) {
        if (snap->disk == disk && snap->is_committed)
            model_snap_unname(snap);
        else if (snap->disk == disk)
            model_snap_remove(model, snap);
    }
    model_disk_remove(model, disk);
}

uint64_t model_keep_ns(uint64_t keep_s)
{
    return keep_s > CLOCK_SKEW_S ? (keep_s - CLOCK_SKEW_S) * NS_PER_S : 0;
}

unsigned model_disk_places(const struct model *model, const struct model_disk *disk)
{
    uint64_t now_ns = sim_world_now_ns(model->run->world);
    const struct profile *profile = &model->run->profile;
    /* Writes that wait for space have the trash emptied, also when they find some. */
    bool was_full = model->was_full || profile->fills || profile->is_small;
    unsigned places = disk->existence == TRASHED ? AT_TRASH
                      : disk->existence == MAYBE ? disk->places
                                                 : AT_HOME;
    if (disk->is_removing)
        places |= AT_TRASH;
    if ((places & AT_TRASH) &&
        (was_full || now_ns >= disk->trashed_at_ns + disk->keep_ns))
        places |= AT_NONE;
    return places;
}

void making_begin(struct model_disk *disk, struct model_snap *snap)
{
    uint32_t i = 0;
    while (disk->making[i] != NULL)
        i++;
    assert(i < MAKING_MAX);
    disk->making[i] = snap;
}

static void forget_making(struct model_disk *disk, struct model_snap *snap,
                          uint64_t number)
{
    uint32_t to = 0;
    snap->number = number;
    for (uint32_t i = 0; i < MAKING_MAX; i++) {
        if (disk->making[i] != snap)
            disk->making[to++] = disk->making[i];
    }
    while (to < MAKING_MAX)
        disk->making[to++] = NULL;
}

void making_end(struct model_disk *disk, struct model_snap *snap, int result)
{
    forget_making(disk, snap, disk->marker);
    disk->is_marker_loose = result < 0 && disk->making[0] != NULL;
    if (!disk->is_marker_loose)
        disk->marker = 0;
}

bool making_has_room(const struct model_disk *disk)
{
    const struct model_snap *first = disk->making[0];
    return first == NULL ||
           (first->name[0] != '\0' && disk->making[MAKING_MAX - 1] == NULL);
}

/* --- versions of blocks --- */

static struct block_slot *slot_find(const struct line *line, uint64_t block)
{
    if (line->slot_count == 0)
        return NULL;
    size_t at = (size_t)(block * 0x9e3779b97f4a7c15U >> 20) & (line->slot_count - 1);
    while (line->slots[at].block_plus_one != 0 &&
           line->slots[at].block_plus_one != block + 1)
        at = (at + 1) & (line->slot_count - 1);
    return &line->slots[at];
}

static void slots_grow(struct line *line)
{
    struct block_slot *old = line->slots;
    size_t old_count = line->slot_count;
    line->slot_count = old_count ? old_count * 2 : 256;
    line->slots = run_alloc(line->slot_count * sizeof *line->slots);
    for (size_t i = 0; i < old_count; i++) {
        if (old[i].block_plus_one != 0)
            *slot_find(line, old[i].block_plus_one - 1) = old[i];
    }
    free(old);
}

static void put_version(struct line *line, uint64_t block, struct version *version)
{
    if (line->slots_used * 2 >= line->slot_count)
        slots_grow(line);
    struct block_slot *slot = slot_find(line, block);
    if (slot->block_plus_one == 0) {
        slot->block_plus_one = block + 1;
        line->slots_used++;
    }
    version->older = slot->newest;
    slot->newest = version;
}

static void put_zeroed(struct line *line, uint64_t first, uint64_t end,
                       const struct version *version)
{
    line->zeroed = grow(line->zeroed, &line->zeroed_cap, line->zeroed_count,
                        sizeof *line->zeroed);
    line->zeroed[line->zeroed_count++] = (struct zeroed){
        .first = first, .end = end, .version = *version};
}

void line_truncate(struct line *line, uint64_t number)
{
    for (size_t i = 0; i < line->slot_count; i++) {
        struct block_slot *slot = &line->slots[i];
        while (slot->newest != NULL && version_number(slot->newest) > number) {
            struct version *newest = slot->newest;
            slot->newest = newest->older;
            free((void *)(uintptr_t)newest->merged);
            free(newest);
        }
    }
    while (line->zeroed_count > 0 &&
           version_number(&line->zeroed[line->zeroed_count - 1].version) > number)
        line->zeroed_count--;
    line->last = min_u64(line->last, number);
}

const struct version *line_at(const struct line *line, uint64_t block, uint64_t number)
{
    const struct block_slot *slot = slot_find(line, block);
    const struct version *found = slot != NULL ? slot->newest : NULL;
    while (found != NULL && version_number(found) > number)
        found = found->older;
    for (size_t i = line->zeroed_count; i-- > 0;) {
        const struct zeroed *zeroed = &line->zeroed[i];
        if (version_number(&zeroed->version) > number || block < zeroed->first ||
            block >= zeroed->end)
            continue;
        if (found == NULL || zeroed->version.stamp > found->stamp)
            found = &zeroed->version;
        break;
    }
    if (found != NULL)
        return found;
    if (line->base == NULL)
        return &never_written;
    return line_at(line->base->line, block, line->base->number);
}

static int compare_blocks(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

size_t blocks_unique(uint64_t *blocks, size_t count)
{
    size_t to = 0;
    qsort(blocks, count, sizeof *blocks, compare_blocks);
    for (size_t i = 0; i < count; i++) {
        if (to == 0 || blocks[to - 1] != blocks[i])
            blocks[to++] = blocks[i];
    }
    return to;
}

static void version_bytes(const struct version *version, uint64_t block, uint8_t *ret)
{
    if (version->is_zero)
        memset(ret, 0, BLOCK_SIZE);
    else if (version->merged != NULL)
        memcpy(ret, version->merged, BLOCK_SIZE);
    else
        content_fill(version->change, block * BLOCK_SIZE, ret, BLOCK_SIZE);
}

bool version_equals(const struct version *version, uint64_t block, const uint8_t *bytes,
                    uint32_t from, uint32_t len)
{
    uint8_t expected[BLOCK_SIZE];
    version_bytes(version, block, expected);
    return memcmp(bytes, expected + from, len) == 0;
}

/* --- changes --- */

void change_begin(struct model *model, struct model_disk *disk, struct change *change)
{
    uint64_t end_bytes = change->offset_bytes + change->len_bytes;
    change->id = model->next_change++;
    change->first = change->offset_bytes / BLOCK_SIZE;
    change->end = div_up_u64(end_bytes, BLOCK_SIZE);
    if (change->kind == CHANGE_TRIM) {
        change->first = div_up_u64(change->offset_bytes, BLOCK_SIZE);
        change->end = max_u64(end_bytes / BLOCK_SIZE, change->first);
    }
    TAILQ_INSERT_TAIL(&disk->changes, change, link);
}

static bool makes_zeros(const struct change *change)
{
    return change->kind != CHANGE_WRITE || change->is_zero || change->is_mixed;
}

bool change_is_ambiguous(const struct model_disk *disk, const struct change *change)
{
    uint64_t first = change->offset_bytes / BLOCK_SIZE;
    uint64_t end = div_up_u64(change->offset_bytes + change->len_bytes, BLOCK_SIZE);
    const struct change *other;
    TAILQ_FOREACH (other, &disk->changes, link) {
        bool apart = other->end <= first || end <= other->first;
        if (!apart && makes_zeros(other) && makes_zeros(change))
            return true;
    }
    return false;
}

/* The part of the block that the change gives, [*ret_from, *ret_to). */
static void part_of_block(const struct change *change, uint64_t block, uint32_t *ret_from,
                          uint32_t *ret_to)
{
    uint64_t start = block * BLOCK_SIZE;
    uint64_t end = change->offset_bytes + change->len_bytes;
    *ret_from = (uint32_t)(max_u64(change->offset_bytes, start) - start);
    *ret_to = (uint32_t)(min_u64(end, start + BLOCK_SIZE) - start);
}

/* What the change makes of the block as it is now. True: all of it is the change's. */
static bool apply_change(const struct line *line, const struct change *change,
                         uint64_t block, uint8_t ret[BLOCK_SIZE])
{
    uint32_t from, to;
    part_of_block(change, block, &from, &to);
    bool whole = from == 0 && to == BLOCK_SIZE;
    if (!whole)
        version_bytes(line_at(line, block, line->last), block, ret);
    bool zeros = change->kind != CHANGE_WRITE || change->is_zero ||
                 (change->is_mixed && content_block_is_zero(change->id, block));
    if (zeros)
        memset(ret + from, 0, to - from);
    else
        content_fill(change->id, block * BLOCK_SIZE + from, ret + from, to - from);
    return whole;
}

static void count_part(struct change *change, uint64_t number, uint64_t blocks)
{
    if (change->part_count > 0 &&
        change->parts[change->part_count - 1].number == number) {
        change->parts[change->part_count - 1].blocks += blocks;
        return;
    }
    change->parts = grow(change->parts, &change->part_cap, change->part_count,
                         sizeof *change->parts);
    change->parts[change->part_count++] = (struct change_part){.number = number,
                                                               .blocks = blocks};
}

static bool covers(const struct change *change, uint64_t first, uint64_t end)
{
    return change->first <= first && end <= change->end;
}

/* --- sealed batches --- */

/* A change writes a block once. Two may make the same of it. */
static bool is_logged(const struct line *line, uint64_t block, uint64_t change)
{
    const struct block_slot *slot = slot_find(line, block);
    const struct version *version = slot != NULL ? slot->newest : NULL;
    while (version != NULL && version->change != change)
        version = version->older;
    return version != NULL;
}

/* What lies scattered may be written again, as it is, to lie together. */
static bool take_rewrite(struct line *line, uint64_t stamp, uint64_t block, uint32_t crc)
{
    const struct version *old = line_at(line, block, line->last);
    if (old->is_zero || old->crc != crc)
        return false;
    struct version *version = run_alloc(sizeof *version);
    *version = (struct version){.stamp = stamp, .change = old->change, .crc = crc};
    if (old->merged != NULL) {
        uint8_t *merged = run_alloc(BLOCK_SIZE);
        memcpy(merged, old->merged, BLOCK_SIZE);
        version->merged = merged;
    }
    put_version(line, block, version);
    return true;
}

/* A change that makes this of the block. What finds no space half-way is logged again as
 * a whole, later. */
static bool take_change(struct model_disk *disk, uint64_t stamp, uint64_t block,
                        uint32_t crc, bool again)
{
    uint8_t bytes[BLOCK_SIZE];
    struct change *change;
    TAILQ_FOREACH (change, &disk->changes, link) {
        if (!covers(change, block, block + 1) ||
            is_logged(disk->line, block, change->id) != again)
            continue;
        bool whole = apply_change(disk->line, change, block, bytes);
        if (crc32c(bytes, BLOCK_SIZE) != crc)
            continue;
        struct version *version = run_alloc(sizeof *version);
        *version = (struct version){.stamp = stamp, .change = change->id, .crc = crc};
        if (!whole) {
            uint8_t *merged = run_alloc(BLOCK_SIZE);
            memcpy(merged, bytes, BLOCK_SIZE);
            version->merged = merged;
        }
        put_version(disk->line, block, version);
        count_part(change, stamp >> STAMP_SHIFT, !again);
        return true;
    }
    return false;
}

/* M3. */
static void take_data(struct model *model, struct model_disk *disk, uint64_t stamp,
                      uint64_t block, uint32_t crc)
{
    if (take_change(disk, stamp, block, crc, false) ||
        take_change(disk, stamp, block, crc, true) ||
        take_rewrite(disk->line, stamp, block, crc))
        return;
    run_fail(model->run, "disk %s: batch %llu has a block %llu that nobody wrote",
             disk->name, (unsigned long long)(stamp >> STAMP_SHIFT),
             (unsigned long long)block);
}

/* Does the change make zeros of all these blocks? */
static bool explains_zeros(const struct line *line, const struct change *change,
                           uint64_t first, uint64_t end)
{
    uint8_t bytes[BLOCK_SIZE];
    if (!covers(change, first, end))
        return false;
    for (uint64_t block = first; block < end; block++) {
        bool edge = block == change->first || block == change->end - 1;
        if (change->kind != CHANGE_WRITE && !edge) {
            block = min_u64(end, change->end - 1) - 1; /* zeros in between */
            continue;
        }
        apply_change(line, change, block, bytes);
        if (!bytes_are_zero(bytes, BLOCK_SIZE))
            return false;
    }
    return true;
}

static void take_zeros(struct model *model, struct model_disk *disk, uint64_t stamp,
                       uint64_t first, uint64_t count)
{
    struct version version = {.stamp = stamp, .is_zero = true};
    struct change *change;
    TAILQ_FOREACH (change, &disk->changes, link) {
        if (!explains_zeros(disk->line, change, first, first + count))
            continue;
        version.change = change->id;
        if (count > 64) {
            put_zeroed(disk->line, first, first + count, &version);
        } else {
            for (uint64_t i = 0; i < count; i++) {
                struct version *copy = run_alloc(sizeof *copy);
                *copy = version;
                put_version(disk->line, first + i, copy);
            }
        }
        count_part(change, stamp >> STAMP_SHIFT, count);
        return;
    }
    run_fail(model->run, "disk %s: batch %llu zeroes %llu blocks at %llu; nobody asked",
             disk->name, (unsigned long long)(stamp >> STAMP_SHIFT),
             (unsigned long long)count, (unsigned long long)first);
}

static void take_marker(struct model *model, struct model_disk *disk, uint64_t number)
{
    if (disk->making[0] == NULL || (disk->marker != 0 && !disk->is_marker_loose))
        run_fail(model->run, "disk %s: batch %llu has a marker nobody asked for",
                 disk->name, (unsigned long long)number);
    disk->marker = number;
}

/* What was sealed above `number` is taken back, its records will be sealed again. */
static void take_back(struct model_disk *disk, uint64_t number)
{
    struct change *change;
    TAILQ_FOREACH (change, &disk->changes, link) {
        while (change->part_count > 0 &&
               change->parts[change->part_count - 1].number > number)
            change->part_count--;
    }
    if (disk->marker > number)
        disk->marker = 0;
    line_truncate(disk->line, number);
}

/* M2. */
static void take_number(struct model *model, struct model_disk *disk, uint64_t number)
{
    struct line *line = disk->line;
    if (number <= line->acked)
        run_fail(model->run,
                 "disk %s: batch %llu is sealed in place of one that was "
                 "acknowledged; %llu were",
                 disk->name, (unsigned long long)number, (unsigned long long)line->acked);
    if (number > line->last + 1)
        run_fail(model->run, "disk %s: batch %llu follows %llu", disk->name,
                 (unsigned long long)number, (unsigned long long)line->last);
    if (number <= line->last)
        take_back(disk, number - 1);
    if (line->crashed) {
        /* The log goes on here: the take-over has made all before it durable. */
        line->crashed = false;
        line->cut = line->acked = line->flushed = number - 1;
    }
    line->last = number;
}

/* Of a checkpoint: they change nothing that can be read. */
static bool only_nodes(const struct log_piece *pieces, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (pieces[i].kind != ENTRY_NODE && pieces[i].kind != ENTRY_LIST)
            return false;
    }
    return true;
}

/* Nobody tells the number of one that is not published. */
static struct model_disk *importing_disk(struct model *model, uint64_t id)
{
    struct model_disk *disk;
    TAILQ_FOREACH (disk, &model->disks, link) {
        if (disk->existence == IMPORTING && disk->id == 0) {
            disk->id = id;
            return disk;
        }
    }
    return NULL;
}

void model_sealed(void *arg, uint64_t id, const struct log_piece *pieces, uint32_t count,
                  uint64_t number)
{
    struct model *model = arg;
    struct model_disk *disk = model_disk_by_id(model, id);
    if (disk == NULL)
        disk = importing_disk(model, id);
    if (disk == NULL)
        run_fail(model->run, "batch %llu is of disk %llu, which nobody uses",
                 (unsigned long long)number, (unsigned long long)id);
    for (uint32_t i = 0; i < count; i++)
        run_note(model->run, "disk %s: batch %llu, kind %d, %llu + %llu at %llx",
                 disk->name, (unsigned long long)number, (int)pieces[i].kind,
                 (unsigned long long)pieces[i].key, (unsigned long long)pieces[i].count,
                 (unsigned long long)pieces[i].address.v);
    if (disk->is_in_doubt && !only_nodes(pieces, count))
        run_fail(model->run, "disk %s: changed before it was read", disk->name);
    take_number(model, disk, number);
    uint64_t stamp = number << STAMP_SHIFT;
    for (uint32_t i = 0; i < count; i++) {
        const struct log_piece *piece = &pieces[i];
        if (piece->kind == ENTRY_DATA) {
            for (uint64_t k = 0; k < piece->count; k++)
                take_data(model, disk, stamp++, piece->key + k, piece->crcs[k]);
        } else if (piece->kind == ENTRY_ZERO) {
            take_zeros(model, disk, stamp++, piece->key, piece->count);
        } else if (piece->kind == ENTRY_MARKER) {
            take_marker(model, disk, number);
        }
    }
}

uint64_t change_done(struct model *model, struct model_disk *disk, struct change *change,
                     int result)
{
    uint64_t blocks = 0, last = 0;
    TAILQ_REMOVE(&disk->changes, change, link);
    for (size_t i = 0; i < change->part_count; i++) {
        blocks += change->parts[i].blocks;
        last = change->parts[i].number;
    }
    free(change->parts);
    if (result != 0)
        return 0;
    if (blocks != change->end - change->first)
        run_fail(model->run,
                 "disk %s: change %llu was acknowledged with %llu of %llu blocks in "
                 "the log",
                 disk->name, (unsigned long long)change->id, (unsigned long long)blocks,
                 (unsigned long long)(change->end - change->first));
    disk->line->acked = max_u64(disk->line->acked, last);
    return last;
}

/* --- crashes --- */

void model_crash(struct model *model, bool power_was_cut, bool may_lose)
{
    struct model_disk *disk, *next;
    struct model_snap *snap;
    TAILQ_FOREACH (snap, &model->snaps, link) {
        if (snap->existence == EXISTS)
            snap->line->flushed = max_u64(snap->line->flushed, snap->number);
        if (snap->is_removing)
            snap->existence = MAYBE;
        snap->is_removing = false;
    }
    TAILQ_FOREACH_SAFE (disk, &model->disks, link, next) {
        struct line *line = disk->line;
        if (disk->existence == IMPORTING) {
            memcpy(model->lost_import, disk->name, sizeof disk->name);
            model_disk_remove(model, disk);
            continue;
        }
        line->acked = max_u64(line->acked, line->flushed); /* M1 */
        if (power_was_cut)
            line->acked = line->flushed;
        if (may_lose)
            line->acked = line->flushed = 0;
        line->crashed = true;
        TAILQ_INIT(&disk->changes);
        while (disk->making[0] != NULL) /* any of them may be the one */
            forget_making(disk, disk->making[0], disk->marker);
        disk->marker = 0;
        disk->is_marker_loose = false;
        disk->clients = disk->snap_clients = disk->shared = 0;
        disk->exclusive = disk->is_emptying = false;
        disk->removing_snaps = 0;
        if (disk->is_removing) {
            disk->existence = MAYBE;
            disk->places = AT_HOME | AT_TRASH;
        }
        disk->is_removing = false;
        disk->is_in_doubt = disk->maybe_line != NULL;
    }
}

/* --- comparing --- */

/* Versions of the block between lo (exclusive) and hi, newest first. */
struct versions {
    const struct version **all;
    size_t count, cap;
};

static void add_version(struct versions *list, const struct version *version)
{
    list->all = grow(list->all, &list->cap, list->count, sizeof *list->all);
    size_t at = list->count++;
    while (at > 0 && list->all[at - 1]->stamp < version->stamp) {
        list->all[at] = list->all[at - 1];
        at--;
    }
    list->all[at] = version;
}

static struct versions versions_between(const struct line *line, uint64_t block,
                                        uint64_t lo, uint64_t hi)
{
    struct versions list = {0};
    const struct block_slot *slot = slot_find(line, block);
    const struct version *version = slot != NULL ? slot->newest : NULL;
    for (; version != NULL && version_number(version) > lo; version = version->older) {
        if (version_number(version) <= hi)
            add_version(&list, version);
    }
    for (size_t i = line->zeroed_count; i-- > 0;) {
        const struct zeroed *zeroed = &line->zeroed[i];
        uint64_t number = version_number(&zeroed->version);
        if (number <= lo)
            break;
        if (number <= hi && zeroed->first <= block && block < zeroed->end)
            add_version(&list, &zeroed->version);
    }
    return list;
}

bool line_explains(const struct line *line, uint64_t block, uint64_t lo, uint64_t hi,
                   const uint8_t *bytes, uint32_t from, uint32_t len,
                   uint64_t *ret_number)
{
    if (version_equals(line_at(line, block, lo), block, bytes, from, len)) {
        *ret_number = lo;
        return true;
    }
    struct versions list = versions_between(line, block, lo, hi);
    bool found = false;
    for (size_t i = list.count; i-- > 0 && !found;) {
        found = version_equals(list.all[i], block, bytes, from, len);
        if (found)
            *ret_number = version_number(list.all[i]);
    }
    free(list.all);
    return found;
}

static bool seen_equals(const struct seen *seen, const struct version *version)
{
    return seen->is_zero ? version->is_zero
                         : !version->is_zero && version->crc == seen->crc;
}

/* Adds 1 to votes[N - lo] for each N at which the line has what was seen; as differences
 * between neighbours. False: there is none. */
static bool vote(const struct line *line, uint64_t lo, uint64_t hi,
                 const struct seen *seen, int32_t *votes)
{
    struct versions list = versions_between(line, seen->block, lo, hi);
    uint64_t end = hi + 1;
    bool any = false;
    for (size_t i = 0; i <= list.count; i++) {
        const struct version *version = i < list.count ? list.all[i]
                                                       : line_at(line, seen->block, lo);
        uint64_t start = i < list.count ? version_number(version) : lo;
        if (start < end && seen_equals(seen, version)) {
            votes[start - lo]++;
            votes[end - lo]--;
            any = true;
        }
        end = min_u64(end, start);
    }
    free(list.all);
    return any;
}

void line_history(const struct line *line, uint64_t block, char *ret, size_t cap)
{
    struct versions list = versions_between(line, block, 0, UINT64_MAX >> STAMP_SHIFT);
    size_t used = 0;
    ret[0] = '\0';
    for (size_t i = 0; i < list.count && i < 12 && used + 1 < cap; i++) {
        int n = snprintf(ret + used, cap - used, " %llu:%s%llu",
                         (unsigned long long)version_number(list.all[i]),
                         list.all[i]->is_zero ? "zeros by " : "change ",
                         (unsigned long long)list.all[i]->change);
        used += n > 0 ? (size_t)n : 0;
    }
    if (list.count == 0)
        snprintf(ret, cap, "none in this line");
    free(list.all);
}

static void explain(const struct line *line, uint64_t lo, uint64_t hi, size_t nth,
                    const struct seen *seen, char *ret, size_t cap)
{
    char history[400];
    line_history(line, seen->block, history, sizeof history);
    snprintf(
        ret, cap,
        "block %llu (number %zu read) is %s (checksum %08x), which it was at no batch "
        "from %llu to %llu that the blocks before it allow; batches that changed "
        "it:%s",
        (unsigned long long)seen->block, nth, seen->is_zero ? "zeros" : "data", seen->crc,
        (unsigned long long)lo, (unsigned long long)hi, history);
}

/* The first block that leaves no batch, given those before it. */
static void explain_conflict(const struct line *line, uint64_t lo, uint64_t hi,
                             const struct seen *seen, size_t count, char *ret, size_t cap)
{
    size_t n = (size_t)(hi - lo + 1);
    int32_t *votes = run_alloc((n + 1) * sizeof *votes);
    bool *left = run_alloc(n);
    memset(left, 1, n);
    for (size_t i = 0; i < count; i++) {
        memset(votes, 0, (n + 1) * sizeof *votes);
        vote(line, lo, hi, &seen[i], votes);
        int32_t sum = 0;
        bool any = false;
        for (size_t k = 0; k < n; k++) {
            sum += votes[k];
            left[k] = left[k] && sum > 0;
            any = any || left[k];
        }
        if (!any) {
            explain(line, lo, hi, i, &seen[i], ret, cap);
            break;
        }
    }
    free(votes);
    free(left);
}

bool line_match(const struct line *line, uint64_t lo, uint64_t hi,
                const struct seen *seen, size_t count, bool *ret_ok, char *ret_text,
                size_t cap)
{
    size_t n = (size_t)(hi - lo + 1);
    int32_t *votes = run_alloc((n + 1) * sizeof *votes);
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        if (!vote(line, lo, hi, &seen[i], votes)) {
            explain(line, lo, hi, i, &seen[i], ret_text, cap);
            free(votes);
            return false;
        }
    }
    int64_t sum = 0;
    for (size_t k = 0; k < n; k++) {
        sum += votes[k];
        ret_ok[k] = sum == (int64_t)count;
        any = any || ret_ok[k];
    }
    if (!any)
        explain_conflict(line, lo, hi, seen, count, ret_text, cap);
    free(votes);
    return any;
}
