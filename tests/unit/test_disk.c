/* SPDX-License-Identifier: Apache-2.0 */
/* Disks from one end to the other, on a simulated machine, against a model. */
#include "tests/unit/disk_machine.h"

#include <sys/wait.h>

#define SIZE (2 * MIB)

/* --- reading and writing --- */

static async void body_alignments(struct machine *m)
{
    static const uint64_t edges[] = {0, 1, 511, 512, 4095, 4096, 4097, 8191, 8192, 12288};
    struct model *model = model_create(64 * KIB);
    static uint8_t data[64 * KIB];
    DO(disk_create(m->host, "d", model->size_bytes, &err));
    struct disk *disk = attach(m, "d");
    check_content(disk, model);
    for (size_t i = 0; i < ARRAY_LEN(edges); i++) {
        for (size_t j = i + 1; j < ARRAY_LEN(edges); j++) {
            uint64_t offset = edges[i], len = edges[j] - edges[i];
            fill(m, data, len);
            memcpy(model->bytes + offset, data, len);
            CHECK_EQ(write_bytes_at(disk, offset, len, data, 0), 0);
            static uint8_t back[64 * KIB];
            CHECK_EQ(read_bytes_at(disk, offset, len, back), 0);
            CHECK(memcmp(back, data, len) == 0);
            uint64_t hole = chance(m, 3);
            if (hole > 0) {
                enum disk_op kind = hole == 1 ? DISK_TRIM : DISK_ZERO;
                offset += len / 2;
                len = chance(m, 20000);
                model_zero(model, kind, offset, len);
                CHECK_EQ(change(disk, kind, offset, len), 0);
            }
            check_content(disk, model);
            check_status(disk, model, 0, model->size_bytes, 1 + (uint32_t)chance(m, 60));
            check_status(disk, model, offset, 4097, 3);
        }
    }
    CHECK_EQ(flush(disk), 0);
    disk_close(disk);
    free(model);
}

static async void body_refusals(struct machine *m)
{
    static uint8_t data[8192] = {1};
    struct disk *disk;
    DO(disk_create(m->host, "d", 64 * KIB, &err));
    DO_FAILS(disk_create(m->host, "d", 64 * KIB, &err), -PLX_EEXISTS);
    DO_FAILS(disk_create(m->host, "a@b", 64 * KIB, &err), -PLX_ENAME);
    DO_FAILS(disk_create(m->host, "e", 0, &err), -EINVAL);
    DO_FAILS(disk_create(m->host, "e", 1000, &err), -EINVAL);
    DO_FAILS(disk_create(m->host, "e", DISK_BYTES_MAX + BLOCK_SIZE, &err), -EINVAL);
    DO_FAILS(disk_open(m->host, "nobody", DISK_READ_WRITE, &disk, &err), -PLX_EMISSING);
    DO_FAILS(disk_open(m->host, "d@nobody", DISK_READ_ONLY, &disk, &err), -PLX_EMISSING);
    disk = attach(m, "d");
    CHECK_EQ(write_bytes_at(disk, 64 * KIB - 100, 101, data, 0), -ENOSPC);
    CHECK_EQ(read_bytes_at(disk, 64 * KIB, 1, data), -EINVAL);
    CHECK_EQ(change(disk, DISK_ZERO, 64 * KIB, 1), -ENOSPC);
    CHECK_EQ(change(disk, DISK_TRIM, UINT64_MAX, 2), -EINVAL);
    CHECK_EQ(write_bytes_at(disk, 64 * KIB, 0, data, 0), 0);
    DO(snapshot_create(m->host, "d", "s", &err));
    DO_FAILS(snapshot_create(m->host, "d", "s", &err), -PLX_EEXISTS);
    DO_FAILS(disk_open(m->host, "d@s", DISK_READ_WRITE, &disk, &err), -EROFS);
    struct disk *snapshot = attach(m, "d@s");
    CHECK_EQ(write_bytes_at(snapshot, 0, 1, data, 0), -EROFS);
    CHECK_EQ(flush(snapshot), 0);
    disk_close(snapshot);
    disk_close(disk);
}

