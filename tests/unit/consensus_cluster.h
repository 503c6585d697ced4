/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several simulated nodes that agree, a network of packets between them (or calls, as the
 * daemon has them, over the simulated network), and a model that
 * knows what must never be: two leaders of a term, two votes in one, a term that was told
 * and is forgotten, two commands at one index, a command that counts twice, one that was
 * acknowledged and is gone.
 *
 * The machine under test counts: a command is a client, its sequence number and some
 * bytes; one that is not newer than the client's last changes nothing.
 */
#ifndef PARALLAX_TESTS_UNIT_CONSENSUS_CLUSTER_H
#define PARALLAX_TESTS_UNIT_CONSENSUS_CLUSTER_H

#include "replication/consensus_rpc.h"
#include "runtime/sim.h"
#include "tests/unit/check.h"

#define NODES_MAX     7U
#define CLIENTS       8U
#define INDEXES_MAX   200000U
#define TERMS_MAX     20000U
#define COUNTER_BYTES (3 * 8 + CLIENTS * 16)

struct counter {
    uint64_t index, count, hash;
    uint64_t last[CLIENTS], answers[CLIENTS];
};

struct cluster;

struct node {
    struct cluster *cluster;
    uint64_t id;
    struct loop *loop; /* NULL: not running */
    uint64_t boots;
    struct task_call call;
    struct kv *kv;
    struct consensus *consensus; /* NULL: not open */
    struct buffer_pool *pool;    /* with calls */
    struct rpc *rpc;
    struct consensus_rpc *binding;
    bool is_first, is_open, has_failed;
    int open_rc;
    struct error open_error;
    struct counter counter;
    char path[32];
};

struct cluster {
    struct sim_world *world;
    struct node nodes[NODES_MAX + 1]; /* from 1 */
    uint32_t count;
    struct consensus_tuning tuning;
    uint32_t pad_bytes; /* more in each snapshot */
    /* the network */
    bool has_calls; /* set before nodes start; loss and the like is the world's then */
    bool is_blocked[NODES_MAX + 1][NODES_MAX + 1]; /* from, to */
    uint32_t loss_ppm, twice_ppm, late_ppm;
    uint64_t packets, largest_packet;
    uint64_t slow_bytes; /* packets of so many take a second; 0: none */
    uint64_t slow_packets;
    bool (*filter)(struct cluster *cl, uint64_t from, uint64_t to, const uint8_t *bytes,
                   size_t len); /* false: lost */
    void *arg;
    /* the model */
    struct {
        uint64_t client, sequence;
    } at_index[INDEXES_MAX];
    uint64_t hash_at[INDEXES_MAX]; /* by count */
    uint64_t leader_of[TERMS_MAX];
    uint8_t vote_of[NODES_MAX + 1][TERMS_MAX];
    uint64_t told_term[NODES_MAX + 1]; /* by the node, in its messages */
    uint64_t acked_count, max_count;
    uint64_t acked[CLIENTS]; /* sequence */
};

_Noreturn static inline void die(const char *why)
{
    fprintf(stderr, "%s\n", why);
    exit(1);
}

static inline uint64_t chance(struct cluster *cl, uint64_t n)
{
    return sim_world_random(cl->world, n);
}

/* --- the machine --- */

static inline void counter_note(struct cluster *cl, const struct counter *counter)
{
    CHECK(counter->count < INDEXES_MAX);
    if (counter->count > cl->max_count) {
        CHECK_EQ(counter->count, cl->max_count + 1);
        cl->max_count = counter->count;
        cl->hash_at[counter->count] = counter->hash;
    }
    CHECK_EQ(cl->hash_at[counter->count], counter->hash);
}

static inline int counter_apply(void *arg, uint64_t index, const void *bytes, size_t len,
                                struct writer *answer)
{
    struct node *n = arg;
    struct cluster *cl = n->cluster;
    struct counter *counter = &n->counter;
    struct reader r = reader_of(bytes, len);
    uint64_t client = read_u64(&r), sequence = read_u64(&r);
    CHECK(!r.bad && client < CLIENTS && sequence != 0);
    CHECK(index > counter->index && index < INDEXES_MAX);
    if (cl->at_index[index].sequence == 0) {
        cl->at_index[index].client = client;
        cl->at_index[index].sequence = sequence;
    }
    CHECK_EQ(cl->at_index[index].client, client);
    CHECK_EQ(cl->at_index[index].sequence, sequence);
    counter->index = index;
    if (sequence > counter->last[client]) {
        CHECK_EQ(sequence, counter->last[client] + 1);
        counter->count++;
        counter->hash = (counter->hash ^ (client << 32 | sequence)) * 0x9e3779b97f4a7c15U;
        counter->last[client] = sequence;
        counter->answers[client] = counter->count;
        counter_note(cl, counter);
    }
    write_u64(answer, counter->answers[client]);
    return 0;
}

