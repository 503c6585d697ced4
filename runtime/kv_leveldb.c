/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Happy path: kv_submit puts the write in `queued` and sees to it that the drain job is
 * with the worker; the drain takes all that is queued, merges it into one LevelDB batch,
 * writes it (synced if any of them is), moves the writes to `completed` and wakes the
 * loop, which calls each done. What is queued meanwhile is the next group. Reads are jobs
 * of the same worker.
 *
 *     kv_submit            drain, on the worker            deliver, on the loop
 *     ---------> queued -------------------------> completed ----------------> done
 *
 * LevelDB goes on in a new log when its memory is full, and does not sync the old one: a
 * later write could be durable before an earlier one that was not synced. So its logs are
 * synced before a synced write that may be the first of a new one; and after one that was
 * not synced, if it was the first.
 *
 * A write that fails leaves LevelDB in a state nobody can vouch for, so the first error
 * is kept, logged once, and returned by every later call.
 *
 * On close the task waits until every write was delivered, then the worker closes the
 * database and ends.
 */
#include "runtime/kv.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <leveldb/c.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "runtime/log.h"
#include "runtime/loop_internal.h"
#include "runtime/loop_uv.h"
#include "runtime/worker.h"

#define WRITE_BUFFER_BYTES (4 * MIB)
#define CACHE_BYTES        (8 * MIB)
#define OPEN_FILES_MAX     100
/* LevelDB's copy of a group; one larger write still goes, alone. */
#define GROUP_BYTES (8 * MIB)
#define TEXT_MAX    256U
/* What a change takes of LevelDB's memory beside key and value, at most, and what there
 * is of it without any. */
#define CHANGE_EXTRA_BYTES 160U
#define MEMORY_EXTRA_BYTES 8192U

STAILQ_HEAD(write_list, kv_write);

struct leveldb_kv {
    struct kv base;
    char *path;
    struct worker *worker;
    leveldb_t *db;
    leveldb_options_t *options;
    leveldb_cache_t *cache;
    leveldb_readoptions_t *read_options;

    /* on the loop */
    uint32_t outstanding; /* writes submitted and not yet delivered */
    struct task *closer;  /* waits for outstanding == 0 */
    bool failure_is_logged;
    struct work deliver;

    pthread_mutex_t lock;
    struct write_list queued, completed; /* under lock */
    bool drain_submitted;                /* under lock */
    bool deliver_posted;                 /* under lock */

    /* on the thread; the loop reads them after a write delivered with an error */
    struct worker_job drain;
    uint64_t memory_bytes; /* of LevelDB's memory, whose writes are in its newest log */
    uint64_t looked_bytes; /* of these since its logs were looked at */
    uint64_t newest_log;   /* when they were */
    bool has_unsynced;     /* the last write was not synced */
    int failure;           /* the first write error, for good */
    char failure_text[TEXT_MAX];
};

static struct leveldb_kv *leveldb_of(struct kv *kv)
{
    return container_of(kv, struct leveldb_kv, base);
}

/* LevelDB reports errors as text only. Frees it. */
static int code_of_text(char *text, char *ret_text)
{
    static const struct {
        const char *part;
        int code;
    } known[] = {
        {"No space left", -ENOSPC},          {"Resource temporarily unavailable", -EBUSY},
        {"already held by process", -EBUSY}, {"Corruption", -PLX_EDAMAGED},
        {"Permission denied", -EACCES},      {"Too many open files", -EMFILE},
    };
    int code = -EIO;
    for (size_t i = 0; i < ARRAY_LEN(known) && code == -EIO; i++) {
        if (strstr(text, known[i].part) != NULL)
            code = known[i].code;
    }
    snprintf(ret_text, TEXT_MAX, "%s", text);
    leveldb_free(text);
    return code;
}

static void deliver(struct work *work)
{
    struct leveldb_kv *kv = container_of(work, struct leveldb_kv, deliver);
    struct write_list completed = STAILQ_HEAD_INITIALIZER(completed);
    pthread_mutex_lock(&kv->lock);
    STAILQ_CONCAT(&completed, &kv->completed);
    kv->deliver_posted = false;
    pthread_mutex_unlock(&kv->lock);

    struct kv_write *write;
    while ((write = STAILQ_FIRST(&completed)) != NULL) {
        STAILQ_REMOVE_HEAD(&completed, link);
        if (write->result != 0 && !kv->failure_is_logged) {
            kv->failure_is_logged = true;
            log_error(kv->base.loop, "%s: write failed, takes no more: %s", kv->path,
                      kv->failure_text);
        }
        assert(kv->outstanding > 0);
        kv->outstanding--;
        write->done(write);
    }
    if (kv->outstanding == 0 && kv->closer != NULL)
        task_wake(kv->closer);
}

