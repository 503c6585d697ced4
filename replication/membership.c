/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening: the rpc listens, other nodes are greeted (they know whether this one was
 * removed, or runs somewhere else already), then the cluster's log is loaded and
 * followed.
 * Each request goes through `handle`, which looks who sent it and leads to whoever serves
 * its operation.
 *
 * What can fail: whatever fails while it opens undoes what was done. Later consensus may
 * fail, or another node may say that this one was removed: `failed` is told once, and
 * everything goes on refusing until it is closed.
 *
 * On close nothing new is served; what is being served is waited for; then consensus, the
 * rpc, and the service of the store end, in this order, because each may still use the
 * next.
 *
 * M1  A request of a node that the state calls GONE reaches nobody but the greeting.
 * M2  What serves a request is there before the rpc listens and until it ends, or the
 *     request is refused.
 */
#include <stdio.h>

#include "replication/membership_internal.h"

/* --- the table of operations --- */

static void serve_store(struct membership *m, struct rpc_request *request)
{
    uint64_t payload_bytes = request->payload.buffer != NULL ? request->payload.len : 0;
    if (m->service == NULL || m->is_closing)
        rpc_answer(request, -ESHUTDOWN, NULL, 0, NULL, 0);
    else
        store_service_handle(m->service, request);
    m->served += 1 + payload_bytes / ROOM_OP_BYTES;
}

static void serve_consensus_post(struct membership *m, struct rpc_request *request)
{
    consensus_rpc_post(m->binding, request);
}

static void serve_consensus_part(struct membership *m, struct rpc_request *request)
{
    consensus_rpc_part(m->binding, request);
}

static uint32_t find_op(const struct membership *m, uint16_t number)
{
    uint32_t at = 0;
    while (at < m->op_count && m->ops[at].number != number)
        at++;
    assert(at < m->op_count); /* it is from our table */
    return at;
}

static void serve_upper(struct membership *m, struct rpc_request *request)
{
    const struct rpc_op *upper = m->upper[find_op(m, request->op->number)];
    if (m->is_attached)
        upper->handle(m->upper_arg, request);
    else if (!upper->is_one_way)
        rpc_answer(request, -EAGAIN, NULL, 0, NULL, 0);
}

bool membership_is_gone(const struct membership *m, uint64_t node)
{
    const struct cluster_node *is =
        m->cluster != NULL ? cluster_node_by_id(cluster_state(m->cluster), node) : NULL;
    return is != NULL && (is->flags & NODE_GONE) != 0;
}

static void handle(void *arg, struct rpc_request *request)
{
    struct membership *m = arg;
    bool is_greeting = request->op->number == MEMBERSHIP_GREETING_RPC;
    if (membership_is_gone(m, request->peer.node) && !is_greeting) { /* M1 */
        if (!request->op->is_one_way)
            rpc_answer(request, -PLX_EDENIED, NULL, 0, NULL, 0);
        return;
    }
    m->serve[find_op(m, request->op->number)](m, request);
}

static void op_add(struct membership *m, const struct rpc_op *op, serve_fn *serve)
{
    assert(m->op_count < MEMBERSHIP_OPS_MAX);
    m->ops[m->op_count] = *op;
    m->ops[m->op_count].handle = handle;
    m->op_list[m->op_count] = &m->ops[m->op_count];
    m->upper[m->op_count] = op;
    m->serve[m->op_count++] = serve;
}

static void ops_fill(struct membership *m, const struct rpc_op *const *upper)
{
    static const struct rpc_op post = {CONSENSUS_RPC_POST, "consensus", true, false,
                                       CONSENSUS_POST_MAX, 0,           NULL};
    static const struct rpc_op part = {
        CONSENSUS_RPC_PART,        "consensus part",   false, false,
        CONSENSUS_PART_HEAD_BYTES, CONSENSUS_PART_MAX, NULL};
    static const struct rpc_op join = {JOIN_RPC,         "join", false, true,
                                       JOIN_REQUEST_MAX, 0,      NULL};
    static const struct rpc_op greeting = {
        MEMBERSHIP_GREETING_RPC, "greeting", false, false,
        MEMBERSHIP_GREETING_MAX, 0,          NULL};
    static const struct rpc_op who = {
        MEMBERSHIP_WHO_RPC, "who", false, false, 64, 0, NULL};
    static const struct rpc_op heartbeat = {
        HEARTBEAT_RPC, "heartbeat", true, false, HEARTBEAT_MAX, 0, NULL};
    for (uint32_t i = 0; i < STORE_SERVICE_OPS; i++)
        op_add(m, &store_service_ops[i], serve_store);
    for (uint32_t i = 0; i < COPY_SERVICE_OPS; i++)
        op_add(m, &copy_service_ops[i], membership_serve_copies);
    op_add(m, &heartbeat, membership_serve_heartbeat);
    op_add(m, &post, serve_consensus_post);
    op_add(m, &part, serve_consensus_part);
    op_add(m, &join, membership_serve_join);
    op_add(m, &greeting, membership_serve_greeting);
    op_add(m, &who, membership_serve_who);
    for (; upper != NULL && *upper != NULL; upper++)
        op_add(m, *upper, serve_upper);
    m->op_list[m->op_count] = NULL;
}

