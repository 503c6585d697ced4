/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What guests do: they open a disk somewhere, use it for a while, and give it back; now
 * and then something is made of it, or it is removed. An operation may fail as long as
 * something is wrong with the cluster, and then may or may not have happened.
 */
#include <stdio.h>

#include "tests/simulation/content.h"
#include "tests/simulation/fleet.h"

#define LINE 1600

/* --- what is known here --- */

/* The epoch of a disk as this node knows it; *ret_owns: and it is the owner. */
static uint64_t epoch_here(const struct place *place, const struct fleet_disk *md,
                           bool *ret_owns)
{
    const struct cluster_disk *disk = cluster_disk_by_name(place_state(place), md->name);
    if (ret_owns != NULL)
        *ret_owns = disk != NULL && disk->owner == place->number;
    return disk != NULL ? disk->epoch : 0;
}

static void begin(struct guest *g, const char *what)
{
    g->what = what;
    g->begun_ns = sim_world_now_ns(g->place->fleet->world);
}

/* What failed must be allowed to. */
static void end(struct guest *g, const char *name, int rc, const char *text)
{
    struct fleet *fleet = g->place->fleet;
    g->begun_ns = 0;
    fleet->ops_done++;
    fleet->ops_failed += rc < 0;
    if (rc == 0)
        return;
    fleet_note(fleet, "machine %u: %s of %s: %s", g->place->number, g->what, name,
               text != NULL ? text : err_text(rc));
    if (fleet->is_healed)
        fleet_fail(fleet, "machine %u: %s of %s: %s, and all is well", g->place->number,
                   g->what, name, text != NULL ? text : err_text(rc));
}

/* --- input and output --- */

static void io_done(struct disk_io *io)
{
    struct guest *g = container_of(io, struct guest, io);
    g->is_done = true;
    task_wake(g->waiting);
}

static async int io_run(struct guest *g, enum disk_op op, unsigned flags, uint32_t first,
                        uint32_t count)
{
    struct buffer *buffer = g->io.buffer;
    g->io = (struct disk_io){.op = op,
                             .flags = flags,
                             .offset_bytes = (uint64_t)first * BLOCK_SIZE,
                             .len_bytes = (uint64_t)count * BLOCK_SIZE,
                             .buffer = buffer,
                             .done = io_done,
                             .opened = g->opened};
    g->is_done = false;
    g->waiting = task_current();
    disk_submit(g->disk, &g->io);
    while (!g->is_done)
        task_park();
    return g->io.result;
}

static void note_io(const struct guest *g, const struct fleet_disk *md, uint32_t first,
                    uint32_t count, uint64_t id)
{
    if (g->place->fleet->verbosity > 1)
        fleet_note(g->place->fleet,
                   "machine %u: %s of %s, blocks %u to %u, %llu, begun at %.6f s: %d",
                   g->place->number, g->what, md->name, first, first + count - 1,
                   (unsigned long long)id, (double)g->begun_ns / 1e9, g->io.result);
}

static struct buffer *get_buffer(struct guest *g, uint32_t blocks)
{
    struct buffer *buffer = buffer_create(host_buffers(g->place->host),
                                          (uint64_t)blocks * BLOCK_SIZE);
    if (buffer == NULL)
        fleet_fail(g->place->fleet, "there is no buffer");
    return buffer;
}

static void draw_range(struct guest *g, uint32_t *ret_first, uint32_t *ret_count)
{
    struct fleet *fleet = g->place->fleet;
    uint32_t blocks = g->md->block_count, count = 1;
    if (fleet_chance(fleet, 40))
        count = (uint32_t)fleet_between(fleet, 1, min_u32(blocks, FLEET_IO_BLOCKS));
    /* Often the same few, so that there is something to mix up. */
    uint32_t area = fleet_chance(fleet, 50) ? min_u32(blocks, 8) : blocks;
    *ret_count = min_u32(count, area);
    *ret_first = (uint32_t)fleet_random(fleet, area - *ret_count + 1);
}

