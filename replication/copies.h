/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents wherever their copies are: which nodes have them, reading from the nearest that
 * is sound, and what is to be done to all of them. One for each process. doc/copies.md.
 *
 * Who has an extent: the members of its group. A member that is *whole* has all of it;
 * another one may lack any part, and says so.
 *
 * In a process that is alone (no rpc) everything is done in its own store, at no cost but
 * that of the store.
 */
#ifndef PARALLAX_REPLICATION_COPIES_H
#define PARALLAX_REPLICATION_COPIES_H

#include "blockstore/store.h"
#include "blockstore/trims.h"
#include "replication/cluster.h"
#include "replication/replica.h"

struct copies;
struct rpc;

/* A member that has not answered a read for so long is not waited for alone. */
#define COPIES_SLOW_MS     500U
/* For so long members that cannot be asked are asked again, before a read fails. */
#define COPIES_PATIENCE_MS 20000U

struct copies_options {
    struct loop *loop;
    struct cluster *cluster;
    struct store *store;     /* the one in this process */
    uint64_t node;           /* this node's id */
    struct rpc *rpc;         /* to the others; NULL: this node is alone */
    struct buffer_pool *buffers; /* for what is sent to others */
    uint32_t slow_ms, patience_ms; /* 0: as above */
};

/* -ENOMEM */
int copies_create(const struct copies_options *options, struct copies **ret_copies);
/* Ends what it does by itself. Reads go on. */
async void copies_stop(struct copies *copies);
/* It was stopped, nothing is under way, and no log is open. NULL ok. */
void copies_destroy(struct copies *copies);

/* Where logs find members, and are told which to take for a new extent. */
struct replica_directory *copies_directory(struct copies *copies);

/* --- reading --- */

/*
 * Reads count blocks that lie in one extent, verified against crcs. The members of its
 * group are asked one after the other until each block has come sound: this node first,
 * then those in reach that have answered well lately, the least busy first. One that is
 * slow is not waited for alone.
 *
 * -PLX_EDEAD: a member says that a block is dead, so the map is to be looked up again.
 * If no copy is sound: an error that may pass (a member could not be asked), before -EIO,
 * before -PLX_ECHECKSUM, before -PLX_ENOTHERE. That it is "not here" a whole member
 * knows, whoever else cannot be asked. done may be called from inside.
 */
struct log_read {
    struct address address;
    uint32_t count;
    const struct iovec *iov; /* count * BLOCK_SIZE bytes; stays until done */
    uint32_t iov_count;
    const uint32_t *crcs;    /* one per block; stays until done */
    void (*done)(struct log_read *read);
    int result;
    uint32_t bad_block;      /* with -PLX_ECHECKSUM: the first bad one, 0-based */
    /* private: */
    struct copies *copies;
    struct store_read store;
    uint64_t begun_ns;
    TAILQ_ENTRY(log_read) link;
    void *priv;
};
/* For any block of any disk; does not need a log or a lease. */
void copies_read(struct copies *copies, struct log_read *read);
/* The same, into one piece of memory; returns the result. ret_bad may be NULL. */
async int copies_read_wait(struct copies *copies, struct address address,
                           const uint32_t *crcs, uint32_t count, void *ret_bytes,
                           uint32_t *ret_bad);

/* A copy of blocks that is not what it should be, found by a read. */
struct copies_bad {
    uint64_t node;
    struct address address;
    uint32_t count;
    int code;                /* -PLX_ECHECKSUM; -EIO: some of them cannot be read */
    const uint32_t *crcs;    /* what they should be */
};
/* For who wants to know; called on the loop, must not suspend. fn NULL: nobody. */
void copies_on_bad(struct copies *copies,
                   void (*fn)(void *arg, const struct copies_bad *bad), void *arg);

/* A block of this node's store is not what it should be: it is written again, if another
 * member has it sound. Reads do that by themselves. */
void copies_mend(struct copies *copies, struct address address, uint32_t crc);

/* Something in an extent of this node's store is not what it should be, maybe a header,
 * or a block of which nobody here knows what it should be: what has to be done about it
 * is recovery's. Without one nothing is done. */
void copies_mend_extent(struct copies *copies, struct address extent);
void copies_on_damage(struct copies *copies, void (*fn)(void *arg, struct address extent),
                      void *arg);

/*
 * --- what is done to all copies ---
 *
 * It is done when every member that counts has answered: all that are whole, and all that
 * are up. One that is down and not whole is passed over: before it becomes whole it takes
 * over from the others what it missed. Doing something again is harmless.
 *
 * Besides what stores answer: -EHOSTUNREACH, -ETIMEDOUT, -ECONNRESET and the like, when a
 * member that counts did not answer. Try again later; see copies_may_pass.
 */

/* Can blocks of the extent be trimmed? It stays true. It is, once its length is final on
 * all members, and for one that is gone. */
bool copies_can_trim(const struct copies *copies, struct address extent);
/* The disk that lists the extent while it cannot be trimmed; 0: it can. */
uint64_t copies_writer(const struct copies *copies, struct address extent);
/* Clears the live bits of runs, sorted by address; durable, unless this node is alone:
 * then with the next synced write of its metadata. Extents that are gone are passed over.
 * -PLX_EPRECONDITION: one is not final where it should be. ret_blocks: so many were given
 * to stores that have them. */
async int copies_trim(struct copies *copies, const struct block_run *runs, uint32_t count,
                      uint64_t *ret_blocks);
/* Lets the headers of an extent go that no take-over walks any more. */
async int copies_trim_headers(struct copies *copies, struct address extent);
/* Makes all of the write set final at the length that is committed. */
async int copies_finalize(struct copies *copies, const struct log_extent *extent);

/* An error that may be gone when it is tried again. */
bool copies_may_pass(int code);

/* --- what there is --- */

/* No other node has anything, or is asked for anything. */
bool copies_are_alone(const struct copies *copies);
/* Is this node the only member of the extent's group? */
bool copies_only_here(const struct copies *copies, struct address extent);
/* The extents of a disk on all members of all groups, each once, as its most finished
 * copy has it; malloc'd and the caller's, sorted. ret_complete: of every group a whole
 * member answered, and so did all that are up. */
async int copies_list(struct copies *copies, uint64_t disk,
                      struct extent_info **ret_infos, size_t *ret_count,
                      bool *ret_complete);
/* How many blocks live in the extents of each disk, each counted once; malloc'd and the
 * caller's, sorted by disk. ret_complete: a whole member of every group was asked. */
async int copies_usage(struct copies *copies, struct disk_blocks **ret_disks,
                       size_t *ret_count, bool *ret_complete);

#endif
