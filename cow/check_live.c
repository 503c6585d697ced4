/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mark and sweep. Marked is all that any root reaches, then what is on its way out
 * (collapsing versions, removed heads, lists of dead blocks that were not trimmed yet)
 * and what the log needs (lists themselves, headers of extents that a take-over walks).
 * A block that a root reaches and that is dead is damage; one that is live and not marked
 * is lost: nothing will ever free it.
 *
 * Disks may be in use. Reclaim and the trimmers are held meanwhile, so what was reachable
 * when it began stays live; and only extents are judged that were final before every
 * disk had its checkpoint: nothing in them is only in an overlay. Heads are walked before
 * versions: what a head gives up in between belongs to a version that comes later, or to
 * a list.
 *
 * Only this node's copies are compared: where it is not whole, or no member, what it does
 * not have is right, and what it has too much. Other hosts hold nothing for us: if they
 * changed anything meanwhile, nothing is compared.
 *
 * If anything cannot be read, what it would have marked is not known, and nothing is
 * called lost. If guests change so much meanwhile that they would have to wait for it, it
 * is given up.
 */
#include "cow/check_internal.h"
#include "cow/trim.h"

#define NODES_A_LOOK 64U /* between looks at how many lists wait */

struct live {
    struct check *check;
    struct host *host;
    struct extent_info *extents; /* those final at the beginning are judged */
    size_t extent_count;
};

/* --- marking --- */

static async int on_data(void *arg, uint64_t block, struct map_entry entry,
                         struct map_entry other)
{
    struct live *live = arg;
    int rc = marks_add(&live->check->marks, entry.address);

    (void)block;
    (void)other;
    return rc < 0 ? rc : 0;
}

/* Nothing is trimmed while trees are marked, and a disk has room for so many lists; then
 * its checkpoints wait, and then its guests. */
static bool holds_up_guests(const struct host *host)
{
    struct disk *disk;

    RB_FOREACH (disk, disk_tree, (struct disk_tree *)&host->disks)
        if (disk->log && trimmer_lists_left(disk) >= LISTS_MAX / 2)
            return true;
    return false;
}

static int goes_on(struct check *check)
{
    if (check->nodes_looked_at++ % NODES_A_LOOK == 0 && holds_up_guests(check->host)) {
        check->held_up_guests = true;
        return -PLX_EBUSY;
    }
    return check_goes_on(check);
}

static async int on_enter(void *arg, unsigned level, uint64_t index,
                          struct map_entry entry)
{
    struct live *live = arg;
    int rc = goes_on(live->check);

    if (rc == 0)
        rc = marks_add(&live->check->marks, entry.address);
    (void)level;
    (void)index;
    return rc < 0 ? rc : rc == 0;
}

/* Reported when the data is read. */
static async int on_unreadable(void *arg, unsigned level, uint64_t index,
                               struct map_entry entry, bool of_against, int code)
{
    struct live *live = arg;

    (void)level;
    (void)index;
    (void)entry;
    (void)of_against;
    (void)code;
    live->check->is_incomplete = true;
    return 0;
}

static const struct tree_walk_ops ops = {
    .data = on_data, .enter = on_enter, .unreadable = on_unreadable,
};

static async int mark_tree(struct live *live, const struct map_root *root,
                           bool dead_is_done)
{
    struct tree_walk walk = {
        .loop = live->host->loop,
        .cache = live->host->nodes,
        .root = *root,
        .dead_is_done = dead_is_done,
    };

    if (!map_root_sound(root)) {
        live->check->is_incomplete = true;
        return 0;
    }
    return tree_walk(&walk, &ops, live);
}

/* Of disks that stay, or of those on their way out. */
static async int mark_heads(struct live *live, bool leaving)
{
    const struct cluster_state *state = cluster_state(live->host->cluster);
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < live->check->disk_count; i++) {
        const struct cluster_disk *disk =
            cluster_disk_by_id(state, live->check->disks[i]);
        bool is_leaving = disk && (disk->flags & DISK_REMOVED);
        if (disk && check_is_elsewhere(live->check, disk)) {
            live->check->is_incomplete = true;
            continue;
        }
        if (disk && disk->has_root && is_leaving == leaving) {
            struct map_root root = disk->root;
            rc = mark_tree(live, &root, leaving);
        }
    }
    return rc;
}

static async int mark_versions(struct live *live, bool leaving)
{
    const struct cluster_state *state = cluster_state(live->host->cluster);
    cleanup(free_ptr) uint64_t *ids = NULL;
    size_t count = 0;
    int rc = check_collect_versions(state, &ids, &count);

    for (size_t i = 0; rc == 0 && i < count; i++) {
        const struct cluster_version *version = cluster_version_by_id(state, ids[i]);
        if (version && !version->pending && version->collapsing == leaving) {
            struct map_root root = version->root;
            rc = mark_tree(live, &root, leaving);
        }
    }
    return rc;
}

/* --- sweeping --- */

/* Final when it began, and of a disk; others are deleted at the next start. */
static bool is_judged(const struct live *live, const struct extent_info *info)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(live->host->cluster), info->disk);

    return info->state == EXTENT_FINAL && disk;
}

/* A copy that may lack something may lack trims, too. */
static bool is_whole_here(const struct live *live, struct address extent)
{
    const struct host *host = live->host;
    const struct cluster_group *group =
        cluster_group_by_id(cluster_state(host->cluster), address_group(extent));
    const struct group_member *member =
        group ? cluster_group_member(group, host->node) : NULL;

    return copies_are_alone(host->copies) || (member && member->missing_since == 0);
}

/* Other hosts took something away since it began: what is marked may be dead by now. */
static bool others_changed(const struct live *live)
{
    return check_others(live->check) != live->check->others;
}

