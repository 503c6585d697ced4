/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of rpc share: rpc.c (life, messages, pings), rpc_peer.c (connections
 * that this node makes, and its calls), rpc_server.c (connections that others make, and
 * their requests).
 */
#ifndef PARALLAX_RUNTIME_RPC_INTERNAL_H
#define PARALLAX_RUNTIME_RPC_INTERNAL_H

#include "runtime/loop.h"
#include "runtime/metrics.h"
#include "runtime/rpc.h"
#include "runtime/rpc_format.h"

struct rpc_peer;
struct rpc_incoming;

/* --- messages --- */

/* A decoded head. */
struct rpc_head {
    enum rpc_kind kind;
    uint16_t op;
    int code;
    uint64_t call;
    const uint8_t *rest; /* the operation's own part */
    size_t rest_len;
};

/* A message that waits. */
struct rpc_message {
    STAILQ_ENTRY(rpc_message) link;
    uint64_t bytes; /* of head and payload */
    uint32_t head_len;
    uint32_t slice_count;
    uint8_t *head; /* behind the slices */
    struct slice slices[];
};
STAILQ_HEAD(rpc_message_list, rpc_message);

/* -PLX_EFORMAT. */
int rpc_head_decode(const void *bytes, size_t len, struct rpc_head *ret);
/* Copies the head, takes references of the slices; NULL: memory is out. */
struct rpc_message *rpc_message_create(const struct rpc_head *head,
                                       const struct slice *slices, uint32_t slice_count);
/* Its call id is only known when it is sent. */
void rpc_message_set_call(struct rpc_message *message, uint64_t call);
/* Puts references, which may run whoever waits for a buffer: do it last. NULL is
 * allowed. */
void rpc_message_free(struct rpc_message *message);
int rpc_message_send(struct rpc *rpc, struct net_conn *conn,
                     const struct rpc_message *message);
/* A message without rest and payload. Fails only for want of memory, or because the
 * connection is about to end. */
int rpc_send_short(struct rpc *rpc, struct net_conn *conn, const struct rpc_head *head);

/* --- connections, of both directions --- */

struct rpc_link {
    struct rpc *rpc;
    struct net_conn *conn;       /* NULL: none */
    struct rpc_peer *peer;       /* who is at the other end */
    struct rpc_incoming *incoming; /* NULL: we made the connection */
    uint64_t listened_ns;        /* until then we did not read, and so heard nothing */
    uint64_t pinged_ns;          /* 0: no ping is unanswered */
    TAILQ_ENTRY(rpc_link) entry; /* in rpc.links, while it is open */
};
TAILQ_HEAD(rpc_link_list, rpc_link);

/* From opened until it ends. */
void rpc_link_start(struct rpc_link *link);
void rpc_link_stop(struct rpc_link *link);
/* A message came. Answers a ping; true: it was one, or the answer to one. */
bool rpc_link_heard(struct rpc_link *link, const struct rpc_head *head, uint64_t bytes);

/* --- calls --- */

enum call_phase { CALL_QUEUED, CALL_SENT, CALL_ENDING };

/* In rpc_call.priv. */
struct call_state {
    struct timer timer; /* the deadline; CALL_ENDING: fires at once */
    TAILQ_ENTRY(call_state) link; /* QUEUED: peer.queued; ENDING: rpc.ending */
    struct rpc *rpc;
    struct rpc_peer *peer;       /* ENDING: NULL */
    struct rpc_message *message; /* QUEUED */
    uint32_t slot;               /* SENT: in peer.slots */
    enum call_phase phase;
    struct waiting_call *waiting; /* of rpc_wait */
};
TAILQ_HEAD(call_list, call_state);
static_assert(sizeof(struct call_state) <= sizeof(((struct rpc_call *)NULL)->priv),
              "rpc_call has room for it");

/* Fails all calls and frees all peers; done of the calls is called last. */
void rpc_peers_destroy(struct rpc *rpc);

/* --- peers --- */

/* A call that was sent. Freed by the answer only (or the end of the connection), so that
 * a server never has more than it works on. */
struct rpc_slot {
    uint64_t id;             /* 0: free */
    struct call_state *call; /* NULL: it timed out or was cancelled */
};

/*
 *      idle -> connecting -> open
 *       ^       ^      |      |
 *       |       |      v      |
 *       |       +-- pausing <-+
 *       +-- its address is forgotten
 */
enum peer_phase { PEER_IDLE, PEER_CONNECTING, PEER_OPEN, PEER_PAUSING };

