/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All extents of a store in memory: a hash table by address, and the lock that lets one
 * multi-step operation work on an extent at a time.
 */
#include "blockstore/store_internal.h"

#define LOOK_BUCKETS 256U /* looked at without a pause */

int extent_table_init(struct extent_table *table)
{
    *table = (struct extent_table){0};
    table->buckets = calloc(EXTENT_TABLE_MIN, sizeof *table->buckets);
    if (table->buckets == NULL)
        return -ENOMEM;
    table->bucket_count = EXTENT_TABLE_MIN;
    return 0;
}

void extent_free(struct extent *e)
{
    if (e == NULL)
        return;
    assert(e->open == NULL);
    runs_done(&e->runs);
    free(e->live_map);
    free(e->layout);
    free(e->headers);
    free(e);
}

void extent_table_done(struct extent_table *table)
{
    for (size_t i = 0; i < table->bucket_count; i++) {
        struct extent *e, *next;
        SLIST_FOREACH_SAFE (e, &table->buckets[i], link, next)
            extent_free(e);
    }
    free(table->buckets);
    *table = (struct extent_table){0};
}

/* Extents of a group are numbered one by one, so a multiplication spreads them well. */
static struct extent_bucket *bucket_of(const struct extent_table *table,
                                       struct address address)
{
    uint64_t hash = (address.v >> 14) * 0x9e3779b97f4a7c15U;
    return &table->buckets[(hash >> 32) & (table->bucket_count - 1)];
}

struct extent *extent_find(const struct extent_table *table, struct address address)
{
    struct extent *e;
    SLIST_FOREACH (e, bucket_of(table, address), link) {
        if (address_equal(e->address, address))
            return e;
    }
    return NULL;
}

/* Without memory it stays small and gets slower. */
static void grow(struct extent_table *table)
{
    struct extent_table bigger = {
        .bucket_count = table->bucket_count * 2,
        .count = table->count,
        .stored_blocks = table->stored_blocks,
        .live_blocks = table->live_blocks,
        .serials = table->serials,
    };
    bigger.buckets = calloc(bigger.bucket_count, sizeof *bigger.buckets);
    if (bigger.buckets == NULL)
        return;
    for (size_t i = 0; i < table->bucket_count; i++) {
        struct extent *e, *next;
        SLIST_FOREACH_SAFE (e, &table->buckets[i], link, next)
            SLIST_INSERT_HEAD(bucket_of(&bigger, e->address), e, link);
    }
    free(table->buckets);
    *table = bigger;
}

void extent_insert(struct extent_table *table, struct extent *e)
{
    assert(extent_find(table, e->address) == NULL);
    if (table->count >= table->bucket_count)
        grow(table);
    SLIST_INSERT_HEAD(bucket_of(table, e->address), e, link);
    table->count++;
    e->serial = ++table->serials;
    table->stored_blocks += e->stored;
    table->live_blocks += e->live;
}

void extent_remove(struct extent_table *table, struct extent *e)
{
    SLIST_REMOVE(bucket_of(table, e->address), e, extent, link);
    table->count--;
    e->serial = 0;
    table->stored_blocks -= e->stored;
    table->live_blocks -= e->live;
}

void extent_count(struct extent_table *table, struct extent *e, uint32_t stored,
                  uint32_t live)
{
    assert(live <= stored && stored <= EXTENT_BLOCKS);
    table->stored_blocks += (uint64_t)stored - e->stored;
    table->live_blocks += (uint64_t)live - e->live;
    e->stored = stored;
    e->live = live;
}

void extent_each(const struct extent_table *table,
                 void (*fn)(void *arg, struct extent *e), void *arg)
{
    for (size_t i = 0; i < table->bucket_count; i++) {
        struct extent *e;
        SLIST_FOREACH (e, &table->buckets[i], link)
            fn(arg, e);
    }
}

size_t extent_each_from(const struct extent_table *table, size_t bucket, size_t count,
                        void (*fn)(void *arg, struct extent *e), void *arg)
{
    for (; bucket < table->bucket_count && count > 0; bucket++, count--) {
        struct extent *e;
        SLIST_FOREACH (e, &table->buckets[bucket], link)
            fn(arg, e);
    }
    return bucket;
}

async struct extent *extent_lock(struct store *store, struct address address)
{
    for (;;) {
        struct extent *e = extent_find(&store->extents, address);
        if (e == NULL)
            return NULL;
        if (!e->is_locked) {
            e->is_locked = true;
            return e;
        }
        waitlist_wait(&store->unlocked);
    }
}

void extent_unlock(struct store *store, struct extent *e)
{
    assert(e->is_locked);
    e->is_locked = false;
    waitlist_wake_all(&store->unlocked);
}

int extent_open_start(struct store *store, struct extent *e)
{
    assert(e->state == EXTENT_OPEN && e->open == NULL);
    struct extent_open *open = calloc(1, sizeof *open);
    e->headers = calloc(1, BITMAP_BYTES);
    if (open == NULL || e->headers == NULL) {
        free(open);
        return -ENOMEM;
    }
    open->extent = e;
    open->store = store;
    open->slabs_next = 1;
    TAILQ_INIT(&open->appends);
    waitlist_init(&open->changed);
    TAILQ_INSERT_TAIL(&store->opens, open, link);
    e->open = open;
    return 0;
}

void extent_open_end(struct store *store, struct extent *e)
{
    struct extent_open *open = e->open;
    assert(TAILQ_EMPTY(&open->appends) && !open->is_recording);
    assert(waitlist_empty(&open->changed));
    sync_forget(store, open);
    TAILQ_REMOVE(&store->opens, open, link);
    free(open);
    e->open = NULL;
}

