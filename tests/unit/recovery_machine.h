/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A few nodes with stores, that recover from each other, and a cluster whose commands are
 * a list in memory: each node has applied some of them. Who owns disks, trims and
 * declares nodes down is the test, by tasks on the nodes. What an extent must hold is in
 * memory.
 */
#ifndef PARALLAX_TESTS_UNIT_RECOVERY_MACHINE_H
#define PARALLAX_TESTS_UNIT_RECOVERY_MACHINE_H

#include <sys/wait.h>
#include <unistd.h>

#include "blockstore/copy_service.h"
#include "blockstore/store_service.h"
#include "replication/recovery_internal.h"
#include "tests/unit/extent_source.h"

#define NODES_MAX    6U
#define COMMANDS_MAX 4000U
#define EXTENTS_MAX  400U
#define GROUP        1U
#define STORE_BYTES  (192 * MIB)

struct cluster_model;

struct node {
    struct cluster_model *model;
    uint64_t id;
    struct loop *loop;
    struct kv *kv;
    struct store *store;
    struct buffer_pool *pool;
    struct rpc *rpc;
    struct copy_service *copies;
    struct store_service *service;
    struct recovery *recovery;
    struct cluster_state *state; /* what this node has applied */
    struct uid incarnation;
    struct task_call boot;
    bool is_up, is_booted;
    bool is_lagging;           /* applies nothing by itself */
    struct address short_copy; /* it comes back with a part of this */
    uint64_t served_bytes;
    uint32_t asked; /* whether it is whole */
};

/* What must be true of an extent. */
struct model_copy {
    struct source *source;
    uint8_t members;   /* its write set: a bit for each node */
    uint8_t finalized; /* those that were told its length, and had it */
    uint32_t length;   /* once it has one */
    bool has_length, has_left, is_dead;
    uint8_t dead[BITMAP_BYTES];
    bool headers_dead;
};

struct cluster_model {
    struct sim_world *world;
    struct cluster_state *state; /* with all that was committed */
    struct writer commands[COMMANDS_MAX];
    uint32_t command_count;
    uint32_t unknown_percent, no_leader_percent;
    struct node nodes[NODES_MAX + 1]; /* by id */
    uint32_t node_count;
    uint64_t disk;
    struct model_copy extents[EXTENTS_MAX];
    uint32_t extent_count;
    struct recovery_options options; /* rest, limit, parallel */
};

static struct cluster_model *c;

static inline uint32_t any(uint32_t n)
{
    return (uint32_t)sim_world_random(c->world, n);
}

/* --- the cluster --- */

static inline int commit(const struct cluster_command *command,
                         struct cluster_result *ret_result)
{
    struct writer *w = &c->commands[c->command_count];
    char text[200] = "";
    CHECK(c->command_count < COMMANDS_MAX);
    cluster_command_encode(command, w);
    CHECK(!w->bad);
    c->command_count++;
    cluster_state_apply(c->state, c->command_count, w->bytes, w->len, ret_result);
    if (cluster_state_check(c->state, text, sizeof text) != 0) {
        fprintf(stderr, "inconsistent: %s\n", text);
        exit(1);
    }
    return ret_result->code;
}

#define COMMIT(...)                                                                      \
    commit(&(struct cluster_command){__VA_ARGS__}, &(struct cluster_result){0})

static inline void node_apply_to(struct node *node, uint64_t index)
{
    struct cluster_result ignored;
    uint64_t at = cluster_state_applied(node->state);
    if (at >= index)
        return;
    for (; at < index; at++)
        cluster_state_apply(node->state, at + 1, c->commands[at].bytes,
                            c->commands[at].len, &ignored);
    if (node->recovery != NULL && node->is_booted)
        recovery_wake(node->recovery);
}

static inline const struct cluster_state *view_state(void *arg)
{
    return ((struct node *)arg)->state;
}

