/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner's side of a hand-over, and of reads that another host forwards.
 *
 * Happy path: a checkpoint while the guests go on; then changes that come wait, what is
 * under way ends, a last checkpoint covers it, and the log gives the lease up. The disk
 * stays open as a remote one (disk_remote.c), with its clients: their flushes are
 * answered, their reads forwarded, and what they write asks for the disk back.
 *
 * What can fail: the cluster has no leader, not everything ends within HAND_OVER_NS, or
 * the disk goes down; then the owner refuses and goes on, and changes that waited go on,
 * too. Once the log ends there is no way back: if that fails the lease is still this
 * host's, or nobody knows; the disk is remote then, and is taken over again by the first
 * who needs it, which finds everything that was acknowledged in the log.
 *
 * On close there is nothing: requests hold the disk open. They are few (HAND_OVERS_MAX,
 * REMOTE_READS_SERVED_MAX); more are told to come again.
 */
#include "cow/disk_remote.h"

#include "cow/disk_internal.h"

static const struct cluster_disk *state_of(struct host *host, uint64_t id)
{
    return cluster_disk_by_id(cluster_state(host->cluster), id);
}

/* --- reads for others --- */

struct served_read {
    struct disk_io io;
    struct disk *disk;
    struct rpc_request *request;
};

static void refuse(struct rpc_request *request, int code)
{
    rpc_answer(request, code, NULL, 0, NULL, 0);
}

static void read_done(struct disk_io *io)
{
    struct served_read *read = container_of(io, struct served_read, io);
    struct disk *disk = read->disk;
    struct slice payload = {.buffer = io->buffer, .len = (uint32_t)io->len_bytes};

    rpc_answer(read->request, io->result, NULL, 0, &payload, io->result == 0 ? 1 : 0);
    buffer_put(io->buffer);
    free(read);
    disk->host->served_reads--;
    disk->served_reads--;
    disk_release(disk);
}

/* 0, or why it cannot be read here. */
static int may_serve(struct host *host, const struct disk *disk,
                     const struct disk_rpc_read *head)
{
    uint64_t offset_bytes = le64_get(head->offset_bytes), end_bytes;
    uint32_t len_bytes = le32_get(head->len_bytes);

    if (len_bytes == 0 || len_bytes > DISK_RPC_READ_BYTES_MAX ||
        len_bytes % BLOCK_SIZE != 0 || offset_bytes % BLOCK_SIZE != 0 ||
        !add_u64(offset_bytes, len_bytes, &end_bytes))
        return -EINVAL;
    if (!disk)
        return -PLX_ENOTHERE;
    /* One that closes is gone before a read has ended; one that is handed over is not. */
    if (disk_is_elsewhere(disk) || !disk->log || disk->state == DISK_OPENING ||
        (disk->state == DISK_CLOSING && !disk->is_yielding))
        return -EAGAIN;
    if (disk->down)
        return disk->down;
    if (end_bytes > round_up_u64(disk->size_bytes, BLOCK_SIZE))
        return -EINVAL;
    return host->served_reads < REMOTE_READS_SERVED_MAX ? 0 : -PLX_ELIMIT;
}

void disk_serve_read(struct host *host, struct rpc_request *request)
{
    struct disk_rpc_read head;
    struct disk *disk;

    if (request->head_len != sizeof head) {
        refuse(request, -EINVAL);
        return;
    }
    memcpy(&head, request->head, sizeof head);
    disk = disk_find(host, le64_get(head.disk), 0);
    int rc = may_serve(host, disk, &head);
    uint32_t len_bytes = le32_get(head.len_bytes);
    struct served_read *read = rc == 0 ? calloc(1, sizeof *read) : NULL;
    struct buffer *buffer = read ? buffer_create(host->front_buffers, len_bytes) : NULL;
    if (!buffer) {
        free(read);
        refuse(request, rc < 0 ? rc : -PLX_ELIMIT);
        return;
    }
    uint64_t offset_bytes = le64_get(head.offset_bytes);
    read->disk = disk;
    read->request = request;
    read->io = (struct disk_io){
        .op = DISK_READ,
        .flags = DISK_FOR_OTHERS,
        .offset_bytes = offset_bytes,
        .len_bytes = min_u64(len_bytes, disk->size_bytes - offset_bytes),
        .buffer = buffer,
        .done = read_done,
    };
    /* The rest of the last block, if the disk ends inside it, is zeros. */
    memset(buffer->data + read->io.len_bytes, 0, len_bytes - read->io.len_bytes);
    host->served_reads++;
    disk->served_reads++;
    disk->users++;
    timer_stop(disk->loop, &disk->idle_timer);
    disk_submit(disk, &read->io);
}

