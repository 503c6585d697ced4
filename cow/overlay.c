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
}

static void drop(struct overlay *overlay, struct interval *interval)
{
    RB_REMOVE(interval_tree, &overlay->intervals, interval);
    overlay->interval_count--;
    overlay->budget->interval_count--;
    account(overlay, 0, interval_bytes(interval->allocated));
    free(interval);
}

void overlay_done(struct overlay *overlay)
{
    struct interval *interval, *next;

    RB_FOREACH_SAFE(interval, interval_tree, &overlay->intervals, next)
        drop(overlay, interval);
    assert(overlay->bytes == 0);
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
    overlay->budget->interval_count++;
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

/* Keeps only the blocks from `start` on. The order in the tree stays the same. */
static void keep_tail(struct interval *interval, uint64_t start)
{
    uint64_t cut = start - interval->start, left = interval->count - cut;

    if (!is_zeros(interval)) {
        memmove(interval->crcs, interval->crcs + cut, (size_t)left * sizeof(uint32_t));
        interval->address = address_plus(interval->address, (uint32_t)cut);
    }
    interval->start = start;
    interval->count = left;
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

int overlay_put(struct overlay *overlay, uint64_t start, uint64_t count,
                struct address address, const uint32_t *crcs)
{
    uint64_t end = start + count;
    struct interval *added, *rest = NULL;
    struct interval *at = floor_of(overlay, start);

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

    if (at && at->start < start) {
        if (interval_end(at) > start)
            at->count = start - at->start;
        at = RB_NEXT(interval_tree, NULL, at);
    } else if (!at) {
        at = RB_MIN(interval_tree, &overlay->intervals);
    }
    while (at && at->start < end) {
        struct interval *next = RB_NEXT(interval_tree, NULL, at);
        if (interval_end(at) <= end)
            drop(overlay, at);
        else
            keep_tail(at, end);
        at = next;
    }
    insert(overlay, added);
    if (rest)
        insert(overlay, rest);
    return 0;
}

void overlay_move(struct overlay *overlay, uint64_t start, uint64_t count,
                  struct address was, struct address now)
{
    uint64_t end = start + count;
    const struct interval *at = overlay_at_or_after(overlay, start);

    for (; at && at->start < end; at = overlay_next(at)) {
        if (is_zeros(at))
            continue;
        /* A piece of one batch is moved as a whole: what is left of it here was cut from
         * it, so it lies inside [start, end) or came from elsewhere. */
        if (at->start < start || interval_end(at) > end)
            continue;
        uint32_t skip = (uint32_t)(at->start - start);
        if (at->address.v == was.v + skip)
            ((struct interval *)at)->address = address_plus(now, skip);
    }
}
