/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several simulated hosts with one cluster state, each a process of its own with its own
 * metadata, and a network of packets between them that loses, delays and repeats. The
 * test runs the world from outside; what a host does is an errand, which is a task of it.
 */
#ifndef PARALLAX_TESTS_UNIT_CLUSTER_PEERS_H
#define PARALLAX_TESTS_UNIT_CLUSTER_PEERS_H

#include "replication/cluster.h"
#include "runtime/sim.h"
#include "tests/unit/check.h"

#define PEERS_MAX 5U

struct peers;

struct peer {
    struct peers *all;
    uint64_t id;
    struct loop *loop; /* NULL: not running */
    struct task_call call;
    struct kv *kv;
    struct cluster *cluster; /* NULL: not open */
    bool is_open, has_failed;
    uint64_t boots;
    char path[32];
};

struct peers {
    struct sim_world *world;
    struct peer peers[PEERS_MAX + 1]; /* by number */
    uint32_t count;
    struct consensus_tuning tuning;
    bool is_blocked[PEERS_MAX + 1][PEERS_MAX + 1]; /* from, to */
    uint32_t loss_ppm, twice_ppm, late_ppm;
};

static inline uint64_t chance_of(struct peers *all, uint64_t n)
{
    return sim_world_random(all->world, n);
}

/* --- the network --- */

struct packet {
    struct timer timer;
    struct peer *to;
    uint64_t from;
    size_t len;
    uint8_t bytes[];
};

static inline void packet_arrives(struct timer *timer)
{
    struct packet *packet = container_of(timer, struct packet, timer);
    if (packet->to->cluster != NULL)
        consensus_received(cluster_consensus(packet->to->cluster), packet->from,
                           packet->bytes, packet->len);
    free(packet);
}

static inline void packet_start(struct peer *from, struct peer *to, const void *bytes,
                                size_t len)
{
    struct peers *all = from->all;
    struct packet *packet = malloc(sizeof *packet + len);
    uint64_t delay_ns = 50 * NS_PER_US + chance_of(all, NS_PER_MS);
    CHECK(packet != NULL);
    if (chance_of(all, 1000000) < all->late_ppm)
        delay_ns += chance_of(all, 8 * NS_PER_S);
    *packet = (struct packet){
        .timer.fire = packet_arrives, .to = to, .from = from->id, .len = len};
    memcpy(packet->bytes, bytes, len);
    timer_start(to->loop, &packet->timer, delay_ns);
}

static inline void peer_send(void *arg, uint64_t node, const void *bytes, size_t len)
{
    struct peer *from = arg;
    struct peers *all = from->all;
    CHECK(node != 0 && node <= PEERS_MAX && node != from->id);
    struct peer *to = &all->peers[node];
    if (to->loop == NULL || all->is_blocked[from->id][node] ||
        chance_of(all, 1000000) < all->loss_ppm)
        return;
    packet_start(from, to, bytes, len);
    if (chance_of(all, 1000000) < all->twice_ppm)
        packet_start(from, to, bytes, len);
}

/* Parts the nodes whose bit is set from the others. */
static inline void peers_split(struct peers *all, uint32_t mask)
{
    for (uint32_t a = 1; a <= PEERS_MAX; a++)
        for (uint32_t b = 1; b <= PEERS_MAX; b++)
            all->is_blocked[a][b] = (mask >> a & 1) != (mask >> b & 1);
}

static inline void peers_heal(struct peers *all)
{
    peers_split(all, 0);
    all->loss_ppm = all->twice_ppm = all->late_ppm = 0;
}

/* --- nodes --- */

static inline struct peers *peers_create(uint64_t seed, uint32_t count)
{
    struct peers *all = calloc(1, sizeof *all);
    CHECK(all != NULL && count <= PEERS_MAX);
    all->world = sim_world_create(seed);
    all->count = count;
    *sim_world_faults(all->world) = (struct sim_faults){
        .latency_min_ns = 50 * NS_PER_US, .latency_max_ns = 3 * NS_PER_MS};
    for (uint32_t i = 1; i <= PEERS_MAX; i++) {
        all->peers[i].all = all;
        all->peers[i].id = i;
        snprintf(all->peers[i].path, sizeof all->peers[i].path, "node%u/kv", i);
    }
    return all;
}

