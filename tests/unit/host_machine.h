/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several hosts in one simulated process, which talk over the simulated network. They
 * share the cluster state, and one store, node 1's, which all of them reach: what is
 * tested is who owns a disk, not where its copies are.
 */
#ifndef PARALLAX_TESTS_UNIT_HOST_MACHINE_H
#define PARALLAX_TESTS_UNIT_HOST_MACHINE_H

#include "cow/disk_remote.h"
#include "replication/replica.h"
#include "tests/unit/disk_machine.h"

#define HOSTS_MAX 3U
#define HELD_MAX  256U

/* What a host does with the requests of others. */
enum party_mood { ANSWERS, SILENT /* it holds them and does nothing */ };

struct party {
    struct hosts *all;
    struct machine machine; /* its host is this one; for the helpers that take one */
    struct host *host;
    struct rpc *rpc;
    struct buffer_pool *pool;
    struct replica_directory directory;
    uint64_t node;
    enum party_mood mood;
    bool lacks_members; /* for a new extent: the others are out of reach for now */
    struct rpc_request *held[HELD_MAX];
    uint32_t held_count, handed_over, prepared;
};

struct hosts {
    struct body body;
    struct sim_world *world;
    struct loop *loop;
    struct kv *kv;
    struct store *store;
    struct cluster *cluster;
    struct replica *member;
    char store_path[256], kv_path[256];
    struct party parties[HOSTS_MAX + 1]; /* by node */
    void (*run)(struct hosts *h);
};

static inline bool party_holds(struct party *party, struct rpc_request *request)
{
    if (party->mood == ANSWERS)
        return false;
    CHECK(party->held_count < HELD_MAX);
    party->held[party->held_count++] = request;
    return true;
}

static inline void handle_read(void *arg, struct rpc_request *request)
{
    struct party *party = arg;
    if (!party_holds(party, request))
        disk_serve_read(party->host, request);
}

static inline void handle_hand_over(void *arg, struct rpc_request *request)
{
    struct party *party = arg;
    if (party_holds(party, request))
        return;
    party->handed_over++;
    uint32_t before = party->host->hand_overs;
    disk_serve_hand_over(party->host, request);
    CHECK(!party->host->closing || party->host->hand_overs == before);
}

static inline void handle_prepare(void *arg, struct rpc_request *request)
{
    struct party *party = arg;
    if (party->mood != ANSWERS)
        return;
    party->prepared++;
    disk_serve_prepare(party->host, request);
}

static inline void handle_held(void *arg, struct rpc_request *request)
{
    struct party *party = arg;
    if (!party_holds(party, request))
        disk_serve_held(party->host, request);
}

/* One more byte than they should have, so that heads of a wrong length come through. */
static const struct rpc_op op_read = {
    DISK_RPC_READ, "disk read", false, false, DISK_RPC_HEAD_MAX + 1, 0, handle_read};
static const struct rpc_op op_hand_over = {
    DISK_RPC_HAND_OVER, "hand over", false, false, DISK_RPC_HEAD_MAX + 1, 0,
    handle_hand_over};
static const struct rpc_op op_prepare = {
    DISK_RPC_PREPARE, "prepare", true, false, DISK_RPC_HEAD_MAX + 1, 0, handle_prepare};
static const struct rpc_op op_held = {
    DISK_RPC_HELD, "held", false, false, DISK_RPC_HEAD_MAX + 1, 0, handle_held};
static const struct rpc_op *const disk_ops[] = {&op_read, &op_hand_over, &op_prepare,
                                                &op_held, NULL};

/* --- the directory: there is one member, and everybody reaches it --- */

static inline struct replica *member_find(struct replica_directory *directory,
                                          uint64_t node)
{
    struct party *party = container_of(directory, struct party, directory);
    return node == 1 ? party->all->member : NULL;
}

static inline bool member_in_reach(struct replica_directory *directory, uint64_t node)
{
    return member_find(directory, node) != NULL;
}

static inline bool member_is_connected(struct replica_directory *directory, uint64_t node,
                                       uint64_t *ret_since_ns)
{
    *ret_since_ns = 0;
    return member_in_reach(directory, node);
}

