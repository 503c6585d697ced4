/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clusters that grow, shrink and lose nodes, on paper: what the placement says is done,
 * and members get whole one after the other, in any order. Each step must be one that the
 * state takes, it must end, and not much more may be copied than had to be.
 */
#include <time.h>

#include "replication/placement.h"
#include "tests/unit/cluster_machine.h"

#define STEPS_MAX 20000U

struct paper {
    struct machine m;
    uint64_t seed;
    uint64_t added; /* members that came to be copied to */
    uint64_t by[PLACEMENT_REASONS];
    uint64_t avoid[4];
    uint32_t avoid_count;
    uint64_t stuck; /* a node where nothing gets whole; 0: none */
};

static uint64_t below(struct paper *paper, uint64_t n)
{
    paper->seed ^= paper->seed << 13; /* xorshift */
    paper->seed ^= paper->seed >> 7;
    paper->seed ^= paper->seed << 17;
    return (paper->seed >> 11) % n;
}

static struct paper paper_create(uint64_t seed)
{
    struct paper paper = {.m = machine_create(), .seed = seed * 0x9e3779b97f4a7c15 + 1};
    paper.m.quick = true;
    return paper;
}

static void paper_done(struct paper *paper)
{
    char text[200];
    if (cluster_state_check(paper->m.state, text, sizeof text) != 0) {
        fprintf(stderr, "inconsistent: %s\n", text);
        exit(1);
    }
    machine_done(&paper->m);
}

static void add_node(struct paper *paper, const char *domain, uint64_t capacity)
{
    struct uid store = {{0xab}};
    uint64_t salt = below(paper, UINT64_MAX);
    memcpy(store.b + 1, &salt, sizeof salt);
    CHECK_EQ(RUN(&paper->m, .op = CLUSTER_NODE_SET, .store = store, .new_name = domain,
                 .size_bytes = capacity),
             0);
}

/* The first node has no domain and no capacity otherwise. */
static void set_first(struct paper *paper, const char *domain, uint64_t capacity)
{
    CHECK_EQ(RUN(&paper->m, .op = CLUSTER_NODE_SET, .store = STORE, .new_name = domain,
                 .size_bytes = capacity),
             0);
}

static void set_flags(struct paper *paper, uint64_t node, unsigned flags)
{
    CHECK_EQ(RUN(&paper->m, .op = CLUSTER_NODE_STATE, .node = node,
                 .old_flags = cluster_node_by_id(paper->m.state, node)->flags,
                 .flags = flags),
             0);
}

/* --- what must hold; thought of here once more, and more simply --- */

static bool counts(const struct cluster_node *node)
{
    return (node->flags & ~(unsigned)NODE_DOWN) == 0;
}

static bool same_domain(const struct cluster_pool *pool, const struct cluster_node *a,
                        const struct cluster_node *b)
{
    if (a == b)
        return true;
    return (pool->flags & POOL_BY_DOMAIN) && a->domain[0] != '\0' &&
           strcmp(a->domain, b->domain) == 0;
}

static uint32_t wanted_copies(const struct cluster_state *state,
                              const struct cluster_pool *pool)
{
    uint32_t domains = 0;
    const struct cluster_node *node = NULL, *other = NULL;
    while ((node = cluster_node_next(state, node)) != NULL) {
        bool is_first = counts(node);
        for (other = cluster_node_next(state, NULL); other != node;
             other = cluster_node_next(state, other))
            is_first = is_first && !(counts(other) && same_domain(pool, node, other));
        domains += is_first;
    }
    return min_u32(domains, pool->copies);
}

