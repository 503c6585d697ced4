/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes greet each other: at the start, before they follow the cluster's log, on each new
 * connection, and now and then. A greeting says which store it is and which process: a
 * number that is random for each start. It also says where the one who greets listens: a
 * node that has been away, or was started with an old list of others, learns where these
 * are before it can follow the log, which may take their votes.
 *
 * Whoever is greeted knows what the one who greets may not: that its node was removed
 * while it was away, or that the node's number is of another store. And it remembers who
 * greeted under a node's number before. If that was another process, or had another
 * address, it asks who answers at the address it knows: a process that was started again
 * answers there itself, and if its node has moved nobody does; a second one, made by
 * copying a store, is found out by the first's answer, and is refused. The first is not
 * disturbed.
 *
 * A greeting says how much of the cluster's log the node has, too. Whoever is greeted
 * remembers what was committed of it: a node that comes back with less was started with
 * an old copy of its store. It has forgotten whom it voted for, and commands that count
 * as stored because it had them, so it may not take part.
 *
 * What can fail: whoever does not answer has no objection. So this is no proof, but the
 * address is of one machine, and two that run at the same time have the same neighbours.
 */
#include <stdio.h>

#include "replication/membership_internal.h"

#define GREETING_MAX MEMBERSHIP_GREETING_MAX
#define WHO_MS       1500U

/* After so many a node that is not found is looked for at its other address. */
#define ELSEWHERE_ROUNDS 3U

static_assert(ELSEWHERE_ROUNDS * MEMBERSHIP_ROUND_MS > 2 * RPC_CONNECT_MS,
              "it has been tried there");

struct greeting {
    struct uid store, instance;
    char address[DISK_NAME_MAX + 1];
    bool has_log; /* older programs do not say: */
    uint64_t end; /* of the log in its store, */
    uint64_t committed;
};

static_assert(2 * sizeof(struct uid) + 2 + DISK_NAME_MAX + 2 * sizeof(le64) <=
                  GREETING_MAX,
              "it fits");

static size_t put(uint8_t *bytes, size_t at, const void *from, size_t len)
{
    memcpy(bytes + at, from, len);
    return at + len;
}

static size_t greeting_encode(const struct greeting *g, uint8_t ret[GREETING_MAX])
{
    le16 len = le16_of((uint16_t)strlen(g->address));
    le64 end = le64_of(g->end), committed = le64_of(g->committed);
    size_t at = put(ret, 0, &g->store, sizeof g->store);
    at = put(ret, at, &g->instance, sizeof g->instance);
    at = put(ret, at, &len, sizeof len);
    at = put(ret, at, g->address, strlen(g->address));
    if (!g->has_log)
        return at;
    at = put(ret, at, &end, sizeof end);
    return put(ret, at, &committed, sizeof committed);
}

/* What this node says. */
static size_t greeting_write(const struct membership *m, uint8_t ret[GREETING_MAX])
{
    struct greeting own = {
        .store = m->store, .instance = m->instance, .has_log = true, .end = m->log_end};
    strcpy(own.address, m->address);
    if (m->cluster != NULL)
        consensus_stored(cluster_consensus(m->cluster), &own.end, &own.committed);
    return greeting_encode(&own, ret);
}

static bool greeting_decode(const void *bytes, size_t len, struct greeting *ret)
{
    struct reader r = reader_of(bytes, len);
    ret->store = read_uid(&r);
    ret->instance = read_uid(&r);
    read_string(&r, ret->address, sizeof ret->address);
    ret->end = ret->committed = 0;
    ret->has_log = !r.bad && r.left != 0;
    if (ret->has_log) {
        ret->end = read_u64(&r);
        ret->committed = read_u64(&r);
    }
    return !r.bad && r.left == 0 && join_address_check(ret->address, NULL) == 0;
}

/* --- being greeted --- */

static struct greeted *greeted_find(struct membership *m, uint64_t node)
{
    struct greeted *greeted;
    TAILQ_FOREACH (greeted, &m->greeted, link) {
        if (greeted->node == node)
            return greeted;
    }
    return NULL;
}