static async void body_random(struct machine *m)
{
    struct model *model = m->arg;
    if (cluster_disk_by_name(cluster_state(m->host->cluster), "d") == NULL)
        DO(disk_create(m->host, "d", model->size_bytes, &err));
    struct disk *disk = attach(m, "d");
    check_content(disk, model);
    for (uint32_t i = 0; i < 12; i++) {
        random_rounds(m, disk, model, 20);
        uint64_t offset = chance(m, SIZE);
        check_status(disk, model, offset, 1 + chance(m, SIZE - offset), 64);
        check_content(disk, model);
    }
    disk_close(disk);
    check_clean(m);
    CHECK(m->host->checkpoints->value > 0);
}

/* Small budgets: checkpoints run all the time, and changes wait for them. */
static void test_random(void)
{
    for (uint64_t seed = 1; seed <= seeds_of(6); seed++) {
        struct machine *m = machine_create(seed);
        m->options.checkpoint_log_bytes = (64 * KIB) << seed;
        if (seed % 2 == 0)
            m->options.overlay_bytes = 8 * KIB;
        if (seed % 3 == 0)
            m->options.node_cache_bytes = 4 * BLOCK_SIZE;
        m->arg = model_create(SIZE);
        for (uint32_t i = 0; i < 3; i++)
            machine_run(m, body_random);
        free(m->arg);
        machine_destroy(m);
    }
}

static uint64_t find_id(struct machine *m, const char *name)
{
    const struct cluster_disk *disk =
        cluster_disk_by_name(cluster_state(m->host->cluster), name);
    CHECK(disk != NULL);
    return disk->id;
}

/* Everything is given back: overlay, buffers, retained batches. */
static async void body_budgets(struct machine *m)
{
    struct model *model = model_create(SIZE);
    DO(disk_create(m->host, "d", SIZE, &err));
    random_named(m, "d", model, 30);
    check_named(m, "d", model);
    DO(disk_shut(m->host, find_id(m, "d"), &err));
    CHECK_EQ(m->host->overlay.used_bytes, 0);
    CHECK_EQ(m->host->overlay.leaf_count, 0);
    CHECK_EQ(m->host->retained.used_bytes, 0);
    CHECK_EQ(buffer_pool_used_bytes(m->host->front_buffers), 0);
    CHECK_EQ(buffer_pool_used_bytes(m->host->log_buffers), 0);
    check_named(m, "d", model);
    free(model);
}

/* An idle disk closes by itself, and a lone checkpoint does not run for ever. */
static async void body_idle(struct machine *m)
{
    struct model *model = model_create(SIZE);
    struct host_status status;
    DO(disk_create(m->host, "d", SIZE, &err));
    random_named(m, "d", model, 60);
    host_status(m->host, &status);
    CHECK_EQ(status.open_disk_count, 1);
    uint64_t before = m->host->checkpoints->value;
    task_sleep_ns(30 * NS_PER_S);
    host_status(m->host, &status);
    CHECK_EQ(status.open_disk_count, 0);
    CHECK(m->host->checkpoints->value <= before + 3);
    check_named(m, "d", model);
    free(model);
}

/* --- out of service --- */

/* When the metadata cannot be written any more, changes fail; reads go on, of what was
 * answered, whether it is in the map or not, as long as the disk is open. */
static async void body_failed(struct machine *m)
{
    struct model *model = model_create(SIZE);
    struct host_status status;
    struct error failed = {0};
    DO(disk_create(m->host, "d", SIZE, &err));
    random_named(m, "d", model, 60);
    struct disk *disk = attach(m, "d");
    DO(disk_checkpoint(disk, &err));
    random_named(m, "d", model, 60);
    sim_world_faults(m->world)->kv_error_ppm = 1000000;
    CHECK_EQ(disk_create(m->host, "e", SIZE, &failed), -PLX_EFAILED);
    CHECK(disk_checkpoint(disk, &failed) < 0);
    CHECK_EQ(disk->down, -PLX_EFAILED);
    CHECK_EQ(change(disk, DISK_ZERO, 0, BLOCK_SIZE), -PLX_EFAILED);
    CHECK_EQ(change(disk, DISK_FLUSH, 0, 0), -PLX_EFAILED);
    check_content(disk, model);
    host_status(m->host, &status);
    CHECK(status.failed);
    disk_close(disk);
    DO_FAILS(disk_open(m->host, "d", DISK_READ_WRITE, &disk, &err), -PLX_EFAILED);
    free(model);
}

