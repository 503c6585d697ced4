/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an administrator does. A disk is used by several operations at a time (`shared`),
 * but renamed, resized and rolled back by one alone, and has one snapshot being made at
 * a time, so that the model knows which marker is whose.
 *
 * An operation that fails without an explanation ends the run. One that fails because of
 * a fault may have happened: what it was to change stays MAYBE, and nothing else touches
 * it, until the next process says what became of it.
 */
#include <stdio.h>

#include "tests/simulation/workload.h"

/* --- names and choices --- */

void draw_name(struct run *run, char letter, char ret[MODEL_NAME_MAX])
{
    snprintf(ret, MODEL_NAME_MAX, "%c%llu", letter,
             (unsigned long long)++run->model.next_name);
}

void disk_use(struct model_disk *disk)
{
    disk->shared++;
    disk->uses++;
}

struct model_disk *pick_disk(struct run *run, bool alone)
{
    struct model_disk *disk, *chosen = NULL;
    uint64_t seen = 0;
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (disk->existence != EXISTS || disk->exclusive || (alone && disk->shared > 0))
            continue;
        if (run_random(run, ++seen) == 0)
            chosen = disk;
    }
    return chosen;
}

struct model_snap *pick_snap(struct run *run, const struct model_disk *of)
{
    struct model_snap *snap, *chosen = NULL;
    uint64_t seen = 0;
    TAILQ_FOREACH (snap, &run->model.snaps, link) {
        if (snap->existence != EXISTS || snap->name[0] == '\0' ||
            snap->disk->existence != EXISTS || snap->disk->exclusive ||
            (of != NULL && snap->disk != of))
            continue;
        if (run_random(run, ++seen) == 0)
            chosen = snap;
    }
    return chosen;
}

static uint64_t draw_size(struct run *run)
{
    uint64_t kind = run_random(run, 100);
    if (run->is_bulky)
        return run_between(run, 1, 32) * MIB;
    if (kind < 8)
        return 100 * GIB;
    if (kind < 20)
        return run_between(run, 4, 64) * MIB;
    return run_between(run, 256, 4 * KIB) * KIB / BLOCK_SIZE * BLOCK_SIZE;
}

static void learn_id(struct run *run, struct model_disk *disk)
{
    struct disk_info info;
    struct error err = {0};
    if (disk_show(run->host, disk->name, &info, &err) < 0)
        run_fail(run, "disk %s was made, but: %s", disk->name, err.text);
    disk->id = info.id;
    disk->existence = EXISTS;
}

void op_snap(struct op *op, struct model_snap *snap)
{
    op->snap = snap;
    if (snap != NULL)
        memcpy(op->snap_name, snap->name, sizeof op->snap_name);
}

/* --- opening --- */

static async void open_main(struct op *op)
{
    struct run *run = op->run;
    struct error err = {0};
    struct disk *disk;
    char name[2 * MODEL_NAME_MAX + 2];
    snprintf(name, sizeof name, "%s%s%s", op->md->name, op->snap != NULL ? "@" : "",
             op->snap_name);
    int rc = disk_open(run->host, name,
                       op->snap != NULL ? DISK_READ_ONLY : DISK_READ_WRITE, &disk, &err);
    if (!op_found_nothing(op, rc))
        op_check_result(op, rc, err.text);
    op->md->shared--;
    /* A snapshot may: its disk is not removed for good while it is open. */
    if (rc == 0 && op->md->existence == TRASHED && op->snap == NULL)
        run_fail(run, "%s was opened after its disk was removed", name);
    if (rc == 0) {
        uint64_t size = op->snap != NULL ? op->snap->size_bytes : op->md->size_bytes;
        if (disk_size_bytes(disk) != size)
            run_fail(run, "%s has %llu bytes, not %llu", name,
                     (unsigned long long)disk_size_bytes(disk), (unsigned long long)size);
        client_enter(run, disk, op->md, op->snap);
    }
    op_end(op, rc);
}

void admin_open_begin(struct run *run)
{
    struct model_disk *disk = pick_disk(run, false);
    if (disk == NULL || run->load.client_count >= CLIENTS_MAX)
        return;
    struct op *op = op_begin(run, "open");
    op->md = disk;
    if (run_chance(run, 25))
        op_snap(op, pick_snap(run, disk));
    disk_use(disk);
    op_start_task(op, open_main);
}