static inline async int view_barrier(void *arg)
{
    uint64_t index = c->command_count;
    task_sleep_ns((1 + any(5000)) * NS_PER_US);
    if (any(100) < c->no_leader_percent)
        return -PLX_ENOLEADER;
    node_apply_to(arg, index);
    return 0;
}

static inline async int view_submit(void *arg, const struct cluster_command *command,
                                    struct cluster_result *ret_result)
{
    task_sleep_ns((1 + any(3000)) * NS_PER_US);
    if (any(100) < c->unknown_percent / 2)
        return -PLX_EUNKNOWN; /* it was not */
    int rc = commit(command, ret_result);
    uint64_t index = c->command_count;
    task_sleep_ns((1 + any(3000)) * NS_PER_US);
    if (any(100) < c->unknown_percent)
        return -PLX_EUNKNOWN; /* it was */
    node_apply_to(arg, index);
    return rc;
}

static inline const struct group_member *member_of(uint64_t node)
{
    return cluster_group_member(cluster_group_by_id(c->state, GROUP), node);
}

static inline bool is_whole(uint64_t node)
{
    return member_of(node) != NULL && member_of(node)->missing_since == 0;
}

static inline bool is_down(uint64_t node)
{
    return (cluster_node_by_id(c->state, node)->flags & NODE_DOWN) != 0;
}

static inline void set_down(uint64_t node, bool down)
{
    unsigned flags = cluster_node_by_id(c->state, node)->flags;
    unsigned wanted = down ? flags | NODE_DOWN : flags & ~(unsigned)NODE_DOWN;
    CHECK_EQ(COMMIT(.op = CLUSTER_NODE_STATE, .node = node, .old_flags = flags,
                    .flags = wanted),
             0);
}

/* --- nodes --- */

static inline bool may_serve(void *arg, uint16_t group)
{
    struct node *node = arg;
    node->asked++;
    return recovery_may_serve(node->state, node->id, group);
}

static inline async void note_served(void *arg, uint64_t bytes)
{
    struct node *node = arg;
    node->served_bytes += bytes;
}

static inline void note_bad(void *arg, struct address extent)
{
    struct node *node = arg;
    if (node->recovery != NULL)
        recovery_mend(node->recovery, extent, false);
}

static inline async int admit_none(void *arg, struct address extent, uint64_t disk,
                                   uint64_t epoch, uint64_t index)
{
    (void)arg, (void)extent, (void)disk, (void)epoch, (void)index;
    return -PLX_EPRECONDITION;
}

static inline async int delete_any(void *arg, struct address extent)
{
    (void)arg, (void)extent;
    return 0;
}

static inline void handle_copies(void *arg, struct rpc_request *request)
{
    copy_service_handle(((struct node *)arg)->copies, request);
}

static inline void handle_store(void *arg, struct rpc_request *request)
{
    store_service_handle(((struct node *)arg)->service, request);
}

static struct rpc_op node_ops[COPY_SERVICE_OPS + STORE_SERVICE_OPS];
static const struct rpc_op *node_op_table[COPY_SERVICE_OPS + STORE_SERVICE_OPS + 1];

static inline void make_ops(void)
{
    for (uint32_t i = 0; i < COPY_SERVICE_OPS + STORE_SERVICE_OPS; i++) {
        bool is_copies = i < COPY_SERVICE_OPS;
        node_ops[i] = is_copies ? copy_service_ops[i]
                                : store_service_ops[i - COPY_SERVICE_OPS];
        node_ops[i].handle = is_copies ? handle_copies : handle_store;
        node_op_table[i] = &node_ops[i];
    }
}

/* Valid for ever: several nodes may be starting. */
static inline const char *node_path(const struct node *node, const char *what)
{
    static char paths[NODES_MAX + 1][2][64];
    char *path = paths[node->id][strcmp(what, "kv") == 0];
    snprintf(path, sizeof paths[0][0], "node%u/%s", (unsigned)node->id, what);
    return path;
}

