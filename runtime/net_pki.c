/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys and certificates: ECDSA on P-256 with SHA-256, nothing to choose.
 *
 * The CA signs for a public key and for an identity that the caller states. Of a request
 * only the key is taken, once its signature shows that whoever made it has the private
 * half; what name or rights it asks for is not looked at. The identity stands in the
 * certificate as one URI, "parallax:CLUSTER:NODE" (doc/format-rpc.md).
 *
 * Foreign text that cannot be read is -PLX_EFORMAT, a request that is well formed but not
 * to be signed -PLX_EDENIED. The rest is OpenSSL out of memory or of randomness: -EIO.
 */
#include "runtime/net_pki_internal.h"

#include <inttypes.h>
#include <openssl/bn.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <time.h>

#include "runtime/task.h"

#define CURVE           "prime256v1"
#define SERIAL_BITS     128
#define AUTHORITY_YEARS 20U
#define DAY_S           ((uint64_t)86400)
#define BACKDATE_S      ((uint64_t)3600) /* clocks of nodes differ */
#define TEXT_MAX        (64 * KIB)       /* of a PEM text; ours have 1 KiB */
#define IDENTITY_MAX    96U
#define SCHEME          "parallax:"
#define AUTHORITY_NAME  "Parallax cluster "

/* --- OpenSSL's objects end with their scope --- */

#define FREE_BY(type, fn)                                                                \
    static void free_##type(type **object)                                               \
    {                                                                                    \
        fn(*object);                                                                     \
    }
FREE_BY(X509, X509_free)
FREE_BY(X509_REQ, X509_REQ_free)
FREE_BY(X509_NAME, X509_NAME_free)
FREE_BY(X509_EXTENSION, X509_EXTENSION_free)
FREE_BY(EVP_PKEY, EVP_PKEY_free)
FREE_BY(BIO, BIO_free_all)
FREE_BY(BIGNUM, BN_free)
FREE_BY(GENERAL_NAMES, GENERAL_NAMES_free)

const char *pki_words(void)
{
    unsigned long code = ERR_peek_last_error();
    const char *words = code != 0 ? ERR_reason_error_string(code) : NULL;
    ERR_clear_error();
    return words != NULL ? words : "OpenSSL gives no reason";
}

static int fail_openssl(struct error *err, const char *what)
{
    return err_set(err, -EIO, "%s: %s", what, pki_words());
}

/* --- texts --- */

/* Without it OpenSSL would ask at the terminal for the password of an encrypted key. */
static int no_password(char *buf, int size, int rwflag, void *arg)
{
    (void)buf, (void)size, (void)rwflag, (void)arg;
    return -1;
}

static BIO *bio_of(const char *text)
{
    size_t len = strnlen(text, TEXT_MAX + 1);
    return len > TEXT_MAX ? NULL : BIO_new_mem_buf(text, (int)len);
}

X509 *pki_read_certificate(const char *text, uint32_t at)
{
    cleanup(free_BIO) BIO *bio = bio_of(text);
    X509 *certificate = NULL;
    if (bio == NULL)
        return NULL;
    for (uint32_t i = 0; i <= at; i++) {
        X509_free(certificate);
        certificate = PEM_read_bio_X509(bio, NULL, no_password, NULL);
        if (certificate == NULL)
            return NULL;
    }
    return certificate;
}

EVP_PKEY *pki_read_key(const char *text)
{
    cleanup(free_BIO) BIO *bio = bio_of(text);
    return bio != NULL ? PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL) : NULL;
}

/* What was written to bio, malloc'd with a NUL. */
static char *text_of(BIO *bio)
{
    char *bytes;
    long len = BIO_get_mem_data(bio, &bytes);
    char *text = len > 0 ? malloc((size_t)len + 1) : NULL;
    if (text != NULL) {
        memcpy(text, bytes, (size_t)len);
        text[len] = '\0';
    }
    return text;
}

