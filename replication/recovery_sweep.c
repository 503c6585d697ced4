/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One group: what is here is compared with what each whole member has, in order of
 * address, and each extent gets what recovery_decide says.
 *
 * Happy path: the mark of this node, the extents that are open without it and the whole
 * members are noted in one moment; then the inventories are gone through. What is to be
 * copied goes to copiers, and the sweep goes on. When all is done, and nothing of it was
 * worth another look, what only this node has is dropped, if every whole member says that
 * there is no such extent; and then the node is whole, if its mark is still the one that
 * was noted.
 *
 * Why that is enough: of what was opened before the moment, each extent has its length by
 * then, and so each whole member has it or it is dead; or it is open with this node in
 * its write set. What is opened later has this node in its write set, too, or marks it
 * again.
 *
 * What can fail: a member, or the store. The sweep goes on with what else it can do, and
 * is not complete: it begins anew a while later.
 */
#include "replication/cluster_internal.h"
#include "replication/recovery_internal.h"

#define SWEEPS_MAX 4U /* of a group, before others have their turn */
#define STEPS_MAX  4U /* with one extent in one sweep */

/* --- what is known --- */

const struct group_member *recovery_self(const struct recovery *r, uint16_t group)
{
    const struct cluster_group *g = cluster_group_by_id(recovery_state(r), group);
    return g != NULL ? cluster_group_member(g, r->options.node) : NULL;
}

struct recovery_facts recovery_facts_of(const struct recovery *r, struct address extent,
                                        const struct copy_extent *source)
{
    const struct cluster_state *state = recovery_state(r);
    const struct log_extent *listed = cluster_listed_extent(state, extent, NULL);
    struct recovery_facts facts = {
        .is_opened = address_sequence(extent) < cluster_state_next_sequence(state),
        .is_listed = listed != NULL,
        .has_length = listed != NULL && listed->final,
        .length = listed != NULL && listed->final ? listed->length : 0,
        .local = recovery_local(r, extent),
        .source = {.extent = extent, .state = COPY_RPC_ABSENT},
    };
    if (source != NULL)
        facts.source = *source;
    /* A stop of what was never here notes no disk. */
    uint64_t disk = facts.local.disk != 0 ? facts.local.disk : facts.source.disk;
    facts.has_disk = disk == 0 || cluster_disk_by_id(state, disk) != NULL;
    const struct cluster_group *group = cluster_group_by_id(state,
                                                            address_group(extent));
    facts.is_unsure = group != NULL && address_sequence(extent) < group->unsure_below;
    return facts;
}

/* Extents of the group that are open without this node. */
static uint32_t count_waiting(const struct recovery *r, uint16_t group)
{
    const struct cluster_state *state = recovery_state(r);
    const struct cluster_disk *disk = NULL;
    uint32_t count = 0;
    while ((disk = cluster_disk_next(state, disk)) != NULL)
        for (uint32_t i = 0; i < disk->extent_count; i++) {
            const struct log_extent *extent = &disk->extents[i];
            count += !extent->final && address_group(extent->extent) == group &&
                     !log_extent_has(extent, r->options.node);
        }
    return count;
}

bool recovery_sources(const struct recovery *r, uint16_t group,
                      struct recovery_source *ret, uint32_t *ret_count)
{
    const struct cluster_state *state = recovery_state(r);
    const struct cluster_group *g = cluster_group_by_id(state, group);
    bool has_all = true;
    *ret_count = 0;
    for (uint32_t i = 0; g != NULL && i < g->member_count; i++) {
        const struct cluster_node *node = cluster_node_by_id(state, g->members[i].node);
        if (g->members[i].missing_since != 0 || g->members[i].node == r->options.node)
            continue;
        if (node == NULL || !cluster_node_is_usable(node)) {
            has_all = false;
            continue;
        }
        ret[(*ret_count)++] = (struct recovery_source){.node = node->id,
                                                       .store = node->store};
    }
    return has_all && *ret_count > 0;
}

