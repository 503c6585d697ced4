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

struct host_options {
    const char *store_path;    /* the store: a file, or a block device */
    const char *kv_path;       /* folder of its metadata */
    uint64_t capacity_bytes;   /* a new store's size; an old one grows to it; 0: keep */
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

/* Makes a new store and cluster of one. -PLX_EEXISTS if there is one already;
 * nothing half-made is left after an error. */
async int host_create(struct loop *loop, const struct host_options *options,
                      struct error *err);
/* Opens the store (restart scan of extents that were open) and the cluster state. */
async int host_open(struct loop *loop, const struct host_options *options,
                    struct host **ret_host, struct error *err);
/* Checkpoints and closes all disks, then the store. Every disk_open must have had its
 * disk_close. */
async void host_close(struct host *host);

struct loop *host_loop(struct host *host);
/* For payload of front ends, bounded by NBD_BUFFER_BYTES. */
struct buffer_pool *host_buffers(struct host *host);

struct host_status {
    struct uid cluster, store;
    uint64_t capacity_bytes, used_bytes, free_bytes;
    uint64_t disk_count, open_disk_count, snapshot_count;
    uint64_t node_cache_used_bytes, overlay_used_bytes, retained_used_bytes;
    bool failed;              /* out of service after a failed sync or metadata error */
    char health[128];         /* "ok", or what is wrong */
};
void host_status(struct host *host, struct host_status *ret_status);

struct disk_info {
    char name[DISK_NAME_MAX + 1];
    uint64_t id;
    uint64_t size_bytes;
    uint64_t used_bytes;      /* its own log in this store */
    uint32_t snapshot_count;
    uint32_t clients;         /* openings on this host */
    bool served;              /* somebody holds its lease */
    char owner[64];           /* who, if served */
    char parent[2 * DISK_NAME_MAX + 2]; /* "DISK@SNAP" or "" */
    uint64_t created_wall_ns;
};
struct snapshot_info {
    char name[DISK_NAME_MAX + 1];
    uint64_t id;
    uint64_t size_bytes;
    uint64_t created_wall_ns;
    uint32_t clone_count;
    bool pending;             /* durable; its map follows with the next checkpoint */
};

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

/* An import fills a disk nobody else sees until it is published. It is opened under its
 * name with disk_open. A host that restarts discards unpublished ones. */
async int import_begin(struct host *host, const char *name, struct error *err);
async int import_publish(struct host *host, const char *name, uint64_t size_bytes,
                         struct error *err);
async int import_discard(struct host *host, const char *name, struct error *err);

/* Reads all metadata and all data and verifies every checksum and count. */
struct check_report {
    uint64_t disks, snapshots, extents, nodes, blocks, bytes;
    uint64_t findings;
};
/* finding is called with one line for each damage, naming disk, offset and snapshot;
 * progress (may be NULL) now and then with bytes done and bytes expected. */
struct check_callbacks {
    void (*finding)(void *arg, const char *line);
    void (*progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes);
    void *arg;
};
async int host_check(struct host *host, const struct check_callbacks *callbacks,
                     struct check_report *ret_report, struct error *err);

#endif
