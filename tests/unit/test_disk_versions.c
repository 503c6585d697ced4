/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots, clones, rollback, resize and import of disks on a simulated machine. */
#include "tests/unit/disk_machine.h"

#include <sys/wait.h>

#define SIZE (1 * MIB)

static const struct cluster_disk *state_of(struct machine *m, const char *name)
{
    const struct cluster_disk *disk =
        cluster_disk_by_name(cluster_state(m->host->cluster), name);
    CHECK(disk != NULL);
    return disk;
}

/* --- snapshots --- */

#define SNAPSHOTS 30U

struct history {
    struct model *now, *then[SNAPSHOTS];
    uint32_t count;
};

static async void check_history(struct machine *m, const struct history *history)
{
    char name[32];
    for (uint32_t i = 0; i < history->count; i++) {
        snprintf(name, sizeof name, "d@s%u", i);
        check_named(m, name, history->then[i]);
    }
    check_named(m, "d", history->now);
}

static async void body_snapshots(struct machine *m)
{
    struct history *history = m->arg;
    char name[32];
    if (history->count == 0)
        DO(disk_create(m->host, "d", SIZE, &err));
    for (uint32_t i = 0; i < SNAPSHOTS / 3; i++) {
        random_named(m, "d", history->now, (uint32_t)chance(m, 6));
        snprintf(name, sizeof name, "s%u", history->count);
        DO(snapshot_create(m->host, "d", name, &err));
        history->then[history->count++] = model_copy(history->now);
    }
    if (chance(m, 2) == 0)
        random_named(m, "d", history->now, 3);
    check_history(m, history);
    check_clean(m);
    struct snapshot_info *infos;
    size_t count;
    DO(snapshot_list(m->host, "d", &infos, &count, &err));
    CHECK_EQ(count, history->count);
    CHECK_STR(infos[0].name, "s0");
    CHECK_EQ(infos[0].clone_count, 0);
    free(infos);
}

static void history_free(struct history *history)
{
    free(history->now);
    for (uint32_t i = 0; i < history->count; i++)
        free(history->then[i]);
}

static void test_snapshots(void)
{
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct machine *m = machine_create(seed);
        struct history history = {.now = model_create(SIZE)};
        m->arg = &history;
        m->options.checkpoint_log_bytes = seed % 2 == 0 ? 128 * KIB : 64 * MIB;
        for (uint32_t i = 0; i < 3; i++)
            machine_run(m, body_snapshots);
        history_free(&history);
        machine_destroy(m);
    }
}

/* A writer that waits for each write before the next, so that a snapshot must hold a
 * prefix of them: block n has number n, up to some n. */
struct writer_task {
    struct task_call call;
    struct disk *disk;
    uint32_t written, limit;
    bool stop;
    struct event over;
};

static void writer_main(struct task_call *call)
{
    struct writer_task *w = container_of(call, struct writer_task, call);
    static uint8_t data[BLOCK_SIZE];
    while (!w->stop && w->written < w->limit) {
        memset(data, 1 + (int)(w->written % 250), sizeof data);
        uint64_t offset = w->written * BLOCK_SIZE;
        CHECK_EQ(write_bytes_at(w->disk, offset, sizeof data, data, 0), 0);
        w->written++;
    }
    event_set(&w->over);
}

/* Checkpoints all the time, so that some begin in the middle of a snapshot. */
static void checkpoints_main(struct task_call *call)
{
    struct writer_task *w = container_of(call, struct writer_task, call);
    while (!w->stop) {
        DO(disk_checkpoint(w->disk, &err));
        task_sleep_ns(NS_PER_MS / 10);
    }
    event_set(&w->over);
}