/* --- requests that take a task --- */

static void job_main(struct task_call *call)
{
    struct membership_job *job = container_of(call, struct membership_job, call);
    struct membership *m = job->membership;
    job->run(job);
    free(job);
    if (--m->job_count == 0)
        waitlist_wake_all(&m->idle);
}

void membership_job_start(struct membership *m, struct rpc_request *request,
                          const char *name, async void (*run)(struct membership_job *job))
{
    struct membership_job *job = NULL;
    if (m->is_closing) {
        membership_refuse(request, -EAGAIN, NULL);
        return;
    }
    if (m->job_count < MEMBERSHIP_JOBS_MAX)
        job = malloc(sizeof *job);
    if (job == NULL) {
        membership_refuse(request, -PLX_ELIMIT, NULL);
        return;
    }
    *job = (struct membership_job){.membership = m, .request = request, .run = run};
    job->call = (struct task_call){.main = job_main, .name = name, .system = true};
    m->job_count++;
    task_start(m->loop, &job->call);
}

void membership_refuse(struct rpc_request *request, int code, const struct error *err)
{
    const char *text = err != NULL && err->code != 0 ? err->text : err_text(code);
    rpc_answer(request, code, text, strlen(text), NULL, 0);
}

void membership_fail(struct membership *m, const char *why)
{
    if (m->has_failed)
        return;
    m->has_failed = true;
    log_error(m->loop, "node %llu: %s", (unsigned long long)m->self.node, why);
    if (m->options.failed != NULL && !m->is_closing)
        m->options.failed(m->options.arg, why);
}

static void cluster_has_failed(void *arg, const char *why)
{
    membership_fail(arg, why);
}

/* --- what it is told --- */

static void state_applied(struct cluster_watcher *watcher)
{
    membership_state_applied(container_of(watcher, struct membership, watcher));
}

static void peer_changed(void *arg, uint64_t node, bool is_connected)
{
    struct membership *m = arg;
    log_info(m->loop, "node %llu: %s", (unsigned long long)node,
             is_connected ? "connected" : "connection lost");
    if (is_connected)
        membership_found_at(m, node);
    if (is_connected && m->cluster != NULL && !m->is_closing)
        membership_greet(m, node);
    if (is_connected && m->recovery != NULL)
        recovery_wake(m->recovery);
}

/* --- admission --- */

static async int admit(void *arg, struct address extent, uint64_t disk, uint64_t epoch,
                       uint64_t index)
{
    struct membership *m = arg;
    uint64_t lister = 0;
    int rc = cluster_wait_applied(m->cluster, index, MEMBERSHIP_ADMIT_MS * NS_PER_MS);
    if (rc != 0)
        return rc;
    const struct log_extent *listed = cluster_listed_extent(cluster_state(m->cluster),
                                                            extent, &lister);
    if (listed == NULL || lister != disk || listed->final)
        return -PLX_EPRECONDITION;
    if (listed->epoch != epoch)
        return -PLX_EEPOCH;
    for (uint32_t i = 0; i < listed->member_count; i++) {
        if (listed->members[i] == m->self.node)
            return 0;
    }
    return -PLX_EPRECONDITION;
}

/* Has it ended at 0, as far as this node knows? */
static bool has_no_length(const struct membership *m, struct address extent)
{
    const struct cluster_state *state = cluster_state(m->cluster);
    const struct log_extent *listed = cluster_listed_extent(state, extent, NULL);
    if (listed != NULL)
        return listed->final && listed->length == 0;
    return address_sequence(extent) < cluster_state_next_sequence(state);
}

static async int may_delete(void *arg, struct address extent)
{
    const struct membership *m = arg;
    uint64_t until_ns = loop_now_ns(m->loop) + MEMBERSHIP_ADMIT_MS * NS_PER_MS;
    uint64_t now_ns;
    while (!has_no_length(m, extent)) {
        uint64_t next = cluster_state_applied(cluster_state(m->cluster)) + 1;
        now_ns = loop_now_ns(m->loop);
        if (now_ns >= until_ns ||
            cluster_wait_applied(m->cluster, next, until_ns - now_ns) != 0)
            return -EAGAIN;
    }
    return 0;
}

