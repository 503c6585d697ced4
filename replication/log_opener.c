/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The opener makes extents ahead of need.
 *
 * Happy path: EXTENT_OPEN is committed, with the lengths decided since, and then all
 * members create the extents at once, before the log needs them. If nothing is to be
 * opened but somebody waits for a length the command opens none.
 *
 * What can fail: a create (no space, a broken store, a silent member). The extent then
 * ends at length 0, its member is avoided, and the next one is tried at once. The state
 * has moved on since the members were chosen: they are chosen again. Without space, and
 * nobody else to ask, the queued records fail; for what must find room (it was
 * acknowledged, or some member has it already, or it is a checkpoint's) one is made of
 * the stores' reserve, to which nothing else is written. Too few members, or a cluster
 * that takes no commands: the opener goes on trying, and writes wait, for the lease may
 * still be this log's; only a log with a single member gives up after some tries. If the
 * epoch is over it gives up at once.
 *
 * On close it ends first. A create that a member still owes an answer for is left to
 * itself: nobody will use that extent.
 */
#include "replication/disk_log_internal.h"

/* --- creating --- */

struct create_call {
    struct task_call call;
    struct creation *creation;
    struct replica *member;
    bool was_avoided; /* there was no other */
    bool is_done;
    int result;
};

/* Belongs to its tasks and the opener, the last one frees it. */
struct creation {
    struct disk_log *log; /* NULL: it is gone, or has gone on */
    struct tail_extent *tail;
    struct replica_create what;
    uint32_t users, count;
    struct create_call calls[REPLICAS_MAX];
    LIST_ENTRY(creation) link;
};

static void creation_put(struct creation *creation)
{
    if (--creation->users == 0)
        free(creation);
}

static void create_main(struct task_call *call)
{
    struct create_call *mine = container_of(call, struct create_call, call);
    struct creation *creation = mine->creation;
    mine->result = mine->member->ops->create(mine->member, &creation->what);
    mine->is_done = true;
    struct disk_log *log = creation->log;
    if (log != NULL) {
        assert(creation->tail->ops > 0);
        if (--creation->tail->ops == 0)
            log->wants_cleaning = true;
        log_kick(log);
    }
    if (log != NULL && creation->users == 1) {
        LIST_REMOVE(creation, link);
        creation->log = NULL;
    }
    creation_put(creation);
}

static struct creation *creation_start(struct disk_log *log, struct tail_extent *tail,
                                       const struct replica_create *what)
{
    struct creation *creation = calloc(1, sizeof *creation);
    if (creation == NULL)
        return NULL;
    *creation = (struct creation){.log = log,
                                  .tail = tail,
                                  .what = *what,
                                  .users = tail->member_count + 1,
                                  .count = tail->member_count};
    LIST_INSERT_HEAD(&log->creations, creation, link);
    tail->ops += tail->member_count;
    for (uint32_t i = 0; i < tail->member_count; i++) {
        struct create_call *call = &creation->calls[i];
        call->creation = creation;
        call->member = tail->members[i];
        call->was_avoided = log_is_avoided(log, call->member->node);
        call->call = (struct task_call){
            .main = create_main, .name = "log create", .system = true};
        task_start(log->loop, &call->call);
    }
    return creation;
}

/* One failure is enough; so is one that was seen elsewhere meanwhile. */
static bool creation_is_over(struct creation *creation, int *ret_code)
{
    struct disk_log *log = creation->log;
    struct tail_extent *tail = creation->tail;
    uint32_t done = 0;
    *ret_code = log->down;
    for (uint32_t i = 0; *ret_code == 0 && i < creation->count; i++) {
        const struct create_call *call = &creation->calls[i];
        done += call->is_done;
        if (call->is_done && call->result != 0) {
            log_member_failed(tail, i, call->result);
            *ret_code = call->result;
        } else if (!call->was_avoided && log_is_avoided(log, call->member->node)) {
            *ret_code = -ECANCELED;
        }
    }
    return *ret_code != 0 || done == creation->count;
}

static async int create_on_members(struct tail_extent *tail, uint64_t index)
{
    struct disk_log *log = tail->log;
    struct replica_create what = {.extent = tail->extent,
                                  .disk = log->disk,
                                  .epoch = tail->epoch,
                                  .nonce = tail->nonce,
                                  .slabs_hint = log->slabs_hint,
                                  .keep_reserve = tail->member_count > 1 &&
                                                  !tail->is_reserve,
                                  .index = index,
                                  .limit_ns = LOG_CREATE_LIMIT_MS * NS_PER_MS};
    if (tail->member_count == 1) { /* no need for a task */
        struct replica *member = tail->members[0];
        int rc = member->ops->create(member, &what);
        if (rc != 0)
            log_member_failed(tail, 0, rc);
        return rc;
    }
    struct creation *creation = creation_start(log, tail, &what);
    if (creation == NULL)
        return -ENOMEM;
    int rc;
    while (!creation_is_over(creation, &rc))
        waitlist_wait(&log->changed);
    if (creation->users == 1) {
        LIST_REMOVE(creation, link);
        creation->log = NULL;
    }
    creation_put(creation);
    return rc;
}

void log_creations_leave(struct disk_log *log)
{
    struct creation *creation;
    while ((creation = LIST_FIRST(&log->creations)) != NULL) {
        LIST_REMOVE(creation, link);
        creation->log = NULL;
        for (uint32_t i = 0; i < creation->count; i++)
            creation->tail->ops -= !creation->calls[i].is_done;
    }
}

bool log_creates_here(const struct disk_log *log)
{
    const struct creation *creation;
    LIST_FOREACH (creation, &log->creations, link) {
        for (uint32_t i = 0; i < creation->count; i++) {
            const struct create_call *call = &creation->calls[i];
            if (!call->is_done && call->member->node == log->node)
                return true;
        }
    }
    return false;
}

/* --- opening --- */

/* The extents that the command opened, listed from now on, whatever becomes of them. */
static int add_opened(struct disk_log *log, struct address first, uint32_t count,
                      const struct chosen *chosen)
{
    for (uint32_t i = 0; i < count; i++) {
        struct address extent = {first.v + (uint64_t)i * EXTENT_BLOCKS};
        struct tail_extent *tail = tail_create(log, extent, log->epoch);
        if (tail == NULL) {
            log->is_unsure = true;
            return -ENOMEM;
        }
        tail->nonce = loop_random_u64(log->loop);
        tail->is_reserve = log->wants_reserve;
        tail->group_epoch = chosen->group_epoch;
        tail->member_count = chosen->count;
        memcpy(tail->members, chosen->members, sizeof tail->members);
    }
    return 0;
}

static async int create_opened(struct disk_log *log, uint64_t index)
{
    struct tail_extent *tail;
    int rc = 0;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase != TAIL_OPENING)
            continue;
        /* Nothing else takes an extent of this phase off the list meanwhile. */
        if (rc == 0)
            rc = create_on_members(tail, index);
        if (rc != 0) {
            tail_decide(tail, 0);
            continue;
        }
        tail->phase = TAIL_AHEAD;
        log->ahead_count += !tail->is_reserve;
        log->is_full &= tail->is_reserve;
        log->is_exhausted = false;
        log->stall.code = 0;
        log_kick(log);
    }
    return rc;
}

