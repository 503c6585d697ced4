/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes of membership, and handing leadership over: things for the leader.
 *
 * Happy path: a change waits until the leader's first entry of its term is committed
 * (one made before that could be forgotten by a later leader, and two half-made ones need
 * not agree on who is a majority), goes into the log, and ends when it is committed.
 *
 * What can fail: leadership is lost first; then whether it was carried out is seen from
 * the members. A node that is to vote does not catch up; then it stays what it was.
 *
 * A leader never takes its own vote away. libraft would let the one voter that is left
 * lead in the same term.
 */
#include "replication/raft_internal.h"

static int code_of(int rv)
{
    switch (rv) {
    case 0:
    case RAFT_BADROLE: /* it has that role */
        return 0;
    case RAFT_DUPLICATEID:
    case RAFT_DUPLICATEADDRESS:
        return -PLX_EEXISTS;
    case RAFT_BADID:
    case RAFT_NOTFOUND:
        return -PLX_EMISSING;
    case RAFT_CANTCHANGE:
        return -PLX_EBUSY;
    case RAFT_NOCONNECTION:
        return -ETIMEDOUT;
    default: /* RAFT_NOTLEADER, RAFT_LEADERSHIPLOST */
        return -PLX_ENOLEADER;
    }
}

static void control_settle(struct consensus *c, struct control *control, int code)
{
    TAILQ_REMOVE(&c->controls, control, link);
    if (c->changing == control)
        c->changing = NULL;
    if (c->transferring == control)
        c->transferring = NULL;
    control->code = code;
    event_set(&control->settled);
}

static void change_done(struct raft_change *change, int status)
{
    struct consensus *c = container_of(change, struct consensus, change);
    struct control *control = c->changing;
    if (control != NULL)
        control_settle(c, control, code_of(status));
}

static void transfer_done(struct raft_transfer *transfer)
{
    (void)transfer; /* whether it has worked is seen from who leads */
}

static int change_begin(struct consensus *c, struct control *control)
{
    char address[RAFT_ADDRESS_MAX];
    consensus_address(control->node, address);
    if (c->changing != NULL)
        return RAFT_CANTCHANGE;
    switch (control->kind) {
    case CONTROL_ADD:
        return raft_add(&c->raft, &c->change, control->node, address, change_done);
    case CONTROL_ROLE:
        return raft_assign(&c->raft, &c->change, control->node, control->role,
                           change_done);
    default:
        return raft_remove(&c->raft, &c->change, control->node, change_done);
    }
}

/* What is refused before libraft hears of it. */
static int refusal(const struct consensus *c, const struct control *control)
{
    bool takes_vote =
        control->kind == CONTROL_REMOVE ||
        (control->kind == CONTROL_ROLE && control->role != (int)CONSENSUS_VOTER);
    if (takes_vote && control->node == c->options.node)
        return -PLX_EPRECONDITION;
    if (control->kind == CONTROL_TRANSFER && c->transferring != NULL)
        return -PLX_EBUSY;
    if (control->kind == CONTROL_ADD && c->raft.configuration.n >= CONSENSUS_MEMBERS_MAX)
        return -PLX_ELIMIT;
    return 0;
}

static async void begin(struct consensus *c, struct control *control)
{
    int code = refusal(c, control);
    if (code == 0 && control->kind == CONTROL_TRANSFER) {
        code = code_of(raft_transfer(&c->raft, &c->transfer, control->node,
                                     transfer_done));
        if (code == 0) {
            c->transferring = control;
            control->node = c->transfer.id;
            control->deadline_ns = loop_now_ns(c->loop) +
                                   4 * RAFT_ELECTION_MS * NS_PER_MS;
        }
    } else if (code == 0) {
        int rv = change_begin(c, control);
        code = code_of(rv);
        if (rv == 0)
            c->changing = control;
    }
    control->is_begun = true;
    if (c->changing != control && c->transferring != control)
        control_settle(c, control, code);
    else
        consensus_settle(c);
}

static void look_at_transfer(struct consensus *c, struct control *control)
{
    if (consensus_leader(c) == control->node)
        control_settle(c, control, 0);
    else if (loop_now_ns(c->loop) >= control->deadline_ns)
        control_settle(c, control, -ETIMEDOUT);
}

/* The next that can begin. */
static struct control *next_ready(const struct consensus *c)
{
    struct control *control;
    TAILQ_FOREACH (control, &c->controls, link)
        if (!control->is_begun)
            return c->ready_term == c->raft.current_term ? control : NULL;
    return NULL;
}

async void control_run(struct consensus *c)
{
    struct control *control, *next;
    if (c->transferring != NULL)
        look_at_transfer(c, c->transferring);
    if (c->raft.state != RAFT_LEADER) {
        TAILQ_FOREACH_SAFE (control, &c->controls, link, next)
            if (!control->is_begun)
                control_settle(c, control, -PLX_ENOLEADER);
        return;
    }
    while (!c->failed && c->raft.state == RAFT_LEADER &&
           (control = next_ready(c)) != NULL)
        begin(c, control);
}

void control_drop_transfer(struct consensus *c)
{
    if (c->raft.state != RAFT_LEADER)
        c->raft.transfer = NULL;
}

void control_end_all(struct consensus *c, int code)
{
    struct control *control;
    while ((control = TAILQ_FIRST(&c->controls)) != NULL)
        control_settle(c, control, code);
}

/* --- for callers --- */

static async int wait_for(struct consensus *c, struct control *control)
{
    if (c->failed || c->closing)
        return c->failed ? -PLX_EFAILED : -PLX_ECANCELLED;
    event_init(&control->settled);
    TAILQ_INSERT_TAIL(&c->controls, control, link);
    c->look_due = true;
    consensus_wake(c);
    consensus_enter(c);
    event_wait(&control->settled);
    consensus_leave(c);
    return control->code;
}

async int consensus_add(struct consensus *c, uint64_t node)
{
    assert(node != 0 && node <= RAFT_NUMBER_MAX);
    struct control control = {.kind = CONTROL_ADD, .node = node};
    return wait_for(c, &control);
}

async int consensus_set_role(struct consensus *c, uint64_t node, enum consensus_role role)
{
    struct control control = {.kind = CONTROL_ROLE, .node = node, .role = (int)role};
    assert(node != 0);
    return wait_for(c, &control);
}

async int consensus_remove(struct consensus *c, uint64_t node)
{
    struct control control = {.kind = CONTROL_REMOVE, .node = node};
    assert(node != 0);
    return wait_for(c, &control);
}

async int consensus_transfer(struct consensus *c, uint64_t node)
{
    struct control control = {.kind = CONTROL_TRANSFER, .node = node};
    return wait_for(c, &control);
}

uint32_t consensus_members(const struct consensus *c, struct consensus_member *ret,
                           uint32_t max)
{
    const struct config_at *config = raft_store_config(&c->store);
    uint32_t count = config == NULL ? 0 : config->members.count;
    for (uint32_t i = 0; i < count && i < max; i++)
        ret[i] = config->members.members[i];
    return count;
}
