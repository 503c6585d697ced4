/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of copies share. */
#ifndef PARALLAX_REPLICATION_COPIES_INTERNAL_H
#define PARALLAX_REPLICATION_COPIES_INTERNAL_H

#include <bsd/sys/tree.h>

#include "replication/copies.h"

/* One that was slow or did not answer is asked after the others for so long. */
#define COPIES_AVOID_NS (10 * NS_PER_S)

/* Blocks of this node's store that wait to be written again. */
#define MENDS_MAX 64U
struct mend {
    struct address address;
    uint32_t crc;
};

/* A node with a store, made when it is first needed, and kept. */
struct copies_member {
    struct replica *replica;
    uint64_t node;
    uint32_t reads;          /* that it has not answered */
    uint64_t avoid_until_ns; /* it was slow, or did not answer */
    RB_ENTRY(copies_member) by_node;
};
RB_HEAD(copies_member_tree, copies_member);

struct copies {
    struct loop *loop;
    struct cluster *cluster;
    struct store *store;
    uint64_t node;
    struct rpc *rpc;
    struct buffer_pool *buffers;
    uint64_t slow_ns, patience_ns;
    bool is_alone;
    struct replica_directory directory;
    struct copies_member local;
    struct copies_member_tree others;
    TAILQ_HEAD(, log_read) local_reads; /* given to the store, oldest first; not of one
                                           that is alone */
    void (*bad_fn)(void *arg, const struct copies_bad *bad);
    void *bad_arg;
    void (*damage_fn)(void *arg, struct address extent);
    void *damage_arg;
    uint64_t said_bad_ns;
    uint32_t mend_count;
    struct mend mends[MENDS_MAX]; /* the first one is at work */
    struct task_call mend_task;
    bool mends_run, is_stopping;
    struct waitlist mends_over;
    struct metric *reads_elsewhere, *reads_again, *bad_copies, *mended_blocks;
};

/* Who has the extents of a group, as far as this node knows. */
struct copies_at {
    uint64_t node;
    bool is_whole;  /* it has all of it */
    bool is_usable; /* it should answer */
};
struct copies_where {
    uint32_t count;
    bool is_unsure; /* a whole one that lacks the extent says nothing by that:
                     * cluster_group.unsure_below */
    struct copies_at members[REPLICAS_MAX];
};
struct copies_where copies_where(const struct copies *copies, struct address extent);

/* NULL: there is no such node, it is gone, it has no store, or memory is out. */
struct copies_member *copies_member(struct copies *copies, uint64_t node);
/* For tests: makes it a member under its node's number; it is destroyed with the rest. */
int copies_member_add(struct copies *copies, struct replica *replica);
/* It did not answer: others are asked first for a while. */
void copies_member_failed(struct copies *copies, struct copies_member *member);

/* Does this code say that a member could not be asked, rather than what it has? */
bool copies_is_unreached(int code);

#endif
