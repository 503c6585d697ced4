/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one task that enters libraft, and what it is given.
 *
 * Happy path: a message, a tick, what was submitted, or a change of membership is taken
 * from its queue and given to libraft; then everything libraft asked for is carried out
 * to its end (raft_io.c), what waits for an index is looked at, and only then comes the
 * next. What libraft believes and what is stored are the same whenever it is entered.
 * Many commands are one entering and one synced write.
 *
 * What can fail: see consensus_fail. The task ends then where it is, or when libraft
 * returns to it, and only has libraft release what it holds.
 *
 * On close the task finishes what it is at, waits for this node's snapshot, closes
 * libraft and ends.
 *
 * libraft is started anew from the store, within the process, where it would go on with
 * a wrong idea of membership: after a snapshot was installed, when a membership is
 * dropped from the log, and when this node is the only voter but does not lead.
 */
#include <stdarg.h>
#include <stdio.h>

#include "replication/raft_internal.h"

#define MESSAGES_IN_A_ROW 64U /* before others have their turn */
#define TICK_WAITS        4U  /* such rows before a tick that is due */

static const struct consensus_tuning DEFAULTS = {
    .snapshot_entries = 4096,
    .trailing_entries = 256,
    .snapshot_bytes = 8 * MIB,
    .piece_bytes = (uint32_t)MIB,
    .append_bytes = 192 * 1024,
    .install_ms = 10000,
    .wait_ms = 5000,
};

void consensus_wake(struct consensus *c)
{
    waitlist_wake_all(&c->work);
}

void consensus_enter(struct consensus *c)
{
    c->users++;
}

void consensus_leave(struct consensus *c)
{
    if (--c->users == 0)
        waitlist_wake_all(&c->idle);
}

void consensus_send(struct consensus *c, uint64_t node, const struct writer *w)
{
    assert(!c->failed);
    if (w->bad || w->len > CONSENSUS_MESSAGE_MAX) /* as if it was lost */
        log_warning(c->loop, "consensus: a message to node %llu cannot be sent: %s",
                    (unsigned long long)node, err_text(w->bad ? -ENOMEM : -EMSGSIZE));
    else
        c->options.link.send(c->options.link.arg, node, w->bytes, w->len);
}

void consensus_fail_with(struct consensus *c, const struct error *err)
{
    if (c->failed)
        return;
    c->failed = true;
    c->error = *err;
    log_error(c->loop, "%s", c->error.text);
    timer_stop(c->loop, &c->ticker);
    submit_end_all(c, -PLX_EFAILED);
    control_end_all(c, -PLX_EFAILED);
    waitlist_wake_all(&c->own_over);
    consensus_wake(c);
    if (c->opened.is_set && c->options.failed != NULL)
        c->options.failed(c->options.arg, c->error.text);
}

void consensus_fail(struct consensus *c, int code, const char *fmt, ...)
{
    char what[200];
    struct error err = {0};
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    err_set(&err, code, "consensus: %s: %s", what, err_text(code));
    consensus_fail_with(c, &err);
}

/* --- entering libraft --- */

static void inside_begin(struct consensus *c)
{
    assert(!c->is_inside && !c->failed);
    c->is_inside = true;
}

static void inside_end(struct consensus *c)
{
    assert(c->is_inside);
    c->is_inside = false;
}

bool consensus_is_only_voter(const struct consensus *c)
{
    const struct config_at *config = raft_store_config(&c->store);
    if (config == NULL || members_voters(&config->members) != 1)
        return false;
    const struct consensus_member *self =
        members_find(&config->members, c->options.node);
    return self != NULL && self->role == CONSENSUS_VOTER;
}

static void first_barrier_done(struct raft_barrier *req, int status)
{
    struct consensus *c = req->data;
    if (status == 0)
        c->ready_term = c->raft.current_term;
    c->look_due = true;
    raft_free(req);
}

/*
 * A new leader's first entry. libraft counts copies of entries of earlier terms and so
 * could take one for committed that a later leader replaces; with an entry of this term
 * at the end of the log, before any answer comes in, it never looks at those.
 */
