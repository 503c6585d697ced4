/* SPDX-License-Identifier: Apache-2.0 */
/* Listings, from the cluster state and the store's table of extents, or what was counted
 * on all hosts. */
#include "cow/disk_internal.h"

static void describe_parent(const struct cluster_state *state,
                            const struct cluster_disk *disk, char *ret, size_t cap)
{
    const struct cluster_version *version =
        cluster_version_by_id(state, disk->head_parent);

    /* Its own snapshots are not where it comes from. */
    while (version && version->disk == disk->id)
        version = cluster_version_by_id(state, version->parent);
    if (!version)
        return;
    const struct cluster_disk *parent = cluster_disk_by_id(state, version->disk);
    snprintf(ret, cap, "%s%s%s", parent ? parent->name : "?", version->name[0] ? "@" : "",
             version->name);
}

static void describe(struct host *host, const struct cluster_disk *disk,
                     struct disk_info *ret)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct disk *open = disk_find(host, disk->id, 0);

    *ret = (struct disk_info){
        .id = disk->id,
        .size_bytes = disk->size_bytes,
        .snapshot_count = disk->snapshot_count,
        .clients = open ? open->clients : 0,
        .served = disk->owner != 0,
        .created_wall_ns = disk->created_wall_ns,
        .quota_bytes = disk->quota_bytes,
    };
    memcpy(ret->name, disk->name, sizeof ret->name);
    const struct cluster_pool *pool = cluster_pool_by_id(state, disk->pool);
    if (pool)
        memcpy(ret->pool, pool->name, sizeof ret->pool);
    ret->is_moving = (disk->flags & DISK_MOVING) != 0;
    ret->moved_percent = open ? rewrite_move_percent(open) : 0;
    ret->is_elsewhere = disk->owner && disk->owner != host->node;
    if (disk->owner)
        snprintf(ret->owner, sizeof ret->owner, "node %llu",
                 (unsigned long long)disk->owner);
    describe_parent(state, disk, ret->parent, sizeof ret->parent);
}

static int compare_ids(const void *a, const void *b)
{
    const struct disk_info *left = *(struct disk_info *const *)a;
    const struct disk_info *right = *(struct disk_info *const *)b;

    return left->id < right->id ? -1 : left->id > right->id;
}

/* Adds what the extents of each disk hold, in one pass over both. */
static int add_used(struct host *host, struct disk_info *infos, size_t count)
{
    cleanup(free_ptr) struct disk_info **by_id = malloc((count + 1) * sizeof *by_id);
    cleanup(free_ptr) struct extent_info *extents = NULL;
    size_t extent_count;

    if (!copies_are_alone(host->copies)) {
        for (size_t i = 0; i < count; i++)
            infos[i].used_bytes = used_bytes(host, infos[i].id);
        return 0;
    }
    if (!by_id)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++)
        by_id[i] = &infos[i];
    qsort(by_id, count, sizeof *by_id, compare_ids);
    int rc = store_list_extents(host->store, 0, &extents, &extent_count);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < extent_count; i++) {
        struct disk_info key = {.id = extents[i].disk}, *key_at = &key;
        struct disk_info **at =
            bsearch(&key_at, by_id, count, sizeof *by_id, compare_ids);
        if (at)
            (*at)->used_bytes += (uint64_t)extents[i].live * BLOCK_SIZE;
    }
    return 0;
}

int disk_list(struct host *host, struct disk_info **ret_infos, size_t *ret_count)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk = NULL;
    size_t count = 0;
    struct disk_info *infos =
        calloc(cluster_disk_count(state) + 1, sizeof *infos);

    if (!infos)
        return -ENOMEM;
    while ((disk = cluster_disk_next(state, disk)))
        if (cluster_disk_is_visible(disk))
            describe(host, disk, &infos[count++]);
    int rc = add_used(host, infos, count);
    if (rc < 0) {
        free(infos);
        return rc;
    }
    *ret_infos = infos;
    *ret_count = count;
    return 0;
}

int disk_show(struct host *host, const char *name, struct disk_info *ret_info,
              struct error *err)
{
    const struct cluster_disk *disk = host_find_disk(host, name, err);
    int rc;

    if (!disk)
        return -PLX_EMISSING;
    describe(host, disk, ret_info);
    rc = add_used(host, ret_info, 1);
    return rc < 0 ? err_set(err, rc, "disk %s: %s", name, err_text(rc)) : 0;
}

