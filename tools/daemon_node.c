/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening goes from the bottom up: key-value store, store, membership; the host is opened
 * on these by the daemon. Closing is the other way round.
 *
 * What the daemon learns it keeps in its folder: where other nodes are, whenever that has
 * changed, and a new certificate. A failure to write that is logged, no more: what is
 * there is as good as it was. A new address of its own it keeps when it listens there and
 * nobody had an objection: a copy of a store is refused as before.
 */
#include "tools/daemon_node.h"

#include <stdio.h>

#include "cow/disk_remote.h"
#include "tools/control_server.h"
#include "tools/prepare.h"

/* A node that has just joined waits so long for the cluster's log. */
#define WAIT_S 60U

struct daemon_node {
    struct daemon_node_options options;
    struct loop *loop;
    struct identity identity;
    struct kv *kv;
    struct store *store;
    struct membership *membership;
    struct host *host;
    struct control_server *control;
    struct work save_peers;
};

/* --- what other nodes ask for --- */

static void serve_read(void *arg, struct rpc_request *request)
{
    disk_serve_read(((struct daemon_node *)arg)->host, request);
}

static void serve_hand_over(void *arg, struct rpc_request *request)
{
    disk_serve_hand_over(((struct daemon_node *)arg)->host, request);
}

static void serve_prepare(void *arg, struct rpc_request *request)
{
    disk_serve_prepare(((struct daemon_node *)arg)->host, request);
}

static void serve_held(void *arg, struct rpc_request *request)
{
    disk_serve_held(((struct daemon_node *)arg)->host, request);
}

static void serve_control(void *arg, struct rpc_request *request)
{
    control_server_serve_node(((struct daemon_node *)arg)->control, request);
}

static const struct rpc_op op_read = {DISK_RPC_READ,     "disk read", false,     false,
                                      DISK_RPC_HEAD_MAX, 0,           serve_read};
static const struct rpc_op op_hand_over = {
    DISK_RPC_HAND_OVER, "hand over", false, false, DISK_RPC_HEAD_MAX, 0, serve_hand_over};
static const struct rpc_op op_prepare = {
    DISK_RPC_PREPARE, "prepare", true, false, DISK_RPC_HEAD_MAX, 0, serve_prepare};
static const struct rpc_op op_held = {DISK_RPC_HELD,     "held", false,     false,
                                      DISK_RPC_HEAD_MAX, 0,      serve_held};
static const struct rpc_op op_control = {
    CONTROL_RPC, "control", false, false, CONTROL_RPC_HEAD_MAX, 0, serve_control};
static const struct rpc_op *const ops[] = {&op_read, &op_hand_over, &op_prepare,
                                           &op_held, &op_control,   NULL};

/* --- what it learns --- */

static void save_peers(struct work *work)
{
    struct daemon_node *node = container_of(work, struct daemon_node, save_peers);
    struct error err = {0};
    if (node->membership == NULL)
        return; /* it is being opened: told again when it is */
    node->identity.peer_count = membership_peers(node->membership, node->identity.peers,
                                                 JOIN_PEERS_MAX);
    if (identity_save_peers(node->options.dir, &node->identity, &err) < 0)
        log_warning(node->loop, "the addresses of other nodes: %s", err.text);
}

static void nodes_changed(void *arg)
{
    struct daemon_node *node = arg;
    loop_post(node->loop, &node->save_peers);
}

static void renewed(void *arg, const struct net_pki_pair *pair)
{
    struct daemon_node *node = arg;
    struct identity identity = node->identity;
    struct error err = {0};
    identity.certificate = pair->certificate;
    identity.key = pair->key;
    if (identity_save_certificate(node->options.dir, &identity, &err) < 0)
        log_warning(node->loop, "the new certificate: %s", err.text);
}

static void has_failed(void *arg, const char *why)
{
    struct daemon_node *node = arg;
    node->options.failed(node->options.arg, why);
}

static uint64_t guest_ops(void *arg)
{
    const struct daemon_node *node = arg;
    return node->host != NULL ? host_guest_ops(node->host) : 0;
}

/* --- life --- */

static async int open_store(struct daemon_node *node, struct error *err)
{
    const struct directory *dir = node->options.dir;
    struct store_options options = {.path = dir->store,
                                    .capacity_bytes = node->options.capacity_bytes};
    struct store_usage usage;
    int r = kv_open(node->loop, dir->meta, false, &node->kv, err);
    if (r < 0)
        return r;
    options.kv = node->kv;
    r = store_open(node->loop, &options, &node->store, err);
    if (r < 0)
        return r;
    store_usage(node->store, &usage);
    if (!uid_equal(usage.cluster, node->identity.self.cluster) ||
        !uid_equal(usage.incarnation, node->identity.store))
        return err_set(err, -PLX_EFORMAT,
                       "%s is another store than that of this node (%s/node/identity)",
                       dir->store, dir->path);
    return 0;
}

