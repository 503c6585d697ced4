/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The members of a log's extents: who is taken, who failed, who is slow, and when another
 * write set would be better.
 *
 * Happy path: the directory chooses; as long as all answer in time nothing happens here.
 *
 * What can fail: a member. It is avoided for a while, longer each time, and so are the
 * extents that were opened ahead on it; that is what makes the roll that follows cheap.
 * One that was out of reach is taken again once there is a connection that lasts.
 * One that was only restarted has stopped the extents it knew, and may be taken again at
 * once. One that is slow has failed if the log can do without it; else it is waited for,
 * and the log's status says so. When a member is back, or the group has another epoch,
 * the log rolls on without haste: until then recovery cannot end, because extents are
 * written without that member.
 *
 * A store alone has no other to compare with: none of this is done for it.
 */
#include "replication/disk_log_internal.h"

/* --- who failed --- */

static struct avoided *find_avoided(struct disk_log *log, uint64_t node)
{
    for (uint32_t i = 0; i < ARRAY_LEN(log->avoided); i++) {
        if (log->avoided[i].node == node)
            return &log->avoided[i];
    }
    return NULL;
}

/* It was out of reach, and there has been a new connection to it for long enough; or it
 * was just starting, and has been connected since. */
static bool is_heard_again(const struct disk_log *log, const struct avoided *avoided)
{
    uint64_t since_ns;
    if (!avoided->is_silent ||
        !log->directory->is_connected(log->directory, avoided->node, &since_ns))
        return false;
    if (avoided->is_starting)
        since_ns = max_u64(since_ns, avoided->failed_ns);
    else if (since_ns <= avoided->failed_ns)
        return false;
    return loop_now_ns(log->loop) - since_ns >= avoided->heard_ns;
}

static bool is_avoided_now(const struct disk_log *log, const struct avoided *avoided)
{
    return avoided->node != 0 && avoided->until_ns > loop_now_ns(log->loop) &&
           !is_heard_again(log, avoided);
}

/* A former failure of the same member lengthens the next one's time, if that was not long
 * ago. While it is avoided, and there was no new connection to it, it has not failed
 * again; and however often it is found to be out of reach, that it is heard again counts
 * the same. */
static void set_times(const struct disk_log *log, const struct avoided *old,
                      struct avoided *ret)
{
    uint64_t since_ns;
    ret->time_ns = AVOID_NS;
    ret->heard_ns = AVOID_HEARD_NS;
    if (old == NULL || old->until_ns + old->time_ns <= ret->failed_ns)
        return;
    (void)log->directory->is_connected(log->directory, old->node, &since_ns);
    bool was_back = since_ns > old->failed_ns && !ret->is_starting;
    bool goes_on = old->until_ns > ret->failed_ns && !was_back;
    ret->time_ns = goes_on ? old->time_ns : min_u64(2 * old->time_ns, AVOID_MAX_NS);
    ret->heard_ns = was_back ? min_u64(2 * old->heard_ns, AVOID_HEARD_MAX_NS)
                             : old->heard_ns;
}

/* The list is in order of failure, the latest first; the one longest ago goes. */
static void avoid(struct disk_log *log, uint64_t node, int code)
{
    struct avoided *old = find_avoided(log, node);
    bool is_avoided = old != NULL && is_avoided_now(log, old);
    struct avoided now = {
        .node = node,
        .failed_ns = loop_now_ns(log->loop),
        .is_silent = log_is_silence(code) && (!is_avoided || old->is_silent),
        .is_starting = code == -ESHUTDOWN,
        .is_full = code == -PLX_EFULL && (!is_avoided || old->is_full),
    };
    set_times(log, old, &now);
    now.until_ns = now.failed_ns + now.time_ns;
    size_t at = old != NULL ? (size_t)(old - log->avoided) : ARRAY_LEN(log->avoided) - 1;
    memmove(log->avoided + 1, log->avoided, at * sizeof log->avoided[0]);
    log->avoided[0] = now;
    trace(log->loop, "log avoid", log->disk, node, now.time_ns);
}