static void first_barrier(struct consensus *c)
{
    struct raft_barrier *req = raft_calloc(1, sizeof *req);
    req->data = c;
    c->led_term = c->raft.current_term;
    int rv = raft_barrier(&c->raft, req, first_barrier_done);
    assert(rv == 0);
    if (c->raft.configuration.n > 1)
        log_info(c->loop, "consensus: node %llu leads in term %llu",
                 (unsigned long long)c->options.node, (unsigned long long)c->led_term);
}

/* A log that has grown by bytes rather than entries is as much in need of a snapshot. */
static void set_threshold(struct consensus *c)
{
    bool is_large = c->store.log_bytes >= 2 * c->options.tuning.snapshot_bytes;
    raft_set_snapshot_threshold(&c->raft,
                                is_large ? 1 : c->options.tuning.snapshot_entries);
}

static void close_raft(struct consensus *c)
{
    assert(!c->is_inside && c->is_set_up);
    c->is_inside = true;
    if (c->failed)
        raft_io_let_go(c);
    raft_close(&c->raft, NULL);
    c->is_inside = c->is_set_up = false;
}

static async void start_raft(struct consensus *c);

/* Closes libraft and starts it from what is stored, the log before `keep_before`. */
static async void reload(struct consensus *c, uint64_t keep_before)
{
    raft_io_finish_own(c);
    if (c->failed)
        return;
    close_raft(c);
    assert(STAILQ_EMPTY(&c->io_requests));
    trace(c->loop, "consensus_reload", c->options.node, keep_before, c->applied);
    int rc = keep_before == 0 ? 0 : raft_store_truncate(&c->store, keep_before);
    if (rc != 0) {
        consensus_fail(c, rc, "truncating the log before %llu",
                       (unsigned long long)keep_before);
        return;
    }
    start_raft(c);
}

static async void run_requests(struct consensus *c)
{
    struct io_request *request;
    while (!c->failed && (request = STAILQ_FIRST(&c->io_requests)) != NULL) {
        STAILQ_REMOVE_HEAD(&c->io_requests, link);
        inside_begin(c);
        raft_io_run(c, request);
        inside_end(c);
    }
}

/* A leader without other members has nothing to notice and nobody to tell. */
static void set_ticker(struct consensus *c)
{
    const struct config_at *config = raft_store_config(&c->store);
    bool is_alone = c->raft.state == RAFT_LEADER && config != NULL &&
                    config->members.count == 1;
    if (is_alone || c->closing)
        timer_stop(c->loop, &c->ticker);
    else if (!c->ticker.armed)
        timer_start(c->loop, &c->ticker, RAFT_TICK_MS * NS_PER_MS);
}

async void consensus_settle(struct consensus *c)
{
    run_requests(c);
    while (!c->failed && c->raft.state == RAFT_LEADER &&
           c->led_term != c->raft.current_term) {
        c->raft.transfer = NULL; /* of an earlier leadership */
        inside_begin(c);
        first_barrier(c);
        inside_end(c);
        run_requests(c);
    }
    if (c->failed)
        return;
    if (c->raft.state == RAFT_UNAVAILABLE) {
        consensus_fail(c, -PLX_EDAMAGED,
                       "this node's log and the leader's contradict each other");
        return;
    }
    control_drop_transfer(c);
    if (c->raft.last_applied > c->applied)
        c->applied = c->raft.last_applied;
    set_threshold(c);
    set_ticker(c);
    submit_look(c);
    if (c->needs_reload) {
        c->needs_reload = false;
        reload(c, 0);
    }
}

/* --- starting it --- */

static void entries_free(struct raft_entry *entries, size_t count)
{
    for (size_t i = 0; i < count; i++)
        raft_free(entries[i].buf.base);
    raft_free(entries);
}

