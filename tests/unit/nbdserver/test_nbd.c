/* SPDX-License-Identifier: Apache-2.0 */
/* The NBD server with a real client, libnbd. */
#include <libnbd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/unit/nbdserver/rig.h"

#define LET_ALL (~(uint32_t)LIBNBD_STRICT_MASK & LIBNBD_STRICT_MASK)

enum mode { SIMPLE, STRUCTURED };

static struct nbd_handle *prepare(enum mode mode)
{
    struct nbd_handle *nbd = nbd_create();
    CHECK(nbd != NULL);
    CHECK_EQ(nbd_set_request_structured_replies(nbd, mode == STRUCTURED), 0);
    CHECK_EQ(nbd_set_strict_mode(nbd, LET_ALL), 0);
    CHECK_EQ(nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION), 0);
    return nbd;
}

static struct nbd_handle *attach(struct rig *rig, const char *name, enum mode mode)
{
    struct nbd_handle *nbd = prepare(mode);
    CHECK_EQ(nbd_set_export_name(nbd, name), 0);
    if (nbd_connect_unix(nbd, rig->path) < 0) {
        fprintf(stderr, "%s\n", nbd_get_error());
        exit(1);
    }
    return nbd;
}

static void detach(struct nbd_handle *nbd)
{
    CHECK_EQ(nbd_shutdown(nbd, 0), 0);
    nbd_close(nbd);
}

static void fill(uint8_t *bytes, size_t len, uint32_t seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * 1664525 + 1013904223;
        bytes[i] = (uint8_t)(seed >> 24);
    }
}

/* --- handshake --- */

struct names {
    char text[256];
};

static int add_name(void *user, const char *name, const char *description)
{
    struct names *names = user;
    (void)description;
    strcat(names->text, name);
    strcat(names->text, " ");
    return 0;
}

static void test_handshake(struct rig *rig)
{
    struct names names = {""};
    struct nbd_handle *nbd = prepare(STRUCTURED);
    CHECK_EQ(nbd_set_opt_mode(nbd, true), 0);
    CHECK_EQ(nbd_set_full_info(nbd, true), 0);
    CHECK_EQ(nbd_connect_unix(nbd, rig->path), 0);
    nbd_list_callback callback = {.callback = add_name, .user_data = &names};
    CHECK_EQ(nbd_opt_list(nbd, callback), 3);
    CHECK_STR(names.text, "disk other disk@old ");
    CHECK_EQ(nbd_set_export_name(nbd, "nobody"), 0);
    CHECK_EQ(nbd_opt_info(nbd), -1);
    CHECK_EQ(nbd_opt_go(nbd), -1);
    CHECK_EQ(nbd_get_errno(), ENOENT);
    CHECK_EQ(nbd_set_export_name(nbd, "disk@new"), 0);
    CHECK_EQ(nbd_opt_info(nbd), -1);
    CHECK_EQ(nbd_set_export_name(nbd, "disk@old"), 0);
    CHECK_EQ(nbd_opt_info(nbd), 0);
    CHECK_EQ(nbd_get_size(nbd), 1 * MIB);
    CHECK_EQ(nbd_is_read_only(nbd), 1);
    CHECK_EQ(nbd_can_zero(nbd), 0);
    CHECK_EQ(nbd_set_export_name(nbd, "disk"), 0);
    CHECK_EQ(nbd_opt_go(nbd), 0);
    CHECK_EQ(nbd_get_size(nbd), RIG_DISK_BYTES);
    CHECK_EQ(nbd_is_read_only(nbd), 0);
    CHECK(nbd_can_zero(nbd) && nbd_can_trim(nbd) && nbd_can_flush(nbd));
    CHECK(nbd_can_fua(nbd) && nbd_can_fast_zero(nbd) && nbd_can_cache(nbd));
    CHECK(nbd_can_multi_conn(nbd) && nbd_can_df(nbd));
    CHECK_EQ(nbd_can_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION), 1);
    CHECK_EQ(nbd_can_meta_context(nbd, "base:other"), 0);
    CHECK_EQ(nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM), 1);
    CHECK_EQ(nbd_get_block_size(nbd, LIBNBD_SIZE_PREFERRED), 4096);
    CHECK_EQ(nbd_get_block_size(nbd, LIBNBD_SIZE_MAXIMUM), 32 * MIB);
    detach(nbd);
    rig_wait_idle(rig);
}

