/* SPDX-License-Identifier: Apache-2.0 */
/* The simulator itself: that runs repeat, and that each fault it promises happens and
 * none that it rules out. */
#include "tests/unit/on_loops.h"

#define SECTOR     512U
#define SEEDS      300U
#define FILE_BYTES (4 * MIB)
#define PATH       "sim/file"
#define KV_PATH    "sim/kv"

static uint8_t block_of[4][BLOCK_SIZE] __attribute__((aligned(4096)));
static uint8_t scratch[BLOCK_SIZE] __attribute__((aligned(4096)));

static struct file *open_file(struct body *body)
{
    struct file *file = NULL;
    struct file_options options = {.create = true, .size_bytes = FILE_BYTES};
    int rc = file_open(body->loop, PATH, &options, &file, NULL);
    if (rc == -EEXIST) {
        options.create = false;
        rc = file_open(body->loop, PATH, &options, &file, NULL);
    }
    CHECK_EQ(rc, 0);
    return file;
}

/* A process that stays when its body is over, so that it can be ended. */
struct process {
    struct body body;
    struct file *file;
    struct kv *kv;
    struct file_io io;
    struct iovec iov[4];
};

static void process_run(struct process *process, struct sim_world *world,
                        void (*run)(struct body *body))
{
    *process = (struct process){.body = {.run = run, .world = world, .arg = process}};
    process->body.call = (struct task_call){.main = body_main, .name = "test"};
    process->body.loop = sim_process_create(world);
    task_start(process->body.loop, &process->body.call);
    CHECK(sim_world_run_until(world, &process->body.is_over, BODY_LIMIT_NS));
}

static uint8_t peek_sector(struct sim_world *world, uint64_t sector)
{
    uint8_t bytes[SECTOR];
    CHECK_EQ(sim_file_peek(world, PATH, sector * SECTOR, bytes, SECTOR), 0);
    for (uint32_t i = 1; i < SECTOR; i++)
        CHECK_EQ(bytes[i], bytes[0]); /* a sector is never torn */
    return bytes[0];
}

/* --- the same seed gives the same run --- */

#define WORKERS 8U

struct load {
    struct task_call call;
    struct body *body;
    struct file *file;
    struct kv *kv;
    uint32_t number;
    uint32_t *left;
};

static void load_main(struct task_call *call)
{
    struct load *load = container_of(call, struct load, call);
    struct loop *loop = load->body->loop;
    uint8_t *block = block_of[load->number % 4];
    for (uint32_t i = 0; i < 20; i++) {
        uint64_t at = loop_random_u64(loop) % (FILE_BYTES / BLOCK_SIZE) * BLOCK_SIZE;
        int rc = i % 3 == 0   ? file_read(load->file, scratch, BLOCK_SIZE, at)
                 : i % 5 == 0 ? file_sync(load->file)
                              : file_write(load->file, block, BLOCK_SIZE, at);
        struct kv_batch batch;
        kv_batch_init(&batch);
        kv_batch_put(&batch, &i, sizeof i, &at, sizeof at);
        int kv_rc = kv_write_wait(load->kv, &batch, KV_SYNCED);
        trace(loop, "load", load->number, (uint64_t)-rc, (uint64_t)-kv_rc);
        task_sleep_ns(loop_random_u64(loop) % NS_PER_MS);
    }
    --*load->left;
}

static void load_all(struct body *body)
{
    struct load loads[WORKERS];
    uint32_t left = WORKERS;
    struct file *file = open_file(body);
    struct kv *kv = NULL;
    CHECK_EQ(kv_open(body->loop, KV_PATH, true, &kv, NULL), 0);
    for (uint32_t i = 0; i < WORKERS; i++) {
        loads[i] = (struct load){.body = body,
                                 .file = file,
                                 .kv = kv,
                                 .number = i,
                                 .left = &left,
                                 .call = {.main = load_main, .name = "load"}};
        task_start(body->loop, &loads[i].call);
    }
    while (left > 0)
        task_sleep_ns(NS_PER_MS);
    file_close(file);
    kv_close(kv);
}

