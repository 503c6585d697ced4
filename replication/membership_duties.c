/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a node does by itself: it makes its store whole, serves those who make theirs, and
 * does the leader's work if it leads.
 *
 * Guests come first, those of this node and those that ask its store: see room.h.
 *
 * On close no new work begins; what is under way ends, some of it only when the cluster
 * has ended.
 */
#include "replication/membership_internal.h"

#define REST_MAX_NS NS_PER_S

static async void make_room(void *arg, uint64_t bytes)
{
    struct way *way = arg;
    struct membership *m = way->membership;
    uint64_t now_ns = loop_now_ns(m->loop);
    uint64_t ops = m->served;
    if (m->options.guest_ops != NULL)
        ops += m->options.guest_ops(m->options.arg);
    uint32_t busy = guest_load_look(&m->guest_load, ops, now_ns);
    uint64_t rest_ns = room_take(&way->room, bytes, busy, now_ns);
    if (rest_ns == 0)
        task_yield();
    else if (!m->is_closing)
        task_sleep_ns(min_u64(rest_ns, REST_MAX_NS));
}

static bool is_whole(void *arg, uint16_t group)
{
    const struct way *way = arg;
    const struct membership *m = way->membership;
    return recovery_may_serve(cluster_state(m->cluster), m->self.node, group);
}

static void served_bad(void *arg, struct address extent)
{
    const struct way *way = arg;
    if (way->membership->recovery != NULL)
        recovery_mend(way->membership->recovery, extent, false);
}

static void found_bad(void *arg, struct address extent)
{
    recovery_mend(arg, extent, true);
}

/* A witness has no store to speak of. And a store that said that it is full is asked for
 * nothing any more: it would never find out that there is room again. */
static void usage_of(void *arg, struct warden_usage *ret)
{
    const struct membership *m = arg;
    const struct cluster_node *self = cluster_node_by_id(cluster_state(m->cluster),
                                                         m->self.node);
    *ret = (struct warden_usage){0};
    if (self == NULL || (self->flags & NODE_WITNESS) != 0)
        return;
    store_look_soon(m->options.store);
    warden_store_usage(m->options.store, ret);
    if (m->recovery == NULL)
        return;
    struct recovery_status recovery;
    recovery_status(m->recovery, &recovery);
    ret->recovering_groups = recovery.groups;
    ret->recovery_left_bytes = recovery.bytes_left;
    ret->recovery_bytes_s = recovery.rate_bytes_s;
}

int membership_duties_create(struct membership *m)
{
    m->receiving.membership = m->sending.membership = m;
    const struct copy_service_options service = {
        .store = m->options.store,
        .loop = m->loop,
        .buffers = m->buffers,
        .is_whole = is_whole,
        .rest = make_room,
        .bad = served_bad,
        .arg = &m->sending,
    };
    const struct recovery_options recovery = {
        .loop = m->loop,
        .cluster = m->cluster,
        .store = m->options.store,
        .node = m->self.node,
        .rpc = m->rpc,
        .kv = m->options.kv,
        .rest = make_room,
        .rest_arg = &m->receiving,
    };
    const struct warden_options warden = {
        .loop = m->loop,
        .cluster = m->cluster,
        .rpc = m->rpc,
        .node = m->self.node,
        .address = m->address,
        .usage = usage_of,
        .arg = m,
        .out_ns = m->options.out_ns,
    };
    int rc = copy_service_create(&service, &m->copy_service);
    if (rc == 0)
        rc = recovery_create(&recovery, &m->recovery);
    if (rc == 0)
        copies_on_damage(m->copies, found_bad, m->recovery);
    return rc == 0 ? warden_create(&warden, &m->warden) : rc;
}

void membership_duties_start(struct membership *m)
{
    recovery_start(m->recovery);
}

async void membership_duties_stop(struct membership *m)
{
    if (m->warden != NULL)
        warden_stop(m->warden);
    if (m->copies != NULL)
        copies_on_damage(m->copies, NULL, NULL);
    if (m->recovery != NULL)
        recovery_stop(m->recovery);
    if (m->copy_service != NULL)
        copy_service_stop(m->copy_service);
}

async void membership_duties_end(struct membership *m)
{
    if (m->warden != NULL)
        warden_destroy(take(m->warden));
    recovery_destroy(take(m->recovery));
}

void membership_serve_copies(struct membership *m, struct rpc_request *request)
{
    if (m->copy_service == NULL || m->is_closing)
        rpc_answer(request, -ESHUTDOWN, NULL, 0, NULL, 0);
    else
        copy_service_handle(m->copy_service, request);
}

void membership_serve_heartbeat(struct membership *m, struct rpc_request *request)
{
    if (m->warden != NULL && !m->is_closing)
        warden_heartbeat(m->warden, request);
}
