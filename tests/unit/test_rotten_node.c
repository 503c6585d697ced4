/* SPDX-License-Identifier: Apache-2.0 */
/* A map node rots between two processes. What it is for is refused, never answered with
 * anything else; all else goes on, and there is a way to be rid of it. */
#include "tests/unit/rot.h"

#include <sys/wait.h>

#define LEAF_BYTES  (MAP_FANOUT * BLOCK_SIZE)
#define LEAF_BLOCKS MAP_FANOUT

static void run_two(uint64_t seed, void (*first)(struct machine *m),
                    void (*second)(struct machine *m))
{
    struct machine *m = machine_create(seed);
    machine_run(m, first);
    machine_run(m, second);
    free(m->arg);
    machine_destroy(m);
}

/* --- what is where --- */

static const struct cluster_disk *state_of(struct machine *m, const char *name)
{
    const struct cluster_disk *disk =
        cluster_disk_by_name(cluster_state(m->host->cluster), name);
    CHECK(disk != NULL);
    return disk;
}

/* The node at `level` on the way to a block. */
static async struct map_entry node_of(struct machine *m, const struct map_root *root,
                                      unsigned level, uint64_t block)
{
    struct map_entry entry = {root->address, root->crc, root->generation};
    for (unsigned at = root->height - 1U; at > level; at--) {
        const struct node *node;
        CHECK_EQ(node_get(m->host->nodes, entry.address, entry.crc, &node), 0);
        unsigned child = (unsigned)(block / map_entry_blocks(at) % MAP_FANOUT);
        entry = map_entry_at(node->format, child);
        node_put(m->host->nodes, node);
    }
    CHECK(!address_is_null(entry.address));
    return entry;
}

static async void rot_node(struct machine *m, const char *name, unsigned level,
                           uint64_t block)
{
    struct map_root root = state_of(m, name)->root;
    rot(m, node_of(m, &root, level, block).address);
}

/* --- changes --- */

static async void put(struct machine *m, struct disk *disk, struct model *model,
                      uint64_t offset, uint64_t len)
{
    for (uint64_t at = offset; at < offset + len;) {
        uint64_t n = min_u64(offset + len - at, 64 * KIB);
        fill(m, model->bytes + at, n);
        CHECK_EQ(write_bytes_at(disk, at, n, model->bytes + at, 0), 0);
        at += n;
    }
}

static async void discard(struct disk *disk, struct model *model, uint64_t offset,
                          uint64_t len)
{
    memset(model->bytes + offset, 0, len);
    CHECK_EQ(change(disk, DISK_TRIM, offset, len), 0);
}

static async void shut(struct machine *m, const char *name)
{
    DO(disk_shut(m->host, state_of(m, name)->id, &err));
}

/* Disk d, full of data, closed. */
static async struct model *make_disk(struct machine *m, uint64_t size_bytes)
{
    struct model *model = model_create(size_bytes);
    DO(disk_create(m->host, "d", size_bytes, &err));
    struct disk *disk = attach(m, "d");
    put(m, disk, model, 0, size_bytes);
    disk_close(disk);
    shut(m, "d");
    m->arg = model;
    return model;
}

static async bool is_unreadable(struct disk *disk, uint64_t offset)
{
    uint8_t bytes[BLOCK_SIZE];
    return read_bytes_at(disk, offset, sizeof bytes, bytes) < 0;
}

/* A checkpoint that meets the node: it names it. */
static async void checkpoint_fails(struct disk *disk, const char *what)
{
    struct error err = {0};
    CHECK_EQ(disk_checkpoint(disk, &err), -PLX_ECHECKSUM);
    if (strstr(err.text, what) == NULL)
        fprintf(stderr, "%s does not say %s\n", err.text, what);
    CHECK(strstr(err.text, what) != NULL);
}

