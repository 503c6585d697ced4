/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Increments: what differs between two snapshots, as a file (doc/format-increment.md).
 *
 * An export asks what has changed, reads that with many requests in flight, and writes
 * records in the order of the disk; the file appears when it is complete.
 *
 * An import checks that the disk is as the base was, then the whole file, if it is one
 * that can be read twice, and only then writes. Whatever fails from there on (a pipe that
 * ends early, a full store, a signal) rolls the disk back to the base, and a process that
 * is killed leaves a disk that the next import refuses, saying so. At the end a snapshot
 * is made, so that the next increment can follow.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "runtime/crc32c.h"
#include "tools/changes.h"
#include "tools/endpoint.h"
#include "tools/interrupt.h"
#include "tools/nbd_queue.h"
#include "tools/progress.h"
#include "tools/request.h"
#include "tools/uri.h"

/* Zeros are one request up to this; an NBD length has 32 bits. */
#define ZERO_BYTES (256 * MIB)
/* How long a rollback waits for the server to notice that we have gone. */
#define ROLLBACK_TRIES    50
#define ROLLBACK_PAUSE_MS 100

/* A request of its own connection: the daemon ends one that is silent for a minute. */
static int ask(const struct cli *cli, json_t *request, json_t **ret_ok, struct error *err)
{
    cleanup(client_destroyp) struct client *client = NULL;
    int r = client_create(cli->connect, &client, err);
    if (r < 0)
        json_decref(request);
    else
        r = client_call(client, request, NULL, ret_ok, err);
    return r;
}

static int ask_list(const struct cli *cli, json_t *request, json_t **ret_items,
                    struct error *err)
{
    cleanup(client_destroyp) struct client *client = NULL;
    int r = client_create(cli->connect, &client, err);
    if (r < 0)
        json_decref(request);
    else
        r = client_list(client, request, ret_items, err);
    return r;
}

/* The size of a snapshot; 0: there is none. */
static int find_snapshot(const struct cli *cli, const char *disk, const char *name,
                         uint64_t *ret_size, struct error *err)
{
    cleanup(json_decrefp) json_t *items = NULL;
    int r = ask_list(cli, json_pack("{s:s, s:s}", "op", "snapshot.list", "disk", disk),
                     &items, err);
    size_t i;
    json_t *item;
    *ret_size = 0;
    json_array_foreach(items, i, item)
    {
        if (strcmp(reply_string(item, "name"), name) == 0)
            *ret_size = reply_number(item, "size_bytes");
    }
    return r;
}

static int export_uri(const struct cli *cli, const char *name, char **ret_uri,
                      struct error *err)
{
    cleanup(client_destroyp) struct client *client = NULL;
    int r = client_create(cli->connect, &client, err);
    return r < 0 ? r : client_export_uri(client, name, ret_uri, err);
}

/* --- export --- */

struct outgoing {
    struct increment incr;
    struct changes changes;
    struct nbd_queue queue;
    struct endpoint file;
    struct progress progress;
    struct error *err;
};

static int write_all(struct outgoing *out, const void *head, size_t head_len,
                     const void *data, size_t data_len)
{
    struct iovec iov[2] = {{(void *)(uintptr_t)head, head_len},
                           {(void *)(uintptr_t)data, data_len}};
    int at = 0;
    while (at < 2) {
        ssize_t n = writev(out->file.fd, iov + at, 2 - at);
        if (n < 0 && errno == EINTR && !interrupted())
            continue;
        if (n < 0)
            return err_set(out->err, -errno, "%s: cannot write: %s", out->file.name,
                           interrupted() ? "interrupted" : strerror(errno));
        for (; at < 2 && (size_t)n >= iov[at].iov_len; at++)
            n -= (ssize_t)iov[at].iov_len;
        if (at < 2) {
            iov[at].iov_base = (uint8_t *)iov[at].iov_base + n;
            iov[at].iov_len -= (size_t)n;
        }
    }
    return 0;
}

