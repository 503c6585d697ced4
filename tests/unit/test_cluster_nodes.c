/* SPDX-License-Identifier: Apache-2.0 */
/* One cluster state on several nodes: what was answered has happened, once; what cannot
 * be known is said to be so, and nothing else is. */
#include <sys/wait.h>

#include "tests/unit/cluster_peers.h"

#define SEEDS 12U
#define LIVES 60U

static const char *name_of(uint64_t number)
{
    static char text[40];
    snprintf(text, sizeof text, "d%llu", (unsigned long long)number);
    return text;
}

static int create(struct peer *n, uint64_t number)
{
    return SUBMIT(n, .op = CLUSTER_DISK_CREATE, .name = name_of(number),
                  .size_bytes = MIB);
}

static const struct cluster_disk *disk_of(const struct peer *n, const char *name)
{
    return cluster_disk_by_name(cluster_state(n->cluster), name);
}

static bool has_disk(const struct peer *n, uint64_t number)
{
    return disk_of(n, name_of(number)) != NULL;
}

static struct errand errand_creating(const char *name)
{
    return (struct errand){
        .run = run_submit,
        .command = {.op = CLUSTER_DISK_CREATE, .name = name, .size_bytes = MIB}};
}

static struct peer *other_than(struct peers *all, const struct peer *node)
{
    for (uint32_t i = 1; i <= all->count; i++)
        if (&all->peers[i] != node && all->peers[i].cluster != NULL)
            return &all->peers[i];
    return NULL;
}

static struct peers *three(uint64_t seed)
{
    struct peers *all = peers_create(seed, 3);
    peers_found(all);
    return all;
}

/* --- stories --- */

/* Who joins has nothing until he is added; then a command of anybody is applied where it
 * was submitted when it is answered, and everywhere after a barrier. */
static void test_growth(uint64_t seed)
{
    struct peers *all = peers_create(seed, 3);
    peer_open(&all->peers[1]);
    CHECK(peer_leads(&all->peers[1])); /* without waiting for an election */
    CHECK_EQ(SUBMIT(&all->peers[1], .op = CLUSTER_INIT, .node = 1, .cluster = {{1}}), 0);
    CHECK_EQ(create(&all->peers[1], 1), 0);
    peers_run(all, 1);
    CHECK(!sim_world_step(all->world)); /* alone, it does nothing unasked */
    for (uint32_t i = 2; i <= 3; i++) {
        peer_open(&all->peers[i]);
        peers_run(all, 3000);
        CHECK_EQ(cluster_state_applied(cluster_state(all->peers[i].cluster)), 0);
        peers_change(all, run_add, i);
        peers_change(all, run_vote, i);
        CHECK_EQ(ERRAND(&all->peers[i], .run = run_barrier), 0);
        CHECK(has_disk(&all->peers[i], 1));
    }
    for (uint32_t i = 1; i <= 3; i++) {
        CHECK_EQ(create(&all->peers[i], 10 + i), 0);
        CHECK(has_disk(&all->peers[i], 10 + i));
        CHECK_EQ(create(&all->peers[i], 10 + i), -PLX_EEXISTS);
        for (uint32_t k = 1; k <= 3; k++) {
            CHECK_EQ(ERRAND(&all->peers[k], .run = run_barrier), 0);
            CHECK(has_disk(&all->peers[k], 10 + i));
        }
    }
    peers_agree(all);
    for (uint32_t i = 1; i <= 3; i++)
        CHECK_EQ(ERRAND(&all->peers[i], .run = run_close), 0);
    peers_destroy(all);
}

/* A leader dies with commands of all nodes on their way: those of the others are carried
 * out once, and none is called refused. */
