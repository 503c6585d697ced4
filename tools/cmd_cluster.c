/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about the cluster: making and joining one, its nodes and pools, and who owns a
 * disk. */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "tools/client.h"
#include "tools/request.h"
#include "tools/size.h"

#define TOKEN_MINUTES     60U
#define TOKEN_MINUTES_MAX (7U * 24 * 60)
#define COPIES_MAX        255U
#define DRAIN_SAY_S       10U /* where there is no terminal */

/* --- making and joining --- */

struct arguments {
    const char *argv[24 + CLI_ARGS_MAX];
    int count;
};

static void add(struct arguments *a, const char *name, const char *value)
{
    if (value == NULL)
        return;
    a->argv[a->count++] = name;
    a->argv[a->count++] = value;
}

/* The daemon's program does it, and ends. */
static int run_daemon(const struct cli *cli, struct arguments *a)
{
    add(a, "--listen", cli->listen);
    add(a, "--domain", cli->domain);
    add(a, "--capacity", cli->capacity);
    add(a, "--token", cli->token);
    if (cli->witness)
        a->argv[a->count++] = "--witness";
    a->argv[a->count++] = "--";
    a->argv[a->count++] = cli->args[0];
    return cli_exec(cli, "parallaxd", (char *const *)(uintptr_t)a->argv);
}

int cmd_cluster_init(const struct cli *cli)
{
    struct arguments a = {.argv = {"parallaxd", "--cluster-init"}, .count = 2};
    if (cli->listen == NULL)
        return cli_fail(cli, EXIT_USAGE,
                        "needs --listen HOST:PORT, where other nodes reach this one");
    return run_daemon(cli, &a);
}

int cmd_cluster_join(const struct cli *cli)
{
    struct arguments a = {.argv = {"parallaxd"}, .count = 1};
    if (cli->token == NULL)
        return cli_fail(cli, EXIT_USAGE,
                        "needs --token TOKEN, which 'parallax cluster token' makes on a "
                        "node of the cluster");
    if (cli->listen == NULL)
        return cli_fail(cli, EXIT_USAGE,
                        "needs --listen HOST:PORT, where other nodes reach this one");
    add(&a, "--cluster-join", cli->args[1]);
    return run_daemon(cli, &a);
}

int cmd_cluster_addresses(const struct cli *cli)
{
    struct arguments a = {.argv = {"parallaxd", "--cluster-addresses", "--"}, .count = 3};
    for (int i = 0; i < cli->arg_count; i++)
        a.argv[a.count++] = cli->args[i];
    return cli_exec(cli, "parallaxd", (char *const *)(uintptr_t)a.argv);
}

int cmd_cluster_token(const struct cli *cli)
{
    cleanup(json_decrefp) json_t *ok = NULL;
    uint64_t minutes = TOKEN_MINUTES;
    if (cli->valid != NULL &&
        parse_number(cli->valid, 1, TOKEN_MINUTES_MAX, &minutes) < 0)
        return cli_fail(cli, EXIT_USAGE, "--valid %s: minutes, from 1 to %u", cli->valid,
                        TOKEN_MINUTES_MAX);
    int r = request_run(
        cli,
        json_pack("{s:s, s:I}", "op", "cluster.token", "minutes", (json_int_t)minutes),
        &ok);
    if (r != EXIT_OK)
        return r;
    if (cli->json)
        return print_json(ok);
    printf("%s\n", reply_string(ok, "token"));
    return EXIT_OK;
}

/* --- nodes --- */

