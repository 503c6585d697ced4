/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/simulation/fleet_model.h"

#include <stdio.h>

#include "tests/simulation/content.h"

static void *allocate(size_t bytes)
{
    void *p = calloc(1, bytes);
    if (p == NULL) {
        fprintf(stderr, "fleet: no memory for %zu bytes\n", bytes);
        abort();
    }
    return p;
}

/* --- blocks --- */

static struct fleet_entry *entry_add(struct fleet_block *block)
{
    if (block->count == block->cap) {
        block->cap = block->cap == 0 ? 4 : 2 * block->cap;
        block->entries = realloc(block->entries, block->cap * sizeof *block->entries);
        if (block->entries == NULL)
            abort();
    }
    block->entries[block->count] = (struct fleet_entry){0};
    return &block->entries[block->count++];
}

static struct fleet_entry *entry_find(struct fleet_block *block, uint64_t order)
{
    for (uint32_t i = block->count; i-- > 0;) {
        if (block->entries[i].order == order)
            return &block->entries[i];
    }
    abort(); /* it is in flight, so it is here */
}

/* Entries that nobody may see any more are forgotten, unless somebody is reading. */
static void block_tidy(const struct fleet_disk *disk, struct fleet_block *block)
{
    if (disk->lookers > 0 || block->floor == 0)
        return;
    block->count -= block->floor;
    memmove(block->entries, block->entries + block->floor,
            block->count * sizeof *block->entries);
    block->low -= block->floor;
    block->floor = 0;
}

static void blocks_make(struct fleet_disk *disk, uint32_t blocks)
{
    disk->block_count = blocks;
    disk->blocks = allocate(blocks * sizeof *disk->blocks);
}

void model_begin(struct fleet_model *model, uint32_t loss_at)
{
    *model = (struct fleet_model){.counter = 1, .next_id = 1, .loss_at = loss_at};
}

struct fleet_disk *model_add_disk(struct fleet_model *model, uint32_t blocks)
{
    if (model->disk_count == FLEET_DISK_COUNT)
        return NULL;
    struct fleet_disk *disk = &model->disks[model->disk_count++];
    *disk = (struct fleet_disk){.existence = ABSENT, .flushed = ++model->counter};
    snprintf(disk->name, sizeof disk->name, "disk%u", model->disk_count);
    blocks_make(disk, blocks);
    for (uint32_t i = 0; i < blocks; i++)
        entry_add(&disk->blocks[i])->state = ENTRY_ACKED;
    return disk;
}

void model_see_epoch(struct fleet_disk *disk, uint64_t epoch)
{
    disk->epoch = max_u64(disk->epoch, epoch);
}

/* --- changes --- */

bool model_change_begin(struct fleet_model *model, struct fleet_change *change)
{
    struct fleet_disk *disk = change->disk;
    for (uint32_t i = 0; i < change->count; i++) {
        if (disk->blocks[change->first + i].is_busy)
            return false;
    }
    change->order = ++model->counter;
    for (uint32_t i = 0; i < change->count; i++) {
        struct fleet_block *block = &disk->blocks[change->first + i];
        struct fleet_entry *entry = entry_add(block);
        block->is_busy = true;
        entry->id = change->id;
        entry->order = change->order;
        entry->state = ENTRY_IN_FLIGHT;
    }
    return true;
}

void model_change_end(struct fleet_model *model, struct fleet_change *change,
                      bool is_acked, uint64_t epoch)
{
    struct fleet_disk *disk = change->disk;
    model->counter++;
    model_see_epoch(disk, epoch);
    for (uint32_t i = 0; i < change->count; i++) {
        struct fleet_block *block = &disk->blocks[change->first + i];
        struct fleet_entry *entry = entry_find(block, change->order);
        entry->state = is_acked ? ENTRY_ACKED : ENTRY_OPEN;
        entry->ended = model->counter;
        entry->epoch = is_acked ? epoch : max_u64(epoch, disk->epoch);
        block->is_busy = false;
        uint32_t at = (uint32_t)(entry - block->entries);
        if (is_acked && block->low < at)
            block->low = at;
    }
    change->count = 0;
}

/* --- reads and flushes --- */

