/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member behind the network: a store in one simulated process, its user in another, and
 * between them the simulated network. What a store promises must hold from afar, and what
 * is lost on the way must end in bounded time.
 */
#include "blockstore/store_rpc_format.h"
#include "blockstore/store_service.h"
#include "replication/replica.h"
#include "tests/unit/on_loops.h"

#define CLUSTER     ((struct uid){{5}})
#define STORE_NODE  2U
#define USER_NODE   1U
#define ADDRESS     "store:1"
#define STORE_BYTES (256 * MIB)
#define HEADS_MAX   5000U
#define DISK        7U
#define EPOCH       3U
#define NONCE       99U
#define INDEX       41U

/* --- the store's process --- */

struct far {
    struct task_call call;
    struct loop *loop;
    struct kv *kv;
    struct store *store;
    struct buffer_pool *pool;
    struct rpc *rpc;
    struct store_service *service;
    struct uid incarnation;
    int admits; /* the answer to a create, */
    int keeps;  /* and to an end at 0 */
    uint64_t admitted_index;
    bool is_up, is_closing, is_closed;
};

struct test {
    struct sim_world *world;
    struct far far;
    struct body body; /* the user's process */
    struct buffer_pool *pool;
    struct rpc *rpc;
    struct replica *replica;
    void (*story)(struct test *t);
    uint32_t previous_crc, end;
    uint64_t number;
    uint32_t crcs[HEADS_MAX]; /* of the headers */
    uint32_t head_count;
};

static void handle(void *arg, struct rpc_request *request)
{
    store_service_handle(((struct far *)arg)->service, request);
}

static async int admit(void *arg, struct address extent, uint64_t disk, uint64_t epoch,
                       uint64_t index)
{
    struct far *far = arg;
    CHECK(!address_is_null(extent) && disk == DISK && epoch == EPOCH);
    far->admitted_index = index;
    task_sleep_ns(NS_PER_MS);
    return far->admits;
}

static async int may_delete(void *arg, struct address extent)
{
    struct far *far = arg;
    CHECK(!address_is_null(extent));
    return far->keeps;
}

static struct rpc_op ops[STORE_SERVICE_OPS];
static const struct rpc_op *op_table[STORE_SERVICE_OPS + 1];

static void make_ops(void)
{
    for (uint32_t i = 0; i < STORE_SERVICE_OPS; i++) {
        ops[i] = store_service_ops[i];
        ops[i].handle = handle;
        op_table[i] = &ops[i];
    }
}

static async void far_open(struct far *far, bool is_new)
{
    struct error err = {0};
    struct store_options options = {
        .path = "far/store", .capacity_bytes = STORE_BYTES, .no_idle_work = true};
    CHECK_EQ(kv_open(far->loop, "far/kv", true, &far->kv, &err), 0);
    options.kv = far->kv;
    if (is_new)
        CHECK_EQ(store_create(far->loop, &options, CLUSTER, &err), 0);
    options.capacity_bytes = 0;
    CHECK_EQ(store_open(far->loop, &options, &far->store, &err), 0);
    struct store_usage usage;
    store_usage(far->store, &usage);
    far->incarnation = usage.incarnation;
    far->pool = buffer_pool_create(64 * MIB);
    struct rpc_options rpc = {.loop = far->loop,
                              .self = {.cluster = CLUSTER, .node = STORE_NODE},
                              .buffers = far->pool,
                              .ops = op_table,
                              .arg = far};
    struct store_service_options service = {.store = far->store,
                                            .loop = far->loop,
                                            .buffers = far->pool,
                                            .admit = admit,
                                            .may_delete = may_delete,
                                            .arg = far};
    CHECK_EQ(store_service_create(&service, &far->service), 0);
    CHECK_EQ(rpc_create(&rpc, &far->rpc, &err), 0);
    CHECK_EQ(rpc_listen(far->rpc, ADDRESS, NULL, &err), 0);
}

static void far_main(struct task_call *call)
{
    struct far *far = container_of(call, struct far, call);
    far_open(far, false);
    far->is_up = true;
}

static void far_first(struct task_call *call)
{
    struct far *far = container_of(call, struct far, call);
    far_open(far, true);
    far->is_up = true;
}

static void far_start(struct test *t, void (*main)(struct task_call *call))
{
    struct far *far = &t->far;
    far->loop = sim_process_create(t->world);
    sim_process_set_host(far->loop, STORE_NODE);
    far->is_up = false;
    far->call = (struct task_call){.main = main, .name = "far", .system = true};
    task_start(far->loop, &far->call);
    CHECK(sim_world_run_until(t->world, &far->is_up, BODY_LIMIT_NS));
}

