/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about the store as a whole: status, check, scrub. */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "tools/progress.h"
#include "tools/request.h"
#include "tools/size.h"

/* A node with less free than this part gets no more groups, and is named. */
#define FULL_PART 10U

/* --- status --- */

static void print_size(json_t *object, const char *key, const char *label,
                       const char *meaning)
{
    printf("%-10s %s%s\n", label, size_text(reply_number(object, key)).text, meaning);
}

/* Of the file system that a store in a file lies in. */
static void print_host(json_t *s)
{
    uint64_t withheld = reply_number(s, "withheld_bytes");
    if (withheld > 0)
        printf("  withheld %s, for which the file system has no room\n",
               size_text(withheld).text);
    printf("host       %s left in the file system, ",
           size_text(reply_number(s, "host_free_bytes")).text);
    printf("%s of them for metadata\n",
           size_text(reply_number(s, "host_reserve_bytes")).text);
}

static void print_space(json_t *s)
{
    uint64_t capacity = reply_number(s, "capacity_bytes"),
             used = reply_number(s, "used_bytes"),
             committed = reply_number(s, "committed_bytes");
    print_size(s, "capacity_bytes", "capacity", "");
    printf("used       %s (%" PRIu64 "%%)\n", size_text(used).text,
           capacity == 0 ? 0 : (used * 100 + capacity / 2) / capacity);
    print_size(s, "live_bytes", "  live", "");
    print_size(s, "dead_bytes", "  dead", ", not yet given back");
    print_size(s, "free_bytes", "free", "");
    print_size(s, "reserve_bytes", "  reserved", ", which guests do not get");
    if (json_object_get(s, "host_free_bytes") != NULL)
        print_host(s);
    printf("committed  %s%s\n", size_text(committed).text,
           committed > capacity ? ", more than there is" : "");
}

static void print_work(json_t *s)
{
    json_t *trash = json_object_get(s, "trash");
    json_t *reclaim = json_object_get(s, "reclaim");
    json_t *compaction = json_object_get(s, "compaction");
    uint64_t pending = reply_number(reclaim, "pending");
    printf("trash      %" PRIu64 " disks, %s\n", reply_number(trash, "disks"),
           size_text(reply_number(trash, "bytes")).text);
    if (pending > 0)
        printf("reclaim    %s, %" PRIu64 " to go, %s freed\n",
               json_is_true(json_object_get(reclaim, "running")) ? "running" : "waiting",
               pending, size_text(reply_number(reclaim, "freed_bytes")).text);
    else
        printf("reclaim    idle, %s freed\n",
               size_text(reply_number(reclaim, "freed_bytes")).text);
    printf("compaction %s, %" PRIu64 " runs, %s read, ",
           json_is_true(json_object_get(compaction, "running")) ? "running" : "idle",
           reply_number(compaction, "runs"),
           size_text(reply_number(compaction, "read_bytes")).text);
    printf("%s written\n", size_text(reply_number(compaction, "written_bytes")).text);
}

/* Of this node; nothing while there is nothing to do. */
static void print_recovery(json_t *recovery)
{
    const char *doing = reply_string(recovery, "doing");
    if (reply_number(recovery, "groups") == 0 && doing[0] == '\0')
        return;
    printf("recovery   %" PRIu64 " groups, %s left of %" PRIu64 " extents, %s/s",
           reply_number(recovery, "groups"),
           size_text(reply_number(recovery, "bytes_left")).text,
           reply_number(recovery, "extents_left"),
           size_text(reply_number(recovery, "bytes_per_s")).text);
    if (json_is_integer(json_object_get(recovery, "seconds_left")))
        printf(", %" PRIu64 " s left", reply_number(recovery, "seconds_left"));
    printf("%s%s\n", doing[0] != '\0' ? "; " : "", doing);
}