void admin_close_begin(struct run *run)
{
    struct client *client = TAILQ_FIRST(&run->load.clients);
    if (client == NULL)
        return;
    client->is_closing = true;
    if (client->inflight == 0)
        client_leave(run, client);
}

/* --- making disks --- */

static async void create_main(struct op *op)
{
    struct run *run = op->run;
    struct error err = {0};
    int rc = disk_create(run->host, op->md->name, op->md->size_bytes, &err);
    op_check_result(op, rc, err.text);
    if (rc == 0)
        learn_id(run, op->md);
    op_end(op, rc);
}

void admin_create_begin(struct run *run)
{
    char name[MODEL_NAME_MAX];
    if (run->model.disk_count >= run->disks_max)
        return;
    struct op *op = op_begin(run, "create");
    draw_name(run, 'd', name);
    op->md = model_disk_add(&run->model, name, draw_size(run), NULL);
    op_start_task(op, create_main);
}

/* --- snapshots and clones --- */

static struct model_snap *marker_begin(struct run *run, struct op *op,
                                       struct model_disk *disk, const char *name)
{
    struct model_snap *snap = model_snap_add(&run->model, disk, name);
    making_begin(disk, snap);
    op->line = disk->line;
    op->lo = disk->line->acked;
    return snap;
}

/* The snapshot is made: one moment between the call and the answer. */
static void marker_done(struct op *op, struct model_snap *snap)
{
    struct line *line = op->line;
    if (snap->number <= op->lo || snap->number > line->last)
        run_fail(op->run, "snapshot of %s is at batch %llu; it was asked for at %llu",
                 op->md->name, (unsigned long long)snap->number,
                 (unsigned long long)op->lo);
    snap->existence = EXISTS;
    snap->is_committed = true;
    line->acked = max_u64(line->acked, snap->number);
    line->flushed = max_u64(line->flushed, snap->number);
}

static async void snapshot_main(struct op *op)
{
    struct run *run = op->run;
    struct error err = {0};
    int rc = snapshot_create(run->host, op->md->name, op->snap->name, &err);
    making_end(op->md, op->snap, rc);
    if (rc == -PLX_ELIMIT || op_found_nothing(op, rc)) { /* nothing was made */
        model_snap_remove(&run->model, op->snap);
        rc = 0;
    } else {
        op_check_result(op, rc, err.text);
        if (rc == 0)
            marker_done(op, op->snap);
    }
    op->md->shared--;
    op_end(op, rc);
}

void admin_snapshot_begin(struct run *run)
{
    char name[MODEL_NAME_MAX];
    struct model_disk *disk = pick_disk(run, false);
    if (disk == NULL || !making_has_room(disk) ||
        model_snap_count(&run->model) >= SNAPS_MAX)
        return;
    struct op *op = op_begin(run, "snapshot");
    op->md = disk;
    disk_use(disk);
    draw_name(run, 's', name);
    op->snap = marker_begin(run, op, disk, name);
    op_start_task(op, snapshot_main);
}

/* The disks that the clone was to make are there, or (refused) are not. */
static void clones_done(struct op *op, uint64_t group, bool are_there)
{
    struct model *model = &op->run->model;
    struct model_disk *disk, *next;
    TAILQ_FOREACH_SAFE (disk, &model->disks, link, next) {
        if (disk->group != group)
            continue;
        disk->group = 0;
        if (are_there)
            learn_id(op->run, disk);
        else
            model_disk_remove(model, disk);
    }
}

static async void clone_main(struct op *op)
{
    struct run *run = op->run;
    struct error err = {0};
    bool of_head = op->snap_name[0] == '\0';
    uint64_t group = op->size_bytes;
    int rc = disk_clone(run->host, op->md->name, of_head ? NULL : op->snap_name,
                        op->names[0], op->count, &err);
    bool refused = op_found_nothing(op, rc);
    if (!refused)
        op_check_result(op, rc, err.text);
    if (of_head)
        making_end(op->md, op->snap, rc);
    if (rc == 0 && of_head)
        marker_done(op, op->snap);
    if (refused && of_head) /* it may be there, and is of no use */
        model_snap_remove(&run->model, op->snap);
    if (rc == 0 || refused)
        clones_done(op, group, rc == 0);
    op->md->shared--;
    op_end(op, rc);
}

