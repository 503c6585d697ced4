/* SPDX-License-Identifier: Apache-2.0 */
/* The store on one simulated machine: what each call does and answers. Crashes and
 * failing devices are in test_store_crash.c. */
#include "tests/unit/store_machine.h"

static struct machine *m; /* of the test that runs */

static int stop(struct model_extent *x, uint32_t *ret_length)
{
    bool scanned = true;
    int result = store_stop_extent(m->store, x->address, ret_length, &scanned);
    CHECK(result != 0 || !scanned);
    return result;
}

static struct extent_info info_of(struct model_extent *x)
{
    struct extent_info info;
    CHECK_EQ(store_extent_info(m->store, x->address, &info), 0);
    return info;
}

static struct model_extent *new_extent(uint32_t slabs, uint32_t batches, uint32_t blocks)
{
    struct model_extent *x = NULL;
    CHECK_EQ(machine_create_extent(m, slabs, &x), 0);
    for (uint32_t i = 0; i <= batches; i++)
        CHECK_EQ(machine_append_wait(m, x, blocks), 0);
    return x;
}

static uint64_t used_slabs(void)
{
    struct store_usage usage;
    store_usage(m->store, &usage);
    return usage.used_bytes / SLAB_BYTES;
}

/* --- the life of an extent --- */

static void life(struct body *body)
{
    (void)body;
    uint32_t length = 0;
    struct model_extent *x = new_extent(1, 5, 3);
    CHECK_EQ(store_create_extent(m->store, x->address, 1, 1, 1, 1, false), -PLX_EEXISTS);
    CHECK_EQ(info_of(x).length, 21);
    CHECK_EQ(info_of(x).durable, 0);
    CHECK_EQ(info_of(x).state, EXTENT_OPEN);
    CHECK_EQ(machine_sync_wait(m), 0);
    CHECK_EQ(info_of(x).durable, 21);
    check_blocks(m, x, 21);
    check_headers(m, x, 21);
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, 4 * BLOCK_SIZE);
    CHECK_EQ(machine_read(m, address_plus(x->address, 19), 3, 1, bytes), -PLX_ENOTHERE);
    CHECK_EQ(store_trim(m->store, x->address, &length, 1), -PLX_EPRECONDITION);
    CHECK_EQ(store_trim_headers(m->store, x->address), -PLX_EPRECONDITION);
    CHECK_EQ(stop(x, &length), 0);
    CHECK_EQ(length, 21);
    CHECK_EQ(stop(x, &length), 0);
    CHECK_EQ(machine_append_wait(m, x, 1), -PLX_ESTOPPED);
    CHECK_EQ(used_slabs(), 1);
    CHECK_EQ(store_finalize_extent(m->store, x->address, 22), -PLX_ENOTHERE);
    CHECK_EQ(store_finalize_extent(m->store, x->address, 17), 0);
    CHECK_EQ(store_finalize_extent(m->store, x->address, 17), 0);
    CHECK_EQ(store_finalize_extent(m->store, x->address, 16), -PLX_EPRECONDITION);
    CHECK_EQ(store_finalize_extent(m->store, x->address, 0), -PLX_EPRECONDITION);
    CHECK_EQ(info_of(x).state, EXTENT_FINAL);
    CHECK_EQ(info_of(x).length, 17);
    CHECK_EQ(machine_read(m, address_plus(x->address, 17), 1, 1, bytes), -PLX_EDEAD);
    CHECK_EQ(machine_read(m, address_plus(x->address, 16), 1, 1, bytes), 0);
    CHECK_EQ(stop(x, &length), 0);
    CHECK_EQ(length, 17);
    const uint32_t dead[] = {2, 3, 3, 16, 17, 9999};
    CHECK_EQ(store_trim(m->store, x->address, dead, ARRAY_LEN(dead)), 0);
    CHECK_EQ(store_trim(m->store, x->address, dead, ARRAY_LEN(dead)), 0);
    CHECK_EQ(info_of(x).live, 14);
    CHECK_EQ(machine_read(m, address_plus(x->address, 1), 2, 1, bytes), -PLX_EDEAD);
    CHECK_EQ(machine_read(m, address_plus(x->address, 4), 4, 1, bytes), 0);
    check_headers(m, x, 17);
    uint32_t all[17];
    for (uint32_t i = 0; i < 17; i++)
        all[i] = i;
    /* Headers live until they are trimmed as such. */
    CHECK_EQ(store_trim(m->store, x->address, all, 17), 0);
    CHECK_EQ(store_trim(m->store, x->address, all, 17), 0);
    CHECK_EQ(info_of(x).live, 5);
    CHECK_EQ(info_of(x).stored, 17);
    CHECK(info_of(x).has_headers);
    check_headers(m, x, 17);
    uint8_t map[BITMAP_BYTES];
    CHECK_EQ(store_live_map(m->store, x->address, map), 0);
    CHECK_EQ(bitmap_rank(map, EXTENT_BLOCKS), 5);
    CHECK(bitmap_get(map, 0) && bitmap_get(map, 1) && bitmap_get(map, 13));
    CHECK_EQ(store_trim_headers(m->store, x->address), 0);
    CHECK_EQ(store_trim_headers(m->store, x->address), -PLX_EMISSING);
    CHECK_EQ(store_live_map(m->store, x->address, map), -PLX_EMISSING);
    CHECK_EQ(store_trim(m->store, x->address, all, 17), -PLX_EMISSING);
    CHECK_EQ(machine_read(m, x->address, 1, 1, bytes), -PLX_ENOTHERE);
    CHECK_EQ(store_delete_extent(m->store, x->address), 0);
    CHECK_EQ(used_slabs(), 0);
    free(bytes);
}

