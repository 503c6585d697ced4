/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Take-over, steps 2 and 3: stopping the extents and collecting what members have.
 *
 * Happy path: a task for each member stops all extents there, one after the other, and
 * walks their headers. As soon as there is enough of each extent (see is_enough) the
 * answers so far are the copies from which the plan decides.
 *
 * What can fail: a member is out of reach: its task asks again, until the others are
 * enough or time is up. The same if it answers that it cannot; but if no other is left
 * to hope for that is the end at once. A copy whose headers are damaged counts as an
 * answer, and as nothing else.
 *
 * A member that was declared lost counts as stopped, and has nothing; if that is so of
 * all members of an extent, what only it had is lost.
 *
 * Answers that come after that are dropped: a task may be stuck in a call to a dead node
 * for longer than anybody waits. So what the tasks work on belongs to all of them, and
 * the last one frees it.
 */
#include <stdio.h>

#include "replication/take_over_internal.h"

/* What a member has said of an extent. */
struct answer {
    bool is_there;
    bool is_lost; /* the member was declared lost: nothing will come of it */
    int refusal;  /* why the member cannot tell; 0: it has not said so */
    bool is_live; /* stopped by this take-over, not found by a restart scan */
    struct plan_copy copy;
};

struct collected {
    struct address extent;
    bool is_final, is_skipped;
    uint32_t length; /* if final */
    uint32_t member_count;
    uint64_t members[REPLICAS_MAX];
    struct answer answers[REPLICAS_MAX];
    uint64_t live_ns; /* when the first live answer came; 0: none has */
};

struct collection;

struct asker {
    struct task_call call;
    struct collection *collection;
    struct replica *member;
    bool is_here;
};

struct collection {
    struct loop *loop;
    uint64_t disk;
    struct take_over_plan facts; /* roll records and F, as they are found */
    struct plan_extent *extents; /* of facts */
    struct collected *collected;
    uint32_t count;
    struct asker *askers;
    uint32_t asker_count;
    uint32_t users;   /* tasks and the take-over */
    uint32_t here;    /* of these, tasks at this node's own store */
    bool is_closed;   /* nobody looks at it any more */
    struct waitlist changed;
};

static void collection_put(struct collection *collection)
{
    if (--collection->users > 0)
        return;
    free(collection->extents);
    free(collection->collected);
    free(collection->askers);
    free(collection);
}

/* --- headers --- */

struct scan {
    struct collection *collection;
    struct plan_copy *copy;
};

static void note_roll(struct take_over_plan *plan, const struct roll_entry *rolls,
                      uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t j = 0; j < plan->extent_count; j++) {
            struct plan_extent *extent = &plan->extents[j];
            if (!address_equal(extent->extent, rolls[i].extent))
                continue;
            extent->is_rolled = true;
            extent->rolled_number = max_u64(extent->rolled_number, rolls[i].last_number);
        }
    }
}

static int scan_header(void *arg, const struct header *head, const struct entry *entries,
                       const struct roll_entry *rolls)
{
    struct scan *scan = arg;
    struct plan_copy *copy = scan->copy;
    struct take_over_plan *facts = &scan->collection->facts;
    if (scan->collection->is_closed)
        return -PLX_ECANCELLED;
    if (head->disk != scan->collection->disk)
        return -PLX_EDAMAGED;
    facts->known_flushed = max_u64(facts->known_flushed, head->flushed);
    if (head->kind == HEADER_ROLL) {
        note_roll(facts, rolls, head->count);
        copy->end = head->block + 1;
        return 0;
    }
    if (copy->last != 0 && head->number != copy->last + 1)
        return -PLX_EDAMAGED;
    if (copy->last == 0)
        copy->first = head->number;
    copy->last = copy->end_number = head->number;
    copy->end = head->block + 1 + header_data_blocks(entries, head->count);
    return 0;
}

/* --- asking a member --- */

/* A planted bug: the one that was opened ahead last, as if it had to be empty. */
static bool is_passed_over(const struct collection *collection,
                           const struct collected *extent)
{
    return planted(PLANT_LAST_UNSTOPPED) &&
           extent == &collection->collected[collection->count - 1];
}

