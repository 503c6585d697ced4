/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which version or disk goes next, and the steps around its walk: it is settled,
 * COLLAPSE_BEGIN says that it is being taken apart and against what, the walk frees
 * (reclaim_walk.c), COLLAPSE_END takes it out of the tree. A removed disk's head is
 * walked and then DISK_PURGED. After a restart what had begun is begun again from its
 * first block: what is dead already is passed over.
 *
 * What can fail: a node cannot be read, the state changed meanwhile, the store is out of
 * service. The job is left as it is and tried again later, others go on.
 *
 * The task rests while there is nothing it could do. It is woken by whoever takes a name
 * away and by a timer: for trash whose time is over, and to look again at what failed or
 * was held back.
 */
#include "cow/reclaim.h"

#include "cow/pin.h"

#define RETRY_NS     NS_PER_S
#define RETRY_MAX_NS (60 * NS_PER_S)
#define FAILED_NS    (100 * NS_PER_MS)
#define LOOK_NS      (5 * NS_PER_S)    /* while something is held back */
#define REST_MAX_NS  (3600 * NS_PER_S) /* the wall clock may be set */
#define AVOID_MAX    16U

enum job_kind { JOB_NONE, JOB_VERSION, JOB_SETTLE, JOB_DISK, JOB_RECORD };

struct job {
    enum job_kind kind;
    uint64_t id;
};

/* One look at the state and all that it finds to do. */
struct look {
    struct reclaim *reclaim;
    struct host *host;
    struct job avoided[AVOID_MAX]; /* that failed */
    uint32_t avoided_count;
    bool has_failed;
    uint64_t next_expiry_ns; /* from now; UINT64_MAX: none */
};

int reclaim_create(struct host *host)
{
    struct reclaim *r = calloc(1, sizeof *r);

    if (!r)
        return -ENOMEM;
    r->host = host;
    waitlist_init(&r->changed);
    host->reclaim = r;
    return 0;
}

void reclaim_destroy(struct host *host)
{
    assert(!host->reclaim || !host->reclaim->is_running);
    free(take(host->reclaim));
}

/* --- what is next --- */

static const struct cluster_state *state_of(const struct host *host)
{
    return cluster_state(host->cluster);
}

static bool is_avoided(const struct look *look, enum job_kind kind, uint64_t id)
{
    for (uint32_t i = 0; i < look->avoided_count; i++)
        if (look->avoided[i].kind == kind && look->avoided[i].id == id)
            return true;
    return false;
}

void reclaim_pin_head(struct host *host, struct pin *pin, uint64_t id)
{
    const struct cluster_state *state = state_of(host);
    const struct cluster_disk *disk = cluster_disk_by_id(state, id);
    const struct cluster_version *at =
        cluster_version_by_id(state, disk ? disk->head_parent : 0);

    pin_take(&host->pins, pin, PIN_HEAD, id);
    while (at && at->pending) /* its root is still to come, above the head's */
        at = cluster_version_by_id(state, at->parent);
    pin->parent = at ? at->id : 0;
}

/* A head is being read as it was. A snapshot that has come between it and the version
 * does not have all that this head has of it; after a rollback the head is a version
 * itself. Numbers of versions rise. */
static bool is_in_pinned_head(const struct host *host,
                              const struct cluster_version *version)
{
    const struct pin *pin;

    LIST_FOREACH (pin, &host->pins.taken, link)
        if (pin->kind == PIN_HEAD &&
            (version->id == pin->parent ||
             (version->disk == pin->id && version->id > pin->parent)))
            return true;
    return false;
}

/* Somebody reads it, or is about to grow something from it. */
static bool is_held(struct host *host, const struct cluster_version *version)
{
    return is_in_pinned_head(host, version) ||
           pin_is_taken(&host->pins, PIN_VERSION, version->id) ||
           pin_is_taken(&host->pins, PIN_BRANCHES, version->disk) ||
           disk_find(host, version->disk, version->id);
}