static void merge(leveldb_writebatch_t *into, const struct kv_batch *batch)
{
    struct kv_change change;
    size_t at = 0;
    while (kv_batch_next(batch, &at, &change)) {
        const char *key = (const char *)change.key;
        if (change.is_put)
            leveldb_writebatch_put(into, key, change.key_len, (const char *)change.value,
                                   change.value_len);
        else
            leveldb_writebatch_delete(into, key, change.key_len);
    }
}

/* One that is gone is in a table, which was synced. */
static int sync_log(int folder, const char *name)
{
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    int rc = fdatasync(fd) == 0 ? 0 : -errno;
    close(fd);
    return rc;
}

/* Looks at LevelDB's logs, and may sync them. *ret_is_new: one was begun since the last
 * look. */
static int look_at_logs(struct leveldb_kv *kv, bool sync, bool *ret_is_new)
{
    const struct dirent *entry;
    uint64_t newest = 0;
    int rc = 0;
    DIR *folder = opendir(kv->path);
    if (folder == NULL)
        return -errno;
    while (rc == 0 && (entry = readdir(folder)) != NULL) {
        char *end;
        uint64_t number = strtoull(entry->d_name, &end, 10);
        if (end == entry->d_name || strcmp(end, ".log") != 0)
            continue;
        newest = max_u64(newest, number);
        if (sync)
            rc = sync_log(dirfd(folder), entry->d_name);
    }
    closedir(folder);
    *ret_is_new = newest != kv->newest_log;
    if (*ret_is_new)
        kv->memory_bytes = kv->looked_bytes;
    kv->newest_log = newest;
    kv->looked_bytes = 0;
    return rc;
}

/* What a batch takes of LevelDB's memory at most: its blocks have up to a quarter of
 * waste. */
static uint64_t memory_of(const struct kv_batch *batch)
{
    return (batch->len + batch->count * (uint64_t)CHANGE_EXTRA_BYTES) / 3 * 4;
}

static void order_failed(struct leveldb_kv *kv, int code)
{
    kv->failure = code;
    snprintf(kv->failure_text, TEXT_MAX, "syncing its logs: %s", err_text(code));
}

/* May LevelDB begin, or have begun, a new log, and what stands in the old one be lost? */
static bool is_order_at_risk(const struct leveldb_kv *kv)
{
    return kv->has_unsynced && kv->memory_bytes + MEMORY_EXTRA_BYTES > WRITE_BUFFER_BYTES;
}

/* Before a write that is synced. */
static void order_before(struct leveldb_kv *kv)
{
    bool is_new;
    int rc = is_order_at_risk(kv) ? look_at_logs(kv, true, &is_new) : 0;
    if (rc != 0)
        order_failed(kv, rc);
}

/* After one that is not, before anybody hears of it. */
static void order_after(struct leveldb_kv *kv)
{
    bool is_new = false;
    int rc = is_order_at_risk(kv) ? look_at_logs(kv, false, &is_new) : 0;
    if (rc == 0 && is_new)
        rc = look_at_logs(kv, true, &is_new);
    if (rc != 0)
        order_failed(kv, rc);
}

static void write_merged(struct leveldb_kv *kv, leveldb_writebatch_t *merged,
                         uint64_t bytes, bool is_synced)
{
    if (is_synced)
        order_before(kv);
    if (kv->failure != 0)
        return;
    leveldb_writeoptions_t *options = leveldb_writeoptions_create();
    leveldb_writeoptions_set_sync(options, is_synced);
    char *text = NULL;
    leveldb_write(kv->db, options, merged, &text);
    leveldb_writeoptions_destroy(options);
    kv->memory_bytes += bytes;
    kv->looked_bytes += bytes;
    if (text != NULL)
        kv->failure = code_of_text(text, kv->failure_text);
    else if (!is_synced)
        order_after(kv);
    kv->has_unsynced = !is_synced;
}

