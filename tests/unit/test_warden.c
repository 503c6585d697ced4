/* SPDX-License-Identifier: Apache-2.0 */
/* The leader's duties on simulated hosts: hosts that join, die, come back, are cut off,
 * stand still, are drained and go, and what the cluster makes of it by itself. */
#include <sys/wait.h>

#include "replication/liveness.h"
#include "tests/unit/warden_machine.h"

#define SEEDS 6U

/* --- what is looked for --- */

static uint32_t load_of(struct world *world, uint64_t node)
{
    uint32_t load = 0;
    const struct cluster_group *group = NULL;
    while ((group = cluster_group_next(state_of(world), group)) != NULL)
        load += cluster_group_member(group, node) != NULL;
    return load;
}

static int role_of(struct world *world, uint64_t node)
{
    struct consensus_member members[HOSTS_MAX];
    uint32_t count = consensus_members(cluster_consensus(world_leader(world)->cluster),
                                       members, HOSTS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        if (members[i].node == node)
            return (int)members[i].role;
    }
    return -1;
}

static uint32_t voter_count(struct world *world)
{
    uint32_t count = 0;
    for (uint64_t i = 1; i <= HOSTS_MAX; i++)
        count += role_of(world, i) == (int)CONSENSUS_VOTER;
    return count;
}

struct expected {
    uint64_t node;
    unsigned flags;
};

static bool has_flags(struct world *world, void *arg)
{
    const struct expected *expected = arg;
    struct host *leader = leader_of(world);
    if (leader == NULL)
        return false;
    const struct cluster_node *node = cluster_node_by_id(cluster_state(leader->cluster),
                                                         expected->node);
    return node != NULL && node->flags == expected->flags;
}

static void wait_flags(struct world *world, uint64_t node, unsigned flags,
                       uint64_t limit_ms)
{
    struct expected expected = {node, flags};
    CHECK(world_until(world, has_flags, &expected, limit_ms));
}

/* Every group has as many members as asked for, all of them whole; everybody is up. */
static bool is_settled(struct world *world, void *arg)
{
    uint32_t copies = *(const uint32_t *)arg;
    struct host *leader = leader_of(world);
    if (leader == NULL)
        return false;
    const struct cluster_state *state = cluster_state(leader->cluster);
    const struct cluster_node *node = NULL;
    const struct cluster_group *group = NULL;
    while ((node = cluster_node_next(state, node)) != NULL) {
        if (node->flags & (NODE_DOWN | NODE_OUT))
            return false;
    }
    while ((group = cluster_group_next(state, group)) != NULL) {
        if (group->member_count != copies)
            return false;
        for (unsigned i = 0; i < group->member_count; i++) {
            if (group->members[i].missing_since != 0)
                return false;
        }
    }
    return cluster_group_count(state) >= PLACEMENT_NODE_GROUPS;
}

static uint64_t epochs_of(struct world *world)
{
    uint64_t sum = 0;
    const struct cluster_group *group = NULL;
    while ((group = cluster_group_next(state_of(world), group)) != NULL)
        sum += group->epoch;
    return sum;
}

/* Until it is so, and stays so. */
static void settle(struct world *world, uint32_t copies)
{
    char text[200];
    uint64_t epochs;
    do {
        if (!world_until(world, is_settled, &copies, 120000)) {
            const struct cluster_node *node = NULL;
            while ((node = cluster_node_next(state_of(world), node)) != NULL)
                fprintf(stderr, "node %u: flags %x, groups %u\n", (unsigned)node->id,
                        node->flags, load_of(world, node->id));
            CHECK(0 && "it does not settle");
        }
        epochs = epochs_of(world);
        world_run(world, 2000);
    } while (epochs_of(world) != epochs || !is_settled(world, &copies));
    CHECK_EQ(cluster_state_check(state_of(world), text, sizeof text), 0);
}

static bool has_voters(struct world *world, void *arg)
{
    return leader_of(world) != NULL && voter_count(world) == *(const uint32_t *)arg;
}

static void wait_voters(struct world *world, uint32_t count)
{
    CHECK(world_until(world, has_voters, &count, 120000));
}

