/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files and block devices by libaio; one context per loop, which lives as long as a file
 * is open.
 *
 * Happy path: file_submit prepares the iocb inside the file_io and puts it in `queued`.
 * When the loop runs out of work, or at unplug, `flush` hands all of them to the kernel
 * in one io_submit. The kernel writes completions to a ring it shares with us and counts
 * them in an eventfd, which wakes the loop; `reap` reads the ring without a system call
 * and calls each done.
 *
 *     file_submit           flush                 reap
 *     ----------> queued ----------> in kernel ----------> done
 *
 * What can fail: an operation (its result says so; a short transfer is -EIO, for no
 * request reaches past the end); io_submit with -EAGAIN, after which the queue waits for
 * a completion, or for a moment if none is to come; io_submit with another error, which
 * is the first operation's. Opening, growing and punching may block in the file system
 * and run on a worker thread.
 *
 * On close nothing is in flight; the last file takes the context with it.
 *
 * A sync is IOCB_CMD_FDSYNC. Measured here (2 cores, ext4, 4 KiB write, then sync, into
 * a pre-written file, depth 1, median of 3,000; both by eventfd and epoll): 71 us with
 * it, 96 to 112 us with fdatasync on a thread of our own, 44 us for the write alone. The
 * kernel also uses a worker for it, but one hand-over less.
 */
#include <fcntl.h>
#include <libaio.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#undef BLOCK_SIZE /* of linux/fs.h; ours is another */

#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define RUNNING_ON_VALGRIND 0
#endif

#include "runtime/limits.h"
#include "runtime/log.h"
#include "runtime/loop_uv.h"
#include "runtime/worker.h"

#define SUBMIT_MAX 128U /* iocbs of one io_submit */
#define REAP_MAX   64U  /* completions copied from the ring at once */
#define RETRY_NS   NS_PER_MS
/* The unit of st_blocks, whatever the file system. */
#define STAT_BLOCK_BYTES 512U

STAILQ_HEAD(io_list, file_io);

/* The kernel's ring, fs/aio.c; an io_context_t is its address. The layout is kernel ABI
 * (libaio, fio and QEMU read it too), guarded by magic and incompat_features. */
struct aio_ring {
    uint32_t id, nr;
    uint32_t head, tail;
    uint32_t magic;
    uint32_t compat_features, incompat_features;
    uint32_t header_bytes;
    struct io_event events[];
};
#define AIO_RING_MAGIC 0xa10a10a1U

struct aio {
    struct loop *loop;
    io_context_t context;
    struct aio_ring *ring; /* NULL: reap by io_getevents */
    int event_fd;
    struct watch *watch;
    struct worker *worker;
    uint32_t refs;      /* open files, opens under way, calls that may end one */
    uint32_t in_kernel; /* <= AIO_DEPTH */
    uint32_t plugs;
    struct io_list queued;
    struct io_list refused; /* by io_submit; result is set */
    struct work report_refused;
    struct timer retry;
};

struct aio_file {
    struct file base;
    struct aio *aio;
    int fd;
};

static struct aio_file *aio_file_of(struct file *file)
{
    return container_of(file, struct aio_file, base);
}

/* --- the context --- */

static bool idle(void *arg);
static void event_ready(void *arg, unsigned events);
static void report_refused(struct work *work);
static void retry_flush(struct timer *timer);

static void aio_destroy(struct aio *aio)
{
    assert(aio->in_kernel == 0);
    assert(STAILQ_EMPTY(&aio->queued) && STAILQ_EMPTY(&aio->refused));
    timer_stop(aio->loop, &aio->retry);
    loop_post_cancel(aio->loop, &aio->report_refused);
    if (aio->watch != NULL)
        watch_destroy(aio->watch);
    if (aio->event_fd >= 0)
        close(aio->event_fd);
    if (aio->context != NULL)
        io_destroy(aio->context);
    worker_destroy(aio->worker);
    free(aio);
}

