/* SPDX-License-Identifier: Apache-2.0 */
/* Read locality: which leaves are worth rewriting, what reads tell of it, and that a
 * rewritten range lies in order and holds what it held, whatever else goes on. */
#include "cow/rewrite.h"
#include "tests/unit/disk_machine.h"

#include <sys/wait.h>

#define SIZE   (2 * MIB)
#define BLOCKS (SIZE / BLOCK_SIZE)

/* --- pure --- */

static void set_entry(struct map_node_format *leaf, unsigned i, uint64_t address,
                      uint32_t generation)
{
    leaf->entries[i] = (struct map_entry_format){
        .address = le64_of(address), .generation = le32_of(generation),
    };
}

static void test_leaf(void)
{
    struct map_node_format leaf = {0};
    bool wanted[MAP_FANOUT];
    CHECK(!rewrite_leaf_wanted(&leaf, 0, wanted)); /* nothing there */
    for (unsigned i = 0; i < MAP_FANOUT; i++)
        set_entry(&leaf, i, 5000 + i, 3);
    CHECK(!rewrite_leaf_wanted(&leaf, 2, wanted)); /* in order */
    for (unsigned i = 0; i < MAP_FANOUT; i++)
        set_entry(&leaf, i, i % 2 ? 0 : 5000 + i / 2, 3);
    CHECK(!rewrite_leaf_wanted(&leaf, 2, wanted)); /* in order, with holes */
    for (unsigned i = 0; i < MAP_FANOUT; i++)
        set_entry(&leaf, i, i % 3 ? 5000 + 2 * (255 - i) : 0, 3);
    CHECK(rewrite_leaf_wanted(&leaf, 2, wanted));
    for (unsigned i = 0; i < MAP_FANOUT; i++)
        CHECK_EQ(wanted[i], i % 3 != 0);
    CHECK(!rewrite_leaf_wanted(&leaf, 3, wanted)); /* a snapshot has it */
    set_entry(&leaf, 200, 77, 2);
    CHECK(!rewrite_leaf_wanted(&leaf, 2, wanted)); /* and one block of it */
}

static void test_streams(void)
{
    struct read_streams streams = {0};
    CHECK(!read_is_ordered(&streams, 0, 8));
    CHECK(read_is_ordered(&streams, 8, 16));
    CHECK(!read_is_ordered(&streams, 100, 108));
    CHECK(read_is_ordered(&streams, 16, 24)); /* both go on */
    CHECK(read_is_ordered(&streams, 108, 116));
    for (uint64_t i = 0; i < READ_STREAMS; i++)
        CHECK(!read_is_ordered(&streams, 1000 + 50 * i, 1001 + 50 * i));
    CHECK(!read_is_ordered(&streams, 24, 32)); /* forgotten */
}

/* --- on a machine --- */

static async void write_scattered(struct machine *m, struct disk *disk,
                                  struct model *model)
{
    uint32_t order[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++)
        order[i] = i;
    for (uint32_t i = BLOCKS - 1; i > 0; i--) {
        uint32_t j = (uint32_t)chance(m, i + 1), was = order[i];
        order[i] = order[j];
        order[j] = was;
    }
    for (uint32_t i = 0; i < BLOCKS; i++) {
        uint8_t *bytes = model->bytes + (uint64_t)order[i] * BLOCK_SIZE;
        if (order[i] % 64 == 63) /* some are never written */
            continue;
        memset(bytes, (int)(1 + chance(m, 255)), BLOCK_SIZE);
        CHECK_EQ(write_bytes_at(disk, (uint64_t)order[i] * BLOCK_SIZE, BLOCK_SIZE, bytes,
                                0),
                 0);
    }
}

/* Pieces that reading all of the disk in order takes. */
static async uint32_t pieces(struct disk *disk)
{
    uint32_t count = 0;
    uint64_t follows = 0;
    DO(disk_checkpoint(disk, &err));
    for (uint64_t block = 0; block < BLOCKS; block++) {
        struct map_span span;
        CHECK_EQ(map_get(disk->host->nodes, &disk->root, block, &span), 0);
        if (!span.leaf)
            continue;
        struct map_entry entry = map_span_entry(&span, block);
        node_put(disk->host->nodes, span.leaf);
        if (address_is_null(entry.address))
            continue;
        count += entry.address.v != follows;
        follows = entry.address.v + 1;
    }
    return count;
}