/* Of a cluster of many. */
static void print_members(json_t *members)
{
    size_t i;
    json_t *node;
    if (members == NULL)
        return;
    json_t *down = json_object_get(members, "nodes_down");
    uint64_t not_up = reply_number(members, "nodes_not_up");
    printf("cluster    %" PRIu64 " nodes, %" PRIu64
           " not up; this is node %" PRIu64 "%s\n",
           reply_number(members, "nodes"), not_up, reply_number(members, "node"),
           json_is_true(json_object_get(members, "majority"))
               ? ""
               : "; no majority in reach: this may be old");
    json_array_foreach(down, i, node)
        printf("  %-8s node %" PRIu64 " at %s\n", reply_string(node, "state"),
               reply_number(node, "node"), reply_string(node, "address"));
    if (not_up > json_array_size(down))
        printf("  and others; 'parallax node ls' lists all\n");
    printf("groups     %" PRIu64 ", %" PRIu64 " not whole, %" PRIu64
           " with too few copies\n",
           reply_number(members, "groups"), reply_number(members, "groups_not_whole"),
           reply_number(members, "groups_few"));
    print_recovery(json_object_get(members, "recovery"));
    json_array_foreach(json_object_get(members, "recovering"), i, node)
    {
        if (reply_number(node, "node") == reply_number(members, "node"))
            continue;
        printf("  recovers node %" PRIu64 ": %" PRIu64 " groups, ",
               reply_number(node, "node"), reply_number(node, "recovering_groups"));
        cluster_print_left(reply_number(node, "bytes_left"),
                           reply_number(node, "bytes_per_s"));
        printf("\n");
    }
    json_array_foreach(json_object_get(members, "full"), i, node)
    {
        if (reply_number(node, "node") == reply_number(members, "node"))
            continue; /* the warning says it */
        printf("  full     node %" PRIu64 ": %s free", reply_number(node, "node"),
               size_text(reply_number(node, "free_bytes")).text);
        printf(" of %s\n", size_text(reply_number(node, "capacity_bytes")).text);
    }
}

static bool is_full(json_t *report)
{
    uint64_t capacity = reply_number(report, "capacity_bytes");
    return capacity > 0 && reply_number(report, "free_bytes") < capacity / FULL_PART;
}

/* What other nodes do to become whole, and which are full, from the leader, if there is
 * one. */
static void add_reports(const struct cli *cli, json_t *status)
{
    struct error ignored = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    cleanup(json_decrefp) json_t *reports = NULL;
    json_t *members = json_object_get(status, "members"), *report;
    json_t *recovering = json_array(), *full = json_array();
    size_t i;
    if (json_is_true(json_object_get(members, "majority")) &&
        client_create(cli->connect, &client, &ignored) == 0)
        reports = cluster_reports(client);
    json_array_foreach(reports, i, report)
    {
        if (reply_number(report, "recovering_groups") > 0)
            json_array_append(recovering, report);
        if (is_full(report))
            json_array_append(full, report);
    }
    if (json_is_object(members)) {
        json_object_set(members, "recovering", recovering);
        json_object_set(members, "full", full);
    }
    json_decref(recovering);
    json_decref(full);
}

static void print_status(json_t *s)
{
    const char *warning = json_string_value(json_object_get(s, "warning"));
    printf("health     %s\n", reply_string(s, "health"));
    if (warning != NULL && warning[0] != '\0')
        printf("warning    %s; %s\n", warning, reply_string(s, "room"));
    print_members(json_object_get(s, "members"));
    print_space(s);
    printf("disks      %" PRIu64 ", %" PRIu64 " open\n", reply_number(s, "disks"),
           reply_number(s, "open_disks"));
    printf("snapshots  %" PRIu64 "\n", reply_number(s, "snapshots"));
    print_work(s);
    size_t i;
    json_t *uri;
    json_array_foreach(json_object_get(s, "nbd"), i, uri)
        printf("nbd        %s\n", json_string_value(uri));
    printf("folder     %s\n", reply_string(s, "directory"));
    printf("daemon     %s, pid %" PRIu64 "\n", reply_string(s, "version"),
           reply_number(s, "pid"));
}

