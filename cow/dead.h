/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dead lists: what a checkpoint found dead, as blocks in the log (cow/dead_format.h),
 * each with address and checksum of the one before. A list counts once a committed
 * checkpoint names its last block.
 */
#ifndef PARALLAX_COW_DEAD_H
#define PARALLAX_COW_DEAD_H

#include "cow/dead_format.h"
#include "cow/dead_set.h"
#include "cow/map.h"

/* Dead with all below it that is younger than the bound. */
struct dead_subtree {
    struct map_entry entry;
    uint32_t bound;
    uint8_t level;
};

/* In memory, in no order. */
struct dead_entries {
    struct dead_run *runs;
    struct dead_subtree *subtrees;
    uint32_t run_count, run_cap;
    uint32_t subtree_count, subtree_cap;
};

/* Neighbours added in turn become one run. -ENOMEM changes nothing. */
int dead_entries_add(struct dead_entries *entries, struct address address,
                     uint32_t count);
int dead_entries_add_subtree(struct dead_entries *entries,
                             const struct dead_subtree *subtree);
/* Sorts the runs and joins those that touch or overlap. */
void dead_entries_sort(struct dead_entries *entries);
/* Takes the first of each away. */
void dead_entries_drop(struct dead_entries *entries, uint32_t runs, uint32_t subtrees);
/* Adds all of `from`. -ENOMEM changes nothing. */
int dead_entries_append(struct dead_entries *entries, const struct dead_entries *from);
void dead_entries_done(struct dead_entries *entries);

/* One block of a list. */
struct dead_block {
    uint64_t checkpoint;
    struct address previous; /* null: none */
    uint32_t previous_crc;
    struct dead_entries entries;
};
/* Takes as many entries as fit off the end of `from` into the block's bytes. */
void dead_block_encode(uint64_t checkpoint, struct address previous,
                       uint32_t previous_crc, struct dead_entries *from, void *ret_bytes);
/* Foreign bytes: 0, -PLX_EFORMAT, -PLX_ENEWER or -ENOMEM. The entries are the caller's:
 * dead_entries_done. */
int dead_block_decode(const void *bytes, struct dead_block *ret_block);

#endif