static int aio_create(struct loop *loop, struct aio **ret, struct error *err)
{
    struct aio *aio = calloc(1, sizeof *aio);
    if (aio == NULL)
        return err_set(err, -ENOMEM, "no memory");
    aio->loop = loop;
    aio->report_refused.run = report_refused;
    aio->retry.fire = retry_flush;
    STAILQ_INIT(&aio->queued);
    STAILQ_INIT(&aio->refused);
    aio->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int rc = io_setup(AIO_DEPTH, &aio->context);
    if (rc == -EAGAIN) {
        err_set(err, rc, "the kernel's aio requests are used up: raise fs.aio-max-nr");
        goto fail;
    }
    aio->worker = worker_create(loop);
    if (aio->event_fd >= 0)
        aio->watch = watch_create(loop, aio->event_fd, event_ready, aio);
    if (rc != 0 || aio->worker == NULL || aio->watch == NULL ||
        (rc = watch_set(aio->watch, WATCH_READ)) != 0) {
        rc = err_set(err, rc != 0 ? rc : -ENOMEM, "no memory, threads or descriptors");
        goto fail;
    }
    struct aio_ring *ring = (void *)aio->context;
    /* valgrind learns which bytes the kernel wrote from the system call only. */
    if (ring->magic == AIO_RING_MAGIC && ring->incompat_features == 0 &&
        !RUNNING_ON_VALGRIND)
        aio->ring = ring;
    *ret = aio;
    return 0;
fail:
    aio_destroy(aio);
    return rc;
}

static int aio_get(struct loop *loop, struct aio **ret, struct error *err)
{
    void **slot = loop_uv_aio_slot(loop);
    if (*slot == NULL) {
        struct aio *aio = NULL;
        int rc = aio_create(loop, &aio, err);
        if (rc != 0)
            return rc;
        *slot = aio;
        loop_set_idle_hook(loop, idle, aio);
    }
    *ret = *slot;
    (*ret)->refs++;
    return 0;
}

static void aio_put(struct aio *aio)
{
    assert(aio->refs > 0);
    if (--aio->refs > 0)
        return;
    loop_set_idle_hook(aio->loop, NULL, NULL);
    *loop_uv_aio_slot(aio->loop) = NULL;
    aio_destroy(aio);
}

/* --- operations --- */

static struct iocb *iocb_of(struct file_io *io)
{
    static_assert(sizeof(struct iocb) <= sizeof io->priv, "an iocb fits");
    return (struct iocb *)(void *)io->priv;
}

static void submit(struct file *file, struct file_io *io)
{
    struct aio_file *f = aio_file_of(file);
    struct iocb cb;
    long long offset = (long long)io->offset_bytes;
    if (io->op == FILE_SYNC)
        io_prep_fdsync(&cb, f->fd);
    else if (io->op == FILE_READ)
        io_prep_preadv(&cb, f->fd, io->iov, (int)io->iov_count, offset);
    else
        io_prep_pwritev(&cb, f->fd, io->iov, (int)io->iov_count, offset);
    io_set_eventfd(&cb, f->aio->event_fd);
    cb.data = io;
    memcpy(io->priv, &cb, sizeof cb);
    STAILQ_INSERT_TAIL(&f->aio->queued, io, link);
}

/* The first in the queue failed to start; done is called from the loop. */
static void refuse_first(struct aio *aio, int code)
{
    struct file_io *io = STAILQ_FIRST(&aio->queued);
    STAILQ_REMOVE_HEAD(&aio->queued, link);
    io->result = code;
    STAILQ_INSERT_TAIL(&aio->refused, io, link);
    loop_post(aio->loop, &aio->report_refused);
}

