/* SPDX-License-Identifier: Apache-2.0 */
/* Compaction of a store on one simulated machine: what it moves, what it does with rot,
 * how it gets on with others, and that space comes back. Crashes are in
 * test_store_crash.c, the policy alone in test_compact_policy.c. */
#include "tests/unit/store_machine.h"

static struct machine *m;

static struct extent_info info_of(const struct model_extent *x)
{
    struct extent_info info;
    CHECK_EQ(store_extent_info(m->store, x->address, &info), 0);
    return info;
}

static struct extent *extent_of(const struct model_extent *x)
{
    return extent_find(&m->store->extents, x->address);
}

/* A final extent. */
static struct model_extent *new_final(uint32_t batches, uint32_t blocks)
{
    struct model_extent *x = NULL;
    uint32_t length = 0;
    bool scanned;
    CHECK_EQ(machine_create_extent(m, 1, &x), 0);
    for (uint32_t i = 0; i <= batches; i++)
        CHECK_EQ(machine_append_wait(m, x, blocks), 0);
    CHECK_EQ(store_stop_extent(m->store, x->address, &length, &scanned), 0);
    CHECK_EQ(store_finalize_extent(m->store, x->address, length), 0);
    x->final = length;
    x->state = M_FINAL;
    return x;
}

static void trim_headers(struct model_extent *x)
{
    for (uint32_t at = 0; at < x->final; at++)
        if (is_header(x, at))
            bitmap_set(x->trimmed, at);
    CHECK_EQ(store_trim_headers(m->store, x->address), 0);
}

/* Each block with the chance of 1 in n, as many as fit into one call. */
static void trim_some(struct model_extent *x, uint32_t n)
{
    uint32_t blocks[500], count = 0;
    for (uint32_t at = 0; at < x->final && count < ARRAY_LEN(blocks); at++) {
        if (is_header(x, at) || bitmap_get(x->trimmed, at) || chance(m, n) > 0)
            continue;
        bitmap_set(x->trimmed, at);
        blocks[count++] = at;
    }
    int result = store_trim(m->store, x->address, blocks, count);
    CHECK(result == 0 || result == -PLX_EMISSING);
}

/* --- what a check finds --- */

struct findings {
    uint32_t count;
    struct address address;
    struct entry entry;
    bool has_entry;
    int code;
    uint64_t bytes;
};

static int note(void *arg, struct address address, const struct entry *entry, int code)
{
    struct findings *f = arg;
    f->count++;
    f->address = address;
    f->code = code;
    f->has_entry = entry != NULL;
    if (entry != NULL)
        f->entry = *entry;
    return 0;
}

static async int progress(void *arg, uint64_t bytes)
{
    struct findings *f = arg;
    f->bytes += bytes;
    task_sleep_ns(NS_PER_MS);
    return 0;
}

static struct findings verify(const struct model_extent *x)
{
    struct findings f = {0};
    struct verify_callbacks cb = {.finding = note, .progress = progress, .arg = &f};
    CHECK_EQ(store_verify_extent(m->store, x->address, &cb), 0);
    return f;
}

/* Turns a bit of a block, or of a place if it is beyond the blocks. */
static void flip(const struct model_extent *x, uint32_t block, bool is_place)
{
    struct extent *e = extent_of(x);
    uint64_t at = 0;
    uint8_t byte;
    if (is_place)
        CHECK(runs_find(&e->runs, block, 1, &at) == 1);
    else
        CHECK(extent_place(e, block, 1, &at) == 1);
    CHECK_EQ(sim_file_peek(m->world, STORE_PATH, at + 300, &byte, 1), 0);
    byte ^= 16;
    CHECK_EQ(sim_file_poke(m->world, STORE_PATH, at + 300, &byte, 1), 0);
}

/* --- moving --- */

/* Any part of an extent, again and again, until little is left of it. */
static void parts(struct body *body)
{
    (void)body;
    struct model_extent *x = new_final(90, 10);
    check_space(m);
    CHECK_EQ(verify(x).count, 0);
    trim_headers(x);
    for (uint32_t round = 0; round < 40; round++) {
        trim_some(x, 12);
        struct extent_info before = info_of(x);
        uint32_t pieces = pieces_of(before.stored), from = chance(m, pieces + 1);
        uint32_t to = from + chance(m, pieces + 1 - from);
        CHECK_EQ(machine_compact(m, x, from, to, chance(m, 4) == 0), 0);
        struct extent_info after = info_of(x);
        CHECK_EQ(after.live, before.live);
        CHECK(after.stored <= before.stored && after.stored >= after.live);
        if (to < pieces)
            CHECK_EQ((before.stored - after.stored) % PIECE_BLOCKS, 0);
        check_blocks(m, x, x->final);
        check_space(m);
        CHECK_EQ(verify(x).count, 0);
    }
    CHECK_EQ(machine_compact(m, x, 0, EXTENT_PIECES, false), 0);
    CHECK_EQ(info_of(x).stored, info_of(x).live);
    CHECK_EQ(runs_pieces(&extent_of(x)->runs), pieces_of(info_of(x).live) + 1);
    check_blocks(m, x, x->final);
}

