/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What members are told when an extent has ended: its final length, and later that its
 * headers are of no use any more.
 *
 * Happy path: a task for each member that has something to be told does it, extent after
 * extent; when all have made one final it may leave the list, and when all have let its
 * headers go it is forgotten.
 *
 * What can fail: a member that is silent, or cannot. Its task ends, the others go on; it
 * is asked again after a while, and the extent stays listed until then. One that does not
 * count (any more) is told once, if it is up, and not waited for. Headers that cannot be
 * trimmed are found again by the next start.
 *
 * On close there is a last try. A task may be in a call to a silent member then; it lets
 * go of the log and ends when the call does.
 */
#include "replication/disk_log_internal.h"

/* --- what is to be told --- */

static uint32_t index_of(const struct tail_extent *tail, const struct replica *member)
{
    uint32_t i = 0;
    while (i < tail->member_count && tail->members[i] != member)
        i++;
    return i;
}

static bool is_up(const struct tail_extent *tail, uint32_t member)
{
    const struct disk_log *log = tail->log;
    const struct cluster_node *node = cluster_node_by_id(cluster_state(log->cluster),
                                                         tail->members[member]->node);
    return node != NULL && cluster_node_is_usable(node);
}

/* Nothing may be under way, or it might come after. */
static bool is_due(const struct tail_extent *tail, uint32_t member)
{
    unsigned bit = 1U << member;
    if (tail->ops > 0)
        return false;
    if (tail->phase == TAIL_LEFT)
        return (tail->made_final & ~tail->trimmed & bit) != 0;
    if (tail->phase != TAIL_COMMITTED || (tail->made_final & bit))
        return false;
    return log_member_counts(tail, member) ||
           ((tail->missed & bit) == 0 && is_up(tail, member));
}

static struct tail_extent *next_for(const struct janitor *janitor)
{
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &janitor->log->tails, link)
    {
        uint32_t member = index_of(tail, janitor->member);
        if (member < tail->member_count && is_due(tail, member))
            return tail;
    }
    return NULL;
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

/* Moves the extent on if all were told who count. It may be gone then. */
static void look_at(struct tail_extent *tail)
{
    struct disk_log *log = tail->log;
    if (tail->phase != TAIL_COMMITTED && tail->phase != TAIL_LEFT)
        return;
    for (uint32_t i = 0; i < tail->member_count; i++) {
        if (is_due(tail, i) || (tail->ops > 0 && log_member_counts(tail, i)))
            return;
    }
    if (tail->tellers > 0 || tail->ops > 0)
        return;
    bool is_forgotten = tail->phase == TAIL_LEFT;
    if (tail->phase == TAIL_COMMITTED) {
        tail->phase = TAIL_FINAL;
        trace(log->loop, "log final", log->disk, tail->extent.v, tail->length);
        /* An empty one may have left the list with the command that closed it. */
        is_forgotten =
            tail->proposer == PROPOSER_NONE && !is_listed(log, tail->extent);
    }
    if (is_forgotten) {
        trace(log->loop, "log left", log->disk, tail->extent.v, tail->length);
        tail_destroy(tail);
    }
}

/* --- telling --- */

/* Said once; it is tried again and again, if it matters. */
static void failed(struct janitor *janitor, struct tail_extent *tail, uint32_t member,
                   int code)
{
    struct disk_log *log = janitor->log;
    bool has_left = tail->phase == TAIL_LEFT;
    janitor->retry_ns = loop_now_ns(log->loop) + JANITOR_RETRY_NS;
    if (!has_left && !log_member_counts(tail, member)) {
        tail->missed |= 1U << member;
        return;
    }
    if (!tail->finalize_failed)
        log_warning(log->loop, "disk %llu: extent %llx %s on node %llu: %s",
                    (unsigned long long)log->disk, (unsigned long long)tail->extent.v,
                    has_left ? "keeps its headers" : "is not final",
                    (unsigned long long)janitor->member->node, err_text(code));
    tail->finalize_failed = true;
    if (has_left)
        tail->trimmed |= 1U << member; /* the next start does it */
}

