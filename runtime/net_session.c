/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Happy path: a context is made of PEM texts; a session of it takes bytes that came and
 * gives bytes to send through a BIO of our own, so OpenSSL sees no socket; the peer's
 * certificate is checked while the handshake runs, before ours is shown to a server.
 *
 * Who is refused: whose chain does not end in our CA (or, when joining, in the one with
 * the known digest), who is of another cluster, who is not the node that was asked for,
 * whose certificate names nobody. A certificate is too old only NET_GRACE_S after its
 * end: clocks are for people, and a cluster whose renewal is stuck must not stop. One
 * that is not valid yet is taken: our CA has signed it, so the clock is wrong.
 *
 * TLS 1.3 only, no tickets, no resumption, no early data. OpenSSL does not change keys by
 * itself: tls_session_write does, long before one has sealed too much.
 */
#include "runtime/net_session_internal.h"

#include <inttypes.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <time.h>

#include "runtime/limits.h"
#include "runtime/net_pki_internal.h"
#include "runtime/task.h"

#define CHAIN_BYTES_MAX (16 * KIB) /* certificates a peer may show */
#define AUTHORITIES_MAX 8U         /* certificates of CAs in one text */

struct tls_context {
    uint32_t refs;
    SSL_CTX *ssl;
    BIO_METHOD *bio;
    bool is_nobody, allow_nobody;
    struct uid cluster;
    bool has_digest;
    uint8_t digest[NET_DIGEST_BYTES];
};

/* --- the BIO --- */

static int bio_read(BIO *bio, char *ret, size_t len, size_t *ret_len)
{
    struct tls_session *session = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (session->in_len == 0) {
        BIO_set_retry_read(bio);
        return 0;
    }
    size_t n = min_u64(len, session->in_len);
    memcpy(ret, session->in, n);
    session->in += n;
    session->in_len -= n;
    *ret_len = n;
    return 1;
}

static int bio_write(BIO *bio, const char *bytes, size_t len, size_t *ret_len)
{
    struct tls_session *session = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (!session->out(session->arg, bytes, len))
        return 0;
    *ret_len = len;
    return 1;
}

static long bio_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
    (void)bio, (void)num, (void)ptr;
    return cmd == BIO_CTRL_FLUSH ? 1 : 0;
}

static BIO_METHOD *bio_method_new(void)
{
    BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "parallax");
    if (method == NULL)
        return NULL;
    BIO_meth_set_read_ex(method, bio_read);
    BIO_meth_set_write_ex(method, bio_write);
    BIO_meth_set_ctrl(method, bio_ctrl);
    return method;
}

/* --- the peer's certificate --- */

static bool is_within_grace(const X509 *certificate)
{
    time_t latest = time(NULL) - (time_t)NET_GRACE_S;
    return X509_cmp_time(X509_get0_notAfter(certificate), &latest) > 0;
}

static int judge(int ok, X509_STORE_CTX *chain)
{
    if (ok)
        return 1;
    int error = X509_STORE_CTX_get_error(chain);
    bool excused = error == X509_V_ERR_CERT_NOT_YET_VALID;
    if (error == X509_V_ERR_CERT_HAS_EXPIRED)
        excused = is_within_grace(X509_STORE_CTX_get_current_cert(chain));
    if (excused)
        X509_STORE_CTX_set_error(chain, X509_V_OK);
    return excused;
}

/* The shown certificate that has the digest, as the only one to trust; NULL: none. */
static STACK_OF(X509) * pinned(X509_STORE_CTX *chain, const uint8_t *digest)
{
    STACK_OF(X509) *shown = X509_STORE_CTX_get0_untrusted(chain);
    for (int i = 0; i < sk_X509_num(shown); i++) {
        X509 *certificate = sk_X509_value(shown, i);
        uint8_t own[EVP_MAX_MD_SIZE];
        unsigned len = 0;
        if (X509_digest(certificate, EVP_sha256(), own, &len) != 1 ||
            len != NET_DIGEST_BYTES || memcmp(own, digest, len) != 0 ||
            X509_check_ca(certificate) != 1)
            continue;
        STACK_OF(X509) *trusted = sk_X509_new_null();
        if (trusted != NULL && sk_X509_push(trusted, certificate) > 0)
            return trusted;
        sk_X509_free(trusted);
        return NULL;
    }
    return NULL;
}

/* Nothing proves what it says, but it tells an operator more than a chain that does not
 * end here. */
static bool names_other_cluster(struct tls_session *session, X509 *certificate)
{
    struct net_identity named;
    char hex[UID_TEXT_LEN + 1];
    if (session->context->has_digest || !pki_identity_of(certificate, &named) ||
        uid_equal(named.cluster, session->context->cluster))
        return false;
    uid_print(named.cluster, hex);
    err_set(&session->refusal, -PLX_EDENIED,
            "its certificate is not accepted: it is of node %" PRIu64
            " of another cluster, %s",
            named.node, hex);
    return true;
}

