/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Heartbeats and ticks.
 *
 * Happy path: every LIVENESS_TICK_MS a node that does not lead tells the leader how it
 * is. The one that leads notes what came, lets liveness count, and starts each duty that
 * is not at work.
 *
 * What can fail: a heartbeat is lost, and others come. Leadership is lost: duties end
 * with their next step, and what they have proposed counts or does not, like any command.
 * A new leader knows nothing of what was said to the old one, and waits until it has
 * heard.
 *
 * On close no new step is begun; the one under way is waited for.
 */
#include "replication/warden_internal.h"

#include "blockstore/store.h"

/* A peer that is silent for RPC_SILENCE_MS is asked. */
#define HEARD_MS (RPC_SILENCE_MS + 750U)

/* --- what nodes say --- */

static uint32_t report_place(const struct warden *w, uint64_t node)
{
    uint32_t place = 0;
    while (place < w->report_count && w->reports[place].node < node)
        place++;
    return place;
}

const struct node_report *warden_find_report(const struct warden *w, uint64_t node)
{
    uint32_t place = report_place(w, node);
    return place < w->report_count && w->reports[place].node == node ? &w->reports[place]
                                                                     : NULL;
}

static void keep_report(struct warden *w, const struct node_report *report)
{
    uint32_t place = report_place(w, report->node);
    if (place == w->report_count || w->reports[place].node != report->node) {
        w->reports = cluster_grow(w->reports, &w->report_cap, w->report_count + 1,
                                  sizeof *w->reports);
        memmove(&w->reports[place + 1], &w->reports[place],
                (w->report_count - place) * sizeof *w->reports);
        w->report_count++;
    }
    w->reports[place] = *report;
    liveness_heard(&w->liveness, report->node, loop_now_ns(w->loop),
                   report->usage.is_broken);
}

/* Older versions do not have it. */
static void decode_recovery(const uint8_t *bytes, size_t len, struct warden_usage *ret)
{
    struct heartbeat_recovery recovery;
    if (len < sizeof recovery)
        return;
    memcpy(&recovery, bytes, sizeof recovery);
    ret->recovering_groups = le32_get(recovery.groups);
    ret->recovery_left_bytes = le64_get(recovery.left_bytes);
    ret->recovery_bytes_s = le64_get(recovery.rate_bytes_s);
}

/* False: nonsense. */
static bool decode(const struct rpc_request *request, struct node_report *ret)
{
    struct heartbeat_head head;
    if (request->head_len < sizeof head)
        return false;
    memcpy(&head, request->head, sizeof head);
    size_t address_len = le16_get(head.address_len);
    if (le16_get(head.version) == 0 || address_len > DISK_NAME_MAX ||
        address_len > request->head_len - sizeof head)
        return false;
    *ret = (struct node_report){.node = request->peer.node,
                                .applied = le64_get(head.applied),
                                .hears = le16_get(head.hears)};
    ret->usage.capacity_bytes = le64_get(head.capacity_bytes);
    ret->usage.used_bytes = le64_get(head.used_bytes);
    ret->usage.free_bytes = le64_get(head.free_bytes);
    ret->usage.is_broken = (le16_get(head.flags) & HEARTBEAT_BROKEN) != 0;
    memcpy(ret->address, (const uint8_t *)request->head + sizeof head, address_len);
    decode_recovery((const uint8_t *)request->head + sizeof head + address_len,
                    request->head_len - sizeof head - address_len, &ret->usage);
    return strlen(ret->address) == address_len && cluster_text_is_plain(ret->address);
}

void warden_heartbeat(struct warden *w, struct rpc_request *request)
{
    struct node_report report;
    const struct cluster_state *state = cluster_state(w->options.cluster);
    const struct cluster_node *node = cluster_node_by_id(state, request->peer.node);
    if (!w->leads || node == NULL || (node->flags & NODE_GONE))
        return;
    if (decode(request, &report))
        keep_report(w, &report);
}

