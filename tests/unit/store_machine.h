/* SPDX-License-Identifier: Apache-2.0 */
/* A store on a simulated machine, and a model of what it must hold: for each extent the
 * checksum of every block submitted, and how much of it was answered and synced. */
#ifndef PARALLAX_TESTS_UNIT_STORE_MACHINE_H
#define PARALLAX_TESTS_UNIT_STORE_MACHINE_H

#include "blockstore/compact.h"
#include "tests/unit/on_loops.h"

#define STORE_PATH  "sim/store"
#define KV_PATH     "sim/kv"
#define MODEL_MAX   200U
#define OPENS_MAX   6U
#define CLUSTER_UID ((struct uid){{7, 7, 7}})

enum model_state { M_ABSENT, M_OPEN, M_STOPPED, M_FINAL, M_DELETED };

struct model_extent {
    struct address address;
    uint64_t disk, epoch, nonce;
    enum model_state state;
    enum model_state next; /* what a call under way makes of it */
    uint32_t submitted, answered, synced;
    uint32_t stopped; /* the length that a stop answered, or a restart found */
    uint32_t final;   /* asked for */
    bool was_cut;     /* an append has failed */
    bool is_busy;     /* somebody wants it to stay as it is */
    bool was_full;    /* one was refused: the model has lost count */
    uint64_t number;
    uint64_t flushed; /* as its next headers say */
    struct roll_entry rolls[2]; /* of its roll record */
    uint32_t roll_count;
    uint32_t previous_crc;
    uint32_t crc[EXTENT_BLOCKS];
    uint8_t trimmed[BITMAP_BYTES];  /* asked for */
    bool headers_trimmed;           /* asked for */
    bool trims_lost;                /* some, maybe: in flight or not synced at an end */
    bool is_end[EXTENT_BLOCKS + 1]; /* a batch ends before this block */
};

struct machine {
    struct body body;
    struct sim_world *world;
    struct kv *kv;
    struct store *store;
    struct buffer_pool *pool;
    uint64_t capacity_bytes;
    uint64_t pattern;
    bool no_idle_work;
    int open_result;
    uint32_t inflight, syncs;
    uint64_t sequence;
    uint32_t count;
    struct model_extent *extents[MODEL_MAX];
};

static inline struct machine *machine_of(struct body *body)
{
    return container_of(body, struct machine, body);
}

static inline struct machine *machine_create(uint64_t seed, uint64_t capacity_bytes)
{
    struct machine *m = calloc(1, sizeof *m);
    m->world = sim_world_create(seed);
    m->capacity_bytes = capacity_bytes;
    m->pattern = seed << 32;
    m->pool = buffer_pool_create(64 * MIB);
    return m;
}

/* Only when no process has died with an append in flight. */
static inline void machine_destroy(struct machine *m)
{
    for (uint32_t i = 0; i < m->count; i++)
        free(m->extents[i]);
    buffer_pool_destroy(m->pool);
    sim_world_destroy(m->world);
    free(m);
}

static inline uint32_t chance(struct machine *m, uint32_t n)
{
    return (uint32_t)sim_world_random(m->world, n);
}

/* --- processes --- */

/* Starts a process that runs `run`; does not wait for it. */
static inline void machine_start(struct machine *m, void (*run)(struct body *body))
{
    m->body = (struct body){.run = run, .world = m->world};
    m->body.call = (struct task_call){.main = body_main, .name = "test"};
    m->body.loop = sim_process_create(m->world);
    m->store = NULL;
    m->kv = NULL;
    m->inflight = m->syncs = 0;
    task_start(m->body.loop, &m->body.call);
}

static inline void machine_run(struct machine *m, void (*run)(struct body *body))
{
    machine_start(m, run);
    CHECK(sim_world_run_until(m->world, &m->body.is_over, BODY_LIMIT_NS));
}

