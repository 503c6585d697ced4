/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Increment files of arbitrary bytes, read as an import does.
 *
 *   byte 0     1: all checksums are made right first, so that what they cover is reached
 *   the rest   the file
 *
 * Whatever is accepted must lie within the target's size, in order, and add up.
 */
#include "runtime/crc32c.h"
#include "tools/increment.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

struct input {
    bool seal;
    uint8_t *at;
    size_t left;
};

/* The next `len` bytes, at most what there is; NULL at the end. */
static void *next(struct input *input, size_t len)
{
    if (input->left < len)
        return NULL;
    uint8_t *at = input->at;
    input->at += len;
    input->left -= len;
    return at;
}

static void seal_header(const struct input *input, struct increment_header_format *header)
{
    if (input->seal)
        header->crc =
            le32_of(crc32c(header, offsetof(struct increment_header_format, crc)));
}

static void seal_record(const struct input *input, const struct increment *incr,
                        struct increment_record_format *record)
{
    if (!input->seal)
        return;
    record->magic = le32_of(INCREMENT_RECORD_MAGIC);
    record->crc = le32_of(crc32c_more(incr->crc, record,
                                      offsetof(struct increment_record_format, crc)));
}

static int read_data(struct input *input, const struct increment_record *record)
{
    const void *data = next(input, record->len_bytes);
    assert(record->len_bytes <= INCREMENT_DATA_BYTES_MAX);
    if (data == NULL)
        return -PLX_EFORMAT;
    int rc = increment_check_data(record, data, NULL);
    return input->seal ? 0 : rc;
}

static void read_file(struct input *input)
{
    struct increment incr;
    struct increment_header header;
    struct increment_header_format *head = next(input, sizeof *head);
    if (head == NULL)
        return;
    seal_header(input, head);
    if (increment_read_header(&incr, head, &header, NULL) < 0)
        return;
    assert(strlen(header.disk) > 0 && strlen(header.base) <= DISK_NAME_MAX);
    assert(header.target_size_bytes % BLOCK_SIZE == 0);
    uint64_t end = 0, data_bytes = 0, records = 0;
    while (!incr.ended) {
        struct increment_record record;
        struct increment_record_format *format = next(input, sizeof *format);
        if (format == NULL)
            return;
        seal_record(input, &incr, format);
        if (increment_read_record(&incr, format, &record, NULL) < 0)
            return;
        if (record.kind == INCREMENT_END)
            break;
        assert(record.offset_bytes >= end && record.len_bytes > 0);
        end = record.offset_bytes + record.len_bytes;
        assert(end <= header.target_size_bytes);
        records++;
        if (record.kind == INCREMENT_ZEROS)
            continue;
        data_bytes += record.len_bytes;
        if (read_data(input, &record) < 0)
            return;
    }
    assert(incr.ended && incr.records == records && incr.data_bytes == data_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    if (len < 1)
        return 0;
    uint8_t *copy = malloc(len);
    assert(copy != NULL);
    memcpy(copy, bytes, len);
    struct input input = {.seal = bytes[0] & 1, .at = copy + 1, .left = len - 1};
    read_file(&input);
    free(copy);
    return 0;
}
