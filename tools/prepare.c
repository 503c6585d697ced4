/* SPDX-License-Identifier: Apache-2.0 */
/*
 * init: the store is made unless it is there, its cluster of one gets an address and an
 * authority, and the identity is written. join: the identity of the store to be is chosen
 * and kept, the cluster is asked, the store made, and the identity written.
 *
 * The identity comes last. Whatever fails before can be done again, and goes on where it
 * was: what is in the cluster's state stays as it is, and a new certificate takes the
 * place of one that was lost.
 */
#include "tools/prepare.h"

#include <stdio.h>
#include <unistd.h>

#include "cow/host.h"
#include "replication/membership.h"
#include "tools/addresses.h"
#include "tools/size.h"

/* It is in no group, and needs room for the cluster's state only. */
#define WITNESS_BYTES (64 * MIB)

/* --- both --- */

static int check_new(const struct directory *dir, struct error *err)
{
    struct identity identity;
    bool is_there;
    char cluster[UID_TEXT_LEN + 1];
    int r = identity_load(dir, &identity, &is_there, err);
    if (r < 0 || !is_there)
        return r;
    uid_print(identity.self.cluster, cluster);
    r = err_set(err, -PLX_EEXISTS, "%s is node %llu of cluster %s already", dir->path,
                (unsigned long long)identity.self.node, cluster);
    identity_done(&identity);
    return r;
}

async int prepare_store(const struct directory *dir, struct loop *loop,
                        const struct host_options *options, bool *ret_made,
                        struct error *err)
{
    struct host_options create = *options;
    bool is_empty;
    int r = directory_is_empty(dir, &is_empty, err);
    *ret_made = false;
    if (r < 0 || !is_empty)
        return r;
    if (create.capacity_bytes == 0)
        r = directory_capacity(dir, &create.capacity_bytes, err);
    if (r == 0)
        r = directory_create_begin(dir, err);
    if (r < 0)
        return r;
    r = host_create(loop, &create, err);
    if (r < 0) {
        directory_create_undo(dir);
        return r;
    }
    r = directory_create_end(dir, err);
    if (r == 0)
        log_info(loop, "new store %s of %s", dir->store,
                 size_text(create.capacity_bytes).text);
    *ret_made = true;
    return r;
}

static struct host_options host_options_of(const struct prepare_options *options)
{
    return (struct host_options){
        .store_path = options->dir->store,
        .kv_path = options->dir->meta,
        .capacity_bytes = options->is_witness ? WITNESS_BYTES : options->capacity_bytes,
    };
}

/* What of the answer is kept; the key is taken over. */
static int save(const struct prepare_options *options, const struct join_answer *answer,
                struct uid store, char *key, struct error *err)
{
    struct identity identity = {
        .self = answer->identity,
        .store = store,
        .peer_count = answer->peer_count,
        .authority = strdup(answer->authority),
        .certificate = strdup(answer->certificate),
        .key = key,
    };
    int r = -ENOMEM;
    snprintf(identity.address, sizeof identity.address, "%s", options->listen);
    memcpy(identity.peers, answer->peers, sizeof identity.peers);
    if (identity.authority != NULL && identity.certificate != NULL)
        r = identity_save(options->dir, &identity, err);
    else
        err_set(err, r, "%s", err_text(r));
    identity_done(&identity);
    return r;
}

/* Others can only be told of an address that is one of this machine. */
struct trying {
    struct socket_address address;
    int rc;
    struct error *err;
};

static void try_run(void *arg)
{
    struct trying *trying = arg;
    trying->rc = address_try(&trying->address, trying->err);
}

async int prepare_try_address(const char *text, struct error *err)
{
    struct trying trying = {.err = err};
    int r = address_parse(text, &trying.address, err);
    if (r < 0)
        return r;
    task_outside(try_run, &trying); /* a name is looked up on a stack for that */
    return trying.rc;
}

/* --- init --- */

/* Which store it is, and how large. */
static async int look_at_store(const struct prepare_options *options, struct kv *kv,
                               struct store_usage *ret, struct error *err)
{
    const struct store_options store_options = {
        .path = options->dir->store, .kv = kv, .no_idle_work = true};
    struct store *store;
    int r = store_open(options->loop, &store_options, &store, err);
    if (r < 0)
        return r;
    store_usage(store, ret);
    store_close(store);
    return 0;
}

