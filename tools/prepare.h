/* SPDX-License-Identifier: Apache-2.0 */
/* Makes a folder, or a block device, a node of a cluster; its daemon is started later. */
#ifndef PARALLAX_TOOLS_PREPARE_H
#define PARALLAX_TOOLS_PREPARE_H

#include "runtime/runtime.h"
#include "tools/directory.h"

struct prepare_options {
    struct loop *loop;
    const struct directory *dir;
    const char *listen;      /* "HOST:PORT" */
    const char *domain;      /* NULL: its own */
    uint64_t capacity_bytes; /* of a new store; 0: as directory_capacity says */
    /* To join: */
    const char *contact; /* a node's "HOST:PORT" */
    const char *token;   /* "-": a line of standard input */
    bool is_witness;
};

/* The first node of a cluster: of a new store, or of one that is a cluster of one. */
async int prepare_init(const struct prepare_options *options, struct error *err);
/* A further one. May be repeated with the same token after whatever went wrong. */
async int prepare_join(const struct prepare_options *options, struct error *err);

/* Shows where the nodes are, as the folder has it, after `count` of it have been changed
 * to what `changes` say ("NODE=HOST:PORT", at most ADDRESSES_MAX). */
int prepare_addresses(const struct directory *dir, char *const *changes, uint32_t count,
                      struct error *err);

/* Could a daemon listen there? */
async int prepare_try_address(const char *text, struct error *err);

/* Makes the store of an empty folder; *ret_made false: there is one. capacity_bytes 0:
 * as directory_capacity says. */
struct host_options;
async int prepare_store(const struct directory *dir, struct loop *loop,
                        const struct host_options *options, bool *ret_made,
                        struct error *err);

#endif
