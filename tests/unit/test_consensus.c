/* SPDX-License-Identifier: Apache-2.0 */
/* Consensus among simulated nodes, one thing at a time. */
#include <sys/wait.h>

#include "tests/unit/consensus_cluster.h"

#define SEEDS 6U

static struct node *other_than(struct cluster *cl, const struct node *n)
{
    for (uint32_t i = 1; i <= cl->count; i++)
        if (&cl->nodes[i] != n && cl->nodes[i].consensus != NULL)
            return &cl->nodes[i];
    die("there is no other node");
}

static void submit_many(struct node *n, uint64_t client, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        submit_next(n, client);
}

static void reopen(struct node *n, enum sim_end how)
{
    if (n->loop != NULL)
        node_end(n, how);
    node_open(n);
}

/* --- stories --- */

static void test_one(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 1);
    struct node *n = &cl->nodes[1];
    CHECK_EQ(cluster_leader(cl)->id, 1);
    uint64_t term = consensus_term(n->consensus);
    submit_many(n, 0, 5);
    CHECK_EQ(n->counter.count, 5);
    CHECK_EQ(OP(n, .kind = OP_BARRIER), 0);
    struct consensus_member member;
    CHECK_EQ(consensus_members(n->consensus, &member, 1), 1);
    CHECK(member.node == 1 && member.role == CONSENSUS_VOTER);
    reopen(n, SIM_POWER_CUT);
    cluster_leader(cl);
    CHECK_EQ(OP(n, .kind = OP_BARRIER), 0);
    CHECK_EQ(n->counter.count, 5);
    /* Alone or not: each leadership is a term of its own. */
    CHECK(consensus_term(n->consensus) > term);
    CHECK_EQ(OP(n, .kind = OP_CLOSE), 0);
    node_end(n, SIM_KILL);
    node_open(n);
    submit_next(n, 0);
    CHECK_EQ(n->counter.count, 6);
    cluster_destroy(cl);
}

static void test_growth(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    for (uint32_t i = 1; i <= 3; i++)
        submit_many(&cl->nodes[i], i, 5);
    cl->count = 5;
    for (uint32_t i = 4; i <= 5; i++) {
        node_open(&cl->nodes[i]);
        change_until(cl, (struct op){.kind = OP_ADD, .target = i});
        change_until(cl, (struct op){
                             .kind = OP_ROLE, .target = i, .role = CONSENSUS_STANDBY});
        submit_many(&cl->nodes[i], i, 3);
        add_voter(cl, i);
    }
    for (uint32_t i = 1; i <= 5; i++)
        submit_many(&cl->nodes[i], i, 5);
    cluster_agree(cl);
    struct consensus_member members[8];
    for (uint32_t i = 1; i <= 5; i++) {
        CHECK_EQ(consensus_members(cl->nodes[i].consensus, members, 8), 5);
        for (uint32_t k = 0; k < 5; k++)
            CHECK(members[k].role == CONSENSUS_VOTER);
        CHECK_EQ(OP(&cl->nodes[i], .kind = OP_BARRIER), 0);
    }
    cluster_destroy(cl);
}

static void test_leader_killed(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    submit_many(&cl->nodes[1], 1, 10);
    struct node *old = cluster_leader(cl);
    node_end(old, SIM_KILL);
    struct node *n = other_than(cl, old);
    submit_many(n, 1, 10);
    CHECK(cluster_leader(cl) != old);
    node_open(old);
    submit_many(old, 1, 3);
    cluster_agree(cl);
    CHECK_EQ(cl->max_count, 23);
    cluster_destroy(cl);
}

static bool lose_all(struct cluster *cl, uint64_t from, uint64_t to, const uint8_t *bytes,
                     size_t len)
{
    (void)cl, (void)from, (void)to, (void)bytes, (void)len;
    return false;
}