static inline void peers_destroy(struct peers *all)
{
    sim_world_destroy(all->world);
    free(all);
}

static inline void peer_failed(void *arg, const char *why)
{
    CHECK(why[0] != '\0');
    ((struct peer *)arg)->has_failed = true;
}

static inline void peer_main(struct task_call *call)
{
    struct peer *n = container_of(call, struct peer, call);
    struct error err = {0};
    struct cluster *cluster = NULL;
    struct cluster_options options = {.loop = n->loop,
                                      .node = n->id,
                                      .link = {n, peer_send},
                                      .tuning = n->all->tuning,
                                      .failed = peer_failed,
                                      .arg = n};
    int rc = kv_open(n->loop, n->path, true, &n->kv, &err);
    options.kv = n->kv;
    if (rc == 0 && n->id == CLUSTER_FIRST_NODE) {
        rc = cluster_bootstrap(n->kv, n->id, &err);
        rc = rc == -PLX_EEXISTS ? 0 : rc;
    }
    if (rc == 0)
        rc = cluster_open(&options, &cluster, &err);
    if (rc != 0)
        fprintf(stderr, "node %u: %s\n", (unsigned)n->id, err.text);
    CHECK_EQ(rc, 0);
    n->cluster = cluster;
    n->is_open = true;
}

static inline void peer_start(struct peer *n)
{
    CHECK(n->loop == NULL);
    n->loop = sim_process_create(n->all->world);
    if (getenv("TEST_LOG") != NULL)
        log_set_fd(loop_log(n->loop), 2);
    n->boots++;
    n->is_open = n->has_failed = false;
    n->call = (struct task_call){.main = peer_main, .name = "node", .system = true};
    task_start(n->loop, &n->call);
}

static inline void peer_end(struct peer *n, enum sim_end how)
{
    struct loop *loop = n->loop;
    CHECK(loop != NULL);
    n->loop = NULL;
    n->cluster = NULL;
    n->is_open = false;
    sim_process_end(loop, how);
}

/* --- running --- */

typedef bool peers_cond(struct peers *all, void *arg);

/* Until cond(all, arg), at most limit_ms of its time. */
static inline bool peers_until(struct peers *all, peers_cond *cond, void *arg,
                               uint64_t limit_ms)
{
    uint64_t end_ns = sim_world_now_ns(all->world) + limit_ms * NS_PER_MS;
    while (!cond(all, arg))
        if (!sim_world_step(all->world) || sim_world_now_ns(all->world) > end_ns)
            return false;
    return true;
}

static inline bool never(struct peers *all, void *arg)
{
    (void)all, (void)arg;
    return false;
}

static inline void peers_run(struct peers *all, uint64_t ms)
{
    peers_until(all, never, NULL, ms);
}

static inline bool is_true(struct peers *all, void *arg)
{
    (void)all;
    return *(bool *)arg;
}

static inline void peer_open(struct peer *n)
{
    peer_start(n);
    CHECK(peers_until(n->all, is_true, &n->is_open, 60000));
}

static inline bool peer_leads(const struct peer *n)
{
    return n->cluster != NULL && consensus_is_leader(cluster_consensus(n->cluster));
}

/* Of the newest term, if several think so. */
static inline struct peer *leader_of(struct peers *all)
{
    struct peer *found = NULL;
    uint64_t term = 0;
    for (uint32_t i = 1; i <= all->count; i++) {
        struct peer *n = &all->peers[i];
        if (peer_leads(n) && consensus_term(cluster_consensus(n->cluster)) > term) {
            found = n;
            term = consensus_term(cluster_consensus(n->cluster));
        }
    }
    return found;
}

static inline bool has_leader(struct peers *all, void *arg)
{
    (void)arg;
    return leader_of(all) != NULL;
}

static inline struct peer *peers_leader(struct peers *all)
{
    CHECK(peers_until(all, has_leader, NULL, 30000));
    return leader_of(all);
}

/* --- errands --- */

struct errand {
    struct task_call call;
    struct peer *node;
    void (*run)(struct errand *errand);
    void *arg;
    struct cluster_command command;
    struct cluster_result result;
    uint64_t number; /* what the errand wants it for */
    bool gives_up;
    bool is_over;
    int rc;
};

