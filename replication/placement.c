/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The next step towards groups that are where they should be.
 *
 * Happy path: a group that lacks a member gets one; that one recovers; a member that is
 * one too many leaves. Balance is the same: a member comes, and then another goes.
 *
 * What can fail: nothing here. A step that the state refuses is one of a state that is no
 * more, and the next is thought of anew. A member that never gets whole holds up its
 * group, and others of its node, but not those of others.
 */
#include "replication/placement_internal.h"

static bool is_member(const struct cluster_group *group, uint64_t node)
{
    return cluster_group_member(group, node) != NULL;
}

static void propose_members(const struct cluster_group *group,
                            struct cluster_command *ret)
{
    *ret = (struct cluster_command){
        .op = CLUSTER_GROUP_SET, .group = group->id, .number = group->epoch};
}

/* The members of the group, but not `leaves`. */
static void propose_without(const struct cluster_group *group, uint64_t leaves,
                            struct cluster_command *ret)
{
    propose_members(group, ret);
    for (unsigned i = 0; i < group->member_count; i++) {
        if (group->members[i].node != leaves)
            ret->members[ret->member_count++] = group->members[i].node;
    }
}

/* The members of the group, `first` (0: nobody) before all others, and one that comes. */
static void propose_with(const struct cluster_group *group, uint64_t first,
                         uint64_t comes, struct cluster_command *ret)
{
    assert(group->member_count < REPLICAS_MAX);
    propose_members(group, ret);
    if (first != 0)
        ret->members[ret->member_count++] = first;
    for (unsigned i = 0; i < group->member_count; i++) {
        if (group->members[i].node != first)
            ret->members[ret->member_count++] = group->members[i].node;
    }
    ret->members[ret->member_count++] = comes;
}

/* --- members that leave --- */

/* Would the state let it go? */
static bool may_leave(const struct cluster_group *group,
                      const struct group_member *leaves)
{
    unsigned whole = 0, stay = group->member_count - 1U;
    if (planted(PLANT_LEAVES_EARLY))
        return true;
    for (unsigned i = 0; i < group->member_count; i++)
        whole += &group->members[i] != leaves && group->members[i].missing_since == 0;
    return whole != 0 && (leaves->missing_since != 0 || whole == stay);
}

static bool has_draining(const struct placement *p, const struct cluster_group *group)
{
    for (unsigned i = 0; i < group->member_count; i++) {
        if (placement_member(p, group, i)->node->flags & NODE_DRAINING)
            return true;
    }
    return false;
}

/* Where members were taken for whole each may have what no other one has. Whoever is out
 * of reach, and so is not whole any more, stays until it is back, or declared lost. One
 * that counts as whole goes: without it nothing in the group could be trimmed. */
static bool is_waited_for(const struct placement *p, const struct cluster_group *group,
                          const struct group_member *member)
{
    return group->unsure_below != 0 && member->missing_since != 0 &&
           !cluster_node_is_usable(placement_node(p, member->node)->node);
}

/*
 * A member whose node is out or drained goes once there are enough others. Whoever is out
 * may come back with all it has, so it is kept while there is nobody to take its place,
 * unless it keeps a drained one from leaving; or takes the room for the one to come.
 */
static const struct group_member *choose_leaving(const struct placement *p,
                                                 const struct cluster_group *group)
{
    uint32_t others = placement_count(p, group, true).domains;
    uint32_t enough = has_draining(p, group) ? p->wanted : p->wanted_once;
    bool has_room = group->member_count < REPLICAS_MAX;
    const struct group_member *leaving = NULL;
    for (unsigned i = 0; i < group->member_count; i++) {
        const struct group_member *member = &group->members[i];
        bool is_whole = member->missing_since == 0;
        if (placement_node(p, member->node)->counts || !may_leave(group, member) ||
            (others < enough && (has_room || is_whole)) ||
            (has_room && is_waited_for(p, group, member)))
            continue;
        if (leaving == NULL || !is_whole)
            leaving = member;
    }
    return leaving;
}

/* May it go now? Enough others must be whole. */
static bool may_spare_now(const struct placement *p, const struct cluster_group *group,
                          unsigned i)
{
    const struct group_member *member = &group->members[i];
    uint32_t whole = placement_count(p, group, true).members;
    return placement_may_spare(p, group, i) && may_leave(group, member) &&
           (member->missing_since == 0 || whole >= p->wanted ||
            planted(PLANT_LEAVES_EARLY));
}

