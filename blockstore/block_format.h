/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What lies in a store's file or device. doc/format-store.md describes it.
 *
 * Slab 0 holds two copies of the superblock, in its first and its last block; the other
 * slabs belong to extents. An extent is a sequence of blocks: block 0 is a roll record,
 * then batches, each a header block and the data blocks that its entries describe.
 */
#ifndef PARALLAX_BLOCKSTORE_BLOCK_FORMAT_H
#define PARALLAX_BLOCKSTORE_BLOCK_FORMAT_H

#include "runtime/format.h"
#include "runtime/limits.h"

#define SUPERBLOCK_MAGIC   "PLXSTORE"
#define SUPERBLOCK_VERSION 1U

/* A program that does not know an incompatible bit refuses; a compatible one it
 * ignores. None is defined yet. */
#define SUPERBLOCK_INCOMPATIBLE_KNOWN ((uint64_t)0)

struct superblock_format {
    uint8_t magic[8];
    le32 version;
    le32 block_bytes, slab_bytes, piece_bytes;
    le64 incompatible, compatible;
    struct uid cluster, store;
    le64 capacity_bytes;  /* when it was written last; the file may have grown since */
    le64 created_wall_ns;
    le64 generation;      /* the copy with the higher one counts */
    uint8_t reserved[4096 - 8 - 16 - 16 - 32 - 24 - 4];
    le32 crc;             /* of all before */
};
static_assert(sizeof(struct superblock_format) == BLOCK_SIZE, "one block");

#define HEADER_MAGIC   0x31424c50U /* "PLB1" */
#define HEADER_VERSION 1U

enum header_kind { HEADER_BATCH = 1, HEADER_ROLL = 2 };

/* What an entry describes. DATA, NODE and LIST own the next block of the batch. */
enum entry_kind {
    ENTRY_DATA = 1,   /* key: block number of the disk */
    ENTRY_NODE = 2,   /* key: index of the map node in its level; aux: level */
    ENTRY_LIST = 3,   /* a block of a checkpoint's dead list */
    ENTRY_ZERO = 4,   /* key, count: interval of the disk that reads as zeros */
    ENTRY_MARKER = 5, /* key: the version the snapshot will be */
};

struct entry_format {
    uint8_t kind;
    uint8_t key[6];   /* 48 bits, little endian */
    union {
        struct {
            le32 crc; /* CRC32C of the block */
            uint8_t aux;
            uint8_t reserved[3];
        } block;
        struct {
            uint8_t count[6]; /* 48 bits: blocks of the interval */
            uint8_t reserved[2];
        } interval;
    } u;
};
static_assert(sizeof(struct entry_format) == 15, "entries are packed");

/* The first part of both kinds of header. */
struct header_head_format {
    le32 magic;
    le16 version;
    le16 kind;
    struct uid cluster;
    le64 disk;
    le64 extent;          /* address of its block 0 */
    le32 block;           /* where this header stands in the extent */
    le16 count;           /* entries */
    le16 reserved0;
    le64 epoch;
    le64 number;          /* of the batch; a roll record has 0 */
    le32 generation;
    le32 previous_crc;    /* of the header before in this extent; a roll record has 0 */
    le64 nonce;           /* drawn when the extent was opened */
    le64 committed, flushed; /* watermarks the owner knew when it built this */
    le64 checkpoint;      /* K of NODE and LIST entries; else 0 */
    uint8_t reserved[256 - 104];
};
static_assert(sizeof(struct header_head_format) == 256, "room to grow");

struct header_format {
    struct header_head_format head;
    struct entry_format entries[BATCH_BLOCKS];
    uint8_t reserved[4096 - 256 - 15 * 255 - 4];
    le32 crc; /* of all before */
};
static_assert(sizeof(struct header_format) == BLOCK_SIZE, "one block");

/* An extent that has no committed final length yet. */
struct roll_entry_format {
    le64 extent;
    le32 length;      /* decided final length, blocks; 0 included */
    le32 reserved;
    le64 last_number; /* last batch within that length; 0: none */
};
static_assert(sizeof(struct roll_entry_format) == 24, "packed");

#define ROLL_ENTRIES_MAX 150U
struct roll_format {
    struct header_head_format head;
    struct roll_entry_format entries[ROLL_ENTRIES_MAX];
    uint8_t reserved[4096 - 256 - 24 * 150 - 4];
    le32 crc;
};
static_assert(sizeof(struct roll_format) == BLOCK_SIZE, "one block");
static_assert(ROLL_ENTRIES_MAX >= LOG_EXTENTS_MAX, "a roll record lists the whole tail");

/* What is left of an extent's headers once it was compacted. */
#define DIGEST_MAGIC   0x31474c50U /* "PLG1" */
#define DIGEST_VERSION 1U
#define DIGEST_BAD     1U /* the block did not fit its CRC when it was moved */

struct digest_entry_format {
    uint8_t key[6]; /* 48 bits, as in the header's entry, */
    uint8_t kind;   /* and so are these */
    uint8_t aux;
    le32 crc;
    le16 block; /* in the extent */
    uint8_t flags;
    uint8_t reserved;
};
static_assert(sizeof(struct digest_entry_format) == 16, "packed");

#define DIGEST_ENTRIES 251U
struct digest_format {
    le32 magic;
    le16 version;
    le16 count; /* entries of this block */
    struct uid cluster;
    le64 disk, extent, nonce;
    le32 index;  /* of this block in the digest */
    le32 blocks; /* of the digest */
    uint8_t reserved0[8];
    struct digest_entry_format entries[DIGEST_ENTRIES];
    uint8_t reserved1[4096 - 64 - 16 * 251 - 4];
    le32 crc; /* of all before */
};
static_assert(sizeof(struct digest_format) == BLOCK_SIZE, "one block");

#define DIGEST_BLOCKS_MAX ((EXTENT_BLOCKS + DIGEST_ENTRIES - 1) / DIGEST_ENTRIES)
#define DIGEST_PIECES_MAX ((DIGEST_BLOCKS_MAX + PIECE_BLOCKS - 1) / PIECE_BLOCKS)

static inline uint64_t le48_get(const uint8_t b[6])
{
    uint64_t n = 0;
    for (int i = 5; i >= 0; i--)
        n = n << 8 | b[i];
    return n;
}

static inline void le48_set(uint8_t b[6], uint64_t n)
{
    for (int i = 0; i < 6; i++, n >>= 8)
        b[i] = (uint8_t)n;
}

#endif
