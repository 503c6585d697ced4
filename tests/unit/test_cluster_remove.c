/* SPDX-License-Identifier: Apache-2.0 */
/* Versions and disks go away: what each step does, when it is refused, and what stays. */
#include "replication/cluster_internal.h"
#include "tests/unit/cluster_machine.h"

static const struct cluster_version *version_of(const struct machine *m, uint64_t id)
{
    const struct cluster_version *version = cluster_version_by_id(m->state, id);
    CHECK(version != NULL);
    return version;
}

static const struct cluster_disk *disk_by_id(const struct machine *m, uint64_t id)
{
    const struct cluster_disk *disk = cluster_disk_by_id(m->state, id);
    CHECK(disk != NULL);
    return disk;
}

/* A snapshot; its marker is one batch, its root comes with checkpoint(). */
static uint64_t snapshot(struct machine *m, uint64_t disk, const char *name)
{
    const struct cluster_disk *d = disk_by_id(m, disk);
    CHECK_EQ(RUN(m, .op = CLUSTER_SNAPSHOT, .disk = disk, .epoch = d->epoch, .name = name,
                 .marker = max_u64(d->flushed, d->newest_marker) + 1,
                 .generation = d->head_generation),
             0);
    return m->result.id;
}

#define ROOT_OF(version) (1000 * (version))

/* Gives all pending versions roots, and the head the root at `address`. */
static void checkpoint(struct machine *m, uint64_t disk, uint64_t address)
{
    const struct cluster_disk *d = disk_by_id(m, disk);
    struct version_root roots[PENDING_VERSIONS_MAX];
    const struct cluster_version *pending;
    uint32_t count = 0;
    TAILQ_FOREACH (pending, &d->pending, pending_link)
        roots[count++] = (struct version_root){
            pending->id, {{ROOT_OF(pending->id)}, 1, pending->generation, 1}};
    CHECK_EQ(RUN(m, .op = CLUSTER_CHECKPOINT, .disk = disk, .epoch = d->epoch,
                 .checkpoint = {d->checkpoint.number + 1, d->flushed, d->flushed},
                 .newest_marker = d->newest_marker,
                 .root = {{address}, 1, d->head_generation, 1}, .roots = roots,
                 .root_count = count),
             0);
}

static void give_up(struct machine *m, uint64_t disk)
{
    CHECK_EQ(RUN(m, .op = CLUSTER_LEASE_CLOSE, .disk = disk,
                 .epoch = disk_by_id(m, disk)->epoch),
             0);
}

static int remove_names(struct machine *m, uint64_t disk, uint64_t first, uint64_t second)
{
    uint64_t versions[] = {first, second};
    return RUN(m, .op = CLUSTER_SNAPSHOT_RM, .disk = disk, .versions = versions,
               .version_count = second == 0 ? 1 : 2);
}

/* Against a version or nothing. */
static int begin(struct machine *m, uint64_t version)
{
    return RUN(m, .op = CLUSTER_COLLAPSE_BEGIN, .version = version);
}

static int begin_head(struct machine *m, uint64_t version, uint64_t disk)
{
    const struct cluster_disk *d = disk_by_id(m, disk);
    return RUN(m, .op = CLUSTER_COLLAPSE_BEGIN, .version = version, .disk = disk,
               .epoch = d->epoch, .number = d->checkpoint.number);
}

static int end(struct machine *m, uint64_t version)
{
    return RUN(m, .op = CLUSTER_COLLAPSE_END, .version = version);
}

static int trash(struct machine *m, uint64_t disk)
{
    return RUN(m, .op = CLUSTER_DISK_TRASH, .disk = disk,
               .epoch = disk_by_id(m, disk)->epoch, .wall_ns = 99);
}

static int on_disk(struct machine *m, enum cluster_op op, uint64_t disk)
{
    return RUN(m, .op = op, .disk = disk);
}

static uint64_t clone_of(struct machine *m, uint64_t version, const char *name)
{
    CHECK_EQ(RUN(m, .op = CLUSTER_CLONE, .version = version, .name = name, .count = 1),
             0);
    return m->result.id;
}

/* --- versions --- */