/* --- giving a disk up --- */

struct yield_job {
    struct task_call task;
    struct host *host;
    struct rpc_request *request;
    uint64_t disk, epoch, node;
    enum hand_over_kind kind;
};

struct deadline {
    struct timer timer;
    struct disk *disk;
    bool is_over;
};

static void deadline_fired(struct timer *timer)
{
    struct deadline *deadline = container_of(timer, struct deadline, timer);

    deadline->is_over = true;
    waitlist_wake_all(&deadline->disk->drained);
}

/* Only clients, those they serve, and the hand-over itself, and no change begun. */
static bool is_drained(const struct disk *disk)
{
    return disk->change_count == disk->waiting_count &&
           disk->users == disk->clients + disk->served_reads + 1;
}

static async void close_door(struct disk *disk, struct deadline *deadline)
{
    disk->door_closed = true;
    while (!is_drained(disk) && !deadline->is_over && !disk->down)
        waitlist_wait(&disk->drained);
}

static void open_door(struct disk *disk)
{
    disk->door_closed = false;
    waitlist_wake_all(&disk->host->disks_changed);
    disk_resume(disk);
    checkpoint_consider(disk); /* it was not, meanwhile */
}

/* The point of no return is behind: the log ends. */
static async int end_log(struct disk *disk, uint64_t node, struct error *err)
{
    struct disk_io *io;

    disk->state = DISK_CLOSING;
    int rc = disk_end_log(disk, err);
    disk->door_closed = disk->gives_up = false;
    if (disk->down) {
        rc = disk->down;
        disk_resume(disk);
        while ((io = TAILQ_FIRST(&disk->late))) {
            TAILQ_REMOVE(&disk->late, io, link);
            disk_finish(disk, io, rc);
        }
    } else {
        disk_reset(disk);
        remote_given(disk, node, rc == 0);
    }
    disk->state = DISK_OPEN;
    waitlist_wake_all(&disk->host->disks_changed);
    host_update_reserve(disk->host);
    return rc;
}

/* Why an open disk is not handed over now; 0: it is. */
static int may_yield(const struct yield_job *job, const struct disk *disk)
{
    const struct cluster_disk *state = state_of(job->host, job->disk);

    if (!state || state->owner != job->host->node)
        return -PLX_EPRECONDITION;
    if (job->kind == HAND_OVER_RETURNING && disk->clients > 0)
        return -PLX_EBUSY;
    if (disk->exclusive || (state->flags & DISK_IMPORTING) ||
        pin_is_taken(&job->host->pins, PIN_CLOSED, disk->id))
        return -PLX_EBUSY;
    return disk->down;
}

static uint64_t checkpoint_number(struct host *host, uint64_t id)
{
    const struct cluster_disk *state = state_of(host, id);

    return state ? state->checkpoint.number : 0;
}

/* While the guests go on, so that little is left when they wait. What cannot be
 * checkpointed is replayed over there. Without a leader the lease could not be given up,
 * nor taken again; one that was committed has shown that there is one. */
static async int checkpoint_first(struct disk *disk, struct error *err)
{
    struct host *host = disk->host;
    uint64_t before = checkpoint_number(host, disk->id);
    struct error ignored = {0};

    (void)disk_checkpoint(disk, &ignored);
    int rc = checkpoint_number(host, disk->id) > before ? 0
                                                        : cluster_barrier(host->cluster);
    return rc < 0 ? err_set(err, rc, "%s", err_text(rc)) : 0;
}

static async int yield_disk(struct yield_job *job, struct disk *disk, struct error *err)
{
    struct deadline deadline = {.timer.fire = deadline_fired, .disk = disk};

    if (!disk->remote && !(disk->remote = remote_create(disk)))
        return err_set(err, -ENOMEM, "out of memory");
    int rc = checkpoint_first(disk, err);
    if (rc < 0)
        return rc;
    timer_start(disk->loop, &deadline.timer, HAND_OVER_NS);
    close_door(disk, &deadline);
    timer_stop(disk->loop, &deadline.timer);
    rc = may_yield(job, disk); /* somebody may have come meanwhile */
    if (rc == 0 && is_drained(disk))
        return end_log(disk, job->node, err);
    open_door(disk);
    return rc < 0 ? err_set(err, rc, "%s", err_text(rc))
                  : err_set(err, -PLX_EBUSY, "what is under way does not end");
}

