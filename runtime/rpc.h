/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls between nodes, over runtime/net.h: a request, one answer, a deadline. Also
 * one-way messages, which may be lost.
 *
 *      call: queued -> sent -> answered | timed out | connection lost | cancelled
 *
 * A node has one connection to each peer that it calls, made when first needed, and made
 * again with a growing pause after it broke. Answers come back on the connection the
 * request came on. A lost connection fails the calls on it with -ECONNRESET: whether they
 * were carried out is unknown, and whoever repeats one makes sure that it is harmless.
 *
 * A peer from which nothing came for RPC_SILENCE_MS is asked (a ping); if nothing comes
 * for as long again the connection is taken as lost, by either side. One that cannot read
 * because its own memory is full says so by pings of its own, and a process that stood
 * still blames itself for the silence. Each call has its deadline besides.
 *
 * Back-pressure: a server works on at most RPC_INFLIGHT_MAX requests of a connection, and
 * reads no further until one is answered. A caller has fewer unanswered, so that its
 * pings are always read; more wait in its queue, in order. A call that times out or is
 * cancelled counts until its answer comes, since the server still works on it.
 */
#ifndef PARALLAX_RUNTIME_RPC_H
#define PARALLAX_RUNTIME_RPC_H

#include "runtime/net.h"
#include "runtime/task.h"

#define RPC_INFLIGHT_MAX    128U /* of one connection, at the server */
#define RPC_CALLS_INFLIGHT_MAX (RPC_INFLIGHT_MAX - 1) /* and at the caller */
#define RPC_QUEUED_MAX      4096U /* calls that wait for a peer */
#define RPC_QUEUED_BYTES    (16 * MIB) /* of their heads */
#define RPC_SILENCE_MS      1000U
#define RPC_CONNECT_MS      2000U /* an attempt to connect, handshake included */
#define RPC_RETRY_MIN_MS    20U
#define RPC_RETRY_MAX_MS    1000U
#define RPC_POST_QUEUED_MAX (1 * MIB) /* one-way bytes that wait; more are dropped */
#define RPC_INCOMING_MAX    8U  /* connections from one node; more are refused */
#define RPC_NOBODIES_MAX    16U /* connections without certificate */
/* Requests of one node that are not answered, those of lost connections included: at so
 * many it cannot connect again. */
#define RPC_REQUESTS_MAX    (4 * RPC_INFLIGHT_MAX)
#define RPC_OPS_MAX         1024U /* numbers are below */
#define RPC_HEAD_MAX        (NET_HEAD_MAX - 16U) /* without rpc's own part */

struct rpc;
struct rpc_request;

/* An operation that this node offers. What comes once for all (sizes, who may) is checked
 * before `handle`. */
struct rpc_op {
    uint16_t number;       /* in the message; never reused for something else; not 0 */
    const char *name;
    bool is_one_way;       /* has no answer */
    bool allows_nobody;    /* also for peers without a certificate */
    uint32_t head_max;     /* bytes of the request's head, without rpc's own part */
    uint32_t payload_max;
    /* Called on the loop, outside of any task; must end in rpc_answer (now or later), or
     * return if it is one-way: the request is gone then. */
    void (*handle)(void *arg, struct rpc_request *request);
};

struct rpc_options {
    struct loop *loop;
    struct net_identity self;
    struct net_credentials credentials;
    struct buffer_pool *buffers;
    const struct rpc_op *const *ops; /* ends with NULL; stays */
    void *arg;                       /* given to handlers */
    /* The connection to a node was made, or lost (not: broken by rpc_set_address); may be
     * NULL. Called on the loop, from outside of any rpc_ function. */
    void (*peer_changed)(void *arg, uint64_t node, bool is_connected);
};

int rpc_create(const struct rpc_options *options, struct rpc **ret_rpc,
               struct error *err);
/* Calls that are under way fail with -ECANCELED, from inside; no new ones may be started
 * there. Requests that are not answered yet must be answered later all the same: nothing
 * is sent then, but they are freed. Their `rpc` is NULL; the buffers of the options must
 * outlive them. Not to be called from inside a handler or a call's done. */