static inline const char *node_address(uint64_t id)
{
    static char text[32];
    snprintf(text, sizeof text, "node%u:1", (unsigned)id);
    return text;
}

static inline async void node_open_store(struct node *node)
{
    struct error err = {0};
    struct store_usage usage;
    struct store_options options = {.no_idle_work = true};
    CHECK_EQ(kv_open(node->loop, node_path(node, "kv"), true, &node->kv, &err), 0);
    options.path = node_path(node, "store");
    options.kv = node->kv;
    if (sim_file_size_bytes(c->world, options.path) == 0) {
        options.capacity_bytes = STORE_BYTES;
        CHECK_EQ(store_create(node->loop, &options, CLUSTER_UID, &err), 0);
        options.capacity_bytes = 0;
    }
    CHECK_EQ(store_open(node->loop, &options, &node->store, &err), 0);
    store_usage(node->store, &usage);
    node->incarnation = usage.incarnation;
}

/* What it had of an extent is lost but for the beginning, unsynced once. */
static inline async void node_lose_end(struct node *node)
{
    struct address extent = node->short_copy;
    struct extent_info info;
    uint32_t length = 0;
    bool scanned;
    node->short_copy = ADDRESS_NULL;
    if (address_is_null(extent) || store_extent_info(node->store, extent, &info) != 0)
        return;
    for (uint32_t i = 0; i < c->extent_count; i++) {
        struct source *s = c->extents[i].source;
        if (!address_equal(s->address, extent) || info.length == 0)
            continue;
        uint32_t at = any(info.length);
        while (at > 0 && !source_is_header(s, at))
            at--;
        CHECK_EQ(store_delete_extent(node->store, extent), 0);
        CHECK_EQ(source_write(node->store, node->pool, s, at), 0);
        CHECK_EQ(store_stop_extent(node->store, extent, &length, &scanned), 0);
    }
}

static inline void boot_main(struct task_call *call)
{
    struct node *node = container_of(call, struct node, boot);
    struct error err = {0};
    node->pool = buffer_pool_create(64 * MIB);
    node_open_store(node);
    node_lose_end(node);
    struct copy_service_options copies = {.store = node->store,
                                          .loop = node->loop,
                                          .buffers = node->pool,
                                          .is_whole = may_serve,
                                          .rest = note_served,
                                          .bad = note_bad,
                                          .arg = node};
    struct store_service_options service = {.store = node->store,
                                            .loop = node->loop,
                                            .buffers = node->pool,
                                            .admit = admit_none,
                                            .may_delete = delete_any,
                                            .arg = node};
    struct rpc_options rpc = {.loop = node->loop,
                              .self = {.cluster = CLUSTER_UID, .node = node->id},
                              .buffers = node->pool,
                              .ops = node_op_table,
                              .arg = node};
    CHECK_EQ(copy_service_create(&copies, &node->copies), 0);
    CHECK_EQ(store_service_create(&service, &node->service), 0);
    CHECK_EQ(rpc_create(&rpc, &node->rpc, &err), 0);
    CHECK_EQ(rpc_listen(node->rpc, node_address(node->id), NULL, &err), 0);
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (id != node->id)
            CHECK_EQ(rpc_set_address(node->rpc, id, node_address(id)), 0);
    struct recovery_options options = c->options;
    options.loop = node->loop;
    options.view = (struct recovery_view){
        .state = view_state, .barrier = view_barrier, .submit = view_submit, .arg = node};
    options.store = node->store;
    options.node = node->id;
    options.rpc = node->rpc;
    options.kv = node->kv;
    CHECK_EQ(recovery_create(&options, &node->recovery), 0);
    node->is_booted = true;
    recovery_start(node->recovery);
}

