/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A log with its members, to tell stories of what fails. The members are in memory, the
 * cluster is nothing but its state. After each story another owner opens the disk, and
 * nothing that was committed may be lost.
 */
#ifndef PARALLAX_TESTS_UNIT_LOG_MACHINE_H
#define PARALLAX_TESTS_UNIT_LOG_MACHINE_H

#include "replication/disk_log.h"
#include "tests/unit/fake_cluster.h"
#include "tests/unit/fake_recovery.h"

#define NODES       4U /* the first three are in the group */
#define IN_GROUP    3U
#define OUTSTANDING 8U
#define LIMIT_NS    (30 * 24 * 3600 * NS_PER_S)
/* A command, a create, and what is written again. */
#define ROLL_NS     (50 * NS_PER_MS)
/* How late a limit is noticed. */
#define TICK_SLACK_NS (200 * NS_PER_MS)
#define UNCONNECTED_NS (300 * NS_PER_MS) /* as in replica_remote.c */

struct test {
    struct sim_world *world;
    struct loop *loop;
    struct task_call call, side_call;
    bool side_is_over;
    void (*story)(struct test *t);
    void (*opened)(struct test *t); /* before the replay; NULL: nothing to do */
    bool is_over;
    struct cluster *cluster;
    uint64_t disk, node;
    struct fake_medium media[NODES];
    struct fake_member members[NODES];
    uint64_t returned_ns[NODES]; /* when it was in reach again; 0: always was */
    struct replica_directory directory;
    uint32_t min_copies;
    struct buffer_pool *pool;
    struct log_budget budget;
    struct log_callbacks callbacks;
    struct disk_log *log;
    struct error err;
    uint32_t outstanding, failures, downs;
    int failure;
    uint64_t committed, moved, appended;
    uint64_t last_ns, stall_ns; /* of a commit; the longest time without any */
    uint64_t replayed;
    uint64_t replayed_count; /* numbers that were replayed, or that a root covers */
    uint64_t watched_key;
    uint32_t watched_crc;    /* of that block, as it was replayed last */
};

static inline uint64_t now_ns(const struct test *t)
{
    return sim_world_now_ns(t->world);
}

/* --- the cluster --- */

static inline async int submit(struct test *t, const struct cluster_command *command)
{
    struct cluster_result result;
    uint32_t lose_percent = t->cluster->lose_percent;
    bool has_no_leader = t->cluster->has_no_leader;
    t->cluster->lose_percent = 0;
    t->cluster->has_no_leader = false;
    int rc = cluster_submit(t->cluster, command, &result);
    t->cluster->lose_percent = lose_percent;
    t->cluster->has_no_leader = has_no_leader;
    if (rc < 0)
        fprintf(stderr, "%s\n", result.text);
    return rc == 0 && command->op == CLUSTER_DISK_CREATE ? (int)result.id : rc;
}

static inline const struct cluster_disk *disk_state(const struct test *t)
{
    return cluster_disk_by_id(cluster_state(t->cluster), t->disk);
}

static inline const struct cluster_group *group_state(const struct test *t)
{
    return cluster_group_by_id(cluster_state(t->cluster), 1);
}

static inline async void set_flags(struct test *t, uint64_t node, unsigned flags)
{
    const struct cluster_node *is = cluster_node_by_id(cluster_state(t->cluster), node);
    struct cluster_command command = {.op = CLUSTER_NODE_STATE,
                                      .node = node,
                                      .old_flags = is->flags,
                                      .flags = flags};
    CHECK_EQ(submit(t, &command), 0);
}

static inline async void set_group(struct test *t, uint32_t count)
{
    struct cluster_command command = {.op = CLUSTER_GROUP_SET,
                                      .group = 1,
                                      .number = group_state(t)->epoch,
                                      .member_count = (uint8_t)count};
    for (uint64_t i = 0; i < count; i++)
        command.members[i] = i + 1;
    CHECK_EQ(submit(t, &command), 0);
}

static inline async int make_whole(struct test *t, uint32_t member)
{
    struct cluster_command command = {
        .op = CLUSTER_GROUP_WHOLE,
        .group = 1,
        .node = member + 1,
        .number = group_state(t)->members[member].missing_since};
    return submit(t, &command);
}

static inline bool is_whole(const struct test *t, uint32_t member)
{
    return group_state(t)->members[member].missing_since == 0;
}

/* Extents that are written to, or may be: without a length. */
static inline uint32_t open_extents(const struct test *t, uint64_t *ret_lacking,
                                    uint64_t node)
{
    const struct cluster_disk *disk = disk_state(t);
    uint32_t count = 0;
    *ret_lacking = 0;
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        if (disk->extents[i].final)
            continue;
        count++;
        *ret_lacking += !fake_is_in(&disk->extents[i], node);
    }
    return count;
}

