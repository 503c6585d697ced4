/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the leader does, each a step that looks at the state and changes one thing. What
 * is refused, or nobody knows the outcome of, is looked at again after the next tick.
 */
#include "replication/voters.h"
#include "replication/warden_internal.h"

static async bool propose(struct warden *w, const struct cluster_command *command,
                          const char *what)
{
    struct cluster_result result;
    int rc = cluster_submit(w->options.cluster, command, &result);
    if (rc == 0)
        return true;
    log_info(w->loop, "%s: %s", what, result.text);
    return false;
}

/* --- marks of nodes --- */

static const char *word_for(unsigned flags)
{
    if (flags & NODE_OUT)
        return "out: it will be replaced";
    return flags & NODE_DOWN ? "down" : "up";
}

static async bool set_flags(struct warden *w, const struct cluster_node *node,
                            unsigned flags)
{
    unsigned long long id = node->id;
    struct cluster_command command = {
        .op = CLUSTER_NODE_STATE,
        .node = id,
        .old_flags = node->flags,
        .flags = flags & NODE_FLAGS_SETTABLE,
    };
    bool is_worse = (flags & ~node->flags & (NODE_DOWN | NODE_OUT)) != 0;
    if (!propose(w, &command, "marking a node")) /* `node` may be gone now */
        return false;
    log_line(w->loop, is_worse ? LOG_WARNING : LOG_INFO, "node %llu is %s", id,
             word_for(flags));
    return true;
}

/* Where it is and how large, if that is not what the state says. */
static bool differs(const struct cluster_node *node, const struct node_report *report)
{
    return report->usage.capacity_bytes != node->capacity_bytes ||
           (report->address[0] != '\0' && strcmp(report->address, node->address) != 0);
}

static async bool set_node(struct warden *w, const struct cluster_node *node,
                           const struct node_report *report)
{
    char address[DISK_NAME_MAX + 1], domain[DISK_NAME_MAX + 1];
    strcpy(address, report->address[0] != '\0' ? report->address : node->address);
    strcpy(domain, node->domain);
    struct cluster_command command = {.op = CLUSTER_NODE_SET,
                                      .store = node->store,
                                      .name = address,
                                      .new_name = domain,
                                      .size_bytes = report->usage.capacity_bytes};
    return propose(w, &command, "noting where a node is");
}

async bool warden_mark_step(struct warden *w)
{
    const struct cluster_state *state = cluster_state(w->options.cluster);
    const struct cluster_node *node = NULL;
    while ((node = cluster_node_next(state, node)) != NULL) {
        if (node->flags & NODE_GONE)
            continue;
        unsigned flags = liveness_flags(&w->liveness, node);
        if (flags != node->flags)
            return set_flags(w, node, flags);
        const struct node_report *report = warden_find_report(w, node->id);
        if (report != NULL && differs(node, report))
            return set_node(w, node, report);
    }
    return false;
}

/* --- groups --- */

static bool is_full(const struct node_report *report)
{
    uint64_t capacity = report->usage.capacity_bytes;
    return report->usage.free_bytes < capacity / 100 * (100 - WARDEN_FULL_PERCENT);
}

/* Those that get nothing new; of whom nothing was heard nothing is known. */
static uint64_t *list_avoided(const struct warden *w, uint32_t *ret_count)
{
    const struct cluster_state *state = cluster_state(w->options.cluster);
    const struct cluster_node *node = NULL;
    uint64_t *avoided = cluster_alloc((state->node_count + 1) * sizeof *avoided);
    *ret_count = 0;
    while ((node = cluster_node_next(state, node)) != NULL) {
        const struct node_report *report = warden_find_report(w, node->id);
        if (report == NULL || is_full(report))
            avoided[(*ret_count)++] = node->id;
    }
    return avoided;
}

static const char *word_for_reason(enum placement_reason reason)
{
    static const char *const WORDS[PLACEMENT_REASONS] = {
        [PLACEMENT_DONE] = "",
        [PLACEMENT_FILL] = "lost all it had",
        [PLACEMENT_LEAVE] = "has a member too many",
        [PLACEMENT_REPAIR] = "lacks a member",
        [PLACEMENT_GROW] = "is new",
        [PLACEMENT_MOVE] = "is moved for balance",
    };
    return WORDS[reason];
}

async bool warden_place_step(struct warden *w)
{
    const struct cluster_state *state = cluster_state(w->options.cluster);
    struct cluster_command command;
    if (state->node_count == 0)
        return false;
    struct placement_options options = {
        .recovering_max = w->options.recovering_max,
        .node_recovering_max = w->options.node_recovering_max,
    };
    uint64_t *avoided = list_avoided(w, &options.avoid_count);
    options.avoid = avoided;
    enum placement_reason reason = placement_next(state, &options, &command);
    free(avoided);
    if (reason == PLACEMENT_DONE || !propose(w, &command, "placing a group"))
        return false;
    log_debug(w->loop, "group %u: %s", command.group, word_for_reason(reason));
    return true;
}

