/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every bound of the daemon, in one place. Full means wait or refuse, visibly.
 * doc/limits.md adds the memory ones up.
 */
#ifndef PARALLAX_RUNTIME_LIMITS_H
#define PARALLAX_RUNTIME_LIMITS_H

#include "runtime/base.h"

/* --- the log --- */
#define EXTENT_BLOCKS      16384U /* 64 MiB, 14 bits of an address */
#define SLAB_BYTES         (1 * MIB) /* allocation unit, open extents */
#define SLAB_BLOCKS        ((uint32_t)(SLAB_BYTES / BLOCK_SIZE))
#define PIECE_BYTES        (64 * KIB) /* allocation unit, final extents */
#define PIECE_BLOCKS       ((uint32_t)(PIECE_BYTES / BLOCK_SIZE))
#define EXTENT_SLABS       (EXTENT_BLOCKS / SLAB_BLOCKS)
#define BATCH_BLOCKS       255U /* data blocks behind one header */
#define BATCH_BLOCKS_BUSY  63U                          /* when others wait: 256 KiB */
#define BATCHES_INFLIGHT   4U                           /* per disk */
/* After a forced roll, of small ones, while guests wait: and no more bytes. */
#define BATCHES_INFLIGHT_AGAIN 32U
#define EXTENTS_AHEAD      2U                           /* opened ahead per disk */
#define RETAINED_BYTES_DISK   (64 * MIB)
#define RETAINED_BYTES_TOTAL  (128 * MIB)
#define SYNC_EVERY_BYTES      (16 * MIB)
#define SYNC_EVERY_MS         1000U
#define LOG_EXTENTS_MAX    100U                         /* unfolded tail of one disk */
/* For a member of several. Longer than a device's worst moments, shorter than guests
 * notice; a member that was left out has to be brought up again, which costs. */
#define LOG_APPEND_LIMIT_MS   1000U
#define LOG_SYNC_LIMIT_MS     5000U
#define LOG_CREATE_LIMIT_MS   1000U

static_assert(EXTENT_BLOCKS % SLAB_BLOCKS == 0, "an extent is whole slabs");
static_assert(SLAB_BYTES % PIECE_BYTES == 0, "a slab is whole pieces");
static_assert((uint64_t)EXTENT_BLOCKS * BLOCK_SIZE >= RETAINED_BYTES_DISK,
              "one extent opened ahead has room for all that is retained");

/* --- one disk --- */
#define DISK_BYTES_MAX        (16 * TIB)
#define DISK_NAME_MAX         128U                      /* bytes, without the NUL */
#define FROZEN_LAYERS_MAX     8U
#define FROZEN_LAYERS_SOON    3U                        /* asks for a checkpoint */
#define CHECKPOINT_LOG_BYTES  (256 * MIB)
#define IDLE_CLOSE_MS         10000U                    /* without clients */
#define CHECKPOINT_EVERY_MS   600000U
#define DISK_IO_INFLIGHT_MAX  4096U                     /* operations of one disk */

/* --- background work --- */
#define SCRUB_EVERY_S         (30 * 86400U)             /* unless it is paused */
#define SCHEDULE_LOOK_S       60U                       /* at least so often */
#define SCHEDULE_RETRY_S      300U                      /* a disk that failed */

/* --- caches and budgets of a daemon, bytes --- */
#define NODE_CACHE_BYTES      (64 * MIB)
#define OVERLAY_BYTES_TOTAL   (64 * MIB)
#define LOG_BUFFER_BYTES      (32 * MIB)                /* headers, map nodes in flight */
/* Front ends' payload: what is retained, and 48 MiB that is not committed yet. */
#define NBD_BUFFER_BYTES      (RETAINED_BYTES_TOTAL + 48 * MIB)
#define BATCH_IDLE_BYTES_TOTAL (2 * MIB)                /* kept for reuse, of all disks */

/* LevelDB, batches, I/O vectors, 100 open disks, the cluster state of 10,000 disks:
 * doc/limits.md. */
#define DAEMON_REST_BYTES     (57 * MIB)
#define DAEMON_BYTES_MAX      (512 * MIB)

/* --- tasks --- */
#define TASK_STACKS_MAX       512U
#define TASK_STACKS_SYSTEM    64U                       /* of these, not for guests */
#define TASK_STACK_BYTES      (64 * KIB)                /* more under sanitizers */

/* --- connections between nodes, of one net --- */
#define NET_OPENING_MAX       64U                       /* accepted, not yet proven */
#define NET_OPEN_MS           5000U                     /* for a handshake */
#define NET_OPENING_KEEP_MS   250U                      /* then it gives way */
#define NET_SILENT_KEEP_MS    50U                       /* ... if it says nothing */
#define NET_NOBODIES_MAX      64U                       /* without a certificate */
#define NET_NOBODY_MS         60000U                    /* then they must go */
#define NET_LOOKUPS_MAX       16U                       /* names looked up at once */
#define NET_ADDRESSES_MAX     8U                        /* of a name, tried in turn */
#define NET_LISTENERS_MAX     16U
#define NET_INPUT_BYTES       (64 * KIB)                /* read from a socket at once */
#define NET_OUTPUT_BYTES      (256 * KIB)               /* sealed ahead of the kernel */
#define NET_GRACE_S           (30 * 86400U)             /* for a certificate's end */

/* --- disk I/O --- */
#define AIO_DEPTH             512U                      /* in the kernel at once */
#define FILE_IOV_MAX          260U                      /* vectors of one operation */

static_assert(NET_SILENT_KEEP_MS < NET_OPENING_KEEP_MS, "the silent go first");
static_assert(NET_OPENING_KEEP_MS < NET_OPEN_MS, "it may take longer if nobody waits");
static_assert(FILE_IOV_MAX >= BATCH_BLOCKS + 1, "a batch is one vectored write");

#endif
