/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block status: the same way down as a read, without the data. What the layers or the
 * map name is data, all else reads as zeros. The answer is of one moment (D3).
 *
 * A map node that cannot be read fails the call.
 */
#include "cow/disk_internal.h"

struct status {
    struct disk_range *ranges;
    uint32_t max, count;
};

/* False when a further range would be needed. */
static bool add(struct status *status, uint64_t blocks, enum disk_status_kind kind)
{
    struct disk_range *last = status->count ? &status->ranges[status->count - 1] : NULL;

    if (last && last->kind == kind) {
        last->len_bytes += blocks * BLOCK_SIZE;
        return true;
    }
    if (status->count == status->max)
        return false;
    status->ranges[status->count++] =
        (struct disk_range){.len_bytes = blocks * BLOCK_SIZE, .kind = kind};
    return true;
}

static bool add_span(struct status *status, const struct map_span *span, uint64_t block,
                     uint64_t end)
{
    if (!span->leaf)
        return add(status, end - block, DISK_HOLE);
    for (; block < end; block++) {
        bool null = address_is_null(map_span_entry(span, block).address);
        if (!add(status, 1, null ? DISK_HOLE : DISK_DATA))
            return false;
    }
    return true;
}

/* What the layers say of [first, end), kept before anything suspends. */
struct stretch {
    uint64_t count;
    bool in_layers, zeros;
};
#define STRETCHES_MAX   512U
#define SPANS_PER_YIELD 64U
#define TRIES_MAX       5U   /* when what was looked up is dead meanwhile */

static uint32_t ask_layers(const struct disk *disk, uint64_t first, uint64_t end,
                           struct stretch *stretches)
{
    uint32_t count = 0;

    while (first < end && count < STRETCHES_MAX) {
        struct layer_run run = layers_find(disk, first, end);
        stretches[count++] =
            (struct stretch){run.count, run.in_layers, address_is_null(run.address)};
        first += run.count;
    }
    return count;
}

/* One stretch through the map. 1: no room for more ranges. */
static async int add_mapped(struct disk *disk, const struct map_root *root,
                            struct status *status, uint64_t block, uint64_t end)
{
    uint32_t spans = 0;

    while (block < end) {
        struct map_span span;
        int rc = map_get(disk->host->nodes, root, block, &span);
        if (rc < 0)
            return rc;
        uint64_t to = min_u64(end, span.start + span.count);
        bool more = add_span(status, &span, block, to);
        if (span.leaf)
            node_put(disk->host->nodes, span.leaf);
        if (!more)
            return 1;
        block = to;
        if (++spans % SPANS_PER_YIELD == 0)
            task_yield();
    }
    return 0;
}

static async int collect(struct disk *disk, uint64_t first, uint64_t end,
                         struct status *status)
{
    cleanup(free_ptr) struct stretch *stretches =
        malloc(STRETCHES_MAX * sizeof *stretches);
    struct map_root root = disk->root;
    int rc = 0;

    if (!stretches)
        return -ENOMEM;
    uint32_t count = ask_layers(disk, first, end, stretches);
    for (uint32_t i = 0; i < count && rc == 0; i++) {
        const struct stretch *at = &stretches[i];
        if (!at->in_layers)
            rc = add_mapped(disk, &root, status, first, first + at->count);
        else if (!add(status, at->count, at->zeros ? DISK_HOLE : DISK_DATA))
            rc = 1;
        first += at->count;
    }
    return rc;
}

/* Of a disk that another host owns: there may be data anywhere. */
static void unknown(uint64_t len_bytes, struct disk_range *ret_ranges,
                    uint32_t *ret_count)
{
    ret_ranges[0] = (struct disk_range){.len_bytes = len_bytes, .kind = DISK_DATA};
    *ret_count = 1;
}

async int disk_block_status(struct disk *disk, uint64_t offset_bytes, uint64_t len_bytes,
                            struct disk_range *ret_ranges, uint32_t max,
                            uint32_t *ret_count)
{
    struct status status = {.ranges = ret_ranges, .max = max};
    uint64_t end_bytes, left = len_bytes;
    int rc;

    if (max == 0 || len_bytes == 0 || !add_u64(offset_bytes, len_bytes, &end_bytes) ||
        end_bytes > disk->size_bytes)
        return -EINVAL;
    if (!disk_serves_reads(disk))
        return disk->down;
    uint32_t tries = 0, stance = disk->stance;
    if (disk_is_elsewhere(disk)) {
        unknown(len_bytes, ret_ranges, ret_count);
        return 0;
    }
    do {
        status.count = 0;
        rc = collect(disk, offset_bytes / BLOCK_SIZE, div_up_u64(end_bytes, BLOCK_SIZE),
                     &status);
    } while (read_is_stale(rc) && disk_serves_reads(disk) && !disk_is_elsewhere(disk) &&
             ++tries < TRIES_MAX);
    if (disk_is_elsewhere(disk) || disk->stance != stance) { /* meanwhile */
        unknown(len_bytes, ret_ranges, ret_count);
        return 0;
    }
    if (rc < 0)
        return rc;
    /* The first and the last range may begin or end inside a block. */
    status.ranges[0].len_bytes -= offset_bytes % BLOCK_SIZE;
    for (uint32_t i = 0; i < status.count; i++) {
        status.ranges[i].len_bytes = min_u64(status.ranges[i].len_bytes, left);
        left -= status.ranges[i].len_bytes;
    }
    *ret_count = status.count;
    return 0;
}
