/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens, and what is said when a machine joins: there and back, cut short, and wrong. */
#include "replication/join.h"
#include "tests/unit/check.h"

static void test_tokens(void)
{
    struct join_token token, same;
    char text[JOIN_TOKEN_LEN + 1];
    for (unsigned round = 0; round < 64; round++) {
        for (size_t i = 0; i < sizeof token; i++)
            ((uint8_t *)&token)[i] = (uint8_t)(i * 37 + round * 101);
        join_token_print(&token, text);
        CHECK_EQ(strlen(text), JOIN_TOKEN_LEN);
        CHECK_EQ(strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-_"
                              "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
                 JOIN_TOKEN_LEN);
        CHECK_EQ(join_token_parse(text, &same, NULL), 0);
        CHECK(memcmp(&token, &same, sizeof token) == 0);
    }
    /* Each character counts. */
    for (size_t i = 0; i < JOIN_TOKEN_LEN; i++) {
        char was = text[i];
        for (size_t k = 0; k < 3; k++) {
            text[i] = "A=\n"[k] != was ? "A=\n"[k] : 'B';
            CHECK_EQ(join_token_parse(text, &same, NULL), -EINVAL);
        }
        text[i] = was;
    }
    CHECK(memcmp(&token, &same, sizeof token) == 0); /* untouched */
    text[JOIN_TOKEN_LEN - 1] = '\0';
    CHECK_EQ(join_token_parse(text, &same, NULL), -EINVAL);
    CHECK_EQ(join_token_parse("", &same, NULL), -EINVAL);
}

static struct join_request request;
static struct join_answer answer;

static void fill(void)
{
    request = (struct join_request){.secret = {1, 2},
                                    .store = {{3, 4}},
                                    .capacity_bytes = 5 * GIB,
                                    .flags = JOIN_WITNESS,
                                    .address = "node7:7000",
                                    .domain = "rack-1",
                                    .pem = "some text"};
    answer = (struct join_answer){.identity = {{{9}}, 7},
                                  .certificate = "one",
                                  .authority = "two",
                                  .peer_count = 2,
                                  .peers = {{1, "node1:1"}, {2, "[::1]:2"}}};
}

static void test_requests(void)
{
    struct writer w = {0};
    static struct join_request same;
    fill();
    join_request_encode(&request, &w);
    CHECK(!w.bad && w.len <= JOIN_REQUEST_MAX);
    CHECK_EQ(join_request_decode(w.bytes, w.len, &same, NULL), 0);
    CHECK(memcmp(same.secret, request.secret, sizeof same.secret) == 0);
    CHECK(uid_equal(same.store, request.store));
    CHECK_EQ(same.capacity_bytes, request.capacity_bytes);
    CHECK_EQ(same.flags, JOIN_WITNESS);
    CHECK_STR(same.address, request.address);
    CHECK_STR(same.domain, request.domain);
    CHECK_STR(same.pem, request.pem);
    for (size_t len = 0; len < w.len; len++) {
        uint8_t *copy = malloc(len + 1); /* so that reading too far is noticed */
        memcpy(copy, w.bytes, len);
        CHECK_EQ(join_request_decode(copy, len, &same, NULL), -PLX_EFORMAT);
        free(copy);
    }
    write_u8(&w, 0);
    CHECK_EQ(join_request_decode(w.bytes, w.len, &same, NULL), -PLX_EFORMAT);
    w.len--;
    w.bytes[0] = 2;
    CHECK_EQ(join_request_decode(w.bytes, w.len, &same, NULL), -PLX_ENEWER);
    w.bytes[0] = 1;
    w.bytes[2] = 2; /* an unknown flag */
    CHECK_EQ(join_request_decode(w.bytes, w.len, &same, NULL), -PLX_EFORMAT);
    writer_done(&w);
}

static int try_request(void)
{
    struct writer w = {0};
    static struct join_request same;
    join_request_encode(&request, &w);
    int rc = join_request_decode(w.bytes, w.len, &same, NULL);
    writer_done(&w);
    fill();
    return rc;
}