/* What was sent to a leader that dies waits for the next one, and no longer. */
static void test_sent_to_the_dead(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    cl->tuning.wait_ms = 60000;
    for (uint32_t i = 1; i <= 3; i++)
        reopen(&cl->nodes[i], SIM_KILL);
    submit_many(&cl->nodes[1], 1, 3);
    struct node *old = cluster_leader(cl);
    struct node *n = other_than(cl, old);
    struct op command = {.kind = OP_SUBMIT, .client = 1, .sequence = 4};
    struct op barrier = {.kind = OP_BARRIER};
    cl->filter = lose_all;
    op_start(n, &command);
    op_start(n, &barrier);
    cluster_run(cl, 30);
    node_end(old, SIM_KILL);
    cl->filter = NULL;
    CHECK(cluster_until(cl, op_is_over, &command, 5000));
    CHECK(cluster_until(cl, op_is_over, &barrier, 5000));
    CHECK_EQ(command.rc, -PLX_EUNKNOWN);
    CHECK_EQ(barrier.rc, 0);
    submit_next(n, 1);
    node_open(old);
    cluster_agree(cl);
    CHECK_EQ(cl->max_count, 4);
    cluster_destroy(cl);
}

/* A follower learns what is committed when it is, not with the next heartbeat. */
static void test_told_at_once(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    submit_many(&cl->nodes[1], 1, 2);
    struct node *n = other_than(cl, cluster_leader(cl));
    uint64_t begun_ns = sim_world_now_ns(cl->world);
    submit_many(n, 1, 20);
    CHECK(sim_world_now_ns(cl->world) - begun_ns < 20 * 40 * NS_PER_MS);
    cluster_agree(cl);
    cluster_destroy(cl);
}

static void test_all_lose_power(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    for (unsigned round = 0; round < 4; round++) {
        struct op ops[6] = {{.kind = OP_SUBMIT}};
        for (uint64_t i = 0; i < 6; i++) {
            ops[i] = (struct op){
                .kind = OP_SUBMIT, .client = i, .sequence = cl->acked[i] + 1};
            op_start(&cl->nodes[1 + i % 3], &ops[i]);
        }
        cluster_run(cl, chance(cl, 30));
        for (uint32_t i = 1; i <= 3; i++)
            node_end(&cl->nodes[i], SIM_POWER_CUT);
        for (uint32_t i = 1; i <= 3; i++)
            node_open(&cl->nodes[i]);
        for (uint64_t i = 0; i < 6; i++)
            submit_next(&cl->nodes[1 + (i + round) % 3], i);
        cluster_agree(cl);
    }
    cluster_destroy(cl);
}

/* The old leader on the small side knows nothing, and neither says nor does anything. */
static void test_partition(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 5);
    submit_many(&cl->nodes[1], 1, 5);
    struct node *old = cluster_leader(cl);
    struct node *friend = other_than(cl, old);
    uint64_t count = cl->max_count;
    cluster_split(cl, 1U << old->id | 1U << friend->id);
    struct op stale = {.kind = OP_SUBMIT, .client = 2, .sequence = 1};
    struct op from_friend = {.kind = OP_SUBMIT, .client = 3, .sequence = 1};
    struct op read = {.kind = OP_BARRIER}, read_friend = {.kind = OP_BARRIER};
    op_start(old, &stale);
    op_start(friend, &from_friend);
    op_start(old, &read);
    op_start(friend, &read_friend);
    cluster_run(cl, 3000);
    struct node *leader = cluster_leader(cl);
    CHECK(leader != old && leader != friend);
    submit_many(leader, 1, 5);
    CHECK(cluster_until(cl, op_is_over, &stale, 10000));
    CHECK(cluster_until(cl, op_is_over, &from_friend, 10000));
    CHECK(cluster_until(cl, op_is_over, &read, 10000));
    CHECK(cluster_until(cl, op_is_over, &read_friend, 10000));
    CHECK_EQ(stale.rc, -PLX_EUNKNOWN);
    CHECK_EQ(from_friend.rc, -PLX_EUNKNOWN);
    CHECK_EQ(read.rc, -PLX_ENOLEADER);
    CHECK_EQ(read_friend.rc, -PLX_ENOLEADER);
    CHECK_EQ(old->counter.count, count);
    CHECK_EQ(consensus_leader(old->consensus), 0);
    cluster_heal(cl);
    submit_next(old, 2);
    submit_next(friend, 3);
    cluster_agree(cl);
    /* What the old leader had in its log was replaced by what the new one had. */
    CHECK_EQ(cl->max_count, count + 7);
    cluster_destroy(cl);
}