/* Only a mark goes as one. */
static void marks(struct body *body)
{
    (void)body;
    struct address absent = address_of(1, 999, 0);
    struct model_extent *x = NULL;
    struct extent_info info;
    uint32_t length = 1;
    bool is_scanned;
    CHECK_EQ(store_stop_extent(m->store, absent, &length, &is_scanned), 0);
    CHECK_EQ(length, 0);
    CHECK_EQ(store_delete_mark(m->store, absent), 0);
    CHECK_EQ(store_extent_info(m->store, absent, &info), -PLX_EMISSING);
    CHECK_EQ(store_delete_mark(m->store, absent), 0);
    CHECK_EQ(machine_create_extent(m, 1, &x), 0);
    CHECK_EQ(machine_append_wait(m, x, 3), 0);
    CHECK_EQ(store_stop_extent(m->store, x->address, &length, &is_scanned), 0);
    CHECK_EQ(store_delete_mark(m->store, x->address), 0);
    CHECK_EQ(store_extent_info(m->store, x->address, &info), 0);
    CHECK(info.state == EXTENT_STOPPED && info.length == length);
}

static void refusals(struct body *body)
{
    (void)body;
    uint32_t length = 9;
    struct model_extent *x = new_extent(1, 1, 3);
    struct model_extent *never = model_add(m);
    CHECK_EQ(machine_append_wait(m, never, 1), -PLX_EMISSING);
    CHECK_EQ(stop(never, &length), 0); /* remembered: no late create gets through */
    CHECK_EQ(length, 0);
    CHECK_EQ(store_create_extent(m->store, never->address, 1, 1, 1, 1, false),
             -PLX_EEXISTS);
    CHECK_EQ(store_finalize_extent(m->store, never->address, 5), -PLX_ENOTHERE);
    CHECK_EQ(store_finalize_extent(m->store, never->address, 0), 0);
    CHECK_EQ(store_finalize_extent(m->store, never->address, 0), 0);
    CHECK_EQ(store_finalize_extent(m->store, never->address, 1), -PLX_EMISSING);
    x->epoch++;
    CHECK_EQ(machine_append_wait(m, x, 1), -PLX_EEPOCH);
    x->epoch--;
    x->was_cut = false;
    CHECK_EQ(machine_append_wait(m, x, 1), -PLX_ENOTEND); /* the last one is missing */
    CHECK_EQ(info_of(x).length, 5);
    struct extent_info *infos = NULL;
    size_t count = 0;
    CHECK_EQ(store_list_extents(m->store, x->disk, &infos, &count), 0);
    CHECK_EQ(count, 1);
    CHECK_EQ(infos[0].extent.v, x->address.v);
    free(infos);
    CHECK_EQ(store_list_extents(m->store, 99, &infos, &count), 0);
    CHECK_EQ(count, 0);
    free(infos);
}

/* --- many at once --- */

