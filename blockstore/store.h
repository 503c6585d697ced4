/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One node's extent store: a file or raw block device plus records in the node's
 * key-value store. doc/format-store.md, doc/store.md.
 *
 *   absent --create--> open --stop--> stopped(n) --finalize(L)--> final(L) --> deleted
 *
 * An open extent takes appends at its end only. A stop is durable before it is answered.
 * Opening a store stops every extent that was open, at its valid prefix, after a sync.
 * A failed sync or metadata write takes the store out of service, and so do writes of
 * data that fail one after the other: everything but reads answers -PLX_EFAILED from then
 * on.
 */
#ifndef PARALLAX_BLOCKSTORE_STORE_H
#define PARALLAX_BLOCKSTORE_STORE_H

#include "blockstore/address.h"
#include "blockstore/header.h"
#include "runtime/runtime.h"

struct store;

struct store_options {
    const char *path;        /* file or block device */
    uint64_t capacity_bytes; /* create: the size (a device: 0 = all of it);
                                open: grow to it, 0 = keep */
    struct kv *kv;           /* shared with others; the store's keys begin with e, s */
    struct uid incarnation;  /* create: of the new store; all zeros: a random one */
    bool no_idle_work;       /* never zero-fill unwritten slabs in the background, nor
                                compact before space is short */
};

/* Formats. The caller made sure that nothing is there (a file must not exist; a device
 * must not carry a valid superblock: -PLX_EEXISTS). */
async int store_create(struct loop *loop, const struct store_options *options,
                       struct uid cluster, struct error *err);
/* Opens; runs the restart scan of all open extents in parallel. Errors name path and
 * cause: not a store, newer format, damaged superblock (both copies), smaller than it
 * says (truncated), another store's metadata, metadata damaged. */
async int store_open(struct loop *loop, const struct store_options *options,
                     struct store **ret_store, struct error *err);
/* Nothing in flight; no handles in use. */
async void store_close(struct store *store);

struct store_usage {
    struct uid cluster, incarnation;
    uint64_t capacity_bytes, used_bytes, free_bytes; /* used: slabs held by extents, in
                                                      * part or whole; the superblock's
                                                      * slab is in neither */
    /* Neither used nor free: the file system of the store's file had no room for it at
     * the last look. What it had free then, and what of that is left to metadata; both 0
     * for a device. */
    uint64_t withheld_bytes, host_free_bytes, host_reserve_bytes;
    bool has_host;
    uint64_t reserve_bytes;    /* of what is free, not for guests: store_set_reserve */
    uint64_t live_bytes;       /* blocks that are not trimmed */
    uint64_t dead_bytes;       /* trimmed, but still stored */
    uint64_t free_piece_bytes; /* free pieces of slabs that are used in part */
    uint64_t compact_runs;     /* since it was opened: extents, or parts of one, moved */
    uint64_t compact_bytes_read, compact_bytes_written;
    bool compacting;
    uint64_t extent_count;
    bool failed;
    int failed_code; /* why */
};
void store_usage(const struct store *store, struct store_usage *ret_usage);
/* Looks at the file system again. */
async void store_look(struct store *store);
/* The same in the background, if it had no room for all of the store, and not more often
 * than it is worth. For who only wants to know. */
void store_look_soon(struct store *store);
struct uid store_cluster(const struct store *store);

/* Guest appends find the store full when fewer bytes than this would be left, in free
 * slabs and behind them in their extent. */
void store_set_reserve(struct store *store, uint64_t reserve_bytes);
/* Has `work` posted whenever slabs became free, and when compaction ends, so that nobody
 * waits for more. One subscriber; NULL: none. */
void store_on_space(struct store *store, struct work *work);
/* The store may still gain space by itself: compaction is at work, or has something left
 * that gains. Or others give some: the file system, that had no room, is looked at. */
bool store_space_coming(struct store *store);
/* When the file system, that has no room for all of the store, was last looked at: who
 * waits since later has not been told yet. UINT64_MAX: it has room. */
uint64_t store_looked_ns(const struct store *store);

