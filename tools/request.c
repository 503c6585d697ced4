/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/request.h"

#include <inttypes.h>
#include <stdio.h>

#include "tools/size.h"

int request_run(const struct cli *cli, json_t *request, json_t **ret_ok)
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    int r = client_create(cli->connect, &client, &err);
    if (r < 0)
        json_decref(request);
    else
        r = client_call(client, request, NULL, ret_ok, &err);
    return r < 0 ? cli_fail_error(cli, r, &err) : EXIT_OK;
}

int request_list(const struct cli *cli, json_t *request, const char *aligns,
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

int request_split(const struct cli *cli, const char *text, char **ret_disk,
                  char **ret_snapshot)
{
    struct error err = {0};
    char *disk = NULL, *snapshot = NULL;
    int r = cli_split_snapshot(text, &disk, &snapshot, &err);
    if (r == 0 && snapshot != NULL) {
        *ret_disk = disk;
        *ret_snapshot = snapshot;
        return 0;
    }
    free(disk);
    cli_fail(cli, EXIT_USAGE, "'%s' is not DISK@SNAP", text);
    return -EINVAL;
}

uint64_t reply_number(json_t *object, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(object, key));
    return n > 0 ? (uint64_t)n : 0;
}

const char *reply_string(json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "-";
}

void table_add_number(struct table *table, uint64_t n)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, n);
    table_add(table, text);
}

void table_add_size(struct table *table, uint64_t bytes)
{
    table_add(table, size_text(bytes).text);
}

int print_json(json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2));
    putchar('\n');
    return EXIT_OK;
}

int parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || text[0] < '0' || text[0] > '9' || n < min ||
        n > max)
        return -EINVAL;
    *ret = n;
    return 0;
}
