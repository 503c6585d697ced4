/* SPDX-License-Identifier: Apache-2.0 */
/* What an increment file consists of, byte by byte; doc/format-increment.md. */
#ifndef PARALLAX_TOOLS_INCREMENT_FORMAT_H
#define PARALLAX_TOOLS_INCREMENT_FORMAT_H

#include "runtime/format.h"
#include "runtime/limits.h"

#define INCREMENT_MAGIC        "PLXINCR\n"
#define INCREMENT_RECORD_MAGIC 0x72584c50U /* "PLXr" */

/* Bits of `incompatible` this program knows; a file with others is refused. */
#define INCREMENT_INCOMPATIBLE_KNOWN 0U

/* A name and zeros up to the end. */
#define INCREMENT_NAME_BYTES 136U
static_assert(INCREMENT_NAME_BYTES > DISK_NAME_MAX, "a name ends with a NUL");

struct increment_header_format {
    uint8_t magic[8];
    le32 incompatible, compatible; /* feature bits */
    le32 header_bytes;             /* of this struct */
    uint8_t reserved[4];
    struct uid cluster;
    le64 created_wall_ns;
    le64 base_size_bytes, target_size_bytes;
    char disk[INCREMENT_NAME_BYTES];
    char base[INCREMENT_NAME_BYTES]; /* snapshots */
    char target[INCREMENT_NAME_BYTES];
    uint8_t reserved2[36];
    le32 crc; /* CRC32C of all before it */
};
static_assert(sizeof(struct increment_header_format) == 512, "as documented");

enum increment_kind {
    INCREMENT_DATA = 1,
    INCREMENT_ZEROS = 2,
    INCREMENT_END = 3,
};

struct increment_record_format {
    le32 magic;
    uint8_t kind;
    uint8_t reserved[3];
    le64 offset_bytes; /* END: the number of records before it */
    le64 len_bytes;    /* END: the bytes of data in them */
    le32 data_crc;     /* CRC32C of the bytes that follow a DATA; else 0 */
    le32 crc;          /* of what is before it, going on from the record before */
};
static_assert(sizeof(struct increment_record_format) == 32, "as documented");

/* Of one DATA record. */
#define INCREMENT_DATA_BYTES_MAX (1 * MIB)

#endif
