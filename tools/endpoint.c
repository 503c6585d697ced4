/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/endpoint.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/image.h"
#include "tools/uri.h"

static int err_errno(struct error *err, const char *name, const char *what)
{
    int code = errno;
    return err_set(err, -code, "%s: cannot %s: %s", name, what, strerror(code));
}

static int err_nbd(struct error *err, const char *name)
{
    const char *text = nbd_get_error();
    int code = nbd_get_errno();
    /* ENOTCONN means to our callers that no daemon answers. */
    return err_set(err, code > 0 && code != ENOTCONN ? -code : -EIO, "%s: %s", name,
                   text != NULL ? text : "NBD error");
}

/* A fresh handle, and the endpoint that owns it. */
static int nbd_begin(struct endpoint *e, struct error *err)
{
    e->kind = ENDPOINT_NBD;
    e->nbd = nbd_create();
    if (e->nbd == NULL ||
        nbd_add_meta_context(e->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0)
        return err_nbd(err, e->name);
    return 0;
}

/* What the server said about the export. */
static int nbd_connected(struct endpoint *e, struct error *err)
{
    int64_t size = nbd_get_size(e->nbd);
    if (size < 0)
        return err_nbd(err, e->name);
    e->size_bytes = (uint64_t)size;
    e->has_status = nbd_can_meta_context(e->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
    e->can_zero = nbd_can_zero(e->nbd) > 0;
    return 0;
}

static int open_uri(struct endpoint *e, const char *uri, struct error *err)
{
    int r = nbd_begin(e, err);
    if (r == 0 && nbd_connect_uri(e->nbd, uri) < 0)
        r = err_nbd(err, e->name);
    return r < 0 ? r : nbd_connected(e, err);
}

static int endpoint_begin(struct endpoint *e, const char *name)
{
    *e = (struct endpoint){.fd = -1, .size_bytes = ENDPOINT_SIZE_UNKNOWN};
    e->name = strdup(name);
    return e->name != NULL ? 0 : -ENOMEM;
}

int endpoint_open_nbd(struct endpoint *ret, const char *uri, const char *name,
                      struct error *err)
{
    int r = endpoint_begin(ret, name);
    if (r == 0)
        r = open_uri(ret, uri, err);
    if (r < 0)
        endpoint_close(ret);
    return r;
}

/* --- sources --- */

/* An absolute path means itself to qemu, whatever characters are in it. */
static int open_image(struct endpoint *e, const char *format,
                      const struct endpoint_options *options, struct error *err)
{
    char path[PATH_MAX];
    if (realpath(e->name, path) == NULL)
        return err_errno(err, e->name, "find");
    int r = image_check(path, format, options->backing, err);
    if (r == 0)
        r = nbd_begin(e, err);
    if (r == 0)
        r = image_serve(e->nbd, path, format, IMAGE_READ, e->name, err);
    return r < 0 ? r : nbd_connected(e, err);
}

static int open_raw_source(struct endpoint *e, struct error *err)
{
    off_t end = lseek(e->fd, 0, SEEK_END);
    if (end < 0)
        return err_errno(err, e->name, "find the size of");
    e->kind = ENDPOINT_FILE;
    e->size_bytes = (uint64_t)end;
    e->has_status = lseek(e->fd, 0, SEEK_HOLE) >= 0 || errno == ENXIO;
    posix_fadvise(e->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    return 0;
}

static int open_source_file(struct endpoint *e, const struct endpoint_options *options,
                            struct error *err)
{
    char path[PATH_MAX], format[IMAGE_FORMAT_MAX] = "raw";
    struct stat st;
    e->fd = open(e->name, O_RDONLY | O_CLOEXEC);
    if (e->fd < 0 || fstat(e->fd, &st) < 0)
        return err_errno(err, e->name, "open");
    if (S_ISDIR(st.st_mode))
        return err_set(err, -EISDIR, "%s: a folder is no image", e->name);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        e->kind = ENDPOINT_STREAM;
        return 0;
    }
    int r = 0;
    if (options->format != NULL)
        snprintf(format, sizeof format, "%s", options->format);
    else if (realpath(e->name, path) == NULL)
        r = err_errno(err, e->name, "find");
    else
        r = image_detect(path, format, err);
    if (r < 0)
        return r;
    if (strcmp(format, "raw") == 0)
        return open_raw_source(e, err);
    close(e->fd);
    e->fd = -1;
    return open_image(e, format, options, err);
}

static int open_stream(struct endpoint *e, int fd, const char *format, struct error *err)
{
    if (format != NULL && strcmp(format, "raw") != 0)
        return err_set(err, -EINVAL, "-: only raw; %s needs a file", format);
    if (isatty(fd))
        return err_set(err, -EINVAL, "-: a terminal; use a pipe or a file");
    free(e->name);
    e->name = strdup(fd == STDIN_FILENO ? "standard input" : "standard output");
    e->kind = ENDPOINT_STREAM;
    e->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (e->name == NULL)
        return -ENOMEM;
    return e->fd < 0 ? err_errno(err, e->name, "use") : 0;
}

int endpoint_open_source(struct endpoint *ret, const char *name,
                         const struct endpoint_options *options, struct error *err)
{
    int r = endpoint_begin(ret, name);
    if (r < 0)
        return r;
    if (strcmp(name, "-") == 0)
        r = open_stream(ret, STDIN_FILENO, options->format, err);
    else if (uri_is_nbd(name))
        r = open_uri(ret, name, err);
    else
        r = open_source_file(ret, options, err);
    if (r < 0)
        endpoint_close(ret);
    return r;
}

/* --- destinations --- */

static int check_room(const struct endpoint *e, uint64_t size_bytes, struct error *err)
{
    if (e->size_bytes < size_bytes)
        return err_set(err, -ENOSPC, "%s: has %llu bytes; the disk has %llu", e->name,
                       (unsigned long long)e->size_bytes, (unsigned long long)size_bytes);
    return 0;
}

static int open_destination_uri(struct endpoint *e, const char *uri, uint64_t size_bytes,
                                struct error *err)
{
    int r = open_uri(e, uri, err);
    if (r == 0 && nbd_is_read_only(e->nbd) > 0)
        r = err_set(err, -EROFS, "%s: is read-only", e->name);
    return r < 0 ? r : check_room(e, size_bytes, err);
}

static int open_destination_device(struct endpoint *e, uint64_t size_bytes,
                                   struct error *err)
{
    e->fd = open(e->name, O_WRONLY | O_EXCL | O_CLOEXEC);
    off_t end = e->fd < 0 ? -1 : lseek(e->fd, 0, SEEK_END);
    if (end < 0)
        return err_errno(err, e->name, "write to");
    e->kind = ENDPOINT_FILE;
    e->size_bytes = (uint64_t)end;
    e->can_zero = true;
    return check_room(e, size_bytes, err);
}

/* A new, empty file beside the one it is to become. */
static int open_temp(struct endpoint *e, struct error *err)
{
    char resolved[PATH_MAX];
    /* What a link points to is replaced, not the link. */
    const char *target = realpath(e->name, resolved) != NULL ? resolved : e->name;
    const char *base = strrchr(target, '/');
    base = base != NULL ? base + 1 : target;
    e->final = strdup(target);
    if (e->final == NULL ||
        asprintf(&e->temp, "%.*s.%s.XXXXXX", (int)(base - target), target, base) < 0) {
        e->temp = NULL;
        return -ENOMEM;
    }
    e->fd = mkostemp(e->temp, O_CLOEXEC);
    if (e->fd < 0) {
        int r = err_errno(err, e->name, "make this file");
        free(take(e->temp));
        return r;
    }
    mode_t mask = umask(0);
    umask(mask);
    return fchmod(e->fd, 0666 & ~mask) < 0 ? err_errno(err, e->name, "make") : 0;
}

/* From the end of the name. */
static const char *guess_format(const char *name)
{
    static const struct {
        const char *ending, *format;
    } endings[] = {{".qcow2", "qcow2"},
                   {".vmdk", "vmdk"},
                   {".vhdx", "vhdx"},
                   {".vdi", "vdi"},
                   {".vhd", "vpc"}};
    size_t len = strlen(name);
    for (size_t i = 0; i < ARRAY_LEN(endings); i++) {
        size_t n = strlen(endings[i].ending);
        if (len > n && strcasecmp(name + len - n, endings[i].ending) == 0)
            return endings[i].format;
    }
    return "raw";
}

static int open_new_file(struct endpoint *e, uint64_t size_bytes, const char *format,
                         struct error *err)
{
    int r = open_temp(e, err);
    if (r < 0)
        return r;
    e->is_zero = true;
    if (strcmp(format, "raw") == 0) {
        e->kind = ENDPOINT_FILE;
        e->size_bytes = size_bytes;
        return ftruncate(e->fd, (off_t)size_bytes) < 0
                   ? err_errno(err, e->name, "give its size to")
                   : 0;
    }
    char path[PATH_MAX];
    if (realpath(e->temp, path) == NULL)
        return err_errno(err, e->name, "find");
    r = image_create(path, format, size_bytes, err);
    if (r == 0)
        r = nbd_begin(e, err);
    if (r == 0)
        r = image_serve(e->nbd, path, format, IMAGE_WRITE, e->name, err);
    if (r == 0)
        r = nbd_connected(e, err);
    return r < 0 ? r : check_room(e, size_bytes, err);
}

static int open_destination_file(struct endpoint *e, uint64_t size_bytes,
                                 const char *format, struct error *err)
{
    struct stat st;
    bool found = stat(e->name, &st) == 0;
    if (found && S_ISDIR(st.st_mode))
        return err_set(err, -EISDIR, "%s: a folder; name a file in it", e->name);
    if (!found || S_ISREG(st.st_mode))
        return open_new_file(e, size_bytes,
                             format != NULL ? format : guess_format(e->name), err);
    if (format != NULL && strcmp(format, "raw") != 0)
        return err_set(err, -EINVAL, "%s: only raw; %s needs a file", e->name, format);
    if (S_ISBLK(st.st_mode))
        return open_destination_device(e, size_bytes, err);
    e->kind = ENDPOINT_STREAM;
    e->fd = open(e->name, O_WRONLY | O_CLOEXEC);
    return e->fd < 0 ? err_errno(err, e->name, "write to") : 0;
}

int endpoint_open_destination(struct endpoint *ret, const char *name, uint64_t size_bytes,
                              const struct endpoint_options *options, struct error *err)
{
    int r = endpoint_begin(ret, name);
    if (r < 0)
        return r;
    if (strcmp(name, "-") == 0)
        r = open_stream(ret, STDOUT_FILENO, options->format, err);
    else if (uri_is_nbd(name))
        r = open_destination_uri(ret, name, size_bytes, err);
    else
        r = open_destination_file(ret, size_bytes, options->format, err);
    if (r < 0)
        endpoint_close(ret);
    return r;
}

/* --- the end --- */

static int sync_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    cleanup(free_ptr) char *folder = slash == NULL
                                         ? strdup(".")
                                         : strndup(path, (size_t)(slash - path) + 1);
    int fd = folder != NULL ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd < 0)
        return -1;
    int r = fsync(fd);
    close(fd);
    return r;
}

