/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Take-over: how a log gets its writer. The steps are those of doc/protocol.md.
 *
 * Happy path: the lease is committed with the next epoch; every extent that the cluster
 * lists is stopped, durably, on its members, and the headers are collected
 * (log_collect.c); take_over_plan.c decides where the log ends; what is not on every
 * member is written again (log_again.c); the cut and the lengths of all extents are
 * committed. A final length is always a flushed position: what lay above it was written
 * again, or is void.
 *
 * What can fail: another node holds the lease; too many members are out of reach; a copy
 * is damaged below what must be there, which the text then says. Nothing but the epoch
 * has changed then, maybe there is one more copy of old batches, and the next take-over
 * starts over. Dying anywhere is the same.
 *
 * What a forced roll wrote again is kept where it was written last (take_over_plan.h).
 *
 * The cut gives every extent it found a length. One of which nothing is kept gets 0: it
 * stays on the list until its copies are deleted (L11), but the next take-over must not
 * look into it. A member out of reach may have batches there that now count elsewhere.
 */
#include "replication/take_over_internal.h"

static void advance_work(struct work *work)
{
    log_advance(container_of(work, struct disk_log, work));
}

static void buffer_came(struct work *work)
{
    log_advance(container_of(work, struct disk_log, buffer_waiter));
}

static void retry_fired(struct timer *timer)
{
    log_advance(container_of(timer, struct disk_log, retry_timer));
}

static void sync_fired(struct timer *timer)
{
    struct disk_log *log = container_of(timer, struct disk_log, sync_timer);
    log->sync_due = true;
    log_advance(log);
}

void log_tick(struct disk_log *log)
{
    bool fast = log->owed > 0 || !STAILQ_EMPTY(&log->queued);
    if (log->local != NULL || (log->tick_timer.armed && (log->ticks_fast || !fast)))
        return;
    log->ticks_fast = fast;
    timer_start(log->loop, &log->tick_timer, fast ? TICK_NS : IDLE_TICK_NS);
}

static void tick_fired(struct timer *timer)
{
    struct disk_log *log = container_of(timer, struct disk_log, tick_timer);
    log_check_slow(log);
    if (loop_now_ns(log->loop) - log->renewed_ns >= RENEW_EVERY_NS)
        log_renew(log);
    log->wants_cleaning = true;
    log_advance(log);
}

static void state_changed(struct cluster_watcher *watcher)
{
    log_kick(container_of(watcher, struct disk_log, watcher));
}

/* --- the directory of a store alone --- */

static struct replica *find_alone(struct replica_directory *directory, uint64_t node)
{
    struct disk_log *log = container_of(directory, struct disk_log, alone);
    return node == log->node ? log->local : NULL;
}

static bool in_reach_alone(struct replica_directory *directory, uint64_t node)
{
    return find_alone(directory, node) != NULL;
}

/* There is nobody else, so nobody is avoided. */
static bool is_connected_alone(struct replica_directory *directory, uint64_t node,
                               uint64_t *ret_since_ns)
{
    (void)directory, (void)node;
    *ret_since_ns = 0;
    return true;
}

static struct chosen choose_alone(struct replica_directory *directory, uint64_t disk,
                                  const uint64_t *avoid, uint32_t avoid_count)
{
    struct disk_log *log = container_of(directory, struct disk_log, alone);
    (void)disk, (void)avoid, (void)avoid_count;
    return (struct chosen){.members = {log->local}, .count = 1};
}

/* --- the log --- */

