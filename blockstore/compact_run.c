/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The task that compacts: chooses, works, stands back, ends.
 *
 * Happy path: whoever takes slabs, or makes blocks die, asks for it; when the policy
 * sees work the task starts, moves the best extents it found in one look at all of them,
 * and ends when enough is free or nothing is worth it. Between chunks it makes room for
 * guests, the less the fewer slabs are free. When free pieces are scattered it empties
 * slabs: it moves what is in the emptiest one, and takes no piece of it meanwhile.
 *
 * What can fail: one extent (compact.c); then the next one is tried. After several
 * failures in a row the task ends for a while.
 *
 * On close the task ends at the next chunk.
 */
#include "blockstore/compact.h"

#define LOOK_EVERY_NS   (50 * NS_PER_MS) /* at all extents, when it was in vain */
#define IDLE_EVERY_NS   (5 * NS_PER_S)
#define FAILURES_MAX    8U
#define BUSY_NS         (20 * NS_PER_MS) /* used within so long: guests are at work */
#define BUCKETS_AT_ONCE 256U

struct mover {
    struct store *store;
    uint64_t worked_from_ns;
    uint32_t failures;
    uint32_t goal;
    struct compact_choices choices;
    uint32_t slab; /* that is to be emptied */
    uint64_t *pinned;
    bool has_moved; /* something out of it */
    uint32_t owner_count;
    struct address owners[SLAB_PIECES];
    uint8_t live[EXTENT_PIECES];
};

static struct compact_space space_now(const struct store *store)
{
    const struct slabs *slabs = &store->slabs;
    uint64_t kept = div_up_u64(store->reserve_bytes, SLAB_BYTES) +
                    compact_reserve_slabs(slabs->count);
    uint32_t withheld = allocate_withheld(store);
    uint64_t idle_ns = loop_now_ns(store->loop) - store->used_ns;
    return (struct compact_space){
        .slabs = slabs->count - withheld,
        .free = slabs->free_count - withheld,
        .kept = kept < slabs->count ? (uint32_t)kept : slabs->count,
        .part_free = slabs->part_free,
        .idle_ns = store->no_idle_work ? 0 : idle_ns,
        .active = store->compacting,
    };
}

static bool must_end(const struct store *store)
{
    return store->failed || store->is_closing;
}

/* Between two chunks. */
static async int pace(void *arg)
{
    struct mover *m = arg;
    struct store *store = m->store;
    if (must_end(store))
        return -PLX_ECANCELLED;
    uint64_t now_ns = loop_now_ns(store->loop), pause_ns = 0;
    if (now_ns - store->used_ns < BUSY_NS) {
        struct compact_space space = space_now(store);
        pause_ns = compact_pause_ns(&space, now_ns - m->worked_from_ns);
    }
    if (pause_ns > 0)
        task_sleep_ns(pause_ns);
    else
        task_yield();
    m->worked_from_ns = loop_now_ns(store->loop);
    return must_end(store) ? -PLX_ECANCELLED : 0;
}

/* Calls fn for each extent, and lets others go first now and then. */
static async void look_at_all(struct mover *m, void (*fn)(void *arg, struct extent *e))
{
    const struct extent_table *table = &m->store->extents;
    for (size_t i = 0; i < table->bucket_count && !must_end(m->store);) {
        i = extent_each_from(table, i, BUCKETS_AT_ONCE, fn, m);
        if (i < table->bucket_count)
            task_yield();
    }
}

/* --- dead blocks --- */

static void consider(void *arg, struct extent *e)
{
    struct mover *m = arg;
    if (!compact_is_fit(e) || e->live == e->stored)
        return;
    uint32_t permille = compact_permille(runs_pieces(&e->runs), e->live);
    if (permille <= m->goal)
        compact_choose(&m->choices, e->address, permille);
}