/* It will move. */
static bool is_child_held(const struct host *host, const struct cluster_version *version)
{
    const struct cluster_disk *head = cluster_head_next(version, NULL);

    return head && pin_is_taken(&host->pins, PIN_BRANCHES, head->id);
}

/* What must be written to a map first: the version itself, or its child. */
static uint64_t to_settle(const struct cluster_version *version)
{
    const struct cluster_version *child = cluster_child_next(version, NULL);

    if (version->pending)
        return version->id;
    return child && child->pending ? child->id : 0;
}

static struct job next_spare(const struct look *look, bool begun)
{
    const struct cluster_state *state = state_of(look->host);
    const struct cluster_version *version = NULL;

    while ((version = cluster_spare_next(state, version))) {
        if (version->collapsing != begun || is_avoided(look, JOB_VERSION, version->id))
            continue;
        if (is_held(look->host, version))
            continue;
        if (begun || (cluster_version_removable(state, version) &&
                      !is_child_held(look->host, version)))
            return (struct job){JOB_VERSION, version->id};
        uint64_t pending = to_settle(version);
        if (pending && !is_avoided(look, JOB_SETTLE, pending))
            return (struct job){JOB_SETTLE, pending};
    }
    return (struct job){JOB_NONE, 0};
}

/* Somebody reads its head, or one of its versions. */
static bool is_disk_held(struct host *host, uint64_t disk)
{
    const struct cluster_version *version;
    const struct pin *pin;
    struct disk *open;

    RB_FOREACH (open, disk_tree, &host->disks)
        if (open->id == disk)
            return true;
    LIST_FOREACH (pin, &host->pins.taken, link) {
        if (pin->kind != PIN_VERSION && pin->id == disk)
            return true;
        version = cluster_version_by_id(state_of(host), pin->id);
        if (pin->kind == PIN_VERSION && version && version->disk == disk)
            return true;
    }
    return false;
}

static bool has_extents(struct host *host, uint64_t disk)
{
    cleanup(free_ptr) struct extent_info *infos = NULL;
    size_t count;

    return store_list_extents(host->store, disk, &infos, &count) < 0 || count > 0;
}

static struct job next_disk(const struct look *look)
{
    const struct cluster_state *state = state_of(look->host);
    const struct cluster_disk *disk = NULL;

    while ((disk = cluster_trash_next(state, disk))) {
        if (!(disk->flags & DISK_REMOVED))
            continue;
        if (cluster_disk_purgeable(state, disk) &&
            !is_avoided(look, JOB_DISK, disk->id) &&
            !is_disk_held(look->host, disk->id))
            return (struct job){JOB_DISK, disk->id};
        if ((disk->flags & DISK_HEADLESS) && disk->version_count == 0 &&
            !is_avoided(look, JOB_RECORD, disk->id) && !has_extents(look->host, disk->id))
            return (struct job){JOB_RECORD, disk->id};
    }
    return (struct job){JOB_NONE, 0};
}

/* A version that lost its name before its map was written: nothing else would ask for
 * that checkpoint soon. */
static struct job next_pending(const struct look *look)
{
    const struct cluster_state *state = state_of(look->host);
    const struct cluster_disk *disk = NULL;
    const struct cluster_version *version;

    while ((disk = cluster_disk_next(state, disk)))
        TAILQ_FOREACH (version, &disk->pending, pending_link)
            if (!version->name[0] && version->child_count <= 1 &&
                !is_held(look->host, version) &&
                !is_avoided(look, JOB_SETTLE, version->id))
                return (struct job){JOB_SETTLE, version->id};
    return (struct job){JOB_NONE, 0};
}

static struct job next_job(const struct look *look)
{
    struct job job = next_spare(look, true);

    if (job.kind == JOB_NONE)
        job = next_disk(look);
    if (job.kind == JOB_NONE)
        job = next_spare(look, false);
    if (job.kind == JOB_NONE)
        job = next_pending(look);
    return job;
}

