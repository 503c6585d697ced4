/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes' flags, pools, groups and who is whole in them: what each command does, and when
 * it is refused. */
#include "tests/unit/cluster_machine.h"

/* A cluster of `count` nodes, 1 to count; all but the first are in no group. */
static struct machine machine_of(uint8_t count)
{
    struct machine m = machine_create();
    for (uint8_t i = 2; i <= count; i++) {
        CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_SET, .store = {{0xab, i}}), 0);
        CHECK_EQ(m.result.id, i);
    }
    return m;
}

static const struct cluster_group *group_of(const struct machine *m, uint16_t id)
{
    const struct cluster_group *group = cluster_group_by_id(m->state, id);
    CHECK(group != NULL);
    return group;
}

static uint64_t missing(const struct machine *m, uint16_t group, uint64_t node)
{
    const struct group_member *member = cluster_group_member(group_of(m, group), node);
    CHECK(member != NULL);
    return member->missing_since;
}

static int whole(struct machine *m, uint16_t group, uint64_t node)
{
    return RUN(m, .op = CLUSTER_GROUP_WHOLE, .group = group, .node = node,
               .number = missing(m, group, node));
}

static int set_flags(struct machine *m, uint64_t node, unsigned flags)
{
    return RUN(m, .op = CLUSTER_NODE_STATE, .node = node,
               .old_flags = cluster_node_by_id(m->state, node)->flags, .flags = flags);
}

#define SET(m, group_id, ...)                                                            \
    RUN(m, .op = CLUSTER_GROUP_SET, .group = (group_id),                                 \
        .number = group_of(m, group_id)->epoch, .members = {__VA_ARGS__},                \
        .member_count = ARRAY_LEN(((uint64_t[]){__VA_ARGS__})))

/* Nodes 1, 2, 3, all whole in group 1. */
static struct machine machine_of_three(void)
{
    struct machine m = machine_of(4);
    CHECK_EQ(SET(&m, 1, 1, 2, 3), 0);
    CHECK_EQ(whole(&m, 1, 2), 0);
    CHECK_EQ(whole(&m, 1, 3), 0);
    return m;
}

static int open_extent(struct machine *m, uint64_t disk, uint16_t group, uint64_t a,
                       uint64_t b, uint64_t c)
{
    uint64_t members[] = {a, b, c};
    struct cluster_command command = {.op = CLUSTER_EXTENT_OPEN,
                                      .disk = disk,
                                      .epoch = cluster_disk_by_id(m->state, disk)->epoch,
                                      .count = 1,
                                      .group = group,
                                      .group_epoch = group_of(m, group)->epoch};
    for (unsigned i = 0; i < ARRAY_LEN(members); i++) {
        if (members[i] != 0)
            command.members[command.member_count++] = members[i];
    }
    return machine_run(m, &command);
}

static void test_init(void)
{
    struct machine m = machine_create();
    const struct cluster_pool *pool = cluster_pool_by_name(m.state, DEFAULT_POOL_NAME);
    CHECK(pool != NULL && pool == cluster_pool_by_id(m.state, DEFAULT_POOL));
    CHECK_EQ(pool->flags, POOL_BY_DOMAIN);
    CHECK_EQ(cluster_group_count(m.state), 1);
    CHECK_EQ(group_of(&m, 1)->member_count, 1);
    CHECK_EQ(missing(&m, 1, 1), 0);
    CHECK(cluster_group_by_id(m.state, 0) == NULL);
    CHECK(cluster_group_by_id(m.state, 2) == NULL);
    CHECK(cluster_group_member(group_of(&m, 1), 2) == NULL);
    machine_done(&m);
}