/* Was any of the nodes ever down meanwhile? */
static bool sees_down(struct world *world, void *arg)
{
    struct host *leader = leader_of(world);
    const struct cluster_node *node = NULL;
    uint64_t but = *(const uint64_t *)arg;
    while (leader != NULL &&
           (node = cluster_node_next(cluster_state(leader->cluster), node)) != NULL) {
        if (node->id != but && (node->flags & NODE_DOWN))
            return true;
    }
    return false;
}

/* For so long nobody is marked, `but` aside. */
static void all_stay_up(struct world *world, uint64_t but, uint64_t ms)
{
    CHECK(!world_until(world, sees_down, &but, ms));
}

static struct host *follower_of(struct world *world)
{
    struct host *leader = world_leader(world);
    for (uint32_t i = 1; i <= HOSTS_MAX; i++) {
        if (&world->hosts[i] != leader && world->hosts[i].is_open)
            return &world->hosts[i];
    }
    CHECK(false);
    return NULL;
}

/* --- stories --- */

/* Hosts join: each has the log, as many vote as should, groups are where they should be.
 */
static void test_growth(uint64_t seed)
{
    struct world *world = world_of(seed, 1);
    settle(world, 1);
    CHECK_EQ(load_of(world, 1), PLACEMENT_NODE_GROUPS);
    CHECK_EQ(voter_count(world), 1);
    host_join(world, 2, "");
    settle(world, 2);
    wait_voters(world, 2);
    host_join(world, 3, "");
    settle(world, 3);
    wait_voters(world, 3);
    for (uint64_t id = 4; id <= 7; id++)
        host_join(world, id, "");
    wait_voters(world, 5);
    settle(world, 3);
    for (uint64_t id = 1; id <= 7; id++) {
        CHECK(role_of(world, id) >= (int)CONSENSUS_STANDBY);
        CHECK(load_of(world, id) > PLACEMENT_NODE_GROUPS / 2);
    }
    all_stay_up(world, 0, 10000);
    world_destroy(world);
}

static void test_kill(uint64_t seed)
{
    struct world *world = world_of(seed, 3);
    settle(world, 3);
    wait_voters(world, 3);
    struct host *victim = follower_of(world);
    host_end(victim, SIM_KILL);
    /* Its connections break at once. */
    wait_flags(world, victim->id, NODE_DOWN, LIVENESS_LOST_MS + 700);
    const struct cluster_group *group = cluster_group_by_id(state_of(world), 1);
    CHECK(cluster_group_member(group, victim->id)->missing_since != 0);
    host_open(victim);
    wait_flags(world, victim->id, 0, 5000);
    settle(world, 3);
    /* Without power it is just silent. */
    victim = follower_of(world);
    host_end(victim, SIM_POWER_CUT);
    wait_flags(world, victim->id, NODE_DOWN, LIVENESS_SILENT_MS + 700);
    host_open(victim);
    settle(world, 3);
    world_destroy(world);
}

static void test_leader_dies(uint64_t seed)
{
    struct world *world = world_of(seed, 3);
    settle(world, 3);
    wait_voters(world, 3);
    for (unsigned i = 0; i < 3; i++) {
        struct host *leader = world_leader(world);
        host_end(leader, SIM_KILL);
        CHECK(world_leader(world) != leader);
        uint64_t but = leader->id;
        all_stay_up(world, but, 1000);
        wait_flags(world, leader->id, NODE_DOWN, 10000);
        all_stay_up(world, but, 1000);
        host_open(leader);
        settle(world, 3);
    }
    world_destroy(world);
}

static void test_cut_off(uint64_t seed)
{
    struct world *world = world_of(seed, 3);
    settle(world, 3);
    wait_voters(world, 3);
    struct host *victim = follower_of(world);
    block(world, victim->id, true);
    wait_flags(world, victim->id, NODE_DOWN, LIVENESS_SILENT_MS + 700);
    block(world, victim->id, false);
    settle(world, 3);
    /* The leader is: another one leads, and marks it. */
    victim = world_leader(world);
    block(world, victim->id, true);
    wait_flags(world, victim->id, NODE_DOWN, 20000);
    CHECK(world_leader(world) != victim);
    block(world, victim->id, false);
    settle(world, 3);
    world_destroy(world);
}

static struct host *third_of(struct world *world, const struct host *a,
                             const struct host *b)
{
    for (uint64_t id = 1; id <= 3; id++) {
        if (id != a->id && id != b->id)
            return &world->hosts[id];
    }
    CHECK(false);
    return NULL;
}

