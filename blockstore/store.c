/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store as a whole: making one, opening and closing it.
 *
 * Happy path of an open: superblock; the records that belong to it, each claiming its
 * space; the scan of what was left open; a generation more for both; then the store
 * serves. Closing adds another one. It goes to the records first, so records that are
 * behind the superblock have lost their end: a log of LevelDB that is cut off, or whose
 * last block has a damaged length, looks to LevelDB like one that was being written.
 *
 * What can fail: everything that was read is checked, and what does not fit refuses the
 * store with one line that names the path and the cause; nothing was changed then. Once
 * open, a failed sync or metadata write takes the store out of service, and so do
 * WRITE_FAILURES_MAX writes of data in a row: reads go on, everything else answers
 * -PLX_EFAILED.
 *
 * On close all that the store does by itself (record writes, zero-filling) is waited
 * for. Extents that are open stay so in their records.
 */
#include <stdio.h>

#include "blockstore/store_internal.h"

#define RECORDS_PAGE 256U

/* --- failing, answering --- */

static void fail_run(struct work *work)
{
    struct store *store = container_of(work, struct store, fail);
    struct extent_open *open, *next;
    TAILQ_FOREACH_SAFE (open, &store->opens, link, next)
        append_finish(store, open->extent);
}

void store_fail(struct store *store, const char *what, int code)
{
    if (store->failed)
        return;
    store->failed = true;
    store->failed_code = code;
    log_error(store->loop, "store %s: %s: %s; out of service until the next start",
              store->path, what, err_text(code));
    loop_post(store->loop, &store->fail);
}

void store_wrote(struct store *store, int result)
{
    if (result >= 0)
        store->writes_failed = 0;
    else if (result != -ENOSPC && result != -EDQUOT && result != -ENOMEM &&
             ++store->writes_failed == WRITE_FAILURES_MAX)
        store_fail(store, "writes", result);
}

static void answer_run(struct work *work)
{
    struct store *store = container_of(work, struct store, answer);
    struct append_list appends = STAILQ_HEAD_INITIALIZER(appends);
    struct read_list reads = STAILQ_HEAD_INITIALIZER(reads);
    struct sync_list syncs = STAILQ_HEAD_INITIALIZER(syncs);
    STAILQ_CONCAT(&appends, &store->refused_appends);
    STAILQ_CONCAT(&reads, &store->refused_reads);
    STAILQ_CONCAT(&syncs, &store->answered_syncs);
    while (!STAILQ_EMPTY(&appends)) {
        struct store_append *append = STAILQ_FIRST(&appends);
        STAILQ_REMOVE_HEAD(&appends, waiting);
        append->done(append);
    }
    while (!STAILQ_EMPTY(&reads)) {
        struct store_read *read = STAILQ_FIRST(&reads);
        STAILQ_REMOVE_HEAD(&reads, waiting);
        read->done(read);
    }
    while (!STAILQ_EMPTY(&syncs)) {
        struct store_sync *sync = STAILQ_FIRST(&syncs);
        STAILQ_REMOVE_HEAD(&syncs, link);
        sync->done(sync);
    }
    store_settled(store);
}

void store_settled(struct store *store)
{
    if (store->is_closing)
        waitlist_wake_all(&store->quiet);
}

/* --- create --- */

/* Partition tables, file systems and volume managers all begin in the first slab. */
static async int device_is_empty(struct file *file, const char *path, struct error *err)
{
    cleanup(free_ptr) uint8_t *slab = aligned_alloc(BLOCK_SIZE, SLAB_BYTES);
    int result = slab == NULL ? -ENOMEM : file_read(file, slab, SLAB_BYTES, 0);
    if (result < 0)
        return err_set(err, result, "%s: %s", path, err_text(result));
    if (slab[0] != 0 || memcmp(slab, slab + 1, SLAB_BYTES - 1) != 0)
        return err_set(err, -PLX_EEXISTS,
                       "%s: not empty; if nobody needs what is on it: dd if=/dev/zero "
                       "of=%s bs=1M count=1",
                       path, path);
    return 0;
}

