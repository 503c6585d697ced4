/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which disks and snapshots are open. The first user opens one, further ones share it;
 * when the last user has gone it stays for a while and is closed by a task.
 *
 * Who comes while a disk is opening or closing waits; if the opening fails, the next one
 * in line tries for itself. A disk whose log gave up is closed as soon as its last user
 * has gone.
 *
 * disk_table_close closes all of them, a few at a time.
 */
#include "cow/reclaim.h"

/* An opening that others were faster than is tried again for so long, after such a rest
 * and up to one more. */
#define OVERTAKEN_NS      (10 * NS_PER_S)
#define OVERTAKEN_REST_NS (10 * NS_PER_MS)
/* Each holds a task while it waits for its log. */
#define CLOSES_MAX     16U
#define CLOSE_RETRY_NS (20 * NS_PER_MS)

static int disk_compare(const struct disk *a, const struct disk *b)
{
    if (a->id != b->id)
        return a->id < b->id ? -1 : 1;
    return a->version < b->version ? -1 : a->version > b->version;
}

RB_GENERATE(disk_tree, disk, node, disk_compare)

struct disk *disk_find(struct host *host, uint64_t id, uint64_t version)
{
    struct disk key = {.id = id, .version = version};

    return RB_FIND(disk_tree, &host->disks, &key);
}

void disk_set_name(struct disk *disk)
{
    const struct cluster_state *state = cluster_state(disk->host->cluster);
    const struct cluster_disk *head = cluster_disk_by_id(state, disk->id);
    const struct cluster_version *version = cluster_version_by_id(state, disk->version);

    snprintf(disk->name, sizeof disk->name, "%s%s%s", head ? head->name : "?",
             version ? "@" : "", version ? version->name : "");
}

static struct disk *disk_new(struct host *host, uint64_t id, uint64_t version)
{
    struct disk *disk = calloc(1, sizeof *disk);

    if (!disk)
        return NULL;
    disk->host = host;
    disk->loop = host->loop;
    disk->id = id;
    disk->version = version;
    TAILQ_INIT(&disk->layers);
    TAILQ_INIT(&disk->ranges);
    TAILQ_INIT(&disk->finished);
    mutex_init(&disk->checkpoint_lock);
    mutex_init(&disk->snapshot_lock);
    mutex_init(&disk->command_lock);
    waitlist_init(&disk->settled);
    waitlist_init(&disk->drained);
    TAILQ_INIT(&disk->late);
    trimmer_init(disk);
    dead_set_init(&disk->orphans);
    disk_set_name(disk);
    RB_INSERT(disk_tree, &host->disks, disk);
    host->disk_count++;
    return disk;
}

static void disk_forget(struct disk *disk)
{
    struct host *host = disk->host;

    RB_REMOVE(disk_tree, &host->disks, disk);
    host->disk_count--;
    disk_free(disk);
    host_update_reserve(host);
    waitlist_wake_all(&host->disks_changed);
}

static async int open_new(struct host *host, uint64_t id, uint64_t version,
                          struct disk **ret_disk, struct error *err)
{
    struct disk *disk = disk_new(host, id, version);
    int rc;

    if (!disk)
        return err_set(err, -ENOMEM, "out of memory");
    disk->state = DISK_OPENING;
    rc = disk_start(disk, err);
    if (rc < 0) {
        disk_forget(disk);
        return rc;
    }
    disk->state = DISK_OPEN;
    disk->users = 1;
    waitlist_wake_all(&host->disks_changed);
    host_update_reserve(host);
    checkpoint_after_open(disk);
    trimmer_kick(disk);
    *ret_disk = disk;
    return 0;
}

/* Another node's that is up: what is left to log_open, if it turns out otherwise. */
static bool is_elsewhere(struct host *host, uint64_t id)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk = cluster_disk_by_id(state, id);
    const struct cluster_node *owner =
        disk ? cluster_node_by_id(state, disk->owner) : NULL;

    return host->rpc && owner && owner->id != host->node &&
           !cluster_node_is_down(owner);
}

static int open_remote(struct host *host, uint64_t id, struct disk **ret_disk,
                       struct error *err)
{
    struct disk *disk = disk_new(host, id, 0);
    int rc = disk ? remote_begin(disk) : -ENOMEM;

    if (rc < 0) {
        if (disk)
            disk_forget(disk);
        return err_set(err, rc, "%s", err_text(rc));
    }
    disk->state = DISK_OPEN;
    disk->users = 1;
    waitlist_wake_all(&host->disks_changed);
    *ret_disk = disk;
    return 0;
}