static void cut(struct world *world, const struct host *a, const struct host *b,
                bool is_blocked)
{
    sim_net_block(world->sim, (uint32_t)a->id, (uint32_t)b->id, is_blocked);
    sim_net_block(world->sim, (uint32_t)b->id, (uint32_t)a->id, is_blocked);
}

static bool leads(struct world *world, void *arg)
{
    return leader_of(world) == arg;
}

/* The leader and another one do not reach each other, the third one reaches both: it
 * leads then, so that nobody is left out. It stays so when all is well again. */
static void test_cut_between(uint64_t seed)
{
    struct world *world = world_of(seed, 3);
    settle(world, 3);
    wait_voters(world, 3);
    world_run(world, 3000);
    struct host *leader = world_leader(world), *other = follower_of(world);
    struct host *third = third_of(world, leader, other);
    cut(world, leader, other, true);
    CHECK(world_until(world, leads, third, 8000));
    wait_flags(world, other->id, 0, 5000);
    settle(world, 3);
    CHECK_EQ(SUBMIT(other, .op = CLUSTER_DISK_CREATE, .name = "a", .size_bytes = MIB), 0);
    CHECK_EQ(SUBMIT(leader, .op = CLUSTER_DISK_CREATE, .name = "b", .size_bytes = MIB),
             0);
    uint64_t term = consensus_term(cluster_consensus(third->cluster));
    world_run(world, 20000);
    cut(world, leader, other, false);
    world_run(world, 10000);
    CHECK(world_leader(world) == third);
    CHECK_EQ(consensus_term(cluster_consensus(third->cluster)), term);
    world_destroy(world);
}

/* Of one that has lost its power the leader may hear longer or shorter than others do:
 * that is no reason for another one to lead. */
static void test_no_change(uint64_t seed)
{
    struct world *world = world_of(seed, 5);
    settle(world, 3);
    wait_voters(world, 3);
    world_run(world, 5000);
    struct host *leader = world_leader(world);
    uint64_t term = consensus_term(cluster_consensus(leader->cluster));
    for (uint64_t id = 1; id <= 5; id++) {
        if (&world->hosts[id] == leader)
            continue;
        host_end(&world->hosts[id], SIM_POWER_CUT);
        world_run(world, 6000);
        host_start(&world->hosts[id]);
        world_run(world, 6000);
    }
    CHECK(world_leader(world) == leader);
    CHECK_EQ(consensus_term(cluster_consensus(leader->cluster)), term);
    world_destroy(world);
}

/* A leader stood still, and nobody could take its place: nobody is blamed for it. */
static void test_leader_stands_still(uint64_t seed)
{
    struct world *world = world_of(seed, 2);
    settle(world, 2);
    wait_voters(world, 2);
    for (unsigned i = 0; i < 5; i++) {
        sim_process_stall(world_leader(world)->loop, (1 + i) * 2 * NS_PER_S);
        all_stay_up(world, 0, 20000);
    }
    world_destroy(world);
}

/* Down for long: its groups get others, and others vote; it comes back and has its share
 * again. */
static void test_out(uint64_t seed)
{
    struct world *world = world_of(seed, 4);
    settle(world, 3);
    wait_voters(world, 3);
    struct host *victim = NULL;
    for (uint64_t id = 1; id <= 4; id++) {
        struct host *h = &world->hosts[id];
        if (h != world_leader(world) && role_of(world, id) == (int)CONSENSUS_VOTER)
            victim = h;
    }
    host_end(victim, SIM_KILL);
    wait_flags(world, victim->id, NODE_DOWN, 5000);
    CHECK(load_of(world, victim->id) > 0);
    wait_flags(world, victim->id, NODE_DOWN | NODE_OUT, 15000);
    world_run(world, 60000);
    CHECK_EQ(load_of(world, victim->id), 0);
    CHECK_EQ(role_of(world, victim->id), (int)CONSENSUS_STANDBY);
    CHECK_EQ(voter_count(world), 3);
    host_open(victim);
    settle(world, 3);
    CHECK(load_of(world, victim->id) > PLACEMENT_NODE_GROUPS / 2);
    world_destroy(world);
}