static void far_close_main(struct task_call *call)
{
    struct far *far = container_of(call, struct far, call);
    store_service_stop(far->service);
    far->is_closed = true;
}

/* --- what the user does --- */

struct near_append {
    struct replica_append append;
    struct slice slices[2];
    struct event *over;
    int *ret_result;
    uint32_t *pending;
};

static void near_append_done(struct replica_append *append)
{
    struct near_append *mine = container_of(append, struct near_append, append);
    if (append->result != 0)
        *mine->ret_result = append->result;
    for (uint32_t i = 0; i < append->store.slice_count; i++)
        buffer_put(mine->slices[i].buffer);
    if (--*mine->pending == 0)
        event_set(mine->over);
    free(mine);
}

struct burst {
    struct event over;
    uint32_t pending;
    int result;
};

static void burst_begin(struct burst *burst)
{
    *burst = (struct burst){.pending = 1};
    event_init(&burst->over);
}

static async int burst_end(struct burst *burst)
{
    if (--burst->pending == 0)
        event_set(&burst->over);
    event_wait(&burst->over);
    return burst->result;
}

static void fill(uint8_t *bytes, uint32_t blocks, uint64_t number)
{
    for (size_t i = 0; i < blocks * BLOCK_SIZE; i += 8) {
        uint64_t word = (number << 20) + i;
        memcpy(bytes + i, &word, 8);
    }
}

/* The roll record (blocks 0), or the next batch. */
static struct near_append *append(struct test *t, struct address extent, uint32_t blocks,
                                  struct burst *burst)
{
    struct near_append *mine = calloc(1, sizeof *mine);
    struct entry entries[BATCH_BLOCKS];
    struct buffer *header = buffer_create(t->pool, BLOCK_SIZE);
    struct header head = {.kind = blocks == 0 ? HEADER_ROLL : HEADER_BATCH,
                          .cluster = CLUSTER, .disk = DISK, .extent = extent,
                          .block = t->end, .epoch = EPOCH, .nonce = NONCE,
                          .previous_crc = t->previous_crc, .count = blocks};
    CHECK(mine != NULL && header != NULL && t->head_count < HEADS_MAX);
    mine->slices[0] = (struct slice){header, 0, BLOCK_SIZE};
    mine->append.store.slice_count = 1;
    if (blocks > 0) {
        struct buffer *data = buffer_create(t->pool, blocks * BLOCK_SIZE);
        CHECK(data != NULL);
        head.number = ++t->number;
        fill(data->data, blocks, head.number);
        for (uint32_t i = 0; i < blocks; i++)
            entries[i] = (struct entry){
                .kind = ENTRY_DATA, .key = i, .count = 1,
                .crc = crc32c(data->data + i * BLOCK_SIZE, BLOCK_SIZE)};
        mine->slices[mine->append.store.slice_count++] =
            (struct slice){data, 0, blocks * (uint32_t)BLOCK_SIZE};
    }
    t->previous_crc = blocks == 0 ? roll_encode(&head, NULL, header->data)
                                  : header_encode(&head, entries, header->data);
    t->crcs[t->head_count++] = t->previous_crc;
    mine->append.done = near_append_done;
    mine->append.store.extent = extent;
    mine->append.store.epoch = EPOCH;
    mine->append.store.block = t->end;
    mine->append.store.slices = mine->slices;
    mine->over = &burst->over;
    mine->pending = &burst->pending;
    mine->ret_result = &burst->result;
    burst->pending++;
    t->end += 1 + blocks;
    t->replica->ops->append(t->replica, &mine->append);
    return mine;
}

static async int append_some(struct test *t, struct address extent, uint32_t blocks,
                             uint32_t times)
{
    struct burst burst;
    burst_begin(&burst);
    for (uint32_t i = 0; i < times; i++)
        (void)append(t, extent, blocks, &burst);
    return burst_end(&burst);
}

struct near_sync {
    struct replica_sync sync;
    struct event over;
};

static void near_sync_done(struct replica_sync *sync)
{
    event_set(&container_of(sync, struct near_sync, sync)->over);
}

static async int sync_extent(struct test *t, struct address extent)
{
    struct near_sync mine = {
        .sync = {.extent = extent, .epoch = EPOCH, .done = near_sync_done}};
    event_init(&mine.over);
    t->replica->ops->sync(t->replica, &mine.sync);
    event_wait(&mine.over);
    return mine.sync.result;
}