void model_look_begin(struct fleet_model *model, struct fleet_look *look, uint64_t epoch)
{
    struct fleet_disk *disk = look->disk;
    look->begun = ++model->counter;
    look->epoch = epoch;
    look->losses = disk->losses;
    disk->lookers++;
    model_see_epoch(disk, epoch);
    for (uint32_t i = 0; i < look->count; i++) {
        const struct fleet_block *block = &disk->blocks[look->first + i];
        look->bounds[i] = block->entries[block->low].order;
    }
}

void model_look_drop(struct fleet_look *look)
{
    struct fleet_disk *disk = look->disk;
    if (disk == NULL)
        return;
    disk->lookers--;
    for (uint32_t i = 0; disk->lookers == 0 && i < disk->block_count; i++)
        block_tidy(disk, &disk->blocks[i]);
    look->disk = NULL;
}

static void describe(const struct fleet_block *block, char *ret, size_t cap)
{
    static const char *const states[] = {"in flight", "acknowledged", "open", "void"};
    size_t used = 0;
    ret[0] = '\0';
    for (uint32_t i = 0; i < block->count && used + 1 < cap; i++) {
        const struct fleet_entry *e = &block->entries[i];
        int n = snprintf(ret + used, cap - used, "%s%llu %s (epoch %llu)%s%s",
                         i > 0 ? ", " : "", (unsigned long long)e->id, states[e->state],
                         (unsigned long long)e->epoch, i == block->floor ? " FLOOR" : "",
                         i == block->low ? " LOW" : "");
        used += n > 0 ? (size_t)n : 0;
    }
}

/* Whose content is it, whole? */
static bool identify(const struct fleet_model *model, uint64_t block,
                     const uint8_t *bytes, uint64_t *ret_id)
{
    uint8_t expected[BLOCK_SIZE];
    memcpy(ret_id, bytes, sizeof *ret_id);
    if (*ret_id == 0)
        return bytes_are_zero(bytes, BLOCK_SIZE);
    if (*ret_id >= model->next_id)
        return false;
    content_fill(*ret_id, block * BLOCK_SIZE, expected, BLOCK_SIZE);
    return memcmp(expected, bytes, BLOCK_SIZE) == 0;
}

/* What was seen is there; what lies above it and could have been there is void. */
static void narrow(struct fleet_look *look, struct fleet_block *block, uint32_t lowest,
                   uint32_t highest, bool is_last)
{
    if (look->losses != look->disk->losses)
        return;
    if (block->low < lowest)
        block->low = lowest;
    for (uint32_t i = highest + 1; i < block->count; i++) {
        struct fleet_entry *e = &block->entries[i];
        if (e->state != ENTRY_IN_FLIGHT && e->ended < look->begun &&
            (is_last || e->epoch < look->epoch))
            e->state = ENTRY_VOID;
    }
}

static bool check_block(struct fleet_model *model, struct fleet_look *look, uint32_t nth,
                        const uint8_t *bytes, bool is_last, char *text, size_t cap)
{
    struct fleet_disk *disk = look->disk;
    uint32_t number = look->first + nth;
    struct fleet_block *block = &disk->blocks[number];
    uint64_t bound = min_u64(look->bounds[nth], block->entries[block->low].order);
    uint32_t lowest = UINT32_MAX, highest = 0;
    char is[300], may_be[1000];
    uint64_t id;
    bool is_whole = identify(model, number, bytes, &id);
    if (is_whole && look->epoch < disk->epoch)
        return true; /* it may be a former owner */
    for (uint32_t i = 0; is_whole && i < block->count; i++) {
        const struct fleet_entry *e = &block->entries[i];
        if (e->id != id || e->order < bound || e->state == ENTRY_VOID)
            continue;
        lowest = min_u32(lowest, i);
        highest = i;
    }
    if (lowest != UINT32_MAX) {
        narrow(look, block, lowest, highest, is_last);
        return true;
    }
    content_describe(bytes, is, sizeof is);
    describe(block, may_be, sizeof may_be);
    snprintf(text, cap, "block %u is%s %s; epoch %llu, bound %llu; may be: %s", number,
             is_whole ? "" : " torn:", is, (unsigned long long)look->epoch,
             (unsigned long long)bound, may_be);
    return false;
}

