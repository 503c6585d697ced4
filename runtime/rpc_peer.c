/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls, the caller's side: peers, the connections to them, and what waits for those.
 *
 * Happy path: the first call to a node makes its peer connect; when the connection is
 * open, `flush` gives it what waits, as far as there are slots. An answer names its slot
 * and ends the call there.
 *
 * What can fail: an attempt that fails, or a connection that breaks, leads to a pause,
 * longer each time, and another attempt, until the address is forgotten. Calls that were
 * sent fail then (maybe carried out), queued ones stay. An answer that fits no slot is
 * for a call that is no more, or was never: it is dropped.
 *
 * A call with an address of its own has a peer of its own ("single"), which makes one
 * attempt and ends with the call.
 *
 * P1  A slot is used from the sending until its answer, whatever becomes of the call.
 * P2  Ids of calls never repeat within a peer, so an old answer finds nothing.
 */
#include <stdio.h>

#include "runtime/log.h"
#include "runtime/rpc_internal.h"
#include "runtime/trace.h"

/* A connection that held for so long was sound; the next pause is short again. */
#define SOUND_NS (RPC_RETRY_MAX_MS * NS_PER_MS)

static int peer_compare(const struct rpc_peer *a, const struct rpc_peer *b)
{
    return (a->node > b->node) - (a->node < b->node);
}

RB_PROTOTYPE(rpc_peer_tree, rpc_peer, node_entry, peer_compare)
RB_GENERATE(rpc_peer_tree, rpc_peer, node_entry, peer_compare)

static void peer_connect(struct rpc_peer *peer);
static void peer_timer(struct timer *timer);
static void peer_flush(struct rpc_peer *peer);

static struct call_state *state_of(struct rpc_call *call)
{
    return (void *)call->priv;
}

static struct rpc_call *call_of(struct call_state *state)
{
    return container_of((void *)state, struct rpc_call, priv);
}

/* --- the end of a call --- */

/* Takes it out of wherever it is. */
static struct rpc_message *call_leave(struct call_state *state)
{
    struct rpc_peer *peer = take(state->peer);
    timer_stop(state->rpc->loop, &state->timer);
    if (state->phase == CALL_ENDING) {
        TAILQ_REMOVE(&state->rpc->ending, state, link);
    } else if (state->phase == CALL_QUEUED) {
        TAILQ_REMOVE(&peer->queued, state, link);
        peer->queued_count--;
        peer->queued_bytes -= state->message->head_len;
    } else {
        assert(peer->slots[state->slot].call == state); /* R1 */
        peer->slots[state->slot].call = NULL;           /* P1 */
    }
    if (peer != NULL)
        rpc_peer_check(peer);
    return take(state->message);
}

/* Done: the call is its owner's again. */
static void call_finish(struct call_state *state, int result)
{
    struct rpc_call *call = call_of(state);
    struct rpc_message *message = call_leave(state);
    metric_add(state->rpc->failures, call->answer == NULL);
    trace(state->rpc->loop, "rpc.done", call->op, call->node,
          (uint64_t) - (int64_t)result);
    call->result = result;
    call->done(call);
    rpc_message_free(message); /* R3 */
}

/* Its end is told from the loop, as that of any call by itself: whoever is told may then
 * do what he likes. */
static void call_end_soon(struct call_state *state, int result)
{
    struct rpc *rpc = state->rpc;
    struct rpc_message *message = call_leave(state);
    state->phase = CALL_ENDING;
    call_of(state)->result = result;
    TAILQ_INSERT_TAIL(&rpc->ending, state, link);
    timer_start(rpc->loop, &state->timer, 0);
    rpc_message_free(message);
}

static void call_timer(struct timer *timer)
{
    struct call_state *state = container_of(timer, struct call_state, timer);
    int result = -ETIMEDOUT;
    if (state->phase == CALL_ENDING)
        result = call_of(state)->result;
    else if (state->phase == CALL_QUEUED && state->peer->last_code == -PLX_EDENIED)
        result = -PLX_EDENIED; /* it could not come in time, and this is why */
    call_finish(state, result);
}

