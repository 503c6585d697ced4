/* SPDX-License-Identifier: Apache-2.0 */
/* Operations on snapshots, what they differ in, when they are made; and clones. */
#include "cow/host.h"
#include "tools/control_internal.h"
#include "tools/control_wire.h"

static json_t *snapshot_json(const struct snapshot_info *s)
{
    return json_pack("{s:s, s:o, s:o, s:o, s:b}", "name", s->name, "size_bytes",
                     control_number(s->size_bytes), "created",
                     control_time(s->created_wall_ns), "clones",
                     control_number(s->clone_count), "pending", s->pending);
}

async int op_snapshot_list(struct control_call *call, struct error *err)
{
    const char *disk;
    int r = control_unpack(call, err, "{s:s}", "disk", &disk);
    if (r < 0)
        return r;
    cleanup(free_ptr) struct snapshot_info *infos = NULL;
    size_t count;
    r = snapshot_list(call->services->host, disk, &infos, &count, err);
    for (size_t i = 0; i < count && r == 0; i++)
        r = control_send_item(call, snapshot_json(&infos[i]));
    return r;
}

async int op_snapshot_create(struct control_call *call, struct error *err)
{
    const char *disk, *name;
    int r = control_unpack(call, err, "{s:s, s:s}", "disk", &disk, "snapshot", &name);
    return r < 0 ? r : snapshot_create(call->services->host, disk, name, err);
}

async int op_snapshot_rollback(struct control_call *call, struct error *err)
{
    const char *disk, *name;
    int r = control_unpack(call, err, "{s:s, s:s}", "disk", &disk, "snapshot", &name);
    return r < 0 ? r : snapshot_rollback(call->services->host, disk, name, err);
}

async int op_clone(struct control_call *call, struct error *err)
{
    const char *disk, *name, *snapshot = NULL;
    json_int_t count = 1;
    int r = control_unpack(call, err, "{s:s, s?s, s:s, s?I}", "disk", &disk, "snapshot",
                           &snapshot, "name", &name, "count", &count);
    if (r < 0)
        return r;
    if (count < 1 || count > (json_int_t)CONTROL_CLONES_MAX)
        return err_set(err, -EINVAL, "count: from 1 to %u clones", CONTROL_CLONES_MAX);
    return disk_clone(call->services->host, disk, snapshot, name, (uint32_t)count, err);
}

/* --- removing --- */

/* Names, malloc'd in an array that the strings do not belong to. */
struct names {
    const char **names;
    uint32_t count;
};

/* All but the newest keep_last, or those made before before_s; oldest first. */
static int choose_old(const struct snapshot_info *infos, size_t count,
                      json_int_t keep_last, json_int_t before_s, struct names *ret)
{
    ret->names = calloc(count + 1, sizeof *ret->names);
    if (ret->names == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        bool is_old = keep_last >= 0
                          ? count - i > (uint64_t)keep_last
                          : infos[i].created_wall_ns / NS_PER_S < (uint64_t)before_s;
        if (is_old)
            ret->names[ret->count++] = infos[i].name;
    }
    return 0;
}

/* In commands of a bounded size. */
static async int remove_names(struct control_call *call, const char *disk,
                              const struct names *names, struct error *err)
{
    int r = 0;
    for (uint32_t at = 0, n; at < names->count && r == 0; at += n) {
        n = min_u32(names->count - at, CONTROL_REMOVES_AT_ONCE);
        r = snapshot_remove(call->services->host, disk, names->names + at, n, err);
        /* Whoever has gone does not undo the request. */
        for (uint32_t i = 0; i < n && r == 0; i++)
            (void)control_send_item(call,
                                    json_pack("{s:s}", "snapshot", names->names[at + i]));
    }
    if (r == 0)
        call->result = json_pack("{s:o}", "removed", control_number(names->count));
    return r == 0 && call->result == NULL ? -ENOMEM : r;
}

static async int remove_old(struct control_call *call, const char *disk,
                            json_int_t keep_last, json_int_t before_s, struct error *err)
{
    cleanup(free_ptr) struct snapshot_info *infos = NULL;
    struct names names = {0};
    size_t count = 0;
    int r = snapshot_list(call->services->host, disk, &infos, &count, err);
    if (r == 0)
        r = choose_old(infos, count, keep_last, before_s, &names);
    if (r == 0)
        r = remove_names(call, disk, &names, err);
    free(names.names);
    return r;
}

