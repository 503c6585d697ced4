/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the store reads back from a device or its metadata: batch headers, roll records,
 * superblocks, digests, extent records. The low bits of the first byte choose; its
 * highest bit makes the checksum right first, else nothing but that would ever be looked
 * at.
 *
 * What decodes must stay decodable after it was encoded again, with the same meaning.
 */
#include "blockstore/digest.c"
#include "blockstore/header.c"
#include "blockstore/record.c"
#include "blockstore/superblock.c"

#define SEALED 0x80U

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void seal(uint8_t *bytes, size_t len)
{
    le32 crc = le32_of(crc32c(bytes, len - sizeof crc));
    memcpy(bytes + len - sizeof crc, &crc, sizeof crc);
}

static void one_header(const uint8_t *block)
{
    struct header head, again;
    static struct entry entries[BATCH_BLOCKS], entries_again[BATCH_BLOCKS];
    static uint8_t copy[BLOCK_SIZE];
    if (header_decode(block, &head, entries) < 0)
        return;
    assert(head.block + 1 + header_data_blocks(entries, head.count) <= EXTENT_BLOCKS);
    header_encode(&head, entries, copy);
    int result = header_decode(copy, &again, entries_again);
    assert(result == 0 && again.number == head.number && again.count == head.count);
    for (uint32_t i = 0; i < head.count; i++) {
        assert(entries_again[i].kind == entries[i].kind);
        assert(entries_again[i].key == entries[i].key);
        assert(entries_again[i].count == entries[i].count);
        assert(entries_again[i].crc == entries[i].crc);
    }
}

static void one_roll(const uint8_t *block)
{
    struct header head, again;
    static struct roll_entry rolls[ROLL_ENTRIES_MAX], rolls_again[ROLL_ENTRIES_MAX];
    static uint8_t copy[BLOCK_SIZE];
    if (roll_decode(block, &head, rolls) < 0)
        return;
    roll_encode(&head, rolls, copy);
    int result = roll_decode(copy, &again, rolls_again);
    assert(result == 0 && again.count == head.count);
    for (uint32_t i = 0; i < head.count; i++)
        assert(address_equal(rolls[i].extent, rolls_again[i].extent));
}

static void one_superblock(const uint8_t *block)
{
    struct superblock sb, again;
    static uint8_t copy[BLOCK_SIZE];
    if (superblock_decode(block, &sb) < 0)
        return;
    superblock_encode(&sb, copy);
    int result = superblock_decode(copy, &again);
    assert(result == 0 && again.capacity_bytes == sb.capacity_bytes);
}

static void one_digest(const uint8_t *block)
{
    struct digest_head head, again;
    static struct digest_entry_format entries[DIGEST_ENTRIES], copies[DIGEST_ENTRIES];
    static uint8_t copy[BLOCK_SIZE];
    uint32_t count = 0, count_again = 0;
    if (digest_decode(block, &head, entries, &count) < 0)
        return;
    head.index = 0; /* as if these were all */
    digest_encode(&head, entries, count, copy);
    int result = digest_decode(copy, &again, copies, &count_again);
    assert(result == 0 && again.blocks == head.blocks && count_again == count);
    assert(memcmp(entries, copies, count * sizeof *entries) == 0);
}

static void one_record(const uint8_t *bytes, size_t len)
{
    struct extent *e = calloc(1, sizeof *e), *again = calloc(1, sizeof *again);
    struct extent_record_format f = {0};
    struct writer w = {0};
    uint8_t key[EXTENT_KEY_BYTES];
    memcpy(&f, bytes, len < sizeof f ? len : sizeof f);
    extent_key((struct address){le64_get(f.extent)}, key);
    if (record_decode(key, sizeof key, bytes, len, e) == 0) {
        assert(e->durable <= EXTENT_BLOCKS && e->live <= EXTENT_BLOCKS);
        for (uint32_t i = 0; i < e->length; i += 97) {
            uint64_t offset_bytes = 0;
            if (extent_is_live(e, i, 1))
                assert(extent_place(e, i, 1, &offset_bytes) == 1);
        }
        record_encode(e, EXTENT_PIECES, &w);
        int result = record_decode(key, sizeof key, w.bytes, w.len, again);
        assert(result == 0 && again->live == e->live && again->length == e->length);
    }
    writer_done(&w);
    extent_free(e);
    extent_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    static uint8_t block[BLOCK_SIZE];
    if (len < 1 + sizeof(le32) || len > 1 + RECORD_BYTES_MAX)
        return 0;
    uint8_t choice = bytes[0];
    uint8_t *rest = malloc(len - 1); /* exactly, so that reading on is noticed */
    if (rest == NULL)
        return 0;
    memcpy(rest, bytes + 1, len - 1);
    memset(block, 0, sizeof block);
    memcpy(block, rest, len - 1 < sizeof block ? len - 1 : sizeof block);
    if (choice & SEALED) {
        seal(block, sizeof block);
        seal(rest, len - 1);
    }
    switch (choice % 8) {
    case 0:
        one_header(block);
        break;
    case 1:
        one_roll(block);
        break;
    case 2:
        one_superblock(block);
        break;
    case 4:
        one_digest(block);
        break;
    default:
        one_record(rest, len - 1);
    }
    free(rest);
    return 0;
}
