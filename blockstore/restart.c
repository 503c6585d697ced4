/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The restart scan: finds the valid prefix of every extent that a former process left
 * open, and stops it there.
 *
 * Happy path: a few tasks walk the extents in parallel. Headers are checked from block 0
 * on, since each names the CRC of the one before; data only beyond the length that was
 * known to be synced. Then one sync makes durable what was found, and one write of the
 * metadata records the stops.
 *
 * What can fail: a header or data that does not fit ends the prefix; that is how a crash
 * looks. It is damage if the prefix ends below what was synced or the device cannot read,
 * and also if headers further on call what is missing flushed (beyond.c): a header that
 * is missing leaves the extent as long as it was, so that whoever walks it finds the
 * damage, and data that is damaged costs itself alone. Where another extent tells that
 * more of this one was flushed, its log will refuse to open. A damaged extent keeps all
 * of its space, for whoever looks at it later, and a line says so. A failed sync or
 * metadata write refuses the store; the next start scans again.
 *
 * Nothing of a scan is left when store_open returns.
 */
#include "blockstore/store_internal.h"

struct job {
    struct extent *extent;
    uint32_t pieces; /* what it keeps */
    uint32_t space;  /* blocks it has */
    bool is_damaged;
    uint64_t first, last; /* batches in its prefix; 0: none */
    uint64_t flushed;     /* the highest number that its headers call so */
    bool is_rolled;       /* a roll record has decided its length: */
    uint32_t rolled_length;
};

struct scan_call {
    struct task_call call;
    struct restart *restart;
};

struct restart {
    struct store *store;
    struct job *jobs;
    uint32_t count, next;
    uint32_t running; /* tasks */
    int result;
    struct event over;
    struct scan_call calls[SCAN_TASKS];
};

static void collect(void *arg, struct extent *e)
{
    struct restart *restart = arg;
    if (e->state != EXTENT_OPEN)
        return;
    if (restart->jobs != NULL)
        restart->jobs[restart->count].extent = e;
    restart->count++;
}

/* --- headers --- */

/* Those of one disk lie side by side. */
static int compare_jobs(const void *a, const void *b)
{
    const struct extent *x = ((const struct job *)a)->extent;
    const struct extent *y = ((const struct job *)b)->extent;
    if (x->disk != y->disk)
        return x->disk < y->disk ? -1 : 1;
    return x->address.v < y->address.v ? -1 : x->address.v > y->address.v;
}

/* What a roll record says of others, which may not be scanned yet. */
static void note_rolls(struct restart *restart, const struct walk *walk)
{
    for (uint32_t i = 0; i < walk->head.count; i++) {
        struct extent wanted = {.disk = walk->head.disk,
                                .address = walk->rolls[i].extent};
        const struct job key = {.extent = &wanted};
        struct job *job = bsearch(&key, restart->jobs, restart->count, sizeof key,
                                  compare_jobs);
        if (job == NULL)
            continue;
        job->is_rolled = true;
        if (job->rolled_length < walk->rolls[i].length)
            job->rolled_length = walk->rolls[i].length;
    }
}

static void note_header(struct restart *restart, struct job *job, const struct walk *walk)
{
    const struct header *head = &walk->head;
    bitmap_set(job->extent->headers, head->block); /* E10 */
    job->flushed = max_u64(job->flushed, head->flushed);
    if (head->kind == HEADER_ROLL) {
        note_rolls(restart, walk);
        return;
    }
    job->first = job->first == 0 ? head->number : job->first;
    job->last = head->number;
}

/* --- the end of a prefix --- */

/* The data behind walk->head is damaged: whether it was flushed. */
static async bool data_was_flushed(struct store *store, struct job *job,
                                   struct walk *walk, int code)
{
    uint32_t block = walk->data_block;
    if (job->flushed < walk->head.number) {
        struct beyond beyond;
        beyond_look(walk, walk->head.block + 1 + walk->data_blocks, NULL, &beyond);
        job->flushed = max_u64(job->flushed, beyond.flushed);
    }
    if (job->flushed < walk->head.number)
        return false;
    job->extent->is_damaged = true;
    log_warning(store->loop,
                "store %s: extent %llx of disk %llu: block %u, which was flushed, is "
                "damaged (%s); reads of it fail, nothing else does",
                store->path, (unsigned long long)walk->extent->address.v,
                (unsigned long long)walk->extent->disk, block, err_text(code));
    return true;
}

