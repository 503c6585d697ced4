/* SPDX-License-Identifier: Apache-2.0 */
/* What can be asked for over the control socket, one function each: here those on disks
 * and imports, and the table of all. doc/control.md describes every operation and changes
 * with this file. */
#include <unistd.h>

#include "cow/host.h"
#include "tools/control_internal.h"
#include "tools/control_wire.h"

#define BUSY_RETRY_NS (20 * NS_PER_MS)

static int op_shut_down(struct control_call *call, struct error *err)
{
    int r = control_unpack(call, err, "{}");
    if (r < 0)
        return r;
    call->result = json_pack("{s:I}", "pid", (json_int_t)getpid());
    call->services->shut_down(call->services->arg);
    return 0;
}

/* Sizes arrive signed. */
static int check_size(json_int_t size, struct error *err)
{
    return size > 0 ? 0 : err_set(err, -EINVAL, "bad request: size_bytes below 1");
}

/* --- disks --- */

static json_t *disk_json(const struct disk_info *d)
{
    return json_pack(
        "{s:s, s:o, s:o, s:o, s:o, s:b, s:o, s:o, s:o, s:o, s:s, s:b, s:o}", "name",
        d->name,
        "size_bytes", control_number(d->size_bytes), "used_bytes",
        control_number(d->used_bytes), "snapshots", control_number(d->snapshot_count),
        "parent", control_string_or_null(d->parent), "served", d->served, "clients",
        d->is_elsewhere ? json_null() : control_number(d->clients), "owner",
        control_string_or_null(d->owner), "created", control_time(d->created_wall_ns),
        "quota_bytes", d->quota_bytes > 0 ? control_number(d->quota_bytes) : json_null(),
        "pool", d->pool, "moving", d->is_moving, "moved_percent",
        d->is_moving && !d->is_elsewhere ? control_number(d->moved_percent)
                                         : json_null());
}

static async int op_disk_list(struct control_call *call, struct error *err)
{
    int r = control_unpack(call, err, "{}");
    if (r < 0)
        return r;
    cleanup(free_ptr) struct disk_info *infos = NULL;
    size_t count;
    r = disk_list(call->services->host, &infos, &count);
    for (size_t i = 0; i < count && r == 0; i++)
        r = control_send_item(call, disk_json(&infos[i]));
    return r;
}

static int op_disk_show(struct control_call *call, struct error *err)
{
    const char *name;
    int r = control_unpack(call, err, "{s:s}", "name", &name);
    if (r < 0)
        return r;
    struct disk_info info;
    r = disk_show(call->services->host, name, &info, err);
    if (r < 0)
        return r;
    call->result = disk_json(&info);
    return call->result != NULL ? 0 : -ENOMEM;
}

static async int op_disk_create(struct control_call *call, struct error *err)
{
    const char *name, *pool = NULL;
    json_int_t size;
    int r = control_unpack(call, err, "{s:s, s:I, s?s}", "name", &name, "size_bytes",
                           &size, "pool", &pool);
    if (r == 0)
        r = check_size(size, err);
    return r < 0 ? r
                 : disk_create_in_pool(call->services->host, name, (uint64_t)size, pool,
                                       err);
}

static async int op_disk_resize(struct control_call *call, struct error *err)
{
    const char *name;
    json_int_t size;
    int r = control_unpack(call, err, "{s:s, s:I}", "name", &name, "size_bytes", &size);
    if (r == 0)
        r = check_size(size, err);
    return r < 0 ? r : disk_resize(call->services->host, name, (uint64_t)size, err);
}

static async int op_disk_rename(struct control_call *call, struct error *err)
{
    const char *name, *new_name;
    int r = control_unpack(call, err, "{s:s, s:s}", "name", &name, "new_name", &new_name);
    return r < 0 ? r : disk_rename(call->services->host, name, new_name, err);
}

/* quota_bytes 0: none. What is not given stays. */
static async int op_disk_set(struct control_call *call, struct error *err)
{
    const char *name, *pool = NULL;
    json_int_t quota = -1;
    struct host *host = call->services->host;
    int r = control_unpack(call, err, "{s:s, s?I, s?s}", "name", &name, "quota_bytes",
                           &quota, "pool", &pool);
    bool has_quota = json_object_get(call->request, "quota_bytes") != NULL;
    if (r == 0 && has_quota && quota < 0)
        r = err_set(err, -EINVAL, "bad request: quota_bytes below 0");
    if (r == 0 && !has_quota && pool == NULL)
        r = err_set(err, -EINVAL, "bad request: neither quota_bytes nor pool");
    if (r == 0 && pool != NULL)
        r = control_need_cluster(call, err);
    if (r == 0 && pool != NULL)
        r = disk_set_pool(host, name, pool, err);
    if (r == 0 && has_quota)
        r = disk_set_quota(host, name, (uint64_t)quota, err);
    return r;
}

