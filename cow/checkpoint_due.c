/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When a checkpoint is due: after so much log, when the overlays of all disks have used
 * half of their memory, or may need half of the reserve to be merged, when what they
 * superseded may be much beside what is free or known to be dead, when layers pile up,
 * and at least every ten minutes. The disks that want one stand in a queue; a few run at
 * a time, because each retains nodes and holds a task while it waits for the log.
 *
 * What can fail is the checkpoint. It is tried again after a while; until then changes
 * that would wait for it fail with its error instead of waiting for ever.
 *
 * A disk that wants a checkpoint stays open until it had one. On close none is started
 * here any more; closing runs one of its own.
 */
#include "cow/disk_internal.h"

#define RUNNING_MAX   4U
#define RETRY_NS      NS_PER_S
#define ZEROS_NS      (30 * NS_PER_S) /* what a guest trims is to come back soon */
#define BEHIND_FACTOR 3U     /* times the log between checkpoints */
#define THIN_LEAVES   16384U /* a disk of less than 16 GiB is not large */
#define THIN_FACTOR   4U     /* wanted writes a leaf; times the log at most */
#define EXTENTS_SOON  (LOG_EXTENTS_MAX / 4)
/* Superseded bytes that are no reason, however little space there is. */
#define DEAD_BYTES_MIN (8 * MIB)
#define DEAD_SHARE     8U /* of what is free, or known to be dead, that are a reason */

static void start_next(struct host *host);

static async void checkpoint_main(struct task_call *call)
{
    struct disk *disk = container_of(call, struct disk, checkpoint_task);
    struct host *host = disk->host;
    struct error err = {0};

    if (disk_checkpoint(disk, &err) < 0)
        log_warning(disk->loop, "disk %s: %s", disk->name, err.text);
    disk->checkpoint_wanted = false;
    host->checkpoints_running--;
    start_next(host);
    checkpoint_consider(disk);
    disk_release(disk);
}

static void start_next(struct host *host)
{
    struct disk *disk;

    while (host->checkpoints_running < RUNNING_MAX &&
           (disk = TAILQ_FIRST(&host->checkpoint_queue))) {
        TAILQ_REMOVE(&host->checkpoint_queue, disk, checkpoint_link);
        host->checkpoints_running++;
        disk->checkpoint_task = (struct task_call){
            .main = checkpoint_main, .name = "checkpoint", .system = true,
        };
        task_start(disk->loop, &disk->checkpoint_task);
    }
}

void checkpoint_request(struct disk *disk)
{
    if (disk->checkpoint_wanted || disk->checkpoint_error || disk->down ||
        disk->state != DISK_OPEN || disk->door_closed || disk->host->closing)
        return;
    disk->checkpoint_wanted = true;
    disk->users++; /* stays open until it has run */
    TAILQ_INSERT_TAIL(&disk->host->checkpoint_queue, disk, checkpoint_link);
    start_next(disk->host);
}