static bool is_empty(struct world *world, void *arg)
{
    return leader_of(world) != NULL && load_of(world, *(const uint64_t *)arg) == 0;
}

/* Drained until it is empty, and then removed: also the one that leads. */
static void test_drain(uint64_t seed)
{
    struct world *world = world_of(seed, 4);
    settle(world, 3);
    wait_voters(world, 3);
    uint64_t node = world_leader(world)->id;
    CHECK_EQ(SUBMIT(world_leader(world), .op = CLUSTER_NODE_STATE, .node = node,
                    .flags = NODE_DRAINING),
             0);
    CHECK(world_until(world, is_empty, &node, 120000));
    world_run(world, 3000);
    CHECK(world_leader(world)->id != node);
    CHECK_EQ(role_of(world, node), (int)CONSENSUS_STANDBY);
    CHECK_EQ(SUBMIT(world_leader(world), .op = CLUSTER_NODE_GONE, .node = node), 0);
    world_run(world, 3000);
    CHECK_EQ(role_of(world, node), -1);
    host_end(&world->hosts[node], SIM_KILL);
    wait_voters(world, 3);
    settle(world, 3);
    world_destroy(world);
}

/* Declared lost: out of the groups and of consensus. */
static void test_lost(uint64_t seed)
{
    struct world *world = world_of(seed, 3);
    settle(world, 3);
    wait_voters(world, 3);
    struct host *victim = follower_of(world);
    host_end(victim, SIM_POWER_CUT);
    wait_flags(world, victim->id, NODE_DOWN, 5000);
    CHECK_EQ(SUBMIT(world_leader(world), .op = CLUSTER_NODE_GONE, .node = victim->id,
                    .force = true),
             0);
    wait_voters(world, 2);
    CHECK_EQ(role_of(world, victim->id), -1);
    settle(world, 2);
    host_join(world, 4, "");
    wait_voters(world, 3);
    settle(world, 3);
    world_destroy(world);
}

/* What nodes say of themselves. */
static void test_reports(uint64_t seed)
{
    struct world *world = world_of(seed, 3);
    struct warden_report report;
    settle(world, 3);
    wait_voters(world, 3);
    struct host *other = follower_of(world), *leader = world_leader(world);
    other->usage = (struct warden_usage){
        .capacity_bytes = 2 * TIB, .used_bytes = TIB, .free_bytes = TIB};
    world_run(world, 2000);
    CHECK(warden_report(leader->warden, other->id, &report));
    CHECK_EQ(report.usage.used_bytes, TIB);
    CHECK(report.heard_ns <= 2 * LIVENESS_TICK_MS * NS_PER_MS);
    CHECK(report.applied != 0);
    CHECK(warden_report(leader->warden, leader->id, &report));
    CHECK(!warden_report(leader->warden, 7, &report));
    CHECK(!warden_report(other->warden, leader->id, &report));
    const struct cluster_node *node = cluster_node_by_id(state_of(world), other->id);
    CHECK_EQ(node->capacity_bytes, 2 * TIB);
    /* Its store is out of service: it is as good as down. */
    other->usage.is_broken = true;
    wait_flags(world, other->id, NODE_DOWN, 1000);
    world_run(world, 2000);
    CHECK_EQ(role_of(world, other->id), (int)CONSENSUS_VOTER);
    other->usage.is_broken = false;
    wait_flags(world, other->id, 0, 1000);
    settle(world, 3);
    world_destroy(world);
}

/* A host that is full gets nothing, until it has room. */
static void test_full(uint64_t seed)
{
    struct world *world = world_of(seed, 2);
    settle(world, 2);
    world->hosts[3].usage.free_bytes = HOST_BYTES / 20;
    host_join(world, 3, "");
    world_run(world, 20000);
    CHECK_EQ(load_of(world, 3), 0);
    world->hosts[3].usage.free_bytes = HOST_BYTES / 2;
    settle(world, 3);
    world_destroy(world);
}

/* A host is found at another address. */
static void test_moved(uint64_t seed)
{
    struct world *world = world_of(seed, 3);
    settle(world, 3);
    wait_voters(world, 3);
    struct host *other = follower_of(world);
    host_end(other, SIM_KILL);
    snprintf(other->address, sizeof other->address, "elsewhere:7");
    for (uint64_t id = 1; id <= 3; id++) {
        if (id != other->id) /* as somebody who was greeted would */
            CHECK_EQ(rpc_set_address(world->hosts[id].rpc, other->id, other->address), 0);
    }
    host_open(other);
    settle(world, 3);
    world_run(world, 1000);
    CHECK_STR(cluster_node_by_id(state_of(world), other->id)->address, "elsewhere:7");
    world_destroy(world);
}

