/* SPDX-License-Identifier: Apache-2.0 */
/* The parallax command: its command line, and the table of what it can do. */
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>

#include "tools/cli.h"

static int cmd_help(const struct cli *cli);

static const struct command commands[] = {
    {"up", "DIR|DEVICE", 1, 1, CLI_NBD | CLI_CONTROL | CLI_CAPACITY | CLI_DETACH, cmd_up,
     "serve the store in a folder or on a block device",
     "Makes the store if there is none, and becomes its daemon, parallaxd.\n"
     "The files are DIR/store, DIR/meta, DIR/nbd.sock, DIR/control.sock; of a block\n"
     "device, all but the store are in /var/lib/parallax/NAME.\n"},
    {"down", "", 0, 0, 0, cmd_down, "stop the daemon and wait until it has ended", NULL},
    {"status", "", 0, 0, CLI_JSON, cmd_status, "space, disks and health", NULL},
    {"disk create", "NAME SIZE", 2, 2, 0, cmd_disk_create, "make an empty disk", NULL},
    {"disk ls", "", 0, 0, CLI_JSON, cmd_disk_list, "list all disks", NULL},
    {"disk show", "NAME", 1, 1, CLI_JSON, cmd_disk_show, "show one disk", NULL},
    {"disk resize", "NAME SIZE", 2, 2, 0, cmd_disk_resize, "change the size of a disk",
     "A disk can shrink only while nobody uses it; what lies behind its new end is\n"
     "gone.\n"},
    {"disk rename", "OLD NEW", 2, 2, 0, cmd_disk_rename, "give a disk another name",
     NULL},
    {"disk uri", "NAME[@SNAP]", 1, 1, 0, cmd_disk_uri, "print the NBD URI of a disk",
     NULL},
    {"snapshot create", "DISK@SNAP", 1, 1, 0, cmd_snapshot_create,
     "keep a disk as it is now", NULL},
    {"snapshot ls", "DISK", 1, 1, CLI_JSON, cmd_snapshot_list,
     "list the snapshots of a disk", NULL},
    {"snapshot rollback", "DISK@SNAP", 1, 1, 0, cmd_snapshot_rollback,
     "make a disk what its snapshot is",
     "What was written to the disk since is gone. Nobody may use the disk meanwhile.\n"},
    {"clone", "SOURCE[@SNAP] NEW", 2, 2, CLI_COUNT, cmd_clone,
     "make a writable copy of a disk or snapshot",
     "With --count N it makes NEW-1 to NEW-N at once, or none of them.\n"},
    {"import", "SOURCE NAME", 2, 2, CLI_QUIET | CLI_FORMAT | CLI_BACKING, cmd_import,
     "make a disk from an image",
     "SOURCE is a file, a block device, - for raw standard input, or an NBD URI. The\n"
     "format of a file is found by its content, so a raw image whose guest wrote the\n"
     "header of another format into it needs --format raw.\n"},
    {"export", "DISK[@SNAP] DESTINATION", 2, 2, CLI_QUIET | CLI_FORMAT, cmd_export,
     "write a disk or snapshot to an image",
     "DESTINATION is a file, a block device, - for standard output, or an NBD URI. A\n"
     "name that ends in .qcow2, .vmdk, .vhdx, .vdi or .vhd gets that format, others\n"
     "raw. Export a snapshot if the disk is in use.\n"},
    {"check", "", 0, 0, CLI_JSON | CLI_QUIET, cmd_check,
     "read everything and verify every checksum and count",
     "Prints a line for each damage; ends with 1 if there is any.\n"},
    {"help", "[COMMAND]", 0, 2, 0, cmd_help, "explain a command", NULL},
};

/* --- options --- */

enum {
    OPT_HELP = 'h',
    OPT_CONNECT = 'c',
    OPT_QUIET = 'q',
    OPT_VERSION = 'V',
    OPT_JSON = 256,
    OPT_COUNT,
    OPT_FORMAT,
    OPT_BACKING,
    OPT_NBD,
    OPT_CONTROL,
    OPT_CAPACITY,
    OPT_DETACH
};

static const struct option long_options[] = {
    {"connect", required_argument, NULL, OPT_CONNECT},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {"json", no_argument, NULL, OPT_JSON},
    {"quiet", no_argument, NULL, OPT_QUIET},
    {"count", required_argument, NULL, OPT_COUNT},
    {"format", required_argument, NULL, OPT_FORMAT},
    {"backing", no_argument, NULL, OPT_BACKING},
    {"nbd", required_argument, NULL, OPT_NBD},
    {"control", required_argument, NULL, OPT_CONTROL},
    {"capacity", required_argument, NULL, OPT_CAPACITY},
    {"detach", no_argument, NULL, OPT_DETACH},
    {NULL, 0, NULL, 0},
};