static void test_pools(void)
{
    struct machine m = machine_create();
    static const struct {
        const char *name;
        uint8_t copies, min_copies;
        unsigned flags;
        int code;
    } STEPS[] = {
        {"fast", 2, 1, 0, 0},
        {"fast", 2, 1, 0, 0}, /* again */
        {"fast", 3, 3, POOL_BY_DOMAIN, 0},
        {"default", 1, 1, 0, 0},
        {"a b", 2, 1, 0, -PLX_ENAME},
        {"x", 2, 3, 0, -EINVAL},
        {"x", 2, 0, 0, -EINVAL},
        {"x", 0, 0, 0, -EINVAL},
        {"x", POOL_COPIES_MAX + 1, 1, 0, -EINVAL},
        {"x", 2, 1, 2, -EINVAL},
        {"wide", POOL_COPIES_MAX, 1, 0, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(STEPS); i++)
        CHECK_EQ(RUN(&m, .op = CLUSTER_POOL_SET, .name = STEPS[i].name,
                     .copies = STEPS[i].copies, .min_copies = STEPS[i].min_copies,
                     .flags = STEPS[i].flags),
                 STEPS[i].code);
    CHECK_EQ(m.result.id, 3);
    const struct cluster_pool *pool = cluster_pool_by_name(m.state, "fast");
    CHECK_EQ(pool->id, 2);
    CHECK_EQ(pool->copies, 3);
    CHECK_EQ(pool->min_copies, 3);
    CHECK_EQ(pool->flags, POOL_BY_DOMAIN);
    CHECK_EQ(cluster_pool_by_id(m.state, 1)->copies, 1);
    for (unsigned i = 4; i <= CLUSTER_POOLS_MAX + 1; i++) {
        char name[16];
        snprintf(name, sizeof name, "p%u", i);
        CHECK_EQ(
            RUN(&m, .op = CLUSTER_POOL_SET, .name = name, .copies = 1, .min_copies = 1),
            i <= CLUSTER_POOLS_MAX ? 0 : -PLX_ELIMIT);
    }
    machine_done(&m);
}

/* Disks are made in a pool, clones in that of their source; either may be told another,
 * and changed later. */
static void test_disk_pools(void)
{
    struct machine m = machine_create();
    CHECK_EQ(RUN(&m, .op = CLUSTER_POOL_SET, .name = "p", .copies = 2, .min_copies = 1),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_CREATE, .name = "a", .size_bytes = MIB), 0);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_DISK_CREATE, .name = "b", .size_bytes = MIB, .pool = 2), 0);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_DISK_CREATE, .name = "c", .size_bytes = MIB, .pool = 3),
        -PLX_EMISSING);
    CHECK_EQ(disk_of(&m, "a")->pool, 1);
    CHECK_EQ(disk_of(&m, "b")->pool, 2);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = 2, .node = 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = 2, .epoch = 1, .name = "s",
                 .marker = 1, .generation = 1),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = "x", .count = 1), 0);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = "y", .count = 2, .pool = 1),
        0);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = "z", .count = 2, .pool = 3),
        -PLX_EMISSING);
    CHECK_EQ(disk_of(&m, "x")->pool, 2);
    CHECK_EQ(disk_of(&m, "y-2")->pool, 1);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_POOL, .disk = 1, .pool = 2), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_POOL, .disk = 1, .pool = 2), 0);
    CHECK_EQ(disk_of(&m, "a")->pool, 2);
    CHECK(disk_of(&m, "a")->flags & DISK_MOVING);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_POOL, .disk = 1, .pool = 0), -PLX_EMISSING);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_POOL, .disk = 9, .pool = 1), -PLX_EMISSING);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_POOL, .disk = 1, .pool = 1), 0);
    CHECK(disk_of(&m, "a")->flags & DISK_MOVING);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = 1, .node = 1,
                 .epoch = disk_of(&m, "a")->epoch),
             0);
    uint64_t epoch = disk_of(&m, "a")->epoch;
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_MOVED, .disk = 1, .epoch = epoch, .pool = 2),
             -PLX_EPRECONDITION);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_MOVED, .disk = 1, .epoch = epoch - 1, .pool = 1),
             -PLX_EEPOCH);
    CHECK(disk_of(&m, "a")->flags & DISK_MOVING);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_MOVED, .disk = 1, .epoch = epoch, .pool = 1), 0);
    CHECK_EQ(disk_of(&m, "a")->flags & DISK_MOVING, 0);
    machine_done(&m);
}

