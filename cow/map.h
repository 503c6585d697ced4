/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk's map: the radix tree from block number to address and checksum. Looking up,
 * and merging an overlay into a new tree (a checkpoint's work). Trees are immutable.
 */
#ifndef PARALLAX_COW_MAP_H
#define PARALLAX_COW_MAP_H

#include "cow/node_cache.h"
#include "cow/overlay.h"
#include "replication/cluster_state.h"

/* A stretch of the disk under one leaf, or that is wholly zeros. */
struct map_span {
    uint64_t start, count;   /* blocks */
    const struct node *leaf; /* pinned: node_put; NULL: zeros */
};

struct map_entry {
    struct address address;
    uint32_t crc;
    uint32_t generation;
};

struct map_entry map_entry_at(const struct map_node_format *format, unsigned index);

/* The entry for `block`, which lies in span and span has a leaf. */
struct map_entry map_span_entry(const struct map_span *span, uint64_t block);

/* False for a root that no checkpoint writes; lookups and merges answer -PLX_EFORMAT. */
bool map_root_sound(const struct map_root *root);

/* The span that holds `block`. map_try does not suspend: -EAGAIN if a node would have
 * to be read. */
int map_try(struct node_cache *cache, const struct map_root *root, uint64_t block,
            struct map_span *ret_span);
async int map_get(struct node_cache *cache, const struct map_root *root, uint64_t block,
                  struct map_span *ret_span);

/* Levels a map of so many blocks needs, at least 1. */
uint8_t map_height(uint64_t block_count);
/* Blocks under one entry of a node at `level` (a leaf's level is 0). */
uint64_t map_entry_blocks(unsigned level);

/* A buffer from the pool; waits for room. -ENOMEM if there is room and no memory. */
async int buffer_await(struct buffer_pool *pool, uint64_t size_bytes,
                       struct buffer **ret_buffer);

/* Where merged nodes go. */
struct map_sink {
    /* Logs a node (BLOCK_SIZE bytes in buffer). *ret_entry is filled in before
     * `wait` returns, and stays valid until then. May suspend for room. */
    async int (*write)(struct map_sink *sink, unsigned level, uint64_t index,
                       struct buffer *buffer, struct map_entry *ret_entry);
    /* Waits until every node written so far has its entry. */
    async int (*wait)(struct map_sink *sink);
    /* What the new tree has no more of the old one and no version needs, each once: a
     * block (level MAP_BLOCK: data or a node by itself), or a subtree whose topmost node
     * is at `level`, with all under it that is younger than the bound. May be NULL. */
    async int (*dead)(struct map_sink *sink, struct map_entry entry, int level);
    /* A node of the old tree cannot be read (code). 0: nothing it names is needed, for
     * all that it is for is replaced; it is treated as empty, and dead as a subtree.
     * Else the code the merge ends with. May be NULL: it ends with `code`. */
    int (*unreadable)(struct map_sink *sink, unsigned level, uint64_t index,
                      struct map_entry old, int code);
    struct buffer_pool *buffers;
};
#define MAP_BLOCK (-1)

/*
 * Writes a new tree that is `old` with `overlay` laid over it, for a disk of
 * block_count blocks; untouched subtrees are shared. Nodes get overlay->generation.
 * The overlay must not change meanwhile. Yields now and then.
 *
 * bound: the generation of the version the overlay grows from (0: none). What is not
 * younger belongs to that version, too, and is not dead, whatever is laid over it.
 */
async int map_merge(struct node_cache *cache, const struct map_root *old,
                    const struct overlay *overlay, uint64_t block_count, uint32_t bound,
                    struct map_sink *sink, struct map_root *ret_root);

#endif
