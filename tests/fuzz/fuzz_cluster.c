/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decoders of commands and of the cluster state. The first byte chooses:
 *
 *   even  a command, applied to a small cluster (the second byte: after how much of it)
 *   odd   a state; its length and checksum are made right first, else nothing but the
 *         checksum would ever be looked at
 *
 * What decodes must encode to the same bytes, and every state must be consistent.
 */
#include "replication/cluster_apply.c"
#include "replication/cluster_apply_groups.c"
#include "replication/cluster_apply_join.c"
#include "replication/cluster_apply_log.c"
#include "replication/cluster_apply_nodes.c"
#include "replication/cluster_apply_pools.c"
#include "replication/cluster_apply_remove.c"
#include "replication/cluster_apply_tree.c"
#include "replication/cluster_command.c"
#include "replication/cluster_snapshot.c"
#include "replication/cluster_snapshot_nodes.c"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void run(struct cluster_state *state, const struct cluster_command *command)
{
    struct writer w = {0};
    struct cluster_result result;
    cluster_command_encode(command, &w);
    cluster_state_apply(state, cluster_state_applied(state) + 1, w.bytes, w.len, &result);
    writer_done(&w);
}

static void run_steps(struct cluster_state *state, unsigned steps)
{
    static const struct version_root ROOTS[] = {{1, {{5}, 1, 1, 1}}, {2, {{6}, 1, 2, 1}}};
    static const uint64_t VERSIONS[] = {1, 2};
    static const struct cluster_command STEPS[] = {
        {.op = CLUSTER_INIT, .node = 1},
        {.op = CLUSTER_DISK_CREATE, .name = "a", .size_bytes = MIB},
        {.op = CLUSTER_LEASE_TAKE, .disk = 1, .node = 1},
        {.op = CLUSTER_EXTENT_OPEN,
         .disk = 1,
         .epoch = 1,
         .count = 2,
         .member_count = 1,
         .members = {1}},
        {.op = CLUSTER_SNAPSHOT,
         .disk = 1,
         .epoch = 1,
         .name = "s",
         .marker = 5,
         .generation = 1},
        {.op = CLUSTER_CLONE, .version = 1, .name = "c", .count = 2},
        {.op = CLUSTER_SNAPSHOT,
         .disk = 1,
         .epoch = 1,
         .name = "t",
         .marker = 6,
         .generation = 2},
        {.op = CLUSTER_CHECKPOINT,
         .disk = 1,
         .epoch = 1,
         .checkpoint = {1, 6, 6},
         .newest_marker = 6,
         .roots = ROOTS,
         .root_count = 2,
         .list = {.head = {77}, .blocks = 1}},
        {.op = CLUSTER_SNAPSHOT_RM, .disk = 1, .versions = VERSIONS, .version_count = 2},
        {.op = CLUSTER_COLLAPSE_BEGIN, .version = 2, .disk = 1, .epoch = 1, .number = 1},
        {.op = CLUSTER_DISK_TRASH, .disk = 2},
        {.op = CLUSTER_DISK_REMOVE, .disk = 2},
        {.op = CLUSTER_DISK_TRASH, .disk = 3},
        {.op = CLUSTER_NODE_SET, .store = {{1}}, .name = "b:1"},
        {.op = CLUSTER_TOKEN_ADD, .digest = {1}, .wall_ns = 1, .until_wall_ns = 9},
        {.op = CLUSTER_NODE_JOIN, .digest = {1}, .store = {{2}}, .wall_ns = 2},
        {.op = CLUSTER_POOL_SET, .name = "p", .copies = 2, .min_copies = 1},
        {.op = CLUSTER_GROUP_ADD, .pool = 2, .member_count = 1, .members = {2}},
        {.op = CLUSTER_GROUP_SET,
         .group = 1,
         .number = 1,
         .member_count = 3,
         .members = {1, 2, 3}},
        {.op = CLUSTER_AUTHORITY,
         .certificate = "c",
         .certificate_len = 1,
         .key = "k",
         .key_len = 1},
        {.op = CLUSTER_NODE_STATE, .node = 3, .flags = NODE_DOWN},
        {.op = CLUSTER_GROUP_WHOLE, .group = 1, .node = 2, .number = 19},
        {.op = CLUSTER_NODE_GONE, .node = 3, .force = true, .data_loss = true},
    };
    for (unsigned i = 0; i < ARRAY_LEN(STEPS) && i < steps; i++)
        run(state, &STEPS[i]);
}

static void check_state(const struct cluster_state *state)
{
    char text[200];
    int rc = cluster_state_check(state, text, sizeof text);
    assert(rc == 0);
}

static void one_command(const uint8_t *bytes, size_t len)
{
    struct decoded_command decoded;
    struct cluster_result result;
    if (len == 0)
        return;
    struct cluster_state *state = cluster_state_create();
    run_steps(state, bytes[0]);
    bytes++;
    len--;
    if (cluster_command_decode(bytes, len, &decoded) == 0) {
        struct writer w = {0};
        cluster_command_encode(&decoded.command, &w);
        bool is_old = bytes[0] < COMMAND_VERSION;
        assert(w.bad || is_old || (w.len == len && memcmp(w.bytes, bytes, len) == 0));
        writer_done(&w);
    }
    cluster_state_apply(state, cluster_state_applied(state) + 1, bytes, len, &result);
    check_state(state);
    cluster_state_destroy(state);
}

#define STATE_VERSION_OFFSET 8U

static void one_state(const uint8_t *bytes, size_t len)
{
    struct cluster_state *state = NULL;
    struct error err;
    if (len < STATE_HEADER_BYTES + sizeof(le32))
        return;
    uint8_t *sealed = malloc(len);
    if (sealed == NULL)
        return;
    memcpy(sealed, bytes, len);
    le64 length = le64_of(len);
    memcpy(sealed + STATE_LENGTH_OFFSET, &length, sizeof length);
    memset(sealed + STATE_LENGTH_OFFSET - 4, 0, 4); /* unknown features are not kept */
    le32 crc = le32_of(crc32c(sealed, len - sizeof crc));
    memcpy(sealed + len - sizeof crc, &crc, sizeof crc);
    if (cluster_state_decode(sealed, len, &state, &err) == 0) {
        struct writer w = {0};
        check_state(state);
        cluster_state_encode(state, &w);
        bool is_old = sealed[STATE_VERSION_OFFSET] < STATE_VERSION;
        assert(w.bad || is_old || (w.len == len && memcmp(w.bytes, sealed, len) == 0));
        writer_done(&w);
        run_steps(state, UINT32_MAX); /* whatever it says, it can be worked with */
        check_state(state);
        cluster_state_destroy(state);
    }
    free(sealed);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    if (len == 0)
        return 0;
    if (bytes[0] % 2 == 0)
        one_command(bytes + 1, len - 1);
    else
        one_state(bytes + 1, len - 1);
    return 0;
}
