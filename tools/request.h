/* SPDX-License-Identifier: Apache-2.0 */
/* What commands do with the daemon: ask, and print what it answers. */
#ifndef PARALLAX_TOOLS_REQUEST_H
#define PARALLAX_TOOLS_REQUEST_H

#include "tools/cli.h"
#include "tools/client.h"
#include "tools/table.h"

/* One request (taken over), for its effect. *ret_ok may be NULL. Returns EXIT_*; what
 * went wrong has been said. */
int request_run(const struct cli *cli, json_t *request, json_t **ret_ok);
/* Asks for a list and prints it: as JSON, or as a table of columns `aligns` whose cells
 * `fill` adds. */
int request_list(const struct cli *cli, json_t *request, const char *aligns,
                 void (*fill)(struct table *table, json_t *items));

/* The argument DISK@SNAP; -EINVAL: it is none, which has been said. Both malloc'd. */
int request_split(const struct cli *cli, const char *text, char **ret_disk,
                  char **ret_snapshot);

/* Values of an answer: 0 and "-" for what is missing or null. */
uint64_t reply_number(json_t *object, const char *key);
const char *reply_string(json_t *object, const char *key);

/* What the leader has heard of all nodes (node.reports), a new reference; NULL: there is
 * no leader, or it does not answer. */
json_t *cluster_reports(struct client *client);
/* "1.2G to copy, 300M/s, 4 s left" */
void cluster_print_left(uint64_t bytes, uint64_t bytes_s);

void table_add_number(struct table *table, uint64_t n);
void table_add_size(struct table *table, uint64_t bytes);
int print_json(json_t *value); /* EXIT_OK */

/* A decimal number from min to max; -EINVAL. */
int parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret);

#endif
