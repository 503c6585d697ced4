/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about disks, snapshots and clones. */
#include <inttypes.h>
#include <stdio.h>

#include "tools/cli.h"
#include "tools/client.h"
#include "tools/control_wire.h"
#include "tools/size.h"
#include "tools/table.h"

/* One request whose reply says nothing; request is taken over. */
static int run_request(const struct cli *cli, json_t *request)
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    int r = client_create(cli->connect, &client, &err);
    if (r < 0)
        json_decref(request);
    else
        r = client_call(client, request, NULL, NULL, &err);
    return r < 0 ? cli_fail_error(cli, r, &err) : EXIT_OK;
}

static uint64_t get_number(json_t *object, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(object, key));
    return n > 0 ? (uint64_t)n : 0;
}

/* "-" stands for null. */
static const char *get_string(json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "-";
}

static void add_number(struct table *table, uint64_t n)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, n);
    table_add(table, text);
}

static int print_json(json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2));
    putchar('\n');
    return EXIT_OK;
}

/* Asks for a list and prints it as JSON, or with `print`. */
static int run_list(const struct cli *cli, json_t *request, const char *aligns,
                    void (*fill)(struct table *table, json_t *items))
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    cleanup(json_decrefp) json_t *items = NULL;
    int r = client_create(cli->connect, &client, &err);
    if (r < 0)
        json_decref(request);
    else
        r = client_list(client, request, &items, &err);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    if (cli->json)
        return print_json(items);
    struct table *table = table_create(aligns);
    if (table == NULL)
        return cli_fail_error(cli, -ENOMEM, &err);
    fill(table, items);
    bool good = table_print(table);
    table_destroy(table);
    return good ? EXIT_OK : cli_fail_error(cli, -ENOMEM, &err);
}

/* --- disks --- */

/* Sends {op, name, size_bytes} with the command's two arguments. */
static int run_with_size(const struct cli *cli, const char *op)
{
    struct error err = {0};
    uint64_t size;
    if (size_parse_disk(cli->args[1], &size, &err) < 0)
        return cli_fail(cli, EXIT_USAGE, "%s", err.text);
    return run_request(cli, json_pack("{s:s, s:s, s:I}", "op", op, "name", cli->args[0],
                                      "size_bytes", (json_int_t)size));
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
    return run_request(cli, json_pack("{s:s, s:s, s:s}", "op", "disk.rename", "name",
                                      cli->args[0], "new_name", cli->args[1]));
}

static void fill_disks(struct table *table, json_t *items)
{
    static const char *const head[] = {"NAME",      "SIZE",    "USED",
                                       "SNAPSHOTS", "CLIENTS", "PARENT"};
    for (size_t i = 0; i < ARRAY_LEN(head); i++)
        table_add(table, head[i]);
    size_t i;
    json_t *disk;
    json_array_foreach(items, i, disk)
    {
        table_add(table, get_string(disk, "name"));
        table_add(table, size_text(get_number(disk, "size_bytes")).text);
        table_add(table, size_text(get_number(disk, "used_bytes")).text);
        add_number(table, get_number(disk, "snapshots"));
        add_number(table, get_number(disk, "clients"));
        table_add(table, get_string(disk, "parent"));
    }
}

int cmd_disk_list(const struct cli *cli)
{
    return run_list(cli, json_pack("{s:s}", "op", "disk.list"), "lrrrrl", fill_disks);
}

static void print_disk(json_t *disk)
{
    uint64_t size = get_number(disk, "size_bytes");
    printf("name       %s\n", get_string(disk, "name"));
    printf("size       %s (%" PRIu64 " bytes)\n", size_text(size).text, size);
    printf("used       %s\n", size_text(get_number(disk, "used_bytes")).text);
    printf("snapshots  %" PRIu64 "\n", get_number(disk, "snapshots"));
    printf("parent     %s\n", get_string(disk, "parent"));
    printf("served     %s\n", json_is_true(json_object_get(disk, "served"))
                                  ? get_string(disk, "owner")
                                  : "no");
    printf("clients    %" PRIu64 "\n", get_number(disk, "clients"));
    printf("created    %s\n", get_string(disk, "created"));
}

int cmd_disk_show(const struct cli *cli)
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    cleanup(json_decrefp) json_t *disk = NULL;
    int r = client_create(cli->connect, &client, &err);
    if (r == 0)
        r = client_call(client,
                        json_pack("{s:s, s:s}", "op", "disk.show", "name", cli->args[0]),
                        NULL, &disk, &err);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    if (cli->json)
        return print_json(disk);
    print_disk(disk);
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

/* --- snapshots and clones --- */

/* Sends {op, disk, snapshot} for the argument DISK@SNAP. */
static int run_with_snapshot(const struct cli *cli, const char *op)
{
    struct error err = {0};
    cleanup(free_ptr) char *disk = NULL;
    cleanup(free_ptr) char *snapshot = NULL;
    int r = cli_split_snapshot(cli->args[0], &disk, &snapshot, &err);
    if (r < 0 || snapshot == NULL)
        return cli_fail(cli, EXIT_USAGE, "'%s' is not DISK@SNAP", cli->args[0]);
    return run_request(
        cli, json_pack("{s:s, s:s, s:s}", "op", op, "disk", disk, "snapshot", snapshot));
}

int cmd_snapshot_create(const struct cli *cli)
{
    return run_with_snapshot(cli, "snapshot.create");
}

int cmd_snapshot_rollback(const struct cli *cli)
{
    return run_with_snapshot(cli, "snapshot.rollback");
}

static void fill_snapshots(struct table *table, json_t *items)
{
    static const char *const head[] = {"NAME", "SIZE", "CLONES", "CREATED"};
    for (size_t i = 0; i < ARRAY_LEN(head); i++)
        table_add(table, head[i]);
    size_t i;
    json_t *snapshot;
    json_array_foreach(items, i, snapshot)
    {
        table_add(table, get_string(snapshot, "name"));
        table_add(table, size_text(get_number(snapshot, "size_bytes")).text);
        add_number(table, get_number(snapshot, "clones"));
        table_add(table, get_string(snapshot, "created"));
    }
}

int cmd_snapshot_list(const struct cli *cli)
{
    return run_list(cli,
                    json_pack("{s:s, s:s}", "op", "snapshot.list", "disk", cli->args[0]),
                    "lrrl", fill_snapshots);
}

static bool parse_count(const char *text, json_int_t *ret)
{
    char *end;
    errno = 0;
    unsigned long n = strtoul(text, &end, 10);
    if (errno != 0 || *end != '\0' || text[0] < '0' || text[0] > '9' || n < 1 ||
        n > CONTROL_CLONES_MAX)
        return false;
    *ret = (json_int_t)n;
    return true;
}

int cmd_clone(const struct cli *cli)
{
    struct error err = {0};
    cleanup(free_ptr) char *disk = NULL;
    cleanup(free_ptr) char *snapshot = NULL;
    json_int_t count = 1;
    if (cli->count != NULL && !parse_count(cli->count, &count))
        return cli_fail(cli, EXIT_USAGE, "--count %s: a number from 1 to %u", cli->count,
                        CONTROL_CLONES_MAX);
    if (cli_split_snapshot(cli->args[0], &disk, &snapshot, &err) < 0)
        return cli_fail(cli, EXIT_USAGE, "%s", err.text);
    json_t *request = json_pack("{s:s, s:s, s:s, s:I}", "op", "clone", "disk", disk,
                                "name", cli->args[1], "count", count);
    if (snapshot != NULL)
        json_object_set_new(request, "snapshot", json_string(snapshot));
    return run_request(cli, request);
}