static async int device_is_unused(struct file *file, const char *path, struct error *err)
{
    struct superblock sb;
    struct error ignored = {0};
    int result = superblock_load(file, path, &sb, &ignored);
    if (result == -PLX_EFORMAT)
        return device_is_empty(file, path, err);
    if (result == 0 || result == -PLX_ENEWER || result == -PLX_EDAMAGED)
        return err_set(err, -PLX_EEXISTS, "%s: holds a store already", path);
    return err_set(err, result, "%s", ignored.text);
}

static async int kv_is_unused(const struct store_options *options, struct error *err)
{
    struct kv_page page;
    uint8_t prefix = EXTENT_KEY_PREFIX;
    int result = kv_scan(options->kv, &prefix, 1, NULL, 0, 1, &page);
    if (result < 0)
        return err_set(err, result, "%s: metadata: %s", options->path, err_text(result));
    bool is_used = page.count > 0;
    kv_page_done(&page);
    if (is_used)
        return err_set(err, -PLX_EEXISTS, "%s: the metadata belongs to another store",
                       options->path);
    return 0;
}

static async int format(struct loop *loop, struct file *file,
                        const struct store_options *options, struct uid cluster,
                        struct error *err)
{
    uint64_t capacity_bytes = options->capacity_bytes;
    if (file_is_device(file)) {
        int result = device_is_unused(file, options->path, err);
        if (result < 0)
            return result;
        if (capacity_bytes == 0)
            capacity_bytes = file_size_bytes(file);
    }
    struct superblock sb = {
        .cluster = cluster,
        .store = options->incarnation,
        .capacity_bytes = round_down_u64(capacity_bytes, SLAB_BYTES),
        .created_wall_ns = loop_wall_ns(loop),
        .generation = 1,
    };
    if (sb.capacity_bytes < STORE_BYTES_MIN ||
        sb.capacity_bytes > file_size_bytes(file) ||
        sb.capacity_bytes / SLAB_BYTES > SLABS_MAX)
        return err_set(err, -EINVAL, "%s: %llu bytes cannot be a store", options->path,
                       (unsigned long long)capacity_bytes);
    if (uid_equal(sb.store, (struct uid){{0}}))
        loop_random_bytes(loop, &sb.store, sizeof sb.store);
    struct identity_format identity;
    identity_encode(&sb, &identity);
    struct kv_batch batch;
    kv_batch_init(&batch);
    kv_batch_put(&batch, IDENTITY_KEY, STORE_KEY_BYTES, &identity, sizeof identity);
    kv_batch_delete(&batch, FRESH_KEY, STORE_KEY_BYTES);
    /* The superblock comes last: with it the store is there. */
    int result = kv_write_wait(options->kv, &batch, KV_SYNCED);
    if (result < 0)
        return err_set(err, result, "%s: metadata write: %s", options->path,
                       err_text(result));
    result = superblock_store(file, &sb);
    if (result < 0)
        return err_set(err, result, "%s: superblock: %s", options->path,
                       err_text(result));
    return 0;
}

async int store_create(struct loop *loop, const struct store_options *options,
                       struct uid cluster, struct error *err)
{
    if (options->capacity_bytes != 0 && options->capacity_bytes < STORE_BYTES_MIN)
        return err_set(err, -EINVAL, "%s: a store has at least %llu bytes", options->path,
                       (unsigned long long)STORE_BYTES_MIN);
    int result = kv_is_unused(options, err);
    if (result < 0)
        return result;
    struct file_options file_options = {
        .create = true,
        .size_bytes = round_down_u64(options->capacity_bytes, SLAB_BYTES),
    };
    struct file *file = NULL;
    result = file_open(loop, options->path, &file_options, &file, err);
    if (result < 0)
        return result;
    result = format(loop, file, options, cluster, err);
    file_close(file);
    return result;
}

