/* SPDX-License-Identifier: Apache-2.0 */
/* Digests of compacted extents, to bytes and back. */
#include "blockstore/digest.h"
#include "tests/unit/check.h"

#define COUNT 700U

static struct digest_entry_format entries[COUNT], got[DIGEST_ENTRIES];
static uint8_t block[BLOCK_SIZE];

static const struct digest_head HEAD = {
    .cluster = {{1, 2, 3}},
    .disk = 7,
    .extent = {(uint64_t)1 << 48 | (uint64_t)5 << 14},
    .nonce = 0x123456789abcdef0,
    .blocks = 3,
};

static void fill(void)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        struct entry entry = {.kind = i % 3 == 0   ? ENTRY_NODE
                                      : i % 3 == 1 ? ENTRY_DATA
                                                   : ENTRY_LIST,
                              .key = ((uint64_t)1 << 48) - 1 - i,
                              .crc = i * 77,
                              .aux = (uint8_t)(i % 4)};
        digest_entry_encode(i * 23, &entry, i % 10 == 0, &entries[i]);
    }
}

static void test_round_trip(void)
{
    CHECK_EQ(digest_blocks(0), 1);
    CHECK_EQ(digest_blocks(DIGEST_ENTRIES), 1);
    CHECK_EQ(digest_blocks(COUNT), 3);
    CHECK_EQ(digest_blocks(EXTENT_BLOCKS), DIGEST_BLOCKS_MAX);
    uint32_t seen = 0;
    for (uint32_t index = 0; index < 3; index++) {
        struct digest_head head = HEAD, back;
        uint32_t count = 0;
        head.index = index;
        digest_encode(&head, entries, COUNT, block);
        CHECK_EQ(digest_decode(block, &back, got, &count), 0);
        CHECK_EQ(back.index, index);
        CHECK(back.nonce == HEAD.nonce && back.disk == 7 && back.blocks == 3);
        CHECK(uid_equal(back.cluster, HEAD.cluster));
        CHECK(address_equal(back.extent, HEAD.extent));
        for (uint32_t i = 0; i < count; i++, seen++) {
            struct entry entry;
            CHECK(digest_entry_decode(&got[i], &entry));
            CHECK_EQ(digest_entry_block(&got[i]), seen * 23);
            CHECK_EQ(digest_entry_is_bad(&got[i]), seen % 10 == 0);
            CHECK_EQ(entry.key, ((uint64_t)1 << 48) - 1 - seen);
            CHECK_EQ(entry.crc, seen * 77);
            CHECK_EQ(entry.aux, seen % 4);
            CHECK(entry.kind == (seen % 3 == 0   ? ENTRY_NODE
                                 : seen % 3 == 1 ? ENTRY_DATA
                                                 : ENTRY_LIST));
        }
    }
    CHECK_EQ(seen, COUNT);
}

static int decode_sealed(void)
{
    struct digest_format *f = (struct digest_format *)(void *)block;
    struct digest_head head;
    uint32_t count;
    f->crc = le32_of(crc32c(f, offsetof(struct digest_format, crc)));
    return digest_decode(block, &head, got, &count);
}

static void test_refusals(void)
{
    struct digest_format *f = (struct digest_format *)(void *)block;
    struct digest_head head = HEAD;
    uint32_t count;
    digest_encode(&HEAD, entries, COUNT, block);
    for (uint32_t i = 0; i < BLOCK_SIZE; i += 11) {
        block[i] ^= 8;
        CHECK(digest_decode(block, &head, got, &count) < 0);
        block[i] ^= 8;
    }
    CHECK_EQ(decode_sealed(), 0);
    f->version = le16_of(DIGEST_VERSION + 1);
    CHECK_EQ(decode_sealed(), -PLX_ENEWER);
    digest_encode(&HEAD, entries, COUNT, block);
    f->index = le32_of(3);
    CHECK_EQ(decode_sealed(), -PLX_EFORMAT);
    digest_encode(&HEAD, entries, COUNT, block);
    f->blocks = le32_of(DIGEST_BLOCKS_MAX + 1);
    CHECK_EQ(decode_sealed(), -PLX_EFORMAT);
    digest_encode(&HEAD, entries, COUNT, block);
    f->count = le16_of(DIGEST_ENTRIES + 1);
    CHECK_EQ(decode_sealed(), -PLX_EFORMAT);
    digest_encode(&HEAD, entries, COUNT, block);
    f->entries[4].kind = ENTRY_ZERO;
    CHECK_EQ(decode_sealed(), -PLX_EFORMAT);
    digest_encode(&HEAD, entries, COUNT, block);
    f->entries[4].block = f->entries[3].block;
    CHECK_EQ(decode_sealed(), -PLX_EFORMAT);
    digest_encode(&HEAD, entries, COUNT, block);
    f->entries[250].block = le16_of(EXTENT_BLOCKS);
    CHECK_EQ(decode_sealed(), -PLX_EFORMAT);
}

int main(void)
{
    fill();
    test_round_trip();
    test_refusals();
    return 0;
}
