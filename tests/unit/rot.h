/* SPDX-License-Identifier: Apache-2.0 */
/* Rot in what a simulated store keeps. */
#ifndef PARALLAX_TESTS_UNIT_ROT_H
#define PARALLAX_TESTS_UNIT_ROT_H

#include "blockstore/store_internal.h"
#include "tests/unit/disk_machine.h"

/* Changes one byte of what is stored of a block. */
static inline void rot(struct machine *m, struct address at)
{
    struct extent *e = extent_find(&m->host->store->extents, address_extent(at));
    uint64_t offset = 0;
    uint8_t byte;
    CHECK(e != NULL && extent_place(e, address_block(at), 1, &offset) == 1);
    offset += chance(m, BLOCK_SIZE);
    CHECK_EQ(sim_file_peek(m->world, m->options.store_path, offset, &byte, 1), 0);
    byte = (uint8_t)(byte ^ (1 + chance(m, 255)));
    CHECK_EQ(sim_file_poke(m->world, m->options.store_path, offset, &byte, 1), 0);
}

#endif
