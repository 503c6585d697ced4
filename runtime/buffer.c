/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Buffers of five sizes with small free lists.
 *
 *   create: from the free list of its class, else from malloc;
 *   put:    the last reference gives it to the free list, or to free() when the list
 *           is full; then those who wait for room are told.
 *
 * B1  used_bytes is the sum of the capacities of all buffers with references.
 * B2  idle_bytes is the sum of the capacities of all buffers in free lists.
 */
#include "runtime/buffer.h"

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
#define IDLE_COUNT_MAX 64U /* per class */
#define IDLE_BYTES_MAX (8 * MIB)

SLIST_HEAD(buffer_list, buffer);
TAILQ_HEAD(waiting_list, work);

struct buffer_class {
    struct buffer_list idle;
    uint32_t idle_count;
};

struct buffer_pool {
    uint64_t limit_bytes;
    uint64_t used_bytes;
    uint64_t idle_bytes;
    struct buffer_class classes[CLASSES];
    struct waiting_list waiting;
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
        SLIST_INIT(&pool->classes[i].idle);
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
    if (pool == NULL)
        return;
    assert(pool->used_bytes == 0); /* B1 */
    assert(TAILQ_EMPTY(&pool->waiting));
    for (uint32_t i = 0; i < CLASSES; i++) {
        struct buffer *buffer;
        while ((buffer = SLIST_FIRST(&pool->classes[i].idle)) != NULL) {
            SLIST_REMOVE_HEAD(&pool->classes[i].idle, link);
            pool->idle_bytes -= buffer->capacity;
            buffer_free(buffer);
        }
    }
    assert(pool->idle_bytes == 0); /* B2 */
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

static struct buffer *buffer_new(struct buffer_pool *pool, uint32_t capacity)
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

static struct buffer *idle_take(struct buffer_pool *pool, struct buffer_class *class)
{
    struct buffer *buffer = SLIST_FIRST(&class->idle);
    if (buffer == NULL)
        return NULL;
    assert(buffer->refs == 0);
    SLIST_REMOVE_HEAD(&class->idle, link);
    class->idle_count--;
    pool->idle_bytes -= buffer->capacity;
    unpoison(buffer->data, buffer->capacity);
    return buffer;
}

struct buffer *buffer_create(struct buffer_pool *pool, uint64_t size_bytes)
{
    assert(size_bytes > 0 && size_bytes <= BUFFER_BYTES_MAX);
    uint32_t class = class_of(size_bytes);
    uint32_t capacity = class_bytes(class);
    uint64_t room = pool->limit_bytes - min_u64(pool->used_bytes, pool->limit_bytes);
    if (capacity > room)
        return NULL;
    struct buffer *buffer = idle_take(pool, &pool->classes[class]);
    if (buffer == NULL)
        buffer = buffer_new(pool, capacity);
    if (buffer == NULL)
        return NULL;
    buffer->refs = 1;
    pool->used_bytes += capacity;
    return buffer;
}

void buffer_pool_wait(struct buffer_pool *pool, struct work *waiter)
{
    assert(!waiter->posted);
    waiter->posted = true;
    if (waiter == pool->told)
        TAILQ_INSERT_HEAD(&pool->waiting, waiter, link);
    else
        TAILQ_INSERT_TAIL(&pool->waiting, waiter, link);
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
    struct buffer_class *class = &pool->classes[class_of(buffer->capacity)];
    assert(pool->used_bytes >= buffer->capacity); /* B1 */
    pool->used_bytes -= buffer->capacity;
    if (class->idle_count < IDLE_COUNT_MAX &&
        pool->idle_bytes + buffer->capacity <= IDLE_BYTES_MAX) {
        SLIST_INSERT_HEAD(&class->idle, buffer, link);
        class->idle_count++;
        pool->idle_bytes += buffer->capacity;
        poison(buffer->data, buffer->capacity);
    } else {
        buffer_free(buffer);
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
