/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Import and export.
 *
 * An import fills a disk that nobody else sees, over NBD like any client, and publishes
 * it under its name when all of it is durable. What fails, or a signal, discards it; if
 * this process dies, the daemon does so when the control connection ends, so that
 * connection is kept open. An export to a file writes a file with another name and
 * renames it when it is complete.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/limits.h"
#include "tools/cli.h"
#include "tools/client.h"
#include "tools/copy.h"
#include "tools/increment.h"
#include "tools/interrupt.h"
#include "tools/progress.h"
#include "tools/size.h"

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
    progress_show(arg, done, total);
}

static int copy_with_progress(const struct cli *cli, struct endpoint *source,
                              struct endpoint *destination, uint64_t *ret_bytes,
                              struct error *err)
{
    struct progress progress;
    progress_init(&progress, cli->command->name, cli->quiet);
    const struct copy_options options = {
        .progress = on_progress, .interrupted = interrupted, .arg = &progress};
    int r = copy_run(source, destination, &options, ret_bytes, err);
    progress_clear(&progress);
    return r;
}

/* --- import --- */

static json_t *name_request(const char *op, const char *name)
{
    return json_pack("{s:s, s:s}", "op", op, "name", name);
}

static int check_source(const struct endpoint *source, struct error *err)
{
    if (source->size_bytes == 0)
        return err_set(err, -EINVAL, "%s: is empty", source->name);
    if (source->size_bytes != ENDPOINT_SIZE_UNKNOWN &&
        source->size_bytes > DISK_BYTES_MAX)
        return err_set(err, -EFBIG, "%s: a disk has at most %s", source->name,
                       size_text(DISK_BYTES_MAX).text);
    return 0;
}

/* Copies into the hidden disk; on success all of it is durable and closed. */
static int fill_disk(const struct cli *cli, struct client *client,
                     struct endpoint *source, uint64_t *ret_bytes, struct error *err)
{
    cleanup(free_ptr) char *uri = NULL;
    struct endpoint disk;
    int r = client_any_uri(client, cli->args[1], &uri, err);
    if (r == 0)
        r = endpoint_open_nbd(&disk, uri, cli->args[1], err);
    if (r < 0)
        return r;
    disk.is_zero = true;
    r = copy_with_progress(cli, source, &disk, ret_bytes, err);
    if (r == 0 && *ret_bytes == 0)
        r = err_set(err, -EINVAL, "%s: is empty", source->name);
    if (r == 0)
        r = endpoint_commit(&disk, err);
    if (r == -ENOSPC)
        err_set(err, r,
                "%s: no space in the store; nothing was kept; 'parallax status' says "
                "what can be freed",
                cli->args[1]);
    endpoint_close(&disk);
    return r;
}

static int publish(const struct cli *cli, struct client *client, uint64_t bytes,
                   struct error *err)
{
    uint64_t size = round_up_u64(bytes, BLOCK_SIZE);
    int r = client_call(client,
                        json_pack("{s:s, s:s, s:I}", "op", "import.publish", "name",
                                  cli->args[1], "size_bytes", (json_int_t)size),
                        NULL, NULL, err);
    if (r == 0 && size != bytes && !cli->quiet)
        fprintf(stderr,
                "parallax: import: %s: the image has %" PRIu64
                " bytes; the disk has %" PRIu64 ", the next multiple of %u\n",
                cli->args[1], bytes, size, BLOCK_SIZE);
    return r;
}

static int import_from(const struct cli *cli, struct endpoint *source, struct error *err)
{
    cleanup(client_destroyp) struct client *client = NULL;
    uint64_t bytes;
    int r = client_create(cli->connect, &client, err);
    if (r == 0)
        r = client_call(client, name_request("import.begin", cli->args[1]), NULL, NULL,
                        err);
    if (r < 0)
        return r;
    r = fill_disk(cli, client, source, &bytes, err);
    if (r == 0)
        r = publish(cli, client, bytes, err);
    /* If even this fails, the end of the connection has the same effect. */
    if (r < 0)
        client_call(client, name_request("import.discard", cli->args[1]), NULL, NULL,
                    NULL);
    return r;
}

static int import_image(const struct cli *cli)
{
    struct error err = {0};
    struct client *client;
    struct endpoint source;
    const struct endpoint_options options = {.format = cli->format,
                                             .backing = cli->backing};
    /* Looking at a large image takes a while; so first, is there a daemon at all? */
    int r = client_create(cli->connect, &client, &err);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    client_destroy(client);
    interrupt_catch();
    r = endpoint_open_source(&source, cli->args[0], &options, &err);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    r = check_source(&source, &err);
    if (r == 0)
        r = import_from(cli, &source, &err);
    endpoint_close(&source);
    return r < 0 ? cli_fail_error(cli, r, &err) : EXIT_OK;
}

/* As an image it would be a disk of no use. A pipe is not touched: opening it would let
 * its writer go on. */
static bool is_increment(const char *path)
{
    uint8_t bytes[8];
    struct stat st;
    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool yes = fd >= 0 && read(fd, bytes, sizeof bytes) == (ssize_t)sizeof bytes &&
               increment_is_one(bytes, sizeof bytes);
    if (fd >= 0)
        close(fd);
    return yes;
}

int cmd_import(const struct cli *cli)
{
    if (cli->onto != NULL)
        return cmd_import_increment(cli);
    if (cli->arg_count != 2)
        return cli_fail(cli, EXIT_USAGE, "needs SOURCE NAME; see 'parallax help import'");
    if (cli->format == NULL && is_increment(cli->args[0]))
        return cli_fail(cli, EXIT_USAGE, "%s: is an increment: apply it with --onto DISK",
                        cli->args[0]);
    return import_image(cli);
}
/* --- export --- */

static int export_from(const struct cli *cli, struct endpoint *source, struct error *err)
{
    struct endpoint destination;
    const struct endpoint_options options = {.format = cli->format};
    uint64_t bytes;
    int r = endpoint_open_destination(&destination, cli->args[1], source->size_bytes,
                                      &options, err);
    if (r < 0)
        return r;
    r = copy_with_progress(cli, source, &destination, &bytes, err);
    if (r == 0)
        r = endpoint_commit(&destination, err);
    endpoint_close(&destination);
    return r;
}

int cmd_export(const struct cli *cli)
{
    if (cli->since != NULL)
        return cmd_export_increment(cli);
    struct error err = {0};
    cleanup(free_ptr) char *uri = NULL;
    struct client *client = NULL;
    struct endpoint source;
    int r = client_create(cli->connect, &client, &err);
    if (r == 0)
        r = client_export_uri(client, cli->args[0], &uri, &err);
    client_destroy(client);
    interrupt_catch();
    if (r == 0)
        r = endpoint_open_nbd(&source, uri, cli->args[0], &err);
    if (r < 0)
        return cli_fail_error(cli, r, &err);
    r = export_from(cli, &source, &err);
    endpoint_close(&source);
    return r < 0 ? cli_fail_error(cli, r, &err) : EXIT_OK;
}
