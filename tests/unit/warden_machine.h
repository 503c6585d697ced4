/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Simulated hosts that are nodes of one cluster: rpc, consensus, cluster state and
 * warden, as the daemon has them. Their stores are only said to be; a node makes itself
 * whole in its groups after a while, as if it had copied what it lacked.
 */
#ifndef PARALLAX_TESTS_UNIT_WARDEN_MACHINE_H
#define PARALLAX_TESTS_UNIT_WARDEN_MACHINE_H

#include "replication/consensus_rpc.h"
#include "replication/warden.h"
#include "runtime/sim.h"
#include "tests/unit/check.h"

#define HOSTS_MAX  8U
#define RECOVER_MS 300U /* one member */
#define HOST_BYTES TIB

struct world;

struct host {
    struct world *world;
    uint64_t id, greeted;
    struct loop *loop; /* NULL: not running */
    struct task_call call, recovery;
    struct kv *kv;
    struct buffer_pool *pool;
    struct rpc *rpc;
    struct consensus_rpc *binding;
    struct cluster *cluster; /* NULL: not open */
    struct warden *warden;
    struct warden_usage usage;
    char path[32], address[DISK_NAME_MAX + 1];
    bool is_open, is_closing, is_recovering, has_failed, recovers;
};

struct world {
    struct sim_world *sim;
    struct host hosts[HOSTS_MAX + 1]; /* by number */
    uint64_t out_ns;
};

/* --- what a host offers --- */

static inline void host_post(void *arg, struct rpc_request *request)
{
    consensus_rpc_post(((struct host *)arg)->binding, request);
}

static inline void host_part(void *arg, struct rpc_request *request)
{
    consensus_rpc_part(((struct host *)arg)->binding, request);
}

static inline void host_heartbeat(void *arg, struct rpc_request *request)
{
    struct host *h = arg;
    if (h->warden != NULL)
        warden_heartbeat(h->warden, request);
}

static const struct rpc_op op_post = {.number = CONSENSUS_RPC_POST,
                                      .name = "consensus",
                                      .is_one_way = true,
                                      .head_max = CONSENSUS_POST_MAX,
                                      .handle = host_post};
static const struct rpc_op op_part = {.number = CONSENSUS_RPC_PART,
                                      .name = "consensus part",
                                      .head_max = CONSENSUS_PART_HEAD_BYTES,
                                      .payload_max = CONSENSUS_PART_MAX,
                                      .handle = host_part};
static const struct rpc_op op_heartbeat = {.number = HEARTBEAT_RPC,
                                           .name = "heartbeat",
                                           .is_one_way = true,
                                           .head_max = HEARTBEAT_MAX,
                                           .handle = host_heartbeat};
static const struct rpc_op *const host_ops[] = {&op_post, &op_part, &op_heartbeat, NULL};

static inline void host_usage(void *arg, struct warden_usage *ret)
{
    *ret = ((struct host *)arg)->usage;
}

static inline void host_failed(void *arg, const char *why)
{
    CHECK(why[0] != '\0');
    ((struct host *)arg)->has_failed = true;
}

/* --- recovery --- */

static inline bool find_missing(const struct host *h, struct cluster_command *ret)
{
    const struct cluster_state *state = cluster_state(h->cluster);
    const struct cluster_group *group = NULL;
    while ((group = cluster_group_next(state, group)) != NULL) {
        const struct group_member *member = cluster_group_member(group, h->id);
        bool has_source = false;
        for (unsigned i = 0; i < group->member_count; i++)
            has_source |= group->members[i].missing_since == 0 &&
                          h->world->hosts[group->members[i].node].loop != NULL;
        if (member == NULL || member->missing_since == 0 || !has_source)
            continue;
        *ret = (struct cluster_command){.op = CLUSTER_GROUP_WHOLE,
                                        .group = group->id,
                                        .node = h->id,
                                        .number = member->missing_since};
        return true;
    }
    return false;
}

/* One node in turn, so that all are connected; the greetings of real ones do that. */
static inline void greet_one(struct host *h)
{
    const struct cluster_state *state = cluster_state(h->cluster);
    const struct cluster_node *node = NULL;
    uint64_t last = h->greeted;
    h->greeted = 0;
    while ((node = cluster_node_next(state, node)) != NULL) {
        if (node->id <= last || node->id == h->id || (node->flags & NODE_GONE))
            continue;
        rpc_post(h->rpc, node->id, HEARTBEAT_RPC, "", 1, NULL, 0); /* no heartbeat */
        h->greeted = node->id;
        return;
    }
}

static inline void recovery_main(struct task_call *call)
{
    struct host *h = container_of(call, struct host, recovery);
    struct cluster_command command;
    struct cluster_result result;
    while (!h->is_closing) {
        task_sleep_ns(RECOVER_MS * NS_PER_MS);
        if (!h->is_closing && h->recovers && !h->usage.is_broken &&
            find_missing(h, &command))
            cluster_submit(h->cluster, &command, &result);
        if (!h->is_closing)
            greet_one(h);
    }
    h->is_recovering = false;
}

/* --- hosts --- */