static async int found(const struct prepare_options *options, struct join_answer *answer,
                       struct error *err)
{
    struct membership_founding founding = {
        .loop = options->loop,
        .address = options->listen,
        .domain = options->domain != NULL ? options->domain : "",
    };
    struct store_usage usage;
    char *key = NULL;
    int r = kv_open(options->loop, options->dir->meta, false, &founding.kv, err);
    if (r < 0)
        return r;
    r = look_at_store(options, founding.kv, &usage, err);
    founding.store = usage.incarnation;
    founding.capacity_bytes = usage.capacity_bytes;
    if (r == 0)
        r = membership_found(&founding, answer, &key, err);
    kv_close(founding.kv);
    return r < 0 ? r : save(options, answer, usage.incarnation, key, err);
}

async int prepare_init(const struct prepare_options *options, struct error *err)
{
    const struct host_options host = host_options_of(options);
    cleanup(free_ptr) struct join_answer *answer = calloc(1, sizeof *answer);
    bool is_new;
    if (answer == NULL)
        return err_set(err, -ENOMEM, "%s", err_text(-ENOMEM));
    int r = join_address_check(options->listen, err);
    if (r == 0)
        r = prepare_try_address(options->listen, err);
    if (r == 0)
        r = check_new(options->dir, err);
    if (r == 0)
        r = prepare_store(options->dir, options->loop, &host, &is_new, err);
    return r < 0 ? r : found(options, answer, err);
}

/* --- join --- */

struct joining {
    const struct prepare_options *options;
    struct join_token token;
    struct join_request request;
    struct join_answer answer;
    struct net_pki_pair pair;
    uint8_t digest[NET_DIGEST_BYTES]; /* of the CA that was answered */
    int rc;
    struct error *err;
};

/* On a stack for OpenSSL. */
static void make_request(void *arg)
{
    struct joining *j = arg;
    j->rc = net_pki_create_request(&j->pair, j->err);
}

/* Whoever answered has proven to be of the token's cluster; whether what he says fits
 * together is looked at all the same, since it will be needed for a year. */
static void check_answer(void *arg)
{
    struct joining *j = arg;
    struct net_identity identity = {0};
    uint64_t until_s;
    j->rc = net_pki_digest(j->answer.authority, j->digest, j->err);
    if (j->rc == 0)
        j->rc = net_pki_inspect(j->answer.certificate, &identity, &until_s, j->err);
    if (j->rc != 0)
        return;
    if (memcmp(j->digest, j->token.authority, sizeof j->digest) != 0 ||
        !uid_equal(identity.cluster, j->answer.identity.cluster) ||
        identity.node != j->answer.identity.node)
        j->rc = err_set(j->err, -PLX_EFORMAT,
                        "%s: its answer does not fit together: it was not made for us",
                        j->options->contact);
}

static int read_token(const char *text, struct join_token *ret, struct error *err)
{
    char line[JOIN_TOKEN_LEN + 3];
    if (strcmp(text, "-") != 0)
        return join_token_parse(text, ret, err);
    if (fgets(line, sizeof line, stdin) == NULL)
        return err_set(err, -EINVAL, "no token on standard input");
    line[strcspn(line, "\r\n")] = '\0';
    return join_token_parse(line, ret, err);
}

static int describe_request(struct joining *j, uint64_t capacity_bytes, struct error *err)
{
    const struct prepare_options *options = j->options;
    struct join_request *request = &j->request;
    if (options->domain != NULL && strlen(options->domain) > DISK_NAME_MAX)
        return err_set(err, -EINVAL, "a failure domain has at most %u characters",
                       DISK_NAME_MAX);
    if (strlen(j->pair.certificate) >= sizeof request->pem)
        return err_set(err, -EMSGSIZE, "the signing request is too long");
    memcpy(request->secret, j->token.secret, sizeof request->secret);
    request->capacity_bytes = options->is_witness ? 0 : capacity_bytes;
    request->flags = options->is_witness ? JOIN_WITNESS : 0;
    snprintf(request->address, sizeof request->address, "%s", options->listen);
    snprintf(request->domain, sizeof request->domain, "%s",
             options->domain != NULL ? options->domain : "");
    strcpy(request->pem, j->pair.certificate);
    return 0;
}