/* The same when the store was opened again. */
static void parts_again(struct body *body)
{
    (void)body;
    struct model_extent *x = m->extents[0];
    check_blocks(m, x, x->final);
    check_space(m);
    CHECK_EQ(verify(x).count, 0);
    CHECK_EQ(machine_compact(m, x, 0, 3, false), 0);
    check_blocks(m, x, x->final);
}

static void refused(struct body *body)
{
    (void)body;
    struct model_extent *x = NULL, *y = new_final(5, 5);
    CHECK_EQ(machine_create_extent(m, 1, &x), 0);
    CHECK_EQ(machine_append_wait(m, x, 0), 0);
    struct verify_callbacks cb = {.finding = note};
    CHECK_EQ(machine_compact(m, x, 0, 9, false), -PLX_EPRECONDITION);
    CHECK_EQ(store_verify_extent(m->store, x->address, &cb), -PLX_EPRECONDITION);
    CHECK_EQ(machine_compact(m, y, 0, 9, false), -PLX_EPRECONDITION);
    struct model_extent *none = model_add(m);
    CHECK_EQ(machine_compact(m, none, 0, 9, false), -PLX_EMISSING);
    CHECK_EQ(store_verify_extent(m->store, none->address, &cb), -PLX_EMISSING);
    CHECK_EQ(store_trim_headers(m->store, none->address), -PLX_EMISSING);
}

/* --- rot --- */

static void rotten_block(struct body *body)
{
    (void)body;
    struct model_extent *x = new_final(20, 10);
    uint8_t before[BLOCK_SIZE];
    uint64_t at = 0;
    flip(x, 50, false);
    CHECK(extent_place(extent_of(x), 50, 1, &at) == 1);
    CHECK_EQ(sim_file_peek(m->world, STORE_PATH, at, before, BLOCK_SIZE), 0);
    for (uint32_t i = 0; i < 3; i++) {
        struct findings f = verify(x);
        CHECK_EQ(f.count, 1);
        CHECK_EQ(f.code, -PLX_ECHECKSUM);
        CHECK_EQ(f.address.v, x->address.v + 50);
        CHECK(f.has_entry && f.entry.kind == ENTRY_DATA && f.entry.crc == x->crc[50]);
        CHECK_EQ(f.entry.key, (50 - 1) % 11 - 1);
        if (i == 0)
            trim_headers(x);
        trim_some(x, 1000);
        if (bitmap_get(x->trimmed, 50))
            return;
        CHECK_EQ(machine_compact(m, x, 0, EXTENT_PIECES, false), 0);
    }
    /* It was moved as it is. */
    uint8_t *got = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    CHECK_EQ(machine_read(m, address_plus(x->address, 50), 1, 1, got), 0);
    CHECK(memcmp(got, before, BLOCK_SIZE) == 0);
    free(got);
    const uint32_t dead = 50;
    CHECK_EQ(store_trim(m->store, x->address, &dead, 1), 0);
    CHECK_EQ(verify(x).count, 0); /* nobody needs it any more */
}

static void rotten_header(struct body *body)
{
    (void)body;
    struct model_extent *x = new_final(20, 10);
    flip(x, 12, false); /* of the second batch */
    struct findings f = verify(x);
    CHECK_EQ(f.count, 1);
    CHECK_EQ(f.address.v, x->address.v + 12);
    CHECK(!f.has_entry && f.code == -PLX_ECHECKSUM);
    flip(x, 30, false); /* behind the next header */
    f = verify(x);
    CHECK_EQ(f.count, 2);
    CHECK_EQ(f.address.v, x->address.v + 30);
    CHECK(f.has_entry);
    flip(x, 30, false);
    trim_headers(x);
    uint64_t used = m->store->slabs.part_free;
    CHECK_EQ(machine_compact(m, x, 0, EXTENT_PIECES, false), -PLX_EDAMAGED);
    CHECK_EQ(m->store->slabs.part_free, used);
    CHECK(extent_of(x)->is_unfit && info_of(x).stored == x->final);
    CHECK_EQ(machine_compact(m, x, 0, EXTENT_PIECES, false), -PLX_EPRECONDITION);
    CHECK_EQ(verify(x).count, 1);
}

