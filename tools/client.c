/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/client.h"

#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/address.h"
#include "tools/cli.h"
#include "tools/control_wire.h"
#include "tools/interrupt.h"
#include "tools/uri.h"

struct client {
    int fd;
    size_t len;
    char in[CONTROL_LINE_BYTES + 1];
};

/* --- finding the daemon --- */

/* The control socket of what -c names; *ret_up is what `parallax up` would take. */
static int find_daemon(const char *where, struct socket_address *ret, const char **ret_up,
                       struct error *err)
{
    struct stat st;
    cleanup(free_ptr) char *path = NULL;
    const char *base = strrchr(where, '/');
    bool found = stat(where, &st) == 0;
    *ret_up = NULL;
    int n = 0;
    if (found && S_ISDIR(st.st_mode)) {
        *ret_up = where;
        n = asprintf(&path, "%s/" CONTROL_SOCKET_NAME, where);
    } else if (found && S_ISBLK(st.st_mode)) {
        *ret_up = where;
        n = asprintf(&path, DEVICE_FOLDERS "/%s/" CONTROL_SOCKET_NAME,
                     base != NULL ? base + 1 : where);
    } else {
        return address_parse(where, ret, err);
    }
    if (n < 0) {
        path = NULL;
        return -ENOMEM;
    }
    return address_of_path(path, ret, err);
}

int client_create(const char *where, struct client **ret_client, struct error *err)
{
    if (where == NULL || where[0] == '\0')
        return err_set(err, -EDESTADDRREQ,
                       "which daemon? Give -c DIR, or set PARALLAX=DIR");
    struct socket_address address;
    const char *up;
    int r = find_daemon(where, &address, &up, err);
    if (r < 0)
        return r;
    struct client *client = calloc(1, sizeof *client);
    if (client == NULL)
        return -ENOMEM;
    r = address_connect(&address, &client->fd);
    if (r == 0) {
        *ret_client = client;
        return 0;
    }
    free(client);
    const struct address_text at = address_text(&address);
    if (r == -EACCES || r == -EPERM)
        return err_set(err, -ENOTCONN, "%s: %s; ask as the user who started the daemon",
                       at.text, err_text(r));
    return err_set(err, -ENOTCONN,
                   "no daemon answers on %s: start one with 'parallax up %s'", at.text,
                   up != NULL ? up : "DIR");
}

void client_destroy(struct client *client)
{
    if (client == NULL)
        return;
    close(client->fd);
    free(client);
}

/* --- requests --- */

static int send_line(struct client *client, json_t *request, struct error *err)
{
    cleanup(free_ptr) char *text = json_dumps(request, JSON_COMPACT);
    json_decref(request);
    if (text == NULL)
        return err_set(err, -EINVAL, "a name that is not UTF-8");
    size_t len = strlen(text), sent = 0;
    text[len++] = '\n'; /* in the place of the NUL */
    if (len > CONTROL_LINE_BYTES)
        return err_set(err, -EMSGSIZE, "names that are far too long");
    while (sent < len) {
        ssize_t n = send(client->fd, text + sent, len - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR && !interrupted())
            continue;
        if (n < 0)
            return err_set(err, -errno, "the daemon does not listen: %s",
                           strerror(errno));
        sent += (size_t)n;
    }
    return 0;
}

/* Reads until there is a whole line; *ret_len is its length without newline. */
static int receive_line(struct client *client, size_t *ret_len, struct error *err)
{
    for (;;) {
        char *end = memchr(client->in, '\n', client->len);
        if (end != NULL) {
            *ret_len = (size_t)(end - client->in);
            return 0;
        }
        if (client->len == sizeof client->in)
            return err_set(err, -EPROTO, "the daemon's reply is too long");
        ssize_t n = recv(client->fd, client->in + client->len,
                         sizeof client->in - client->len, 0);
        if (n < 0 && errno == EINTR && !interrupted())
            continue;
        if (n < 0)
            return err_set(err, -errno, "no reply from the daemon: %s", strerror(errno));
        if (n == 0)
            return err_set(err, -ENOTCONN,
                           "the daemon has ended, or closed the connection; see its log");
        client->len += (size_t)n;
    }
}

static int receive(struct client *client, json_t **ret, struct error *err)
{
    size_t len = 0;
    int r = receive_line(client, &len, err);
    if (r < 0)
        return r;
    json_error_t jerr;
    json_t *reply = json_loadb(client->in, len, JSON_REJECT_DUPLICATES, &jerr);
    client->len -= len + 1;
    memmove(client->in, client->in + len + 1, client->len);
    if (!json_is_object(reply)) {
        json_decref(reply);
        return err_set(err, -EPROTO, "the daemon's reply is not JSON");
    }
    *ret = reply;
    return 0;
}

