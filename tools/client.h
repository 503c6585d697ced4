/* SPDX-License-Identifier: Apache-2.0 */
/* The command's end of a control connection; doc/control.md has the protocol. */
#ifndef PARALLAX_TOOLS_CLIENT_H
#define PARALLAX_TOOLS_CLIENT_H

#include <jansson.h>

#include "runtime/base.h"
#include "runtime/error.h"

struct client;

/* where: a folder, a control socket, a block device or HOST:PORT; NULL when the user
 * gave none, which is -EDESTADDRREQ. -ENOTCONN: no daemon answers. The text says what to
 * do. */
int client_create(const char *where, struct client **ret_client, struct error *err);
void client_destroy(struct client *client); /* NULL is allowed */
static inline void client_destroyp(struct client **client)
{
    client_destroy(*client);
}

/* What comes before the reply; each may be NULL. The values stay the caller's. */
struct client_callbacks {
    void (*item)(void *arg, json_t *item);
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
};

/* Sends a request (taken over, NULL when memory was out) and waits for its reply.
 * ret_ok, what stands behind "ok", may be NULL. An error reply becomes -EREMOTEIO and
 * its text. callbacks may be NULL. */
int client_call(struct client *client, json_t *request,
                const struct client_callbacks *callbacks, json_t **ret_ok,
                struct error *err);
/* The same, with all items in an array. */
int client_list(struct client *client, json_t *request, json_t **ret_items,
                struct error *err);
/* Waits until the daemon closes the connection. */
void client_wait_end(struct client *client);

/* The NBD URI of DISK or DISK@SNAP, malloc'd; it is an error if there is none. */
int client_export_uri(struct client *client, const char *name, char **ret_uri,
                      struct error *err);
/* The same without looking whether there is one. */
int client_any_uri(struct client *client, const char *name, char **ret_uri,
                   struct error *err);

#endif