enum extent_state { EXTENT_OPEN, EXTENT_STOPPED, EXTENT_FINAL };

struct extent_info {
    struct address extent;
    uint64_t disk, epoch, nonce;
    enum extent_state state;
    uint32_t length;        /* blocks: end of an open one, stop or final length */
    uint32_t durable;       /* known to be synced, blocks; <= length */
    uint32_t stored;        /* blocks that have a place */
    uint32_t live;          /* of these, not trimmed */
    bool has_headers;       /* its headers are live: store_trim_headers was not called */
    bool restart_scanned;   /* its stop length was found by a restart scan */
    bool is_damaged;        /* this start has found rot below it */
    uint32_t create_flags;  /* none is defined yet: 0 */
};
/* -PLX_EMISSING if absent. */
int store_extent_info(const struct store *store, struct address extent,
                      struct extent_info *ret_info);
/* All extents of a disk (0: of all), malloc'd and the caller's, sorted by address. */
int store_list_extents(const struct store *store, uint64_t disk,
                       struct extent_info **ret_infos, size_t *ret_count);

/* Calls fn for each extent, in no order; may suspend in between. Those that come
 * meanwhile may be left out, and now and then others. */
async void store_look_at_all(const struct store *store,
                             void (*fn)(void *arg, const struct extent_info *info),
                             void *arg);
/* The first `max` extents of a group from an address on, in order. Those that come or go
 * meanwhile may be among them; all others are. -ENOMEM */
async int store_page_extents(struct store *store, uint16_t group, struct address from,
                             uint32_t max, struct address *ret_extents,
                             uint32_t *ret_count, bool *ret_more);
/* Live blocks of the extents of each disk, of those in these groups (rising, no group
 * twice): malloc'd and the caller's, sorted by disk. */
struct disk_blocks {
    uint64_t disk, live;
};
int store_count_live(const struct store *store, const le16 *groups, uint32_t group_count,
                     struct disk_blocks **ret_disks,
                     size_t *ret_count);

/* Makes an open extent; its record is durable when this returns. slabs_hint: slabs
 * (1 to EXTENT_SLABS) to reserve at once, fewer when the store is nearly full; more
 * follow with demand. keep_reserve: none of the reserve, for what may be refused; without
 * it one slab of it, if need be. -PLX_EEXISTS if the store knows the extent in whatever
 * state; -PLX_EFULL if not even one slab is to be had. */
async int store_create_extent(struct store *store, struct address extent, uint64_t disk,
                              uint64_t epoch, uint64_t nonce, uint32_t slabs_hint,
                              bool keep_reserve);

/* How far an append or a read has been given to the file. Private to the store. */
struct store_cursor {
    struct extent *extent;
    uint32_t issued;    /* blocks given to the file */
    uint32_t vector;    /* the slice or vector that goes on from there, */
    uint32_t vector_at; /* and the bytes of it that were given */
    uint8_t phase;      /* a read: which of the extent's two counts it is in */
    bool is_whole;      /* all of it was given to the file */
};

/*
 * Appends whole blocks at the end of an open extent, straight from the caller's slices
 * (lengths and offsets multiples of BLOCK_SIZE, at most BATCH_BLOCKS + 1 slices and
 * blocks). done is called when the data is written (not synced) and its space is durably
 * reserved, in the order of the blocks, never from inside store_append. So `length` of
 * extent_info and every stop count only the prefix without a gap. Slices must stay until
 * done.
 * Errors: -PLX_ESTOPPED, -PLX_ENOTEND, -PLX_EEPOCH (epoch differs from the create's),
 * -PLX_EMISSING (an append never creates), -PLX_EFAILED; -PLX_EFULL and -ENOMEM leave the
 * extent as it was. When the device fails (-EIO, -ENOSPC of a file system), the extent is
 * stopped before that append, for all later ones, too: they answer -PLX_ESTOPPED, and so
 * does everything until store_stop_extent makes it a durable fact. What is refused is
 * answered at once, maybe before what is still under way.
 */