/* All is well but for space that was lost, which a check gives back. */
static async void check_repaired(struct machine *m, uint64_t lost_max)
{
    struct findings findings = {0};
    struct check_callbacks callbacks = {.finding = note_finding, .arg = &findings};
    struct check_report report;
    for (uint32_t i = 0;; i++) { /* until the lists are through */
        findings.count = 0;
        DO(host_check(m->host, CHECK_REPAIR, &callbacks, &report, &err));
        if (report.lost_blocks > 0 || report.findings == 0)
            break;
        CHECK(i < 100);
        task_sleep_ns(NS_PER_S);
    }
    CHECK_EQ(report.repaired_blocks, report.lost_blocks);
    CHECK(report.lost_blocks <= lost_max);
    CHECK_EQ(report.dead_reachable, 0);
    check_clean(m);
}

/* --- all that a node is for is replaced --- */

static async void body_two_leaves(struct machine *m)
{
    make_disk(m, 2 * LEAF_BYTES);
    rot_node(m, "d", 0, 0);
}

/* By data and zeros, in whatever order. */
static async void body_replaced(struct machine *m)
{
    struct model *model = m->arg;
    struct disk *disk = attach(m, "d");
    CHECK(is_unreadable(disk, 0) && is_unreadable(disk, LEAF_BYTES - BLOCK_SIZE));
    CHECK(!is_unreadable(disk, LEAF_BYTES));
    put(m, disk, model, LEAF_BYTES / 2, LEAF_BYTES / 4);
    discard(disk, model, LEAF_BYTES / 4 * 3, LEAF_BYTES / 4);
    put(m, disk, model, 0, LEAF_BYTES / 2);
    put(m, disk, model, LEAF_BYTES + 7 * BLOCK_SIZE, BLOCK_SIZE);
    DO(disk_checkpoint(disk, &err));
    check_content(disk, model);
    disk_close(disk);
    shut(m, "d");
    check_named(m, "d", model);
    /* What the leaf named, and itself. */
    check_repaired(m, LEAF_BLOCKS + 1);
    check_named(m, "d", model);
}

/* By several checkpoints' layers: the first ones failed. */
static async void body_replaced_late(struct machine *m)
{
    struct model *model = m->arg;
    struct disk *disk = attach(m, "d");
    put(m, disk, model, 0, LEAF_BYTES / 2);
    checkpoint_fails(disk, "for the 1048576 bytes from offset 0 on");
    for (uint32_t i = 0; i < 2 * FROZEN_LAYERS_MAX; i++) {
        put(m, disk, model, LEAF_BYTES / 2 + i * 16 * KIB, 16 * KIB);
        put(m, disk, model, LEAF_BYTES + BLOCK_SIZE, BLOCK_SIZE);
        checkpoint_fails(disk, "for the 1048576 bytes from offset 0 on");
    }
    CHECK(is_unreadable(disk, LEAF_BYTES - BLOCK_SIZE));
    discard(disk, model, LEAF_BYTES / 4 * 3, LEAF_BYTES / 4);
    DO(disk_checkpoint(disk, &err));
    check_content(disk, model);
    disk_close(disk);
    shut(m, "d");
    check_repaired(m, LEAF_BLOCKS + 1);
    check_named(m, "d", model);
}

/* A snapshot in between does not see what was written after it: never zeros. */
static async void body_snapshot_between(struct machine *m)
{
    struct model *model = m->arg;
    struct disk *disk = attach(m, "d"), *snapshot;
    struct error error = {0};
    put(m, disk, model, 0, LEAF_BYTES / 2);
    DO(snapshot_create(m->host, "d", "s", &err));
    put(m, disk, model, LEAF_BYTES / 2, LEAF_BYTES / 2);
    checkpoint_fails(disk, "for the 1048576 bytes from offset 0 on");
    check_content(disk, model);
    if (disk_open(m->host, "d@s", DISK_READ_ONLY, &snapshot, &error) == 0) {
        CHECK(is_unreadable(snapshot, LEAF_BYTES - BLOCK_SIZE));
        disk_close(snapshot);
    }
    disk_close(disk);
}