/* The header where the walk has ended is damaged: whether it was flushed. Then the extent
 * goes on to the last batch that is found behind it. */
static async bool header_was_flushed(struct store *store, struct job *job,
                                     struct walk *walk)
{
    struct extent *e = job->extent;
    uint32_t block = walk->chain.block;
    struct beyond beyond;
    beyond_look(walk, block + 1, e->headers, &beyond);
    job->flushed = max_u64(job->flushed, beyond.flushed);
    if (!beyond_needs_header(&walk->chain, &beyond)) {
        bitmap_cut(e->headers, block);
        return false;
    }
    bitmap_set(e->headers, block);
    if (block == 0 && beyond.end > 1) /* the first batch is behind the roll record */
        bitmap_set(e->headers, 1);
    bitmap_cut(e->headers, beyond.end);
    e->length = beyond.end;
    e->is_damaged = true;
    log_warning(store->loop,
                "store %s: extent %llx of disk %llu: the header in block %u, which was "
                "flushed, is damaged; the disk is not opened without it, and nothing of "
                "the extent is freed; snapshots of the disk can be read and cloned",
                store->path, (unsigned long long)e->address.v,
                (unsigned long long)e->disk, block);
    return true;
}

/* Walks on as far as all fits. */
static async int walk_prefix(struct restart *restart, struct job *job, struct walk *walk,
                             bool *ret_ends_at_header)
{
    struct store *store = restart->store;
    uint32_t known_synced = job->extent->durable;
    while (walk->chain.block < walk->limit) {
        walk->wants_data = walk->chain.block >= known_synced;
        int result = walk_head(walk);
        *ret_ends_at_header = result < 0;
        if (result < 0)
            return result;
        if (walk->head.block + 1 + walk->data_blocks > known_synced)
            result = walk_data(walk);
        if (result < 0 && !data_was_flushed(store, job, walk, result))
            return result;
        note_header(restart, job, walk);
        walk_next(walk);
    }
    return 0;
}
static async int scan(struct restart *restart, struct job *job)
{
    struct store *store = restart->store;
    struct extent *e = job->extent;
    job->space = runs_blocks(&e->runs);
    e->headers = calloc(1, BITMAP_BYTES);
    struct walk *walk = walk_create(store, e, job->space);
    if (walk == NULL || e->headers == NULL) {
        if (walk != NULL)
            walk_destroy(walk);
        return -ENOMEM;
    }
    bool ends_at_header = false;
    int result = walk_prefix(restart, job, walk, &ends_at_header);
    e->length = walk->chain.block;
    bool was_flushed = ends_at_header && header_was_flushed(store, job, walk);
    walk_destroy(walk);
    trace(store->loop, "extent.scan", e->address.v, e->length, e->durable);
    bool is_end = result == 0 || result == -PLX_EDAMAGED || result == -PLX_ECHECKSUM;
    job->is_damaged = was_flushed || e->length < e->durable || !is_end;
    if (job->is_damaged && !was_flushed)
        log_warning(store->loop,
                    "store %s: extent %llx of disk %llu: damaged at block %u, synced up "
                    "to %u: %s",
                    store->path, (unsigned long long)e->address.v,
                    (unsigned long long)e->disk, e->length, e->durable, err_text(result));
    return 0;
}

static void scan_task(struct task_call *call)
{
    struct restart *restart = container_of(call, struct scan_call, call)->restart;
    while (restart->next < restart->count && restart->result == 0) {
        int result = scan(restart, &restart->jobs[restart->next++]);
        if (result < 0)
            restart->result = result;
    }
    if (--restart->running == 0)
        event_set(&restart->over);
}

static async void scan_all(struct restart *restart)
{
    restart->running = min_u32(SCAN_TASKS, restart->count);
    for (uint32_t i = 0; i < restart->running; i++) {
        restart->calls[i] = (struct scan_call){
            .call = {.main = scan_task, .name = "restart scan", .system = true},
            .restart = restart,
        };
        task_start(restart->store->loop, &restart->calls[i].call);
    }
    event_wait(&restart->over);
}

/* --- what others say --- */

