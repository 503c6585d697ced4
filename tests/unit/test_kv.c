/* SPDX-License-Identifier: Apache-2.0 */
/* The same bodies on LevelDB and on the simulated store. */
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

#include "tests/unit/on_loops.h"

static struct kv *open_kv(struct body *body, bool create)
{
    struct kv *kv = NULL;
    CHECK_EQ(kv_open(body->loop, body_path(body, "kv"), create, &kv, NULL), 0);
    return kv;
}

static int put(struct kv *kv, const char *key, const char *value)
{
    struct kv_batch batch;
    kv_batch_init(&batch);
    kv_batch_put(&batch, key, strlen(key), value, strlen(value));
    return kv_write_wait(kv, &batch, KV_SYNCED);
}

/* The value, or NULL. One at a time. */
static const char *get(struct kv *kv, const char *key)
{
    static char text[64];
    void *value = NULL;
    size_t len = 0;
    int rc = kv_get(kv, key, strlen(key), &value, &len);
    if (rc == -ENOENT)
        return NULL;
    CHECK_EQ(rc, 0);
    CHECK(len < sizeof text);
    memcpy(text, value, len);
    text[len] = '\0';
    free(value);
    return text;
}

static void test_open(struct body *body)
{
    struct kv *kv = NULL;
    struct error err = {0};
    const char *path = body_path(body, "kv");
    CHECK_EQ(kv_open(body->loop, path, false, &kv, &err), -ENOENT);
    CHECK(kv == NULL && strstr(err.text, path) != NULL);
    struct kv *first = open_kv(body, true);
    err = (struct error){0};
    CHECK_EQ(kv_open(body->loop, path, true, &kv, &err), -EBUSY);
    CHECK(kv == NULL && strstr(err.text, path) != NULL);
    kv_close(first);
    kv_close(open_kv(body, false));
}

static void test_pairs(struct body *body)
{
    struct kv *kv = open_kv(body, true);
    struct kv_batch batch;
    CHECK_EQ(put(kv, "a", "1"), 0);
    CHECK_EQ(put(kv, "b", "2"), 0);
    CHECK_STR(get(kv, "a"), "1");
    kv_batch_init(&batch);
    kv_batch_put(&batch, "c", 1, NULL, 0);
    kv_batch_put(&batch, "a", 1, "3", 1);
    kv_batch_delete(&batch, "b", 1);
    kv_batch_delete(&batch, "none", 4);
    kv_batch_put(&batch, "a", 1, "4", 1);
    CHECK_EQ(batch.count, 5);
    CHECK_EQ(kv_write_wait(kv, &batch, KV_UNSYNCED), 0);
    CHECK_EQ(batch.count, 0);
    kv_close(kv);
    kv = open_kv(body, false);
    CHECK_STR(get(kv, "a"), "4");
    CHECK(get(kv, "b") == NULL);
    CHECK_STR(get(kv, "c"), "");
    CHECK(get(kv, "cc") == NULL);
    kv_close(kv);
}

#define MANY 500U

struct many {
    struct kv_write writes[MANY];
    uint32_t completed;
    bool submitting;
};
static struct many many;

static void many_done(struct kv_write *write)
{
    CHECK(!many.submitting);
    CHECK_EQ(write->result, 0);
    CHECK(write == &many.writes[many.completed]); /* in order */
    many.completed++;
}

static void test_many(struct body *body)
{
    struct kv *kv = open_kv(body, true);
    many = (struct many){.submitting = true};
    for (uint32_t i = 0; i < MANY; i++) {
        char key[16], value[16];
        struct kv_write *write = &many.writes[i];
        snprintf(key, sizeof key, "k%03u", i);
        snprintf(value, sizeof value, "%u", i);
        kv_batch_init(&write->batch);
        kv_batch_put(&write->batch, key, 4, value, strlen(value));
        kv_batch_put(&write->batch, "last", 4, value, strlen(value));
        write->durability = i % 7 == 0 ? KV_SYNCED : KV_UNSYNCED;
        write->done = many_done;
        kv_submit(kv, write);
    }
    many.submitting = false;
    kv_close(kv); /* waits for all */
    CHECK_EQ(many.completed, MANY);
    kv = open_kv(body, false);
    CHECK_STR(get(kv, "k000"), "0");
    CHECK_STR(get(kv, "last"), "499");
    kv_close(kv);
}

/* Goes through the pages; returns how many pairs there were. */
static uint32_t scan_all(struct kv *kv, const char *prefix, const char *after,
                         uint32_t max_pairs)
{
    struct kv_pair last = {.key_len = strlen(after)};
    memcpy(last.key, after, last.key_len);
    uint32_t count = 0;
    bool more = true;
    while (more) {
        struct kv_page page;
        CHECK_EQ(
            kv_scan(kv, prefix, strlen(prefix), last.key, last.key_len, max_pairs, &page),
            0);
        CHECK(page.count <= max_pairs);
        CHECK(page.count == max_pairs || page.value_bytes >= MIB || !page.more);
        for (uint32_t i = 0; i < page.count; i++) {
            CHECK(memcmp(page.pairs[i].key, prefix, strlen(prefix)) == 0);
            CHECK(last.key_len == 0 || memcmp(page.pairs[i].key, last.key, 4) > 0);
            last = page.pairs[i];
        }
        count += page.count;
        more = page.more;
        kv_page_done(&page);
    }
    return count;
}

