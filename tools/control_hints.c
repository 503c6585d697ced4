/* SPDX-License-Identifier: Apache-2.0 */
/* What to do about an error: said where the cause is not in the request but in the state
 * of the store. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "cow/host.h"
#include "tools/control_internal.h"
#include "tools/size.h"

static void attr_printf(3, 4) append(char *text, size_t cap, const char *fmt, ...)
{
    size_t len = strlen(text);
    va_list args;
    va_start(args, fmt);
    vsnprintf(text + len, cap - len, fmt, args);
    va_end(args);
}

void control_describe_room(struct host *host, char *ret, size_t cap)
{
    struct host_status s;
    host_status(host, &s);
    snprintf(ret, cap, "to make room: ");
    if (s.trash_bytes > 0)
        append(ret, cap, "'parallax trash empty' (%s), ", size_text(s.trash_bytes).text);
    if (s.snapshot_count > 0)
        append(ret, cap, "'parallax snapshot rm' (there are %" PRIu64 "), ",
               s.snapshot_count);
    append(ret, cap, "'parallax disk rm', fstrim in guests, or %s",
           s.withheld_bytes > 0 ? "space in the file system of the store"
                                : "a larger --capacity");
    if (s.reclaim_pending > 0 || s.dead_bytes >= MIB)
        append(ret, cap, "; %s that nobody needs any more come back as they are needed",
               size_text(s.dead_bytes).text);
}

/* The disk a request is about; NULL: none. */
static const char *disk_of(const struct control_call *call)
{
    const char *name = json_string_value(json_object_get(call->request, "disk"));
    if (name == NULL)
        name = json_string_value(json_object_get(call->request, "name"));
    return name;
}

static bool is_in_trash(struct host *host, const char *name)
{
    cleanup(free_ptr) struct trash_info *infos = NULL;
    size_t count = 0;
    if (trash_list(host, &infos, &count) < 0)
        return false;
    for (size_t i = 0; i < count; i++)
        if (strcmp(infos[i].name, name) == 0)
            return true;
    return false;
}

static bool is_disk(struct host *host, const char *name)
{
    struct disk_info info;
    return disk_show(host, name, &info, NULL) == 0;
}

void control_add_hint(const struct control_call *call, int code, struct error *err)
{
    struct host *host = call->services->host;
    const char *disk = disk_of(call);
    char room[256];
    if (err->code == 0)
        err_set(err, code, "%s", err_text(code));
    if (code == -PLX_EMISSING && disk != NULL && !is_disk(host, disk) &&
        is_in_trash(host, disk)) {
        append(err->text, sizeof err->text,
               "; it was removed: 'parallax trash restore %s' brings it back", disk);
    } else if (code == -PLX_EFULL || code == -ENOSPC) {
        control_describe_room(host, room, sizeof room);
        append(err->text, sizeof err->text, "; %s", room);
    }
}
