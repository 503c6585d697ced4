/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's control socket: requests and replies are lines of JSON, documented in
 * doc/control.md. Everything runs on the loop given; functions marked async need a task.
 */
#ifndef PARALLAX_TOOLS_CONTROL_SERVER_H
#define PARALLAX_TOOLS_CONTROL_SERVER_H

#include "runtime/runtime.h"
#include "tools/address.h"

struct host;
struct membership;
struct control_server;
struct rpc_request;

/* The operation by which nodes hand requests on to each other (control_node.c). */
#define CONTROL_RPC          0x42U
#define CONTROL_RPC_HEAD_MAX ((uint32_t)(64 * KIB) + 64U)

/* What the operations work on; strings stay the caller's and must outlive the server. */
struct control_services {
    struct loop *loop;
    struct host *host;
    struct membership *membership; /* NULL: of no cluster but its own */
    const char *directory;
    const char *nbd_uri;          /* "nbd+unix:///?socket=..." */
    void (*shut_down)(void *arg); /* asked for by a client; returns at once */
    void *arg;
};

/* NULL when memory is out. */
struct control_server *control_server_create(const struct control_services *services);
int control_server_listen(struct control_server *server,
                          const struct socket_address *address, struct error *err);
/* Takes no more connections and requests, and waits for the requests at work. */
async void control_server_stop(struct control_server *server);
/* A request that another node hands on; CONTROL_RPC. */
void control_server_serve_node(struct control_server *server,
                               struct rpc_request *request);
/* Closes what connections are left; no request may be at work. */
void control_server_destroy(struct control_server *server);

#endif
