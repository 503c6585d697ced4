/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Members: which nodes there are, and which of them a new extent gets.
 *
 * A node's member is made when it is first asked for, and kept as long as the process:
 * logs hold on to it. What it is for is one store, the one that the cluster's state names
 * for the node; another store in its place is another node.
 *
 * What can fail: memory for a member; then the node is not found, this time.
 *
 * On close nobody may have anything under way.
 */
#include "replication/copies_internal.h"

static int by_node(const struct copies_member *a, const struct copies_member *b)
{
    return a->node < b->node ? -1 : a->node > b->node;
}

RB_GENERATE_INTERNAL(copies_member_tree, copies_member, by_node, by_node,
                     static attr_unused)

static struct copies *copies_of(struct replica_directory *directory)
{
    return container_of(directory, struct copies, directory);
}

static const struct cluster_state *state_of(const struct copies *copies)
{
    return cluster_state(copies->cluster);
}

/* --- members --- */

int copies_member_add(struct copies *copies, struct replica *replica)
{
    struct copies_member *member = calloc(1, sizeof *member);
    if (member == NULL)
        return -ENOMEM;
    member->replica = replica;
    member->node = replica->node;
    RB_INSERT(copies_member_tree, &copies->others, member);
    copies->is_alone = false;
    return 0;
}

static struct copies_member *make_member(struct copies *copies,
                                         const struct cluster_node *node)
{
    if (copies->rpc == NULL)
        return NULL;
    struct replica *replica = replica_remote_create(copies->rpc, node->id, node->store);
    if (replica == NULL)
        return NULL;
    if (copies_member_add(copies, replica) != 0) {
        replica->ops->destroy(replica);
        return NULL;
    }
    struct copies_member key = {.node = node->id};
    return RB_FIND(copies_member_tree, &copies->others, &key);
}

struct copies_member *copies_member(struct copies *copies, uint64_t id)
{
    if (id == copies->node)
        return &copies->local;
    const struct cluster_node *node = cluster_node_by_id(state_of(copies), id);
    if (node == NULL || (node->flags & (NODE_GONE | NODE_WITNESS)))
        return NULL;
    struct copies_member key = {.node = id};
    struct copies_member *member = RB_FIND(copies_member_tree, &copies->others, &key);
    return member != NULL ? member : make_member(copies, node);
}

void copies_member_failed(struct copies *copies, struct copies_member *member)
{
    member->avoid_until_ns = loop_now_ns(copies->loop) + COPIES_AVOID_NS;
}

bool copies_is_unreached(int code)
{
    return code < 0 && code != -PLX_EDEAD && code != -PLX_ENOTHERE &&
           code != -PLX_EMISSING && code != -PLX_ECHECKSUM && code != -EIO;
}

struct copies_where copies_where(const struct copies *copies, struct address extent)
{
    const struct cluster_state *state = state_of(copies);
    const struct cluster_group *group = cluster_group_by_id(state, address_group(extent));
    struct copies_where where = {0};
    where.is_unsure = group != NULL && address_sequence(extent) < group->unsure_below;
    for (uint32_t i = 0; group != NULL && i < group->member_count; i++) {
        const struct group_member *member = &group->members[i];
        const struct cluster_node *node = cluster_node_by_id(state, member->node);
        where.members[where.count].node = member->node;
        where.members[where.count].is_whole = member->missing_since == 0;
        where.members[where.count].is_usable =
            member->node == copies->node ||
            (node != NULL && cluster_node_is_usable(node));
        where.count++;
    }
    return where;
}

/* --- the directory --- */

static struct replica *find(struct replica_directory *directory, uint64_t node)
{
    struct copies_member *member = copies_member(copies_of(directory), node);
    return member != NULL ? member->replica : NULL;
}

static bool in_reach(struct replica_directory *directory, uint64_t id)
{
    struct copies *copies = copies_of(directory);
    if (id == copies->node)
        return true;
    const struct cluster_node *node = cluster_node_by_id(state_of(copies), id);
    const struct copies_member *member = copies_member(copies, id);
    if (node == NULL || member == NULL || !cluster_node_is_usable(node))
        return false;
    return (copies->rpc != NULL && rpc_is_connected(copies->rpc, id)) ||
           loop_now_ns(copies->loop) >= member->avoid_until_ns;
}

static bool is_connected(struct replica_directory *directory, uint64_t id,
                         uint64_t *ret_since_ns)
{
    const struct copies *copies = copies_of(directory);
    *ret_since_ns = copies->rpc != NULL ? rpc_opened_ns(copies->rpc, id) : 0;
    return copies->rpc != NULL && rpc_is_connected(copies->rpc, id);
}

static bool is_avoided(uint64_t node, const uint64_t *avoid, uint32_t avoid_count)
{
    for (uint32_t i = 0; i < avoid_count; i++) {
        if (avoid[i] == node)
            return true;
    }
    return false;
}

/* How well a group would do; the more the better. */
struct suitability {
    struct chosen chosen;
    bool has_local, is_full;
};