/* Its process begins; its state is a little older than it was. */
static inline void node_start(uint64_t id)
{
    struct node *node = &c->nodes[id];
    CHECK(!node->is_up);
    uint64_t at = node->state != NULL ? cluster_state_applied(node->state) : 0;
    at -= min_u64(at, any(6));
    if (node->state != NULL)
        cluster_state_destroy(node->state);
    node->model = c;
    node->id = id;
    node->state = cluster_state_create();
    node->recovery = NULL;
    node->is_up = true;
    node->is_booted = false;
    node_apply_to(node, at);
    node->loop = sim_process_create(c->world);
    sim_process_set_host(node->loop, (uint32_t)id);
    node->boot = (struct task_call){.main = boot_main, .name = "boot", .system = true};
    task_start(node->loop, &node->boot);
}

static inline void node_wait(uint64_t id)
{
    CHECK(sim_world_run_until(c->world, &c->nodes[id].is_booted, BODY_LIMIT_NS));
}

/* What a process had when it died is lost, but not for the leak checker. */
static inline void node_bury(const struct node *node)
{
    static struct grave {
        struct grave *next;
        struct node node;
    } *graves;
    struct grave *grave = malloc(sizeof *grave);
    CHECK(grave != NULL);
    *grave = (struct grave){graves, *node};
    graves = grave;
}

static inline void node_kill(uint64_t id, enum sim_end how)
{
    struct node *node = &c->nodes[id];
    node_bury(node);
    sim_process_end(node->loop, how);
    node->is_up = node->is_booted = false;
    node->store = NULL;
}

static inline void run_for(uint64_t ns)
{
    bool never = false;
    sim_world_run_until(c->world, &never, ns);
}

/* --- what is done on a node --- */

enum op_kind { OP_WRITE, OP_FINALIZE, OP_TRIM, OP_TRIM_HEADERS };

struct op {
    struct task_call task;
    struct node *node;
    enum op_kind kind;
    const struct source *source;
    uint32_t length; /* of a write, of an end */
    uint32_t blocks[64], count;
    bool is_done;
    int rc;
};

static inline void op_main(struct task_call *call)
{
    struct op *op = container_of(call, struct op, task);
    struct store *store = op->node->store;
    switch (op->kind) {
    case OP_WRITE:
        op->rc = source_write(store, op->node->pool, op->source, op->length);
        if (op->rc == 0)
            op->rc = sync_wait(store);
        break;
    case OP_FINALIZE:
        op->rc = store_finalize_extent(store, op->source->address, op->length);
        break;
    case OP_TRIM:
        op->rc = store_trim(store, op->source->address, op->blocks, op->count);
        break;
    case OP_TRIM_HEADERS:
        op->rc = store_trim_headers(store, op->source->address);
        break;
    }
    if (op->rc == 0 && (op->kind == OP_TRIM || op->kind == OP_TRIM_HEADERS))
        op->rc = store_settle(store);
    op->is_done = true;
}

static inline void op_start(struct op *op, uint64_t node)
{
    op->node = &c->nodes[node];
    op->task = (struct task_call){.main = op_main, .name = "op", .system = true};
    task_start(op->node->loop, &op->task);
}

/* 0, or what it came to. */
static inline int op_run(struct op op, uint64_t node)
{
    struct op *mine = malloc(sizeof *mine);
    *mine = op;
    op_start(mine, node);
    CHECK(sim_world_run_until(c->world, &mine->is_done, BODY_LIMIT_NS));
    int rc = mine->rc;
    free(mine);
    return rc;
}

/* --- extents --- */

static inline uint32_t boundary_at_most(const struct source *s, uint32_t block)
{
    if (block >= s->length)
        return s->length;
    while (block > 0 && !source_is_header(s, block))
        block--;
    return block;
}

