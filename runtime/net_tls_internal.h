/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the real network share: net_tls.c (the net, listening), net_conn.c (a
 * connection's life), net_conn_io.c (its bytes).
 *
 * A connection:
 *
 *      start -> [ lookup ] -> connect -> handshake -> greeting -> open
 *                                        handshake -------------> open   (accepted)
 *      any of them -> failed -> closed         the peer, the kernel or a limit
 *      any of them -> closed                   net_conn_close
 *
 *  N1  Handlers are called only between net_enter and net_leave, which is where the loop
 *      calls us: from watches, posted work and timers; so never on a task, and never
 *      from inside a net_ function.
 *  N2  A connection that is closed has neither socket, watch, timer nor posted work, and
 *      stays in memory until the outermost net_leave.
 *  N3  out_len is 0 whenever the loop is not in conn_step: sealed bytes that the kernel
 *      did not take are in `rest` of their connection.
 *  N4  queued_bytes is what is in the queue and not gathered, and plain_unsent.
 */
#ifndef PARALLAX_RUNTIME_NET_TLS_INTERNAL_H
#define PARALLAX_RUNTIME_NET_TLS_INTERNAL_H

#include "runtime/limits.h"
#include "runtime/metrics.h"
#include "runtime/net_frame_internal.h"
#include "runtime/net_internal.h"
#include "runtime/net_lookup_internal.h"
#include "runtime/net_session_internal.h"

/* Beyond NET_OUTPUT_BYTES: what one record more gives, and what TLS has to say itself. */
#define OUT_CAP (NET_OUTPUT_BYTES + TLS_SEALED_MAX + 64 * KIB)

TAILQ_HEAD(tls_conn_list, tls_conn);

struct tls_net {
    struct net net;
    struct tls_context *context;
    struct lookups *lookups;
    SLIST_HEAD(, tls_listener) listeners;
    uint32_t listener_count;
    struct tls_conn_list conns, closed;
    struct tls_conn_list opening; /* accepted ones in the handshake, the oldest first */
    uint32_t opening_count;       /* of these; NET_OPENING_MAX */
    uint32_t nobody_count;  /* open ones; NET_NOBODIES_MAX */
    bool accepts_paused;
    bool accepts_rest;         /* descriptors are out; ends with the timer only */
    struct timer accept_timer; /* looks again */
    uint32_t depth;            /* of net_enter */
    bool is_destroyed;         /* goes with the outermost net_leave */
    /* Used by one connection at a time, during a step. */
    uint8_t *input;  /* NET_INPUT_BYTES */
    uint8_t *plain;  /* TLS_RECORD_BYTES */
    uint8_t *output; /* OUT_CAP */
    size_t out_len;
    uint64_t complained_ns; /* of a refused newcomer, in the log */
    struct metric *refused, *sent_bytes, *received_bytes;
};

enum conn_phase {
    CONN_START,
    CONN_LOOKUP,
    CONN_CONNECT,
    CONN_HANDSHAKE,
    CONN_GREETING,
    CONN_OPEN,
    CONN_FAILED,
    CONN_CLOSED,
};

struct out_message;

struct tls_conn {
    struct net_conn conn;
    enum conn_phase phase;
    bool is_accepted, is_nobody;
    bool counts_as_opening, counts_as_nobody;
    struct tls_context *context; /* of the time it was made; until the session has it */
    int fd;
    struct watch *watch;
    struct work work;
    struct timer timer; /* ends what takes too long to open */
    struct error failure;
    TAILQ_ENTRY(tls_conn) link;
    TAILQ_ENTRY(tls_conn) opening_link; /* as long as it counts as opening */
    uint64_t accepted_ns;

    struct lookup *lookup;
    union net_address *addresses; /* to try, until one answered */
    uint32_t address_at, address_count;

    struct tls_session session;
    struct frame_in in;
    bool has_input; /* decoding stopped before the end of what has come */
    uint8_t *stash; /* of it, what the session has not taken */
    size_t stash_at, stash_len;
    struct work buffer_waiter; /* posted: the pool will call it */

    STAILQ_HEAD(, out_message) queue;
    uint8_t *rest; /* sealed, to go before anything else */
    size_t rest_at, rest_len, rest_cap;
    uint64_t plain_unsent; /* at most so much of queued_bytes is sealed and not taken */
    bool waits_for_room;
};

static inline struct tls_net *tls_net_of(struct net *net)
{
    return container_of(net, struct tls_net, net);
}
static inline struct tls_net *conn_net(const struct tls_conn *c)
{
    return tls_net_of(c->conn.net);
}
/* It has a session, and neither failed nor was closed. */
static inline bool conn_is_alive(const struct tls_conn *c)
{
    return c->phase >= CONN_HANDSHAKE && c->phase <= CONN_OPEN;
}

/* --- net_tls.c --- */
void net_enter(struct tls_net *net);
void net_leave(struct tls_net *net);
/* An accepted connection is in its handshake, and is so no more. */
void net_opening_begun(struct tls_conn *c);
void net_opening_ended(struct tls_conn *c);

/* --- net_conn.c --- */
struct net_conn *conn_connect(struct net *net, const char *address, uint64_t node,
                              const struct net_handlers *handlers, void *arg);
/* Takes fd over, also when it fails. -ENOMEM. */
int conn_accept(struct tls_net *net, int fd, const union net_address *from);
void conn_close(struct net_conn *conn);
/* Of a closed one. */
void conn_free(struct tls_conn *c);
/* It cannot go on; `closed` is called before the loop goes on. Only inside net_enter. */
void conn_fail(struct tls_conn *c, int code, const char *fmt, ...) attr_printf(3, 4);
/* It ends for the sake of others, at once. */
void conn_give_way(struct tls_conn *c);
/* What is to be done after the handshake, and after the greeting. */
void conn_handshake_over(struct tls_conn *c);
void conn_opened(struct tls_conn *c);
void socket_prepare(int fd);

/* --- net_conn_io.c --- */
void conn_pause(struct net_conn *conn, bool paused);
int conn_send(struct net_conn *conn, const struct net_send *send);
bool conn_take_output(void *arg, const void *bytes, size_t len);
/* Seals a frame without payload before all that is queued. */
void conn_greet(struct tls_conn *c, enum net_frame_kind kind);
/* Does what can be done: reads, decodes, seals, sends, watches. */
void conn_step(struct tls_conn *c, bool is_readable);
void conn_buffer_freed(struct work *waiter);
/* Lets go of messages and input. */
void conn_io_done(struct tls_conn *c);

#endif
