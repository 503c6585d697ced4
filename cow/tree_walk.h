/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two maps walked together, in the order of the disk. What both share is skipped by
 * address, whole subtrees at a time: the cost is in proportion to what differs.
 *
 * Maps may differ in height: the taller one's left spine counts as the lower one's equal
 * height, since a map that grows keeps the old root as its first child.
 *
 * A walk pins at most one node of each map per level, reads ahead, and yields every
 * WALK_YIELD_NS. Trees never change, so a walk may take as long as it likes, as long as
 * somebody sees to it that nothing it still has to read is freed (cow/reclaim.h: pins).
 */
#ifndef PARALLAX_COW_TREE_WALK_H
#define PARALLAX_COW_TREE_WALK_H

#include "cow/map.h"

#define WALK_YIELD_NS    (200 * NS_PER_US)
#define WALK_YIELD_NODES 64U /* at most: a simulated clock stands still meanwhile */

/* Any of these may be NULL but data or node_done. A function that returns a negative
 * code ends the walk, which returns it. All may suspend. */
struct tree_walk_ops {
    /* A block whose entry is walked; other: what `against` has there, null for zeros. */
    async int (*data)(void *arg, uint64_t block, struct map_entry entry,
                      struct map_entry other);
    /* A node that is in `root` and not in `against`, after everything below it. index:
     * its place within its level. */
    async int (*node_done)(void *arg, unsigned level, uint64_t index,
                           struct map_entry entry);
    /* Before a node that would be read: 1 skips it with all below it. */
    async int (*enter)(void *arg, unsigned level, uint64_t index,
                       struct map_entry entry);
    /* A node that cannot be read, of `against` or not; 0: it is skipped, with all below
     * (node_done is not called for what is skipped). NULL: the walk ends with code. */
    async int (*unreadable)(void *arg, unsigned level, uint64_t index,
                            struct map_entry entry, bool of_against, int code);
    /* A node that is passed over since it is dead (dead_is_done). That is so on the copy
     * that was asked; who frees nodes must see to the others. */
    async int (*node_dead)(void *arg, struct map_entry entry);
};

struct tree_walk {
    struct loop *loop;
    struct node_cache *cache;
    struct map_root root;
    struct map_root against;    /* height 0: nothing */
    uint32_t bound;             /* generations up to this are skipped; 0: none */
    /* A node of `root` whose block is dead, or whose extent is gone, was freed by an
     * earlier walk, and before it all below: it is passed over. */
    bool dead_is_done;
    uint64_t first, end;        /* blocks; end 0: all of the disk */
};

/* Visits what is in root, not in against, and younger than bound. */
async int tree_walk(const struct tree_walk *walk, const struct tree_walk_ops *ops,
                    void *arg);

/* The same for the subtree under one entry: the node at `level` (a leaf's is 0) with this
 * index within its level. root and against of the walk are not looked at. */
async int tree_walk_subtree(const struct tree_walk *walk, struct map_entry entry,
                            unsigned level, uint64_t index,
                            const struct tree_walk_ops *ops, void *arg);

/* Blocks whose entry differs between walk->root (before) and walk->against (now), in
 * either direction, in order, adjacent ones of equal kind merged. is_zero: they are zeros
 * now. bound and dead_is_done are not looked at. fn returns 0, or a code that ends it. */
typedef int tree_diff_fn(void *arg, uint64_t block, uint64_t count, bool is_zero);
async int tree_diff(const struct tree_walk *walk, tree_diff_fn *fn, void *arg);

#endif
