/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies here that no sweep sees to: of groups that this node has left, and those that
 * are not final.
 *
 * Happy path: the state has the length of a listed extent, and the copy ends there. One
 * that is not listed any more is final on those that were whole when it left the list. A
 * node that became whole after that, and was in its write set, has all of it, but may
 * not have heard where it ends: then the other whole members say so. As long as it does
 * not know it can trim nothing, and nobody can become whole from it. A copy here that
 * ends before the length, though this node is whole, is replaced by one of theirs. If one
 * of them has nothing of it, and none has it final, it ended with nothing, or is dead.
 *
 * What can fail: a whole member cannot be asked; that is for a later pass. Or none of
 * them has a final copy: all that had one were declared lost. Then the longest copy is
 * the one that is kept, as it is, and the others copy it. Of members that were all taken
 * for whole after such a loss one may have been away, and marked, before it was asked: it
 * is waited for, too.
 */
#include "replication/recovery_internal.h"

/* --- groups that were left --- */

async int recovery_leave(struct recovery *r, uint16_t group)
{
    struct sweep s = {.r = r, .group = group};
    bool is_kept = false;
    int rc = sweep_list_local(&s);
    for (size_t i = 0; rc == 0 && i < s.local.count; i++) {
        struct recovery_facts facts = recovery_facts_of(r, s.local.at[i], NULL);
        if (recovery_self(r, group) != NULL)
            break;
        if (r->is_stopping)
            rc = -PLX_ECANCELLED;
        else if (!facts.is_opened || facts.is_listed)
            is_kept = true; /* a take-over may ask for it */
        else
            rc = store_delete_extent(r->options.store, s.local.at[i]);
    }
    sweep_end(&s);
    return rc == 0 && is_kept ? -EAGAIN : rc;
}

/* --- copies that are not final --- */

/* The other whole members' copies of an extent. */
struct others {
    struct sweep sweep; /* whom a copy is asked of */
    bool has_final, has_all;
    bool lacks; /* a whole one has nothing of it */
    struct copy_extent final;
    uint32_t longest;
    bool has_end; /* it ends there on a member that is not whole */
    uint32_t end;
};

/* No other member is whole, in reach or not. */
static bool is_only_whole(const struct recovery *r, uint16_t group)
{
    const struct cluster_group *g = cluster_group_by_id(recovery_state(r), group);
    for (uint32_t i = 0; g != NULL && i < g->member_count; i++) {
        if (g->members[i].missing_since == 0 && g->members[i].node != r->options.node)
            return false;
    }
    return true;
}

/* What each of them has, and which of them have it as it should be. */
static async int look_at_others(struct recovery *r, struct address extent,
                                struct others *o)
{
    struct copy_description *d = malloc(sizeof *d);
    struct recovery_source all[REPLICAS_MAX];
    uint32_t count = 0;
    int rc = d != NULL ? 0 : -ENOMEM;
    uint16_t group = address_group(extent);
    o->has_all = recovery_sources(r, group, all, &count) || is_only_whole(r, group);
    for (uint32_t i = 0; rc == 0 && i < count; i++) {
        if (source_describe(r, &all[i], extent, d) != 0) {
            o->has_all = false;
            continue;
        }
        o->longest = d->extent.length > o->longest ? d->extent.length : o->longest;
        o->lacks |= recovery_has_nothing(&d->extent);
        if (d->extent.state != COPY_RPC_FINAL)
            continue;
        o->has_final = true;
        o->final = d->extent;
        o->sweep.sources[o->sweep.source_count++] = all[i];
    }
    free(d);
    return rc;
}

static async void look_at_missing_one(struct recovery *r, const struct copy_extent *local,
                                      uint64_t member, struct others *o)
{
    const struct cluster_node *node = cluster_node_by_id(recovery_state(r), member);
    struct recovery_source source = {.node = member};
    struct copy_extent there;
    int rc = node != NULL && cluster_node_is_usable(node) ? 0 : -EHOSTUNREACH;
    if (rc == 0) {
        source.store = node->store;
        rc = source_info(r, &source, local->extent, local->disk, &there);
    }
    if (rc != 0) {
        o->has_all = false;
        recovery_say(r, "extent %llx may go on on node %llu: %s",
                     (unsigned long long)local->extent.v, (unsigned long long)member,
                     err_text(rc));
        return;
    }
    o->longest = there.length > o->longest ? there.length : o->longest;
    if (there.state == COPY_RPC_FINAL) {
        o->has_end = true;
        o->end = there.length;
    }
}

/* One that was taken for whole, and is not any more, may know where the extent ends, or
 * be the only one that has all of it. */
static async void look_at_missing(struct recovery *r, struct address extent,
                                  struct others *o)
{
    const struct cluster_group *g = cluster_group_by_id(recovery_state(r),
                                                        address_group(extent));
    const struct copy_extent local = recovery_local(r, extent);
    uint64_t missing[REPLICAS_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; g != NULL && i < g->member_count; i++) {
        if (g->members[i].missing_since != 0 && g->members[i].node != r->options.node)
            missing[count++] = g->members[i].node;
    }
    for (uint32_t i = 0; i < count; i++)
        look_at_missing_one(r, &local, missing[i], o);
}