static inline struct chosen member_choose(struct replica_directory *directory,
                                          uint64_t disk, const uint64_t *avoid,
                                          uint32_t avoid_count)
{
    struct party *party = container_of(directory, struct party, directory);
    const struct cluster_group *group =
        cluster_group_by_id(cluster_state(party->all->cluster), 1);
    (void)disk, (void)avoid;
    if (party->lacks_members && avoid_count == 0)
        return (struct chosen){.count = 0};
    return (struct chosen){.members = {member_find(directory, 1)},
                           .count = 1,
                           .group = 1,
                           .group_epoch = group->epoch};
}

/* --- start and end --- */

static inline const char *party_address(uint64_t node)
{
    static char text[32];
    snprintf(text, sizeof text, "node%u:1", (unsigned)node);
    return text;
}

static inline async void submit(struct hosts *h, const struct cluster_command *what)
{
    struct cluster_result result;
    int rc = cluster_submit(h->cluster, what, &result);
    if (rc < 0)
        fprintf(stderr, "submit %d: %s\n", (int)what->op, result.text);
    CHECK_EQ(rc, 0);
}

static inline async void party_add(struct hosts *h, uint64_t node)
{
    struct cluster_command add = {.op = CLUSTER_NODE_SET,
                                  .store = {{(uint8_t)node, 77}},
                                  .name = party_address(node),
                                  .new_name = "",
                                  .size_bytes = 1 * GIB};
    submit(h, &add);
    CHECK(cluster_node_by_id(cluster_state(h->cluster), node) != NULL);
}

static inline async void party_flags(struct hosts *h, uint64_t node, unsigned flags)
{
    const struct cluster_node *is = cluster_node_by_id(cluster_state(h->cluster), node);
    struct cluster_command set = {.op = CLUSTER_NODE_STATE,
                                  .node = node,
                                  .old_flags = is->flags,
                                  .flags = flags};
    submit(h, &set);
}

static inline async void hosts_open_parts(struct hosts *h)
{
    struct host_options options = {.store_path = h->store_path,
                                   .kv_path = h->kv_path,
                                   .capacity_bytes = 256 * MIB,
                                   .no_idle_work = true};
    struct store_options store = {.path = h->store_path, .no_idle_work = true};
    if (h->world == NULL || sim_file_size_bytes(h->world, h->store_path) == 0)
        DO(host_create(h->loop, &options, &err));
    DO(kv_open(h->loop, h->kv_path, false, &h->kv, &err));
    store.kv = h->kv;
    DO(store_open(h->loop, &store, &h->store, &err));
    struct cluster_options cluster = {.loop = h->loop, .kv = h->kv, .node = 1};
    DO(cluster_open(&cluster, &h->cluster, &err));
    h->member = replica_local_create(h->store, 1);
    CHECK(h->member != NULL);
    for (uint64_t node = 2; node <= HOSTS_MAX; node++)
        if (cluster_node_by_id(cluster_state(h->cluster), node) == NULL)
            party_add(h, node);
}

static inline void party_init(struct hosts *h, uint64_t node)
{
    struct party *party = &h->parties[node];
    *party = (struct party){.all = h, .node = node};
    party->directory = (struct replica_directory){
        .find = member_find,
        .in_reach = member_in_reach,
        .is_connected = member_is_connected,
        .choose = member_choose,
    };
}

static inline async void party_open_host(struct hosts *h, uint64_t node)
{
    struct party *party = &h->parties[node];
    struct host_parts parts = {.kv = h->kv,
                               .store = h->store,
                               .cluster = h->cluster,
                               .directory = &party->directory,
                               .rpc = party->rpc,
                               .node = node};
    struct host_options options = {
        .parts = &parts, .checkpoint_log_bytes = 1 * MIB, .no_idle_work = true};
    DO(host_open(h->loop, &options, &party->host, &err));
    party->machine = (struct machine){.world = h->world, .host = party->host};
}

static inline async void party_open(struct hosts *h, uint64_t node)
{
    struct party *party = &h->parties[node];
    party_init(h, node);
    party->pool = buffer_pool_create(64 * MIB);
    struct rpc_options rpc = {.loop = h->loop,
                              .self = {.cluster = {{1}}, .node = node},
                              .buffers = party->pool,
                              .ops = disk_ops,
                              .arg = party};
    DO(rpc_create(&rpc, &party->rpc, &err));
    DO(rpc_listen(party->rpc, party_address(node), NULL, &err));
    for (uint64_t other = 1; other <= HOSTS_MAX; other++)
        if (other != node)
            CHECK_EQ(rpc_set_address(party->rpc, other, party_address(other)), 0);
    party_open_host(h, node);
}