static void test_leader_dies(uint64_t seed)
{
    static struct errand errands[60];
    static char names[ARRAY_LEN(errands)][40];
    struct peers *all = three(seed);
    struct peer *leader = peers_leader(all);
    for (uint32_t i = 0; i < ARRAY_LEN(errands); i++) {
        snprintf(names[i], sizeof names[i], "%s", name_of(i));
        errands[i] = errand_creating(names[i]);
        errand_start(&all->peers[1 + i % 3], &errands[i]);
    }
    peers_run(all, chance_of(all, 12));
    peer_end(leader, chance_of(all, 2) ? SIM_KILL : SIM_POWER_CUT);
    for (uint32_t i = 0; i < ARRAY_LEN(errands); i++)
        if (errands[i].node != leader)
            CHECK_EQ(errand_wait(&errands[i], 40000), 0);
    peer_open(leader);
    peers_agree(all);
    for (uint32_t i = 0; i < ARRAY_LEN(errands); i++)
        if (errands[i].is_over && errands[i].rc == 0)
            CHECK(has_disk(leader, i));
    peers_destroy(all);
}

/* Without a majority: what may be in a log is unknown after a while, what never left is
 * not carried out; who can wait is told the truth when the others are back. */
static void test_no_majority(uint64_t seed)
{
    struct peers *all = three(seed);
    struct peer *leader = peers_leader(all), *other = other_than(all, leader);
    struct errand unknown = errand_creating("unknown"), known = errand_creating("known");
    struct errand given_up = errand_creating("given-up");
    known.run = given_up.run = run_submit_known;
    CHECK_EQ(create(other, 1), 0);
    peers_split(all, 1U << leader->id);
    uint64_t began_ns = sim_world_now_ns(all->world);
    errand_start(leader, &unknown);
    errand_start(leader, &known);
    errand_start(leader, &given_up);
    peers_run(all, 2000);
    CHECK(!peer_leads(leader));
    CHECK_EQ(create(leader, 2), -PLX_ENOLEADER);
    CHECK_EQ(ERRAND(leader, .run = run_barrier), -PLX_ENOLEADER);
    CHECK_EQ(errand_wait(&unknown, 60000), -PLX_EUNKNOWN);
    CHECK(unknown.result.text[0] != '\0');
    CHECK(cluster_outcome_is_unknown(unknown.rc));
    CHECK(sim_world_now_ns(all->world) - began_ns >= CLUSTER_SUBMIT_MS * NS_PER_MS);
    peers_run(all, 60000);
    CHECK(!known.is_over && !given_up.is_over);
    given_up.gives_up = true;
    CHECK_EQ(errand_wait(&given_up, 10000), -PLX_EUNKNOWN);
    CHECK_EQ(create(other, 3), 0); /* the others have a leader */
    peers_heal(all);
    CHECK_EQ(errand_wait(&known, 30000), 0);
    CHECK_EQ(create(leader, 4), 0);
    peers_agree(all);
    CHECK(!has_disk(other, 2) && has_disk(other, 3) && disk_of(other, "known") != NULL);
    peers_destroy(all);
}

/* A node that sends what is no command, or none that is known yet, harms nobody. */
static void test_nonsense(uint64_t seed)
{
    struct peers *all = three(seed);
    struct peer *leader = peers_leader(all), *other = other_than(all, leader);
    struct writer submit = {0};
    write_u8(&submit, 1); /* doc/format-consensus.md */
    write_u8(&submit, 7);
    write_u64(&submit, 1);
    write_u64(&submit, 1);
    for (uint32_t i = 0; i < 8; i++) {
        consensus_received(cluster_consensus(leader->cluster), other->id, submit.bytes,
                           submit.len);
        write_u8(&submit, 255);
    }
    writer_done(&submit);
    CHECK_EQ(create(leader, 1), 0);
    CHECK_EQ(create(other, 2), 0);
    for (uint32_t i = 1; i <= 3; i++)
        CHECK(!all->peers[i].has_failed);
    peers_agree(all);
    peers_destroy(all);
}

