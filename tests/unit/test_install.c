/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies of final extents that come into a store: in any order, while the extent is
 * trimmed, stopped and deleted there, cut off at every step, refused, with too little
 * space. Where they come from is a model in memory.
 *
 *     test_install [SEED]
 */
#include <sys/wait.h>

#include "blockstore/inspect.h"
#include "tests/unit/extent_source.h"

#define SEEDS   60U
#define AT_ONCE 40U /* blocks of a put */
#define PUTTERS 3U

static struct machine *m;
static struct source *source;
static uint8_t expected[BITMAP_BYTES]; /* what is to be live in the end */

static struct extent_info info_of(struct address address)
{
    struct extent_info info;
    CHECK_EQ(store_extent_info(m->store, address, &info), 0);
    return info;
}

static int finding(void *arg, struct address address, const struct entry *entry, int code)
{
    (void)address, (void)entry, (void)code;
    ++*(uint32_t *)arg;
    return 0;
}

static uint32_t count_findings(struct address address)
{
    uint32_t count = 0;
    struct verify_callbacks cb = {.finding = finding, .arg = &count};
    CHECK_EQ(store_verify_extent(m->store, address, &cb), 0);
    return count;
}

static int see_entry(void *arg, const struct stored_entry *stored)
{
    uint8_t *seen = arg;
    const struct entry *want = &source->entries[stored->block];
    CHECK(stored->entry.kind == want->kind && stored->entry.key == want->key);
    CHECK_EQ(stored->entry.crc, want->crc);
    bitmap_set(seen, stored->block);
    return 0;
}

/* It is as good as one that was written here. */
static void check_copy(void)
{
    struct extent_info info = info_of(source->address);
    uint8_t seen[BITMAP_BYTES] = {0};
    CHECK(info.state == EXTENT_FINAL && info.length == source->length);
    CHECK(info.disk == source->disk && info.epoch == source->epoch);
    CHECK(info.nonce == source->nonce && !info.restart_scanned);
    source_check(m, source, expected);
    CHECK_EQ(count_findings(source->address), 0);
    CHECK_EQ(store_list_entries(m->store, source->address, see_entry, seen), 0);
    for (uint32_t i = 0; i < source->length; i++)
        CHECK(!bitmap_get(expected, i) || source_is_header(source, i) ||
              bitmap_get(seen, i));
    if (info.has_headers) {
        uint32_t end = 0, walked = 0;
        CHECK_EQ(
            store_walk_headers(m->store, source->address, count_header, &walked, &end),
            0);
        CHECK(end == info.length && walked == info.length);
    }
    check_space(m);
}

static int compact(bool digest)
{
    struct section section = {.address = source->address,
                              .to = EXTENT_PIECES,
                              .digest = digest};
    return compact_section(m->store, &section, no_pause, NULL);
}

/* --- putting --- */

struct putter {
    struct task_call call;
    struct store_install *install;
    uint32_t *running;
    int result;
};

static void putter_main(struct task_call *call)
{
    struct putter *p = container_of(call, struct putter, call);
    struct install_block blocks[AT_ONCE];
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, AT_ONCE * BLOCK_SIZE);
    for (;;) {
        uint32_t from = chance(m, source->length);
        uint32_t max = 1 + chance(m, AT_ONCE);
        uint32_t count = source_fill(source, p->install, from, max, blocks, bytes);
        if (count == 0)
            count = source_fill(source, p->install, 0, max, blocks, bytes);
        if (count == 0)
            break;
        p->result = store_install_put(p->install, blocks, count, bytes);
        if (p->result < 0)
            break;
        if (chance(m, 4) == 0)
            task_sleep_ns(chance(m, 400) * NS_PER_US);
    }
    free(bytes);
    --*p->running;
}

