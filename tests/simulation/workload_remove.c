/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What makes things go away, and brings them back: snapshots, one or many at once; disks,
 * to the trash and out of it; how long the trash keeps them; and the scrub.
 *
 * Removals race with whatever uses their disk or snapshot: that may find it gone, or the
 * removal may find it in use. What was answered counts: nobody is attached to a disk that
 * was removed, and who reads a snapshot keeps it.
 */
#include <stdio.h>

#include "tests/simulation/workload.h"

/* --- snapshots --- */

static bool is_listed(struct run *run, const char *disk, const char *snapshot)
{
    struct snapshot_info *infos;
    struct error err = {0};
    size_t count;
    bool found = false;
    if (snapshot_list(run->host, disk, &infos, &count, &err) < 0)
        return false; /* the disk was removed meanwhile */
    for (size_t i = 0; i < count; i++)
        found = found || strcmp(infos[i].name, snapshot) == 0;
    free(infos);
    return found;
}

/* Gone, or (in doubt) perhaps. */
static void snaps_done(struct op *op, int result, bool was_refused)
{
    op->run->model.removals++;
    for (uint32_t i = 0; i < op->count; i++) {
        struct model_snap *snap = op->snaps[i];
        snap->is_removing = false;
        snap->removed_at = op->run->model.removals; /* for what began meanwhile */
        if (result < 0 && !was_refused) {
            snap->existence = MAYBE;
            continue;
        }
        bool is_there = is_listed(op->run, op->md->name, snap->name);
        if (is_there != (result < 0) && op->md->existence == EXISTS &&
            !op_is_raced(op))
            run_fail(op->run, "snapshot %s@%s %s after its removal was %s", op->md->name,
                     snap->name, is_there ? "is there" : "is gone",
                     result < 0 ? "refused" : "done");
        if (result == 0)
            model_snap_unname(snap);
    }
}

static async void remove_snaps_main(struct op *op)
{
    struct run *run = op->run;
    struct error err = {0};
    const char *names[SNAPS_AT_ONCE + 1];
    uint32_t count = 0;
    for (; count < op->count; count++)
        names[count] = op->snaps[count]->name;
    if (op->names[0][0]) /* there is none of this name, so all is refused */
        names[count++] = op->names[0];
    int rc = snapshot_remove(run->host, op->md->name, names, count, &err);
    if (rc == 0 && op->names[0][0])
        run_fail(run, "snapshot %s@%s was never there, and is removed", op->md->name,
                 op->names[0]);
    bool refused = rc == -PLX_EMISSING && (op->names[0][0] || op_is_raced(op));
    if (!refused)
        op_check_result(op, rc, err.text);
    snaps_done(op, rc, refused);
    op->md->removing_snaps--;
    op->md->shared--;
    op_end(op, rc);
}

void admin_remove_snaps_begin(struct run *run)
{
    struct model_disk *disk = pick_disk(run, false);
    struct model_snap *snap, *first = pick_snap(run, disk);
    if (disk == NULL || first == NULL)
        return;
    uint32_t odds = run_chance(run, 50) ? 0 : (uint32_t)run_between(run, 10, 100);
    struct op *op = op_begin(run, "snapshot removal");
    op->md = disk;
    disk_use(disk);
    disk->removing_snaps++;
    op->removals = ++run->model.removals;
    TAILQ_FOREACH (snap, &run->model.snaps, link) {
        if (snap->disk != disk || snap->existence != EXISTS || snap->name[0] == '\0' ||
            snap->is_removing || op->count == SNAPS_AT_ONCE ||
            (snap != first && !run_chance(run, odds)))
            continue;
        snap->is_removing = true;
        snap->removed_at = run->model.removals;
        op->snaps[op->count++] = snap;
    }
    if (run_chance(run, 4))
        snprintf(op->names[0], MODEL_NAME_MAX, "never");
    op_start_task(op, remove_snaps_main);
}

/* --- disks, to the trash --- */

static bool is_in_trash(struct run *run, uint64_t id)
{
    struct trash_info *infos;
    size_t count;
    bool found = false;
    int rc = trash_list(run->host, &infos, &count);
    if (rc < 0)
        run_fail(run, "trash_list: %s", err_text(rc));
    for (size_t i = 0; i < count; i++)
        found = found || infos[i].id == id;
    free(infos);
    return found;
}

/* Surely, or perhaps. */
static bool has_snaps(const struct run *run, const struct model_disk *disk, bool surely)
{
    const struct model_snap *snap;
    TAILQ_FOREACH (snap, &run->model.snaps, link) {
        if (snap->disk == disk && snap->name[0] != '\0' &&
            (snap->existence == EXISTS || !surely))
            return true;
    }
    return false;
}

static bool is_used(const struct model_disk *disk)
{
    return disk->clients > 0 || disk->snap_clients > 0 || disk->shared > 1;
}