/* Those who can wait for ever leave nothing for others, who must not. */
static void test_crowd(uint64_t seed)
{
    struct errand known[CLUSTER_SUBMITS_MAX];
    struct peers *all = three(seed);
    struct peer *leader = peers_leader(all);
    peers_split(all, 1U << leader->id);
    for (uint32_t i = 0; i < ARRAY_LEN(known); i++) {
        known[i] = (struct errand){
            .run = run_submit_known,
            .command = {.op = CLUSTER_SETTINGS, .trash_keep_s = i}};
        errand_start(leader, &known[i]);
    }
    peers_run(all, 100);
    struct errand other = errand_creating("other");
    errand_start(leader, &other);
    CHECK_EQ(errand_wait(&other, CLUSTER_SUBMIT_MS + 1000), -PLX_ELIMIT);
    peers_heal(all);
    for (uint32_t i = 0; i < ARRAY_LEN(known); i++)
        CHECK_EQ(errand_wait(&known[i], 30000), 0);
    CHECK_EQ(create(leader, 1), 0);
    peers_agree(all);
    peers_destroy(all);
}

/* A node learns from a snapshot what has become of a command: it was carried out while
 * the node heard of nothing, and the log of that time is gone. */
static void test_answer_in_snapshot(uint64_t seed)
{
    struct peers *all = peers_create(seed, 3);
    all->tuning = (struct consensus_tuning){.snapshot_entries = 8, .trailing_entries = 2};
    peers_found(all);
    struct peer *leader = peers_leader(all), *deaf = other_than(all, leader);
    struct errand created = errand_creating("a"), refused = errand_creating("b");
    refused.command.size_bytes = 1;
    for (uint32_t i = 1; i <= 3; i++)
        all->is_blocked[i][deaf->id] = true;
    errand_start(deaf, &created);
    errand_start(deaf, &refused);
    peers_run(all, 200);
    CHECK(disk_of(leader, "a") != NULL);
    peers_split(all, 1U << deaf->id); /* so that it says nothing more */
    for (uint32_t i = 0; i < 40; i++)
        CHECK_EQ(create(leader, i), 0);
    peers_heal(all);
    CHECK_EQ(errand_wait(&created, 30000), 0);
    CHECK_EQ(errand_wait(&refused, 30000), -EINVAL);
    CHECK_EQ(created.result.id, disk_of(deaf, "a")->id);
    peers_agree(all);
    peers_destroy(all);
}

/* --- waiting and watching --- */

struct watching {
    struct cluster_watcher watcher;
    struct peer *node;
    uint64_t seen, calls;
    bool leaves;
};

static void note_applied(struct cluster_watcher *watcher)
{
    struct watching *watching = container_of(watcher, struct watching, watcher);
    watching->seen = cluster_state_applied(cluster_state(watching->node->cluster));
    watching->calls++;
    if (watching->leaves)
        cluster_off_apply(watching->node->cluster, watcher);
}

static void run_wait(struct errand *errand)
{
    errand->rc = cluster_wait_applied(errand->node->cluster, errand->number, NS_PER_S);
}

static void test_waiting(uint64_t seed)
{
    struct peers *all = three(seed);
    struct peer *leader = peers_leader(all), *n = other_than(all, leader);
    struct watching stays = {.watcher.applied = note_applied, .node = n},
                    leaves = {.watcher.applied = note_applied, .node = n, .leaves = true};
    cluster_on_apply(n->cluster, &leaves.watcher);
    cluster_on_apply(n->cluster, &stays.watcher);
    CHECK_EQ(create(leader, 1), 0);
    uint64_t index = cluster_state_applied(cluster_state(leader->cluster));
    CHECK_EQ(ERRAND(n, .run = run_wait, .number = index), 0);
    CHECK(has_disk(n, 1));
    CHECK_EQ(ERRAND(n, .run = run_wait, .number = index), 0); /* at once */
    peers_run(all, 100);
    CHECK(stays.calls >= 1 && stays.seen == index);
    CHECK_EQ(leaves.calls, 1);
    CHECK_EQ(ERRAND(n, .run = run_wait, .number = index + 1), -ETIMEDOUT);
    struct errand waiting = {.run = run_wait, .number = index + 1000};
    errand_start(n, &waiting);
    peers_run(all, 10);
    cluster_off_apply(n->cluster, &stays.watcher);
    CHECK_EQ(ERRAND(n, .run = run_close), 0);
    CHECK(waiting.is_over && waiting.rc == -PLX_ECANCELLED);
    peers_destroy(all);
}

