/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading blocks by address.
 *
 * Happy path: one read of the store, then the checksum of every block is compared with
 * what the caller knows from the map or the log. A block can be read as soon as its
 * append is done, so retained batches need no other way; after a forced roll the old
 * place serves until everything points to the new one.
 *
 * What can fail: the read, or a checksum; with more members the next would be asked now.
 * Wrong bytes are an error and the caller is told which block.
 *
 * Needs no log and no lease, so nothing happens on close.
 */
#include "replication/disk_log.h"

/* Walks iov in steps of at most one block; blocks may straddle its parts. */
static bool find_bad_block(const struct log_read *read, uint32_t *ret_bad)
{
    uint32_t part = 0;
    size_t offset = 0;
    for (uint32_t block = 0; block < read->count; block++) {
        uint32_t crc = 0;
        size_t left = BLOCK_SIZE;
        while (left > 0) {
            assert(part < read->iov_count);
            size_t n = min_u64(left, read->iov[part].iov_len - offset);
            crc = crc32c_more(crc, (const uint8_t *)read->iov[part].iov_base + offset, n);
            left -= n;
            offset += n;
            if (offset == read->iov[part].iov_len) {
                part++;
                offset = 0;
            }
        }
        if (crc != read->crcs[block]) {
            *ret_bad = block;
            return true;
        }
    }
    return false;
}

static void read_done(struct store_read *store)
{
    struct log_read *read = container_of(store, struct log_read, store);
    read->result = store->result;
    if (read->result == 0 && !planted(PLANT_READ_UNVERIFIED) &&
        find_bad_block(read, &read->bad_block))
        read->result = -PLX_ECHECKSUM;
    read->done(read);
}

void log_read(struct store *store, struct log_read *read)
{
    assert(read->count > 0 &&
           address_block(read->address) + read->count <= EXTENT_BLOCKS);
    read->bad_block = 0;
    read->store = (struct store_read){.address = read->address,
                                      .count = read->count,
                                      .iov = read->iov,
                                      .iov_count = read->iov_count,
                                      .done = read_done};
    store_read(store, &read->store);
}
