/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a disk or snapshot takes. Blocks it reaches are counted from those of a version
 * next to it, whose number is remembered, and the difference; without one its whole map
 * is walked. What only a head has was born in it, so generations tell; what only a
 * snapshot has is younger than its parent and in none of its children.
 *
 * Maps never change, so a number is remembered by the address of its root. Memory is
 * bounded: the numbers, and a map entry for each child on the way down.
 *
 * A node that cannot be read fails the call.
 */
#include "cow/reclaim.h"
#include "cow/tree_walk.h"

#define CACHE_SLOTS 1024U /* a power of two */

struct usage_cache {
    struct {
        uint64_t root, blocks;
    } slots[CACHE_SLOTS];
};

static uint64_t *slot_of(struct host *host, const struct map_root *root, bool make)
{
    if (!host->usage_cache)
        host->usage_cache = calloc(1, sizeof *host->usage_cache);
    if (!host->usage_cache)
        return NULL;
    uint64_t hash = root->address.v * 0x9e3779b97f4a7c15U;
    uint32_t at = (uint32_t)(hash >> 32) & (CACHE_SLOTS - 1);
    if (make)
        host->usage_cache->slots[at].root = root->address.v;
    return host->usage_cache->slots[at].root == root->address.v
               ? &host->usage_cache->slots[at].blocks
               : NULL;
}

static async int count_block(void *arg, uint64_t block, struct map_entry entry,
                             struct map_entry other)
{
    uint64_t *blocks = arg;

    (void)block;
    (void)entry;
    (void)other;
    ++*blocks;
    return 0;
}

/* Blocks that are in root, not in against, and younger than bound. */
static async int count(struct host *host, const struct map_root *root,
                       const struct map_root *against, uint32_t bound,
                       uint64_t *ret_blocks)
{
    static const struct tree_walk_ops ops = {.data = count_block};
    struct tree_walk walk = {
        .loop = host->loop,
        .cache = host->nodes,
        .root = *root,
        .against = *against,
        .bound = bound,
    };
    uint64_t blocks = 0;
    int rc = tree_walk(&walk, &ops, &blocks);

    *ret_blocks = blocks;
    return rc;
}

/* All blocks of root; near: a map that differs little from it, or an empty one. */
static async int count_all(struct host *host, const struct map_root *root,
                           const struct map_root *near, uint64_t *ret_blocks)
{
    static const struct map_root none;
    uint64_t *known = slot_of(host, root, false), more, less;
    int rc;

    if (address_is_null(root->address)) {
        *ret_blocks = 0;
        return 0;
    }
    if (known) {
        *ret_blocks = *known;
        return 0;
    }
    known = address_is_null(near->address) ? NULL : slot_of(host, near, false);
    if (known) {
        uint64_t base = *known;
        rc = count(host, root, near, 0, &more);
        if (rc == 0)
            rc = count(host, near, root, 0, &less);
        more += base - (rc == 0 ? less : 0);
    } else {
        rc = count(host, root, &none, 0, &more);
    }
    if (rc < 0)
        return rc;
    known = slot_of(host, root, true);
    if (known)
        *known = more;
    *ret_blocks = more;
    return 0;
}

/* --- what only one of many has --- */

struct place {
    struct map_entry entry;
    unsigned level; /* below the level of the walk: the first child of nodes to come */
};

struct alone {
    struct host *host;
    uint32_t bound;
    uint32_t count; /* of children */
    uint64_t blocks;
};

/* What the child has at index `at` of its node at `level`. */
static async int place_below(struct alone *alone, const struct place *child,
                             unsigned level, unsigned at, struct place *ret_place)
{
    const struct node *node;

    *ret_place = (struct place){.level = level - 1};
    if (address_is_null(child->entry.address))
        return 0;
    if (child->level < level) {
        if (at == 0)
            *ret_place = *child;
        return 0;
    }
    int rc = node_get(alone->host->nodes, child->entry.address, child->entry.crc, &node);
    if (rc < 0)
        return rc;
    ret_place->entry = map_entry_at(node->format, at);
    node_put(alone->host->nodes, node);
    return 0;
}