/* The part of an extent that fits into the space there is; false: none gains. */
static bool cut_to_budget(struct mover *m, const struct extent *e, struct section *s)
{
    struct compact_space space = space_now(m->store);
    uint32_t budget = compact_budget(&space);
    uint32_t pieces = pieces_of(e->stored), digest = pieces_of(digest_blocks(e->live));
    s->from = 0;
    s->to = pieces;
    if (pieces_of(e->live) + digest <= budget)
        return true;
    if (budget <= digest)
        return false;
    uint32_t place = 0;
    memset(m->live, 0, sizeof m->live);
    for (uint32_t block = 0; block < e->length; block++) {
        if (e->layout != NULL && !bitmap_get(e->layout, block))
            continue;
        m->live[place++ / PIECE_BLOCKS] += extent_is_live(e, block, 1);
    }
    uint32_t gain = compact_stretch(m->live, pieces, budget - digest, &s->from, &s->to);
    return gain > 0;
}

/* Moves the next one of the choices. 1: done; 0: there is none; or what went wrong. */
static async int move_one(struct mover *m)
{
    struct store *store = m->store;
    for (int looked = 0;; looked++) {
        while (m->choices.next < m->choices.count) {
            struct section s = {.address = m->choices.at[m->choices.next++].extent};
            struct extent *e = extent_find(&store->extents, s.address);
            if (e == NULL || !compact_is_fit(e) || e->live == e->stored ||
                compact_permille(runs_pieces(&e->runs), e->live) > m->goal ||
                !cut_to_budget(m, e, &s))
                continue;
            int result = compact_section(store, &s, pace, m);
            return result < 0 ? result : 1;
        }
        if (looked > 0)
            return 0;
        m->choices.count = m->choices.next = 0;
        look_at_all(m, consider);
    }
}

/* --- scattered pieces --- */

static void pin(void *arg, struct extent *e)
{
    struct mover *m = arg;
    if (compact_is_fit(e))
        return;
    for (uint32_t i = 0; i < e->runs.count; i++) {
        uint32_t first = e->runs.at[i].start / SLAB_PIECES;
        uint32_t last = (e->runs.at[i].start + e->runs.at[i].count - 1) / SLAB_PIECES;
        for (uint32_t slab = first; slab <= last; slab++)
            m->pinned[slab / 64] |= (uint64_t)1 << (slab % 64);
    }
}

/* The pieces of an extent that lie in the slab: the first stretch of them. */
static bool stretch_in_slab(const struct extent *e, uint32_t slab, struct section *s)
{
    uint32_t at = 0, pieces = pieces_of(e->stored);
    uint32_t start = slab * SLAB_PIECES, end = start + SLAB_PIECES;
    for (uint32_t i = 0; i < e->runs.count; i++) {
        const struct run *run = &e->runs.at[i];
        uint32_t first = run->start > start ? run->start : start;
        uint32_t last = min_u32(run->start + run->count, end);
        if (first < last) {
            s->from = at + (first - run->start);
            s->to = at + (last - run->start);
            s->digest = s->to > pieces;
            return true;
        }
        at += run->count;
    }
    return false;
}

static void find_owner(void *arg, struct extent *e)
{
    struct mover *m = arg;
    struct section s = {0};
    if (m->owner_count < SLAB_PIECES && stretch_in_slab(e, m->slab, &s))
        m->owners[m->owner_count++] = e->address;
}

static async int empty_of(struct mover *m, struct address owner)
{
    int result = 0;
    for (uint32_t i = 0; i < SLAB_PIECES && result == 0; i++) {
        struct section s = {.address = owner};
        struct extent *e = extent_find(&m->store->extents, owner);
        if (e == NULL || !stretch_in_slab(e, m->slab, &s))
            return 0;
        result = compact_section(m->store, &s, pace, m);
        m->has_moved |= result == 0;
    }
    return result == -PLX_EMISSING ? 0 : result;
}

static async int empty_slab(struct mover *m)
{
    int result = 0;
    m->owner_count = 0;
    m->has_moved = false;
    m->store->slabs.avoid = m->slab;
    look_at_all(m, find_owner);
    for (uint32_t i = 0; i < m->owner_count && result == 0; i++)
        result = empty_of(m, m->owners[i]);
    m->store->slabs.avoid = 0;
    return result < 0 ? result : m->has_moved;
}

/* 1: one was emptied; 0: none pays; or what went wrong. */
static async int evacuate(struct mover *m)
{
    struct slabs *slabs = &m->store->slabs;
    m->pinned = calloc(div_up_u64(slabs->count, 64), sizeof *m->pinned);
    if (m->pinned == NULL)
        return -ENOMEM;
    look_at_all(m, pin);
    install_each(m->store, pin, m);
    m->slab = slabs_emptiest(slabs, m->pinned);
    free(m->pinned);
    struct compact_space space = space_now(m->store);
    if (m->slab == 0 || !compact_slab_pays(&space, slabs_held(slabs, m->slab)))
        return 0;
    return empty_slab(m);
}

