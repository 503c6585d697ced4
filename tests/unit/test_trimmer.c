/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Space of superseded blocks comes back, and nothing else goes: after random changes,
 * snapshots, clones, crashes and failures every live block of the store is accounted for,
 * and what is needed is live.
 *
 *     test_trimmer [SEED]
 */
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/disk_machine.h"
#include "tests/unit/space_account.h"

#define SIZE (4 * MIB)

static struct disk *find(struct machine *m, const char *name)
{
    const struct cluster_disk *state =
        cluster_disk_by_name(cluster_state(m->host->cluster), name);
    CHECK(state != NULL);
    return disk_find(m->host, state->id, 0);
}

/* Until its trimmer has nothing to do, nor the log's janitor. */
static async void await_trimmer(struct disk *disk)
{
    task_sleep_ns(50 * NS_PER_MS);
    while (disk->trims.running || trimmer_lists_left(disk) > 0)
        task_sleep_ns(NS_PER_MS);
}

static async void checkpoint(struct disk *disk)
{
    DO(disk_checkpoint(disk, &err));
    await_trimmer(disk);
}

static async void shut(struct machine *m, const char *name)
{
    const struct cluster_disk *state =
        cluster_disk_by_name(cluster_state(m->host->cluster), name);
    CHECK(state != NULL);
    DO(disk_shut(m->host, state->id, &err));
}

static uint64_t live_bytes(struct machine *m)
{
    struct space_report report;
    space_account(m->host, &report);
    return report.live * BLOCK_SIZE;
}

/* --- one disk --- */

/* The same blocks again and again: the store holds them once, in the end. */
static void overwrites(struct machine *m)
{
    struct model *model = model_create(SIZE);
    DO(disk_create(m->host, "d", SIZE, &err));
    struct disk *disk = attach(m, "d");
    for (uint32_t i = 0; i < 20; i++) {
        random_rounds(m, disk, model, 10);
        checkpoint(disk);
        check_space(m->host, false);
        check_content(disk, model);
    }
    disk_close(disk);
    shut(m, "d");
    check_space(m->host, true);
    CHECK(live_bytes(m) <= SIZE + 8 * BLOCK_SIZE);
    const struct cluster_disk *state =
        cluster_disk_by_name(cluster_state(m->host->cluster), "d");
    CHECK_EQ(state->list_count, 0);
    CHECK_EQ(state->extent_count, 0);
    check_named(m, "d", model);
    /* All of it trimmed: nothing is left but a list's worth. */
    disk = attach(m, "d");
    CHECK_EQ(change(disk, DISK_TRIM, 0, SIZE), 0);
    checkpoint(disk);
    check_space(m->host, false);
    disk_close(disk);
    shut(m, "d");
    check_space(m->host, true);
    CHECK_EQ(live_bytes(m), 0);
    free(model);
}

static void test_overwrites(void)
{
    struct machine *m = machine_create(1);
    machine_run(m, overwrites);
    machine_destroy(m);
}

/* --- snapshots and clones --- */

#define SNAPSHOTS 6U

static void versions(struct machine *m)
{
    struct model *now = model_create(SIZE), *then[SNAPSHOTS], *cloned;
    char name[32];
    DO(disk_create(m->host, "d", SIZE, &err));
    struct disk *disk = attach(m, "d");
    for (uint32_t i = 0; i < SNAPSHOTS; i++) {
        random_rounds(m, disk, now, 6);
        if (chance(m, 2) == 0)
            checkpoint(disk);
        snprintf(name, sizeof name, "s%u", i);
        DO(snapshot_create(m->host, "d", name, &err));
        then[i] = model_copy(now);
    }
    DO(disk_clone(m->host, "d", "s2", "c", 1, &err));
    cloned = model_copy(then[2]);
    random_named(m, "c", cloned, 10);
    random_rounds(m, disk, now, 10);
    if (chance(m, 3) == 0) {
        CHECK_EQ(change(disk, DISK_TRIM, 0, SIZE), 0);
        memset(now->bytes, 0, SIZE);
    }
    checkpoint(disk);
    checkpoint(find(m, "c"));
    check_space(m->host, false);
    disk_close(disk);
    shut(m, "d");
    shut(m, "c");
    check_space(m->host, true);
    check_named(m, "d", now);
    check_named(m, "c", cloned);
    for (uint32_t i = 0; i < SNAPSHOTS; i++) {
        snprintf(name, sizeof name, "d@s%u", i);
        check_named(m, name, then[i]);
        free(then[i]);
    }
    check_clean(m);
    free(now);
    free(cloned);
}

