/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads from several copies, and the choice of members: a store in this process and
 * members that do as they are told, late or not at all.
 */
#include "blockstore/store_internal.h"
#include "replication/copies_internal.h"
#include "tests/unit/on_loops.h"

#define STORE_PATH  "sim/store"
#define OTHERS_MAX  4U
#define BLOCKS      600U /* of the extent that every copy has */
#define EXTENT      address_of(1, 1, 0)
#define SLOW_MS     100U
#define PATIENCE_MS 2000U

/* --- members that do as they are told --- */

struct told {
    struct replica replica;
    struct loop *loop;
    uint64_t delay_ns;
    int code;             /* what each read answers */
    bool is_sick[BLOCKS]; /* of these it has something else */
    bool is_eio[BLOCKS];  /* a read with one of these in it is -EIO */
    bool answers_inside;
    uint32_t asked, given_up, under_way;
    uint32_t last_first, last_count; /* what it was asked for */
};

struct told_read {
    struct timer timer;
    struct told *told;
    struct replica_read *read;
};

static void make_block(uint32_t block, uint8_t *ret)
{
    for (uint32_t i = 0; i < BLOCK_SIZE; i += sizeof block)
        memcpy(ret + i, &block, sizeof block);
}

static uint32_t crc_of(uint32_t block)
{
    uint8_t bytes[BLOCK_SIZE];
    make_block(block, bytes);
    return crc32c(bytes, sizeof bytes);
}

/* To whatever vectors there are. */
static void put(const struct store_read *store, size_t at, const uint8_t *bytes)
{
    size_t skip = at, left = BLOCK_SIZE;
    for (uint32_t i = 0; left > 0; i++) {
        CHECK(i < store->iov_count);
        const struct iovec *iov = &store->iov[i];
        size_t from = min_u64(skip, iov->iov_len);
        size_t n = min_u64(iov->iov_len - from, left);
        memcpy((uint8_t *)iov->iov_base + from, bytes, n);
        bytes += n;
        left -= n;
        skip -= from;
    }
}

static void told_finish(struct told *told, struct replica_read *read)
{
    const struct store_read *store = &read->store;
    uint32_t first = address_block(store->address);
    uint8_t bytes[BLOCK_SIZE];
    read->result = told->code;
    for (uint32_t i = 0; i < store->count; i++) {
        if (read->result == 0 && told->is_eio[first + i])
            read->result = -EIO;
    }
    for (uint32_t i = 0; i < store->count && read->result == 0; i++) {
        make_block(told->is_sick[first + i] ? 77777 : first + i, bytes);
        put(store, (size_t)i * BLOCK_SIZE, bytes);
    }
    told->under_way--;
    read->done(read);
}

static void told_fired(struct timer *timer)
{
    struct told_read *io = container_of(timer, struct told_read, timer);
    struct told *told = io->told;
    struct replica_read *read = io->read;
    free(io);
    told_finish(told, read);
}

static void told_read(struct replica *replica, struct replica_read *read)
{
    struct told *told = container_of(replica, struct told, replica);
    told->asked++;
    told->under_way++;
    told->last_first = address_block(read->store.address);
    told->last_count = read->store.count;
    CHECK(read->store.count > 0 && read->store.count <= 256);
    CHECK(told->last_first + told->last_count <= BLOCKS);
    if (told->answers_inside) {
        told_finish(told, read);
        return;
    }
    struct told_read *io = calloc(1, sizeof *io);
    CHECK(io != NULL);
    *io = (struct told_read){.timer.fire = told_fired, .told = told, .read = read};
    read->call = io;
    timer_start(told->loop, &io->timer, told->delay_ns);
}

static void told_cancel(struct replica *replica, struct replica_read *read)
{
    struct told *told = container_of(replica, struct told, replica);
    struct told_read *io = read->call;
    timer_stop(told->loop, &io->timer);
    free(io);
    told->given_up++;
    told->under_way--;
    read->result = -ECANCELED;
    read->done(read);
}

static void told_destroy(struct replica *replica)
{
    struct told *told = container_of(replica, struct told, replica);
    CHECK_EQ(told->under_way, 0);
    free(told);
}

static const struct replica_ops TOLD_OPS = {
    .read = told_read, .cancel_read = told_cancel, .destroy = told_destroy};

/* --- the rig --- */

struct rig {
    struct body *body;
    struct loop *loop;
    struct kv *kv;
    struct store *store;
    struct cluster *cluster;
    struct copies *copies;
    struct told *others[OTHERS_MAX]; /* nodes 2, 3, ... */
    uint32_t other_count;
    uint32_t crcs[BLOCKS];
    uint8_t *bytes;
    struct copies_bad bad[64];
    uint32_t bad_count;
};

static async void submit(struct rig *rig, const struct cluster_command *command,
                         struct cluster_result *ret)
{
    int rc = cluster_submit(rig->cluster, command, ret);
    if (rc != 0)
        fprintf(stderr, "command %d: %s\n", command->op, ret->text);
    CHECK_EQ(rc, 0);
}

