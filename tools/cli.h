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

#define CLI_ARGS_MAX  66 /* a folder, and addresses of so many nodes as it keeps */
#define CLI_RULES_MAX 8

/* Options, as bits: each command says which it takes. -c, --help and --version are for
 * all. */
enum {
    CLI_JSON = UINT64_C(1) << 0,
    CLI_QUIET = UINT64_C(1) << 1,
    CLI_COUNT = UINT64_C(1) << 2,
    CLI_FORMAT = UINT64_C(1) << 3,
    CLI_BACKING = UINT64_C(1) << 4,
    CLI_NBD = UINT64_C(1) << 5,
    CLI_CONTROL = UINT64_C(1) << 6,
    CLI_CAPACITY = UINT64_C(1) << 7,
    CLI_DETACH = UINT64_C(1) << 8,
    CLI_SINCE = UINT64_C(1) << 9,
    CLI_ONTO = UINT64_C(1) << 10,
    CLI_KEEP_LAST = UINT64_C(1) << 11,
    CLI_OLDER_THAN = UINT64_C(1) << 12,
    CLI_RECURSIVE = UINT64_C(1) << 13,
    CLI_EVERY = UINT64_C(1) << 14,
    CLI_KEEP = UINT64_C(1) << 15,
    CLI_NONE = UINT64_C(1) << 16,
    CLI_QUOTA = UINT64_C(1) << 17,
    CLI_RATE = UINT64_C(1) << 18,
    CLI_REPAIR = UINT64_C(1) << 19,
    CLI_LISTEN = UINT64_C(1) << 20,
    CLI_DOMAIN = UINT64_C(1) << 21,
    CLI_TOKEN = UINT64_C(1) << 22,
    CLI_WITNESS = UINT64_C(1) << 23,
    CLI_VALID = UINT64_C(1) << 24,
    CLI_LOST = UINT64_C(1) << 25,
    CLI_COPIES = UINT64_C(1) << 26,
    CLI_MIN_COPIES = UINT64_C(1) << 27,
    CLI_POOL = UINT64_C(1) << 28,
    CLI_TO = UINT64_C(1) << 29,
    CLI_INCOMING = UINT64_C(1) << 30,
    CLI_DATA_LOSS = UINT64_C(1) << 31,
    CLI_NO_WAIT = UINT64_C(1) << 32,
};

struct command;

/* The command line. Strings are of argv. */
struct cli {
    char **argv; /* all of it, as getopt has ordered it */
    const struct command *command;
    const char *connect; /* -c, else $PARALLAX, else NULL */
    uint64_t options;    /* which were given */
    bool json, quiet, backing, detach, recursive, none, repair, witness, lost, data_loss,
        no_wait, incoming;
    const char *count, *format, *nbd, *control, *capacity;
    const char *since, *onto, *keep_last, *older_than, *quota, *rate;
    const char *listen, *domain, *token, *valid, *copies, *min_copies, *pool;
    const char *to;
    struct cli_rule { /* --every and the --keep behind it, which may be missing */
        const char *every, *keep;
    } rules[CLI_RULES_MAX];
    int rule_count;
    const char *args[CLI_ARGS_MAX];
    int arg_count;
};

struct command {
    const char *name; /* "disk create" */
    const char *args; /* "NAME SIZE" */
    int args_min, args_max;
    uint64_t options;
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

/* Becomes another of our programs: returns only if that cannot be run. */
int cli_exec(const struct cli *cli, const char *program, char *const argv[]);

int cmd_up(const struct cli *cli);
int cmd_down(const struct cli *cli);
int cmd_status(const struct cli *cli);
int cmd_top(const struct cli *cli);
int cmd_check(const struct cli *cli);
int cmd_disk_create(const struct cli *cli);
int cmd_disk_list(const struct cli *cli);
int cmd_disk_show(const struct cli *cli);
int cmd_disk_resize(const struct cli *cli);
int cmd_disk_rename(const struct cli *cli);
int cmd_disk_set(const struct cli *cli);
int cmd_disk_remove(const struct cli *cli);
int cmd_disk_uri(const struct cli *cli);
int cmd_snapshot_create(const struct cli *cli);
int cmd_snapshot_list(const struct cli *cli);
int cmd_snapshot_rollback(const struct cli *cli);
int cmd_snapshot_remove(const struct cli *cli);
int cmd_snapshot_diff(const struct cli *cli);
int cmd_snapshot_schedule(const struct cli *cli);
int cmd_trash_list(const struct cli *cli);
int cmd_trash_restore(const struct cli *cli);
int cmd_trash_empty(const struct cli *cli);
int cmd_trash_keep(const struct cli *cli);
int cmd_scrub(const struct cli *cli);
int cmd_clone(const struct cli *cli);
int cmd_cluster_init(const struct cli *cli);
int cmd_cluster_join(const struct cli *cli);
int cmd_cluster_addresses(const struct cli *cli);
int cmd_cluster_token(const struct cli *cli);
int cmd_node_list(const struct cli *cli);
int cmd_node_show(const struct cli *cli);
int cmd_node_drain(const struct cli *cli);
int cmd_node_undrain(const struct cli *cli);
int cmd_node_remove(const struct cli *cli);
int cmd_pool_list(const struct cli *cli);
int cmd_pool_create(const struct cli *cli);
int cmd_pool_set(const struct cli *cli);
int cmd_disk_owner(const struct cli *cli);
int cmd_disk_break(const struct cli *cli);
int cmd_migrate(const struct cli *cli);
int cmd_serve(const struct cli *cli);
int cmd_import(const struct cli *cli);
int cmd_export(const struct cli *cli);
/* With --onto and --since. */
int cmd_import_increment(const struct cli *cli);
int cmd_export_increment(const struct cli *cli);

#endif
