/* SPDX-License-Identifier: Apache-2.0 */
/* What older versions wrote, put together here byte by byte, is read as what it meant. */
#include "tests/unit/cluster_machine.h"

#define OTHER  ((struct uid){{0xcd, 2}})
#define EXTENT address_of(1, 5, 0)

static void write_node(struct writer *w, uint32_t version, uint64_t id, struct uid store)
{
    write_u64(w, id);
    write_uid(w, store);
    write_u64(w, 77); /* joined */
    if (version == 1)
        return;
    write_string(w, "host:1");
    write_string(w, "rack");
    write_u64(w, GIB);
}

/* A disk whose log has one extent, on nodes 1 and 2. */
static void write_disk(struct writer *w)
{
    write_u64(w, 1);
    write_string(w, "web01");
    write_u32(w, 0); /* flags */
    write_u64(w, MIB);
    write_u64(w, 5); /* created */
    write_u64(w, 1); /* owner, epoch */
    write_u64(w, 2);
    write_u64(w, 0); /* parent */
    write_u32(w, 1); /* generation */
    write_u8(w, 0);  /* no root */
    for (unsigned i = 0; i < 6; i++)
        write_u64(w, 0); /* checkpoint, markers, flushed */
    write_u16(w, 0);     /* cuts */
    write_u16(w, 1);     /* extents */
    write_u64(w, EXTENT.v);
    write_u64(w, 2); /* epoch */
    write_u8(w, 0);  /* not final */
    write_u8(w, 2);  /* members */
    write_u64(w, 2);
    write_u64(w, 1);
    write_u16(w, 0); /* lists */
    write_u64(w, 0); /* collapsing version */
    write_u64(w, 0); /* quota */
    write_u8(w, 0);  /* rules */
}

static struct writer old_state(uint32_t version)
{
    struct writer w = {0};
    write_bytes(&w, "PLXSTATE", 8);
    write_u32(&w, version);
    write_u64(&w, 0);  /* features */
    write_u64(&w, 0);  /* length; set below */
    write_u64(&w, 40); /* applied */
    write_uid(&w, (struct uid){{7}});
    write_u64(&w, 1000);
    write_u64(&w, 2); /* next disk, version, sequence */
    write_u64(&w, 1);
    write_u64(&w, 6);
    write_u64(&w, 3600); /* trash */
    write_u32(&w, 3);
    write_node(&w, version, 1, STORE);
    write_node(&w, version, 2, OTHER);
    write_node(&w, version, 3, (struct uid){{9}});
    write_u32(&w, 1);
    write_disk(&w);
    write_u32(&w, 0); /* versions */
    write_u32(&w, 0); /* answers */
    le64 length = le64_of(w.len + 4);
    memcpy(w.bytes + 20, &length, sizeof length);
    write_u32(&w, crc32c(w.bytes, w.len));
    CHECK(!w.bad);
    return w;
}

