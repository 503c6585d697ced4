/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What recovery does for a member that may lack something, in one stroke and on members
 * in memory (tests/unit/fake_member.h): it gets what a whole one has, and its own copies
 * end where they are known to end. And what must hold of members that are whole.
 */
#ifndef PARALLAX_TESTS_UNIT_FAKE_RECOVERY_H
#define PARALLAX_TESTS_UNIT_FAKE_RECOVERY_H

#include "tests/unit/fake_member.h"

static inline const struct log_extent *
fake_listed(const struct cluster_disk *disk, struct address extent)
{
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        if (address_equal(disk->extents[i].extent, extent))
            return &disk->extents[i];
    }
    return NULL;
}

static inline bool fake_is_in(const struct log_extent *extent, uint64_t node)
{
    for (unsigned i = 0; i < extent->member_count; i++) {
        if (extent->members[i] == node)
            return true;
    }
    return false;
}

static inline struct fake_append *fake_append_copy(const struct fake_append *from)
{
    struct fake_append *to = calloc(1, sizeof *to);
    *to = *from;
    to->next = NULL;
    to->header = malloc(BLOCK_SIZE);
    to->crcs = calloc(BATCH_BLOCKS, sizeof *to->crcs);
    to->bytes = calloc(BATCH_BLOCKS, sizeof *to->bytes);
    memcpy(to->header, from->header, BLOCK_SIZE);
    memcpy(to->crcs, from->crcs, BATCH_BLOCKS * sizeof *to->crcs);
    memcpy(to->bytes, from->bytes, BATCH_BLOCKS * sizeof *to->bytes);
    to->is_done = to->is_synced = true;
    to->is_failed = false;
    return to;
}

/* What is under way there is never answered as done (fake_io_done looks at `boots`), but
 * nothing is under way in an extent that ended so long ago. */
static inline void fake_extent_drop(struct fake_extent *e)
{
    struct fake_append *data;
    while ((data = e->appends) != NULL) {
        e->appends = data->next;
        fake_append_free(data);
    }
    e->last = &e->appends;
}

static inline void fake_install(struct fake_extent *to, const struct fake_extent *from,
                                uint32_t length)
{
    fake_extent_drop(to);
    const struct fake_append *data = from->appends;
    uint32_t end = 0;
    for (; data != NULL && data->block + data->blocks <= length; data = data->next) {
        CHECK_EQ(data->block, end);
        *to->last = fake_append_copy(data);
        to->last = &(*to->last)->next;
        end += data->blocks;
    }
    CHECK_EQ(end, length);
    to->epoch = from->epoch;
    to->nonce = from->nonce;
    to->disk = from->disk;
    to->has_no_headers = from->has_no_headers;
    to->is_absent = to->is_refusing = false;
    to->end = to->length = length;
    to->state = EXTENT_FINAL;
}

static inline uint32_t fake_end_at(const struct fake_extent *e)
{
    return e->state == EXTENT_OPEN ? fake_prefix(e) : e->length;
}

/* One extent whose length is known. */
static inline void fake_bring_up_one(struct fake_medium *to,
                                     const struct fake_extent *from, uint32_t length)
{
    struct fake_extent *mine = fake_find(to, from->extent);
    if (mine == NULL)
        mine = fake_add(to, from->extent, from->disk);
    bool is_there = !mine->is_absent && mine->state != EXTENT_FINAL &&
                    mine->inflight == 0 && fake_end_at(mine) >= length;
    if (mine->state == EXTENT_FINAL && !mine->is_absent) {
        CHECK_EQ(mine->length, length);
    } else if (is_there) {
        mine->state = EXTENT_FINAL;
        mine->length = length;
        mine->is_absent = length == 0;
    } else if (mine->inflight == 0) {
        fake_install(mine, from, length);
        mine->is_absent = length == 0;
    }
}

/* False: a write is still under way, or an extent is still written without it. That has
 * to be known before anything is copied: its length may be committed at any time. */
static inline bool fake_bring_up(struct fake_medium *to, struct fake_medium *from,
                                 uint64_t node, const struct cluster_disk *disk)
{
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        if (!disk->extents[i].final && !fake_is_in(&disk->extents[i], node))
            return false;
    }
    for (uint32_t i = 0; i < from->count; i++) {
        const struct fake_extent *e = &from->extents[i];
        const struct log_extent *listed = fake_listed(disk, e->extent);
        const struct fake_extent *mine = fake_find(to, e->extent);
        if (mine != NULL && mine->inflight > 0)
            return false;
        if (listed != NULL && listed->final && fake_end_at(e) >= listed->length)
            fake_bring_up_one(to, e, listed->length);
        else if (listed == NULL && !e->is_absent && e->state == EXTENT_FINAL)
            fake_bring_up_one(to, e, e->length);
    }
    /* What the other one has not, nor the list, is of no use. */
    for (uint32_t i = 0; i < to->count; i++) {
        struct fake_extent *e = &to->extents[i];
        const struct fake_extent *source = fake_find(from, e->extent);
        bool is_gone = source == NULL || source->is_absent;
        if (is_gone && fake_listed(disk, e->extent) == NULL && e->inflight == 0) {
            e->state = EXTENT_FINAL;
            e->length = 0;
            e->is_absent = true;
        }
    }
    return true;
}

/* A whole member has what any other whole one has of an extent that left the list. */
static inline void fake_check_whole(struct fake_medium *has, struct fake_medium *other,
                                    const struct cluster_disk *disk)
{
    for (uint32_t i = 0; i < other->count; i++) {
        const struct fake_extent *e = &other->extents[i];
        const struct fake_extent *mine = fake_find(has, e->extent);
        if (fake_listed(disk, e->extent) != NULL || e->is_absent ||
            e->state != EXTENT_FINAL)
            continue;
        CHECK(mine != NULL && !mine->is_absent);
        CHECK_EQ(mine->state, EXTENT_FINAL);
        CHECK_EQ(mine->length, e->length);
    }
}

#endif
