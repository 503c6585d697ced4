/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The administrative operations. Each checks its words, commits one cluster command (a
 * few need the disk open, or closed, first), and says in its error what was wrong with
 * which name. A refused one has changed nothing.
 */
#include "cow/reclaim.h"

#define COLLAPSE_POLL_NS (10 * NS_PER_MS)

int host_check_name(const char *what, const char *name, struct error *err)
{
    if (cluster_name_valid(name))
        return 0;
    return err_set(err, -PLX_ENAME,
                   "%s name '%.40s%s': use 1 to %u letters, digits and . _ - + : "
                   "and begin with a letter, digit, _ or :",
                   what, name, strlen(name) > 40 ? "…" : "", DISK_NAME_MAX);
}

static int check_size(uint64_t size_bytes, struct error *err)
{
    if (size_bytes > 0 && size_bytes % BLOCK_SIZE == 0 && size_bytes <= DISK_BYTES_MAX)
        return 0;
    return err_set(err, -EINVAL,
                   "size %llu: must be a multiple of %u bytes, from %u to 16T",
                   (unsigned long long)size_bytes, BLOCK_SIZE, BLOCK_SIZE);
}

const struct cluster_disk *host_find_disk(struct host *host, const char *name,
                                          struct error *err)
{
    const struct cluster_disk *disk =
        cluster_disk_by_name(cluster_state(host->cluster), name);

    if (disk && cluster_disk_is_visible(disk))
        return disk;
    err_set(err, -PLX_EMISSING, "disk %s: no such disk", name);
    return NULL;
}

const struct cluster_version *host_find_version(struct host *host, const char *disk_name,
                                                const char *snapshot, struct error *err)
{
    const struct cluster_disk *disk = host_find_disk(host, disk_name, err);
    const struct cluster_version *version;

    if (!disk)
        return NULL;
    version = cluster_version_by_name(cluster_state(host->cluster), disk->id, snapshot);
    if (!version)
        err_set(err, -PLX_EMISSING, "disk %s: no snapshot %s", disk_name, snapshot);
    return version;
}

async int host_submit(struct host *host, const struct cluster_command *command,
                      struct cluster_result *ret_result, struct error *err)
{
    int rc = cluster_submit(host->cluster, command, ret_result);

    if (rc < 0)
        return err_set(err, rc, "%s",
                       ret_result->text[0] ? ret_result->text : err_text(rc));
    return 0;
}

static async int create(struct host *host, const char *name, uint64_t size_bytes,
                        unsigned flags, uint32_t pool, struct error *err)
{
    struct cluster_command command = {
        .op = CLUSTER_DISK_CREATE,
        .name = name,
        .size_bytes = size_bytes,
        .flags = flags,
        .pool = pool,
        .wall_ns = loop_wall_ns(host->loop),
    };
    struct cluster_result result;
    int rc = host_check_name("disk", name, err);

    if (rc == 0)
        rc = check_size(size_bytes, err);
    return rc < 0 ? rc : host_submit(host, &command, &result, err);
}

async int disk_create(struct host *host, const char *name, uint64_t size_bytes,
                      struct error *err)
{
    return create(host, name, size_bytes, 0, 0, err);
}

async int disk_create_in_pool(struct host *host, const char *name, uint64_t size_bytes,
                              const char *pool, struct error *err)
{
    const struct cluster_pool *found =
        pool ? cluster_pool_by_name(cluster_state(host->cluster), pool) : NULL;

    if (pool && !found)
        return err_set(err, -PLX_EMISSING, "pool %s: no such pool", pool);
    return create(host, name, size_bytes, 0, found ? found->id : 0, err);
}

async int disk_rename(struct host *host, const char *old_name, const char *new_name,
                      struct error *err)
{
    struct cluster_command command = {
        .op = CLUSTER_DISK_RENAME, .name = old_name, .new_name = new_name,
    };
    struct cluster_result result;
    struct disk *open;
    int rc = host_check_name("disk", new_name, err);

