/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups: which nodes have the extents in them, and which of these are whole. What the
 * rules are for: whoever is whole has everything that was ever acknowledged in the group,
 * and somebody is. doc/cluster.md, "Groups", has the argument.
 */
#include "replication/cluster_internal.h"

/* --- looking --- */

struct cluster_group *cluster_group_find(struct cluster_state *state, uint16_t id)
{
    return id >= 1 && id <= state->group_count ? &state->groups[id - 1] : NULL;
}

const struct cluster_group *cluster_group_by_id(const struct cluster_state *state,
                                                uint16_t id)
{
    return id >= 1 && id <= state->group_count ? &state->groups[id - 1] : NULL;
}

const struct cluster_group *cluster_group_next(const struct cluster_state *state,
                                               const struct cluster_group *group)
{
    uint32_t next = group == NULL ? 0 : group->id;
    return next < state->group_count ? &state->groups[next] : NULL;
}

uint32_t cluster_group_count(const struct cluster_state *state)
{
    return state->group_count;
}

static struct group_member *member_find(struct cluster_group *group, uint64_t node)
{
    for (unsigned i = 0; i < group->member_count; i++) {
        if (group->members[i].node == node)
            return &group->members[i];
    }
    return NULL;
}

const struct group_member *cluster_group_member(const struct cluster_group *group,
                                                uint64_t node)
{
    for (unsigned i = 0; i < group->member_count; i++) {
        if (group->members[i].node == node)
            return &group->members[i];
    }
    return NULL;
}

uint32_t cluster_group_whole_count(const struct cluster_group *group)
{
    uint32_t count = 0;
    for (unsigned i = 0; i < group->member_count; i++)
        count += group->members[i].missing_since == 0;
    return count;
}

bool log_extent_has(const struct log_extent *extent, uint64_t node)
{
    for (unsigned i = 0; i < extent->member_count; i++) {
        if (extent->members[i] == node)
            return true;
    }
    return false;
}

/* --- changing --- */

struct cluster_group *cluster_group_append(struct cluster_state *state, uint32_t pool)
{
    state->groups = cluster_grow(state->groups, &state->group_cap, state->group_count + 1,
                                 sizeof *state->groups);
    struct cluster_group *group = &state->groups[state->group_count++];
    *group = (struct cluster_group){
        .id = (uint16_t)state->group_count, .pool = pool, .epoch = 1};
    return group;
}

/* One that was not whole is marked anew: what it lacked before may be there by now, but
 * not what it is about to lack. */
void cluster_groups_node_down(struct cluster_state *state, uint64_t node)
{
    for (uint32_t i = 0; i < state->group_count; i++) {
        struct cluster_group *group = &state->groups[i];
        struct group_member *member = member_find(group, node);
        if (member == NULL)
            continue;
        bool is_whole = member->missing_since == 0;
        if (cluster_group_whole_count(group) > (is_whole ? 1U : 0U))
            member->missing_since = state->applied;
    }
}

static void member_remove(struct cluster_group *group, struct group_member *member)
{
    const struct group_member *end = group->members + group->member_count;
    memmove(member, member + 1, (size_t)(end - member - 1) * sizeof *member);
    group->member_count--;
    group->members[group->member_count] = (struct group_member){.node = 0};
}

void cluster_groups_node_lost(struct cluster_state *state, uint64_t node)
{
    for (uint32_t i = 0; i < state->group_count; i++) {
        struct cluster_group *group = &state->groups[i];
        struct group_member *member = member_find(group, node);
        if (member == NULL)
            continue;
        member_remove(group, member);
        group->epoch++;
        if (cluster_group_whole_count(group) != 0)
            continue;
        for (unsigned j = 0; j < group->member_count; j++)
            group->members[j].missing_since = 0;
        if (group->member_count > 1)
            group->unsure_below = state->next_sequence;
    }
}

/* --- commands --- */