static async void add_nodes(struct rig *rig, uint32_t others)
{
    struct cluster_result result;
    struct cluster_command group = {.op = CLUSTER_GROUP_SET, .group = 1, .number = 1,
                                    .member_count = (uint8_t)(1 + others),
                                    .members = {1, 2, 3, 4, 5}};
    for (uint8_t i = 0; i < others; i++) {
        struct cluster_command node = {.op = CLUSTER_NODE_SET, .store = {{2, i}}};
        submit(rig, &node, &result);
        CHECK_EQ(result.id, i + 2);
    }
    group.number = cluster_group_by_id(cluster_state(rig->cluster), 1)->epoch;
    submit(rig, &group, &result);
    for (uint32_t i = 1; i <= others; i++) {
        const struct cluster_group *at =
            cluster_group_by_id(cluster_state(rig->cluster), 1);
        struct cluster_command whole = {.op = CLUSTER_GROUP_WHOLE, .group = 1,
                                        .node = at->members[i].node,
                                        .number = at->members[i].missing_since};
        submit(rig, &whole, &result);
    }
}

static void note_bad(void *arg, const struct copies_bad *bad)
{
    struct rig *rig = arg;
    CHECK(rig->bad_count < ARRAY_LEN(rig->bad));
    CHECK_EQ(bad->crcs[0], rig->crcs[address_block(bad->address)]);
    rig->bad[rig->bad_count++] = *bad;
}

static async void rig_open(struct rig *rig, struct body *body, uint32_t others)
{
    struct error err = {0};
    struct cluster_result result;
    struct store_usage usage;
    struct store_options options = {
        .path = STORE_PATH, .capacity_bytes = 64 * MIB, .no_idle_work = true};
    *rig = (struct rig){.body = body, .loop = body->loop, .other_count = others};
    CHECK_EQ(kv_open(rig->loop, "sim/kv", true, &rig->kv, &err), 0);
    options.kv = rig->kv;
    CHECK_EQ(store_create(rig->loop, &options, (struct uid){{1}}, &err), 0);
    CHECK_EQ(store_open(rig->loop, &options, &rig->store, &err), 0);
    store_usage(rig->store, &usage);
    struct cluster_options state = {.loop = rig->loop, .kv = rig->kv, .node = 1};
    CHECK_EQ(cluster_bootstrap(rig->kv, 1, &err), 0);
    CHECK_EQ(cluster_open(&state, &rig->cluster, &err), 0);
    struct cluster_command init = {.op = CLUSTER_INIT, .cluster = {{1}},
                                   .store = usage.incarnation, .node = 1};
    submit(rig, &init, &result);
    if (others > 0)
        add_nodes(rig, others);
    struct copies_options copies = {.loop = rig->loop, .cluster = rig->cluster,
                                    .store = rig->store, .node = 1,
                                    .slow_ms = SLOW_MS, .patience_ms = PATIENCE_MS};
    CHECK_EQ(copies_create(&copies, &rig->copies), 0);
    for (uint32_t i = 0; i < others; i++) {
        struct told *told = calloc(1, sizeof *told);
        CHECK(told != NULL);
        *told = (struct told){.replica = {.ops = &TOLD_OPS, .node = i + 2},
                              .loop = rig->loop,
                              .delay_ns = NS_PER_MS};
        rig->others[i] = told;
        CHECK_EQ(copies_member_add(rig->copies, &told->replica), 0);
    }
    copies_on_bad(rig->copies, note_bad, rig);
    copies_stop(rig->copies); /* what is bad stays so */
    for (uint32_t i = 0; i < BLOCKS; i++)
        rig->crcs[i] = crc_of(i);
    rig->bytes = aligned_alloc(BLOCK_SIZE, BLOCKS * BLOCK_SIZE);
    CHECK(rig->bytes != NULL);
}

static async void rig_close(struct rig *rig)
{
    copies_destroy(rig->copies);
    cluster_close(rig->cluster);
    store_close(rig->store);
    kv_close(rig->kv);
    free(rig->bytes);
}

/* --- the copy in this process --- */

struct local_append {
    struct store_append append;
    struct event over;
};

static void local_appended(struct store_append *append)
{
    event_set(&container_of(append, struct local_append, append)->over);
}

static async void fill_local(struct rig *rig)
{
    struct buffer_pool *pool = buffer_pool_create(4 * MIB);
    CHECK_EQ(store_create_extent(rig->store, EXTENT, 1, 1, 1, 3, false), 0);
    for (uint32_t at = 0; at < BLOCKS;) {
        uint32_t n = min_u32(200, BLOCKS - at);
        struct slice slice = {.buffer = buffer_create(pool, n * BLOCK_SIZE),
                              .len = n * (uint32_t)BLOCK_SIZE};
        struct local_append mine = {
            .append = {.extent = EXTENT, .epoch = 1, .block = at, .slices = &slice,
                       .slice_count = 1, .done = local_appended}};
        for (uint32_t i = 0; i < n; i++)
            make_block(at + i, slice.buffer->data + (size_t)i * BLOCK_SIZE);
        event_init(&mine.over);
        store_append(rig->store, &mine.append);
        event_wait(&mine.over);
        CHECK_EQ(mine.append.result, 0);
        buffer_put(slice.buffer);
        at += n;
    }
    buffer_pool_destroy(pool);
}

