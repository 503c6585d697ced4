/* SPDX-License-Identifier: Apache-2.0 */
/* The NBD server and clients that mean no good, or do not know better: each gets what it
 * deserves, and a well-behaved client beside it notices nothing. */
#include <sys/socket.h>
#include <unistd.h>

#include "tests/unit/nbdserver/rig.h"

/* --- handshake --- */

static void test_bad_hello(struct rig *rig)
{
    struct nbd_hello hello;
    be32 flags = be32_of(1 << 5);
    int fd = raw_connect(rig);
    raw_receive(fd, &hello, sizeof hello);
    CHECK(raw_send(fd, &flags, sizeof flags));
    raw_expect_end(fd);
    fd = raw_hello(rig);
    CHECK(raw_send(fd, "IHAVEOPTIONSNOT!", 16));
    raw_expect_end(fd);
    for (uint32_t len = 0; len < 4; len++) { /* part of the flags */
        fd = raw_connect(rig);
        raw_receive(fd, &hello, sizeof hello);
        CHECK(raw_send(fd, &flags, len));
        shutdown(fd, SHUT_WR);
        raw_expect_end(fd);
    }
}

static uint32_t try_option(int fd, uint32_t option, const void *data, uint32_t len)
{
    raw_option(fd, option, data, len);
    return raw_option_reply(fd, option);
}

static void test_bad_options(struct rig *rig)
{
    static uint8_t big[256 * 1024];
    int fd = raw_hello(rig);
    CHECK_EQ(try_option(fd, 77, "data", 4), NBD_REP_ERR_UNSUP);
    CHECK_EQ(try_option(fd, NBD_OPT_STARTTLS, NULL, 0), NBD_REP_ERR_UNSUP);
    CHECK_EQ(try_option(fd, NBD_OPT_LIST, "x", 1), NBD_REP_ERR_INVALID);
    CHECK_EQ(try_option(fd, NBD_OPT_STRUCTURED_REPLY, "x", 1), NBD_REP_ERR_INVALID);
    CHECK_EQ(try_option(fd, NBD_OPT_GO, NULL, 0), NBD_REP_ERR_INVALID);
    CHECK_EQ(try_option(fd, NBD_OPT_GO, "\0\0\0\4disk", 8), NBD_REP_ERR_INVALID);
    CHECK_EQ(try_option(fd, NBD_OPT_GO, "\0\0\0\4disk\0\1", 10), NBD_REP_ERR_INVALID);
    CHECK_EQ(try_option(fd, NBD_OPT_GO, "\0\0\0\4disk\0\0x", 11), NBD_REP_ERR_INVALID);
    CHECK_EQ(try_option(fd, NBD_OPT_GO, "\377\377\377\377disk\0\0", 10),
             NBD_REP_ERR_INVALID);
    CHECK_EQ(try_option(fd, NBD_OPT_GO, "\0\0\0\4di\0k\0\0", 10), NBD_REP_ERR_UNKNOWN);
    CHECK_EQ(try_option(fd, NBD_OPT_GO, "\0\0\0\0\0\0", 6), NBD_REP_ERR_UNKNOWN);
    CHECK_EQ(try_option(fd, NBD_OPT_INFO, "\0\0\0\1@\0\0", 7), NBD_REP_ERR_UNKNOWN);
    const char *queries = "\0\0\0\4disk\0\0\0\1\0\0\0\17base:allocation";
    CHECK_EQ(try_option(fd, NBD_OPT_SET_META_CONTEXT, queries, 31), NBD_REP_ERR_INVALID);
    CHECK_EQ(try_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0), NBD_REP_ACK);
    CHECK_EQ(try_option(fd, NBD_OPT_SET_META_CONTEXT, queries, 30), NBD_REP_ERR_INVALID);
    const char *many = "\0\0\0\4disk\377\377\377\377";
    CHECK_EQ(try_option(fd, NBD_OPT_LIST_META_CONTEXT, many, 12), NBD_REP_ERR_INVALID);
    CHECK_EQ(try_option(fd, NBD_OPT_SET_META_CONTEXT, queries, 31), NBD_REP_META_CONTEXT);
    CHECK_EQ(raw_option_reply(fd, NBD_OPT_SET_META_CONTEXT), NBD_REP_ACK);
    CHECK_EQ(try_option(fd, NBD_OPT_INFO, big, NBD_OPTION_BYTES_MAX + 1),
             NBD_REP_ERR_TOO_BIG);
    CHECK_EQ(try_option(fd, NBD_OPT_INFO, big, sizeof big), NBD_REP_ERR_TOO_BIG);
    CHECK_EQ(try_option(fd, NBD_OPT_ABORT, NULL, 0), NBD_REP_ACK);
    raw_expect_end(fd);
    fd = raw_hello(rig);
    raw_option(fd, NBD_OPT_INFO, NULL, UINT32_MAX);
    raw_expect_end(fd);
    fd = raw_hello(rig);
    raw_option(fd, NBD_OPT_EXPORT_NAME, "nobody", 6);
    raw_expect_end(fd);
    fd = raw_hello(rig);
    raw_option(fd, NBD_OPT_EXPORT_NAME, NULL, NBD_OPTION_BYTES_MAX + 1);
    raw_expect_end(fd);
    rig_wait_idle(rig);
}