/* All of it, by several tasks. */
static int put_all(struct store_install *install)
{
    struct putter putters[PUTTERS] = {{.install = install}};
    uint32_t running = PUTTERS;
    int result = 0;
    for (uint32_t i = 0; i < PUTTERS; i++) {
        putters[i] = (struct putter){.call = {.main = putter_main, .name = "putter"},
                                     .install = install,
                                     .running = &running};
        task_start(m->body.loop, &putters[i].call);
    }
    while (running > 0)
        task_sleep_ns(100 * NS_PER_US);
    for (uint32_t i = 0; i < PUTTERS; i++)
        result = result != 0 ? result : putters[i].result;
    return result;
}

static int install_all(void)
{
    struct store_install *install = NULL;
    struct install_plan plan = source_plan(source);
    int result = store_install_begin(m->store, source->address, &install);
    if (result < 0)
        return result;
    result = store_install_plan(install, &plan);
    if (result == 0)
        result = put_all(install);
    if (result == 0)
        return store_install_finish(install);
    store_install_abandon(install);
    return result;
}

/* A prefix of it is here already, and stopped; or only that it is not here. */
static void stop_some(void)
{
    uint32_t length = 0, stopped = chance(m, source->length);
    bool scanned;
    while (stopped > 0 && !source_is_header(source, stopped))
        stopped--;
    if (stopped > 0)
        source_append(m, source, stopped);
    CHECK_EQ(store_stop_extent(m->store, source->address, &length, &scanned), 0);
    CHECK_EQ(length, stopped);
}

static void make_source(uint32_t length)
{
    source = source_create(m->world, address_of(2, 1 + chance(m, 1000), 0), length);
    if (chance(m, 2) == 0)
        source_trim(source, m->world, 1 + chance(m, 8));
    if (chance(m, 3) > 0 && !bitmap_within(source->live, source->headers))
        source_trim_headers(source);
    memcpy(expected, source->live, BITMAP_BYTES);
}

/* --- scenarios --- */

/* It is the same as the other one, and goes on living as any other. */
static void whole(struct body *body)
{
    (void)body;
    make_source(2 + chance(m, 700));
    bool had_some = chance(m, 2) == 0;
    if (had_some)
        stop_some();
    CHECK_EQ(install_all(), 0);
    check_copy();
    struct store_install *install = NULL;
    CHECK_EQ(store_install_begin(m->store, source->address, &install), -PLX_EEXISTS);
    CHECK_EQ(compact(false), source->has_headers ? -PLX_EPRECONDITION : 0);
    check_copy();
}

static void whole_again(struct body *body)
{
    (void)body;
    check_copy();
    if (source->has_headers) {
        source_trim_headers(source);
        for (uint32_t i = 0; i < BITMAP_BYTES; i++)
            expected[i] &= (uint8_t)~source->headers[i];
        CHECK_EQ(store_trim_headers(m->store, source->address), 0);
        if (bitmap_rank(expected, EXTENT_BLOCKS) == 0)
            return;
        check_copy();
    }
    for (uint32_t round = 0; round < 3; round++) {
        uint32_t dead = chance(m, source->length);
        bitmap_clear(expected, dead);
        CHECK_EQ(store_trim(m->store, source->address, &dead, 1), 0);
        if (bitmap_rank(expected, EXTENT_BLOCKS) == 0)
            return;
        CHECK_EQ(compact(round == 1), 0);
        check_copy();
    }
}

/* --- others meanwhile --- */

struct meddler {
    struct task_call call;
    bool is_over, has_deleted, trims;
};

static void meddle_trim(void)
{
    uint32_t blocks[8], count = 0;
    for (uint32_t at = chance(m, source->length); at < source->length && count < 8;
         at += 1 + chance(m, 9))
        blocks[count++] = at;
    int result = store_trim(m->store, source->address, blocks, count);
    struct extent_info info;
    bool is_there = store_extent_info(m->store, source->address, &info) == 0;
    CHECK(result == 0 || (result == -PLX_EMISSING && !is_there));
    for (uint32_t i = 0; i < count; i++)
        if (!source->has_headers || !source_is_header(source, blocks[i]))
            bitmap_clear(expected, blocks[i]);
}