static bool is_connected(void *arg, uint64_t node)
{
    const struct warden *w = arg;
    return node == w->options.node ||
           (w->options.rpc != NULL && rpc_is_connected(w->options.rpc, node));
}

/* Connections end some seconds sooner or later; that nothing was heard all notice at
 * about the same time. */
static uint32_t count_heard(struct warden *w)
{
    uint64_t now_ns = loop_now_ns(w->loop);
    const struct cluster_state *state = cluster_state(w->options.cluster);
    const struct cluster_node *node = NULL;
    uint32_t count = 0;
    while ((node = cluster_node_next(state, node)) != NULL)
        count += (node->flags & NODE_GONE) == 0 && is_connected(w, node->id) &&
                 (node->id == w->options.node ||
                  now_ns - rpc_heard_ns(w->options.rpc, node->id) <=
                      HEARD_MS * NS_PER_MS);
    return count;
}

static void report_of_self(struct warden *w, struct node_report *ret)
{
    const char *address = w->options.address;
    *ret = (struct node_report){.node = w->options.node, .hears = count_heard(w)};
    ret->applied = cluster_state_applied(cluster_state(w->options.cluster));
    if (w->options.usage != NULL)
        w->options.usage(w->options.arg, &ret->usage);
    if (address != NULL && strlen(address) <= DISK_NAME_MAX)
        strcpy(ret->address, address);
}

static void send_heartbeat(struct warden *w, uint64_t leader)
{
    struct node_report report;
    uint8_t bytes[HEARTBEAT_MAX];
    report_of_self(w, &report);
    size_t address_len = strlen(report.address);
    unsigned flags = report.usage.is_broken ? HEARTBEAT_BROKEN : 0;
    struct heartbeat_head head = {
        .version = le16_of(HEARTBEAT_VERSION),
        .flags = le16_of((uint16_t)flags),
        .address_len = le16_of((uint16_t)address_len),
        .hears = le16_of((uint16_t)report.hears),
        .capacity_bytes = le64_of(report.usage.capacity_bytes),
        .used_bytes = le64_of(report.usage.used_bytes),
        .free_bytes = le64_of(report.usage.free_bytes),
        .applied = le64_of(report.applied),
    };
    struct heartbeat_recovery recovery = {
        .groups = le32_of(report.usage.recovering_groups),
        .left_bytes = le64_of(report.usage.recovery_left_bytes),
        .rate_bytes_s = le64_of(report.usage.recovery_bytes_s),
    };
    memcpy(bytes, &head, sizeof head);
    memcpy(bytes + sizeof head, report.address, address_len);
    memcpy(bytes + sizeof head + address_len, &recovery, sizeof recovery);
    rpc_post(w->options.rpc, leader, HEARTBEAT_RPC, bytes,
             (uint32_t)(sizeof head + address_len + sizeof recovery), NULL, 0);
}

void warden_store_usage(void *arg, struct warden_usage *ret)
{
    struct store_usage usage;
    store_usage(arg, &usage);
    *ret = (struct warden_usage){.capacity_bytes = usage.capacity_bytes,
                                 .used_bytes = usage.used_bytes,
                                 .free_bytes = usage.free_bytes -
                                               min_u64(usage.free_bytes,
                                                       usage.reserve_bytes),
                                 .is_broken = usage.failed};
}

bool warden_report(const struct warden *w, uint64_t node, struct warden_report *ret)
{
    const struct node_report *report = warden_find_report(w, node);
    const struct liveness_node *known = liveness_find(&w->liveness, node);
    if (!w->leads || report == NULL || known == NULL)
        return false;
    *ret = (struct warden_report){.usage = report->usage,
                                  .applied = report->applied,
                                  .heard_ns = loop_now_ns(w->loop) - known->heard_ns};
    return true;
}

/* --- duties --- */

/* When it is stopping the cluster may be gone already. */
bool warden_leads(const struct warden *w)
{
    if (w->stopping || !w->leads)
        return false;
    const struct consensus *consensus = cluster_consensus(w->options.cluster);
    return consensus_is_leader(consensus) && consensus_term(consensus) == w->term;
}

