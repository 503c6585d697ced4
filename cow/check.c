/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The check reads everything that any disk or snapshot can reach and verifies it: the
 * cluster state's own rules, whether the store keeps what is reachable and nothing else
 * (check_live.c), every map node, every block of data. First all logs are put into maps:
 * disks that an earlier process left open are opened for it, open ones checkpointed.
 *
 * What versions share is read once. A head is read a stretch at a time, each with the
 * root it has then, so that its dead blocks need not be kept for the whole check. Damage
 * is reported, by disk, snapshot and offset, and the check goes on.
 *
 * Other hosts go on meanwhile. The heads of disks that they own are theirs to check; what
 * they take away is not damage; and nothing is called lost while anybody else owns a
 * disk, or has changed anything.
 *
 * Memory: a bitmap of 2 KiB for each extent, 32 MiB for 1 TiB of log.
 */
#include "cow/check_internal.h"

#include <stdarg.h>

#define CHECK_READ_BLOCKS 64U

void check_finding(struct check *check, const char *fmt, ...)
{
    char line[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    check->report.findings++;
    check->callbacks->finding(check->callbacks->arg, line);
}

/* --- sets of blocks --- */

static struct mark_map **slot_of(const struct marks *marks, struct address extent)
{
    uint64_t at = (extent.v * 0x9e3779b97f4a7c15U) >> 32;

    for (;; at++) {
        struct mark_map **slot = &marks->slots[at & (marks->cap - 1)];
        if (!*slot || address_equal((*slot)->extent, extent))
            return slot;
    }
}

static int grow(struct marks *marks)
{
    uint32_t cap = marks->cap ? marks->cap * 2 : 64;
    struct marks bigger = {.count = marks->count, .cap = cap};

    bigger.slots = calloc(bigger.cap, sizeof(struct mark_map *));
    if (!bigger.slots)
        return -ENOMEM;
    for (uint32_t i = 0; i < marks->cap; i++)
        if (marks->slots[i])
            *slot_of(&bigger, marks->slots[i]->extent) = marks->slots[i];
    free(marks->slots);
    *marks = bigger;
    return 0;
}

int marks_add(struct marks *marks, struct address address)
{
    uint32_t block = address_block(address);

    if (marks->count * 2 >= marks->cap && grow(marks) < 0)
        return -ENOMEM;
    struct mark_map **slot = slot_of(marks, address_extent(address));
    if (!*slot) {
        *slot = calloc(1, sizeof **slot);
        if (!*slot)
            return -ENOMEM;
        (*slot)->extent = address_extent(address);
        marks->count++;
    }
    if (bitmap_get((*slot)->bits, block))
        return 0;
    (*slot)->bits[block / 8] |= (uint8_t)(1U << block % 8);
    return 1;
}

const uint8_t *marks_of(const struct marks *marks, struct address extent)
{
    const struct mark_map *map = marks->cap ? *slot_of(marks, extent) : NULL;

    return map ? map->bits : NULL;
}

void marks_done(struct marks *marks)
{
    for (uint32_t i = 0; i < marks->cap; i++)
        free(marks->slots[i]);
    free(marks->slots);
    *marks = (struct marks){0};
}

/* --- reading data --- */

/* Dead, or not there: so is what was taken away since it was looked up. */
static bool is_gone(int code)
{
    return code == -PLX_EDEAD || code == -PLX_ENOTHERE || code == -PLX_EMISSING;
}

/* --- other hosts --- */

bool check_is_elsewhere(const struct check *check, const struct cluster_disk *disk)
{
    return disk->owner && disk->owner != check->host->node &&
           !copies_are_alone(check->host->copies);
}

uint64_t check_others(const struct check *check)
{
    const struct cluster_state *state = cluster_state(check->host->cluster);
    const struct cluster_version *version = NULL;
    const struct cluster_disk *disk = NULL;
    uint64_t sum = 0;

    if (copies_are_alone(check->host->copies))
        return 0;
    while ((version = cluster_version_next(state, version)))
        sum = sum * 31 + version->id * 2 + version->collapsing;
    while ((disk = cluster_disk_next(state, disk)))
        if (disk->owner != check->host->node)
            sum = sum * 31 + disk->id + disk->epoch * 7 + disk->checkpoint.number * 13;
    return sum;
}

/* The tree that is read is no longer one that anybody has: what cannot be read of it was
 * taken away meanwhile. Trees of our own are held. */
static bool is_outdated(const struct check *check)
{
    const struct cluster_state *state = cluster_state(check->host->cluster);
    const struct cluster_version *version =
        cluster_version_by_id(state, check->tree_version);
    const struct cluster_disk *disk = cluster_disk_by_id(state, check->tree_disk);
    struct map_root root;
    uint64_t pending;

    if (copies_are_alone(check->host->copies))
        return false;
    if (check->tree_version)
        return !version || version->collapsing;
    if (!disk || (disk->flags & DISK_REMOVED) || check_is_elsewhere(check, disk))
        return true;
    return disk_base_root(state, disk, &root, &pending) < 0 ||
           !address_equal(root.address, check->tree_root.address);
}

/* Reads and verifies a run of the disk's blocks that lie together. */
static async void check_run(struct check *check, uint64_t block, struct address address,
                            const uint32_t *crcs, uint32_t count)
{
    while (count > 0) {
        uint32_t bad;
        int rc = copies_read_wait(check->host->copies, address, crcs, count, check->bytes,
                                  &bad);
        if (rc == 0 || (is_gone(rc) && is_outdated(check)))
            break;
        /* Go on behind the bad one; without its place, behind the first. */
        if (rc != -PLX_ECHECKSUM)
            bad = 0;
        if (rc != -PLX_ECHECKSUM && count > 1) {
            check_run(check, block, address, crcs, 1);
        } else {
            struct address at = address_plus(address, bad);
            check_finding(check, "%s: offset %llu: extent %llx block %u: %s", check->name,
                          (unsigned long long)((block + bad) * BLOCK_SIZE),
                          (unsigned long long)address_extent(at).v, address_block(at),
                          err_text(rc));
        }
        bad++;
        if (bad >= count)
            break;
        block += bad;
        address = address_plus(address, bad);
        crcs += bad;
        count -= bad;
    }
}

static async void finish_run(struct check *check)
{
    uint32_t count = check->run_count;

    if (count == 0)
        return;
    check->run_count = 0;
    check_run(check, check->run_block, check->run_address, check->run_crcs, count);
    check->report.blocks += count;
    check->report.bytes += (uint64_t)count * BLOCK_SIZE;
    if (check->callbacks->progress)
        check->callbacks->progress(check->callbacks->arg, check->report.bytes,
                                   max_u64(check->total_bytes, check->report.bytes));
}

/* A node is never older than what it names. */
static void check_generation(struct check *check, unsigned level, uint64_t block,
                             uint32_t generation)
{
    if (level < MAP_HEIGHT_MAX && generation > check->generations[level])
        check_finding(check, "%s: offset %llu: a map node is older than what it names",
                      check->name, (unsigned long long)(block * BLOCK_SIZE));
}

static async int on_data(void *arg, uint64_t block, struct map_entry entry,
                         struct map_entry other)
{
    struct check *check = arg;
    uint32_t count = check->run_count;
    int rc = marks_add(&check->marks, entry.address);

    (void)other;
    if (rc <= 0)
        return rc;
    check_generation(check, 0, block, entry.generation);
    if (block >= check->size_blocks)
        check_finding(check, "%s: offset %llu: data beyond the end", check->name,
                      (unsigned long long)(block * BLOCK_SIZE));
    if (count == CHECK_READ_BLOCKS || check->run_block + count != block ||
        check->run_address.v + count != entry.address.v ||
        address_block(entry.address) == 0)
        finish_run(check);
    if (check->run_count == 0) {
        check->run_block = block;
        check->run_address = entry.address;
    }
    check->run_crcs[check->run_count++] = entry.crc;
    return 0;
}

int check_goes_on(const struct check *check)
{
    const struct check_callbacks *callbacks = check->callbacks;

    return callbacks->cancelled && callbacks->cancelled(callbacks->arg) ? -PLX_ECANCELLED
                                                                        : 0;
}

/* What was seen is not looked at again, unless only a part of it lay in the stretch. */
static async int on_enter(void *arg, unsigned level, uint64_t index,
                          struct map_entry entry)
{
    struct check *check = arg;
    uint64_t blocks = map_entry_blocks(level + 1);
    int rc = check_goes_on(check);

    if (rc == 0)
        rc = marks_add(&check->marks, entry.address);
    check_generation(check, level + 1, index * blocks, entry.generation);
    check->generations[level] = entry.generation;
    if (rc > 0)
        check->report.nodes++;
    return rc < 0 ? rc : rc == 0 && blocks <= CHECK_STRETCH_BLOCKS;
}

static async int on_unreadable(void *arg, unsigned level, uint64_t index,
                               struct map_entry entry, bool of_against, int code)
{
    struct check *check = arg;
    uint64_t blocks = map_entry_blocks(level + 1), start = index * blocks;

    (void)of_against;
    if (is_gone(code) && is_outdated(check))
        return 0;
    check_finding(check,
                  "%s: offset %llu: map node at level %u, extent %llx block %u: %s%s",
                  check->name, (unsigned long long)(start * BLOCK_SIZE), level,
                  (unsigned long long)address_extent(entry.address).v,
                  address_block(entry.address), err_text(code),
                  check->flags & CHECK_REPAIR ? "; it cannot be rebuilt"
                                              : "; --repair may rebuild it");
    return 0;
}

/* --- disks and versions --- */

static async int read_tree(struct check *check, const struct map_root *root,
                           uint64_t first, uint64_t end)
{
    static const struct tree_walk_ops ops = {
        .data = on_data, .enter = on_enter, .unreadable = on_unreadable,
    };
    struct tree_walk walk = {
        .loop = check->host->loop,
        .cache = check->host->nodes,
        .root = *root,
        .first = first,
        .end = end,
    };
    int rc;

    if (!map_root_sound(root)) {
        check_finding(check, "%s: not a map root", check->name);
        return 0;
    }
    check->tree_root = *root;
    for (unsigned i = 0; i < MAP_HEIGHT_MAX; i++)
        check->generations[i] = UINT32_MAX;
    rc = tree_walk(&walk, &ops, check);
    finish_run(check);
    return rc;
}

static async int read_head(struct check *check, uint64_t id)
{
    const struct cluster_state *state = cluster_state(check->host->cluster);
    const struct cluster_disk *disk = cluster_disk_by_id(state, id);
    uint64_t blocks = 1;
    struct pin pin;
    int rc = 0;

    if (!disk || (disk->flags & (DISK_IMPORTING | DISK_REMOVED)))
        return 0;
    if (check_is_elsewhere(check, disk)) {
        check->report.elsewhere++;
        return 0;
    }
    check->tree_disk = id;
    check->tree_version = 0;
    check->report.disks++;
    snprintf(check->name, sizeof check->name, "disk %s", disk->name);
    for (uint64_t first = 0; first < blocks && rc == 0; first += CHECK_STRETCH_BLOCKS) {
        uint64_t end = first + CHECK_STRETCH_BLOCKS;
        struct map_root root;
        uint64_t pending;
        disk = cluster_disk_by_id(state, id);
        if (!disk || (disk->flags & DISK_REMOVED) || check_is_elsewhere(check, disk) ||
            disk_base_root(state, disk, &root, &pending) < 0)
            break;
        check->size_blocks = disk->size_bytes / BLOCK_SIZE;
        blocks = check->size_blocks;
        reclaim_pin_head(check->host, &pin, id);
        /* The last one also has what may lie beyond the end. */
        rc = read_tree(check, &root, first, end < blocks ? end : 0);
        pin_release(&check->host->pins, &pin);
    }
    return rc;
}

static async int read_version(struct check *check, const struct cluster_version *version)
{
    const struct cluster_state *state = cluster_state(check->host->cluster);
    const struct cluster_disk *disk = cluster_disk_by_id(state, version->disk);
    struct map_root root = version->root;
    struct pin pin;

    check->tree_disk = version->disk;
    check->tree_version = version->id;
    check->report.snapshots++;
    snprintf(check->name, sizeof check->name, "disk %s@%s", disk ? disk->name : "?",
             version->name[0] ? version->name : "(unnamed)");
    check->size_blocks = div_up_u64(version->size_bytes, BLOCK_SIZE);
    pin_take(&check->host->pins, &pin, PIN_VERSION, version->id);
    int rc = read_tree(check, &root, 0, 0);
    pin_release(&check->host->pins, &pin);
    return rc;
}

static int compare_ids(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

    return left < right ? -1 : left > right;
}

int check_collect_disks(struct check *check)
{
    const struct cluster_state *state = cluster_state(check->host->cluster);
    const struct cluster_disk *disk = NULL;
    uint64_t *ids = malloc((cluster_disk_count(state) + 1) * sizeof *ids);

    if (!ids)
        return -ENOMEM;
    free(check->disks);
    check->disks = ids;
    check->disk_count = 0;
    while ((disk = cluster_disk_next(state, disk)))
        ids[check->disk_count++] = disk->id;
    if (check->disk_count > 0)
        qsort(ids, check->disk_count, sizeof *ids, compare_ids);
    return 0;
}

int check_collect_versions(const struct cluster_state *state, uint64_t **ret_ids,
                           size_t *ret_count)
{
    const struct cluster_version *version = NULL;
    size_t count = 0;
    uint64_t *ids = malloc((cluster_version_count(state) + 1) * sizeof *ids);

    if (!ids)
        return -ENOMEM;
    while ((version = cluster_version_next(state, version)))
        ids[count++] = version->id;
    *ret_ids = ids;
    *ret_count = count;
    return 0;
}

static async int read_all(struct check *check)
{
    const struct cluster_state *state = cluster_state(check->host->cluster);
    cleanup(free_ptr) uint64_t *ids = NULL;
    size_t count = 0;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < check->disk_count; i++)
        rc = read_head(check, check->disks[i]);
    if (rc == 0)
        rc = check_collect_versions(state, &ids, &count);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        const struct cluster_version *version = cluster_version_by_id(state, ids[i]);
        if (version && !version->pending && !version->collapsing)
            rc = read_version(check, version);
    }
    return rc;
}

