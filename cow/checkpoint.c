/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checkpoint freezes the top layer, makes the log durable up to that point P, merges
 * the frozen layers into the map, oldest first (each that ends a version gives that
 * version its root), writes the new nodes to the log under its number K and behind them
 * the list of what died, makes these durable too, and only then commits {K, P, N, root,
 * roots, list}. Writes go on meanwhile, into a fresh layer.
 *
 * Dead is what the merged layers superseded, in themselves and below them, as long as it
 * is younger than the version each grows from; what earlier attempts left behind; and
 * what earlier lists could not trim yet, with the blocks of those lists.
 *
 * An attempt whose nodes a forced roll moved, or under which a version began to collapse
 * (what died is told by another bound then), is begun again under a new K; one refused
 * because of a newer snapshot is proposed again unchanged. Its nodes and list are dead
 * and known, in `orphans`. If it fails (no space, unreadable node) nothing has changed:
 * the layers stay, and it is tried again (checkpoint_due.c). If nobody knows whether it
 * was committed the disk goes down, and the next take-over reads what is there.
 *
 * An unreadable node of the old map is no failure if the merged layers replace all that
 * it is for. Those of one version do so together: what stands between them is never a
 * root. What a snapshot would show must not become zeros because of a later write.
 *
 * Closing a disk runs one last checkpoint; see disk_open.c.
 */
#include "cow/disk_internal.h"

#define NODES_INFLIGHT 64U   /* written, not committed: 256 KiB */
#define ATTEMPTS       16U
#define NODES_A_FLUSH  1024U /* what is not flushed is retained */
#define LISTS_WAIT_NS  (100 * NS_PER_MS)

struct sink {
    struct map_sink map;     /* first: handed to map_merge */
    struct disk *disk;
    struct list_writer *list;
    uint64_t checkpoint;     /* K */
    uint32_t generation;
    uint32_t bound;          /* of the layer being merged */
    const struct layer *layer; /* being merged, */
    uint32_t layer_index;    /* the oldest is 0, */
    uint32_t layer_count;    /* of those that will be */
    uint64_t blocks;         /* of the disk */
    struct unreadable_node unreadable; /* code 0: none ended the merge */
    uint32_t inflight;
    uint64_t count;          /* nodes, in all */
    struct dead_set written; /* where they are */
    int result;
    struct waitlist waiting;
};

struct checkpoint_attempt {
    struct sink sink;
    struct list_writer list;
    /* What of the trimmer's is in the list. */
    uint64_t trimmed;
    uint32_t carried_runs, carried_subtrees, spent_runs;
    uint64_t kept_blocks;
    uint32_t bound;          /* of the oldest layer */
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
    struct sink *sink = node->sink;

