/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cluster itself and its nodes. Nodes are never taken off the list, so that a number
 * names one store for ever; those that are GONE stay as records.
 */
#include "replication/cluster_internal.h"

struct cluster_node *cluster_node_find(struct cluster_state *state, uint64_t id)
{
    uint32_t low = 0, high = state->node_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (state->nodes[middle].id == id)
            return &state->nodes[middle];
        if (state->nodes[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

const struct cluster_node *cluster_node_by_id(const struct cluster_state *state,
                                              uint64_t id)
{
    return cluster_node_find((struct cluster_state *)(uintptr_t)state, id);
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

bool cluster_node_is_down(const struct cluster_node *node)
{
    return (node->flags & (NODE_DOWN | NODE_OUT | NODE_GONE)) != 0;
}

bool cluster_node_is_usable(const struct cluster_node *node)
{
    return (node->flags & (NODE_DOWN | NODE_OUT | NODE_GONE | NODE_WITNESS)) == 0;
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
    cluster_default_pool_add(state);
    struct cluster_group *group = cluster_group_append(state, DEFAULT_POOL);
    group->members[group->member_count++] = (struct group_member){.node = command->node};
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

static uint32_t living_count(const struct cluster_state *state)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < state->node_count; i++)
        count += (state->nodes[i].flags & NODE_GONE) == 0;
    return count;
}

/* Numbers grow, and nodes are never taken off, so the last one has the highest. */
static int add_node(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    const struct cluster_command *command = apply->command;
    if (living_count(state) >= CLUSTER_NODES_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "the cluster has %u nodes",
                            CLUSTER_NODES_MAX);
    if (state->node_count >= CLUSTER_NODE_RECORDS_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "the cluster has had %u nodes",
                            CLUSTER_NODE_RECORDS_MAX);
    uint64_t last = state->nodes[state->node_count - 1].id;
    if (last == UINT64_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "there is no number left for a node");
    cluster_node_append(state,
                        &(struct cluster_node){.id = last + 1,
                                               .store = command->store,
                                               .joined_wall_ns = command->wall_ns,
                                               .groups_before = state->group_count});
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

int apply_check_node_text(struct apply *apply)
{
    if (!cluster_text_is_plain(apply->command->name) ||
        !cluster_text_is_plain(apply->command->new_name))
        return apply_refuse(apply, -PLX_ENAME,
                            "node: its address or domain has a character that is not "
                            "printable");
    return 0;
}

struct cluster_node *apply_node_of_store(struct apply *apply, int *ret_code)
{
    const struct cluster_command *command = apply->command;
    struct cluster_node *node = find_by_store(apply->state, command->store);
    if (node != NULL && (node->flags & NODE_GONE)) {
        *ret_code = apply_refuse(apply, -PLX_EDENIED,
                                 "node %llu is gone for ever; its host needs a new store",
                                 (unsigned long long)node->id);
        return NULL;
    }
    if (node == NULL) {
        int rc = add_node(apply);
        if (rc != 0) {
            *ret_code = rc;
            return NULL;
        }
        node = &apply->state->nodes[apply->state->node_count - 1];
    }
    strcpy(node->address, command->name);
    strcpy(node->domain, command->new_name);
    node->capacity_bytes = command->size_bytes;
    return node;
}

int apply_node_set(struct apply *apply)
{
    int rc = apply_check_node_text(apply);
    if (rc != 0)
        return rc;
    const struct cluster_node *node = apply_node_of_store(apply, &rc);
    if (node == NULL)
        return rc;
    apply->result->id = node->id;
    return 0;
}

/* The command's node, if it is not GONE. NULL: refused with *ret_code. */
static struct cluster_node *node_there(struct apply *apply, int *ret_code)
{
    unsigned long long id = apply->command->node;
    struct cluster_node *node = cluster_node_find(apply->state, id);
    if (node == NULL)
        *ret_code = apply_refuse(apply, -PLX_EMISSING, "there is no node %llu", id);
    else if (node->flags & NODE_GONE)
        *ret_code = apply_refuse(apply, -PLX_EPRECONDITION, "node %llu is gone for ever",
                                 id);
    else
        return node;
    return NULL;
}

int apply_node_state(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    int rc;
    struct cluster_node *node = node_there(apply, &rc);
    if (node == NULL)
        return rc;
    unsigned long long id = node->id;
    if ((command->flags & ~NODE_FLAGS_SETTABLE) != 0)
        return apply_refuse(apply, -EINVAL, "node %llu: flags %x cannot be set", id,
                            command->flags);
    if ((command->old_flags & NODE_FLAGS_SETTABLE) != (node->flags & NODE_FLAGS_SETTABLE))
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "node %llu: its flags are %x meanwhile", id, node->flags);
    bool goes_down = (command->flags & ~node->flags & NODE_DOWN) != 0;
    node->flags = (node->flags & ~NODE_FLAGS_SETTABLE) | command->flags;
    if (goes_down)
        cluster_groups_node_down(apply->state, node->id);
    apply->result->id = node->id;
    return 0;
}

/* Is the node in the write set of an extent that may still be appended to? */
static const struct cluster_disk *open_extent_disk(const struct cluster_state *state,
                                                   uint64_t node)
{
    const struct cluster_disk *disk = NULL;
    while ((disk = cluster_disk_next(state, disk)) != NULL) {
        for (uint32_t i = 0; i < disk->extent_count; i++) {
            if (!disk->extents[i].final && log_extent_has(&disk->extents[i], node))
                return disk;
        }
    }
    return NULL;
}

static const struct cluster_disk *owned_disk(const struct cluster_state *state,
                                             uint64_t node)
{
    const struct cluster_disk *disk = NULL;
    while ((disk = cluster_disk_next(state, disk)) != NULL) {
        if (disk->owner == node)
            return disk;
    }
    return NULL;
}

/* What would be lost, or hang, if it went in peace. */
static int check_unused(struct apply *apply, uint64_t node)
{
    const struct cluster_state *state = apply->state;
    unsigned long long id = node;
    const struct cluster_group *group = NULL;
    unsigned groups = 0;
    while ((group = cluster_group_next(state, group)) != NULL)
        groups += cluster_group_member(group, node) != NULL;
    if (groups > 0)
        return apply_refuse(apply, -PLX_EBUSY,
                            "node %llu has data of %u groups: drain it first, or, if it "
                            "never comes back, say that it is lost",
                            id, groups);
    const struct cluster_disk *disk = owned_disk(state, node);
    if (disk != NULL)
        return apply_refuse(apply, -PLX_EBUSY, "node %llu serves disk %s", id,
                            disk->name);
    disk = open_extent_disk(state, node);
    if (disk != NULL)
        return apply_refuse(apply, -PLX_EBUSY, "node %llu: disk %s writes to it", id,
                            disk->name);
    return 0;
}

/* Is this extent only there? */
static bool is_alone(const struct cluster_state *state, const struct log_extent *extent,
                     uint64_t node)
{
    if (extent->final || !log_extent_has(extent, node))
        return false;
    for (unsigned i = 0; i < extent->member_count; i++) {
        const struct cluster_node *other = cluster_node_by_id(state, extent->members[i]);
        if (extent->members[i] != node && other != NULL && !(other->flags & NODE_GONE))
            return false;
    }
    return true;
}

/* What would be lost if it never came back. */
static int check_spare(struct apply *apply, uint64_t node)
{
    const struct cluster_state *state = apply->state;
    const struct cluster_group *group = NULL;
    unsigned alone = 0;
    while ((group = cluster_group_next(state, group)) != NULL) {
        const struct group_member *member = cluster_group_member(group, node);
        alone += member != NULL && member->missing_since == 0 &&
                 cluster_group_whole_count(group) == 1;
    }
    if (alone > 0)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "node %llu has the only whole copy of %u of %u groups: start "
                            "it again, or give --data-loss as well, and what only it has "
                            "is lost",
                            (unsigned long long)node, alone, state->group_count);
    const struct cluster_disk *disk = NULL;
    while ((disk = cluster_disk_next(state, disk)) != NULL) {
        for (uint32_t i = 0; i < disk->extent_count; i++) {
            if (is_alone(state, &disk->extents[i], node))
                return apply_refuse(apply, -PLX_EPRECONDITION,
                                    "node %llu alone has what was written last to disk "
                                    "%.40s: start it again, or give --data-loss as well, "
                                    "and that is lost",
                                    (unsigned long long)node, disk->name);
        }
    }
    return 0;
}

int apply_node_gone(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    int rc;
    struct cluster_node *node = node_there(apply, &rc);
    if (node == NULL)
        return rc;
    unsigned long long id = node->id;
    if (living_count(state) == 1)
        return apply_refuse(apply, -PLX_EPRECONDITION, "node %llu is the last one", id);
    if (!apply->command->force)
        rc = check_unused(apply, node->id);
    else if ((node->flags & NODE_DOWN) == 0)
        rc = apply_refuse(apply, -PLX_EPRECONDITION,
                          "node %llu is up: drain it, or stop its daemon first", id);
    else
        rc = apply->command->data_loss ? 0 : check_spare(apply, node->id);
    if (rc != 0)
        return rc;
    node->flags = (node->flags & NODE_WITNESS) | NODE_GONE;
    cluster_groups_node_lost(state, node->id);
    apply->result->id = node->id;
    return 0;
}