static void test_scan(struct body *body)
{
    struct kv *kv = open_kv(body, true);
    struct kv_batch batch;
    kv_batch_init(&batch);
    for (uint32_t i = 0; i < 100; i++) {
        char key[16];
        snprintf(key, sizeof key, "b%03u", i);
        kv_batch_put(&batch, key, 4, key, 4);
    }
    kv_batch_put(&batch, "a999", 4, "x", 1);
    kv_batch_put(&batch, "c000", 4, "x", 1);
    CHECK_EQ(kv_write_wait(kv, &batch, KV_SYNCED), 0);
    CHECK_EQ(scan_all(kv, "b", "", 1000), 100);
    CHECK_EQ(scan_all(kv, "b", "", 7), 100);
    CHECK_EQ(scan_all(kv, "b", "", 50), 100);
    CHECK_EQ(scan_all(kv, "b", "b049", 100), 50);
    CHECK_EQ(scan_all(kv, "b", "a000", 10), 100);
    CHECK_EQ(scan_all(kv, "b", "c000", 10), 0);
    CHECK_EQ(scan_all(kv, "", "", 10), 102);
    CHECK_EQ(scan_all(kv, "d", "", 10), 0);
    void *large = calloc(1, 600 * KIB);
    for (char key[5] = "e000"; key[3] < '5'; key[3]++)
        kv_batch_put(&batch, key, 4, large, 600 * KIB);
    free(large);
    CHECK_EQ(kv_write_wait(kv, &batch, KV_UNSYNCED), 0);
    CHECK_EQ(scan_all(kv, "e", "", 100), 5);
    kv_close(kv);
}

/* Once a write has failed, every call returns its error. */
static void check_failed(struct kv *kv, int code)
{
    void *value;
    size_t len;
    struct kv_page page;
    CHECK_EQ(put(kv, "b", "1"), code);
    CHECK_EQ(kv_get(kv, "a", 1, &value, &len), code);
    CHECK_EQ(kv_scan(kv, "", 0, "", 0, 10, &page), code);
}

static void test_failure_real(struct body *body)
{
    struct kv *kv = open_kv(body, true);
    CHECK_EQ(put(kv, "a", "1"), 0);
    /* No file may grow beyond a page: LevelDB's log cannot take this. */
    struct rlimit before, limit;
    CHECK_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = BLOCK_SIZE;
    signal(SIGXFSZ, SIG_IGN);
    log_set_level(loop_log(body->loop), LOG_ERROR);
    log_set_fd(loop_log(body->loop), open("/dev/null", O_WRONLY | O_CLOEXEC));
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    struct kv_batch batch;
    kv_batch_init(&batch);
    void *large = calloc(1, 64 * KIB);
    kv_batch_put(&batch, "large", 5, large, 64 * KIB);
    free(large);
    CHECK_EQ(kv_write_wait(kv, &batch, KV_SYNCED), -EIO);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    check_failed(kv, -EIO);
    kv_close(kv);
    kv = open_kv(body, false);
    CHECK_STR(get(kv, "a"), "1");
    kv_close(kv);
}

static void test_damage_real(struct body *body)
{
    kv_close(open_kv(body, true));
    int fd = open(body_path(body, "kv/CURRENT"), O_WRONLY | O_TRUNC | O_CLOEXEC);
    CHECK(fd >= 0 && write(fd, "nonsense", 8) == 8);
    close(fd);
    struct kv *kv = NULL;
    struct error err = {0};
    const char *path = body_path(body, "kv");
    CHECK_EQ(kv_open(body->loop, path, false, &kv, &err), -PLX_EDAMAGED);
    CHECK(strstr(err.text, path) != NULL && strstr(err.text, "CURRENT") != NULL);
}

static void test_failure_sim(struct body *body)
{
    struct kv *kv = open_kv(body, true);
    CHECK_EQ(put(kv, "a", "1"), 0);
    sim_fail_nth_io(body->world, 0);
    CHECK_EQ(put(kv, "a", "2"), -EIO);
    CHECK(sim_failure_happened(body->world));
    check_failed(kv, -EIO);
    kv_close(kv);
    kv = open_kv(body, false);
    CHECK(get(kv, "a") != NULL);
    kv_close(kv);
    sim_kv_damage(body->world, body_path(body, "kv"));
    CHECK_EQ(kv_open(body->loop, body_path(body, "kv"), true, &kv, NULL), -PLX_EDAMAGED);
}

/* A batch that found no memory is a failed write. */
static void test_bad_batch(struct body *body)
{
    struct kv *kv = open_kv(body, true);
    struct kv_batch batch;
    kv_batch_init(&batch);
    kv_batch_put(&batch, "a", 1, "1", 1);
    batch.bad = true;
    log_set_level(loop_log(body->loop), LOG_ERROR);
    log_set_fd(loop_log(body->loop), open("/dev/null", O_WRONLY | O_CLOEXEC));
    CHECK_EQ(kv_write_wait(kv, &batch, KV_SYNCED), -ENOMEM);
    check_failed(kv, -ENOMEM);
    kv_close(kv);
}

int main(void)
{
    run_on_both(test_open);
    run_on_both(test_pairs);
    run_on_both(test_many);
    run_on_both(test_scan);
    run_on_both(test_bad_batch);
    run_on_real(test_failure_real);
    run_on_real(test_damage_real);
    run_on_sim(test_failure_sim);
    return 0;
}