static struct disk_log *log_create(const struct log_options *options)
{
    struct disk_log *log = calloc(1, sizeof *log);
    if (log == NULL)
        return NULL;
    log->loop = options->loop;
    log->cluster = options->cluster;
    log->callbacks = options->callbacks;
    log->budget = options->retained;
    log->buffers = options->buffers;
    log->node = options->node;
    log->disk = options->disk;
    log->append_limit_ns = options->append_limit_ns != 0
                               ? options->append_limit_ns
                               : LOG_APPEND_LIMIT_MS * NS_PER_MS;
    log->sync_limit_ns = options->sync_limit_ns != 0 ? options->sync_limit_ns
                                                     : LOG_SYNC_LIMIT_MS * NS_PER_MS;
    log->is_ending = options->is_ending;
    log->sealed_fn = options->sealed;
    log->sealed_arg = options->sealed_arg;
    log->uid = cluster_state_uid(cluster_state(options->cluster));
    log->slabs_hint = 1;
    STAILQ_INIT(&log->queued);
    TAILQ_INIT(&log->committed_list);
    TAILQ_INIT(&log->inflight);
    TAILQ_INIT(&log->moving);
    TAILQ_INIT(&log->orphans);
    TAILQ_INIT(&log->tails);
    STAILQ_INIT(&log->flushes);
    waitlist_init(&log->changed);
    log->work.run = advance_work;
    log->buffer_waiter.run = buffer_came;
    log->retry_timer.fire = retry_fired;
    log->sync_timer.fire = sync_fired;
    log->tick_timer.fire = tick_fired;
    log->watcher.applied = state_changed;
    log->renewed_ns = loop_now_ns(log->loop);
    LIST_INIT(&log->creations);
    LIST_INIT(&log->janitors);
    if (options->directory != NULL) {
        log->directory = options->directory;
        return log;
    }
    log->local = replica_local_create(options->store, options->node);
    if (log->local == NULL) {
        free(log);
        return NULL;
    }
    log->alone = (struct replica_directory){
        .find = find_alone,
        .in_reach = in_reach_alone,
        .is_connected = is_connected_alone,
        .choose = choose_alone,
    };
    log->directory = &log->alone;
    return log;
}

/* --- 1: the lease --- */

static bool may_take(const struct log_options *options, const struct cluster_disk *disk)
{
    const struct cluster_node *owner =
        cluster_node_by_id(cluster_state(options->cluster), disk->owner);
    return disk->owner == 0 || disk->owner == options->node || options->force ||
           (owner != NULL && cluster_node_is_down(owner));
}

static int say_whose(const struct take_over *over, const struct cluster_disk *disk)
{
    const struct cluster_node *owner =
        cluster_node_by_id(cluster_state(over->options->cluster), disk->owner);
    bool has_address = owner != NULL && owner->address[0] != '\0';
    return err_set(over->err, -PLX_EOWNED, "disk %s is served by node %llu%s%s",
                   disk->name, (unsigned long long)disk->owner,
                   has_address ? " at " : "", has_address ? owner->address : "");
}

static async int take_lease(struct take_over *over)
{
    const struct log_options *options = over->options;
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(options->cluster), options->disk);
    if (disk == NULL)
        return err_set(over->err, -PLX_EMISSING, "there is no disk %llu",
                       (unsigned long long)options->disk);
    if (!may_take(options, disk))
        return say_whose(over, disk);
    struct cluster_command command = {.op = CLUSTER_LEASE_TAKE,
                                      .disk = options->disk,
                                      .epoch = disk->epoch,
                                      .node = options->node,
                                      .force = options->force};
    struct cluster_result result;
    int rc = cluster_submit(options->cluster, &command, &result);
    if (rc != 0)
        return err_set(over->err, rc, "taking the lease: %s", result.text);
    over->log->epoch = result.epoch;
    over->log->is_watching = true;
    cluster_on_apply(options->cluster, &over->log->watcher);
    return 0;
}

static uint64_t known_flushed(const struct cluster_disk *disk)
{
    if (planted(PLANT_FLUSHED_FORGOTTEN))
        return 0;
    uint64_t known = max_u64(disk->flushed, disk->checkpoint.last);
    known = max_u64(known, max_u64(disk->checkpoint.covers, disk->newest_marker));
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        if (disk->extents[i].final)
            known = max_u64(known, disk->extents[i].last_number);
    }
    for (uint32_t i = 0; i < disk->cut_count; i++)
        known = max_u64(known, disk->cuts[i].number);
    return known;
}

/* Whoever may have a copy, in reach or not. */
static bool is_there(const struct take_over *over, uint64_t id)
{
    const struct cluster_node *node =
        cluster_node_by_id(cluster_state(over->options->cluster), id);
    return node != NULL && (node->flags & (NODE_GONE | NODE_WITNESS)) == 0;
}

static int load_extent(struct take_over *over, const struct log_extent *from,
                       struct plan_extent *to)
{
    struct disk_log *log = over->log;
    struct tail_extent *tail = tail_create(log, from->extent, from->epoch);
    if (tail == NULL)
        return -ENOMEM;
    *to = (struct plan_extent){.extent = from->extent,
                               .epoch = from->epoch,
                               .is_final = from->final,
                               .length = from->length,
                               .last_number = from->last_number,
                               .member_count = from->member_count};
    tail->phase = TAIL_FOUND;
    to->is_skipped = from->final && from->last_number <= over->plan.covers;
    for (uint32_t i = 0; i < from->member_count; i++) {
        struct replica *member = log->directory->find(log->directory, from->members[i]);
        to->copies[i].node = from->members[i];
        if (member == NULL && is_there(over, from->members[i]))
            return -ENOMEM;
        if (member != NULL)
            tail->members[tail->member_count++] = member;
    }
    return 0;
}

