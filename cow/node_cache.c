/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A chained hash table and one list in order of use. A node is loading (tasks wait for
 * it), or ready; only ready nodes without pins are evicted, oldest first. The bound may
 * be passed by what is pinned: a walk pins one node per level.
 */
#include "cow/node_cache.h"

struct cached {
    struct node node;          /* first: handed out */
    struct address address;
    uint8_t *bytes;
    uint32_t pins;
    bool ready;
    int result;                /* of loading, for those who wait */
    struct waitlist loading;
    LIST_ENTRY(cached) chain;
    TAILQ_ENTRY(cached) used;
};

LIST_HEAD(chain_head, cached);

struct node_cache {
    struct store *store;
    uint64_t limit_bytes, used_bytes;
    uint64_t bucket_count;     /* a power of two */
    struct chain_head *buckets;
    TAILQ_HEAD(, cached) by_use; /* least recently used first */
};

struct node_cache *node_cache_create(struct store *store, uint64_t limit_bytes)
{
    struct node_cache *cache = calloc(1, sizeof *cache);

    if (!cache)
        return NULL;
    cache->store = store;
    cache->limit_bytes = limit_bytes;
    for (cache->bucket_count = 64; cache->bucket_count < limit_bytes / BLOCK_SIZE;)
        cache->bucket_count *= 2;
    cache->buckets = calloc(cache->bucket_count, sizeof *cache->buckets);
    if (!cache->buckets) {
        free(cache);
        return NULL;
    }
    TAILQ_INIT(&cache->by_use);
    return cache;
}

static void evict(struct node_cache *cache, struct cached *cached)
{
    assert(cached->pins == 0);
    LIST_REMOVE(cached, chain);
    TAILQ_REMOVE(&cache->by_use, cached, used);
    cache->used_bytes -= BLOCK_SIZE;
    free(cached->bytes);
    free(cached);
}

void node_cache_destroy(struct node_cache *cache)
{
    struct cached *cached;

    if (!cache)
        return;
    while ((cached = TAILQ_FIRST(&cache->by_use)))
        evict(cache, cached);
    free(cache->buckets);
    free(cache);
}

uint64_t node_cache_used_bytes(const struct node_cache *cache)
{
    return cache->used_bytes;
}

static struct chain_head *bucket(struct node_cache *cache, struct address address)
{
    uint64_t hash = address.v * 0x9e3779b97f4a7c15U;

    return &cache->buckets[(hash >> 32) & (cache->bucket_count - 1)];
}

static struct cached *find(struct node_cache *cache, struct address address)
{
    struct cached *cached;

    LIST_FOREACH (cached, bucket(cache, address), chain)
        if (address_equal(cached->address, address))
            return cached;
    return NULL;
}

static void make_room(struct node_cache *cache)
{
    struct cached *cached, *next;

    for (cached = TAILQ_FIRST(&cache->by_use);
         cached && cache->used_bytes >= cache->limit_bytes; cached = next) {
        next = TAILQ_NEXT(cached, used);
        if (cached->pins == 0)
            evict(cache, cached);
    }
}

static struct cached *add(struct node_cache *cache, struct address address)
{
    make_room(cache);
    struct cached *cached = calloc(1, sizeof *cached);
    if (!cached)
        return NULL;
    cached->bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    if (!cached->bytes) {
        free(cached);
        return NULL;
    }
    cached->node.format = (const void *)cached->bytes;
    cached->address = address;
    waitlist_init(&cached->loading);
    LIST_INSERT_HEAD(bucket(cache, address), cached, chain);
    TAILQ_INSERT_TAIL(&cache->by_use, cached, used);
    cache->used_bytes += BLOCK_SIZE;
    return cached;
}

static const struct node *pin(struct node_cache *cache, struct cached *cached)
{
    cached->pins++;
    if (TAILQ_NEXT(cached, used)) {
        TAILQ_REMOVE(&cache->by_use, cached, used);
        TAILQ_INSERT_TAIL(&cache->by_use, cached, used);
    }
    return &cached->node;
}

const struct node *node_try(struct node_cache *cache, struct address address)
{
    struct cached *cached = find(cache, address);

    return cached && cached->ready ? pin(cache, cached) : NULL;
}

void node_put(struct node_cache *cache, const struct node *node)
{
    struct cached *cached = container_of((struct node *)node, struct cached, node);

    (void)cache;
    assert(cached->pins > 0);
    cached->pins--;
}

struct load {
    struct log_read read;
    struct iovec iov;
    uint32_t crc;
    struct event finished;
};

static void loaded(struct log_read *read)
{
    event_set(&container_of(read, struct load, read)->finished);
}

async static int load(struct node_cache *cache, struct cached *cached, uint32_t crc)
{
    struct load load = {.iov = {cached->bytes, BLOCK_SIZE}, .crc = crc};

    event_init(&load.finished);
    load.read = (struct log_read){
        .address = cached->address,
        .count = 1,
        .iov = &load.iov,
        .iov_count = 1,
        .crcs = &load.crc,
        .done = loaded,
    };
    log_read(cache->store, &load.read);
    event_wait(&load.finished);
    return load.read.result;
}

async int node_get(struct node_cache *cache, struct address address, uint32_t crc,
                   const struct node **ret_node)
{
    struct cached *cached = find(cache, address);
    int rc;

    if (cached) {
        const struct node *node = pin(cache, cached);
        while (!cached->ready && cached->result == 0)
            waitlist_wait(&cached->loading);
        if (cached->ready) {
            *ret_node = node;
            return 0;
        }
        /* The one that loaded it failed; it is gone from the table with its last pin. */
        rc = cached->result;
        if (--cached->pins == 0)
            evict(cache, cached);
        return rc;
    }
    cached = add(cache, address);
    if (!cached)
        return -ENOMEM;
    cached->pins++;
    rc = load(cache, cached, crc);
    if (rc == 0) {
        cached->ready = true;
        *ret_node = &cached->node;
    } else {
        cached->result = rc;
    }
    waitlist_wake_all(&cached->loading);
    if (rc < 0 && --cached->pins == 0)
        evict(cache, cached);
    return rc;
}

void node_add(struct node_cache *cache, struct address address, const void *bytes)
{
    struct cached *cached = find(cache, address);

    if (cached)
        return;
    cached = add(cache, address);
    if (!cached)
        return;
    memcpy(cached->bytes, bytes, BLOCK_SIZE);
    cached->ready = true;
}