int cmd_status(const struct cli *cli)
{
    cleanup(json_decrefp) json_t *status = NULL;
    int r = request_run(cli, json_pack("{s:s}", "op", "status"), &status);
    if (r != EXIT_OK)
        return r;
    add_reports(cli, status);
    if (cli->json)
        return print_json(status);
    print_status(status);
    return EXIT_OK;
}

/* A terminal shows the last one only, a file all of them. */
int cmd_top(const struct cli *cli)
{
    unsigned long seconds = 1;
    if (cli->arg_count > 0) {
        char *end;
        seconds = strtoul(cli->args[0], &end, 10);
        if (*end != '\0' || end == cli->args[0] || seconds < 1 || seconds > 3600) {
            fprintf(stderr, "parallax: %s: seconds between looks, from 1 to 3600\n",
                    cli->args[0]);
            return EXIT_USAGE;
        }
    }
    bool is_terminal = isatty(STDOUT_FILENO) != 0;
    for (;;) {
        if (is_terminal)
            printf("\033[H\033[2J");
        int r = cmd_status(cli);
        if (r == EXIT_OK) {
            printf("\n");
            r = cmd_node_list(cli);
        }
        if (r != EXIT_OK)
            return r;
        printf("%s", is_terminal ? "" : "\n");
        if (fflush(stdout) != 0)
            return EXIT_FAILED;
        sleep((unsigned)seconds);
    }
}

/* --- check --- */

struct check {
    bool json;
    json_t *findings;
    uint64_t count;
    struct progress progress;
};

static void check_item(void *arg, json_t *item)
{
    struct check *check = arg;
    json_t *finding = json_object_get(item, "finding");
    if (!json_is_string(finding))
        return;
    check->count++;
    if (check->json) {
        json_array_append(check->findings, finding);
        return;
    }
    progress_clear(&check->progress);
    printf("%s\n", json_string_value(finding));
}

static void check_progress(void *arg, uint64_t done, uint64_t total)
{
    struct check *check = arg;
    progress_show(&check->progress, done, total);
}

static void print_check(const struct check *check, json_t *report)
{
    uint64_t findings = reply_number(report, "findings");
    if (check->json) {
        json_object_set(report, "finding_lines", check->findings);
        print_json(report);
        return;
    }
    if (findings > check->count)
        printf("and %" PRIu64 " more, which came too fast to show\n",
               findings - check->count);
    printf("disks %" PRIu64 ", snapshots %" PRIu64 ", extents %" PRIu64
           ", map nodes %" PRIu64 ", blocks %" PRIu64 " (%s): ",
           reply_number(report, "disks"), reply_number(report, "snapshots"),
           reply_number(report, "extents"), reply_number(report, "nodes"),
           reply_number(report, "blocks"), size_text(reply_number(report, "bytes")).text);
    if (findings == 0)
        printf("all sound\n");
    else
        printf("%" PRIu64 " findings\n", findings);
    uint64_t rebuilt = reply_number(report, "rebuilt_nodes");
    if (rebuilt > 0)
        printf("%" PRIu64 " map node%s rebuilt\n", rebuilt, rebuilt == 1 ? "" : "s");
    uint64_t lost = reply_number(report, "lost_blocks"),
             repaired = reply_number(report, "repaired_blocks");
    if (lost > 0)
        printf("%" PRIu64 " blocks that nothing needs, %" PRIu64 " of them freed%s\n",
               lost, repaired,
               repaired < lost ? "; 'parallax check --repair' frees them" : "");
}