int endpoint_commit(struct endpoint *e, struct error *err)
{
    if (e->kind == ENDPOINT_NBD) {
        bool good = nbd_can_flush(e->nbd) <= 0 || nbd_flush(e->nbd, 0) == 0;
        if (!good || nbd_shutdown(e->nbd, 0) < 0)
            return err_nbd(err, e->name);
        /* Ends a child, so that it has written all it has. */
        nbd_close(take(e->nbd));
    }
    bool can_sync = e->fd >= 0 && e->kind != ENDPOINT_STREAM;
    if (can_sync && fsync(e->fd) < 0)
        return err_errno(err, e->name, "write all of");
    if (e->temp == NULL)
        return 0;
    if (rename(e->temp, e->final) < 0)
        return err_errno(err, e->name, "name the finished file");
    free(take(e->temp));
    return sync_parent(e->final) < 0 ? err_errno(err, e->name, "sync the folder of") : 0;
}

void endpoint_close(struct endpoint *e)
{
    if (e->nbd != NULL)
        nbd_close(take(e->nbd));
    if (e->fd >= 0 && e->name != NULL)
        close(e->fd);
    if (e->temp != NULL)
        unlink(e->temp);
    free(e->name);
    free(e->temp);
    free(e->final);
    *e = (struct endpoint){.fd = -1};
}