/* False: that is all for now. */
static async bool tell(struct janitor *janitor, struct tail_extent *tail)
{
    struct replica *member = janitor->member;
    struct address extent = tail->extent;
    enum tail_phase phase = tail->phase;
    uint32_t index = index_of(tail, member);
    tail->tellers++;
    int rc = phase == TAIL_LEFT
                 ? member->ops->trim_headers(member, extent)
                 : member->ops->finalize(member, extent, tail->length);
    if (janitor->log == NULL)
        return false;
    assert(tail->phase == phase && tail->tellers > 0);
    tail->tellers--;
    if (rc != 0)
        failed(janitor, tail, index, rc);
    else if (phase == TAIL_LEFT)
        tail->trimmed |= 1U << index;
    else
        tail->made_final |= 1U << index;
    look_at(tail);
    return rc == 0;
}

static void janitor_main(struct task_call *call)
{
    struct janitor *janitor = container_of(call, struct janitor, call);
    struct tail_extent *tail;
    while (janitor->log != NULL && (tail = next_for(janitor)) != NULL &&
           tell(janitor, tail))
        ;
    janitor->runs = false;
    if (janitor->log == NULL) {
        free(janitor);
        return;
    }
    log_kick(janitor->log);
}

/* --- the janitors of a log --- */

static struct janitor *janitor_of(struct disk_log *log, struct replica *member)
{
    struct janitor *janitor;
    LIST_FOREACH (janitor, &log->janitors, link) {
        if (janitor->member == member)
            return janitor;
    }
    janitor = calloc(1, sizeof *janitor);
    if (janitor == NULL)
        return NULL;
    janitor->log = log;
    janitor->member = member;
    LIST_INSERT_HEAD(&log->janitors, janitor, link);
    return janitor;
}

static void start(struct disk_log *log, struct replica *member)
{
    struct janitor *janitor = janitor_of(log, member);
    if (janitor == NULL || janitor->runs || janitor->retry_ns > loop_now_ns(log->loop))
        return;
    janitor->runs = true;
    janitor->call = (struct task_call){
        .main = janitor_main, .name = "log janitor", .system = true};
    task_start(log->loop, &janitor->call);
}

void log_clean_up(struct disk_log *log)
{
    struct tail_extent *tail, *next;
    log->wants_cleaning = false;
    TAILQ_FOREACH_SAFE(tail, &log->tails, link, next)
    {
        for (uint32_t i = 0; i < tail->member_count; i++) {
            if (is_due(tail, i))
                start(log, tail->members[i]);
        }
        look_at(tail);
    }
}

bool log_cleans_here(const struct disk_log *log)
{
    const struct janitor *janitor;
    LIST_FOREACH (janitor, &log->janitors, link) {
        if (janitor->runs && janitor->member->node == log->node)
            return true;
    }
    return false;
}

static bool cleans_anywhere(const struct disk_log *log)
{
    const struct janitor *janitor;
    LIST_FOREACH (janitor, &log->janitors, link) {
        if (janitor->runs)
            return true;
    }
    return false;
}

async void log_clean_up_all(struct disk_log *log)
{
    uint64_t begun_ns = loop_now_ns(log->loop);
    struct janitor *janitor;
    LIST_FOREACH (janitor, &log->janitors, link)
        janitor->retry_ns = 0;
    log_clean_up(log);
    while (cleans_anywhere(log) &&
           (log->local != NULL || loop_now_ns(log->loop) - begun_ns < CLOSE_FINALIZE_NS))
        waitlist_wait(&log->changed);
}

void log_janitors_leave(struct disk_log *log)
{
    struct janitor *janitor;
    while ((janitor = LIST_FIRST(&log->janitors)) != NULL) {
        LIST_REMOVE(janitor, link);
        assert(!janitor->runs || janitor->member->node != log->node);
        janitor->log = NULL;
        if (!janitor->runs)
            free(janitor);
    }
}
