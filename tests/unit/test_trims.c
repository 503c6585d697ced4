/* SPDX-License-Identifier: Apache-2.0 */
/* Dead blocks of many extents as bytes: there and back, and bytes that are wrong. */
#include "blockstore/trims.h"

#include "blockstore/layout.h"
#include "blockstore/store_rpc_format.h"
#include "tests/unit/on_loops.h"

#define EXTENTS   6U
#define BLOCKS    1000U
#define EXTENT(n) address_of(1, n, 0)

/* The blocks that live in each extent, after what was cleared. */
struct model {
    bool live[EXTENTS + 1][BLOCKS];
};

struct append {
    struct store_append append;
    struct event over;
};

static void appended(struct store_append *append)
{
    event_set(&container_of(append, struct append, append)->over);
}

/* All final but the last, which is open. Block 0 of each is its header. */
static async void fill(struct store *store, struct loop *loop, struct model *model)
{
    struct buffer_pool *pool = buffer_pool_create(8 * MIB);
    (void)loop;
    for (uint32_t n = 1; n <= EXTENTS; n++) {
        CHECK_EQ(store_create_extent(store, EXTENT(n), 1, 1, 1, 1, false), 0);
        for (uint32_t at = 0; at < BLOCKS; at += 250) {
            struct slice slice = {.buffer = buffer_create(pool, 250 * BLOCK_SIZE),
                                  .len = 250 * BLOCK_SIZE};
            struct append mine = {
                .append = {.extent = EXTENT(n), .epoch = 1, .block = at,
                           .slices = &slice, .slice_count = 1, .done = appended}};
            CHECK(slice.buffer != NULL);
            memset(slice.buffer->data, 7, slice.len);
            event_init(&mine.over);
            store_append(store, &mine.append);
            event_wait(&mine.over);
            CHECK_EQ(mine.append.result, 0);
            buffer_put(slice.buffer);
        }
        for (uint32_t b = 0; b < BLOCKS; b++)
            model->live[n][b] = n == EXTENTS || b % 250 != 0;
        if (n == EXTENTS)
            break;
        CHECK_EQ(store_finalize_extent(store, EXTENT(n), BLOCKS), 0);
        CHECK_EQ(store_trim_headers(store, EXTENT(n)), 0);
    }
    buffer_pool_destroy(pool);
}

static void check_model(const struct store *store, const struct model *model)
{
    uint8_t map[BITMAP_BYTES];
    for (uint32_t n = 1; n <= EXTENTS; n++) {
        int rc = store_live_map(store, EXTENT(n), map);
        bool is_any = false;
        for (uint32_t b = 0; b < BLOCKS; b++) {
            is_any = is_any || model->live[n][b];
            if (rc == 0)
                CHECK_EQ(bitmap_get(map, b), model->live[n][b]);
        }
        CHECK_EQ(rc, is_any ? 0 : -PLX_EMISSING);
    }
}

static int compare(const void *a, const void *b)
{
    const struct block_run *left = a, *right = b;
    return left->address.v < right->address.v ? -1 : left->address.v > right->address.v;
}

/* Some in extents that are not there, some twice. */
static uint32_t random_runs(struct sim_world *world, struct block_run *runs, uint32_t max)
{
    uint32_t count = 1 + (uint32_t)sim_world_random(world, max);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t n = 1 + (uint32_t)sim_world_random(world, EXTENTS + 2);
        uint32_t block = (uint32_t)sim_world_random(world, BLOCKS + 50);
        uint32_t blocks = 1 + (uint32_t)sim_world_random(world, 20);
        runs[i] = (struct block_run){address_plus(EXTENT(n), block), blocks};
    }
    qsort(runs, count, sizeof *runs, compare);
    return count;
}

static void clear_model(struct model *model, const struct block_run *run)
{
    uint64_t n = run->address.v / EXTENT_BLOCKS - EXTENT(0).v / EXTENT_BLOCKS;
    for (uint32_t i = 0; i < run->count; i++) {
        uint32_t block = address_block(run->address) + i;
        if (n < EXTENTS && block < BLOCKS) /* the last one is not final */
            model->live[n][block] = false;
    }
}

/* As many messages as it takes; each is sound, and does what it says. */
static async void there_and_back(struct store *store, struct sim_world *world,
                                 struct model *model)
{
    struct block_run runs[300];
    uint8_t bytes[600];
    uint32_t count = random_runs(world, runs, ARRAY_LEN(runs)), at = 0;
    while (at < count) {
        struct trims_writer w = {.bytes = bytes,
                                 .cap = 30 + sim_world_random(world, 570)};
        bool has_open = false;
        uint32_t first = at, not_final = 9;
        while (at < count && trims_add(&w, runs[at])) {
            has_open = has_open ||
                       address_equal(address_extent(runs[at].address), EXTENT(EXTENTS));
            clear_model(model, &runs[at++]);
        }
        CHECK(at > first && w.len <= w.cap);
        CHECK_EQ(trims_check(bytes, w.len, w.extent_count), 0);
        CHECK_EQ(trims_check(bytes, w.len, w.extent_count + 1), -PLX_EFORMAT);
        CHECK_EQ(trims_check(bytes, w.len - 1, w.extent_count), -PLX_EFORMAT);
        CHECK_EQ(trims_apply(store, bytes, w.len, &not_final), 0);
        CHECK_EQ(not_final, has_open);
    }
    check_model(store, model);
}

