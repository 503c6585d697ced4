/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots and disks go away: space comes back, exactly; what stays is untouched,
 * whatever happens meanwhile. */
#include "cow/reclaim.h"

#include "tests/unit/disk_machine.h"

#include <sys/wait.h>

#define SIZE          (2 * MIB)
#define SNAPSHOTS_MAX 12U
#define SETTLE_NS     (100 * NS_PER_MS)
#define CLOSE_NS      (30 * NS_PER_S) /* a disk without clients is closed and tidied */

static uint64_t factor = 1, current;

static void say_seed(void)
{
    if (current != 0)
        fprintf(stderr, "seed %llu\n", (unsigned long long)current);
}

/* Nothing is on its way out any more, closed disks have trimmed their lists. */
static async void settle(struct machine *m)
{
    for (uint32_t i = 0; reclaim_pending(m->host) > 0; i++) {
        CHECK(i < 2000);
        task_sleep_ns(SETTLE_NS);
    }
}

static async uint64_t live_bytes(struct machine *m)
{
    struct extent_info *infos;
    size_t count;
    uint64_t blocks = 0;
    CHECK_EQ(store_list_extents(m->host->store, 0, &infos, &count), 0);
    for (size_t i = 0; i < count; i++)
        blocks += infos[i].live;
    free(infos);
    return blocks * BLOCK_SIZE;
}

static async void drop_snapshot(struct machine *m, const char *disk, const char *snapshot)
{
    DO(snapshot_remove(m->host, disk, &snapshot, 1, &err));
}

/* --- a chain, in every order, while a guest writes --- */

struct chain {
    struct model *now, *snapshots[SNAPSHOTS_MAX];
};

static void snapshot_name(uint32_t i, char ret[16])
{
    snprintf(ret, 16, "s%u", i);
}

static async void check_chain(struct machine *m, const struct chain *chain)
{
    char name[24];
    for (uint32_t i = 0; i < SNAPSHOTS_MAX; i++) {
        snprintf(name, sizeof name, "d@s%u", i);
        if (chain->snapshots[i] != NULL)
            check_named(m, name, chain->snapshots[i]);
    }
    check_named(m, "d", chain->now);
}

static async void make_chain(struct machine *m, struct chain *chain)
{
    char name[16];
    DO(disk_create(m->host, "d", SIZE, &err));
    chain->now = model_create(SIZE);
    for (uint32_t i = 0; i < SNAPSHOTS_MAX; i++) {
        random_named(m, "d", chain->now, 1 + (uint32_t)chance(m, 6));
        snapshot_name(i, name);
        DO(snapshot_create(m->host, "d", name, &err));
        chain->snapshots[i] = model_copy(chain->now);
    }
    random_named(m, "d", chain->now, 4);
}

static async void remove_some(struct machine *m, struct chain *chain, uint32_t count)
{
    char name[16];
    while (count-- > 0) {
        uint32_t i = (uint32_t)chance(m, SNAPSHOTS_MAX);
        if (chain->snapshots[i] == NULL)
            continue;
        snapshot_name(i, name);
        free(take(chain->snapshots[i])); /* the process may be killed in the call */
        drop_snapshot(m, "d", name);
    }
}

static void chain_free(struct chain *chain)
{
    for (uint32_t i = 0; i < SNAPSHOTS_MAX; i++)
        free(chain->snapshots[i]);
    free(chain->now);
}

static async void body_chain(struct machine *m)
{
    struct chain chain = {0};
    make_chain(m, &chain);
    for (uint32_t round = 0; round < 5; round++) {
        remove_some(m, &chain, 4);
        random_named(m, "d", chain.now, 5);
        if (round % 2 == 0)
            settle(m);
        check_chain(m, &chain);
        check_clean(m);
    }
    settle(m);
    check_clean(m);
    check_chain(m, &chain);
    chain_free(&chain);
}

/* --- crashes --- */

