/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a log was cut short: the restart scan tells rot in what was flushed, which is
 * damage, from batches that were never synced and are gone or half there, which are the
 * end of the log. Other rot and all crashes are in test_store_crash.c.
 *
 * An extent has its roll record in block 0 and BATCHES batches of DATA blocks; what its
 * headers call flushed is up to each test.
 */
#include <sys/wait.h>

#include "tests/unit/store_machine.h"

#define DATA     5U
#define BATCHES  5U
#define HEADER(batch) (1 + (batch) * (DATA + 1)) /* its block */
#define BLOCKS   HEADER(BATCHES)

static struct machine *m;
static struct model_extent *victim;
static uint32_t space;  /* blocks that the victim has before it is killed */
static uint32_t target; /* block of it that each test is about */
static bool is_first;   /* start after that: the next one scans nothing */

/* --- what is done --- */

static uint64_t place_of(const struct model_extent *x, uint32_t block)
{
    uint64_t at = 0;
    const struct extent *e = extent_find(&m->store->extents, x->address);
    CHECK(e != NULL && extent_place(e, block, 1, &at) == 1);
    return at;
}

static void flip_at(const struct model_extent *x, uint32_t block, uint32_t offset)
{
    uint8_t byte = 0;
    uint64_t at = place_of(x, block) + offset;
    CHECK_EQ(sim_file_peek(m->world, STORE_PATH, at, &byte, 1), 0);
    byte ^= 4;
    CHECK_EQ(sim_file_poke(m->world, STORE_PATH, at, &byte, 1), 0);
}

static void flip(const struct model_extent *x, uint32_t block)
{
    flip_at(x, block, 77);
}

/* As if these blocks had never reached the medium. */
static void lose(const struct model_extent *x, uint32_t first, uint32_t count)
{
    static const uint8_t zeros[BLOCK_SIZE];
    for (uint32_t i = 0; i < count; i++)
        CHECK_EQ(sim_file_poke(m->world, STORE_PATH, place_of(x, first + i), zeros,
                               sizeof zeros),
                 0);
}

/* The next extent of the same log. */
static struct model_extent *begin_extent(uint64_t last_number)
{
    struct model_extent *x = model_add(m);
    x->disk = x->epoch = 1;
    x->number = last_number;
    CHECK_EQ(store_create_extent(m->store, x->address, 1, 1, x->nonce, 4, false), 0);
    x->state = x->next = M_OPEN;
    return x;
}

static void append(struct model_extent *x, uint32_t batches, uint32_t blocks)
{
    for (uint32_t i = 0; i < batches; i++)
        CHECK_EQ(machine_append_wait(m, x, blocks), 0);
}

/* The batches 1 to BATCHES, all synced; the last one says what is flushed. */
static void fill_victim(uint64_t flushed)
{
    victim = begin_extent(0);
    append(victim, BATCHES, DATA); /* the first is the roll record */
    victim->flushed = flushed;
    append(victim, 1, DATA);
    CHECK_EQ(victim->submitted, BLOCKS);
    CHECK_EQ(machine_sync_wait(m), 0);
    space = runs_blocks(&extent_find(&m->store->extents, victim->address)->runs);
    CHECK(space > BLOCKS + SLAB_BLOCKS);
}

/* --- what is found --- */

static struct extent_info info_of(const struct model_extent *x)
{
    struct extent_info info;
    CHECK_EQ(store_extent_info(m->store, x->address, &info), 0);
    CHECK(info.state == EXTENT_STOPPED && info.restart_scanned);
    CHECK_EQ(info.durable, info.length);
    return info;
}

static int ignore(void *arg, const struct header *head, const struct entry *entries,
                  const struct roll_entry *rolls)
{
    (void)arg;
    (void)head;
    (void)entries;
    (void)rolls;
    return 0;
}

static uint32_t kept_pieces(const struct model_extent *x)
{
    return runs_pieces(&extent_find(&m->store->extents, x->address)->runs);
}

/* No slab is freed, and a walk meets the damage: the log is not taken for shorter. */
static void check_broken(const struct model_extent *x, uint32_t block)
{
    uint32_t end = 0;
    struct extent_info info = info_of(x);
    CHECK_EQ(kept_pieces(x), pieces_of(space));
    CHECK(info.length > block);
    CHECK_EQ(info.is_damaged, is_first);
    CHECK_EQ(store_walk_headers(m->store, x->address, ignore, NULL, &end),
             -PLX_EDAMAGED);
    CHECK_EQ(end, block);
}

/* It ends before that block, like after any crash. */
static void check_ended(const struct model_extent *x, uint32_t length)
{
    CHECK_EQ(info_of(x).length, length);
    CHECK_EQ(kept_pieces(x), pieces_of(length));
    check_blocks(m, (struct model_extent *)x, length);
    check_headers(m, (struct model_extent *)x, length);
}

/* All can be read, and only one block is not what it was. */
static void check_reads(uint32_t length, uint32_t bad_block)
{
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    for (uint32_t i = 0; i < length; i++) {
        CHECK_EQ(machine_read(m, address_plus(victim->address, i), 1, 1, bytes), 0);
        CHECK_EQ(crc32c(bytes, BLOCK_SIZE) == victim->crc[i], i != bad_block);
    }
    free(bytes);
}

/* --- rot in a header --- */

/* All but the last batch are flushed. */
static void act_header(struct body *body)
{
    (void)body;
    fill_victim(BATCHES - 1);
    flip(victim, target);
}

