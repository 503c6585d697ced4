/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/image.h"

#include <fcntl.h>
#include <jansson.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* No answer of qemu-img is longer than this. */
#define OUTPUT_BYTES_MAX (1 * MIB)

/* Exit codes of `qemu-img check`. */
enum { CHECK_SOUND = 0, CHECK_CORRUPT = 2, CHECK_LEAKS = 3, CHECK_UNSUPPORTED = 63 };

struct output {
    char *out; /* malloc'd */
    char *err; /* malloc'd, the first line without the program's name */
    int status;
};

static void output_done(struct output *o)
{
    free(o->out);
    free(o->err);
}

/* What was written to a memory file, as a string. */
static char *read_back(int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return NULL;
    size_t len = (size_t)min_u64((uint64_t)st.st_size, OUTPUT_BYTES_MAX);
    char *text = malloc(len + 1);
    if (text == NULL)
        return NULL;
    ssize_t n = pread(fd, text, len, 0);
    text[n > 0 ? n : 0] = '\0';
    return text;
}

/* "qemu-img: Could not open 'x': ..." without the first word, and only one line. */
static char *first_line(char *text)
{
    if (text == NULL)
        return NULL;
    text[strcspn(text, "\n")] = '\0';
    size_t skip = strcspn(text, " ");
    if (strncmp(text, "qemu-", 5) == 0 && text[skip] == ' ')
        memmove(text, text + skip + 1, strlen(text + skip));
    return text;
}

static int spawn(const char *const argv[], int out_fd, int err_fd, pid_t *ret_pid)
{
    posix_spawn_file_actions_t actions;
    int r = posix_spawn_file_actions_init(&actions);
    if (r != 0)
        return -r;
    r = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY,
                                         0);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&actions, out_fd, STDOUT_FILENO);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&actions, err_fd, STDERR_FILENO);
    if (r == 0)
        r = posix_spawnp(ret_pid, argv[0], &actions, NULL, (char *const *)(uintptr_t)argv,
                         environ);
    posix_spawn_file_actions_destroy(&actions);
    return -r;
}

