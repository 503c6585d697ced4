/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batch headers and roll records as bytes.
 *
 * Happy path: encode fills one block and puts its CRC last; decode checks magic, version
 * and kind, then the CRC, then every range.
 *
 * What can fail: decoders get foreign bytes (a recycled slab, a guest's forgery, rot), so
 * they answer a code for each way of being wrong and assert nothing. Encoders get our
 * own values and assert them.
 *
 * Nothing is held, so there is nothing to close.
 */
#include "blockstore/header.h"

#define KEY_LIMIT ((uint64_t)1 << 48)

uint32_t header_data_blocks(const struct entry *entries, uint32_t count)
{
    uint32_t blocks = 0;
    for (uint32_t i = 0; i < count; i++)
        blocks += entry_has_block(entries[i].kind);
    return blocks;
}

/* --- encode --- */

static void head_encode(const struct header *h, struct header_head_format *f)
{
    assert(!address_is_null(h->extent) && address_block(h->extent) == 0);
    assert(h->block < EXTENT_BLOCKS);
    f->magic = le32_of(HEADER_MAGIC);
    f->version = le16_of(HEADER_VERSION);
    f->kind = le16_of((uint16_t)h->kind);
    f->cluster = h->cluster;
    f->disk = le64_of(h->disk);
    f->extent = le64_of(h->extent.v);
    f->block = le32_of(h->block);
    f->count = le16_of((uint16_t)h->count);
    f->epoch = le64_of(h->epoch);
    f->number = le64_of(h->number);
    f->generation = le32_of(h->generation);
    f->previous_crc = le32_of(h->previous_crc);
    f->nonce = le64_of(h->nonce);
    f->committed = le64_of(h->committed);
    f->flushed = le64_of(h->flushed);
    f->checkpoint = le64_of(h->checkpoint);
}

static void entry_encode(const struct entry *e, struct entry_format *f)
{
    assert(e->key < KEY_LIMIT);
    f->kind = (uint8_t)e->kind;
    le48_set(f->key, e->key);
    if (entry_has_block(e->kind)) {
        f->u.block.crc = le32_of(e->crc);
        f->u.block.aux = e->aux;
    } else if (e->kind == ENTRY_ZERO) {
        assert(e->count > 0 && e->count <= KEY_LIMIT - e->key);
        le48_set(f->u.interval.count, e->count);
    } else {
        assert(e->kind == ENTRY_MARKER);
    }
}

uint32_t header_encode(const struct header *head, const struct entry *entries,
                       void *ret_block)
{
    struct header_format *f = ret_block;
    assert(head->kind == HEADER_BATCH && head->number > 0);
    assert(head->count <= BATCH_BLOCKS);
    assert(head->block + 1 + header_data_blocks(entries, head->count) <= EXTENT_BLOCKS);
    memset(f, 0, sizeof *f);
    head_encode(head, &f->head);
    for (uint32_t i = 0; i < head->count; i++)
        entry_encode(&entries[i], &f->entries[i]);
    uint32_t crc = crc32c(f, offsetof(struct header_format, crc));
    f->crc = le32_of(crc);
    return crc;
}

uint32_t roll_encode(const struct header *head, const struct roll_entry *entries,
                     void *ret_block)
{
    struct roll_format *f = ret_block;
    assert(head->kind == HEADER_ROLL && head->number == 0);
    assert(head->block == 0 && head->previous_crc == 0);
    assert(head->count <= ROLL_ENTRIES_MAX);
    memset(f, 0, sizeof *f);
    head_encode(head, &f->head);
    for (uint32_t i = 0; i < head->count; i++) {
        assert(!address_is_null(entries[i].extent));
        assert(address_block(entries[i].extent) == 0);
        assert(entries[i].length <= EXTENT_BLOCKS);
        f->entries[i].extent = le64_of(entries[i].extent.v);
        f->entries[i].length = le32_of(entries[i].length);
        f->entries[i].last_number = le64_of(entries[i].last_number);
    }
    uint32_t crc = crc32c(f, offsetof(struct roll_format, crc));
    f->crc = le32_of(crc);
    return crc;
}

/* --- decode --- */

static bool is_extent(struct address a)
{
    return address_group(a) != 0 && address_block(a) == 0;
}

/* Both kinds keep their CRC at the same place. */
static_assert(offsetof(struct header_format, crc) == offsetof(struct roll_format, crc),
              "one check serves both");

static int head_decode(const void *block, enum header_kind kind, struct header *ret)
{
    const struct header_format *f = block;
    const struct header_head_format *h = &f->head;
    if (le32_get(h->magic) != HEADER_MAGIC || le16_get(h->version) == 0)
        return -PLX_EFORMAT;
    if (le16_get(h->version) > HEADER_VERSION)
        return -PLX_ENEWER;
    if (le16_get(h->kind) != kind)
        return -PLX_EFORMAT;
    uint32_t crc = crc32c(f, offsetof(struct header_format, crc));
    if (crc != le32_get(f->crc))
        return -PLX_ECHECKSUM;
    *ret = (struct header){
        .kind = kind,
        .cluster = h->cluster,
        .disk = le64_get(h->disk),
        .extent = {le64_get(h->extent)},
        .block = le32_get(h->block),
        .epoch = le64_get(h->epoch),
        .number = le64_get(h->number),
        .generation = le32_get(h->generation),
        .previous_crc = le32_get(h->previous_crc),
        .crc = crc,
        .nonce = le64_get(h->nonce),
        .committed = le64_get(h->committed),
        .flushed = le64_get(h->flushed),
        .checkpoint = le64_get(h->checkpoint),
        .count = le16_get(h->count),
    };
    if (!is_extent(ret->extent) || ret->block >= EXTENT_BLOCKS)
        return -PLX_EFORMAT;
    return 0;
}

static bool entry_decode(const struct entry_format *f, struct entry *ret)
{
    *ret = (struct entry){.kind = (enum entry_kind)f->kind, .key = le48_get(f->key)};
    switch (f->kind) {
    case ENTRY_DATA:
    case ENTRY_NODE:
    case ENTRY_LIST:
        ret->count = 1;
        ret->crc = le32_get(f->u.block.crc);
        ret->aux = f->u.block.aux;
        return true;
    case ENTRY_ZERO:
        ret->count = le48_get(f->u.interval.count);
        return ret->count > 0 && ret->count <= KEY_LIMIT - ret->key;
    case ENTRY_MARKER:
        return true;
    default:
        return false;
    }
}

int header_decode(const void *block, struct header *ret_head, struct entry *ret_entries)
{
    const struct header_format *f = block;
    struct header head;
    int result = head_decode(block, HEADER_BATCH, &head);
    if (result < 0)
        return result;
    if (head.number == 0 || head.count > BATCH_BLOCKS)
        return -PLX_EFORMAT;
    uint32_t data_blocks = 0;
    for (uint32_t i = 0; i < head.count; i++) {
        struct entry entry;
        if (!entry_decode(&f->entries[i], &entry))
            return -PLX_EFORMAT;
        data_blocks += entry_has_block(entry.kind);
        if (ret_entries != NULL)
            ret_entries[i] = entry;
    }
    if (head.block + 1 + data_blocks > EXTENT_BLOCKS)
        return -PLX_EFORMAT;
    *ret_head = head;
    return 0;
}

int roll_decode(const void *block, struct header *ret_head, struct roll_entry *ret_rolls)
{
    const struct roll_format *f = block;
    struct header head;
    int result = head_decode(block, HEADER_ROLL, &head);
    if (result < 0)
        return result;
    if (head.number != 0 || head.block != 0 || head.previous_crc != 0 ||
        head.count > ROLL_ENTRIES_MAX)
        return -PLX_EFORMAT;
    for (uint32_t i = 0; i < head.count; i++) {
        struct roll_entry entry = {
            .extent = {le64_get(f->entries[i].extent)},
            .length = le32_get(f->entries[i].length),
            .last_number = le64_get(f->entries[i].last_number),
        };
        if (!is_extent(entry.extent) || entry.length > EXTENT_BLOCKS)
            return -PLX_EFORMAT;
        if (ret_rolls != NULL)
            ret_rolls[i] = entry;
    }
    *ret_head = head;
    return 0;
}
