/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes away, in small steps that each are one command. Names go at once; what they
 * stood for goes when nothing needs it any more, freed by a proposer between a BEGIN and
 * an END or before a PURGED. Reasons: doc/cluster.md, "Removal".
 *
 *   version:  SNAPSHOT_RM -> COLLAPSE_BEGIN -> COLLAPSE_END
 *   disk:     DISK_TRASH <-> DISK_RESTORE
 *             DISK_TRASH -> DISK_REMOVE -> DISK_PURGED (-> DISK_PURGED)
 */
#include <stdio.h>

#include "replication/cluster_internal.h"

/* --- versions --- */

int apply_snapshot_rm(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    struct cluster_disk *disk = apply->disk;
    if (command->version_count == 0)
        return apply_refuse(apply, -EINVAL, "disk %s: no snapshots to remove",
                            disk->name);
    for (uint32_t i = 0; i < command->version_count; i++) {
        const struct cluster_version *version = cluster_version_find(
            apply->state, command->versions[i]);
        if (version != NULL && version->disk != disk->id)
            return apply_refuse(apply, -PLX_EMISSING, "disk %s: has no version %llu",
                                disk->name, (unsigned long long)version->id);
    }
    for (uint32_t i = 0; i < command->version_count; i++) {
        struct cluster_version *version = cluster_version_find(apply->state,
                                                               command->versions[i]);
        if (version != NULL)
            cluster_version_drop_name(apply->state, version);
    }
    apply->result->id = disk->id;
    return 0;
}

/* Is the command's disk the one whose head is the child, and as the proposer knows it? */
static int check_collapse_head(struct apply *apply, const struct cluster_version *version)
{
    const struct cluster_disk *head = TAILQ_FIRST(&version->heads);
    uint64_t number = apply->command->number;
    if (head != apply->disk)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "version %llu: its child is another one",
                            (unsigned long long)version->id);
    if (head != NULL && head->checkpoint.number != number)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: checkpoint %llu is over, it is %llu", head->name,
                            (unsigned long long)number,
                            (unsigned long long)head->checkpoint.number);
    return 0;
}

int apply_collapse_begin(struct apply *apply)
{
    struct cluster_disk *head = apply->disk;
    struct cluster_version *version = cluster_version_find(apply->state,
                                                           apply->command->version);
    if (version == NULL)
        return apply_refuse(apply, -PLX_EMISSING, "collapse: there is no version %llu",
                            (unsigned long long)apply->command->version);
    const char *obstacle = cluster_collapse_obstacle(apply->state, version);
    if (obstacle != NULL)
        return apply_refuse(apply, -PLX_EPRECONDITION, "version %llu: %s",
                            (unsigned long long)version->id, obstacle);
    int rc = check_collapse_head(apply, version);
    if (rc != 0)
        return rc;
    const struct cluster_version *child = TAILQ_FIRST(&version->children);
    version->collapsing = true;
    version->against = (struct map_root){.address = ADDRESS_NULL};
    if (child != NULL)
        version->against = child->root;
    if (head != NULL) {
        assert(head->collapsing_version == 0);
        version->against = head->has_root ? head->root : version->root;
        head->collapsing_version = version->id;
    }
    apply->result->id = version->id;
    return 0;
}

/* The disk whose head it was the child of when it began to collapse; NULL: none. Only
 * snapshots of that disk can have come between. */
static struct cluster_disk *collapse_head(struct cluster_state *state,
                                          const struct cluster_version *version)
{
    const struct cluster_version *child = TAILQ_FIRST(&version->children);
    struct cluster_disk *disk = TAILQ_FIRST(&version->heads);
    if (disk == NULL && child != NULL)
        disk = cluster_disk_find(state, child->disk);
    return disk != NULL && disk->collapsing_version == version->id ? disk : NULL;
}

/* The disk of its child now owns what it had: blocks in extents of another disk. */
static void mark_shared(struct cluster_state *state,
                        const struct cluster_version *version)
{
    const struct cluster_version *child = TAILQ_FIRST(&version->children);
    struct cluster_disk *disk = TAILQ_FIRST(&version->heads);
    if (child != NULL)
        disk = cluster_disk_find(state, child->disk);
    if (disk != NULL && disk->id != version->disk)
        disk->flags |= DISK_SHARED;
}

