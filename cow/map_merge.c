/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Merging goes down to every leaf that has an interval of the overlay, in block order,
 * and up again: one node per level is open at a time. A node is written when all under
 * it has its address; subtrees that are not touched keep theirs, subtrees that become
 * zeros as a whole are cut off without a look at them.
 *
 * What of the old tree has no place in the new one is told to the sink, unless it is as
 * old as the bound: an entry that an interval replaces; a node that was opened, for it is
 * written again or becomes null; a subtree that is cut off. A node is opened once, so
 * nothing is told twice.
 *
 * A node that cannot be read is like an empty one if all that it is for is replaced: the
 * sink says so. What it names is not known, so it is told as a whole, like what is cut
 * off. Any other that cannot be read, or written, ends the merge with its error; what was
 * written so far is garbage in the log that no root names.
 *
 * There is nothing to close.
 */
#include "cow/map.h"

struct merge {
    struct node_cache *cache;
    const struct overlay *overlay;
    struct map_sink *sink;
    uint32_t generation, bound;
    uint32_t leaves; /* since the last yield */
};

#define LEAVES_PER_YIELD 16U
#define LEAVES_AHEAD     32U

static async int merge_node(struct merge *merge, unsigned level, uint64_t index,
                            struct map_entry old, unsigned old_level,
                            struct map_entry *ret_entry);

/* True if zeros of the overlay cover all of [start, start + count). */
static bool covered_by_zeros(const struct overlay *overlay, uint64_t start,
                             uint64_t count)
{
    const struct interval *at = overlay_at_or_after(overlay, start);

    return at && at->start <= start && address_is_null(at->address) &&
           interval_end(at) >= start + count;
}

static void entry_set(struct map_entry_format *format, struct map_entry entry)
{
    format->address = le64_of(entry.address.v);
    format->crc = le32_of(entry.crc);
    format->generation = le32_of(entry.generation);
}

/* The new tree does without the entry. Group 0 is null, or foreign bytes. */
static async int drop_entry(struct merge *merge, struct map_entry old, int level)
{
    if (address_group(old.address) == 0 || old.generation <= merge->bound ||
        !merge->sink->dead)
        return 0;
    return merge->sink->dead(merge->sink, old, level);
}

static async int drop_node(struct merge *merge, struct map_entry old)
{
    if (planted(PLANT_NODE_FREED_SHARED) && old.generation == merge->bound)
        return merge->sink->dead(merge->sink, old, MAP_BLOCK);
    return drop_entry(merge, old, MAP_BLOCK);
}

static async int merge_leaf(struct merge *merge, uint64_t start,
                            struct map_node_format *leaf)
{
    const struct interval *at = overlay_at_or_after(merge->overlay, start);
    uint64_t end = start + MAP_FANOUT;

    for (; at && at->start < end; at = overlay_next(at)) {
        uint64_t from = max_u64(at->start, start), to = min_u64(interval_end(at), end);
        for (uint64_t block = from; block < to; block++) {
            struct map_entry entry = {.address = ADDRESS_NULL};
            unsigned index = (unsigned)(block - start);
            if (!address_is_null(at->address)) {
                uint64_t skip = block - at->start;
                entry = (struct map_entry){
                    .address = address_plus(at->address, (uint32_t)skip),
                    .crc = at->crcs[skip],
                    .generation = merge->generation,
                };
            }
            int rc = drop_entry(merge, map_entry_at(leaf, index), MAP_BLOCK);
            if (rc < 0)
                return rc;
            entry_set(&leaf->entries[index], entry);
        }
    }
    return 0;
}

/* Starts reading the leaves that will be merged next, so that a thinly written disk's
 * checkpoint does not wait for one leaf after the other. Returns the child it got to. */
