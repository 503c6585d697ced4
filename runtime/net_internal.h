/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What net.c shares with the implementations: net_tls.c (TCP, TLS) and sim_net.c.
 *
 * net.c checks arguments and forwards; an implementation embeds these structs at the
 * start of its own.
 */
#ifndef PARALLAX_RUNTIME_NET_INTERNAL_H
#define PARALLAX_RUNTIME_NET_INTERNAL_H

#include "runtime/loop_internal.h"
#include "runtime/net.h"

struct net_ops {
    void (*destroy)(struct net *net);
    int (*set_credentials)(struct net *net, const struct net_credentials *credentials,
                           struct error *err);
    int (*listen)(struct net *net, const char *address, uint16_t *ret_port,
                  struct error *err);
    struct net_conn *(*connect)(struct net *net, const char *address, uint64_t node,
                                const struct net_handlers *handlers, void *arg);
    void (*close)(struct net_conn *conn);
    void (*pause)(struct net_conn *conn, bool paused);
    int (*send)(struct net_conn *conn, const struct net_send *send);
};

struct net {
    const struct net_ops *ops;
    struct loop *loop;
    struct net_options options; /* credentials NULL: the implementation keeps its own */
};

struct net_conn {
    struct net *net;
    const struct net_handlers *handlers;
    void *arg;
    struct net_identity peer;
    char address[NET_ADDRESS_MAX];
    bool is_open, is_paused;
    bool is_starved; /* kept by the implementation: waits for a buffer */
    uint64_t heard_ns;
    uint64_t queued_bytes;
};

/* net.c. What an implementation starts with; the credentials are left out. */
void net_init(struct net *net, const struct net_ops *ops,
              const struct net_options *options);
void net_conn_init(struct net_conn *conn, struct net *net, const char *address,
                   const struct net_handlers *handlers, void *arg);
/* The length of all slices. */
uint64_t net_send_payload(const struct net_send *send);

/* net_tls.c */
int net_tls_create(const struct net_options *options, struct net **ret,
                   struct error *err);
/* sim_net.c */
int sim_net_create(const struct net_options *options, struct net **ret,
                   struct error *err);

#endif
