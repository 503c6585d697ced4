/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A log under test: what is done to it, what it says, and the model that knows from
 * `sealed` what each number holds. What comes back must be its prefix.
 */
#ifndef PARALLAX_TESTS_UNIT_LOG_MODEL_H
#define PARALLAX_TESTS_UNIT_LOG_MODEL_H

#include "replication/copies.h"
#include "replication/disk_log.h"
#include "tests/unit/fake_recovery.h"

#define MEMBERS_MAX  3U
#define MEMBERS_MIN  2U /* of three: fewer take no extent */
#define RECOVER_NS   (400 * NS_PER_S) /* a member is avoided for 160 s at most */
#define CHAOS_NS     (60 * NS_PER_MS) /* something every so often */
#define BATCHES_MAX  60000U
#define LIFE_NS      (2000 * NS_PER_S)
#define KV_PATH      "sim/kv"
#define STORE_PATH   "sim/store"
#define STORE_BYTES  (2 * GIB)
#define OUTSTANDING  64U
#define SAMPLE       300U

struct model_batch {
    struct log_piece *pieces;
    uint32_t count;
    uint64_t digest;
};

/* Survives the process. */
struct model {
    struct model_batch batches[BATCHES_MAX];
    uint64_t sealed, committed, flushed, covers;
    uint64_t checkpoint;
};

enum end { END_CLOSE, END_ABANDON, END_KILL, END_CUT, END_COUNT };

struct test;

struct script {
    uint32_t ops;          /* to do in a life */
    uint32_t member_count;
    uint32_t big_percent;  /* records of a MiB */
    bool may_crash;
    bool on_store;         /* a real one */
    bool has_chaos;        /* members fail one by one */
    uint32_t write_error_ppm; /* of its disk */
    uint32_t append_error_ppm, sync_error_ppm, create_error_ppm;
    int64_t fail_nth;      /* -1: off */
    uint64_t limit_blocks; /* of each medium */
    uint64_t retained_bytes;
    int allowed;           /* records may fail with this code; 0: never */
};

struct test {
    const struct script *script;
    struct sim_world *world;
    struct fake_medium media[MEMBERS_MAX];
    struct model model;
    uint64_t disk;
    uint64_t node;           /* which of them the owner is on */
    uint64_t recovered_count;
    /* of one life: */
    struct loop *loop;
    struct fake_member members[MEMBERS_MAX];
    uint64_t returned_ns[MEMBERS_MAX]; /* when it was in reach again; 0: always was */
    struct replica_directory directory;
    struct timer chaos;
    struct task_call leader_call;
    bool leader_runs, leader_stops;
    bool is_mending; /* nothing fails any more, and all is to become whole */
    uint32_t cuts;           /* members that lost power since the log was last opened */
    struct kv *kv;
    struct cluster *cluster;
    struct store *store;
    struct copies *copies; /* of that store; NULL without it */
    struct disk_log *log;
    struct log_callbacks callbacks;
    struct log_budget budget;
    struct buffer_pool *pool;
    struct task_call call;
    uint32_t outstanding, flushing;
    struct waitlist settled;
    enum end end;
    bool lost_power; /* since the log was last opened */
    bool is_over, is_closing;
    uint64_t moved_count, failed_count;
    uint64_t replay_number;
    struct model_batch replayed;
};

static inline uint64_t pick(struct test *t, uint64_t n)
{
    return sim_world_random(t->world, n);
}

/* --- the model --- */

static inline uint64_t mix(uint64_t digest, uint64_t n)
{
    digest = (digest ^ n) * 0x9e3779b97f4a7c15U;
    return digest ^ digest >> 29;
}

/* Neighbours may come back as one piece, so blocks are digested one by one. */
static inline uint64_t digest_piece(uint64_t digest, const struct log_piece *piece)
{
    uint64_t stamp = mix(mix(piece->kind, piece->generation), piece->checkpoint);
    if (piece->crcs == NULL)
        return mix(mix(mix(digest, stamp), piece->key),
                   piece->kind == ENTRY_MARKER ? 0 : piece->count);
    for (uint32_t i = 0; i < piece->count; i++) {
        digest = mix(mix(mix(digest, stamp), piece->key + i), piece->aux);
        digest = mix(digest, piece->crcs[i]);
    }
    return digest;
}

