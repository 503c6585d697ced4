/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtual disk, or a read-only snapshot of one: what front ends serve.
 * doc/request-life.md follows a write and a read through it.
 */
#ifndef PARALLAX_COW_DISK_H
#define PARALLAX_COW_DISK_H

#include "runtime/runtime.h"

struct host;
struct disk;

/* Largest disk_io of kind READ or WRITE: the blocks it touches fit one buffer. */
#define DISK_IO_BYTES_MAX BUFFER_BYTES_MAX

enum disk_op { DISK_READ, DISK_WRITE, DISK_FLUSH, DISK_TRIM, DISK_ZERO };

enum {
    DISK_FUA = 1,       /* done only when this operation is durable */
    DISK_NO_HOLE = 2,   /* with ZERO: accepted, reserves nothing */
    DISK_FOR_OTHERS = 4, /* private: a READ that another host forwarded */
};

/*
 * One operation; embedded in the front end's request, valid until done is called.
 *
 * The caller provides the buffer of a READ or WRITE. The byte of disk offset o lies at
 * buffer->data[o - round_down(offset_bytes, BLOCK_SIZE)], so whole blocks are aligned
 * both on the disk and in memory; the disk may fill the parts of the first and last
 * block outside the range. The buffer must hold all touched blocks. The disk takes its
 * own reference to a WRITE's buffer, whose content must not change any more, not even
 * after done: it is retained until it is durable.
 *
 * Any offset and length from 1 byte up within the disk is allowed; TRIM and ZERO may be
 * as long as the disk; TRIM ignores parts of blocks, ZERO merges them. Operations in
 * flight at the same time have no order between them unless they overlap a partial
 * block; one that is submitted after another's done sees its effect.
 */
struct disk_io {
    enum disk_op op;
    unsigned flags;
    uint64_t offset_bytes, len_bytes;
    struct buffer *buffer;
    void (*done)(struct disk_io *io); /* never called from inside disk_submit */
    int result;                       /* 0 or negative; see err_to_errno */
    uint32_t opened;                  /* disk_opened, of when its client opened it */
    /* private to the disk: */
    uint64_t started_ns;
    uint64_t first, end;              /* blocks it touches */
    uint32_t parts;                   /* records not done yet */
    bool partial;                     /* part of a block: needs it for itself */
    bool waiting, listed;
    struct disk *disk;
    TAILQ_ENTRY(disk_io) link;
    struct task_call task;
};

/*
 * Starts io. Refusals (out of range, read-only, shut down) come through done, too:
 * -EINVAL, -EROFS, -ENOSPC (write past the end), -PLX_EEPOCH. Does not suspend.
 */
void disk_submit(struct disk *disk, struct disk_io *io);

enum disk_access {
    DISK_READ_ONLY,
    DISK_READ_WRITE,
    DISK_INCOMING, /* as READ_WRITE; and if another host owns it, it stays there until
                    * the first change comes: doc/hand-over.md. Not of a snapshot */
};

/*
 * Opens "NAME" or "NAME@SNAP" (always read-only) for one more front-end connection; the
 * first opening of a disk is its take-over: lease, stop, cut, replay. Snapshots are
 * shared freely. Several connections of this host share one open disk. One that another
 * host owns is asked for there, and comes if no client of it is there.
 * Errors: PLX_EMISSING, PLX_EOWNED and PLX_EBUSY (the text names the owner),
 * PLX_EDAMAGED, ...
 */
async int disk_open(struct host *host, const char *name, enum disk_access access,
                    struct disk **ret_disk, struct error *err);
/* Has the disk owned by this host, for a while: as opening and closing it does. Refused,
 * with a text that names the node, while a client elsewhere uses it: such a disk moves
 * when its client does (DISK_INCOMING). */
async int disk_pull(struct host *host, const char *name, struct error *err);
/* The same by force, though its owner does not give it up, and may be serving a client:
 * that one's changes fail from now on. What was acknowledged to it is kept. */
async int disk_break(struct host *host, const char *name, struct error *err);
/* Gives one opening back; nothing of it may be in flight. After the last one the disk
 * stays open for a while, then checkpoints and gives up its lease by itself. */
void disk_close(struct disk *disk);

uint64_t disk_size_bytes(const struct disk *disk);
/* For the operations of a client that opens it now: what he may, once the disk has been
 * handed over to another host and back. */
uint32_t disk_opened(const struct disk *disk);
bool disk_is_read_only(const struct disk *disk);
const char *disk_name(const struct disk *disk); /* as given to disk_open */

enum disk_status_kind { DISK_DATA, DISK_HOLE /* reads as zeros */ };
struct disk_range {
    uint64_t len_bytes;
    enum disk_status_kind kind;
};
/* What [offset, offset + len) consists of, from its start: fills up to max ranges,
 * adjacent ones of equal kind merged; the last may end before offset + len, but never
 * beyond it. *ret_count is at least 1 on success. */
async int disk_block_status(struct disk *disk, uint64_t offset_bytes, uint64_t len_bytes,
                            struct disk_range *ret_ranges, uint32_t max,
                            uint32_t *ret_count);

struct loop *disk_loop(const struct disk *disk);

#endif