async int sweep_list_local(struct sweep *s)
{
    struct address at = address_of(s->group, 0, 0);
    cleanup(free_ptr) struct address *page = malloc(COPY_RPC_PAGE_MAX * sizeof *page);
    uint32_t count = 0;
    bool more = true;
    int rc = page != NULL ? 0 : -ENOMEM;
    while (rc == 0 && more) {
        rc = store_page_extents(s->r->options.store, s->group, at, COPY_RPC_PAGE_MAX,
                                page, &count, &more);
        for (uint32_t i = 0; i < count && rc == 0; i++)
            rc = address_list_add(&s->local, page[i]);
        if (count > 0)
            at.v = page[count - 1].v + EXTENT_BLOCKS;
    }
    if (rc == 0)
        s->is_seen = calloc(s->local.count + 1, sizeof *s->is_seen);
    return rc == 0 && s->is_seen == NULL ? -ENOMEM : rc;
}

/* --- uniting --- */

uint64_t recovery_others(const struct recovery *r, const struct cluster_group *group)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < group->member_count; i++) {
        const struct group_member *member = &group->members[i];
        const struct cluster_node *node = cluster_node_by_id(recovery_state(r),
                                                             member->node);
        if (member->missing_since == 0 && member->node != r->options.node &&
            node != NULL && cluster_node_is_usable(node))
            sum = sum * 0x9e3779b97f4a7c15U + member->node;
    }
    return sum;
}

bool recovery_is_due(const struct recovery *r, const struct cluster_group *group)
{
    const struct group_member *self = cluster_group_member(group, r->options.node);
    if (self == NULL || self->missing_since != 0 || group->unsure_below == 0)
        return self != NULL && self->missing_since != 0;
    struct united united = {0};
    if (group->id < r->united_count)
        united = r->united[group->id];
    uint64_t others = recovery_others(r, group);
    return others != 0 &&
           (united.others != others || united.unsure_below != group->unsure_below);
}

/* Until somebody else is whole, they are taken for it once more, or this process ends. */
static int note_united(struct recovery *r, const struct sweep *s)
{
    if (s->group >= r->united_count) {
        size_t count = s->group + 1U;
        struct united *more = realloc(r->united, count * sizeof *more);
        if (more == NULL)
            return -ENOMEM;
        memset(more + r->united_count, 0, (count - r->united_count) * sizeof *more);
        r->united = more;
        r->united_count = count;
    }
    r->united[s->group] = (struct united){s->others, s->unsure_below};
    log_info(r->options.loop, "recovery: has what others have of group %u", s->group);
    return 0;
}

/* --- beginning and end --- */

static async int sweep_begin(struct recovery *r, uint16_t group, struct sweep *s)
{
    const struct cluster_group *g = cluster_group_by_id(recovery_state(r), group);
    *s = (struct sweep){.r = r, .group = group};
    if (g == NULL || !recovery_is_due(r, g))
        return -PLX_EEXISTS;           /* nothing to do any more */
    address_list_done(&r->taken_over); /* the last sweep looks at all of them */
    s->missing_since = recovery_self(r, group)->missing_since;
    s->others = recovery_others(r, g);
    s->unsure_below = g->unsure_below;
    s->waiting = planted(PLANT_WHOLE_EARLY) ? 0 : count_waiting(r, group);
    /* Who is away now is united with when it is back. */
    s->is_incomplete = !recovery_sources(r, group, s->sources, &s->source_count) &&
                       s->missing_since != 0;
    return sweep_list_local(s);
}

void sweep_end(struct sweep *s)
{
    assert(s->copying == 0);
    address_list_done(&s->local);
    free(s->is_seen);
}

/* --- copiers --- */

static void copier_main(struct task_call *call)
{
    struct copier *copier = container_of(call, struct copier, task);
    struct recovery *r = copier->r;
    struct sweep *s = copier->sweep;
    uint64_t bytes = (uint64_t)copier->extent.live * BLOCK_SIZE;
    int rc = recovery_copy(copier);
    if (rc == 0) {
        s->has_changed = true;
        recovery_count(r, -1, -(int64_t)bytes);
    } else {
        s->is_incomplete = true;
        recovery_say(r, "group %u: extent %llx: %s", s->group,
                     (unsigned long long)copier->extent.extent.v, err_text(rc));
    }
    copier->sweep = NULL;
    s->copying--;
    waitlist_wake_all(&r->changed);
}

static bool is_being_copied(const struct recovery *r, struct address extent)
{
    for (uint32_t i = 0; i < r->options.parallel; i++)
        if (r->copiers[i].sweep != NULL &&
            address_equal(r->copiers[i].extent.extent, extent))
            return true;
    return false;
}

