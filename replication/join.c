/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokens, the bytes of a request to join and of its answer, and the side that asks. The
 * side that answers is membership_join.c.
 *
 * Both ends check everything: whoever asks is a stranger, and so is, until the digest in
 * the token has matched, whoever answers.
 */
#include "replication/join.h"

#include <stdio.h>

#include "runtime/crc32c.h"

#define TOKEN_PREFIX "plxj-"
#define TOKEN_BYTES  51U /* secret, digest, and 24 bits of the checksum of both */
#define VERSION      1U

static_assert(sizeof TOKEN_PREFIX - 1 + TOKEN_BYTES / 3 * 4 == JOIN_TOKEN_LEN,
              "a prefix and 68 digits");
static_assert(JOIN_SECRET_BYTES + NET_DIGEST_BYTES + 3 == TOKEN_BYTES, "all of it");

/* --- tokens --- */

static const char digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static void token_bytes(const struct join_token *token, uint8_t ret[TOKEN_BYTES])
{
    size_t len = sizeof token->secret + sizeof token->authority;
    memcpy(ret, token->secret, sizeof token->secret);
    memcpy(ret + sizeof token->secret, token->authority, sizeof token->authority);
    le32 crc = le32_of(crc32c(ret, len));
    memcpy(ret + len, &crc, TOKEN_BYTES - len);
}

void join_token_print(const struct join_token *token, char ret[JOIN_TOKEN_LEN + 1])
{
    uint8_t bytes[TOKEN_BYTES];
    token_bytes(token, bytes);
    memcpy(ret, TOKEN_PREFIX, strlen(TOKEN_PREFIX));
    char *to = ret + strlen(TOKEN_PREFIX);
    for (size_t i = 0; i < TOKEN_BYTES; i += 3) {
        uint32_t n = (uint32_t)bytes[i] << 16 | (uint32_t)bytes[i + 1] << 8 |
                     bytes[i + 2];
        for (unsigned shift = 24; shift > 0; shift -= 6)
            *to++ = digits[n >> (shift - 6) & 63];
    }
    *to = '\0';
}

int join_token_parse(const char *text, struct join_token *ret, struct error *err)
{
    static const char wrong[] = "this is no token, or not all of one: it is one word of "
                                "73 characters, made by 'parallax cluster token'";
    uint8_t bytes[TOKEN_BYTES], again[TOKEN_BYTES];
    size_t prefix = strlen(TOKEN_PREFIX);
    if (strlen(text) != JOIN_TOKEN_LEN || memcmp(text, TOKEN_PREFIX, prefix) != 0)
        return err_set(err, -EINVAL, "%s", wrong);
    uint32_t n = 0;
    for (size_t i = 0; i < TOKEN_BYTES / 3 * 4; i++) {
        const char *digit = strchr(digits, text[prefix + i]);
        if (digit == NULL)
            return err_set(err, -EINVAL, "%s", wrong);
        n = n << 6 | (uint32_t)(digit - digits);
        if (i % 4 != 3)
            continue;
        for (size_t k = 0; k < 3; k++)
            bytes[i / 4 * 3 + k] = (uint8_t)(n >> (16 - 8 * k));
        n = 0;
    }
    struct join_token token;
    memcpy(token.secret, bytes, sizeof token.secret);
    memcpy(token.authority, bytes + sizeof token.secret, sizeof token.authority);
    token_bytes(&token, again);
    if (memcmp(bytes, again, sizeof bytes) != 0)
        return err_set(err, -EINVAL, "a character of this token is wrong");
    *ret = token;
    return 0;
}

/* --- what is said --- */

void join_request_encode(const struct join_request *request, struct writer *w)
{
    write_u16(w, VERSION);
    write_u16(w, (uint16_t)request->flags);
    write_u64(w, request->capacity_bytes);
    write_bytes(w, request->secret, sizeof request->secret);
    write_uid(w, request->store);
    write_string(w, request->address);
    write_string(w, request->domain);
    write_string(w, request->pem);
}

