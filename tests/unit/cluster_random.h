/* SPDX-License-Identifier: Apache-2.0 */
/* Random commands that are mostly, but not always, right for the state they meet. */
#ifndef PARALLAX_TESTS_UNIT_CLUSTER_RANDOM_H
#define PARALLAX_TESTS_UNIT_CLUSTER_RANDOM_H

#include "replication/cluster_state.h"
#include "tests/unit/check.h"

struct random_commands {
    uint64_t seed;
    uint64_t doomed; /* a disk that is being removed, step by step; 0: none */
    struct cluster_command command;
    char name[DISK_NAME_MAX + 1], new_name[DISK_NAME_MAX + 1];
    struct version_root roots[PENDING_VERSIONS_MAX];
    struct final_length finals[LOG_EXTENTS_MAX];
    uint64_t versions[8];
    struct schedule_rule rules[SCHEDULE_RULES_MAX];
};

static inline uint64_t random_below(struct random_commands *r, uint64_t n)
{
    r->seed ^= r->seed << 13; /* xorshift */
    r->seed ^= r->seed >> 7;
    r->seed ^= r->seed << 17;
    return (r->seed >> 11) % n;
}

static inline bool random_one_in(struct random_commands *r, uint64_t n)
{
    return random_below(r, n) == 0;
}

/* What makes disks, versions and roots comes more often than what takes them away, so
 * that there are trees to work on. */
static inline enum cluster_op random_op(struct random_commands *r)
{
    static const uint8_t OFTEN[] = {
        CLUSTER_LEASE_TAKE,  CLUSTER_LEASE_TAKE,     CLUSTER_LEASE_CLOSE,
        CLUSTER_CHECKPOINT,  CLUSTER_CHECKPOINT,     CLUSTER_CHECKPOINT,
        CLUSTER_SNAPSHOT,    CLUSTER_SNAPSHOT,       CLUSTER_CLONE,
        CLUSTER_SNAPSHOT_RM, CLUSTER_COLLAPSE_BEGIN, CLUSTER_COLLAPSE_BEGIN,
        CLUSTER_EXTENT_OPEN, CLUSTER_GROUP_SET,      CLUSTER_GROUP_WHOLE,
        CLUSTER_GROUP_WHOLE,
    };
    if (random_one_in(r, 2))
        return (enum cluster_op)OFTEN[random_below(r, ARRAY_LEN(OFTEN))];
    return (enum cluster_op)(1 + random_below(r, CLUSTER_OP_LAST));
}

static inline const struct cluster_disk *random_disk(struct random_commands *r,
                                                     const struct cluster_state *state)
{
    const struct cluster_disk *disk = NULL;
    uint64_t steps = random_below(r, cluster_disk_count(state) + 1);
    for (uint64_t i = 0; i <= steps; i++)
        disk = cluster_disk_next(state, disk);
    return disk;
}

static inline const struct cluster_version *
random_version(struct random_commands *r, const struct cluster_state *state)
{
    const struct cluster_version *version = NULL;
    uint64_t steps = random_below(r, cluster_version_count(state) + 1);
    for (uint64_t i = 0; i <= steps; i++)
        version = cluster_version_next(state, version);
    return version;
}

/* Some of the disk's extents get a final length; all of them if it is to be closed. */
static inline void random_finals(struct random_commands *r,
                                 const struct cluster_disk *disk)
{
    struct cluster_command *c = &r->command;
    bool all = c->op == CLUSTER_LEASE_CLOSE;
    uint64_t covers = max_u64(disk->checkpoint.covers, c->checkpoint.covers);
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        const struct log_extent *extent = &disk->extents[i];
        struct final_length *final = &r->finals[c->final_count];
        if (!all && !random_one_in(r, 3))
            continue;
        *final = (struct final_length){.extent = extent->extent,
                                       .length = extent->length,
                                       .last_number = extent->last_number};
        if (!extent->final && !random_one_in(r, 4)) {
            final->length = 1 + (uint32_t)random_below(r, EXTENT_BLOCKS);
            final->last_number = random_below(
                r, random_one_in(r, 2) ? covers + 1 : c->number + disk->flushed + 1);
        }
        if (random_one_in(r, 60))
            final->length++;
        final->leaves = final->last_number <= covers + random_one_in(r, 30);
        c->final_count++;
    }
    c->finals = r->finals;
}

