/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that go to the node that owns a disk. The node that was asked sends the
 * request with CONTROL_RPC, and passes the lines of the answer on as they are. They come
 * in portions, each the answer to a call, so that a long one needs no more memory than a
 * short one, and progress is seen on its way:
 *
 *     begin: request   ->  session, lines so far, whether there are more
 *     more: session    ->  lines since
 *     end: session     ->  nobody waits any more
 *
 * What can fail: a node that is not heard of for a while has its sessions ended, which
 * the request at work sees as a reader who has gone. If the owner is lost the one who
 * asked is told that the outcome is not known.
 *
 * A session ends when its last line was sent, or nobody came for it. It is freed when its
 * task has ended, too.
 */
#include <stdio.h>

#include "cow/host.h"
#include "replication/membership.h"
#include "tools/control_internal.h"
#include "tools/control_wire.h"

#define SESSIONS_MAX  32U
#define PORTION_BYTES (128 * KIB) /* of lines in one answer */
#define POLL_MS       500U        /* an answer comes after this, with or without lines */
#define IDLE_MS       15000U      /* between two calls for a session */
#define CALL_MS       10000U      /* of a call: it is answered after POLL_MS */
#define ANSWER_HEAD   9U          /* session, and whether there is more */

static_assert(PORTION_BYTES + ANSWER_HEAD <= RPC_HEAD_MAX, "a portion is one answer");
static_assert(CONTROL_RPC_HEAD_MAX >= CONTROL_LINE_BYTES + 16, "so is a request");

enum kind { KIND_BEGIN = 1, KIND_MORE, KIND_END };

struct session {
    struct control_nodes *nodes;
    struct control_sink sink;
    uint64_t id, node; /* of whoever asked */
    struct writer out;
    json_t *request;
    const struct control_op *op;
    struct task_call task;
    bool is_running;
    struct rpc_request *poll; /* waits for lines; NULL: none */
    struct timer timer;       /* with poll: it is answered; without: it is given up */
    TAILQ_ENTRY(session) link;
};

struct control_nodes {
    const struct control_services *services;
    TAILQ_HEAD(, session) sessions;
    uint32_t count, running;
    bool is_stopping;
    struct waitlist quiet; /* nothing is running */
};

/* --- the owner's side --- */

static void session_free(struct session *s)
{
    assert(!s->is_running && s->poll == NULL);
    timer_stop(s->nodes->services->loop, &s->timer);
    TAILQ_REMOVE(&s->nodes->sessions, s, link);
    s->nodes->count--;
    writer_done(&s->out);
    free(s);
}

static void session_give_up(struct session *s)
{
    s->sink.is_dead = true;
    s->out.len = 0;
    waitlist_wake_all(&s->sink.drained);
    if (!s->is_running)
        session_free(s);
}

/* What there is, to whoever polls. The session may be gone afterwards. */
static void session_answer(struct session *s)
{
    struct writer head = {0};
    size_t len = min_u64(s->out.len, PORTION_BYTES);
    bool has_more = s->is_running || len < s->out.len;
    struct rpc_request *poll = take(s->poll);
    write_u64(&head, s->id);
    write_u8(&head, has_more);
    write_bytes(&head, s->out.bytes, len);
    if (head.bad || s->out.bad)
        rpc_answer(poll, -ENOMEM, NULL, 0, NULL, 0);
    else
        rpc_answer(poll, 0, head.bytes, head.len, NULL, 0);
    bool is_lost = head.bad || s->out.bad;
    writer_done(&head);
    if (is_lost) {
        session_give_up(s);
        return;
    }
    s->out.len -= len;
    memmove(s->out.bytes, s->out.bytes + len, s->out.len);
    waitlist_wake_all(&s->sink.drained);
    if (has_more)
        timer_start(s->nodes->services->loop, &s->timer, IDLE_MS * NS_PER_MS);
    else
        session_free(s);
}

static void session_fired(struct timer *timer)
{
    struct session *s = container_of(timer, struct session, timer);
    if (s->poll != NULL)
        session_answer(s);
    else
        session_give_up(s);
}

/* Somebody waits for lines: now, if there are any, or soon. */
static void session_poll(struct session *s, struct rpc_request *request)
{
    s->poll = request;
    if (s->out.len > 0 || !s->is_running)
        session_answer(s);
    else
        timer_start(s->nodes->services->loop, &s->timer, POLL_MS * NS_PER_MS);
}

static void sink_emit(struct control_sink *sink, const char *lines, size_t len)
{
    struct session *s = container_of(sink, struct session, sink);
    if (lines != NULL)
        write_bytes(&s->out, lines, len);
    else
        s->out.bad = true;
    if (s->poll != NULL && (s->out.bad || s->out.len >= PORTION_BYTES))
        session_answer(s);
}

static size_t sink_pending(const struct control_sink *sink)
{
    return container_of(sink, struct session, sink)->out.len;
}

