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
#define FAILED_NS    (100 * NS_PER_MS) /* whoever wakes it */
#define LOOK_NS      (5 * NS_PER_S)    /* while something is held back */
#define REST_MAX_NS  (3600 * NS_PER_S) /* the wall clock may be set */
#define AVOID_MAX    16U

/* Looking at the state until there is nothing to do. */
struct look {
    struct reclaim *reclaim;
    struct host *host;
    struct reclaim_job avoided[AVOID_MAX]; /* that failed */
    uint32_t avoided_count;
    bool has_failed;
    uint32_t records_asked;
    uint64_t next_expiry_ns; /* from now; UINT64_MAX: none */
};

/* Whether all nodes are rid of a disk is asked for so many at a time, and so often. */
#define RECORDS_A_LOOK 4U
#define RECORDS_NS     (300 * NS_PER_S)
#define MANY_LOOK_NS   (10 * NS_PER_S) /* who leads, or owns a disk, may change */

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

static bool is_at_work(const struct look *look, enum reclaim_kind kind, uint64_t id)
{
    const struct reclaim_slot *slots = look->reclaim->slots;

    for (uint32_t i = 0; i < RECLAIM_AT_ONCE; i++)
        if (slots[i].job.kind == kind && (slots[i].job.id == id || id == 0))
            return true;
    return false;
}

static bool is_avoided(const struct look *look, enum reclaim_kind kind, uint64_t id)
{
    if (is_at_work(look, kind, id))
        return true;
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

/* Somebody reads it. */
static bool is_held(struct host *host, const struct cluster_version *version)
{
    return is_in_pinned_head(host, version) ||
           pin_is_taken(&host->pins, PIN_VERSION, version->id) ||
           (!planted(PLANT_TRIM_WHILE_READ) &&
            disk_find(host, version->disk, version->id));
}

bool reclaim_version_is_held(struct host *host, uint64_t id)
{
    const struct cluster_version *version = cluster_version_by_id(state_of(host), id);

    return pin_is_taken(&host->pins, PIN_VERSION, id) ||
           (version && is_held(host, version));
}

/* None of a head's lists is trimmed until the collapse ends. */
static bool lists_pile_up(struct host *host, const struct cluster_disk *head)
{
    const struct disk *open = disk_find(host, head->id, 0);
    uint32_t left = open && open->log ? trimmer_lists_left(open) : head->list_count;

    return left >= LISTS_MAX / 2;
}

/* Somebody is about to grow something from it, or waits to move the head that is its
 * child. One that has begun goes on: he may wait for its end. */
static bool may_begin(struct host *host, const struct cluster_version *version)
{
    const struct cluster_disk *head = cluster_head_next(version, NULL);

    return cluster_version_removable(state_of(host), version) &&
           !(head && lists_pile_up(host, head)) &&
           !pin_is_taken(&host->pins, PIN_BRANCHES, version->disk) &&
           !(head && pin_is_taken(&host->pins, PIN_BRANCHES, head->id));
}

/* Neighbours do not go together; what is at work may not have begun yet. */
static bool neighbour_at_work(const struct look *look,
                              const struct cluster_version *version)
{
    const struct cluster_version *child = cluster_child_next(version, NULL);

    return (version->parent && is_at_work(look, RECLAIM_VERSION, version->parent)) ||
           (child && is_at_work(look, RECLAIM_VERSION, child->id));
}

static bool is_disk_ours(const struct host *host, uint64_t id)
{
    const struct cluster_disk *disk = cluster_disk_by_id(state_of(host), id);

    return disk && host_answers_for(host, disk);
}

/* Writes the map of a version, one at a time. Not of a disk whose lists pile up: its
 * checkpoint would wait until they are trimmed. */
static bool may_settle(const struct look *look, const struct cluster_version *version)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(state_of(look->host), version->disk);

    return version->pending && is_disk_ours(look->host, version->disk) &&
           disk->list_count < LISTS_MAX / 2 &&
           !is_at_work(look, RECLAIM_SETTLE, 0) &&
           !is_avoided(look, RECLAIM_SETTLE, version->id);
}

/* Whose work it is: that of the owner of the disk whose head it goes into, since no
 * checkpoint of that may be under way, else of its own disk's owner, who may have to put
 * blocks of it on a list; else the leader's. If both disks are owned, by different nodes,
 * it waits, unless it has begun. */
