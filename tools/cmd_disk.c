/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about disks, and clones. */
#include <inttypes.h>
#include <stdio.h>

#include "tools/control_wire.h"
#include "tools/request.h"
#include "tools/size.h"

/* Sends {op, name, size_bytes} with the command's two arguments. */
static int run_with_size(const struct cli *cli, const char *op)
{
    struct error err = {0};
    uint64_t size;
    if (size_parse_disk(cli->args[1], &size, &err) < 0)
        return cli_fail(cli, EXIT_USAGE, "%s", err.text);
    json_t *request = json_pack("{s:s, s:s, s:I}", "op", op, "name", cli->args[0],
                                "size_bytes", (json_int_t)size);
    if (cli->pool != NULL)
        json_object_set_new(request, "pool", json_string(cli->pool));
    return request_run(cli, request, NULL);
}

int cmd_disk_create(const struct cli *cli)
{
    return run_with_size(cli, "disk.create");
}

int cmd_disk_resize(const struct cli *cli)
{
    return run_with_size(cli, "disk.resize");
}

int cmd_disk_rename(const struct cli *cli)
{
    return request_run(cli,
                       json_pack("{s:s, s:s, s:s}", "op", "disk.rename", "name",
                                 cli->args[0], "new_name", cli->args[1]),
                       NULL);
}

/* Not known of a disk that another node serves. */
static void add_clients(struct table *table, json_t *disk)
{
    if (json_is_null(json_object_get(disk, "clients")))
        table_add(table, "-");
    else
        table_add_number(table, reply_number(disk, "clients"));
}

static void fill_disks(struct table *table, json_t *items)
{
    static const char *const head[] = {"NAME",    "SIZE",   "USED", "SNAPSHOTS",
                                       "CLIENTS", "PARENT", "OWNER"};
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
        add_clients(table, disk);
        table_add(table, reply_string(disk, "parent"));
        table_add(table, reply_string(disk, "owner"));
    }
}

int cmd_disk_list(const struct cli *cli)
{
    return request_list(cli, json_pack("{s:s}", "op", "disk.list"), "lrrrrll",
                        fill_disks);
}

static void print_moving(json_t *disk)
{
    if (!json_is_true(json_object_get(disk, "moving")))
        return;
    if (json_is_null(json_object_get(disk, "moved_percent")))
        printf("moving     to that pool\n");
    else
        printf("moving     to that pool: this time %" PRIu64 "%% looked through\n",
               reply_number(disk, "moved_percent"));
}

static void print_disk(json_t *disk)
{
    uint64_t size = reply_number(disk, "size_bytes");
    uint64_t quota = reply_number(disk, "quota_bytes");
    printf("name       %s\n", reply_string(disk, "name"));
    printf("size       %s (%" PRIu64 " bytes)\n", size_text(size).text, size);
    printf("used       %s\n", size_text(reply_number(disk, "used_bytes")).text);
    printf("quota      %s\n", quota > 0 ? size_text(quota).text : "none");
    printf("snapshots  %" PRIu64 "\n", reply_number(disk, "snapshots"));
    printf("parent     %s\n", reply_string(disk, "parent"));
    printf("served     %s\n", json_is_true(json_object_get(disk, "served"))
                                  ? reply_string(disk, "owner")
                                  : "no");
    if (!json_is_null(json_object_get(disk, "clients")))
        printf("clients    %" PRIu64 "\n", reply_number(disk, "clients"));
    printf("pool       %s\n", reply_string(disk, "pool"));
    print_moving(disk);
    printf("created    %s\n", reply_string(disk, "created"));
}

static bool print_usage(const char *disk, json_t *items)
{
    static const char *const head[] = {"HOLDS", "REFERENCED", "EXCLUSIVE", "SHARED"};
    struct table *table = table_create("lrrr");
    if (table == NULL)
        return false;
    for (size_t i = 0; i < ARRAY_LEN(head); i++)
        table_add(table, head[i]);
    size_t i;
    json_t *item;
    json_array_foreach(items, i, item)
    {
        char name[2 * DISK_NAME_MAX + 2];
        const char *snapshot = json_string_value(json_object_get(item, "snapshot"));
        snprintf(name, sizeof name, "%s%s%s", disk, snapshot != NULL ? "@" : "",
                 snapshot != NULL ? snapshot : "");
        table_add(table, name);
        table_add_size(table, reply_number(item, "referenced_bytes"));
        table_add_size(table, reply_number(item, "exclusive_bytes"));
        table_add_size(table, reply_number(item, "shared_bytes"));
    }
    bool good = table_print(table);
    table_destroy(table);
    return good;
}