struct near_read {
    struct replica_read read;
    struct event over;
};

static void near_read_done(struct replica_read *read)
{
    event_set(&container_of(read, struct near_read, read)->over);
}

static async int read_blocks(struct test *t, struct address address, uint32_t count,
                             uint8_t *ret)
{
    /* Two vectors, cut in the middle of a block. */
    struct iovec iov[2] = {{ret, 1000}, {ret + 1000, count * BLOCK_SIZE - 1000}};
    struct near_read mine = {.read = {.store = {.address = address, .count = count,
                                                .iov = iov, .iov_count = 2},
                                      .done = near_read_done}};
    event_init(&mine.over);
    t->replica->ops->read(t->replica, &mine.read);
    event_wait(&mine.over);
    return mine.read.result;
}

static async int create(struct test *t, struct address extent)
{
    t->end = t->previous_crc = 0;
    t->head_count = 0;
    struct replica_create create = {.extent = extent, .disk = DISK, .epoch = EPOCH,
                                    .nonce = NONCE, .slabs_hint = 1, .index = INDEX,
                                    .limit_ns = 5 * NS_PER_S};
    return t->replica->ops->create(t->replica, &create);
}

struct heads {
    struct test *t;
    uint32_t seen, stop_after;
};

static int see_header(void *arg, const struct header *head, const struct entry *entries,
                      const struct roll_entry *rolls)
{
    struct heads *heads = arg;
    (void)rolls;
    CHECK(heads->seen < heads->t->head_count);
    CHECK_EQ(head->crc, heads->t->crcs[heads->seen]);
    CHECK(head->kind == HEADER_ROLL || head->count == 0 ||
          entries[head->count - 1].key == head->count - 1);
    return ++heads->seen == heads->stop_after ? -PLX_EEXISTS : 0;
}

/* --- stories --- */

#define EXTENT(n) address_of(1, n, 0)

/* A life of an extent, like that of one next door. */
static async void life(struct test *t)
{
    struct address extent = EXTENT(1);
    uint8_t *bytes = malloc(256 * BLOCK_SIZE), *want = malloc(256 * BLOCK_SIZE);
    uint32_t length, end;
    bool scanned;
    CHECK_EQ(create(t, extent), 0);
    CHECK_EQ(t->far.admitted_index, INDEX);
    CHECK_EQ(create(t, extent), -PLX_EEXISTS);
    CHECK_EQ(append_some(t, extent, 0, 1), 0);
    CHECK_EQ(append_some(t, extent, 255, 3), 0);
    CHECK_EQ(append_some(t, extent, 1, 40), 0);
    CHECK_EQ(sync_extent(t, extent), 0);
    CHECK_EQ(read_blocks(t, address_plus(extent, 2), 255, bytes), 0);
    fill(want, 255, 1);
    CHECK(memcmp(bytes, want, 255 * BLOCK_SIZE) == 0);
    CHECK_EQ(read_blocks(t, address_plus(extent, t->end), 1, bytes), -PLX_ENOTHERE);
    CHECK_EQ(read_blocks(t, EXTENT(9), 1, bytes), -PLX_ENOTHERE);
    struct heads heads = {.t = t};
    const struct replica_ops *far = t->replica->ops;
    CHECK_EQ(far->walk_headers(t->replica, extent, see_header, &heads, &end), 0);
    CHECK(heads.seen == t->head_count && end == t->end);
    CHECK_EQ(far->stop(t->replica, extent, &length, &scanned), 0);
    CHECK(length == t->end && !scanned);
    CHECK_EQ(append_some(t, extent, 1, 1), -PLX_ESTOPPED);
    CHECK_EQ(sync_extent(t, extent), -PLX_ESTOPPED);
    CHECK_EQ(far->finalize(t->replica, extent, length - 2), 0);
    CHECK_EQ(far->finalize(t->replica, extent, length - 2), 0);
    CHECK_EQ(far->finalize(t->replica, extent, length - 4), -PLX_EPRECONDITION);
    CHECK_EQ(far->trim_headers(t->replica, extent), 0);
    CHECK_EQ(far->trim_headers(t->replica, EXTENT(9)), 0);
    CHECK_EQ(far->stop(t->replica, EXTENT(5), &length, &scanned), 0);
    CHECK_EQ(length, 0);
    CHECK_EQ(far->finalize(t->replica, EXTENT(5), 0), 0);
    free(bytes);
    free(want);
}