static void test_group_add(void)
{
    struct machine m = machine_of(3);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_GROUP_ADD, .pool = 1, .member_count = 2, .members = {3, 1}),
        0);
    CHECK_EQ(m.result.id, 2);
    CHECK_EQ(missing(&m, 2, 3), 0);
    CHECK_EQ(missing(&m, 2, 1), 0);
    CHECK_EQ(group_of(&m, 2)->epoch, 1);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_GROUP_ADD, .pool = 2, .member_count = 1, .members = {1}),
        -PLX_EMISSING);
    CHECK_EQ(RUN(&m, .op = CLUSTER_GROUP_ADD, .pool = 1), -EINVAL);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_GROUP_ADD, .pool = 1, .member_count = 2, .members = {1, 1}),
        -EINVAL);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_GROUP_ADD, .pool = 1, .member_count = 1, .members = {9}),
        -PLX_EPRECONDITION);
    m.quick = true;
    for (unsigned i = 3; i <= POOL_GROUPS_MAX + 1; i++)
        CHECK_EQ(RUN(&m, .op = CLUSTER_GROUP_ADD, .pool = 1, .member_count = 1,
                     .members = {1}),
                 i <= POOL_GROUPS_MAX ? 0 : -PLX_ELIMIT);
    machine_done(&m);
}

/* Add, recover, remove: each step, and what may not come before it. */
static void test_group_set(void)
{
    struct machine m = machine_of(4);
    CHECK_EQ(SET(&m, 1, 1, 2), 0);
    CHECK_EQ(m.result.epoch, 2);
    uint64_t since = missing(&m, 1, 2);
    CHECK_EQ(since, cluster_state_applied(m.state));
    CHECK_EQ(missing(&m, 1, 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_GROUP_SET, .group = 1, .number = 1, .member_count = 2,
                 .members = {1, 2}),
             -PLX_EPRECONDITION); /* an epoch that is over */
    CHECK_EQ(RUN(&m, .op = CLUSTER_GROUP_SET, .group = 7, .number = 1, .member_count = 1,
                 .members = {1}),
             -PLX_EMISSING);
    CHECK_EQ(SET(&m, 1, 2), -PLX_EPRECONDITION);    /* no whole one would stay */
    CHECK_EQ(SET(&m, 1, 2, 3), -PLX_EPRECONDITION); /* the same */
    CHECK_EQ(SET(&m, 1, 1, 2, 9), -PLX_EPRECONDITION);
    CHECK_EQ(SET(&m, 1, 1, 2, 2), -EINVAL);
    CHECK_EQ(SET(&m, 1, 1), 0); /* what is not whole may leave */
    CHECK_EQ(SET(&m, 1, 1, 2, 3), 0);
    CHECK_EQ(whole(&m, 1, 2), 0);
    CHECK_EQ(SET(&m, 1, 2, 3), -PLX_EPRECONDITION);    /* 1 is whole, 3 is not */
    CHECK_EQ(SET(&m, 1, 2, 3, 4), -PLX_EPRECONDITION); /* a new one neither */
    CHECK_EQ(SET(&m, 1, 1, 2, 4), 0); /* 3 leaves, it was not whole, and 4 comes */
    CHECK_EQ(whole(&m, 1, 4), 0);
    CHECK_EQ(SET(&m, 1, 4, 2), 0);
    CHECK_EQ(group_of(&m, 1)->member_count, 2);
    CHECK_EQ(missing(&m, 1, 4), 0);
    CHECK(cluster_group_member(group_of(&m, 1), 1) == NULL);
    machine_done(&m);
}

