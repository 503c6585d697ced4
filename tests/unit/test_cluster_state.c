/* SPDX-License-Identifier: Apache-2.0 */
/* What each command does and when it is refused. */
#include "tests/unit/cluster_machine.h"

static void test_names(void)
{
    static const struct {
        const char *name;
        bool valid;
    } NAMES[] = {
        {"a", true},    {"web01", true}, {"a.b_c-d+e:f", true}, {"_a", true},
        {"9", true},    {":a", true},    {"", false},           {".a", false},
        {"-a", false},  {"+a", false},   {"a b", false},        {"a/b", false},
        {"a@b", false}, {"a\nb", false}, {"\xc3\xa4", false},   {"a,b", false},
    };
    for (size_t i = 0; i < ARRAY_LEN(NAMES); i++)
        CHECK_EQ(cluster_name_valid(NAMES[i].name), NAMES[i].valid);
    char name[DISK_NAME_MAX + 2];
    memset(name, 'x', sizeof name);
    name[DISK_NAME_MAX + 1] = '\0';
    CHECK(!cluster_name_valid(name));
    name[DISK_NAME_MAX] = '\0';
    CHECK(cluster_name_valid(name));
}

static void test_init(void)
{
    struct machine m = {.state = cluster_state_create()};
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_CREATE, .name = "a", .size_bytes = MIB),
             -PLX_EPRECONDITION);
    CHECK_EQ(RUN(&m, .op = CLUSTER_INIT, .node = 0), -EINVAL);
    CHECK_EQ(RUN(&m, .op = CLUSTER_INIT, .cluster = {{1}}, .node = 5, .store = STORE), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_INIT, .cluster = {{2}}, .node = 6), -PLX_EEXISTS);
    CHECK_EQ(cluster_state_uid(m.state).b[0], 1);
    CHECK_EQ(cluster_state_node_of_store(m.state, STORE), 5);
    CHECK_EQ(cluster_state_node_of_store(m.state, (struct uid){{9}}), 0);
    CHECK_EQ(cluster_state_applied(m.state), 4);
    machine_done(&m);
}

#define OTHER ((struct uid){{8}})

static void test_nodes(void)
{
    struct machine m = machine_create();
    uint64_t first = cluster_state_node_of_store(m.state, STORE);
    CHECK_STR(cluster_node_by_id(m.state, first)->address, "");
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_SET, .store = OTHER, .name = "b:1",
                 .new_name = "rack2", .size_bytes = GIB),
             0);
    uint64_t second = m.result.id;
    CHECK_EQ(second, first + 1);
    /* A repeated command, and the first node that gets an address. */
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_SET, .store = OTHER, .name = "b:2"), 0);
    CHECK_EQ(m.result.id, second);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_SET, .store = STORE, .name = "a:1"), 0);
    CHECK_EQ(m.result.id, first);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_SET, .store = STORE, .name = "a :1"), -PLX_ENAME);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_SET, .store = STORE, .new_name = "\x1b"),
             -PLX_ENAME);
    const struct cluster_node *node = cluster_node_next(m.state, NULL);
    CHECK_STR(node->address, "a:1");
    node = cluster_node_next(m.state, node);
    CHECK_STR(node->address, "b:2");
    CHECK_STR(node->domain, "");
    CHECK(cluster_node_next(m.state, node) == NULL);
    CHECK(cluster_node_by_id(m.state, second + 1) == NULL);
    machine_done(&m);
}