static void rot_local(struct rig *rig, uint32_t block)
{
    struct extent *e = extent_find(&rig->store->extents, EXTENT);
    uint64_t offset;
    uint8_t byte;
    CHECK(e != NULL && extent_place(e, block, 1, &offset) == 1);
    CHECK_EQ(sim_file_peek(rig->body->world, STORE_PATH, offset, &byte, 1), 0);
    byte ^= 1;
    CHECK_EQ(sim_file_poke(rig->body->world, STORE_PATH, offset, &byte, 1), 0);
}

/* --- reading --- */

struct waiting {
    struct log_read read;
    struct iovec iov[2];
    struct event over;
};

static void waiting_done(struct log_read *read)
{
    event_set(&container_of(read, struct waiting, read)->over);
}

static void read_start(struct rig *rig, struct waiting *mine, uint32_t first,
                       uint32_t count)
{
    size_t len = (size_t)count * BLOCK_SIZE;
    memset(rig->bytes, 0xee, len);
    /* Two vectors; the first ends where a block does. */
    *mine = (struct waiting){
        .iov = {{rig->bytes, count / 2 * BLOCK_SIZE},
                {rig->bytes + count / 2 * BLOCK_SIZE, len - count / 2 * BLOCK_SIZE}},
        .read = {.address = address_plus(EXTENT, first), .count = count,
                 .crcs = rig->crcs + first, .done = waiting_done}};
    mine->read.iov = count < 2 ? &mine->iov[1] : mine->iov;
    mine->read.iov_count = count < 2 ? 1 : 2;
    event_init(&mine->over);
    copies_read(rig->copies, &mine->read);
}

static void check_bytes(const struct rig *rig, uint32_t first, uint32_t count)
{
    uint8_t want[BLOCK_SIZE];
    for (uint32_t i = 0; i < count; i++) {
        make_block(first + i, want);
        CHECK(memcmp(rig->bytes + (size_t)i * BLOCK_SIZE, want, BLOCK_SIZE) == 0);
    }
}

static async int read_range(struct rig *rig, uint32_t first, uint32_t count,
                            uint32_t *ret_bad)
{
    struct waiting mine;
    read_start(rig, &mine, first, count);
    event_wait(&mine.over);
    if (mine.read.result == 0)
        check_bytes(rig, first, count);
    if (ret_bad != NULL)
        *ret_bad = mine.read.bad_block;
    /* Nobody writes there any more; what is mended has memory of its own. */
    for (uint32_t i = 0; i < rig->other_count && !rig->copies->mends_run; i++)
        CHECK_EQ(rig->others[i]->under_way, 0);
    return mine.read.result;
}

static uint32_t asked(const struct rig *rig)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < rig->other_count; i++)
        count += rig->others[i]->asked;
    return count;
}

static void expect_bad(const struct rig *rig, uint32_t i, uint64_t node, uint32_t block,
                       int code)
{
    CHECK(i < rig->bad_count);
    CHECK_EQ(rig->bad[i].node, node);
    CHECK_EQ(address_block(rig->bad[i].address), block);
    CHECK_EQ(rig->bad[i].code, code);
}

/* --- stories --- */

static async void local_first(struct rig *rig)
{
    fill_local(rig);
    CHECK_EQ(read_range(rig, 0, 1, NULL), 0);
    CHECK_EQ(read_range(rig, 17, 100, NULL), 0);
    CHECK_EQ(read_range(rig, 0, BLOCKS, NULL), 0);
    CHECK_EQ(asked(rig), 0);
}

/* Without a copy here one of the others is asked, in calls of at most 256 blocks. */
static async void elsewhere(struct rig *rig)
{
    CHECK_EQ(read_range(rig, 3, 5, NULL), 0);
    CHECK_EQ(asked(rig), 1);
    CHECK_EQ(read_range(rig, 0, BLOCKS, NULL), 0);
    CHECK_EQ(asked(rig), 4);
    CHECK_EQ(rig->bad_count, 0);
}

/* What came sound stays; the rest is asked of others, and each bad copy is told. */
static async void bad_blocks(struct rig *rig)
{
    uint32_t bad;
    fill_local(rig);
    rot_local(rig, 40);
    rig->others[0]->is_sick[50] = true;
    rig->others[1]->is_sick[44] = true;
    CHECK_EQ(read_range(rig, 30, 30, NULL), 0);
    expect_bad(rig, 0, 1, 40, -PLX_ECHECKSUM);
    CHECK_EQ(rig->bad_count, 2);
    CHECK(rig->bad[1].node == 2 ? address_block(rig->bad[1].address) == 50
                                : address_block(rig->bad[1].address) == 44);
    /* Then it is this node's turn again: it was bad at another block. */
    CHECK_EQ(asked(rig), 1);
    rig->others[0]->is_sick[40] = true;
    CHECK_EQ(read_range(rig, 40, 1, NULL), 0);
    rig->others[1]->is_sick[40] = true;
    CHECK_EQ(read_range(rig, 35, 10, &bad), -PLX_ECHECKSUM);
    CHECK_EQ(bad, 5);
    CHECK_EQ(read_range(rig, 41, 3, NULL), 0);
}

