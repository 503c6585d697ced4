/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk that is open here while another host owns it: no log, no layers.
 *
 *      (none) --incoming attach--> remote <--another host asked for it-- owned here
 *                                    |                                       ^
 *                                    +--first change: asked for, taken-------+
 *
 * Happy path: reads are forwarded to the owner, by a few tasks. The first change starts
 * a hand-over: the owner finishes, checkpoints, gives its lease up and answers; this
 * host waits until it has applied that, takes the lease as any opening does, and the
 * changes that waited go on. A flush has nothing to do: nothing was written here.
 *
 *   R1  `is_remote` and a log exclude each other, but for the time of a take-over.
 *   R2  A client from before the last hand-over is a former one. It takes the disk back
 *       only if whoever has it lets it, never because he is silent.
 *   R3  A change is logged only by the owner; those that wait are logged here after a
 *       take-over, or fail.
 *
 * What can fail: the owner refuses, which fails the changes that wait; or it is silent,
 * and then log_open decides, which takes a lease by force only from a node that the
 * cluster takes for down. What may pass, as when the owner's host stops, is tried again
 * for MOVE_NS. A read is answered
 * wrongly by nobody: who is not the owner says so, and the owner is looked up again.
 *
 * On close nothing is left: clients wait for their operations, tasks count as users.
 */
#include "cow/disk_remote.h"

#include "cow/disk_internal.h"

#define READERS_MAX 8U
#define MOVE_NS     (30 * NS_PER_S) /* that a change waits for a lease */
#define READ_NS     (30 * NS_PER_S) /* that a read waits for somebody who answers */
#define OWN_NS      (60 * NS_PER_S) /* the same, for a lease that is ours already */
#define RETRY_NS    (20 * NS_PER_MS)
#define BUSY_RETRY_NS (100 * NS_PER_MS) /* what waits at the owner goes on meanwhile */
#define RECLAIMS_MAX 5U /* tries, while the state changes */
#define PREPARE_NS  (5 * NS_PER_S)
/* The owner has HAND_OVER_NS, and then ends what it is at. */
#define ASK_NS      (HAND_OVER_NS + 2 * NS_PER_S)
/* The same, if there is no connection: it is being made, or the owner has died. */
#define UNCONNECTED_NS (NS_PER_S / 2)
/* That an attach waits until the cluster takes a silent owner for down. */
#define SILENT_NS   (10 * NS_PER_S)
#define SILENT_RETRY_NS (100 * NS_PER_MS)

struct reader_task {
    struct task_call call;
    struct disk_remote *remote;
    bool is_running;
};

struct disk_remote {
    struct disk *disk;
    uint64_t given_to;       /* the node that it was handed over to; 0: none */
    bool is_unsettled;       /* its log ended badly: flushes wait for the next one */
    struct disk_io_list reads, changes;
    struct reader_task readers[READERS_MAX];
    bool is_moving;
    struct task_call move;
    struct mutex lock;       /* of a take-over */
    struct timer prepare;
};

struct disk_remote *remote_create(struct disk *disk)
{
    struct disk_remote *remote = calloc(1, sizeof *remote);

    if (!remote)
        return NULL;
    remote->disk = disk;
    TAILQ_INIT(&remote->reads);
    TAILQ_INIT(&remote->changes);
    mutex_init(&remote->lock);
    for (uint32_t i = 0; i < READERS_MAX; i++)
        remote->readers[i].remote = remote;
    return remote;
}

void remote_destroy(struct disk_remote *remote)
{
    if (!remote)
        return;
    assert(TAILQ_EMPTY(&remote->reads) && TAILQ_EMPTY(&remote->changes));
    timer_stop(remote->disk->loop, &remote->prepare);
    free(remote);
}

/* --- asking the owner --- */

/* Nobody answered; whether it was carried out is not known. */
static bool is_silence(int code)
{
    return code == -ECONNRESET || code == -ETIMEDOUT || code == -EHOSTUNREACH ||
           code == -ECONNREFUSED;
}