static inline int host_open_rpc(struct host *h, struct error *err)
{
    struct rpc_options options = {.loop = h->loop,
                                  .self = {.cluster = {{1}}, .node = h->id},
                                  .ops = host_ops,
                                  .arg = h};
    h->pool = options.buffers = buffer_pool_create(32 * MIB);
    CHECK(h->pool != NULL);
    int rc = rpc_create(&options, &h->rpc, err);
    if (rc == 0)
        rc = consensus_rpc_create(h->loop, h->rpc, h->pool, &h->binding);
    if (rc == 0)
        rc = rpc_listen(h->rpc, h->address, NULL, err);
    for (uint64_t i = 1; i <= HOSTS_MAX && rc == 0; i++) {
        if (i != h->id)
            rc = rpc_set_address(h->rpc, i, h->world->hosts[i].address);
    }
    return rc;
}

static inline int host_open_cluster(struct host *h, struct error *err)
{
    struct cluster *cluster = NULL;
    int rc = 0;
    if (h->id == CLUSTER_FIRST_NODE) {
        rc = cluster_bootstrap(h->kv, h->id, err);
        rc = rc == -PLX_EEXISTS ? 0 : rc;
    }
    struct cluster_options options = {.loop = h->loop,
                                      .kv = h->kv,
                                      .node = h->id,
                                      .link = consensus_rpc_link(h->binding),
                                      .failed = host_failed,
                                      .arg = h};
    if (rc == 0)
        rc = cluster_open(&options, &cluster, err);
    if (rc != 0)
        return rc;
    consensus_rpc_attach(h->binding, cluster_consensus(cluster));
    h->cluster = cluster;
    struct warden_options warden_options = {.loop = h->loop,
                                            .cluster = cluster,
                                            .rpc = h->rpc,
                                            .node = h->id,
                                            .address = h->address,
                                            .usage = host_usage,
                                            .arg = h,
                                            .out_ns = h->world->out_ns};
    return warden_create(&warden_options, &h->warden);
}

static inline void host_main(struct task_call *call)
{
    struct host *h = container_of(call, struct host, call);
    struct error err = {0};
    int rc = kv_open(h->loop, h->path, true, &h->kv, &err);
    if (rc == 0)
        rc = host_open_rpc(h, &err);
    if (rc == 0)
        rc = host_open_cluster(h, &err);
    if (rc != 0)
        fprintf(stderr, "host %u: %s\n", (unsigned)h->id, err.text);
    CHECK_EQ(rc, 0);
    h->is_recovering = true;
    h->recovery = (struct task_call){.main = recovery_main, .name = "recovery"};
    task_start(h->loop, &h->recovery);
    h->is_open = true;
}

static inline void host_start(struct host *h)
{
    CHECK(h->loop == NULL);
    h->loop = sim_process_create(h->world->sim);
    sim_process_set_host(h->loop, (uint32_t)h->id);
    if (getenv("TEST_LOG") != NULL)
        log_set_fd(loop_log(h->loop), 2);
    h->is_open = h->is_closing = h->has_failed = false;
    h->cluster = NULL;
    h->warden = NULL;
    h->call = (struct task_call){.main = host_main, .name = "host", .system = true};
    task_start(h->loop, &h->call);
}

static inline void host_end(struct host *h, enum sim_end how)
{
    struct loop *loop = h->loop;
    CHECK(loop != NULL);
    h->loop = NULL;
    h->cluster = NULL;
    h->warden = NULL;
    h->is_open = false;
    sim_process_end(loop, how);
}

static inline struct world *world_create(uint64_t seed)
{
    struct world *world = calloc(1, sizeof *world);
    CHECK(world != NULL);
    world->sim = sim_world_create(seed);
    world->out_ns = 10 * NS_PER_S;
    *sim_world_faults(world->sim) = (struct sim_faults){
        .latency_min_ns = 50 * NS_PER_US,
        .latency_max_ns = 3 * NS_PER_MS,
        .net_latency_min_ns = 50 * NS_PER_US,
        .net_latency_max_ns = NS_PER_MS,
    };
    for (uint32_t i = 1; i <= HOSTS_MAX; i++) {
        struct host *h = &world->hosts[i];
        h->world = world;
        h->id = i;
        h->recovers = true;
        h->usage = (struct warden_usage){.capacity_bytes = HOST_BYTES,
                                         .free_bytes = HOST_BYTES};
        snprintf(h->path, sizeof h->path, "node%u/kv", i);
        snprintf(h->address, sizeof h->address, "node%u:1", i);
    }
    return world;
}

static inline void world_destroy(struct world *world)
{
    sim_world_destroy(world->sim);
    free(world);
}

/* --- running --- */

typedef bool world_cond(struct world *world, void *arg);

static inline bool world_until(struct world *world, world_cond *cond, void *arg,
                               uint64_t limit_ms)
{
    uint64_t end_ns = sim_world_now_ns(world->sim) + limit_ms * NS_PER_MS;
    while (!cond(world, arg)) {
        if (!sim_world_step(world->sim) || sim_world_now_ns(world->sim) > end_ns)
            return false;
    }
    return true;
}

