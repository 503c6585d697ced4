/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands and barriers on their way.
 *
 *      queued -> sent to the leader -> has an index -> settled
 *        |  ^         |                                  ^
 *        |  +---------+ refused; a barrier: another leads |
 *        +------------------> has an index (as leader) --+
 *
 * Happy path, leader: all that is queued goes into the log at once, with one write and
 * one message to each follower. A command is settled when it is applied here: it carries
 * who submitted it, so the node that waits for it finds it, whichever node led. A
 * barrier is an entry of its own; when it is committed in the term it was made in, what
 * was committed before it is known and applied.
 *
 * Happy path, follower: the command goes to the leader, which answers where in its log it
 * is; and is settled when it is applied here. A barrier's answer is an index too.
 *
 * What can fail: anything may be lost, so all that waits has a deadline. A command of
 * which no copy can be anywhere ends as not carried out; all others as unknown. One that
 * went to a leader of an earlier term is unknown as soon as there is another one, for the
 * answer may have died with the first: whoever submitted it repeats it at once.
 *
 * On close everything is settled.
 */
#include "replication/raft_internal.h"

#define RETRY_MS    50U        /* after a leader's refusal */
#define BATCH_BYTES (4 * MIB) /* into the log at once */

static_assert(BATCH_BYTES >= CONSENSUS_COMMAND_MAX, "one always fits");

/* One entry of libraft's for many who wait. */
struct barrier_round {
    struct raft_barrier barrier;
    struct consensus *consensus;
    uint32_t count;
    struct {
        uint64_t node, process, id; /* node 0: this one */
    } who[];
};

static uint64_t now_ns(const struct consensus *c)
{
    return loop_now_ns(c->loop);
}

static void waiting_remove(struct consensus *c, struct waiting *w)
{
    TAILQ_REMOVE(&c->waitings, w, link);
    c->waiting_count--;
    c->waiting_bytes -= w->bytes;
    raft_free(w->command.base);
    w->command.base = NULL;
    if (w->from_node != 0)
        free(w);
}

static void settle(struct consensus *c, struct waiting *w, int code)
{
    assert(w->from_node == 0);
    w->code = code;
    waiting_remove(c, w);
    event_set(&w->settled);
}

static struct waiting *find(struct consensus *c, uint64_t from, uint64_t id)
{
    struct waiting *w;
    TAILQ_FOREACH (w, &c->waitings, link)
        if (w->id == id && w->from_node == from)
            return w;
    return NULL;
}

static void answer(struct consensus *c, uint64_t node, bool is_barrier,
                   const struct forward *forward)
{
    struct writer w = {0};
    message_encode_forward(is_barrier ? MESSAGE_BARRIER_ANSWER : MESSAGE_SUBMIT_ANSWER,
                           forward, &w);
    consensus_send(c, node, &w);
    writer_done(&w);
}

static void refuse(struct consensus *c, struct waiting *w)
{
    struct forward forward = {.process = w->process, .id = w->id};
    answer(c, w->from_node, w->is_barrier, &forward);
    waiting_remove(c, w);
}

/* --- the leader --- */

static void applied_done(struct raft_apply *req, int status, void *result)
{
    (void)status, (void)result; /* what counts is what fsm_apply sees */
    raft_free(req);
}

static bool is_batched(const struct waiting *w)
{
    return w->state == WAITING_QUEUED && !w->is_barrier;
}

/* The index of one that stands in the log now. */
static void take_index(struct consensus *c, struct waiting *w, uint64_t index)
{
    w->command.base = NULL; /* libraft's */
    w->state = WAITING_INDEX;
    w->index = index;
    if (w->from_node == 0)
        return;
    struct forward forward = {
        .process = w->process, .id = w->id, .accepted = true, .index = index};
    answer(c, w->from_node, false, &forward);
    waiting_remove(c, w);
}