static void test_group_whole(void)
{
    struct machine m = machine_of(3);
    uint64_t disk = machine_disk(&m, "a");
    CHECK_EQ(SET(&m, 1, 1, 2, 3), 0);
    uint64_t since = missing(&m, 1, 2);
    CHECK_EQ(RUN(&m, .op = CLUSTER_GROUP_WHOLE, .group = 9, .node = 2, .number = since),
             -PLX_EMISSING);
    CHECK_EQ(RUN(&m, .op = CLUSTER_GROUP_WHOLE, .group = 1, .node = 9, .number = since),
             -PLX_EPRECONDITION);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_GROUP_WHOLE, .group = 1, .node = 2, .number = since - 1),
        -PLX_EPRECONDITION);
    /* An extent is opened without it: it misses more now, and cannot be whole before the
     * extent has its length. */
    CHECK_EQ(open_extent(&m, disk, 1, 1, 3, 0), 0);
    struct address extent = {m.result.id};
    CHECK(missing(&m, 1, 2) > since);
    CHECK(missing(&m, 1, 3) == since);
    CHECK_EQ(RUN(&m, .op = CLUSTER_GROUP_WHOLE, .group = 1, .node = 2, .number = since),
             -PLX_EPRECONDITION);
    CHECK_EQ(whole(&m, 1, 2), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "group 1: disk a writes to it without node 2");
    CHECK_EQ(whole(&m, 1, 3), 0);
    struct final_length final = {.extent = extent, .length = 9, .last_number = 4};
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = disk, .epoch = 1, .flushed = 4,
                 .finals = &final, .final_count = 1),
             0);
    CHECK_EQ(whole(&m, 1, 2), 0);
    CHECK_EQ(whole(&m, 1, 2), 0); /* again: it is */
    machine_done(&m);
}

/* An extent of another group is nothing to a member of this one. */
static void test_group_whole_of_several(void)
{
    struct machine m = machine_of(2);
    uint64_t disk = machine_disk(&m, "a");
    CHECK_EQ(SET(&m, 1, 1, 2), 0);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_GROUP_ADD, .pool = 1, .member_count = 1, .members = {1}),
        0);
    CHECK_EQ(open_extent(&m, disk, 2, 1, 0, 0), 0);
    CHECK_EQ(m.result.id, address_of(2, 1, 0).v);
    CHECK_EQ(whole(&m, 1, 2), 0);
    CHECK_EQ(open_extent(&m, disk, 1, 1, 2, 0), 0);
    CHECK_EQ(m.result.id, address_of(1, 2, 0).v);
    CHECK_EQ(disk_of(&m, "a")->extent_count, 2); /* in order of sequence */
    machine_done(&m);
}

static void test_extent_open(void)
{
    struct machine m = machine_of_three();
    uint64_t disk = machine_disk(&m, "a");
    CHECK_EQ(open_extent(&m, disk, 1, 1, 2, 3), 0);
    CHECK_EQ(missing(&m, 1, 3), 0);
    CHECK_EQ(open_extent(&m, disk, 1, 1, 2, 4), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "disk a: node 4 is not in group 1");
    CHECK_EQ(open_extent(&m, disk, 1, 1, 0, 0), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "disk a: 1 members of group 1, at least 2 are needed");
    CHECK_EQ(RUN(&m, .op = CLUSTER_EXTENT_OPEN, .disk = disk, .epoch = 1, .count = 1,
                 .member_count = 2, .members = {1, 2}, .group = 1, .group_epoch = 1),
             -PLX_EPRECONDITION);
    CHECK_EQ(RUN(&m, .op = CLUSTER_EXTENT_OPEN, .disk = disk, .epoch = 1, .count = 1,
                 .member_count = 2, .members = {1, 2}, .group = 5, .group_epoch = 1),
             -PLX_EMISSING);
    CHECK_EQ(open_extent(&m, disk, 1, 1, 2, 0), 0);
    CHECK(missing(&m, 1, 3) != 0);
    CHECK_EQ(open_extent(&m, disk, 1, 1, 3, 0), 0);
    CHECK(missing(&m, 1, 2) != 0); /* 1 is the only whole one left */
    CHECK_EQ(open_extent(&m, disk, 1, 2, 3, 0), -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "disk a: no whole member of group 1 would be left");
    /* Another pool's group. */
    CHECK_EQ(RUN(&m, .op = CLUSTER_POOL_SET, .name = "p", .copies = 3, .min_copies = 1),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_POOL, .disk = disk, .pool = 2), 0);
    CHECK_EQ(open_extent(&m, disk, 1, 1, 2, 3), -PLX_EPRECONDITION);
    CHECK_EQ(RUN(&m, .op = CLUSTER_GROUP_ADD, .pool = 2, .member_count = 3,
                 .members = {4, 2, 3}),
             0);
    CHECK_EQ(open_extent(&m, disk, 2, 4, 0, 0), 0);
    CHECK(missing(&m, 2, 2) != 0 && missing(&m, 2, 3) != 0);
    machine_done(&m);
}