/* Writes all batches of the group as one. Sets kv->failure. */
static void commit(struct leveldb_kv *kv, struct write_list *group)
{
    leveldb_writebatch_t *merged = leveldb_writebatch_create();
    bool is_synced = false;
    uint64_t bytes = 0;
    struct kv_write *write;
    STAILQ_FOREACH (write, group, link) {
        if (write->batch.bad && kv->failure == 0) {
            kv->failure = -ENOMEM;
            snprintf(kv->failure_text, TEXT_MAX, "no memory for a batch");
        }
        bytes += memory_of(&write->batch);
        merge(merged, &write->batch);
        kv_batch_done(&write->batch);
        is_synced |= write->durability == KV_SYNCED;
    }
    if (kv->failure == 0)
        write_merged(kv, merged, bytes, is_synced);
    leveldb_writebatch_destroy(merged);
    STAILQ_FOREACH (write, group, link) {
        write->result = kv->failure;
    }
}

/* Moves the first writes from queued, until they are enough for one group. */
static void take_group(struct leveldb_kv *kv, struct write_list *ret_group)
{
    size_t bytes = 0;
    struct kv_write *write;
    while ((write = STAILQ_FIRST(&kv->queued)) != NULL) {
        bytes += write->batch.len;
        if (bytes > GROUP_BYTES && !STAILQ_EMPTY(ret_group))
            break;
        STAILQ_REMOVE_HEAD(&kv->queued, link);
        STAILQ_INSERT_TAIL(ret_group, write, link);
    }
}

static void drain(struct worker_job *job)
{
    struct leveldb_kv *kv = container_of(job, struct leveldb_kv, drain);
    struct write_list group = STAILQ_HEAD_INITIALIZER(group);
    pthread_mutex_lock(&kv->lock);
    take_group(kv, &group);
    pthread_mutex_unlock(&kv->lock);

    commit(kv, &group);

    pthread_mutex_lock(&kv->lock);
    STAILQ_CONCAT(&kv->completed, &group);
    bool must_post = !kv->deliver_posted;
    kv->deliver_posted = true;
    /* At the end of the worker's queue, so that reads get their turn. */
    if (STAILQ_EMPTY(&kv->queued))
        kv->drain_submitted = false;
    else
        worker_submit(kv->worker, &kv->drain);
    pthread_mutex_unlock(&kv->lock);
    /* kv still exists: it is closed by a job behind this one. */
    if (must_post)
        loop_post_from_thread(kv->base.loop, &kv->deliver);
}

static void submit(struct kv *base, struct kv_write *write)
{
    struct leveldb_kv *kv = leveldb_of(base);
    assert(kv->closer == NULL);
    kv->outstanding++;
    pthread_mutex_lock(&kv->lock);
    STAILQ_INSERT_TAIL(&kv->queued, write, link);
    if (!kv->drain_submitted) {
        kv->drain_submitted = true;
        worker_submit(kv->worker, &kv->drain);
    }
    pthread_mutex_unlock(&kv->lock);
}

struct get_job {
    struct worker_job job;
    struct leveldb_kv *kv;
    const void *key;
    size_t key_len;
    void *value;
    size_t value_len;
    int result;
    char text[TEXT_MAX];
};

static void get_run(struct worker_job *job)
{
    struct get_job *j = container_of(job, struct get_job, job);
    j->result = j->kv->failure;
    if (j->result != 0)
        return;
    char *text = NULL;
    char *found = leveldb_get(j->kv->db, j->kv->read_options, j->key, j->key_len,
                              &j->value_len, &text);
    if (text != NULL) {
        j->result = code_of_text(text, j->text);
    } else if (found == NULL) {
        j->result = -ENOENT;
    } else {
        /* A copy, because the caller releases it with free. */
        j->value = malloc(j->value_len > 0 ? j->value_len : 1);
        j->result = j->value != NULL ? 0 : -ENOMEM;
        if (j->value != NULL)
            memcpy(j->value, found, j->value_len);
    }
    leveldb_free(found);
}

