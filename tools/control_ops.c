/* SPDX-License-Identifier: Apache-2.0 */
/* What can be asked for over the control socket, one function each. doc/control.md
 * describes every operation and changes with this file. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "cow/host.h"
#include "tools/control_internal.h"
#include "tools/control_wire.h"

#define BUSY_RETRY_NS (20 * NS_PER_MS)

/* Fills the variables from what is left of the request; keys nobody asked for are an
 * error, so that a misspelt option is not silently ignored. */
static int unpack(struct control_call *call, struct error *err, const char *format, ...)
{
    json_error_t jerr;
    va_list args;
    va_start(args, format);
    int r = json_vunpack_ex(call->request, &jerr, JSON_STRICT, format, args);
    va_end(args);
    return r == 0 ? 0 : err_set(err, -EINVAL, "bad request: %s", jerr.text);
}

/* Bytes and counts are far below 2^63. */
static json_t *number(uint64_t n)
{
    return json_integer((json_int_t)min_u64(n, INT64_MAX));
}

/* "2026-01-31T12:00:00Z", or null for no time. */
static json_t *wall_time(uint64_t wall_ns)
{
    time_t seconds = (time_t)(wall_ns / NS_PER_S);
    struct tm tm;
    char text[40];
    if (wall_ns == 0 || gmtime_r(&seconds, &tm) == NULL ||
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
        return json_null();
    return json_string(text);
}

static json_t *string_or_null(const char *text)
{
    return text[0] != '\0' ? json_string(text) : json_null();
}

static json_t *uid_text(struct uid uid)
{
    char text[2 * sizeof uid.b + 1];
    for (size_t i = 0; i < sizeof uid.b; i++)
        snprintf(text + 2 * i, 3, "%02x", uid.b[i]);
    return json_string(text);
}

/* Sizes arrive signed. */
static int check_size(json_int_t size, struct error *err)
{
    return size > 0 ? 0 : err_set(err, -EINVAL, "bad request: size_bytes below 1");
}

/* --- the daemon --- */

static int op_status(struct control_call *call, struct error *err)
{
    int r = unpack(call, err, "{}");
    if (r < 0)
        return r;
    struct host_status s;
    host_status(call->services->host, &s);
    call->result = json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:s, s:b, s:[s], s:s, s:I, s:s, s:o, s:o, s:o,"
        " s:o, s:o}",
        "capacity_bytes", number(s.capacity_bytes), "used_bytes", number(s.used_bytes),
        "free_bytes", number(s.free_bytes), "disks", number(s.disk_count), "open_disks",
        number(s.open_disk_count), "snapshots", number(s.snapshot_count), "health",
        s.health, "failed", s.failed, "nbd", call->services->nbd_uri, "directory",
        call->services->directory, "pid", (json_int_t)getpid(), "version",
        PARALLAX_VERSION, "cluster", uid_text(s.cluster), "store", uid_text(s.store),
        "node_cache_bytes", number(s.node_cache_used_bytes), "overlay_bytes",
        number(s.overlay_used_bytes), "retained_bytes", number(s.retained_used_bytes));
    return call->result != NULL ? 0 : -ENOMEM;
}

static int op_shut_down(struct control_call *call, struct error *err)
{
    int r = unpack(call, err, "{}");
    if (r < 0)
        return r;
    call->result = json_pack("{s:I}", "pid", (json_int_t)getpid());
    call->services->shut_down(call->services->arg);
    return 0;
}

/* --- disks --- */

static json_t *disk_json(const struct disk_info *d)
{
    return json_pack("{s:s, s:o, s:o, s:o, s:o, s:b, s:o, s:o, s:o}", "name", d->name,
                     "size_bytes", number(d->size_bytes), "used_bytes",
                     number(d->used_bytes), "snapshots", number(d->snapshot_count),
                     "parent", string_or_null(d->parent), "served", d->served, "clients",
                     number(d->clients), "owner", string_or_null(d->owner), "created",
                     wall_time(d->created_wall_ns));
}

static async int op_disk_list(struct control_call *call, struct error *err)
{
    int r = unpack(call, err, "{}");
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
    int r = unpack(call, err, "{s:s}", "name", &name);
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
    const char *name;
    json_int_t size;
    int r = unpack(call, err, "{s:s, s:I}", "name", &name, "size_bytes", &size);
    if (r == 0)
        r = check_size(size, err);
    return r < 0 ? r : disk_create(call->services->host, name, (uint64_t)size, err);
}

static async int op_disk_resize(struct control_call *call, struct error *err)
{
    const char *name;
    json_int_t size;
    int r = unpack(call, err, "{s:s, s:I}", "name", &name, "size_bytes", &size);
    if (r == 0)
        r = check_size(size, err);
    return r < 0 ? r : disk_resize(call->services->host, name, (uint64_t)size, err);
}

