/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What changed between two moments of a disk: their maps walked together, so the cost is
 * that of the difference. A block that was written again with the same bytes has changed,
 * for it has a new address.
 *
 * A map that is being walked is held: no version that has it is collapsed, and of a head
 * no list of dead blocks is trimmed.
 *
 * A node that cannot be read fails the call.
 */
#include "cow/reclaim.h"
#include "cow/tree_walk.h"

/* --- holding a map --- */

static async int take_version(struct host *host, struct held_root *held,
                              struct error *err)
{
    const struct cluster_version *version;
    int rc = version_settle(host, held->version, err);

    version = cluster_version_by_id(cluster_state(host->cluster), held->version);
    if (rc == 0 && (!version || version->pending))
        rc = err_set(err, -PLX_EMISSING, "the snapshot is gone");
    if (rc < 0)
        return rc;
    held->root = version->root;
    held->size_bytes = version->size_bytes;
    return 0;
}

/* What was written since the last checkpoint is only in the log: it is put in the map. */
static async int settle_head(struct host *host, uint64_t id, struct error *err)
{
    const struct cluster_disk *state =
        cluster_disk_by_id(cluster_state(host->cluster), id);
    struct disk *disk;
    int rc;

    if (!disk_find(host, id, 0) && state && cluster_disk_is_settled(state))
        return 0;
    rc = disk_acquire(host, id, 0, &disk, err);
    if (rc < 0)
        return rc;
    if (layers_bytes(disk) > 0)
        rc = disk_checkpoint(disk, err);
    disk_release(disk);
    return rc;
}

/* The checkpoint comes before the pin: it may have to wait until lists are trimmed. */
static async int take_head(struct host *host, struct held_root *held, struct error *err)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    uint64_t settle = held->disk;

    for (;;) {
        int rc = settle_head(host, settle, err);
        const struct cluster_disk *disk = cluster_disk_by_id(state, held->disk);
        if (rc < 0)
            return rc;
        if (!disk)
            return err_set(err, -PLX_EMISSING, "the disk is gone");
        if (disk_base_root(state, disk, &held->root, &settle) == -EAGAIN)
            continue;
        reclaim_pin_head(host, &held->pin, held->disk);
        held->size_bytes = disk->size_bytes;
        return 0;
    }
}

async int held_root_take(struct host *host, const char *disk_name, const char *snapshot,
                         struct held_root *ret_root, struct error *err)
{
    const struct cluster_disk *disk = host_find_disk(host, disk_name, err);
    const struct cluster_version *version;
    struct held_root *held = ret_root;
    int rc;

    if (!disk)
        return -PLX_EMISSING;
    *held = (struct held_root){.disk = disk->id};
    if (snapshot) {
        version = host_find_version(host, disk_name, snapshot, err);
        if (!version)
            return -PLX_EMISSING;
        held->version = version->id;
        pin_take(&host->pins, &held->pin, PIN_VERSION, version->id);
        rc = take_version(host, held, err);
        if (rc < 0)
            held_root_release(host, held);
    } else {
        rc = take_head(host, held, err);
    }
    return rc < 0 ? err_add(err, rc, "disk %s", disk_name) : 0;
}

void held_root_release(struct host *host, struct held_root *held)
{
    pin_release(&host->pins, &held->pin);
    reclaim_wake(host);
}

/* --- between two snapshots --- */

struct snapshot_diff {
    diff_fn *fn;
    void *arg;
    uint64_t size_bytes; /* of what it is now */
};

static int on_diff(void *arg, uint64_t block, uint64_t count, bool is_zero)
{
    struct snapshot_diff *diff = arg;
    uint64_t offset = block * BLOCK_SIZE;
    uint64_t end = min_u64(offset + count * BLOCK_SIZE, diff->size_bytes);

    return diff->fn(diff->arg, offset, end - offset, is_zero);
}

async int snapshot_diff(struct host *host, const char *disk, const char *from,
                        const char *to, diff_fn *fn, void *arg, struct error *err)
{
    struct held_root before, now;
    int rc = held_root_take(host, disk, from, &before, err);

    if (rc < 0)
        return rc;
    rc = held_root_take(host, disk, to, &now, err);
    if (rc == 0) {
        struct snapshot_diff diff = {fn, arg, now.size_bytes};
        struct tree_walk walk = {
            .loop = host->loop,
            .cache = host->nodes,
            .root = before.root,
            .against = now.root,
            .end = div_up_u64(now.size_bytes, BLOCK_SIZE),
        };
        rc = tree_diff(&walk, on_diff, &diff);
        if (rc < 0)
            err_set(err, rc, "disk %s: %s", disk, err_text(rc));
        held_root_release(host, &now);
    }
    held_root_release(host, &before);
    return rc;
}

/* --- for front ends --- */

int disk_find_snapshot(struct disk *disk, const char *snapshot, uint64_t *ret_version,
                       struct error *err)
{
    const struct cluster_state *state = cluster_state(disk->host->cluster);
    const struct cluster_disk *head = cluster_disk_by_id(state, disk->id);
    const struct cluster_version *version =
        snapshot[0] ? cluster_version_by_name(state, disk->id, snapshot) : NULL;

    if (!version)
        return err_set(err, -PLX_EMISSING, "disk %s: no snapshot %s",
                       head ? head->name : "?", snapshot);
    *ret_version = version->id;
    return 0;
}

struct changes {
    struct disk_change_range *ranges;
    uint32_t max, count;
    uint64_t at; /* blocks: so far is known */
};

