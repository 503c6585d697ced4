/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The increment file, without files: headers and records to and from bytes.
 *
 * A reader believes nothing: every field is checked against what came before, and the
 * checksum of a record goes on from the one before it, so that a record that is missing,
 * repeated or of another file is noticed where it stands.
 */
#ifndef PARALLAX_TOOLS_INCREMENT_H
#define PARALLAX_TOOLS_INCREMENT_H

#include "runtime/error.h"
#include "tools/increment_format.h"

struct increment_header {
    struct uid cluster;
    uint64_t created_wall_ns;
    uint64_t base_size_bytes, target_size_bytes;
    char disk[DISK_NAME_MAX + 1];
    char base[DISK_NAME_MAX + 1], target[DISK_NAME_MAX + 1];
};

struct increment_record {
    enum increment_kind kind;
    uint64_t offset_bytes, len_bytes; /* of DATA and ZEROS */
    uint32_t data_crc;
};

/* Where a writer or reader is. */
struct increment {
    uint64_t size_bytes; /* of the target */
    uint32_t crc;        /* of the last record, or of the header */
    uint64_t end_bytes;  /* of the last range */
    uint64_t records, data_bytes, zero_bytes;
    bool ended;
};

/* Names must be valid, sizes those of disks. */
void increment_write_header(struct increment *incr, const struct increment_header *header,
                            struct increment_header_format *ret);
/* For INCREMENT_END the other fields do not matter. */
void increment_write_record(struct increment *incr, const struct increment_record *record,
                            struct increment_record_format *ret);

/* True if a file that begins with these bytes means to be an increment. */
bool increment_is_one(const void *bytes, size_t len);
/* -PLX_EFORMAT, -PLX_ENEWER, -PLX_ECHECKSUM; the text says what is wrong. */
int increment_read_header(struct increment *incr,
                          const struct increment_header_format *bytes,
                          struct increment_header *ret, struct error *err);
int increment_read_record(struct increment *incr,
                          const struct increment_record_format *bytes,
                          struct increment_record *ret, struct error *err);
/* The data_crc of `record` is that of its data. */
int increment_check_data(const struct increment_record *record, const void *data,
                         struct error *err);

#endif
