/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The slab allocator.
 *
 * S1  A bit of free_map is set exactly when the slab's mask of held pieces is 0.
 * S2  Slabs from `fresh` on are all free.
 * S3  ready_count counts the free slabs below fresh, free_count all.
 * S4  A bit of part_map is set exactly when some pieces of the slab are held, not all.
 *     part_count counts these slabs, part_free their free pieces.
 * S5  fresh <= limit <= count: what is not given out is free, and never was.
 */
#include "blockstore/slab.h"

/* A search that has found something looks at no more than this many further slabs. */
#define SEARCH_SLABS 4096U
/* Of so many slabs held in part the fullest is chosen. */
#define SEARCH_PARTS 64U

int slabs_init(struct slabs *slabs, uint32_t count, uint32_t fresh)
{
    assert(count > 1 && count <= SLABS_MAX);
    size_t words = div_up_u64(count, 64);
    *slabs = (struct slabs){
        .count = count,
        .fresh = min_u32(fresh > 0 ? fresh : 1, count),
        .limit = count,
        .free_count = count - 1,
        .first_free = 1,
        .held = calloc(count, sizeof *slabs->held),
        .free_map = calloc(words, sizeof *slabs->free_map),
        .part_map = calloc(words, sizeof *slabs->part_map),
    };
    if (slabs->held == NULL || slabs->free_map == NULL || slabs->part_map == NULL) {
        slabs_done(slabs);
        return -ENOMEM;
    }
    slabs->ready_count = slabs->fresh - 1;
    slabs->held[0] = UINT16_MAX;
    for (uint32_t i = 1; i < count; i++)
        slabs->free_map[i / 64] |= (uint64_t)1 << (i % 64);
    return 0;
}

void slabs_done(struct slabs *slabs)
{
    free(slabs->held);
    free(slabs->free_map);
    free(slabs->part_map);
    *slabs = (struct slabs){0};
}

static bool is_free(const struct slabs *slabs, uint32_t slab)
{
    return slabs->free_map[slab / 64] >> (slab % 64) & 1;
}

/* The first slab from `from` on whose bit is set (or is not, by `invert`), below
 * `limit`; limit if there is none. */
static uint32_t next_slab(const uint64_t *map, uint32_t from, uint32_t limit,
                          uint64_t invert)
{
    while (from < limit) {
        uint64_t bits = (map[from / 64] ^ invert) >> (from % 64);
        if (bits != 0)
            return min_u32(limit, from + (uint32_t)__builtin_ctzll(bits));
        from = (from / 64 + 1) * 64;
    }
    return limit;
}

static uint32_t next_free(const struct slabs *slabs, uint32_t from, uint32_t limit)
{
    return next_slab(slabs->free_map, from, limit, 0);
}

static uint32_t next_held(const struct slabs *slabs, uint32_t from, uint32_t limit)
{
    return next_slab(slabs->free_map, from, limit, UINT64_MAX);
}

static void raise_fresh(struct slabs *slabs, uint32_t fresh)
{
    assert(fresh <= slabs->count);
    if (fresh <= slabs->fresh)
        return;
    slabs->ready_count += fresh - slabs->fresh; /* S2: they are all free */
    slabs->fresh = fresh;
    if (slabs->limit < fresh)
        slabs->limit = fresh; /* S5 */
}

void slabs_set_limit(struct slabs *slabs, uint32_t limit)
{
    assert(limit <= slabs->count);
    slabs->limit = limit > slabs->fresh ? limit : slabs->fresh; /* S5 */
}

/* The pieces of a run that lie in one slab, as a mask; moves the run past them. */
static uint16_t next_mask(struct run *run, uint32_t *ret_slab)
{
    uint32_t first = run->start % SLAB_PIECES;
    uint32_t n = min_u32(run->count, SLAB_PIECES - first);
    *ret_slab = run->start / SLAB_PIECES;
    run->start += n;
    run->count -= n;
    return (uint16_t)(((1U << n) - 1) << first);
}