/* Opens one with these members; nothing is written. */
static inline struct model_copy *open_extent(uint8_t members, uint32_t blocks)
{
    const struct cluster_group *group = cluster_group_by_id(c->state, GROUP);
    struct cluster_command command = {.op = CLUSTER_EXTENT_OPEN,
                                      .disk = c->disk,
                                      .epoch = 1,
                                      .count = 1,
                                      .group = GROUP,
                                      .group_epoch = group->epoch};
    struct cluster_result result;
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (members >> id & 1)
            command.members[command.member_count++] = id;
    if (commit(&command, &result) != 0)
        return NULL;
    CHECK(c->extent_count < EXTENTS_MAX);
    struct model_copy *x = &c->extents[c->extent_count++];
    *x = (struct model_copy){.members = members};
    x->source = source_of_disk(c->world, (struct address){result.id}, c->disk, 1, blocks);
    for (uint64_t id = 1; id <= c->node_count; id++)
        if ((members >> id & 1) && c->nodes[id].is_up)
            node_apply_to(&c->nodes[id], c->command_count);
    return x;
}

/* Its end is decided, and committed. */
static inline void commit_length(struct model_copy *x, uint32_t length, bool leaves)
{
    struct final_length final = {
        .extent = x->source->address, .length = length, .leaves = leaves};
    CHECK_EQ(COMMIT(.op = CLUSTER_CUT, .disk = c->disk, .epoch = 1, .finals = &final,
                    .final_count = 1),
             0);
    x->length = length;
    x->has_length = true;
    x->has_left = leaves;
    x->is_dead = length == 0;
}

static inline bool finalize_on(struct model_copy *x, uint64_t node)
{
    int rc = op_run(
        (struct op){.kind = OP_FINALIZE, .source = x->source, .length = x->length}, node);
    if (rc == 0)
        x->finalized |= (uint8_t)(1U << node);
    return rc == 0;
}

/* The whole life of an extent, up to when it left the list. */
static inline struct model_copy *write_extent(uint8_t members, uint32_t blocks)
{
    struct model_copy *x = open_extent(members, blocks);
    CHECK(x != NULL);
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (members >> id & 1)
            CHECK_EQ(
                op_run(
                    (struct op){.kind = OP_WRITE, .source = x->source, .length = blocks},
                    id),
                0);
    commit_length(x, blocks, false);
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (members >> id & 1)
            CHECK(finalize_on(x, id));
    commit_length(x, blocks, true);
    return x;
}

static inline bool block_is_live(const struct model_copy *x, uint32_t block)
{
    if (source_is_header(x->source, block))
        return !x->headers_dead;
    return !bitmap_get(x->dead, block);
}

static inline uint32_t count_live(const struct model_copy *x)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < x->length; i++)
        count += block_is_live(x, i);
    return count;
}

/* --- what must hold --- */

/* A node that is whole has all that is live of the extents from one on. */
static inline void check_whole_from(uint32_t first)
{
    uint8_t live[BITMAP_BYTES];
    for (uint64_t id = 1; id <= c->node_count; id++) {
        struct node *node = &c->nodes[id];
        if (!node->is_booted || !is_whole(id))
            continue;
        for (uint32_t i = first; i < c->extent_count; i++) {
            struct model_copy *x = &c->extents[i];
            struct extent_info info = {0};
            if (!x->has_left || x->is_dead || count_live(x) == 0)
                continue;
            CHECK_EQ(store_extent_info(node->store, x->source->address, &info), 0);
            CHECK(info.state == EXTENT_FINAL && info.length == x->length);
            CHECK_EQ(store_live_map(node->store, x->source->address, live), 0);
            for (uint32_t b = 0; b < x->length; b++)
                if (block_is_live(x, b) && !bitmap_get(live, b)) {
                    fprintf(stderr, "node %u extent %llx block %u is lost\n",
                            (unsigned)id, (unsigned long long)x->source->address.v, b);
                    exit(1);
                }
        }
    }
}

/* Nobody has lost what was once final. */
static inline void check_whole_now(void)
{
    check_whole_from(0);
}

