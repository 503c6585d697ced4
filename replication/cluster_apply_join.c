/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a host gets in: a token that somebody with rights had added, used once. And what
 * signs its certificate then.
 *
 * The state has no clock. Tokens end by the clocks that commands carry, and are dropped
 * by the next command about tokens; a clock that is wrong can end one early, or late by
 * as much as it is wrong.
 */
#include "replication/cluster_internal.h"

const struct cluster_token *cluster_token_next(const struct cluster_state *state,
                                               const struct cluster_token *token)
{
    uint32_t next = token == NULL ? 0 : (uint32_t)(token - state->tokens) + 1;
    return next < state->token_count ? &state->tokens[next] : NULL;
}

const struct cluster_authority *cluster_authority(const struct cluster_state *state)
{
    return state->authority.certificate == NULL ? NULL : &state->authority;
}

static struct cluster_token *token_find(struct cluster_state *state,
                                        const uint8_t digest[TOKEN_DIGEST_BYTES])
{
    for (uint32_t i = 0; i < state->token_count; i++) {
        if (memcmp(state->tokens[i].digest, digest, TOKEN_DIGEST_BYTES) == 0)
            return &state->tokens[i];
    }
    return NULL;
}

static bool is_over(const struct cluster_token *token, uint64_t now_ns)
{
    return token->until_wall_ns <= now_ns;
}

static void drop_old(struct cluster_state *state, uint64_t now_ns)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < state->token_count; i++) {
        if (!is_over(&state->tokens[i], now_ns))
            state->tokens[kept++] = state->tokens[i];
    }
    state->token_count = kept;
}

static uint32_t count_valid(const struct cluster_state *state, uint64_t now_ns)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < state->token_count; i++)
        count += !is_over(&state->tokens[i], now_ns);
    return count;
}

int apply_token_add(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    const struct cluster_command *command = apply->command;
    uint64_t now_ns = command->wall_ns, until_ns = command->until_wall_ns;
    if (until_ns <= now_ns)
        return apply_refuse(apply, -EINVAL, "a token that is over before it begins");
    if (until_ns - now_ns > TOKEN_LIFE_MAX_S * NS_PER_S)
        return apply_refuse(apply, -PLX_ELIMIT, "a token for more than %u days",
                            TOKEN_LIFE_MAX_S / 86400U);
    const struct cluster_token *there = token_find(state, command->digest);
    if (there != NULL && !is_over(there, now_ns))
        return there->until_wall_ns == until_ns
                   ? 0
                   : apply_refuse(apply, -PLX_EEXISTS, "the token exists already");
    if (count_valid(state, now_ns) >= TOKENS_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "there are %u tokens already",
                            TOKENS_MAX);
    drop_old(state, now_ns);
    struct cluster_token *token = &state->tokens[state->token_count++];
    *token = (struct cluster_token){.until_wall_ns = until_ns};
    memcpy(token->digest, command->digest, sizeof token->digest);
    return 0;
}

int apply_node_join(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    const struct cluster_command *command = apply->command;
    int rc = apply_check_node_text(apply);
    if (rc != 0)
        return rc;
    if ((command->flags & ~(unsigned)NODE_WITNESS) != 0)
        return apply_refuse(apply, -EINVAL, "node: flags %x cannot be set",
                            command->flags);
    struct cluster_token *token = token_find(state, command->digest);
    if (token == NULL)
        return apply_refuse(apply, -PLX_EDENIED, "the token is not known, or over");
    uint64_t known = cluster_state_node_of_store(state, command->store);
    if (token->node != 0 && token->node != known)
        return apply_refuse(apply, -PLX_EDENIED, "the token was used before");
    if (token->node == 0 && is_over(token, command->wall_ns))
        return apply_refuse(apply, -PLX_EDENIED, "the token is over");
    struct cluster_node *node = apply_node_of_store(apply, &rc);
    if (node == NULL)
        return rc;
    if (known == 0)
        node->flags = command->flags;
    token->node = node->id;
    drop_old(state, command->wall_ns);
    apply->result->id = node->id;
    return 0;
}

bool cluster_pem_is_plain(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (text[i] != '\n' && (text[i] < ' ' || text[i] > '~'))
            return false;
    }
    return len > 0;
}

static bool is_same(const char *kept, const char *text, uint32_t len)
{
    return strlen(kept) == len && memcmp(kept, text, len) == 0;
}

static char *copy_text(const char *text, uint32_t len)
{
    char *copy = cluster_alloc(len + 1);
    memcpy(copy, text, len);
    return copy;
}

int apply_authority(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    struct cluster_authority *authority = &apply->state->authority;
    if (!cluster_pem_is_plain(command->certificate, command->certificate_len) ||
        !cluster_pem_is_plain(command->key, command->key_len))
        return apply_refuse(apply, -EINVAL, "the authority: not certificate and key");
    if (authority->certificate == NULL) {
        authority->certificate = copy_text(command->certificate,
                                           command->certificate_len);
        authority->key = copy_text(command->key, command->key_len);
        return 0;
    }
    if (!is_same(authority->certificate, command->certificate,
                 command->certificate_len) ||
        !is_same(authority->key, command->key, command->key_len))
        return apply_refuse(apply, -PLX_EEXISTS, "the cluster has an authority already");
    return 0;
}
