/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a host does as one of many. Work that must be done once in a cluster is the
 * leader's, or, for a disk that somebody owns, its owner's. What other hosts committed is
 * noticed, so that what was waiting for it goes on.
 *
 * And its own store is tidied: what an earlier process left half-way, and what belongs to
 * a disk that is gone. Only a state that is not older than what lies in the store can
 * tell: a node that was just started may know less than it did before. So the store is
 * listed first, then a barrier passed, then each extent is looked at.
 *
 * What can fail: there is no leader to ask, or the store is out of service. It is tried
 * again after a while; nothing depends on it but space.
 *
 * A disk that is nobody's in truth is opened and closed again, so that its extents end:
 * as long as they are open nobody can copy them, and their groups cannot become whole. Of
 * a disk that an earlier process had here that is done here; if the owner is lost, or has
 * been down for so long that it is replaced, by one of the others. Which one matters
 * little; two that do are one after the other, as any that want a disk. An owner that is
 * down for a moment keeps its disks: its guests may go on with them. A disk that is to
 * move to another pool, and that nobody has open, is opened as well.
 *
 * On close the tasks end between two extents, or disks, and are waited for.
 */
#include "cow/reclaim.h"

#define RETRY_NS   (10 * NS_PER_S)
#define AGAIN_NS   (3600 * NS_PER_S)
#define GATHER_NS  NS_PER_S /* disks that go together */
#define ADOPT_NS   (5 * NS_PER_S)  /* between two looks */
#define ADOPT_MAX_NS (60 * NS_PER_S) /* the same after many failures */
#define ADOPT_REST_NS (50 * NS_PER_MS) /* between two disks, which stay open a while */

bool host_leads(const struct host *host)
{
    return copies_are_alone(host->copies) ||
           consensus_is_leader(cluster_consensus(host->cluster));
}

bool host_has_others(const struct host *host)
{
    const struct cluster_node *node = NULL;

    if (copies_are_alone(host->copies))
        return false;
    while ((node = cluster_node_next(cluster_state(host->cluster), node)))
        if (node->id != host->node && !(node->flags & NODE_GONE))
            return true;
    return false;
}

bool host_answers_for(const struct host *host, const struct cluster_disk *disk)
{
    return disk->owner ? disk->owner == host->node : host_leads(host);
}

/* It does not come back, or so late that all it had is replaced. */
static bool is_gone(const struct host *host, uint64_t id)
{
    const struct cluster_node *node =
        cluster_node_by_id(cluster_state(host->cluster), id);

    return node && (node->flags & (NODE_OUT | NODE_GONE));
}

/* --- disks without an owner --- */

/* The first of those that can. */
static bool is_heir(const struct host *host)
{
    const struct cluster_node *node = NULL;

    while ((node = cluster_node_next(cluster_state(host->cluster), node)))
        if (cluster_node_is_usable(node) && !(node->flags & NODE_DRAINING))
            return node->id == host->node;
    return false;
}

static bool has_open_extent(const struct cluster_disk *disk)
{
    for (uint32_t i = 0; i < disk->extent_count; i++)
        if (!disk->extents[i].final)
            return true;
    return false;
}

/* Is there something that only an owner can do? */
static bool wants_owner(const struct cluster_disk *disk)
{
    if (disk->flags & (DISK_IMPORTING | DISK_TRASHED))
        return false;
    if (planted(PLANT_ABANDONED_LEFT))
        return disk->flags & DISK_MOVING;
    return (disk->flags & DISK_MOVING) || (disk->owner && has_open_extent(disk));
}

static bool is_orphan(struct host *host, const struct cluster_disk *disk, bool is_heir)
{
    if (!wants_owner(disk))
        return false;
    if (disk->owner == host->node)
        return !disk_find(host, disk->id, 0);
    return is_heir && (!disk->owner || is_gone(host, disk->owner));
}

/* The first one above `last`, or 0. */
static uint64_t next_orphan(struct host *host, uint64_t last)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk = NULL;
    bool may_inherit = is_heir(host);
    uint64_t next = 0;

    while ((disk = cluster_disk_next(state, disk)))
        if (disk->id > last && (!next || disk->id < next) &&
            is_orphan(host, disk, may_inherit))
            next = disk->id;
    return next;
}

/* It closes by itself, like any that has no clients. */
static async int adopt(struct host *host, uint64_t id)
{
    struct error err = {0};
    struct disk *disk;
    int rc = disk_acquire(host, id, 0, &disk, &err);

    if (rc == 0) {
        log_info(host->loop, "disk %s: opened, because nobody has it", disk->name);
        disk_release(disk);
    } else if (!host->many.is_stopping) {
        log_warning(host->loop, "a disk that nobody has: %s; trying again later",
                    err.code ? err.text : err_text(rc));
    }
    return rc;
}

static async void adopt_main(struct task_call *call)
{
    struct many *many = container_of(call, struct many, adopt_task);
    struct host *host = container_of(many, struct host, many);
    uint64_t id = 0;
    bool has_failed = false;

    while (!many->is_stopping && (id = next_orphan(host, id))) {
        has_failed |= adopt(host, id) < 0;
        if (!many->is_stopping)
            task_sleep_ns(ADOPT_REST_NS);
    }
    many->adopt_ns = has_failed ? min_u64(2 * many->adopt_ns, ADOPT_MAX_NS) : ADOPT_NS;
    many->is_adopting = false;
    if (!many->is_stopping)
        timer_start(host->loop, &many->adopt_timer, many->adopt_ns);
    waitlist_wake_all(&many->over);
}