/* It may be otherwise before long. A host that stops lets go of its disks. */
static bool may_pass(int code)
{
    return is_silence(code) || code == -EAGAIN || code == -ESHUTDOWN ||
           code == -PLX_EOWNED || code == -PLX_EPRECONDITION || code == -PLX_ELIMIT ||
           code == -PLX_ENOLEADER || code == -PLX_EUNKNOWN || code == -PLX_ENOTHERE;
}

static const struct cluster_disk *state_of(const struct disk *disk)
{
    return cluster_disk_by_id(cluster_state(disk->host->cluster), disk->id);
}

/* It is not asked: it would not answer. */
static bool is_down(const struct disk *disk, uint64_t id)
{
    const struct cluster_node *node =
        cluster_node_by_id(cluster_state(disk->host->cluster), id);

    return node && cluster_node_is_down(node);
}

/* A call waits for its node to come back; who wants the disk may do better. */
static uint64_t patience_with(const struct disk *disk, uint64_t node)
{
    return rpc_is_connected(disk->host->rpc, node) ? ASK_NS : UNCONNECTED_NS;
}

static async int ask(struct disk *disk, uint64_t node, uint64_t epoch,
                     enum hand_over_kind kind)
{
    struct disk_rpc_hand_over head = {
        .disk = le64_of(disk->id), .epoch = le64_of(epoch), .kind = (uint8_t)kind,
    };
    struct rpc_call call = {
        .node = node,
        .op = DISK_RPC_HAND_OVER,
        .head = &head,
        .head_len = sizeof head,
        .timeout_ns = patience_with(disk, node),
    };
    struct writer answer = {0};
    struct disk_rpc_handed_over handed;
    int rc;

    if (is_down(disk, node))
        return -EHOSTUNREACH;
    rc = rpc_wait(disk->host->rpc, &call, &answer, NULL);

    if (answer.len == sizeof handed) {
        memcpy(&handed, answer.bytes, sizeof handed);
        /* If that fails the state says still what it said, and it is looked at again. */
        (void)cluster_wait_applied(disk->host->cluster, le64_get(handed.index), ASK_NS);
    } else if (rc == 0) {
        rc = -EPROTO;
    }
    writer_done(&answer);
    return rc;
}

/* --- taking the lease --- */

/* Changes that waited go on, as if they came now. */
static void resume_changes(struct disk_remote *remote)
{
    struct disk *disk = remote->disk;
    struct disk_io_list list;
    struct disk_io *io;

    TAILQ_INIT(&list);
    TAILQ_CONCAT(&list, &remote->changes, link);
    while ((io = TAILQ_FIRST(&list))) {
        TAILQ_REMOVE(&list, io, link);
        disk_go_on(disk, io);
    }
}

async int remote_take(struct disk *disk, uint32_t opened, struct error *err)
{
    struct disk_remote *remote = disk->remote;
    int rc = 0;

    mutex_lock(&remote->lock);
    if (disk->down)
        rc = err_set(err, disk->down, "disk %s: %s", disk->name, err_text(disk->down));
    if (rc < 0 || !disk->is_remote) {
        mutex_unlock(&remote->lock);
        return rc;
    }
    disk->state = DISK_OPENING;
    rc = disk_start(disk, err);
    if (rc < 0) {
        disk_reset(disk);
    } else {
        disk->is_remote = false; /* R1 */
        disk->oldest = (uint32_t)min_u64(disk->oldest, opened);
        remote->given_to = 0;
        remote->is_unsettled = false;
        timer_stop(disk->loop, &remote->prepare);
    }
    disk->state = DISK_OPEN;
    mutex_unlock(&remote->lock);
    waitlist_wake_all(&disk->host->disks_changed);
    host_update_reserve(disk->host);
    if (rc < 0)
        return rc;
    checkpoint_after_open(disk);
    trimmer_kick(disk);
    resume_changes(remote);
    return 0;
}

/* One try to make the disk this host's, for a client that was `opened` so. */
static async int own(struct disk *disk, enum hand_over_kind kind, uint32_t opened,
                     struct error *err)
{
    struct host *host = disk->host;
    const struct cluster_disk *state = state_of(disk);
    int rc = 0;

