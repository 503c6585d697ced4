/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batch headers and roll records, decoded: what the store's scan, the log's take-over
 * and a disk's replay work with. Decoders take foreign bytes: they check everything and
 * assert nothing.
 */
#ifndef PARALLAX_BLOCKSTORE_HEADER_H
#define PARALLAX_BLOCKSTORE_HEADER_H

#include "blockstore/address.h"
#include "blockstore/block_format.h"
#include "runtime/runtime.h"

struct header {
    enum header_kind kind;
    struct uid cluster;
    uint64_t disk;
    struct address extent;
    uint32_t block; /* of the header itself */
    uint64_t epoch, number;
    uint32_t generation;
    uint32_t previous_crc, crc;
    uint64_t nonce;
    uint64_t committed, flushed;
    uint64_t checkpoint;
    uint32_t count;
};

struct entry {
    enum entry_kind kind;
    uint64_t key;
    uint64_t count; /* blocks of an interval; 1 for a block */
    uint32_t crc;
    uint8_t aux;
};

struct roll_entry {
    struct address extent;
    uint32_t length;
    uint64_t last_number;
};

static inline bool entry_has_block(enum entry_kind kind)
{
    return kind == ENTRY_DATA || kind == ENTRY_NODE || kind == ENTRY_LIST;
}

/* Encode into one block of BLOCK_SIZE bytes; return its CRC. head->count entries. */
uint32_t header_encode(const struct header *head, const struct entry *entries,
                       void *ret_block);
uint32_t roll_encode(const struct header *head, const struct roll_entry *entries,
                     void *ret_block);

/* Decode one block. 0; -PLX_EFORMAT if it is not a header (magic, kind, counts, ranges),
 * -PLX_ECHECKSUM, -PLX_ENEWER. ret_entries / ret_rolls may be NULL; else it has room
 * for BATCH_BLOCKS / ROLL_ENTRIES_MAX. */
int header_decode(const void *block, struct header *ret_head, struct entry *ret_entries);
int roll_decode(const void *block, struct header *ret_head, struct roll_entry *ret_rolls);

/* Blocks of the batch after its header. */
uint32_t header_data_blocks(const struct entry *entries, uint32_t count);

#endif