struct rpc_peer {
    struct rpc *rpc;
    uint64_t node;  /* 0: a connection for one call, or all those without certificate */
    bool is_single; /* a connection for one call */
    bool is_dead;   /* will be freed by rpc.reap */
    char address[NET_ADDRESS_MAX]; /* "": not known */
    enum peer_phase phase;
    struct rpc_link link;
    struct timer timer; /* CONNECTING: its limit; PAUSING: the next attempt */
    struct work flush;  /* there is room for a queued call */
    uint64_t retry_ms;  /* how long the next pause is */
    uint64_t opened_ns, heard_ns;
    int last_code;      /* why the last connection ended; logged when it changes */

    struct call_list queued;
    uint32_t queued_count;
    uint64_t queued_bytes; /* of heads */
    uint32_t slots_used;
    uint64_t sequence; /* of call ids */
    struct rpc_slot slots[RPC_CALLS_INFLIGHT_MAX];

    struct rpc_message_list posts; /* while there is no connection */
    uint64_t posts_bytes;
    /* Of posts given to the connection, how many bytes it may still have: those before
     * and after a mark in the stream of sent bytes, which moves on when it has left. */
    uint64_t sent_bytes, mark, posts_before, posts_after;

    uint32_t incoming_count; /* connections from it */
    uint32_t requests;       /* of it, not answered; also of former connections */
    RB_ENTRY(rpc_peer) node_entry;
    TAILQ_ENTRY(rpc_peer) list_entry; /* singles, or dead */
};
RB_HEAD(rpc_peer_tree, rpc_peer);
TAILQ_HEAD(rpc_peer_list, rpc_peer);

void rpc_peers_init(struct rpc *rpc);
/* Finds or makes; NULL: memory is out. */
struct rpc_peer *rpc_peer_get(struct rpc *rpc, uint64_t node);
struct rpc_peer *rpc_peer_find(const struct rpc *rpc, uint64_t node);
/* It may not be needed any more. */
void rpc_peer_check(struct rpc_peer *peer);
/* It has just been heard of: no need to pause for long. */
void rpc_peer_hurry(struct rpc_peer *peer);
/* Closes the connection to it and fails what was sent. */
void rpc_peer_lost(struct rpc_peer *peer, int code, const char *why);

/* --- the server's side --- */

/* In rpc_request.priv. */
struct request_state {
    TAILQ_ENTRY(request_state) link; /* incoming.requests, or rpc.orphans */
    struct rpc_incoming *incoming;   /* NULL: the connection has ended */
    struct rpc_peer *peer;           /* NULL: the rpc has ended */
    uint64_t call;
    struct rpc_request *request;
};
TAILQ_HEAD(request_list, request_state);
static_assert(sizeof(struct request_state) <= sizeof(((struct rpc_request *)NULL)->priv),
              "rpc_request has room for it");

struct rpc_incoming {
    struct rpc_link link;
    struct request_list requests;
    uint32_t request_count;
    TAILQ_ENTRY(rpc_incoming) entry;
};
TAILQ_HEAD(rpc_incoming_list, rpc_incoming);

void rpc_server_init(struct rpc *rpc);
/* net_options.accepted. */
bool rpc_server_accepted(void *arg, struct net_conn *conn,
                         const struct net_handlers **ret_handlers, void **ret_arg);
/* Closes the connection; in is gone. */
void rpc_incoming_lost(struct rpc_incoming *in);
/* Reads on, or no further. */
void rpc_incoming_throttle(struct rpc_incoming *in);
/* Connections are closed already; requests stay, on their own. */
void rpc_server_destroy(struct rpc *rpc);

/* --- all of it --- */

struct rpc {
    struct rpc_options options;
    struct loop *loop;
    struct net *net;
    const struct rpc_op **ops; /* by number */
    uint32_t op_count;
    bool is_ending;

    struct rpc_link_list links;
    uint32_t link_count;
    struct timer tick; /* while there are links */
    uint64_t ticked_ns;

    struct rpc_peer_tree peers;
    struct rpc_peer_list singles, dead;
    struct work reap;
    struct call_list ending;

    struct rpc_incoming_list incoming;
    struct request_list orphans; /* their connections have ended */
    struct rpc_peer *nobody;     /* stands for all without certificate */

    struct metric *calls, *failures, *requests, *refusals, *dropped;
    struct metric *sent_bytes, *received_bytes, *lost;
};

#endif