static void set_up(struct consensus *c)
{
    char address[RAFT_ADDRESS_MAX];
    const struct consensus_tuning *tuning = &c->options.tuning;
    consensus_address(c->options.node, address);
    memset(&c->raft, 0, sizeof c->raft);
    int rv = raft_init(&c->raft, &c->io, &c->fsm, c->options.node, address);
    assert(rv == 0);
    c->is_set_up = true;
    c->raft.tracer = &c->tracer;
    raft_set_election_timeout(&c->raft, RAFT_ELECTION_MS);
    raft_set_heartbeat_timeout(&c->raft, RAFT_HEARTBEAT_MS);
    raft_set_install_snapshot_timeout(&c->raft, tuning->install_ms);
    raft_set_snapshot_trailing(&c->raft, tuning->trailing_entries);
    raft_set_pre_vote(&c->raft, true);
    set_threshold(c);
}

/* A node that is the only voter leads at once; libraft would not count that as a new
 * term, though others may hold entries of the old one that this node lost. */
static async int next_term_if_alone(struct consensus *c)
{
    if (!consensus_is_only_voter(c))
        return 0;
    return raft_store_set_vote(&c->store, c->store.term + 1, c->options.node);
}

static async void start_raft(struct consensus *c)
{
    struct error err = {0};
    struct raft_store store;
    int rc = raft_store_load(&store, c->options.kv, c->options.node, &c->loaded,
                             &c->loaded_count, &err);
    if (rc == 0) {
        raft_store_done(&c->store);
        c->store = store;
        rc = next_term_if_alone(c);
        if (rc != 0)
            err_set(&err, rc, "consensus: storing a term: %s", err_text(rc));
    }
    if (rc != 0) {
        consensus_fail_with(c, &err);
        return;
    }
    inside_begin(c);
    set_up(c);
    int rv = raft_start(&c->raft);
    inside_end(c);
    if (rv != 0)
        consensus_fail(c, -PLX_EDAMAGED, "libraft: %s", raft_strerror(rv));
    else
        consensus_settle(c);
}

async int consensus_stored_in(struct kv *kv, uint64_t node, uint64_t *ret_end,
                              struct error *err)
{
    struct raft_store store;
    struct raft_entry *entries;
    size_t count;
    int rc = raft_store_load(&store, kv, node, &entries, &count, err);
    if (rc != 0)
        return rc;
    *ret_end = store.next - 1;
    entries_free(entries, count);
    raft_store_done(&store);
    return 0;
}

/* The machine at the snapshot. What follows it is applied when it is known to be
 * committed. */
static async int load_machine(struct consensus *c, struct error *err)
{
    struct raft_buffer buf;
    struct raft_store store;
    struct raft_entry *entries;
    size_t count;
    int rc = raft_store_load(&store, c->options.kv, c->options.node, &entries, &count,
                             err);
    if (rc != 0)
        return rc;
    entries_free(entries, count);
    c->applied = c->decoded_to = store.snapshot.index;
    if (store.snapshot.index != 0) {
        rc = raft_store_read_snapshot(&store, &buf, err);
        if (rc == 0) {
            rc = c->options.machine.decode(c->options.machine.arg, buf.base, buf.len,
                                           err);
            raft_free(buf.base);
            if (rc != 0)
                err_add(err, rc, "consensus: snapshot (keys 'rp')");
        }
    }
    raft_store_done(&store);
    return rc;
}

/* --- its inputs --- */

/* This node in the membership that libraft goes by; NULL: it is not a member. */
static struct raft_server *own_server(struct consensus *c)
{
    for (unsigned i = 0; i < c->raft.configuration.n; i++)
        if (c->raft.configuration.servers[i].id == c->options.node)
            return &c->raft.configuration.servers[i];
    return NULL;
}

/*
 * A node votes for whoever asks, though it does not know yet that it may: whether its
 * vote counts is the candidate's to know. libraft refuses, and if a node was to become
 * the second voter and only the first has that in its log, neither would ever lead.
 */
static async void give_vote(struct consensus *c, struct raft_message *message)
{
    struct raft_server *self = own_server(c);
    int role = self == NULL ? 0 : self->role;
    if (self != NULL)
        self->role = RAFT_VOTER;
    c->recv(&c->io, message);
    if (self != NULL)
        self->role = role; /* voting leaves the membership as it is */
}