static void whole_extent(struct body *body)
{
    (void)body;
    uint32_t length = 0;
    struct model_extent *x = NULL;
    CHECK_EQ(machine_create_extent(m, 1, &x), 0);
    machine_append(m, x, 0, NULL, NULL);
    while (x->submitted < EXTENT_BLOCKS) {
        while (x->submitted < EXTENT_BLOCKS && m->inflight < 20) {
            uint32_t room = EXTENT_BLOCKS - x->submitted - 1;
            uint32_t n = 1 + chance(m, chance(m, 2) == 0 ? 4 : BATCH_BLOCKS);
            machine_append(m, x, room < 2 + n ? min_u32(room, BATCH_BLOCKS) : n, NULL,
                           NULL);
        }
        task_sleep_ns(chance(m, 200) * NS_PER_US);
    }
    while (m->inflight > 0)
        task_sleep_ns(NS_PER_MS);
    CHECK_EQ(info_of(x).length, EXTENT_BLOCKS);
    CHECK_EQ(used_slabs(), EXTENT_SLABS);
    check_blocks(m, x, EXTENT_BLOCKS);
    check_headers(m, x, EXTENT_BLOCKS);
    CHECK_EQ(stop(x, &length), 0);
    CHECK_EQ(length, EXTENT_BLOCKS);
    CHECK(m->store->parts_made <= IO_PARTS_MAX);
}

struct flood {
    struct test_read reads[IO_PARTS_MAX + 100];
    struct iovec iov[IO_PARTS_MAX + 100];
};

/* More at once than there are parts: all wait their turn. */
static void flood(struct body *body)
{
    (void)body;
    struct model_extent *x = new_extent(4, 10, 20);
    struct flood *f = calloc(1, sizeof *f);
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, ARRAY_LEN(f->reads) * BLOCK_SIZE);
    for (uint32_t i = 0; i < ARRAY_LEN(f->reads); i++) {
        struct test_read *r = &f->reads[i];
        f->iov[i] = (struct iovec){bytes + (size_t)i * BLOCK_SIZE, BLOCK_SIZE};
        r->read = (struct store_read){.address = address_plus(x->address, i % 200),
                                      .count = 1,
                                      .iov = &f->iov[i],
                                      .iov_count = 1,
                                      .done = read_over};
        event_init(&r->over);
        store_read(m->store, &r->read);
        if (i % 10 == 0)
            machine_append(m, x, 3, NULL, NULL);
    }
    CHECK_EQ(m->store->parts_made, IO_PARTS_MAX);
    for (uint32_t i = 0; i < ARRAY_LEN(f->reads); i++) {
        event_wait(&f->reads[i].over);
        CHECK_EQ(f->reads[i].read.result, 0);
        CHECK_EQ(crc32c(bytes + (size_t)i * BLOCK_SIZE, BLOCK_SIZE), x->crc[i % 200]);
    }
    while (m->inflight > 0)
        task_sleep_ns(NS_PER_MS);
    CHECK_EQ(x->answered, x->submitted);
    check_blocks(m, x, x->answered);
    free(bytes);
    free(f);
}

/* A 4 KiB write at depth 1 is one operation of 8 KiB on the file. */
static void one_operation(struct body *body)
{
    (void)body;
    struct model_extent *x = new_extent(8, 1, 1);
    for (uint32_t i = 0; i < 50; i++) {
        machine_append(m, x, 1, NULL, NULL);
        CHECK_EQ(m->store->parts_made - m->store->parts_free, 1);
        while (m->inflight > 0)
            task_sleep_ns(10 * NS_PER_US);
    }
}

/* --- syncs --- */

static void group_commit(struct body *body)
{
    (void)body;
    uint64_t before = m->store->sync_count->value;
    struct model_extent *x = new_extent(8, 1, 1);
    int first = 1;
    machine_sync(m, NULL, &first);
    for (uint32_t i = 0; i < 30; i++) {
        machine_append_wait(m, x, 1);
        machine_sync(m, NULL, NULL);
    }
    while (m->syncs > 0)
        task_sleep_ns(NS_PER_US);
    CHECK_EQ(first, 0);
    uint64_t syncs = m->store->sync_count->value - before;
    CHECK(syncs >= 2 && syncs <= 31);
    CHECK_EQ(info_of(x).durable, info_of(x).length);
    for (uint32_t i = 0; i < 10; i++) /* nothing to do */
        CHECK_EQ(machine_sync_wait(m), 0);
    CHECK_EQ(m->store->sync_count->value - before, syncs);
    /* Many at once share: one in flight, one for all the others. */
    machine_append_wait(m, x, 1);
    machine_sync(m, NULL, NULL);
    machine_append_wait(m, x, 1);
    for (uint32_t i = 0; i < 10; i++)
        machine_sync(m, NULL, NULL);
    while (m->syncs > 0)
        task_sleep_ns(NS_PER_US);
    CHECK(m->store->sync_count->value - before <= syncs + 2);
}