/* --- full --- */

#define CHUNK_BYTES (64 * KIB)

static void chunk_of(uint32_t n, uint8_t *bytes)
{
    for (uint32_t i = 0; i < CHUNK_BYTES; i++)
        bytes[i] = (uint8_t)(1 + n + i / BLOCK_SIZE);
}

static async void check_chunks(struct disk *disk, uint32_t count)
{
    static uint8_t expected[CHUNK_BYTES], data[CHUNK_BYTES];
    for (uint32_t i = 0; i < count; i++) {
        chunk_of(i, expected);
        CHECK_EQ(read_bytes_at(disk, i * CHUNK_BYTES, CHUNK_BYTES, data), 0);
        CHECK(memcmp(data, expected, CHUNK_BYTES) == 0);
    }
}

/* Larger than the store, written from the start on. */
static async void body_full(struct machine *m)
{
    uint32_t *count = m->arg, first = *count;
    static uint8_t data[CHUNK_BYTES];
    if (first == 0)
        DO(disk_create(m->host, "d", 64 * MIB, &err));
    struct disk *disk = attach(m, "d");
    check_chunks(disk, *count);
    int rc = 0;
    while (rc == 0) {
        chunk_of(*count, data);
        rc = write_bytes_at(disk, *count * CHUNK_BYTES, CHUNK_BYTES, data, 0);
        *count += rc == 0;
    }
    CHECK_EQ(err_to_errno(rc), ENOSPC);
    CHECK(*count * CHUNK_BYTES > first * CHUNK_BYTES + 10 * MIB);
    check_chunks(disk, *count);
    /* Discards may use the reserve; a snapshot may, too. */
    DO(snapshot_create(m->host, "d", first == 0 ? "one" : "two", &err));
    CHECK_EQ(flush(disk), 0);
    disk_close(disk);
    task_sleep_ns(30 * NS_PER_S);
    disk = attach(m, "d");
    check_chunks(disk, *count);
    disk_close(disk);
}

static void test_full(void)
{
    struct machine *m = machine_create(1);
    uint32_t count = 0;
    m->options.capacity_bytes = 24 * MIB;
    m->arg = &count;
    machine_run(m, body_full);
    m->options.capacity_bytes = 40 * MIB;
    machine_run(m, body_full);
    machine_destroy(m);
}

/* --- damage --- */

#define MARK "a block that will rot"

/* Where in the store's file the marked block is. */
static uint64_t find_mark(struct machine *m, const char *mark)
{
    uint8_t block[BLOCK_SIZE];
    uint64_t size = sim_file_size_bytes(m->world, m->options.store_path);
    for (uint64_t at = 0; at < size; at += BLOCK_SIZE) {
        CHECK_EQ(sim_file_peek(m->world, m->options.store_path, at, block, sizeof block),
                 0);
        if (memcmp(block, mark, strlen(mark)) == 0)
            return at;
    }
    CHECK(false && "no such block");
    return 0;
}

static async void body_mark(struct machine *m)
{
    static uint8_t data[BLOCK_SIZE];
    struct model *model = m->arg;
    DO(disk_create(m->host, "d", SIZE, &err));
    struct disk *disk = attach(m, "d");
    random_rounds(m, disk, model, 10);
    memcpy(data, MARK, sizeof MARK);
    memcpy(model->bytes + 77 * BLOCK_SIZE, data, sizeof data);
    CHECK_EQ(write_bytes_at(disk, 77 * BLOCK_SIZE, BLOCK_SIZE, data, 0), 0);
    disk_close(disk);
    DO(snapshot_create(m->host, "d", "s", &err));
    DO(disk_clone(m->host, "d", "s", "c", 1, &err));
}