static inline bool never(struct world *world, void *arg)
{
    (void)world, (void)arg;
    return false;
}

static inline void world_run(struct world *world, uint64_t ms)
{
    world_until(world, never, NULL, ms);
}

static inline bool is_true(struct world *world, void *arg)
{
    (void)world;
    return *(bool *)arg;
}

static inline struct host *leader_of(struct world *world)
{
    struct host *found = NULL;
    uint64_t term = 0;
    for (uint32_t i = 1; i <= HOSTS_MAX; i++) {
        struct host *h = &world->hosts[i];
        if (h->cluster == NULL || !consensus_is_leader(cluster_consensus(h->cluster)) ||
            consensus_term(cluster_consensus(h->cluster)) <= term)
            continue;
        found = h;
        term = consensus_term(cluster_consensus(h->cluster));
    }
    return found;
}

static inline bool has_leader(struct world *world, void *arg)
{
    (void)arg;
    return leader_of(world) != NULL;
}

static inline struct host *world_leader(struct world *world)
{
    CHECK(world_until(world, has_leader, NULL, 30000));
    return leader_of(world);
}

static inline const struct cluster_state *state_of(struct world *world)
{
    return cluster_state(world_leader(world)->cluster);
}

/* --- commands --- */

struct errand {
    struct task_call call;
    struct host *host;
    struct cluster_command command;
    struct cluster_result result;
    bool is_over;
};

static inline void errand_main(struct task_call *call)
{
    struct errand *errand = container_of(call, struct errand, call);
    cluster_submit(errand->host->cluster, &errand->command, &errand->result);
    errand->is_over = true;
}

static inline int errand_run(struct host *h, struct errand *errand)
{
    errand->host = h;
    errand->call = (struct task_call){.main = errand_main, .name = "errand"};
    task_start(h->loop, &errand->call);
    CHECK(world_until(h->world, is_true, &errand->is_over, 60000));
    return errand->result.code;
}

#define SUBMIT(h, ...)                                                                   \
    errand_run(h, &(struct errand){.command = (struct cluster_command){__VA_ARGS__}})

/* In order, cluster before warden or after it. */
static inline void closing_main(struct task_call *call)
{
    struct errand *errand = container_of(call, struct errand, call);
    struct host *h = errand->host;
    h->is_closing = true;
    while (h->is_recovering)
        task_sleep_ns(10 * NS_PER_MS);
    struct warden *warden = take(h->warden);
    bool is_cluster_first = errand->command.force;
    if (is_cluster_first)
        warden_stop(warden);
    else
        warden_destroy(warden);
    consensus_rpc_attach(h->binding, NULL);
    cluster_close(take(h->cluster));
    if (is_cluster_first)
        warden_destroy(warden);
    consensus_rpc_destroy(h->binding);
    rpc_destroy(h->rpc);
    CHECK_EQ(buffer_pool_used_bytes(h->pool), 0);
    buffer_pool_destroy(h->pool);
    kv_close(h->kv);
    errand->is_over = true;
}

static inline void host_close(struct host *h, bool is_cluster_first)
{
    struct errand errand = {.host = h, .command.force = is_cluster_first};
    errand.call = (struct task_call){.main = closing_main, .name = "close"};
    task_start(h->loop, &errand.call);
    CHECK(world_until(h->world, is_true, &errand.is_over, 60000));
    sim_process_end(h->loop, SIM_KILL);
    h->loop = NULL;
    h->is_open = false;
}

/* --- clusters --- */

static inline void host_open(struct host *h)
{
    host_start(h);
    CHECK(world_until(h->world, is_true, &h->is_open, 60000));
}

static inline struct uid store_of(uint64_t id)
{
    return (struct uid){{9, (uint8_t)id}};
}

/* The next host becomes a node, and runs. */
static inline void host_join(struct world *world, uint64_t id, const char *domain)
{
    struct errand errand = {.command = {.op = CLUSTER_NODE_SET,
                                        .store = store_of(id),
                                        .name = world->hosts[id].address,
                                        .new_name = domain,
                                        .size_bytes = HOST_BYTES}};
    CHECK_EQ(errand_run(world_leader(world), &errand), 0);
    CHECK_EQ(errand.result.id, id);
    host_open(&world->hosts[id]);
}

/* Hosts 1 to count. */
static inline struct world *world_of(uint64_t seed, uint64_t count)
{
    struct world *world = world_create(seed);
    host_open(&world->hosts[1]);
    CHECK_EQ(SUBMIT(world_leader(world), .op = CLUSTER_INIT, .node = 1, .cluster = {{1}},
                    .store = store_of(1)),
             0);
    for (uint64_t id = 2; id <= count; id++)
        host_join(world, id, "");
    return world;
}

static inline void block(struct world *world, uint64_t host, bool is_blocked)
{
    for (uint32_t i = 1; i <= HOSTS_MAX; i++) {
        if (i == host)
            continue;
        sim_net_block(world->sim, (uint32_t)host, i, is_blocked);
        sim_net_block(world->sim, i, (uint32_t)host, is_blocked);
    }
}

#endif