/* A submit that finds no leader was not carried out, and says so. */
static void test_no_leader(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    submit_many(&cl->nodes[1], 1, 2);
    struct node *n = other_than(cl, cluster_leader(cl));
    for (uint32_t i = 1; i <= 3; i++)
        if (&cl->nodes[i] != n)
            node_end(&cl->nodes[i], SIM_KILL);
    cluster_run(cl, 3000);
    CHECK_EQ(OP(n, .kind = OP_SUBMIT, .client = 1, .sequence = 3), -PLX_ENOLEADER);
    CHECK_EQ(OP(n, .kind = OP_BARRIER), -PLX_ENOLEADER);
    CHECK_EQ(OP(n, .kind = OP_ADD, .target = 7), -PLX_ENOLEADER);
    CHECK_EQ(OP(n, .kind = OP_TRANSFER, .target = n->id), -PLX_ENOLEADER);
    for (uint32_t i = 1; i <= 3; i++)
        if (&cl->nodes[i] != n)
            node_open(&cl->nodes[i]);
    submit_next(n, 1);
    cluster_agree(cl);
    CHECK_EQ(cl->max_count, 3);
    cluster_destroy(cl);
}

static void test_bad_network(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    cl->loss_ppm = 100000;
    cl->twice_ppm = 200000;
    cl->late_ppm = 50000;
    for (unsigned i = 0; i < 15; i++)
        submit_next(&cl->nodes[1 + i % 3], i % 3);
    cluster_heal(cl);
    submit_next(&cl->nodes[1], 0);
    cluster_agree(cl);
    CHECK_EQ(cl->max_count, 16);
    cluster_destroy(cl);
}

static void test_snapshot_install(uint64_t seed)
{
    struct cluster *cl = cluster_create(seed, 3);
    cl->tuning.snapshot_entries = 20;
    cl->tuning.trailing_entries = 4;
    cl->pad_bytes = 20000; /* five pieces */
    for (uint32_t i = 1; i <= 3; i++)
        node_open(&cl->nodes[i]);
    submit_many(&cl->nodes[1], 1, 50);
    add_voter(cl, 2); /* there is no first entry any more to be had */
    add_voter(cl, 3);
    CHECK(cl->largest_packet > 20000);
    submit_many(&cl->nodes[3], 1, 10);
    cluster_agree(cl);
    struct node *away = other_than(cl, cluster_leader(cl));
    node_end(away, SIM_POWER_CUT);
    submit_many(cluster_leader(cl), 1, 100);
    cl->largest_packet = 0;
    node_open(away);
    submit_next(away, 1);
    cluster_agree(cl);
    CHECK(cl->largest_packet > 20000);
    for (uint32_t i = 1; i <= 3; i++)
        reopen(&cl->nodes[i], SIM_POWER_CUT);
    submit_next(&cl->nodes[1], 1);
    cluster_agree(cl);
    CHECK_EQ(cl->max_count, 162);
    cluster_destroy(cl);
}

/* A snapshot on its way is not sent once more, though the one who waits for it refuses
 * everything else, and nothing follows the snapshot. */