static void test_options_without_end(struct rig *rig)
{
    int fd = raw_hello(rig);
    for (uint32_t i = 0; i < NBD_OPTIONS_MAX; i++)
        CHECK_EQ(try_option(fd, 99, NULL, 0), NBD_REP_ERR_UNSUP);
    raw_option(fd, 99, NULL, 0);
    raw_expect_end(fd);
    fd = raw_hello(rig);
    for (uint32_t i = 0; i < NBD_LISTS_MAX; i++) {
        raw_option(fd, NBD_OPT_LIST, NULL, 0);
        while (raw_option_reply(fd, NBD_OPT_LIST) == NBD_REP_SERVER)
            continue;
    }
    CHECK_EQ(try_option(fd, NBD_OPT_LIST, NULL, 0), NBD_REP_ERR_POLICY);
    close(fd);
}

/* --- half messages --- */

static void send_slowly(int fd, const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        CHECK(raw_send(fd, bytes + i, 1));
        if (i % 16 == 0)
            usleep(500);
    }
}

/* A session in single bytes, and the same one cut off after each byte. */
static void test_halves(struct rig *rig)
{
    uint8_t bytes[400];
    size_t len = 0;
#define ADD(p, n) (memcpy(bytes + len, p, n), len += (n))
    be32 flags = be32_of(3);
    struct nbd_option option = {be64_of(NBD_OPTION_MAGIC), be32_of(1), be32_of(5)};
    struct nbd_request write = {.magic = be32_of(NBD_REQUEST_MAGIC),
                                .type = be16_of(NBD_CMD_WRITE),
                                .offset_bytes = be64_of(4090),
                                .len_bytes = be32_of(100)};
    struct nbd_request read = write;
    read.type = be16_of(NBD_CMD_READ);
    ADD(&flags, sizeof flags);
    ADD(&option, sizeof option);
    ADD("other", 5);
    ADD(&write, sizeof write);
    memset(bytes + len, 'w', 100);
    len += 100;
    ADD(&read, sizeof read);
    struct nbd_hello hello;
    uint8_t reply[10 + 16 + 16 + 100];
    int fd = raw_connect(rig);
    raw_receive(fd, &hello, sizeof hello);
    send_slowly(fd, bytes, len);
    raw_receive(fd, reply, sizeof reply);
    for (uint32_t i = 0; i < 100; i++)
        CHECK_EQ(reply[42 + i], 'w');
    close(fd);
    for (size_t cut = 0; cut <= len; cut++) {
        fd = raw_connect(rig);
        CHECK(raw_send(fd, bytes, cut));
        if (cut % 2)
            shutdown(fd, SHUT_WR), raw_expect_end(fd);
        else
            close(fd);
    }
    rig_wait_idle(rig);
    CHECK_EQ(rig_buffers_used(rig), 0);
}

/* --- bad requests --- */