    if (!disk->is_remote)
        return 0;
    if (host->closing)
        return err_set(err, -ESHUTDOWN, "the daemon is stopping");
    if (!state || (state->flags & DISK_TRASHED))
        return err_set(err, -PLX_EMISSING, "disk %s: no such disk", disk->name);
    uint64_t owner = state->owner;
    if (owner == host->node)
        return remote_take(disk, opened, err);
    if (owner == 0 && kind == HAND_OVER_RETURNING)
        owner = disk->remote->given_to; /* R2 */
    if (owner != 0)
        rc = ask(disk, owner, state->epoch, kind);
    if (is_silence(rc) && opened < disk->oldest)
        return err_set(err, -PLX_EOWNED,
                       "disk %s: node %llu, which has it now, is silent", disk->name,
                       (unsigned long long)owner);
    /* Of one who is silent only log_open knows whether he is down. */
    if (rc == 0 || is_silence(rc)) {
        state = state_of(disk);
        if (rc == 0 && state && state->owner != 0 && state->owner != host->node)
            return err_set(err, -EAGAIN, "disk %s: another host was faster", disk->name);
        return remote_take(disk, opened, err);
    }
    return err_set(err, rc, "disk %s: node %llu does not hand it over: %s", disk->name,
                   (unsigned long long)owner, err_text(rc));
}

/* Its owner does not answer, and the cluster may be about to take him for down. */
static bool is_silent(const struct disk *disk)
{
    const struct cluster_disk *state = state_of(disk);

    return state && state->owner != 0 && state->owner != disk->host->node &&
           !rpc_is_connected(disk->host->rpc, state->owner);
}

async int remote_reclaim(struct disk *disk, struct error *err)
{
    uint64_t limit_ns = loop_now_ns(disk->loop) + SILENT_NS;
    uint32_t tries = 0;

    for (;;) {
        bool was_silent = is_silent(disk); /* and may answer, now that he is connected */
        int rc = own(disk, HAND_OVER_RETURNING, disk->stance, err);
        bool is_moved = rc == -EAGAIN || rc == -PLX_EPRECONDITION;
        bool is_early = (rc == -PLX_EOWNED && (was_silent || is_silent(disk))) ||
                        (rc == -ESHUTDOWN && !disk->host->closing);
        if (is_early && loop_now_ns(disk->loop) < limit_ns)
            task_sleep_ns(SILENT_RETRY_NS);
        else if (is_moved && ++tries < RECLAIMS_MAX)
            task_sleep_ns(RETRY_NS);
        else
            return rc;
    }
}

/* --- changes --- */

static enum hand_over_kind kind_of(const struct disk *disk, uint32_t opened)
{
    return opened < disk->oldest ? HAND_OVER_RETURNING : HAND_OVER_INCOMING;
}

/* The client that has most right to it. */
static uint32_t newest_opened(const struct disk_remote *remote)
{
    const struct disk_io *io;
    uint32_t newest = 0;

    TAILQ_FOREACH (io, &remote->changes, link)
        newest = (uint32_t)max_u64(newest, io->opened);
    return newest;
}

static void fail_changes(struct disk_remote *remote, int code)
{
    struct disk_io *io;

    while ((io = TAILQ_FIRST(&remote->changes))) {
        TAILQ_REMOVE(&remote->changes, io, link);
        disk_finish(remote->disk, io, code);
    }
}

static bool is_ours(const struct disk *disk)
{
    const struct cluster_disk *state = state_of(disk);

    return state && state->owner == disk->host->node;
}

/* The owner ends something first; a guest that comes in waits for it. */
static bool may_pass_for(int code, enum hand_over_kind kind)
{
    return may_pass(code) || (code == -PLX_EBUSY && kind == HAND_OVER_INCOMING);
}

