/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents come and go: the opener makes them ahead of need, final lengths travel with the
 * disk's commands, the janitor makes copies final.
 *
 * Happy path: the opener commits EXTENT_OPEN and creates the extents on all members
 * before the log needs them. Any command of the disk carries the lengths decided since;
 * once it is committed the janitor makes the members final; a later command then takes
 * the extent off the list, if replay needs nothing in it, and the janitor lets its
 * headers go.
 *
 * What can fail: a create (no space, a broken store). The extent then ends at length 0.
 * Without space the queued records fail; else the opener tries again after a while. If
 * the epoch is over, or the cluster takes no commands, the log gives up. A copy that
 * cannot be made final is tried again with the next commit, and stays listed till then.
 * Headers that cannot be trimmed are found again by the next start.
 *
 * On close both tasks end first.
 */
#include "replication/disk_log_internal.h"

/* --- final lengths --- */

static struct final_length *add_final(struct disk_log *log, enum proposer proposer,
                                      struct tail_extent *tail, bool leaves,
                                      uint32_t *count)
{
    assert(*count < LOG_EXTENTS_MAX);
    tail->proposer = proposer;
    tail->leaving = leaves;
    struct final_length *final = &log->finals[proposer][(*count)++];
    *final = (struct final_length){.extent = tail->extent,
                                   .length = tail->length,
                                   .last_number = tail->last_number,
                                   .leaves = leaves};
    return final;
}

/* A length may be committed when all that lay above it is flushed elsewhere. */
void log_finals_fill(struct disk_log *log, enum proposer proposer, uint64_t covers,
                     struct cluster_command *command)
{
    uint32_t count = 0;
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->proposer != PROPOSER_NONE)
            continue;
        if (tail->phase == TAIL_DECIDED && log->flushed >= tail->needs_flushed)
            add_final(log, proposer, tail, false, &count);
        else if (tail->phase == TAIL_FINAL && tail->last_number <= covers) /* L11 */
            add_final(log, proposer, tail, true, &count);
    }
    command->disk = log->disk;
    command->epoch = log->epoch;
    command->flushed = log->flushed;
    command->finals = log->finals[proposer];
    command->final_count = count;
}

void log_finals_settle(struct disk_log *log, enum proposer proposer, bool committed)
{
    struct tail_extent *tail, *next;
    TAILQ_FOREACH_SAFE(tail, &log->tails, link, next)
    {
        tail->finalize_failed = false;
        if (tail->proposer != proposer)
            continue;
        tail->proposer = PROPOSER_NONE;
        if (!committed)
            continue;
        tail->phase = tail->leaving ? TAIL_LEFT : TAIL_COMMITTED;
    }
    log_clean_up(log);
}

void log_finals_prepare(struct disk_log *log, uint64_t covers,
                        struct cluster_command *command)
{
    assert(!log->caller_proposes && "one command of a disk at a time");
    log->caller_proposes = true;
    log_finals_fill(log, PROPOSER_CALLER, covers, command);
}

async void log_finals_committed(struct disk_log *log, bool committed)
{
    assert(log->caller_proposes);
    log->caller_proposes = false;
    log_finals_settle(log, PROPOSER_CALLER, committed);
}

/* --- what ended extents hold --- */

/* One that could not be made holds nothing, nor does one that is final and empty. */
static bool holds_space(const struct tail_extent *tail)
{
    return tail->phase >= TAIL_ENDED &&
           (tail->length > 0 || (tail->phase < TAIL_FINAL && tail->end > 0));
}

bool log_is_settling(const struct disk_log *log)
{
    const struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        bool is_cleaned_up = tail->phase == TAIL_LEFT ||
                             (tail->phase == TAIL_COMMITTED && !tail->finalize_failed);
        if (holds_space(tail) && (is_cleaned_up || tail->proposer != PROPOSER_NONE))
            return true;
    }
    return false;
}

bool log_awaits_command(const struct disk_log *log)
{
    const struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        bool is_due = tail->phase == TAIL_ENDED || tail->phase == TAIL_DECIDED ||
                      tail->phase == TAIL_FINAL;
        if (holds_space(tail) && is_due && tail->proposer == PROPOSER_NONE)
            return true;
    }
    return false;
}