/* --- one job --- */

static async int submit(struct host *host, const struct cluster_command *command,
                        struct error *err)
{
    struct cluster_result result;
    int rc = cluster_submit(host->cluster, command, &result);

    if (rc < 0)
        err_set(err, rc, "%s", result.text[0] ? result.text : err_text(rc));
    return rc;
}

/* The state may have changed at each suspension: all of it is looked at again. */
static async int propose_begin(struct host *host, uint64_t id, uint64_t head_id,
                               struct error *err)
{
    const struct cluster_state *state = state_of(host);
    const struct cluster_version *version = cluster_version_by_id(state, id);
    const struct cluster_disk *head =
        version ? cluster_head_next(version, NULL) : NULL;
    struct cluster_command command = {.op = CLUSTER_COLLAPSE_BEGIN, .version = id};

    if (!version || !cluster_version_removable(state, version) ||
        is_held(host, version) || is_child_held(host, version) ||
        (head ? head->id : 0) != head_id)
        return err_set(err, -PLX_EPRECONDITION, "it is needed again");
    if (head) {
        command.disk = head->id;
        command.epoch = head->epoch;
        command.number = head->checkpoint.number;
    }
    return submit(host, &command, err);
}

/* No checkpoint of the head may be under way: it would free by the bound of before what
 * the walk finds by the new one, or neither would. */
static async int begin(struct host *host, uint64_t id, struct error *err)
{
    const struct cluster_version *version = cluster_version_by_id(state_of(host), id);
    const struct cluster_disk *head = cluster_head_next(version, NULL);
    uint64_t head_id = head ? head->id : 0;
    struct disk *open;
    int rc;

    while ((open = disk_find(host, head_id, 0)) && open->state != DISK_OPEN)
        waitlist_wait(&host->disks_changed);
    if (!open)
        return propose_begin(host, id, head_id, err);
    rc = disk_acquire(host, head_id, 0, &open, err);
    if (rc < 0)
        return rc;
    mutex_lock(&open->checkpoint_lock);
    rc = propose_begin(host, id, head_id, err);
    mutex_unlock(&open->checkpoint_lock);
    disk_release(open);
    return rc;
}

static async int collapse(struct host *host, uint64_t id, struct error *err)
{
    const struct cluster_version *version = cluster_version_by_id(state_of(host), id);
    struct cluster_command command = {.op = CLUSTER_COLLAPSE_END, .version = id};
    int rc = version->collapsing ? 0 : begin(host, id, err);

    /* Somebody may have come while the command was under way. */
    version = cluster_version_by_id(state_of(host), id);
    if (rc == 0 && is_held(host, version))
        rc = err_set(err, -EAGAIN, "it is being read");
    if (rc == 0)
        rc = reclaim_version(host, id, err);
    return rc == 0 ? submit(host, &command, err) : rc;
}

static async int purge(struct host *host, uint64_t id, struct error *err)
{
    const struct cluster_disk *disk = cluster_disk_by_id(state_of(host), id);
    struct cluster_command command = {.op = CLUSTER_DISK_PURGED, .disk = id};
    bool is_shared = disk->flags & DISK_SHARED;
    int rc = 0;

    if (is_shared) {
        disk_tidy_closed(host, id);
        disk = cluster_disk_by_id(state_of(host), id);
        if (!disk || disk->list_count > 0)
            return err_set(err, -EAGAIN, "lists of dead blocks are left");
        rc = reclaim_head(host, id, err);
    }
    if (rc == 0)
        rc = submit(host, &command, err);
    if (rc < 0 || is_shared)
        return rc;
    /* Nobody else reaches anything in them. A crash before leaves extents of a disk that
     * is not known, which the next start deletes. */
    rc = host_drop_extents(host, id);
    return rc < 0 ? err_set(err, rc, "%s", err_text(rc)) : 0;
}