static async void move_main(struct task_call *call)
{
    struct disk_remote *remote = container_of(call, struct disk_remote, move);
    struct disk *disk = remote->disk;
    uint64_t began_ns = loop_now_ns(disk->loop);
    struct error err = {0};
    int rc = 0;

    while (!TAILQ_EMPTY(&remote->changes)) {
        uint32_t opened = newest_opened(remote);
        uint64_t limit_ns = began_ns + (is_ours(disk) ? OWN_NS : MOVE_NS);
        enum hand_over_kind kind = kind_of(disk, opened);
        rc = own(disk, kind, opened, &err);
        if (rc == 0 || !may_pass_for(rc, kind) || loop_now_ns(disk->loop) >= limit_ns ||
            disk->down || disk->host->closing)
            break;
        task_sleep_ns(rc == -PLX_EBUSY ? BUSY_RETRY_NS : RETRY_NS);
    }
    if (rc < 0) {
        log_warning(disk->loop, "%s", err.text);
        fail_changes(remote, rc == -EAGAIN ? -PLX_EOWNED : rc);
    } else {
        log_info(disk->loop, "disk %s: taken over, changes waited %llu us", disk->name,
                 (unsigned long long)((loop_now_ns(disk->loop) - began_ns) / 1000));
    }
    remote->is_moving = false;
    disk_release(disk);
}

static void change(struct disk *disk, struct disk_io *io)
{
    struct disk_remote *remote = disk->remote;

    TAILQ_INSERT_TAIL(&remote->changes, io, link);
    if (remote->is_moving)
        return;
    remote->is_moving = true;
    disk->users++;
    timer_stop(disk->loop, &disk->idle_timer);
    remote->move = (struct task_call){
        .main = move_main, .name = "hand-over", .system = true,
    };
    task_start(disk->loop, &remote->move);
}

/* --- reads --- */

static async int read_from(struct disk *disk, uint64_t node, struct disk_io *io)
{
    uint64_t len_bytes = (io->end - io->first) * BLOCK_SIZE;
    struct disk_rpc_read head = {
        .disk = le64_of(disk->id),
        .offset_bytes = le64_of(io->first * BLOCK_SIZE),
        .len_bytes = le32_of((uint32_t)len_bytes),
    };
    struct rpc_call call = {
        .node = node,
        .op = DISK_RPC_READ,
        .head = &head,
        .head_len = sizeof head,
        .timeout_ns = patience_with(disk, node),
    };
    struct slice payload = {0};
    int rc;

    if (is_down(disk, node))
        return -EHOSTUNREACH;
    rc = rpc_wait(disk->host->rpc, &call, NULL, &payload);

    if (rc == 0 && (!payload.buffer || payload.len != len_bytes))
        rc = -EPROTO;
    if (rc == 0)
        memcpy(io->buffer->data, slice_data(payload), len_bytes);
    buffer_put(payload.buffer);
    return rc;
}

/* One try. 1: the disk is this host's now. */
static async int try_read(struct disk *disk, struct disk_io *io)
{
    const struct cluster_disk *state = state_of(disk);
    enum hand_over_kind kind = kind_of(disk, io->opened);
    struct error err = {0};
    int rc = -PLX_ENOTHERE;

    if (!state)
        return -PLX_EMISSING;
    if (disk->host->closing)
        return -ESHUTDOWN;
    if (state->owner != 0 && state->owner != disk->host->node)
        rc = read_from(disk, state->owner, io);
    if (rc == -PLX_ENOTHERE || (is_silence(rc) && kind == HAND_OVER_INCOMING)) {
        /* Nobody has it open, or he may be down. Who gave it away asks first. */
        int owned = is_silence(rc) ? remote_take(disk, io->opened, &err)
                                   : own(disk, kind, io->opened, &err);
        if (owned != -PLX_EOWNED || !is_silence(rc))
            rc = owned == 0 ? 1 : owned == -PLX_EBUSY ? -EAGAIN : owned;
    }
    return rc;
}

