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
 *       over the layers and its copy of the root. What it finds dead later was
 *       superseded meanwhile; it begins again.
 *   D4  A checkpoint merges frozen layers only, all of them settled, oldest first.
 *   D5  No more than one checkpoint and one snapshot of a disk run at a time.
 *   D6  `ranges` lists changes in order of arrival; one that covers part of a block runs
 *       alone among those that overlap it.
 *   D7  What a layer supersedes of its own is in its `dead`; what it supersedes below it
 *       is told when it is merged, by the bound of the version it grows from.
 *   D8  A block that died is always known: in a layer, in `orphans`, in `carried` or
 *       `spent` (then a named list has it, too), or it is found again by a replay.
 */
#ifndef PARALLAX_COW_DISK_INTERNAL_H
#define PARALLAX_COW_DISK_INTERNAL_H

#include "cow/dead.h"
#include "cow/disk.h"
#include "cow/host.h"
#include "cow/locality.h"
#include "cow/map.h"
#include "cow/node_cache.h"
#include "cow/overlay.h"
#include "cow/pin.h"
#include "cow/rewrite.h"
#include "replication/copies.h"
#include "replication/room.h"
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

/* A node of the map that a checkpoint could not do without, and not read. */
struct unreadable_node {
    int code;                 /* 0: there is none */
    uint32_t layer_index;     /* that was being merged; 0: the oldest */
    unsigned level;
    uint64_t first, end;      /* blocks of the disk that it is for */
    struct map_entry entry;
};

/* What becomes of the dead lists that committed checkpoints name: trimmer.c. */
struct trimmer {
    bool running, stopping;
    bool again;               /* what is carried is to be tried again, too */
    bool gathered;            /* a checkpoint has copied what follows: nothing is taken
                               * away from it until that is over */
    uint64_t gathers;         /* how often one has */
    uint64_t processed;       /* the newest K whose list has been; 0: none yet */
    struct dead_entries carried; /* of those lists, not trimmed: for the next list */
    struct dead_entries spent;   /* the blocks of those lists: likewise */
    uint64_t kept_blocks;     /* of data below carried subtrees */
    uint32_t failures;        /* in a row */
    bool is_waiting;          /* for what may pass */
    struct task_call task;
    struct timer retry;
    struct waitlist over;
};

/* A checkpoint's dead list on its way to the log: checkpoint_list.c. */
struct list_writer {
    struct disk *disk;
    struct dead_list named;      /* as far as it is written */
    struct dead_entries waiting; /* not written yet */
    struct dead_set written;     /* its own blocks */
    uint64_t dead_blocks;        /* named so far, subtrees not counted */
};

