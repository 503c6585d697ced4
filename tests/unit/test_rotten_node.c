/* SPDX-License-Identifier: Apache-2.0 */
/* A map node rots between two processes. What it is for is refused, never answered with
 * anything else; all else goes on, and there is a way to be rid of it. */
#include "tests/unit/rot.h"

#define LEAF_BYTES  (MAP_FANOUT * BLOCK_SIZE)
#define LEAF_BLOCKS MAP_FANOUT

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
    put(m, disk, model, LEAF_BYTES / 2, LEAF_BYTES / 4);
    put(m, disk, model, LEAF_BYTES + BLOCK_SIZE, BLOCK_SIZE);
    checkpoint_fails(disk, "for the 1048576 bytes from offset 0 on");
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

/* --- */

static void run_two(uint64_t seed, void (*first)(struct machine *m),
                    void (*second)(struct machine *m))
{
    struct machine *m = machine_create(seed);
    machine_run(m, first);
    machine_run(m, second);
    free(m->arg);
    machine_destroy(m);
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
    }
    return 0;
}
