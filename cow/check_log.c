/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What logs hold beside data and maps: lists of dead blocks that a checkpoint names, with
 * all that is on them and not trimmed yet, and the headers of extents that a take-over
 * may walk, which the store keeps as long as that is so.
 *
 * A list or header that cannot be read leaves open what it would have told: nothing is
 * called lost then.
 */
#include "cow/check_internal.h"

static int mark_run(struct check *check, struct address address, uint32_t count)
{
    int rc = 0;

    for (uint32_t i = 0; i < count && rc >= 0; i++)
        rc = marks_add(&check->marks, address_plus(address, i));
    return rc < 0 ? rc : 0;
}

/* --- lists --- */

static async int on_data(void *arg, uint64_t block, struct map_entry entry,
                         struct map_entry other)
{
    (void)block;
    (void)other;
    return mark_run(arg, entry.address, 1);
}

static async int on_node(void *arg, unsigned level, uint64_t index,
                         struct map_entry entry)
{
    (void)level;
    (void)index;
    return mark_run(arg, entry.address, 1);
}

static async int on_unreadable(void *arg, unsigned level, uint64_t index,
                               struct map_entry entry, bool of_against, int code)
{
    struct check *check = arg;

    (void)of_against;
    check->is_incomplete = true;
    check_finding(check, "%s: dead map node at level %u, index %llu, extent %llx: %s",
                  check->name, level, (unsigned long long)index,
                  (unsigned long long)address_extent(entry.address).v, err_text(code));
    return 0;
}

static async int mark_entries(struct check *check, const struct dead_entries *entries)
{
    static const struct tree_walk_ops ops = {
        .data = on_data, .node_done = on_node, .unreadable = on_unreadable,
    };
    int rc = 0;

    for (uint32_t i = 0; i < entries->run_count && rc == 0; i++)
        rc = mark_run(check, entries->runs[i].address, entries->runs[i].count);
    for (uint32_t i = 0; i < entries->subtree_count && rc == 0; i++) {
        const struct dead_subtree *subtree = &entries->subtrees[i];
        struct tree_walk walk = {
            .loop = check->host->loop,
            .cache = check->host->nodes,
            .bound = subtree->bound,
            .dead_is_done = true,
        };
        rc = tree_walk_subtree(&walk, subtree->entry, subtree->level, 0, &ops, check);
    }
    return rc;
}

static async int mark_list(struct check *check, const struct dead_list *list)
{
    struct address at = list->head;
    uint32_t crc = list->crc;
    int rc = 0;

    for (uint32_t i = 0; i < list->blocks && !address_is_null(at) && rc == 0; i++) {
        struct dead_block block;
        rc = dead_block_read(check->host, at, crc, &block);
        if (rc == -PLX_EDEAD || rc == -PLX_ENOTHERE || rc == -PLX_EMISSING)
            return 0; /* the rest was trimmed */
        if (rc < 0)
            break;
        rc = mark_entries(check, &block.entries);
        dead_entries_done(&block.entries);
        if (rc == 0)
            rc = mark_run(check, at, 1);
        at = block.previous;
        crc = block.previous_crc;
    }
    if (rc == 0 || rc == -ENOMEM)
        return rc;
    check->is_incomplete = true;
    check_finding(check, "%s: dead list of checkpoint %llu: %s", check->name,
                  (unsigned long long)list->checkpoint, err_text(rc));
    return 0;
}

/* The disk's next list after that of a checkpoint. Lists that were trimmed are forgotten
 * meanwhile; what is carried on from them is in a later one. */
static bool list_after(struct check *check, uint64_t id, uint64_t checkpoint,
                       struct dead_list *ret_list)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(check->host->cluster), id);

    for (uint32_t i = 0; disk && i < disk->list_count; i++) {
        if (disk->lists[i].checkpoint <= checkpoint)
            continue;
        snprintf(check->name, sizeof check->name, "disk %s", disk->name);
        *ret_list = disk->lists[i];
        return true;
    }
    return false;
}

static async int mark_lists(struct check *check, uint64_t id)
{
    struct dead_list list = {.checkpoint = 0};
    int rc = 0;

    while (rc == 0 && list_after(check, id, list.checkpoint, &list))
        rc = mark_list(check, &list);
    return rc;
}

/* --- headers --- */

static int on_header(void *arg, const struct header *head, const struct entry *entries,
                     const struct roll_entry *rolls)
{
    (void)entries;
    (void)rolls;
    return mark_run(arg, address_plus(head->extent, head->block), 1);
}

async int check_mark_logs(struct check *check, const struct extent_info *extents,
                          size_t extent_count)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < check->disk_count; i++)
        rc = mark_lists(check, check->disks[i]);
    for (size_t i = 0; rc == 0 && i < extent_count; i++) {
        struct extent_info now;
        if (extents[i].state != EXTENT_FINAL ||
            store_extent_info(check->host->store, extents[i].extent, &now) < 0 ||
            !now.has_headers)
            continue;
        rc = store_walk_headers(check->host->store, extents[i].extent, on_header, check,
                                NULL);
        if (rc == -ENOMEM)
            break;
        if (rc < 0 && rc != -PLX_EMISSING) {
            check->is_incomplete = true;
            check_finding(check, "extent %llx: headers: %s",
                          (unsigned long long)extents[i].extent.v, err_text(rc));
        }
        rc = 0;
    }
    return rc;
}