/* For what comes next in a process whose body is over. */
static inline void machine_more(struct machine *m, void (*run)(struct body *body))
{
    m->body.run = run;
    m->body.is_over = false;
    m->body.call = (struct task_call){.main = body_main, .name = "test"};
    task_start(m->body.loop, &m->body.call);
    CHECK(sim_world_run_until(m->world, &m->body.is_over, BODY_LIMIT_NS));
}

static inline void machine_end(struct machine *m, enum sim_end how)
{
    sim_process_end(m->body.loop, how);
    m->store = NULL;
}

/* Opens the store, making it first where it is missing. */
static inline void machine_open(struct machine *m)
{
    struct error err = {0};
    struct loop *loop = m->body.loop;
    struct store_options options = {.path = STORE_PATH, .no_idle_work = m->no_idle_work};
    m->open_result = kv_open(loop, KV_PATH, true, &m->kv, &err);
    if (m->open_result < 0)
        return;
    options.kv = m->kv;
    if (sim_file_size_bytes(m->world, STORE_PATH) == 0) {
        options.capacity_bytes = m->capacity_bytes;
        m->open_result = store_create(loop, &options, CLUSTER_UID, &err);
        options.capacity_bytes = 0;
    }
    if (m->open_result == 0)
        m->open_result = store_open(loop, &options, &m->store, &err);
    if (m->open_result < 0)
        CHECK(err.code == m->open_result && strchr(err.text, '\n') == NULL);
}

static inline void body_open(struct body *body)
{
    machine_open(machine_of(body));
}

static inline void body_close(struct body *body)
{
    struct machine *m = machine_of(body);
    store_close(m->store);
    kv_close(m->kv);
    m->store = NULL;
}

/* --- extents --- */

static inline struct model_extent *model_add(struct machine *m)
{
    CHECK(m->count < MODEL_MAX);
    struct model_extent *x = calloc(1, sizeof *x);
    x->address = address_of(1, ++m->sequence, 0);
    x->disk = 1 + m->sequence % 3;
    x->epoch = 1 + m->sequence % 5;
    x->nonce = loop_random_u64(m->body.loop);
    x->number = m->sequence * 10;
    m->extents[m->count++] = x;
    return x;
}

static inline int machine_create_extent(struct machine *m, uint32_t slabs,
                                        struct model_extent **ret)
{
    struct model_extent *x = model_add(m);
    x->next = M_OPEN;
    int result = store_create_extent(m->store, x->address, x->disk, x->epoch, x->nonce,
                                     slabs, false);
    if (result == 0)
        x->state = M_OPEN;
    *ret = x;
    return result;
}

/* --- appends --- */

struct test_append {
    struct store_append append;
    struct machine *machine;
    struct model_extent *extent;
    struct slice slices[3];
    struct event *over;
    int *ret_result;
};

static inline void fill_pattern(struct machine *m, uint8_t *bytes, uint32_t blocks)
{
    for (uint32_t i = 0; i < blocks * BLOCK_SIZE / 8; i++) {
        uint64_t word = ++m->pattern * 0x9e3779b97f4a7c15U;
        memcpy(bytes + i * 8, &word, 8);
    }
}

static inline void append_over(struct store_append *append)
{
    struct test_append *a = container_of(append, struct test_append, append);
    struct model_extent *x = a->extent;
    a->machine->inflight--;
    if (append->result == 0) {
        CHECK_EQ(x->answered, append->block); /* in order, so none after a failed one */
        CHECK(extent_find(&a->machine->store->extents, x->address)->open->recorded >=
              append->block + append->blocks);
        x->answered += append->blocks;
    } else if (append->result == -PLX_EFULL || append->result == -PLX_ENOTEND) {
        x->was_full = true;
    } else {
        x->was_cut = true;
    }
    if (a->ret_result != NULL)
        *a->ret_result = append->result;
    for (uint32_t i = 0; i < append->slice_count; i++)
        if (i == 0 || a->slices[i].buffer != a->slices[i - 1].buffer)
            buffer_put(a->slices[i].buffer);
    if (a->over != NULL)
        event_set(a->over);
    free(a);
}

