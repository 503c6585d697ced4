/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log against a model, over lives of a process that end in every way: records in,
 * crash, take-over, replay. The model knows from `sealed` what each number holds; what
 * comes back must be its prefix, with everything committed after a kill and everything
 * flushed after a power cut. The member is one in memory that fails on demand, or a real
 * store on the simulator's disk; or there are three in memory, which are restarted, lose
 * power and fall silent while the owner lives, and live on when it dies.
 */
#include <sys/wait.h>
#include <unistd.h>

#include "replication/copies.h"
#include "replication/disk_log.h"
#include "tests/unit/fake_member.h"

#define MEMBERS_MAX  3U
#define MEMBERS_MIN  2U /* of three: fewer take no extent */
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
    /* of one life: */
    struct loop *loop;
    struct fake_member members[MEMBERS_MAX];
    struct replica_directory directory;
    struct timer chaos;
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

static uint64_t pick(struct test *t, uint64_t n)
{
    return sim_world_random(t->world, n);
}

/* --- the model --- */

static uint64_t mix(uint64_t digest, uint64_t n)
{
    digest = (digest ^ n) * 0x9e3779b97f4a7c15U;
    return digest ^ digest >> 29;
}

/* Neighbours may come back as one piece, so blocks are digested one by one. */
static uint64_t digest_piece(uint64_t digest, const struct log_piece *piece)
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

static void batch_clear(struct model_batch *batch)
{
    for (uint32_t i = 0; i < batch->count; i++)
        free((void *)(uintptr_t)batch->pieces[i].crcs);
    free(batch->pieces);
    *batch = (struct model_batch){0};
}

static void batch_add(struct model_batch *batch, const struct log_piece *piece)
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