static async int run(struct host *host, struct job job, struct error *err)
{
    struct cluster_command command = {.op = CLUSTER_DISK_PURGED, .disk = job.id};

    switch (job.kind) {
    case JOB_VERSION:
        return collapse(host, job.id, err);
    case JOB_SETTLE:
        return version_settle(host, job.id, err);
    case JOB_DISK:
        return purge(host, job.id, err);
    case JOB_RECORD:
        return submit(host, &command, err);
    case JOB_NONE:
        break;
    }
    return 0;
}

/* True for what a moment later would have gone well. */
static bool is_race(int code)
{
    return code == -PLX_EPRECONDITION || code == -PLX_EEPOCH || code == -PLX_ECANCELLED ||
           code == -EAGAIN;
}

static void avoid(struct look *look, struct job job, int code, const struct error *err)
{
    static const char *const words[] = {
        [JOB_VERSION] = "version", [JOB_SETTLE] = "version", [JOB_DISK] = "disk",
        [JOB_RECORD] = "disk", [JOB_NONE] = "",
    };

    look->reclaim->is_out = code == -PLX_EFAILED;
    if (!is_race(code))
        log_warning(look->host->loop, "reclaim of %s %llu: %s, trying again later",
                    words[job.kind], (unsigned long long)job.id, err->text);
    look->has_failed = true;
    look->avoided[look->avoided_count++] = job;
}

/* --- trash --- */

static async void remove_for_good(struct look *look, uint64_t id)
{
    struct cluster_command command = {.op = CLUSTER_DISK_REMOVE, .disk = id};
    struct error err = {0};
    int rc = submit(look->host, &command, &err);

    if (rc < 0 && !is_race(rc)) {
        log_warning(look->host->loop, "trash: %s", err.text);
        look->has_failed = true;
    }
}

/* The oldest restorable disk; its time is over in *ret_left_ns, 0: it is. */
static uint64_t oldest_trash(const struct host *host, uint64_t *ret_left_ns)
{
    const struct cluster_state *state = state_of(host);
    const struct cluster_disk *disk = NULL, *oldest = NULL;
    uint64_t keep_ns = cluster_trash_keep_s(state) * NS_PER_S;
    uint64_t now_ns = loop_wall_ns(host->loop);

    while ((disk = cluster_trash_next(state, disk)))
        if (!(disk->flags & DISK_REMOVED) &&
            (!oldest || disk->trashed_wall_ns < oldest->trashed_wall_ns))
            oldest = disk;
    if (!oldest)
        return 0;
    uint64_t age_ns = now_ns - min_u64(oldest->trashed_wall_ns, now_ns);
    *ret_left_ns = keep_ns - min_u64(keep_ns, age_ns);
    return oldest->id;
}

static async void expire_trash(struct look *look)
{
    struct reclaim *r = look->reclaim;
    uint64_t left_ns, id, last = 0;

    look->next_expiry_ns = UINT64_MAX;
    while ((id = oldest_trash(look->host, &left_ns)) && !r->is_stopping) {
        if (left_ns > 0 && !r->empty_trash) {
            look->next_expiry_ns = left_ns;
            break;
        }
        if (id == last) /* refused */
            break;
        if (left_ns > 0)
            log_warning(look->host->loop, "the store is full: emptying the trash");
        r->empty_trash = false;
        last = id;
        remove_for_good(look, id);
    }
    r->empty_trash = false;
}

/* --- the task --- */

