/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listens, accepts, keeps time. Each accepted socket becomes a connection of its own;
 * once in NBD_TICK_MS all of them are looked at for what takes too long.
 *
 * When connections or descriptors are out, newcomers are closed, or wait in the kernel
 * until the next tick; those connected do not notice. TCP is for this machine only
 * until there is TLS.
 *
 * Destroying stops listening, drains all sessions, breaks those that do not end in time,
 * and returns when the last disk was given back.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbdserver/server_internal.h"

static void tick_fire(struct timer *timer);

static void tick_start(struct nbd_server *server)
{
    timer_start(server->shared.loop, &server->tick, NBD_TICK_MS * NS_PER_MS);
}

struct nbd_server *nbd_server_create(struct loop *loop, struct host *host,
                                     const struct nbd_server_options *options)
{
    struct nbd_server *server = calloc(1, sizeof *server);
    if (!server)
        return NULL;
    server->area = malloc(NBD_AREA_BYTES);
    if (!server->area) {
        free(server);
        return NULL;
    }
    nbd_shared_init(&server->shared, loop, host);
    server->connections_max = NBD_CONNECTIONS_MAX;
    if (options && options->connections_max > 0)
        server->connections_max = min_u32(options->connections_max, NBD_CONNECTIONS_MAX);
    TAILQ_INIT(&server->connections);
    SLIST_INIT(&server->listeners);
    event_init(&server->all_gone);
    server->clients = metric_counter(loop, "parallax_nbd_clients", "NBD connections");
    server->refused = metric_counter(loop, "parallax_nbd_refused_total",
                                     "NBD connections closed for want of room");
    server->dropped = metric_counter(loop, "parallax_nbd_dropped_total",
                                     "NBD connections closed for taking too long");
    server->tick.fire = tick_fire;
    tick_start(server);
    return server;
}

uint32_t nbd_server_client_count(const struct nbd_server *server)
{
    return server->connection_count;
}

/* --- accept --- */

int nbd_server_adopt(struct nbd_server *server, int fd)
{
    int on = 1, bytes = NBD_SOCKET_BUFFER_BYTES;
    if (server->stopping || server->connection_count >= server->connections_max) {
        metric_add(server->refused, 1);
        close(fd);
        return -PLX_ELIMIT;
    }
    /* These make it faster; without them it works too. TCP sizes its buffers itself, for
     * a Unix socket the first call fails. */
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    int rc = connection_create(server, fd);
    if (rc == 0)
        metric_set(server->clients, server->connection_count);
    return rc;
}

static void listener_ready(void *arg, unsigned events)
{
    struct listener *listener = arg;
    struct nbd_server *server = listener->server;
    (void)events;
    for (uint32_t i = 0; i < NBD_ACCEPTS_AT_ONCE; i++) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            nbd_server_adopt(server, fd);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            log_warning(server->shared.loop, "nbd: accept: %s", err_text(errno));
            watch_set(listener->watch, 0); /* until the next tick */
            server->accepts_paused = true;
        }
        return;
    }
}

void server_forget(struct nbd_server *server, struct connection *connection)
{
    assert(server->connection_count > 0);
    TAILQ_REMOVE(&server->connections, connection, link);
    server->connection_count--;
    metric_set(server->clients, server->connection_count);
    if (server->stopping && server->connection_count == 0)
        event_set(&server->all_gone);
}

static void resume_accepting(struct nbd_server *server)
{
    struct listener *listener;
    server->accepts_paused = false;
    SLIST_FOREACH(listener, &server->listeners, link) {
        if (watch_set(listener->watch, WATCH_READ) < 0)
            server->accepts_paused = true;
    }
}

static void tick_fire(struct timer *timer)
{
    struct nbd_server *server = container_of(timer, struct nbd_server, tick);
    struct connection *connection, *next;
    if (server->accepts_paused)
        resume_accepting(server);
    if (server->shared.buffer_waiters > 0)
        server->pressed_ticks++;
    else
        server->pressed_ticks = 0;
    bool pressed = server->pressed_ticks > 1;
    TAILQ_FOREACH_SAFE(connection, &server->connections, link, next)
        connection_tick(connection, pressed);
    tick_start(server);
}

/* --- listen --- */

static int listener_add(struct nbd_server *server, int fd, const char *unix_path)
{
    struct listener *listener = calloc(1, sizeof *listener);
    if (!listener)
        return -ENOMEM;
    listener->server = server;
    listener->fd = fd;
    if (unix_path && !(listener->unix_path = strdup(unix_path)))
        goto fail;
    listener->watch = watch_create(server->shared.loop, fd, listener_ready, listener);
    if (!listener->watch || watch_set(listener->watch, WATCH_READ) < 0)
        goto fail;
    SLIST_INSERT_HEAD(&server->listeners, listener, link);
    server->listener_count++;
    return 0;
fail:
    watch_destroy(listener->watch);
    free(listener->unix_path);
    free(listener);
    return -ENOMEM;
}

