/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control sessions: lines of anything over several connections, and requests that another
 * node hands on, to a host of the simulator with some disks, which hands requests on to
 * another node itself. No sockets: what comes and goes is in memory. An input is records,
 * each
 *
 *   byte 0   low bits: what to do; then which connection; the highest: another way of it
 *   byte 1   length of what follows
 *
 * An input that begins with MANY_NODES is of a cluster of 600, most of which are down.
 * Text is written short: a byte below 0x80 is itself, one above stands for a whole word
 * (`words`), and 0xff says that the next byte is meant as it is.
 *
 * Every line that comes back is one of the four kinds, each request is answered once, all
 * ends and all is put back.
 */
#include "cow/host.h"
#include "replication/membership.h"
#include "tests/unit/disk_machine.h"
#include "tools/control_internal.h"
#include "tools/control_wire.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

enum { OTHERWISE = 0x80, DO_MASK = 0x0f };
enum {
    DO_SEND,              /* OTHERWISE: so often that a line is too long */
    DO_HANG_UP, DO_RESET, /* the peer */
    DO_TAKE,              /* so much of the answers from now on; OTHERWISE: all */
    DO_BEGIN, DO_MORE, DO_END, /* another node; OTHERWISE: the last session, rightly */
    DO_ANSWER, /* what the other node answers next; OTHERWISE: as a session's answer */
    DO_STEP,
};

#define MANY_NODES  "\x8f\xff"
#define CONNECTIONS 4U
#define ANSWERS_MAX 8U
#define OTHER       2U /* node */
#define WAITS_NS    (300 * NS_PER_S) /* in all */

struct watch {
    void (*fn)(void *arg, unsigned events);
    void *arg;
    int fd;
    unsigned events;
    LIST_ENTRY(watch) link;
};

/* One end of a connection. */
struct peer {
    struct writer in, line; /* sent to the server; of its answers, an unfinished line */
    size_t in_taken, room;  /* bytes he takes yet */
    bool is_open, has_hung_up, is_reset;
};

struct answer {
    uint8_t bytes[512];
    uint32_t len;
    int code;
    bool is_session;
};

static struct {
    struct machine *m;
    struct control_server *server;
    struct timer tick;
    struct event over;
    const uint8_t *bytes;
    size_t len;
    LIST_HEAD(, watch) watches;
    struct peer peers[CONNECTIONS];
    bool has_handed_on; /* lines are another node's then */
    struct answer answers[ANSWERS_MAX];
    uint32_t answer_count, under_way;
    uint64_t session, waited_ns;
} all;

/* --- in place of the system's, and of what is between nodes --- */

static struct watch *fuzz_watch_create(struct loop *loop, int fd,
                                       void (*fn)(void *arg, unsigned events), void *arg)
{
    struct watch *watch = calloc(1, sizeof *watch);
    (void)loop;
    CHECK(watch != NULL);
    *watch = (struct watch){.fn = fn, .arg = arg, .fd = fd};
    LIST_INSERT_HEAD(&all.watches, watch, link);
    return watch;
}

static int fuzz_watch_set(struct watch *watch, unsigned events)
{
    watch->events = events;
    return 0;
}

static void fuzz_watch_destroy(struct watch *watch)
{
    LIST_REMOVE(watch, link);
    free(watch);
}

static ssize_t fuzz_recv(int fd, void *to, size_t cap, int flags)
{
    struct peer *peer = &all.peers[fd];
    size_t n = min_u64(cap, peer->in.len - peer->in_taken);
    CHECK(peer->is_open && cap > 0 && flags == 0);
    if (peer->is_reset || (n == 0 && !peer->has_hung_up)) {
        errno = peer->is_reset ? ECONNRESET : EAGAIN;
        return -1;
    }
    if (n > 0)
        memcpy(to, peer->in.bytes + peer->in_taken, n);
    peer->in_taken += n;
    return (ssize_t)n;
}

/* A line of an answer, without its newline. */
static void check_line(const char *line, size_t len)
{
    static const char *const kinds[] = {"item", "progress", "ok", "error"};
    json_error_t jerr;
    json_t *json = json_loadb(line, len, JSON_REJECT_DUPLICATES, &jerr);
    uint32_t found = 0;
    CHECK(len < CONTROL_LINE_BYTES && json_object_size(json) == 1);
    for (uint32_t i = 0; i < ARRAY_LEN(kinds); i++)
        found += json_object_get(json, kinds[i]) != NULL;
    CHECK_EQ(found, 1);
    json_decref(json);
}