/* A story of commands that name disks by name only: what is answered, and to people. */
static void test_disk_names(void)
{
    static const struct {
        struct cluster_command command;
        int code;
        const char *text;
    } STEPS[] = {
        {{.op = CLUSTER_DISK_CREATE, .name = "web01", .size_bytes = GIB}, 0, ""},
        {{.op = CLUSTER_DISK_CREATE, .name = "web01", .size_bytes = GIB},
         -PLX_EEXISTS,
         "disk web01: exists already"},
        {{.op = CLUSTER_DISK_CREATE, .name = "web 1", .size_bytes = GIB},
         -PLX_ENAME,
         "disk web 1: not a valid name"},
        {{.op = CLUSTER_DISK_CREATE, .name = "b", .size_bytes = 0},
         -EINVAL,
         "disk b: size is 0"},
        {{.op = CLUSTER_DISK_CREATE, .name = "b", .size_bytes = 1000},
         -EINVAL,
         "disk b: size is not a multiple of 512"},
        {{.op = CLUSTER_DISK_CREATE, .name = "b", .size_bytes = DISK_BYTES_MAX + 512},
         -PLX_ELIMIT,
         "disk b: larger than 16 TiB"},
        {{.op = CLUSTER_DISK_CREATE, .name = "b", .size_bytes = GIB, .flags = 2},
         -EINVAL,
         "disk b: unknown flags"},
        {{.op = CLUSTER_DISK_CREATE, .name = "b", .size_bytes = DISK_BYTES_MAX}, 0, ""},
        {{.op = CLUSTER_DISK_RENAME, .name = "c", .new_name = "d"},
         -PLX_EMISSING,
         "disk c: no such disk"},
        {{.op = CLUSTER_DISK_RENAME, .name = "b", .new_name = "web01"},
         -PLX_EEXISTS,
         "disk web01: exists already"},
        {{.op = CLUSTER_DISK_RENAME, .name = "b", .new_name = ".b"},
         -PLX_ENAME,
         "disk .b: not a valid name"},
        {{.op = CLUSTER_DISK_RENAME, .name = "b", .new_name = "a"}, 0, ""},
        {{.op = CLUSTER_DISK_CREATE, .name = "b", .size_bytes = MIB}, 0, ""},
        {{.op = CLUSTER_DISK_DISCARD, .disk = 1},
         -PLX_EPRECONDITION,
         "disk web01: is not being imported"},
        {{.op = CLUSTER_DISK_DISCARD, .disk = 9},
         -PLX_EMISSING,
         "disk discard: there is no disk 9"},
        {{.op = CLUSTER_CLONE, .version = 9, .name = "x", .count = 1},
         -PLX_EMISSING,
         "clone: there is no version 9"},
    };
    struct machine m = machine_create();
    for (size_t i = 0; i < ARRAY_LEN(STEPS); i++) {
        CHECK_EQ(machine_run(&m, &STEPS[i].command), STEPS[i].code);
        CHECK_STR(m.result.text, STEPS[i].text);
    }
    static const char *const ORDER[] = {"a", "b", "web01"};
    const struct cluster_disk *disk = NULL;
    for (size_t i = 0; i < ARRAY_LEN(ORDER); i++) {
        disk = cluster_disk_next(m.state, disk);
        CHECK_STR(disk->name, ORDER[i]);
    }
    CHECK(cluster_disk_next(m.state, disk) == NULL);
    CHECK_EQ(disk_of(&m, "b")->id, 3);
    machine_done(&m);
}

static void test_size(void)
{
    struct machine m = machine_create();
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_CREATE, .name = "a", .size_bytes = MIB), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESIZE, .disk = 1, .size_bytes = 2 * MIB), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESIZE, .disk = 1, .size_bytes = MIB),
             -PLX_EPRECONDITION);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = 1, .node = 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESIZE, .disk = 1, .size_bytes = MIB),
             -PLX_EEPOCH);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESIZE, .disk = 1, .epoch = 1), -EINVAL);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESIZE, .disk = 1, .epoch = 1,
                 .size_bytes = 5 * MIB + 1),
             -EINVAL);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESIZE, .disk = 1, .epoch = 1, .size_bytes = MIB),
             0);
    CHECK_EQ(disk_of(&m, "a")->size_bytes, MIB);
    machine_done(&m);
}

static void test_import(void)
{
    struct machine m = machine_create();
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_CREATE, .name = "a", .flags = DISK_IMPORTING), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_CREATE, .name = "b", .flags = DISK_IMPORTING), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = 1, .node = 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_PUBLISH, .disk = 1, .size_bytes = MIB),
             -PLX_EEPOCH);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_PUBLISH, .disk = 1, .epoch = 1), -EINVAL);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_DISK_PUBLISH, .disk = 1, .epoch = 1, .size_bytes = MIB), 0);
    CHECK_EQ(disk_of(&m, "a")->flags, 0);
    CHECK_EQ(disk_of(&m, "a")->size_bytes, MIB);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_DISK_PUBLISH, .disk = 1, .epoch = 1, .size_bytes = MIB),
        -PLX_EPRECONDITION);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = 2, .node = 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_DISCARD, .disk = 2), -PLX_EOWNED);
    machine_extent(&m, 2); /* left open by an import that died */
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = 2, .epoch = 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_DISCARD, .disk = 2), 0);
    CHECK(cluster_disk_by_name(m.state, "b") == NULL);
    CHECK_EQ(cluster_disk_count(m.state), 1);
    /* Numbers are never given out again. */
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_CREATE, .name = "b", .size_bytes = MIB), 0);
    CHECK_EQ(m.result.id, 3);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = 3, .node = 1), 0);
    CHECK_EQ(machine_extent(&m, 3).v, address_of(1, 2, 0).v);
    machine_done(&m);
}

