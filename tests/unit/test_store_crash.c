/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store when processes die, power fails and devices return errors.
 *
 * Random work runs until it is cut off at a random event; then the store is opened again
 * and compared with the model: after a kill everything answered is there, after a power
 * cut everything synced is, and never anything else.
 *
 *     test_store_crash [FIRST_SEED [COUNT]]
 */
#include <sys/wait.h>

#include "tests/unit/store_machine.h"

#define SEEDS        200U
#define SEEDS_FORKED 25U /* what a dead process had allocated is not released */
#define ROUNDS       6U
#define WORKERS      3U

static struct machine *m;

/* --- random work --- */

static struct model_extent *pick(enum model_state state)
{
    struct model_extent *found = NULL;
    uint32_t seen = 0;
    for (uint32_t i = 0; i < m->count; i++)
        if (m->extents[i]->state == state && m->extents[i]->next == state &&
            !m->extents[i]->is_busy && chance(m, ++seen) == 0)
            found = m->extents[i];
    return found;
}

static uint32_t count_open(void)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < m->count; i++)
        count += m->extents[i]->state == M_OPEN;
    return count;
}

static void work_append(void)
{
    struct model_extent *x = pick(M_OPEN);
    if (x == NULL || x->was_full || m->inflight > 12)
        return;
    uint32_t blocks = 1 + chance(m, chance(m, 4) == 0 ? 120 : 12);
    if (x->submitted + blocks + 1 <= EXTENT_BLOCKS)
        machine_append(m, x, blocks, NULL, NULL);
}

static void work_stop(void)
{
    struct model_extent *x = pick(M_OPEN);
    uint32_t length = 0;
    bool scanned = true;
    if (x == NULL)
        return;
    x->next = M_STOPPED;
    CHECK_EQ(store_stop_extent(m->store, x->address, &length, &scanned), 0);
    CHECK(!scanned && length == x->answered && length <= x->submitted);
    x->stopped = x->synced = length;
    x->submitted = length;
    x->state = M_STOPPED;
}

static void work_finalize(void)
{
    struct model_extent *x = pick(M_STOPPED);
    if (x == NULL || x->stopped == 0)
        return;
    x->next = M_FINAL;
    x->final = end_at_most(x, 1 + chance(m, x->stopped));
    CHECK_EQ(store_finalize_extent(m->store, x->address, x->final), 0);
    x->state = M_FINAL;
}

static void work_trim(void)
{
    struct model_extent *x = pick(M_FINAL);
    uint32_t blocks[40], count = 0;
    if (x == NULL)
        return;
    uint32_t first = chance(m, 2) * chance(m, x->final);
    for (uint32_t at = first; at < x->final && count < 40; at += 1 + chance(m, 5))
        if (!is_header(x, at)) /* which the store would ignore */
            blocks[count++] = at;
    for (uint32_t i = 0; i < count; i++)
        bitmap_set(x->trimmed, blocks[i]);
    bool headers = !x->headers_trimmed && chance(m, 3) == 0;
    for (uint32_t at = 0; at < x->final && headers; at++)
        if (is_header(x, at))
            bitmap_set(x->trimmed, at);
    x->headers_trimmed |= headers;
    bool all = bitmap_rank(x->trimmed, x->final) == x->final;
    if (all)
        x->next = M_DELETED;
    x->is_busy = true;
    CHECK_EQ(store_trim(m->store, x->address, blocks, count), 0);
    if (headers)
        CHECK_EQ(store_trim_headers(m->store, x->address), 0);
    x->is_busy = false;
    if (!all)
        return;
    struct extent_info info;
    bool is_gone = store_extent_info(m->store, x->address, &info) == -PLX_EMISSING;
    CHECK(is_gone || x->trims_lost);
    x->state = x->next = is_gone ? M_DELETED : M_FINAL;
}

/* A part of one, or all. It goes on while others trim and delete it. */
static void work_compact(void)
{
    struct model_extent *x = pick(M_FINAL);
    if (x == NULL)
        return;
    uint32_t pieces = pieces_of(x->final), from = 0, to = EXTENT_PIECES;
    if (chance(m, 2) == 0) {
        from = chance(m, pieces + 1);
        to = from + chance(m, pieces + 1 - from);
    }
    int result = machine_compact(m, x, from, to, chance(m, 2) == 0);
    CHECK(result == 0 || result == -PLX_EPRECONDITION || result == -PLX_EMISSING ||
          result == -PLX_EFULL);
}