static void meddler_main(struct task_call *call)
{
    struct meddler *h = container_of(call, struct meddler, call);
    for (uint32_t i = 0; i < 12 && !h->has_deleted; i++) {
        uint32_t length;
        bool scanned;
        task_sleep_ns(chance(m, 1500) * NS_PER_US);
        switch (chance(m, 8)) {
        case 0:
            CHECK_EQ(store_stop_extent(m->store, source->address, &length, &scanned), 0);
            break;
        case 1:
            CHECK_EQ(store_create_extent(m->store, source->address, 1, 1, 1, 1, false),
                     -PLX_EEXISTS);
            break;
        case 2:
            if (!source->has_headers || chance(m, 3) > 0)
                break;
            CHECK_EQ(store_trim_headers(m->store, source->address), 0);
            source_trim_headers(source);
            for (uint32_t j = 0; j < BITMAP_BYTES; j++)
                expected[j] &= (uint8_t)~source->headers[j];
            break;
        case 3:
            if (chance(m, 3) > 0)
                break;
            CHECK_EQ(store_delete_extent(m->store, source->address), 0);
            h->has_deleted = true;
            break;
        default:
            meddle_trim();
        }
    }
    h->is_over = true;
}

/* It is trimmed, stopped and deleted on its way in: nothing dead comes to life. */
static void meddled(struct body *body)
{
    (void)body;
    struct meddler h = {.call = {.main = meddler_main, .name = "meddler"}};
    make_source(2 + chance(m, 300));
    struct store_install *install = NULL;
    struct install_plan plan = source_plan(source);
    uint8_t live[BITMAP_BYTES]; /* when it was asked */
    memcpy(live, source->live, BITMAP_BYTES);
    plan.live = live;
    CHECK_EQ(store_install_begin(m->store, source->address, &install), 0);
    task_start(m->body.loop, &h.call);
    task_sleep_ns(chance(m, 3000) * NS_PER_US);
    CHECK_EQ(store_install_plan(install, &plan), 0);
    int result = put_all(install);
    if (result == 0) {
        result = store_install_finish(install);
    } else {
        CHECK_EQ(result, -PLX_EMISSING);
        store_install_abandon(install);
    }
    while (!h.is_over)
        task_sleep_ns(NS_PER_MS);
    CHECK(result == 0 || (result == -PLX_EMISSING && h.has_deleted));
    struct extent_info info;
    bool is_there = store_extent_info(m->store, source->address, &info) == 0;
    if (h.has_deleted || bitmap_rank(expected, EXTENT_BLOCKS) == 0)
        CHECK(!is_there || (info.state == EXTENT_STOPPED && info.length == 0));
    else
        check_copy();
    check_space(m);
}

/* --- what is refused --- */

static void refused_plans(struct store_install *install)
{
    struct install_plan plan = source_plan(source);
    uint8_t none[BITMAP_BYTES] = {0}, beyond[BITMAP_BYTES];
    memcpy(beyond, source->live, BITMAP_BYTES);
    bitmap_set(beyond, source->length);
    plan.length = 0;
    CHECK_EQ(store_install_plan(install, &plan), -PLX_EFORMAT);
    plan.length = EXTENT_BLOCKS + 1;
    CHECK_EQ(store_install_plan(install, &plan), -PLX_EFORMAT);
    plan = source_plan(source);
    plan.live = none;
    CHECK_EQ(store_install_plan(install, &plan), -PLX_EFORMAT);
    plan.live = beyond;
    CHECK_EQ(store_install_plan(install, &plan), -PLX_EFORMAT);
    plan = source_plan(source);
    plan.headers = none; /* the roll record is missing */
    CHECK_EQ(store_install_plan(install, &plan), -PLX_EFORMAT);
    memcpy(beyond, source->headers, BITMAP_BYTES);
    bitmap_set(beyond, source->length);
    plan.headers = beyond;
    CHECK_EQ(store_install_plan(install, &plan), -PLX_EFORMAT);
}

