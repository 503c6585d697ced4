/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What there is, on all members.
 *
 * Happy path: every member of any group is asked for the extents of the disk, page by
 * page, one member after the other; of copies of the same extent one is kept.
 *
 * What can fail: a member is out of reach. What others have is told all the same, and
 * that it is not all. Memory ends it.
 *
 * Members come and go meanwhile; who came is not asked, and then the answer may not be
 * complete, which is said of what the state was at the end.
 */
#include "replication/copies_internal.h"

#define INFOS_MAX (1U << 21) /* eight times the largest disk's */

struct listing {
    struct copies *copies;
    uint64_t disk;
    struct extent_info *infos;
    size_t count, cap;
    uint64_t *asked; /* nodes that answered, in order */
    size_t asked_count;
};

bool copies_are_alone(const struct copies *copies)
{
    return copies->is_alone;
}

bool copies_only_here(const struct copies *copies, struct address extent)
{
    if (copies->is_alone)
        return true;
    struct copies_where where = copies_where(copies, extent);
    return where.count == 1 && where.members[0].node == copies->node;
}

/* --- asking --- */

static int make_room(struct listing *listing)
{
    if (listing->cap - listing->count >= REPLICA_LIST_MAX)
        return 0;
    size_t cap = listing->cap == 0 ? REPLICA_LIST_MAX : listing->cap * 2;
    if (cap > INFOS_MAX)
        return -PLX_ELIMIT;
    struct extent_info *more = reallocarray(listing->infos, cap, sizeof *more);
    if (more == NULL)
        return -ENOMEM;
    listing->infos = more;
    listing->cap = cap;
    return 0;
}

/* -ENOMEM, -PLX_ELIMIT, or why it did not answer. */
static async int ask_member(struct listing *listing, struct replica *replica)
{
    struct address from = ADDRESS_NULL;
    bool more = true;
    while (more) {
        uint32_t count = 0;
        int rc = make_room(listing);
        if (rc == 0)
            rc = replica->ops->list(replica, listing->disk, from, REPLICA_LIST_MAX,
                                    listing->infos + listing->count, &count, &more);
        if (rc != 0)
            return rc;
        listing->count += count;
        if (count > 0)
            from.v = listing->infos[listing->count - 1].extent.v + EXTENT_BLOCKS;
    }
    return 0;
}

static int compare_nodes(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

static bool has_answered(const struct listing *listing, uint64_t node)
{
    return bsearch(&node, listing->asked, listing->asked_count, sizeof node,
                   compare_nodes) != NULL;
}

/* Members of groups that should answer, each once, in order. */
static int collect_nodes(const struct copies *copies, uint64_t **ret_nodes,
                         size_t *ret_count)
{
    const struct cluster_state *state = cluster_state(copies->cluster);
    const struct cluster_group *group = NULL;
    uint32_t groups = cluster_group_count(state);
    uint64_t *nodes = malloc((groups + 1) * REPLICAS_MAX * sizeof *nodes);
    size_t all = 0, count = 0;
    if (nodes == NULL)
        return -ENOMEM;
    while ((group = cluster_group_next(state, group)) != NULL) {
        for (uint32_t i = 0; i < group->member_count; i++)
            nodes[all++] = group->members[i].node;
    }
    if (all > 0)
        qsort(nodes, all, sizeof *nodes, compare_nodes);
    for (size_t i = 0; i < all; i++) {
        const struct cluster_node *node = cluster_node_by_id(state, nodes[i]);
        bool is_new = i == 0 || nodes[i] != nodes[i - 1];
        if (is_new && (nodes[i] == copies->node ||
                       (node != NULL && cluster_node_is_usable(node))))
            nodes[count++] = nodes[i];
    }
    *ret_nodes = nodes;
    *ret_count = count;
    return 0;
}

/* --- the answer --- */

static int compare_infos(const void *a, const void *b)
{
    const struct extent_info *left = a, *right = b;
    if (left->extent.v != right->extent.v)
        return left->extent.v < right->extent.v ? -1 : 1;
    if (left->state != right->state)
        return left->state > right->state ? -1 : 1;
    return left->live < right->live ? -1 : left->live > right->live;
}

/* Of each extent the copy that is furthest on its way: it only goes that way. */
static void keep_one_each(struct listing *listing)
{
    size_t kept = 0;
    if (listing->count > 0)
        qsort(listing->infos, listing->count, sizeof *listing->infos, compare_infos);
    for (size_t i = 0; i < listing->count; i++) {
        if (kept > 0 &&
            address_equal(listing->infos[i].extent, listing->infos[kept - 1].extent))
            continue;
        listing->infos[kept++] = listing->infos[i];
    }
    listing->count = kept;
}

/* Who is up answered, and in each group a whole one: what it lacks is gone everywhere. */
static bool is_complete(const struct listing *listing)
{
    const struct cluster_state *state = cluster_state(listing->copies->cluster);
    const struct cluster_group *group = NULL;
    while ((group = cluster_group_next(state, group)) != NULL) {
        struct copies_where where =
            copies_where(listing->copies, address_of(group->id, 0, 0));
        bool has_whole = false;
        for (uint32_t i = 0; i < where.count; i++) {
            bool answered = has_answered(listing, where.members[i].node);
            if (where.members[i].is_usable && !answered)
                return false;
            has_whole = has_whole || (answered && where.members[i].is_whole);
        }
        if (!has_whole)
            return false;
    }
    return true;
}

static async int ask_all(struct listing *listing)
{
    uint64_t *nodes;
    size_t count;
    int rc = collect_nodes(listing->copies, &nodes, &count);
    if (rc != 0)
        return rc;
    listing->asked = nodes; /* filled as they answer; never ahead of where we read */
    for (size_t i = 0; i < count; i++) {
        uint64_t node = nodes[i];
        struct copies_member *member = copies_member(listing->copies, node);
        size_t before = listing->count;
        if (member == NULL)
            continue;
        rc = ask_member(listing, member->replica);
        if (rc == -ENOMEM || rc == -PLX_ELIMIT)
            return rc;
        if (rc == 0)
            nodes[listing->asked_count++] = node;
        else
            listing->count = before;
    }
    return 0;
}

async int copies_list(struct copies *copies, uint64_t disk,
                      struct extent_info **ret_infos, size_t *ret_count,
                      bool *ret_complete)
{
    struct listing listing = {.copies = copies, .disk = disk};
    int rc = ask_all(&listing);
    if (rc == 0) {
        keep_one_each(&listing);
        *ret_infos = take(listing.infos);
        *ret_count = listing.count;
        *ret_complete = is_complete(&listing);
    }
    free(listing.infos);
    free(listing.asked);
    return rc;
}
