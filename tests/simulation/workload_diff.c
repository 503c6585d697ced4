/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions about snapshots: what differs between two points of a disk, and how much one
 * of them holds. The disk as it is may move meanwhile, so of it only what stays is
 * compared.
 */
#include "tests/simulation/workload.h"

struct point {
    const struct line *line;
    uint64_t number, blocks;
};

/* A range that was reported as changed. */
struct changed {
    uint64_t first, end;
    bool is_zero;
};

struct diff {
    struct op *op;
    struct changed *all;
    size_t count, cap;
};

static struct point snap_point(const struct model_snap *snap)
{
    return (struct point){snap->line, snap->number, snap->size_bytes / BLOCK_SIZE};
}

static const struct version *block_at(const struct point *point, uint64_t block)
{
    static const struct version beyond = {.is_zero = true};
    return block < point->blocks ? line_at(point->line, block, point->number) : &beyond;
}

static bool looks_equal(const struct version *a, const struct version *b)
{
    return a->is_zero == b->is_zero && (a->is_zero || a->crc == b->crc);
}

static int on_changed(void *arg, uint64_t offset_bytes, uint64_t len_bytes, bool is_zero)
{
    struct diff *diff = arg;
    struct op *op = diff->op;
    struct changed range = {offset_bytes / BLOCK_SIZE,
                            (offset_bytes + len_bytes) / BLOCK_SIZE, is_zero};
    if (offset_bytes % BLOCK_SIZE != 0 || len_bytes % BLOCK_SIZE != 0 || len_bytes == 0 ||
        (diff->count > 0 && range.first < diff->all[diff->count - 1].end))
        run_fail(op->run, "diff of %s: a range of %llu bytes at %llu is out of order",
                 op->md->name, (unsigned long long)len_bytes,
                 (unsigned long long)offset_bytes);
    if (diff->count == diff->cap) {
        diff->cap = diff->cap ? diff->cap * 2 : 64;
        diff->all = realloc(diff->all, diff->cap * sizeof *diff->all);
        assert(diff->all != NULL);
    }
    diff->all[diff->count++] = range;
    return 0;
}

static const struct changed *reported(const struct diff *diff, uint64_t block)
{
    size_t low = 0, high = diff->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (diff->all[middle].end <= block)
            low = middle + 1;
        else
            high = middle;
    }
    return low < diff->count && diff->all[low].first <= block ? &diff->all[low] : NULL;
}

/* One block of either; `last` is above to->number if that has moved on. */
static void check_block(const struct diff *diff, const struct point *from,
                        const struct point *to, uint64_t last, uint64_t block)
{
    struct op *op = diff->op;
    const struct version *was = block_at(from, block), *is = block_at(to, block);
    const struct changed *range = reported(diff, block);
    if (block >= to->blocks ||
        (last > to->number && line_at(to->line, block, last) != is))
        return;
    if (range == NULL && !looks_equal(was, is))
        run_fail(op->run, "diff of %s, batches %llu to %llu: block %llu has changed",
                 op->md->name, (unsigned long long)from->number,
                 (unsigned long long)to->number, (unsigned long long)block);
    if (range != NULL && was == is && last == to->number)
        run_fail(op->run, "diff of %s, batches %llu to %llu: block %llu has not changed",
                 op->md->name, (unsigned long long)from->number,
                 (unsigned long long)to->number, (unsigned long long)block);
    if (range != NULL && range->is_zero != is->is_zero)
        run_fail(op->run, "diff of %s, batches %llu to %llu: block %llu is%s zeros",
                 op->md->name, (unsigned long long)from->number,
                 (unsigned long long)to->number, (unsigned long long)block,
                 is->is_zero ? "" : " not");
}

static void check_lines(const struct diff *diff, const struct point *from,
                        const struct point *to, uint64_t last, const struct line *line)
{
    for (; line != NULL; line = line->base != NULL ? line->base->line : NULL) {
        for (size_t i = 0; i < line->slot_count; i++) {
            if (line->slots[i].block_plus_one != 0)
                check_block(diff, from, to, last, line->slots[i].block_plus_one - 1);
        }
    }
}