/* An error of the device covers a range; some copy has each block of it all the same. */
static async void unreadable(struct rig *rig)
{
    uint32_t bad;
    for (uint32_t i = 0; i < 2; i++)
        rig->others[i]->is_eio[10 + i] = true;
    CHECK_EQ(read_range(rig, 8, 8, NULL), 0);
    CHECK(rig->bad_count > 0);
    CHECK_EQ(rig->bad[0].code, -EIO);
    rig->others[0]->is_eio[11] = true;
    rig->bad_count = 0;
    CHECK_EQ(read_range(rig, 8, 8, &bad), -EIO);
    CHECK_EQ(bad, 3);
    rig->others[1]->is_eio[11] = false;
    rig->others[1]->is_sick[11] = true; /* neither has it */
    CHECK_EQ(read_range(rig, 11, 1, NULL), -EIO);
}

/* What a member says ends it, or has the next one asked. */
static async void codes(struct rig *rig)
{
    static const int NEXT[] = {-PLX_ENOTHERE, -PLX_EMISSING, -ECONNRESET, -ETIMEDOUT,
                               -EHOSTUNREACH, -ENOMEM,       -PLX_ELIMIT, -EIO,
                               -ESHUTDOWN,    -PLX_EFORMAT};
    rig->others[1]->delay_ns = 2 * NS_PER_MS;
    for (size_t i = 0; i < ARRAY_LEN(NEXT); i++) {
        for (uint32_t j = 0; j < 2; j++) {
            rig->others[j]->code = NEXT[i];
            CHECK_EQ(read_range(rig, 5, 4, NULL), 0);
            rig->others[j]->code = 0;
        }
    }
    uint32_t before = asked(rig);
    rig->others[0]->code = rig->others[1]->code = -PLX_EDEAD;
    CHECK_EQ(read_range(rig, 5, 4, NULL), -PLX_EDEAD);
    CHECK_EQ(asked(rig), before + 1);
    rig->others[0]->code = rig->others[1]->code = -PLX_ENOTHERE;
    CHECK_EQ(read_range(rig, 5, 4, NULL), -PLX_ENOTHERE);
    rig->others[0]->code = -PLX_EMISSING; /* another store answers there */
    CHECK_EQ(read_range(rig, 5, 4, NULL), -PLX_ENOTHERE);
    rig->others[0]->code = 0;
    rig->others[0]->is_sick[6] = true;
    CHECK_EQ(read_range(rig, 5, 4, NULL), -PLX_ECHECKSUM);
    rig->others[1]->code = -EIO;
    CHECK_EQ(read_range(rig, 5, 4, NULL), -EIO);
    rig->others[1]->answers_inside = rig->others[0]->answers_inside = true;
    CHECK_EQ(read_range(rig, 5, 4, NULL), -EIO);
}

/* Members that cannot be asked for a moment are asked again; not for ever. */
static async void patience(struct rig *rig)
{
    struct waiting mine;
    fill_local(rig);
    rot_local(rig, 2);
    rig->others[0]->code = -ECONNRESET;
    memset(rig->others[1]->is_sick, 1, sizeof rig->others[1]->is_sick);
    read_start(rig, &mine, 2, 3);
    task_sleep_ns(PATIENCE_MS / 2 * NS_PER_MS);
    CHECK(!mine.over.is_set);
    CHECK(rig->others[0]->asked > 5 && rig->others[1]->asked == 1);
    rig->others[0]->code = 0;
    event_wait(&mine.over);
    CHECK_EQ(mine.read.result, 0);
    rig->others[0]->code = -ECONNRESET;
    uint64_t begun_ns = loop_now_ns(rig->loop);
    CHECK_EQ(read_range(rig, 2, 3, NULL), -ECONNRESET);
    CHECK(loop_now_ns(rig->loop) - begun_ns < (PATIENCE_MS + SLOW_MS) * NS_PER_MS);
}

