/* SPDX-License-Identifier: Apache-2.0 */
/* Pools: how many copies, and how far apart. Their numbers are 1, 2, 3 ... and none is
 * ever taken away: groups and disks name them. */
#include <stdio.h>

#include "replication/cluster_internal.h"

const struct cluster_pool *cluster_pool_by_id(const struct cluster_state *state,
                                              uint32_t id)
{
    return id >= 1 && id <= state->pool_count ? &state->pools[id - 1] : NULL;
}

const struct cluster_pool *cluster_pool_by_name(const struct cluster_state *state,
                                                const char *name)
{
    for (uint32_t i = 0; i < state->pool_count; i++) {
        if (strcmp(state->pools[i].name, name) == 0)
            return &state->pools[i];
    }
    return NULL;
}

const struct cluster_pool *cluster_pool_next(const struct cluster_state *state,
                                             const struct cluster_pool *pool)
{
    return cluster_pool_by_id(state, pool == NULL ? 1 : pool->id + 1);
}

const struct cluster_pool *apply_pool(struct apply *apply, uint32_t instead)
{
    uint32_t id = apply->command->pool == 0 ? instead : apply->command->pool;
    const struct cluster_pool *pool = cluster_pool_by_id(apply->state, id);
    if (pool == NULL)
        apply_refuse(apply, -PLX_EMISSING, "there is no pool %u", id);
    return pool;
}

struct cluster_pool *cluster_pool_append(struct cluster_state *state, const char *name)
{
    state->pools = cluster_grow(state->pools, &state->pool_cap, state->pool_count + 1,
                                sizeof *state->pools);
    struct cluster_pool *pool = &state->pools[state->pool_count++];
    *pool = (struct cluster_pool){.id = state->pool_count};
    snprintf(pool->name, sizeof pool->name, "%s", name);
    return pool;
}

void cluster_default_pool_add(struct cluster_state *state)
{
    assert(state->pool_count == 0);
    struct cluster_pool *pool = cluster_pool_append(state, DEFAULT_POOL_NAME);
    assert(pool->id == DEFAULT_POOL);
    pool->copies = POOL_COPIES_DEFAULT;
    pool->min_copies = POOL_MIN_COPIES_DEFAULT;
    pool->flags = POOL_BY_DOMAIN;
}

int apply_pool_set(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    const struct cluster_command *command = apply->command;
    const char *name = command->name;
    if (!cluster_name_valid(name))
        return apply_refuse(apply, -PLX_ENAME, "pool %s: not a valid name", name);
    if (command->min_copies < 1 || command->copies < command->min_copies ||
        command->copies > POOL_COPIES_MAX)
        return apply_refuse(apply, -EINVAL,
                            "pool %s: %u copies, at least %u: 1 to %u are possible", name,
                            command->copies, command->min_copies, POOL_COPIES_MAX);
    if ((command->flags & ~(unsigned)POOL_FLAGS_ALL) != 0)
        return apply_refuse(apply, -EINVAL, "pool %s: unknown flags", name);
    const struct cluster_pool *there = cluster_pool_by_name(state, name);
    if (there == NULL && state->pool_count >= CLUSTER_POOLS_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "pool %s: there are %u pools already",
                            name, CLUSTER_POOLS_MAX);
    struct cluster_pool *pool = there != NULL ? &state->pools[there->id - 1]
                                              : cluster_pool_append(state, name);
    pool->copies = command->copies;
    pool->min_copies = command->min_copies;
    pool->flags = command->flags;
    apply->result->id = pool->id;
    return 0;
}

int apply_disk_pool(struct apply *apply)
{
    const struct cluster_pool *pool = apply_pool(apply, 0);
    if (pool == NULL)
        return -PLX_EMISSING;
    if (apply->disk->pool != pool->id && (apply->disk->flags & DISK_IMPORTING) == 0)
        apply->disk->flags |= DISK_MOVING;
    apply->disk->pool = pool->id;
    apply->result->id = apply->disk->id;
    return 0;
}

int apply_disk_moved(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    if (disk->pool != apply->command->pool)
        return apply_refuse(apply, -PLX_EPRECONDITION, "disk %s: has pool %u meanwhile",
                            disk->name, disk->pool);
    disk->flags &= ~(unsigned)DISK_MOVING;
    apply->result->id = disk->id;
    return 0;
}