/* Domains in which the group has a whole member that counts. */
static uint32_t whole_domains(const struct cluster_state *state,
                              const struct cluster_group *group)
{
    uint32_t domains = 0;
    const struct cluster_pool *pool = cluster_pool_by_id(state, group->pool);
    for (unsigned i = 0; i < group->member_count; i++) {
        const struct cluster_node *node = cluster_node_by_id(state,
                                                             group->members[i].node);
        bool is_first = counts(node) && group->members[i].missing_since == 0;
        for (unsigned j = 0; j < i; j++) {
            const struct cluster_node *other = cluster_node_by_id(state,
                                                                  group->members[j].node);
            is_first = is_first &&
                       !(counts(other) && group->members[j].missing_since == 0 &&
                         same_domain(pool, node, other));
        }
        domains += is_first;
    }
    return domains;
}

static uint32_t load_of(const struct cluster_state *state, uint64_t node)
{
    uint32_t load = 0;
    const struct cluster_group *group = NULL;
    while ((group = cluster_group_next(state, group)) != NULL)
        load += cluster_group_member(group, node) != NULL;
    return load;
}

static uint32_t lacking_on(const struct cluster_state *state, uint64_t node)
{
    uint32_t lacking = 0;
    const struct cluster_group *group = NULL;
    while ((group = cluster_group_next(state, group)) != NULL) {
        const struct group_member *member = cluster_group_member(group, node);
        lacking += member != NULL && member->missing_since != 0;
    }
    return lacking;
}

/* --- steps --- */

/* Runs what the placement says. False: it has nothing to say. */
static bool step(struct paper *paper, const struct placement_options *options)
{
    struct cluster_command command;
    const struct cluster_state *state = paper->m.state;
    enum placement_reason reason = placement_next(state, options, &command);
    if (reason == PLACEMENT_DONE)
        return false;
    paper->by[reason]++;
    uint32_t before = 0, wanted = 0;
    const struct cluster_group *group = cluster_group_by_id(state, command.group);
    if (group != NULL) {
        before = whole_domains(state, group);
        wanted = wanted_copies(state, cluster_pool_by_id(state, group->pool));
        paper->added += command.member_count > group->member_count &&
                        group->member_count != 0;
    }
    int rc = machine_run(&paper->m, &command);
    if (rc != 0)
        fprintf(stderr, "reason %d: %s\n", (int)reason, paper->m.result.text);
    CHECK_EQ(rc, 0);
    if (group == NULL)
        return true;
    group = cluster_group_by_id(state, command.group);
    uint32_t after = whole_domains(state, group);
    CHECK(after >= min_u32(before, wanted));
    return true;
}

static bool may_recover(const struct paper *paper, const struct cluster_group *group,
                        const struct group_member *member)
{
    const struct cluster_state *state = paper->m.state;
    bool has_source = false;
    for (unsigned i = 0; i < group->member_count; i++)
        has_source |= group->members[i].missing_since == 0 &&
                      cluster_node_is_usable(
                          cluster_node_by_id(state, group->members[i].node));
    return has_source && member->missing_since != 0 && member->node != paper->stuck &&
           cluster_node_is_usable(cluster_node_by_id(state, member->node));
}

/* One member that is not whole gets whole. False: there is none. */
static bool recover_one(struct paper *paper)
{
    const struct cluster_group *group = NULL;
    uint16_t chosen = 0;
    uint64_t node = 0, since = 0, n = 0;
    while ((group = cluster_group_next(paper->m.state, group)) != NULL) {
        for (unsigned i = 0; i < group->member_count; i++) {
            const struct group_member *member = &group->members[i];
            if (!may_recover(paper, group, member) || below(paper, ++n) != 0)
                continue;
            chosen = group->id;
            node = member->node;
            since = member->missing_since;
        }
    }
    if (chosen == 0)
        return false;
    CHECK_EQ(RUN(&paper->m, .op = CLUSTER_GROUP_WHOLE, .group = chosen, .node = node,
                 .number = since),
             0);
    return true;
}