/* What the command was answered. */
static int opening_failed(struct disk_log *log, int rc, const char *text)
{
    bool is_gone = cluster_disk_by_id(cluster_state(log->cluster), log->disk) == NULL;
    log->is_unsure |= cluster_outcome_is_unknown(rc);
    log_stalled(log, rc, "%s", text);
    if (rc == -PLX_EMISSING)
        return is_gone ? -PLX_EEPOCH : -PLX_EPRECONDITION;
    return rc;
}

/* count 0: for the lengths alone. */
static async int open_some(struct disk_log *log, uint32_t count)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(log->cluster), log->disk);
    if (disk == NULL)
        return -PLX_EEPOCH;
    uint64_t avoid[REPLICAS_MAX];
    uint32_t avoid_count;
    struct chosen chosen = {.count = 0};
    if (count > 0)
        chosen = log_choose(log, avoid, &avoid_count);
    if (count > 0 && chosen.count == 0) {
        log_stalled(log, -EHOSTUNREACH, "too few members are in reach");
        return -EHOSTUNREACH;
    }
    struct cluster_command command = {.op = CLUSTER_EXTENT_OPEN,
                                      .count = count,
                                      .group = chosen.group,
                                      .group_epoch = chosen.group_epoch,
                                      .member_count = (uint8_t)chosen.count};
    for (uint32_t i = 0; i < chosen.count; i++)
        command.members[i] = chosen.members[i]->node;
    log_finals_fill(log, PROPOSER_OPENER, disk->checkpoint.covers, &command);
    struct cluster_result result;
    log->opener_submits = true;
    int rc = cluster_submit(log->cluster, &command, &result);
    log->opener_submits = false;
    log_finals_settle(log, PROPOSER_OPENER, rc == 0);
    if (rc != 0)
        return opening_failed(log, rc, result.text);
    rc = add_opened(log, (struct address){result.id}, count, &chosen);
    if (rc != 0)
        return rc;
    trace(log->loop, "log open extents", log->disk, result.id, count);
    rc = create_opened(log, result.index);
    if (rc != 0)
        log_stalled(log, rc, "a member could not create an extent: %s", err_text(rc));
    return rc;
}