/* --- the janitor --- */

static struct tail_extent *first_to_do(const struct disk_log *log)
{
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase == TAIL_LEFT ||
            (tail->phase == TAIL_COMMITTED && !tail->finalize_failed))
            return tail;
    }
    return NULL;
}

/* L12 */
static async void trim_headers(struct disk_log *log, struct tail_extent *tail)
{
    int rc = 0;
    assert(tail->phase == TAIL_LEFT);
    for (uint32_t i = 0; rc == 0 && i < tail->member_count; i++)
        rc = tail->members[i]->ops->trim_headers(tail->members[i], tail->extent);
    if (rc != 0)
        log_warning(log->loop, "disk %llu: extent %llx keeps its headers: %s",
                    (unsigned long long)log->disk, (unsigned long long)tail->extent.v,
                    err_text(rc));
    trace(log->loop, "log left", log->disk, tail->extent.v, (uint64_t)-rc);
    tail_destroy(tail);
}

static bool is_listed(const struct disk_log *log, struct address extent)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(log->cluster), log->disk);
    for (uint32_t i = 0; disk != NULL && i < disk->extent_count; i++) {
        if (address_equal(disk->extents[i].extent, extent))
            return true;
    }
    return false;
}

static async void finalize_one(struct disk_log *log, struct tail_extent *tail)
{
    int rc = tail->ops > 0 ? -PLX_EBUSY : 0;
    for (uint32_t i = 0; rc == 0 && i < tail->member_count; i++)
        rc = tail->members[i]->ops->finalize(tail->members[i], tail->extent,
                                             tail->length);
    assert(tail->phase == TAIL_COMMITTED);
    if (rc != 0) {
        tail->finalize_failed = true;
        if (rc != -PLX_EBUSY)
            log_warning(log->loop, "disk %llu: extent %llx is not final at %u blocks: %s",
                        (unsigned long long)log->disk, (unsigned long long)tail->extent.v,
                        tail->length, err_text(rc));
        return;
    }
    tail->phase = TAIL_FINAL;
    trace(log->loop, "log final", log->disk, tail->extent.v, tail->length);
    /* An empty one may have left the list with the command that closed it. */
    if (tail->proposer == PROPOSER_NONE && !is_listed(log, tail->extent))
        tail_destroy(tail);
}

async void log_finalize_all(struct disk_log *log)
{
    struct tail_extent *tail;
    while ((tail = first_to_do(log)) != NULL) {
        if (tail->phase == TAIL_LEFT)
            trim_headers(log, tail);
        else
            finalize_one(log, tail);
    }
}

static void janitor_main(struct task_call *call)
{
    struct disk_log *log = container_of(call, struct disk_log, janitor_call);
    log_finalize_all(log);
    log->janitor_runs = false;
    log_kick(log);
}

void log_clean_up(struct disk_log *log)
{
    if (log->janitor_runs || first_to_do(log) == NULL)
        return;
    log->janitor_runs = true;
    log->janitor_call = (struct task_call){
        .main = janitor_main, .name = "log janitor", .system = true};
    task_start(log->loop, &log->janitor_call);
}

/* --- the opener --- */

/* A disk that is written little keeps one ahead and reserves no more than it needs. */
static uint32_t wanted_ahead(const struct disk_log *log)
{
    if (log->down != 0)
        return 0;
    if (log->current == NULL || log->is_closing)
        return log->wants_extent ? 1 : 0;
    bool is_busy = log->current->end >= EXTENT_BLOCKS / 4 || log->slabs_hint > 1;
    return is_busy ? EXTENTS_AHEAD : 1;
}

static async int create_on_members(struct disk_log *log, struct tail_extent *tail,
                                   uint64_t index)
{
    struct replica_create create = {.extent = tail->extent,
                                    .disk = log->disk,
                                    .epoch = tail->epoch,
                                    .nonce = tail->nonce,
                                    .slabs_hint = log->slabs_hint,
                                    .index = index,
                                    .limit_ns = NS_PER_S};
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < tail->member_count; i++) {
        rc = tail->members[i]->ops->create(tail->members[i], &create);
        if (rc != 0)
            log_member_failed(tail, i, rc);
    }
    return rc;
}