static void test_snapshot_rm(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a"), b = machine_disk(&m, "b");
    uint64_t one = snapshot(&m, a, "one"), two = snapshot(&m, a, "two");
    uint64_t other = snapshot(&m, b, "one");
    CHECK_EQ(cluster_spare_count(m.state), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT_RM, .disk = a), -EINVAL);
    CHECK_EQ(remove_names(&m, a, one, other), -PLX_EMISSING);
    CHECK_STR(m.result.text, "disk a: has no version 3");
    CHECK_EQ(remove_names(&m, 9, one, 0), -PLX_EMISSING);
    CHECK_EQ(remove_names(&m, a, one, 77), 0); /* what is gone is gone */
    CHECK_EQ(remove_names(&m, a, one, one), 0);
    CHECK_EQ(disk_of(&m, "a")->snapshot_count, 1);
    CHECK_EQ(disk_of(&m, "a")->version_count, 2);
    CHECK(cluster_version_by_name(m.state, a, "one") == NULL);
    CHECK(cluster_version_by_name(m.state, b, "one") != NULL);
    CHECK_EQ(cluster_spare_count(m.state), 0); /* pending */
    checkpoint(&m, a, 5);
    CHECK_EQ(cluster_spare_count(m.state), 1);
    CHECK_EQ(cluster_spare_next(m.state, NULL)->id, one);
    /* The name is free again. */
    CHECK_EQ(snapshot(&m, a, "one"), 4);
    const struct cluster_version *version = NULL;
    const uint64_t order[] = {one, two, 4};
    for (size_t i = 0; i < ARRAY_LEN(order); i++) {
        version = cluster_disk_version_next(disk_of(&m, "a"), version);
        CHECK_EQ(version->id, order[i]);
    }
    CHECK(cluster_disk_version_next(disk_of(&m, "a"), version) == NULL);
    machine_done(&m);
}

/* Lists in a command are bounded, whatever the bytes say. */
static void test_bounds(void)
{
    static const struct {
        enum cluster_op op;
        uint32_t count, item_bytes;
        int code;
    } CASES[] = {
        {CLUSTER_SNAPSHOT_RM, SNAPSHOTS_PER_COMMAND, 8, 0},
        {CLUSTER_SNAPSHOT_RM, SNAPSHOTS_PER_COMMAND + 1, 8, -PLX_EFORMAT},
        {CLUSTER_SCHEDULE_SET, SCHEDULE_RULES_MAX, 8, -EINVAL}, /* every 0 s */
        {CLUSTER_SCHEDULE_SET, SCHEDULE_RULES_MAX + 1, 8, -PLX_EFORMAT},
    };
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a");
    for (size_t i = 0; i < ARRAY_LEN(CASES); i++) {
        struct writer w = {0};
        write_u8(&w, 1);
        write_u8(&w, (uint8_t)CASES[i].op);
        write_u16(&w, 0);
        write_u64(&w, 0);
        write_u64(&w, 0);
        write_u64(&w, a);
        if (CASES[i].op == CLUSTER_SNAPSHOT_RM)
            write_u16(&w, (uint16_t)CASES[i].count);
        else
            write_u8(&w, (uint8_t)CASES[i].count);
        for (uint32_t j = 0; j < CASES[i].count * CASES[i].item_bytes; j++)
            write_u8(&w, 0);
        CHECK_EQ(machine_bytes(&m, w.bytes, w.len), CASES[i].code);
        writer_done(&w);
    }
    machine_done(&m);
}

/* A chain of three versions: the middle one goes, then the oldest. */
static void test_collapse_version(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a");
    uint64_t one = snapshot(&m, a, "1"), two = snapshot(&m, a, "2");
    uint64_t three = snapshot(&m, a, "3");
    CHECK_EQ(begin(&m, 9), -PLX_EMISSING);
    CHECK_EQ(end(&m, 9), -PLX_EMISSING);
    CHECK_EQ(begin(&m, two), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "version 2: has a name");
    CHECK_EQ(remove_names(&m, a, one, two), 0);
    CHECK_EQ(begin(&m, two), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "version 2: waits for a checkpoint");
    checkpoint(&m, a, 7);
    CHECK_EQ(end(&m, two), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "version 2: its collapse has not begun");
    CHECK_EQ(begin_head(&m, two, a), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "version 2: its child is another one");
    CHECK(cluster_version_removable(m.state, version_of(&m, two)));
    CHECK_EQ(begin(&m, two), 0);
    CHECK_EQ(version_of(&m, two)->against.address.v, ROOT_OF(three));
    CHECK_EQ(begin(&m, two), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "version 2: collapses already");
    CHECK_EQ(begin(&m, one), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "version 1: has a neighbour that collapses");
    CHECK_EQ(remove_names(&m, a, three, 0), 0);
    CHECK_EQ(begin_head(&m, three, a), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "version 3: has a neighbour that collapses");
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = two, .name = "c", .count = 1),
             -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "clone: version 2 of disk a is being removed");
    CHECK_EQ(end(&m, two), 0);
    CHECK(cluster_version_by_id(m.state, two) == NULL);
    CHECK_EQ(version_of(&m, three)->parent, one);
    CHECK_EQ(cluster_child_next(version_of(&m, one), NULL)->id, three);
    CHECK_EQ(disk_of(&m, "a")->version_count, 2);
    CHECK_EQ(disk_of(&m, "a")->flags, 0);
    CHECK_EQ(begin(&m, one), 0);
    CHECK_EQ(end(&m, one), 0);
    CHECK_EQ(version_of(&m, three)->parent, 0);
    machine_done(&m);
}