struct comparison {
    struct task_call task;
    struct node *node;
    bool is_done;
    uint32_t seen;
};

static inline int never_found(void *arg, struct address address,
                              const struct entry *entry, int code)
{
    (void)arg, (void)entry;
    fprintf(stderr, "%llx: %d\n", (unsigned long long)address.v, code);
    exit(1);
}

/* Every block that is live there is what it must be. */
static inline async void compare_bytes(struct store *store, const struct model_copy *x)
{
    struct verify_callbacks cb = {.finding = never_found};
    uint8_t live[BITMAP_BYTES];
    CHECK_EQ(store_verify_extent(store, x->source->address, &cb), 0);
    CHECK_EQ(store_live_map(store, x->source->address, live), 0);
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    for (uint32_t b = 0; b < EXTENT_BLOCKS; b++) {
        uint64_t at = 0;
        if (!bitmap_get(live, b))
            continue;
        struct extent *e = extent_find(&store->extents, x->source->address);
        CHECK_EQ(extent_place(e, b, 1, &at), 1);
        CHECK_EQ(file_read(store->file, bytes, BLOCK_SIZE, at), 0);
        CHECK(memcmp(bytes, source_block(x->source, b), BLOCK_SIZE) == 0);
    }
    free(bytes);
}

/* Every live block, exactly; nothing else. */
static inline async void compare_copy(struct comparison *cmp, const struct model_copy *x)
{
    struct store *store = cmp->node->store;
    uint8_t live[BITMAP_BYTES];
    struct extent_info info;
    CHECK_EQ(store_extent_info(store, x->source->address, &info), 0);
    CHECK(info.state == EXTENT_FINAL && info.length == x->length);
    CHECK_EQ(info.has_headers, !x->headers_dead);
    CHECK_EQ(store_live_map(store, x->source->address, live), 0);
    for (uint32_t b = 0; b < x->length; b++)
        CHECK_EQ(bitmap_get(live, b), block_is_live(x, b));
    compare_bytes(store, x);
}

static inline void compare_main(struct task_call *call)
{
    struct comparison *cmp = container_of(call, struct comparison, task);
    uint32_t expected = 0;
    for (uint32_t i = 0; i < c->extent_count; i++) {
        const struct model_copy *x = &c->extents[i];
        if (x->is_dead || count_live(x) == 0 || member_of(cmp->node->id) == NULL)
            continue;
        compare_copy(cmp, x);
        expected++;
    }
    struct extent_info *infos = NULL;
    size_t count = 0;
    CHECK_EQ(store_list_extents(cmp->node->store, 0, &infos, &count), 0);
    for (size_t i = 0; i < count && count != expected; i++)
        fprintf(stderr, "node %u: extent %llx, state %d, length %u, %u live\n",
                (unsigned)cmp->node->id, (unsigned long long)infos[i].extent.v,
                infos[i].state, infos[i].length, infos[i].live);
    CHECK_EQ(count, expected);
    free(infos);
    cmp->is_done = true;
}

/* Every node has all it should have, and nothing else. */
static inline void compare_all(void)
{
    for (uint64_t id = 1; id <= c->node_count; id++) {
        struct comparison cmp = {.node = &c->nodes[id],
                                 .task = {.main = compare_main, .name = "compare"}};
        CHECK(cmp.node->is_booted);
        task_start(cmp.node->loop, &cmp.task);
        CHECK(sim_world_run_until(c->world, &cmp.is_done, BODY_LIMIT_NS));
    }
}

