/* SPDX-License-Identifier: Apache-2.0 */
/* A store whose file system has less room than it: it is full before a write finds that
 * out, leaves the metadata its part, and goes on when there is room. */
#include "tests/unit/store_machine.h"

#include <sys/wait.h>
#include <unistd.h>

#define CAPACITY   (256 * MIB)
#define BATCH      63U /* blocks and a header: a quarter of a slab */
#define KEPT       4U  /* slabs for compaction alone */
#define METADATA   allocate_reserve_bytes(CAPACITY)
#define A_WHILE_NS NS_PER_S

static struct machine *m;
static bool can_allocate;
static uint32_t appended; /* slabs */

static void make_room(uint64_t slabs)
{
    CHECK_EQ(sim_file_set_room(m->world, STORE_PATH, METADATA + slabs * SLAB_BYTES,
                               can_allocate),
             0);
}

static uint64_t room_left(void)
{
    struct file_space space;
    CHECK_EQ(file_space(m->store->file, &space), 0);
    return space.free_bytes;
}

static struct store_usage usage_of_store(void)
{
    struct store_usage usage;
    store_usage(m->store, &usage);
    CHECK_EQ(usage.used_bytes + usage.free_bytes + usage.withheld_bytes + SLAB_BYTES,
             CAPACITY);
    return usage;
}

/* Into new extents until the store says that it is full, and nothing else ever. */
static void append_until_full(void)
{
    struct model_extent *x = NULL;
    int result = 0;
    uint64_t batches = 0;
    while (result == 0) {
        if (x == NULL || x->submitted + BATCH + 1 > EXTENT_BLOCKS)
            result = machine_create_extent(m, 1, &x);
        if (result == 0)
            result = machine_append_wait(m, x, BATCH);
        batches += result == 0;
    }
    CHECK_EQ(result, -PLX_EFULL);
    appended = (uint32_t)(batches / 4);
}

static void full_then_room(struct body *body)
{
    (void)body;
    append_until_full();
    CHECK(appended + KEPT <= 20 && appended + KEPT >= 16);
    CHECK(usage_of_store().withheld_bytes >= 200 * SLAB_BYTES);
    CHECK(room_left() >= METADATA);
    append_until_full();
    CHECK_EQ(appended, 0);
    /* Who waits has it looked at again, and is told. */
    make_room(room_left() > METADATA ? 31 : 30);
    task_sleep_ns(A_WHILE_NS);
    CHECK(store_space_coming(m->store));
    task_sleep_ns(A_WHILE_NS);
    append_until_full();
    CHECK(appended >= 24 && appended <= 31);
    CHECK(room_left() >= METADATA);
    /* Nor does it need any for what was used before. */
    CHECK_EQ(store_delete_extent(m->store, m->extents[0]->address), 0);
    append_until_full();
    CHECK(appended > 4);
}

/* Another host, or recovery, does not wait here: it is refused, and tries again. */
static void full_for_others(struct body *body)
{
    (void)body;
    append_until_full();
    make_room(room_left() > METADATA ? 31 : 30);
    task_sleep_ns(A_WHILE_NS);
    append_until_full();
    CHECK_EQ(appended, 0);
    task_sleep_ns(A_WHILE_NS);
    append_until_full();
    CHECK(appended >= 24 && appended <= 31);
}

/* And who says what is free asks for nothing, least of all when it is full. */
static void full_unasked(struct body *body)
{
    (void)body;
    append_until_full();
    uint64_t withheld_bytes = usage_of_store().withheld_bytes;
    make_room(100000);
    task_sleep_ns(A_WHILE_NS);
    CHECK_EQ(usage_of_store().withheld_bytes, withheld_bytes);
    store_look_soon(m->store);
    task_sleep_ns(A_WHILE_NS);
    CHECK_EQ(usage_of_store().withheld_bytes, 0);
}

/* What was set aside is the store's, whoever fills the rest. */
static void others_fill(struct body *body)
{
    (void)body;
    CHECK_EQ(sim_file_set_room(m->world, STORE_PATH, 0, can_allocate), 0);
    append_until_full();
    CHECK(appended >= 60 - KEPT - 2);
}

static void append_some(struct body *body)
{
    (void)body;
    struct model_extent *x = NULL;
    CHECK_EQ(machine_create_extent(m, 1, &x), 0);
    for (uint32_t i = 0; i < 40; i++)
        CHECK_EQ(machine_append_wait(m, x, BATCH), 0);
    make_room(0);
}

/* It is after a restart, too. */
static void restarted(struct body *body)
{
    (void)body;
    append_until_full();
    CHECK(appended >= 60 - 10 - KEPT - 4);
}

static void endless(struct body *body)
{
    (void)body;
    CHECK_EQ(usage_of_store().withheld_bytes, 0);
    append_until_full();
    CHECK(appended >= 255 - KEPT - 1);
    task_sleep_ns(A_WHILE_NS); /* compaction finds nothing */
    CHECK(!store_space_coming(m->store));
}

/* A store made where all is free, and opened in a file system with so much room. */
static void begin(uint64_t seed, uint64_t slabs)
{
    m = machine_create(seed, CAPACITY);
    m->no_idle_work = seed % 2 == 0;
    machine_run(m, body_open);
    CHECK_EQ(m->open_result, 0);
    machine_more(m, body_close);
    machine_end(m, SIM_KILL);
    make_room(slabs);
    machine_run(m, body_open);
    CHECK_EQ(m->open_result, 0);
}

static void end(void)
{
    machine_more(m, body_close);
    machine_end(m, SIM_KILL);
    machine_destroy(m);
}

static void test_restart(uint64_t seed)
{
    begin(seed, 60);
    machine_more(m, append_some);
    machine_end(m, SIM_KILL);
    machine_run(m, body_open);
    CHECK_EQ(m->open_result, 0);
    machine_more(m, restarted);
    end();
}

/* LeakSanitizer would report what killed processes left, so it does not look. */
static void in_child(void (*test)(uint64_t seed), uint64_t seed)
{
    pid_t child = fork();
    int status;
    CHECK(child >= 0);
    if (child == 0) {
        test(seed);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
    for (uint64_t seed = 1; seed <= 4; seed++) {
        for (int i = 0; i < 2; i++) {
            can_allocate = i == 0;
            begin(seed, 20);
            machine_more(m, full_then_room);
            end();
            begin(seed, 20);
            machine_more(m, full_for_others);
            end();
            begin(seed, 20);
            machine_more(m, full_unasked);
            end();
        }
        can_allocate = true;
        begin(seed, 60);
        machine_more(m, others_fill);
        end();
        in_child(test_restart, seed);
        begin(seed, 100000);
        machine_more(m, endless);
        end();
    }
    return 0;
}
