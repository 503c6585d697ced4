/* SPDX-License-Identifier: Apache-2.0 */
#include "cow/trim.h"

/* Runs that are handed over at once: 128 KiB. */
#define RUNS_AT_ONCE 8192U

void trim_set_init(struct trim_set *set)
{
    *set = (struct trim_set){.items = NULL};
}

void trim_set_done(struct trim_set *set)
{
    free(set->items);
    trim_set_init(set);
}

int trim_add(struct trim_set *set, struct address address, uint32_t count, unsigned level)
{
    struct trim_item *last = set->count ? &set->items[set->count - 1] : NULL;

    assert(count > 0 && address_block(address) + count <= EXTENT_BLOCKS);
    if (last && last->level == level && address_block(address) != 0 &&
        address.v == last->address.v + last->count) {
        last->count += count;
        return 0;
    }
    if (set->count == set->cap) {
        uint32_t cap = set->cap ? set->cap * 2 : 64;
        struct trim_item *bigger = realloc(set->items, cap * sizeof *bigger);
        if (!bigger)
            return -ENOMEM;
        set->items = bigger;
        set->cap = cap;
    }
    set->items[set->count++] = (struct trim_item){address, count, level};
    return 0;
}

uint64_t trim_blocks(const struct trim_set *set)
{
    uint64_t blocks = 0;

    for (uint32_t i = 0; i < set->count; i++)
        blocks += set->items[i].count;
    return blocks;
}

static int compare(const void *a, const void *b)
{
    const struct trim_item *left = a, *right = b;

    if (left->level != right->level)
        return left->level < right->level ? -1 : 1;
    return left->address.v < right->address.v ? -1 : left->address.v > right->address.v;
}

/* Hands over items of one level, from `first` on; returns where to go on. */
static uint32_t fill(const struct trim_set *set, uint32_t first, struct block_run *runs)
{
    uint32_t at = first, level = set->items[first].level;

    for (; at < set->count && at - first < RUNS_AT_ONCE; at++) {
        const struct trim_item *item = &set->items[at];
        if (item->level != level)
            break;
        runs[at - first] = (struct block_run){item->address, item->count};
    }
    return at;
}

async int trim_apply(struct trim_set *set, struct copies *copies)
{
    size_t room = min_u32(set->count, RUNS_AT_ONCE);
    struct block_run *runs = malloc((room + 1) * sizeof *runs);
    int rc = runs ? 0 : -ENOMEM;

    if (rc == 0 && set->count > 1)
        qsort(set->items, set->count, sizeof *set->items, compare);
    for (uint32_t at = 0, next; rc == 0 && at < set->count; at = next) {
        uint64_t blocks;
        next = fill(set, at, runs);
        rc = copies_trim(copies, runs, next - at, &blocks);
        set->freed_blocks += blocks;
    }
    free(runs);
    set->count = 0;
    return rc;
}
