/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checkpoint freezes the top layer, makes the log durable up to that point P, merges
 * the frozen layers into the map, oldest first (each that ends a version gives that
 * version its root), writes the new nodes to the log under its number K, makes these
 * durable too, and only then commits {K, P, N, root, roots}. Writes go on meanwhile, into
 * a fresh layer.
 *
 * An attempt whose nodes a forced roll moved is begun again under a new K, unless already
 * proposed; one refused because of a newer snapshot is proposed again unchanged. If it
 * fails (no space, unreadable node) nothing has changed: the layers stay, and it is tried
 * again when there is cause.
 *
 * Closing a disk runs one last checkpoint; see disk_open.c.
 */
#include "cow/disk_internal.h"

#define NODES_INFLIGHT 64U   /* written, not committed: 256 KiB */
#define ATTEMPTS       16U
#define BEHIND_FACTOR  3U    /* times the log between checkpoints */
#define THIN_LEAVES    16384U /* a disk of less than 16 GiB is not large */
#define THIN_FACTOR    4U    /* wanted writes a leaf; times the log at most */

struct sink {
    struct map_sink map;     /* first: handed to map_merge */
    struct disk *disk;
    uint64_t checkpoint;     /* K */
    uint32_t generation;
    uint32_t inflight;
    int result;
    struct waitlist waiting;
};

struct sink_node {
    struct log_record record; /* first: found from it */
    struct sink *sink;
    struct buffer *buffer;
    struct map_entry *ret_entry;
};

static void node_done(struct sink_node *node, int result)
{
    struct sink *sink = node->sink;

    if (result < 0)
        sink->result = result;
    sink->inflight--;
    waitlist_wake_all(&sink->waiting);
    buffer_put(node->buffer);
    free(node);
}

void node_committed(struct log_record *record, const struct log_piece *piece)
{
    struct sink_node *node = container_of(record, struct sink_node, record);

    *node->ret_entry = (struct map_entry){
        .address = piece->address,
        .crc = piece->crcs[0],
        .generation = piece->generation,
    };
    node_add(node->sink->disk->host->nodes, piece->address, node->buffer->data);
    node_done(node, 0);
}

void node_failed(struct log_record *record, int code)
{
    node_done(container_of(record, struct sink_node, record), code);
}

static async int sink_write(struct map_sink *map, unsigned level, uint64_t index,
                            struct buffer *buffer, struct map_entry *ret_entry)
{
    struct sink *sink = container_of(map, struct sink, map);
    struct sink_node *node;

    while (sink->inflight >= NODES_INFLIGHT)
        waitlist_wait(&sink->waiting);
    if (sink->result < 0)
        return sink->result;
    if (sink->disk->down)
        return sink->disk->down;
    node = calloc(1, sizeof *node);
    if (!node)
        return -ENOMEM;
    node->sink = sink;
    node->buffer = buffer_get(buffer);
    node->ret_entry = ret_entry;
    node->record = (struct log_record){
        .kind = ENTRY_NODE,
        .key = index,
        .count = 1,
        .aux = (uint8_t)level,
        .generation = sink->generation,
        .checkpoint = sink->checkpoint,
        .use_reserve = true,
        .data = {.buffer = buffer_get(buffer), .len = BLOCK_SIZE},
        .callbacks = &sink->disk->callbacks,
    };
    sink->inflight++;
    log_append(sink->disk->log, &node->record);
    return 0;
}

static async int sink_wait(struct map_sink *map)
{
    struct sink *sink = container_of(map, struct sink, map);

    while (sink->inflight > 0)
        waitlist_wait(&sink->waiting);
    return sink->result;
}

/* What one checkpoint is made of. */
struct merge_plan {
    uint32_t count;              /* frozen layers to merge: the oldest ones */
    uint64_t covers;             /* P */
    struct map_root root;
    struct version_root roots[FROZEN_LAYERS_MAX * 4];
    uint32_t root_count;
};

/* Steps of one attempt: merge, durable. */
static async int merge_layers(struct disk *disk, struct merge_plan *todo)
{
    struct sink sink = {
        .map = {.write = sink_write, .wait = sink_wait,
                .buffers = disk->host->log_buffers},
        .disk = disk,
        .checkpoint = disk->next_checkpoint,
    };
    struct layer *layer = TAILQ_LAST(&disk->layers, layer_list);
    uint64_t blocks = disk->size_bytes / BLOCK_SIZE;

    waitlist_init(&sink.waiting);
    todo->root = disk->root;
    todo->root_count = 0;
    for (uint32_t i = 0; i < todo->count; i++) {
        sink.generation = layer->overlay.generation;
        int rc = map_merge(disk->host->nodes, &todo->root, &layer->overlay, blocks,
                           &sink.map, &todo->root);
        if (rc < 0)
            return rc;
        if (layer->version) {
            if (todo->root_count == ARRAY_LEN(todo->roots))
                return -PLX_ELIMIT;
            todo->roots[todo->root_count++] =
                (struct version_root){layer->version, todo->root};
        }
        layer = TAILQ_PREV(layer, layer_list, link);
    }
    return disk_flush_wait(disk);
}