static async void run_batch(struct consensus *c)
{
    struct raft_buffer bufs[CONSENSUS_BATCH_MAX];
    struct waiting *batch[CONSENSUS_BATCH_MAX], *w;
    uint64_t bytes = 0;
    unsigned count = 0;
    TAILQ_FOREACH (w, &c->waitings, link) {
        if (!is_batched(w))
            continue;
        bytes += w->command.len;
        if (count == CONSENSUS_BATCH_MAX || bytes > BATCH_BYTES + COMMAND_HEAD_BYTES)
            break;
        bufs[count] = w->command;
        batch[count++] = w;
    }
    if (count == 0)
        return;
    struct raft_apply *req = raft_calloc(1, sizeof *req);
    int rv = raft_apply(&c->raft, req, bufs, count, applied_done);
    assert(rv == 0); /* it leads, and memory does not fail */
    for (unsigned i = 0; i < count; i++)
        take_index(c, batch[i], req->index + i);
    c->look_due = true;
    consensus_settle(c);
}

static void barrier_done(struct raft_barrier *req, int status)
{
    struct barrier_round *round = container_of(req, struct barrier_round, barrier);
    struct consensus *c = round->consensus;
    for (uint32_t i = 0; i < round->count && !c->failed; i++) {
        struct forward forward = {.process = round->who[i].process,
                                  .id = round->who[i].id,
                                  .accepted = status == 0,
                                  .index = req->index};
        if (round->who[i].node != 0) {
            answer(c, round->who[i].node, true, &forward);
            continue;
        }
        struct waiting *w = find(c, 0, round->who[i].id);
        if (w != NULL && status == 0)
            settle(c, w, 0); /* all before it are applied */
        else if (w != NULL)
            w->state = WAITING_QUEUED;
    }
    c->look_due = true;
    raft_free(round);
}

static bool is_queued_barrier(const struct waiting *w)
{
    return w->state == WAITING_QUEUED && w->is_barrier;
}

static async void run_barriers(struct consensus *c)
{
    struct waiting *w, *next;
    uint32_t count = 0;
    TAILQ_FOREACH (w, &c->waitings, link)
        count += is_queued_barrier(w);
    if (count == 0)
        return;
    struct barrier_round *round =
        raft_calloc(1, sizeof *round + count * sizeof round->who[0]);
    round->consensus = c;
    TAILQ_FOREACH_SAFE (w, &c->waitings, link, next) {
        if (!is_queued_barrier(w))
            continue;
        round->who[round->count].node = w->from_node;
        round->who[round->count].process = w->process;
        round->who[round->count++].id = w->id;
        w->state = WAITING_SENT;
        w->sent_to = c->options.node;
        if (w->from_node != 0)
            waiting_remove(c, w);
    }
    int rv = raft_barrier(&c->raft, &round->barrier, barrier_done);
    assert(rv == 0);
    consensus_settle(c);
}

/* --- the others --- */

static void send_to(struct consensus *c, struct waiting *w, uint64_t leader)
{
    struct writer out = {0};
    struct forward forward = {.process = c->process, .id = w->id};
    if (!w->is_barrier) {
        forward.bytes = (uint8_t *)w->command.base + COMMAND_HEAD_BYTES;
        forward.len = w->command.len - COMMAND_HEAD_BYTES;
    }
    message_encode_forward(w->is_barrier ? MESSAGE_BARRIER : MESSAGE_SUBMIT, &forward,
                           &out);
    consensus_send(c, leader, &out);
    writer_done(&out);
    w->state = WAITING_SENT;
    w->was_sent = true;
    w->sent_to = leader;
    w->sent_term = c->raft.current_term;
}

static void run_follower(struct consensus *c)
{
    struct waiting *w, *next;
    uint64_t leader = consensus_leader(c);
    TAILQ_FOREACH_SAFE (w, &c->waitings, link, next) {
        if (w->state != WAITING_QUEUED)
            continue;
        if (w->from_node != 0)
            refuse(c, w);
        else if (leader != 0 && leader != c->options.node &&
                 now_ns(c) >= w->not_before_ns)
            send_to(c, w, leader);
    }
}

