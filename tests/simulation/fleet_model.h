/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the disks of a simulated cluster must hold.
 *
 * A block has a line of *entries*: what was written to it, in the order in which that was
 * begun (of one block only one change is in flight at a time). Two marks lie on it:
 *
 *      entries   e0   e1   e2   e3   e4
 *                ^         ^
 *                floor     low
 *
 *   - nothing below `floor` comes back: it is the last one that was flushed;
 *   - nothing below `low` comes back but for a loss: it is the last one that was
 *     acknowledged, or read by anybody. A loss lowers it to the floor.
 *
 * An entry that was neither acknowledged nor refused by being overtaken is *open*: it may
 * be there or not, until somebody reads the block under a later epoch of the disk. If it
 * is not there then, it is void, and never comes back.
 *
 * A loss is: so many machines lost power since the last flush that some extent may have
 * had no other member. Fewer must not lose anything that was acknowledged.
 *
 * A node that has not applied the newest epoch of the disk may be a former owner that was
 * paused or cut off: what it reads may be old, but must be something that was written.
 */
#ifndef PARALLAX_TESTS_SIMULATION_FLEET_MODEL_H
#define PARALLAX_TESTS_SIMULATION_FLEET_MODEL_H

#include "runtime/runtime.h"

#define FLEET_BLOCKS_MAX 256U /* of a disk */
#define FLEET_IO_BLOCKS  32U  /* of one operation */
#define FLEET_DISK_COUNT 24U  /* ever, in one history */
#define FLEET_SNAP_COUNT 32U
#define FLEET_HOSTS      16U

enum entry_state { ENTRY_IN_FLIGHT, ENTRY_ACKED, ENTRY_OPEN, ENTRY_VOID };

struct fleet_entry {
    uint64_t id;    /* of its content; 0: zeros */
    uint64_t order; /* of the model's counter, when it was begun: they rise */
    uint64_t ended; /* likewise, when it was acknowledged, or had failed */
    uint64_t epoch; /* of the disk, as far as known then */
    enum entry_state state;
};

struct fleet_block {
    struct fleet_entry *entries;
    uint32_t count, cap;
    uint32_t floor, low; /* indexes */
    bool is_busy;
};

enum existence { ABSENT, PRESENT, UNSURE /* and not used any more */, REMOVED };

struct fleet_disk {
    char name[16];
    uint32_t block_count;
    enum existence existence;
    struct fleet_block *blocks;
    uint64_t epoch;   /* the newest that anybody was seen to know */
    uint64_t flushed; /* model's counter, when the last flush that ended well began */
    uint32_t losses;
    uint32_t lookers; /* reads in flight: no entry is forgotten */
    uint32_t users;   /* guests that have it open */
};

struct fleet_snap {
    char name[16];
    struct fleet_disk *of;
    enum existence existence;
    struct fleet_disk content; /* its blocks; nothing is in flight there */
    uint32_t losses;
    bool is_in_use;
};

struct fleet_model {
    uint64_t counter, next_id;
    struct fleet_disk disks[FLEET_DISK_COUNT];
    uint32_t disk_count;
    struct fleet_snap snaps[FLEET_SNAP_COUNT];
    uint32_t snap_count;
    uint64_t cuts[FLEET_HOSTS]; /* by machine: counter, when it lost power last */
    uint32_t loss_at;           /* so many machines without power may lose something */
};

/* A change of blocks, in flight. */
struct fleet_change {
    struct fleet_disk *disk;
    uint32_t first, count;
    uint64_t id;    /* 0: zeros */
    uint64_t order; /* of its entries */
};

/* A read, or a flush (count 0), in flight. */
struct fleet_look {
    struct fleet_disk *disk; /* NULL: none */
    uint32_t first, count;
    uint64_t begun;      /* model's counter */
    uint64_t epoch;      /* of the disk, as this node knew it */
    uint32_t losses;     /* of the disk, then */
    uint64_t bounds[FLEET_IO_BLOCKS]; /* order of the entry that was low then */
};

void model_begin(struct fleet_model *model, uint32_t loss_at);
/* NULL: there have been too many. */
struct fleet_disk *model_add_disk(struct fleet_model *model, uint32_t blocks);

/* False: one of the blocks is being changed. */
bool model_change_begin(struct fleet_model *model, struct fleet_change *change);
void model_change_end(struct fleet_model *model, struct fleet_change *change,
                      bool is_acked, uint64_t epoch);

void model_look_begin(struct fleet_model *model, struct fleet_look *look, uint64_t epoch);
/* Checks what was read; is_last: nothing is in flight anywhere, so that what is not
 * there now never will be. False: it is wrong, and text says how. */
bool model_look_end(struct fleet_model *model, struct fleet_look *look,
                    const uint8_t *bytes, bool is_last, char *text, size_t cap);
void model_look_drop(struct fleet_look *look);
/* A flush has ended well on a node that owned the disk, under the epoch of the look. */
void model_flushed(struct fleet_model *model, struct fleet_look *look);

/* Somebody knows this epoch of the disk. */
void model_see_epoch(struct fleet_disk *disk, uint64_t epoch);
/* A machine loses power. */
void model_cut(struct fleet_model *model, uint32_t machine);

/* A snapshot is begun: at least what is `low` now; ended: at most what there is. */
struct fleet_snap *model_snap_begin(struct fleet_model *model, struct fleet_disk *disk);
void model_snap_end(struct fleet_model *model, struct fleet_snap *snap, bool is_made);
/* A clone: its blocks are those of the snapshot. */
void model_clone(struct fleet_disk *disk, const struct fleet_snap *snap);

#endif
