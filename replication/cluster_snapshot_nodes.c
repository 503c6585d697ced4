/* SPDX-License-Identifier: Apache-2.0 */
/* The state as bytes: what it says of nodes, pools, groups, and of who gets in.
 * doc/format-cluster.md, "State". */
#include "replication/cluster_internal.h"

#define VERSION_ADDRESSES 2U /* since then nodes have address, domain and capacity */
#define VERSION_POOLS     3U /* since then there is the rest of this file, */
#define VERSION_UNSURE    5U /* but of groups not what may be with one member only */

#define NODE_BYTES  32U /* the least that one of each takes, in any version */
#define POOL_BYTES  8U
#define GROUP_BYTES 13U

/* --- writing --- */

static void write_pool(struct writer *w, const struct cluster_pool *pool)
{
    write_string(w, pool->name);
    write_u8(w, pool->copies);
    write_u8(w, pool->min_copies);
    write_u32(w, pool->flags);
}

static void write_group(struct writer *w, const struct cluster_group *group)
{
    write_u32(w, group->pool);
    write_u64(w, group->epoch);
    write_u64(w, group->unsure_below);
    write_u8(w, group->member_count);
    for (unsigned i = 0; i < group->member_count; i++) {
        write_u64(w, group->members[i].node);
        write_u64(w, group->members[i].missing_since);
    }
}

void cluster_nodes_write(struct writer *w, const struct cluster_state *state)
{
    write_u32(w, state->node_count);
    for (uint32_t i = 0; i < state->node_count; i++) {
        write_u64(w, state->nodes[i].id);
        write_uid(w, state->nodes[i].store);
        write_u64(w, state->nodes[i].joined_wall_ns);
        write_string(w, state->nodes[i].address);
        write_string(w, state->nodes[i].domain);
        write_u64(w, state->nodes[i].capacity_bytes);
        write_u32(w, state->nodes[i].flags);
        write_u32(w, state->nodes[i].groups_before);
    }
    write_u32(w, state->pool_count);
    for (uint32_t i = 0; i < state->pool_count; i++)
        write_pool(w, &state->pools[i]);
    write_u32(w, state->group_count);
    for (uint32_t i = 0; i < state->group_count; i++)
        write_group(w, &state->groups[i]);
    write_u32(w, state->token_count);
    for (uint32_t i = 0; i < state->token_count; i++) {
        write_bytes(w, state->tokens[i].digest, TOKEN_DIGEST_BYTES);
        write_u64(w, state->tokens[i].until_wall_ns);
        write_u64(w, state->tokens[i].node);
    }
    const struct cluster_authority *authority = cluster_authority(state);
    write_string(w, authority == NULL ? "" : authority->certificate);
    write_string(w, authority == NULL ? "" : authority->key);
}

/* --- reading --- */

uint32_t cluster_count_read(struct reader *r, uint32_t max, size_t least)
{
    uint32_t count = read_u32(r);
    if (count > max || count > r->left / least)
        r->bad = true;
    return r->bad ? 0 : count;
}

static void read_nodes(struct reader *r, struct cluster_state *state, uint32_t version)
{
    uint32_t count = cluster_count_read(r, CLUSTER_NODE_RECORDS_MAX, NODE_BYTES);
    for (uint32_t i = 0; i < count; i++) {
        struct cluster_node node = {.id = read_u64(r)};
        node.store = read_uid(r);
        node.joined_wall_ns = read_u64(r);
        if (version >= VERSION_ADDRESSES) {
            read_string(r, node.address, sizeof node.address);
            read_string(r, node.domain, sizeof node.domain);
            node.capacity_bytes = read_u64(r);
        }
        if (version >= VERSION_POOLS) {
            node.flags = read_u32(r);
            node.groups_before = read_u32(r);
        }
        cluster_node_append(state, &node);
    }
}

static void read_pools(struct reader *r, struct cluster_state *state)
{
    uint32_t count = cluster_count_read(r, CLUSTER_POOLS_MAX, POOL_BYTES);
    for (uint32_t i = 0; i < count; i++) {
        struct cluster_pool *pool = cluster_pool_append(state, "");
        read_string(r, pool->name, sizeof pool->name);
        pool->copies = read_u8(r);
        pool->min_copies = read_u8(r);
        pool->flags = read_u32(r);
    }
}

static void read_groups(struct reader *r, struct cluster_state *state, uint32_t version)
{
    uint32_t count = cluster_count_read(r, CLUSTER_GROUPS_MAX, GROUP_BYTES);
    for (uint32_t i = 0; i < count && !r->bad; i++) {
        struct cluster_group *group = cluster_group_append(state, read_u32(r));
        group->epoch = read_u64(r);
        if (version >= VERSION_UNSURE)
            group->unsure_below = read_u64(r);
        uint8_t member_count = read_u8(r);
        if (member_count > REPLICAS_MAX)
            r->bad = true;
        if (r->bad)
            return;
        group->member_count = member_count;
        for (unsigned j = 0; j < member_count; j++) {
            group->members[j].node = read_u64(r);
            group->members[j].missing_since = read_u64(r);
        }
    }
}

static void read_tokens(struct reader *r, struct cluster_state *state)
{
    uint32_t count = cluster_count_read(r, TOKENS_MAX, TOKEN_DIGEST_BYTES + 16);
    for (uint32_t i = 0; i < count; i++) {
        struct cluster_token *token = &state->tokens[i];
        const uint8_t *digest = read_bytes(r, TOKEN_DIGEST_BYTES);
        if (digest != NULL)
            memcpy(token->digest, digest, TOKEN_DIGEST_BYTES);
        token->until_wall_ns = read_u64(r);
        token->node = read_u64(r);
    }
    state->token_count = count;
}

/* NULL if it is empty. */
static char *read_text(struct reader *r)
{
    uint16_t len = read_u16(r);
    const uint8_t *bytes = read_bytes(r, len);
    if (bytes == NULL || len == 0)
        return NULL;
    char *text = cluster_alloc((size_t)len + 1);
    memcpy(text, bytes, len);
    r->bad = r->bad || strlen(text) != len;
    return text;
}

void cluster_nodes_read(struct reader *r, struct cluster_state *state, uint32_t version)
{
    read_nodes(r, state, version);
    if (version < VERSION_POOLS)
        return;
    read_pools(r, state);
    read_groups(r, state, version);
    read_tokens(r, state);
    state->authority.certificate = read_text(r);
    state->authority.key = read_text(r);
}

/* Whoever some extent was written to has everything: there was no way to leave, nor to
 * miss anything. */
void cluster_nodes_upgrade(struct cluster_state *state)
{
    if (state->node_count == 0)
        return;
    cluster_default_pool_add(state);
    struct cluster_group *group = cluster_group_append(state, DEFAULT_POOL);
    group->members[group->member_count++].node = state->nodes[0].id;
    const struct cluster_disk *disk = NULL;
    while ((disk = cluster_disk_next(state, disk)) != NULL) {
        for (uint32_t i = 0; i < disk->extent_count; i++) {
            const struct log_extent *extent = &disk->extents[i];
            for (unsigned j = 0; j < extent->member_count; j++) {
                uint64_t node = extent->members[j];
                if (group->member_count < REPLICAS_MAX &&
                    cluster_node_known(state, node) &&
                    cluster_group_member(group, node) == NULL)
                    group->members[group->member_count++].node = node;
            }
        }
    }
}