static void test_snapshot_once(uint64_t seed)
{
    struct cluster *cl = cluster_create(seed, 2);
    cl->tuning.snapshot_entries = 20;
    cl->tuning.trailing_entries = 4;
    cl->tuning.install_ms = 5000;
    cl->pad_bytes = 20000;
    node_open(&cl->nodes[1]);
    struct node *leader = cluster_leader(cl);
    /* Until the log ends where the snapshot does. */
    do
        submit_next(leader, 0);
    while (consensus_applied(leader->consensus) % 20 != 0);
    cluster_run(cl, 100);
    cl->slow_bytes = 20000;
    node_open(&cl->nodes[2]);
    cl->is_blocked[1][2] = true; /* the change itself comes before the snapshot */
    change_until(cl, (struct op){.kind = OP_ADD, .target = 2});
    change_until(cl,
                 (struct op){.kind = OP_ROLE, .target = 2, .role = CONSENSUS_STANDBY});
    while (consensus_applied(leader->consensus) % 20 != 0)
        submit_next(leader, 0);
    cluster_run(cl, 100);
    cluster_heal(cl);
    cluster_agree(cl);
    CHECK_EQ(cl->slow_packets, 1);
    cluster_destroy(cl);
}

/* --- one message too late, too early or never --- */

struct capture {
    uint8_t bytes[2000];
    size_t len;
};

/* Keeps the first append that begins at index 1 and has entries. */
static bool capture_first(struct cluster *cl, uint64_t from, uint64_t to,
                          const uint8_t *bytes, size_t len)
{
    static const uint8_t ZEROS[16];
    struct capture *capture = cl->arg;
    (void)from;
    if (to == 2 && capture->len == 0 && bytes[1] == 1 && len > 40 &&
        memcmp(bytes + 10, ZEROS, sizeof ZEROS) == 0) {
        CHECK(len <= sizeof capture->bytes);
        memcpy(capture->bytes, bytes, len);
        capture->len = len;
    }
    return true;
}

/* The first append comes again when the log has been compacted: its entries are not at
 * the end of it once more. */
static void test_late_append(uint64_t seed)
{
    struct cluster *cl = cluster_create(seed, 2);
    struct capture capture = {.len = 0};
    cl->tuning.snapshot_entries = 20;
    cl->tuning.trailing_entries = 4;
    cl->filter = capture_first;
    cl->arg = &capture;
    for (uint32_t i = 1; i <= 2; i++)
        node_open(&cl->nodes[i]);
    change_until(cl, (struct op){.kind = OP_ADD, .target = 2});
    change_until(cl,
                 (struct op){.kind = OP_ROLE, .target = 2, .role = CONSENSUS_STANDBY});
    submit_many(&cl->nodes[2], 1, 50);
    cluster_agree(cl);
    CHECK(capture.len != 0);
    for (unsigned i = 0; i < 3; i++)
        packet_start(&cl->nodes[1], &cl->nodes[2], capture.bytes, capture.len);
    submit_many(&cl->nodes[2], 1, 50);
    cluster_agree(cl);
    reopen(&cl->nodes[2], SIM_KILL);
    submit_next(&cl->nodes[2], 1);
    cluster_agree(cl);
    cluster_destroy(cl);
}

/* Appends with entries are lost. */
static bool lose_entries(struct cluster *cl, uint64_t from, uint64_t to,
                         const uint8_t *bytes, size_t len)
{
    (void)cl, (void)from, (void)to;
    return bytes[1] != 1 || len <= 38;
}

static bool leads(struct cluster *cl, void *arg)
{
    const struct node *n = arg;
    (void)cl;
    return n->consensus != NULL && consensus_leader(n->consensus) == n->id;
}

static bool either_leads(struct cluster *cl, void *arg)
{
    struct node **nodes = arg;
    return leads(cl, nodes[0]) || leads(cl, nodes[1]);
}

/* Figure 8 of the Raft paper: an entry of an old term has a majority, and is replaced by
 * a leader that does not have it. So a majority alone must not make it committed. */