async void submit_run(struct consensus *c)
{
    if (c->raft.state != RAFT_LEADER) {
        run_follower(c);
        return;
    }
    if (c->raft.transfer == NULL)
        run_batch(c);
    if (!c->failed && c->raft.state == RAFT_LEADER && c->raft.transfer == NULL)
        run_barriers(c);
}

/* In the log a command that nobody can carry out would be the end of all nodes. */
static bool is_sound(struct consensus *c, uint64_t from, const struct message *message)
{
    const struct consensus_machine *machine = &c->options.machine;
    const struct forward *forward = &message->forward;
    if (message->kind == MESSAGE_BARRIER || machine->check == NULL)
        return true;
    int rc = machine->check(machine->arg, forward->bytes, forward->len);
    if (rc != 0)
        log_warning(c->loop, "consensus: a command from node %llu: %s",
                    (unsigned long long)from, err_text(rc));
    return rc == 0;
}

/* A leader was asked. */
static void take_forwarded(struct consensus *c, uint64_t from,
                           const struct message *message)
{
    const struct forward *forward = &message->forward;
    if (!is_sound(c, from, message))
        return; /* as if it was lost */
    struct waiting *w = calloc(1, sizeof *w);
    struct writer command = {0};
    if (w == NULL || c->waiting_count >= CONSENSUS_WAITING_MAX ||
        c->waiting_bytes + forward->len > CONSENSUS_WAITING_BYTES_MAX) {
        free(w);
        return; /* as if the message was lost */
    }
    w->from_node = from;
    w->process = forward->process;
    w->id = forward->id;
    w->is_barrier = message->kind == MESSAGE_BARRIER;
    w->deadline_ns = now_ns(c) + c->options.tuning.wait_ms * NS_PER_MS;
    if (!w->is_barrier) {
        command_write(&command, (struct origin){from, forward->process, forward->id},
                      forward->bytes, forward->len);
        if (command.bad) {
            writer_done(&command);
            free(w);
            return;
        }
        w->command = (struct raft_buffer){.base = command.bytes, .len = command.len};
        w->bytes = forward->len;
    }
    TAILQ_INSERT_TAIL(&c->waitings, w, link);
    c->waiting_count++;
    c->waiting_bytes += w->bytes;
}

void submit_forwarded(struct consensus *c, uint64_t from, const struct message *message)
{
    const struct forward *forward = &message->forward;
    c->look_due = true;
    if (message->kind == MESSAGE_SUBMIT || message->kind == MESSAGE_BARRIER) {
        take_forwarded(c, from, message);
        return;
    }
    struct waiting *w = forward->process == c->process ? find(c, 0, forward->id) : NULL;
    bool is_barrier = message->kind == MESSAGE_BARRIER_ANSWER;
    if (w == NULL || w->state != WAITING_SENT || w->sent_to != from ||
        w->is_barrier != is_barrier)
        return;
    if (forward->accepted) {
        w->state = WAITING_INDEX;
        w->index = forward->index;
    } else {
        w->state = WAITING_QUEUED;
        w->not_before_ns = now_ns(c) + RETRY_MS * NS_PER_MS;
    }
    submit_look(c);
}

/* --- settling --- */

void submit_applied(struct consensus *c, const struct origin *origin,
                    struct writer *answer_bytes)
{
    if (origin->node != c->options.node || origin->process != c->process)
        return;
    struct waiting *w = find(c, 0, origin->id);
    if (w == NULL || w->is_barrier)
        return;
    *w->answer = *answer_bytes;
    *answer_bytes = (struct writer){0};
    settle(c, w, w->answer->bad ? -PLX_EUNKNOWN : 0);
}

static int outcome_of(const struct waiting *w)
{
    if (w->is_barrier)
        return -PLX_ENOLEADER;
    return w->was_sent || w->state == WAITING_INDEX ? -PLX_EUNKNOWN : -PLX_ENOLEADER;
}