/* Which entries of the node are in none of the children: a bit each. */
static async int mark_alone(struct alone *alone, const struct map_node_format *format,
                            unsigned level, const struct place *children,
                            bool *ret_alone)
{
    for (unsigned i = 0; i < MAP_FANOUT; i++) {
        struct map_entry entry = map_entry_at(format, i);
        ret_alone[i] = !address_is_null(entry.address) &&
                       entry.generation > alone->bound;
    }
    for (uint32_t c = 0; c < alone->count; c++) {
        const struct place *child = &children[c];
        const struct node *node;
        if (address_is_null(child->entry.address))
            continue;
        if (child->level < level) {
            if (address_equal(map_entry_at(format, 0).address, child->entry.address))
                ret_alone[0] = false;
            continue;
        }
        int rc = node_get(alone->host->nodes, child->entry.address, child->entry.crc,
                          &node);
        if (rc < 0)
            return rc;
        for (unsigned i = 0; i < MAP_FANOUT; i++)
            if (address_equal(map_entry_at(format, i).address,
                              map_entry_at(node->format, i).address))
                ret_alone[i] = false;
        node_put(alone->host->nodes, node);
    }
    return 0;
}

static async int count_alone(struct alone *alone, struct map_entry entry, unsigned level,
                             const struct place *children);

static async int alone_below(struct alone *alone, const struct map_node_format *format,
                             unsigned level, const struct place *children,
                             const bool *is_alone)
{
    cleanup(free_ptr) struct place *below = calloc(alone->count + 1, sizeof *below);
    int rc = below ? 0 : -ENOMEM;

    for (unsigned i = 0; i < MAP_FANOUT && rc == 0; i++) {
        if (!is_alone[i])
            continue;
        for (uint32_t c = 0; c < alone->count && rc == 0; c++)
            rc = place_below(alone, &children[c], level, i, &below[c]);
        if (rc == 0)
            rc = count_alone(alone, map_entry_at(format, i), level - 1, below);
    }
    return rc;
}

static async int count_alone(struct alone *alone, struct map_entry entry, unsigned level,
                             const struct place *children)
{
    bool is_alone[MAP_FANOUT];
    const struct node *node;
    int rc = node_get(alone->host->nodes, entry.address, entry.crc, &node);

    if (rc < 0)
        return rc;
    rc = mark_alone(alone, node->format, level, children, is_alone);
    if (rc == 0 && level > 0)
        rc = alone_below(alone, node->format, level, children, is_alone);
    for (unsigned i = 0; i < MAP_FANOUT && level == 0 && rc == 0; i++)
        alone->blocks += is_alone[i];
    node_put(alone->host->nodes, node);
    task_yield();
    return rc;
}

/* A taller child's left spine counts as equal height. */
static async int lower(struct alone *alone, struct place *child, unsigned level)
{
    while (child->level > level && !address_is_null(child->entry.address)) {
        struct place below;
        int rc = place_below(alone, child, child->level, 0, &below);
        if (rc < 0)
            return rc;
        *child = below;
    }
    return 0;
}

static async int count_exclusive(struct host *host, const struct map_root *root,
                                 uint32_t bound, const struct map_root *children,
                                 uint32_t child_count, uint64_t *ret_blocks)
{
    static const struct map_root none;
    struct alone alone = {.host = host, .bound = bound, .count = child_count};
    struct map_entry entry = {root->address, root->crc, root->generation};
    int rc = 0;

    *ret_blocks = 0;
    if (child_count <= 1)
        return count(host, root, child_count ? children : &none, bound, ret_blocks);
    if (address_is_null(root->address) || root->generation <= bound)
        return 0;
    cleanup(free_ptr) struct place *places = calloc(child_count, sizeof *places);
    if (!places)
        return -ENOMEM;
    for (uint32_t i = 0; i < child_count && rc == 0; i++) {
        const struct map_root *child = &children[i];
        if (address_equal(child->address, root->address))
            return 0;
        places[i] = (struct place){
            {child->address, child->crc, child->generation},
            child->height ? child->height - 1U : 0,
        };
        rc = lower(&alone, &places[i], root->height - 1U);
        if (rc == 0 && address_equal(places[i].entry.address, root->address))
            return 0;
    }
    if (rc == 0)
        rc = count_alone(&alone, entry, root->height - 1U, places);
    *ret_blocks = alone.blocks;
    return rc;
}

/* --- the call --- */

/* Roots of all that grows from a version, each pinned. */
struct children {
    struct map_root *roots;
    struct pin *pins;
    uint32_t count;
};

static int children_take(struct host *host, const struct cluster_version *version,
                         struct children *ret)
{
    const struct cluster_version *child = NULL;
    const struct cluster_disk *head = NULL;