/* Headers that need several pages; a reader that has enough. */
static async void pages(struct test *t)
{
    struct address extent = EXTENT(1);
    struct heads heads = {.t = t};
    const struct replica_ops *far = t->replica->ops;
    uint32_t end;
    CHECK_EQ(create(t, extent), 0);
    CHECK_EQ(append_some(t, extent, 0, 1), 0);
    for (uint32_t i = 0; i < 10; i++)
        CHECK_EQ(append_some(t, extent, 1, 400), 0);
    CHECK_EQ(append_some(t, extent, 30, 200), 0);
    CHECK_EQ(far->walk_headers(t->replica, extent, see_header, &heads, &end), 0);
    CHECK(heads.seen == t->head_count && end == t->end);
    heads = (struct heads){.t = t, .stop_after = 3500};
    CHECK_EQ(far->walk_headers(t->replica, extent, see_header, &heads, NULL),
             -PLX_EEXISTS);
    CHECK_EQ(heads.seen, 3500);
    CHECK_EQ(far->walk_headers(t->replica, EXTENT(2), see_header, &heads, NULL),
             -PLX_EMISSING);
}

/* What is refused: by the cluster's state, and because it is another store. */
static async void refused(struct test *t)
{
    uint8_t bytes[BLOCK_SIZE];
    uint32_t length;
    bool scanned;
    t->far.admits = -PLX_EEPOCH;
    CHECK_EQ(create(t, EXTENT(1)), -PLX_EEPOCH);
    CHECK_EQ(append_some(t, EXTENT(1), 0, 1), -PLX_EMISSING);
    t->far.admits = 0;
    CHECK_EQ(create(t, EXTENT(1)), 0);
    t->far.keeps = -EAGAIN;
    CHECK_EQ(t->replica->ops->finalize(t->replica, EXTENT(1), 0), -EAGAIN);
    CHECK_EQ(create(t, EXTENT(1)), -PLX_EEXISTS);
    t->far.keeps = 0;
    struct uid other = t->far.incarnation;
    other.b[3] ^= 1;
    struct replica *wrong = replica_remote_create(t->rpc, STORE_NODE, other);
    struct replica *right = t->replica;
    t->replica = wrong;
    CHECK_EQ(create(t, EXTENT(2)), -PLX_EMISSING);
    CHECK_EQ(append_some(t, EXTENT(1), 0, 1), -PLX_EMISSING);
    CHECK_EQ(sync_extent(t, EXTENT(1)), -PLX_EMISSING);
    CHECK_EQ(read_blocks(t, EXTENT(1), 1, bytes), -PLX_EMISSING);
    CHECK_EQ(wrong->ops->stop(wrong, EXTENT(1), &length, &scanned), -PLX_EMISSING);
    t->replica = right;
    wrong->ops->destroy(wrong);
    t->end = t->previous_crc = 0;
    CHECK_EQ(append_some(t, EXTENT(1), 0, 1), 0);
}

static async void restart_far(struct test *t, enum sim_end how)
{
    sim_process_end(t->far.loop, how);
    t->far.is_up = false;
    t->far.loop = sim_process_create(t->world);
    sim_process_set_host(t->far.loop, STORE_NODE);
    t->far.call = (struct task_call){.main = far_main, .name = "far", .system = true};
    task_start(t->far.loop, &t->far.call);
    while (!t->far.is_up)
        task_sleep_ns(10 * NS_PER_MS);
}

/* A store that lost power says that it did not keep what it had acknowledged. */
static async void restarted(struct test *t)
{
    uint32_t length;
    bool scanned;
    CHECK_EQ(create(t, EXTENT(1)), 0);
    CHECK_EQ(append_some(t, EXTENT(1), 0, 1), 0);
    CHECK_EQ(append_some(t, EXTENT(1), 4, 1), 0);
    CHECK_EQ(sync_extent(t, EXTENT(1)), 0);
    uint32_t synced = t->end;
    CHECK_EQ(append_some(t, EXTENT(1), 4, 3), 0);
    restart_far(t, SIM_POWER_CUT);
    int rc = sync_extent(t, EXTENT(1)); /* the connection was to the one before */
    CHECK(rc == -ECONNRESET || rc == -PLX_ESTOPPED);
    CHECK_EQ(sync_extent(t, EXTENT(1)), -PLX_ESTOPPED);
    CHECK_EQ(append_some(t, EXTENT(1), 1, 1), -PLX_ESTOPPED);
    const struct replica_ops *far = t->replica->ops;
    CHECK_EQ(far->stop(t->replica, EXTENT(1), &length, &scanned), 0);
    CHECK(scanned && length >= synced && length <= t->end);
    restart_far(t, SIM_KILL); /* once more, and it does not forget that */
    CHECK(append_some(t, EXTENT(1), 1, 1) < 0);
    CHECK_EQ(sync_extent(t, EXTENT(1)), -PLX_ESTOPPED);
    scanned = false;
    CHECK_EQ(far->stop(t->replica, EXTENT(1), &length, &scanned), 0);
    CHECK(scanned && length >= synced && length <= t->end);
}

