/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine and its process: opened from the bottom up as the daemon does it (key-value
 * store, store, membership, host), and closed the other way round.
 */
#include <stdio.h>
#include <unistd.h>

#include "cow/disk_remote.h"
#include "tests/simulation/fleet.h"

#define STORE_BYTES (96 * MIB)
#define CALL_LIMIT  (200 * NS_PER_S)
#define KNOWN_LIMIT (60 * NS_PER_S)
#define OUT_NS      (40 * NS_PER_S) /* replaced when it was down for so long */
#define START_AGAIN (2 * NS_PER_S)

static const struct uid CLUSTER = {{7, 7, 7}};

static struct uid store_uid(const struct place *place)
{
    return (struct uid){{(uint8_t)place->number, 99}};
}

static struct net_identity identity(const struct place *place)
{
    return (struct net_identity){CLUSTER, place->number};
}

void place_init(struct fleet *fleet, uint32_t number)
{
    struct place *place = &fleet->places[number];
    *place = (struct place){.fleet = fleet, .number = number, .state = PLACE_OFF};
    snprintf(place->address, sizeof place->address, "host%u:7000", number);
    snprintf(place->store_path, sizeof place->store_path, "host%u/store", number);
    snprintf(place->kv_path, sizeof place->kv_path, "host%u/kv", number);
    if (fleet->place_count < number)
        fleet->place_count = number;
}

const struct cluster_state *place_state(const struct place *place)
{
    return cluster_state(membership_cluster(place->membership));
}

struct place *fleet_any_up(struct fleet *fleet)
{
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        if (fleet->places[i].state == PLACE_UP)
            return &fleet->places[i];
    }
    return NULL;
}

/* --- what other nodes ask for --- */

static void serve_read(void *arg, struct rpc_request *request)
{
    disk_serve_read(((struct place *)arg)->host, request);
}

static void serve_hand_over(void *arg, struct rpc_request *request)
{
    struct place *place = arg;
    place->fleet->hand_overs++;
    disk_serve_hand_over(place->host, request);
}

static void serve_prepare(void *arg, struct rpc_request *request)
{
    disk_serve_prepare(((struct place *)arg)->host, request);
}

static void serve_held(void *arg, struct rpc_request *request)
{
    disk_serve_held(((struct place *)arg)->host, request);
}

static const struct rpc_op op_read = {DISK_RPC_READ,     "disk read", false,     false,
                                      DISK_RPC_HEAD_MAX, 0,           serve_read};
static const struct rpc_op op_hand_over = {
    DISK_RPC_HAND_OVER, "hand over", false, false, DISK_RPC_HEAD_MAX, 0, serve_hand_over};
static const struct rpc_op op_prepare = {
    DISK_RPC_PREPARE, "prepare", true, false, DISK_RPC_HEAD_MAX, 0, serve_prepare};
static const struct rpc_op op_held = {DISK_RPC_HELD,     "held", false,     false,
                                      DISK_RPC_HEAD_MAX, 0,      serve_held};
static const struct rpc_op *const ops[] = {&op_read, &op_hand_over, &op_prepare, &op_held,
                                           NULL};

/* --- tasks of the process --- */

static void run_main(struct task_call *call)
{
    struct place *place = container_of(call, struct place, task);
    place->run(place);
    place->is_over = true;
}

static void task_begin(struct place *place, void (*run)(struct place *place))
{
    place->run = run;
    place->is_over = false;
    place->task = (struct task_call){.main = run_main, .name = "fleet", .system = true};
    task_start(place->loop, &place->task);
}

void place_run(struct place *place, void (*run)(struct place *place))
{
    task_begin(place, run);
    fleet_run_until(place->fleet, &place->is_over, CALL_LIMIT, "a task");
}

static void process_begin(struct place *place)
{
    place->loop = sim_process_create(place->fleet->world);
    sim_process_set_host(place->loop, place->number);
    sim_process_slow_disk(place->loop, place->slow_ns);
    if (place->clock_ahead_max_ns > 0)
        sim_process_set_clock(place->loop,
                              fleet_random(place->fleet, place->clock_ahead_max_ns),
                              place->clock_ppm);
    sim_process_step_wall(place->loop, place->wall_step_ns);
    place->has_failed = false;
    place->starts++;
    if (place->fleet->verbosity > 1)
        log_set_fd(loop_log(place->loop), STDOUT_FILENO);
}

