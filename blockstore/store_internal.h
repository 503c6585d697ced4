/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the store share. doc/store.md draws the states and lists the
 * invariants E1 to E9 that the asserts cite.
 */
#ifndef PARALLAX_BLOCKSTORE_STORE_INTERNAL_H
#define PARALLAX_BLOCKSTORE_STORE_INTERNAL_H

#include "blockstore/layout.h"
#include "blockstore/record_format.h"
#include "blockstore/slab.h"
#include "blockstore/store.h"
#include "runtime/runtime.h"

/* --- bounds --- */

#define IO_PARTS_MAX     512U              /* file operations of a store at once */
#define IO_PARTS_KEPT    16U               /* made at open: one is never missing */
#define SCAN_TASKS       8U                /* extents scanned at once after a restart */
#define WINDOW_BLOCKS    SLAB_BLOCKS       /* of a scan: one read of 1 MiB */
#define WINDOW_HOP       PIECE_BLOCKS      /* where only headers are wanted: 64 KiB */
#define BEYOND_GAP (2 * (BATCH_BLOCKS + 1)) /* looked at behind the end of a scan */
#define RESERVE_SLABS    EXTENT_SLABS      /* reserved at once at most */
#define ZERO_POOL_SLABS  64U               /* filled ahead of use */
#define IDLE_NS          (200 * NS_PER_MS) /* quiet for so long is idle */
#define COMPACT_CHUNK_BYTES (256 * KIB)     /* read, and written, at once */
#define WRITE_FAILURES_MAX 8U              /* in a row: the device takes nothing more */
#define STORE_BYTES_MIN  (16 * MIB)
#define EXTENT_TABLE_MIN 64U               /* buckets */

static_assert(IO_PARTS_MAX <= AIO_DEPTH, "a part never waits in the file's queue");

/* --- superblock.c --- */

struct superblock {
    struct uid cluster, store;
    uint64_t capacity_bytes;
    uint64_t created_wall_ns;
    uint64_t generation;
};
void superblock_encode(const struct superblock *sb, void *ret_block);
/* 0, -PLX_EFORMAT (not one), -PLX_ECHECKSUM, -PLX_ENEWER. */
int superblock_decode(const void *block, struct superblock *ret);
/* Writes both copies, one after the other, each with a sync. */
async int superblock_store(struct file *file, const struct superblock *sb);
/* The newer of the two. */
async int superblock_load(struct file *file, const char *path, struct superblock *ret,
                          struct error *err);

/* --- extents --- */

/* 136 bytes, plus 8 for each run and 2 KiB for each bitmap. */
struct extent {
    struct address address;
    uint64_t disk, epoch, nonce;
    uint64_t serial; /* new whenever blocks have moved; 0: it is gone */
    uint32_t length, durable;
    uint32_t stored, live; /* extent_count changes them */
    uint32_t create_flags;
    uint32_t readers[2]; /* reads in flight that began in each phase */
    uint8_t phase;       /* of the reads that begin now */
    uint8_t state;       /* enum extent_state */
    bool restart_scanned;
    bool is_locked;
    bool is_unfit;   /* to be compacted: damaged */
    bool is_damaged; /* so the last start found */
    struct runs runs;
    uint8_t *live_map, *layout; /* NULL: all stored is live; place is number */
    uint8_t *headers;           /* NULL: trimmed; else each of them is live */
    struct extent_open *open;   /* NULL unless open */
    SLIST_ENTRY(extent) link;   /* in its bucket */
};

struct extent_open {
    struct extent *extent;
    struct store *store;
    TAILQ_HEAD(extent_appends, store_append) appends; /* not done, by block */
    uint32_t end;                       /* of all submitted */
    uint32_t recorded;                  /* blocks of space whose record is durable */
    uint32_t recording;                 /* the same once the write in flight is */
    uint32_t slabs_next;                /* to reserve next */
    int cut;                            /* nonzero: why nothing more is appended */
    bool is_stopping, is_recording, is_dirty, is_syncing;
    uint32_t sync_length; /* what the sync in flight covers */
    struct kv_write write;
    struct waitlist changed; /* an append or a record write is done */
    TAILQ_ENTRY(extent_open) dirty_link, syncing_link, link;
};
TAILQ_HEAD(extent_open_list, extent_open);

SLIST_HEAD(extent_bucket, extent);
struct extent_table {
    struct extent_bucket *buckets;
    size_t bucket_count; /* a power of two */
    size_t count;
    uint64_t stored_blocks, live_blocks; /* of all extents */
    uint64_t serials;
};

