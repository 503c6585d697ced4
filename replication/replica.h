/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One member of a write set, as the log sees it: a table of functions, so that the log
 * treats a store in this process and one behind the network alike. Requests embed those
 * of blockstore/store.h, whose rules for each operation hold here, too.
 *
 * A member answers every request in bounded time: one that is lost answers what is in
 * flight with an error. `done` may be called from inside the call that starts a request.
 */
#ifndef PARALLAX_REPLICATION_REPLICA_H
#define PARALLAX_REPLICATION_REPLICA_H

#include "blockstore/store.h"
#include "replication/cluster_state.h"
#include "runtime/rpc.h"

struct replica;

#define REPLICA_LIST_MAX  16384U /* STORE_RPC_LIST_MAX */
#define REPLICA_USAGE_MAX 65536U /* STORE_RPC_USAGE_MAX */

struct replica_append {
    struct store_append store; /* the caller sets extent, epoch, block, slices ... */
    void (*done)(struct replica_append *append);
    int result;
    void *call;                /* the member's own, while it is under way */
};

struct replica_sync {
    struct address extent;     /* everything of it whose append is done becomes durable */
    uint64_t epoch;            /* under which it was created */
    struct store_sync store;
    void (*done)(struct replica_sync *sync);
    int result;
    void *call;
};

struct replica_read {
    struct store_read store;   /* address, count, iov: the caller's */
    void (*done)(struct replica_read *read);
    int result;
    void *call;
};

struct replica_create {
    struct address extent;
    uint64_t disk, epoch, nonce;
    uint32_t slabs_hint;
    bool keep_reserve;         /* nothing goes there that must find room */
    uint64_t index;            /* of the command that opened the extent; the member must
                                * have applied it */
    uint64_t limit_ns;         /* for a member that does not answer */
};

struct replica_ops {
    async int (*create)(struct replica *replica, const struct replica_create *what);
    void (*append)(struct replica *replica, struct replica_append *append);
    void (*sync)(struct replica *replica, struct replica_sync *sync);
    /* Gives one up whose done was not called yet: done is called with -ECANCELED, from
     * inside, and it may be carried out all the same. What a store in this process has
     * begun cannot be given up: then nothing happens, and done is called when it is. Of
     * what was given up the slices may be read until their buffers are released. */
    void (*cancel_append)(struct replica *replica, struct replica_append *append);
    void (*cancel_sync)(struct replica *replica, struct replica_sync *sync);
    async int (*stop)(struct replica *replica, struct address extent,
                      uint32_t *ret_length, bool *ret_restart_scanned);
    /* Stops first, if need be. Length 0 deletes; so does an absent extent then. */
    async int (*finalize)(struct replica *replica, struct address extent,
                          uint32_t length);
    /* Of a final extent that no take-over walks any more; an absent one is fine. */
    async int (*trim_headers)(struct replica *replica, struct address extent);
    async int (*walk_headers)(struct replica *replica, struct address extent,
                              header_fn *fn, void *arg, uint32_t *ret_end);
    void (*read)(struct replica *replica, struct replica_read *read);
    /* The same for a read. Nothing is written to what was given up. */
    void (*cancel_read)(struct replica *replica, struct replica_read *read);
    /* Clears what a payload of blockstore/trims.h names, of so many extents; durable when
     * it returns 0. ret_not_final: so many of them were left alone. */
    async int (*trim)(struct replica *replica, struct slice trims, uint32_t extent_count,
                      uint32_t *ret_not_final);
    /* Extents of a disk (0: of all) from an address on, in order: up to `max`, which is
     * at most REPLICA_LIST_MAX. */
    async int (*list)(struct replica *replica, uint64_t disk, struct address from,
                      uint32_t max, struct extent_info *ret_infos, uint32_t *ret_count,
                      bool *ret_more);
    /* Live blocks of disks behind `after`, in extents of these groups (le16, rising): of
     * up to REPLICA_USAGE_MAX disks. */
    async int (*usage)(struct replica *replica, struct slice groups, uint64_t after,
                       struct disk_blocks *ret_disks, uint32_t *ret_count,
                       bool *ret_more);
    void (*destroy)(struct replica *replica);
};

struct replica {
    const struct replica_ops *ops;
    uint64_t node;
};

/* The members that a new extent should have, and the group they are taken from. */
struct chosen {
    struct replica *members[REPLICAS_MAX]; /* the nearest first */
    uint32_t count;       /* 0: not as many are in reach as there must be */
    uint16_t group;       /* 0: group 1, without its rules */
    uint64_t group_epoch; /* EXTENT_OPEN is refused if the group has another by then */
};

/*
 * Where logs find members, one for each process. What it answers stays valid as long as
 * the directory, whatever becomes of the node: a member that is gone answers errors.
 */
struct replica_directory {
    /* NULL: there is no such node, or it was declared lost. */
    struct replica *(*find)(struct replica_directory *directory, uint64_t node);
    /* Does it answer, as far as is known? A guess, and costs nothing. */
    bool (*in_reach)(struct replica_directory *directory, uint64_t node);
    /* Is there a connection to it now? ret_since_ns: when the last one was made
     * (loop_now_ns), also if it is gone; 0: never. */
    bool (*is_connected)(struct replica_directory *directory, uint64_t node,
                         uint64_t *ret_since_ns);
    /* For a new extent of this disk; none of its members is in `avoid`. */
    struct chosen (*choose)(struct replica_directory *directory, uint64_t disk,
                            const uint64_t *avoid, uint32_t avoid_count);
};

/* The store in this process. NULL: no memory. */
struct replica *replica_local_create(struct store *store, uint64_t node);
/* The store of another node, if it still is this one. NULL: no memory. */
struct replica *replica_remote_create(struct rpc *rpc, uint64_t node,
                                      struct uid incarnation);

#endif