/* What comes in is a disk like any other, and listed nowhere (see above). */
static void test_incoming(struct rig *rig)
{
    uint8_t bytes[4096];
    struct nbd_handle *nbd = attach(rig, "disk?incoming", STRUCTURED);
    CHECK_EQ(nbd_get_size(nbd), RIG_DISK_BYTES);
    CHECK_EQ(nbd_is_read_only(nbd), 0);
    fill(bytes, sizeof bytes, 1);
    CHECK_EQ(nbd_pwrite(nbd, bytes, sizeof bytes, 0, 0), 0);
    CHECK_EQ(nbd_pread(nbd, bytes, sizeof bytes, 4096, 0), 0);
    detach(nbd);
    CHECK_EQ(rig->host->incoming, 1);
    detach(attach(rig, "disk", STRUCTURED));
    CHECK_EQ(rig->host->incoming, 1);
    static const char *const bad[] = {"disk@old?incoming", "?incoming", "disk?incomin",
                                      "disk?incoming?incoming", "nobody?incoming"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        nbd = prepare(STRUCTURED);
        CHECK_EQ(nbd_set_opt_mode(nbd, true), 0);
        CHECK_EQ(nbd_connect_unix(nbd, rig->path), 0);
        CHECK_EQ(nbd_set_export_name(nbd, bad[i]), 0);
        CHECK_EQ(nbd_opt_info(nbd), -1);
        CHECK_EQ(nbd_opt_abort(nbd), 0);
        nbd_close(nbd);
    }
    nbd = prepare(STRUCTURED);
    CHECK_EQ(nbd_set_opt_mode(nbd, true), 0);
    CHECK_EQ(nbd_connect_unix(nbd, rig->path), 0);
    CHECK_EQ(nbd_set_export_name(nbd, "disk?incoming"), 0);
    CHECK_EQ(nbd_opt_info(nbd), 0);
    CHECK_EQ(nbd_is_read_only(nbd), 0);
    CHECK_EQ(nbd_opt_abort(nbd), 0);
    nbd_close(nbd);
    rig_wait_idle(rig);
}

static void refuse_opening(struct rig *rig)
{
    rig->host->open_error = -PLX_EOWNED;
}

static void slow_opening(struct rig *rig)
{
    rig->host->open_error = 0;
    rig->host->open_ns = 100 * NS_PER_MS;
}

static void test_opening(struct rig *rig)
{
    rig_call(rig, refuse_opening);
    struct nbd_handle *nbd = prepare(STRUCTURED);
    nbd_set_export_name(nbd, "disk");
    CHECK_EQ(nbd_connect_unix(nbd, rig->path), -1);
    nbd_close(nbd);
    rig_call(rig, slow_opening);
    detach(attach(rig, "disk", STRUCTURED));
    /* The client leaves while its disk is being opened. */
    int fd = raw_hello(rig);
    raw_option(fd, NBD_OPT_EXPORT_NAME, "disk", 4);
    usleep(20000);
    close(fd);
    rig_wait_idle(rig);
}

/* --- reads and writes --- */

static void compare_all(struct rig *rig, struct nbd_handle *nbd, const uint8_t *shadow)
{
    uint8_t *bytes = malloc(RIG_DISK_BYTES);
    uint64_t at = 0;
    while (at < RIG_DISK_BYTES) {
        uint64_t len = min_u64(3 * MIB + 77, RIG_DISK_BYTES - at);
        CHECK_EQ(nbd_pread(nbd, bytes + at, len, at, 0), 0);
        at += len;
    }
    CHECK(memcmp(bytes, shadow, RIG_DISK_BYTES) == 0);
    CHECK(memcmp(rig->disk->bytes, shadow, RIG_DISK_BYTES) == 0);
    free(bytes);
}

static void reorder(struct rig *rig)
{
    rig->host->reorder = true;
}

