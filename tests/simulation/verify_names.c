/* SPDX-License-Identifier: Apache-2.0 */
/*
 * After a start: is everything there that must be, under its name or in the trash, and
 * nothing else? What was MAYBE becomes known here.
 */
#include "tests/simulation/workload.h"

/* --- disks --- */

static struct model_disk *disk_named(struct run *run, const char *name)
{
    struct model_disk *disk;
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (strcmp(disk->name, name) == 0 ||
            (disk->maybe_name[0] && strcmp(disk->maybe_name, name) == 0))
            return disk;
    }
    return NULL;
}

static unsigned places_of(const struct run *run, const struct model_disk *disk)
{
    return model_disk_places(&run->model, disk);
}

static void check_disk_info(struct run *run, const struct disk_info *info)
{
    struct model_disk *disk = disk_named(run, info->name);
    if (disk == NULL || disk->found)
        run_fail(run, "there is a disk %s that nobody made", info->name);
    if (!(places_of(run, disk) & AT_HOME))
        run_fail(run, "disk %s is there, and was removed", info->name);
    disk->found = true;
    if (disk->id != 0 && disk->id != info->id)
        run_fail(run, "disk %s has another identity than before", info->name);
    if (info->size_bytes != disk->size_bytes &&
        (disk->maybe_size_bytes == 0 || info->size_bytes != disk->maybe_size_bytes))
        run_fail(run, "disk %s has %llu bytes, not %llu", info->name,
                 (unsigned long long)info->size_bytes,
                 (unsigned long long)disk->size_bytes);
    if (disk->maybe_line != NULL && disk->maybe_size_bytes != 0 &&
        disk->maybe_size_bytes != disk->size_bytes)
        model_rollback_settle(disk, info->size_bytes == disk->maybe_size_bytes);
    disk->id = info->id;
    disk->existence = EXISTS;
    disk->size_bytes = info->size_bytes;
    disk->maybe_size_bytes = 0;
    if (strcmp(disk->name, info->name) != 0)
        memcpy(disk->name, disk->maybe_name, sizeof disk->name);
    disk->maybe_name[0] = '\0';
    if (disk->maybe_line == NULL)
        disk->exclusive = false;
}

/* Clones of one command exist all or none. */
static void check_group(struct run *run, const struct model_disk *missing)
{
    const struct model_disk *disk;
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (missing->group != 0 && disk->group == missing->group && disk->found)
            run_fail(run, "clone %s exists, but not %s of the same command", disk->name,
                     missing->name);
    }
}

static void drop_missing_disks(struct run *run)
{
    struct model_disk *disk, *next;
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (!disk->found && !(places_of(run, disk) & AT_NONE))
            run_fail(run, "disk %s is gone%s", disk->name,
                     disk->existence == TRASHED ? " from the trash" : "");
        if (!disk->found)
            check_group(run, disk);
    }
    TAILQ_FOREACH_SAFE (disk, &run->model.disks, link, next) {
        disk->group = 0;
        if (!disk->found)
            model_disk_purge(&run->model, disk);
    }
}

/* --- the trash --- */

static void check_trash_info(struct run *run, const struct trash_info *info)
{
    struct model_disk *disk = model_disk_by_id(&run->model, info->id);
    const struct model_snap *snap;
    uint32_t least = 0, most = 0;
    if (disk == NULL || disk->found || !(places_of(run, disk) & AT_TRASH))
        run_fail(run, "the trash has a disk %s that nobody removed", info->name);
    TAILQ_FOREACH (snap, &run->model.snaps, link) {
        if (snap->disk != disk || snap->name[0] == '\0')
            continue;
        most++;
        least += snap->existence == EXISTS;
    }
    if (strcmp(info->name, disk->name) != 0 || info->size_bytes != disk->size_bytes ||
        info->snapshot_count < least || info->snapshot_count > most)
        run_fail(
            run,
            "the trash has %s with %llu bytes and %u snapshots, not %s with %llu and "
            "%u to %u",
            info->name, (unsigned long long)info->size_bytes, info->snapshot_count,
            disk->name, (unsigned long long)disk->size_bytes, least, most);
    disk->found = true;
    disk->existence = TRASHED;
    disk->maybe_name[0] = '\0';
}

static void list_trash(struct run *run)
{
    struct trash_info *infos;
    size_t count;
    int rc = trash_list(run->host, &infos, &count);
    if (rc < 0)
        run_fail(run, "trash_list: %s", err_text(rc));
    for (size_t i = 0; i < count; i++)
        check_trash_info(run, &infos[i]);
    free(infos);
}