static async void read_in_order(struct disk *disk, uint32_t times)
{
    static uint8_t bytes[128 * KIB];
    for (uint32_t i = 0; i < times; i++)
        for (uint64_t at = 0; at < SIZE; at += sizeof bytes)
            CHECK_EQ(read_bytes_at(disk, at, sizeof bytes, bytes), 0);
}

static uint64_t rewritten_bytes(struct machine *m)
{
    return metric_counter(m->body.loop, "parallax_rewritten_bytes_total", "")->value;
}

static async struct disk *scattered_disk(struct machine *m, struct model *model)
{
    DO(disk_create(m->host, "d", SIZE, &err));
    struct disk *disk = attach(m, "d");
    write_scattered(m, disk, model);
    if (chance(m, 2) == 0)
        CHECK(pieces(disk) > 300);
    return disk;
}

static async void body_ordered(struct machine *m)
{
    struct model *model = model_create(SIZE);
    struct disk *disk = scattered_disk(m, model);
    read_in_order(disk, 1); /* once is not often enough */
    task_sleep_ns(200 * NS_PER_S);
    CHECK_EQ(rewritten_bytes(m), 0);
    read_in_order(disk, 2);
    task_sleep_ns(60 * NS_PER_S);
    CHECK_EQ(rewritten_bytes(m), SIZE / 64 * 63);
    check_content(disk, model);
    CHECK(pieces(disk) <= 5 * SIZE / MIB);
    check_content(disk, model);
    read_in_order(disk, 20); /* it is as it should be */
    task_sleep_ns(100 * NS_PER_S);
    CHECK_EQ(rewritten_bytes(m), SIZE / 64 * 63);
    disk_close(disk);
    check_clean(m);
    free(model);
}

static async void body_again(struct machine *m)
{
    struct model *model = m->arg;
    check_named(m, "d", model);
    check_clean(m);
}

/* Reads at random, and small ones, ask for nothing. */
static async void body_random_reads(struct machine *m)
{
    struct model *model = model_create(SIZE);
    struct disk *disk = scattered_disk(m, model);
    uint8_t bytes[32 * KIB];
    for (uint32_t i = 0; i < 1000; i++)
        CHECK_EQ(read_bytes_at(disk, chance(m, 30) * 2 * sizeof bytes, sizeof bytes,
                               bytes),
                 0);
    for (uint64_t at = 0; at < 4 * SIZE; at += BLOCK_SIZE)
        CHECK_EQ(read_bytes_at(disk, at % SIZE, BLOCK_SIZE, bytes), 0);
    task_sleep_ns(200 * NS_PER_S);
    CHECK_EQ(rewritten_bytes(m), 0);
    disk_close(disk);
    free(model);
}

/* What a snapshot shares stays where it is; and so it does when the snapshot comes at
 * the worst moment. */
static async void body_shared(struct machine *m)
{
    struct model *model = model_create(SIZE);
    struct disk *disk = scattered_disk(m, model);
    DO(snapshot_create(m->host, "d", "s", &err));
    read_in_order(disk, 5);
    task_sleep_ns(200 * NS_PER_S);
    CHECK_EQ(rewritten_bytes(m), 0);
    DO(disk_checkpoint(disk, &err));
    read_in_order(disk, 5);
    task_sleep_ns(200 * NS_PER_S);
    CHECK_EQ(rewritten_bytes(m), 0);
    disk_close(disk);
    check_named(m, "d@s", model);
    free(model);
}

/* A range that is written all the time is never cold. */
static async void body_hot(struct machine *m)
{
    struct model *model = model_create(SIZE);
    struct disk *disk = scattered_disk(m, model);
    for (uint32_t i = 0; i < 20; i++) {
        read_in_order(disk, 1);
        CHECK_EQ(write_bytes_at(disk, 0, BLOCK_SIZE, model->bytes, 0), 0);
        CHECK_EQ(write_bytes_at(disk, MIB, BLOCK_SIZE, model->bytes + MIB, 0), 0);
        task_sleep_ns(30 * NS_PER_S);
    }
    CHECK_EQ(rewritten_bytes(m), 0);
    check_content(disk, model);
    disk_close(disk);
    free(model);
}

/* Changes of every kind, snapshots, growing and shrinking, while it works: the rewriter
 * is kept busy by reads and a clock that runs between the changes. */