/* A late answer is given up when another came, and cannot do any harm. */
static async void slow_member(struct rig *rig)
{
    for (uint32_t i = 0; i < BLOCKS; i++)
        rig->others[0]->is_sick[i] = true; /* were it taken, it would be seen */
    rig->others[0]->delay_ns = rig->others[1]->delay_ns = 3 * NS_PER_S;
    struct waiting mine;
    read_start(rig, &mine, 7, 9);
    task_sleep_ns(5 * NS_PER_MS);
    struct told *first = rig->others[0]->asked > 0 ? rig->others[0] : rig->others[1];
    struct told *second = first == rig->others[0] ? rig->others[1] : rig->others[0];
    memset(first->is_sick, 1, sizeof first->is_sick);
    memset(second->is_sick, 0, sizeof second->is_sick);
    second->delay_ns = NS_PER_MS;
    CHECK_EQ(second->asked, 0);
    event_wait(&mine.over);
    CHECK_EQ(mine.read.result, 0);
    CHECK(first->given_up == 1 && second->asked == 1);
    check_bytes(rig, 7, 9);
    task_sleep_ns(4 * NS_PER_S);
    check_bytes(rig, 7, 9);
    /* It comes after the others for a while. */
    uint32_t before = first->asked;
    for (uint32_t i = 0; i < 10; i++)
        CHECK_EQ(read_range(rig, 10 * i, 10, NULL), 0);
    CHECK_EQ(first->asked, before);
    task_sleep_ns(COPIES_AVOID_NS);
    memset(first->is_sick, 0, sizeof first->is_sick);
    first->delay_ns = NS_PER_MS;
    second->code = -PLX_ENOTHERE;
    CHECK_EQ(read_range(rig, 10, 10, NULL), 0);
    CHECK(first->asked > before);
}

/* Both are slow; the one that was asked first may still be the one that answers. */
static async void slow_both(struct rig *rig)
{
    struct waiting mine;
    rig->others[0]->delay_ns = rig->others[1]->delay_ns = 250 * NS_PER_MS;
    read_start(rig, &mine, 0, 300);
    event_wait(&mine.over);
    CHECK_EQ(mine.read.result, 0);
    check_bytes(rig, 0, 300);
    CHECK(rig->others[0]->given_up + rig->others[1]->given_up >= 2);
}

/* A store that is stuck is asked after the others; what it was asked for is waited for,
 * since nobody can take it back. */
static async void slow_store(struct rig *rig)
{
    struct sim_faults *faults = sim_world_faults(rig->body->world);
    struct waiting mine;
    fill_local(rig);
    faults->stuck_ppm = 1000000;
    uint8_t *bytes = rig->bytes;
    read_start(rig, &mine, 7, 9);
    faults->stuck_ppm = 0;
    task_sleep_ns((SLOW_MS + 1) * NS_PER_MS);
    CHECK(!mine.over.is_set);
    rig->bytes = aligned_alloc(BLOCK_SIZE, BLOCKS * BLOCK_SIZE);
    CHECK_EQ(read_range(rig, 7, 9, NULL), 0);
    CHECK_EQ(asked(rig), 1);
    event_wait(&mine.over);
    free(rig->bytes);
    rig->bytes = bytes;
    check_bytes(rig, 7, 9);
    CHECK_EQ(asked(rig), 1);
    rig->others[0]->code = rig->others[1]->code = -PLX_ENOTHERE;
    CHECK_EQ(read_range(rig, 7, 9, NULL), 0); /* nobody else has it */
    /* While others may still answer it is not asked either. */
    faults->stuck_ppm = 1000000;
    for (uint32_t i = 0; i < 2; i++) {
        rig->others[i]->code = 0;
        rig->others[i]->delay_ns = 5 * SLOW_MS * NS_PER_MS;
    }
    uint64_t begun_ns = loop_now_ns(rig->loop);
    CHECK_EQ(read_range(rig, 7, 9, NULL), 0);
    CHECK(loop_now_ns(rig->loop) - begun_ns < 6 * SLOW_MS * NS_PER_MS);
    faults->stuck_ppm = 0;
    task_sleep_ns(COPIES_AVOID_NS);
    uint32_t before = asked(rig);
    CHECK_EQ(read_range(rig, 7, 9, NULL), 0);
    CHECK_EQ(asked(rig), before);
}

/* The one with less to do is asked. */
static async void load(struct rig *rig)
{
    struct waiting mine[20];
    uint8_t *bytes = rig->bytes;
    uint8_t *many = aligned_alloc(BLOCK_SIZE, ARRAY_LEN(mine) * BLOCK_SIZE);
    CHECK(many != NULL);
    for (uint32_t i = 0; i < ARRAY_LEN(mine); i++) {
        rig->bytes = many + (size_t)i * BLOCK_SIZE;
        read_start(rig, &mine[i], i, 1);
        task_sleep_ns(10 * NS_PER_US);
    }
    for (uint32_t i = 0; i < ARRAY_LEN(mine); i++)
        event_wait(&mine[i].over);
    CHECK_EQ(rig->others[0]->asked, ARRAY_LEN(mine) / 2);
    CHECK_EQ(rig->others[1]->asked, ARRAY_LEN(mine) / 2);
    rig->bytes = bytes;
    free(many);
}