static void test_lease(void)
{
    struct machine m = machine_create();
    uint64_t id = machine_disk(&m, "a");
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 1, .node = 2),
             -PLX_EOWNED);
    CHECK_STR(m.result.text, "disk a: served by node 1");
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 0, .node = 1),
             -PLX_EEPOCH);
    CHECK_STR(m.result.text, "disk a: epoch 0 is over, it is 1");
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 2, .node = 1),
             -PLX_EPRECONDITION);
    /* A restart of the same node raises the epoch too. */
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 1, .node = 1), 0);
    CHECK_EQ(m.result.epoch, 2);
    struct address extent = machine_extent(&m, id);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = id, .epoch = 1), -PLX_EEPOCH);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = id, .epoch = 2),
             -PLX_EPRECONDITION);
    struct final_length final = {.extent = extent, .length = 9, .last_number = 4};
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = id, .epoch = 2, .flushed = 4,
                 .finals = &final, .final_count = 1),
             0);
    CHECK_EQ(disk_of(&m, "a")->owner, 0);
    CHECK_EQ(disk_of(&m, "a")->epoch, 2);
    CHECK_EQ(disk_of(&m, "a")->flushed, 4);
    /* What was given up cannot be used, though nobody took it since. */
    CHECK_EQ(RUN(&m, .op = CLUSTER_EXTENT_OPEN, .disk = id, .epoch = 2, .count = 1,
                 .member_count = 1, .members = {1}),
             -PLX_EEPOCH);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 2, .node = 2),
             -PLX_EPRECONDITION); /* there is no node 2 */
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 2, .node = 1), 0);
    CHECK_EQ(m.result.epoch, 3);
    machine_done(&m);
}

static void test_extents(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a"), b = machine_disk(&m, "b");
    CHECK_EQ(RUN(&m, .op = CLUSTER_EXTENT_OPEN, .disk = a, .epoch = 1, .count = 3,
                 .member_count = 1, .members = {1}),
             0);
    CHECK_EQ(m.result.id, address_of(1, 1, 0).v);
    CHECK_EQ(machine_extent(&m, b).v, address_of(1, 4, 0).v);
    CHECK_EQ(disk_of(&m, "a")->extent_count, 3);
    CHECK_EQ(disk_of(&m, "a")->extents[2].extent.v, address_of(1, 3, 0).v);
    CHECK_EQ(disk_of(&m, "a")->extents[2].epoch, 1);
    CHECK_EQ(disk_of(&m, "a")->extents[2].members[0], 1);
    static const struct {
        uint32_t count;
        uint8_t member_count;
        uint64_t members[2];
        int code;
    } BAD[] = {
        {0, 1, {1}, -EINVAL},      {1, 0, {0}, -EINVAL},
        {1, 2, {1, 1}, -EINVAL},   {1, 1, {2}, -PLX_EPRECONDITION},
        {98, 1, {1}, -PLX_ELIMIT}, {UINT32_MAX, 1, {1}, -PLX_ELIMIT},
    };
    for (size_t i = 0; i < ARRAY_LEN(BAD); i++)
        CHECK_EQ(RUN(&m, .op = CLUSTER_EXTENT_OPEN, .disk = a, .epoch = 1,
                     .count = BAD[i].count, .member_count = BAD[i].member_count,
                     .members = {BAD[i].members[0], BAD[i].members[1]}),
                 BAD[i].code);
    CHECK_EQ(RUN(&m, .op = CLUSTER_EXTENT_OPEN, .disk = a, .epoch = 1, .count = 97,
                 .member_count = 1, .members = {1}),
             0);
    /* One that leaves makes room in the same command. */
    struct final_length final = {.extent = address_of(1, 2, 0), .leaves = true};
    CHECK_EQ(RUN(&m, .op = CLUSTER_EXTENT_OPEN, .disk = a, .epoch = 1, .count = 1,
                 .member_count = 1, .members = {1}, .finals = &final, .final_count = 1),
             0);
    CHECK_EQ(disk_of(&m, "a")->extent_count, LOG_EXTENTS_MAX);
    CHECK_EQ(disk_of(&m, "a")->extents[1].extent.v, address_of(1, 3, 0).v);
    machine_done(&m);
}