static void on_sealed(void *arg, uint64_t disk, const struct log_piece *pieces,
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

static struct log_piece *model_find(struct test *t, const struct log_piece *piece)
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

static bool readable(struct test *t, const struct log_piece *piece)
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
static void check_some_readable(struct test *t)
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

static void read_done(struct log_read *read)
{
    event_set(&container_of(read, struct test_read, read)->over);
}

static async void read_piece(struct test *t, const struct log_piece *piece)
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
static async void read_some(struct test *t)
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

static void record_done(struct log_record *record)
{
    struct test_record *mine = container_of(record, struct test_record, record);
    struct test *t = mine->t;
    CHECK(t->outstanding > 0);
    t->outstanding--;
    waitlist_wake_all(&t->settled);
    free(mine);
}

/* A promise was just made: a good moment to end. */
static void maybe_end(struct test *t, uint64_t one_in)
{
    if ((t->end == END_KILL || t->end == END_CUT) && pick(t, one_in) == 0)
        t->is_over = true;
}

static void on_committed(struct log_callbacks *self, struct log_record *record,
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

static void on_failed(struct log_callbacks *self, struct log_record *record, int code)
{
    struct test *t = container_of(self, struct test, callbacks);
    CHECK(code < 0);
    if (!t->is_closing)
        CHECK_EQ(code, t->script->allowed);
    t->failed_count++;
    record_done(record);
}

static void on_moved(struct log_callbacks *self, const struct log_piece *piece,
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

static void on_down(struct log_callbacks *self, int code)
{
    struct test *t = container_of(self, struct test, callbacks);
    if (!t->is_closing)
        CHECK_EQ(code, t->script->allowed);
}

/* --- what a life does --- */

static void append(struct test *t)
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
static void check_not_late(const struct test *t, uint64_t begun_ns)
{
    const struct script *script = t->script;
    bool is_smooth = !script->on_store && !script->has_chaos &&
                     script->append_error_ppm == 0 &&
                     script->sync_error_ppm == 0 && script->fail_nth < 0 &&
                     script->limit_blocks == UINT32_MAX;
    if (is_smooth)
        CHECK(sim_world_now_ns(t->world) - begun_ns < SYNC_EVERY_MS * NS_PER_MS / 2);
}

static void flush_done(struct log_flush *flush)
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

static void flush(struct test *t)
{
    struct test_flush *mine = calloc(1, sizeof *mine);
    mine->t = t;
    mine->number = t->model.committed;
    mine->begun_ns = sim_world_now_ns(t->world);
    mine->flush.done = flush_done;
    t->flushing++;
    log_flush(t->log, &mine->flush);
}

static async void settle(struct test *t)
{
    while (t->outstanding > 0 || t->flushing > 0)
        waitlist_wait(&t->settled);
}

static async void checkpoint(struct test *t)
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

static async void one_op(struct test *t)
{
    uint64_t what = pick(t, 1000);
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

/* --- opening and what came back --- */

static void replayed_whole(struct test *t)
{
    struct model_batch *known = &t->model.batches[t->replay_number];
    CHECK_EQ(t->replayed.digest, known->digest);
    batch_clear(known);
    *known = t->replayed;
    t->replayed = (struct model_batch){0};
}

/* A second copy is not where anybody was told to look. */
static void check_spare(struct test *t, const struct log_piece *piece)
{
    if (t->replayed.count > 0)
        replayed_whole(t);
    const struct log_piece *known = model_find(t, piece);
    CHECK(piece->number <= t->replay_number);
    if (known != NULL && piece->crcs != NULL)
        CHECK(known->address.v != piece->address.v);
}

static int on_replay(void *arg, const struct log_piece *piece)
{
    struct test *t = arg;
    if (piece->is_spare) {
        check_spare(t, piece);
        return 0;
    }
    if (piece->number != t->replay_number) {
        if (t->replayed.count > 0)
            replayed_whole(t);
        CHECK_EQ(piece->number, t->replay_number + 1);
        t->replay_number++;
    }
    CHECK(readable(t, piece));
    batch_add(&t->replayed, piece);
    return 0;
}

static async void open_store(struct test *t)
{
    struct store_options options = {
        .path = STORE_PATH, .capacity_bytes = STORE_BYTES, .kv = t->kv};
    struct error err = {0};
    if (t->disk == 0)
        CHECK_EQ(store_create(t->loop, &options, (struct uid){{1}}, &err), 0);
    uint32_t write_error_ppm = sim_world_faults(t->world)->write_error_ppm;
    sim_world_faults(t->world)->write_error_ppm = 0; /* the log's, not the superblock's */
    int rc = store_open(t->loop, &options, &t->store, &err);
    sim_world_faults(t->world)->write_error_ppm = write_error_ppm;
    if (rc != 0)
        fprintf(stderr, "store_open: %s\n", err.text);
    CHECK_EQ(rc, 0);
}

static async void open_cluster(struct test *t)
{
    struct error err = {0};
    struct cluster_result result;
    CHECK_EQ(kv_open(t->loop, KV_PATH, true, &t->kv, &err), 0);
    if (t->script->on_store)
        open_store(t);
    struct cluster_options options = {.loop = t->loop, .kv = t->kv, .node = 1};
    if (t->disk == 0)
        CHECK_EQ(cluster_bootstrap(t->kv, 1, &err), 0);
    CHECK_EQ(cluster_open(&options, &t->cluster, &err), 0);
    struct copies_options copies = {
        .loop = t->loop, .cluster = t->cluster, .store = t->store, .node = 1};
    if (t->script->on_store)
        CHECK_EQ(copies_create(&copies, &t->copies), 0);
    if (t->disk != 0)
        return;
    struct cluster_command init = {
        .op = CLUSTER_INIT, .cluster = {{1}}, .store = {{2}}, .node = 1};
    CHECK_EQ(cluster_submit(t->cluster, &init, &result), 0);
    struct cluster_command create = {
        .op = CLUSTER_DISK_CREATE, .name = "web01", .size_bytes = GIB};
    CHECK_EQ(cluster_submit(t->cluster, &create, &result), 0);
    t->disk = result.id;
    for (uint8_t i = 1; i < t->script->member_count; i++) {
        struct cluster_command node = {.op = CLUSTER_NODE_SET, .store = {{2, i}}};
        CHECK_EQ(cluster_submit(t->cluster, &node, &result), 0);
        CHECK_EQ(result.id, i + 1);
    }
}

static async void open_log(struct test *t)
{
    struct model *model = &t->model;
    struct log_options options = {.loop = t->loop,
                                  .cluster = t->cluster,
                                  .store = t->store,
                                  .directory =
                                      t->script->on_store ? NULL : &t->directory,
                                  .callbacks = &t->callbacks,
                                  .retained = &t->budget,
                                  .buffers = t->pool,
                                  .node = 1,
                                  .disk = t->disk,
                                  .sealed = on_sealed,
                                  .sealed_arg = t};
    struct error err = {0};
    int rc = log_open(&options, &t->log, &err);
    if (rc != 0)
        fprintf(stderr, "log_open: %s\n", err.text);
    CHECK_EQ(rc, 0);
    /* A checkpoint whose answer the last process did not live to see may be there. */
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(t->cluster), t->disk);
    CHECK(disk->checkpoint.covers >= model->covers);
    model->covers = disk->checkpoint.covers;
    model->checkpoint = disk->checkpoint.number;
    t->replay_number = model->covers;
    batch_clear(&t->replayed);
    CHECK_EQ(log_replay(t->log, on_replay, t, &err), 0);
    if (t->replayed.count > 0)
        replayed_whole(t);
    uint64_t last = log_last_number(t->log);
    CHECK_EQ(last, t->replay_number);
    CHECK(last <= model->sealed);
    bool may_lose = t->lost_power || t->cuts >= MEMBERS_MIN;
    CHECK(last >= (may_lose ? model->flushed : model->committed));
    t->lost_power = false;
    t->cuts = 0;
    CHECK_EQ(log_committed_number(t->log), last);
    model->sealed = model->committed = model->flushed = last;
    if (t->script->on_store)
        read_some(t);
    else
        check_some_readable(t);
}

static uint32_t member_count(const struct test *t)
{
    return t->script->member_count;
}

/* --- members --- */

static struct replica *find_member(struct replica_directory *directory, uint64_t node)
{
    struct test *t = container_of(directory, struct test, directory);
    return node >= 1 && node <= member_count(t) ? &t->members[node - 1].replica : NULL;
}

static struct chosen choose_members(struct replica_directory *directory, uint64_t disk,
                                    const uint64_t *avoid, uint32_t avoid_count)
{
    struct test *t = container_of(directory, struct test, directory);
    struct chosen chosen = {.count = 0};
    CHECK_EQ(disk, t->disk);
    for (uint32_t i = 0; i < member_count(t); i++) {
        bool is_avoided = false;
        for (uint32_t j = 0; j < avoid_count; j++)
            is_avoided |= avoid[j] == t->members[i].replica.node;
        if (!is_avoided)
            chosen.members[chosen.count++] = &t->members[i].replica;
    }
    if (chosen.count < min_u32(MEMBERS_MIN, member_count(t)))
        chosen.count = 0;
    return chosen;
}

/* One member is silent at a time, and none is restarted while it is. */
static void chaos_fired(struct timer *timer)
{
    struct test *t = container_of(timer, struct test, chaos);
    struct fake_member *member = &t->members[pick(t, member_count(t))];
    bool is_silent = false;
    for (uint32_t i = 0; i < member_count(t); i++) {
        is_silent |= t->members[i].is_silent;
        t->members[i].is_silent = false;
    }
    if (!is_silent && pick(t, 2) == 0) {
        member->is_silent = true;
    } else if (!is_silent) {
        enum sim_end how = pick(t, 3) == 0 ? SIM_POWER_CUT : SIM_KILL;
        fake_restart(member->medium, t->world, how);
        t->cuts += how == SIM_POWER_CUT;
        waitlist_wake_all(&member->quiet);
    }
    timer_start(t->loop, timer, pick(t, pick(t, 20) == 0 ? 20 * NS_PER_S : CHAOS_NS));
}

static void life_main(struct task_call *call)
{
    struct test *t = container_of(call, struct test, call);
    struct error err = {0};
    t->callbacks = (struct log_callbacks){on_committed, on_failed, on_moved, on_down};
    enum end end = t->end;
    open_cluster(t);
    open_log(t);
    for (uint32_t i = 0; i < member_count(t); i++)
        t->members[i].fail_nth = t->script->fail_nth;
    sim_world_faults(t->world)->write_error_ppm = t->script->write_error_ppm;
    for (uint32_t i = 0; i < t->script->ops; i++)
        one_op(t);
    sim_world_faults(t->world)->write_error_ppm = 0;
    if (end == END_KILL || end == END_CUT) {
        t->is_over = true;
        return;
    }
    if (end == END_CLOSE) {
        settle(t);
        int rc = log_close(take(t->log), &err);
        /* If nobody answers the lease stays, and all is flushed all the same. */
        if (rc != 0)
            fprintf(stderr, "log_close: %s\n", err.text);
        CHECK(rc == 0 || (t->script->has_chaos && rc == -ETIMEDOUT));
        t->model.flushed = t->model.committed;
    } else {
        t->is_closing = true;
        log_abandon(take(t->log));
        CHECK_EQ(t->outstanding, 0);
    }
    CHECK_EQ(buffer_pool_used_bytes(t->pool), 0);
    CHECK_EQ(t->budget.used_bytes, 0);
    copies_destroy(t->copies);
    cluster_close(t->cluster);
    if (t->script->on_store)
        store_close(t->store);
    kv_close(t->kv);
    t->is_over = true;
}

/* With the owner either all members go down, or one, or none. */
static void end_members(struct test *t, enum sim_end how)
{
    uint32_t count = member_count(t);
    uint32_t first = 0, end = count;
    if (t->script->has_chaos && pick(t, 3) > 0) {
        first = (uint32_t)pick(t, count);
        end = first + (uint32_t)pick(t, 2);
    }
    t->lost_power |= how == SIM_POWER_CUT && end - first == count;
    for (uint32_t i = 0; i < count; i++) {
        bool goes_down = first <= i && i < end;
        if (goes_down)
            fake_restart(&t->media[i], t->world, how);
        else
            fake_owner_gone(&t->media[i]);
        t->cuts += goes_down && how == SIM_POWER_CUT;
    }
}

static void life(struct test *t)
{
    const struct script *script = t->script;
    t->loop = sim_process_create(t->world);
    t->pool = buffer_pool_create(512 * MIB);
    t->budget = (struct log_budget){.limit_bytes = script->retained_bytes};
    waitlist_init(&t->budget.waiting);
    waitlist_init(&t->settled);
    t->outstanding = t->flushing = 0;
    t->is_over = t->is_closing = false;
    t->directory =
        (struct replica_directory){.find = find_member, .choose = choose_members};
    t->chaos = (struct timer){.fire = chaos_fired};
    if (script->has_chaos)
        timer_start(t->loop, &t->chaos, pick(t, CHAOS_NS));
    for (uint32_t i = 0; i < script->member_count; i++) {
        struct fake_member *member = &t->members[i];
        fake_member_init(member, t->loop, t->world, &t->media[i], i + 1);
        member->append_error_ppm = script->append_error_ppm;
        member->sync_error_ppm = script->sync_error_ppm;
        member->create_error_ppm = script->create_error_ppm;
        t->media[i].limit_blocks = script->limit_blocks;
    }
    t->end = script->may_crash ? (enum end)pick(t, END_COUNT) : END_CLOSE;
    t->call = (struct task_call){.main = life_main, .name = "life"};
    task_start(t->loop, &t->call);
    /* One life in four ends in the middle of whatever it does, often the take-over. */
    bool is_short = script->may_crash && t->disk != 0 && pick(t, 4) == 0;
    if (is_short)
        t->end = pick(t, 2) == 0 ? END_KILL : END_CUT;
    uint64_t limit_ns = is_short ? pick(t, 20 * NS_PER_MS) : LIFE_NS;
    bool is_over = sim_world_run_until(t->world, &t->is_over, limit_ns);
    CHECK(is_over || is_short);
    enum sim_end how = t->end == END_CUT ? SIM_POWER_CUT : SIM_KILL;
    sim_process_end(t->loop, how);
    end_members(t, how);
}

static struct test *test_create(uint64_t seed, const struct script *script)
{
    struct test *t = calloc(1, sizeof *t);
    CHECK(t != NULL);
    t->script = script;
    t->world = sim_world_create(seed);
    struct sim_faults *faults = sim_world_faults(t->world);
    faults->latency_min_ns = 20 * NS_PER_US;
    faults->latency_max_ns = 200 * NS_PER_US;
    return t;
}

static void test_destroy(struct test *t)
{
    for (uint32_t i = 0; i < MEMBERS_MAX; i++)
        fake_medium_done(&t->media[i]);
    for (uint32_t i = 0; i < BATCHES_MAX; i++)
        batch_clear(&t->model.batches[i]);
    sim_world_destroy(t->world);
    free(t);
}

/* --- the stories --- */

static const struct script PLAIN = {.ops = 400,
                                    .member_count = 1,
                                    .may_crash = true,
                                    .fail_nth = -1,
                                    .limit_blocks = UINT32_MAX,
                                    .retained_bytes = 64 * MIB};

static void lives(uint64_t seed, const struct script *script, uint32_t count)
{
    struct test *t = test_create(seed, script);
    for (uint32_t i = 0; i < count; i++)
        life(t);
    fprintf(stderr, "%llu batches, %llu pieces moved\n",
            (unsigned long long)t->model.sealed, (unsigned long long)t->moved_count);
    test_destroy(t);
}

static void crashes(uint64_t seed)
{
    lives(seed, &PLAIN, 8);
}

static void crashes_with_errors(uint64_t seed)
{
    struct script script = PLAIN;
    script.append_error_ppm = 3000;
    script.sync_error_ppm = 20000;
    script.create_error_ppm = 50000;
    lives(seed, &script, 8);
}

static void rolls(uint64_t seed)
{
    struct script script = PLAIN;
    script.ops = 500;
    script.big_percent = 60;
    script.append_error_ppm = seed % 2 == 0 ? 0 : 3000;
    script.retained_bytes = seed % 3 == 0 ? 8 * MIB : 64 * MIB;
    lives(seed, &script, 3);
}

/* The nth append or sync fails: nobody is told, and nothing is lost. */
static void nth_failure(uint64_t first)
{
    struct script script = PLAIN;
    script.ops = 60;
    script.may_crash = false;
    for (int64_t nth = (int64_t)first; nth < 400; nth += 10) {
        script.fail_nth = nth;
        struct test *t = test_create((uint64_t)nth, &script);
        life(t);
        bool happened = t->members[0].has_failed;
        life(t);
        test_destroy(t);
        if (!happened)
            break;
    }
}

/* Full: records fail in order, the log goes on when there is space again. */
static void full(uint64_t seed)
{
    struct script script = PLAIN;
    script.limit_blocks = 1000 + 100 * (seed % 20);
    script.allowed = -PLX_EFULL;
    script.may_crash = seed % 2 == 0;
    struct test *t = test_create(seed, &script);
    life(t);
    life(t);
    script.limit_blocks = 100000;
    life(t);
    CHECK(script.may_crash || t->failed_count > 0);
    test_destroy(t);
}

/* The owner and the members of a write set die one by one. */
static void members(uint64_t seed)
{
    struct script script = PLAIN;
    script.ops = 600;
    script.member_count = 3;
    script.has_chaos = seed % 8 != 0;
    script.append_error_ppm = seed % 4 == 1 ? 1000 : 0;
    script.big_percent = seed % 5 == 2 ? 20 : 0;
    lives(seed, &script, 8);
}

static void store_crashes(uint64_t seed)
{
    struct script script = PLAIN;
    script.on_store = true;
    script.ops = 250;
    lives(seed, &script, 6);
}

static void store_rolls(uint64_t seed)
{
    struct script script = PLAIN;
    script.on_store = true;
    script.big_percent = seed % 2 == 0 ? 50 : 0;
    script.ops = 250;
    script.write_error_ppm = seed % 2 == 0 ? 3000 : 8000;
    lives(seed, &script, 4);
}

struct story {
    const char *name;
    void (*run)(uint64_t seed);
    uint64_t seeds;
};

static const struct story STORIES[] = {
    {"crashes", crashes, 80},
    {"crashes with errors", crashes_with_errors, 80},
    {"rolls", rolls, 12},
    {"nth failure", nth_failure, 10},
    {"full", full, 30},
    {"three members", members, 120},
    {"crashes on a store", store_crashes, 40},
    {"write errors on a store", store_rolls, 10},
};

/* A killed process leaves memory behind: a few seeds for each child. */
static void run_story(const struct story *story, uint64_t from, uint64_t to)
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        for (uint64_t seed = from; seed < to; seed++) {
            fprintf(stderr, "%s, seed %llu\n", story->name, (unsigned long long)seed);
            story->run(seed);
        }
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    if (status != 0)
        fprintf(stderr, "story \"%s\", seeds %llu to %llu: status %x\n", story->name,
                (unsigned long long)from, (unsigned long long)to - 1, (unsigned)status);
    CHECK_EQ(status, 0);
}

/* LeakSanitizer would report what killed processes left: children end by _exit. Without
 * arguments all; STORY-INDEX SEED: one. */
int main(int argc, char **argv)
{
    if (argc == 3) {
        STORIES[atoi(argv[1])].run(strtoull(argv[2], NULL, 10));
        _exit(0); /* without a search for what killed processes left */
    }
    for (size_t i = 0; i < ARRAY_LEN(STORIES); i++) {
        uint64_t seeds = seeds_of(STORIES[i].seeds);
        for (uint64_t seed = 0; seed < seeds; seed += 10)
            run_story(&STORIES[i], seed, min_u64(seed + 10, seeds));
    }
    return 0;
}