/* The roll record and others; they are known for what they were. */
static void act_both(struct body *body)
{
    (void)body;
    fill_victim(BATCHES - 1);
    for (uint32_t block = 0; block <= target; block++)
        if (block == 0 || (block - 1) % (DATA + 1) == 0)
            flip_at(victim, block, 500); /* neither its nonce nor its place */
}

static void check_both(struct body *body)
{
    uint8_t headers[BITMAP_BYTES];
    (void)body;
    check_broken(victim, 0);
    CHECK_EQ(info_of(victim).length, BLOCKS);
    CHECK_EQ(store_headers_map(m->store, victim->address, headers), 0);
    for (uint32_t i = 0; i < BLOCKS; i++)
        CHECK_EQ(bitmap_get(headers, i), i == 0 || (i - 1) % (DATA + 1) == 0);
}

static void check_header(struct body *body)
{
    (void)body;
    check_broken(victim, target);
    CHECK_EQ(info_of(victim).length, BLOCKS); /* what is behind it can be read */
    check_reads(BLOCKS, target);
}

/* Of the last one nobody says that it was flushed. */
static void check_last(struct body *body)
{
    (void)body;
    check_ended(victim, HEADER(BATCHES - 1));
}

/* --- rot in data --- */

static void check_data(struct body *body)
{
    (void)body;
    CHECK_EQ(info_of(victim).length, BLOCKS);
    CHECK_EQ(info_of(victim).is_damaged, is_first);
    check_headers(m, victim, BLOCKS);
    check_reads(BLOCKS, target);
}

/* --- no damage: the batch was not synced, a later one reached the medium first --- */

static void act_lost(struct body *body)
{
    (void)body;
    fill_victim(target / (DATA + 1)); /* of those before it */
    lose(victim, target, DATA + 1);
}

/* Its header got there, of its data only some. */
static void act_torn(struct body *body)
{
    (void)body;
    fill_victim(target / (DATA + 1));
    lose(victim, target + 3, DATA - 2);
}

static void check_lost(struct body *body)
{
    (void)body;
    check_ended(victim, target);
}

/* --- what another extent says --- */

/* The next extent's headers tell what is flushed of this one. */
static void act_next(struct body *body)
{
    (void)body;
    fill_victim(0);
    struct model_extent *next = begin_extent(BATCHES);
    append(next, 2, DATA);
    next->flushed = BATCHES;
    append(next, 1, DATA);
    flip(victim, target);
}

/* Its roll record does: what was flushed when a forced roll decided the length. The
 * batches behind that were written again, and flushed there. */
static void act_rolled(struct body *body)
{
    uint64_t flushed = *(uint64_t *)body->arg;
    fill_victim(0);
    struct model_extent *next = begin_extent(flushed);
    next->flushed = flushed;
    next->roll_count = 1;
    next->rolls[0] = (struct roll_entry){
        .extent = victim->address,
        .length = HEADER((uint32_t)flushed),
        .last_number = flushed,
    };
    append(next, 1 + BATCHES - (uint32_t)flushed, DATA);
    next->flushed = BATCHES;
    append(next, 1, DATA);
    flip(victim, target);
}

static void check_kept(struct body *body)
{
    (void)body;
    CHECK_EQ(info_of(victim).length, target);
    CHECK_EQ(kept_pieces(victim), pieces_of(space));
}

/* --- */

static void body_space(struct body *body)
{
    (void)body;
    check_space(m);
}

/* What was done is found by the next process, and the same by the one after it. */
static void run(void (*act)(struct body *body), void (*check)(struct body *body),
                void *arg)
{
    m = machine_create(7, 64 * SLAB_BYTES);
    m->no_idle_work = true;
    machine_run(m, body_open);
    CHECK_EQ(m->open_result, 0);
    m->body.arg = arg;
    machine_more(m, act);
    for (uint32_t i = 0; i < 2; i++) {
        machine_end(m, SIM_KILL);
        is_first = i == 0;
        machine_run(m, body_open);
        CHECK_EQ(m->open_result, 0);
        machine_more(m, check);
        machine_more(m, body_space);
    }
}

/* What a killed process had allocated is not released: in a child of its own. */
static void scenario(void (*act)(struct body *body), void (*check)(struct body *body),
                     void *arg)
{
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        run(act, check, arg);
        _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fprintf(stderr, "with block %u\n", target);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static bool is_head(uint32_t block)
{
    return block == 0 || (block - 1) % (DATA + 1) == 0;
}

int main(void)
{
    for (target = 0; target < HEADER(BATCHES - 1); target++)
        scenario(act_header, is_head(target) ? check_header : check_data, NULL);
    for (target = HEADER(BATCHES - 1); target < BLOCKS; target++)
        scenario(act_header, check_last, NULL);
    for (uint32_t batch = 0; batch < BATCHES; batch++) {
        target = HEADER(batch);
        scenario(act_lost, check_lost, NULL);
        scenario(act_torn, check_lost, NULL);
        if (batch > 0)
            scenario(act_next, check_kept, NULL);
    }
    for (uint32_t batch = 0; batch < BATCHES - 1; batch++) {
        target = HEADER(batch);
        scenario(act_both, check_both, NULL);
    }
    uint64_t flushed = 3;
    for (uint32_t batch = 1; batch < BATCHES; batch++) {
        target = HEADER(batch);
        scenario(act_rolled, batch < flushed ? check_kept : check_lost, &flushed);
    }
    return 0;
}