/* --- open --- */

static async int open_superblock(struct store *store, uint64_t capacity_bytes,
                                 struct error *err)
{
    struct superblock *sb = &store->super;
    int result = superblock_load(store->file, store->path, sb, err);
    if (result < 0)
        return result;
    uint64_t size_bytes = file_size_bytes(store->file);
    if (size_bytes < sb->capacity_bytes)
        return err_set(err, -PLX_EDAMAGED, "%s: truncated: %llu bytes of %llu are there",
                       store->path, (unsigned long long)size_bytes,
                       (unsigned long long)sb->capacity_bytes);
    capacity_bytes = round_down_u64(capacity_bytes, SLAB_BYTES);
    if (capacity_bytes > sb->capacity_bytes) {
        if (capacity_bytes / SLAB_BYTES > SLABS_MAX)
            return err_set(err, -EINVAL, "%s: a store cannot be that large", store->path);
        result = size_bytes < capacity_bytes ? file_grow(store->file, capacity_bytes) : 0;
        if (result < 0)
            return err_set(err, result, "%s: cannot grow to %llu bytes: %s", store->path,
                           (unsigned long long)capacity_bytes, err_text(result));
        sb->capacity_bytes = capacity_bytes;
    }
    return 0;
}

static async int open_identity(struct store *store, struct error *err)
{
    void *value = NULL;
    size_t len = 0;
    const struct superblock *sb = &store->super;
    struct superblock known;
    int result = kv_get(store->kv, IDENTITY_KEY, STORE_KEY_BYTES, &value, &len);
    if (result == -ENOENT)
        return err_set(err, -PLX_EDAMAGED, "%s: its metadata is missing", store->path);
    if (result == 0) {
        result = identity_decode(value, len, &known);
        free(value);
    }
    if (result < 0)
        return err_set(err, result, "%s: metadata: %s", store->path, err_text(result));
    if (!uid_equal(known.store, sb->store) || !uid_equal(known.cluster, sb->cluster))
        return err_set(err, -PLX_EFORMAT, "%s: the metadata belongs to another store",
                       store->path);
    if (known.generation < sb->generation)
        return err_set(err, -PLX_EDAMAGED,
                       "%s: its metadata is older than the store: the end of it is "
                       "damaged or lost",
                       store->path);
    return 0;
}

/* One generation more, and what else is to be recorded. */
static async int advance_generation(struct store *store)
{
    struct superblock next = store->super;
    struct identity_format identity;
    struct kv_batch batch;
    next.generation++;
    identity_encode(&next, &identity);
    kv_batch_init(&batch);
    kv_batch_put(&batch, IDENTITY_KEY, STORE_KEY_BYTES, &identity, sizeof identity);
    if (store->fresh_recorded != store->slabs.fresh)
        fresh_put(store, &batch);
    int result = kv_write_wait(store->kv, &batch, KV_SYNCED);
    if (result == 0)
        result = superblock_store(store->file, &next);
    if (result == 0)
        store->super = next;
    return result;
}

static async int open_slabs(struct store *store, struct error *err)
{
    uint32_t count = (uint32_t)(store->super.capacity_bytes / SLAB_BYTES);
    uint32_t fresh = 1;
    void *value = NULL;
    size_t len = 0;
    int result = kv_get(store->kv, FRESH_KEY, STORE_KEY_BYTES, &value, &len);
    if (result == 0) {
        fresh = fresh_decode(value, len);
        free(value);
    } else if (result != -ENOENT) {
        return err_set(err, result, "%s: metadata: %s", store->path, err_text(result));
    }
    /* Every block of a device costs the same. */
    if (file_is_device(store->file))
        fresh = count;
    store->fresh_recorded = fresh;
    result = slabs_init(&store->slabs, count, fresh);
    if (result < 0)
        return err_set(err, result, "%s: out of memory", store->path);
    return 0;
}

