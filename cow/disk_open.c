/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a disk: find the root its log starts from (a clone's is its parent's), take
 * the lease and cut the log (replication/), replay what lies above the checkpoint into
 * fresh layers, begin. A snapshot is opened by its root alone.
 *
 * A version whose root is still pending is settled first: its disk is opened, which
 * replays its log, and checkpointed. If the take-over fails nothing has changed but,
 * perhaps, the lease epoch.
 *
 * Closing writes a last checkpoint, gives the lease up, and then trims what is dead,
 * since all extents are final now. If that checkpoint cannot be written, what is flushed
 * stays in the log and the next opening replays it.
 */
#include "cow/disk_internal.h"

int disk_base_root(const struct cluster_state *state, const struct cluster_disk *disk,
                   struct map_root *ret_root, uint64_t *ret_pending)
{
    const struct cluster_version *version;

    if (disk->has_root) {
        *ret_root = disk->root;
        return 0;
    }
    version = cluster_version_by_id(state, disk->head_parent);
    /* Its own pending snapshots lie in its own log, above what it starts from. */
    while (version && version->pending && version->disk == disk->id)
        version = cluster_version_by_id(state, version->parent);
    if (version && version->pending) {
        *ret_pending = version->disk;
        return -EAGAIN;
    }
    *ret_root = version ? version->root : (struct map_root){0};
    return 0;
}

/* Opens the disk and writes a checkpoint, which gives its pending versions roots. */
static async int settle_disk(struct host *host, uint64_t id, struct error *err)
{
    struct disk *disk;
    int rc = disk_acquire(host, id, 0, &disk, err);

    if (rc < 0)
        return rc;
    rc = disk_checkpoint(disk, err);
    disk_release(disk);
    return rc;
}

/* The disk to settle first, if that of `id` cannot start yet: the deepest in the chain
 * of clones of clones. 0: none. */
static uint64_t deepest_pending(const struct cluster_state *state, uint64_t id)
{
    uint64_t deepest = 0;
    struct map_root root;
    const struct cluster_disk *disk;

    while ((disk = cluster_disk_by_id(state, id)) &&
           disk_base_root(state, disk, &root, &id) == -EAGAIN)
        deepest = id;
    return deepest;
}

/* Sees to it that disk `id` has a root to start from. */
static async int settle_base(struct host *host, uint64_t id, struct error *err)
{
    for (uint32_t i = 0; i < CLUSTER_DISKS_MAX; i++) {
        uint64_t first = deepest_pending(cluster_state(host->cluster), id);
        if (!first)
            return 0;
        int rc = settle_disk(host, first, err);
        /* Somebody else may have settled it, to close or to remove the disk. */
        if (rc < 0 && deepest_pending(cluster_state(host->cluster), id) == first)
            return rc;
    }
    return err_set(err, -PLX_ELIMIT, "too long a chain of clones");
}

async int version_settle(struct host *host, uint64_t version, struct error *err)
{
    const struct cluster_version *at =
        cluster_version_by_id(cluster_state(host->cluster), version);

    if (!at)
        return err_set(err, -PLX_EMISSING, "no such snapshot");
    if (!at->pending)
        return 0;
    uint64_t id = at->disk; /* the state may change at every suspension */
    int rc = settle_base(host, id, err);
    if (rc == 0)
        rc = settle_disk(host, id, err);
    /* Somebody else may have settled it, to close or to remove the disk. */
    at = cluster_version_by_id(cluster_state(host->cluster), version);
    return at && !at->pending ? 0 : rc;
}

/* --- callbacks of the log --- */

static struct disk *disk_of(struct log_callbacks *callbacks)
{
    return container_of(callbacks, struct disk, callbacks);
}

static void on_committed(struct log_callbacks *self, struct log_record *record,
                         const struct log_piece *piece, bool last)
{
    struct disk *disk = disk_of(self);

    switch (record->kind) {
    case ENTRY_ZERO:
        checkpoint_after_zeros(disk);
        write_committed(disk, record, piece, last);
        break;
    case ENTRY_DATA:
        write_committed(disk, record, piece, last);
        break;
    case ENTRY_NODE:
        node_committed(record, piece);
        break;
    case ENTRY_MARKER:
        marker_committed(disk, record, piece);
        break;
    case ENTRY_LIST:
        list_committed(record, piece);
        break;
    }
    checkpoint_consider(disk);
    host_update_reserve(disk->host);
}

static void on_failed(struct log_callbacks *self, struct log_record *record, int code)
{
    struct disk *disk = disk_of(self);

    if (record->kind == ENTRY_NODE)
        node_failed(record, code);
    else if (record->kind == ENTRY_LIST)
        list_failed(record, code);
    else if (record->kind == ENTRY_MARKER)
        marker_failed(record, code);
    else
        write_failed(disk, record, code);
}

static void on_moved(struct log_callbacks *self, const struct log_piece *piece,
                     struct address was)
{
    struct disk *disk = disk_of(self);
    uint32_t count = (uint32_t)piece->count;
    struct layer *layer;
    int rc = 0;