static bool refuses_removal(const struct op *op, int result)
{
    const struct model_disk *disk = op->md;
    if (result == -PLX_EBUSY)
        return op->may_be_refused || is_used(disk) || disk->uses != op->uses;
    return result == -ENOTEMPTY && op->size_bytes == 0 && /* not recursive */
           (op->has_snaps || has_snaps(op->run, disk, false) || disk->uses != op->uses);
}

static void disk_is_trashed(struct op *op)
{
    struct run *run = op->run;
    struct model_disk *disk = op->md;
    if (disk->clients + disk->snap_clients > 0)
        run_fail(run, "disk %s is removed, and %u clients use it", disk->name,
                 disk->clients + disk->snap_clients);
    if (op->size_bytes == 0 && has_snaps(run, disk, true))
        run_fail(run, "disk %s is removed with its snapshots; nobody asked", disk->name);
    disk->existence = TRASHED;
    disk->line->flushed = disk->line->acked;
    if (!is_in_trash(run, disk->id) &&
        !(model_disk_places(&run->model, disk) & AT_NONE))
        run_fail(run, "disk %s is removed, and not in the trash", disk->name);
}

static async void remove_main(struct op *op)
{
    struct run *run = op->run;
    struct model_disk *disk = op->md;
    struct error err = {0};
    int rc = disk_remove(run->host, disk->name,
                         op->size_bytes > 0 ? DISK_REMOVE_RECURSIVE : 0, &err);
    disk->shared--;
    disk->is_removing = false;
    disk->removed_at = ++run->model.removals; /* for what began meanwhile */
    if (rc == 0) {
        disk_is_trashed(op);
    } else if (!refuses_removal(op, rc)) {
        op_check_result(op, rc, err.text);
        disk->existence = MAYBE;
        disk->places = AT_HOME | AT_TRASH;
    }
    op_end(op, rc);
}

void admin_remove_begin(struct run *run)
{
    struct model_disk *disk = pick_disk(run, false);
    if (disk == NULL || disk->is_removing || disk->removing_snaps > 0)
        return;
    /* Mostly ones that nobody uses. */
    if (is_used(disk) && !run_chance(run, 10))
        return;
    struct op *op = op_begin(run, "removal");
    op->md = disk;
    op->has_snaps = has_snaps(run, disk, true);
    op->size_bytes = run_chance(run, op->has_snaps ? 70 : 20); /* recursive */
    disk_use(disk);
    op->uses = disk->uses;
    op->may_be_refused = is_used(disk);
    disk->is_removing = true;
    disk->removed_at = op->removals = ++run->model.removals;
    disk->trashed_at_ns = sim_world_now_ns(run->world);
    /* One that empties all of the trash may also find what comes meanwhile. */
    disk->keep_ns = run->load.is_trash_emptied ? 0 : run->model.keep_ns;
    op_start_task(op, remove_main);
}

/* --- out of the trash --- */

static struct model_disk *pick_trashed(struct run *run)
{
    struct model_disk *disk, *chosen = NULL;
    uint64_t seen = 0;
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (disk->existence == TRASHED && run_random(run, ++seen) == 0)
            chosen = disk;
    }
    return chosen;
}

/* Time was up meanwhile. */
static bool has_expired(struct op *op, int result)
{
    struct run *run = op->run;
    return result == -PLX_EMISSING &&
           (model_disk_places(&run->model, op->md) & AT_NONE);
}

static async void restore_main(struct op *op)
{
    struct run *run = op->run;
    struct model_disk *disk = op->md;
    struct disk_info info;
    struct error err = {0};
    const char *name = disk->maybe_name[0] ? disk->maybe_name : disk->name;
    int rc = trash_restore(run->host, disk->name,
                           disk->maybe_name[0] ? disk->maybe_name : NULL, &err);
    run->load.is_trash_busy = false;
    if (rc == 0) {
        if (disk_show(run->host, name, &info, &err) < 0)
            run_fail(run, "disk %s was restored, but: %s", name, err.text);
        if (info.id != disk->id || info.size_bytes != disk->size_bytes)
            run_fail(run, "disk %s was restored, but is another", name);
        memmove(disk->name, name, sizeof disk->name);
        disk->maybe_name[0] = '\0';
        disk->existence = EXISTS;
    } else if (has_expired(op, rc)) {
        disk->places = AT_TRASH | AT_NONE;
        disk->maybe_name[0] = '\0';
    } else {
        op_check_result(op, rc, err.text);
    }
    op_end(op, rc);
}

void admin_restore_begin(struct run *run)
{
    struct model_disk *disk = pick_trashed(run);
    if (disk == NULL || run->load.is_trash_busy)
        return;
    struct op *op = op_begin(run, "restore");
    op->md = disk;
    disk->existence = MAYBE;
    disk->places = AT_HOME | AT_TRASH;
    run->load.is_trash_busy = true;
    if (run_chance(run, 30))
        draw_name(run, 't', disk->maybe_name);
    op_start_task(op, restore_main);
}

