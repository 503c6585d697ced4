/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store's records in the key-value store. doc/format-store.md describes them.
 *
 * Keys: 'e' and the extent's address, big endian, so that they sort by address; "si" and
 * "sf" for the store as a whole. Numbers in values are little endian.
 */
#ifndef PARALLAX_BLOCKSTORE_RECORD_FORMAT_H
#define PARALLAX_BLOCKSTORE_RECORD_FORMAT_H

#include "blockstore/block_format.h"

#define EXTENT_KEY_PREFIX 'e'
#define EXTENT_KEY_BYTES  9U
#define IDENTITY_KEY      "si"
#define FRESH_KEY         "sf"
#define STORE_KEY_BYTES   2U

#define RECORD_MAGIC   0x31455850U /* "PXE1" */
#define RECORD_VERSION 1U

enum record_state { RECORD_OPEN = 1, RECORD_STOPPED = 2, RECORD_FINAL = 3 };

enum {
    RECORD_RESTART_SCANNED = 1U << 0, /* the length was found by a restart scan */
    RECORD_HAS_LIVE = 1U << 1,        /* else every block below the length is live */
    RECORD_HAS_LAYOUT = 1U << 2,      /* else a block's place is its number */
    RECORD_HAS_HEADERS = 1U << 3,     /* else its headers are dead, or it has none */
    RECORD_FLAGS_KNOWN = (1U << 4) - 1,
};

struct extent_record_format {
    le32 magic;
    le16 version;
    le16 flags;
    le64 extent;
    le64 disk, epoch, nonce;
    uint8_t state;
    uint8_t reserved0[3];
    le32 length;       /* blocks; an open extent has 0 here */
    le32 known_synced; /* blocks from 0 on that were synced when this was written */
    le32 create_flags;
    le32 run_count;
    uint8_t reserved1[12];
    /* Then run_count of struct run_format; the live, the layout and the header bitmap if
     * the flags say so; le32 CRC32C of all before. */
};
static_assert(sizeof(struct extent_record_format) == 72, "no padding");

/* Space, in pieces of PIECE_BYTES from the start of the store. */
struct run_format {
    le32 start, count;
};
static_assert(sizeof(struct run_format) == 8, "no padding");

#define BITMAP_BYTES (EXTENT_BLOCKS / 8)
#define EXTENT_PIECES (EXTENT_BLOCKS / PIECE_BLOCKS)
#define RECORD_PIECES_MAX (EXTENT_PIECES + DIGEST_PIECES_MAX)
#define RECORD_BYTES_MAX                                                                 \
    (sizeof(struct extent_record_format) +                                               \
     RECORD_PIECES_MAX * sizeof(struct run_format) + 3 * (size_t)BITMAP_BYTES +          \
     sizeof(le32))

/* Ties the records to one formatted store. */
struct identity_format {
    le32 magic;
    le32 version;
    struct uid cluster, store;
    le64 generation; /* not less than the superblock's */
    uint8_t reserved[12];
    le32 crc; /* of all before */
};
static_assert(sizeof(struct identity_format) == 64, "no padding");

/* Slabs from this one on were never written. Wrong costs speed, nothing else. */
struct fresh_format {
    le32 slab;
    le32 crc;
};
static_assert(sizeof(struct fresh_format) == 8, "no padding");

#endif
