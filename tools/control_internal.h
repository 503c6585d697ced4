/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the control server share:
 *
 *   control_server.c   connections and their lines
 *   control_node.c     requests that other nodes hand on, and handing them on
 *   control_call.c     one request at work, whoever asked
 *   control_ops.c and the files beside it: what can be asked for
 */
#ifndef PARALLAX_TOOLS_CONTROL_INTERNAL_H
#define PARALLAX_TOOLS_CONTROL_INTERNAL_H

#include <jansson.h>

#include "tools/control_server.h"

/* Where the answer to a request goes: embedded in a connection, or in what stands for the
 * one of another node. */
struct control_sink {
    /* Lines, each with its newline. NULL: memory was out; the answer is worth nothing. */
    void (*emit)(struct control_sink *sink, const char *lines, size_t len);
    size_t (*pending)(const struct control_sink *sink); /* bytes not taken yet */
    bool is_dead;            /* nobody waits for the answer any more */
    struct waitlist drained; /* less is pending, or it is dead */
    char *import;            /* see control_import */
};

/* One request at work. */
struct control_call {
    const struct control_services *services;
    struct control_sink *sink;
    json_t *request; /* an object, without its "op" */
    json_t *result;  /* what stands behind "ok"; NULL: {} */
    bool is_from_node; /* another node has handed it on: it goes no further */
    bool is_stale;     /* the state may be old: no majority was in reach */
};

/* What a request needs of the other nodes. */
enum control_scope {
    CONTROL_LOCAL,   /* nothing: it is about this daemon */
    CONTROL_READS,   /* the state as it is now; an old one is better than none */
    CONTROL_CHANGES, /* a majority */
    CONTROL_THERE,   /* the same; a node carries it out that is named, not an owner */
};

/* An operation: 0, or a negative code and its text. Runs on a task. */
struct control_op {
    const char *name;
    async int (*run)(struct control_call *call, struct error *err);
    enum control_scope scope;
    /* The argument that names a disk: the node that owns it carries the request out; of
     * CONTROL_THERE, the one that names that node, which may be left out. NULL: any node
     * can. */
    const char *key;
};
/* NULL: no such operation. */
const struct control_op *control_op_find(const char *name);

/* control_call.c. Carries a request out and answers it; the request is taken over. */
async void control_call_run(struct control_call *call, const struct control_op *op);
void control_emit(struct control_sink *sink, const char *key, json_t *value);
void control_emit_error(struct control_sink *sink, int code, const char *text);

/* control_node.c. If another node owns the disk, or is named: has it carried out there;
 * *ret_answered then, unless it fails. */
async int control_hand_on(struct control_call *call, const struct control_op *op,
                          bool *ret_answered, struct error *err);
struct control_nodes;
struct control_nodes *control_nodes_create(const struct control_services *services);
/* Ends what waits; -PLX_ECANCELLED for what comes. */
async void control_nodes_stop(struct control_nodes *nodes);
void control_nodes_destroy(struct control_nodes *nodes); /* NULL is allowed */
void control_nodes_serve(struct control_nodes *nodes, struct rpc_request *request);

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
async int op_node_list(struct control_call *call, struct error *err);
async int op_node_reports(struct control_call *call, struct error *err);
/* -EOPNOTSUPP: the daemon is of no cluster that others can join. */
int control_need_cluster(const struct control_call *call, struct error *err);
async int op_node_drain(struct control_call *call, struct error *err);
async int op_node_remove(struct control_call *call, struct error *err);
async int op_pool_list(struct control_call *call, struct error *err);
async int op_pool_set(struct control_call *call, struct error *err);
async int op_cluster_token(struct control_call *call, struct error *err);
async int op_disk_owner(struct control_call *call, struct error *err);
async int op_disk_break(struct control_call *call, struct error *err);
async int op_disk_migrate(struct control_call *call, struct error *err);
/* A node by its number or address; NULL: there is none, and the error says so. */
const struct cluster_node *control_find_node(const struct control_call *call,
                                             const char *name, struct error *err);
/* What `status` says of the cluster; NULL: it is one of one. ret_health: "" or why data
 * has fewer copies than it should, or cannot be reached, for people. */
json_t *control_cluster_json(const struct control_call *call, char *ret_health,
                             size_t health_len);

/* control_util.c. A request of one line, which tasks can work on; NULL: it is no JSON
 * object, or too deep. To be called on the loop's own stack: the parser recurses. */
json_t *control_parse(const char *line, size_t len);
/* Fills the variables from what is left of the request; keys nobody asked
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