static async void body_rotten(struct machine *m)
{
    static uint8_t data[4 * BLOCK_SIZE];
    struct model *model = m->arg;
    struct findings findings;
    struct check_report report;
    run_check(m, &findings, &report);
    CHECK_EQ(findings.count, 1); /* once, though three see it */
    CHECK(strstr(findings.first, "disk d: offset 315392: ") == findings.first);
    CHECK_EQ(report.disks, 2);
    CHECK_EQ(report.snapshots, 1);
    struct disk *disk = attach(m, "c");
    CHECK_EQ(read_bytes_at(disk, 77 * BLOCK_SIZE, 1, data), -PLX_ECHECKSUM);
    CHECK_EQ(read_bytes_at(disk, 76 * BLOCK_SIZE, sizeof data, data), -PLX_ECHECKSUM);
    /* Only that block. */
    CHECK_EQ(read_bytes_at(disk, 76 * BLOCK_SIZE, BLOCK_SIZE, data), 0);
    CHECK_EQ(read_bytes_at(disk, 78 * BLOCK_SIZE, BLOCK_SIZE, data), 0);
    CHECK(memcmp(data, model->bytes + 78 * BLOCK_SIZE, BLOCK_SIZE) == 0);
    /* Part of it cannot be written, the whole can. */
    CHECK_EQ(write_bytes_at(disk, 77 * BLOCK_SIZE, 1, data, 0), -PLX_ECHECKSUM);
    CHECK_EQ(write_bytes_at(disk, 77 * BLOCK_SIZE, BLOCK_SIZE, data, 0), 0);
    CHECK_EQ(read_bytes_at(disk, 77 * BLOCK_SIZE, BLOCK_SIZE, data), 0);
    disk_close(disk);
}

static void test_damage(void)
{
    struct machine *m = machine_create(3);
    m->arg = model_create(SIZE);
    machine_run(m, body_mark);
    uint64_t at = find_mark(m, MARK);
    CHECK_EQ(sim_file_poke(m->world, m->options.store_path, at + 1000, "x", 1), 0);
    machine_run(m, body_rotten);
    free(m->arg);
    machine_destroy(m);
}

/* A map that cannot be read: writes go on for a while, then fail instead of waiting for
 * a checkpoint that never comes; nothing keeps the host from closing. */
static uint8_t root_node[BLOCK_SIZE];

static async void body_find_root(struct machine *m)
{
    const struct node *node;
    const struct cluster_disk *disk =
        cluster_disk_by_name(cluster_state(m->host->cluster), "d");
    CHECK(disk != NULL && disk->has_root);
    CHECK_EQ(node_get(m->host->nodes, disk->root.address, disk->root.crc, &node), 0);
    memcpy(root_node, node->format, sizeof root_node);
    node_put(m->host->nodes, node);
}

static async void body_rotten_map(struct machine *m)
{
    static uint8_t data[64 * KIB] = {1};
    struct findings findings;
    struct check_report report;
    int rc = 0;
    struct disk *disk = attach(m, "d");
    CHECK_EQ(read_bytes_at(disk, 0, 1, data), -PLX_ECHECKSUM);
    for (uint32_t i = 0; i < 1000 && rc == 0; i++) {
        fill(m, data, sizeof data);
        rc = write_bytes_at(disk, i % 8 * sizeof data, sizeof data, data, 0);
    }
    CHECK_EQ(rc, -PLX_ECHECKSUM);
    CHECK(m->host->checkpoints->value < 20);
    CHECK_EQ(flush(disk), 0);
    disk_close(disk);
    run_check(m, &findings, &report);
    CHECK(findings.count > 0 && strstr(findings.first, "disk d") != NULL);
}

static void test_damaged_map(void)
{
    struct machine *m = machine_create(4);
    m->arg = model_create(SIZE);
    machine_run(m, body_mark);
    machine_run(m, body_find_root);
    uint64_t size = sim_file_size_bytes(m->world, m->options.store_path);
    uint8_t block[BLOCK_SIZE];
    for (uint64_t at = 0; at < size; at += BLOCK_SIZE) {
        CHECK_EQ(sim_file_peek(m->world, m->options.store_path, at, block, sizeof block),
                 0);
        if (memcmp(block, root_node, sizeof block) == 0)
            CHECK_EQ(sim_file_poke(m->world, m->options.store_path, at, "x", 1), 0);
    }
    machine_run(m, body_rotten_map);
    free(m->arg);
    machine_destroy(m);
}

