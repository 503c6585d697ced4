/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything one daemon has of the block store: its store, the cluster state and the
 * open disks, and the administrative operations on them. All functions run on the
 * host's loop; those marked async need a task.
 */
#ifndef PARALLAX_COW_HOST_H
#define PARALLAX_COW_HOST_H

#include "cow/disk.h"
#include "runtime/runtime.h"

struct host;
struct log_piece;
struct kv;
struct store;
struct cluster;
struct replica_directory;
struct copies;
struct rpc;

/* What a process has opened already; all of it outlives the host. */
struct host_parts {
    struct kv *kv;
    struct store *store;
    struct cluster *cluster;
    struct copies *copies;               /* NULL: the store alone */
    struct replica_directory *directory; /* for tests; NULL: that of the copies */
    struct rpc *rpc;                     /* to the other hosts; NULL: there are none */
    uint64_t node;
};

struct host_options {
    const char *store_path;    /* the store: a file, or a block device */
    const char *kv_path;       /* folder of its metadata */
    const struct host_parts *parts; /* NULL: host_open opens them, at these paths */
    uint64_t capacity_bytes;   /* a new store's size; an old one grows to it; 0: keep */
    /* host_create: the new store is to be one of this cluster, which knows it by this
     * identity. All zeros: it gets a cluster of its own. */
    struct uid cluster, incarnation;
    uint64_t node_cache_bytes; /* 0: default of limits.h; the same for the next */
    uint64_t overlay_bytes;
    uint64_t retained_bytes;
    uint64_t checkpoint_log_bytes;
    uint32_t idle_close_ms;    /* how long a disk without clients stays open */
    bool no_idle_work;         /* for tests: no zero-filling, no timed checkpoints */
    /* For tests: called when a batch gets its number, in order of commit; see
     * replication/disk_log.h. */
    void (*sealed)(void *arg, uint64_t disk, const struct log_piece *pieces,
                   uint32_t count, uint64_t number);
    void *sealed_arg;
};

/* Makes a new store and a cluster of one, or only a store, of the cluster of the options.
 * -PLX_EEXISTS if there is one already; nothing half-made is left after an error. */
async int host_create(struct loop *loop, const struct host_options *options,
                      struct error *err);
/* Opens the store (restart scan of extents that were open) and the cluster state. */
async int host_open(struct loop *loop, const struct host_options *options,
                    struct host **ret_host, struct error *err);
/* It will be closed when its front ends have let go of their disks. From now on nothing
 * waits for other hosts without end: what does not get on for HOST_STOP_WAIT_MS fails.
 * What was acknowledged is found by the next one who opens the disk. */
#define HOST_STOP_WAIT_MS 15000U
void host_stop_soon(struct host *host);
/* Checkpoints and closes all disks, then the store. Every disk_open must have had its
 * disk_close. */
async void host_close(struct host *host);

struct loop *host_loop(struct host *host);
struct cluster *host_cluster(struct host *host);
uint64_t host_node(struct host *host); /* its number in the cluster */
/* What front ends have asked of its disks so far, in operations; see ROOM_OP_BYTES. */
uint64_t host_guest_ops(const struct host *host);
/* For payload of front ends, bounded by NBD_BUFFER_BYTES. */
struct buffer_pool *host_buffers(struct host *host);