static void rotten_digest(struct body *body)
{
    (void)body;
    struct model_extent *x = new_final(20, 10);
    trim_headers(x);
    CHECK_EQ(machine_compact(m, x, 0, EXTENT_PIECES, false), 0);
    flip(x, pieces_of(info_of(x).stored) * PIECE_BLOCKS, true);
    struct findings f = verify(x);
    CHECK_EQ(f.count, 1);
    CHECK_EQ(f.address.v, x->address.v);
    CHECK(!f.has_entry && f.code == -PLX_ECHECKSUM);
    check_blocks(m, x, x->final);
    CHECK_EQ(machine_compact(m, x, 0, EXTENT_PIECES, false), -PLX_EDAMAGED);
    check_blocks(m, x, x->final);
}

static void unreadable(struct body *body)
{
    (void)body;
    struct model_extent *x = new_final(20, 10);
    struct findings f = {0};
    struct verify_callbacks cb = {.finding = note, .arg = &f};
    trim_headers(x);
    sim_world_faults(m->world)->read_error_ppm = 1000000;
    CHECK_EQ(machine_compact(m, x, 0, EXTENT_PIECES, false), -PLX_EDAMAGED);
    CHECK_EQ(store_verify_extent(m->store, x->address, &cb), 0);
    CHECK(f.count > 0 && f.code == -EIO);
    sim_world_faults(m->world)->read_error_ppm = 0;
    CHECK(extent_of(x)->is_unfit);
    check_space(m);
}

/* --- others at work --- */

struct helper {
    struct task_call call;
    struct model_extent *extent;
    uint32_t what;
    bool is_over;
};

static void helper_main(struct task_call *call)
{
    struct helper *h = container_of(call, struct helper, call);
    struct model_extent *x = h->extent;
    for (uint32_t i = 0; i < 20 && h->what == 0; i++) {
        trim_some(x, 40);
        task_sleep_ns(chance(m, 300) * NS_PER_US);
    }
    for (uint32_t i = 0; i < 10 && h->what == 1; i++)
        check_blocks(m, x, x->final);
    for (uint32_t i = 0; i < 5 && h->what == 2; i++)
        CHECK_EQ(verify(x).count, 0);
    if (h->what == 3) {
        task_sleep_ns(chance(m, 4000) * NS_PER_US);
        CHECK_EQ(store_delete_extent(m->store, x->address), 0);
    }
    h->is_over = true;
}

static void start_helper(struct helper *h, struct model_extent *x, uint32_t what)
{
    *h = (struct helper){.call = {.main = helper_main, .name = "helper"}};
    h->extent = x;
    h->what = what;
    task_start(m->body.loop, &h->call);
}

/* It is trimmed, read and verified while it moves. */
static void together(struct body *body)
{
    (void)body;
    struct model_extent *x = new_final(80, 10);
    struct helper h[3];
    trim_headers(x);
    for (uint32_t i = 0; i < 3; i++)
        start_helper(&h[i], x, i);
    for (uint32_t moved = 0;
         moved < 10 || !(h[0].is_over && h[1].is_over && h[2].is_over); moved++)
        CHECK_EQ(machine_compact(m, x, chance(m, 20), 20 + chance(m, 40), moved % 3 == 0),
                 0);
    check_blocks(m, x, x->final);
    CHECK_EQ(verify(x).count, 0);
    check_space(m);
}

/* It is deleted while it moves, and while it is verified. */
static void deleted(struct body *body)
{
    (void)body;
    for (uint32_t i = 0; i < 20; i++) {
        struct model_extent *x = new_final(40, 10);
        struct helper h;
        struct findings f = {0};
        struct verify_callbacks cb = {.finding = note, .progress = progress, .arg = &f};
        int result = 0;
        trim_headers(x);
        start_helper(&h, x, 3);
        while (result == 0)
            result = i % 2 == 0 ? machine_compact(m, x, 0, EXTENT_PIECES, false)
                                : store_verify_extent(m->store, x->address, &cb);
        CHECK(result == -PLX_EMISSING || result == -PLX_EPRECONDITION);
        while (!h.is_over)
            task_sleep_ns(NS_PER_MS);
        CHECK_EQ(f.count, 0);
        struct store_usage usage;
        store_usage(m->store, &usage);
        CHECK_EQ(usage.used_bytes, 0);
        CHECK_EQ(usage.live_bytes + usage.dead_bytes, 0);
    }
}