static const struct option_help {
    unsigned bit;
    const char *name, *text;
} option_helps[] = {
    {CLI_JSON, "--json", "print JSON"},
    {CLI_QUIET, "-q, --quiet", "show no progress"},
    {CLI_COUNT, "--count N", "make N clones, NEW-1 to NEW-N"},
    {CLI_FORMAT, "--format FORMAT", "raw, qcow2, vmdk, vhdx, ...: do not guess"},
    {CLI_BACKING, "--backing", "read the other files the image says it is based on"},
    {CLI_NBD, "--nbd ADDR", "NBD on unix:PATH or HOST:PORT (loopback only)"},
    {CLI_CONTROL, "--control ADDR", "take commands on HOST:PORT, too (loopback only)"},
    {CLI_CAPACITY, "--capacity SIZE", "of a new store; an old one grows to it"},
    {CLI_DETACH, "--detach", "return when the daemon is ready"},
};

struct parsed {
    struct cli cli;
    bool help, version;
};

/* False: getopt has found, and said, what is wrong. */
static bool parse_option(struct parsed *p, int opt)
{
    struct cli *cli = &p->cli;
    unsigned bit = 0;
    switch (opt) {
    case OPT_CONNECT:
        cli->connect = optarg;
        break;
    case OPT_HELP:
        p->help = true;
        break;
    case OPT_VERSION:
        p->version = true;
        break;
    case OPT_JSON:
        cli->json = true;
        bit = CLI_JSON;
        break;
    case OPT_QUIET:
        cli->quiet = true;
        bit = CLI_QUIET;
        break;
    case OPT_COUNT:
        cli->count = optarg;
        bit = CLI_COUNT;
        break;
    case OPT_FORMAT:
        cli->format = optarg;
        bit = CLI_FORMAT;
        break;
    case OPT_BACKING:
        cli->backing = true;
        bit = CLI_BACKING;
        break;
    case OPT_NBD:
        cli->nbd = optarg;
        bit = CLI_NBD;
        break;
    case OPT_CONTROL:
        cli->control = optarg;
        bit = CLI_CONTROL;
        break;
    case OPT_CAPACITY:
        cli->capacity = optarg;
        bit = CLI_CAPACITY;
        break;
    case OPT_DETACH:
        cli->detach = true;
        bit = CLI_DETACH;
        break;
    default:
        return false;
    }
    cli->options |= bit;
    return true;
}

/* --- help --- */

static void print_command(const struct command *c)
{
    printf("usage: parallax %s%s%s%s\n%s\n", c->name, c->args[0] != '\0' ? " " : "",
           c->args, c->options != 0 ? " [OPTION]..." : "", c->summary);
    if (c->help != NULL)
        printf("\n%s", c->help);
    if (c->options != 0)
        printf("\n");
    for (size_t i = 0; i < ARRAY_LEN(option_helps); i++)
        if (c->options & option_helps[i].bit)
            printf("  %-18s %s\n", option_helps[i].name, option_helps[i].text);
}

static void print_help(void)
{
    printf("usage: parallax [-c DIR|SOCKET|HOST:PORT] COMMAND [ARGUMENT]...\n"
           "Virtual disks with snapshots and clones, served over NBD.\n\n");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        char head[64];
        snprintf(head, sizeof head, "%s %s", commands[i].name, commands[i].args);
        printf("  %-32s %s\n", head, commands[i].summary);
    }
    printf("\n"
           "  -c ADDR      the daemon: its folder, control socket or HOST:PORT\n"
           "               (default: $PARALLAX)\n"
           "  -h, --help   of a command, with its options\n"
           "  --version\n"
           "\n"
           "Sizes are binary: 4096, 512M, 10G, 1.5T. Exit status: 0 done, 1 failed,\n"
           "2 wrong usage, 3 no daemon answers.\n");
}

/* Finds the longest command that the words begin with; *ret_words of them. */
static const struct command *find_command(const char *const *words, int count,
                                          int *ret_words)
{
    char two[64];
    snprintf(two, sizeof two, "%s %s", count > 0 ? words[0] : "",
             count > 1 ? words[1] : "");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        bool is_one = count > 0 && strcmp(commands[i].name, words[0]) == 0;
        if (is_one || strcmp(commands[i].name, two) == 0) {
            *ret_words = is_one ? 1 : 2;
            return &commands[i];
        }
    }
    return NULL;
}

/* All commands of a group, "disk" or "snapshot"; false: there is no such group. */
static bool print_group(const char *group)
{
    size_t len = strlen(group);
    bool any = false;
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        const struct command *c = &commands[i];
        if (strncmp(c->name, group, len) != 0 || c->name[len] != ' ')
            continue;
        printf("%s parallax %s %s\n", any ? "      " : "usage:", c->name, c->args);
        any = true;
    }
    return any;
}