static void adopt_fired(struct timer *timer)
{
    struct many *many = container_of(timer, struct many, adopt_timer);
    struct host *host = container_of(many, struct host, many);

    if (!next_orphan(host, 0)) {
        timer_start(host->loop, timer, ADOPT_NS);
        return;
    }
    many->is_adopting = true;
    many->adopt_task = (struct task_call){
        .main = adopt_main, .name = "adopt", .system = true};
    task_start(host->loop, &many->adopt_task);
}

/* --- its own store --- */

/* An import that was under way here when the process ended, or 0. */
static uint64_t next_leftover(struct host *host)
{
    const struct cluster_disk *disk = NULL;

    while ((disk = cluster_disk_next(cluster_state(host->cluster), disk)))
        if ((disk->flags & DISK_IMPORTING) && disk->owner == host->node &&
            !disk_find(host, disk->id, 0))
            return disk->id;
    return 0;
}

/* One that nobody has had in hand for long, or 0. */
static uint64_t next_abandoned(struct host *host)
{
    const struct cluster_disk *disk = NULL;
    uint64_t now_ns = loop_wall_ns(host->loop);

    while (host_leads(host) &&
           (disk = cluster_disk_next(cluster_state(host->cluster), disk)))
        if ((disk->flags & DISK_IMPORTING) &&
            (!disk->owner || is_gone(host, disk->owner)) &&
            now_ns > disk->created_wall_ns &&
            now_ns - disk->created_wall_ns >= IMPORT_ABANDONED_S * NS_PER_S)
            return disk->id;
    return 0;
}

static async int discard_imports(struct host *host)
{
    struct error err = {0};
    uint64_t id;
    int rc = 0;

    while (rc == 0 && !host->many.is_stopping &&
           ((id = next_leftover(host)) || (id = next_abandoned(host))))
        rc = disk_discard(host, id, &err);
    return rc;
}

/* What is read here is kept until that is over, though its disk is gone. */
static async int tidy_extent(struct host *host, const struct extent_info *info)
{
    bool is_gone = !cluster_disk_by_id(cluster_state(host->cluster), info->disk);

    if (is_gone && reclaim_disk_is_held(host, info->disk))
        return -EAGAIN;
    return host_tidy_extent(host, info);
}

static async int tidy_store(struct host *host)
{
    cleanup(free_ptr) struct extent_info *infos = NULL;
    size_t count;
    int rc = store_list_extents(host->store, 0, &infos, &count);

    if (rc == 0)
        rc = cluster_barrier(host->cluster);
    if (rc == 0)
        rc = discard_imports(host);
    for (size_t i = 0; rc == 0 && i < count && !host->many.is_stopping; i++) {
        rc = tidy_extent(host, &infos[i]);
        task_yield();
    }
    return rc;
}

static async void tidy_main(struct task_call *call)
{
    struct many *many = container_of(call, struct many, task);
    struct host *host = container_of(many, struct host, many);
    int rc;

    do {
        many->is_wanted = false;
        rc = tidy_store(host);
    } while (rc == 0 && many->is_wanted && !many->is_stopping);
    if (rc < 0 && !copies_may_pass(rc))
        log_warning(host->loop, "what an earlier process left: %s; trying again later",
                    err_text(rc));
    many->is_running = false;
    if (!many->is_stopping)
        timer_start(host->loop, &many->timer, rc < 0 ? RETRY_NS : AGAIN_NS);
    waitlist_wake_all(&many->over);
}

static void timer_fired(struct timer *timer)
{
    struct many *many = container_of(timer, struct many, timer);
    struct host *host = container_of(many, struct host, many);

    if (many->is_running || many->is_stopping)
        return;
    many->is_running = true;
    many->task = (struct task_call){.main = tidy_main, .name = "tidy", .system = true};
    task_start(host->loop, &many->task);
}

/* --- what others committed --- */

/* Changes whenever versions or disks take a step on their way out, or are gone. */
static uint64_t leaving(const struct host *host)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk = NULL;
    uint64_t sum = cluster_spare_count(state) + cluster_version_count(state) * 31;

    while ((disk = cluster_trash_next(state, disk)))
        sum = sum * 31 + disk->id * 64 + disk->flags;
    return sum + cluster_trash_keep_s(state);
}

static void on_apply(struct cluster_watcher *watcher)
{
    struct many *many = container_of(watcher, struct many, watcher);
    struct host *host = container_of(many, struct host, many);
    uint64_t now = leaving(host);
    uint64_t disks = cluster_disk_count(cluster_state(host->cluster));

    if (now != many->leaving)
        reclaim_wake(host);
    if (disks < many->disks) {
        many->is_wanted = true;
        if (!many->is_running)
            timer_start(host->loop, &many->timer, GATHER_NS);
    }
    many->leaving = now;
    many->disks = disks;
    host_update_reserve(host);
}

/* --- start and end --- */

void host_many_start(struct host *host)
{
    struct many *many = &host->many;

    many->timer.fire = timer_fired;
    waitlist_init(&many->over);
    if (copies_are_alone(host->copies))
        return;
    many->leaving = leaving(host);
    many->disks = cluster_disk_count(cluster_state(host->cluster));
    many->watcher.applied = on_apply;
    cluster_on_apply(host->cluster, &many->watcher);
    many->is_watching = true;
    many->adopt_timer.fire = adopt_fired;
    many->adopt_ns = ADOPT_NS;
    timer_start(host->loop, &many->timer, 0);
    timer_start(host->loop, &many->adopt_timer, ADOPT_NS);
}

async void host_many_stop(struct host *host)
{
    struct many *many = &host->many;

    many->is_stopping = true;
    timer_stop(host->loop, &many->timer);
    timer_stop(host->loop, &many->adopt_timer);
    if (many->is_watching)
        cluster_off_apply(host->cluster, &many->watcher);
    many->is_watching = false;
    while (many->is_running || many->is_adopting || many->asked > 0)
        waitlist_wait(&many->over);
}
