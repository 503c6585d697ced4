/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "tools/control_wire.h"

#define PID_NAME      "parallaxd.pid"
#define CREATING_NAME "creating"
#define LOG_NAME      "log"

static int err_errno(struct error *err, const char *path, const char *what)
{
    int code = errno;
    return err_set(err, -code, "%s: cannot %s: %s", path, what, strerror(code));
}

static int join(char ret[PATH_MAX], const char *folder, const char *name,
                struct error *err)
{
    int n = snprintf(ret, PATH_MAX, "%s/%s", folder, name);
    if (n < 0 || n >= PATH_MAX)
        return err_set(err, -ENAMETOOLONG, "%s: the path is too long", name);
    return 0;
}

int directory_path(const struct directory *dir, const char *name, char ret[PATH_MAX],
                   struct error *err)
{
    return join(ret, dir->path, name, err);
}

/* The folder of a block device's daemon: made with its parent. */
static int device_folder(const char *device, char ret[PATH_MAX], struct error *err)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", device);
    if (mkdir(DEVICE_FOLDERS, 0755) < 0 && errno != EEXIST)
        return err_errno(err, DEVICE_FOLDERS, "make this folder");
    return join(ret, DEVICE_FOLDERS, basename(copy), err);
}

static int read_pid(const struct directory *dir)
{
    char path[PATH_MAX];
    int pid = 0;
    if (directory_path(dir, PID_NAME, path, NULL) < 0)
        return 0;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    if (fscanf(file, "%d", &pid) != 1)
        pid = 0;
    fclose(file);
    return pid;
}

static int take_lock(struct directory *dir, struct error *err)
{
    char path[PATH_MAX];
    int r = directory_path(dir, "lock", path, err);
    if (r < 0)
        return r;
    dir->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (dir->lock_fd < 0)
        return err_errno(err, path, "open");
    if (flock(dir->lock_fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    r = errno == EWOULDBLOCK ? -PLX_EBUSY : err_errno(err, path, "lock");
    close(dir->lock_fd);
    dir->lock_fd = -1;
    if (r != -PLX_EBUSY)
        return r;
    int pid = read_pid(dir);
    if (pid > 0)
        return err_set(err, r, "%s is in use by parallaxd (pid %d)", dir->path, pid);
    return err_set(err, r, "%s is in use by another parallaxd", dir->path);
}

static int resolve_argument(struct directory *dir, const char *argument,
                            struct error *err)
{
    struct stat st;
    char folder[PATH_MAX], store[PATH_MAX];
    dir->is_device = stat(argument, &st) == 0 && S_ISBLK(st.st_mode);
    int r = 0;
    if (dir->is_device)
        r = device_folder(argument, folder, err);
    else if (snprintf(folder, sizeof folder, "%s", argument) >= PATH_MAX)
        r = err_set(err, -ENAMETOOLONG, "%s: the path is too long", argument);
    if (r < 0)
        return r;
    if (mkdir(folder, 0700) < 0 && errno != EEXIST)
        return err_errno(err, folder, "make this folder");
    if (realpath(folder, dir->path) == NULL)
        return err_errno(err, folder, "use as a folder");
    if (stat(dir->path, &st) < 0 || !S_ISDIR(st.st_mode))
        return err_set(err, -ENOTDIR, "%s: neither a folder nor a block device",
                       argument);
    if (!dir->is_device)
        return directory_path(dir, "store", dir->store, err);
    if (realpath(argument, store) == NULL)
        return err_errno(err, argument, "find");
    memcpy(dir->store, store, sizeof store);
    return 0;
}

int directory_open(struct directory *dir, const char *argument, struct error *err)
{
    *dir = (struct directory){.lock_fd = -1};
    int r = resolve_argument(dir, argument, err);
    if (r == 0)
        r = directory_path(dir, "meta", dir->meta, err);
    return r < 0 ? r : take_lock(dir, err);
}

static void remove_file(const struct directory *dir, const char *name)
{
    char path[PATH_MAX];
    if (directory_path(dir, name, path, NULL) == 0)
        unlink(path);
}

void directory_close(struct directory *dir)
{
    if (dir->lock_fd < 0)
        return;
    /* The lock file stays: removing it would let two daemons lock different files. */
    remove_file(dir, PID_NAME);
    close(dir->lock_fd);
    dir->lock_fd = -1;
}

int directory_write_pid(const struct directory *dir, struct error *err)
{
    char path[PATH_MAX];
    int r = directory_path(dir, PID_NAME, path, err);
    if (r < 0)
        return r;
    FILE *file = fopen(path, "we");
    if (file == NULL)
        return err_errno(err, path, "write");
    bool good = fprintf(file, "%d\n", (int)getpid()) > 0;
    good = fclose(file) == 0 && good;
    return good ? 0 : err_errno(err, path, "write");
}

int directory_redirect(const struct directory *dir, struct error *err)
{
    char path[PATH_MAX];
    int r = directory_path(dir, LOG_NAME, path, err);
    if (r < 0)
        return r;
    int log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        return err_errno(err, path, "open");
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    bool good = null_fd >= 0 && dup2(null_fd, STDIN_FILENO) >= 0 &&
                dup2(log_fd, STDOUT_FILENO) >= 0 && dup2(log_fd, STDERR_FILENO) >= 0;
    r = good ? 0 : err_errno(err, path, "redirect to");
    if (null_fd >= 0)
        close(null_fd);
    close(log_fd);
    return r;
}

/* --- making a store --- */

static bool exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 || errno != ENOENT;
}

static int sync_folder(const char *path, struct error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, path, "open");
    int r = fsync(fd) < 0 ? err_errno(err, path, "sync") : 0;
    close(fd);
    return r;
}

