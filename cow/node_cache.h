/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Map nodes in memory: bounded, keyed by address, shared by all disks and versions. An
 * address has one content for ever, so nothing here is ever stale.
 */
#ifndef PARALLAX_COW_NODE_CACHE_H
#define PARALLAX_COW_NODE_CACHE_H

#include "cow/map_format.h"
#include "replication/copies.h"
#include "runtime/runtime.h"

struct node_cache;

/* A node pinned in the cache: valid until node_put. */
struct node {
    const struct map_node_format *format;
};

struct node_cache *node_cache_create(struct copies *copies, uint64_t limit_bytes);
/* Waits for reads that were started ahead. No node may be pinned. */
async void node_cache_destroy(struct node_cache *cache);
uint64_t node_cache_used_bytes(const struct node_cache *cache);

/* The node if it is in memory, pinned; else NULL. */
const struct node *node_try(struct node_cache *cache, struct address address);
/* Reads it if it is not; verified against crc. Errors as of copies_read, -ENOMEM. */
async int node_get(struct node_cache *cache, struct address address, uint32_t crc,
                   const struct node **ret_node);
/* Starts to read it if it is not in memory; nobody waits, a failure is found again by
 * node_get. */
void node_prefetch(struct node_cache *cache, struct address address, uint32_t crc);
void node_put(struct node_cache *cache, const struct node *node);
/* Adds what was just written (BLOCK_SIZE bytes, copied). A failure only costs speed. */
void node_add(struct node_cache *cache, struct address address, const void *bytes);

#endif
