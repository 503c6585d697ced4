/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words every file uses: attributes, units, checked arithmetic.
 *
 * Conventions of the whole tree:
 *   - functions return 0 or a negative code of runtime/error.h;
 *   - outputs are named ret_x and are untouched on failure;
 *   - a function marked `async` may suspend the calling task, so it must be called
 *     on a task and every fact checked before the call must be checked again after.
 */
#ifndef PARALLAX_RUNTIME_BASE_H
#define PARALLAX_RUNTIME_BASE_H

#include <assert.h>
#include <bsd/sys/queue.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Marks a function that may suspend the task it runs on. */
#define async

#define KIB ((uint64_t)1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)
#define TIB (1024 * GIB)

#define NS_PER_US ((uint64_t)1000)
#define NS_PER_MS (1000 * NS_PER_US)
#define NS_PER_S  (1000 * NS_PER_MS)

#define BLOCK_SIZE  4096U /* bytes; the unit of mapping and checksums */
#define BLOCK_SHIFT 12

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#define container_of(ptr, type, member)                                                  \
    ((type *)(void *)((char *)(ptr) - offsetof(type, member)))

#define attr_printf(fmt, first) __attribute__((format(printf, fmt, first)))
#define attr_unused             __attribute__((unused))
#define attr_nodiscard          __attribute__((warn_unused_result))

/* Scope clean-up: `cleanup(free_ptr) char *p = NULL;`, and take(p) to keep it. */
#define cleanup(fn) __attribute__((cleanup(fn)))
#define take(p)                                                                          \
    ({                                                                                   \
        __typeof__(p) taken_ = (p);                                                      \
        (p) = NULL;                                                                      \
        taken_;                                                                          \
    })

static inline void free_ptr(void *p)
{
    free(*(void **)p);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ret = a + b, false on overflow. */
static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}

/* n must be a power of two. */
static inline uint64_t round_down_u64(uint64_t value, uint64_t n)
{
    return value & ~(n - 1);
}

static inline uint64_t round_up_u64(uint64_t value, uint64_t n)
{
    return (value + n - 1) & ~(n - 1);
}

static inline uint64_t div_up_u64(uint64_t value, uint64_t n)
{
    return value / n + (value % n != 0);
}

#endif
