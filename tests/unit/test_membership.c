/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes of a cluster on simulated machines: made, joined, opened, removed, copied. */
#include "replication/membership_internal.h"
#include "runtime/sim_internal.h"
#include "tests/unit/on_loops.h"

#define NODES 3U

/* A process, and the files of its machine. */
struct place {
    struct sim_world *world;
    uint32_t number; /* of its host, and the node that is to be there */
    struct loop *loop;
    struct kv *kv;
    struct store *store;
    struct uid store_uid;
    struct membership *m;
    struct net_identity self;
    struct join_peer peers[NODES];
    uint32_t peer_count;
    char address[32], store_path[32], kv_path[32], why[300];
    uint32_t upper_served, failures, nodes_changes;
    struct task_call call;
    void (*run)(struct place *p);
    bool is_over;
};

static struct place places[NODES + 2];
static struct sim_world *world;
static struct join_token token;

static void place_main(struct task_call *call)
{
    struct place *p = container_of(call, struct place, call);
    p->run(p);
    p->is_over = true;
}

/* Starts it on a task of the process, which is begun if there is none. */
static void start_on(struct place *p, void (*run)(struct place *p))
{
    if (p->loop == NULL) {
        p->loop = sim_process_create(world);
        sim_process_set_host(p->loop, p->number);
        if (getenv("TEST_LOG") != NULL)
            log_set_fd(loop_log(p->loop), 2);
    }
    p->run = run;
    p->is_over = false;
    p->call = (struct task_call){.main = place_main, .name = "test", .system = true};
    task_start(p->loop, &p->call);
}

static void run_on(struct place *p, void (*run)(struct place *p))
{
    start_on(p, run);
    CHECK(sim_world_run_until(world, &p->is_over, BODY_LIMIT_NS));
}

/* What a process had when it died is lost, but not for the leak checker. */
static void place_bury(const struct place *p)
{
    static void *dead[512][3];
    static uint32_t count;
    CHECK(count < ARRAY_LEN(dead));
    dead[count][0] = p->m;
    dead[count][1] = p->kv;
    dead[count++][2] = p->store;
}

static void place_end(struct place *p, enum sim_end how)
{
    place_bury(p);
    sim_process_end(p->loop, how);
    p->loop = NULL;
    p->m = NULL;
}