/* Gives a message to libraft, which owns what is in it from then on. */
static async void give(struct consensus *c, struct message *message)
{
    inside_begin(c);
    if (message->kind == MESSAGE_VOTE)
        give_vote(c, &message->raft);
    else
        c->recv(&c->io, &message->raft);
    inside_end(c);
    c->look_due = true;
    consensus_settle(c);
}

static async void take_message(struct consensus *c, struct inbox_message *in)
{
    struct message message;
    char address[RAFT_ADDRESS_MAX];
    uint64_t cut_before = 0;
    if (!message_decode(in->bytes, in->len, &message)) {
        log_warning(c->loop, "consensus: a malformed message from node %llu",
                    (unsigned long long)in->from_node);
        return;
    }
    if (message.kind >= MESSAGE_SUBMIT) {
        submit_forwarded(c, in->from_node, &message);
        return;
    }
    consensus_address(in->from_node, address);
    message.raft.server_id = in->from_node;
    message.raft.server_address = address;
    switch (raft_guard(c, &message, &cut_before)) {
    case VERDICT_DROP:
        message_done(&message);
        return;
    case VERDICT_RELOAD:
        reload(c, cut_before);
        if (c->failed) {
            message_done(&message);
            return;
        }
        break;
    case VERDICT_TAKE:
        break;
    }
    give(c, &message);
}

static void inbox_free(struct inbox_message *in)
{
    free(in->bytes);
    free(in);
}

static async void take_messages(struct consensus *c)
{
    for (uint32_t i = 0; i < MESSAGES_IN_A_ROW && !c->failed && !c->closing; i++) {
        struct inbox_message *in = STAILQ_FIRST(&c->inbox);
        if (in == NULL)
            return;
        STAILQ_REMOVE_HEAD(&c->inbox, link);
        c->inbox_bytes -= in->len;
        c->inbox_count--;
        take_message(c, in);
        inbox_free(in);
    }
}

void consensus_received(struct consensus *c, uint64_t from_node, const void *bytes,
                        size_t len)
{
    if (c->failed || c->closing || from_node == 0 || from_node > RAFT_NUMBER_MAX ||
        from_node == c->options.node || len > CONSENSUS_MESSAGE_MAX ||
        c->inbox_count >= CONSENSUS_INBOX_COUNT ||
        c->inbox_bytes + len > CONSENSUS_INBOX_BYTES)
        return;
    struct inbox_message *in = calloc(1, sizeof *in);
    uint8_t *copy = malloc(len + 1);
    if (in == NULL || copy == NULL) {
        free(in);
        free(copy);
        return;
    }
    memcpy(copy, bytes, len);
    *in = (struct inbox_message){.from_node = from_node, .bytes = copy, .len = len};
    STAILQ_INSERT_TAIL(&c->inbox, in, link);
    c->inbox_bytes += len;
    c->inbox_count++;
    consensus_wake(c);
}

static void tick_fire(struct timer *timer)
{
    struct consensus *c = container_of(timer, struct consensus, ticker);
    c->tick_due = true;
    timer_start(c->loop, &c->ticker, RAFT_TICK_MS * NS_PER_MS);
    consensus_wake(c);
}

/* libraft has only voters notice that their leader is silent. The others would send it
 * commands, and refuse their vote to everybody else, for ever. */
static void forget_silent_leader(struct consensus *c)
{
    const struct raft_server *self = own_server(c);
    uint64_t silent_ms = c->io.time(&c->io) - c->raft.election_timer_start;
    if (c->raft.state == RAFT_FOLLOWER && silent_ms >= 2 * RAFT_ELECTION_MS &&
        (self == NULL || self->role != RAFT_VOTER))
        c->raft.follower_state.current_leader.id = 0;
}