static int put_one(struct store_install *install, uint32_t block, bool is_wrong,
                   bool is_bad)
{
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    struct install_block b = {.block = block, .is_bad = is_bad};
    if (block < source->length) {
        memcpy(bytes, source_block(source, block), BLOCK_SIZE);
        b.entry = source->entries[block];
        b.is_known = !source_is_header(source, block);
    } else {
        memset(bytes, 0, BLOCK_SIZE);
    }
    bytes[100] ^= is_wrong;
    int result = store_install_put(install, &b, 1, bytes);
    free(bytes);
    return result;
}

static void refused(struct body *body)
{
    (void)body;
    struct store_install *install = NULL, *other = NULL;
    source = source_create(m->world, address_of(2, 7, 0), 200);
    memcpy(expected, source->live, BITMAP_BYTES);
    source_append(m, source, 1);
    CHECK_EQ(store_install_begin(m->store, source->address, &install), 0);
    CHECK_EQ(store_install_begin(m->store, source->address, &other), -PLX_EBUSY);
    refused_plans(install);
    struct install_plan plan = source_plan(source);
    CHECK_EQ(store_install_plan(install, &plan), 0);
    CHECK_EQ(put_one(install, source->length, false, false), -PLX_EFORMAT);
    for (uint32_t i = 0; i < source->length; i++)
        CHECK_EQ(put_one(install, i, true, false), -PLX_ECHECKSUM);
    CHECK_EQ(store_install_missing(install, 0), 0);
    CHECK_EQ(put_all(install), 0);
    /* What is there is still being written. */
    CHECK_EQ(store_install_finish(install), -PLX_EPRECONDITION);
    uint32_t length = 0;
    bool scanned;
    CHECK_EQ(store_stop_extent(m->store, source->address, &length, &scanned), 0);
    CHECK_EQ(length, 1);
    check_space(m);
    CHECK_EQ(install_all(), 0);
    check_copy();
}

/* One block less is nothing. */
static void incomplete(struct body *body)
{
    (void)body;
    struct store_install *install = NULL;
    make_source(100);
    struct install_plan plan = source_plan(source);
    stop_some();
    struct extent_info before = info_of(source->address);
    uint32_t last = source->length - 1;
    while (!bitmap_get(source->live, last))
        last--;
    for (uint32_t without = 0; without < 2; without++) {
        CHECK_EQ(store_install_begin(m->store, source->address, &install), 0);
        if (without == 1)
            CHECK_EQ(store_install_plan(install, &plan), 0);
        for (uint32_t i = 0; without == 1 && i < last; i++)
            if (bitmap_get(source->live, i))
                CHECK_EQ(put_one(install, i, false, false), 0);
        CHECK_EQ(store_install_finish(install), -PLX_ENOTHERE);
        struct extent_info after = info_of(source->address);
        CHECK(after.state == EXTENT_STOPPED && after.length == before.length);
        check_space(m);
    }
    CHECK_EQ(install_all(), 0);
    check_copy();
}

static bool is_known_as_bad(uint32_t block)
{
    struct inspect *ins = inspect_create(m->store, source->address, 256 * KIB);
    struct inspected in = {0};
    ins->block = block;
    CHECK_EQ(inspect_resume(ins), 0);
    CHECK_EQ(inspect_next(ins, &in), 1);
    CHECK_EQ(in.block, block);
    inspect_release(ins);
    inspect_destroy(ins);
    return in.was_bad;
}