static void test_bad_requests(struct rig *rig)
{
    static uint8_t payload[33 * MIB];
    int fd = raw_go(rig, "disk", false);
    raw_request(fd, 99, 0, 1, 0, 4096);
    CHECK_EQ(raw_reply(fd, 1), NBD_EINVAL);
    raw_request(fd, NBD_CMD_READ, 1 << 9, 2, 0, 4096);
    CHECK_EQ(raw_reply(fd, 2), NBD_EINVAL);
    raw_request(fd, NBD_CMD_READ, 0, 3, UINT64_MAX, UINT32_MAX);
    CHECK_EQ(raw_reply(fd, 3), NBD_EOVERFLOW);
    raw_request(fd, NBD_CMD_READ, 0, 4, UINT64_MAX - 1, 2);
    CHECK_EQ(raw_reply(fd, 4), NBD_EINVAL);
    raw_request(fd, NBD_CMD_FLUSH, 0, 5, 1, 1);
    CHECK_EQ(raw_reply(fd, 5), NBD_EINVAL);
    raw_request(fd, NBD_CMD_BLOCK_STATUS, 0, 6, 0, 4096);
    CHECK_EQ(raw_reply(fd, 6), NBD_EINVAL);
    raw_request(fd, NBD_CMD_TRIM, NBD_CMD_FLAG_DF, 7, 0, 4096);
    CHECK_EQ(raw_reply(fd, 7), NBD_EINVAL);
    raw_request(fd, NBD_CMD_WRITE_ZEROES, 0, 8, 1, UINT32_MAX);
    CHECK_EQ(raw_reply(fd, 8), NBD_ENOSPC);
    /* Refused payload is skipped, whatever was wrong. */
    raw_request(fd, NBD_CMD_WRITE, 1 << 9, 9, 0, 5000);
    CHECK(raw_send(fd, payload, 5000));
    raw_request(fd, NBD_CMD_WRITE, 0, 10, 1ULL << 60, 300000);
    CHECK(raw_send(fd, payload, 300000));
    raw_request(fd, NBD_CMD_WRITE, 0, 11, 0, sizeof payload);
    CHECK(raw_send(fd, payload, sizeof payload));
    raw_request(fd, NBD_CMD_WRITE, 0, 12, 0, 0);
    CHECK_EQ(raw_reply(fd, 9), NBD_EINVAL);
    CHECK_EQ(raw_reply(fd, 10), NBD_ENOSPC);
    CHECK_EQ(raw_reply(fd, 11), NBD_EOVERFLOW);
    CHECK_EQ(raw_reply(fd, 12), NBD_SUCCESS);
    CHECK_EQ(rig->host->writes, 0);
    raw_request(fd, NBD_CMD_WRITE, 0, 13, 0, UINT32_MAX);
    raw_expect_end(fd);
    fd = raw_go(rig, "disk", false);
    CHECK(raw_send(fd, payload, 28)); /* not a request */
    raw_expect_end(fd);
    rig_wait_idle(rig);
}

static void test_error_chunk(struct rig *rig)
{
    struct nbd_chunk_error chunk;
    char text[200] = "";
    int fd = raw_go(rig, "disk@old", true);
    raw_request(fd, NBD_CMD_WRITE_ZEROES, 0, 1, 8192, 4096);
    raw_receive(fd, &chunk, sizeof chunk);
    CHECK_EQ(be16_get(chunk.chunk.type), NBD_CHUNK_ERROR);
    CHECK_EQ(be16_get(chunk.chunk.flags), NBD_CHUNK_FLAG_DONE);
    CHECK_EQ(be32_get(chunk.error), NBD_EPERM);
    CHECK_EQ(be32_get(chunk.chunk.len), be16_get(chunk.text_len) + 6);
    raw_receive(fd, text, be16_get(chunk.text_len));
    CHECK_STR(text, "write zeroes 4096 at 8192: snapshots are read-only");
    close(fd);
}

/* --- disturbing others --- */

static void use_honestly(struct rig *rig)
{
    static uint8_t bytes[1 * MIB], back[1 * MIB];
    int fd = raw_go(rig, "other", false);
    for (uint32_t i = 0; i < 20; i++) {
        memset(bytes, (int)i + 1, sizeof bytes);
        raw_request(fd, NBD_CMD_WRITE, 0, i, 4096, sizeof bytes);
        CHECK(raw_send(fd, bytes, sizeof bytes));
        CHECK_EQ(raw_reply(fd, i), NBD_SUCCESS);
        raw_request(fd, NBD_CMD_READ, 0, i, 4096, sizeof back);
        CHECK_EQ(raw_reply(fd, i), NBD_SUCCESS);
        raw_receive(fd, back, sizeof back);
        CHECK(memcmp(bytes, back, sizeof back) == 0);
    }
    raw_request(fd, NBD_CMD_DISC, 0, 0, 0, 0);
    raw_expect_end(fd);
}

/* Sends reads until the server takes no more; reads no reply. */
static int flood(struct rig *rig, uint32_t len)
{
    int fd = raw_go(rig, "disk", false);
    struct nbd_request requests[500];
    for (uint32_t i = 0; i < ARRAY_LEN(requests); i++)
        requests[i] = (struct nbd_request){.magic = be32_of(NBD_REQUEST_MAGIC),
                                           .len_bytes = be32_of(len)};
    for (uint32_t i = 0; i < 2000; i++) {
        if (send(fd, requests, sizeof requests, MSG_DONTWAIT | MSG_NOSIGNAL) <= 0) {
            usleep(1000);
            if (i > 50)
                break;
        }
    }
    return fd;
}

