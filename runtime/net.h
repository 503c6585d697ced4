/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections between nodes: whole messages, in order, between two proven identities,
 * until the connection breaks. TCP and TLS 1.3 with a certificate on both sides
 * (net_tls.c); simulated with delays, partitions and resets by runtime/sim.h.
 *
 *      opening -> open -> closed
 *         |                ^
 *         +----------------+
 *
 * A message is a head (small, for decoding where it lies) and a payload (blocks, which
 * arrive in an aligned buffer and go to disk from there). Both lengths are checked
 * against what the receiver allows before any memory is taken. doc/format-rpc.md
 * describes the bytes.
 *
 * What arrives is in order and whole, without gap or repetition, as long as the
 * connection lives. Nothing says what of the messages before a break the peer got: that
 * is for the layer above (runtime/rpc.h) to ask.
 */
#ifndef PARALLAX_RUNTIME_NET_H
#define PARALLAX_RUNTIME_NET_H

#include "runtime/buffer.h"
#include "runtime/error.h"
#include "runtime/format.h"

#define NET_HEAD_MAX    (256 * KIB)
#define NET_PAYLOAD_MAX BUFFER_BYTES_MAX
#define NET_ADDRESS_MAX 256U /* bytes of "HOST:PORT", with its NUL */
#define NET_SLICES_MAX  260U /* of one message's payload */

struct loop;
struct net;
struct net_conn;

/* Who is at the other end, as its certificate says. */
struct net_identity {
    struct uid cluster;
    uint64_t node; /* 0: nobody; a client without a certificate, which may only join */
};

/* PEM texts; the simulator needs none. A net without certificate and key is nobody, and
 * accepts nobody. */
struct net_credentials {
    const char *authority;   /* certificates of the cluster's CA; both sides check it */
    const char *certificate; /* of this node, signed by it */
    const char *key;         /* of the certificate; never logged */
    /* Instead of `authority`, for a client that is about to join: SHA-256 of the CA
     * certificate that the server's chain must end in; NULL otherwise. */
    const uint8_t *authority_digest;
};

/* What happens on a connection; called on the loop, never from inside a net_ function
 * that was given the connection. Must not suspend. After `closed` the connection is gone;
 * net_conn_close means that nothing more is called. */
struct net_handlers {
    /* Both sides have proven who they are. For accepted connections it comes right after
     * net_options.accepted. */
    void (*opened)(void *arg, struct net_conn *conn);
    /* head is valid during the call. The payload's slice (buffer NULL: none) is the
     * callee's, with its reference. */
    void (*received)(void *arg, struct net_conn *conn, const void *head, size_t head_len,
                     struct slice payload);
    /* code: -ECONNREFUSED, -ECONNRESET, -ETIMEDOUT, -EPROTO, -PLX_EDENIED ... */
    void (*closed)(void *arg, struct net_conn *conn, int code, const char *why);
};

struct net_options {
    struct loop *loop;
    struct net_identity self;
    struct net_credentials credentials; /* copied */
    bool allow_nobody;       /* accept clients without a certificate */
    struct buffer_pool *buffers; /* payloads arrive in these; none free: reading waits */
    /* A peer has connected and proven who it is: say who handles it, or refuse (false).
     * NULL: the net does not listen. */
    bool (*accepted)(void *arg, struct net_conn *conn,
                     const struct net_handlers **ret_handlers, void **ret_arg);
    void *arg;
};

/* -PLX_EFORMAT: what of the credentials cannot be read; -ENOMEM. */
int net_create(const struct net_options *options, struct net **ret_net,
               struct error *err);
/* Closes everything at once; no handler is called. */
void net_destroy(struct net *net);

/* Replaces the certificate (renewal): for connections made from now on. */
int net_set_credentials(struct net *net, const struct net_credentials *credentials,
                        struct error *err);

/* Listens on "HOST:PORT" ("[::]:PORT"; port 0: any free one). May be called for several
 * addresses. *ret_port: what it got, may be NULL. HOST may be a name: then on all of its
 * addresses that are of this machine; it is looked up while the caller waits, who must
 * not be on a task. -EADDRNOTAVAIL, -EADDRINUSE, -EINVAL, -EHOSTUNREACH (no such name),
 * ... */
