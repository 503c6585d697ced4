/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random lives of a cluster: processes die, power fails, storage fails and gets stuck,
 * the network parts, loses, repeats and delays, members come and go; while clients submit
 * and read through all nodes. The model (consensus_cluster.h) checks on the way that all
 * nodes apply the same, and nothing twice. In the end everything works again and nothing
 * acknowledged is missing.
 *
 *     test_consensus_random [FIRST_SEED [COUNT]]
 */
#include <sys/wait.h>

#include "replication/raft_internal.h"
#include "tests/unit/consensus_cluster.h"

#define SEEDS        300U
#define SEEDS_FORKED 20U /* what a dead process had allocated is not released */
#define ROUNDS       80U
#define READERS      4U

struct life {
    struct cluster *cl;
    struct op clients[CLIENTS], readers[READERS], change;
    uint64_t kills, cuts, failures, changes, reads, refused;
};

static bool is_idle(const struct op *op)
{
    return op->node == NULL || op->is_over || op->boots != op->node->boots ||
           op->node->loop == NULL;
}

/* One that runs, or NULL. */
static struct node *some_node(struct cluster *cl)
{
    struct node *n = &cl->nodes[1 + chance(cl, cl->count)];
    return n->consensus != NULL ? n : NULL;
}

static void clients_go_on(struct life *life)
{
    struct cluster *cl = life->cl;
    for (uint64_t i = 0; i < CLIENTS; i++) {
        struct node *n = some_node(cl);
        if (n == NULL || !is_idle(&life->clients[i]))
            continue;
        life->clients[i] = (struct op){.kind = OP_SUBMIT,
                                       .client = i,
                                       .sequence = cl->acked[i] + 1,
                                       .pad_bytes = (uint32_t)chance(cl, 300)};
        op_start(n, &life->clients[i]);
    }
    for (uint64_t i = 0; i < READERS; i++) {
        struct node *n = some_node(cl);
        if (n == NULL || !is_idle(&life->readers[i]))
            continue;
        life->reads += life->readers[i].is_over && life->readers[i].rc == 0;
        life->readers[i] = (struct op){.kind = OP_BARRIER};
        op_start(n, &life->readers[i]);
    }
}

static void change_something(struct life *life)
{
    struct cluster *cl = life->cl;
    struct node *leader = leader_of(cl);
    if (leader == NULL || !is_idle(&life->change))
        return;
    life->changes += life->change.is_over && life->change.rc == 0;
    life->refused += life->change.is_over && life->change.rc != 0;
    life->change = (struct op){.kind = OP_ADD + (enum op_kind)chance(cl, 4),
                               .target = 1 + chance(cl, cl->count),
                               .role = (enum consensus_role)chance(cl, 3)};
    /* Rather many voters than few. */
    if (life->change.kind == OP_ROLE && chance(cl, 3) != 0)
        life->change.role = CONSENSUS_VOTER;
    op_start(leader, &life->change);
}

static void end_one(struct life *life, enum sim_end how)
{
    struct node *n = &life->cl->nodes[1 + chance(life->cl, life->cl->count)];
    /* The leader is where most can go wrong. */
    if (chance(life->cl, 2) == 0 && leader_of(life->cl) != NULL)
        n = leader_of(life->cl);
    if (n->loop == NULL)
        return;
    node_end(n, how);
    life->kills += how == SIM_KILL;
    life->cuts += how == SIM_POWER_CUT;
}

static void end_all(struct life *life)
{
    for (uint32_t i = 1; i <= life->cl->count; i++)
        if (life->cl->nodes[i].loop != NULL)
            node_end(&life->cl->nodes[i], SIM_POWER_CUT);
}

static void start_missing(struct life *life)
{
    for (uint32_t i = 1; i <= life->cl->count; i++) {
        struct node *n = &life->cl->nodes[i];
        if (n->loop != NULL && (n->has_failed || (n->is_open && n->open_rc != 0))) {
            node_end(n, chance(life->cl, 2) ? SIM_KILL : SIM_POWER_CUT);
            life->failures++;
        }
        if (n->loop == NULL)
            node_start(n);
    }
}

static void block_one(struct cluster *cl)
{
    uint32_t from = 1 + (uint32_t)chance(cl, cl->count);
    uint32_t to = 1 + (uint32_t)chance(cl, cl->count);
    cl->is_blocked[from][to] = true;
    if (cl->has_calls)
        sim_net_block(cl->world, from, to, true);
}

static void heal(struct cluster *cl)
{
    cluster_heal(cl);
    sim_world_faults(cl->world)->net_reset_ppm = 0;
    sim_world_faults(cl->world)->net_stuck_ppm = 0;
}