static inline void batch_clear(struct model_batch *batch)
{
    for (uint32_t i = 0; i < batch->count; i++)
        free((void *)(uintptr_t)batch->pieces[i].crcs);
    free(batch->pieces);
    *batch = (struct model_batch){0};
}

static inline void batch_add(struct model_batch *batch, const struct log_piece *piece)
{
    batch->pieces =
        realloc(batch->pieces, (batch->count + 1) * sizeof *batch->pieces);
    struct log_piece *copy = &batch->pieces[batch->count++];
    *copy = *piece;
    if (piece->crcs != NULL) {
        uint32_t *crcs = calloc(piece->count, sizeof *crcs);
        memcpy(crcs, piece->crcs, piece->count * sizeof *crcs);
        copy->crcs = crcs;
    }
    batch->digest = digest_piece(batch->digest, piece);
}

static inline void on_sealed(void *arg, uint64_t disk, const struct log_piece *pieces,
                      uint32_t count, uint64_t number)
{
    struct test *t = arg;
    CHECK_EQ(disk, t->disk);
    CHECK(number <= t->model.sealed + 1 && number > t->model.committed);
    CHECK(number < BATCHES_MAX && count > 0);
    struct model_batch *batch = &t->model.batches[number];
    batch_clear(batch);
    for (uint32_t i = 0; i < count; i++) {
        CHECK_EQ(pieces[i].number, number);
        batch_add(batch, &pieces[i]);
    }
    t->model.sealed = number;
}

static inline struct log_piece *model_find(struct test *t, const struct log_piece *piece)
{
    struct model_batch *batch = &t->model.batches[piece->number];
    for (uint32_t i = 0; i < batch->count; i++) {
        struct log_piece *known = &batch->pieces[i];
        if (known->kind == piece->kind && known->key == piece->key &&
            known->count == piece->count)
            return known;
    }
    return NULL;
}

static inline bool readable(struct test *t, const struct log_piece *piece)
{
    if (t->script->on_store)
        return true; /* read_some looks, on a task */
    if (t->cuts > 0 && piece->number > t->model.flushed)
        return true; /* what lost power may have lost it; the owner has it */
    for (uint32_t i = 0; piece->crcs != NULL && i < piece->count; i++) {
        uint32_t copies = 0;
        for (uint32_t m = 0; m < t->script->member_count; m++)
            copies += fake_has(&t->media[m], address_plus(piece->address, i),
                               piece->crcs[i]);
        if (copies < min_u32(MEMBERS_MIN, t->script->member_count))
            return false;
    }
    return true;
}

/* What was committed stays readable where it was said to be. */
static inline void check_some_readable(struct test *t)
{
    for (uint32_t i = 0; i < SAMPLE && t->model.committed > 0; i++) {
        struct model_batch *batch =
            &t->model.batches[1 + pick(t, t->model.committed)];
        for (uint32_t p = 0; p < batch->count; p++)
            CHECK(readable(t, &batch->pieces[p]));
    }
}

struct test_read {
    struct log_read read;
    struct event over;
};

static inline void read_done(struct log_read *read)
{
    event_set(&container_of(read, struct test_read, read)->over);
}

static inline async void read_piece(struct test *t, const struct log_piece *piece)
{
    struct buffer *buffer = buffer_create(t->pool, piece->count * BLOCK_SIZE);
    CHECK(buffer != NULL);
    struct iovec iov = {.iov_base = buffer->data, .iov_len = piece->count * BLOCK_SIZE};
    struct test_read mine = {.read = {.address = piece->address,
                                      .count = (uint32_t)piece->count,
                                      .iov = &iov,
                                      .iov_count = 1,
                                      .crcs = piece->crcs,
                                      .done = read_done}};
    event_init(&mine.over);
    copies_read(t->copies, &mine.read);
    event_wait(&mine.over);
    CHECK_EQ(mine.read.result, 0);
    buffer_put(buffer);
}