/* --- damage of a log that was not closed --- */

static uint8_t rounds[4][16 * BLOCK_SIZE];

static async void body_flushes(struct machine *m)
{
    DO(disk_create(m->host, "d", SIZE, &err));
    DO(disk_create(m->host, "e", SIZE, &err));
    struct disk *disk = attach(m, "d");
    for (uint32_t i = 0; i < ARRAY_LEN(rounds); i++) {
        fill(m, rounds[i], sizeof rounds[i]);
        CHECK_EQ(write_bytes_at(disk, i * sizeof rounds[i], sizeof rounds[i], rounds[i],
                                0),
                 0);
        CHECK_EQ(flush(disk), 0);
    }
    m->host = NULL; /* it is killed, and nothing but the log says what was flushed */
}

/* Where the header of that batch of the only disk that has written is. */
static uint64_t find_header(struct machine *m, uint64_t number)
{
    uint8_t block[BLOCK_SIZE];
    struct header head;
    uint64_t size = sim_file_size_bytes(m->world, m->options.store_path);
    for (uint64_t at = 0; at < size; at += BLOCK_SIZE) {
        CHECK_EQ(sim_file_peek(m->world, m->options.store_path, at, block, sizeof block),
                 0);
        if (header_decode(block, &head, NULL) == 0 && head.number == number)
            return at;
    }
    CHECK(false && "no such header");
    return 0;
}

static void flip(struct machine *m, uint64_t at)
{
    uint8_t byte = 0;
    CHECK_EQ(sim_file_peek(m->world, m->options.store_path, at, &byte, 1), 0);
    byte ^= 1;
    CHECK_EQ(sim_file_poke(m->world, m->options.store_path, at, &byte, 1), 0);
}

/* Refused, and named; others go on, and write more than what would have been freed. */
static async void body_not_opened(struct machine *m)
{
    struct findings findings;
    struct check_report report;
    struct disk *disk = NULL;
    DO_FAILS(disk_open(m->host, "d", DISK_READ_WRITE, &disk, &err), -PLX_EDAMAGED);
    struct model *model = model_create(SIZE);
    random_named(m, "e", model, 60);
    free(model);
    run_check(m, &findings, &report);
    CHECK(findings.count > 0 && strstr(findings.first, "disk d") != NULL);
}

static async void body_all_there(struct machine *m)
{
    static uint8_t back[sizeof rounds];
    struct disk *disk = attach(m, "d");
    CHECK_EQ(read_bytes_at(disk, 0, sizeof back, back), 0);
    CHECK(memcmp(back, rounds, sizeof back) == 0);
    disk_close(disk);
    check_clean(m);
}

static async void body_one_block(struct machine *m)
{
    static uint8_t back[sizeof rounds];
    struct disk *disk = attach(m, "d");
    for (uint32_t i = 0; i < sizeof back / BLOCK_SIZE; i++)
        CHECK_EQ(read_bytes_at(disk, i * BLOCK_SIZE, BLOCK_SIZE, back + i * BLOCK_SIZE),
                 i == 0 ? -PLX_ECHECKSUM : 0);
    CHECK(memcmp(back + BLOCK_SIZE, (uint8_t *)rounds + BLOCK_SIZE,
                 sizeof back - BLOCK_SIZE) == 0);
    disk_close(disk);
}

/* A header that was flushed: the disk is not taken for what it was before, and nothing is
 * given away; once the header is as it was, all is there. Data: it costs one block. */
static void test_damaged_log(void)
{
    for (uint64_t number = 1; number < ARRAY_LEN(rounds); number++) {
        struct machine *m = machine_create(number);
        machine_run(m, body_flushes);
        uint64_t at = find_header(m, number) + 99;
        flip(m, at);
        machine_run(m, body_not_opened);
        machine_run(m, body_not_opened);
        flip(m, at);
        machine_run(m, body_all_there);
        machine_destroy(m);
    }
    struct machine *m = machine_create(9);
    machine_run(m, body_flushes);
    flip(m, find_header(m, 1) + BLOCK_SIZE);
    machine_run(m, body_one_block);
    machine_destroy(m);
}