static inline bool is_listed(const struct test *t, struct address extent)
{
    return fake_listed(disk_state(t), extent) != NULL;
}

static inline uint64_t next_sequence(const struct test *t)
{
    return cluster_state_next_sequence(cluster_state(t->cluster));
}

static inline async void start(struct test *t)
{
    struct cluster_command init = {
        .op = CLUSTER_INIT, .cluster = {{1}}, .store = {{9}}, .node = 1};
    t->cluster = fake_cluster_create(t->loop, t->world);
    CHECK_EQ(submit(t, &init), 0);
    for (uint8_t i = 1; i < NODES; i++) {
        struct cluster_command node = {
            .op = CLUSTER_NODE_SET, .store = {{9, i}}, .name = "there:1", .new_name = ""};
        CHECK_EQ(submit(t, &node), 0);
    }
    set_group(t, IN_GROUP);
    for (uint32_t i = 1; i < IN_GROUP; i++)
        CHECK_EQ(make_whole(t, i), 0);
    struct cluster_command create = {
        .op = CLUSTER_DISK_CREATE, .name = "web01", .size_bytes = GIB};
    t->disk = (uint64_t)submit(t, &create);
}

/* --- members --- */

static inline struct replica *find(struct replica_directory *directory, uint64_t node)
{
    struct test *t = container_of(directory, struct test, directory);
    const struct cluster_node *is = cluster_node_by_id(cluster_state(t->cluster), node);
    bool is_lost = is == NULL || (is->flags & NODE_GONE);
    return is_lost ? NULL : &t->members[node - 1].replica;
}

static inline bool in_reach(struct replica_directory *directory, uint64_t node)
{
    struct test *t = container_of(directory, struct test, directory);
    const struct fake_member *member = &t->members[node - 1];
    return !member->is_silent || !member->is_known;
}

static inline bool is_connected(struct replica_directory *directory, uint64_t node,
                         uint64_t *ret_since_ns)
{
    struct test *t = container_of(directory, struct test, directory);
    *ret_since_ns = t->returned_ns[node - 1];
    return !t->members[node - 1].is_silent;
}

static inline struct chosen choose(struct replica_directory *directory, uint64_t disk,
                            const uint64_t *avoid, uint32_t avoid_count)
{
    struct test *t = container_of(directory, struct test, directory);
    const struct cluster_group *group = group_state(t);
    struct chosen chosen = {.group = 1, .group_epoch = group->epoch};
    bool has_whole = false;
    CHECK_EQ(disk, t->disk);
    for (uint32_t i = 0; i < group->member_count; i++) {
        uint64_t id = group->members[i].node;
        const struct cluster_node *node =
            cluster_node_by_id(cluster_state(t->cluster), id);
        bool is_avoided = !cluster_node_is_usable(node) || !in_reach(directory, id);
        for (uint32_t j = 0; j < avoid_count; j++)
            is_avoided = is_avoided || avoid[j] == id;
        if (is_avoided)
            continue;
        chosen.members[chosen.count++] = &t->members[id - 1].replica;
        has_whole = has_whole || group->members[i].missing_since == 0;
    }
    if (chosen.count < t->min_copies || !has_whole)
        chosen.count = 0;
    return chosen;
}

static inline struct fake_member *member_of(struct test *t, uint64_t node)
{
    return &t->members[node - 1];
}

/* kill -9: what is under way is reset, everything else waits for nobody. */
static inline void kill_member(struct test *t, uint64_t node)
{
    struct fake_member *member = member_of(t, node);
    member->is_silent = member->is_known = true;
    member->timeout_ns = UNCONNECTED_NS;
    fake_restart(member->medium, t->world, SIM_KILL);
    waitlist_wake_all(&member->quiet);
}

static inline void silence_member(struct test *t, uint64_t node, bool is_known)
{
    struct fake_member *member = member_of(t, node);
    member->is_silent = true;
    member->is_known = is_known;
    member->timeout_ns = 30 * NS_PER_S;
}

static inline void member_returns(struct test *t, uint64_t node)
{
    if (member_of(t, node)->is_silent)
        t->returned_ns[node - 1] = loop_now_ns(t->loop);
    member_of(t, node)->is_silent = false;
    member_of(t, node)->delay_ns = 0;
}

/* --- the log --- */

struct test_record {
    struct log_record record;
    struct test *t;
};

static inline void on_committed(struct log_callbacks *self, struct log_record *record,
                         const struct log_piece *piece, bool last)
{
    struct test *t = container_of(self, struct test, callbacks);
    CHECK(piece->number >= t->committed && last);
    t->committed = piece->number;
    t->stall_ns = max_u64(t->stall_ns, now_ns(t) - t->last_ns);
    t->last_ns = now_ns(t);
    t->outstanding--;
    free(container_of(record, struct test_record, record));
}

