/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is left of LevelDB's files when the power fails: of its logs only what was synced,
 * and no table, for the test holds back the sync of every table. Writes that are not
 * synced fill one log and go on in the next; the synced one after them must have all of
 * them with it.
 */
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "tests/unit/on_loops.h"

#define LOGS_MAX 4096U

/* By number of log; written by the store's thread, read when it has nothing to do. */
static _Atomic uint64_t synced_bytes[LOGS_MAX];
static atomic_bool holds_tables;

static bool has_end(const char *text, const char *end)
{
    size_t len = strlen(text), end_len = strlen(end);
    return len >= end_len && strcmp(text + len - end_len, end) == 0;
}

static uint32_t log_number(const char *path)
{
    const char *slash = strrchr(path, '/');
    unsigned long number = strtoul(slash != NULL ? slash + 1 : path, NULL, 10);
    CHECK(number > 0 && number < LOGS_MAX);
    return (uint32_t)number;
}

/* In place of the one in libc, for LevelDB too. */
int fdatasync(int fd)
{
    char link[64], path[600] = "";
    struct stat st;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    CHECK(len > 0);
    path[len] = '\0';
    while (has_end(path, ".ldb") && atomic_load(&holds_tables))
        usleep(1000);
    CHECK_EQ(fstat(fd, &st), 0);
    int rc = (int)syscall(SYS_fdatasync, fd);
    if (rc == 0 && has_end(path, ".log"))
        atomic_store(&synced_bytes[log_number(path)], (uint64_t)st.st_size);
    return rc;
}

static char copy_from[512], copy_to[512];

static int copy_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    static uint8_t bytes[16 * MIB];
    char to[1024];
    if (type != FTW_F || has_end(path, "/LOCK"))
        return 0;
    size_t len = (size_t)st->st_size;
    if (has_end(path, ".log"))
        len = (size_t)min_u64(len, atomic_load(&synced_bytes[log_number(path)]));
    CHECK(len <= sizeof bytes);
    snprintf(to, sizeof to, "%s/%s", copy_to, path + ftw->base);
    int in = open(path, O_RDONLY | O_CLOEXEC);
    int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(in >= 0 && out >= 0);
    CHECK_EQ(read(in, bytes, len), (ssize_t)len);
    CHECK_EQ(write(out, bytes, len), (ssize_t)len);
    close(in);
    close(out);
    return 0;
}

static struct kv *open_kv(struct body *body, const char *name, bool create)
{
    struct kv *kv = NULL;
    CHECK_EQ(kv_open(body->loop, body_path(body, name), create, &kv, NULL), 0);
    return kv;
}

static void put(struct kv *kv, uint32_t n, size_t len, enum kv_durability durability)
{
    struct kv_batch batch;
    char key[16];
    void *value = calloc(1, len);
    CHECK(value != NULL);
    snprintf(key, sizeof key, "k%06u", n);
    kv_batch_init(&batch);
    kv_batch_put(&batch, key, strlen(key), value, len);
    CHECK_EQ(kv_write_wait(kv, &batch, durability), 0);
    free(value);
}

/* How many of the first n writes are there. */
static uint32_t count(struct kv *kv, uint32_t n)
{
    uint32_t there = 0;
    for (uint32_t i = 0; i < n; i++) {
        char key[16];
        void *value = NULL;
        size_t len;
        snprintf(key, sizeof key, "k%06u", i);
        int rc = kv_get(kv, key, strlen(key), &value, &len);
        CHECK(rc == 0 || rc == -ENOENT);
        there += rc == 0;
        free(value);
    }
    return there;
}

/* The power fails after n writes, the last one synced, in values of `len` bytes. */
static void fail_after(struct body *body, uint32_t n, size_t len)
{
    struct kv *kv = open_kv(body, "kv", true);
    atomic_store(&holds_tables, true);
    for (uint32_t i = 0; i < n; i++)
        put(kv, i, len, i + 1 == n ? KV_SYNCED : KV_UNSYNCED);
    snprintf(copy_from, sizeof copy_from, "%s", body_path(body, "kv"));
    snprintf(copy_to, sizeof copy_to, "%s", body_path(body, "left"));
    CHECK_EQ(mkdir(copy_to, 0700), 0);
    CHECK_EQ(nftw(copy_from, copy_file, 16, FTW_PHYS), 0);
    atomic_store(&holds_tables, false);
    kv_close(kv);
    kv = open_kv(body, "left", false);
    CHECK_EQ(count(kv, n), n);
    kv_close(kv);
}

/* Fewer bytes than two of LevelDB's logs have, which would wait for the tables. */
static void test_large(struct body *body)
{
    fail_after(body, 60, 100 * KIB);
}

/* Entries of the log are small, and what LevelDB has beside them is not. */
static void test_small(struct body *body)
{
    fail_after(body, 12000, 400);
}

/* A synced write is the one that begins the next log. */
static void test_last(struct body *body)
{
    fail_after(body, 2, 4200 * KIB);
}

int main(void)
{
    run_on_real(test_large);
    run_on_real(test_small);
    run_on_real(test_last);
    return 0;
}
