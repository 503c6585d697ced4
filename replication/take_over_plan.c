/* SPDX-License-Identifier: Apache-2.0 */
#include "replication/take_over_plan.h"

/* The highest number of an extent that is not void. */
static uint64_t number_limit(const struct take_over_plan *plan,
                             const struct plan_extent *extent)
{
    uint64_t limit = UINT64_MAX;
    if (planted(PLANT_VOID_REPLAYED))
        return limit;
    for (uint32_t i = 0; i < plan->cut_count; i++) {
        if (extent->epoch <= plan->cuts[i].epoch)
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

/* Numbers that extents before have, too, may have been flushed there, and this copy may
 * be what a dead take-over got done. Not if a root may name them: their place is here. */
static bool copy_is_sound(const struct take_over_plan *plan,
                          const struct plan_extent *extent, const struct plan_copy *copy,
                          uint64_t must, uint64_t reach)
{
    if (planted(PLANT_DAMAGED_COUNTS))
        return true;
    if (copy->is_broken || (extent->is_final && copy->end < extent->length))
        return false;
    if (copy->last != 0 && !extent->is_final && !extent->is_rolled && must <= reach)
        return copy->last >= min_u64(must, plan->committed);
    if (copy->last != 0)
        return copy->last >= must;
    /* A length and a last number are known of these; an empty copy may be right. */
    if (extent->is_final || extent->is_rolled)
        return must == 0;
    return must <= reach;
}

/* Nobody is left who could have more. Then it is as if it had nothing, which is no loss
 * that anybody was promised against, if what must be there lies in those before it. */
static bool may_be_lost(const struct plan_extent *extent, uint64_t must, uint64_t reach)
{
    if (extent->member_count > 0)
        return false;
    return extent->is_final ? extent->last_number == 0 : must <= reach;
}

static int no_copy_error(const struct plan_extent *extent, uint64_t must,
                         struct error *err)
{
    if (extent->member_count == 0)
        return err_set(err, -PLX_EDAMAGED,
                       "extent %llx: must hold batches up to %llu, and all its members "
                       "were declared lost",
                       (unsigned long long)extent->extent.v, (unsigned long long)must);
    bool is_broken = false;
    for (uint32_t i = 0; i < extent->copy_count; i++)
        is_broken = is_broken || extent->copies[i].is_broken;
    const char *who = extent->copy_count == 1 ? "its only copy" : "every copy";
    unsigned long long name = (unsigned long long)extent->extent.v;
    unsigned long long last = (unsigned long long)longest_last(extent);
    if (is_broken)
        return err_set(err, -PLX_EDAMAGED,
                       "extent %llx: %s is not whole behind batch %llu", name,
                       who, last);
    return err_set(err, -PLX_EDAMAGED,
                   "extent %llx: must hold batches up to %llu, %s ends at %llu", name,
                   (unsigned long long)must, who, last);
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
        copy->is_damaged = !copy_is_sound(plan, extent, copy, must, *reach);
        if (copy->is_damaged)
            continue;
        bool is_better = planted(PLANT_SHORTEST_PREFIX) ? copy->last < extent->last
                                                        : copy->last > extent->last;
        if (!found || is_better) {
            extent->source = i;
            extent->first = copy->first;
            extent->last = copy->last;
        }
        found = true;
    }
    if (!found && !may_be_lost(extent, must, *reach))
        return no_copy_error(extent, must, err);
    *reach = max_u64(*reach, extent->last);
    return 0;
}

static bool extent_has(const struct plan_extent *extent, uint64_t number)
{
    return extent->first != 0 && extent->first <= number && number <= extent->last;
}

/* Rule 4. NULL: it lies in none. */
static const struct plan_extent *holder_of(const struct take_over_plan *plan,
                                           uint64_t number)
{
    for (uint32_t i = plan->extent_count; i-- > 0;) {
        if (extent_has(&plan->extents[i], number))
            return &plan->extents[i];
    }
    return NULL;
}

/* Behind a gap nothing counts. */
static uint64_t next_number(const struct take_over_plan *plan)
{
    uint64_t next = plan->last + 1;
    if (!planted(PLANT_GAP_PASSED) || holder_of(plan, next) != NULL)
        return next;
    for (uint32_t i = 0; i < plan->extent_count; i++) {
        if (plan->extents[i].first > next)
            return plan->extents[i].first;
    }
    return next;
}

static bool lies_elsewhere(const struct take_over_plan *plan,
                           const struct plan_extent *holder, uint64_t number)
{
    const struct plan_extent *extent = plan->extents;
    for (; extent < holder; extent++) {
        if (extent_has(extent, number))
            return true;
    }
    return false;
}

/* Rule 5. */
static bool may_stay(const struct take_over_plan *plan, const struct plan_extent *holder,
                     uint64_t number)
{
    if (holder->is_final || number <= plan->committed)
        return true;
    bool on_all = holder->copy_count == holder->member_count;
    for (uint32_t i = 0; on_all && i < holder->copy_count; i++)
        on_all = !holder->copies[i].is_damaged && holder->copies[i].last >= number;
    return on_all ||
           (number <= plan->known_flushed && !lies_elsewhere(plan, holder, number));
}

/* Rule 3, and how far rule 5 goes. */
static void find_end(struct take_over_plan *plan)
{
    const struct plan_extent *holder;
    bool stays = true;
    plan->last = plan->flushed = plan->covers;
    while ((holder = holder_of(plan, next_number(plan))) != NULL) {
        plan->last = next_number(plan);
        stays = stays && may_stay(plan, holder, plan->last);
        if (stays)
            plan->flushed = plan->last;
    }
}

/* Rule 6. The last number of the extent that no later one has, too. */
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
    find_end(plan);
    if (plan->last < plan->known_flushed)
        return err_set(err, -PLX_EDAMAGED, "batch %llu is in no extent; %llu was flushed",
                       (unsigned long long)plan->last + 1,
                       (unsigned long long)plan->known_flushed);
    for (uint32_t i = 0; i < plan->extent_count; i++) {
        struct plan_extent *extent = &plan->extents[i];
        uint64_t stays = extent->is_final ? plan->last : plan->flushed;
        if (extent->first != 0 && extent->first <= stays)
            extent->keep = min_u64(extent->last, stays);
    }
    for (uint32_t i = 0; i < plan->extent_count; i++) {
        if (!plan->extents[i].is_final)
            plan->extents[i].keep = last_of_its_own(plan, i);
    }
    return 0;
}
