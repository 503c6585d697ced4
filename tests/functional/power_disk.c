/* SPDX-License-Identifier: Apache-2.0 */
/*
 * power_disk MEDIUM FOLDER [lies]: mounts two files on FOLDER. `disk` is a disk with a
 * write cache: a write is in the cache until the next fsync takes all of it to the file
 * MEDIUM. What is written to `power` cuts the power:
 *
 *     PIECE PERCENT SEED
 *
 * Of what was never synced each piece of PIECE bytes reaches MEDIUM as likely as PERCENT
 * says, whatever happens to the others; then the disk answers nothing but EIO. Reading
 * `power` says how many writes and bytes were in the cache by then, how many bytes of
 * these are lost, and how many syncs there were.
 *
 * A disk that `lies` answers a sync without one.
 *
 * One thread: a request is answered before the next one is looked at.
 */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEXT_MAX 128U

struct unsynced {
    struct unsynced *next;
    uint64_t offset;
    size_t len;
    uint8_t bytes[];
};

static const char *medium_path;
static int medium;
static uint64_t size;
static uint8_t *now; /* what is read: the medium, and above it what is in the cache */
static struct unsynced *oldest, **newest = &oldest;
static uint64_t cached_writes, cached_bytes, lost_bytes, syncs;
static bool lies, is_off;

static bool is_disk(const char *path)
{
    return strcmp(path, "/disk") == 0;
}

static bool is_power(const char *path)
{
    return strcmp(path, "/power") == 0;
}

static void write_medium(const uint8_t *bytes, size_t len, uint64_t offset)
{
    while (len > 0) {
        ssize_t done = pwrite(medium, bytes, len, (off_t)offset);
        if (done <= 0) {
            perror(medium_path);
            abort();
        }
        bytes += done;
        len -= (size_t)done;
        offset += (size_t)done;
    }
}

static struct unsynced *take_oldest(void)
{
    struct unsynced *write = oldest;
    if (write != NULL)
        oldest = write->next;
    if (oldest == NULL)
        newest = &oldest;
    return write;
}

static int sync_disk(void)
{
    struct unsynced *write;
    syncs++;
    while (!lies && (write = take_oldest()) != NULL) {
        write_medium(write->bytes, write->len, write->offset);
        free(write);
    }
    if (!lies)
        cached_writes = cached_bytes = 0;
    return 0;
}

static void cut_power(size_t piece, long percent)
{
    struct unsynced *write;
    is_off = true;
    while ((write = take_oldest()) != NULL) {
        for (size_t at = 0; at < write->len; at += piece) {
            size_t len = write->len - at < piece ? write->len - at : piece;
            if (random() % 100 < percent)
                write_medium(write->bytes + at, len, write->offset + at);
            else
                lost_bytes += len;
        }
        free(write);
    }
}

/* --- what the kernel asks --- */

static int get_attributes(const char *path, struct stat *st, struct fuse_file_info *file)
{
    (void)file;
    *st = (struct stat){.st_mode = S_IFREG | 0600, .st_nlink = 1};
    if (strcmp(path, "/") == 0)
        *st = (struct stat){.st_mode = S_IFDIR | 0700, .st_nlink = 2};
    else if (is_disk(path))
        st->st_size = (off_t)size;
    else if (is_power(path))
        st->st_size = TEXT_MAX;
    else
        return -ENOENT;
    return 0;
}

static int open_file(const char *path, struct fuse_file_info *file)
{
    file->direct_io = 1; /* nothing of it in the kernel's memory */
    return is_disk(path) || is_power(path) ? 0 : -ENOENT;
}

static int read_file(const char *path, char *into, size_t len, off_t offset,
                     struct fuse_file_info *file)
{
    (void)file;
    if (is_power(path)) {
        snprintf(into, len, "%llu %llu %llu %llu\n", (unsigned long long)cached_writes,
                 (unsigned long long)cached_bytes, (unsigned long long)lost_bytes,
                 (unsigned long long)syncs);
        return offset == 0 ? (int)strnlen(into, len) : 0;
    }
    if (is_off)
        return -EIO;
    if ((uint64_t)offset >= size)
        return 0;
    if (len > size - (uint64_t)offset)
        len = (size_t)(size - (uint64_t)offset);
    memcpy(into, now + offset, len);
    return (int)len;
}

static int write_power(const char *from, size_t len)
{
    char text[TEXT_MAX] = "";
    size_t piece;
    long percent;
    unsigned int seed;
    memcpy(text, from, len < sizeof text - 1 ? len : sizeof text - 1);
    if (sscanf(text, "%zu %ld %u", &piece, &percent, &seed) != 3 || piece == 0)
        return -EINVAL;
    srandom(seed);
    cut_power(piece, percent);
    return (int)len;
}

static int write_file(const char *path, const char *from, size_t len, off_t offset,
                      struct fuse_file_info *file)
{
    (void)file;
    if (is_power(path))
        return write_power(from, len);
    if (is_off)
        return -EIO;
    if ((uint64_t)offset > size || len > size - (uint64_t)offset)
        return -ENOSPC;
    struct unsynced *write = malloc(sizeof *write + len);
    if (write == NULL)
        return -ENOMEM;
    *write = (struct unsynced){.offset = (uint64_t)offset, .len = len};
    memcpy(write->bytes, from, len);
    *newest = write;
    newest = &write->next;
    cached_writes++;
    cached_bytes += len;
    memcpy(now + offset, from, len);
    return (int)len;
}

static int sync_file(const char *path, int only_data, struct fuse_file_info *file)
{
    (void)path;
    (void)only_data;
    (void)file;
    return is_off ? -EIO : sync_disk();
}

static int truncate_file(const char *path, off_t len, struct fuse_file_info *file)
{
    (void)len;
    (void)file;
    return is_power(path) ? 0 : -EPERM; /* a shell that says `> power` asks for it */
}

static const struct fuse_operations operations = {
    .getattr = get_attributes,
    .open = open_file,
    .read = read_file,
    .write = write_file,
    .fsync = sync_file,
    .truncate = truncate_file,
};

int main(int argc, char **argv)
{
    struct stat st;
    if (argc < 3)
        return 2;
    medium_path = argv[1];
    lies = argc > 3 && strcmp(argv[3], "lies") == 0;
    medium = open(medium_path, O_RDWR | O_CLOEXEC);
    if (medium < 0 || fstat(medium, &st) != 0) {
        perror(medium_path);
        return 1;
    }
    size = (uint64_t)st.st_size;
    now = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, medium,
               0);
    if (now == MAP_FAILED) {
        perror(medium_path);
        return 1;
    }
    char *arguments[] = {argv[0], "-f", "-s", argv[2], NULL};
    return fuse_main(4, arguments, &operations, NULL);
}
