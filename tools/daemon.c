/* SPDX-License-Identifier: Apache-2.0 */
/*
 * parallaxd: one store, its disks over NBD, its control socket; and, if the folder has an
 * identity, a node of a cluster.
 *
 * The folder is locked first, then a task opens the store and starts listening; from
 * then on the loop runs until SIGTERM, SIGINT or a command asks it to stop: no new
 * connections, what is in flight ends, disks and store are closed. A second signal ends
 * the process at once, which loses nothing that was acknowledged. So does a stop that has
 * nobody left to agree with for STOP_ALONE_MS, as when all hosts are stopped together.
 * What waits for members that do not come fails after a while (host_stop_soon).
 *
 * What fails before the daemon is ready is one line on standard error. A detached daemon
 * sends it through a pipe to the process that started it, which prints it and fails. What
 * is only worth knowing goes the same way; the process prints it and does not fail.
 */
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cow/host.h"
#include "nbdserver/nbd.h"
#include "tools/address.h"
#include "tools/addresses.h"
#include "tools/control_server.h"
#include "tools/control_wire.h"
#include "tools/daemon_node.h"
#include "tools/prepare.h"
#include "tools/size.h"
#include "tools/uri.h"

#define READY     "ready\n"
#define EXIT_FAIL 1
#define EXIT_USE  2

#define STOP_ALONE_MS 5000U
#define STOP_LOOK_MS  500U

/* What is to be done: serve, or something with a folder that is not served. */
enum mode { MODE_SERVE, MODE_INIT, MODE_JOIN, MODE_ADDRESSES };

struct daemon_options {
    enum mode mode;
    const char *listen, *domain, *contact, *token;
    bool is_witness;
    const char *argument; /* DIR or DEVICE */
    char *const *changes; /* of addresses */
    uint32_t change_count;
    struct socket_address nbd, control;
    bool has_nbd, has_control;
    uint64_t capacity_bytes; /* 0: not given */
    bool detach;
};

struct daemon {
    struct daemon_options options;
    struct directory dir;
    struct socket_address nbd, control_socket;
    char *nbd_uri;
    struct loop *loop;
    struct daemon_node *node; /* NULL: of no cluster but its own */
    struct host *host;
    struct nbd_server *nbd_server;
    struct control_server *control;
    struct task_call task;
    int ready_fd; /* to the process that started us; -1: none, or told already */
    bool running; /* opened; the stop task may start */
    bool stop_wanted, stopping;
    struct timer alone; /* looks, while stopping, whether anybody leads */
    uint64_t led_ns;    /* when somebody did */
    int exit_code;
};

/* --- what a starting daemon says --- */

static void write_all(int fd, const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, text, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return; /* nobody listens any more */
        text += n;
        len -= (size_t)n;
    }
}

/* One line, to whoever started us, and to our log if there is one. */
static void attr_printf(2, 3) say(struct daemon *d, const char *fmt, ...)
{
    char text[1024];
    int n = snprintf(text, sizeof text, "parallaxd: ");
    va_list args;
    va_start(args, fmt);
    vsnprintf(text + n, sizeof text - (size_t)n - 1, fmt, args);
    va_end(args);
    strcat(text, "\n");
    if (d->ready_fd >= 0)
        write_all(d->ready_fd, text, strlen(text));
    if (d->ready_fd < 0 || d->dir.lock_fd >= 0)
        write_all(STDERR_FILENO, text, strlen(text));
}

static void tell_ready(struct daemon *d)
{
    if (d->ready_fd < 0)
        return;
    write_all(d->ready_fd, READY, strlen(READY));
    close(d->ready_fd);
    d->ready_fd = -1;
}

