/* SPDX-License-Identifier: Apache-2.0 */
/* Are nodes, pools, groups, tokens and authority of a state consistent? */
#include <stdarg.h>
#include <stdio.h>

#include "replication/cluster_internal.h"

struct check {
    const struct cluster_state *state;
    char *text;
    size_t cap;
};

static bool attr_printf(2, 3) wrong(struct check *check, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(check->text, check->cap, fmt, args);
    va_end(args);
    return false;
}

static bool check_nodes(struct check *check)
{
    const struct cluster_state *state = check->state;
    uint32_t living = 0;
    for (uint32_t i = 0; i < state->node_count; i++) {
        const struct cluster_node *node = &state->nodes[i];
        if (node->id <= (i > 0 ? node[-1].id : 0))
            return wrong(check, "nodes are out of order");
        if (!cluster_text_is_plain(node->address) || !cluster_text_is_plain(node->domain))
            return wrong(check, "node %llu: address or domain is not printable",
                         (unsigned long long)node->id);
        if ((node->flags & ~(unsigned)NODE_FLAGS_ALL) != 0 ||
            ((node->flags & NODE_GONE) && (node->flags & NODE_FLAGS_SETTABLE)))
            return wrong(check, "node %llu: impossible flags %x",
                         (unsigned long long)node->id, node->flags);
        if (node->groups_before > state->group_count)
            return wrong(check, "node %llu: is younger than what is to come",
                         (unsigned long long)node->id);
        living += (node->flags & NODE_GONE) == 0;
    }
    if (living > CLUSTER_NODES_MAX || (living == 0 && state->node_count != 0))
        return wrong(check, "%u nodes are not gone", living);
    return true;
}

static bool check_pools(struct check *check)
{
    const struct cluster_state *state = check->state;
    for (uint32_t i = 0; i < state->pool_count; i++) {
        const struct cluster_pool *pool = &state->pools[i];
        if (!cluster_name_valid(pool->name) ||
            cluster_pool_by_name(state, pool->name) != pool)
            return wrong(check, "pool %u: its name is invalid or not its own", pool->id);
        if (pool->min_copies < 1 || pool->copies < pool->min_copies ||
            pool->copies > POOL_COPIES_MAX ||
            (pool->flags & ~(unsigned)POOL_FLAGS_ALL) != 0)
            return wrong(check, "pool %s: impossible copies or flags", pool->name);
    }
    return true;
}

/* Domains are not looked at: a node may be moved to another one at any time, and what
 * follows from it is for the placement to see to. */
static bool check_member(struct check *check, const struct cluster_group *group,
                         unsigned i)
{
    const struct group_member *member = &group->members[i];
    const struct cluster_node *node = cluster_node_by_id(check->state, member->node);
    if (node == NULL || (node->flags & (NODE_GONE | NODE_WITNESS)))
        return wrong(check, "group %u: node %llu cannot be in it", group->id,
                     (unsigned long long)member->node);
    if (member->missing_since > check->state->applied)
        return wrong(check, "group %u: node %llu misses what is to come", group->id,
                     (unsigned long long)member->node);
    if (cluster_group_member(group, member->node) != member)
        return wrong(check, "group %u: node %llu is in it twice", group->id,
                     (unsigned long long)member->node);
    return true;
}

static bool check_groups(struct check *check)
{
    const struct cluster_state *state = check->state;
    uint32_t of_pool[CLUSTER_POOLS_MAX + 1] = {0};
    for (uint32_t i = 0; i < state->group_count; i++) {
        const struct cluster_group *group = &state->groups[i];
        if (cluster_pool_by_id(state, group->pool) == NULL)
            return wrong(check, "group %u: there is no pool %u", group->id, group->pool);
        if (++of_pool[group->pool] > POOL_GROUPS_MAX)
            return wrong(check, "pool %u: too many groups", group->pool);
        if (group->epoch == 0)
            return wrong(check, "group %u: has no epoch", group->id);
        if (group->unsure_below > state->next_sequence)
            return wrong(check, "group %u: is unsure of what is to come", group->id);
        for (unsigned j = 0; j < group->member_count; j++) {
            if (!check_member(check, group, j))
                return false;
        }
        if (group->member_count != 0 && cluster_group_whole_count(group) == 0)
            return wrong(check, "group %u: nobody in it is whole", group->id);
    }
    return true;
}

static bool check_joining(struct check *check)
{
    const struct cluster_state *state = check->state;
    for (uint32_t i = 0; i < state->token_count; i++) {
        const struct cluster_token *token = &state->tokens[i];
        if (token->node != 0 && !cluster_node_known(state, token->node))
            return wrong(check, "a token let in a node that is not there");
        for (uint32_t j = 0; j < i; j++) {
            if (memcmp(state->tokens[j].digest, token->digest, TOKEN_DIGEST_BYTES) == 0)
                return wrong(check, "a token is there twice");
        }
    }
    const char *certificate = state->authority.certificate, *key = state->authority.key;
    if ((certificate == NULL) != (key == NULL))
        return wrong(check, "half an authority");
    if (certificate == NULL)
        return true;
    size_t certificate_len = strlen(certificate), key_len = strlen(key);
    if (!cluster_pem_is_plain(certificate, certificate_len) ||
        !cluster_pem_is_plain(key, key_len) ||
        certificate_len + key_len > AUTHORITY_BYTES_MAX)
        return wrong(check, "an impossible authority");
    return true;
}

bool cluster_check_nodes(const struct cluster_state *state, char *text, size_t cap)
{
    struct check check = {.state = state, .text = text, .cap = cap};
    bool has_cluster = state->node_count != 0;
    if (has_cluster != (state->pool_count != 0) ||
        has_cluster != (state->group_count != 0) ||
        (!has_cluster && (state->token_count != 0 || cluster_authority(state) != NULL)))
        return wrong(&check, "pools or groups without nodes, or nodes without them");
    return check_nodes(&check) && check_pools(&check) && check_groups(&check) &&
           check_joining(&check);
}