bool log_is_avoided(const struct disk_log *log, uint64_t node)
{
    for (uint32_t i = 0; i < ARRAY_LEN(log->avoided); i++) {
        if (log->avoided[i].node == node)
            return is_avoided_now(log, &log->avoided[i]);
    }
    return false;
}

static uint32_t list_avoided(const struct disk_log *log, uint64_t ret_nodes[REPLICAS_MAX])
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < ARRAY_LEN(log->avoided); i++) {
        if (is_avoided_now(log, &log->avoided[i]))
            ret_nodes[count++] = log->avoided[i].node;
    }
    return count;
}

bool tail_has(const struct tail_extent *tail, uint64_t node)
{
    for (uint32_t i = 0; i < tail->member_count; i++) {
        if (tail->members[i]->node == node)
            return true;
    }
    return false;
}

static bool has_any_of(const struct tail_extent *tail, const uint64_t *nodes,
                       uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (tail_has(tail, nodes[i]))
            return true;
    }
    return false;
}

static void drop_ahead(struct disk_log *log, const uint64_t *nodes, uint32_t count)
{
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase == TAIL_AHEAD && has_any_of(tail, nodes, count))
            tail_decide(tail, 0);
    }
}

/* A code that says nothing of the member: the log gave the request up, or an earlier one
 * of the same extent failed, or the lease is over. */
static bool is_no_failure(int code)
{
    return code == -ECANCELED || code == -PLX_ENOTEND || code == -PLX_EEPOCH;
}

void log_member_failed(struct tail_extent *tail, uint32_t member, int code)
{
    struct disk_log *log = tail->log;
    assert(member < tail->member_count);
    if (log->local != NULL || log->down != 0 || is_no_failure(code))
        return;
    uint64_t node = tail->members[member]->node;
    bool is_in_use = tail->phase == TAIL_CURRENT || tail->phase == TAIL_ENDED;
    if (code != -PLX_ESTOPPED)
        avoid(log, node, code);
    else if (is_in_use && !planted(PLANT_RESTART_IGNORED))
        drop_ahead(log, &node, 1);
}

void log_forget_full(struct disk_log *log)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < ARRAY_LEN(log->avoided); i++) {
        if (!log->avoided[i].is_full)
            log->avoided[kept++] = log->avoided[i];
    }
    while (kept < ARRAY_LEN(log->avoided))
        log->avoided[kept++] = (struct avoided){.node = 0};
}

/* --- who is taken --- */

struct chosen log_choose(struct disk_log *log, uint64_t ret_avoid[REPLICAS_MAX],
                         uint32_t *ret_avoid_count)
{
    struct replica_directory *from = log->directory;
    uint32_t avoid_count = list_avoided(log, ret_avoid);
    struct chosen chosen = from->choose(from, log->disk, ret_avoid, avoid_count);
    while (chosen.count == 0 && avoid_count > 0)
        chosen = from->choose(from, log->disk, ret_avoid, --avoid_count);
    *ret_avoid_count = avoid_count;
    return chosen;
}

struct chosen log_choose_sound(struct disk_log *log)
{
    uint64_t nodes[REPLICAS_MAX];
    uint32_t count = list_avoided(log, nodes);
    return log->directory->choose(log->directory, log->disk, nodes, count);
}

/* An extent with a silent member would only lead to the next roll. */
void log_skip_ahead(struct disk_log *log)
{
    uint64_t nodes[REPLICAS_MAX];
    uint32_t count;
    (void)log_choose(log, nodes, &count);
    drop_ahead(log, nodes, count);
}

bool tail_has_others(const struct tail_extent *tail)
{
    struct disk_log *log = tail->log;
    if (log->local != NULL || tail->member_count != 1)
        return log->local == NULL;
    uint64_t node = tail->members[0]->node;
    return log->directory->choose(log->directory, log->disk, &node, 1).count > 0;
}

bool tail_failure_is_final(const struct tail_extent *tail, int code)
{
    return code == -PLX_EEPOCH || (code == -PLX_EFAILED && !tail_has_others(tail));
}