/* --- opening --- */

struct network {
    struct membership *m;
    struct rpc_options options;
    int rc;
    struct error *err;
};

static void network_begin(void *arg)
{
    struct network *network = arg;
    struct membership *m = network->m;
    struct net_identity identity;
    const char *certificate = network->options.credentials.certificate;
    if (certificate != NULL)
        network->rc = net_pki_inspect(certificate, &identity, &m->certificate_until_s,
                                      network->err);
    if (network->rc != 0)
        return;
    network->rc = rpc_create(&network->options, &m->rpc, network->err);
    if (network->rc == 0 &&
        consensus_rpc_create(m->loop, m->rpc, m->buffers, &m->binding) != 0)
        network->rc = err_set(network->err, -ENOMEM, "%s", err_text(-ENOMEM));
    if (network->rc == 0) /* M2 */
        network->rc = rpc_listen(m->rpc, m->address, NULL, network->err);
    if (network->rc == -EADDRNOTAVAIL)
        err_add(network->err, network->rc,
                "this node's address is of another machine (is this a copy of that "
                "machine's files? if this one has a new address: --listen)");
}

/* Until here what comes reaches the binding. */
static void network_end(void *arg)
{
    struct membership *m = arg;
    if (m->binding != NULL)
        consensus_rpc_destroy(take(m->binding));
    if (m->rpc != NULL)
        rpc_destroy(take(m->rpc));
}

static async int open_network(struct membership *m,
                              const struct membership_options *options, struct error *err)
{
    struct network network = {
        .m = m,
        .options = {.loop = m->loop,
                    .self = m->self,
                    .credentials = options->credentials,
                    .buffers = m->buffers,
                    .ops = m->op_list,
                    .arg = m,
                    .peer_changed = peer_changed},
        .err = err,
    };
    task_outside(network_begin, &network);
    if (network.rc != 0)
        return network.rc;
    for (uint32_t i = 0; i < options->peer_count; i++)
        membership_learn(m, options->peers[i].node, options->peers[i].address);
    int rc = consensus_stored_in(options->kv, m->self.node, &m->log_end, err);
    return rc == 0 ? membership_greet_all(m, err) : rc;
}

static async int open_parts(struct membership *m, struct error *err)
{
    const struct cluster_options cluster = {
        .loop = m->loop,
        .kv = m->options.kv,
        .node = m->self.node,
        .link = consensus_rpc_link(m->binding),
        .tuning = m->options.tuning,
        .failed = cluster_has_failed,
        .arg = m,
    };
    const struct store_service_options service = {
        .store = m->options.store,
        .loop = m->loop,
        .buffers = m->buffers,
        .admit = admit,
        .may_delete = may_delete,
        .arg = m,
    };
    int rc = cluster_open(&cluster, &m->cluster, err);
    if (rc != 0)
        return rc;
    const struct copies_options copies = {
        .loop = m->loop,
        .cluster = m->cluster,
        .store = m->options.store,
        .node = m->self.node,
        .rpc = m->rpc,
        .buffers = m->buffers,
    };
    rc = store_service_create(&service, &m->service);
    if (rc == 0)
        rc = copies_create(&copies, &m->copies);
    if (rc == 0 && !m->options.no_duties)
        rc = membership_duties_create(m);
    if (rc != 0)
        return err_set(err, rc, "%s", err_text(rc));
    consensus_rpc_attach(m->binding, cluster_consensus(m->cluster));
    m->watcher.applied = state_applied;
    cluster_on_apply(m->cluster, &m->watcher);
    m->is_watching = true;
    membership_state_applied(m);
    membership_rounds_start(m);
    if (!m->options.no_duties)
        membership_duties_start(m);
    if (m->certificate_until_s != 0)
        membership_renew_start(m);
    return 0;
}

static struct membership *membership_new(const struct membership_options *options)
{
    struct membership *m = calloc(1, sizeof *m);
    struct store_usage usage;
    if (m == NULL)
        return NULL;
    m->buffers = buffer_pool_create(MEMBERSHIP_BUFFERS);
    if (m->buffers == NULL) {
        free(m);
        return NULL;
    }
    m->options = *options;
    m->options.credentials = (struct net_credentials){0};
    m->options.address = NULL;
    m->options.peers = NULL;
    m->options.upper_ops = NULL;
    m->loop = options->loop;
    m->self = options->self;
    snprintf(m->address, sizeof m->address, "%s", options->address);
    store_usage(options->store, &usage);
    m->store = usage.incarnation;
    loop_random_bytes(m->loop, &m->instance, sizeof m->instance);
    waitlist_init(&m->idle);
    TAILQ_INIT(&m->greeted);
    ops_fill(m, options->upper_ops);
    return m;
}

