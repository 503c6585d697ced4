/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What feeds the cluster state. On one machine: a command log in the node's key-value
 * store (keys 'l' + index, snapshots under 'c'), applied once it is durable; commands
 * that wait together are synced together. Raft will take this place; the commands, the
 * state and their encodings stay.
 */
#ifndef PARALLAX_REPLICATION_CLUSTER_H
#define PARALLAX_REPLICATION_CLUSTER_H

#include "replication/cluster_state.h"

struct cluster;

/* Loads snapshot and log. An empty store gives an empty state (INIT comes next).
 * Damage is an error that names the key. */
async int cluster_open(struct loop *loop, struct kv *kv, struct cluster **ret_cluster,
                       struct error *err);
async void cluster_close(struct cluster *cluster);

const struct cluster_state *cluster_state(const struct cluster *cluster);
/* 0, or why a write of the command log failed: it takes no more commands. */
int cluster_failure(const struct cluster *cluster);

/*
 * Commits and applies a command; fills in client and sequence. Returns result->code, or
 * -PLX_EFAILED when the outcome cannot be known (the log failed: the cluster takes no
 * more commands in this process; assume the command may exist).
 */
async int cluster_submit(struct cluster *cluster, const struct cluster_command *command,
                         struct cluster_result *ret_result);

#endif