static async void session_main(struct task_call *task)
{
    struct session *s = container_of(task, struct session, task);
    struct control_nodes *nodes = s->nodes;
    struct control_call call = {
        .services = nodes->services,
        .sink = &s->sink,
        .request = take(s->request),
        .is_from_node = true,
    };
    control_call_run(&call, s->op);
    s->is_running = false;
    if (s->sink.is_dead)
        session_free(s);
    else if (s->poll != NULL)
        session_answer(s);
    if (--nodes->running == 0)
        waitlist_wake_all(&nodes->quiet);
}

static struct session *session_create(struct control_nodes *nodes,
                                      const struct rpc_request *request)
{
    struct session *s = nodes->count < SESSIONS_MAX ? calloc(1, sizeof *s) : NULL;
    if (s == NULL)
        return NULL;
    s->nodes = nodes;
    s->node = request->peer.node;
    do
        s->id = loop_random_u64(nodes->services->loop);
    while (s->id == 0);
    s->sink.emit = sink_emit;
    s->sink.pending = sink_pending;
    waitlist_init(&s->sink.drained);
    s->timer.fire = session_fired;
    TAILQ_INSERT_TAIL(&nodes->sessions, s, link);
    nodes->count++;
    return s;
}

static void begin(struct control_nodes *nodes, struct rpc_request *request,
                  const struct reader *r)
{
    cleanup(json_decrefp)
        json_t *json = control_parse((const char *)r->at, r->left);
    const char *name = json_string_value(json_object_get(json, "op"));
    const struct control_op *op = name != NULL ? control_op_find(name) : NULL;
    struct session *s = NULL;
    int code = 0;
    if (nodes->is_stopping)
        code = -ESHUTDOWN;
    else if (op == NULL || op->key == NULL)
        code = -EOPNOTSUPP;
    else if ((s = session_create(nodes, request)) == NULL)
        code = -PLX_ELIMIT;
    if (code < 0) {
        rpc_answer(request, code, NULL, 0, NULL, 0);
        return;
    }
    json_object_del(json, "op");
    s->request = take(json);
    s->op = op;
    s->is_running = true;
    nodes->running++;
    s->task = (struct task_call){.main = session_main, .name = op->name};
    task_start(nodes->services->loop, &s->task);
    session_poll(s, request);
}

static struct session *session_find(struct control_nodes *nodes, uint64_t id,
                                    uint64_t node)
{
    struct session *s;
    TAILQ_FOREACH (s, &nodes->sessions, link) {
        if (s->id == id && s->node == node && !s->sink.is_dead)
            return s;
    }
    return NULL;
}

void control_nodes_serve(struct control_nodes *nodes, struct rpc_request *request)
{
    struct reader r = reader_of(request->head, request->head_len);
    uint8_t kind = read_u8(&r);
    uint64_t id = read_u64(&r);
    struct session *s = session_find(nodes, id, request->peer.node);
    if (!r.bad && kind == KIND_BEGIN) {
        begin(nodes, request, &r);
    } else if (r.bad || r.left != 0 || kind == 0 || kind > KIND_END) {
        rpc_answer(request, -PLX_EFORMAT, NULL, 0, NULL, 0);
    } else if (s == NULL || s->poll != NULL) {
        rpc_answer(request, -PLX_EMISSING, NULL, 0, NULL, 0);
    } else if (kind == KIND_MORE) {
        session_poll(s, request);
    } else {
        session_give_up(s);
        rpc_answer(request, 0, NULL, 0, NULL, 0);
    }
}

struct control_nodes *control_nodes_create(const struct control_services *services)
{
    struct control_nodes *nodes = calloc(1, sizeof *nodes);
    if (nodes == NULL)
        return NULL;
    nodes->services = services;
    TAILQ_INIT(&nodes->sessions);
    waitlist_init(&nodes->quiet);
    return nodes;
}

async void control_nodes_stop(struct control_nodes *nodes)
{
    nodes->is_stopping = true;
    while (nodes->running > 0)
        waitlist_wait(&nodes->quiet);
}

void control_nodes_destroy(struct control_nodes *nodes)
{
    struct session *s, *next;
    if (nodes == NULL)
        return;
    assert(nodes->running == 0);
    TAILQ_FOREACH_SAFE (s, &nodes->sessions, link, next)
        session_give_up(s);
    free(nodes);
}

/* --- the side that was asked --- */

/* The node that should carry it out; NULL: this one. */
static const struct cluster_node *find_owner(struct control_call *call, const char *name)
{
    struct membership *m = call->services->membership;
    const struct cluster_state *state = cluster_state(membership_cluster(m));
    const struct cluster_disk *disk = cluster_disk_by_name(state, name);
    if (disk == NULL || disk->owner == 0 || disk->owner == membership_node(m))
        return NULL;
    const struct cluster_node *owner = cluster_node_by_id(state, disk->owner);
    /* From one that is down it is taken. */
    return owner != NULL && !cluster_node_is_down(owner) ? owner : NULL;
}

