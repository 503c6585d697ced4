/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is done to all copies of an extent: blocks die, headers go, lengths become final.
 *
 * Happy path of a trim: the runs of one group become a payload, which goes to the whole
 * members, one after the other, and when these have it durably, to the others that are
 * up.
 *
 * In this order, because one that is not whole takes over from a whole one what it lacks.
 * What it has when the trim comes to it, it trims; what it gets later comes from a copy
 * that was trimmed before.
 *
 * Who is down and not whole is passed over, if that is so in a state that is not older
 * than what the others have done: it takes it over from them before it is whole, or when
 * it looks once more after that.
 *
 * What can fail: a member that counts does not answer, or says that an extent is not
 * final. All of it is to be done again then, and that is harmless: bits are only cleared.
 *
 * On close no such call may be under way.
 */
#include "replication/copies_internal.h"

/* --- one thing, done on all members --- */

struct all {
    struct copies *copies;
    async int (*run)(struct all *all, struct replica *replica, bool is_whole);
    struct slice payload; /* of a trim */
    uint32_t extent_count;
    struct address extent;
    uint32_t length;
    uint64_t done[REPLICAS_MAX]; /* nodes, on which it is */
    uint32_t done_count;
};

static bool is_done_on(const struct all *all, uint64_t node)
{
    for (uint32_t i = 0; i < all->done_count; i++) {
        if (all->done[i] == node)
            return true;
    }
    return false;
}

/* A store elsewhere that is out of service is not this node's. Its node is soon marked
 * as down. */
static int code_of(const struct copies *copies, const struct copies_member *member,
                   int code)
{
    bool is_local = member == &copies->local;
    return !is_local && code == -PLX_EFAILED ? -EHOSTUNREACH : code;
}

/* The state may have changed since the member was found. */
static async int run_on(struct all *all, uint64_t node, bool is_whole)
{
    struct copies_member *member = copies_member(all->copies, node);
    if (member == NULL)
        return -EHOSTUNREACH;
    int rc = all->run(all, member->replica, is_whole);
    if (rc != 0 && rc != -PLX_EPRECONDITION && copies_may_pass(rc))
        copies_member_failed(all->copies, member);
    return code_of(all->copies, member, rc);
}

/* The first member, if only whole ones are wanted: of these, on which it is still to be
 * done. NULL: there is none. Who is down and not whole is passed over. */
static const struct copies_at *next_member(const struct all *all,
                                           const struct copies_where *where,
                                           bool only_whole)
{
    for (uint32_t i = 0; i < where->count; i++) {
        const struct copies_at *at = &where->members[i];
        bool counts = at->is_whole || (at->is_usable && !only_whole);
        if (counts && !is_done_on(all, at->node))
            return at;
    }
    return NULL;
}

/* The group is looked at again after each: meanwhile one may have become whole, or be a
 * member since. */
static async int run_pass(struct all *all, struct address extent, bool only_whole)
{
    struct copies_where where = copies_where(all->copies, extent);
    const struct copies_at *at;
    while ((at = next_member(all, &where, only_whole)) != NULL) {
        uint64_t node = at->node;
        if (!at->is_usable) /* the last one that is whole */
            return -EHOSTUNREACH;
        if (all->done_count == REPLICAS_MAX)
            return -EAGAIN; /* members come and go */
        int rc = run_on(all, node, at->is_whole);
        if (rc != 0)
            return rc;
        all->done[all->done_count++] = node;
        where = copies_where(all->copies, extent);
    }
    return 0;
}

static async int run_passes(struct all *all, struct address extent)
{
    int rc = run_pass(all, extent, true);
    return rc == 0 ? run_pass(all, extent, false) : rc;
}

static bool has_passed_over(const struct all *all, struct address extent)
{
    struct copies_where where = copies_where(all->copies, extent);
    for (uint32_t i = 0; i < where.count; i++) {
        if (!is_done_on(all, where.members[i].node))
            return true;
    }
    return false;
}

/* This node may be behind: who is passed over may have become whole long ago. */
static async int run_all(struct all *all, struct address extent)
{
    if (all->copies->is_alone)
        return all->run(all, all->copies->local.replica, true);
    int rc = run_passes(all, extent);
    if (rc != 0 || !has_passed_over(all, extent))
        return rc;
    rc = cluster_barrier(all->copies->cluster);
    return rc == 0 ? run_passes(all, extent) : rc;
}

/* --- trims --- */

bool copies_can_trim(const struct copies *copies, struct address address)
{
    struct address extent = address_extent(address);
    struct extent_info info;
    if (!copies_only_here(copies, extent))
        return cluster_listed_extent(cluster_state(copies->cluster), extent, NULL) ==
               NULL;
    return store_extent_info(copies->store, extent, &info) < 0 ||
           info.state == EXTENT_FINAL;
}

uint64_t copies_writer(const struct copies *copies, struct address address)
{
    struct address extent = address_extent(address);
    struct extent_info info;
    uint64_t disk = 0;
    if (copies_can_trim(copies, extent))
        return 0;
    if (!copies_only_here(copies, extent))
        (void)cluster_listed_extent(cluster_state(copies->cluster), extent, &disk);
    else if (store_extent_info(copies->store, extent, &info) == 0)
        disk = info.disk;
    return disk;
}