static async void body_make_chain(struct machine *m)
{
    make_chain(m, m->arg);
}

static async void body_before_crash(struct machine *m)
{
    (void)attach(m, "d");
    remove_some(m, m->arg, 4);
    for (;;) /* until it is killed */
        task_sleep_ns(1 + chance(m, 5 * NS_PER_MS));
}

static async void body_after_crash(struct machine *m)
{
    struct chain *chain = m->arg;
    check_chain(m, chain);
    if (chance(m, 2) == 0)
        random_named(m, "d", chain->now, 5);
    settle(m);
    check_clean(m);
    check_chain(m, chain);
}

static void test_crashes(void)
{
    for (uint64_t seed = 1; seed <= 12 * factor; seed++) {
        struct machine *m = machine_create(seed);
        current = seed;
        struct chain chain = {0};
        m->arg = &chain;
        machine_run(m, body_make_chain);
        for (uint32_t i = 0; i < 3; i++) {
            machine_start(m, body_before_crash);
            sim_world_run_until(m->world, &m->body.is_over,
                                1 + chance(m, 300 * NS_PER_MS));
            sim_process_end(m->body.loop,
                            chance(m, 2) == 0 ? SIM_KILL : SIM_POWER_CUT);
            machine_run(m, body_after_crash);
        }
        chain_free(&chain);
        machine_destroy(m);
    }
}

/* --- a collapse hands blocks over while lists pile up, and a crash at its end --- */

#define WRITES 16U

struct handing_over {
    struct cluster_watcher watcher;
    struct machine *m;
    bool has_begun, has_ended;
    uint32_t lists; /* that are named when the collapse goes on */
};

static void see_collapse(struct cluster_watcher *watcher)
{
    struct handing_over *seen = container_of(watcher, struct handing_over, watcher);
    struct host *host = seen->m->host;
    const struct cluster_disk *disk =
        cluster_disk_by_name(cluster_state(host->cluster), "d");
    bool collapses = disk->collapsing_version != 0;
    if (collapses && !seen->has_begun)
        host->reclaim->holds++; /* it comes no further than its first block */
    seen->has_ended |= seen->has_begun && !collapses;
    seen->has_begun |= collapses;
}

static async void write_each(struct machine *m, struct disk *disk, uint32_t first,
                             uint32_t count)
{
    static uint8_t data[BLOCK_SIZE];
    for (uint32_t i = first; i < first + count; i++) {
        memset(data, 1 + (int)chance(m, 255), sizeof data);
        CHECK_EQ(write_bytes_at(disk, i * BLOCK_SIZE, sizeof data, data, 0), 0);
    }
}

/* What the snapshot will have in an extent that has ended. */
static async void body_before_lists(struct machine *m)
{
    DO(disk_create(m->host, "d", SIZE, &err));
    struct disk *disk = attach(m, "d");
    write_each(m, disk, 0, WRITES);
    disk_close(disk);
}

/* The rest of the snapshot is where the head goes on. */
static async void body_hands_over(struct machine *m)
{
    struct handing_over *seen = m->arg;
    struct disk *disk = attach(m, "d");
    write_each(m, disk, WRITES, WRITES);
    DO(snapshot_create(m->host, "d", "s", &err));
    write_each(m, disk, 0, 2 * WRITES);
    DO(disk_checkpoint(disk, &err));
    cluster_on_apply(m->host->cluster, &seen->watcher);
    drop_snapshot(m, "d", "s");
    while (!seen->has_begun || m->host->reclaim->active > 0)
        task_sleep_ns(NS_PER_MS);
    while (trimmer_lists_left(disk) < seen->lists) {
        write_each(m, disk, 0, 1);
        DO(disk_checkpoint(disk, &err));
    }
    write_each(m, disk, 0, 1);
    checkpoint_request(disk); /* waits, if that was the last list for it */
    task_sleep_ns(NS_PER_S);
    CHECK(!seen->has_ended);
    reclaim_release(m->host);
    for (;;) /* until it is killed */
        task_sleep_ns(NS_PER_S);
}