/* --- space --- */

static void full(struct body *body)
{
    (void)body;
    struct model_extent *x = NULL, *y = NULL;
    store_set_reserve(m->store, 8 * MIB); /* of 31 */
    CHECK_EQ(machine_create_extent(m, 64, &x), 0);
    CHECK_EQ(used_slabs(), 2); /* a share of the 22 that the reserves leave */
    struct buffer *buffer = buffer_create(m->pool, MIB);
    struct slice slice = {buffer, 0, MIB};
    struct test_append a = {.machine = m, .extent = x};
    a.append = (struct store_append){.extent = x->address, .epoch = x->epoch};
    a.append.slices = &slice;
    uint32_t block = 0;
    memset(buffer->data, 1, MIB);
    for (uint32_t i = 0; i < 33; i++) {
        if (i == 24) {
            CHECK_EQ(used_slabs(), 22);
            CHECK_EQ(machine_create_extent(m, 4, &y), 0);
            CHECK_EQ(used_slabs(), 23); /* one, so that a full store can still roll */
        }
        struct event over;
        int result = 1;
        event_init(&over);
        struct test_append *b = calloc(1, sizeof *b);
        *b = a;
        b->over = &over;
        b->ret_result = &result;
        b->append.done = append_over;
        b->slices[0] = slice;
        b->append.slices = b->slices;
        b->append.slice_count = 1;
        b->append.block = block;
        b->append.use_reserve = i > 24;
        buffer_get(buffer);
        x->was_cut = false;
        m->inflight++;
        store_append(m->store, &b->append);
        event_wait(&over);
        bool fits = i < 22 || (i > 24 && i <= 31);
        CHECK_EQ(result, fits ? 0 : -PLX_EFULL);
        block += fits ? SLAB_BLOCKS : 0;
    }
    CHECK_EQ(used_slabs(), 30); /* one is compaction's */
    task_sleep_ns(NS_PER_S);
    CHECK(!store_space_coming(m->store));
    struct model_extent *z = NULL;
    CHECK_EQ(machine_create_extent(m, 1, &z), -PLX_EFULL);
    CHECK_EQ(store_extent_info(m->store, z->address, &(struct extent_info){0}),
             -PLX_EMISSING);
    CHECK_EQ(machine_append_wait(m, y, 1), 0); /* has its slab */
    CHECK_EQ(store_delete_extent(m->store, x->address), 0);
    CHECK_EQ(used_slabs(), 1);
    CHECK_EQ(machine_create_extent(m, 4, &x), 0);
    buffer_put(buffer);
}

static void zero_filled(struct body *body)
{
    (void)body;
    CHECK_EQ(m->store->slabs.ready_count, 0);
    task_sleep_ns(2 * NS_PER_S);
    CHECK_EQ(m->store->slabs.ready_count, ZERO_POOL_SLABS);
    struct model_extent *x = NULL;
    CHECK_EQ(machine_create_extent(m, 5, &x), 0);
    CHECK_EQ(m->store->slabs.ready_count, ZERO_POOL_SLABS - 5);
    CHECK_EQ(m->store->slabs.fresh, ZERO_POOL_SLABS + 1);
    /* While there is work, nothing is filled. */
    for (uint32_t i = 0; i < 10; i++) {
        CHECK_EQ(machine_append_wait(m, x, 1), 0);
        task_sleep_ns(100 * NS_PER_MS);
    }
    CHECK_EQ(m->store->slabs.fresh, ZERO_POOL_SLABS + 1);
    task_sleep_ns(2 * NS_PER_S);
    CHECK_EQ(m->store->slabs.ready_count, ZERO_POOL_SLABS);
    check_blocks(m, x, x->answered);
}

