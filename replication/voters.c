/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who votes is chosen anew each time, and always the same as long as nothing changes:
 * the healthiest first; of these, one of a domain that has no vote yet; then the leader,
 * then one that votes already. Who is chosen and does not vote yet is made a voter first;
 * then whoever votes and is not chosen loses its vote. So there is one more for a while,
 * not one less.
 */
#include "replication/voters.h"

#include "replication/cluster_state.h"

#define VOTERS_MAX 5U

static bool votes(const struct voter *voter)
{
    return voter->is_member && voter->role == CONSENSUS_VOTER;
}

static uint32_t wanted_voters(const struct voter *voters, uint32_t count)
{
    uint32_t nodes = 0;
    for (uint32_t i = 0; i < count; i++)
        nodes += !voters[i].is_gone;
    return nodes >= 7 ? VOTERS_MAX : min_u32(nodes, 3);
}

/* The lower the better. A voter that is down for a moment is as good as one that is up:
 * votes must not follow every restart. */
static unsigned illness(const struct voter *voter)
{
    if (voter->is_bad)
        return 2;
    return voter->is_draining ? 1 : 0;
}

struct choice {
    const struct voter *chosen[VOTERS_MAX];
    uint32_t count;
};

static bool is_chosen(const struct choice *choice, const struct voter *voter)
{
    for (uint32_t i = 0; i < choice->count; i++) {
        if (choice->chosen[i] == voter)
            return true;
    }
    return false;
}

static bool has_domain(const struct choice *choice, const struct voter *voter)
{
    for (uint32_t i = 0; i < choice->count; i++) {
        if (voter->domain[0] != '\0' &&
            strcmp(choice->chosen[i]->domain, voter->domain) == 0)
            return true;
    }
    return false;
}

static bool is_better(const struct choice *choice, const struct voter *a,
                      const struct voter *b, uint64_t leader)
{
    if (illness(a) != illness(b))
        return illness(a) < illness(b);
    if (has_domain(choice, a) != has_domain(choice, b))
        return !has_domain(choice, a);
    if ((a->node == leader) != (b->node == leader))
        return a->node == leader;
    if (votes(a) != votes(b))
        return votes(a);
    return a->node < b->node;
}

static bool may_vote(const struct voter *voter)
{
    if (voter->is_gone)
        return false;
    return votes(voter) || (voter->is_up && !voter->is_bad && !voter->may_not);
}

static void choose(const struct voter *voters, uint32_t count, uint64_t leader,
                   struct choice *ret)
{
    uint32_t wanted = wanted_voters(voters, count);
    ret->count = 0;
    while (ret->count < wanted) {
        const struct voter *best = NULL;
        for (uint32_t i = 0; i < count; i++) {
            const struct voter *voter = &voters[i];
            if (may_vote(voter) && !is_chosen(ret, voter) &&
                (best == NULL || is_better(ret, voter, best, leader)))
                best = voter;
        }
        if (best == NULL)
            return;
        ret->chosen[ret->count++] = best;
    }
}

/* Is there a majority without it? */
static bool can_lose(const struct voter *voters, uint32_t count,
                     const struct voter *leaves)
{
    uint32_t all = 0, up = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (&voters[i] == leaves || !votes(&voters[i]))
            continue;
        all++;
        up += voters[i].is_up;
    }
    return all > 0 && up > all / 2;
}

static struct voters_change to_role(const struct voter *voter, enum consensus_role role)
{
    return (struct voters_change){.kind = VOTERS_ROLE, .node = voter->node, .role = role};
}

/* Everybody has the log, and nobody is left who is gone. */
static bool next_member(const struct voter *voters, uint32_t count,
                        struct voters_change *ret)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct voter *voter = &voters[i];
        if (!voter->is_gone && !voter->is_member)
            *ret = (struct voters_change){.kind = VOTERS_ADD, .node = voter->node};
        else if (!voter->is_gone && voter->role == CONSENSUS_SPARE)
            *ret = to_role(voter, CONSENSUS_STANDBY);
        else if (voter->is_gone && voter->is_member && !votes(voter))
            *ret = (struct voters_change){.kind = VOTERS_REMOVE, .node = voter->node};
        else
            continue;
        return true;
    }
    return false;
}

/* A leader cannot take its own vote; another one can. */
static bool next_transfer(const struct choice *choice, uint64_t leader,
                          struct voters_change *ret)
{
    for (uint32_t i = 0; i < choice->count; i++) {
        const struct voter *voter = choice->chosen[i];
        if (!votes(voter) || !voter->is_up || voter->node == leader)
            continue;
        *ret = (struct voters_change){.kind = VOTERS_TRANSFER, .node = voter->node};
        return true;
    }
    return false;
}

static bool next_loser(const struct voter *voters, uint32_t count,
                       const struct choice *choice, uint64_t leader,
                       struct voters_change *ret)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct voter *voter = &voters[i];
        if (!votes(voter) || is_chosen(choice, voter) || !can_lose(voters, count, voter))
            continue;
        if (voter->node == leader) {
            if (next_transfer(choice, leader, ret))
                return true;
            continue;
        }
        *ret = to_role(voter, CONSENSUS_STANDBY);
        if (voter->is_gone)
            *ret = (struct voters_change){.kind = VOTERS_REMOVE, .node = voter->node};
        return true;
    }
    return false;
}

struct voters_change voters_next(const struct voter *voters, uint32_t count,
                                 uint64_t leader)
{
    struct voters_change change = {.kind = VOTERS_DONE};
    struct choice choice;
    if (next_member(voters, count, &change))
        return change;
    choose(voters, count, leader, &choice);
    for (uint32_t i = 0; i < choice.count; i++) {
        if (!votes(choice.chosen[i]) && choice.chosen[i]->is_up)
            return to_role(choice.chosen[i], CONSENSUS_VOTER);
    }
    next_loser(voters, count, &choice, leader, &change);
    return change;
}

uint64_t voters_better(const struct voter *voters, uint32_t count, uint64_t leader)
{
    uint32_t most = UINT32_MAX;
    uint64_t better = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (voters[i].node == leader)
            most = voters[i].hears;
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct voter *voter = &voters[i];
        if (!votes(voter) || !voter->is_up || voter->is_gone || illness(voter) != 0 ||
            voter->hears <= most)
            continue;
        most = voter->hears;
        better = voter->node;
    }
    return better;
}