/* Tried again and again, a checkpoint does not write the nodes before it each time. */
static async void body_tried_again(struct machine *m)
{
    struct model *model = m->arg;
    struct disk *disk = attach(m, "d");
    for (uint64_t at = 0; at < model->size_bytes; at += LEAF_BYTES)
        put(m, disk, model, at, BLOCK_SIZE);
    checkpoint_fails(disk, "for the 1048576 bytes from offset 1048576 on");
    uint64_t appended_bytes = log_appended_bytes(disk->log);
    for (uint32_t i = 0; i < 3; i++) {
        checkpoint_fails(disk, "for the 1048576 bytes from offset 1048576 on");
        CHECK_EQ(log_appended_bytes(disk->log), appended_bytes);
    }
    put(m, disk, model, LEAF_BYTES, LEAF_BYTES);
    DO(disk_checkpoint(disk, &err));
    check_content(disk, model);
    disk_close(disk);
    shut(m, "d");
    check_repaired(m, LEAF_BLOCKS + 1);
    check_named(m, "d", model);
}

/* One that shares the leaf keeps it, and cannot be read there. */
static async void body_shared(struct machine *m)
{
    make_disk(m, 2 * LEAF_BYTES);
    DO(snapshot_create(m->host, "d", "s", &err));
    DO(disk_clone(m->host, "d", "s", "copy", 1, &err));
    rot_node(m, "d", 0, 0);
}

static async void body_shared_replaced(struct machine *m)
{
    const char *const names[] = {"s"};
    struct model *model = m->arg;
    struct disk *disk = attach(m, "d"), *copy = attach(m, "copy");
    put(m, disk, model, 0, LEAF_BYTES);
    DO(disk_checkpoint(disk, &err));
    check_content(disk, model);
    CHECK(is_unreadable(copy, 0));
    CHECK_EQ(change(copy, DISK_TRIM, BLOCK_SIZE, LEAF_BYTES), 0);
    checkpoint_fails(copy, "for the 1048576 bytes from offset 0 on");
    CHECK_EQ(change(copy, DISK_TRIM, 0, BLOCK_SIZE), 0);
    DO(disk_checkpoint(copy, &err));
    CHECK(!is_unreadable(copy, 0));
    disk_close(copy);
    disk_close(disk);
    copy = attach(m, "d@s");
    CHECK(is_unreadable(copy, 0) && !is_unreadable(copy, LEAF_BYTES));
    disk_close(copy);
    shut(m, "d");
    shut(m, "copy");
    DO(disk_remove(m->host, "copy", 0, &err));
    DO(trash_empty(m->host, NULL, &err));
    DO(snapshot_remove(m->host, "d", names, 1, &err));
    check_repaired(m, LEAF_BLOCKS + 1);
    check_named(m, "d", model);
}

/* A disk ends within its last leaf, which is replaced up to there; the top is its only
 * node. */
static async void body_small(struct machine *m)
{
    make_disk(m, LEAF_BYTES / 2);
    rot_node(m, "d", 0, 0);
}

static async void body_small_replaced(struct machine *m)
{
    struct model *model = m->arg;
    struct disk *disk = attach(m, "d");
    put(m, disk, model, BLOCK_SIZE, LEAF_BYTES / 2 - BLOCK_SIZE);
    checkpoint_fails(disk, "for the 524288 bytes from offset 0 on");
    put(m, disk, model, 0, BLOCK_SIZE);
    DO(disk_checkpoint(disk, &err));
    check_content(disk, model);
    disk_close(disk);
    shut(m, "d");
    check_repaired(m, LEAF_BLOCKS + 1);
    check_named(m, "d", model);
}

/* A node above leaves: all of these are replaced. */
static async void body_top(struct machine *m)
{
    make_disk(m, 3 * LEAF_BYTES);
    rot_node(m, "d", 1, 0);
}

static async void body_top_replaced(struct machine *m)
{
    struct model *model = m->arg;
    struct disk *disk = attach(m, "d");
    put(m, disk, model, 0, 2 * LEAF_BYTES);
    checkpoint_fails(disk, "map node of level 1 for the 3145728 bytes from offset 0 on");
    discard(disk, model, 2 * LEAF_BYTES, LEAF_BYTES);
    DO(disk_checkpoint(disk, &err));
    check_content(disk, model);
    disk_close(disk);
    shut(m, "d");
    check_repaired(m, 3 * (LEAF_BLOCKS + 1) + 1);
    check_named(m, "d", model);
}