/* A block that is rotten everywhere stays so, and is known to be. */
static void rotten(struct body *body)
{
    (void)body;
    struct store_install *install = NULL;
    source = source_create(m->world, address_of(2, 7, 0), 200);
    uint32_t block = 2;
    while (source_is_header(source, block))
        block++;
    if (chance(m, 2) == 0)
        source_trim_headers(source);
    struct install_plan plan = source_plan(source);
    CHECK_EQ(store_install_begin(m->store, source->address, &install), 0);
    CHECK_EQ(store_install_plan(install, &plan), 0);
    CHECK_EQ(put_one(install, block, true, true), 0);
    CHECK_EQ(put_all(install), 0);
    CHECK_EQ(store_install_finish(install), 0);
    CHECK_EQ(count_findings(source->address), 1);
    if (!source->has_headers)
        CHECK(is_known_as_bad(block));
    CHECK_EQ(store_mend_block(m->store, address_plus(source->address, block),
                              source_block(source, block), source->crcs[block]),
             0);
    CHECK_EQ(count_findings(source->address), 0);
    memcpy(expected, source->live, BITMAP_BYTES);
    check_copy();
}

/* A read of what was there before goes on; its space is nobody else's until it ended. */
static void read_before(struct body *body)
{
    (void)body;
    make_source(100);
    source_append(m, source, 1);
    uint32_t length = 0;
    bool scanned;
    CHECK_EQ(store_stop_extent(m->store, source->address, &length, &scanned), 0);
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    struct iovec iov = {.iov_base = bytes, .iov_len = BLOCK_SIZE};
    struct test_read r = {.read = {.address = source->address,
                                   .count = 1,
                                   .iov = &iov,
                                   .iov_count = 1,
                                   .done = read_over}};
    event_init(&r.over);
    sim_world_faults(m->world)->stuck_ppm = 1000000;
    store_read(m->store, &r.read);
    sim_world_faults(m->world)->stuck_ppm = 0;
    CHECK_EQ(install_all(), 0);
    CHECK(r.over.is_set);
    CHECK(r.read.result == 0 && memcmp(bytes, source->bytes, BLOCK_SIZE) == 0);
    free(bytes);
    check_copy();
}

/* Another nonce is another history: what is here stays. */
static void other_history(struct body *body)
{
    (void)body;
    make_source(100);
    source_append(m, source, 1);
    uint32_t length = 0;
    bool scanned;
    CHECK_EQ(store_stop_extent(m->store, source->address, &length, &scanned), 0);
    struct store_install *install = NULL;
    struct install_plan plan = source_plan(source);
    plan.nonce++;
    CHECK_EQ(store_install_begin(m->store, source->address, &install), 0);
    CHECK_EQ(store_install_plan(install, &plan), 0);
    for (uint32_t i = 0; i < source->length; i++)
        if (bitmap_get(source->live, i))
            CHECK_EQ(put_one(install, i, false, source_is_header(source, i)), 0);
    CHECK_EQ(store_install_finish(install), -PLX_EPRECONDITION);
    CHECK_EQ(info_of(source->address).length, 1);
    check_space(m);
}

/* --- space --- */

static void full(struct body *body)
{
    (void)body;
    struct store_install *installs[STORE_INSTALLS_MAX + 1] = {NULL};
    uint32_t count = 0;
    int result = 0;
    store_set_reserve(m->store, 4 * SLAB_BYTES);
    for (; result == 0 && count < STORE_INSTALLS_MAX; count++) {
        source = source_create(m->world, address_of(2, 1 + count, 0), 1000);
        if (count % 2 == 0)
            source_trim_headers(source);
        struct install_plan plan = source_plan(source);
        CHECK_EQ(store_install_begin(m->store, source->address, &installs[count]), 0);
        result = store_install_plan(installs[count], &plan);
        source_destroy(source);
    }
    CHECK_EQ(result, -PLX_EFULL);
    CHECK(m->store->slabs.free_count >= 4 + compact_reserve_slabs(24) && count > 3);
    CHECK(m->store->slabs.free_count < 9 + compact_reserve_slabs(24));
    while (count > 0)
        store_install_abandon(installs[--count]);
    struct store_usage usage;
    store_usage(m->store, &usage);
    CHECK_EQ(usage.used_bytes, 0);
    for (; count < STORE_INSTALLS_MAX; count++)
        CHECK_EQ(
            store_install_begin(m->store, address_of(2, 1 + count, 0), &installs[count]),
            0);
    CHECK_EQ(store_install_begin(m->store, address_of(2, 99, 0), &installs[count]),
             -PLX_ELIMIT);
    while (count > 0)
        store_install_abandon(installs[--count]);
    make_source(300);
    CHECK_EQ(install_all(), 0);
    check_copy();
}