static async uint32_t prefix_of(struct machine *m, const char *name)
{
    static uint8_t data[SIZE];
    struct disk *disk = attach(m, name);
    uint32_t count = 0;
    CHECK_EQ(read_bytes_at(disk, 0, SIZE, data), 0);
    while (count < SIZE / BLOCK_SIZE && data[count * BLOCK_SIZE] != 0) {
        CHECK_EQ(data[count * BLOCK_SIZE], 1 + count % 250);
        CHECK_EQ(data[(count + 1) * BLOCK_SIZE - 1], 1 + count % 250);
        count++;
    }
    for (uint32_t i = count; i < SIZE / BLOCK_SIZE; i++)
        CHECK(bytes_are_zero(data + i * BLOCK_SIZE, BLOCK_SIZE));
    disk_close(disk);
    return count;
}

static async void body_moment(struct machine *m)
{
    struct writer_task w = {.call = {.main = writer_main, .name = "writer"},
                            .limit = SIZE / BLOCK_SIZE};
    struct writer_task c = {.call = {.main = checkpoints_main, .name = "checkpoints"}};
    uint32_t before[20], after[20], count = 0;
    char name[32];
    DO(disk_create(m->host, "d", SIZE, &err));
    w.disk = attach(m, "d");
    c.disk = w.disk;
    event_init(&w.over);
    event_init(&c.over);
    task_start(m->body.loop, &w.call);
    task_start(m->body.loop, &c.call);
    while (count < 20 && w.written < w.limit) {
        task_sleep_ns(chance(m, 3 * NS_PER_MS));
        snprintf(name, sizeof name, "s%u", count);
        before[count] = w.written;
        DO(snapshot_create(m->host, "d", name, &err));
        after[count++] = w.written;
    }
    w.stop = c.stop = true;
    event_wait(&w.over);
    event_wait(&c.over);
    disk_close(w.disk);
    CHECK(count > 5);
    for (uint32_t i = 0; i < count; i++) {
        snprintf(name, sizeof name, "d@s%u", i);
        uint32_t prefix = prefix_of(m, name);
        CHECK(prefix >= before[i] && prefix <= after[i] + 1);
    }
    CHECK_EQ(prefix_of(m, "d"), w.written);
    check_clean(m);
}

/* --- clones --- */

static async void body_clones(struct machine *m)
{
    struct model *gold = model_create(SIZE), *now = model_create(SIZE);
    struct model *mine;
    DO(disk_create(m->host, "gold", SIZE, &err));
    random_named(m, "gold", gold, 10);
    memcpy(now, gold, sizeof *now);
    DO(snapshot_create(m->host, "gold", "v1", &err));
    random_named(m, "gold", now, 1);
    /* The snapshot is still pending when its clones are opened. */
    CHECK_EQ(state_of(m, "gold")->pending_count, 1);
    DO(disk_clone(m->host, "gold", "v1", "vm", 75, &err));
    CHECK_EQ(cluster_disk_count(cluster_state(m->host->cluster)), 76);
    check_named(m, "vm-75", gold);
    CHECK_EQ(state_of(m, "gold")->pending_count, 0);
    mine = model_copy(gold);
    random_named(m, "vm-3", mine, 10);
    check_named(m, "vm-3", mine);
    check_named(m, "vm-4", gold);
    check_named(m, "gold", now);
    check_named(m, "gold@v1", gold);
    /* Of the disk as it is, while it is served. */
    struct disk *disk = attach(m, "vm-3");
    random_rounds(m, disk, mine, 2);
    DO(disk_clone(m->host, "vm-3", NULL, "copy", 1, &err));
    struct model *copy = model_copy(mine);
    random_rounds(m, disk, mine, 2);
    check_named(m, "copy", copy);
    check_content(disk, mine);
    disk_close(disk);
    DO_FAILS(disk_clone(m->host, "vm-3", NULL, "copy", 1, &err), -PLX_EEXISTS);
    DO_FAILS(disk_clone(m->host, "vm-3", NULL, "copy", 0, &err), -EINVAL);
    DO_FAILS(disk_clone(m->host, "vm-3", "none", "x", 1, &err), -PLX_EMISSING);
    struct disk_info info;
    DO(disk_show(m->host, "vm-3", &info, &err));
    CHECK_STR(info.parent, "gold@v1");
    CHECK(info.used_bytes > 0);
    DO(disk_show(m->host, "vm-9", &info, &err));
    CHECK_EQ(info.used_bytes, 0);
    check_clean(m);
    free(gold);
    free(now);
    free(mine);
    free(copy);
}

