/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Simulated key-value stores. A medium holds the pairs as a read sees them now, and for
 * each write that is not known to be durable what it changed (`unsynced`, oldest first).
 *
 * Happy path: kv_submit queues; one group of writes is under way at a time, as with
 * LevelDB's worker; when its event runs, its writes are applied in order, each as a
 * whole, and a synced one among them makes all durable.
 *
 * A write that fails makes the handle fail for good, while a beginning of its group may
 * be on the medium. A process that ends leaves a beginning of what it had submitted.
 * A power cut takes back the newest unsynced writes, any number of them, so what is left
 * is always a prefix in the order of submission, with at least the last synced one.
 */
#include "runtime/kv.h"

#include "runtime/sim_internal.h"
#include "runtime/trace.h"

STAILQ_HEAD(write_list, kv_write);

struct pair {
    uint8_t key[KV_KEY_MAX];
    size_t key_len;
    uint8_t *value;
    size_t value_len;
    RB_ENTRY(pair) node;
};
RB_HEAD(sim_pair_tree, pair);

/* What a key was before a change. */
struct undo {
    uint8_t key[KV_KEY_MAX];
    size_t key_len;
    bool existed;
    uint8_t *value; /* owned */
    size_t value_len;
};

struct applied {
    struct undo *undo; /* one for each change */
    uint32_t count;
    TAILQ_ENTRY(applied) link;
};
TAILQ_HEAD(applied_list, applied);

struct kv_medium {
    struct sim_medium base;
    struct sim_world *world;
    struct sim_pair_tree pairs;
    struct applied_list unsynced;
    uint64_t unsynced_count;
    bool is_damaged;
};

struct sim_kv {
    struct kv base;
    struct sim_handle handle;
    struct sim_event group_done;
    struct write_list group, queued;
    uint32_t outstanding; /* submitted, done not yet called */
    struct task *closer;
    int failure;
};

static struct sim_kv *sim_kv_of(struct kv *kv)
{
    return container_of(kv, struct sim_kv, base);
}

static struct kv_medium *medium_of(const struct sim_kv *kv)
{
    return container_of(kv->handle.medium, struct kv_medium, base);
}

/* --- pairs --- */

static int pair_compare(const struct pair *a, const struct pair *b)
{
    size_t common = a->key_len < b->key_len ? a->key_len : b->key_len;
    int order = memcmp(a->key, b->key, common);
    return order != 0 ? order : (a->key_len > b->key_len) - (a->key_len < b->key_len);
}

RB_PROTOTYPE(sim_pair_tree, pair, node, pair_compare)
RB_GENERATE(sim_pair_tree, pair, node, pair_compare)

static struct pair pair_of_key(const void *key, size_t key_len)
{
    struct pair pair = {.key_len = key_len};
    if (key_len > 0)
        memcpy(pair.key, key, key_len);
    return pair;
}

static struct pair *pair_find(struct kv_medium *m, const void *key, size_t key_len)
{
    struct pair wanted = pair_of_key(key, key_len);
    return RB_FIND(sim_pair_tree, &m->pairs, &wanted);
}

/* Takes over value. */
static void pair_set(struct kv_medium *m, const void *key, size_t key_len, uint8_t *value,
                     size_t value_len)
{
    struct pair *pair = pair_find(m, key, key_len);
    if (pair == NULL) {
        pair = sim_alloc(sizeof *pair);
        *pair = pair_of_key(key, key_len);
        RB_INSERT(sim_pair_tree, &m->pairs, pair);
    }
    free(pair->value);
    pair->value = value;
    pair->value_len = value_len;
}

static void pair_remove(struct kv_medium *m, struct pair *pair)
{
    RB_REMOVE(sim_pair_tree, &m->pairs, pair);
    free(pair->value);
    free(pair);
}

/* --- writes on the medium --- */

static void applied_free(struct kv_medium *m, struct applied *applied)
{
    TAILQ_REMOVE(&m->unsynced, applied, link);
    m->unsynced_count--;
    for (uint32_t i = 0; i < applied->count; i++)
        free(applied->undo[i].value);
    free(applied->undo);
    free(applied);
}