/* 0: it has answered; else it is out of reach, or cannot tell. */
static async int ask(struct asker *asker, const struct collected *extent,
                     struct answer *answer)
{
    struct replica *member = asker->member;
    struct plan_copy copy = {.node = member->node};
    struct scan scan = {.collection = asker->collection, .copy = &copy};
    uint32_t length = 0;
    bool restart_scanned = false;
    int rc = 0;
    if (!extent->is_final && !is_passed_over(asker->collection, extent))
        rc = member->ops->stop(member, extent->extent, &length, &restart_scanned);
    if (rc == 0 && asker->collection->is_closed) /* the member may be gone by now */
        rc = -PLX_ECANCELLED;
    if (rc != 0)
        return rc;
    if (extent->is_final ? extent->length > 0 : length > 0)
        rc = member->ops->walk_headers(member, extent->extent, scan_header, &scan, NULL);
    if (rc == -PLX_EDAMAGED || rc == -PLX_EMISSING || rc == -PLX_ENOTHERE) {
        copy.is_broken = true;
        rc = 0;
    }
    if (rc == 0)
        *answer = (struct answer){.is_there = true,
                                  .is_live = !restart_scanned && !copy.is_broken,
                                  .copy = copy};
    return rc;
}

static struct answer *answer_of(struct collected *extent, uint64_t node)
{
    for (uint32_t i = 0; i < extent->member_count; i++) {
        if (extent->members[i] == node)
            return &extent->answers[i];
    }
    return NULL;
}

/* True: it has answered for all extents it is a member of. */
static async bool ask_all(struct asker *asker)
{
    struct collection *collection = asker->collection;
    for (uint32_t i = 0; i < collection->count; i++) {
        struct collected *extent = &collection->collected[i];
        struct answer *answer = answer_of(extent, asker->member->node);
        struct answer got;
        if (answer == NULL || answer->is_there || extent->is_skipped)
            continue;
        int rc = collection->is_closed ? -PLX_ECANCELLED : ask(asker, extent, &got);
        if (collection->is_closed)
            return false;
        if (rc != 0) {
            answer->refusal = log_is_silence(rc) ? 0 : rc;
            return false;
        }
        *answer = got;
        if (got.is_live && extent->live_ns == 0)
            extent->live_ns = loop_now_ns(collection->loop);
        waitlist_wake_all(&collection->changed);
    }
    return true;
}

static void asker_main(struct task_call *call)
{
    struct asker *asker = container_of(call, struct asker, call);
    struct collection *collection = asker->collection;
    while (!collection->is_closed && !ask_all(asker) && !collection->is_closed) {
        waitlist_wake_all(&collection->changed); /* it may have refused */
        task_sleep_ns(TAKE_OVER_RETRY_NS);
    }
    collection->here -= asker->is_here;
    waitlist_wake_all(&collection->changed);
    collection_put(collection); /* before the waiters run */
}

/* --- enough? --- */

static bool answer_is_sound(const struct answer *answer)
{
    return answer->is_there && !answer->copy.is_broken;
}

/*
 * What was acknowledged is on every member. So one copy that was stopped live has all of
 * it, and no former owner gets anything acknowledged any more. A copy that a restart scan
 * found has what was flushed, if it is sound, but may have lost what was only
 * acknowledged, while others still have it.
 */
static bool is_enough(const struct collected *extent, uint64_t now_ns, uint64_t begun_ns)
{
    uint32_t there = 0, sound = 0;
    if (extent->is_skipped)
        return true;
    for (uint32_t i = 0; i < extent->member_count; i++) {
        const struct answer *answer = &extent->answers[i];
        there += answer->is_there || answer->is_lost;
        sound += answer_is_sound(answer);
        if (extent->is_final && answer_is_sound(answer) &&
            answer->copy.end >= extent->length)
            return true;
    }
    if (there == extent->member_count)
        return true;
    if (extent->is_final)
        return false;
    if (planted(PLANT_SCANNED_ENOUGH) && sound > 0)
        return true;
    if (extent->live_ns != 0)
        return now_ns - extent->live_ns >= TAKE_OVER_SHORT_NS;
    return sound >= 2 && now_ns - begun_ns >= TAKE_OVER_LONG_NS;
}