static void listener_close(struct listener *listener)
{
    watch_destroy(listener->watch);
    close(listener->fd);
    if (listener->unix_path)
        unlink(listener->unix_path);
    free(listener->unix_path);
    free(listener);
}

static int listen_on(struct nbd_server *server, const struct sockaddr *address,
                     socklen_t len, const char *unix_path, int *ret_fd)
{
    int on = 1;
    if (server->listener_count >= NBD_LISTENERS_MAX)
        return -PLX_ELIMIT;
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int rc = 0;
    if (!unix_path)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, address, len) < 0 || listen(fd, NBD_LISTEN_BACKLOG) < 0)
        rc = -errno;
    else
        rc = listener_add(server, fd, unix_path);
    if (rc < 0)
        close(fd);
    else
        *ret_fd = fd;
    return rc;
}

/* Removes a socket file whose server is dead; leaves all else. */
static void remove_stale(const struct sockaddr_un *address)
{
    struct stat st;
    if (lstat(address->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return;
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) < 0 &&
        errno == ECONNREFUSED)
        unlink(address->sun_path);
    close(fd);
}

int nbd_server_listen_unix(struct nbd_server *server, const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    int fd;
    if (len == 0 || len >= sizeof address.sun_path)
        return err_set(err, -ENAMETOOLONG, "%s: a socket's path has 1 to %zu bytes", path,
                       sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, len + 1);
    remove_stale(&address);
    int rc = listen_on(server, (const struct sockaddr *)&address, sizeof address, path,
                       &fd);
    if (rc < 0)
        return err_set(err, rc, "listen on %s: %s", path, err_text(rc));
    return 0;
}

union tcp_address {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
};

/* Returns the length, 0 if the text is no numeric address. */
static socklen_t parse_address(const char *text, uint16_t port, union tcp_address *ret)
{
    *ret = (union tcp_address){0};
    if (strcmp(text, "localhost") == 0)
        text = "127.0.0.1";
    if (inet_pton(AF_INET, text, &ret->in.sin_addr) == 1) {
        ret->in.sin_family = AF_INET;
        ret->in.sin_port = htons(port);
        return sizeof ret->in;
    }
    if (inet_pton(AF_INET6, text, &ret->in6.sin6_addr) == 1) {
        ret->in6.sin6_family = AF_INET6;
        ret->in6.sin6_port = htons(port);
        return sizeof ret->in6;
    }
    return 0;
}

static bool is_loopback(const union tcp_address *address)
{
    if (address->any.sa_family == AF_INET)
        return ntohl(address->in.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    return IN6_IS_ADDR_LOOPBACK(&address->in6.sin6_addr);
}

int nbd_server_listen_tcp(struct nbd_server *server, const char *address, uint16_t port,
                          uint16_t *ret_port, struct error *err)
{
    union tcp_address at;
    socklen_t len = parse_address(address, port, &at);
    int fd;
    if (len == 0)
        return err_set(err, -EINVAL, "%s: not a numeric address", address);
    if (!is_loopback(&at))
        return err_set(err, -EACCES,
                       "%s: only loopback addresses, until there is TLS", address);
    int rc = listen_on(server, &at.any, len, NULL, &fd);
    if (rc < 0)
        return err_set(err, rc, "listen on %s port %u: %s", address, port, err_text(rc));
    len = sizeof at;
    if (ret_port && getsockname(fd, &at.any, &len) == 0)
        *ret_port =
            ntohs(at.any.sa_family == AF_INET ? at.in.sin_port : at.in6.sin6_port);
    return 0;
}

/* --- the end --- */

struct patience {
    struct timer timer;
    struct nbd_server *server;
};

static void patience_fire(struct timer *timer)
{
    struct nbd_server *server = container_of(timer, struct patience, timer)->server;
    struct connection *connection;
    TAILQ_FOREACH(connection, &server->connections, link)
        session_break(&connection->session, "the server stops");
}

async void nbd_server_destroy(struct nbd_server *server)
{
    struct loop *loop = server->shared.loop;
    struct connection *connection;
    struct listener *listener;
    server->stopping = true;
    while ((listener = SLIST_FIRST(&server->listeners))) {
        SLIST_REMOVE_HEAD(&server->listeners, link);
        listener_close(listener);
    }
    TAILQ_FOREACH(connection, &server->connections, link)
        session_drain(&connection->session);
    if (server->connection_count > 0) {
        struct patience patience = {.timer.fire = patience_fire, .server = server};
        timer_start(loop, &patience.timer, NBD_STOP_MS * NS_PER_MS);
        event_wait(&server->all_gone);
        timer_stop(loop, &patience.timer);
    }
    timer_stop(loop, &server->tick);
    free(server->area);
    free(server);
}