static uint64_t digest_of(uint64_t seed)
{
    struct sim_world *world = sim_world_create(seed);
    struct sim_faults *faults = sim_world_faults(world);
    faults->write_error_ppm = faults->read_error_ppm = faults->sync_error_ppm = 50000;
    faults->stuck_ppm = faults->rot_ppm = 20000;
    struct process p;
    process_run(&p, world, load_all);
    uint64_t digest = trace_digest(loop_trace(p.body.loop));
    digest ^= sim_world_now_ns(world);
    sim_world_destroy(world);
    return digest;
}

static void test_same_seed_same_run(void)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        void *elsewhere = malloc(12345 * seed); /* moves what is allocated later */
        uint64_t digest = digest_of(seed);
        free(elsewhere);
        CHECK(digest == digest_of(seed));
        CHECK(digest != digest_of(seed + 100));
    }
}

/* --- power cuts --- */

/* Block 0: synced A, then B, then C unsynced. Block 1: A synced. Block 2: B unsynced,
 * written before C of block 0. */
static void write_versions(struct body *body)
{
    struct process *p = body->arg;
    p->file = open_file(body);
    CHECK_EQ(file_write(p->file, block_of[1], BLOCK_SIZE, 0), 0);
    CHECK_EQ(file_write(p->file, block_of[1], BLOCK_SIZE, BLOCK_SIZE), 0);
    CHECK_EQ(file_sync(p->file), 0);
    CHECK_EQ(file_write(p->file, block_of[2], BLOCK_SIZE, 0), 0);
    CHECK_EQ(file_write(p->file, block_of[2], BLOCK_SIZE, 2 * BLOCK_SIZE), 0);
    CHECK_EQ(file_write(p->file, block_of[3], BLOCK_SIZE, 0), 0);
}

struct seen {
    uint32_t lost, kept, torn, older, reordered;
};

static void look_at_cut(struct sim_world *world, struct seen *seen)
{
    uint32_t count[4] = {0}, other[4] = {0};
    for (uint64_t i = 0; i < 8; i++) {
        uint8_t version = peek_sector(world, i);
        CHECK(version >= 1 && version <= 3);
        count[version]++;
        CHECK_EQ(peek_sector(world, 8 + i), 1); /* synced */
        version = peek_sector(world, 16 + i);
        CHECK(version == 0 || version == 2);
        other[version]++;
    }
    seen->lost += count[1] == 8;
    seen->kept += count[3] == 8 && other[2] == 8;
    seen->older += count[2] > 0;
    seen->torn += count[3] > 0 && count[3] < 8;
    seen->reordered += count[3] == 8 && other[0] == 8;
}

static void test_power_cut(void)
{
    struct seen seen = {0};
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct sim_world *world = sim_world_create(seed);
        struct process p;
        process_run(&p, world, write_versions);
        CHECK_EQ(peek_sector(world, 0), 3);
        sim_process_end(p.body.loop, SIM_POWER_CUT);
        look_at_cut(world, &seen);
        /* What is there now stays. */
        uint8_t before[3 * BLOCK_SIZE], after[3 * BLOCK_SIZE];
        CHECK_EQ(sim_file_peek(world, PATH, 0, before, sizeof before), 0);
        sim_power_cut_media(world, "sim/");
        CHECK_EQ(sim_file_peek(world, PATH, 0, after, sizeof after), 0);
        CHECK(memcmp(before, after, sizeof before) == 0);
        sim_world_destroy(world);
    }
    CHECK(seen.lost > 0 && seen.kept > 0 && seen.torn > 0);
    CHECK(seen.older > 0 && seen.reordered > 0);
}

static void test_kill_keeps_completed(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct sim_world *world = sim_world_create(seed);
        struct process p;
        process_run(&p, world, write_versions);
        sim_process_end(p.body.loop, SIM_KILL);
        for (uint64_t i = 0; i < 8; i++) {
            CHECK_EQ(peek_sector(world, i), 3);
            CHECK_EQ(peek_sector(world, 16 + i), 2);
        }
        sim_world_destroy(world);
    }
}

