/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log against a model, over lives of a process that end in every way: records in,
 * crash, take-over, replay. The model knows from `sealed` what each number holds; what
 * comes back must be its prefix, with everything committed after a kill and everything
 * flushed after a power cut. The member is one in memory that fails on demand, or a real
 * store on the simulator's disk; or there are three in memory, which are restarted, lose
 * power, are slow and fall silent while the owner lives, and live on when it dies. Then
 * another node may go on with the disk. What a member missed it gets by recovery, which
 * must come to an end.
 */
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/log_model.h"

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

/* A node more, which is in the group, and whole. */
static async void add_node(struct test *t, uint8_t i)
{
    struct cluster_result result;
    struct cluster_command node = {.op = CLUSTER_NODE_SET, .store = {{2, i}}};
    CHECK_EQ(cluster_submit(t->cluster, &node, &result), 0);
    CHECK_EQ(result.id, i + 1);
    const struct cluster_group *group = cluster_group_by_id(cluster_state(t->cluster), 1);
    struct cluster_command set = {.op = CLUSTER_GROUP_SET,
                                  .group = 1,
                                  .number = group->epoch,
                                  .member_count = (uint8_t)(i + 1)};
    for (uint64_t j = 0; j <= i; j++)
        set.members[j] = j + 1;
    CHECK_EQ(cluster_submit(t->cluster, &set, &result), 0);
    group = cluster_group_by_id(cluster_state(t->cluster), 1);
    struct cluster_command whole = {.op = CLUSTER_GROUP_WHOLE,
                                    .group = 1,
                                    .node = i + 1,
                                    .number = group->members[i].missing_since};
    CHECK_EQ(cluster_submit(t->cluster, &whole, &result), 0);
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
    for (uint8_t i = 1; i < t->script->member_count; i++)
        add_node(t, i);
}

static async void set_down(struct test *t, uint64_t id, bool is_down)
{
    const struct cluster_node *node = cluster_node_by_id(cluster_state(t->cluster), id);
    struct cluster_command command = {.op = CLUSTER_NODE_STATE,
                                      .node = id,
                                      .old_flags = node->flags,
                                      .flags = is_down ? NODE_DOWN : 0};
    struct cluster_result result;
    if (command.flags != node->flags)
        CHECK_EQ(cluster_submit(t->cluster, &command, &result), 0);
}

/* Not as long as the other one is thought to be alive. */
static async void take_from_other(struct test *t, const struct log_options *options)
{
    const struct cluster_state *state = cluster_state(t->cluster);
    uint64_t owner = cluster_disk_by_id(state, t->disk)->owner;
    struct disk_log *log;
    struct error err = {0};
    if (owner == 0 || owner == t->node)
        return;
    if ((cluster_node_by_id(state, owner)->flags & NODE_DOWN) == 0) {
        CHECK_EQ(log_open(options, &log, &err), -PLX_EOWNED);
        CHECK(strstr(err.text, "node") != NULL);
    }
    set_down(t, owner, true);
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
                                  .node = t->node,
                                  .disk = t->disk,
                                  .sealed = on_sealed,
                                  .sealed_arg = t};
    struct error err = {0};
    take_from_other(t, &options);
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

/* Of one that has just fallen silent this is not always known. */
static bool in_reach(struct replica_directory *directory, uint64_t node)
{
    struct test *t = container_of(directory, struct test, directory);
    return node >= 1 && node <= member_count(t) && !t->members[node - 1].is_silent;
}

static bool is_connected(struct replica_directory *directory, uint64_t node,
                         uint64_t *ret_since_ns)
{
    struct test *t = container_of(directory, struct test, directory);
    *ret_since_ns = t->returned_ns[node - 1];
    return in_reach(directory, node);
}