/* All that have not answered have said that they cannot. */
static int hopeless(const struct collected *extent)
{
    int refusal = 0;
    for (uint32_t i = 0; i < extent->member_count; i++) {
        const struct answer *answer = &extent->answers[i];
        bool is_missing = !answer->is_there && !answer->is_lost;
        if (is_missing && answer->refusal == 0)
            return 0;
        if (is_missing)
            refusal = answer->refusal;
    }
    return refusal;
}

static const struct collected *first_wanting(const struct collection *collection,
                                             uint64_t begun_ns)
{
    uint64_t now_ns = loop_now_ns(collection->loop);
    for (uint32_t i = 0; i < collection->count; i++) {
        if (!is_enough(&collection->collected[i], now_ns, begun_ns))
            return &collection->collected[i];
    }
    return NULL;
}

/* The members that have not answered, and why that matters. */
static void name_missing(const struct collected *extent, char *ret, size_t cap)
{
    char who[REPLICAS_MAX * 24] = "";
    uint32_t there = 0;
    size_t at = 0;
    for (uint32_t i = 0; i < extent->member_count; i++) {
        const struct answer *answer = &extent->answers[i];
        there += answer->is_there;
        if (!answer->is_there && !answer->is_lost)
            at += (size_t)snprintf(who + at, sizeof who - at, "%s%llu", at ? ", " : "",
                                   (unsigned long long)extent->members[i]);
    }
    bool may_lack = there > 0 && extent->live_ns == 0 && !extent->is_final;
    snprintf(ret, cap, "extent %llx: %s; out of reach: node %s",
             (unsigned long long)extent->extent.v,
             may_lack ? "the copies in reach were restarted and may have lost its end"
                      : "not enough copies are in reach",
             who);
}

static int say_who_is_missing(struct take_over *over, const struct collected *extent)
{
    char text[LOG_TEXT_MAX];
    name_missing(extent, text, sizeof text);
    return err_set(over->err, -EHOSTUNREACH, "%s", text);
}

/* Once it takes longer than it should. */
static void say_wait(struct take_over *over, const struct collected *extent,
                     uint64_t begun_ns, bool *is_said)
{
    char text[LOG_TEXT_MAX];
    if (*is_said || loop_now_ns(over->log->loop) - begun_ns < TAKE_OVER_SAY_NS)
        return;
    *is_said = true;
    name_missing(extent, text, sizeof text);
    log_warning(over->log->loop, "disk %llu: the take-over waits: %s",
                (unsigned long long)over->log->disk, text);
}

/* Somebody may be declared lost meanwhile. */
static void note_lost(struct take_over *over, struct collection *collection)
{
    const struct cluster_state *state = cluster_state(over->log->cluster);
    for (uint32_t i = 0; i < collection->count; i++) {
        struct collected *extent = &collection->collected[i];
        for (uint32_t j = 0; j < extent->member_count; j++) {
            const struct cluster_node *node =
                cluster_node_by_id(state, extent->members[j]);
            extent->answers[j].is_lost = (node == NULL || (node->flags & NODE_GONE)) &&
                                         !planted(PLANT_LOST_WANTED);
        }
    }
}

struct tick {
    struct timer timer;
    struct collection *collection;
};

static void tick_fired(struct timer *timer)
{
    struct tick *tick = container_of(timer, struct tick, timer);
    waitlist_wake_all(&tick->collection->changed);
    timer_start(tick->collection->loop, timer, TAKE_OVER_SHORT_NS);
}

static async int wait_for_enough(struct take_over *over, struct collection *collection)
{
    uint64_t begun_ns = loop_now_ns(collection->loop);
    struct tick tick = {.timer.fire = tick_fired, .collection = collection};
    const struct collected *wanting;
    bool is_said = false;
    int rc = 0;
    timer_start(collection->loop, &tick.timer, TAKE_OVER_SHORT_NS);
    note_lost(over, collection);
    while (rc == 0 && (wanting = first_wanting(collection, begun_ns)) != NULL) {
        say_wait(over, wanting, begun_ns, &is_said);
        rc = over->log->down != 0 ? over->log->down : hopeless(wanting);
        if (rc != 0)
            err_set(over->err, rc, "extent %llx: stopping or reading it failed: %s",
                    (unsigned long long)wanting->extent.v, err_text(rc));
        else if (loop_now_ns(collection->loop) - begun_ns >=
                 (log_is_ending(over->log) ? TAKE_OVER_SAY_NS : TAKE_OVER_WAIT_NS))
            rc = say_who_is_missing(over, wanting);
        else
            waitlist_wait(&collection->changed);
        log_look_at_state(over->log); /* is the lease still its own? */
        note_lost(over, collection);
    }
    timer_stop(collection->loop, &tick.timer);
    return rc;
}