/* The power goes after the process died: what it had not synced is still at risk. */
static void test_cut_after_kill(void)
{
    struct seen seen = {0};
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct sim_world *world = sim_world_create(seed);
        struct process p;
        process_run(&p, world, write_versions);
        sim_process_end(p.body.loop, SIM_KILL);
        sim_power_cut_media(world, "else/");
        CHECK_EQ(peek_sector(world, 0), 3);
        sim_power_cut_media(world, "sim/");
        look_at_cut(world, &seen);
        sim_world_destroy(world);
    }
    CHECK(seen.lost > 0 && seen.kept > 0);
}

/* --- in flight --- */

static void never_done(struct file_io *io)
{
    (void)io;
    CHECK(false && "a dead process ran");
}

/* One write of four vectors is under way when the body is over. */
static void leave_in_flight(struct body *body)
{
    struct process *p = body->arg;
    p->file = open_file(body);
    sim_world_faults(body->world)->latency_min_ns = NS_PER_S;
    sim_world_faults(body->world)->latency_max_ns = NS_PER_S;
    for (uint32_t i = 0; i < 4; i++)
        p->iov[i] = (struct iovec){block_of[3], BLOCK_SIZE};
    p->io = (struct file_io){
        .op = FILE_WRITE, .iov = p->iov, .iov_count = 4, .done = never_done};
    file_submit(p->file, &p->io);
}

static void test_in_flight(void)
{
    uint32_t none = 0, whole = 0, vectors = 0, torn = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct sim_world *world = sim_world_create(seed);
        struct process p;
        process_run(&p, world, leave_in_flight);
        CHECK_EQ(peek_sector(world, 0), 0);
        sim_process_end(p.body.loop, SIM_KILL);
        uint32_t written = 0, broken = 0;
        for (uint64_t i = 0; i < 4; i++) {
            uint32_t in_block = 0;
            for (uint64_t j = 0; j < 8; j++)
                in_block += peek_sector(world, i * 8 + j) == 3;
            written += in_block;
            broken += in_block % 8 != 0;
        }
        none += written == 0;
        whole += written == 32;
        torn += broken > 0;
        vectors += broken == 0 && written > 0 && written < 32;
        sim_world_destroy(world);
    }
    CHECK(none > 0 && whole > 0 && vectors > 0 && torn > 0);
}

/* --- errors --- */

/* A sync fails, a later one succeeds: block 0 stays at risk, except where it was written
 * again (block 1). */
static void sync_fails(struct body *body)
{
    struct process *p = body->arg;
    p->file = open_file(body);
    CHECK_EQ(file_write(p->file, block_of[1], BLOCK_SIZE, 0), 0);
    CHECK_EQ(file_write(p->file, block_of[1], BLOCK_SIZE, BLOCK_SIZE), 0);
    sim_world_faults(body->world)->sync_error_ppm = 1000000;
    CHECK_EQ(file_sync(p->file), -EIO);
    sim_world_faults(body->world)->sync_error_ppm = 0;
    CHECK_EQ(file_write(p->file, block_of[2], BLOCK_SIZE, BLOCK_SIZE), 0);
    CHECK_EQ(file_sync(p->file), 0);
}

static void test_failed_sync(void)
{
    uint32_t lost = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct sim_world *world = sim_world_create(seed);
        struct process p;
        process_run(&p, world, sync_fails);
        sim_process_end(p.body.loop, SIM_POWER_CUT);
        for (uint64_t i = 0; i < 8; i++) {
            lost += peek_sector(world, i) == 0;
            CHECK_EQ(peek_sector(world, 8 + i), 2);
        }
        sim_world_destroy(world);
    }
    CHECK(lost > 0);
}

static void write_fails(struct body *body)
{
    struct process *p = body->arg;
    p->file = open_file(body);
    sim_world_faults(body->world)->write_error_ppm = 1000000;
    CHECK_EQ(file_write(p->file, block_of[1], BLOCK_SIZE, 0), -EIO);
    sim_world_faults(body->world)->write_error_ppm = 0;
}

static void test_failed_write(void)
{
    uint32_t sectors = 0;
    for (uint64_t seed = 1; seed <= 50; seed++) {
        struct sim_world *world = sim_world_create(seed);
        struct process p;
        process_run(&p, world, write_fails);
        for (uint64_t i = 0; i < 8; i++)
            sectors += peek_sector(world, i) == 1;
        sim_world_destroy(world);
    }
    CHECK(sectors > 0 && sectors < 400);
}