static async int op_disk_remove(struct control_call *call, struct error *err)
{
    const char *name;
    int recursive = 0;
    struct host *host = call->services->host;
    int r = control_unpack(call, err, "{s:s, s?b}", "name", &name, "recursive",
                           &recursive);
    if (r == 0)
        r = disk_remove(host, name, recursive ? DISK_REMOVE_RECURSIVE : 0, err);
    if (r < 0)
        return r;
    uint64_t keep_s = trash_keep(host);
    call->result = json_pack(
        "{s:o, s:o}", "keep_seconds", control_number(keep_s), "restorable_until",
        keep_s > 0 ? control_time(loop_wall_ns(call->services->loop) + keep_s * NS_PER_S)
                   : json_null());
    return call->result != NULL ? 0 : -ENOMEM;
}

static json_t *usage_json(const char *snapshot, const struct disk_usage *usage)
{
    return json_pack("{s:o, s:o, s:o, s:o}", "snapshot",
                     snapshot != NULL ? json_string(snapshot) : json_null(),
                     "referenced_bytes", control_number(usage->referenced_bytes),
                     "exclusive_bytes", control_number(usage->exclusive_bytes),
                     "shared_bytes", control_number(usage->shared_bytes));
}

/* One item for the disk, one for each snapshot; one that goes meanwhile is left out. */
static async int op_disk_usage(struct control_call *call, struct error *err)
{
    cleanup(free_ptr) struct snapshot_info *infos = NULL;
    struct host *host = call->services->host;
    struct disk_usage usage;
    const char *name;
    size_t count = 0;
    int r = control_unpack(call, err, "{s:s}", "name", &name);
    if (r == 0)
        r = disk_usage(host, name, NULL, &usage, err);
    if (r == 0)
        r = snapshot_list(host, name, &infos, &count, err);
    if (r == 0)
        r = control_send_item(call, usage_json(NULL, &usage));
    for (size_t i = 0; i < count && r == 0; i++) {
        if (control_is_abandoned(call))
            return -PLX_ECANCELLED;
        r = disk_usage(host, name, infos[i].name, &usage, err);
        if (r == 0)
            r = control_send_item(call, usage_json(infos[i].name, &usage));
        else if (r == -PLX_EMISSING)
            r = 0;
    }
    return r;
}

/* --- imports --- */

static async int op_import_begin(struct control_call *call, struct error *err)
{
    const char *name;
    int r = control_unpack(call, err, "{s:s}", "name", &name);
    if (r < 0)
        return r;
    if (control_import(call) != NULL)
        return err_set(err, -PLX_EBUSY, "this connection already imports %s",
                       control_import(call));
    r = import_begin(call->services->host, name, err);
    if (r < 0)
        return r;
    r = control_set_import(call, name);
    if (r < 0)
        control_import_discard(call->services, name, NULL);
    return r;
}

/* The command has closed its NBD connection, but the NBD server may not have noticed. */
static async bool busy_wait(const struct control_services *services, uint64_t since_ns)
{
    if (loop_now_ns(services->loop) - since_ns > CONTROL_BUSY_MS * NS_PER_MS)
        return false;
    task_sleep_ns(BUSY_RETRY_NS);
    return true;
}

async int control_import_discard(const struct control_services *services,
                                 const char *name, struct error *err)
{
    uint64_t since_ns = loop_now_ns(services->loop);
    int r;
    do {
        if (err != NULL)
            *err = (struct error){0};
        r = import_discard(services->host, name, err);
    } while (r == -PLX_EBUSY && busy_wait(services, since_ns));
    return r;
}

/* Only the connection that began an import may end it. */
static int check_import(struct control_call *call, const char *name, struct error *err)
{
    const char *import = control_import(call);
    if (import == NULL || strcmp(import, name) != 0)
        return err_set(err, -PLX_EMISSING, "this connection has begun no import %s",
                       name);
    return 0;
}