/* --- who votes --- */

static void describe_node(const struct warden *w, const struct cluster_node *node,
                          struct voter *ret)
{
    const struct liveness_node *known = liveness_find(&w->liveness, node->id);
    unsigned flags = node->flags;
    bool is_self = node->id == w->options.node;
    *ret = (struct voter){.node = node->id, .domain = node->domain};
    ret->is_gone = (flags & NODE_GONE) != 0;
    ret->is_draining = (flags & NODE_DRAINING) != 0;
    if (known != NULL) {
        bool is_silent = known->bad_ns != 0 && !known->is_broken;
        ret->is_up = is_self || (known->has_spoken && !is_silent);
        ret->is_bad = !is_self &&
                      ((flags & NODE_OUT) ||
                       (is_silent && known->bad_ns >= WARDEN_BAD_MS * NS_PER_MS));
    }
    const struct node_report *report = warden_find_report(w, node->id);
    /* More than there are is nonsense. Not more than have reported: one that has just
     * joined, or that only others reach, has not, and is heard. */
    uint32_t node_count = cluster_state(w->options.cluster)->node_count;
    ret->hears = report != NULL && report->hears <= node_count ? report->hears : 0;
    ret->may_not = node->id == w->failed_voter &&
                   loop_now_ns(w->loop) - w->failed_ns < WARDEN_RETRY_MS * NS_PER_MS;
}

/* Every node, and every member of consensus that is none (any more). */
static struct voter *list_voters(const struct warden *w, uint32_t *ret_count)
{
    const struct cluster_state *state = cluster_state(w->options.cluster);
    const struct consensus *consensus = cluster_consensus(w->options.cluster);
    static const char NO_DOMAIN[] = "";
    const struct cluster_node *node = NULL;
    uint32_t member_count = consensus_members(consensus, NULL, 0), count = 0;
    struct consensus_member *members = cluster_alloc((member_count + 1) *
                                                     sizeof *members);
    consensus_members(consensus, members, member_count);
    struct voter *voters = cluster_alloc((state->node_count + member_count + 1) *
                                         sizeof *voters);
    while ((node = cluster_node_next(state, node)) != NULL)
        describe_node(w, node, &voters[count++]);
    for (uint32_t i = 0; i < member_count; i++) {
        node = cluster_node_by_id(state, members[i].node);
        struct voter *voter = &voters[node == NULL ? count++ : node - state->nodes];
        if (node == NULL)
            *voter = (struct voter){
                .node = members[i].node, .domain = NO_DOMAIN, .is_gone = true};
        voter->is_member = true;
        voter->role = members[i].role;
    }
    free(members);
    *ret_count = count;
    return voters;
}

static async int change(struct warden *w, const struct voters_change *change)
{
    struct consensus *consensus = cluster_consensus(w->options.cluster);
    switch (change->kind) {
    case VOTERS_ADD:
        return consensus_add(consensus, change->node);
    case VOTERS_ROLE:
        return consensus_set_role(consensus, change->node, change->role);
    case VOTERS_REMOVE:
        return consensus_remove(consensus, change->node);
    case VOTERS_TRANSFER:
        return consensus_transfer(consensus, change->node);
    default:
        return 0;
    }
}

/* Has this voter been better than this node for so long that it should lead? Nodes do not
 * notice at the same time that one is gone, which makes a difference for a moment. */
static bool should_lead(struct warden *w, uint64_t better)
{
    uint64_t now_ns = loop_now_ns(w->loop);
    if (better != w->better) {
        w->better = better;
        w->better_ns = now_ns;
    }
    return better != 0 && now_ns >= w->kept_ns &&
           now_ns - w->better_ns >= WARDEN_BETTER_MS * NS_PER_MS;
}

async bool warden_vote_step(struct warden *w)
{
    uint32_t count;
    if (cluster_state(w->options.cluster)->node_count == 0)
        return false;
    struct voter *voters = list_voters(w, &count);
    struct voters_change next = voters_next(voters, count, w->options.node);
    uint64_t better = voters_better(voters, count, w->options.node);
    free(voters);
    if (should_lead(w, better)) {
        next = (struct voters_change){.kind = VOTERS_TRANSFER, .node = better};
        w->kept_ns = loop_now_ns(w->loop) + WARDEN_KEPT_MS * NS_PER_MS;
        log_info(w->loop, "node %llu hears more nodes than this one: it is to lead",
                 (unsigned long long)better);
    }
    if (next.kind == VOTERS_DONE)
        return false;
    int rc = change(w, &next);
    if (rc == 0)
        return true;
    if (next.kind == VOTERS_ROLE && next.role == CONSENSUS_VOTER) {
        w->failed_voter = next.node;
        w->failed_ns = loop_now_ns(w->loop);
    }
    if (!w->stopping)
        log_info(w->loop, "consensus: changing what node %llu is: %s",
                 (unsigned long long)next.node, err_text(rc));
    return false;
}