static int load_record(struct store *store, const struct kv_pair *pair, struct error *err)
{
    struct extent *e = calloc(1, sizeof *e);
    if (e == NULL)
        return err_set(err, -ENOMEM, "%s: out of memory", store->path);
    int result = record_decode(pair->key, pair->key_len, pair->value, pair->value_len, e);
    for (uint32_t i = 0; result == 0 && i < e->runs.count; i++)
        if (!slabs_claim(&store->slabs, e->runs.at[i]))
            result = -PLX_EDAMAGED;
    if (result == 0) {
        extent_insert(&store->extents, e);
        return 0;
    }
    extent_free(e);
    if (result == -ENOMEM)
        return err_set(err, result, "%s: out of memory", store->path);
    char name[2 * KV_KEY_MAX + 1] = "";
    for (size_t i = 1; i < pair->key_len; i++)
        snprintf(name + 2 * (i - 1), 3, "%02x", pair->key[i]);
    return err_set(err, result, "%s: metadata damaged: record of extent %s", store->path,
                   name);
}

static async int load_records(struct store *store, struct error *err)
{
    uint8_t after[KV_KEY_MAX];
    size_t after_len = 0;
    uint8_t prefix = EXTENT_KEY_PREFIX;
    bool more = true;
    while (more) {
        struct kv_page page;
        int result = kv_scan(store->kv, &prefix, 1, after, after_len, RECORDS_PAGE,
                             &page);
        if (result < 0)
            return err_set(err, result, "%s: metadata: %s", store->path,
                           err_text(result));
        for (uint32_t i = 0; i < page.count && result == 0; i++)
            result = load_record(store, &page.pairs[i], err);
        more = page.more && page.count > 0;
        if (more) {
            const struct kv_pair *last = &page.pairs[page.count - 1];
            after_len = last->key_len;
            memcpy(after, last->key, after_len);
        }
        kv_page_done(&page);
        if (result < 0)
            return result;
    }
    return 0;
}

static void store_free(struct store *store)
{
    if (store->file != NULL)
        file_close(store->file);
    extent_table_done(&store->extents);
    slabs_done(&store->slabs);
    parts_done(store);
    free(store->zeros);
    free(store->path);
    free(store);
}

static struct store *store_alloc(struct loop *loop, const struct store_options *options)
{
    struct store *store = calloc(1, sizeof *store);
    if (store == NULL)
        return NULL;
    store->loop = loop;
    store->kv = options->kv;
    store->used_ns = loop_now_ns(loop);
    store->answer.run = answer_run;
    store->fail.run = fail_run;
    TAILQ_INIT(&store->opens);
    waitlist_init(&store->unlocked);
    waitlist_init(&store->readers_gone);
    waitlist_init(&store->quiet);
    sync_init(store);
    compact_init(store);
    store->no_idle_work = options->no_idle_work;
    store->append_count = metric_counter(loop, "parallax_store_appends_total",
                                         "Batches appended to extents.");
    store->append_bytes = metric_counter(loop, "parallax_store_append_bytes_total",
                                         "Bytes appended to extents, headers included.");
    store->read_count = metric_counter(loop, "parallax_store_reads_total",
                                       "Reads from extents.");
    store->sync_count = metric_counter(loop, "parallax_store_syncs_total",
                                       "Syncs of the store.");
    store->sync_ns = metric_histogram(loop, "parallax_store_sync_seconds",
                                      "How long a sync of the store takes.");
    store->path = strdup(options->path);
    if (parts_init(store) < 0 || extent_table_init(&store->extents) < 0 ||
        store->path == NULL) {
        store_free(store);
        return NULL;
    }
    return store;
}

