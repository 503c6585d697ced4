/* SPDX-License-Identifier: Apache-2.0 */
/* Which disk lists an extent: an index over the lists of all disks, derived from them. */
#include "replication/cluster_internal.h"

static int by_address(const struct cluster_listed *a, const struct cluster_listed *b)
{
    return a->extent.v < b->extent.v ? -1 : a->extent.v > b->extent.v;
}

RB_GENERATE_INTERNAL(cluster_listed_tree, cluster_listed, by_extent, by_address,
                     static attr_unused)

static struct cluster_listed *find(const struct cluster_state *state,
                                   struct address extent)
{
    struct cluster_listed key = {.extent = extent};
    return RB_FIND(cluster_listed_tree, (struct cluster_listed_tree *)&state->listed,
                   &key);
}

bool cluster_listed_add(struct cluster_state *state, uint64_t disk, struct address extent)
{
    struct cluster_listed *listed = cluster_alloc(sizeof *listed);
    *listed = (struct cluster_listed){.extent = extent, .disk = disk};
    if (RB_INSERT(cluster_listed_tree, &state->listed, listed) != NULL) {
        free(listed);
        return false;
    }
    state->listed_count++;
    return true;
}

void cluster_listed_remove(struct cluster_state *state, struct address extent)
{
    struct cluster_listed *listed = find(state, extent);
    assert(listed != NULL);
    RB_REMOVE(cluster_listed_tree, &state->listed, listed);
    state->listed_count--;
    free(listed);
}

void cluster_listed_clear(struct cluster_state *state, struct cluster_disk *disk)
{
    for (uint32_t i = 0; i < disk->extent_count; i++)
        cluster_listed_remove(state, disk->extents[i].extent);
    disk->extent_count = 0;
}

void cluster_listed_done(struct cluster_state *state)
{
    struct cluster_listed *listed, *next;
    RB_FOREACH_SAFE (listed, cluster_listed_tree, &state->listed, next) {
        RB_REMOVE(cluster_listed_tree, &state->listed, listed);
        free(listed);
    }
}

const struct log_extent *cluster_listed_extent(const struct cluster_state *state,
                                               struct address extent, uint64_t *ret_disk)
{
    const struct cluster_listed *listed = find(state, address_extent(extent));
    const struct cluster_disk *disk =
        listed != NULL ? cluster_disk_find(state, listed->disk) : NULL;
    for (uint32_t i = 0; disk != NULL && i < disk->extent_count; i++) {
        if (!address_equal(disk->extents[i].extent, listed->extent))
            continue;
        if (ret_disk != NULL)
            *ret_disk = disk->id;
        return &disk->extents[i];
    }
    return NULL;
}
