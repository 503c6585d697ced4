/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One step looks at a pair: what the two maps have at the same place and level. A pair
 * that is equal by address is never opened; else the nodes of both are pinned and the
 * step repeated for each of the 256 pairs below, with some of the next ones being read
 * meanwhile.
 *
 * What can fail is reading a node. The owner of the walk may let it be passed over;
 * otherwise the walk ends with that error, and begins from the start if it is repeated.
 *
 * There is nothing to close.
 */
#include "cow/tree_walk.h"

/* Pairs being read ahead, at a level above leaves, and above other nodes. */
#define LEAVES_AHEAD 24U
#define NODES_AHEAD  2U

/* What one map has at a place. While the walk is at a level above it, it is the first
 * child of a node that does not exist. */
struct side {
    struct map_entry entry; /* address null: zeros */
    unsigned level;
};

struct walker {
    const struct tree_walk *walk;
    const struct tree_walk_ops *ops;
    void *arg;
    bool both_ways; /* what only `against` has counts, too */
    uint64_t end;
    uint64_t since_ns;
    uint32_t nodes; /* since the last yield */
};

/* A pair whose nodes are open. */
struct pair {
    struct side left, right;
    const struct node *left_node, *right_node; /* NULL: none at this level */
    unsigned level;
    uint64_t index;
    unsigned children_end; /* in the range */
    unsigned ahead_next, ahead_count;
};

static bool is_null(const struct side *side)
{
    return address_is_null(side->entry.address);
}

static bool is_wanted(const struct walker *w, const struct side *left,
                      const struct side *right)
{
    if (address_equal(left->entry.address, right->entry.address))
        return false;
    return w->both_ways ||
           (!is_null(left) && left->entry.generation > w->walk->bound);
}

static async void tick(struct walker *w)
{
    uint64_t now_ns;

    w->nodes++;
    now_ns = loop_wall_ns(w->walk->loop); /* unlike the other it is read each time */
    if (w->nodes < WALK_YIELD_NODES && now_ns - w->since_ns < WALK_YIELD_NS)
        return;
    task_yield();
    w->nodes = 0;
    w->since_ns = loop_wall_ns(w->walk->loop);
}

static struct side child_of(const struct side *side, const struct node *node,
                            unsigned level, unsigned child)
{
    if (node)
        return (struct side){map_entry_at(node->format, child), level - 1};
    if (is_null(side) || child > 0)
        return (struct side){.level = level - 1};
    return *side;
}

/* The children of the pair that lie in the range: [*ret_first, *ret_end). */
static void children_in_range(const struct walker *w, const struct pair *pair,
                              unsigned *ret_first, unsigned *ret_end)
{
    uint64_t under = map_entry_blocks(pair->level);
    uint64_t start = pair->index * MAP_FANOUT * under;
    uint64_t first = w->walk->first > start ? (w->walk->first - start) / under : 0;
    uint64_t end = w->end > start ? (w->end - start - 1) / under + 1 : 0;

    *ret_first = (unsigned)min_u64(first, MAP_FANOUT);
    *ret_end = (unsigned)min_u64(end, MAP_FANOUT);
}

static void prefetch(struct walker *w, const struct side *side, unsigned level)
{
    if (!is_null(side) && side->level == level)
        node_prefetch(w->walk->cache, side->entry.address, side->entry.crc);
}

static void read_ahead(struct walker *w, struct pair *pair)
{
    unsigned max = pair->level == 1 ? LEAVES_AHEAD : NODES_AHEAD;

    for (; pair->ahead_next < pair->children_end && pair->ahead_count < max;
         pair->ahead_next++) {
        unsigned child = pair->ahead_next;
        struct side left = child_of(&pair->left, pair->left_node, pair->level, child);
        struct side right = child_of(&pair->right, pair->right_node, pair->level, child);
        if (!is_wanted(w, &left, &right))
            continue;
        prefetch(w, &left, pair->level - 1);
        prefetch(w, &right, pair->level - 1);
        pair->ahead_count++;
    }
}

/* 1: passed over. */
static async int open_side(struct walker *w, const struct pair *pair,
                           const struct side *side, bool of_against,
                           const struct node **ret_node)
{
    const struct tree_walk *walk = w->walk;
    int rc;

    if (is_null(side) || side->level < pair->level)
        return 0;
    if (!of_against && w->ops->enter) {
        rc = w->ops->enter(w->arg, pair->level, pair->index, side->entry);
        if (rc != 0)
            return rc;
    }
    rc = node_get(walk->cache, side->entry.address, side->entry.crc, ret_node);
    if (rc == 0)
        return 0;
    if (!of_against && walk->dead_is_done &&
        (rc == -PLX_EDEAD || rc == -PLX_ENOTHERE || rc == -PLX_EMISSING)) {
        rc = w->ops->node_dead ? w->ops->node_dead(w->arg, side->entry) : 0;
        return rc < 0 ? rc : 1;
    }
    if (!w->ops->unreadable || rc == -ENOMEM)
        return rc;
    rc = w->ops->unreadable(w->arg, pair->level, pair->index, side->entry, of_against,
                            rc);
    return rc < 0 ? rc : 1;
}