static void call_progress(const struct client_callbacks *callbacks, json_t *progress)
{
    json_int_t done = 0, total = 0;
    if (callbacks == NULL || callbacks->progress == NULL ||
        json_unpack(progress, "{s:I, s:I}", "done_bytes", &done, "total_bytes", &total))
        return;
    callbacks->progress(callbacks->arg, (uint64_t)done, (uint64_t)total);
}

static int remote_error(json_t *error, struct error *err)
{
    const char *code = "", *text = "";
    json_unpack(error, "{s:s, s:s}", "code", &code, "text", &text);
    return err_set(err, -EREMOTEIO, "%s", text[0] != '\0' ? text : code);
}

/* What was answered without a majority is said to be old, whatever the format. */
static void take_ok(json_t *ok, json_t **ret_ok)
{
    const char *stale = json_string_value(json_object_get(ok, "stale"));
    if (stale != NULL)
        fprintf(stderr, "parallax: warning: %s\n", stale);
    if (ret_ok != NULL)
        *ret_ok = json_incref(ok);
}

int client_call(struct client *client, json_t *request,
                const struct client_callbacks *callbacks, json_t **ret_ok,
                struct error *err)
{
    int r = send_line(client, request, err);
    for (bool more = true; r == 0 && more;) {
        json_t *reply;
        r = receive(client, &reply, err);
        if (r < 0)
            break;
        json_t *item = json_object_get(reply, "item");
        json_t *progress = json_object_get(reply, "progress");
        json_t *ok = json_object_get(reply, "ok");
        more = item != NULL || progress != NULL;
        if (item != NULL && callbacks != NULL && callbacks->item != NULL)
            callbacks->item(callbacks->arg, item);
        else if (progress != NULL)
            call_progress(callbacks, progress);
        else if (ok == NULL && !more)
            r = remote_error(json_object_get(reply, "error"), err);
        else if (ok != NULL)
            take_ok(ok, ret_ok);
        json_decref(reply);
    }
    return r;
}

static void append_item(void *arg, json_t *item)
{
    json_array_append(arg, item);
}

int client_list(struct client *client, json_t *request, json_t **ret_items,
                struct error *err)
{
    json_t *items = json_array();
    const struct client_callbacks callbacks = {.item = append_item, .arg = items};
    int r = client_call(client, request, &callbacks, NULL, err);
    if (r == 0)
        *ret_items = items;
    else
        json_decref(items);
    return r;
}

void client_wait_end(struct client *client)
{
    char bytes[256];
    ssize_t n;
    do
        n = recv(client->fd, bytes, sizeof bytes, 0);
    while (n > 0 || (n < 0 && errno == EINTR));
}

/* --- exports --- */

int client_any_uri(struct client *client, const char *name, char **ret_uri,
                   struct error *err)
{
    cleanup(json_decrefp) json_t *status = NULL;
    int r = client_call(client, json_pack("{s:s}", "op", "status"), NULL, &status, err);
    if (r < 0)
        return r;
    const char *server = json_string_value(
        json_array_get(json_object_get(status, "nbd"), 0));
    if (server == NULL)
        return err_set(err, -EPROTO, "the daemon serves no NBD");
    char *uri = uri_with_export(server, name);
    if (uri == NULL)
        return -ENOMEM;
    *ret_uri = uri;
    return 0;
}

static bool has_snapshot(json_t *items, const char *snapshot)
{
    size_t i;
    json_t *item;
    json_array_foreach(items, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name != NULL && strcmp(name, snapshot) == 0)
            return true;
    }
    return false;
}

int client_export_uri(struct client *client, const char *name, char **ret_uri,
                      struct error *err)
{
    cleanup(free_ptr) char *disk = NULL;
    cleanup(free_ptr) char *snapshot = NULL;
    cleanup(json_decrefp) json_t *items = NULL;
    int r = cli_split_snapshot(name, &disk, &snapshot, err);
    if (r < 0)
        return r;
    if (snapshot == NULL)
        r = client_call(client, json_pack("{s:s, s:s}", "op", "disk.show", "name", disk),
                        NULL, NULL, err);
    else
        r = client_list(client,
                        json_pack("{s:s, s:s}", "op", "snapshot.list", "disk", disk),
                        &items, err);
    if (r == 0 && snapshot != NULL && !has_snapshot(items, snapshot))
        r = err_set(err, -ENOENT, "disk %s: no snapshot %s", disk, snapshot);
    return r < 0 ? r : client_any_uri(client, name, ret_uri, err);
}