/* Cut off with its neighbours, it costs only what it named itself. */
static async void body_three_leaves(struct machine *m)
{
    make_disk(m, 3 * LEAF_BYTES);
    rot_node(m, "d", 0, LEAF_BLOCKS);
}

static async void body_cut(struct machine *m)
{
    struct model *model = m->arg;
    struct disk *disk = attach(m, "d");
    discard(disk, model, 0, 3 * LEAF_BYTES);
    DO(disk_checkpoint(disk, &err));
    check_content(disk, model);
    disk_close(disk);
    shut(m, "d");
    check_repaired(m, LEAF_BLOCKS + 1);
}

/* --- made again --- */

static async struct check_report repair(struct machine *m)
{
    struct findings findings = {0};
    struct check_callbacks callbacks = {.finding = note_finding, .arg = &findings};
    struct check_report report;
    DO(host_check(m->host, CHECK_REPAIR, &callbacks, &report, &err));
    CHECK_EQ(report.findings, findings.count);
    if (report.rebuilt_nodes > 0)
        CHECK(strstr(findings.first, "rebuilt from what its log tells") != NULL);
    return report;
}

/* All is as it was, for all who share the node. */
static async void check_mended(struct machine *m, uint64_t nodes)
{
    struct check_report report = repair(m);
    CHECK_EQ(report.rebuilt_nodes, nodes);
    CHECK_EQ(report.findings, nodes);
    CHECK_EQ(report.lost_blocks, 0);
    check_clean(m);
}

static async void body_mend(struct machine *m)
{
    struct findings findings;
    struct check_report report;
    run_check(m, &findings, &report);
    CHECK_EQ(findings.count, 1);
    CHECK(strstr(findings.first, "offset 0: map node at level 0") != NULL);
    CHECK(strstr(findings.first, "--repair may rebuild it") != NULL);
    check_mended(m, 1);
    check_named(m, "d", m->arg);
}

static async void body_mend_shared(struct machine *m)
{
    check_mended(m, 1);
    check_named(m, "d", m->arg);
    check_named(m, "d@s", m->arg);
    check_named(m, "copy", m->arg);
}

/* A node, and two of those below it. */
static async void body_all_rotten(struct machine *m)
{
    make_disk(m, 3 * LEAF_BYTES);
    struct map_root root = state_of(m, "d")->root;
    struct address top = node_of(m, &root, 1, 0).address;
    rot(m, node_of(m, &root, 0, 0).address);
    rot(m, node_of(m, &root, 0, 2 * LEAF_BLOCKS).address);
    rot(m, top);
}

static async void body_mend_all(struct machine *m)
{
    check_mended(m, 3);
    check_named(m, "d", m->arg);
}

/* A disk in use, whose checkpoints fail for it, with a snapshot whose map waits. */
static async void body_mend_in_use(struct machine *m)
{
    struct model *model = m->arg;
    struct disk *disk = attach(m, "d");
    put(m, disk, model, 5 * BLOCK_SIZE, 64 * KIB);
    struct model *then = model_copy(model);
    DO(snapshot_create(m->host, "d", "s", &err));
    discard(disk, model, 9 * BLOCK_SIZE, BLOCK_SIZE);
    checkpoint_fails(disk, "from offset 0 on");
    /* No more of them, that wait likewise. */
    DO_FAILS(snapshot_create(m->host, "d", "t", &err), -PLX_ECHECKSUM);
    DO_FAILS(disk_clone(m->host, "d", NULL, "copy", 1, &err), -PLX_ECHECKSUM);
    check_mended(m, 1);
    DO(snapshot_create(m->host, "d", "t", &err));
    DO(disk_checkpoint(disk, &err));
    check_content(disk, model);
    disk_close(disk);
    check_named(m, "d@s", then);
    check_named(m, "d@t", model);
    free(then);
}