static struct copier *copier_idle(struct recovery *r)
{
    for (uint32_t i = 0; i < r->options.parallel; i++)
        if (r->copiers[i].sweep == NULL)
            return &r->copiers[i];
    return NULL;
}

static async void copy_soon(struct sweep *s, const struct copy_extent *extent)
{
    struct recovery *r = s->r;
    struct copier *copier;
    while ((copier = copier_idle(r)) == NULL)
        waitlist_wait(&r->changed);
    if (is_being_copied(r, extent->extent))
        return;
    *copier = (struct copier){
        .r = r,
        .sweep = s,
        .source = (uint32_t)(loop_random_u64(r->options.loop) % s->source_count),
        .extent = *extent,
        .task = {.main = copier_main, .name = "recovery copy", .system = true},
    };
    s->copying++;
    task_start(r->options.loop, &copier->task);
}

static async void copies_drain(struct sweep *s)
{
    while (s->copying > 0)
        waitlist_wait(&s->r->changed);
}

/* --- one extent --- */

async int recovery_merge(struct recovery *r, const struct recovery_source *source,
                         struct address extent)
{
    struct copy_description *d = malloc(sizeof *d);
    if (d == NULL)
        return -ENOMEM;
    int rc = source_describe(r, source, extent, d);
    if (rc == 0 && d->extent.state == COPY_RPC_FINAL &&
        !planted(PLANT_MERGE_FORGOTTEN)) {
        struct store_copy other = {.nonce = d->extent.nonce,
                                   .length = d->extent.length,
                                   .has_headers = d->extent.has_headers,
                                   .live = d->live};
        rc = store_merge_live(r->options.store, extent, &other);
    }
    free(d);
    return rc == -PLX_EMISSING ? 0 : rc;
}

static async int finalize_there(struct recovery *r, const struct recovery_source *source,
                                struct copy_extent *extent, uint32_t length)
{
    struct copy_description *d = malloc(sizeof *d);
    if (d == NULL)
        return -ENOMEM;
    int rc = source_finalize(r, source, extent->extent, length);
    if (rc == 0)
        rc = source_describe(r, source, extent->extent, d);
    if (rc == 0)
        *extent = d->extent;
    free(d);
    return rc;
}

/* It is the same here as there, so far. */
static int note_taken_over(struct recovery *r, struct address extent)
{
    const struct address_list *list = &r->taken_over;
    bool is_last = list->count > 0 && address_equal(list->at[list->count - 1], extent);
    return is_last ? 0 : address_list_add(&r->taken_over, extent);
}

/* One step; 1: look at it again. */
static async int take_step(struct sweep *s, const struct recovery_source *source,
                           struct copy_extent *extent)
{
    struct recovery *r = s->r;
    struct store *store = r->options.store;
    struct recovery_facts facts = recovery_facts_of(r, extent->extent, extent);
    uint32_t length = 0;
    int rc = 0;
    switch (recovery_decide(&facts, &length)) {
    case RECOVERY_NOTHING:
        return facts.local.state == COPY_RPC_FINAL ? note_taken_over(r, extent->extent)
                                                   : 0;
    case RECOVERY_ASK_DROP: /* later, of all */
        return 0;
    case RECOVERY_COPY:
        copy_soon(s, extent);
        return 0;
    case RECOVERY_MERGE:
        rc = recovery_merge(r, source, extent->extent);
        return rc == 0 ? note_taken_over(r, extent->extent) : rc;
    case RECOVERY_DROP:
        return store_delete_extent(store, extent->extent);
    case RECOVERY_FINALIZE:
        rc = store_finalize_extent(store, extent->extent, length);
        return rc == 0 || rc == -PLX_ENOTHERE ? 1 : rc;
    case RECOVERY_FINALIZE_THERE:
        rc = finalize_there(r, source, extent, length);
        return rc == 0 ? 1 : rc;
    case RECOVERY_WAIT:
        return -EAGAIN;
    case RECOVERY_CONFLICT:
        return -PLX_EDAMAGED;
    }
    return -PLX_EDAMAGED;
}