static inline void random_roots(struct random_commands *r,
                                const struct cluster_disk *disk)
{
    struct cluster_command *c = &r->command;
    const struct cluster_version *version;
    TAILQ_FOREACH (version, &disk->pending, pending_link) {
        if (version->marker > c->checkpoint.covers || random_one_in(r, 50))
            continue;
        r->roots[c->root_count++] = (struct version_root){
            version->id,
            {{random_below(r, 1u << 20)},
             (uint32_t)random_below(r, 1u << 30),
             version->generation,
             2}};
    }
    c->roots = r->roots;
}

/* A version that is on its way out, or could be. */
static inline const struct cluster_version *
random_spare(struct random_commands *r, const struct cluster_state *state)
{
    const struct cluster_version *version = NULL;
    uint64_t steps = random_below(r, cluster_spare_count(state) + 1);
    for (uint64_t i = 0; i <= steps; i++)
        version = cluster_spare_next(state, version);
    return version;
}

static inline const struct cluster_disk *random_trash(struct random_commands *r,
                                                      const struct cluster_state *state)
{
    const struct cluster_disk *disk = NULL, *chosen = NULL;
    for (uint64_t n = 1; (disk = cluster_trash_next(state, disk)) != NULL; n++)
        chosen = random_one_in(r, n) ? disk : chosen;
    return chosen;
}

/* A disk against whose head a version collapses, if there is one, else `disk`. */
static inline const struct cluster_disk *random_merging(const struct cluster_state *state,
                                                        const struct cluster_disk *disk)
{
    const struct cluster_version *version = NULL;
    while ((version = cluster_spare_next(state, version)) != NULL) {
        const struct cluster_disk *head = cluster_head_next(version, NULL);
        if (head != NULL && head->collapsing_version != 0)
            return head;
    }
    return disk;
}

/* Versions of the disk, and now and then another. */
static inline void random_versions(struct random_commands *r,
                                   const struct cluster_state *state,
                                   const struct cluster_disk *disk)
{
    struct cluster_command *c = &r->command;
    const struct cluster_version *version = NULL;
    while (c->version_count < ARRAY_LEN(r->versions) &&
           (version = cluster_disk_version_next(disk, version)) != NULL) {
        if (random_one_in(r, 3))
            r->versions[c->version_count++] = version->id;
    }
    version = random_version(r, state);
    if (version != NULL && c->version_count > 0 && random_one_in(r, 10))
        r->versions[0] = version->id;
    if (c->version_count > 0 && random_one_in(r, 10))
        r->versions[0] = random_below(r, 100);
    c->versions = r->versions;
}

static inline void random_collapse(struct random_commands *r,
                                   const struct cluster_state *state)
{
    struct cluster_command *c = &r->command;
    const struct cluster_version *version = random_spare(r, state);
    const struct cluster_disk *head = NULL;
    if (version == NULL || random_one_in(r, 20))
        return;
    c->version = version->id;
    head = cluster_head_next(version, NULL);
    c->disk = head == NULL ? random_one_in(r, 20) : head->id;
    if (head == NULL)
        return;
    c->epoch = head->epoch - (head->epoch > 0 && random_one_in(r, 20));
    c->number = head->checkpoint.number + random_one_in(r, 20);
}

static inline void random_rules(struct random_commands *r)
{
    struct cluster_command *c = &r->command;
    c->rule_count = (uint32_t)random_below(r, SCHEDULE_RULES_MAX + 1);
    for (uint32_t i = 0; i < c->rule_count; i++)
        r->rules[i] = (struct schedule_rule){(i + 1) * 60 - !random_one_in(r, 30),
                                             (uint32_t)random_below(r, 20) + 1};
    if (c->rule_count > 1 && random_one_in(r, 5))
        r->rules[1] = r->rules[0];
    c->rules = r->rules;
}