/* Not while it is on its way to another host. */
static bool can_share(const struct disk *disk)
{
    return disk->state == DISK_OPEN && !disk->door_closed &&
           !(disk->down && disk->users == 0);
}

/* It stays what it is until those who were attached before have gone. */
static int refuse_down(const struct disk *disk, struct error *err)
{
    if (disk->clients == 0)
        return err_set(err, disk->down, "disk %s: %s", disk->name, err_text(disk->down));
    return err_set(err, disk->down,
                   "disk %s: %s, and %u client%s still here from before: "
                   "disconnect first",
                   disk->name, err_text(disk->down), disk->clients,
                   disk->clients == 1 ? "" : "s");
}

static void share(struct disk *disk)
{
    disk->users++;
    timer_stop(disk->loop, &disk->idle_timer);
}

/* From another host, if no client of it is there. */
static async int bring_here(struct disk *disk, struct disk **ret_disk, struct error *err)
{
    int rc = disk->is_remote ? remote_reclaim(disk, err) : 0;

    if (rc < 0) {
        disk_release(disk);
        return rc;
    }
    *ret_disk = disk;
    return 0;
}

/* As it is, or as soon as it is neither on its way here or elsewhere, nor closing. */
static async int acquire(struct host *host, uint64_t id, uint64_t version,
                         struct disk **ret_disk, struct error *err)
{
    for (;;) {
        struct disk *disk = disk_find(host, id, version);

        if (host->closing)
            return err_set(err, -ESHUTDOWN, "the daemon is stopping");
        if (!disk && !version && is_elsewhere(host, id)) {
            int rc = open_remote(host, id, &disk, err);
            return rc < 0 ? rc : bring_here(disk, ret_disk, err);
        }
        if (!disk)
            return open_new(host, id, version, ret_disk, err);
        if (can_share(disk)) {
            if (disk->down)
                return refuse_down(disk, err);
            share(disk);
            return bring_here(disk, ret_disk, err);
        }
        disk->is_wanted = true; /* what a closing one still tidies may wait */
        waitlist_wait(&host->disks_changed);
    }
}

/* What the state says of the lease; the epoch counts how often it was taken. */
static uint64_t lease_epoch(const struct host *host, uint64_t id)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(host->cluster), id);

    return disk ? disk->epoch : 0;
}

/* Somebody else took the lease, or gave it up, between the look and the deed. */
static bool was_overtaken(int code)
{
    return code == -PLX_EEPOCH || code == -PLX_EOWNED || code == -PLX_EPRECONDITION;
}

async int disk_acquire(struct host *host, uint64_t id, uint64_t version,
                       struct disk **ret_disk, struct error *err)
{
    uint64_t began_ns = loop_now_ns(host->loop);

    for (;;) {
        uint64_t epoch = lease_epoch(host, id);
        int rc = acquire(host, id, version, ret_disk, err);

        /* An older epoch is that of a disk here that is on its way out. */
        bool is_new = rc == -PLX_EEPOCH || lease_epoch(host, id) != epoch;
        if (!was_overtaken(rc) || !is_new ||
            loop_now_ns(host->loop) - began_ns >= OVERTAKEN_NS)
            return rc;
        task_sleep_ns(OVERTAKEN_REST_NS +
                      loop_random_u64(host->loop) % OVERTAKEN_REST_NS);
        *err = (struct error){0};
    }
}

async int disk_acquire_incoming(struct host *host, uint64_t id, struct disk **ret_disk,
                                struct error *err)
{
    for (;;) {
        struct disk *disk = disk_find(host, id, 0);

        if (host->closing)
            return err_set(err, -ESHUTDOWN, "the daemon is stopping");
        if (!disk && is_elsewhere(host, id))
            return open_remote(host, id, ret_disk, err);
        if (!disk) {
            int rc = open_new(host, id, 0, ret_disk, err);
            if (rc != -PLX_EOWNED || !is_elsewhere(host, id))
                return rc;
            continue; /* somebody was faster */
        }
        if (can_share(disk)) {
            if (disk->down)
                return refuse_down(disk, err);
            share(disk);
            *ret_disk = disk;
            return 0;
        }
        disk->is_wanted = true;
        waitlist_wait(&host->disks_changed);
    }
}

async void disk_tidy_closed(struct host *host, uint64_t id)
{
    struct disk *disk;

    if (disk_find(host, id, 0) || host->closing)
        return;
    disk = disk_new(host, id, 0);
    if (!disk)
        return;
    disk->state = DISK_CLOSING;
    disk_tidy(disk);
    disk_forget(disk);
}

