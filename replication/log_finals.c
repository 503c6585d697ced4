/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Final lengths, on their way into the cluster's state and out of it.
 *
 * Happy path: any command of the disk carries the lengths decided since. Once it is
 * committed the janitors tell the members; a later command then takes the extent off the
 * list, if replay needs nothing in it. If somebody waits for a length and no command
 * comes, the opener makes one (log_opener.c).
 *
 * What can fail: the command. A length is sent again with the next one, which is
 * harmless if it was committed all the same. An extent that a lost command may have
 * opened is found on the list, and ends at 0. If the list says that the lease is
 * another's, the log gives up at once.
 *
 * On close the last command carries what is left.
 */
#include "replication/disk_log_internal.h"

static void add_final(struct disk_log *log, enum proposer proposer,
                      struct tail_extent *tail, bool leaves, uint32_t *count)
{
    assert(*count < LOG_EXTENTS_MAX);
    tail->proposer = proposer;
    tail->leaving = leaves;
    log->finals[proposer][(*count)++] =
        (struct final_length){.extent = tail->extent,
                              .length = tail->length,
                              .last_number = tail->last_number,
                              .leaves = leaves};
}

/* A length may be committed when all that lay above it is flushed elsewhere. */
static bool may_commit(const struct disk_log *log, const struct tail_extent *tail)
{
    return tail->phase == TAIL_DECIDED && tail->proposer == PROPOSER_NONE &&
           (log->flushed >= tail->needs_flushed || planted(PLANT_LENGTH_EARLY));
}

void log_finals_fill(struct disk_log *log, enum proposer proposer, uint64_t covers,
                     struct cluster_command *command)
{
    uint32_t count = 0;
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        bool may_leave = tail->phase == TAIL_FINAL && tail->proposer == PROPOSER_NONE &&
                         tail->last_number <= covers; /* L11 */
        if (count == LOG_EXTENTS_MAX)
            break;
        if (may_commit(log, tail))
            add_final(log, proposer, tail, false, &count);
        else if (may_leave)
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
    struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
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

bool log_finals_due(const struct disk_log *log)
{
    const struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->is_hurried && may_commit(log, tail))
            return true;
    }
    return false;
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

/* --- what the cluster says --- */

static bool is_known(const struct disk_log *log, struct address extent)
{
    const struct tail_extent *tail;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (address_equal(tail->extent, extent))
            return true;
    }
    return false;
}

/* Opened by a command of which nothing was heard. Nobody created it. */
static void adopt(struct disk_log *log, const struct log_extent *from)
{
    struct tail_extent *tail = tail_create(log, from->extent, from->epoch);
    if (tail == NULL)
        return; /* it is there the next time, too */
    for (uint32_t i = 0; i < from->member_count; i++) {
        struct replica *member = log->directory->find(log->directory, from->members[i]);
        if (member != NULL)
            tail->members[tail->member_count++] = member;
    }
    tail_decide(tail, 0);
    tail->is_hurried = true;
    trace(log->loop, "log adopt", log->disk, from->extent.v, log->applied_seen);
}

static void adopt_unknown(struct disk_log *log, const struct cluster_disk *disk)
{
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        const struct log_extent *extent = &disk->extents[i];
        bool is_open = extent->epoch == log->epoch && !extent->final;
        if (is_open && !is_known(log, extent->extent))
            adopt(log, extent);
    }
}

static bool lease_is_ours(const struct disk_log *log, const struct cluster_disk *disk)
{
    if (disk == NULL || disk->epoch != log->epoch || disk->owner != log->node)
        return planted(PLANT_LEASE_UNWATCHED);
    const struct cluster_node *self =
        cluster_node_by_id(cluster_state(log->cluster), log->node);
    return self == NULL || (self->flags & NODE_GONE) == 0;
}

void log_look_at_state(struct disk_log *log)
{
    const struct cluster_state *state = cluster_state(log->cluster);
    const struct cluster_disk *disk = cluster_disk_by_id(state, log->disk);
    log->applied_seen = cluster_state_applied(state);
    if (!log->is_watching || log->down != 0)
        return;
    if (!lease_is_ours(log, disk)) {
        log_go_down(log, -PLX_EEPOCH);
        return;
    }
    if (log->is_unsure && !log->opener_submits && disk != NULL)
        adopt_unknown(log, disk);
    log->wants_cleaning = true; /* a member may count no more */
}