/* A member that is down, or not whole, is asked last; one that is gone not at all. */
static async void flags(struct rig *rig)
{
    struct cluster_result result;
    struct cluster_command down = {.op = CLUSTER_NODE_STATE, .node = 3,
                                   .flags = NODE_DOWN};
    struct cluster_command gone = {.op = CLUSTER_NODE_GONE, .node = 3, .force = true};
    struct replica_directory *directory = copies_directory(rig->copies);
    fill_local(rig);
    for (uint32_t i = 0; i < 10; i++)
        rot_local(rig, i);
    CHECK(directory->find(directory, 3) == &rig->others[1]->replica);
    CHECK(directory->in_reach(directory, 3));
    submit(rig, &down, &result);
    for (uint32_t i = 0; i < 10; i++)
        CHECK_EQ(read_range(rig, i, 1, NULL), 0);
    CHECK(rig->others[1]->asked == 0 && rig->others[0]->asked == 10);
    CHECK(!directory->in_reach(directory, 3));
    down.old_flags = NODE_DOWN; /* it comes back, and may lack something */
    down.flags = 0;
    submit(rig, &down, &result);
    task_sleep_ns(COPIES_AVOID_NS);
    CHECK(directory->in_reach(directory, 3));
    for (uint32_t i = 0; i < 10; i++)
        CHECK_EQ(read_range(rig, i, 1, NULL), 0);
    CHECK(rig->others[1]->asked == 0 && rig->others[0]->asked == 20);
    down.old_flags = 0;
    down.flags = NODE_DOWN;
    submit(rig, &down, &result);
    rig->others[0]->code = -EIO;
    CHECK_EQ(read_range(rig, 0, 1, NULL), 0);
    CHECK_EQ(rig->others[1]->asked, 1);
    submit(rig, &gone, &result);
    CHECK(directory->find(directory, 3) == NULL);
    CHECK(directory->find(directory, 99) == NULL);
    CHECK_EQ(read_range(rig, 0, 1, NULL), -EIO);
    CHECK_EQ(rig->others[1]->asked, 1);
    CHECK(directory->find(directory, 1) == directory->find(directory, 1));
}

/* What a whole member does not have is gone: nobody waits for one that is down. */
static async void gone(struct rig *rig)
{
    struct cluster_result result;
    struct cluster_command down = {.op = CLUSTER_NODE_STATE, .node = 3,
                                   .flags = NODE_DOWN};
    rig->others[0]->code = -PLX_ENOTHERE;
    rig->others[1]->code = -ETIMEDOUT;
    rig->others[1]->delay_ns = 5 * NS_PER_S;
    uint64_t begun_ns = loop_now_ns(rig->loop);
    CHECK_EQ(read_range(rig, 3, 4, NULL), -PLX_ENOTHERE);
    CHECK(loop_now_ns(rig->loop) - begun_ns < 6 * NS_PER_S); /* it might have had it */
    submit(rig, &down, &result);
    begun_ns = loop_now_ns(rig->loop);
    CHECK_EQ(read_range(rig, 3, 4, NULL), -PLX_ENOTHERE);
    CHECK(loop_now_ns(rig->loop) - begun_ns < SLOW_MS * NS_PER_MS);
    /* Of one that is not whole it says nothing. */
    down.old_flags = NODE_DOWN;
    down.flags = 0;
    submit(rig, &down, &result);
    rig->others[0]->code = -ECONNRESET;
    rig->others[1]->code = -PLX_ENOTHERE;
    rig->others[1]->delay_ns = NS_PER_MS;
    fill_local(rig);
    rot_local(rig, 3);
    CHECK_EQ(read_range(rig, 3, 4, NULL), -ECONNRESET);
}

static async void set_flags(struct rig *rig, uint64_t node, unsigned flags)
{
    struct cluster_result result;
    const struct cluster_node *at = cluster_node_by_id(cluster_state(rig->cluster), node);
    struct cluster_command set = {.op = CLUSTER_NODE_STATE, .node = node,
                                  .old_flags = at->flags, .flags = flags};
    submit(rig, &set, &result);
}

/* The last whole one was lost, and the others were taken for whole: what one of them does
 * not have another one may have, which is waited for. */
static async void gone_unsure(struct rig *rig)
{
    struct cluster_result result;
    struct cluster_command disk = {.op = CLUSTER_DISK_CREATE, .name = "disk",
                                   .size_bytes = GIB};
    submit(rig, &disk, &result);
    struct cluster_command lease = {.op = CLUSTER_LEASE_TAKE, .disk = result.id,
                                    .node = 1};
    submit(rig, &lease, &result);
    struct cluster_command open = {
        .op = CLUSTER_EXTENT_OPEN, .disk = lease.disk, .epoch = 1, .count = 2,
        .group = 1, .member_count = 4, .members = {1, 2, 3, 4},
        .group_epoch = cluster_group_by_id(cluster_state(rig->cluster), 1)->epoch};
    submit(rig, &open, &result);
    for (uint64_t node = 1; node <= 4; node++)
        set_flags(rig, node, NODE_DOWN);
    struct cluster_command lost = {.op = CLUSTER_NODE_GONE, .node = 4, .force = true,
                                   .data_loss = true};
    submit(rig, &lost, &result);
    CHECK(address_sequence(EXTENT) <
          cluster_group_by_id(cluster_state(rig->cluster), 1)->unsure_below);
    set_flags(rig, 1, 0);
    set_flags(rig, 2, 0);
    rig->others[0]->code = -PLX_ENOTHERE;
    CHECK_EQ(read_range(rig, 3, 4, NULL), 0); /* 3 counts as down, and answers */
    rig->others[1]->code = -ETIMEDOUT;
    uint64_t begun_ns = loop_now_ns(rig->loop);
    CHECK_EQ(read_range(rig, 3, 4, NULL), -ETIMEDOUT);
    CHECK(loop_now_ns(rig->loop) - begun_ns >= PATIENCE_MS * NS_PER_MS);
    rig->others[1]->code = -PLX_ENOTHERE; /* nobody has it */
    CHECK_EQ(read_range(rig, 3, 4, NULL), -PLX_ENOTHERE);
}