void rpc_destroy(struct rpc *rpc);
int rpc_listen(struct rpc *rpc, const char *address, uint16_t *ret_port,
               struct error *err);
int rpc_set_credentials(struct rpc *rpc, const struct net_credentials *credentials,
                        struct error *err);

/* Where a node can be reached; calls to it wait until that is known and it answers.
 * A changed address breaks the connection. NULL forgets the node: calls that wait for it
 * fail with -EHOSTUNREACH, as soon as this has returned. -ENOMEM; -EINVAL: too long. */
int rpc_set_address(struct rpc *rpc, uint64_t node, const char *address);
bool rpc_is_connected(const struct rpc *rpc, uint64_t node);
/* When the last connection to it was made (loop_now_ns), also if it is gone; 0: never. */
uint64_t rpc_opened_ns(const struct rpc *rpc, uint64_t node);
/* When anything last came from it (loop_now_ns); 0: never. */
uint64_t rpc_heard_ns(const struct rpc *rpc, uint64_t node);

/* One call; embedded in the caller's request and valid until done is called. */
struct rpc_call {
    uint64_t node;              /* or 0 with `address`: whoever answers there */
    const char *address;        /* only with node 0; copied */
    uint16_t op;
    const void *head;           /* copied at once */
    uint32_t head_len;
    const struct slice *slices; /* as in net_send */
    uint32_t slice_count;
    uint64_t timeout_ns;        /* of the whole call */
    /* Called once, never from inside rpc_start. */
    void (*done)(struct rpc_call *call);
    /* result: the code given to rpc_answer, or why there is no answer: -ECONNRESET,
     * -ETIMEDOUT, -EHOSTUNREACH (forgotten, never sent), -ENOMEM (never sent),
     * -PLX_EDENIED, -PLX_ELIMIT (never sent: RPC_QUEUED_MAX), -ECANCELED; with node 0
     * also why no connection could be made, -ECONNREFUSED and others (never sent). A
     * node's calls wait for it while it cannot be reached, until their time is over;
     * -PLX_EDENIED says then that somebody answered, who is not it or does not let us in.
     * The server's rpc answers -ENOSYS (no such operation), -EMSGSIZE, -ENOMEM, -EPROTO
     * and -PLX_EDENIED by itself. */
    int result;
    bool was_sent;              /* it may have been carried out */
    /* The answer; valid during done. The payload's reference is the callee's (buffer
     * NULL: none). */
    const void *answer;
    size_t answer_len;
    struct slice payload;
    void *priv[16];
};
void rpc_start(struct rpc *rpc, struct rpc_call *call);
/* Only of a call whose done was not called yet: its answer will be dropped; done is
 * called with -ECANCELED, from inside. */
void rpc_cancel(struct rpc *rpc, struct rpc_call *call);
/* The same for a task. The answer's head is copied to `ret` (replaced; writer_done it);
 * NULL: not wanted. Payloads are dropped unless ret_payload takes them. Returns the
 * result, or -ENOMEM if there was no memory for the copy (was_sent is true then). */
async int rpc_wait(struct rpc *rpc, struct rpc_call *call, struct writer *ret,
                   struct slice *ret_payload);

/* A one-way message: kept while a connection is being made, lost with it, and dropped
 * when too much waits, or the node's address is not known. */
void rpc_post(struct rpc *rpc, uint64_t node, uint16_t op, const void *head,
              uint32_t head_len, const struct slice *slices, uint32_t slice_count);

/* --- for handlers --- */

/* A request and its bytes stay until rpc_answer. */
struct rpc_request {
    const struct rpc_op *op;
    struct net_identity peer;
    const void *head;
    size_t head_len;
    struct slice payload; /* buffer NULL: none. Take it by clearing the field */
    /* private: */
    struct rpc *rpc;
    void *priv[8];
};
/* Sends the answer (code 0 or negative, as result of the call), and frees the request.
 * head is copied; references of slices are taken for as long as needed. */
void rpc_answer(struct rpc_request *request, int code, const void *head, size_t head_len,
                const struct slice *slices, uint32_t slice_count);

#endif
