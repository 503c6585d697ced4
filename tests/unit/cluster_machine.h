/* SPDX-License-Identifier: Apache-2.0 */
/* A cluster state under test: each command goes through its encoding; after each one the
 * state is checked, and a refused one must have changed nothing but what its client is
 * answered. */
#ifndef PARALLAX_TESTS_UNIT_CLUSTER_MACHINE_H
#define PARALLAX_TESTS_UNIT_CLUSTER_MACHINE_H

#include "replication/cluster_internal.h"
#include "tests/unit/check.h"

#define STATE_LENGTH_OFFSET  20U /* doc/format-cluster.md */
#define STATE_APPLIED_OFFSET 28U
#define ANSWER_BYTES         44U

struct machine {
    struct cluster_state *state;
    struct cluster_result result; /* of the last command */
    bool quick;                   /* no comparison of whole states */
};

static inline void machine_encode(const struct machine *m, struct writer *w)
{
    cluster_state_encode(m->state, w);
    CHECK(!w->bad);
}

/* The same but for the length, and the index, which every command moves; without the
 * last tail_a and tail_b bytes. */
static inline bool same_but_index(const struct writer *a, size_t tail_a,
                                  const struct writer *b, size_t tail_b)
{
    size_t body = STATE_APPLIED_OFFSET + 8;
    return a->len - tail_a == b->len - tail_b &&
           memcmp(a->bytes, b->bytes, STATE_LENGTH_OFFSET) == 0 &&
           memcmp(a->bytes + body, b->bytes + body, a->len - tail_a - body) == 0;
}

/* The answers and the checksum, or only that: a command of nobody leaves no answer. */
static inline size_t machine_tail(const struct machine *m, uint64_t client)
{
    return 4 + (client == 0 ? 0 : (size_t)m->state->answer_count * ANSWER_BYTES + 4);
}

static inline int machine_bytes(struct machine *m, const void *bytes, size_t len)
{
    struct writer before = {0}, after = {0};
    char text[200] = "";
    uint64_t client = 0, sequence = 0;
    cluster_command_origin(bytes, len, &client, &sequence);
    size_t tail_before = machine_tail(m, client);
    if (!m->quick)
        machine_encode(m, &before);
    cluster_state_apply(m->state, cluster_state_applied(m->state) + 1, bytes, len,
                        &m->result);
    CHECK((m->result.code != 0) == (m->result.text[0] != '\0'));
    if (!m->quick) {
        if (cluster_state_check(m->state, text, sizeof text) != 0) {
            fprintf(stderr, "inconsistent: %s\n", text);
            exit(1);
        }
        machine_encode(m, &after);
        CHECK(m->result.code == 0 ||
              same_but_index(&before, tail_before, &after, machine_tail(m, client)));
    }
    writer_done(&before);
    writer_done(&after);
    return m->result.code;
}

static inline int machine_run(struct machine *m, const struct cluster_command *command)
{
    struct writer w = {0};
    cluster_command_encode(command, &w);
    CHECK(!w.bad);
    int rc = machine_bytes(m, w.bytes, w.len);
    writer_done(&w);
    return rc;
}

#define RUN(m, ...) machine_run(m, &(struct cluster_command){__VA_ARGS__})

static const struct uid STORE = {{0xab, 1}};

static inline struct machine machine_create(void)
{
    struct machine m = {.state = cluster_state_create()};
    CHECK_EQ(RUN(&m, .op = CLUSTER_INIT, .cluster = {{7, 7}}, .node = 1, .store = STORE,
                 .wall_ns = 1000),
             0);
    return m;
}

static inline void machine_done(struct machine *m)
{
    cluster_state_destroy(m->state);
}

static inline const struct cluster_disk *disk_of(const struct machine *m,
                                                 const char *name)
{
    const struct cluster_disk *disk = cluster_disk_by_name(m->state, name);
    CHECK(disk != NULL);
    return disk;
}

/* A disk of 1 GiB, owned by node 1 at epoch 1; returns its id. */
static inline uint64_t machine_disk(struct machine *m, const char *name)
{
    CHECK_EQ(RUN(m, .op = CLUSTER_DISK_CREATE, .name = name, .size_bytes = GIB), 0);
    uint64_t id = m->result.id;
    CHECK_EQ(RUN(m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 0, .node = 1), 0);
    CHECK_EQ(m->result.epoch, 1);
    return id;
}

/* Opens an extent on node 1 under the disk's epoch. */
static inline struct address machine_extent(struct machine *m, uint64_t disk)
{
    uint64_t epoch = cluster_disk_by_id(m->state, disk)->epoch;
    CHECK_EQ(RUN(m, .op = CLUSTER_EXTENT_OPEN, .disk = disk, .epoch = epoch, .count = 1,
                 .member_count = 1, .members = {1}),
             0);
    return (struct address){m->result.id};
}

#endif
