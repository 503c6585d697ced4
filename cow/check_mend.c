/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Before it looks at anything else, a check that repairs goes over all maps and has those
 * nodes made again that cannot be read (rebuild.c), and written where they were: then
 * all that has the node has it again, the head, snapshots and clones, and nothing in the
 * cluster's state changes. Below a node that was made again there may be others: so once
 * more.
 *
 * A map is held while it is walked, a stretch of a head at a time, but not while its
 * nodes are made again: that takes a walk over the headers of its log for each. If a node
 * is superseded meanwhile, it is dead, and not written any more.
 *
 * What can fail: a node that cannot be made again stays as it is, and is reported with
 * the data. A disk whose checkpoint failed because of a node makes it afterwards.
 */
#include "cow/check_internal.h"
#include "cow/rebuild.h"

#define BAD_MAX 4096U /* of a walk; the others are found when some were mended */

struct bad_node {
    unsigned level;
    uint64_t index;
    struct map_entry entry;
    int code;
};

struct mend {
    struct check *check;
    uint64_t disk, version; /* what is walked: struct rebuild */
    struct bad_node *bad;   /* found in it */
    uint32_t bad_count;
    struct marks tried;     /* nodes, whatever came of it */
    uint64_t mended;        /* in this round */
};

static bool is_cancelled(void *arg)
{
    return check_goes_on(arg) < 0;
}

/* --- finding them --- */

/* As when data is read: what was seen is passed over, if it lies in one stretch. */
static async int on_enter(void *arg, unsigned level, uint64_t index,
                          struct map_entry entry)
{
    struct mend *mend = arg;
    int rc = check_goes_on(mend->check);

    (void)index;
    if (rc == 0)
        rc = marks_add(&mend->check->marks, entry.address);
    return rc < 0 ? rc : rc == 0 && map_entry_blocks(level + 1) <= CHECK_STRETCH_BLOCKS;
}

static async int on_node(void *arg, unsigned level, uint64_t index,
                         struct map_entry entry)
{
    (void)arg, (void)level, (void)index, (void)entry;
    return 0;
}

/* What is dead or gone is not rot: it was superseded meanwhile, or is damage of another
 * kind. */
static async int on_unreadable(void *arg, unsigned level, uint64_t index,
                               struct map_entry entry, bool of_against, int code)
{
    struct mend *mend = arg;
    int rc;

    (void)of_against;
    if ((code != -PLX_ECHECKSUM && code != -EIO) || mend->bad_count == BAD_MAX)
        return 0;
    rc = marks_add(&mend->tried, entry.address);
    if (rc > 0)
        mend->bad[mend->bad_count++] = (struct bad_node){level, index, entry, code};
    return rc < 0 ? rc : 0;
}

static async int find_bad(struct mend *mend, const struct map_root *root, uint64_t first,
                          uint64_t end)
{
    static const struct tree_walk_ops ops = {
        .enter = on_enter, .node_done = on_node, .unreadable = on_unreadable,
    };
    struct tree_walk walk = {
        .loop = mend->check->host->loop,
        .cache = mend->check->host->nodes,
        .root = *root,
        .first = first,
        .end = end,
    };

    mend->bad_count = 0;
    return map_root_sound(root) ? tree_walk(&walk, &ops, mend) : 0;
}

/* --- mending them --- */

/* Makes the node again; 0 if it can be read then. *ret_failed: what else failed when it
 * had been made, NULL: nothing was written. A write that failed may have come through all
 * the same, so that nobody finds the node again: it has to be told. */
static async int mend_node(struct mend *mend, const struct bad_node *bad,
                           const char **ret_failed)
{
    struct host *host = mend->check->host;
    const struct rebuild rebuild = {
        .host = host, .level = bad->level, .index = bad->index, .entry = bad->entry,
        .disk = mend->disk, .version = mend->version,
        .cancelled = is_cancelled, .arg = mend->check,
    };
    struct map_node_format *made = aligned_alloc(BLOCK_SIZE, sizeof *made);
    const struct node *node;
    int rc = made ? node_rebuild(&rebuild, made) : -ENOMEM;

    *ret_failed = NULL;
    if (rc == 0) {
        rc = store_mend_block(host->store, bad->entry.address, made, bad->entry.crc);
        *ret_failed = rc < 0 ? ", but writing it: " : ", but read back: ";
    }
    if (rc == 0)
        rc = node_get(host->nodes, bad->entry.address, bad->entry.crc, &node);
    if (rc == 0)
        node_put(host->nodes, node);
    free(made);
    return rc;
}