struct host_status {
    struct uid cluster, store;
    uint64_t capacity_bytes, used_bytes, free_bytes;
    uint64_t disk_count, open_disk_count, snapshot_count;
    uint64_t node_cache_used_bytes, overlay_used_bytes, retained_used_bytes;
    /* What of the capacity the file system of a store in a file has no room for: neither
     * used nor free. What it had free when it was last looked at, and what of that data
     * leaves to the metadata. has_host: it is not a device. */
    uint64_t withheld_bytes, host_free_bytes, host_reserve_bytes;
    bool has_host;
    bool failed;              /* out of service: syncs, metadata or writes fail */
    int failed_code;          /* why */
    char health[128];         /* "ok", or what is wrong */
    /* What the used space is: live (some disk or snapshot reaches it, or replay needs
     * it), dead but not yet given back, and the rest in partly used slabs. */
    uint64_t live_bytes, dead_bytes;
    uint64_t reserve_bytes; /* of what is free, for checkpoints: guests do not get it */
    uint64_t trash_count, trash_bytes; /* removed disks that can still be restored */
    /* Versions and disks that are to go away and have not gone yet; of the one at work,
     * what was freed so far. */
    uint64_t reclaim_pending;
    bool reclaim_running;
    uint64_t reclaim_freed_bytes;      /* by all reclaims of this process */
    bool compacting;
    uint64_t compact_runs, compact_bytes_read, compact_bytes_written;
    /* Thin provisioning: the sum of all disks' sizes; snapshots come on top. */
    uint64_t committed_bytes;
    /* "" or what will hurt soon, for people: free space below 20 % or 10 %, of what there
     * is room for; less left in the file system than the metadata may need. */
    char warning[192];
};
void host_status(struct host *host, struct host_status *ret_status);
/* Looks at the file system first. */
async void host_status_now(struct host *host, struct host_status *ret_status);

struct disk_info {
    char name[DISK_NAME_MAX + 1];
    uint64_t id;
    uint64_t size_bytes;
    uint64_t used_bytes;      /* live, of its own log; one copy */
    uint32_t snapshot_count;
    uint32_t clients;         /* openings on this host */
    bool served;              /* somebody holds its lease */
    bool is_elsewhere;        /* by another node: of its clients nothing is known here */
    char owner[64];           /* who, if served */
    char pool[DISK_NAME_MAX + 1];
    bool is_moving;           /* to that pool */
    uint32_t moved_percent;   /* of it, looked at in the pass under way, if open here */
    char parent[2 * DISK_NAME_MAX + 2]; /* "DISK@SNAP" or "" */
    uint64_t created_wall_ns;
    uint64_t quota_bytes;     /* 0: none */
};
struct snapshot_info {
    char name[DISK_NAME_MAX + 1];
    uint64_t id;
    uint64_t size_bytes;
    uint64_t created_wall_ns;
    uint32_t clone_count;
    bool pending;             /* durable; its map follows with the next checkpoint */
};

/* Lists tell what disks use as this counted it last, which takes asking other hosts, if
 * there are any. */
async void host_count_used(struct host *host);
/* Arrays are malloc'd and the caller's; sorted by name, snapshots by age. */
int disk_list(struct host *host, struct disk_info **ret_infos, size_t *ret_count);
int disk_show(struct host *host, const char *name, struct disk_info *ret_info,
              struct error *err);
int snapshot_list(struct host *host, const char *disk, struct snapshot_info **ret_infos,
                  size_t *ret_count, struct error *err);

/* size_bytes: multiple of BLOCK_SIZE, at most DISK_BYTES_MAX. Names: 1 to DISK_NAME_MAX
 * bytes of letters, digits and . _ - + : (not first: . - +), so never '@' or '/'. */
async int disk_create(struct host *host, const char *name, uint64_t size_bytes,
                      struct error *err);
/* With the copies of this pool; NULL: of the default one. */
async int disk_create_in_pool(struct host *host, const char *name, uint64_t size_bytes,
                              const char *pool, struct error *err);
/* Shrinking is refused while clients are attached; growing never is. */
async int disk_resize(struct host *host, const char *name, uint64_t size_bytes,
                      struct error *err);
async int disk_rename(struct host *host, const char *old_name, const char *new_name,
                      struct error *err);
/* The snapshot holds every write that was done before the call, and no part of one that
 * is submitted after it returned; it is one moment in the order of commits. */
async int snapshot_create(struct host *host, const char *disk, const char *snapshot,
                          struct error *err);
