/* SPDX-License-Identifier: Apache-2.0 */
/* Random commands to two machines, one of which is written and read back on the way;
 * malformed bytes to both decoders; and how long a large state takes. */
#include <time.h>

#include "tests/unit/cluster_machine.h"
#include "tests/unit/cluster_random.h"

#define STREAMS         12U
#define STREAM_COMMANDS 3000U

static void reload(struct machine *m)
{
    struct writer w = {0};
    struct cluster_state *again = NULL;
    struct error err = {0};
    machine_encode(m, &w);
    if (cluster_state_decode(w.bytes, w.len, &again, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    cluster_state_destroy(m->state);
    m->state = again;
    writer_done(&w);
}

static void check_equal(const struct machine *a, const struct machine *b)
{
    struct writer wa = {0}, wb = {0};
    machine_encode(a, &wa);
    machine_encode(b, &wb);
    CHECK_EQ(wa.len, wb.len);
    CHECK(memcmp(wa.bytes, wb.bytes, wa.len) == 0);
    writer_done(&wa);
    writer_done(&wb);
}

/* Every operation must have succeeded and been refused, and each of these must have
 * come about, or the stream tests little. */
enum situation {
    AGAINST_NOTHING, /* collapses of each kind */
    AGAINST_VERSION,
    AGAINST_HEAD,
    SNAPSHOT_BETWEEN, /* an end whose head took a snapshot meanwhile */
    ROOT_PASSED_ON,   /* an end that gives a head its root */
    TOOK_OVER,        /* an end that makes a disk shared */
    OLD_HEAD_KEPT,
    PURGED_ALL,
    PURGED_WITH_VERSIONS,
    PURGED_HEAD,
    PURGED_LAST,
    MEMBER_LEFT_OUT, /* of an extent's write set, and was whole before */
    MEMBER_WHOLE,    /* that was not */
    WHOLE_ONE_LEFT,  /* a group */
    LOST_WITH_DATA,  /* a node, and a group had no other whole member */
    EMPTY_GROUP_FILLED,
    SITUATIONS,
};

struct tally {
    uint32_t done[CLUSTER_OP_LAST + 1], refused[CLUSTER_OP_LAST + 1];
    uint32_t situations[SITUATIONS];
};

static void note_end(const struct cluster_state *state,
                     const struct cluster_version *version, bool *seen)
{
    const struct cluster_version *child = cluster_child_next(version, NULL);
    const struct cluster_disk *disk = cluster_head_next(version, NULL);
    if (child != NULL)
        disk = cluster_disk_by_id(state, child->disk);
    bool against_head = disk != NULL && disk->collapsing_version == version->id;
    seen[SNAPSHOT_BETWEEN] = against_head && child != NULL;
    seen[ROOT_PASSED_ON] = against_head && !disk->has_root;
    seen[TOOK_OVER] = disk != NULL && disk->id != version->disk &&
                      !(disk->flags & DISK_SHARED);
}

static uint32_t whole_among(const struct cluster_group *group,
                            const struct cluster_command *command)
{
    uint32_t count = 0;
    for (unsigned i = 0; i < command->member_count; i++) {
        const struct group_member *member = cluster_group_member(group,
                                                                 command->members[i]);
        count += member != NULL && member->missing_since == 0;
    }
    return count;
}

static uint32_t whole_of(const struct cluster_group *group)
{
    uint32_t count = 0;
    for (unsigned i = 0; i < group->member_count; i++)
        count += group->members[i].missing_since == 0;
    return count;
}

static void note_groups(const struct cluster_state *state,
                        const struct cluster_command *command, bool *seen)
{
    const struct cluster_group *group = cluster_group_by_id(state, command->group);
    if (group != NULL && command->op == CLUSTER_EXTENT_OPEN)
        seen[MEMBER_LEFT_OUT] = whole_among(group, command) < whole_of(group);
    if (group != NULL && command->op == CLUSTER_GROUP_WHOLE)
        seen[MEMBER_WHOLE] = command->number != 0;
    if (group != NULL && command->op == CLUSTER_GROUP_SET) {
        seen[WHOLE_ONE_LEFT] = whole_among(group, command) < whole_of(group);
        seen[EMPTY_GROUP_FILLED] = group->member_count == 0;
    }
    if (command->op != CLUSTER_NODE_GONE)
        return;
    group = NULL;
    while ((group = cluster_group_next(state, group)) != NULL) {
        const struct group_member *member = cluster_group_member(group, command->node);
        seen[LOST_WITH_DATA] |= member != NULL && member->missing_since == 0 &&
                                whole_of(group) == 1;
    }
}

/* What the command would be a case of, if it succeeds. */
static void note_situations(const struct cluster_state *state,
                            const struct cluster_command *command, bool *seen)
{
    const struct cluster_disk *disk = cluster_disk_by_id(state, command->disk);
    const struct cluster_version *version = cluster_version_by_id(state,
                                                                  command->version);
    unsigned flags = disk == NULL ? 0 : disk->flags;
    if (command->op == CLUSTER_COLLAPSE_BEGIN && version != NULL) {
        seen[AGAINST_NOTHING] = version->child_count == 0;
        seen[AGAINST_VERSION] = cluster_child_next(version, NULL) != NULL;
        seen[AGAINST_HEAD] = cluster_head_next(version, NULL) != NULL;
    }
    if (command->op == CLUSTER_COLLAPSE_END && version != NULL)
        note_end(state, version, seen);
    if (command->op == CLUSTER_ROLLBACK && disk != NULL)
        seen[OLD_HEAD_KEPT] = disk->has_root;
    if (command->op == CLUSTER_DISK_PURGED && disk != NULL) {
        seen[PURGED_LAST] = (flags & DISK_HEADLESS) != 0;
        seen[PURGED_HEAD] = (flags & DISK_SHARED) && !seen[PURGED_LAST];
        seen[PURGED_ALL] = !(flags & DISK_SHARED) && disk->version_count == 0;
        seen[PURGED_WITH_VERSIONS] = !(flags & DISK_SHARED) && disk->version_count != 0;
    }
    note_groups(state, command, seen);
}

static void run_stream(uint64_t seed, struct tally *tally)
{
    struct machine a = machine_create(), b = machine_create();
    static struct random_commands random;
    random.seed = seed * 0x9e3779b97f4a7c15 + 1;
    b.quick = true;
    for (uint32_t i = 0; i < STREAM_COMMANDS; i++) {
        const struct cluster_command *command = random_command(&random, a.state);
        bool seen[SITUATIONS] = {false};
        note_situations(a.state, command, seen);
        int rc = machine_run(&a, command);
        CHECK_EQ(machine_run(&b, command), rc);
        CHECK_EQ(a.result.id, b.result.id);
        CHECK_EQ(a.result.epoch, b.result.epoch);
        CHECK_STR(a.result.text, b.result.text);
        uint32_t *counts = rc == 0 ? tally->done : tally->refused;
        counts[command->op]++;
        for (unsigned j = 0; j < SITUATIONS; j++)
            tally->situations[j] += rc == 0 && seen[j];
        if (i % 100 == 99) {
            check_equal(&a, &b);
            reload(&b);
        }
    }
    machine_done(&a);
    machine_done(&b);
}

static void test_streams(void)
{
    struct tally tally = {{0}, {0}, {0}};
    for (uint64_t seed = 1; seed <= seeds_of(STREAMS); seed++)
        run_stream(seed, &tally);
    if (seeds_of(STREAMS) < STREAMS)
        return; /* all of them together meet everything */
    for (unsigned op = CLUSTER_DISK_CREATE; op <= CLUSTER_OP_LAST; op++) {
        if (tally.done[op] == 0 || tally.refused[op] == 0)
            fprintf(stderr, "operation %u: %u done, %u refused\n", op, tally.done[op],
                    tally.refused[op]);
        CHECK(tally.done[op] != 0 && tally.refused[op] != 0);
    }
    for (unsigned i = 0; i < SITUATIONS; i++) {
        if (tally.situations[i] == 0)
            fprintf(stderr, "situation %u never came about\n", i);
        CHECK(tally.situations[i] != 0);
    }
}

/* In memory of its own size, so that a sanitizer sees any byte read beyond. */
static int run_copy(struct machine *m, const uint8_t *bytes, size_t len)
{
    uint8_t *copy = malloc(len + (len == 0));
    CHECK(copy != NULL);
    memcpy(copy, bytes, len);
    int rc = machine_bytes(m, copy, len);
    free(copy);
    return rc;
}

static void test_malformed_commands(void)
{
    struct machine m = machine_create();
    static struct random_commands random;
    random.seed = 99;
    for (uint32_t i = 0; i < 150; i++) {
        struct writer w = {0};
        cluster_command_encode(random_command(&random, m.state), &w);
        for (size_t len = 0; len < w.len; len++)
            CHECK_EQ(run_copy(&m, w.bytes, len), -PLX_EFORMAT);
        m.quick = true;
        for (size_t bit = 0; bit < w.len * 8; bit++) {
            w.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            run_copy(&m, w.bytes, w.len);
            w.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        m.quick = false;
        write_u8(&w, 0);
        CHECK_EQ(run_copy(&m, w.bytes, w.len), -PLX_EFORMAT);
        w.bytes[0]++;
        CHECK_EQ(run_copy(&m, w.bytes, w.len), -PLX_ENEWER);
        writer_done(&w);
    }
    machine_done(&m);
}

static int decode_copy(const uint8_t *bytes, size_t len)
{
    struct cluster_state *state = NULL;
    struct error err = {0};
    uint8_t *copy = malloc(len + (len == 0));
    CHECK(copy != NULL);
    memcpy(copy, bytes, len);
    int rc = cluster_state_decode(copy, len, &state, &err);
    CHECK((rc == 0) == (state != NULL));
    CHECK((rc == 0) == (err.text[0] == '\0'));
    cluster_state_destroy(state);
    free(copy);
    return rc;
}

/* Makes length and checksum right, so that what lies between is looked at. */
static void seal(uint8_t *bytes, size_t len)
{
    le64 length = le64_of(len);
    memcpy(bytes + 20, &length, sizeof length);
    le32 crc = le32_of(crc32c(bytes, len - 4));
    memcpy(bytes + len - 4, &crc, sizeof crc);
}

static void test_malformed_states(void)
{
    struct machine m = machine_create();
    static struct random_commands random;
    struct writer w = {0};
    random.seed = 5;
    m.quick = true;
    while (cluster_state_applied(m.state) < 150)
        machine_run(&m, random_command(&random, m.state));
    machine_encode(&m, &w);
    CHECK_EQ(decode_copy(w.bytes, w.len), 0);
    for (size_t len = 0; len < w.len; len++) {
        CHECK(decode_copy(w.bytes, len) != 0);
        if (len < 32)
            continue;
        uint8_t *cut = malloc(len);
        CHECK(cut != NULL);
        memcpy(cut, w.bytes, len);
        seal(cut, len);
        CHECK_EQ(decode_copy(cut, len), -PLX_EDAMAGED);
        free(cut);
    }
    for (size_t bit = 0; bit < w.len * 8; bit += 1 + random_below(&random, 3)) {
        w.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(decode_copy(w.bytes, w.len) != 0);
        seal(w.bytes, w.len);
        decode_copy(w.bytes, w.len);
        w.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        seal(w.bytes, w.len);
    }
    CHECK_EQ(decode_copy(w.bytes, w.len), 0);
    w.bytes[12] = 1; /* an incompatible feature */
    seal(w.bytes, w.len);
    CHECK_EQ(decode_copy(w.bytes, w.len), -PLX_ENEWER);
    w.bytes[12] = 0;
    w.bytes[16] = 1; /* a compatible one */
    seal(w.bytes, w.len);
    CHECK_EQ(decode_copy(w.bytes, w.len), 0);
    writer_done(&w);
    machine_done(&m);
}

/* The smallest entries there can be, and nothing behind them. */
static void test_small_entries(void)
{
    struct machine m = machine_create();
    for (char name[2] = "a"; name[0] <= 'z'; name[0]++)
        CHECK_EQ(RUN(&m, .op = CLUSTER_DISK_CREATE, .name = name, .size_bytes = MIB), 0);
    reload(&m);
    for (uint64_t disk = 1; disk <= 26; disk++) {
        CHECK_EQ(RUN(&m, .op = CLUSTER_LEASE_TAKE, .disk = disk, .node = 1), 0);
        for (uint32_t i = 1; i <= PENDING_VERSIONS_MAX; i++)
            CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT, .disk = disk, .epoch = 1,
                         .marker = i, .generation = i),
                     0);
    }
    reload(&m);
    machine_done(&m);
}

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

#define LARGE 10000U

static void large_history(struct machine *m, uint64_t disk)
{
    for (uint32_t i = 1; i <= LARGE; i++) {
        char name[16];
        snprintf(name, sizeof name, "s%u", i);
        CHECK_EQ(RUN(m, .op = CLUSTER_SNAPSHOT, .disk = disk, .epoch = 1, .name = name,
                     .marker = i, .generation = i),
                 0);
        struct version_root root = {i, {{i}, i, i, 1}};
        CHECK_EQ(RUN(m, .op = CLUSTER_CHECKPOINT, .disk = disk, .epoch = 1,
                     .checkpoint = {i, i, i}, .newest_marker = i, .roots = &root,
                     .root_count = 1),
                 0);
    }
}

/* 10,000 clones and 10,000 versions. The bound is a loose one: sanitizers, other load. */
static void test_large(void)
{
    struct machine m = machine_create();
    m.quick = true;
    large_history(&m, machine_disk(&m, "gold"));
    double start = now_ms();
    CHECK_EQ(RUN(&m, .op = CLUSTER_CLONE, .version = 1, .name = "vm", .count = LARGE), 0);
    double cloned = now_ms();
    struct writer w = {0};
    struct cluster_state *again = NULL;
    machine_encode(&m, &w);
    double encoded = now_ms();
    CHECK_EQ(cluster_state_decode(w.bytes, w.len, &again, NULL), 0);
    double decoded = now_ms();
    printf("%u clones %.1f ms; encode %.1f ms, %zu bytes; decode %.1f ms\n", LARGE,
           cloned - start, encoded - cloned, w.len, decoded - encoded);
    CHECK(decoded - cloned < 1000);
    cluster_state_destroy(again);
    writer_done(&w);
    machine_done(&m);
}

/* 10,000 snapshots in a row lose their names and go, the oldest first. */
static void test_large_removal(void)
{
    struct machine m = machine_create();
    static uint64_t versions[SNAPSHOTS_PER_COMMAND];
    m.quick = true;
    uint64_t id = machine_disk(&m, "gold");
    large_history(&m, id);
    double start = now_ms();
    for (uint64_t first = 1; first <= LARGE; first += SNAPSHOTS_PER_COMMAND) {
        uint32_t count = 0;
        for (uint64_t i = first; i <= LARGE && count < SNAPSHOTS_PER_COMMAND; i++)
            versions[count++] = i;
        CHECK_EQ(RUN(&m, .op = CLUSTER_SNAPSHOT_RM, .disk = id, .versions = versions,
                     .version_count = count),
                 0);
    }
    double unnamed = now_ms();
    CHECK_EQ(cluster_spare_count(m.state), LARGE);
    const struct cluster_version *version;
    while ((version = cluster_spare_next(m.state, NULL)) != NULL) {
        uint64_t head = cluster_head_next(version, NULL) != NULL ? id : 0;
        uint64_t victim = version->id;
        CHECK_EQ(RUN(&m, .op = CLUSTER_COLLAPSE_BEGIN, .version = victim, .disk = head,
                     .epoch = 1, .number = LARGE),
                 0);
        CHECK_EQ(RUN(&m, .op = CLUSTER_COLLAPSE_END, .version = victim), 0);
    }
    double gone = now_ms();
    printf("%u snapshots: names %.1f ms, collapses %.1f ms\n", LARGE, unnamed - start,
           gone - unnamed);
    CHECK(gone - start < 1000);
    CHECK_EQ(cluster_version_count(m.state), 0);
    m.quick = false;
    CHECK_EQ(RUN(&m, .op = CLUSTER_QUOTA_SET, .disk = id, .quota_bytes = 1), 0);
    machine_done(&m);
}

int main(void)
{
    test_streams();
    test_malformed_commands();
    test_malformed_states();
    test_small_entries();
    test_large();
    test_large_removal();
    return 0;
}