static int write_record(struct outgoing *out, const struct increment_record *record,
                        const void *data)
{
    struct increment_record_format bytes;
    bool has_data = record->kind == INCREMENT_DATA;
    increment_write_record(&out->incr, record, &bytes);
    return write_all(out, &bytes, sizeof bytes, data, has_data ? record->len_bytes : 0);
}

static bool all_zero(const uint8_t *bytes, size_t len)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0;
}

/* Writes the oldest record, whose data has come. */
static int retire(struct outgoing *out)
{
    struct nbd_queue_slot *slot = NULL;
    int r = nbd_queue_wait(&out->queue, &slot, out->err);
    if (r < 0)
        return err_add(out->err, r, "%s", out->changes.name);
    struct increment_record *record = &slot->record;
    if (record->kind == INCREMENT_DATA && all_zero(slot->data, record->len_bytes))
        record->kind = INCREMENT_ZEROS;
    if (record->kind == INCREMENT_DATA)
        record->data_crc = crc32c(slot->data, record->len_bytes);
    r = write_record(out, record, slot->data);
    nbd_queue_pop(&out->queue);
    progress_show(&out->progress, out->incr.data_bytes, UINT64_MAX);
    return r;
}

static int add_range(void *arg, uint64_t offset, uint64_t len, bool is_zero)
{
    struct outgoing *out = arg;
    for (int r; len > 0;) {
        uint64_t n = is_zero ? len : min_u64(len, INCREMENT_DATA_BYTES_MAX);
        r = nbd_queue_is_full(&out->queue) ? retire(out) : 0;
        if (r < 0)
            return r;
        struct nbd_queue_slot *slot = nbd_queue_next(&out->queue);
        if (slot == NULL)
            return -ENOMEM;
        slot->record = (struct increment_record){
            .kind = is_zero ? INCREMENT_ZEROS : INCREMENT_DATA,
            .offset_bytes = offset,
            .len_bytes = n,
        };
        r = nbd_queue_read(&out->queue, slot, out->err);
        if (r < 0)
            return r;
        offset += n;
        len -= n;
    }
    return interrupted() ? err_set(out->err, -EINTR, "interrupted") : 0;
}

static int write_increment(struct outgoing *out, const struct increment_header *header)
{
    const struct increment_record end = {.kind = INCREMENT_END};
    struct increment_header_format bytes;
    increment_write_header(&out->incr, header, &bytes);
    int r = write_all(out, &bytes, sizeof bytes, NULL, 0);
    if (r == 0)
        r = changes_each(&out->changes, add_range, out, out->err);
    while (r == 0 && out->queue.count > 0)
        r = retire(out);
    if (r == 0)
        r = write_record(out, &end, NULL);
    progress_clear(&out->progress);
    return r == 0 ? endpoint_commit(&out->file, out->err) : r;
}

static int open_file(const struct cli *cli, struct endpoint *ret, struct error *err)
{
    const struct endpoint_options options = {.format = "raw"};
    struct stat st;
    const char *name = cli->args[1];
    if (uri_is_nbd(name) || (stat(name, &st) == 0 && S_ISBLK(st.st_mode)))
        return err_set(err, -EINVAL, "%s: an increment is a file, or -", name);
    return endpoint_open_destination(ret, name, 0, &options, err);
}

static int find_cluster(const struct cli *cli, struct uid *ret, struct error *err)
{
    cleanup(json_decrefp) json_t *status = NULL;
    int r = ask(cli, json_pack("{s:s}", "op", "status"), &status, err);
    const char *text = reply_string(status, "cluster");
    if (r == 0 && !uid_parse(text, strlen(text), ret))
        r = err_set(err, -EPROTO, "the daemon does not say which cluster it is of");
    return r;
}