void rpc_cancel(struct rpc *rpc, struct rpc_call *call)
{
    (void)rpc;
    call_finish(state_of(call), -ECANCELED);
}

/* --- peers --- */

static void peer_free(struct rpc_peer *peer)
{
    struct rpc *rpc = peer->rpc;
    struct rpc_message_list posts = STAILQ_HEAD_INITIALIZER(posts);
    struct rpc_message *m;
    assert(TAILQ_EMPTY(&peer->queued) && peer->link.conn == NULL);
    timer_stop(rpc->loop, &peer->timer);
    loop_post_cancel(rpc->loop, &peer->flush);
    STAILQ_CONCAT(&posts, &peer->posts);
    free(peer);
    while ((m = STAILQ_FIRST(&posts)) != NULL) {
        STAILQ_REMOVE_HEAD(&posts, link);
        rpc_message_free(m);
    }
}

/* The connection is closed, or about to be: nothing of it is used any more. */
static void peer_unlink(struct rpc_peer *peer)
{
    if (peer->phase == PEER_OPEN)
        rpc_link_stop(&peer->link);
    peer->link.conn = NULL;
    peer->phase = PEER_IDLE;
    timer_stop(peer->rpc->loop, &peer->timer);
}

static void reap(struct work *work)
{
    struct rpc *rpc = container_of(work, struct rpc, reap);
    struct rpc_peer_list dead = TAILQ_HEAD_INITIALIZER(dead);
    struct rpc_peer *peer;
    TAILQ_CONCAT(&dead, &rpc->dead, list_entry);
    while ((peer = TAILQ_FIRST(&dead)) != NULL) {
        TAILQ_REMOVE(&dead, peer, list_entry);
        if (peer->link.conn != NULL)
            net_conn_close(peer->link.conn);
        peer_unlink(peer);
        peer_free(peer);
    }
}

static bool peer_is_needed(const struct rpc_peer *peer)
{
    if (!peer->is_single && (peer->node == 0 || peer->address[0] != '\0' ||
                             peer->incoming_count > 0 || peer->requests > 0))
        return true;
    for (uint32_t i = 0; i < ARRAY_LEN(peer->slots) && peer->slots_used > 0; i++) {
        if (peer->slots[i].call != NULL)
            return true;
    }
    return !TAILQ_EMPTY(&peer->queued);
}

void rpc_peer_check(struct rpc_peer *peer)
{
    struct rpc *rpc = peer->rpc;
    if (peer->is_dead || rpc->is_ending || peer_is_needed(peer))
        return;
    if (peer->is_single)
        TAILQ_REMOVE(&rpc->singles, peer, list_entry);
    else
        RB_REMOVE(rpc_peer_tree, &rpc->peers, peer);
    peer->is_dead = true;
    TAILQ_INSERT_TAIL(&rpc->dead, peer, list_entry);
    loop_post(rpc->loop, &rpc->reap); /* R3 */
}

static void flush_work(struct work *work)
{
    peer_flush(container_of(work, struct rpc_peer, flush));
}

static struct rpc_peer *peer_create(struct rpc *rpc, uint64_t node)
{
    struct rpc_peer *peer = calloc(1, sizeof *peer);
    if (peer == NULL)
        return NULL;
    peer->rpc = rpc;
    peer->node = node;
    peer->link = (struct rpc_link){.rpc = rpc, .peer = peer};
    peer->timer.fire = peer_timer;
    peer->flush.run = flush_work;
    peer->retry_ms = RPC_RETRY_MIN_MS;
    TAILQ_INIT(&peer->queued);
    STAILQ_INIT(&peer->posts);
    return peer;
}

struct rpc_peer *rpc_peer_find(const struct rpc *rpc, uint64_t node)
{
    struct rpc_peer *peer = RB_ROOT(&rpc->peers);
    while (peer != NULL && peer->node != node)
        peer = node < peer->node ? RB_LEFT(peer, node_entry)
                                 : RB_RIGHT(peer, node_entry);
    return peer;
}