static void change_apply(struct kv_medium *m, const struct kv_change *change,
                         struct undo *ret_undo)
{
    memcpy(ret_undo->key, change->key, change->key_len);
    ret_undo->key_len = change->key_len;
    struct pair *pair = pair_find(m, change->key, change->key_len);
    if (pair != NULL) {
        ret_undo->existed = true;
        ret_undo->value = take(pair->value);
        ret_undo->value_len = pair->value_len;
    }
    if (change->is_put) {
        uint8_t *value = sim_alloc(change->value_len + 1);
        memcpy(value, change->value, change->value_len);
        pair_set(m, change->key, change->key_len, value, change->value_len);
    } else if (pair != NULL) {
        pair_remove(m, pair);
    }
}

static void batch_apply(struct kv_medium *m, const struct kv_batch *batch)
{
    struct applied *applied = sim_alloc(sizeof *applied);
    applied->count = batch->count;
    applied->undo = sim_alloc((batch->count + 1) * sizeof *applied->undo);
    struct kv_change change;
    size_t at = 0;
    uint32_t i = 0;
    while (kv_batch_next(batch, &at, &change))
        change_apply(m, &change, &applied->undo[i++]);
    assert(i == batch->count);
    TAILQ_INSERT_TAIL(&m->unsynced, applied, link);
    m->unsynced_count++;
}

static void forget_unsynced(struct kv_medium *m)
{
    struct applied *applied;
    while ((applied = TAILQ_FIRST(&m->unsynced)) != NULL)
        applied_free(m, applied);
}

static void take_back_newest(struct kv_medium *m)
{
    struct applied *applied = TAILQ_LAST(&m->unsynced, applied_list);
    for (uint32_t i = applied->count; i-- > 0;) {
        struct undo *undo = &applied->undo[i];
        struct pair *pair = pair_find(m, undo->key, undo->key_len);
        if (undo->existed)
            pair_set(m, undo->key, undo->key_len, take(undo->value), undo->value_len);
        else if (pair != NULL)
            pair_remove(m, pair);
    }
    applied_free(m, applied);
}

static void power_cut(struct sim_medium *medium)
{
    struct kv_medium *m = container_of(medium, struct kv_medium, base);
    uint64_t kept = sim_world_random(m->world, m->unsynced_count + 1);
    while (m->unsynced_count > kept)
        take_back_newest(m);
    forget_unsynced(m);
}

static void medium_free(struct sim_medium *medium)
{
    struct kv_medium *m = container_of(medium, struct kv_medium, base);
    forget_unsynced(m);
    struct pair *pair;
    while ((pair = RB_MIN(sim_pair_tree, &m->pairs)) != NULL)
        pair_remove(m, pair);
    free(m);
}

/* --- writes of a process --- */

static void start_group(struct sim_kv *kv)
{
    STAILQ_CONCAT(&kv->group, &kv->queued);
    struct sim_process *process = kv->handle.process;
    sim_event_add(process, &kv->group_done, sim_latency_ns(process));
}

/* A beginning of the group, of any length. */
static void apply_some(struct kv_medium *m, const struct write_list *group)
{
    const struct kv_write *write;
    uint64_t count = 0;
    STAILQ_FOREACH (write, group, link) {
        count++;
    }
    uint64_t kept = sim_world_random(m->world, count + 1);
    STAILQ_FOREACH (write, group, link) {
        if (kept == 0 || write->batch.bad)
            break;
        kept--;
        batch_apply(m, &write->batch);
    }
}

static void apply_all(struct kv_medium *m, const struct write_list *group)
{
    const struct kv_write *write;
    bool is_synced = false;
    STAILQ_FOREACH (write, group, link) {
        batch_apply(m, &write->batch);
        is_synced |= write->durability == KV_SYNCED;
    }
    if (is_synced)
        forget_unsynced(m);
}