static int make_header(const struct cli *cli, const char *disk, const char *target,
                       struct increment_header *ret, struct error *err)
{
    *ret = (struct increment_header){
        .created_wall_ns = (uint64_t)time(NULL) * NS_PER_S,
    };
    int r = find_snapshot(cli, disk, target, &ret->target_size_bytes, err);
    if (r == 0 && ret->target_size_bytes == 0)
        r = err_set(err, -ENOENT, "disk %s: no snapshot %s", disk, target);
    if (r == 0)
        r = find_snapshot(cli, disk, cli->since, &ret->base_size_bytes, err);
    if (r == 0 && ret->base_size_bytes == 0)
        r = err_set(err, -ENOENT, "disk %s: no snapshot %s to compare with", disk,
                    cli->since);
    if (r == 0)
        r = find_cluster(cli, &ret->cluster, err);
    /* Names that snapshots have are short enough. */
    snprintf(ret->disk, sizeof ret->disk, "%s", disk);
    snprintf(ret->base, sizeof ret->base, "%s", cli->since);
    snprintf(ret->target, sizeof ret->target, "%s", target);
    return r;
}

static int export_to_file(const struct cli *cli, const struct increment_header *header,
                          struct error *err)
{
    cleanup(free_ptr) char *uri = NULL;
    cleanup(free_ptr) struct outgoing *out = calloc(1, sizeof *out);
    if (out == NULL)
        return -ENOMEM;
    out->err = err;
    progress_init(&out->progress, "export", cli->quiet);
    int r = export_uri(cli, cli->args[0], &uri, err);
    if (r == 0)
        r = changes_open(&out->changes, uri, cli->args[0], cli->since, err);
    if (r < 0)
        return r;
    nbd_queue_init(&out->queue, out->changes.data, interrupted);
    r = open_file(cli, &out->file, err);
    if (r == 0) {
        r = write_increment(out, header);
        endpoint_close(&out->file);
    }
    changes_close(&out->changes);
    nbd_queue_done(&out->queue);
    return r;
}

int cmd_export_increment(const struct cli *cli)
{
    struct error err = {0};
    struct increment_header header;
    cleanup(free_ptr) char *disk = NULL;
    cleanup(free_ptr) char *target = NULL;
    if (cli->format != NULL)
        return cli_fail(cli, EXIT_USAGE, "an increment has no --format");
    if (cli_split_snapshot(cli->args[0], &disk, &target, &err) < 0)
        return cli_fail(cli, EXIT_USAGE, "%s", err.text);
    if (target == NULL)
        return cli_fail(cli, EXIT_USAGE,
                        "an increment ends at a snapshot: make one with 'parallax "
                        "snapshot create %s@NAME'",
                        disk);
    if (strcmp(target, cli->since) == 0)
        return cli_fail(cli, EXIT_USAGE, "%s has not changed since itself", cli->args[0]);
    interrupt_catch();
    int r = make_header(cli, disk, target, &header, &err);
    if (r == 0)
        r = export_to_file(cli, &header, &err);
    return r < 0 ? cli_fail_error(cli, r, &err) : EXIT_OK;
}

/* --- import: the file --- */

struct incoming {
    const struct cli *cli;
    const char *disk, *name; /* of the disk, of the file */
    int fd;
    bool is_file; /* can be read twice */
    uint64_t file_bytes, read_bytes;
    struct increment incr;
    struct increment_header header;
    struct nbd_queue *queue; /* NULL: only verify */
    uint8_t *data;           /* INCREMENT_DATA_BYTES_MAX */
    struct progress progress;
    struct error *err;
};

/* Exactly len bytes. */
static int read_all(struct incoming *in, void *ret, size_t len)
{
    for (size_t got = 0; got < len;) {
        ssize_t n = read(in->fd, (uint8_t *)ret + got, len - got);
        if (interrupted())
            return err_set(in->err, -EINTR, "interrupted");
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(in->err, -errno, "%s: cannot read: %s", in->name,
                           strerror(errno));
        if (n == 0)
            return err_set(in->err, -PLX_EFORMAT,
                           "%s: ends after %" PRIu64 " bytes, before its end", in->name,
                           in->read_bytes + got);
        got += (size_t)n;
    }
    in->read_bytes += len;
    return 0;
}