struct rpc_peer *rpc_peer_get(struct rpc *rpc, uint64_t node)
{
    struct rpc_peer *peer = rpc_peer_find(rpc, node);
    if (peer == NULL) {
        peer = peer_create(rpc, node);
        if (peer != NULL)
            RB_INSERT(rpc_peer_tree, &rpc->peers, peer);
    }
    return peer;
}

void rpc_peers_init(struct rpc *rpc)
{
    RB_INIT(&rpc->peers);
    TAILQ_INIT(&rpc->singles);
    TAILQ_INIT(&rpc->dead);
    TAILQ_INIT(&rpc->ending);
    rpc->reap.run = reap;
}

/* --- connections --- */

static void peer_pause(struct rpc_peer *peer)
{
    uint64_t jitter_ms = loop_random_u64(peer->rpc->loop) % (peer->retry_ms / 2 + 1);
    peer->phase = PEER_PAUSING;
    timer_start(peer->rpc->loop, &peer->timer, (peer->retry_ms + jitter_ms) * NS_PER_MS);
    peer->retry_ms = min_u64(2 * peer->retry_ms, RPC_RETRY_MAX_MS);
}

/* What was sent on it is lost, and what waited to be posted. */
static void peer_drop_sent(struct rpc_peer *peer)
{
    struct rpc_message_list posts = STAILQ_HEAD_INITIALIZER(posts);
    struct rpc_message *m;
    STAILQ_CONCAT(&posts, &peer->posts);
    peer->posts_bytes = 0;
    peer->sent_bytes = peer->mark = peer->posts_before = peer->posts_after = 0;
    for (uint32_t i = 0; i < ARRAY_LEN(peer->slots); i++) {
        if (peer->slots[i].call != NULL)
            call_end_soon(peer->slots[i].call, -ECONNRESET);
        peer->slots[i] = (struct rpc_slot){0};
    }
    peer->slots_used = 0;
    while ((m = STAILQ_FIRST(&posts)) != NULL) {
        STAILQ_REMOVE_HEAD(&posts, link);
        metric_add(peer->rpc->dropped, 1);
        rpc_message_free(m);
    }
}

static void peer_fail_queued(struct rpc_peer *peer, int code)
{
    struct call_state *state;
    while ((state = TAILQ_FIRST(&peer->queued)) != NULL)
        call_end_soon(state, code);
}

/* The connection has ended; conn is gone. */
static void peer_ended(struct rpc_peer *peer, int code, const char *why)
{
    struct rpc *rpc = peer->rpc;
    bool was_open = peer->phase == PEER_OPEN;
    peer_unlink(peer);
    if (was_open || code != peer->last_code)
        log_info(rpc->loop, "node %llu: %s: %s", (unsigned long long)peer->node,
                 was_open ? "connection lost" : "cannot connect", why);
    peer->last_code = code;
    trace(rpc->loop, "rpc.ended", peer->node, was_open, (uint64_t) - (int64_t)code);
    if (was_open && loop_now_ns(rpc->loop) - peer->opened_ns >= SOUND_NS)
        peer->retry_ms = RPC_RETRY_MIN_MS;
    if (!peer->is_single)
        peer_pause(peer);
    peer_drop_sent(peer);
    if (peer->is_single)
        peer_fail_queued(peer, code);
    if (was_open && !peer->is_single && rpc->options.peer_changed != NULL)
        rpc->options.peer_changed(rpc->options.arg, peer->node, false);
}

void rpc_peer_lost(struct rpc_peer *peer, int code, const char *why)
{
    char text[NET_ADDRESS_MAX + 100];
    snprintf(text, sizeof text, "%s: %s", peer->address, why);
    net_conn_close(peer->link.conn);
    peer_ended(peer, code, text);
}