static void greeted_note(struct membership *m, uint64_t node,
                         const struct greeting *greeting)
{
    struct greeted *greeted = greeted_find(m, node);
    if (greeted == NULL) {
        greeted = malloc(sizeof *greeted);
        if (greeted == NULL)
            return; /* the next greeting is as good */
        *greeted = (struct greeted){.node = node};
        TAILQ_INSERT_TAIL(&m->greeted, greeted, link);
    }
    greeted->instance = greeting->instance;
    greeted->committed = max_u64(greeted->committed, greeting->committed);
}

void membership_forget_greeted(struct membership *m)
{
    struct greeted *greeted;
    while ((greeted = TAILQ_FIRST(&m->greeted)) != NULL) {
        TAILQ_REMOVE(&m->greeted, greeted, link);
        free(greeted);
    }
}

/* Does another process than this one answer for the node? */
static async bool answers_elsewhere(struct membership *m, uint64_t node,
                                    struct uid instance)
{
    struct rpc_call call = {
        .node = node, .op = MEMBERSHIP_WHO_RPC, .timeout_ns = WHO_MS * NS_PER_MS};
    struct writer answer = {0};
    struct greeting who;
    int rc = rpc_wait(m->rpc, &call, &answer, NULL);
    bool is_other = rc == 0 && greeting_decode(answer.bytes, answer.len, &who) &&
                    !uid_equal(who.instance, instance);
    writer_done(&answer);
    return is_other;
}

/* Is it another process than before, or elsewhere? */
static bool is_news(struct membership *m, uint64_t node, const struct greeting *greeting)
{
    const struct greeted *before = greeted_find(m, node);
    const char *address = membership_address_of(m, node);
    return (before != NULL && !uid_equal(before->instance, greeting->instance)) ||
           (address != NULL && strcmp(address, greeting->address) != 0);
}

/* Had it more of the log? */
static int check_log(struct membership *m, uint64_t node, const struct greeting *greeting,
                     struct error *err)
{
    const struct greeted *before = greeted_find(m, node);
    if (before == NULL || !greeting->has_log || greeting->end >= before->committed)
        return 0;
    return err_set(err, -PLX_EDENIED,
                   "node %llu runs with an old copy of its store: it had the cluster's "
                   "log up to %llu, and has it up to %llu",
                   (unsigned long long)node, (unsigned long long)before->committed,
                   (unsigned long long)greeting->end);
}

/* What the state has against it. */
static int check_node(const struct membership *m, uint64_t node, struct uid store,
                      struct error *err)
{
    const struct cluster_node *is =
        m->cluster != NULL ? cluster_node_by_id(cluster_state(m->cluster), node) : NULL;
    if (is == NULL)
        return 0; /* it may know more of the log than this node */
    if (is->flags & NODE_GONE)
        return err_set(err, -PLX_EDENIED, "node %llu was removed from the cluster",
                       (unsigned long long)node);
    if (!uid_equal(is->store, store))
        return err_set(err, -PLX_EDENIED, "node %llu of the cluster has another store",
                       (unsigned long long)node);
    return 0;
}

static async void greeting_serve(struct membership_job *job)
{
    struct membership *m = job->membership;
    uint64_t node = job->request->peer.node;
    struct error err = {0};
    struct greeting greeting;
    uint8_t head[GREETING_MAX];
    int rc = 0;
    if (!greeting_decode(job->request->head, job->request->head_len, &greeting))
        rc = -PLX_EFORMAT;
    if (rc == 0)
        rc = check_node(m, node, greeting.store, &err);
    bool is_new = rc == 0 && is_news(m, node, &greeting);
    if (is_new && answers_elsewhere(m, node, greeting.instance))
        rc = err_set(&err, -PLX_EEXISTS,
                     "another process runs as node %llu, with a copy of its store",
                     (unsigned long long)node);
    if (rc == 0)
        rc = check_log(m, node, &greeting, &err);
    if (rc != 0) {
        membership_refuse(job->request, rc, &err);
        return;
    }
    greeted_note(m, node, &greeting);
    membership_learn(m, node, greeting.address);
    if (is_new && m->cluster != NULL && !m->is_closing)
        membership_greet(m, node); /* there, and nobody else may have to say anything */
    rpc_answer(job->request, 0, head, greeting_write(m, head), NULL, 0);
}