static void any_offset(struct rig *rig, enum mode mode)
{
    uint8_t *shadow = calloc(1, RIG_DISK_BYTES), *bytes = malloc(200000);
    struct nbd_handle *nbd = attach(rig, "disk", mode);
    unsigned seed = 7;
    rig_call(rig, reorder);
    memcpy(shadow, rig->disk->bytes, RIG_DISK_BYTES);
    for (uint32_t i = 0; i < 300; i++) {
        size_t len = 1 + (size_t)rand_r(&seed) % (i % 3 ? 9000 : 200000);
        uint64_t offset = (uint64_t)rand_r(&seed) % (RIG_DISK_BYTES - len + 1);
        fill(bytes, len, i);
        CHECK_EQ(nbd_pwrite(nbd, bytes, len, offset, 0), 0);
        memcpy(shadow + offset, bytes, len);
        offset = (uint64_t)rand_r(&seed) % (RIG_DISK_BYTES - len + 1);
        CHECK_EQ(nbd_pread(nbd, bytes, len, offset, 0), 0);
        CHECK(memcmp(bytes, shadow + offset, len) == 0);
    }
    compare_all(rig, nbd, shadow);
    detach(nbd);
    free(shadow);
    free(bytes);
}

static void test_any_offset(struct rig *rig)
{
    any_offset(rig, STRUCTURED);
    any_offset(rig, SIMPLE);
}

static void test_longest(struct rig *rig)
{
    uint8_t *bytes = malloc(32 * MIB), *back = malloc(32 * MIB);
    for (int mode = SIMPLE; mode <= STRUCTURED; mode++) {
        struct nbd_handle *nbd = attach(rig, "disk", (enum mode)mode);
        fill(bytes, 32 * MIB, (uint32_t)mode);
        CHECK_EQ(nbd_pwrite(nbd, bytes, 32 * MIB, 4097, LIBNBD_CMD_FLAG_FUA), 0);
        CHECK_EQ(nbd_pread(nbd, back, 32 * MIB, 4097, 0), 0);
        CHECK(memcmp(bytes, back, 32 * MIB) == 0);
        detach(nbd);
    }
    CHECK_EQ(rig->host->fua, 2 * 33);
    free(bytes);
    free(back);
}

struct slot {
    uint8_t bytes[150000];
    uint64_t offset;
    size_t len;
    bool is_write;
    int64_t cookie;
};

/* Many at a time, reads and writes of ranges of their own, of all lengths. */
static void many(struct nbd_handle *nbd, uint64_t base, uint32_t count, unsigned seed)
{
    struct slot *slots = calloc(count, sizeof *slots);
    uint8_t *expected = malloc(sizeof slots->bytes);
    for (uint32_t round = 0; round < 6; round++) {
        for (uint32_t i = 0; i < count; i++) {
            struct slot *slot = &slots[i];
            slot->is_write = round % 2 == 0;
            if (slot->is_write) {
                slot->len = 1 + (size_t)rand_r(&seed) % sizeof slot->bytes;
                slot->offset = base + i * sizeof slot->bytes + 13;
                fill(slot->bytes, slot->len, round + i);
                slot->cookie = nbd_aio_pwrite(nbd, slot->bytes, slot->len, slot->offset,
                                              NBD_NULL_COMPLETION, 0);
            } else {
                slot->cookie = nbd_aio_pread(nbd, slot->bytes, slot->len, slot->offset,
                                             NBD_NULL_COMPLETION, 0);
            }
            CHECK(slot->cookie > 0);
        }
        while (nbd_aio_in_flight(nbd) > 0)
            CHECK(nbd_poll(nbd, -1) >= 0);
        for (uint32_t i = 0; i < count; i++) {
            CHECK_EQ(nbd_aio_command_completed(nbd, (uint64_t)slots[i].cookie), 1);
            fill(expected, slots[i].len, round - !slots[i].is_write + i);
            CHECK(memcmp(expected, slots[i].bytes, slots[i].len) == 0);
        }
    }
    free(slots);
    free(expected);
}

static void test_depth(struct rig *rig)
{
    for (int mode = SIMPLE; mode <= STRUCTURED; mode++) {
        struct nbd_handle *nbd = attach(rig, "disk", (enum mode)mode);
        many(nbd, 0, 300, 1);
        detach(nbd);
    }
}

struct crowd {
    struct rig *rig;
    uint32_t number;
};

static void *crowd_thread(void *arg)
{
    struct crowd *crowd = arg;
    struct nbd_handle *nbd = attach(crowd->rig, "disk", crowd->number % 2);
    many(nbd, crowd->number * 8 * MIB, 50, crowd->number);
    detach(nbd);
    return NULL;
}