static async int close_now(struct disk *disk, struct error *err)
{
    struct host *host = disk->host;
    int rc;

    assert(disk->users == 0 && disk->state == DISK_OPEN);
    disk->state = DISK_CLOSING;
    timer_stop(disk->loop, &disk->idle_timer);
    rc = disk_end(disk, err);
    disk_forget(disk);
    if (reclaim_pending(host) > 0) /* it may have been all that held a version */
        reclaim_wake(host);
    return rc;
}

static async void close_main(struct task_call *call)
{
    struct disk *disk = container_of(call, struct disk, close_task);
    struct host *host = disk->host;
    struct error err = {0};

    disk->closing_soon = false;
    if (disk->users == 0 && disk->state == DISK_OPEN && close_now(disk, &err) < 0)
        log_warning(host->loop, "%s", err.text);
    host->closes_running--;
    waitlist_wake_all(&host->disks_changed);
}

static void idle_fired(struct timer *timer)
{
    disk_close_soon(container_of(timer, struct disk, idle_timer));
}

void disk_close_soon(struct disk *disk)
{
    struct host *host = disk->host;

    if (disk->closing_soon)
        return;
    if (host->closes_running == CLOSES_MAX) {
        disk->idle_timer.fire = idle_fired;
        timer_start(disk->loop, &disk->idle_timer, CLOSE_RETRY_NS);
        return;
    }
    host->closes_running++;
    disk->closing_soon = true;
    disk->close_task = (struct task_call){
        .main = close_main, .name = "close", .system = true,
    };
    task_start(disk->loop, &disk->close_task);
}

void disk_release(struct disk *disk)
{
    assert(disk->users > 0);
    disk->users--;
    if (disk->door_closed)
        waitlist_wake_all(&disk->drained);
    if (disk->users > 0)
        return;
    waitlist_wake_all(&disk->host->disks_changed);
    if (disk->down) {
        disk_close_soon(disk);
        return;
    }
    disk->idle_timer.fire = idle_fired;
    timer_start(disk->loop, &disk->idle_timer,
                disk->host->options.idle_close_ms * NS_PER_MS);
}

async int disk_shut(struct host *host, uint64_t id, struct error *err)
{
    for (;;) {
        struct disk *disk = disk_find(host, id, 0);

        if (!disk && !is_elsewhere(host, id))
            return 0;
        if (!disk || (disk->clients == 0 && disk->is_remote && is_elsewhere(host, id))) {
            int rc = disk_acquire(host, id, 0, &disk, err);
            if (rc < 0)
                return rc;
            disk_release(disk);
            continue;
        }
        if (disk->clients > 0)
            return err_set(err, -PLX_EBUSY,
                           "disk %s: in use by %u client%s: disconnect first", disk->name,
                           disk->clients, disk->clients == 1 ? "" : "s");
        if (disk->state == DISK_OPEN && disk->users == 0 && !disk->closing_soon)
            return close_now(disk, err);
        waitlist_wait(&host->disks_changed);
    }
}

/* The next one that can be closed. */
static struct disk *next_idle(struct host *host)
{
    struct disk *disk;

    RB_FOREACH (disk, disk_tree, &host->disks)
        if (disk->state == DISK_OPEN && disk->users == 0 && !disk->closing_soon)
            return disk;
    return NULL;
}

async void disk_table_close(struct host *host)
{
    host->closing = true;
    while (!RB_EMPTY(&host->disks)) {
        struct disk *disk;
        while (host->closes_running < CLOSES_MAX && (disk = next_idle(host)))
            disk_close_soon(disk);
        waitlist_wait(&host->disks_changed);
    }
    while (host->tidy_running || host->hand_overs > 0)
        waitlist_wait(&host->disks_changed);
}

/* --- leases that are over --- */

/* The epoch of an open disk changes only by somebody else's hand. */
static bool is_lost(const struct disk *disk)
{
    const struct cluster_disk *state =
        cluster_disk_by_id(cluster_state(disk->host->cluster), disk->id);

    return disk->log && disk->state == DISK_OPEN && !disk->down &&
           (!state || state->epoch != log_epoch(disk->log));
}

static void look_for_lost(struct cluster_watcher *watcher)
{
    struct host *host = container_of(watcher, struct host, leases);
    struct disk *disk;

    RB_FOREACH (disk, disk_tree, &host->disks) {
        remote_look(disk);
        if (is_lost(disk))
            disk_go_down(disk, -PLX_EEPOCH);
    }
}

void disk_table_watch(struct host *host)
{
    host->leases.applied = look_for_lost;
    host->leases_are_watched = true;
    cluster_on_apply(host->cluster, &host->leases);
}

void disk_table_unwatch(struct host *host)
{
    if (host->leases_are_watched)
        cluster_off_apply(host->cluster, &host->leases);
    host->leases_are_watched = false;
}

/* --- the public face --- */