static inline void party_release(struct party *party, int code)
{
    for (uint32_t i = 0; i < party->held_count; i++)
        rpc_answer(party->held[i], code, NULL, 0, NULL, 0);
    party->held_count = 0;
}

static inline async void hosts_close_parts(struct hosts *h)
{
    h->member->ops->destroy(h->member);
    cluster_close(h->cluster);
    store_close(h->store);
    kv_close(h->kv);
}

static inline async void hosts_close(struct hosts *h)
{
    for (uint64_t node = 1; node <= HOSTS_MAX; node++)
        party_release(&h->parties[node], -ECONNRESET);
    for (uint64_t node = 1; node <= HOSTS_MAX; node++)
        host_close(h->parties[node].host);
    for (uint64_t node = 1; node <= HOSTS_MAX; node++) {
        struct party *party = &h->parties[node];
        rpc_destroy(party->rpc);
        CHECK_EQ(buffer_pool_used_bytes(party->pool), 0);
        buffer_pool_destroy(party->pool);
    }
    hosts_close_parts(h);
}

static inline void hosts_main(struct body *body)
{
    struct hosts *h = container_of(body, struct hosts, body);
    hosts_open_parts(h);
    for (uint64_t node = 1; node <= HOSTS_MAX; node++)
        party_open(h, node);
    h->run(h);
    hosts_close(h);
}

/* A whole life of the hosts, with `run` in the middle, and with what an earlier one in
 * this world left. */
static inline void hosts_run_in(struct sim_world *world, void (*run)(struct hosts *h))
{
    struct hosts *h = calloc(1, sizeof *h);
    CHECK(h != NULL);
    h->run = run;
    h->world = world;
    snprintf(h->store_path, sizeof h->store_path, "sim/store");
    snprintf(h->kv_path, sizeof h->kv_path, "sim/kv");
    h->body = (struct body){.run = hosts_main, .world = h->world};
    h->body.call = (struct task_call){.main = body_main, .name = "test", .system = true};
    h->loop = h->body.loop = sim_process_create(h->world);
    if (getenv("TEST_LOG") != NULL)
        log_set_fd(loop_log(h->loop), 2);
    task_start(h->loop, &h->body.call);
    CHECK(sim_world_run_until(h->world, &h->body.is_over, BODY_LIMIT_NS));
    sim_process_end(h->loop, SIM_KILL);
    free(h);
}

static inline void hosts_run(uint64_t seed, void (*run)(struct hosts *h))
{
    struct sim_world *world = sim_world_create(seed);
    hosts_run_in(world, run);
    sim_world_destroy(world);
}

/* --- what tests ask --- */

static inline const struct cluster_disk *disk_state(struct hosts *h, const char *name)
{
    return cluster_disk_by_name(cluster_state(h->cluster), name);
}

static inline uint64_t owner_of(struct hosts *h, const char *name)
{
    return disk_state(h, name)->owner;
}

static inline async struct disk *attach_to(struct hosts *h, uint64_t node,
                                           const char *name, enum disk_access access)
{
    struct disk *disk = NULL;
    DO(disk_open(h->parties[node].host, name, access, &disk, &err));
    return disk;
}

/* As a client that opened the disk `opened` so. */
static inline async int write_as(struct disk *disk, uint32_t opened, uint64_t offset,
                                 uint64_t len, const uint8_t *data)
{
    struct op op;
    op_init(&op, disk, DISK_WRITE, 0, offset, len, data);
    op.io.opened = opened;
    disk_submit(disk, &op.io);
    return op_wait(&op, NULL);
}

/* What host 2 asks of host 1, well-formed or not. */
static inline async int call_raw(struct hosts *h, uint16_t op, const void *head,
                                 uint32_t len)
{
    struct rpc_call call = {.node = 1,
                            .op = op,
                            .head = head,
                            .head_len = len,
                            .timeout_ns = 10 * NS_PER_S};
    return rpc_wait(h->parties[2].rpc, &call, NULL, NULL);
}

static inline async int read_raw(struct hosts *h, uint64_t disk, uint64_t offset,
                                 uint32_t len)
{
    struct disk_rpc_read head = {.disk = le64_of(disk),
                                 .offset_bytes = le64_of(offset),
                                 .len_bytes = le32_of(len)};
    return call_raw(h, DISK_RPC_READ, &head, sizeof head);
}

#endif