/* Somebody who found the store full, or his disk at its quota: space.c. */
struct space_wait {
    /* 0: try again. Called from the loop; may wait again. */
    void (*over)(struct space_wait *wait, int code);
    bool of_quota;
    uint64_t since_ns;           /* 0 at first; kept when it waits again */
    /* private: */
    struct disk *disk;
    uint64_t seen, tried_ns;
    TAILQ_ENTRY(space_wait) link;
};
TAILQ_HEAD(space_wait_list, space_wait);

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
    bool is_wanted;           /* somebody waits for the end of its closing */
    int down;                 /* 0, or why operations fail: disk_serves_reads */

    struct disk_log *log;     /* NULL: read-only */
    struct log_callbacks callbacks;
    uint32_t append_generation;
    struct layer_list layers;
    uint32_t frozen_count;
    struct map_root root;     /* under all layers */

    struct read_streams streams;
    struct locality *locality;  /* NULL: no read met scattered blocks */
    struct rewrite *rewrite;    /* NULL: no range is being rewritten */
    struct pool_move move;

    struct disk_io_list ranges;
    uint32_t partial_count, waiting_count, change_count;
    bool resuming;            /* disk_resume is on the stack */
    struct disk_io_list finished;
    struct work finish_work;
    uint32_t io_count;        /* submitted, not done */

    uint64_t next_checkpoint; /* K of the last attempt */
    uint64_t replay_checkpoint; /* K of the one that the log was replayed from */
    uint64_t checkpoint_at_bytes; /* log_appended_bytes at the last one's freeze */
    bool checkpoint_running, checkpoint_wanted, checkpoint_abandoned;
    int checkpoint_error;     /* of the last one, until it is tried again */
    struct unreadable_node unreadable; /* that ended the last one */
    uint64_t short_blocks;    /* what the last one wrote, if it found no space */
    struct checkpoint_attempt *attempt; /* the one under way */
    struct dead_set orphans;  /* nodes and lists of Ks that did not come to pass, second
                               * copies of batches, what a collapse could not free: for
                               * the next list */
    uint32_t listing;         /* collapses that wait for that list */
    struct trimmer trims;
    uint64_t tidy_until_ns;   /* when the host closes */
    struct address rolled_extent; /* that was ended for space; null: it is final */
    uint64_t quota_used, quota_at, quota_counted_ns, quota_seen; /* the last count */
    uint64_t quota_mark, quota_mark_seen; /* of the count under way; none otherwise */
    bool quota_is_marked;
    uint64_t quota_said_ns;   /* in the log, that writes are refused for it; 0: never */
    struct task_call checkpoint_task;
    TAILQ_ENTRY(disk) checkpoint_link; /* in host->checkpoint_queue */
    struct timer checkpoint_timer;
    bool zeros_noted;         /* since it was started */
    struct mutex checkpoint_lock, snapshot_lock, command_lock;
    struct waitlist settled;

    struct log_flush relief;  /* lets retained buffers go; nobody waits for it */
    bool relief_running;

    struct disk_remote *remote; /* NULL: it was never another host's while open */
    bool is_remote;           /* another host's, or nobody's: disk_remote.c */
    uint32_t stance;          /* times that it was handed over to another host */
    uint32_t oldest;          /* clients that opened before that stance are former ones */
    bool is_yielding;         /* a hand-over to another host is under way */
    bool door_closed;         /* for that, changes and new users wait */
    struct waitlist drained;
    bool gives_up;            /* its lease, from now on: what is here may be old */
    struct disk_io_list late; /* reads that came then, and flushes when its log ended */
    uint32_t served_reads;    /* for other hosts; each a user */

    struct timer idle_timer;
    struct task_call close_task;
    RB_ENTRY(disk) node;
};

RB_HEAD(disk_tree, disk);
RB_PROTOTYPE(disk_tree, disk, node, )

/* What disks use, wherever it lies: host_used.c. */
struct used {
    struct disk_blocks *disks;         /* as counted last; NULL: not yet */
    size_t count;
    uint64_t counted_ns;               /* 0: not yet */
    struct task_call task;
    bool is_running, is_stopping;
    struct waitlist over;
};

/* What a host does as one of many: host_many.c. */
struct many {
    struct cluster_watcher watcher;
    bool is_watching;
    uint64_t leaving, disks;           /* what was seen of the state last */
    struct task_call task;             /* tidies this node's store */
    struct timer timer;
    bool is_running, is_wanted, is_stopping;
    struct task_call adopt_task;       /* takes disks whose owner is gone */
    struct timer adopt_timer;
    uint64_t adopt_ns;                 /* between two looks */
    bool is_adopting;
    uint32_t asked;                    /* by other hosts, what is read here */
    struct waitlist over;
};