/* For a call that must succeed, or must fail with a text that has these words. */
#define DO(call)                                                                         \
    do {                                                                                 \
        struct error err = {0};                                                          \
        int rc_ = (call);                                                                \
        if (rc_ < 0)                                                                     \
            fprintf(stderr, "%s: %s\n", #call, err.text);                                \
        CHECK_EQ(rc_, 0);                                                                \
    } while (0)
#define DO_FAILS(call, code_, words)                                                     \
    do {                                                                                 \
        struct error err = {0};                                                          \
        CHECK_EQ(call, code_);                                                           \
        if (strstr(err.text, words) == NULL)                                             \
            CHECK_STR(err.text, words);                                                  \
    } while (0)

static struct place *place_begin(uint32_t number)
{
    struct place *p = &places[number];
    *p = (struct place){.world = world, .number = number};
    snprintf(p->address, sizeof p->address, "host%u:7000", number);
    snprintf(p->store_path, sizeof p->store_path, "host%u/store", number);
    snprintf(p->kv_path, sizeof p->kv_path, "host%u/kv", number);
    p->store_uid = (struct uid){{(uint8_t)number, 99}};
    return p;
}

static async void make_store(struct place *p, struct uid cluster)
{
    struct store_options options = {.path = p->store_path,
                                    .capacity_bytes = 64 * MIB,
                                    .incarnation = p->store_uid,
                                    .no_idle_work = true};
    DO(kv_open(p->loop, p->kv_path, true, &p->kv, &err));
    options.kv = p->kv;
    DO(store_create(p->loop, &options, cluster, &err));
}

/* --- making and joining --- */

static const struct uid CLUSTER = {{7, 7, 7}};

static async void found(struct place *p)
{
    make_store(p, CLUSTER);
    struct cluster_options options = {.loop = p->loop, .kv = p->kv, .node = 1};
    struct membership_founding founding = {.loop = p->loop,
                                           .kv = p->kv,
                                           .store = p->store_uid,
                                           .address = p->address,
                                           .domain = "",
                                           .capacity_bytes = 64 * MIB};
    struct cluster_command init = {
        .op = CLUSTER_INIT, .cluster = CLUSTER, .store = p->store_uid, .node = 1};
    struct cluster_result result;
    struct cluster *cluster;
    static struct join_answer answer, again;
    char *key;
    DO(cluster_bootstrap(p->kv, 1, &err));
    DO(cluster_open(&options, &cluster, &err));
    CHECK_EQ(cluster_submit(cluster, &init, &result), 0);
    cluster_close(cluster);
    DO(membership_found(&founding, &answer, &key, &err));
    net_pki_free_key(key);
    DO(membership_found(&founding, &again, &key, &err));
    net_pki_free_key(key);
    CHECK_STR(answer.authority, again.authority);
    CHECK(strcmp(answer.certificate, again.certificate) != 0);
    CHECK_EQ(answer.identity.node, 1);
    founding.store.b[0]++;
    DO_FAILS(membership_found(&founding, &again, &key, &err), -PLX_EPRECONDITION,
             "cluster of one");
    founding.address = "0.0.0.0:1";
    DO_FAILS(membership_found(&founding, &again, &key, &err), -EINVAL, "reach");
    p->self = answer.identity;
    kv_close(p->kv);
}

static void make_request(void *arg)
{
    struct join_request *request = arg;
    struct net_pki_pair pair;
    CHECK_EQ(net_pki_create_request(&pair, NULL), 0);
    snprintf(request->pem, sizeof request->pem, "%s", pair.certificate);
    free(pair.certificate);
    net_pki_free_key(pair.key);
}

static struct join_request request_of(const struct place *p)
{
    struct join_request request = {.store = p->store_uid, .capacity_bytes = 64 * MIB};
    memcpy(request.secret, token.secret, sizeof token.secret);
    snprintf(request.address, sizeof request.address, "%s", p->address);
    return request;
}

static struct join_request request;
static struct join_answer answer;

static async void join(struct place *p)
{
    request = request_of(p);
    task_outside(make_request, &request);
    DO(join_ask(p->loop, places[1].address, &token, &request, &answer, &err));
    CHECK(uid_equal(answer.identity.cluster, CLUSTER));
    CHECK(strstr(answer.certificate, "BEGIN CERTIFICATE") != NULL);
    CHECK(strstr(answer.authority, "BEGIN CERTIFICATE") != NULL);
    CHECK(answer.peer_count >= 1);
    CHECK_STR(answer.peers[0].address, places[1].address);
    uint64_t node = answer.identity.node;
    /* The answer may get lost: the same store is the same node. */
    DO(join_ask(p->loop, places[1].address, &token, &request, &answer, &err));
    CHECK_EQ(answer.identity.node, node);
    p->self = answer.identity;
    p->peer_count = answer.peer_count;
    memcpy(p->peers, answer.peers, answer.peer_count * sizeof *p->peers);
    make_store(p, CLUSTER);
    kv_close(p->kv);
}

static async void join_refused(struct place *p)
{
    request = request_of(p);
    task_outside(make_request, &request);
    /* It was used, by another store. */
    DO_FAILS(join_ask(p->loop, places[1].address, &token, &request, &answer, &err),
             -PLX_EDENIED, "refused: ");
    request.secret[0] ^= 1;
    DO_FAILS(join_ask(p->loop, places[1].address, &token, &request, &answer, &err),
             -PLX_EDENIED, "refused: ");
    request.secret[0] ^= 1;
    strcpy(request.address, places[1].address);
    DO_FAILS(join_ask(p->loop, places[1].address, &token, &request, &answer, &err),
             -PLX_EEXISTS, "has the address");
    strcpy(request.address, "nonsense");
    DO_FAILS(join_ask(p->loop, places[1].address, &token, &request, &answer, &err),
             -EINVAL, "HOST:PORT");
    DO_FAILS(join_ask(p->loop, "host9:1", &token, &request, &answer, &err), -ECONNREFUSED,
             "no node answers");
}

static async void new_token(struct place *p)
{
    DO(membership_token(p->m, 1, &token, &err));
}

static async void no_token(struct place *p)
{
    struct join_token none;
    DO_FAILS(membership_token(p->m, 0, &none, &err), -EINVAL, "minutes");
    DO_FAILS(membership_token(p->m, JOIN_MINUTES_MAX + 1, &none, &err), -EINVAL,
             "minutes");
}

static async void wait_minute(struct place *p)
{
    (void)p;
    task_sleep_ns(61 * NS_PER_S);
}

static async void join_late(struct place *p)
{
    request = request_of(p);
    task_outside(make_request, &request);
    DO_FAILS(join_ask(p->loop, places[1].address, &token, &request, &answer, &err),
             -PLX_EDENIED, "refused: ");
}

/* --- opening --- */

#define OP_UPPER 0x7aU

static void serve_upper_op(void *arg, struct rpc_request *r)
{
    struct place *p = arg;
    p->upper_served++;
    rpc_answer(r, 0, "yes", 3, NULL, 0);
}

static const struct rpc_op upper = {OP_UPPER, "upper", false,         false,
                                    8,        0,       serve_upper_op};
static const struct rpc_op *const uppers[] = {&upper, NULL};

static void place_failed(void *arg, const char *why)
{
    struct place *p = arg;
    p->failures++;
    snprintf(p->why, sizeof p->why, "%s", why);
}

static void place_nodes_changed(void *arg)
{
    ((struct place *)arg)->nodes_changes++;
}

static async int try_open(struct place *p, struct error *ret_err)
{
    struct store_options store = {.path = p->store_path, .no_idle_work = true};
    DO(kv_open(p->loop, p->kv_path, false, &p->kv, &err));
    store.kv = p->kv;
    DO(store_open(p->loop, &store, &p->store, &err));
    struct membership_options options = {.loop = p->loop,
                                         .kv = p->kv,
                                         .store = p->store,
                                         .self = p->self,
                                         .address = p->address,
                                         .peers = p->peers,
                                         .peer_count = p->peer_count,
                                         .upper_ops = uppers,
                                         .failed = place_failed,
                                         .nodes_changed = place_nodes_changed,
                                         .no_duties = true, /* the test is the leader */
                                         .arg = p};
    int rc = membership_open(&options, &p->m, ret_err);
    if (rc == 0)
        return 0;
    store_close(p->store);
    kv_close(p->kv);
    return rc;
}

static async void open_node(struct place *p)
{
    DO(try_open(p, &err));
    membership_attach(p->m, p);
}

static async void close_node(struct place *p)
{
    membership_detach(p->m);
    membership_close(take(p->m));
    store_close(p->store);
    kv_close(p->kv);
}

static async void wait_known(struct place *p)
{
    uint64_t until_ns = loop_now_ns(p->loop) + 20 * NS_PER_S;
    DO(membership_wait(p->m, 20 * NS_PER_S, &err));
    while (cluster_barrier(p->m->cluster) != 0) { /* it may have to find the leader */
        CHECK(loop_now_ns(p->loop) < until_ns);
        task_sleep_ns(50 * NS_PER_MS);
    }
}

static async void wait_in_vain(struct place *p)
{
    DO_FAILS(membership_wait(p->m, NS_PER_S, &err), -ETIMEDOUT, "node 1 at host1:7000");
}

/* What the leader does by itself, once it is told to. */
static uint32_t to_add;

static async void add_voter(struct place *p)
{
    struct consensus *c = cluster_consensus(p->m->cluster);
    CHECK_EQ(consensus_add(c, to_add), 0);
    CHECK_EQ(consensus_set_role(c, to_add, CONSENSUS_VOTER), 0);
}

static uint32_t upper_to;
static int upper_code;

static async void call_upper(struct place *p)
{
    struct rpc_call call = {.node = upper_to, .op = OP_UPPER, .timeout_ns = 5 * NS_PER_S};
    upper_code = rpc_wait(p->m->rpc, &call, NULL, NULL);
}

static int upper_from_to(uint32_t from, uint32_t to)
{
    upper_to = to;
    run_on(&places[from], call_upper);
    return upper_code;
}

static void grow(uint32_t number)
{
    struct place *p = place_begin(number);
    run_on(&places[1], new_token);
    run_on(p, join);
    CHECK_EQ(p->self.node, number);
    run_on(p, open_node);
    to_add = number;
    run_on(&places[1], add_voter);
    run_on(p, wait_known);
}

static void cluster_begin(uint64_t seed, uint32_t nodes)
{
    world = sim_world_create(seed);
    sim_world_faults(world)->net_latency_min_ns = 50 * NS_PER_US;
    sim_world_faults(world)->net_latency_max_ns = NS_PER_MS;
    struct place *first = place_begin(1);
    run_on(first, found);
    run_on(first, open_node);
    run_on(first, wait_known);
    for (uint32_t i = 2; i <= nodes; i++)
        grow(i);
}

static void cluster_end(uint32_t nodes)
{
    for (uint32_t i = nodes; i >= 1; i--) {
        if (places[i].m != NULL)
            run_on(&places[i], close_node);
        if (places[i].loop != NULL)
            place_end(&places[i], SIM_KILL);
    }
    sim_world_destroy(world);
}

/* --- tests --- */

static void test_growing(uint64_t seed)
{
    cluster_begin(seed, 3);
    run_on(&places[1], no_token);
    /* Everybody reaches everybody, by the addresses in the state. */
    for (uint32_t from = 1; from <= 3; from++)
        for (uint32_t to = 1; to <= 3; to++)
            if (from != to)
                CHECK_EQ(upper_from_to(from, to), 0);
    CHECK_EQ(places[1].upper_served, 2);
    CHECK(places[1].nodes_changes >= 2);
    membership_detach(places[3].m);
    CHECK_EQ(upper_from_to(1, 3), -EAGAIN);
    membership_attach(places[3].m, &places[3]);
    /* A member dies and comes back; then all do. */
    place_end(&places[3], SIM_POWER_CUT);
    run_on(&places[3], open_node);
    run_on(&places[3], wait_known);
    CHECK_EQ(upper_from_to(3, 1), 0);
    for (uint32_t i = 1; i <= 3; i++)
        place_end(&places[i], SIM_KILL);
    for (uint32_t i = 1; i <= 3; i++)
        run_on(&places[i], open_node);
    for (uint32_t i = 1; i <= 3; i++)
        run_on(&places[i], wait_known);
    for (uint32_t i = 1; i <= 3; i++)
        CHECK_EQ(places[i].failures, 0);
    cluster_end(3);
}

static void test_tokens(uint64_t seed)
{
    cluster_begin(seed, 2);
    struct place *stranger = place_begin(3);
    run_on(stranger, join_refused);
    run_on(&places[1], new_token);
    run_on(stranger, wait_minute);
    run_on(stranger, join_late);
    place_end(stranger, SIM_KILL);
    cluster_end(2);
}

/* Nobody waits for a node that has been found to be down. */
static struct rpc_call waiting_call;
static bool is_answered;

static void call_answered(struct rpc_call *call)
{
    (void)call;
    is_answered = true;
}

static async void call_three(struct place *p)
{
    is_answered = false;
    waiting_call = (struct rpc_call){.node = 3,
                                     .op = OP_UPPER,
                                     .timeout_ns = 600 * NS_PER_S,
                                     .done = call_answered};
    rpc_start(p->m->rpc, &waiting_call);
}

static unsigned three_is;

static async void set_three(struct place *p)
{
    struct cluster *cluster = p->m->cluster;
    struct cluster_command command = {
        .op = CLUSTER_NODE_STATE,
        .node = 3,
        .old_flags = cluster_node_by_id(cluster_state(cluster), 3)->flags,
        .flags = three_is,
    };
    struct cluster_result result;
    CHECK_EQ(cluster_submit(cluster, &command, &result), 0);
}

static void test_down(uint64_t seed)
{
    cluster_begin(seed, 3);
    place_end(&places[3], SIM_KILL);
    run_on(&places[2], call_three);
    three_is = NODE_DOWN;
    run_on(&places[1], set_three);
    CHECK(sim_world_run_until(world, &is_answered, 60 * NS_PER_S));
    CHECK(waiting_call.result == -EHOSTUNREACH || waiting_call.result == -ECONNRESET);
    run_on(&places[3], open_node);
    run_on(&places[3], wait_known);
    three_is = 0;
    run_on(&places[1], set_three);
    CHECK_EQ(upper_from_to(2, 3), 0);
    CHECK_EQ(upper_from_to(3, 2), 0);
    cluster_end(3);
}

/* --- admission --- */

static struct address extent;
static uint64_t extent_index;

static async void open_extent(struct place *p)
{
    struct cluster *cluster = p->m->cluster;
    struct cluster_result result;
    struct cluster_command create = {
        .op = CLUSTER_DISK_CREATE, .name = "disk", .size_bytes = 1 * MIB};
    CHECK_EQ(cluster_submit(cluster, &create, &result), 0);
    uint64_t disk = result.id;
    struct cluster_command take_it = {.op = CLUSTER_LEASE_TAKE, .disk = disk, .node = 1};
    CHECK_EQ(cluster_submit(cluster, &take_it, &result), 0);
    struct cluster_command open = {.op = CLUSTER_EXTENT_OPEN,
                                   .disk = disk,
                                   .epoch = 1,
                                   .count = 1,
                                   .member_count = 2,
                                   .members = {1, 2}};
    CHECK_EQ(cluster_submit(cluster, &open, &result), 0);
    extent = (struct address){.v = result.id};
    extent_index = result.index;
}

static async int create_at(struct place *p, uint64_t node, struct uid store,
                           uint64_t epoch, uint64_t disk)
{
    struct replica *replica = replica_remote_create(p->m->rpc, node, store);
    CHECK(replica != NULL);
    int rc = replica->ops->create(replica, &(struct replica_create){
                                               .extent = extent,
                                               .disk = disk,
                                               .epoch = epoch,
                                               .nonce = 5,
                                               .slabs_hint = 1,
                                               .limit_ns = 5 * NS_PER_S,
                                               .index = extent_index,
                                           });
    replica->ops->destroy(replica);
    return rc;
}

static async int end_at_0(struct place *p, uint64_t node)
{
    struct replica *replica = replica_remote_create(p->m->rpc, node,
                                                    places[node].store_uid);
    CHECK(replica != NULL);
    int rc = replica->ops->finalize(replica, extent, 0);
    replica->ops->destroy(replica);
    return rc;
}

/* What was stopped before it was there stays so until the node knows that it ended. */
static async void create_late(struct place *p)
{
    struct uid second = places[2].store_uid;
    struct replica *replica = replica_remote_create(p->m->rpc, 2, second);
    uint32_t length = 9;
    bool is_scanned;
    CHECK_EQ(replica->ops->stop(replica, extent, &length, &is_scanned), 0);
    CHECK_EQ(length, 0);
    replica->ops->destroy(replica);
    CHECK_EQ(end_at_0(p, 2), -EAGAIN);
    CHECK_EQ(create_at(p, 2, second, 1, 1), -PLX_EEXISTS);
    struct final_length final = {.extent = extent};
    struct cluster_command cut = {
        .op = CLUSTER_CUT, .disk = 1, .epoch = 1, .finals = &final, .final_count = 1};
    struct cluster_result result;
    CHECK_EQ(cluster_submit(p->m->cluster, &cut, &result), 0);
    CHECK_EQ(end_at_0(p, 2), 0);
    CHECK_EQ(create_at(p, 2, second, 1, 1), -PLX_EPRECONDITION);
}

static async void create_extents(struct place *p)
{
    struct uid second = places[2].store_uid;
    CHECK_EQ(create_at(p, 2, second, 2, 1), -PLX_EEPOCH);
    CHECK_EQ(create_at(p, 2, second, 1, 2), -PLX_EPRECONDITION);
    CHECK_EQ(create_at(p, 2, (struct uid){{9}}, 1, 1), -PLX_EMISSING);
    CHECK_EQ(create_at(p, 3, places[3].store_uid, 1, 1), -PLX_EPRECONDITION);
    CHECK_EQ(create_at(p, 2, second, 1, 1), 0);
    CHECK_EQ(create_at(p, 2, second, 1, 1), -PLX_EEXISTS);
    extent = address_of(1, 77, 0);
    CHECK_EQ(create_at(p, 2, second, 1, 1), -PLX_EPRECONDITION);
}

/* Nobody makes an extent on a node for which that node has not seen the command. */
static void test_admission(uint64_t seed)
{
    cluster_begin(seed, 3);
    run_on(&places[1], open_extent);
    run_on(&places[1], create_extents);
    cluster_end(3);
    cluster_begin(seed, 2);
    run_on(&places[1], open_extent);
    run_on(&places[1], create_late);
    cluster_end(2);
}

/* Until the leader adds it a node knows nothing. */
static void test_waiting(uint64_t seed)
{
    cluster_begin(seed, 1);
    struct place *p = place_begin(2);
    run_on(&places[1], new_token);
    run_on(p, join);
    run_on(p, open_node);
    run_on(p, wait_in_vain);
    cluster_end(2);
}

static struct cluster_command command;

static async void submit(struct place *p)
{
    struct cluster_result result;
    CHECK_EQ(cluster_submit(p->m->cluster, &command, &result), 0);
}

static async void drop_third(struct place *p)
{
    CHECK_EQ(consensus_remove(cluster_consensus(p->m->cluster), 3), 0);
}

static bool has_failed(const struct place *p)
{
    uint64_t until_ns = sim_world_now_ns(world) + 30 * NS_PER_S;
    while (p->failures == 0 && sim_world_now_ns(world) < until_ns)
        CHECK(sim_world_step(world));
    return p->failures != 0;
}

static async void open_denied(struct place *p)
{
    DO_FAILS(try_open(p, &err), -PLX_EDENIED, "was removed from the cluster");
}

/* A node that is removed is told, whether it runs or not, and nobody talks to it. */
static void test_removed(uint64_t seed, bool is_running)
{
    cluster_begin(seed, 3);
    struct place *p = &places[3];
    if (!is_running)
        place_end(p, SIM_KILL);
    command = (struct cluster_command){
        .op = CLUSTER_NODE_STATE, .node = 3, .flags = NODE_DOWN};
    run_on(&places[1], submit);
    command = (struct cluster_command){.op = CLUSTER_NODE_GONE, .node = 3, .force = true};
    run_on(&places[1], submit);
    if (is_running) {
        CHECK(has_failed(p));
        CHECK(strstr(p->why, "was removed from the cluster") != NULL);
        CHECK_EQ(upper_from_to(1, 3), -ETIMEDOUT); /* its address is forgotten */
        CHECK_EQ(upper_from_to(3, 1), -PLX_EDENIED);
        run_on(p, close_node);
        place_end(p, SIM_KILL);
    }
    run_on(&places[1], drop_third);
    run_on(p, open_denied);
    CHECK_EQ(places[1].failures, 0);
    cluster_end(3);
}

static async void make_copy(struct place *p)
{
    make_store(p, CLUSTER);
    kv_close(p->kv);
}

static async void open_copy(struct place *p)
{
    DO_FAILS(try_open(p, &err), -PLX_EEXISTS, "another process runs as node 2");
}

/* The files of node 2 are copied to another machine, and started there. Both take their
 * own address for node 2's; others find only one of them there. */
static void test_copied(uint64_t seed)
{
    cluster_begin(seed, 2);
    struct place *copy = place_begin(3);
    copy->store_uid = places[2].store_uid;
    copy->self = places[2].self;
    copy->peers[0] = places[2].peers[0];
    copy->peer_count = 1;
    run_on(copy, make_copy);
    run_on(copy, open_copy);
    CHECK_EQ(upper_from_to(1, 2), 0); /* the first goes on */
    CHECK_EQ(upper_from_to(2, 1), 0);
    CHECK_EQ(places[2].failures, 0);
    place_end(copy, SIM_KILL);
    cluster_end(2);
}

static async void open_old(struct place *p)
{
    DO_FAILS(try_open(p, &err), -PLX_EDENIED, "an old copy");
}

/* Node 2 is started with files of long ago: it has forgotten what it had agreed to, so it
 * must not vote. With those that it had it goes on, also after it lost power. */
static void test_old_copy(uint64_t seed)
{
    cluster_begin(seed, 2);
    struct place *p = &places[2];
    uint64_t until_ns = sim_world_now_ns(world) + 3 * MEMBERSHIP_ROUND_MS * NS_PER_MS;
    while (sim_world_now_ns(world) < until_ns)
        CHECK(sim_world_step(world));
    place_end(p, SIM_POWER_CUT);
    strcpy(p->kv_path, "host2/old-kv");
    strcpy(p->store_path, "host2/old-store");
    run_on(p, make_copy);
    run_on(p, open_old);
    strcpy(p->kv_path, "host2/kv");
    strcpy(p->store_path, "host2/store");
    run_on(p, open_node);
    run_on(p, wait_known);
    CHECK_EQ(upper_from_to(2, 1), 0);
    CHECK_EQ(places[1].failures + places[2].failures, 0);
    cluster_end(2);
}

/* A message of node 1 that comes again and again, as long as there is an rpc. */
static struct rumour {
    struct work work;
    struct place *p;
} rumour;

static void rumour_run(struct work *work)
{
    struct membership *m = rumour.p->m;
    uint32_t at = 0;
    if (m->rpc == NULL)
        return;
    while (m->ops[at].number != CONSENSUS_RPC_POST)
        at++;
    struct rpc_request post = {
        .op = &m->ops[at], .peer = places[1].self, .head = "?", .head_len = 1};
    m->ops[at].handle(m, &post);
    loop_post(rumour.p->loop, work);
}

static async void close_slowly(struct place *p)
{
    rumour = (struct rumour){.work.run = rumour_run, .p = p};
    loop_post(p->loop, &rumour.work);
    membership_detach(p->m);
    membership_close(p->m);
    p->m = NULL;
    loop_post_cancel(p->loop, &rumour.work);
    store_close(p->store);
    kv_close(p->kv);
}

/* What comes while a process closes finds all that it needs until nothing comes. */
static void test_closing(uint64_t seed)
{
    cluster_begin(seed, 2);
    run_on(&places[2], close_slowly);
    place_end(&places[2], SIM_KILL);
    cluster_end(1);
}

/* --- moving --- */

/* From now on the node is at another port; it has ended. */
static void place_move(struct place *p, uint32_t port)
{
    snprintf(p->address, sizeof p->address, "host%u:%u", p->number, port);
}

/* The place is told where others are, as if by hand. */
static void place_tell(struct place *p, uint32_t nodes, uint32_t port)
{
    p->peer_count = 0;
    for (uint32_t i = 1; i <= nodes; i++) {
        if (i == p->number)
            continue;
        struct join_peer *peer = &p->peers[p->peer_count++];
        peer->node = i;
        snprintf(peer->address, sizeof peer->address, "host%u:%u", i, port);
    }
}

static void check_all_reach_all(uint32_t nodes)
{
    for (uint32_t from = 1; from <= nodes; from++)
        for (uint32_t to = 1; to <= nodes; to++)
            if (from != to)
                CHECK_EQ(upper_from_to(from, to), 0);
}

static void check_kept(const struct place *p, uint64_t node, uint32_t port)
{
    struct join_peer peers[NODES];
    char address[32];
    uint32_t count = membership_peers(p->m, peers, NODES);
    snprintf(address, sizeof address, "host%u:%u", (unsigned)node, port);
    for (uint32_t i = 0; i < count; i++)
        if (peers[i].node == node)
            CHECK_STR(peers[i].address, address);
}

static async void wait_connected(struct place *p)
{
    uint64_t until_ns = loop_now_ns(p->loop) + 5 * NS_PER_S;
    while (!rpc_is_connected(p->m->rpc, 2)) {
        CHECK(loop_now_ns(p->loop) < until_ns);
        task_sleep_ns(50 * NS_PER_MS);
    }
}

static async void wait_a_little(struct place *p)
{
    (void)p;
    task_sleep_ns(NS_PER_S / 2);
}

static void set_flags_of_two(unsigned flags)
{
    const struct cluster_state *state = cluster_state(places[1].m->cluster);
    command = (struct cluster_command){.op = CLUSTER_NODE_STATE,
                                       .node = 2,
                                       .old_flags = cluster_node_by_id(state, 2)->flags,
                                       .flags = flags};
    run_on(&places[1], submit);
}

/* One node moves. Nobody is told but by itself; the state goes on listing the old place,
 * since here nobody does what a leader does. */
static void test_one_moved(uint64_t seed)
{
    cluster_begin(seed, 3);
    for (uint32_t port = 7001; port <= 7002; port++) {
        uint32_t changes = places[1].nodes_changes;
        place_end(&places[2], SIM_KILL);
        place_move(&places[2], port);
        place_tell(&places[2], 3, 7000);
        /* While it is asked whether another process is where it was it is found to be
         * down, so that nobody has anything to say to it. */
        start_on(&places[2], open_node);
        run_on(&places[3], wait_a_little);
        set_flags_of_two(NODE_DOWN);
        CHECK(sim_world_run_until(world, &places[2].is_over, BODY_LIMIT_NS));
        run_on(&places[2], wait_known);
        for (uint32_t from = 1; from <= 3; from += 2)
            run_on(&places[from], wait_connected);
        set_flags_of_two(0);
        check_all_reach_all(3);
        CHECK(places[1].nodes_changes > changes);
        check_kept(&places[1], 2, port);
        check_kept(&places[3], 2, port);
    }
    /* One that was restarted has it from its folder, or from the node. */
    place_end(&places[1], SIM_KILL);
    place_tell(&places[1], 3, 7000);
    run_on(&places[1], open_node);
    run_on(&places[1], wait_known);
    check_all_reach_all(3);
    for (uint32_t i = 1; i <= 3; i++)
        CHECK_EQ(places[i].failures, 0);
    cluster_end(3);
}

/* All move, and the first `told` of them are told by hand where the others are. */
static void test_all_moved(uint64_t seed, uint32_t told)
{
    cluster_begin(seed, 3);
    for (uint32_t i = 1; i <= 3; i++)
        place_end(&places[i], SIM_KILL);
    for (uint32_t i = 1; i <= 3; i++) {
        place_move(&places[i], 7001);
        place_tell(&places[i], 3, i <= told ? 7001 : 7000);
    }
    for (uint32_t i = 1; i <= 3; i++)
        run_on(&places[i], open_node);
    for (uint32_t i = 1; i <= 3; i++)
        run_on(&places[i], wait_known);
    check_all_reach_all(3);
    for (uint32_t i = 1; i <= 3; i++)
        CHECK_EQ(places[i].failures, 0);
    cluster_end(3);
}

static async void wait_lost(struct place *p)
{
    DO_FAILS(membership_wait(p->m, 5 * NS_PER_S, &err), -ETIMEDOUT, "does not");
}

/* Each is told the place of another node for that of a third: nobody is taken for whom he
 * is not, and once they are told better they find each other. */
static void test_mixed_up(uint64_t seed)
{
    cluster_begin(seed, 3);
    for (uint32_t i = 1; i <= 3; i++)
        place_end(&places[i], SIM_KILL);
    for (uint32_t i = 1; i <= 3; i++) {
        struct place *p = &places[i];
        place_tell(p, 3, 7000);
        uint64_t node = p->peers[0].node;
        p->peers[0].node = p->peers[1].node;
        p->peers[1].node = node;
    }
    for (uint32_t i = 1; i <= 3; i++)
        run_on(&places[i], open_node);
    for (uint32_t i = 1; i <= 3; i++)
        run_on(&places[i], wait_lost);
    for (uint32_t i = 1; i <= 3; i++) {
        CHECK_EQ(places[i].failures, 0);
        place_end(&places[i], SIM_KILL);
        place_tell(&places[i], 3, 7000);
    }
    for (uint32_t i = 1; i <= 3; i++)
        run_on(&places[i], open_node);
    for (uint32_t i = 1; i <= 3; i++)
        run_on(&places[i], wait_known);
    check_all_reach_all(3);
    cluster_end(3);
}

/* A copy that says it has moved is refused as long as the first is where it was, also by
 * whoever has not heard of the first since it was started itself. */
static void test_copy_moved(uint64_t seed)
{
    cluster_begin(seed, 2);
    place_end(&places[1], SIM_KILL);
    place_tell(&places[1], 2, 7000);
    struct place *copy = place_begin(3);
    copy->store_uid = places[2].store_uid;
    copy->self = places[2].self;
    copy->peers[0] = places[2].peers[0];
    copy->peer_count = 1;
    run_on(copy, make_copy);
    run_on(&places[1], open_node);
    run_on(copy, open_copy);
    CHECK_EQ(upper_from_to(1, 2), 0);
    CHECK_EQ(upper_from_to(2, 1), 0);
    CHECK_EQ(places[2].failures, 0);
    check_kept(&places[1], 2, 7000);
    place_end(copy, SIM_KILL);
    cluster_end(2);
}

int main(void)
{
    for (uint64_t seed = 1; seed <= seeds_of(4); seed++) {
        test_growing(seed);
        test_down(seed);
        test_tokens(seed);
        test_waiting(seed);
        test_admission(seed);
        test_removed(seed, true);
        test_removed(seed, false);
        test_copied(seed);
        test_old_copy(seed);
        test_closing(seed);
        test_one_moved(seed);
        for (uint32_t told = 2; told <= 3; told++)
            test_all_moved(seed, told);
        test_mixed_up(seed);
        test_copy_moved(seed);
    }
    return 0;
}
