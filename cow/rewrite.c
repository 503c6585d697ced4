/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rewriter. Reads in order that meet scattered blocks are counted (locality.c). Where
 * they have cost enough, and nothing was written for a while, a task appends the blocks
 * to the disk's log once more, leaf by leaf and in order, as records like a guest's; the
 * next checkpoint finds the old copies dead.
 *
 * A guest's change always wins (D6). The blocks are read first, without standing in any
 * change's way; if a change of one of them begins meanwhile, or had begun before, the
 * leaf is let be. Otherwise its records are queued in the same step in which that is
 * seen, so whatever comes later lies behind them in the log. The same holds for a
 * snapshot's marker, after which the old copies would not die.
 *
 * What cannot be read or logged is let be, too: nothing is lost by that, and reads that
 * go on to suffer will ask again. The task holds a disk only while it is at one leaf, or
 * a few, so it can be closed in between; it never opens one.
 *
 * A disk that got another pool is moved in the same way: what is the head's own and lies
 * in groups of another pool is appended once more, in passes over the whole map until one
 * finds nothing. New blocks are in the new pool already. A pass begins with a checkpoint,
 * so that what is not in the map is newer than the pass.
 */
#include "cow/rewrite.h"

#include "cow/disk_internal.h"
#include "cow/pace.h"
#include "cow/tree_walk.h"

#define SCATTERED_PIECES 16U         /* of 256 blocks */
#define COLD_S           60U
#define LOOK_NS          (10 * NS_PER_S)
#define FREE_SHARE       8U          /* of the store must be free: one in so many parts */
#define FLUSH_LEAVES     4U          /* what is not flushed is retained */
#define MOVE_LEAVES      64U         /* found by one walk */

/* Why a leaf is rewritten. */
enum reason { SCATTERED, ELSEWHERE };

struct rewriter {
    struct host *host;
    struct timer timer;
    struct task_call task;
    struct pace pace;
    uint64_t leaves;                 /* rewritten by this run */
    bool running, stop;
    struct waitlist over;
    struct metric *bytes;
};

void rewrite_disturbed(struct disk *disk, uint64_t first, uint64_t end)
{
    struct rewrite *rewrite = disk->rewrite;

    if (rewrite && first < rewrite->end && rewrite->first < end)
        rewrite->disturbed = true;
}

void rewrite_forget(struct disk *disk)
{
    if (disk->rewrite)
        disk->rewrite->disturbed = true;
    free(take(disk->locality));
}

bool rewrite_leaf_wanted(const struct map_node_format *leaf, uint32_t bound,
                         bool *ret_wanted)
{
    uint64_t follows = 0;
    uint32_t pieces = 0;

    for (unsigned i = 0; i < MAP_FANOUT; i++) {
        struct map_entry entry = map_entry_at(leaf, i);
        ret_wanted[i] = !address_is_null(entry.address);
        if (!ret_wanted[i])
            continue;
        if (entry.generation <= bound)
            return false;
        pieces += entry.address.v != follows;
        follows = entry.address.v + 1;
    }
    return pieces >= SCATTERED_PIECES;
}

/* --- pools --- */

static const struct cluster_disk *state_of(const struct disk *disk)
{
    return cluster_disk_by_id(cluster_state(disk->host->cluster), disk->id);
}

static bool is_moving(const struct disk *disk)
{
    const struct cluster_disk *state = disk->log ? state_of(disk) : NULL;

    return state && (state->flags & DISK_MOVING);
}

static bool is_elsewhere(const struct disk *disk, struct address address)
{
    const struct cluster_disk *state = state_of(disk);
    const struct cluster_group *group = cluster_group_by_id(
        cluster_state(disk->host->cluster), address_group(address));

    return state && group && group->pool != state->pool;
}

/* Whether there are such blocks of the head's own. Of a leaf that has none but lies there
 * itself one block is wanted, so that it is written anew. */