/* Until all members that are up are whole. */
static inline void wait_whole(uint64_t limit_ns)
{
    const struct cluster_group *group = cluster_group_by_id(c->state, GROUP);
    uint64_t until_ns = sim_world_now_ns(c->world) + limit_ns;
    for (uint32_t i = 0; i < group->member_count; i++)
        while (group->members[i].missing_since != 0 &&
               c->nodes[group->members[i].node].is_up) {
            if (sim_world_now_ns(c->world) > until_ns) {
                struct recovery_status status;
                recovery_status(c->nodes[group->members[i].node].recovery, &status);
                fprintf(stderr, "node %u is not whole: %s\n",
                        (unsigned)group->members[i].node, status.what);
                exit(1);
            }
            for (uint64_t id = 1; id <= c->node_count; id++)
                if (c->nodes[id].is_up)
                    node_apply_to(&c->nodes[id], c->command_count);
            run_for(100 * NS_PER_MS);
        }
}

/* --- making one --- */

/* A cluster of so many nodes; the first `members` are in the group, and node 1 is whole,
 * the others if `whole`. */
static inline void cluster_make(uint64_t seed, uint32_t nodes, uint32_t members)
{
    CHECK(nodes <= NODES_MAX);
    make_ops();
    c = calloc(1, sizeof *c);
    c->world = sim_world_create(seed);
    c->state = cluster_state_create();
    c->node_count = nodes;
    for (uint64_t id = 1; id <= nodes; id++) {
        node_start(id);
        node_wait(id);
    }
    CHECK_EQ(COMMIT(.op = CLUSTER_INIT, .cluster = CLUSTER_UID, .node = 1,
                    .store = c->nodes[1].incarnation, .wall_ns = 1),
             0);
    for (uint64_t id = 2; id <= nodes; id++)
        CHECK_EQ(COMMIT(.op = CLUSTER_NODE_SET, .store = c->nodes[id].incarnation,
                        .name = node_address(id), .new_name = "", .wall_ns = 1),
                 0);
    CHECK_EQ(COMMIT(.op = CLUSTER_DISK_CREATE, .name = "disk", .size_bytes = GIB), 0);
    c->disk = cluster_disk_by_name(c->state, "disk")->id;
    CHECK_EQ(COMMIT(.op = CLUSTER_LEASE_TAKE, .disk = c->disk, .epoch = 0, .node = 1), 0);
    if (members > 1)
        CHECK_EQ(COMMIT(.op = CLUSTER_GROUP_SET, .group = GROUP, .number = 1,
                        .member_count = (uint8_t)members, .members = {1, 2, 3, 4, 5}),
                 0);
    wait_whole(60 * NS_PER_S);
}

static inline bool group_set(const uint64_t *members, uint32_t count)
{
    struct cluster_command command = {
        .op = CLUSTER_GROUP_SET,
        .group = GROUP,
        .number = cluster_group_by_id(c->state, GROUP)->epoch,
        .member_count = (uint8_t)count};
    struct cluster_result result;
    memcpy(command.members, members, count * sizeof *members);
    return commit(&command, &result) == 0;
}

/* --- for stories --- */

#define ALL3 0x0eU /* nodes 1, 2, 3 */

static inline void end_all(void)
{
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (c->nodes[id].is_up)
            node_kill(id, SIM_KILL);
}

static inline void write_on(const struct model_copy *x, uint64_t node)
{
    CHECK_EQ(op_run((struct op){.kind = OP_WRITE,
                                .source = x->source,
                                .length = x->source->length},
                    node),
             0);
}

static inline void go_down(uint64_t node)
{
    node_kill(node, SIM_POWER_CUT);
    set_down(node, true);
}

static inline void come_back(uint64_t node)
{
    node_start(node);
    node_wait(node);
    set_down(node, false);
}

static inline void apply_everywhere(void)
{
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (c->nodes[id].is_up)
            node_apply_to(&c->nodes[id], c->command_count);
}

static inline enum extent_state state_on(const struct model_copy *x, uint64_t id)
{
    struct extent_info info = {0};
    CHECK_EQ(store_extent_info(c->nodes[id].store, x->source->address, &info), 0);
    return info.state;
}

/* A process that is killed leaves memory behind, which only its tasks knew of. */
static inline void in_child(void (*story)(void))
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        story();
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
}

#endif