static async int mend_bad(struct mend *mend)
{
    struct check *check = mend->check;
    int rc = 0;

    for (uint32_t i = 0; i < mend->bad_count && rc == 0; i++) {
        const struct bad_node *bad = &mend->bad[i];
        uint64_t start = bad->index * map_entry_blocks(bad->level + 1);
        const char *failed;
        rc = mend_node(mend, bad, &failed);
        if (rc == 0) {
            mend->mended++;
            check->report.rebuilt_nodes++;
        }
        if (failed)
            check_finding(check,
                          "%s: offset %llu: map node at level %u, extent %llx block %u: "
                          "%s; rebuilt from what its log tells%s%s",
                          check->name, (unsigned long long)(start * BLOCK_SIZE),
                          bad->level,
                          (unsigned long long)address_extent(bad->entry.address).v,
                          address_block(bad->entry.address), err_text(bad->code),
                          rc < 0 ? failed : "", rc < 0 ? err_text(rc) : "");
        if (rc != -PLX_ECANCELLED && rc != -ENOMEM && rc != -PLX_EFAILED)
            rc = 0;
    }
    return rc;
}

/* --- all of them --- */

static async int mend_head(struct mend *mend, uint64_t id)
{
    struct check *check = mend->check;
    const struct cluster_state *state = cluster_state(check->host->cluster);
    uint64_t end = 1;
    int rc = 0;

    for (uint64_t first = 0; first < end && rc == 0; first += CHECK_STRETCH_BLOCKS) {
        const struct cluster_disk *disk = cluster_disk_by_id(state, id);
        struct map_root root;
        uint64_t pending;
        struct pin pin;
        if (!disk || (disk->flags & DISK_REMOVED) ||
            disk_base_root(state, disk, &root, &pending) < 0)
            break;
        snprintf(check->name, sizeof check->name, "disk %s", disk->name);
        mend->disk = id;
        mend->version = disk->head_parent;
        end = disk->size_bytes / BLOCK_SIZE;
        reclaim_pin_head(check->host, &pin, id);
        rc = find_bad(mend, &root, first, first + CHECK_STRETCH_BLOCKS);
        pin_release(&check->host->pins, &pin);
        if (rc == 0)
            rc = mend_bad(mend);
    }
    return rc;
}

static async int mend_version(struct mend *mend, uint64_t id)
{
    struct check *check = mend->check;
    const struct cluster_state *state = cluster_state(check->host->cluster);
    const struct cluster_version *version = cluster_version_by_id(state, id);
    struct map_root root;
    struct pin pin;

    if (!version || version->pending || version->collapsing)
        return 0;
    const struct cluster_disk *disk = cluster_disk_by_id(state, version->disk);
    snprintf(check->name, sizeof check->name, "disk %s@%s", disk ? disk->name : "?",
             version->name[0] ? version->name : "(unnamed)");
    root = version->root;
    mend->disk = 0;
    mend->version = id;
    pin_take(&check->host->pins, &pin, PIN_VERSION, id);
    int rc = find_bad(mend, &root, 0, 0);
    pin_release(&check->host->pins, &pin);
    return rc == 0 ? mend_bad(mend) : rc;
}

static async int mend_all(struct mend *mend)
{
    struct check *check = mend->check;
    cleanup(free_ptr) uint64_t *ids = NULL;
    size_t count = 0;
    int rc = check_collect_disks(check);

    for (size_t i = 0; rc == 0 && i < check->disk_count; i++)
        rc = mend_head(mend, check->disks[i]);
    if (rc == 0)
        rc = check_collect_versions(cluster_state(check->host->cluster), &ids, &count);
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = mend_version(mend, ids[i]);
    marks_done(&check->marks);
    return rc;
}

async int check_mend(struct check *check)
{
    struct mend mend = {.check = check, .bad = malloc(BAD_MAX * sizeof *mend.bad)};
    int rc = mend.bad ? 0 : -ENOMEM;

    while (rc == 0) {
        mend.mended = 0;
        rc = mend_all(&mend);
        if (mend.mended == 0)
            break;
    }
    marks_done(&mend.tried);
    free(mend.bad);
    return rc;
}