static char *certificate_text(X509 *certificate)
{
    cleanup(free_BIO) BIO *bio = BIO_new(BIO_s_mem());
    if (bio == NULL || PEM_write_bio_X509(bio, certificate) != 1)
        return NULL;
    return text_of(bio);
}

static char *request_text(X509_REQ *request)
{
    cleanup(free_BIO) BIO *bio = BIO_new(BIO_s_mem());
    if (bio == NULL || PEM_write_bio_X509_REQ(bio, request) != 1)
        return NULL;
    return text_of(bio);
}

static char *key_text(EVP_PKEY *key)
{
    cleanup(free_BIO) BIO *bio = BIO_new(BIO_s_secmem()); /* wiped when freed */
    if (bio == NULL || PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL) != 1)
        return NULL;
    return text_of(bio);
}

void net_pki_free_key(char *key)
{
    if (key == NULL)
        return;
    OPENSSL_cleanse(key, strlen(key));
    free(key);
}

/* --- identities --- */

/* Decimal, from 1, one way to write each. */
static bool node_of(const char *text, size_t len, uint64_t *ret)
{
    uint64_t node = 0;
    if (len == 0 || text[0] == '0')
        return false;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9' || __builtin_mul_overflow(node, 10, &node) ||
            !add_u64(node, (uint64_t)(text[i] - '0'), &node))
            return false;
    }
    *ret = node;
    return true;
}

/* "parallax:CLUSTER:NODE"; the text need not end with a NUL, and may contain one. */
static bool parse_identity(const char *text, size_t len, struct net_identity *ret)
{
    size_t scheme = strlen(SCHEME), hex = UID_TEXT_LEN;
    struct net_identity identity;
    if (len < scheme + hex + 1 || memcmp(text, SCHEME, scheme) != 0)
        return false;
    text += scheme;
    len -= scheme;
    if (text[hex] != ':' || !uid_parse(text, hex, &identity.cluster) ||
        !node_of(text + hex + 1, len - hex - 1, &identity.node))
        return false;
    *ret = identity;
    return true;
}

bool pki_identity_of(X509 *certificate, struct net_identity *ret)
{
    cleanup(free_GENERAL_NAMES) GENERAL_NAMES *names = X509_get_ext_d2i(
        certificate, NID_subject_alt_name, NULL, NULL);
    struct net_identity identity;
    uint32_t count = 0;
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        if (name->type != GEN_URI)
            continue;
        const ASN1_IA5STRING *uri = name->d.uniformResourceIdentifier;
        const char *text = (const char *)ASN1_STRING_get0_data(uri);
        if (!parse_identity(text, (size_t)ASN1_STRING_length(uri), &identity))
            return false;
        count++;
    }
    if (count != 1)
        return false;
    *ret = identity;
    return true;
}

/* Which cluster's CA it is, as its name says. */
static bool authority_cluster(X509 *authority, struct uid *ret)
{
    size_t prefix = strlen(AUTHORITY_NAME);
    X509_NAME *subject = X509_get_subject_name(authority);
    int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    if (at < 0 || X509_check_ca(authority) != 1)
        return false;
    const ASN1_STRING *name = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at));
    const char *text = (const char *)ASN1_STRING_get0_data(name);
    size_t len = (size_t)ASN1_STRING_length(name);
    return len > prefix && memcmp(text, AUTHORITY_NAME, prefix) == 0 &&
           uid_parse(text + prefix, len - prefix, ret);
}

/* --- certificates --- */

static uint64_t now_s(void)
{
    return (uint64_t)time(NULL);
}

static struct pki_span span_of_days(uint64_t days)
{
    uint64_t from_s = now_s() - BACKDATE_S;
    return (struct pki_span){.from_s = from_s, .until_s = from_s + days * DAY_S};
}

static bool set_serial(X509 *certificate)
{
    cleanup(free_BIGNUM) BIGNUM *serial = BN_new();
    return serial != NULL &&
           BN_rand(serial, SERIAL_BITS, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) == 1 &&
           BN_to_ASN1_INTEGER(serial, X509_get_serialNumber(certificate)) != NULL;
}

