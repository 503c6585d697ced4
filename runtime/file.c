/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all files share: checks of each operation, once, before the implementation sees
 * it, and the wrappers that let a task wait for one.
 */
#include "runtime/file.h"

#include "runtime/limits.h"
#include "runtime/loop_internal.h"

async int file_open(struct loop *loop, const char *path,
                    const struct file_options *options, struct file **ret_file,
                    struct error *err)
{
    assert(task_current() != NULL);
    assert(!options->create || options->size_bytes % BLOCK_SIZE == 0);
    return loop->ops->file_open(loop, path, options, ret_file, err);
}

void file_close(struct file *file)
{
    assert(file->inflight == 0);
    file->ops->close(file);
}

uint64_t file_size_bytes(const struct file *file)
{
    return file->size_bytes;
}

bool file_is_device(const struct file *file)
{
    return file->is_device;
}

async int file_grow(struct file *file, uint64_t size_bytes)
{
    assert(task_current() != NULL);
    assert(size_bytes % BLOCK_SIZE == 0);
    if (file->is_device)
        return -ENOTSUP;
    if (size_bytes <= file->size_bytes)
        return 0;
    return file->ops->grow(file, size_bytes);
}

async int file_punch(struct file *file, uint64_t offset_bytes, uint64_t len_bytes)
{
    assert(task_current() != NULL);
    assert(offset_bytes % BLOCK_SIZE == 0 && len_bytes % BLOCK_SIZE == 0);
    assert(offset_bytes <= file->size_bytes);
    assert(len_bytes <= file->size_bytes - offset_bytes);
    return len_bytes == 0 ? 0 : file->ops->punch(file, offset_bytes, len_bytes);
}

async int file_allocate(struct file *file, uint64_t offset_bytes, uint64_t len_bytes)
{
    uint64_t end;
    bool fits = add_u64(offset_bytes, len_bytes, &end) && end <= file->size_bytes;
    if (!fits)
        return -EINVAL;
    return len_bytes == 0 || file->is_device
               ? 0
               : file->ops->allocate(file, offset_bytes, len_bytes);
}

async int file_space(struct file *file, struct file_space *ret_space)
{
    assert(task_current() != NULL);
    return file->is_device ? -ENOTSUP : file->ops->space(file, ret_space);
}

/* The length of all vectors; O_DIRECT needs each of them aligned. */
static uint64_t vectors_bytes(const struct file_io *io)
{
    assert(io->iov_count >= 1 && io->iov_count <= FILE_IOV_MAX);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < io->iov_count; i++) {
        assert((uintptr_t)io->iov[i].iov_base % BLOCK_SIZE == 0);
        assert(io->iov[i].iov_len % BLOCK_SIZE == 0);
        bytes += io->iov[i].iov_len;
    }
    return bytes;
}

void file_submit(struct file *file, struct file_io *io)
{
    assert(io->done != NULL);
    io->file = file;
    io->bytes = 0;
    if (io->op == FILE_SYNC) {
        assert(io->iov_count == 0);
    } else {
        io->bytes = vectors_bytes(io);
        assert(io->bytes > 0);
        assert(io->offset_bytes % BLOCK_SIZE == 0);
        assert(io->offset_bytes <= file->size_bytes);
        assert(io->bytes <= file->size_bytes - io->offset_bytes);
    }
    file->inflight++;
    file->ops->submit(file, io);
}

void file_io_finish(struct file_io *io, int result)
{
    assert(result <= 0);
    assert(io->file->inflight > 0);
    io->file->inflight--;
    io->result = result;
    io->done(io);
}

void file_plug(struct loop *loop)
{
    loop->ops->plug(loop);
}

void file_unplug(struct loop *loop)
{
    loop->ops->unplug(loop);
}

struct waiting_io {
    struct file_io io;
    struct task *task;
    bool over;
};

static void wake_task(struct file_io *io)
{
    struct waiting_io *w = container_of(io, struct waiting_io, io);
    w->over = true;
    task_wake(w->task);
}

static async int submit_and_wait(struct file *file, enum file_op op,
                                 const struct iovec *iov, uint64_t offset_bytes)
{
    assert(task_current() != NULL);
    struct waiting_io w = {
        .io = {.op = op, .offset_bytes = offset_bytes, .iov = iov, .done = wake_task},
        .task = task_current(),
    };
    w.io.iov_count = iov != NULL ? 1 : 0;
    file_submit(file, &w.io);
    while (!w.over)
        task_park();
    return w.io.result;
}

async int file_read(struct file *file, void *ret_bytes, uint64_t len_bytes,
                    uint64_t offset_bytes)
{
    struct iovec iov = {.iov_base = ret_bytes, .iov_len = len_bytes};
    return submit_and_wait(file, FILE_READ, &iov, offset_bytes);
}

async int file_write(struct file *file, const void *bytes, uint64_t len_bytes,
                     uint64_t offset_bytes)
{
    /* iovec has one pointer type for both directions; a write only reads from it. */
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len_bytes};
    return submit_and_wait(file, FILE_WRITE, &iov, offset_bytes);
}

async int file_sync(struct file *file)
{
    return submit_and_wait(file, FILE_SYNC, NULL, 0);
}