/* Copies what the cluster says: its state may change at every suspension. */
static int load_list(struct take_over *over)
{
    const struct cluster_disk *disk = cluster_disk_by_id(
        cluster_state(over->options->cluster), over->options->disk);
    if (disk == NULL || disk->epoch != over->log->epoch)
        return err_set(over->err, -PLX_EPRECONDITION, "another take-over was faster");
    struct take_over_plan *plan = &over->plan;
    over->extents = calloc(disk->extent_count + 1, sizeof *over->extents);
    over->finals = calloc(disk->extent_count + 1, sizeof *over->finals);
    over->cuts = calloc(disk->cut_count + 1, sizeof *over->cuts);
    if (over->extents == NULL || over->finals == NULL || over->cuts == NULL)
        return -ENOMEM;
    if (disk->cut_count > 0)
        memcpy(over->cuts, disk->cuts, disk->cut_count * sizeof *over->cuts);
    *plan = (struct take_over_plan){.covers = disk->checkpoint.covers,
                                    .known_flushed = known_flushed(disk),
                                    .committed = known_flushed(disk),
                                    .cuts = over->cuts,
                                    .cut_count = disk->cut_count,
                                    .extents = over->extents};
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < disk->extent_count; i++) {
        rc = load_extent(over, &disk->extents[i], &over->extents[i]);
        plan->extent_count++;
    }
    return rc;
}

/* --- 5: the cut --- */

struct measure {
    uint64_t keep;
    uint32_t end;
};

/* The members that have all that stays. */
static void add_copies(const struct take_over *over, const struct plan_extent *extent,
                       struct replay_range *range)
{
    struct replica_directory *directory = over->log->directory;
    for (uint32_t i = 0; i < extent->copy_count; i++) {
        const struct plan_copy *copy = &extent->copies[i];
        struct replica *member = directory->find(directory, copy->node);
        if (member != NULL && !copy->is_damaged && copy->last >= extent->keep)
            range->members[range->member_count++] = member;
    }
}

static int measure_header(void *arg, const struct header *head,
                          const struct entry *entries, const struct roll_entry *rolls)
{
    struct measure *measure = arg;
    (void)rolls;
    if (head->kind == HEADER_BATCH && head->number <= measure->keep)
        measure->end = head->block + 1 + header_data_blocks(entries, head->count);
    return 0;
}

static async int measure_copies(const struct replay_range *range,
                                struct measure *measure)
{
    int rc = -EHOSTUNREACH, silence = 0;
    for (uint32_t i = 0; rc != 0 && i < range->member_count; i++) {
        struct replica *member = range->members[i];
        rc = member->ops->walk_headers(member, range->extent, measure_header, measure,
                                       NULL);
        silence = log_is_silence(rc) ? rc : silence;
    }
    return rc != 0 && silence != 0 ? silence : rc;
}

/* Where the last batch that is kept ends. */
static async int length_to_keep(struct take_over *over, const struct plan_extent *extent,
                                uint32_t *ret_length)
{
    const struct plan_copy *copy = &extent->copies[extent->source];
    if (extent->keep == copy->end_number) {
        *ret_length = copy->end;
        return 0;
    }
    struct measure measure = {.keep = extent->keep};
    struct replay_range range = {.extent = extent->extent};
    uint64_t until_ns = 0;
    int rc;
    add_copies(over, extent, &range);
    do
        rc = measure_copies(&range, &measure);
    while (rc != 0 && log_may_ask_again(over->log, rc, &until_ns));
    *ret_length = measure.end;
    return rc;
}

static async int decide_lengths(struct take_over *over)
{
    struct tail_extent *tail = TAILQ_FIRST(&over->log->tails);
    for (uint32_t i = 0; i < over->plan.extent_count; i++) {
        const struct plan_extent *extent = &over->extents[i];
        if (extent->is_final) {
            tail->length = extent->length;
            tail->last_number = extent->last_number;
            tail->phase = TAIL_COMMITTED;
        } else {
            uint32_t length = 0;
            int rc = extent->keep > 0 ? length_to_keep(over, extent, &length) : 0;
            if (rc != 0)
                return err_set(over->err, rc, "extent %llx: reading its headers failed",
                               (unsigned long long)extent->extent.v);
            tail->flushed_length = tail->placed_end = tail->end = length;
            tail->flushed_number = extent->keep;
            tail_decide(tail, 0);
            over->finals[over->final_count++] =
                (struct final_length){.extent = extent->extent,
                                      .length = length,
                                      .last_number = extent->keep};
        }
        tail = TAILQ_NEXT(tail, link);
    }
    return 0;
}