/* --- merging --- */

static void merged(struct body *body)
{
    (void)body;
    make_source(300);
    CHECK_EQ(install_all(), 0);
    uint8_t other[BITMAP_BYTES];
    memcpy(other, source->live, BITMAP_BYTES);
    struct store_copy copy = {.nonce = source->nonce + 1,
                              .length = source->length,
                              .has_headers = source->has_headers,
                              .live = other};
    for (uint32_t i = 0, kept = 0; i < source->length; i++)
        if (bitmap_get(other, i) && kept++ > 0 && chance(m, 4) == 0)
            bitmap_clear(other, i);
    CHECK_EQ(store_merge_live(m->store, source->address, &copy), -PLX_EPRECONDITION);
    copy.nonce--;
    copy.length++;
    CHECK_EQ(store_merge_live(m->store, source->address, &copy), -PLX_EPRECONDITION);
    check_copy();
    copy.length--;
    CHECK_EQ(store_merge_live(m->store, source->address, &copy), 0);
    for (uint32_t i = 0; i < source->length; i++)
        if (!source->has_headers || !source_is_header(source, i))
            if (!bitmap_get(other, i))
                bitmap_clear(expected, i);
    check_copy();
    /* Nothing comes to life by it. */
    memset(other, 0xff, BITMAP_BYTES);
    CHECK_EQ(store_merge_live(m->store, source->address, &copy), 0);
    check_copy();
    CHECK_EQ(store_settle(m->store), 0);
}

static void merged_again(struct body *body)
{
    (void)body;
    uint8_t other[BITMAP_BYTES];
    check_copy(); /* it was durable */
    memset(other, 0xff, BITMAP_BYTES);
    struct store_copy copy = {
        .nonce = source->nonce, .length = source->length, .live = other};
    CHECK_EQ(store_merge_live(m->store, source->address, &copy), 0);
    source_trim_headers(source);
    for (uint32_t i = 0; i < BITMAP_BYTES; i++)
        expected[i] &= (uint8_t)~source->headers[i];
    if (bitmap_rank(expected, EXTENT_BLOCKS) > 0)
        check_copy();
    memset(other, 0, BITMAP_BYTES);
    int result = store_merge_live(m->store, source->address, &copy);
    CHECK(result == 0 || bitmap_rank(expected, EXTENT_BLOCKS) == 0);
    CHECK_EQ(store_merge_live(m->store, source->address, &copy), -PLX_EMISSING);
}

/* --- cut off --- */

static uint32_t prefix; /* of the extent that was there before; 0: none */
static bool is_done;

static void body_prefix(struct body *body)
{
    uint32_t length = 0;
    bool scanned;
    body_open(body);
    CHECK_EQ(m->open_result, 0);
    if (prefix > 0) {
        source_append(m, source, prefix);
        CHECK_EQ(store_stop_extent(m->store, source->address, &length, &scanned), 0);
        CHECK_EQ(length, prefix);
    }
}

static void body_install(struct body *body)
{
    (void)body;
    is_done = install_all() == 0;
}

static void body_after(struct body *body)
{
    struct extent_info info = {0};
    body_open(body);
    CHECK_EQ(m->open_result, 0);
    int result = store_extent_info(m->store, source->address, &info);
    if (result == 0 && info.state == EXTENT_FINAL) {
        check_copy();
    } else {
        CHECK(!is_done);
        CHECK_EQ(result, prefix > 0 ? 0 : -PLX_EMISSING);
        CHECK_EQ(info.length, prefix);
        uint8_t *bytes = aligned_alloc(BLOCK_SIZE, 4096 * BLOCK_SIZE);
        if (prefix > 0) {
            CHECK_EQ(machine_read(m, source->address, prefix, 64, bytes), 0);
            CHECK(memcmp(bytes, source->bytes, (size_t)prefix * BLOCK_SIZE) == 0);
        }
        free(bytes);
        check_space(m);
        CHECK_EQ(install_all(), 0);
        check_copy();
    }
}