static async int change(struct guest *g)
{
    struct fleet *fleet = g->place->fleet;
    struct fleet_disk *md = g->md;
    uint32_t first, count, kind = (uint32_t)fleet_random(fleet, 100);
    unsigned flags = fleet_chance(fleet, 10) ? DISK_FUA : 0;
    draw_range(g, &first, &count);
    struct fleet_change it = {.disk = md, .first = first, .count = count};
    if (kind < 80)
        it.id = fleet->model.next_id;
    if (!model_change_begin(&fleet->model, &it))
        return 0;
    g->change = it;
    fleet->model.next_id++;
    if (it.id != 0) {
        g->io.buffer = get_buffer(g, count);
        content_fill(it.id, (uint64_t)first * BLOCK_SIZE, g->io.buffer->data,
                     (size_t)count * BLOCK_SIZE);
    }
    begin(g, it.id != 0 ? "a write" : "a trim");
    int rc = io_run(g,
                    it.id != 0  ? DISK_WRITE
                    : kind < 90 ? DISK_TRIM
                                : DISK_ZERO,
                    flags, first, count);
    buffer_put(take(g->io.buffer));
    model_change_end(&fleet->model, &g->change, rc == 0, epoch_here(g->place, md, NULL));
    note_io(g, md, first, count, it.id);
    end(g, md->name, rc, NULL);
    return rc;
}

static async int look(struct guest *g, struct fleet_disk *content, uint32_t first,
                      uint32_t count, bool is_last)
{
    struct fleet *fleet = g->place->fleet;
    char text[LINE];
    uint64_t epoch = g->snap != NULL ? 1 : epoch_here(g->place, content, NULL);
    g->look = (struct fleet_look){.disk = content, .first = first, .count = count};
    model_look_begin(&fleet->model, &g->look, epoch);
    g->io.buffer = get_buffer(g, count);
    begin(g, "a read");
    int rc = io_run(g, DISK_READ, 0, first, count);
    note_io(g, content, first, count, 0);
    if (g->snap == NULL)
        model_see_epoch(content, epoch_here(g->place, content, NULL));
    if (rc < 0)
        model_look_drop(&g->look);
    else if (!model_look_end(&fleet->model, &g->look, g->io.buffer->data, is_last, text,
                             sizeof text))
        fleet_fail(fleet, "machine %u reads %s: %s", g->place->number, content->name,
                   text);
    buffer_put(take(g->io.buffer));
    end(g, content->name, rc, NULL);
    return rc;
}

static async int flush(struct guest *g)
{
    struct fleet *fleet = g->place->fleet;
    bool owns, still_owns;
    uint64_t epoch = epoch_here(g->place, g->md, &owns);
    g->look = (struct fleet_look){.disk = g->md};
    model_look_begin(&fleet->model, &g->look, epoch);
    begin(g, "a flush");
    int rc = io_run(g, DISK_FLUSH, 0, 0, 0);
    uint64_t now = epoch_here(g->place, g->md, &still_owns);
    model_see_epoch(g->md, now);
    if (rc == 0 && owns && still_owns && now == epoch)
        model_flushed(&fleet->model, &g->look);
    else
        model_look_drop(&g->look);
    end(g, g->md->name, rc, NULL);
    return rc;
}

/* --- opening --- */

static async int enter(struct guest *g, const char *name, enum disk_access access)
{
    struct error err = {0};
    begin(g, "an opening");
    int rc = disk_open(g->place->host, name, access, &g->disk, &err);
    if (rc < 0)
        g->disk = NULL;
    else
        g->opened = disk_opened(g->disk);
    /* Somebody else has it; or there was an election. */
    bool is_refusal = rc == -PLX_EBUSY || rc == -PLX_EOWNED || rc == -EAGAIN ||
                      rc == -PLX_ENOLEADER;
    end(g, name, is_refusal ? 0 : rc, err.text);
    return rc;
}

static void leave(struct guest *g)
{
    disk_close(take(g->disk));
}

static struct fleet_disk *pick_disk(struct fleet *fleet)
{
    struct fleet_model *model = &fleet->model;
    struct fleet_disk *chosen = NULL;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < model->disk_count; i++) {
        if (model->disks[i].existence == PRESENT && fleet_random(fleet, ++seen) == 0)
            chosen = &model->disks[i];
    }
    return chosen;
}