static uint32_t free_pieces(uint16_t held)
{
    return SLAB_PIECES - (uint32_t)__builtin_popcount(held);
}

/* Changes the mask of a slab, and what S4 says about it. */
static void set_held(struct slabs *slabs, uint32_t slab, uint16_t held)
{
    uint16_t old = slabs->held[slab];
    bool was_part = old != 0 && old != UINT16_MAX;
    bool is_part = held != 0 && held != UINT16_MAX;
    uint64_t bit = (uint64_t)1 << (slab % 64);
    slabs->held[slab] = held;
    if (was_part) {
        slabs->part_map[slab / 64] &= ~bit;
        slabs->part_count--;
        slabs->part_free -= free_pieces(old);
    }
    if (is_part) {
        slabs->part_map[slab / 64] |= bit;
        slabs->part_count++;
        slabs->part_free += free_pieces(held);
    }
}

static void hold(struct slabs *slabs, uint32_t slab, uint16_t mask)
{
    if (is_free(slabs, slab)) { /* S1 */
        slabs->free_map[slab / 64] &= ~((uint64_t)1 << (slab % 64));
        slabs->free_count--;
        slabs->ready_count--;
    }
    assert((slabs->held[slab] & mask) == 0);
    set_held(slabs, slab, slabs->held[slab] | mask);
}

bool slabs_claim(struct slabs *slabs, struct run run)
{
    uint64_t end = (uint64_t)run.start + run.count;
    if (run.count == 0 || end > (uint64_t)slabs->count * SLAB_PIECES)
        return false;
    raise_fresh(slabs, (uint32_t)div_up_u64(end, SLAB_PIECES));
    while (run.count > 0) {
        uint32_t slab;
        uint16_t mask = next_mask(&run, &slab);
        if ((slabs->held[slab] & mask) != 0)
            return false;
        hold(slabs, slab, mask);
    }
    return true;
}

static uint32_t take_at(struct slabs *slabs, uint32_t slab, uint32_t count,
                        struct run *ret_run)
{
    raise_fresh(slabs, slab + count);
    for (uint32_t i = slab; i < slab + count; i++)
        hold(slabs, i, UINT16_MAX);
    *ret_run = (struct run){.start = slab * SLAB_PIECES, .count = count * SLAB_PIECES};
    return count;
}

/* The first run of `want` written slabs, else the longest seen; 0: there is none. */
static uint32_t search_ready(struct slabs *slabs, uint32_t want, uint32_t *ret_slab)
{
    slabs->first_free = next_free(slabs, slabs->first_free, slabs->count);
    uint32_t best = 0, limit = slabs->fresh;
    uint32_t at = slabs->first_free;
    while (at < limit && best < want) {
        uint32_t end = next_held(slabs, at, limit);
        uint32_t len = min_u32(want, end - at);
        if (len > best) {
            if (best == 0 && limit - at > SEARCH_SLABS)
                limit = at + SEARCH_SLABS;
            best = len;
            *ret_slab = at;
        }
        at = next_free(slabs, end, limit);
    }
    return best;
}

uint32_t slabs_take(struct slabs *slabs, uint32_t want, uint32_t near,
                    struct run *ret_run)
{
    assert(want > 0);
    uint32_t slab = near / SLAB_PIECES;
    if (near % SLAB_PIECES == 0 && slab > 0 && slab < slabs->fresh &&
        is_free(slabs, slab)) {
        uint32_t limit = min_u32(slabs->fresh, slab + want);
        return take_at(slabs, slab, next_held(slabs, slab, limit) - slab, ret_run);
    }
    uint32_t len = search_ready(slabs, want, &slab);
    if (len > 0)
        return take_at(slabs, slab, len, ret_run);
    len = min_u32(want, slabs->limit - slabs->fresh);
    if (len > 0)
        return take_at(slabs, slabs->fresh, len, ret_run);
    return 0;
}

