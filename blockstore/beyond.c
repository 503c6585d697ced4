/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands behind the place where a scan ended. A torn tail and a rotten header look
 * the same there; what tells them apart are later headers of the same extent, since each
 * names the highest number that was flushed when it was written.
 *
 * Happy path: behind a torn tail there is nothing of the extent, or batches that were
 * never synced and reached the medium before an earlier one did; these call nothing of
 * what is missing flushed. A later header that does call it so proves that it was there.
 *
 * What can fail: a block that cannot be read counts as not a header. A header is taken
 * for one of this extent by all that names it, its own place and the extent's nonce. One
 * that rotted proves nothing, but is known as a header if it has the last two.
 *
 * Bounded: behind the last header that was found as many blocks are looked at as two of
 * the largest batches have. Where nothing is found that is all there is to read.
 */
#include "blockstore/store_internal.h"

async void beyond_look(struct walk *walk, uint32_t from, uint8_t *headers,
                       struct beyond *ret)
{
    uint32_t gap_end = from + BEYOND_GAP;
    *ret = (struct beyond){0};
    for (uint32_t block = from; block < min_u32(gap_end, walk->limit);) {
        struct header head;
        uint32_t data_blocks = 0;
        if (!walk_peek(walk, block, &head, &data_blocks)) {
            if (headers != NULL && walk_was_header(walk, block))
                bitmap_set(headers, block);
            block++;
            continue;
        }
        if (ret->first_number == 0) {
            ret->first_number = head.number;
            ret->first_block = block;
        }
        if (headers != NULL)
            bitmap_set(headers, block);
        ret->flushed = max_u64(ret->flushed, head.flushed);
        block += 1 + data_blocks;
        ret->end = min_u32(block, walk->limit);
        gap_end = block + BEYOND_GAP;
    }
}

/* Behind the roll record the number of the batch that is missing is not known; but it is
 * below that of any later one. The roll record itself is synced before any batch behind
 * it counts as flushed. */
bool beyond_needs_header(const struct chain *chain, const struct beyond *beyond)
{
    if (beyond->first_number == 0)
        return false;
    if (chain->number != 0)
        return beyond->flushed > chain->number;
    bool follows_roll_record = chain->block == 0 && beyond->first_block == 1;
    return beyond->flushed >= beyond->first_number - !follows_roll_record;
}