static inline void counter_encode(void *arg, struct writer *w)
{
    struct node *n = arg;
    write_u8(w, 1);
    write_u64(w, n->counter.index);
    write_u64(w, n->counter.count);
    write_u64(w, n->counter.hash);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        write_u64(w, n->counter.last[i]);
        write_u64(w, n->counter.answers[i]);
    }
    for (uint32_t i = 0; i < n->cluster->pad_bytes; i++)
        write_u8(w, (uint8_t)(i ^ n->counter.count));
}

static inline int counter_decode(void *arg, const void *bytes, size_t len,
                                 struct error *err)
{
    struct node *n = arg;
    struct reader r = reader_of(bytes, len);
    if (read_u8(&r) != 1)
        return err_set(err, -PLX_ENEWER, "counter: another version");
    struct counter counter = {.index = read_u64(&r)};
    counter.count = read_u64(&r);
    counter.hash = read_u64(&r);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        counter.last[i] = read_u64(&r);
        counter.answers[i] = read_u64(&r);
    }
    CHECK_EQ(r.left, n->cluster->pad_bytes);
    for (uint32_t i = 0; i < n->cluster->pad_bytes; i++)
        CHECK_EQ(read_u8(&r), (uint8_t)(i ^ counter.count));
    CHECK(!r.bad && counter.count >= n->counter.count);
    counter_note(n->cluster, &counter);
    n->counter = counter;
    return 0;
}

/* --- the network --- */

struct packet {
    struct timer timer;
    struct node *to;
    uint64_t from;
    size_t len;
    uint8_t bytes[];
};

static inline void packet_arrives(struct timer *timer)
{
    struct packet *packet = container_of(timer, struct packet, timer);
    if (packet->to->consensus != NULL)
        consensus_received(packet->to->consensus, packet->from, packet->bytes,
                           packet->len);
    free(packet);
}

static inline void packet_start(struct node *from, struct node *to, const void *bytes,
                                size_t len)
{
    struct cluster *cl = from->cluster;
    struct packet *packet = malloc(sizeof *packet + len);
    uint64_t delay_ns = 50 * NS_PER_US + chance(cl, NS_PER_MS);
    CHECK(packet != NULL);
    if (chance(cl, 1000000) < cl->late_ppm)
        delay_ns += chance(cl, 2 * NS_PER_S);
    if (cl->slow_bytes != 0 && len >= cl->slow_bytes) {
        delay_ns += NS_PER_S;
        cl->slow_packets++;
    }
    *packet = (struct packet){
        .timer.fire = packet_arrives, .to = to, .from = from->id, .len = len};
    memcpy(packet->bytes, bytes, len);
    timer_start(to->loop, &packet->timer, delay_ns);
}

/* What a node says of its term and votes (doc/format-consensus.md) it must not forget. */
static inline void note_promises(struct cluster *cl, uint64_t from, uint64_t to,
                                 const uint8_t *bytes, size_t len)
{
    struct reader r = reader_of(bytes, len);
    read_u8(&r);
    uint8_t kind = read_u8(&r);
    uint64_t term = read_u64(&r);
    bool is_granted = kind == 4 && read_u8(&r) != 0;
    bool is_promise = kind == 4 ? read_u8(&r) != 0 : kind == 3 && bytes[len - 1] != 0;
    if (kind > 6 || is_promise)
        return;
    CHECK(!r.bad && term < TERMS_MAX);
    if (term > cl->told_term[from])
        cl->told_term[from] = term;
    if (!is_granted)
        return;
    if (cl->vote_of[from][term] == 0)
        cl->vote_of[from][term] = (uint8_t)to;
    CHECK_EQ(cl->vote_of[from][term], to);
}

