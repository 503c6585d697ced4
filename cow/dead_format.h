/* SPDX-License-Identifier: Apache-2.0 */
/* A block of a checkpoint's dead list, as it lies in the log: doc/format-map.md. */
#ifndef PARALLAX_COW_DEAD_FORMAT_H
#define PARALLAX_COW_DEAD_FORMAT_H

#include "runtime/format.h"

#define DEAD_MAGIC       0x31444c50U /* "PLD1" */
#define DEAD_VERSION     1U
#define DEAD_ENTRIES_MAX 252U

enum dead_kind {
    DEAD_BLOCKS = 1,  /* count blocks from address on */
    DEAD_SUBTREE = 2, /* the map node at address and all below it that is younger than
                       * the bound; the entry behind it tells the rest */
    DEAD_NODE = 3,    /* what a SUBTREE is followed by: generation and crc of its node */
};

struct dead_entry_format {
    le64 address;     /* NODE: the generation */
    uint8_t kind;
    uint8_t level;    /* SUBTREE: of its topmost node; else 0 */
    uint8_t reserved[2];
    le32 value;       /* BLOCKS: count; SUBTREE: bound; NODE: crc */
};
static_assert(sizeof(struct dead_entry_format) == 16, "packed");

struct dead_block_format {
    le32 magic;
    le16 version;
    le16 count;       /* entries */
    le64 checkpoint;  /* K, whose list it is */
    le64 previous;    /* the block before it in the list; null: it is the first */
    le32 previous_crc;
    uint8_t reserved[64 - 28];
    struct dead_entry_format entries[DEAD_ENTRIES_MAX];
};
static_assert(sizeof(struct dead_block_format) == BLOCK_SIZE, "one block");

#endif
