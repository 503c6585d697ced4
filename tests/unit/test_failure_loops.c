/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In each phase of a host's life the nth input or output, or the nth allocation, fails,
 * for n = 0, 1, 2 ... until the phase meets no failure. It must end, an error must have a
 * text, the host must close, and the next process finds all that was acknowledged.
 *
 * Allocations are counted by the linker's --wrap; those of the simulator do not count.
 *
 *     test_failure_loops [PHASE [N]]
 */
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/unit/disk_machine.h"
#include "tests/unit/space_account.h"

#define SIZE        (1 * MIB)
#define BLOCKS      ((uint32_t)(SIZE / BLOCK_SIZE))
#define LIMIT_NS    (1000 * NS_PER_S)
#define N_MAX       20000
#define CHILD_STEPS 50 /* one child runs so many n */

enum { CHILD_WENT_ON, CHILD_CAME_TO_END = 77, ENDED_ON_PURPOSE = 78 };

/* --- allocations that fail --- */

static int64_t alloc_left = -1; /* -1: off */
static bool alloc_failed;
static unsigned in_simulator;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__real_sim_alloc(size_t bytes);
void __real_sim_medium_add(void *world, void *medium, const char *path);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
void *__wrap_sim_alloc(size_t bytes);
void __wrap_sim_medium_add(void *world, void *medium, const char *path);
_Noreturn void __wrap_abort(void);

static bool alloc_fails(void)
{
    if (alloc_left < 0 || in_simulator > 0)
        return false;
    bool fails = alloc_left == 0;
    alloc_failed = alloc_failed || fails;
    alloc_left--;
    return fails;
}

