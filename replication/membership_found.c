/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A cluster of one becomes one that others can join: its node gets an address, and the
 * cluster an authority, which signs for this node first.
 *
 * What can fail leaves at most a part of that in the state. Doing it again goes on from
 * there: the authority is the one in the state, if there is one.
 */
#include <stdio.h>

#include "replication/membership_internal.h"

struct founding {
    const struct membership_founding *options;
    struct net_identity self;
    struct net_pki_pair authority, request;
    char *certificate;
    int rc;
    struct error *err;
};

static void make_authority(void *arg)
{
    struct founding *f = arg;
    f->rc = net_pki_create_authority(f->self.cluster, &f->authority, f->err);
}

static void make_certificate(void *arg)
{
    struct founding *f = arg;
    f->rc = net_pki_create_request(&f->request, f->err);
    if (f->rc == 0)
        f->rc = net_pki_sign(&f->authority, f->request.certificate, f->self,
                             CERTIFICATE_DAYS, &f->certificate, f->err);
}

static async int submit(struct cluster *cluster, const struct cluster_command *command,
                        struct error *err)
{
    struct cluster_result result;
    int rc = cluster_submit(cluster, command, &result);
    return rc != 0 ? err_set(err, rc, "%s", result.text) : 0;
}

/* Whose cluster it is: it must be of one node, this one. */
static int check_state(struct founding *f, struct cluster *cluster)
{
    const struct cluster_state *state = cluster_state(cluster);
    const struct cluster_node *node = cluster_node_next(state, NULL);
    if (node == NULL || cluster_node_next(state, node) != NULL ||
        !uid_equal(node->store, f->options->store))
        return err_set(f->err, -PLX_EPRECONDITION,
                       "this store is not that of a cluster of one");
    f->self = (struct net_identity){cluster_state_uid(state), node->id};
    const struct cluster_authority *authority = cluster_authority(state);
    if (authority == NULL)
        return 0;
    f->authority.certificate = strdup(authority->certificate);
    f->authority.key = strdup(authority->key);
    return f->authority.certificate != NULL && f->authority.key != NULL
               ? 0
               : err_set(f->err, -ENOMEM, "%s", err_text(-ENOMEM));
}

static async int commit(struct founding *f, struct cluster *cluster)
{
    const struct membership_founding *options = f->options;
    const struct cluster_command set = {
        .op = CLUSTER_NODE_SET,
        .store = options->store,
        .name = options->address,
        .new_name = options->domain,
        .size_bytes = options->capacity_bytes,
        .wall_ns = loop_wall_ns(options->loop),
    };
    bool is_new = f->authority.certificate == NULL;
    if (is_new)
        task_outside(make_authority, f);
    if (f->rc != 0)
        return f->rc;
    const struct cluster_command authority = {
        .op = CLUSTER_AUTHORITY,
        .certificate = f->authority.certificate,
        .certificate_len = (uint32_t)strlen(f->authority.certificate),
        .key = f->authority.key,
        .key_len = (uint32_t)strlen(f->authority.key),
    };
    int rc = submit(cluster, &set, f->err);
    return rc == 0 && is_new ? submit(cluster, &authority, f->err) : rc;
}

static int give(struct founding *f, struct join_answer *ret, char **ret_key)
{
    if (strlen(f->certificate) >= sizeof ret->certificate ||
        strlen(f->authority.certificate) >= sizeof ret->authority)
        return err_set(f->err, -EMSGSIZE, "a certificate is too long");
    *ret = (struct join_answer){.identity = f->self};
    strcpy(ret->certificate, f->certificate);
    strcpy(ret->authority, f->authority.certificate);
    *ret_key = take(f->request.key);
    return 0;
}

async int membership_found(const struct membership_founding *options,
                           struct join_answer *ret, char **ret_key, struct error *err)
{
    struct founding f = {.options = options, .err = err};
    struct cluster *cluster;
    const struct cluster_options cluster_options = {
        .loop = options->loop, .kv = options->kv, .node = CLUSTER_FIRST_NODE};
    int rc = join_address_check(options->address, err);
    if (rc == 0)
        rc = cluster_open(&cluster_options, &cluster, err);
    if (rc != 0)
        return rc;
    rc = check_state(&f, cluster);
    if (rc == 0)
        rc = commit(&f, cluster);
    cluster_close(cluster);
    if (rc == 0) {
        task_outside(make_certificate, &f);
        rc = f.rc;
    }
    if (rc == 0)
        rc = give(&f, ret, ret_key);
    free(f.authority.certificate);
    net_pki_free_key(f.authority.key);
    free(f.request.certificate);
    net_pki_free_key(f.request.key);
    free(f.certificate);
    return rc;
}
