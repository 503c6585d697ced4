/* SPDX-License-Identifier: Apache-2.0 */
#include "replication/take_over_plan.h"

/* The highest number of an extent that is not void. */
static uint64_t number_limit(const struct take_over_plan *plan,
                             const struct plan_extent *extent)
{
    uint64_t limit = UINT64_MAX;
    for (uint32_t i = 0; i < plan->cut_count; i++) {
        if (extent->epoch <= plan->cuts[i].epoch && !planted(PLANT_VOID_REPLAYED))
            limit = min_u64(limit, plan->cuts[i].number);
    }
    return extent->is_final ? min_u64(limit, extent->last_number) : limit;
}

/* Rule 1. Numbers in an extent are consecutive, so a limit leaves first alone. */
static void drop_void(const struct take_over_plan *plan, struct plan_extent *extent)
{
    uint64_t limit = number_limit(plan, extent);
    for (uint32_t i = 0; i < extent->copy_count; i++) {
        struct plan_copy *copy = &extent->copies[i];
        if (copy->first == 0 || copy->first > limit)
            copy->first = copy->last = 0;
        else
            copy->last = min_u64(copy->last, limit);
    }
}

static uint64_t longest_last(const struct plan_extent *extent)
{
    uint64_t last = 0;
    for (uint32_t i = 0; i < extent->copy_count; i++)
        last = max_u64(last, extent->copies[i].last);
    return last;
}

static uint64_t first_of(const struct plan_extent *extent)
{
    for (uint32_t i = 0; i < extent->copy_count; i++) {
        if (extent->copies[i].first != 0)
            return extent->copies[i].first;
    }
    return 0;
}

/* The last number up to F that extent `at` must hold. An extent with no batch may be one
 * that never got any: then it must hold no more than those before it do. */
static uint64_t must_hold(const struct take_over_plan *plan, uint32_t at)
{
    const struct plan_extent *extent = &plan->extents[at];
    if (extent->is_final)
        return extent->last_number;
    uint64_t must = plan->known_flushed;
    if (extent->is_rolled)
        return min_u64(must, extent->rolled_number);
    for (uint32_t i = at + 1; i < plan->extent_count; i++) {
        uint64_t first = first_of(&plan->extents[i]);
        if (first != 0)
            return min_u64(must, first - 1);
    }
    return must;
}

static bool copy_is_sound(const struct plan_extent *extent, const struct plan_copy *copy,
                          uint64_t must, uint64_t reach)
{
    if (copy->is_broken || (extent->is_final && copy->end < extent->length))
        return false;
    if (copy->last != 0)
        return copy->last >= must;
    /* A length and a last number are known of these; an empty copy may be right. */
    if (extent->is_final || extent->is_rolled)
        return must == 0;
    return must <= reach;
}

/* Rule 2. reach: the highest number in this extent or one before. */
static int choose_copy(const struct take_over_plan *plan, uint32_t at, uint64_t *reach,
                       struct error *err)
{
    struct plan_extent *extent = &plan->extents[at];
    uint64_t must = must_hold(plan, at);
    bool found = false;
    for (uint32_t i = 0; i < extent->copy_count; i++) {
        struct plan_copy *copy = &extent->copies[i];
        copy->is_damaged = !copy_is_sound(extent, copy, must, *reach);
        if (copy->is_damaged)
            continue;
        if (!found || copy->last > extent->last) {
            extent->source = i;
            extent->first = copy->first;
            extent->last = copy->last;
        }
        found = true;
    }
    if (!found) {
        return err_set(err, -PLX_EDAMAGED,
                       "extent %llx: must hold batches up to %llu, %s ends at %llu",
                       (unsigned long long)extent->extent.v, (unsigned long long)must,
                       extent->copy_count == 1 ? "its only copy" : "every copy",
                       (unsigned long long)longest_last(extent));
    }
    *reach = max_u64(*reach, extent->last);
    return 0;
}

/* Rule 3. end_of: up to where extents hold the numbers that follow, by one member's
 * judgement of its end. */
static uint64_t extend(const struct take_over_plan *plan, uint64_t from,
                       uint64_t (*end_of)(const struct plan_extent *extent))
{
    uint64_t last = from;
    bool goes_on = true;
    while (goes_on) {
        goes_on = false;
        for (uint32_t i = 0; i < plan->extent_count; i++) {
            const struct plan_extent *extent = &plan->extents[i];
            uint64_t end = end_of(extent);
            if (extent->first != 0 && extent->first <= last + 1 && end > last) {
                last = end;
                goes_on = true;
            }
        }
    }
    return last;
}

static uint64_t end_of_longest(const struct plan_extent *extent)
{
    return extent->last;
}

/* What every member has; a member out of reach has nothing that is known. */
static uint64_t end_on_all(const struct plan_extent *extent)
{
    if (extent->copy_count < extent->member_count)
        return extent->is_final ? extent->last : 0;
    uint64_t end = extent->last;
    for (uint32_t i = 0; i < extent->copy_count; i++)
        end = min_u64(end, extent->copies[i].last);
    return extent->is_final ? extent->last : end;
}

/* Rule 4. The last number of the extent that no later one has, too. */
static uint64_t last_of_its_own(const struct take_over_plan *plan, uint32_t at)
{
    const struct plan_extent *extent = &plan->extents[at];
    uint64_t keep = extent->keep;
    for (uint32_t i = at + 1; i < plan->extent_count && keep >= extent->first; i++) {
        const struct plan_extent *later = &plan->extents[i];
        if (later->first != 0 && later->first <= keep && keep <= later->keep) {
            keep = later->first - 1;
            i = at;
        }
    }
    return keep >= extent->first ? keep : 0;
}

int take_over_decide(struct take_over_plan *plan, struct error *err)
{
    uint64_t reach = plan->covers;
    for (uint32_t i = 0; i < plan->extent_count; i++) {
        if (!plan->extents[i].is_skipped)
            drop_void(plan, &plan->extents[i]);
    }
    for (uint32_t i = 0; i < plan->extent_count; i++) {
        struct plan_extent *extent = &plan->extents[i];
        extent->first = extent->last = extent->keep = 0;
        if (extent->is_skipped) {
            reach = max_u64(reach, extent->last_number);
            continue;
        }
        int rc = choose_copy(plan, i, &reach, err);
        if (rc != 0)
            return rc;
    }
    uint64_t last = extend(plan, plan->covers, end_of_longest);
    if (last < plan->known_flushed)
        return err_set(err, -PLX_EDAMAGED, "batch %llu is in no extent; %llu was flushed",
                       (unsigned long long)last + 1,
                       (unsigned long long)plan->known_flushed);
    plan->last = last;
    plan->flushed =
        max_u64(plan->known_flushed, extend(plan, plan->covers, end_on_all));
    for (uint32_t i = 0; i < plan->extent_count; i++) {
        struct plan_extent *extent = &plan->extents[i];
        if (extent->first != 0 && extent->first <= last)
            extent->keep = min_u64(extent->last, last);
    }
    for (uint32_t i = 0; i < plan->extent_count; i++) {
        if (!plan->extents[i].is_final)
            plan->extents[i].keep = last_of_its_own(plan, i);
    }
    return 0;
}