static struct fleet_snap *pick_snap(struct fleet *fleet)
{
    struct fleet_model *model = &fleet->model;
    struct fleet_snap *chosen = NULL;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < model->snap_count; i++) {
        if (model->snaps[i].existence == PRESENT && !model->snaps[i].is_in_use &&
            model->snaps[i].of->existence == PRESENT && fleet_random(fleet, ++seen) == 0)
            chosen = &model->snaps[i];
    }
    return chosen;
}

static async void rest(struct guest *g)
{
    task_sleep_ns(
        fleet_between(g->place->fleet, NS_PER_US, g->place->fleet->pause_max_ns));
}

static async void use_disk(struct guest *g)
{
    struct fleet *fleet = g->place->fleet;
    uint32_t first, count, ops = (uint32_t)fleet_between(fleet, 1, 12);
    int rc;
    g->md = pick_disk(fleet);
    if (g->md == NULL)
        return;
    g->md->users++;
    rc = enter(g, g->md->name, fleet_chance(fleet, 50) ? DISK_READ_WRITE : DISK_INCOMING);
    while (rc == 0 && ops-- > 0 && !fleet->is_draining) {
        uint64_t kind = fleet_random(fleet, 100);
        draw_range(g, &first, &count);
        rc = kind < 55   ? change(g)
             : kind < 85 ? look(g, g->md, first, count, false)
                         : flush(g);
        rest(g);
    }
    if (g->disk != NULL)
        leave(g);
    g->md->users--;
    g->md = NULL;
}

/* --- what is made of disks --- */

static async void make_disk(struct guest *g)
{
    struct fleet *fleet = g->place->fleet;
    uint32_t blocks = (uint32_t)fleet_between(fleet, 1, FLEET_BLOCKS_MAX);
    struct error err = {0};
    struct fleet_disk *md = model_add_disk(&fleet->model, blocks);
    if (md == NULL)
        return;
    md->existence = UNSURE;
    begin(g, "the making");
    int rc = disk_create(g->place->host, md->name, (uint64_t)blocks * BLOCK_SIZE, &err);
    if (rc == 0)
        md->existence = PRESENT;
    end(g, md->name, rc, err.text);
}

static async void make_snap(struct guest *g)
{
    struct fleet *fleet = g->place->fleet;
    struct fleet_disk *md = pick_disk(fleet);
    struct error err = {0};
    if (md == NULL)
        return;
    g->snap = model_snap_begin(&fleet->model, md);
    if (g->snap == NULL)
        return;
    begin(g, "a snapshot");
    int rc = snapshot_create(g->place->host, md->name, g->snap->name, &err);
    model_snap_end(&fleet->model, g->snap, rc == 0);
    g->snap = NULL;
    end(g, md->name, rc == -PLX_EBUSY || rc == -PLX_EOWNED ? 0 : rc, err.text);
}

static async void read_snap(struct guest *g, bool is_last)
{
    char name[64];
    uint32_t count = 0;
    snprintf(name, sizeof name, "%s@%s", g->snap->of->name, g->snap->name);
    int rc = enter(g, name, DISK_READ_ONLY);
    for (uint32_t at = 0; rc == 0 && at < g->snap->content.block_count; at += count) {
        count = min_u32(FLEET_IO_BLOCKS, g->snap->content.block_count - at);
        rc = look(g, &g->snap->content, at, count, is_last);
    }
    if (g->disk != NULL)
        leave(g);
}

static async void use_snap(struct guest *g)
{
    g->snap = pick_snap(g->place->fleet);
    if (g->snap == NULL)
        return;
    g->snap->is_in_use = true;
    read_snap(g, false);
    g->snap->is_in_use = false;
    g->snap = NULL;
}

