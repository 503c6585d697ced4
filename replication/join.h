/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a machine becomes a node of a cluster. Somebody who may makes a token; the machine
 * shows it to any node, and gets a number, a certificate, and the addresses of others.
 *
 *      machine                                     any node
 *         | connects as nobody: no certificate        |
 *         | knows the cluster by its CA's digest      |
 *         |---- JOIN: secret, store, key, address --->|
 *         |                                           | commits NODE_JOIN, signs
 *         |<--- number, certificate, CA, nodes -------|
 *
 * A token is good for one store, for a short while. The same store may ask again with it
 * (the answer may have been lost) and is the same node. doc/format-rpc.md has the bytes.
 */
#ifndef PARALLAX_REPLICATION_JOIN_H
#define PARALLAX_REPLICATION_JOIN_H

#include "replication/cluster_state.h"
#include "runtime/rpc.h"

#define JOIN_RPC 0x40U /* number of the operation */

/* --- tokens --- */

#define JOIN_SECRET_BYTES 16U
#define JOIN_TOKEN_LEN    73U /* characters */
#define JOIN_MINUTES_MAX  (7U * 24 * 60)

struct join_token {
    uint8_t secret[JOIN_SECRET_BYTES];
    uint8_t authority[NET_DIGEST_BYTES]; /* of the cluster's CA certificate */
};

/* One word of letters, digits, - and _. Never to be logged. */
void join_token_print(const struct join_token *token, char ret[JOIN_TOKEN_LEN + 1]);
/* -EINVAL: it is none, or a letter of it is wrong. */
int join_token_parse(const char *text, struct join_token *ret, struct error *err);

/* --- what is said --- */

#define JOIN_PEM_MAX     4096U     /* bytes of a request or certificate, with the NUL */
#define JOIN_REQUEST_MAX (8 * KIB) /* bytes of an encoded request */
#define JOIN_PEERS_MAX   64U

enum { JOIN_WITNESS = 1 };

struct join_request {
    uint8_t secret[JOIN_SECRET_BYTES];
    struct uid store;
    uint64_t capacity_bytes;
    unsigned flags;
    char address[DISK_NAME_MAX + 1]; /* where it will listen for nodes */
    char domain[DISK_NAME_MAX + 1];  /* "": its own */
    char pem[JOIN_PEM_MAX];          /* the signing request */
};

struct join_peer {
    uint64_t node;
    char address[DISK_NAME_MAX + 1];
};

struct join_answer {
    struct net_identity identity;
    char certificate[JOIN_PEM_MAX];
    char authority[JOIN_PEM_MAX]; /* the CA's certificate */
    uint32_t peer_count;
    struct join_peer peers[JOIN_PEERS_MAX];
};

void join_request_encode(const struct join_request *request, struct writer *w);
/* Foreign bytes. -PLX_EFORMAT, -PLX_ENEWER, or -EINVAL for what it says. */
int join_request_decode(const void *bytes, size_t len, struct join_request *ret,
                        struct error *err);
void join_answer_encode(const struct join_answer *answer, struct writer *w);
/* -PLX_EFORMAT, -PLX_ENEWER. */
int join_answer_decode(const void *bytes, size_t len, struct join_answer *ret,
                       struct error *err);
/* What comes with a code instead of an answer: text for people. ret: NUL-terminated, and
 * printable whatever came. */
void join_text_decode(const void *bytes, size_t len, char *ret, size_t cap);

/* Can this be a node's address? "HOST:PORT" of at most DISK_NAME_MAX characters, a host
 * that others can reach (not "any", like 0.0.0.0), a port from 1 to 65535. -EINVAL. */
int join_address_check(const char *address, struct error *err);

/* --- asking --- */

#define JOIN_TIMEOUT_MS 30000U

/* Asks the node at `address` with a token. -ECONNREFUSED and the like: none answers.
 * -PLX_EDENIED: it is not of the token's cluster. Otherwise its refusal, in its words. */
async int join_ask(struct loop *loop, const char *address, const struct join_token *token,
                   const struct join_request *request, struct join_answer *ret,
                   struct error *err);

#endif
