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
/* Nothing is under way, and no log is open. NULL ok. */
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
 * before -PLX_ECHECKSUM, before -PLX_ENOTHERE. done may be called from inside.
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

/* A copy of blocks that is not what it should be, found by a read. */
struct copies_bad {
    uint64_t node;
    struct address address;
    uint32_t count;
    int code;                /* -PLX_ECHECKSUM; -EIO: some of them cannot be read */
    const uint32_t *crcs;    /* what they should be */
};
/* Who repairs; called on the loop, must not suspend. fn NULL: nobody. */
void copies_on_bad(struct copies *copies,
                   void (*fn)(void *arg, const struct copies_bad *bad), void *arg);

#endif