static void test_versions(uint64_t seed)
{
    struct machine *m = machine_create(seed);
    machine_run(m, versions);
    machine_destroy(m);
}

/* --- a full store --- */

static uint8_t chunk[256 * KIB];

static async int write_chunk(struct machine *m, struct disk *disk, uint64_t n)
{
    for (uint32_t i = 0; i < sizeof chunk; i += BLOCK_SIZE) /* none of zeros */
        memset(chunk + i, 1 + (int)chance(m, 255), BLOCK_SIZE);
    return write_bytes_at(disk, n * sizeof chunk, sizeof chunk, chunk, 0);
}

/* Appends chunks until there is no more space: a little may come back after the first
 * refusal. Returns the chunk that did not fit. */
static async uint64_t write_until_full(struct machine *m, struct disk *disk, uint64_t n)
{
    for (uint32_t refusals = 0; refusals < 4;) {
        int rc = write_chunk(m, disk, n);
        CHECK(rc == 0 || rc == -PLX_EFULL);
        n += rc == 0;
        refusals += rc < 0;
    }
    return n;
}

/* A disk that fits is overwritten for ever. */
static void overwritten(struct machine *m)
{
    DO(disk_create(m->host, "d", SIZE, &err));
    struct disk *disk = attach(m, "d");
    for (uint32_t i = 0; i < 1200; i++)
        CHECK_EQ(write_chunk(m, disk, chance(m, SIZE / sizeof chunk)), 0);
    checkpoint(disk);
    check_space(m->host, false);
    disk_close(disk);
    shut(m, "d");
    check_space(m->host, true);
}

/* What does not fit is refused, in bounded time, and what was trimmed can be written. */
static void refilled(struct machine *m)
{
    uint64_t size = 64 * MIB;
    DO(disk_create(m->host, "d", size, &err));
    struct disk *disk = attach(m, "d");
    uint64_t count = write_until_full(m, disk, 0);
    CHECK(count * sizeof chunk > 12 * MIB);
    for (uint32_t round = 0; round < 3; round++) {
        uint64_t before_ns = loop_now_ns(m->body.loop);
        (void)write_until_full(m, disk, count);
        CHECK(loop_now_ns(m->body.loop) - before_ns < 100 * NS_PER_S);
        CHECK_EQ(read_bytes_at(disk, 0, sizeof chunk, chunk), 0);
        CHECK_EQ(flush(disk), 0);
        CHECK_EQ(change(disk, DISK_TRIM, 0, size), 0);
        for (uint64_t i = 0; i < count * 3 / 4; i++)
            CHECK_EQ(write_chunk(m, disk, i), 0);
        count = write_until_full(m, disk, count * 3 / 4);
    }
    CHECK_EQ(change(disk, DISK_TRIM, 0, size), 0);
    disk_close(disk);
    shut(m, "d");
    check_space(m->host, true);
    CHECK_EQ(live_bytes(m), 0);
}

/* A write that waits goes on when another disk's data goes. */
static void relieved(struct machine *m)
{
    uint64_t size = 64 * MIB;
    DO(disk_create(m->host, "d", size, &err));
    DO(disk_create(m->host, "e", SIZE, &err));
    struct disk *disk = attach(m, "d"), *other = attach(m, "e");
    for (uint64_t i = 0; i < SIZE / sizeof chunk; i++)
        CHECK_EQ(write_chunk(m, other, i), 0);
    uint64_t count = write_until_full(m, disk, 0);
    CHECK_EQ(change(other, DISK_TRIM, 0, SIZE), 0);
    CHECK_EQ(write_chunk(m, disk, count), 0);
    disk_close(disk);
    disk_close(other);
}

/* The extent that the disk's log writes to ends, in the one way after which no command
 * of the disk is due: the log goes on, and all that it wants open ahead is, before the
 * end is flushed. So the checkpoint that commits its length is the last command. */
