/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD server: disks and snapshots of a host as exports, on Unix sockets and on TCP
 * addresses of this machine. Everything runs on the host's loop. doc/nbd.md says what
 * of the protocol is supported.
 */
#ifndef PARALLAX_NBDSERVER_NBD_H
#define PARALLAX_NBDSERVER_NBD_H

#include "runtime/runtime.h"

struct host;
struct nbd_server;

struct nbd_server_options {
    uint32_t connections_max; /* 0: NBD_CONNECTIONS_MAX, which is also the most */
};

/* options may be NULL. NULL when memory is out. */
struct nbd_server *nbd_server_create(struct loop *loop, struct host *host,
                                     const struct nbd_server_options *options);

/* Listens on a new socket file; one that a dead server left there is replaced, one that
 * is answered is -EADDRINUSE. The file goes when the server does. */
int nbd_server_listen_unix(struct nbd_server *server, const char *path,
                           struct error *err);
/* address: "localhost" or a numeric loopback address; others are -EACCES, because what
 * leaves the machine needs TLS. port 0 takes a free one. *ret_port (may be NULL) is the
 * port taken. */
int nbd_server_listen_tcp(struct nbd_server *server, const char *address, uint16_t port,
                          uint16_t *ret_port, struct error *err);
/* Takes a connected stream socket over, as if it had been accepted. Closes fd, also on
 * failure. */
int nbd_server_adopt(struct nbd_server *server, int fd);

uint32_t nbd_server_client_count(const struct nbd_server *server);

/* Stops listening, answers what is in flight, gives the disks back, and frees the
 * server. Clients that do not take their answers lose them after NBD_STOP_MS. */
async void nbd_server_destroy(struct nbd_server *server);

#endif