static void duty_main(struct task_call *call)
{
    struct duty *duty = container_of(call, struct duty, call);
    struct warden *w = duty->warden;
    while (warden_leads(w) && duty->step(w))
        metric_add(w->steps, 1);
    duty->is_running = false;
    w->running--;
    waitlist_wake_all(&w->idle);
}

static void start_duties(struct warden *w)
{
    for (unsigned i = 0; i < DUTIES; i++) {
        struct duty *duty = &w->duties[i];
        if (duty->is_running)
            continue;
        duty->is_running = true;
        w->running++;
        duty->call = (struct task_call){
            .main = duty_main, .name = "warden", .system = true};
        task_start(w->loop, &duty->call);
    }
}

/* --- ticks --- */

/* It leads since now, or again. */
static void begin_to_lead(struct warden *w, uint64_t term)
{
    w->leads = true;
    w->term = term;
    w->report_count = 0;
    w->failed_voter = w->better = 0;
    w->kept_ns = loop_now_ns(w->loop) + WARDEN_KEPT_MS * NS_PER_MS;
    liveness_begin(&w->liveness, loop_now_ns(w->loop));
}

static void count_down(struct warden *w)
{
    const struct cluster_node *node = NULL;
    uint64_t down = 0;
    while ((node = cluster_node_next(cluster_state(w->options.cluster), node)) != NULL)
        down += (node->flags & NODE_DOWN) != 0;
    metric_set(w->down, down);
}

static void on_tick(struct timer *timer)
{
    struct warden *w = container_of(timer, struct warden, tick);
    const struct consensus *consensus = cluster_consensus(w->options.cluster);
    uint64_t leader = consensus_leader(consensus);
    timer_start(w->loop, &w->tick, LIVENESS_TICK_MS * NS_PER_MS);
    count_down(w);
    if (!consensus_is_leader(consensus)) {
        w->leads = false;
        if (leader != 0 && leader != w->options.node && w->options.rpc != NULL)
            send_heartbeat(w, leader);
        return;
    }
    if (!w->leads || w->term != consensus_term(consensus))
        begin_to_lead(w, consensus_term(consensus));
    struct node_report self;
    report_of_self(w, &self);
    keep_report(w, &self);
    liveness_tick(&w->liveness, cluster_state(w->options.cluster), loop_now_ns(w->loop),
                  is_connected, w);
    start_duties(w);
}

/* --- begin and end --- */

int warden_create(const struct warden_options *options, struct warden **ret_warden)
{
    struct warden *w = calloc(1, sizeof *w);
    if (w == NULL)
        return -ENOMEM;
    w->options = *options;
    w->loop = options->loop;
    w->tick.fire = on_tick;
    w->duties[DUTY_MARK].step = warden_mark_step;
    w->duties[DUTY_PLACE].step = warden_place_step;
    w->duties[DUTY_VOTE].step = warden_vote_step;
    for (unsigned i = 0; i < DUTIES; i++)
        w->duties[i].warden = w;
    waitlist_init(&w->idle);
    liveness_init(&w->liveness, options->out_ns);
    w->down = metric_counter(w->loop, "parallax_nodes_down", "Nodes that are down");
    w->steps = metric_counter(w->loop, "parallax_warden_steps_total",
                              "What this node proposed as the leader");
    timer_start(w->loop, &w->tick, LIVENESS_TICK_MS * NS_PER_MS);
    *ret_warden = w;
    return 0;
}

void warden_stop(struct warden *w)
{
    w->stopping = true;
    w->leads = false;
    timer_stop(w->loop, &w->tick);
}

async void warden_destroy(struct warden *w)
{
    warden_stop(w);
    while (w->running != 0)
        waitlist_wait(&w->idle);
    liveness_done(&w->liveness);
    free(w->reports);
    free(w);
}
