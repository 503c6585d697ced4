/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks of dead lists, as they are read back from the log. The highest bit of the first
 * byte makes magic and version right first. What decodes must be the same after it was
 * encoded again.
 */
#include "cow/dead.c"
#include "cow/dead_set.c"

#define SEALED 0x80U

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void check_block(const struct dead_block *block)
{
    static uint8_t copy[BLOCK_SIZE];
    struct dead_block again;
    struct dead_entries all = {.runs = NULL};
    uint64_t blocks = 0, blocks_again = 0;

    if (dead_entries_append(&all, &block->entries) < 0)
        return;
    for (uint32_t i = 0; i < all.run_count; i++) {
        assert(address_group(all.runs[i].address) > 0 && all.runs[i].count > 0);
        assert(address_block(all.runs[i].address) + all.runs[i].count <= EXTENT_BLOCKS);
        blocks += all.runs[i].count;
    }
    for (uint32_t i = 0; i < all.subtree_count; i++)
        assert(all.subtrees[i].level < MAP_HEIGHT_MAX);
    dead_block_encode(block->checkpoint, block->previous, block->previous_crc, &all,
                      copy);
    assert(all.run_count == 0 && all.subtree_count == 0);
    int rc = dead_block_decode(copy, &again);
    assert(rc == 0 && again.checkpoint == block->checkpoint);
    assert(again.previous.v == block->previous.v);
    assert(again.previous_crc == block->previous_crc);
    assert(again.entries.subtree_count == block->entries.subtree_count);
    for (uint32_t i = 0; i < again.entries.run_count; i++)
        blocks_again += again.entries.runs[i].count;
    assert(blocks == blocks_again);
    dead_entries_done(&again.entries);
    dead_entries_done(&all);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    static struct dead_block_format format;
    struct dead_block block;

    if (len < 1)
        return 0;
    memset(&format, 0, sizeof format);
    memcpy(&format, bytes + 1, min_u64(len - 1, sizeof format));
    if (bytes[0] & SEALED) {
        format.magic = le32_of(DEAD_MAGIC);
        format.version = le16_of(DEAD_VERSION);
    }
    if (dead_block_decode(&format, &block) == 0) {
        check_block(&block);
        dead_entries_done(&block.entries);
    }
    return 0;
}
