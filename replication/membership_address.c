/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the other nodes are. A node is its number and its certificate, which whoever
 * answers a connection has to show; an address says only where to look. So a wrong one
 * finds nobody, and cannot make one node of another.
 *
 * An address is heard of in three ways. The node itself says it when it greets; the state
 * lists it; and a process that begins gets what it kept, or was told by hand, when it
 * ended. The last two may be old: a node that was away may hear from others where it
 * finds nobody any more, and if all nodes have moved the state is wrong about all of them
 * until enough have found each other to change it. So what was found, or said by the
 * node, counts first; a connection that stands is not given up for what the log says; and
 * if there are two addresses, and the node is not found at one, the other is tried.
 */
#include <stdio.h>

#include "replication/membership_internal.h"

static struct known_node *known_find(const struct membership *m, uint64_t node)
{
    for (uint32_t i = 0; i < m->known_count; i++) {
        if (m->known[i].node == node)
            return &m->known[i];
    }
    return NULL;
}

static struct known_node *known_get(struct membership *m, uint64_t node)
{
    struct known_node *known = known_find(m, node);
    if (known != NULL)
        return known;
    known = realloc(m->known, (m->known_count + 1) * sizeof *known);
    if (known == NULL)
        return NULL;
    m->known = known;
    known += m->known_count++;
    *known = (struct known_node){.node = node};
    return known;
}

static void address_copy(char ret[DISK_NAME_MAX + 1], const char *address)
{
    snprintf(ret, DISK_NAME_MAX + 1, "%s", address);
}

/* From now on it is looked for there; "": nowhere. */
static void look_at(struct membership *m, struct known_node *known, const char *address)
{
    if (strcmp(known->address, address) == 0)
        return;
    int rc = rpc_set_address(m->rpc, known->node, address[0] != '\0' ? address : NULL);
    if (rc == 0)
        address_copy(known->address, address);
    else
        log_warning(m->loop, "node %llu: its address %s: %s",
                    (unsigned long long)known->node, address, err_text(rc));
}

/* Where to look for it at the next start. */
static const char *kept_address(const struct known_node *known)
{
    return known->found[0] != '\0' ? known->found : known->listed;
}

static void changed(struct membership *m)
{
    if (m->options.nodes_changed != NULL && m->cluster != NULL && !m->is_closing)
        m->options.nodes_changed(m->options.arg);
}

const char *membership_address_of(const struct membership *m, uint64_t node)
{
    const struct known_node *known = known_find(m, node);
    return known != NULL && known->address[0] != '\0' ? known->address : NULL;
}

void membership_learn(struct membership *m, uint64_t node, const char *address)
{
    struct known_node *known = node != m->self.node ? known_get(m, node) : NULL;
    if (known == NULL)
        return; /* without memory: it says so again */
    bool is_new = strcmp(kept_address(known), address) != 0;
    if (is_new && known->address[0] != '\0')
        log_info(m->loop, "node %llu: it was at %s, and is at %s now",
                 (unsigned long long)node, known->address, address);
    address_copy(known->found, address);
    look_at(m, known, address);
    if (is_new)
        changed(m);
}

void membership_found_at(struct membership *m, uint64_t node)
{
    struct known_node *known = known_find(m, node);
    if (known == NULL || known->address[0] == '\0')
        return;
    bool is_new = strcmp(kept_address(known), known->address) != 0;
    address_copy(known->found, known->address);
    if (is_new)
        changed(m);
}

void membership_look_elsewhere(struct membership *m)
{
    for (uint32_t i = 0; i < m->known_count; i++) {
        struct known_node *known = &m->known[i];
        if (rpc_is_connected(m->rpc, known->node))
            continue;
        bool is_elsewhere = strcmp(known->address, kept_address(known)) != 0;
        look_at(m, known,
                is_elsewhere || known->listed[0] == '\0' ? kept_address(known)
                                                         : known->listed);
    }
}

uint32_t membership_peers(const struct membership *m, struct join_peer *ret, uint32_t max)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < m->known_count && count < max; i++) {
        const char *address = kept_address(&m->known[i]);
        if (address[0] == '\0')
            continue;
        ret[count].node = m->known[i].node;
        address_copy(ret[count++].address, address);
    }
    return count;
}

/* --- what the state says --- */

/* True: what is kept has changed. */
static bool forget(struct membership *m, uint64_t node)
{
    struct known_node *known = known_find(m, node);
    if (known == NULL || kept_address(known)[0] == '\0')
        return false;
    known->found[0] = known->listed[0] = '\0';
    look_at(m, known, "");
    return true;
}

/* The same. */
static bool list(struct membership *m, const struct cluster_node *node)
{
    struct known_node *known = known_find(m, node->id);
    char kept[DISK_NAME_MAX + 1];
    if (known != NULL ? strcmp(known->listed, node->address) == 0
                      : node->address[0] == '\0')
        return false;
    known = known_get(m, node->id);
    if (known == NULL) {
        log_warning(m->loop, "node %llu: its address %s: %s",
                    (unsigned long long)node->id, node->address, err_text(-ENOMEM));
        return false;
    }
    address_copy(kept, kept_address(known));
    bool may_be_old = known->listed[0] == '\0' && known->found[0] != '\0';
    address_copy(known->listed, node->address);
    if (!may_be_old && !rpc_is_connected(m->rpc, node->id))
        look_at(m, known, node->address);
    return strcmp(kept, kept_address(known)) != 0;
}

/* Who waits for a node that went down gets an error at once; there may be others to ask.
 * It is connected to again when somebody has something to say to it. */
static void give_up_if_down(struct membership *m, const struct cluster_node *node)
{
    struct known_node *known = known_find(m, node->id);
    char address[DISK_NAME_MAX + 1];
    bool is_down = (node->flags & NODE_DOWN) != 0;
    if (known == NULL || known->is_down == is_down)
        return;
    known->is_down = is_down;
    if (!is_down || known->address[0] == '\0')
        return;
    address_copy(address, known->address);
    look_at(m, known, "");
    look_at(m, known, address);
}

void membership_state_applied(struct membership *m)
{
    const struct cluster_state *state = cluster_state(m->cluster);
    const struct cluster_node *node = NULL;
    bool has_changed = false;
    while ((node = cluster_node_next(state, node)) != NULL) {
        if (node->id == m->self.node)
            continue;
        if (node->flags & NODE_GONE) {
            has_changed |= forget(m, node->id);
        } else {
            has_changed |= list(m, node);
            give_up_if_down(m, node);
        }
    }
    if (membership_is_gone(m, m->self.node))
        membership_fail(m, "this node was removed from the cluster");
    if (has_changed)
        changed(m);
}