struct store_append {
    struct address extent;
    uint64_t epoch;
    uint32_t block; /* where it starts; must be the end of all submitted so far */
    const struct slice *slices;
    uint32_t slice_count;
    bool use_reserve; /* checkpoints and re-appends may go below the reserve */
    void (*done)(struct store_append *append);
    int result;
    /* private: */
    struct store *store;
    uint32_t blocks, pending;
    struct store_cursor cursor;
    TAILQ_ENTRY(store_append) link;    /* of its extent */
    STAILQ_ENTRY(store_append) waiting; /* for a part, or to be refused */
};
void store_append(struct store *store, struct store_append *append);

/* Makes everything durable whose append was done before this call: data and the records
 * that reserve its space. One sync serves all that wait; a request that arrives during
 * a sync waits for the next. */
struct store_sync {
    void (*done)(struct store_sync *sync);
    int result; /* 0 or -PLX_EFAILED */
    STAILQ_ENTRY(store_sync) link;
};
void store_sync(struct store *store, struct store_sync *sync);

/* Ends appends, waits for those in flight, syncs, records the length. Idempotent. An
 * absent extent becomes stopped(0). */
async int store_stop_extent(struct store *store, struct address extent,
                            uint32_t *ret_length, bool *ret_restart_scanned);
/* Only with a committed length; stops an open extent first. Cuts off what is beyond and
 * frees its space; an extent shorter than `length` answers -PLX_ENOTHERE and stays
 * stopped, an absent one -PLX_EMISSING. Length 0 deletes. Idempotent; another length than
 * before is -PLX_EPRECONDITION. */
async int store_finalize_extent(struct store *store, struct address extent,
                                uint32_t length);
/* In whatever state; an absent one is fine. */
async int store_delete_extent(struct store *store, struct address extent);
/* Only if it is a mark, stopped with nothing in it, in the moment in which it goes: since
 * somebody looked a copy may have come in its place. */
async int store_delete_mark(struct store *store, struct address extent);

/*
 * Reads count blocks of one extent into iov (any state; below the end of completed
 * appends). Checksums are the caller's business. -PLX_ENOTHERE: extent absent or
 * shorter; -PLX_EDEAD: a block is trimmed or beyond a final length.
 */
struct store_read {
    struct address address;
    uint32_t count;
    const struct iovec *iov; /* count * BLOCK_SIZE bytes in all; stays until done */
    uint32_t iov_count;
    void (*done)(struct store_read *read);
    int result;
    /* private: */
    struct store *store;
    uint32_t pending;
    struct store_cursor cursor;
    STAILQ_ENTRY(store_read) waiting;
};
void store_read(struct store *store, struct store_read *read);
/* The same, into one piece of memory; returns the result. */
async int store_read_wait(struct store *store, struct address address, uint32_t count,
                          void *ret_bytes);

/* Clears live bits of a final extent; durable at the next sync of the key-value store.
 * blocks: sorted block numbers; those at or above the length are ignored, and so are
 * headers as long as the extent has them. A whole extent without live blocks is deleted.
 * -PLX_EMISSING; -PLX_EPRECONDITION: it is not final. */
async int store_trim(struct store *store, struct address extent, const uint32_t *blocks,
                     uint32_t count);
/* The same for all headers and the roll record of a final extent, once and for all:
 * nobody may want to walk it any more. Idempotent. */
async int store_trim_headers(struct store *store, struct address extent);
/* What was trimmed so far is durable when this is answered. */
async int store_settle(struct store *store);
/* What another store says of its final copy of an extent. */
struct store_copy {
    uint64_t nonce;
    uint32_t length;
    bool has_headers;
    const uint8_t *live; /* as store_live_map */
};
/* What is dead there dies here, too, as if it was trimmed; headers all together or not at
 * all. -PLX_EMISSING; -PLX_EPRECONDITION: it is not final, or not the same. */
async int store_merge_live(struct store *store, struct address extent,
                           const struct store_copy *other);
/* A bit for each block, BITMAP_BYTES bytes; set: it is live. -PLX_EMISSING. */
int store_live_map(const struct store *store, struct address extent, uint8_t *ret_map);

