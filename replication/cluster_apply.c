/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operations of the cluster state as a table, what is checked before any of them,
 * and those of disks and settings. Reasons for each rule: doc/cluster.md.
 */
#include <stdarg.h>
#include <stdio.h>

#include "replication/cluster_internal.h"

int apply_refuse(struct apply *apply, int code, const char *fmt, ...)
{
    assert(code < 0);
    va_list args;
    va_start(args, fmt);
    vsnprintf(apply->result->text, sizeof apply->result->text, fmt, args);
    va_end(args);
    return code;
}

int apply_check_size(struct apply *apply, const char *name, uint64_t size_bytes)
{
    if (size_bytes > DISK_BYTES_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "disk %s: larger than 16 TiB", name);
    if (size_bytes % SECTOR_BYTES != 0)
        return apply_refuse(apply, -EINVAL, "disk %s: size is not a multiple of 512",
                            name);
    return 0;
}

int apply_check_new_disk(struct apply *apply, const char *name)
{
    if (!cluster_name_valid(name))
        return apply_refuse(apply, -PLX_ENAME, "disk %s: not a valid name", name);
    if (cluster_disk_by_name(apply->state, name) != NULL)
        return apply_refuse(apply, -PLX_EEXISTS, "disk %s: exists already", name);
    return 0;
}

static int apply_disk_create(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    const struct cluster_command *command = apply->command;
    int rc = apply_check_new_disk(apply, command->name);
    if (rc == 0)
        rc = apply_check_size(apply, command->name, command->size_bytes);
    if (rc != 0)
        return rc;
    const struct cluster_pool *pool = apply_pool(apply, DEFAULT_POOL);
    if (pool == NULL)
        return -PLX_EMISSING;
    if ((command->flags & ~(unsigned)DISK_IMPORTING) != 0)
        return apply_refuse(apply, -EINVAL, "disk %s: unknown flags", command->name);
    /* An import may learn the size as it goes. */
    if (command->size_bytes == 0 && (command->flags & DISK_IMPORTING) == 0)
        return apply_refuse(apply, -EINVAL, "disk %s: size is 0", command->name);
    if (state->disk_count >= CLUSTER_DISKS_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "disk %s: there are %u disks already",
                            command->name, CLUSTER_DISKS_MAX);
    struct cluster_disk *disk = cluster_disk_create(command->name);
    disk->id = state->next_disk++;
    disk->flags = command->flags;
    disk->pool = pool->id;
    disk->size_bytes = command->size_bytes;
    disk->created_wall_ns = command->wall_ns;
    disk->head_generation = 1;
    bool inserted = cluster_disk_insert(state, disk);
    assert(inserted);
    apply->result->id = disk->id;
    return 0;
}

static int apply_disk_rename(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    const struct cluster_disk *disk = cluster_disk_by_name(apply->state, command->name);
    if (disk == NULL || (disk->flags & DISK_TRASHED))
        return apply_refuse(apply, -PLX_EMISSING, "disk %s: no such disk", command->name);
    int rc = apply_check_new_disk(apply, command->new_name);
    if (rc != 0)
        return rc;
    cluster_disk_set_name(apply->state, cluster_disk_find(apply->state, disk->id),
                          command->new_name);
    apply->result->id = disk->id;
    return 0;
}

static int apply_disk_resize(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    uint64_t size_bytes = apply->command->size_bytes;
    int rc = apply_check_size(apply, disk->name, size_bytes);
    if (rc != 0)
        return rc;
    if (size_bytes == 0)
        return apply_refuse(apply, -EINVAL, "disk %s: size is 0", disk->name);
    /* What a shrink cuts off must have been trimmed in the log, by an owner. */
    if (size_bytes < disk->size_bytes && disk->owner == 0)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: only an owner can make it smaller", disk->name);
    disk->size_bytes = size_bytes;
    apply->result->id = disk->id;
    return 0;
}

