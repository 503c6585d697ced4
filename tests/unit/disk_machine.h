/* SPDX-License-Identifier: Apache-2.0 */
/* A host with disks on a simulated machine, operations that wait, and a model of what a
 * disk must hold: its bytes. */
#ifndef PARALLAX_TESTS_UNIT_DISK_MACHINE_H
#define PARALLAX_TESTS_UNIT_DISK_MACHINE_H

#include "cow/disk_internal.h"
#include "tests/unit/on_loops.h"

#define MODEL_BYTES (4 * MIB)

struct machine {
    struct body body;
    struct sim_world *world;
    struct host_options options;
    struct host *host;
    void (*run)(struct machine *m);
    void *arg;
};

static inline struct machine *machine_create(uint64_t seed)
{
    struct machine *m = calloc(1, sizeof *m);
    CHECK(m != NULL);
    m->world = sim_world_create(seed);
    m->options = (struct host_options){.store_path = "sim/store",
                                       .kv_path = "sim/kv",
                                       .capacity_bytes = 256 * MIB,
                                       .checkpoint_log_bytes = 1 * MIB,
                                       .no_idle_work = true};
    return m;
}

static inline void machine_destroy(struct machine *m)
{
    sim_world_destroy(m->world);
    free(m);
}

static inline uint64_t chance(struct machine *m, uint64_t n)
{
    return sim_world_random(m->world, n);
}

