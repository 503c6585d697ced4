/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Taking names away: snapshots, and disks, which go to the trash first. What only they
 * held is freed by reclaim, later.
 *
 * A disk in the trash is closed and its map tells all of it, so it costs nothing but its
 * space. Nothing of this needs space itself: it works in a full store.
 */
#include "cow/reclaim.h"

static int find_versions(struct host *host, const char *disk_name,
                         const char *const *snapshots, uint32_t count,
                         uint64_t *versions, struct error *err)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct cluster_version *version =
            host_find_version(host, disk_name, snapshots[i], err);
        if (!version)
            return -PLX_EMISSING;
        versions[i] = version->id;
    }
    return 0;
}

async int snapshot_remove(struct host *host, const char *disk_name,
                          const char *const *snapshots, uint32_t count,
                          struct error *err)
{
    const struct cluster_disk *disk = host_find_disk(host, disk_name, err);
    struct cluster_command command = {.op = CLUSTER_SNAPSHOT_RM};
    struct cluster_result result;
    int rc;

    if (!disk)
        return -PLX_EMISSING;
    command.disk = disk->id;
    cleanup(free_ptr) uint64_t *versions = malloc(((size_t)count + 1) * sizeof *versions);
    if (!versions)
        return err_set(err, -ENOMEM, "out of memory");
    rc = find_versions(host, disk_name, snapshots, count, versions, err);
    for (uint32_t done = 0; rc == 0 && done < count; done += command.version_count) {
        command.versions = versions + done;
        command.version_count = min_u32(count - done, SNAPSHOTS_PER_COMMAND);
        rc = host_submit(host, &command, &result, err);
    }
    reclaim_wake(host);
    return rc;
}

/* The first of the disk's snapshots that is open. */
static struct disk *open_snapshot(struct host *host, uint64_t id)
{
    struct disk key = {.id = id, .version = 1};
    struct disk *disk = RB_NFIND(disk_tree, &host->disks, &key);

    return disk && disk->id == id ? disk : NULL;
}

/* Closes them; none may have a client. */
static async int shut_snapshots(struct host *host, uint64_t id, struct error *err)
{
    struct disk *disk;

    while ((disk = open_snapshot(host, id))) {
        for (struct disk *at = disk; at && at->id == id;
             at = RB_NEXT(disk_tree, &host->disks, at))
            if (at->clients > 0)
                return err_set(err, -PLX_EBUSY,
                               "%s: in use by %u client%s: disconnect first", at->name,
                               at->clients, at->clients == 1 ? "" : "s");
        if (disk->state == DISK_OPEN && disk->users == 0 && !disk->closing_soon) {
            timer_stop(host->loop, &disk->idle_timer);
            disk_close_soon(disk);
        }
        waitlist_wait(&host->disks_changed);
    }
    return 0;
}

static int refuse_snapshots(const struct cluster_disk *disk, unsigned flags,
                            struct error *err)
{
    if (disk->snapshot_count == 0 || (flags & DISK_REMOVE_RECURSIVE))
        return 0;
    return err_set(err, -ENOTEMPTY,
                   "disk %s: has %u snapshot%s: remove them first, or use --recursive",
                   disk->name, disk->snapshot_count,
                   disk->snapshot_count == 1 ? "" : "s");
}

static async int trash_closed(struct host *host, uint64_t id, unsigned flags,
                              struct error *err)
{
    const struct cluster_disk *disk;
    struct cluster_command command = {
        .op = CLUSTER_DISK_TRASH, .disk = id, .wall_ns = loop_wall_ns(host->loop),
    };
    struct cluster_result result;
    int rc = shut_snapshots(host, id, err);

    if (rc == 0)
        rc = host_settle_closed(host, id, err);
    if (rc < 0)
        return rc;
    disk = cluster_disk_by_id(cluster_state(host->cluster), id);
    if (!disk || !cluster_disk_is_visible(disk))
        return err_set(err, -PLX_EMISSING, "it was removed meanwhile");
    rc = refuse_snapshots(disk, flags, err); /* made meanwhile */
    command.epoch = disk->epoch;
    return rc < 0 ? rc : host_submit(host, &command, &result, err);
}