#define CHAIN 20U

static struct model *chain[CHAIN + 1];

/* Each a clone of the one before as it is, changed; then clones of clones are opened by
 * a process that finds all of them left behind. */
static async void body_chain(struct machine *m)
{
    char name[32], next[32];
    DO(disk_create(m->host, "c0", SIZE, &err));
    chain[0] = model_create(SIZE);
    for (uint32_t i = 0; i <= CHAIN; i++) {
        snprintf(name, sizeof name, "c%u", i);
        snprintf(next, sizeof next, "c%u", i + 1);
        if (i != 7) /* one that has nothing of its own */
            random_named(m, name, chain[i], 2);
        if (i < CHAIN) {
            chain[i + 1] = model_copy(chain[i]);
            DO(disk_clone(m->host, name, NULL, next, 1, &err));
        }
    }
    /* One more would ask for a checkpoint (FROZEN_LAYERS_SOON), which may come before the
     * end. */
    DO(snapshot_create(m->host, name, "unused", &err));
    DO(disk_clone(m->host, name, NULL, "last", 1, &err));
    m->host = NULL; /* killed */
}

static async void body_end_of_chain(struct machine *m)
{
    char name[32];
    snprintf(name, sizeof name, "c%u", CHAIN);
    CHECK_EQ(state_of(m, name)->pending_count, m->arg == NULL ? 2 : 0);
    m->arg = chain; /* settled the second time */
    check_named(m, "last", chain[CHAIN]);
    for (uint32_t i = 0; i <= CHAIN; i++) {
        snprintf(name, sizeof name, "c%u", i);
        check_named(m, name, chain[i]);
    }
    check_clean(m);
}

static void test_chain(void)
{
    struct machine *m = machine_create(5);
    m->options.checkpoint_log_bytes = 64 * MIB;
    machine_run(m, body_chain);
    machine_run(m, body_end_of_chain);
    machine_run(m, body_end_of_chain);
    machine_destroy(m);
}

/* --- rollback --- */

static async void body_rollback(struct machine *m)
{
    struct model *now = model_create(SIZE);
    DO(disk_create(m->host, "d", SIZE, &err));
    random_named(m, "d", now, 10);
    DO(snapshot_create(m->host, "d", "one", &err));
    struct model *one = model_copy(now);
    random_named(m, "d", now, 10);
    DO(snapshot_create(m->host, "d", "two", &err));
    struct model *two = model_copy(now);
    struct disk *disk = attach(m, "d");
    random_rounds(m, disk, now, 10);
    DO_FAILS(snapshot_rollback(m->host, "d", "one", &err), -PLX_EBUSY);
    disk_close(disk);
    DO(snapshot_rollback(m->host, "d", "one", &err));
    check_named(m, "d", one);
    struct model *again = model_copy(one);
    random_named(m, "d", again, 10);
    check_named(m, "d", again);
    check_named(m, "d@two", two);
    DO(snapshot_create(m->host, "d", "three", &err));
    DO(snapshot_rollback(m->host, "d", "two", &err));
    check_named(m, "d", two);
    check_named(m, "d@three", again);
    DO_FAILS(snapshot_rollback(m->host, "d", "none", &err), -PLX_EMISSING);
    check_clean(m);
    free(now);
    free(one);
    free(two);
    free(again);
}

