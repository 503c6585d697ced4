/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents that wait to be mended (recovery_mend.c), one after the other.
 *
 * Happy path: somebody found damage, and the extent gets into the list. A task mends it.
 *
 * What can fail: a member does not answer, and it is tried again after a pause. Or those
 * that can be asked have nothing sound: then it waits for others to be whole, and up, and
 * is tried once a day besides. What could not be mended at once is kept for the next
 * process, and so is, before it counts, what was copied as bad. What is too much is
 * forgotten; the next scrub finds it again.
 *
 * When recovery stops the task ends.
 */
#include <endian.h>

#include "replication/recovery_internal.h"

#define PAUSE_MIN_NS  (2 * NS_PER_S)
#define PAUSE_MAX_NS  (60 * NS_PER_S)
#define PAUSE_VAIN_NS (24 * 3600 * NS_PER_S) /* nobody has it sound */

/* --- the list --- */

static struct mend_extent *find(struct recovery *r, struct address extent)
{
    struct mend_extent *it;
    TAILQ_FOREACH (it, &r->mends, link)
        if (address_equal(it->extent, extent))
            return it;
    return NULL;
}

static void drop(struct recovery *r, struct mend_extent *it)
{
    TAILQ_REMOVE(&r->mends, it, link);
    r->mend_count--;
    free(it);
}

/* What nobody has sound makes room for what somebody may have. */
static void make_room(struct recovery *r)
{
    struct mend_extent *it = r->is_mending ? TAILQ_NEXT(TAILQ_FIRST(&r->mends), link)
                                           : TAILQ_FIRST(&r->mends);
    while (it != NULL && !it->is_vain)
        it = TAILQ_NEXT(it, link);
    if (it != NULL)
        drop(r, it);
}

/* NULL: there is no room; it is found again. */
static struct mend_extent *add(struct recovery *r, struct address extent)
{
    if (r->mend_count == RECOVERY_MENDS_MAX)
        make_room(r);
    struct mend_extent *it = r->mend_count < RECOVERY_MENDS_MAX ? calloc(1, sizeof *it)
                                                                : NULL;
    if (it == NULL)
        return NULL;
    it->extent = extent;
    TAILQ_INSERT_TAIL(&r->mends, it, link);
    r->mend_count++;
    return it;
}

static struct mend_extent *first_due(const struct recovery *r)
{
    struct mend_extent *it, *first = NULL;
    TAILQ_FOREACH (it, &r->mends, link)
        if (first == NULL || it->due_ns < first->due_ns)
            first = it;
    return first;
}

/* Who is asked for its extents; changes when somebody else can be. */
static uint64_t who_is_asked(const struct recovery *r, struct address extent)
{
    struct recovery_source sources[REPLICAS_MAX];
    uint32_t count;
    uint64_t sum = 0;
    (void)recovery_sources(r, address_group(extent), sources, &count);
    for (uint32_t i = 0; i < count; i++)
        sum = sum * 0x9e3779b97f4a7c15U + sources[i].node;
    return sum;
}

uint32_t recovery_mends_left(const struct recovery *r)
{
    const struct mend_extent *it;
    uint32_t count = 0;
    TAILQ_FOREACH (it, &r->mends, link)
        count += !it->is_vain;
    return count;
}

/* --- what is kept --- */

#define KEY_BYTES 9U
#define KEY_VALUE "1" /* the version */
#define PAGE_MAX  64U

static void key_of(struct address extent, char key[KEY_BYTES])
{
    uint64_t v = htobe64(extent.v);
    key[0] = RECOVERY_MEND_KEY[0];
    memcpy(key + 1, &v, sizeof v);
}

async int recovery_mend_keep(struct recovery *r, struct address extent)
{
    struct kv_batch batch;
    char key[KEY_BYTES];
    if (r->options.kv == NULL)
        return 0;
    key_of(extent, key);
    kv_batch_init(&batch);
    kv_batch_put(&batch, key, sizeof key, KEY_VALUE, 1);
    if (!batch.bad)
        return kv_write_wait(r->options.kv, &batch, KV_SYNCED);
    kv_batch_done(&batch);
    return -ENOMEM;
}

/* If it comes back after a crash it is looked at once more. */
static async void forget(struct recovery *r, struct address extent)
{
    struct kv_batch batch;
    char key[KEY_BYTES];
    if (r->options.kv == NULL)
        return;
    key_of(extent, key);
    kv_batch_init(&batch);
    kv_batch_delete(&batch, key, sizeof key);
    if (batch.bad)
        kv_batch_done(&batch);
    else
        (void)kv_write_wait(r->options.kv, &batch, KV_UNSYNCED);
}