static void add_clones(struct run *run, struct op *op)
{
    op->size_bytes = run->model.next_group++;
    for (uint32_t i = 1; i <= op->count; i++) {
        char name[MODEL_NAME_MAX];
        if (op->count == 1)
            snprintf(name, sizeof name, "%s", op->names[0]);
        else
            snprintf(name, sizeof name, "%.20s-%u", op->names[0], i);
        struct model_disk *clone = model_disk_add(&run->model, name, op->snap->size_bytes,
                                                  op->snap);
        clone->group = op->size_bytes;
    }
}

void admin_clone_begin(struct run *run)
{
    struct model_disk *disk = pick_disk(run, false);
    struct model_snap *snap = run_chance(run, 60) ? pick_snap(run, disk) : NULL;
    uint32_t count = (uint32_t)run_between(run, 1, run_chance(run, 30) ? 4 : 1);
    if (disk == NULL || run->model.disk_count + count > run->disks_max)
        return;
    if (snap == NULL &&
        (disk->making[0] != NULL || model_snap_count(&run->model) >= SNAPS_MAX))
        return;
    struct op *op = op_begin(run, "clone");
    op->md = disk;
    op->count = count;
    disk_use(disk);
    draw_name(run, 'c', op->names[0]);
    op_snap(op, snap != NULL ? snap : marker_begin(run, op, disk, ""));
    add_clones(run, op);
    op_start_task(op, clone_main);
}

/* --- one at a time --- */

static async void rename_main(struct op *op)
{
    struct run *run = op->run;
    struct model_disk *disk = op->md;
    struct error err = {0};
    int rc = disk_rename(run->host, disk->name, disk->maybe_name, &err);
    op_check_result(op, rc, err.text);
    if (rc == 0) {
        memcpy(disk->name, disk->maybe_name, sizeof disk->name);
        disk->maybe_name[0] = '\0';
        disk->exclusive = false;
    }
    op_end(op, rc);
}

void admin_rename_begin(struct run *run)
{
    struct model_disk *disk = pick_disk(run, true);
    if (disk == NULL || disk->removing_snaps > 0)
        return;
    struct op *op = op_begin(run, "rename");
    op->md = disk;
    disk->exclusive = true;
    draw_name(run, 'r', disk->maybe_name);
    op_start_task(op, rename_main);
}

/* Refused because of clients (who may have left before it came to that), or because the
 * snapshot is gone. */
static bool was_refused(struct op *op, int result)
{
    if (!(op->may_be_refused && result == -PLX_EBUSY) && !op_found_nothing(op, result))
        return false;
    op->md->exclusive = false;
    op->md->maybe_line = NULL;
    op->md->maybe_size_bytes = 0;
    op_end(op, result);
    return true;
}

static async void resize_main(struct op *op)
{
    struct run *run = op->run;
    struct model_disk *disk = op->md;
    struct error err = {0};
    int rc = disk_resize(run->host, disk->name, op->size_bytes, &err);
    if (op->is_change)
        change_done(&run->model, disk, &op->change, rc);
    if (was_refused(op, rc))
        return;
    op_check_result(op, rc, err.text);
    if (rc == 0) {
        disk->size_bytes = op->size_bytes;
        disk->maybe_size_bytes = 0;
        disk->exclusive = false;
    }
    op_end(op, rc);
}

void admin_resize_begin(struct run *run)
{
    struct model_disk *disk = pick_disk(run, true);
    if (disk == NULL)
        return;
    uint64_t blocks = disk->size_bytes / BLOCK_SIZE;
    bool grows = run_chance(run, 50) || disk->size_bytes > 100 * GIB;
    uint64_t to = grows ? blocks + run_between(run, 1, 2048)
                        : run_between(run, 1, min_u64(blocks, 16384));
    struct op *op = op_begin(run, "resize");
    op->md = disk;
    op->size_bytes = to * BLOCK_SIZE;
    disk->exclusive = true;
    disk->maybe_size_bytes = op->size_bytes;
    op->is_change = to < blocks;
    op->may_be_refused = op->is_change && disk->clients > 0;
    op->change = (struct change){.kind = CHANGE_ZERO,
                                 .offset_bytes = op->size_bytes,
                                 .len_bytes = disk->size_bytes - op->size_bytes};
    if (op->is_change)
        change_begin(&run->model, disk, &op->change);
    op_start_task(op, resize_main);
}