/* For a call that must succeed. */
#define DO(call)                                                                         \
    do {                                                                                 \
        struct error err = {0};                                                          \
        int rc_ = (call);                                                                \
        if (rc_ < 0)                                                                     \
            fprintf(stderr, "%s: %s\n", #call, err.text);                                \
        CHECK_EQ(rc_, 0);                                                                \
    } while (0)
/* For one that must fail so, with one line of text. */
#define DO_FAILS(call, code_)                                                            \
    do {                                                                                 \
        struct error err = {0};                                                          \
        CHECK_EQ(call, code_);                                                           \
        CHECK(err.text[0] != '\0' && strchr(err.text, '\n') == NULL);                    \
    } while (0)

static inline async void machine_open(struct machine *m)
{
    if (sim_file_size_bytes(m->world, m->options.store_path) == 0)
        DO(host_create(m->body.loop, &m->options, &err));
    DO(host_open(m->body.loop, &m->options, &m->host, &err));
}

static inline void machine_main(struct body *body)
{
    struct machine *m = container_of(body, struct machine, body);
    machine_open(m);
    m->run(m);
    if (m->host != NULL)
        host_close(m->host);
    m->host = NULL;
}

static inline void machine_start(struct machine *m, void (*run)(struct machine *m))
{
    m->run = run;
    m->host = NULL;
    m->body = (struct body){.run = machine_main, .world = m->world};
    m->body.call = (struct task_call){.main = body_main, .name = "test", .system = true};
    m->body.loop = sim_process_create(m->world);
    if (getenv("TEST_LOG") != NULL)
        log_set_fd(loop_log(m->body.loop), 2);
    task_start(m->body.loop, &m->body.call);
}

/* A process that opens the host (and makes it, the first time), runs and closes it. */
static inline void machine_run(struct machine *m, void (*run)(struct machine *m))
{
    machine_start(m, run);
    CHECK(sim_world_run_until(m->world, &m->body.is_over, BODY_LIMIT_NS));
    sim_process_end(m->body.loop, SIM_KILL);
}

/* --- operations --- */

struct op {
    struct disk_io io;
    struct event over;
};

static inline void op_done(struct disk_io *io)
{
    event_set(&container_of(io, struct op, io)->over);
}

static inline uint64_t touched_bytes(uint64_t offset, uint64_t len)
{
    return round_up_u64(offset + len, BLOCK_SIZE) - round_down_u64(offset, BLOCK_SIZE);
}

/* data: of a write; NULL else. */
static inline void op_init(struct op *op, struct disk *disk, enum disk_op kind,
                           unsigned flags, uint64_t offset, uint64_t len,
                           const uint8_t *data)
{
    *op = (struct op){.io = {.op = kind,
                             .flags = flags,
                             .offset_bytes = offset,
                             .len_bytes = len,
                             .opened = disk_opened(disk),
                             .done = op_done}};
    event_init(&op->over);
    if ((kind == DISK_READ || kind == DISK_WRITE) && len > 0) {
        op->io.buffer =
            buffer_create(host_buffers(disk->host), touched_bytes(offset, len));
        CHECK(op->io.buffer != NULL);
        memset(op->io.buffer->data, 0xee, op->io.buffer->capacity);
        if (data != NULL)
            memcpy(op->io.buffer->data + offset % BLOCK_SIZE, data, len);
    }
}

static inline void op_start(struct op *op, struct disk *disk, enum disk_op kind,
                            unsigned flags, uint64_t offset, uint64_t len,
                            const uint8_t *data)
{
    op_init(op, disk, kind, flags, offset, len, data);
    disk_submit(disk, &op->io);
}

static inline async int op_wait(struct op *op, uint8_t *ret_data)
{
    event_wait(&op->over);
    if (ret_data != NULL && op->io.result == 0 && op->io.len_bytes > 0)
        memcpy(ret_data, op->io.buffer->data + op->io.offset_bytes % BLOCK_SIZE,
               op->io.len_bytes);
    buffer_put(op->io.buffer);
    op->io.buffer = NULL;
    return op->io.result;
}

static inline async int write_bytes_at(struct disk *disk, uint64_t offset, uint64_t len,
                                       const uint8_t *data, unsigned flags)
{
    struct op op;
    op_start(&op, disk, DISK_WRITE, flags, offset, len, data);
    return op_wait(&op, NULL);
}

static inline async int read_bytes_at(struct disk *disk, uint64_t offset, uint64_t len,
                                      uint8_t *ret)
{
    struct op op;
    op_start(&op, disk, DISK_READ, 0, offset, len, NULL);
    return op_wait(&op, ret);
}

static inline async int change(struct disk *disk, enum disk_op kind, uint64_t offset,
                               uint64_t len)
{
    struct op op;
    op_start(&op, disk, kind, 0, offset, len, NULL);
    return op_wait(&op, NULL);
}

static inline async int flush(struct disk *disk)
{
    return change(disk, DISK_FLUSH, 0, 0);
}

/* --- the model --- */

struct model {
    uint64_t size_bytes;
    uint8_t bytes[MODEL_BYTES];
};

static inline struct model *model_create(uint64_t size_bytes)
{
    struct model *model = calloc(1, sizeof *model);
    CHECK(model != NULL && size_bytes <= MODEL_BYTES);
    model->size_bytes = size_bytes;
    return model;
}

static inline struct model *model_copy(const struct model *from)
{
    struct model *model = malloc(sizeof *model);
    CHECK(model != NULL);
    memcpy(model, from, sizeof *model);
    return model;
}

static inline async void check_content(struct disk *disk, const struct model *model)
{
    static uint8_t bytes[256 * KIB];
    CHECK_EQ(disk_size_bytes(disk), model->size_bytes);
    for (uint64_t at = 0; at < model->size_bytes; at += sizeof bytes) {
        uint64_t n = min_u64(sizeof bytes, model->size_bytes - at);
        struct op op;
        op_start(&op, disk, DISK_READ, 0, at, n, NULL);
        event_wait(&op.over);
        CHECK_EQ(op.io.result, 0);
        for (uint64_t i = 0; i < n; i += BLOCK_SIZE) {
            if (memcmp(op.io.buffer->data + i, model->bytes + at + i, BLOCK_SIZE) != 0)
                fprintf(stderr, "disk %s: block %llu is wrong\n", disk_name(disk),
                        (unsigned long long)((at + i) / BLOCK_SIZE));
            CHECK(memcmp(op.io.buffer->data + i, model->bytes + at + i, BLOCK_SIZE) == 0);
        }
        buffer_put(op.io.buffer);
    }
}

/* Holes are exactly the blocks of zeros. */
static inline async void check_status(struct disk *disk, const struct model *model,
                                      uint64_t offset, uint64_t len, uint32_t max)
{
    struct disk_range ranges[64];
    uint32_t count = 0;
    CHECK(max <= ARRAY_LEN(ranges));
    CHECK_EQ(disk_block_status(disk, offset, len, ranges, max, &count), 0);
    CHECK(count >= 1 && count <= max);
    uint64_t at = offset;
    for (uint32_t i = 0; i < count; i++) {
        CHECK(ranges[i].len_bytes > 0 && ranges[i].len_bytes <= offset + len - at);
        CHECK(i == 0 || ranges[i].kind != ranges[i - 1].kind);
        for (uint64_t end = at + ranges[i].len_bytes; at < end;) {
            uint64_t block = round_down_u64(at, BLOCK_SIZE);
            bool zeros = bytes_are_zero(model->bytes + block, BLOCK_SIZE);
            CHECK_EQ(ranges[i].kind, zeros ? DISK_HOLE : DISK_DATA);
            at = min_u64(end, block + BLOCK_SIZE);
        }
    }
    CHECK(at == offset + len || count == max);
}

static inline async struct disk *attach(struct machine *m, const char *name)
{
    struct disk *disk = NULL;
    DO(disk_open(m->host, name,
                 strchr(name, '@') != NULL ? DISK_READ_ONLY : DISK_READ_WRITE, &disk,
                 &err));
    return disk;
}

static inline async void check_named(struct machine *m, const char *name,
                                     const struct model *model)
{
    struct disk *disk = attach(m, name);
    check_content(disk, model);
    disk_close(disk);
}

/* --- random changes --- */

/* A byte range; of the operations in flight at once no two share a byte. */
struct random_op {
    struct op op;
    uint8_t *data;
};

static inline void random_range(struct machine *m, uint64_t low, uint64_t high,
                                uint64_t *ret_offset, uint64_t *ret_len)
{
    uint64_t longest = min_u64(high - low, 40 * BLOCK_SIZE);
    uint64_t len = 1 + chance(m, chance(m, 4) == 0 ? longest : min_u64(longest, 9000));
    uint64_t offset = low + chance(m, high - low - len + 1);
    if (chance(m, 2) == 0) { /* whole blocks, where there is room */
        uint64_t start = round_up_u64(offset, BLOCK_SIZE);
        uint64_t end = round_down_u64(offset + len, BLOCK_SIZE);
        if (end > start) {
            offset = start;
            len = end - start;
        }
    }
    *ret_offset = offset;
    *ret_len = len;
}

static inline void fill(struct machine *m, uint8_t *data, uint64_t len)
{
    uint64_t word = chance(m, UINT32_MAX);
    for (uint64_t i = 0; i < len; i++) {
        word = word * 6364136223846793005U + 1442695040888963407U;
        data[i] = (uint8_t)(word >> 56);
    }
    /* Now and then whole blocks of zeros inside. */
    if (len > 3 * BLOCK_SIZE && chance(m, 3) == 0)
        memset(data + BLOCK_SIZE, 0, len - 2 * BLOCK_SIZE);
}

static inline void model_zero(struct model *model, enum disk_op kind, uint64_t offset,
                              uint64_t len)
{
    uint64_t end = offset + len;
    if (kind == DISK_TRIM) {
        offset = round_up_u64(offset, BLOCK_SIZE);
        end = round_down_u64(end, BLOCK_SIZE);
    }
    if (offset < end)
        memset(model->bytes + offset, 0, end - offset);
}

/* Starts a random change within [low, high) and notes it in the model. */
static inline void random_start(struct machine *m, struct disk *disk, struct model *model,
                                struct random_op *op, uint64_t low, uint64_t high)
{
    uint64_t offset, len;
    unsigned flags = chance(m, 8) == 0 ? DISK_FUA : 0;
    uint64_t kind = chance(m, 10);
    random_range(m, low, high, &offset, &len);
    op->data = NULL;
    if (kind < 7) {
        op->data = malloc(len);
        CHECK(op->data != NULL);
        fill(m, op->data, len);
        memcpy(model->bytes + offset, op->data, len);
        op_start(&op->op, disk, DISK_WRITE, flags, offset, len, op->data);
    } else {
        enum disk_op zero = kind < 9 ? DISK_ZERO : DISK_TRIM;
        model_zero(model, zero, offset, len);
        op_start(&op->op, disk, zero, flags, offset, len, NULL);
    }
}

#define AT_ONCE 16U

/* A round of changes at the same time, side by side, at any byte. */
static inline async void random_round(struct machine *m, struct disk *disk,
                                      struct model *model)
{
    struct random_op *ops = calloc(AT_ONCE, sizeof *ops);
    CHECK(ops != NULL);
    uint32_t count = 1 + (uint32_t)chance(m, AT_ONCE);
    uint64_t span = 1 + chance(m, model->size_bytes / count);
    uint64_t base = chance(m, model->size_bytes - span * count + 1);
    for (uint32_t i = 0; i < count; i++)
        random_start(m, disk, model, &ops[i], base + i * span, base + (i + 1) * span);
    for (uint32_t i = 0; i < count; i++) {
        CHECK_EQ(op_wait(&ops[i].op, NULL), 0);
        free(ops[i].data);
    }
    free(ops);
}

static inline async void random_rounds(struct machine *m, struct disk *disk,
                                       struct model *model, uint32_t rounds)
{
    for (uint32_t i = 0; i < rounds; i++) {
        random_round(m, disk, model);
        if (chance(m, 8) == 0)
            CHECK_EQ(flush(disk), 0);
    }
}

/* Opens, changes and closes. */
static inline async void random_named(struct machine *m, const char *name,
                                      struct model *model, uint32_t rounds)
{
    struct disk *disk = attach(m, name);
    random_rounds(m, disk, model, rounds);
    disk_close(disk);
}

/* --- the check --- */

struct findings {
    uint32_t count;
    char first[512];
};

static inline void note_finding(void *arg, const char *line)
{
    struct findings *findings = arg;
    if (findings->count++ == 0)
        snprintf(findings->first, sizeof findings->first, "%s", line);
}

static inline async void run_check(struct machine *m, struct findings *ret_findings,
                                   struct check_report *ret_report)
{
    *ret_findings = (struct findings){0};
    struct check_callbacks callbacks = {.finding = note_finding, .arg = ret_findings};
    DO(host_check(m->host, 0, &callbacks, ret_report, &err));
    CHECK_EQ(ret_report->findings, ret_findings->count);
}

static inline async void check_clean(struct machine *m)
{
    struct findings findings;
    struct check_report report;
    run_check(m, &findings, &report);
    if (findings.count > 0)
        fprintf(stderr, "check: %s\n", findings.first);
    CHECK_EQ(findings.count, 0);
}

#endif