static X509_NAME *name_of(const char *common)
{
    X509_NAME *name = X509_NAME_new();
    if (name != NULL &&
        X509_NAME_add_entry_by_NID(name, NID_commonName, MBSTRING_ASC,
                                   (const unsigned char *)common, -1, -1, 0) == 1)
        return name;
    X509_NAME_free(name);
    return NULL;
}

/* What every certificate has. issuer NULL: its own. */
static X509 *certificate_new(const char *common, X509 *issuer, EVP_PKEY *key,
                             struct pki_span span)
{
    cleanup(free_X509) X509 *certificate = X509_new();
    cleanup(free_X509_NAME) X509_NAME *subject = name_of(common);
    if (certificate == NULL || subject == NULL)
        return NULL;
    const X509_NAME *issued_by = issuer != NULL ? X509_get_subject_name(issuer) : subject;
    bool fine =
        X509_set_version(certificate, X509_VERSION_3) == 1 && set_serial(certificate) &&
        X509_set_subject_name(certificate, subject) == 1 &&
        X509_set_issuer_name(certificate, issued_by) == 1 &&
        X509_set_pubkey(certificate, key) == 1 &&
        ASN1_TIME_set(X509_getm_notBefore(certificate), (time_t)span.from_s) != NULL &&
        ASN1_TIME_set(X509_getm_notAfter(certificate), (time_t)span.until_s) != NULL;
    return fine ? take(certificate) : NULL;
}

/* value: in the words of OpenSSL's configuration; none of them comes from outside. */
static bool extend(X509 *certificate, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, issuer, certificate, NULL, NULL, 0);
    cleanup(free_X509_EXTENSION)
        X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    return extension != NULL && X509_add_ext(certificate, extension, -1) == 1;
}

static bool extend_authority(X509 *certificate)
{
    return extend(certificate, certificate, NID_basic_constraints,
                  "critical,CA:TRUE,pathlen:0") &&
           extend(certificate, certificate, NID_key_usage, "critical,keyCertSign") &&
           extend(certificate, certificate, NID_subject_key_identifier, "hash");
}

static bool extend_node(X509 *certificate, X509 *issuer, struct net_identity identity)
{
    char cluster[UID_TEXT_LEN + 1], uri[IDENTITY_MAX];
    uid_print(identity.cluster, cluster);
    snprintf(uri, sizeof uri, "URI:" SCHEME "%s:%" PRIu64, cluster, identity.node);
    return extend(certificate, issuer, NID_basic_constraints, "critical,CA:FALSE") &&
           extend(certificate, issuer, NID_key_usage, "critical,digitalSignature") &&
           extend(certificate, issuer, NID_ext_key_usage, "serverAuth,clientAuth") &&
           extend(certificate, issuer, NID_subject_key_identifier, "hash") &&
           extend(certificate, issuer, NID_authority_key_identifier, "keyid:always") &&
           extend(certificate, issuer, NID_subject_alt_name, uri);
}

int net_pki_create_authority(struct uid cluster, struct net_pki_pair *ret,
                             struct error *err)
{
    static const char what[] = "make the cluster's CA";
    assert(task_current() == NULL);
    char common[IDENTITY_MAX], hex[UID_TEXT_LEN + 1];
    uid_print(cluster, hex);
    snprintf(common, sizeof common, AUTHORITY_NAME "%s", hex);
    cleanup(free_EVP_PKEY) EVP_PKEY *key = EVP_EC_gen(CURVE);
    if (key == NULL)
        return fail_openssl(err, what);
    struct pki_span span = span_of_days(AUTHORITY_YEARS * 1461 / 4);
    cleanup(free_X509) X509 *certificate = certificate_new(common, NULL, key, span);
    if (certificate == NULL || !extend_authority(certificate) ||
        X509_sign(certificate, key, EVP_sha256()) == 0)
        return fail_openssl(err, what);
    struct net_pki_pair pair = {certificate_text(certificate), key_text(key)};
    if (pair.certificate == NULL || pair.key == NULL) {
        free(pair.certificate);
        net_pki_free_key(pair.key);
        return err_set(err, -ENOMEM, "%s: %s", what, err_text(ENOMEM));
    }
    *ret = pair;
    return 0;
}