static void test_collapse_head(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a");
    uint64_t one = snapshot(&m, a, "1"), two = snapshot(&m, a, "2");
    checkpoint(&m, a, 7);
    const struct cluster_disk *disk = disk_of(&m, "a");
    CHECK_EQ(cluster_disk_bound(m.state, disk), 2);
    CHECK_EQ(remove_names(&m, a, two, 0), 0);
    static const struct {
        uint64_t disk, epoch, number;
        int code;
    } BAD[] = {
        {0, 0, 0, -PLX_EPRECONDITION}, /* its child is a head */
        {8, 1, 1, -PLX_EMISSING},      {1, 0, 1, -PLX_EEPOCH},
        {1, 2, 1, -PLX_EPRECONDITION}, {1, 1, 0, -PLX_EPRECONDITION},
        {1, 1, 2, -PLX_EPRECONDITION},
    };
    for (size_t i = 0; i < ARRAY_LEN(BAD); i++)
        CHECK_EQ(RUN(&m, .op = CLUSTER_COLLAPSE_BEGIN, .version = two,
                     .disk = BAD[i].disk, .epoch = BAD[i].epoch, .number = BAD[i].number),
                 BAD[i].code);
    CHECK_STR(m.result.text, "disk a: checkpoint 2 is over, it is 1");
    CHECK_EQ(begin_head(&m, two, a), 0);
    CHECK_EQ(version_of(&m, two)->against.address.v, 7);
    CHECK_EQ(disk->collapsing_version, two);
    CHECK_EQ(cluster_disk_bound(m.state, disk), 1); /* from now on */
    /* The head goes on: checkpoints, and a snapshot that comes between. */
    checkpoint(&m, a, 8);
    CHECK_EQ(version_of(&m, two)->against.address.v, 7);
    uint64_t three = snapshot(&m, a, "3");
    CHECK_EQ(cluster_disk_bound(m.state, disk), 1);
    checkpoint(&m, a, 9);
    CHECK_EQ(cluster_disk_bound(m.state, disk), 3);
    /* One at a time, though these are no neighbours. */
    uint64_t four = snapshot(&m, a, "");
    checkpoint(&m, a, 10);
    CHECK_EQ(begin_head(&m, four, a), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text,
              "version 4: has a head for a child that another one collapses against");
    give_up(&m, a);
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = a, .epoch = 1, .version = one),
             -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "disk a: a removed snapshot is being merged into it");
    CHECK_EQ(end(&m, two), 0);
    CHECK_EQ(version_of(&m, three)->parent, one);
    CHECK_EQ(disk->collapsing_version, 0);
    CHECK(cluster_version_removable(m.state, version_of(&m, four)));
    CHECK_EQ(disk->root.address.v, 10);
    CHECK_EQ(disk->flags, 0);
    machine_done(&m);
}

/* A head without a root of its own starts from the version's; so it must get it. */
static void test_collapse_passes_root_on(void)
{
    struct machine m = machine_create();
    uint64_t gold = machine_disk(&m, "gold");
    uint64_t one = snapshot(&m, gold, "1");
    checkpoint(&m, gold, 7);
    uint64_t c = clone_of(&m, one, "c"), d = clone_of(&m, one, "d");
    CHECK_EQ(remove_names(&m, gold, one, 0), 0);
    CHECK_EQ(begin_head(&m, one, c), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "version 1: has more than one child");
    /* d's own snapshot is pending below it. */
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = d, .node = 1), 0);
    uint64_t two = snapshot(&m, d, "2");
    CHECK_EQ(cluster_disk_bound(m.state, disk_by_id(&m, d)), 1);
    give_up(&m, gold);
    CHECK_EQ(trash(&m, gold), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, gold), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, gold), 0);
    CHECK_EQ(trash(&m, c), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, c), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, c), 0);
    CHECK_EQ(begin(&m, one), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "version 1: has a child that waits for a checkpoint");
    checkpoint(&m, d, 8);
    CHECK_EQ(begin(&m, one), 0);
    CHECK_EQ(end(&m, one), 0);
    CHECK_EQ(version_of(&m, two)->parent, 0);
    CHECK(disk_by_id(&m, d)->flags & DISK_SHARED); /* it has blocks in gold's extents */

    uint64_t e = clone_of(&m, two, "e");
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = e, .node = 1), 0);
    CHECK_EQ(remove_names(&m, d, two, 0), 0);
    give_up(&m, d);
    CHECK_EQ(trash(&m, d), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, d), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, d), 0);
    CHECK_EQ(begin_head(&m, two, e), 0);
    CHECK_EQ(version_of(&m, two)->against.address.v, ROOT_OF(two));
    uint64_t three = snapshot(&m, e, "3"); /* pending, below one that goes */
    const struct cluster_disk *disk = disk_of(&m, "e");
    CHECK_EQ(cluster_disk_bound(m.state, disk), 0);
    CHECK(!disk->has_root);
    CHECK_EQ(end(&m, two), 0);
    CHECK(disk->has_root);
    CHECK_EQ(disk->root.address.v, ROOT_OF(two));
    CHECK_EQ(disk->checkpoint.number, 0);
    CHECK_EQ(version_of(&m, three)->parent, 0);
    checkpoint(&m, e, 9);
    CHECK_EQ(cluster_disk_bound(m.state, disk), version_of(&m, three)->generation);
    machine_done(&m);
}

