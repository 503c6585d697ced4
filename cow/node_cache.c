/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A chained hash table and one list in order of use. A node is loading (tasks wait for
 * it), or ready; only ready nodes without pins are evicted, oldest first. The bound may
 * be passed by what is pinned: a walk pins one node per level.
 */
#include "cow/node_cache.h"

#define LOADS_AHEAD_MAX 64U

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

/* Memory for nodes comes in chunks, which live as long as the cache: malloc would spend
 * two pages on each. */
struct free_block {
    SLIST_ENTRY(free_block) link;
};
struct chunk {
    SLIST_ENTRY(chunk) link;
    uint8_t *bytes;
};
#define CHUNK_BLOCKS 64U

struct node_cache {
    struct copies *copies;
    uint64_t limit_bytes, used_bytes;
    uint32_t load_count;       /* reads under way */
    struct waitlist loads_over;
    SLIST_HEAD(, free_block) free_blocks;
    SLIST_HEAD(, chunk) chunks;
    uint64_t bucket_count;     /* a power of two */
    struct chain_head *buckets;
    TAILQ_HEAD(, cached) by_use; /* least recently used first */
};

struct node_cache *node_cache_create(struct copies *copies, uint64_t limit_bytes)
{
    struct node_cache *cache = calloc(1, sizeof *cache);

    if (!cache)
        return NULL;
    cache->copies = copies;
    cache->limit_bytes = limit_bytes;
    for (cache->bucket_count = 64; cache->bucket_count < limit_bytes / BLOCK_SIZE;)
        cache->bucket_count *= 2;
    cache->buckets = calloc(cache->bucket_count, sizeof *cache->buckets);
    if (!cache->buckets) {
        free(cache);
        return NULL;
    }
    TAILQ_INIT(&cache->by_use);
    SLIST_INIT(&cache->free_blocks);
    SLIST_INIT(&cache->chunks);
    waitlist_init(&cache->loads_over);
    return cache;
}

static void block_put(struct node_cache *cache, uint8_t *bytes)
{
    struct free_block *block = (void *)bytes;

    SLIST_INSERT_HEAD(&cache->free_blocks, block, link);
}

static bool add_chunk(struct node_cache *cache)
{
    struct chunk *chunk = malloc(sizeof *chunk);

    if (!chunk)
        return false;
    chunk->bytes = aligned_alloc(BLOCK_SIZE, CHUNK_BLOCKS * BLOCK_SIZE);
    if (!chunk->bytes) {
        free(chunk);
        return false;
    }
    SLIST_INSERT_HEAD(&cache->chunks, chunk, link);
    for (uint32_t i = CHUNK_BLOCKS; i-- > 0;)
        block_put(cache, chunk->bytes + (size_t)i * BLOCK_SIZE);
    return true;
}

static uint8_t *block_get(struct node_cache *cache)
{
    if (SLIST_EMPTY(&cache->free_blocks) && !add_chunk(cache))
        return NULL;
    struct free_block *block = SLIST_FIRST(&cache->free_blocks);
    SLIST_REMOVE_HEAD(&cache->free_blocks, link);
    return (uint8_t *)block;
}

static void evict(struct node_cache *cache, struct cached *cached)
{
    assert(cached->pins == 0);
    LIST_REMOVE(cached, chain);
    TAILQ_REMOVE(&cache->by_use, cached, used);
    cache->used_bytes -= BLOCK_SIZE;
    block_put(cache, cached->bytes);
    free(cached);
}

async void node_cache_destroy(struct node_cache *cache)
{
    struct cached *cached;
    struct chunk *chunk;

    while (cache->load_count > 0) /* read ahead in vain */
        waitlist_wait(&cache->loads_over);
    while ((cached = TAILQ_FIRST(&cache->by_use)))
        evict(cache, cached);
    while ((chunk = SLIST_FIRST(&cache->chunks))) {
        SLIST_REMOVE_HEAD(&cache->chunks, link);
        free(chunk->bytes);
        free(chunk);
    }
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
    cached->bytes = block_get(cache);
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

/* One read under way. It pins what it fills. */
struct load {
    struct log_read read;
    struct iovec iov;
    uint32_t crc;
    struct node_cache *cache;
    struct cached *cached;
};

static void unpin(struct node_cache *cache, struct cached *cached)
{
    assert(cached->pins > 0);
    /* One that could not be read goes with the last who knows of it. */
    if (--cached->pins == 0 && cached->result < 0)
        evict(cache, cached);
}

static void loaded(struct log_read *read)
{
    struct load *load = container_of(read, struct load, read);
    struct node_cache *cache = load->cache;
    struct cached *cached = load->cached;

    if (read->result < 0)
        cached->result = read->result;
    else
        cached->ready = true;
    free(load);
    if (--cache->load_count == 0)
        waitlist_wake_all(&cache->loads_over);
    waitlist_wake_all(&cached->loading);
    unpin(cache, cached);
}

/* Adds the node and starts to read it. NULL when memory is out. */
static struct cached *start_load(struct node_cache *cache, struct address address,
                                 uint32_t crc)
{
    struct load *load = calloc(1, sizeof *load);
    struct cached *cached = load ? add(cache, address) : NULL;

    if (!cached) {
        free(load);
        return NULL;
    }
    cached->pins++;
    cache->load_count++;
    load->cache = cache;
    load->cached = cached;
    load->crc = crc;
    load->iov = (struct iovec){cached->bytes, BLOCK_SIZE};
    load->read = (struct log_read){
        .address = address,
        .count = 1,
        .iov = &load->iov,
        .iov_count = 1,
        .crcs = &load->crc,
        .done = loaded,
    };
    copies_read(cache->copies, &load->read);
    return cached;
}

void node_prefetch(struct node_cache *cache, struct address address, uint32_t crc)
{
    if (cache->load_count < LOADS_AHEAD_MAX && !find(cache, address))
        (void)start_load(cache, address, crc);
}

async int node_get(struct node_cache *cache, struct address address, uint32_t crc,
                   const struct node **ret_node)
{
    struct cached *cached = find(cache, address);

    if (!cached)
        cached = start_load(cache, address, crc);
    if (!cached)
        return -ENOMEM;
    (void)pin(cache, cached);
    while (!cached->ready && cached->result == 0)
        waitlist_wait(&cached->loading);
    if (cached->ready) {
        *ret_node = &cached->node;
        return 0;
    }
    int rc = cached->result;
    unpin(cache, cached);
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