static bool all_final(const struct take_over_plan *plan)
{
    for (uint32_t i = 0; i < plan->extent_count; i++) {
        if (!plan->extents[i].is_final)
            return false;
    }
    return true;
}

static async int commit_cut(struct take_over *over)
{
    struct disk_log *log = over->log;
    const struct take_over_plan *plan = &over->plan;
    if (all_final(plan)) /* also: there is none */
        return 0;
    struct cluster_command command = {.op = CLUSTER_CUT,
                                      .disk = log->disk,
                                      .epoch = log->epoch,
                                      .number = plan->last,
                                      .flushed = plan->last,
                                      .finals = over->finals,
                                      .final_count = over->final_count};
    struct cluster_result result;
    int rc = cluster_submit(log->cluster, &command, &result);
    if (rc != 0)
        return err_set(over->err, rc, "committing the cut: %s", result.text);
    trace(log->loop, "log cut", log->disk, plan->last, over->final_count);
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->epoch < log->epoch && tail->phase == TAIL_DECIDED)
            tail->phase = TAIL_COMMITTED;
    }
    return 0;
}

/* --- the whole --- */

/* Extents of this epoch hold what was written again, one after the other. */
static void keep_new_ranges(struct disk_log *log)
{
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->epoch < log->epoch || tail->first_number == 0 ||
            tail->flushed_number < tail->first_number)
            continue;
        struct replay_range *range = &log->ranges[log->range_count++];
        *range = (struct replay_range){.extent = tail->extent,
                                       .member_count = tail->member_count,
                                       .first = tail->first_number,
                                       .last = tail->flushed_number};
        memcpy(range->members, tail->members, sizeof range->members);
    }
}

static int keep_ranges(struct take_over *over)
{
    struct disk_log *log = over->log;
    const struct take_over_plan *plan = &over->plan;
    log->ranges = calloc(log->tail_count + 1, sizeof *log->ranges);
    if (log->ranges == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < plan->extent_count; i++) {
        const struct plan_extent *extent = &plan->extents[i];
        if (extent->keep == 0)
            continue;
        struct replay_range *range = &log->ranges[log->range_count++];
        *range = (struct replay_range){.extent = extent->extent,
                                       .first = extent->first,
                                       .last = extent->keep,
                                       .is_final = extent->is_final};
        add_copies(over, extent, range);
    }
    keep_new_ranges(log);
    log->covers = plan->covers;
    log->replay_last = plan->last;
    return 0;
}

static async int decide_and_cut(struct take_over *over)
{
    struct take_over_plan *plan = &over->plan;
    int rc = take_over_decide(plan, over->err);
    if (rc != 0)
        return rc;
    over->found_flushed = plan->flushed;
    if (over->found_flushed < plan->last)
        rc = take_over_write_again(over);
    if (rc != 0)
        return rc;
    rc = keep_ranges(over);
    if (rc == 0)
        rc = decide_lengths(over);
    if (rc == 0)
        rc = commit_cut(over);
    return rc;
}

static async int take_over(struct take_over *over)
{
    int rc = take_lease(over);
    if (rc == 0)
        rc = load_list(over);
    if (rc == 0)
        rc = take_over_collect(over);
    return rc == 0 ? decide_and_cut(over) : rc;
}

async int log_open(const struct log_options *options, struct disk_log **ret_log,
                   struct error *err)
{
    struct error ignored;
    struct take_over over = {.options = options, .err = err != NULL ? err : &ignored};
    over.err->code = 0;
    over.log = log_create(options);
    int rc = over.log == NULL ? -ENOMEM : take_over(&over);
    free(over.extents);
    free(over.finals);
    free(over.cuts);
    if (rc == 0)
        rc = over.log->down;
    if (rc != 0) {
        if (over.err->code == 0)
            err_set(over.err, rc, "%s", err_text(rc));
        if (over.log != NULL)
            log_abandon(over.log);
        return rc;
    }
    struct disk_log *log = over.log;
    log->down_told = false;
    log->sealed = log->committed = log->placed = log->flushed = over.plan.last;
    log_clean_up(log);
    *ret_log = log;
    return 0;
}
