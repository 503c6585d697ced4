/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A node that uses copies (number 1, with a store of its own), and nodes that only have
 * stores (2 and up), each in a simulated process of its own, with the simulated network
 * between them. They are members of group 1.
 */
#ifndef PARALLAX_TESTS_UNIT_COPIES_MACHINE_H
#define PARALLAX_TESTS_UNIT_COPIES_MACHINE_H

#include "blockstore/store_internal.h"
#include "blockstore/store_rpc_format.h"
#include "blockstore/store_service.h"
#include "replication/copies_internal.h"
#include "tests/unit/on_loops.h"

#define CLUSTER     ((struct uid){{5}})
#define FARS        2U
#define STORE_BYTES (128 * MIB)
#define DISK        7U
#define EPOCH       3U

static struct rpc_op service_ops[STORE_SERVICE_OPS];
static const struct rpc_op *op_table[STORE_SERVICE_OPS + 1];
static const struct rpc_op *const no_ops[] = {NULL};

/* --- nodes with stores --- */

struct far {
    struct task_call call;
    struct sim_world *world;
    struct loop *loop;
    struct kv *kv;
    struct store *store;
    struct buffer_pool *pool;
    struct rpc *rpc;
    struct store_service *service;
    struct uid incarnation;
    uint64_t node;
    uint32_t requests;
    bool is_new, is_up;
};

static inline void far_handle(void *arg, struct rpc_request *request)
{
    struct far *far = arg;
    far->requests++;
    store_service_handle(far->service, request);
}

static inline void far_table(void)
{
    for (uint32_t i = 0; i < STORE_SERVICE_OPS; i++) {
        service_ops[i] = store_service_ops[i];
        service_ops[i].handle = far_handle;
        op_table[i] = &service_ops[i];
    }
}

static inline async int far_admit(void *arg, struct address extent, uint64_t disk,
                                  uint64_t epoch, uint64_t index)
{
    (void)arg, (void)extent, (void)disk, (void)epoch, (void)index;
    return 0;
}

static inline async int far_may_delete(void *arg, struct address extent)
{
    (void)arg, (void)extent;
    return 0;
}

static inline const char *far_name(uint64_t node, const char *what)
{
    static char text[4][64];
    static uint32_t at;
    char *ret = text[at++ % 4];
    snprintf(ret, sizeof text[0], "far%u%s", (unsigned)node, what);
    return ret;
}

static inline void far_main(struct task_call *call)
{
    struct far *far = container_of(call, struct far, call);
    struct error err = {0};
    struct store_usage usage;
    struct store_options options = {.path = far_name(far->node, "/store"),
                                    .capacity_bytes = STORE_BYTES,
                                    .no_idle_work = true};
    CHECK_EQ(kv_open(far->loop, far_name(far->node, "/kv"), true, &far->kv, &err), 0);
    options.kv = far->kv;
    if (far->is_new)
        CHECK_EQ(store_create(far->loop, &options, CLUSTER, &err), 0);
    options.capacity_bytes = 0;
    CHECK_EQ(store_open(far->loop, &options, &far->store, &err), 0);
    store_usage(far->store, &usage);
    far->incarnation = usage.incarnation;
    far->pool = buffer_pool_create(64 * MIB);
    struct rpc_options rpc = {.loop = far->loop,
                              .self = {.cluster = CLUSTER, .node = far->node},
                              .buffers = far->pool,
                              .ops = op_table,
                              .arg = far};
    struct store_service_options service = {.store = far->store,
                                            .loop = far->loop,
                                            .buffers = far->pool,
                                            .admit = far_admit,
                                            .may_delete = far_may_delete};
    CHECK_EQ(store_service_create(&service, &far->service), 0);
    CHECK_EQ(rpc_create(&rpc, &far->rpc, &err), 0);
    CHECK_EQ(rpc_listen(far->rpc, far_name(far->node, ":1"), NULL, &err), 0);
    far->is_up = true;
}

static inline void far_start(struct far *far)
{
    far->loop = sim_process_create(far->world);
    sim_process_set_host(far->loop, (uint32_t)far->node);
    far->is_up = false;
    far->call = (struct task_call){.main = far_main, .name = "far", .system = true};
    task_start(far->loop, &far->call);
}

static inline async void far_end(struct far *far, enum sim_end how)
{
    sim_process_end(far->loop, how);
    far->is_up = false;
}

static inline async void far_restart(struct far *far, enum sim_end how)
{
    if (far->is_up)
        far_end(far, how);
    far->is_new = false;
    far_start(far);
    while (!far->is_up)
        task_sleep_ns(10 * NS_PER_MS);
}

/* --- the node that uses them --- */

struct rig {
    struct body *body;
    struct sim_world *world;
    struct loop *loop;
    struct far fars[FARS]; /* nodes 2 and 3 */
    struct kv *kv;
    struct store *store;
    struct cluster *cluster;
    struct buffer_pool *pool;
    struct rpc *rpc;
    struct copies *copies;
    uint32_t patience_ms;
};