static async void rollback_main(struct op *op)
{
    struct run *run = op->run;
    struct model_disk *disk = op->md;
    struct error err = {0};
    int rc = snapshot_rollback(run->host, disk->name, op->snap_name, &err);
    if (was_refused(op, rc))
        return;
    op_check_result(op, rc, err.text);
    if (rc == 0) {
        struct line *line = disk->maybe_line;
        line->acked = line->flushed = disk->line->acked;
        line->last = disk->line->last;
        disk->line = line;
        disk->size_bytes = op->snap->size_bytes;
        disk->maybe_line = NULL;
        disk->maybe_size_bytes = 0;
        disk->exclusive = false;
    }
    op_end(op, rc);
}

void admin_rollback_begin(struct run *run)
{
    struct model_disk *disk = pick_disk(run, true);
    struct model_snap *snap = disk != NULL ? pick_snap(run, disk) : NULL;
    if (snap == NULL)
        return;
    struct op *op = op_begin(run, "rollback");
    op->md = disk;
    op_snap(op, snap);
    disk->exclusive = true;
    op->may_be_refused = disk->clients > 0;
    disk->maybe_line = line_create(snap);
    disk->maybe_size_bytes = snap->size_bytes;
    op_start_task(op, rollback_main);
}

/* --- imports --- */

static async void import_main(struct op *op)
{
    struct run *run = op->run;
    struct model_disk *disk = op->md;
    struct error err = {0};
    struct disk *handle;
    int rc = import_begin(run->host, disk->name, &err);
    op_check_result(op, rc, err.text);
    if (rc == 0) {
        rc = disk_open(run->host, disk->name, DISK_READ_WRITE, &handle, &err);
        op_check_result(op, rc, err.text);
    }
    if (rc == 0)
        client_enter(run, handle, disk, NULL);
    op_end(op, rc);
}

void admin_import_begin(struct run *run)
{
    char name[MODEL_NAME_MAX];
    struct model_disk *disk;
    if (run->model.disk_count >= run->disks_max || run->load.client_count >= CLIENTS_MAX)
        return;
    TAILQ_FOREACH (disk, &run->model.disks, link) {
        if (disk->existence == IMPORTING)
            return; /* one at a time */
    }
    struct op *op = op_begin(run, "import");
    draw_name(run, 'i', name);
    if (run->model.lost_import[0]) /* gone with its process, so its name is free */
        memcpy(name, run->model.lost_import, sizeof name);
    run->model.lost_import[0] = '\0';
    op->md = model_disk_add(&run->model, name, draw_size(run), NULL);
    op->md->existence = IMPORTING;
    op_start_task(op, import_main);
}

static async void publish_main(struct op *op)
{
    struct run *run = op->run;
    struct error err = {0};
    int rc = import_publish(run->host, op->md->name, op->md->size_bytes, &err);
    op_check_result(op, rc, err.text);
    if (rc == 0)
        learn_id(run, op->md);
    op_end(op, rc);
}

static async void discard_main(struct op *op)
{
    struct run *run = op->run;
    struct error err = {0};
    int rc = import_discard(run->host, op->md->name, &err);
    op_check_result(op, rc, err.text);
    if (rc == 0)
        model_disk_remove(&run->model, op->md);
    op_end(op, rc);
}

/* Its client has left. */
void admin_import_end(struct run *run, struct model_disk *disk)
{
    bool keep = run_chance(run, 70);
    struct op *op = op_begin(run, keep ? "publish" : "discard");
    op->md = disk;
    disk->existence = keep ? MAYBE : IMPORTING;
    op_start_task(op, keep ? publish_main : discard_main);
}

/* --- host_check --- */

static async void check_main(struct op *op)
{
    verify_check(op->run, true);
    op_end(op, 0);
}

void admin_check_begin(struct run *run)
{
    op_start_task(op_begin(run, "check"), check_main);
}