    if (rc == 0 && !host_find_disk(host, old_name, err))
        return -PLX_EMISSING;
    if (rc == 0)
        rc = host_submit(host, &command, &result, err);
    if (rc < 0)
        return rc;
    RB_FOREACH (open, disk_tree, &host->disks)
        disk_set_name(open);
    return 0;
}

static async int commit_size(struct host *host, uint64_t id, uint64_t epoch,
                             enum cluster_op op, uint64_t size_bytes, struct error *err)
{
    struct cluster_command command = {
        .op = op, .disk = id, .epoch = epoch, .size_bytes = size_bytes,
    };
    struct cluster_result result;
    int rc = cluster_submit_known(host->cluster, &command, &host->is_stopping, &result);

    return rc < 0 ? err_set(err, rc, "%s", result.text) : 0;
}

/* What is cut off must not come back when the disk grows again: it is zeroed first. */
static async int shrink(struct disk *disk, uint64_t size_bytes, struct error *err)
{
    uint64_t first = size_bytes / BLOCK_SIZE;
    int rc = disk_zero_wait(disk, first, disk->size_bytes / BLOCK_SIZE - first);

    if (rc == 0)
        rc = disk_flush_wait(disk);
    if (rc == 0) /* a map of the old height must not be merged at the new size */
        return disk_checkpoint(disk, err);
    return err_set(err, rc, "disk %s: %s", disk->name, err_text(rc));
}

static async int resize_open(struct disk *disk, uint64_t size_bytes, struct error *err)
{
    bool shrinks = size_bytes < disk->size_bytes;
    int rc = 0;

    if (shrinks && disk->clients > 0)
        return err_set(err, -PLX_EBUSY,
                       "disk %s: cannot shrink while clients are attached", disk->name);
    if (disk->exclusive)
        return err_set(err, -PLX_EBUSY, "disk %s: is being changed", disk->name);
    disk->exclusive = shrinks;
    if (shrinks)
        rc = shrink(disk, size_bytes, err);
    if (rc == 0)
        rc = commit_size(disk->host, disk->id, log_epoch(disk->log), CLUSTER_DISK_RESIZE,
                         size_bytes, err);
    if (rc == 0) {
        disk->size_bytes = size_bytes;
        host_renew_reserve(disk->host);
    }
    if (cluster_outcome_is_unknown(rc)) /* a map is as high as the size wants it */
        disk_go_down(disk, rc);
    if (shrinks)
        disk->exclusive = false;
    return rc;
}

async int disk_resize(struct host *host, const char *name, uint64_t size_bytes,
                      struct error *err)
{
    const struct cluster_disk *state;
    struct disk *disk;
    int rc = check_size(size_bytes, err);

    if (rc < 0)
        return rc;
    state = host_find_disk(host, name, err);
    if (!state)
        return -PLX_EMISSING;
    rc = disk_acquire(host, state->id, 0, &disk, err);
    if (rc < 0)
        return rc;
    rc = resize_open(disk, size_bytes, err);
    disk_release(disk);
    return rc;
}

async int snapshot_create(struct host *host, const char *disk_name, const char *snapshot,
                          struct error *err)
{
    const struct cluster_disk *state;
    struct disk *disk;
    uint64_t version;
    int rc = host_check_name("snapshot", snapshot, err);

    if (rc < 0)
        return rc;
    state = host_find_disk(host, disk_name, err);
    if (!state)
        return -PLX_EMISSING;
    if (cluster_version_by_name(cluster_state(host->cluster), state->id, snapshot))
        return err_set(err, -PLX_EEXISTS, "disk %s: has a snapshot %s already", disk_name,
                       snapshot);
    rc = disk_acquire(host, state->id, 0, &disk, err);
    if (rc < 0)
        return rc;
    rc = disk_snapshot(disk, snapshot, &version, err);
    disk_release(disk);
    return rc;
}

/* Opens and closes a disk whose lease an earlier process left behind. */
static async int settle_lease(struct host *host, uint64_t id, struct error *err)
{
    struct disk *disk;
    int rc = disk_acquire(host, id, 0, &disk, err);

    if (rc < 0)
        return rc;
    disk_release(disk);
    return disk_shut(host, id, err);
}

