/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptions of copies, and their blocks, as bytes between nodes. */
#include "blockstore/copy_rpc.h"

#include "blockstore/layout.h"

void copy_extent_encode(const struct copy_extent *extent, struct copy_rpc_extent *ret)
{
    *ret = (struct copy_rpc_extent){
        .extent = le64_of(extent->extent.v),
        .disk = le64_of(extent->disk),
        .epoch = le64_of(extent->epoch),
        .nonce = le64_of(extent->nonce),
        .length = le32_of(extent->length),
        .live = le32_of(extent->live),
        .live_crc = le32_of(extent->live_crc),
        .state = (uint8_t)extent->state,
        .flags = extent->has_headers ? COPY_RPC_HAS_HEADERS : 0,
    };
}

int copy_extent_decode(const struct copy_rpc_extent *f, struct copy_extent *ret)
{
    struct copy_extent e = {
        .extent = {le64_get(f->extent)},
        .state = (enum copy_rpc_state)f->state,
        .disk = le64_get(f->disk),
        .epoch = le64_get(f->epoch),
        .nonce = le64_get(f->nonce),
        .length = le32_get(f->length),
        .live = le32_get(f->live),
        .live_crc = le32_get(f->live_crc),
        .has_headers = (f->flags & COPY_RPC_HAS_HEADERS) != 0,
    };
    if (address_group(e.extent) == 0 || address_block(e.extent) != 0 ||
        f->state > COPY_RPC_FINAL || (f->flags & ~COPY_RPC_HAS_HEADERS) != 0)
        return -PLX_EFORMAT;
    if (e.length > EXTENT_BLOCKS || e.live > e.length)
        return -PLX_EFORMAT;
    if (e.state == COPY_RPC_FINAL && e.live == 0)
        return -PLX_EFORMAT;
    *ret = e;
    return 0;
}

int copy_page_decode(const void *head, size_t head_len, const void *payload, size_t len,
                     struct address from, struct copy_extent *ret_extents,
                     uint32_t *ret_count, bool *ret_more)
{
    struct copy_rpc_page page;
    if (head_len != sizeof page)
        return -PLX_EFORMAT;
    memcpy(&page, head, sizeof page);
    uint32_t count = le32_get(page.count);
    if (count > COPY_RPC_PAGE_MAX || len != count * sizeof(struct copy_rpc_extent) ||
        page.more > 1 || (page.more && count == 0))
        return -PLX_EFORMAT;
    struct address least = from;
    for (uint32_t i = 0; i < count; i++) {
        struct copy_rpc_extent f;
        memcpy(&f, (const uint8_t *)payload + i * sizeof f, sizeof f);
        int rc = copy_extent_decode(&f, &ret_extents[i]);
        if (rc != 0)
            return rc;
        struct address extent = ret_extents[i].extent;
        if (extent.v < least.v || address_group(extent) != address_group(from) ||
            ret_extents[i].state == COPY_RPC_ABSENT)
            return -PLX_EFORMAT;
        least.v = extent.v + EXTENT_BLOCKS;
    }
    *ret_count = count;
    *ret_more = page.more != 0;
    return 0;
}

/* Bitmaps must be what the head says, and a plan for an install must be sound. */
static bool description_is_sound(const struct copy_description *d)
{
    const struct copy_extent *e = &d->extent;
    return bitmap_rank(d->live, EXTENT_BLOCKS) == e->live &&
           bitmap_rank(d->live, e->length) == e->live &&
           crc32c(d->live, BITMAP_BYTES) == e->live_crc &&
           (!e->has_headers ||
            (bitmap_get(d->headers, 0) && bitmap_within(d->headers, d->live)));
}

