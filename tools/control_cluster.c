/* SPDX-License-Identifier: Apache-2.0 */
/* Operations on the cluster: its nodes, pools and tokens, and who owns a disk. */
#include <inttypes.h>
#include <stdio.h>

#include "cow/host.h"
#include "replication/membership.h"
#include "replication/placement.h"
#include "tools/control_internal.h"
#include "tools/control_wire.h"

#define RACE_TRIES 5U /* of a change that others may make at the same time */

int control_need_cluster(const struct control_call *call, struct error *err)
{
    return call->services->membership != NULL
               ? 0
               : err_set(err, -EOPNOTSUPP,
                         "this daemon is of no cluster but its own; 'parallax cluster "
                         "init' makes one that others can join");
}

static const struct cluster_state *state_of(const struct control_call *call)
{
    return cluster_state(host_cluster(call->services->host));
}

static async int submit(struct control_call *call, const struct cluster_command *command,
                        struct cluster_result *ret, struct error *err)
{
    int r = cluster_submit(host_cluster(call->services->host), command, ret);
    return r < 0 ? err_set(err, r, "%s", ret->text[0] != '\0' ? ret->text : err_text(r))
                 : 0;
}

/* --- nodes --- */

/* By number or by address. */
const struct cluster_node *control_find_node(const struct control_call *call,
                                             const char *name, struct error *err)
{
    const struct cluster_node *node = NULL;
    char number[24];
    while ((node = cluster_node_next(state_of(call), node)) != NULL) {
        snprintf(number, sizeof number, "%" PRIu64, node->id);
        bool is_address = strcmp(node->address, name) == 0 &&
                          (node->flags & NODE_GONE) == 0;
        if (strcmp(number, name) == 0 || is_address)
            return node;
    }
    err_set(err, -PLX_EMISSING, "%s: no such node; 'parallax node ls' lists them", name);
    return NULL;
}

static const char *state_text(unsigned flags)
{
    return flags & NODE_GONE       ? "gone"
           : flags & NODE_OUT      ? "out"
           : flags & NODE_DOWN     ? "down"
           : flags & NODE_DRAINING ? "draining"
                                   : "up";
}

static const char *role_text(const struct control_call *call, uint64_t node)
{
    struct consensus *c = cluster_consensus(host_cluster(call->services->host));
    struct consensus_member members[64];
    uint32_t count = consensus_members(c, members, ARRAY_LEN(members));
    if (consensus_leader(c) == node)
        return "leader";
    for (uint32_t i = 0; i < count && i < ARRAY_LEN(members); i++) {
        if (members[i].node == node)
            return members[i].role == CONSENSUS_VOTER     ? "voter"
                   : members[i].role == CONSENSUS_STANDBY ? "standby"
                                                          : "spare";
    }
    return "none";
}

struct tally {
    uint64_t groups, missing, disks;
};

static struct tally tally_of(const struct cluster_state *state, uint64_t node)
{
    const struct cluster_group *group = NULL;
    const struct cluster_disk *disk = NULL;
    struct tally tally = {0};
    while ((group = cluster_group_next(state, group)) != NULL) {
        const struct group_member *member = cluster_group_member(group, node);
        tally.groups += member != NULL;
        tally.missing += member != NULL && member->missing_since != 0;
    }
    while ((disk = cluster_disk_next(state, disk)) != NULL)
        tally.disks += disk->owner == node;
    return tally;
}

static json_t *node_json(const struct control_call *call, const struct cluster_node *n)
{
    const struct control_services *services = call->services;
    struct tally tally = tally_of(state_of(call), n->id);
    bool is_self = n->id == host_node(services->host);
    bool is_connected = is_self ||
                        (services->membership != NULL &&
                         rpc_is_connected(membership_rpc(services->membership), n->id));
    return json_pack(
        "{s:o, s:s, s:o, s:s, s:b, s:b, s:b, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "node",
        control_number(n->id), "address", n->address, "domain",
        control_string_or_null(n->domain), "state", state_text(n->flags), "draining",
        (n->flags & NODE_DRAINING) != 0, "witness", (n->flags & NODE_WITNESS) != 0,
        "connected", is_connected, "role", role_text(call, n->id), "capacity_bytes",
        control_number(n->capacity_bytes), "groups", control_number(tally.groups),
        "groups_not_whole", control_number(tally.missing), "disks",
        control_number(tally.disks), "joined", control_time(n->joined_wall_ns), "store",
        control_uid(n->store));
}

