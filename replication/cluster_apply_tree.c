/* SPDX-License-Identifier: Apache-2.0 */
/* The version tree: snapshots put a version between a head and its parent, clones and
 * rollback grow a new head from a version. Reasons: doc/cluster.md, "Versions". */
#include <stdio.h>

#include "replication/cluster_internal.h"

static int check_snapshot_name(struct apply *apply)
{
    const char *name = apply->command->name;
    const struct cluster_disk *disk = apply->disk;
    if (name[0] == '\0')
        return 0;
    if (!cluster_name_valid(name))
        return apply_refuse(apply, -PLX_ENAME, "snapshot %s: not a valid name", name);
    if (cluster_version_by_name(apply->state, disk->id, name) != NULL)
        return apply_refuse(apply, -PLX_EEXISTS, "snapshot %s of disk %s: exists already",
                            name, disk->name);
    return 0;
}

static int check_marker(struct apply *apply)
{
    const struct cluster_disk *disk = apply->disk;
    uint64_t marker = apply->command->marker;
    if (marker <= disk->checkpoint.covers && !planted(PLANT_SNAPSHOT_LATE))
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: a checkpoint passed marker %llu", disk->name,
                            (unsigned long long)marker);
    if (marker <= disk->abandoned_marker)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: marker %llu was abandoned", disk->name,
                            (unsigned long long)marker);
    if (marker <= disk->newest_marker)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: a snapshot above marker %llu exists", disk->name,
                            (unsigned long long)marker);
    return 0;
}

static int check_generation(struct apply *apply)
{
    const struct cluster_disk *disk = apply->disk;
    uint32_t generation = apply->command->generation;
    if (generation < disk->head_generation)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: generation %u is over, it is %u", disk->name,
                            generation, disk->head_generation);
    if (generation >= GENERATION_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "disk %s: generations are used up",
                            disk->name);
    return 0;
}

static int check_snapshot_limits(struct apply *apply)
{
    const struct cluster_disk *disk = apply->disk;
    if (apply->state->version_count >= CLUSTER_VERSIONS_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "disk %s: there are %u versions already",
                            disk->name, CLUSTER_VERSIONS_MAX);
    if (disk->pending_count >= PENDING_VERSIONS_MAX)
        return apply_refuse(apply, -PLX_ELIMIT,
                            "disk %s: %u snapshots wait for a checkpoint", disk->name,
                            disk->pending_count);
    return 0;
}

int apply_snapshot(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    const struct cluster_command *command = apply->command;
    struct cluster_disk *disk = apply->disk;
    uint32_t left, open;
    int rc = check_snapshot_name(apply);
    if (rc == 0)
        rc = check_marker(apply);
    if (rc == 0)
        rc = check_generation(apply);
    if (rc == 0)
        rc = check_snapshot_limits(apply);
    if (rc == 0)
        rc = finals_check(apply, disk->checkpoint.covers, &left, &open);
    if (rc != 0)
        return rc;
    struct cluster_version *version = cluster_version_create(command->name);
    version->id = state->next_version++;
    version->disk = disk->id;
    version->parent = disk->head_parent;
    version->generation = apply->command->generation;
    version->size_bytes = disk->size_bytes;
    version->created_wall_ns = command->wall_ns;
    version->pending = true;
    version->marker = command->marker;
    version->marker_epoch = disk->epoch;
    cluster_version_add(state, version);
    cluster_disk_set_parent(state, disk, version->id);
    disk->head_generation = version->generation + 1;
    disk->newest_marker = command->marker;
    disk->flushed = max_u64(disk->flushed, command->marker);
    finals_apply(apply);
    apply->result->id = version->id;
    return 0;
}

int apply_snapshot_abandon(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    uint64_t marker = apply->command->marker;
    bool committed = marker != 0 && marker == disk->newest_marker;
    const struct cluster_version *pending;
    TAILQ_FOREACH (pending, &disk->pending, pending_link)
        committed = committed || pending->marker == marker;
    if (committed)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: the snapshot at %llu is committed", disk->name,
                            (unsigned long long)marker);
    disk->abandoned_marker = max_u64(disk->abandoned_marker, marker);
    apply->result->id = disk->id;
    return 0;
}

/* The name of the nth clone (from 0): `name`, or name-1, name-2 ... if there are more.
 * False: too long. */
static bool clone_name(const struct cluster_command *command, uint32_t n,
                       char ret[DISK_NAME_MAX + 1])
{
    int len = command->count == 1
                  ? snprintf(ret, DISK_NAME_MAX + 1, "%s", command->name)
                  : snprintf(ret, DISK_NAME_MAX + 1, "%s-%u", command->name, n + 1);
    return len > 0 && len <= (int)DISK_NAME_MAX;
}