static uint32_t recovering(const struct paper *paper)
{
    uint32_t count = 0;
    const struct cluster_group *group = NULL;
    while ((group = cluster_group_next(paper->m.state, group)) != NULL) {
        for (unsigned i = 0; i < group->member_count; i++)
            count += may_recover(paper, group, &group->members[i]);
    }
    return count;
}

/* Until there is nothing left to do; now and then a member gets whole meanwhile. */
static void settle(struct paper *paper)
{
    struct placement_options options = {.avoid = paper->avoid,
                                        .avoid_count = paper->avoid_count};
    for (uint32_t i = 0; i < STEPS_MAX; i++) {
        bool did = below(paper, 4) != 0 && step(paper, &options);
        if (!did && !recover_one(paper) && !step(paper, &options))
            return;
    }
    CHECK(0 && "it does not end");
}

/* Every group of the pool has what it should, where it should. */
static void check_settled(const struct paper *paper)
{
    const struct cluster_state *state = paper->m.state;
    const struct cluster_group *group = NULL;
    while ((group = cluster_group_next(state, group)) != NULL) {
        uint32_t wanted = wanted_copies(state, cluster_pool_by_id(state, group->pool));
        CHECK_EQ(whole_domains(state, group), wanted);
        CHECK_EQ(group->member_count, wanted);
    }
}

/* No node has much more or less than this per cent of what all have. */
static void check_load(const struct paper *paper, uint64_t node, double per_cent)
{
    uint64_t all = 0;
    const struct cluster_node *other = NULL;
    while ((other = cluster_node_next(paper->m.state, other)) != NULL)
        all += load_of(paper->m.state, other->id);
    double load = load_of(paper->m.state, node), share = (double)all * per_cent / 100;
    if (load < share - 1.5 || load > share + 1.5)
        fprintf(stderr, "node %d: load %.0f, its share is %.1f\n", (int)node, load,
                share);
    CHECK(load >= share - 1.5 && load <= share + 1.5);
}

static void check_even(const struct paper *paper, uint32_t nodes)
{
    for (uint64_t node = 1; node <= nodes; node++)
        check_load(paper, node, 100.0 / nodes);
}

/* --- stories --- */

/* 1, 2, 3, 4, 8 nodes. What must be copied is the share that the new nodes are to have of
 * the groups there were, so that they have their share of the data, too. */
static void test_growth(void)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct paper paper = paper_create(seed);
        uint32_t count = 1;
        settle(&paper);
        CHECK_EQ(cluster_group_count(paper.m.state), PLACEMENT_NODE_GROUPS);
        static const uint8_t SIZES[] = {2, 3, 4, 8};
        for (unsigned i = 0; i < ARRAY_LEN(SIZES); i++) {
            uint32_t before = cluster_group_count(paper.m.state), had = count;
            paper.added = 0;
            for (; count < SIZES[i]; count++)
                add_node(&paper, "", 0);
            settle(&paper);
            check_settled(&paper);
            check_even(&paper, count);
            uint32_t copies = min_u32(count, POOL_COPIES_DEFAULT);
            uint64_t least = (uint64_t)before * copies * (count - had) / count;
            uint64_t came = 0; /* of the groups there were, on new nodes */
            for (uint64_t node = had + 1; node <= count; node++) {
                for (uint32_t id = 1; id <= before; id++)
                    came += cluster_group_member(
                                cluster_group_by_id(paper.m.state, (uint16_t)id), node) !=
                            NULL;
            }
            printf("%u nodes: %u groups, %u members added, %u at least, %u came\n", count,
                   cluster_group_count(paper.m.state), (unsigned)paper.added,
                   (unsigned)least, (unsigned)came);
            CHECK(paper.added <= least + least / 10 + 1);
            CHECK(came + least / 10 + 1 >= least);
        }
        paper_done(&paper);
    }
}

/* A node joins before it is started. New groups wait until it can have its part of them:
 * else it would have to have more of the old ones, in which the data is. */
