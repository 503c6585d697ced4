/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is down, as the leader sees it: by how long nothing was heard of a node. Counted in
 * ticks of the leader; no clock of another node, nor one that people set, has a part.
 *
 *      well -- silent for LIVENESS_SILENT_MS --> DOWN -- for out_ns --> DOWN and OUT
 *        ^                                        |                        |
 *        +-------------- it is heard -------------+------------------------+
 *
 * A leader that stood still heard nobody, and blames nobody: a tick that is late begins
 * everybody's window anew, as does leading. Nothing here allocates but for the table, or
 * waits, or knows the time but from its arguments.
 */
#ifndef PARALLAX_REPLICATION_LIVENESS_H
#define PARALLAX_REPLICATION_LIVENESS_H

#include "replication/cluster_state.h"

#define LIVENESS_TICK_MS   250U /* between ticks, and between heartbeats */
#define LIVENESS_LATE_MS   750U /* between ticks: this process stood still */
#define LIVENESS_SILENT_MS 2000U
#define LIVENESS_LOST_MS   1000U /* the same, if there is no connection to it either */
#define LIVENESS_OUT_S     600U  /* unless told otherwise */

struct liveness_node {
    uint64_t id;
    uint64_t heard_ns; /* its last heartbeat, or the begin of its window */
    uint64_t bad_ns;   /* for so long it has been silent or broken; 0: it is not */
    uint64_t lost_ns;  /* for so long there has been no connection to it */
    bool has_spoken;   /* to this leader, and since it was silent last */
    bool is_broken;    /* it says that its store is out of service */
};

struct liveness {
    struct liveness_node *nodes; /* by id, those that are not GONE */
    uint32_t count, cap;
    uint64_t tick_ns; /* of the last tick */
    uint64_t out_ns;
};

/* out_ns 0: the default. */
void liveness_init(struct liveness *l, uint64_t out_ns);
void liveness_done(struct liveness *l);
/* This node leads from now on: everybody has a full window. */
void liveness_begin(struct liveness *l, uint64_t now_ns);
/* A heartbeat. Nodes that no tick has seen in the state yet are not known. */
void liveness_heard(struct liveness *l, uint64_t node, uint64_t now_ns, bool is_broken);
/* Every LIVENESS_TICK_MS. is_connected: to this node. */
void liveness_tick(struct liveness *l, const struct cluster_state *state, uint64_t now_ns,
                   bool (*is_connected)(void *arg, uint64_t node), void *arg);
/* NULL: not known (yet). */
const struct liveness_node *liveness_find(const struct liveness *l, uint64_t node);
/* The flags it should have: those it has, but for DOWN and OUT. */
unsigned liveness_flags(const struct liveness *l, const struct cluster_node *node);

#endif
