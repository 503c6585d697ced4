/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block addresses: group (16 bits), extent sequence (34), block in the extent (14).
 * An address, once written, has one content for ever. An extent is named by the address
 * of its block 0. Address 0 is null: group numbers start at 1.
 */
#ifndef PARALLAX_BLOCKSTORE_ADDRESS_H
#define PARALLAX_BLOCKSTORE_ADDRESS_H

#include "runtime/base.h"
#include "runtime/limits.h"

struct address {
    uint64_t v;
};

#define ADDRESS_NULL ((struct address){0})
#define EXTENT_SEQUENCE_MAX (((uint64_t)1 << 34) - 1)

static_assert(EXTENT_BLOCKS == 1U << 14, "14 bits of an address");

static inline struct address address_of(uint16_t group, uint64_t sequence, uint32_t block)
{
    return (struct address){(uint64_t)group << 48 | sequence << 14 | block};
}

static inline bool address_equal(struct address a, struct address b)
{
    return a.v == b.v;
}

static inline bool address_is_null(struct address a)
{
    return a.v == 0;
}

static inline uint16_t address_group(struct address a)
{
    return (uint16_t)(a.v >> 48);
}

static inline uint64_t address_sequence(struct address a)
{
    return a.v >> 14 & EXTENT_SEQUENCE_MAX;
}

static inline uint32_t address_block(struct address a)
{
    return (uint32_t)(a.v & (EXTENT_BLOCKS - 1));
}

static inline struct address address_extent(struct address a)
{
    return (struct address){a.v & ~(uint64_t)(EXTENT_BLOCKS - 1)};
}

static inline struct address address_plus(struct address a, uint32_t blocks)
{
    assert(address_block(a) + blocks <= EXTENT_BLOCKS);
    return (struct address){a.v + blocks};
}

#endif
