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
 * again (checkpoint_due.c).
 *
 * Closing a disk runs one last checkpoint; see disk_open.c.
 */
#include "cow/disk_internal.h"

#define NODES_INFLIGHT 64U   /* written, not committed: 256 KiB */
#define ATTEMPTS       16U
#define NODES_A_FLUSH  1024U /* what is not flushed is retained */

struct sink {
    struct map_sink map;     /* first: handed to map_merge */
    struct disk *disk;
    uint64_t checkpoint;     /* K */
    uint32_t generation;
    uint32_t inflight;
    uint64_t written;        /* nodes, in all */
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
    if (++sink->written % NODES_A_FLUSH == 0) {
        int rc = disk_flush_wait(sink->disk);
        if (rc < 0)
            return rc;
    }
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
    struct version_root roots[PENDING_VERSIONS_MAX];
    uint32_t root_count;
    uint64_t nodes;              /* written by the last attempt */
    bool is_partial;             /* the top could not be frozen as well */
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
    uint64_t blocks = div_up_u64(disk->size_bytes, BLOCK_SIZE);

    waitlist_init(&sink.waiting);
    todo->root = disk->root;
    todo->root_count = 0;
    for (uint32_t i = 0; i < todo->count; i++) {
        sink.generation = planted(PLANT_NODE_GENERATION) ? disk->append_generation
                                                          : layer->overlay.generation;
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
    todo->nodes = sink.written;
    return planted(PLANT_NODES_UNFLUSHED) ? 0 : disk_flush_wait(disk);
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

/* Puts all that is committed under a frozen layer and says what is to be merged. Layers
 * that earlier attempts froze in vain are not added to without end. */
static int freeze(struct disk *disk, struct merge_plan *todo)
{
    struct layer *top = layer_top(disk);

    todo->covers = log_committed_number(disk->log) + planted(PLANT_COVERS_HIGH);
    if (!overlay_empty(&top->overlay)) {
        todo->is_partial = disk->frozen_count >= FROZEN_LAYERS_MAX;
        if (todo->is_partial)
            todo->covers = TAILQ_NEXT(top, link)->covers;
        else if (!layer_push(disk, top->overlay.generation, todo->covers))
            return -ENOMEM;
    }
    todo->count = disk->frozen_count;
    return 0;
}

static async int checkpoint_locked(struct disk *disk, bool *ret_again, struct error *err)
{
    struct merge_plan todo = {0};
    uint64_t at_bytes = log_appended_bytes(disk->log);
    int rc = freeze(disk, &todo);

    *ret_again = todo.is_partial;
    if (rc < 0)
        return err_set(err, rc, "out of memory");
    if (todo.count == 0) {
        disk->checkpoint_at_bytes = at_bytes;
        return 0;
    }
    while (!disk->down && !all_settled(disk, todo.count) &&
           !planted(PLANT_SNAPSHOT_LATE)) /* D4 */
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
    /* Its own nodes are no reason for the next one. */
    disk->checkpoint_at_bytes = at_bytes + todo.nodes * BLOCK_SIZE;
    return 0;
}

async int disk_checkpoint(struct disk *disk, struct error *err)
{
    struct host *host = disk->host;
    bool again;
    int rc;

    mutex_lock(&disk->checkpoint_lock); /* D5 */
    uint64_t started_ns = loop_now_ns(disk->loop);
    disk->checkpoint_running = true;
    trace(disk->loop, "checkpoint", disk->id, disk->next_checkpoint, 0);
    do {
        again = false;
        rc = disk->down ? err_set(err, disk->down, "%s", err_text(disk->down))
                        : checkpoint_locked(disk, &again, err);
    } while (rc == 0 && again);
    trace(disk->loop, "checkpoint done", disk->id, disk->next_checkpoint, (uint64_t)-rc);
    disk->checkpoint_running = false;
    mutex_unlock(&disk->checkpoint_lock);
    metric_add(host->checkpoints, 1);
    metric_observe_ns(host->checkpoint_ns, loop_now_ns(disk->loop) - started_ns);
    if (disk->down)
        layers_clear(disk);
    host_update_reserve(host);
    checkpoint_settled(disk, rc);
    return rc;
}