/* A version that collapses against the head wants it as it is. It will not be long: no
 * further one begins while the head is pinned. */
static async int await_collapse(struct host *host, uint64_t id, struct error *err)
{
    for (;;) {
        const struct cluster_disk *disk =
            cluster_disk_by_id(cluster_state(host->cluster), id);
        if (!disk)
            return err_set(err, -PLX_EMISSING, "no such disk");
        if (!disk->collapsing_version)
            return 0;
        if (host->closing)
            return err_set(err, -ESHUTDOWN, "the daemon is stopping");
        task_sleep_ns(COLLAPSE_POLL_NS);
    }
}

async int host_settle_closed(struct host *host, uint64_t id, struct error *err)
{
    const struct cluster_disk *state;
    int rc = disk_shut(host, id, err);

    if (rc < 0)
        return rc;
    state = cluster_disk_by_id(cluster_state(host->cluster), id);
    if (!state)
        return err_set(err, -PLX_EMISSING, "no such disk");
    /* Left by a process that was killed, or closed without a checkpoint. */
    return state->owner || !cluster_disk_is_settled(state)
               ? settle_lease(host, id, err)
               : 0;
}

static async int roll_back(struct host *host, uint64_t disk, uint64_t version,
                           struct error *err)
{
    struct cluster_command command = {
        .op = CLUSTER_ROLLBACK, .disk = disk, .version = version,
    };
    struct cluster_result result;
    const struct cluster_disk *state;
    int rc = version_settle(host, version, err);

    if (rc < 0)
        return rc;
    do {
        rc = await_collapse(host, disk, err);
        if (rc == 0)
            rc = host_settle_closed(host, disk, err);
        if (rc < 0)
            return rc;
        state = cluster_disk_by_id(cluster_state(host->cluster), disk);
        if (!state)
            return err_set(err, -PLX_EMISSING, "no such disk");
        command.epoch = state->epoch;
        rc = host_submit(host, &command, &result, err);
        state = cluster_disk_by_id(cluster_state(host->cluster), disk);
        /* One was on its way when the head was pinned. */
    } while (rc == -PLX_EPRECONDITION && state && state->collapsing_version);
    return rc;
}

async int snapshot_rollback(struct host *host, const char *disk_name,
                            const char *snapshot, struct error *err)
{
    const struct cluster_version *version =
        host_find_version(host, disk_name, snapshot, err);
    struct pin target, head;
    int rc;

    if (!version)
        return -PLX_EMISSING;
    uint64_t disk = version->disk;
    pin_take(&host->pins, &target, PIN_VERSION, version->id);
    pin_take(&host->pins, &head, PIN_BRANCHES, disk);
    rc = roll_back(host, disk, version->id, err);
    pin_release(&host->pins, &target);
    pin_release(&host->pins, &head);
    reclaim_wake(host); /* the old head */
    return rc;
}

/* The version a clone grows from: a snapshot, or an unnamed one of the disk as it is. It
 * is pinned: until the clone is there nothing else holds it. */
static async int clone_source(struct host *host, const char *disk_name,
                              const char *snapshot, struct pin *pin,
                              uint64_t *ret_version, struct error *err)
{
    const struct cluster_disk *state = host_find_disk(host, disk_name, err);
    struct disk *disk;
    int rc;

    if (!state)
        return -PLX_EMISSING;
    pin_take(&host->pins, pin, PIN_BRANCHES, state->id);
    if (snapshot) {
        const struct cluster_version *version =
            host_find_version(host, disk_name, snapshot, err);
        rc = version ? 0 : -PLX_EMISSING;
        if (version)
            *ret_version = version->id;
    } else {
        rc = disk_acquire(host, state->id, 0, &disk, err);
        if (rc == 0) {
            rc = disk_snapshot(disk, "", ret_version, err);
            disk_release(disk);
        }
    }
    if (rc < 0)
        pin_release(&host->pins, pin);
    return rc;
}