static async int walk_leaves(struct walker *w, const struct pair *pair)
{
    uint64_t start = pair->index * MAP_FANOUT;
    int rc = 0;

    for (unsigned i = 0; w->ops->data && i < MAP_FANOUT && rc == 0; i++) {
        struct side left = {.level = 0}, right = {.level = 0};
        if (pair->left_node)
            left.entry = map_entry_at(pair->left_node->format, i);
        if (pair->right_node)
            right.entry = map_entry_at(pair->right_node->format, i);
        if (start + i >= w->walk->first && start + i < w->end &&
            is_wanted(w, &left, &right))
            rc = w->ops->data(w->arg, start + i, left.entry, right.entry);
    }
    return rc;
}

static async int walk_pair(struct walker *w, struct side left, struct side right,
                           unsigned level, uint64_t index);

static async int walk_children(struct walker *w, struct pair *pair)
{
    unsigned first;
    int rc = 0;

    children_in_range(w, pair, &first, &pair->children_end);
    pair->ahead_next = first;
    for (unsigned i = first; i < pair->children_end && rc == 0; i++) {
        struct side left = child_of(&pair->left, pair->left_node, pair->level, i);
        struct side right = child_of(&pair->right, pair->right_node, pair->level, i);
        if (!is_wanted(w, &left, &right))
            continue;
        read_ahead(w, pair);
        pair->ahead_count -= pair->ahead_count > 0;
        rc = walk_pair(w, left, right, pair->level - 1, pair->index * MAP_FANOUT + i);
    }
    return rc;
}

static async int walk_pair(struct walker *w, struct side left, struct side right,
                           unsigned level, uint64_t index)
{
    struct pair pair = {.left = left, .right = right, .level = level, .index = index};
    int rc = open_side(w, &pair, &left, false, &pair.left_node);

    if (rc == 0)
        rc = open_side(w, &pair, &right, true, &pair.right_node);
    if (rc == 0) {
        rc = level == 0 ? walk_leaves(w, &pair) : walk_children(w, &pair);
        if (rc == 0 && pair.left_node && w->ops->node_done)
            rc = w->ops->node_done(w->arg, level, index, left.entry);
    } else if (rc > 0) {
        rc = 0;
    }
    if (pair.left_node)
        node_put(w->walk->cache, pair.left_node);
    if (pair.right_node)
        node_put(w->walk->cache, pair.right_node);
    tick(w);
    return rc;
}

static struct walker begin(const struct tree_walk *walk, const struct tree_walk_ops *ops,
                           void *arg)
{
    return (struct walker){
        .walk = walk,
        .ops = ops,
        .arg = arg,
        .end = walk->end ? walk->end : UINT64_MAX,
        .since_ns = loop_wall_ns(walk->loop),
    };
}

static struct side side_of_root(const struct map_root *root)
{
    return (struct side){
        {root->address, root->crc, root->generation},
        root->height ? root->height - 1U : 0,
    };
}

static async int walk_roots(struct walker *w)
{
    const struct map_root *root = &w->walk->root, *against = &w->walk->against;
    struct side left = side_of_root(root), right = side_of_root(against);

    if (!map_root_sound(root) || !map_root_sound(against))
        return -PLX_EFORMAT;
    if (!is_wanted(w, &left, &right))
        return 0;
    return walk_pair(w, left, right, left.level > right.level ? left.level : right.level,
                     0);
}

async int tree_walk(const struct tree_walk *walk, const struct tree_walk_ops *ops,
                    void *arg)
{
    struct walker w = begin(walk, ops, arg);

    return walk_roots(&w);
}

async int tree_walk_subtree(const struct tree_walk *walk, struct map_entry entry,
                            unsigned level, uint64_t index,
                            const struct tree_walk_ops *ops, void *arg)
{
    struct walker w = begin(walk, ops, arg);
    struct side left = {entry, level}, none = {.level = level};

    return is_wanted(&w, &left, &none) ? walk_pair(&w, left, none, level, index) : 0;
}

/* --- differences --- */

struct diff {
    tree_diff_fn *fn;
    void *arg;
    uint64_t block, count;
    bool is_zero;
};

static int flush_range(struct diff *diff)
{
    uint64_t count = diff->count;

    diff->count = 0;
    return count > 0 ? diff->fn(diff->arg, diff->block, count, diff->is_zero) : 0;
}

static async int diff_data(void *arg, uint64_t block, struct map_entry entry,
                           struct map_entry other)
{
    struct diff *diff = arg;
    bool is_zero = address_is_null(other.address);

    (void)entry;
    if (diff->count > 0 && diff->is_zero == is_zero &&
        diff->block + diff->count == block) {
        diff->count++;
        return 0;
    }
    int rc = flush_range(diff);
    diff->block = block;
    diff->count = 1;
    diff->is_zero = is_zero;
    return rc;
}

async int tree_diff(const struct tree_walk *walk, tree_diff_fn *fn, void *arg)
{
    static const struct tree_walk_ops ops = {.data = diff_data};
    struct tree_walk plain = *walk;
    struct diff diff = {.fn = fn, .arg = arg};

    plain.bound = 0;
    plain.dead_is_done = false;
    struct walker w = begin(&plain, &ops, &diff);
    w.both_ways = true;
    int rc = walk_roots(&w);
    return rc == 0 ? flush_range(&diff) : rc;
}
