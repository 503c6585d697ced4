/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who should vote: the next single change of the membership of consensus. A pure function
 * of the nodes and their roles now, for whoever leads.
 *
 * Every node that is not gone has the log. Of them 1, 2, 3 or 5 vote, as many as fit:
 *
 *      nodes   1   2   3 to 6   7 and more
 *      voters  1   2   3        5
 */
#ifndef PARALLAX_REPLICATION_VOTERS_H
#define PARALLAX_REPLICATION_VOTERS_H

#include "replication/consensus.h"

struct voter {
    uint64_t node;
    const char *domain; /* "": one of its own */
    bool is_member;
    enum consensus_role role; /* if it is */
    bool is_up;               /* it would take part now */
    bool is_bad; /* out, or down for so long that another should take its place */
    bool is_draining;
    bool is_gone;   /* for ever */
    bool may_not;   /* it did not catch up lately; not yet again */
    uint32_t hears; /* nodes it is connected to, itself included; 0: not known */
};

struct voters_change {
    enum {
        VOTERS_DONE,     /* nothing to do, or nothing that can be done now */
        VOTERS_ADD,      /* consensus_add */
        VOTERS_ROLE,     /* consensus_set_role */
        VOTERS_REMOVE,   /* consensus_remove */
        VOTERS_TRANSFER, /* consensus_transfer: the leader itself should not vote */
    } kind;
    uint64_t node;
    enum consensus_role role; /* of VOTERS_ROLE */
};

/* `leader` is this node. At most CONSENSUS_MEMBERS_MAX + CLUSTER_NODES_MAX voters. */
struct voters_change voters_next(const struct voter *voters, uint32_t count,
                                 uint64_t leader);

/* A voter that is connected to more nodes than the leader is, so that fewer would be left
 * out if it led; of several the best. 0: none. */
uint64_t voters_better(const struct voter *voters, uint32_t count, uint64_t leader);

#endif