static void peer_opened(void *arg, struct net_conn *conn)
{
    struct rpc_peer *peer = arg;
    struct rpc *rpc = peer->rpc;
    (void)conn;
    timer_stop(rpc->loop, &peer->timer);
    peer->phase = PEER_OPEN;
    peer->opened_ns = peer->heard_ns = loop_now_ns(rpc->loop);
    peer->last_code = 0;
    trace(rpc->loop, "rpc.opened", peer->node, 0, 0);
    rpc_link_start(&peer->link);
    loop_post(rpc->loop, &peer->flush);
    if (!peer->is_single && rpc->options.peer_changed != NULL)
        rpc->options.peer_changed(rpc->options.arg, peer->node, true);
}

static void peer_closed(void *arg, struct net_conn *conn, int code, const char *why)
{
    (void)conn;
    peer_ended(arg, code, why);
}

/* An answer to a call that waits for it ends that call; any other is dropped. */
static void answer_received(struct rpc_peer *peer, const struct rpc_head *head,
                            struct slice payload)
{
    uint64_t index = head->call % ARRAY_LEN(peer->slots);
    struct rpc_slot *slot = &peer->slots[index];
    struct call_state *state = slot->call;
    bool fits = slot->id == head->call &&
                (state == NULL || call_of(state)->op == head->op);
    if (fits) {
        slot->id = 0; /* P1 */
        peer->slots_used--;
        if (!TAILQ_EMPTY(&peer->queued))
            loop_post(peer->rpc->loop, &peer->flush);
    }
    if (!fits || state == NULL) {
        buffer_put(payload.buffer);
        return;
    }
    struct rpc_call *call = call_of(state);
    call->answer = head->rest;
    call->answer_len = head->rest_len;
    call->payload = payload;
    call_finish(state, head->code); /* R2 */
}

static void peer_received(void *arg, struct net_conn *conn, const void *bytes, size_t len,
                          struct slice payload)
{
    struct rpc_peer *peer = arg;
    struct rpc_head head;
    uint64_t payload_len = payload.buffer != NULL ? payload.len : 0;
    (void)conn;
    int rc = rpc_head_decode(bytes, len, &head);
    if (rc == 0 && rpc_link_heard(&peer->link, &head, len + payload_len)) {
        buffer_put(payload.buffer);
    } else if (rc != 0 || head.kind != RPC_KIND_ANSWER) {
        /* Requests come on connections that their callers made. */
        rpc_peer_lost(peer, -EPROTO, "it sent what is no answer");
        buffer_put(payload.buffer);
    } else {
        answer_received(peer, &head, payload);
    }
}

static const struct net_handlers peer_handlers = {
    .opened = peer_opened,
    .received = peer_received,
    .closed = peer_closed,
};

static void peer_connect(struct rpc_peer *peer)
{
    struct rpc *rpc = peer->rpc;
    if (peer->phase != PEER_IDLE || peer->address[0] == '\0' || peer->is_dead)
        return;
    peer->link.conn = net_connect(rpc->net, peer->address, peer->node, &peer_handlers,
                                  peer);
    if (peer->link.conn == NULL) {
        if (peer->is_single)
            peer_fail_queued(peer, -ENOMEM);
        else
            peer_pause(peer);
        return;
    }
    peer->phase = PEER_CONNECTING;
    timer_start(rpc->loop, &peer->timer, RPC_CONNECT_MS * NS_PER_MS);
}

static void peer_timer(struct timer *timer)
{
    struct rpc_peer *peer = container_of(timer, struct rpc_peer, timer);
    if (peer->phase == PEER_CONNECTING) {
        rpc_peer_lost(peer, -ETIMEDOUT, "no answer");
    } else {
        assert(peer->phase == PEER_PAUSING);
        peer->phase = PEER_IDLE;
        peer_connect(peer);
    }
}

void rpc_peer_hurry(struct rpc_peer *peer)
{
    if (peer->phase != PEER_PAUSING)
        return;
    peer->retry_ms = RPC_RETRY_MIN_MS;
    peer_pause(peer);
}

/* --- sending --- */