static inline const struct cluster_state *rig_state(const struct rig *rig)
{
    return cluster_state(rig->cluster);
}

static inline async uint64_t submit(struct rig *rig,
                                    const struct cluster_command *command)
{
    struct cluster_result result;
    int rc = cluster_submit(rig->cluster, command, &result);
    if (rc != 0)
        fprintf(stderr, "command %d: %s\n", command->op, result.text);
    CHECK_EQ(rc, 0);
    return result.id;
}

static inline async void set_flags(struct rig *rig, uint64_t node, unsigned flags)
{
    submit(rig, &(struct cluster_command){
                    .op = CLUSTER_NODE_STATE,
                    .node = node,
                    .old_flags = cluster_node_by_id(rig_state(rig), node)->flags,
                    .flags = flags});
}

static inline async void set_group(struct rig *rig, uint8_t count,
                                   const uint64_t *members)
{
    struct cluster_command set = {
        .op = CLUSTER_GROUP_SET,
        .group = 1,
        .number = cluster_group_by_id(rig_state(rig), 1)->epoch,
        .member_count = count};
    memcpy(set.members, members, count * sizeof *members);
    submit(rig, &set);
}

static inline async void make_whole(struct rig *rig, uint64_t node)
{
    const struct cluster_group *group = cluster_group_by_id(rig_state(rig), 1);
    uint64_t since = cluster_group_member(group, node)->missing_since;
    if (since != 0)
        submit(rig, &(struct cluster_command){
                        .op = CLUSTER_GROUP_WHOLE, .group = 1, .node = node,
                        .number = since});
}

static inline async void open_cluster(struct rig *rig)
{
    struct error err = {0};
    struct store_usage usage;
    struct cluster_options options = {.loop = rig->loop, .kv = rig->kv, .node = 1};
    CHECK_EQ(cluster_bootstrap(rig->kv, 1, &err), 0);
    CHECK_EQ(cluster_open(&options, &rig->cluster, &err), 0);
    store_usage(rig->store, &usage);
    submit(rig, &(struct cluster_command){.op = CLUSTER_INIT, .cluster = CLUSTER,
                                          .store = usage.incarnation, .node = 1});
    for (uint32_t i = 0; i < FARS; i++) {
        uint64_t node = submit(
            rig, &(struct cluster_command){.op = CLUSTER_NODE_SET,
                                           .store = rig->fars[i].incarnation,
                                           .name = far_name(i + 2, ":1")});
        CHECK_EQ(node, i + 2);
    }
    set_group(rig, 3, (uint64_t[]){1, 2, 3});
    make_whole(rig, 2);
    make_whole(rig, 3);
}

static inline async void rig_open(struct rig *rig)
{
    struct error err = {0};
    struct store_options options = {
        .path = "near/store", .capacity_bytes = STORE_BYTES, .no_idle_work = true};
    CHECK_EQ(kv_open(rig->loop, "near/kv", true, &rig->kv, &err), 0);
    options.kv = rig->kv;
    CHECK_EQ(store_create(rig->loop, &options, CLUSTER, &err), 0);
    CHECK_EQ(store_open(rig->loop, &options, &rig->store, &err), 0);
    open_cluster(rig);
    rig->pool = buffer_pool_create(64 * MIB);
    struct rpc_options rpc = {.loop = rig->loop,
                              .self = {.cluster = CLUSTER, .node = 1},
                              .buffers = rig->pool,
                              .ops = no_ops};
    CHECK_EQ(rpc_create(&rpc, &rig->rpc, &err), 0);
    for (uint32_t i = 0; i < FARS; i++)
        CHECK_EQ(rpc_set_address(rig->rpc, i + 2, far_name(i + 2, ":1")), 0);
    struct copies_options copies = {.loop = rig->loop, .cluster = rig->cluster,
                                    .store = rig->store, .node = 1, .rpc = rig->rpc,
                                    .buffers = rig->pool,
                                    .patience_ms = rig->patience_ms};
    CHECK_EQ(copies_create(&copies, &rig->copies), 0);
}

static inline async void rig_close(struct rig *rig)
{
    copies_stop(rig->copies);
    copies_destroy(rig->copies);
    cluster_close(rig->cluster);
    store_close(rig->store);
    kv_close(rig->kv);
}

/* What is not for a task. */
static inline void rig_end(struct rig *rig)
{
    rpc_destroy(rig->rpc);
    CHECK_EQ(buffer_pool_used_bytes(rig->pool), 0);
    buffer_pool_destroy(rig->pool);
}

/* --- extents --- */

static inline struct replica *member_of(struct rig *rig, uint64_t node)
{
    struct replica_directory *directory = copies_directory(rig->copies);
    struct replica *replica = directory->find(directory, node);
    CHECK(replica != NULL);
    return replica;
}

static inline struct store *store_on(struct rig *rig, uint64_t node)
{
    return node == 1 ? rig->store : rig->fars[node - 2].store;
}

struct one_append {
    struct replica_append append;
    struct event over;
};