static inline void errand_main(struct task_call *call)
{
    struct errand *errand = container_of(call, struct errand, call);
    errand->run(errand);
    errand->is_over = true;
}

static inline void errand_start(struct peer *n, struct errand *errand)
{
    CHECK(n->cluster != NULL);
    errand->node = n;
    errand->is_over = false;
    errand->call = (struct task_call){.main = errand_main, .name = "errand"};
    task_start(n->loop, &errand->call);
}

static inline int errand_wait(struct errand *errand, uint64_t limit_ms)
{
    CHECK(peers_until(errand->node->all, is_true, &errand->is_over, limit_ms));
    return errand->rc;
}

static inline int errand_do(struct peer *n, struct errand *errand)
{
    errand_start(n, errand);
    return errand_wait(errand, 120000);
}

#define ERRAND(n, ...) errand_do(n, &(struct errand){__VA_ARGS__})

static inline void run_submit(struct errand *errand)
{
    errand->rc = cluster_submit(errand->node->cluster, &errand->command, &errand->result);
}

static inline void run_submit_known(struct errand *errand)
{
    errand->rc = cluster_submit_known(errand->node->cluster, &errand->command,
                                      &errand->gives_up, &errand->result);
}

static inline void run_barrier(struct errand *errand)
{
    errand->rc = cluster_barrier(errand->node->cluster);
}

static inline void run_add(struct errand *errand)
{
    errand->rc = consensus_add(cluster_consensus(errand->node->cluster), errand->number);
}

static inline void run_vote(struct errand *errand)
{
    errand->rc = consensus_set_role(cluster_consensus(errand->node->cluster),
                                    errand->number, CONSENSUS_VOTER);
}

static inline void run_close(struct errand *errand)
{
    struct peer *n = errand->node;
    cluster_close(take(n->cluster));
    kv_close(n->kv);
    n->is_open = false;
    errand->rc = 0;
}

#define SUBMIT(n, ...)                                                                   \
    errand_do(n, &(struct errand){.run = run_submit, .command = {__VA_ARGS__}})

/* On whoever leads, until it works. */
static inline void peers_change(struct peers *all, void (*run)(struct errand *errand),
                                uint64_t number)
{
    for (unsigned i = 0; i < 50; i++) {
        int rc = ERRAND(peers_leader(all), .run = run, .number = number);
        if (rc == 0 || rc == -PLX_EEXISTS)
            return;
        peers_run(all, 100);
    }
    CHECK(false);
}

/* Makes a cluster of node 1, and the others its voters. */
static inline void peers_found(struct peers *all)
{
    for (uint32_t i = 1; i <= all->count; i++)
        peer_open(&all->peers[i]);
    CHECK_EQ(SUBMIT(&all->peers[1], .op = CLUSTER_INIT, .node = 1, .cluster = {{1}},
                    .store = {{1}}),
             0);
    for (uint32_t i = 2; i <= all->count; i++) {
        peers_change(all, run_add, i);
        peers_change(all, run_vote, i);
    }
}

static inline void peer_encode(const struct peer *n, struct writer *ret)
{
    *ret = (struct writer){0};
    cluster_state_encode(cluster_state(n->cluster), ret);
    CHECK(!ret->bad);
}

static inline bool all_same(struct peers *all)
{
    struct writer first = {0};
    bool is_same = true;
    for (uint32_t i = 1; i <= all->count && is_same; i++) {
        struct writer w;
        if (all->peers[i].cluster == NULL)
            continue;
        peer_encode(&all->peers[i], &w);
        if (first.bytes == NULL) {
            first = w;
            continue;
        }
        is_same = w.len == first.len && memcmp(w.bytes, first.bytes, w.len) == 0;
        writer_done(&w);
    }
    writer_done(&first);
    return is_same;
}

/* Everybody who runs comes to the same state, which is sound. */
static inline void peers_agree(struct peers *all)
{
    char text[200];
    (void)peers_leader(all);
    for (uint32_t i = 0; !all_same(all) && i < 1000; i++)
        peers_run(all, 60);
    CHECK(all_same(all));
    for (uint32_t i = 1; i <= all->count; i++)
        if (all->peers[i].cluster != NULL)
            CHECK_EQ(cluster_state_check(cluster_state(all->peers[i].cluster), text,
                                         sizeof text),
                     0);
}

#endif