static void read_faults(struct body *body)
{
    struct sim_faults *faults = sim_world_faults(body->world);
    struct file *file = open_file(body);
    CHECK_EQ(file_write(file, block_of[1], BLOCK_SIZE, 0), 0);
    /* Latent: until it is written again. */
    faults->read_error_ppm = 1000000;
    CHECK_EQ(file_read(file, scratch, BLOCK_SIZE, 0), -EIO);
    faults->read_error_ppm = 0;
    CHECK_EQ(file_read(file, scratch, BLOCK_SIZE, 0), -EIO);
    CHECK_EQ(file_read(file, scratch, BLOCK_SIZE, BLOCK_SIZE), 0);
    CHECK_EQ(file_write(file, block_of[1], BLOCK_SIZE, 0), 0);
    CHECK_EQ(file_read(file, scratch, BLOCK_SIZE, 0), 0);
    CHECK(memcmp(scratch, block_of[1], BLOCK_SIZE) == 0);
    /* Rot: one bit, for good. */
    faults->rot_ppm = 1000000;
    CHECK_EQ(file_read(file, scratch, BLOCK_SIZE, 0), 0);
    faults->rot_ppm = 0;
    int bits = 0;
    for (uint32_t i = 0; i < BLOCK_SIZE; i++)
        bits += __builtin_popcount((unsigned)(scratch[i] ^ block_of[1][i]));
    CHECK_EQ(bits, 1);
    uint8_t first[BLOCK_SIZE];
    memcpy(first, scratch, BLOCK_SIZE);
    CHECK_EQ(file_read(file, scratch, BLOCK_SIZE, 0), 0);
    CHECK(memcmp(first, scratch, BLOCK_SIZE) == 0);
    /* Stuck for seconds. */
    faults->stuck_ppm = 1000000;
    uint64_t start_ns = loop_now_ns(body->loop);
    CHECK_EQ(file_sync(file), 0);
    CHECK(loop_now_ns(body->loop) - start_ns >= NS_PER_S);
    faults->stuck_ppm = 0;
    /* By number, once. */
    sim_fail_nth_io(body->world, 2);
    CHECK_EQ(file_read(file, scratch, BLOCK_SIZE, 0), 0);
    CHECK_EQ(file_sync(file), 0);
    CHECK(!sim_failure_happened(body->world));
    CHECK_EQ(file_read(file, scratch, BLOCK_SIZE, 0), -EIO);
    CHECK(sim_failure_happened(body->world));
    CHECK_EQ(file_read(file, scratch, BLOCK_SIZE, 0), 0);
    file_close(file);
}

static void test_damage(void)
{
    struct sim_world *world = sim_world_create(1);
    struct process p;
    process_run(&p, world, write_versions);
    sim_process_end(p.body.loop, SIM_KILL);
    uint8_t byte = 77;
    CHECK_EQ(sim_file_size_bytes(world, PATH), FILE_BYTES);
    CHECK_EQ(sim_file_size_bytes(world, "none"), 0);
    CHECK_EQ(sim_file_poke(world, PATH, FILE_BYTES - 1, &byte, 1), 0);
    byte = 0;
    CHECK_EQ(sim_file_peek(world, PATH, FILE_BYTES - 1, &byte, 1), 0);
    CHECK_EQ(byte, 77);
    CHECK_EQ(sim_file_poke(world, PATH, FILE_BYTES, &byte, 1), -ERANGE);
    CHECK_EQ(sim_file_peek(world, "none", 0, &byte, 1), -ENOENT);
    sim_media_remove(world, PATH);
    CHECK_EQ(sim_file_size_bytes(world, PATH), 0);
    sim_world_destroy(world);
}

/* --- key-value stores --- */

#define WRITES      20U
#define LAST_SYNCED 7U

