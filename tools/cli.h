/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands of `parallax` share. */
#ifndef PARALLAX_TOOLS_CLI_H
#define PARALLAX_TOOLS_CLI_H

#include "runtime/base.h"
#include "runtime/error.h"

enum {
    EXIT_OK = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_UNREACHABLE = 3, /* no daemon answers */
};

#define CLI_ARGS_MAX 2

/* Options, as bits: each command says which it takes. -c, --help and --version are for
 * all. */
enum {
    CLI_JSON = 1,
    CLI_QUIET = 2,
    CLI_COUNT = 4,
    CLI_FORMAT = 8,
    CLI_BACKING = 16,
    CLI_NBD = 32,
    CLI_CONTROL = 64,
    CLI_CAPACITY = 128,
    CLI_DETACH = 256,
};

struct command;

/* The command line. Strings are of argv. */
struct cli {
    const struct command *command;
    const char *connect; /* -c, else $PARALLAX, else NULL */
    unsigned options;    /* which were given */
    bool json, quiet, backing, detach;
    const char *count, *format, *nbd, *control, *capacity;
    const char *args[CLI_ARGS_MAX];
    int arg_count;
};

struct command {
    const char *name; /* "disk create" */
    const char *args; /* "NAME SIZE" */
    int args_min, args_max;
    unsigned options;
    int (*run)(const struct cli *cli); /* EXIT_* */
    const char *summary;
    const char *help; /* more lines, or NULL */
};

/* Prints "parallax: COMMAND: text" as one line and returns exit_code. */
int cli_fail(const struct cli *cli, int exit_code, const char *fmt, ...)
    attr_printf(3, 4);
/* The same with an error's text, or that of code. -ENOTCONN, no daemon answers, becomes
 * EXIT_UNREACHABLE; -EDESTADDRREQ, none was named, EXIT_USAGE. */
int cli_fail_error(const struct cli *cli, int code, const struct error *err);

/* "DISK@SNAP": both parts malloc'd; *ret_snapshot is NULL without '@'. -EINVAL, -ENOMEM.
 */
int cli_split_snapshot(const char *text, char **ret_disk, char **ret_snapshot,
                       struct error *err);

int cmd_up(const struct cli *cli);
int cmd_down(const struct cli *cli);
int cmd_status(const struct cli *cli);
int cmd_check(const struct cli *cli);
int cmd_disk_create(const struct cli *cli);
int cmd_disk_list(const struct cli *cli);
int cmd_disk_show(const struct cli *cli);
int cmd_disk_resize(const struct cli *cli);
int cmd_disk_rename(const struct cli *cli);
int cmd_disk_uri(const struct cli *cli);
int cmd_snapshot_create(const struct cli *cli);
int cmd_snapshot_list(const struct cli *cli);
int cmd_snapshot_rollback(const struct cli *cli);
int cmd_clone(const struct cli *cli);
int cmd_import(const struct cli *cli);
int cmd_export(const struct cli *cli);

#endif