static void test_joined_before_started(void)
{
    struct paper paper = paper_create(1);
    add_node(&paper, "", 0);
    add_node(&paper, "", 0);
    settle(&paper);
    uint32_t before = cluster_group_count(paper.m.state), came = 0;
    add_node(&paper, "", 0);
    set_flags(&paper, 4, NODE_DOWN);
    settle(&paper);
    CHECK_EQ(cluster_group_count(paper.m.state), before);
    paper.added = 0;
    set_flags(&paper, 4, 0);
    settle(&paper);
    check_settled(&paper);
    check_even(&paper, 4);
    for (uint32_t id = 1; id <= before; id++)
        came += cluster_group_member(cluster_group_by_id(paper.m.state, (uint16_t)id),
                                     4) != NULL;
    uint32_t least = before * 3 / 4;
    printf("joined before it was started: %u came, %u at least\n", came, least);
    CHECK(came >= least - 2 && came <= least + 2);
    CHECK(paper.added <= least + least / 10);
    paper_done(&paper);
}

/* Two nodes in each of three racks, then a fourth rack: no rack twice in a group. */
static void test_domains(void)
{
    struct paper paper = paper_create(3);
    set_first(&paper, "rack1", 0);
    static const char *const RACKS[] = {"rack1", "rack2", "rack2", "rack3", "rack3"};
    for (unsigned i = 0; i < ARRAY_LEN(RACKS); i++)
        add_node(&paper, RACKS[i], 0);
    settle(&paper);
    check_settled(&paper);
    check_even(&paper, 6);
    add_node(&paper, "rack4", 0);
    add_node(&paper, "rack4", 0);
    paper.added = 0;
    settle(&paper);
    check_settled(&paper);
    check_even(&paper, 8);
    uint32_t came = load_of(paper.m.state, 7) + load_of(paper.m.state, 8);
    CHECK(paper.added <= came + came / 10);
    paper_done(&paper);
}

/* Two racks only: two copies. In a pool that does not look at domains, three. */
static void test_few_domains(void)
{
    struct paper paper = paper_create(4);
    set_first(&paper, "rack1", 0);
    add_node(&paper, "rack1", 0);
    add_node(&paper, "rack2", 0);
    add_node(&paper, "rack2", 0);
    settle(&paper);
    check_settled(&paper);
    CHECK_EQ(cluster_group_by_id(paper.m.state, 1)->member_count, 2);
    CHECK_EQ(
        RUN(&paper.m, .op = CLUSTER_POOL_SET, .name = "p", .copies = 3, .min_copies = 2),
        0);
    settle(&paper);
    check_settled(&paper);
    uint32_t last = cluster_group_count(paper.m.state);
    CHECK_EQ(cluster_group_by_id(paper.m.state, (uint16_t)last)->pool, 2);
    CHECK_EQ(cluster_group_by_id(paper.m.state, (uint16_t)last)->member_count, 3);
    paper_done(&paper);
}

/* A domain can have no more than one member of each group, however large it is. */
static void test_capacities(void)
{
    struct paper paper = paper_create(5);
    set_first(&paper, "", 2 * TIB);
    add_node(&paper, "", 2 * TIB);
    add_node(&paper, "", 1 * TIB);
    add_node(&paper, "", 1 * TIB);
    settle(&paper);
    check_settled(&paper);
    check_load(&paper, 1, 100.0 / 3);
    check_load(&paper, 2, 100.0 / 3);
    check_load(&paper, 3, 100.0 / 6);
    check_load(&paper, 4, 100.0 / 6);
    add_node(&paper, "", 100 * TIB);
    add_node(&paper, "", 0); /* has not said: an average one */
    settle(&paper);
    check_settled(&paper);
    CHECK_EQ(load_of(paper.m.state, 5), cluster_group_count(paper.m.state));
    paper_done(&paper);
}