static bool check_chain(struct tls_session *session, X509_STORE_CTX *chain)
{
    const struct tls_context *context = session->context;
    STACK_OF(X509) *trusted = NULL;
    X509_STORE_CTX_set_verify_cb(chain, judge);
    if (context->has_digest) {
        trusted = pinned(chain, context->digest);
        if (trusted == NULL) {
            X509_STORE_CTX_set_error(chain, X509_V_ERR_CERT_REJECTED);
            err_set(&session->refusal, -PLX_EDENIED,
                    "its CA is not the one with the given digest");
            return false;
        }
        X509_STORE_CTX_set0_trusted_stack(chain, trusted);
    }
    bool fine = X509_verify_cert(chain) == 1;
    sk_X509_free(trusted);
    int error = X509_STORE_CTX_get_error(chain);
    if (!fine && !names_other_cluster(session, X509_STORE_CTX_get0_cert(chain)))
        err_set(&session->refusal, -PLX_EDENIED, "its certificate is not accepted: %s",
                X509_verify_cert_error_string(error));
    return fine;
}

static bool check_identity(struct tls_session *session, X509 *certificate)
{
    const struct tls_context *context = session->context;
    struct net_identity peer;
    if (!pki_identity_of(certificate, &peer)) {
        err_set(&session->refusal, -PLX_EDENIED, "its certificate names no node");
        return false;
    }
    if (!context->has_digest && !uid_equal(peer.cluster, context->cluster)) {
        err_set(&session->refusal, -PLX_EDENIED, "it belongs to another cluster");
        return false;
    }
    if (session->asked_node != 0 && peer.node != session->asked_node) {
        err_set(&session->refusal, -PLX_EDENIED,
                "it is node %" PRIu64 ", not node %" PRIu64, peer.node,
                session->asked_node);
        return false;
    }
    session->peer = peer;
    return true;
}

static void note_expired(struct tls_session *session, const X509 *certificate)
{
    int days, seconds;
    if (ASN1_TIME_diff(&days, &seconds, X509_get0_notAfter(certificate), NULL) != 1 ||
        days < 0 || seconds < 0)
        return;
    session->expired_s = (uint64_t)days * 86400 + (uint64_t)seconds;
}