static int read_header(struct incoming *in)
{
    struct increment_header_format bytes;
    in->read_bytes = 0;
    int r = read_all(in, &bytes, sizeof bytes);
    if (r < 0)
        return r;
    r = increment_read_header(&in->incr, &bytes, &in->header, in->err);
    return r < 0 ? err_add(in->err, r, "%s", in->name) : 0;
}

static int check_nothing_left(struct incoming *in)
{
    uint8_t byte;
    ssize_t n;
    do
        n = read(in->fd, &byte, 1);
    while (n < 0 && errno == EINTR && !interrupted());
    if (n == 0)
        return 0;
    return err_set(in->err, -PLX_EFORMAT, "%s: does not stop at its end", in->name);
}

/* Waits for the oldest write. */
static int finish_write(struct incoming *in)
{
    struct nbd_queue_slot *slot;
    int r = nbd_queue_wait(in->queue, &slot, in->err);
    if (r < 0)
        return err_add(in->err, r, "disk %s", in->disk);
    nbd_queue_pop(in->queue);
    return 0;
}

/* A slot, after the oldest write if there is none free. */
static int next_slot(struct incoming *in, struct nbd_queue_slot **ret)
{
    int r = nbd_queue_is_full(in->queue) ? finish_write(in) : 0;
    if (r < 0)
        return r;
    *ret = nbd_queue_next(in->queue);
    return *ret != NULL ? 0 : -ENOMEM;
}

static int write_zeros(struct incoming *in, struct increment_record record)
{
    int r = 0;
    for (uint64_t end = record.offset_bytes + record.len_bytes;
         record.offset_bytes < end && r == 0; record.offset_bytes += record.len_bytes) {
        struct nbd_queue_slot *slot = NULL;
        record.len_bytes = min_u64(end - record.offset_bytes, ZERO_BYTES);
        r = next_slot(in, &slot);
        if (r < 0)
            break;
        slot->record = record;
        r = nbd_queue_write(in->queue, slot, in->err);
    }
    return r;
}

/* The bytes behind a DATA record are read and verified before they are written. */
static int take_data(struct incoming *in, const struct increment_record *record)
{
    struct nbd_queue_slot *slot = NULL;
    int r = in->queue != NULL ? next_slot(in, &slot) : 0;
    uint8_t *data = slot != NULL ? slot->data : in->data;
    if (r == 0)
        r = read_all(in, data, record->len_bytes);
    if (r < 0)
        return r;
    r = increment_check_data(record, data, in->err);
    if (r < 0)
        return err_add(in->err, r, "%s", in->name);
    if (slot == NULL)
        return 0;
    slot->record = *record;
    return nbd_queue_write(in->queue, slot, in->err);
}

/* Everything behind the header, verified, and applied if there is a queue. */
static int read_records(struct incoming *in)
{
    int r = 0;
    while (r == 0 && !in->incr.ended) {
        struct increment_record_format bytes;
        struct increment_record record;
        r = read_all(in, &bytes, sizeof bytes);
        if (r < 0)
            break;
        r = increment_read_record(&in->incr, &bytes, &record, in->err);
        if (r < 0)
            return err_add(in->err, r, "%s", in->name);
        if (record.kind == INCREMENT_DATA)
            r = take_data(in, &record);
        else if (record.kind == INCREMENT_ZEROS && in->queue != NULL)
            r = write_zeros(in, record);
        progress_show(&in->progress, in->read_bytes,
                      in->is_file ? in->file_bytes : UINT64_MAX);
    }
    if (r == 0)
        r = check_nothing_left(in);
    while (r == 0 && in->queue != NULL && in->queue->count > 0)
        r = finish_write(in);
    progress_clear(&in->progress);
    return r;
}