/* The power goes, or the process, after each step in turn. */
static void cut_off(uint64_t seed)
{
    enum sim_end how = seed % 2 == 0 ? SIM_POWER_CUT : SIM_KILL;
    is_done = false;
    for (uint64_t steps = 0; !is_done; steps += 1 + seed % 3) {
        m = machine_create(seed, 40 * SLAB_BYTES);
        m->no_idle_work = true;
        make_source(60 + (uint32_t)seed % 90);
        for (prefix = seed % 3 == 0 ? 0 : source->length / 2;
             prefix > 0 && !source_is_header(source, prefix);)
            prefix--;
        machine_run(m, body_prefix);
        m->body.run = body_install;
        m->body.is_over = false;
        m->body.call = (struct task_call){.main = body_main, .name = "test"};
        task_start(m->body.loop, &m->body.call);
        for (uint64_t i = 0; i < steps && !m->body.is_over; i++)
            CHECK(sim_world_step(m->world));
        machine_end(m, how);
        machine_run(m, body_after);
        machine_more(m, body_close);
        machine_end(m, SIM_KILL);
        machine_destroy(m);
        source_destroy(source);
        CHECK(steps < 20000);
    }
}

/* One operation after the other fails. */
static void failures(uint64_t seed)
{
    bool happened = true;
    for (int64_t n = 0; happened; n++) {
        m = machine_create(seed, 40 * SLAB_BYTES);
        m->no_idle_work = true;
        make_source(100);
        for (prefix = source->length / 2; !source_is_header(source, prefix);)
            prefix--;
        machine_run(m, body_prefix);
        sim_fail_nth_io(m->world, n);
        machine_more(m, body_install);
        happened = sim_failure_happened(m->world);
        sim_fail_nth_io(m->world, -1);
        CHECK(is_done == !happened);
        CHECK(SLIST_EMPTY(&m->store->installs));
        machine_end(m, n % 2 == 0 ? SIM_POWER_CUT : SIM_KILL);
        machine_run(m, body_after);
        machine_more(m, body_close);
        machine_end(m, SIM_KILL);
        machine_destroy(m);
        source_destroy(source);
        CHECK(happened || n > 5);
    }
}

/* --- */

static void scenario(uint64_t seed, void (*run)(struct body *body),
                     void (*again)(struct body *body))
{
    m = machine_create(seed, 24 * SLAB_BYTES);
    m->no_idle_work = true;
    machine_run(m, body_open);
    CHECK_EQ(m->open_result, 0);
    machine_more(m, run);
    if (again != NULL) {
        machine_end(m, SIM_POWER_CUT);
        machine_run(m, body_open);
        CHECK_EQ(m->open_result, 0);
        machine_more(m, again);
    }
    machine_more(m, body_close);
    machine_end(m, SIM_KILL);
    machine_destroy(m);
    source_destroy(source);
}

static void one_seed(uint64_t seed)
{
    scenario(seed, whole, whole_again);
    scenario(seed, meddled, NULL);
    scenario(seed, merged, merged_again);
    if (seed > 4)
        return;
    scenario(seed, refused, NULL);
    scenario(seed, incomplete, NULL);
    scenario(seed, rotten, NULL);
    scenario(seed, other_history, NULL);
    scenario(seed, read_before, NULL);
    scenario(seed, full, NULL);
    cut_off(seed);
    failures(seed);
}

/* What a dead process had allocated is not released. */
static void in_child(uint64_t seed)
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        one_seed(seed);
        _exit(0);
    }
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    if (status != 0)
        fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        one_seed(strtoull(argv[1], NULL, 0));
        return 0;
    }
    for (uint64_t seed = 1; seed <= seeds_of(SEEDS); seed++)
        in_child(seed);
    return 0;
}