static inline void cluster_send(void *arg, uint64_t node, const void *bytes, size_t len)
{
    struct node *from = arg, *to;
    struct cluster *cl = from->cluster;
    CHECK(node != 0 && node <= NODES_MAX && node != from->id);
    CHECK(len <= CONSENSUS_MESSAGE_MAX);
    cl->packets++;
    note_promises(cl, from->id, node, bytes, len);
    if (len > cl->largest_packet)
        cl->largest_packet = len;
    to = &cl->nodes[node];
    if (to->loop == NULL || cl->is_blocked[from->id][node] ||
        chance(cl, 1000000) < cl->loss_ppm ||
        (cl->filter != NULL && !cl->filter(cl, from->id, node, bytes, len)))
        return;
    packet_start(from, to, bytes, len);
    if (chance(cl, 1000000) < cl->twice_ppm)
        packet_start(from, to, bytes, len);
}

/* Parts the nodes whose bit is set from the others. */
static inline void cluster_split(struct cluster *cl, uint32_t mask)
{
    for (uint32_t a = 1; a <= NODES_MAX; a++)
        for (uint32_t b = 1; b <= NODES_MAX; b++)
            cl->is_blocked[a][b] = (mask >> a & 1) != (mask >> b & 1);
    if (cl->has_calls)
        for (uint32_t a = 1; a <= NODES_MAX; a++)
            for (uint32_t b = 1; b <= NODES_MAX; b++)
                sim_net_block(cl->world, a, b, cl->is_blocked[a][b]);
}

static inline void cluster_heal(struct cluster *cl)
{
    cluster_split(cl, 0);
    cl->loss_ppm = cl->twice_ppm = cl->late_ppm = 0;
    cl->filter = NULL;
}

/* --- nodes --- */

static inline struct cluster *cluster_create(uint64_t seed, uint32_t count)
{
    struct cluster *cl = calloc(1, sizeof *cl);
    CHECK(cl != NULL && count <= NODES_MAX);
    cl->world = sim_world_create(seed);
    cl->count = count;
    cl->tuning = (struct consensus_tuning){
        .install_ms = 2000, .wait_ms = 3000, .piece_bytes = 4096};
    *sim_world_faults(cl->world) = (struct sim_faults){
        .latency_min_ns = 50 * NS_PER_US, .latency_max_ns = 3 * NS_PER_MS};
    for (uint32_t i = 1; i <= NODES_MAX; i++) {
        cl->nodes[i].cluster = cl;
        cl->nodes[i].id = i;
        cl->nodes[i].is_first = i == 1;
        snprintf(cl->nodes[i].path, sizeof cl->nodes[i].path, "node%u/kv", i);
    }
    return cl;
}

static inline void cluster_destroy(struct cluster *cl)
{
    sim_world_destroy(cl->world);
    free(cl);
}

static inline void node_failed(void *arg, const char *why)
{
    struct node *n = arg;
    CHECK(why[0] != '\0' && strchr(why, '\n') == NULL);
    n->has_failed = true;
}

/* --- calls --- */

static inline void handle_post(void *arg, struct rpc_request *request)
{
    consensus_rpc_post(((struct node *)arg)->binding, request);
}

static inline void handle_part(void *arg, struct rpc_request *request)
{
    consensus_rpc_part(((struct node *)arg)->binding, request);
}

static const struct rpc_op op_post = {.number = CONSENSUS_RPC_POST,
                                      .name = "consensus",
                                      .is_one_way = true,
                                      .head_max = CONSENSUS_POST_MAX,
                                      .handle = handle_post};
static const struct rpc_op op_part = {.number = CONSENSUS_RPC_PART,
                                      .name = "consensus part",
                                      .head_max = CONSENSUS_PART_HEAD_BYTES,
                                      .payload_max = CONSENSUS_PART_MAX,
                                      .handle = handle_part};
static const struct rpc_op *const consensus_ops[] = {&op_post, &op_part, NULL};

/* Counts what goes out as the other network does. */
static inline void send_by_call(void *arg, uint64_t node, const void *bytes, size_t len)
{
    struct node *from = arg;
    struct consensus_link link = consensus_rpc_link(from->binding);
    from->cluster->packets++;
    if (len > from->cluster->largest_packet)
        from->cluster->largest_packet = len;
    note_promises(from->cluster, from->id, node, bytes, len);
    link.send(link.arg, node, bytes, len);
}

