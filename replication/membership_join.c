/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokens, and the side of joining that answers.
 *
 * Happy path: the digest of the secret goes with NODE_JOIN to the cluster, which uses the
 * token up and gives a number; then the authority in the state signs. Keys are handled on
 * the loop's own stack, everything else on a task.
 *
 * What can fail: whatever the state refuses is answered in its words, and the secret in
 * none. If the answer is lost, or this node dies after the commit, the stranger asks
 * again, here or elsewhere: the same store gets the same number, and another certificate.
 */
#include <stdio.h>

#include "replication/membership_internal.h"

/* --- digests --- */

struct digesting {
    const void *secret;
    uint8_t digest[TOKEN_DIGEST_BYTES];
    const char *certificate; /* NULL: only the secret's */
    uint8_t authority[NET_DIGEST_BYTES];
    int rc;
    struct error *err;
};

static_assert(TOKEN_DIGEST_BYTES == NET_DIGEST_BYTES, "both are SHA-256");

static void digest_run(void *arg)
{
    struct digesting *d = arg;
    d->rc = net_pki_hash(d->secret, JOIN_SECRET_BYTES, d->digest, d->err);
    if (d->rc == 0 && d->certificate != NULL)
        d->rc = net_pki_digest(d->certificate, d->authority, d->err);
}

/* --- tokens --- */

async int membership_token(struct membership *m, uint32_t minutes,
                           struct join_token *ret_token, struct error *err)
{
    const struct cluster_authority *authority = cluster_authority(
        cluster_state(m->cluster));
    struct join_token token = {{0}, {0}};
    if (minutes == 0 || minutes > JOIN_MINUTES_MAX)
        return err_set(err, -EINVAL, "a token is good for 1 to %u minutes",
                       JOIN_MINUTES_MAX);
    loop_random_bytes(m->loop, token.secret, sizeof token.secret);
    cleanup(free_ptr) char *certificate = authority != NULL
                                              ? strdup(authority->certificate)
                                              : NULL;
    struct digesting digesting = {
        .secret = token.secret, .certificate = certificate, .err = err};
    if (authority != NULL && certificate == NULL)
        return err_set(err, -ENOMEM, "%s", err_text(-ENOMEM));
    task_outside(digest_run, &digesting);
    if (digesting.rc != 0)
        return digesting.rc;
    uint64_t now_ns = loop_wall_ns(m->loop);
    struct cluster_command command = {
        .op = CLUSTER_TOKEN_ADD,
        .wall_ns = now_ns,
        .until_wall_ns = now_ns + minutes * 60 * NS_PER_S,
    };
    struct cluster_result result;
    memcpy(command.digest, digesting.digest, sizeof command.digest);
    int rc = cluster_submit(m->cluster, &command, &result);
    if (rc != 0)
        return err_set(err, rc, "%s", result.text);
    memcpy(token.authority, digesting.authority, sizeof token.authority);
    *ret_token = token;
    return 0;
}

/* --- strangers --- */

struct signing {
    struct net_pki_pair authority;
    const char *request;
    struct net_identity identity;
    char *certificate;
    int rc;
    struct error *err;
};

static void sign_run(void *arg)
{
    struct signing *s = arg;
    s->rc = net_pki_sign(&s->authority, s->request, s->identity, CERTIFICATE_DAYS,
                         &s->certificate, s->err);
}

/* Without an authority (in the simulator) there are no certificates. */
static async int sign(struct membership *m, const struct join_request *request,
                      struct join_answer *answer, struct error *err)
{
    const struct cluster_authority *authority = cluster_authority(
        cluster_state(m->cluster));
    if (authority == NULL)
        return 0;
    struct signing signing = {
        .authority = {strdup(authority->certificate), strdup(authority->key)},
        .request = request->pem,
        .identity = answer->identity,
        .rc = -ENOMEM,
        .err = err,
    };
    if (signing.authority.certificate != NULL && signing.authority.key != NULL)
        task_outside(sign_run, &signing);
    if (signing.rc == 0 && (strlen(signing.certificate) >= JOIN_PEM_MAX ||
                            strlen(signing.authority.certificate) >= JOIN_PEM_MAX))
        signing.rc = err_set(err, -EMSGSIZE, "a certificate is too long");
    if (signing.rc == 0) {
        strcpy(answer->certificate, signing.certificate);
        strcpy(answer->authority, signing.authority.certificate);
    }
    free(signing.certificate);
    free(signing.authority.certificate);
    net_pki_free_key(signing.authority.key);
    return signing.rc;
}