/* The same on a real store; the pieces may be repointed while one is read. */
static inline async void read_some(struct test *t)
{
    for (uint32_t i = 0; i < SAMPLE / 10 && t->model.committed > 0; i++) {
        struct model_batch *batch =
            &t->model.batches[1 + pick(t, t->model.committed)];
        if (batch->count == 0)
            continue;
        struct log_piece piece = batch->pieces[pick(t, batch->count)];
        if (piece.crcs != NULL)
            read_piece(t, &piece);
    }
}

/* --- callbacks --- */

struct test_record {
    struct log_record record;
    struct test *t;
};

static inline void record_done(struct log_record *record)
{
    struct test_record *mine = container_of(record, struct test_record, record);
    struct test *t = mine->t;
    CHECK(t->outstanding > 0);
    t->outstanding--;
    waitlist_wake_all(&t->settled);
    free(mine);
}

/* A promise was just made: a good moment to end. */
static inline void maybe_end(struct test *t, uint64_t one_in)
{
    if ((t->end == END_KILL || t->end == END_CUT) && pick(t, one_in) == 0)
        t->is_over = true;
}

static inline void on_committed(struct log_callbacks *self, struct log_record *record,
                         const struct log_piece *piece, bool last)
{
    struct test *t = container_of(self, struct test, callbacks);
    CHECK(piece->number == t->model.committed ||
          piece->number == t->model.committed + 1);
    CHECK(piece->number <= t->model.sealed);
    t->model.committed = piece->number;
    struct log_piece *known = model_find(t, piece);
    CHECK(known != NULL && known->generation == record->generation);
    known->address = piece->address;
    CHECK(readable(t, known));
    maybe_end(t, piece->address.v % EXTENT_BLOCKS < 40 ? 10 : 1000);
    if (last)
        record_done(record);
}

static inline void on_failed(struct log_callbacks *self, struct log_record *record,
                             int code)
{
    struct test *t = container_of(self, struct test, callbacks);
    CHECK(code < 0);
    if (!t->is_closing)
        CHECK_EQ(code, t->script->allowed);
    t->failed_count++;
    record_done(record);
}

static inline void on_moved(struct log_callbacks *self, const struct log_piece *piece,
                     struct address was)
{
    struct test *t = container_of(self, struct test, callbacks);
    CHECK(piece->number <= t->model.committed);
    struct log_piece *known = model_find(t, piece);
    CHECK(known != NULL && address_equal(known->address, was));
    /* Members that fail one after the other leave it in the owner's memory alone. */
    CHECK(t->script->has_chaos || readable(t, known));
    known->address = piece->address;
    CHECK(readable(t, known));
    t->moved_count++;
}

static inline void on_down(struct log_callbacks *self, int code)
{
    struct test *t = container_of(self, struct test, callbacks);
    if (!t->is_closing)
        CHECK_EQ(code, t->script->allowed);
}

/* --- what a life does --- */

static inline void append(struct test *t)
{
    struct test_record *mine = calloc(1, sizeof *mine);
    struct log_record *record = &mine->record;
    mine->t = t;
    *record = (struct log_record){.kind = ENTRY_DATA,
                                  .key = pick(t, 1 << 20),
                                  .count = 1 + pick(t, 8),
                                  .generation = 1 + (uint32_t)(pick(t, 40) == 0),
                                  .callbacks = &t->callbacks};
    uint64_t kind = pick(t, 100);
    if (pick(t, 100) < t->script->big_percent)
        record->count = 200 + pick(t, 57);
    else if (kind < 5)
        record->count = 20 + pick(t, 100);
    else if (kind < 15)
        record->kind = ENTRY_ZERO, record->count = 1 + pick(t, 1 << 20);
    else if (kind < 17)
        record->kind = ENTRY_MARKER, record->count = 1;
    else if (kind < 25) {
        record->kind = ENTRY_NODE;
        record->aux = 1;
        record->count = 1;
        record->checkpoint = t->model.checkpoint + 1;
        record->use_reserve = true;
    }
    if (entry_has_block(record->kind)) {
        struct buffer *buffer = buffer_create(t->pool, record->count * BLOCK_SIZE);
        CHECK(buffer != NULL);
        memset(buffer->data, (int)pick(t, 256), record->count * BLOCK_SIZE);
        for (uint32_t i = 0; i < record->count; i++)
            buffer->data[i * BLOCK_SIZE + 7] = (uint8_t)(i + record->key);
        record->data = (struct slice){
            .buffer = buffer, .len = (uint32_t)(record->count * BLOCK_SIZE)};
    }
    t->outstanding++;
    log_append(t->log, record);
}