struct host {
    struct loop *loop;
    struct host_options options; /* with defaults filled in; paths are not kept */
    struct kv *kv;
    struct store *store;
    struct cluster *cluster;
    uint64_t node;
    struct replica_directory *directory; /* for logs */
    struct copies *copies;               /* of all blocks, wherever they are */
    struct rpc *rpc;                     /* NULL: there are no other hosts */
    bool parts_are_borrowed;             /* kv, store and cluster */
    bool copies_are_borrowed;
    struct cluster_watcher leases;       /* sees when one was taken away */
    bool leases_are_watched;
    uint32_t served_reads, hand_overs;   /* for other hosts */
    struct node_cache *nodes;
    struct overlay_budget overlay;
    struct log_budget retained;
    struct buffer_pool *front_buffers; /* payload of front ends */
    struct buffer_pool *log_buffers;   /* headers, map nodes, merges */
    struct disk_tree disks;
    struct pins pins;
    uint32_t disk_count;
    struct waitlist disks_changed;
    uint64_t reserve_leaves;           /* that the store's reserve was set for */
    uint32_t reserve_disks;
    bool reserve_is_shared;            /* with disks of other hosts */
    uint64_t reserve_bytes;
    uint64_t refused_ns, refused_said_ns; /* a write, for want of space; 0: never */
    uint64_t merge_bytes;              /* of it, what merges may need */
    uint64_t merge_bytes_max;          /* checkpoints are made before they need more */
    struct work pressure;              /* called when front ends run out of buffers */
    struct work relief;
    struct reclaim *reclaim;           /* cow/reclaim.h */
    struct usage_cache *usage_cache;   /* usage.c; NULL until it is used */
    struct timer stop_timer;           /* looks at what waits, once it is to stop */
    bool is_ending;                    /* it is; logs that open look at it */
    uint64_t stop_ns;                  /* since then */
    bool closing;     /* opens no disk any more */
    bool is_stopping; /* before that: waits for no command whose outcome is not known */
    uint64_t guest_ops;                /* ever submitted by front ends */
    struct scrub *scrub;               /* scrub.c */
    struct scheduler *scheduler;       /* schedule.c */
    struct rewriter *rewriter;         /* rewrite.c */
    uint32_t closes_running;
    TAILQ_HEAD(, disk) checkpoint_queue; /* disks that want one */
    uint32_t checkpoints_running;      /* of those */
    struct many many;
    struct used used;
    struct task_call tidy_task;
    bool tidy_running;
    struct space_wait_list space_waits;
    struct timer space_timer;
    struct work space_work, space_look;
    uint64_t space_count;              /* times that something was freed */
    bool relieving;                    /* a checkpoint runs to give back overlay budget */
    struct metric *reads, *writes, *flushes, *trims, *errors;
    struct metric *read_ns, *write_ns, *flush_ns;
    struct metric *checkpoints, *checkpoint_ns, *snapshots;
};

/* --- disk_table.c: which disks are open --- */
/* One more user of the disk's head (version 0) or of a snapshot; opens it if needed. */
async int disk_acquire(struct host *host, uint64_t id, uint64_t version,
                       struct disk **ret_disk, struct error *err);
/* The head, which stays with its owner if that is another host. */
async int disk_acquire_incoming(struct host *host, uint64_t id, struct disk **ret_disk,
                                struct error *err);
void disk_release(struct disk *disk);
struct disk *disk_find(struct host *host, uint64_t id, uint64_t version);
/* Checkpoints and closes the disk's head if it is open, here or on another host;
 * -PLX_EBUSY with clients. */
async int disk_shut(struct host *host, uint64_t id, struct error *err);
async void disk_table_close(struct host *host);
/* From now on disks whose lease another host has taken are out of service at once. */
void disk_table_watch(struct host *host);
void disk_table_unwatch(struct host *host);
void disk_set_name(struct disk *disk); /* from the cluster state */
/* Starts the task that closes a disk without users. */
void disk_close_soon(struct disk *disk);
/* disk_tidy for a disk that is not open; one that is does it when it closes. */
async void disk_tidy_closed(struct host *host, uint64_t id);

/* --- disk_open.c: take-over and replay --- */
async int disk_start(struct disk *disk, struct error *err);
async int disk_end(struct disk *disk, struct error *err);
/* The same without tidying up what is dead. */
async int disk_end_log(struct disk *disk, struct error *err);
/* Forgets all that its log told, once it is gone. */
void disk_reset(struct disk *disk);
void disk_free(struct disk *disk);
/* The root the disk's own log starts from. -EAGAIN: a version of another disk is
 * pending; *ret_pending names that disk. */