/* Everything is closed in order, by either way, whatever is under way. */
static void test_close(uint64_t seed)
{
    struct world *world = world_of(seed, 3);
    world_run(world, sim_world_random(world->sim, 8000));
    for (uint64_t id = 1; id <= 3; id++)
        host_close(&world->hosts[id], (seed + id) % 2 == 0);
    for (uint64_t id = 1; id <= 3; id++)
        host_open(&world->hosts[id]);
    settle(world, 3);
    for (uint64_t id = 3; id >= 1; id--)
        host_close(&world->hosts[id], (seed + id) % 2 != 0);
    world_destroy(world);
}

/* Heartbeats that are none. */
static void test_nonsense(uint64_t seed)
{
    struct world *world = world_of(seed, 2);
    settle(world, 2);
    wait_voters(world, 2);
    struct host *leader = world_leader(world), *other = follower_of(world);
    uint8_t bytes[HEARTBEAT_MAX];
    for (unsigned i = 0; i < 2000; i++) {
        size_t len = sim_world_random(world->sim, sizeof bytes);
        for (size_t k = 0; k < len; k++)
            bytes[k] = (uint8_t)sim_world_random(world->sim, 256);
        /* An address that is too long, or of a good length and none. */
        bytes[5] = i % 2;
        bytes[4] |= 1;
        bytes[sizeof(struct heartbeat_head)] = '\n';
        rpc_post(other->rpc, leader->id, HEARTBEAT_RPC, bytes, (uint32_t)len, NULL, 0);
        world_run(world, 2);
    }
    all_stay_up(world, 0, 5000);
    CHECK_STR(cluster_node_by_id(state_of(world), other->id)->address, other->address);
    world_destroy(world);
}

/* Anything, and then everything is well again. */
static void test_random(uint64_t seed)
{
    struct world *world = world_of(seed, 5);
    settle(world, 3);
    wait_voters(world, 3);
    bool is_blocked[HOSTS_MAX + 1] = {false};
    for (unsigned i = 0; i < 25; i++) {
        uint64_t id = 1 + sim_world_random(world->sim, 5);
        struct host *h = &world->hosts[id];
        uint64_t what = sim_world_random(world->sim, 4);
        if (h->loop == NULL) {
            host_start(h);
        } else if (what == 0) {
            host_end(h, i % 2 == 0 ? SIM_KILL : SIM_POWER_CUT);
        } else if (what == 1) {
            sim_process_stall(h->loop, sim_world_random(world->sim, 8 * NS_PER_S));
        } else if (what == 2) {
            is_blocked[id] = !is_blocked[id];
            block(world, id, is_blocked[id]);
        }
        world_run(world, sim_world_random(world->sim, 6000));
    }
    sim_net_open_all(world->sim);
    for (uint64_t id = 1; id <= 5; id++) {
        if (world->hosts[id].loop == NULL)
            host_start(&world->hosts[id]);
    }
    settle(world, 3);
    wait_voters(world, 3);
    for (uint64_t id = 1; id <= 5; id++)
        CHECK(!world->hosts[id].has_failed);
    world_destroy(world);
}

int main(void)
{
    static void (*const STORIES[])(uint64_t seed) = {
        test_growth,
        test_kill,
        test_leader_dies,
        test_cut_off,
        test_leader_stands_still,
        test_cut_between,
        test_no_change,
        test_out,
        test_drain,
        test_lost,
        test_reports,
        test_full,
        test_moved,
        test_close,
        test_nonsense,
        test_random,
    };
    for (size_t i = 0; i < ARRAY_LEN(STORIES); i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            for (uint64_t seed = 1; seed <= seeds_of(SEEDS); seed++)
                STORIES[i](seed);
            _exit(0);
        }
        int status = 0;
        CHECK_EQ(waitpid(child, &status, 0), child);
        if (status != 0)
            fprintf(stderr, "story %zu\n", i);
        CHECK_EQ(status, 0);
    }
    return 0;
}
