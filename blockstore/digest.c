/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Digests of compacted extents as bytes.
 *
 * What can fail: decoders get foreign bytes and answer a code for each way of being
 * wrong. Encoders get our own values and assert them.
 */
#include "blockstore/digest.h"

void digest_entry_encode(uint32_t block, const struct entry *entry, bool is_bad,
                         struct digest_entry_format *ret)
{
    assert(block < EXTENT_BLOCKS && entry_has_block(entry->kind));
    *ret = (struct digest_entry_format){
        .kind = (uint8_t)entry->kind,
        .aux = entry->aux,
        .crc = le32_of(entry->crc),
        .block = le16_of((uint16_t)block),
        .flags = is_bad ? DIGEST_BAD : 0,
    };
    le48_set(ret->key, entry->key);
}

bool digest_entry_decode(const struct digest_entry_format *f, struct entry *ret_entry)
{
    *ret_entry = (struct entry){
        .kind = (enum entry_kind)f->kind,
        .key = le48_get(f->key),
        .count = 1,
        .crc = le32_get(f->crc),
        .aux = f->aux,
    };
    return entry_has_block(ret_entry->kind) && digest_entry_block(f) < EXTENT_BLOCKS &&
           (f->flags & ~DIGEST_BAD) == 0;
}

void digest_encode(const struct digest_head *head,
                   const struct digest_entry_format *entries, uint32_t count,
                   void *ret_block)
{
    struct digest_format *f = ret_block;
    uint32_t first = head->index * DIGEST_ENTRIES;
    assert(head->index < head->blocks && head->blocks <= DIGEST_BLOCKS_MAX);
    uint32_t n = first < count ? min_u32(count - first, DIGEST_ENTRIES) : 0;
    memset(f, 0, sizeof *f);
    f->magic = le32_of(DIGEST_MAGIC);
    f->version = le16_of(DIGEST_VERSION);
    f->count = le16_of((uint16_t)n);
    f->cluster = head->cluster;
    f->disk = le64_of(head->disk);
    f->extent = le64_of(head->extent.v);
    f->nonce = le64_of(head->nonce);
    f->index = le32_of(head->index);
    f->blocks = le32_of(head->blocks);
    if (n > 0)
        memcpy(f->entries, entries + first, n * sizeof *entries);
    f->crc = le32_of(crc32c(f, offsetof(struct digest_format, crc)));
}

int digest_decode(const void *block, struct digest_head *ret_head,
                  struct digest_entry_format *ret_entries, uint32_t *ret_count)
{
    const struct digest_format *f = block;
    struct digest_head head = {
        .cluster = f->cluster,
        .disk = le64_get(f->disk),
        .extent = {le64_get(f->extent)},
        .nonce = le64_get(f->nonce),
        .index = le32_get(f->index),
        .blocks = le32_get(f->blocks),
    };
    uint32_t count = le16_get(f->count);
    struct entry entry;
    if (le32_get(f->magic) != DIGEST_MAGIC || le16_get(f->version) == 0)
        return -PLX_EFORMAT;
    if (le16_get(f->version) > DIGEST_VERSION)
        return -PLX_ENEWER;
    if (crc32c(f, offsetof(struct digest_format, crc)) != le32_get(f->crc))
        return -PLX_ECHECKSUM;
    if (head.blocks > DIGEST_BLOCKS_MAX || head.index >= head.blocks ||
        count > DIGEST_ENTRIES)
        return -PLX_EFORMAT;
    for (uint32_t i = 0; i < count; i++) {
        if (!digest_entry_decode(&f->entries[i], &entry))
            return -PLX_EFORMAT;
        if (i > 0 &&
            digest_entry_block(&f->entries[i - 1]) >= digest_entry_block(&f->entries[i]))
            return -PLX_EFORMAT;
    }
    memcpy(ret_entries, f->entries, count * sizeof *ret_entries);
    *ret_head = head;
    *ret_count = count;
    return 0;
}