async int membership_open(const struct membership_options *options,
                          struct membership **ret_membership, struct error *err)
{
    struct membership *m = membership_new(options);
    if (m == NULL)
        return err_set(err, -ENOMEM, "%s", err_text(-ENOMEM));
    int rc = open_network(m, options, err);
    if (rc == 0)
        rc = open_parts(m, err);
    if (rc != 0) {
        membership_close(m);
        return rc;
    }
    *ret_membership = m;
    return 0;
}

static bool knows_self(const struct membership *m)
{
    return cluster_node_by_id(cluster_state(m->cluster), m->self.node) != NULL;
}

/* It reaches others, but none of them has come to it. */
static bool is_not_met(const struct membership *m)
{
    bool reaches_any = false;
    for (uint32_t i = 0; i < m->known_count; i++)
        reaches_any |= rpc_is_connected(m->rpc, m->known[i].node);
    return reaches_any && TAILQ_EMPTY(&m->greeted);
}

static int not_followed(const struct membership *m, struct error *err)
{
    char text[300] = "none is known";
    for (uint32_t i = 0, len = 0; i < m->known_count && len < sizeof text; i++)
        len += (uint32_t)snprintf(
            text + len, sizeof text - len, "%snode %llu at %s %s", i > 0 ? ", " : "",
            (unsigned long long)m->known[i].node, m->known[i].address,
            rpc_is_connected(m->rpc, m->known[i].node) ? "answers" : "does not");
    if (is_not_met(m))
        return err_set(err, -ETIMEDOUT,
                       "no node has connected to this one at %s: can they reach that "
                       "address? if not, give another one with --listen; %s",
                       m->address, text);
    return err_set(err, -ETIMEDOUT, "the cluster's leader has not sent its log yet: %s",
                   text);
}

async int membership_wait(struct membership *m, uint64_t timeout_ns, struct error *err)
{
    uint64_t until_ns = loop_now_ns(m->loop) + timeout_ns;
    uint64_t meet_ns = loop_now_ns(m->loop) + MEMBERSHIP_MEET_MS * NS_PER_MS;
    while (!knows_self(m) && !m->has_failed) {
        uint64_t now_ns = loop_now_ns(m->loop);
        if (now_ns >= until_ns || (now_ns >= meet_ns && is_not_met(m)))
            return not_followed(m, err);
        task_sleep_ns(50 * NS_PER_MS);
    }
    if (m->has_failed)
        return err_set(err, -PLX_EFAILED, "%s", err_text(-PLX_EFAILED));
    return 0;
}

/* --- closing --- */

async void membership_close(struct membership *m)
{
    m->is_closing = true;
    membership_renew_stop(m);
    timer_stop(m->loop, &m->greet_round);
    membership_duties_stop(m);
    if (m->service != NULL)
        store_service_stop(m->service);
    while (m->job_count > 0)
        waitlist_wait(&m->idle);
    if (m->is_watching)
        cluster_off_apply(m->cluster, &m->watcher);
    if (m->cluster != NULL) {
        cluster_close(m->cluster);
        m->cluster = NULL;
        consensus_rpc_attach(m->binding, NULL);
    }
    membership_duties_end(m);
    copies_destroy(m->copies);
    task_outside(network_end, m);
    store_service_destroy(m->service);
    copy_service_destroy(m->copy_service);
    membership_forget_greeted(m);
    buffer_pool_destroy(m->buffers);
    free(m->known);
    free(m);
}

void membership_attach(struct membership *m, void *upper_arg)
{
    m->upper_arg = upper_arg;
    m->is_attached = true;
}

void membership_detach(struct membership *m)
{
    m->is_attached = false;
}

struct cluster *membership_cluster(const struct membership *m)
{
    return m->cluster;
}

struct copies *membership_copies(const struct membership *m)
{
    return m->copies;
}

struct rpc *membership_rpc(const struct membership *m)
{
    return m->rpc;
}

const struct warden *membership_warden(const struct membership *m)
{
    return m->warden;
}

struct recovery *membership_recovery(const struct membership *m)
{
    return m->recovery;
}

uint64_t membership_node(const struct membership *m)
{
    return m->self.node;
}
