/* SPDX-License-Identifier: Apache-2.0 */
/* The parallax command: its command line, and the table of what it can do. */
#include <getopt.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include "tools/cli.h"

static int cmd_help(const struct cli *cli);

static const struct command commands[] = {
    {"up", "DIR|DEVICE", 1, 1,
     CLI_NBD | CLI_CONTROL | CLI_CAPACITY | CLI_LISTEN | CLI_DETACH, cmd_up,
     "serve the store in a folder or on a block device",
     "Makes the store if there is none, and becomes its daemon, parallaxd.\n"
     "The files are DIR/store, DIR/meta, DIR/nbd.sock, DIR/control.sock; of a block\n"
     "device, all but the store are in /var/lib/parallax/NAME. A node of a cluster\n"
     "that has a new address takes it with --listen, and tells the others.\n"},
    {"down", "", 0, 0, 0, cmd_down, "stop the daemon and wait until it has ended", NULL},
    {"status", "", 0, 0, CLI_JSON, cmd_status, "space, disks and health", NULL},
    {"top", "[SECONDS]", 0, 1, 0, cmd_top, "status and nodes, every second",
     "Until it is interrupted, or the daemon ends.\n"},
    {"cluster init", "DIR|DEVICE", 1, 1, CLI_LISTEN | CLI_DOMAIN | CLI_CAPACITY,
     cmd_cluster_init, "make the first node of a cluster",
     "Of a new store, or of one that has been used alone, whose daemon is stopped: its\n"
     "disks stay. Start it with 'parallax up' afterwards.\n"},
    {"cluster token", "", 0, 0, CLI_VALID | CLI_JSON, cmd_cluster_token,
     "make a token for one new node",
     "It is good for one machine, for an hour unless --valid says otherwise. Who has it\n"
     "can join the cluster.\n"},
    {"cluster join", "DIR|DEVICE ADDR", 2, 2,
     CLI_TOKEN | CLI_LISTEN | CLI_DOMAIN | CLI_CAPACITY | CLI_WITNESS, cmd_cluster_join,
     "make a further node of a cluster",
     "ADDR is where any node of the cluster listens. Start the new one with 'parallax\n"
     "up' afterwards. If it failed half-way, do it again with the same token.\n"},
    {"cluster addresses", "DIR [NODE=ADDR]...", 1, CLI_ARGS_MAX, 0,
     cmd_cluster_addresses, "show or change where a node looks for the others",
     "While its daemon is stopped. For when so many nodes have new addresses that they\n"
     "do not find each other: give all of them, on each host the same; that of the host\n"
     "itself is where it listens from now on. Numbers of nodes are those of 'parallax\n"
     "node ls', and do not change. Without NODE=ADDR it shows what the folder has.\n"},
    {"node ls", "", 0, 0, CLI_JSON, cmd_node_list, "list the nodes of the cluster", NULL},
    {"node show", "NODE", 1, 1, CLI_JSON, cmd_node_show, "show one node",
     "NODE is a number or an address.\n"},
    {"node drain", "NODE", 1, 1, CLI_NO_WAIT, cmd_node_drain,
     "move all data away from a node",
     "Waits until that is done, and says how far it is; whoever ends it does not end\n"
     "the draining. Its disks stay attached. A node that has no data can be removed.\n"},
    {"node undrain", "NODE", 1, 1, 0, cmd_node_undrain, "let a node have data again",
     NULL},
    {"node rm", "NODE", 1, 1, CLI_LOST | CLI_DATA_LOSS, cmd_node_remove,
     "remove a node from the cluster",
     "It must be drained. With --lost it need not: then it must be down, and it never\n"
     "comes back. If it has something that no other node has, that is refused, unless\n"
     "--data-loss is given as well.\n"},
    {"pool create", "NAME", 1, 1, CLI_COPIES | CLI_MIN_COPIES | CLI_DOMAIN,
     cmd_pool_create, "make a rule for how many copies disks have",
     "A write needs at least --min-copies copies. --domain rack: each in another "
     "failure\n"
     "domain of nodes; host: on another node. Without options 3 copies, at least 2, in\n"
     "different domains.\n"},
    {"pool ls", "", 0, 0, CLI_JSON, cmd_pool_list, "list the pools", NULL},
    {"pool set", "NAME", 1, 1, CLI_COPIES | CLI_MIN_COPIES | CLI_DOMAIN, cmd_pool_set,
     "change a pool", "What is there is copied or dropped in the background.\n"},
    {"disk create", "NAME SIZE", 2, 2, CLI_POOL, cmd_disk_create, "make an empty disk",
     NULL},
    {"disk owner", "NAME", 1, 1, CLI_JSON, cmd_disk_owner, "say which node serves a disk",
     NULL},
    {"disk break", "NAME", 1, 1, 0, cmd_disk_break,
     "take a disk from the node that owns it",
     "By force, to the node that is asked: for when the owner is known to be dead and "
     "the\n"
     "cluster does not know it yet. If a guest still uses the disk there, its writes "
     "fail\n"
     "from then on; what was acknowledged to it is kept.\n"},
    {"serve", "NAME[@SNAP]", 1, 1, CLI_INCOMING, cmd_serve,
     "make a disk ready for a guest of this node",
     "Brings it here, if another node has it and no client uses it there, and prints\n"
     "its NBD URI. With --incoming the disk stays where it is until something is\n"
     "written to that URI: for the QEMU that a running guest is to move to.\n"},
    {"migrate", "NAME", 1, 1, CLI_TO, cmd_migrate, "hand a disk over to another node",
     "That no client uses; without --to to the node that is asked. One that a guest\n"
     "uses moves with it: see 'parallax help serve'.\n"},
    {"disk ls", "", 0, 0, CLI_JSON, cmd_disk_list, "list all disks", NULL},
    {"disk show", "NAME", 1, 1, CLI_JSON, cmd_disk_show,
     "show one disk, and what it and its snapshots hold",
     "REFERENCED is the data that can be read there; EXCLUSIVE what would be freed if\n"
     "that one were removed; SHARED the rest.\n"},
    {"disk resize", "NAME SIZE", 2, 2, 0, cmd_disk_resize, "change the size of a disk",
     "A disk can shrink only while nobody uses it; what lies behind its new end is\n"
     "gone.\n"},
    {"disk rename", "OLD NEW", 2, 2, 0, cmd_disk_rename, "give a disk another name",
     NULL},
    {"disk set", "NAME", 1, 1, CLI_QUOTA | CLI_POOL, cmd_disk_set,
     "limit the space of a disk, or change its pool",
     "With a quota, writes that would make the disk's own data larger fail with \"no\n"
     "space\"; its snapshots count. In another pool is what is written from now on; the\n"
     "disk's own data follows in the background ('parallax disk show' says moving). Its\n"
     "snapshots, and what a clone shares with its source, stay where they are.\n"},
    {"disk rm", "NAME", 1, 1, CLI_RECURSIVE, cmd_disk_remove, "move a disk to the trash",
     "Refused while the disk is used; a disk with snapshots only goes with --recursive.\n"
     "It can be restored for a day ('parallax help trash keep'), unless the store is "
     "full\n"
     "before: then the oldest in the trash goes for good. Clones are not affected.\n"},
    {"disk uri", "NAME[@SNAP]", 1, 1, 0, cmd_disk_uri, "print the NBD URI of a disk",
     NULL},
    {"snapshot create", "DISK@SNAP", 1, 1, 0, cmd_snapshot_create,
     "keep a disk as it is now", NULL},
    {"snapshot ls", "DISK", 1, 1, CLI_JSON, cmd_snapshot_list,
     "list the snapshots of a disk", NULL},
    {"snapshot rollback", "DISK@SNAP", 1, 1, 0, cmd_snapshot_rollback,
     "make a disk what its snapshot is",
     "What was written to the disk since is gone. Nobody may use the disk meanwhile.\n"},
    {"snapshot rm", "DISK[@SNAP]", 1, 1, CLI_KEEP_LAST | CLI_OLDER_THAN,
     cmd_snapshot_remove, "remove snapshots",
     "One, or with an option all old ones of DISK. The space that only they held comes\n"
     "back in the background. Clones are not affected. TIME is 30m, 12h, 7d, 2w, or a\n"
     "date like 2026-01-31 or 2026-01-31T12:00 (UTC).\n"},
    {"snapshot diff", "DISK@SNAP [DISK[@SNAP]]", 1, 2, CLI_JSON, cmd_snapshot_diff,
     "list what has changed",
     "Between two snapshots of a disk, or since one: ranges of OFFSET and LENGTH in\n"
     "bytes, and whether they read as zeros now.\n"},
    {"snapshot schedule", "DISK", 1, 1, CLI_EVERY | CLI_KEEP | CLI_NONE | CLI_JSON,
     cmd_snapshot_schedule, "make snapshots by the clock",
     "Each --every TIME --keep N is a rule: a snapshot at every full hour (1h), day "
     "(1d,\n"
     "at 0:00 UTC) and so on, unless the disk was not written since the last one; the\n"
     "newest N are kept. New rules replace all others; without an option they are\n"
     "shown. TIME is from 1m to 366d.\n"},
    {"clone", "SOURCE[@SNAP] NEW", 2, 2, CLI_COUNT, cmd_clone,
     "make a writable copy of a disk or snapshot",
     "With --count N it makes NEW-1 to NEW-N at once, or none of them.\n"},
    {"import", "SOURCE NAME | FILE --onto DISK", 1, 2,
     CLI_QUIET | CLI_FORMAT | CLI_BACKING | CLI_ONTO, cmd_import,
     "make a disk from an image, or apply an increment",
     "SOURCE is a file, a block device, - for raw standard input, or an NBD URI. The\n"
     "format of a file is found by its content, so a raw image whose guest wrote the\n"
     "header of another format into it needs --format raw.\n"
     "\n"
     "With --onto, FILE (or -) is an increment made by export --since: DISK must be as\n"
     "in its snapshot that is named like the increment's base, and gets a snapshot\n"
     "named like its target. If it fails, DISK is rolled back.\n"},
    {"export", "DISK[@SNAP] DESTINATION", 2, 2, CLI_QUIET | CLI_FORMAT | CLI_SINCE,
     cmd_export, "write a disk, a snapshot or an increment to a file",
     "DESTINATION is a file, a block device, - for standard output, or an NBD URI. A\n"
     "name that ends in .qcow2, .vmdk, .vhdx, .vdi or .vhd gets that format, others\n"
     "raw. Export a snapshot if the disk is in use.\n"
     "\n"
     "With --since, DESTINATION is a file or -, and gets an increment: what differs in\n"
     "DISK@SNAP from an older snapshot, for import --onto.\n"},
    {"trash ls", "", 0, 0, CLI_JSON, cmd_trash_list, "list removed disks", NULL},
    {"trash restore", "NAME [NEW]", 1, 2, 0, cmd_trash_restore,
     "bring a removed disk back",
     "With its snapshots, under its old name or NEW; of several of one name, the one\n"
     "removed last.\n"},
    {"trash empty", "[NAME]", 0, 1, 0, cmd_trash_empty, "remove disks for good",
     "All in the trash, or those of one name. Their space comes back in the\n"
     "background.\n"},
    {"trash keep", "TIME", 1, 1, 0, cmd_trash_keep,
     "set how long removed disks can be restored",
     "TIME is 30m, 12h, 7d or 2w; 0: not at all, which also empties the trash. A new\n"
     "store keeps them for 1d.\n"},
    {"scrub", "[start|status|pause]", 0, 1, CLI_JSON | CLI_RATE, cmd_scrub,
     "read everything in the background and verify it",
     "start (also without a word) begins, or goes on after a pause; status tells how\n"
     "far it is and what it found.\n"},
    {"check", "", 0, 0, CLI_JSON | CLI_QUIET | CLI_REPAIR, cmd_check,
     "read everything and verify every checksum and count",
     "Prints a line for each damage; ends with 1 if there is any. Also finds blocks\n"
     "that take space although no disk or snapshot needs them.\n"},
    {"help", "[COMMAND]", 0, 2, 0, cmd_help, "explain a command", NULL},
};