static async void body_handed_over(struct machine *m)
{
    disk_close(attach(m, "d")); /* the extent it was in is final now */
    task_sleep_ns(20 * NS_PER_S);
    settle(m);
    check_clean(m);
}

static void hand_over(uint32_t lists)
{
    struct machine *m = machine_create(lists);
    struct handing_over seen = {.watcher.applied = see_collapse, .m = m, .lists = lists};
    m->arg = &seen;
    machine_run(m, body_before_lists);
    machine_start(m, body_hands_over);
    CHECK(sim_world_run_until(m->world, &seen.has_ended, BODY_LIMIT_NS));
    sim_process_end(m->body.loop, SIM_KILL);
    machine_run(m, body_handed_over);
    machine_destroy(m);
}

/* What a collapse holds back is not added to. */
static async void body_lists_first(struct machine *m)
{
    struct pin pin;
    DO(disk_create(m->host, "d", SIZE, &err));
    struct disk *disk = attach(m, "d");
    const struct cluster_disk *state =
        cluster_disk_by_name(cluster_state(m->host->cluster), "d");
    write_each(m, disk, 0, WRITES);
    DO(snapshot_create(m->host, "d", "s", &err));
    pin_take(&m->host->pins, &pin, PIN_HEAD, PIN_ALL); /* nothing is trimmed */
    while (trimmer_lists_left(disk) < LISTS_MAX / 2) {
        write_each(m, disk, 0, 1);
        DO(disk_checkpoint(disk, &err));
    }
    drop_snapshot(m, "d", "s");
    task_sleep_ns(20 * NS_PER_S);
    CHECK_EQ(reclaim_pending(m->host), 1);
    CHECK_EQ(state->collapsing_version, 0);
    pin_release(&m->host->pins, &pin);
    task_sleep_ns(20 * NS_PER_S);
    CHECK_EQ(reclaim_pending(m->host), 0);
    disk_close(disk);
    check_clean(m);
}

static void test_hand_over(void)
{
    hand_over(1);
    hand_over(LISTS_MAX / 2 + 1);
    hand_over(LISTS_MAX - 1);
}

/* --- clones: hidden branch points, removal of what they grew from --- */

static async void body_clones(struct machine *m)
{
    struct model *now = model_create(SIZE), *first, *branch, *clone;
    DO(disk_create(m->host, "d", SIZE, &err));
    random_named(m, "d", now, 10);
    DO(snapshot_create(m->host, "d", "s", &err));
    first = model_copy(now);
    random_named(m, "d", now, 10);
    DO(disk_clone(m->host, "d", "s", "c", 1, &err));
    DO(disk_clone(m->host, "d", NULL, "b", 1, &err));
    branch = model_copy(now);
    clone = model_copy(first);
    random_named(m, "c", clone, 5);
    random_named(m, "d", now, 5);
    drop_snapshot(m, "d", "s"); /* the clone holds it */
    settle(m);
    check_clean(m);
    /* What they grew from goes; they stay. */
    DO(trash_set_keep(m->host, 0, &err));
    DO(disk_remove(m->host, "d", 0, &err));
    DO_FAILS(disk_remove(m->host, "d", 0, &err), -PLX_EMISSING);
    settle(m);
    check_clean(m);
    check_named(m, "c", clone);
    check_named(m, "b", branch);
    random_named(m, "b", branch, 10);
    DO(disk_remove(m->host, "c", 0, &err));
    settle(m);
    check_clean(m);
    check_named(m, "b", branch);
    DO(disk_remove(m->host, "b", 0, &err));
    settle(m);
    task_sleep_ns(10 * NS_PER_S); /* records without extents */
    CHECK_EQ(live_bytes(m), 0);
    CHECK_EQ(cluster_disk_count(cluster_state(m->host->cluster)), 0);
    CHECK_EQ(cluster_version_count(cluster_state(m->host->cluster)), 0);
    free(now);
    free(first);
    free(branch);
    free(clone);
}