/*
 * Reads all headers of an extent from block 0 on, in order, verifying the chain (not
 * the data), and calls fn on the task for each; entries/rolls by kind. fn returns 0, or
 * a code that ends the walk and is returned. Stops without error at the extent's length.
 * A header that fails its check inside the length is -PLX_EDAMAGED, and *ret_end (may
 * be NULL) is the block where the sound part ends.
 */
typedef int header_fn(void *arg, const struct header *head, const struct entry *entries,
                      const struct roll_entry *rolls);
async int store_walk_headers(struct store *store, struct address extent, header_fn *fn,
                             void *arg, uint32_t *ret_end);

/*
 * Reads everything that is live in an extent that is not open, and its headers or its
 * digest as long as they are there, and calls finding for whatever does not fit or
 * cannot be read. Blocks behind a damaged header, up to the next one, and all blocks if
 * the digest is damaged, cannot be checked but for being readable.
 * -PLX_EMISSING, also when it is deleted meanwhile; -PLX_EPRECONDITION: it is open;
 * -ENOMEM; or what a callback returned to end it.
 */
struct verify_callbacks {
    /* entry NULL: a header (then address is its own), the digest (then it is the
     * extent), or a block of which nothing is known. Not 0: ends it. */
    int (*finding)(void *arg, struct address address, const struct entry *entry,
                   int code);
    /* Every 256 KiB or so, on the task; may suspend for long. Not 0: ends it. NULL ok. */
    async int (*progress)(void *arg, uint64_t bytes);
    /* A live block of which nothing is known, readable or not; or one that is a header,
     * sound or not, and was not known to be one. NULL ok. */
    void (*unknown)(void *arg, uint32_t block);
    void *arg;
};
async int store_verify_extent(struct store *store, struct address extent,
                              const struct verify_callbacks *cb);

/* What the headers or the digest of an extent say of its blocks, live or dead, in order.
 * What owns no block is only in headers; `block` is that of the entry before it then. */
struct stored_entry {
    struct entry entry;
    uint32_t block;
    uint32_t generation; /* 0: the digest does not say */
};
/* Not 0: ends it. */
typedef int stored_entry_fn(void *arg, const struct stored_entry *stored);
/* Some may be told twice, if it is compacted meanwhile. What fn returned; -PLX_EMISSING;
 * -ENOMEM; or another code: headers or digest are damaged, and some were not told. */
async int store_list_entries(struct store *store, struct address extent,
                             stored_entry_fn *fn, void *arg);
/* Writes the bytes of a live block again, which are known to be what it was: crc is
 * theirs. Durable when it is answered. -PLX_EMISSING, -PLX_ENOTHERE, -PLX_EDEAD, or of
 * the file. */
async int store_mend_block(struct store *store, struct address address, const void *bytes,
                           uint32_t crc);
/* The same for a live header of a final extent: the bytes must be the one that stands
 * there. If it was not known to be a header, it is from now on, and dies with the others.
 * -PLX_EEXISTS: what is there is sound, and known; -PLX_ECHECKSUM: the bytes are another
 * header, or none; -PLX_EPRECONDITION: it is not final; else as above. */
async int store_mend_header(struct store *store, struct address address,
                            const void *bytes);
/* The headers of an extent, as store_live_map. -PLX_EMISSING; -PLX_EDEAD: they
 * are dead. */
int store_headers_map(const struct store *store, struct address extent, uint8_t *ret_map);
/* Moves a final extent, whose headers are dead, as compaction does, with a new digest:
 * what its headers or its digest do not say any more comes from `known`, by block, kind 0
 * for nothing. -PLX_EDAMAGED: of some block nothing is known after all, or it cannot be
 * read; -PLX_EMISSING; -PLX_EPRECONDITION: its headers are live, or it has changed;
 * -PLX_EFULL, -ENOMEM, -PLX_EFAILED. */
struct digest_entry_format;
async int store_describe_again(struct store *store, struct address extent,
                               const struct digest_entry_format *known);

#endif
