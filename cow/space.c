/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When the store is full, or a disk at its quota: writes that found no space wait while
 * some may still come, and are tried again whenever something was freed.
 *
 * Space comes from checkpoints, which find out what is dead; from dead lists that are not
 * trimmed yet; from lists whose entries lie in an extent that is still written to, which
 * is ended then; from extents that ended, which are not compacted before commands have
 * taken them off the log's list; from versions and disks that are going away; from
 * compaction. That one is asked first. When it has nothing, when much that is dead is
 * not known yet, or when somebody has waited for a while, all of them are asked to hurry.
 * When none has anything left, or after FULL_WAIT_NS, the writes fail: what fills the
 * store is live. Stores of other hosts get a few seconds, and a try now and then.
 *
 * Nothing else waits: reads need no space, flushes write none, trims and checkpoints may
 * use the reserve. A disk that goes down gives up its waiting writes.
 */
#include "cow/reclaim.h"
#include "cow/trim.h"

#define FULL_WAIT_NS (20 * NS_PER_S)
#define HURRY_NS     NS_PER_S /* then everybody is asked */
#define LOOK_NS      (50 * NS_PER_MS)
#define OTHERS_NS    (3 * NS_PER_S) /* what stores of other hosts may take to find some */
#define OTHERS_TRY_NS (500 * NS_PER_MS) /* they do not say when */
#define RECOUNT_NS   (100 * NS_PER_MS) /* of what a disk at its quota uses */
#define RECOUNT_MANY_NS (3 * NS_PER_S) /* the same, where others have to be asked, */
#define RECOUNT_FAR_NS  (60 * NS_PER_S) /* or if it is far from it */
/* Dead blocks in extents still written to that make it worth to end these. */
#define ROLL_BLOCKS_MIN 256U

/* --- where it may come from --- */

static bool has_changes(const struct disk *disk)
{
    const struct layer *layer;

    TAILQ_FOREACH (layer, &disk->layers, link)
        if (!overlay_empty(&layer->overlay))
            return true;
    return false;
}

/* True if it is under way, or was asked to begin. */
static bool hurry_checkpoint(struct disk *disk, bool is_due)
{
    if (disk->checkpoint_running || disk->checkpoint_wanted)
        return true;
    if (disk->checkpoint_error || !is_due)
        return false;
    checkpoint_request(disk);
    return disk->checkpoint_wanted;
}

/* Much of what the last list named lies where the log is written: ends that extent, so
 * that the next checkpoint can name its final length. */
static bool hurry_roll(struct disk *disk)
{
    if (!address_is_null(disk->rolled_extent))
        return true; /* it will be final soon */
    if (trimmer_blocks_carried(disk) < ROLL_BLOCKS_MIN)
        return false;
    disk->rolled_extent = log_end_extent(disk->log);
    return !address_is_null(disk->rolled_extent);
}

/* Extents that ended give up what they need no more with the next commands of the disk.
 * If no change of it leads to one, a checkpoint without any does. */
static bool hurry_ended(struct disk *disk)
{
    return log_is_settling(disk->log) ||
           hurry_checkpoint(disk, log_awaits_command(disk->log));
}

static bool disk_space_coming(struct disk *disk)
{
    if (!disk->log || disk->down || disk->state != DISK_OPEN)
        return false;
    trimmer_kick(disk);
    bool trims = disk->trims.running || trimmer_lists_left(disk) > 0;
    bool merges = hurry_checkpoint(disk, has_changes(disk));

    if (trims || merges || trimmer_again(disk))
        return true;
    bool rolls = hurry_roll(disk);
    return hurry_ended(disk) || rolls;
}

/* What others would find is little, and nobody has waited for long. */
static bool store_suffices(const struct host *host)
{
    const struct space_wait *first = TAILQ_FIRST(&host->space_waits);
    uint64_t now_ns = loop_now_ns(host->loop);

    return store_space_coming(host->store) && !checkpoint_holds_space(host) &&
           (!first || now_ns - first->since_ns < HURRY_NS);
}