/* Rollbacks leave the old heads behind, as versions that go like any other. */
static void test_rollback(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a");
    uint64_t one = snapshot(&m, a, "1"), two = snapshot(&m, a, "2");
    checkpoint(&m, a, 7);
    give_up(&m, a);
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = a, .epoch = 1, .version = one), 0);
    const struct cluster_disk *disk = disk_of(&m, "a");
    const struct cluster_version *old = version_of(&m, 3);
    CHECK_EQ(old->disk, a);
    CHECK_EQ(old->parent, two);
    CHECK_EQ(old->generation, 3);
    CHECK_EQ(old->root.address.v, 7);
    CHECK_EQ(old->size_bytes, GIB);
    CHECK_EQ(old->marker, 0);
    CHECK_STR(old->name, "");
    CHECK(cluster_version_removable(m.state, old));
    CHECK_EQ(disk->head_parent, one);
    CHECK_EQ(version_of(&m, one)->child_count, 2);
    CHECK_EQ(disk->snapshot_count, 2);
    CHECK_EQ(disk->version_count, 3);
    CHECK_EQ(begin(&m, 3), 0);
    CHECK_EQ(version_of(&m, 3)->against.address.v, 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = a, .epoch = 1, .version = 3),
             -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "disk a: version 3 is being removed");
    CHECK_EQ(end(&m, 3), 0);
    /* A clone that was never written to has nothing to leave. */
    uint64_t c = clone_of(&m, two, "c");
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = c, .node = 1), 0);
    uint64_t three = snapshot(&m, c, "3");
    checkpoint(&m, c, 8);
    give_up(&m, c);
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = c, .epoch = 1, .version = three), 0);
    CHECK_EQ(disk_by_id(&m, c)->version_count, 2);
    uint64_t d = clone_of(&m, three, "d");
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = d, .version = three),
             -PLX_EMISSING); /* not its own */
    machine_done(&m);
}

/* --- disks --- */

static void test_trash(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a");
    uint64_t one = snapshot(&m, a, "1");
    CHECK_EQ(trash(&m, a), -PLX_EOWNED);
    give_up(&m, a);
    CHECK_EQ(trash(&m, a), -PLX_EPRECONDITION); /* pending */
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = a, .epoch = 1, .node = 1), 0);
    struct address extent = machine_extent(&m, a);
    checkpoint(&m, a, 7);
    struct final_length final = {.extent = extent, .length = 9, .last_number = 40};
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = a, .epoch = 2, .finals = &final,
                 .final_count = 1, .flushed = 40),
             0);
    CHECK(!cluster_disk_is_settled(disk_of(&m, "a")));
    CHECK_EQ(trash(&m, a), -PLX_EPRECONDITION); /* not covered */
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = a, .epoch = 2, .node = 1), 0);
    checkpoint(&m, a, 8);
    give_up(&m, a);
    CHECK(cluster_disk_is_settled(disk_of(&m, "a")));
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_TRASH, .disk = a, .epoch = 2), -PLX_EEPOCH);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, a), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "disk a: is not in the trash");
    CHECK(cluster_trash_next(m.state, NULL) == NULL);
    CHECK_EQ(trash(&m, a), 0);
    const struct cluster_disk *disk = cluster_trash_next(m.state, NULL);
    CHECK_EQ(disk->id, a);
    CHECK_STR(disk->name, ".trash-1");
    CHECK_STR(disk->trash_name, "a");
    CHECK_EQ(disk->trashed_wall_ns, 99);
    CHECK(!cluster_disk_is_visible(disk));
    CHECK(cluster_disk_by_name(m.state, "a") == NULL);
    CHECK(cluster_version_by_name(m.state, a, "1") != NULL);
    machine_disk(&m, "a"); /* the name is free */
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_RESTORE, a), -PLX_ENAME);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESTORE, .disk = a, .name = "a"), -PLX_EEXISTS);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESTORE, .disk = a, .name = ".trash-1"),
             -PLX_ENAME);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESTORE, .disk = a, .name = "b"), 0);
    CHECK_EQ(disk->flags, 0);
    CHECK_STR(disk->name, "b");
    CHECK(disk->trash_name == NULL);
    CHECK_EQ(clone_of(&m, one, "c"), 3);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESTORE, .disk = a, .name = "b"),
             -PLX_EPRECONDITION);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_CREATE, .name = "i", .flags = DISK_IMPORTING), 0);
    CHECK_EQ(trash(&m, m.result.id), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "disk i: is being imported");
    machine_done(&m);
}