static unsigned read_ahead(struct merge *merge, uint64_t start, unsigned child,
                           const struct map_entry *entries)
{
    uint64_t under = map_entry_blocks(1), end = start + under * MAP_FANOUT;
    unsigned ahead = 0;

    while (child < MAP_FANOUT && ahead < LEAVES_AHEAD) {
        const struct interval *at =
            overlay_at_or_after(merge->overlay, start + child * under);
        if (!at || at->start >= end)
            break;
        if (at->start > start + child * under)
            child = (unsigned)((at->start - start) / under);
        if (!address_is_null(entries[child].address) &&
            !covered_by_zeros(merge->overlay, start + child * under, under)) {
            node_prefetch(merge->cache, entries[child].address, entries[child].crc);
            ahead++;
        }
        child++;
    }
    return child;
}

/* Goes through the children the overlay touches. `entries` receives the new ones, some
 * only when the sink was waited for. */
static async int merge_children(struct merge *merge, unsigned level, uint64_t start,
                                const struct map_node_format *old, struct map_entry lift,
                                unsigned lift_level, struct map_entry *entries)
{
    uint64_t under = map_entry_blocks(level), end = start + under * MAP_FANOUT;
    const struct interval *at = overlay_at_or_after(merge->overlay, start);
    unsigned ahead = 0;

    for (unsigned i = 0; i < MAP_FANOUT; i++)
        entries[i] = map_entry_at(old, i);
    if (!address_is_null(lift.address) && lift_level < level) {
        entries[0] = lift;
        /* A tree that grows by several levels needs the nodes between, touched or not. */
        if (lift_level + 1 < level && !(at && at->start < start + under)) {
            int rc = merge_node(merge, level - 1, 0, lift, lift_level, &entries[0]);
            if (rc < 0)
                return rc;
        }
    }
    for (unsigned child = 0; child < MAP_FANOUT; child++) {
        at = overlay_at_or_after(merge->overlay, start + child * under);
        if (!at || at->start >= end)
            break;
        if (at->start > start + child * under)
            child = (unsigned)((at->start - start) / under);
        uint64_t from = start + child * under;
        if (level == 1 && child >= ahead)
            ahead = read_ahead(merge, start, child, entries);
        unsigned below = child == 0 && lift_level < level ? lift_level : level - 1;
        int rc;
        if (covered_by_zeros(merge->overlay, from, under)) {
            rc = drop_entry(merge, entries[child], (int)below);
            entries[child] = (struct map_entry){.address = ADDRESS_NULL};
        } else {
            rc = merge_node(merge, level - 1, from / under, entries[child], below,
                            &entries[child]);
        }
        if (rc < 0)
            return rc;
    }
    return merge->sink->wait(merge->sink);
}

struct buffer_wait {
    struct work work;
    struct event told;
};

static void room_came(struct work *work)
{
    event_set(&container_of(work, struct buffer_wait, work)->told);
}

async int buffer_await(struct buffer_pool *pool, uint64_t size_bytes,
                       struct buffer **ret_buffer)
{
    struct buffer *buffer;

    while (!(buffer = buffer_create(pool, size_bytes))) {
        struct buffer_wait wait = {.work = {.run = room_came}};
        if (buffer_pool_used_bytes(pool) + size_bytes <= buffer_pool_limit_bytes(pool))
            return -ENOMEM;
        event_init(&wait.told);
        buffer_pool_wait(pool, &wait.work);
        event_wait(&wait.told);
    }
    *ret_buffer = buffer;
    return 0;
}

static bool node_is_null(const struct map_node_format *node)
{
    return bytes_are_zero(node, sizeof *node);
}

/* What the old node holds; it is told dead. */
static async int read_old(struct merge *merge, unsigned level, uint64_t index,
                          struct map_entry old, uint8_t *ret_bytes)
{
    const struct node *node;
    int rc = node_get(merge->cache, old.address, old.crc, &node);