static async void end_extent(struct machine *m, struct disk *disk)
{
    checkpoint(disk);
    task_sleep_ns(50 * NS_PER_MS);
    CHECK_EQ(write_chunk(m, disk, 0), 0);
    CHECK(!address_is_null(log_end_extent(disk->log)));
    CHECK_EQ(write_chunk(m, disk, 0), 0);
    task_sleep_ns(50 * NS_PER_MS);
    checkpoint(disk);
}

static uint32_t extents_with_headers(struct machine *m)
{
    struct extent_info *infos = NULL;
    uint32_t found = 0;
    size_t count;
    CHECK_EQ(store_list_extents(m->host->store, 0, &infos, &count), 0);
    for (size_t i = 0; i < count; i++)
        found += infos[i].state == EXTENT_FINAL && infos[i].has_headers;
    free(infos);
    return found;
}

/* Headers, and what is dead among them, come back although nobody writes to that disk any
 * more. Then there is nothing left to be had, and a full store is left alone. */
static void headers_come_back(struct machine *m)
{
    uint64_t size = 8 * MIB;
    DO(disk_create(m->host, "d", size, &err));
    DO(disk_create(m->host, "e", 64 * MIB, &err));
    struct disk *disk = attach(m, "d"), *other = attach(m, "e");
    memset(chunk, 1, sizeof chunk);
    for (uint64_t at = 0; at < size; at += BLOCK_SIZE) /* a header for each block */
        CHECK_EQ(write_bytes_at(disk, at, BLOCK_SIZE, chunk, 0), 0);
    end_extent(m, disk);
    CHECK_EQ(extents_with_headers(m), 1);
    uint64_t count = write_until_full(m, other, 0);
    CHECK_EQ(extents_with_headers(m), 0);
    CHECK(count * sizeof chunk > 36 * MIB); /* 30, if they stayed */
    uint64_t checkpoints = disk->next_checkpoint + other->next_checkpoint;
    CHECK_EQ(write_until_full(m, other, count), count);
    CHECK_EQ(disk->next_checkpoint + other->next_checkpoint, checkpoints);
    disk_close(disk);
    disk_close(other);
}

/* The same where nobody wants space: within the time after which a change would be in the
 * map. A disk that has nothing more to give up does nothing after that. */
static void headers_go_at_rest(struct machine *m)
{
    DO(disk_create(m->host, "d", SIZE, &err));
    struct disk *disk = attach(m, "d");
    CHECK_EQ(write_chunk(m, disk, 1), 0);
    end_extent(m, disk);
    CHECK_EQ(extents_with_headers(m), 1);
    task_sleep_ns((CHECKPOINT_EVERY_MS + 60000) * NS_PER_MS);
    CHECK_EQ(extents_with_headers(m), 0);
    uint64_t checkpoints = disk->next_checkpoint;
    task_sleep_ns(3 * CHECKPOINT_EVERY_MS * NS_PER_MS);
    CHECK_EQ(disk->next_checkpoint, checkpoints);
    disk_close(disk);
}

static void test_rest(void)
{
    struct machine *m = machine_create(1);
    m->options.no_idle_work = false;
    machine_start(m, headers_go_at_rest);
    CHECK(sim_world_run_until(m->world, &m->body.is_over,
                              5ULL * CHECKPOINT_EVERY_MS * NS_PER_MS));
    sim_process_end(m->body.loop, SIM_KILL);
    machine_destroy(m);
}

static async void set_quota(struct machine *m, uint64_t bytes)
{
    const struct cluster_disk *state =
        cluster_disk_by_name(cluster_state(m->host->cluster), "d");
    struct cluster_command command = {
        .op = CLUSTER_QUOTA_SET, .disk = state->id, .quota_bytes = bytes};
    struct cluster_result result;
    CHECK_EQ(cluster_submit(m->host->cluster, &command, &result), 0);
}

static void quota(struct machine *m)
{
    DO(disk_create(m->host, "d", 64 * MIB, &err));
    struct disk *disk = attach(m, "d");
    set_quota(m, 8 * MIB);
    uint64_t count = write_until_full(m, disk, 0);
    CHECK(count * sizeof chunk >= 7 * MIB && count * sizeof chunk <= 8 * MIB);
    CHECK_EQ(write_chunk(m, disk, count), -PLX_EFULL);
    /* Trims and flushes are not writes; what is trimmed counts no more. */
    CHECK_EQ(change(disk, DISK_TRIM, 0, 4 * MIB), 0);
    CHECK_EQ(flush(disk), 0);
    for (uint64_t i = 0; i < 8; i++)
        CHECK_EQ(write_chunk(m, disk, count + i), 0);
    set_quota(m, 0);
    for (uint64_t i = 0; i < 40; i++)
        CHECK_EQ(write_chunk(m, disk, count + i), 0);
    disk_close(disk);
}