static bool is_true(json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

/* "up", "up, draining", "down, witness" */
static void describe_state(json_t *node, char *ret, size_t cap)
{
    const char *state = reply_string(node, "state");
    bool shows_draining = is_true(node, "draining") && strcmp(state, "draining") != 0;
    snprintf(ret, cap, "%s%s%s%s", state, shows_draining ? ", draining" : "",
             is_true(node, "witness") ? ", witness" : "",
             is_true(node, "connected") || strcmp(state, "up") != 0 ? ""
                                                                    : ", not connected");
}

static void fill_nodes(struct table *table, json_t *items)
{
    static const char *const head[] = {"NODE", "ADDRESS",  "DOMAIN", "STATE",
                                       "ROLE", "CAPACITY", "GROUPS", "DISKS"};
    for (size_t i = 0; i < ARRAY_LEN(head); i++)
        table_add(table, head[i]);
    size_t i;
    json_t *node;
    json_array_foreach(items, i, node)
    {
        char state[64], groups[64];
        uint64_t missing = reply_number(node, "groups_not_whole");
        describe_state(node, state, sizeof state);
        snprintf(groups, sizeof groups, "%" PRIu64, reply_number(node, "groups"));
        if (missing > 0)
            snprintf(groups, sizeof groups, "%" PRIu64 " (%" PRIu64 " not whole)",
                     reply_number(node, "groups"), missing);
        table_add_number(table, reply_number(node, "node"));
        table_add(table, reply_string(node, "address"));
        table_add(table, reply_string(node, "domain"));
        table_add(table, state);
        table_add(table, reply_string(node, "role"));
        table_add_size(table, reply_number(node, "capacity_bytes"));
        table_add(table, groups);
        table_add_number(table, reply_number(node, "disks"));
    }
}

int cmd_node_list(const struct cli *cli)
{
    return request_list(cli, json_pack("{s:s}", "op", "node.list"), "rllllrlr",
                        fill_nodes);
}

/* What the leader has heard of all nodes; NULL: there is none, or it does not say. */
json_t *cluster_reports(struct client *client)
{
    struct error ignored = {0};
    cleanup(json_decrefp) json_t *nodes = NULL;
    json_t *reports = NULL, *node;
    char leader[24] = "";
    size_t i;
    json_t *request = json_pack("{s:s}", "op", "node.list");
    if (client_list(client, request, &nodes, &ignored) < 0)
        return NULL;
    json_array_foreach(nodes, i, node)
    {
        if (strcmp(reply_string(node, "role"), "leader") == 0)
            snprintf(leader, sizeof leader, "%" PRIu64, reply_number(node, "node"));
    }
    if (leader[0] != '\0')
        (void)client_list(client,
                          json_pack("{s:s, s:s}", "op", "node.reports", "at", leader),
                          &reports, &ignored);
    return reports;
}

void cluster_print_left(uint64_t bytes, uint64_t bytes_s)
{
    printf("%s to copy", size_text(bytes).text);
    if (bytes_s == 0)
        return;
    printf(", %s/s, %" PRIu64 " s left", size_text(bytes_s).text,
           div_up_u64(bytes, bytes_s));
}

static void print_report(json_t *reports, uint64_t id)
{
    size_t i;
    json_t *report;
    json_array_foreach(reports, i, report)
    {
        if (reply_number(report, "node") != id)
            continue;
        printf("used       %s\n", size_text(reply_number(report, "used_bytes")).text);
        if (reply_number(report, "recovering_groups") == 0)
            continue;
        printf("recovers   %" PRIu64 " groups, ",
               reply_number(report, "recovering_groups"));
        cluster_print_left(reply_number(report, "bytes_left"),
                           reply_number(report, "bytes_per_s"));
        printf("\n");
    }
}

static void print_node(json_t *node)
{
    char state[64];
    describe_state(node, state, sizeof state);
    printf("node       %" PRIu64 "\n", reply_number(node, "node"));
    printf("address    %s\n", reply_string(node, "address"));
    printf("domain     %s\n", reply_string(node, "domain"));
    printf("state      %s\n", state);
    printf("role       %s\n", reply_string(node, "role"));
    printf("capacity   %s\n", size_text(reply_number(node, "capacity_bytes")).text);
    printf("groups     %" PRIu64 ", %" PRIu64 " of them not whole here\n",
           reply_number(node, "groups"), reply_number(node, "groups_not_whole"));
    printf("disks      %" PRIu64 " owned\n", reply_number(node, "disks"));
    printf("joined     %s\n", reply_string(node, "joined"));
    printf("store      %s\n", reply_string(node, "store"));
}

int cmd_node_show(const struct cli *cli)
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    cleanup(json_decrefp) json_t *items = NULL;
    int r = client_create(cli->connect, &client, &err);
    if (r == 0)
        r = client_list(client,
                        json_pack("{s:s, s:s}", "op", "node.list", "node", cli->args[0]),
                        &items, &err);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    json_t *node = json_array_get(items, 0);
    cleanup(json_decrefp) json_t *reports = cluster_reports(client);
    if (cli->json) {
        size_t i;
        json_t *report;
        json_array_foreach(reports, i, report)
        {
            if (reply_number(report, "node") == reply_number(node, "node"))
                json_object_set(node, "report", report);
        }
        return print_json(node);
    }
    print_node(node);
    print_report(reports, reply_number(node, "node"));
    return EXIT_OK;
}