/* Of a group with fewer members than the pool asks for at least, all are needed. */
static void test_extent_open_few(void)
{
    struct machine m = machine_of(2);
    uint64_t disk = machine_disk(&m, "a");
    CHECK_EQ(open_extent(&m, disk, 1, 1, 0, 0), 0);
    CHECK_EQ(SET(&m, 1, 1, 2), 0);
    CHECK_EQ(open_extent(&m, disk, 1, 1, 0, 0), -PLX_EPRECONDITION);
    CHECK_EQ(open_extent(&m, disk, 1, 1, 2, 0), 0);
    machine_done(&m);
}

static void test_node_state(void)
{
    struct machine m = machine_of_three();
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_STATE, .node = 9), -PLX_EMISSING);
    CHECK_EQ(set_flags(&m, 2, NODE_GONE), -EINVAL);
    CHECK_EQ(set_flags(&m, 2, NODE_WITNESS), -EINVAL);
    CHECK_EQ(set_flags(&m, 2, 32), -EINVAL);
    CHECK_EQ(set_flags(&m, 2, NODE_DRAINING), 0);
    CHECK_EQ(missing(&m, 1, 2), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_STATE, .node = 2, .flags = NODE_DOWN),
             -PLX_EPRECONDITION);
    CHECK_EQ(cluster_node_by_id(m.state, 2)->flags, NODE_DRAINING);
    CHECK(cluster_node_is_usable(cluster_node_by_id(m.state, 2)));
    CHECK_EQ(set_flags(&m, 2, NODE_DRAINING | NODE_DOWN), 0);
    CHECK(!cluster_node_is_usable(cluster_node_by_id(m.state, 2)));
    uint64_t since = missing(&m, 1, 2);
    CHECK_EQ(since, cluster_state_applied(m.state));
    CHECK_EQ(set_flags(&m, 2, NODE_DOWN | NODE_OUT), 0);
    CHECK_EQ(missing(&m, 1, 2), since); /* it was down before */
    CHECK_EQ(set_flags(&m, 2, 0), 0);
    CHECK_EQ(missing(&m, 1, 2), since);
    /* Down again before it was whole: it misses what comes now, too. */
    CHECK_EQ(set_flags(&m, 2, NODE_DOWN), 0);
    CHECK(missing(&m, 1, 2) > since);
    CHECK_EQ(set_flags(&m, 1, NODE_DOWN), 0);
    CHECK(missing(&m, 1, 1) != 0);
    CHECK_EQ(set_flags(&m, 3, NODE_DOWN), 0);
    CHECK_EQ(missing(&m, 1, 3), 0); /* the last whole one */
    CHECK_EQ(set_flags(&m, 3, 0), 0);
    CHECK_EQ(set_flags(&m, 1, 0), 0);
    CHECK_EQ(whole(&m, 1, 1), 0);
    machine_done(&m);
}

static void test_gone_in_peace(void)
{
    struct machine m = machine_of_three();
    uint64_t disk = machine_disk(&m, "a");
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 9), -PLX_EMISSING);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 3), -PLX_EBUSY);
    CHECK_STR(m.result.text,
              "node 3 has data of 1 groups: drain it first, or, if it never comes back, "
              "say that it is lost");
    CHECK_EQ(open_extent(&m, disk, 1, 1, 2, 3), 0);
    struct address extent = {m.result.id};
    CHECK_EQ(SET(&m, 1, 1, 2), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 3), -PLX_EBUSY);
    CHECK_STR(m.result.text, "node 3: disk a writes to it");
    struct final_length final = {.extent = extent, .length = 9, .last_number = 4};
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = disk, .epoch = 1, .flushed = 4,
                 .finals = &final, .final_count = 1),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = disk, .epoch = 1, .node = 3), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 3), -PLX_EBUSY);
    CHECK_STR(m.result.text, "node 3 serves disk a");
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = disk, .epoch = 2), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 3), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 3), -PLX_EPRECONDITION);
    /* For ever, and for everything. */
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_STATE, .node = 3, .flags = NODE_DOWN),
             -PLX_EPRECONDITION);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_SET, .store = {{0xab, 3}}), -PLX_EDENIED);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = disk, .epoch = 2, .node = 3),
             -PLX_EPRECONDITION);
    CHECK_EQ(SET(&m, 1, 1, 2, 3), -PLX_EPRECONDITION);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_SET, .store = {{0xab, 9}}), 0);
    CHECK_EQ(m.result.id, 5); /* its number is not given out again */
    machine_done(&m);
}