/* Closing waits for one attempt of what is on its way, and for no leader. */
static void test_close(uint64_t seed)
{
    struct errand errands[2 * CLUSTER_SUBMITS_MAX];
    struct peers *all = three(seed);
    struct peer *leader = peers_leader(all);
    peers_split(all, 1U << leader->id);
    for (uint32_t i = 0; i < ARRAY_LEN(errands); i++) {
        errands[i] = (struct errand){
            .run = run_submit, .command = {.op = CLUSTER_SETTINGS, .trash_keep_s = i}};
        errand_start(leader, &errands[i]);
    }
    peers_run(all, 100);
    uint64_t began_ns = sim_world_now_ns(all->world);
    CHECK_EQ(ERRAND(leader, .run = run_close), 0);
    CHECK(sim_world_now_ns(all->world) - began_ns < 6 * NS_PER_S);
    for (uint32_t i = 0; i < ARRAY_LEN(errands); i++) {
        CHECK(errands[i].is_over);
        CHECK_EQ(errands[i].rc,
                 i < CLUSTER_SUBMITS_MAX ? -PLX_EUNKNOWN : -PLX_ECANCELLED);
    }
    peers_destroy(all);
}

/* A node whose storage fails takes no more, and says so; the others go on. */
static void test_storage_fails(uint64_t seed)
{
    struct peers *all = three(seed);
    struct peer *leader = peers_leader(all), *n = other_than(all, leader);
    struct errand waiting = {.run = run_wait, .number = UINT64_MAX};
    errand_start(leader, &waiting);
    peers_run(all, 10);
    sim_fail_nth_io(all->world, 0);
    CHECK_EQ(create(leader, 1), -PLX_EFAILED);
    CHECK(leader->has_failed);
    CHECK_EQ(cluster_failure(leader->cluster), -EIO);
    CHECK(cluster_outcome_is_unknown(-PLX_EFAILED));
    CHECK_EQ(errand_wait(&waiting, 10), -PLX_EFAILED);
    CHECK_EQ(ERRAND(leader, .run = run_barrier), -PLX_EFAILED);
    CHECK_EQ(create(n, 2), 0);
    CHECK(!n->has_failed && cluster_failure(n->cluster) == 0);
    CHECK_EQ(ERRAND(leader, .run = run_close), 0);
    peer_end(leader, SIM_KILL);
    peer_open(leader);
    peers_agree(all);
    CHECK(has_disk(leader, 2));
    peers_destroy(all);
}

/* --- random lives --- */

/*
 * Disks have names of their own, so nothing may say that one is there already; and an
 * extent takes a sequence, so they count how often a command was carried out.
 */
struct model {
    uint64_t next_name;
    uint64_t opened, opened_maybe; /* extents: answered, or with an unknown outcome */
};

#define ERRANDS   24U
#define LOG_DISK  1U
#define TROUBLES  4U
#define ROUNDS    6U

static void errand_make(struct model *model, struct errand *errand, char name[40])
{
    uint64_t number = ++model->next_name;
    snprintf(name, 40, "%s", name_of(number));
    *errand = errand_creating(name);
    errand->number = number;
    if (number % 2 == 0)
        errand->command = (struct cluster_command){.op = CLUSTER_EXTENT_OPEN,
                                                   .disk = LOG_DISK,
                                                   .epoch = 1,
                                                   .count = 1,
                                                   .member_count = 1,
                                                   .members = {1}};
}

static void trouble(struct peers *all)
{
    struct peer *n = &all->peers[1 + chance_of(all, all->count)];
    switch (chance_of(all, 5)) {
    case 0:
        peers_split(all, (uint32_t)chance_of(all, 1U << (all->count + 1)));
        break;
    case 1:
        all->loss_ppm = (uint32_t)chance_of(all, 300000);
        all->late_ppm = (uint32_t)chance_of(all, 200000);
        all->twice_ppm = (uint32_t)chance_of(all, 300000);
        break;
    case 2:
        peers_heal(all);
        break;
    default:
        if (n->loop != NULL)
            peer_end(n, chance_of(all, 2) ? SIM_KILL : SIM_POWER_CUT);
        else
            peer_start(n);
    }
}

