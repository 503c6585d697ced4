/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the placement share:
 *
 *   placement_load.c  how much of a pool each node has, and should have
 *   placement.c       what to do about it
 */
#ifndef PARALLAX_REPLICATION_PLACEMENT_INTERNAL_H
#define PARALLAX_REPLICATION_PLACEMENT_INTERNAL_H

#include "replication/cluster_internal.h"
#include "replication/placement.h"

static_assert(CLUSTER_NODE_RECORDS_MAX <= UINT16_MAX, "places of nodes have 16 bits");

/* Shares are counted in parts of a membership, as they seldom come out even. */
#define PARTS 256

struct placement_node {
    const struct cluster_node *node;
    uint32_t domain;     /* number of its failure domain, as the pool sees it */
    uint32_t recovering; /* memberships of all pools that are not whole, if it is up */
    bool counts;         /* its copies count: neither OUT nor DRAINING nor GONE; DOWN ones
                            are expected back */
    bool takes;          /* it may get something new */
    uint32_t weight;     /* by capacity */
    uint32_t newest;     /* memberships in groups younger than any node */
    uint32_t pairs;      /* placement_pair: groups in which it is beside certain others */
    int64_t excess;      /* memberships that it will have, less its share, in parts */
};

/* The view of one pool. */
struct placement {
    const struct cluster_state *state;
    struct placement_options options; /* defaults filled in */
    const struct cluster_pool *pool;
    struct placement_node *nodes; /* in the order of the state */
    uint32_t node_count;
    uint32_t taking;      /* nodes that may get something new */
    uint32_t domains;     /* that have a node that counts */
    uint32_t all_domains; /* or one that is OUT */
    uint32_t wanted;      /* copies of each group */
    uint32_t wanted_once; /* copies to be had if those that are OUT came back */
    uint32_t group_count;
    uint32_t recovering; /* on all nodes, those of one up to its maximum */
    uint16_t *members;   /* of groups, as places in nodes: REPLICAS_MAX for each */
    uint64_t *victims;   /* by group - 1: node whose member is to leave as there are too
                            many; 0: none */
};

struct placement_node *placement_node(const struct placement *p, uint64_t id);
/* The node of the group's member i. */
struct placement_node *placement_member(const struct placement *p,
                                        const struct cluster_group *group, unsigned i);
/* Does the group have a member in this domain that counts, `but` aside (0: none)? */
bool placement_has_domain(const struct placement *p, const struct cluster_group *group,
                          uint32_t domain, uint64_t but);
/* Members that count, and in how many domains they are; whole ones only, if so asked. */
struct placement_count {
    uint32_t members, domains;
};
struct placement_count placement_count(const struct placement *p,
                                       const struct cluster_group *group,
                                       bool whole_only);

/* Could the group do without its member i, were there one too many? It is not the last of
 * its domain, or there are domains enough. */
bool placement_may_spare(const struct placement *p, const struct cluster_group *group,
                         unsigned i);

/* Counts each node's groups that `node` is in as well; adds to what was counted. The
 * fewer there are, the more nodes share the work, and the danger, when one of them fails.
 */
void placement_pair(struct placement *p, const struct placement_node *node);
void placement_pair_none(struct placement *p);

/* Everything but the pool's part. */
void placement_init(struct placement *p, const struct cluster_state *state,
                    const struct placement_options *options);
void placement_see_pool(struct placement *p, const struct cluster_pool *pool);
void placement_done(struct placement *p);

#endif
