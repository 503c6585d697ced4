/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about snapshots. */
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "tools/request.h"
#include "tools/size.h"
#include "tools/span.h"

/* Sends {op, disk, snapshot} for the argument DISK@SNAP. */
static int run_with_snapshot(const struct cli *cli, const char *op)
{
    cleanup(free_ptr) char *disk = NULL;
    cleanup(free_ptr) char *snapshot = NULL;
    if (request_split(cli, cli->args[0], &disk, &snapshot) < 0)
        return EXIT_USAGE;
    return request_run(
        cli, json_pack("{s:s, s:s, s:s}", "op", op, "disk", disk, "snapshot", snapshot),
        NULL);
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
        table_add(table, reply_string(snapshot, "name"));
        table_add_size(table, reply_number(snapshot, "size_bytes"));
        table_add_number(table, reply_number(snapshot, "clones"));
        table_add(table, reply_string(snapshot, "created"));
    }
}

int cmd_snapshot_list(const struct cli *cli)
{
    return request_list(
        cli, json_pack("{s:s, s:s}", "op", "snapshot.list", "disk", cli->args[0]), "lrrl",
        fill_snapshots);
}

/* --- rm --- */

static json_t *request_old(const struct cli *cli, struct error *err)
{
    uint64_t keep, before_s;
    json_t *request = json_pack("{s:s, s:s}", "op", "snapshot.rm", "disk", cli->args[0]);
    if (cli->keep_last != NULL) {
        if (parse_number(cli->keep_last, 0, INT32_MAX, &keep) < 0)
            err_set(err, -EINVAL, "--keep-last %s: a number", cli->keep_last);
        else
            json_object_set_new(request, "keep_last", json_integer((json_int_t)keep));
    } else if (moment_parse(cli->older_than, (uint64_t)time(NULL) + 1, &before_s, err) ==
               0) { /* the second that has begun is over: 0 means all */
        json_object_set_new(request, "before_s", json_integer((json_int_t)before_s));
    }
    return request;
}

static int remove_old(const struct cli *cli)
{
    struct error err = {0};
    cleanup(json_decrefp) json_t *ok = NULL;
    if (cli->keep_last != NULL && cli->older_than != NULL)
        return cli_fail(cli, EXIT_USAGE, "either --keep-last or --older-than");
    if (strchr(cli->args[0], '@') != NULL)
        return cli_fail(cli, EXIT_USAGE, "'%s': with an option it is the DISK",
                        cli->args[0]);
    json_t *request = request_old(cli, &err);
    if (err.code < 0) {
        json_decref(request);
        return cli_fail(cli, EXIT_USAGE, "%s", err.text);
    }
    int r = request_run(cli, request, &ok);
    if (r == EXIT_OK)
        printf("removed %" PRIu64 "\n", reply_number(ok, "removed"));
    return r;
}

int cmd_snapshot_remove(const struct cli *cli)
{
    if (cli->keep_last != NULL || cli->older_than != NULL)
        return remove_old(cli);
    if (strchr(cli->args[0], '@') == NULL)
        return cli_fail(cli, EXIT_USAGE,
                        "'%s' is not DISK@SNAP; old ones go with --keep-last or "
                        "--older-than",
                        cli->args[0]);
    return run_with_snapshot(cli, "snapshot.rm");
}

/* --- diff --- */

struct diff {
    bool json;
    uint64_t count, bytes;
};

static void print_range(void *arg, json_t *item)
{
    struct diff *diff = arg;
    uint64_t offset = reply_number(item, "offset"), len = reply_number(item, "length");
    bool is_zero = json_is_true(json_object_get(item, "zero"));
    if (diff->json) {
        printf("%s{\"offset\": %" PRIu64 ", \"length\": %" PRIu64 ", \"zero\": %s}",
               diff->count > 0 ? ",\n  " : "\n  ", offset, len,
               is_zero ? "true" : "false");
    } else {
        if (diff->count == 0)
            printf("%16s %14s\n", "OFFSET", "LENGTH");
        printf("%16" PRIu64 " %14" PRIu64 "%s\n", offset, len, is_zero ? "  zeros" : "");
    }
    diff->count++;
    diff->bytes += len;
}