/* All that is known of a process that is alone is its own store. */
static async void alone(struct rig *rig)
{
    uint32_t bad = 7;
    fill_local(rig);
    CHECK_EQ(read_range(rig, 0, BLOCKS, &bad), 0);
    CHECK_EQ(bad, 0);
    rot_local(rig, 5);
    CHECK_EQ(read_range(rig, 2, 8, &bad), -PLX_ECHECKSUM);
    CHECK_EQ(bad, 3);
    expect_bad(rig, 0, 1, 5, -PLX_ECHECKSUM);
    CHECK_EQ(store_delete_extent(rig->store, EXTENT), 0);
    CHECK_EQ(read_range(rig, 2, 8, NULL), -PLX_ENOTHERE);
}

/* What is bad here is written again, from a copy that is not. */
static async void mended(struct rig *rig)
{
    rig->copies->is_stopping = false;
    fill_local(rig);
    for (uint32_t i = 10; i < 30; i++)
        rot_local(rig, i);
    rig->others[0]->is_sick[15] = rig->others[1]->is_sick[15] = true;
    rig->others[0]->is_sick[16] = true;
    CHECK_EQ(read_range(rig, 0, 15, NULL), 0);
    CHECK_EQ(read_range(rig, 14, 4, NULL), -PLX_ECHECKSUM);
    CHECK_EQ(read_range(rig, 16, 4, NULL), 0);
    for (uint32_t i = 20; i < 30; i++)
        copies_mend(rig->copies, address_plus(EXTENT, i), rig->crcs[i]);
    copies_mend(rig->copies, address_plus(EXTENT, 500), rig->crcs[500]); /* it is sound */
    task_sleep_ns(5 * NS_PER_S);
    CHECK_EQ(rig->copies->mend_count, 0);
    uint32_t before = asked(rig);
    for (uint32_t i = 0; i < 40; i++) {
        /* Of each bad range the first block was told. */
        bool was_mended = i < 10 || i == 10 || i == 14 || i == 16 || i >= 20;
        if (was_mended)
            CHECK_EQ(read_range(rig, i, 1, NULL), 0);
    }
    CHECK_EQ(asked(rig), before);
    CHECK_EQ(read_range(rig, 15, 1, NULL), -PLX_ECHECKSUM);
    copies_stop(rig->copies);
    copies_mend(rig->copies, address_plus(EXTENT, 11), rig->crcs[11]);
    CHECK_EQ(rig->copies->mend_count, 0);
}

/* --- at random --- */

static void make_random(struct rig *rig, struct sim_world *world)
{
    for (uint32_t i = 0; i < rig->other_count; i++) {
        struct told *told = rig->others[i];
        static const int CODES[] = {0, 0, 0, -PLX_ENOTHERE, -ECONNRESET, -EIO};
        told->code = CODES[sim_world_random(world, ARRAY_LEN(CODES))];
        told->delay_ns = sim_world_random(world, 300) * NS_PER_MS;
        told->answers_inside = sim_world_random(world, 4) == 0;
        for (uint32_t b = 0; b < BLOCKS; b++) {
            told->is_sick[b] = sim_world_random(world, 40) == 0;
            told->is_eio[b] = sim_world_random(world, 40) == 0;
        }
    }
}

/* Is some copy of each block sound that can be asked for? */
static bool should_succeed(const struct rig *rig, const bool *rotten, uint32_t first,
                           uint32_t count)
{
    for (uint32_t b = first; b < first + count; b++) {
        bool has_one = !rotten[b];
        for (uint32_t i = 0; i < rig->other_count; i++) {
            const struct told *told = rig->others[i];
            has_one = has_one || (told->code == 0 && !told->is_sick[b] &&
                                  !told->is_eio[b]);
        }
        if (!has_one)
            return false;
    }
    return true;
}

