/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which nodes a group should be on: what to change next in a state, one small step at a
 * time. A pure function of the state, for whoever leads to propose what it says; the next
 * step is thought of anew from the state that came of it. So nothing has to be
 * remembered, and a new leader goes on where the old one was. doc/placement.md has the
 * reasons.
 */
#ifndef PARALLAX_REPLICATION_PLACEMENT_H
#define PARALLAX_REPLICATION_PLACEMENT_H

#include "replication/cluster_state.h"

#define PLACEMENT_NODE_GROUPS     32U /* of a pool, on a node, about */
#define PLACEMENT_RECOVERING      16U /* defaults of the options */
#define PLACEMENT_NODE_RECOVERING 4U

struct placement_options {
    /* No member is added while so many recover, on all nodes; those of one node count up
     * to node_recovering_max, and it gets none while it has so many. 0: the default. */
    uint32_t recovering_max, node_recovering_max;
    /* Nodes that get nothing new, full ones for example. */
    const uint64_t *avoid;
    uint32_t avoid_count;
};

/* Why a step is taken, the most urgent first. */
enum placement_reason {
    PLACEMENT_DONE,  /* nothing is to be done, or something that is under way first */
    PLACEMENT_FILL,  /* a group that lost all its members gets some */
    PLACEMENT_LEAVE, /* a member leaves: of a node that is out or drained, or one that was
                        replaced */
    PLACEMENT_REPAIR, /* a group gets a member that it lacks */
    PLACEMENT_GROW,   /* a new group */
    PLACEMENT_MOVE,   /* a member comes to take the place of another, for balance */
    PLACEMENT_REASONS,
};

/* The next step: `ret` is GROUP_ADD or GROUP_SET. PLACEMENT_DONE: there is none. */
enum placement_reason placement_next(const struct cluster_state *state,
                                     const struct placement_options *options,
                                     struct cluster_command *ret);

/* How many members a group of the pool should have with the nodes there are. */
uint32_t placement_wanted(const struct cluster_state *state,
                          const struct cluster_pool *pool);

#endif