/* Which disk lists an extent, whatever block of it is asked for. */
static void test_listed(void)
{
    struct machine m = machine_create();
    uint64_t a = machine_disk(&m, "a"), b = machine_disk(&m, "b"), disk = 0;
    struct address first = machine_extent(&m, a), second = machine_extent(&m, b);
    CHECK(cluster_listed_extent(m.state, address_plus(first, 9), &disk) ==
          &disk_of(&m, "a")->extents[0]);
    CHECK_EQ(disk, a);
    CHECK(cluster_listed_extent(m.state, second, NULL) == &disk_of(&m, "b")->extents[0]);
    CHECK(cluster_listed_extent(m.state, address_of(1, 3, 0), &disk) == NULL);
    struct final_length final = {.extent = first, .length = 0, .leaves = true};
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = a, .epoch = 1, .finals = &final,
                 .final_count = 1),
             0);
    CHECK(cluster_listed_extent(m.state, first, NULL) == NULL);
    struct writer w = {0};
    struct cluster_state *again;
    cluster_state_encode(m.state, &w);
    CHECK_EQ(cluster_state_decode(w.bytes, w.len, &again, NULL), 0);
    CHECK(cluster_listed_extent(again, second, &disk) != NULL);
    CHECK_EQ(disk, b);
    cluster_state_destroy(again);
    writer_done(&w);
    machine_done(&m);
}

static void test_finals(void)
{
    struct machine m = machine_create();
    uint64_t id = machine_disk(&m, "a");
    struct address first = machine_extent(&m, id), second = machine_extent(&m, id);
    const struct {
        struct final_length final;
        int code;
    } STEPS[] = {
        {{.extent = first, .length = EXTENT_BLOCKS + 1}, -EINVAL},
        {{.extent = first, .length = 0, .last_number = 1}, -EINVAL},
        {{.extent = address_plus(first, 1), .length = 1}, -EINVAL},
        {{.extent = address_of(1, 9, 0), .length = 1}, -EINVAL},
        {{.extent = address_of(2, 1, 0), .length = 1}, -EINVAL},
        {{.extent = ADDRESS_NULL, .length = 1}, -EINVAL},
        /* Batch 5 is above the checkpoint (none yet): needed for replay. */
        {{.extent = first, .length = 40, .last_number = 5, .leaves = true},
         -PLX_EPRECONDITION},
        {{.extent = first, .length = 40, .last_number = 5}, 0},
        {{.extent = first, .length = 40, .last_number = 5}, 0},
        {{.extent = first, .length = 41, .last_number = 5}, -PLX_EPRECONDITION},
        {{.extent = first, .length = 0}, -PLX_EPRECONDITION},
        {{.extent = second, .length = 0, .leaves = true}, 0},
        {{.extent = second, .length = 0, .leaves = true}, 0}, /* it left before */
    };
    for (size_t i = 0; i < ARRAY_LEN(STEPS); i++)
        CHECK_EQ(RUN(&m, .op = CLUSTER_EXTENT_OPEN, .disk = id, .epoch = 1, .count = 1,
                     .member_count = 1, .members = {1}, .finals = &STEPS[i].final,
                     .final_count = 1),
                 STEPS[i].code);
    const struct cluster_disk *disk = disk_of(&m, "a");
    CHECK(disk->extents[0].final);
    CHECK_EQ(disk->extents[0].length, 40);
    CHECK_EQ(disk->extents[0].last_number, 5);
    CHECK_EQ(disk->extent_count, 5);
    struct final_length twice[] = {{.extent = disk->extents[1].extent, .length = 1},
                                   {.extent = disk->extents[1].extent, .length = 1}};
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = id, .epoch = 1, .finals = twice,
                 .final_count = 2),
             -EINVAL);
    machine_done(&m);
}