/* Where the others end; what they have more is copied. */
static async int end_as_others(struct recovery *r, struct others *o,
                               const struct copy_extent *local)
{
    struct address extent = local->extent;
    struct copier copier = {.r = r, .sweep = &o->sweep, .extent = o->final};
    if (local->length > 0 && local->nonce != o->final.nonce)
        return -PLX_EDAMAGED;
    if (local->length < o->final.length)
        return recovery_copy(&copier);
    int rc = store_finalize_extent(r->options.store, extent, o->final.length);
    for (uint32_t i = 0; rc == 0 && i < o->sweep.source_count; i++)
        rc = recovery_merge(r, &o->sweep.sources[i], extent);
    return rc;
}

/* Those that are whole; and the others, if one of these may have what no whole one has.
 * Who becomes whole meanwhile may have been asked as neither. */
static async int look_at_all(struct recovery *r, struct address extent, struct others *o)
{
    const struct cluster_group *g = cluster_group_by_id(recovery_state(r),
                                                        o->sweep.group);
    uint64_t others = g != NULL ? recovery_others(r, g) : 0;
    int rc = look_at_others(r, extent, o);
    if (rc == 0 && recovery_facts_of(r, extent, NULL).is_unsure)
        look_at_missing(r, extent, o);
    g = cluster_group_by_id(recovery_state(r), o->sweep.group);
    o->has_all = o->has_all && g != NULL && recovery_others(r, g) == others;
    return rc;
}

static async int end_unlisted(struct recovery *r, struct address extent)
{
    uint16_t group = address_group(extent);
    uint32_t length = 0;
    bool is_scanned;
    struct others *o = calloc(1, sizeof *o);
    if (o == NULL)
        return -ENOMEM;
    o->sweep.group = group;
    /* Nobody writes to it any more. */
    int rc = store_stop_extent(r->options.store, extent, &length, &is_scanned);
    if (rc == 0)
        rc = look_at_all(r, extent, o);
    struct recovery_facts facts = recovery_facts_of(r, extent, NULL);
    const struct group_member *self = recovery_self(r, group);
    if (rc == 0 &&
        (self == NULL || self->missing_since != 0 || facts.local.state == COPY_RPC_FINAL))
        rc = 0; /* it was seen to meanwhile, or will be */
    else if (rc == 0 && o->has_final)
        rc = end_as_others(r, o, &facts.local);
    else if (rc == 0 && o->has_all && o->lacks && !facts.is_unsure)
        rc = store_delete_extent(r->options.store, extent);
    else if (rc == 0 && o->has_all && facts.local.length >= o->longest)
        rc = store_finalize_extent(r->options.store, extent,
                                   o->has_end ? o->end : facts.local.length);
    else if (rc == 0)
        rc = -EAGAIN;
    free(o);
    return rc;
}

/* A copy whose tail rotted while it was written: a restart stopped it too early, on a
 * node that was not away for long, and so is whole still. */
static async int fill_up(struct recovery *r, struct address extent)
{
    struct others *o = calloc(1, sizeof *o);
    if (o == NULL)
        return -ENOMEM;
    o->sweep.group = address_group(extent);
    int rc = look_at_others(r, extent, o);
    struct recovery_facts facts = recovery_facts_of(r, extent, NULL);
    if (rc == 0 && facts.local.state == COPY_RPC_FINAL)
        rc = 0; /* it was seen to meanwhile */
    else if (rc == 0)
        rc = o->has_final && facts.has_length ? end_as_others(r, o, &facts.local)
                                              : -EAGAIN;
    free(o);
    return rc;
}

async int recovery_end(struct recovery *r, struct address extent)
{
    struct recovery_facts facts = recovery_facts_of(r, extent, NULL);
    const struct group_member *self = recovery_self(r, address_group(extent));
    bool has_left = facts.is_opened && !facts.is_listed;
    bool is_whole = self != NULL && self->missing_since == 0;
    int rc = 0;
    if (facts.local.state == COPY_RPC_ABSENT || facts.local.state == COPY_RPC_FINAL)
        return 0;
    if (facts.has_length)
        rc = store_finalize_extent(r->options.store, extent, facts.length);
    else if (has_left && planted(PLANT_COPY_DROPPED))
        rc = store_delete_extent(r->options.store, extent);
    else if (has_left && recovery_has_nothing(&facts.local))
        rc = store_delete_mark(r->options.store, extent); /* nobody can create it */
    else if (has_left && facts.has_disk && is_whole)
        rc = end_unlisted(r, extent);
    if (rc == -PLX_ENOTHERE && facts.has_length && is_whole)
        return fill_up(r, extent);
    return rc == -PLX_ENOTHERE || rc == -PLX_EMISSING ? 0 : rc;
}