static bool leaf_is_elsewhere(const struct disk *disk, const struct map_node_format *leaf,
                              uint32_t bound, bool *ret_wanted)
{
    unsigned first = MAP_FANOUT;
    bool any = false;

    for (unsigned i = 0; i < MAP_FANOUT; i++) {
        struct map_entry entry = map_entry_at(leaf, i);
        if (!address_is_null(entry.address))
            first = min_u32(first, i);
        ret_wanted[i] = !address_is_null(entry.address) && entry.generation > bound &&
                        is_elsewhere(disk, entry.address);
        any = any || ret_wanted[i];
    }
    if (!any && first < MAP_FANOUT)
        ret_wanted[first] = any = true;
    return any;
}

uint32_t rewrite_move_percent(const struct disk *disk)
{
    uint64_t blocks = disk->size_bytes / BLOCK_SIZE;

    if (!is_moving(disk) || blocks == 0)
        return 0;
    return (uint32_t)(min_u64(disk->move.next, blocks) * 100 / blocks);
}

/* --- one leaf --- */

static bool may_rewrite(const struct disk *disk)
{
    const struct host *host = disk->host;
    struct store_usage usage;

    if (disk->state != DISK_OPEN || disk->down || !disk->log || disk->door_closed ||
        disk->exclusive || disk->closing_soon || host->closing ||
        checkpoint_behind(disk) ||
        disk->snapshot_lock.holder) /* its marker may be on its way */
        return false;
    store_usage(host->store, &usage);
    return !usage.failed && usage.free_bytes >= usage.capacity_bytes / FREE_SHARE;
}

/* Is the range as the map says, with no change on its way? */
static bool is_quiet(const struct disk *disk, uint64_t first, uint64_t end)
{
    const struct disk_io *io;
    struct layer_run run = layers_find(disk, first, end);

    if (run.in_layers || run.count < end - first)
        return false;
    TAILQ_FOREACH (io, &disk->ranges, link)
        if (io->first < end && first < io->end)
            return false;
    return true;
}

/* What is not younger belongs to a snapshot, too: one whose map is still to be written
 * included. */
static uint32_t bound_of(const struct disk *disk)
{
    const struct cluster_state *state = cluster_state(disk->host->cluster);
    const struct cluster_disk *head = cluster_disk_by_id(state, disk->id);
    const struct cluster_version *parent =
        head ? cluster_version_by_id(state, head->head_parent) : NULL;

    if (!head)
        return UINT32_MAX;
    return parent && parent->pending ? parent->generation
                                     : cluster_disk_bound(state, head);
}

/* 1: the leaf at `first` is worth it. */
static async int look_at_leaf(struct disk *disk, uint64_t first, enum reason reason,
                              bool *ret_wanted)
{
    struct host *host = disk->host;
    struct map_root root = disk->root;
    struct map_span span;
    int rc = map_get(host->nodes, &root, first, &span);

    if (rc < 0 || !span.leaf)
        return rc;
    bool wanted = reason == SCATTERED
                      ? rewrite_leaf_wanted(span.leaf->format, bound_of(disk), ret_wanted)
                      : leaf_is_elsewhere(disk, span.leaf->format, bound_of(disk),
                                          ret_wanted);
    node_put(host->nodes, span.leaf);
    return wanted;
}

/* With disk->rewrite set. Returns how many blocks were rewritten; -EAGAIN: let be. */
static async int rewrite_guarded(struct disk *disk, uint64_t first, uint64_t count,
                                 enum reason reason)
{
    uint32_t generation = disk->append_generation;
    bool wanted[MAP_FANOUT] = {false};
    struct buffer *buffer;
    int blocks = 0, rc = look_at_leaf(disk, first, reason, wanted);