/* Reads the file to its end, and goes back behind its header. */
static int verify(struct incoming *in)
{
    progress_init(&in->progress, "verify", in->cli->quiet);
    int r = read_records(in);
    if (r == 0 && lseek(in->fd, 0, SEEK_SET) < 0)
        r = err_set(in->err, -errno, "%s: cannot go back: %s", in->name, strerror(errno));
    return r == 0 ? read_header(in) : r;
}

static int open_increment(struct incoming *in)
{
    const char *name = in->cli->args[0];
    bool is_stdin = strcmp(name, "-") == 0;
    struct stat st;
    in->name = is_stdin ? "standard input" : name;
    if (uri_is_nbd(name))
        return err_set(in->err, -EINVAL, "%s: an increment is a file, or -", name);
    if (is_stdin && isatty(STDIN_FILENO))
        return err_set(in->err, -EINVAL, "-: a terminal; use a pipe or a file");
    in->fd = is_stdin ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3)
                      : open(name, O_RDONLY | O_CLOEXEC);
    if (in->fd < 0 || fstat(in->fd, &st) < 0)
        return err_set(in->err, -errno, "%s: cannot open: %s", in->name, strerror(errno));
    in->is_file = S_ISREG(st.st_mode) && !is_stdin;
    in->file_bytes = (uint64_t)st.st_size;
    return read_header(in);
}

/* --- import: the disk --- */

/* The disk must be what the base was when the increment was made. */
static int check_unchanged(struct incoming *in)
{
    const struct increment_header *h = &in->header;
    cleanup(json_decrefp) json_t *items = NULL;
    cleanup(json_decrefp) json_t *disk = NULL;
    int r = ask(in->cli, json_pack("{s:s, s:s}", "op", "disk.show", "name", in->disk),
                &disk, in->err);
    if (r < 0)
        return r;
    if (reply_number(disk, "clients") > 0)
        return err_set(in->err, -EBUSY, "disk %s: is in use; detach its clients first",
                       in->disk);
    bool same = reply_number(disk, "size_bytes") == h->base_size_bytes;
    if (same)
        r = ask_list(in->cli,
                     json_pack("{s:s, s:s, s:s, s:i}", "op", "snapshot.diff", "disk",
                               in->disk, "from", h->base, "max", 1),
                     &items, in->err);
    if (r < 0)
        return r;
    if (same && json_array_size(items) == 0)
        return 0;
    return err_set(in->err, -ESTALE,
                   "disk %s: has changed since %s@%s, on which the increment is based; "
                   "'parallax snapshot rollback %s@%s' drops the changes",
                   in->disk, in->disk, h->base, in->disk, h->base);
}

static int check_disk(struct incoming *in)
{
    const struct increment_header *h = &in->header;
    uint64_t base_size, target_size;
    int r = find_snapshot(in->cli, in->disk, h->base, &base_size, in->err);
    if (r == 0)
        r = find_snapshot(in->cli, in->disk, h->target, &target_size, in->err);
    if (r < 0)
        return r;
    if (target_size != 0)
        return err_set(in->err, -EEXIST,
                       "disk %s: has a snapshot %s already, which this increment leads "
                       "to",
                       in->disk, h->target);
    if (base_size == 0)
        return err_set(in->err, -ENOENT,
                       "disk %s: has no snapshot %s, on which the increment is based "
                       "(it was made of %s)",
                       in->disk, h->base, h->disk);
    if (base_size != h->base_size_bytes)
        return err_set(in->err, -EINVAL,
                       "disk %s: %s@%s has %" PRIu64 " bytes, the increment is based on "
                       "%" PRIu64,
                       in->disk, in->disk, h->base, base_size, h->base_size_bytes);
    return check_unchanged(in);
}

static int resize(struct incoming *in)
{
    const struct increment_header *h = &in->header;
    if (h->base_size_bytes == h->target_size_bytes)
        return 0;
    return ask(in->cli,
               json_pack("{s:s, s:s, s:I}", "op", "disk.resize", "name", in->disk,
                         "size_bytes", (json_int_t)h->target_size_bytes),
               NULL, in->err);
}