/* --- the whole --- */

static void add_asker(struct collection *collection, struct replica *member,
                      bool is_here)
{
    for (uint32_t i = 0; i < collection->asker_count; i++) {
        if (collection->askers[i].member == member)
            return;
    }
    struct asker *asker = &collection->askers[collection->asker_count++];
    asker->collection = collection;
    asker->member = member;
    asker->is_here = is_here;
    collection->here += is_here;
}

static struct collection *collection_create(const struct take_over *over)
{
    const struct take_over_plan *plan = &over->plan;
    uint32_t count = plan->extent_count;
    struct collection *collection = calloc(1, sizeof *collection);
    if (collection == NULL)
        return NULL;
    collection->loop = over->log->loop;
    collection->disk = over->log->disk;
    collection->users = 1;
    collection->count = count;
    waitlist_init(&collection->changed);
    collection->extents = calloc(count + 1, sizeof *collection->extents);
    collection->collected = calloc(count + 1, sizeof *collection->collected);
    collection->askers = calloc((size_t)count * REPLICAS_MAX + 1,
                                sizeof *collection->askers);
    if (collection->extents == NULL || collection->collected == NULL ||
        collection->askers == NULL) {
        collection_put(collection);
        return NULL;
    }
    memcpy(collection->extents, plan->extents, count * sizeof *plan->extents);
    collection->facts = *plan;
    collection->facts.extents = collection->extents;
    collection->facts.cuts = NULL;
    return collection;
}

/* The members of each extent's write set, and a task for each of them. */
static void start_askers(struct take_over *over, struct collection *collection)
{
    struct tail_extent *tail = TAILQ_FIRST(&over->log->tails);
    for (uint32_t i = 0; i < collection->count; i++) {
        const struct plan_extent *extent = &over->extents[i];
        struct collected *to = &collection->collected[i];
        to->extent = extent->extent;
        to->is_final = extent->is_final;
        to->is_skipped = extent->is_skipped;
        to->length = extent->length;
        to->member_count = extent->member_count;
        for (uint32_t j = 0; j < extent->member_count; j++)
            to->members[j] = extent->copies[j].node;
        for (uint32_t j = 0; j < tail->member_count; j++)
            add_asker(collection, tail->members[j],
                      tail->members[j]->node == over->log->node);
        tail = TAILQ_NEXT(tail, link);
    }
    collection->users += collection->asker_count;
    for (uint32_t i = 0; i < collection->asker_count; i++) {
        collection->askers[i].call = (struct task_call){
            .main = asker_main, .name = "take-over", .system = true};
        task_start(collection->loop, &collection->askers[i].call);
    }
}

/* The answers become the copies that the plan looks at. */
static void take_answers(struct take_over *over, const struct collection *collection)
{
    over->plan.known_flushed = collection->facts.known_flushed;
    for (uint32_t i = 0; i < collection->count; i++) {
        struct plan_extent *extent = &over->extents[i];
        extent->is_rolled = collection->extents[i].is_rolled;
        extent->rolled_number = collection->extents[i].rolled_number;
        extent->copy_count = 0;
        uint32_t lost = 0;
        for (uint32_t j = 0; j < extent->member_count; j++) {
            const struct answer *answer = &collection->collected[i].answers[j];
            lost += answer->is_lost;
            if (answer->is_there && !answer->is_lost)
                extent->copies[extent->copy_count++] = answer->copy;
        }
        extent->member_count -= lost;
    }
}

async int take_over_collect(struct take_over *over)
{
    struct collection *collection = collection_create(over);
    if (collection == NULL)
        return -ENOMEM;
    start_askers(over, collection);
    int rc = wait_for_enough(over, collection);
    if (rc == 0)
        take_answers(over, collection);
    collection->is_closed = true;
    while (collection->here > 0)
        waitlist_wait(&collection->changed); /* that store may be closed behind us */
    collection_put(collection);
    return rc;
}