static void group_done(struct sim_event *event)
{
    struct sim_kv *kv = container_of(event, struct sim_kv, group_done);
    struct kv_medium *m = medium_of(kv);
    struct write_list group = STAILQ_HEAD_INITIALIZER(group);
    STAILQ_CONCAT(&group, &kv->group);
    struct kv_write *write;
    bool failed_before = kv->failure != 0;
    STAILQ_FOREACH (write, &group, link) {
        if (kv->failure == 0)
            kv->failure = write->result; /* of submit */
    }
    if (kv->failure == 0)
        apply_all(m, &group);
    else if (!failed_before)
        apply_some(m, &group);
    if (!STAILQ_EMPTY(&kv->queued))
        start_group(kv);
    int result = kv->failure;
    while ((write = STAILQ_FIRST(&group)) != NULL) {
        STAILQ_REMOVE_HEAD(&group, link);
        trace(kv->base.loop, "sim.kv.write", write->batch.len, write->batch.count,
              (uint64_t) - (int64_t)result);
        kv_batch_done(&write->batch);
        write->result = result;
        kv->outstanding--;
        write->done(write);
    }
    if (kv->outstanding == 0 && kv->closer != NULL)
        task_wake(kv->closer);
}

static void submit(struct kv *base, struct kv_write *write)
{
    struct sim_kv *kv = sim_kv_of(base);
    struct sim_world *world = kv->handle.process->world;
    assert(kv->closer == NULL);
    write->result = sim_must_fail(world, world->faults.kv_error_ppm) ? -EIO
                    : write->batch.bad                               ? -ENOMEM
                                                                     : 0;
    kv->outstanding++;
    STAILQ_INSERT_TAIL(&kv->queued, write, link);
    if (STAILQ_EMPTY(&kv->group))
        start_group(kv);
}

/* --- reads --- */

/* What every read begins with: 0, or how it failed. */
static async int read_begin(struct sim_kv *kv)
{
    struct sim_world *world = kv->handle.process->world;
    bool fails = sim_must_fail(world, world->faults.kv_error_ppm);
    sim_pause(kv->handle.process);
    return kv->failure != 0 ? kv->failure : fails ? -EIO : 0;
}

static async int get(struct kv *base, const void *key, size_t key_len, void **ret_value,
                     size_t *ret_len)
{
    struct sim_kv *kv = sim_kv_of(base);
    int rc = read_begin(kv);
    if (rc != 0)
        return rc;
    const struct pair *pair = pair_find(medium_of(kv), key, key_len);
    if (pair == NULL)
        return -ENOENT;
    uint8_t *value = sim_alloc(pair->value_len + 1);
    memcpy(value, pair->value, pair->value_len);
    *ret_value = value;
    *ret_len = pair->value_len;
    return 0;
}

/* The first pair that is greater than `after` and not before prefix. */
static struct pair *seek(struct kv_medium *m, const void *prefix, size_t prefix_len,
                         const void *after, size_t after_len)
{
    struct pair first = pair_of_key(prefix, prefix_len);
    struct pair last = pair_of_key(after, after_len);
    if (after_len == 0 || pair_compare(&last, &first) < 0)
        return RB_NFIND(sim_pair_tree, &m->pairs, &first);
    struct pair *pair = RB_NFIND(sim_pair_tree, &m->pairs, &last);
    bool is_same = pair != NULL && pair_compare(pair, &last) == 0;
    return is_same ? RB_NEXT(sim_pair_tree, &m->pairs, pair) : pair;
}

static async int scan(struct kv *base, const void *prefix, size_t prefix_len,
                      const void *after, size_t after_len, uint32_t max_pairs,
                      struct kv_page *ret_page)
{
    struct sim_kv *kv = sim_kv_of(base);
    int rc = read_begin(kv);
    if (rc != 0)
        return rc;
    struct kv_medium *m = medium_of(kv);
    struct kv_page page = {0};
    struct pair *pair = seek(m, prefix, prefix_len, after, after_len);
    for (; pair != NULL; pair = RB_NEXT(sim_pair_tree, &m->pairs, pair)) {
        if (pair->key_len < prefix_len ||
            (prefix_len > 0 && memcmp(pair->key, prefix, prefix_len) != 0))
            break;
        if (kv_page_full(&page, max_pairs)) {
            page.more = true;
            break;
        }
        rc = kv_page_add(&page, pair->key, pair->key_len, pair->value, pair->value_len);
        if (rc != 0) {
            kv_page_done(&page);
            return rc;
        }
    }
    *ret_page = page;
    return 0;
}

