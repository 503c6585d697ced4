/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many memberships of a pool each node has and should have.
 *
 * A node's share follows its capacity, as far as it can: no domain can have more than one
 * member of each group, so a large one has that many, and the others share the rest.
 *
 * What counts is what each node will have when all that is under way is done: a group
 * that has a member too many will lose one, and which one is decided here, the same each
 * time.
 */
#include "replication/placement_internal.h"

#define WEIGHT_MAX 65536U

struct placement_node *placement_node(const struct placement *p, uint64_t id)
{
    const struct cluster_node *node = cluster_node_by_id(p->state, id);
    assert(node != NULL);
    return &p->nodes[node - p->state->nodes];
}

struct placement_node *placement_member(const struct placement *p,
                                        const struct cluster_group *group, unsigned i)
{
    return &p->nodes[p->members[(group->id - 1U) * REPLICAS_MAX + i]];
}

bool placement_has_domain(const struct placement *p, const struct cluster_group *group,
                          uint32_t domain, uint64_t but)
{
    for (unsigned i = 0; i < group->member_count; i++) {
        const struct placement_node *node = placement_member(p, group, i);
        if (node->counts && node->domain == domain && node->node->id != but)
            return true;
    }
    return false;
}

struct placement_count placement_count(const struct placement *p,
                                       const struct cluster_group *group, bool whole_only)
{
    struct placement_count count = {0, 0};
    uint32_t seen[REPLICAS_MAX];
    for (unsigned i = 0; i < group->member_count; i++) {
        const struct placement_node *node = placement_member(p, group, i);
        if (!node->counts || (whole_only && group->members[i].missing_since != 0))
            continue;
        bool is_new = true;
        for (uint32_t j = 0; j < count.domains; j++)
            is_new = is_new && seen[j] != node->domain;
        if (is_new)
            seen[count.domains++] = node->domain;
        count.members++;
    }
    return count;
}

void placement_pair(struct placement *p, const struct placement_node *node)
{
    for (uint32_t i = 0; i < p->state->group_count; i++) {
        const struct cluster_group *group = &p->state->groups[i];
        if (group->pool != p->pool->id ||
            cluster_group_member(group, node->node->id) == NULL)
            continue;
        for (unsigned j = 0; j < group->member_count; j++)
            placement_member(p, group, j)->pairs++;
    }
}

void placement_pair_none(struct placement *p)
{
    for (uint32_t i = 0; i < p->node_count; i++)
        p->nodes[i].pairs = 0;
}

/* --- nodes --- */

static bool is_avoided(const struct placement *p, uint64_t id)
{
    for (uint32_t i = 0; i < p->options.avoid_count; i++) {
        if (p->options.avoid[i] == id)
            return true;
    }
    return false;
}

static void index_members(struct placement *p)
{
    p->members = cluster_alloc((p->state->group_count + 1) * REPLICAS_MAX *
                               sizeof *p->members);
    for (uint32_t i = 0; i < p->state->group_count; i++) {
        const struct cluster_group *group = &p->state->groups[i];
        for (unsigned j = 0; j < group->member_count; j++) {
            const struct placement_node *node = placement_node(p, group->members[j].node);
            p->members[i * REPLICAS_MAX + j] = (uint16_t)(node - p->nodes);
        }
    }
}

/* Those that have not said how large they are count as an average one. */
static void weigh_nodes(struct placement *p)
{
    uint64_t largest = 0, sum = 0, known = 0;
    for (uint32_t i = 0; i < p->node_count; i++) {
        if (p->nodes[i].counts)
            largest = max_u64(largest, p->nodes[i].node->capacity_bytes);
    }
    uint64_t unit = largest / WEIGHT_MAX + 1;
    for (uint32_t i = 0; i < p->node_count; i++) {
        uint64_t capacity = p->nodes[i].node->capacity_bytes;
        if (!p->nodes[i].counts || capacity == 0)
            continue;
        p->nodes[i].weight = (uint32_t)max_u64(1, capacity / unit);
        sum += p->nodes[i].weight;
        known++;
    }
    for (uint32_t i = 0; i < p->node_count; i++) {
        if (p->nodes[i].weight == 0)
            p->nodes[i].weight = known == 0 ? 1 : (uint32_t)(sum / known);
    }
}