/* What its log tells is rotten, too. */
static async void body_header_rotten(struct machine *m)
{
    make_disk(m, LEAF_BYTES);
    struct address leaf = state_of(m, "d")->root.address;
    rot(m, leaf);
    rot(m, address_plus(address_extent(leaf), 1)); /* the first batch */
}

static async void body_not_mended(struct machine *m)
{
    struct findings findings = {0};
    struct check_callbacks callbacks = {.finding = note_finding, .arg = &findings};
    struct check_report report;
    DO(host_check(m->host, CHECK_REPAIR, &callbacks, &report, &err));
    CHECK_EQ(report.rebuilt_nodes + report.lost_blocks, 0);
    CHECK(strstr(findings.first, "it cannot be rebuilt") != NULL);
    struct disk *disk = attach(m, "d");
    CHECK(is_unreadable(disk, 0) && is_unreadable(disk, LEAF_BYTES - BLOCK_SIZE));
    disk_close(disk);
}

static int64_t fail_at;
static bool has_failed;

/* An operation fails while it is made again. */
static async void body_mend_fails(struct machine *m)
{
    struct findings findings = {0};
    struct check_callbacks callbacks = {.finding = note_finding, .arg = &findings};
    struct check_report report = {0};
    struct error error = {0};
    sim_fail_nth_io(m->world, fail_at);
    int rc = host_check(m->host, CHECK_REPAIR, &callbacks, &report, &error);
    has_failed = sim_failure_happened(m->world);
    sim_fail_nth_io(m->world, -1);
    CHECK((rc < 0) == (error.text[0] != '\0'));
    CHECK(rc < 0 || findings.count > 0);
}

static async void body_mended_now(struct machine *m)
{
    CHECK(repair(m).rebuilt_nodes <= 1);
    check_clean(m);
    check_named(m, "d", m->arg);
}

static void test_failures(uint64_t seed)
{
    has_failed = true;
    for (fail_at = 0; has_failed; fail_at++) {
        struct machine *m = machine_create(seed);
        machine_run(m, body_two_leaves);
        machine_run(m, body_mend_fails);
        machine_run(m, body_mended_now);
        free(m->arg);
        machine_destroy(m);
    }
    CHECK(fail_at > 10);
}

/* Only digests are left of the headers of what is older than the snapshot. */
static async void body_compacted(struct machine *m)
{
    struct model *model = make_disk(m, LEAF_BYTES);
    struct address was = address_extent(state_of(m, "d")->root.address);
    struct disk *disk = attach(m, "d");
    put(m, disk, model, 64 * KIB, 768 * KIB);
    disk_close(disk);
    shut(m, "d");
    struct extent *e = extent_find(&m->host->store->extents, was);
    for (uint32_t i = 0; e->layout == NULL; i++) {
        CHECK(i < 100);
        task_sleep_ns(NS_PER_S);
    }
    DO(snapshot_create(m->host, "d", "s", &err));
    disk = attach(m, "d");
    put(m, disk, model, 32 * KIB, 96 * KIB);
    discard(disk, model, 900 * KIB, 8 * KIB);
    disk_close(disk);
    shut(m, "d");
    CHECK(extent_find(&m->host->store->extents, was) == e && e->layout != NULL);
    rot(m, state_of(m, "d")->root.address);
}

static async void body_mend_all_of_one(struct machine *m)
{
    check_mended(m, 1);
    check_named(m, "d", m->arg);
}

/* --- written while the checkpoint ran --- */

#define AFTER 100U
static uint32_t window; /* blocks written between the freeze and the node */

struct checkpoint_task {
    struct task_call call;
    struct disk *disk;
    struct event over;
};

static async void run_checkpoint(struct task_call *call)
{
    struct checkpoint_task *task = container_of(call, struct checkpoint_task, call);
    DO(disk_checkpoint(task->disk, &err));
    event_set(&task->over);
}