/* Bytes of posts that the connection may still have. */
static uint64_t posts_unsent(struct rpc_peer *peer)
{
    uint64_t queued = net_conn_queued_bytes(peer->link.conn);
    uint64_t left = peer->sent_bytes - min_u64(queued, peer->sent_bytes);
    if (queued == 0) {
        peer->posts_before = peer->posts_after = 0;
    } else if (left >= peer->mark) {
        peer->posts_before = peer->posts_after;
        peer->posts_after = 0;
        peer->mark = peer->sent_bytes;
    }
    return peer->posts_before + peer->posts_after;
}

static void post_send(struct rpc_peer *peer, struct rpc_message *m)
{
    if (posts_unsent(peer) + m->bytes > RPC_POST_QUEUED_MAX) {
        metric_add(peer->rpc->dropped, 1);
    } else {
        peer->sent_bytes += m->bytes;
        peer->posts_after += m->bytes;
        if (rpc_message_send(peer->rpc, peer->link.conn, m) != 0)
            metric_add(peer->rpc->dropped, 1);
    }
    rpc_message_free(m);
}

static uint32_t slot_take(struct rpc_peer *peer, struct call_state *state)
{
    struct rpc_slot *slot;
    assert(peer->slots_used < ARRAY_LEN(peer->slots));
    do {
        peer->sequence++; /* P2 */
        slot = &peer->slots[peer->sequence % ARRAY_LEN(peer->slots)];
    } while (slot->id != 0);
    peer->slots_used++;
    *slot = (struct rpc_slot){.id = peer->sequence, .call = state};
    return (uint32_t)(slot - peer->slots);
}

/* It was not sent after all. */
static void call_unsend(struct rpc_peer *peer, struct call_state *state,
                        struct rpc_message *m)
{
    peer->slots[state->slot] = (struct rpc_slot){0};
    peer->slots_used--;
    state->message = m;
    state->phase = CALL_QUEUED;
    call_of(state)->was_sent = false;
    TAILQ_INSERT_HEAD(&peer->queued, state, link);
    peer->queued_count++;
    peer->queued_bytes += m->head_len;
}

/* The call is in its slot before anything is sent, since sending may run anybody's code
 * (R3). False: the connection is about to end. */
static bool call_send(struct rpc_peer *peer, struct call_state *state)
{
    struct rpc_message *m = state->message;
    uint32_t index = slot_take(peer, state);
    TAILQ_REMOVE(&peer->queued, state, link);
    peer->queued_count--;
    peer->queued_bytes -= m->head_len;
    state->message = NULL;
    state->slot = index;
    state->phase = CALL_SENT;
    call_of(state)->was_sent = true;
    rpc_message_set_call(m, peer->slots[index].id);
    peer->sent_bytes += m->bytes;
    int rc = rpc_message_send(peer->rpc, peer->link.conn, m);
    if (rc == 0) {
        rpc_message_free(m);
        return true;
    }
    call_unsend(peer, state, m);
    if (rc == -ENOMEM)
        call_end_soon(state, rc);
    return rc == -ENOMEM;
}

static void peer_flush(struct rpc_peer *peer)
{
    struct rpc_message *m;
    struct call_state *state;
    while (peer->phase == PEER_OPEN && (m = STAILQ_FIRST(&peer->posts)) != NULL) {
        STAILQ_REMOVE_HEAD(&peer->posts, link);
        peer->posts_bytes -= m->bytes;
        post_send(peer, m);
    }
    while (peer->phase == PEER_OPEN && peer->slots_used < ARRAY_LEN(peer->slots) &&
           (state = TAILQ_FIRST(&peer->queued)) != NULL) {
        if (!call_send(peer, state))
            break;
    }
}

/* --- calls --- */

static struct rpc_peer *peer_of_call(struct rpc *rpc, const struct rpc_call *call)
{
    if (call->node != 0)
        return rpc_peer_get(rpc, call->node);
    struct rpc_peer *peer = peer_create(rpc, 0);
    if (peer == NULL)
        return NULL;
    assert(call->address != NULL && strlen(call->address) < sizeof peer->address);
    peer->is_single = true;
    snprintf(peer->address, sizeof peer->address, "%s", call->address);
    TAILQ_INSERT_TAIL(&rpc->singles, peer, list_entry);
    return peer;
}