    if (dead_set_put(&sink->written, piece->address, 1) < 0)
        disk_go_down(sink->disk, -ENOMEM); /* it might be garbage nobody knows of */
    *node->ret_entry = (struct map_entry){
        .address = piece->address,
        .crc = piece->crcs[0],
        .generation = piece->generation,
    };
    node_add(sink->disk->host->nodes, piece->address, node->buffer->data);
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
    if (++sink->count % NODES_A_FLUSH == 0) {
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

static async int sink_dead(struct map_sink *map, struct map_entry entry, int level)
{
    struct sink *sink = container_of(map, struct sink, map);

    if (level == MAP_BLOCK)
        return list_add(sink->list, entry.address, 1);
    struct dead_subtree subtree = {entry, sink->bound, (uint8_t)level};
    return list_add_subtree(sink->list, &subtree);
}

/* The map has nothing beyond the disk's end, so this need not be replaced. */
static int sink_unreadable(struct map_sink *map, unsigned level, uint64_t index,
                           struct map_entry old, int code)
{
    struct sink *sink = container_of(map, struct sink, map);
    uint64_t count = map_entry_blocks(level + 1), first = index * count;
    uint64_t end = min_u64(first + count, sink->blocks);
    uint32_t left = sink->layer_count - sink->layer_index;

    if (layers_replaced(sink->layer, left, first, end) >= end)
        return 0;
    sink->unreadable = (struct unreadable_node){
        .code = code, .layer_index = sink->layer_index, .level = level,
        .first = first, .end = end, .entry = old,
    };
    return code;
}

/* What one checkpoint is made of. */
struct merge_plan {
    uint32_t count;              /* frozen layers to merge: the oldest ones */
    uint64_t covers;             /* P */
    struct map_root root;
    struct version_root roots[PENDING_VERSIONS_MAX];
    uint32_t root_count;
    uint64_t blocks;             /* nodes and list, of the last attempt */
    bool is_partial;             /* the top could not be frozen as well */
};

static const struct cluster_disk *state_of(const struct disk *disk)
{
    return cluster_disk_by_id(cluster_state(disk->host->cluster), disk->id);
}

static uint32_t bound_now(const struct disk *disk)
{
    const struct cluster_disk *state = state_of(disk);

    return state ? cluster_disk_bound(cluster_state(disk->host->cluster), state) : 0;
}

static void attempt_init(struct checkpoint_attempt *attempt, struct disk *disk)
{
    *attempt = (struct checkpoint_attempt){
        .sink = {.map = {.write = sink_write, .wait = sink_wait, .dead = sink_dead,
                         .unreadable = sink_unreadable,
                         .buffers = disk->host->log_buffers},
                 .disk = disk,
                 .list = &attempt->list,
                 .checkpoint = disk->next_checkpoint},
        .bound = bound_now(disk),
    };
    waitlist_init(&attempt->sink.waiting);
    dead_set_init(&attempt->sink.written);
    list_init(&attempt->list, disk, disk->next_checkpoint);
    disk->checkpoint_abandoned = false;
    disk->attempt = attempt;
}

/* Ends it. What it wrote is garbage, unless it was committed. */
static void attempt_done(struct checkpoint_attempt *attempt, struct disk *disk,
                         bool committed)
{
    struct trimmer *trims = &disk->trims;

    disk->attempt = NULL;
    trims->gathered = false;
    if (committed) {
        dead_set_done(&disk->orphans);
        dead_entries_drop(&trims->carried, attempt->carried_runs,
                          attempt->carried_subtrees);
        dead_entries_drop(&trims->spent, attempt->spent_runs, 0);
        trims->kept_blocks -= attempt->kept_blocks;
    } else {
        dead_set_take(&disk->orphans, &attempt->sink.written);
        dead_set_take(&disk->orphans, &attempt->list.written);
    }
    dead_set_done(&attempt->sink.written);
    list_done(&attempt->list);
}

int checkpoint_moved(struct checkpoint_attempt *attempt, uint32_t count,
                     struct address was, struct address now)
{
    int rc = dead_set_move(&attempt->sink.written, count, was, now);

    return rc < 0 ? rc : dead_set_move(&attempt->list.written, count, was, now);
}

/* Merges the layers; each grows from the last version below it. */
static async int merge_layers(struct disk *disk, struct checkpoint_attempt *attempt,
                              struct merge_plan *todo)
{
    struct sink *sink = &attempt->sink;
    struct layer *layer = TAILQ_LAST(&disk->layers, layer_list);
    uint64_t blocks = div_up_u64(disk->size_bytes, BLOCK_SIZE);

    todo->root = disk->root;
    todo->root_count = 0;
    sink->bound = attempt->bound;
    sink->blocks = blocks;
    sink->layer_count = todo->count;
    for (uint32_t i = 0; i < todo->count; i++) {
        sink->layer = layer;
        sink->layer_index = i;
        sink->generation = planted(PLANT_NODE_GENERATION) ? disk->append_generation
                                                           : layer->overlay.generation;
        int rc = map_merge(disk->host->nodes, &todo->root, &layer->overlay, blocks,
                           sink->bound, &sink->map, &todo->root);
        if (rc < 0)
            return rc;
        if (layer->version) {
            const struct cluster_version *version = cluster_version_by_id(
                cluster_state(disk->host->cluster), layer->version);
            if (todo->root_count == ARRAY_LEN(todo->roots) || !version)
                return -PLX_ELIMIT;
            todo->roots[todo->root_count++] =
                (struct version_root){layer->version, todo->root};
            if (!planted(PLANT_BOUND_AT_CHECKPOINT))
                sink->bound = version->generation;
        }
        layer = TAILQ_PREV(layer, layer_list, link);
    }
    return 0;
}

/* All that died beside what the merge told. */
static async int list_the_rest(struct disk *disk, struct checkpoint_attempt *attempt,
                               const struct merge_plan *todo)
{
    struct trimmer *trims = &disk->trims;
    struct list_writer *list = &attempt->list;
    struct layer *layer = TAILQ_LAST(&disk->layers, layer_list);
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < todo->count; i++) {
        rc = list_add_set(list, &layer->overlay.dead);
        layer = TAILQ_PREV(layer, layer_list, link);
    }
    if (rc == 0)
        rc = list_add_set(list, &disk->orphans);
    trims->gathered = true;
    trims->gathers++;
    attempt->kept_blocks = trims->kept_blocks;
    attempt->trimmed = planted(PLANT_LIST_FORGOTTEN) ? attempt->sink.checkpoint - 1
                                                     : trims->processed;
    attempt->carried_runs = trims->carried.run_count;
    attempt->carried_subtrees = trims->carried.subtree_count;
    attempt->spent_runs = trims->spent.run_count;
    if (rc == 0)
        rc = list_add_entries(list, &trims->carried, attempt->carried_runs,
                              attempt->carried_subtrees);
    if (rc == 0)
        rc = list_add_entries(list, &trims->spent, attempt->spent_runs, 0);
    return rc < 0 ? rc : list_finish(list);
}

/* P. If nothing but nodes and lists was written since the freeze, the root covers these
 * batches, too: then a disk at rest needs no batch of its log any more. */
static uint64_t covered_now(const struct disk *disk, const struct merge_plan *todo,
                            uint64_t last)
{
    bool is_quiet = overlay_empty(&layer_top(disk)->overlay) &&
                    disk->frozen_count == todo->count;

    return is_quiet ? max_u64(todo->covers, last) : todo->covers;
}

/* Commits the attempt. Refused for a newer snapshot: again, unchanged. -EAGAIN: its list
 * does not fit the state any more. */
static async int propose(struct disk *disk, const struct checkpoint_attempt *attempt,
                         const struct merge_plan *todo, struct error *err)
{
    struct cluster_result result;
    uint64_t last = log_flushed_number(disk->log);
    int rc = -PLX_EPRECONDITION;

    for (uint32_t i = 0; i < ATTEMPTS && rc == -PLX_EPRECONDITION; i++) {
        mutex_lock(&disk->command_lock);
        if (bound_now(disk) != attempt->bound) {
            mutex_unlock(&disk->command_lock);
            return -EAGAIN;
        }
        const struct cluster_disk *state = state_of(disk);
        uint64_t covers = covered_now(disk, todo, last);
        struct cluster_command command = {
            .op = CLUSTER_CHECKPOINT,
            .checkpoint = {disk->next_checkpoint, covers, last},
            .root = todo->root,
            .roots = todo->roots,
            .root_count = todo->root_count,
            .newest_marker = state ? state->newest_marker : 0,
            .trimmed = attempt->trimmed,
            .list = attempt->list.named,
        };
        log_finals_prepare(disk->log, covers, &command);
        rc = cluster_submit_known(disk->host->cluster, &command, &disk->host->is_stopping,
                                  &result);
        log_finals_committed(disk->log, rc == 0);
        mutex_unlock(&disk->command_lock);
    }
    /* What K wrote is neither live nor dead. */
    if (cluster_outcome_is_unknown(rc))
        disk_go_down(disk, rc);
    if (rc < 0)
        return err_set(err, rc, "checkpoint: %s", result.text);
    return 0;
}

/* The last attempt found no space, and there is less now than it wrote: another one would
 * use that up, too, and leave it behind. */
static bool lacks_space(const struct disk *disk)
{
    struct store_usage usage;

    store_usage(disk->host->store, &usage);
    return usage.free_bytes < disk->short_blocks * BLOCK_SIZE;
}

static int attempt_failed(const struct unreadable_node *bad, int code, struct error *err)
{
    if (bad->code == 0)
        return err_set(err, code, "checkpoint: %s", err_text(code));
    return err_set(err, code,
                   "checkpoint: map node of level %u for the %llu bytes from offset %llu "
                   "on: extent %llx block %u: %s; 'parallax check --repair' may rebuild "
                   "it, and writing or discarding all of these bytes rids the disk of it",
                   bad->level, (unsigned long long)((bad->end - bad->first) * BLOCK_SIZE),
                   (unsigned long long)(bad->first * BLOCK_SIZE),
                   (unsigned long long)address_extent(bad->entry.address).v,
                   address_block(bad->entry.address), err_text(code));
}

/* One attempt, under a number of its own. -EAGAIN: it was in vain, another may do. */
static async int attempt_run(struct disk *disk, struct merge_plan *todo,
                             struct error *err)
{
    struct checkpoint_attempt attempt;
    int rc;