void membership_serve_greeting(struct membership *m, struct rpc_request *request)
{
    membership_job_start(m, request, "greeting", greeting_serve);
}

void membership_serve_who(struct membership *m, struct rpc_request *request)
{
    uint8_t head[GREETING_MAX];
    rpc_answer(request, 0, head, greeting_write(m, head), NULL, 0);
}

/* --- greeting --- */

/* A greeting on its way; frees itself. */
struct salute {
    struct rpc_call call;
    struct membership *membership;
    uint32_t *waiting; /* of membership_greet_all; NULL: nobody waits */
    struct task *task;
};

static void salute_done(struct rpc_call *call)
{
    struct salute *salute = container_of(call, struct salute, call);
    struct membership *m = salute->membership;
    char text[300];
    if (call->result == -PLX_EDENIED || call->result == -PLX_EEXISTS) {
        join_text_decode(call->answer, call->answer_len, text, sizeof text);
        if (call->answer_len == 0) /* nobody let us in at all */
            text[0] = '\0';
        if (call->was_sent && text[0] != '\0')
            err_set(&m->verdict, call->result, "node %llu says: %s",
                    (unsigned long long)call->node, text);
        if (m->verdict.code != 0 && salute->waiting == NULL)
            membership_fail(m, m->verdict.text);
    }
    if (salute->waiting != NULL && --*salute->waiting == 0)
        task_wake(salute->task);
    free(salute);
}

static bool salute_start(struct membership *m, uint64_t node, uint32_t *waiting)
{
    struct salute *salute = calloc(1, sizeof *salute);
    uint8_t head[GREETING_MAX];
    if (salute == NULL)
        return false;
    salute->membership = m;
    salute->waiting = waiting;
    salute->task = task_current();
    salute->call = (struct rpc_call){.node = node,
                                     .op = MEMBERSHIP_GREETING_RPC,
                                     .head = head,
                                     .head_len = (uint32_t)greeting_write(m, head),
                                     .timeout_ns = MEMBERSHIP_GREET_MS * NS_PER_MS,
                                     .done = salute_done};
    rpc_start(m->rpc, &salute->call);
    return true;
}

void membership_greet(struct membership *m, uint64_t node)
{
    salute_start(m, node, NULL);
}

/* One after the other, for ever: a node that was removed while it is connected hears of
 * it so, since nobody sends it the log any more. */
static void round_fired(struct timer *timer)
{
    struct membership *m = container_of(timer, struct membership, greet_round);
    timer_start(m->loop, &m->greet_round, MEMBERSHIP_ROUND_MS * NS_PER_MS);
    if (++m->greet_rounds % ELSEWHERE_ROUNDS == 0)
        membership_look_elsewhere(m);
    for (uint32_t i = 0; i < m->known_count; i++) {
        const struct known_node *known = &m->known[m->greet_next++ % m->known_count];
        if (known->address[0] != '\0' && rpc_is_connected(m->rpc, known->node)) {
            membership_greet(m, known->node);
            return;
        }
    }
}

void membership_rounds_start(struct membership *m)
{
    m->greet_round.fire = round_fired;
    timer_start(m->loop, &m->greet_round, MEMBERSHIP_ROUND_MS * NS_PER_MS);
}

async int membership_greet_all(struct membership *m, struct error *err)
{
    uint32_t waiting = 0;
    for (uint32_t i = 0; i < m->known_count; i++)
        waiting += salute_start(m, m->known[i].node, &waiting);
    while (waiting > 0)
        task_park();
    if (m->verdict.code == 0)
        return 0;
    return err_set(err, m->verdict.code, "%s", m->verdict.text);
}
