/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The check reads everything that any disk or snapshot can reach and verifies it: the
 * cluster state's own rules, every map node, every block of data. Disks that an earlier
 * process left open are opened first, which replays their logs; every open disk is
 * checkpointed, so that its map tells the whole; the others are read by their roots.
 *
 * Subtrees that versions share are read once: the addresses of visited nodes are kept,
 * eight bytes each (2 MiB for 1 TiB of written data). Damage is reported, by disk,
 * snapshot and offset, and the check goes on.
 */
#include "cow/disk_internal.h"

#include <stdarg.h>

#define CHECK_READ_BLOCKS 64U

struct check {
    struct host *host;
    const struct check_callbacks *callbacks;
    struct check_report report;
    char name[2 * DISK_NAME_MAX + 2]; /* of what is being walked */
    uint64_t size_blocks;
    uint64_t total_bytes;
    struct visited {
        uint64_t *slots; /* an open hash of addresses; 0: free */
        uint64_t count, cap;
    } seen;
    uint8_t *bytes;      /* CHECK_READ_BLOCKS blocks */
};

static void finding(struct check *check, const char *fmt, ...) attr_printf(2, 3);
static void finding(struct check *check, const char *fmt, ...)
{
    char line[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    check->report.findings++;
    check->callbacks->finding(check->callbacks->arg, line);
}

/* 1: new, 0: seen before, or -ENOMEM. */
static int visit(struct visited *seen, uint64_t address)
{
    if (seen->count * 2 >= seen->cap) {
        struct visited bigger = {.cap = seen->cap ? seen->cap * 2 : 1024};
        bigger.slots = calloc(bigger.cap, sizeof *bigger.slots);
        if (!bigger.slots)
            return -ENOMEM;
        for (uint64_t i = 0; i < seen->cap; i++)
            if (seen->slots[i])
                (void)visit(&bigger, seen->slots[i]);
        free(seen->slots);
        *seen = bigger;
    }
    uint64_t at = (address * 0x9e3779b97f4a7c15U) >> 20;
    for (;; at++) {
        uint64_t *slot = &seen->slots[at & (seen->cap - 1)];
        if (*slot == address)
            return 0;
        if (*slot)
            continue;
        *slot = address;
        seen->count++;
        return 1;
    }
}

struct check_read {
    struct log_read read;
    struct iovec iov;
    struct event finished;
};

static void check_read_done(struct log_read *read)
{
    event_set(&container_of(read, struct check_read, read)->finished);
}

/* Reads and verifies a run of the disk's blocks that lie together. */
static async void check_run(struct check *check, uint64_t block, struct address address,
                            const uint32_t *crcs, uint32_t count)
{
    while (count > 0) {
        struct check_read read = {
            .iov = {check->bytes, (size_t)count * BLOCK_SIZE},
        };
        event_init(&read.finished);
        read.read = (struct log_read){
            .address = address, .count = count, .iov = &read.iov, .iov_count = 1,
            .crcs = crcs, .done = check_read_done,
        };
        log_read(check->host->store, &read.read);
        event_wait(&read.finished);
        if (read.read.result == 0)
            break;
        /* Go on behind the bad one; without its place, behind the first. */
        uint32_t bad = read.read.result == -PLX_ECHECKSUM ? read.read.bad_block : 0;
        if (read.read.result != -PLX_ECHECKSUM && count > 1) {
            check_run(check, block, address, crcs, 1);
            bad = 0;
        } else {
            struct address at = address_plus(address, bad);
            finding(check, "%s: offset %llu: extent %llx block %u: %s", check->name,
                    (unsigned long long)((block + bad) * BLOCK_SIZE),
                    (unsigned long long)address_extent(at).v, address_block(at),
                    err_text(read.read.result));
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

static async void check_leaf(struct check *check, const struct map_node_format *leaf,
                             uint64_t start)
{
    uint32_t crcs[CHECK_READ_BLOCKS];

    for (unsigned i = 0; i < MAP_FANOUT;) {
        struct map_entry first = map_entry_at(leaf, i);
        uint32_t count = 0;

        if (address_is_null(first.address)) {
            i++;
            continue;
        }
        while (i + count < MAP_FANOUT && count < CHECK_READ_BLOCKS) {
            struct map_entry next = map_entry_at(leaf, i + count);
            if (next.address.v != first.address.v + count ||
                address_extent(next.address).v != address_extent(first.address).v)
                break;
            crcs[count++] = next.crc;
        }
        if (start + i + count > check->size_blocks)
            finding(check, "%s: offset %llu: data beyond the end", check->name,
                    (unsigned long long)((start + i) * BLOCK_SIZE));
        check_run(check, start + i, first.address, crcs, count);
        check->report.blocks += count;
        check->report.bytes += (uint64_t)count * BLOCK_SIZE;
        i += count;
    }
    if (check->callbacks->progress)
        check->callbacks->progress(check->callbacks->arg, check->report.bytes,
                                   max_u64(check->total_bytes, check->report.bytes));
    task_yield();
}

static async int check_node(struct check *check, struct map_entry entry, unsigned level,
                            uint64_t start)
{
    const struct node *node;
    int rc = visit(&check->seen, entry.address.v);

    if (rc <= 0)
        return rc;
    rc = node_get(check->host->nodes, entry.address, entry.crc, &node);
    if (rc < 0) {
        finding(check, "%s: offset %llu: map node at level %u, extent %llx block %u: %s",
                check->name, (unsigned long long)(start * BLOCK_SIZE), level,
                (unsigned long long)address_extent(entry.address).v,
                address_block(entry.address), err_text(rc));
        return rc == -ENOMEM ? rc : 0;
    }
    check->report.nodes++;
    rc = 0;
    if (level == 0)
        check_leaf(check, node->format, start);
    for (unsigned i = 0; level > 0 && i < MAP_FANOUT && rc == 0; i++) {
        struct map_entry child = map_entry_at(node->format, i);
        uint64_t under = map_entry_blocks(level);
        if (address_is_null(child.address))
            continue;
        if (child.generation > entry.generation)
            finding(check, "%s: offset %llu: a map node is older than what it names",
                    check->name, (unsigned long long)((start + i * under) * BLOCK_SIZE));
        rc = check_node(check, child, level - 1, start + i * under);
    }
    node_put(check->host->nodes, node);
    return rc;
}

static async int check_root(struct check *check, const struct map_root *root)
{
    struct map_entry entry = {root->address, root->crc, root->generation};

    if (!map_root_sound(root))
        finding(check, "%s: not a map root", check->name);
    if (!map_root_sound(root) || address_is_null(root->address))
        return 0;
    return check_node(check, entry, root->height - 1U, 0);
}

/* True if the committed root tells all of a disk that nobody has open. */
static bool head_is_settled(const struct check *check, uint64_t id,
                            struct map_root *ret_root)
{
    const struct cluster_state *state = cluster_state(check->host->cluster);
    const struct cluster_disk *disk = cluster_disk_by_id(state, id);
    uint64_t pending;

    if (!disk || disk->owner || disk_find(check->host, id, 0))
        return false;
    for (uint32_t i = 0; i < disk->extent_count; i++)
        if (!disk->extents[i].final ||
            disk->extents[i].last_number > disk->checkpoint.covers)
            return false;
    return disk_base_root(state, disk, ret_root, &pending) == 0;
}

static async int walk_open(struct check *check, struct disk *disk)
{
    struct error err = {0};
    int rc = disk_checkpoint(disk, &err);

    if (rc < 0) {
        finding(check, "disk %s: %s", disk->name, err.text);
        return rc == -ENOMEM ? rc : 0;
    }
    struct map_root root = disk->root;
    check->size_blocks = disk->size_bytes / BLOCK_SIZE;
    return check_root(check, &root);
}

/* Brings the disk's map up to date, for which it may have to be opened, and walks it. */
static async int check_head(struct check *check, uint64_t id)
{
    const struct cluster_disk *state =
        cluster_disk_by_id(cluster_state(check->host->cluster), id);
    bool was_open = disk_find(check->host, id, 0) != NULL;
    struct error err = {0};
    struct map_root root;
    struct disk *disk;
    int rc;

    check->report.disks++;
    snprintf(check->name, sizeof check->name, "disk %.200s", state ? state->name : "?");
    if (head_is_settled(check, id, &root)) {
        check->size_blocks = state->size_bytes / BLOCK_SIZE;
        return check_root(check, &root);
    }
    rc = disk_acquire(check->host, id, 0, &disk, &err);
    if (rc < 0) {
        finding(check, "%s", err.text);
        return rc == -ENOMEM ? rc : 0;
    }
    rc = walk_open(check, disk);
    disk_release(disk);
    if (!was_open) /* many may have been left by a process that was killed */
        (void)disk_shut(check->host, id, &err);
    return rc;
}

static async int check_version(struct check *check, uint64_t id)
{
    const struct cluster_state *state = cluster_state(check->host->cluster);
    const struct cluster_version *version = cluster_version_by_id(state, id);
    const struct cluster_disk *disk = cluster_disk_by_id(state, version->disk);
    struct error err = {0};

    check->report.snapshots++;
    snprintf(check->name, sizeof check->name, "disk %.120s@%.120s",
             disk ? disk->name : "?", version->name[0] ? version->name : "(unnamed)");
    /* It may have been made since its disk was walked. */
    int rc = version->pending ? version_settle(check->host, id, &err) : 0;
    if (rc < 0) {
        finding(check, "%s: its map cannot be written: %s", check->name, err.text);
        return rc == -ENOMEM ? rc : 0;
    }
    version = cluster_version_by_id(state, id);
    if (!version)
        return 0;
    struct map_root root = version->root;
    check->size_blocks = version->size_bytes / BLOCK_SIZE;
    return check_root(check, &root);
}

/* The next disk after this id, 0 at the end: iteration that survives suspensions. */
static uint64_t disk_after(const struct cluster_state *state, uint64_t id)
{
    const struct cluster_disk *disk = NULL;
    uint64_t next = 0;

    while ((disk = cluster_disk_next(state, disk)))
        if (disk->id > id && (!next || disk->id < next) &&
            !(disk->flags & DISK_IMPORTING))
            next = disk->id;
    return next;
}

static const struct cluster_version *version_after(const struct cluster_state *state,
                                                   uint64_t id)
{
    const struct cluster_version *version = NULL;

    while ((version = cluster_version_next(state, version)))
        if (version->id > id)
            return version;
    return NULL;
}

static async int check_all(struct check *check)
{
    const struct cluster_state *state = cluster_state(check->host->cluster);
    const struct cluster_version *version;
    char text[256];
    uint64_t id = 0;
    int rc = 0;

    if (cluster_state_check(state, text, sizeof text) < 0)
        finding(check, "cluster state: %s", text);
    while (rc == 0 && (id = disk_after(state, id)))
        rc = check_head(check, id);
    for (id = 0; rc == 0 && (version = version_after(state, id)); ) {
        id = version->id;
        rc = check_version(check, id);
    }
    return rc;
}

async int host_check(struct host *host, const struct check_callbacks *callbacks,
                     struct check_report *ret_report, struct error *err)
{
    struct check check = {.host = host, .callbacks = callbacks};
    struct store_usage usage;
    int rc;

    store_usage(host->store, &usage);
    check.total_bytes = usage.used_bytes;
    check.report.extents = usage.extent_count;
    check.bytes = aligned_alloc(BLOCK_SIZE, CHECK_READ_BLOCKS * BLOCK_SIZE);
    rc = check.bytes ? check_all(&check) : -ENOMEM;
    free(check.bytes);
    free(check.seen.slots);
    if (rc < 0)
        return err_set(err, rc, "check: %s", err_text(rc));
    *ret_report = check.report;
    return 0;
}
