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
 * go on to suffer will ask again. The task holds a disk only while it is at one leaf, so
 * it can be closed in between; it never opens one.
 */
#include "cow/rewrite.h"

#include "cow/disk_internal.h"
#include "cow/pace.h"

#define SCATTERED_PIECES 16U         /* of 256 blocks */
#define COLD_S           60U
#define LOOK_NS          (10 * NS_PER_S)
#define FREE_SHARE       8U          /* of the store must be free: one in so many parts */
#define FLUSH_LEAVES     4U          /* what is not flushed is retained */

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
static async int look_at_leaf(struct disk *disk, uint64_t first, bool *ret_wanted)
{
    struct host *host = disk->host;
    struct map_root root = disk->root;
    struct map_span span;
    int rc = map_get(host->nodes, &root, first, &span);

    if (rc < 0 || !span.leaf)
        return rc;
    bool wanted = rewrite_leaf_wanted(span.leaf->format, bound_of(disk), ret_wanted);
    node_put(host->nodes, span.leaf);
    return wanted;
}

/* With disk->rewrite set. Returns how many blocks were rewritten. */
static async int rewrite_guarded(struct disk *disk, uint64_t first, uint64_t count)
{
    uint32_t generation = disk->append_generation;
    bool wanted[MAP_FANOUT] = {false};
    struct buffer *buffer;
    int blocks = 0, rc = look_at_leaf(disk, first, wanted);

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
    }
    buffer_put(buffer);
    return rc < 0 ? rc : blocks;
}

static async int rewrite_leaf(struct disk *disk, uint64_t first)
{
    uint64_t blocks = disk->size_bytes / BLOCK_SIZE;
    struct rewrite rewrite = {.first = first, .end = min_u64(first + MAP_FANOUT, blocks)};

    if (first >= blocks || !may_rewrite(disk) || !is_quiet(disk, first, rewrite.end))
        return 0;
    assert(!disk->rewrite);
    disk->rewrite = &rewrite;
    int rc = rewrite_guarded(disk, first, rewrite.end - first);
    disk->rewrite = NULL;
    return rc;
}

/* --- one range --- */

/* The disk, with one more user, if it is open and has such counters. */
static struct disk *hold(struct host *host, uint64_t id)
{
    struct disk *disk = disk_find(host, id, 0);

    if (!disk || !disk->locality || !may_rewrite(disk))
        return NULL;
    disk->users++;
    timer_stop(disk->loop, &disk->idle_timer);
    return disk;
}

static async void rewrite_range(struct rewriter *rewriter, uint64_t id, uint64_t first,
                                uint64_t end)
{
    struct disk *disk;

    for (; first < end && !rewriter->stop && (disk = hold(rewriter->host, id));
         first += MAP_FANOUT) {
        pace_begin(&rewriter->pace);
        int blocks = rewrite_leaf(disk, first);
        if (blocks > 0) {
            metric_add(rewriter->bytes, (uint64_t)blocks * BLOCK_SIZE);
            if (++rewriter->leaves % FLUSH_LEAVES == 0)
                (void)disk_flush_wait(disk);
        }
        disk_release(disk);
        /* Each was read and written. */
        pace_rest(&rewriter->pace, blocks > 0 ? 2U * BLOCK_SIZE * (uint64_t)blocks : 0);
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
        if (disk->locality && disk->locality->worthy > 0)
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
    while (!rewriter->stop && rewrite_some(rewriter)) {
    }
    if (rewriter->leaves > 0)
        log_info(loop, "rewritten in order: %llu MiB that were read so",
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