static async void make_clone(struct guest *g)
{
    struct fleet *fleet = g->place->fleet;
    struct fleet_snap *snap = pick_snap(fleet);
    struct error err = {0};
    if (snap == NULL)
        return;
    struct fleet_disk *md = model_add_disk(&fleet->model, snap->content.block_count);
    if (md == NULL)
        return;
    md->existence = UNSURE;
    g->snap = snap;
    snap->is_in_use = true;
    begin(g, "a clone");
    int rc = disk_clone(g->place->host, snap->of->name, snap->name, md->name, 1, &err);
    snap->is_in_use = false;
    g->snap = NULL;
    if (rc == 0) {
        model_clone(md, snap);
        md->existence = PRESENT;
    }
    end(g, md->name, rc, err.text);
}

static async void remove_snap(struct guest *g)
{
    struct fleet *fleet = g->place->fleet;
    struct fleet_snap *snap = pick_snap(fleet);
    struct error err = {0};
    if (snap == NULL)
        return;
    const char *name = snap->name;
    snap->existence = UNSURE;
    begin(g, "the removal of a snapshot");
    int rc = snapshot_remove(g->place->host, snap->of->name, &name, 1, &err);
    if (rc == 0)
        snap->existence = REMOVED;
    end(g, snap->of->name, rc, err.text);
}

static async void remove_disk(struct guest *g)
{
    struct fleet *fleet = g->place->fleet;
    struct fleet_disk *md = pick_disk(fleet);
    struct error err = {0};
    if (md == NULL || md->users > 0 || md->lookers > 0)
        return;
    for (uint32_t i = 0; i < fleet->model.snap_count; i++) {
        if (fleet->model.snaps[i].of == md && fleet->model.snaps[i].is_in_use)
            return;
    }
    md->existence = UNSURE;
    begin(g, "the removal");
    int rc = disk_remove(g->place->host, md->name, DISK_REMOVE_RECURSIVE, &err);
    if (rc == 0)
        md->existence = REMOVED;
    else if (rc == -PLX_EBUSY)
        md->existence = PRESENT;
    end(g, md->name, rc == -PLX_EBUSY || rc == -PLX_EOWNED ? 0 : rc, err.text);
}

/* --- life --- */

static async void act(struct guest *g)
{
    uint64_t kind = fleet_random(g->place->fleet, 100);
    if (kind < 70)
        use_disk(g);
    else if (kind < 78)
        make_snap(g);
    else if (kind < 85)
        use_snap(g);
    else if (kind < 90)
        make_clone(g);
    else if (kind < 93)
        remove_snap(g);
    else if (kind < 95)
        remove_disk(g);
    else
        make_disk(g);
}

static void guest_main(struct task_call *call)
{
    struct guest *g = container_of(call, struct guest, task);
    while (!g->place->fleet->is_draining) {
        rest(g);
        act(g);
    }
    g->is_over = true;
}

void guests_start(struct place *place)
{
    struct fleet *fleet = place->fleet;
    for (uint32_t i = 0; i < FLEET_GUESTS_MAX; i++) {
        struct guest *g = &place->guests[i];
        *g = (struct guest){.place = place, .is_over = true};
        if (i >= fleet->guest_count || fleet->is_draining)
            continue;
        g->is_over = false;
        g->task = (struct task_call){.main = guest_main, .name = "guest"};
        task_start(place->loop, &g->task);
    }
}

void guests_forget(struct place *place)
{
    struct fleet *fleet = place->fleet;
    for (uint32_t i = 0; i < FLEET_GUESTS_MAX; i++) {
        struct guest *g = &place->guests[i];
        if (g->place == NULL)
            continue;
        if (g->change.count > 0)
            model_change_end(&fleet->model, &g->change, false, g->change.disk->epoch);
        model_look_drop(&g->look);
        if (g->snap != NULL && g->snap->existence == ABSENT)
            model_snap_end(&fleet->model, g->snap, false);
        else if (g->snap != NULL)
            g->snap->is_in_use = false;
        if (g->md != NULL)
            g->md->users--;
        *g = (struct guest){.place = place, .is_over = true};
    }
}

bool guests_are_done(const struct fleet *fleet)
{
    for (uint32_t p = 1; p <= fleet->place_count; p++) {
        for (uint32_t i = 0; i < FLEET_GUESTS_MAX; i++) {
            const struct guest *g = &fleet->places[p].guests[i];
            if (g->place != NULL && !g->is_over)
                return false;
        }
    }
    return true;
}