static void check_lines(struct writer *line, const char *bytes, size_t len)
{
    const char *end;
    if (all.has_handed_on)
        return;
    while ((end = memchr(bytes, '\n', len)) != NULL) {
        write_bytes(line, bytes, (size_t)(end - bytes));
        check_line((const char *)line->bytes, line->len);
        line->len = 0;
        len -= (size_t)(end - bytes) + 1;
        bytes = end + 1;
    }
    write_bytes(line, bytes, len);
}

static ssize_t fuzz_send(int fd, const void *bytes, size_t len, int flags)
{
    struct peer *peer = &all.peers[fd];
    size_t n = min_u64(len, peer->room);
    CHECK(peer->is_open && len > 0 && (flags & MSG_NOSIGNAL));
    if (peer->is_reset || n == 0) {
        errno = peer->is_reset ? EPIPE : EAGAIN;
        return -1;
    }
    if (peer->room != SIZE_MAX)
        peer->room -= n;
    check_lines(&peer->line, bytes, n);
    return (ssize_t)n;
}

static int fuzz_close(int fd)
{
    struct peer *peer = &all.peers[fd];
    CHECK(peer->is_open);
    writer_done(&peer->in);
    writer_done(&peer->line);
    *peer = (struct peer){0};
    return 0;
}

static int fuzz_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
    (void)fd, (void)level, (void)name, (void)value, (void)len;
    return 0;
}

/* To a request of the other node. */
static void fuzz_answer(struct rpc_request *request, int code, const void *head,
                        size_t head_len, const struct slice *slices, uint32_t count)
{
    struct reader r = reader_of(head, head_len);
    CHECK(all.under_way > 0 && code <= 0 && slices == NULL && count == 0);
    CHECK(head_len <= RPC_HEAD_MAX);
    all.under_way--;
    if (code == 0 && head_len > 0) {
        all.session = read_u64(&r);
        CHECK(read_u8(&r) <= 1 && !r.bad && all.session != 0);
    }
    free(request);
}

/* The other node answers this host. */
static async int fuzz_wait(struct rpc *rpc, struct rpc_call *call, struct writer *ret,
                           struct slice *ret_payload)
{
    struct reader head = reader_of(call->head, call->head_len);
    CHECK(rpc == (struct rpc *)&all && call->node == OTHER && ret_payload == NULL);
    CHECK(call->op == CONTROL_RPC && call->head_len <= CONTROL_RPC_HEAD_MAX);
    CHECK(read_u8(&head) <= 3);
    all.has_handed_on = true;
    task_sleep_ns(50 * NS_PER_MS);
    call->was_sent = true;
    ret->len = 0;
    if (all.answer_count == 0)
        return -ETIMEDOUT;
    struct answer with = all.answers[0];
    all.answer_count--;
    memmove(all.answers, all.answers + 1, all.answer_count * sizeof all.answers[0]);
    if (with.is_session) {
        write_u64(ret, 7);
        write_u8(ret, with.len % 2);
    }
    write_bytes(ret, with.bytes, with.len);
    return with.code;
}

#define watch_create     fuzz_watch_create
#define watch_set        fuzz_watch_set
#define watch_destroy    fuzz_watch_destroy
#define recv             fuzz_recv
#define send             fuzz_send
#define close            fuzz_close
#define setsockopt       fuzz_setsockopt
#define rpc_answer       fuzz_answer
#define rpc_wait         fuzz_wait
#define rpc_is_connected(rpc, node) ((void)(rpc), (node) == OTHER)

#include "tools/control_cluster.c"
#include "tools/control_server.c"
#define sink_emit    node_sink_emit
#define sink_pending node_sink_pending
#include "tools/control_node.c"

/* A cluster of several, as far as the requests see. */
struct cluster *membership_cluster(const struct membership *m)
{
    (void)m;
    return host_cluster(all.m->host);
}

struct rpc *membership_rpc(const struct membership *m)
{
    (void)m;
    return (struct rpc *)&all;
}