/* Runs a program to its end; what it says is small. */
static int run(const char *const argv[], struct output *ret, struct error *err)
{
    int out_fd = memfd_create("out", MFD_CLOEXEC);
    int err_fd = memfd_create("err", MFD_CLOEXEC);
    pid_t pid;
    int status = 0;
    int r = out_fd < 0 || err_fd < 0 ? -errno : spawn(argv, out_fd, err_fd, &pid);
    if (r == -ENOENT)
        r = err_set(err, r,
                    "%s is not installed: install qemu-utils, or say --format raw",
                    argv[0]);
    else if (r < 0)
        r = err_set(err, r, "cannot run %s: %s", argv[0], err_text(r));
    while (r == 0 && waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            r = err_set(err, -errno, "%s is lost: %s", argv[0], strerror(errno));
    if (r == 0) {
        ret->out = read_back(out_fd);
        ret->err = first_line(read_back(err_fd));
        ret->status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        r = ret->out != NULL && ret->err != NULL ? 0 : -ENOMEM;
    }
    if (out_fd >= 0)
        close(out_fd);
    if (err_fd >= 0)
        close(err_fd);
    return r;
}

static int info(const char *path, const char *format, json_t **ret, struct error *err)
{
    const char *argv[] = {"qemu-img", "info", "--output=json", "-f", format, path, NULL};
    const char *guess[] = {"qemu-img", "info", "--output=json", path, NULL};
    cleanup(output_done) struct output o = {0};
    int r = run(format != NULL ? argv : guess, &o, err);
    if (r < 0)
        return r;
    if (o.status != 0)
        return err_set(err, -EINVAL, "%s", o.err);
    *ret = json_loads(o.out, 0, NULL);
    return *ret != NULL
               ? 0
               : err_set(err, -EPROTO, "%s: cannot read what qemu-img says", path);
}

int image_detect(const char *path, char ret_format[IMAGE_FORMAT_MAX], struct error *err)
{
    cleanup(json_decrefp) json_t *object = NULL;
    int r = info(path, NULL, &object, err);
    if (r < 0)
        return r;
    const char *format = json_string_value(json_object_get(object, "format"));
    if (format == NULL || strlen(format) >= IMAGE_FORMAT_MAX)
        return err_set(err, -EPROTO, "%s: qemu-img names no format", path);
    strcpy(ret_format, format);
    return 0;
}

static int check_backing(const char *path, const char *format, struct error *err)
{
    cleanup(json_decrefp) json_t *object = NULL;
    int r = info(path, format, &object, err);
    if (r < 0)
        return r;
    const char *other = json_string_value(json_object_get(object, "backing-filename"));
    json_t *specific = json_object_get(object, "format-specific");
    json_t *data = json_object_get(specific, "data");
    if (other == NULL)
        other = json_string_value(json_object_get(data, "data-file"));
    if (other != NULL)
        return err_set(err, -EPERM,
                       "%s: is based on %s; say --backing if it may be read, too", path,
                       other);
    return 0;
}

int image_check(const char *path, const char *format, bool backing, struct error *err)
{
    int r = backing ? 0 : check_backing(path, format, err);
    if (r < 0)
        return r;
    const char *argv[] = {"qemu-img", "check", "--output=json", "-f", format, path, NULL};
    cleanup(output_done) struct output o = {0};
    r = run(argv, &o, err);
    if (r < 0)
        return r;
    switch (o.status) {
    case CHECK_SOUND:
    case CHECK_LEAKS: /* lost space in the image, no lost data */
    case CHECK_UNSUPPORTED:
        return 0;
    case CHECK_CORRUPT:
        return err_set(err, -EIO, "%s: the image is damaged; 'qemu-img check' says how",
                       path);
    default:
        return err_set(err, -EIO, "%s: %s", path, o.err);
    }
}

int image_create(const char *path, const char *format, uint64_t size_bytes,
                 struct error *err)
{
    char size[24];
    snprintf(size, sizeof size, "%llu", (unsigned long long)size_bytes);
    /* Without the option, vpc sizes are rounded to the geometry of an old disk. */
    const char *option = strcmp(format, "vpc") == 0 ? "-oforce_size=on" : NULL;
    const char *argv[] = {"qemu-img", "create", "-q",   "-f", format,
                          path,       size,     option, NULL};
    cleanup(output_done) struct output o = {0};
    int r = run(argv, &o, err);
    if (r == 0 && o.status != 0)
        r = err_set(err, -EINVAL, "%s", o.err);
    return r;
}

/* libnbd's child writes where we write, so what it says is caught by changing that. */
static int connect_child(struct nbd_handle *nbd, char **argv, int err_fd)
{
    int saved = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    if (saved < 0)
        return -errno;
    fflush(stderr);
    int r = dup2(err_fd, STDERR_FILENO) < 0 ? -errno : 0;
    if (r == 0 && nbd_connect_systemd_socket_activation(nbd, argv) < 0)
        r = -EIO;
    dup2(saved, STDERR_FILENO);
    close(saved);
    return r;
}

int image_serve(struct nbd_handle *nbd, const char *path, const char *format,
                enum image_access access, const char *name, struct error *err)
{
    const char *argv[] = {"qemu-nbd",
                          "-f",
                          format,
                          path,
                          access == IMAGE_READ ? "--read-only" : "--discard=unmap",
                          NULL};
    int err_fd = memfd_create("err", MFD_CLOEXEC);
    if (err_fd < 0)
        return err_set(err, -errno, "%s: %s", name, strerror(errno));
    int r = connect_child(nbd, (char **)(uintptr_t)argv, err_fd);
    if (r < 0) {
        cleanup(free_ptr) char *text = first_line(read_back(err_fd));
        const char *why = text != NULL && text[0] != '\0' ? text : nbd_get_error();
        r = err_set(err, r, "%s: %s", name, why != NULL ? why : err_text(r));
    }
    close(err_fd);
    return r;
}
