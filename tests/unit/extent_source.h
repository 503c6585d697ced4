/* SPDX-License-Identifier: Apache-2.0 */
/* A final extent in memory, as it would be on some other node: its blocks, what their
 * headers say of them, and what of it is live. */
#ifndef PARALLAX_TESTS_UNIT_EXTENT_SOURCE_H
#define PARALLAX_TESTS_UNIT_EXTENT_SOURCE_H

#include "blockstore/install.h"
#include "tests/unit/store_machine.h"

struct source {
    struct address address;
    uint64_t disk, epoch, nonce;
    uint32_t length;
    uint8_t *bytes;
    struct entry entries[EXTENT_BLOCKS];
    uint32_t crcs[EXTENT_BLOCKS];
    uint8_t live[BITMAP_BYTES], headers[BITMAP_BYTES]; /* all headers, dead or not */
    bool has_headers;                                  /* they are live */
};

static inline uint8_t *source_block(const struct source *s, uint32_t block)
{
    return s->bytes + (size_t)block * BLOCK_SIZE;
}

static inline void source_header(struct source *s, uint32_t block, uint32_t count,
                                 uint64_t number, uint32_t *previous_crc)
{
    struct header head = {
        .kind = block == 0 ? HEADER_ROLL : HEADER_BATCH,
        .cluster = CLUSTER_UID,
        .disk = s->disk,
        .extent = s->address,
        .block = block,
        .epoch = s->epoch,
        .number = number,
        .nonce = s->nonce,
        .previous_crc = *previous_crc,
        .count = count,
    };
    uint8_t *at = source_block(s, block);
    *previous_crc = block == 0 ? roll_encode(&head, NULL, at)
                               : header_encode(&head, &s->entries[block + 1], at);
    bitmap_set(s->headers, block);
    s->crcs[block] = crc32c(at, BLOCK_SIZE);
}

/* With batches of up to 60 blocks, all live. At least 2 blocks. */
static inline struct source *source_of_disk(struct sim_world *world,
                                            struct address address, uint64_t disk,
                                            uint64_t epoch, uint32_t length)
{
    struct source *s = calloc(1, sizeof *s);
    uint32_t previous_crc = 0;
    uint64_t number = 1 + sim_world_random(world, 1000);
    CHECK(s != NULL && length >= 2 && length <= EXTENT_BLOCKS);
    s->address = address;
    s->disk = disk;
    s->epoch = epoch;
    s->nonce = sim_world_random(world, UINT64_MAX);
    s->length = length;
    s->bytes = aligned_alloc(BLOCK_SIZE, (size_t)length * BLOCK_SIZE);
    CHECK(s->bytes != NULL);
    source_header(s, 0, 0, 0, &previous_crc);
    for (uint32_t at = 1; at < length;) {
        uint32_t count = min_u32((uint32_t)sim_world_random(world, 60), length - at - 1);
        for (uint32_t i = at + 1; i <= at + count; i++) {
            uint64_t word = (s->nonce + i) * 0x9e3779b97f4a7c15U;
            memcpy(source_block(s, i), &word, sizeof word);
            for (size_t n = sizeof word; n < BLOCK_SIZE; n *= 2)
                memcpy(source_block(s, i) + n, source_block(s, i), n);
            s->crcs[i] = crc32c(source_block(s, i), BLOCK_SIZE);
            s->entries[i] = (struct entry){
                .kind = ENTRY_DATA, .key = i, .count = 1, .crc = s->crcs[i]};
        }
        source_header(s, at, count, number++, &previous_crc);
        at += 1 + count;
    }
    bitmap_fill(s->live, length);
    s->has_headers = true;
    return s;
}

static inline struct source *source_create(struct sim_world *world,
                                           struct address address, uint32_t length)
{
    uint64_t disk = 1 + sim_world_random(world, 9);
    return source_of_disk(world, address, disk, 1 + sim_world_random(world, 9), length);
}

static inline void source_destroy(struct source *s)
{
    free(s->bytes);
    free(s);
}

static inline bool source_is_header(const struct source *s, uint32_t block)
{
    return bitmap_get(s->headers, block);
}