static int apply_disk_publish(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    int rc = apply_check_size(apply, disk->name, apply->command->size_bytes);
    if (rc != 0)
        return rc;
    if ((disk->flags & DISK_IMPORTING) == 0)
        return apply_refuse(apply, -PLX_EPRECONDITION, "disk %s: is not being imported",
                            disk->name);
    if (apply->command->size_bytes == 0)
        return apply_refuse(apply, -EINVAL, "disk %s: size is 0", disk->name);
    disk->size_bytes = apply->command->size_bytes;
    disk->flags &= ~(unsigned)DISK_IMPORTING;
    apply->result->id = disk->id;
    return 0;
}

static int apply_disk_discard(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    if ((disk->flags & DISK_IMPORTING) == 0)
        return apply_refuse(apply, -PLX_EPRECONDITION, "disk %s: is not being imported",
                            disk->name);
    if (disk->owner != 0)
        return apply_refuse(apply, -PLX_EOWNED, "disk %s: served by node %llu",
                            disk->name, (unsigned long long)disk->owner);
    if (disk->version_count != 0)
        return apply_refuse(apply, -PLX_EBUSY, "disk %s: has snapshots", disk->name);
    apply->result->id = disk->id;
    cluster_disk_remove(apply->state, disk);
    return 0;
}

static int apply_settings(struct apply *apply)
{
    uint64_t keep_s = apply->command->trash_keep_s;
    if (keep_s > TRASH_KEEP_MAX_S)
        return apply_refuse(apply, -PLX_ELIMIT,
                            "the trash cannot be kept for more than %u s",
                            TRASH_KEEP_MAX_S);
    apply->state->trash_keep_s = keep_s;
    return 0;
}

static int check_rule(struct apply *apply, uint32_t i)
{
    const struct schedule_rule *rules = apply->command->rules;
    const char *name = apply->disk->name;
    if (rules[i].every_s == 0 || rules[i].every_s > SCHEDULE_EVERY_MAX_S)
        return apply_refuse(apply, -EINVAL, "disk %s: a snapshot every %u s", name,
                            rules[i].every_s);
    if (rules[i].keep == 0 || rules[i].keep > SCHEDULE_KEEP_MAX)
        return apply_refuse(apply, -EINVAL, "disk %s: keeping %u snapshots", name,
                            rules[i].keep);
    for (uint32_t j = 0; j < i; j++) {
        if (rules[j].every_s == rules[i].every_s)
            return apply_refuse(apply, -EINVAL, "disk %s: two rules for every %u s", name,
                                rules[i].every_s);
    }
    return 0;
}

static int apply_schedule_set(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    struct cluster_disk *disk = apply->disk;
    for (uint32_t i = 0; i < command->rule_count; i++) {
        int rc = check_rule(apply, i);
        if (rc != 0)
            return rc;
    }
    free(take(disk->rules));
    disk->rule_count = command->rule_count;
    if (disk->rule_count != 0) {
        disk->rules = cluster_alloc(disk->rule_count * sizeof *disk->rules);
        memcpy(disk->rules, command->rules, disk->rule_count * sizeof *disk->rules);
    }
    apply->result->id = disk->id;
    return 0;
}

static int apply_quota_set(struct apply *apply)
{
    apply->disk->quota_bytes = apply->command->quota_bytes;
    apply->result->id = apply->disk->id;
    return 0;
}

/* --- the table --- */