    if (rc == 0) {
        memcpy(ret_bytes, node->format, BLOCK_SIZE);
        node_put(merge->cache, node);
        return drop_node(merge, old);
    }
    if (rc == -ENOMEM || !merge->sink->unreadable)
        return rc;
    rc = merge->sink->unreadable(merge->sink, level, index, old, rc);
    if (rc < 0)
        return rc;
    memset(ret_bytes, 0, BLOCK_SIZE);
    return drop_entry(merge, old, (int)level);
}

/* The old node in a fresh buffer; zeros if there is none, or if it is of a lower level
 * (the tree grew: it becomes the first child). */
static async int open_node(struct merge *merge, unsigned level, uint64_t index,
                           struct map_entry old, unsigned old_level,
                           struct buffer **ret_buffer)
{
    struct buffer *buffer;
    int rc = buffer_await(merge->sink->buffers, BLOCK_SIZE, &buffer);

    if (rc < 0)
        return rc;
    if (address_is_null(old.address) || old_level < level)
        memset(buffer->data, 0, BLOCK_SIZE);
    else
        rc = read_old(merge, level, index, old, buffer->data);
    if (rc < 0) {
        buffer_put(buffer);
        return rc;
    }
    *ret_buffer = buffer;
    return 0;
}

static async int merge_inner(struct merge *merge, unsigned level, uint64_t start,
                             struct map_entry old, unsigned old_level,
                             struct map_node_format *format)
{
    struct map_entry *entries = malloc(MAP_FANOUT * sizeof *entries);
    int rc;

    if (!entries)
        return -ENOMEM;
    rc = merge_children(merge, level, start, format, old, old_level, entries);
    /* The sink must be done with the entries before they go, whatever happened. */
    if (rc < 0)
        (void)merge->sink->wait(merge->sink);
    for (unsigned i = 0; rc == 0 && i < MAP_FANOUT; i++)
        entry_set(&format->entries[i], entries[i]);
    free(entries);
    return rc;
}

static async int merge_node(struct merge *merge, unsigned level, uint64_t index,
                            struct map_entry old, unsigned old_level,
                            struct map_entry *ret_entry)
{
    uint64_t start = index * map_entry_blocks(level + 1);
    struct buffer *buffer;
    int rc = open_node(merge, level, index, old, old_level, &buffer);

    if (rc < 0)
        return rc;
    struct map_node_format *format = (void *)buffer->data;
    if (level == 0) {
        rc = merge_leaf(merge, start, format);
        if (++merge->leaves % LEAVES_PER_YIELD == 0)
            task_yield();
    } else {
        rc = merge_inner(merge, level, start, old, old_level, format);
    }
    if (rc == 0 && node_is_null(format)) {
        *ret_entry = (struct map_entry){.address = ADDRESS_NULL};
    } else if (rc == 0) {
        rc = merge->sink->write(merge->sink, level, index, buffer, ret_entry);
    }
    buffer_put(buffer);
    return rc;
}

async int map_merge(struct node_cache *cache, const struct map_root *old,
                    const struct overlay *overlay, uint64_t block_count, uint32_t bound,
                    struct map_sink *sink, struct map_root *ret_root)
{
    struct merge merge = {
        .cache = cache,
        .overlay = overlay,
        .sink = sink,
        .generation = overlay->generation,
        .bound = bound,
    };
    uint8_t height = map_height(block_count);
    struct map_entry root = {old->address, old->crc, old->generation}, merged;
    int rc;

    if (!map_root_sound(old))
        return -PLX_EFORMAT;
    if (height < old->height)
        height = old->height;
    if (overlay_empty(overlay)) {
        *ret_root = *old;
        return 0;
    }
    merged = root;
    rc = merge_node(&merge, height - 1U, 0, root,
                    old->height ? old->height - 1U : height - 1U, &merged);
    if (rc == 0)
        rc = sink->wait(sink);
    if (rc < 0) {
        (void)sink->wait(sink);
        return rc;
    }
    *ret_root = (struct map_root){
        .address = merged.address,
        .crc = merged.crc,
        .generation = merged.generation,
        .height = address_is_null(merged.address) ? 0 : height,
    };
    return 0;
}
