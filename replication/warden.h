/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the leader does for the cluster besides ordering commands. It runs on every node;
 * those that do not lead tell the leader that they live, four times a second, and no
 * more. The leader
 *
 *   - marks nodes down, out, and up again (replication/liveness.h), and notes where they
 *     are and how large,
 *   - makes groups what they should be (replication/placement.h),
 *   - and consensus have the members that it should (replication/voters.h).
 *
 * Whatever it does is a command, or a change of membership, that only a leader with a
 * majority gets through; so two who think that they lead do no harm. doc/warden.md.
 */
#ifndef PARALLAX_REPLICATION_WARDEN_H
#define PARALLAX_REPLICATION_WARDEN_H

#include "replication/cluster.h"
#include "replication/node_rpc_format.h"
#include "replication/placement.h"
#include "runtime/rpc.h"

#define WARDEN_BAD_MS 30000U /* down for so long: another one votes in its place */
#define WARDEN_RETRY_MS                                                                  \
    60000U /* a node that did not catch up is not to vote for so long */
#define WARDEN_BETTER_MS    1500U /* another one hears more nodes for so long: it leads */
#define WARDEN_KEPT_MS      2000U /* a leader leads for so long before that */
#define WARDEN_FULL_PERCENT 90U   /* of a store in use: it gets no more groups */

struct warden;

struct warden_usage {
    uint64_t capacity_bytes, used_bytes;
    uint64_t free_bytes; /* for guests: without the reserve */
    bool is_broken; /* the store is out of service */
    /* As of recovery_status. */
    uint32_t recovering_groups;
    uint64_t recovery_left_bytes, recovery_bytes_s;
};

struct warden_options {
    struct loop *loop;
    struct cluster *cluster;
    struct rpc *rpc; /* NULL: alone */
    uint64_t node;
    const char *address; /* where others reach this node; "" or NULL: nowhere */
    /* How the store is; must not suspend. NULL: there is none, it is a witness. */
    void (*usage)(void *arg, struct warden_usage *ret);
    void *arg;
    uint64_t out_ns; /* down for so long: replaced. 0: LIVENESS_OUT_S */
    uint32_t recovering_max, node_recovering_max; /* as in placement_options */
};

/* -ENOMEM. */
int warden_create(const struct warden_options *options, struct warden **ret_warden);
/* Begins nothing new. What is under way ends at the latest when the cluster is closed,
 * which may happen between this and warden_destroy. */
void warden_stop(struct warden *w);
/* Stops, and waits for what is under way. */
async void warden_destroy(struct warden *w);

/* For `usage`: arg is a struct store. */
void warden_store_usage(void *arg, struct warden_usage *ret);

/* The handler of HEARTBEAT_RPC (one-way, head_max HEARTBEAT_MAX, no payload). */
void warden_heartbeat(struct warden *w, struct rpc_request *request);

/* What a node has said of itself, if this node leads: else, or if it has said nothing,
 * false. */
struct warden_report {
    struct warden_usage usage;
    uint64_t applied;
    uint64_t heard_ns; /* ago */
};
bool warden_report(const struct warden *w, uint64_t node, struct warden_report *ret);

#endif