/* The store must not exist, unless it was made by an earlier attempt. */
static int check_folder(struct joining *j, struct error *err)
{
    const struct directory *dir = j->options->dir;
    bool is_empty, is_new;
    int r = check_new(dir, err);
    if (r == 0)
        r = directory_is_empty(dir, &is_empty, err);
    if (r == 0)
        r = identity_begin_joining(dir, &j->request.store, &is_new, err);
    if (r == 0 && is_new && !is_empty) {
        identity_forget_joining(dir);
        r = err_set(err, -PLX_EEXISTS,
                    "%s has a store already; a node that joins begins with an empty one",
                    dir->path);
    }
    return r;
}

static async int ask(struct joining *j, struct error *err)
{
    const struct prepare_options *options = j->options;
    uint64_t capacity_bytes = options->capacity_bytes;
    int r = check_folder(j, err);
    if (r == 0 && capacity_bytes == 0)
        r = directory_capacity(options->dir, &capacity_bytes, err);
    if (r < 0)
        return r;
    task_outside(make_request, j);
    r = j->rc;
    if (r == 0)
        r = describe_request(j, capacity_bytes, err);
    if (r == 0)
        r = join_ask(options->loop, options->contact, &j->token, &j->request, &j->answer,
                     err);
    if (r < 0)
        return r;
    task_outside(check_answer, j);
    return j->rc;
}

async int prepare_join(const struct prepare_options *options, struct error *err)
{
    cleanup(free_ptr) struct joining *j = calloc(1, sizeof *j);
    bool was_made;
    if (j == NULL)
        return err_set(err, -ENOMEM, "%s", err_text(-ENOMEM));
    j->options = options;
    j->err = err;
    int r = join_address_check(options->listen, err);
    if (r == 0)
        r = join_address_check(options->contact, err);
    if (r == 0)
        r = prepare_try_address(options->listen, err);
    if (r == 0)
        r = read_token(options->token, &j->token, err);
    if (r == 0)
        r = ask(j, err);
    if (r == 0) {
        struct host_options host = host_options_of(options);
        host.cluster = j->answer.identity.cluster;
        host.incarnation = j->request.store;
        r = prepare_store(options->dir, options->loop, &host, &was_made, err);
    }
    if (r == 0)
        r = save(options, &j->answer, j->request.store, take(j->pair.key), err);
    free(j->pair.certificate);
    net_pki_free_key(j->pair.key);
    return r;
}

/* --- addresses --- */

static void print_addresses(const struct identity *identity)
{
    printf("NODE  ADDRESS\n%4llu  %s (this node)\n",
           (unsigned long long)identity->self.node, identity->address);
    for (uint32_t i = 0; i < identity->peer_count; i++)
        printf("%4llu  %s\n", (unsigned long long)identity->peers[i].node,
               identity->peers[i].address);
}

static int change_addresses(const struct directory *dir, struct identity *identity,
                            char *const *texts, uint32_t count, struct error *err)
{
    struct join_peer changes[ADDRESSES_MAX];
    int r = 0;
    assert(count <= ADDRESSES_MAX);
    for (uint32_t i = 0; i < count && r == 0; i++)
        r = addresses_parse(texts[i], &changes[i], err);
    if (r == 0)
        r = addresses_set(identity, changes, count, err);
    return r < 0 ? r : identity_save_peers(dir, identity, err);
}

int prepare_addresses(const struct directory *dir, char *const *changes, uint32_t count,
                      struct error *err)
{
    struct identity identity;
    bool is_node;
    int r = identity_load(dir, &identity, &is_node, err);
    if (r == 0 && !is_node)
        return err_set(err, -PLX_EPRECONDITION, "%s is no node of a cluster", dir->path);
    if (r < 0)
        return r;
    if (count > 0)
        r = change_addresses(dir, &identity, changes, count, err);
    if (r == 0)
        print_addresses(&identity);
    identity_done(&identity);
    return r;
}