    *ret = (struct children){
        .roots = calloc((size_t)version->child_count + 1, sizeof *ret->roots),
        .pins = calloc((size_t)version->child_count + 1, sizeof *ret->pins),
    };
    if (!ret->roots || !ret->pins) {
        free(ret->roots);
        free(ret->pins);
        return -ENOMEM;
    }
    while ((child = cluster_child_next(version, child))) {
        pin_take(&host->pins, &ret->pins[ret->count], PIN_VERSION, child->id);
        ret->roots[ret->count++] = child->pending ? version->root : child->root;
    }
    while ((head = cluster_head_next(version, head))) {
        if (head->flags & DISK_HEADLESS)
            continue;
        reclaim_pin_head(host, &ret->pins[ret->count], head->id);
        ret->roots[ret->count++] = head->has_root ? head->root : version->root;
    }
    return 0;
}

static void children_release(struct host *host, struct children *children)
{
    for (uint32_t i = 0; i < children->count; i++)
        pin_release(&host->pins, &children->pins[i]);
    free(children->roots);
    free(children->pins);
}

/* The first version above `id` that stays, or NULL. */
static const struct cluster_version *staying(const struct cluster_state *state,
                                             uint64_t id)
{
    const struct cluster_version *version = cluster_version_by_id(state, id);

    while (version && (version->collapsing || version->pending))
        version = cluster_version_by_id(state, version->parent);
    return version;
}

/* A head: next to the version it grows from, whose number is made if it is not known,
 * since a version's stays right. */
static async int usage_of_head(struct host *host, const struct held_root *held,
                               uint64_t *ret_all, uint64_t *ret_own)
{
    static const struct map_root none;
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk = cluster_disk_by_id(state, held->disk);
    const struct cluster_version *parent =
        disk ? staying(state, disk->head_parent) : NULL;
    struct map_root near = parent ? parent->root : none;
    uint32_t bound = disk ? cluster_disk_bound(state, disk) : 0;
    struct pin pin;
    uint64_t ignored;
    int rc = 0;

    pin_take(&host->pins, &pin, PIN_VERSION, parent ? parent->id : 0);
    if (parent)
        rc = count_all(host, &near, &none, &ignored);
    if (rc == 0)
        rc = count_all(host, &held->root, &near, ret_all);
    if (rc == 0)
        rc = count(host, &held->root, &none, bound, ret_own);
    pin_release(&host->pins, &pin);
    return rc;
}

static async int usage_of_version(struct host *host, const struct held_root *held,
                                  uint64_t *ret_all, uint64_t *ret_own)
{
    static const struct map_root none;
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_version *version = cluster_version_by_id(state, held->version);
    const struct cluster_version *parent = staying(state, version->parent);
    uint32_t bound = parent ? parent->generation : 0;
    struct map_root near = parent ? parent->root : none;
    struct children children;
    struct pin pin;
    int rc = children_take(host, version, &children);

    if (rc < 0)
        return rc;
    pin_take(&host->pins, &pin, PIN_VERSION, parent ? parent->id : 0);
    if (children.count > 0 && (!parent || !slot_of(host, &near, false)))
        near = children.roots[0];
    rc = count_all(host, &held->root, &near, ret_all);
    if (rc == 0)
        rc = count_exclusive(host, &held->root, bound, children.roots, children.count,
                             ret_own);
    pin_release(&host->pins, &pin);
    children_release(host, &children);
    return rc;
}

async int disk_usage(struct host *host, const char *disk, const char *snapshot,
                     struct disk_usage *ret_usage, struct error *err)
{
    struct held_root held;
    uint64_t all = 0, own = 0;
    int rc = held_root_take(host, disk, snapshot, &held, err);

    if (rc < 0)
        return rc;
    rc = held.version ? usage_of_version(host, &held, &all, &own)
                      : usage_of_head(host, &held, &all, &own);
    held_root_release(host, &held);
    reclaim_wake(host);
    if (rc < 0)
        return err_set(err, rc, "disk %s: %s", disk, err_text(rc));
    own = min_u64(own, all); /* the tree may have changed in between */
    *ret_usage = (struct disk_usage){
        .referenced_bytes = all * BLOCK_SIZE,
        .exclusive_bytes = own * BLOCK_SIZE,
        .shared_bytes = (all - own) * BLOCK_SIZE,
    };
    return 0;
}