int net_listen(struct net *net, const char *address, uint16_t *ret_port,
               struct error *err);

/* Starts a connection; the outcome comes through the handlers. Whoever answers must be
 * `node` of our cluster (0: any node; with authority_digest: of any cluster). NULL:
 * memory is out. */
struct net_conn *net_connect(struct net *net, const char *address, uint64_t node,
                             const struct net_handlers *handlers, void *arg);

/* Closes: what the kernel has not taken yet is dropped, no handler is called any more,
 * and conn is gone. */
void net_conn_close(struct net_conn *conn);

struct net_identity net_conn_peer(const struct net_conn *conn);
/* "HOST:PORT" of the other end, for messages. */
const char *net_conn_address(const struct net_conn *conn);
bool net_conn_is_open(const struct net_conn *conn);
/* When the last bytes came, loop_now_ns. */
uint64_t net_conn_heard_ns(const struct net_conn *conn);
/* False while it is paused, or waits for a buffer: that nothing is heard is our own doing
 * then, and the other side does not know it. */
bool net_conn_is_reading(const struct net_conn *conn);
/* Bytes that net_send took and the kernel has not. */
uint64_t net_conn_queued_bytes(const struct net_conn *conn);

/* Back-pressure: while paused no `received` is called, and before long the peer cannot
 * send. */
void net_conn_pause(struct net_conn *conn, bool paused);

/* One message to send. */
struct net_send {
    const void *head;           /* copied at once */
    size_t head_len;            /* 1 to NET_HEAD_MAX */
    const struct slice *slices; /* the array is copied, references are taken for as long
                                 * as needed; together at most NET_PAYLOAD_MAX */
    uint32_t slice_count;       /* at most NET_SLICES_MAX */
};
/* Queues a message; opening connections keep it until they are open. -ENOMEM, -EMSGSIZE;
 * -ENOTCONN if it is closed or closing. There is no limit: callers bound what they have
 * under way (net_conn_queued_bytes). The payload must not change any more: it may be sent
 * from where it lies. May be called on a task; the sending itself happens on the loop. */
int net_send(struct net_conn *conn, const struct net_send *send);

/* --- keys and certificates (net_pki.c; OpenSSL) --- */

/* All texts are PEM, malloc'd and the caller's (free; keys with net_pki_free_key). They
 * must not be called on a task. -ENOMEM, -EIO with OpenSSL's words, or -PLX_EFORMAT and
 * -PLX_EDENIED where foreign bytes are checked. */

struct net_pki_pair {
    char *certificate; /* or a signing request */
    char *key;
};

#define NET_DIGEST_BYTES 32U

/* A cluster's CA: ECDSA P-256, its name carries the cluster's uid; valid for 20 years. */
int net_pki_create_authority(struct uid cluster, struct net_pki_pair *ret,
                             struct error *err);
/* A node's key and the request to sign it; it proves possession of the key, no more. */
int net_pki_create_request(struct net_pki_pair *ret, struct error *err);
/* Signs a request (foreign bytes): the certificate names cluster and node, whatever the
 * request asked for, and is valid from an hour ago for `days`. */
int net_pki_sign(const struct net_pki_pair *authority, const char *request,
                 struct net_identity identity, uint32_t days, char **ret_certificate,
                 struct error *err);
/* SHA-256 of the DER of the first certificate in the text. */
int net_pki_digest(const char *certificate, uint8_t ret[NET_DIGEST_BYTES],
                   struct error *err);
/* SHA-256 of any bytes. */
int net_pki_hash(const void *bytes, size_t len, uint8_t ret[NET_DIGEST_BYTES],
                 struct error *err);
/* Identity and end of validity (seconds since 1970) of a certificate. */
int net_pki_inspect(const char *certificate, struct net_identity *ret_identity,
                    uint64_t *ret_until_s, struct error *err);
/* Wipes it first; NULL is allowed. */
void net_pki_free_key(char *key);

#endif
