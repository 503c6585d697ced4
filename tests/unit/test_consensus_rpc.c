/* SPDX-License-Identifier: Apache-2.0 */
/* Consensus over calls between nodes: large messages in parts, lost connections, foreign
 * parts, and nothing left at the end. test_consensus_random has many more lives. */
#include <sys/wait.h>

#include "replication/raft_rpc.c"
#include "tests/unit/consensus_cluster.h"

#define SEEDS 4U

static struct cluster *cluster_by_calls(uint64_t seed, uint32_t count)
{
    struct cluster *cl = cluster_create(seed, count);
    cl->has_calls = true;
    sim_world_faults(cl->world)->net_latency_min_ns = 50 * NS_PER_US;
    sim_world_faults(cl->world)->net_latency_max_ns = NS_PER_MS;
    for (uint32_t i = 1; i <= count; i++)
        node_open(&cl->nodes[i]);
    for (uint32_t i = 2; i <= count; i++)
        add_voter(cl, i);
    return cl;
}

static void submit_large(struct node *n, uint64_t client, uint32_t pad_bytes)
{
    struct op op = {.kind = OP_SUBMIT,
                    .client = client,
                    .sequence = n->cluster->acked[client] + 1,
                    .pad_bytes = pad_bytes};
    for (unsigned i = 0; i < 20 && op_run(n, &op) != 0; i++)
        ;
    CHECK_EQ(op.rc, 0);
}

/* Large commands from each node, and a snapshot of three parts. */
static void test_large(uint64_t seed)
{
    struct cluster *cl = cluster_by_calls(seed, 3);
    cl->pad_bytes = 0;
    for (uint32_t i = 1; i <= 3; i++)
        submit_large(&cl->nodes[i], i, 900000);
    CHECK(cl->largest_packet > CONSENSUS_POST_MAX);
    cluster_agree(cl);
    for (uint32_t i = 1; i <= 3; i++)
        CHECK_EQ(OP(&cl->nodes[i], .kind = OP_BARRIER), 0);
    cluster_destroy(cl);
}

static void test_snapshot(uint64_t seed)
{
    struct cluster *cl = cluster_create(seed, 2);
    cl->has_calls = true;
    cl->tuning.snapshot_entries = 20;
    cl->tuning.trailing_entries = 4;
    cl->tuning.piece_bytes = 500000;
    cl->pad_bytes = 2500000;
    for (uint32_t i = 1; i <= 2; i++)
        node_open(&cl->nodes[i]);
    for (uint32_t i = 0; i < 30; i++)
        submit_next(&cl->nodes[1], 1);
    add_voter(cl, 2);
    CHECK(cl->largest_packet > 2 * MIB);
    cluster_agree(cl);
    submit_next(&cl->nodes[2], 2);
    /* In order: what is open is closed, and no buffer is left. */
    for (uint32_t i = 1; i <= 2; i++)
        CHECK_EQ(OP(&cl->nodes[i], .kind = OP_CLOSE), 0);
    cluster_destroy(cl);
}

static void test_lost_connections(uint64_t seed)
{
    struct cluster *cl = cluster_by_calls(seed, 3);
    for (unsigned i = 0; i < 10; i++) {
        sim_world_faults(cl->world)->net_reset_ppm = 20000;
        submit_large(&cl->nodes[1 + i % 3], i % 3, 300000);
        struct node *leader = cluster_leader(cl);
        if (i % 3 == 2)
            node_end(leader, i % 2 == 0 ? SIM_KILL : SIM_POWER_CUT);
        for (uint32_t k = 1; k <= 3 && i % 3 == 2; k++)
            if (cl->nodes[k].loop != NULL)
                submit_next(&cl->nodes[k], 3 + k);
        if (leader->loop == NULL)
            node_open(leader);
    }
    sim_world_faults(cl->world)->net_reset_ppm = 0;
    submit_next(&cl->nodes[1], 1);
    cluster_agree(cl);
    cluster_destroy(cl);
}

static void test_partition(uint64_t seed)
{
    struct cluster *cl = cluster_by_calls(seed, 3);
    struct node *old = cluster_leader(cl);
    uint64_t count = cl->max_count;
    cluster_split(cl, 1U << old->id);
    struct op stale = {.kind = OP_SUBMIT, .client = 2, .sequence = 1};
    struct op read = {.kind = OP_BARRIER};
    op_start(old, &stale);
    op_start(old, &read);
    cluster_run(cl, 3000);
    struct node *leader = cluster_leader(cl);
    CHECK(leader != old);
    submit_next(leader, 1);
    CHECK(cluster_until(cl, op_is_over, &stale, 10000));
    CHECK(cluster_until(cl, op_is_over, &read, 10000));
    CHECK_EQ(stale.rc, -PLX_EUNKNOWN);
    CHECK_EQ(read.rc, -PLX_ENOLEADER);
    CHECK_EQ(old->counter.count, count);
    cluster_heal(cl);
    submit_next(old, 2);
    cluster_agree(cl);
    cluster_destroy(cl);
}

