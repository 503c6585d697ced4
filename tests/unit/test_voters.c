/* SPDX-License-Identifier: Apache-2.0 */
/* Who is made to vote, and who loses the vote: each change is carried out on paper, and
 * there is always a majority of those that vote; then nothing changes any more. */
#include "replication/voters.h"
#include "tests/unit/check.h"

#define NODES_MAX 12U

struct paper {
    struct voter voters[NODES_MAX]; /* node i at i - 1 */
    uint32_t count;
    uint64_t leader;
    uint32_t changes;
};

static struct voter *voter_of(struct paper *paper, uint64_t node)
{
    CHECK(node >= 1 && node <= paper->count);
    return &paper->voters[node - 1];
}

static uint32_t add(struct paper *paper, const char *domain)
{
    CHECK(paper->count < NODES_MAX);
    paper->voters[paper->count] = (struct voter){
        .node = paper->count + 1, .domain = domain, .is_up = true};
    return ++paper->count;
}

/* Node 1 alone, which votes and leads. */
static struct paper paper_create(const char *domain)
{
    struct paper paper = {.leader = 1};
    add(&paper, domain);
    paper.voters[0].is_member = true;
    paper.voters[0].role = CONSENSUS_VOTER;
    return paper;
}

static bool votes(const struct voter *voter)
{
    return voter->is_member && voter->role == CONSENSUS_VOTER;
}

static uint32_t vote_count(const struct paper *paper)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < paper->count; i++)
        count += votes(&paper->voters[i]);
    return count;
}

static bool has_majority(const struct paper *paper)
{
    uint32_t up = 0;
    for (uint32_t i = 0; i < paper->count; i++)
        up += votes(&paper->voters[i]) && paper->voters[i].is_up;
    return up > vote_count(paper) / 2;
}

static bool step(struct paper *paper)
{
    struct voters_change change = voters_next(paper->voters, paper->count, paper->leader);
    if (change.kind == VOTERS_DONE)
        return false;
    struct voter *voter = voter_of(paper, change.node);
    bool takes_vote = votes(voter) && change.kind != VOTERS_TRANSFER;
    CHECK(!takes_vote || voter->node != paper->leader);
    switch (change.kind) {
    case VOTERS_ADD:
        CHECK(!voter->is_member && !voter->is_gone);
        voter->is_member = true;
        voter->role = CONSENSUS_SPARE;
        break;
    case VOTERS_ROLE:
        CHECK(voter->is_member && voter->role != change.role);
        CHECK(change.role != CONSENSUS_VOTER || voter->is_up); /* it must catch up */
        voter->role = change.role;
        break;
    case VOTERS_REMOVE:
        CHECK(voter->is_member && voter->is_gone);
        voter->is_member = false;
        break;
    default:
        CHECK(votes(voter) && voter->is_up && voter->node != paper->leader);
        paper->leader = voter->node;
        break;
    }
    CHECK(has_majority(paper));
    paper->changes++;
    return true;
}

static void settle(struct paper *paper)
{
    paper->changes = 0;
    while (step(paper))
        CHECK(paper->changes < 100);
    for (uint32_t i = 0; i < paper->count; i++) {
        const struct voter *voter = &paper->voters[i];
        if (!voter->is_gone)
            CHECK(voter->is_member && voter->role != CONSENSUS_SPARE);
    }
}

static void test_sizes(void)
{
    static const uint8_t VOTERS[] = {1, 2, 3, 3, 3, 3, 5, 5, 5, 5};
    struct paper paper = paper_create("");
    for (unsigned i = 0; i < ARRAY_LEN(VOTERS); i++) {
        settle(&paper);
        CHECK_EQ(vote_count(&paper), VOTERS[i]);
        CHECK_EQ(paper.leader, 1);
        add(&paper, "");
    }
    /* And back: nodes are removed, those that vote first. */
    for (uint64_t node = 2; node < paper.count - 1; node++) {
        voter_of(&paper, node)->is_gone = true;
        settle(&paper);
        CHECK(!voter_of(&paper, node)->is_member);
    }
    CHECK_EQ(vote_count(&paper), 3);
}

/* Votes follow neither a restart nor the order of names, only what lasts. */
static void test_bad(void)
{
    struct paper paper = paper_create("");
    for (unsigned i = 0; i < 3; i++)
        add(&paper, "");
    settle(&paper);
    CHECK(votes(voter_of(&paper, 2)) && votes(voter_of(&paper, 3)));
    voter_of(&paper, 2)->is_up = false;
    settle(&paper);
    CHECK_EQ(paper.changes, 0);
    voter_of(&paper, 2)->is_bad = true;
    settle(&paper);
    CHECK(!votes(voter_of(&paper, 2)) && votes(voter_of(&paper, 4)));
    CHECK_EQ(paper.changes, 2);
    voter_of(&paper, 2)->is_bad = false;
    voter_of(&paper, 2)->is_up = true;
    settle(&paper);
    CHECK_EQ(paper.changes, 0);
    /* Nobody to take its place: it keeps its vote, it may be back. */
    voter_of(&paper, 2)->is_up = false;
    voter_of(&paper, 3)->is_up = false;
    voter_of(&paper, 3)->is_bad = true;
    settle(&paper);
    CHECK_EQ(paper.changes, 0);
    /* Somebody, but he does not catch up. */
    voter_of(&paper, 2)->is_up = true;
    voter_of(&paper, 2)->may_not = true;
    settle(&paper);
    CHECK_EQ(paper.changes, 0);
    voter_of(&paper, 2)->may_not = false;
    settle(&paper);
    CHECK(votes(voter_of(&paper, 2)) && !votes(voter_of(&paper, 3)));
}