static async void at_random(struct rig *rig)
{
    struct sim_world *world = rig->body->world;
    bool rotten[BLOCKS] = {false};
    uint32_t good = 0, failed = 0;
    fill_local(rig);
    for (uint32_t b = 0; b < BLOCKS; b++) {
        rotten[b] = sim_world_random(world, 10) == 0;
        if (rotten[b])
            rot_local(rig, b);
    }
    for (uint32_t i = 0; i < 60; i++) {
        make_random(rig, world);
        uint32_t count = 1 + (uint32_t)sim_world_random(world, 40);
        uint32_t first = (uint32_t)sim_world_random(world, BLOCKS - count);
        rig->bad_count = 0;
        copies_on_bad(rig->copies, NULL, NULL);
        int rc = read_range(rig, first, count, NULL);
        CHECK_EQ(rc == 0, should_succeed(rig, rotten, first, count));
        good += rc == 0;
        failed += rc != 0;
    }
    CHECK(good > 5 && failed > 2);
}

/* --- new extents --- */

static async uint16_t add_group(struct rig *rig, uint32_t pool, uint8_t count,
                                const uint64_t *members)
{
    struct cluster_result result;
    struct cluster_command add = {.op = CLUSTER_GROUP_ADD, .pool = pool,
                                  .member_count = count};
    memcpy(add.members, members, count * sizeof *members);
    submit(rig, &add, &result);
    return (uint16_t)result.id;
}

static struct chosen choose_for(struct rig *rig, uint64_t disk, uint64_t avoid)
{
    struct replica_directory *directory = copies_directory(rig->copies);
    return directory->choose(directory, disk, &avoid, avoid != 0);
}

static async void choice(struct rig *rig)
{
    struct cluster_result result;
    struct cluster_command pool = {.op = CLUSTER_POOL_SET, .name = "p", .copies = 3,
                                   .min_copies = 2};
    submit(rig, &pool, &result);
    uint32_t id = (uint32_t)result.id;
    struct cluster_command disk = {.op = CLUSTER_DISK_CREATE, .name = "a",
                                   .size_bytes = GIB, .pool = id};
    submit(rig, &disk, &result);
    uint64_t a = result.id;
    CHECK_EQ(choose_for(rig, a, 0).count, 0); /* no group yet */
    CHECK_EQ(choose_for(rig, a + 1, 0).count, 0);
    uint16_t far = add_group(rig, id, 3, (uint64_t[]){2, 3, 4});
    struct chosen chosen = choose_for(rig, a, 0);
    CHECK(chosen.count == 3 && chosen.group == far && chosen.group_epoch == 1);
    uint16_t near = add_group(rig, id, 3, (uint64_t[]){2, 3, 1});
    uint16_t other = add_group(rig, id, 2, (uint64_t[]){1, 4});
    uint32_t nears = 0;
    for (uint32_t i = 0; i < 40; i++) {
        chosen = choose_for(rig, a, 0);
        CHECK(chosen.group == near || chosen.group == other);
        CHECK_EQ(chosen.members[0]->node, 1);
        CHECK_EQ(chosen.count, chosen.group == near ? 3 : 2);
        nears += chosen.group == near;
    }
    CHECK(nears > 5 && nears < 35);
    /* Whole groups rather than such as lack one; those rather than far ones. */
    for (uint32_t i = 0; i < 10; i++)
        CHECK_EQ(choose_for(rig, a, 2).group, other);
    set_flags(rig, 4, NODE_DOWN);
    for (uint32_t i = 0; i < 10; i++) {
        chosen = choose_for(rig, a, 2);
        CHECK(chosen.group == near && chosen.count == 2); /* other has but one of two */
        CHECK(chosen.members[0]->node == 1 && chosen.members[1]->node == 3);
    }
    set_flags(rig, 3, NODE_DOWN);
    CHECK_EQ(choose_for(rig, a, 2).count, 0);
    CHECK_EQ(choose_for(rig, a, 0).group, near);
    /* Without a whole one nothing may be opened. */
    set_flags(rig, 3, 0);
    set_flags(rig, 4, 0);
    CHECK_EQ(choose_for(rig, a, 1).group, far);
    set_flags(rig, 2, NODE_DOWN);
    CHECK_EQ(choose_for(rig, a, 1).count, 0); /* 3 and 4 lack something */
}

/* --- all of it --- */

struct story {
    async void (*run)(struct rig *rig);
    uint32_t others;
};

static const struct story STORIES[] = {
    {alone, 0}, {local_first, 2}, {elsewhere, 2}, {bad_blocks, 2}, {unreadable, 2},
    {codes, 2}, {patience, 2}, {slow_member, 2}, {slow_both, 2}, {slow_store, 2},
    {load, 2}, {flags, 2}, {gone, 2}, {gone_unsure, 3},
    {mended, 2}, {at_random, 2}, {at_random, 3},
    {choice, 3},
};

static void run_story(struct body *body)
{
    const struct story *story = body->arg;
    struct rig rig;
    rig_open(&rig, body, story->others);
    story->run(&rig);
    rig_close(&rig);
}

int main(void)
{
    for (size_t i = 0; i < ARRAY_LEN(STORIES); i++) {
        for (uint64_t seed = 1; seed <= seeds_of(10); seed++) {
            struct sim_world *world = sim_world_create(seed);
            run_in_world(world, run_story, (void *)&STORIES[i]);
            sim_world_destroy(world);
        }
    }
    return 0;
}