/*
 * The one that is too many, if it may go now. It is the one that was to, unless there is
 * more to be had by another: that makes the distribution better than it was thought to
 * become, so it cannot go in circles.
 */
static const struct group_member *choose_surplus(const struct placement *p,
                                                 const struct cluster_group *group)
{
    uint64_t victim = p->victims[group->id - 1];
    if (victim == 0)
        return NULL;
    const struct group_member *leaves = cluster_group_member(group, victim);
    int64_t most = placement_node(p, victim)->excess + PARTS;
    if (!may_spare_now(p, group, (unsigned)(leaves - group->members)))
        leaves = NULL;
    for (unsigned i = 0; i < group->member_count; i++) {
        int64_t excess = placement_member(p, group, i)->excess;
        if (excess <= most || !may_spare_now(p, group, i))
            continue;
        leaves = &group->members[i];
        most = excess;
    }
    return leaves;
}

static bool propose_leave(const struct placement *p, const struct cluster_group *group,
                          struct cluster_command *ret)
{
    if (p->wanted == 0 || group->member_count < 2)
        return false;
    const struct group_member *leaves = choose_leaving(p, group);
    if (leaves == NULL)
        leaves = choose_surplus(p, group);
    if (leaves == NULL)
        return false;
    propose_without(group, leaves->node, ret);
    return true;
}

/* --- members that come --- */

static bool is_busy(const struct placement *p, const struct placement_node *node)
{
    return node->recovering >= p->options.node_recovering_max;
}

/* May the node be a member beside the others, once `leaves` (0: nobody) is gone? */
static bool fits(const struct placement *p, const struct cluster_group *group,
                 const struct placement_node *node, uint64_t leaves)
{
    return node->takes && !is_member(group, node->node->id) &&
           !placement_has_domain(p, group, node->domain, leaves);
}

static bool has_less(const struct placement_node *node, const struct placement_node *best)
{
    return node->excess != best->excess ? node->excess < best->excess
                                        : node->pairs < best->pairs;
}

/* The node that has the least of those that fit. If it is busy, another that has less
 * than its share will do; if there is none it is worth waiting. NULL: nobody, now;
 * *ret_waits is set if there is somebody to wait for. */
static const struct placement_node *choose_member(const struct placement *p,
                                                  const struct cluster_group *group,
                                                  bool *ret_waits)
{
    const struct placement_node *best = NULL, *idle = NULL;
    for (uint32_t i = 0; i < p->node_count; i++) {
        const struct placement_node *node = &p->nodes[i];
        if (!fits(p, group, node, 0))
            continue;
        if (best == NULL || has_less(node, best))
            best = node;
        if (!is_busy(p, node) && (idle == NULL || has_less(node, idle)))
            idle = node;
    }
    if (best == NULL)
        return NULL;
    if (idle != NULL && (idle->excess <= best->excess || idle->excess < 0))
        return idle;
    *ret_waits = true;
    return NULL;
}

/* Somebody whole must be in reach, to copy from. */
static bool has_source(const struct placement *p, const struct cluster_group *group)
{
    for (unsigned i = 0; i < group->member_count; i++) {
        const struct placement_node *node = placement_member(p, group, i);
        if (group->members[i].missing_since == 0 && cluster_node_is_usable(node->node))
            return true;
    }
    return false;
}

/* *ret_waits: nothing can be done yet, but it is to be. */
static bool propose_repair(struct placement *p, struct cluster_command *ret,
                           bool *ret_waits)
{
    const struct cluster_group *lacking = NULL;
    uint32_t fewest = UINT32_MAX;
    if (p->recovering >= p->options.recovering_max)
        return false;
    for (uint32_t i = 0; i < p->state->group_count; i++) {
        const struct cluster_group *group = &p->state->groups[i];
        if (group->pool != p->pool->id || group->member_count >= REPLICAS_MAX ||
            placement_count(p, group, false).domains >= p->wanted ||
            !has_source(p, group))
            continue;
        uint32_t whole = cluster_group_whole_count(group);
        if (whole >= fewest)
            continue;
        if (choose_member(p, group, ret_waits) == NULL)
            continue;
        fewest = whole;
        lacking = group;
    }
    if (lacking == NULL)
        return false;
    placement_pair_none(p);
    for (unsigned i = 0; i < lacking->member_count; i++)
        placement_pair(p, placement_member(p, lacking, i));
    const struct placement_node *comes = choose_member(p, lacking, ret_waits);
    placement_pair_none(p);
    propose_with(lacking, 0, comes->node->id, ret);
    return true;
}

