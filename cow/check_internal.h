/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two parts of a check share: check.c reads and verifies the data of every disk
 * and snapshot, check_live.c compares what they reach with what the store keeps.
 */
#ifndef PARALLAX_COW_CHECK_INTERNAL_H
#define PARALLAX_COW_CHECK_INTERNAL_H

#include "blockstore/layout.h"
#include "cow/reclaim.h"
#include "cow/tree_walk.h"

/* A head is walked so many blocks at a time, each with the root it has then. */
#define CHECK_STRETCH_BLOCKS ((uint64_t)1 << 16)

/* A set of blocks: a bitmap for each extent that has some. */
struct mark_map {
    struct address extent;
    uint8_t bits[BITMAP_BYTES];
};
struct marks {
    struct mark_map **slots; /* an open hash; NULL: free */
    uint32_t count, cap;
};
/* 1: it is new, 0: it was there, or -ENOMEM. */
int marks_add(struct marks *marks, struct address address);
/* NULL: none of the extent's blocks. */
const uint8_t *marks_of(const struct marks *marks, struct address extent);
void marks_done(struct marks *marks);

struct check {
    struct host *host;
    unsigned flags;
    const struct check_callbacks *callbacks;
    struct check_report report;
    char name[2 * DISK_NAME_MAX + 24]; /* of what is being walked */
    uint64_t total_bytes;
    uint64_t *disks;         /* ids, by age: what several share is found in the first */
    size_t disk_count;
    struct marks marks;
    /* check_live.c */
    bool is_incomplete;      /* some tree could not be read: nothing is known lost */
    uint64_t others;         /* check_others, when it began */
    bool held_up_guests;     /* so it was given up */
    uint32_t nodes_looked_at;
    /* check.c: a run of blocks to read */
    uint64_t size_blocks;
    uint64_t tree_disk, tree_version; /* whose tree is read; of a head the version is 0 */
    struct map_root tree_root;
    uint32_t generations[MAP_HEIGHT_MAX]; /* of the nodes on the way down */
    uint8_t *bytes;
    uint64_t run_block;
    struct address run_address;
    uint32_t run_count;
    uint32_t *run_crcs;
};

void check_finding(struct check *check, const char *fmt, ...) attr_printf(2, 3);
/* --- check.c --- */
/* Puts what is only in the log of any disk into its map. */
async int check_settle(struct check *check);
/* Is the disk another host's? Then its trees change without asking us. */
bool check_is_elsewhere(const struct check *check, const struct cluster_disk *disk);
/* Changes with whatever other hosts may take away from trees that are looked at: versions
 * on their way out, checkpoints of disks that are not ours. */
uint64_t check_others(const struct check *check);
/* -PLX_ECANCELLED when nobody waits for it any more. */
int check_goes_on(const struct check *check);
/* Lists all disks there are. 0 or -ENOMEM. */
int check_collect_disks(struct check *check);
/* Ids of all versions, malloc'd. */
int check_collect_versions(const struct cluster_state *state, uint64_t **ret_ids,
                           size_t *ret_count);

/* --- check_live.c --- */
async int check_liveness(struct check *check);

/* --- check_log.c --- */
/* Marks what the logs of all disks hold beside the maps: lists of dead blocks with all
 * that is on them, and headers of extents that a take-over may walk. */
async int check_mark_logs(struct check *check, const struct extent_info *extents,
                          size_t extent_count);

/* --- check_mend.c --- */
/* Rebuilds the map nodes that cannot be read, as far as that is possible. */
async int check_mend(struct check *check);

#endif