/* Take-overs one after the other; which cuts stay. */
static void test_cuts(void)
{
    struct machine m = machine_create();
    uint64_t id = machine_disk(&m, "a");
    CHECK_EQ(RUN(&m, .op = CLUSTER_CUT, .disk = id, .epoch = 1, .number = 0), 0);
    CHECK_EQ(disk_of(&m, "a")->cut_count, 0); /* no extent it could void anything in */
    struct address first = machine_extent(&m, id), unused = machine_extent(&m, id);

    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 1, .node = 1), 0);
    struct address second = machine_extent(&m, id);
    struct final_length finals[] = {{.extent = first, .length = 90, .last_number = 20},
                                    {.extent = unused, .length = 0}};
    CHECK_EQ(RUN(&m, .op = CLUSTER_CUT, .disk = id, .epoch = 1, .number = 21),
             -PLX_EEPOCH);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_CUT, .disk = id, .epoch = 2, .number = 21, .flushed = 22),
        -PLX_EPRECONDITION);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CUT, .disk = id, .epoch = 2, .number = 21,
                 .flushed = 21, .finals = finals, .final_count = 2),
             0);
    const struct cluster_disk *disk = disk_of(&m, "a");
    CHECK_EQ(disk->extent_count, 3); /* the empty one has yet to be deleted */
    CHECK_EQ(disk->cut_count, 1);
    CHECK_EQ(disk->cuts[0].epoch, 1);
    CHECK_EQ(disk->cuts[0].number, 21);
    CHECK_EQ(disk->flushed, 21);

    /* Nothing new was written: the same number, one cut. */
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 2, .node = 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CUT, .disk = id, .epoch = 3, .number = 20),
             -PLX_EPRECONDITION);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CUT, .disk = id, .epoch = 3, .number = 21), 0);
    CHECK_EQ(disk->cut_count, 1);
    CHECK_EQ(disk->cuts[0].epoch, 2);

    /* No extent was opened under epoch 3, so a cut of it voids nothing more. */
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 3, .node = 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CUT, .disk = id, .epoch = 4, .number = 25), 0);
    CHECK_EQ(disk->cut_count, 1);

    /* A checkpoint lets the extents go, and with them the cut. */
    struct final_length leaving[] = {
        {.extent = first, .length = 90, .last_number = 20, .leaves = true},
        {.extent = unused, .length = 0, .leaves = true},
        {.extent = second, .length = 5, .last_number = 21, .leaves = true}};
    CHECK_EQ(RUN(&m, .op = CLUSTER_CHECKPOINT, .disk = id, .epoch = 4,
                 .checkpoint = {1, 20, 30}, .finals = leaving, .final_count = 3),
             -PLX_EPRECONDITION); /* 21 is above 20 */
    CHECK_EQ(RUN(&m, .op = CLUSTER_CHECKPOINT, .disk = id, .epoch = 4,
                 .checkpoint = {1, 25, 30}, .finals = leaving, .final_count = 3),
             0);
    CHECK_EQ(disk->extent_count, 0);
    CHECK_EQ(disk->cut_count, 0);
    CHECK_EQ(disk->flushed, 30);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CUT, .disk = id, .epoch = 4, .number = 29),
             -PLX_EPRECONDITION);
    machine_done(&m);
}

/* As many take-overs without a checkpoint as there may be extents. */
static void test_many_cuts(void)
{
    struct machine m = machine_create();
    uint64_t id = machine_disk(&m, "a");
    for (uint64_t i = 1; i <= LOG_EXTENTS_MAX; i++) {
        machine_extent(&m, id);
        CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = i, .node = 1), 0);
        CHECK_EQ(RUN(&m, .op = CLUSTER_CUT, .disk = id, .epoch = i + 1, .number = i), 0);
        CHECK_EQ(disk_of(&m, "a")->cut_count, i);
    }
    machine_done(&m);
}

static void test_checkpoint(void)
{
    struct machine m = machine_create();
    uint64_t id = machine_disk(&m, "a");
    struct map_root root = {
        .address = address_of(1, 1, 7), .crc = 5, .generation = 1, .height = 2};
    CHECK_EQ(RUN(&m, .op = CLUSTER_CHECKPOINT, .disk = id, .epoch = 1,
                 .checkpoint = {3, 10, 12}, .root = root),
             0);
    const struct cluster_disk *disk = disk_of(&m, "a");
    CHECK(disk->has_root);
    CHECK_EQ(disk->root.address.v, root.address.v);
    static const struct cluster_checkpoint BAD[] = {
        {3, 11, 12}, {2, 11, 12}, {4, 9, 12}, {4, 14, 13}};
    for (size_t i = 0; i < ARRAY_LEN(BAD); i++)
        CHECK_EQ(RUN(&m, .op = CLUSTER_CHECKPOINT, .disk = id, .epoch = 1,
                     .checkpoint = BAD[i], .root = root),
                 -PLX_EPRECONDITION);
    CHECK_EQ(disk->checkpoint.number, 3);
    /* An owner skipped a generation: the head follows. */
    root.generation = 4;
    CHECK_EQ(RUN(&m, .op = CLUSTER_CHECKPOINT, .disk = id, .epoch = 1,
                 .checkpoint = {4, 11, 11}, .root = root),
             0);
    CHECK_EQ(disk->head_generation, 4);
    CHECK_EQ(disk->flushed, 12);
    machine_done(&m);
}

