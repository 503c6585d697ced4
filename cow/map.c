/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lookup goes from the root down, one node of the cache per level, and ends at a leaf
 * or at a null entry, which stands for everything under it.
 *
 * What can fail is reading a node: the error goes to the caller; nothing is kept.
 *
 * There is nothing to close: trees are immutable, pins are given back by the caller.
 */
#include "cow/map.h"

struct map_entry map_entry_at(const struct map_node_format *format, unsigned index)
{
    const struct map_entry_format *entry = &format->entries[index];

    return (struct map_entry){
        .address = {le64_get(entry->address)},
        .crc = le32_get(entry->crc),
        .generation = le32_get(entry->generation),
    };
}

struct map_entry map_span_entry(const struct map_span *span, uint64_t block)
{
    assert(span->leaf && block >= span->start && block - span->start < span->count);
    return map_entry_at(span->leaf->format, (unsigned)(block % MAP_FANOUT));
}

uint64_t map_entry_blocks(unsigned level)
{
    return (uint64_t)1 << (MAP_FANOUT_SHIFT * level);
}

uint8_t map_height(uint64_t block_count)
{
    uint8_t height = 1;

    while (height < MAP_HEIGHT_MAX && map_entry_blocks(height) < block_count)
        height++;
    return height;
}

bool map_root_sound(const struct map_root *root)
{
    return root->height <= MAP_HEIGHT_MAX &&
           (root->height == 0) == address_is_null(root->address);
}

/* One step of a lookup: what is known of the way down so far. */
struct descent {
    struct map_entry entry; /* of the node to look at next */
    unsigned level;         /* of that node */
    uint64_t start, count;  /* what it spans */
};

static struct descent descent_begin(const struct map_root *root)
{
    return (struct descent){
        .entry = {root->address, root->crc, root->generation},
        .level = root->height ? root->height - 1U : 0,
        .count = map_entry_blocks(root->height),
    };
}

static void descend(struct descent *descent, const struct node *node, uint64_t block)
{
    uint64_t under = map_entry_blocks(descent->level);
    unsigned index = (unsigned)((block / under) % MAP_FANOUT);

    descent->entry = map_entry_at(node->format, index);
    descent->start += index * under;
    descent->count = under;
    descent->level--;
}

/* True if the lookup ends here with zeros. */
static bool descent_is_null(const struct descent *descent, const struct map_root *root,
                            uint64_t block, struct map_span *ret_span)
{
    uint64_t all = map_entry_blocks(root->height);

    if (root->height && block >= all) {
        /* Above what the tree covers: it was written for a smaller disk. */
        *ret_span = (struct map_span){.start = all, .count = UINT64_MAX - all};
        return true;
    }
    if (!address_is_null(descent->entry.address))
        return false;
    *ret_span = (struct map_span){.start = descent->start, .count = descent->count};
    if (address_is_null(root->address))
        ret_span->count = UINT64_MAX;
    return true;
}

int map_try(struct node_cache *cache, const struct map_root *root, uint64_t block,
            struct map_span *ret_span)
{
    if (!map_root_sound(root))
        return -PLX_EFORMAT;
    struct descent at = descent_begin(root);
    while (!descent_is_null(&at, root, block, ret_span)) {
        const struct node *node = node_try(cache, at.entry.address);
        if (!node)
            return -EAGAIN;
        if (at.level == 0) {
            *ret_span = (struct map_span){at.start, at.count, node};
            return 0;
        }
        descend(&at, node, block);
        node_put(cache, node);
    }
    return 0;
}

async int map_get(struct node_cache *cache, const struct map_root *root, uint64_t block,
                  struct map_span *ret_span)
{
    if (!map_root_sound(root))
        return -PLX_EFORMAT;
    struct descent at = descent_begin(root);
    while (!descent_is_null(&at, root, block, ret_span)) {
        const struct node *node;
        int rc = node_get(cache, at.entry.address, at.entry.crc, &node);
        if (rc < 0)
            return rc;
        if (at.level == 0) {
            *ret_span = (struct map_span){at.start, at.count, node};
            return 0;
        }
        descend(&at, node, block);
        node_put(cache, node);
    }
    return 0;
}