/* The layout bitmap and pieces of a compacted extent lead to its blocks. */
static void compacted(struct body *body)
{
    (void)body;
    struct model_extent *x = new_extent(1, 20, 5);
    uint32_t length = 0, dead[30], count = 0;
    CHECK_EQ(stop(x, &length), 0);
    CHECK_EQ(store_finalize_extent(m->store, x->address, length), 0);
    for (uint32_t block = 3; block < length; block += 6)
        dead[count++] = block; /* a data block here and there */
    CHECK_EQ(store_trim(m->store, x->address, dead, count), 0);
    CHECK_EQ(machine_compact(m, x, 0, EXTENT_PIECES, false), -PLX_EPRECONDITION);
    CHECK_EQ(store_trim_headers(m->store, x->address), 0);
    CHECK_EQ(store_trim_headers(m->store, x->address), 0);
    CHECK_EQ(machine_compact(m, x, 0, EXTENT_PIECES, false), 0);
    CHECK_EQ(info_of(x).live, length - 21 - count);
    CHECK_EQ(info_of(x).stored, length - 21 - count);
    uint8_t *got = aligned_alloc(BLOCK_SIZE, 8 * BLOCK_SIZE);
    for (uint32_t block = 0; block < length; block++) {
        int result = machine_read(m, address_plus(x->address, block), 1, 1, got);
        CHECK_EQ(result, block % 6 == 3 || block % 6 == 1 || block == 0 ? -PLX_EDEAD : 0);
        if (result == 0)
            CHECK_EQ(crc32c(got, BLOCK_SIZE), x->crc[block]);
    }
    CHECK_EQ(machine_read(m, address_plus(x->address, 4), 3, 2, got), 0);
    CHECK_EQ(crc32c(got + 2 * BLOCK_SIZE, BLOCK_SIZE), x->crc[6]);
    CHECK_EQ(store_walk_headers(m->store, x->address, count_header, &count, NULL),
             -PLX_EDEAD);
    /* The record keeps it, and a trim starts from it. */
    const uint32_t more[] = {3, 4};
    CHECK_EQ(store_trim(m->store, x->address, more, 2), 0);
    CHECK_EQ(info_of(x).live, info_of(x).stored - 1);
    CHECK_EQ(machine_read(m, address_plus(x->address, 5), 1, 1, got), 0);
    CHECK_EQ(crc32c(got, BLOCK_SIZE), x->crc[5]);
    free(got);
}

static void compacted_again(struct body *body)
{
    (void)body;
    struct model_extent *x = m->extents[0];
    uint8_t *got = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    CHECK_EQ(machine_read(m, address_plus(x->address, 4), 1, 1, got), -PLX_EDEAD);
    CHECK_EQ(machine_read(m, address_plus(x->address, 5), 1, 1, got), 0);
    CHECK_EQ(crc32c(got, BLOCK_SIZE), x->crc[5]);
    free(got);
}

/* --- readers and freed space --- */

struct slow_delete {
    struct task_call call;
    struct model_extent *extent;
    bool is_over;
};

static void slow_delete_main(struct task_call *call)
{
    struct slow_delete *d = container_of(call, struct slow_delete, call);
    CHECK_EQ(store_delete_extent(m->store, d->extent->address), 0);
    d->is_over = true;
}

/* Space under a read is not given away before the read is done. */
static void reader_holds_space(struct body *body)
{
    struct model_extent *x = new_extent(1, 10, 3);
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    struct iovec iov = {bytes, BLOCK_SIZE};
    struct test_read r = {.read = {.address = x->address,
                                   .count = 1,
                                   .iov = &iov,
                                   .iov_count = 1,
                                   .done = read_over}};
    struct slow_delete d = {.call = {.main = slow_delete_main, .name = "delete"},
                            .extent = x};
    struct sim_faults *faults = sim_world_faults(m->world);
    event_init(&r.over);
    faults->latency_min_ns = faults->latency_max_ns = NS_PER_S;
    store_read(m->store, &r.read);
    faults->latency_min_ns = faults->latency_max_ns = NS_PER_US;
    task_start(body->loop, &d.call);
    task_sleep_ns(NS_PER_S / 2);
    CHECK(!d.is_over);
    CHECK_EQ(used_slabs(), 1);
    CHECK_EQ(store_extent_info(m->store, x->address, &(struct extent_info){0}),
             -PLX_EMISSING);
    event_wait(&r.over);
    CHECK_EQ(r.read.result, 0);
    CHECK_EQ(crc32c(bytes, BLOCK_SIZE), x->crc[0]);
    task_sleep_ns(NS_PER_MS);
    CHECK(d.is_over);
    CHECK_EQ(used_slabs(), 0);
    free(bytes);
}