/* A node is drained: it ends empty, nothing else moves, and it may go. */
static void test_drain(void)
{
    for (uint32_t count = 2; count <= 6; count++) {
        struct paper paper = paper_create(count);
        for (uint32_t i = 1; i < count; i++)
            add_node(&paper, "", 0);
        settle(&paper);
        uint32_t had = load_of(paper.m.state, 2);
        paper.added = 0;
        set_flags(&paper, 2, NODE_DRAINING);
        settle(&paper);
        check_settled(&paper);
        CHECK_EQ(load_of(paper.m.state, 2), 0);
        printf("drained 1 of %u nodes: had %u, added %u, moves %u\n", count, had,
               (unsigned)paper.added, (unsigned)paper.by[PLACEMENT_MOVE]);
        CHECK(paper.added <= had + had / 10);
        CHECK_EQ(RUN(&paper.m, .op = CLUSTER_NODE_GONE, .node = 2), 0);
        settle(&paper);
        CHECK_EQ(paper.by[PLACEMENT_FILL], 0);
        paper_done(&paper);
    }
}

/* The last node that counts keeps what it has, whatever people want. */
static void test_drain_all(void)
{
    struct paper paper = paper_create(1);
    add_node(&paper, "", 0);
    settle(&paper);
    set_flags(&paper, 1, NODE_DRAINING);
    set_flags(&paper, 2, NODE_DRAINING);
    settle(&paper);
    CHECK_EQ(load_of(paper.m.state, 1), PLACEMENT_NODE_GROUPS);
    CHECK_EQ(load_of(paper.m.state, 2), PLACEMENT_NODE_GROUPS);
    paper_done(&paper);
}

/* Down is waited for. Out is replaced, if anybody can; and has nothing when it is back.
 */
static void test_out(void)
{
    struct paper paper = paper_create(2);
    for (uint32_t i = 1; i < 4; i++)
        add_node(&paper, "", 0);
    settle(&paper);
    paper.added = 0;
    uint32_t had = load_of(paper.m.state, 2);
    set_flags(&paper, 2, NODE_DOWN);
    settle(&paper);
    CHECK_EQ(paper.added, 0);
    CHECK_EQ(load_of(paper.m.state, 2), had);
    set_flags(&paper, 2, NODE_DOWN | NODE_OUT);
    settle(&paper);
    check_settled(&paper);
    CHECK_EQ(load_of(paper.m.state, 2), 0);
    CHECK(paper.added <= had + had / 10);
    paper.added = 0;
    set_flags(&paper, 2, 0);
    settle(&paper);
    check_settled(&paper);
    check_even(&paper, 4);
    uint32_t has = load_of(paper.m.state, 2);
    CHECK(paper.added <= has + has / 10);
    paper_done(&paper);
}

/* With nobody to replace it, one that is out keeps its place: it may come back with what
 * it has. Unless it holds up one that is drained. */
static void test_out_of_few(void)
{
    struct paper paper = paper_create(2);
    add_node(&paper, "", 0);
    add_node(&paper, "", 0);
    settle(&paper);
    paper.added = 0;
    set_flags(&paper, 2, NODE_DOWN | NODE_OUT);
    settle(&paper);
    CHECK_EQ(load_of(paper.m.state, 2), PLACEMENT_NODE_GROUPS);
    set_flags(&paper, 2, 0);
    settle(&paper);
    check_settled(&paper);
    CHECK_EQ(paper.added, 0);
    set_flags(&paper, 2, NODE_DOWN | NODE_OUT);
    set_flags(&paper, 3, NODE_DRAINING);
    settle(&paper);
    CHECK_EQ(load_of(paper.m.state, 3), 0);
    CHECK_EQ(load_of(paper.m.state, 1), PLACEMENT_NODE_GROUPS);
    paper_done(&paper);
}

/* The last whole member of a group was declared lost: one that is out may be the only one
 * that has some of what is left. */