static int check_member(struct apply *apply, unsigned i)
{
    const struct cluster_command *command = apply->command;
    unsigned long long id = command->members[i];
    const struct cluster_node *node = cluster_node_by_id(apply->state, id);
    if (node == NULL || (node->flags & NODE_GONE))
        return apply_refuse(apply, -PLX_EPRECONDITION, "group: there is no node %llu",
                            id);
    if (node->flags & NODE_WITNESS)
        return apply_refuse(apply, -PLX_EPRECONDITION, "group: node %llu has no store",
                            id);
    for (unsigned j = 0; j < i; j++) {
        if (command->members[j] == id)
            return apply_refuse(apply, -EINVAL, "group: node %llu is named twice", id);
    }
    return 0;
}

/* Every one a node that may have data, and none of them twice. */
static int check_nodes(struct apply *apply)
{
    if (apply->command->member_count == 0)
        return apply_refuse(apply, -EINVAL, "a group without members");
    int rc = 0;
    for (unsigned i = 0; rc == 0 && i < apply->command->member_count; i++)
        rc = check_member(apply, i);
    return rc;
}

int apply_group_add(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    const struct cluster_command *command = apply->command;
    const struct cluster_pool *pool = apply_pool(apply, DEFAULT_POOL);
    if (pool == NULL)
        return -PLX_EMISSING;
    int rc = check_nodes(apply);
    if (rc != 0)
        return rc;
    uint32_t of_pool = 0;
    for (uint32_t i = 0; i < state->group_count; i++)
        of_pool += state->groups[i].pool == pool->id;
    if (of_pool >= POOL_GROUPS_MAX || state->group_count >= CLUSTER_GROUPS_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "pool %s: there are %u groups already",
                            pool->name, of_pool);
    struct cluster_group *group = cluster_group_append(state, pool->id);
    for (unsigned i = 0; i < command->member_count; i++)
        group->members[group->member_count++].node = command->members[i];
    apply->result->id = group->id;
    return 0;
}

/* The command's group. NULL: refused, there is no such. */
static struct cluster_group *group_there(struct apply *apply)
{
    struct cluster_group *group = cluster_group_find(apply->state, apply->command->group);
    if (group == NULL)
        apply_refuse(apply, -PLX_EMISSING, "there is no group %u", apply->command->group);
    return group;
}

static bool is_named(const struct cluster_command *command, uint64_t node)
{
    for (unsigned i = 0; i < command->member_count; i++) {
        if (command->members[i] == node)
            return true;
    }
    return false;
}

/* Who may leave. A group that lost all it had has nothing to keep. */
static int check_leaving(struct apply *apply, const struct cluster_group *group)
{
    const struct cluster_command *command = apply->command;
    uint64_t leaves = 0; /* a whole one that does */
    unsigned whole = 0;  /* that stay */
    if (planted(PLANT_LEAVES_EARLY))
        return 0;
    for (unsigned i = 0; i < group->member_count; i++) {
        const struct group_member *member = &group->members[i];
        bool stays = is_named(command, member->node);
        whole += stays && member->missing_since == 0;
        if (!stays && member->missing_since == 0)
            leaves = member->node;
    }
    if (group->member_count != 0 && whole == 0)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "group %u: no whole member would stay", group->id);
    if (leaves != 0 && whole < command->member_count)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "group %u: node %llu is whole, others are not", group->id,
                            (unsigned long long)leaves);
    return 0;
}

int apply_group_set(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    struct cluster_group *group = group_there(apply);
    if (group == NULL)
        return -PLX_EMISSING;
    if (command->number != group->epoch)
        return apply_refuse(
            apply, -PLX_EPRECONDITION, "group %u: its epoch is %llu, not %llu", group->id,
            (unsigned long long)group->epoch, (unsigned long long)command->number);
    int rc = check_nodes(apply);
    if (rc == 0)
        rc = check_leaving(apply, group);
    if (rc != 0)
        return rc;
    struct group_member members[REPLICAS_MAX] = {{0}};
    uint64_t missing = group->member_count == 0 ? 0 : apply->state->applied;
    for (unsigned i = 0; i < command->member_count; i++) {
        const struct group_member *member = member_find(group, command->members[i]);
        members[i].node = command->members[i];
        if (member == NULL && planted(PLANT_REJOINS_WHOLE))
            continue;
        members[i].missing_since = member == NULL ? missing : member->missing_since;
    }
    memcpy(group->members, members, sizeof members);
    group->member_count = command->member_count;
    group->epoch++;
    apply->result->id = group->id;
    apply->result->epoch = group->epoch;
    return 0;
}