static void test_figure_8(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    struct node *s1 = cluster_leader(cl), *others[2];
    submit_many(s1, 1, 2);
    cluster_agree(cl);
    others[0] = other_than(cl, s1);
    others[1] = &cl->nodes[6 - s1->id - others[0]->id];
    /* One entry only in the first leader's log ... */
    struct op x = {.kind = OP_SUBMIT, .client = 2, .sequence = 1};
    cluster_split(cl, 1U << s1->id);
    op_start(s1, &x);
    cluster_run(cl, 30);
    node_end(s1, SIM_KILL);
    /* ... another one, of a later term, only in the second's ... */
    struct op y = {.kind = OP_SUBMIT, .client = 3, .sequence = 1};
    cl->filter = lose_entries;
    CHECK(cluster_until(cl, either_leads, others, 10000));
    struct node *s2 = leads(cl, others[0]) ? others[0] : others[1];
    op_start(s2, &y);
    cluster_run(cl, 30);
    node_end(s2, SIM_KILL);
    /* ... and the first leads again: its entry gets to the third. */
    cluster_heal(cl);
    node_open(s1);
    CHECK(cluster_until(cl, leads, s1, 10000));
    cluster_run(cl, 500);
    node_end(s1, SIM_KILL);
    node_open(s2);
    submit_next(s2, 1);
    node_open(s1);
    for (uint64_t i = 1; i <= 3; i++)
        submit_next(s1, i);
    cluster_agree(cl);
    cluster_destroy(cl);
}

/* The newest log is on a node whose term is old; the other that is left has a newer term.
 * The one is refused for its term, the other for its log, unless the one learns. */
static void test_old_term_new_log(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    struct node *s1 = cluster_leader(cl), *others[2];
    submit_many(s1, 1, 2);
    cluster_agree(cl);
    others[0] = other_than(cl, s1);
    others[1] = &cl->nodes[6 - s1->id - others[0]->id];
    struct op x = {.kind = OP_SUBMIT, .client = 2, .sequence = 1};
    cluster_split(cl, 1U << s1->id);
    op_start(s1, &x);
    cluster_run(cl, 30);
    uint64_t term = consensus_term(s1->consensus);
    node_end(s1, SIM_KILL);
    /* The third votes in several terms, and gets nothing of what they begin with. */
    cl->filter = lose_entries;
    CHECK(cluster_until(cl, either_leads, others, 10000));
    struct node *s2 = leads(cl, others[0]) ? others[0] : others[1];
    struct node *s3 = s2 == others[0] ? others[1] : others[0];
    while (consensus_term(s3->consensus) < term + 3) {
        cluster_run(cl, 30);
        reopen(s2, SIM_KILL);
        CHECK(cluster_until(cl, leads, s2, 10000));
    }
    node_end(s2, SIM_KILL);
    cluster_heal(cl);
    node_open(s1);
    CHECK(cluster_until(cl, leads, s1, 10000));
    submit_next(s3, 1);
    node_open(s2);
    cluster_agree(cl);
    cluster_destroy(cl);
}

/* The second voter does not know yet that it is one; the first dies and comes back. */
static void test_lost_promotion(uint64_t seed)
{
    struct cluster *cl = cluster_create(seed, 2);
    for (uint32_t i = 1; i <= 2; i++)
        node_open(&cl->nodes[i]);
    change_until(cl, (struct op){.kind = OP_ADD, .target = 2});
    change_until(cl,
                 (struct op){.kind = OP_ROLE, .target = 2, .role = CONSENSUS_STANDBY});
    submit_next(&cl->nodes[1], 1);
    cluster_agree(cl);
    struct op promote = {.kind = OP_ROLE, .target = 2, .role = CONSENSUS_VOTER};
    cl->is_blocked[1][2] = true;
    op_start(&cl->nodes[1], &promote);
    cluster_run(cl, 50);
    CHECK(!promote.is_over);
    reopen(&cl->nodes[1], SIM_KILL);
    struct consensus_member members[2];
    CHECK_EQ(consensus_members(cl->nodes[1].consensus, members, 2), 2);
    CHECK(members[1].role == CONSENSUS_VOTER);
    CHECK_EQ(consensus_members(cl->nodes[2].consensus, members, 2), 2);
    CHECK(members[1].role == CONSENSUS_STANDBY);
    cluster_heal(cl);
    submit_next(&cl->nodes[1], 1);
    cluster_agree(cl);
    cluster_destroy(cl);
}