static void make_trouble(struct life *life)
{
    struct cluster *cl = life->cl;
    switch (chance(cl, 20)) {
    case 0:
        end_one(life, SIM_KILL);
        break;
    case 1:
        end_one(life, SIM_POWER_CUT);
        break;
    case 2:
        if (chance(cl, 4) == 0)
            end_all(life);
        break;
    case 3:
    case 4:
    case 12:
        start_missing(life);
        break;
    case 5:
        cluster_split(cl, (uint32_t)chance(cl, 1U << (cl->count + 1)));
        break;
    case 6:
        block_one(cl);
        break;
    case 7:
    case 13:
        heal(cl);
        break;
    case 8:
        cl->loss_ppm = (uint32_t)chance(cl, 300000);
        sim_world_faults(cl->world)->net_reset_ppm = (uint32_t)chance(cl, 10000);
        break;
    case 9:
        cl->twice_ppm = (uint32_t)chance(cl, 300000);
        cl->late_ppm = (uint32_t)chance(cl, 100000);
        sim_world_faults(cl->world)->net_stuck_ppm = (uint32_t)chance(cl, 10000);
        break;
    case 10:
        sim_fail_nth_io(cl->world, (int64_t)chance(cl, 40));
        break;
    case 11:
        sim_world_faults(cl->world)->stuck_ppm = chance(cl, 3) == 0 ? 20000 : 0;
        break;
    default:
        change_something(life);
    }
}

static bool all_open(struct cluster *cl, void *arg)
{
    (void)arg;
    for (uint32_t i = 1; i <= cl->count; i++)
        if (cl->nodes[i].consensus == NULL)
            return false;
    return true;
}

static void recover(struct life *life)
{
    struct cluster *cl = life->cl;
    heal(cl);
    sim_fail_nth_io(cl->world, -1);
    sim_world_faults(cl->world)->stuck_ppm = 0;
    start_missing(life);
    cluster_run(cl, 12000); /* what was stuck or late is over, or has failed */
    start_missing(life);
    CHECK(cluster_until(cl, all_open, NULL, 60000));
    for (uint32_t i = 1; i <= cl->count; i++)
        add_voter(cl, i);
    for (uint32_t i = 1; i <= cl->count; i++)
        submit_next(&cl->nodes[i], i % CLIENTS);
    cluster_agree(cl);
    for (uint32_t i = 1; i <= cl->count; i++)
        CHECK_EQ(OP(&cl->nodes[i], .kind = OP_BARRIER), 0);
}

static void live(uint64_t seed, bool is_loud)
{
    struct life life = {.cl = cluster_create(seed, 1)};
    struct cluster *cl = life.cl;
    cl->count = 3 + 2 * (uint32_t)chance(cl, 2);
    cl->tuning.snapshot_entries = 10 + (uint32_t)chance(cl, 60);
    cl->tuning.trailing_entries = 1 + (uint32_t)chance(cl, 8);
    cl->tuning.append_bytes = 100 + (uint32_t)chance(cl, 4000);
    cl->tuning.wait_ms = 1500;
    cl->pad_bytes = (uint32_t)chance(cl, 12000);
    cl->has_calls = chance(cl, 3) == 0;
    sim_world_faults(cl->world)->net_latency_min_ns = 50 * NS_PER_US;
    sim_world_faults(cl->world)->net_latency_max_ns = NS_PER_MS;
    for (uint32_t i = 1; i <= cl->count; i++)
        node_open(&cl->nodes[i]);
    for (uint32_t i = 2; i <= cl->count; i++)
        add_voter(cl, i);
    for (unsigned round = 0; round < ROUNDS; round++) {
        clients_go_on(&life);
        make_trouble(&life);
        uint64_t ms = chance(cl, chance(cl, 4) == 0 ? 600 : 60);
        for (uint64_t i = 0; i < 1 + ms / 10; i++) {
            clients_go_on(&life);
            cluster_run(cl, ms / 10 + 1);
        }
    }
    recover(&life);
    if (is_loud)
        printf("seed %llu: %u nodes%s, %llu commands, %llu reads, %llu+%llu changes, "
               "%llu kills, %llu cuts, %llu failures, %llu packets, %.1f s\n",
               (unsigned long long)seed, cl->count,
               cl->has_calls ? " with calls" : "", (unsigned long long)cl->max_count,
               (unsigned long long)life.reads, (unsigned long long)life.changes,
               (unsigned long long)life.refused, (unsigned long long)life.kills,
               (unsigned long long)life.cuts, (unsigned long long)life.failures,
               (unsigned long long)cl->packets,
               (double)sim_world_now_ns(cl->world) / 1e9);
    cluster_destroy(cl);
}

int main(int argc, char **argv)
{
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t count = argc > 1 ? 1 : seeds_of(SEEDS);
    if (argc > 2)
        count = strtoull(argv[2], NULL, 10);
    for (uint64_t at = 0; at < count; at += SEEDS_FORKED) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            for (uint64_t i = at; i < count && i < at + SEEDS_FORKED; i++) {
                /* Told before it can die. */
                char name[32];
                snprintf(name, sizeof name, "%llu", (unsigned long long)(first + i));
                setenv("SEED", name, 1);
                live(first + i, argc > 1);
            }
            fflush(stdout);
            _exit(0);
        }
        int status = 0;
        CHECK_EQ(waitpid(child, &status, 0), child);
        if (status != 0)
            fprintf(stderr, "one of the seeds %llu to %llu\n",
                    (unsigned long long)(first + at),
                    (unsigned long long)(first + at + SEEDS_FORKED - 1));
        CHECK_EQ(status, 0);
    }
    return 0;
}