void *__wrap_malloc(size_t size)
{
    return alloc_fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return alloc_fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *p, size_t size)
{
    return alloc_fails() ? NULL : __real_realloc(p, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
    return alloc_fails() ? NULL : __real_aligned_alloc(align, size);
}

void *__wrap_sim_alloc(size_t bytes)
{
    in_simulator++;
    void *p = __real_sim_alloc(bytes);
    in_simulator--;
    return p;
}

void __wrap_sim_medium_add(void *world, void *medium, const char *path)
{
    in_simulator++;
    __real_sim_medium_add(world, medium, path);
    in_simulator--;
}

/* A state machine that missed a command must not go on: without memory the process ends
 * on purpose, which is one more kill -9. */
_Noreturn void __wrap_abort(void)
{
    _exit(alloc_failed ? ENDED_ON_PURPOSE : 1);
}

/* --- what is known --- */

/* Of each block, a bit for each mark it may hold. */
struct known {
    uint64_t now[BLOCKS], then[BLOCKS];
    uint8_t mark;
    bool has_disk, may_have_disk, has_snapshot, may_have_snapshot;
};

enum kind { KIND_IO, KIND_ALLOC };

struct life {
    struct machine *m;
    struct known known;
    enum kind kind;
    int64_t n;
    bool armed, happened;
    const struct phase *phase;
    bool is_created;
};

/* One phase: what comes before it, and it. */
struct phase {
    const char *name;
    void (*before)(struct life *life);
    void (*run)(struct life *life); /* armed */
    bool is_fresh;                  /* begins without a host */
    bool is_killed;                 /* the process before was killed */
};

static void arm(struct life *life)
{
    life->armed = true;
    if (life->kind == KIND_IO) {
        sim_fail_nth_io(life->m->world, life->n);
    } else {
        alloc_failed = false;
        alloc_left = life->n;
    }
}

static void disarm(struct life *life)
{
    if (!life->armed)
        return;
    life->armed = false;
    life->happened = life->kind == KIND_IO ? sim_failure_happened(life->m->world)
                                           : alloc_failed;
    sim_fail_nth_io(life->m->world, -1);
    alloc_left = -1;
}

/* An error is explained by the failure, and says something. */
static int check(struct life *life, int rc, const struct error *err)
{
    if (rc == 0)
        return 0;
    bool happened = life->happened || alloc_failed ||
                    (life->kind == KIND_IO && sim_failure_happened(life->m->world));
    if (!happened)
        fprintf(stderr, "%s, kind %d, n %lld: %s: %s\n", life->phase->name, life->kind,
                (long long)life->n, err_name(rc), err != NULL ? err->text : "");
    CHECK(happened);
    CHECK(err == NULL || (err->text[0] != '\0' && strchr(err->text, '\n') == NULL));
    return rc;
}

/* --- operations --- */

static async int submit(struct life *life, struct disk *disk, struct op *op)
{
    event_init(&op->over);
    op->io.done = op_done;
    disk_submit(disk, &op->io);
    event_wait(&op->over);
    if (op->io.buffer != NULL)
        buffer_put(op->io.buffer);
    return check(life, op->io.result, NULL);
}

static void mark_blocks(struct known *known, uint32_t first, uint32_t count, uint8_t mark,
                        bool is_sure)
{
    for (uint32_t i = first; i < first + count; i++) {
        uint64_t bit = (uint64_t)1 << mark;
        known->now[i] = is_sure ? bit : known->now[i] | bit;
    }
}

static async void put(struct life *life, struct disk *disk, uint32_t first,
                      uint32_t count, unsigned flags)
{
    struct known *known = &life->known;
    uint64_t bytes = (uint64_t)count * BLOCK_SIZE;
    struct op op = {.io = {.op = DISK_WRITE,
                           .flags = flags,
                           .offset_bytes = (uint64_t)first * BLOCK_SIZE,
                           .len_bytes = bytes,
                           .buffer = buffer_create(host_buffers(life->m->host), bytes)}};
    if (op.io.buffer == NULL)
        return;
    uint8_t mark = ++known->mark;
    CHECK(mark < 64);
    memset(op.io.buffer->data, mark, bytes);
    mark_blocks(known, first, count, mark, false);
    if (submit(life, disk, &op) == 0)
        mark_blocks(known, first, count, mark, true);
}

/* Zeros, but for the first byte of the first block, so that it is merged. */
static async void zero(struct life *life, struct disk *disk, enum disk_op kind,
                       uint32_t first, uint32_t count)
{
    struct op op = {.io = {.op = kind,
                           .offset_bytes = (uint64_t)first * BLOCK_SIZE,
                           .len_bytes = (uint64_t)count * BLOCK_SIZE}};
    mark_blocks(&life->known, first, count, 0, false);
    if (submit(life, disk, &op) == 0)
        mark_blocks(&life->known, first, count, 0, true);
}

/* Rewrites the middle of a block with what is there. */
static async void touch(struct life *life, struct disk *disk, uint32_t block)
{
    uint64_t bits = life->known.now[block];
    if (bits == 0 || (bits & (bits - 1)) != 0)
        return; /* not known for sure */
    struct op op = {
        .io = {.op = DISK_WRITE,
               .offset_bytes = (uint64_t)block * BLOCK_SIZE + 77,
               .len_bytes = 1000,
               .buffer = buffer_create(host_buffers(life->m->host), BLOCK_SIZE)}};
    if (op.io.buffer == NULL)
        return;
    memset(op.io.buffer->data, 0xee, BLOCK_SIZE);
    memset(op.io.buffer->data + 77, __builtin_ctzll(bits), 1000);
    (void)submit(life, disk, &op);
}

static async void sync_disk(struct life *life, struct disk *disk)
{
    struct op op = {.io = {.op = DISK_FLUSH}};
    (void)submit(life, disk, &op);
}

static async struct disk *open_disk(struct life *life, const char *name)
{
    struct error err = {0};
    struct disk *disk = NULL;
    enum disk_access access = strchr(name, '@') ? DISK_READ_ONLY : DISK_READ_WRITE;
    int rc = disk_open(life->m->host, name, access, &disk, &err);
    return check(life, rc, &err) == 0 ? disk : NULL;
}

static async void make_disk(struct life *life)
{
    struct error err = {0};
    life->known.may_have_disk = true;
    int rc = disk_create(life->m->host, "d", SIZE, &err);
    if (check(life, rc, &err) == 0)
        life->known.has_disk = true;
    for (uint32_t i = 0; i < BLOCKS; i++)
        life->known.now[i] = 1;
}

static async void write_some(struct life *life, struct disk *disk)
{
    put(life, disk, 3, 1, 0);
    put(life, disk, 200, 50, 0);
    touch(life, disk, 3);
    put(life, disk, 17, 4, DISK_FUA);
    zero(life, disk, DISK_ZERO, 18, 2);
    zero(life, disk, DISK_TRIM, 210, 30);
    put(life, disk, 100, 8, 0);
    sync_disk(life, disk);
    put(life, disk, 101, 2, 0);
}

static async void make_snapshot(struct life *life)
{
    struct error err = {0};
    struct known *known = &life->known;
    memcpy(known->then, known->now, sizeof known->then);
    known->may_have_snapshot = true;
    int rc = snapshot_create(life->m->host, "d", "s", &err);
    if (check(life, rc, &err) == 0)
        known->has_snapshot = true;
}

/* --- reading back --- */

static async void read_all(struct life *life, struct disk *disk, const uint64_t *may)
{
    for (uint32_t first = 0; first < BLOCKS; first += 64) {
        struct op op = {.io = {.op = DISK_READ,
                               .offset_bytes = (uint64_t)first * BLOCK_SIZE,
                               .len_bytes = 64 * BLOCK_SIZE,
                               .buffer = buffer_create(host_buffers(life->m->host),
                                                       64 * BLOCK_SIZE)}};
        if (op.io.buffer == NULL)
            continue;
        struct buffer *buffer = buffer_get(op.io.buffer);
        int rc = submit(life, disk, &op);
        for (uint32_t i = 0; rc == 0 && i < 64; i++) {
            const uint8_t *block = buffer->data + i * BLOCK_SIZE;
            bool is_one = memcmp(block, block + 1, BLOCK_SIZE - 1) == 0;
            if (!is_one || block[0] >= 64 || !(may[first + i] & (uint64_t)1 << block[0]))
                fprintf(stderr, "%s, kind %d, n %lld: block %u of %s is %u\n",
                        life->phase->name, life->kind, (long long)life->n, first + i,
                        disk_name(disk), block[0]);
            CHECK(is_one && block[0] < 64 && (may[first + i] & (uint64_t)1 << block[0]));
        }
        buffer_put(buffer);
    }
}

static async void read_named(struct life *life, const char *name, bool must, bool may,
                             const uint64_t *content)
{
    struct error err = {0};
    struct disk *disk = NULL;
    enum disk_access access = strchr(name, '@') ? DISK_READ_ONLY : DISK_READ_WRITE;
    int rc = disk_open(life->m->host, name, access, &disk, &err);
    if (rc == -PLX_EMISSING && !must)
        return;
    CHECK(may || rc < 0);
    if (check(life, rc, &err) < 0)
        return;
    read_all(life, disk, content);
    disk_close(disk);
}

static async void read_everything(struct life *life)
{
    struct known *known = &life->known;
    read_named(life, "d", known->has_disk, known->may_have_disk, known->now);
    if (known->has_disk)
        read_named(life, "d@s", known->has_snapshot, known->may_have_snapshot,
                   known->then);
}

static void on_finding(void *arg, const char *line)
{
    struct life *life = arg;
    struct error err = {0};
    snprintf(err.text, sizeof err.text, "%s", line);
    (void)check(life, -EIO, &err);
}

static async void check_host(struct life *life)
{
    struct check_callbacks callbacks = {.finding = on_finding, .arg = life};
    struct check_report report;
    struct error err = {0};
    (void)check(life, host_check(life->m->host, 0, &callbacks, &report, &err), &err);
}

/* --- the phases --- */

static async void run_create(struct life *life)
{
    struct error err = {0};
    int rc = host_create(life->m->body.loop, &life->m->options, &err);
    life->is_created = check(life, rc, &err) == 0;
}

static async void run_open(struct life *life)
{
    struct error err = {0};
    struct host *host = NULL;
    int rc = host_open(life->m->body.loop, &life->m->options, &host, &err);
    if (check(life, rc, &err) == 0)
        life->m->host = host;
}

static async void before_disk(struct life *life)
{
    make_disk(life);
    struct disk *disk = open_disk(life, "d");
    put(life, disk, 0, 60, 0);
    put(life, disk, 200, 50, 0);
    disk_close(disk);
}

static async void run_disk(struct life *life)
{
    make_disk(life);
    struct disk *disk = life->known.has_disk ? open_disk(life, "d") : NULL;
    if (disk != NULL)
        disk_close(disk);
}

static async void run_append(struct life *life)
{
    struct disk *disk = open_disk(life, "d");
    if (disk == NULL)
        return;
    write_some(life, disk);
    sync_disk(life, disk);
    disk_close(disk);
}

static async void before_checkpoint(struct life *life)
{
    before_disk(life);
    struct disk *disk = open_disk(life, "d");
    write_some(life, disk);
    disk_close(disk);
}

/* Nobody uses it: it writes a checkpoint and closes. */
static async void run_checkpoint(struct life *life)
{
    (void)life;
    task_sleep_ns(NS_PER_S);
}

static async void run_snapshot(struct life *life)
{
    struct error err = {0};
    make_snapshot(life);
    struct disk *disk = open_disk(life, "d");
    if (disk != NULL) {
        put(life, disk, 5, 3, 0);
        disk_close(disk);
    }
    if (life->known.has_snapshot)
        (void)check(life, disk_clone(life->m->host, "d", "s", "c", 3, &err), &err);
}

static async void run_admin(struct life *life)
{
    struct error err = {0};
    struct host *host = life->m->host;
    (void)check(life, disk_resize(host, "d", SIZE + 5 * BLOCK_SIZE, &err), &err);
    err.text[0] = '\0';
    (void)check(life, disk_resize(host, "d", SIZE, &err), &err);
    err.text[0] = '\0';
    if (check(life, import_begin(host, "i", &err), &err) == 0) {
        err.text[0] = '\0';
        (void)check(life, import_publish(host, "i", SIZE, &err), &err);
    }
    err.text[0] = '\0';
    if (check(life, disk_rename(host, "d", "e", &err), &err) == 0) {
        err.text[0] = '\0';
        int rc = disk_rename(host, "e", "d", &err);
        life->known.has_disk = check(life, rc, &err) == 0;
    } else {
        life->known.has_disk = false;
    }
}

static async void before_read(struct life *life)
{
    before_checkpoint(life);
    make_snapshot(life);
    task_sleep_ns(NS_PER_S);
}

static async void run_read(struct life *life)
{
    read_everything(life);
    check_host(life);
}

static async void run_replay(struct life *life)
{
    run_open(life);
    if (life->m->host != NULL)
        read_everything(life);
}

static async void run_close(struct life *life)
{
    host_close(take(life->m->host));
}

static const struct phase phases[] = {
    {.name = "create", .run = run_create, .is_fresh = true},
    {.name = "open", .before = before_disk, .run = run_open, .is_fresh = true},
    {.name = "disk", .run = run_disk},
    {.name = "append", .before = before_disk, .run = run_append},
    {.name = "checkpoint", .before = before_checkpoint, .run = run_checkpoint},
    {.name = "snapshot", .before = before_checkpoint, .run = run_snapshot},
    {.name = "admin", .before = before_disk, .run = run_admin},
    {.name = "read", .before = before_read, .run = run_read},
    {.name = "replay",
     .before = before_checkpoint,
     .run = run_replay,
     .is_fresh = true,
     .is_killed = true},
    {.name = "close", .before = before_checkpoint, .run = run_close},
};

/* --- processes --- */

static async void first_process(struct machine *m)
{
    struct life *life = m->arg;
    const struct phase *phase = life->phase;
    bool is_create = phase->run == run_create;
    struct error err = {0};
    if (!is_create) {
        CHECK_EQ(host_create(m->body.loop, &m->options, &err), 0);
        life->is_created = true;
    }
    if (phase->before != NULL || !phase->is_fresh) {
        CHECK_EQ(host_open(m->body.loop, &m->options, &m->host, &err), 0);
        if (phase->before != NULL)
            phase->before(life);
    }
    if (phase->is_fresh && m->host != NULL) {
        if (phase->is_killed)
            return;
        host_close(take(m->host));
    }
    if (phase->is_fresh && !is_create)
        return;
    arm(life);
    phase->run(life);
    disarm(life);
    if (m->host != NULL)
        host_close(take(m->host));
}

static async void armed_process(struct machine *m)
{
    struct life *life = m->arg;
    arm(life);
    life->phase->run(life);
    disarm(life);
    if (m->host != NULL)
        host_close(take(m->host));
}

static async void last_process(struct machine *m)
{
    struct life *life = m->arg;
    if (!life->is_created) /* nothing was half-made but what the caller removes */
        DO(host_create(m->body.loop, &m->options, &err));
    DO(host_open(m->body.loop, &m->options, &m->host, &err));
    bool happened = life->happened;
    life->happened = alloc_failed = false; /* nothing may fail any more */
    read_everything(life);
    check_host(life);
    await_closed(m->host);
    check_space(m->host, true); /* whatever failed, nothing is lost of the store */
    life->happened = happened;
    host_close(take(m->host));
}

static void process_main(struct body *body)
{
    struct machine *m = container_of(body, struct machine, body);
    m->run(m);
}

static void process(struct life *life, void (*run)(struct machine *m))
{
    struct machine *m = life->m;
    m->run = run;
    m->arg = life;
    m->host = NULL;
    m->body = (struct body){.run = process_main, .world = m->world};
    m->body.call = (struct task_call){.main = body_main, .name = "test", .system = true};
    m->body.loop = sim_process_create(m->world);
    task_start(m->body.loop, &m->body.call);
    if (!sim_world_run_until(m->world, &m->body.is_over, LIMIT_NS)) {
        fprintf(stderr, "%s, kind %d, n %lld: does not end\n", life->phase->name,
                life->kind, (long long)life->n);
        trace_dump(loop_trace(m->body.loop), 2);
        exit(1);
    }
    sim_process_end(m->body.loop, SIM_KILL);
}

/* True if there was an nth operation to fail. */
static bool fail_nth(const struct phase *phase, enum kind kind, int64_t n)
{
    struct life *life = calloc(1, sizeof *life);
    CHECK(life != NULL);
    life->m = machine_create(1);
    life->m->options.idle_close_ms = 5;
    life->phase = phase;
    life->kind = kind;
    life->n = n;
    process(life, first_process);
    if (phase->is_fresh && phase->run != run_create)
        process(life, armed_process);
    if (!life->is_created) {
        sim_media_remove(life->m->world, life->m->options.store_path);
        sim_media_remove(life->m->world, life->m->options.kv_path);
    }
    process(life, last_process);
    bool happened = life->happened;
    machine_destroy(life->m);
    free(life);
    return happened;
}

/* From *n on, in a child: a killed process leaves its memory behind. False: that was
 * all. */
static bool fail_some(const struct phase *phase, enum kind kind, int64_t *n)
{
    int status;
    int64_t end = *n + CHILD_STEPS;
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        bool more = true;
        for (; more && *n < end; ++*n)
            more = fail_nth(phase, kind, *n);
        fflush(NULL);
        status = more ? CHILD_WENT_ON : CHILD_CAME_TO_END;
        if (phase->is_killed)
            _exit(status);
        exit(status); /* leaks count */
    }
    CHECK(waitpid(child, &status, 0) == child);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (code == ENDED_ON_PURPOSE)
        ++*n; /* where it was: shared with the child */
    else if (code != CHILD_WENT_ON && code != CHILD_CAME_TO_END)
        fprintf(stderr, "%s, kind %d, n %lld: failed\n", phase->name, kind,
                (long long)*n);
    CHECK(code == CHILD_WENT_ON || code == CHILD_CAME_TO_END || code == ENDED_ON_PURPOSE);
    return code != CHILD_CAME_TO_END;
}

int main(int argc, char **argv)
{
    int64_t *n = mmap(NULL, sizeof *n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                      -1, 0);
    CHECK(n != MAP_FAILED);
    for (size_t i = 0; i < ARRAY_LEN(phases); i++) {
        if (argc > 1 && strcmp(argv[1], phases[i].name) != 0)
            continue;
        for (enum kind kind = KIND_IO; kind <= KIND_ALLOC; kind++) {
            *n = 0;
            if (argc > 3 && (enum kind)atoi(argv[3]) != kind)
                continue;
            if (argc > 2) {
                fail_nth(&phases[i], kind, atoll(argv[2]));
                continue;
            }
            while (fail_some(&phases[i], kind, n))
                CHECK(*n < N_MAX);
            printf("%s: each of %lld %s failed\n", phases[i].name, (long long)*n - 1,
                   kind == KIND_IO ? "inputs and outputs" : "allocations");
        }
    }
    return 0;
}