bool slabs_take_fresh(struct slabs *slabs, struct run *ret_run)
{
    return slabs->fresh < slabs->limit && take_at(slabs, slabs->fresh, 1, ret_run) == 1;
}

/* --- single pieces --- */

/* The next slab held in part, round and round; 0 when `looked` of them were. */
static uint32_t next_part(const struct slabs *slabs, uint32_t *at, uint32_t *looked)
{
    if (*looked >= SEARCH_PARTS || *looked >= slabs->part_count)
        return 0;
    uint32_t slab = next_slab(slabs->part_map, *at + 1, slabs->count, 0);
    if (slab == slabs->count)
        slab = next_slab(slabs->part_map, 1, slabs->count, 0);
    *at = slab;
    ++*looked;
    return slab;
}

/* The slab held in part to take a piece from; 0: there is none. */
static uint32_t fullest(struct slabs *slabs)
{
    uint32_t at = slabs->part_next, looked = 0, best = 0, slab;
    while ((slab = next_part(slabs, &at, &looked)) != 0) {
        if (slab == slabs->avoid)
            continue;
        uint32_t n = free_pieces(slabs->held[slab]);
        if (best == 0 || n < free_pieces(slabs->held[best]))
            best = slab;
        if (n == 1)
            break;
    }
    /* From there on next time: full ones are behind it. */
    slabs->part_next = at;
    return best;
}

uint32_t slabs_held(const struct slabs *slabs, uint32_t slab)
{
    return SLAB_PIECES - free_pieces(slabs->held[slab]);
}

uint32_t slabs_emptiest(const struct slabs *slabs, const uint64_t *pinned)
{
    uint32_t best = 0;
    for (uint32_t i = 0; i < div_up_u64(slabs->count, 64); i++) {
        uint64_t bits = slabs->part_map[i] & ~pinned[i];
        for (; bits != 0; bits &= bits - 1) {
            uint32_t slab = i * 64 + (uint32_t)__builtin_ctzll(bits);
            if (best == 0 || slabs_held(slabs, slab) < slabs_held(slabs, best))
                best = slab;
        }
    }
    return best;
}

/* The shortest free stretch of at least `want` pieces, else the longest. */
static struct run stretch(uint16_t held, uint32_t want)
{
    struct run best = {0};
    for (uint32_t at = 0; at < SLAB_PIECES;) {
        uint32_t n = 0;
        while (at + n < SLAB_PIECES && (held >> (at + n) & 1) == 0)
            n++;
        bool is_better = best.count < want ? n > best.count : n >= want && n < best.count;
        if (is_better)
            best = (struct run){at, n};
        at += n + 1;
    }
    best.count = min_u32(best.count, want);
    return best;
}

uint32_t slabs_take_pieces(struct slabs *slabs, uint32_t want, struct run *ret_run)
{
    assert(want > 0);
    uint32_t slab = fullest(slabs);
    if (slab == 0) {
        if (slabs_available(slabs) == 0)
            return 0;
        if (search_ready(slabs, 1, &slab) == 0)
            slab = slabs->fresh;
        raise_fresh(slabs, slab + 1);
    }
    struct run run = stretch(slabs->held[slab], want);
    assert(run.count > 0); /* S4 */
    hold(slabs, slab, (uint16_t)(((1U << run.count) - 1) << run.start));
    *ret_run = (struct run){slab * SLAB_PIECES + run.start, run.count};
    return run.count;
}

void slabs_release(struct slabs *slabs, struct run run)
{
    while (run.count > 0) {
        uint32_t slab;
        uint16_t mask = next_mask(&run, &slab);
        assert((slabs->held[slab] & mask) == mask);
        set_held(slabs, slab, (uint16_t)(slabs->held[slab] & ~mask));
        if (slabs->held[slab] != 0)
            continue;
        slabs->free_map[slab / 64] |= (uint64_t)1 << (slab % 64); /* S1 */
        slabs->free_count++;
        slabs->ready_count++; /* what was held lies below fresh */
        slabs->first_free = min_u32(slabs->first_free, slab);
    }
}
