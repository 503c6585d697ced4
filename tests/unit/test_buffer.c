/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/buffer.h"
#include "runtime/loop.h"
#include "tests/unit/check.h"

static void test_classes(void)
{
    struct buffer_pool *pool = buffer_pool_create(16 * MIB);
    const uint64_t sizes[][2] = {
        {1, 4 * KIB},           {4 * KIB, 4 * KIB},     {4 * KIB + 1, 16 * KIB},
        {64 * KIB, 64 * KIB},   {65 * KIB, 256 * KIB},  {MIB, MIB},
        {256 * KIB + 1, MIB},
    };
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        struct buffer *buffer = buffer_create(pool, sizes[i][0]);
        CHECK_EQ(buffer->capacity, sizes[i][1]);
        CHECK_EQ((uintptr_t)buffer->data % BLOCK_SIZE, 0);
        memset(buffer->data, 1, buffer->capacity);
        CHECK_EQ(buffer_pool_used_bytes(pool), sizes[i][1]);
        CHECK(buffer_get(buffer) == buffer);
        buffer_put(buffer);
        CHECK_EQ(buffer_pool_used_bytes(pool), sizes[i][1]);
        buffer_put(buffer);
        CHECK_EQ(buffer_pool_used_bytes(pool), 0);
    }
    buffer_put(NULL);
    buffer_pool_destroy(pool);
}

static void test_reuse_and_limit(void)
{
    enum { COUNT = 256 };
    struct buffer_pool *pool = buffer_pool_create(COUNT * 64 * KIB);
    CHECK_EQ(buffer_pool_limit_bytes(pool), COUNT * 64 * KIB);
    struct buffer *buffers[COUNT];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < COUNT; i++) {
            buffers[i] = buffer_create(pool, 64 * KIB);
            CHECK(buffers[i] != NULL);
            memset(buffers[i]->data, i, buffers[i]->capacity);
        }
        CHECK(buffer_create(pool, 1) == NULL);
        for (int i = 0; i < COUNT; i++)
            buffer_put(buffers[i]);
    }
    struct buffer *first = buffer_create(pool, 1);
    buffer_put(first);
    CHECK(buffer_create(pool, 1) == first);
    buffer_put(first);
    buffer_pool_destroy(pool);
}

struct wanting {
    struct work work;
    struct buffer_pool *pool;
    uint64_t want_bytes;
    struct buffer *got;
    struct buffer *also_put; /* released from inside the call */
    int told, told_order;
};

static int orders;

static void told(struct work *work)
{
    struct wanting *w = container_of(work, struct wanting, work);
    w->told++;
    w->told_order = ++orders;
    w->got = buffer_create(w->pool, w->want_bytes);
    if (w->got == NULL)
        buffer_pool_wait(w->pool, &w->work);
    buffer_put(take(w->also_put));
}

static struct wanting wanting(struct buffer_pool *pool, uint64_t want_bytes)
{
    return (struct wanting){.work.run = told, .pool = pool, .want_bytes = want_bytes};
}

/* The large one keeps its place at the front until there is room for it. */
static void test_waiters(void)
{
    struct buffer_pool *pool = buffer_pool_create(64 * KIB);
    struct buffer *parts[4];
    for (int i = 0; i < 4; i++)
        parts[i] = buffer_create(pool, 16 * KIB);
    struct wanting large = wanting(pool, 32 * KIB), small = wanting(pool, 4 * KIB);
    struct wanting gone = wanting(pool, 4 * KIB);
    buffer_pool_wait(pool, &large.work);
    buffer_pool_wait(pool, &gone.work);
    buffer_pool_wait(pool, &small.work);
    buffer_pool_wait_cancel(pool, &gone.work);
    buffer_pool_wait_cancel(pool, &gone.work);
    CHECK(large.work.posted && small.work.posted && !gone.work.posted);

    buffer_put(parts[0]);
    CHECK_EQ(large.told, 1);
    CHECK(large.got == NULL && small.told == 0);
    buffer_put(parts[1]);
    buffer_put(parts[2]);
    CHECK_EQ(large.told, 3);
    CHECK(large.got == NULL); /* 32 KiB is in the class of 64 KiB */
    buffer_put(parts[3]);
    CHECK(large.got != NULL && small.told == 0);
    buffer_put(large.got);
    CHECK(small.got != NULL && small.told == 1 && gone.told == 0);
    buffer_put(small.got);
    buffer_pool_destroy(pool);
}

/* Several are told by one put; a put from inside a told waiter counts as well. */
static void test_waiters_nested(void)
{
    struct buffer_pool *pool = buffer_pool_create(32 * KIB);
    struct buffer *a = buffer_create(pool, 16 * KIB), *b = buffer_create(pool, 16 * KIB);
    struct wanting w[3];
    for (int i = 0; i < 3; i++) {
        w[i] = wanting(pool, 4 * KIB);
        buffer_pool_wait(pool, &w[i].work);
    }
    buffer_put(a);
    for (int i = 0; i < 3; i++)
        CHECK(w[i].got != NULL && (i == 0 || w[i].told_order > w[i - 1].told_order));
    for (int i = 0; i < 3; i++)
        buffer_put(w[i].got);

    /* One that waits again and then gives something back itself is told of that, too. */
    a = buffer_create(pool, 16 * KIB);
    struct wanting retry = wanting(pool, 64 * KIB), behind = wanting(pool, 16 * KIB);
    retry.also_put = b;
    buffer_pool_wait(pool, &retry.work);
    buffer_pool_wait(pool, &behind.work);
    buffer_put(a);
    CHECK_EQ(retry.told, 2);
    CHECK_EQ(behind.told, 0);
    buffer_pool_wait_cancel(pool, &retry.work);
    buffer_pool_wait_cancel(pool, &behind.work);
    buffer_pool_destroy(pool);
}

static void test_zero(void)
{
    static uint8_t bytes[4096 + 16];
    for (size_t len = 0; len < 100; len++) {
        CHECK(bytes_are_zero(bytes, len));
        for (size_t i = 0; i < len; i++) {
            bytes[i] = 1;
            CHECK(!bytes_are_zero(bytes, len));
            bytes[i] = 0;
        }
        bytes[len] = 1; /* just behind */
        CHECK(bytes_are_zero(bytes, len));
        bytes[len] = 0;
    }
    for (size_t i = 0; i < 4096; i++) {
        bytes[i + 3] = 0x80;
        CHECK(!bytes_are_zero(bytes + 3, 4096));
        bytes[i + 3] = 0;
    }
    CHECK(bytes_are_zero(bytes + 3, 4096));
}

int main(void)
{
    test_classes();
    test_reuse_and_limit();
    test_waiters();
    test_waiters_nested();
    test_zero();
    return 0;
}