/* The next step of removing the doomed disk; now and then there is a new one. */
static inline const struct cluster_disk *random_doomed(struct random_commands *r,
                                                       const struct cluster_state *state)
{
    struct cluster_command *c = &r->command;
    const struct cluster_disk *disk = cluster_disk_by_id(state, r->doomed);
    if (disk == NULL || random_one_in(r, 50)) {
        disk = random_disk(r, state);
        r->doomed = disk == NULL ? 0 : disk->id;
        return NULL;
    }
    if (disk->flags & DISK_REMOVED)
        c->op = disk->list_count != 0 ? CLUSTER_DISK_TIDY : CLUSTER_DISK_PURGED;
    else if (disk->flags & DISK_TRASHED)
        c->op = CLUSTER_DISK_REMOVE;
    else if (cluster_disk_is_settled(disk))
        c->op = disk->owner == 0 ? CLUSTER_DISK_TRASH : CLUSTER_LEASE_CLOSE;
    else if (disk->owner == 0)
        c->op = CLUSTER_LEASE_TAKE;
    else
        c->op = random_one_in(r, 2) ? CLUSTER_CHECKPOINT : CLUSTER_LEASE_CLOSE;
    return disk;
}

/* What the operations that remove something need. */
static inline void random_removal(struct random_commands *r,
                                  const struct cluster_state *state)
{
    struct cluster_command *c = &r->command;
    bool of_trash = c->op == CLUSTER_DISK_RESTORE || c->op == CLUSTER_DISK_REMOVE ||
                    c->op == CLUSTER_DISK_PURGED ||
                    (c->op == CLUSTER_DISK_TIDY && random_one_in(r, 2));
    const struct cluster_disk *disk = random_trash(r, state);
    if (of_trash && disk != NULL && !random_one_in(r, 10)) {
        c->disk = disk->id;
        c->epoch = disk->epoch;
        c->number = disk->checkpoint.number;
    }
    disk = cluster_disk_by_id(state, c->disk);
    if (c->op == CLUSTER_SNAPSHOT_RM && disk != NULL)
        random_versions(r, state, disk);
    if (c->op == CLUSTER_COLLAPSE_BEGIN || c->op == CLUSTER_COLLAPSE_END)
        random_collapse(r, state);
    if (c->op == CLUSTER_SCHEDULE_SET)
        random_rules(r);
}

static inline void random_disk_fields(struct random_commands *r,
                                      const struct cluster_disk *disk)
{
    struct cluster_command *c = &r->command;
    uint64_t known = max_u64(disk->flushed, disk->newest_marker);
    c->disk = disk->id + random_one_in(r, 100);
    c->epoch = disk->epoch - (disk->epoch > 0 && random_one_in(r, 30)) +
               random_one_in(r, 100);
    c->number = known + random_below(r, 50) - (known > 0 && random_one_in(r, 20));
    c->flushed = random_below(r, c->number + 1);
    c->marker = known + random_below(r, 10);
    c->newest_marker = disk->newest_marker + random_one_in(r, 40);
    c->generation = disk->head_generation + (uint32_t)random_one_in(r, 10) -
                    (uint32_t)random_one_in(r, 40);
    c->checkpoint.number = disk->checkpoint.number + !random_one_in(r, 40);
    c->checkpoint.covers = disk->checkpoint.covers + random_below(r, 40);
    if (random_one_in(r, 4))
        c->checkpoint.covers = max_u64(known, disk->checkpoint.covers);
    c->checkpoint.last = max_u64(known, c->checkpoint.covers) + random_below(r, 5);
    c->root = (struct map_root){{random_below(r, 1u << 20)}, 1, disk->head_generation, 1};
    if (random_one_in(r, 8))
        c->trimmed = random_below(r, disk->checkpoint.number + 1 + random_one_in(r, 5));
    if (!random_one_in(r, 3))
        c->list = (struct dead_list){0, {1 + random_below(r, 1u << 20)}, 7, 3};
    if (c->op == CLUSTER_DISK_TIDY)
        c->number = c->trimmed;
    random_finals(r, disk);
    if (c->op == CLUSTER_CHECKPOINT)
        random_roots(r, disk);
}