static async int get(struct kv *base, const void *key, size_t key_len, void **ret_value,
                     size_t *ret_len)
{
    struct leveldb_kv *kv = leveldb_of(base);
    struct get_job j = {.job.run = get_run, .kv = kv, .key = key, .key_len = key_len};
    worker_call(kv->worker, &j.job);
    if (j.text[0] != '\0')
        log_error(base->loop, "%s: read failed: %s", kv->path, j.text);
    if (j.result != 0)
        return j.result;
    *ret_value = j.value;
    *ret_len = j.value_len;
    return 0;
}

struct scan_job {
    struct worker_job job;
    struct leveldb_kv *kv;
    const void *prefix, *after;
    size_t prefix_len, after_len;
    uint32_t max_pairs;
    struct kv_page page;
    int result;
    char text[TEXT_MAX];
};

static bool has_prefix(const struct scan_job *j, const char *key, size_t key_len)
{
    return key_len >= j->prefix_len &&
           (j->prefix_len == 0 || memcmp(key, j->prefix, j->prefix_len) == 0);
}

static int compare_keys(const void *a, size_t a_len, const void *b, size_t b_len)
{
    size_t common = a_len < b_len ? a_len : b_len;
    int order = common > 0 ? memcmp(a, b, common) : 0;
    return order != 0 ? order : (a_len > b_len) - (a_len < b_len);
}

/* To the first key that is greater than `after` and not before prefix. */
static void seek(const struct scan_job *j, leveldb_iterator_t *it)
{
    bool from_after = j->after_len > 0 &&
                      compare_keys(j->after, j->after_len, j->prefix, j->prefix_len) >= 0;
    if (!from_after) {
        leveldb_iter_seek(it, j->prefix_len > 0 ? j->prefix : "", j->prefix_len);
        return;
    }
    leveldb_iter_seek(it, j->after, j->after_len);
    if (!leveldb_iter_valid(it))
        return;
    size_t key_len;
    const char *key = leveldb_iter_key(it, &key_len);
    if (compare_keys(key, key_len, j->after, j->after_len) == 0)
        leveldb_iter_next(it);
}

static void collect(struct scan_job *j, leveldb_iterator_t *it)
{
    for (seek(j, it); leveldb_iter_valid(it); leveldb_iter_next(it)) {
        size_t key_len, value_len;
        const char *key = leveldb_iter_key(it, &key_len);
        if (!has_prefix(j, key, key_len))
            return;
        if (kv_page_full(&j->page, j->max_pairs)) {
            j->page.more = true;
            return;
        }
        if (key_len > KV_KEY_MAX) { /* not written by us */
            j->result = -PLX_EDAMAGED;
            return;
        }
        const char *value = leveldb_iter_value(it, &value_len);
        j->result = kv_page_add(&j->page, key, key_len, value, value_len);
        if (j->result != 0)
            return;
    }
}

static void scan_run(struct worker_job *job)
{
    struct scan_job *j = container_of(job, struct scan_job, job);
    j->result = j->kv->failure;
    if (j->result != 0)
        return;
    leveldb_iterator_t *it = leveldb_create_iterator(j->kv->db, j->kv->read_options);
    collect(j, it);
    /* An iterator that met damage ends early, like one at its end: only this tells. */
    char *text = NULL;
    leveldb_iter_get_error(it, &text);
    if (text != NULL)
        j->result = code_of_text(text, j->text);
    leveldb_iter_destroy(it);
    if (j->result != 0)
        kv_page_done(&j->page);
}

static async int scan(struct kv *base, const void *prefix, size_t prefix_len,
                      const void *after, size_t after_len, uint32_t max_pairs,
                      struct kv_page *ret_page)
{
    struct leveldb_kv *kv = leveldb_of(base);
    struct scan_job j = {
        .job.run = scan_run,
        .kv = kv,
        .prefix = prefix,
        .prefix_len = prefix_len,
        .after = after,
        .after_len = after_len,
        .max_pairs = max_pairs,
    };
    worker_call(kv->worker, &j.job);
    if (j.text[0] != '\0')
        log_error(base->loop, "%s: scan failed: %s", kv->path, j.text);
    if (j.result == 0)
        *ret_page = j.page;
    return j.result;
}

static void leveldb_kv_free(struct leveldb_kv *kv)
{
    worker_destroy(kv->worker);
    if (kv->read_options != NULL)
        leveldb_readoptions_destroy(kv->read_options);
    if (kv->options != NULL)
        leveldb_options_destroy(kv->options);
    if (kv->cache != NULL)
        leveldb_cache_destroy(kv->cache);
    pthread_mutex_destroy(&kv->lock);
    free(kv->path);
    free(kv);
}

