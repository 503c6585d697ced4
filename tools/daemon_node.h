/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon as a node of a cluster: its identity, the parts that a host is given, and
 * what other nodes ask of it. A daemon without identity has none of this.
 */
#ifndef PARALLAX_TOOLS_DAEMON_NODE_H
#define PARALLAX_TOOLS_DAEMON_NODE_H

#include "cow/host.h"
#include "replication/membership.h"
#include "tools/identity.h"

struct control_server;
struct daemon_node;

struct daemon_node_options {
    struct loop *loop;
    const struct directory *dir;
    struct identity *identity; /* taken over */
    uint64_t capacity_bytes;   /* that the store is to grow to; 0: as it is */
    const char *listen;        /* its address from now on; NULL: as it is */
    /* It cannot go on as a node: the daemon should end. */
    void (*failed)(void *arg, const char *why);
    void *arg;
};

/* Opens metadata, store and membership, and waits until the cluster's state is there. */
async int daemon_node_open(const struct daemon_node_options *options,
                           struct daemon_node **ret_node, struct error *err);
/* For host_options. */
struct host_parts daemon_node_parts(const struct daemon_node *node);
/* Other nodes reach this host, and can ask its control server, from now on. */
void daemon_node_attach(struct daemon_node *node, struct host *host,
                        struct control_server *control);
void daemon_node_detach(struct daemon_node *node);
/* The host is closed. */
async void daemon_node_close(struct daemon_node *node);

struct membership *daemon_node_membership(const struct daemon_node *node);

#endif