const struct warden *membership_warden(const struct membership *m)
{
    (void)m;
    return NULL;
}

struct recovery *membership_recovery(const struct membership *m)
{
    (void)m;
    return NULL;
}

uint64_t membership_node(const struct membership *m)
{
    (void)m;
    return CLUSTER_FIRST_NODE;
}

async int membership_token(struct membership *m, uint32_t minutes,
                           struct join_token *ret_token, struct error *err)
{
    (void)m, (void)err;
    CHECK(minutes >= 1 && minutes <= JOIN_MINUTES_MAX);
    *ret_token = (struct join_token){0};
    return 0;
}

/* --- what is read of the input --- */

static const char *const words[] = {
    "{\"op\":\"status\"",
    "{\"op\":\"shut_down\"",
    "{\"op\":\"disk.list\"",
    "{\"op\":\"disk.show\"",
    "{\"op\":\"disk.create\"",
    "{\"op\":\"disk.resize\"",
    "{\"op\":\"disk.rename\"",
    "{\"op\":\"disk.set\"",
    "{\"op\":\"disk.rm\"",
    "{\"op\":\"disk.usage\"",
    "{\"op\":\"disk.owner\"",
    "{\"op\":\"disk.break\"",
    "{\"op\":\"disk.migrate\"",
    "{\"op\":\"snapshot.list\"",
    "{\"op\":\"snapshot.create\"",
    "{\"op\":\"snapshot.rollback\"",
    "{\"op\":\"snapshot.rm\"",
    "{\"op\":\"snapshot.diff\"",
    "{\"op\":\"schedule.get\"",
    "{\"op\":\"schedule.set\"",
    "{\"op\":\"trash.list\"",
    "{\"op\":\"trash.restore\"",
    "{\"op\":\"trash.empty\"",
    "{\"op\":\"trash.keep\"",
    "{\"op\":\"clone\"",
    "{\"op\":\"import.begin\"",
    "{\"op\":\"import.publish\"",
    "{\"op\":\"import.discard\"",
    "{\"op\":\"check\"",
    "{\"op\":\"scrub.start\"",
    "{\"op\":\"scrub.pause\"",
    "{\"op\":\"scrub.status\"",
    "{\"op\":\"node.list\"",
    "{\"op\":\"node.drain\"",
    "{\"op\":\"node.reports\"",
    "{\"op\":\"node.rm\"",
    "{\"op\":\"pool.list\"",
    "{\"op\":\"pool.set\"",
    "{\"op\":\"cluster.token\"",
    ",\"name\":",
    ",\"new_name\":",
    ",\"size_bytes\":",
    ",\"quota_bytes\":",
    ",\"pool\":",
    ",\"recursive\":",
    ",\"node\":",
    ",\"disk\":",
    ",\"snapshot\":",
    ",\"keep_last\":",
    ",\"before_s\":",
    ",\"from\":",
    ",\"to\":",
    ",\"max\":",
    ",\"rules\":",
    "{\"every_seconds\":",
    ",\"keep\":",
    ",\"count\":",
    ",\"seconds\":",
    ",\"repair\":",
    ",\"bytes_per_second\":",
    ",\"draining\":",
    ",\"at\":",
    ",\"lost\":",
    ",\"data_loss\":",
    ",\"create\":",
    ",\"copies\":",
    ",\"min_copies\":",
    ",\"domain\":",
    ",\"minutes\":",
    "}\n",
    "\"web\"",
    "\"there\"",
    "\"old\"",
    "\"new\"",
    "\"new-1\"",
    "\"monday\"",
    "\"tuesday\"",
    "\"default\"",
    "\"fast\"",
    "\"rack\"",
    "\"host\"",
    "\"1\"",
    "\"2\"",
    "\"3\"",
    "\"node2:1\"",
    "\"web@monday\"",
    "\"\"",
    "true",
    "false",
    "null",
    "4096",
    "1048576",
    "1099511627776",
    "-1",
    "9223372036854775807",
    "1.5",
    "{\"ok\":{}}\n",
    "{\"item\":{}}\n",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
};
static_assert(ARRAY_LEN(words) < 0x7f, "a byte each");