static int run_diff(const struct cli *cli, json_t *request)
{
    struct error err = {0};
    struct diff diff = {.json = cli->json};
    const struct client_callbacks callbacks = {.item = print_range, .arg = &diff};
    cleanup(client_destroyp) struct client *client = NULL;
    int r = client_create(cli->connect, &client, &err);
    if (r < 0) {
        json_decref(request);
        return cli_fail_error(cli, r, &err);
    }
    if (cli->json)
        putchar('[');
    r = client_call(client, request, &callbacks, NULL, &err);
    if (cli->json)
        printf("%s]\n", diff.count > 0 ? "\n" : "");
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    if (!cli->json)
        printf("%" PRIu64 " ranges, %s\n", diff.count, size_text(diff.bytes).text);
    return EXIT_OK;
}

int cmd_snapshot_diff(const struct cli *cli)
{
    struct error err = {0};
    cleanup(free_ptr) char *disk = NULL;
    cleanup(free_ptr) char *from = NULL;
    cleanup(free_ptr) char *to_disk = NULL;
    cleanup(free_ptr) char *to = NULL;
    if (request_split(cli, cli->args[0], &disk, &from) < 0)
        return EXIT_USAGE;
    if (cli->arg_count == 2 && cli_split_snapshot(cli->args[1], &to_disk, &to, &err) < 0)
        return cli_fail(cli, EXIT_USAGE, "%s", err.text);
    if (to_disk != NULL && strcmp(disk, to_disk) != 0)
        return cli_fail(cli, EXIT_USAGE, "%s and %s: snapshots of two disks", disk,
                        to_disk);
    json_t *request = json_pack("{s:s, s:s, s:s}", "op", "snapshot.diff", "disk", disk,
                                "from", from);
    if (to != NULL)
        json_object_set_new(request, "to", json_string(to));
    return run_diff(cli, request);
}

/* --- schedule --- */

static void fill_rules(struct table *table, json_t *items)
{
    table_add(table, "EVERY");
    table_add(table, "KEEP");
    size_t i;
    json_t *rule;
    json_array_foreach(items, i, rule)
    {
        table_add(table, span_text(reply_number(rule, "every_seconds")).text);
        table_add_number(table, reply_number(rule, "keep"));
    }
}

static int add_rule(json_t *rules, const struct cli_rule *rule, struct error *err)
{
    uint64_t every_s, keep;
    if (rule->keep == NULL)
        return err_set(err, -EINVAL, "--every %s: needs a --keep N behind it",
                       rule->every);
    int r = span_parse(rule->every, &every_s, err);
    if (r == 0 && every_s == 0)
        r = err_set(err, -EINVAL, "--every %s: above 0", rule->every);
    if (r == 0 && parse_number(rule->keep, 1, INT32_MAX, &keep) < 0)
        r = err_set(err, -EINVAL, "--keep %s: a number above 0", rule->keep);
    if (r == 0)
        json_array_append_new(rules,
                              json_pack("{s:I, s:I}", "every_seconds",
                                        (json_int_t)every_s, "keep", (json_int_t)keep));
    return r;
}

int cmd_snapshot_schedule(const struct cli *cli)
{
    struct error err = {0};
    if (cli->none && cli->rule_count > 0)
        return cli_fail(cli, EXIT_USAGE, "either --every or --none");
    if (!cli->none && cli->rule_count == 0)
        return request_list(
            cli, json_pack("{s:s, s:s}", "op", "schedule.get", "disk", cli->args[0]),
            "lr", fill_rules);
    json_t *rules = json_array();
    int r = 0;
    for (int i = 0; i < cli->rule_count && r == 0; i++)
        r = add_rule(rules, &cli->rules[i], &err);
    if (r < 0) {
        json_decref(rules);
        return cli_fail(cli, EXIT_USAGE, "%s", err.text);
    }
    return request_run(cli,
                       json_pack("{s:s, s:s, s:o}", "op", "schedule.set", "disk",
                                 cli->args[0], "rules", rules),
                       NULL);
}