/* Which of two nodes is the better one for a new group: that which is in fewer of the
 * groups made since the last node came, for its size. So new groups are spread over all
 * nodes, those that are full of old ones as well: were they all put on nodes that just
 * came, these would get all that is written from now on, and nothing of what there is. */
static bool is_better(const struct placement_node *node,
                      const struct placement_node *best)
{
    uint64_t left = (uint64_t)(node->newest + 1) * best->weight;
    uint64_t right = (uint64_t)(best->newest + 1) * node->weight;
    if (left != right)
        return left < right;
    return node->pairs != best->pairs ? node->pairs < best->pairs
                                      : node->excess < best->excess;
}

/* As many nodes as a group should have, each in a domain of its own. False: there are not
 * so many that take something. */
static bool choose_members(struct placement *p, struct cluster_command *ret)
{
    const struct placement_node *chosen[REPLICAS_MAX];
    ret->member_count = 0;
    placement_pair_none(p);
    while (ret->member_count < p->wanted) {
        const struct placement_node *best = NULL;
        for (uint32_t i = 0; i < p->node_count; i++) {
            const struct placement_node *node = &p->nodes[i];
            bool is_good = node->takes && (best == NULL || is_better(node, best));
            for (unsigned j = 0; is_good && j < ret->member_count; j++)
                is_good = chosen[j]->domain != node->domain;
            if (is_good)
                best = node;
        }
        if (best == NULL)
            return false;
        placement_pair(p, best);
        chosen[ret->member_count] = best;
        ret->members[ret->member_count++] = best->node->id;
    }
    return ret->member_count != 0;
}

/* For a group that lost all it had: as many as there are, for it is better than none. */
static bool propose_fill(struct placement *p, const struct cluster_group *group,
                         struct cluster_command *ret)
{
    propose_members(group, ret);
    return choose_members(p, ret) || ret->member_count != 0;
}

/* For nodes that can have their part of it: one that has joined and is not up yet is
 * waited for, or all the new groups would be on the others. */
static bool propose_group(struct placement *p, struct cluster_command *ret)
{
    if (p->wanted == 0)
        return false;
    uint64_t memberships = (uint64_t)p->taking * PLACEMENT_NODE_GROUPS;
    uint64_t groups = min_u64(div_up_u64(memberships, p->wanted), POOL_GROUPS_MAX);
    if (p->group_count >= groups || p->state->group_count >= CLUSTER_GROUPS_MAX)
        return false;
    *ret = (struct cluster_command){.op = CLUSTER_GROUP_ADD, .pool = p->pool->id};
    return choose_members(p, ret);
}

/* --- balance --- */

/* Nodes for which a move is sought before it is left for another time. */
#define SEEK_MAX 8U

/* All there, all whole, none too many: one that can be changed for balance. */
static bool is_settled(const struct placement *p, const struct cluster_group *group)
{
    return group->member_count == p->wanted && has_source(p, group) &&
           placement_count(p, group, true).domains == p->wanted;
}

struct move {
    const struct cluster_group *group;
    const struct placement_node *comes, *goes;
    int64_t gain;   /* in parts of a membership, beyond what would change nothing */
    bool is_old;    /* the group was there before the node: there is more in it */
    uint32_t pairs; /* that there are already of what would be together */
};

static bool is_better_move(const struct move *move, const struct move *best)
{
    if (move->gain != best->gain)
        return move->gain > best->gain;
    if (move->is_old != best->is_old)
        return move->is_old;
    return best->group != NULL && move->pairs < best->pairs;
}

