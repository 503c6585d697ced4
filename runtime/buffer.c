/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Buffers of five sizes with free lists.
 *
 *   create: from the free list of its class; else a small one from a new chunk, a large
 *           one from malloc;
 *   put:    the last reference gives it to the free list; beyond a bound the memory goes
 *           back to the system (a small one's pages, a large one as a whole); then those
 *           who wait for room are told.
 *
 * Small buffers come in chunks: malloc would spend two pages on an aligned one, and a
 * flush lets thousands of them go at once. A chunk lives as long as its pool.
 *
 * B1  used_bytes is the sum of the capacities of all buffers with references.
 * B2  idle_bytes is the sum of the capacities of the buffers in free lists that have
 *     memory.
 */
#include "runtime/buffer.h"

#include <sys/mman.h>

#include "runtime/loop.h"

#if defined(__SANITIZE_ADDRESS__)
#define HAVE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAVE_ASAN 1
#endif
#endif

/* A buffer in a free list is as good as freed: let the sanitizer see it so. */
#ifdef HAVE_ASAN
#include <sanitizer/asan_interface.h>
#define poison(p, n)   __asan_poison_memory_region(p, n)
#define unpoison(p, n) __asan_unpoison_memory_region(p, n)
#else
#define poison(p, n)   ((void)(p), (void)(n))
#define unpoison(p, n) ((void)(p), (void)(n))
#endif

#define CLASSES        5U
#define IDLE_BYTES_MAX (24 * MIB) /* above what one background sync lets go */
#define SMALL_CLASSES  2U
#define CHUNK_BYTES    (256 * KIB)

/* Memory of CHUNK_BYTES and the buffers that share it. */
struct chunk {
    SLIST_ENTRY(chunk) link;
    uint8_t *memory;
    struct buffer buffers[];
};

SLIST_HEAD(chunk_list, chunk);

SLIST_HEAD(buffer_list, buffer);
TAILQ_HEAD(waiting_list, work);


struct buffer_pool {
    uint64_t limit_bytes;
    uint64_t used_bytes;
    uint64_t idle_bytes;
    struct buffer_list idle[CLASSES];
    /* Small ones whose memory is with the system: taken when there is no other, or each
     * one that is put would give its memory back only to have it touched again. */
    struct buffer_list bare[SMALL_CLASSES];
    struct chunk_list chunks;
    struct waiting_list waiting;
    struct work *pressure; /* told when somebody has to wait; may be NULL */
    struct work *told; /* the waiter whose run is being called */
    bool room_grew;    /* a buffer was released from inside that run */
};

static uint32_t class_bytes(uint32_t class)
{
    return BLOCK_SIZE << (2 * class);
}

static uint32_t class_of(uint64_t size_bytes)
{
    uint32_t class = 0;
    while (class_bytes(class) < size_bytes)
        class++;
    return class;
}

struct buffer_pool *buffer_pool_create(uint64_t limit_bytes)
{
    static_assert(BLOCK_SIZE << (2 * (CLASSES - 1)) == BUFFER_BYTES_MAX,
                  "the last class is the largest buffer");
    struct buffer_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return NULL;
    pool->limit_bytes = limit_bytes;
    for (uint32_t i = 0; i < CLASSES; i++)
        SLIST_INIT(&pool->idle[i]);
    for (uint32_t i = 0; i < SMALL_CLASSES; i++)
        SLIST_INIT(&pool->bare[i]);
    SLIST_INIT(&pool->chunks);
    TAILQ_INIT(&pool->waiting);
    return pool;
}

static void buffer_free(struct buffer *buffer)
{
    unpoison(buffer->data, buffer->capacity);
    free(buffer->data);
    free(buffer);
}

void buffer_pool_destroy(struct buffer_pool *pool)
{
    struct chunk *chunk;
    if (pool == NULL)
        return;
    assert(pool->used_bytes == 0); /* B1 */
    assert(TAILQ_EMPTY(&pool->waiting));
    for (uint32_t i = SMALL_CLASSES; i < CLASSES; i++) {
        struct buffer *buffer;
        while ((buffer = SLIST_FIRST(&pool->idle[i])) != NULL) {
            SLIST_REMOVE_HEAD(&pool->idle[i], link);
            buffer_free(buffer);
        }
    }
    while ((chunk = SLIST_FIRST(&pool->chunks)) != NULL) {
        SLIST_REMOVE_HEAD(&pool->chunks, link);
        unpoison(chunk->memory, CHUNK_BYTES);
        free(chunk->memory);
        free(chunk);
    }
    free(pool);
}

uint64_t buffer_pool_used_bytes(const struct buffer_pool *pool)
{
    return pool->used_bytes;
}

uint64_t buffer_pool_limit_bytes(const struct buffer_pool *pool)
{
    return pool->limit_bytes;
}

static struct buffer *large_new(struct buffer_pool *pool, uint32_t capacity)
{
    struct buffer *buffer = malloc(sizeof *buffer);
    if (buffer == NULL)
        return NULL;
    *buffer = (struct buffer){.capacity = capacity, .pool = pool};
    buffer->data = aligned_alloc(BLOCK_SIZE, capacity);
    if (buffer->data == NULL) {
        free(buffer);
        return NULL;
    }
    return buffer;
}

/* Fills the free list of a small class. */
static void chunk_add(struct buffer_pool *pool, uint32_t class)
{
    uint32_t capacity = class_bytes(class);
    uint32_t count = (uint32_t)(CHUNK_BYTES / capacity);
    struct chunk *chunk = malloc(sizeof *chunk + count * sizeof chunk->buffers[0]);
    if (chunk == NULL)
        return;
    chunk->memory = aligned_alloc(BLOCK_SIZE, CHUNK_BYTES);
    if (chunk->memory == NULL) {
        free(chunk);
        return;
    }
    SLIST_INSERT_HEAD(&pool->chunks, chunk, link);
    poison(chunk->memory, CHUNK_BYTES);
    for (uint32_t i = 0; i < count; i++) {
        struct buffer *buffer = &chunk->buffers[i];
        *buffer = (struct buffer){
            .data = chunk->memory + i * capacity,
            .capacity = capacity,
            .pool = pool,
        };
        SLIST_INSERT_HEAD(&pool->bare[class], buffer, link);
    }
}

static struct buffer *idle_take(struct buffer_pool *pool, uint32_t class)
{
    struct buffer_list *list = &pool->idle[class];
    if (SLIST_EMPTY(list) && class < SMALL_CLASSES)
        list = &pool->bare[class];
    struct buffer *buffer = SLIST_FIRST(list);
    if (buffer == NULL)
        return NULL;
    assert(buffer->refs == 0);
    SLIST_REMOVE_HEAD(list, link);
    if (list == &pool->idle[class])
        pool->idle_bytes -= buffer->capacity;
    unpoison(buffer->data, buffer->capacity);
    return buffer;
}

/* Its pages go back to the system. */
static void bare_put(struct buffer_pool *pool, uint32_t class, struct buffer *buffer)
{
    (void)madvise(buffer->data, buffer->capacity, MADV_DONTNEED);
    buffer->has_memory = false;
    SLIST_INSERT_HEAD(&pool->bare[class], buffer, link);
}

/* Idle memory goes back to the system, so that it and what is used stay within the
 * limit together. All at once: it is seldom that both are large. */
static void idle_shed(struct buffer_pool *pool)
{
    struct buffer *buffer;
    for (uint32_t class = 0; class < SMALL_CLASSES; class++) {
        while ((buffer = SLIST_FIRST(&pool->idle[class])) != NULL) {
            SLIST_REMOVE_HEAD(&pool->idle[class], link);
            bare_put(pool, class, buffer);
        }
    }
    for (uint32_t class = SMALL_CLASSES; class < CLASSES; class++) {
        while ((buffer = SLIST_FIRST(&pool->idle[class])) != NULL) {
            SLIST_REMOVE_HEAD(&pool->idle[class], link);
            buffer_free(buffer);
        }
    }
    pool->idle_bytes = 0; /* B2 */
}

struct buffer *buffer_create(struct buffer_pool *pool, uint64_t size_bytes)
{
    assert(size_bytes > 0 && size_bytes <= BUFFER_BYTES_MAX);
    uint32_t class = class_of(size_bytes);
    uint32_t capacity = class_bytes(class);
    uint64_t room = pool->limit_bytes - min_u64(pool->used_bytes, pool->limit_bytes);
    if (capacity > room)
        return NULL;
    struct buffer *buffer = idle_take(pool, class);
    if ((buffer == NULL || !buffer->has_memory) && capacity + pool->idle_bytes > room)
        idle_shed(pool);
    if (buffer == NULL && class < SMALL_CLASSES) {
        chunk_add(pool, class);
        buffer = idle_take(pool, class);
    } else if (buffer == NULL) {
        buffer = large_new(pool, capacity);
    }
    if (buffer == NULL)
        return NULL;
    buffer->refs = 1;
    buffer->has_memory = true;
    pool->used_bytes += capacity;
    return buffer;
}

void buffer_pool_on_pressure(struct buffer_pool *pool, struct work *pressure)
{
    pool->pressure = pressure;
}

void buffer_pool_wait(struct buffer_pool *pool, struct work *waiter)
{
    assert(!waiter->posted);
    waiter->posted = true;
    if (waiter == pool->told)
        TAILQ_INSERT_HEAD(&pool->waiting, waiter, link);
    else
        TAILQ_INSERT_TAIL(&pool->waiting, waiter, link);
    if (pool->pressure != NULL)
        pool->pressure->run(pool->pressure);
}

void buffer_pool_wait_cancel(struct buffer_pool *pool, struct work *waiter)
{
    if (!waiter->posted)
        return;
    waiter->posted = false;
    TAILQ_REMOVE(&pool->waiting, waiter, link);
}

/* Stops at one that waits again: those behind it are not let past. A put from inside
 * run leaves the telling to the loop out here. */
static void tell_waiting(struct buffer_pool *pool)
{
    pool->room_grew = true;
    if (pool->told != NULL)
        return;
    struct work *waiter;
    while ((waiter = TAILQ_FIRST(&pool->waiting)) != NULL &&
           pool->used_bytes < pool->limit_bytes) {
        TAILQ_REMOVE(&pool->waiting, waiter, link);
        waiter->posted = false;
        pool->told = waiter;
        pool->room_grew = false;
        waiter->run(waiter);
        pool->told = NULL;
        /* Compared as an address only: run may have freed the waiter. */
        if (TAILQ_FIRST(&pool->waiting) == waiter && !pool->room_grew)
            break;
    }
}

struct buffer *buffer_get(struct buffer *buffer)
{
    assert(buffer->refs > 0 && buffer->refs < UINT32_MAX);
    buffer->refs++;
    return buffer;
}

void buffer_put(struct buffer *buffer)
{
    if (buffer == NULL)
        return;
    assert(buffer->refs > 0);
    if (--buffer->refs > 0)
        return;
    struct buffer_pool *pool = buffer->pool;
    uint32_t class = class_of(buffer->capacity);
    bool keep = pool->idle_bytes + buffer->capacity <= IDLE_BYTES_MAX;
    assert(pool->used_bytes >= buffer->capacity); /* B1 */
    pool->used_bytes -= buffer->capacity;
    if (!keep && class >= SMALL_CLASSES) {
        buffer_free(buffer);
    } else if (!keep) {
        bare_put(pool, class, buffer);
        poison(buffer->data, buffer->capacity);
    } else {
        pool->idle_bytes += buffer->capacity; /* B2 */
        SLIST_INSERT_HEAD(&pool->idle[class], buffer, link);
        poison(buffer->data, buffer->capacity);
    }
    tell_waiting(pool);
}

/* Comparing the bytes with themselves, one head further on, says whether all equal the
 * head; memcmp does that as fast as memory can be read. */
bool bytes_are_zero(const void *bytes, size_t len)
{
    enum { HEAD = 16 };
    const uint8_t *at = bytes;
    size_t head = len < HEAD ? len : HEAD;
    for (size_t i = 0; i < head; i++)
        if (at[i] != 0)
            return false;
    return len <= HEAD || memcmp(at, at + HEAD, len - HEAD) == 0;
}
