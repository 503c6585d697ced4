/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines in, lines out. A request line is parsed on the loop (the parser recurses, and a
 * task's stack is small), then runs on a task of its own; the connection reads nothing
 * more until its reply is complete.
 *
 * What can fail: a line that is too long or no JSON object ends the connection after an
 * error reply, so that a web browser tricked into posting here gets nowhere. A peer that
 * goes away only ends its connection; its request runs to its end, unheard.
 *
 * On close, an import begun and not published is discarded.
 *
 *     reading --line--> busy --reply--> reading --end, idle, error--> dead
 *                        |                                             |
 *                        +--peer gone--> busy, dead --reply------------+--> freed
 *
 * C1: a dead connection has no fd, watch or timer.
 * C2: a connection is freed only when it is dead and not busy.
 */
#include "tools/control_server.h"

#include <jansson.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/control_internal.h"
#include "tools/control_wire.h"

#define LISTENERS_MAX 2
/* After accept ran out of descriptors. */
#define ACCEPT_PAUSE_NS (1 * NS_PER_S)

struct listener {
    struct control_server *server;
    int fd;
    struct watch *watch;
    struct timer pause;
};

struct control_server {
    struct control_services services;
    LIST_HEAD(, connection) connections;
    uint32_t connection_count;
    struct listener listeners[LISTENERS_MAX];
    uint32_t listener_count;
    bool stopping;
    uint32_t busy_count;
    struct waitlist quiet; /* busy_count became 0 */
    struct control_nodes *nodes;
};

struct connection {
    LIST_ENTRY(connection) link;
    struct control_server *server;
    int fd;
    struct watch *watch;
    struct timer idle;
    bool busy;
    bool ending; /* dead once out is sent */
    struct control_sink sink;
    struct writer out;
    size_t out_sent;
    json_t *request;
    const struct control_op *op;
    struct task_call task;
    size_t in_len;
    char in[CONTROL_LINE_BYTES];
};

static void connection_advance(struct connection *c);
static void request_main(struct task_call *task);
static void abandon_main(struct task_call *task);

/* --- the end of a connection --- */

static void busy_begin(struct connection *c)
{
    assert(!c->busy);
    c->busy = true;
    c->server->busy_count++;
}

static void busy_end(struct connection *c)
{
    assert(c->busy);
    c->busy = false;
    if (--c->server->busy_count == 0)
        waitlist_wake_all(&c->server->quiet);
}

static void connection_free(struct connection *c)
{
    assert(c->sink.is_dead && !c->busy);   /* C2 */
    assert(c->fd < 0 && c->watch == NULL); /* C1 */
    LIST_REMOVE(c, link);
    c->server->connection_count--;
    writer_done(&c->out);
    free(c->sink.import);
    free(c);
}

/* Frees a dead connection, after its import was discarded. */
static void connection_release(struct connection *c)
{
    if (c->sink.import == NULL) {
        connection_free(c);
        return;
    }
    busy_begin(c);
    c->task = (struct task_call){.main = abandon_main, .name = "control abandon"};
    task_start(c->server->services.loop, &c->task);
}

static void connection_drop(struct connection *c)
{
    if (c->sink.is_dead)
        return;
    c->sink.is_dead = true;
    timer_stop(c->server->services.loop, &c->idle);
    watch_destroy(take(c->watch));
    close(c->fd);
    c->fd = -1;
    waitlist_wake_all(&c->sink.drained);
    if (!c->busy)
        connection_release(c);
}

static async void abandon_main(struct task_call *task)
{
    struct connection *c = container_of(task, struct connection, task);
    const struct control_services *services = &c->server->services;
    struct error err = {0};
    int r = control_import_discard(services, c->sink.import, &err);
    if (r < 0 && r != -PLX_EMISSING)
        log_error(services->loop, "import %s: its command has gone: cannot discard: %s",
                  c->sink.import, err.text);
    else
        log_info(services->loop, "import %s: its command has gone: discarded",
                 c->sink.import);
    free(take(c->sink.import));
    busy_end(c);
    connection_free(c);
}

static void connection_idle(struct timer *timer)
{
    connection_drop(container_of(timer, struct connection, idle));
}

/* --- out --- */

static size_t out_pending(const struct connection *c)
{
    return c->out.len - c->out_sent;
}

/* What the loop shall tell of, and how long it may take to come. */
static void connection_watch(struct connection *c)
{
    struct loop *loop = c->server->services.loop;
    bool sending = out_pending(c) > 0;
    bool reading = !c->busy && !c->ending;
    int r = watch_set(c->watch,
                      (reading ? WATCH_READ : 0U) | (sending ? WATCH_WRITE : 0U));
    if (r < 0) {
        connection_drop(c);
        return;
    }
    if (sending || (reading && c->sink.import == NULL))
        timer_start(loop, &c->idle, CONTROL_IDLE_MS * NS_PER_MS);
    else
        timer_stop(loop, &c->idle);
}

static struct connection *connection_of(const struct control_sink *sink)
{
    return container_of(sink, struct connection, sink);
}

static size_t sink_pending(const struct control_sink *sink)
{
    return out_pending(connection_of(sink));
}

static void sink_emit(struct control_sink *sink, const char *lines, size_t len)
{
    struct connection *c = connection_of(sink);
    if (lines != NULL)
        write_bytes(&c->out, lines, len);
    /* A reply with a hole in it is worse than none. */
    if (lines == NULL || c->out.bad)
        connection_drop(c);
    else if (c->busy)
        connection_watch(c);
}

/* False: the connection is gone. */
static bool connection_send(struct connection *c)
{
    while (out_pending(c) > 0) {
        ssize_t n = send(c->fd, c->out.bytes + c->out_sent, out_pending(c), MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n < 0) {
            connection_drop(c);
            return false;
        }
        c->out_sent += (size_t)n;
    }
    c->out.len = c->out_sent = 0;
    waitlist_wake_all(&c->sink.drained);
    return true;
}

/* --- requests --- */

static async void request_main(struct task_call *task)
{
    struct connection *c = container_of(task, struct connection, task);
    struct control_call call = {
        .services = &c->server->services,
        .sink = &c->sink,
        .request = take(c->request),
    };
    control_call_run(&call, c->op);
    busy_end(c);
    if (c->sink.is_dead)
        connection_release(c);
    else
        connection_advance(c);
}

/* Says no, and that this was the last reply. */
static void refuse_and_end(struct connection *c, int code, const char *text)
{
    control_emit_error(&c->sink, code, text);
    c->ending = true;
}

static void request_start(struct connection *c, const char *line, size_t len)
{
    cleanup(json_decrefp) json_t *request = control_parse(line, len);
    if (request == NULL) {
        refuse_and_end(c, -EINVAL,
                       "a request is one line with a JSON object, not a deep one");
        return;
    }
    const char *name = json_string_value(json_object_get(request, "op"));
    c->op = name != NULL ? control_op_find(name) : NULL;
    if (c->op == NULL) {
        char text[128];
        snprintf(text, sizeof text, "no operation '%.64s'; see doc/control.md",
                 name != NULL ? name : "");
        control_emit_error(&c->sink, -EOPNOTSUPP, text);
        return;
    }
    if (c->server->stopping) {
        control_emit_error(&c->sink, -PLX_ECANCELLED, "the daemon is stopping");
        return;
    }
    json_object_del(request, "op");
    busy_begin(c);
    c->request = take(request);
    c->task = (struct task_call){.main = request_main, .name = c->op->name};
    task_start(c->server->services.loop, &c->task);
}

/* Starts the next request if there is a whole one; false: there is none. */
static bool next_line(struct connection *c)
{
    char *end = memchr(c->in, '\n', c->in_len);
    if (end == NULL) {
        if (c->in_len == sizeof c->in)
            refuse_and_end(c, -EMSGSIZE, "a request is at most 64 KiB long");
        return false;
    }
    size_t len = (size_t)(end - c->in);
    request_start(c, c->in, len);
    if (c->sink.is_dead)
        return false;
    c->in_len -= len + 1;
    memmove(c->in, end + 1, c->in_len);
    return true;
}

/* After anything happened: goes on with what can be done. May free the connection. */
static void connection_advance(struct connection *c)
{
    while (!c->sink.is_dead && !c->busy && !c->ending && next_line(c))
        ;
    if (c->sink.is_dead)
        return;
    if (c->ending && out_pending(c) == 0 && !c->busy)
        connection_drop(c);
    else
        connection_watch(c);
}

/* False: the connection is gone. */
static bool connection_receive(struct connection *c)
{
    assert(c->in_len < sizeof c->in);
    ssize_t n = recv(c->fd, c->in + c->in_len, sizeof c->in - c->in_len, 0);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return true;
    if (n < 0) {
        connection_drop(c);
        return false;
    }
    if (n == 0)
        c->ending = true;
    c->in_len += (size_t)n;
    return true;
}

static void connection_ready(void *arg, unsigned events)
{
    struct connection *c = arg;
    if ((events & WATCH_WRITE) && !connection_send(c))
        return;
    if ((events & WATCH_READ) && !c->busy && !c->ending && !connection_receive(c))
        return;
    connection_advance(c);
}

/* --- listening --- */

static struct connection *connection_create(struct control_server *server, int fd)
{
    struct connection *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    c->watch = watch_create(server->services.loop, fd, connection_ready, c);
    if (c->watch == NULL) {
        free(c);
        return NULL;
    }
    c->server = server;
    c->fd = fd;
    c->idle.fire = connection_idle;
    c->sink.emit = sink_emit;
    c->sink.pending = sink_pending;
    waitlist_init(&c->sink.drained);
    LIST_INSERT_HEAD(&server->connections, c, link);
    server->connection_count++;
    return c;
}

static void connection_accept(struct control_server *server, int fd)
{
    /* Fails on a Unix socket, which needs none. */
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    bool full = server->connection_count >= CONTROL_CONNECTIONS_MAX;
    struct connection *c = full ? NULL : connection_create(server, fd);
    if (c != NULL) {
        connection_watch(c);
        return;
    }
    static const char busy[] = "{\"error\":{\"code\":\"PLX_ELIMIT\",\"text\":"
                               "\"the daemon has too many control connections\"}}\n";
    if (send(fd, busy, sizeof busy - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        /* It will see the end of the connection. */
    }
    close(fd);
}

static void listener_ready(void *arg, unsigned events attr_unused)
{
    struct listener *l = arg;
    int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
        connection_accept(l->server, fd);
        return;
    }
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
        return;
    struct loop *loop = l->server->services.loop;
    log_warning(loop, "control: cannot accept: %s", strerror(errno));
    watch_set(l->watch, 0);
    timer_start(loop, &l->pause, ACCEPT_PAUSE_NS);
}

static void listener_resume(struct timer *timer)
{
    struct listener *l = container_of(timer, struct listener, pause);
    watch_set(l->watch, WATCH_READ);
}

struct control_server *control_server_create(const struct control_services *services)
{
    struct control_server *server = calloc(1, sizeof *server);
    if (server == NULL)
        return NULL;
    server->services = *services;
    LIST_INIT(&server->connections);
    waitlist_init(&server->quiet);
    server->nodes = control_nodes_create(&server->services);
    if (server->nodes == NULL)
        free(take(server));
    return server;
}

int control_server_listen(struct control_server *server,
                          const struct socket_address *address, struct error *err)
{
    assert(server->listener_count < LISTENERS_MAX);
    int fd;
    int r = address_listen(address, &fd, err);
    if (r < 0)
        return r;
    struct listener *l = &server->listeners[server->listener_count];
    *l = (struct listener){.server = server, .fd = fd, .pause.fire = listener_resume};
    l->watch = watch_create(server->services.loop, fd, listener_ready, l);
    r = l->watch != NULL ? watch_set(l->watch, WATCH_READ) : -ENOMEM;
    if (r < 0) {
        if (l->watch != NULL)
            watch_destroy(l->watch);
        close(fd);
        return err_set(err, r, "%s: %s", address_text(address).text, err_text(r));
    }
    server->listener_count++;
    return 0;
}

static void close_listeners(struct control_server *server)
{
    for (uint32_t i = 0; i < server->listener_count; i++) {
        struct listener *l = &server->listeners[i];
        timer_stop(server->services.loop, &l->pause);
        watch_destroy(l->watch);
        close(l->fd);
    }
    server->listener_count = 0;
}

/* Of the connections without a request. */
static void drop_imports(struct control_server *server)
{
    struct connection *c, *next;
    LIST_FOREACH_SAFE (c, &server->connections, link, next)
        if (!c->busy && c->sink.import != NULL)
            connection_drop(c);
}

async void control_server_stop(struct control_server *server)
{
    server->stopping = true;
    close_listeners(server);
    drop_imports(server);
    control_nodes_stop(server->nodes);
    /* Some were beginning. */
    for (drop_imports(server); server->busy_count > 0; drop_imports(server))
        waitlist_wait(&server->quiet);
}

void control_server_serve_node(struct control_server *server, struct rpc_request *request)
{
    control_nodes_serve(server->nodes, request);
}

void control_server_destroy(struct control_server *server)
{
    if (server == NULL)
        return;
    assert(server->busy_count == 0);
    close_listeners(server);
    struct connection *c, *next;
    LIST_FOREACH_SAFE (c, &server->connections, link, next) {
        if (connection_send(c))
            connection_drop(c);
    }
    control_nodes_destroy(server->nodes);
    free(server);
}