/* --- killed --- */

static async void body_until_killed(struct machine *m)
{
    struct model *model = m->arg;
    if (cluster_disk_by_name(cluster_state(m->host->cluster), "d") == NULL)
        DO(disk_create(m->host, "d", SIZE, &err));
    struct disk *disk = attach(m, "d");
    check_content(disk, model);
    random_rounds(m, disk, model, 5 + (uint32_t)chance(m, 40));
    /* All is answered; the host stays open. */
    m->host = NULL;
}

static async void body_after_kill(struct machine *m)
{
    check_named(m, "d", m->arg);
    check_clean(m);
    check_named(m, "d", m->arg);
}

/* What was answered is there after a kill, any number of times. */
static void test_kill(void)
{
    for (uint64_t seed = 1; seed <= seeds_of(3); seed++) {
        struct machine *m = machine_create(seed);
        m->arg = model_create(SIZE);
        m->options.checkpoint_log_bytes = seed == 1 ? 64 * MIB : 256 * KIB;
        for (uint32_t i = 0; i < 40; i++)
            machine_run(m, body_until_killed);
        machine_run(m, body_after_kill);
        free(m->arg);
        machine_destroy(m);
    }
}

/* --- groups --- */

/* New extents go to all groups there are, and their addresses say to which. */
static async void body_groups(struct machine *m)
{
    struct cluster_command command = {
        .op = CLUSTER_GROUP_ADD, .pool = 1, .member_count = 1, .members = {1}};
    struct cluster_result result;
    uint32_t elsewhere = 0;
    uint8_t data[BLOCK_SIZE];
    char name[16];
    for (uint32_t i = 0; i < 7; i++)
        CHECK_EQ(cluster_submit(m->host->cluster, &command, &result), 0);
    for (uint32_t i = 0; i < 16; i++) {
        struct disk *disk;
        snprintf(name, sizeof name, "d%u", i);
        memset(data, (int)i, sizeof data);
        DO(disk_create(m->host, name, MIB, &err));
        DO(disk_open(m->host, name, DISK_READ_WRITE, &disk, &err));
        CHECK_EQ(write_bytes_at(disk, 0, sizeof data, data, 0), 0);
        const struct cluster_disk *state =
            cluster_disk_by_name(cluster_state(m->host->cluster), name);
        for (uint32_t j = 0; j < state->extent_count; j++)
            elsewhere += address_group(state->extents[j].extent) != 1;
        disk_close(disk);
    }
    CHECK(elsewhere > 8);
}

static async void body_groups_read(struct machine *m)
{
    uint8_t data[BLOCK_SIZE];
    char name[16];
    for (uint32_t i = 0; i < 16; i++) {
        struct disk *disk;
        snprintf(name, sizeof name, "d%u", i);
        DO(disk_open(m->host, name, DISK_READ_WRITE, &disk, &err));
        CHECK_EQ(read_bytes_at(disk, 0, sizeof data, data), 0);
        CHECK(data[0] == i && data[BLOCK_SIZE - 1] == i);
        disk_close(disk);
    }
}

static void test_groups(void)
{
    struct machine *m = machine_create(1);
    machine_run(m, body_groups);
    machine_run(m, body_groups_read);
    machine_destroy(m);
}

/* LeakSanitizer would report what killed processes left, so it does not look. */
static void in_child(void (*test)(void))
{
    pid_t child = fork();
    int status;
    CHECK(child >= 0);
    if (child == 0) {
        test();
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void run_once(void (*run)(struct machine *m))
{
    struct machine *m = machine_create(1);
    machine_run(m, run);
    machine_destroy(m);
}

int main(void)
{
    run_once(body_alignments);
    run_once(body_refusals);
    run_once(body_budgets);
    run_once(body_idle);
    run_once(body_failed);
    test_random();
    test_full();
    test_damage();
    test_damaged_map();
    test_groups();
    in_child(test_damaged_log);
    in_child(test_kill);
    return 0;
}
