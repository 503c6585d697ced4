/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Payload: reference-counted, page-aligned buffers, and slices of them. One guest write
 * is one buffer; batches, retained copies and replicas hold slices.
 *
 * Buffers come in size classes 4 KiB, 16 KiB, 64 KiB, 256 KiB and 1 MiB; anything
 * larger is several buffers. Freed ones are kept in small free lists per pool.
 * Counts are not atomic: a buffer belongs to one loop.
 */
#ifndef PARALLAX_RUNTIME_BUFFER_H
#define PARALLAX_RUNTIME_BUFFER_H

#include "runtime/base.h"

#define BUFFER_BYTES_MAX (1 * MIB)

struct buffer_pool;

struct buffer {
    uint8_t *data;     /* 4 KiB aligned */
    uint32_t capacity; /* bytes, a size class */
    uint32_t refs;
    bool has_memory;   /* private: its pages were not given back while idle */
    struct buffer_pool *pool;
    SLIST_ENTRY(buffer) link; /* in a free list */
};

/* limit_bytes: all buffers of this pool that are handed out, together. */
struct buffer_pool *buffer_pool_create(uint64_t limit_bytes);
/* Every buffer must have been put back. */
void buffer_pool_destroy(struct buffer_pool *pool);
uint64_t buffer_pool_used_bytes(const struct buffer_pool *pool);
uint64_t buffer_pool_limit_bytes(const struct buffer_pool *pool);

/* A buffer of at least size_bytes (1 to BUFFER_BYTES_MAX), contents undefined, one
 * reference; NULL when memory is out or the pool's limit is reached. */
struct buffer *buffer_create(struct buffer_pool *pool, uint64_t size_bytes);
/* A caller that found no room asks to be told: `waiter->run` is called once, from inside
 * buffer_put, when some buffer was released. Waiters are told in order of arrival while
 * there is room; one that still finds too little and waits again from inside `run` keeps
 * its place. `posted` of the work is true while it waits here. */
struct work;
void buffer_pool_wait(struct buffer_pool *pool, struct work *waiter);
void buffer_pool_wait_cancel(struct buffer_pool *pool, struct work *waiter);
/* pressure->run is called, from inside buffer_pool_wait, whenever somebody has to wait:
 * whoever retains buffers should let some go. NULL: nobody is told. */
void buffer_pool_on_pressure(struct buffer_pool *pool, struct work *pressure);

struct buffer *buffer_get(struct buffer *buffer);
void buffer_put(struct buffer *buffer); /* NULL is allowed */

/* A view of part of a buffer. Holds a reference unless said otherwise. */
struct slice {
    struct buffer *buffer;
    uint32_t offset; /* bytes */
    uint32_t len;    /* bytes */
};

static inline uint8_t *slice_data(struct slice s)
{
    return s.buffer->data + s.offset;
}

/* True if all len bytes are zero; stops at the first that is not. */
bool bytes_are_zero(const void *bytes, size_t len);

#endif