void guests_check_hang(struct fleet *fleet, uint64_t limit_ns)
{
    uint64_t now_ns = sim_world_now_ns(fleet->world);
    for (uint32_t p = 1; p <= fleet->place_count; p++) {
        for (uint32_t i = 0; i < FLEET_GUESTS_MAX; i++) {
            const struct guest *g = &fleet->places[p].guests[i];
            if (g->begun_ns != 0 && now_ns - g->begun_ns > limit_ns)
                fleet_fail(fleet, "machine %u: %s takes %llu s", p, g->what,
                           (unsigned long long)((now_ns - g->begun_ns) / NS_PER_S));
        }
    }
}

async void guests_prepare(struct place *place)
{
    struct guest *g = &place->guests[0];
    uint32_t disks = (uint32_t)fleet_between(place->fleet, 1, 3);
    *g = (struct guest){.place = place, .is_over = true};
    while (disks-- > 0)
        make_disk(g);
}

/* --- at the end --- */

/* Whoever had it last gives it up before long. */
#define ENTER_LIMIT_NS (120 * NS_PER_S)

static async void enter_at_last(struct guest *g, const char *name)
{
    uint64_t until_ns = loop_now_ns(g->place->loop) + ENTER_LIMIT_NS;
    int rc;
    while ((rc = enter(g, name, DISK_READ_WRITE)) < 0) {
        if (loop_now_ns(g->place->loop) > until_ns)
            fleet_fail(g->place->fleet, "machine %u does not get %s: %s",
                       g->place->number, name, err_text(rc));
        task_sleep_ns(100 * NS_PER_MS);
    }
}

/* A disk of which nobody knows whether it was made or removed: its last owner's log ends
 * when it is opened, so that its copies can become whole. */
static async void end_unsure(struct guest *g, const struct fleet_disk *md)
{
    if (cluster_disk_by_name(place_state(g->place), md->name) == NULL)
        return;
    enter_at_last(g, md->name);
    leave(g);
}

static async void verify_disk(struct guest *g, struct fleet_disk *md)
{
    uint32_t count;
    g->md = md;
    md->users++;
    enter_at_last(g, md->name);
    for (uint32_t at = 0; at < md->block_count; at += count) {
        count = min_u32(FLEET_IO_BLOCKS, md->block_count - at);
        look(g, md, at, count, true);
    }
    leave(g);
    md->users--;
    g->md = NULL;
}

/* What is not there must be missing, and nothing else. */
static void verify_absence(struct guest *g, const struct fleet_disk *md)
{
    if (cluster_disk_by_name(place_state(g->place), md->name) != NULL)
        fleet_fail(g->place->fleet, "machine %u still knows %s, which was removed",
                   g->place->number, md->name);
}

/* There may be an election yet. */
static async void pass_barrier(struct place *place)
{
    uint64_t until_ns = loop_now_ns(place->loop) + ENTER_LIMIT_NS;
    while (cluster_barrier(membership_cluster(place->membership)) != 0) {
        if (loop_now_ns(place->loop) > until_ns)
            fleet_fail(place->fleet, "machine %u: no barrier, and all is well",
                       place->number);
        task_sleep_ns(100 * NS_PER_MS);
    }
}

async void guests_verify(struct place *place)
{
    struct fleet_model *model = &place->fleet->model;
    struct guest *g = &place->guests[0];
    pass_barrier(place);
    *g = (struct guest){.place = place, .is_over = true};
    for (uint32_t i = 0; i < model->disk_count; i++) {
        if (model->disks[i].existence == PRESENT)
            verify_disk(g, &model->disks[i]);
        else if (model->disks[i].existence == UNSURE)
            end_unsure(g, &model->disks[i]);
        else if (model->disks[i].existence == REMOVED)
            verify_absence(g, &model->disks[i]);
    }
    for (uint32_t i = 0; i < model->snap_count; i++) {
        g->snap = &model->snaps[i];
        if (g->snap->existence == PRESENT && g->snap->of->existence == PRESENT)
            read_snap(g, true);
    }
    g->snap = NULL;
}