/* Hands up to SUBMIT_MAX to the kernel. False: stop for now. */
static bool flush_some(struct aio *aio)
{
    struct iocb *iocbs[SUBMIT_MAX];
    uint32_t room = min_u32(AIO_DEPTH - aio->in_kernel, SUBMIT_MAX);
    uint32_t n = 0;
    struct file_io *io;
    STAILQ_FOREACH (io, &aio->queued, link) {
        if (n == room)
            break;
        iocbs[n++] = iocb_of(io);
    }
    if (n == 0)
        return false;
    int rc = io_submit(aio->context, (long)n, iocbs);
    if (rc == -EAGAIN || rc == 0) {
        /* A completion brings the idle hook back here; if none is due, a timer does. */
        if (aio->in_kernel == 0 && !aio->retry.armed)
            timer_start(aio->loop, &aio->retry, RETRY_NS);
        return false;
    }
    if (rc < 0 && rc != -EINTR)
        refuse_first(aio, rc);
    for (int i = 0; i < rc; i++)
        STAILQ_REMOVE_HEAD(&aio->queued, link);
    aio->in_kernel += rc > 0 ? (uint32_t)rc : 0;
    assert(aio->in_kernel <= AIO_DEPTH);
    return true;
}

static void flush(struct aio *aio)
{
    while (flush_some(aio))
        ;
}

static void retry_flush(struct timer *timer)
{
    flush(container_of(timer, struct aio, retry));
}

static void report_refused(struct work *work)
{
    struct aio *aio = container_of(work, struct aio, report_refused);
    struct file_io *io;
    aio->refs++;
    while ((io = STAILQ_FIRST(&aio->refused)) != NULL) {
        STAILQ_REMOVE_HEAD(&aio->refused, link);
        file_io_finish(io, io->result);
    }
    aio_put(aio);
}

/* Copies up to REAP_MAX completions. */
static uint32_t take_events(struct aio *aio, struct io_event *ret)
{
    struct aio_ring *ring = aio->ring;
    if (ring == NULL) {
        struct timespec none = {0};
        int n = io_getevents(aio->context, 0, REAP_MAX, ret, &none);
        return n > 0 ? (uint32_t)n : 0;
    }
    uint32_t head = ring->head; /* only we move it */
    uint32_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
    uint32_t n = 0;
    while (head != tail && n < REAP_MAX) {
        ret[n++] = ring->events[head];
        head = head + 1 == ring->nr ? 0 : head + 1;
    }
    if (n > 0)
        __atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
    return n;
}

static int result_of(const struct file_io *io, long res)
{
    if (res < 0)
        return (int)res;
    return (uint64_t)res == io->bytes ? 0 : -EIO;
}

/* Calls done of what has completed; false: nothing had. Bounded, so that other work of
 * the loop gets its turn. */
static bool reap(struct aio *aio)
{
    struct io_event events[REAP_MAX];
    uint32_t total = 0, n;
    do {
        n = take_events(aio, events);
        assert(n <= aio->in_kernel);
        aio->in_kernel -= n;
        for (uint32_t i = 0; i < n; i++) {
            struct file_io *io = events[i].data;
            file_io_finish(io, result_of(io, (long)events[i].res));
        }
        total += n;
    } while (n == REAP_MAX && total < AIO_DEPTH);
    return total > 0;
}

static bool idle(void *arg)
{
    struct aio *aio = arg;
    aio->refs++; /* a done may close the last file */
    bool did_something = aio->in_kernel > 0 && reap(aio);
    flush(aio);
    aio_put(aio);
    return did_something;
}

static void event_ready(void *arg, unsigned events)
{
    struct aio *aio = arg;
    uint64_t count;
    (void)events;
    /* Only to make it unready: the ring tells what completed. */
    ssize_t n = read(aio->event_fd, &count, sizeof count);
    (void)n;
    aio->refs++;
    reap(aio);
    aio_put(aio);
}

/* A hint: without a context there is nothing to collect, and an unplug whose plug came
 * before the first open has no effect. */
void file_aio_plug(struct loop *loop)
{
    struct aio *aio = *loop_uv_aio_slot(loop);
    if (aio != NULL)
        aio->plugs++;
}

void file_aio_unplug(struct loop *loop)
{
    struct aio *aio = *loop_uv_aio_slot(loop);
    if (aio == NULL || aio->plugs == 0)
        return;
    if (--aio->plugs == 0)
        flush(aio);
}