/* 0, and it is in the peer's queue; or why not. */
static int call_queue(struct rpc_peer *peer, struct call_state *state)
{
    const struct rpc_call *call = call_of(state);
    struct rpc_head head = {
        .kind = RPC_KIND_REQUEST,
        .op = call->op,
        .call = 1, /* until it is sent */
        .rest = call->head,
        .rest_len = call->head_len,
    };
    if (peer->queued_count >= RPC_QUEUED_MAX ||
        peer->queued_bytes + call->head_len > RPC_QUEUED_BYTES)
        return -PLX_ELIMIT;
    state->message = rpc_message_create(&head, call->slices, call->slice_count);
    if (state->message == NULL)
        return -ENOMEM;
    state->peer = peer;
    state->phase = CALL_QUEUED;
    TAILQ_INSERT_TAIL(&peer->queued, state, link);
    peer->queued_count++;
    peer->queued_bytes += state->message->head_len;
    timer_start(state->rpc->loop, &state->timer, call->timeout_ns);
    return 0;
}

void rpc_start(struct rpc *rpc, struct rpc_call *call)
{
    struct call_state *state = state_of(call);
    assert(!rpc->is_ending && call->op != RPC_OP_PING);
    *state = (struct call_state){.timer.fire = call_timer, .rpc = rpc};
    call->result = 0;
    call->was_sent = false;
    call->answer = NULL;
    call->answer_len = 0;
    call->payload = (struct slice){0};
    metric_add(rpc->calls, 1);
    struct rpc_peer *peer = peer_of_call(rpc, call);
    int rc = peer != NULL ? call_queue(peer, state) : -ENOMEM;
    if (rc != 0) {
        state->phase = CALL_ENDING;
        call->result = rc;
        TAILQ_INSERT_TAIL(&rpc->ending, state, link);
        timer_start(rpc->loop, &state->timer, 0);
        if (peer != NULL)
            rpc_peer_check(peer);
        return;
    }
    if (peer->phase == PEER_OPEN)
        peer_flush(peer);
    else
        peer_connect(peer);
}

struct waiting_call {
    struct event is_done;
    struct writer *ret;
    struct slice *ret_payload;
    int result;
};

static void waiting_done(struct rpc_call *call)
{
    struct waiting_call *waiting = state_of(call)->waiting;
    waiting->result = call->result;
    if (waiting->ret != NULL && call->answer != NULL) {
        waiting->ret->len = 0;
        write_bytes(waiting->ret, call->answer, call->answer_len);
        if (waiting->ret->bad)
            waiting->result = -ENOMEM;
    }
    event_set(&waiting->is_done);
    if (waiting->ret_payload != NULL)
        *waiting->ret_payload = call->payload;
    else
        buffer_put(call->payload.buffer);
}

async int rpc_wait(struct rpc *rpc, struct rpc_call *call, struct writer *ret,
                   struct slice *ret_payload)
{
    struct waiting_call waiting = {.ret = ret, .ret_payload = ret_payload};
    event_init(&waiting.is_done);
    call->done = waiting_done;
    rpc_start(rpc, call);
    state_of(call)->waiting = &waiting;
    event_wait(&waiting.is_done);
    return waiting.result;
}