static void test_out_after_loss(void)
{
    struct paper paper = paper_create(5);
    for (uint32_t i = 1; i < 6; i++)
        add_node(&paper, "", 0);
    settle(&paper);
    for (uint64_t node = 1; node <= 6; node++)
        set_flags(&paper, node, NODE_DOWN);
    CHECK_EQ(RUN(&paper.m, .op = CLUSTER_NODE_GONE, .node = 6, .force = true,
                 .data_loss = true),
             0);
    for (uint64_t node = 1; node <= 5; node++)
        set_flags(&paper, node, 0);
    set_flags(&paper, 2, NODE_DOWN); /* and is not whole any more */
    set_flags(&paper, 2, NODE_DOWN | NODE_OUT);
    uint32_t unsure = 0, kept = 0;
    for (uint32_t i = 1; i <= cluster_group_count(paper.m.state); i++) {
        const struct cluster_group *group = cluster_group_by_id(paper.m.state,
                                                                (uint16_t)i);
        unsure += group->unsure_below != 0 && cluster_group_member(group, 2) != NULL;
    }
    CHECK(unsure > 0);
    settle(&paper);
    for (uint32_t i = 1; i <= cluster_group_count(paper.m.state); i++) {
        const struct cluster_group *group = cluster_group_by_id(paper.m.state,
                                                                (uint16_t)i);
        kept += cluster_group_member(group, 2) != NULL;
        CHECK(whole_domains(paper.m.state, group) >= 3);
    }
    CHECK_EQ(kept, unsure);
    CHECK_EQ(RUN(&paper.m, .op = CLUSTER_NODE_GONE, .node = 2, .force = true), 0);
    settle(&paper);
    check_settled(&paper);
    paper_done(&paper);
}

/* A node that was out comes back in the middle of being replaced. */
static void test_back_meanwhile(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct paper paper = paper_create(seed);
        struct placement_options options = {.recovering_max = 0};
        for (uint32_t i = 1; i < 5; i++)
            add_node(&paper, "", 0);
        settle(&paper);
        set_flags(&paper, 2, NODE_DOWN | NODE_OUT);
        for (uint64_t i = 0; i < seed * 5; i++) {
            if (!step(&paper, &options))
                recover_one(&paper);
        }
        set_flags(&paper, 2, 0);
        settle(&paper);
        check_settled(&paper);
        check_even(&paper, 5);
        paper_done(&paper);
    }
}

/* Lost for ever: from groups of three, and of one, which are filled anew. */
static void test_lost(void)
{
    struct paper paper = paper_create(9);
    for (uint32_t i = 1; i < 5; i++)
        add_node(&paper, "", 0);
    settle(&paper);
    CHECK_EQ(RUN(&paper.m, .op = CLUSTER_POOL_SET, .name = "one", .copies = 1,
                 .min_copies = 1),
             0);
    settle(&paper);
    uint32_t had = load_of(paper.m.state, 1), singles = 0;
    for (uint32_t i = 1; i <= cluster_group_count(paper.m.state); i++) {
        const struct cluster_group *group = cluster_group_by_id(paper.m.state,
                                                                (uint16_t)i);
        singles += group->pool == 2 && group->members[0].node == 1;
    }
    CHECK(singles >= PLACEMENT_NODE_GROUPS - 1);
    paper.added = 0;
    set_flags(&paper, 1, NODE_DOWN);
    CHECK_EQ(RUN(&paper.m, .op = CLUSTER_NODE_GONE, .node = 1, .force = true,
                 .data_loss = true),
             0);
    settle(&paper);
    check_settled(&paper);
    CHECK_EQ(paper.by[PLACEMENT_FILL], singles);
    CHECK(paper.added <= had - singles + had / 10);
    paper_done(&paper);
}