static async int yield_open(struct yield_job *job, struct error *err)
{
    struct disk *disk = disk_find(job->host, job->disk, 0);

    if (disk && disk->is_yielding) /* not to wait at the door */
        return err_set(err, -PLX_EBUSY, "it is being handed over");
    /* Takes it again if its log ended badly, and nobody needed it since. */
    int rc = disk_acquire(job->host, job->disk, 0, &disk, err);

    if (rc < 0)
        return rc;
    rc = disk->is_yielding ? -PLX_EBUSY : may_yield(job, disk);
    if (rc == 0) {
        disk->is_yielding = true;
        rc = yield_disk(job, disk, err);
        disk->is_yielding = false;
    } else {
        err_set(err, rc, "%s", err_text(rc));
    }
    disk_release(disk);
    return rc;
}

static async int yield(struct yield_job *job, struct error *err)
{
    struct host *host = job->host;
    const struct cluster_disk *state = state_of(host, job->disk);
    const struct disk *disk = disk_find(host, job->disk, 0);

    if (!state)
        return err_set(err, -PLX_EMISSING, "no such disk");
    if (state->owner != host->node) {
        bool is_wanted = disk && disk->clients > 0;
        int rc = job->kind == HAND_OVER_INCOMING || state->owner != 0
                     ? -PLX_EPRECONDITION
                     : is_wanted ? -PLX_EBUSY : 0;
        return rc < 0 ? err_set(err, rc, "%s", err_text(rc)) : 0;
    }
    if (state->epoch != job->epoch)
        return err_set(err, -PLX_EPRECONDITION, "an older lease is meant");
    return yield_open(job, err);
}

static async void yield_main(struct task_call *call)
{
    struct yield_job *job = container_of(call, struct yield_job, task);
    struct host *host = job->host;
    uint64_t began_ns = loop_now_ns(host->loop);
    struct error err = {0};
    int rc = host->closing ? -ESHUTDOWN : yield(job, &err);
    struct disk_rpc_handed_over head = {
        .index = le64_of(cluster_state_applied(cluster_state(host->cluster))),
    };

    log_info(host->loop, "disk %llu: node %llu asks for it: %s, after %llu us",
             (unsigned long long)job->disk, (unsigned long long)job->node,
             rc < 0 ? err.text : "it has it",
             (unsigned long long)((loop_now_ns(host->loop) - began_ns) / 1000));
    rpc_answer(job->request, rc, &head, sizeof head, NULL, 0);
    free(job);
    host->hand_overs--;
    waitlist_wake_all(&host->disks_changed);
}

void disk_serve_hand_over(struct host *host, struct rpc_request *request)
{
    struct disk_rpc_hand_over head;
    struct yield_job *job;

    if (request->head_len != sizeof head) {
        refuse(request, -EINVAL);
        return;
    }
    memcpy(&head, request->head, sizeof head);
    if (head.kind != HAND_OVER_INCOMING && head.kind != HAND_OVER_RETURNING) {
        refuse(request, -EINVAL);
        return;
    }
    if (host->closing) { /* it waits for none that comes now */
        refuse(request, -ESHUTDOWN);
        return;
    }
    if (host->hand_overs >= HAND_OVERS_MAX || !(job = calloc(1, sizeof *job))) {
        refuse(request, -PLX_ELIMIT);
        return;
    }
    *job = (struct yield_job){
        .task = {.main = yield_main, .name = "yield", .system = true},
        .host = host,
        .request = request,
        .disk = le64_get(head.disk),
        .epoch = le64_get(head.epoch),
        .node = request->peer.node,
        .kind = head.kind,
    };
    host->hand_overs++;
    task_start(host->loop, &job->task);
}

void disk_serve_prepare(struct host *host, struct rpc_request *request)
{
    struct disk_rpc_prepare head;
    struct disk *disk;

    if (request->head_len != sizeof head)
        return;
    memcpy(&head, request->head, sizeof head);
    disk = disk_find(host, le64_get(head.disk), 0);
    if (disk && disk->log && disk->state == DISK_OPEN && layers_bytes(disk) > 0)
        checkpoint_request(disk);
}