void place_end(struct place *place, enum sim_end how)
{
    guests_forget(place);
    sim_process_end(place->loop, how);
    place->loop = NULL;
    place->membership = NULL;
    place->host = NULL;
    place->state = PLACE_OFF;
    place->stalled_until_ns = 0;
}

/* --- founding and joining --- */

#define DO(place, call)                                                                  \
    do {                                                                                 \
        struct error err = {0};                                                          \
        if ((call) < 0)                                                                  \
            fleet_fail((place)->fleet, "machine %u: %s: %s", (place)->number, #call,     \
                       err.text);                                                        \
    } while (0)

static async void submit(struct place *place, struct cluster *cluster,
                         const struct cluster_command *command)
{
    struct cluster_result result;
    if (cluster_submit(cluster, command, &result) != 0)
        fleet_fail(place->fleet, "machine %u: command %d: %s", place->number,
                   (int)command->op, result.text);
}

static async void make_store(struct place *place)
{
    struct store_options options = {.path = place->store_path,
                                    .capacity_bytes = STORE_BYTES,
                                    .incarnation = store_uid(place),
                                    .no_idle_work = true};
    DO(place, kv_open(place->loop, place->kv_path, true, &place->kv, &err));
    options.kv = place->kv;
    DO(place, store_create(place->loop, &options, CLUSTER, &err));
}

static struct cluster_command set_node(const struct place *place)
{
    return (struct cluster_command){
        .op = CLUSTER_NODE_SET,
        .store = store_uid(place),
        .name = place->address,
        .new_name = "",
        .size_bytes = STORE_BYTES,
    };
}

static uint8_t pool_copies, pool_min_copies;

static async void found(struct place *place)
{
    struct cluster_options options = {.loop = place->loop, .node = 1};
    const struct cluster_command commands[] = {
        {.op = CLUSTER_INIT,
         .cluster = CLUSTER,
         .store = store_uid(place),
         .node = CLUSTER_FIRST_NODE},
        set_node(place),
        {.op = CLUSTER_POOL_SET,
         .name = DEFAULT_POOL_NAME,
         .copies = pool_copies,
         .min_copies = pool_min_copies},
        {.op = CLUSTER_SETTINGS, .trash_keep_s = 0},
    };
    struct cluster *cluster;
    make_store(place);
    options.kv = place->kv;
    DO(place, cluster_bootstrap(place->kv, 1, &err));
    DO(place, cluster_open(&options, &cluster, &err));
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        submit(place, cluster, &commands[i]);
    cluster_close(cluster);
    kv_close(place->kv);
}

void place_found(struct place *place, uint8_t copies, uint8_t min_copies)
{
    pool_copies = copies;
    pool_min_copies = min_copies;
    process_begin(place);
    place_run(place, found);
    place_end(place, SIM_KILL);
}

static async void join_here(struct place *place)
{
    make_store(place);
    kv_close(place->kv);
}

void place_make(struct fleet *fleet, uint32_t number)
{
    struct place *place = &fleet->places[number];
    place_init(fleet, number);
    faults_draw_clock(fleet, place);
    process_begin(place);
    place_run(place, join_here);
    place_end(place, SIM_KILL);
    place->state = PLACE_MADE;
}

/* What a token would let it do. */
async bool place_admit(const struct place *place, struct place *by)
{
    struct cluster_command set = set_node(place);
    struct cluster_result result;
    int rc = cluster_submit(membership_cluster(by->membership), &set, &result);
    if (rc == 0 && result.id != place->number)
        fleet_fail(by->fleet, "machine %u has become node %llu", place->number,
                   (unsigned long long)result.id);
    return rc == 0;
}

/* The next one to be admitted. */
static struct place *newcomer;