static async void diff_main(struct op *op)
{
    struct run *run = op->run;
    struct diff diff = {.op = op};
    struct error err = {0};
    bool to_head = op->to_snap == NULL;
    struct point from = snap_point(op->snap), to;
    if (to_head)
        to = (struct point){op->line, op->lo, op->md->size_bytes / BLOCK_SIZE};
    else
        to = snap_point(op->to_snap);
    int rc = snapshot_diff(run->host, op->md->name, op->snap_name,
                           to_head ? NULL : op->names[0], on_changed, &diff, &err);
    if (!op_found_nothing(op, rc))
        op_check_result(op, rc, err.text);
    if (rc == 0) {
        uint64_t last = to_head ? to.line->last : to.number;
        check_lines(&diff, &from, &to, last, from.line);
        check_lines(&diff, &from, &to, last, to.line);
    }
    free(diff.all);
    op->md->shared--;
    op_end(op, rc);
}

void admin_diff_begin(struct run *run)
{
    struct model_disk *disk = pick_disk(run, false);
    struct model_snap *from = disk != NULL ? pick_snap(run, disk) : NULL;
    if (from == NULL)
        return;
    struct op *op = op_begin(run, "diff");
    op->md = disk;
    disk_use(disk);
    op_snap(op, from);
    op->line = disk->line;
    op->lo = disk->line->acked;
    if (run_chance(run, 60)) {
        op->to_snap = pick_snap(run, disk);
        memcpy(op->names[0], op->to_snap->name, sizeof op->names[0]);
    }
    op_start_task(op, diff_main);
}

/* --- usage --- */

static uint64_t count_data(const struct point *point)
{
    uint64_t count = 0, cap = 0;
    const struct line *line = point->line;
    for (const struct line *l = line; l != NULL; l = l->base ? l->base->line : NULL)
        cap += l->slots_used;
    uint64_t *blocks = run_alloc((cap + 1) * sizeof *blocks);
    for (const struct line *l = line; l != NULL; l = l->base ? l->base->line : NULL) {
        for (size_t i = 0; i < l->slot_count; i++) {
            uint64_t block = l->slots[i].block_plus_one - 1;
            if (l->slots[i].block_plus_one != 0 && !block_at(point, block)->is_zero)
                blocks[count++] = block;
        }
    }
    count = blocks_unique(blocks, count);
    free(blocks);
    return count;
}

static async void usage_main(struct op *op)
{
    struct run *run = op->run;
    struct disk_usage usage;
    struct error err = {0};
    struct point point = snap_point(op->snap);
    int rc = disk_usage(run->host, op->md->name, op->snap_name, &usage, &err);
    if (!op_found_nothing(op, rc))
        op_check_result(op, rc, err.text);
    if (rc == 0) {
        uint64_t bytes = count_data(&point) * BLOCK_SIZE;
        if (usage.referenced_bytes != bytes ||
            usage.exclusive_bytes + usage.shared_bytes != bytes)
            run_fail(run,
                     "%s@%s holds %llu bytes, %llu alone and %llu shared; it is said to "
                     "hold %llu",
                     op->md->name, op->snap_name, (unsigned long long)bytes,
                     (unsigned long long)usage.exclusive_bytes,
                     (unsigned long long)usage.shared_bytes,
                     (unsigned long long)usage.referenced_bytes);
    }
    op->md->shared--;
    op_end(op, rc);
}

void admin_usage_begin(struct run *run)
{
    struct model_disk *disk = pick_disk(run, false);
    struct model_snap *snap = disk != NULL ? pick_snap(run, disk) : NULL;
    if (snap == NULL)
        return;
    struct op *op = op_begin(run, "usage");
    op->md = disk;
    disk_use(disk);
    op_snap(op, snap);
    op_start_task(op, usage_main);
}