static inline int calls_open(struct node *n, struct error *err)
{
    char address[32];
    int rc = 0;
    struct rpc_options options = {.loop = n->loop,
                                  .self = {.cluster = {{1}}, .node = n->id},
                                  .ops = consensus_ops,
                                  .arg = n};
    n->pool = options.buffers = buffer_pool_create(32 * MIB);
    CHECK(n->pool != NULL);
    CHECK_EQ(rpc_create(&options, &n->rpc, err), 0);
    CHECK_EQ(consensus_rpc_create(n->loop, n->rpc, n->pool, &n->binding), 0);
    for (uint32_t i = 1; i <= NODES_MAX; i++) {
        snprintf(address, sizeof address, "node%u:1", i);
        if (i == n->id)
            rc = rpc_listen(n->rpc, address, NULL, err); /* may be made to fail */
        else
            CHECK_EQ(rpc_set_address(n->rpc, i, address), 0);
    }
    return rc;
}

static inline void calls_close(struct node *n)
{
    consensus_rpc_destroy(n->binding);
    rpc_destroy(n->rpc);
    CHECK_EQ(buffer_pool_used_bytes(n->pool), 0);
    buffer_pool_destroy(n->pool);
}

static inline void node_main(struct task_call *call)
{
    struct node *n = container_of(call, struct node, call);
    struct error err = {0};
    struct consensus_options options = {
        .loop = n->loop,
        .node = n->id,
        .machine = {n, counter_apply, counter_encode, counter_decode, NULL},
        .link = {n, cluster_send},
        .tuning = n->cluster->tuning,
        .failed = node_failed,
        .arg = n,
    };
    int rc = kv_open(n->loop, n->path, true, &n->kv, &err);
    if (rc == 0 && n->is_first) {
        rc = consensus_bootstrap(n->kv, n->id, NULL, &err);
        if (rc == -PLX_EEXISTS)
            rc = 0;
    }
    options.kv = n->kv;
    if (rc == 0 && n->cluster->has_calls) {
        rc = calls_open(n, &err);
        options.link.send = send_by_call;
    }
    struct consensus *consensus = NULL;
    if (rc == 0)
        rc = consensus_open(&options, &consensus, &err);
    if (rc == 0 && n->cluster->has_calls)
        consensus_rpc_attach(n->binding, consensus);
    if (rc == 0)
        CHECK(consensus_term(consensus) >= n->cluster->told_term[n->id]);
    n->consensus = consensus;
    n->open_rc = rc;
    n->open_error = err;
    n->is_open = true;
}

static inline void node_start(struct node *n)
{
    CHECK(n->loop == NULL);
    n->loop = sim_process_create(n->cluster->world);
    sim_process_set_host(n->loop, (uint32_t)n->id);
    if (getenv("TEST_LOG") != NULL)
        log_set_fd(loop_log(n->loop), 2);
    n->boots++;
    n->consensus = NULL;
    n->is_open = n->has_failed = false;
    n->counter = (struct counter){0};
    n->call = (struct task_call){.main = node_main, .name = "node", .system = true};
    task_start(n->loop, &n->call);
}

static inline void node_end(struct node *n, enum sim_end how)
{
    struct loop *loop = n->loop;
    CHECK(loop != NULL);
    n->loop = NULL;
    n->consensus = NULL;
    n->is_open = false;
    sim_process_end(loop, how);
}

/* --- running --- */

static inline void cluster_check(struct cluster *cl)
{
    for (uint32_t i = 1; i <= cl->count; i++) {
        const struct node *n = &cl->nodes[i];
        if (n->consensus == NULL || !consensus_is_leader(n->consensus))
            continue;
        uint64_t term = consensus_term(n->consensus);
        CHECK(term < TERMS_MAX);
        if (cl->leader_of[term] == 0)
            cl->leader_of[term] = i;
        CHECK_EQ(cl->leader_of[term], i);
    }
}

static inline bool cluster_step(struct cluster *cl)
{
    bool any = sim_world_step(cl->world);
    cluster_check(cl);
    return any;
}

/* Until cond(cl, arg), at most limit_ms of its time. */
static inline bool cluster_until(struct cluster *cl,
                                 bool (*cond)(struct cluster *cl, void *arg), void *arg,
                                 uint64_t limit_ms)
{
    uint64_t end_ns = sim_world_now_ns(cl->world) + limit_ms * NS_PER_MS;
    while (!cond(cl, arg))
        if (!cluster_step(cl) || sim_world_now_ns(cl->world) > end_ns)
            return false;
    return true;
}