static int set_draining(const struct cli *cli, bool draining)
{
    return request_run(cli,
                       json_pack("{s:s, s:s, s:b}", "op", "node.drain", "node",
                                 cli->args[0], "draining", draining),
                       NULL);
}

/* What others still have to copy, before the node has nothing that is needed. */
static void show_draining(json_t *node, json_t *reports, uint64_t groups, bool waits)
{
    uint64_t bytes = 0, bytes_s = 0;
    size_t i;
    json_t *report;
    json_array_foreach(reports, i, report)
    {
        bytes += reply_number(report, "bytes_left");
        bytes_s += reply_number(report, "bytes_per_s");
    }
    printf("%snode %" PRIu64 ": %" PRIu64 " groups left, ",
           isatty(STDOUT_FILENO) != 0 ? "\r\033[K" : "", reply_number(node, "node"),
           groups);
    cluster_print_left(bytes, bytes_s);
    if (bytes == 0 && waits)
        printf("; waiting: is there another node that is up and has room?");
    printf("%s", isatty(STDOUT_FILENO) != 0 ? "" : "\n");
    (void)fflush(stdout);
}

/* Until it has no data any more. Whoever ends this does not end the draining. */
static int wait_drained(const struct cli *cli)
{
    uint64_t shown = UINT64_MAX;
    unsigned changed = 0; /* when groups did */
    for (unsigned seconds = 0;; seconds++) {
        struct error err = {0};
        cleanup(client_destroyp) struct client *client = NULL;
        cleanup(json_decrefp) json_t *items = NULL, *reports = NULL;
        int r = client_create(cli->connect, &client, &err);
        if (r == 0)
            r = client_list(client,
                            json_pack("{s:s, s:s}", "op", "node.list", "node",
                                      cli->args[0]),
                            &items, &err);
        if (r < 0)
            return cli_fail_error(cli, r, &err);
        json_t *node = json_array_get(items, 0);
        uint64_t groups = reply_number(node, "groups");
        if (groups == 0)
            break;
        if (!is_true(node, "draining"))
            return cli_fail(cli, EXIT_FAILED, "node %" PRIu64 " is not drained any more",
                            reply_number(node, "node"));
        if (isatty(STDOUT_FILENO) != 0 || groups != shown ||
            seconds % DRAIN_SAY_S == 0) {
            reports = cluster_reports(client);
            show_draining(node, reports, groups, seconds - changed >= DRAIN_SAY_S);
        }
        changed = groups != shown ? seconds : changed;
        shown = groups;
        sleep(1);
    }
    printf("%snode %s has no data any more; 'parallax node rm %s' removes it\n",
           isatty(STDOUT_FILENO) != 0 ? "\r\033[K" : "", cli->args[0], cli->args[0]);
    return EXIT_OK;
}

int cmd_node_drain(const struct cli *cli)
{
    int r = set_draining(cli, true);
    return r == EXIT_OK && !cli->no_wait ? wait_drained(cli) : r;
}

int cmd_node_undrain(const struct cli *cli)
{
    return set_draining(cli, false);
}

int cmd_node_remove(const struct cli *cli)
{
    if (cli->data_loss && !cli->lost)
        return cli_fail(cli, EXIT_USAGE,
                        "--data-loss is for what is lost: give --lost, too");
    return request_run(cli,
                       json_pack("{s:s, s:s, s:b, s:b}", "op", "node.rm", "node",
                                 cli->args[0], "lost", cli->lost, "data_loss",
                                 cli->data_loss),
                       NULL);
}

/* --- pools --- */

static void fill_pools(struct table *table, json_t *items)
{
    static const char *const head[] = {"NAME",   "COPIES", "MIN-COPIES",
                                       "DOMAIN", "GROUPS", "DISKS"};
    for (size_t i = 0; i < ARRAY_LEN(head); i++)
        table_add(table, head[i]);
    size_t i;
    json_t *pool;
    json_array_foreach(items, i, pool)
    {
        table_add(table, reply_string(pool, "name"));
        table_add_number(table, reply_number(pool, "copies"));
        table_add_number(table, reply_number(pool, "min_copies"));
        table_add(table, reply_string(pool, "domain"));
        table_add_number(table, reply_number(pool, "groups"));
        table_add_number(table, reply_number(pool, "disks"));
    }
}