struct open_close_job {
    struct worker_job job;
    struct leveldb_kv *kv;
    bool create;
    int result;
    char text[TEXT_MAX];
};

static void close_run(struct worker_job *job)
{
    struct open_close_job *j = container_of(job, struct open_close_job, job);
    leveldb_close(j->kv->db);
}

static async void close_and_free(struct kv *base)
{
    struct leveldb_kv *kv = leveldb_of(base);
    assert(kv->closer == NULL);
    kv->closer = task_current();
    while (kv->outstanding > 0)
        task_park();
    struct open_close_job j = {.job.run = close_run, .kv = kv};
    worker_call(kv->worker, &j.job);
    leveldb_kv_free(kv);
}

static const struct kv_ops leveldb_kv_ops = {
    .submit = submit,
    .get = get,
    .scan = scan,
    .close = close_and_free,
};

static void open_run(struct worker_job *job)
{
    struct open_close_job *j = container_of(job, struct open_close_job, job);
    struct leveldb_kv *kv = j->kv;
    kv->options = leveldb_options_create();
    kv->cache = leveldb_cache_create_lru(CACHE_BYTES);
    kv->read_options = leveldb_readoptions_create();
    leveldb_options_set_create_if_missing(kv->options, j->create);
    leveldb_options_set_paranoid_checks(kv->options, 1);
    leveldb_options_set_write_buffer_size(kv->options, WRITE_BUFFER_BYTES);
    leveldb_options_set_max_open_files(kv->options, OPEN_FILES_MAX);
    leveldb_options_set_cache(kv->options, kv->cache);
    leveldb_readoptions_set_verify_checksums(kv->read_options, 1);
    char *text = NULL;
    kv->db = leveldb_open(kv->options, kv->path, &text);
    if (text != NULL) {
        j->result = code_of_text(text, j->text);
        if (strstr(j->text, "create_if_missing is false") != NULL)
            j->result = -ENOENT;
    } else if (j->create)
        j->result = sync_parent_folder(kv->path);
    if (j->result != 0 && kv->db != NULL)
        leveldb_close(kv->db);
}

static int open_error(const struct open_close_job *j, struct error *err)
{
    const char *path = j->kv->path;
    switch (j->result) {
    case -EBUSY:
        return err_set(err, -EBUSY, "%s: another process has it open; stop that first",
                       path);
    case -ENOENT:
        return err_set(err, -ENOENT, "%s: no key-value store there; check the path",
                       path);
    case -PLX_EDAMAGED:
        return err_set(err, -PLX_EDAMAGED,
                       "%s: damaged (%s); do not repair it by hand: take this store out "
                       "of service, so that it is filled again from its copies",
                       path, j->text);
    case -ENOSPC:
        return err_set(err, -ENOSPC, "%s: the file system is full; make room there",
                       path);
    default:
        return err_set(err, j->result, "%s: cannot be opened: %s", path,
                       j->text[0] != '\0' ? j->text : err_text(j->result));
    }
}

async int kv_leveldb_open(struct loop *loop, const char *path, bool create,
                          struct kv **ret_kv, struct error *err)
{
    struct leveldb_kv *kv = calloc(1, sizeof *kv);
    if (kv == NULL)
        return err_set(err, -ENOMEM, "%s: no memory", path);
    kv->base = (struct kv){.ops = &leveldb_kv_ops, .loop = loop};
    kv->deliver.run = deliver;
    kv->drain.run = drain;
    STAILQ_INIT(&kv->queued);
    STAILQ_INIT(&kv->completed);
    pthread_mutex_init(&kv->lock, NULL);
    kv->path = strdup(path);
    kv->worker = worker_create(loop);
    if (kv->path == NULL || kv->worker == NULL) {
        leveldb_kv_free(kv);
        return err_set(err, -ENOMEM, "%s: no memory or no thread", path);
    }
    struct open_close_job j = {.job.run = open_run, .kv = kv, .create = create};
    worker_call(kv->worker, &j.job);
    if (j.result != 0) {
        int rc = open_error(&j, err);
        leveldb_kv_free(kv);
        return rc;
    }
    *ret_kv = &kv->base;
    return 0;
}