/* --- the task --- */

/* 1: something was done; 0: there is nothing to do; or what went wrong. */
static async int one_step(struct mover *m)
{
    struct store *store = m->store;
    struct compact_space space = space_now(store);
    uint64_t changes = store->compact_changes;
    m->goal = compact_goal(&space);
    if (m->goal == 0)
        return 0;
    int result = compact_evacuates(&space) ? evacuate(m) : 0;
    if (result == 0)
        result = move_one(m);
    if (result == 0 && m->goal > COMPACT_GOAL_IDLE)
        result = evacuate(m);
    if (result == 0 && !must_end(store)) {
        store->compact_nothing_at = changes;
        store->compact_nothing_goal = m->goal;
        store->compact_looked_ns = loop_now_ns(store->loop);
    }
    return result;
}

static async void compact_main(struct task_call *call)
{
    struct store *store = container_of(call, struct store, compact_task);
    struct mover *m = calloc(1, sizeof *m);
    int result = m != NULL ? 1 : -ENOMEM;
    if (m != NULL)
        *m = (struct mover){.store = store, .worked_from_ns = loop_now_ns(store->loop)};
    while (result != 0 && m != NULL && m->failures < FAILURES_MAX && !must_end(store)) {
        result = one_step(m);
        m->failures = result < 0 ? m->failures + 1 : 0;
    }
    free(m);
    store->compacting = false;
    if (result < 0)
        store->compact_looked_ns = loop_now_ns(store->loop) + NS_PER_S;
    compact_wanted(store);
    if (store->on_space != NULL)
        loop_post(store->loop, store->on_space);
    store_settled(store);
}

/* Nothing has changed since nothing was found. */
static bool is_in_vain(const struct store *store, uint32_t goal)
{
    return store->compact_changes == store->compact_nothing_at &&
           goal <= store->compact_nothing_goal;
}

void compact_wanted(struct store *store)
{
    if (store->compacting || must_end(store))
        return;
    struct compact_space space = space_now(store);
    uint32_t goal = compact_goal(&space);
    uint64_t now_ns = loop_now_ns(store->loop);
    uint64_t wait_ns = IDLE_EVERY_NS;
    if (goal > 0 && !is_in_vain(store, goal)) {
        if (now_ns >= store->compact_looked_ns + LOOK_EVERY_NS) {
            store->compacting = true;
            store->compact_task = (struct task_call){
                .main = compact_main, .name = "compaction", .system = true};
            task_start(store->loop, &store->compact_task);
            return;
        }
        wait_ns = store->compact_looked_ns + LOOK_EVERY_NS - now_ns;
    } else if (store->no_idle_work || is_in_vain(store, COMPACT_GOAL_IDLE)) {
        return;
    }
    if (!store->compact_timer.armed || wait_ns < IDLE_EVERY_NS)
        timer_start(store->loop, &store->compact_timer, wait_ns);
}

void compact_changed(struct store *store)
{
    store->compact_changes++;
    compact_wanted(store);
}

static void timer_fired(struct timer *timer)
{
    compact_wanted(container_of(timer, struct store, compact_timer));
}

void compact_init(struct store *store)
{
    store->compact_changes = 1;
    store->compact_timer.fire = timer_fired;
    store->compact_count = metric_counter(store->loop, "parallax_store_compactions_total",
                                          "Extents compacted, in whole or in part.");
    store->compact_read_bytes = metric_counter(store->loop,
                                               "parallax_store_compact_read_bytes_total",
                                               "Bytes that compaction has read.");
    store->compact_written_bytes = metric_counter(
        store->loop, "parallax_store_compact_written_bytes_total",
        "Bytes that compaction has written.");
}

bool store_space_coming(struct store *store)
{
    bool is_short = slabs_withheld(&store->slabs) > 0;
    if (is_short)
        allocate_wanted(store);
    return !must_end(store) &&
           (store->compacting || !is_in_vain(store, COMPACT_GOAL_MAX) ||
            (is_short && store->allocating));
}
