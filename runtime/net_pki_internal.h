/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What net_tls uses of net_pki.c beyond its public part, with OpenSSL's types: for these
 * files alone.
 */
#ifndef PARALLAX_RUNTIME_NET_PKI_INTERNAL_H
#define PARALLAX_RUNTIME_NET_PKI_INTERNAL_H

#include <openssl/evp.h>
#include <openssl/x509.h>

#include "runtime/net.h"

/* The newest of OpenSSL's complaints, or what there is to say without one; empties its
 * queue. */
const char *pki_words(void);

/* The first certificate of a text, or the at-th; NULL: there is none, or it is broken. */
X509 *pki_read_certificate(const char *text, uint32_t at);
EVP_PKEY *pki_read_key(const char *text);

/* Who a certificate says its holder is. False: it names nobody, or more than one. */
bool pki_identity_of(X509 *certificate, struct net_identity *ret);

/* net_pki_sign with times, seconds since 1970. */
struct pki_span {
    uint64_t from_s, until_s;
};
int pki_sign_span(const struct net_pki_pair *authority, const char *request,
                  struct net_identity identity, struct pki_span span,
                  char **ret_certificate, struct error *err);

#endif