    if (rc <= 0)
        return rc;
    rc = buffer_await(disk->host->log_buffers, count * BLOCK_SIZE, &buffer);
    if (rc < 0)
        return rc;
    rc = read_blocks(disk, first, count, buffer->data);
    if (rc == 0 && !disk->rewrite->disturbed && may_rewrite(disk) &&
        generation == disk->append_generation &&
        first + count <= disk->size_bytes / BLOCK_SIZE) {
        for (uint64_t i = 0; i < count; i++)
            blocks += wanted[i];
        rc = disk_data_wait(disk, first, count, wanted, buffer);
    } else if (rc == 0) {
        rc = -EAGAIN;
    }
    buffer_put(buffer);
    return rc < 0 ? rc : blocks;
}

static async int rewrite_leaf(struct disk *disk, uint64_t first, enum reason reason)
{
    uint64_t blocks = disk->size_bytes / BLOCK_SIZE;
    struct rewrite rewrite = {.first = first, .end = min_u64(first + MAP_FANOUT, blocks)};

    if (first >= blocks)
        return 0;
    if (!may_rewrite(disk) || !is_quiet(disk, first, rewrite.end))
        return -EAGAIN;
    assert(!disk->rewrite);
    disk->rewrite = &rewrite;
    int rc = rewrite_guarded(disk, first, rewrite.end - first, reason);
    disk->rewrite = NULL;
    return rc;
}

/* --- one range --- */

static void hold(struct disk *disk)
{
    disk->users++;
    timer_stop(disk->loop, &disk->idle_timer);
}

/* One leaf of a disk that is held. How many blocks it was, or why it was let be. */
static async int rewrite_paced(struct rewriter *rewriter, struct disk *disk,
                               uint64_t first, enum reason reason)
{
    pace_begin(&rewriter->pace);
    int blocks = rewrite_leaf(disk, first, reason);
    if (blocks > 0) {
        metric_add(rewriter->bytes, (uint64_t)blocks * BLOCK_SIZE);
        if (++rewriter->leaves % FLUSH_LEAVES == 0)
            (void)disk_flush_wait(disk);
    }
    return blocks;
}

/* Each block was read and written. */
static async void rest(struct rewriter *rewriter, int blocks)
{
    pace_rest(&rewriter->pace, blocks > 0 ? 2U * BLOCK_SIZE * (uint64_t)blocks : 0);
}

/* The disk, with one more user, if it is open and has such counters. */
static struct disk *hold_counted(struct host *host, uint64_t id)
{
    struct disk *disk = disk_find(host, id, 0);

    if (!disk || !disk->locality || !may_rewrite(disk))
        return NULL;
    hold(disk);
    return disk;
}

static async void rewrite_range(struct rewriter *rewriter, uint64_t id, uint64_t first,
                                uint64_t end)
{
    struct disk *disk;

    for (; first < end && !rewriter->stop && (disk = hold_counted(rewriter->host, id));
         first += MAP_FANOUT) {
        int blocks = rewrite_paced(rewriter, disk, first, SCATTERED);
        disk_release(disk);
        rest(rewriter, blocks);
    }
}

/* A range of the disk that is worthy and cold. LOCALITY_RANGES: none. */
static uint32_t next_range(const struct disk *disk)
{
    const struct locality *locality = disk->locality;
    uint32_t now_s = (uint32_t)(loop_now_ns(disk->loop) / NS_PER_S);

    if (!locality || locality->worthy == 0)
        return LOCALITY_RANGES;
    for (uint32_t i = 0; i < LOCALITY_RANGES; i++)
        if (locality_is_worthy(locality, i) &&
            now_s - locality->ranges[i].changed_s >= COLD_S)
            return i;
    return LOCALITY_RANGES;
}

/* --- one disk that moves --- */

/* What a walk finds: leaves, in order. */
struct strays {
    const struct disk *disk;
    uint64_t leaves[MOVE_LEAVES];
    uint32_t count;
};

static int add_stray(struct strays *strays, uint64_t leaf)
{
    if (strays->count > 0 && strays->leaves[strays->count - 1] == leaf)
        return 0;
    if (strays->count == MOVE_LEAVES)
        return -ECANCELED; /* enough for once */
    strays->leaves[strays->count++] = leaf;
    return 0;
}

