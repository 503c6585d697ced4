/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of membership share:
 *
 *   membership.c         opening and closing, the table of operations
 *   membership_address.c where others are
 *   membership_greet.c   nodes tell each other who they are
 *   membership_found.c   what makes a cluster that others can join
 *   membership_join.c    tokens, and strangers who show one
 *   membership_renew.c   certificates
 *   membership_duties.c  what a node does by itself: recovery, and the leader's work
 */
#ifndef PARALLAX_REPLICATION_MEMBERSHIP_INTERNAL_H
#define PARALLAX_REPLICATION_MEMBERSHIP_INTERNAL_H

#include "blockstore/copy_service.h"
#include "blockstore/store_service.h"
#include "replication/consensus_rpc.h"
#include "replication/membership.h"
#include "replication/room.h"

#define MEMBERSHIP_OPS_MAX  64U
#define MEMBERSHIP_BUFFERS  (32 * MIB) /* payload that came, reads of the store */
#define MEMBERSHIP_JOBS_MAX 16U        /* requests at work on a task; more: -PLX_ELIMIT */

/* Serves a request. */
typedef void serve_fn(struct membership *m, struct rpc_request *request);

/* Whom a node said it is when it greeted. */
struct greeted {
    uint64_t node;
    struct uid instance;
    uint64_t committed; /* that much of the log it had, or more */
    TAILQ_ENTRY(greeted) link;
};

/* Whom this node knows an address of. Each may be "": none. */
struct known_node {
    uint64_t node;
    char address[DISK_NAME_MAX + 1]; /* where it is looked for: one of those below */
    char found[DISK_NAME_MAX + 1];   /* where it was reached, or said itself that it is */
    char listed[DISK_NAME_MAX + 1];  /* as the state said last */
    bool is_down;                    /* the same */
};

/* Copies that come, or go, and make room for guests. */
struct way {
    struct membership *membership;
    struct room room;
};

struct membership {
    struct membership_options options; /* without pointers to what is not kept */
    struct loop *loop;
    struct net_identity self;
    struct uid store;
    struct uid instance; /* of this process: random */
    char address[DISK_NAME_MAX + 1];
    struct rpc *rpc;
    struct buffer_pool *buffers;
    struct consensus_rpc *binding;
    struct cluster *cluster;
    struct copies *copies;
    struct store_service *service;
    struct copy_service *copy_service;
    struct recovery *recovery;
    struct warden *warden;
    uint64_t served;                  /* requests to the store; see ROOM_OP_BYTES */
    struct guest_load guest_load;
    struct way receiving, sending;
    struct cluster_watcher watcher;
    bool is_watching;
    bool is_closing, has_failed;
    bool is_attached;
    void *upper_arg;
    uint32_t job_count;
    struct waitlist idle; /* job_count became 0 */
    /* The table of operations; `serve` beside each. */
    struct rpc_op ops[MEMBERSHIP_OPS_MAX];
    const struct rpc_op *op_list[MEMBERSHIP_OPS_MAX + 1];
    serve_fn *serve[MEMBERSHIP_OPS_MAX];
    const struct rpc_op *upper[MEMBERSHIP_OPS_MAX];
    uint32_t op_count;
    struct known_node *known;
    uint32_t known_count;
    TAILQ_HEAD(, greeted) greeted;
    uint64_t log_end;     /* in the store, before the cluster is opened */
    struct error verdict; /* of the others, while it opens */
    struct timer greet_round;
    uint32_t greet_next, greet_rounds;
    uint64_t certificate_until_s; /* since 1970; 0: there is none */
    struct timer renewal;
};

/* It cannot go on; told once. */
void membership_fail(struct membership *m, const char *why);

/* The state calls it GONE. */
bool membership_is_gone(const struct membership *m, uint64_t node);

/* --- membership_address.c --- */
/* NULL: none is known. Until the next one is learned. */
const char *membership_address_of(const struct membership *m, uint64_t node);
/* Where the node says that it listens; or where its address was when this process ended
 * last. Counts more than what the state says, until it is not found there. */
void membership_learn(struct membership *m, uint64_t node, const char *address);
/* It was reached where it was looked for, and has shown that it is that node. */
void membership_found_at(struct membership *m, uint64_t node);
/* Looks where the others are that are not found, if there are two places. */
void membership_look_elsewhere(struct membership *m);
/* What the state says of the nodes may be new. */
void membership_state_applied(struct membership *m);

/* A request that is served on a task. Answers it if there is no room for it. */
struct membership_job {
    struct membership *membership;
    struct rpc_request *request;
    async void (*run)(struct membership_job *job); /* must answer */
    struct task_call call;
};
void membership_job_start(struct membership *m, struct rpc_request *request,
                          const char *name,
                          async void (*run)(struct membership_job *job));
/* With text for people, from err, or else for the code. */
void membership_refuse(struct rpc_request *request, int code, const struct error *err);

/* --- membership_greet.c --- */
/* Greets all known nodes and waits for their answers, MEMBERSHIP_GREET_MS at most: 0, or
 * what one of them has against this process. */
async int membership_greet_all(struct membership *m, struct error *err);
/* Greets one that was connected to; its objection makes the membership fail. */
void membership_greet(struct membership *m, uint64_t node);
void membership_rounds_start(struct membership *m);
serve_fn membership_serve_greeting, membership_serve_who;
void membership_forget_greeted(struct membership *m);

/* --- membership_join.c --- */
serve_fn membership_serve_join;

/* --- membership_duties.c --- */
int membership_duties_create(struct membership *m);
void membership_duties_start(struct membership *m);
/* While the cluster is open, and then when it is closed and the rpc is not any more. */
async void membership_duties_stop(struct membership *m);
async void membership_duties_end(struct membership *m);
serve_fn membership_serve_copies, membership_serve_heartbeat;

/* --- membership_renew.c --- */
void membership_renew_start(struct membership *m);
void membership_renew_stop(struct membership *m);

#endif
