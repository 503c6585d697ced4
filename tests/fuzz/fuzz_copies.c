/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What another node says of its copies of extents: a page of them, one with its bitmaps,
 * blocks. The first byte chooses, the next two are the length of the answer's head; the
 * rest is its payload.
 *
 * What decodes must be fit for what is done with it: a plan of an install, a merge.
 */
#include "blockstore/copy_rpc.c"

#define FROM address_of(1, 3, 0)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void one_page(const uint8_t *head, size_t head_len, const uint8_t *payload,
                     size_t len)
{
    static struct copy_extent extents[COPY_RPC_PAGE_MAX];
    uint32_t count;
    bool more;
    if (copy_page_decode(head, head_len, payload, len, FROM, extents, &count, &more) < 0)
        return;
    struct address least = FROM;
    for (uint32_t i = 0; i < count; i++) {
        struct copy_rpc_extent wire;
        struct copy_extent again;
        assert(extents[i].extent.v >= least.v && address_group(extents[i].extent) == 1);
        least.v = extents[i].extent.v + EXTENT_BLOCKS;
        copy_extent_encode(&extents[i], &wire);
        int rc = copy_extent_decode(&wire, &again);
        assert(rc == 0 && again.live_crc == extents[i].live_crc);
    }
    assert(count > 0 || !more);
}

static void one_description(const uint8_t *head, size_t head_len, const uint8_t *payload,
                            size_t len)
{
    static struct copy_description d;
    if (copy_description_decode(head, head_len, payload, len, FROM, &d) < 0)
        return;
    assert(address_equal(d.extent.extent, FROM));
    if (d.extent.state != COPY_RPC_FINAL)
        return;
    assert(d.extent.live > 0 && d.extent.length <= EXTENT_BLOCKS);
    assert(bitmap_rank(d.live, d.extent.length) == d.extent.live);
    assert(!d.extent.has_headers || bitmap_within(d.headers, d.live));
}

static void some_blocks(const uint8_t *head, size_t head_len, size_t len)
{
    static struct copy_blocks blocks;
    uint32_t from = 10, bytes_count = 0;
    if (copy_blocks_decode(head, head_len, len, from, 40, &blocks) < 0)
        return;
    assert(blocks.count <= 40 && blocks.next > from && blocks.next <= EXTENT_BLOCKS);
    for (uint32_t i = 0; i < blocks.count; i++) {
        const struct copy_block *b = &blocks.at[i];
        struct copy_rpc_block wire;
        struct copy_block again;
        assert(b->block >= from && b->block < blocks.next);
        from = b->block + 1;
        bytes_count += b->has_bytes;
        copy_block_encode(b, &wire);
        int rc = block_decode(&wire, &again);
        assert(rc == 0 && again.block == b->block && again.is_bad == b->is_bad);
    }
    assert(len == (size_t)bytes_count * BLOCK_SIZE);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    if (len < 3)
        return 0;
    size_t head_len = bytes[1] | (size_t)bytes[2] << 8;
    const uint8_t *head = bytes + 3;
    if (head_len > len - 3)
        return 0;
    const uint8_t *payload = head + head_len;
    size_t left = len - 3 - head_len;
    switch (bytes[0] % 3) {
    case 0:
        one_page(head, head_len, payload, left);
        break;
    case 1:
        one_description(head, head_len, payload, left);
        break;
    default:
        some_blocks(head, head_len, left);
    }
    return 0;
}