/* Each of these blocks anew, all at once. */
static async void put_at_once(struct machine *m, struct disk *disk, struct model *model,
                              uint32_t first, uint32_t count)
{
    struct op *ops = calloc(count, sizeof *ops);
    CHECK(ops != NULL);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t at = (uint64_t)(first + i) * BLOCK_SIZE;
        fill(m, model->bytes + at, BLOCK_SIZE);
        op_start(&ops[i], disk, DISK_WRITE, 0, at, BLOCK_SIZE, model->bytes + at);
    }
    for (uint32_t i = 0; i < count; i++)
        CHECK_EQ(op_wait(&ops[i], NULL), 0);
    free(ops);
}

/* The log has, before the leaf, what came too late for it, and behind it still more; then
 * the process is killed. The leaf rots after the next start: before that, what is behind
 * it would be taken for torn. */
static async void body_window(struct machine *m)
{
    struct model *model = make_disk(m, LEAF_BYTES);
    struct checkpoint_task task = {
        .call = {.main = run_checkpoint, .name = "checkpoint", .system = true},
        .disk = attach(m, "d"),
    };
    sim_world_faults(m->world)->latency_min_ns = 2 * NS_PER_MS;
    sim_world_faults(m->world)->latency_max_ns = 4 * NS_PER_MS;
    event_init(&task.over);
    put(m, task.disk, model, 7 * BLOCK_SIZE, 4 * BLOCK_SIZE);
    task_start(m->body.loop, &task.call);
    while (task.disk->frozen_count == 0)
        task_yield();
    put_at_once(m, task.disk, model, 3, window);
    event_wait(&task.over);
    put_at_once(m, task.disk, model, 50, AFTER);
    CHECK_EQ(flush(task.disk), 0);
    m->body.is_over = true;
    task_sleep_ns(1000 * NS_PER_S);
}

static async void body_window_mended(struct machine *m)
{
    rot(m, state_of(m, "d")->root.address);
    CHECK_EQ(repair(m).rebuilt_nodes, 1);
    check_named(m, "d", m->arg);
    check_clean(m);
}

/* There are more guesses than are made. */
static async void body_window_wide(struct machine *m)
{
    rot(m, state_of(m, "d")->root.address);
    struct disk *disk = attach(m, "d");
    CHECK_EQ(repair(m).rebuilt_nodes, 0);
    CHECK(is_unreadable(disk, 0) && is_unreadable(disk, LEAF_BYTES - BLOCK_SIZE));
    CHECK(!is_unreadable(disk, 3 * BLOCK_SIZE) && !is_unreadable(disk, 60 * BLOCK_SIZE));
    disk_close(disk);
}

/* What a killed process had allocated is not released: in a child of its own. */
static void test_window(uint32_t blocks, void (*then)(struct machine *m))
{
    int status = 0;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        window = blocks;
        run_two(1, body_window, then);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
}

/* --- at random --- */

#define MOMENTS 4U

struct history {
    struct model *now, *clone, *then[MOMENTS];
    uint32_t mended, not_mended;
};

static async void body_history(struct machine *m)
{
    struct history *history = m->arg;
    uint64_t size = (1 + chance(m, 4)) * LEAF_BYTES - chance(m, 8) * BLOCK_SIZE;
    history->now = model_create(size);
    DO(disk_create(m->host, "d", size, &err));
    for (uint32_t i = 0; i < MOMENTS; i++) {
        char name[8];
        snprintf(name, sizeof name, "s%u", i);
        random_named(m, "d", history->now, 1 + (uint32_t)chance(m, 12));
        if (chance(m, 2) == 0)
            shut(m, "d");
        DO(snapshot_create(m->host, "d", name, &err));
        history->then[i] = model_copy(history->now);
    }
    DO(disk_clone(m->host, "d", "s2", "copy", 1, &err));
    history->clone = model_copy(history->then[2]);
    random_named(m, "copy", history->clone, 4);
    random_named(m, "d", history->now, 1 + (uint32_t)chance(m, 12));
    shut(m, "d");
    shut(m, "copy");
    const struct cluster_disk *disk = state_of(m, chance(m, 2) == 0 ? "d" : "copy");
    struct map_root root = disk->root;
    const struct cluster_version *version = cluster_version_by_name(
        cluster_state(m->host->cluster), state_of(m, "d")->id, "s1");
    if (chance(m, 3) == 0)
        root = version->root;
    uint64_t leaf = chance(m, div_up_u64(size, LEAF_BYTES));
    unsigned level = chance(m, 4) == 0 ? root.height - 1U : 0;
    if (root.height == map_height(size / BLOCK_SIZE))
        rot(m, node_of(m, &root, level, leaf * LEAF_BLOCKS).address);
}