/* The metadata folder is flat. */
static int remove_meta(const char *meta, struct error *err)
{
    DIR *stream = opendir(meta);
    if (stream == NULL)
        return errno == ENOENT ? 0 : err_errno(err, meta, "open");
    int r = 0;
    for (struct dirent *entry; r == 0 && (entry = readdir(stream)) != NULL;) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            continue;
        if (unlinkat(dirfd(stream), name, 0) < 0)
            r = err_errno(err, meta, "empty this folder");
    }
    closedir(stream);
    if (r == 0 && rmdir(meta) < 0)
        r = err_errno(err, meta, "remove");
    return r;
}

static int remove_half_made(const struct directory *dir, struct error *err)
{
    char marker[PATH_MAX];
    int r = directory_path(dir, CREATING_NAME, marker, err);
    if (r < 0 || !exists(marker))
        return r;
    r = remove_meta(dir->meta, err);
    if (r == 0 && !dir->is_device && unlink(dir->store) < 0 && errno != ENOENT)
        r = err_errno(err, dir->store, "remove");
    return r < 0 ? r : directory_create_end(dir, err);
}

int directory_is_empty(const struct directory *dir, bool *ret_empty, struct error *err)
{
    int r = remove_half_made(dir, err);
    if (r == 0)
        *ret_empty = !exists(dir->meta) && (dir->is_device || !exists(dir->store));
    return r;
}

int directory_create_begin(const struct directory *dir, struct error *err)
{
    char marker[PATH_MAX];
    int r = directory_path(dir, CREATING_NAME, marker, err);
    if (r < 0)
        return r;
    int fd = open(marker, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, marker, "make");
    close(fd);
    return sync_folder(dir->path, err);
}

int directory_create_end(const struct directory *dir, struct error *err)
{
    /* What was made must be there for good before the marker is not. */
    int r = sync_folder(dir->path, err);
    if (r < 0)
        return r;
    remove_file(dir, CREATING_NAME);
    return sync_folder(dir->path, err);
}

void directory_create_undo(const struct directory *dir)
{
    /* Whatever of it fails is done when the marker is found next time. */
    remove_half_made(dir, NULL);
}

static int device_size(const char *path, uint64_t *ret_bytes, struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, path, "open");
    off_t end = lseek(fd, 0, SEEK_END);
    int r = end < 0 ? err_errno(err, path, "find the size of") : 0;
    close(fd);
    if (r == 0)
        *ret_bytes = (uint64_t)end;
    return r;
}

int directory_capacity(const struct directory *dir, uint64_t *ret_bytes,
                       struct error *err)
{
    uint64_t bytes = 0;
    struct statvfs vfs;
    if (dir->is_device) {
        int r = device_size(dir->store, &bytes, err);
        if (r < 0)
            return r;
    } else {
        if (statvfs(dir->path, &vfs) < 0)
            return err_errno(err, dir->path, "ask for free space");
        bytes = (uint64_t)vfs.f_bavail * vfs.f_frsize / 2;
    }
    *ret_bytes = round_down_u64(bytes, MIB);
    return 0;
}