/* What the disk itself holds beside its other values, its snapshots in an array. */
static int print_disk_json(json_t *disk, json_t *items)
{
    static const char *const keys[] = {"referenced_bytes", "exclusive_bytes",
                                       "shared_bytes"};
    json_t *own = json_array_get(items, 0);
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        json_object_set(disk, keys[i], json_object_get(own, keys[i]));
    json_array_remove(items, 0);
    json_object_set(disk, "snapshot_usage", items);
    return print_json(disk);
}

int cmd_disk_show(const struct cli *cli)
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    cleanup(json_decrefp) json_t *disk = NULL;
    cleanup(json_decrefp) json_t *usage = NULL;
    int r = client_create(cli->connect, &client, &err);
    if (r == 0)
        r = client_call(client,
                        json_pack("{s:s, s:s}", "op", "disk.show", "name", cli->args[0]),
                        NULL, &disk, &err);
    if (r == 0)
        r = client_list(client,
                        json_pack("{s:s, s:s}", "op", "disk.usage", "name", cli->args[0]),
                        &usage, &err);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    if (cli->json)
        return print_disk_json(disk, usage);
    print_disk(disk);
    putchar('\n');
    return print_usage(cli->args[0], usage) ? EXIT_OK
                                            : cli_fail_error(cli, -ENOMEM, &err);
}

int cmd_disk_set(const struct cli *cli)
{
    struct error err = {0};
    uint64_t quota = 0;
    if (cli->quota == NULL && cli->pool == NULL)
        return cli_fail(cli, EXIT_USAGE,
                        "needs --quota SIZE, --quota none or --pool NAME");
    if (cli->quota != NULL && strcmp(cli->quota, "none") != 0) {
        if (size_parse(cli->quota, &quota, &err) < 0)
            return cli_fail(cli, EXIT_USAGE, "--quota: %s", err.text);
        if (quota == 0 || quota > INT64_MAX)
            return cli_fail(cli, EXIT_USAGE, "--quota %s: above 0, or none", cli->quota);
    }
    json_t *request = json_pack("{s:s, s:s, s:s*}", "op", "disk.set", "name",
                                cli->args[0], "pool", cli->pool);
    if (cli->quota != NULL)
        json_object_set_new(request, "quota_bytes", json_integer((json_int_t)quota));
    return request_run(cli, request, NULL);
}

int cmd_disk_remove(const struct cli *cli)
{
    cleanup(json_decrefp) json_t *ok = NULL;
    int r = request_run(cli,
                        json_pack("{s:s, s:s, s:b}", "op", "disk.rm", "name",
                                  cli->args[0], "recursive", cli->recursive),
                        &ok);
    if (r != EXIT_OK)
        return r;
    if (json_is_string(json_object_get(ok, "restorable_until")))
        printf("until %s, or the store is full, 'parallax trash restore %s' brings it "
               "back\n",
               reply_string(ok, "restorable_until"), cli->args[0]);
    return EXIT_OK;
}

int cmd_disk_uri(const struct cli *cli)
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    cleanup(free_ptr) char *uri = NULL;
    int r = client_create(cli->connect, &client, &err);
    if (r == 0)
        r = client_export_uri(client, cli->args[0], &uri, &err);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    printf("%s\n", uri);
    return EXIT_OK;
}

int cmd_clone(const struct cli *cli)
{
    struct error err = {0};
    cleanup(free_ptr) char *disk = NULL;
    cleanup(free_ptr) char *snapshot = NULL;
    uint64_t count = 1;
    if (cli->count != NULL && parse_number(cli->count, 1, CONTROL_CLONES_MAX, &count) < 0)
        return cli_fail(cli, EXIT_USAGE, "--count %s: a number from 1 to %u", cli->count,
                        CONTROL_CLONES_MAX);
    if (cli_split_snapshot(cli->args[0], &disk, &snapshot, &err) < 0)
        return cli_fail(cli, EXIT_USAGE, "%s", err.text);
    json_t *request = json_pack("{s:s, s:s, s:s, s:I}", "op", "clone", "disk", disk,
                                "name", cli->args[1], "count", (json_int_t)count);
    if (snapshot != NULL)
        json_object_set_new(request, "snapshot", json_string(snapshot));
    return request_run(cli, request, NULL);
}