static void work_delete(void)
{
    struct model_extent *x = pick(chance(m, 2) == 0 ? M_FINAL : M_STOPPED);
    if (x == NULL)
        return;
    x->next = M_DELETED;
    CHECK_EQ(store_delete_extent(m->store, x->address), 0);
    x->state = M_DELETED;
}

static void work_create(void)
{
    struct model_extent *x = NULL;
    if (count_open() >= OPENS_MAX || m->count == MODEL_MAX)
        return;
    int result = machine_create_extent(m, 1 + chance(m, 3), &x);
    CHECK(result == 0 || result == -PLX_EFULL);
    if (result < 0) {
        x->next = M_ABSENT;
        return;
    }
    machine_append(m, x, 0, NULL, NULL);
}

static void work_read(void)
{
    struct model_extent *x = pick(chance(m, 2) == 0 ? M_OPEN : M_FINAL);
    if (x == NULL)
        return;
    x->is_busy = true;
    check_blocks(m, x, x->state == M_OPEN ? x->answered : x->final);
    x->is_busy = false;
}

static void work_main(struct task_call *call)
{
    (void)call;
    for (;;) {
        switch (chance(m, 40)) {
        case 0:
            work_stop();
            break;
        case 1:
            work_finalize();
            break;
        case 2:
        case 3:
        case 13:
            work_trim();
            break;
        case 14:
        case 15:
            work_compact();
            break;
        case 4:
            work_delete();
            break;
        case 5:
        case 6:
            work_create();
            break;
        case 7:
        case 8:
            work_read();
            break;
        case 9:
        case 10:
        case 11:
            if (m->syncs < 4)
                machine_sync(m, NULL, NULL);
            break;
        case 12:
            task_sleep_ns(chance(m, 300) * NS_PER_MS);
            break;
        default:
            work_append();
            task_sleep_ns(chance(m, 200) * NS_PER_US);
        }
    }
}

/* Several at once, so that space one gives up is at once taken by another. */
static void start_work(void)
{
    static struct task_call calls[WORKERS];
    for (uint32_t i = 0; i < WORKERS; i++) {
        calls[i] = (struct task_call){.main = work_main, .name = "work"};
        task_start(m->body.loop, &calls[i]);
    }
}

static void body_check(struct body *body)
{
    (void)body;
    enum sim_end how = *(enum sim_end *)m->body.arg;
    for (uint32_t i = 0; i < m->count; i++)
        check_after_restart(m, m->extents[i], how);
    check_space(m);
}

static void run_steps(uint64_t steps)
{
    for (uint64_t i = 0; i < steps && sim_world_step(m->world); i++)
        ;
}

static void one_seed(uint64_t seed)
{
    m = machine_create(seed, (24 + seed % 3 * 20) * SLAB_BYTES);
    m->no_idle_work = seed % 2 == 0;
    machine_run(m, body_open);
    CHECK_EQ(m->open_result, 0);
    /* What is usually quick comes late: records after the data in the space they
     * reserve, syncs after later writes. */
    if (seed % 3 != 0)
        sim_world_faults(m->world)->stuck_ppm = 10000;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        start_work();
        run_steps(1 + chance(m, 6000));
        enum sim_end how = chance(m, 2) == 0 ? SIM_KILL : SIM_POWER_CUT;
        machine_end(m, how);
        /* Now and then it dies again before it is up. */
        while (chance(m, 4) == 0) {
            machine_start(m, body_open);
            run_steps(1 + chance(m, 60));
            enum sim_end again = chance(m, 2) == 0 ? SIM_KILL : SIM_POWER_CUT;
            how = how == SIM_POWER_CUT ? how : again;
            machine_end(m, again);
        }
        machine_run(m, body_open);
        CHECK_EQ(m->open_result, 0);
        m->body.arg = &how;
        machine_more(m, body_check);
    }
    machine_end(m, SIM_KILL);
}

/* --- one failure after the other --- */

/* What a script of all calls leaves when any of them may fail. */
static bool script_ok; /* no call has failed */

static int note(int result)
{
    script_ok = script_ok && result == 0;
    return result;
}