static inline const struct cluster_node *random_node(struct random_commands *r,
                                                     const struct cluster_state *state)
{
    const struct cluster_node *node = NULL, *chosen = NULL;
    for (uint64_t n = 1; (node = cluster_node_next(state, node)) != NULL; n++)
        chosen = random_one_in(r, n) ? node : chosen;
    return chosen;
}

/* Some of the group's members, or all, and now and then another node. */
static inline void random_members(struct random_commands *r,
                                  const struct cluster_state *state,
                                  const struct cluster_group *group, bool may_add)
{
    struct cluster_command *c = &r->command;
    bool all = random_one_in(r, 2);
    c->member_count = 0;
    for (unsigned i = 0; i < group->member_count; i++) {
        if (all || !random_one_in(r, 4))
            c->members[c->member_count++] = group->members[i].node;
    }
    const struct cluster_node *node = random_node(r, state);
    if (may_add && node != NULL && c->member_count < REPLICAS_MAX)
        c->members[c->member_count++] = node->id;
}

static inline void random_group_fields(struct random_commands *r,
                                       const struct cluster_state *state)
{
    struct cluster_command *c = &r->command;
    uint64_t last = min_u32(cluster_group_count(state), 6);
    c->group = (uint16_t)(1 + random_below(r, last + random_one_in(r, 20)));
    const struct cluster_group *group = cluster_group_by_id(state, c->group);
    const struct cluster_disk *disk = cluster_disk_by_id(state, c->disk);
    if (c->op == CLUSTER_EXTENT_OPEN && disk != NULL) {
        while (group != NULL && group->pool != disk->pool)
            group = cluster_group_next(state, group);
        c->group = group == NULL ? (uint16_t)random_below(r, 2) : group->id;
    }
    if (group == NULL)
        return;
    c->group_epoch = group->epoch - random_one_in(r, 20);
    random_members(r, state, group,
                   c->op == CLUSTER_GROUP_SET ? random_one_in(r, 2)
                                              : random_one_in(r, 9));
    if (c->op == CLUSTER_GROUP_SET)
        c->number = group->epoch - random_one_in(r, 20);
    if (c->op == CLUSTER_GROUP_WHOLE && group->member_count != 0) {
        const struct group_member *member =
            &group->members[random_below(r, group->member_count)];
        c->node = member->node;
        c->number = member->missing_since + random_one_in(r, 20);
    }
}

/* What the commands of nodes, pools, groups and tokens need. */
static inline void random_cluster_fields(struct random_commands *r,
                                         const struct cluster_state *state)
{
    static const char PEM[] = "-----BEGIN\nabc\n";
    struct cluster_command *c = &r->command;
    const struct cluster_node *node = random_node(r, state);
    c->pool = random_one_in(r, 4) ? (uint32_t)random_below(r, 6) : 0;
    c->copies = (uint8_t)random_below(r, POOL_COPIES_MAX + 2);
    c->min_copies = (uint8_t)random_below(r, 3);
    c->digest[0] = (uint8_t)random_below(r, 100);
    c->until_wall_ns = c->wall_ns + random_below(r, 1u << 28);
    c->certificate = c->key = PEM;
    c->certificate_len = sizeof PEM - 1;
    c->key_len = 10 + random_one_in(r, 4);
    if (node != NULL && (c->op == CLUSTER_NODE_STATE || c->op == CLUSTER_NODE_GONE)) {
        c->node = node->id + random_one_in(r, 20);
        c->old_flags = node->flags ^ random_one_in(r, 20);
        c->flags = (unsigned)random_below(r, NODE_FLAGS_SETTABLE + 1U) |
                   (random_one_in(r, 20) ? NODE_WITNESS : 0);
        c->force = random_one_in(r, 2);
        c->data_loss = c->force && c->op == CLUSTER_NODE_GONE && c->digest[0] % 2 != 0;
    }
    if (c->op == CLUSTER_NODE_JOIN)
        c->flags = random_one_in(r, 6) ? NODE_WITNESS : 0;
    if (c->op == CLUSTER_POOL_SET) {
        snprintf(r->name, sizeof r->name, "p%u", (unsigned)random_below(r, 7));
        c->flags = (unsigned)random_below(r, 2) + 2U * random_one_in(r, 20);
    }
    if (c->op == CLUSTER_GROUP_SET || c->op == CLUSTER_GROUP_WHOLE ||
        (c->op == CLUSTER_EXTENT_OPEN && !random_one_in(r, 4)))
        random_group_fields(r, state);
}

