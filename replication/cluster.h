/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cluster state of a process: fed by consensus (replication/consensus.h) with the
 * commands that the nodes of the cluster agree on, and read by everybody here. On one
 * machine alone it is the same with a single voter: a command is one synced write.
 * doc/cluster.md says what is promised.
 *
 *      bootstrap (first node only) -> open -> [submit, barrier ...] -> close
 *
 * A handle belongs to one loop.
 */
#ifndef PARALLAX_REPLICATION_CLUSTER_H
#define PARALLAX_REPLICATION_CLUSTER_H

#include "replication/cluster_state.h"
#include "replication/consensus.h"

/* How long a command is repeated before its submitter is told that it may or may not
 * have been carried out. */
#define CLUSTER_SUBMIT_MS 30000U
/* Commands of one node on their way at once, if there may be others; more wait. */
#define CLUSTER_SUBMITS_MAX 32U

#define CLUSTER_FIRST_NODE 1U /* that makes a cluster */

struct cluster;

struct cluster_options {
    struct loop *loop;
    struct kv *kv;
    uint64_t node;              /* never another one with the same store */
    struct consensus_link link; /* send NULL: alone, nobody can be reached */
    struct consensus_tuning tuning; /* for tests */
    /* It takes no more commands, for good; the state can still be read. Called once, on
     * the loop, with one line of text; must not suspend, nor close it. May be NULL. */
    void (*failed)(void *arg, const char *why);
    void *arg;
};

/* Makes the log of a new cluster, whose only member is `node`. CLUSTER_INIT comes next,
 * once it is open. -PLX_EEXISTS: the store has one. */
async int cluster_bootstrap(struct kv *kv, uint64_t node, struct error *err);
/*
 * Loads what is stored; a log of before consensus is converted first. An empty store
 * makes a node that waits to be added by the leader: its state is empty until then. Alone
 * everything that was ever answered is in the state afterwards; with others, see
 * cluster_barrier. Damage is an error that names the key.
 */
async int cluster_open(const struct cluster_options *options,
                       struct cluster **ret_cluster, struct error *err);
/* Waits for what was submitted: until it is durable, or, if that takes others, for as
 * long as one attempt takes. */
async void cluster_close(struct cluster *cluster);

/* Stays at its address until close; what is in it, until the next command. */
const struct cluster_state *cluster_state(const struct cluster *cluster);
/* For membership and messages that come in. */
struct consensus *cluster_consensus(const struct cluster *cluster);
/* 0, or why it takes no more commands. */
int cluster_failure(const struct cluster *cluster);

/*
 * Has a command carried out; fills in client and sequence, and repeats it as long as its
 * outcome is not known. Returns result->code: 0 or the state's refusal, and then it has
 * been applied here. Otherwise
 *   -PLX_EUNKNOWN   it may have been carried out, or may be yet
 *   -PLX_EFAILED    the same, and this process takes no more commands
 *   -PLX_ENOLEADER, -PLX_ELIMIT (nobody has led, the queue has been full, for
 *   CLUSTER_SUBMIT_MS), -PLX_ECANCELLED (closing), -ENOMEM, -PLX_ENAME   it was not
 * cluster_outcome_is_unknown tells them apart.
 */
async int cluster_submit(struct cluster *cluster, const struct cluster_command *command,
                         struct cluster_result *ret_result);
/* The same for those who could not go on without knowing: what may have been carried out
 * is repeated until that is known, or *gives_up. */
async int cluster_submit_known(struct cluster *cluster,
                               const struct cluster_command *command,
                               const bool *gives_up, struct cluster_result *ret_result);
/* May what was answered so have been carried out, though that is not known? */
bool cluster_outcome_is_unknown(int code);

/* Afterwards everything that was committed anywhere before the call has been applied
 * here. -PLX_ENOLEADER: no leader with a majority answered in time; or -PLX_EFAILED,
 * -PLX_ECANCELLED. */
async int cluster_barrier(struct cluster *cluster);
/* Until the state has the command with this index, and all before it. -ETIMEDOUT,
 * -PLX_EFAILED, -PLX_ECANCELLED (closing). */
async int cluster_wait_applied(struct cluster *cluster, uint64_t index,
                               uint64_t timeout_ns);

/* Called on the loop soon after commands were applied, once for many. It must not
 * suspend; it may take itself off, but no other. */
struct cluster_watcher {
    void (*applied)(struct cluster_watcher *watcher);
    TAILQ_ENTRY(cluster_watcher) link;
};
void cluster_on_apply(struct cluster *cluster, struct cluster_watcher *watcher);
/* Before the cluster is closed. */
void cluster_off_apply(struct cluster *cluster, struct cluster_watcher *watcher);

#endif
