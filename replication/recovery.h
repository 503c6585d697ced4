/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes this node's store whole for the groups it is a member of. doc/recovery.md.
 *
 *   missing --> surveyed --> swept, extents copied --> nothing left --> GROUP_WHOLE
 *      ^                        |                          |
 *      +---- something has to wait, or was marked again ---+
 *
 * One worker per process. It copies from whole members what is not here, lets die here
 * what is dead there, ends copies where they are known to end, deletes what is dead as a
 * whole, and then says that this node is whole. What is here of groups that this node has
 * left goes, too. Guests come first.
 */
#ifndef PARALLAX_REPLICATION_RECOVERY_H
#define PARALLAX_REPLICATION_RECOVERY_H

#include "blockstore/store.h"
#include "replication/cluster.h"
#include "runtime/rpc.h"

#define RECOVERY_PARALLEL_MAX 8U
#define RECOVERY_PARALLEL     2U     /* extents copied at once, each through one buffer */
#define RECOVERY_LOOK_MS      200U   /* between looks at the state, at least */
#define RECOVERY_RETRY_MS     2000U  /* after a pass that left something */
#define RECOVERY_SETTLE_MS    60000U /* trims that were under way have ended by then */

struct recovery;

/* What recovery needs of the cluster. */
struct recovery_view {
    const struct cluster_state *(*state)(void *arg);
    async int (*barrier)(void *arg);
    async int (*submit)(void *arg, const struct cluster_command *command,
                        struct cluster_result *ret_result);
    void *arg;
};

struct recovery_options {
    struct loop *loop;
    struct cluster *cluster; /* NULL: then the view; recovery_wake must be called */
    struct recovery_view view;
    struct store *store;
    uint64_t node;          /* this one */
    struct rpc *rpc;        /* to the others; NULL: alone */
    struct kv *kv;          /* where it notes what is to be mended; NULL: nowhere */
    uint32_t parallel;      /* 0: RECOVERY_PARALLEL */
    uint64_t limit_bytes_s; /* 0: none */
    /* So many bytes were copied: makes room for guests. NULL: does not. */
    async void (*rest)(void *arg, uint64_t bytes);
    void *rest_arg;
};

/* -ENOMEM */
int recovery_create(const struct recovery_options *options,
                    struct recovery **ret_recovery);
void recovery_start(struct recovery *recovery);
/* Ends what is under way; calls to other nodes are given up. */
async void recovery_stop(struct recovery *recovery);
/* Stopped, or never started. NULL ok. */
void recovery_destroy(struct recovery *recovery);
/* The state has changed, or a node can be reached again. */
void recovery_wake(struct recovery *recovery);
/* Something in an extent here is not what it should be: a block, a header, or what tells
 * of its blocks. It is compared with its other copies, and written again from those that
 * are sound: as soon as there is one in reach. is_looked_for: by a scrub, which wants it
 * tried now, also if it was in vain the last time. */
void recovery_mend(struct recovery *recovery, struct address extent, bool is_looked_for);
/* So many wait for it, but for those that others are known not to have. */
uint32_t recovery_mends_left(const struct recovery *recovery);
void recovery_set_limit(struct recovery *recovery, uint64_t limit_bytes_s);

struct recovery_status {
    uint32_t groups;                   /* in which something may be missing here */
    uint64_t extents_left, bytes_left; /* as far as was surveyed */
    uint64_t extents_done, bytes_done; /* since there was something to do */
    uint64_t rate_bytes_s;
    uint64_t left_s;      /* UINT64_MAX: nobody knows */
    uint32_t waiting;     /* extents that others have to end first */
    uint64_t lost_blocks; /* that are on no member, in this process's time */
    char what[200];       /* what it does, or waits for; "": nothing */
};
void recovery_status(const struct recovery *recovery, struct recovery_status *ret_status);

/* May this node speak for a group? For copy_service_options.is_whole. */
bool recovery_may_serve(const struct cluster_state *state, uint64_t node, uint16_t group);

#endif