int net_pki_create_request(struct net_pki_pair *ret, struct error *err)
{
    static const char what[] = "make a node's key";
    assert(task_current() == NULL);
    cleanup(free_EVP_PKEY) EVP_PKEY *key = EVP_EC_gen(CURVE);
    cleanup(free_X509_REQ) X509_REQ *request = X509_REQ_new();
    cleanup(free_X509_NAME) X509_NAME *name = name_of("Parallax node");
    if (key == NULL || request == NULL || name == NULL ||
        X509_REQ_set_version(request, X509_REQ_VERSION_1) != 1 ||
        X509_REQ_set_subject_name(request, name) != 1 ||
        X509_REQ_set_pubkey(request, key) != 1 ||
        X509_REQ_sign(request, key, EVP_sha256()) == 0)
        return fail_openssl(err, what);
    struct net_pki_pair pair = {request_text(request), key_text(key)};
    if (pair.certificate == NULL || pair.key == NULL) {
        free(pair.certificate);
        net_pki_free_key(pair.key);
        return err_set(err, -ENOMEM, "%s: %s", what, err_text(ENOMEM));
    }
    *ret = pair;
    return 0;
}

/* The key of a request that is to be signed; the request owns it. */
static int check_request(X509_REQ *request, EVP_PKEY **ret_key, struct error *err)
{
    char curve[32] = "";
    EVP_PKEY *key = X509_REQ_get0_pubkey(request);
    if (key == NULL)
        return err_set(err, -PLX_EFORMAT, "signing request: its key cannot be read: %s",
                       pki_words());
    if (!EVP_PKEY_is_a(key, "EC") ||
        EVP_PKEY_get_group_name(key, curve, sizeof curve, NULL) != 1 ||
        strcmp(curve, CURVE) != 0) {
        ERR_clear_error();
        return err_set(err, -PLX_EDENIED, "signing request: its key is not on P-256");
    }
    if (X509_REQ_verify(request, key) != 1) {
        ERR_clear_error();
        return err_set(err, -PLX_EDENIED,
                       "signing request: it is not signed with its own key");
    }
    *ret_key = key;
    return 0;
}

static int read_authority(const struct net_pki_pair *authority, struct uid cluster,
                          X509 **ret_certificate, EVP_PKEY **ret_key, struct error *err)
{
    cleanup(free_X509)
        X509 *certificate = pki_read_certificate(authority->certificate, 0);
    cleanup(free_EVP_PKEY) EVP_PKEY *key = pki_read_key(authority->key);
    struct uid named;
    if (certificate == NULL || key == NULL)
        return err_set(err, -PLX_EFORMAT, "the CA's %s cannot be read: %s",
                       key == NULL ? "key" : "certificate", pki_words());
    if (X509_check_private_key(certificate, key) != 1) {
        ERR_clear_error();
        return err_set(err, -PLX_EFORMAT, "the CA's key is not that of its certificate");
    }
    if (!authority_cluster(certificate, &named) || !uid_equal(named, cluster))
        return err_set(err, -PLX_EFORMAT, "the CA is not that of this cluster");
    *ret_certificate = take(certificate);
    *ret_key = take(key);
    return 0;
}