static inline bool never(struct cluster *cl, void *arg)
{
    (void)cl, (void)arg;
    return false;
}

static inline void cluster_run(struct cluster *cl, uint64_t ms)
{
    cluster_until(cl, never, NULL, ms);
}

static inline bool is_open(struct cluster *cl, void *arg)
{
    (void)cl;
    return ((struct node *)arg)->is_open;
}

static inline void node_open(struct node *n)
{
    node_start(n);
    CHECK(cluster_until(n->cluster, is_open, n, 60000));
    if (n->open_rc != 0)
        fprintf(stderr, "node %u: %s\n", (unsigned)n->id, n->open_error.text);
    CHECK_EQ(n->open_rc, 0);
}

static inline struct node *leader_of(struct cluster *cl)
{
    struct node *found = NULL;
    for (uint32_t i = 1; i <= cl->count; i++) {
        struct node *n = &cl->nodes[i];
        if (n->consensus != NULL && consensus_is_leader(n->consensus) &&
            (found == NULL ||
             consensus_term(n->consensus) > consensus_term(found->consensus)))
            found = n;
    }
    return found;
}

static inline bool has_leader(struct cluster *cl, void *arg)
{
    (void)arg;
    return leader_of(cl) != NULL;
}

/* For people, when something is wrong. */
static inline void cluster_show(struct cluster *cl)
{
    for (uint32_t i = 1; i <= cl->count; i++) {
        const struct node *n = &cl->nodes[i];
        struct consensus_member members[NODES_MAX];
        fprintf(stderr, "node %u: %s", i, n->consensus == NULL ? "not open" : "");
        if (n->consensus != NULL) {
            uint32_t count = consensus_members(n->consensus, members, NODES_MAX);
            fprintf(stderr, "term %llu, applied %llu, leader %llu%s, members",
                    (unsigned long long)consensus_term(n->consensus),
                    (unsigned long long)consensus_applied(n->consensus),
                    (unsigned long long)consensus_leader(n->consensus),
                    consensus_is_leader(n->consensus) ? " (ready)" : "");
            for (uint32_t k = 0; k < count && k < NODES_MAX; k++)
                fprintf(stderr, " %llu:%d", (unsigned long long)members[k].node,
                        (int)members[k].role);
        }
        fprintf(stderr, "\n");
    }
}

static inline struct node *cluster_leader(struct cluster *cl)
{
    if (cluster_until(cl, has_leader, NULL, 30000))
        return leader_of(cl);
    cluster_show(cl);
    die("there is no leader");
    return leader_of(cl);
}

/* --- operations, each a task of its node --- */

enum op_kind { OP_SUBMIT, OP_BARRIER, OP_ADD, OP_ROLE, OP_REMOVE, OP_TRANSFER, OP_CLOSE };

struct op {
    struct task_call call;
    struct node *node;
    uint64_t boots; /* of the node; another: the operation is dead */
    enum op_kind kind;
    uint64_t client, sequence, target, known;
    enum consensus_role role;
    uint32_t pad_bytes;
    bool is_over;
    int rc;
    uint64_t answer;
};

static inline async void op_submit(struct op *op)
{
    struct cluster *cl = op->node->cluster;
    struct writer command = {0}, answer = {0};
    write_u64(&command, op->client);
    write_u64(&command, op->sequence);
    for (uint32_t i = 0; i < op->pad_bytes; i++)
        write_u8(&command, (uint8_t)i);
    op->rc = consensus_submit(op->node->consensus, command.bytes, command.len, &answer);
    writer_done(&command);
    if (op->rc == 0) {
        struct reader r = reader_of(answer.bytes, answer.len);
        op->answer = read_u64(&r);
        CHECK(!r.bad && r.left == 0 && op->answer <= op->node->counter.count);
        CHECK(op->node->counter.last[op->client] >= op->sequence);
        if (op->answer > cl->acked_count)
            cl->acked_count = op->answer;
        if (op->sequence > cl->acked[op->client])
            cl->acked[op->client] = op->sequence;
    }
    writer_done(&answer);
}