/* A branch point whose clone could not be made is not kept. */
static async void body_failed_clone(struct machine *m)
{
    struct model *now = model_create(SIZE);
    DO(disk_create(m->host, "d", SIZE, &err));
    DO(disk_create(m->host, "e-2", SIZE, &err));
    random_named(m, "d", now, 10);
    DO_FAILS(disk_clone(m->host, "d", NULL, "e", 2, &err), -PLX_EEXISTS);
    settle(m);
    const struct cluster_state *state = cluster_state(m->host->cluster);
    for (uint32_t i = 0; cluster_version_count(state) > 0; i++) {
        CHECK(i < 100);
        task_sleep_ns(SETTLE_NS);
    }
    check_named(m, "d", now);
    check_clean(m);
    free(now);
}

/* --- rollback: the old head goes --- */

static async void body_rollback(struct machine *m)
{
    struct model *now = model_create(SIZE), *kept;
    DO(disk_create(m->host, "d", SIZE, &err));
    random_named(m, "d", now, 10);
    DO(snapshot_create(m->host, "d", "s", &err));
    kept = model_copy(now);
    random_named(m, "d", now, 20);
    DO(snapshot_rollback(m->host, "d", "s", &err));
    settle(m);
    check_named(m, "d", kept);
    check_clean(m);
    CHECK_EQ(cluster_version_count(cluster_state(m->host->cluster)), 1);
    free(now);
    free(kept);
}

/* --- trash --- */

static async void body_trash(struct machine *m)
{
    struct model *now = model_create(SIZE);
    struct trash_info *infos;
    struct host_status status;
    struct disk *disk;
    size_t count;
    DO(disk_create(m->host, "d", SIZE, &err));
    random_named(m, "d", now, 10);
    DO(snapshot_create(m->host, "d", "s", &err));
    DO_FAILS(disk_remove(m->host, "d", 0, &err), -ENOTEMPTY);
    disk = attach(m, "d@s");
    DO_FAILS(disk_remove(m->host, "d", DISK_REMOVE_RECURSIVE, &err), -PLX_EBUSY);
    disk_close(disk);
    disk = attach(m, "d");
    DO_FAILS(disk_remove(m->host, "d", DISK_REMOVE_RECURSIVE, &err), -PLX_EBUSY);
    disk_close(disk);
    DO(disk_remove(m->host, "d", DISK_REMOVE_RECURSIVE, &err));
    DO_FAILS(disk_open(m->host, "d", DISK_READ_WRITE, &disk, &err), -PLX_EMISSING);
    CHECK_EQ(trash_list(m->host, &infos, &count), 0);
    CHECK_EQ(count, 1);
    CHECK_STR(infos[0].name, "d");
    CHECK(infos[0].used_bytes > 0 && infos[0].snapshot_count == 1);
    CHECK_EQ(infos[0].expires_wall_ns - infos[0].trashed_wall_ns, 86400 * NS_PER_S);
    free(infos);
    host_status(m->host, &status);
    CHECK(status.trash_count == 1 && status.trash_bytes > 0 && status.disk_count == 0);
    check_clean(m);
    DO(disk_create(m->host, "d", SIZE, &err));
    DO_FAILS(trash_restore(m->host, "d", NULL, &err), -PLX_EEXISTS);
    DO(trash_restore(m->host, "d", "e", &err));
    check_named(m, "e", now);
    check_named(m, "e@s", now);
    DO_FAILS(trash_restore(m->host, "d", NULL, &err), -PLX_EMISSING);
    /* Its time passes. */
    DO(trash_set_keep(m->host, 60, &err));
    CHECK_EQ(trash_keep(m->host), 60);
    DO(disk_remove(m->host, "e", DISK_REMOVE_RECURSIVE, &err));
    DO(disk_remove(m->host, "d", 0, &err));
    task_sleep_ns(59 * NS_PER_S);
    CHECK_EQ(trash_list(m->host, &infos, &count), 0);
    CHECK_EQ(count, 2);
    free(infos);
    DO(trash_empty(m->host, "d", &err));
    DO_FAILS(trash_empty(m->host, "d", &err), -PLX_EMISSING);
    task_sleep_ns(3 * NS_PER_S);
    settle(m);
    CHECK_EQ(trash_list(m->host, &infos, &count), 0);
    CHECK_EQ(count, 0);
    free(infos);
    CHECK_EQ(live_bytes(m), 0);
    check_clean(m);
    free(now);
}