/* --- what every part of it needs first --- */

static async int checkpoint_open(struct check *check, uint64_t id)
{
    bool was_open = disk_find(check->host, id, 0) != NULL;
    struct error err = {0};
    struct disk *disk;
    int rc = disk_acquire(check->host, id, 0, &disk, &err);

    if (rc == 0) {
        rc = disk_checkpoint(disk, &err);
        disk_release(disk);
    }
    if (rc < 0) {
        const struct cluster_disk *now =
            cluster_disk_by_id(cluster_state(check->host->cluster), id);
        if (!now || (now->flags & DISK_TRASHED) ||
            (now->owner == 0 && cluster_disk_is_settled(now)))
            return 0; /* removed meanwhile, and settled for that; maybe restored since */
        check->is_incomplete = true;
        check_finding(check, "%s: %s", check->name, err.text);
        return rc == -ENOMEM || rc == -ESHUTDOWN ? rc : 0;
    }
    if (!was_open) /* many may have been left by a process that was killed */
        (void)disk_shut(check->host, id, &err);
    return 0;
}

async int check_settle(struct check *check)
{
    const struct cluster_state *state = cluster_state(check->host->cluster);
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < check->disk_count; i++) {
        uint64_t id = check->disks[i];
        const struct cluster_disk *disk = cluster_disk_by_id(state, id);
        if (!disk || (disk->flags & DISK_TRASHED))
            continue;
        if (check_is_elsewhere(check, disk)) {
            check->is_incomplete = true;
            continue;
        }
        snprintf(check->name, sizeof check->name, "disk %s", disk->name);
        if (disk_find(check->host, id, 0) || disk->owner ||
            !cluster_disk_is_settled(disk))
            rc = checkpoint_open(check, id);
    }
    return rc;
}