/* The disk becomes what the snapshot is; refused while clients are attached. */
async int snapshot_rollback(struct host *host, const char *disk, const char *snapshot,
                            struct error *err);
/* snapshot NULL: of the disk as it is now (an unnamed snapshot is made). count 1 makes
 * `name`; more make name-1 … name-count, all or none, in one commit. */
async int disk_clone(struct host *host, const char *disk, const char *snapshot,
                     const char *name, uint32_t count, struct error *err);

/*
 * Going away. A name goes at once, what only it held follows in the background
 * (doc/reclaim.md).
 */

/* All of these snapshots or, if one is missing, none. Whoever reads one keeps it until he
 * is done. */
async int snapshot_remove(struct host *host, const char *disk,
                          const char *const *snapshots, uint32_t count,
                          struct error *err);

enum {
    DISK_REMOVE_RECURSIVE = 1, /* its snapshots, too; without it they are a refusal */
};
/* Into the trash, or for good when trash_keep is 0. -PLX_EBUSY while clients are attached
 * to it or one of its snapshots. Clones of it are not affected. */
async int disk_remove(struct host *host, const char *name, unsigned flags,
                      struct error *err);

struct trash_info {
    char name[DISK_NAME_MAX + 1]; /* that it had */
    uint64_t id;
    uint64_t size_bytes;
    uint64_t used_bytes;          /* live, of its own log; one copy */
    uint32_t snapshot_count;
    uint64_t trashed_wall_ns, expires_wall_ns; /* then it goes for good */
};
/* malloc'd and the caller's; oldest first. Several may have had one name. */
int trash_list(struct host *host, struct trash_info **ret_infos, size_t *ret_count);
/* The newest of that name; new_name NULL: under the name it had. */
async int trash_restore(struct host *host, const char *name, const char *new_name,
                        struct error *err);
/* For good: all of that name, or (NULL) all there is. */
async int trash_empty(struct host *host, const char *name, struct error *err);
/* How long removed disks are kept; 0: not at all, which empties the trash, too. */
async int trash_set_keep(struct host *host, uint64_t seconds, struct error *err);
uint64_t trash_keep(struct host *host);

/*
 * Data blocks, without the map (a 256th of it or so). exclusive: what removing it alone
 * would free; shared: the rest of what it reaches. Figures of a disk in use are of its
 * last checkpoint, for which one is made if anything was written since.
 */
struct disk_usage {
    uint64_t referenced_bytes, exclusive_bytes, shared_bytes;
};
/* snapshot NULL: of the disk itself. */
async int disk_usage(struct host *host, const char *disk, const char *snapshot,
                     struct disk_usage *ret_usage, struct error *err);

/* A range that may have changed, in order; is_zero: it reads as zeros now. Not 0: ends
 * the diff, which returns it. */
typedef int diff_fn(void *arg, uint64_t offset_bytes, uint64_t len_bytes, bool is_zero);
/* What differs between two snapshots of the disk (either may be the older one), or from
 * one to the disk as it is (to NULL). Blocks that were written again with the same bytes
 * count as changed. Where sizes differ, what only `to` has is compared with zeros; what
 * only `from` has is left out. */
async int snapshot_diff(struct host *host, const char *disk, const char *from,
                        const char *to, diff_fn *fn, void *arg, struct error *err);

/* For front ends: the version behind a name, of the disk an open one belongs to. */
int disk_find_snapshot(struct disk *disk, const char *snapshot, uint64_t *ret_version,
                       struct error *err);
struct disk_change_range {
    uint64_t len_bytes;
    bool changed;
};
/* What of [offset, offset + len) of an open disk or snapshot is not as it was in that
 * version of the same disk: as disk_block_status answers, of one moment. -PLX_EMISSING:
 * the version has lost its name since. */
async int disk_changed_since(struct disk *disk, uint64_t version, uint64_t offset_bytes,
                             uint64_t len_bytes, struct disk_change_range *ret_ranges,
                             uint32_t max, uint32_t *ret_count);

