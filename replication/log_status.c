/* SPDX-License-Identifier: Apache-2.0 */
/* What a log is doing, and what its writes wait for, in words. */
#include <stdarg.h>
#include <stdio.h>

#include "replication/disk_log_internal.h"

/* Less than that is how long things take. */
#define WAITS_FROM_NS (500 * NS_PER_MS)

void log_stalled(struct disk_log *log, int code, const char *format, ...)
{
    struct stall *stall = &log->stall;
    if (stall->code == 0)
        stall->since_ns = loop_now_ns(log->loop);
    bool is_new = stall->code != code;
    stall->code = code;
    va_list args;
    va_start(args, format);
    vsnprintf(stall->text, sizeof stall->text, format, args);
    va_end(args);
    if (is_new)
        log_warning(log->loop, "disk %llu: no new extent: %s",
                    (unsigned long long)log->disk, stall->text);
}

static void say(struct log_status *status, uint64_t since_ns, uint64_t now_ns,
                const char *format, ...) __attribute__((format(printf, 4, 5)));

static void say(struct log_status *status, uint64_t since_ns, uint64_t now_ns,
                const char *format, ...)
{
    va_list args;
    status->waiting_ns = now_ns - since_ns;
    va_start(args, format);
    vsnprintf(status->text, sizeof status->text, format, args);
    va_end(args);
}

/* The members whose bits are not set in `answers`. */
static void name_silent(const struct tail_extent *tail, unsigned answers, char *ret,
                        size_t cap)
{
    size_t at = 0;
    ret[0] = '\0';
    for (uint32_t i = 0; i < tail->member_count; i++) {
        if ((answers & 1U << i) == 0 && at < cap)
            at += (size_t)snprintf(ret + at, cap - at, "%s%llu", at ? ", " : "",
                                   (unsigned long long)tail->members[i]->node);
    }
}

static bool writes_wait(const struct disk_log *log)
{
    return !STAILQ_EMPTY(&log->queued) || !TAILQ_EMPTY(&log->moving) ||
           !TAILQ_EMPTY(&log->inflight);
}

static void say_append(const struct disk_log *log, struct log_status *status)
{
    const struct batch *batch = TAILQ_FIRST(&log->inflight);
    uint64_t now_ns = loop_now_ns(log->loop);
    char who[100];
    if (batch == NULL || now_ns - batch->sent_ns < WAITS_FROM_NS)
        return;
    unsigned answers = batch->answers & batch->tail->roll_answers;
    name_silent(batch->tail, answers, who, sizeof who);
    say(status, batch->sent_ns, now_ns, "node %s has not answered an append", who);
}

static void say_sync(const struct disk_log *log, struct log_status *status)
{
    uint64_t now_ns = loop_now_ns(log->loop);
    const struct tail_extent *tail;
    char who[100];
    if (log->round_owed == 0 || now_ns - log->round_begun_ns < WAITS_FROM_NS)
        return;
    TAILQ_FOREACH(tail, &log->tails, link)
    {
        if (tail->sync_owed == 0)
            continue;
        name_silent(tail, ~tail->sync_owed, who, sizeof who);
        say(status, log->round_begun_ns, now_ns, "node %s has not answered a sync", who);
        return;
    }
}

static void say_why(const struct disk_log *log, struct log_status *status)
{
    uint64_t now_ns = loop_now_ns(log->loop);
    if (log->down != 0)
        say(status, now_ns, now_ns, "gave up: %s", err_text(log->down));
    else if (log->wants_extent && log->stall.code != 0)
        say(status, log->stall.since_ns, now_ns, "no new extent: %s", log->stall.text);
    else if (writes_wait(log) || !STAILQ_EMPTY(&log->flushes))
        say_append(log, status);
    if (status->text[0] == '\0' && (log->is_starved || !STAILQ_EMPTY(&log->flushes)))
        say_sync(log, status);
}

void log_status(const struct disk_log *log, struct log_status *ret_status)
{
    struct log_status status = {.epoch = log->epoch,
                                .last = log->sealed,
                                .committed = log->committed,
                                .flushed = log->flushed,
                                .retained_bytes = log->retained_bytes,
                                .queued_bytes = log->queued_blocks * BLOCK_SIZE,
                                .extent_count = log->tail_count};
    const struct tail_extent *current = log->current;
    for (uint32_t i = 0; current != NULL && i < current->member_count; i++)
        status.members[status.member_count++] = current->members[i]->node;
    say_why(log, &status);
    *ret_status = status;
}