static void check_keep(struct run *run)
{
    struct model *model = &run->model;
    uint64_t keep_s = trash_keep(run->host);
    if (keep_s != model->keep_s && keep_s != model->maybe_keep_s)
        run_fail(run, "the trash is kept for %llu s, not %llu",
                 (unsigned long long)keep_s, (unsigned long long)model->keep_s);
    model->keep_s = model->maybe_keep_s = keep_s;
    model->keep_ns = model_keep_ns(keep_s);
}

void verify_trash(struct run *run)
{
    struct model_disk *disk, *next;
    TAILQ_FOREACH (disk, &run->model.disks, link)
        disk->found = false;
    list_trash(run);
    TAILQ_FOREACH_SAFE (disk, &run->model.disks, link, next) {
        if (disk->found || disk->existence != TRASHED)
            continue;
        if (!(places_of(run, disk) & AT_NONE))
            run_fail(run, "disk %s is gone from the trash", disk->name);
        model_disk_purge(&run->model, disk);
    }
}

/* --- snapshots --- */

static struct model_snap *snap_named(struct run *run, const struct model_disk *disk,
                                     const char *name)
{
    struct model_snap *snap;
    TAILQ_FOREACH (snap, &run->model.snaps, link) {
        if (snap->disk == disk && strcmp(snap->name, name) == 0)
            return snap;
    }
    return NULL;
}

static void check_snapshot_info(struct run *run, struct model_disk *disk,
                                const struct snapshot_info *info)
{
    struct model_snap *snap = snap_named(run, disk, info->name);
    if (snap == NULL || snap->found)
        run_fail(run, "there is a snapshot %s@%s that nobody made", disk->name,
                 info->name);
    snap->found = true;
    if (snap->number == 0)
        run_fail(run, "snapshot %s@%s exists, but its marker is in no batch", disk->name,
                 info->name);
    if (info->size_bytes != snap->size_bytes)
        run_fail(run, "snapshot %s@%s has %llu bytes, not %llu", disk->name, info->name,
                 (unsigned long long)info->size_bytes,
                 (unsigned long long)snap->size_bytes);
    /* It is committed only when all before it is durable. */
    if (snap->line == disk->line && disk->line->crashed) {
        disk->line->acked = max_u64(disk->line->acked, snap->number);
        disk->line->flushed = max_u64(disk->line->flushed, snap->number);
    }
    snap->existence = EXISTS;
    snap->is_committed = true;
}

static void check_snapshots(struct run *run, struct model_disk *disk)
{
    struct error err = {0};
    struct snapshot_info *infos;
    size_t count;
    int rc = snapshot_list(run->host, disk->name, &infos, &count, &err);
    if (rc < 0)
        run_fail(run, "snapshots of %s: %s", disk->name, err.text);
    for (size_t i = 0; i < count; i++) {
        if (infos[i].name[0] != '\0')
            check_snapshot_info(run, disk, &infos[i]);
    }
    free(infos);
}

/* Unnamed ones are seen through their clones only, those of a trashed disk not at all. */
static void drop_missing_snaps(struct run *run)
{
    struct model_snap *snap, *next;
    TAILQ_FOREACH_SAFE (snap, &run->model.snaps, link, next) {
        if (snap->found || snap->disk->existence == TRASHED ||
            (snap->name[0] == '\0' && snap->existence == EXISTS))
            continue;
        if (snap->existence == EXISTS)
            run_fail(run, "snapshot %s@%s is gone", snap->disk->name, snap->name);
        if (snap->is_committed)
            model_snap_unname(snap);
        else
            model_snap_remove(&run->model, snap);
    }
}

void verify_names(struct run *run)
{
    struct model_disk *disk;
    struct model_snap *snap;
    struct disk_info *infos;
    size_t count;
    int rc = disk_list(run->host, &infos, &count);
    if (rc < 0)
        run_fail(run, "disk_list: %s", err_text(rc));
    TAILQ_FOREACH (disk, &run->model.disks, link)
        disk->found = false;
    TAILQ_FOREACH (snap, &run->model.snaps, link)
        snap->found = false;
    for (size_t i = 0; i < count; i++)
        check_disk_info(run, &infos[i]);
    free(infos);
    list_trash(run);
    check_keep(run);
    drop_missing_disks(run);
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        struct model_snap *base = disk->line->base;
        if (base != NULL && base->name[0] == '\0' && base->existence == MAYBE) {
            if (base->number == 0)
                run_fail(run,
                         "clone %s exists, but the marker of its parent is in no "
                         "batch",
                         disk->name);
            base->existence = EXISTS;
            base->is_committed = true;
        }
        if (disk->existence != TRASHED)
            check_snapshots(run, disk);
    }
    drop_missing_snaps(run);
}