static async int open_all(struct store *store, const struct store_options *options,
                          struct error *err)
{
    struct file_options file_options = {0};
    int result = file_open(store->loop, store->path, &file_options, &store->file, err);
    if (result == 0)
        result = open_superblock(store, options->capacity_bytes, err);
    if (result == 0)
        result = open_identity(store, err);
    if (result == 0)
        result = open_slabs(store, err);
    if (result == 0)
        result = load_records(store, err);
    if (result == 0)
        result = restart_scan(store, err);
    if (result < 0)
        return result;
    allocate_init(store);
    result = advance_generation(store);
    if (result < 0)
        return err_set(err, result, "%s: superblock: %s", store->path, err_text(result));
    if (!options->no_idle_work && !file_is_device(store->file) &&
        zero_fill_init(store) < 0)
        result = err_set(err, -ENOMEM, "%s: out of memory", store->path);
    return result;
}

async int store_open(struct loop *loop, const struct store_options *options,
                     struct store **ret_store, struct error *err)
{
    struct store *store = store_alloc(loop, options);
    if (store == NULL)
        return err_set(err, -ENOMEM, "%s: out of memory", options->path);
    int result = open_all(store, options, err);
    if (result < 0) {
        store_free(store);
        return result;
    }
    zero_fill_wanted(store);
    compact_wanted(store);
    *ret_store = store;
    return 0;
}

/* --- close --- */

static bool is_quiet(const struct store *store)
{
    const struct extent_open *open;
    TAILQ_FOREACH (open, &store->opens, link) {
        if (open->is_recording)
            return false;
    }
    return !store->sync_busy && !store->fill_busy && !store->allocating &&
           !store->compacting && !store->answer.posted;
}

async void store_close(struct store *store)
{
    assert(SLIST_EMPTY(&store->installs));
    store->is_closing = true;
    timer_stop(store->loop, &store->idle);
    timer_stop(store->loop, &store->compact_timer);
    while (!is_quiet(store))
        waitlist_wait(&store->quiet);
    int result = store->failed ? 0 : advance_generation(store);
    if (result < 0)
        log_warning(store->loop, "%s: closing: %s", store->path, err_text(result));
    loop_post_cancel(store->loop, &store->fail);
    assert(store->parts_free == store->parts_made);
    while (!TAILQ_EMPTY(&store->opens))
        extent_open_end(store, TAILQ_FIRST(&store->opens)->extent);
    store_free(store);
}

/* --- what callers see --- */

void store_usage(const struct store *store, struct store_usage *ret_usage)
{
    const struct slabs *slabs = &store->slabs;
    uint64_t capacity = store->super.capacity_bytes;
    uint64_t withheld = allocate_withheld(store);
    *ret_usage = (struct store_usage){
        .cluster = store->super.cluster,
        .incarnation = store->super.store,
        .capacity_bytes = capacity,
        .used_bytes = (slabs->count - 1 - slabs->free_count) * SLAB_BYTES,
        .free_bytes = (slabs->free_count - withheld) * SLAB_BYTES,
        .withheld_bytes = withheld * SLAB_BYTES,
        .host_free_bytes = store->host_is_known ? store->host_free_bytes : 0,
        .host_reserve_bytes = store->host_is_known ? allocate_reserve_bytes(capacity) : 0,
        .has_host = store->host_is_known,
        .reserve_bytes = store->reserve_bytes,
        .live_bytes = store->extents.live_blocks * BLOCK_SIZE,
        .dead_bytes = (store->extents.stored_blocks - store->extents.live_blocks) *
                      BLOCK_SIZE,
        .free_piece_bytes = slabs->part_free * PIECE_BYTES,
        .compact_runs = store->compact_count->value,
        .compact_bytes_read = store->compact_read_bytes->value,
        .compact_bytes_written = store->compact_written_bytes->value,
        .compacting = store->compacting,
        .extent_count = store->extents.count,
        .failed = store->failed,
        .failed_code = store->failed_code,
    };
}

struct uid store_cluster(const struct store *store)
{
    return store->super.cluster;
}

void store_set_reserve(struct store *store, uint64_t reserve_bytes)
{
    store->reserve_bytes = reserve_bytes;
    zero_fill_wanted(store);
    compact_wanted(store);
}

void store_on_space(struct store *store, struct work *work)
{
    store->on_space = work;
}