/* Space is not given away before the record that gives it up is durable. */
static void record_holds_space(struct body *body)
{
    struct model_extent *x = new_extent(3, 6, 100);
    struct slow_delete d = {.call = {.main = slow_delete_main, .name = "delete"},
                            .extent = x};
    uint32_t length = 0;
    uint64_t used = used_slabs();
    CHECK(used > 3);
    struct sim_faults *faults = sim_world_faults(m->world);
    CHECK_EQ(stop(x, &length), 0);
    CHECK_EQ(used_slabs(), 3); /* what 607 blocks need */
    faults->latency_min_ns = faults->latency_max_ns = NS_PER_S;
    task_start(body->loop, &d.call);
    task_sleep_ns(NS_PER_S / 2);
    CHECK_EQ(used_slabs(), 3);
    task_sleep_ns(NS_PER_S);
    CHECK(d.is_over);
    CHECK_EQ(used_slabs(), 0);
}

/* Deletes, stops and trims of one extent at once: one after the other, no harm. */
static void contended(struct body *body)
{
    struct model_extent *x = new_extent(1, 10, 3);
    struct slow_delete d[4];
    uint32_t length = 0, got = 0;
    for (uint32_t i = 0; i < ARRAY_LEN(d); i++) {
        d[i] = (struct slow_delete){.call = {.main = slow_delete_main, .name = "delete"},
                                    .extent = x};
        task_start(body->loop, &d[i].call);
        if (i == 0)
            machine_append(m, x, 1, NULL, NULL);
    }
    bool scanned = false;
    CHECK_EQ(store_stop_extent(m->store, x->address, &got, &scanned), 0);
    for (uint32_t i = 0; i < ARRAY_LEN(d); i++)
        while (!d[i].is_over)
            task_sleep_ns(NS_PER_MS);
    (void)length;
    CHECK_EQ(m->inflight, 0);
    CHECK_EQ(used_slabs(), 0);
}

/* --- opening --- */

static void grown(struct body *body)
{
    struct error err = {0};
    struct store_options options = {
        .path = STORE_PATH, .capacity_bytes = 80 * MIB + 5, .no_idle_work = true};
    struct store_usage usage;
    CHECK_EQ(kv_open(body->loop, KV_PATH, false, &m->kv, &err), 0);
    options.kv = m->kv;
    CHECK_EQ(store_open(body->loop, &options, &m->store, &err), 0);
    store_usage(m->store, &usage);
    CHECK_EQ(usage.capacity_bytes, 80 * MIB);
    CHECK_EQ(usage.free_bytes, 78 * MIB); /* one slab is an extent's */
    CHECK(uid_equal(store_cluster(m->store), CLUSTER_UID));
    CHECK_EQ(m->store->super.generation, 4); /* made, opened, closed, opened */
}

static int try_open(struct error *err)
{
    *err = (struct error){0};
    m->store = NULL;
    struct store_options options = {.path = STORE_PATH, .kv = m->kv};
    int result = store_open(m->body.loop, &options, &m->store, err);
    if (result < 0) {
        CHECK_EQ(err->code, result);
        CHECK(strncmp(err->text, STORE_PATH ": ", strlen(STORE_PATH) + 2) == 0);
    }
    return result;
}

static void poke(uint64_t offset, const void *bytes, size_t len)
{
    CHECK_EQ(sim_file_poke(m->world, STORE_PATH, offset, bytes, len), 0);
}