#define READS (IO_PARTS_MAX + 1)

/* A read waits for its turn while its block dies and the rest of the extent is moved. */
static void starved(struct body *body)
{
    (void)body;
    struct model_extent *x = new_final(20, 10);
    struct test_read *reads = calloc(READS, sizeof *reads);
    struct iovec iov = {.iov_base = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE),
                        .iov_len = BLOCK_SIZE};
    const uint32_t dead = 5;
    trim_headers(x);
    sim_world_faults(m->world)->stuck_ppm = 1000000;
    for (uint32_t i = 0; i < READS; i++) {
        reads[i].read = (struct store_read){.address = address_plus(x->address, dead),
                                            .count = 1,
                                            .iov = &iov,
                                            .iov_count = 1,
                                            .done = read_over};
        event_init(&reads[i].over);
        store_read(m->store, &reads[i].read);
    }
    sim_world_faults(m->world)->stuck_ppm = 0;
    CHECK(!STAILQ_EMPTY(&m->store->starved_reads));
    CHECK_EQ(store_trim(m->store, x->address, &dead, 1), 0);
    CHECK_EQ(machine_compact(m, x, 0, EXTENT_PIECES, false), 0);
    for (uint32_t i = 0; i < READS; i++) {
        event_wait(&reads[i].over);
        CHECK_EQ(reads[i].read.result, i < IO_PARTS_MAX ? 0 : -PLX_EDEAD);
    }
    free(iov.iov_base);
    free(reads);
}

/* --- space comes back --- */

static uint32_t spaces_seen;

static void on_space(struct work *work)
{
    (void)work;
    spaces_seen++;
}

static void wait_for_slabs(uint32_t slabs)
{
    for (uint32_t i = 0; m->store->slabs.free_count < slabs; i++) {
        CHECK(i < 20000 && store_space_coming(m->store));
        task_sleep_ns(100 * NS_PER_US);
    }
}

#define DISK_BLOCKS 11400U /* of the 16128 there are */
#define LOG_BLOCKS  1000U

struct disk {
    struct model_extent *extent[DISK_BLOCKS];
    uint32_t block[DISK_BLOCKS];
    struct model_extent *open;
    uint8_t dead[MODEL_MAX][BITMAP_BYTES]; /* to be trimmed when it is final */
};

static void finish_extent(struct disk *d)
{
    struct model_extent *x = d->open;
    bool scanned;
    CHECK_EQ(store_stop_extent(m->store, x->address, &x->final, &scanned), 0);
    CHECK_EQ(store_finalize_extent(m->store, x->address, x->final), 0);
    x->state = M_FINAL;
    trim_headers(x);
    for (uint32_t i = 0; i < m->count; i++) {
        uint32_t blocks[LOG_BLOCKS + 100], count = 0;
        if (m->extents[i]->state != M_FINAL)
            continue;
        for (uint32_t b = 0; b < m->extents[i]->final; b++)
            if (bitmap_get(d->dead[i], b) && !bitmap_get(m->extents[i]->trimmed, b)) {
                bitmap_set(m->extents[i]->trimmed, b);
                blocks[count++] = b;
            }
        CHECK_EQ(store_trim(m->store, m->extents[i]->address, blocks, count), 0);
        struct extent_info info;
        if (store_extent_info(m->store, m->extents[i]->address, &info) < 0)
            m->extents[i]->state = M_DELETED;
    }
    d->open = NULL;
}

static void overwrite_some(struct disk *d, uint32_t first, bool at_random)
{
    wait_for_slabs(m->store->slabs.count / 32 + 2);
    if (d->open == NULL) {
        CHECK_EQ(machine_create_extent(m, 1, &d->open), 0);
        CHECK_EQ(machine_append_wait(m, d->open, 0), 0);
    }
    uint32_t at = d->open->submitted + 1;
    CHECK_EQ(machine_append_wait(m, d->open, 16), 0);
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t block = at_random ? chance(m, DISK_BLOCKS) : (first + i) % DISK_BLOCKS;
        for (uint32_t j = 0; j < m->count && d->extent[block] != NULL; j++)
            if (m->extents[j] == d->extent[block])
                bitmap_set(d->dead[j], d->block[block]);
        d->extent[block] = d->open;
        d->block[block] = at + i;
    }
    if (d->open->submitted >= LOG_BLOCKS)
        finish_extent(d);
}