static void add_peers(const struct membership *m, struct join_answer *answer)
{
    const struct cluster_state *state = cluster_state(m->cluster);
    const struct cluster_node *node = NULL;
    while ((node = cluster_node_next(state, node)) != NULL &&
           answer->peer_count < JOIN_PEERS_MAX) {
        if ((node->flags & NODE_GONE) != 0 || node->id == answer->identity.node ||
            join_address_check(node->address, NULL) != 0)
            continue;
        struct join_peer *peer = &answer->peers[answer->peer_count++];
        peer->node = node->id;
        snprintf(peer->address, sizeof peer->address, "%s", node->address);
    }
}

/* Two nodes at one address: one of them would never be reached. */
static int check_address(const struct membership *m, const struct join_request *request,
                         struct error *err)
{
    const struct cluster_node *node = NULL;
    while ((node = cluster_node_next(cluster_state(m->cluster), node)) != NULL) {
        if ((node->flags & NODE_GONE) == 0 && !uid_equal(node->store, request->store) &&
            strcmp(node->address, request->address) == 0)
            return err_set(err, -PLX_EEXISTS, "node %llu has the address %s already",
                           (unsigned long long)node->id, node->address);
    }
    return 0;
}

static async int admit_stranger(struct membership *m, const struct join_request *request,
                                struct join_answer *answer, struct error *err)
{
    struct digesting digesting = {.secret = request->secret, .err = err};
    task_outside(digest_run, &digesting);
    if (digesting.rc != 0)
        return digesting.rc;
    int rc = check_address(m, request, err);
    if (rc != 0)
        return rc;
    struct cluster_command command = {
        .op = CLUSTER_NODE_JOIN,
        .store = request->store,
        .name = request->address,
        .new_name = request->domain,
        .size_bytes = request->capacity_bytes,
        .flags = request->flags & JOIN_WITNESS ? NODE_WITNESS : 0,
        .wall_ns = loop_wall_ns(m->loop),
    };
    struct cluster_result result;
    memcpy(command.digest, digesting.digest, sizeof command.digest);
    rc = cluster_submit(m->cluster, &command, &result);
    if (rc != 0)
        return err_set(err, rc, "%s", result.text);
    answer->identity = (struct net_identity){m->self.cluster, result.id};
    rc = sign(m, request, answer, err);
    if (rc != 0)
        return rc;
    add_peers(m, answer);
    log_info(m->loop, "node %llu joins, at %s", (unsigned long long)result.id,
             request->address);
    return 0;
}

static async void join_serve(struct membership_job *job)
{
    struct error err = {0};
    struct writer head = {0};
    /* Too much for a task's stack. */
    cleanup(free_ptr) struct join_request *request = calloc(1, sizeof *request);
    cleanup(free_ptr) struct join_answer *answer = calloc(1, sizeof *answer);
    int rc = request != NULL && answer != NULL ? 0 : -ENOMEM;
    if (rc == 0)
        rc = join_request_decode(job->request->head, job->request->head_len, request,
                                 &err);
    if (rc == 0)
        rc = admit_stranger(job->membership, request, answer, &err);
    if (rc == 0) {
        join_answer_encode(answer, &head);
        rc = head.bad ? -ENOMEM : 0;
    }
    if (rc == 0) {
        rpc_answer(job->request, 0, head.bytes, head.len, NULL, 0);
    } else {
        log_warning(job->membership->loop, "a stranger was not let in: %s",
                    err.code != 0 ? err.text : err_text(rc));
        membership_refuse(job->request, rc, &err);
    }
    writer_done(&head);
}

void membership_serve_join(struct membership *m, struct rpc_request *request)
{
    if (m->cluster != NULL)
        membership_job_start(m, request, "join", join_serve);
    else
        membership_refuse(request, -EAGAIN, NULL);
}