/* --- open and close --- */

/* On close there is nothing left to apply; when the process ends there may be. */
static void handle_free(struct sim_handle *handle)
{
    struct sim_kv *kv = container_of(handle, struct sim_kv, handle);
    STAILQ_CONCAT(&kv->group, &kv->queued);
    if (kv->failure == 0 && !STAILQ_EMPTY(&kv->group))
        apply_some(medium_of(kv), &kv->group);
    struct kv_write *write;
    STAILQ_FOREACH (write, &kv->group, link) {
        kv_batch_done(&write->batch);
    }
    sim_handle_remove(handle);
    free(kv);
}

static async void close_kv(struct kv *base)
{
    struct sim_kv *kv = sim_kv_of(base);
    assert(kv->closer == NULL);
    kv->closer = task_current();
    while (kv->outstanding > 0)
        task_park();
    sim_pause(kv->handle.process);
    handle_free(&kv->handle);
}

static const struct kv_ops sim_kv_ops = {
    .submit = submit,
    .get = get,
    .scan = scan,
    .close = close_kv,
};

static struct sim_medium *medium_create(struct sim_world *world, const char *path)
{
    struct kv_medium *m = sim_alloc(sizeof *m);
    m->base.power_cut = power_cut;
    m->base.free = medium_free;
    m->world = world;
    RB_INIT(&m->pairs);
    TAILQ_INIT(&m->unsynced);
    sim_medium_add(world, &m->base, path);
    return &m->base;
}

static int open_error(const struct sim_medium *medium, const char *path, bool create,
                      struct error *err)
{
    if (medium == NULL && !create)
        return err_set(err, -ENOENT, "%s: no key-value store there; check the path",
                       path);
    if (medium == NULL)
        return 0;
    if (medium->is_file)
        return err_set(err, -ENOTDIR, "%s: cannot be opened: %s", path,
                       err_text(-ENOTDIR));
    if (medium->user != NULL)
        return err_set(err, -EBUSY, "%s: another process has it open; stop that first",
                       path);
    if (container_of(medium, const struct kv_medium, base)->is_damaged)
        return err_set(err, -PLX_EDAMAGED, "%s: damaged", path);
    return 0;
}

async int sim_kv_open(struct loop *loop, const char *path, bool create, struct kv **ret,
                      struct error *err)
{
    struct sim_process *process = sim_process_of(loop);
    struct sim_world *world = process->world;
    bool fails = sim_must_fail(world, 0);
    sim_pause(process);
    if (fails)
        return err_set(err, -EIO, "%s: cannot be opened: %s", path, err_text(-EIO));
    struct sim_medium *medium = sim_medium_find(world, path);
    int rc = open_error(medium, path, create, err);
    if (rc != 0)
        return rc;
    if (medium == NULL)
        medium = medium_create(world, path);
    struct sim_kv *kv = sim_alloc(sizeof *kv);
    kv->base = (struct kv){.ops = &sim_kv_ops, .loop = loop};
    kv->handle.free = handle_free;
    kv->group_done.run = group_done;
    STAILQ_INIT(&kv->group);
    STAILQ_INIT(&kv->queued);
    sim_handle_add(process, &kv->handle, medium);
    *ret = &kv->base;
    return 0;
}

void sim_kv_damage(struct sim_world *world, const char *path)
{
    struct sim_medium *medium = sim_medium_find(world, path);
    assert(medium != NULL && !medium->is_file);
    container_of(medium, struct kv_medium, base)->is_damaged = true;
}