static async void body_beside(struct machine *m)
{
    struct model *model = model_create(SIZE), *then = NULL;
    struct disk *disk = scattered_disk(m, model);
    m->arg = model;
    for (uint32_t round = 0; round < 12; round++) {
        read_in_order(disk, 3);
        task_sleep_ns(60 * NS_PER_S + chance(m, 11 * NS_PER_S));
        /* About when the timer fires: in small steps across it. */
        for (uint32_t i = 0; i < 40; i++) {
            random_round(m, disk, model);
            task_sleep_ns(chance(m, 400) * NS_PER_MS);
        }
        if (round == 5) {
            DO(snapshot_create(m->host, "d", "s", &err));
            then = model_copy(model);
        }
        check_content(disk, model);
    }
    check_content(disk, model);
    disk_close(disk);
    check_named(m, "d@s", then);
    check_clean(m);
    free(then);
}

/* The rewriter's one step by hand, with changes at every moment of it. */
struct change_task {
    struct task_call call;
    struct machine *m;
    struct disk *disk;
    struct model *model;
    bool over;
};

static async void change_main(struct task_call *call)
{
    struct change_task *task = container_of(call, struct change_task, call);
    for (uint32_t i = 0; i < 60; i++) {
        task_sleep_ns(chance(task->m, 300) * NS_PER_US);
        random_round(task->m, task->disk, task->model);
    }
    task->over = true;
}

static async void body_race(struct machine *m)
{
    struct model *model = model_create(SIZE);
    struct disk *disk = scattered_disk(m, model);
    m->arg = model;
    for (uint32_t round = 0; round < 4; round++) {
        struct change_task task = {
            .call = {.main = change_main, .name = "changes", .system = true},
            .m = m, .disk = disk, .model = model,
        };
        uint64_t before = rewritten_bytes(m);
        task_sleep_ns(100 * NS_PER_S);
        write_scattered(m, disk, model);
        read_in_order(disk, 4);
        task_sleep_ns(70 * NS_PER_S);
        /* Ready to begin: the ranges are cold, the timer will fire. */
        read_in_order(disk, 4);
        while (rewritten_bytes(m) == before && disk->rewrite == NULL)
            task_sleep_ns(10 * NS_PER_US);
        task_start(m->body.loop, &task.call);
        while (!task.over)
            task_sleep_ns(NS_PER_MS);
        check_content(disk, model);
    }
    disk_close(disk);
    check_clean(m);
}

/* Power is cut while it works: what was flushed is there. */
static async void body_cut(struct machine *m)
{
    struct model *model = model_create(SIZE);
    struct disk *disk = scattered_disk(m, model);
    CHECK_EQ(flush(disk), 0);
    m->arg = model;
    task_sleep_ns(70 * NS_PER_S);
    read_in_order(disk, 4);
    while (disk->rewrite == NULL)
        task_sleep_ns(10 * NS_PER_US);
    task_sleep_ns(chance(m, 20000) * NS_PER_US);
    m->body.is_over = true;
    task_sleep_ns(1000 * NS_PER_S);
}

static struct machine *machine_with(uint64_t seed)
{
    struct machine *m = machine_create(seed);
    m->options.no_idle_work = false;
    m->options.idle_close_ms = 3600000;
    return m;
}

static void run_body(struct machine *m, void (*run)(struct machine *m), enum sim_end how)
{
    machine_start(m, run);
    CHECK(sim_world_run_until(m->world, &m->body.is_over, 100000 * NS_PER_S));
    sim_process_end(m->body.loop, how);
}

static void run_one(void (*run)(struct machine *m), uint64_t seed)
{
    struct machine *m = machine_with(seed);
    run_body(m, run, SIM_KILL);
    if (m->arg) {
        run_body(m, body_again, SIM_KILL);
        free(m->arg);
    }
    machine_destroy(m);
}

/* What a killed process had allocated is not released: in a child of its own. */
static void in_child(void (*run)(uint64_t seed), uint64_t seed)
{
    int status = 0;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        run(seed);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
}

static void run_cut(uint64_t seed)
{
    struct machine *m = machine_with(seed);
    run_body(m, body_cut, SIM_POWER_CUT);
    run_body(m, body_again, SIM_KILL);
    free(m->arg);
    machine_destroy(m);
}

int main(int argc, char **argv)
{
    uint64_t seeds = argc > 1 ? strtoull(argv[1], NULL, 10) : seeds_of(4);
    test_leaf();
    test_streams();
    for (uint64_t seed = 1; seed <= seeds_of(4); seed++) {
        run_one(body_ordered, seed);
        run_one(body_random_reads, seed);
        run_one(body_shared, seed);
        run_one(body_hot, seed);
    }
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        run_one(body_beside, seed);
        run_one(body_race, seed);
        in_child(run_cut, seed);
    }
    return 0;
}
