/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated network. A connection is two ends, one in each process, that know each
 * other; each has a queue of packets on their way to it, in order.
 *
 * Happy path: net_connect makes the client's end. Its `probe` finds who listens at the
 * address and makes the server's end, whose `accept` asks the server; a welcome goes
 * back, and the client's end is open too. A message waits in the sender's `out` until
 * there is room in the window (as in the buffers of two kernels), then in the receiver's
 * `in` until it has arrived and the receiver takes it.
 *
 * What can fail. A way that is blocked holds what has not arrived yet; after
 * SIM_NET_STUCK_NS both ends give up. A reset leaves a beginning of what is on its way,
 * in each direction, and puts the end of the connection behind it; so does a process that
 * is killed. One whose power is cut only leaves the beginning: its peer's end is
 * `silent`, and tries again and again, until its successor or its patience ends it.
 *
 * On close the peer's end gets what was on its way and then the end of the connection.
 *
 *     opening -> open -> broken (its last packet tells) -> gone
 *        |        |  \-> silent (the peer's power was cut) -> gone
 *        +--------+-------> gone (closed here)
 *
 * N1  Ends that know each other do so mutually: a->peer == b means b->peer == a.
 * N2  The packets of `in` have rising times of arrival; those held by a blocked way
 *     (HELD) come last.
 * N3  Nothing comes after the end of a connection: an end that is broken has no peer.
 * N4  An end only touches buffers of its own process.
 */
#include <stdio.h>

#include "runtime/crc32c.h"
#include "runtime/net_format.h"
#include "runtime/net_internal.h"
#include "runtime/sim_internal.h"
#include "runtime/trace.h"

#define HELD UINT64_MAX /* arrives when the way is open again */

/* What the kernels of both sides hold of one direction. A larger message goes alone. */
#define WINDOW_BYTES (256 * KIB)
/* Between two steps of one end. */
#define STEP_MIN_NS  100U
#define STEP_MAX_NS  (2 * NS_PER_US)
#define PROBE_MIN_NS (100 * NS_PER_MS)
#define PROBE_MAX_NS (300 * NS_PER_MS)
#define STUCK_MIN_NS NS_PER_S
#define STUCK_MAX_NS (10 * NS_PER_S)
#define PORT_FIRST   20000U
#define WHY_MAX      100U

/* The payload of a packet that has not left yet. */
struct content {
    uint32_t count;
    uint32_t crc; /* of it all, when it was sent */
    STAILQ_ENTRY(content) link;
    struct slice slices[];
};
STAILQ_HEAD(content_list, content);

enum packet_kind { PACKET_MESSAGE, PACKET_WELCOME, PACKET_END };

struct packet {
    enum packet_kind kind;
    int code; /* of an end; `bytes` say why */
    uint64_t arrive_ns;
    uint32_t head_len, payload_len;
    struct content *content; /* NULL: gathered behind the head, or none */
    TAILQ_ENTRY(packet) link;
    uint8_t bytes[];
};
TAILQ_HEAD(packet_list, packet);

struct sim_conn {
    struct net_conn base;
    struct sim_process *process;
    struct sim_conn *peer; /* NULL: none yet, or no more */
    uint64_t number;       /* from 1, in the order of creation */
    uint64_t asked_node;   /* a client: who must answer; 0: anybody */
    uint32_t peer_host;
    bool is_accepting; /* a server's end that nobody was told of yet */
    bool is_broken;    /* the end of the connection is on its way here */
    bool is_silent;
    uint64_t lost_number;  /* silent: the process that lost power */
    uint64_t probed_ns;    /* when the first of unanswered probes was due; 0: never */
    uint64_t window_bytes; /* of ours that the peer has not taken */
    struct packet_list in, out;
    struct sim_event deliver, leave, accept, probe, stuck;
    struct work room; /* waits for a buffer while posted */
    TAILQ_ENTRY(sim_conn) link;
};
TAILQ_HEAD(sim_conn_list, sim_conn);

struct sim_net {
    struct net base;
    struct sim_process *process;
    bool is_any_cluster; /* knows the server by a digest */
    struct sim_conn_list conns;
    TAILQ_ENTRY(sim_net) link;
};

/* A name that some process listens on, or did. */
struct sim_listener {
    char address[NET_ADDRESS_MAX];
    struct sim_net *net; /* NULL: not now */
    uint32_t host;
    uint64_t process_number;
    bool has_lost_power;
    TAILQ_ENTRY(sim_listener) link;
};

struct sim_way {
    uint32_t from_host, to_host;
    TAILQ_ENTRY(sim_way) link;
};

static struct sim_conn *sim_conn_of(struct net_conn *conn)
{
    return container_of(conn, struct sim_conn, base);
}

static struct sim_net *sim_net_of(struct net *net)
{
    return container_of(net, struct sim_net, base);
}

static struct sim_net *net_of(const struct sim_conn *c)
{
    return sim_net_of(c->base.net);
}

/* --- ways and hosts --- */

static struct sim_way *way_find(const struct sim_world *world, uint32_t from, uint32_t to)
{
    struct sim_way *way;
    TAILQ_FOREACH (way, &world->blocked, link) {
        if (way->from_host == from && way->to_host == to)
            return way;
    }
    return NULL;
}

static bool is_blocked_in(const struct sim_conn *c)
{
    return way_find(c->process->world, c->peer_host, c->process->host) != NULL;
}

static bool is_blocked_out(const struct sim_conn *c)
{
    return way_find(c->process->world, c->process->host, c->peer_host) != NULL;
}

/* Does the host answer, after that process of it lost power? */
static bool has_successor(const struct sim_world *world, uint32_t host, uint64_t number)
{
    const struct sim_process *process;
    TAILQ_FOREACH (process, &world->processes, link) {
        if (process->host == host && process->number > number && !process->is_ended)
            return true;
    }
    return false;
}

static uint64_t net_latency_ns(struct sim_world *world)
{
    const struct sim_faults *faults = &world->faults;
    uint64_t ns = sim_random_between(world, faults->net_latency_min_ns,
                                     faults->net_latency_max_ns);
    if (sim_chance(world, faults->net_stuck_ppm))
        ns += sim_random_between(world, STUCK_MIN_NS, STUCK_MAX_NS);
    return ns;
}

static uint64_t step_ns(struct sim_world *world)
{
    return sim_random_between(world, STEP_MIN_NS, STEP_MAX_NS);
}

/* --- packets --- */

static uint64_t packet_bytes(const struct packet *p)
{
    return (uint64_t)p->head_len + p->payload_len;
}

static struct packet *packet_create(enum packet_kind kind, size_t bytes)
{
    struct packet *p = sim_alloc(sizeof *p + bytes);
    p->kind = kind;
    return p;
}

static uint32_t content_crc(const struct content *content)
{
    uint32_t crc = 0;
    for (uint32_t i = 0; i < content->count; i++)
        crc = crc32c_more(crc, slice_data(content->slices[i]), content->slices[i].len);
    return crc;
}

/* Putting a buffer may run whoever waits for one, who may do anything to this end; so it
 * is the last thing that is done. */
static void contents_put(struct content_list *contents)
{
    struct content *content;
    while ((content = STAILQ_FIRST(contents)) != NULL) {
        STAILQ_REMOVE_HEAD(contents, link);
        for (uint32_t i = 0; i < content->count; i++)
            buffer_put(content->slices[i].buffer);
        free(content);
    }
}

/* Takes a copy of the payload, as a kernel does. */
static void packet_gather(struct packet *p, struct content_list *ret_contents)
{
    struct content *content = take(p->content);
    if (content == NULL)
        return;
    assert(content_crc(content) == content->crc && "payload changed after net_send");
    uint8_t *at = p->bytes + p->head_len;
    for (uint32_t i = 0; i < content->count; i++) {
        memcpy(at, slice_data(content->slices[i]), content->slices[i].len);
        at += content->slices[i].len;
    }
    STAILQ_INSERT_TAIL(ret_contents, content, link);
}

static void packets_free(struct packet_list *packets, struct content_list *ret_contents)
{
    struct packet *p;
    while ((p = TAILQ_FIRST(packets)) != NULL) {
        TAILQ_REMOVE(packets, p, link);
        if (p->content != NULL)
            STAILQ_INSERT_TAIL(ret_contents, p->content, link);
        free(p);
    }
}

/* --- what is on its way --- */

/* Plans to take the first packet, if it may be taken. */
static void deliver_arm(struct sim_conn *c)
{
    struct sim_world *world = c->process->world;
    const struct packet *first = TAILQ_FIRST(&c->in);
    sim_event_cancel(world, &c->deliver);
    if (first == NULL || first->arrive_ns == HELD)
        return;
    if (first->kind == PACKET_MESSAGE && (c->base.is_paused || c->room.posted))
        return;
    uint64_t delay_ns = step_ns(world);
    if (first->arrive_ns > world->now_ns)
        delay_ns = first->arrive_ns - world->now_ns;
    sim_event_add(c->process, &c->deliver, delay_ns);
}

/* Sends a packet to the end `to`. */
static void packet_add(struct sim_conn *to, struct packet *p)
{
    struct sim_world *world = to->process->world;
    const struct packet *last = TAILQ_LAST(&to->in, packet_list);
    uint64_t latency_ns = net_latency_ns(world);
    p->arrive_ns = is_blocked_in(to) ? HELD : world->now_ns + latency_ns;
    if (last != NULL)
        p->arrive_ns = max_u64(p->arrive_ns, last->arrive_ns); /* N2 */
    TAILQ_INSERT_TAIL(&to->in, p, link);
    if (last == NULL)
        deliver_arm(to);
}

/* Of what has not arrived, some of the last are lost. */
static void lose_some(struct sim_conn *to)
{
    struct sim_world *world = to->process->world;
    struct packet *p;
    uint64_t count = 0;
    TAILQ_FOREACH (p, &to->in, link) {
        count += p->arrive_ns > world->now_ns;
    }
    uint64_t lost = sim_world_random(world, count + 1);
    for (; lost > 0; lost--) {
        p = TAILQ_LAST(&to->in, packet_list);
        assert(p->content == NULL);
        TAILQ_REMOVE(&to->in, p, link);
        free(p);
    }
    deliver_arm(to);
}

/* Something may leave, or must be dropped. */
static void leave_arm(struct sim_conn *c)
{
    if (!TAILQ_EMPTY(&c->out) && !c->leave.is_pending)
        sim_event_add(c->process, &c->leave, step_ns(c->process->world));
}

/* The peer is no more; this is the last that comes from it. What the end has not sent yet
 * is dropped by its `leave`. */
static void end_add(struct sim_conn *to, int code, const char *why)
{
    to->peer = NULL;
    to->is_broken = true; /* N3 */
    struct packet *p = packet_create(PACKET_END, strlen(why) + 1);
    p->code = code;
    memcpy(p->bytes, why, strlen(why) + 1);
    packet_add(to, p);
    sim_event_cancel(to->process->world, &to->probe);
    leave_arm(to);
}

/* Both ends lose some of what is on its way to them. */
static void reset(struct sim_conn *c)
{
    struct sim_conn *peer = c->peer;
    lose_some(c);
    lose_some(peer);
    end_add(c, -ECONNRESET, "the network has reset the connection");
    end_add(peer, -ECONNRESET, "the network has reset the connection");
}

/* As long as either way is blocked, patience runs. */
static void stuck_arm(struct sim_conn *c)
{
    if (!is_blocked_in(c) && !is_blocked_out(c))
        sim_event_cancel(c->process->world, &c->stuck);
    else if (!c->stuck.is_pending)
        sim_event_add(c->process, &c->stuck, SIM_NET_STUCK_NS);
}

static void probe_arm(struct sim_conn *c)
{
    struct sim_world *world = c->process->world;
    if (c->probe.is_pending)
        return;
    if (c->probed_ns == 0)
        c->probed_ns = world->now_ns;
    sim_event_add(c->process, &c->probe,
                  sim_random_between(world, PROBE_MIN_NS, PROBE_MAX_NS));
}

/* --- the end of an end --- */

/* Takes it out of everything; its memory, and for a living process what it refers to, is
 * still to be freed. */
static void conn_unlink(struct sim_conn *c, struct content_list *ret_contents)
{
    struct sim_world *world = c->process->world;
    sim_event_cancel(world, &c->deliver);
    sim_event_cancel(world, &c->leave);
    sim_event_cancel(world, &c->accept);
    sim_event_cancel(world, &c->probe);
    sim_event_cancel(world, &c->stuck);
    packets_free(&c->in, ret_contents);
    packets_free(&c->out, ret_contents);
    TAILQ_REMOVE(&net_of(c)->conns, c, link);
    c->base.is_open = false;
}

static void conn_free(struct sim_conn *c)
{
    struct content_list contents = STAILQ_HEAD_INITIALIZER(contents);
    buffer_pool_wait_cancel(c->base.net->options.buffers, &c->room);
    conn_unlink(c, &contents);
    free(c);
    contents_put(&contents);
}

/* Ends with a handler's call, which may do anything. */
static void conn_closed(struct sim_conn *c, int code, const char *why)
{
    struct content_list contents = STAILQ_HEAD_INITIALIZER(contents);
    char text[NET_ADDRESS_MAX + WHY_MAX];
    snprintf(text, sizeof text, "%s: %s", c->base.address, why);
    trace(&c->process->loop, "sim.net.closed", c->number, (uint64_t) - (int64_t)code, 0);
    buffer_pool_wait_cancel(c->base.net->options.buffers, &c->room);
    conn_unlink(c, &contents);
    c->base.handlers->closed(c->base.arg, &c->base, code, text);
    free(c);
    contents_put(&contents);
}

/* Nobody was told of a server's end before it was accepted. */
static void peer_end(struct sim_conn *c, int code, const char *why)
{
    struct sim_conn *peer = c->peer;
    if (peer == NULL)
        return;
    c->peer = NULL;
    if (peer->is_accepting) {
        peer->peer = NULL;
        conn_free(peer);
    } else {
        end_add(peer, code, why);
    }
}

static void leave_peer(struct sim_conn *c)
{
    /* A kernel that has unread bytes resets, which may overtake what was sent. */
    if (c->peer != NULL && !c->peer->is_accepting && !TAILQ_EMPTY(&c->in))
        lose_some(c->peer);
    peer_end(c, -ECONNRESET, "it has closed the connection");
}

static void close_conn(struct net_conn *conn)
{
    struct sim_conn *c = sim_conn_of(conn);
    leave_peer(c);
    conn_free(c);
}

static void conn_fail(struct sim_conn *c, int code, const char *why)
{
    leave_peer(c);
    conn_closed(c, code, why);
}

/* --- steps --- */

static void room_found(struct work *work)
{
    struct sim_conn *c = container_of(work, struct sim_conn, room);
    c->base.is_starved = false;
    deliver_arm(c);
}

/* A buffer with the payload; false: there is none now. */
static bool payload_of(struct sim_conn *c, const struct packet *p, struct slice *ret)
{
    *ret = (struct slice){0};
    if (p->payload_len == 0)
        return true;
    struct buffer *buffer = buffer_create(c->base.net->options.buffers, p->payload_len);
    if (buffer == NULL)
        return false;
    memcpy(buffer->data, p->bytes + p->head_len, p->payload_len);
    *ret = (struct slice){.buffer = buffer, .len = p->payload_len};
    return true;
}

/* Waits for a buffer to come back; if none is out, it is memory that is missing. */
static void starve(struct sim_conn *c)
{
    struct buffer_pool *pool = c->base.net->options.buffers;
    if (buffer_pool_used_bytes(pool) == 0) {
        conn_fail(c, -ENOMEM, "no memory for a payload");
    } else {
        c->base.is_starved = true;
        buffer_pool_wait(pool, &c->room);
    }
}

/* Room in the window of the peer, which hears of it soon. */
static void window_open(struct sim_conn *c, const struct packet *p)
{
    struct sim_conn *peer = c->peer;
    if (peer == NULL)
        return;
    assert(peer->peer == c && peer->window_bytes >= packet_bytes(p)); /* N1 */
    peer->window_bytes -= packet_bytes(p);
    leave_arm(peer);
}

static void push_out(struct sim_conn *c, struct content_list *ret_contents)
{
    struct packet *p;
    while (c->peer != NULL && (p = TAILQ_FIRST(&c->out)) != NULL) {
        uint64_t bytes = packet_bytes(p);
        if (c->window_bytes > 0 && c->window_bytes + bytes > WINDOW_BYTES)
            break;
        TAILQ_REMOVE(&c->out, p, link);
        c->base.queued_bytes -= bytes;
        c->window_bytes += bytes;
        packet_gather(p, ret_contents);
        packet_add(c->peer, p);
        if (sim_chance(c->process->world, c->process->world->faults.net_reset_ppm))
            reset(c);
    }
}

static void leave_run(struct sim_event *event)
{
    struct sim_conn *c = container_of(event, struct sim_conn, leave);
    struct content_list contents = STAILQ_HEAD_INITIALIZER(contents);
    if (c->is_broken) {
        packets_free(&c->out, &contents);
        c->base.queued_bytes = 0;
    } else if (c->base.is_open) {
        push_out(c, &contents);
    }
    contents_put(&contents);
}

static void opened(struct sim_conn *c)
{
    c->base.is_open = true;
    leave_arm(c);
    c->base.handlers->opened(c->base.arg, &c->base); /* c may be gone */
}

/* Nodes prove who they are; others may say little. */
static bool is_allowed(const struct sim_conn *c, const struct packet *p)
{
    return c->base.peer.node != 0 || (p->head_len <= NET_NOBODY_HEAD_MAX &&
                                      p->payload_len <= NET_NOBODY_PAYLOAD_MAX);
}

static void deliver_run(struct sim_event *event)
{
    struct sim_conn *c = container_of(event, struct sim_conn, deliver);
    struct packet *p = TAILQ_FIRST(&c->in);
    struct slice payload;
    assert(p->arrive_ns <= c->process->world->now_ns);
    if (p->kind == PACKET_END) {
        TAILQ_REMOVE(&c->in, p, link);
        conn_closed(c, p->code, (const char *)p->bytes);
        free(p);
        return;
    }
    if (p->kind == PACKET_MESSAGE && !is_allowed(c, p)) {
        conn_fail(c, -EPROTO, "it sends more than it may without a certificate");
        return;
    }
    if (!payload_of(c, p, &payload)) {
        starve(c);
        return;
    }
    TAILQ_REMOVE(&c->in, p, link);
    c->base.heard_ns = c->process->world->now_ns;
    window_open(c, p);
    deliver_arm(c);
    if (p->kind == PACKET_WELCOME) {
        opened(c);
    } else {
        trace(&c->process->loop, "sim.net.message", c->number, p->head_len,
              p->payload_len);
        c->base.handlers->received(c->base.arg, &c->base, p->bytes, p->head_len, payload);
    }
    free(p);
}

/* The peer sees the same, at its own time. */
static void stuck_run(struct sim_event *event)
{
    struct sim_conn *c = container_of(event, struct sim_conn, stuck);
    struct sim_conn *peer = c->peer;
    if (peer != NULL && peer->is_accepting) {
        peer_end(c, 0, NULL);
    } else if (peer != NULL) {
        peer->peer = NULL;
        peer->is_silent = true;
        peer->lost_number = 0; /* whoever is there now does not know it */
    }
    conn_closed(c, -ETIMEDOUT, "it does not answer");
}

/* --- connecting --- */

/* Why the two do not talk to each other; false: they do. */
static bool is_denied(const struct sim_net *client, const struct sim_net *server,
                      uint64_t asked_node, char ret[WHY_MAX])
{
    const struct net_identity *from = &client->base.options.self;
    const struct net_identity *to = &server->base.options.self;
    bool is_same = uid_equal(from->cluster, to->cluster);
    if (to->node == 0)
        snprintf(ret, WHY_MAX, "it is no node");
    else if (!is_same && (from->node != 0 || !client->is_any_cluster))
        snprintf(ret, WHY_MAX, "it belongs to another cluster");
    else if (asked_node != 0 && asked_node != to->node)
        snprintf(ret, WHY_MAX, "it is node %llu, not %llu", (unsigned long long)to->node,
                 (unsigned long long)asked_node);
    else if (from->node == 0 && !server->base.options.allow_nobody)
        snprintf(ret, WHY_MAX, "it wants a certificate");
    else
        return false;
    return true;
}

static void accept_run(struct sim_event *event)
{
    struct sim_conn *c = container_of(event, struct sim_conn, accept);
    struct sim_conn *client = c->peer;
    struct net *net = c->base.net;
    char why[WHY_MAX] = "it does not let us in";
    bool is_fine = !is_denied(net_of(client), net_of(c), client->asked_node, why) &&
                   net->options.accepted(net->options.arg, &c->base, &c->base.handlers,
                                         &c->base.arg);
    c->is_accepting = false;
    if (!is_fine) {
        peer_end(c, -PLX_EDENIED, why);
        conn_free(c);
        return;
    }
    trace(&c->process->loop, "sim.net.accepted", c->number, client->number, 0);
    packet_add(client, packet_create(PACKET_WELCOME, 0));
    stuck_arm(c);
    stuck_arm(client);
    opened(c);
}

static struct sim_conn *conn_create(struct sim_net *net, const char *address,
                                    const struct net_handlers *handlers, void *arg);

static void accept_start(struct sim_conn *client, struct sim_net *server)
{
    struct net_identity self = net_of(client)->base.options.self;
    struct net_identity nobody = {0};
    char address[NET_ADDRESS_MAX];
    snprintf(address, sizeof address, "host%u:%llu", client->process->host,
             (unsigned long long)client->number);
    struct sim_conn *c = conn_create(server, address, NULL, NULL);
    c->base.peer = self.node != 0 ? self : nobody;
    c->peer_host = client->process->host;
    c->is_accepting = true;
    c->peer = client;
    client->peer = c;
    client->base.peer = server->base.options.self;
    sim_event_add(c->process, &c->accept, step_ns(c->process->world));
}

static struct sim_listener *listener_find(const struct sim_world *world,
                                          const char *address)
{
    struct sim_listener *listener;
    TAILQ_FOREACH (listener, &world->listeners, link) {
        if (strcmp(listener->address, address) == 0)
            return listener;
    }
    return NULL;
}

static bool is_silent(const struct sim_world *world, const struct sim_listener *listener)
{
    return listener->net == NULL && listener->has_lost_power &&
           !has_successor(world, listener->host, listener->process_number);
}

/* One attempt to reach a listener, or a peer of which nothing is heard any more. */
static void probe_run(struct sim_event *event)
{
    struct sim_conn *c = container_of(event, struct sim_conn, probe);
    const struct sim_world *world = c->process->world;
    const struct sim_listener *listener = NULL;
    bool answers;
    if (c->is_silent) {
        answers = has_successor(world, c->peer_host, c->lost_number);
    } else {
        listener = listener_find(world, c->base.address);
        c->peer_host = listener != NULL ? listener->host : c->process->host;
        answers = listener == NULL || !is_silent(world, listener);
    }
    /* Nobody is told of a connection before an answer has come back once. */
    if (is_blocked_out(c) || (!c->is_silent && is_blocked_in(c)) || !answers) {
        if (world->now_ns - c->probed_ns >= SIM_NET_STUCK_NS)
            conn_closed(c, -ETIMEDOUT, "it does not answer");
        else
            probe_arm(c);
        return;
    }
    stuck_arm(c);
    if (c->is_silent)
        end_add(c, -ECONNRESET, "it does not know the connection");
    else if (listener == NULL || listener->net == NULL)
        end_add(c, -ECONNREFUSED, "nobody listens there");
    else
        accept_start(c, listener->net);
}

static struct sim_conn *conn_create(struct sim_net *net, const char *address,
                                    const struct net_handlers *handlers, void *arg)
{
    struct sim_conn *c = sim_alloc(sizeof *c);
    net_conn_init(&c->base, &net->base, address, handlers, arg);
    c->process = net->process;
    c->number = ++net->process->world->conn_count;
    TAILQ_INIT(&c->in);
    TAILQ_INIT(&c->out);
    c->deliver.run = deliver_run;
    c->leave.run = leave_run;
    c->accept.run = accept_run;
    c->probe.run = probe_run;
    c->stuck.run = stuck_run;
    c->room.run = room_found;
    TAILQ_INSERT_TAIL(&net->conns, c, link);
    return c;
}

static struct net_conn *connect_to(struct net *net, const char *address, uint64_t node,
                                   const struct net_handlers *handlers, void *arg)
{
    struct sim_conn *c = conn_create(sim_net_of(net), address, handlers, arg);
    struct sim_world *world = c->process->world;
    c->asked_node = node;
    c->probed_ns = world->now_ns;
    sim_event_add(c->process, &c->probe, net_latency_ns(world));
    return &c->base;
}

/* --- operations --- */

static int send_message(struct net_conn *conn, const struct net_send *send)
{
    struct sim_conn *c = sim_conn_of(conn);
    uint32_t payload_len = (uint32_t)net_send_payload(send);
    if (c->is_broken)
        return 0; /* lost, and it will soon be told why */
    struct packet *p = packet_create(PACKET_MESSAGE, send->head_len + payload_len);
    p->head_len = (uint32_t)send->head_len;
    p->payload_len = payload_len;
    memcpy(p->bytes, send->head, send->head_len);
    if (payload_len > 0) {
        p->content = sim_alloc(sizeof *p->content +
                               send->slice_count * sizeof p->content->slices[0]);
        p->content->count = send->slice_count;
        for (uint32_t i = 0; i < send->slice_count; i++) {
            p->content->slices[i] = send->slices[i];
            buffer_get(send->slices[i].buffer);
        }
        p->content->crc = content_crc(p->content);
    }
    TAILQ_INSERT_TAIL(&c->out, p, link);
    conn->queued_bytes += packet_bytes(p);
    if (c->is_silent)
        probe_arm(c);
    if (conn->is_open)
        leave_arm(c);
    return 0;
}

static void pause_conn(struct net_conn *conn, bool paused)
{
    (void)paused;
    deliver_arm(sim_conn_of(conn));
}

static int set_credentials(struct net *net, const struct net_credentials *credentials,
                           struct error *err)
{
    (void)err;
    sim_net_of(net)->is_any_cluster = credentials->authority_digest != NULL;
    return 0;
}

/* "NAME:0" becomes the first port that nobody uses. */
static int address_choose(const struct sim_world *world, const char *address,
                          char ret[NET_ADDRESS_MAX], uint16_t *ret_port,
                          struct error *err)
{
    const char *colon = strrchr(address, ':');
    char *end = NULL;
    unsigned long port = colon != NULL ? strtoul(colon + 1, &end, 10) : 0;
    if (colon == NULL || end == colon + 1 || *end != '\0' || port > UINT16_MAX)
        return err_set(err, -EINVAL, "%s: not HOST:PORT", address);
    const struct sim_listener *listener;
    int name_len = (int)(colon - address);
    uint32_t candidate = port != 0 ? (uint32_t)port : PORT_FIRST;
    for (; candidate <= UINT16_MAX; candidate++) {
        if (snprintf(ret, NET_ADDRESS_MAX, "%.*s:%u", name_len, address, candidate) >=
            (int)NET_ADDRESS_MAX)
            return err_set(err, -EINVAL, "%s: too long", address);
        listener = listener_find(world, ret);
        if (port != 0 || listener == NULL)
            break;
    }
    listener = listener_find(world, ret);
    if (listener != NULL && listener->net != NULL)
        return err_set(err, -EADDRINUSE, "%s: somebody listens there already", address);
    *ret_port = (uint16_t)candidate;
    return 0;
}

static int listen_on(struct net *net, const char *address, uint16_t *ret_port,
                     struct error *err)
{
    struct sim_process *process = sim_net_of(net)->process;
    struct sim_world *world = process->world;
    char chosen[NET_ADDRESS_MAX];
    uint16_t port = 0;
    if (sim_must_fail(world, 0))
        return err_set(err, -EIO, "%s: cannot listen there", address);
    int rc = address_choose(world, address, chosen, &port, err);
    if (rc != 0)
        return rc;
    struct sim_listener *listener = listener_find(world, chosen);
    if (listener == NULL) {
        listener = sim_alloc(sizeof *listener);
        memcpy(listener->address, chosen, sizeof chosen);
        TAILQ_INSERT_TAIL(&world->listeners, listener, link);
    }
    listener->net = sim_net_of(net);
    listener->host = process->host;
    listener->process_number = process->number;
    listener->has_lost_power = false;
    if (ret_port != NULL)
        *ret_port = port;
    return 0;
}

static void listeners_leave(struct sim_net *net, bool has_lost_power)
{
    struct sim_listener *listener;
    TAILQ_FOREACH (listener, &net->process->world->listeners, link) {
        if (listener->net != net)
            continue;
        listener->net = NULL;
        listener->has_lost_power = has_lost_power;
    }
}

static void destroy(struct net *base)
{
    struct sim_net *net = sim_net_of(base);
    struct sim_conn *c;
    listeners_leave(net, false);
    while ((c = TAILQ_FIRST(&net->conns)) != NULL)
        close_conn(&c->base);
    TAILQ_REMOVE(&net->process->nets, net, link);
    free(net);
}

static const struct net_ops sim_net_ops = {
    .destroy = destroy,
    .set_credentials = set_credentials,
    .listen = listen_on,
    .connect = connect_to,
    .close = close_conn,
    .pause = pause_conn,
    .send = send_message,
};

int sim_net_create(const struct net_options *options, struct net **ret, struct error *err)
{
    (void)err;
    struct sim_net *net = sim_alloc(sizeof *net);
    net_init(&net->base, &sim_net_ops, options);
    net->process = sim_process_of(options->loop);
    net->is_any_cluster = options->credentials.authority_digest != NULL;
    TAILQ_INIT(&net->conns);
    TAILQ_INSERT_TAIL(&net->process->nets, net, link);
    *ret = &net->base;
    return 0;
}

/* --- what the world does to it --- */

/* The process of c has ended, so nothing of c may run or be touched but its memory. */
static void conn_abandon(struct sim_conn *c, enum sim_end how)
{
    struct sim_conn *peer = take(c->peer);
    bool has_unread = !TAILQ_EMPTY(&c->in);
    if (peer != NULL && peer->process == c->process) {
        peer->peer = NULL;
    } else if (peer != NULL && peer->is_accepting) {
        peer->peer = NULL;
        conn_free(peer);
    } else if (peer != NULL) {
        lose_some(peer);
        peer->peer = NULL;
        peer->is_silent = how == SIM_POWER_CUT;
        peer->lost_number = c->process->number;
        if (how == SIM_KILL)
            end_add(peer, -ECONNRESET, "it has closed the connection");
        else if (has_unread || !TAILQ_EMPTY(&peer->out) || !peer->base.is_open)
            probe_arm(peer);
    }
    struct content_list contents = STAILQ_HEAD_INITIALIZER(contents);
    conn_unlink(c, &contents);
    struct content *content;
    while ((content = STAILQ_FIRST(&contents)) != NULL) {
        STAILQ_REMOVE_HEAD(&contents, link);
        free(content); /* its buffers are the process's (N4) */
    }
    free(c);
}

void sim_net_end_process(struct sim_process *process, enum sim_end how)
{
    struct sim_net *net;
    while ((net = TAILQ_FIRST(&process->nets)) != NULL) {
        struct sim_conn *c;
        listeners_leave(net, how == SIM_POWER_CUT);
        while ((c = TAILQ_FIRST(&net->conns)) != NULL)
            conn_abandon(c, how);
        TAILQ_REMOVE(&process->nets, net, link);
        free(net);
    }
}

void sim_net_free_world(struct sim_world *world)
{
    struct sim_listener *listener;
    struct sim_way *way;
    while ((listener = TAILQ_FIRST(&world->listeners)) != NULL) {
        TAILQ_REMOVE(&world->listeners, listener, link);
        free(listener);
    }
    while ((way = TAILQ_FIRST(&world->blocked)) != NULL) {
        TAILQ_REMOVE(&world->blocked, way, link);
        free(way);
    }
}

void sim_process_set_host(struct loop *loop, uint32_t host)
{
    struct sim_process *process = sim_process_of(loop);
    assert(TAILQ_EMPTY(&process->nets));
    process->host = host;
}

/* The way to this end was blocked or opened. */
static void way_changed(struct sim_conn *c, bool is_blocked)
{
    struct sim_world *world = c->process->world;
    uint64_t last_ns = world->now_ns;
    struct packet *p;
    TAILQ_FOREACH (p, &c->in, link) {
        if (is_blocked && p->arrive_ns > world->now_ns)
            p->arrive_ns = HELD;
        else if (!is_blocked && p->arrive_ns == HELD)
            p->arrive_ns = max_u64(last_ns, world->now_ns + net_latency_ns(world));
        last_ns = p->arrive_ns; /* N2 */
    }
    deliver_arm(c);
}

static void ways_changed(struct sim_world *world, uint32_t from, uint32_t to,
                         bool is_blocked)
{
    struct sim_process *process;
    struct sim_net *net;
    struct sim_conn *c;
    TAILQ_FOREACH (process, &world->processes, link) {
        TAILQ_FOREACH (net, &process->nets, link) {
            TAILQ_FOREACH (c, &net->conns, link) {
                bool is_there = c->peer != NULL || c->is_broken || c->is_silent;
                bool is_in = c->peer_host == from && process->host == to;
                bool is_out = c->peer_host == to && process->host == from;
                if (!is_there || (!is_in && !is_out))
                    continue;
                if (is_in)
                    way_changed(c, is_blocked);
                if (!c->is_accepting)
                    stuck_arm(c);
            }
        }
    }
}

void sim_net_block(struct sim_world *world, uint32_t from_host, uint32_t to_host,
                   bool is_blocked)
{
    struct sim_way *way = way_find(world, from_host, to_host);
    if ((way != NULL) == is_blocked)
        return;
    if (is_blocked) {
        way = sim_alloc(sizeof *way);
        *way = (struct sim_way){.from_host = from_host, .to_host = to_host};
        TAILQ_INSERT_TAIL(&world->blocked, way, link);
    } else {
        TAILQ_REMOVE(&world->blocked, way, link);
        free(way);
    }
    ways_changed(world, from_host, to_host, is_blocked);
}

void sim_net_open_all(struct sim_world *world)
{
    const struct sim_way *way;
    while ((way = TAILQ_FIRST(&world->blocked)) != NULL)
        sim_net_block(world, way->from_host, way->to_host, false);
}