static const struct operation OPERATIONS[] = {
    [CLUSTER_INIT] = {"init", F_CLUSTER | F_NODE | F_STORE | F_WALL, LIFE_NO_DISK,
                      LEASE_NONE, apply_init},
    [CLUSTER_DISK_CREATE] = {"disk create", F_NAME | F_SIZE | F_FLAGS | F_WALL | F_POOL,
                             LIFE_NO_DISK, LEASE_NONE, apply_disk_create},
    [CLUSTER_DISK_RENAME] = {"disk rename", F_NAME | F_NEW_NAME, LIFE_NO_DISK, LEASE_NONE,
                             apply_disk_rename},
    [CLUSTER_DISK_RESIZE] = {"disk resize", F_DISK | F_EPOCH | F_SIZE, LIFE_LIVE,
                             LEASE_EPOCH, apply_disk_resize},
    [CLUSTER_DISK_PUBLISH] = {"disk publish", F_DISK | F_EPOCH | F_SIZE, LIFE_LIVE,
                              LEASE_EPOCH, apply_disk_publish},
    [CLUSTER_DISK_DISCARD] = {"disk discard", F_DISK, LIFE_LIVE, LEASE_NONE,
                              apply_disk_discard},
    [CLUSTER_LEASE_TAKE] = {"lease take", F_DISK | F_EPOCH | F_NODE | F_FORCE, LIFE_LIVE,
                            LEASE_TAKING, apply_lease_take},
    [CLUSTER_LEASE_CLOSE] = {"lease close", F_DISK | F_EPOCH | F_FLUSHED | F_FINALS,
                             LIFE_LIVE, LEASE_HELD, apply_lease_close},
    [CLUSTER_EXTENT_OPEN] = {"extent open",
                             F_DISK | F_EPOCH | F_COUNT | F_FLUSHED | F_MEMBERS |
                                 F_FINALS | F_GROUP,
                             LIFE_LIVE, LEASE_HELD, apply_extent_open},
    [CLUSTER_CUT] = {"cut", F_DISK | F_EPOCH | F_NUMBER | F_FLUSHED | F_FINALS, LIFE_LIVE,
                     LEASE_HELD, apply_cut},
    [CLUSTER_CHECKPOINT] = {"checkpoint",
                            F_DISK | F_EPOCH | F_FLUSHED | F_NEWEST_MARKER |
                                F_CHECKPOINT | F_ROOT | F_ROOTS | F_FINALS | F_TRIMMED |
                                F_LIST,
                            LIFE_LIVE, LEASE_HELD, apply_checkpoint},
    [CLUSTER_SNAPSHOT] = {"snapshot",
                          F_DISK | F_EPOCH | F_NAME | F_WALL | F_GENERATION | F_FLUSHED |
                              F_MARKER | F_FINALS,
                          LIFE_LIVE, LEASE_HELD, apply_snapshot},
    [CLUSTER_SNAPSHOT_ABANDON] = {"snapshot abandon", F_DISK | F_EPOCH | F_MARKER,
                                  LIFE_LIVE, LEASE_HELD, apply_snapshot_abandon},
    [CLUSTER_CLONE] = {"clone", F_VERSION | F_NAME | F_COUNT | F_WALL | F_POOL,
                       LIFE_NO_DISK, LEASE_NONE, apply_clone},
    [CLUSTER_ROLLBACK] = {"rollback", F_DISK | F_VERSION | F_EPOCH, LIFE_LIVE, LEASE_FREE,
                          apply_rollback},
    [CLUSTER_SNAPSHOT_RM] = {"snapshot rm", F_DISK | F_VERSIONS, LIFE_LIVE, LEASE_NONE,
                             apply_snapshot_rm},
    [CLUSTER_COLLAPSE_BEGIN] = {"collapse begin", F_DISK | F_VERSION | F_EPOCH | F_NUMBER,
                                LIFE_LIVE | LIFE_TRASHED | LIFE_NO_DISK, LEASE_EPOCH,
                                apply_collapse_begin},
    [CLUSTER_COLLAPSE_END] = {"collapse end", F_VERSION, LIFE_NO_DISK, LEASE_NONE,
                              apply_collapse_end},
    [CLUSTER_DISK_TRASH] = {"disk trash", F_DISK | F_EPOCH | F_WALL, LIFE_LIVE,
                            LEASE_FREE, apply_disk_trash},
    [CLUSTER_DISK_RESTORE] = {"disk restore", F_DISK | F_NAME, LIFE_TRASHED, LEASE_NONE,
                              apply_disk_restore},
    [CLUSTER_DISK_REMOVE] = {"disk remove", F_DISK, LIFE_TRASHED, LEASE_NONE,
                             apply_disk_remove},
    [CLUSTER_DISK_PURGED] = {"disk purged", F_DISK, LIFE_REMOVED | LIFE_HEADLESS,
                             LEASE_NONE, apply_disk_purged},
    [CLUSTER_DISK_TIDY] = {"disk tidy", F_DISK | F_EPOCH | F_NUMBER | F_FINALS,
                           LIFE_LIVE | LIFE_TRASHED | LIFE_REMOVED, LEASE_FREE,
                           apply_disk_tidy},
    [CLUSTER_SETTINGS] = {"settings", F_TRASH_KEEP, LIFE_NO_DISK, LEASE_NONE,
                          apply_settings},
    [CLUSTER_SCHEDULE_SET] = {"schedule set", F_DISK | F_RULES, LIFE_LIVE, LEASE_NONE,
                              apply_schedule_set},
    [CLUSTER_QUOTA_SET] = {"quota set", F_DISK | F_QUOTA, LIFE_LIVE, LEASE_NONE,
                           apply_quota_set},
    [CLUSTER_NODE_SET] = {"node set", F_STORE | F_NAME | F_NEW_NAME | F_SIZE | F_WALL,
                          LIFE_NO_DISK, LEASE_NONE, apply_node_set},
    [CLUSTER_NODE_STATE] = {"node state", F_NODE | F_OLD_FLAGS | F_FLAGS, LIFE_NO_DISK,
                            LEASE_NONE, apply_node_state},
    [CLUSTER_NODE_GONE] = {"node gone", F_NODE | F_FORCE, LIFE_NO_DISK, LEASE_NONE,
                           apply_node_gone},
    [CLUSTER_POOL_SET] = {"pool set", F_NAME | F_COPIES | F_FLAGS, LIFE_NO_DISK,
                          LEASE_NONE, apply_pool_set},
    [CLUSTER_DISK_POOL] = {"disk pool", F_DISK | F_POOL, LIFE_LIVE, LEASE_NONE,
                           apply_disk_pool},
    [CLUSTER_GROUP_ADD] = {"group add", F_POOL | F_MEMBERS, LIFE_NO_DISK, LEASE_NONE,
                           apply_group_add},
    [CLUSTER_GROUP_SET] = {"group set", F_GROUP | F_NUMBER | F_MEMBERS, LIFE_NO_DISK,
                           LEASE_NONE, apply_group_set},
    [CLUSTER_GROUP_WHOLE] = {"group whole", F_GROUP | F_NODE | F_NUMBER, LIFE_NO_DISK,
                             LEASE_NONE, apply_group_whole},
    [CLUSTER_TOKEN_ADD] = {"token add", F_DIGEST | F_WALL | F_UNTIL, LIFE_NO_DISK,
                           LEASE_NONE, apply_token_add},
    [CLUSTER_NODE_JOIN] = {"node join",
                           F_STORE | F_NAME | F_NEW_NAME | F_SIZE | F_WALL | F_FLAGS |
                               F_DIGEST,
                           LIFE_NO_DISK, LEASE_NONE, apply_node_join},
    [CLUSTER_AUTHORITY] = {"authority", F_AUTHORITY, LIFE_NO_DISK, LEASE_NONE,
                           apply_authority},
    [CLUSTER_DISK_MOVED] = {"disk moved", F_DISK | F_EPOCH | F_POOL, LIFE_LIVE,
                            LEASE_HELD, apply_disk_moved},
};