static async int op_disk_rename(struct control_call *call, struct error *err)
{
    const char *name, *new_name;
    int r = unpack(call, err, "{s:s, s:s}", "name", &name, "new_name", &new_name);
    return r < 0 ? r : disk_rename(call->services->host, name, new_name, err);
}

/* --- snapshots and clones --- */

static json_t *snapshot_json(const struct snapshot_info *s)
{
    return json_pack("{s:s, s:o, s:o, s:o, s:b}", "name", s->name, "size_bytes",
                     number(s->size_bytes), "created", wall_time(s->created_wall_ns),
                     "clones", number(s->clone_count), "pending", s->pending);
}

static async int op_snapshot_list(struct control_call *call, struct error *err)
{
    const char *disk;
    int r = unpack(call, err, "{s:s}", "disk", &disk);
    if (r < 0)
        return r;
    cleanup(free_ptr) struct snapshot_info *infos = NULL;
    size_t count;
    r = snapshot_list(call->services->host, disk, &infos, &count, err);
    for (size_t i = 0; i < count && r == 0; i++)
        r = control_send_item(call, snapshot_json(&infos[i]));
    return r;
}

static async int op_snapshot_create(struct control_call *call, struct error *err)
{
    const char *disk, *name;
    int r = unpack(call, err, "{s:s, s:s}", "disk", &disk, "snapshot", &name);
    return r < 0 ? r : snapshot_create(call->services->host, disk, name, err);
}

static async int op_snapshot_rollback(struct control_call *call, struct error *err)
{
    const char *disk, *name;
    int r = unpack(call, err, "{s:s, s:s}", "disk", &disk, "snapshot", &name);
    return r < 0 ? r : snapshot_rollback(call->services->host, disk, name, err);
}

static async int op_clone(struct control_call *call, struct error *err)
{
    const char *disk, *name, *snapshot = NULL;
    json_int_t count = 1;
    int r = unpack(call, err, "{s:s, s?s, s:s, s?I}", "disk", &disk, "snapshot",
                   &snapshot, "name", &name, "count", &count);
    if (r < 0)
        return r;
    if (count < 1 || count > (json_int_t)CONTROL_CLONES_MAX)
        return err_set(err, -EINVAL, "count: from 1 to %u clones", CONTROL_CLONES_MAX);
    return disk_clone(call->services->host, disk, snapshot, name, (uint32_t)count, err);
}

/* --- imports --- */

static async int op_import_begin(struct control_call *call, struct error *err)
{
    const char *name;
    int r = unpack(call, err, "{s:s}", "name", &name);
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
    int r = unpack(call, err, "{s:s, s:I}", "name", &name, "size_bytes", &size);
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
    int r = unpack(call, err, "{s:s}", "name", &name);
    if (r == 0)
        r = check_import(call, name, err);
    if (r < 0)
        return r;
    r = control_import_discard(call->services, name, err);
    if (r == 0)
        control_set_import(call, NULL);
    return r;
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

static async int op_check(struct control_call *call, struct error *err)
{
    int r = unpack(call, err, "{}");
    if (r < 0)
        return r;
    const struct check_callbacks callbacks = {
        .finding = check_finding,
        .progress = check_progress,
        .arg = call,
    };
    struct check_report report = {0};
    r = host_check(call->services->host, &callbacks, &report, err);
    if (r < 0)
        return r;
    call->result = json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "disks", number(report.disks), "snapshots",
        number(report.snapshots), "extents", number(report.extents), "nodes",
        number(report.nodes), "blocks", number(report.blocks), "bytes",
        number(report.bytes), "findings", number(report.findings));
    return call->result != NULL ? 0 : -ENOMEM;
}

static const struct control_op ops[] = {
    {"status", op_status},
    {"shut_down", op_shut_down},
    {"disk.list", op_disk_list},
    {"disk.show", op_disk_show},
    {"disk.create", op_disk_create},
    {"disk.resize", op_disk_resize},
    {"disk.rename", op_disk_rename},
    {"snapshot.list", op_snapshot_list},
    {"snapshot.create", op_snapshot_create},
    {"snapshot.rollback", op_snapshot_rollback},
    {"clone", op_clone},
    {"import.begin", op_import_begin},
    {"import.publish", op_import_publish},
    {"import.discard", op_import_discard},
    {"check", op_check},
};

const struct control_op *control_op_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(ops); i++)
        if (strcmp(ops[i].name, name) == 0)
            return &ops[i];
    return NULL;
}