static void count_recovering(struct placement *p)
{
    for (uint32_t i = 0; i < p->state->group_count; i++) {
        const struct cluster_group *group = &p->state->groups[i];
        for (unsigned j = 0; j < group->member_count; j++) {
            struct placement_node *node = placement_member(p, group, j);
            if (group->members[j].missing_since != 0 &&
                cluster_node_is_usable(node->node))
                node->recovering++;
        }
    }
    for (uint32_t i = 0; i < p->node_count; i++)
        p->recovering += min_u32(p->nodes[i].recovering, p->options.node_recovering_max);
}

void placement_init(struct placement *p, const struct cluster_state *state,
                    const struct placement_options *options)
{
    *p = (struct placement){.state = state, .options = *options};
    if (p->options.recovering_max == 0)
        p->options.recovering_max = PLACEMENT_RECOVERING;
    if (p->options.node_recovering_max == 0)
        p->options.node_recovering_max = PLACEMENT_NODE_RECOVERING;
    p->node_count = state->node_count;
    p->nodes = cluster_alloc((p->node_count + 1) * sizeof *p->nodes);
    p->victims = cluster_alloc((state->group_count + 1) * sizeof *p->victims);
    for (uint32_t i = 0; i < p->node_count; i++) {
        struct placement_node *node = &p->nodes[i];
        node->node = &state->nodes[i];
        unsigned flags = node->node->flags;
        node->counts = (flags & ~(unsigned)NODE_DOWN) == 0;
        node->takes = flags == 0 && !is_avoided(p, node->node->id);
        p->taking += node->takes;
    }
    weigh_nodes(p);
    index_members(p);
    count_recovering(p);
}

void placement_done(struct placement *p)
{
    free(p->nodes);
    free(p->members);
    free(p->victims);
}

/* --- domains --- */

static int by_domain(const void *a, const void *b)
{
    const struct placement_node *const *left = a, *const *right = b;
    int order = strcmp((*left)->node->domain, (*right)->node->domain);
    if (order != 0)
        return order;
    return (*left)->node->id < (*right)->node->id ? -1 : 1;
}

/* Numbers the domains from 0. A node without a name for its own is a domain, and so is
 * every node if the pool does not look at them. */
static void number_domains(struct placement *p)
{
    bool by_name = (p->pool->flags & POOL_BY_DOMAIN) != 0;
    struct placement_node **sorted = cluster_alloc((p->node_count + 1) * sizeof *sorted);
    for (uint32_t i = 0; i < p->node_count; i++)
        sorted[i] = &p->nodes[i];
    qsort(sorted, p->node_count, sizeof *sorted, by_domain);
    uint32_t number = 0;
    bool has_counting = false, has_member = false; /* of the domain at hand */
    p->domains = p->all_domains = 0;
    for (uint32_t i = 0; i < p->node_count; i++) {
        struct placement_node *node = sorted[i];
        const char *name = node->node->domain;
        bool is_same = by_name && i > 0 && name[0] != '\0' &&
                       strcmp(sorted[i - 1]->node->domain, name) == 0;
        if (i > 0 && !is_same) {
            number++;
            has_counting = has_member = false;
        }
        node->domain = number;
        unsigned gone = NODE_GONE | NODE_WITNESS | NODE_DRAINING;
        p->domains += node->counts && !has_counting;
        p->all_domains += (node->node->flags & gone) == 0 && !has_member;
        has_counting = has_counting || node->counts;
        has_member = has_member || (node->node->flags & gone) == 0;
    }
    free(sorted);
}

/* --- shares --- */

struct domain_share {
    uint64_t weight;
    uint64_t parts; /* its share */
    bool is_full;   /* it has a member of each group */
};