static void test_wrong_requests(void)
{
    fill();
    CHECK_EQ(try_request(), 0);
    request.store = (struct uid){{0}};
    CHECK_EQ(try_request(), -EINVAL);
    strcpy(request.domain, "two words");
    CHECK_EQ(try_request(), -EINVAL);
    strcpy(request.domain, "\x7f");
    CHECK_EQ(try_request(), -EINVAL);
    request.domain[0] = '\0';
    CHECK_EQ(try_request(), 0);
    memset(request.pem, 'x', JOIN_PEM_MAX - 1);
    CHECK_EQ(try_request(), 0);
    strcpy(request.address, "node7");
    CHECK_EQ(try_request(), -EINVAL);
}

static void test_answers(void)
{
    struct writer w = {0};
    static struct join_answer same;
    fill();
    join_answer_encode(&answer, &w);
    CHECK_EQ(join_answer_decode(w.bytes, w.len, &same, NULL), 0);
    CHECK(uid_equal(same.identity.cluster, answer.identity.cluster));
    CHECK_EQ(same.identity.node, 7);
    CHECK_STR(same.certificate, "one");
    CHECK_STR(same.authority, "two");
    CHECK_EQ(same.peer_count, 2);
    CHECK_EQ(same.peers[1].node, 2);
    CHECK_STR(same.peers[1].address, "[::1]:2");
    for (size_t len = 0; len < w.len; len++) {
        uint8_t *copy = malloc(len + 1);
        memcpy(copy, w.bytes, len);
        CHECK_EQ(join_answer_decode(copy, len, &same, NULL), -PLX_EFORMAT);
        free(copy);
    }
    writer_done(&w);
    /* Peers that cannot be, and more than there may be. */
    const struct join_peer wrong[] = {{0, "node1:1"}, {7, "node1:1"}, {3, "node1"}};
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        answer.peers[1] = wrong[i];
        join_answer_encode(&answer, &w);
        CHECK_EQ(join_answer_decode(w.bytes, w.len, &same, NULL), -PLX_EFORMAT);
        writer_done(&w);
    }
    fill();
    answer.peer_count = 0;
    join_answer_encode(&answer, &w);
    w.bytes[w.len - 2] = JOIN_PEERS_MAX + 1;
    for (uint32_t i = 0; i <= JOIN_PEERS_MAX; i++) {
        write_u64(&w, 100 + i);
        write_string(&w, "node1:1");
    }
    CHECK_EQ(join_answer_decode(w.bytes, w.len, &same, NULL), -PLX_EFORMAT);
    writer_done(&w);
}

static void test_texts(void)
{
    char text[8];
    join_text_decode("abc\0\n\xff", 6, text, sizeof text);
    CHECK_STR(text, "abc???");
    join_text_decode("0123456789", 10, text, sizeof text);
    CHECK_STR(text, "0123456");
    join_text_decode(NULL, 0, text, sizeof text);
    CHECK_STR(text, "");
}

static void test_addresses(void)
{
    static const char *const good[] = {"10.0.0.1:7000", "host:1", "a.b.c:65535",
                                       "[fe80::1]:7000", "00:1"};
    static const char *const bad[] = {"",        ":7000",
                                      "host",    "host:",
                                      "host:0",  "host:65536",
                                      "host:7x", "host:-1",
                                      "ho st:1", "0.0.0.0:1",
                                      "[::]:1",  "*:7000",
                                      ":::7",    "host:99999999999999999999"};
    char longest[DISK_NAME_MAX + 2];
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        CHECK_EQ(join_address_check(good[i], NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        CHECK_EQ(join_address_check(bad[i], NULL), -EINVAL);
    memset(longest, 'h', sizeof longest);
    strcpy(longest + DISK_NAME_MAX - 2, ":1");
    CHECK_EQ(join_address_check(longest, NULL), 0);
    strcpy(longest + DISK_NAME_MAX - 2, ":12");
    CHECK_EQ(join_address_check(longest, NULL), -EINVAL);
}

int main(void)
{
    test_tokens();
    test_requests();
    test_wrong_requests();
    test_answers();
    test_texts();
    test_addresses();
    return 0;
}