/* An extent whose length is not final is nowhere but on its write set: nobody else can
 * have all of it. */
static const struct cluster_disk *open_without(const struct cluster_state *state,
                                               uint16_t group, uint64_t node)
{
    const struct cluster_disk *disk = NULL;
    while ((disk = cluster_disk_next(state, disk)) != NULL) {
        for (uint32_t i = 0; i < disk->extent_count; i++) {
            const struct log_extent *extent = &disk->extents[i];
            if (!extent->final && address_group(extent->extent) == group &&
                !log_extent_has(extent, node))
                return disk;
        }
    }
    return NULL;
}

int apply_group_whole(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    unsigned long long node = command->node;
    struct cluster_group *group = group_there(apply);
    if (group == NULL)
        return -PLX_EMISSING;
    struct group_member *member = member_find(group, command->node);
    if (member == NULL)
        return apply_refuse(apply, -PLX_EPRECONDITION, "group %u: node %llu is not in it",
                            group->id, node);
    if (member->missing_since != command->number)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "group %u: node %llu misses what came up to %llu", group->id,
                            node, (unsigned long long)member->missing_since);
    const struct cluster_disk *disk = open_without(apply->state, group->id,
                                                   command->node);
    if (disk != NULL && !planted(PLANT_WHOLE_EARLY))
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "group %u: disk %s writes to it without node %llu", group->id,
                            disk->name, node);
    member->missing_since = 0;
    apply->result->id = group->id;
    return 0;
}

/* --- opening extents --- */

/* How many members an extent of the group must have. */
static unsigned least_members(const struct apply *apply,
                              const struct cluster_group *group)
{
    const struct cluster_pool *pool = cluster_pool_by_id(apply->state, group->pool);
    return min_u32(pool->min_copies, group->member_count);
}

static int check_write_set(struct apply *apply, const struct cluster_group *group)
{
    const struct cluster_command *command = apply->command;
    const char *name = apply->disk->name;
    unsigned whole = 0;
    for (unsigned i = 0; i < command->member_count; i++) {
        unsigned long long node = command->members[i];
        const struct group_member *member = cluster_group_member(group, node);
        if (member == NULL)
            return apply_refuse(apply, -PLX_EPRECONDITION,
                                "disk %s: node %llu is not in group %u", name, node,
                                group->id);
        whole += member->missing_since == 0;
    }
    if (whole == 0)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: no whole member of group %u would be left", name,
                            group->id);
    if (command->member_count < least_members(apply, group))
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: %u members of group %u, at least %u are needed",
                            name, command->member_count, group->id,
                            least_members(apply, group));
    return 0;
}

int apply_check_open_group(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    const char *name = apply->disk->name;
    const struct cluster_group *group = group_there(apply);
    if (group == NULL)
        return -PLX_EMISSING;
    if (group->pool != apply->disk->pool)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: is in pool %u, group %u is not", name,
                            apply->disk->pool, group->id);
    if (group->epoch != command->group_epoch)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: group %u has epoch %llu, not %llu", name, group->id,
                            (unsigned long long)group->epoch,
                            (unsigned long long)command->group_epoch);
    return check_write_set(apply, group);
}

void apply_mark_left_out(struct apply *apply)
{
    struct cluster_group *group = cluster_group_find(apply->state, apply->command->group);
    for (unsigned i = 0; i < group->member_count; i++) {
        if (!is_named(apply->command, group->members[i].node) &&
            !planted(PLANT_STALE_WHOLE))
            group->members[i].missing_since = apply->state->applied;
    }
    assert(cluster_group_whole_count(group) != 0);
}
