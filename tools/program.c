/* SPDX-License-Identifier: Apache-2.0 */
/* The other programs that belong to this one: beside it, else wherever PATH has them. */
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "tools/cli.h"

int cli_exec(const struct cli *cli, const char *program, char *const argv[])
{
    char path[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", path, sizeof path - 1);
    char *slash = NULL;
    if (len > 0) {
        path[len] = '\0';
        slash = strrchr(path, '/');
    }
    if (slash != NULL) {
        size_t room = sizeof path - (size_t)(slash + 1 - path);
        if ((size_t)snprintf(slash + 1, room, "%s", program) < room)
            execv(path, argv);
    }
    execvp(program, argv);
    return cli_fail(cli, EXIT_FAILED, "cannot run %s: %s; is it installed?", program,
                    strerror(errno));
}
