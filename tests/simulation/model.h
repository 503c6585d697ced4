/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the disks must hold. The model learns the order of commits from the log itself
 * (host_options.sealed) and everything else from what guests were told.
 *
 * A line is the history of one head: batches in order of number, on top of a snapshot of
 * another line, or of nothing. A rollback begins a new line, a clone too. A snapshot is
 * a point of a line. After a crash the head is its line up to some batch between `acked`
 * (or `flushed`, if the power was cut) and `last`; which one it is turns out when the
 * disk is read, or when its log goes on: the next batch's number says so.
 *
 *   M1  flushed <= acked <= last.
 *   M2  Batches have consecutive numbers; one that is sealed above a gap, or in place of
 *       one that was acknowledged, is an error of the log.
 *   M3  Every block of a batch is what some change in flight makes of it, or as it was.
 *
 *
 * `MAYBE` is what was in flight at a crash, or failed: it may have happened or not.
 *
 * A snapshot that was removed loses its name here, too, and stays in the list: others
 * may have grown from it. Which of these the host must still keep is worked out when
 * space is accounted for (model_space.c).
 */
#ifndef PARALLAX_TESTS_SIMULATION_MODEL_H
#define PARALLAX_TESTS_SIMULATION_MODEL_H

#include "cow/cow.h"
#include "replication/disk_log.h"

#define MODEL_NAME_MAX 32U
#define MAKING_MAX     3U

struct run;

/* What a block became in one batch. */
struct version {
    uint64_t stamp;  /* number of the batch, then the place in it */
    uint64_t change; /* who wrote it; 0: nobody yet */
    uint32_t crc;
    bool is_zero;
    uint64_t mark;         /* the last accounting that counted it */
    const uint8_t *merged; /* the block, if the change wrote only a part of it */
    struct version *older;
};

#define STAMP_SHIFT 12
static inline uint64_t version_number(const struct version *v)
{
    return v->stamp >> STAMP_SHIFT;
}

/* Blocks [first, end) became zeros. */
struct zeroed {
    uint64_t first, end;
    struct version version;
};

struct block_slot {
    uint64_t block_plus_one; /* 0: free */
    struct version *newest;
};

struct model_snap;

struct line {
    struct model_snap *base; /* NULL: zeros */
    uint64_t flushed, acked, last;
    bool crashed; /* where it was cut is not known yet */
    uint64_t cut; /* where it was cut last, once known */
    struct block_slot *slots;
    size_t slot_count, slots_used;
    struct zeroed *zeroed;
    size_t zeroed_count, zeroed_cap;
};

/* A write, zero, trim or shrink in flight. */
struct change {
    uint64_t id;
    enum { CHANGE_WRITE, CHANGE_ZERO, CHANGE_TRIM } kind;
    bool is_zero;  /* a write of zeros */
    bool is_mixed; /* a write with some blocks of zeros */
    uint64_t offset_bytes, len_bytes;
    uint64_t first, end; /* blocks it changes */
    struct change_part { /* of it in one batch */
        uint64_t number, blocks;
    } * parts;
    size_t part_count, part_cap;
    TAILQ_ENTRY(change) link; /* of its disk */
};
TAILQ_HEAD(change_list, change);

/* IMPORTING: not published yet; a crash removes it. TRASHED: out of sight. */
enum existence { EXISTS, MAYBE, IMPORTING, TRASHED };

/* Where a disk may be that is MAYBE. */
#define AT_HOME  1U
#define AT_TRASH 2U
#define AT_NONE  4U

struct model_disk {
    char name[MODEL_NAME_MAX], maybe_name[MODEL_NAME_MAX];
    uint64_t id; /* 0: not known yet */
    enum existence existence;
    unsigned places;
    uint64_t group; /* clones of one command: all or none; 0: alone */
    uint64_t size_bytes, maybe_size_bytes;
    struct line *line;
    struct line *maybe_line; /* a rollback was in flight */
    bool is_in_doubt;        /* and nothing has told yet; the numbers go on anyway */
    struct change_list changes;
    struct model_snap *making[MAKING_MAX]; /* snapshots in flight, then NULL */
    uint64_t marker;                       /* of one of them, 0: none yet */
    bool is_marker_loose;                  /* or of one that has failed */
    uint32_t clients, snap_clients, shared;
    bool exclusive, found;
    bool is_removing;       /* to the trash: whoever uses it may find it gone */
    bool is_emptying;       /* out of the trash, for good */
    uint64_t removed_at;    /* model.removals, the last time that was begun */
    uint64_t uses;          /* things done with it so far */
    uint32_t removing_snaps;
    uint64_t trashed_at_ns; /* no earlier than this, for good after so long: */
    uint64_t keep_ns;
    TAILQ_ENTRY(model_disk) link;
};

struct model_snap {
    char name[MODEL_NAME_MAX]; /* "": of a clone of a head */
    struct model_disk *disk;
    enum existence existence;
    struct line *line;
    uint64_t number; /* of its marker; 0: none was sealed */
    uint64_t size_bytes;
    bool is_out; /* of the list: its disk may have gone before whoever made it ends */
    bool found;
    bool is_committed; /* once: its removal is in doubt, not its making */
    bool is_removing;
    uint64_t removed_at; /* model.removals, the last time that was begun */
    bool is_kept;      /* model_space.c: the version tree has it */
    uint32_t children;
    TAILQ_ENTRY(model_snap) link;
};