/* The next command; valid until the next call. */
static inline const struct cluster_command *
random_command(struct random_commands *r, const struct cluster_state *state)
{
    struct cluster_command *c = &r->command;
    *c = (struct cluster_command){
        .op = random_op(r),
        .client = random_below(r, 400),
        .sequence = cluster_state_applied(state) - random_one_in(r, 20) * 3,
        .node = 1 + random_one_in(r, 20),
        .store = {{(uint8_t)random_below(r, 24)}},
        .name = r->name,
        .new_name = r->new_name,
        .size_bytes = (1 + random_below(r, 64)) * MIB + random_one_in(r, 50),
        .wall_ns = random_below(r, 1u << 30),
        .flags = random_one_in(r, 8) ? DISK_IMPORTING : 0,
        .count = 1 + (uint32_t)random_below(r, 4),
        .member_count = (uint8_t)(1 + random_below(r, 3)),
        .members = {1, 2 + random_below(r, 3), 5 - random_below(r, 3)},
        .quota_bytes = random_below(r, 1u << 30),
        .trash_keep_s = random_below(r, TRASH_KEEP_MAX_S) * (random_one_in(r, 4) ? 2 : 1),
    };
    const struct cluster_disk *disk = random_disk(r, state);
    const struct cluster_version *version = random_version(r, state);
    const struct cluster_disk *doomed = NULL;
    if (random_one_in(r, 3))
        disk = random_merging(state, disk);
    else if (random_one_in(r, 4))
        doomed = random_doomed(r, state);
    if (doomed != NULL)
        disk = doomed;
    snprintf(r->name, sizeof r->name, "n%u", (unsigned)random_below(r, 40));
    snprintf(r->new_name, sizeof r->new_name, "n%u", (unsigned)random_below(r, 40));
    if (c->op == CLUSTER_SNAPSHOT && random_one_in(r, 2))
        r->name[0] = '\0';
    if (c->op == CLUSTER_NODE_SET && random_one_in(r, 10))
        r->name[0] = ' ';
    if (disk != NULL)
        random_disk_fields(r, disk);
    if (version != NULL)
        c->version = version->id;
    const struct cluster_disk *source = cluster_disk_by_id(state, r->doomed);
    if (c->op == CLUSTER_CLONE && source != NULL && random_one_in(r, 2))
        c->version = source->head_parent; /* what will be left of it */
    if (c->op == CLUSTER_ROLLBACK && version != NULL && !random_one_in(r, 10)) {
        disk = cluster_disk_by_id(state, version->disk);
        c->disk = disk->id;
        c->epoch = disk->epoch;
    }
    random_cluster_fields(r, state);
    if (doomed != NULL)
        c->number = doomed->checkpoint.number;
    else if (c->op > CLUSTER_ROLLBACK && c->op <= CLUSTER_QUOTA_SET)
        random_removal(r, state);
    return c;
}

#endif