static async void look_once(struct look *look)
{
    struct reclaim *r = look->reclaim;

    if (!r->is_out)
        expire_trash(look);
    while (look->avoided_count < AVOID_MAX && !r->is_out &&
           reclaim_pause(look->host) == 0) {
        struct error err = {0};
        struct job job = next_job(look);
        if (job.kind == JOB_NONE)
            break;
        r->job = job.id;
        trace(look->host->loop, "reclaim", (uint64_t)job.kind, job.id, 0);
        int rc = run(look->host, job, &err);
        trace(look->host->loop, "reclaim done", (uint64_t)job.kind, job.id,
              (uint64_t)-rc);
        r->job = 0;
        if (rc < 0)
            avoid(look, job, rc, &err);
        if (r->empty_trash)
            expire_trash(look);
    }
    host_tidy_soon(look->host); /* lists that waited for a collapse */
}

static uint64_t rest_ns(const struct look *look)
{
    struct reclaim *r = look->reclaim;
    uint64_t ns = min_u64(look->next_expiry_ns, REST_MAX_NS);

    r->failures = look->has_failed ? r->failures + 1 : 0;
    if (r->is_out)
        return REST_MAX_NS;
    if (look->has_failed)
        ns = min_u64(ns, min_u64(RETRY_NS << min_u32(r->failures - 1, 6), RETRY_MAX_NS));
    else if (reclaim_pending(r->host) > 0)
        ns = min_u64(ns, LOOK_NS);
    return ns;
}

static void timer_fired(struct timer *timer)
{
    reclaim_wake(container_of(timer, struct reclaim, timer)->host);
}

static async void reclaim_main(struct task_call *call)
{
    struct reclaim *r = container_of(call, struct reclaim, task);

    while (!r->is_stopping) {
        struct look look = {.reclaim = r, .host = r->host};
        r->woken = false;
        r->turn_ns = loop_wall_ns(r->host->loop);
        look_once(&look);
        r->at_rest = true;
        waitlist_wake_all(&r->changed);
        r->timer.fire = timer_fired;
        timer_start(r->host->loop, &r->timer, rest_ns(&look));
        if (look.has_failed) /* whoever wakes it */
            task_sleep_ns(FAILED_NS);
        while (!r->woken && !r->is_stopping)
            waitlist_wait(&r->changed);
        timer_stop(r->host->loop, &r->timer);
        r->at_rest = false;
    }
    r->is_running = false;
    waitlist_wake_all(&r->changed);
}

void reclaim_start(struct host *host)
{
    struct reclaim *r = host->reclaim;

    r->is_running = true;
    r->task = (struct task_call){
        .main = reclaim_main, .name = "reclaim", .system = true,
    };
    task_start(host->loop, &r->task);
}

async void reclaim_stop(struct host *host)
{
    struct reclaim *r = host->reclaim;

    r->is_stopping = true;
    waitlist_wake_all(&r->changed);
    while (r->is_running)
        waitlist_wait(&r->changed);
}

void reclaim_wake(struct host *host)
{
    struct reclaim *r = host->reclaim;

    r->woken = true;
    waitlist_wake_all(&r->changed);
}

async void reclaim_hold(struct host *host)
{
    struct reclaim *r = host->reclaim;

    r->holds++;
    while (r->is_running && !r->at_rest)
        waitlist_wait(&r->changed);
}

void reclaim_release(struct host *host)
{
    struct reclaim *r = host->reclaim;

    assert(r->holds > 0);
    r->holds--;
    reclaim_wake(host);
}

uint64_t reclaim_pending(const struct host *host)
{
    const struct cluster_state *state = state_of(host);
    const struct cluster_disk *disk = NULL;
    uint64_t count = cluster_spare_count(state);

    while ((disk = cluster_trash_next(state, disk)))
        count += (disk->flags & DISK_REMOVED) && !(disk->flags & DISK_HEADLESS);
    return count;
}

bool reclaim_space_coming(struct host *host)
{
    struct reclaim *r = host->reclaim;
    uint64_t left_ns;

    if (r->is_stopping || r->holds > 0)
        return false;
    if (oldest_trash(host, &left_ns)) {
        r->empty_trash = true;
        reclaim_wake(host);
        return true;
    }
    if (r->at_rest && r->woken)
        return true;
    return !r->at_rest;
}