/* What grows from a snapshot in other disks. */
static uint32_t count_clones(const struct cluster_version *version)
{
    const struct cluster_version *child = NULL;
    const struct cluster_disk *head = NULL;
    uint32_t count = version->child_count;

    while ((child = cluster_child_next(version, child)))
        count -= child->disk == version->disk;
    while ((head = cluster_head_next(version, head)))
        count -= head->id == version->disk;
    return count;
}

/* Fills in infos of the disk's named snapshots; room for snapshot_count of them. */
static size_t describe_snapshots(const struct cluster_disk *disk,
                                 struct snapshot_info *infos)
{
    const struct cluster_version *version = NULL;
    size_t count = 0;

    while ((version = cluster_disk_version_next(disk, version))) {
        if (!version->name[0])
            continue;
        assert(count < disk->snapshot_count);
        struct snapshot_info *info = &infos[count++];
        info->id = version->id;
        info->size_bytes = version->size_bytes;
        info->created_wall_ns = version->created_wall_ns;
        info->clone_count = count_clones(version);
        info->pending = version->pending;
        memcpy(info->name, version->name, sizeof info->name);
    }
    return count;
}

int snapshot_list(struct host *host, const char *disk_name,
                  struct snapshot_info **ret_infos, size_t *ret_count, struct error *err)
{
    const struct cluster_disk *disk = host_find_disk(host, disk_name, err);
    struct snapshot_info *infos;

    if (!disk)
        return -PLX_EMISSING;
    infos = calloc((size_t)disk->snapshot_count + 1, sizeof *infos);
    if (!infos)
        return err_set(err, -ENOMEM, "out of memory");
    *ret_count = describe_snapshots(disk, infos);
    *ret_infos = infos;
    return 0;
}

/* --- trash --- */

static int compare_trashed(const void *a, const void *b)
{
    const struct trash_info *left = a, *right = b;

    if (left->trashed_wall_ns != right->trashed_wall_ns)
        return left->trashed_wall_ns < right->trashed_wall_ns ? -1 : 1;
    return left->id < right->id ? -1 : left->id > right->id;
}

static bool is_restorable(const struct cluster_disk *disk)
{
    return (disk->flags & (DISK_TRASHED | DISK_REMOVED)) == DISK_TRASHED;
}

static size_t describe_trash(struct host *host, struct trash_info *infos,
                             struct disk_info *used)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk = NULL;
    uint64_t keep_ns = cluster_trash_keep_s(state) * NS_PER_S;
    size_t count = 0;

    while ((disk = cluster_trash_next(state, disk))) {
        if (!is_restorable(disk))
            continue;
        used[count].id = disk->id;
        infos[count] = (struct trash_info){
            .id = disk->id,
            .size_bytes = disk->size_bytes,
            .snapshot_count = disk->snapshot_count,
            .trashed_wall_ns = disk->trashed_wall_ns,
            .expires_wall_ns = disk->trashed_wall_ns + keep_ns,
        };
        snprintf(infos[count].name, sizeof infos[count].name, "%s", disk->trash_name);
        count++;
    }
    return count;
}

int trash_list(struct host *host, struct trash_info **ret_infos, size_t *ret_count)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk = NULL;
    size_t room = 1, count;

    while ((disk = cluster_trash_next(state, disk)))
        room += is_restorable(disk);
    struct trash_info *infos = calloc(room, sizeof *infos);
    cleanup(free_ptr) struct disk_info *used = calloc(room, sizeof *used);
    if (!infos || !used) {
        free(infos);
        return -ENOMEM;
    }
    count = describe_trash(host, infos, used);
    int rc = add_used(host, used, count);
    if (rc < 0) {
        free(infos);
        return rc;
    }
    for (size_t i = 0; i < count; i++)
        infos[i].used_bytes = used[i].used_bytes;
    if (count > 0)
        qsort(infos, count, sizeof *infos, compare_trashed);
    *ret_infos = infos;
    *ret_count = count;
    return 0;
}

uint64_t host_trash_bytes(struct host *host)
{
    cleanup(free_ptr) struct trash_info *infos = NULL;
    uint64_t bytes = 0;
    size_t count;

    if (trash_list(host, &infos, &count) < 0)
        return 0;
    for (size_t i = 0; i < count; i++)
        bytes += infos[i].used_bytes;
    return bytes;
}