/* The extents that the command opened, listed from now on, whatever becomes of them. */
static int add_opened(struct disk_log *log, struct address first, uint32_t count,
                      const struct chosen *chosen)
{
    for (uint32_t i = 0; i < count; i++) {
        struct address extent = {first.v + (uint64_t)i * EXTENT_BLOCKS};
        struct tail_extent *tail = tail_create(log, extent, log->epoch);
        if (tail == NULL)
            return -ENOMEM;
        tail->nonce = loop_random_u64(log->loop);
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
            rc = create_on_members(log, tail, index);
        if (rc != 0) {
            tail_decide(tail, 0);
            continue;
        }
        tail->phase = TAIL_AHEAD;
        log->ahead_count++;
        log->is_full = false;
        log_kick(log);
    }
    return rc;
}

static async int open_some(struct disk_log *log, uint32_t count)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(log->cluster), log->disk);
    if (disk == NULL)
        return -PLX_EEPOCH;
    uint64_t avoid[REPLICAS_MAX];
    uint32_t avoid_count;
    struct chosen chosen = log_choose(log, avoid, &avoid_count);
    if (chosen.count == 0)
        return -EHOSTUNREACH;
    struct cluster_command command = {.op = CLUSTER_EXTENT_OPEN,
                                      .count = count,
                                      .group = chosen.group,
                                      .group_epoch = chosen.group_epoch,
                                      .member_count = (uint8_t)chosen.count};
    for (uint32_t i = 0; i < chosen.count; i++)
        command.members[i] = chosen.members[i]->node;
    log_finals_fill(log, PROPOSER_OPENER, disk->checkpoint.covers, &command);
    struct cluster_result result;
    int rc = cluster_submit_known(log->cluster, &command, &log->is_closing, &result);
    log_finals_settle(log, PROPOSER_OPENER, rc == 0);
    if (rc == 0)
        rc = add_opened(log, (struct address){result.id}, count, &chosen);
    if (rc != 0)
        return rc;
    trace(log->loop, "log open extents", log->disk, result.id, count);
    return create_opened(log, result.index);
}

/* True: there is no point in trying again. */
static bool open_failed(struct disk_log *log, int rc)
{
    switch (rc) {
    case -PLX_EEPOCH:
    case -PLX_EMISSING:
        log_go_down(log, -PLX_EEPOCH);
        return true;
    case -PLX_EFAILED:
    case -PLX_EUNKNOWN: /* some may be listed that this log does not know of */
    case -ENOMEM:
        log_go_down(log, rc);
        return true;
    case -PLX_EFULL:
        log->is_full = true;
        return true;
    default:
        log_warning(log->loop, "disk %llu: no new extent: %s",
                    (unsigned long long)log->disk, err_text(rc));
        return false;
    }
}

static void opener_main(struct task_call *call)
{
    struct disk_log *log = container_of(call, struct disk_log, opener_call);
    uint32_t failures = 0;
    uint32_t wanted;
    while ((wanted = wanted_ahead(log)) > log->ahead_count) {
        int rc = open_some(log, wanted - log->ahead_count);
        if (rc == 0)
            continue;
        if (open_failed(log, rc))
            break;
        if (rc == -PLX_ENOLEADER && !log->is_closing)
            continue; /* it has waited for one long enough to try again at once */
        if (++failures > (rc == -PLX_ELIMIT ? LIST_FULL_TRIES : FRUITLESS_ROLLS_MAX)) {
            log_go_down(log, rc);
            break;
        }
        task_sleep_ns(RETRY_NS);
    }
    log->opener_runs = false;
    log_kick(log);
}

void log_want_extents(struct disk_log *log)
{
    /* Full: only a record that waits makes it worth another try. */
    bool is_hopeless = log->is_full && !log->wants_extent;
    if (log->opener_runs || is_hopeless || wanted_ahead(log) <= log->ahead_count)
        return;
    log->opener_runs = true;
    log->opener_call = (struct task_call){
        .main = opener_main, .name = "log opener", .system = true};
    task_start(log->loop, &log->opener_call);
}