static int see_block(void *arg, uint64_t block, struct map_entry entry,
                     struct map_entry other)
{
    struct strays *strays = arg;

    (void)other;
    return is_elsewhere(strays->disk, entry.address)
               ? add_stray(strays, block / MAP_FANOUT)
               : 0;
}

static int see_node(void *arg, unsigned level, uint64_t index, struct map_entry entry)
{
    struct strays *strays = arg;

    return level == 0 && is_elsewhere(strays->disk, entry.address)
               ? add_stray(strays, index)
               : 0;
}

/* 1: the next leaves are in *ret_strays; 0: these are the last, or there are none. */
static async int find_strays(struct disk *disk, struct strays *ret_strays)
{
    static const struct tree_walk_ops ops = {.data = see_block, .node_done = see_node};
    const struct tree_walk walk = {
        .loop = disk->loop,
        .cache = disk->host->nodes,
        .root = disk->root,
        .bound = bound_of(disk),
        .first = disk->move.next,
    };

    *ret_strays = (struct strays){.disk = disk};
    if (walk.root.height == 0)
        return 0;
    int rc = tree_walk(&walk, &ops, ret_strays);
    return rc == -ECANCELED ? 1 : rc;
}

/* Says that nothing of it is left elsewhere. */
static async int say_moved(struct disk *disk)
{
    const struct cluster_disk *state = state_of(disk);
    struct cluster_result result;
    struct error err = {0};

    if (!state || !disk->log)
        return -EAGAIN;
    struct cluster_command command = {
        .op = CLUSTER_DISK_MOVED,
        .disk = disk->id,
        .epoch = log_epoch(disk->log),
        .pool = state->pool,
    };
    int rc = host_submit(disk->host, &command, &result, &err);
    if (rc == 0)
        log_info(disk->loop, "disk %s: is in its new pool", disk->name);
    return rc;
}

/* All of it was looked at: another pass is to begin, or there is nothing left. */
static async int end_pass(struct disk *disk)
{
    struct pool_move move = disk->move;

    disk->move = (struct pool_move){0};
    if (move.has_moved)
        return 0;
    return move.has_let_be ? -EAGAIN : say_moved(disk);
}

static async int begin_pass(struct disk *disk)
{
    struct error err = {0};

    if (!log_writes_to_pool(disk->log))
        return -EAGAIN;
    int rc = disk_checkpoint(disk, &err);
    if (rc == 0)
        disk->move = (struct pool_move){.is_running = true};
    return rc;
}

/* Some leaves of it. 0: it goes on; negative: not now. */
static async int move_held(struct rewriter *rewriter, struct disk *disk)
{
    struct strays strays;
    int more, rc = disk->move.is_running ? 0 : begin_pass(disk);

    if (rc < 0)
        return rc;
    more = find_strays(disk, &strays);
    if (more < 0) {
        disk->move = (struct pool_move){0}; /* from the beginning */
        return more;
    }
    for (uint32_t i = 0; i < strays.count && !rewriter->stop; i++) {
        uint64_t first = strays.leaves[i] * MAP_FANOUT;
        int blocks = rewrite_paced(rewriter, disk, first, ELSEWHERE);
        disk->move.has_moved |= blocks > 0;
        disk->move.has_let_be |= blocks < 0;
        disk->move.next = first + MAP_FANOUT;
        rest(rewriter, blocks);
    }
    return more || rewriter->stop ? 0 : end_pass(disk);
}

/* The first one above `last` that moves, and can now. */
static struct disk *next_moving(const struct rewriter *rewriter, uint64_t last)
{
    struct disk *disk, *next = NULL;

    RB_FOREACH (disk, disk_tree, &rewriter->host->disks)
        if (disk->id > last && (!next || disk->id < next->id) && is_moving(disk) &&
            may_rewrite(disk))
            next = disk;
    return next;
}