/* A leader takes another's vote away and loses power before that is stored. The other
 * must not be the only one to know. */
static void test_lost_demotion(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 2);
    struct node *leader = cluster_leader(cl), *n = other_than(cl, leader);
    submit_many(leader, 1, 2);
    cluster_agree(cl);
    struct op demote = {.kind = OP_ROLE, .target = n->id, .role = CONSENSUS_STANDBY};
    sim_world_faults(cl->world)->latency_min_ns = 500 * NS_PER_MS;
    sim_world_faults(cl->world)->latency_max_ns = 500 * NS_PER_MS;
    op_start(leader, &demote);
    cluster_run(cl, 20);
    node_end(leader, SIM_POWER_CUT);
    cluster_run(cl, 1000);
    sim_world_faults(cl->world)->latency_min_ns = 0;
    sim_world_faults(cl->world)->latency_max_ns = NS_PER_MS;
    node_open(leader);
    submit_next(n, 1);
    cluster_agree(cl);
    cluster_destroy(cl);
}

/* A large log becomes a snapshot though it has few entries; a large one is cut into
 * several messages. */
static void test_large_commands(uint64_t seed)
{
    struct cluster *cl = cluster_create(seed, 3);
    cl->tuning.append_bytes = 30000;
    cl->tuning.snapshot_bytes = 200000;
    for (uint32_t i = 1; i <= 3; i++)
        node_open(&cl->nodes[i]);
    add_voter(cl, 2);
    add_voter(cl, 3);
    struct node *leader = cluster_leader(cl), *away = other_than(cl, leader);
    cluster_split(cl, 1U << away->id);
    for (unsigned i = 1; i <= 15; i++)
        CHECK_EQ(OP(leader, .kind = OP_SUBMIT, .client = 0, .sequence = i,
                    .pad_bytes = 10000),
                 0);
    CHECK(cl->largest_packet < 45000);
    cluster_heal(cl);
    cluster_agree(cl);
    CHECK(cl->largest_packet < 45000);
    for (unsigned i = 16; i <= 80; i++)
        CHECK_EQ(OP(leader, .kind = OP_SUBMIT, .client = 0, .sequence = i,
                    .pad_bytes = 10000),
                 0);
    cluster_agree(cl);
    CHECK_EQ(OP(leader, .kind = OP_SUBMIT, .client = 1, .sequence = 1,
                .pad_bytes = CONSENSUS_COMMAND_MAX),
             -EMSGSIZE);
    node_end(leader, SIM_POWER_CUT);
    node_open(leader);
    /* Had it kept all, it would have to apply 80 again. */
    CHECK(leader->counter.count >= 20);
    cluster_agree(cl);
    cluster_destroy(cl);
}