/* --- the task --- */

/* What members may have cannot be taken back, and checkpoints are what frees space. */
static bool must_find_room(const struct disk_log *log)
{
    const struct log_record *next = STAILQ_FIRST(&log->queued);
    return !TAILQ_EMPTY(&log->moving) || (next != NULL && next->use_reserve);
}

/* A try takes commands and creates on all members. Batches in flight may keep what is
 * queued from being refused for seconds. */
static bool is_resting(const struct disk_log *log)
{
    return loop_now_ns(log->loop) < log->rests_until_ns &&
           (log->is_exhausted || !must_find_room(log));
}

/* A disk that is written little keeps one ahead and reserves no more than it needs. */
static uint32_t wanted_ahead(const struct disk_log *log)
{
    if (log->down != 0 || is_resting(log))
        return 0;
    if (log->current == NULL || log->is_closing)
        return log->wants_extent ? 1 : 0;
    bool is_busy = log->current->end >= EXTENT_BLOCKS / 4 || log->slabs_hint > 1;
    return is_busy ? EXTENTS_AHEAD : 1;
}

static bool wants_length(const struct disk_log *log)
{
    return log->down == 0 && !log->is_closing && log_finals_due(log);
}

/* There is only one set of members to be had, and waiting for it is of no use. */
static bool is_lonely(const struct disk_log *log)
{
    const struct tail_extent *last = TAILQ_LAST(&log->tails, tail_list);
    return log->local != NULL || (last != NULL && !tail_has_others(last));
}

/* True: there is the reserve to be tried. */
static bool all_full(struct disk_log *log)
{
    bool was_reserve = log->wants_reserve || log->local != NULL;
    log_forget_full(log);
    log->wants_reserve =
        !was_reserve && must_find_room(log) && log_first_ahead(log, true) == NULL;
    if (log->wants_reserve)
        return true;
    log->is_full = true;
    log->is_exhausted = was_reserve;
    log->was_wanted = log->wants_extent;
    if (log->local == NULL)
        log->rests_until_ns = loop_now_ns(log->loop) + FULL_REST_NS;
    if (!TAILQ_EMPTY(&log->moving)) /* waits for space */
        timer_start(log->loop, &log->retry_timer, FULL_RETRY_NS);
    return false;
}

/* True: there is no point in trying again. */
static bool open_failed(struct disk_log *log, int rc, uint32_t failures)
{
    bool is_lone = is_lonely(log);
    if (rc == -PLX_EEPOCH || (rc == -PLX_EFAILED && is_lone) ||
        cluster_failure(log->cluster) != 0) {
        log_go_down(log, rc);
        return true;
    }
    /* Another store may have room: this one is avoided now. */
    if (rc == -PLX_EFULL && (is_lone || log_choose_sound(log).count == 0))
        return !all_full(log);
    uint32_t tries = rc == -PLX_ELIMIT ? LIST_FULL_TRIES : FRUITLESS_ROLLS_MAX;
    if (failures > tries && (is_lone || rc == -PLX_ELIMIT)) {
        log_go_down(log, rc);
        return true;
    }
    return false;
}

/* The first time at once: the members that failed are known now, and the state, too. */
static async void pause_after(uint32_t failures)
{
    if (failures > 1)
        task_sleep_ns(RETRY_NS << min_u32(failures - 2, 3));
}

static void opener_main(struct task_call *call)
{
    struct disk_log *log = container_of(call, struct disk_log, opener_call);
    uint32_t failures = 0;
    uint32_t wanted;
    while ((wanted = wanted_ahead(log)) > log->ahead_count || wants_length(log)) {
        uint32_t count = wanted > log->ahead_count ? wanted - log->ahead_count : 0;
        count = log->wants_reserve ? min_u32(count, 1) : count;
        int rc = open_some(log, count);
        if (rc == 0) {
            failures = 0;
            log->wants_reserve = false;
            continue;
        }
        if (open_failed(log, rc, ++failures))
            break;
        pause_after(failures);
    }
    log->opener_runs = log->wants_reserve = false;
    log_kick(log);
}

void log_want_extents(struct disk_log *log)
{
    /* Full: only a record that waits makes it worth another try. */
    bool is_hopeless = log->is_full && !log->wants_extent;
    bool is_missing = !is_hopeless && wanted_ahead(log) > log->ahead_count;
    if (log->opener_runs || (!is_missing && !wants_length(log)))
        return;
    log->opener_runs = true;
    log->opener_call = (struct task_call){
        .main = opener_main, .name = "log opener", .system = true};
    task_start(log->loop, &log->opener_call);
}