/* May anything grow from this version? */
static int check_clone_source(struct apply *apply, const struct cluster_version *version)
{
    unsigned long long id = apply->command->version;
    const struct cluster_disk *disk = NULL;
    if (version != NULL)
        disk = cluster_disk_by_id(apply->state, version->disk);
    if (disk == NULL || !cluster_disk_is_visible(disk))
        return apply_refuse(apply, -PLX_EMISSING, "clone: there is no version %llu", id);
    if (version->collapsing)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "clone: version %llu of disk %s is being removed", id,
                            disk->name);
    return 0;
}

static int check_clones(struct apply *apply, const struct cluster_version *version)
{
    const struct cluster_command *command = apply->command;
    char name[DISK_NAME_MAX + 1];
    int rc = check_clone_source(apply, version);
    if (rc != 0)
        return rc;
    if (command->count == 0)
        return apply_refuse(apply, -EINVAL, "clone %s: no clones asked for",
                            command->name);
    if (command->count > CLONES_PER_COMMAND)
        return apply_refuse(apply, -PLX_ELIMIT, "clone %s: more than %u at once",
                            command->name, CLONES_PER_COMMAND);
    if (apply->state->disk_count > CLUSTER_DISKS_MAX - command->count)
        return apply_refuse(apply, -PLX_ELIMIT,
                            "clone %s: there would be more than %u disks", command->name,
                            CLUSTER_DISKS_MAX);
    for (uint32_t i = 0; i < command->count; i++) {
        if (!clone_name(command, i, name))
            return apply_refuse(apply, -PLX_ENAME, "disk %s-%u: not a valid name",
                                command->name, i + 1);
        rc = apply_check_new_disk(apply, name);
        if (rc != 0)
            return rc;
    }
    return 0;
}

int apply_clone(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    const struct cluster_command *command = apply->command;
    const struct cluster_version *version = cluster_version_find(state, command->version);
    int rc = check_clones(apply, version);
    if (rc != 0)
        return rc;
    struct cluster_disk *source = cluster_disk_find(state, version->disk);
    const struct cluster_pool *pool = apply_pool(apply, source->pool);
    if (pool == NULL)
        return -PLX_EMISSING;
    apply->result->id = state->next_disk;
    source->flags |= DISK_SHARED;
    for (uint32_t i = 0; i < command->count; i++) {
        char name[DISK_NAME_MAX + 1];
        bool fits = clone_name(command, i, name);
        assert(fits);
        struct cluster_disk *disk = cluster_disk_create(name);
        disk->id = state->next_disk++;
        disk->pool = pool->id;
        disk->size_bytes = version->size_bytes;
        disk->created_wall_ns = command->wall_ns;
        disk->head_generation = version->generation + 1;
        fits = cluster_disk_insert(state, disk);
        assert(fits);
        cluster_disk_set_parent(state, disk, version->id);
    }
    return 0;
}

static int check_rollback(struct apply *apply, const struct cluster_version *version)
{
    const struct cluster_disk *disk = apply->disk;
    if (version == NULL || version->disk != disk->id)
        return apply_refuse(apply, -PLX_EMISSING, "disk %s: has no version %llu",
                            disk->name, (unsigned long long)apply->command->version);
    if (disk->collapsing_version != 0)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: a removed snapshot is being merged into it",
                            disk->name);
    if (version->collapsing)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: version %llu is being removed", disk->name,
                            (unsigned long long)version->id);
    if (!disk->has_root)
        return apply_check_settled(apply);
    if (apply->state->version_count >= CLUSTER_VERSIONS_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "disk %s: there are %u versions already",
                            disk->name, CLUSTER_VERSIONS_MAX);
    if (disk->head_generation >= GENERATION_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "disk %s: generations are used up",
                            disk->name);
    return apply_check_settled(apply);
}

/* What the old head alone has is found, and freed, like that of any version that lost its
 * name. It has no marker: a rollback is no point of the log. */
static void keep_old_head(struct cluster_state *state, const struct cluster_disk *disk)
{
    struct cluster_version *version = cluster_version_create("");
    version->id = state->next_version++;
    version->disk = disk->id;
    version->parent = disk->head_parent;
    version->generation = disk->head_generation;
    version->size_bytes = disk->size_bytes;
    version->root = disk->root;
    cluster_version_add(state, version);
}

int apply_rollback(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    const struct cluster_version *version = cluster_version_find(apply->state,
                                                                 apply->command->version);
    int rc = check_rollback(apply, version);
    if (rc != 0)
        return rc;
    uint64_t known = disk_known_number(disk);
    if (disk->has_root)
        keep_old_head(apply->state, disk);
    cluster_listed_clear(apply->state, disk);
    disk->cut_count = 0;
    /* The root stands for every number the disk ever used. Were covers left lower, the
     * next take-over would find a gap above it and take the new log for its end. */
    disk->checkpoint.number++;
    disk->checkpoint.covers = disk->checkpoint.last = disk->flushed = known;
    disk->has_root = true;
    disk->root = version->root;
    disk->size_bytes = version->size_bytes;
    disk->head_generation = version->generation + 1;
    cluster_disk_set_parent(apply->state, disk, version->id);
    apply->result->id = disk->id;
    return 0;
}
