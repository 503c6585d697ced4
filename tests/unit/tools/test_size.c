/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/size.h"

#include "runtime/limits.h"
#include "tests/unit/check.h"

static uint64_t parse(const char *text)
{
    uint64_t bytes = 0;
    struct error err = {0};
    CHECK_EQ(size_parse(text, &bytes, &err), 0);
    return bytes;
}

static void refuse(const char *text)
{
    uint64_t bytes = 7;
    struct error err = {0};
    CHECK_EQ(size_parse(text, &bytes, &err), -EINVAL);
    CHECK_EQ(bytes, 7); /* untouched */
    CHECK(strstr(err.text, text) != NULL);
}

static void test_parse(void)
{
    CHECK_EQ(parse("0"), 0);
    CHECK_EQ(parse("4096"), 4096);
    CHECK_EQ(parse("4096B"), 4096);
    CHECK_EQ(parse("1K"), 1024);
    CHECK_EQ(parse("512M"), 512 * MIB);
    CHECK_EQ(parse("10G"), 10 * GIB);
    CHECK_EQ(parse("10g"), 10 * GIB);
    CHECK_EQ(parse("10Gi"), 10 * GIB);
    CHECK_EQ(parse("10GiB"), 10 * GIB);
    CHECK_EQ(parse("1.5T"), 3 * TIB / 2);
    CHECK_EQ(parse("0.5K"), 512);
    CHECK_EQ(parse("0.1K"), 102); /* rounded down */
    CHECK_EQ(parse("1P"), 1024 * TIB);
    CHECK_EQ(parse("18446744073709551615"), UINT64_MAX);
}

static void test_refuse(void)
{
    static const char *const bad[] = {"G",
                                      "-1",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "1 G",
                                      "1GB",
                                      "1Gb",
                                      "1E",
                                      "1.G",
                                      ".5G",
                                      "1..5G",
                                      "0x10",
                                      "1G1",
                                      "ten",
                                      "1e9",
                                      "1,5G",
                                      "1.5.",
                                      "1.123456789123G",
                                      "1@",
                                      "16385P",
                                      "18446744073709551616",
                                      "99999999999999999999999",
                                      "16777216T"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        refuse(bad[i]);
    uint64_t bytes = 7;
    CHECK_EQ(size_parse("", &bytes, NULL), -EINVAL);
    CHECK_EQ(bytes, 7);
}

static void test_disk(void)
{
    uint64_t bytes = 7;
    struct error err = {0};
    CHECK_EQ(size_parse_disk("16T", &bytes, &err), 0);
    CHECK_EQ(bytes, DISK_BYTES_MAX);
    CHECK_EQ(size_parse_disk("0", &bytes, &err), -EINVAL);
    CHECK(strstr(err.text, "no bytes") != NULL);
    CHECK_EQ(size_parse_disk("17T", &bytes, &err), -EINVAL);
    CHECK(strstr(err.text, "at most 16T") != NULL);
    CHECK_EQ(size_parse_disk("4097", &bytes, &err), -EINVAL);
    CHECK(strstr(err.text, "not a multiple of 4096; the next one is 8192") != NULL);
    CHECK_EQ(bytes, DISK_BYTES_MAX);
}

static void test_print(void)
{
    CHECK_STR(size_text(0).text, "0");
    CHECK_STR(size_text(1).text, "1");
    CHECK_STR(size_text(1023).text, "1023");
    CHECK_STR(size_text(1024).text, "1K");
    CHECK_STR(size_text(1536).text, "1.5K");
    CHECK_STR(size_text(10 * GIB).text, "10G");
    CHECK_STR(size_text(MIB - 1).text, "1M"); /* not 1024K */
    CHECK_STR(size_text(16 * TIB).text, "16T");
    CHECK_STR(size_text(1024 * TIB).text, "1P");
    CHECK_STR(size_text(UINT64_MAX).text, "16384P");
}

/* What is printed exactly can be read back. */
static void test_round_trip(void)
{
    for (unsigned shift = 0; shift < 64; shift++) {
        uint64_t bytes = (uint64_t)1 << shift;
        CHECK_EQ(parse(size_text(bytes).text), bytes);
    }
}

int main(void)
{
    test_parse();
    test_refuse();
    test_disk();
    test_print();
    test_round_trip();
    return 0;
}