int cmd_check(const struct cli *cli)
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    cleanup(json_decrefp) json_t *report = NULL;
    struct check check = {.json = cli->json, .findings = json_array()};
    const struct client_callbacks callbacks = {
        .item = check_item, .progress = check_progress, .arg = &check};
    progress_init(&check.progress, "check", cli->quiet || cli->json);
    int r = client_create(cli->connect, &client, &err);
    if (r == 0)
        r = client_call(client,
                        json_pack("{s:s, s:b}", "op", "check", "repair", cli->repair),
                        &callbacks, &report, &err);
    progress_clear(&check.progress);
    if (r == 0)
        print_check(&check, report);
    json_decref(check.findings);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    return reply_number(report, "findings") == 0 ? EXIT_OK : EXIT_FAILED;
}

/* --- scrub --- */

static int scrub_start(const struct cli *cli)
{
    struct error err = {0};
    uint64_t rate = 0;
    if (cli->rate != NULL && size_parse(cli->rate, &rate, &err) < 0)
        return cli_fail(cli, EXIT_USAGE, "--rate: %s", err.text);
    if (cli->rate != NULL && (rate == 0 || rate > INT64_MAX))
        return cli_fail(cli, EXIT_USAGE, "--rate %s: above 0", cli->rate);
    return request_run(cli,
                       json_pack("{s:s, s:I}", "op", "scrub.start", "bytes_per_second",
                                 (json_int_t)rate),
                       NULL);
}

static void print_scrub(json_t *s, json_t *lines)
{
    uint64_t done = reply_number(s, "done_bytes"), total = reply_number(s, "total_bytes");
    size_t i;
    json_t *line;
    json_array_foreach(lines, i, line) printf("%s\n", json_string_value(line));
    printf("state      %s\n", reply_string(s, "state"));
    printf("done       %s of %s (%" PRIu64 "%%)\n", size_text(done).text,
           size_text(total).text, total == 0 ? 0 : min_u64(done * 100 / total, 100));
    printf("findings   %" PRIu64 "\n", reply_number(s, "findings"));
    uint64_t rate = reply_number(s, "bytes_per_second");
    printf("rate       %s%s%s\n", rate ? "at most " : "as guests leave it",
           rate ? size_text(rate).text : "", rate ? "/s" : "");
    printf("started    %s\n", reply_string(s, "started"));
    printf("finished   %s\n", reply_string(s, "finished"));
}

static void scrub_item(void *arg, json_t *item)
{
    json_t *line = json_object_get(item, "finding");
    if (json_is_string(line))
        json_array_append(arg, line);
}

/* Ends with 1 if it has found damage, as check does. */
static int scrub_status(const struct cli *cli)
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    cleanup(json_decrefp) json_t *lines = json_array();
    cleanup(json_decrefp) json_t *status = NULL;
    const struct client_callbacks callbacks = {.item = scrub_item, .arg = lines};
    int r = client_create(cli->connect, &client, &err);
    if (r == 0)
        r = client_call(client, json_pack("{s:s}", "op", "scrub.status"), &callbacks,
                        &status, &err);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    if (cli->json) {
        json_object_set(status, "finding_lines", lines);
        print_json(status);
    } else {
        print_scrub(status, lines);
    }
    return reply_number(status, "findings") == 0 ? EXIT_OK : EXIT_FAILED;
}

int cmd_scrub(const struct cli *cli)
{
    const char *word = cli->arg_count > 0 ? cli->args[0] : "start";
    bool is_start = strcmp(word, "start") == 0, is_status = strcmp(word, "status") == 0;
    if (!is_start && !is_status && strcmp(word, "pause") != 0)
        return cli_fail(cli, EXIT_USAGE, "'%s' is not start, status or pause", word);
    if (!is_start && cli->rate != NULL)
        return cli_fail(cli, EXIT_USAGE, "--rate is for start");
    if (!is_status && cli->json)
        return cli_fail(cli, EXIT_USAGE, "--json is for status");
    if (is_start)
        return scrub_start(cli);
    return is_status ? scrub_status(cli)
                     : request_run(cli, json_pack("{s:s}", "op", "scrub.pause"), NULL);
}