static inline void on_failed(struct log_callbacks *self, struct log_record *record,
                             int code)
{
    struct test *t = container_of(self, struct test, callbacks);
    t->failures++;
    t->failure = code;
    t->outstanding--;
    free(container_of(record, struct test_record, record));
}

static inline void on_moved(struct log_callbacks *self, const struct log_piece *piece,
                     struct address was)
{
    struct test *t = container_of(self, struct test, callbacks);
    CHECK(piece->address.v != was.v);
    t->moved++;
}

static inline void on_down(struct log_callbacks *self, int code)
{
    struct test *t = container_of(self, struct test, callbacks);
    t->downs++;
    t->failure = code;
}

static inline int on_replay(void *arg, const struct log_piece *piece)
{
    struct test *t = arg;
    if (piece->is_spare)
        return 0;
    if (piece->number > t->replayed) {
        t->replayed = piece->number;
        t->replayed_count++;
    }
    if (piece->crcs != NULL && piece->key <= t->watched_key &&
        t->watched_key < piece->key + piece->count)
        t->watched_crc = piece->crcs[t->watched_key - piece->key];
    return 0;
}

static inline async int open_on(struct test *t, uint64_t node, bool force)
{
    struct log_options options = {.loop = t->loop,
                                  .cluster = t->cluster,
                                  .directory = &t->directory,
                                  .callbacks = &t->callbacks,
                                  .retained = &t->budget,
                                  .buffers = t->pool,
                                  .node = node,
                                  .disk = t->disk,
                                  .force = force};
    t->err = (struct error){0};
    t->node = node;
    for (uint32_t i = 0; i < NODES; i++)
        t->members[i].is_here = i + 1 == node;
    int rc = log_open(&options, &t->log, &t->err);
    if (rc != 0)
        return rc;
    if (t->opened != NULL)
        t->opened(t);
    t->replayed = t->replayed_count = disk_state(t)->checkpoint.covers;
    return log_replay(t->log, on_replay, t, &t->err);
}

/* A block that is all the same byte. Those of different generations share no batch. */
static inline void append_block(struct test *t, struct disk_log *log, uint64_t key,
                                int byte, uint32_t generation, bool use_reserve)
{
    struct test_record *mine = calloc(1, sizeof *mine);
    struct buffer *buffer = buffer_create(t->pool, BLOCK_SIZE);
    CHECK(mine != NULL && buffer != NULL);
    memset(buffer->data, byte, BLOCK_SIZE);
    mine->t = t;
    mine->record = (struct log_record){.kind = ENTRY_DATA,
                                       .key = key,
                                       .count = 1,
                                       .generation = generation,
                                       .use_reserve = use_reserve,
                                       .data = {.buffer = buffer, .len = BLOCK_SIZE},
                                       .callbacks = &t->callbacks};
    if (t->outstanding++ == 0)
        t->last_ns = now_ns(t);
    log_append(log, &mine->record);
}

static inline void append_to(struct test *t, struct disk_log *log, bool use_reserve)
{
    append_block(t, log, t->appended % 1000, (int)(t->appended % 256), 1, use_reserve);
    t->appended++;
}

static inline void append(struct test *t)
{
    append_to(t, t->log, false);
}

/* Writes until the time is over; then all is answered. */
static inline async void load_for(struct test *t, uint64_t time_ns)
{
    uint64_t until_ns = now_ns(t) + time_ns;
    uint64_t pause_ns = max_u64(time_ns / 1000, 100 * NS_PER_US);
    t->stall_ns = 0;
    while (now_ns(t) < until_ns) {
        if (t->outstanding < OUTSTANDING)
            append(t);
        task_sleep_ns(pause_ns);
    }
    while (t->outstanding > 0)
        task_sleep_ns(NS_PER_MS);
}

struct test_flush {
    struct log_flush flush;
    struct event over;
};

static inline void flush_done(struct log_flush *flush)
{
    event_set(&container_of(flush, struct test_flush, flush)->over);
}

static inline async int flush_of(struct disk_log *log)
{
    struct test_flush mine = {.flush.done = flush_done};
    event_init(&mine.over);
    log_flush(log, &mine.flush);
    event_wait(&mine.over);
    return mine.flush.result;
}

static inline async int flush(struct test *t)
{
    return flush_of(t->log);
}

static inline struct log_status status(const struct test *t)
{
    struct log_status status;
    log_status(t->log, &status);
    return status;
}