static bool may_have(const struct test *t, const struct fake_member *member,
                     const uint64_t *avoid, uint32_t avoid_count)
{
    const struct cluster_node *node =
        cluster_node_by_id(cluster_state(t->cluster), member->replica.node);
    for (uint32_t i = 0; i < avoid_count; i++) {
        if (avoid[i] == node->id)
            return false;
    }
    return cluster_node_is_usable(node) && !(member->is_silent && member->is_known);
}

static struct chosen choose_members(struct replica_directory *directory, uint64_t disk,
                                    const uint64_t *avoid, uint32_t avoid_count)
{
    struct test *t = container_of(directory, struct test, directory);
    const struct cluster_group *group = cluster_group_by_id(cluster_state(t->cluster), 1);
    struct chosen chosen = {.group = 1, .group_epoch = group->epoch};
    uint32_t whole = 0;
    CHECK_EQ(disk, t->disk);
    for (uint32_t i = 0; i < member_count(t); i++) {
        if (!may_have(t, &t->members[i], avoid, avoid_count))
            continue;
        chosen.members[chosen.count++] = &t->members[i].replica;
        whole += group->members[i].missing_since == 0;
    }
    if (chosen.count < min_u32(MEMBERS_MIN, member_count(t)) || whole == 0)
        chosen.count = 0;
    return chosen;
}

static void is_in_reach_again(struct test *t, uint32_t member)
{
    if (t->members[member].is_silent)
        t->returned_ns[member] = loop_now_ns(t->loop);
    t->members[member].is_silent = false;
}

/* One member is silent or slow at a time, and none is restarted while it is. */
static void chaos_fired(struct timer *timer)
{
    struct test *t = container_of(timer, struct test, chaos);
    struct fake_member *member = &t->members[pick(t, member_count(t))];
    bool is_away = false;
    for (uint32_t i = 0; i < member_count(t); i++) {
        is_away |= t->members[i].is_silent || t->members[i].delay_ns > 0;
        is_in_reach_again(t, i);
        t->members[i].delay_ns = 0;
    }
    uint64_t what = pick(t, 5);
    if (!is_away && what < 2) {
        member->is_silent = true;
        member->is_known = pick(t, 2) == 0;
        member->timeout_ns = pick(t, 3) == 0 ? 5 * NS_PER_S : FAKE_TIMEOUT_NS;
    } else if (!is_away && what == 2) {
        member->delay_ns = pick(t, 4 * NS_PER_S);
    } else if (!is_away) {
        enum sim_end how = pick(t, 3) == 0 ? SIM_POWER_CUT : SIM_KILL;
        fake_restart(member->medium, t->world, how);
        t->cuts += how == SIM_POWER_CUT;
        waitlist_wake_all(&member->quiet);
    }
    timer_start(t->loop, timer, pick(t, pick(t, 20) == 0 ? 20 * NS_PER_S : CHAOS_NS));
}

/* --- recovery --- */

static bool is_whole(const struct test *t, uint32_t member)
{
    const struct cluster_group *group = cluster_group_by_id(cluster_state(t->cluster), 1);
    return group->members[member].missing_since == 0;
}

static bool all_whole(const struct test *t)
{
    for (uint32_t i = 0; i < member_count(t); i++) {
        if (!is_whole(t, i))
            return false;
    }
    return true;
}

static void check_whole_ones(struct test *t)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(t->cluster), t->disk);
    for (uint32_t i = 0; i < member_count(t); i++) {
        for (uint32_t j = 0; is_whole(t, i) && j < member_count(t); j++) {
            if (j != i && is_whole(t, j))
                fake_check_whole(&t->media[i], &t->media[j], disk);
        }
    }
}