static async int trash(struct host *host, uint64_t id, unsigned flags, struct error *err)
{
    struct pin pin;

    pin_take(&host->pins, &pin, PIN_CLOSED, id);
    int rc = trash_closed(host, id, flags, err);
    pin_release(&host->pins, &pin);
    return rc;
}

async int disk_remove(struct host *host, const char *name, unsigned flags,
                      struct error *err)
{
    const struct cluster_disk *disk = host_find_disk(host, name, err);
    int rc;

    if (!disk)
        return -PLX_EMISSING;
    uint64_t id = disk->id;
    rc = refuse_snapshots(disk, flags, err);
    if (rc == 0)
        rc = trash(host, id, flags, err);
    if (rc < 0)
        return rc;
    if (trash_keep(host) > 0) {
        reclaim_wake(host); /* which notes when its time is over */
        return 0;
    }
    struct cluster_command command = {.op = CLUSTER_DISK_REMOVE, .disk = id};
    struct cluster_result result;
    rc = cluster_submit(host->cluster, &command, &result);
    reclaim_wake(host);
    disk = cluster_disk_by_id(cluster_state(host->cluster), id);
    /* The reclaimer may have done it first. */
    return rc < 0 && disk && !(disk->flags & DISK_REMOVED)
               ? err_set(err, rc, "%s", result.text)
               : 0;
}

/* --- trash --- */

/* The newest disk that had this name (NULL: any) and can be restored. */
static const struct cluster_disk *find_trash(struct host *host, const char *name)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk = NULL, *newest = NULL;

    while ((disk = cluster_trash_next(state, disk))) {
        if ((disk->flags & DISK_REMOVED) || (name && strcmp(disk->trash_name, name) != 0))
            continue;
        if (!newest || disk->trashed_wall_ns > newest->trashed_wall_ns ||
            (disk->trashed_wall_ns == newest->trashed_wall_ns && disk->id > newest->id))
            newest = disk;
    }
    return newest;
}

async int trash_restore(struct host *host, const char *name, const char *new_name,
                        struct error *err)
{
    const struct cluster_disk *disk = find_trash(host, name);
    struct cluster_command command = {
        .op = CLUSTER_DISK_RESTORE, .name = new_name ? new_name : name,
    };
    struct cluster_result result;
    int rc = host_check_name("disk", command.name, err);

    if (rc < 0)
        return rc;
    if (!disk)
        return err_set(err, -PLX_EMISSING, "disk %s: is not in the trash", name);
    command.disk = disk->id;
    return host_submit(host, &command, &result, err);
}

async int trash_empty(struct host *host, const char *name, struct error *err)
{
    const struct cluster_disk *disk = find_trash(host, name);
    struct cluster_result result;
    int rc = 0;

    if (!disk && name)
        return err_set(err, -PLX_EMISSING, "disk %s: is not in the trash", name);
    while (rc == 0 && disk) {
        struct cluster_command command = {.op = CLUSTER_DISK_REMOVE, .disk = disk->id};
        rc = host_submit(host, &command, &result, err);
        if (rc == -PLX_EMISSING) /* its time was over meanwhile, or it was restored */
            rc = 0;
        disk = find_trash(host, name);
    }
    reclaim_wake(host);
    return rc;
}

async int trash_set_keep(struct host *host, uint64_t seconds, struct error *err)
{
    struct cluster_command command = {
        .op = CLUSTER_SETTINGS, .trash_keep_s = seconds,
    };
    struct cluster_result result;
    int rc = host_submit(host, &command, &result, err);

    reclaim_wake(host);
    return rc;
}

uint64_t trash_keep(struct host *host)
{
    return cluster_trash_keep_s(cluster_state(host->cluster));
}