/* --- what may block: on the worker --- */

struct open_job {
    struct worker_job job;
    const char *path;
    const struct file_options *options;
    int fd;
    uint64_t size_bytes;
    bool is_device, is_buffered;
    int result;
    struct error *err;
};

/* O_DIRECT is set after open: with O_CREAT, a file system that does not support it would
 * make the file and then fail. */
static int open_fd(struct open_job *j, int flags)
{
    j->fd = open(j->path, flags | O_CLOEXEC, 0600);
    if (j->fd < 0)
        return -errno;
    if (flock(j->fd, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK ? -EBUSY : -errno;
    int now = fcntl(j->fd, F_GETFL);
    if (now < 0)
        return -errno;
    if (fcntl(j->fd, F_SETFL, now | O_DIRECT) == 0)
        return 0;
    j->is_buffered = errno == EINVAL;
    return j->is_buffered ? 0 : -errno;
}

static int set_size(struct open_job *j)
{
    int rc = ftruncate(j->fd, (off_t)j->options->size_bytes) == 0 ? 0 : -errno;
    if (rc == 0 && fsync(j->fd) != 0)
        rc = -errno;
    if (rc == 0)
        rc = sync_parent_folder(j->path);
    if (rc != 0) {
        /* Half made: of no use, and in the way of the next attempt. */
        unlink(j->path);
        return rc;
    }
    return 0;
}

static int get_size(struct open_job *j)
{
    struct stat st;
    if (fstat(j->fd, &st) != 0)
        return -errno;
    uint64_t bytes = (uint64_t)st.st_size;
    if (j->is_device && ioctl(j->fd, BLKGETSIZE64, &bytes) != 0)
        return -errno;
    if (!j->is_device && !S_ISREG(st.st_mode))
        return S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL;
    j->size_bytes = round_down_u64(bytes, BLOCK_SIZE);
    return 0;
}

static void explain_open(const struct open_job *j)
{
    switch (j->result) {
    case -EBUSY:
        err_set(j->err, -EBUSY, "%s: in use: another process has it open%s", j->path,
                j->is_device ? ", or it is mounted" : "");
        break;
    case -EEXIST:
        err_set(j->err, -EEXIST, "%s: exists already and is not overwritten", j->path);
        break;
    default:
        err_set(j->err, j->result, "%s: cannot be opened: %s", j->path,
                err_text(j->result));
        break;
    }
}

static void open_run(struct worker_job *job)
{
    struct open_job *j = container_of(job, struct open_job, job);
    struct stat st;
    j->is_device = stat(j->path, &st) == 0 && S_ISBLK(st.st_mode);
    bool create = j->options->create && !j->is_device;
    int flags = j->options->read_only ? O_RDONLY : O_RDWR;
    /* On a device, O_EXCL alone asks that nothing else has claimed it (a mount, LVM). */
    flags |= j->is_device ? O_EXCL : create ? O_CREAT | O_EXCL : 0;
    j->result = open_fd(j, flags);
    if (j->result == 0 && create)
        j->result = set_size(j);
    if (j->result == 0)
        j->result = get_size(j);
    if (j->result == 0)
        return;
    if (j->fd >= 0)
        close(j->fd);
    explain_open(j);
}

struct range_job {
    struct worker_job job;
    int fd;
    uint64_t offset_bytes, len_bytes;
    int result;
};

static void grow_run(struct worker_job *job)
{
    struct range_job *j = container_of(job, struct range_job, job);
    bool ok = ftruncate(j->fd, (off_t)j->len_bytes) == 0 && fsync(j->fd) == 0;
    j->result = ok ? 0 : -errno;
}

static async int grow(struct file *file, uint64_t size_bytes)
{
    struct aio_file *f = aio_file_of(file);
    struct range_job j = {.job.run = grow_run, .fd = f->fd, .len_bytes = size_bytes};
    worker_call(f->aio->worker, &j.job);
    if (j.result == 0)
        file->size_bytes = max_u64(file->size_bytes, size_bytes);
    return j.result;
}

static void punch_run(struct worker_job *job)
{
    struct range_job *j = container_of(job, struct range_job, job);
    int rc = fallocate(j->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       (off_t)j->offset_bytes, (off_t)j->len_bytes);
    j->result = rc == 0 ? 0 : -errno;
}

static async int punch(struct file *file, uint64_t offset_bytes, uint64_t len_bytes)
{
    struct aio_file *f = aio_file_of(file);
    struct range_job j = {
        .job.run = punch_run,
        .fd = f->fd,
        .offset_bytes = offset_bytes,
        .len_bytes = len_bytes,
    };
    worker_call(f->aio->worker, &j.job);
    return j.result;
}

static void allocate_run(struct worker_job *job)
{
    struct range_job *j = container_of(job, struct range_job, job);
    int rc = fallocate(j->fd, 0, (off_t)j->offset_bytes, (off_t)j->len_bytes);
    j->result = rc == 0 ? 0 : -errno;
}

static async int allocate(struct file *file, uint64_t offset_bytes, uint64_t len_bytes)
{
    struct aio_file *f = aio_file_of(file);
    struct range_job j = {
        .job.run = allocate_run,
        .fd = f->fd,
        .offset_bytes = offset_bytes,
        .len_bytes = len_bytes,
    };
    worker_call(f->aio->worker, &j.job);
    return j.result;
}

struct space_job {
    struct worker_job job;
    int fd, result;
    struct file_space space;
};

static void space_run(struct worker_job *job)
{
    struct space_job *j = container_of(job, struct space_job, job);
    struct statvfs vfs;
    struct stat st;
    if (fstat(j->fd, &st) != 0 || fstatvfs(j->fd, &vfs) != 0) {
        j->result = -errno;
        return;
    }
    /* Some, in user space, do not say how large they are. */
    j->result = vfs.f_blocks > 0 ? 0 : -ENOTSUP;
    j->space.stored_bytes = (uint64_t)st.st_blocks * STAT_BLOCK_BYTES;
    j->space.free_bytes = (uint64_t)vfs.f_bavail * vfs.f_frsize;
}

static async int space(struct file *file, struct file_space *ret_space)
{
    struct aio_file *f = aio_file_of(file);
    struct space_job j = {.job.run = space_run, .fd = f->fd};
    worker_call(f->aio->worker, &j.job);
    if (j.result == 0)
        *ret_space = j.space;
    return j.result;
}

static void close_file(struct file *file)
{
    struct aio_file *f = aio_file_of(file);
    close(f->fd); /* gives the lock back too */
    aio_put(f->aio);
    free(f);
}

static const struct file_ops aio_file_ops = {
    .submit = submit,
    .grow = grow,
    .punch = punch,
    .allocate = allocate,
    .space = space,
    .close = close_file,
};

async int file_aio_open(struct loop *loop, const char *path,
                        const struct file_options *options, struct file **ret,
                        struct error *err)
{
    cleanup(free_ptr) struct aio_file *f = calloc(1, sizeof *f);
    if (f == NULL)
        return err_set(err, -ENOMEM, "%s: no memory", path);
    struct aio *aio;
    int rc = aio_get(loop, &aio, err);
    if (rc != 0)
        return err_add(err, rc, "%s", path);
    struct open_job j = {
        .job.run = open_run,
        .path = path,
        .options = options,
        .fd = -1,
        .err = err,
    };
    worker_call(aio->worker, &j.job);
    if (j.result != 0) {
        aio_put(aio);
        return j.result;
    }
    if (j.is_buffered)
        log_warning(loop, "%s: the file system has no O_DIRECT; writes go by its cache",
                    path);
    f->base = (struct file){
        .ops = &aio_file_ops,
        .loop = loop,
        .size_bytes = j.size_bytes,
        .is_device = j.is_device,
    };
    f->aio = aio;
    f->fd = j.fd;
    *ret = &take(f)->base;
    return 0;
}