/* --- who reads keeps it --- */

static async void body_reader(struct machine *m)
{
    struct model *now = model_create(SIZE), *kept;
    DO(disk_create(m->host, "d", SIZE, &err));
    random_named(m, "d", now, 10);
    DO(snapshot_create(m->host, "d", "s", &err));
    kept = model_copy(now);
    random_named(m, "d", now, 20);
    struct disk *reader = attach(m, "d@s");
    drop_snapshot(m, "d", "s");
    task_sleep_ns(20 * NS_PER_S);
    check_content(reader, kept);
    CHECK_EQ(reclaim_pending(m->host), 1);
    check_clean(m);
    disk_close(reader);
    settle(m);
    check_named(m, "d", now);
    check_clean(m);
    free(now);
    free(kept);
}

/* --- races: several at it at once --- */

struct racer {
    struct task_call call;
    struct machine *m;
    uint32_t *left;
    struct model *model; /* of the disk only it writes */
    char disk[16];
    uint32_t number;
};

static async void race_once(struct racer *racer)
{
    struct machine *m = racer->m;
    struct error err = {0};
    char name[24];
    const char *names[1] = {name};
    snprintf(name, sizeof name, "s%u", (unsigned)chance(m, 3));
    switch (chance(m, 7)) {
    case 0:
        (void)snapshot_create(m->host, racer->disk, name, &err);
        break;
    case 1:
    case 2:
        (void)snapshot_remove(m->host, racer->disk, names, 1, &err);
        break;
    case 3:
        snprintf(name, sizeof name, "c%u-%u", racer->number, (unsigned)chance(m, 3));
        (void)disk_clone(m->host, racer->disk, NULL, name, 1, &err);
        break;
    case 4:
        snprintf(name, sizeof name, "c%u-%u", racer->number, (unsigned)chance(m, 3));
        (void)disk_remove(m->host, name, DISK_REMOVE_RECURSIVE, &err);
        break;
    default:
        random_named(m, racer->disk, racer->model, 2);
    }
}

static async void race_main(struct task_call *call)
{
    struct racer *racer = container_of(call, struct racer, call);
    for (uint32_t i = 0; i < 30; i++) {
        race_once(racer);
        task_sleep_ns(1 + chance(racer->m, 20 * NS_PER_MS));
    }
    --*racer->left;
}

static async void body_races(struct machine *m)
{
    struct racer racers[3];
    uint32_t left = ARRAY_LEN(racers);
    DO(trash_set_keep(m->host, 0, &err));
    for (uint32_t i = 0; i < ARRAY_LEN(racers); i++) {
        struct racer *racer = &racers[i];
        *racer = (struct racer){.m = m, .left = &left, .number = i,
                                .model = model_create(SIZE),
                                .call = {.main = race_main, .name = "racer"}};
        snprintf(racer->disk, sizeof racer->disk, "d%u", i);
        DO(disk_create(m->host, racer->disk, SIZE, &err));
        task_start(m->body.loop, &racer->call);
    }
    while (left > 0)
        task_sleep_ns(10 * NS_PER_MS);
    for (uint32_t i = 0; i < ARRAY_LEN(racers); i++)
        check_named(m, racers[i].disk, racers[i].model);
    check_clean(m);
    settle(m);
    check_clean(m);
    for (uint32_t i = 0; i < ARRAY_LEN(racers); i++) {
        check_named(m, racers[i].disk, racers[i].model);
        free(racers[i].model);
    }
}

