/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of cow/ share about a disk.
 *
 *   opening --take-over, replay--> open --last client gone, idle--> closing --> (gone)
 *                                    |
 *                                    +--log gave up--> down (open, every operation fails)
 *
 * The layers of a disk, newest first: the top one takes commits; those under it are
 * frozen, each by a snapshot's marker (then it ends a version) or by a checkpoint.
 *
 *   D1  Blocks of a layer were born in batches above all those of the layers below it.
 *   D2  The top layer's generation is that of the newest committed record.
 *   D3  A read takes overlay and root as of one moment: no suspension between its pass
 *       over the layers and its copy of the root.
 *   D4  A checkpoint merges frozen layers only, all of them settled, oldest first.
 *   D5  No more than one checkpoint and one snapshot of a disk run at a time.
 *   D6  `ranges` lists changes in order of arrival; one that covers part of a block runs
 *       alone among those that overlap it.
 */
#ifndef PARALLAX_COW_DISK_INTERNAL_H
#define PARALLAX_COW_DISK_INTERNAL_H

#include "cow/disk.h"
#include "cow/host.h"
#include "cow/map.h"
#include "cow/node_cache.h"
#include "cow/overlay.h"
#include "replication/disk_log.h"

#include <stdio.h>

struct layer {
    struct overlay overlay;
    uint64_t covers;  /* frozen: the last batch that has something in it or below */
    bool settled;     /* the outcome of its marker's snapshot is known */
    uint64_t marker;  /* number of the marker that froze it; 0: none */
    uint64_t version; /* the version it ends; 0: none */
    TAILQ_ENTRY(layer) link;
};

enum disk_state { DISK_OPENING, DISK_OPEN, DISK_CLOSING };

TAILQ_HEAD(disk_io_list, disk_io);
TAILQ_HEAD(layer_list, layer);

struct disk {
    struct host *host;
    struct loop *loop;
    uint64_t id;
    uint64_t version;         /* of a snapshot opened read-only; 0: a disk's head */
    char name[2 * DISK_NAME_MAX + 2];
    uint64_t size_bytes;
    enum disk_state state;
    uint32_t clients;         /* front ends */
    uint32_t users;           /* clients, and operations that need it open */
    bool exclusive;           /* an operation bars new clients */
    bool closing_soon;        /* its close task was started */
    int down;                 /* 0, or why every operation fails */

    struct disk_log *log;     /* NULL: read-only */
    struct log_callbacks callbacks;
    uint32_t append_generation;
    struct layer_list layers;
    uint32_t frozen_count;
    struct map_root root;     /* under all layers */

    struct disk_io_list ranges;
    uint32_t partial_count, waiting_count, change_count;
    bool resuming;            /* disk_resume is on the stack */
    struct disk_io_list finished;
    struct work finish_work;
    uint32_t io_count;        /* submitted, not done */

    uint64_t next_checkpoint; /* K of the last attempt */
    uint64_t checkpoint_at_bytes; /* log_appended_bytes at the last one's freeze */
    bool checkpoint_running, checkpoint_wanted, checkpoint_abandoned;
    int checkpoint_error;     /* of the last one, until it is tried again */
    struct task_call checkpoint_task;
    TAILQ_ENTRY(disk) checkpoint_link; /* in host->checkpoint_queue */
    struct timer checkpoint_timer;
    struct mutex checkpoint_lock, snapshot_lock, command_lock;
    struct waitlist settled;

    struct log_flush relief;  /* lets retained buffers go; nobody waits for it */
    bool relief_running;

    struct timer idle_timer;
    struct task_call close_task;
    RB_ENTRY(disk) node;
};

RB_HEAD(disk_tree, disk);
RB_PROTOTYPE(disk_tree, disk, node, )

struct host {
    struct loop *loop;
    struct host_options options; /* with defaults filled in; paths are not kept */
    struct kv *kv;
    struct store *store;
    struct cluster *cluster;
    uint64_t node;
    struct node_cache *nodes;
    struct overlay_budget overlay;
    struct log_budget retained;
    struct buffer_pool *front_buffers; /* payload of front ends */
    struct buffer_pool *log_buffers;   /* headers, map nodes, merges */
    struct disk_tree disks;
    uint32_t disk_count;
    struct waitlist disks_changed;
    uint64_t reserve_intervals;        /* that the store's reserve was set for */
    uint32_t reserve_disks;
    struct work pressure;              /* called when front ends run out of buffers */
    struct work relief;
    bool closing;
    uint32_t closes_running;
    TAILQ_HEAD(, disk) checkpoint_queue; /* disks that want one */
    uint32_t checkpoints_running;      /* of those */
    bool relieving;                    /* a checkpoint runs to give back overlay budget */
    struct metric *reads, *writes, *flushes, *trims, *errors;
    struct metric *read_ns, *write_ns, *flush_ns;
    struct metric *checkpoints, *checkpoint_ns, *snapshots;
};

/* --- disk_table.c: which disks are open --- */
/* One more user of the disk's head (version 0) or of a snapshot; opens it if needed. */
async int disk_acquire(struct host *host, uint64_t id, uint64_t version,
                       struct disk **ret_disk, struct error *err);
