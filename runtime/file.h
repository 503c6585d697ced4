/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store file or raw block device, written and read with O_DIRECT through libaio;
 * simulated with power cuts, torn and reordered sectors by runtime/sim.h.
 *
 * Writes and reads complete in any order. A completed write survives the death of the
 * process; only a completed sync makes it survive the loss of power, and a sync covers
 * exactly the writes that had completed when it was submitted.
 */
#ifndef PARALLAX_RUNTIME_FILE_H
#define PARALLAX_RUNTIME_FILE_H

#include <sys/uio.h>

#include "runtime/base.h"
#include "runtime/error.h"

struct loop;
struct file;

enum file_op { FILE_READ, FILE_WRITE, FILE_SYNC };

/* One operation; embedded in the caller's request and valid until done is called. */
struct file_io {
    enum file_op op;
    uint64_t offset_bytes;   /* multiple of BLOCK_SIZE */
    const struct iovec *iov; /* each base and length multiples of BLOCK_SIZE */
    uint32_t iov_count;      /* 1 to FILE_IOV_MAX; 0 for a sync */
    void (*done)(struct file_io *io);
    int result; /* 0, or negative: short transfers are -EIO */
    /* private to the file: */
    struct file *file;
    uint64_t bytes;
    STAILQ_ENTRY(file_io) link;
    void *priv[10];
};

struct file_options {
    bool create;         /* make a new file; -EEXIST if there is one. A block
                          * device is just opened. */
    uint64_t size_bytes; /* with create on a file: its (sparse) size */
    bool read_only;
};

/* Opens and takes an exclusive lock (flock), so that no other process has it open:
 * -EBUSY, with a text that says so. */
async int file_open(struct loop *loop, const char *path,
                    const struct file_options *options, struct file **ret_file,
                    struct error *err);
/* Nothing may be in flight. */
void file_close(struct file *file);
uint64_t file_size_bytes(const struct file *file);
bool file_is_device(const struct file *file);
/* Grows a file (never shrinks); a device gives -ENOTSUP. */
async int file_grow(struct file *file, uint64_t size_bytes);
/* Gives the space of a range back to the file system, where it can; best effort. */
async int file_punch(struct file *file, uint64_t offset_bytes, uint64_t len_bytes);

/* Has the file system set space aside for a range, so that the first write into it does
 * not have to, and cannot find it full. -ENOSPC, maybe after a part of it; -ENOTSUP of a
 * file system that cannot. A device gives 0 and does nothing. */
async int file_allocate(struct file *file, uint64_t offset_bytes, uint64_t len_bytes);

/* Space in the file system of a file. -ENOTSUP for a device, or if that does not say. */
struct file_space {
    uint64_t stored_bytes; /* what the file occupies: holes do not count */
    uint64_t free_bytes;   /* what an ordinary user could still store there */
};
async int file_space(struct file *file, struct file_space *ret_space);

/* Starts io. done is never called from inside file_submit. Operations beyond
 * AIO_DEPTH wait in a queue. */
void file_submit(struct file *file, struct file_io *io);
/* Between these, submissions are collected and go to the kernel in one call. They
 * nest; the loop ends a plug by itself before it sleeps. */
void file_plug(struct loop *loop);
void file_unplug(struct loop *loop);

/* The same for a task, one at a time. */
async int file_read(struct file *file, void *ret_bytes, uint64_t len_bytes,
                    uint64_t offset_bytes);
async int file_write(struct file *file, const void *bytes, uint64_t len_bytes,
                     uint64_t offset_bytes);
async int file_sync(struct file *file);

#endif
