/* SPDX-License-Identifier: Apache-2.0 */
#include "cow/dead_set.h"

void dead_set_init(struct dead_set *set)
{
    *set = (struct dead_set){.count = 0};
    SLIST_INIT(&set->maps);
}

void dead_set_done(struct dead_set *set)
{
    struct dead_map *map;

    while ((map = SLIST_FIRST(&set->maps))) {
        SLIST_REMOVE_HEAD(&set->maps, link);
        free(map);
    }
    dead_set_init(set);
}

static struct dead_map *map_of(const struct dead_set *set, struct address address)
{
    struct address extent = address_extent(address);
    struct dead_map *map;

    SLIST_FOREACH (map, &set->maps, link)
        if (address_equal(map->extent, extent))
            return map;
    return NULL;
}

int dead_set_reserve(struct dead_set *set, struct address address)
{
    struct dead_map *map = map_of(set, address);

    if (map)
        return 0;
    map = calloc(1, sizeof *map);
    if (!map)
        return -ENOMEM;
    map->extent = address_extent(address);
    SLIST_INSERT_HEAD(&set->maps, map, link);
    set->bytes += sizeof *map;
    return 0;
}

static bool bit_get(const struct dead_map *map, uint32_t block)
{
    return map->words[block / 64] >> (block % 64) & 1;
}

static void bit_flip(struct dead_map *map, uint32_t block)
{
    map->words[block / 64] ^= (uint64_t)1 << (block % 64);
}

void dead_set_add(struct dead_set *set, struct address address, uint32_t count)
{
    struct dead_map *map = map_of(set, address);
    uint32_t block = address_block(address);

    assert(map && count <= EXTENT_BLOCKS - block);
    for (uint32_t end = block + count; block < end; block++) {
        if (bit_get(map, block))
            continue;
        bit_flip(map, block);
        set->count++;
    }
}

int dead_set_put(struct dead_set *set, struct address address, uint32_t count)
{
    int rc = dead_set_reserve(set, address);

    if (rc == 0)
        dead_set_add(set, address, count);
    return rc;
}

int dead_set_move(struct dead_set *set, uint32_t count, struct address was,
                  struct address now)
{
    struct dead_map *from = map_of(set, was);
    uint32_t block = address_block(was);

    for (uint32_t i = 0; from && i < count; i++) {
        if (!bit_get(from, block + i))
            continue;
        int rc = dead_set_put(set, address_plus(now, i), 1);
        if (rc < 0)
            return rc;
        bit_flip(from, block + i);
        set->count--;
    }
    return 0;
}

void dead_set_take(struct dead_set *set, struct dead_set *from)
{
    struct dead_map *map, *mine;

    while ((map = SLIST_FIRST(&from->maps))) {
        SLIST_REMOVE_HEAD(&from->maps, link);
        mine = map_of(set, map->extent);
        if (!mine) {
            SLIST_INSERT_HEAD(&set->maps, map, link);
            set->bytes += sizeof *map;
            for (uint32_t i = 0; i < DEAD_WORDS; i++)
                set->count += (uint32_t)__builtin_popcountll(map->words[i]);
            continue;
        }
        for (uint32_t i = 0; i < DEAD_WORDS; i++) {
            uint64_t added = map->words[i] & ~mine->words[i];
            set->count += (uint32_t)__builtin_popcountll(added);
            mine->words[i] |= added;
        }
        free(map);
    }
    dead_set_init(from);
}

/* The first block from `block` on whose bit is `bit`; EXTENT_BLOCKS: none. */
static uint32_t next_bit(const struct dead_map *map, uint32_t block, bool bit)
{
    while (block < EXTENT_BLOCKS) {
        uint64_t word = map->words[block / 64];
        word = (bit ? word : ~word) >> (block % 64);
        if (word)
            return block + (uint32_t)__builtin_ctzll(word);
        block = (block / 64 + 1) * 64;
    }
    return EXTENT_BLOCKS;
}

bool dead_set_next(const struct dead_set *set, struct dead_cursor *cursor,
                   struct dead_run *ret_run)
{
    if (!cursor->begun)
        *cursor = (struct dead_cursor){SLIST_FIRST(&set->maps), 0, true};
    while (cursor->map) {
        uint32_t first = next_bit(cursor->map, cursor->block, true);
        if (first < EXTENT_BLOCKS) {
            cursor->block = next_bit(cursor->map, first, false);
            *ret_run = (struct dead_run){address_plus(cursor->map->extent, first),
                                         cursor->block - first};
            return true;
        }
        cursor->map = SLIST_NEXT(cursor->map, link);
        cursor->block = 0;
    }
    return false;
}