static struct cluster_state *decode(const struct writer *w)
{
    struct cluster_state *state = NULL;
    struct error err = {0};
    if (cluster_state_decode(w->bytes, w->len, &state, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    return state;
}

static void check_upgraded(const struct cluster_state *state)
{
    char text[200];
    CHECK_EQ(cluster_state_check(state, text, sizeof text), 0);
    CHECK_EQ(cluster_state_applied(state), 40);
    CHECK_EQ(cluster_state_next_sequence(state), 6);
    const struct cluster_pool *pool = cluster_pool_next(state, NULL);
    CHECK_EQ(pool->id, DEFAULT_POOL);
    CHECK_STR(pool->name, "default");
    CHECK_EQ(pool->copies, 3);
    CHECK_EQ(pool->min_copies, 2);
    CHECK(cluster_pool_next(state, pool) == NULL);
    const struct cluster_group *group = cluster_group_by_id(state, 1);
    CHECK_EQ(cluster_group_count(state), 1);
    CHECK_EQ(group->pool, DEFAULT_POOL);
    CHECK_EQ(group->epoch, 1);
    CHECK_EQ(group->member_count, 2); /* nothing was ever written to node 3 */
    CHECK_EQ(cluster_group_member(group, 1)->missing_since, 0);
    CHECK_EQ(cluster_group_member(group, 2)->missing_since, 0);
    const struct cluster_disk *disk = cluster_disk_by_name(state, "web01");
    CHECK_EQ(disk->pool, DEFAULT_POOL);
    CHECK_EQ(disk->extent_count, 1);
    CHECK_EQ(cluster_node_by_id(state, 3)->flags, 0);
    CHECK(cluster_authority(state) == NULL);
    CHECK(cluster_token_next(state, NULL) == NULL);
}

static void test_old_states(void)
{
    for (uint32_t version = 1; version <= 2; version++) {
        struct writer w = old_state(version), again = {0};
        struct cluster_state *state = decode(&w);
        check_upgraded(state);
        CHECK_STR(cluster_node_by_id(state, 1)->domain, version == 1 ? "" : "rack");
        cluster_state_encode(state, &again); /* in the present version */
        cluster_state_destroy(state);
        state = decode(&again);
        check_upgraded(state);
        cluster_state_destroy(state);
        writer_done(&w);
        writer_done(&again);
    }
}

static void write_head_of(struct writer *w, uint8_t version, enum cluster_op op)
{
    write_u8(w, version);
    write_u8(w, (uint8_t)op);
    write_u16(w, 0);
    write_u64(w, 0); /* client, sequence */
    write_u64(w, 0);
}

static void write_head(struct writer *w, enum cluster_op op)
{
    write_head_of(w, 1, op);
}

static int run(struct machine *m, struct writer *w)
{
    CHECK(!w->bad);
    int rc = machine_bytes(m, w->bytes, w->len);
    writer_done(w);
    return rc;
}

/* Those that have more fields now. */
static void test_old_commands(void)
{
    struct machine m = machine_create();
    struct writer create = {0}, open = {0}, clone = {0};
    write_head(&create, CLUSTER_DISK_CREATE);
    write_string(&create, "web01");
    write_u64(&create, MIB);
    write_u64(&create, 5);
    write_u32(&create, 0);
    CHECK_EQ(run(&m, &create), 0);
    CHECK_EQ(disk_of(&m, "web01")->pool, DEFAULT_POOL);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = 1, .node = 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_GROUP_SET, .group = 1, .number = 1, .member_count = 1,
                 .members = {1}),
             0); /* whatever epoch the group has meanwhile */
    write_head(&open, CLUSTER_EXTENT_OPEN);
    write_u64(&open, 1); /* disk */
    write_u64(&open, 1); /* epoch */
    write_u32(&open, 2); /* count */
    write_u64(&open, 0); /* flushed */
    write_u8(&open, 1);
    write_u64(&open, 1);
    write_u16(&open, 0); /* finals */
    CHECK_EQ(run(&m, &open), 0);
    CHECK_EQ(m.result.id, address_of(1, 1, 0).v);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = 1, .epoch = 1, .name = "s",
                 .marker = 1, .generation = 1),
             0);
    write_head(&clone, CLUSTER_CLONE);
    write_u64(&clone, 1);
    write_string(&clone, "c");
    write_u64(&clone, 5);
    write_u32(&clone, 1);
    CHECK_EQ(run(&m, &clone), 0);
    CHECK_EQ(disk_of(&m, "c")->pool, DEFAULT_POOL);
    machine_done(&m);
}

/* In version 2 who declared a node lost had agreed to whatever that loses. */
static void test_old_loss(void)
{
    for (uint8_t version = 2; version <= 3; version++) {
        struct machine m = machine_create();
        struct writer gone = {0}, none = {0};
        CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_SET, .store = {{9}}), 0);
        CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_STATE, .node = 1, .flags = NODE_DOWN), 0);
        write_head_of(&none, version, CLUSTER_NODE_GONE);
        write_u64(&none, 1);
        write_u8(&none, version == 2 ? 2 : 3); /* there is no such force */
        CHECK_EQ(run(&m, &none), -PLX_EFORMAT);
        write_head_of(&gone, version, CLUSTER_NODE_GONE);
        write_u64(&gone, 1);
        write_u8(&gone, 1);
        CHECK_EQ(run(&m, &gone), version == 2 ? 0 : -PLX_EPRECONDITION);
        machine_done(&m);
    }
}

/* There were fewer of them. */
static void test_no_newer_operation(void)
{
    struct machine m = machine_create();
    struct writer w = {0};
    struct cluster_command command = {.op = CLUSTER_NODE_STATE, .node = 1};
    cluster_command_encode(&command, &w);
    CHECK_EQ(machine_bytes(&m, w.bytes, w.len), 0);
    w.bytes[0] = 1;
    CHECK_EQ(machine_bytes(&m, w.bytes, w.len), -PLX_EFORMAT);
    writer_done(&w);
    machine_done(&m);
}

int main(void)
{
    test_old_states();
    test_old_commands();
    test_old_loss();
    test_no_newer_operation();
    return 0;
}