#define LOSE(id)                                                                         \
    RUN(&m, .op = CLUSTER_NODE_GONE, .node = (id), .force = true, .data_loss = true)

/* What was opened until now may be with one member only. Versions before 5 did not say
 * so: the rest of them was the same. */
static void check_unsure(struct machine *m)
{
    uint64_t below = group_of(m, 1)->unsure_below;
    CHECK_EQ(below, cluster_state_next_sequence(m->state));
    struct writer w = {0}, id = {0};
    machine_encode(m, &w);
    write_u64(&id, group_of(m, 1)->epoch);
    write_u64(&id, below);
    size_t at = 8; /* the magic */
    while (memcmp(w.bytes + at, id.bytes, id.len) != 0)
        CHECK(++at + id.len < w.len);
    memmove(w.bytes + at + 8, w.bytes + at + 16, w.len - at - 16);
    le32 version = le32_of(4);
    memcpy(w.bytes + 8, &version, sizeof version);
    le64 length = le64_of(w.len - 8);
    memcpy(w.bytes + 20, &length, sizeof length);
    le32 crc = le32_of(crc32c(w.bytes, w.len - 8 - sizeof crc));
    memcpy(w.bytes + w.len - 8 - sizeof crc, &crc, sizeof crc);
    struct cluster_state *state = NULL;
    struct error err;
    CHECK_EQ(cluster_state_decode(w.bytes, w.len - 8, &state, &err), 0);
    CHECK_EQ(cluster_group_by_id(state, 1)->unsure_below, 0);
    CHECK_EQ(cluster_group_by_id(state, 1)->member_count, 2);
    cluster_state_destroy(state);
    writer_done(&w);
    writer_done(&id);
}

static void test_lost(void)
{
    struct machine m = machine_of_three();
    uint64_t disk = machine_disk(&m, "a"); /* of node 1 */
    CHECK_EQ(SET(&m, 1, 1, 2, 3, 4), 0);
    CHECK_EQ(open_extent(&m, disk, 1, 1, 2, 0), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 1, .force = true),
             -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "node 1 is up: drain it, or stop its daemon first");
    CHECK_EQ(set_flags(&m, 1, NODE_DOWN | NODE_OUT), 0);
    uint64_t epoch = group_of(&m, 1)->epoch;
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 1, .force = true), 0);
    CHECK_EQ(cluster_node_by_id(m.state, 1)->flags, NODE_GONE);
    CHECK_EQ(group_of(&m, 1)->member_count, 3);
    CHECK_EQ(group_of(&m, 1)->epoch, epoch + 1);
    CHECK_EQ(missing(&m, 1, 2), 0);
    CHECK(missing(&m, 1, 3) != 0); /* 2 is whole: nothing is lost */
    /* What it still thinks it owns is not its any more. */
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = disk, .epoch = 1), -PLX_EEPOCH);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = disk, .epoch = 1, .node = 2), 0);
    /* The last whole one: what the others have is all there is. */
    CHECK_EQ(set_flags(&m, 2, NODE_DOWN), 0);
    CHECK_EQ(missing(&m, 1, 2), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 2, .force = true),
             -PLX_EPRECONDITION);
    CHECK_STR(m.result.text,
              "node 2 has the only whole copy of 1 of 1 groups: start it again, or give "
              "--data-loss as well, and what only it has is lost");
    CHECK_EQ(cluster_node_by_id(m.state, 2)->flags, NODE_DOWN);
    CHECK_EQ(group_of(&m, 1)->unsure_below, 0);
    CHECK_EQ(LOSE(2), 0);
    CHECK_EQ(missing(&m, 1, 3), 0);
    CHECK_EQ(missing(&m, 1, 4), 0);
    check_unsure(&m);
    CHECK_EQ(set_flags(&m, 3, NODE_DOWN), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 3, .force = true), 0);
    CHECK_EQ(set_flags(&m, 4, NODE_DOWN), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 4, .force = true),
             -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "node 4 is the last one");
    machine_done(&m);
}