/* Of these nobody knows any more how long they are kept. */
static void trash_is_emptied(struct run *run, uint64_t keep_ns)
{
    struct model_disk *disk;
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (disk->is_removing || (model_disk_places(&run->model, disk) & AT_TRASH))
            disk->keep_ns = min_u64(disk->keep_ns, keep_ns);
    }
}

static async void empty_main(struct op *op)
{
    struct run *run = op->run;
    struct model_disk *disk, *next;
    struct error err = {0};
    int rc = trash_empty(run->host, op->md != NULL ? op->md->name : NULL, &err);
    run->load.is_trash_busy = run->load.is_trash_emptied = false;
    if (op->md == NULL)
        trash_is_emptied(run, 0); /* what came meanwhile */
    if (op->md == NULL || !has_expired(op, rc))
        op_check_result(op, rc, err.text);
    else
        rc = 0;
    TAILQ_FOREACH_SAFE (disk, &run->model.disks, link, next) {
        if (!disk->is_emptying)
            continue;
        disk->is_emptying = false;
        if (rc == 0 && is_in_trash(run, disk->id))
            run_fail(run, "disk %s is in the trash, which is empty", disk->name);
        if (rc == 0)
            model_disk_purge(&run->model, disk);
    }
    op_end(op, rc);
}

void admin_empty_begin(struct run *run)
{
    struct model_disk *disk, *one = pick_trashed(run);
    if (one == NULL || run->load.is_trash_busy)
        return;
    struct op *op = op_begin(run, "emptying");
    op->md = run_chance(run, 70) ? one : NULL;
    run->load.is_trash_busy = true;
    run->load.is_trash_emptied = op->md == NULL;
    if (op->md == NULL)
        trash_is_emptied(run, 0);
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (disk->existence != TRASHED || (op->md != NULL && disk != op->md))
            continue;
        disk->is_emptying = true;
        disk->existence = MAYBE;
        disk->places = AT_TRASH | AT_NONE;
    }
    op_start_task(op, empty_main);
}

static async void keep_main(struct op *op)
{
    struct run *run = op->run;
    struct model *model = &run->model;
    struct error err = {0};
    int rc = trash_set_keep(run->host, op->size_bytes, &err);
    run->load.is_trash_busy = false;
    op_check_result(op, rc, err.text);
    trash_is_emptied(run, model->keep_ns); /* what came meanwhile */
    if (rc == 0) {
        model->keep_s = model->maybe_keep_s = op->size_bytes;
        model->keep_ns = model_keep_ns(op->size_bytes);
        if (trash_keep(run->host) != op->size_bytes)
            run_fail(run, "the trash is kept for %llu s, not %llu",
                     (unsigned long long)trash_keep(run->host),
                     (unsigned long long)op->size_bytes);
    }
    op_end(op, rc);
}

void admin_keep_begin(struct run *run)
{
    struct model *model = &run->model;
    uint64_t kind = run_random(run, 100);
    if (run->load.is_trash_busy || model->keep_s != model->maybe_keep_s)
        return;
    struct op *op = op_begin(run, "keep");
    op->size_bytes = kind < 25   ? 0
                     : kind < 65 ? run_between(run, 1, 1000)
                                 : run_between(run, 1000, 1000000);
    run->load.is_trash_busy = true;
    model->maybe_keep_s = op->size_bytes;
    model->keep_ns = min_u64(model->keep_ns, model_keep_ns(op->size_bytes));
    trash_is_emptied(run, model->keep_ns);
    op_start_task(op, keep_main);
}

/* --- scrub --- */

static void on_scrub_finding(void *arg, const char *line)
{
    struct run *run = arg;
    run_fail(run, "scrub: %s", line);
}

void scrub_check(struct run *run)
{
    struct scrub_status status;
    scrub_status(run->host, &status);
    if (status.findings > 0 && !faults_allow(run, -EIO))
        scrub_findings(run->host, on_scrub_finding, run);
}

static async void scrub_main(struct op *op)
{
    struct error err = {0};
    int rc = scrub_start(op->run->host, op->size_bytes, &err);
    op_check_result(op, rc, err.text);
    op_end(op, rc);
}

void admin_scrub_begin(struct run *run)
{
    struct scrub_status status;
    scrub_check(run);
    scrub_status(run->host, &status);
    if (status.running && !status.paused) {
        scrub_pause(run->host);
        return;
    }
    struct op *op = op_begin(run, "scrub");
    op->size_bytes = run_chance(run, 30) ? 0 : run_between(run, 1, 1000) * MIB;
    op_start_task(op, scrub_main);
}