void rpc_post(struct rpc *rpc, uint64_t node, uint16_t op, const void *bytes,
              uint32_t len, const struct slice *slices, uint32_t slice_count)
{
    struct rpc_head head = {
        .kind = RPC_KIND_ONE_WAY,
        .op = op,
        .rest = bytes,
        .rest_len = len,
    };
    assert(!rpc->is_ending && op != RPC_OP_PING && node != 0);
    struct rpc_peer *peer = rpc_peer_find(rpc, node);
    struct rpc_message *m = NULL;
    if (peer != NULL && peer->address[0] != '\0')
        m = rpc_message_create(&head, slices, slice_count);
    if (m == NULL) {
        metric_add(rpc->dropped, 1);
        return;
    }
    if (peer->phase == PEER_OPEN && STAILQ_EMPTY(&peer->posts)) {
        post_send(peer, m);
        return;
    }
    if (peer->posts_bytes + m->bytes > RPC_POST_QUEUED_MAX) {
        metric_add(rpc->dropped, 1);
        rpc_message_free(m);
        return;
    }
    STAILQ_INSERT_TAIL(&peer->posts, m, link);
    peer->posts_bytes += m->bytes;
    peer_connect(peer);
}

/* --- addresses --- */

int rpc_set_address(struct rpc *rpc, uint64_t node, const char *address)
{
    struct rpc_peer *peer = rpc_peer_find(rpc, node);
    assert(node != 0);
    if (address != NULL && (address[0] == '\0' || strlen(address) >= NET_ADDRESS_MAX))
        return -EINVAL;
    if (peer == NULL && address == NULL)
        return 0;
    if (peer == NULL && (peer = rpc_peer_get(rpc, node)) == NULL)
        return -ENOMEM;
    if (strcmp(peer->address, address != NULL ? address : "") == 0)
        return 0;
    bool was_wanted = peer->phase != PEER_IDLE || !TAILQ_EMPTY(&peer->queued);
    if (peer->link.conn != NULL)
        net_conn_close(peer->link.conn);
    peer_unlink(peer);
    peer->retry_ms = RPC_RETRY_MIN_MS;
    peer->last_code = 0;
    snprintf(peer->address, sizeof peer->address, "%s", address != NULL ? address : "");
    peer_drop_sent(peer);
    if (address == NULL)
        peer_fail_queued(peer, -EHOSTUNREACH);
    else if (was_wanted)
        peer_connect(peer);
    rpc_peer_check(peer);
    return 0;
}

bool rpc_is_connected(const struct rpc *rpc, uint64_t node)
{
    const struct rpc_peer *peer = rpc_peer_find(rpc, node);
    return peer != NULL && peer->phase == PEER_OPEN;
}

uint64_t rpc_opened_ns(const struct rpc *rpc, uint64_t node)
{
    const struct rpc_peer *peer = rpc_peer_find(rpc, node);
    return peer != NULL ? peer->opened_ns : 0;
}

uint64_t rpc_heard_ns(const struct rpc *rpc, uint64_t node)
{
    const struct rpc_peer *peer = rpc_peer_find(rpc, node);
    return peer != NULL ? peer->heard_ns : 0;
}

/* --- the end --- */

static void peer_destroy(struct rpc_peer *peer)
{
    struct call_state *state;
    peer_unlink(peer); /* its connection has gone with the net */
    for (uint32_t i = 0; i < ARRAY_LEN(peer->slots); i++) {
        if (peer->slots[i].call != NULL)
            call_end_soon(peer->slots[i].call, -ECANCELED);
    }
    while ((state = TAILQ_FIRST(&peer->queued)) != NULL)
        call_end_soon(state, -ECANCELED);
    peer_free(peer);
}

void rpc_peers_destroy(struct rpc *rpc)
{
    struct rpc_peer *peer;
    struct call_state *state;
    loop_post_cancel(rpc->loop, &rpc->reap);
    while ((peer = RB_MIN(rpc_peer_tree, &rpc->peers)) != NULL) {
        RB_REMOVE(rpc_peer_tree, &rpc->peers, peer);
        peer_destroy(peer);
    }
    TAILQ_CONCAT(&rpc->dead, &rpc->singles, list_entry);
    while ((peer = TAILQ_FIRST(&rpc->dead)) != NULL) {
        TAILQ_REMOVE(&rpc->dead, peer, list_entry);
        peer_destroy(peer);
    }
    while ((state = TAILQ_FIRST(&rpc->ending)) != NULL)
        call_finish(state, -ECANCELED);
}