/* The best move of a member to this node. */
static void seek_move(struct placement *p, const struct placement_node *comes,
                      struct move *best)
{
    placement_pair_none(p);
    placement_pair(p, comes);
    for (uint32_t i = 0; i < p->state->group_count; i++) {
        const struct cluster_group *group = &p->state->groups[i];
        if (group->pool != p->pool->id || is_member(group, comes->node->id))
            continue;
        uint32_t pairs = 0;
        for (unsigned j = 0; j < group->member_count; j++)
            pairs += placement_member(p, group, j)->pairs;
        for (unsigned j = 0; j < group->member_count; j++) {
            const struct placement_node *goes = placement_member(p, group, j);
            struct move move = {.group = group,
                                .comes = comes,
                                .goes = goes,
                                .gain = goes->excess - comes->excess - PARTS,
                                .is_old = group->id <= comes->node->groups_before,
                                .pairs = pairs - goes->pairs};
            if (move.gain > 0 && is_better_move(&move, best) &&
                fits(p, group, comes, goes->node->id) && is_settled(p, group))
                *best = move;
        }
    }
}

/* The next node after `last` (NULL: the first) in the order of how little it has. */
static const struct placement_node *next_least(const struct placement *p,
                                               const struct placement_node *last)
{
    const struct placement_node *least = NULL;
    for (uint32_t i = 0; i < p->node_count; i++) {
        const struct placement_node *node = &p->nodes[i];
        bool is_later = last == NULL || node->excess > last->excess ||
                        (node->excess == last->excess && node > last);
        if (node->takes && is_later && (least == NULL || node->excess < least->excess))
            least = node;
    }
    return least;
}

/* A member comes to a node that has little, for one of a node that has much, which stays
 * until that is whole. */
static bool propose_move(struct placement *p, struct cluster_command *ret)
{
    struct move best = {.gain = 0};
    int64_t most = INT64_MIN;
    const struct placement_node *least = NULL;
    if (p->recovering >= p->options.recovering_max || p->wanted == 0)
        return false;
    for (uint32_t i = 0; i < p->node_count; i++) {
        if (p->nodes[i].counts && p->nodes[i].excess > most)
            most = p->nodes[i].excess;
    }
    for (unsigned sought = 0; sought < SEEK_MAX && best.gain == 0;) {
        least = next_least(p, least);
        if (least == NULL || most - least->excess <= PARTS)
            break;
        if (is_busy(p, least))
            continue;
        seek_move(p, least, &best);
        sought++;
    }
    if (best.gain > 0)
        propose_with(best.group, best.goes->node->id, best.comes->node->id, ret);
    return best.gain > 0;
}

/* --- all together --- */

/* The most urgent step of the pool that is more urgent than `than`. */
static enum placement_reason pool_next(struct placement *p, enum placement_reason than,
                                       struct cluster_command *ret)
{
    bool any_leaves = false, waits = false;
    for (uint32_t i = 0; i < p->state->group_count; i++) {
        const struct cluster_group *group = &p->state->groups[i];
        if (group->pool != p->pool->id)
            continue;
        if (group->member_count == 0 && propose_fill(p, group, ret))
            return PLACEMENT_FILL;
        if (than > PLACEMENT_LEAVE && !any_leaves)
            any_leaves = propose_leave(p, group, ret);
    }
    if (any_leaves)
        return PLACEMENT_LEAVE;
    if (than > PLACEMENT_REPAIR && propose_repair(p, ret, &waits))
        return PLACEMENT_REPAIR;
    if (than > PLACEMENT_GROW && propose_group(p, ret))
        return PLACEMENT_GROW;
    /* What is lacking comes first; what is moved meanwhile might be moved back. */
    if (than > PLACEMENT_MOVE && !waits && propose_move(p, ret))
        return PLACEMENT_MOVE;
    return than;
}

enum placement_reason placement_next(const struct cluster_state *state,
                                     const struct placement_options *options,
                                     struct cluster_command *ret)
{
    struct placement p;
    enum placement_reason best = PLACEMENT_REASONS;
    placement_init(&p, state, options);
    for (uint32_t i = 0; i < state->pool_count && best > PLACEMENT_FILL; i++) {
        struct cluster_command command;
        placement_see_pool(&p, &state->pools[i]);
        enum placement_reason reason = pool_next(&p, best, &command);
        if (reason < best) {
            best = reason;
            *ret = command;
        }
    }
    placement_done(&p);
    return best == PLACEMENT_REASONS ? PLACEMENT_DONE : best;
}

uint32_t placement_wanted(const struct cluster_state *state,
                          const struct cluster_pool *pool)
{
    const struct placement_options options = {.recovering_max = 0};
    struct placement p;
    placement_init(&p, state, &options);
    placement_see_pool(&p, pool);
    uint32_t wanted = p.wanted;
    placement_done(&p);
    return wanted;
}
