/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replay: the records of the log since the checkpoint, in order of number.
 *
 * Happy path: the take-over left an index of ranges, extent and numbers. The next number
 * is looked up, that extent's headers are walked, and its batches delivered piece by
 * piece up to its end, or to where a later extent has the number, too. So memory does not
 * grow with the log. After that the batches of which a later extent has the copy that
 * counts are told as spare: what is in them is dead.
 *
 * What can fail: reading, or the caller's function, which ends it. Members that are
 * silent are asked again for a while. A number that the take-over saw is then missing or
 * damaged: the disk is not opened, and may be again.
 *
 * The index is freed at the end.
 */
#include "replication/disk_log_internal.h"

struct replay {
    struct disk_log *log;
    log_replay_fn *fn;
    void *arg;
    uint64_t next, last; /* numbers to deliver from this extent */
    const struct replay_range *range; /* of spares: whose they are */
    uint64_t spare_next;              /* those before it were told */
    bool is_refused;                  /* by the caller's function */
    uint32_t crcs[BATCH_BLOCKS];
};

/* Neighbours of a data record are one piece again. */
static bool continues(const struct log_piece *piece, const struct entry *entry)
{
    return piece->kind == ENTRY_DATA && entry->kind == ENTRY_DATA &&
           entry->key == piece->key + piece->count;
}

static int deliver(struct replay *replay, const struct header *head,
                   const struct entry *entries, bool is_spare)
{
    uint32_t block = head->block + 1;
    uint32_t crc_count = 0;
    for (uint32_t i = 0; i < head->count;) {
        const struct entry *entry = &entries[i++];
        struct log_piece piece = {.kind = entry->kind,
                                  .key = entry->key,
                                  .count = entry->count,
                                  .aux = entry->aux,
                                  .generation = head->generation,
                                  .checkpoint = head->checkpoint,
                                  .address = ADDRESS_NULL,
                                  .number = head->number,
                                  .is_spare = is_spare};
        if (entry_has_block(entry->kind)) {
            piece.address = address_plus(head->extent, block++);
            piece.crcs = &replay->crcs[crc_count];
            replay->crcs[crc_count++] = entry->crc;
        }
        while (i < head->count && continues(&piece, &entries[i])) {
            replay->crcs[crc_count++] = entries[i++].crc;
            piece.count++;
            block++;
        }
        int rc = replay->fn(replay->arg, &piece);
        if (rc != 0) {
            replay->is_refused = true;
            return rc;
        }
    }
    return 0;
}

static int replay_header(void *arg, const struct header *head,
                         const struct entry *entries, const struct roll_entry *rolls)
{
    struct replay *replay = arg;
    (void)rolls;
    if (head->kind != HEADER_BATCH || head->number != replay->next ||
        head->number > replay->last)
        return 0;
    replay->next++;
    if (head->number % 8 == 0 && planted(PLANT_REPLAY_SKIPS))
        return 0;
    return deliver(replay, head, entries, false);
}

static bool has(const struct replay_range *range, uint64_t number)
{
    return range->first <= number && number <= range->last;
}

/* Of several copies the last one counts. */
static const struct replay_range *range_of(const struct disk_log *log, uint64_t number)
{
    for (uint32_t i = log->range_count; i-- > 0;) {
        if (has(&log->ranges[i], number))
            return &log->ranges[i];
    }
    return NULL;
}

/* From `number` on: up to where a later extent has the copies that count. */
static uint64_t range_end(const struct disk_log *log, const struct replay_range *range,
                          uint64_t number)
{
    uint64_t end = range->last;
    const struct replay_range *later = range + 1;
    for (; later < log->ranges + log->range_count; later++) {
        if (later->first > number && later->first <= end)
            end = later->first - 1;
    }
    return end;
}

/* By any member that has it. One that fails half-way is no harm: what was delivered is
 * passed over the next time. */
static async int walk_range_once(const struct replay_range *range, header_fn *fn,
                                 struct replay *replay)
{
    int rc = -EHOSTUNREACH, silence = 0;
    for (uint32_t i = 0; rc != 0 && i < range->member_count && !replay->is_refused; i++) {
        struct replica *member = range->members[i];
        rc = member->ops->walk_headers(member, range->extent, fn, replay, NULL);
        silence = log_is_silence(rc) ? rc : silence;
    }
    return rc != 0 && silence != 0 && !replay->is_refused ? silence : rc;
}

static async int walk_range(const struct replay_range *range, header_fn *fn,
                            struct replay *replay)
{
    uint64_t until_ns = 0;
    int rc;
    do
        rc = walk_range_once(range, fn, replay);
    while (rc != 0 && !replay->is_refused &&
           log_may_ask_again(replay->log, rc, &until_ns));
    return rc;
}

/* --- spares --- */

static int spare_header(void *arg, const struct header *head, const struct entry *entries,
                        const struct roll_entry *rolls)
{
    struct replay *replay = arg;
    const struct replay_range *range = replay->range;
    (void)rolls;
    if (head->kind != HEADER_BATCH || !has(range, head->number) ||
        head->number < replay->spare_next ||
        (range->is_final && head->number <= replay->log->covers) ||
        range_of(replay->log, head->number) == range)
        return 0;
    replay->spare_next = head->number + 1;
    return deliver(replay, head, entries, true);
}

static bool has_spares(const struct disk_log *log, const struct replay_range *range)
{
    const struct replay_range *later = range + 1;
    for (; later < log->ranges + log->range_count; later++) {
        if (later->first <= range->last && range->first <= later->last)
            return true;
    }
    return false;
}

static async int tell_spares(struct replay *replay, struct error *err)
{
    const struct disk_log *log = replay->log;
    for (uint32_t i = 0; i < log->range_count; i++) {
        const struct replay_range *range = &log->ranges[i];
        if (!has_spares(log, range))
            continue;
        replay->range = range;
        replay->spare_next = 0;
        int rc = walk_range(range, spare_header, replay);
        if (rc != 0)
            return err_set(err, rc, "replay of extent %llx: %s",
                           (unsigned long long)range->extent.v, err_text(rc));
    }
    return 0;
}

async int log_replay(struct disk_log *log, log_replay_fn *fn, void *arg,
                     struct error *err)
{
    struct replay *replay = calloc(1, sizeof *replay);
    if (replay == NULL)
        return err_set(err, -ENOMEM, "replay: no memory");
    *replay = (struct replay){.log = log, .fn = fn, .arg = arg, .next = log->covers + 1};
    int rc = 0;
    while (rc == 0 && replay->next <= log->replay_last) {
        const struct replay_range *range = range_of(log, replay->next);
        assert(range != NULL); /* the plan found no gap */
        uint64_t before = replay->next;
        replay->last = range_end(log, range, replay->next);
        rc = walk_range(range, replay_header, replay);
        if (rc == 0 && replay->next == before)
            rc = -PLX_EDAMAGED;
        if (rc != 0)
            err_set(err, rc, "replay of extent %llx at batch %llu: %s",
                    (unsigned long long)range->extent.v,
                    (unsigned long long)replay->next, err_text(rc));
    }
    if (rc == 0)
        rc = tell_spares(replay, err);
    free(replay);
    free(take(log->ranges));
    log->range_count = 0;
    return rc;
}