/* --- accounting, differences --- */

static uint64_t data_bytes(const struct model *model)
{
    uint64_t bytes = 0;
    for (uint64_t at = 0; at < model->size_bytes; at += BLOCK_SIZE)
        if (!bytes_are_zero(model->bytes + at, BLOCK_SIZE))
            bytes += BLOCK_SIZE;
    return bytes;
}

struct diffs {
    const struct model *before, *now;
    uint64_t next;
};

static int on_diff(void *arg, uint64_t offset, uint64_t len, bool is_zero)
{
    struct diffs *diffs = arg;
    CHECK(offset >= diffs->next && len > 0 && offset + len <= diffs->now->size_bytes);
    CHECK(memcmp(diffs->before->bytes + diffs->next, diffs->now->bytes + diffs->next,
                 offset - diffs->next) == 0);
    CHECK(!is_zero || bytes_are_zero(diffs->now->bytes + offset, len));
    diffs->next = offset + len;
    return 0;
}

static async void check_diff(struct machine *m, const char *from, const char *to,
                             const struct model *before, const struct model *now)
{
    struct diffs diffs = {before, now, 0};
    DO(snapshot_diff(m->host, "d", from, to, on_diff, &diffs, &err));
    CHECK(memcmp(before->bytes + diffs.next, now->bytes + diffs.next,
                 now->size_bytes - diffs.next) == 0);
}

static async void check_changes(struct machine *m, struct disk *disk, const char *base,
                                const struct model *before, const struct model *now)
{
    uint64_t version, at = 0;
    DO(disk_find_snapshot(disk, base, &version, &err));
    while (at < now->size_bytes) {
        struct disk_change_range ranges[5];
        uint64_t len = 1 + chance(m, now->size_bytes - at);
        uint32_t count = 0, max = 1 + (uint32_t)chance(m, 5);
        CHECK_EQ(disk_changed_since(disk, version, at, len, ranges, max, &count), 0);
        CHECK(count >= 1 && count <= max);
        uint64_t start = at;
        for (uint32_t i = 0; i < count; at += ranges[i].len_bytes, i++) {
            CHECK(ranges[i].len_bytes > 0);
            CHECK(i == 0 || ranges[i].changed != ranges[i - 1].changed);
            CHECK(ranges[i].changed || memcmp(before->bytes + at, now->bytes + at,
                                              ranges[i].len_bytes) == 0);
        }
        CHECK(at <= start + len);
    }
}