/* Write i sets "n" to i + 1 and deletes the key of write i - 1. */
static void kv_writes(struct body *body)
{
    struct process *p = body->arg;
    CHECK_EQ(kv_open(body->loop, KV_PATH, true, &p->kv, NULL), 0);
    for (uint8_t i = 0; i < WRITES; i++) {
        struct kv_batch batch;
        uint8_t key[2] = {'k', i}, before[2] = {'k', (uint8_t)(i - 1)};
        uint8_t value = (uint8_t)(i + 1);
        kv_batch_init(&batch);
        kv_batch_put(&batch, "n", 1, &value, 1);
        kv_batch_put(&batch, key, 2, &value, 1);
        if (i > 0)
            kv_batch_delete(&batch, before, 2);
        CHECK_EQ(kv_write_wait(p->kv, &batch, i == LAST_SYNCED ? KV_SYNCED : KV_UNSYNCED),
                 0);
    }
}

/* How many writes are there; checks that they are a prefix. */
static void kv_count(struct body *body)
{
    uint32_t *ret_count = body->arg;
    struct kv *kv = NULL;
    struct kv_page page;
    CHECK_EQ(kv_open(body->loop, KV_PATH, false, &kv, NULL), 0);
    CHECK_EQ(kv_scan(kv, "", 0, "", 0, 100, &page), 0);
    CHECK_EQ(page.count, 2);
    CHECK_EQ(page.pairs[0].key[1], page.pairs[0].value[0] - 1);
    CHECK_EQ(page.pairs[0].value[0], page.pairs[1].value[0]);
    *ret_count = page.pairs[1].value[0];
    kv_page_done(&page);
    kv_close(kv);
}

static void test_kv_prefix(void)
{
    bool seen[WRITES + 1] = {false};
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct sim_world *world = sim_world_create(seed);
        struct process p;
        process_run(&p, world, kv_writes);
        sim_process_end(p.body.loop, seed % 2 == 0 ? SIM_POWER_CUT : SIM_KILL);
        uint32_t count = 0;
        run_in_world(world, kv_count, &count);
        if (seed % 2 == 0)
            seen[count] = true;
        else
            CHECK_EQ(count, WRITES);
        sim_world_destroy(world);
    }
    for (uint32_t i = 0; i <= WRITES; i++)
        CHECK_EQ(seen[i], i > LAST_SYNCED);
}

static void kv_never_done(struct kv_write *write)
{
    (void)write;
    CHECK(false && "a dead process ran");
}

static struct kv_write kv_pending[4];

static void kv_leave_in_flight(struct body *body)
{
    kv_writes(body);
    struct process *p = body->arg;
    for (uint8_t i = 0; i < ARRAY_LEN(kv_pending); i++) {
        struct kv_write *write = &kv_pending[i];
        uint8_t number = (uint8_t)(WRITES + i);
        uint8_t key[2] = {'k', number}, before[2] = {'k', (uint8_t)(number - 1)};
        number++;
        *write = (struct kv_write){.done = kv_never_done, .durability = KV_SYNCED};
        kv_batch_put(&write->batch, "n", 1, &number, 1);
        kv_batch_put(&write->batch, key, 2, &number, 1);
        kv_batch_delete(&write->batch, before, 2);
        kv_submit(p->kv, write);
    }
}

static void test_kv_in_flight(void)
{
    bool seen[ARRAY_LEN(kv_pending) + 1] = {false};
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct sim_world *world = sim_world_create(seed);
        struct process p;
        process_run(&p, world, kv_leave_in_flight);
        sim_process_end(p.body.loop, SIM_KILL);
        uint32_t count = 0;
        run_in_world(world, kv_count, &count);
        CHECK(count >= WRITES);
        seen[count - WRITES] = true;
        sim_world_destroy(world);
    }
    for (uint32_t i = 0; i <= ARRAY_LEN(kv_pending); i++)
        CHECK(seen[i]);
}

/* --- processes and time --- */

static void sleep_long(struct body *body)
{
    task_sleep_ns(3600 * NS_PER_S);
    CHECK(loop_now_ns(body->loop) >= 3600 * NS_PER_S);
}