/* The process that was started by hand: waits for the daemon, which is its child. */
static int wait_ready(int fd)
{
    char text[1024];
    size_t len = 0;
    for (;;) {
        ssize_t n = read(fd, text + len, sizeof text - 1 - len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        len += (size_t)n;
    }
    text[len] = '\0';
    size_t told = len - min_u64(len, strlen(READY));
    /* A line of its own: an error may end in "already". */
    bool is_line = told == 0 || text[told - 1] == '\n';
    if (is_line && strcmp(text + told, READY) == 0) {
        text[told] = '\0';
        fputs(text, stderr);
        return 0;
    }
    if (len == 0)
        fprintf(stderr, "parallaxd: ended before it was ready; its log may say why\n");
    else
        fputs(text, stderr);
    return EXIT_FAIL;
}

/* Returns in the daemon only. */
static void detach(struct daemon *d)
{
    int fds[2];
    pid_t pid = pipe2(fds, O_CLOEXEC) < 0 ? -1 : fork();
    if (pid < 0) {
        say(d, "cannot detach: %s", strerror(errno));
        exit(EXIT_FAIL);
    }
    if (pid > 0) {
        close(fds[1]);
        exit(wait_ready(fds[0]));
    }
    close(fds[0]);
    d->ready_fd = fds[1];
    setsid();
}

/* --- stopping --- */

static async void stop_main(struct task_call *task)
{
    struct daemon *d = container_of(task, struct daemon, task);
    /* Imports are discarded when their NBD clients are gone. */
    if (d->nbd_server != NULL)
        nbd_server_destroy(take(d->nbd_server));
    if (d->control != NULL)
        control_server_stop(d->control);
    if (d->host != NULL)
        host_close(take(d->host));
    if (d->node != NULL) {
        daemon_node_detach(d->node);
        daemon_node_close(take(d->node));
    }
    timer_stop(d->loop, &d->alone);
    /* Last: a command that waits for our end sees it when its connection ends. */
    control_server_destroy(take(d->control));
    loop_stop(d->loop);
}

/* What is not brought to an end now is when the disks are opened again. */
static void look_for_leader(struct timer *timer)
{
    struct daemon *d = container_of(timer, struct daemon, alone);
    uint64_t now_ns = loop_now_ns(d->loop);
    if (d->node == NULL)
        return;
    struct cluster *cluster = membership_cluster(daemon_node_membership(d->node));
    if (consensus_leader(cluster_consensus(cluster)) != 0)
        d->led_ns = now_ns;
    if (now_ns - d->led_ns >= STOP_ALONE_MS * NS_PER_MS) {
        log_warning(d->loop, "no majority of the nodes is in reach: stopping as it is");
        _exit(d->exit_code);
    }
    timer_start(d->loop, timer, STOP_LOOK_MS * NS_PER_MS);
}

static void stop_start(struct daemon *d)
{
    d->stop_wanted = true;
    if (!d->running || d->stopping)
        return;
    d->stopping = true;
    if (d->host != NULL)
        host_stop_soon(d->host);
    d->task = (struct task_call){
        .main = stop_main, .name = "daemon stop", .system = true};
    task_start(d->loop, &d->task);
    d->led_ns = loop_now_ns(d->loop);
    d->alone.fire = look_for_leader;
    timer_start(d->loop, &d->alone, STOP_LOOK_MS * NS_PER_MS);
}

static void on_signal(void *arg, int signo)
{
    struct daemon *d = arg;
    /* What prepares a folder can be done again. */
    if (d->stop_wanted || d->options.mode != MODE_SERVE)
        _exit(128 + signo);
    log_info(d->loop, "%s: stopping", strsignal(signo));
    stop_start(d);
}

static void on_shut_down(void *arg)
{
    struct daemon *d = arg;
    log_info(d->loop, "asked to stop");
    stop_start(d);
}

/* --- starting --- */

static void on_node_failed(void *arg, const char *why)
{
    struct daemon *d = arg;
    say(d, "%s", why);
    d->exit_code = EXIT_FAIL;
    stop_start(d);
}

/* As a node of a cluster, if there is an identity. */
static async int open_node(struct daemon *d, struct identity *identity, struct error *err)
{
    const struct daemon_node_options options = {
        .loop = d->loop,
        .dir = &d->dir,
        .identity = identity,
        .capacity_bytes = d->options.capacity_bytes,
        .listen = d->options.listen,
        .failed = on_node_failed,
        .arg = d,
    };
    return daemon_node_open(&options, &d->node, err);
}

static async int open_host(struct daemon *d, struct error *err)
{
    struct host_options options = {
        .store_path = d->dir.store,
        .kv_path = d->dir.meta,
        .capacity_bytes = d->options.capacity_bytes,
    };
    struct host_parts parts;
    struct identity identity;
    bool is_node, was_made = false;
    int r = identity_load(&d->dir, &identity, &is_node, err);
    if (r == 0 && is_node)
        r = open_node(d, &identity, err);
    else if (r == 0 && d->options.listen != NULL)
        r = err_set(err, -PLX_EPRECONDITION,
                    "%s is no node of a cluster, so there is nobody to --listen for; "
                    "'parallax cluster init' makes it one",
                    d->dir.path);
    else if (r == 0)
        r = prepare_store(&d->dir, d->loop, &options, &was_made, err);
    if (r < 0)
        return r;
    if (was_made)
        options.capacity_bytes = 0;
    if (d->node != NULL) {
        parts = daemon_node_parts(d->node);
        options.parts = &parts;
    }
    return host_open(d->loop, &options, &d->host, err);
}

static async int listen_nbd(struct daemon *d, struct error *err)
{
    d->nbd_server = nbd_server_create(d->loop, d->host, NULL);
    if (d->nbd_server == NULL)
        return err_set(err, -ENOMEM, "nbd: %s", err_text(-ENOMEM));
    if (d->nbd.kind == ADDRESS_TCP)
        return nbd_server_listen_tcp(d->nbd_server, d->nbd.host,
                                     (uint16_t)strtoul(d->nbd.port, NULL, 10), NULL, err);
    return nbd_server_listen_unix(d->nbd_server, d->nbd.path, err);
}

static int listen_control(struct daemon *d, struct error *err)
{
    const struct control_services services = {
        .loop = d->loop,
        .host = d->host,
        .membership = d->node != NULL ? daemon_node_membership(d->node) : NULL,
        .directory = d->dir.path,
        .nbd_uri = d->nbd_uri,
        .shut_down = on_shut_down,
        .arg = d,
    };
    d->control = control_server_create(&services);
    if (d->control == NULL)
        return err_set(err, -ENOMEM, "control: %s", err_text(-ENOMEM));
    int r = control_server_listen(d->control, &d->control_socket, err);
    if (r == 0 && d->options.has_control)
        r = control_server_listen(d->control, &d->options.control, err);
    return r;
}

/* A store larger than what its file system has room for is legitimate, and so is a
 * capacity below that of the store; that nothing comes of it may be a surprise. */
static void say_capacity(struct daemon *d)
{
    struct host_status s;
    host_status(d->host, &s);
    uint64_t asked = round_down_u64(d->options.capacity_bytes, SLAB_BYTES);
    if (asked != 0 && asked < s.capacity_bytes)
        say(d, "warning: --capacity %s has no effect: the store has %s and cannot shrink",
            size_text(d->options.capacity_bytes).text, size_text(s.capacity_bytes).text);
    if (s.withheld_bytes > 0)
        say(d,
            "warning: capacity %s, but only %s can be stored here: the file system of %s "
            "has no room for more; %s of it are left to metadata",
            size_text(s.capacity_bytes).text,
            size_text(s.capacity_bytes - s.withheld_bytes).text, d->dir.store,
            size_text(s.host_reserve_bytes).text);
}

static async void start_main(struct task_call *task)
{
    struct daemon *d = container_of(task, struct daemon, task);
    struct error err = {0};
    int r = open_host(d, &err);
    if (r == 0)
        r = listen_nbd(d, &err);
    if (r == 0)
        r = listen_control(d, &err);
    if (r == 0 && d->node != NULL)
        daemon_node_attach(d->node, d->host, d->control);
    if (r == 0)
        r = directory_write_pid(&d->dir, &err);
    d->running = true;
    if (r < 0) {
        say(d, "%s", err.code != 0 ? err.text : err_text(r));
        d->exit_code = EXIT_FAIL;
        d->stop_wanted = true;
    } else {
        log_info(d->loop, "%s: ready, NBD on %s", d->dir.path,
                 address_text(&d->nbd).text);
        say_capacity(d);
        tell_ready(d);
    }
    if (d->stop_wanted)
        stop_start(d);
}

/* Makes a node of the folder, says what is next, and ends. */
static async void prepare_main(struct task_call *task)
{
    struct daemon *d = container_of(task, struct daemon, task);
    const struct daemon_options *o = &d->options;
    const struct prepare_options options = {
        .loop = d->loop,
        .dir = &d->dir,
        .listen = o->listen,
        .domain = o->domain,
        .capacity_bytes = o->capacity_bytes,
        .contact = o->contact,
        .token = o->token,
        .is_witness = o->is_witness,
    };
    struct error err = {0};
    int r = o->mode == MODE_INIT ? prepare_init(&options, &err)
                                 : prepare_join(&options, &err);
    if (r < 0)
        say(d, "%s", err.code != 0 ? err.text : err_text(r));
    else
        printf("%s is a node of the cluster now; start it with 'parallax up %s'\n",
               d->dir.path, o->argument);
    d->exit_code = r < 0 ? EXIT_FAIL : 0;
    loop_stop(d->loop);
}

static int choose_addresses(struct daemon *d, struct error *err)
{
    char path[PATH_MAX];
    int r = directory_path(&d->dir, CONTROL_SOCKET_NAME, path, err);
    if (r == 0)
        r = address_of_path(path, &d->control_socket, err);
    d->nbd = d->options.nbd;
    if (r == 0 && !d->options.has_nbd)
        r = directory_path(&d->dir, "nbd.sock", path, err);
    if (r == 0 && !d->options.has_nbd)
        r = address_of_path(path, &d->nbd, err);
    if (r < 0)
        return r;
    d->nbd_uri = uri_of_address(&d->nbd, "");
    return d->nbd_uri != NULL ? 0 : -ENOMEM;
}

/* Of a folder that is there. */
static int run_addresses(struct daemon *d, struct error *err)
{
    const struct daemon_options *o = &d->options;
    if (access(o->argument, F_OK) < 0)
        return err_set(err, -errno, "%s: %s", o->argument, strerror(errno));
    int r = directory_open(&d->dir, o->argument, err);
    return r < 0 ? r : prepare_addresses(&d->dir, o->changes, o->change_count, err);
}

static int run(struct daemon *d, struct error *err)
{
    if (d->options.mode == MODE_ADDRESSES)
        return run_addresses(d, err);
    int r = directory_open(&d->dir, d->options.argument, err);
    if (r == 0 && d->options.detach)
        r = directory_redirect(&d->dir, err);
    if (r == 0)
        r = choose_addresses(d, err);
    if (r < 0)
        return r;
    if (!crc32c_self_test())
        return err_set(err, -EIO, "this processor computes CRC32C wrongly; not starting");
    trace_dump_on_abort();
    d->loop = loop_create();
    if (d->loop == NULL)
        return err_set(err, -ENOMEM, "cannot make the event loop");
    if (d->options.mode != MODE_SERVE) /* what went wrong is said at the end */
        log_set_level(loop_log(d->loop), LOG_ERROR);
    r = loop_on_signal(d->loop, on_signal, d);
    if (r < 0)
        return err_set(err, r, "cannot catch signals: %s", err_text(r));
    d->task = (struct task_call){.main = d->options.mode == MODE_SERVE ? start_main
                                                                       : prepare_main,
                                 .name = "daemon start",
                                 .system = true};
    task_start(d->loop, &d->task);
    loop_run(d->loop);
    return 0;
}

/* --- the command line --- */

static const char usage_text[] =
    "usage: parallaxd [OPTION]... DIR|DEVICE\n"
    "Serves the virtual disks of the store in folder DIR, or on a block device.\n"
    "\n"
    "  --nbd ADDR        NBD on unix:PATH or, loopback only, HOST:PORT\n"
    "                    (default: DIR/nbd.sock)\n"
    "  --control ADDR    take commands on HOST:PORT, too (loopback only)\n"
    "  --capacity SIZE   of a new store (default: half of the free space, or the\n"
    "                    whole device); an old one grows to it\n"
    "  --detach          return when the daemon is ready; it goes on in the background\n"
    "\n"
    "  --cluster-init    make DIR the first node of a cluster, and end\n"
    "  --cluster-join ADDR  make DIR a node of the cluster that a node at ADDR is of\n"
    "  --cluster-addresses  show where DIR looks for the nodes of its cluster, and end;\n"
    "                    after each NODE=HOST:PORT behind DIR has been changed\n"
    "  --listen ADDR     HOST:PORT where other nodes reach this one, if that is new\n"
    "  --domain NAME     what fails together with this node: a rack, a room\n"
    "  --token TOKEN     of 'parallax cluster token'; -: a line of standard input\n"
    "  --witness         without a store: it only votes\n"
    "\n"
    "  --help, --version\n";

enum {
    OPT_NBD = 256,
    OPT_CONTROL,
    OPT_CAPACITY,
    OPT_DETACH,
    OPT_INIT,
    OPT_JOIN,
    OPT_ADDRESSES,
    OPT_LISTEN,
    OPT_DOMAIN,
    OPT_TOKEN,
    OPT_WITNESS,
    OPT_HELP,
    OPT_VERSION,
};

static const struct option long_options[] = {
    {"nbd", required_argument, NULL, OPT_NBD},
    {"control", required_argument, NULL, OPT_CONTROL},
    {"capacity", required_argument, NULL, OPT_CAPACITY},
    {"detach", no_argument, NULL, OPT_DETACH},
    {"cluster-init", no_argument, NULL, OPT_INIT},
    {"cluster-join", required_argument, NULL, OPT_JOIN},
    {"cluster-addresses", no_argument, NULL, OPT_ADDRESSES},
    {"listen", required_argument, NULL, OPT_LISTEN},
    {"domain", required_argument, NULL, OPT_DOMAIN},
    {"token", required_argument, NULL, OPT_TOKEN},
    {"witness", no_argument, NULL, OPT_WITNESS},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

static int parse_capacity(const char *text, uint64_t *ret_bytes, struct error *err)
{
    int r = size_parse(text, ret_bytes, err);
    if (r == 0 && *ret_bytes < BLOCK_SIZE)
        return err_set(err, -EINVAL, "--capacity %s: too small for a store", text);
    *ret_bytes = round_down_u64(*ret_bytes, BLOCK_SIZE);
    return r;
}

/* Options of a mode that is not to serve; false: it is none of them. */
static bool parse_prepare_option(struct daemon_options *o, int opt)
{
    switch (opt) {
    case OPT_INIT:
        o->mode = MODE_INIT;
        return true;
    case OPT_JOIN:
        o->mode = MODE_JOIN;
        o->contact = optarg;
        return true;
    case OPT_ADDRESSES:
        o->mode = MODE_ADDRESSES;
        return true;
    case OPT_LISTEN:
        o->listen = optarg;
        return true;
    case OPT_DOMAIN:
        o->domain = optarg;
        return true;
    case OPT_TOKEN:
        o->token = optarg;
        return true;
    case OPT_WITNESS:
        o->is_witness = true;
        return true;
    default:
        return false;
    }
}

/* Which options go with which mode. */
static int check_mode(const struct daemon_options *o, struct error *err)
{
    bool prepares = o->mode == MODE_INIT || o->mode == MODE_JOIN;
    if (prepares && o->listen == NULL)
        return err_set(err, -EINVAL,
                       "a node of a cluster needs --listen HOST:PORT, where the other "
                       "nodes reach it");
    if (o->mode != MODE_SERVE && (o->has_nbd || o->has_control || o->detach))
        return err_set(err, -EINVAL, "--nbd, --control and --detach are for serving");
    if ((o->mode == MODE_JOIN) != (o->token != NULL))
        return err_set(err, -EINVAL, "--cluster-join and --token go together");
    if (o->mode != MODE_JOIN && o->is_witness)
        return err_set(err, -EINVAL, "--witness is for --cluster-join");
    if (!prepares && o->domain != NULL)
        return err_set(err, -EINVAL,
                       "--domain is for --cluster-init and --cluster-join; the cluster "
                       "keeps it");
    if (o->mode == MODE_ADDRESSES && (o->listen != NULL || o->capacity_bytes != 0))
        return err_set(err, -EINVAL, "--cluster-addresses has no other options");
    if (o->mode == MODE_SERVE && o->listen != NULL &&
        join_address_check(o->listen, err) < 0)
        return err->code;
    if (o->is_witness && o->capacity_bytes != 0)
        return err_set(err, -EINVAL, "a witness has no store, and so no --capacity");
    return 0;
}

static int parse_option(struct daemon_options *o, int opt, struct error *err)
{
    if (parse_prepare_option(o, opt))
        return 0;
    switch (opt) {
    case OPT_NBD:
        o->has_nbd = true;
        return address_parse(optarg, &o->nbd, err);
    case OPT_CONTROL:
        o->has_control = true;
        return address_parse(optarg, &o->control, err);
    case OPT_CAPACITY:
        return parse_capacity(optarg, &o->capacity_bytes, err);
    case OPT_DETACH:
        o->detach = true;
        return 0;
    case OPT_HELP:
        fputs(usage_text, stdout);
        exit(0);
    case OPT_VERSION:
        printf("parallaxd %s\n", PARALLAX_VERSION);
        exit(0);
    default:
        exit(EXIT_USE); /* getopt has said why */
    }
}

static int parse_changes(struct daemon_options *o, char *const *texts, uint32_t count,
                         struct error *err)
{
    struct join_peer ignored;
    int r = 0;
    if (count > ADDRESSES_MAX)
        return err_set(err, -EINVAL, "at most %u addresses", ADDRESSES_MAX);
    for (uint32_t i = 0; i < count && r == 0; i++)
        r = addresses_parse(texts[i], &ignored, err);
    o->changes = texts;
    o->change_count = count;
    return r;
}

static int parse(int argc, char **argv, struct daemon_options *o, struct error *err)
{
    int r = 0;
    for (int opt;
         r == 0 && (opt = getopt_long(argc, argv, "", long_options, NULL)) != -1;)
        r = parse_option(o, opt, err);
    if (r == 0 && argc - optind > 1 && o->mode == MODE_ADDRESSES)
        r = parse_changes(o, argv + optind + 1, (uint32_t)(argc - optind - 1), err);
    else if (r == 0 && argc - optind != 1)
        r = err_set(err, -EINVAL, "give one folder or block device; see --help");
    if (r == 0 && o->has_nbd)
        r = address_check_loopback(&o->nbd, err);
    if (r == 0 && o->has_control && o->control.kind != ADDRESS_TCP)
        r = err_set(err, -EINVAL,
                    "--control takes HOST:PORT; DIR/control.sock is always "
                    "there");
    if (r == 0 && o->has_control)
        r = address_check_loopback(&o->control, err);
    if (r == 0 && o->has_nbd)
        r = address_make_absolute(&o->nbd, err);
    if (r == 0)
        r = check_mode(o, err);
    o->argument = argv[optind];
    return r;
}

int main(int argc, char **argv)
{
    struct daemon d = {.dir.lock_fd = -1, .ready_fd = -1};
    struct error err = {0};
    int r = parse(argc, argv, &d.options, &err);
    if (r < 0) {
        say(&d, "%s", err.text);
        return EXIT_USE;
    }
    umask(0077);
    if (d.options.detach)
        detach(&d);
    r = run(&d, &err);
    if (r < 0) {
        say(&d, "%s", err.code != 0 ? err.text : err_text(r));
        d.exit_code = EXIT_FAIL;
    }
    if (d.loop != NULL)
        loop_destroy(d.loop);
    free(d.nbd_uri);
    directory_close(&d.dir);
    return d.exit_code;
}