/* --- parts that do not fit --- */

struct part_call {
    struct task_call call;
    struct node *from;
    uint64_t to, message;
    uint32_t total, offset, len;
    bool is_over;
    int rc;
};

static void part_main(struct task_call *task)
{
    struct part_call *part = container_of(task, struct part_call, call);
    struct part_head head = {.message = le64_of(part->message),
                             .total = le32_of(part->total),
                             .offset = le32_of(part->offset)};
    struct buffer *buffer = part->len == 0 ? NULL
                                           : buffer_create(part->from->pool, part->len);
    struct slice slice = {.buffer = buffer, .len = part->len};
    if (buffer != NULL)
        memset(buffer->data, 0xff, part->len); /* malformed, once it is whole */
    struct rpc_call call = {.node = part->to,
                            .op = CONSENSUS_RPC_PART,
                            .head = &head,
                            .head_len = sizeof head,
                            .slices = &slice,
                            .slice_count = buffer != NULL,
                            .timeout_ns = 5 * NS_PER_S};
    part->rc = rpc_wait(part->from->rpc, &call, NULL, NULL);
    buffer_put(buffer);
    part->is_over = true;
}

static int send_part_of(struct cluster *cl, uint32_t from, uint64_t message,
                        uint32_t total, uint32_t offset, uint32_t len)
{
    struct part_call part = {.from = &cl->nodes[from],
                             .to = 3,
                             .message = message,
                             .total = total,
                             .offset = offset,
                             .len = len};
    part.call = (struct task_call){.main = part_main, .name = "part"};
    task_start(part.from->loop, &part.call);
    while (!part.is_over)
        CHECK(cluster_step(cl));
    return part.rc;
}

static void test_foreign_parts(uint64_t seed)
{
    struct cluster *cl = cluster_by_calls(seed, 3);
    uint32_t most = (uint32_t)CONSENSUS_MESSAGE_MAX;
    CHECK_EQ(send_part_of(cl, 1, 7, 3000, 1000, 1000), -PLX_EPRECONDITION);
    CHECK_EQ(send_part_of(cl, 1, 7, 3000, 0, 1000), 0);
    CHECK_EQ(send_part_of(cl, 1, 8, 3000, 1000, 1000), -PLX_EPRECONDITION);
    /* It is forgotten then. */
    CHECK_EQ(send_part_of(cl, 1, 7, 3000, 1000, 1000), -PLX_EPRECONDITION);
    CHECK_EQ(send_part_of(cl, 1, 9, 3000, 0, 1000), 0);
    CHECK_EQ(send_part_of(cl, 1, 9, 4000, 1000, 1000), -PLX_EPRECONDITION);
    CHECK_EQ(send_part_of(cl, 1, 9, 3000, 0, 3001), -EPROTO);
    CHECK_EQ(send_part_of(cl, 1, 9, 3000, 0, 0), -EPROTO);
    CHECK_EQ(send_part_of(cl, 1, 9, 0, 0, 10), -EPROTO);
    CHECK_EQ(send_part_of(cl, 1, 9, most + 1, 0, 1000), -EMSGSIZE);
    /* A bound on all together; the one that is not continued goes in time. */
    CHECK_EQ(send_part_of(cl, 1, 10, most, 0, 1000), 0);
    CHECK_EQ(send_part_of(cl, 2, 1, most, 0, 1000), -PLX_ELIMIT);
    cluster_run(cl, CONSENSUS_PARTS_IDLE_MS + 1000);
    CHECK_EQ(send_part_of(cl, 2, 1, most, 0, 1000), 0);
    CHECK_EQ(send_part_of(cl, 2, 2, 2000, 0, 1000), 0);
    CHECK_EQ(send_part_of(cl, 2, 2, 2000, 1000, 1000), 0);
    CHECK_EQ(cl->nodes[3].binding->incoming_bytes, 0);
    submit_large(&cl->nodes[1], 1, 600000);
    cluster_agree(cl);
    cluster_destroy(cl);
}

int main(void)
{
    static void (*const STORIES[])(uint64_t seed) = {
        test_large, test_snapshot, test_lost_connections, test_partition,
        test_foreign_parts,
    };
    for (size_t i = 0; i < ARRAY_LEN(STORIES); i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            for (uint64_t seed = 1; seed <= seeds_of(SEEDS); seed++)
                STORIES[i](seed);
            _exit(0);
        }
        int status = 0;
        CHECK_EQ(waitpid(child, &status, 0), child);
        if (status != 0)
            fprintf(stderr, "story %zu\n", i);
        CHECK_EQ(status, 0);
    }
    return 0;
}