static void test_flood(struct rig *rig)
{
    const uint32_t lens[] = {1, 4096, 100000, 32 * MIB};
    int fds[4];
    for (uint32_t i = 0; i < 4; i++)
        fds[i] = flood(rig, lens[i]);
    use_honestly(rig);
    CHECK(rig_buffers_used(rig) <= 4 * (NBD_PAYLOAD_BYTES_MAX + MIB));
    for (uint32_t i = 0; i < 4; i++)
        close(fds[i]);
    rig_wait_idle(rig);
    CHECK_EQ(rig_buffers_used(rig), 0);
}

/* Half a write each, and silence: together they have the whole pool. Those who need it
 * get it when the silent ones have had their time. */
static void test_hoarders(struct rig *rig)
{
    uint8_t bytes[5000] = {0};
    int fds[8];
    for (uint32_t i = 0; i < 8; i++) {
        fds[i] = raw_go(rig, "disk", false);
        raw_request(fds[i], NBD_CMD_WRITE, 0, 1, i * MIB, MIB);
        CHECK(raw_send(fds[i], bytes, sizeof bytes));
    }
    use_honestly(rig);
    for (uint32_t i = 0; i < 8; i++)
        close(fds[i]);
    rig_wait_idle(rig);
    CHECK_EQ(rig->host->reads + rig->host->writes, 40);
}

static void test_vanishing(struct rig *rig)
{
    uint8_t bytes[70000];
    memset(bytes, 'v', sizeof bytes);
    for (uint32_t i = 0; i < 200; i++) {
        int fd = raw_go(rig, "disk", i % 2);
        raw_request(fd, NBD_CMD_WRITE, 0, 1, 0, 60000);
        raw_request(fd, NBD_CMD_READ, 0, 2, 0, 2 * MIB);
        raw_send(fd, bytes, i * 350); /* the server may have had enough already */
        close(fd);
    }
    rig_wait_idle(rig);
    use_honestly(rig);
}

/* --- goodbye --- */

static void hold(struct rig *rig)
{
    rig->host->hold = true;
}

static void release(struct rig *rig)
{
    fake_release(rig->host);
}

static void goodbye(struct rig *rig, bool politely)
{
    uint8_t bytes[4096] = {1};
    int fd = raw_go(rig, "disk", false);
    rig_call(rig, hold);
    for (uint64_t i = 0; i < 10; i++) {
        raw_request(fd, NBD_CMD_WRITE, 0, i, i * 4096, 4096);
        CHECK(raw_send(fd, bytes, sizeof bytes));
    }
    if (politely)
        raw_request(fd, NBD_CMD_DISC, 0, 0, 0, 0);
    else
        shutdown(fd, SHUT_WR);
    usleep(20000);
    rig_call(rig, release);
    for (uint64_t i = 0; i < 10; i++)
        CHECK_EQ(raw_reply(fd, i), NBD_SUCCESS);
    raw_expect_end(fd);
    rig_wait_idle(rig);
}

static void test_goodbye(struct rig *rig)
{
    goodbye(rig, true);
    goodbye(rig, false);
    /* Gone for good, with everything at the disk. */
    int fd = raw_go(rig, "disk", true);
    rig_call(rig, hold);
    for (uint64_t i = 0; i < 10; i++)
        raw_request(fd, NBD_CMD_READ, 0, i, i * 4096, 3 * MIB);
    usleep(20000);
    close(fd);
    usleep(20000);
    rig_call(rig, release);
    rig_wait_idle(rig);
}

static void test_slow_handshake(struct rig *rig)
{
    int silent = raw_connect(rig), half = raw_hello(rig), serving;
    raw_option(half, NBD_OPT_INFO, NULL, 300); /* and no data */
    serving = raw_go(rig, "disk", false);
    raw_expect_end(silent);
    raw_expect_end(half);
    raw_request(serving, NBD_CMD_READ, 0, 1, 0, 1);
    CHECK_EQ(raw_reply(serving, 1), NBD_SUCCESS);
    close(serving);
    rig_wait_idle(rig);
}

int main(void)
{
    rig_run("bad hello", test_bad_hello, 0);
    rig_run("bad options", test_bad_options, 0);
    rig_run("options without end", test_options_without_end, 0);
    rig_run("halves", test_halves, 0);
    rig_run("bad requests", test_bad_requests, 0);
    rig_run("error chunk", test_error_chunk, 0);
    rig_run("flood", test_flood, 0);
    rig_run("hoarders", test_hoarders, 4 * MIB);
    rig_run("vanishing", test_vanishing, 0);
    rig_run("goodbye", test_goodbye, 0);
    rig_run("slow handshake", test_slow_handshake, 0);
    return 0;
}