static_assert(ARRAY_LEN(OPERATIONS) == CLUSTER_OP_LAST + 1, "every operation has a row");

const struct operation *cluster_operation(unsigned op)
{
    if (op >= ARRAY_LEN(OPERATIONS) || OPERATIONS[op].run == NULL)
        return NULL;
    return &OPERATIONS[op];
}

static const struct cluster_node *owner_of(const struct apply *apply)
{
    return cluster_node_by_id(apply->state, apply->disk->owner);
}

/* Stopping an extent fences whoever held the lease, so it may be taken from a node that
 * is just not in reach; from one that can be asked for it only if somebody insists. */
static int check_owner(struct apply *apply, enum lease_need need)
{
    const struct cluster_disk *disk = apply->disk;
    if (disk->owner == 0)
        return 0;
    const struct cluster_node *node = owner_of(apply);
    if (need == LEASE_TAKING &&
        (disk->owner == apply->command->node || apply->command->force ||
         (node != NULL && cluster_node_is_down(node))))
        return 0;
    return apply_refuse(apply, -PLX_EOWNED, "disk %s: served by node %llu", disk->name,
                        (unsigned long long)disk->owner);
}

static int check_epoch(struct apply *apply)
{
    const struct cluster_disk *disk = apply->disk;
    uint64_t epoch = apply->command->epoch;
    if (planted(PLANT_FORMER_COMMANDS))
        return 0;
    if (epoch < disk->epoch)
        return apply_refuse(apply, -PLX_EEPOCH, "disk %s: epoch %llu is over, it is %llu",
                            disk->name, (unsigned long long)epoch,
                            (unsigned long long)disk->epoch);
    if (epoch > disk->epoch)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: epoch %llu has not begun, it is %llu", disk->name,
                            (unsigned long long)epoch, (unsigned long long)disk->epoch);
    return 0;
}