    if (piece->kind == ENTRY_DATA) {
        TAILQ_FOREACH (layer, &disk->layers, link)
            if (rc == 0)
                rc = overlay_move(&layer->overlay, piece->key, count, was,
                                  piece->address);
    } else {
        disk->checkpoint_abandoned = true;
        rc = dead_set_move(&disk->orphans, count, was, piece->address);
        if (rc == 0 && disk->attempt)
            rc = checkpoint_moved(disk->attempt, count, was, piece->address);
    }
    if (rc < 0)
        disk_go_down(disk, rc);
}

static void on_down(struct log_callbacks *self, int code)
{
    disk_go_down(disk_of(self), code);
}

/* --- replay --- */

/* The version whose marker has this number, if its snapshot was committed. */
static uint64_t version_of_marker(struct disk *disk, uint64_t number)
{
    const struct cluster_state *state = cluster_state(disk->host->cluster);
    const struct cluster_disk *self = cluster_disk_by_id(state, disk->id);
    const struct cluster_version *version;

    if (!self)
        return 0;
    for (version = cluster_version_by_id(state, self->head_parent);
         version && version->disk == disk->id && version->pending;
         version = cluster_version_by_id(state, version->parent))
        if (version->marker == number)
            return version->id;
    return 0;
}

/* A block of a node or list. Of a checkpoint that did not come to pass: it is garbage,
 * and its K is not used again. What an older K left behind is on the list of the one that
 * was committed after it. */
static int replay_node(struct disk *disk, const struct log_piece *piece)
{
    if (piece->checkpoint <= disk->replay_checkpoint)
        return 0;
    disk->next_checkpoint = max_u64(disk->next_checkpoint, piece->checkpoint);
    return dead_set_put(&disk->orphans, piece->address, (uint32_t)piece->count);
}

static int on_replay(void *arg, const struct log_piece *piece)
{
    struct disk *disk = arg;
    struct layer *top = layer_top(disk);

    if (piece->is_spare)
        return address_is_null(piece->address)
                   ? 0
                   : dead_set_put(&disk->orphans, piece->address,
                                  (uint32_t)piece->count);

    if (piece->kind == ENTRY_DATA || piece->kind == ENTRY_ZERO) {
        /* As if this log had appended it: the next checkpoint is due that much sooner.
         * The difference that counts may wrap around. */
        if (piece->kind == ENTRY_DATA)
            disk->checkpoint_at_bytes -= piece->count * BLOCK_SIZE;
        return layers_take(disk, piece);
    }
    if (piece->kind != ENTRY_MARKER)
        return replay_node(disk, piece);
    if (overlay_empty(&top->overlay))
        top->overlay.generation = piece->generation;
    top->marker = piece->number;
    top->version = version_of_marker(disk, piece->number);
    return layer_push(disk, piece->generation + 1, piece->number) ? 0 : -ENOMEM;
}

/* After the replay: what is written from now on is the head's. */
static int raise_generation(struct disk *disk, uint32_t generation)
{
    struct layer *top = layer_top(disk);

    if (top->overlay.generation < generation) {
        if (overlay_empty(&top->overlay))
            top->overlay.generation = generation;
        else if (!layer_push(disk, generation, log_committed_number(disk->log)))
            return -ENOMEM;
    }
    disk->append_generation = layer_top(disk)->overlay.generation;
    return 0;
}

static async int start_log(struct disk *disk, struct error *err)
{
    struct host *host = disk->host;
    struct log_options options = {
        .loop = disk->loop,
        .cluster = host->cluster,
        .store = host->store,
        .callbacks = &disk->callbacks,
        .retained = &host->retained,
        .directory = host->directory,
        .buffers = host->log_buffers,
        .node = host->node,
        .disk = disk->id,
        .is_ending = &host->is_ending,
        .sealed = host->options.sealed,
        .sealed_arg = host->options.sealed_arg,
    };

    disk->callbacks = (struct log_callbacks){on_committed, on_failed, on_moved, on_down};
    return log_open(&options, &disk->log, err);
}

static async int start_head(struct disk *disk, struct error *err)
{
    struct host *host = disk->host;
    const struct cluster_disk *state;
    uint64_t pending;
    int rc = settle_base(host, disk->id, err);

    if (rc == 0)
        rc = start_log(disk, err);
    if (rc < 0)
        return rc;
    state = cluster_disk_by_id(cluster_state(host->cluster), disk->id);
    if (!state || disk_base_root(cluster_state(host->cluster), state, &disk->root,
                                 &pending) < 0)
        return err_set(err, -PLX_EPRECONDITION, "disk changed while it was opened");
    uint32_t generation = state->head_generation;
    disk->size_bytes = state->size_bytes;
    disk->next_checkpoint = disk->replay_checkpoint = state->checkpoint.number;
    if (!layer_push(disk, generation, 0))
        return err_set(err, -ENOMEM, "out of memory");
    rc = log_replay(disk->log, on_replay, disk, err);
    if (rc < 0)
        return rc;
    rc = raise_generation(disk, generation);
    if (rc == 0)
        rc = disk->down; /* meanwhile */
    if (rc < 0)
        return err_set(err, rc, "%s", err_text(rc));
    checkpoint_timer_start(disk);
    return 0;
}