/* Copies of a pool are changed, up and down. */
static void test_copies(void)
{
    struct paper paper = paper_create(6);
    static const uint8_t COPIES[] = {2, 1, 4, 3};
    for (uint32_t i = 1; i < 6; i++)
        add_node(&paper, "", 0);
    settle(&paper);
    for (unsigned i = 0; i < ARRAY_LEN(COPIES); i++) {
        CHECK_EQ(RUN(&paper.m, .op = CLUSTER_POOL_SET, .name = "default",
                     .copies = COPIES[i], .min_copies = 1, .flags = POOL_BY_DOMAIN),
                 0);
        settle(&paper);
        check_settled(&paper);
        CHECK_EQ(cluster_group_by_id(paper.m.state, 1)->member_count, COPIES[i]);
        check_even(&paper, 6);
    }
    paper_done(&paper);
}

/* Nodes are moved from rack to rack. */
static void test_moved_domains(void)
{
    struct paper paper = paper_create(7);
    set_first(&paper, "a", 0);
    for (uint32_t i = 1; i < 6; i++)
        add_node(&paper, i % 3 == 0 ? "a" : i % 3 == 1 ? "b" : "c", 0);
    settle(&paper);
    check_settled(&paper);
    for (uint64_t id = 1; id <= 6; id++) {
        const struct cluster_node *node = cluster_node_by_id(paper.m.state, id);
        static const char *const NAMES[] = {"b", "c", "a", "a", "c", "b"};
        CHECK_EQ(RUN(&paper.m, .op = CLUSTER_NODE_SET, .store = node->store,
                     .new_name = NAMES[id - 1]),
                 0);
    }
    settle(&paper);
    check_settled(&paper);
    check_even(&paper, 6);
    paper_done(&paper);
}

/* Never more under way than asked for, on all nodes and on one. */
static void test_bounds(void)
{
    struct paper paper = paper_create(8);
    struct placement_options options = {.recovering_max = 5, .node_recovering_max = 2};
    settle(&paper);
    add_node(&paper, "", 0);
    while (step(&paper, &options))
        ;
    CHECK_EQ(recovering(&paper), 2);
    for (uint32_t i = 0; i < 4; i++)
        add_node(&paper, "", 0);
    while (step(&paper, &options))
        ;
    CHECK_EQ(recovering(&paper), 5);
    CHECK(recover_one(&paper));
    while (step(&paper, &options))
        ;
    CHECK_EQ(recovering(&paper), 5);
    paper_done(&paper);
}

/* What is full gets nothing new, and what never gets whole does not hold up others. */
static void test_avoided_and_stuck(void)
{
    struct paper paper = paper_create(10);
    for (uint32_t i = 1; i < 4; i++)
        add_node(&paper, "", 0);
    paper.avoid[paper.avoid_count++] = 4;
    settle(&paper);
    CHECK_EQ(load_of(paper.m.state, 4), 0);
    paper.avoid_count = 0;
    paper.stuck = 4;
    settle(&paper);
    CHECK_EQ(lacking_on(paper.m.state, 4), PLACEMENT_NODE_RECOVERING);
    for (uint32_t i = 0; i < 2; i++)
        add_node(&paper, "", 0);
    settle(&paper);
    CHECK(load_of(paper.m.state, 5) >= PLACEMENT_NODE_GROUPS - 4);
    CHECK(load_of(paper.m.state, 6) >= PLACEMENT_NODE_GROUPS - 4);
    paper_done(&paper);
}