/* A disk at its quota asks nobody else, least of all the trash. */
static bool waits_for_store(const struct host *host)
{
    const struct space_wait *wait;

    TAILQ_FOREACH (wait, &host->space_waits, link)
        if (!wait->of_quota)
            return true;
    return false;
}

static bool host_space_coming(struct host *host)
{
    bool is_coming = store_space_coming(host->store);
    struct disk *disk;

    if (!waits_for_store(host))
        return false;
    if (store_suffices(host))
        return true;
    if (reclaim_space_coming(host))
        is_coming = true;
    RB_FOREACH (disk, disk_tree, &host->disks)
        if (disk_space_coming(disk))
            is_coming = true;
    return reclaim_space_coming(host) || is_coming || host->tidy_running;
}

/* --- who waits --- */

static void end(struct space_wait *wait, int code)
{
    TAILQ_REMOVE(&wait->disk->host->space_waits, wait, link);
    wait->over(wait, code);
}

static const char *why_full(const struct host *host)
{
    struct store_usage usage;

    store_usage(host->store, &usage);
    return usage.withheld_bytes > 0 ? "the file system has no more room for the store"
                                    : "the store is full";
}

/* The log says so once a minute. */
static void refuse(struct space_wait *wait)
{
    struct disk *disk = wait->disk;
    struct host *host = disk->host;
    uint64_t now_ns = loop_now_ns(host->loop);
    uint64_t *said_ns = wait->of_quota ? &disk->quota_said_ns : &host->refused_said_ns;

    if (!wait->of_quota)
        host->refused_ns = now_ns;
    if (!*said_ns || now_ns - *said_ns >= REFUSES_NS) {
        *said_ns = now_ns;
        log_warning(host->loop, "disk %s: writes are refused: %s", disk->name,
                    wait->of_quota ? "it is at its quota" : why_full(host));
    }
    end(wait, -PLX_EFULL);
}

/* Something was freed since all hosts were asked what the disk uses. */
static bool quota_is_stale(struct disk *disk)
{
    if (copies_are_alone(disk->host->copies))
        return false;
    used_refresh(disk->host);
    return disk->host->used.is_running || disk->quota_seen != disk->host->space_count;
}

/* It may be another host's store that is full; that is asked to hurry by each try. */
static bool others_may_free(const struct space_wait *wait, uint64_t now_ns)
{
    return !wait->of_quota && now_ns - wait->since_ns < OTHERS_NS &&
           host_has_others(wait->disk->host);
}

static bool is_worth_a_try(const struct space_wait *wait, uint64_t now_ns)
{
    return wait->seen != wait->disk->host->space_count ||
           (now_ns - wait->tried_ns >= OTHERS_TRY_NS && others_may_free(wait, now_ns));
}

/* Decides for all that wait now; what they do then may make them wait again. */
static void look(struct host *host)
{
    struct space_wait_list now;
    struct space_wait *wait;
    bool is_coming = host_space_coming(host);
    uint64_t now_ns = loop_now_ns(host->loop);
    uint64_t looked_ns = store_looked_ns(host->store);

    TAILQ_INIT(&now);
    TAILQ_CONCAT(&now, &host->space_waits, link);
    while ((wait = TAILQ_FIRST(&now))) {
        TAILQ_REMOVE(&now, wait, link);
        TAILQ_INSERT_TAIL(&host->space_waits, wait, link);
        bool may_come = wait->of_quota ? disk_space_coming(wait->disk) ||
                                             quota_is_stale(wait->disk)
                                       : is_coming || looked_ns < wait->since_ns ||
                                             others_may_free(wait, now_ns);
        if (is_worth_a_try(wait, now_ns))
            end(wait, 0);
        else if (!may_come || now_ns - wait->since_ns >= FULL_WAIT_NS)
            refuse(wait);
    }
    if (!TAILQ_EMPTY(&host->space_waits) && !host->space_timer.armed)
        timer_start(host->loop, &host->space_timer, LOOK_NS);
}