int disk_base_root(const struct cluster_state *state, const struct cluster_disk *disk,
                   struct map_root *ret_root, uint64_t *ret_pending);
/* Sees to it that the version's root is committed. */
async int version_settle(struct host *host, uint64_t version, struct error *err);

/* --- disk_remote.c: a disk of another host --- */
#define HAND_OVER_NS (5 * NS_PER_S) /* in which the owner must have finished */
struct disk_remote *remote_create(struct disk *disk);
void remote_destroy(struct disk_remote *remote);
/* A new disk, that another host owns. */
int remote_begin(struct disk *disk);
/* The cluster's state has changed: its owner may have changed its size. */
void remote_look(struct disk *disk);
/* Its log has ended, for this node: changes that wait ask for it back. is_settled: so has
 * its lease. */
void remote_given(struct disk *disk, uint64_t node, bool is_settled);
/* Tells the owner, now and then, that it may be asked for the disk. */
void remote_prepare(struct disk *disk);
void remote_submit(struct disk *disk, struct disk_io *io);
/* Takes the lease in place, for a client that was `opened` so. */
async int remote_take(struct disk *disk, uint32_t opened, struct error *err);
/* The same, if no other host has clients of it. */
async int remote_reclaim(struct disk *disk, struct error *err);

/* --- layers.c --- */
struct layer *layer_top(const struct disk *disk);
/* Freezes the top, which nothing behind batch `covers` is in, and puts an empty layer of
 * this generation over it. */
struct layer *layer_push(struct disk *disk, uint32_t generation, uint64_t covers);
void layers_done(struct disk *disk);
/* When the store is out of service nothing changes any more, but what was acknowledged is
 * in the layers and the map, and whatever is read is verified. With an epoch that is over
 * it might be old; without memory for a layer it might be missing there. */
static inline bool disk_serves_reads(const struct disk *disk)
{
    return disk->down == 0 || disk->down == -PLX_EFAILED;
}
/* Is there nothing here that would tell what it holds? Another host may be writing. */
static inline bool disk_is_elsewhere(const struct disk *disk)
{
    return disk->is_remote || disk->gives_up;
}
/* Gives back what the layers hold, of a disk that is down and no longer read. */
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
/* How far the blocks from `block` on, before `end`, are replaced without a gap by this
 * layer and newer ones, `count` in all, as long as no version ends between them. */
uint64_t layers_replaced(const struct layer *from, uint32_t count, uint64_t block,
                         uint64_t end);
/* Takes a committed or replayed piece into the top layer. */
int layers_take(struct disk *disk, const struct log_piece *piece);

/* --- disk_read.c --- */
struct read_job {
    struct disk *disk;
    uint64_t first, count;   /* blocks */
    uint8_t *bytes;          /* count * BLOCK_SIZE, aligned */
    void (*done)(struct read_job *job);
    void *arg;
    bool ordered;            /* goes on where another read ended */
    int result;
    bool inside;             /* in done: read_start has not returned yet */
    /* private: */
    bool is_stale;           /* something was dead: to be done again */
    uint32_t tries;
    uint32_t pending;
    uint32_t parts;          /* reads of the store it took */
    struct map_root root;
    struct read_gap *gaps;
    uint32_t gap_count;
    struct task_call task;
};
/* What was to be read may have been trimmed since it was looked up: look again. */
bool read_is_stale(int code);
/* done may be called from inside. */
void read_start(struct read_job *job);
async int read_blocks(struct disk *disk, uint64_t first, uint64_t count, uint8_t *bytes);
void disk_read(struct disk *disk, struct disk_io *io);

/* --- disk_write.c --- */
void disk_change(struct disk *disk, struct disk_io *io);
void disk_flush(struct disk *disk, struct disk_io *io);
/* Starts changes that waited for room or for a range. */
void disk_resume(struct disk *disk);
/* Takes a waiting one off the list of changes. */
void disk_unlist(struct disk *disk, struct disk_io *io);
void write_committed(struct disk *disk, struct log_record *record,
                     const struct log_piece *piece, bool last);