/* What can be read is right; returns how many blocks cannot. */
static async uint32_t check_readable(struct machine *m, const char *name,
                                     const struct model *model)
{
    struct disk *disk = attach(m, name);
    uint8_t bytes[BLOCK_SIZE];
    uint32_t bad = 0;
    for (uint64_t at = 0; at < model->size_bytes; at += sizeof bytes) {
        if (read_bytes_at(disk, at, sizeof bytes, bytes) < 0)
            bad++;
        else
            CHECK(memcmp(bytes, model->bytes + at, sizeof bytes) == 0);
    }
    disk_close(disk);
    return bad;
}

static async uint32_t check_history(struct machine *m)
{
    static const char *const names[MOMENTS] = {"d@s0", "d@s1", "d@s2", "d@s3"};
    const struct history *history = m->arg;
    uint32_t bad = check_readable(m, "d", history->now) +
                   check_readable(m, "copy", history->clone);
    for (uint32_t i = 0; i < MOMENTS; i++)
        bad += check_readable(m, names[i], history->then[i]);
    return bad;
}

static async void body_mend_history(struct machine *m)
{
    struct history *history = m->arg;
    bool is_rotten = check_history(m) > 0;
    uint64_t rebuilt = repair(m).rebuilt_nodes;
    bool is_bad = check_history(m) > 0;
    CHECK_EQ(is_bad, is_rotten && rebuilt == 0);
    history->mended += rebuilt > 0;
    history->not_mended += is_bad;
}

static void test_history(void)
{
    struct history history = {0};
    uint64_t seeds = seeds_of(20);
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        struct machine *m = machine_create(seed);
        m->arg = &history;
        machine_run(m, body_history);
        machine_run(m, body_mend_history);
        machine_destroy(m);
        free(history.now);
        free(history.clone);
        for (uint32_t i = 0; i < MOMENTS; i++)
            free(history.then[i]);
    }
    if (getenv("TEST_LOG") != NULL)
        fprintf(stderr, "%u mended, %u not\n", history.mended, history.not_mended);
    CHECK(history.mended >= history.not_mended);
}

int main(void)
{
    for (uint64_t seed = 1; seed <= seeds_of(3); seed++) {
        run_two(seed, body_two_leaves, body_replaced);
        run_two(seed, body_two_leaves, body_replaced_late);
        run_two(seed, body_two_leaves, body_snapshot_between);
        run_two(seed, body_shared, body_shared_replaced);
        run_two(seed, body_small, body_small_replaced);
        run_two(seed, body_top, body_top_replaced);
        run_two(seed, body_three_leaves, body_cut);
        run_two(seed, body_three_leaves, body_tried_again);
        run_two(seed, body_two_leaves, body_mend);
        run_two(seed, body_two_leaves, body_mend_in_use);
        run_two(seed, body_shared, body_mend_shared);
        run_two(seed, body_all_rotten, body_mend_all);
        run_two(seed, body_header_rotten, body_not_mended);
    }
    test_window(5, body_window_mended);
    test_window(150, body_window_wide);
    for (uint64_t seed = 1; seed <= seeds_of(8); seed++)
        test_failures(seed);
    test_history();
    struct machine *m = machine_create(1);
    m->options.no_idle_work = false;
    machine_run(m, body_compacted);
    machine_run(m, body_mend_all_of_one);
    free(m->arg);
    machine_destroy(m);
    return 0;
}
