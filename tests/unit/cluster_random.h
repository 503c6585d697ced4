/* SPDX-License-Identifier: Apache-2.0 */
/* Random commands that are mostly, but not always, right for the state they meet. */
#ifndef PARALLAX_TESTS_UNIT_CLUSTER_RANDOM_H
#define PARALLAX_TESTS_UNIT_CLUSTER_RANDOM_H

#include "replication/cluster_state.h"
#include "tests/unit/check.h"

struct random_commands {
    uint64_t seed;
    struct cluster_command command;
    char name[DISK_NAME_MAX + 1], new_name[DISK_NAME_MAX + 1];
    struct version_root roots[PENDING_VERSIONS_MAX];
    struct final_length finals[LOG_EXTENTS_MAX];
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
            final->last_number = random_below(r, c->number + disk->flushed + 1);
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
    c->checkpoint.last = max_u64(known, c->checkpoint.covers) + random_below(r, 5);
    c->root = (struct map_root){{random_below(r, 1u << 20)}, 1, disk->head_generation, 1};
    random_finals(r, disk);
    if (c->op == CLUSTER_CHECKPOINT)
        random_roots(r, disk);
}

/* The next command; valid until the next call. */
static inline const struct cluster_command *
random_command(struct random_commands *r, const struct cluster_state *state)
{
    struct cluster_command *c = &r->command;
    *c = (struct cluster_command){
        .op = (enum cluster_op)(1 + random_below(r, CLUSTER_ROLLBACK)),
        .client = random_below(r, 400),
        .sequence = cluster_state_applied(state) - random_one_in(r, 20) * 3,
        .node = 1 + random_one_in(r, 20),
        .name = r->name,
        .new_name = r->new_name,
        .size_bytes = (1 + random_below(r, 64)) * MIB + random_one_in(r, 50),
        .wall_ns = random_below(r, 1u << 30),
        .flags = random_one_in(r, 8) ? DISK_IMPORTING : 0,
        .count = 1 + (uint32_t)random_below(r, 4),
        .member_count = (uint8_t)(1 + random_one_in(r, 40)),
        .members = {1, 1},
    };
    const struct cluster_disk *disk = random_disk(r, state);
    const struct cluster_version *version = random_version(r, state);
    snprintf(r->name, sizeof r->name, "n%u", (unsigned)random_below(r, 40));
    snprintf(r->new_name, sizeof r->new_name, "n%u", (unsigned)random_below(r, 40));
    if (c->op == CLUSTER_SNAPSHOT && random_one_in(r, 2))
        r->name[0] = '\0';
    if (disk != NULL)
        random_disk_fields(r, disk);
    if (version != NULL)
        c->version = version->id;
    if (c->op == CLUSTER_ROLLBACK && version != NULL && !random_one_in(r, 10)) {
        disk = cluster_disk_by_id(state, version->disk);
        c->disk = disk->id;
        c->epoch = disk->epoch;
    }
    return c;
}

#endif