/* What comes first; a later version may go on differently. */
static int check_version(struct reader *r, struct error *err)
{
    uint16_t version = read_u16(r);
    if (r->bad || version == 0)
        return err_set(err, -PLX_EFORMAT, "joining: a message that is none");
    if (version != VERSION)
        return err_set(err, -PLX_ENEWER, "joining: spoken in version %u, known is %u",
                       version, VERSION);
    return 0;
}

static bool is_domain(const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text <= ' ' || *text > '~')
            return false;
    }
    return true;
}

int join_request_decode(const void *bytes, size_t len, struct join_request *ret,
                        struct error *err)
{
    struct reader r = reader_of(bytes, len);
    int rc = check_version(&r, err);
    if (rc != 0)
        return rc;
    ret->flags = read_u16(&r);
    ret->capacity_bytes = read_u64(&r);
    const uint8_t *secret = read_bytes(&r, sizeof ret->secret);
    if (secret != NULL)
        memcpy(ret->secret, secret, sizeof ret->secret);
    ret->store = read_uid(&r);
    read_string(&r, ret->address, sizeof ret->address);
    read_string(&r, ret->domain, sizeof ret->domain);
    read_string(&r, ret->pem, sizeof ret->pem);
    if (r.bad || r.left != 0 || (ret->flags & ~(unsigned)JOIN_WITNESS) != 0)
        return err_set(err, -PLX_EFORMAT, "joining: a request that is none");
    if (uid_equal(ret->store, (struct uid){{0}}))
        return err_set(err, -EINVAL, "joining: a store has no identity of zeros");
    if (!is_domain(ret->domain))
        return err_set(err, -EINVAL,
                       "joining: a failure domain is one word of printable characters");
    return join_address_check(ret->address, err);
}

void join_answer_encode(const struct join_answer *answer, struct writer *w)
{
    write_u16(w, VERSION);
    write_uid(w, answer->identity.cluster);
    write_u64(w, answer->identity.node);
    write_string(w, answer->certificate);
    write_string(w, answer->authority);
    write_u16(w, (uint16_t)answer->peer_count);
    for (uint32_t i = 0; i < answer->peer_count; i++) {
        write_u64(w, answer->peers[i].node);
        write_string(w, answer->peers[i].address);
    }
}

int join_answer_decode(const void *bytes, size_t len, struct join_answer *ret,
                       struct error *err)
{
    struct reader r = reader_of(bytes, len);
    int rc = check_version(&r, err);
    if (rc != 0)
        return rc;
    ret->identity.cluster = read_uid(&r);
    ret->identity.node = read_u64(&r);
    read_string(&r, ret->certificate, sizeof ret->certificate);
    read_string(&r, ret->authority, sizeof ret->authority);
    ret->peer_count = read_u16(&r);
    if (ret->peer_count > JOIN_PEERS_MAX)
        r.bad = true;
    for (uint32_t i = 0; i < ret->peer_count && !r.bad; i++) {
        ret->peers[i].node = read_u64(&r);
        read_string(&r, ret->peers[i].address, sizeof ret->peers[i].address);
        if (ret->peers[i].node == 0 || ret->peers[i].node == ret->identity.node ||
            join_address_check(ret->peers[i].address, NULL) != 0)
            r.bad = true;
    }
    if (r.bad || r.left != 0 || ret->identity.node == 0)
        return err_set(err, -PLX_EFORMAT, "joining: an answer that is none");
    return 0;
}

void join_text_decode(const void *bytes, size_t len, char *ret, size_t cap)
{
    const uint8_t *from = bytes;
    size_t count = len < cap - 1 ? len : cap - 1;
    for (size_t i = 0; i < count; i++)
        ret[i] = (char)(from[i] >= ' ' && from[i] <= '~' ? from[i] : '?');
    ret[count] = '\0';
}