/* All, or the one that is named; gone ones only if they are. */
async int op_node_list(struct control_call *call, struct error *err)
{
    const char *name = NULL;
    const struct cluster_node *node = NULL;
    int r = control_unpack(call, err, "{s?s}", "node", &name);
    if (r < 0)
        return r;
    if (name != NULL) {
        node = control_find_node(call, name, err);
        return node != NULL ? control_send_item(call, node_json(call, node))
                            : -PLX_EMISSING;
    }
    for (uint64_t last = 0; r == 0;) {
        /* By number: the state may change while a slow reader is waited for. */
        node = NULL;
        while ((node = cluster_node_next(state_of(call), node)) != NULL &&
               (node->id <= last || (node->flags & NODE_GONE) != 0))
            ;
        if (node == NULL)
            break;
        last = node->id;
        r = control_send_item(call, node_json(call, node));
    }
    return r;
}

/* What nodes say of themselves, which only the leader hears: `at` names it. */
async int op_node_reports(struct control_call *call, struct error *err)
{
    const char *at;
    int r = control_unpack(call, err, "{s:s}", "at", &at);
    if (r == 0)
        r = control_need_cluster(call, err);
    for (uint64_t last = 0; r == 0;) {
        const struct warden *warden = membership_warden(call->services->membership);
        const struct cluster_node *node = NULL, *next = NULL;
        struct warden_report report;
        while ((node = cluster_node_next(state_of(call), node)) != NULL) {
            if (node->id > last && (next == NULL || node->id < next->id))
                next = node;
        }
        if (next == NULL)
            break;
        last = next->id;
        if (warden == NULL || !warden_report(warden, last, &report))
            continue;
        r = control_send_item(
            call,
            json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "node",
                      control_number(last), "heard_ms",
                      control_number(report.heard_ns / NS_PER_MS), "capacity_bytes",
                      control_number(report.usage.capacity_bytes), "used_bytes",
                      control_number(report.usage.used_bytes), "free_bytes",
                      control_number(report.usage.free_bytes),
                      "recovering_groups",
                      control_number(report.usage.recovering_groups), "bytes_left",
                      control_number(report.usage.recovery_left_bytes), "bytes_per_s",
                      control_number(report.usage.recovery_bytes_s)));
    }
    return r;
}

static async int set_draining(struct control_call *call, const char *name, bool draining,
                              struct error *err)
{
    for (unsigned i = 0;; i++) {
        const struct cluster_node *node = control_find_node(call, name, err);
        struct cluster_result result;
        if (node == NULL)
            return -PLX_EMISSING;
        unsigned flags = node->flags & NODE_FLAGS_SETTABLE;
        const struct cluster_command command = {
            .op = CLUSTER_NODE_STATE,
            .node = node->id,
            .old_flags = flags,
            .flags = draining ? flags | NODE_DRAINING : flags & ~(unsigned)NODE_DRAINING,
        };
        *err = (struct error){0};
        int r = submit(call, &command, &result, err);
        if (r != -PLX_EPRECONDITION || i == RACE_TRIES)
            return r;
    }
}

async int op_node_drain(struct control_call *call, struct error *err)
{
    const char *name;
    int draining = 1;
    int r = control_unpack(call, err, "{s:s, s?b}", "node", &name, "draining", &draining);
    if (r == 0)
        r = control_need_cluster(call, err);
    return r < 0 ? r : set_draining(call, name, draining != 0, err);
}

async int op_node_remove(struct control_call *call, struct error *err)
{
    const char *name;
    int lost = 0, data_loss = 0;
    struct cluster_result result;
    int r = control_unpack(call, err, "{s:s, s?b, s?b}", "node", &name, "lost", &lost,
                           "data_loss", &data_loss);
    if (r == 0)
        r = control_need_cluster(call, err);
    const struct cluster_node *node = r == 0 ? control_find_node(call, name, err) : NULL;
    if (r < 0 || node == NULL)
        return r < 0 ? r : -PLX_EMISSING;
    if (node->id == host_node(call->services->host))
        return err_set(err, -PLX_EBUSY,
                       "node %" PRIu64 " is the one that was asked; ask another one",
                       node->id);
    const struct cluster_command command = {.op = CLUSTER_NODE_GONE,
                                            .node = node->id,
                                            .force = lost != 0,
                                            .data_loss = lost != 0 && data_loss != 0};
    return submit(call, &command, &result, err);
}

/* --- pools --- */

async int op_pool_list(struct control_call *call, struct error *err)
{
    const struct cluster_pool *pool = NULL;
    int r = control_unpack(call, err, "{}");
    for (uint32_t last = 0; r == 0;) {
        pool = NULL;
        while ((pool = cluster_pool_next(state_of(call), pool)) != NULL &&
               pool->id <= last)
            ;
        if (pool == NULL)
            break;
        last = pool->id;
        uint64_t groups = 0, disks = 0;
        const struct cluster_group *group = NULL;
        const struct cluster_disk *disk = NULL;
        while ((group = cluster_group_next(state_of(call), group)) != NULL)
            groups += group->pool == pool->id;
        while ((disk = cluster_disk_next(state_of(call), disk)) != NULL)
            disks += disk->pool == pool->id && cluster_disk_is_visible(disk);
        r = control_send_item(
            call,
            json_pack("{s:s, s:i, s:i, s:s, s:o, s:o}", "name", pool->name, "copies",
                      (int)pool->copies, "min_copies", (int)pool->min_copies, "domain",
                      pool->flags & POOL_BY_DOMAIN ? "rack" : "host", "groups",
                      control_number(groups), "disks", control_number(disks)));
    }
    return r;
}