static void test_membership(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    struct node *leader = cluster_leader(cl), *n = other_than(cl, leader);
    CHECK_EQ(OP(n, .kind = OP_ADD, .target = 5), -PLX_ENOLEADER);
    CHECK_EQ(OP(leader, .kind = OP_ADD, .target = n->id), -PLX_EEXISTS);
    CHECK_EQ(OP(leader, .kind = OP_ROLE, .target = 6, .role = CONSENSUS_VOTER),
             -PLX_EMISSING);
    CHECK_EQ(OP(leader, .kind = OP_REMOVE, .target = 6), -PLX_EMISSING);
    CHECK_EQ(OP(leader, .kind = OP_ROLE, .target = n->id, .role = CONSENSUS_VOTER), 0);
    CHECK_EQ(OP(leader, .kind = OP_REMOVE, .target = leader->id), -PLX_EPRECONDITION);
    CHECK_EQ(OP(leader, .kind = OP_ROLE, .target = leader->id, .role = CONSENSUS_SPARE),
             -PLX_EPRECONDITION);
    CHECK_EQ(OP(leader, .kind = OP_TRANSFER, .target = 6), -PLX_EMISSING);
    /* A node that is not there does not become a voter. */
    CHECK_EQ(OP(leader, .kind = OP_ADD, .target = 6), 0);
    struct op slow = {.kind = OP_ROLE, .target = 6, .role = CONSENSUS_VOTER};
    op_start(leader, &slow);
    cluster_run(cl, 100);
    CHECK_EQ(OP(leader, .kind = OP_REMOVE, .target = n->id), -PLX_EBUSY);
    CHECK(cluster_until(cl, op_is_over, &slow, 60000));
    CHECK_EQ(slow.rc, -ETIMEDOUT);
    CHECK_EQ(OP(leader, .kind = OP_REMOVE, .target = 6), 0);
    /* Two of three, then one of two: no other voter is needed. */
    CHECK_EQ(OP(leader, .kind = OP_REMOVE, .target = n->id), 0);
    node_end(n, SIM_KILL);
    submit_many(leader, 1, 3);
    struct node *last = other_than(cl, leader);
    CHECK_EQ(OP(leader, .kind = OP_REMOVE, .target = last->id), 0);
    node_end(last, SIM_KILL);
    submit_many(leader, 1, 3);
    reopen(leader, SIM_POWER_CUT);
    submit_many(leader, 1, 1);
    /* A removed one that comes back disturbs nobody, and can be had again. */
    node_open(n);
    cluster_run(cl, 3000);
    CHECK_EQ(cluster_leader(cl), leader);
    uint64_t term = consensus_term(leader->consensus);
    CHECK_EQ(OP(n, .kind = OP_BARRIER), -PLX_ENOLEADER);
    CHECK_EQ(consensus_term(leader->consensus), term);
    add_voter(cl, n->id);
    submit_next(n, 1);
    cluster_agree(cl);
    CHECK_EQ(cl->max_count, 8);
    cluster_destroy(cl);
}

static void test_transfer(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    submit_many(&cl->nodes[1], 1, 3);
    for (unsigned i = 0; i < 6; i++) {
        struct node *leader = cluster_leader(cl), *n = other_than(cl, leader);
        uint64_t target = i % 2 == 0 ? n->id : 0;
        CHECK_EQ(OP(leader, .kind = OP_TRANSFER, .target = target), 0);
        CHECK(cluster_leader(cl) != leader);
        submit_next(leader, 1);
    }
    /* To one that is cut off: it stays, and goes on. */
    struct node *leader = cluster_leader(cl), *n = other_than(cl, leader);
    cluster_split(cl, 1U << n->id);
    CHECK_EQ(OP(leader, .kind = OP_TRANSFER, .target = n->id), -ETIMEDOUT);
    submit_next(leader, 1);
    cluster_heal(cl);
    cluster_agree(cl);
    cluster_destroy(cl);
}

/* A storage error ends it on this node, for all that waits and all that comes. */
static void test_storage_error(uint64_t seed)
{
    struct cluster *cl = cluster_of(seed, 3);
    struct node *leader = cluster_leader(cl), *n = other_than(cl, leader);
    submit_many(leader, 1, 3);
    struct op ops[3] = {{.kind = OP_SUBMIT, .client = 1, .sequence = 4},
                        {.kind = OP_BARRIER},
                        {.kind = OP_ADD, .target = 6}};
    sim_fail_nth_io(cl->world, 0); /* the leader's, which writes first */
    for (unsigned i = 0; i < 3; i++)
        op_start(leader, &ops[i]);
    for (unsigned i = 0; i < 3; i++)
        CHECK(cluster_until(cl, op_is_over, &ops[i], 10000));
    CHECK(sim_failure_happened(cl->world) && leader->has_failed);
    CHECK(consensus_has_failed(leader->consensus));
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(ops[i].rc, -PLX_EFAILED);
    CHECK_EQ(consensus_leader(leader->consensus), 0);
    CHECK_EQ(OP(leader, .kind = OP_BARRIER), -PLX_EFAILED);
    submit_next(n, 2);
    CHECK(!n->has_failed);
    uint64_t count = leader->counter.count, packets = cl->packets;
    CHECK_EQ(OP(leader, .kind = OP_CLOSE), 0);
    CHECK(count == leader->counter.count && packets <= cl->packets);
    node_end(leader, SIM_KILL);
    node_open(leader);
    submit_next(leader, 1);
    cluster_agree(cl);
    cluster_destroy(cl);
}