/* --- options --- */

enum { OPT_HELP = 'h', OPT_CONNECT = 'c', OPT_QUIET = 'q', OPT_VERSION = 'V' };

#define FIELD(name) offsetof(struct cli, name)

/* Options of some commands. */
static const struct option_spec {
    uint64_t bit;
    const char *name;
    const char *value; /* NULL: it has none, the field is a bool */
    size_t field;      /* of struct cli */
    const char *text;
} specs[] = {
    {CLI_JSON, "json", NULL, FIELD(json), "print JSON"},
    {CLI_QUIET, "quiet", NULL, FIELD(quiet), "show no progress"},
    {CLI_COUNT, "count", "N", FIELD(count), "make N clones, NEW-1 to NEW-N"},
    {CLI_FORMAT, "format", "FORMAT", FIELD(format),
     "raw, qcow2, vmdk, vhdx, ...: do not guess"},
    {CLI_BACKING, "backing", NULL, FIELD(backing),
     "read the other files the image says it is based on"},
    {CLI_NBD, "nbd", "ADDR", FIELD(nbd), "NBD on unix:PATH or HOST:PORT (loopback only)"},
    {CLI_CONTROL, "control", "ADDR", FIELD(control),
     "take commands on HOST:PORT, too (loopback only)"},
    {CLI_CAPACITY, "capacity", "SIZE", FIELD(capacity),
     "of a new store; an old one grows to it"},
    {CLI_DETACH, "detach", NULL, FIELD(detach), "return when the daemon is ready"},
    {CLI_SINCE, "since", "SNAP", FIELD(since), "only what has changed since SNAP"},
    {CLI_ONTO, "onto", "DISK", FIELD(onto), "apply an increment to DISK"},
    {CLI_KEEP_LAST, "keep-last", "N", FIELD(keep_last), "all but the newest N"},
    {CLI_OLDER_THAN, "older-than", "TIME", FIELD(older_than),
     "all that were made before"},
    {CLI_RECURSIVE, "recursive", NULL, FIELD(recursive), "with its snapshots"},
    {CLI_EVERY, "every", "TIME", FIELD(rules), "10m, 1h, 1d, ...; up to 8 times"},
    {CLI_KEEP, "keep", "N", FIELD(rules), "how many of the --every before it"},
    {CLI_NONE, "none", NULL, FIELD(none), "end the schedule; snapshots stay"},
    {CLI_QUOTA, "quota", "SIZE", FIELD(quota), "or none"},
    {CLI_RATE, "rate", "SIZE", FIELD(rate), "at most so many bytes a second"},
    {CLI_LISTEN, "listen", "ADDR", FIELD(listen),
     "HOST:PORT where other nodes reach this one"},
    {CLI_DOMAIN, "domain", "NAME", FIELD(domain),
     "what fails together: a rack; of a pool: host or rack"},
    {CLI_TOKEN, "token", "TOKEN", FIELD(token),
     "of 'parallax cluster token'; -: from standard input"},
    {CLI_WITNESS, "witness", NULL, FIELD(witness), "it only votes and has no data"},
    {CLI_VALID, "valid", "MINUTES", FIELD(valid), "how long it is good for"},
    {CLI_LOST, "lost", NULL, FIELD(lost), "it never comes back"},
    {CLI_NO_WAIT, "no-wait", NULL, FIELD(no_wait), "only begin it"},
    {CLI_DATA_LOSS, "data-loss", NULL, FIELD(data_loss),
     "what only it has may be lost"},
    {CLI_COPIES, "copies", "N", FIELD(copies), "of all data"},
    {CLI_MIN_COPIES, "min-copies", "N", FIELD(min_copies), "that a write needs"},
    {CLI_POOL, "pool", "NAME", FIELD(pool), "whose copies it has"},
    {CLI_TO, "to", "NODE", FIELD(to), "a number or an address"},
    {CLI_INCOMING, "incoming", NULL, FIELD(incoming),
     "for the destination of a live migration"},
    {CLI_REPAIR, "repair", NULL, FIELD(repair),
     "free what nothing needs, rebuild map nodes"},
};