/* Some leaves of some disk. False: nothing can be moved now. */
static async bool move_some(struct rewriter *rewriter)
{
    struct disk *disk;
    uint64_t id = 0;

    while (!rewriter->stop && (disk = next_moving(rewriter, id))) {
        id = disk->id;
        hold(disk);
        int rc = move_held(rewriter, disk);
        disk_release(disk);
        if (rc == 0)
            return true;
    }
    return false;
}

/* --- all disks --- */

/* Is all of it in the map? Else a checkpoint, which would come some time, comes now. */
static bool is_mapped(struct disk *disk, uint64_t first, uint64_t end)
{
    struct layer_run run = layers_find(disk, first, end);

    if (!run.in_layers && run.count == end - first)
        return true;
    checkpoint_request(disk);
    return false;
}

/* One range of some disk. False: there is nothing to do now. */
static async bool rewrite_some(struct rewriter *rewriter)
{
    struct disk *disk;

    RB_FOREACH (disk, disk_tree, &rewriter->host->disks) {
        uint32_t range = next_range(disk);
        if (range == LOCALITY_RANGES || !may_rewrite(disk))
            continue;
        uint64_t blocks = locality_range_blocks(disk->locality);
        if (!is_mapped(disk, range * blocks, (range + 1) * blocks))
            continue; /* at the next look */
        locality_settled(disk->locality, range);
        rewrite_range(rewriter, disk->id, range * blocks, (range + 1) * blocks);
        return true;
    }
    return false;
}

static bool is_wanted(const struct rewriter *rewriter)
{
    struct disk *disk;

    RB_FOREACH (disk, disk_tree, &rewriter->host->disks)
        if ((disk->locality && disk->locality->worthy > 0) || is_moving(disk))
            return true;
    return false;
}

static void arm(struct rewriter *rewriter)
{
    if (rewriter->stop || rewriter->timer.armed || !is_wanted(rewriter))
        return;
    timer_start(rewriter->host->loop, &rewriter->timer, LOOK_NS);
}

static async void rewriter_main(struct task_call *call)
{
    struct rewriter *rewriter = container_of(call, struct rewriter, task);
    struct loop *loop = rewriter->host->loop;

    rewriter->leaves = 0;
    while (!rewriter->stop && (move_some(rewriter) || rewrite_some(rewriter))) {
    }
    if (rewriter->leaves > 0)
        log_info(loop, "rewritten in order, or in another pool: %llu MiB",
                 (unsigned long long)rewriter->leaves);
    rewriter->running = false;
    arm(rewriter); /* others may become cold */
    waitlist_wake_all(&rewriter->over);
}

static void timer_fired(struct timer *timer)
{
    struct rewriter *rewriter = container_of(timer, struct rewriter, timer);

    rewriter->running = true;
    rewriter->task = (struct task_call){
        .main = rewriter_main, .name = "rewrite", .system = true,
    };
    task_start(rewriter->host->loop, &rewriter->task);
}

void rewriter_wanted(struct host *host)
{
    if (!host->options.no_idle_work && host->rewriter && !host->rewriter->running)
        arm(host->rewriter);
}

int rewriter_open(struct host *host, struct error *err)
{
    struct rewriter *rewriter = calloc(1, sizeof *rewriter);

    if (!rewriter)
        return err_set(err, -ENOMEM, "out of memory");
    rewriter->host = host;
    rewriter->pace = (struct pace){.host = host, .parallel = 1, .stop = &rewriter->stop};
    rewriter->timer.fire = timer_fired;
    rewriter->bytes = metric_counter(host->loop, "parallax_rewritten_bytes_total",
                                     "Bytes put in order for reads");
    waitlist_init(&rewriter->over);
    host->rewriter = rewriter;
    return 0;
}

async void rewriter_close(struct host *host)
{
    struct rewriter *rewriter = host->rewriter;

    if (!rewriter)
        return;
    rewriter->stop = true;
    timer_stop(host->loop, &rewriter->timer);
    while (rewriter->running)
        waitlist_wait(&rewriter->over);
    free(take(host->rewriter));
}
