/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One TLS session without a socket: bytes in, bytes out. All of OpenSSL that a connection
 * needs is behind this. Must not be called on a task, but for the two that only free.
 */
#ifndef PARALLAX_RUNTIME_NET_SESSION_INTERNAL_H
#define PARALLAX_RUNTIME_NET_SESSION_INTERNAL_H

#include "runtime/net.h"

#define TLS_RECORD_BYTES (16 * KIB) /* plaintext of one TLS record */
/* What encrypting one record's worth may give at most, with all there is around it. */
#define TLS_SEALED_MAX (TLS_RECORD_BYTES + 1 * KIB)

/* Credentials in OpenSSL's form; sessions keep the one they began with. */
struct tls_context;
int tls_context_create(const struct net_options *options,
                       const struct net_credentials *credentials,
                       struct tls_context **ret, struct error *err);
struct tls_context *tls_context_get(struct tls_context *context);
void tls_context_put(struct tls_context *context); /* NULL is allowed */
bool tls_context_is_nobody(const struct tls_context *context);

/* Records sealed with one key; then the next key. RFC 8446, 5.5, allows 24 million. */
#define TLS_KEY_RECORDS (4U * 1024 * 1024)

struct ssl_st;

struct tls_session {
    struct tls_context *context;
    struct ssl_st *ssl;
    uint64_t asked_node;      /* that the peer must be; 0: any */
    struct net_identity peer; /* once the handshake is over */
    uint64_t expired_s;       /* its certificate is that old beyond its end, by grace */
    uint32_t key_records;     /* sealed with the current key; TLS_KEY_RECORDS */
    /* What came from the peer and was not looked at yet; set before each call. */
    const uint8_t *in;
    size_t in_len;
    /* Takes all of what goes to the peer; false: the session cannot go on. */
    bool (*out)(void *arg, const void *bytes, size_t len);
    void *arg;
    struct error refusal; /* what is wrong with the peer's certificate; code 0: nothing */
};

/* asked_node, out and arg are set before. -ENOMEM. */
int tls_session_init(struct tls_session *session, struct tls_context *context,
                     bool is_server, struct error *err);
void tls_session_done(struct tls_session *session);

/* 0: it is over, and peer is proven. -EAGAIN: more must come first. -PLX_EDENIED: one
 * side does not accept the other; -EPROTO. Also sends what there is to say of a failure.
 */
int tls_session_handshake(struct tls_session *session, struct error *err);
/* Up to len bytes of plaintext. -EAGAIN: more must come first; -ECONNRESET: the peer has
 * ended it; -PLX_EDENIED, -EPROTO. */
int tls_session_read(struct tls_session *session, void *ret, size_t len, size_t *ret_len,
                     struct error *err);
/* At most TLS_RECORD_BYTES. */
int tls_session_write(struct tls_session *session, const void *bytes, size_t len,
                      struct error *err);

#endif