/* A roll record at block 0, else a batch of `blocks` data blocks; the header and the
 * data in buffers of their own, the data in up to two slices. */
static inline void build_batch(struct test_append *a, uint32_t blocks)
{
    struct machine *m = a->machine;
    struct model_extent *x = a->extent;
    struct entry entries[BATCH_BLOCKS];
    struct header head = {
        .kind = x->submitted == 0 ? HEADER_ROLL : HEADER_BATCH,
        .cluster = CLUSTER_UID,
        .disk = x->disk,
        .extent = x->address,
        .block = x->submitted,
        .epoch = x->epoch,
        .nonce = x->nonce,
        .previous_crc = x->previous_crc,
        .flushed = x->flushed,
    };
    struct buffer *header = buffer_create(m->pool, BLOCK_SIZE);
    CHECK(header != NULL);
    a->slices[a->append.slice_count++] = (struct slice){header, 0, BLOCK_SIZE};
    if (head.kind == HEADER_ROLL) {
        head.count = x->roll_count;
        x->previous_crc = roll_encode(&head, x->rolls, header->data);
        x->crc[x->submitted++] = crc32c(header->data, BLOCK_SIZE);
        x->is_end[x->submitted] = true;
        return;
    }
    struct buffer *data = buffer_create(m->pool, (uint64_t)blocks * BLOCK_SIZE);
    CHECK(data != NULL);
    fill_pattern(m, data->data, blocks);
    for (uint32_t i = 0; i < blocks; i++) {
        uint32_t crc = crc32c(data->data + (size_t)i * BLOCK_SIZE, BLOCK_SIZE);
        entries[i] = (struct entry){.kind = ENTRY_DATA, .key = i, .crc = crc};
        x->crc[x->submitted + 1 + i] = crc;
    }
    uint32_t first = blocks > 1 ? blocks / 2 : blocks;
    a->slices[a->append.slice_count++] = (struct slice){data, 0, first * BLOCK_SIZE};
    if (first < blocks)
        a->slices[a->append.slice_count++] = (struct slice){
            data, first * BLOCK_SIZE, (blocks - first) * BLOCK_SIZE};
    head.number = ++x->number;
    head.count = blocks;
    x->previous_crc = header_encode(&head, entries, header->data);
    x->crc[x->submitted] = crc32c(header->data, BLOCK_SIZE);
    x->submitted += 1 + blocks;
    x->is_end[x->submitted] = true;
}

/* Block 0 and what follows the end of a batch. */
static inline bool is_header(const struct model_extent *x, uint32_t block)
{
    return block == 0 || x->is_end[block];
}

/* Final lengths are always the end of a batch. */
static inline uint32_t end_at_most(const struct model_extent *x, uint32_t length)
{
    while (length > 1 && !x->is_end[length])
        length--;
    return length;
}

/* The caller made sure that the extent has room. */
static inline void machine_append(struct machine *m, struct model_extent *x,
                                  uint32_t blocks, struct event *over, int *ret_result)
{
    struct test_append *a = calloc(1, sizeof *a);
    *a = (struct test_append){
        .append = {.extent = x->address, .epoch = x->epoch, .block = x->submitted},
        .machine = m,
        .extent = x,
        .over = over,
        .ret_result = ret_result,
    };
    build_batch(a, blocks);
    a->append.slices = a->slices;
    a->append.done = append_over;
    a->append.use_reserve = true;
    m->inflight++;
    store_append(m->store, &a->append);
}

static inline int machine_append_wait(struct machine *m, struct model_extent *x,
                                      uint32_t blocks)
{
    struct event over;
    int result = 0;
    event_init(&over);
    machine_append(m, x, blocks, &over, &result);
    event_wait(&over);
    return result;
}

/* --- syncs --- */

struct test_sync {
    struct store_sync sync;
    struct machine *machine;
    struct event *over;
    int *ret_result;
    uint32_t count;
    uint32_t answered[MODEL_MAX];
};