/* Nothing but what says so works on a disk that is not there for users. */
static void test_trash_refuses(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a"), live = machine_disk(&m, "live");
    uint64_t one = snapshot(&m, a, "1");
    checkpoint(&m, a, 7);
    give_up(&m, a);
    CHECK_EQ(trash(&m, a), 0);
    const struct cluster_command refused[] = {
        {.op = CLUSTER_DISK_RENAME, .name = ".trash-1", .new_name = "x"},
        {.op = CLUSTER_DISK_RESIZE, .disk = a, .epoch = 1, .size_bytes = 2 * GIB},
        {.op = CLUSTER_DISK_PUBLISH, .disk = a, .epoch = 1, .size_bytes = GIB},
        {.op = CLUSTER_DISK_DISCARD, .disk = a},
        {.op = CLUSTER_LEASE_TAKE, .disk = a, .epoch = 1, .node = 1},
        {.op = CLUSTER_LEASE_CLOSE, .disk = a, .epoch = 1},
        {.op = CLUSTER_CHECKPOINT, .disk = a, .epoch = 1},
        {.op = CLUSTER_SNAPSHOT, .disk = a, .epoch = 1, .marker = 9, .generation = 5},
        {.op = CLUSTER_CLONE, .version = one, .name = "c", .count = 1},
        {.op = CLUSTER_ROLLBACK, .disk = a, .epoch = 1, .version = one},
        {.op = CLUSTER_SNAPSHOT_RM, .disk = a, .versions = &one, .version_count = 1},
        {.op = CLUSTER_DISK_TRASH, .disk = a, .epoch = 1},
        {.op = CLUSTER_SCHEDULE_SET, .disk = a},
        {.op = CLUSTER_QUOTA_SET, .disk = a},
    };
    for (int removed = 0; removed < 2; removed++) {
        for (size_t i = 0; i < ARRAY_LEN(refused); i++)
            CHECK_EQ(machine_run(&m, &refused[i]), -PLX_EMISSING);
        CHECK_STR(m.result.text,
                  removed ? "disk a: is removed" : "disk a: is in the trash");
        if (!removed) {
            CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, a), -PLX_EPRECONDITION);
            CHECK_STR(m.result.text, "disk a: is not removed");
            CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, a), 0);
        }
    }
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESTORE, .disk = a, .name = "x"), -PLX_EMISSING);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, a), -PLX_EMISSING);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, live), -PLX_EPRECONDITION);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, live), -PLX_EPRECONDITION);
    machine_done(&m);
}

/* A disk that nobody ever cloned goes with all its versions. */
static void test_purge_alone(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a");
    uint64_t one = snapshot(&m, a, "1"), two = snapshot(&m, a, "2");
    checkpoint(&m, a, 7);
    give_up(&m, a);
    CHECK_EQ(remove_names(&m, a, one, 0), 0);
    CHECK_EQ(begin(&m, one), 0);
    CHECK_EQ(trash(&m, a), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, a), 0);
    CHECK_EQ(disk_by_id(&m, a)->snapshot_count, 0);
    CHECK_EQ(version_of(&m, two)->name[0], 0);
    CHECK(!cluster_disk_purgeable(m.state, disk_by_id(&m, a)));
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, a), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "disk a: a version collapses");
    CHECK_EQ(end(&m, one), 0);
    CHECK(cluster_disk_purgeable(m.state, disk_by_id(&m, a)));
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, a), 0);
    CHECK_EQ(cluster_disk_count(m.state), 0);
    CHECK_EQ(cluster_version_count(m.state), 0);
    CHECK_EQ(cluster_spare_count(m.state), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, a), -PLX_EMISSING);
    machine_done(&m);
}

/* A clone goes at once, but not while the version it grew from collapses against it. */
static void test_purge_clone(void)
{
    struct machine m = machine_create();
    uint64_t gold = machine_disk(&m, "gold");
    uint64_t one = snapshot(&m, gold, "1");
    checkpoint(&m, gold, 7);
    uint64_t c = clone_of(&m, one, "c"), d = clone_of(&m, one, "d");
    CHECK_EQ(trash(&m, d), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, d), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, d), 0);
    CHECK(cluster_disk_by_id(m.state, d) == NULL);
    CHECK_EQ(version_of(&m, one)->child_count, 2);
    give_up(&m, gold);
    CHECK_EQ(trash(&m, gold), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, gold), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, gold), 0);
    CHECK_EQ(begin_head(&m, one, c), 0);
    CHECK_EQ(trash(&m, c), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, c), 0);
    CHECK(!cluster_disk_purgeable(m.state, disk_by_id(&m, c)));
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, c), -PLX_EPRECONDITION);
    CHECK_EQ(end(&m, one), 0);
    /* Now it has blocks in gold's extents. */
    CHECK_EQ(disk_by_id(&m, c)->flags, DISK_TRASHED | DISK_REMOVED | DISK_SHARED);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, c), 0);
    CHECK_EQ(disk_by_id(&m, c)->flags & DISK_HEADLESS, DISK_HEADLESS);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, c), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, gold), 0);
    CHECK_EQ(cluster_disk_count(m.state), 0);
    machine_done(&m);
}