/* A disk at its quota is no reason to empty the trash, however long it waits. */
static void quota_and_trash(struct machine *m)
{
    DO(disk_create(m->host, "bin", 1 * MIB, &err));
    DO(disk_remove(m->host, "bin", 0, &err));
    DO(disk_create(m->host, "d", 64 * MIB, &err));
    struct disk *disk = attach(m, "d");
    set_quota(m, 8 * MIB);
    sim_world_faults(m->world)->latency_min_ns = 100 * NS_PER_MS;
    sim_world_faults(m->world)->latency_max_ns = 400 * NS_PER_MS;
    CHECK(write_until_full(m, disk, 0) > 0);
    CHECK(cluster_trash_next(cluster_state(m->host->cluster), NULL) != NULL);
    disk_close(disk);
}

/* While it marks nothing is trimmed: it is given up before guests have to wait for it. */
static void check_holds_up(struct machine *m)
{
    struct check_callbacks callbacks = {.finding = note_finding};
    struct findings findings = {0};
    struct check_report report;
    struct error error = {0};
    struct pin pin;
    callbacks.arg = &findings;
    DO(disk_create(m->host, "d", 16 * MIB, &err));
    struct disk *disk = attach(m, "d");
    pin_take(&m->host->pins, &pin, PIN_HEAD, PIN_ALL);
    for (uint64_t i = 0; trimmer_lists_left(disk) < LISTS_MAX / 2; i++) {
        CHECK(i < 4 * LISTS_MAX);
        CHECK_EQ(write_chunk(m, disk, i % 8), 0);
        DO(disk_checkpoint(disk, &err));
    }
    CHECK_EQ(host_check(m->host, 0, &callbacks, &report, &error), -PLX_EBUSY);
    CHECK_EQ(findings.count, 0);
    pin_release(&m->host->pins, &pin);
    for (uint64_t i = 0; i < 1000 && trimmer_lists_left(disk) > 0; i++)
        task_sleep_ns(NS_PER_MS);
    check_clean(m);
    disk_close(disk);
}

static void test_full(void (*run)(struct machine *m), uint64_t capacity_bytes)
{
    struct machine *m = machine_create(1);
    m->options.capacity_bytes = capacity_bytes;
    machine_run(m, run);
    machine_destroy(m);
}

/* --- crashes --- */

#define LIVES 12U
#define CRASH_SEEDS 40U

struct lives {
    int64_t steps_left;      /* until it is ended; -1: it goes on */
    uint32_t write_error_ppm;
    struct model *now;
    uint32_t snapshots;
    struct model *then[LIVES];
    bool is_shut;   /* the last life ends with a close */
    bool has_disk;
};

/* Writes the same bytes again and again, so that nothing changes but where they are; an
 * odd one is flushed, an even one may be lost. */
struct repeater {
    struct task_call call;
    struct machine *m;
    struct disk *disk;
    const struct model *model;
    uint32_t left;
    struct event over;
};

static async void repeater_main(struct task_call *call)
{
    struct repeater *self = container_of(call, struct repeater, call);
    for (; self->left > 0; self->left--) {
        uint64_t offset = (64 + chance(self->m, 64)) * BLOCK_SIZE;
        CHECK_EQ(write_bytes_at(self->disk, offset, BLOCK_SIZE,
                                self->model->bytes + offset, 0), 0);
        if (self->left % 2 == 1)
            CHECK_EQ(flush(self->disk), 0);
    }
    event_set(&self->over);
}

static void repeat_start(struct machine *m, struct repeater *self, struct disk *disk,
                         const struct model *model)
{
    *self = (struct repeater){.m = m, .disk = disk, .model = model, .left = 60};
    event_init(&self->over);
    self->call = (struct task_call){.main = repeater_main, .name = "repeater"};
    task_start(disk->loop, &self->call);
}