static bool is_any(const char *host, size_t len)
{
    static const char *const any[] = {"0.0.0.0", "[::]", "::", "*", "0"};
    for (size_t i = 0; i < ARRAY_LEN(any); i++) {
        if (strlen(any[i]) == len && memcmp(any[i], host, len) == 0)
            return true;
    }
    return false;
}

int join_address_check(const char *address, struct error *err)
{
    const char *colon = strrchr(address, ':');
    if (strlen(address) > DISK_NAME_MAX)
        return err_set(err, -EINVAL, "a node's address has at most %u characters",
                       DISK_NAME_MAX);
    if (colon == NULL || colon == address || !is_domain(address))
        return err_set(err, -EINVAL, "%.80s: a node's address is HOST:PORT", address);
    uint32_t port = 0;
    for (const char *at = colon + 1; *at != '\0' && port <= UINT16_MAX; at++)
        port = *at >= '0' && *at <= '9' ? port * 10 + (uint32_t)(*at - '0')
                                        : UINT16_MAX + 1U;
    if (port == 0 || port > UINT16_MAX)
        return err_set(err, -EINVAL, "%.80s: a port is a number from 1 to 65535",
                       address);
    if (is_any(address, (size_t)(colon - address)))
        return err_set(err, -EINVAL,
                       "%.80s: other nodes connect to this address, so it must be one "
                       "of this machine that they can reach",
                       address);
    return 0;
}

/* --- asking --- */

static int describe(int rc, bool was_sent, const char *address,
                    const struct writer *answer, struct error *err)
{
    char text[400];
    if (rc == -PLX_EDENIED && !was_sent)
        return err_set(err, rc,
                       "%s: who answers there is not of the cluster that made this "
                       "token, or takes no new nodes now",
                       address);
    if (!was_sent || answer->len == 0)
        return err_set(err, rc, "%s: no node answers there: %s", address, err_text(rc));
    join_text_decode(answer->bytes, answer->len, text, sizeof text);
    return err_set(err, rc, "%s: refused: %s", address, text);
}

struct asking {
    struct rpc_options options;
    struct rpc *rpc;
    int rc;
    struct error *err;
};

static void asking_begin(void *arg)
{
    struct asking *asking = arg;
    asking->rc = rpc_create(&asking->options, &asking->rpc, asking->err);
}

static void asking_end(void *arg)
{
    struct asking *asking = arg;
    rpc_destroy(asking->rpc);
}

async int join_ask(struct loop *loop, const char *address, const struct join_token *token,
                   const struct join_request *request, struct join_answer *ret,
                   struct error *err)
{
    static const struct rpc_op *const no_ops[] = {NULL};
    struct buffer_pool *buffers = buffer_pool_create(1 * MIB);
    struct writer head = {0}, answer = {0};
    struct asking asking = {
        .options = {.loop = loop,
                    .credentials = {.authority_digest = token->authority},
                    .buffers = buffers,
                    .ops = no_ops},
        .err = err,
    };
    join_request_encode(request, &head);
    int rc = buffers == NULL || head.bad ? err_set(err, -ENOMEM, "%s", err_text(-ENOMEM))
                                         : 0;
    if (rc == 0) {
        task_outside(asking_begin, &asking);
        rc = asking.rc;
    }
    if (rc == 0) {
        struct rpc_call call = {.address = address,
                                .op = JOIN_RPC,
                                .head = head.bytes,
                                .head_len = (uint32_t)head.len,
                                .timeout_ns = JOIN_TIMEOUT_MS * NS_PER_MS};
        rc = rpc_wait(asking.rpc, &call, &answer, NULL);
        rc = rc == 0 ? join_answer_decode(answer.bytes, answer.len, ret, err)
                     : describe(rc, call.was_sent, address, &answer, err);
        task_outside(asking_end, &asking);
    }
    writer_done(&head);
    writer_done(&answer);
    buffer_pool_destroy(buffers);
    return rc;
}
