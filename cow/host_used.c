/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What disks use. Alone, this node's store tells at any time. With others it takes asking
 * them, so what was found is kept for a while: for lists of disks, and for quotas, which
 * count what was written since themselves.
 *
 * What can fail: not all could be asked. What was found before stays then, or, if nothing
 * was, what is known of the others is used; a quota is that much larger.
 *
 * On close the task is waited for.
 */
#include "cow/disk_internal.h"

#define FRESH_NS (2 * NS_PER_S)

void used_init(struct host *host)
{
    waitlist_init(&host->used.over);
}

/* What each open disk writes from now on is not in the count. */
static void mark_disks(struct host *host)
{
    struct disk *disk;

    RB_FOREACH (disk, disk_tree, &host->disks) {
        disk->quota_is_marked = disk->log != NULL;
        disk->quota_mark = disk->log ? log_appended_bytes(disk->log) : 0;
        disk->quota_mark_seen = host->space_count;
    }
}

/* Those that were opened meanwhile wait for the next one. */
static void settle_disks(struct host *host)
{
    struct disk *disk;

    RB_FOREACH (disk, disk_tree, &host->disks) {
        if (!disk->quota_is_marked)
            continue;
        disk->quota_used = used_bytes(host, disk->id);
        disk->quota_at = disk->quota_mark;
        disk->quota_seen = disk->quota_mark_seen;
        disk->quota_counted_ns = loop_now_ns(host->loop);
    }
}

static async void count(struct host *host)
{
    struct used *used = &host->used;
    struct disk_blocks *disks;
    size_t disk_count;
    bool complete;
    uint64_t begun_ns = loop_now_ns(host->loop);

    mark_disks(host);
    int rc = copies_usage(host->copies, &disks, &disk_count, &complete);
    if (rc == 0 && (complete || !used->disks)) {
        free(used->disks);
        used->disks = disks;
        used->count = disk_count;
        settle_disks(host);
    } else if (rc == 0) {
        free(disks);
    }
    used->counted_ns = begun_ns;
}

static async void used_main(struct task_call *call)
{
    struct used *used = container_of(call, struct used, task);
    struct host *host = container_of(used, struct host, used);

    count(host);
    used->is_running = false;
    waitlist_wake_all(&used->over);
    space_freed(host); /* a disk at its quota may go on */
}

static bool is_fresh(const struct host *host)
{
    uint64_t now_ns = loop_now_ns(host->loop);

    return host->used.counted_ns && now_ns - host->used.counted_ns < FRESH_NS;
}

void used_refresh(struct host *host)
{
    struct used *used = &host->used;

    if (used->is_running || used->is_stopping || is_fresh(host) ||
        copies_are_alone(host->copies))
        return;
    used->is_running = true;
    used->task = (struct task_call){.main = used_main, .name = "usage", .system = true};
    task_start(host->loop, &used->task);
}

async void host_count_used(struct host *host)
{
    used_refresh(host);
    while (host->used.is_running)
        waitlist_wait(&host->used.over);
}

async void used_stop(struct host *host)
{
    host->used.is_stopping = true;
    while (host->used.is_running)
        waitlist_wait(&host->used.over);
    free(take(host->used.disks));
    host->used.count = 0;
}

static int compare(const void *key, const void *element)
{
    uint64_t disk = *(const uint64_t *)key;
    const struct disk_blocks *at = element;

    return disk < at->disk ? -1 : disk > at->disk;
}

uint64_t used_bytes(const struct host *host, uint64_t disk)
{
    const struct used *used = &host->used;
    const struct disk_blocks *found =
        used->count > 0 ? bsearch(&disk, used->disks, used->count, sizeof *used->disks,
                                  compare)
                        : NULL;

    return found ? found->live * BLOCK_SIZE : 0;
}