static inline void op_main(struct task_call *call)
{
    struct op *op = container_of(call, struct op, call);
    struct consensus *c = op->node->consensus;
    switch (op->kind) {
    case OP_SUBMIT:
        op_submit(op);
        break;
    case OP_BARRIER:
        op->known = op->node->cluster->acked_count;
        op->rc = consensus_barrier(c);
        if (op->rc == 0)
            CHECK(op->node->counter.count >= op->known);
        break;
    case OP_ADD:
        op->rc = consensus_add(c, op->target);
        break;
    case OP_ROLE:
        op->rc = consensus_set_role(c, op->target, op->role);
        break;
    case OP_REMOVE:
        op->rc = consensus_remove(c, op->target);
        break;
    case OP_TRANSFER:
        op->rc = consensus_transfer(c, op->target);
        break;
    case OP_CLOSE:
        op->node->consensus = NULL;
        if (op->node->cluster->has_calls)
            consensus_rpc_attach(op->node->binding, NULL);
        consensus_close(c);
        if (op->node->cluster->has_calls)
            calls_close(op->node);
        kv_close(op->node->kv);
        op->rc = 0;
        break;
    }
    op->is_over = true;
}

static inline void op_start(struct node *n, struct op *op)
{
    CHECK(n->consensus != NULL);
    op->node = n;
    op->boots = n->boots;
    op->is_over = false;
    op->call = (struct task_call){.main = op_main, .name = "op"};
    task_start(n->loop, &op->call);
}

static inline bool op_is_over(struct cluster *cl, void *arg)
{
    (void)cl;
    return ((struct op *)arg)->is_over;
}

/* Starts it and waits. */
static inline int op_run(struct node *n, struct op *op)
{
    op_start(n, op);
    CHECK(cluster_until(n->cluster, op_is_over, op, 60000));
    return op->rc;
}

#define OP(n, ...) op_run(n, &(struct op){__VA_ARGS__})

/* The next command of a client, on this node, until it is carried out. */
static inline void submit_next(struct node *n, uint64_t client)
{
    struct op op = {.kind = OP_SUBMIT,
                    .client = client,
                    .sequence = n->cluster->acked[client] + 1};
    for (unsigned i = 0; i < 20; i++)
        if (op_run(n, &op) == 0)
            return;
    CHECK_EQ(op.rc, 0);
}

/* --- whole clusters --- */

/* On the leader, whoever that is, until it works. */
static inline void change_until(struct cluster *cl, struct op op)
{
    for (unsigned i = 0; i < 50; i++) {
        struct op try = op;
        int rc = op_run(cluster_leader(cl), &try);
        if (rc == 0 || (op.kind == OP_ADD && rc == -PLX_EEXISTS) ||
            (op.kind == OP_REMOVE && rc == -PLX_EMISSING))
            return;
        cluster_run(cl, 100);
    }
    die("a change of membership never works");
}

static inline void add_voter(struct cluster *cl, uint64_t id)
{
    change_until(cl, (struct op){.kind = OP_ADD, .target = id});
    change_until(cl,
                 (struct op){.kind = OP_ROLE, .target = id, .role = CONSENSUS_VOTER});
}

/* `count` voters, node 1 the first of them. */
static inline struct cluster *cluster_of(uint64_t seed, uint32_t count)
{
    struct cluster *cl = cluster_create(seed, count);
    for (uint32_t i = 1; i <= count; i++)
        node_open(&cl->nodes[i]);
    for (uint32_t i = 2; i <= count; i++)
        add_voter(cl, i);
    return cl;
}

static inline bool all_agree(struct cluster *cl, void *arg)
{
    (void)arg;
    uint64_t applied = 0;
    for (uint32_t i = 1; i <= cl->count; i++) {
        const struct node *n = &cl->nodes[i];
        if (n->consensus == NULL)
            continue;
        if (applied == 0)
            applied = consensus_applied(n->consensus);
        if (consensus_applied(n->consensus) != applied ||
            n->counter.count != cl->max_count)
            return false;
    }
    return true;
}

/* Everything that runs has applied the same, and nothing acknowledged is missing. */
static inline void cluster_agree(struct cluster *cl)
{
    if (!cluster_until(cl, all_agree, NULL, 60000)) {
        cluster_show(cl);
        die("no agreement");
    }
    for (uint32_t i = 1; i <= cl->count; i++)
        for (uint32_t k = 0; k < CLIENTS && cl->nodes[i].consensus != NULL; k++)
            CHECK(cl->nodes[i].counter.last[k] >= cl->acked[k]);
}

#endif