static async void take_tick(struct consensus *c)
{
    c->tick_due = false;
    c->tick_waits = 0;
    c->look_due = true;
    if (c->raft.state != RAFT_LEADER && consensus_is_only_voter(c)) {
        reload(c, 0);
        return;
    }
    forget_silent_leader(c);
    inside_begin(c);
    c->tick(&c->io);
    inside_end(c);
    consensus_settle(c);
}

/* Followers learn what is committed with the next message, which without this would be a
 * heartbeat: whoever waits there for what he submitted would wait for it. */
static async void tell_commit(struct consensus *c)
{
    if (c->raft.state != RAFT_LEADER || c->raft.commit_index <= c->told_commit ||
        consensus_is_only_voter(c))
        return;
    c->told_commit = c->raft.commit_index;
    raft_set_heartbeat_timeout(&c->raft, 0); /* to all of them, now */
    inside_begin(c);
    c->tick(&c->io);
    inside_end(c);
    if (!c->failed)
        raft_set_heartbeat_timeout(&c->raft, RAFT_HEARTBEAT_MS);
    consensus_settle(c);
}

static bool goes_on(const struct consensus *c)
{
    return !c->failed && !c->closing;
}

static async void drive(struct consensus *c)
{
    while (goes_on(c)) {
        take_messages(c);
        if (goes_on(c) && c->own_state == OWN_WRITTEN)
            raft_io_finish_own(c);
        /* A message may have come while the store was slow: it is no silence then. But
         * there may be always one more. */
        if (goes_on(c) && c->tick_due &&
            (STAILQ_EMPTY(&c->inbox) || ++c->tick_waits >= TICK_WAITS))
            take_tick(c);
        if (goes_on(c) && STAILQ_EMPTY(&c->inbox))
            tell_commit(c);
        if (goes_on(c) && c->look_due) {
            c->look_due = false;
            submit_run(c);
            if (goes_on(c))
                control_run(c);
        }
        if (goes_on(c) && STAILQ_EMPTY(&c->inbox) && !c->tick_due && !c->look_due &&
            c->own_state != OWN_WRITTEN)
            waitlist_wait(&c->work);
    }
}

static void consensus_main(struct task_call *call)
{
    struct consensus *c = container_of(call, struct consensus, call);
    struct error err = {0};
    int rc = load_machine(c, &err);
    if (rc != 0) {
        c->failed = true;
        c->error = err;
    } else {
        start_raft(c);
    }
    event_set(&c->opened);
    drive(c);
    raft_io_finish_own(c);
    if (c->is_set_up)
        close_raft(c);
    event_set(&c->over);
}

/* --- the face --- */

static void set_default(uint32_t *field, uint32_t value)
{
    if (*field == 0)
        *field = value;
}

static void set_defaults(struct consensus_tuning *tuning)
{
    set_default(&tuning->snapshot_entries, DEFAULTS.snapshot_entries);
    set_default(&tuning->trailing_entries, DEFAULTS.trailing_entries);
    set_default(&tuning->piece_bytes, DEFAULTS.piece_bytes);
    set_default(&tuning->append_bytes, DEFAULTS.append_bytes);
    set_default(&tuning->install_ms, DEFAULTS.install_ms);
    set_default(&tuning->wait_ms, DEFAULTS.wait_ms);
    if (tuning->snapshot_bytes == 0)
        tuning->snapshot_bytes = DEFAULTS.snapshot_bytes;
}

static struct consensus *consensus_create(const struct consensus_options *options)
{
    struct loop *loop = options->loop;
    struct consensus *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    c->options = *options;
    c->loop = loop;
    set_defaults(&c->options.tuning);
    STAILQ_INIT(&c->io_requests);
    STAILQ_INIT(&c->inbox);
    TAILQ_INIT(&c->waitings);
    TAILQ_INIT(&c->controls);
    event_init(&c->opened);
    event_init(&c->over);
    waitlist_init(&c->work);
    waitlist_init(&c->own_over);
    waitlist_init(&c->idle);
    c->process = loop_random_u64(loop);
    c->ticker.fire = tick_fire;
    c->applies = metric_counter(loop, "parallax_consensus_commands_total",
                                "Commands applied to the replicated state");
    c->appends = metric_counter(loop, "parallax_consensus_writes_total",
                                "Synced writes of the replicated log");
    c->elections = metric_counter(loop, "parallax_consensus_terms_total",
                                  "Terms this node has seen begin");
    raft_io_setup(c);
    return c;
}

