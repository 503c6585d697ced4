/* SPDX-License-Identifier: Apache-2.0 */
/* What server.c and connection.c share. */
#ifndef PARALLAX_NBDSERVER_SERVER_INTERNAL_H
#define PARALLAX_NBDSERVER_SERVER_INTERNAL_H

#include "nbdserver/nbd.h"
#include "nbdserver/nbd_internal.h"

/* A session and its socket. */
struct connection {
    struct session session;
    struct nbd_server *server;
    int fd;
    struct watch *watch;
    uint64_t since_ns;
    bool watches_input;
    bool waits_for_room; /* the socket took less than there was */
    uint8_t *stash; /* what came in and is not taken up yet; malloc'd or `small` */
    uint32_t stash_len;
    uint8_t small[64]; /* enough for the front part of a request */
    TAILQ_ENTRY(connection) link;
};
static_assert(sizeof(struct nbd_request) <= 64, "small holds part of one");

static_assert(NBD_REQUESTS_MAX * sizeof(struct request) +
                      NBD_PIECES_MAX * sizeof(struct piece) + sizeof(struct connection) <=
                  NBD_CONNECTION_BYTES - NBD_AREA_BYTES,
              "a connection takes no more memory than is counted for it");

struct listener {
    struct nbd_server *server;
    int fd;
    struct watch *watch;
    char *unix_path; /* NULL: TCP */
    SLIST_ENTRY(listener) link;
};

struct nbd_server {
    struct nbd_shared shared;
    uint32_t connections_max, connection_count, listener_count;
    bool stopping, accepts_paused;
    TAILQ_HEAD(, connection) connections;
    SLIST_HEAD(, listener) listeners;
    uint32_t pressed_ticks; /* in a row with somebody waiting for buffers */
    struct timer tick;
    struct event all_gone;
    struct metric *clients, *refused, *dropped;
    /* Input of whichever connection is being read; the loop does one at a time. What a
     * session leaves of it moves to the connection. */
    uint8_t *area;
};

/* Takes fd, also on failure. */
int connection_create(struct nbd_server *server, int fd);
/* Looks after what takes too long. pressed: others lack buffers because of it. */
void connection_tick(struct connection *connection, bool pressed);
/* A connection has gone. */
void server_forget(struct nbd_server *server, struct connection *connection);

#endif