/* Several clients of one disk; also run with a pool that is far too small for them. */
static void test_crowd(struct rig *rig)
{
    pthread_t threads[8];
    struct crowd crowds[8];
    for (uint32_t i = 0; i < 8; i++) {
        crowds[i] = (struct crowd){rig, i};
        CHECK_EQ(pthread_create(&threads[i], NULL, crowd_thread, &crowds[i]), 0);
    }
    for (uint32_t i = 0; i < 8; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    rig_wait_idle(rig);
}

static void test_long_reads_in_a_small_pool(struct rig *rig)
{
    uint8_t *bytes = malloc(2 * 20 * MIB);
    for (int mode = SIMPLE; mode <= STRUCTURED; mode++) {
        struct nbd_handle *nbd = attach(rig, "disk", (enum mode)mode);
        for (uint32_t i = 0; i < 2; i++)
            CHECK(nbd_aio_pread(nbd, bytes + i * 20 * MIB, 20 * MIB, 1,
                                NBD_NULL_COMPLETION, 0) > 0);
        while (nbd_aio_in_flight(nbd) > 0)
            CHECK(nbd_poll(nbd, -1) >= 0);
        CHECK(memcmp(bytes, bytes + 20 * MIB, 20 * MIB) == 0);
        detach(nbd);
    }
    free(bytes);
}

/* --- the other commands --- */

struct extents {
    uint32_t count;
    uint32_t entries[64];
};

static int keep_extents(void *user, const char *context, uint64_t offset,
                        uint32_t *entries, size_t count, int *error)
{
    struct extents *extents = user;
    (void)context, (void)offset, (void)error;
    CHECK(count <= ARRAY_LEN(extents->entries));
    memcpy(extents->entries, entries, count * sizeof *entries);
    extents->count = (uint32_t)count;
    return 0;
}

static void test_commands(struct rig *rig)
{
    uint8_t bytes[20000];
    struct extents extents;
    nbd_extent_callback callback = {.callback = keep_extents, .user_data = &extents};
    struct nbd_handle *nbd = attach(rig, "other", STRUCTURED);
    memset(bytes, 7, sizeof bytes);
    CHECK_EQ(nbd_pwrite(nbd, bytes, sizeof bytes, 4096, 0), 0);
    CHECK_EQ(nbd_flush(nbd, 0), 0);
    CHECK_EQ(rig->host->flushes, 1);
    CHECK_EQ(nbd_trim(nbd, 4096, 8192, LIBNBD_CMD_FLAG_FUA), 0);
    CHECK_EQ(rig->host->fua, 1);
    CHECK_EQ(nbd_zero(nbd, 5000, 100000, LIBNBD_CMD_FLAG_NO_HOLE), 0);
    CHECK_EQ(nbd_zero(nbd, 5000, 0, LIBNBD_CMD_FLAG_FAST_ZERO), 0);
    CHECK_EQ(rig->host->no_hole, 1);
    CHECK_EQ(nbd_cache(nbd, 4 * MIB, 0, 0), 0);
    CHECK_EQ(nbd_block_status(nbd, 100000, 1, callback, 0), 0);
    const uint32_t want[] = {4095, 3, 4096, 0, 4096, 3, 12288, 0, 100001 - 24576, 3};
    CHECK_EQ(extents.count, ARRAY_LEN(want));
    CHECK(memcmp(extents.entries, want, sizeof want) == 0);
    CHECK_EQ(nbd_block_status(nbd, 100000, 0, callback, LIBNBD_CMD_FLAG_REQ_ONE), 0);
    CHECK_EQ(extents.count, 2);
    CHECK_EQ(extents.entries[0], 4096);
    CHECK_EQ(nbd_pread(nbd, bytes, 0, 8 * MIB, 0), 0);
    CHECK_EQ(nbd_pwrite(nbd, bytes, 0, 8 * MIB, 0), 0);
    CHECK_EQ(nbd_pread(nbd, bytes, 20000, 12, LIBNBD_CMD_FLAG_DF), 0);
    detach(nbd);
}

/* --- errors --- */

#define CHECK_FAILS(call, error)                                                         \
    do {                                                                                 \
        CHECK_EQ(call, -1);                                                              \
        CHECK_EQ(nbd_get_errno(), error);                                                \
    } while (0)

static void damage(struct rig *rig)
{
    rig->host->bad_offset = 5 * MIB + 5;
}

static void errors(struct rig *rig, enum mode mode)
{
    static uint8_t bytes[33 * MIB];
    struct nbd_handle *nbd = attach(rig, "disk", mode);
    uint64_t size = RIG_DISK_BYTES;
    rig_call(rig, damage);
    CHECK_FAILS(nbd_pread(nbd, bytes, 2, size - 1, 0), EINVAL);
    CHECK_FAILS(nbd_pwrite(nbd, bytes, 2, size - 1, 0), ENOSPC);
    CHECK_FAILS(nbd_pwrite(nbd, bytes, 9000, UINT64_MAX - 3, 0), ENOSPC);
    CHECK_FAILS(nbd_zero(nbd, 2, size - 1, 0), ENOSPC);
    CHECK_FAILS(nbd_trim(nbd, 2, size - 1, 0), EINVAL);
    CHECK_FAILS(nbd_cache(nbd, 2, size - 1, 0), EINVAL);
    CHECK_FAILS(nbd_pwrite(nbd, bytes, 32 * MIB + 1, 0, 0), EOVERFLOW);
    CHECK_FAILS(nbd_pread(nbd, bytes, 4096, 5 * MIB, 0), EIO);
    CHECK_FAILS(nbd_pwrite(nbd, bytes, 3 * MIB, 4 * MIB, 0), EIO);
    CHECK_EQ(nbd_pread(nbd, bytes, 4096, 6 * MIB, 0), 0);
    if (mode == STRUCTURED) {
        CHECK_FAILS(nbd_pread(nbd, bytes, 8 * MIB, 0, 0), EIO);
        CHECK_FAILS(nbd_pread(nbd, bytes, 2 * MIB, 0, LIBNBD_CMD_FLAG_DF), EOVERFLOW);
    } else {
        CHECK_FAILS(nbd_pread(nbd, bytes, 2 * MIB, 0, LIBNBD_CMD_FLAG_DF), EINVAL);
    }
    CHECK_EQ(nbd_pread(nbd, bytes, 4096, 6 * MIB, 0), 0);
    detach(nbd);
    nbd = attach(rig, "disk@old", mode);
    CHECK_FAILS(nbd_pwrite(nbd, bytes, 4096, 0, 0), EPERM);
    CHECK_FAILS(nbd_zero(nbd, 4096, 0, 0), EPERM);
    CHECK_EQ(nbd_flush(nbd, 0), 0);
    CHECK_EQ(nbd_pread(nbd, bytes, 4096, 0, 0), 0);
    detach(nbd);
}

static void test_errors(struct rig *rig)
{
    errors(rig, STRUCTURED);
    errors(rig, SIMPLE);
    /* A long simple read that fails after its header was sent ends the connection. */
    uint8_t *bytes = malloc(8 * MIB);
    struct nbd_handle *nbd = attach(rig, "disk", SIMPLE);
    CHECK_EQ(nbd_pread(nbd, bytes, 8 * MIB, 0, 0), -1);
    CHECK_EQ(nbd_aio_is_ready(nbd), 0);
    nbd_close(nbd);
    free(bytes);
    rig_wait_idle(rig);
}

/* --- limits, listening, stopping --- */

static void test_clients_per_disk(struct rig *rig)
{
    struct nbd_handle *clients[NBD_CLIENTS_PER_DISK_MAX];
    for (uint32_t i = 0; i < ARRAY_LEN(clients); i++)
        clients[i] = attach(rig, "other", STRUCTURED);
    struct nbd_handle *nbd = prepare(STRUCTURED);
    nbd_set_export_name(nbd, "other");
    CHECK_EQ(nbd_connect_unix(nbd, rig->path), -1);
    nbd_close(nbd);
    detach(attach(rig, "disk", STRUCTURED));
    for (uint32_t i = 0; i < ARRAY_LEN(clients); i++)
        detach(clients[i]);
    rig_wait_idle(rig);
}

static void test_connections(struct rig *rig)
{
    int fds[100];
    for (uint32_t i = 0; i < ARRAY_LEN(fds); i++)
        fds[i] = raw_hello(rig);
    raw_expect_end(raw_connect(rig));
    for (uint32_t i = 0; i < ARRAY_LEN(fds); i++)
        close(fds[i]);
    rig_wait_idle(rig);
    detach(attach(rig, "disk", STRUCTURED));
}

static void listen_more(struct rig *rig)
{
    struct error err;
    char path[200];
    uint16_t port = 0;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CHECK_EQ(nbd_server_listen_tcp(rig->server, "0.0.0.0", 0, NULL, &err), -EACCES);
    CHECK(strstr(err.text, "TLS") != NULL);
    CHECK_EQ(nbd_server_listen_tcp(rig->server, "10.1.2.3", 0, NULL, &err), -EACCES);
    CHECK_EQ(nbd_server_listen_tcp(rig->server, "::", 0, NULL, &err), -EACCES);
    CHECK_EQ(nbd_server_listen_tcp(rig->server, "example.org", 0, NULL, &err), -EINVAL);
    CHECK_EQ(nbd_server_listen_unix(rig->server, rig->path, &err), -EADDRINUSE);
    memset(path, 'x', sizeof path);
    path[sizeof path - 1] = '\0';
    CHECK_EQ(nbd_server_listen_unix(rig->server, path, &err), -ENAMETOOLONG);
    /* What a dead server left is replaced. */
    snprintf(path, sizeof path, "%s/stale", rig->folder);
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    CHECK_EQ(nbd_server_listen_unix(rig->server, path, &err), 0);
    CHECK_EQ(nbd_server_listen_tcp(rig->server, "127.0.0.1", 0, &port, &err), 0);
    CHECK(port > 0);
    rig->connections_max = port; /* tells the test */
}

static void test_listen(struct rig *rig)
{
    char port[16];
    rig_call(rig, listen_more);
    snprintf(port, sizeof port, "%u", rig->connections_max);
    struct nbd_handle *nbd = prepare(STRUCTURED);
    nbd_set_export_name(nbd, "disk");
    CHECK_EQ(nbd_connect_tcp(nbd, "127.0.0.1", port), 0);
    many(nbd, 0, 20, 3);
    detach(nbd);
}

static void hold(struct rig *rig)
{
    rig->host->hold = true;
}

static void release_later(struct rig *rig)
{
    task_sleep_ns(50 * NS_PER_MS);
    fake_release(rig->host);
}

static void stop_server(struct rig *rig)
{
    nbd_server_destroy(rig->server);
    CHECK_EQ(fake_openings(rig->host), 0);
    rig->stopped = true;
}

static void *release_thread(void *arg)
{
    rig_call_on_task(arg, release_later);
    return NULL;
}

/* What is at the disk when the server stops is still answered. */
static void test_stop(struct rig *rig)
{
    uint8_t bytes[4096] = {1};
    pthread_t thread;
    struct nbd_handle *nbd = attach(rig, "disk", STRUCTURED);
    struct nbd_handle *idle = attach(rig, "disk", STRUCTURED);
    int half = raw_hello(rig);
    rig_call(rig, hold);
    int64_t cookie = nbd_aio_pwrite(nbd, bytes, 4096, 0, NBD_NULL_COMPLETION, 0);
    CHECK(cookie > 0);
    usleep(20000);
    CHECK_EQ(pthread_create(&thread, NULL, release_thread, rig), 0);
    rig_call_on_task(rig, stop_server);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    while (nbd_aio_in_flight(nbd) > 0 && nbd_poll(nbd, -1) >= 0)
        continue;
    CHECK_EQ(nbd_aio_command_completed(nbd, (uint64_t)cookie), 1);
    nbd_close(nbd);
    nbd_close(idle);
    raw_expect_end(half);
}

int main(void)
{
    rig_run("handshake", test_handshake, 0);
    rig_run("incoming", test_incoming, 0);
    rig_run("opening", test_opening, 0);
    rig_run("any offset", test_any_offset, 0);
    rig_run("longest", test_longest, 0);
    rig_run("depth", test_depth, 0);
    rig_run("crowd", test_crowd, 0);
    rig_run("crowd in a small pool", test_crowd, 2 * MIB);
    rig_run("long reads in a small pool", test_long_reads_in_a_small_pool, 3 * MIB);
    rig_run("commands", test_commands, 0);
    rig_run("errors", test_errors, 0);
    rig_run("clients of one disk", test_clients_per_disk, 0);
    rig_run("connections", test_connections, 0);
    rig_run("listen", test_listen, 0);
    rig_run("stop", test_stop, 0);
    return 0;
}