static uint8_t take_byte(void)
{
    if (all.len == 0)
        return 0;
    all.len--;
    return *all.bytes++;
}

/* The text of the next `len` bytes. */
static void expand(struct writer *to, uint32_t len)
{
    const uint8_t *end = all.bytes + min_u64(len, all.len);
    all.len -= (size_t)(end - all.bytes);
    while (all.bytes < end) {
        uint8_t byte = *all.bytes++;
        if (byte == 0xff && all.bytes < end)
            write_u8(to, *all.bytes++);
        else if (byte >= 0x80 && byte - 0x80U < ARRAY_LEN(words))
            write_bytes(to, words[byte - 0x80U], strlen(words[byte - 0x80U]));
        else
            write_u8(to, byte);
    }
}

/* --- the peers --- */

static void send_text(uint32_t which, bool is_often, uint32_t len)
{
    struct peer *peer = &all.peers[which];
    struct writer text = {0};
    if (!peer->is_open) {
        *peer = (struct peer){.is_open = true, .room = SIZE_MAX};
        connection_accept(all.server, (int)which);
    }
    expand(&text, len);
    for (uint32_t i = 0; i < (is_often ? 300U : 1U) && peer->is_open; i++)
        if (!peer->has_hung_up && peer->in.len < 8 * CONTROL_LINE_BYTES)
            write_bytes(&peer->in, text.bytes, text.len);
    writer_done(&text);
}

/* Tells the server what there is to read and to send. */
static void pump(void)
{
    struct watch *watch, *next;
    LIST_FOREACH_SAFE (watch, &all.watches, link, next) {
        const struct peer *peer = &all.peers[watch->fd];
        bool can_read = peer->in_taken < peer->in.len || peer->has_hung_up ||
                        peer->is_reset;
        bool can_write = peer->room > 0 || peer->is_reset;
        unsigned events = (can_read ? WATCH_READ : 0U) | (can_write ? WATCH_WRITE : 0U);
        if ((events & watch->events) != 0)
            watch->fn(watch->arg, events & watch->events); /* ends this one at most */
    }
}

static void from_node(uint8_t kind, bool is_right, uint32_t len)
{
    struct request {
        struct rpc_request request;
        uint8_t head[];
    } *request;
    struct writer head = {0};
    write_u8(&head, kind);
    if (is_right || kind == KIND_BEGIN)
        write_u64(&head, kind == KIND_BEGIN ? 0 : all.session);
    expand(&head, len);
    CHECK(head.len <= CONTROL_RPC_HEAD_MAX);
    request = calloc(1, sizeof *request + head.len);
    CHECK(request != NULL);
    memcpy(request->head, head.bytes, head.len);
    request->request = (struct rpc_request){
        .peer = {.node = OTHER}, .head = request->head, .head_len = head.len};
    writer_done(&head);
    all.under_way++;
    control_server_serve_node(all.server, &request->request);
}

static void next_answer(bool is_session, uint32_t len)
{
    static const int codes[] = {0, 0, -PLX_EMISSING, -EOPNOTSUPP, -ECONNRESET};
    struct writer text = {0};
    struct answer with = {.is_session = is_session};
    if (len > 0)
        with.code = codes[take_byte() % ARRAY_LEN(codes)];
    expand(&text, len > 0 ? len - 1 : 0);
    with.len = (uint32_t)min_u64(text.len, sizeof with.bytes);
    if (with.len > 0)
        memcpy(with.bytes, text.bytes, with.len);
    writer_done(&text);
    if (all.answer_count < ANSWERS_MAX)
        all.answers[all.answer_count++] = with;
}