static int check_lease(struct apply *apply, enum lease_need need)
{
    int rc = 0;
    /* Who holds the lease is told first: it is the better reason than the epoch. */
    if (need == LEASE_FREE || need == LEASE_TAKING)
        rc = check_owner(apply, need);
    if (rc == 0 && need != LEASE_NONE)
        rc = check_epoch(apply);
    if (rc == 0 && need == LEASE_HELD && apply->disk->owner == 0)
        return apply_refuse(apply, -PLX_EEPOCH, "disk %s: the lease was given up",
                            apply->disk->name);
    const struct cluster_node *owner = need == LEASE_HELD ? owner_of(apply) : NULL;
    if (rc == 0 && owner != NULL && (owner->flags & NODE_GONE))
        return apply_refuse(apply, -PLX_EEPOCH, "disk %s: node %llu was declared lost",
                            apply->disk->name, (unsigned long long)apply->disk->owner);
    return rc;
}

static enum disk_life life_of(const struct cluster_disk *disk)
{
    if (disk->flags & DISK_HEADLESS)
        return LIFE_HEADLESS;
    if (disk->flags & DISK_REMOVED)
        return LIFE_REMOVED;
    return disk->flags & DISK_TRASHED ? LIFE_TRASHED : LIFE_LIVE;
}

static int check_life(struct apply *apply, unsigned lives)
{
    const struct cluster_disk *disk = apply->disk;
    enum disk_life life = life_of(disk);
    if (life & lives)
        return 0;
    if (life == LIFE_LIVE)
        return apply_refuse(apply, -PLX_EPRECONDITION, "disk %s: is not in the trash",
                            disk->name);
    if (life == LIFE_TRASHED && (lives & LIFE_REMOVED))
        return apply_refuse(apply, -PLX_EPRECONDITION, "disk %s: is not removed",
                            disk->trash_name);
    return apply_refuse(apply, -PLX_EMISSING, "disk %s: is %s", disk->trash_name,
                        life == LIFE_TRASHED ? "in the trash" : "removed");
}

/* Finds the disk of the command and checks what its operation wants of it. */
static int check_disk(struct apply *apply, const struct operation *operation)
{
    uint64_t id = apply->command->disk;
    if ((operation->fields & F_DISK) == 0 ||
        (id == 0 && (operation->lives & LIFE_NO_DISK)))
        return 0;
    apply->disk = cluster_disk_find(apply->state, id);
    if (apply->disk == NULL)
        return apply_refuse(apply, -PLX_EMISSING, "%s: there is no disk %llu",
                            operation->name, (unsigned long long)id);
    int rc = check_life(apply, operation->lives);
    return rc != 0 ? rc : check_lease(apply, operation->lease);
}

int cluster_apply(struct cluster_state *state, const struct cluster_command *command,
                  struct cluster_result *result)
{
    const struct operation *operation = cluster_operation(command->op);
    assert(operation != NULL);
    struct apply apply = {.state = state, .command = command, .result = result};
    if (state->node_count == 0 && command->op != CLUSTER_INIT)
        return apply_refuse(&apply, -PLX_EPRECONDITION, "%s: there is no cluster yet",
                            operation->name);
    int rc = check_disk(&apply, operation);
    return rc != 0 ? rc : operation->run(&apply);
}