/* False while it cannot be: nobody whole answers, or extents are open without it. */
static async bool recover(struct test *t, uint32_t member)
{
    const struct cluster_state *state = cluster_state(t->cluster);
    uint32_t source = 0;
    while (source < member_count(t) &&
           (!is_whole(t, source) || t->members[source].is_silent))
        source++;
    if (source == member_count(t) || t->members[member].is_silent)
        return false;
    uint64_t number = cluster_group_by_id(state, 1)->members[member].missing_since;
    if (!fake_bring_up(&t->media[member], &t->media[source], member + 1,
                       cluster_disk_by_id(state, t->disk)))
        return false;
    struct cluster_command whole = {
        .op = CLUSTER_GROUP_WHOLE, .group = 1, .node = member + 1, .number = number};
    struct cluster_result result;
    if (cluster_submit(t->cluster, &whole, &result) != 0)
        return false;
    t->recovered_count++;
    check_whole_ones(t);
    return true;
}

/* What the leader of a cluster and the nodes themselves do. */
static void leader_main(struct task_call *call)
{
    struct test *t = container_of(call, struct test, leader_call);
    while (!t->leader_stops) {
        uint32_t member = (uint32_t)pick(t, member_count(t));
        bool is_silent = t->members[member].is_silent;
        if (pick(t, 3) == 0)
            set_down(t, member + 1, is_silent);
        if (!is_silent && !is_whole(t, member))
            (void)recover(t, member);
        task_sleep_ns(pick(t, t->is_mending ? NS_PER_S : 40 * NS_PER_MS));
    }
    t->leader_runs = false;
    waitlist_wake_all(&t->settled);
}

static async void leader_stop(struct test *t)
{
    t->leader_stops = true;
    while (t->leader_runs)
        waitlist_wait(&t->settled);
}

/* When all answer again every member becomes whole, whatever the disk does. */
static async void check_recovers(struct test *t)
{
    timer_stop(t->loop, &t->chaos);
    t->is_mending = true;
    for (uint32_t i = 0; i < member_count(t); i++) {
        is_in_reach_again(t, i);
        t->members[i].delay_ns = 0;
    }
    uint64_t begun_ns = sim_world_now_ns(t->world);
    while (!all_whole(t)) {
        CHECK(sim_world_now_ns(t->world) - begun_ns < RECOVER_NS);
        if (pick(t, 2) == 0)
            append(t);
        task_sleep_ns(NS_PER_S);
    }
}

static void life_main(struct task_call *call)
{
    struct test *t = container_of(call, struct test, call);
    struct error err = {0};
    t->callbacks = (struct log_callbacks){on_committed, on_failed, on_moved, on_down};
    enum end end = t->end;
    open_cluster(t);
    if (t->script->has_chaos) {
        t->leader_runs = true;
        t->leader_call = (struct task_call){.main = leader_main, .name = "leader"};
        task_start(t->loop, &t->leader_call);
    }
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
        if (t->script->has_chaos && pick(t, 2) == 0)
            check_recovers(t);
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
    while (buffer_pool_used_bytes(t->pool) > 0) /* what is still on its way */
        task_sleep_ns(NS_PER_S);
    CHECK_EQ(t->budget.used_bytes, 0);
    leader_stop(t);
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
    t->is_over = t->is_closing = t->leader_runs = t->leader_stops = false;
    t->is_mending = false;
    if (t->node == 0 || (script->has_chaos && pick(t, 2) == 0))
        t->node = 1 + pick(t, script->member_count);
    t->directory =
        (struct replica_directory){
        .find = find_member,
        .in_reach = in_reach,
        .is_connected = is_connected,
        .choose = choose_members,
    };
    t->chaos = (struct timer){.fire = chaos_fired};
    if (script->has_chaos)
        timer_start(t->loop, &t->chaos, pick(t, CHAOS_NS));
    for (uint32_t i = 0; i < script->member_count; i++) {
        struct fake_member *member = &t->members[i];
        fake_member_init(member, t->loop, t->world, &t->media[i], i + 1);
        member->is_here = member->replica.node == t->node;
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
    fprintf(stderr, "%llu batches, %llu pieces moved, %llu recoveries\n",
            (unsigned long long)t->model.sealed, (unsigned long long)t->moved_count,
            (unsigned long long)t->recovered_count);
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
    script.ops = 400;
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
    {"three members", members, 60},
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