/* Snapshots by the clock: one every so many seconds, of which the newest so many are
 * kept. doc/schedule.md. */
#define SCHEDULE_RULES_MAX 8U
struct snapshot_rule {
    uint64_t every_s;
    uint32_t keep;
};
/* count 0: no schedule. */
async int schedule_set(struct host *host, const char *disk,
                       const struct snapshot_rule *rules, uint32_t count,
                       struct error *err);
/* Up to SCHEDULE_RULES_MAX. */
int schedule_get(struct host *host, const char *disk, struct snapshot_rule *ret_rules,
                 uint32_t *ret_count, struct error *err);

/* Live bytes that the disk's own extents may hold, what its snapshots keep included;
 * writes above it answer "no space". 0: none. */
async int disk_set_quota(struct host *host, const char *disk, uint64_t bytes,
                         struct error *err);

/* The pool that the disk's head is in from now on: what is written goes there at once,
 * the head's own blocks follow in the background (disk_info.is_moving). Snapshots, and
 * what a clone shares with its source, stay where they are. */
async int disk_set_pool(struct host *host, const char *disk, const char *pool,
                        struct error *err);

/* An import fills a disk nobody else sees until it is published. It is opened under its
 * name with disk_open. A host that restarts discards unpublished ones. */
async int import_begin(struct host *host, const char *name, struct error *err);
async int import_publish(struct host *host, const char *name, uint64_t size_bytes,
                         struct error *err);
async int import_discard(struct host *host, const char *name, struct error *err);

/*
 * Reads all metadata and all data and verifies every checksum and count, and whether
 * every live block of the store is one that some disk, snapshot or list still names.
 * Works while disks are in use; what was written since it began is left out.
 */
enum {
    CHECK_REPAIR = 1, /* frees what is lost, rebuilds map nodes that cannot be read */
};
struct check_report {
    uint64_t disks, snapshots, extents, nodes, blocks, bytes;
    uint64_t findings;
    uint64_t lost_blocks;      /* live, but nothing reaches them */
    uint64_t repaired_blocks;  /* of these, freed */
    uint64_t dead_reachable;   /* reached, but no longer live: damage */
    uint64_t rebuilt_nodes;    /* map nodes; each is a finding, too */
    uint64_t elsewhere;        /* disks that others own: their hosts check these */
};
/* finding is called with one line for each damage, naming disk, offset and snapshot;
 * progress (may be NULL) now and then with bytes done and bytes expected. */
struct check_callbacks {
    void (*finding)(void *arg, const char *line);
    void (*progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes);
    bool (*cancelled)(void *arg); /* may be NULL; true ends it with -PLX_ECANCELLED */
    void *arg;
};
async int host_check(struct host *host, unsigned flags,
                     const struct check_callbacks *callbacks,
                     struct check_report *ret_report, struct error *err);

/*
 * Scrub: reads everything the store holds in the background and compares it with the
 * checksums beside it; guests come first. It goes on after a restart, and begins by
 * itself every SCRUB_EVERY_S, unless it is paused. doc/scrub.md.
 */
struct scrub_status {
    bool running, paused;
    uint64_t done_bytes, total_bytes;
    uint64_t findings;
    uint64_t started_wall_ns, finished_wall_ns; /* 0: not yet */
    uint64_t rate_bytes_s;    /* at most; 0: whatever guests leave */
};
/* bytes_per_s 0: no limit but the guests. Of a paused one, or one under way: goes on, at
 * this rate. */
async int scrub_start(struct host *host, uint64_t bytes_per_s, struct error *err);
/* Also when none is under way: then none begins by itself. */
void scrub_pause(struct host *host);
void scrub_status(struct host *host, struct scrub_status *ret_status);
/* The newest lines of this pass, or of the last one, oldest first, at most 256. */
void scrub_findings(struct host *host, void (*fn)(void *arg, const char *line),
                    void *arg);

#endif