/* Of a disk that was cloned the record stays until its last extent went. */
static void test_purge_shared(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a");
    uint64_t one = snapshot(&m, a, "1");
    checkpoint(&m, a, 7);
    uint64_t c = clone_of(&m, one, "c");
    CHECK_EQ(disk_of(&m, "a")->flags, DISK_SHARED);
    struct address extent = machine_extent(&m, a);
    struct final_length final = {.extent = extent, .length = 9};
    const struct cluster_disk *disk = disk_of(&m, "a");
    CHECK_EQ(RUN(&m, .op = CLUSTER_CHECKPOINT, .disk = a, .epoch = 1,
                 .checkpoint = {2, 9, 9}, .newest_marker = disk->newest_marker,
                 .root = disk->root, .list = {.head = {44}, .crc = 1, .blocks = 2}),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = a, .epoch = 1, .finals = &final,
                 .final_count = 1),
             0);
    CHECK_EQ(trash(&m, a), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, a), 0);
    CHECK_EQ(begin_head(&m, one, a), -PLX_EMISSING);
    CHECK_EQ(cluster_disk_bound(m.state, disk), 1);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, a), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "disk a: 1 dead lists are not trimmed");
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_TIDY, .disk = a, .epoch = 1, .number = 2), 0);
    CHECK_EQ(disk->extent_count, 1);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, a), 0);
    CHECK(disk->flags & DISK_HEADLESS);
    CHECK_EQ(disk->extent_count, 0);
    CHECK_EQ(disk->head_parent, 0);
    CHECK(!disk->has_root);
    CHECK_EQ(version_of(&m, one)->child_count, 1);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, a), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "disk a: 1 versions are left");
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_TIDY, .disk = a, .epoch = 1), -PLX_EMISSING);
    CHECK_EQ(begin_head(&m, one, c), 0);
    CHECK_EQ(end(&m, one), 0);
    CHECK_EQ(disk_of(&m, "c")->root.address.v, ROOT_OF(one));
    CHECK_EQ(cluster_disk_by_id(m.state, a), disk); /* c reads from its extents */
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, a), 0);
    CHECK(cluster_disk_by_id(m.state, a) == NULL);
    machine_done(&m);
}

/* A version whose only child is the head of a removed disk waits until that is gone: the
 * walk would compare with a tree that is being taken down. */
static void test_removed_head_first(void)
{
    struct machine m = machine_create();
    uint64_t gold = machine_disk(&m, "gold");
    uint64_t one = snapshot(&m, gold, "1");
    checkpoint(&m, gold, 7);
    uint64_t c = clone_of(&m, one, "c");
    give_up(&m, gold);
    CHECK_EQ(trash(&m, gold), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, gold), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, gold), 0);
    CHECK_EQ(trash(&m, c), 0);
    CHECK(cluster_version_removable(m.state, version_of(&m, one)));
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, c), 0);
    CHECK(!cluster_version_removable(m.state, version_of(&m, one)));
    CHECK_EQ(begin(&m, one), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "version 1: has the head of a removed disk for a child");
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, c), 0);
    CHECK_EQ(begin(&m, one), 0);
    CHECK_EQ(version_of(&m, one)->against.address.v, 0);
    CHECK_EQ(end(&m, one), 0);
    machine_done(&m);
}

/* --- dead lists --- */

static int checkpoint_list(struct machine *m, uint64_t disk, uint64_t trimmed,
                           uint32_t blocks, uint64_t head)
{
    const struct cluster_disk *d = disk_by_id(m, disk);
    return RUN(m, .op = CLUSTER_CHECKPOINT, .disk = disk, .epoch = d->epoch,
               .checkpoint = {d->checkpoint.number + 1, 0, 0}, .trimmed = trimmed,
               .list = {.head = {head}, .crc = 5, .blocks = blocks});
}