static void script_extent(struct model_extent *x)
{
    uint32_t length = 0;
    bool scanned = false;
    x->next = M_STOPPED;
    if (note(store_stop_extent(m->store, x->address, &length, &scanned)) < 0)
        return;
    CHECK(length >= x->synced && length == x->answered);
    x->stopped = x->synced = x->submitted = length;
    x->state = M_STOPPED;
    if (length < 3)
        return;
    x->next = M_FINAL;
    x->final = end_at_most(x, length - 1);
    if (note(store_finalize_extent(m->store, x->address, x->final)) < 0)
        return;
    x->state = M_FINAL;
    const uint32_t dead[] = {2, 3, 40};
    for (uint32_t i = 0; i < 3; i++)
        bitmap_set(x->trimmed, dead[i]);
    if (note(store_trim(m->store, x->address, dead, 3)) < 0)
        return;
    for (uint32_t at = 0; at < x->final; at++)
        if (is_header(x, at))
            bitmap_set(x->trimmed, at);
    x->headers_trimmed = true;
    if (x->final == 1)
        x->next = M_DELETED; /* nothing else is in it */
    if (note(store_trim_headers(m->store, x->address)) < 0 || x->final == 1)
        return;
    uint32_t pieces = pieces_of(x->final);
    if (note(machine_compact(m, x, pieces / 3, pieces / 2, false)) == 0)
        note(machine_compact(m, x, 0, EXTENT_PIECES, false));
}

static void body_script(struct body *body)
{
    (void)body;
    script_ok = true;
    machine_open(m);
    if (note(m->open_result) < 0)
        return;
    struct model_extent *x[3];
    for (uint32_t i = 0; i < 3; i++) {
        if (note(machine_create_extent(m, 1, &x[i])) < 0)
            return;
        /* Enough for several reservations. */
        for (uint32_t j = 0; j < 6; j++)
            if (note(machine_append_wait(m, x[i], 100)) < 0)
                break;
        note(machine_sync_wait(m));
    }
    script_extent(x[0]);
    x[1]->next = M_DELETED;
    if (note(store_delete_extent(m->store, x[1]->address)) == 0)
        x[1]->state = M_DELETED;
    struct store_usage usage;
    store_usage(m->store, &usage);
    if (!usage.failed)
        return;
    /* Out of service: everything but reads says so. */
    struct model_extent *y = NULL;
    CHECK_EQ(machine_create_extent(m, 1, &y), -PLX_EFAILED);
    CHECK_EQ(machine_sync_wait(m), -PLX_EFAILED);
    CHECK_EQ(store_delete_extent(m->store, x[0]->address), -PLX_EFAILED);
    y->next = M_ABSENT;
    if (x[0]->state == M_OPEN)
        check_blocks(m, x[0], x[0]->answered);
}

/* A failed sync leaves what it covered in doubt; what had been synced stays. */
static void failure_loop(uint64_t seed, enum sim_end how)
{
    for (int64_t n = 0;; n++) {
        m = machine_create(seed + (uint64_t)n, 32 * SLAB_BYTES);
        m->no_idle_work = true;
        machine_run(m, body_open);
        CHECK_EQ(m->open_result, 0);
        machine_more(m, body_close);
        machine_end(m, SIM_KILL);
        sim_fail_nth_io(m->world, n);
        machine_run(m, body_script);
        bool happened = sim_failure_happened(m->world);
        sim_fail_nth_io(m->world, -1);
        machine_end(m, how);
        machine_run(m, body_open);
        CHECK_EQ(m->open_result, 0);
        m->body.arg = &how;
        machine_more(m, body_check);
        machine_end(m, SIM_KILL);
        if (!happened) {
            CHECK(script_ok);
            CHECK(n > 30);
            return;
        }
    }
}

/* Making a store fails at each step: then there is none, or a whole one. */
static void create_failure_loop(void)
{
    for (int64_t n = 0;; n++) {
        m = machine_create((uint64_t)n + 1, 32 * SLAB_BYTES);
        sim_fail_nth_io(m->world, n);
        machine_run(m, body_open);
        bool happened = sim_failure_happened(m->world);
        sim_fail_nth_io(m->world, -1);
        int first = m->open_result;
        machine_end(m, n % 2 == 0 ? SIM_KILL : SIM_POWER_CUT);
        CHECK(happened || first == 0);
        machine_run(m, body_open);
        if (m->open_result < 0)
            CHECK(first < 0);
        machine_end(m, SIM_KILL);
        if (!happened)
            return;
    }
}

