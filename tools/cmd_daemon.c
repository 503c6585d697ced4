/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about the daemon: up, down, status, check. */
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <unistd.h>

#include "tools/cli.h"
#include "tools/client.h"
#include "tools/progress.h"
#include "tools/size.h"

/* --- up --- */

/* The daemon that belongs to this program: beside it, else wherever PATH has one. */
static void exec_daemon(char *const argv[])
{
    char path[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", path, sizeof path - sizeof "/parallaxd");
    char *slash = NULL;
    if (len > 0) {
        path[len] = '\0';
        slash = strrchr(path, '/');
    }
    if (slash != NULL) {
        strcpy(slash, "/parallaxd");
        execv(path, argv);
    }
    execvp("parallaxd", argv);
}

int cmd_up(const struct cli *cli)
{
    const char *argv[12] = {"parallaxd"};
    int argc = 1;
    const struct {
        const char *name, *value;
    } options[] = {
        {"--nbd", cli->nbd}, {"--control", cli->control}, {"--capacity", cli->capacity}};
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        if (options[i].value == NULL)
            continue;
        argv[argc++] = options[i].name;
        argv[argc++] = options[i].value;
    }
    if (cli->detach)
        argv[argc++] = "--detach";
    argv[argc++] = "--";
    argv[argc++] = cli->args[0];
    exec_daemon((char *const *)(uintptr_t)argv);
    return cli_fail(cli, EXIT_FAILED, "cannot run parallaxd: %s; is it installed?",
                    strerror(errno));
}

/* --- down --- */

int cmd_down(const struct cli *cli)
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    cleanup(json_decrefp) json_t *status = NULL;
    int r = client_create(cli->connect, &client, &err);
    if (r == 0)
        r = client_call(client, json_pack("{s:s}", "op", "status"), NULL, &status, &err);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    /* Held before the daemon knows, so it cannot be of another process. */
    json_int_t pid = json_integer_value(json_object_get(status, "pid"));
    int pidfd = pid > 0 ? pidfd_open((pid_t)pid, 0) : -1;
    r = client_call(client, json_pack("{s:s}", "op", "shut_down"), NULL, NULL, &err);
    if (r == 0)
        client_wait_end(client);
    /* Without one (the daemon is in another pid namespace) the end of the connection is
     * as near as we get. */
    struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};
    while (r == 0 && pidfd >= 0 && poll(&poll_fd, 1, -1) < 0 && errno == EINTR)
        ;
    if (pidfd >= 0)
        close(pidfd);
    return r < 0 ? cli_fail_error(cli, r, &err) : EXIT_OK;
}

/* --- status --- */

static uint64_t get_number(json_t *object, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(object, key));
    return n > 0 ? (uint64_t)n : 0;
}

static const char *get_string(json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

static void print_status(json_t *s)
{
    uint64_t capacity = get_number(s, "capacity_bytes"),
             used = get_number(s, "used_bytes");
    printf("health     %s\n", get_string(s, "health"));
    printf("capacity   %s\n", size_text(capacity).text);
    printf("used       %s (%" PRIu64 "%%)\n", size_text(used).text,
           capacity == 0 ? 0 : (used * 100 + capacity / 2) / capacity);
    printf("free       %s\n", size_text(get_number(s, "free_bytes")).text);
    printf("disks      %" PRIu64 ", %" PRIu64 " open\n", get_number(s, "disks"),
           get_number(s, "open_disks"));
    printf("snapshots  %" PRIu64 "\n", get_number(s, "snapshots"));
    size_t i;
    json_t *uri;
    json_array_foreach(json_object_get(s, "nbd"), i, uri)
        printf("nbd        %s\n", json_string_value(uri));
    printf("folder     %s\n", get_string(s, "directory"));
    printf("daemon     %s, pid %" PRIu64 "\n", get_string(s, "version"),
           get_number(s, "pid"));
}

int cmd_status(const struct cli *cli)
{
    struct error err = {0};
    cleanup(client_destroyp) struct client *client = NULL;
    cleanup(json_decrefp) json_t *status = NULL;
    int r = client_create(cli->connect, &client, &err);
    if (r == 0)
        r = client_call(client, json_pack("{s:s}", "op", "status"), NULL, &status, &err);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    if (!cli->json) {
        print_status(status);
        return EXIT_OK;
    }
    json_dumpf(status, stdout, JSON_INDENT(2));
    putchar('\n');
    return EXIT_OK;
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
    uint64_t findings = get_number(report, "findings");
    if (check->json) {
        json_object_set(report, "finding_lines", check->findings);
        json_dumpf(report, stdout, JSON_INDENT(2));
        putchar('\n');
        return;
    }
    if (findings > check->count)
        printf("and %" PRIu64 " more, which came too fast to show\n",
               findings - check->count);
    printf("disks %" PRIu64 ", snapshots %" PRIu64 ", extents %" PRIu64
           ", map nodes %" PRIu64 ", blocks %" PRIu64 " (%s): ",
           get_number(report, "disks"), get_number(report, "snapshots"),
           get_number(report, "extents"), get_number(report, "nodes"),
           get_number(report, "blocks"), size_text(get_number(report, "bytes")).text);
    if (findings == 0)
        printf("all sound\n");
    else
        printf("%" PRIu64 " damaged\n", findings);
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
        r = client_call(client, json_pack("{s:s}", "op", "check"), &callbacks, &report,
                        &err);
    progress_clear(&check.progress);
    if (r == 0)
        print_check(&check, report);
    json_decref(check.findings);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    return get_number(report, "findings") == 0 ? EXIT_OK : EXIT_FAILED;
}