static void test_lists(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a");
    const struct cluster_disk *disk = disk_of(&m, "a");
    CHECK_EQ(checkpoint_list(&m, a, 1, 0, 0), -PLX_EPRECONDITION);
    CHECK_EQ(checkpoint_list(&m, a, 0, 1, 0), -EINVAL);
    CHECK_EQ(checkpoint_list(&m, a, 0, 3, 71), 0);
    CHECK_EQ(disk->list_count, 1);
    CHECK_EQ(disk->lists[0].checkpoint, 1);
    CHECK_EQ(disk->lists[0].head.v, 71);
    CHECK_EQ(disk->lists[0].crc, 5);
    CHECK_EQ(disk->lists[0].blocks, 3);
    CHECK_EQ(checkpoint_list(&m, a, 0, 0, 0), 0); /* none of its own */
    CHECK_EQ(checkpoint_list(&m, a, 0, 1, 73), 0);
    CHECK_EQ(checkpoint_list(&m, a, 4, 1, 74), -PLX_EPRECONDITION);
    CHECK_EQ(checkpoint_list(&m, a, 2, 1, 74), 0);
    CHECK_EQ(disk->list_count, 2);
    CHECK_EQ(disk->lists[0].checkpoint, 3);
    while (disk->list_count < LISTS_MAX)
        CHECK_EQ(checkpoint_list(&m, a, 0, 1, 75), 0);
    CHECK_EQ(checkpoint_list(&m, a, 0, 1, 75), -PLX_ELIMIT);
    CHECK_STR(m.result.text, "disk a: 64 dead lists wait to be trimmed");
    CHECK_EQ(checkpoint_list(&m, a, 0, 0, 0), 0);
    CHECK_EQ(checkpoint_list(&m, a, 3, 1, 75), 0);
    CHECK_EQ(disk->list_count, LISTS_MAX);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_TIDY, .disk = a, .epoch = 1, .number = 9),
             -PLX_EOWNED);
    give_up(&m, a);
    uint64_t newest = disk->checkpoint.number;
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_TIDY, .disk = a, .epoch = 0), -PLX_EEPOCH);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_DISK_TIDY, .disk = a, .epoch = 1, .number = newest + 1),
        -PLX_EPRECONDITION);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_DISK_TIDY, .disk = a, .epoch = 1, .number = newest - 1), 0);
    CHECK_EQ(disk->list_count, 1);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_TIDY, .disk = a, .epoch = 1, .number = newest),
             0);
    CHECK_EQ(disk->list_count, 0);
    machine_done(&m);
}

static void test_tidy_extents(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a");
    struct address first = machine_extent(&m, a), second = machine_extent(&m, a);
    struct final_length finals[] = {{.extent = first, .length = 5, .last_number = 4},
                                    {.extent = second, .length = 5, .last_number = 9}};
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_CHECKPOINT, .disk = a, .epoch = 1, .checkpoint = {1, 6, 9}),
        0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = a, .epoch = 1, .finals = finals,
                 .final_count = 2),
             0);
    finals[0].leaves = finals[1].leaves = true;
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_TIDY, .disk = a, .epoch = 1, .number = 1,
                 .finals = finals, .final_count = 2),
             -PLX_EPRECONDITION); /* a replay needs the second */
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_TIDY, .disk = a, .epoch = 1, .number = 1,
                 .finals = finals, .final_count = 1),
             0);
    CHECK_EQ(disk_of(&m, "a")->extent_count, 1);
    CHECK_EQ(disk_of(&m, "a")->extents[0].extent.v, second.v);
    machine_done(&m);
}

/* --- settings --- */

static void test_settings(void)
{
    struct machine m = machine_create();
    CHECK_EQ(cluster_trash_keep_s(m.state), TRASH_KEEP_DEFAULT_S);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SETTINGS, .trash_keep_s = TRASH_KEEP_MAX_S + 1ull),
             -PLX_ELIMIT);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SETTINGS, .trash_keep_s = 0), 0);
    CHECK_EQ(cluster_trash_keep_s(m.state), 0);

    uint64_t a = machine_disk(&m, "a");
    CHECK_EQ(RUN(&m, .op = CLUSTER_QUOTA_SET, .disk = a, .quota_bytes = 5 * GIB), 0);
    CHECK_EQ(disk_of(&m, "a")->quota_bytes, 5 * GIB);
    CHECK_EQ(RUN(&m, .op = CLUSTER_QUOTA_SET, .disk = a), 0);
    CHECK_EQ(disk_of(&m, "a")->quota_bytes, 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_QUOTA_SET, .disk = 9), -PLX_EMISSING);

    struct schedule_rule good[] = {{3600, 24}, {86400, 7}};
    static const struct schedule_rule BAD[][2] = {
        {{3600, 24}, {3600, 7}},
        {{0, 24}, {86400, 7}},
        {{3600, 0}, {86400, 7}},
        {{3600, 24}, {SCHEDULE_EVERY_MAX_S + 1, 7}},
        {{3600, 24}, {86400, SCHEDULE_KEEP_MAX + 1}},
    };
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_SCHEDULE_SET, .disk = a, .rules = good, .rule_count = 2),
        0);
    for (size_t i = 0; i < ARRAY_LEN(BAD); i++)
        CHECK_EQ(RUN(&m, .op = CLUSTER_SCHEDULE_SET, .disk = a, .rules = BAD[i],
                     .rule_count = 2),
                 -EINVAL);
    CHECK_EQ(disk_of(&m, "a")->rule_count, 2);
    CHECK_EQ(disk_of(&m, "a")->rules[1].keep, 7);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SCHEDULE_SET, .disk = a), 0);
    CHECK_EQ(disk_of(&m, "a")->rule_count, 0);
    machine_done(&m);
}

/* --- the check finds what is wrong --- */

static void check_says(struct machine *m, const char *text)
{
    char found[200] = "";
    CHECK_EQ(cluster_state_check(m->state, found, sizeof found), -PLX_EDAMAGED);
    CHECK_STR(found, text);
}

static void check_good(struct machine *m)
{
    char found[200] = "";
    CHECK_EQ(cluster_state_check(m->state, found, sizeof found), 0);
}

