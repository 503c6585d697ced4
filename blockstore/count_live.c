/* SPDX-License-Identifier: Apache-2.0 */
/* How much of each disk a store holds. */
#include "blockstore/store_internal.h"

struct counting {
    const le16 *groups;
    uint32_t group_count;
    struct disk_blocks *disks; /* one for each extent at first */
    size_t count;
};

static int compare_groups(const void *a, const void *b)
{
    return (int)le16_get(*(const le16 *)a) - (int)le16_get(*(const le16 *)b);
}

static void count_one(void *arg, struct extent *e)
{
    struct counting *counting = arg;
    le16 group = le16_of(address_group(e->address));
    if (e->live == 0 || bsearch(&group, counting->groups, counting->group_count,
                                sizeof group, compare_groups) == NULL)
        return;
    counting->disks[counting->count++] = (struct disk_blocks){e->disk, e->live};
}

static int compare_disks(const void *a, const void *b)
{
    const struct disk_blocks *x = a, *y = b;
    return x->disk < y->disk ? -1 : x->disk > y->disk;
}

static void add_up(struct counting *counting)
{
    struct disk_blocks *disks = counting->disks;
    size_t kept = 0;
    if (counting->count > 0)
        qsort(disks, counting->count, sizeof *disks, compare_disks);
    for (size_t i = 0; i < counting->count; i++) {
        if (kept > 0 && disks[kept - 1].disk == disks[i].disk)
            disks[kept - 1].live += disks[i].live;
        else
            disks[kept++] = disks[i];
    }
    counting->count = kept;
}

int store_count_live(const struct store *store, const le16 *groups,
                     uint32_t group_count, struct disk_blocks **ret_disks,
                     size_t *ret_count)
{
    struct counting counting = {.groups = groups, .group_count = group_count};
    counting.disks = malloc((store->extents.count + 1) * sizeof *counting.disks);
    if (counting.disks == NULL)
        return -ENOMEM;
    extent_each(&store->extents, count_one, &counting);
    add_up(&counting);
    *ret_disks = counting.disks;
    *ret_count = counting.count;
    return 0;
}
