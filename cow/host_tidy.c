/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an earlier process may have left half-way, put right before anything is served (on
 * a host that is one of many: in the background, by host_many.c):
 *
 *   - an import that was never published: its disk is discarded;
 *   - an extent of a disk the cluster does not know: deleted (ids are never used twice);
 *   - an extent that was stopped by the restart and that its disk's log does not list any
 *     more: its length was committed and everything in it that is needed lies below; it
 *     becomes final where it was stopped, if there is no other copy. With others, one
 *     that is whole tells the length, to whoever makes this copy whole again;
 *   - headers of an extent that its disk's log does not list any more: trimmed.
 *
 * And in the background, while the host serves: closed disks that still have dead lists,
 * or extents on their list that nothing needs.
 *
 * All of it can be interrupted and done again.
 */
#include "cow/disk_internal.h"

async int host_tidy_extent(struct host *host, const struct extent_info *info)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk = cluster_disk_by_id(state, info->disk);

    if (cluster_listed_extent(state, info->extent, NULL))
        return 0;
    /* It was stopped before it was created here. Recovery may be about to put a copy in
     * its place, or did so since it was listed. */
    if (info->disk == 0)
        return store_delete_mark(host->store, info->extent);
    if (!disk)
        return store_delete_extent(host->store, info->extent);
    if (info->state != EXTENT_FINAL && !copies_only_here(host->copies, info->extent))
        return 0;
    if (info->state != EXTENT_FINAL && info->length <= 1) /* nothing, or a roll record */
        return store_delete_extent(host->store, info->extent);
    if (info->state != EXTENT_FINAL) {
        int rc = store_finalize_extent(host->store, info->extent, info->length);
        return rc < 0 ? rc : store_trim_headers(host->store, info->extent);
    }
    return info->has_headers ? store_trim_headers(host->store, info->extent) : 0;
}

async int host_drop_extents(struct host *host, uint64_t disk)
{
    cleanup(free_ptr) struct extent_info *infos = NULL;
    size_t count;
    int rc = store_list_extents(host->store, disk, &infos, &count);

    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = store_delete_extent(host->store, infos[i].extent);
    return rc;
}

/* The first unpublished import that no client has in hand, or 0. */
static uint64_t next_import(const struct cluster_state *state)
{
    const struct cluster_disk *disk = NULL;

    while ((disk = cluster_disk_next(state, disk)))
        if (disk->flags & DISK_IMPORTING)
            return disk->id;
    return 0;
}

async int disk_discard(struct host *host, uint64_t id, struct error *err)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(host->cluster), id);
    struct cluster_command command = {.disk = id, .node = host->node};
    struct cluster_result result;
    int rc = 0;

    if (!disk)
        return err_set(err, -PLX_EMISSING, "no such import");
    if (disk->owner) {
        command.op = CLUSTER_LEASE_TAKE;
        command.epoch = disk->epoch;
        rc = cluster_submit(host->cluster, &command, &result);
        command.op = CLUSTER_LEASE_CLOSE;
        command.epoch = result.epoch;
        if (rc == 0)
            rc = cluster_submit(host->cluster, &command, &result);
    }
    command.op = CLUSTER_DISK_DISCARD;
    if (rc == 0)
        rc = cluster_submit(host->cluster, &command, &result);
    if (rc < 0)
        return err_set(err, rc, "import: %s", result.text);
    return host_drop_extents(host, id);
}

async int host_tidy(struct host *host, struct error *err)
{
    cleanup(free_ptr) struct extent_info *infos = NULL;
    size_t count;
    uint64_t import;
    int rc;

    if (!copies_are_alone(host->copies))
        return 0;
    while ((import = next_import(cluster_state(host->cluster)))) {
        rc = disk_discard(host, import, err);
        if (rc < 0)
            return rc;
    }
    rc = store_list_extents(host->store, 0, &infos, &count);
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = host_tidy_extent(host, &infos[i]);
    return rc < 0 ? err_set(err, rc, "store: %s", err_text(rc)) : 0;
}

/* --- in the background --- */

static bool is_untidy(const struct cluster_disk *disk)
{
    if (disk->owner || (disk->flags & DISK_IMPORTING))
        return false;
    if (disk->list_count > 0 && !disk->collapsing_version)
        return true;
    for (uint32_t i = 0; i < disk->extent_count; i++)
        if (disk->extents[i].final &&
            disk->extents[i].last_number <= disk->checkpoint.covers)
            return true;
    return false;
}

/* The one with the next id after this, or 0. */
static uint64_t next_untidy(const struct cluster_state *state, uint64_t id)
{
    const struct cluster_disk *disk = NULL;
    uint64_t next = 0;

    while ((disk = cluster_disk_next(state, disk)))
        if (disk->id > id && (!next || disk->id < next) && is_untidy(disk))
            next = disk->id;
    return next;
}

static async void tidy_main(struct task_call *call)
{
    struct host *host = container_of(call, struct host, tidy_task);
    uint64_t id = 0;

    while (!host->closing && host_leads(host) &&
           (id = next_untidy(cluster_state(host->cluster), id)))
        disk_tidy_closed(host, id);
    host->tidy_running = false;
    waitlist_wake_all(&host->disks_changed);
}

void host_tidy_soon(struct host *host)
{
    if (host->tidy_running || host->closing || !host_leads(host) ||
        !next_untidy(cluster_state(host->cluster), 0))
        return;
    host->tidy_running = true;
    host->tidy_task = (struct task_call){
        .main = tidy_main, .name = "tidy", .system = true,
    };
    task_start(host->loop, &host->tidy_task);
}