bool log_member_counts(const struct tail_extent *tail, uint32_t member)
{
    const struct disk_log *log = tail->log;
    const struct cluster_state *state = cluster_state(log->cluster);
    uint64_t id = tail->members[member]->node;
    if (log->local != NULL)
        return true;
    const struct cluster_node *node = cluster_node_by_id(state, id);
    const struct cluster_group *group =
        cluster_group_by_id(state, address_group(tail->extent));
    if (node == NULL || (node->flags & NODE_GONE))
        return false;
    const struct group_member *in =
        group != NULL ? cluster_group_member(group, id) : NULL;
    return in != NULL && in->missing_since == 0;
}

/* --- who is silent --- */

bool log_is_silence(int code)
{
    return code == -ETIMEDOUT || code == -ECONNRESET || code == -ECONNREFUSED ||
           code == -EHOSTUNREACH || code == -ENETUNREACH || code == -ECANCELED ||
           code == -ESHUTDOWN || code == -PLX_ECANCELLED;
}

bool log_is_ending(const struct disk_log *log)
{
    return log->is_ending != NULL && *log->is_ending;
}

async bool log_may_ask_again(struct disk_log *log, int code, uint64_t *until_ns)
{
    uint64_t now_ns = loop_now_ns(log->loop);
    if (*until_ns == 0)
        *until_ns = now_ns + ASK_AGAIN_LIMIT_NS;
    if (!log_is_silence(code) || log->down != 0 || now_ns >= *until_ns ||
        log_is_ending(log))
        return false;
    task_sleep_ns(ASK_AGAIN_NS);
    return log->down == 0;
}

/* --- who is slow --- */

struct slow {
    uint64_t nodes[2 * REPLICAS_MAX]; /* room for those avoided, too */
    uint32_t count;
};

static void add_node(struct slow *slow, uint64_t node)
{
    for (uint32_t i = 0; i < slow->count; i++) {
        if (slow->nodes[i] == node)
            return;
    }
    if (slow->count < ARRAY_LEN(slow->nodes))
        slow->nodes[slow->count++] = node;
}

static void add_silent(struct slow *slow, const struct tail_extent *tail,
                       unsigned answers)
{
    for (uint32_t i = 0; i < tail->member_count; i++) {
        if ((answers & 1U << i) == 0)
            add_node(slow, tail->members[i]->node);
    }
}

static void find_slow(const struct disk_log *log, struct slow *slow)
{
    uint64_t now_ns = loop_now_ns(log->loop);
    const struct batch *batch;
    TAILQ_FOREACH(batch, &log->inflight, link)
    {
        if (now_ns - batch->sent_ns >= log->append_limit_ns)
            add_silent(slow, batch->tail, batch->answers);
    }
    const struct tail_extent *tail = log->current;
    if (tail != NULL && now_ns - tail->begun_ns >= log->append_limit_ns)
        add_silent(slow, tail, tail->roll_answers);
    if (log->round_owed == 0 || now_ns - log->round_begun_ns < log->sync_limit_ns)
        return;
    TAILQ_FOREACH(tail, &log->tails, link)
        add_silent(slow, tail, ~tail->sync_owed);
}

static bool can_do_without(struct disk_log *log, const struct slow *slow)
{
    struct slow all = *slow;
    uint64_t avoided[REPLICAS_MAX];
    uint32_t count = list_avoided(log, avoided);
    for (uint32_t i = 0; i < count; i++)
        add_node(&all, avoided[i]);
    const struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase == TAIL_AHEAD && !has_any_of(tail, all.nodes, all.count))
            return true;
    }
    struct replica_directory *from = log->directory;
    return from->choose(from, log->disk, all.nodes, all.count).count > 0;
}

void log_check_slow(struct disk_log *log)
{
    struct slow slow = {.count = 0};
    if (log->local != NULL || log->down != 0)
        return;
    find_slow(log, &slow);
    if (slow.count == 0)
        return;
    if (!can_do_without(log, &slow) && !planted(PLANT_SLOW_ANYWHERE))
        return;
    for (uint32_t i = 0; i < slow.count; i++)
        avoid(log, slow.nodes[i], -ETIMEDOUT);
    log_roll_forced(log, -ETIMEDOUT);
}

