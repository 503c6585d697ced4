/* SPDX-License-Identifier: Apache-2.0 */
/* What control_server.c (lines, connections) and control_ops.c (what is asked for) need
 * from each other. */
#ifndef PARALLAX_TOOLS_CONTROL_INTERNAL_H
#define PARALLAX_TOOLS_CONTROL_INTERNAL_H

#include <jansson.h>

#include "tools/control_server.h"

struct connection;

/* One request at work. */
struct control_call {
    const struct control_services *services;
    struct connection *connection;
    json_t *request; /* an object, without its "op" */
    json_t *result;  /* what stands behind "ok"; NULL: {} */
};

/* An operation: 0, or a negative code and its text. Runs on a task. */
struct control_op {
    const char *name;
    async int (*run)(struct control_call *call, struct error *err);
};
/* NULL: no such operation. */
const struct control_op *control_op_find(const char *name);

/* The operations that are not in control_ops.c itself; its table names them all. */
async int op_status(struct control_call *call, struct error *err);
async int op_check(struct control_call *call, struct error *err);
async int op_scrub_start(struct control_call *call, struct error *err);
async int op_scrub_pause(struct control_call *call, struct error *err);
async int op_scrub_status(struct control_call *call, struct error *err);
async int op_trash_list(struct control_call *call, struct error *err);
async int op_trash_restore(struct control_call *call, struct error *err);
async int op_trash_empty(struct control_call *call, struct error *err);
async int op_trash_keep(struct control_call *call, struct error *err);
async int op_snapshot_list(struct control_call *call, struct error *err);
async int op_snapshot_create(struct control_call *call, struct error *err);
async int op_snapshot_rollback(struct control_call *call, struct error *err);
async int op_snapshot_remove(struct control_call *call, struct error *err);
async int op_snapshot_diff(struct control_call *call, struct error *err);
async int op_schedule_get(struct control_call *call, struct error *err);
async int op_schedule_set(struct control_call *call, struct error *err);
async int op_clone(struct control_call *call, struct error *err);

/* control_util.c. Fills the variables from what is left of the request; keys nobody asked
 * for are an error, so that a misspelt option is not silently ignored. */
int control_unpack(struct control_call *call, struct error *err, const char *format, ...);
/* Bytes and counts are far below 2^63. */
json_t *control_number(uint64_t n);
/* "2026-01-31T12:00:00Z", or null for no time. */
json_t *control_time(uint64_t wall_ns);
json_t *control_string_or_null(const char *text);
json_t *control_uid(struct uid uid);

/* control_hints.c. Adds what to do about it to an error's text: the trash may hold what
 * is missing, and a full store what could be freed. */
void control_add_hint(const struct control_call *call, int code, struct error *err);
/* What could be freed; one line. */
void control_describe_room(struct host *host, char *ret, size_t cap);

/* Sends {"item": ...} ahead of the reply; takes over item, which may be NULL when memory
 * was out. Waits for a slow reader; -PLX_ECANCELLED: it has gone. */
async int control_send_item(struct control_call *call, json_t *item);
/* The same without waiting, for callbacks that must not; dropped when the reader is
 * slow. */
void control_offer_item(struct control_call *call, json_t *item);
/* {"progress": ...}; dropped when the reader has not taken the one before. */
void control_offer_progress(struct control_call *call, uint64_t done, uint64_t total);

/* True if nobody waits for the answer any more. */
bool control_is_abandoned(const struct control_call *call);

/* The import this connection has begun and has to publish, or NULL. Taken when the
 * connection ends, and discarded. set copies the name; NULL forgets. */
const char *control_import(const struct control_call *call);
int control_set_import(struct control_call *call, const char *name);

/* Retries while the disk still has a client that is about to be gone. */
async int control_import_discard(const struct control_services *services,
                                 const char *name, struct error *err);

#endif