/* Until somebody answers. */
static async void read_remote(struct disk *disk, struct disk_io *io)
{
    int rc;

    for (;;) {
        rc = disk->down;
        if (rc == 0)
            rc = disk->is_remote ? try_read(disk, io) : 1;
        uint64_t limit_ns = io->started_ns + (is_ours(disk) ? OWN_NS : READ_NS);
        if (!may_pass(rc) || loop_now_ns(disk->loop) >= limit_ns || disk->host->closing)
            break;
        task_sleep_ns(RETRY_NS);
    }
    if (rc == 1) {
        disk_go_on(disk, io);
        return;
    }
    if (rc < 0)
        log_error(disk->loop, "disk %s: read at %llu from its owner: %s", disk->name,
                  (unsigned long long)io->offset_bytes, err_text(rc));
    disk_done(disk, io, may_pass(rc) && rc != -ESHUTDOWN ? -EIO : rc);
}

static async void reader_main(struct task_call *call)
{
    struct reader_task *reader = container_of(call, struct reader_task, call);
    struct disk_remote *remote = reader->remote;
    struct disk *disk = remote->disk;
    struct disk_io *io;

    while ((io = TAILQ_FIRST(&remote->reads))) {
        TAILQ_REMOVE(&remote->reads, io, link);
        read_remote(disk, io);
    }
    reader->is_running = false;
    disk_release(disk);
}

static void read_soon(struct disk *disk, struct disk_io *io)
{
    struct disk_remote *remote = disk->remote;

    TAILQ_INSERT_TAIL(&remote->reads, io, link);
    for (uint32_t i = 0; i < READERS_MAX; i++) {
        struct reader_task *reader = &remote->readers[i];
        if (reader->is_running)
            continue;
        reader->is_running = true;
        disk->users++;
        timer_stop(disk->loop, &disk->idle_timer);
        reader->call = (struct task_call){.main = reader_main, .name = "remote read"};
        task_start(disk->loop, &reader->call);
        return;
    }
}

void remote_submit(struct disk *disk, struct disk_io *io)
{
    if (io->op == DISK_READ)
        read_soon(disk, io);
    else if (io->op == DISK_FLUSH && !disk->remote->is_unsettled)
        disk_finish(disk, io, 0);
    else
        change(disk, io);
}

/* --- becoming remote --- */

static void prepare_fired(struct timer *timer)
{
    struct disk_remote *remote = container_of(timer, struct disk_remote, prepare);
    struct disk *disk = remote->disk;
    const struct cluster_disk *state = state_of(disk);
    struct disk_rpc_prepare head = {.disk = le64_of(disk->id)};

    if (!disk->is_remote || disk->clients == 0)
        return;
    if (state && state->owner != 0 && state->owner != disk->host->node)
        rpc_post(disk->host->rpc, state->owner, DISK_RPC_PREPARE, &head, sizeof head,
                 NULL, 0);
    timer_start(disk->loop, timer, PREPARE_NS);
}

void remote_prepare(struct disk *disk)
{
    if (!disk->is_remote)
        return;
    timer_stop(disk->loop, &disk->remote->prepare);
    disk->remote->prepare.fire = prepare_fired;
    timer_start(disk->loop, &disk->remote->prepare, 0);
}

void remote_look(struct disk *disk)
{
    const struct cluster_disk *state = state_of(disk);

    if (state && disk->is_remote)
        disk->size_bytes = state->size_bytes;
}

int remote_begin(struct disk *disk)
{
    const struct cluster_disk *state = state_of(disk);

    disk->remote = remote_create(disk);
    if (!disk->remote || !state)
        return disk->remote ? -PLX_EMISSING : -ENOMEM;
    disk->is_remote = true;
    disk->size_bytes = state->size_bytes;
    return 0;
}

void remote_given(struct disk *disk, uint64_t node, bool is_settled)
{
    struct disk_remote *remote = disk->remote;
    struct disk_io *io, *next;

    assert(remote && !disk->log && !disk->is_remote); /* R1 */
    disk->is_remote = true;
    remote->given_to = node;
    remote->is_unsettled = !is_settled;
    if (is_settled)
        disk->oldest = ++disk->stance; /* R2 */
    TAILQ_FOREACH_SAFE (io, &disk->ranges, link, next) {
        disk_unlist(disk, io);
        change(disk, io); /* R3 */
    }
    while ((io = TAILQ_FIRST(&disk->late))) {
        TAILQ_REMOVE(&disk->late, io, link);
        remote_submit(disk, io);
    }
}