void write_failed(struct disk *disk, struct log_record *record, int code);
/* Waits until everything committed so far is durable. */
async int disk_flush_wait(struct disk *disk);
/* Logs zeros over whole blocks and waits for the commit. */
async int disk_zero_wait(struct disk *disk, uint64_t first, uint64_t count);
/* Logs those of count blocks from `first` on that are wanted, with what the buffer holds,
 * and waits for the commit. Queues all of it before it suspends. */
async int disk_data_wait(struct disk *disk, uint64_t first, uint64_t count,
                         const bool *wanted, struct buffer *buffer);

/* --- disk.c --- */
/* Calls done for io from the loop. */
void disk_finish(struct disk *disk, struct disk_io *io, int result);
/* Starts what waited for a take-over, or refuses it. */
void disk_go_on(struct disk *disk, struct disk_io *io);
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
/* Sooner than that: some may be all that keeps much space. */
void checkpoint_after_zeros(struct disk *disk);
/* Notes the result of one; those who wait for it go on, or fail. */
void checkpoint_settled(struct disk *disk, int result);
/* True while the log or the overlay has run so far ahead that changes wait. */
bool checkpoint_behind(const struct disk *disk);
/* True if what checkpoints would find dead is much beside what is free, or known dead. */
bool checkpoint_holds_space(const struct host *host);

/* --- checkpoint.c --- */
async int disk_checkpoint(struct disk *disk, struct error *err);
/* Until what is in `orphans` now is on a list that counts; not if that would have to wait
 * for the end of a collapse. */
async int disk_list_orphans(struct disk *disk, struct error *err);
void node_committed(struct log_record *record, const struct log_piece *piece);
void node_failed(struct log_record *record, int code);
/* A forced roll gave blocks of it another place. -ENOMEM. */
int checkpoint_moved(struct checkpoint_attempt *attempt, uint32_t count,
                     struct address was, struct address now);

/* --- checkpoint_list.c --- */
void list_init(struct list_writer *list, struct disk *disk, uint64_t checkpoint);
void list_done(struct list_writer *list);
async int list_add(struct list_writer *list, struct address address, uint32_t count);
async int list_add_subtree(struct list_writer *list, const struct dead_subtree *subtree);
/* The set may be added to meanwhile. */
async int list_add_set(struct list_writer *list, const struct dead_set *set);
/* The first of them; more may be added behind these meanwhile. */
async int list_add_entries(struct list_writer *list, const struct dead_entries *entries,
                           uint32_t run_count, uint32_t subtree_count);
/* Writes what is left. `named` has no blocks if there was nothing to name. */
async int list_finish(struct list_writer *list);
void list_committed(struct log_record *record, const struct log_piece *piece);
void list_failed(struct log_record *record, int code);

/* --- trimmer.c --- */
void trimmer_init(struct disk *disk);
void trimmer_done(struct disk *disk);
/* There may be something to trim: starts the disk's task, if it does not run. */
void trimmer_kick(struct disk *disk);
/* If extents of what was carried are final now: starts it to trim that. */
bool trimmer_again(struct disk *disk);
uint64_t trimmer_blocks_carried(const struct disk *disk);
/* Ends it between two steps and waits for it. */
async void trimmer_stop(struct disk *disk);
/* For a planted bug: trims what no committed checkpoint names. */
/* Reads and checks a block of a list; its entries are the caller's. */
async int dead_block_read(struct host *host, struct address address, uint32_t crc,
                          struct dead_block *ret_block);
async void trimmer_trim_early(struct disk *disk, const struct dead_list *list);
/* Named lists that were not processed yet. */
uint32_t trimmer_lists_left(const struct disk *disk);
/* Of a disk that is closed and stays in the table meanwhile: trims its lists, takes
 * extents off its list and lets their headers go. Stops early if somebody waits to open
 * it. Nothing is wrong if that does not succeed: it is done at another time. */
async void disk_tidy(struct disk *disk);