/* Whom it was sent to leads no more, and may never answer; somebody else can be asked. */
static bool is_orphaned(const struct consensus *c, const struct waiting *w)
{
    return w->state == WAITING_SENT && w->sent_to != c->options.node &&
           w->sent_term != c->raft.current_term && consensus_leader(c) != 0;
}

static void look_at(struct consensus *c, struct waiting *w, bool is_alone)
{
    bool is_passed = w->state == WAITING_INDEX && c->applied >= w->index;
    bool is_late = now_ns(c) >= w->deadline_ns;
    if (is_passed && w->is_barrier)
        settle(c, w, 0);
    else if (is_passed && (w->was_sent || w->index <= c->decoded_to))
        settle(c, w, -PLX_EUNKNOWN);
    else if (is_passed) /* something else stands there, and this was nowhere else */
        settle(c, w, -PLX_ENOLEADER);
    else if (is_late && w->from_node != 0)
        waiting_remove(c, w);
    else if (is_late && !is_alone)
        settle(c, w, outcome_of(w));
    else if (is_orphaned(c, w) && w->is_barrier)
        w->state = WAITING_QUEUED;
    else if (is_orphaned(c, w))
        settle(c, w, -PLX_EUNKNOWN);
}

void submit_look(struct consensus *c)
{
    struct waiting *w, *next;
    /* It waits for nobody but its own storage, which answers or fails. */
    bool is_alone = c->raft.state == RAFT_LEADER && consensus_is_only_voter(c);
    TAILQ_FOREACH_SAFE (w, &c->waitings, link, next)
        look_at(c, w, is_alone);
}

void submit_end_all(struct consensus *c, int code)
{
    struct waiting *w;
    while ((w = TAILQ_FIRST(&c->waitings)) != NULL) {
        if (w->from_node != 0)
            waiting_remove(c, w);
        else
            settle(c, w, code);
    }
}

/* --- for callers --- */

/* Why nothing more is taken; 0: it is. */
static int refusal(const struct consensus *c)
{
    if (c->failed)
        return -PLX_EFAILED;
    if (c->closing)
        return -PLX_ECANCELLED;
    return c->waiting_count >= CONSENSUS_WAITING_MAX ? -PLX_ELIMIT : 0;
}

static async int wait_for(struct consensus *c, struct waiting *w)
{
    w->deadline_ns = now_ns(c) + c->options.tuning.wait_ms * NS_PER_MS;
    event_init(&w->settled);
    TAILQ_INSERT_TAIL(&c->waitings, w, link);
    c->waiting_count++;
    c->look_due = true;
    consensus_wake(c);
    consensus_enter(c);
    event_wait(&w->settled);
    consensus_leave(c);
    return w->code;
}

async int consensus_submit(struct consensus *c, const void *bytes, size_t len,
                           struct writer *ret_answer)
{
    struct writer command = {0}, answer_bytes = {0};
    int rc = len > CONSENSUS_COMMAND_MAX ? -EMSGSIZE : refusal(c);
    if (rc != 0)
        return rc;
    struct waiting w = {.id = ++c->next_id, .answer = &answer_bytes};
    command_write(&command, (struct origin){c->options.node, c->process, w.id}, bytes,
                  len);
    if (command.bad) {
        writer_done(&command);
        return -ENOMEM;
    }
    w.command = (struct raft_buffer){.base = command.bytes, .len = command.len};
    rc = wait_for(c, &w);
    if (rc == 0) {
        writer_done(ret_answer);
        *ret_answer = answer_bytes;
    } else {
        writer_done(&answer_bytes);
    }
    return rc;
}

async int consensus_barrier(struct consensus *c)
{
    int rc = refusal(c);
    if (rc != 0)
        return rc;
    if (consensus_is_leader(c) && consensus_is_only_voter(c))
        return 0; /* what it commits it has applied, and nobody else commits anything */
    struct waiting w = {.id = ++c->next_id, .is_barrier = true};
    return wait_for(c, &w);
}