/* Splits "DISK@SNAP"; ret_snapshot is "" without one. */
static bool split_name(const char *name, char *ret_disk, char *ret_snapshot)
{
    const char *at = strchr(name, '@');
    size_t disk_len = at ? (size_t)(at - name) : strlen(name);
    size_t snapshot_len = at ? strlen(at + 1) : 0;

    if (disk_len > DISK_NAME_MAX || snapshot_len > DISK_NAME_MAX ||
        (at && snapshot_len == 0))
        return false;
    memcpy(ret_disk, name, disk_len);
    ret_disk[disk_len] = '\0';
    memcpy(ret_snapshot, at ? at + 1 : "", snapshot_len + 1);
    return true;
}

static int find_ids(struct host *host, const char *name, uint64_t *ret_id,
                    uint64_t *ret_version, struct error *err)
{
    char disk_part[DISK_NAME_MAX + 1], snapshot_part[DISK_NAME_MAX + 1];
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk;
    const struct cluster_version *version = NULL;

    if (!split_name(name, disk_part, snapshot_part))
        return err_set(err, -PLX_ENAME, "not a name of a disk or snapshot");
    disk = cluster_disk_by_name(state, disk_part);
    if (!disk || (disk->flags & DISK_TRASHED))
        return err_set(err, -PLX_EMISSING, "disk %s: no such disk", disk_part);
    if (snapshot_part[0]) {
        version = cluster_version_by_name(state, disk->id, snapshot_part);
        if (!version)
            return err_set(err, -PLX_EMISSING, "disk %s: no snapshot %s", disk_part,
                           snapshot_part);
    }
    *ret_id = disk->id;
    *ret_version = version ? version->id : 0;
    return 0;
}

async int disk_pull(struct host *host, const char *name, struct error *err)
{
    uint64_t id, version;
    struct disk *disk;
    int rc = find_ids(host, name, &id, &version, err);

    if (rc == 0 && version)
        rc = err_set(err, -EROFS, "%s: a snapshot has no owner", name);
    if (rc == 0)
        rc = disk_acquire(host, id, 0, &disk, err);
    if (rc == 0)
        disk_release(disk);
    return rc;
}

/* With the lease it is as if this host had been its owner before. */
async int disk_break(struct host *host, const char *name, struct error *err)
{
    const struct cluster_disk *disk = host_find_disk(host, name, err);
    struct cluster_result result;

    if (!disk)
        return -PLX_EMISSING;
    if (!disk->owner || disk->owner == host->node)
        return err_set(err, -PLX_EPRECONDITION, "disk %s: %s", name,
                       disk->owner ? "this node owns it" : "nobody owns it");
    log_warning(host->loop, "disk %s: taken by force from node %llu", name,
                (unsigned long long)disk->owner);
    const struct cluster_command command = {
        .op = CLUSTER_LEASE_TAKE,
        .disk = disk->id,
        .epoch = disk->epoch,
        .node = host->node,
        .force = true,
    };
    int rc = host_submit(host, &command, &result, err);

    return rc < 0 ? rc : disk_pull(host, name, err);
}

async int disk_open(struct host *host, const char *name, enum disk_access access,
                    struct disk **ret_disk, struct error *err)
{
    uint64_t id, version;
    struct disk *disk;
    int rc = find_ids(host, name, &id, &version, err);

    if (rc == 0 && version && access != DISK_READ_ONLY)
        rc = err_set(err, -EROFS, "%s: snapshots are read-only", name);
    if (rc == 0)
        rc = access == DISK_INCOMING ? disk_acquire_incoming(host, id, &disk, err)
                                     : disk_acquire(host, id, version, &disk, err);
    if (rc < 0)
        return rc;
    const struct cluster_disk *state =
        cluster_disk_by_id(cluster_state(host->cluster), id);
    if (!state || (state->flags & DISK_TRASHED)) { /* meanwhile */
        disk_release(disk);
        return err_set(err, -PLX_EMISSING, "disk %s: no such disk", name);
    }
    if (disk->exclusive || pin_is_taken(&host->pins, PIN_CLOSED, id)) {
        disk_release(disk);
        return err_set(err, -PLX_EBUSY, "disk %s: is being changed, try again", name);
    }
    disk->clients++;
    if (access == DISK_INCOMING)
        remote_prepare(disk);
    waitlist_wake_all(&host->disks_changed); /* who waits for it to be unused must not */
    *ret_disk = disk;
    return 0;
}

void disk_close(struct disk *disk)
{
    assert(disk->clients > 0);
    disk->clients--;
    if (disk->door_closed)
        waitlist_wake_all(&disk->drained);
    disk_release(disk);
}
