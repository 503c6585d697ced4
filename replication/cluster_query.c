/* SPDX-License-Identifier: Apache-2.0 */
/* Questions to the cluster state whose answers follow from the tables: lists, bounds,
 * what may be removed. Handlers and their proposers ask the same functions. */
#include <stdio.h>

#include "replication/cluster_internal.h"

#define HIDDEN ((unsigned)(DISK_IMPORTING | DISK_TRASHED | DISK_REMOVED | DISK_HEADLESS))

bool cluster_disk_is_visible(const struct cluster_disk *disk)
{
    return (disk->flags & HIDDEN) == 0;
}

void cluster_trash_name(uint64_t disk, char ret_name[DISK_NAME_MAX + 1])
{
    snprintf(ret_name, DISK_NAME_MAX + 1, ".trash-%llu", (unsigned long long)disk);
}

bool cluster_disk_is_settled(const struct cluster_disk *disk)
{
    if (disk->pending_count != 0)
        return false;
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        if (!disk->extents[i].final ||
            disk->extents[i].last_number > disk->checkpoint.covers)
            return false;
    }
    return true;
}

const struct cluster_disk *cluster_trash_next(const struct cluster_state *state,
                                              const struct cluster_disk *disk)
{
    /* Their names begin with '.', which comes before all that others may begin with. */
    disk = cluster_disk_next(state, disk);
    return disk != NULL && (disk->flags & DISK_TRASHED) ? disk : NULL;
}

const struct cluster_version *
cluster_disk_version_next(const struct cluster_disk *disk,
                          const struct cluster_version *version)
{
    return version == NULL ? TAILQ_FIRST(&disk->versions)
                           : TAILQ_NEXT(version, disk_link);
}

const struct cluster_version *cluster_child_next(const struct cluster_version *parent,
                                                 const struct cluster_version *version)
{
    return version == NULL ? TAILQ_FIRST(&parent->children)
                           : TAILQ_NEXT(version, child_link);
}

const struct cluster_disk *cluster_head_next(const struct cluster_version *parent,
                                             const struct cluster_disk *disk)
{
    return disk == NULL ? TAILQ_FIRST(&parent->heads) : TAILQ_NEXT(disk, head_link);
}

const struct cluster_version *cluster_spare_next(const struct cluster_state *state,
                                                 const struct cluster_version *version)
{
    return version == NULL ? TAILQ_FIRST(&state->spare) : TAILQ_NEXT(version, spare_link);
}

uint32_t cluster_disk_bound(const struct cluster_state *state,
                            const struct cluster_disk *disk)
{
    const struct cluster_version *version = cluster_version_by_id(state,
                                                                  disk->head_parent);
    /* Its own pending snapshots are layers of its own log. */
    while (version != NULL && version->pending && version->disk == disk->id)
        version = cluster_version_by_id(state, version->parent);
    if (version != NULL && version->collapsing)
        version = cluster_version_by_id(state, version->parent);
    return version == NULL ? 0 : version->generation;
}

static bool is_collapsing(const struct cluster_state *state, uint64_t version)
{
    const struct cluster_version *found = cluster_version_by_id(state, version);
    return found != NULL && found->collapsing;
}

const char *cluster_collapse_obstacle(const struct cluster_state *state,
                                      const struct cluster_version *version)
{
    const struct cluster_version *child = TAILQ_FIRST(&version->children);
    const struct cluster_disk *head = TAILQ_FIRST(&version->heads);
    if (version->name[0] != '\0')
        return "has a name";
    if (version->pending)
        return "waits for a checkpoint";
    if (version->collapsing)
        return "collapses already";
    if (version->child_count > 1U + planted(PLANT_BRANCH_POINT_LOST))
        return "has more than one child";
    if ((is_collapsing(state, version->parent) || (child != NULL && child->collapsing)) &&
        !planted(PLANT_COLLAPSE_NEIGHBOURS))
        return "has a neighbour that collapses";
    if (child != NULL && child->pending)
        return "has a child that waits for a checkpoint";
    if (head != NULL && (head->flags & DISK_REMOVED))
        return "has the head of a removed disk for a child";
    if (head != NULL && head->collapsing_version != 0) /* one above earlier snapshots */
        return "has a head for a child that another one collapses against";
    return NULL;
}

bool cluster_version_removable(const struct cluster_state *state,
                               const struct cluster_version *version)
{
    return cluster_collapse_obstacle(state, version) == NULL;
}

bool cluster_disk_purgeable(const struct cluster_state *state,
                            const struct cluster_disk *disk)
{
    if ((disk->flags & DISK_REMOVED) == 0 || (disk->flags & DISK_HEADLESS) ||
        disk->collapsing_version != 0)
        return false;
    if (disk->flags & DISK_SHARED)
        return true;
    const struct cluster_version *version;
    TAILQ_FOREACH (version, &disk->versions, disk_link) {
        if (version->collapsing || is_collapsing(state, version->parent))
            return false;
    }
    return true;
}