static bool is_ours(const struct host *host, const struct cluster_version *version)
{
    const struct cluster_disk *own = cluster_disk_by_id(state_of(host), version->disk);
    const struct cluster_disk *head = cluster_head_next(version, NULL);
    uint64_t head_owner = head ? head->owner : 0, owner = own ? own->owner : 0;

    if (head_owner && owner && owner != head_owner && !version->collapsing)
        return false;
    if (head_owner || owner)
        return (head_owner ? head_owner : owner) == host->node;
    return host_leads(host);
}

static struct reclaim_job next_spare(const struct look *look, bool begun)
{
    const struct cluster_state *state = state_of(look->host);
    const struct cluster_version *version = NULL;

    while ((version = cluster_spare_next(state, version))) {
        if (version->collapsing != begun || is_held(look->host, version) ||
            is_avoided(look, RECLAIM_VERSION, version->id))
            continue;
        if (is_ours(look->host, version) &&
            (begun || (may_begin(look->host, version) &&
                       !neighbour_at_work(look, version))))
            return (struct reclaim_job){RECLAIM_VERSION, version->id};
        const struct cluster_version *child = cluster_child_next(version, NULL);
        if (child && may_settle(look, child))
            return (struct reclaim_job){RECLAIM_SETTLE, child->id};
    }
    return (struct reclaim_job){RECLAIM_NOTHING, 0};
}

/* Somebody reads its head, or one of its versions. */
bool reclaim_disk_is_held(struct host *host, uint64_t disk)
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

/* Nothing is left of it but its record, as far as this node's store tells. */
static bool may_ask_record(const struct look *look, const struct cluster_disk *disk)
{
    const struct reclaim *r = look->reclaim;

    if (!(disk->flags & DISK_HEADLESS) || disk->version_count > 0 ||
        is_avoided(look, RECLAIM_RECORD, disk->id) || has_extents(look->host, disk->id))
        return false;
    return copies_are_alone(look->host->copies) ||
           (look->records_asked < RECORDS_A_LOOK && disk->id > r->record_last &&
            loop_now_ns(look->host->loop) >= r->record_ns);
}

static struct reclaim_job next_disk(const struct look *look)
{
    const struct cluster_state *state = state_of(look->host);
    const struct cluster_disk *disk = NULL;

    if (!host_leads(look->host))
        return (struct reclaim_job){RECLAIM_NOTHING, 0};
    while ((disk = cluster_trash_next(state, disk))) {
        if (!(disk->flags & DISK_REMOVED))
            continue;
        if (cluster_disk_purgeable(state, disk) &&
            !is_avoided(look, RECLAIM_DISK, disk->id) &&
            !reclaim_disk_is_held(look->host, disk->id))
            return (struct reclaim_job){RECLAIM_DISK, disk->id};
        if (may_ask_record(look, disk))
            return (struct reclaim_job){RECLAIM_RECORD, disk->id};
    }
    return (struct reclaim_job){RECLAIM_NOTHING, 0};
}

/* A version that lost its name before its map was written: nothing else would ask for
 * that checkpoint soon. */
static struct reclaim_job next_pending(const struct look *look)
{
    const struct cluster_state *state = state_of(look->host);
    const struct cluster_disk *disk = NULL;
    const struct cluster_version *version;

    while ((disk = cluster_disk_next(state, disk)))
        TAILQ_FOREACH (version, &disk->pending, pending_link)
            if (!version->name[0] && version->child_count <= 1 &&
                !pin_is_taken(&look->host->pins, PIN_BRANCHES, disk->id) &&
                !is_held(look->host, version) && may_settle(look, version))
                return (struct reclaim_job){RECLAIM_SETTLE, version->id};
    return (struct reclaim_job){RECLAIM_NOTHING, 0};
}

static struct reclaim_job next_job(const struct look *look)
{
    struct reclaim_job job = next_spare(look, true);

    if (job.kind == RECLAIM_NOTHING)
        job = next_disk(look);
    if (job.kind == RECLAIM_NOTHING)
        job = next_spare(look, false);
    if (job.kind == RECLAIM_NOTHING)
        job = next_pending(look);
    return job;
}