static async int trim_alone(struct copies *copies, const struct block_run *runs,
                            uint32_t count, uint64_t *ret_blocks)
{
    uint64_t blocks = 0;
    int rc = 0;
    for (uint32_t at = 0, n; rc == 0 && at < count; at += n) {
        n = trims_of_extent(runs + at, count - at);
        rc = trims_clear(copies->store, runs + at, n);
        for (uint32_t i = 0; rc == 0 && i < n; i++)
            blocks += runs[at + i].count;
        if (rc == -PLX_EMISSING)
            rc = 0;
        task_yield();
    }
    *ret_blocks = blocks;
    return rc;
}

/* A copy that is not whole is left alone until it is final: whoever makes it whole takes
 * the live bits of a whole one over after that. */
static async int trim_on(struct all *all, struct replica *replica, bool is_whole)
{
    uint32_t not_final = 0;
    int rc = replica->ops->trim(replica, all->payload, all->extent_count, &not_final);
    if (rc == -PLX_EMISSING) /* another store answers there */
        return -EHOSTUNREACH;
    return rc == 0 && not_final > 0 && is_whole ? -PLX_EPRECONDITION : rc;
}

/* As many as there is room for, all of one group. */
static uint32_t fill(struct trims_writer *w, const struct block_run *runs, uint32_t count)
{
    uint16_t group = address_group(runs[0].address);
    uint32_t n = 0;
    while (n < count && address_group(runs[n].address) == group && trims_add(w, runs[n]))
        n++;
    return n;
}

#define RUN_BYTES_MAX 20U /* each in an extent of its own */

/* Some of the runs, from the first on. */
static async int trim_some(struct copies *copies, const struct block_run *runs,
                           uint32_t count, uint32_t *ret_done)
{
    uint64_t bytes = min_u64((uint64_t)count * RUN_BYTES_MAX, BUFFER_BYTES_MAX);
    struct buffer *buffer = buffer_create(copies->buffers, bytes);
    if (buffer == NULL)
        return -PLX_ELIMIT;
    struct trims_writer w = {.bytes = buffer->data, .cap = buffer->capacity};
    *ret_done = fill(&w, runs, count);
    assert(*ret_done > 0);
    struct all all = {.copies = copies,
                      .run = trim_on,
                      .payload = {.buffer = buffer, .len = (uint32_t)w.len},
                      .extent_count = w.extent_count};
    int rc = run_all(&all, runs[0].address);
    buffer_put(buffer);
    return rc;
}

async int copies_trim(struct copies *copies, const struct block_run *runs, uint32_t count,
                      uint64_t *ret_blocks)
{
    *ret_blocks = 0;
    if (copies->is_alone)
        return trim_alone(copies, runs, count, ret_blocks);
    for (uint32_t at = 0, n = 0; at < count; at += n) {
        int rc = trim_some(copies, runs + at, count - at, &n);
        if (rc != 0)
            return rc;
        for (uint32_t i = 0; i < n; i++)
            *ret_blocks += runs[at + i].count;
    }
    return 0;
}

/* --- headers, lengths --- */

static async int trim_headers_on(struct all *all, struct replica *replica, bool is_whole)
{
    int rc = replica->ops->trim_headers(replica, all->extent);
    if (rc == -PLX_EPRECONDITION && !is_whole)
        rc = 0;
    return rc == -PLX_EMISSING ? 0 : rc;
}

async int copies_trim_headers(struct copies *copies, struct address extent)
{
    struct all all = {.copies = copies, .run = trim_headers_on, .extent = extent};
    return run_all(&all, extent);
}

/* One that is gone lost all of its blocks, which is as final as can be. */
static async int finalize_on(struct all *all, struct replica *replica, bool is_whole)
{
    (void)is_whole;
    int rc = replica->ops->finalize(replica, all->extent, all->length);
    return rc == -PLX_EMISSING ? 0 : rc;
}

static bool is_whole_in(const struct copies_where *where, uint64_t node)
{
    for (uint32_t i = 0; i < where->count; i++) {
        if (where->members[i].node == node)
            return where->members[i].is_whole;
    }
    return false;
}

async int copies_finalize(struct copies *copies, const struct log_extent *extent)
{
    struct all all = {.copies = copies,
                      .run = finalize_on,
                      .extent = extent->extent,
                      .length = extent->length};
    int rc = 0;
    assert(extent->final);
    if (copies->is_alone)
        return finalize_on(&all, copies->local.replica, true);
    for (uint32_t i = 0; rc == 0 && i < extent->member_count; i++) {
        uint64_t id = extent->members[i];
        struct copies_where where = copies_where(copies, extent->extent);
        const struct cluster_node *node =
            cluster_node_by_id(cluster_state(copies->cluster), id);
        if (node == NULL || (node->flags & NODE_GONE))
            continue;
        if (id == copies->node || cluster_node_is_usable(node))
            rc = run_on(&all, id, true);
        else if (is_whole_in(&where, id))
            rc = -EHOSTUNREACH;
    }
    return rc;
}

bool copies_may_pass(int code)
{
    switch (code) {
    case -ETIMEDOUT:
    case -ECONNRESET:
    case -ECONNREFUSED:
    case -EHOSTUNREACH:
    case -ECANCELED:
    case -ESHUTDOWN:
    case -EAGAIN:
    case -ENOMEM:
    case -PLX_ELIMIT:
    case -PLX_EDENIED:
    case -PLX_EPRECONDITION:
    case -PLX_ENOLEADER:
    case -PLX_EUNKNOWN:
        return true;
    default:
        return false;
    }
}