/* Directly, with runs of one extent that overlap. */
static async void cleared(struct store *store, struct sim_world *world,
                          struct model *model)
{
    struct block_run runs[300];
    uint32_t count = random_runs(world, runs, ARRAY_LEN(runs));
    for (uint32_t at = 0, n; at < count; at += n) {
        n = trims_of_extent(runs + at, count - at);
        CHECK(n > 0 && at + n <= count);
        int rc = trims_clear(store, runs + at, n);
        CHECK(rc == 0 || rc == -PLX_EMISSING || rc == -PLX_EPRECONDITION);
        for (uint32_t i = at; i < at + n; i++)
            clear_model(model, &runs[i]);
    }
    check_model(store, model);
}

/* Whatever the bytes are: refused, or harmless. */
static async void wrong_bytes(struct store *store, struct sim_world *world)
{
    struct block_run runs[20];
    uint8_t bytes[500];
    uint32_t count = random_runs(world, runs, ARRAY_LEN(runs)), not_final;
    struct trims_writer w = {.bytes = bytes, .cap = sizeof bytes};
    for (uint32_t i = 0; i < count; i++)
        CHECK(trims_add(&w, runs[i]));
    for (uint32_t i = 0; i < 3; i++)
        bytes[sim_world_random(world, w.len)] = (uint8_t)sim_world_random(world, 256);
    if (trims_check(bytes, w.len, w.extent_count) == 0)
        CHECK_EQ(trims_apply(store, bytes, w.len, &not_final), 0);
}

static void refused(void)
{
    static const struct {
        uint64_t extent;
        uint32_t run_count, reserved;
        uint16_t block, count;
    } BAD[] = {
        {0, 1, 0, 1, 1},                             /* no group */
        {1ULL << 48 | 1, 1, 0, 1, 1},                /* not block 0 */
        {1ULL << 48, 0, 0, 1, 1},                    /* no runs */
        {1ULL << 48, 2, 0, 1, 1},                    /* more than there are */
        {1ULL << 48, 1, 1, 1, 1},                    /* reserved */
        {1ULL << 48, 1, 0, 1, 0},                    /* an empty run */
        {1ULL << 48, 1, 0, EXTENT_BLOCKS, 1},        /* beyond the end */
        {1ULL << 48, 1, 0, EXTENT_BLOCKS - 1, 2},
        {1ULL << 48, 0xffffffff, 0, 1, 1},
    };
    uint8_t bytes[sizeof(struct store_rpc_trimmed) + sizeof(struct store_rpc_run)];
    for (size_t i = 0; i < ARRAY_LEN(BAD); i++) {
        struct store_rpc_trimmed head = {.extent = le64_of(BAD[i].extent),
                                         .run_count = le32_of(BAD[i].run_count),
                                         .reserved = le32_of(BAD[i].reserved)};
        struct store_rpc_run run = {.block = le16_of(BAD[i].block),
                                    .count = le16_of(BAD[i].count)};
        memcpy(bytes, &head, sizeof head);
        memcpy(bytes + sizeof head, &run, sizeof run);
        CHECK_EQ(trims_check(bytes, sizeof bytes, 1), -PLX_EFORMAT);
    }
    CHECK_EQ(trims_check(bytes, 0, 0), -PLX_EFORMAT);
}

static async void run(struct body *body)
{
    struct error err = {0};
    struct kv *kv;
    struct store *store;
    struct model *model = calloc(1, sizeof *model);
    struct store_options options = {
        .path = "sim/store", .capacity_bytes = 64 * MIB, .no_idle_work = true};
    CHECK(model != NULL);
    CHECK_EQ(kv_open(body->loop, "sim/kv", true, &kv, &err), 0);
    options.kv = kv;
    CHECK_EQ(store_create(body->loop, &options, (struct uid){{1}}, &err), 0);
    CHECK_EQ(store_open(body->loop, &options, &store, &err), 0);
    fill(store, body->loop, model);
    check_model(store, model);
    for (uint32_t i = 0; i < 10; i++) {
        there_and_back(store, body->world, model);
        cleared(store, body->world, model);
    }
    for (uint32_t i = 0; i < 500; i++)
        wrong_bytes(store, body->world);
    store_close(store);
    kv_close(kv);
    free(model);
}

int main(void)
{
    refused();
    run_on_sim(run);
    return 0;
}