static async void body_accounting(struct machine *m)
{
    struct model *first = model_create(SIZE), *second, *now;
    struct disk_usage usage;
    struct disk *disk;
    DO(disk_create(m->host, "d", SIZE, &err));
    DO(disk_usage(m->host, "d", NULL, &usage, &err));
    CHECK_EQ(usage.referenced_bytes, 0);
    random_named(m, "d", first, 15);
    DO(snapshot_create(m->host, "d", "a", &err));
    second = model_copy(first);
    random_named(m, "d", second, 4);
    DO(snapshot_create(m->host, "d", "b", &err));
    now = model_copy(second);
    disk = attach(m, "d");
    random_rounds(m, disk, now, 4);
    check_changes(m, disk, "a", first, now);
    check_changes(m, disk, "b", second, now);
    DO(disk_usage(m->host, "d", "a", &usage, &err));
    CHECK_EQ(usage.referenced_bytes, data_bytes(first));
    CHECK_EQ(usage.shared_bytes + usage.exclusive_bytes, usage.referenced_bytes);
    uint64_t of_first = usage.exclusive_bytes;
    DO(disk_usage(m->host, "d", "b", &usage, &err));
    CHECK_EQ(usage.referenced_bytes, data_bytes(second));
    DO(disk_usage(m->host, "d", NULL, &usage, &err));
    CHECK_EQ(usage.referenced_bytes, data_bytes(now));
    DO_FAILS(disk_usage(m->host, "d", "none", &usage, &err), -PLX_EMISSING);
    check_diff(m, "a", "b", first, second);
    check_diff(m, "b", "a", second, first);
    check_diff(m, "a", NULL, first, now);
    check_diff(m, "b", NULL, second, now);
    DO_FAILS(snapshot_diff(m->host, "d", "a", "none", on_diff, NULL, &err),
             -PLX_EMISSING);
    DO_FAILS(disk_find_snapshot(disk, "none", &of_first, &err), -PLX_EMISSING);
    /* A clone that shares all of it leaves nothing to the snapshot alone. */
    DO(disk_clone(m->host, "d", "a", "c", 1, &err));
    DO(disk_usage(m->host, "d", "a", &usage, &err));
    CHECK_EQ(usage.exclusive_bytes, 0);
    struct model *clone = model_copy(first);
    random_named(m, "c", clone, 6);
    DO(disk_usage(m->host, "c", NULL, &usage, &err));
    CHECK_EQ(usage.referenced_bytes, data_bytes(clone));
    DO(disk_usage(m->host, "d", "a", &usage, &err));
    CHECK(usage.exclusive_bytes <= usage.referenced_bytes);
    disk_close(disk);
    disk = attach(m, "d@b");
    check_changes(m, disk, "a", first, second);
    disk_close(disk);
    free(first);
    free(second);
    free(now);
    free(clone);
}

/* What a snapshot takes alone is what its removal frees. */
static async void body_exclusive(struct machine *m)
{
    struct model *now = model_create(SIZE);
    struct disk_usage usage;
    char name[16];
    const char *names[1] = {name};
    DO(disk_create(m->host, "d", SIZE, &err));
    for (uint32_t i = 0; i < 5; i++) {
        random_named(m, "d", now, 6);
        snapshot_name(i, name);
        DO(snapshot_create(m->host, "d", name, &err));
    }
    random_named(m, "d", now, 6);
    for (uint32_t i = 0; i < 5; i++) {
        snapshot_name((i * 2 + 1) % 5, name);
        DO(disk_usage(m->host, "d", name, &usage, &err));
        check_clean(m);
        task_sleep_ns(CLOSE_NS); /* with it headers and lists go */
        uint64_t before = live_bytes(m);
        DO(snapshot_remove(m->host, "d", names, 1, &err));
        settle(m);
        check_clean(m);
        uint64_t freed = before - live_bytes(m);
        CHECK(freed >= usage.exclusive_bytes);
        CHECK(freed <= usage.exclusive_bytes + 64 * BLOCK_SIZE); /* nodes, lists */
    }
    check_named(m, "d", now);
    free(now);
}

/* --- a check that repairs --- */

