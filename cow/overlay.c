/* SPDX-License-Identifier: Apache-2.0 */
#include "cow/overlay.h"

static int compare(const struct interval *a, const struct interval *b)
{
    return a->start < b->start ? -1 : a->start > b->start;
}

RB_GENERATE_INTERNAL(interval_tree, interval, node, compare, static attr_unused)

static bool is_zeros(const struct interval *interval)
{
    return address_is_null(interval->address);
}

/* malloc's own share, roughly. */
#define ALLOCATION_OVERHEAD 16

static size_t interval_bytes(uint64_t allocated)
{
    return sizeof(struct interval) + (size_t)allocated * sizeof(uint32_t) +
           ALLOCATION_OVERHEAD;
}

static void account(struct overlay *overlay, size_t added, size_t removed)
{
    overlay->bytes += added;
    overlay->bytes -= removed;
    overlay->budget->used_bytes += added;
    overlay->budget->used_bytes -= removed;
}

void overlay_init(struct overlay *overlay, uint32_t generation,
                  struct overlay_budget *budget)
{
    *overlay = (struct overlay){.generation = generation, .budget = budget};
    RB_INIT(&overlay->intervals);
    dead_set_init(&overlay->dead);
}

/* Counts blocks of data as they come and go. */
static void count_data(struct overlay *overlay, uint64_t added, uint64_t removed)
{
    overlay->data_blocks += added - removed;
    overlay->budget->data_blocks += added - removed;
}

static uint64_t data_of(const struct interval *interval)
{
    return is_zeros(interval) ? 0 : interval->count;
}

/* Leaves that merging it may write. Of those that zeros cover nothing is left. */
static uint64_t leaves_of(const struct interval *interval)
{
    uint64_t first = interval->start >> MAP_FANOUT_SHIFT;
    uint64_t last = (interval_end(interval) - 1) >> MAP_FANOUT_SHIFT;

    return 1 + (is_zeros(interval) ? last != first : last - first);
}

static void count_leaves(struct overlay *overlay, uint64_t added, uint64_t removed)
{
    overlay->leaf_count += added - removed;
    overlay->budget->leaf_count += added - removed;
}

static void drop_interval(struct overlay *overlay, struct interval *interval)
{
    RB_REMOVE(interval_tree, &overlay->intervals, interval);
    overlay->interval_count--;
    count_leaves(overlay, 0, leaves_of(interval));
    count_data(overlay, 0, data_of(interval));
    account(overlay, 0, interval_bytes(interval->allocated));
    free(interval);
}

void overlay_done(struct overlay *overlay)
{
    struct interval *interval, *next;

    RB_FOREACH_SAFE(interval, interval_tree, &overlay->intervals, next)
        drop_interval(overlay, interval);
    overlay->budget->dead_blocks -= overlay->dead.count;
    account(overlay, 0, overlay->dead.bytes);
    dead_set_done(&overlay->dead);
    assert(overlay->bytes == 0 && overlay->data_blocks == 0 && overlay->leaf_count == 0);
}

static struct interval *make(uint64_t start, uint64_t count, struct address address,
                             const uint32_t *crcs)
{
    uint64_t allocated = crcs ? count : 0;
    struct interval *interval = malloc(interval_bytes(allocated));

    if (!interval)
        return NULL;
    interval->start = start;
    interval->count = count;
    interval->address = address;
    interval->allocated = allocated;
    if (crcs)
        memcpy(interval->crcs, crcs, (size_t)count * sizeof *crcs);
    return interval;
}

static void insert(struct overlay *overlay, struct interval *interval)
{
    struct interval *clash = RB_INSERT(interval_tree, &overlay->intervals, interval);

    assert(!clash);
    overlay->interval_count++;
    count_leaves(overlay, leaves_of(interval), 0);
    count_data(overlay, data_of(interval), 0);
    account(overlay, interval_bytes(interval->allocated), 0);
}

static struct interval *floor_of(const struct overlay *overlay, uint64_t block)
{
    struct interval *at = RB_ROOT(&overlay->intervals), *best = NULL;

    while (at) {
        if (at->start <= block) {
            best = at;
            at = RB_RIGHT(at, node);
        } else {
            at = RB_LEFT(at, node);
        }
    }
    return best;
}

const struct interval *overlay_at_or_after(const struct overlay *overlay, uint64_t block)
{
    const struct interval *interval = floor_of(overlay, block);

    if (interval && interval_end(interval) > block)
        return interval;
    if (interval)
        return overlay_next(interval);
    struct interval key = {.start = block};
    return RB_NFIND(interval_tree, (struct interval_tree *)&overlay->intervals, &key);
}

const struct interval *overlay_next(const struct interval *interval)
{
    return RB_NEXT(interval_tree, NULL, (struct interval *)interval);
}

/* --- what dies --- */

