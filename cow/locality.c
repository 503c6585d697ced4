/* SPDX-License-Identifier: Apache-2.0 */
#include "cow/disk_internal.h"
#include "cow/rewrite.h"

/* Runs of so many blocks are as good as any: 128 KiB. */
#define RUN_GOOD 32U

static_assert(sizeof(struct locality) <= 8 * KIB + 64, "doc/limits.md");

bool read_is_ordered(struct read_streams *streams, uint64_t first, uint64_t end)
{
    for (uint32_t i = 0; i < READ_STREAMS; i++) {
        if (streams->ends[i] == first && first > 0) {
            streams->ends[i] = end;
            return true;
        }
    }
    streams->ends[streams->next] = end;
    streams->next = (streams->next + 1) % READ_STREAMS;
    return false;
}

uint64_t locality_range_blocks(const struct locality *locality)
{
    return (uint64_t)MAP_FANOUT << locality->leaf_shift;
}

static uint64_t enough(const struct locality *locality)
{
    return locality_range_blocks(locality) * 3 / 2;
}

bool locality_is_worthy(const struct locality *locality, uint32_t range)
{
    return locality->ranges[range].excess >= enough(locality);
}

void locality_settled(struct locality *locality, uint32_t range)
{
    if (locality_is_worthy(locality, range))
        locality->worthy--;
    locality->ranges[range].excess = 0;
}

static uint32_t now_s(const struct disk *disk)
{
    return (uint32_t)(loop_now_ns(disk->loop) / NS_PER_S);
}

static struct locality *locality_create(const struct disk *disk)
{
    struct locality *locality = calloc(1, sizeof *locality);
    uint64_t blocks = disk->size_bytes / BLOCK_SIZE;

    if (!locality)
        return NULL;
    while (locality_range_blocks(locality) * LOCALITY_RANGES < blocks)
        locality->leaf_shift++;
    for (uint32_t i = 0; i < LOCALITY_RANGES; i++)
        locality->ranges[i].changed_s = now_s(disk); /* for all it knows */
    return locality;
}

void locality_read(struct disk *disk, uint64_t first, uint64_t count, uint32_t parts)
{
    uint64_t fair = 1 + count / RUN_GOOD;

    if (parts <= fair || !disk->log)
        return;
    if (!disk->locality)
        disk->locality = locality_create(disk);
    struct locality *locality = disk->locality;
    if (!locality)
        return; /* out of memory: the next read tries again */
    uint64_t range = first / locality_range_blocks(locality);
    if (range >= LOCALITY_RANGES) { /* the disk has grown */
        rewrite_forget(disk);
        return;
    }
    struct locality_range *at = &locality->ranges[range];
    bool was = locality_is_worthy(locality, (uint32_t)range);
    at->excess = (uint32_t)min_u64(UINT32_MAX, at->excess + (parts - fair));
    if (was || !locality_is_worthy(locality, (uint32_t)range))
        return;
    locality->worthy++;
    rewriter_wanted(disk->host);
}

void locality_changed(struct disk *disk, uint64_t first, uint64_t end)
{
    struct locality *locality = disk->locality;

    if (!locality)
        return;
    rewrite_disturbed(disk, first, end);
    uint64_t blocks = locality_range_blocks(locality);
    uint64_t last = min_u64((end - 1) / blocks, LOCALITY_RANGES - 1);
    for (uint64_t i = first / blocks; i <= last; i++)
        locality->ranges[i].changed_s = now_s(disk);
}