int cmd_pool_list(const struct cli *cli)
{
    return request_list(cli, json_pack("{s:s}", "op", "pool.list"), "lrrlrr", fill_pools);
}

static int add_copies(json_t *request, const char *key, const char *text)
{
    uint64_t copies;
    if (text == NULL)
        return 0;
    int r = parse_number(text, 1, COPIES_MAX, &copies);
    if (r == 0)
        json_object_set_new(request, key, json_integer((json_int_t)copies));
    return r;
}

static int set_pool(const struct cli *cli, bool is_new)
{
    json_t *request = json_pack("{s:s, s:s, s:b}", "op", "pool.set", "name", cli->args[0],
                                "create", is_new);
    if (add_copies(request, "copies", cli->copies) < 0 ||
        add_copies(request, "min_copies", cli->min_copies) < 0) {
        json_decref(request);
        return cli_fail(cli, EXIT_USAGE, "--copies and --min-copies are numbers");
    }
    if (cli->domain != NULL)
        json_object_set_new(request, "domain", json_string(cli->domain));
    if (cli->domain != NULL && strcmp(cli->domain, "host") != 0 &&
        strcmp(cli->domain, "rack") != 0) {
        json_decref(request);
        return cli_fail(cli, EXIT_USAGE, "--domain is host or rack");
    }
    return request_run(cli, request, NULL);
}

int cmd_pool_create(const struct cli *cli)
{
    return set_pool(cli, true);
}

int cmd_pool_set(const struct cli *cli)
{
    return set_pool(cli, false);
}

/* --- owners --- */

int cmd_disk_owner(const struct cli *cli)
{
    cleanup(json_decrefp) json_t *ok = NULL;
    int r = request_run(
        cli, json_pack("{s:s, s:s}", "op", "disk.owner", "name", cli->args[0]), &ok);
    if (r != EXIT_OK)
        return r;
    if (cli->json)
        return print_json(ok);
    if (json_is_null(json_object_get(ok, "node")))
        printf("nobody\n");
    else
        printf("node %" PRIu64 " at %s, %s\n", reply_number(ok, "node"),
               reply_string(ok, "address"), reply_string(ok, "state"));
    return EXIT_OK;
}

int cmd_disk_break(const struct cli *cli)
{
    fprintf(
        stderr,
        "parallax: disk break: if a guest still uses %s on the node that owns it, its "
        "writes fail from now on\n",
        cli->args[0]);
    return request_run(
        cli, json_pack("{s:s, s:s}", "op", "disk.break", "name", cli->args[0]), NULL);
}

/* To the node `to`, or the one that is asked. */
static json_t *migrate_request(const char *name, const char *to)
{
    json_t *request = json_pack("{s:s, s:s}", "op", "disk.migrate", "name", name);
    if (to != NULL)
        json_object_set_new(request, "node", json_string(to));
    return request;
}

int cmd_migrate(const struct cli *cli)
{
    return request_run(cli, migrate_request(cli->args[0], cli->to), NULL);
}

int cmd_serve(const struct cli *cli)
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    cleanup(free_ptr) char *uri = NULL;
    cleanup(free_ptr) char *incoming = NULL;
    bool is_snapshot = strchr(cli->args[0], '@') != NULL;
    if (cli->incoming && is_snapshot)
        return cli_fail(cli, EXIT_USAGE, "--incoming: a snapshot is read everywhere");
    if (asprintf(&incoming, "%s?incoming", cli->args[0]) < 0) {
        incoming = NULL;
        return cli_fail_error(cli, -ENOMEM, &err);
    }
    int r = client_create(cli->connect, &client, &err);
    if (r == 0 && !cli->incoming && !is_snapshot)
        r = client_call(client, migrate_request(cli->args[0], NULL), NULL, NULL, &err);
    if (r == 0)
        r = client_export_uri(client, cli->args[0], &uri, &err);
    if (r == 0 && cli->incoming) {
        free(take(uri));
        r = client_any_uri(client, incoming, &uri, &err);
    }
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    printf("%s\n", uri);
    return EXIT_OK;
}