/* Commits the attempt. Refused for a newer snapshot: again, unchanged. */
static async int propose(struct disk *disk, const struct merge_plan *todo,
                         struct error *err)
{
    struct host *host = disk->host;
    struct cluster_result result;
    uint64_t last = log_flushed_number(disk->log);
    int rc = -PLX_EPRECONDITION;

    for (uint32_t i = 0; i < ATTEMPTS && rc == -PLX_EPRECONDITION; i++) {
        mutex_lock(&disk->command_lock);
        const struct cluster_disk *state =
            cluster_disk_by_id(cluster_state(host->cluster), disk->id);
        struct cluster_command command = {
            .op = CLUSTER_CHECKPOINT,
            .checkpoint = {disk->next_checkpoint, todo->covers, last},
            .root = todo->root,
            .roots = todo->roots,
            .root_count = todo->root_count,
            .newest_marker = state ? state->newest_marker : 0,
        };
        log_finals_prepare(disk->log, todo->covers, &command);
        rc = cluster_submit(host->cluster, &command, &result);
        log_finals_committed(disk->log, rc == 0);
        mutex_unlock(&disk->command_lock);
    }
    if (rc < 0)
        return err_set(err, rc, "checkpoint: %s", result.text);
    return 0;
}

static void drop_merged(struct disk *disk, const struct merge_plan *todo)
{
    disk->root = todo->root;
    for (uint32_t i = 0; i < todo->count; i++) {
        struct layer *layer = TAILQ_LAST(&disk->layers, layer_list);
        assert(layer != layer_top(disk));
        TAILQ_REMOVE(&disk->layers, layer, link);
        overlay_done(&layer->overlay);
        free(layer);
        disk->frozen_count--;
    }
}

static bool all_settled(const struct disk *disk, uint32_t count)
{
    const struct layer *layer = TAILQ_LAST(&disk->layers, layer_list);

    for (uint32_t i = 0; i < count; i++) {
        if (!layer->settled)
            return false;
        layer = TAILQ_PREV(layer, layer_list, link);
    }
    return true;
}

static async int checkpoint_locked(struct disk *disk, struct error *err)
{
    struct merge_plan todo = {.covers = log_committed_number(disk->log)};
    uint64_t at_bytes = log_appended_bytes(disk->log);
    struct layer *top = layer_top(disk);
    int rc;

    if (!overlay_empty(&top->overlay) && !layer_push(disk, top->overlay.generation))
        return err_set(err, -ENOMEM, "out of memory");
    todo.count = disk->frozen_count;
    if (todo.count == 0)
        return 0;
    while (!disk->down && !all_settled(disk, todo.count)) /* D4 */
        waitlist_wait(&disk->settled);
    if (disk->down)
        return err_set(err, disk->down, "%s", err_text(disk->down));
    rc = disk_flush_wait(disk); /* what nodes name must be where it stays */
    for (uint32_t i = 0; rc == 0 && i < ATTEMPTS; i++) {
        disk->next_checkpoint++;
        disk->checkpoint_abandoned = false;
        rc = merge_layers(disk, &todo);
        if (rc == 0 && !disk->checkpoint_abandoned)
            break;
        if (rc == 0 && i == ATTEMPTS - 1)
            rc = -PLX_EPRECONDITION;
    }
    if (rc < 0)
        return err_set(err, rc, "checkpoint: %s", err_text(rc));
    rc = propose(disk, &todo, err);
    if (rc < 0)
        return rc;
    drop_merged(disk, &todo);
    disk->checkpoint_at_bytes = at_bytes;
    return 0;
}

/* Changes of any disk may have waited for the budget. */
static void resume_all(struct host *host)
{
    struct disk *disk;

    RB_FOREACH (disk, disk_tree, &host->disks)
        if (disk->waiting_count > 0)
            disk_resume(disk);
}

