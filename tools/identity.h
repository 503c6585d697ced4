/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a daemon knows of its cluster before it can read the cluster's state: its folder
 * node/ (mode 0700), beside the store:
 *
 *     identity        cluster, number, store, address, where others are: JSON
 *     ca.pem          the cluster's CA
 *     cert.pem        this node's certificate and its key
 *     joining         while a machine joins: what its store will be
 *
 * The identity comes last when a node is made: with it the node is there.
 */
#ifndef PARALLAX_TOOLS_IDENTITY_H
#define PARALLAX_TOOLS_IDENTITY_H

#include "replication/join.h"
#include "tools/directory.h"

struct identity {
    struct net_identity self;
    struct uid store;
    char address[DISK_NAME_MAX + 1];
    uint32_t peer_count;
    struct join_peer peers[JOIN_PEERS_MAX];
    char *authority, *certificate, *key; /* PEM; what was loaded has both in both */
};

/* *ret_found false: the store is no node of a cluster. */
int identity_load(const struct directory *dir, struct identity *ret, bool *ret_found,
                  struct error *err);
/* Durable. */
int identity_save(const struct directory *dir, const struct identity *identity,
                  struct error *err);
/* Only where others are; and only the certificate with its key. */
int identity_save_peers(const struct directory *dir, const struct identity *identity,
                        struct error *err);
int identity_save_certificate(const struct directory *dir,
                              const struct identity *identity, struct error *err);
/* Frees the texts, and wipes the key. */
void identity_done(struct identity *identity);

/* What the store of the machine that joins will be: from now on the same each time, until
 * the identity is saved. *ret_is_new false: a joining was begun before. */
int identity_begin_joining(const struct directory *dir, struct uid *ret_store,
                           bool *ret_is_new, struct error *err);
/* It came to nothing. */
void identity_forget_joining(const struct directory *dir);

#endif