/* Node 3 is away, then gets a snapshot; the leader dies, then all go on. */
static void busy_life(struct cluster *cl)
{
    struct op ops[48];
    for (uint64_t i = 0; i < ARRAY_LEN(ops); i++) {
        struct node *n = &cl->nodes[1 + i % 3];
        uint64_t client = 1 + i % 7;
        ops[i] = (struct op){
            .kind = OP_SUBMIT, .client = client, .sequence = cl->acked[client] + 1};
        if (n->consensus != NULL)
            op_start(n, &ops[i]);
        cluster_run(cl, 1 + i % 9);
        if (i == 24)
            node_start(&cl->nodes[3]);
        if (i % 24 == 23)
            cluster_run(cl, 1500);
        if (i == 36 && leader_of(cl) != NULL)
            node_end(leader_of(cl), SIM_KILL);
    }
    cluster_run(cl, 5000);
}

/* The same wherever it strikes: each input or output of any node, in the middle of
 * appends, votes, snapshots taken and installed. */
static void storage_error_at(uint64_t seed, int64_t nth, bool *ret_happened)
{
    struct cluster *cl = cluster_create(seed, 3);
    cl->tuning.snapshot_entries = 8;
    cl->tuning.trailing_entries = 2;
    cl->pad_bytes = 9000;
    for (uint32_t i = 1; i <= 3; i++)
        node_open(&cl->nodes[i]);
    add_voter(cl, 2);
    add_voter(cl, 3);
    node_end(&cl->nodes[3], SIM_KILL);
    sim_fail_nth_io(cl->world, nth);
    busy_life(cl);
    *ret_happened = sim_failure_happened(cl->world);
    sim_fail_nth_io(cl->world, -1);
    for (uint32_t i = 1; i <= 3; i++)
        if (cl->nodes[i].loop == NULL || cl->nodes[i].has_failed ||
            cl->nodes[i].open_rc != 0) {
            if (cl->nodes[i].consensus != NULL)
                CHECK_EQ(OP(&cl->nodes[i], .kind = OP_CLOSE), 0);
            reopen(&cl->nodes[i], SIM_POWER_CUT);
        }
    for (uint32_t i = 1; i <= 3; i++)
        submit_next(&cl->nodes[i], i);
    cluster_agree(cl);
    cluster_destroy(cl);
}

static void test_storage_errors_everywhere(uint64_t seed)
{
    int64_t nth = 0;
    for (bool happened = true; happened; nth++) {
        storage_error_at(seed, nth, &happened);
        CHECK(nth < 2000);
    }
    CHECK(nth > 60);
}

int main(int argc, char **argv)
{
    static void (*const STORIES[])(uint64_t seed) = {
        test_one,
        test_growth,
        test_leader_killed,
        test_told_at_once,
        test_sent_to_the_dead,
        test_all_lose_power,
        test_partition,
        test_no_leader,
        test_bad_network,
        test_snapshot_install,
        test_snapshot_once,
        test_figure_8,
        test_old_term_new_log,
        test_late_append,
        test_lost_promotion,
        test_lost_demotion,
        test_large_commands,
        test_membership,
        test_transfer,
        test_storage_error,
        test_storage_errors_everywhere,
    };
    uint64_t seeds = argc > 1 ? strtoull(argv[1], NULL, 10) : seeds_of(SEEDS);
    for (size_t i = 0; i < ARRAY_LEN(STORIES); i++) {
        /* A process that is ended releases nothing, so it lives in a child. */
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            for (uint64_t seed = 1; seed <= seeds; seed++)
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