/* One snapshot, or the old ones of a disk. */
async int op_snapshot_remove(struct control_call *call, struct error *err)
{
    const char *disk, *name = NULL;
    json_int_t keep_last = -1, before_s = -1;
    int r = control_unpack(call, err, "{s:s, s?s, s?I, s?I}", "disk", &disk, "snapshot",
                           &name, "keep_last", &keep_last, "before_s", &before_s);
    if (r < 0)
        return r;
    if ((name != NULL) + (keep_last >= 0) + (before_s >= 0) != 1)
        return err_set(err, -EINVAL,
                       "bad request: one of snapshot, keep_last and before_s");
    if (name != NULL) {
        const struct names one = {.names = &name, .count = 1};
        return remove_names(call, disk, &one, err);
    }
    /* Once more if somebody else removes snapshots at the same time. */
    for (int tries = 0; tries < 3; tries++) {
        if (err != NULL)
            *err = (struct error){0};
        r = remove_old(call, disk, keep_last, before_s, err);
        if (r != -PLX_EMISSING)
            break;
    }
    return r;
}

/* --- what differs --- */

#define DIFF_ENOUGH 1 /* what ends a diff that has found as many ranges as asked for */

struct diff {
    struct control_call *call;
    uint64_t left; /* ranges wanted */
};

static int send_range(void *arg, uint64_t offset_bytes, uint64_t len_bytes, bool is_zero)
{
    struct diff *diff = arg;
    int r = control_send_item(
        diff->call, json_pack("{s:o, s:o, s:b}", "offset", control_number(offset_bytes),
                              "length", control_number(len_bytes), "zero", is_zero));
    if (r == 0 && --diff->left == 0)
        return DIFF_ENOUGH;
    return r;
}

async int op_snapshot_diff(struct control_call *call, struct error *err)
{
    const char *disk, *from, *to = NULL;
    json_int_t max = INT64_MAX;
    int r = control_unpack(call, err, "{s:s, s:s, s?s, s?I}", "disk", &disk, "from",
                           &from, "to", &to, "max", &max);
    if (r == 0 && max < 1)
        r = err_set(err, -EINVAL, "bad request: max below 1");
    if (r < 0)
        return r;
    struct diff diff = {.call = call, .left = (uint64_t)max};
    r = snapshot_diff(call->services->host, disk, from, to, send_range, &diff, err);
    return r == DIFF_ENOUGH ? 0 : r;
}

/* --- schedules --- */

async int op_schedule_get(struct control_call *call, struct error *err)
{
    const char *disk;
    struct snapshot_rule rules[SCHEDULE_RULES_MAX];
    uint32_t count = 0;
    int r = control_unpack(call, err, "{s:s}", "disk", &disk);
    if (r == 0)
        r = schedule_get(call->services->host, disk, rules, &count, err);
    for (uint32_t i = 0; i < count && r == 0; i++)
        r = control_send_item(call, json_pack("{s:o, s:o}", "every_seconds",
                                              control_number(rules[i].every_s), "keep",
                                              control_number(rules[i].keep)));
    return r;
}

static int read_rule(json_t *item, struct snapshot_rule *ret, struct error *err)
{
    json_error_t jerr;
    json_int_t every, keep;
    if (json_unpack_ex(item, &jerr, JSON_STRICT, "{s:I, s:I}", "every_seconds", &every,
                       "keep", &keep) < 0)
        return err_set(err, -EINVAL, "bad request: a rule: %s", jerr.text);
    if (every < 1 || keep < 1 || keep > UINT32_MAX)
        return err_set(err, -EINVAL, "a rule needs a time and a count above 0");
    *ret = (struct snapshot_rule){.every_s = (uint64_t)every, .keep = (uint32_t)keep};
    return 0;
}

/* Replaces all rules; none end the schedule. */
async int op_schedule_set(struct control_call *call, struct error *err)
{
    const char *disk;
    json_t *items;
    struct snapshot_rule rules[SCHEDULE_RULES_MAX];
    int r = control_unpack(call, err, "{s:s, s:o}", "disk", &disk, "rules", &items);
    if (r < 0)
        return r;
    size_t count = json_array_size(items);
    if (!json_is_array(items) || count > SCHEDULE_RULES_MAX)
        return err_set(err, -EINVAL, "a schedule has at most %u rules",
                       SCHEDULE_RULES_MAX);
    for (size_t i = 0; i < count && r == 0; i++)
        r = read_rule(json_array_get(items, i), &rules[i], err);
    if (r < 0)
        return r;
    return schedule_set(call->services->host, disk, rules, (uint32_t)count, err);
}
