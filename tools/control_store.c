/* SPDX-License-Identifier: Apache-2.0 */
/* Operations on the store as a whole: status, check, scrub, trash. */
#include <stdio.h>
#include <unistd.h>

#include "cow/host.h"
#include "tools/control_internal.h"
#include "tools/control_wire.h"

/* --- status --- */

static json_t *daemon_json(const struct control_services *services,
                           const struct host_status *s)
{
    return json_pack("{s:s, s:b, s:s, s:[s], s:s, s:I, s:s, s:o, s:o, s:o, s:o, s:o}",
                     "health", s->health, "failed", s->failed, "warning", s->warning,
                     "nbd", services->nbd_uri, "directory", services->directory, "pid",
                     (json_int_t)getpid(), "version", PARALLAX_VERSION, "cluster",
                     control_uid(s->cluster), "store", control_uid(s->store),
                     "node_cache_bytes", control_number(s->node_cache_used_bytes),
                     "overlay_bytes", control_number(s->overlay_used_bytes),
                     "retained_bytes", control_number(s->retained_used_bytes));
}

static json_t *space_json(const struct host_status *s, const char *room)
{
    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:s}", "capacity_bytes",
        control_number(s->capacity_bytes), "used_bytes", control_number(s->used_bytes),
        "free_bytes", control_number(s->free_bytes), "live_bytes",
        control_number(s->live_bytes), "dead_bytes", control_number(s->dead_bytes),
        "withheld_bytes", control_number(s->withheld_bytes), "reserve_bytes",
        control_number(s->reserve_bytes),
        "committed_bytes", control_number(s->committed_bytes), "disks",
        control_number(s->disk_count), "open_disks", control_number(s->open_disk_count),
        "snapshots", control_number(s->snapshot_count), "room", room);
}

/* Nothing of it for a device. */
static json_t *file_system_json(const struct host_status *s)
{
    if (!s->has_host)
        return json_object();
    return json_pack("{s:o, s:o}", "host_free_bytes", control_number(s->host_free_bytes),
                     "host_reserve_bytes", control_number(s->host_reserve_bytes));
}

static json_t *work_json(const struct host_status *s)
{
    return json_pack("{s:{s:o, s:o}, s:{s:o, s:b, s:o}, s:{s:b, s:o, s:o, s:o}}", "trash",
                     "disks", control_number(s->trash_count), "bytes",
                     control_number(s->trash_bytes), "reclaim", "pending",
                     control_number(s->reclaim_pending), "running", s->reclaim_running,
                     "freed_bytes", control_number(s->reclaim_freed_bytes), "compaction",
                     "running", s->compacting, "runs", control_number(s->compact_runs),
                     "read_bytes", control_number(s->compact_bytes_read), "written_bytes",
                     control_number(s->compact_bytes_written));
}

async int op_status(struct control_call *call, struct error *err)
{
    int r = control_unpack(call, err, "{}");
    if (r < 0)
        return r;
    struct host_status s;
    char room[256], health[256];
    host_status_now(call->services->host, &s);
    control_describe_room(call->services->host, room, sizeof room);
    cleanup(json_decrefp) json_t *space = space_json(&s, room);
    cleanup(json_decrefp) json_t *work = work_json(&s);
    cleanup(json_decrefp) json_t *file_system = file_system_json(&s);
    json_t *all = daemon_json(call->services, &s);
    json_t *members = control_cluster_json(call, health, sizeof health);
    if (members != NULL)
        json_object_set_new(all, "members", members);
    /* What is wrong with this host comes first: it is known better. */
    if (health[0] != '\0' && strcmp(s.health, "ok") == 0)
        json_object_set_new(all, "health", json_string(health));
    if (json_object_update(all, space) < 0 || json_object_update(all, work) < 0 ||
        json_object_update(all, file_system) < 0) {
        json_decref(all);
        return -ENOMEM;
    }
    call->result = all;
    return 0;
}

/* --- check --- */

static void check_finding(void *arg, const char *line)
{
    control_offer_item(arg, json_pack("{s:s}", "finding", line));
}

static void check_progress(void *arg, uint64_t done_bytes, uint64_t total_bytes)
{
    control_offer_progress(arg, done_bytes, total_bytes);
}

static bool check_cancelled(void *arg)
{
    return control_is_abandoned(arg);
}