/* The daemon was killed with the disk open and a newer snapshot pending. */
static async void body_before_rollback(struct machine *m)
{
    struct model *model = m->arg;
    DO(disk_create(m->host, "d", SIZE, &err));
    random_named(m, "d", model, 5);
    DO(snapshot_create(m->host, "d", "one", &err));
    struct model *other = model_copy(model);
    random_named(m, "d", other, 5);
    DO(snapshot_create(m->host, "d", "two", &err));
    free(other);
    m->host = NULL;
}

static async void body_roll_back(struct machine *m)
{
    DO(snapshot_rollback(m->host, "d", "one", &err));
    check_named(m, "d", m->arg);
    check_clean(m);
}

static void test_rollback_after_kill(void)
{
    struct machine *m = machine_create(6);
    m->arg = model_create(SIZE);
    machine_run(m, body_before_rollback);
    machine_run(m, body_roll_back);
    machine_run(m, body_roll_back);
    machine_destroy(m);
}

/* --- resize --- */

static void model_resize(struct model *model, uint64_t size_bytes)
{
    if (size_bytes < model->size_bytes)
        memset(model->bytes + size_bytes, 0, model->size_bytes - size_bytes);
    model->size_bytes = size_bytes;
}

static async void body_resize(struct machine *m)
{
    struct model *model = m->arg;
    if (model->size_bytes == 0) {
        model->size_bytes = SIZE;
        DO(disk_create(m->host, "d", SIZE, &err));
    }
    check_named(m, "d", model);
    for (uint32_t i = 0; i < 15; i++) {
        uint64_t size = (1 + chance(m, 4 * MIB / BLOCK_SIZE)) * BLOCK_SIZE;
        bool shrinks = size < model->size_bytes;
        struct disk *disk = attach(m, "d");
        random_rounds(m, disk, model, 4);
        if (shrinks) {
            DO_FAILS(disk_resize(m->host, "d", size, &err), -PLX_EBUSY);
        } else {
            DO(disk_resize(m->host, "d", size, &err));
            model_resize(model, size);
            check_content(disk, model);
        }
        disk_close(disk);
        if (shrinks)
            DO(disk_resize(m->host, "d", size, &err));
        model_resize(model, size);
        check_named(m, "d", model);
        if (chance(m, 5) == 0)
            random_named(m, "d", model, 1);
    }
    DO_FAILS(disk_resize(m->host, "d", 5, &err), -EINVAL);
    check_clean(m);
    /* All that is above the end reads as zeros once there is more. */
    DO(disk_resize(m->host, "d", 4 * MIB, &err));
    model_resize(model, 4 * MIB);
    check_named(m, "d", model);
}

static void test_resize(void)
{
    for (uint64_t seed = 1; seed <= 3; seed++) {
        struct machine *m = machine_create(seed);
        m->arg = model_create(0);
        for (uint32_t i = 0; i < 2; i++)
            machine_run(m, body_resize);
        free(m->arg);
        machine_destroy(m);
    }
}

/* A snapshot keeps what a disk was before it shrank. */
static async void body_snapshot_of_larger(struct machine *m)
{
    struct model *model = model_create(SIZE);
    DO(disk_create(m->host, "d", SIZE, &err));
    random_named(m, "d", model, 20);
    DO(snapshot_create(m->host, "d", "large", &err));
    struct model *large = model_copy(model);
    DO(disk_resize(m->host, "d", 64 * KIB, &err));
    model_resize(model, 64 * KIB);
    check_named(m, "d", model);
    check_named(m, "d@large", large);
    DO(disk_clone(m->host, "d", "large", "c", 1, &err));
    check_named(m, "c", large);
    DO(snapshot_rollback(m->host, "d", "large", &err));
    check_named(m, "d", large);
    check_clean(m);
    free(model);
    free(large);
}

/* --- import --- */