/* Everything ends, whatever becomes of the way between them. */
static async void lost(struct test *t)
{
    uint32_t length;
    bool scanned;
    CHECK_EQ(create(t, EXTENT(1)), 0);
    CHECK_EQ(append_some(t, EXTENT(1), 0, 1), 0);
    for (int i = 0; i < 2; i++) {
        sim_net_block(t->world, i == 0 ? STORE_NODE : USER_NODE,
                      i == 0 ? USER_NODE : STORE_NODE, true);
        uint64_t begun_ns = loop_now_ns(t->body.loop);
        int rc = append_some(t, EXTENT(1), 1, 20);
        CHECK(rc == -ECONNRESET || rc == -ETIMEDOUT);
        CHECK(loop_now_ns(t->body.loop) - begun_ns <= 6 * NS_PER_S);
        CHECK(sync_extent(t, EXTENT(1)) < 0);
        sim_net_open_all(t->world);
        const struct replica_ops *far = t->replica->ops;
        CHECK_EQ(far->stop(t->replica, EXTENT(1), &length, &scanned), 0);
        CHECK(!scanned && length >= 1);
    }
}

/* Appends and a sync are given up at once: on their way, or to nobody. */
static void given_up(struct test *t)
{
    struct burst burst;
    struct near_append *appends[10];
    uint32_t length, before;
    bool scanned;
    const struct replica_ops *far = t->replica->ops;
    CHECK_EQ(create(t, EXTENT(1)), 0);
    CHECK_EQ(append_some(t, EXTENT(1), 0, 1), 0);
    before = t->end;
    sim_net_block(t->world, USER_NODE, STORE_NODE, sim_world_random(t->world, 2) == 0);
    burst_begin(&burst);
    for (uint32_t i = 0; i < 10; i++)
        appends[i] = append(t, EXTENT(1), 16, &burst);
    struct near_sync mine = {
        .sync = {.extent = EXTENT(1), .epoch = EPOCH, .done = near_sync_done}};
    event_init(&mine.over);
    far->sync(t->replica, &mine.sync);
    task_sleep_ns(sim_world_random(t->world, NS_PER_MS));
    uint64_t begun_ns = loop_now_ns(t->body.loop);
    uint32_t owed = burst.pending - 1;
    for (uint32_t i = 10 - owed; i < 10; i++)
        far->cancel_append(t->replica, &appends[i]->append);
    if (!mine.over.is_set)
        far->cancel_sync(t->replica, &mine.sync);
    int rc = burst_end(&burst);
    CHECK(owed == 0 ? rc == 0 : rc == -ECANCELED);
    CHECK(mine.over.is_set);
    CHECK(mine.sync.result == 0 || mine.sync.result == -ECANCELED);
    CHECK_EQ(loop_now_ns(t->body.loop), begun_ns);
    sim_net_open_all(t->world);
    CHECK_EQ(far->stop(t->replica, EXTENT(1), &length, &scanned), 0);
    CHECK(length >= before + (10 - owed) * 17 && (length - before) % 17 == 0);
}

/* A read that was given up leaves the caller's memory alone, whatever comes late. */
static async void read_given_up(struct test *t)
{
    static uint8_t bytes[64 * BLOCK_SIZE], was[sizeof bytes];
    const struct replica_ops *far = t->replica->ops;
    CHECK_EQ(create(t, EXTENT(1)), 0);
    CHECK_EQ(append_some(t, EXTENT(1), 0, 1), 0);
    CHECK_EQ(append_some(t, EXTENT(1), 64, 1), 0);
    for (uint32_t i = 0; i < 20; i++) {
        struct iovec iov = {bytes, sizeof bytes};
        struct near_read mine = {
            .read = {.store = {.address = address_plus(EXTENT(1), 2), .count = 64,
                               .iov = &iov, .iov_count = 1},
                     .done = near_read_done}};
        memset(bytes, 0xee, sizeof bytes);
        event_init(&mine.over);
        far->read(t->replica, &mine.read);
        task_sleep_ns(sim_world_random(t->world, NS_PER_MS));
        bool came = mine.over.is_set;
        if (!came)
            far->cancel_read(t->replica, &mine.read);
        CHECK(mine.over.is_set);
        CHECK_EQ(mine.read.result, came ? 0 : -ECANCELED);
        memcpy(was, bytes, sizeof bytes);
        task_sleep_ns(10 * NS_PER_MS);
        CHECK(memcmp(bytes, was, sizeof bytes) == 0);
    }
}