static inline async void checkpoint(struct test *t)
{
    const struct cluster_disk *disk = disk_state(t);
    uint64_t flushed = log_flushed_number(t->log);
    struct cluster_command command = {
        .op = CLUSTER_CHECKPOINT,
        .checkpoint = {disk->checkpoint.number + 1, flushed, flushed},
        .root = {.generation = 1},
        .newest_marker = disk->newest_marker};
    struct cluster_result result;
    log_finals_prepare(t->log, flushed, &command);
    int rc = cluster_submit(t->cluster, &command, &result);
    log_finals_committed(t->log, rc == 0);
    CHECK_EQ(rc, 0);
}

/* Waits for it, not for ever. */
#define CHECK_SOON(condition, limit)                                                     \
    do {                                                                                 \
        uint64_t from_ns_ = now_ns(t);                                                   \
        while (!(condition)) {                                                           \
            CHECK(now_ns(t) - from_ns_ < (limit) && #condition);                         \
            task_sleep_ns(10 * NS_PER_MS);                                               \
        }                                                                                \
    } while (0)

/* --- running them --- */

struct story {
    const char *name;
    void (*run)(struct test *t);
};


/* On a member that is whole every extent has ended that is not listed. */
static inline void check_closed(const struct test *t)
{
    for (uint32_t i = 0; i < group_state(t)->member_count; i++) {
        const struct fake_medium *medium = &t->media[group_state(t)->members[i].node - 1];
        for (uint32_t j = 0; is_whole(t, i) && j < medium->count; j++) {
            const struct fake_extent *e = &medium->extents[j];
            if (!is_listed(t, e->extent))
                CHECK_EQ(e->state, EXTENT_FINAL);
        }
    }
}

/* The next owner finds what was committed. */
static inline async void check_nothing_lost(struct test *t)
{
    if (t->log != NULL)
        log_abandon(take(t->log));
    for (uint64_t node = 1; node <= NODES; node++)
        member_returns(t, node);
    t->cluster->has_no_leader = false;
    t->cluster->lose_percent = 0;
    CHECK_EQ(open_on(t, t->node, false), 0);
    CHECK(max_u64(t->replayed, disk_state(t)->checkpoint.covers) >= t->committed);
    char text[200];
    CHECK_EQ(cluster_state_check(cluster_state(t->cluster), text, sizeof text), 0);
    CHECK_EQ(log_close(take(t->log), &t->err), 0);
    check_closed(t);
    CHECK_EQ(t->budget.used_bytes, 0);
    task_sleep_ns(40 * NS_PER_S); /* what it left behind ends */
    CHECK_EQ(buffer_pool_used_bytes(t->pool), 0);
    fake_cluster_destroy(t->cluster);
}

static inline void test_main(struct task_call *call)
{
    struct test *t = container_of(call, struct test, call);
    start(t);
    t->story(t);
    check_nothing_lost(t);
    t->is_over = true;
}

static inline void run(const struct story *story, uint64_t seed)
{
    struct test *t = calloc(1, sizeof *t);
    t->world = sim_world_create(seed);
    t->loop = sim_process_create(t->world);
    if (getenv("TEST_LOG") != NULL)
        log_set_fd(loop_log(t->loop), 2);
    t->pool = buffer_pool_create(64 * MIB);
    t->budget = (struct log_budget){.limit_bytes = 64 * MIB};
    waitlist_init(&t->budget.waiting);
    t->callbacks = (struct log_callbacks){on_committed, on_failed, on_moved, on_down};
    t->directory = (struct replica_directory){
        .find = find,
        .in_reach = in_reach,
        .is_connected = is_connected,
        .choose = choose,
    };
    t->min_copies = 2;
    for (uint32_t i = 0; i < NODES; i++) {
        t->media[i].limit_blocks = UINT32_MAX;
        fake_member_init(&t->members[i], t->loop, t->world, &t->media[i], i + 1);
    }
    t->story = story->run;
    t->call = (struct task_call){.main = test_main, .name = "test", .system = true};
    task_start(t->loop, &t->call);
    CHECK(sim_world_run_until(t->world, &t->is_over, LIMIT_NS));
    sim_process_end(t->loop, SIM_KILL);
    buffer_pool_destroy(t->pool);
    for (uint32_t i = 0; i < NODES; i++)
        fake_medium_done(&t->media[i]);
    sim_world_destroy(t->world);
    free(t);
}

/* Without arguments all; STORY-INDEX SEED: one. */
static inline int run_stories(const struct story *stories, size_t count, int argc,
                              char **argv)
{
    if (argc == 3) {
        run(&stories[atoi(argv[1])], strtoull(argv[2], NULL, 10));
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        for (uint64_t seed = 1; seed <= seeds_of(12); seed++) {
            fprintf(stderr, "%s, seed %llu\n", stories[i].name,
                    (unsigned long long)seed);
            run(&stories[i], seed);
        }
    }
    return 0;
}

#endif