async int op_check(struct control_call *call, struct error *err)
{
    int repair = 0;
    int r = control_unpack(call, err, "{s?b}", "repair", &repair);
    if (r < 0)
        return r;
    const struct check_callbacks callbacks = {
        .finding = check_finding,
        .progress = check_progress,
        .cancelled = check_cancelled,
        .arg = call,
    };
    struct check_report c = {0};
    r = host_check(call->services->host, repair ? CHECK_REPAIR : 0, &callbacks, &c, err);
    if (r < 0)
        return r;
    call->result = json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "disks",
        control_number(c.disks), "snapshots", control_number(c.snapshots), "extents",
        control_number(c.extents), "nodes", control_number(c.nodes), "blocks",
        control_number(c.blocks), "bytes", control_number(c.bytes), "findings",
        control_number(c.findings), "lost_blocks", control_number(c.lost_blocks),
        "repaired_blocks", control_number(c.repaired_blocks), "dead_reachable",
        control_number(c.dead_reachable), "rebuilt_nodes",
        control_number(c.rebuilt_nodes));
    return call->result != NULL ? 0 : -ENOMEM;
}

/* --- scrub --- */

async int op_scrub_start(struct control_call *call, struct error *err)
{
    json_int_t rate = 0;
    int r = control_unpack(call, err, "{s?I}", "bytes_per_second", &rate);
    if (r == 0 && rate < 0)
        r = err_set(err, -EINVAL, "bad request: bytes_per_second below 0");
    return r < 0 ? r : scrub_start(call->services->host, (uint64_t)rate, err);
}

async int op_scrub_pause(struct control_call *call, struct error *err)
{
    int r = control_unpack(call, err, "{}");
    if (r == 0)
        scrub_pause(call->services->host);
    return r;
}

static void send_finding(void *arg, const char *line)
{
    control_offer_item(arg, json_pack("{s:s}", "finding", line));
}

async int op_scrub_status(struct control_call *call, struct error *err)
{
    int r = control_unpack(call, err, "{}");
    if (r < 0)
        return r;
    struct scrub_status s;
    scrub_status(call->services->host, &s);
    scrub_findings(call->services->host, send_finding, call);
    const char *state = s.paused                  ? "paused"
                        : s.running               ? "running"
                        : s.finished_wall_ns != 0 ? "finished"
                                                  : "never";
    call->result = json_pack(
        "{s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "state", state, "done_bytes",
        control_number(s.done_bytes), "total_bytes", control_number(s.total_bytes),
        "findings", control_number(s.findings), "started",
        control_time(s.started_wall_ns), "finished", control_time(s.finished_wall_ns),
        "bytes_per_second", control_number(s.rate_bytes_s));
    return call->result != NULL ? 0 : -ENOMEM;
}

/* --- trash --- */

async int op_trash_list(struct control_call *call, struct error *err)
{
    cleanup(free_ptr) struct trash_info *infos = NULL;
    size_t count = 0;
    int r = control_unpack(call, err, "{}");
    if (r == 0)
        r = trash_list(call->services->host, &infos, &count);
    for (size_t i = 0; i < count && r == 0; i++) {
        const struct trash_info *t = &infos[i];
        r = control_send_item(
            call, json_pack("{s:s, s:o, s:o, s:o, s:o, s:o}", "name", t->name,
                            "size_bytes", control_number(t->size_bytes), "used_bytes",
                            control_number(t->used_bytes), "snapshots",
                            control_number(t->snapshot_count), "removed",
                            control_time(t->trashed_wall_ns), "restorable_until",
                            control_time(t->expires_wall_ns)));
    }
    if (r < 0)
        return r;
    call->result = json_pack("{s:o}", "keep_seconds",
                             control_number(trash_keep(call->services->host)));
    return call->result != NULL ? 0 : -ENOMEM;
}

async int op_trash_restore(struct control_call *call, struct error *err)
{
    const char *name, *new_name = NULL;
    int r = control_unpack(call, err, "{s:s, s?s}", "name", &name, "new_name", &new_name);
    return r < 0 ? r : trash_restore(call->services->host, name, new_name, err);
}

async int op_trash_empty(struct control_call *call, struct error *err)
{
    const char *name = NULL;
    int r = control_unpack(call, err, "{s?s}", "name", &name);
    return r < 0 ? r : trash_empty(call->services->host, name, err);
}

async int op_trash_keep(struct control_call *call, struct error *err)
{
    json_int_t seconds;
    int r = control_unpack(call, err, "{s:I}", "seconds", &seconds);
    if (r == 0 && seconds < 0)
        r = err_set(err, -EINVAL, "bad request: seconds below 0");
    return r < 0 ? r : trash_set_keep(call->services->host, (uint64_t)seconds, err);
}