/* Waits for it, or until its process is dead. */
static void errand_judge(struct peers *all, struct model *model, struct errand *errand,
                         uint64_t boots)
{
    struct peer *n = errand->node;
    bool is_extent = errand->command.op == CLUSTER_EXTENT_OPEN;
    while (!errand->is_over && n->boots == boots && n->loop != NULL)
        peers_run(all, 500);
    if (!errand->is_over) {
        model->opened_maybe += is_extent;
        return;
    }
    if (errand->rc == 0)
        model->opened += is_extent;
    else if (cluster_outcome_is_unknown(errand->rc))
        model->opened_maybe += is_extent;
    else
        CHECK_EQ(errand->rc, -PLX_ENOLEADER);
    if (errand->rc == 0 && !is_extent && n->boots == boots && n->cluster != NULL)
        CHECK(has_disk(n, errand->number));
}

/* Many errands, and trouble. */
static void live_round(struct peers *all, struct model *model)
{
    static struct errand errands[ERRANDS];
    static char names[ERRANDS][40];
    uint64_t boots[ERRANDS];
    uint32_t count = 0;
    for (; count < ERRANDS; count++) {
        struct peer *n = &all->peers[1 + chance_of(all, all->count)];
        if (n->cluster == NULL)
            break;
        errand_make(model, &errands[count], names[count]);
        errand_start(n, &errands[count]);
        boots[count] = n->boots;
        if (chance_of(all, 3) == 0)
            peers_run(all, chance_of(all, 30));
    }
    for (uint32_t i = 0; i < TROUBLES; i++) {
        trouble(all);
        peers_run(all, chance_of(all, 4000));
    }
    if (chance_of(all, 2))
        peers_heal(all);
    for (uint32_t i = 0; i < count; i++)
        errand_judge(all, model, &errands[i], boots[i]);
}

static void open_all(struct peers *all)
{
    peers_heal(all);
    for (uint32_t i = 1; i <= all->count; i++) {
        if (all->peers[i].loop == NULL)
            peer_start(&all->peers[i]);
        CHECK(peers_until(all, is_true, &all->peers[i].is_open, 60000));
    }
}

static void test_life(uint64_t seed)
{
    struct peers *all = peers_create(seed, seed % 2 == 0 ? 3 : 5);
    struct model model = {0};
    all->tuning = (struct consensus_tuning){
        .snapshot_entries = 5 + (uint32_t)(seed % 40), .trailing_entries = 3};
    peers_found(all);
    CHECK_EQ(SUBMIT(&all->peers[1], .op = CLUSTER_DISK_CREATE, .name = "log",
                    .size_bytes = MIB),
             0);
    CHECK_EQ(SUBMIT(&all->peers[1], .op = CLUSTER_LEASE_TAKE, .disk = LOG_DISK,
                    .node = 1),
             0);
    for (uint32_t i = 0; i < ROUNDS; i++)
        live_round(all, &model);
    open_all(all);
    peers_agree(all);
    peers_run(all, 20000); /* late copies come */
    peers_agree(all);
    const struct cluster_state *state = cluster_state(all->peers[1].cluster);
    uint64_t opened = cluster_state_next_sequence(state) - 1;
    CHECK(opened >= model.opened && opened <= model.opened + model.opened_maybe);
    CHECK_EQ(cluster_disk_by_id(state, LOG_DISK)->extent_count, opened);
    peers_destroy(all);
}

int main(int argc, char **argv)
{
    static void (*const STORIES[])(uint64_t seed) = {
        test_growth,  test_leader_dies, test_no_majority,   test_crowd,
        test_answer_in_snapshot,        test_waiting,       test_close,
        test_storage_fails,             test_nonsense,      test_life,
    };
    for (size_t i = 0; i < ARRAY_LEN(STORIES); i++) {
        uint64_t last = seeds_of(STORIES[i] == test_life ? LIVES : SEEDS), first = 1;
        if (argc > 1) /* one seed, all stories */
            first = last = strtoull(argv[1], NULL, 10);
        /* A process that is ended releases nothing, so it lives in a child. */
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            for (uint64_t seed = first; seed <= last; seed++)
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