static void bad_superblocks(struct body *body)
{
    struct error err = {0};
    uint8_t good[BLOCK_SIZE], bad[BLOCK_SIZE];
    const uint64_t second = SLAB_BYTES - BLOCK_SIZE;
    CHECK_EQ(kv_open(body->loop, KV_PATH, false, &m->kv, &err), 0);
    sim_file_peek(m->world, STORE_PATH, 0, good, sizeof good);
    for (uint32_t i = 0; i < 2; i++) { /* either copy is enough, and is repaired */
        memcpy(bad, good, sizeof bad);
        bad[100] ^= 1;
        poke(i == 0 ? 0 : second, bad, sizeof bad);
        CHECK_EQ(try_open(&err), 0);
        store_close(m->store);
        sim_file_peek(m->world, STORE_PATH, 0, good, sizeof good);
        sim_file_peek(m->world, STORE_PATH, second, bad, sizeof bad);
        CHECK(memcmp(good, bad, sizeof good) == 0);
    }
    bad[100] ^= 1;
    poke(0, bad, sizeof bad);
    poke(second, bad, sizeof bad);
    CHECK_EQ(try_open(&err), -PLX_EDAMAGED);
    struct superblock_format *f = (struct superblock_format *)(void *)bad;
    bad[100] ^= 1;
    f->version = le32_of(SUPERBLOCK_VERSION + 1);
    f->crc = le32_of(crc32c(f, offsetof(struct superblock_format, crc)));
    poke(0, bad, sizeof bad);
    CHECK_EQ(try_open(&err), -PLX_ENEWER);
    memset(bad, 0, sizeof bad);
    poke(0, bad, sizeof bad);
    poke(second, bad, sizeof bad);
    CHECK_EQ(try_open(&err), -PLX_EFORMAT);
    memcpy(bad, good, sizeof bad);
    f->capacity_bytes = le64_of(1 * GIB);
    f->crc = le32_of(crc32c(f, offsetof(struct superblock_format, crc)));
    poke(0, bad, sizeof bad);
    CHECK_EQ(try_open(&err), -PLX_EDAMAGED);
    CHECK(strstr(err.text, "truncated") != NULL);
    memcpy(bad, good, sizeof bad);
    f->store.b[0] ^= 1;
    f->crc = le32_of(crc32c(f, offsetof(struct superblock_format, crc)));
    poke(0, bad, sizeof bad);
    CHECK_EQ(try_open(&err), -PLX_EFORMAT);
    CHECK(strstr(err.text, "another store") != NULL);
    memcpy(bad, good, sizeof bad);
    f->generation = le64_of(le64_get(f->generation) + 1);
    f->crc = le32_of(crc32c(f, offsetof(struct superblock_format, crc)));
    poke(0, bad, sizeof bad);
    CHECK_EQ(try_open(&err), -PLX_EDAMAGED);
    CHECK(strstr(err.text, "metadata is older") != NULL);
    poke(0, good, sizeof good);
    poke(second, good, sizeof good);
    CHECK_EQ(try_open(&err), 0);
}

static void bad_records(struct body *body)
{
    struct error err = {0};
    CHECK_EQ(kv_open(body->loop, KV_PATH, false, &m->kv, &err), 0);
    uint8_t key[EXTENT_KEY_BYTES];
    void *value = NULL;
    size_t len = 0;
    extent_key(m->extents[0]->address, key);
    CHECK_EQ(kv_get(m->kv, key, sizeof key, &value, &len), 0);
    uint8_t *bytes = value;
    for (uint32_t i = 0; i < 3; i++) {
        struct kv_batch batch;
        kv_batch_init(&batch);
        if (i == 0) { /* rot */
            bytes[20] ^= 1;
            kv_batch_put(&batch, key, sizeof key, value, len);
            bytes[20] ^= 1;
        } else if (i == 1) { /* two extents in one place */
            struct extent *copy = calloc(1, sizeof *copy);
            struct writer w = {0};
            uint8_t other[EXTENT_KEY_BYTES];
            CHECK_EQ(record_decode(key, sizeof key, value, len, copy), 0);
            copy->address = address_of(9, 9, 0);
            extent_key(copy->address, other);
            record_encode(copy, EXTENT_PIECES, &w);
            kv_batch_put(&batch, key, sizeof key, value, len);
            kv_batch_put(&batch, other, sizeof other, w.bytes, w.len);
            writer_done(&w);
            extent_free(copy);
        } else { /* the metadata of nothing */
            kv_batch_put(&batch, key, sizeof key, value, len);
            kv_batch_delete(&batch, IDENTITY_KEY, STORE_KEY_BYTES);
        }
        CHECK_EQ(kv_write_wait(m->kv, &batch, KV_SYNCED), 0);
        CHECK_EQ(try_open(&err), -PLX_EDAMAGED);
        CHECK(strstr(err.text, "metadata") != NULL);
    }
    free(value);
    struct store_options options = {
        .path = "sim/other", .kv = m->kv, .capacity_bytes = 20 * MIB};
    CHECK_EQ(store_create(body->loop, &options, CLUSTER_UID, &err), -PLX_EEXISTS);
    CHECK_EQ(sim_file_size_bytes(m->world, "sim/other"), 0);
    options.capacity_bytes = 1 * MIB;
    CHECK_EQ(store_create(body->loop, &options, CLUSTER_UID, &err), -EINVAL);
}

static void no_store(struct body *body)
{
    struct error err = {0};
    CHECK_EQ(kv_open(body->loop, KV_PATH, true, &m->kv, &err), 0);
    CHECK_EQ(try_open(&err), -ENOENT);
}