struct model {
    struct run *run;
    TAILQ_HEAD(, model_disk) disks;
    TAILQ_HEAD(, model_snap) snaps;
    uint32_t disk_count;
    uint64_t next_change, next_group, next_name;
    uint64_t removals; /* that were begun */
    uint64_t keep_s, maybe_keep_s;
    uint64_t keep_ns;  /* the trash keeps what comes at least this long */
    bool was_full;     /* the store, nearly: then the trash is emptied early */
    uint64_t marks;    /* accountings so far */
    char lost_import[MODEL_NAME_MAX];
};

void model_init(struct model *model, struct run *run);

struct model_disk *model_disk_add(struct model *model, const char *name,
                                  uint64_t size_bytes, struct model_snap *base);
void model_disk_remove(struct model *model, struct model_disk *disk);
struct model_disk *model_disk_by_id(struct model *model, uint64_t id);
struct model_snap *model_snap_add(struct model *model, struct model_disk *disk,
                                  const char *name);
void model_snap_remove(struct model *model, struct model_snap *snap);
/* It was removed: it has no name any more. */
void model_snap_unname(struct model_snap *snap);
/* Snapshots with a name, or in the making. */
uint32_t model_snap_count(const struct model *model);
/* The disk is gone for good, its snapshots are nobody's. */
void model_disk_purge(struct model *model, struct model_disk *disk);
/* What a setting of the trash is worth, with clocks that differ. */
uint64_t model_keep_ns(uint64_t keep_s);
/* Where the disk may be now. */
unsigned model_disk_places(const struct model *model, const struct model_disk *disk);

struct line *line_create(struct model_snap *base);
/* Its numbers go on where those of another line are. */
void line_follow(struct line *line, const struct line *before);
/* What became of a rollback that was in doubt. */
void model_rollback_settle(struct model_disk *disk, bool has_happened);
/* Batches above `number` never were. */
void line_truncate(struct line *line, uint64_t number);

/* A snapshot was asked for, or answered. They are made one at a time, so a marker that
 * nobody has claimed belongs to the one that is answered next; but a clone of a head is
 * answered later, so its unnamed one is made alone. */
void making_begin(struct model_disk *disk, struct model_snap *snap);
void making_end(struct model_disk *disk, struct model_snap *snap, int result);
bool making_has_room(const struct model_disk *disk);

/* host_options.sealed; arg: the model. */
void model_sealed(void *arg, uint64_t disk, const struct log_piece *pieces,
                  uint32_t count, uint64_t number);

void change_begin(struct model *model, struct model_disk *disk, struct change *change);
/* True if it and one in flight could not be told apart in the log. */
bool change_is_ambiguous(const struct model_disk *disk, const struct change *change);
/* The guest was told. Returns the number of its last batch, 0: it needed none. */
uint64_t change_done(struct model *model, struct model_disk *disk, struct change *change,
                     int result);

/* The process ended. restarted: the store had been opened, so what a kill leaves is
 * as good as flushed. */
void model_crash(struct model *model, bool power_was_cut, bool may_lose);

/* Sorts, and drops what is there twice; how many are left. */
size_t blocks_unique(uint64_t *blocks, size_t count);

/* --- model_space.c --- */
/* What must be stored for all heads, trashed ones included, and snapshots there are. */
struct model_space {
    uint64_t versions;    /* heads and snapshots that the tree holds */
    uint64_t data_blocks;  /* exact, if no head is in doubt */
    uint64_t least_blocks; /* data, without heads that are */
    uint64_t node_blocks; /* of maps, at most */
};
void model_space(struct model *model, struct model_space *ret);

/* The block at batch `number`. Never NULL. */
const struct version *line_at(const struct line *line, uint64_t block, uint64_t number);
bool version_equals(const struct version *version, uint64_t block, const uint8_t *bytes,
                    uint32_t from, uint32_t len);

/* Checks part of a block that was read while the line stood between lo and hi. False:
 * it is none of them. *ret_number: the least batch that explains it. */
bool line_explains(const struct line *line, uint64_t block, uint64_t lo, uint64_t hi,
                   const uint8_t *bytes, uint32_t from, uint32_t len,
                   uint64_t *ret_number);

/* A block as it was read. */
struct seen {
    uint64_t block;
    uint32_t crc;
    bool is_zero;
};

/* Finds the batches N from lo to hi for which every block seen is as the line was at N.
 * False: there is none, and `ret_text` says what does not fit. ok has hi - lo + 1. */
bool line_match(const struct line *line, uint64_t lo, uint64_t hi,
                const struct seen *seen, size_t count, bool *ret_ok, char *ret_text,
                size_t cap);
/* Which batches changed the block, for a message. */
void line_history(const struct line *line, uint64_t block, char *ret, size_t cap);

#endif