/* The same of an operation for a node that is named. One that is down is an error. */
static int find_named(struct control_call *call, const char *name,
                      const struct cluster_node **ret, struct error *err)
{
    const struct cluster_node *node = control_find_node(call, name, err);
    if (node == NULL)
        return -PLX_EMISSING;
    if (node->id == host_node(call->services->host))
        return 0;
    if (cluster_node_is_down(node))
        return err_set(err, -EHOSTUNREACH, "node %llu at %s is down",
                       (unsigned long long)node->id, node->address);
    *ret = node;
    return 0;
}

static int find_target(struct control_call *call, const struct control_op *op,
                       const struct cluster_node **ret, struct error *err)
{
    const char *name = op->key != NULL
                           ? json_string_value(json_object_get(call->request, op->key))
                           : NULL;
    if (name == NULL)
        return 0;
    if (op->scope == CONTROL_THERE)
        return find_named(call, name, ret, err);
    if (call->services->membership != NULL)
        *ret = find_owner(call, name);
    return 0;
}

struct handing {
    struct rpc *rpc;
    uint64_t node, session;
    const char *why; /* it is the one */
    char address[DISK_NAME_MAX + 1];
    bool has_more, has_begun;
};

static void write_head(struct writer *w, enum kind kind, uint64_t session)
{
    write_u8(w, (uint8_t)kind);
    write_u64(w, session);
}

static async int hand_call(struct handing *h, const struct writer *head,
                           struct writer *answer, struct error *err)
{
    struct rpc_call call = {.node = h->node,
                            .op = CONTROL_RPC,
                            .head = head->bytes,
                            .head_len = (uint32_t)head->len,
                            .timeout_ns = CALL_MS * NS_PER_MS};
    if (head->bad)
        return err_set(err, -ENOMEM, "%s", err_text(-ENOMEM));
    int r = rpc_wait(h->rpc, &call, answer, NULL);
    if (r == 0)
        return 0;
    return err_set(err, r, "node %llu at %s %s, and %s: %s%s",
                   (unsigned long long)h->node, h->address, h->why,
                   call.was_sent ? "failed" : "does not answer", err_text(r),
                   h->has_begun || call.was_sent ? "; whether it was done is not known"
                                                 : "");
}

/* One portion, passed on. */
static int pass_on(struct handing *h, struct control_sink *sink,
                   const struct writer *answer, struct error *err)
{
    struct reader r = reader_of(answer->bytes, answer->len);
    uint64_t session = read_u64(&r);
    uint8_t has_more = read_u8(&r);
    if (r.bad || has_more > 1 || (h->session != 0 && session != h->session))
        return err_set(err, -EPROTO, "node %llu: an answer that is none",
                       (unsigned long long)h->node);
    h->session = session;
    h->has_more = has_more != 0;
    h->has_begun = true;
    if (r.left > 0 && !sink->is_dead)
        sink->emit(sink, (const char *)r.at, r.left);
    return 0;
}

static async int hand_all(struct handing *h, struct control_sink *sink, const char *text,
                          struct error *err)
{
    struct writer head = {0}, answer = {0};
    write_head(&head, KIND_BEGIN, 0);
    write_bytes(&head, text, strlen(text));
    int r = hand_call(h, &head, &answer, err);
    if (r == 0)
        r = pass_on(h, sink, &answer, err);
    while (r == 0 && h->has_more) {
        while (!sink->is_dead && sink->pending(sink) > CONTROL_OUT_BYTES)
            waitlist_wait(&sink->drained);
        head.len = 0;
        write_head(&head, sink->is_dead ? KIND_END : KIND_MORE, h->session);
        r = hand_call(h, &head, &answer, err);
        if (sink->is_dead)
            break;
        if (r == 0)
            r = pass_on(h, sink, &answer, err);
    }
    writer_done(&head);
    writer_done(&answer);
    return r;
}

async int control_hand_on(struct control_call *call, const struct control_op *op,
                          bool *ret_answered, struct error *err)
{
    const struct cluster_node *target = NULL;
    int r = find_target(call, op, &target, err);
    if (r < 0 || target == NULL)
        return r;
    if (call->is_from_node)
        return err_set(err, -PLX_EOWNED, "the disk is node %llu's now: try again",
                       (unsigned long long)target->id);
    struct handing h = {
        .rpc = membership_rpc(call->services->membership),
        .node = target->id,
        .why = op->scope == CONTROL_THERE ? "is to do it" : "owns this disk",
    };
    snprintf(h.address, sizeof h.address, "%s", target->address);
    json_object_set_new(call->request, "op", json_string(op->name));
    cleanup(free_ptr) char *text = json_dumps(call->request, JSON_COMPACT);
    json_object_del(call->request, "op");
    if (text == NULL)
        return -ENOMEM;
    r = hand_all(&h, call->sink, text, err);
    *ret_answered = r == 0;
    return r;
}
