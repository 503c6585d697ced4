/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about the daemon: up and down. */
#include <poll.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <unistd.h>

#include "tools/cli.h"
#include "tools/client.h"

/* --- up --- */

int cmd_up(const struct cli *cli)
{
    const char *argv[16] = {"parallaxd"};
    int argc = 1;
    const struct {
        const char *name, *value;
    } options[] = {
        {"--nbd", cli->nbd},
        {"--control", cli->control},
        {"--capacity", cli->capacity},
        {"--listen", cli->listen}};
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
    return cli_exec(cli, "parallaxd", (char *const *)(uintptr_t)argv);
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