/* Changes one thing, sees what the check says, changes it back. */
#define WITH(m, place, value, text)                                                      \
    do {                                                                                 \
        typeof(place) was = (place);                                                     \
        (place) = (value);                                                               \
        check_says((m), (text));                                                         \
        (place) = was;                                                                   \
        check_good(m);                                                                   \
    } while (0)

static void test_check_versions(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a");
    uint64_t one = snapshot(&m, a, "1"), two = snapshot(&m, a, "2");
    checkpoint(&m, a, 7);
    CHECK_EQ(remove_names(&m, a, one, two), 0);
    struct cluster_version *first = cluster_version_find(m.state, one);
    struct cluster_version *second = cluster_version_find(m.state, two);
    struct cluster_disk *disk = cluster_disk_find(m.state, a);
    CHECK_EQ(begin(&m, one), 0);
    WITH(&m, second->collapsing, true, "version 1: collapses, and so does its neighbour");
    WITH(&m, first->against.address.v, 1,
         "version 1: collapses against what is not its child");
    WITH(&m, first->spare, false, "version 1: is in the wrong list");
    WITH(&m, m.state->spare_count, 1, "versions to be removed are miscounted");
    WITH(&m, disk->collapsing_version, two, "disk a: no version 2 collapses against it");
    WITH(&m, first->child_count, 0, "version 1: 0 children, 1 are listed");
    CHECK_EQ(end(&m, one), 0);
    CHECK_EQ(begin_head(&m, two, a), 0);
    WITH(&m, disk->collapsing_version, 0,
         "version 2: collapses, but its child does not know");
    WITH(&m, second->against.generation, 9,
         "version 2: collapses against what is to come");
    WITH(&m, disk->collapsing_version, 9,
         "version 2: collapses, but its child does not know");
    CHECK_EQ(end(&m, two), 0);
    uint64_t three = snapshot(&m, a, "3");
    struct cluster_version *third = cluster_version_find(m.state, three);
    WITH(&m, third->marker, 0, "version 3: a snapshot without a marker");
    WITH(&m, third->collapsing, true, "version 3: collapses, but something needs it");
    clone_of(&m, three, "c");
    WITH(&m, disk->flags, 0, "version 3: has a clone, but its disk is not shared");
    machine_done(&m);
}

static void test_check_disks(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a"), b = machine_disk(&m, "b");
    uint64_t one = snapshot(&m, a, "1");
    checkpoint(&m, a, 7);
    clone_of(&m, one, "c");
    struct cluster_disk *disk = cluster_disk_find(m.state, a);
    WITH(&m, disk->flags, 64, "disk a: impossible flags or size");
    WITH(&m, disk->flags, DISK_SHARED | DISK_IMPORTING, "disk a: is imported and more");
    WITH(&m, disk->flags, DISK_SHARED | DISK_REMOVED, "disk a: was removed out of order");
    WITH(&m, disk->collapsing_version, one, "disk a: no version 1 collapses against it");
    CHECK_EQ(checkpoint_list(&m, b, 0, 1, 5), 0);
    struct cluster_disk *other = cluster_disk_find(m.state, b);
    WITH(&m, other->lists[0].checkpoint, 2, "disk b: its dead lists are out of order");
    WITH(&m, other->lists[0].blocks, 0, "disk b: its dead lists are out of order");
    struct schedule_rule rule = {60, 1};
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_SCHEDULE_SET, .disk = b, .rules = &rule, .rule_count = 1),
        0);
    WITH(&m, other->rules[0].keep, 0, "disk b: an impossible schedule");
    WITH(&m, m.state->trash_keep_s, UINT64_MAX, "an impossible setting");
    give_up(&m, a);
    CHECK_EQ(trash(&m, a), 0);
    WITH(&m, disk->name[7], 'x', "disk 1: its name is invalid or not its own");
    WITH(&m, disk->trash_name[0], '.', "disk 1: its name is invalid or not its own");
    WITH(&m, disk->owner, 1, "disk .trash-1: is in the trash, but not at rest");
    WITH(&m, disk->flags, disk->flags | DISK_REMOVED,
         "disk .trash-1: is removed, but has snapshots");
    WITH(&m, disk->flags, disk->flags | DISK_HEADLESS,
         "disk .trash-1: was removed out of order");
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_REMOVE, a), 0);
    CHECK_EQ(on_disk(&m, CLUSTER_DISK_PURGED, a), 0);
    WITH(&m, disk->has_root, true, "disk .trash-1: has no head, but what belongs to one");
    machine_done(&m);
}

int main(void)
{
    test_snapshot_rm();
    test_bounds();
    test_collapse_version();
    test_collapse_head();
    test_collapse_passes_root_on();
    test_rollback();
    test_trash();
    test_trash_refuses();
    test_purge_alone();
    test_purge_clone();
    test_purge_shared();
    test_removed_head_first();
    test_lists();
    test_tidy_extents();
    test_settings();
    test_check_versions();
    test_check_disks();
    return 0;
}
