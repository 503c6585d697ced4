/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The digest of a compacted extent: what its headers said of the blocks that are left.
 * Decoders take foreign bytes: they check everything and assert nothing.
 */
#ifndef PARALLAX_BLOCKSTORE_DIGEST_H
#define PARALLAX_BLOCKSTORE_DIGEST_H

#include "blockstore/header.h"

/* Which extent a digest belongs to. */
struct digest_head {
    struct uid cluster;
    uint64_t disk;
    struct address extent;
    uint64_t nonce;
    uint32_t index;  /* of this block in the digest */
    uint32_t blocks; /* of the digest */
};

/* Of an entry that owns a block. */
void digest_entry_encode(uint32_t block, const struct entry *entry, bool is_bad,
                         struct digest_entry_format *ret);
/* False: not one. */
bool digest_entry_decode(const struct digest_entry_format *f, struct entry *ret_entry);
static inline uint32_t digest_entry_block(const struct digest_entry_format *f)
{
    return le16_get(f->block);
}
static inline bool digest_entry_is_bad(const struct digest_entry_format *f)
{
    return (f->flags & DIGEST_BAD) != 0;
}

/* Blocks for so many entries; at least one. */
static inline uint32_t digest_blocks(uint32_t entries)
{
    return entries == 0 ? 1 : (uint32_t)div_up_u64(entries, DIGEST_ENTRIES);
}

/* Block number head->index: takes its share of all `count` entries. */
void digest_encode(const struct digest_head *head,
                   const struct digest_entry_format *entries, uint32_t count,
                   void *ret_block);
/* The entries of one digest block, their blocks in ascending order. 0; -PLX_EFORMAT,
 * -PLX_ECHECKSUM, -PLX_ENEWER. ret_entries has room for DIGEST_ENTRIES. */
int digest_decode(const void *block, struct digest_head *ret_head,
                  struct digest_entry_format *ret_entries, uint32_t *ret_count);

#endif