static void timer_fired(struct timer *timer)
{
    look(container_of(timer, struct host, space_timer));
}

static void look_run(struct work *work)
{
    look(container_of(work, struct host, space_look));
}

static void freed_run(struct work *work)
{
    space_freed(container_of(work, struct host, space_work));
}

void space_init(struct host *host)
{
    TAILQ_INIT(&host->space_waits);
    host->space_timer.fire = timer_fired;
    host->space_look.run = look_run;
    host->space_work.run = freed_run;
}

void space_start(struct host *host)
{
    store_on_space(host->store, &host->space_work);
}

void space_done(struct host *host)
{
    assert(TAILQ_EMPTY(&host->space_waits));
    if (host->store)
        store_on_space(host->store, NULL);
    timer_stop(host->loop, &host->space_timer);
    loop_post_cancel(host->loop, &host->space_work);
    loop_post_cancel(host->loop, &host->space_look);
}

void space_freed(struct host *host)
{
    host->space_count++;
    if (!TAILQ_EMPTY(&host->space_waits))
        loop_post(host->loop, &host->space_look);
}

void space_wait(struct disk *disk, struct space_wait *wait)
{
    struct host *host = disk->host;

    wait->disk = disk;
    wait->seen = host->space_count;
    wait->tried_ns = loop_now_ns(host->loop);
    if (!wait->since_ns)
        wait->since_ns = wait->tried_ns;
    TAILQ_INSERT_TAIL(&host->space_waits, wait, link);
    loop_post(host->loop, &host->space_look);
}

void space_disk_down(struct disk *disk)
{
    struct space_wait *wait, *next;

    TAILQ_FOREACH_SAFE (wait, &disk->host->space_waits, link, next)
        if (wait->disk == disk)
            end(wait, disk->down);
}

/* --- quotas --- */

static uint64_t count_used(struct disk *disk)
{
    cleanup(free_ptr) struct extent_info *infos = NULL;
    uint64_t blocks = 0;
    size_t count;

    if (store_list_extents(disk->host->store, disk->id, &infos, &count) < 0)
        return 0; /* no memory: the next count tells */
    for (size_t i = 0; i < count; i++)
        blocks += infos[i].live;
    return blocks * BLOCK_SIZE;
}

/* With others a count takes a while, and goes on beside. */
static bool is_over_counted(struct disk *disk, uint64_t quota_bytes, uint64_t appended)
{
    uint64_t now_ns = loop_now_ns(disk->loop);
    uint64_t used = disk->quota_used + (appended - disk->quota_at);
    bool is_near = used >= quota_bytes - quota_bytes / 8;
    uint64_t keep_ns = is_near ? RECOUNT_MANY_NS : RECOUNT_FAR_NS;

    if (!disk->quota_counted_ns || now_ns - disk->quota_counted_ns >= keep_ns)
        used_refresh(disk->host);
    return disk->quota_counted_ns && used >= quota_bytes;
}

bool space_over_quota(struct disk *disk)
{
    const struct cluster_disk *state = cluster_disk_by_id(
        cluster_state(disk->host->cluster), disk->id);
    uint64_t now_ns = loop_now_ns(disk->loop);
    uint64_t appended = log_appended_bytes(disk->log);

    if (!state || !state->quota_bytes)
        return false;
    if (!copies_are_alone(disk->host->copies))
        return is_over_counted(disk, state->quota_bytes, appended);
    if (disk->quota_used + (appended - disk->quota_at) < state->quota_bytes &&
        disk->quota_counted_ns)
        return false;
    if (!disk->quota_counted_ns || now_ns - disk->quota_counted_ns >= RECOUNT_NS ||
        disk->quota_seen != disk->host->space_count) {
        disk->quota_used = count_used(disk);
        disk->quota_at = appended;
        disk->quota_counted_ns = now_ns;
        disk->quota_seen = disk->host->space_count;
    }
    return disk->quota_used + (appended - disk->quota_at) >= state->quota_bytes;
}