bool model_look_end(struct fleet_model *model, struct fleet_look *look,
                    const uint8_t *bytes, bool is_last, char *text, size_t cap)
{
    for (uint32_t i = 0; i < look->count; i++) {
        if (!check_block(model, look, i, bytes + (size_t)i * BLOCK_SIZE, is_last, text,
                         cap))
            return false;
    }
    model_look_drop(look);
    return true;
}

void model_flushed(struct fleet_model *model, struct fleet_look *look)
{
    struct fleet_disk *disk = look->disk;
    (void)model;
    if (look->losses == disk->losses) {
        disk->flushed = max_u64(disk->flushed, look->begun);
        for (uint32_t b = 0; b < disk->block_count; b++) {
            struct fleet_block *block = &disk->blocks[b];
            for (uint32_t i = block->floor; i < block->count; i++) {
                const struct fleet_entry *e = &block->entries[i];
                if (e->state == ENTRY_ACKED && e->ended < look->begun &&
                    e->epoch <= look->epoch)
                    block->floor = i;
            }
            if (block->low < block->floor)
                block->low = block->floor;
        }
    }
    model_look_drop(look);
}

/* --- losses --- */

/* What may be lost is not made durable by a flush that comes later. */
static void block_loses(struct fleet_block *block)
{
    block->low = block->floor;
    for (uint32_t i = block->floor + 1; i < block->count; i++) {
        if (block->entries[i].state == ENTRY_ACKED)
            block->entries[i].state = ENTRY_OPEN;
    }
}

void model_cut(struct fleet_model *model, uint32_t machine)
{
    assert(machine < FLEET_HOSTS);
    model->cuts[machine] = ++model->counter;
    for (uint32_t d = 0; d < model->disk_count; d++) {
        struct fleet_disk *disk = &model->disks[d];
        uint32_t without = 0;
        for (uint32_t i = 0; i < FLEET_HOSTS; i++)
            without += model->cuts[i] > disk->flushed;
        if (without < model->loss_at)
            continue;
        disk->losses++;
        for (uint32_t b = 0; b < disk->block_count; b++)
            block_loses(&disk->blocks[b]);
    }
}

/* --- snapshots --- */

struct fleet_snap *model_snap_begin(struct fleet_model *model, struct fleet_disk *disk)
{
    if (model->snap_count == FLEET_SNAP_COUNT)
        return NULL;
    struct fleet_snap *snap = &model->snaps[model->snap_count++];
    *snap = (struct fleet_snap){.of = disk, .existence = ABSENT, .losses = disk->losses};
    snprintf(snap->name, sizeof snap->name, "snap%u", model->snap_count);
    blocks_make(&snap->content, disk->block_count);
    memcpy(snap->content.name, snap->name, sizeof snap->name);
    for (uint32_t b = 0; b < disk->block_count; b++) {
        const struct fleet_block *from = &disk->blocks[b];
        *entry_add(&snap->content.blocks[b]) = from->entries[from->low];
    }
    disk->lookers++;
    return snap;
}

void model_snap_end(struct fleet_model *model, struct fleet_snap *snap, bool is_made)
{
    struct fleet_disk *disk = snap->of;
    struct fleet_look look = {.disk = disk};
    (void)model;
    snap->existence = is_made ? PRESENT : UNSURE;
    for (uint32_t b = 0; is_made && b < disk->block_count; b++) {
        struct fleet_block *from = &disk->blocks[b], *to = &snap->content.blocks[b];
        uint64_t bound = min_u64(to->entries[0].order, from->entries[from->low].order);
        to->count = 0;
        for (uint32_t i = 0; i < from->count; i++) {
            struct fleet_entry entry = from->entries[i];
            if (entry.order < bound || entry.state == ENTRY_VOID)
                continue;
            entry.state = ENTRY_OPEN;
            entry.epoch = entry.ended = 0;
            *entry_add(to) = entry;
        }
    }
    model_look_drop(&look);
}

void model_clone(struct fleet_disk *disk, const struct fleet_snap *snap)
{
    for (uint32_t b = 0; b < disk->block_count; b++) {
        const struct fleet_block *from = &snap->content.blocks[b];
        struct fleet_block *to = &disk->blocks[b];
        to->count = 0;
        for (uint32_t i = 0; i < from->count; i++) {
            if (from->entries[i].state != ENTRY_VOID)
                *entry_add(to) = from->entries[i];
        }
    }
}
