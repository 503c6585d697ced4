/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/format.h"
#include "tests/unit/check.h"

static void test_round_trip(void)
{
    struct writer w = {0};
    struct uid uid = {{1, 2, 3, 15}};
    write_u8(&w, 0x12);
    write_u16(&w, 0x3456);
    write_u32(&w, 0x789abcde);
    write_u64(&w, 0x0123456789abcdef);
    write_uid(&w, uid);
    write_string(&w, "web01");
    write_string(&w, "");
    write_bytes(&w, "xyz", 3);
    CHECK(!w.bad);
    CHECK_EQ(w.len, 1 + 2 + 4 + 8 + 16 + 7 + 2 + 3);
    CHECK_EQ(w.bytes[1], 0x56); /* little endian */

    struct reader r = reader_of(w.bytes, w.len);
    char text[6];
    CHECK_EQ(read_u8(&r), 0x12);
    CHECK_EQ(read_u16(&r), 0x3456);
    CHECK_EQ(read_u32(&r), 0x789abcde);
    CHECK_EQ(read_u64(&r), 0x0123456789abcdef);
    CHECK(uid_equal(read_uid(&r), uid));
    read_string(&r, text, sizeof text);
    CHECK_STR(text, "web01");
    read_string(&r, text, sizeof text);
    CHECK_STR(text, "");
    CHECK(memcmp(read_bytes(&r, 3), "xyz", 3) == 0);
    CHECK(!r.bad && r.left == 0);
    writer_done(&w);
}

/* Every truncation of a message is noticed, and a bad reader stays bad. */
static void test_truncated(void)
{
    struct writer w = {0};
    write_u64(&w, 1);
    write_u16(&w, 2);
    write_string(&w, "disk");
    for (size_t len = 0; len < w.len; len++) {
        uint8_t *copy = malloc(len + 1); /* so that a sanitizer sees a read too far */
        memcpy(copy, w.bytes, len);
        struct reader r = reader_of(copy, len);
        char text[16] = "before";
        read_u64(&r);
        read_u16(&r);
        read_string(&r, text, sizeof text);
        CHECK(r.bad);
        CHECK_STR(text, "");
        CHECK_EQ(read_u8(&r), 0);
        CHECK_EQ(read_u32(&r), 0);
        free(copy);
    }
    writer_done(&w);
}

static void test_bad_strings(void)
{
    char text[4];
    struct reader longer = reader_of("\4\0abcd", 6);
    read_string(&longer, text, sizeof text);
    CHECK(longer.bad);
    CHECK_STR(text, "");
    struct reader with_nul = reader_of("\3\0a\0b", 5);
    read_string(&with_nul, text, sizeof text);
    CHECK(with_nul.bad);
    CHECK_STR(text, "");

    struct writer w = {0};
    char *huge = malloc(70000);
    memset(huge, 'a', 69999);
    huge[69999] = '\0';
    write_string(&w, huge);
    CHECK(w.bad);
    write_u8(&w, 1);
    CHECK_EQ(w.len, 0);
    free(huge);
    writer_done(&w);
}

static void test_growth(void)
{
    struct writer w = {0};
    for (uint32_t i = 0; i < 100000; i++)
        write_u32(&w, i);
    CHECK(!w.bad);
    struct reader r = reader_of(w.bytes, w.len);
    for (uint32_t i = 0; i < 100000; i++)
        CHECK_EQ(read_u32(&r), i);
    CHECK(!r.bad);
    writer_done(&w);
    CHECK(w.bytes == NULL);

    uint8_t byte = 0;
    write_bytes(&w, &byte, SIZE_MAX / 2 + 2); /* refused before it is read */
    CHECK(w.bad && w.len == 0);
}

static void test_uids(void)
{
    struct uid uid, same = {{0}};
    char text[UID_TEXT_LEN + 1];
    for (size_t i = 0; i < sizeof uid.b; i++)
        uid.b[i] = (uint8_t)(i * 17);
    uid_print(uid, text);
    CHECK_STR(text, "00112233445566778899aabbccddeeff");
    CHECK(uid_parse(text, UID_TEXT_LEN, &same));
    CHECK(uid_equal(uid, same));
    CHECK(!uid_parse(text, UID_TEXT_LEN - 1, &same));
    static const char bad[] = "/:`gAF \xff";
    for (size_t i = 0; i < sizeof bad; i++) { /* the NUL, too */
        text[i] = bad[i];
        CHECK(!uid_parse(text, UID_TEXT_LEN, &same));
        uid_print(uid, text);
    }
    CHECK(uid_equal(uid, same));
}

int main(void)
{
    test_uids();
    test_round_trip();
    test_truncated();
    test_bad_strings();
    test_growth();
    return 0;
}