static async void body_repair(struct machine *m)
{
    struct model *now = model_create(SIZE);
    struct findings findings = {0};
    struct check_callbacks callbacks = {.finding = note_finding, .arg = &findings};
    struct check_report report;
    struct cluster_result result;
    struct error error = {0};
    DO(disk_create(m->host, "d", SIZE, &err));
    random_named(m, "d", now, 10);
    DO(snapshot_create(m->host, "d", "s", &err));
    random_named(m, "d", now, 20);
    check_clean(m);
    /* It goes without a walk: all that it had alone is lost. */
    reclaim_hold(m->host);
    drop_snapshot(m, "d", "s");
    DO(host_settle_closed(m->host, 1, &err));
    const struct cluster_disk *disk =
        cluster_disk_by_name(cluster_state(m->host->cluster), "d");
    struct cluster_command command = {
        .op = CLUSTER_COLLAPSE_BEGIN, .version = disk->head_parent, .disk = disk->id,
        .epoch = disk->epoch, .number = disk->checkpoint.number,
    };
    CHECK_EQ(cluster_submit(m->host->cluster, &command, &result), 0);
    command.op = CLUSTER_COLLAPSE_END;
    CHECK_EQ(cluster_submit(m->host->cluster, &command, &result), 0);
    reclaim_release(m->host);
    CHECK_EQ(host_check(m->host, 0, &callbacks, &report, &error), 0);
    CHECK(report.lost_blocks > 0 && findings.count > 0 && report.findings > 0);
    CHECK_EQ(report.repaired_blocks + report.dead_reachable, 0);
    uint64_t lost = report.lost_blocks, before = live_bytes(m);
    CHECK_EQ(host_check(m->host, CHECK_REPAIR, &callbacks, &report, &error), 0);
    CHECK_EQ(report.repaired_blocks, lost);
    CHECK(live_bytes(m) <= before - lost * BLOCK_SIZE);
    check_clean(m);
    check_named(m, "d", now);
    free(now);
}

/* Many names go with one call. */
static async void body_many(struct machine *m)
{
    static char names[1500][12];
    static const char *pointers[1500];
    static uint8_t data[BLOCK_SIZE] = {7};
    struct disk *disk;
    DO(disk_create(m->host, "d", SIZE, &err));
    disk = attach(m, "d");
    for (uint32_t i = 0; i < ARRAY_LEN(names); i++) {
        snprintf(names[i], sizeof names[i], "s%u", i);
        pointers[i] = names[i];
        if (i % 8 == 0)
            CHECK_EQ(write_bytes_at(disk, i * BLOCK_SIZE % SIZE, sizeof data, data, 0),
                     0);
        DO(snapshot_create(m->host, "d", names[i], &err));
    }
    pointers[1400] = "none";
    DO_FAILS(snapshot_remove(m->host, "d", pointers, 1500, &err), -PLX_EMISSING);
    pointers[1400] = names[1400];
    DO(snapshot_remove(m->host, "d", pointers, 1500, &err));
    CHECK_EQ(cluster_disk_by_name(cluster_state(m->host->cluster), "d")->snapshot_count,
             0);
    settle(m);
    disk_close(disk);
    task_sleep_ns(20 * NS_PER_S);
    settle(m);
    CHECK_EQ(cluster_version_count(cluster_state(m->host->cluster)), 0);
    check_clean(m);
}

static void run_seeds(void (*run)(struct machine *m), uint64_t seeds)
{
    for (uint64_t seed = 1; seed <= seeds * factor; seed++) {
        current = seed;
        struct machine *m = machine_create(seed);
        machine_run(m, run);
        machine_destroy(m);
    }
    current = 0;
}

/* LeakSanitizer would report what killed processes left, so it does not look. */
static void in_child(void (*test)(void))
{
    pid_t child = fork();
    int status;
    CHECK(child >= 0);
    if (child == 0) {
        test();
        current = 0;
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* test_reclaim [FACTOR]: so many times the seeds. */
int main(int argc, char **argv)
{
    if (argc > 1)
        factor = strtoull(argv[1], NULL, 10);
    atexit(say_seed);
    run_seeds(body_chain, 6);
    in_child(test_crashes);
    in_child(test_hand_over);
    run_seeds(body_lists_first, 1);
    run_seeds(body_clones, 3);
    run_seeds(body_failed_clone, 1);
    run_seeds(body_rollback, 2);
    run_seeds(body_trash, 1);
    run_seeds(body_reader, 2);
    run_seeds(body_races, 6);
    run_seeds(body_accounting, 4);
    run_seeds(body_exclusive, 2);
    run_seeds(body_repair, 1);
    run_seeds(body_many, 1);
    return 0;
}