/* One operation on the file: the part of an append or read that is contiguous there. */
struct part {
    struct file_io io;
    struct store *store;
    union {
        struct store_append *append;
        struct store_read *read;
    } of;
    SLIST_ENTRY(part) link;
    struct iovec iov[FILE_IOV_MAX];
};

/* --- the store --- */

struct store {
    struct loop *loop;
    struct file *file;
    struct kv *kv;
    char *path;
    struct superblock super;
    struct slabs slabs;
    struct extent_table extents;
    struct extent_open_list opens;
    uint64_t reserve_bytes;
    struct work *on_space; /* NULL: nobody asks */
    bool failed, is_closing;
    int failed_code;
    uint32_t writes_failed; /* extents and copies since a write succeeded */

    SLIST_HEAD(, store_install) installs;
    uint32_t install_count;

    struct waitlist unlocked;     /* some extent was unlocked */
    struct waitlist readers_gone; /* a count of readers fell to 0 */
    struct waitlist quiet;        /* something of the store's own ended */

    SLIST_HEAD(, part) parts;
    uint32_t parts_made, parts_free;
    STAILQ_HEAD(append_list, store_append) starved_appends, refused_appends;
    STAILQ_HEAD(read_list, store_read) starved_reads, refused_reads;
    STAILQ_HEAD(sync_list, store_sync) sync_waiting, sync_running, answered_syncs;
    struct work answer;
    struct work fail;

    struct file_io sync_io;
    bool sync_busy;
    bool sync_forced; /* the next one, though no extent needs it */
    struct extent_open_list dirty, syncing;

    uint32_t fresh_recorded; /* slabs.fresh in the newest record */
    uint64_t used_ns;        /* when an append or read came last, */
    uint64_t put_ns;         /* or a part of a copy from elsewhere */
    struct timer idle;
    struct file_io fill_io;
    struct store_sync fill_sync;
    struct iovec fill_iov[SLAB_PIECES];
    void *zeros; /* one piece of them; NULL: nothing is filled */
    struct run fill_run;
    bool fill_busy;
    bool fills_under_load;    /* the load gains more by it than it costs */
    uint64_t syncs_since_slab;
    uint64_t slabs_taken_ns; /* when an extent got some last */
    uint32_t slabs_taken_last;

    uint32_t allocated;   /* slabs below have space in the file system */
    bool allocating, can_allocate;
    bool host_is_known; /* what a look at the file system found: */
    uint64_t host_free_bytes, host_stored_bytes;
    uint64_t looked_ns, room_said_ns;
    uint32_t looked_fresh; /* slabs.fresh then */
    uint32_t room_end;     /* slabs below have space, or there is room for them */
    bool room_is_short;    /* it was said */
    struct task_call allocate_task;

    struct task_call compact_task;
    struct timer compact_timer;
    bool compacting, no_idle_work;
    uint64_t compact_changes;       /* grows when blocks die or extents go */
    uint64_t compact_nothing_at;    /* its value when nothing was found, */
    uint32_t compact_nothing_goal;  /* for which goal, */
    uint64_t compact_looked_ns;     /* and when */

    struct metric *compact_count, *compact_read_bytes, *compact_written_bytes;
    struct metric *append_count, *append_bytes, *read_count, *sync_count, *sync_ns;
    uint64_t sync_started_ns;
};

/* store.c */
/* Takes the store out of service; logs once. */
void store_fail(struct store *store, const char *what, int code);
/* A write of data has ended so; of an extent that stops for it only the first failed one
 * is told. One that fails stops an extent, which another can replace; if none succeeds
 * any more the store goes out of service, so that others have its copies instead. */
void store_wrote(struct store *store, int result);
/* Something that store_close waits for has ended. */
void store_settled(struct store *store);

/* extent_table.c */
int extent_table_init(struct extent_table *table);
void extent_table_done(struct extent_table *table); /* frees the extents, too */
struct extent *extent_find(const struct extent_table *table, struct address address);
void extent_insert(struct extent_table *table, struct extent *e);
void extent_remove(struct extent_table *table, struct extent *e);
void extent_free(struct extent *e);
/* How many blocks it has stored and live from now on. */
void extent_count(struct extent_table *table, struct extent *e, uint32_t stored,
                  uint32_t live);
/* Calls fn for every extent; fn may not insert or remove. */
void extent_each(const struct extent_table *table,
                 void (*fn)(void *arg, struct extent *e), void *arg);
/* The same from a bucket on, for `count` of them; returns where to go on. */
size_t extent_each_from(const struct extent_table *table, size_t bucket, size_t count,
                        void (*fn)(void *arg, struct extent *e), void *arg);
/* One multi-step operation of an extent at a time. NULL: there is no such extent (any
 * more). */
