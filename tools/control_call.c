/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request at work. In a cluster of many it first learns what the others have agreed
 * on, so that what one node has answered is known to whichever is asked next; and what is
 * about a disk goes to the node that owns it.
 *
 * What can fail: without a majority nothing new can be learnt. What only reads says what
 * it knows, and that it may be old; what changes something is refused at once.
 */
#include <stdio.h>

#include "replication/membership.h"
#include "tools/control_internal.h"
#include "tools/control_wire.h"

/* --- answers --- */

void control_emit(struct control_sink *sink, const char *key, json_t *value)
{
    json_t *line = json_pack("{s:o}", key, value);
    char *text = line != NULL ? json_dumps(line, JSON_COMPACT) : NULL;
    json_decref(line);
    if (text == NULL) {
        sink->emit(sink, NULL, 0);
        return;
    }
    size_t len = strlen(text);
    assert(len < CONTROL_LINE_BYTES);
    text[len] = '\n'; /* in the place of the NUL */
    sink->emit(sink, text, len + 1);
    free(text);
}

void control_emit_error(struct control_sink *sink, int code, const char *text)
{
    json_t *safe = json_string(text);
    if (safe == NULL) /* not UTF-8: a path, say */
        safe = json_string(err_text(code));
    control_emit(sink, "error",
                 json_pack("{s:s, s:o}", "code", err_name(code), "text", safe));
}

async int control_send_item(struct control_call *call, json_t *item)
{
    struct control_sink *sink = call->sink;
    while (!sink->is_dead && sink->pending(sink) > CONTROL_OUT_BYTES)
        waitlist_wait(&sink->drained);
    if (item == NULL)
        return -ENOMEM;
    if (sink->is_dead) {
        json_decref(item);
        return -PLX_ECANCELLED;
    }
    control_emit(sink, "item", item);
    return 0;
}

void control_offer_item(struct control_call *call, json_t *item)
{
    struct control_sink *sink = call->sink;
    if (item == NULL || sink->is_dead || sink->pending(sink) > CONTROL_OUT_BYTES)
        json_decref(item);
    else
        control_emit(sink, "item", item);
}

void control_offer_progress(struct control_call *call, uint64_t done, uint64_t total)
{
    struct control_sink *sink = call->sink;
    if (!sink->is_dead && sink->pending(sink) == 0)
        control_emit(sink, "progress",
                     json_pack("{s:I, s:I}", "done_bytes", (json_int_t)done,
                               "total_bytes", (json_int_t)total));
}

bool control_is_abandoned(const struct control_call *call)
{
    return call->sink->is_dead;
}

const char *control_import(const struct control_call *call)
{
    return call->sink->import;
}

int control_set_import(struct control_call *call, const char *name)
{
    char *copy = name != NULL ? strdup(name) : NULL;
    if (name != NULL && copy == NULL)
        return -ENOMEM;
    free(call->sink->import);
    call->sink->import = copy;
    return 0;
}

/* --- at work --- */

#define NO_LEADER_NS   (2 * NS_PER_S)
#define LEADER_LOOK_NS (50 * NS_PER_MS)

/* For so long that there is none to be expected. An election takes less. */
static async bool nobody_leads(const struct control_call *call)
{
    struct loop *loop = call->services->loop;
    const struct cluster *cluster = membership_cluster(call->services->membership);
    uint64_t begun_ns = loop_now_ns(loop);
    while (consensus_leader(cluster_consensus(cluster)) == 0) {
        if (loop_now_ns(loop) - begun_ns >= NO_LEADER_NS)
            return true;
        task_sleep_ns(LEADER_LOOK_NS);
    }
    return false;
}

/* Learns what is agreed on, as far as the operation needs it. What only reads does not
 * wait for long: it can say what was known last. */
static async int agree(struct control_call *call, const struct control_op *op,
                       struct error *err)
{
    if (call->services->membership == NULL || op->scope == CONTROL_LOCAL)
        return 0;
    int r = op->scope == CONTROL_READS && nobody_leads(call)
                ? -PLX_ENOLEADER
                : cluster_barrier(membership_cluster(call->services->membership));
    call->is_stale = r < 0;
    if (r == 0 || op->scope == CONTROL_READS)
        return 0;
    return err_set(
        err, r,
        "no majority of the cluster's nodes is in reach of this one, so nothing "
        "can be changed; disks that are attached go on");
}

static void answer(struct control_call *call, int code, const struct error *err)
{
    json_t *result = take(call->result);
    if (call->sink->is_dead || code < 0) {
        json_decref(result);
        if (!call->sink->is_dead)
            control_emit_error(call->sink, code, err->text);
        return;
    }
    if (result == NULL)
        result = json_object();
    if (call->is_stale)
        json_object_set_new(result, "stale",
                            json_string("no majority of the cluster's nodes is in reach: "
                                        "this is what was known last"));
    control_emit(call->sink, "ok", result);
}

async void control_call_run(struct control_call *call, const struct control_op *op)
{
    struct error err = {0};
    bool is_answered = false;
    int r = agree(call, op, &err);
    if (r == 0)
        r = control_hand_on(call, op, &is_answered, &err);
    if (r == 0 && !is_answered)
        r = op->run(call, &err);
    if (r < 0)
        control_add_hint(call, r, &err);
    if (!is_answered)
        answer(call, r, &err);
    json_decref(take(call->request));
}