static inline void source_trim_headers(struct source *s)
{
    for (uint32_t i = 0; i < BITMAP_BYTES; i++)
        s->live[i] &= (uint8_t)~s->headers[i];
    s->has_headers = false;
}

/* Of what is no header each block with a chance of 1 in n; one stays. */
static inline void source_trim(struct source *s, struct sim_world *world, uint32_t n)
{
    bool is_kept = false;
    for (uint32_t i = 0; i < s->length; i++) {
        if (source_is_header(s, i) || !bitmap_get(s->live, i))
            continue;
        if (is_kept && sim_world_random(world, n) == 0)
            bitmap_clear(s->live, i);
        is_kept = true;
    }
}

static inline struct install_plan source_plan(const struct source *s)
{
    return (struct install_plan){.disk = s->disk,
                                 .epoch = s->epoch,
                                 .nonce = s->nonce,
                                 .length = s->length,
                                 .live = s->live,
                                 .headers = s->has_headers ? s->headers : NULL};
}

/* Up to `max` live blocks from `from` on that the install still lacks; their bytes, too.
 * Returns how many. */
static inline uint32_t source_fill(const struct source *s,
                                   const struct store_install *install, uint32_t from,
                                   uint32_t max, struct install_block *blocks,
                                   uint8_t *bytes)
{
    uint32_t count = 0;
    for (uint32_t at = from; count < max; at++) {
        at = store_install_missing(install, at);
        if (at == EXTENT_BLOCKS)
            break;
        blocks[count] = (struct install_block){
            .block = at, .entry = s->entries[at], .is_known = !source_is_header(s, at)};
        memcpy(bytes + (size_t)count * BLOCK_SIZE, source_block(s, at), BLOCK_SIZE);
        count++;
    }
    return count;
}

struct source_append {
    struct store_append append;
    struct event over;
};

static inline void source_appended(struct store_append *append)
{
    event_set(&container_of(append, struct source_append, append)->over);
}

/* As if its disk's owner appended the first `length` blocks. */
static inline int source_write(struct store *store, struct buffer_pool *pool,
                               const struct source *s, uint32_t length)
{
    int rc = store_create_extent(store, s->address, s->disk, s->epoch, s->nonce, 1,
                                 false);
    for (uint32_t at = 0; at < length && rc == 0;) {
        uint32_t n = 1; /* a batch at a time */
        while (at + n < length && !source_is_header(s, at + n))
            n++;
        struct slice slice = {.buffer = buffer_create(pool, (uint64_t)n * BLOCK_SIZE),
                              .len = n * (uint32_t)BLOCK_SIZE};
        CHECK(slice.buffer != NULL);
        memcpy(slice.buffer->data, source_block(s, at), slice.len);
        struct source_append a = {.append = {.extent = s->address,
                                             .epoch = s->epoch,
                                             .block = at,
                                             .slices = &slice,
                                             .slice_count = 1,
                                             .use_reserve = true,
                                             .done = source_appended}};
        event_init(&a.over);
        store_append(store, &a.append);
        event_wait(&a.over);
        buffer_put(slice.buffer);
        rc = a.append.result;
        at += n;
    }
    return rc;
}

static inline void source_append(struct machine *m, const struct source *s,
                                 uint32_t length)
{
    CHECK_EQ(source_write(m->store, m->pool, s, length), 0);
}

/* What is live, and only that, can be read; `live` may differ from the source's. */
static inline void source_check(struct machine *m, const struct source *s,
                                const uint8_t *live)
{
    uint8_t map[BITMAP_BYTES];
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    CHECK_EQ(store_live_map(m->store, s->address, map), 0);
    for (uint32_t i = 0; i < s->length; i++) {
        CHECK_EQ(bitmap_get(map, i), bitmap_get(live, i));
        int result = machine_read(m, address_plus(s->address, i), 1, 1, bytes);
        CHECK_EQ(result, bitmap_get(live, i) ? 0 : -PLX_EDEAD);
        if (result == 0)
            CHECK(memcmp(bytes, source_block(s, i), BLOCK_SIZE) == 0);
    }
    free(bytes);
}

#endif