/* A whole member has every extent that anything is needed of. */
static void find_absent(struct live *live)
{
    const struct marks *marks = &live->check->marks;
    struct extent_info info;

    if (copies_are_alone(live->host->copies))
        return; /* who reads it says so */
    for (uint32_t i = 0; i < marks->cap; i++) {
        const struct mark_map *map = marks->slots[i];
        if (!map || !is_whole_here(live, map->extent) ||
            store_extent_info(live->host->store, map->extent, &info) == 0)
            continue;
        check_finding(live->check,
                      "extent %llx: %u blocks of it are needed, and this node has no "
                      "copy, though it should", (unsigned long long)map->extent.v,
                      bitmap_rank(map->bits, EXTENT_BLOCKS));
    }
}

static const char *disk_of(const struct live *live, const struct extent_info *info)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(live->host->cluster), info->disk);

    return disk ? disk->name : "?";
}

static void find_dead(struct live *live, const struct extent_info *info,
                      const uint8_t *map)
{
    const uint8_t *marks = marks_of(&live->check->marks, info->extent);
    uint32_t count = 0, first = 0;

    for (uint32_t block = info->length; marks && block-- > 0;) {
        if (!bitmap_get(marks, block) || bitmap_get(map, block))
            continue;
        first = block;
        count++;
    }
    if (count == 0)
        return;
    live->check->report.dead_reachable += count;
    check_finding(live->check,
                  "extent %llx of disk %s: %u block%s that disks or snapshots need %s "
                  "dead, the first is %u",
                  (unsigned long long)info->extent.v, disk_of(live, info), count,
                  count == 1 ? "" : "s", count == 1 ? "is" : "are", first);
}

/* On all copies: what nothing needs here nothing needs elsewhere. */
static async int free_lost(struct live *live, struct address extent,
                           const uint32_t *blocks, uint32_t count)
{
    struct trim_set set;
    int rc = 0;

    trim_set_init(&set);
    for (uint32_t i = 0; rc == 0 && i < count; i++)
        rc = trim_add(&set, address_plus(extent, blocks[i]), 1, 0);
    if (rc == 0)
        rc = trim_apply(&set, live->host->copies);
    trim_set_done(&set);
    return rc;
}

static async int find_lost(struct live *live, const struct extent_info *info,
                           const uint8_t *map)
{
    const uint8_t *marks = marks_of(&live->check->marks, info->extent);
    cleanup(free_ptr) uint32_t *blocks = malloc(EXTENT_BLOCKS * sizeof *blocks);
    uint32_t count = 0;
    int rc = 0;

    if (!blocks)
        return -ENOMEM;
    for (uint32_t block = 0; block < info->length; block++)
        if (bitmap_get(map, block) && !(marks && bitmap_get(marks, block)))
            blocks[count++] = block;
    if (count == 0)
        return 0;
    live->check->report.lost_blocks += count;
    check_finding(live->check,
                  "extent %llx of disk %s: %u block%s %s live, but nothing needs %s, the "
                  "first is %u",
                  (unsigned long long)info->extent.v, disk_of(live, info), count,
                  count == 1 ? "" : "s", count == 1 ? "is" : "are",
                  count == 1 ? "it" : "them", blocks[0]);
    if (live->check->flags & CHECK_REPAIR)
        rc = free_lost(live, info->extent, blocks, count);
    if (rc == 0 && (live->check->flags & CHECK_REPAIR))
        live->check->report.repaired_blocks += count;
    return rc;
}

static async int sweep(struct live *live, bool for_lost)
{
    cleanup(free_ptr) uint8_t *map = malloc(BITMAP_BYTES);
    int rc = map ? 0 : -ENOMEM;

    for (size_t i = 0; rc == 0 && i < live->extent_count; i++) {
        const struct extent_info *info = &live->extents[i];
        if (!is_judged(live, info) ||
            store_live_map(live->host->store, info->extent, map) < 0)
            continue;
        if (for_lost && !is_whole_here(live, info->extent))
            continue;
        if (for_lost)
            rc = find_lost(live, info, map);
        else
            find_dead(live, info, map);
        task_yield();
    }
    return rc;
}

/* --- all of it --- */

static async int mark_and_sweep(struct live *live)
{
    int rc = mark_heads(live, false);

    if (rc == 0)
        rc = mark_versions(live, false);
    if (rc == 0 && !others_changed(live)) {
        rc = sweep(live, false);
        find_absent(live);
    }
    if (rc == 0)
        rc = mark_heads(live, true);
    if (rc == 0)
        rc = mark_versions(live, true);
    if (rc == 0)
        rc = check_mark_logs(live->check, live->extents, live->extent_count);
    if (rc == 0 && !live->check->is_incomplete && !others_changed(live))
        rc = sweep(live, true);
    return rc;
}

async int check_liveness(struct check *check)
{
    struct live live = {.check = check, .host = check->host};
    struct pin trims;
    int rc = store_list_extents(check->host->store, 0, &live.extents,
                                &live.extent_count);

    /* Checkpoints before anything is held: they may wait until lists are trimmed. */
    if (rc == 0)
        rc = check_settle(check);
    if (rc < 0) {
        free(live.extents);
        return rc;
    }
    reclaim_hold(check->host);
    pin_take(&check->host->pins, &trims, PIN_HEAD, PIN_ALL);
    /* A clone that came meanwhile may by now be the only one with what it grew from. */
    rc = check_collect_disks(check);
    check->others = check_others(check);
    if (rc == 0)
        rc = mark_and_sweep(&live);
    pin_release(&check->host->pins, &trims);
    reclaim_release(check->host);
    free(live.extents);
    return check->held_up_guests ? 0 : rc;
}