/* Batches that were flushed but are in none of its disk's extents. `neighbours`: all of
 * the disk. */
static bool misses_batches(const struct job *job, const struct job *neighbours,
                           uint32_t count)
{
    uint64_t next = job->last + 1;
    bool was_flushed = false;
    if (job->last == 0)
        return false;
    for (uint32_t i = 0; i < count; i++) {
        const struct job *other = &neighbours[i];
        if (other->extent->epoch != job->extent->epoch)
            continue; /* numbers above a cut are given again */
        if (other->first <= next && next <= other->last)
            return false;
        was_flushed = was_flushed || other->flushed >= next;
    }
    return was_flushed;
}

/* Its take-over will find the same, and refuse; until then the space stays. */
static void judge(struct restart *restart, struct job *job, const struct job *neighbours,
                  uint32_t count)
{
    const struct extent *e = job->extent;
    if (!job->is_damaged) {
        job->is_damaged = job->is_rolled ? e->length < job->rolled_length
                                         : misses_batches(job, neighbours, count);
        if (job->is_damaged)
            log_warning(restart->store->loop,
                        "store %s: extent %llx of disk %llu: ends at block %u, but "
                        "another extent tells of more that was flushed; its space is "
                        "kept until the disk is opened",
                        restart->store->path, (unsigned long long)e->address.v,
                        (unsigned long long)e->disk, e->length);
    }
    job->pieces = pieces_of(job->is_damaged ? job->space : e->length);
}

static void judge_all(struct restart *restart)
{
    struct job *jobs = restart->jobs;
    for (uint32_t first = 0, end = 0; first < restart->count; first = end) {
        while (end < restart->count && jobs[end].extent->disk == jobs[first].extent->disk)
            end++;
        for (uint32_t i = first; i < end; i++)
            judge(restart, &jobs[i], &jobs[first], end - first);
    }
}

/* --- the stops --- */

/* All of them stopped, in one write. */
static async int record_stops(struct restart *restart)
{
    struct store *store = restart->store;
    struct kv_batch batch;
    kv_batch_init(&batch);
    for (uint32_t i = 0; i < restart->count; i++) {
        struct extent *e = restart->jobs[i].extent;
        e->state = EXTENT_STOPPED;
        e->restart_scanned = true;
        e->durable = e->length;
        extent_count(&store->extents, e, e->length, e->length);
        if (e->length == 0)
            headers_drop(e);
        record_put(store, &batch, e, restart->jobs[i].pieces);
    }
    if (batch.bad) {
        kv_batch_done(&batch);
        return -ENOMEM;
    }
    int result = kv_write_wait(store->kv, &batch, KV_SYNCED);
    if (result < 0)
        return result;
    for (uint32_t i = 0; i < restart->count; i++)
        space_cut(store, restart->jobs[i].extent, restart->jobs[i].pieces);
    return 0;
}

static async int scan_and_stop(struct restart *restart, struct error *err)
{
    const char *path = restart->store->path;
    scan_all(restart);
    if (restart->result < 0)
        return err_set(err, restart->result, "%s: scan of open extents: %s", path,
                       err_text(restart->result));
    judge_all(restart);
    int result = file_sync(restart->store->file);
    if (result < 0)
        return err_set(err, result, "%s: sync after the scan: %s", path,
                       err_text(result));
    result = record_stops(restart);
    if (result < 0)
        return err_set(err, result, "%s: metadata write: %s", path, err_text(result));
    return 0;
}

async int restart_scan(struct store *store, struct error *err)
{
    cleanup(free_ptr) struct restart *restart = calloc(1, sizeof *restart);
    if (restart == NULL)
        return err_set(err, -ENOMEM, "%s: out of memory", store->path);
    restart->store = store;
    event_init(&restart->over);
    extent_each(&store->extents, collect, restart);
    if (restart->count == 0)
        return 0;
    cleanup(free_ptr) struct job *jobs = calloc(restart->count, sizeof *jobs);
    if (jobs == NULL)
        return err_set(err, -ENOMEM, "%s: out of memory", store->path);
    restart->jobs = jobs;
    restart->count = 0;
    extent_each(&store->extents, collect, restart);
    qsort(jobs, restart->count, sizeof *jobs, compare_jobs);
    return scan_and_stop(restart, err);
}