static async int check_all(struct check *check)
{
    char text[256];
    int rc = check_collect_disks(check);

    if (cluster_state_check(cluster_state(check->host->cluster), text, sizeof text) < 0)
        check_finding(check, "cluster state: %s", text);
    if (rc == 0 && (check->flags & CHECK_REPAIR))
        rc = check_mend(check);
    if (rc == 0)
        rc = check_liveness(check);
    marks_done(&check->marks);
    return rc == 0 ? read_all(check) : rc;
}

async int host_check(struct host *host, unsigned flags,
                     const struct check_callbacks *callbacks,
                     struct check_report *ret_report, struct error *err)
{
    struct check check = {.host = host, .flags = flags, .callbacks = callbacks};
    struct store_usage usage;
    int rc;

    store_usage(host->store, &usage);
    check.total_bytes = usage.used_bytes;
    check.report.extents = usage.extent_count;
    check.bytes = aligned_alloc(BLOCK_SIZE, CHECK_READ_BLOCKS * BLOCK_SIZE);
    check.run_crcs = calloc(CHECK_READ_BLOCKS, sizeof *check.run_crcs);
    rc = check.bytes && check.run_crcs ? check_all(&check) : -ENOMEM;
    free(check.bytes);
    free(check.run_crcs);
    free(check.disks);
    marks_done(&check.marks);
    reclaim_wake(host);
    if (rc < 0)
        return err_set(err, rc, "check: %s", err_text(rc));
    if (check.held_up_guests)
        return err_set(err, -PLX_EBUSY,
                       "check: all data was read, with %llu findings, but guests change "
                       "too much to compare what is live meanwhile; check again when "
                       "they do less", (unsigned long long)check.report.findings);
    *ret_report = check.report;
    return 0;
}
