/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/increment.h"

#include "runtime/crc32c.h"
#include "tests/unit/check.h"

#define RECORDS 3U

/* A small increment: its parts, one behind the other as in a file. */
struct file {
    struct increment_header_format header;
    struct increment_record_format records[RECORDS];
};

static uint8_t data[2 * BLOCK_SIZE];

static const struct increment_header plain = {
    .cluster = {{1, 2, 3}},
    .created_wall_ns = 5,
    .base_size_bytes = MIB,
    .target_size_bytes = 2 * MIB,
    .disk = "web01",
    .base = "monday",
    .target = "tuesday",
};

static struct file make(void)
{
    struct file file;
    struct increment incr;
    memset(data, 'x', sizeof data);
    const struct increment_record records[RECORDS] = {
        {INCREMENT_DATA, BLOCK_SIZE, sizeof data, crc32c(data, sizeof data)},
        {.kind = INCREMENT_ZEROS, .offset_bytes = MIB, .len_bytes = MIB},
        {.kind = INCREMENT_END},
    };
    increment_write_header(&incr, &plain, &file.header);
    for (size_t i = 0; i < RECORDS; i++)
        increment_write_record(&incr, &records[i], &file.records[i]);
    CHECK(incr.ended);
    return file;
}

/* 0, or what is wrong; *ret_records were good. */
static int read_file(const struct file *file, size_t *ret_records)
{
    struct increment incr;
    struct increment_header header;
    struct increment_record record;
    struct error err = {0};
    int rc = increment_read_header(&incr, &file->header, &header, &err);
    *ret_records = 0;
    for (size_t i = 0; i < RECORDS && rc == 0; i++) {
        rc = increment_read_record(&incr, &file->records[i], &record, &err);
        if (rc == 0 && record.kind == INCREMENT_DATA)
            rc = increment_check_data(&record, data, &err);
        *ret_records += rc == 0;
    }
    CHECK(rc == 0 || err.text[0] != '\0');
    return rc;
}

static void test_round_trip(void)
{
    struct file file = make();
    struct increment incr;
    struct increment_header header;
    struct increment_record r;
    CHECK(increment_is_one(&file, sizeof file));
    CHECK(!increment_is_one(&file, 7));
    CHECK(!increment_is_one("QFI\xfb 1234", 8));
    CHECK_EQ(increment_read_header(&incr, &file.header, &header, NULL), 0);
    CHECK_EQ(memcmp(&header, &plain, sizeof plain), 0);
    CHECK_EQ(increment_read_record(&incr, &file.records[0], &r, NULL), 0);
    CHECK(r.kind == INCREMENT_DATA && r.offset_bytes == BLOCK_SIZE);
    CHECK_EQ(r.len_bytes, sizeof data);
    CHECK_EQ(increment_check_data(&r, data, NULL), 0);
    CHECK_EQ(increment_read_record(&incr, &file.records[1], &r, NULL), 0);
    CHECK(r.kind == INCREMENT_ZEROS && r.offset_bytes == MIB && r.len_bytes == MIB);
    CHECK_EQ(increment_read_record(&incr, &file.records[2], &r, NULL), 0);
    CHECK(r.kind == INCREMENT_END && incr.ended);
    CHECK_EQ(incr.data_bytes, sizeof data);
    CHECK_EQ(incr.zero_bytes, MIB);
}

/* Whichever bit changes, it is noticed, and at the record it is in. */
static void test_every_bit(void)
{
    struct file good = make();
    for (size_t i = 0; i < 8 * sizeof good; i++) {
        struct file bad = good;
        size_t records, at = i / 8;
        ((uint8_t *)&bad)[at] ^= (uint8_t)(1U << i % 8);
        CHECK(read_file(&bad, &records) < 0);
        CHECK_EQ(records, at < sizeof bad.header
                              ? 0
                              : (at - sizeof bad.header) / sizeof bad.records[0]);
    }
    data[100] ^= 1;
    size_t records;
    CHECK_EQ(read_file(&good, &records), -PLX_ECHECKSUM);
    CHECK_EQ(records, 0);
}

/* Sound records in the wrong place. */
static void test_order(void)
{
    struct file file = make();
    size_t records;
    struct file swapped = file;
    swapped.records[0] = file.records[1];
    swapped.records[1] = file.records[0];
    CHECK_EQ(read_file(&swapped, &records), -PLX_ECHECKSUM);
    struct file missing = file;
    missing.records[0] = file.records[1];
    missing.records[1] = file.records[2];
    CHECK_EQ(read_file(&missing, &records), -PLX_ECHECKSUM);
    struct file repeated = file;
    repeated.records[1] = file.records[0];
    CHECK_EQ(read_file(&repeated, &records), -PLX_ECHECKSUM);
    CHECK_EQ(records, 1);
}

static void seal(struct increment_header_format *h)
{
    h->crc = le32_of(crc32c(h, offsetof(struct increment_header_format, crc)));
}