/* Changes that are flushed, a snapshot now and then; ended anywhere. */
static void life(struct machine *m)
{
    struct lives *lives = m->arg;
    char name[32];
    if (!lives->has_disk)
        DO(disk_create(m->host, "d", SIZE, &err));
    lives->has_disk = true;
    struct disk *disk = attach(m, "d");
    for (uint32_t i = 0; i < lives->snapshots; i++) {
        snprintf(name, sizeof name, "d@s%u", i);
        check_named(m, name, lives->then[i]);
    }
    check_content(disk, lives->now);
    sim_world_faults(m->world)->write_error_ppm = lives->write_error_ppm;
    /* Now and then nothing comes before the end: what it supersedes is older. */
    uint32_t rounds = lives->is_shut ? 4 : (uint32_t)chance(m, 3) * 2;
    for (uint32_t i = 0; i < rounds; i++) {
        random_rounds(m, disk, lives->now, 1 + (uint32_t)chance(m, 8));
        CHECK_EQ(flush(disk), 0);
        if (chance(m, 2) == 0)
            checkpoint(disk);
        if (chance(m, 4) == 0)
            task_sleep_ns(chance(m, 20 * NS_PER_MS));
    }
    if (rounds > 0)
        checkpoint(disk);
    check_space(m->host, false);
    if (rounds > 0 && chance(m, 2) == 0) {
        snprintf(name, sizeof name, "s%u", lives->snapshots);
        DO(snapshot_create(m->host, "d", name, &err));
        lives->then[lives->snapshots++] = model_copy(lives->now);
    }
    CHECK_EQ(flush(disk), 0);
    /* Half a checkpoint, or half a trim, of what is the same afterwards. */
    static uint8_t bytes[64 * BLOCK_SIZE];
    memcpy(bytes, lives->now->bytes, sizeof bytes);
    CHECK_EQ(write_bytes_at(disk, 0, sizeof bytes, bytes, DISK_FUA), 0);
    sim_world_faults(m->world)->write_error_ppm = 0;
    if (!lives->is_shut)
        lives->steps_left = 1 + (int64_t)chance(m, chance(m, 3) == 0 ? 600 : 40);
    struct error err = {0};
    struct repeater repeater;
    repeat_start(m, &repeater, disk, lives->now);
    (void)disk_checkpoint(disk, &err);
    task_sleep_ns(chance(m, 10 * NS_PER_MS));
    event_wait(&repeater.over);
    disk_close(disk);
    shut(m, "d");
    check_space(m->host, true);
}

/* Runs lives; a process that ends in the middle leaves memory behind. */
static void crash(uint64_t seed)
{
    struct machine *m = machine_create(seed);
    struct lives lives = {.now = model_create(SIZE)};
    if (seed % 2 == 0)
        lives.write_error_ppm = 3000;
    m->arg = &lives;
    for (uint32_t i = 0; i < LIVES; i++) {
        lives.is_shut = i == LIVES - 1;
        lives.steps_left = -1;
        machine_start(m, life);
        while (!m->body.is_over && lives.steps_left != 0 && sim_world_step(m->world))
            lives.steps_left -= lives.steps_left > 0;
        CHECK(m->body.is_over || lives.steps_left == 0);
        sim_process_end(m->body.loop, chance(m, 2) == 0 ? SIM_KILL : SIM_POWER_CUT);
    }
    for (uint32_t i = 0; i < lives.snapshots; i++)
        free(lives.then[i]);
    free(lives.now);
    machine_destroy(m);
}

static void in_child(void (*run)(uint64_t seed), uint64_t seed)
{
    int status;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        run(seed);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv)
{
    uint64_t only = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;

    if (only == 0) {
        test_overwrites();
        test_full(overwritten, 24 * MIB);
        test_full(refilled, 24 * MIB);
        test_full(relieved, 24 * MIB);
        test_full(headers_come_back, 64 * MIB);
        test_rest();
        test_full(quota, 128 * MIB);
        test_full(quota_and_trash, 128 * MIB);
        test_full(check_holds_up, 128 * MIB);
    }
    for (uint64_t seed = 1; seed <= seeds_of(20); seed++)
        if (only == 0 || only == seed)
            test_versions(seed);
    for (uint64_t seed = 1; seed <= seeds_of(CRASH_SEEDS); seed++)
        if (only == 0)
            in_child(crash, seed);
    if (only > 0)
        crash(only);
    return 0;
}