static inline void sync_over(struct store_sync *sync)
{
    struct test_sync *s = container_of(sync, struct test_sync, sync);
    s->machine->syncs--;
    for (uint32_t i = 0; i < s->count && sync->result == 0; i++)
        if (s->machine->extents[i]->synced < s->answered[i])
            s->machine->extents[i]->synced = s->answered[i];
    if (s->ret_result != NULL)
        *s->ret_result = sync->result;
    if (s->over != NULL)
        event_set(s->over);
    free(s);
}

static inline void machine_sync(struct machine *m, struct event *over, int *ret_result)
{
    struct test_sync *s = calloc(1, sizeof *s);
    *s = (struct test_sync){.machine = m, .over = over, .ret_result = ret_result};
    s->sync.done = sync_over;
    s->count = m->count;
    for (uint32_t i = 0; i < m->count; i++)
        s->answered[i] = m->extents[i]->answered;
    m->syncs++;
    store_sync(m->store, &s->sync);
}

static inline int machine_sync_wait(struct machine *m)
{
    struct event over;
    int result = 0;
    event_init(&over);
    machine_sync(m, &over, &result);
    event_wait(&over);
    return result;
}

/* --- reads --- */

struct test_read {
    struct store_read read;
    struct event over;
};

static inline void read_over(struct store_read *read)
{
    event_set(&container_of(read, struct test_read, read)->over);
}

/* Reads into `bytes` in vectors of at most `vector_blocks`. */
static inline int machine_read(struct machine *m, struct address address, uint32_t count,
                               uint32_t vector_blocks, uint8_t *bytes)
{
    uint32_t vectors = (uint32_t)div_up_u64(count, vector_blocks);
    struct iovec *iov = calloc(vectors, sizeof *iov);
    struct test_read r = {.read = {.address = address,
                                   .count = count,
                                   .iov = iov,
                                   .iov_count = vectors,
                                   .done = read_over}};
    for (uint32_t i = 0; i < vectors; i++) {
        uint32_t n = min_u32(vector_blocks, count - i * vector_blocks);
        iov[i].iov_base = bytes + (size_t)i * vector_blocks * BLOCK_SIZE;
        iov[i].iov_len = (size_t)n * BLOCK_SIZE;
    }
    event_init(&r.over);
    store_read(m->store, &r.read);
    event_wait(&r.over);
    free(iov);
    return r.read.result;
}

/* --- the check of an extent against its model --- */

static inline void check_blocks(struct machine *m, struct model_extent *x,
                                uint32_t length)
{
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, 100 * BLOCK_SIZE);
    for (uint32_t at = 0; at < length;) {
        uint32_t n = min_u32(length - at, 1 + (at * 7 + 31) % 100);
        int result = machine_read(m, address_plus(x->address, at), n, 1 + at % 9, bytes);
        uint32_t span = n;
        for (uint32_t i = 0; i < n; i++)
            if (bitmap_get(x->trimmed, at + i))
                span = 0;
        if (span > 0)
            CHECK_EQ(result, 0);
        else
            CHECK(result == 0 || result == -PLX_EDEAD);
        for (uint32_t i = 0; i < n && result == 0; i++)
            CHECK_EQ(crc32c(bytes + (size_t)i * BLOCK_SIZE, BLOCK_SIZE), x->crc[at + i]);
        at += n;
    }
    free(bytes);
}

static inline int count_header(void *arg, const struct header *head,
                               const struct entry *entries,
                               const struct roll_entry *rolls)
{
    uint32_t *end = arg;
    CHECK_EQ(head->block, *end);
    CHECK((head->kind == HEADER_ROLL) == (rolls != NULL));
    CHECK((head->kind == HEADER_BATCH) == (entries != NULL));
    *end += 1 + (entries != NULL ? header_data_blocks(entries, head->count) : 0);
    return 0;
}