/* OpenSSL calls it in place of its own check, when a peer has shown a certificate. */
static int check_peer(X509_STORE_CTX *chain, void *arg)
{
    (void)arg;
    SSL *ssl = X509_STORE_CTX_get_ex_data(chain, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct tls_session *session = SSL_get_app_data(ssl);
    X509 *certificate = X509_STORE_CTX_get0_cert(chain);
    if (!check_chain(session, chain))
        return 0;
    if (!check_identity(session, certificate)) {
        X509_STORE_CTX_set_error(chain, X509_V_ERR_CERT_REJECTED);
        return 0;
    }
    note_expired(session, certificate);
    return 1;
}

/* --- contexts --- */

static int add_authorities(SSL_CTX *ssl, const char *text, struct error *err)
{
    X509_STORE *store = SSL_CTX_get_cert_store(ssl);
    uint32_t count = 0;
    for (; count < AUTHORITIES_MAX; count++) {
        X509 *authority = pki_read_certificate(text, count);
        if (authority == NULL)
            break;
        /* Shown to peers, so that one who joins finds the digest. */
        bool fine = X509_STORE_add_cert(store, authority) == 1 &&
                    SSL_CTX_add1_chain_cert(ssl, authority) == 1;
        X509_free(authority);
        if (!fine)
            return err_set(err, -ENOMEM, "the cluster's CA: %s", pki_words());
    }
    if (count == 0)
        return err_set(err, -PLX_EFORMAT, "the cluster's CA cannot be read: %s",
                       pki_words());
    ERR_clear_error(); /* "no more certificates" */
    return 0;
}

static int check_own(const struct net_options *options, X509 *certificate,
                     struct error *err)
{
    struct net_identity own;
    if (!pki_identity_of(certificate, &own))
        return err_set(err, -PLX_EFORMAT, "our certificate names no node");
    if (!uid_equal(own.cluster, options->self.cluster))
        return err_set(err, -PLX_EFORMAT, "our certificate is of another cluster");
    if (own.node != options->self.node)
        return err_set(err, -PLX_EFORMAT,
                       "our certificate is of node %" PRIu64 ", not of node %" PRIu64,
                       own.node, options->self.node);
    return 0;
}

static int use_own(SSL_CTX *ssl, const struct net_options *options,
                   const struct net_credentials *credentials, struct error *err)
{
    X509 *certificate = pki_read_certificate(credentials->certificate, 0);
    EVP_PKEY *key = pki_read_key(credentials->key);
    int rc = 0;
    if (certificate == NULL || key == NULL)
        rc = err_set(err, -PLX_EFORMAT, "our %s cannot be read: %s",
                     certificate == NULL ? "certificate" : "key", pki_words());
    else
        rc = check_own(options, certificate, err);
    if (rc == 0 &&
        (SSL_CTX_use_certificate(ssl, certificate) != 1 ||
         SSL_CTX_use_PrivateKey(ssl, key) != 1 || SSL_CTX_check_private_key(ssl) != 1))
        rc = err_set(err, -PLX_EFORMAT, "our certificate and key cannot be used: %s",
                     pki_words());
    X509_free(certificate);
    EVP_PKEY_free(key);
    return rc;
}

/* What is the same for every context. */
static bool configure(SSL_CTX *ssl)
{
    SSL_CTX_set_options(ssl, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE |
                                 SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS); /* 34 KiB of each idle session */
    SSL_CTX_set_max_cert_list(ssl, CHAIN_BYTES_MAX);
    SSL_CTX_set_cert_verify_callback(ssl, check_peer, NULL);
    return SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_num_tickets(ssl, 0) == 1 &&
           SSL_CTX_set_ciphersuites(
               ssl, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384") == 1 &&
           SSL_CTX_set1_groups_list(ssl, "X25519:P-256") == 1 &&
           SSL_CTX_set1_sigalgs_list(ssl, "ECDSA+SHA256") == 1;
}

static int context_fill(struct tls_context *context, const struct net_options *options,
                        const struct net_credentials *credentials, struct error *err)
{
    context->cluster = options->self.cluster;
    context->allow_nobody = options->allow_nobody;
    context->is_nobody = credentials->certificate == NULL;
    context->ssl = SSL_CTX_new(TLS_method());
    context->bio = bio_method_new();
    if (context->ssl == NULL || context->bio == NULL || !configure(context->ssl))
        return err_set(err, -ENOMEM, "set up TLS: %s", pki_words());
    if (credentials->authority_digest != NULL) {
        context->has_digest = true;
        memcpy(context->digest, credentials->authority_digest, NET_DIGEST_BYTES);
    } else {
        int rc = add_authorities(context->ssl, credentials->authority, err);
        if (rc < 0)
            return rc;
    }
    if (context->is_nobody)
        return 0;
    return use_own(context->ssl, options, credentials, err);
}

struct context_call {
    const struct net_options *options;
    const struct net_credentials *credentials;
    struct tls_context *context;
    struct error *err;
    int rc;
};

static void *context_main(void *arg)
{
    struct context_call *call = arg;
    call->rc = context_fill(call->context, call->options, call->credentials, call->err);
    return NULL;
}

/* Whoever is on a task has too little stack for this: a thread has enough. It is seldom
 * and takes about a millisecond. */
static int context_fill_aside(struct context_call *call)
{
    pthread_t thread;
    if (task_current() == NULL) {
        context_main(call);
        return call->rc;
    }
    if (pthread_create(&thread, NULL, context_main, call) != 0)
        return err_set(call->err, -ENOMEM, "set up TLS: no thread");
    pthread_join(thread, NULL);
    return call->rc;
}

int tls_context_create(const struct net_options *options,
                       const struct net_credentials *credentials,
                       struct tls_context **ret, struct error *err)
{
    if ((credentials->certificate == NULL) != (credentials->key == NULL))
        return err_set(err, -PLX_EFORMAT,
                       "a certificate needs its key, and a key its "
                       "certificate");
    if (credentials->authority == NULL && credentials->authority_digest == NULL)
        return err_set(err, -PLX_EFORMAT, "the cluster's CA is missing");
    struct tls_context *context = calloc(1, sizeof *context);
    if (context == NULL)
        return err_set(err, -ENOMEM, "set up TLS: %s", err_text(ENOMEM));
    context->refs = 1;
    struct context_call call = {options, credentials, context, err, 0};
    int rc = context_fill_aside(&call);
    if (rc < 0) {
        tls_context_put(context);
        return rc;
    }
    *ret = context;
    return 0;
}

struct tls_context *tls_context_get(struct tls_context *context)
{
    assert(context->refs > 0);
    context->refs++;
    return context;
}

void tls_context_put(struct tls_context *context)
{
    if (context == NULL || --context->refs > 0)
        return;
    SSL_CTX_free(context->ssl);
    BIO_meth_free(context->bio);
    free(context);
}

bool tls_context_is_nobody(const struct tls_context *context)
{
    return context->is_nobody;
}

/* --- sessions --- */

int tls_session_init(struct tls_session *session, struct tls_context *context,
                     bool is_server, struct error *err)
{
    assert(task_current() == NULL);
    ERR_clear_error();
    SSL *ssl = SSL_new(context->ssl);
    BIO *bio = BIO_new(context->bio);
    if (ssl == NULL || bio == NULL) {
        SSL_free(ssl);
        BIO_free(bio);
        return err_set(err, -ENOMEM, "begin TLS: %s", pki_words());
    }
    session->context = tls_context_get(context);
    session->ssl = ssl;
    BIO_set_data(bio, session);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl, bio, bio);
    SSL_set_app_data(ssl, session);
    int mode = SSL_VERIFY_PEER;
    if (is_server && !context->allow_nobody)
        mode |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
    SSL_set_verify(ssl, mode, NULL);
    if (is_server)
        SSL_set_accept_state(ssl);
    else
        SSL_set_connect_state(ssl);
    return 0;
}

void tls_session_done(struct tls_session *session)
{
    SSL_free(session->ssl);
    tls_context_put(session->context);
    session->ssl = NULL;
    session->context = NULL;
}

/* --- what OpenSSL says --- */

/* Alerts by which a peer says that it does not want who we are. */
static bool is_refusal_alert(int alert)
{
    switch (alert) {
    case SSL_AD_BAD_CERTIFICATE:
    case SSL_AD_UNSUPPORTED_CERTIFICATE:
    case SSL_AD_CERTIFICATE_REVOKED:
    case SSL_AD_CERTIFICATE_EXPIRED:
    case SSL_AD_CERTIFICATE_UNKNOWN:
    case SSL_AD_UNKNOWN_CA:
    case SSL_AD_ACCESS_DENIED:
    case SSL_AD_CERTIFICATE_REQUIRED:
        return true;
    default:
        return false;
    }
}

static int fail_text(const struct tls_session *session, struct error *err)
{
    unsigned long code = ERR_peek_last_error();
    int reason = ERR_GET_LIB(code) == ERR_LIB_SSL ? ERR_GET_REASON(code) : 0;
    if (session->refusal.code != 0) {
        ERR_clear_error();
        return err_set(err, session->refusal.code, "%s", session->refusal.text);
    }
    if (reason > SSL_AD_REASON_OFFSET && is_refusal_alert(reason - SSL_AD_REASON_OFFSET))
        return err_set(err, -PLX_EDENIED, "it does not accept %s: %s",
                       session->context->is_nobody ? "us without a certificate"
                                                   : "our certificate",
                       pki_words());
    if (reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE) {
        ERR_clear_error();
        return err_set(err, -PLX_EDENIED, "it has no certificate");
    }
    return err_set(err, -EPROTO, "TLS: %s", pki_words());
}

/* ret is what a call that did not succeed returned. */
static int fail(const struct tls_session *session, int ret, struct error *err)
{
    switch (SSL_get_error(session->ssl, ret)) {
    case SSL_ERROR_WANT_READ:
        return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return err_set(err, -ECONNRESET, "it has ended the connection");
    default:
        return fail_text(session, err);
    }
}

int tls_session_handshake(struct tls_session *session, struct error *err)
{
    assert(task_current() == NULL);
    ERR_clear_error();
    int ret = SSL_do_handshake(session->ssl);
    if (ret != 1)
        return fail(session, ret, err);
    if (session->refusal.code != 0)
        return fail_text(session, err);
    if (!SSL_is_server(session->ssl) && session->peer.node == 0)
        return err_set(err, -PLX_EDENIED, "it has no certificate");
    return 0;
}

int tls_session_read(struct tls_session *session, void *ret, size_t len, size_t *ret_len,
                     struct error *err)
{
    ERR_clear_error();
    int result = SSL_read_ex(session->ssl, ret, len, ret_len);
    return result == 1 ? 0 : fail(session, result, err);
}

int tls_session_write(struct tls_session *session, const void *bytes, size_t len,
                      struct error *err)
{
    size_t written;
    assert(len > 0 && len <= TLS_RECORD_BYTES);
    ERR_clear_error();
    if (session->key_records >= TLS_KEY_RECORDS) {
        if (SSL_key_update(session->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) != 1)
            return fail_text(session, err);
        session->key_records = 0;
    }
    session->key_records++;
    int result = SSL_write_ex(session->ssl, bytes, len, &written);
    if (result == 1) {
        assert(written == len);
        return 0;
    }
    int rc = fail(session, result, err);
    /* All it writes is taken at once, so there is nothing it could wait for. */
    return rc == -EAGAIN ? err_set(err, -EPROTO, "TLS: cannot write now") : rc;
}