/* Anything may happen at any time; whatever it was, it ends, and then all is well. */
static void random_event(struct paper *paper)
{
    const struct cluster_state *state = paper->m.state;
    static const char *const DOMAINS[] = {"", "", "a", "b", "c", "d"};
    uint64_t nodes = 0, id = 0;
    const struct cluster_node *node = NULL;
    while ((node = cluster_node_next(state, node)) != NULL)
        nodes += (node->flags & NODE_GONE) == 0;
    uint64_t n = below(paper, nodes) + 1;
    while (n > 0 && (node = cluster_node_next(state, node)) != NULL) {
        n -= (node->flags & NODE_GONE) == 0;
        id = node->id;
    }
    node = cluster_node_by_id(state, id);
    switch (below(paper, 6)) {
    case 0:
    case 1:
        if (nodes < 9)
            add_node(paper, DOMAINS[below(paper, ARRAY_LEN(DOMAINS))],
                     below(paper, 3) * TIB);
        return;
    case 2:
        RUN(&paper->m, .op = CLUSTER_NODE_GONE, .node = id,
            .force = below(paper, 2) != 0);
        return;
    case 3:
        RUN(&paper->m, .op = CLUSTER_NODE_SET, .store = node->store,
            .new_name = DOMAINS[below(paper, ARRAY_LEN(DOMAINS))],
            .size_bytes = node->capacity_bytes);
        return;
    case 4:
        RUN(&paper->m, .op = CLUSTER_POOL_SET, .name = below(paper, 2) ? "p" : "default",
            .copies = (uint8_t)(1 + below(paper, 4)), .min_copies = 1,
            .flags = (unsigned)below(paper, 2));
        return;
    default:
        set_flags(paper, id, (unsigned)below(paper, NODE_FLAGS_SETTABLE + 1U));
    }
}

static void test_random(void)
{
    for (uint64_t seed = 1; seed <= seeds_of(60); seed++) {
        struct paper paper = paper_create(seed);
        struct placement_options options = {.recovering_max = 0};
        for (uint32_t event = 0; event < 25; event++) {
            random_event(&paper);
            for (uint64_t i = below(&paper, 60); i > 0; i--) {
                if (below(&paper, 3) == 0 || !step(&paper, &options))
                    recover_one(&paper);
            }
            if (event % 5 == 4)
                settle(&paper);
        }
        const struct cluster_node *node = NULL;
        while ((node = cluster_node_next(paper.m.state, node)) != NULL) {
            if ((node->flags & NODE_GONE) == 0)
                set_flags(&paper, node->id, 0);
        }
        settle(&paper);
        check_settled(&paper);
        paper_done(&paper);
    }
}

/* A thousand nodes: how long one step takes. The bound is a loose one. */
static void test_large(void)
{
    struct paper paper = paper_create(1);
    struct placement_options options = {.recovering_max = 0};
    struct cluster_command command;
    for (uint32_t i = 1; i < 1000; i++) {
        char domain[16];
        snprintf(domain, sizeof domain, "rack%u", i % 50);
        add_node(&paper, domain, TIB);
    }
    while (cluster_group_count(paper.m.state) < 10700)
        CHECK_EQ(RUN(&paper.m, .op = CLUSTER_GROUP_ADD, .pool = 1, .member_count = 3,
                     .members = {1 + below(&paper, 300), 301 + below(&paper, 300),
                                 601 + below(&paper, 300)}),
                 0);
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (unsigned i = 0; i < 10; i++) {
        enum placement_reason reason = placement_next(paper.m.state, &options, &command);
        paper.by[reason]++;
        if (reason != PLACEMENT_DONE)
            CHECK_EQ(machine_run(&paper.m, &command), 0);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double ms = (double)(end.tv_sec - start.tv_sec) * 1e3 +
                (double)(end.tv_nsec - start.tv_nsec) / 1e6;
    printf("1000 nodes, 10700 groups: %.2f ms a step\n", ms / 10);
    CHECK(ms < 10000);
    paper_done(&paper);
}

int main(void)
{
    test_growth();
    test_joined_before_started();
    test_domains();
    test_few_domains();
    test_capacities();
    test_drain();
    test_drain_all();
    test_out();
    test_out_of_few();
    test_out_after_loss();
    test_back_meanwhile();
    test_lost();
    test_copies();
    test_moved_domains();
    test_bounds();
    test_avoided_and_stuck();
    test_random();
    test_large();
    return 0;
}