/* One record; returns when the next is due. */
static uint64_t act(void)
{
    unsigned what = take_byte();
    uint32_t len = take_byte();
    uint32_t which = what >> 4 & (CONNECTIONS - 1);
    bool otherwise = (what & OTHERWISE) != 0;
    struct peer *peer = &all.peers[which];
    uint64_t wait_ns = NS_PER_US;
    switch (what & DO_MASK) {
    case DO_SEND:
        send_text(which, otherwise, len);
        break;
    case DO_HANG_UP:
        peer->has_hung_up = peer->is_open;
        break;
    case DO_RESET:
        peer->is_reset = peer->is_open;
        break;
    case DO_TAKE:
        peer->room = otherwise ? SIZE_MAX : len * 16U;
        break;
    case DO_BEGIN:
        from_node(KIND_BEGIN, otherwise, len);
        break;
    case DO_MORE:
        from_node(KIND_MORE, otherwise, otherwise ? 0 : len);
        break;
    case DO_END:
        from_node(KIND_END, otherwise, otherwise ? 0 : len);
        break;
    case DO_ANSWER:
        next_answer(otherwise, len);
        break;
    default:
        wait_ns = (otherwise ? 100 * NS_PER_MS : NS_PER_MS) * (len + 1);
    }
    all.waited_ns += wait_ns;
    return all.waited_ns < WAITS_NS ? wait_ns : NS_PER_US;
}

/* On the loop's own stack, as the events of sockets are. */
static void tick(struct timer *timer)
{
    bool was_over = all.len < 2;
    uint64_t next_ns = was_over ? 50 * NS_PER_MS : act();
    pump();
    timer_start(all.m->body.loop, timer, next_ns);
    if (was_over)
        event_set(&all.over);
}

/* --- one input --- */

static void shut_down(void *arg)
{
    (void)arg;
}

static async void submit_it(const struct cluster_command *command)
{
    struct cluster_result result;
    CHECK_EQ(cluster_submit(host_cluster(all.m->host), command, &result), 0);
}

/* All but the first two are down. */
static async void add_node(uint64_t node)
{
    char address[128];
    /* As long as those of many may be. */
    snprintf(address, sizeof address, node < 4 ? "node%u:1" : "node%u%0100u:1",
             (unsigned)node, 0U);
    const struct cluster_command add = {
        .op = CLUSTER_NODE_SET,
        .store = {{(uint8_t)node, (uint8_t)(node >> 8), 77}},
        .name = address,
        .new_name = "",
        .size_bytes = 1 * GIB,
    };
    const struct cluster_command down = {
        .op = CLUSTER_NODE_STATE, .node = node, .flags = NODE_DOWN};
    submit_it(&add);
    if (node > OTHER)
        submit_it(&down);
}

static async void add_nodes(void)
{
    size_t len = sizeof MANY_NODES - 1;
    bool are_many = all.len >= len && memcmp(all.bytes, MANY_NODES, len) == 0;
    for (uint64_t node = OTHER; node <= (are_many ? 600 : 3); node++)
        add_node(node);
}

static async void make_disks(struct host *host)
{
    struct disk_info there;
    DO(disk_create(host, "web", 1 * MIB, &err));
    DO(disk_create(host, "there", 1 * MIB, &err));
    DO(disk_create(host, "old", 1 * MIB, &err));
    DO(snapshot_create(host, "web", "monday", &err));
    DO(snapshot_create(host, "web", "tuesday", &err));
    DO(disk_remove(host, "old", 0, &err));
    DO(disk_show(host, "there", &there, &err));
    const struct cluster_command take_it = {
        .op = CLUSTER_LEASE_TAKE, .disk = there.id, .node = OTHER};
    submit_it(&take_it);
}

static async void run_all(struct machine *m)
{
    struct control_services services = {.loop = m->body.loop,
                                        .host = m->host,
                                        .membership = (struct membership *)&all,
                                        .directory = "folder",
                                        .nbd_uri = "nbd+unix:///?socket=s",
                                        .shut_down = shut_down};
    add_nodes();
    make_disks(m->host);
    all.server = control_server_create(&services);
    CHECK(all.server != NULL);
    all.tick.fire = tick;
    timer_start(m->body.loop, &all.tick, 0);
    event_wait(&all.over);
    control_server_stop(all.server);
    timer_stop(m->body.loop, &all.tick);
    control_server_destroy(all.server);
    CHECK(LIST_EMPTY(&all.watches) && all.under_way == 0);
    for (uint32_t i = 0; i < CONNECTIONS; i++)
        CHECK(!all.peers[i].is_open);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct machine *m = machine_create(1);
    memset(&all, 0, sizeof all);
    all.m = m;
    all.bytes = bytes;
    all.len = len;
    LIST_INIT(&all.watches);
    event_init(&all.over);
    machine_run(m, run_all);
    machine_destroy(m);
    return 0;
}