/* What getopt returns for a spec: above all letters. */
#define OPT_FIRST 256

/* An --every begins a rule, the --keep behind it ends it. */
static bool add_rule(struct cli *cli, const struct option_spec *spec)
{
    struct cli_rule *last = cli->rule_count > 0 ? &cli->rules[cli->rule_count - 1] : NULL;
    if (spec->bit == CLI_KEEP) {
        if (last == NULL || last->keep != NULL) {
            fprintf(stderr, "parallax: --keep %s: stands behind an --every\n", optarg);
            return false;
        }
        last->keep = optarg;
        return true;
    }
    if (cli->rule_count == CLI_RULES_MAX) {
        fprintf(stderr, "parallax: --every: at most %d times\n", CLI_RULES_MAX);
        return false;
    }
    cli->rules[cli->rule_count++].every = optarg;
    return true;
}

struct parsed {
    struct cli cli;
    bool help, version;
};

/* False: what is wrong has been said. */
static bool parse_option(struct parsed *p, int opt)
{
    struct cli *cli = &p->cli;
    if (opt == OPT_CONNECT) {
        cli->connect = optarg;
    } else if (opt == OPT_HELP) {
        p->help = true;
    } else if (opt == OPT_VERSION) {
        p->version = true;
    } else if (opt == OPT_QUIET) {
        cli->quiet = true;
        cli->options |= CLI_QUIET;
    } else if (opt >= OPT_FIRST) {
        const struct option_spec *spec = &specs[opt - OPT_FIRST];
        char *field = (char *)cli + spec->field;
        cli->options |= spec->bit;
        if (spec->bit & (CLI_EVERY | CLI_KEEP))
            return add_rule(cli, spec);
        if (spec->value != NULL)
            memcpy(field, &optarg, sizeof optarg);
        else
            *(bool *)field = true;
    } else {
        return false;
    }
    return true;
}