void disk_release(struct disk *disk);
struct disk *disk_find(struct host *host, uint64_t id, uint64_t version);
/* Checkpoints and closes the disk's head if it is open; -PLX_EBUSY with users. */
async int disk_shut(struct host *host, uint64_t id, struct error *err);
async void disk_table_close(struct host *host);
void disk_set_name(struct disk *disk); /* from the cluster state */
/* Starts the task that closes a disk without users. */
void disk_close_soon(struct disk *disk);

/* --- disk_open.c: take-over and replay --- */
async int disk_start(struct disk *disk, struct error *err);
async int disk_end(struct disk *disk, struct error *err);
void disk_free(struct disk *disk);
/* The root the disk's own log starts from. -EAGAIN: a version of another disk is
 * pending; *ret_pending names that disk. */
int disk_base_root(const struct cluster_state *state, const struct cluster_disk *disk,
                   struct map_root *ret_root, uint64_t *ret_pending);
/* Sees to it that the version's root is committed. */
async int version_settle(struct host *host, uint64_t version, struct error *err);

/* --- layers.c --- */
struct layer *layer_top(const struct disk *disk);
/* Freezes the top, which nothing behind batch `covers` is in, and puts an empty layer of
 * this generation over it. */
struct layer *layer_push(struct disk *disk, uint32_t generation, uint64_t covers);
void layers_done(struct disk *disk);
/* Gives back what the layers hold, of a disk that is down. */
void layers_clear(struct disk *disk);
uint64_t layers_bytes(const struct disk *disk);
/* What the layers say of the blocks from `block` on, before `end`: a stretch of one
 * kind. in_layers false: they say nothing of it. */
struct layer_run {
    uint64_t count;
    bool in_layers;
    struct address address; /* null: zeros */
    const uint32_t *crcs;   /* valid until something is committed */
};
struct layer_run layers_find(const struct disk *disk, uint64_t block, uint64_t end);
/* Takes a committed or replayed piece into the top layer. */
int layers_take(struct disk *disk, const struct log_piece *piece);

/* --- disk_read.c --- */
struct read_job {
    struct disk *disk;
    uint64_t first, count;   /* blocks */
    uint8_t *bytes;          /* count * BLOCK_SIZE, aligned */
    void (*done)(struct read_job *job);
    void *arg;
    int result;
    bool inside;             /* in done: read_start has not returned yet */
    /* private: */
    uint32_t pending;
    struct map_root root;
    struct read_gap *gaps;
    uint32_t gap_count;
    struct task_call task;
};
/* done may be called from inside. */
void read_start(struct read_job *job);
async int read_blocks(struct disk *disk, uint64_t first, uint64_t count, uint8_t *bytes);
void disk_read(struct disk *disk, struct disk_io *io);

/* --- disk_write.c --- */
void disk_change(struct disk *disk, struct disk_io *io);
void disk_flush(struct disk *disk, struct disk_io *io);
/* Starts changes that waited for room or for a range. */
void disk_resume(struct disk *disk);
void write_committed(struct disk *disk, struct log_record *record,
                     const struct log_piece *piece, bool last);
void write_failed(struct disk *disk, struct log_record *record, int code);
/* Waits until everything committed so far is durable. */
async int disk_flush_wait(struct disk *disk);
/* Logs zeros over whole blocks and waits for the commit. */
async int disk_zero_wait(struct disk *disk, uint64_t first, uint64_t count);

/* --- disk.c --- */
/* Calls done for io from the loop. */
void disk_finish(struct disk *disk, struct disk_io *io, int result);
/* Calls done now. */
void disk_done(struct disk *disk, struct disk_io *io, int result);
/* Every operation fails with code from now on. */
void disk_go_down(struct disk *disk, int code);

/* --- checkpoint_due.c --- */
void checkpoint_consider(struct disk *disk); /* starts one if it is time */
void checkpoint_request(struct disk *disk);  /* starts one soon */
/* What was replayed may be reason enough. */
void checkpoint_after_open(struct disk *disk);
/* One at least every CHECKPOINT_EVERY_MS, if there is something to do. */
void checkpoint_timer_start(struct disk *disk);
/* Notes the result of one; those who wait for it go on, or fail. */
void checkpoint_settled(struct disk *disk, int result);
/* True while the log or the overlay has run so far ahead that changes wait. */
bool checkpoint_behind(const struct disk *disk);

/* --- checkpoint.c --- */
async int disk_checkpoint(struct disk *disk, struct error *err);
void node_committed(struct log_record *record, const struct log_piece *piece);
void node_failed(struct log_record *record, int code);

/* --- snapshot.c --- */
/* name "": an unnamed branch point. */
async int disk_snapshot(struct disk *disk, const char *name, uint64_t *ret_version,
                        struct error *err);
void marker_committed(struct disk *disk, struct log_record *record,
                      const struct log_piece *piece);
void marker_failed(struct log_record *record, int code);

/* --- host.c --- */
/* Tells the store how much space checkpoints may need. */
void host_update_reserve(struct host *host);
#define RESERVE_BYTES          (8 * MIB)
#define RESERVE_STEP_INTERVALS 256U

/* --- host_tidy.c --- */
async int host_tidy(struct host *host, struct error *err);
/* Removes an unpublished import that nobody has open, with all it wrote. */
async int disk_discard(struct host *host, uint64_t id, struct error *err);
async int host_drop_extents(struct host *host, uint64_t disk);

#endif