/* A service that closes answers what it has begun, and refuses the rest. */
static async void closed(struct test *t)
{
    struct burst burst;
    CHECK_EQ(create(t, EXTENT(1)), 0);
    CHECK_EQ(append_some(t, EXTENT(1), 0, 1), 0);
    burst_begin(&burst);
    for (uint32_t i = 0; i < 30; i++)
        (void)append(t, EXTENT(1), 16, &burst);
    task_sleep_ns(sim_world_random(t->world, 2 * NS_PER_MS));
    t->far.call = (struct task_call){.main = far_close_main, .name = "close"};
    task_start(t->far.loop, &t->far.call);
    int rc = burst_end(&burst);
    CHECK(rc == 0 || rc == -ESHUTDOWN || rc == -PLX_ENOTEND);
    while (!t->far.is_closed)
        task_sleep_ns(NS_PER_MS);
    CHECK_EQ(sync_extent(t, EXTENT(1)), -ESHUTDOWN);
    rpc_destroy(take(t->far.rpc));
    store_service_destroy(take(t->far.service));
    CHECK_EQ(buffer_pool_used_bytes(t->far.pool), 0);
}

/* --- running them --- */

static void near_main(struct body *body)
{
    struct test *t = container_of(body, struct test, body);
    struct error err = {0};
    static const struct rpc_op *const none[] = {NULL};
    t->pool = buffer_pool_create(64 * MIB);
    struct rpc_options options = {.loop = body->loop,
                                  .self = {.cluster = CLUSTER, .node = USER_NODE},
                                  .buffers = t->pool,
                                  .ops = none};
    CHECK_EQ(rpc_create(&options, &t->rpc, &err), 0);
    CHECK_EQ(rpc_set_address(t->rpc, STORE_NODE, ADDRESS), 0);
    t->replica = replica_remote_create(t->rpc, STORE_NODE, t->far.incarnation);
    CHECK(t->replica != NULL);
    t->story(t);
    t->replica->ops->destroy(t->replica);
}

static void near_end(struct test *t)
{
    rpc_destroy(t->rpc);
    CHECK_EQ(buffer_pool_used_bytes(t->pool), 0);
    buffer_pool_destroy(t->pool);
    sim_process_end(t->body.loop, SIM_KILL);
}

static void run(void (*story)(struct test *t), uint64_t seed)
{
    struct test *t = calloc(1, sizeof *t);
    CHECK(t != NULL);
    t->world = sim_world_create(seed);
    struct sim_faults *faults = sim_world_faults(t->world);
    faults->latency_min_ns = 20 * NS_PER_US;
    faults->latency_max_ns = 300 * NS_PER_US;
    faults->net_latency_min_ns = 20 * NS_PER_US;
    faults->net_latency_max_ns = 500 * NS_PER_US;
    t->story = story;
    far_start(t, far_first);
    t->body = (struct body){.run = near_main, .world = t->world};
    t->body.call = (struct task_call){.main = body_main, .name = "near"};
    t->body.loop = sim_process_create(t->world);
    sim_process_set_host(t->body.loop, USER_NODE);
    task_start(t->body.loop, &t->body.call);
    CHECK(sim_world_run_until(t->world, &t->body.is_over, BODY_LIMIT_NS));
    near_end(t);
    sim_process_end(t->far.loop, SIM_KILL);
    sim_world_destroy(t->world);
    free(t);
}

int main(void)
{
    make_ops();
    for (uint64_t seed = 1; seed <= seeds_of(8); seed++) {
        run(life, seed);
        run(refused, seed);
        run(restarted, seed);
        run(lost, seed);
        run(read_given_up, seed);
        run(given_up, seed);
        run(closed, seed);
    }
    run(pages, 1);
    _exit(0); /* without a search for what killed processes left */
}