int pki_sign_span(const struct net_pki_pair *authority, const char *request_text,
                  struct net_identity identity, struct pki_span span,
                  char **ret_certificate, struct error *err)
{
    cleanup(free_X509) X509 *issuer = NULL;
    cleanup(free_EVP_PKEY) EVP_PKEY *issuer_key = NULL;
    int rc = read_authority(authority, identity.cluster, &issuer, &issuer_key, err);
    if (rc < 0)
        return rc;
    cleanup(free_BIO) BIO *bio = bio_of(request_text);
    cleanup(free_X509_REQ) X509_REQ *request =
        bio != NULL ? PEM_read_bio_X509_REQ(bio, NULL, no_password, NULL) : NULL;
    if (request == NULL)
        return err_set(err, -PLX_EFORMAT, "signing request: cannot be read: %s",
                       pki_words());
    EVP_PKEY *key = NULL;
    rc = check_request(request, &key, err);
    if (rc < 0)
        return rc;
    char common[IDENTITY_MAX];
    snprintf(common, sizeof common, "Parallax node %" PRIu64, identity.node);
    cleanup(free_X509) X509 *certificate = certificate_new(common, issuer, key, span);
    if (certificate == NULL || !extend_node(certificate, issuer, identity) ||
        X509_sign(certificate, issuer_key, EVP_sha256()) == 0)
        return fail_openssl(err, "sign a certificate");
    char *text = certificate_text(certificate);
    if (text == NULL)
        return err_set(err, -ENOMEM, "sign a certificate: %s", err_text(ENOMEM));
    *ret_certificate = text;
    return 0;
}

int net_pki_sign(const struct net_pki_pair *authority, const char *request,
                 struct net_identity identity, uint32_t days, char **ret_certificate,
                 struct error *err)
{
    assert(task_current() == NULL);
    assert(identity.node != 0);
    return pki_sign_span(authority, request, identity, span_of_days(days),
                         ret_certificate, err);
}

/* --- looking at them --- */

int net_pki_digest(const char *certificate, uint8_t ret[NET_DIGEST_BYTES],
                   struct error *err)
{
    assert(task_current() == NULL);
    cleanup(free_X509) X509 *read = pki_read_certificate(certificate, 0);
    if (read == NULL)
        return err_set(err, -PLX_EFORMAT, "certificate: cannot be read: %s", pki_words());
    unsigned len = 0;
    uint8_t digest[EVP_MAX_MD_SIZE];
    if (X509_digest(read, EVP_sha256(), digest, &len) != 1)
        return fail_openssl(err, "digest of a certificate");
    assert(len == NET_DIGEST_BYTES);
    memcpy(ret, digest, NET_DIGEST_BYTES);
    return 0;
}

int net_pki_hash(const void *bytes, size_t len, uint8_t ret[NET_DIGEST_BYTES],
                 struct error *err)
{
    assert(task_current() == NULL);
    unsigned digest_len = 0;
    uint8_t digest[EVP_MAX_MD_SIZE];
    if (EVP_Digest(bytes, len, digest, &digest_len, EVP_sha256(), NULL) != 1)
        return fail_openssl(err, "digest");
    assert(digest_len == NET_DIGEST_BYTES);
    memcpy(ret, digest, NET_DIGEST_BYTES);
    return 0;
}

static bool end_of(X509 *certificate, uint64_t *ret_until_s)
{
    static const time_t epoch_s;
    int days, seconds;
    ASN1_TIME *start = ASN1_TIME_set(NULL, epoch_s);
    bool fine = start != NULL && ASN1_TIME_diff(&days, &seconds, start,
                                                X509_get0_notAfter(certificate)) == 1;
    ASN1_TIME_free(start);
    if (!fine || days < 0 || seconds < 0)
        return false;
    *ret_until_s = (uint64_t)days * DAY_S + (uint64_t)seconds;
    return true;
}

int net_pki_inspect(const char *certificate, struct net_identity *ret_identity,
                    uint64_t *ret_until_s, struct error *err)
{
    assert(task_current() == NULL);
    cleanup(free_X509) X509 *read = pki_read_certificate(certificate, 0);
    struct net_identity identity = {.node = 0};
    uint64_t until_s;
    if (read == NULL)
        return err_set(err, -PLX_EFORMAT, "certificate: cannot be read: %s", pki_words());
    if (!end_of(read, &until_s))
        return err_set(err, -PLX_EFORMAT, "certificate: its end cannot be read: %s",
                       pki_words());
    if (!pki_identity_of(read, &identity) && !authority_cluster(read, &identity.cluster))
        return err_set(err, -PLX_EFORMAT, "certificate: names no node of a cluster");
    *ret_identity = identity;
    *ret_until_s = until_s;
    return 0;
}