static int checkpoint_roots(struct machine *m, uint64_t disk, uint64_t covers,
                            uint64_t newest, const struct version_root *roots,
                            uint32_t count)
{
    const struct cluster_disk *d = cluster_disk_by_id(m->state, disk);
    return RUN(m, .op = CLUSTER_CHECKPOINT, .disk = disk, .epoch = d->epoch,
               .checkpoint = {d->checkpoint.number + 1, covers, covers},
               .newest_marker = newest, .roots = roots, .root_count = count);
}

static void test_pending(void)
{
    struct machine m = machine_create();
    uint64_t id = machine_disk(&m, "a"), other = machine_disk(&m, "b");
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = id, .epoch = 1, .name = "s1",
                 .marker = 5, .generation = 1),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = id, .epoch = 1, .marker = 8,
                 .generation = 2),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = other, .epoch = 1, .marker = 8,
                 .generation = 1),
             0);
    const struct cluster_disk *disk = disk_of(&m, "a");
    CHECK_EQ(disk->pending_count, 2);
    CHECK_EQ(disk->snapshot_count, 1);
    struct version_root one[] = {{1, {{99}, 1, 1, 1}}};
    struct version_root two[] = {{2, {{98}, 1, 2, 1}}, {1, {{99}, 1, 1, 1}}};
    struct version_root twice[] = {one[0], one[0]};
    struct version_root foreign[] = {{3, {{97}, 1, 1, 1}}};
    struct version_root late[] = {{1, {{99}, 1, 2, 1}}};
    CHECK_EQ(checkpoint_roots(&m, id, 6, 5, one, 1), -PLX_EPRECONDITION); /* newer */
    CHECK_EQ(checkpoint_roots(&m, id, 6, 8, NULL, 0), -PLX_EPRECONDITION);
    CHECK_EQ(checkpoint_roots(&m, id, 6, 8, two, 2), -PLX_EPRECONDITION);
    CHECK_EQ(checkpoint_roots(&m, id, 8, 8, one, 1), -PLX_EPRECONDITION);
    CHECK_EQ(checkpoint_roots(&m, id, 8, 8, twice, 2), -PLX_EPRECONDITION);
    CHECK_EQ(checkpoint_roots(&m, id, 6, 8, foreign, 1), -PLX_EPRECONDITION);
    CHECK_EQ(checkpoint_roots(&m, id, 6, 8, late, 1), -PLX_EPRECONDITION); /* stamps */
    CHECK_EQ(checkpoint_roots(&m, id, 4, 8, NULL, 0), 0);
    CHECK_EQ(checkpoint_roots(&m, id, 6, 8, one, 1), 0);
    CHECK(!cluster_version_by_id(m.state, 1)->pending);
    CHECK_EQ(cluster_version_by_id(m.state, 1)->root.address.v, 99);
    CHECK_EQ(checkpoint_roots(&m, id, 9, 8, two, 2), -PLX_EPRECONDITION); /* 1 has one */
    CHECK_EQ(checkpoint_roots(&m, id, 9, 8, two, 1), 0);
    CHECK_EQ(disk->pending_count, 0);
    machine_done(&m);
}

static void test_snapshot(void)
{
    struct machine m = machine_create();
    uint64_t id = machine_disk(&m, "a");
    CHECK_EQ(checkpoint_roots(&m, id, 10, 0, NULL, 0), 0);
    static const struct {
        const char *name;
        uint64_t marker;
        uint32_t generation;
        int code;
    } STEPS[] = {
        {"s", 10, 1, -PLX_EPRECONDITION}, /* the checkpoint passed it */
        {"s/1", 11, 1, -PLX_ENAME},
        {"s", 11, 0, -PLX_EPRECONDITION}, /* below the head's generation */
        {"s", 11, UINT32_MAX - 1, -PLX_ELIMIT},
        {"s", 11, 1, 0},
        {"s", 12, 2, -PLX_EEXISTS},
        {"t", 11, 2, -PLX_EPRECONDITION}, /* one marker, one snapshot */
        {"t", 12, 1, -PLX_EPRECONDITION},
        {"t", 13, 3, 0}, /* the marker at 12 was refused; its generation is skipped */
        {"", 14, 4, 0},
        {"", 15, 5, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(STEPS); i++)
        CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = id, .epoch = 1,
                     .name = STEPS[i].name, .marker = STEPS[i].marker,
                     .generation = STEPS[i].generation, .wall_ns = 77),
                 STEPS[i].code);
    const struct cluster_disk *disk = disk_of(&m, "a");
    const struct cluster_version *t = cluster_version_by_name(m.state, id, "t");
    CHECK_EQ(t->parent, cluster_version_by_name(m.state, id, "s")->id);
    CHECK_EQ(t->generation, 3);
    CHECK_EQ(t->size_bytes, GIB);
    CHECK_EQ(t->marker_epoch, 1);
    CHECK(t->pending);
    CHECK_EQ(t->child_count, 1);
    CHECK_EQ(disk->head_generation, 6);
    CHECK_EQ(disk->newest_marker, 15);
    CHECK_EQ(disk->snapshot_count, 2);
    CHECK_EQ(disk->version_count, 4);
    CHECK_EQ(cluster_version_by_id(m.state, disk->head_parent)->marker, 15);
    for (uint32_t i = disk->pending_count; i < PENDING_VERSIONS_MAX; i++)
        CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = id, .epoch = 1, .marker = 20 + i,
                     .generation = 10 + i),
                 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = id, .epoch = 1, .marker = 100,
                 .generation = 100),
             -PLX_ELIMIT);
    machine_done(&m);
}

