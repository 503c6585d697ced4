/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all networks share: checks of each operation, once, before the implementation
 * sees it, and what can be told of a connection without asking it.
 */
#include "runtime/net_internal.h"

#include <stdio.h>

int net_create(const struct net_options *options, struct net **ret_net, struct error *err)
{
    struct loop *loop = options->loop;
    assert(options->buffers != NULL);
    return loop->ops->net_create(options, ret_net, err);
}

void net_destroy(struct net *net)
{
    if (net != NULL)
        net->ops->destroy(net);
}

int net_set_credentials(struct net *net, const struct net_credentials *credentials,
                        struct error *err)
{
    return net->ops->set_credentials(net, credentials, err);
}

int net_listen(struct net *net, const char *address, uint16_t *ret_port,
               struct error *err)
{
    assert(net->options.accepted != NULL);
    if (strlen(address) >= NET_ADDRESS_MAX)
        return err_set(err, -EINVAL, "an address has at most %u bytes",
                       NET_ADDRESS_MAX - 1);
    return net->ops->listen(net, address, ret_port, err);
}

struct net_conn *net_connect(struct net *net, const char *address, uint64_t node,
                             const struct net_handlers *handlers, void *arg)
{
    assert(handlers != NULL);
    return net->ops->connect(net, address, node, handlers, arg);
}

void net_conn_close(struct net_conn *conn)
{
    conn->net->ops->close(conn);
}

struct net_identity net_conn_peer(const struct net_conn *conn)
{
    return conn->peer;
}

const char *net_conn_address(const struct net_conn *conn)
{
    return conn->address;
}

bool net_conn_is_open(const struct net_conn *conn)
{
    return conn->is_open;
}

uint64_t net_conn_heard_ns(const struct net_conn *conn)
{
    return conn->heard_ns;
}

bool net_conn_is_reading(const struct net_conn *conn)
{
    return !conn->is_paused && !conn->is_starved;
}

uint64_t net_conn_queued_bytes(const struct net_conn *conn)
{
    return conn->queued_bytes;
}

void net_conn_pause(struct net_conn *conn, bool paused)
{
    if (conn->is_paused == paused)
        return;
    conn->is_paused = paused;
    conn->net->ops->pause(conn, paused);
}

int net_send(struct net_conn *conn, const struct net_send *send)
{
    assert(send->head_len >= 1);
    if (send->head_len > NET_HEAD_MAX || send->slice_count > NET_SLICES_MAX ||
        net_send_payload(send) > NET_PAYLOAD_MAX)
        return -EMSGSIZE;
    return conn->net->ops->send(conn, send);
}

/* --- for the implementations --- */

void net_init(struct net *net, const struct net_ops *ops,
              const struct net_options *options)
{
    *net = (struct net){.ops = ops, .loop = options->loop, .options = *options};
    net->options.credentials = (struct net_credentials){0};
}

void net_conn_init(struct net_conn *conn, struct net *net, const char *address,
                   const struct net_handlers *handlers, void *arg)
{
    *conn = (struct net_conn){.net = net, .handlers = handlers, .arg = arg};
    snprintf(conn->address, sizeof conn->address, "%s", address);
    conn->heard_ns = loop_now_ns(net->loop);
}

uint64_t net_send_payload(const struct net_send *send)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < send->slice_count; i++) {
        const struct slice *slice = &send->slices[i];
        assert(slice->offset <= slice->buffer->capacity);
        assert(slice->len <= slice->buffer->capacity - slice->offset);
        bytes += slice->len;
    }
    return bytes;
}