/* --- space.c: a full store --- */
void space_init(struct host *host);
void space_start(struct host *host); /* once the store is open */
void space_done(struct host *host);
/* Something was freed, or is known to be dead now: those who wait try again. */
void space_freed(struct host *host);
void space_wait(struct disk *disk, struct space_wait *wait);
/* Ends the waits of a disk that is down. */
void space_disk_down(struct disk *disk);
/* Would more data be beyond what the disk may use? */
bool space_over_quota(struct disk *disk);

/* --- snapshot.c --- */
/* name "": an unnamed branch point. */
async int disk_snapshot(struct disk *disk, const char *name, uint64_t *ret_version,
                        struct error *err);
void marker_committed(struct disk *disk, struct log_record *record,
                      const struct log_piece *piece);
void marker_failed(struct log_record *record, int code);

/* --- host.c --- */
/* Tells the store how much space checkpoints may need: now, or if that has changed much
 * since it was told. */
uint64_t disk_merge_bytes(const struct disk *disk);
void host_renew_reserve(struct host *host);
void host_update_reserve(struct host *host);
#define RESERVE_BYTES       (8 * MIB)
#define RESERVE_OTHERS_BYTES (2048 * MIB) /* at least, for checkpoints of other hosts */
#define RESERVE_STEP_LEAVES 256U
#define REFUSES_NS          (60 * NS_PER_S) /* since the last one: the store is full */

/* --- host_admin.c: for the other administrative files --- */
/* What users see under that name; NULL with an error. */
const struct cluster_disk *host_find_disk(struct host *host, const char *name,
                                          struct error *err);
const struct cluster_version *host_find_version(struct host *host, const char *disk_name,
                                                const char *snapshot,
                                                struct error *err);
/* Commits; the state machine's own words name the disk. */
async int host_submit(struct host *host, const struct cluster_command *command,
                      struct cluster_result *ret_result, struct error *err);
int host_check_name(const char *what, const char *name, struct error *err);
/* Closes the disk's head with everything of it in its committed root. */
async int host_settle_closed(struct host *host, uint64_t id, struct error *err);

/* --- host_list.c --- */
/* What the logs of restorable disks hold. */
uint64_t host_trash_bytes(struct host *host);

/* --- diff.c --- */
/* A map that stays whole until it is given back: of a snapshot, or (name NULL) of the
 * disk as it is, for which a checkpoint is written if need be. */
struct held_root {
    struct pin pin;
    struct map_root root;
    uint64_t size_bytes;
    uint64_t disk, version; /* version 0: the head */
};
async int held_root_take(struct host *host, const char *disk, const char *snapshot,
                         struct held_root *ret_root, struct error *err);
void held_root_release(struct host *host, struct held_root *held);

/* --- host_used.c: with others; alone nothing is kept --- */
void used_init(struct host *host);
/* Counts again, in a task, unless it was done just now. */
void used_refresh(struct host *host);
async void used_stop(struct host *host);
uint64_t used_bytes(const struct host *host, uint64_t disk);

/* --- host_many.c --- */
/* Are there other nodes, which may write here? */
bool host_has_others(const struct host *host);
/* Does this host do what must be done once in a cluster? */
bool host_leads(const struct host *host);
/* Likewise of one disk: its owner does it. */
bool host_answers_for(const struct host *host, const struct cluster_disk *disk);
void host_many_start(struct host *host);
async void host_many_stop(struct host *host);
#define IMPORT_ABANDONED_S (3 * 86400U) /* since it was begun, and nobody has it open */

/* --- host_tidy.c --- */
/* Puts one extent of this node's store right, by a state that is not older than it. */
async int host_tidy_extent(struct host *host, const struct extent_info *info);
async int host_tidy(struct host *host, struct error *err);
/* Closed disks may have something to trim: looks at all of them, in a task. */
void host_tidy_soon(struct host *host);
/* Removes an unpublished import that nobody has open, with all it wrote. */
async int disk_discard(struct host *host, uint64_t id, struct error *err);
async int host_drop_extents(struct host *host, uint64_t disk);

#endif