static async int start_snapshot(struct disk *disk, struct error *err)
{
    struct host *host = disk->host;
    const struct cluster_version *version;
    int rc = version_settle(host, disk->version, err);

    if (rc < 0)
        return rc;
    version = cluster_version_by_id(cluster_state(host->cluster), disk->version);
    if (!version || version->pending || version->collapsing)
        return err_set(err, -PLX_EMISSING, "snapshot is gone");
    disk->root = version->root;
    disk->size_bytes = version->size_bytes;
    return 0;
}

async int disk_start(struct disk *disk, struct error *err)
{
    int rc = disk->version ? start_snapshot(disk, err) : start_head(disk, err);

    if (rc < 0)
        err_add(err, rc, "disk %s", disk->name);
    if (rc < 0 && disk->log) {
        log_abandon(take(disk->log));
        timer_stop(disk->loop, &disk->checkpoint_timer);
    }
    if (rc == 0 && disk->log)
        rewriter_wanted(disk->host);
    return rc;
}

/* Nothing lies above the last checkpoint but its own nodes: says so. Then the root alone
 * tells all of the disk, which is what rollback and removal ask for. */
static async int cover_all(struct disk *disk, struct error *err)
{
    struct cluster *cluster = disk->host->cluster;
    const struct cluster_disk *state =
        cluster_disk_by_id(cluster_state(cluster), disk->id);
    uint64_t last = log_committed_number(disk->log);
    struct cluster_command command = {.op = CLUSTER_CHECKPOINT, .root = disk->root};
    struct cluster_result result;

    if (!state || last <= state->checkpoint.covers || disk->frozen_count > 0 ||
        !overlay_empty(&layer_top(disk)->overlay))
        return 0;
    int rc = disk_flush_wait(disk);
    if (rc < 0)
        return err_set(err, rc, "%s", err_text(rc));
    mutex_lock(&disk->command_lock);
    state = cluster_disk_by_id(cluster_state(cluster), disk->id);
    command.checkpoint = (struct cluster_checkpoint){++disk->next_checkpoint, last, last};
    command.newest_marker = state ? state->newest_marker : 0;
    log_finals_prepare(disk->log, last, &command);
    rc = cluster_submit(cluster, &command, &result);
    log_finals_committed(disk->log, rc == 0);
    mutex_unlock(&disk->command_lock);
    return rc < 0 ? err_set(err, rc, "%s", result.text) : 0;
}

async int disk_end_log(struct disk *disk, struct error *err)
{
    struct error ignored = {0};

    timer_stop(disk->loop, &disk->checkpoint_timer);
    if (!disk->log)
        return 0;
    if (!disk->down &&
        (disk_checkpoint(disk, &ignored) < 0 || cover_all(disk, &ignored) < 0))
        log_warning(disk->loop, "disk %s: closed without a checkpoint: %s", disk->name,
                    ignored.text);
    trimmer_stop(disk);
    if (disk->down) {
        log_abandon(take(disk->log));
        return 0;
    }
    disk->gives_up = !planted(PLANT_READ_AFTER_LEASE);
    return log_close(take(disk->log), err);
}

async int disk_end(struct disk *disk, struct error *err)
{
    bool has_log = disk->log != NULL;
    int rc = disk_end_log(disk, err);

    if (rc == 0 && has_log && !disk->down)
        disk_tidy(disk);
    return rc;
}

void disk_reset(struct disk *disk)
{
    assert(!disk->log && !disk->checkpoint_running && !disk->rewrite);
    timer_stop(disk->loop, &disk->checkpoint_timer);
    layers_done(disk);
    disk->root = (struct map_root){0};
    dead_set_done(&disk->orphans);
    dead_set_init(&disk->orphans);
    trimmer_done(disk);
    disk->trims = (struct trimmer){0};
    trimmer_init(disk);
    disk->append_generation = 0;
    disk->next_checkpoint = disk->replay_checkpoint = disk->checkpoint_at_bytes = 0;
    disk->checkpoint_abandoned = false;
    disk->checkpoint_error = 0;
    disk->unreadable = (struct unreadable_node){0};
    disk->short_blocks = 0;
    disk->rolled_extent = ADDRESS_NULL;
    disk->quota_counted_ns = 0; /* the next log counts from 0 */
    disk->quota_is_marked = false;
    disk->move = (struct pool_move){0};
}

void disk_free(struct disk *disk)
{
    assert(disk->io_count == 0 && TAILQ_EMPTY(&disk->ranges));
    timer_stop(disk->loop, &disk->idle_timer);
    timer_stop(disk->loop, &disk->checkpoint_timer);
    loop_post_cancel(disk->loop, &disk->finish_work);
    layers_done(disk);
    dead_set_done(&disk->orphans);
    trimmer_done(disk);
    remote_destroy(disk->remote);
    free(disk->locality);
    free(disk);
}