/* domain: "rack" or "host". What is not given stays, or is the default of a new one. */
async int op_pool_set(struct control_call *call, struct error *err)
{
    const char *name, *domain = NULL;
    int create = 0, copies = 0, min_copies = 0;
    struct cluster_result result;
    int r = control_unpack(call, err, "{s:s, s?b, s?i, s?i, s?s}", "name", &name,
                           "create", &create, "copies", &copies, "min_copies",
                           &min_copies, "domain", &domain);
    if (r < 0)
        return r;
    const struct cluster_pool *is = cluster_pool_by_name(state_of(call), name);
    if ((is != NULL) == (create != 0))
        return err_set(err, create ? -PLX_EEXISTS : -PLX_EMISSING, "pool %s: %s", name,
                       create ? "exists already" : "no such pool");
    if (copies < 0 || copies > UINT8_MAX || min_copies < 0 || min_copies > UINT8_MAX ||
        (domain != NULL && strcmp(domain, "rack") != 0 && strcmp(domain, "host") != 0))
        return err_set(err, -EINVAL, "bad request: copies, min_copies or domain");
    bool by_domain = domain != NULL ? strcmp(domain, "rack") == 0
                                    : is == NULL || (is->flags & POOL_BY_DOMAIN) != 0;
    if (copies == 0)
        copies = is != NULL ? is->copies : (int)POOL_COPIES_DEFAULT;
    if (min_copies == 0)
        min_copies = is != NULL   ? is->min_copies
                     : copies < 2 ? 1
                                  : (int)POOL_MIN_COPIES_DEFAULT;
    const struct cluster_command command = {
        .op = CLUSTER_POOL_SET,
        .name = name,
        .copies = (uint8_t)copies,
        .min_copies = (uint8_t)min_copies,
        .flags = by_domain ? POOL_BY_DOMAIN : 0,
    };
    return submit(call, &command, &result, err);
}

/* --- tokens --- */

async int op_cluster_token(struct control_call *call, struct error *err)
{
    json_int_t minutes = 60;
    struct join_token token;
    char text[JOIN_TOKEN_LEN + 1];
    int r = control_unpack(call, err, "{s?I}", "minutes", &minutes);
    if (r == 0)
        r = control_need_cluster(call, err);
    if (r == 0 && (minutes < 1 || minutes > JOIN_MINUTES_MAX))
        r = err_set(err, -EINVAL, "a token is good for 1 to %u minutes",
                    JOIN_MINUTES_MAX);
    if (r == 0)
        r = membership_token(call->services->membership, (uint32_t)minutes, &token, err);
    if (r < 0)
        return r;
    const struct cluster_node *self = cluster_node_by_id(state_of(call),
                                                         host_node(call->services->host));
    join_token_print(&token, text);
    call->result = json_pack("{s:s, s:I, s:s}", "token", text, "minutes", minutes,
                             "address", self != NULL ? self->address : "");
    return call->result != NULL ? 0 : -ENOMEM;
}

/* --- owners --- */

async int op_disk_owner(struct control_call *call, struct error *err)
{
    const char *name;
    struct disk_info info;
    int r = control_unpack(call, err, "{s:s}", "name", &name);
    if (r == 0)
        r = disk_show(call->services->host, name, &info, err);
    if (r < 0)
        return r;
    const struct cluster_disk *disk = cluster_disk_by_id(state_of(call), info.id);
    const struct cluster_node *owner = disk != NULL ? cluster_node_by_id(state_of(call),
                                                                         disk->owner)
                                                    : NULL;
    call->result = json_pack(
        "{s:s, s:o, s:o, s:o}", "name", name, "node",
        owner != NULL ? control_number(owner->id) : json_null(), "address",
        owner != NULL ? control_string_or_null(owner->address) : json_null(), "state",
        owner != NULL ? json_string(state_text(owner->flags)) : json_null());
    return call->result != NULL ? 0 : -ENOMEM;
}

async int op_disk_break(struct control_call *call, struct error *err)
{
    const char *name;
    int r = control_unpack(call, err, "{s:s}", "name", &name);
    return r < 0 ? r : disk_break(call->services->host, name, err);
}

/* Here: whoever was asked has found the node. It stays where it has clients. */
async int op_disk_migrate(struct control_call *call, struct error *err)
{
    const char *name, *node = NULL;
    int r = control_unpack(call, err, "{s:s, s?s}", "name", &name, "node", &node);
    return r < 0 ? r : disk_pull(call->services->host, name, err);
}