static void test_abandon(void)
{
    struct machine m = machine_create();
    uint64_t id = machine_disk(&m, "a");
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT_ABANDON, .disk = id, .epoch = 1, .marker = 5),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT_ABANDON, .disk = id, .epoch = 1, .marker = 3),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = id, .epoch = 1, .name = "s",
                 .marker = 5, .generation = 1),
             -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "disk a: marker 5 was abandoned");
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = id, .epoch = 1, .name = "s",
                 .marker = 6, .generation = 1),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT_ABANDON, .disk = id, .epoch = 1, .marker = 6),
             -PLX_EPRECONDITION);
    CHECK_EQ(disk_of(&m, "a")->abandoned_marker, 5);
    machine_done(&m);
}

static void test_clone(void)
{
    struct machine m = machine_create();
    uint64_t id = machine_disk(&m, "gold");
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = id, .epoch = 1, .name = "s",
                 .marker = 6, .generation = 1),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = "one", .count = 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = "one", .count = 1),
             -PLX_EEXISTS);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = "one-3", .count = 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = "one", .count = 5),
             -PLX_EEXISTS); /* all or none */
    CHECK_STR(m.result.text, "disk one-3: exists already");
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = "x", .count = 0),
             -EINVAL);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = "x",
                 .count = CLONES_PER_COMMAND + 1),
             -PLX_ELIMIT);
    char name[DISK_NAME_MAX + 1];
    memset(name, 'x', sizeof name);
    name[DISK_NAME_MAX - 2] = '\0';
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = name, .count = 10),
             -PLX_ENAME);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = name, .count = 9), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = "vm", .count = 3), 0);
    CHECK_EQ(m.result.id, disk_of(&m, "vm-1")->id);
    CHECK_EQ(m.result.id + 2, disk_of(&m, "vm-3")->id);
    const struct cluster_disk *clone = disk_of(&m, "vm-2");
    CHECK_EQ(clone->head_parent, 1);
    CHECK_EQ(clone->head_generation, 2);
    CHECK_EQ(clone->size_bytes, GIB);
    CHECK_EQ(clone->epoch, 0);
    CHECK(!clone->has_root);
    CHECK_EQ(cluster_version_by_id(m.state, 1)->child_count, 1 + 2 + 9 + 3);

    struct map_root root = {.height = 9};
    const struct cluster_version *pending = NULL;
    CHECK_EQ(cluster_disk_root(m.state, clone, &root, &pending), -EAGAIN);
    CHECK_EQ(pending->id, 1);
    CHECK_EQ(root.height, 9);
    struct version_root roots[] = {{1, {{99}, 1, 1, 1}}};
    CHECK_EQ(checkpoint_roots(&m, id, 6, 6, roots, 1), 0);
    CHECK_EQ(cluster_disk_root(m.state, clone, &root, &pending), 0);
    CHECK_EQ(root.address.v, 99);
    CHECK_EQ(cluster_disk_root(m.state, disk_of(&m, "gold"), &root, &pending), 0);
    CHECK_EQ(root.address.v, 0);
    machine_done(&m);
}