static async int open_membership(struct daemon_node *node, struct error *err)
{
    const struct identity *identity = &node->identity;
    const struct membership_options options = {
        .loop = node->loop,
        .kv = node->kv,
        .store = node->store,
        .self = identity->self,
        .credentials = {.authority = identity->authority,
                        .certificate = identity->certificate,
                        .key = identity->key},
        .address = identity->address,
        .peers = identity->peers,
        .peer_count = identity->peer_count,
        .upper_ops = ops,
        .failed = has_failed,
        .nodes_changed = nodes_changed,
        .renewed = renewed,
        .guest_ops = guest_ops,
        .arg = node,
    };
    int r = membership_open(&options, &node->membership, err);
    return r < 0 ? r : membership_wait(node->membership, WAIT_S * NS_PER_S, err);
}

/* The store may have grown: placement goes by what the state says. */
static async void tell_capacity(struct daemon_node *node)
{
    struct cluster *cluster = membership_cluster(node->membership);
    const struct cluster_node *is = cluster_node_by_id(cluster_state(cluster),
                                                       node->identity.self.node);
    struct store_usage usage;
    struct cluster_result result;
    store_usage(node->store, &usage);
    if (is == NULL || is->capacity_bytes == usage.capacity_bytes ||
        (is->flags & NODE_WITNESS) != 0)
        return;
    char domain[DISK_NAME_MAX + 1];
    memcpy(domain, is->domain, sizeof domain);
    const struct cluster_command command = {
        .op = CLUSTER_NODE_SET,
        .store = is->store,
        .name = node->identity.address,
        .new_name = domain,
        .size_bytes = usage.capacity_bytes,
        .wall_ns = loop_wall_ns(node->loop),
    };
    if (cluster_submit(cluster, &command, &result) != 0)
        log_warning(node->loop, "the new capacity: %s", result.text);
}

static async int take_address(struct daemon_node *node, struct error *err)
{
    const char *listen = node->options.listen;
    int r = join_address_check(listen, err);
    if (r == 0)
        r = prepare_try_address(listen, err);
    if (r == 0)
        snprintf(node->identity.address, sizeof node->identity.address, "%s", listen);
    return r;
}

async int daemon_node_open(const struct daemon_node_options *options,
                           struct daemon_node **ret_node, struct error *err)
{
    struct daemon_node *node = calloc(1, sizeof *node);
    if (node == NULL) {
        identity_done(options->identity);
        return err_set(err, -ENOMEM, "%s", err_text(-ENOMEM));
    }
    node->options = *options;
    node->loop = options->loop;
    node->identity = *options->identity;
    *options->identity = (struct identity){0};
    node->save_peers.run = save_peers;
    int r = options->listen != NULL ? take_address(node, err) : 0;
    if (r == 0)
        r = open_store(node, err);
    if (r == 0)
        r = open_membership(node, err);
    if (r == 0 && options->listen != NULL)
        r = identity_save_peers(options->dir, &node->identity, err);
    if (r < 0) {
        daemon_node_close(node);
        return r;
    }
    if (options->capacity_bytes != 0)
        tell_capacity(node);
    nodes_changed(node);
    *ret_node = node;
    return 0;
}

struct host_parts daemon_node_parts(const struct daemon_node *node)
{
    return (struct host_parts){
        .kv = node->kv,
        .store = node->store,
        .cluster = membership_cluster(node->membership),
        .copies = membership_copies(node->membership),
        .rpc = membership_rpc(node->membership),
        .node = node->identity.self.node,
    };
}

void daemon_node_attach(struct daemon_node *node, struct host *host,
                        struct control_server *control)
{
    node->host = host;
    node->control = control;
    membership_attach(node->membership, node);
}

void daemon_node_detach(struct daemon_node *node)
{
    membership_detach(node->membership);
    node->host = NULL;
}

async void daemon_node_close(struct daemon_node *node)
{
    if (node->membership != NULL)
        membership_close(take(node->membership));
    loop_post_cancel(node->loop, &node->save_peers);
    if (node->store != NULL)
        store_close(node->store);
    if (node->kv != NULL)
        kv_close(node->kv);
    identity_done(&node->identity);
    free(node);
}

struct membership *daemon_node_membership(const struct daemon_node *node)
{
    return node->membership;
}