static void load_one(struct recovery *r, const struct kv_pair *pair)
{
    uint64_t v;
    if (pair->key_len != KEY_BYTES)
        return;
    memcpy(&v, (const char *)pair->key + 1, sizeof v);
    const struct address extent = {.v = be64toh(v)};
    bool is_sound = address_group(extent) != 0 && address_block(extent) == 0;
    struct mend_extent *it = is_sound && find(r, extent) == NULL ? add(r, extent) : NULL;
    if (it != NULL)
        it->is_kept = true;
}

async void recovery_mend_load(struct recovery *r)
{
    char after[KEY_BYTES];
    size_t after_len = 0;
    bool more = r->options.kv != NULL && r->options.rpc != NULL;
    while (more && !r->is_stopping && r->mend_count < RECOVERY_MENDS_MAX) {
        struct kv_page page;
        if (kv_scan(r->options.kv, RECOVERY_MEND_KEY, 1, after, after_len, PAGE_MAX,
                    &page) < 0)
            break;
        for (uint32_t i = 0; i < page.count; i++)
            load_one(r, &page.pairs[i]);
        more = page.more && page.count > 0 &&
               page.pairs[page.count - 1].key_len == KEY_BYTES;
        after_len = more ? KEY_BYTES : 0;
        if (more)
            memcpy(after, page.pairs[page.count - 1].key, KEY_BYTES);
        kv_page_done(&page);
    }
    recovery_mend_run(r);
}

/* --- the task --- */

/* False: it is done. */
static async bool is_left(struct recovery *r, struct mend_extent *it, int rc)
{
    if (rc == 0 && !it->is_again && it->is_kept) {
        forget(r, it->extent);
        it->is_kept = false;
    }
    if (rc == 0 && !it->is_again)
        return false;
    if (!it->is_kept && !r->is_stopping)
        it->is_kept = recovery_mend_keep(r, it->extent) == 0;
    return true;
}

static async void mend_next(struct recovery *r, struct mend_extent *it)
{
    TAILQ_REMOVE(&r->mends, it, link);
    TAILQ_INSERT_HEAD(&r->mends, it, link);
    it->is_again = false;
    it->asked = who_is_asked(r, it->extent);
    r->is_mending = true;
    int rc = recovery_mend_one(r, it->extent);
    bool is_to_stay = is_left(r, it, rc);
    r->is_mending = false;
    if (!is_to_stay) {
        drop(r, it);
        return;
    }
    it->is_vain = rc == -PLX_ENOTHERE && !it->is_again;
    it->pause_ns = rc == 0 ? PAUSE_MIN_NS
                           : min_u64(max_u64(it->pause_ns * 2, PAUSE_MIN_NS),
                                     PAUSE_MAX_NS);
    it->due_ns = loop_now_ns(r->options.loop) +
                 (it->is_vain ? PAUSE_VAIN_NS : it->pause_ns);
}

static void timer_fired(struct timer *timer)
{
    waitlist_wake_all(&container_of(timer, struct recovery, mend_timer)->mends_changed);
}

static async void mend_main(struct task_call *call)
{
    struct recovery *r = container_of(call, struct recovery, mend_task);
    struct mend_extent *it;
    while (!r->is_stopping && (it = first_due(r)) != NULL) {
        uint64_t now_ns = loop_now_ns(r->options.loop);
        if (it->due_ns <= now_ns) {
            mend_next(r, it);
            continue;
        }
        timer_start(r->options.loop, &r->mend_timer, it->due_ns - now_ns);
        waitlist_wait(&r->mends_changed);
        timer_stop(r->options.loop, &r->mend_timer);
    }
    r->mends_run = false;
    waitlist_wake_all(&r->changed);
}

void recovery_mend_run(struct recovery *r)
{
    waitlist_wake_all(&r->mends_changed);
    if (r->mends_run || r->is_stopping || TAILQ_EMPTY(&r->mends))
        return;
    r->mends_run = true;
    r->mend_timer.fire = timer_fired;
    r->mend_task =
        (struct task_call){.main = mend_main, .name = "recovery mend", .system = true};
    task_start(r->options.loop, &r->mend_task);
}

void recovery_mend(struct recovery *r, struct address extent, bool is_looked_for)
{
    if (r->options.rpc == NULL || r->is_stopping)
        return;
    struct mend_extent *it = find(r, extent);
    if (it == NULL) {
        (void)add(r, extent);
    } else if (is_looked_for) {
        it->is_again = r->is_mending && it == TAILQ_FIRST(&r->mends);
        it->is_vain = false;
        it->due_ns = 0;
    }
    recovery_mend_run(r);
}

void recovery_mend_wake(struct recovery *r)
{
    struct mend_extent *it;
    TAILQ_FOREACH (it, &r->mends, link)
        if (who_is_asked(r, it->extent) != it->asked)
            it->due_ns = 0;
    waitlist_wake_all(&r->mends_changed);
}

void recovery_mend_forget(struct recovery *r)
{
    while (!TAILQ_EMPTY(&r->mends))
        drop(r, TAILQ_FIRST(&r->mends));
}