uint32_t extent_place(const struct extent *e, uint32_t block, uint32_t max,
                      uint64_t *ret_offset_bytes)
{
    if (e->live_map != NULL && planted(PLANT_RANK_FROM_LIVE))
        return layout_find(&e->runs, e->live_map, block, max, ret_offset_bytes);
    return layout_find(&e->runs, e->layout, block, max, ret_offset_bytes);
}

bool extent_is_live(const struct extent *e, uint32_t block, uint32_t count)
{
    const uint8_t *map = e->live_map != NULL ? e->live_map : e->layout;
    return map == NULL || bitmap_span(map, block, count) == count;
}

/* --- what callers see --- */

static void info_of(const struct extent *e, struct extent_info *ret)
{
    *ret = (struct extent_info){
        .extent = e->address,
        .disk = e->disk,
        .epoch = e->epoch,
        .nonce = e->nonce,
        .state = (enum extent_state)e->state,
        .length = e->length,
        .durable = e->durable,
        .stored = e->stored,
        .live = e->live,
        .has_headers = e->headers != NULL,
        .restart_scanned = e->restart_scanned,
        .is_damaged = e->is_damaged,
        .create_flags = e->create_flags,
    };
    assert(ret->durable <= ret->length); /* E2 */
}

int store_extent_info(const struct store *store, struct address extent,
                      struct extent_info *ret_info)
{
    const struct extent *e = extent_find(&store->extents, extent);
    if (e == NULL)
        return -PLX_EMISSING;
    info_of(e, ret_info);
    return 0;
}

struct listing {
    uint64_t disk;
    struct extent_info *infos; /* NULL: only count */
    size_t count;
};

static void list_one(void *arg, struct extent *e)
{
    struct listing *l = arg;
    if (l->disk != 0 && l->disk != e->disk)
        return;
    if (l->infos != NULL)
        info_of(e, &l->infos[l->count]);
    l->count++;
}

static int compare_infos(const void *a, const void *b)
{
    const struct extent_info *x = a, *y = b;
    return x->extent.v < y->extent.v ? -1 : x->extent.v > y->extent.v;
}

int store_list_extents(const struct store *store, uint64_t disk,
                       struct extent_info **ret_infos, size_t *ret_count)
{
    struct listing l = {.disk = disk};
    extent_each(&store->extents, list_one, &l);
    l.infos = malloc((l.count + 1) * sizeof *l.infos);
    if (l.infos == NULL)
        return -ENOMEM;
    l.count = 0;
    extent_each(&store->extents, list_one, &l);
    qsort(l.infos, l.count, sizeof *l.infos, compare_infos);
    *ret_infos = l.infos;
    *ret_count = l.count;
    return 0;
}

struct look {
    void (*fn)(void *arg, const struct extent_info *info);
    void *arg;
};

static void look_one(void *arg, struct extent *e)
{
    const struct look *look = arg;
    struct extent_info info;
    info_of(e, &info);
    look->fn(look->arg, &info);
}

async void store_look_at_all(const struct store *store,
                             void (*fn)(void *arg, const struct extent_info *info),
                             void *arg)
{
    struct look look = {fn, arg};
    for (size_t next = 0; next < store->extents.bucket_count;) {
        next = extent_each_from(&store->extents, next, LOOK_BUCKETS, look_one, &look);
        task_yield();
    }
}

/* --- pages of them --- */

/* The lowest addresses so far; twice as many as are wanted, so that sorting them is rare.
 */
struct page {
    uint16_t group;
    uint64_t from, limit; /* what is not between them is not wanted */
    uint32_t max, count;
    bool more;
    uint64_t *at;
};

static int compare_addresses(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void page_trim(struct page *page)
{
    qsort(page->at, page->count, sizeof *page->at, compare_addresses);
    if (page->count <= page->max)
        return;
    page->count = page->max;
    page->limit = page->at[page->max - 1];
    page->more = true;
}

static void page_add(void *arg, struct extent *e)
{
    struct page *page = arg;
    uint64_t v = e->address.v;
    if (address_group(e->address) != page->group || v < page->from || v > page->limit) {
        page->more = page->more ||
                     (address_group(e->address) == page->group && v > page->limit);
        return;
    }
    page->at[page->count++] = v;
    if (page->count == 2 * page->max)
        page_trim(page);
}

async int store_page_extents(struct store *store, uint16_t group, struct address from,
                             uint32_t max, struct address *ret_extents,
                             uint32_t *ret_count, bool *ret_more)
{
    const struct extent_table *table = &store->extents;
    struct page page = {.group = group, .from = from.v, .limit = UINT64_MAX, .max = max};
    size_t buckets = 0, next = 0;
    page.at = malloc(2 * (size_t)max * sizeof *page.at);
    if (page.at == NULL)
        return -ENOMEM;
    while (next < table->bucket_count) {
        /* When it has grown they are elsewhere, and some might be passed over. */
        if (buckets != table->bucket_count) {
            buckets = table->bucket_count;
            next = page.count = 0;
            page.limit = UINT64_MAX;
            page.more = false;
        }
        next = extent_each_from(table, next, LOOK_BUCKETS, page_add, &page);
        if (next < table->bucket_count)
            task_yield();
    }
    page_trim(&page);
    for (uint32_t i = 0; i < page.count; i++)
        ret_extents[i] = (struct address){page.at[i]};
    *ret_count = page.count;
    *ret_more = page.more;
    free(page.at);
    return 0;
}
