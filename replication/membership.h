/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process's place in a cluster of many: the one rpc, and everything that works over it:
 * consensus and the cluster state, the service of the store, copies, joining, what the
 * leader does, recovery. Nodes are found by the addresses in the cluster state.
 * doc/membership.md.
 *
 *      opening -> open -> closing -> closed
 *                   |
 *                   +-> failed (told once; it must be closed)
 *
 * Nothing in it needs real sockets, threads or clocks: it runs in the simulator.
 */
#ifndef PARALLAX_REPLICATION_MEMBERSHIP_H
#define PARALLAX_REPLICATION_MEMBERSHIP_H

#include "replication/cluster.h"
#include "replication/copies.h"
#include "replication/join.h"
#include "replication/recovery.h"
#include "replication/warden.h"

#define MEMBERSHIP_GREETING_RPC 0x45U /* numbers of operations */
#define MEMBERSHIP_WHO_RPC      0x46U

#define MEMBERSHIP_GREETING_MAX 256U  /* bytes of a greeting */
#define MEMBERSHIP_GREET_MS     2000U /* at the start, for all peers together */
#define MEMBERSHIP_ROUND_MS     2000U /* each time one node is greeted */
#define MEMBERSHIP_MEET_MS      10000U /* for others to connect to a new node */
#define MEMBERSHIP_ADMIT_MS     5000U /* a member may be behind the log by so much */
#define MEMBERSHIP_UPPER_MAX    16U   /* operations of the layers above */
#define CERTIFICATE_DAYS        365U  /* renewed when a third of it is left */

struct membership;

struct membership_options {
    struct loop *loop;
    struct kv *kv;
    struct store *store;
    struct net_identity self;
    struct net_credentials credentials; /* copied; none in the simulator */
    const char *address;                /* where to listen: as others know it */
    const struct join_peer *peers;      /* where to look for others at first */
    uint32_t peer_count;
    /* Operations of the layers above; ends with NULL, may be NULL. Their handlers get
     * `upper_arg` of membership_attach; before that, and after membership_detach, calls
     * are answered -EAGAIN. Only `number` to `payload_max` and `handle` count. */
    const struct rpc_op *const *upper_ops;
    /* It cannot go on: consensus has failed, the node was removed, or its store was
     * copied. Called once, on the loop; must not suspend, nor close it. */
    void (*failed)(void *arg, const char *why);
    /* A node has come, gone or moved; on the loop, must not suspend. May be NULL. */
    void (*nodes_changed)(void *arg);
    /* The certificate was renewed; on the loop's own stack. May be NULL. */
    void (*renewed)(void *arg, const struct net_pki_pair *pair);
    /* What guests of this node have done so far, in operations; must not suspend. NULL:
     * there are none. Guests of others are seen by what they ask the store. */
    uint64_t (*guest_ops)(void *arg);
    void *arg;
    struct consensus_tuning tuning; /* for tests */
    uint64_t out_ns;                /* as in warden_options */
    bool no_duties;                 /* for tests: no recovery, nothing a leader does */
};

/* Listens, greets, and loads what the cluster's log says. The store is of the cluster of
 * `self`, and stays the caller's, as the kv. -PLX_EDENIED: the other nodes say that this
 * one was removed, or had more of the log; -PLX_EEXISTS: that another process runs as
 * this node. */
async int membership_open(const struct membership_options *options,
                          struct membership **ret_membership, struct error *err);
/* Waits until the state knows this node: at once, unless it has never had any.
 * -ETIMEDOUT, with a text that says whom it has not reached. */
async int membership_wait(struct membership *m, uint64_t timeout_ns, struct error *err);
/* Nobody above uses it any more. */
async void membership_close(struct membership *m);

/* From now on the operations of the layers above are served. */
void membership_attach(struct membership *m, void *upper_arg);
void membership_detach(struct membership *m);

/* Where others are, as far as this node knows: to be kept for the next start. */
uint32_t membership_peers(const struct membership *m, struct join_peer *ret,
                          uint32_t max);

struct cluster *membership_cluster(const struct membership *m);
struct copies *membership_copies(const struct membership *m);
struct rpc *membership_rpc(const struct membership *m);
/* NULL with no_duties. */
const struct warden *membership_warden(const struct membership *m);
struct recovery *membership_recovery(const struct membership *m);
uint64_t membership_node(const struct membership *m);

/* --- before there is one --- */

struct membership_founding {
    struct loop *loop;
    struct kv *kv;
    struct uid store;
    const char *address, *domain;
    uint64_t capacity_bytes; /* of the store */
};
/* Makes the cluster of one in kv one that others can join; ret is what a machine that
 * joins would have been answered, ret_key the key of its certificate (net_pki_free_key).
 * May be repeated. -PLX_EPRECONDITION: it is not of one. */
async int membership_found(const struct membership_founding *options,
                           struct join_answer *ret, char **ret_key, struct error *err);

/* --- */

/* A new token, good for so long. */
async int membership_token(struct membership *m, uint32_t minutes,
                           struct join_token *ret_token, struct error *err);

#endif