/* A disk that fills most of its store is overwritten for long. */
static void nearly_full(struct body *body)
{
    (void)body;
    struct disk *d = calloc(1, sizeof *d);
    struct work work = {.run = on_space};
    store_on_space(m->store, &work);
    spaces_seen = 0;
    for (uint32_t i = 0; i < DISK_BLOCKS; i += 16)
        overwrite_some(d, i, false);
    while (m->count < 80 || d->open != NULL)
        overwrite_some(d, 0, true);
    struct store_usage usage;
    store_usage(m->store, &usage);
    CHECK(usage.compact_runs > 20 && spaces_seen > 20);
    CHECK(usage.compact_bytes_read >= usage.compact_bytes_written);
    for (uint32_t i = 0; i < m->count; i++)
        if (m->extents[i]->state == M_FINAL) {
            check_blocks(m, m->extents[i], m->extents[i]->final);
            CHECK_EQ(verify(m->extents[i]).count, 0);
        }
    task_sleep_ns(10 * NS_PER_S);
    check_space(m);
    store_on_space(m->store, NULL);
    loop_post_cancel(m->body.loop, &work);
    free(d);
}

/* What is left of many extents lies here and there; slabs are made of that. */
static void scattered(struct body *body)
{
    (void)body;
    struct model_extent *x[50];
    for (uint32_t i = 0; i < ARRAY_LEN(x); i++) {
        x[i] = new_final(7, 12); /* 92 blocks, 84 without headers: 6 pieces, a digest */
        trim_headers(x[i]);
        CHECK_EQ(machine_compact(m, x[i], 0, EXTENT_PIECES, false), 0);
    }
    for (uint32_t i = 0; i < ARRAY_LEN(x); i++)
        if (i % 4 != 0) {
            CHECK_EQ(store_delete_extent(m->store, x[i]->address), 0);
            x[i]->state = M_DELETED;
        }
    uint32_t held = m->store->slabs.count - 1 - m->store->slabs.free_count;
    CHECK(held > 15);
    /* So much is wanted that free slabs are short. */
    store_set_reserve(m->store, 200 * SLAB_BYTES);
    for (uint32_t i = 0; i < 1000 && store_space_coming(m->store); i++)
        task_sleep_ns(10 * NS_PER_MS);
    CHECK(!store_space_coming(m->store));
    held = m->store->slabs.count - 1 - m->store->slabs.free_count;
    CHECK(held <= 9); /* of 13 * 7 pieces */
    for (uint32_t i = 0; i < ARRAY_LEN(x); i += 4)
        check_blocks(m, x[i], x[i]->final);
    check_space(m);
}

/* A store at rest takes on what is mostly dead. */
static void idle(struct body *body)
{
    (void)body;
    struct model_extent *x = new_final(30, 20);
    trim_headers(x);
    for (uint32_t i = 0; i < 3; i++)
        trim_some(x, 2);
    struct extent_info info = info_of(x);
    CHECK(info.live < info.stored / 2);
    task_sleep_ns(20 * NS_PER_S);
    CHECK(info_of(x).stored < info.stored);
    CHECK_EQ(info_of(x).live, info.live);
    check_blocks(m, x, x->final);
}

/* --- */

static void scenario(void (*run)(struct body *body), uint64_t slabs, bool no_idle_work,
                     uint32_t seeds)
{
    for (uint64_t seed = 1; seed <= seeds_of(seeds); seed++) {
        m = machine_create(seed, slabs * SLAB_BYTES);
        m->no_idle_work = no_idle_work;
        machine_run(m, body_open);
        CHECK_EQ(m->open_result, 0);
        machine_more(m, run);
        machine_more(m, body_close);
        machine_end(m, SIM_KILL);
        if (run == parts) {
            machine_run(m, body_open);
            CHECK_EQ(m->open_result, 0);
            machine_more(m, parts_again);
            machine_more(m, body_close);
            machine_end(m, SIM_KILL);
        }
        machine_destroy(m);
    }
}

int main(void)
{
    scenario(parts, 64, true, 5);
    scenario(refused, 64, true, 1);
    scenario(rotten_block, 64, true, 3);
    scenario(rotten_header, 64, true, 3);
    scenario(rotten_digest, 64, true, 3);
    scenario(unreadable, 64, true, 1);
    scenario(together, 64, true, 5);
    scenario(deleted, 64, true, 3);
    scenario(starved, 64, true, 1);
    scenario(scattered, 200, true, 2);
    scenario(idle, 200, false, 2);
    scenario(nearly_full, 64, true, 2);
    return 0;
}