static void test_rollback(void)
{
    struct machine m = machine_create();
    uint64_t id = machine_disk(&m, "a"), other = machine_disk(&m, "b");
    struct version_root roots[] = {{1, {{99}, 1, 1, 1}}};
    struct address extent = machine_extent(&m, id);
    CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = id, .epoch = 1, .name = "s",
                 .marker = 6, .generation = 1),
             0);
    CHECK_EQ(
        RUN(&m, .op = CLUSTER_DISK_RESIZE, .disk = id, .epoch = 1, .size_bytes = 2 * GIB),
        0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = id, .epoch = 1, .version = 1),
             -PLX_EOWNED);
    struct final_length final = {.extent = extent, .length = 60, .last_number = 30};
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = id, .epoch = 1, .flushed = 30,
                 .finals = &final, .final_count = 1),
             0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = id, .epoch = 1, .version = 1),
             -PLX_EPRECONDITION); /* pending */
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 1, .node = 1), 0);
    CHECK_EQ(checkpoint_roots(&m, id, 9, 6, roots, 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = id, .epoch = 2), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = id, .epoch = 2, .version = 1),
             -PLX_EPRECONDITION);
    CHECK_STR(m.result.text,
              "disk a: extent 1000000004000 has what no checkpoint covers");
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = id, .epoch = 2, .node = 1), 0);
    CHECK_EQ(checkpoint_roots(&m, id, 30, 6, NULL, 0), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = id, .epoch = 3), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = id, .epoch = 1, .version = 1),
             -PLX_EEPOCH);
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = id, .epoch = 3, .version = 2),
             -PLX_EMISSING);
    CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_CLOSE, .disk = other, .epoch = 1), 0);
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = other, .epoch = 1, .version = 1),
             -PLX_EMISSING); /* another disk's */
    CHECK_EQ(RUN(&m, .op = CLUSTER_ROLLBACK, .disk = id, .epoch = 3, .version = 1), 0);
    const struct cluster_disk *disk = disk_of(&m, "a");
    CHECK_EQ(disk->head_parent, 1);
    CHECK_EQ(disk->head_generation, 2);
    CHECK_EQ(disk->size_bytes, GIB);
    CHECK(disk->has_root);
    CHECK_EQ(disk->root.address.v, 99);
    CHECK_EQ(disk->extent_count, 0);
    CHECK_EQ(disk->checkpoint.number, 3);
    CHECK_EQ(disk->checkpoint.covers, 30); /* batches go on with 31 */
    CHECK_EQ(disk->checkpoint.last, 30);
    CHECK_EQ(disk->epoch, 3);
    machine_done(&m);
}

static void test_repeated(void)
{
    struct machine m = machine_create();
    struct cluster_command command = {.op = CLUSTER_DISK_CREATE,
                                      .name = "a",
                                      .size_bytes = MIB,
                                      .client = 7,
                                      .sequence = 3};
    CHECK_EQ(machine_run(&m, &command), 0);
    CHECK_EQ(machine_run(&m, &command), 0);
    CHECK_EQ(m.result.id, 1);
    command.sequence = 2;
    CHECK_EQ(machine_run(&m, &command), -PLX_EPRECONDITION);
    /* What was refused stays so, whatever has changed since: a copy of it must not do
     * what its submitter was told will not happen. */
    command.sequence = 4;
    CHECK_EQ(machine_run(&m, &command), -PLX_EEXISTS);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RENAME, .name = "a", .new_name = "b"), 0);
    CHECK_EQ(machine_run(&m, &command), -PLX_EEXISTS);
    CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RENAME, .name = "b", .new_name = "a"), 0);
    command.sequence = 3;
    CHECK_EQ(machine_run(&m, &command), -PLX_EPRECONDITION);
    struct writer w = {0};
    struct cluster_state *copy;
    struct cluster_result result;
    cluster_state_encode(m.state, &w);
    CHECK_EQ(cluster_state_decode(w.bytes, w.len, &copy, NULL), 0);
    CHECK(cluster_state_answer(copy, 7, 4, &result));
    CHECK_EQ(result.code, -PLX_EEXISTS);
    CHECK(!cluster_state_answer(copy, 7, 3, &result));
    cluster_state_destroy(copy);
    writer_done(&w);
    command.sequence = 5;
    /* The table is bounded: the least recently used goes. */
    for (uint64_t client = 100; client < 100 + CLUSTER_CLIENTS_MAX; client++)
        CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_RESIZE, .disk = 1, .size_bytes = MIB,
                     .client = client, .sequence = 1),
                 0);
    CHECK_EQ(machine_run(&m, &command), -PLX_EEXISTS);
    CHECK_EQ(cluster_disk_count(m.state), 1);
    machine_done(&m);
}

int main(void)
{
    test_names();
    test_init();
    test_nodes();
    test_disk_names();
    test_size();
    test_import();
    test_lease();
    test_extents();
    test_listed();
    test_finals();
    test_cuts();
    test_many_cuts();
    test_checkpoint();
    test_pending();
    test_snapshot();
    test_abandon();
    test_clone();
    test_rollback();
    test_repeated();
    return 0;
}