static void test_domains(void)
{
    struct paper paper = paper_create("a");
    add(&paper, "a");
    add(&paper, "a");
    add(&paper, "b");
    settle(&paper);
    CHECK(votes(voter_of(&paper, 1)) && votes(voter_of(&paper, 4)));
    CHECK_EQ(vote_count(&paper), 3);
    uint32_t third = add(&paper, "c");
    settle(&paper);
    CHECK(votes(voter_of(&paper, third)) && votes(voter_of(&paper, 4)));
    CHECK_EQ(vote_count(&paper), 3);
    add(&paper, "c");
    add(&paper, "");
    settle(&paper);
    CHECK_EQ(vote_count(&paper), 5);
    CHECK(votes(voter_of(&paper, 7))); /* a domain of its own */
}

/* A leader that is to have no vote hands over first. */
static void test_leader_leaves(void)
{
    struct paper paper = paper_create("");
    for (unsigned i = 0; i < 3; i++)
        add(&paper, "");
    settle(&paper);
    voter_of(&paper, 1)->is_draining = true;
    settle(&paper);
    CHECK(paper.leader != 1);
    CHECK(!votes(voter_of(&paper, 1)) && votes(voter_of(&paper, 4)));
    voter_of(&paper, 1)->is_gone = true;
    settle(&paper);
    CHECK(!voter_of(&paper, 1)->is_member);
    /* All but the leader are drained: they vote, there is nobody else. */
    for (uint64_t node = 2; node <= 4; node++)
        voter_of(&paper, node)->is_draining = node != paper.leader;
    settle(&paper);
    CHECK_EQ(vote_count(&paper), 3);
}

/* A majority is never given up, whatever is gone. */
static void test_majority(void)
{
    struct paper paper = paper_create("");
    for (unsigned i = 0; i < 6; i++)
        add(&paper, "");
    settle(&paper);
    CHECK_EQ(vote_count(&paper), 5);
    for (uint64_t node = 2; node <= 3; node++) {
        voter_of(&paper, node)->is_up = false;
        voter_of(&paper, node)->is_bad = true;
        voter_of(&paper, node)->is_gone = true;
    }
    settle(&paper);
    CHECK_EQ(vote_count(&paper), 3);
    CHECK(!voter_of(&paper, 2)->is_member && !voter_of(&paper, 3)->is_member);
    struct paper two = paper_create("");
    add(&two, "");
    settle(&two);
    voter_of(&two, 2)->is_up = false;
    voter_of(&two, 2)->is_bad = true;
    CHECK_EQ(voters_next(two.voters, two.count, 1).kind, VOTERS_DONE);
}

static void test_random(void)
{
    static const char *const DOMAINS[] = {"", "a", "b", "c"};
    uint64_t seed = 5;
    for (unsigned round = 0; round < 3000; round++) {
        struct paper paper = paper_create("a");
        for (unsigned event = 0; event < 30; event++) {
            seed = seed * 6364136223846793005 + 1442695040888963407;
            uint64_t node = 1 + (seed >> 33) % paper.count;
            unsigned what = (unsigned)(seed >> 50) % 7;
            struct voter *voter = voter_of(&paper, node);
            struct voter before = *voter;
            if (what == 0 && paper.count < NODES_MAX)
                add(&paper, DOMAINS[(seed >> 20) % 4]);
            else if (what == 1)
                voter->is_draining = !voter->is_draining;
            else if (what == 2 && node != paper.leader)
                voter->is_gone = true;
            else if (what == 3 && node != paper.leader)
                voter->is_up = false;
            else if (what == 4 && node != paper.leader && !voter->is_up)
                voter->is_bad = true;
            else if (what >= 5)
                voter->is_bad = !(voter->is_up = true);
            if (!has_majority(&paper))
                *voter = before;
            for (unsigned i = 0; i < (seed >> 60); i++)
                step(&paper);
        }
        for (uint32_t i = 0; i < paper.count; i++) {
            paper.voters[i].is_up = true;
            paper.voters[i].is_bad = paper.voters[i].is_draining = false;
        }
        settle(&paper);
        uint32_t nodes = 0;
        for (uint32_t i = 0; i < paper.count; i++)
            nodes += !paper.voters[i].is_gone;
        CHECK_EQ(vote_count(&paper), nodes >= 7 ? 5 : nodes >= 3 ? 3 : nodes);
    }
}

/* Another one leads if it hears more nodes, and can. */
static void test_better(void)
{
    struct paper paper = paper_create("");
    for (uint32_t i = 1; i < 5; i++)
        add(&paper, "");
    settle(&paper);
    CHECK(votes(voter_of(&paper, 2)) && votes(voter_of(&paper, 3)));
    CHECK_EQ(voters_better(paper.voters, paper.count, 1), 0);
    for (uint64_t node = 1; node <= 5; node++)
        voter_of(&paper, node)->hears = 4;
    CHECK_EQ(voters_better(paper.voters, paper.count, 1), 0);
    voter_of(&paper, 4)->hears = 5; /* has no vote */
    CHECK_EQ(voters_better(paper.voters, paper.count, 1), 0);
    voter_of(&paper, 1)->hears = 3;
    CHECK_EQ(voters_better(paper.voters, paper.count, 1), 2);
    voter_of(&paper, 3)->hears = 5;
    CHECK_EQ(voters_better(paper.voters, paper.count, 1), 3);
    voter_of(&paper, 3)->is_draining = true;
    CHECK_EQ(voters_better(paper.voters, paper.count, 1), 2);
    voter_of(&paper, 2)->is_up = false;
    CHECK_EQ(voters_better(paper.voters, paper.count, 1), 0);
}

int main(void)
{
    test_sizes();
    test_better();
    test_bad();
    test_domains();
    test_leader_leaves();
    test_majority();
    test_random();
    return 0;
}