/* Who is to join a cluster says what its store will be before there is one. */
static void given_incarnation(struct body *body)
{
    struct error err = {0};
    CHECK_EQ(kv_open(body->loop, KV_PATH, true, &m->kv, &err), 0);
    struct store_options options = {.path = STORE_PATH,
                                    .kv = m->kv,
                                    .capacity_bytes = 20 * MIB,
                                    .incarnation = {{1, 2, 3}}};
    CHECK_EQ(store_create(body->loop, &options, CLUSTER_UID, &err), 0);
    CHECK_EQ(try_open(&err), 0);
    struct store_usage usage;
    store_usage(m->store, &usage);
    CHECK(uid_equal(usage.incarnation, options.incarnation));
    CHECK(uid_equal(usage.cluster, CLUSTER_UID));
}

/* --- */

static void scenario(void (*run)(struct body *body), uint64_t slabs, bool no_idle_work)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        m = machine_create(seed, slabs * SLAB_BYTES);
        m->no_idle_work = no_idle_work;
        machine_run(m, body_open);
        CHECK_EQ(m->open_result, 0);
        machine_more(m, run);
        machine_more(m, body_close);
        machine_end(m, SIM_KILL);
        if (run == compacted) {
            machine_run(m, body_open);
            CHECK_EQ(m->open_result, 0);
            machine_more(m, compacted_again);
            machine_more(m, body_close);
            machine_end(m, SIM_KILL);
        }
        machine_destroy(m);
    }
}

/* On a store that exists already, without opening it first. */
static void opening(void (*run)(struct body *body), bool is_made)
{
    m = machine_create(1, 32 * SLAB_BYTES);
    if (is_made) {
        machine_run(m, body_open);
        CHECK_EQ(m->open_result, 0);
        machine_more(m, life);
        free(m->extents[0]);
        m->count = 0;
        machine_more(m, refusals);
        machine_more(m, body_close);
        machine_end(m, SIM_KILL);
    }
    machine_run(m, run);
    if (m->store != NULL)
        machine_more(m, body_close);
    machine_end(m, SIM_KILL);
    machine_destroy(m);
}

/* One bad write stops its extent; when nothing can be written any more the store is out
 * of service, and what was written before can be read. */
static void device_fails(struct body *body)
{
    struct sim_faults *faults = sim_world_faults(m->world);
    struct model_extent *first, *x;
    (void)body;
    CHECK_EQ(machine_create_extent(m, 1, &first), 0);
    CHECK_EQ(machine_append_wait(m, first, 3), 0);
    for (uint32_t i = 0; i < 3 * WRITE_FAILURES_MAX; i++) {
        CHECK_EQ(machine_create_extent(m, 1, &x), 0);
        faults->write_error_ppm = i % WRITE_FAILURES_MAX == 0 ? 0 : 1000000;
        CHECK_EQ(machine_append_wait(m, x, 2), i % WRITE_FAILURES_MAX == 0 ? 0 : -EIO);
        CHECK_EQ(machine_append_wait(m, x, 1),
                 i % WRITE_FAILURES_MAX == 0 ? 0 : -PLX_ESTOPPED);
    }
    CHECK_EQ(machine_create_extent(m, 1, &x), 0);
    CHECK_EQ(machine_append_wait(m, x, 2), -EIO);
    CHECK_EQ(machine_create_extent(m, 1, &x), -PLX_EFAILED);
    faults->write_error_ppm = 0;
    CHECK_EQ(machine_sync_wait(m), -PLX_EFAILED);
    check_blocks(m, first, first->submitted);
}

int main(void)
{
    scenario(life, 32, false);
    scenario(refusals, 32, false);
    scenario(marks, 32, false);
    scenario(whole_extent, 100, false);
    scenario(flood, 32, true);
    scenario(one_operation, 32, true);
    scenario(group_commit, 32, true);
    scenario(full, 32, true);
    scenario(device_fails, 100, true);
    scenario(zero_filled, 200, false);
    scenario(compacted, 32, true);
    scenario(reader_holds_space, 32, true);
    scenario(record_holds_space, 32, true);
    scenario(contended, 32, true);
    opening(grown, true);
    opening(bad_superblocks, true);
    opening(bad_records, true);
    opening(no_store, false);
    opening(given_incarnation, false);
    return 0;
}