/* Blocks of data at this address may be superseded one day. */
static int reserve_dead(struct overlay *overlay, struct address address)
{
    size_t before = overlay->dead.bytes;
    int rc = dead_set_reserve(&overlay->dead, address);

    account(overlay, overlay->dead.bytes - before, 0);
    return rc;
}

/* [from, to) of the interval is superseded. */
static void supersede(struct overlay *overlay, const struct interval *interval,
                      uint64_t from, uint64_t to)
{
    uint64_t before = overlay->dead.count;

    if (is_zeros(interval))
        return;
    dead_set_add(&overlay->dead,
                 address_plus(interval->address, (uint32_t)(from - interval->start)),
                 (uint32_t)(to - from));
    overlay->budget->dead_blocks += overlay->dead.count - before;
}

/* --- changing it --- */

/* Keeps only the blocks from `start` on. The order in the tree stays the same. */
static void keep_tail(struct overlay *overlay, struct interval *interval, uint64_t start)
{
    uint64_t cut = start - interval->start, left = interval->count - cut;
    uint64_t leaves = leaves_of(interval);

    if (!is_zeros(interval)) {
        memmove(interval->crcs, interval->crcs + cut, (size_t)left * sizeof(uint32_t));
        interval->address = address_plus(interval->address, (uint32_t)cut);
        count_data(overlay, 0, cut);
    }
    interval->start = start;
    interval->count = left;
    count_leaves(overlay, leaves_of(interval), leaves);
}

/* Keeps only the blocks below `end`. */
static void keep_head(struct overlay *overlay, struct interval *interval, uint64_t end)
{
    uint64_t leaves = leaves_of(interval);

    if (!is_zeros(interval))
        count_data(overlay, 0, interval_end(interval) - end);
    interval->count = end - interval->start;
    count_leaves(overlay, leaves_of(interval), leaves);
}

/* The part of `interval` from `start` on, as one of its own. */
static struct interval *copy_tail(const struct interval *interval, uint64_t start)
{
    uint64_t cut = start - interval->start, left = interval->count - cut;

    if (is_zeros(interval))
        return make(start, left, ADDRESS_NULL, NULL);
    return make(start, left, address_plus(interval->address, (uint32_t)cut),
                interval->crcs + cut);
}

/* Takes [start, end) away from what is there; `rest`, if any, is what is left behind it
 * of an interval that goes on on both sides. */
static void clear_range(struct overlay *overlay, uint64_t start, uint64_t end,
                      struct interval *rest)
{
    struct interval *at = floor_of(overlay, start);

    if (at && at->start < start) {
        if (interval_end(at) > start) {
            supersede(overlay, at, start, min_u64(interval_end(at), end));
            keep_head(overlay, at, start);
        }
        at = RB_NEXT(interval_tree, NULL, at);
    } else if (!at) {
        at = RB_MIN(interval_tree, &overlay->intervals);
    }
    while (at && at->start < end) {
        struct interval *next = RB_NEXT(interval_tree, NULL, at);
        supersede(overlay, at, at->start, min_u64(interval_end(at), end));
        if (interval_end(at) <= end)
            drop_interval(overlay, at);
        else
            keep_tail(overlay, at, end);
        at = next;
    }
    if (rest)
        insert(overlay, rest);
}

int overlay_put(struct overlay *overlay, uint64_t start, uint64_t count,
                struct address address, const uint32_t *crcs)
{
    uint64_t end = start + count;
    struct interval *added, *rest = NULL;
    const struct interval *at = floor_of(overlay, start);

    assert(count > 0 && address_is_null(address) == !crcs);
    added = make(start, count, address, crcs);
    if (!added)
        return -ENOMEM;
    if (at && at->start < start && interval_end(at) > end) {
        rest = copy_tail(at, end);
        if (!rest) {
            free(added);
            return -ENOMEM;
        }
    }
    if (crcs && reserve_dead(overlay, address) < 0) {
        free(rest);
        free(added);
        return -ENOMEM;
    }
    clear_range(overlay, start, end, rest);
    insert(overlay, added);
    return 0;
}

int overlay_move(struct overlay *overlay, uint64_t start, uint64_t count,
                 struct address was, struct address now)
{
    uint64_t end = start + count;
    const struct interval *at = overlay_at_or_after(overlay, start);
    size_t before = overlay->dead.bytes;
    int rc = dead_set_move(&overlay->dead, (uint32_t)count, was, now);

    account(overlay, overlay->dead.bytes - before, 0);
    for (; rc == 0 && at && at->start < end; at = overlay_next(at)) {
        if (is_zeros(at))
            continue;
        /* A piece of one batch is moved as a whole: what is left of it here was cut from
         * it, so it lies inside [start, end) or came from elsewhere. */
        if (at->start < start || interval_end(at) > end)
            continue;
        uint32_t skip = (uint32_t)(at->start - start);
        if (at->address.v != was.v + skip)
            continue;
        rc = reserve_dead(overlay, now);
        if (rc == 0)
            ((struct interval *)at)->address = address_plus(now, skip);
    }
    return rc;
}