static bool parse_options(struct parsed *p, int argc, char **argv)
{
    struct option options[ARRAY_LEN(specs) + 4] = {
        {"connect", required_argument, NULL, OPT_CONNECT},
        {"help", no_argument, NULL, OPT_HELP},
        {"version", no_argument, NULL, OPT_VERSION},
    };
    for (size_t i = 0; i < ARRAY_LEN(specs); i++)
        options[3 + i] = (struct option){
            specs[i].name, specs[i].value != NULL ? required_argument : no_argument, NULL,
            OPT_FIRST + (int)i};
    for (int opt; (opt = getopt_long(argc, argv, "c:hqV", options, NULL)) != -1;)
        if (!parse_option(p, opt))
            return false;
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
    for (size_t i = 0; i < ARRAY_LEN(specs); i++) {
        char head[40];
        if (!(c->options & specs[i].bit))
            continue;
        snprintf(head, sizeof head, "%s--%s%s%s", specs[i].bit == CLI_QUIET ? "-q, " : "",
                 specs[i].name, specs[i].value != NULL ? " " : "",
                 specs[i].value != NULL ? specs[i].value : "");
        printf("  %-18s %s\n", head, specs[i].text);
    }
}

static void print_help(void)
{
    printf("usage: parallax [-c DIR|SOCKET|HOST:PORT] COMMAND [ARGUMENT]...\n"
           "Virtual disks with snapshots and clones, served over NBD.\n\n");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        char head[64];
        snprintf(head, sizeof head, "%s %s", commands[i].name, commands[i].args);
        printf("  %-38s %s\n", head, commands[i].summary);
    }
    printf("\n"
           "  -c ADDR      the daemon: its folder, control socket or HOST:PORT\n"
           "               (default: $PARALLAX)\n"
           "  -h, --help   of a command, with its options\n"
           "  --version\n"
           "\n"
           "Sizes are binary: 4096, 512M, 10G, 1.5T. Times are 30m, 12h, 7d, 2w. Exit\n"
           "status: 0 done, 1 failed, 2 wrong usage, 3 no daemon answers.\n");
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