static async void body_import(struct machine *m)
{
    struct model *model = model_create(SIZE);
    static uint8_t data[64 * KIB];
    struct disk_info *infos;
    size_t count;
    DO(import_begin(m->host, "image", &err));
    struct disk *disk = attach(m, "image");
    CHECK_EQ(disk_size_bytes(disk), DISK_BYTES_MAX);
    for (uint64_t at = 0; at < SIZE; at += 3 * sizeof data) {
        uint64_t n = min_u64(sizeof data, SIZE - at);
        fill(m, data, n);
        memcpy(model->bytes + at, data, n);
        CHECK_EQ(write_bytes_at(disk, at, n, data, 0), 0);
    }
    CHECK_EQ(disk_list(m->host, &infos, &count), 0);
    CHECK_EQ(count, 0);
    free(infos);
    disk_close(disk);
    DO_FAILS(disk_clone(m->host, "image", NULL, "c", 1, &err), -PLX_EMISSING);
    DO(import_publish(m->host, "image", SIZE, &err));
    check_named(m, "image", model);
    DO_FAILS(import_publish(m->host, "image", SIZE, &err), -PLX_EMISSING);
    check_clean(m);
    /* Another is discarded, with all it wrote. */
    struct host_status before, after;
    host_status(m->host, &before);
    DO(import_begin(m->host, "other", &err));
    disk = attach(m, "other");
    CHECK_EQ(write_bytes_at(disk, 0, sizeof data, data, 0), 0);
    DO_FAILS(import_discard(m->host, "other", &err), -PLX_EBUSY);
    disk_close(disk);
    DO(import_discard(m->host, "other", &err));
    host_status(m->host, &after);
    CHECK_EQ(after.used_bytes, before.used_bytes);
    DO_FAILS(disk_open(m->host, "other", DISK_READ_WRITE, &disk, &err), -PLX_EMISSING);
    free(model);
}

static async void body_import_killed(struct machine *m)
{
    static uint8_t data[64 * KIB] = {1};
    DO(import_begin(m->host, "image", &err));
    struct disk *disk = attach(m, "image");
    CHECK_EQ(write_bytes_at(disk, 5 * sizeof data, sizeof data, data, DISK_FUA), 0);
    m->host = NULL;
}

static async void body_import_again(struct machine *m)
{
    struct host_status status;
    struct disk_info info;
    DO_FAILS(disk_show(m->host, "image", &info, &err), -PLX_EMISSING);
    host_status(m->host, &status);
    CHECK_EQ(status.used_bytes, 0);
    DO(disk_create(m->host, "image", SIZE, &err));
    struct model *model = model_create(SIZE);
    check_named(m, "image", model);
    free(model);
}

static void test_import_killed(void)
{
    struct machine *m = machine_create(8);
    machine_run(m, body_import_killed);
    machine_run(m, body_import_again);
    machine_destroy(m);
}

/* --- names --- */

static async void body_rename(struct machine *m)
{
    struct model *model = model_create(SIZE);
    DO(disk_create(m->host, "d", SIZE, &err));
    struct disk *disk = attach(m, "d");
    random_rounds(m, disk, model, 3);
    DO(disk_rename(m->host, "d", "e", &err));
    CHECK_STR(disk_name(disk), "e");
    check_content(disk, model);
    disk_close(disk);
    DO_FAILS(disk_open(m->host, "d", DISK_READ_WRITE, &disk, &err), -PLX_EMISSING);
    check_named(m, "e", model);
    DO_FAILS(disk_rename(m->host, "d", "f", &err), -PLX_EMISSING);
    DO(disk_create(m->host, "d", SIZE, &err));
    DO_FAILS(disk_rename(m->host, "d", "e", &err), -PLX_EEXISTS);
    free(model);
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
    test_snapshots();
    run_once(body_moment);
    run_once(body_clones);
    in_child(test_chain);
    run_once(body_rollback);
    in_child(test_rollback_after_kill);
    test_resize();
    run_once(body_snapshot_of_larger);
    run_once(body_import);
    in_child(test_import_killed);
    run_once(body_rename);
    return 0;
}
