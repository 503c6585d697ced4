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

/* Sends {"item": ...} ahead of the reply; takes over item, which may be NULL when memory
 * was out. Waits for a slow reader; -PLX_ECANCELLED: it has gone. */
async int control_send_item(struct control_call *call, json_t *item);
/* The same without waiting, for callbacks that must not; dropped when the reader is
 * slow. */
void control_offer_item(struct control_call *call, json_t *item);
/* {"progress": ...}; dropped when the reader has not taken the one before. */
void control_offer_progress(struct control_call *call, uint64_t done, uint64_t total);

/* The import this connection has begun and has to publish, or NULL. Taken when the
 * connection ends, and discarded. set copies the name; NULL forgets. */
const char *control_import(const struct control_call *call);
int control_set_import(struct control_call *call, const char *name);

/* Retries while the disk still has a client that is about to be gone. */
async int control_import_discard(const struct control_services *services,
                                 const char *name, struct error *err);

#endif