/* --- one job --- */

/* What is begun may not begin later, when nobody holds what it must not meet. */
static async int submit(struct host *host, const struct cluster_command *command,
                        struct error *err)
{
    struct cluster_result result;
    int rc = cluster_submit_known(host->cluster, command, &host->is_stopping, &result);

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

    if (!version || !may_begin(host, version) || is_held(host, version) ||
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

/* A version goes, maybe under a head that is being read. What that head has of the next
 * one above is from now on between that one and snapshots made since. */
static void pins_move_up(struct host *host, uint64_t id)
{
    const struct cluster_version *version = cluster_version_by_id(state_of(host), id);
    struct pin *pin;

    LIST_FOREACH (pin, &host->pins.taken, link)
        if (pin->kind == PIN_HEAD && pin->parent == id && version)
            pin->parent = version->parent;
}

static async int collapse(struct host *host, uint64_t id, struct error *err)
{
    const struct cluster_version *version = cluster_version_by_id(state_of(host), id);
    struct cluster_command command = {.op = CLUSTER_COLLAPSE_END, .version = id};
    int rc = reclaim_ask_others(host, version->disk, id, err);

    version = cluster_version_by_id(state_of(host), id);
    if (rc == 0 && version && !version->collapsing)
        rc = begin(host, id, err);
    /* Somebody may have come while the command was under way. */
    version = cluster_version_by_id(state_of(host), id);
    if (rc == 0 && !version)
        return 0; /* its disk was purged */
    if (rc == 0 && is_held(host, version))
        rc = err_set(err, -EAGAIN, "it is being read");
    if (rc == 0)
        rc = reclaim_version(host, id, err);
    if (rc < 0)
        return rc;
    pins_move_up(host, id);
    return submit(host, &command, err);
}

/* Somebody came to the disk, or to one of its versions, while the command that took both
 * away was under way. */
static bool has_late_reader(struct host *host, uint64_t disk)
{
    const struct pin *pin;

    LIST_FOREACH (pin, &host->pins.taken, link)
        if (pin->kind == PIN_VERSION && pin->id != 0 &&
            !cluster_version_by_id(state_of(host), pin->id))
            return true;
    return reclaim_disk_is_held(host, disk);
}

/* Nobody else reaches anything in the extents of a disk without shares. What is not
 * deleted is of a disk that is not known: the next start deletes it. */
static async int drop_purged(struct host *host, uint64_t id, struct error *err)
{
    while (has_late_reader(host, id)) {
        if (host->reclaim->is_stopping)
            return 0;
        task_sleep_ns(FAILED_NS);
    }
    int rc = host_drop_extents(host, id);
    return rc < 0 ? err_set(err, rc, "%s", err_text(rc)) : 0;
}

static async int purge(struct host *host, uint64_t id, struct error *err)
{
    const struct cluster_disk *disk = cluster_disk_by_id(state_of(host), id);
    struct cluster_command command = {.op = CLUSTER_DISK_PURGED, .disk = id};
    bool is_shared = disk->flags & DISK_SHARED;
    int rc = reclaim_ask_others(host, id, 0, err);

    if (rc < 0)
        return rc;
    if (is_shared) {
        if (cluster_disk_by_id(state_of(host), id))
            disk_tidy_closed(host, id);
        disk = cluster_disk_by_id(state_of(host), id);
        if (!disk || disk->list_count > 0)
            return err_set(err, -EAGAIN, "lists of dead blocks are left");
        rc = reclaim_head(host, id, err);
    }
    if (rc == 0)
        rc = submit(host, &command, err);
    return rc < 0 || is_shared ? rc : drop_purged(host, id, err);
}

/* Others may reach into its extents as long as there are any, on whatever node. */
static async int drop_record(struct host *host, uint64_t id, struct error *err)
{
    struct cluster_command command = {.op = CLUSTER_DISK_PURGED, .disk = id};
    struct extent_info *infos = NULL;
    size_t count = 0;
    bool complete = true;
    int rc = 0;

    if (!copies_are_alone(host->copies))
        rc = copies_list(host->copies, id, &infos, &count, &complete);
    free(infos);
    if (rc < 0)
        return err_set(err, rc, "%s", err_text(rc));
    if (count > 0 || !complete)
        return err_set(err, -EAGAIN, "%s", complete ? "extents are left"
                                                    : "not all nodes could be asked");
    return submit(host, &command, err);
}

static bool is_gone(const struct host *host, struct reclaim_job job)
{
    return job.kind == RECLAIM_VERSION || job.kind == RECLAIM_SETTLE
               ? !cluster_version_by_id(state_of(host), job.id)
               : !cluster_disk_by_id(state_of(host), job.id);
}

static async int run(struct host *host, struct reclaim_job job, struct error *err)
{
    if (is_gone(host, job)) /* between its choice and the start of this task */
        return 0;
    switch (job.kind) {
    case RECLAIM_VERSION:
        return collapse(host, job.id, err);
    case RECLAIM_SETTLE:
        return version_settle(host, job.id, err);
    case RECLAIM_DISK:
        return purge(host, job.id, err);
    case RECLAIM_RECORD:
        return drop_record(host, job.id, err);
    case RECLAIM_NOTHING:
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

static void avoid(struct look *look, const struct reclaim_slot *slot)
{
    struct reclaim_job job = slot->job;
    bool is_version = job.kind == RECLAIM_VERSION || job.kind == RECLAIM_SETTLE;

    bool is_waiting = job.kind == RECLAIM_RECORD && slot->result == -EAGAIN;

    look->reclaim->is_out |= slot->result == -PLX_EFAILED;
    if (!is_race(slot->result) && !is_gone(look->host, job))
        log_warning(look->host->loop, "reclaim of %s %llu: %s, trying again later",
                    is_version ? "version" : "disk", (unsigned long long)job.id,
                    slot->err.text);
    look->has_failed |= !is_waiting;
    if (look->avoided_count < AVOID_MAX)
        look->avoided[look->avoided_count++] = job;
}

/* --- trash --- */

static async void remove_for_good(struct look *look, uint64_t id)
{
    struct cluster_command command = {.op = CLUSTER_DISK_REMOVE, .disk = id};
    struct error err = {0};
    int rc = submit(look->host, &command, &err);

    /* Refused: somebody else did it. */
    if (cluster_outcome_is_unknown(rc) || rc == -PLX_ENOLEADER)
        look->has_failed = true;
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

/* The oldest that has data of its own; NULL: none. */
static const struct cluster_disk *oldest_with_data(const struct host *host)
{
    cleanup(free_ptr) struct extent_info *infos = NULL;
    const struct cluster_disk *oldest = NULL;
    size_t count;

    if (store_list_extents(host->store, 0, &infos, &count) < 0)
        return NULL; /* no memory: the next look tells */
    for (size_t i = 0; i < count; i++) {
        const struct cluster_disk *disk =
            infos[i].live > 0 ? cluster_disk_by_id(state_of(host), infos[i].disk) : NULL;
        if (disk && (disk->flags & (DISK_TRASHED | DISK_REMOVED)) == DISK_TRASHED &&
            (!oldest || disk->trashed_wall_ns < oldest->trashed_wall_ns))
            oldest = disk;
    }
    return oldest;
}

/* Guests wait for space: one disk goes before its time. */
static async void empty_trash(struct look *look)
{
    struct host *host = look->host;
    const struct cluster_disk *disk = oldest_with_data(host);
    char name[DISK_NAME_MAX + 1];
    uint64_t id;

    if (!disk)
        return;
    id = disk->id;
    snprintf(name, sizeof name, "%s", disk->trash_name);
    remove_for_good(look, id);
    disk = cluster_disk_by_id(state_of(host), id);
    if (!disk || (disk->flags & DISK_REMOVED))
        log_warning(host->loop, "the store is full: disk %s in the trash went for good",
                    name);
}

static async void expire_trash(struct look *look)
{
    struct reclaim *r = look->reclaim;
    uint64_t left_ns, id, last = 0;

    if (r->empty_trash)
        empty_trash(look);
    r->empty_trash = false;
    look->next_expiry_ns = UINT64_MAX;
    while (host_leads(look->host) && !r->is_stopping &&
           (id = oldest_trash(look->host, &left_ns))) {
        if (left_ns > 0) {
            look->next_expiry_ns = left_ns;
            break;
        }
        if (id == last) /* refused */
            break;
        last = id;
        remove_for_good(look, id);
    }
}

/* --- the task --- */

static async void slot_main(struct task_call *call)
{
    struct reclaim_slot *slot = container_of(call, struct reclaim_slot, task);
    struct reclaim *r = slot->reclaim;
    struct loop *loop = r->host->loop;

    trace(loop, "reclaim", (uint64_t)slot->job.kind, slot->job.id, 0);
    slot->result = run(r->host, slot->job, &slot->err);
    trace(loop, "reclaim done", (uint64_t)slot->job.kind, slot->job.id,
          (uint64_t)-slot->result);
    slot->is_done = true;
    r->active--;
    waitlist_wake_all(&r->changed);
}

static void slot_start(struct reclaim *r, struct reclaim_slot *slot,
                       struct reclaim_job job)
{
    *slot = (struct reclaim_slot){
        .reclaim = r,
        .job = job,
        .task = {.main = slot_main, .name = "reclaim job", .system = true},
    };
    r->active++;
    task_start(r->host->loop, &slot->task);
}

/* Takes in what is done. A free slot, or NULL; *ret_busy: how many are not. */
static struct reclaim_slot *slots_look(struct look *look, uint32_t *ret_busy)
{
    struct reclaim_slot *found = NULL;

    *ret_busy = 0;
    for (uint32_t i = 0; i < RECLAIM_AT_ONCE; i++) {
        struct reclaim_slot *slot = &look->reclaim->slots[i];
        if (slot->is_done) {
            if (slot->result < 0)
                avoid(look, slot);
            *slot = (struct reclaim_slot){.reclaim = look->reclaim};
        }
        if (slot->job.kind == RECLAIM_NOTHING)
            found = slot;
        else
            ++*ret_busy;
    }
    return found;
}

/* The next look goes on behind the last one that was asked for; after that, not so soon
 * again. */
static void records_asked(struct look *look)
{
    struct reclaim *r = look->reclaim;

    if (r->record_last == 0 || look->records_asked == RECORDS_A_LOOK)
        return;
    r->record_last = 0;
    r->record_ns = loop_now_ns(look->host->loop) + RECORDS_NS;
}

static async void look_around(struct look *look)
{
    struct reclaim *r = look->reclaim;

    if (!r->is_out)
        expire_trash(look);
    for (;;) {
        uint32_t busy;
        struct reclaim_slot *slot = slots_look(look, &busy);
        struct reclaim_job job = {RECLAIM_NOTHING, 0};
        bool may_start = slot && r->holds == 0 && !r->is_stopping && !r->is_out &&
                         look->avoided_count < AVOID_MAX;
        if (may_start)
            job = next_job(look);
        if (job.kind == RECLAIM_RECORD) {
            look->records_asked++;
            r->record_last = job.id;
        }
        if (job.kind != RECLAIM_NOTHING)
            slot_start(r, slot, job);
        else if (busy == 0)
            break;
        else
            waitlist_wait(&r->changed);
        if (r->empty_trash && !r->is_out)
            expire_trash(look);
    }
    records_asked(look);
    if (!r->is_stopping)
        host_tidy_soon(look->host); /* lists that waited for a collapse */
}

static uint64_t rest_ns(const struct look *look)
{
    struct reclaim *r = look->reclaim;
    uint64_t ns = min_u64(look->next_expiry_ns, REST_MAX_NS);

    if (!copies_are_alone(r->host->copies))
        ns = min_u64(ns, MANY_LOOK_NS);
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
        r->woken = r->is_resting = false;
        look_around(&look);
        r->is_resting = true;
        r->timer.fire = timer_fired;
        timer_start(r->host->loop, &r->timer, rest_ns(&look));
        if (look.has_failed && !r->is_stopping)
            task_sleep_ns(FAILED_NS);
        while (!r->woken && !r->is_stopping)
            waitlist_wait(&r->changed);
        timer_stop(r->host->loop, &r->timer);
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
    while (r->active > 0)
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

    if (r->is_stopping || r->holds > 0)
        return false;
    if (r->woken || !r->is_resting)
        return true;
    if (!oldest_with_data(host))
        return false;
    r->empty_trash = true;
    reclaim_wake(host);
    return true;
}

bool reclaim_is_busy(const struct host *host)
{
    return host->reclaim->active > 0;
}