    if (lacks_space(disk))
        return err_set(err, -PLX_EFULL, "checkpoint: %s", err_text(-PLX_EFULL));
    disk->next_checkpoint++;
    attempt_init(&attempt, disk);
    rc = merge_layers(disk, &attempt, todo);
    if (rc == 0)
        rc = list_the_rest(disk, &attempt, todo);
    if (rc == 0 && !planted(PLANT_NODES_UNFLUSHED))
        rc = disk_flush_wait(disk);
    if (rc == 0 && disk->checkpoint_abandoned && !planted(PLANT_MOVED_COMMITTED))
        rc = -EAGAIN;
    if (rc == 0 && planted(PLANT_TRIM_BEFORE_CHECKPOINT))
        trimmer_trim_early(disk, &attempt.list.named);
    if (rc < 0)
        attempt_failed(&attempt.sink.unreadable, rc, err);
    else
        rc = propose(disk, &attempt, todo, err);
    todo->blocks = attempt.sink.count + attempt.list.named.blocks;
    disk->unreadable = attempt.sink.unreadable;
    disk->short_blocks = rc == -PLX_EFULL ? todo->blocks : 0;
    attempt_done(&attempt, disk, rc == 0);
    return rc;
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
 * that earlier attempts froze in vain are not added to without end; but what rids the
 * disk of an unreadable node may be in the top. */
static int freeze(struct disk *disk, struct merge_plan *todo)
{
    struct layer *top = layer_top(disk);
    bool replaces = disk->unreadable.code != 0; /* or it can be read by now */

    todo->covers = log_committed_number(disk->log) + planted(PLANT_COVERS_HIGH);
    if (!overlay_empty(&top->overlay)) {
        todo->is_partial = disk->frozen_count >= FROZEN_LAYERS_MAX && !replaces;
        if (todo->is_partial)
            todo->covers = TAILQ_NEXT(top, link)->covers;
        else if (!layer_push(disk, top->overlay.generation, todo->covers))
            return -ENOMEM;
    }
    todo->count = disk->frozen_count;
    return 0;
}

/* The node that ended the last checkpoint would end this one, too, even with what is in
 * the top by now, and behind all that it would write again. 0: it would not. */
static async int still_unreadable(struct disk *disk)
{
    const struct unreadable_node *bad = &disk->unreadable;
    const struct layer *layer = TAILQ_LAST(&disk->layers, layer_list);
    const struct node *node;

    if (bad->code == 0 || bad->layer_index > disk->frozen_count)
        return 0;
    for (uint32_t i = 0; i < bad->layer_index; i++)
        layer = TAILQ_PREV(layer, layer_list, link);
    uint32_t count = disk->frozen_count + 1 - bad->layer_index;
    if (layers_replaced(layer, count, bad->first, bad->end) >= bad->end)
        return 0;
    int rc = node_get(disk->host->nodes, bad->entry.address, bad->entry.crc, &node);
    if (rc == 0)
        node_put(disk->host->nodes, node);
    return rc;
}

/* As many lists may be named as the state has room for; more are named when some were
 * trimmed. The last room is for a collapse whose end the trimming of all others may wait
 * for; whichever checkpoint is next takes its blocks along. */
static bool has_list_room(const struct disk *disk)
{
    uint32_t spare = disk->listing > 0 ? 0 : 1;

    return trimmer_lists_left(disk) + spare < LISTS_MAX;
}

static async int await_list_room(struct disk *disk)
{
    while (!has_list_room(disk)) {
        if (disk->down)
            return disk->down;
        if (disk->state != DISK_OPEN || disk->host->closing)
            return -PLX_ELIMIT;
        trimmer_kick(disk);
        task_sleep_ns(LISTS_WAIT_NS);
    }
    return 0;
}

/* Nothing is to be merged or listed, and no extent waits for a command. A closing disk,
 * which gives all of its extents up anyway, is left with a root that covers all of its
 * log, so that nobody has to replay what it does not need. */
static bool is_idle(const struct disk *disk, const struct merge_plan *todo)
{
    const struct cluster_disk *state = state_of(disk);
    uint64_t covered = state ? state->checkpoint.covers : 0;

    if (todo->count > 0 || disk->orphans.count > 0)
        return false;
    return disk->state == DISK_OPEN ? !log_awaits_command(disk->log)
                                    : log_committed_number(disk->log) <= covered;
}

static async int checkpoint_locked(struct disk *disk, bool *ret_again, struct error *err)
{
    struct merge_plan todo = {0};
    uint64_t at_bytes;
    int rc = await_list_room(disk);

    if (rc < 0)
        return err_set(err, rc, "checkpoint: %s", err_text(rc));
    rc = still_unreadable(disk);
    if (rc < 0)
        return attempt_failed(&disk->unreadable, rc, err);
    at_bytes = log_appended_bytes(disk->log);
    rc = freeze(disk, &todo);
    *ret_again = todo.is_partial;
    if (rc < 0)
        return err_set(err, rc, "out of memory");
    if (is_idle(disk, &todo)) {
        disk->checkpoint_at_bytes = at_bytes;
        return 0;
    }
    while (!disk->down && !all_settled(disk, todo.count) &&
           !planted(PLANT_SNAPSHOT_LATE)) /* D4 */
        waitlist_wait(&disk->settled);
    if (disk->down)
        return err_set(err, disk->down, "%s", err_text(disk->down));
    rc = disk_flush_wait(disk); /* what nodes name must be where it stays */
    if (rc < 0)
        return err_set(err, rc, "checkpoint: %s", err_text(rc));
    rc = -EAGAIN;
    for (uint32_t i = 0; rc == -EAGAIN && i < ATTEMPTS; i++)
        rc = attempt_run(disk, &todo, err);
    if (rc == -EAGAIN)
        rc = err_set(err, -PLX_EPRECONDITION, "checkpoint: the log rolls on and on");
    if (rc < 0)
        return rc;
    drop_merged(disk, &todo);
    /* Its own nodes are no reason for the next one. */
    disk->checkpoint_at_bytes = at_bytes + todo.blocks * BLOCK_SIZE;
    trimmer_kick(disk);
    space_freed(disk->host);
    return 0;
}

/* Under the lock. */
static async int checkpoint_run(struct disk *disk, bool is_one, struct error *err)
{
    uint64_t started_ns = loop_now_ns(disk->loop);
    bool again;
    int rc;

    disk->checkpoint_running = true;
    trace(disk->loop, "checkpoint", disk->id, disk->next_checkpoint, 0);
    do {
        again = false;
        rc = disk->down ? err_set(err, disk->down, "%s", err_text(disk->down))
                        : checkpoint_locked(disk, &again, err);
    } while (rc == 0 && again && !is_one);
    trace(disk->loop, "checkpoint done", disk->id, disk->next_checkpoint, (uint64_t)-rc);
    disk->checkpoint_running = false;
    metric_add(disk->host->checkpoints, 1);
    metric_observe_ns(disk->host->checkpoint_ns, loop_now_ns(disk->loop) - started_ns);
    return rc;
}

static void checkpoint_done(struct disk *disk, int rc)
{
    if (!disk_serves_reads(disk))
        layers_clear(disk);
    host_renew_reserve(disk->host);
    checkpoint_settled(disk, rc);
}

async int disk_checkpoint(struct disk *disk, struct error *err)
{
    mutex_lock(&disk->checkpoint_lock); /* D5 */
    int rc = checkpoint_run(disk, false, err);
    mutex_unlock(&disk->checkpoint_lock);
    checkpoint_done(disk, rc);
    return rc;
}

async int disk_list_orphans(struct disk *disk, struct error *err)
{
    int rc = 0;

    disk->listing++; /* one that waits for room may do it */
    mutex_lock(&disk->checkpoint_lock);
    const struct cluster_disk *state = state_of(disk);
    bool is_stuck = !has_list_room(disk) && state && state->collapsing_version != 0;
    bool runs = disk->orphans.count > 0 && !is_stuck;
    if (runs)
        rc = checkpoint_run(disk, true, err);
    mutex_unlock(&disk->checkpoint_lock);
    disk->listing--;
    if (runs)
        checkpoint_done(disk, rc);
    return rc;
}