/* Those that are left were taken for whole, but the extent that was written last is on
 * one of them only. */
static void test_lost_with_extent(void)
{
    struct machine m = machine_of_three();
    uint64_t disk = machine_disk(&m, "a");
    CHECK_EQ(set_flags(&m, 2, NODE_DOWN), 0);
    CHECK_EQ(set_flags(&m, 3, NODE_DOWN), 0);
    CHECK_EQ(set_flags(&m, 3, 0), 0);
    CHECK_EQ(open_extent(&m, disk, 1, 1, 3, 0), 0);
    CHECK_EQ(set_flags(&m, 1, NODE_DOWN), 0);
    CHECK_EQ(LOSE(1), 0);
    CHECK_EQ(missing(&m, 1, 2), 0);
    CHECK_EQ(missing(&m, 1, 3), 0);
    CHECK_EQ(set_flags(&m, 3, NODE_DOWN), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 3, .force = true),
             -PLX_EPRECONDITION);
    CHECK_STR(m.result.text,
              "node 3 alone has what was written last to disk a: start it again, or give "
              "--data-loss as well, and that is lost");
    CHECK_EQ(LOSE(3), 0);
    machine_done(&m);
}

/* A group can lose all its members, if others are left. Whoever comes has all it has. */
static void test_group_lost(void)
{
    struct machine m = machine_of(3);
    uint64_t disk = machine_disk(&m, "a");
    CHECK_EQ(set_flags(&m, 1, NODE_DOWN), 0);
    CHECK_EQ(LOSE(1), 0);
    CHECK_EQ(group_of(&m, 1)->member_count, 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = disk, .epoch = 1, .node = 2), 0);
    CHECK_EQ(open_extent(&m, disk, 1, 2, 0, 0), -PLX_EPRECONDITION);
    CHECK_EQ(SET(&m, 1, 2, 3), 0);
    CHECK_EQ(missing(&m, 1, 2), 0);
    CHECK_EQ(missing(&m, 1, 3), 0);
    CHECK_EQ(open_extent(&m, disk, 1, 2, 3, 0), 0);
    machine_done(&m);
}

/* A lease is taken from a node that is up only by itself. */
static void test_lease_of_down_node(void)
{
    struct machine m = machine_of_three();
    uint64_t disk = machine_disk(&m, "a");
    struct cluster_command take_it = {
        .op = CLUSTER_LEASE_TAKE, .disk = disk, .epoch = 1, .node = 2};
    CHECK_EQ(machine_run(&m, &take_it), -PLX_EOWNED);
    CHECK_EQ(set_flags(&m, 1, NODE_DRAINING), 0);
    CHECK_EQ(machine_run(&m, &take_it), -PLX_EOWNED);
    CHECK_EQ(set_flags(&m, 1, NODE_DOWN), 0);
    take_it.epoch = 0;
    CHECK_EQ(machine_run(&m, &take_it), -PLX_EEPOCH);
    take_it.epoch = 1;
    CHECK_EQ(machine_run(&m, &take_it), 0);
    CHECK_EQ(m.result.epoch, 2);
    CHECK_EQ(disk_of(&m, "a")->owner, 2);
    machine_done(&m);
}

int main(void)
{
    test_init();
    test_pools();
    test_disk_pools();
    test_group_add();
    test_group_set();
    test_group_whole();
    test_group_whole_of_several();
    test_extent_open();
    test_extent_open_few();
    test_node_state();
    test_gone_in_peace();
    test_lost();
    test_lost_with_extent();
    test_group_lost();
    test_lease_of_down_node();
    return 0;
}