/* Writes the records to the disk; on return the disk is not used any more. */
static int apply_records(struct incoming *in)
{
    cleanup(free_ptr) char *uri = NULL;
    cleanup(free_ptr) struct nbd_queue *queue = calloc(1, sizeof *queue);
    struct endpoint disk;
    int r = queue != NULL ? export_uri(in->cli, in->disk, &uri, in->err) : -ENOMEM;
    if (r == 0)
        r = endpoint_open_nbd(&disk, uri, in->disk, in->err);
    if (r < 0)
        return r;
    nbd_queue_init(queue, disk.nbd, interrupted);
    in->queue = queue;
    progress_init(&in->progress, "import", in->cli->quiet);
    r = read_records(in);
    if (r == 0)
        r = endpoint_commit(&disk, in->err);
    endpoint_close(&disk);
    nbd_queue_done(queue);
    in->queue = NULL;
    return r;
}

/* Adds to the error what became of the disk. Returns r. */
static int roll_back(struct incoming *in, int r)
{
    const struct timespec pause = {.tv_nsec = ROLLBACK_PAUSE_MS * 1000000L};
    const char *base = in->header.base;
    char what[sizeof in->err->text];
    struct error why = {0};
    int rc = -EBUSY;
    if (r == -ENOSPC)
        snprintf(what, sizeof what,
                 "disk %s: no space in the store ('parallax status' says what can be "
                 "freed)",
                 in->disk);
    else
        snprintf(what, sizeof what, "%s",
                 in->err->code != 0 ? in->err->text : err_text(r));
    for (int i = 0; i < ROLLBACK_TRIES && rc < 0 && rc != -ENOTCONN; i++) {
        if (i > 0)
            nanosleep(&pause, NULL);
        why = (struct error){0};
        rc = ask(in->cli,
                 json_pack("{s:s, s:s, s:s}", "op", "snapshot.rollback", "disk", in->disk,
                           "snapshot", base),
                 NULL, NULL);
    }
    if (rc == 0)
        return err_set(in->err, r, "%.300s; %s is rolled back to %s@%s", what, in->disk,
                       in->disk, base);
    return err_set(in->err, r,
                   "%.150s; %s is neither old nor new (%.100s): undo it with 'parallax "
                   "snapshot rollback %s@%s'",
                   what, in->disk, why.text, in->disk, base);
}

static int apply(struct incoming *in)
{
    int r = resize(in);
    if (r == 0)
        r = apply_records(in);
    if (r == 0)
        r = ask(in->cli,
                json_pack("{s:s, s:s, s:s}", "op", "snapshot.create", "disk", in->disk,
                          "snapshot", in->header.target),
                NULL, in->err);
    return r < 0 ? roll_back(in, r) : 0;
}

int cmd_import_increment(const struct cli *cli)
{
    struct error err = {0};
    struct incoming in = {.cli = cli, .disk = cli->onto, .fd = -1, .err = &err};
    if (cli->arg_count != 1)
        return cli_fail(cli, EXIT_USAGE, "with --onto needs FILE alone");
    if (cli->options & (CLI_FORMAT | CLI_BACKING))
        return cli_fail(cli, EXIT_USAGE, "an increment has no --format and no --backing");
    if (strchr(cli->onto, '@') != NULL)
        return cli_fail(cli, EXIT_USAGE, "--onto %s: a snapshot does not change",
                        cli->onto);
    interrupt_catch();
    in.data = malloc(INCREMENT_DATA_BYTES_MAX);
    int r = in.data != NULL ? open_increment(&in) : -ENOMEM;
    if (r == 0)
        r = check_disk(&in);
    if (r == 0 && in.is_file)
        r = verify(&in);
    if (r == 0)
        r = apply(&in);
    if (in.fd >= 0)
        close(in.fd);
    free(in.data);
    return r < 0 ? cli_fail_error(cli, r, &err) : EXIT_OK;
}