/* The scan of open extents meets errors: a read is repeated, nothing is lost. */
static void scan_failure_loop(void)
{
    for (int64_t n = 0;; n++) {
        enum sim_end how = SIM_KILL;
        m = machine_create((uint64_t)n + 1, 32 * SLAB_BYTES);
        m->no_idle_work = true;
        machine_run(m, body_script);
        machine_end(m, how);
        sim_fail_nth_io(m->world, n);
        machine_run(m, body_open);
        bool happened = sim_failure_happened(m->world);
        sim_fail_nth_io(m->world, -1);
        if (m->open_result < 0) {
            CHECK(happened);
            machine_end(m, how);
            machine_run(m, body_open);
            CHECK_EQ(m->open_result, 0);
        }
        m->body.arg = &how;
        machine_more(m, body_check);
        machine_end(m, SIM_KILL);
        if (!happened)
            return;
    }
}

/* --- a write fails in the middle --- */

static void body_failing_writes(struct body *body)
{
    (void)body;
    struct model_extent *x = NULL;
    CHECK_EQ(machine_create_extent(m, 64, &x), 0);
    CHECK_EQ(machine_append_wait(m, x, 0), 0);
    sim_world_faults(m->world)->write_error_ppm = 150000;
    for (uint32_t i = 0; i < 60; i++) {
        machine_append(m, x, 1 + chance(m, 9), NULL, NULL);
        if (x->was_cut)
            break;
        if (chance(m, 3) == 0)
            task_sleep_ns(chance(m, 100) * NS_PER_US);
    }
    while (m->inflight > 0)
        task_sleep_ns(NS_PER_MS);
    sim_world_faults(m->world)->write_error_ppm = 0;
    CHECK(x->was_cut); /* and append_over saw nothing succeed after it */
    x->submitted = x->answered;
    CHECK_EQ(machine_append_wait(m, x, 1), -PLX_ESTOPPED);
    uint32_t length = 0;
    bool scanned = true;
    CHECK_EQ(store_stop_extent(m->store, x->address, &length, &scanned), 0);
    CHECK_EQ(length, x->answered);
    check_blocks(m, x, length);
    check_headers(m, x, length);
}

static void failing_writes(void)
{
    for (uint64_t seed = 1; seed <= 30; seed++) {
        m = machine_create(seed, 80 * SLAB_BYTES);
        m->no_idle_work = true;
        machine_run(m, body_open);
        machine_more(m, body_failing_writes);
        machine_end(m, SIM_KILL);
    }
}

/* --- recycled slabs and forged headers --- */

/* How a forged block came by what it needs to pass. */
enum forgery { FORGED_PERFECTLY, FORGED_NONCE, FORGED_CHAIN, FORGED_EXTENT, FORGERIES };

static struct model_extent *victim;
static enum forgery forgery;

/* An old extent whose data holds, at block 12 of its slab, a header that claims to be
 * the next one of a later extent in the same slab. */
static void body_forge(struct body *body)
{
    (void)body;
    struct model_extent *old = NULL;
    CHECK_EQ(machine_create_extent(m, 1, &old), 0);
    CHECK_EQ(machine_append_wait(m, old, 0), 0);
    CHECK_EQ(machine_append_wait(m, old, 30), 0);
    uint64_t slab = extent_find(&m->store->extents, old->address)->runs.at[0].start *
                    PIECE_BYTES;
    CHECK_EQ(store_delete_extent(m->store, old->address), 0);
    old->state = old->next = M_DELETED;
    CHECK_EQ(machine_create_extent(m, 1, &victim), 0);
    CHECK_EQ(extent_find(&m->store->extents, victim->address)->runs.at[0].start *
                 PIECE_BYTES,
             slab);
    CHECK_EQ(machine_append_wait(m, victim, 0), 0);
    CHECK_EQ(machine_append_wait(m, victim, 10), 0);
    CHECK_EQ(victim->submitted, 12);
    struct header head = {
        .kind = HEADER_BATCH,
        .cluster = CLUSTER_UID,
        .disk = victim->disk,
        .extent = forgery == FORGED_EXTENT ? old->address : victim->address,
        .block = 12,
        .epoch = victim->epoch,
        .number = victim->number + 1,
        .nonce = victim->nonce + (forgery == FORGED_NONCE),
        .previous_crc = victim->previous_crc + (forgery == FORGED_CHAIN),
    };
    uint8_t block[BLOCK_SIZE];
    header_encode(&head, NULL, block);
    CHECK_EQ(
        sim_file_poke(m->world, STORE_PATH, slab + 12 * BLOCK_SIZE, block, sizeof block),
        0);
}