async struct extent *extent_lock(struct store *store, struct address address);
void extent_unlock(struct store *store, struct extent *e);
/* -ENOMEM. For an extent in state open. */
int extent_open_start(struct store *store, struct extent *e);
void extent_open_end(struct store *store, struct extent *e);
/* Where a block lies, and how many after it follow it there; 0: nowhere. */
uint32_t extent_place(const struct extent *e, uint32_t block, uint32_t max,
                      uint64_t *ret_offset_bytes);
bool extent_is_live(const struct extent *e, uint32_t block, uint32_t count);

/* record.c */
void extent_key(struct address address, uint8_t ret_key[EXTENT_KEY_BYTES]);
/* pieces: how much of the extent's space the record keeps. */
void record_encode(const struct extent *e, uint32_t pieces, struct writer *w);
/* Fills a zeroed extent; what it allocated is freed by extent_free also on failure. */
int record_decode(const uint8_t *key, size_t key_len, const void *value, size_t value_len,
                  struct extent *ret);
/* Puts the extent's record, and that of fresh slabs if it changed, into a batch; the
 * caller looks at batch->bad. */
void record_put(struct store *store, struct kv_batch *batch, const struct extent *e,
                uint32_t pieces);
/* Puts it alone and waits; a failure of the key-value store is the store's. -ENOMEM
 * changed nothing. */
async int record_write(struct store *store, const struct extent *e, uint32_t pieces,
                       enum kv_durability durability);
async int record_delete(struct store *store, const struct extent *e);
void identity_encode(const struct superblock *sb, struct identity_format *ret);
/* Of *ret only cluster, store and generation. */
int identity_decode(const void *value, size_t len, struct superblock *ret);
void fresh_put(struct store *store, struct kv_batch *batch);
/* 0 if the record says nothing. */
uint32_t fresh_decode(const void *value, size_t len);

/* space.c */
/* The first slabs of an extent: as many as asked for, as far as others do not need them;
 * if there are none, one of the reserve, unless that is to be kept. -PLX_EFULL. */
int space_begin(struct store *store, struct extent *e, uint32_t slabs,
                bool keep_reserve);
/* Sees to it that the extent has space up to block `end`. -PLX_EFULL, -ENOMEM. */
int space_ensure(struct store *store, struct extent *e, uint32_t end, bool use_reserve);
/* Reserves more when half is used, and starts a record write if one is due. */
int space_ahead(struct store *store, struct extent *e);
/* Gives a run back, and tells who waits for slabs. */
void space_release(struct store *store, struct run run);
/* Gives back what lies behind the first `pieces` pieces. */
void space_cut(struct store *store, struct extent *e, uint32_t pieces);
/* Whether so many pieces can be taken so that the reserve is left. */
bool space_has_room(struct store *store, uint32_t pieces);
/* Adds single pieces of shared slabs. -PLX_EFULL, -ENOMEM: some of them were added. */
int space_take_pieces(struct store *store, struct runs *runs, uint32_t want);
/* All of them are free, and none is left. */
void space_give_back(struct store *store, struct runs *runs);
static inline uint32_t pieces_of(uint32_t blocks)
{
    return (uint32_t)div_up_u64(blocks, PIECE_BLOCKS);
}

/* stop.c */
void headers_drop(struct extent *e);
/* Frees a locked extent. On failure it is still there, and locked. */
async int extent_delete(struct store *store, struct extent *e);

/* install.c: copies on their way in. They are told of what happens to their extent. */
bool install_is_under_way(const struct store *store, struct address address);
/* False: there is none. */
bool install_trim(struct store *store, struct address address, const uint32_t *blocks,
                  uint32_t count);
bool install_trim_headers(struct store *store, struct address address);
void install_cancel(struct store *store, struct address address);
/* Calls fn for each that has taken space. */
void install_each(const struct store *store, void (*fn)(void *arg, struct extent *copy),
                  void *arg);

/* part.c */
int parts_init(struct store *store);
void parts_done(struct store *store);
struct part *part_get(struct store *store); /* NULL: wait for one */
void part_put(struct store *store, struct part *part);
/* Goes on with those who waited for a part. */
void parts_resume(struct store *store);
/* Has `answer` run soon, which calls done of what was refused. */
void answer_soon(struct store *store);

/* append.c */
void append_issue(struct store *store, struct store_append *append);
/* Answers all appends at the front of the extent that are through. */
void append_finish(struct store *store, struct extent *e);

/* read.c */
void read_issue(struct store *store, struct store_read *read);
/* All parts of it are done. */
void read_finish(struct store *store, struct store_read *read);
/* Reads that begin after this are in the new phase; waits for those before it. */
async void readers_drain(struct store *store, struct extent *e);
void reader_left(struct store *store, struct extent *e, uint8_t phase);

