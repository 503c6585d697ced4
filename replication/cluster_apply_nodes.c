/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cluster itself and its nodes.
 */
#include "replication/cluster_internal.h"

const struct cluster_node *cluster_node_by_id(const struct cluster_state *state,
                                              uint64_t id)
{
    for (uint32_t i = 0; i < state->node_count; i++) {
        if (state->nodes[i].id == id)
            return &state->nodes[i];
    }
    return NULL;
}

const struct cluster_node *cluster_node_next(const struct cluster_state *state,
                                             const struct cluster_node *node)
{
    uint32_t next = node == NULL ? 0 : (uint32_t)(node - state->nodes) + 1;
    return next < state->node_count ? &state->nodes[next] : NULL;
}

bool cluster_node_known(const struct cluster_state *state, uint64_t node)
{
    return cluster_node_by_id(state, node) != NULL;
}

int apply_init(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    const struct cluster_command *command = apply->command;
    if (state->node_count != 0)
        return apply_refuse(apply, -PLX_EEXISTS, "the cluster exists already");
    if (command->node == 0)
        return apply_refuse(apply, -EINVAL, "a node's number is never 0");
    state->uid = command->cluster;
    state->created_wall_ns = command->wall_ns;
    cluster_node_append(state,
                        &(struct cluster_node){.id = command->node,
                                               .store = command->store,
                                               .joined_wall_ns = command->wall_ns});
    apply->result->id = command->node;
    return 0;
}

static struct cluster_node *find_by_store(struct cluster_state *state, struct uid store)
{
    for (uint32_t i = 0; i < state->node_count; i++) {
        if (uid_equal(state->nodes[i].store, store))
            return &state->nodes[i];
    }
    return NULL;
}

/* Numbers grow, and nodes are never taken off, so the last one has the highest. */
static int add_node(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    const struct cluster_command *command = apply->command;
    if (state->node_count >= CLUSTER_NODES_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "the cluster has %u nodes",
                            state->node_count);
    uint64_t last = state->nodes[state->node_count - 1].id;
    if (last == UINT64_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "there is no number left for a node");
    cluster_node_append(state, &(struct cluster_node){.id = last + 1,
                                                      .store = command->store,
                                                      .joined_wall_ns =
                                                          command->wall_ns});
    return 0;
}

bool cluster_text_is_plain(const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text <= ' ' || *text > '~')
            return false;
    }
    return true;
}

int apply_node_set(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    if (!cluster_text_is_plain(command->name) ||
        !cluster_text_is_plain(command->new_name))
        return apply_refuse(apply, -PLX_ENAME,
                            "node: its address or domain has a character that is not "
                            "printable");
    struct cluster_node *node = find_by_store(apply->state, command->store);
    if (node == NULL) {
        int rc = add_node(apply);
        if (rc != 0)
            return rc;
        node = &apply->state->nodes[apply->state->node_count - 1];
    }
    strcpy(node->address, command->name);
    strcpy(node->domain, command->new_name);
    node->capacity_bytes = command->size_bytes;
    apply->result->id = node->id;
    return 0;
}