struct test_flush {
    struct log_flush flush;
    struct test *t;
    uint64_t number, begun_ns;
};

/* Where nothing fails a flush takes two rounds at most, however many came before it. */
static inline void check_not_late(const struct test *t, uint64_t begun_ns)
{
    const struct script *script = t->script;
    bool is_smooth = !script->on_store && !script->has_chaos &&
                     script->append_error_ppm == 0 &&
                     script->sync_error_ppm == 0 && script->fail_nth < 0 &&
                     script->limit_blocks == UINT32_MAX;
    if (is_smooth)
        CHECK(sim_world_now_ns(t->world) - begun_ns < SYNC_EVERY_MS * NS_PER_MS / 2);
}

static inline void flush_done(struct log_flush *flush)
{
    struct test_flush *mine = container_of(flush, struct test_flush, flush);
    struct test *t = mine->t;
    t->flushing--;
    if (flush->result == 0) {
        t->model.flushed = max_u64(t->model.flushed, mine->number);
        check_not_late(t, mine->begun_ns);
        maybe_end(t, 100);
    } else if (!t->is_closing) {
        CHECK_EQ(flush->result, t->script->allowed);
    }
    waitlist_wake_all(&t->settled);
    free(mine);
}

static inline void flush(struct test *t)
{
    struct test_flush *mine = calloc(1, sizeof *mine);
    mine->t = t;
    mine->number = t->model.committed;
    mine->begun_ns = sim_world_now_ns(t->world);
    mine->flush.done = flush_done;
    t->flushing++;
    log_flush(t->log, &mine->flush);
}

static inline async void settle(struct test *t)
{
    while (t->outstanding > 0 || t->flushing > 0)
        waitlist_wait(&t->settled);
}

static inline async void checkpoint(struct test *t)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(t->cluster), t->disk);
    uint64_t flushed = log_flushed_number(t->log);
    uint64_t covers = t->model.covers + pick(t, flushed - t->model.covers + 1);
    struct cluster_command command = {
        .op = CLUSTER_CHECKPOINT,
        .checkpoint = {.number = disk->checkpoint.number + 1,
                       .covers = covers,
                       .last = flushed},
        .root = {.generation = 1},
        .newest_marker = disk->newest_marker,
    };
    log_finals_prepare(t->log, covers, &command);
    struct cluster_result result;
    int rc = cluster_submit(t->cluster, &command, &result);
    log_finals_committed(t->log, rc == 0);
    if (rc != 0)
        fprintf(stderr, "checkpoint: %s\n", result.text);
    CHECK_EQ(rc, 0);
    t->model.covers = covers;
    t->model.checkpoint++;
}

static inline async void one_op(struct test *t)
{
    uint64_t what = pick(t, 1000);
    if (t->script->has_chaos && pick(t, 300) == 0)
        task_sleep_ns(pick(t, 30 * NS_PER_S)); /* idle for long */
    if (what < 700) {
        while (t->outstanding >= OUTSTANDING)
            waitlist_wait(&t->settled);
        append(t);
    } else if (what < 850) {
        flush(t);
    } else if (what < 970) {
        task_sleep_ns(pick(t, 2 * NS_PER_MS));
    } else if (what < 985) {
        checkpoint(t);
    } else if (what < 990) {
        settle(t);
    } else if (t->script->on_store) {
        read_some(t);
    } else {
        check_some_readable(t);
    }
}

#endif