static void consensus_free(struct consensus *c)
{
    struct inbox_message *in;
    while ((in = STAILQ_FIRST(&c->inbox)) != NULL) {
        STAILQ_REMOVE_HEAD(&c->inbox, link);
        inbox_free(in);
    }
    assert(STAILQ_EMPTY(&c->io_requests) && TAILQ_EMPTY(&c->waitings));
    entries_free(c->loaded, c->loaded_count);
    members_done(&c->own_meta.members);
    raft_store_done(&c->store);
    free(c);
}

async int consensus_open(const struct consensus_options *options,
                         struct consensus **ret_consensus, struct error *err)
{
    assert(options->node != 0 && options->node <= RAFT_NUMBER_MAX);
    struct consensus *c = consensus_create(options);
    if (c == NULL)
        return err_set(err, -ENOMEM, "consensus: %s", err_text(-ENOMEM));
    c->call = (struct task_call){
        .main = consensus_main, .name = "consensus", .system = true};
    task_start(c->loop, &c->call);
    event_wait(&c->opened);
    if (!c->failed) {
        *ret_consensus = c;
        return 0;
    }
    event_wait(&c->over);
    int rc = err_set(err, c->error.code, "%s", c->error.text);
    consensus_free(c);
    return rc;
}

async int consensus_bootstrap(struct kv *kv, uint64_t node, struct kv_batch *also,
                              struct error *err)
{
    assert(node != 0 && node <= RAFT_NUMBER_MAX);
    return raft_store_bootstrap(kv, node, also, err);
}

async int consensus_bootstrap_from(struct kv *kv, uint64_t node, uint64_t index,
                                   const void *state, size_t len, struct kv_batch *also,
                                   struct error *err)
{
    struct raft_buffer buf = {.base = (void *)(uintptr_t)state, .len = len};
    assert(node != 0 && node <= RAFT_NUMBER_MAX);
    assert(index != 0 && index <= RAFT_NUMBER_MAX);
    return raft_store_bootstrap_from(kv, node, index, &buf, also, err);
}

async void consensus_close(struct consensus *c)
{
    c->closing = true;
    timer_stop(c->loop, &c->ticker);
    consensus_wake(c);
    event_wait(&c->over);
    submit_end_all(c, -PLX_ECANCELLED);
    control_end_all(c, -PLX_ECANCELLED);
    while (c->users != 0)
        waitlist_wait(&c->idle);
    consensus_free(c);
}

static bool is_running(const struct consensus *c)
{
    return !c->failed && !c->closing;
}

uint64_t consensus_leader(const struct consensus *c)
{
    if (!is_running(c))
        return 0;
    if (c->raft.state == RAFT_LEADER)
        return c->options.node;
    return c->raft.state == RAFT_FOLLOWER ? c->raft.follower_state.current_leader.id : 0;
}

bool consensus_is_leader(const struct consensus *c)
{
    return is_running(c) && c->raft.state == RAFT_LEADER &&
           c->ready_term == c->raft.current_term;
}

uint64_t consensus_term(const struct consensus *c)
{
    return c->store.term;
}

uint64_t consensus_applied(const struct consensus *c)
{
    return c->applied;
}

void consensus_stored(const struct consensus *c, uint64_t *ret_end,
                      uint64_t *ret_committed)
{
    *ret_end = c->store.next == 0 ? 0 : c->store.next - 1;
    /* The machine may know of more, from a snapshot that is not stored yet. */
    *ret_committed = min_u64(c->raft.commit_index, *ret_end);
}

bool consensus_has_failed(const struct consensus *c)
{
    return c->failed;
}

int consensus_failure(const struct consensus *c)
{
    return c->failed ? c->error.code : 0;
}