/* "disk", "snapshot", "node" ... */
static bool is_group(const char *word)
{
    size_t len = strlen(word);
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        if (strncmp(commands[i].name, word, len) == 0 && commands[i].name[len] == ' ')
            return true;
    return false;
}

/* All commands of a group; false: there is no such group. */
static bool print_group(const char *group)
{
    size_t len = strlen(group);
    bool any = false;
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        const struct command *c = &commands[i];
        if (strncmp(c->name, group, len) != 0 || c->name[len] != ' ')
            continue;
        printf("%s parallax %s%s%s\n", any ? "      " : "usage:", c->name,
               c->args[0] != '\0' ? " " : "", c->args);
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
    for (size_t i = 0; i < ARRAY_LEN(specs); i++)
        if (cli->options & ~c->options & specs[i].bit)
            return cli_fail(cli, EXIT_USAGE, "has no option --%s; see 'parallax help %s'",
                            specs[i].name, c->name);
    return EXIT_OK;
}

/* A mistake in the first words: says what is missing or unknown. */
static int fail_unknown(const struct cli *cli, const char *const *words, int count)
{
    if (count == 0)
        return cli_fail(cli, EXIT_USAGE, "needs a command; see 'parallax help'");
    if (is_group(words[0]))
        return cli_fail(cli, EXIT_USAGE,
                        "%s: no such command%s%s; see 'parallax help %s'", words[0],
                        count > 1 ? ": " : "", count > 1 ? words[1] : "", words[0]);
    return cli_fail(cli, EXIT_USAGE, "no command '%s'; see 'parallax help'", words[0]);
}

int main(int argc, char **argv)
{
    struct parsed p = {.cli = {.argv = argv, .connect = getenv("PARALLAX")}};
    struct cli *cli = &p.cli;
    argv[0] = (char *)"parallax"; /* what getopt's messages begin with */
    if (!parse_options(&p, argc, argv))
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