static inline void check_headers(struct machine *m, struct model_extent *x,
                                 uint32_t length)
{
    uint32_t end = 0, walked = 0;
    CHECK_EQ(store_walk_headers(m->store, x->address, count_header, &walked, &end), 0);
    CHECK_EQ(end, length);
    CHECK_EQ(walked, length);
}

/* What holds after a restart; `how` is what happened before it. */
static inline void check_after_restart(struct machine *m, struct model_extent *x,
                                       enum sim_end how)
{
    struct extent_info info;
    int result = store_extent_info(m->store, x->address, &info);
    if (result == -PLX_EMISSING) {
        CHECK(x->state == M_ABSENT || x->state == M_DELETED || x->next == M_DELETED);
        x->state = x->state == M_ABSENT ? M_ABSENT : M_DELETED;
        x->next = x->state;
        return;
    }
    CHECK_EQ(result, 0);
    CHECK(x->state != M_DELETED);
    CHECK(info.state != EXTENT_OPEN);
    CHECK_EQ(info.nonce, x->nonce);
    CHECK_EQ(info.durable, info.length);
    if (info.state == EXTENT_FINAL) {
        CHECK(x->state == M_FINAL || x->next == M_FINAL);
        CHECK_EQ(info.length, x->final);
        x->state = M_FINAL;
    } else {
        CHECK(x->state == M_OPEN || x->state == M_STOPPED || x->state == M_ABSENT);
        CHECK(info.length <= x->submitted);
        if (x->state == M_STOPPED)
            CHECK_EQ(info.length, x->stopped);
        else
            CHECK(info.restart_scanned || x->next >= M_STOPPED);
        CHECK(info.length >= x->synced);
        if (how == SIM_KILL)
            CHECK(info.length >= x->answered);
        x->state = M_STOPPED;
    }
    x->stopped = info.length;
    x->answered = x->synced = x->submitted = info.length;
    x->next = x->state;
    x->is_busy = false;
    x->trims_lost = true;
    check_blocks(m, x, info.length);
    CHECK(info.has_headers || x->headers_trimmed || info.length == 0);
    if (info.has_headers)
        check_headers(m, x, info.length);
}

/* --- compaction --- */

static inline async int no_pause(void *arg)
{
    (void)arg;
    task_yield();
    return 0;
}

static inline int machine_compact(struct machine *m, struct model_extent *x,
                                  uint32_t from, uint32_t to, bool digest)
{
    struct section section = {
        .address = x->address, .from = from, .to = to, .digest = digest};
    return compact_section(m->store, &section, no_pause, NULL);
}

/* Space that no extent holds is free. */
static inline void check_space(struct machine *m)
{
    struct store_usage usage;
    struct extent_info *infos = NULL;
    size_t count = 0;
    uint64_t live = 0, stored = 0, pieces = 0;
    store_usage(m->store, &usage);
    CHECK_EQ(usage.used_bytes + usage.free_bytes + SLAB_BYTES, usage.capacity_bytes);
    CHECK_EQ(store_list_extents(m->store, 0, &infos, &count), 0);
    CHECK_EQ(count, usage.extent_count);
    for (size_t i = 0; i < count; i++) {
        CHECK(i == 0 || infos[i - 1].extent.v < infos[i].extent.v);
        CHECK(infos[i].state != EXTENT_OPEN);
        CHECK(infos[i].live <= infos[i].stored && infos[i].stored <= infos[i].length);
        live += infos[i].live;
        stored += infos[i].stored;
        const struct runs *runs = &extent_find(&m->store->extents, infos[i].extent)->runs;
        for (uint32_t j = 0; j < runs->count; j++)
            pieces += runs->at[j].count;
    }
    CHECK_EQ(usage.live_bytes, live * BLOCK_SIZE);
    CHECK_EQ(usage.live_bytes + usage.dead_bytes, stored * BLOCK_SIZE);
    /* A compaction may hold some that are in no record yet. */
    if (!m->store->compacting)
        CHECK_EQ(usage.used_bytes - usage.free_piece_bytes, pieces * PIECE_BYTES);
    free(infos);
}

#endif