static async void see(struct sweep *s, const struct recovery_source *source,
                      struct copy_extent *extent)
{
    int rc = 1;
    for (uint32_t i = 0; i < STEPS_MAX && rc == 1; i++)
        rc = take_step(s, source, extent);
    if (rc == 0)
        return;
    s->is_incomplete = true;
    recovery_say(s->r, "group %u: extent %llx, node %llu: %s", s->group,
                 (unsigned long long)extent->extent.v, (unsigned long long)source->node,
                 rc == 1 ? "does not settle" : err_text(rc));
}

/* --- an inventory --- */

bool recovery_has_nothing(const struct copy_extent *copy)
{
    return copy->state == COPY_RPC_ABSENT ||
           (copy->state == COPY_RPC_STOPPED && copy->length == 0);
}

static void mark_seen(struct sweep *s, size_t *at, struct address extent)
{
    while (*at < s->local.count && s->local.at[*at].v < extent.v)
        ++*at;
    if (*at < s->local.count && address_equal(s->local.at[*at], extent))
        s->is_seen[*at] = true;
}

static async int sweep_source(struct sweep *s, const struct recovery_source *source)
{
    struct recovery *r = s->r;
    cleanup(free_ptr) struct copy_extent *page = malloc(COPY_RPC_PAGE_MAX * sizeof *page);
    struct address from = address_of(s->group, 0, 0);
    uint32_t count = 0;
    size_t local_at = 0;
    bool more = true;
    int rc = page != NULL ? 0 : -ENOMEM;
    while (rc == 0 && more) {
        rc = source_inventory(r, source, from, page, &count, &more);
        for (uint32_t i = 0; rc == 0 && i < count; i++) {
            from.v = page[i].extent.v + EXTENT_BLOCKS;
            if (!recovery_has_nothing(&page[i]))
                mark_seen(s, &local_at, page[i].extent);
            see(s, source, &page[i]);
            if (r->is_stopping)
                rc = -PLX_ECANCELLED;
        }
    }
    copies_drain(s);
    if (rc != 0) {
        s->is_incomplete = true;
        recovery_say(r, "group %u: node %llu: %s", s->group,
                     (unsigned long long)source->node, err_text(rc));
    }
    return rc;
}

/* --- what only this node has --- */

/* Nobody has it any more: every whole member says so. Called in the same moment in which
 * the state said that it was opened once, and is not listed any more: who is whole then
 * had it, as long as it was not dead. 0; -EAGAIN: one has it, or cannot be asked. */
static async int ask_all(struct recovery *r, struct address extent)
{
    struct recovery_source sources[REPLICAS_MAX];
    uint32_t count = 0;
    if (!recovery_sources(r, address_group(extent), sources, &count))
        return -EAGAIN;
    struct copy_description *d = malloc(sizeof *d);
    int rc = d != NULL ? 0 : -ENOMEM;
    for (uint32_t i = 0; rc == 0 && i < count; i++) {
        rc = source_describe(r, &sources[i], extent, d);
        if (rc == 0 && !recovery_has_nothing(&d->extent))
            rc = -EAGAIN;
    }
    free(d);
    return rc;
}

static async int drop_one(struct sweep *s, struct address extent)
{
    struct recovery *r = s->r;
    struct recovery_facts facts = recovery_facts_of(r, extent, NULL);
    uint32_t length = 0;
    enum recovery_action action = recovery_decide(&facts, &length);
    if (action == RECOVERY_FINALIZE)
        return store_finalize_extent(r->options.store, extent, length);
    if (action == RECOVERY_ASK_DROP) {
        int rc = ask_all(r, extent);
        if (rc != 0)
            return rc;
    } else if (action != RECOVERY_DROP) {
        return 0;
    }
    const struct group_member *self = recovery_self(r, s->group);
    if (self == NULL || self->missing_since == 0)
        return 0;
    return store_delete_extent(r->options.store, extent);
}

static async void drop_unseen(struct sweep *s)
{
    for (size_t i = 0; i < s->local.count && !s->r->is_stopping; i++) {
        if (s->is_seen[i])
            continue;
        int rc = drop_one(s, s->local.at[i]);
        if (rc == 0)
            continue;
        s->is_incomplete = true;
        recovery_say(s->r, "group %u: extent %llx: %s", s->group,
                     (unsigned long long)s->local.at[i].v, err_text(rc));
    }
}

/* --- the group --- */

