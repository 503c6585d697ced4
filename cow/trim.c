/* SPDX-License-Identifier: Apache-2.0 */
#include "cow/trim.h"

/* Block numbers of one call of the store. */
#define BLOCKS_AT_ONCE 2048U

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

bool trim_is_possible(const struct store *store, struct address extent)
{
    struct extent_info info;

    return store_extent_info(store, address_extent(extent), &info) < 0 ||
           info.state == EXTENT_FINAL;
}

/* Items first to end are of one extent and level, in order. */
struct group {
    struct trim_set *set;
    uint32_t first, end;
};

static async int clear_group(const struct group *group, struct store *store,
                             uint32_t *blocks)
{
    struct trim_set *set = group->set;
    struct address extent = address_extent(set->items[group->first].address);
    uint32_t count = 0, next = 0; /* a block may be named twice */

    for (uint32_t i = group->first; i < group->end; i++) {
        uint32_t block = address_block(set->items[i].address);
        uint32_t end = block + set->items[i].count;
        for (block = block > next ? block : next; block < end; block++) {
            blocks[count++] = block;
            if (count < BLOCKS_AT_ONCE)
                continue;
            int rc = store_trim(store, extent, blocks, count);
            if (rc < 0)
                return rc;
            set->freed_blocks += count;
            count = 0;
        }
        next = end > next ? end : next;
    }
    if (count == 0)
        return 0;
    int rc = store_trim(store, extent, blocks, count);
    if (rc == 0)
        set->freed_blocks += count;
    return rc;
}

static struct group next_group(struct trim_set *set, uint32_t first)
{
    struct group group = {set, first, first};
    struct address extent = address_extent(set->items[first].address);
    uint32_t level = set->items[first].level;

    while (group.end < set->count && set->items[group.end].level == level &&
           address_equal(address_extent(set->items[group.end].address), extent))
        group.end++;
    return group;
}

async int trim_apply(struct trim_set *set, struct store *store)
{
    uint32_t *blocks = malloc(BLOCKS_AT_ONCE * sizeof *blocks);
    int rc = blocks ? 0 : -ENOMEM;

    if (rc == 0 && set->count > 1)
        qsort(set->items, set->count, sizeof *set->items, compare);
    for (uint32_t at = 0; rc == 0 && at < set->count;) {
        struct group group = next_group(set, at);
        rc = clear_group(&group, store, blocks);
        if (rc == -PLX_EMISSING)
            rc = 0;
        at = group.end;
        task_yield();
    }
    free(blocks);
    set->count = 0;
    return rc;
}