static int cmd_help(const struct cli *cli)
{
    int words;
    if (cli->arg_count == 0) {
        print_help();
        return EXIT_OK;
    }
    const struct command *c = find_command(cli->args, cli->arg_count, &words);
    if (c != NULL)
        print_command(c);
    else if (cli->arg_count != 1 || !print_group(cli->args[0]))
        return cli_fail(cli, EXIT_USAGE, "no command '%s'; see 'parallax help'",
                        cli->args[0]);
    return EXIT_OK;
}

/* --- errors --- */

int cli_fail(const struct cli *cli, int exit_code, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    /* One line, whatever a file name or a server's message holds. */
    for (char *p = text; *p != '\0'; p++)
        if ((unsigned char)*p < 0x20)
            *p = ' ';
    fflush(stdout);
    if (cli->command != NULL && exit_code != EXIT_UNREACHABLE)
        fprintf(stderr, "parallax: %s: %s\n", cli->command->name, text);
    else
        fprintf(stderr, "parallax: %s\n", text);
    return exit_code;
}

int cli_fail_error(const struct cli *cli, int code, const struct error *err)
{
    int exit_code = EXIT_FAILED;
    if (code == -ENOTCONN)
        exit_code = EXIT_UNREACHABLE;
    else if (code == -EDESTADDRREQ)
        exit_code = EXIT_USAGE;
    return cli_fail(cli, exit_code, "%s", err->code != 0 ? err->text : err_text(code));
}

int cli_split_snapshot(const char *text, char **ret_disk, char **ret_snapshot,
                       struct error *err)
{
    const char *at = strchr(text, '@');
    size_t disk_len = at != NULL ? (size_t)(at - text) : strlen(text);
    if (disk_len == 0 || (at != NULL && at[1] == '\0'))
        return err_set(err, -EINVAL, "'%s' is neither DISK nor DISK@SNAP", text);
    char *disk = strndup(text, disk_len);
    char *snapshot = at != NULL ? strdup(at + 1) : NULL;
    if (disk == NULL || (at != NULL && snapshot == NULL)) {
        free(disk);
        free(snapshot);
        return -ENOMEM;
    }
    *ret_disk = disk;
    *ret_snapshot = snapshot;
    return 0;
}

/* --- main --- */

static int check_usage(const struct cli *cli, int given)
{
    const struct command *c = cli->command;
    if (given < c->args_min)
        return cli_fail(cli, EXIT_USAGE, "needs %s; see 'parallax help %s'", c->args,
                        c->name);
    if (given > c->args_max)
        return cli_fail(cli, EXIT_USAGE, "too many arguments; see 'parallax help %s'",
                        c->name);
    for (size_t i = 0; i < ARRAY_LEN(option_helps); i++)
        if (cli->options & ~c->options & option_helps[i].bit)
            return cli_fail(cli, EXIT_USAGE, "has no option %s; see 'parallax help %s'",
                            option_helps[i].name, c->name);
    return EXIT_OK;
}

/* A mistake in the first words: says what is missing or unknown. */
static int fail_unknown(const struct cli *cli, const char *const *words, int count)
{
    if (count == 0)
        return cli_fail(cli, EXIT_USAGE, "needs a command; see 'parallax help'");
    if (strcmp(words[0], "disk") == 0 || strcmp(words[0], "snapshot") == 0)
        return cli_fail(cli, EXIT_USAGE,
                        "%s: no such command%s%s; see 'parallax help %s'", words[0],
                        count > 1 ? ": " : "", count > 1 ? words[1] : "", words[0]);
    return cli_fail(cli, EXIT_USAGE, "no command '%s'; see 'parallax help'", words[0]);
}

int main(int argc, char **argv)
{
    struct parsed p = {.cli.connect = getenv("PARALLAX")};
    struct cli *cli = &p.cli;
    argv[0] = (char *)"parallax"; /* what getopt's messages begin with */
    for (int opt; (opt = getopt_long(argc, argv, "c:hqV", long_options, NULL)) != -1;)
        if (!parse_option(&p, opt))
            return EXIT_USAGE;
    const char *const *words = (const char *const *)(argv + optind);
    int count = argc - optind, used = 0;
    if (p.version) {
        printf("parallax %s\n", PARALLAX_VERSION);
        return EXIT_OK;
    }
    const struct command *command = find_command(words, count, &used);
    if (p.help && command != NULL) {
        print_command(command);
        return EXIT_OK;
    }
    if (p.help && (count == 0 || print_group(words[0]))) {
        if (count == 0)
            print_help();
        return EXIT_OK;
    }
    if (command == NULL)
        return fail_unknown(cli, words, count);
    cli->command = command;
    int r = check_usage(cli, count - used);
    if (r != EXIT_OK)
        return r;
    for (; used < count; used++)
        cli->args[cli->arg_count++] = words[used];
    r = command->run(cli);
    if (fflush(stdout) != 0 || ferror(stdout))
        return cli_fail(cli, EXIT_FAILED, "cannot write to standard output");
    return r;
}
