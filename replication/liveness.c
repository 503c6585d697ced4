/* SPDX-License-Identifier: Apache-2.0 */
/* Windows of silence. See the drawing in liveness.h. */
#include "replication/liveness.h"

#include "replication/cluster_internal.h"

void liveness_init(struct liveness *l, uint64_t out_ns)
{
    *l = (struct liveness){.out_ns = out_ns == 0 ? LIVENESS_OUT_S * NS_PER_S : out_ns};
}

void liveness_done(struct liveness *l)
{
    free(take(l->nodes));
    l->count = l->cap = 0;
}

static void windows_restart(struct liveness *l, uint64_t now_ns)
{
    for (uint32_t i = 0; i < l->count; i++) {
        l->nodes[i].heard_ns = now_ns;
        l->nodes[i].lost_ns = 0;
    }
}

void liveness_begin(struct liveness *l, uint64_t now_ns)
{
    l->tick_ns = now_ns;
    windows_restart(l, now_ns);
    for (uint32_t i = 0; i < l->count; i++) {
        l->nodes[i].bad_ns = 0;
        l->nodes[i].has_spoken = l->nodes[i].is_broken = false;
    }
}

/* The place of the first one with this id or a higher one. */
static uint32_t place_of(const struct liveness *l, uint64_t id)
{
    uint32_t low = 0, high = l->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (l->nodes[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct liveness_node *liveness_find(const struct liveness *l, uint64_t node)
{
    uint32_t place = place_of(l, node);
    return place < l->count && l->nodes[place].id == node ? &l->nodes[place] : NULL;
}

void liveness_heard(struct liveness *l, uint64_t node, uint64_t now_ns, bool is_broken)
{
    uint32_t place = place_of(l, node);
    if (place == l->count || l->nodes[place].id != node)
        return;
    l->nodes[place].heard_ns = now_ns;
    l->nodes[place].has_spoken = true;
    l->nodes[place].is_broken = is_broken;
}

/* Makes the table one of the nodes that there are: both are in order of their ids. */
static void take_nodes(struct liveness *l, const struct cluster_state *state,
                       uint64_t now_ns)
{
    const struct cluster_node *node = NULL;
    uint32_t place = 0;
    while ((node = cluster_node_next(state, node)) != NULL) {
        if (node->flags & NODE_GONE)
            continue;
        while (place < l->count && l->nodes[place].id < node->id) {
            l->count--;
            memmove(&l->nodes[place], &l->nodes[place + 1],
                    (l->count - place) * sizeof *l->nodes);
        }
        if (place == l->count || l->nodes[place].id != node->id) {
            l->nodes = cluster_grow(l->nodes, &l->cap, l->count + 1, sizeof *l->nodes);
            memmove(&l->nodes[place + 1], &l->nodes[place],
                    (l->count - place) * sizeof *l->nodes);
            l->nodes[place] = (struct liveness_node){.id = node->id, .heard_ns = now_ns};
            l->count++;
        }
        place++;
    }
    l->count = place;
}

static bool is_silent(const struct liveness_node *node, uint64_t now_ns)
{
    uint64_t silent_ns = now_ns - node->heard_ns;
    return silent_ns >= LIVENESS_SILENT_MS * NS_PER_MS ||
           (silent_ns >= LIVENESS_LOST_MS * NS_PER_MS &&
            node->lost_ns >= LIVENESS_LOST_MS * NS_PER_MS);
}

void liveness_tick(struct liveness *l, const struct cluster_state *state, uint64_t now_ns,
                   bool (*is_connected)(void *arg, uint64_t node), void *arg)
{
    uint64_t since_ns = now_ns - l->tick_ns;
    l->tick_ns = now_ns;
    if (since_ns >= LIVENESS_LATE_MS * NS_PER_MS) {
        windows_restart(l, now_ns);
        since_ns = LIVENESS_TICK_MS * NS_PER_MS;
    }
    take_nodes(l, state, now_ns);
    for (uint32_t i = 0; i < l->count; i++) {
        struct liveness_node *node = &l->nodes[i];
        node->lost_ns = is_connected(arg, node->id) ? 0 : node->lost_ns + since_ns;
        if (is_silent(node, now_ns))
            node->has_spoken = false;
        if (node->has_spoken && !node->is_broken)
            node->bad_ns = 0;
        else if (is_silent(node, now_ns) || node->is_broken || node->bad_ns != 0)
            node->bad_ns += since_ns;
    }
}

unsigned liveness_flags(const struct liveness *l, const struct cluster_node *node)
{
    const struct liveness_node *known = liveness_find(l, node->id);
    if (known == NULL)
        return node->flags;
    unsigned other = node->flags & ~(unsigned)(NODE_DOWN | NODE_OUT);
    if (known->bad_ns != 0)
        return other | NODE_DOWN | (node->flags & NODE_OUT) |
               (known->bad_ns >= l->out_ns ? NODE_OUT : 0);
    /* What an earlier leader saw stands until the node is heard. */
    return known->has_spoken ? other : node->flags;
}
