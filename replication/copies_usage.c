/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much each disk uses, wherever it lies, one copy of each block counted.
 *
 * Happy path: each group is counted by one of its whole members, this node if it is one;
 * every member is asked once, for all groups that it counts.
 *
 * What can fail: a member does not answer, or a group has no whole one that is up; then
 * it is missing, and that is said. A node that is cut off from many does not wait for
 * each of them.
 */
#include "replication/copies_internal.h"

/* After this those that there is no connection to are not asked any more. */
#define UNREACHED_NS (2 * NS_PER_S)

struct counter { /* who counts a group */
    uint64_t node;
    uint16_t group;
};

struct usage {
    struct copies *copies;
    struct disk_blocks *disks;
    size_t count, cap;
    uint64_t begun_ns;
    bool is_complete;
};

static int compare_counters(const void *a, const void *b)
{
    const struct counter *x = a, *y = b;
    if (x->node != y->node)
        return x->node < y->node ? -1 : 1;
    return (int)x->group - (int)y->group;
}

static uint64_t counter_of(const struct copies *copies, uint16_t group)
{
    struct copies_where where = copies_where(copies, address_of(group, 0, 0));
    uint64_t node = 0;
    for (uint32_t i = 0; i < where.count; i++) {
        bool may = where.members[i].is_whole && where.members[i].is_usable;
        if (may && (node == 0 || where.members[i].node == copies->node))
            node = where.members[i].node;
    }
    return node;
}

static int collect_counters(struct usage *usage, struct counter **ret_counters,
                            uint32_t *ret_count)
{
    const struct cluster_state *state = cluster_state(usage->copies->cluster);
    const struct cluster_group *group = NULL;
    struct counter *counters =
        malloc((cluster_group_count(state) + 1U) * sizeof *counters);
    uint32_t count = 0;
    if (counters == NULL)
        return -ENOMEM;
    while ((group = cluster_group_next(state, group)) != NULL) {
        uint64_t node = counter_of(usage->copies, group->id);
        if (node != 0)
            counters[count++] = (struct counter){node, group->id};
        else
            usage->is_complete = false;
    }
    if (count > 0)
        qsort(counters, count, sizeof *counters, compare_counters);
    *ret_counters = counters;
    *ret_count = count;
    return 0;
}

static int make_room(struct usage *usage)
{
    if (usage->cap - usage->count >= REPLICA_USAGE_MAX)
        return 0;
    size_t cap = usage->count + REPLICA_USAGE_MAX + usage->cap / 2;
    struct disk_blocks *more = reallocarray(usage->disks, cap, sizeof *more);
    if (more == NULL)
        return -ENOMEM;
    usage->disks = more;
    usage->cap = cap;
    return 0;
}

static int compare_disks(const void *a, const void *b)
{
    const struct disk_blocks *x = a, *y = b;
    return x->disk < y->disk ? -1 : x->disk > y->disk;
}

static void add_up(struct usage *usage)
{
    size_t kept = 0;
    if (usage->count > 0)
        qsort(usage->disks, usage->count, sizeof *usage->disks, compare_disks);
    for (size_t i = 0; i < usage->count; i++) {
        if (kept > 0 && usage->disks[kept - 1].disk == usage->disks[i].disk)
            usage->disks[kept - 1].live += usage->disks[i].live;
        else
            usage->disks[kept++] = usage->disks[i];
    }
    usage->count = kept;
}

/* One node's part: all of it, or nothing. */
static async int ask_node(struct usage *usage, struct replica *replica,
                          struct slice groups)
{
    size_t before = usage->count;
    uint64_t after = 0;
    bool more = true;
    int rc = 0;
    while (rc == 0 && more) {
        uint32_t count = 0;
        rc = make_room(usage);
        if (rc == 0)
            rc = replica->ops->usage(replica, groups, after,
                                     usage->disks + usage->count, &count, &more);
        if (rc != 0)
            break;
        usage->count += count;
        if (count > 0)
            after = usage->disks[usage->count - 1].disk;
    }
    if (rc == 0)
        add_up(usage); /* so it grows with disks, not with nodes */
    else
        usage->count = before;
    return rc;
}

static bool is_hopeless(const struct usage *usage, uint64_t node)
{
    const struct copies *copies = usage->copies;
    return node != copies->node && copies->rpc != NULL &&
           !rpc_is_connected(copies->rpc, node) &&
           loop_now_ns(copies->loop) - usage->begun_ns >= UNREACHED_NS;
}

static async int ask_all(struct usage *usage, const struct counter *counters,
                         uint32_t count, struct buffer *buffer)
{
    for (uint32_t at = 0, n; at < count; at += n) {
        for (n = 0; at + n < count && counters[at + n].node == counters[at].node; n++) {
            le16 group = le16_of(counters[at + n].group);
            memcpy(buffer->data + n * sizeof group, &group, sizeof group);
        }
        struct slice groups = {.buffer = buffer, .len = n * (uint32_t)sizeof(le16)};
        struct copies_member *member = copies_member(usage->copies, counters[at].node);
        int rc = -EHOSTUNREACH;
        if (member != NULL && !is_hopeless(usage, member->node))
            rc = ask_node(usage, member->replica, groups);
        if (rc == -ENOMEM)
            return rc;
        if (rc != 0)
            usage->is_complete = false;
    }
    return 0;
}

async int copies_usage(struct copies *copies, struct disk_blocks **ret_disks,
                       size_t *ret_count, bool *ret_complete)
{
    struct usage usage = {
        .copies = copies, .begun_ns = loop_now_ns(copies->loop), .is_complete = true};
    struct counter *counters = NULL;
    struct buffer *groups = NULL;
    uint32_t count = 0;
    int rc = collect_counters(&usage, &counters, &count);
    if (rc == 0) /* a group each, all at one node */
        groups = buffer_create(copies->buffers, (count + 1U) * sizeof(le16));
    if (rc == 0 && groups == NULL)
        rc = -PLX_ELIMIT;
    if (rc == 0)
        rc = ask_all(&usage, counters, count, groups);
    if (rc == 0) {
        *ret_disks = take(usage.disks);
        *ret_count = usage.count;
        *ret_complete = usage.is_complete;
    }
    free(usage.disks);
    free(counters);
    buffer_put(groups);
    return rc;
}