static struct suitability look_at(struct copies *copies,
                                  const struct cluster_pool *pool,
                                  const struct cluster_group *group,
                                  const uint64_t *avoid, uint32_t avoid_count)
{
    struct suitability found = {.chosen = {.group = group->id,
                                           .group_epoch = group->epoch}};
    struct chosen *chosen = &found.chosen;
    bool has_whole = false;
    for (uint32_t i = 0; i < group->member_count; i++) {
        uint64_t node = group->members[i].node;
        struct replica *replica = NULL;
        if (!is_avoided(node, avoid, avoid_count) && in_reach(&copies->directory, node))
            replica = find(&copies->directory, node);
        if (replica == NULL)
            continue;
        uint32_t at = chosen->count++;
        has_whole = has_whole || group->members[i].missing_since == 0;
        if (node == copies->node) { /* the nearest */
            found.has_local = true;
            memmove(&chosen->members[1], &chosen->members[0],
                    at * sizeof chosen->members[0]);
            at = 0;
        }
        chosen->members[at] = replica;
    }
    found.is_full = chosen->count == group->member_count;
    if (!has_whole || chosen->count < min_u32(pool->min_copies, group->member_count))
        chosen->count = 0;
    return found;
}

static int compare(const struct suitability *a, const struct suitability *b)
{
    if (a->has_local != b->has_local)
        return a->has_local ? 1 : -1;
    return (int)a->is_full - (int)b->is_full;
}

/* Of those that do equally well, any: a disk's extents lie in many groups then, and so do
 * those that were written at the same time. */
static struct chosen choose(struct replica_directory *directory, uint64_t disk_id,
                            const uint64_t *avoid, uint32_t avoid_count)
{
    struct copies *copies = copies_of(directory);
    const struct cluster_state *state = state_of(copies);
    const struct cluster_disk *disk = cluster_disk_by_id(state, disk_id);
    const struct cluster_pool *pool =
        disk != NULL ? cluster_pool_by_id(state, disk->pool) : NULL;
    const struct cluster_group *group = NULL;
    struct suitability best = {.chosen = {.count = 0}};
    uint64_t equals = 0;
    while (pool != NULL && (group = cluster_group_next(state, group)) != NULL) {
        if (group->pool != pool->id)
            continue;
        struct suitability found = look_at(copies, pool, group, avoid, avoid_count);
        if (found.chosen.count == 0)
            continue;
        int order = best.chosen.count == 0 ? 1 : compare(&found, &best);
        equals = order > 0 ? 1 : equals + (order == 0);
        if (order > 0 ||
            (order == 0 && loop_random_u64(copies->loop) % equals == 0))
            best = found;
    }
    return best.chosen;
}

struct replica_directory *copies_directory(struct copies *copies)
{
    return &copies->directory;
}

/* --- the whole --- */

int copies_create(const struct copies_options *options, struct copies **ret_copies)
{
    struct copies *copies = calloc(1, sizeof *copies);
    if (copies == NULL)
        return -ENOMEM;
    copies->loop = options->loop;
    copies->cluster = options->cluster;
    copies->store = options->store;
    copies->node = options->node;
    copies->rpc = options->rpc;
    copies->buffers = options->buffers;
    copies->slow_ns = (options->slow_ms != 0 ? options->slow_ms : COPIES_SLOW_MS) *
                      NS_PER_MS;
    copies->patience_ns =
        (options->patience_ms != 0 ? options->patience_ms : COPIES_PATIENCE_MS) *
        NS_PER_MS;
    copies->is_alone = options->rpc == NULL;
    copies->directory = (struct replica_directory){
        .find = find,
        .in_reach = in_reach,
        .is_connected = is_connected,
        .choose = choose,
    };
    RB_INIT(&copies->others);
    TAILQ_INIT(&copies->local_reads);
    copies->local.node = options->node;
    copies->local.replica = replica_local_create(options->store, options->node);
    if (copies->local.replica == NULL) {
        free(copies);
        return -ENOMEM;
    }
    copies->reads_elsewhere = metric_counter(copies->loop, "parallax_remote_reads_total",
                                             "Reads asked of other nodes");
    copies->reads_again = metric_counter(copies->loop, "parallax_reads_again_total",
                                         "Reads that another member was asked for, too");
    copies->bad_copies = metric_counter(copies->loop, "parallax_bad_copies_total",
                                        "Copies that did not have what they should");
    copies->mended_blocks = metric_counter(copies->loop, "parallax_mended_blocks_total",
                                           "Blocks written again from another copy");
    waitlist_init(&copies->mends_over);
    *ret_copies = copies;
    return 0;
}

void copies_destroy(struct copies *copies)
{
    struct copies_member *member, *next;
    if (copies == NULL)
        return;
    assert(TAILQ_EMPTY(&copies->local_reads) && !copies->mends_run);
    RB_FOREACH_SAFE (member, copies_member_tree, &copies->others, next) {
        RB_REMOVE(copies_member_tree, &copies->others, member);
        member->replica->ops->destroy(member->replica);
        free(member);
    }
    copies->local.replica->ops->destroy(copies->local.replica);
    free(copies);
}

void copies_on_bad(struct copies *copies,
                   void (*fn)(void *arg, const struct copies_bad *bad), void *arg)
{
    copies->bad_fn = fn;
    copies->bad_arg = arg;
}