static void body_found(struct body *body)
{
    (void)body;
    struct extent_info info;
    CHECK_EQ(store_extent_info(m->store, victim->address, &info), 0);
    CHECK(info.restart_scanned);
    /* The perfect one shows that the others failed for the right reason. */
    CHECK_EQ(info.length, forgery == FORGED_PERFECTLY ? 13 : 12);
}

static void forgeries(void)
{
    for (forgery = FORGED_PERFECTLY; forgery < FORGERIES; forgery++) {
        m = machine_create(forgery + 1, 32 * SLAB_BYTES);
        m->no_idle_work = true;
        machine_run(m, body_open);
        machine_more(m, body_forge);
        machine_end(m, SIM_KILL);
        machine_run(m, body_open);
        CHECK_EQ(m->open_result, 0);
        machine_more(m, body_found);
        machine_end(m, SIM_KILL);
    }
}

/* --- rot --- */

static void body_three_batches(struct body *body)
{
    (void)body;
    CHECK_EQ(machine_create_extent(m, 1, &victim), 0);
    for (uint32_t i = 0; i < 4; i++)
        CHECK_EQ(machine_append_wait(m, victim, 5), 0);
    struct extent *e = extent_find(&m->store->extents, victim->address);
    uint8_t byte = 0;
    uint64_t at = e->runs.at[0].start * PIECE_BYTES +
                  *(uint32_t *)m->body.arg * BLOCK_SIZE;
    CHECK_EQ(sim_file_peek(m->world, STORE_PATH, at, &byte, 1), 0);
    byte ^= 4;
    CHECK_EQ(sim_file_poke(m->world, STORE_PATH, at, &byte, 1), 0);
}

static void body_cut(struct body *body)
{
    (void)body;
    struct extent_info info;
    uint32_t block = *(uint32_t *)m->body.arg;
    CHECK_EQ(store_extent_info(m->store, victim->address, &info), 0);
    CHECK_EQ(info.length, block == 0 ? 0 : 1 + (block - 1) / 6 * 6);
}

/* A scan ends before the batch with the rot, whichever block it is in. */
static void rot(void)
{
    for (uint32_t block = 0; block < 19; block++) {
        m = machine_create(block + 1, 32 * SLAB_BYTES);
        m->no_idle_work = true;
        machine_run(m, body_open);
        m->body.arg = &block;
        machine_more(m, body_three_batches);
        machine_end(m, SIM_KILL);
        machine_run(m, body_open);
        m->body.arg = &block;
        machine_more(m, body_cut);
        machine_end(m, SIM_KILL);
    }
}

/* --- */

static void in_child(void (*run)(uint64_t arg), uint64_t arg)
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        run(arg);
        _exit(0);
    }
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void run_seeds(uint64_t first)
{
    for (uint64_t seed = first; seed < first + SEEDS_FORKED; seed++) {
        if (getenv("VERBOSE") != NULL)
            fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
        one_seed(seed);
    }
}

static void run_scenario(uint64_t number)
{
    switch (number) {
    case 0:
        failure_loop(1, SIM_KILL);
        break;
    case 1:
        failure_loop(1000, SIM_POWER_CUT);
        break;
    case 2:
        create_failure_loop();
        break;
    case 3:
        scan_failure_loop();
        break;
    case 4:
        failing_writes();
        break;
    case 5:
        forgeries();
        break;
    default:
        rot();
    }
}

int main(int argc, char **argv)
{
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 0) : seeds_of(SEEDS);
    if (argc == 2) {
        one_seed(first);
        return 0;
    }
    for (uint64_t number = 0; argc == 1 && number <= 6; number++)
        in_child(run_scenario, number);
    for (uint64_t seed = first; seed < first + count; seed += SEEDS_FORKED)
        in_child(run_seeds, seed);
    return 0;
}