/* Gives every domain its share of `parts`, none more than `most`. */
static void share_out(struct domain_share *shares, uint32_t count, uint64_t parts,
                      uint64_t most)
{
    bool again = true;
    while (again) {
        uint64_t left = parts, weights = 0;
        for (uint32_t i = 0; i < count; i++) {
            left -= shares[i].is_full ? min_u64(left, most) : 0;
            weights += shares[i].is_full ? 0 : shares[i].weight;
        }
        again = false;
        for (uint32_t i = 0; i < count; i++) {
            struct domain_share *share = &shares[i];
            if (share->weight == 0)
                continue;
            share->parts = share->is_full ? most : left * share->weight / weights;
            if (share->parts > most)
                again = share->is_full = true;
        }
    }
}

/* Sets every node's excess to less its share. */
static void take_shares_off(struct placement *p)
{
    struct domain_share *shares = cluster_alloc((p->node_count + 1) * sizeof *shares);
    for (uint32_t i = 0; i < p->node_count; i++) {
        if (p->nodes[i].counts)
            shares[p->nodes[i].domain].weight += p->nodes[i].weight;
    }
    uint64_t most = (uint64_t)p->group_count * PARTS;
    share_out(shares, p->node_count, most * p->wanted, most);
    for (uint32_t i = 0; i < p->node_count; i++) {
        struct placement_node *node = &p->nodes[i];
        const struct domain_share *share = &shares[node->domain];
        node->excess = 0;
        if (node->counts)
            node->excess = -(int64_t)(share->parts * node->weight / share->weight);
    }
    free(shares);
}

/* --- who leaves where there are too many --- */

bool placement_may_spare(const struct placement *p, const struct cluster_group *group,
                         unsigned i)
{
    const struct placement_node *node = placement_member(p, group, i);
    return node->counts && (placement_count(p, group, false).domains > p->wanted ||
                            placement_has_domain(p, group, node->domain, node->node->id));
}

/* The first that may: whoever adds one for another puts that one first. */
static uint64_t choose_victim(const struct placement *p,
                              const struct cluster_group *group)
{
    for (unsigned i = 0; i < group->member_count; i++) {
        if (placement_may_spare(p, group, i))
            return group->members[i].node;
    }
    return 0;
}

static void count_newest(struct placement *p)
{
    uint32_t before = 0;
    for (uint32_t i = 0; i < p->node_count; i++) {
        p->nodes[i].newest = 0;
        if (p->nodes[i].counts)
            before = (uint32_t)max_u64(before, p->nodes[i].node->groups_before);
    }
    for (uint32_t i = before; i < p->state->group_count; i++) {
        const struct cluster_group *group = &p->state->groups[i];
        for (unsigned j = 0; group->pool == p->pool->id && j < group->member_count; j++)
            placement_member(p, group, j)->newest++;
    }
}

void placement_see_pool(struct placement *p, const struct cluster_pool *pool)
{
    p->pool = pool;
    number_domains(p);
    p->wanted = min_u32(pool->copies, p->domains);
    p->wanted_once = min_u32(pool->copies, p->all_domains);
    p->group_count = 0;
    for (uint32_t i = 0; i < p->state->group_count; i++)
        p->group_count += p->state->groups[i].pool == pool->id;
    take_shares_off(p);
    count_newest(p);
    for (uint32_t i = 0; i < p->state->group_count; i++) {
        const struct cluster_group *group = &p->state->groups[i];
        if (group->pool != pool->id)
            continue;
        for (unsigned j = 0; j < group->member_count; j++)
            placement_member(p, group, j)->excess += PARTS;
    }
    for (uint32_t i = 0; i < p->state->group_count; i++) {
        const struct cluster_group *group = &p->state->groups[i];
        p->victims[i] = 0;
        if (group->pool != pool->id ||
            placement_count(p, group, false).members <= p->wanted)
            continue;
        p->victims[i] = choose_victim(p, group);
        if (p->victims[i] != 0)
            placement_node(p, p->victims[i])->excess -= PARTS;
    }
}
