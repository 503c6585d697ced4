/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about removed disks. */
#include <stdio.h>

#include "tools/request.h"
#include "tools/span.h"

static void fill_trash(struct table *table, json_t *items)
{
    static const char *const head[] = {"NAME",      "SIZE",    "USED",
                                       "SNAPSHOTS", "REMOVED", "RESTORABLE UNTIL"};
    for (size_t i = 0; i < ARRAY_LEN(head); i++)
        table_add(table, head[i]);
    size_t i;
    json_t *disk;
    json_array_foreach(items, i, disk)
    {
        table_add(table, reply_string(disk, "name"));
        table_add_size(table, reply_number(disk, "size_bytes"));
        table_add_size(table, reply_number(disk, "used_bytes"));
        table_add_number(table, reply_number(disk, "snapshots"));
        table_add(table, reply_string(disk, "removed"));
        table_add(table, reply_string(disk, "restorable_until"));
    }
}

int cmd_trash_list(const struct cli *cli)
{
    return request_list(cli, json_pack("{s:s}", "op", "trash.list"), "lrrrll",
                        fill_trash);
}

int cmd_trash_restore(const struct cli *cli)
{
    json_t *request = json_pack("{s:s, s:s}", "op", "trash.restore", "name",
                                cli->args[0]);
    if (cli->arg_count == 2)
        json_object_set_new(request, "new_name", json_string(cli->args[1]));
    return request_run(cli, request, NULL);
}

int cmd_trash_empty(const struct cli *cli)
{
    json_t *request = json_pack("{s:s}", "op", "trash.empty");
    if (cli->arg_count == 1)
        json_object_set_new(request, "name", json_string(cli->args[0]));
    return request_run(cli, request, NULL);
}

int cmd_trash_keep(const struct cli *cli)
{
    struct error err = {0};
    uint64_t seconds;
    if (span_parse(cli->args[0], &seconds, &err) < 0)
        return cli_fail(cli, EXIT_USAGE, "%s", err.text);
    return request_run(
        cli, json_pack("{s:s, s:I}", "op", "trash.keep", "seconds", (json_int_t)seconds),
        NULL);
}