async int disk_clone(struct host *host, const char *disk_name, const char *snapshot,
                     const char *name, uint32_t count, struct error *err)
{
    struct cluster_command command = {
        .op = CLUSTER_CLONE,
        .name = name,
        .count = count,
        .wall_ns = loop_wall_ns(host->loop),
    };
    struct cluster_result result;
    struct pin pin;
    int rc = host_check_name("disk", name, err);

    if (rc == 0 && (count == 0 || count > CLONES_PER_COMMAND))
        rc = err_set(err, -EINVAL, "count %u: must be from 1 to %u", count,
                     CLONES_PER_COMMAND);
    if (rc == 0 && count == 1 &&
        cluster_disk_by_name(cluster_state(host->cluster), name))
        rc = err_set(err, -PLX_EEXISTS, "disk %s: exists already", name);
    if (rc == 0)
        rc = clone_source(host, disk_name, snapshot, &pin, &command.version, err);
    if (rc < 0)
        return rc;
    rc = host_submit(host, &command, &result, err);
    pin_release(&host->pins, &pin);
    if (rc < 0)
        reclaim_wake(host); /* a branch point that nothing grows from */
    return rc;
}

async int import_begin(struct host *host, const char *name, struct error *err)
{
    return create(host, name, DISK_BYTES_MAX, DISK_IMPORTING, 0, err);
}

static const struct cluster_disk *find_import(struct host *host, const char *name,
                                              struct error *err)
{
    const struct cluster_disk *disk =
        cluster_disk_by_name(cluster_state(host->cluster), name);

    if (disk && (disk->flags & DISK_IMPORTING))
        return disk;
    err_set(err, -PLX_EMISSING, "%s: no such import", name);
    return NULL;
}

async int import_publish(struct host *host, const char *name, uint64_t size_bytes,
                         struct error *err)
{
    const struct cluster_disk *state = find_import(host, name, err);
    struct disk *disk;
    int rc = check_size(size_bytes, err);

    if (!state)
        return -PLX_EMISSING;
    if (rc == 0)
        rc = disk_acquire(host, state->id, 0, &disk, err);
    if (rc < 0)
        return rc;
    rc = disk_checkpoint(disk, err);
    if (rc == 0)
        rc = commit_size(host, disk->id, log_epoch(disk->log), CLUSTER_DISK_PUBLISH,
                         size_bytes, err);
    if (rc == 0)
        disk->size_bytes = size_bytes;
    disk_release(disk);
    return rc;
}

async int import_discard(struct host *host, const char *name, struct error *err)
{
    const struct cluster_disk *state = find_import(host, name, err);
    uint64_t id;
    int rc;

    if (!state)
        return -PLX_EMISSING;
    id = state->id;
    rc = disk_shut(host, id, err);
    if (rc < 0 && disk_find(host, id, 0)) /* else it does not matter how it closed */
        return rc;
    return disk_discard(host, id, err);
}

/* --- settings of a disk --- */

async int disk_set_quota(struct host *host, const char *disk_name, uint64_t bytes,
                         struct error *err)
{
    const struct cluster_disk *disk = host_find_disk(host, disk_name, err);
    struct cluster_command command = {.op = CLUSTER_QUOTA_SET, .quota_bytes = bytes};
    struct cluster_result result;

    if (!disk)
        return -PLX_EMISSING;
    command.disk = disk->id;
    return host_submit(host, &command, &result, err);
}

async int disk_set_pool(struct host *host, const char *disk_name, const char *pool_name,
                        struct error *err)
{
    const struct cluster_disk *disk = host_find_disk(host, disk_name, err);
    const struct cluster_pool *pool =
        cluster_pool_by_name(cluster_state(host->cluster), pool_name);
    struct cluster_result result;

    if (!disk)
        return -PLX_EMISSING;
    if (!pool)
        return err_set(err, -PLX_EMISSING, "pool %s: no such pool", pool_name);
    const struct cluster_command command = {
        .op = CLUSTER_DISK_POOL, .disk = disk->id, .pool = pool->id};
    int rc = host_submit(host, &command, &result, err);
    rewriter_wanted(host); /* one that is not open is opened: host_many.c */
    return rc;
}