/* sync.c */
void sync_init(struct store *store);
/* Like store_sync, but also if no extent has anything to sync. */
void sync_always(struct store *store, struct store_sync *sync);
void sync_mark_dirty(struct store *store, struct extent *e);
/* Also when the extent goes away. */
void sync_forget(struct store *store, struct extent_open *open);
async int sync_wait(struct store *store);
async int sync_always_wait(struct store *store);
/* mend.c: whether the bytes are the header that stands there. What it follows is not
 * looked at: who has them has walked there. */
bool is_header_at(const struct store *store, const struct extent *e, uint32_t block,
                  const void *bytes);

/* zero_fill.c */
int zero_fill_init(struct store *store);
void zero_fill_done(struct store *store);
/* The pool may have shrunk. */
void zero_fill_wanted(struct store *store);
/* An extent got `count` slabs. */
void zero_fill_slabs_taken(struct store *store, uint32_t count);

/* allocate.c */
/* The first look at the file system, when it is known which slabs are in use. */
async void allocate_init(struct store *store);
/* Slabs were taken, or are missed: more space of the file may be wanted. */
void allocate_wanted(struct store *store);
/* A write found the file system full. */
void allocate_failed(struct store *store);
/* Slabs that are neither used nor free: there is no room for them. */
uint32_t allocate_withheld(const struct store *store);
/* What data leaves to metadata in the file system of a file. */
uint64_t allocate_reserve_bytes(uint64_t capacity_bytes);

/* compact_run.c */
void compact_init(struct store *store);
/* Slabs were taken, or are wanted: it may be time to compact. */
void compact_wanted(struct store *store);
/* Blocks died, or pieces became free. */
void compact_changed(struct store *store);

/* --- scans --- */

/* Which header may come next. Pure. */
struct chain {
    struct uid cluster;
    uint64_t disk, epoch, nonce;
    struct address extent;
    uint32_t block;        /* where the next header stands */
    uint32_t previous_crc; /* of the header before */
    uint64_t number;       /* of the batch before; 0: none yet */
};
bool chain_accepts(const struct chain *chain, const struct header *head);
void chain_advance(struct chain *chain, const struct header *head, uint32_t data_blocks);

/* walk.c: a reader of one extent's headers, with a window of at most 1 MiB. */
struct walk {
    struct store *store;
    const struct extent *extent;
    struct chain chain;
    uint32_t limit; /* no block at or above it is read */
    uint8_t *window;
    uint32_t window_start, window_count; /* blocks */
    uint32_t window_want, heads_in_window;
    bool wants_data; /* the data is read, too: whole windows */
    struct header head;
    struct entry entries[BATCH_BLOCKS];
    struct roll_entry rolls[ROLL_ENTRIES_MAX];
    uint32_t data_blocks; /* behind head */
    uint32_t data_block;  /* that walk_data looked at last */
};
/* NULL when memory is out. */
struct walk *walk_create(struct store *store, const struct extent *e, uint32_t limit);
void walk_destroy(struct walk *walk);
/* Reads the header at chain.block into head. -PLX_EDAMAGED if it is not the one that
 * must stand there; an error of the file as it is. */
async int walk_head(struct walk *walk);
/* Checks the data behind head. -PLX_ECHECKSUM. */
async int walk_data(struct walk *walk);
/* Goes on to the next header. */
void walk_next(struct walk *walk);
/* Whether at a block behind the chain's there is a batch's header of this extent,
 * whatever the one before it was. Overwrites entries. */
async bool walk_peek(struct walk *walk, uint32_t block, struct header *ret_head,
                     uint32_t *ret_data_blocks);
/* Whether there, where walk_peek has found none, one was that rotted: it still has its
 * place and the extent's nonce, which no data has. */
bool walk_was_header(const struct walk *walk, uint32_t block);

/* beyond.c: what headers behind the end of a scan say. */
struct beyond {
    uint64_t first_number; /* of the first that was found; 0: there is none */
    uint32_t first_block;
    uint32_t end;          /* of the last batch that was found, within the limit */
    uint64_t flushed;      /* the highest number any of them calls flushed */
};
/* Goes from header to header, from block `from` on, as long as the next one is near. Sets
 * their bits in `headers`, if not NULL, and those of what was a header and rotted. */
async void beyond_look(struct walk *walk, uint32_t from, uint8_t *headers,
                       struct beyond *ret);
/* Whether the header that is missing where the walk's chain ends was flushed. */
bool beyond_needs_header(const struct chain *chain, const struct beyond *beyond);

/* restart.c: stops all extents that a former process left open. */
async int restart_scan(struct store *store, struct error *err);

#endif
