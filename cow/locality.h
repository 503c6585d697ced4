/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where reads in order meet blocks that lie scattered: bounded counters of one open disk,
 * which tell the rewriter (rewrite.c) what is worth its work. doc/locality.md.
 */
#ifndef PARALLAX_COW_LOCALITY_H
#define PARALLAX_COW_LOCALITY_H

#include "runtime/runtime.h"

struct disk;

/* Where the last few reads ended: one that begins there is a read in order. */
#define READ_STREAMS 4U
struct read_streams {
    uint64_t ends[READ_STREAMS]; /* blocks */
    uint32_t next;               /* to be replaced */
};
bool read_is_ordered(struct read_streams *streams, uint64_t first, uint64_t end);

/* The disk is divided into at most so many ranges, each a power of two of leaves. */
#define LOCALITY_RANGES 1024U

struct locality_range {
    uint32_t excess;    /* device reads that would not have been, were it in order */
    uint32_t changed_s; /* when it was last written, by the loop's clock */
};

struct locality {
    uint32_t leaf_shift; /* a range is 1 << leaf_shift leaves */
    uint32_t worthy;     /* ranges with enough excess */
    struct locality_range ranges[LOCALITY_RANGES];
};

/* A read in order of so many blocks took so many reads of the store. */
void locality_read(struct disk *disk, uint64_t first, uint64_t count, uint32_t parts);
/* Blocks [first, end) are about to change: whoever rewrites any of them lets it be. */
void locality_changed(struct disk *disk, uint64_t first, uint64_t end);

/* Blocks of one range. */
uint64_t locality_range_blocks(const struct locality *locality);
/* Reads paid for rewriting all of the range one and a half times over. */
bool locality_is_worthy(const struct locality *locality, uint32_t range);
/* The range was rewritten, or looked at in vain. */
void locality_settled(struct locality *locality, uint32_t range);

#endif