/* --- status --- */

static bool is_up(const struct cluster_node *node)
{
    return (node->flags & (NODE_DOWN | NODE_OUT | NODE_GONE)) == 0;
}

struct health {
    uint64_t nodes, down, groups, not_whole, few, lost;
};

/* A group that has fewer copies than it could have is not as it should be, whatever the
 * reason. One that no member can serve is worse. */
static void count_group(const struct cluster_state *state,
                        const struct cluster_group *group, uint32_t wanted,
                        struct health *h)
{
    uint32_t whole = 0, whole_up = 0;
    for (uint32_t i = 0; i < group->member_count; i++) {
        const struct cluster_node *node = cluster_node_by_id(state,
                                                             group->members[i].node);
        bool is_whole = group->members[i].missing_since == 0;
        whole += is_whole;
        whole_up += is_whole && node != NULL && is_up(node);
    }
    h->groups++;
    h->not_whole += whole < group->member_count;
    h->few += group->member_count < wanted;
    h->lost += group->member_count > 0 && whole_up == 0;
}

static void count_groups(const struct cluster_state *state, struct health *h)
{
    const struct cluster_pool *pool = NULL;
    while ((pool = cluster_pool_next(state, pool)) != NULL) {
        uint32_t wanted = placement_wanted(state, pool);
        const struct cluster_group *group = NULL;
        while ((group = cluster_group_next(state, group)) != NULL) {
            if (group->pool == pool->id)
                count_group(state, group, wanted, h);
        }
    }
}

static void describe_health(const struct control_call *call, const struct health *h,
                            char *ret, size_t len)
{
    size_t at = 0;
    ret[0] = '\0';
    if (call->is_stale)
        at += (size_t)snprintf(ret, len, "no majority of the nodes in reach; ");
    if (h->down > 0 && at < len)
        at += (size_t)snprintf(ret + at, len - at,
                               "%" PRIu64 " of %" PRIu64 " nodes not up; ", h->down,
                               h->nodes);
    if (h->lost > 0 && at < len)
        at += (size_t)snprintf(ret + at, len - at,
                               "%" PRIu64 " groups with no whole copy that is up; ",
                               h->lost);
    if (h->not_whole + h->few > 0 && at < len)
        at += (size_t)snprintf(ret + at, len - at,
                               "%" PRIu64 " of %" PRIu64
                               " groups with copies that lack something, %" PRIu64
                               " with too few; ",
                               h->not_whole, h->groups, h->few);
    at = strlen(ret);
    if (at >= 2)
        ret[at - 2] = '\0';
}

/* What this node does to become whole. */
static json_t *recovery_json(const struct control_call *call)
{
    struct recovery_status s = {.left_s = UINT64_MAX};
    const struct recovery *recovery = membership_recovery(call->services->membership);
    if (recovery != NULL)
        recovery_status(recovery, &s);
    return json_pack("{s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:s}", "groups", (int)s.groups,
                     "extents_left", control_number(s.extents_left), "bytes_left",
                     control_number(s.bytes_left), "bytes_done",
                     control_number(s.bytes_done), "bytes_per_s",
                     control_number(s.rate_bytes_s), "seconds_left",
                     s.left_s == UINT64_MAX ? json_null() : control_number(s.left_s),
                     "lost_blocks", control_number(s.lost_blocks), "doing", s.what);
}

json_t *control_cluster_json(const struct control_call *call, char *ret_health,
                             size_t health_len)
{
    const struct cluster_state *state = state_of(call);
    const struct cluster_node *node = NULL;
    struct health h = {0};
    ret_health[0] = '\0';
    if (call->services->membership == NULL)
        return NULL;
    json_t *down = json_array();
    while ((node = cluster_node_next(state, node)) != NULL) {
        if (node->flags & NODE_GONE)
            continue;
        h.nodes++;
        if (is_up(node))
            continue;
        if (++h.down > CONTROL_DOWN_NAMED_MAX)
            continue;
        json_array_append_new(down, json_pack("{s:o, s:s, s:s}", "node",
                                              control_number(node->id), "address",
                                              node->address, "state",
                                              state_text(node->flags)));
    }
    count_groups(state, &h);
    describe_health(call, &h, ret_health, health_len);
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:b, s:o}", "node",
                     control_number(host_node(call->services->host)), "nodes",
                     control_number(h.nodes), "nodes_not_up", control_number(h.down),
                     "nodes_down", down, "groups",
                     control_number(h.groups), "groups_not_whole",
                     control_number(h.not_whole), "groups_few", control_number(h.few),
                     "groups_lost", control_number(h.lost), "majority", !call->is_stale,
                     "recovery", recovery_json(call));
}