int apply_collapse_end(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    struct cluster_version *version = cluster_version_find(state,
                                                           apply->command->version);
    if (version == NULL)
        return apply_refuse(apply, -PLX_EMISSING, "collapse: there is no version %llu",
                            (unsigned long long)apply->command->version);
    if (!version->collapsing)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "version %llu: its collapse has not begun",
                            (unsigned long long)version->id);
    apply->result->id = version->id;
    mark_shared(state, version);
    struct cluster_disk *head = collapse_head(state, version);
    if (head != NULL) {
        head->collapsing_version = 0;
        if (!head->has_root)
            head->root = version->root; /* what its log starts from */
        head->has_root = true;
    }
    struct cluster_version *child = TAILQ_FIRST(&version->children);
    if (child != NULL)
        cluster_version_set_parent(state, child, version->parent);
    struct cluster_disk *grown = TAILQ_FIRST(&version->heads);
    if (grown != NULL)
        cluster_disk_set_parent(state, grown, version->parent);
    cluster_version_remove(state, version);
    return 0;
}

/* --- disks --- */

int apply_disk_trash(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    char name[DISK_NAME_MAX + 1];
    if (disk->flags & DISK_IMPORTING)
        return apply_refuse(apply, -PLX_EPRECONDITION, "disk %s: is being imported",
                            disk->name);
    int rc = apply_check_settled(apply);
    if (rc != 0)
        return rc;
    disk->trash_name = cluster_copy(disk->name);
    disk->trashed_wall_ns = apply->command->wall_ns;
    disk->flags |= DISK_TRASHED;
    cluster_trash_name(disk->id, name);
    cluster_disk_set_name(apply->state, disk, name);
    apply->result->id = disk->id;
    return 0;
}

int apply_disk_restore(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    int rc = apply_check_new_disk(apply, apply->command->name);
    if (rc != 0)
        return rc;
    cluster_disk_set_name(apply->state, disk, apply->command->name);
    free(take(disk->trash_name));
    disk->trashed_wall_ns = 0;
    disk->flags &= ~(unsigned)DISK_TRASHED;
    apply->result->id = disk->id;
    return 0;
}

int apply_disk_remove(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    struct cluster_version *version;
    disk->flags |= DISK_REMOVED;
    TAILQ_FOREACH (version, &disk->versions, disk_link)
        cluster_version_drop_name(apply->state, version);
    apply->result->id = disk->id;
    return 0;
}

/* Nothing but its own head and versions ever reached into its extents, and these into no
 * other's, but for what lies beyond its oldest version: all of it goes at once. */
static void purge_all(struct cluster_state *state, struct cluster_disk *disk)
{
    struct cluster_version *version, *before;
    cluster_disk_set_parent(state, disk, 0);
    TAILQ_FOREACH_REVERSE_SAFE(version, &disk->versions, cluster_version_list, disk_link,
                               before)
    cluster_version_remove(state, version);
    cluster_disk_remove(state, disk);
}

static void purge_head(struct cluster_state *state, struct cluster_disk *disk)
{
    cluster_disk_set_parent(state, disk, 0);
    disk->flags |= DISK_HEADLESS;
    disk->has_root = false;
    disk->root = (struct map_root){.address = ADDRESS_NULL};
    cluster_listed_clear(state, disk);
    disk->cut_count = 0;
}

int apply_disk_purged(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    struct cluster_disk *disk = apply->disk;
    bool headless = (disk->flags & DISK_HEADLESS) != 0;
    bool shared = (disk->flags & DISK_SHARED) != 0;
    apply->result->id = disk->id;
    if (headless && disk->version_count != 0)
        return apply_refuse(apply, -PLX_EPRECONDITION, "disk %s: %u versions are left",
                            disk->trash_name, disk->version_count);
    if (headless) {
        cluster_disk_remove(state, disk);
        return 0;
    }
    if (!cluster_disk_purgeable(state, disk))
        return apply_refuse(apply, -PLX_EPRECONDITION, "disk %s: a version collapses",
                            disk->trash_name);
    if (!shared) {
        purge_all(state, disk);
        return 0;
    }
    if (disk->list_count != 0)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: %u dead lists are not trimmed", disk->trash_name,
                            disk->list_count);
    purge_head(state, disk);
    return 0;
}