static async int op_import_publish(struct control_call *call, struct error *err)
{
    const char *name;
    json_int_t size;
    int r = control_unpack(call, err, "{s:s, s:I}", "name", &name, "size_bytes", &size);
    if (r == 0)
        r = check_size(size, err);
    if (r == 0)
        r = check_import(call, name, err);
    if (r < 0)
        return r;
    uint64_t since_ns = loop_now_ns(call->services->loop);
    do {
        *err = (struct error){0};
        r = import_publish(call->services->host, name, (uint64_t)size, err);
    } while (r == -PLX_EBUSY && busy_wait(call->services, since_ns));
    if (r == 0)
        control_set_import(call, NULL);
    return r;
}

static async int op_import_discard(struct control_call *call, struct error *err)
{
    const char *name;
    int r = control_unpack(call, err, "{s:s}", "name", &name);
    if (r == 0)
        r = check_import(call, name, err);
    if (r < 0)
        return r;
    r = control_import_discard(call->services, name, err);
    if (r == 0)
        control_set_import(call, NULL);
    return r;
}

static const struct control_op ops[] = {
    {"status", op_status, CONTROL_READS, NULL},
    {"shut_down", op_shut_down, CONTROL_LOCAL, NULL},
    {"disk.list", op_disk_list, CONTROL_READS, NULL},
    {"disk.show", op_disk_show, CONTROL_READS, NULL},
    {"disk.create", op_disk_create, CONTROL_CHANGES, NULL},
    {"disk.resize", op_disk_resize, CONTROL_CHANGES, "name"},
    {"disk.rename", op_disk_rename, CONTROL_CHANGES, "name"},
    {"disk.set", op_disk_set, CONTROL_CHANGES, "name"},
    {"disk.rm", op_disk_remove, CONTROL_CHANGES, "name"},
    {"disk.usage", op_disk_usage, CONTROL_READS, "name"},
    {"disk.owner", op_disk_owner, CONTROL_READS, NULL},
    {"disk.break", op_disk_break, CONTROL_CHANGES, NULL},
    {"disk.migrate", op_disk_migrate, CONTROL_THERE, "node"},
    {"snapshot.list", op_snapshot_list, CONTROL_READS, NULL},
    {"snapshot.create", op_snapshot_create, CONTROL_CHANGES, "disk"},
    {"snapshot.rollback", op_snapshot_rollback, CONTROL_CHANGES, "disk"},
    {"snapshot.rm", op_snapshot_remove, CONTROL_CHANGES, "disk"},
    {"snapshot.diff", op_snapshot_diff, CONTROL_READS, "disk"},
    {"schedule.get", op_schedule_get, CONTROL_READS, NULL},
    {"schedule.set", op_schedule_set, CONTROL_CHANGES, NULL},
    {"trash.list", op_trash_list, CONTROL_READS, NULL},
    {"trash.restore", op_trash_restore, CONTROL_CHANGES, NULL},
    {"trash.empty", op_trash_empty, CONTROL_CHANGES, NULL},
    {"trash.keep", op_trash_keep, CONTROL_CHANGES, NULL},
    {"clone", op_clone, CONTROL_CHANGES, "disk"},
    {"import.begin", op_import_begin, CONTROL_CHANGES, NULL},
    {"import.publish", op_import_publish, CONTROL_CHANGES, NULL},
    {"import.discard", op_import_discard, CONTROL_CHANGES, NULL},
    {"check", op_check, CONTROL_LOCAL, NULL},
    {"scrub.start", op_scrub_start, CONTROL_LOCAL, NULL},
    {"scrub.pause", op_scrub_pause, CONTROL_LOCAL, NULL},
    {"scrub.status", op_scrub_status, CONTROL_LOCAL, NULL},
    {"node.list", op_node_list, CONTROL_READS, NULL},
    {"node.drain", op_node_drain, CONTROL_CHANGES, NULL},
    {"node.reports", op_node_reports, CONTROL_THERE, "at"},
    {"node.rm", op_node_remove, CONTROL_CHANGES, NULL},
    {"pool.list", op_pool_list, CONTROL_READS, NULL},
    {"pool.set", op_pool_set, CONTROL_CHANGES, NULL},
    {"cluster.token", op_cluster_token, CONTROL_CHANGES, NULL},
};

const struct control_op *control_op_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(ops); i++)
        if (strcmp(ops[i].name, name) == 0)
            return &ops[i];
    return NULL;
}