static inline void one_append_done(struct replica_append *append)
{
    event_set(&container_of(append, struct one_append, append)->over);
}

static inline void make_block(struct address address, uint8_t *ret)
{
    for (uint32_t i = 0; i < BLOCK_SIZE; i += sizeof address.v)
        memcpy(ret + i, &address.v, sizeof address.v);
}

static inline uint32_t crc_of(struct address address)
{
    uint8_t bytes[BLOCK_SIZE];
    make_block(address, bytes);
    return crc32c(bytes, sizeof bytes);
}

/* An open extent with so many blocks; what is in each is told by its address. */
static inline async void make_extent(struct rig *rig, uint64_t node,
                                     struct address extent, uint32_t blocks)
{
    struct replica *replica = member_of(rig, node);
    struct replica_create create = {.extent = extent, .disk = DISK, .epoch = EPOCH,
                                    .nonce = 1, .slabs_hint = 1,
                                    .limit_ns = 5 * NS_PER_S};
    CHECK_EQ(replica->ops->create(replica, &create), 0);
    for (uint32_t at = 0, n; at < blocks; at += n) {
        n = min_u32(200, blocks - at);
        struct slice slice = {.buffer = buffer_create(rig->pool, n * BLOCK_SIZE),
                              .len = n * (uint32_t)BLOCK_SIZE};
        CHECK(slice.buffer != NULL);
        for (uint32_t i = 0; i < n; i++)
            make_block(address_plus(extent, at + i),
                       slice.buffer->data + (size_t)i * BLOCK_SIZE);
        struct one_append mine = {
            .append = {.store = {.extent = extent, .epoch = EPOCH, .block = at,
                                 .slices = &slice, .slice_count = 1},
                       .done = one_append_done}};
        event_init(&mine.over);
        replica->ops->append(replica, &mine.append);
        event_wait(&mine.over);
        CHECK_EQ(mine.append.result, 0);
        buffer_put(slice.buffer);
    }
}

static inline async void make_final(struct rig *rig, uint64_t node,
                                    struct address extent, uint32_t blocks)
{
    struct replica *replica = member_of(rig, node);
    make_extent(rig, node, extent, blocks);
    CHECK_EQ(replica->ops->finalize(replica, extent, blocks), 0);
    CHECK_EQ(replica->ops->trim_headers(replica, extent), 0);
}

static inline async void make_everywhere(struct rig *rig, struct address extent,
                                         uint32_t blocks)
{
    for (uint64_t node = 1; node <= 1 + FARS; node++)
        make_final(rig, node, extent, blocks);
}

static inline bool is_live(struct rig *rig, uint64_t node, struct address address)
{
    uint8_t map[BITMAP_BYTES];
    int rc = store_live_map(store_on(rig, node), address_extent(address), map);
    CHECK(rc == 0 || rc == -PLX_EMISSING);
    return rc == 0 && bitmap_get(map, address_block(address));
}

/* --- running --- */

struct story {
    async void (*run)(struct rig *rig);
    uint32_t patience_ms;
};

static inline void story_main(struct body *body)
{
    const struct story *story = body->arg;
    struct rig *rig = calloc(1, sizeof *rig);
    CHECK(rig != NULL);
    *rig = (struct rig){.body = body, .world = body->world, .loop = body->loop,
                        .patience_ms = story->patience_ms};
    for (uint32_t i = 0; i < FARS; i++) {
        rig->fars[i] = (struct far){.world = rig->world, .node = i + 2, .is_new = true};
        far_start(&rig->fars[i]);
        while (!rig->fars[i].is_up)
            task_sleep_ns(10 * NS_PER_MS);
    }
    rig_open(rig);
    story->run(rig);
    rig_close(rig);
    body->arg = rig;
}

/* In a process that ends with it, since what killed processes had is never freed. */
static inline void run_story(const struct story *story, uint64_t seed)
{
    struct sim_world *world = sim_world_create(seed);
    struct sim_faults *faults = sim_world_faults(world);
    struct body body = {.run = story_main, .arg = (void *)story, .world = world};
    faults->latency_min_ns = 20 * NS_PER_US;
    faults->latency_max_ns = 300 * NS_PER_US;
    faults->net_latency_min_ns = 20 * NS_PER_US;
    faults->net_latency_max_ns = 500 * NS_PER_US;
    body.call = (struct task_call){.main = body_main, .name = "near", .system = true};
    body.loop = sim_process_create(world);
    sim_process_set_host(body.loop, 1);
    task_start(body.loop, &body.call);
    CHECK(sim_world_run_until(world, &body.is_over, BODY_LIMIT_NS));
    struct rig *rig = body.arg;
    rig_end(rig);
    sim_process_end(body.loop, SIM_KILL);
    for (uint32_t i = 0; i < FARS; i++) {
        if (rig->fars[i].is_up)
            sim_process_end(rig->fars[i].loop, SIM_KILL);
    }
    sim_world_destroy(world);
    free(rig);
}

#endif
