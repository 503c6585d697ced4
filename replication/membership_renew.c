/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The node's certificate, renewed in time. The cluster's authority is in the state, so a
 * node signs for itself, by what the cluster has agreed on: nobody needs to be asked. The
 * key is a new one each time.
 *
 * What can fail is tried again at the next look, of which there are a hundred before the
 * certificate ends, and peers accept it for a while after that (runtime/net.h).
 */
#include "replication/membership_internal.h"

#define LOOK_NS  ((uint64_t)86400 * NS_PER_S)
#define FIRST_NS NS_PER_S
#define LEFT_S   ((uint64_t)CERTIFICATE_DAYS * 86400 / 3)

static int renew(struct membership *m, const struct cluster_authority *authority,
                 struct error *err)
{
    const struct net_pki_pair signer = {authority->certificate, authority->key};
    struct net_pki_pair request, made = {0};
    int rc = net_pki_create_request(&request, err);
    if (rc != 0)
        return rc;
    rc = net_pki_sign(&signer, request.certificate, m->self, CERTIFICATE_DAYS,
                      &made.certificate, err);
    made.key = request.key;
    const struct net_credentials credentials = {authority->certificate, made.certificate,
                                                made.key, NULL};
    if (rc == 0)
        rc = rpc_set_credentials(m->rpc, &credentials, err);
    if (rc == 0 && m->options.renewed != NULL)
        m->options.renewed(m->options.arg, &made);
    free(request.certificate);
    free(made.certificate);
    net_pki_free_key(made.key);
    return rc;
}

static void look(struct timer *timer)
{
    struct membership *m = container_of(timer, struct membership, renewal);
    const struct cluster_authority *authority = cluster_authority(
        cluster_state(m->cluster));
    uint64_t now_s = loop_wall_ns(m->loop) / NS_PER_S;
    struct error err = {0};
    timer_start(m->loop, &m->renewal, LOOK_NS);
    if (authority == NULL || m->certificate_until_s >= now_s + LEFT_S)
        return;
    if (renew(m, authority, &err) != 0) {
        log_warning(m->loop, "this node's certificate was not renewed: %s", err.text);
        return;
    }
    m->certificate_until_s = now_s + (uint64_t)CERTIFICATE_DAYS * 86400;
    log_info(m->loop, "this node's certificate was renewed");
}

void membership_renew_start(struct membership *m)
{
    m->renewal.fire = look;
    timer_start(m->loop, &m->renewal, FIRST_NS);
}

void membership_renew_stop(struct membership *m)
{
    timer_stop(m->loop, &m->renewal);
}