static void test_time_and_ends(void)
{
    struct sim_world *world = sim_world_create(1);
    struct body body = {.run = sleep_long, .world = world};
    body.call = (struct task_call){.main = body_main, .name = "sleeper"};
    body.loop = sim_process_create(world);
    task_start(body.loop, &body.call);
    CHECK(!sim_world_run_until(world, &body.is_over, NS_PER_S));
    CHECK_EQ(sim_world_now_ns(world), NS_PER_S);
    /* Two processes; one dies in its sleep, with a file open. */
    struct process other;
    process_run(&other, world, write_versions);
    sim_process_end(other.body.loop, SIM_KILL);
    CHECK(sim_world_run_until(world, &body.is_over, 3600 * NS_PER_S));
    sim_process_end(body.loop, SIM_KILL);
    CHECK(!sim_world_step(world));
    process_run(&other, world, write_versions); /* the lock died with its process */
    sim_world_destroy(world);
}

/* --- clocks, slow disks --- */

#define SLEEP_NS (100 * NS_PER_S)

static void sleep_some(struct body *body)
{
    uint64_t begun_ns = loop_now_ns(body->loop);
    task_sleep_ns(SLEEP_NS);
    uint64_t slept_ns = loop_now_ns(body->loop) - begun_ns;
    CHECK(slept_ns >= SLEEP_NS && slept_ns < SLEEP_NS + NS_PER_MS);
}

/* A sleep is as long as its process thinks; its rate changes in the middle of it. */
static void test_clocks(void)
{
    for (int32_t ppm = -SIM_CLOCK_PPM_MAX; ppm <= SIM_CLOCK_PPM_MAX; ppm += 50000) {
        struct sim_world *world = sim_world_create(1);
        struct body body = {.run = sleep_some, .world = world};
        body.call = (struct task_call){.main = body_main, .name = "sleeper"};
        body.loop = sim_process_create(world);
        sim_process_set_clock(body.loop, 3600 * NS_PER_S, 0);
        CHECK_EQ(loop_now_ns(body.loop), 3600 * NS_PER_S);
        task_start(body.loop, &body.call);
        CHECK(!sim_world_run_until(world, &body.is_over, SLEEP_NS / 2));
        uint64_t wall_ns = loop_wall_ns(body.loop);
        sim_process_set_clock(body.loop, 0, ppm);
        sim_process_step_wall(body.loop, -(int64_t)NS_PER_S);
        CHECK_EQ(loop_wall_ns(body.loop), wall_ns - NS_PER_S);
        CHECK(sim_world_run_until(world, &body.is_over, SLEEP_NS));
        int64_t rest_ns = (int64_t)(SLEEP_NS / 2) * 1000000 / (1000000 + ppm);
        int64_t off_ns = (int64_t)(sim_world_now_ns(world) - SLEEP_NS / 2) - rest_ns;
        CHECK(off_ns > -(int64_t)NS_PER_MS && off_ns < (int64_t)NS_PER_MS);
        sim_world_destroy(world);
    }
}

static void test_slow_disk(void)
{
    uint64_t took_ns[2];
    for (size_t i = 0; i < 2; i++) {
        struct sim_world *world = sim_world_create(1);
        struct process process = {.body = {.run = write_versions, .world = world}};
        process.body.arg = &process;
        process.body.call = (struct task_call){.main = body_main, .name = "test"};
        process.body.loop = sim_process_create(world);
        sim_process_slow_disk(process.body.loop, i == 0 ? 0 : NS_PER_S);
        task_start(process.body.loop, &process.body.call);
        CHECK(sim_world_run_until(world, &process.body.is_over, BODY_LIMIT_NS));
        took_ns[i] = sim_world_now_ns(world);
        sim_world_destroy(world);
    }
    CHECK(took_ns[1] > 100 * took_ns[0]);
}

int main(void)
{
    for (int i = 0; i < 4; i++)
        memset(block_of[i], i, BLOCK_SIZE);
    test_same_seed_same_run();
    test_power_cut();
    test_kill_keeps_completed();
    test_cut_after_kill();
    test_in_flight();
    test_failed_sync();
    test_failed_write();
    run_on_sim(read_faults);
    test_damage();
    test_kv_prefix();
    test_kv_in_flight();
    test_time_and_ends();
    test_clocks();
    test_slow_disk();
    return 0;
}