static int try_header(struct increment_header_format *h)
{
    struct increment incr;
    struct increment_header ret;
    seal(h);
    return increment_read_header(&incr, h, &ret, NULL);
}

/* Fields that make no sense, with the right checksum. */
static void test_hostile_header(void)
{
    struct increment_header_format good = make().header, h = good;
    h.incompatible = le32_of(1);
    CHECK_EQ(try_header(&h), -PLX_ENEWER);
    h = good;
    h.compatible = le32_of(1);
    CHECK_EQ(try_header(&h), 0);
    h = good;
    h.header_bytes = le32_of(1024);
    CHECK_EQ(try_header(&h), -PLX_ENEWER);
    static const char *const names[] = {"", ".x", "-x", "a/b", "a@b", "a b", "a\x80"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        h = good;
        memset(h.base, 0, sizeof h.base);
        memcpy(h.base, names[i], strlen(names[i]));
        CHECK_EQ(try_header(&h), -PLX_EFORMAT);
    }
    h = good;
    memset(h.target, 'x', sizeof h.target);
    CHECK_EQ(try_header(&h), -PLX_EFORMAT);
    h = good;
    h.disk[INCREMENT_NAME_BYTES - 1] = 'x'; /* behind the NUL */
    CHECK_EQ(try_header(&h), -PLX_EFORMAT);
    static const uint64_t sizes[] = {0, 1, 4095, DISK_BYTES_MAX + 4096, UINT64_MAX};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        h = good;
        h.target_size_bytes = le64_of(sizes[i]);
        CHECK_EQ(try_header(&h), -PLX_EFORMAT);
        h = good;
        h.base_size_bytes = le64_of(sizes[i]);
        CHECK_EQ(try_header(&h), -PLX_EFORMAT);
    }
}

static int try_record(unsigned kind, uint64_t offset, uint64_t len, uint32_t data_crc)
{
    struct file file = make();
    struct increment incr;
    struct increment_header header;
    struct increment_record ret;
    CHECK_EQ(increment_read_header(&incr, &file.header, &header, NULL), 0);
    CHECK_EQ(increment_read_record(&incr, &file.records[0], &ret, NULL), 0);
    struct increment_record_format r = {
        .magic = le32_of(INCREMENT_RECORD_MAGIC),
        .kind = (uint8_t)kind,
        .offset_bytes = le64_of(offset),
        .len_bytes = le64_of(len),
        .data_crc = le32_of(data_crc),
    };
    r.crc = le32_of(
        crc32c_more(incr.crc, &r, offsetof(struct increment_record_format, crc)));
    return increment_read_record(&incr, &r, &ret, NULL);
}

static void test_hostile_record(void)
{
    const uint64_t end = 3 * BLOCK_SIZE; /* of the record before */
    CHECK_EQ(try_record(INCREMENT_DATA, end, BLOCK_SIZE, 9), 0);
    CHECK_EQ(try_record(INCREMENT_DATA, end, MIB, 9), 0);
    CHECK_EQ(try_record(INCREMENT_ZEROS, end, 2 * MIB - end, 0), 0);
    CHECK_EQ(try_record(INCREMENT_END, 1, sizeof data, 0), 0);
    CHECK_EQ(try_record(0, end, BLOCK_SIZE, 0), -PLX_EFORMAT);
    CHECK_EQ(try_record(4, end, BLOCK_SIZE, 0), -PLX_EFORMAT);
    CHECK_EQ(try_record(INCREMENT_DATA, end, 0, 0), -PLX_EFORMAT);
    CHECK_EQ(try_record(INCREMENT_DATA, end, 100, 0), -PLX_EFORMAT);
    CHECK_EQ(try_record(INCREMENT_DATA, end + 1, BLOCK_SIZE, 0), -PLX_EFORMAT);
    CHECK_EQ(try_record(INCREMENT_DATA, end, MIB + BLOCK_SIZE, 0), -PLX_EFORMAT);
    CHECK_EQ(try_record(INCREMENT_DATA, end - BLOCK_SIZE, BLOCK_SIZE, 0), -PLX_EFORMAT);
    CHECK_EQ(try_record(INCREMENT_ZEROS, end, 2 * MIB, 0), -PLX_EFORMAT);
    CHECK_EQ(try_record(INCREMENT_ZEROS, end, BLOCK_SIZE, 1), -PLX_EFORMAT);
    CHECK_EQ(try_record(INCREMENT_ZEROS, UINT64_MAX - BLOCK_SIZE + 1, BLOCK_SIZE, 0),
             -PLX_EFORMAT);
    CHECK_EQ(try_record(INCREMENT_END, 2, sizeof data, 0), -PLX_EFORMAT);
    CHECK_EQ(try_record(INCREMENT_END, 1, sizeof data + 1, 0), -PLX_EFORMAT);
    CHECK_EQ(try_record(INCREMENT_END, 1, sizeof data, 7), -PLX_EFORMAT);
}

int main(void)
{
    test_round_trip();
    test_every_bit();
    test_order();
    test_hostile_header();
    test_hostile_record();
    return 0;
}