static async int sweep(struct sweep *s)
{
    struct recovery *r = s->r;
    recovery_say(r, "group %u", s->group);
    if (s->source_count == 0)
        recovery_say(r, "group %u: no whole member can be asked", s->group);
    for (uint32_t i = 0; i < s->source_count && !r->is_stopping; i++)
        sweep_source(s, &s->sources[i]);
    /* Only who has asked all of them knows what none of them has. */
    if (!s->is_incomplete && s->missing_since != 0)
        drop_unseen(s);
    r->status.waiting = s->waiting;
    if (s->waiting > 0 && !s->is_incomplete)
        recovery_say(r, "group %u: %u extents are still written without this node",
                     s->group, s->waiting);
    return r->is_stopping ? -PLX_ECANCELLED : 0;
}

static async int propose(struct sweep *s)
{
    struct recovery *r = s->r;
    struct cluster_command command = {.op = CLUSTER_GROUP_WHOLE,
                                      .group = s->group,
                                      .node = r->options.node,
                                      .number = s->missing_since};
    struct cluster_result result;
    int rc = store_settle(r->options.store);
    if (rc == 0)
        rc = r->options.view.submit(r->options.view.arg, &command, &result);
    if (rc == 0)
        log_info(r->options.loop, "recovery: whole in group %u", s->group);
    else if (rc == -PLX_EPRECONDITION)
        rc = -EAGAIN; /* marked again, or an extent was opened without this node */
    return rc;
}

/* Another sweep, or what came of it. */
static async int sweep_once(struct recovery *r, uint16_t group)
{
    struct sweep *s = &r->sweep;
    int rc = sweep_begin(r, group, s);
    if (rc == 0)
        rc = sweep(s);
    if (rc == 0 && (s->is_incomplete || (s->waiting > 0 && !s->has_changed)))
        rc = -EAGAIN;
    else if (rc == 0 && s->has_changed)
        rc = 1;
    else if (rc == 0)
        rc = s->missing_since != 0 ? propose(s) : note_united(r, s);
    sweep_end(s);
    return rc == -PLX_EEXISTS ? 0 : rc;
}

async int recovery_group(struct recovery *r, uint16_t group)
{
    int rc = 1;
    for (uint32_t i = 0; i < SWEEPS_MAX && rc == 1; i++)
        rc = sweep_once(r, group);
    return rc == 1 ? -EAGAIN : rc;
}

async void recovery_survey(struct recovery *r, uint16_t group)
{
    struct recovery_source sources[REPLICAS_MAX];
    uint32_t source_count, count = 0;
    struct address from = address_of(group, 0, 0);
    bool more = true;
    struct copy_extent *page = malloc(COPY_RPC_PAGE_MAX * sizeof *page);
    (void)recovery_sources(r, group, sources, &source_count);
    while (page != NULL && source_count > 0 && more &&
           source_inventory(r, &sources[0], from, page, &count, &more) == 0)
        for (uint32_t i = 0; i < count; i++) {
            struct recovery_facts facts = recovery_facts_of(r, page[i].extent, &page[i]);
            uint32_t length;
            from.v = page[i].extent.v + EXTENT_BLOCKS;
            if (recovery_decide(&facts, &length) == RECOVERY_COPY)
                recovery_count(r, 1, (int64_t)page[i].live * BLOCK_SIZE);
        }
    free(page);
}

/* --- afterwards, and elsewhere --- */

async void recovery_settle(struct recovery *r, uint16_t group,
                           const struct address_list *taken_over)
{
    struct recovery_source sources[REPLICAS_MAX];
    uint32_t count = 0;
    (void)recovery_sources(r, group, sources, &count);
    for (size_t i = 0; i < taken_over->count && !r->is_stopping; i++) {
        struct address extent = taken_over->at[i];
        for (uint32_t j = 0; j < count; j++)
            (void)recovery_merge(r, &sources[j], extent);
        struct recovery_facts facts = recovery_facts_of(r, extent, NULL);
        /* It came from one of them: if none has it, it died since; unless only the one
         * had it, who is away now. */
        if (facts.local.state == COPY_RPC_FINAL && !facts.is_listed && !facts.is_unsure &&
            recovery_self(r, group) != NULL && ask_all(r, extent) == 0)
            (void)store_delete_extent(r->options.store, extent);
    }
}