/* --- better write sets --- */

static bool is_back(const struct disk_log *log, uint64_t id)
{
    const struct cluster_node *node = cluster_node_by_id(cluster_state(log->cluster), id);
    return node != NULL && cluster_node_is_usable(node) && !log_is_avoided(log, id) &&
           log->directory->in_reach(log->directory, id);
}

static bool has_other_group(const struct tail_extent *tail,
                            const struct cluster_group *group)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(tail->log->cluster), tail->log->disk);
    return group->epoch != tail->group_epoch ||
           (disk != NULL && group->pool != disk->pool);
}

/* A member of its group answers that does not write to it. */
static bool lacks_member(const struct tail_extent *tail,
                         const struct cluster_group *group)
{
    for (uint32_t i = 0; i < group->member_count; i++) {
        uint64_t node = group->members[i].node;
        if (!tail_has(tail, node) && is_back(tail->log, node))
            return true;
    }
    return false;
}

static const struct cluster_group *group_of(const struct tail_extent *tail)
{
    return cluster_group_by_id(cluster_state(tail->log->cluster),
                               address_group(tail->extent));
}

/* To choose takes a look at all groups: not for every disk, and all the time. */
static bool may_be_outdated(const struct tail_extent *tail)
{
    const struct cluster_group *group = group_of(tail);
    return (tail->phase == TAIL_AHEAD || tail->phase == TAIL_CURRENT) && group != NULL &&
           (has_other_group(tail, group) || lacks_member(tail, group));
}

/* An extent with the members chosen now would be better than this one. Of another group
 * only one that has more: so this comes to an end, whatever is chosen. */
static bool is_outdated(const struct tail_extent *tail, const struct chosen *chosen)
{
    const struct cluster_group *group = group_of(tail);
    if (!may_be_outdated(tail))
        return false;
    if (has_other_group(tail, group))
        return true;
    for (uint32_t i = 0; chosen->group == group->id && i < chosen->count; i++) {
        if (!tail_has(tail, chosen->members[i]->node))
            return true;
    }
    return chosen->group != group->id && chosen->count > tail->member_count;
}

static bool wants_renewal(const struct disk_log *log)
{
    if (log->local != NULL || log->down != 0 || log->is_closing || !log->is_watching ||
        !TAILQ_EMPTY(&log->moving))
        return false;
    const struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (may_be_outdated(tail))
            return true;
    }
    return false;
}

static void drop_outdated(struct disk_log *log, const struct chosen *chosen)
{
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->phase == TAIL_AHEAD && is_outdated(tail, chosen)) {
            tail_decide(tail, 0);
            tail->is_hurried = true;
        }
    }
}

bool log_writes_to_pool(const struct disk_log *log)
{
    const struct tail_extent *tail = log->current;
    const struct cluster_group *group = tail != NULL ? group_of(tail) : NULL;
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(log->cluster), log->disk);
    return group == NULL || disk == NULL || group->pool == disk->pool;
}

/* What was only opened ahead ends at 0; the current extent when there is another. */
void log_renew(struct disk_log *log)
{
    log->renewed_ns = loop_now_ns(log->loop);
    log->renews = false;
    if (!wants_renewal(log))
        return;
    struct chosen chosen = log_choose_sound(log);
    if (chosen.count == 0)
        return;
    drop_outdated(log, &chosen);
    struct tail_extent *tail = log->current;
    if (tail == NULL || !is_outdated(tail, &chosen))
        return;
    /* Where there is no space there will be no other, and nothing is lost by that. */
    log->renews = log_first_ahead(log, false) == NULL && !log->is_full;
    if (log->renews)
        return; /* the opener runs; it is looked at again then */
    tail->is_hurried = true;
    log->sync_due = true;
    trace(log->loop, "log renew", log->disk, tail->extent.v, tail->end);
    log_end_current(log);
}