/* Up to `end` it is so. 1: no room. */
static int add(struct changes *changes, uint64_t end, bool changed)
{
    struct disk_change_range *last =
        changes->count ? &changes->ranges[changes->count - 1] : NULL;
    uint64_t bytes = (end - changes->at) * BLOCK_SIZE;

    if (bytes == 0)
        return 0;
    if (last && last->changed == changed) {
        last->len_bytes += bytes;
    } else {
        if (changes->count == changes->max)
            return 1;
        changes->ranges[changes->count++] = (struct disk_change_range){bytes, changed};
    }
    changes->at = end;
    return 0;
}

static int on_change(void *arg, uint64_t block, uint64_t count, bool is_zero)
{
    struct changes *changes = arg;
    int rc = add(changes, block, false);

    (void)is_zero;
    return rc == 0 ? add(changes, block + count, true) : rc;
}

/* What the layers say of [first, end), kept before anything suspends. */
struct stretch {
    uint64_t count;
    bool in_layers, zeros;
};
#define STRETCHES_MAX 512U

static uint32_t ask_layers(const struct disk *disk, uint64_t first, uint64_t end,
                           struct stretch *stretches)
{
    uint32_t count = 0;

    while (first < end && count < STRETCHES_MAX) {
        struct layer_run run = layers_find(disk, first, end);
        stretches[count++] =
            (struct stretch){run.count, run.in_layers, address_is_null(run.address)};
        first += run.count;
    }
    return count;
}

/* One stretch: what was written since differs for sure, zeros from what was not. */
static async int compare(struct disk *disk, const struct map_root *base,
                         const struct map_root *root, const struct stretch *at,
                         struct changes *changes)
{
    uint64_t end = changes->at + at->count;
    struct tree_walk walk = {
        .loop = disk->loop,
        .cache = disk->host->nodes,
        .root = *base,
        .first = changes->at,
        .end = end,
    };

    if (at->in_layers && !at->zeros)
        return add(changes, end, true);
    if (!at->in_layers)
        walk.against = *root;
    int rc = tree_diff(&walk, on_change, changes);
    return rc == 0 ? add(changes, end, false) : rc;
}

static async int collect(struct disk *disk, uint64_t version, uint64_t end,
                         struct changes *changes)
{
    cleanup(free_ptr) struct stretch *stretches =
        malloc(STRETCHES_MAX * sizeof *stretches);
    struct error ignored = {0};
    int rc = version_settle(disk->host, version, &ignored);

    if (rc < 0)
        return rc;
    /* From here to the copies nothing suspends (D3). */
    const struct cluster_version *base =
        cluster_version_by_id(cluster_state(disk->host->cluster), version);
    if (!base || base->pending || base->collapsing)
        return -PLX_EMISSING;
    if (disk->down)
        return disk->down;
    if (disk_is_elsewhere(disk)) /* its map is elsewhere, if only for a moment */
        return -PLX_EOWNED;
    if (!stretches)
        return -ENOMEM;
    struct map_root base_root = base->root, root = disk->root;
    uint32_t count = ask_layers(disk, changes->at, end, stretches);
    for (uint32_t i = 0; i < count && rc == 0; i++)
        rc = compare(disk, &base_root, &root, &stretches[i], changes);
    return rc < 0 ? rc : 0;
}

/* The first and the last range may begin or end inside a block. */
static void cut_ends(struct changes *changes, uint64_t offset_bytes, uint64_t len_bytes)
{
    changes->ranges[0].len_bytes -= offset_bytes % BLOCK_SIZE;
    for (uint32_t i = 0; i < changes->count; i++) {
        changes->ranges[i].len_bytes = min_u64(changes->ranges[i].len_bytes, len_bytes);
        len_bytes -= changes->ranges[i].len_bytes;
    }
}

/* Of a disk that another host owns: any of it may be. */
static void all_changed(uint64_t len_bytes, struct disk_change_range *ret_ranges,
                        uint32_t *ret_count)
{
    ret_ranges[0] = (struct disk_change_range){.len_bytes = len_bytes, .changed = true};
    *ret_count = 1;
}

async int disk_changed_since(struct disk *disk, uint64_t version, uint64_t offset_bytes,
                             uint64_t len_bytes, struct disk_change_range *ret_ranges,
                             uint32_t max, uint32_t *ret_count)
{
    struct changes changes = {ret_ranges, max, 0, offset_bytes / BLOCK_SIZE};
    struct pins *pins = &disk->host->pins;
    struct pin base, self;
    uint64_t end_bytes;

    if (max == 0 || len_bytes == 0 || !add_u64(offset_bytes, len_bytes, &end_bytes) ||
        end_bytes > disk->size_bytes)
        return -EINVAL;
    uint32_t stance = disk->stance;
    if (disk_is_elsewhere(disk)) {
        all_changed(len_bytes, ret_ranges, ret_count);
        return 0;
    }
    /* An open snapshot is not collapsed as it is. */
    pin_take(pins, &base, PIN_VERSION, version);
    reclaim_pin_head(disk->host, &self, disk->id);
    int rc = collect(disk, version, div_up_u64(end_bytes, BLOCK_SIZE), &changes);
    pin_release(pins, &base);
    pin_release(pins, &self);
    bool has_moved = rc == -PLX_EOWNED || disk_is_elsewhere(disk) ||
                     disk->stance != stance;
    if (has_moved) {
        all_changed(len_bytes, ret_ranges, ret_count);
        return 0;
    }
    if (rc < 0)
        return rc;
    cut_ends(&changes, offset_bytes, len_bytes);
    *ret_count = changes.count;
    return 0;
}