int copy_description_decode(const void *head, size_t head_len, const void *payload,
                            size_t len, struct address extent,
                            struct copy_description *ret)
{
    struct copy_rpc_extent f;
    if (head_len != sizeof f)
        return -PLX_EFORMAT;
    memcpy(&f, head, sizeof f);
    int rc = copy_extent_decode(&f, &ret->extent);
    if (rc != 0)
        return rc;
    bool is_final = ret->extent.state == COPY_RPC_FINAL;
    size_t want = !is_final ? 0 : (size_t)BITMAP_BYTES * (1 + ret->extent.has_headers);
    if (!address_equal(ret->extent.extent, extent) || len != want)
        return -PLX_EFORMAT;
    if (!is_final)
        return 0;
    memcpy(ret->live, payload, BITMAP_BYTES);
    if (ret->extent.has_headers)
        memcpy(ret->headers, (const uint8_t *)payload + BITMAP_BYTES, BITMAP_BYTES);
    return description_is_sound(ret) ? 0 : -PLX_EFORMAT;
}

void copy_block_encode(const struct copy_block *block, struct copy_rpc_block *ret)
{
    *ret = (struct copy_rpc_block){
        .block = le16_of((uint16_t)block->block),
        .flags = (uint8_t)((block->is_known ? COPY_RPC_KNOWN : 0) |
                           (block->is_header ? COPY_RPC_HEADER : 0) |
                           (block->is_bad ? COPY_RPC_BAD : 0) |
                           (block->has_bytes ? COPY_RPC_BYTES : 0)),
    };
    if (!block->is_known)
        return;
    le48_set(ret->key, block->entry.key);
    ret->kind = (uint8_t)block->entry.kind;
    ret->aux = block->entry.aux;
    ret->crc = le32_of(block->entry.crc);
}

static int block_decode(const struct copy_rpc_block *f, struct copy_block *ret)
{
    *ret = (struct copy_block){
        .block = le16_get(f->block),
        .is_known = (f->flags & COPY_RPC_KNOWN) != 0,
        .is_header = (f->flags & COPY_RPC_HEADER) != 0,
        .is_bad = (f->flags & COPY_RPC_BAD) != 0,
        .has_bytes = (f->flags & COPY_RPC_BYTES) != 0,
        .entry = {.kind = (enum entry_kind)f->kind,
                  .key = le48_get(f->key),
                  .count = 1,
                  .crc = le32_get(f->crc),
                  .aux = f->aux},
    };
    if ((f->flags & ~COPY_RPC_BLOCK_FLAGS_ALL) != 0 || ret->block >= EXTENT_BLOCKS ||
        (ret->is_known && (ret->is_header || !entry_has_block(ret->entry.kind))) ||
        (!ret->has_bytes && !ret->is_bad))
        return -PLX_EFORMAT;
    return 0;
}

int copy_blocks_decode(const void *head, size_t head_len, size_t payload_len,
                       uint32_t from, uint32_t max, struct copy_blocks *ret)
{
    struct copy_rpc_blocks f;
    if (head_len < sizeof f)
        return -PLX_EFORMAT;
    memcpy(&f, head, sizeof f);
    uint32_t count = le32_get(f.count), next = le32_get(f.next);
    if (count > max || count > COPY_RPC_FETCH_MAX || next > EXTENT_BLOCKS ||
        next <= from || head_len != sizeof f + count * sizeof(struct copy_rpc_block) ||
        (f.flags & ~COPY_RPC_HAS_HEADERS) != 0)
        return -PLX_EFORMAT;
    *ret = (struct copy_blocks){
        .count = count, .next = next, .has_headers = f.flags != 0};
    for (uint32_t i = 0; i < count; i++) {
        struct copy_rpc_block block;
        memcpy(&block, (const uint8_t *)head + sizeof f + i * sizeof block, sizeof block);
        int rc = block_decode(&block, &ret->at[i]);
        uint32_t least = i == 0 ? from : ret->at[i - 1].block + 1;
        if (rc != 0 || ret->at[i].block < least || ret->at[i].block >= next)
            return -PLX_EFORMAT;
        ret->bytes_count += ret->at[i].has_bytes;
    }
    return payload_len == (size_t)ret->bytes_count * BLOCK_SIZE ? 0 : -PLX_EFORMAT;
}