static async void join_there(struct place *place)
{
    if (!place_admit(newcomer, place))
        fleet_fail(place->fleet, "machine %u is not let in", newcomer->number);
}

void place_join(struct place *place, struct place *by)
{
    place_make(place->fleet, place->number);
    newcomer = place;
    place_run(by, join_there);
}

void place_lose(struct place *place)
{
    sim_media_remove(place->fleet->world, place->store_path);
    sim_media_remove(place->fleet->world, place->kv_path);
    place->state = PLACE_NONE;
}

/* --- starting --- */

static void has_failed(void *arg, const char *why)
{
    struct place *place = arg;
    fleet_note(place->fleet, "machine %u cannot go on: %s", place->number, why);
    place->has_failed = true;
}

static uint64_t guest_ops(void *arg)
{
    const struct place *place = arg;
    return place->host != NULL ? host_guest_ops(place->host) : 0;
}

static uint32_t peers_of(const struct place *place, struct join_peer *ret)
{
    const struct fleet *fleet = place->fleet;
    uint32_t count = 0;
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        if (i == place->number || fleet->places[i].state == PLACE_NONE)
            continue;
        ret[count] = (struct join_peer){.node = i};
        memcpy(ret[count++].address, fleet->places[i].address,
               sizeof fleet->places[i].address);
    }
    return count;
}

static async int open_membership(struct place *place, struct error *err)
{
    struct join_peer peers[FLEET_PLACES_MAX];
    struct store_options store = {.path = place->store_path, .no_idle_work = true};
    const struct membership_options template = {
        .loop = place->loop,
        .self = identity(place),
        .address = place->address,
        .peers = peers,
        .peer_count = peers_of(place, peers),
        .upper_ops = ops,
        .failed = has_failed,
        .guest_ops = guest_ops,
        .arg = place,
        .out_ns = OUT_NS,
    };
    struct membership_options options = template;
    int rc = kv_open(place->loop, place->kv_path, false, &place->kv, err);
    if (rc < 0)
        return rc;
    store.kv = place->kv;
    rc = store_open(place->loop, &store, &place->store, err);
    if (rc < 0)
        return rc;
    options.kv = place->kv;
    options.store = place->store;
    rc = membership_open(&options, &place->membership, err);
    return rc < 0 ? rc : membership_wait(place->membership, KNOWN_LIMIT, err);
}

static async int open_host(struct place *place, struct error *err)
{
    const struct fleet *fleet = place->fleet;
    struct membership *m = place->membership;
    struct host_parts parts = {.kv = place->kv,
                               .store = place->store,
                               .cluster = membership_cluster(m),
                               .copies = membership_copies(m),
                               .rpc = membership_rpc(m),
                               .node = place->number};
    struct host_options options = {.parts = &parts,
                                   .checkpoint_log_bytes = fleet->checkpoint_log_bytes,
                                   .idle_close_ms = fleet->idle_close_ms,
                                   .no_idle_work = true};
    struct host *host;
    int rc = host_open(place->loop, &options, &host, err);
    if (rc < 0)
        return rc;
    place->host = host;
    membership_attach(m, place);
    return 0;
}

static async void start(struct place *place)
{
    struct error err = {0};
    int rc = open_membership(place, &err);
    if (rc == 0)
        rc = open_host(place, &err);
    if (rc < 0) {
        fleet_note(place->fleet, "machine %u does not start: %s", place->number,
                   err.text);
        place->has_failed = true;
        return;
    }
    place->state = PLACE_UP;
    fleet_note(place->fleet, "machine %u is up", place->number);
    guests_start(place);
}

void place_start(struct place *place)
{
    fleet_note(place->fleet, "machine %u starts", place->number);
    process_begin(place);
    place->state = PLACE_STARTING;
    task_begin(place, start);
}

static async void close_all(struct place *place)
{
    host_close(place->host);
    membership_detach(place->membership);
    place->host = NULL;
    membership_close(take(place->membership));
    store_close(place->store);
    kv_close(place->kv);
}

void place_close(struct place *place)
{
    place->state = PLACE_CLOSING;
    task_begin(place, close_all);
}