static uint64_t log_since(const struct disk *disk)
{
    uint64_t since = log_appended_bytes(disk->log) - disk->checkpoint_at_bytes;

    /* What was in flight at the freeze may have been taken back for want of space. */
    return since <= INT64_MAX ? since : 0;
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

static uint64_t bytes_superseded(const struct disk *disk)
{
    const struct layer *layer;
    uint64_t blocks = 0;

    TAILQ_FOREACH (layer, &disk->layers, link)
        blocks += layer->overlay.data_blocks + layer->overlay.dead.count;
    return blocks * BLOCK_SIZE;
}

static bool can_be_asked(const struct disk *disk)
{
    return disk->log && !disk->down && !disk->checkpoint_error &&
           disk->state == DISK_OPEN && !disk->door_closed;
}

/* If the disks that can be asked have so much of it together, the one with the most is
 * asked for a checkpoint, whoever wrote last. */
static bool relieve(struct host *host, uint64_t (*bytes_of)(const struct disk *disk),
                    uint64_t least_bytes)
{
    struct disk *disk, *heaviest = NULL;
    uint64_t most = 0, sum = 0;

    RB_FOREACH (disk, disk_tree, &host->disks) {
        uint64_t bytes = can_be_asked(disk) ? bytes_of(disk) : 0;
        sum += bytes;
        if (bytes > most) {
            most = bytes;
            heaviest = disk;
        }
    }
    if (!heaviest || sum < least_bytes)
        return false;
    checkpoint_request(heaviest);
    host->relieving = heaviest->checkpoint_wanted;
    return true;
}

/* What is superseded stays until a checkpoint has told what that is. Each block of an
 * overlay may supersede one of the map; only the merge knows. What is known to be dead
 * counts like free space: compaction gets it cheaper than a checkpoint of few changes. */
static uint64_t much_superseded(const struct host *host)
{
    struct store_usage usage;

    store_usage(host->store, &usage);
    return max_u64((usage.free_bytes + usage.dead_bytes) / DEAD_SHARE, DEAD_BYTES_MIN);
}

bool checkpoint_holds_space(const struct host *host)
{
    uint64_t bytes =
        (host->overlay.dead_blocks + host->overlay.data_blocks) * BLOCK_SIZE;

    return bytes >= DEAD_BYTES_MIN && bytes >= much_superseded(host);
}

/* The overlays of all disks share a budget, and all disks share the store. */
static void relieve_host(struct host *host)
{
    uint64_t half_memory = host->overlay.limit_bytes / 2;
    uint64_t half_reserve = max_u64(host->merge_bytes_max / 2, 1);

    if (host->relieving)
        return;
    if (host->overlay.used_bytes >= half_memory &&
        relieve(host, layers_bytes, half_memory))
        return;
    if (host->merge_bytes >= half_reserve &&
        relieve(host, disk_merge_bytes, half_reserve))
        return;
    if (checkpoint_holds_space(host))
        relieve(host, bytes_superseded, much_superseded(host));
}

void checkpoint_consider(struct disk *disk)
{
    relieve_host(disk->host);
    if (disk->checkpoint_wanted || !disk->log)
        return;
    if (log_since(disk) >= log_limit(disk) ||
        disk->frozen_count >= FROZEN_LAYERS_SOON || checkpoint_behind(disk))
        checkpoint_request(disk);
}

void checkpoint_after_open(struct disk *disk)
{
    const struct cluster_disk *state =
        cluster_disk_by_id(cluster_state(disk->host->cluster), disk->id);

    if (!disk->log)
        return;
    /* Each process that was killed left some: the list must not grow full of them. */
    if (state && state->extent_count >= EXTENTS_SOON && layers_bytes(disk) > 0)
        checkpoint_request(disk);
    checkpoint_consider(disk);
}

/* Their headers, and what is dead among these, are not compacted before a command. That
 * is not worth a try a second. */
static bool holds_ended(const struct disk *disk)
{
    return disk->log && log_awaits_command(disk->log);
}

static void timer_fired(struct timer *timer)
{
    struct disk *disk = container_of(timer, struct disk, checkpoint_timer);
    bool has_failed = disk->checkpoint_error != 0;

    disk->checkpoint_error = 0;
    if (layers_bytes(disk) > 0 || (!has_failed && holds_ended(disk)))
        checkpoint_request(disk);
    checkpoint_timer_start(disk);
}

void checkpoint_after_zeros(struct disk *disk)
{
    if (disk->host->options.no_idle_work || disk->zeros_noted || disk->checkpoint_error)
        return;
    disk->zeros_noted = true;
    timer_start(disk->loop, &disk->checkpoint_timer, ZEROS_NS);
}

void checkpoint_timer_start(struct disk *disk)
{
    disk->zeros_noted = false;
    if (disk->host->options.no_idle_work)
        return;
    disk->checkpoint_timer.fire = timer_fired;
    timer_start(disk->loop, &disk->checkpoint_timer, CHECKPOINT_EVERY_MS * NS_PER_MS);
}

bool checkpoint_behind(const struct disk *disk)
{
    const struct host *host = disk->host;
    bool needs_memory = host->overlay.used_bytes >= host->overlay.limit_bytes;
    bool needs_space =
        host->merge_bytes > 0 && host->merge_bytes >= host->merge_bytes_max;

    return log_since(disk) >= BEHIND_FACTOR * log_limit(disk) ||
           ((needs_memory || needs_space) && !overlay_empty(&layer_top(disk)->overlay));
}

void checkpoint_settled(struct disk *disk, int result)
{
    struct host *host = disk->host;
    struct disk *other;

    disk->checkpoint_error = result;
    if (result < 0 && disk->state == DISK_OPEN && !disk->down) {
        disk->checkpoint_timer.fire = timer_fired;
        timer_start(disk->loop, &disk->checkpoint_timer, RETRY_NS);
    }
    host->relieving = false;
    /* Changes of any disk may have waited for the budget. */
    RB_FOREACH (other, disk_tree, &host->disks)
        if (other->waiting_count > 0)
            disk_resume(other);
}