async int disk_checkpoint(struct disk *disk, struct error *err)
{
    struct host *host = disk->host;
    int rc;

    mutex_lock(&disk->checkpoint_lock); /* D5 */
    uint64_t started_ns = loop_now_ns(disk->loop);
    disk->checkpoint_running = true;
    trace(disk->loop, "checkpoint", disk->id, disk->next_checkpoint, 0);
    rc = disk->down ? err_set(err, disk->down, "%s", err_text(disk->down))
                    : checkpoint_locked(disk, err);
    trace(disk->loop, "checkpoint done", disk->id, disk->next_checkpoint, (uint64_t)-rc);
    disk->checkpoint_running = false;
    mutex_unlock(&disk->checkpoint_lock);
    metric_add(host->checkpoints, 1);
    metric_observe_ns(host->checkpoint_ns, loop_now_ns(disk->loop) - started_ns);
    host->relieving = false;
    host_update_reserve(host);
    resume_all(host);
    return rc;
}

static async void checkpoint_main(struct task_call *call)
{
    struct disk *disk = container_of(call, struct disk, checkpoint_task);
    struct error err = {0};

    if (disk_checkpoint(disk, &err) < 0) {
        log_warning(disk->loop, "disk %s: %s", disk->name, err.text);
        task_sleep_ns(NS_PER_S); /* whatever the cause: not in a tight loop */
    }
    disk->checkpoint_wanted = false;
    checkpoint_consider(disk);
    disk_release(disk);
}

void checkpoint_request(struct disk *disk)
{
    if (disk->checkpoint_wanted || disk->down || disk->state != DISK_OPEN)
        return;
    disk->checkpoint_wanted = true;
    disk->users++; /* stays open while it runs */
    disk->checkpoint_task = (struct task_call){
        .main = checkpoint_main, .name = "checkpoint", .system = true,
    };
    task_start(disk->loop, &disk->checkpoint_task);
}

static uint64_t log_since(const struct disk *disk)
{
    return log_appended_bytes(disk->log) - disk->checkpoint_at_bytes;
}

/* Log after which a checkpoint is due. On a large disk written all over each write costs
 * the checkpoint a leaf; waiting longer, leaves are shared by several writes. */
static uint64_t log_limit(const struct disk *disk)
{
    uint64_t bytes = disk->host->options.checkpoint_log_bytes;
    uint64_t leaves = disk->size_bytes / (BLOCK_SIZE * MAP_FANOUT);
    uint64_t intervals = layer_top(disk)->overlay.interval_count;
    bool scattered = intervals > log_since(disk) / (8 * BLOCK_SIZE);

    return leaves >= THIN_LEAVES && scattered && intervals < leaves * THIN_FACTOR
               ? bytes * THIN_FACTOR
               : bytes;
}

static uint64_t layers_bytes(const struct disk *disk)
{
    const struct layer *layer;
    uint64_t bytes = 0;

    TAILQ_FOREACH (layer, &disk->layers, link)
        bytes += layer->overlay.bytes;
    return bytes;
}

/* The overlays of all disks share a budget: when it is half used, the disk with the most
 * is asked for a checkpoint, whoever wrote last. */
static void relieve_budget(struct host *host)
{
    struct disk *disk, *heaviest = NULL;
    uint64_t most = 0;

    if (host->relieving || host->overlay.used_bytes < host->overlay.limit_bytes / 2)
        return;
    RB_FOREACH (disk, disk_tree, &host->disks) {
        uint64_t bytes = disk->log && !disk->down ? layers_bytes(disk) : 0;
        if (bytes > most && disk->state == DISK_OPEN) {
            most = bytes;
            heaviest = disk;
        }
    }
    if (!heaviest)
        return;
    host->relieving = true;
    checkpoint_request(heaviest);
}

void checkpoint_consider(struct disk *disk)
{
    relieve_budget(disk->host);
    if (disk->checkpoint_wanted || !disk->log)
        return;
    if (log_since(disk) >= log_limit(disk) ||
        disk->frozen_count >= FROZEN_LAYERS_SOON)
        checkpoint_request(disk);
}

static void timer_fired(struct timer *timer)
{
    struct disk *disk = container_of(timer, struct disk, checkpoint_timer);

    if (layers_bytes(disk) > 0)
        checkpoint_request(disk);
    checkpoint_timer_start(disk);
}

void checkpoint_timer_start(struct disk *disk)
{
    if (disk->host->options.no_idle_work)
        return;
    disk->checkpoint_timer.fire = timer_fired;
    timer_start(disk->loop, &disk->checkpoint_timer, CHECKPOINT_EVERY_MS * NS_PER_MS);
}

bool checkpoint_behind(const struct disk *disk)
{
    const struct host *host = disk->host;

    return log_since(disk) >= BEHIND_FACTOR * log_limit(disk) ||
           (host->overlay.used_bytes >= host->overlay.limit_bytes &&
            !overlay_empty(&layer_top(disk)->overlay));
}
