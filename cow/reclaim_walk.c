/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A version is walked together with what stays of it, its child; what only it has and
 * its parent has not (younger than the parent's generation) is collected and freed in
 * rounds, data before the nodes that name it, lower nodes before higher ones. So at any
 * moment a node that is dead has nothing live below it that should be dead, and a walk
 * that begins again may stop at it.
 *
 * What lies in an extent without a final length cannot be freed yet. Nor can the nodes
 * above it, or the next walk would not find it. All of these go on the next list of the
 * disk that writes that extent, and the collapse ends once this list is committed.
 *
 * That disk may be in use on another host. The collapse waits then, until its extents
 * have become final; but not so long that the head's own lists pile up and its guests
 * wait: what is left then is lost space, too.
 *
 * What can fail: a node whose checksum is wrong hides what is below it. That is left: it
 * is lost space, which a check finds and repairs; the walk goes on. Any other error ends
 * the walk, which is repeated later, and passed over when it fails again and again, for a
 * collapse that does not end holds back the lists of the head.
 *
 * Guests go first: the task yields all the time, and sleeps as long as it worked while
 * they have something in flight.
 */
#include "cow/reclaim.h"

#include "cow/tree_walk.h"
#include "cow/trim.h"

/* 1.5 MiB. Changes at random lie in every extent, and each round writes the record of
 * each extent that it touches. */
#define ROUND_ITEMS  65536U
#define TURN_NS      NS_PER_MS
#define FAILURES_MAX 5U

struct freeing {
    struct host *host;
    uint64_t id;                    /* of the version or disk, for people */
    struct trim_set set;
    struct dead_entries carried;    /* for a list */
    bool kept[MAP_HEIGHT_MAX + 1];  /* levels with something below that is carried */
};

static bool guests_are_busy(const struct host *host)
{
    struct disk *disk;

    RB_FOREACH (disk, disk_tree, (struct disk_tree *)&host->disks)
        if (disk->io_count > 0)
            return true;
    return false;
}

/* All jobs together have one turn, and then none works until the next. */
async int reclaim_pause(struct host *host)
{
    struct reclaim *r = host->reclaim;
    uint64_t now_ns = loop_wall_ns(host->loop);

    if (now_ns >= r->turn_ns && now_ns - r->turn_ns >= TURN_NS) {
        uint64_t worked_ns = min_u64(now_ns - r->turn_ns, 4 * TURN_NS);
        r->turn_ns = now_ns + (guests_are_busy(host) ? worked_ns : 0);
    }
    if (r->turn_ns > now_ns + 4 * TURN_NS) /* the clock was set back */
        r->turn_ns = now_ns;
    if (r->turn_ns > now_ns)
        task_sleep_ns(r->turn_ns - now_ns);
    if (r->holds > 0) {
        r->active--;
        waitlist_wake_all(&r->changed);
        while (r->holds > 0 && !r->is_stopping)
            waitlist_wait(&r->changed);
        r->active++;
    }
    return r->is_stopping ? -PLX_ECANCELLED : 0;
}

static async int free_round(struct freeing *freeing)
{
    uint64_t before = freeing->set.freed_blocks;
    int rc = trim_apply(&freeing->set, freeing->host->copies);

    freeing->host->reclaim->freed_blocks += freeing->set.freed_blocks - before;
    return rc;
}

static async int collect(struct freeing *freeing, struct address address, unsigned level)
{
    int rc = trim_add(&freeing->set, address, 1, level);

    if (rc == 0 && freeing->set.count >= ROUND_ITEMS)
        rc = free_round(freeing);
    return rc == 0 ? reclaim_pause(freeing->host) : rc;
}

static async int on_data(void *arg, uint64_t block, struct map_entry entry,
                         struct map_entry other)
{
    struct freeing *freeing = arg;

    (void)block;
    (void)other;
    if (copies_can_trim(freeing->host->copies, entry.address))
        return collect(freeing, entry.address, 0);
    freeing->kept[0] = true;
    return dead_entries_add(&freeing->carried, entry.address, 1);
}

static async int on_node(void *arg, unsigned level, uint64_t index,
                         struct map_entry entry)
{
    struct freeing *freeing = arg;
    bool keeps = freeing->kept[level] ||
                 !copies_can_trim(freeing->host->copies, entry.address);

    (void)index;
    freeing->kept[level] = false;
    if (!keeps)
        return collect(freeing, entry.address, level + 1);
    freeing->kept[level + 1] = true;
    return dead_entries_add(&freeing->carried, entry.address, 1);
}

/* Whoever freed it may have ended before all copies were told. */
static async int on_node_dead(void *arg, struct map_entry entry)
{
    struct freeing *freeing = arg;

    return copies_can_trim(freeing->host->copies, entry.address)
               ? collect(freeing, entry.address, MAP_HEIGHT_MAX)
               : 0;
}

static async int on_unreadable(void *arg, unsigned level, uint64_t index,
                               struct map_entry entry, bool of_against, int code)
{
    struct freeing *freeing = arg;

    if (code == -PLX_EFAILED || copies_may_pass(code) ||
        (code != -PLX_ECHECKSUM && freeing->host->reclaim->failures < FAILURES_MAX))
        return code;
    log_error(freeing->host->loop,
              "reclaim of %llu: map node at level %u, index %llu, extent %llx block "
              "%u%s: %s: what is below it stays; check --repair frees it",
              (unsigned long long)freeing->id, level, (unsigned long long)index,
              (unsigned long long)address_extent(entry.address).v,
              address_block(entry.address), of_against ? " (of what stays)" : "",
              err_text(code));
    return 0;
}

static const struct tree_walk_ops ops = {
    .data = on_data, .node_done = on_node, .unreadable = on_unreadable,
    .node_dead = on_node_dead,
};

/* The disk that an extent without final length belongs to; 0: none is carried. */
static uint64_t carrier(const struct freeing *freeing)
{
    const struct dead_entries *carried = &freeing->carried;
    uint64_t disk = 0;

    for (uint32_t i = 0; disk == 0 && i < carried->run_count; i++)
        disk = copies_writer(freeing->host->copies, carried->runs[i].address);
    return disk;
}

static int give(struct disk *disk, const struct dead_entries *carried)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < carried->run_count; i++) {
        const struct dead_run *run = &carried->runs[i];
        rc = dead_set_put(&disk->orphans, run->address, run->count);
    }
    return rc;
}

/* The lists of the head it collapses against are as many as they should be. */
static bool lists_pile_up(const struct freeing *freeing)
{
    const struct cluster_version *version =
        cluster_version_by_id(cluster_state(freeing->host->cluster), freeing->id);
    const struct cluster_disk *head = version ? cluster_head_next(version, NULL) : NULL;

    return head && head->collapsing_version == version->id &&
           head->list_count >= LISTS_MAX / 2;
}

/* Another host writes that disk, and does not let go of it. */
static int leave(struct freeing *freeing, uint64_t disk)
{
    log_error(freeing->host->loop,
              "reclaim of %llu: %u runs of blocks lie where disk %llu is written, on "
              "another host: they stay; check --repair frees them",
              (unsigned long long)freeing->id, freeing->carried.run_count,
              (unsigned long long)disk);
    return 0;
}

/* Puts what could not be freed on a list and waits until that counts. The disk's lists
 * may all wait for this very collapse to end: one more has room. If a start found that
 * taken, too, a crash before the next list loses the space, and a check finds it. */
static async int hand_over(struct freeing *freeing, struct error *err)
{
    uint64_t id = carrier(freeing);
    struct disk *disk;
    int rc;

    if (freeing->carried.run_count == 0)
        return 0;
    if (id == 0) /* they became final meanwhile: once more */
        return err_set(err, -EAGAIN, "extents became final");
    rc = disk_acquire(freeing->host, id, 0, &disk, err);
    if (rc == -PLX_EOWNED || rc == -PLX_EBUSY)
        return lists_pile_up(freeing) ? leave(freeing, id)
                                      : err_set(err, -EAGAIN, "%s", err_text(rc));
    if (rc < 0)
        return rc;
    while (disk->attempt && !disk->down) /* it would forget what comes meanwhile */
        task_sleep_ns(TURN_NS);
    rc = give(disk, &freeing->carried);
    if (rc < 0)
        err_set(err, rc, "%s", err_text(rc));
    else
        rc = disk_list_orphans(disk, err);
    disk_release(disk);
    return rc;
}

static async int free_tree(struct host *host, const struct tree_walk *walk, uint64_t id,
                           struct error *err)
{
    struct freeing freeing = {.host = host, .id = id};
    int rc;

    trim_set_init(&freeing.set);
    rc = tree_walk(walk, &ops, &freeing);
    if (rc == 0)
        rc = free_round(&freeing);
    if (rc < 0)
        err_set(err, rc, "%s", err_text(rc));
    else
        rc = hand_over(&freeing, err);
    trim_set_done(&freeing.set);
    dead_entries_done(&freeing.carried);
    return rc;
}

async int reclaim_version(struct host *host, uint64_t id, struct error *err)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_version *version = cluster_version_by_id(state, id);
    const struct cluster_version *parent = cluster_version_by_id(state, version->parent);
    struct tree_walk walk = {
        .loop = host->loop,
        .cache = host->nodes,
        .root = version->root,
        .against = planted(PLANT_COLLAPSE_SHARED) ? (struct map_root){.height = 0}
                                                  : version->against,
        .bound = parent ? parent->generation : 0,
        .dead_is_done = true,
    };

    return free_tree(host, &walk, id, err);
}

async int reclaim_head(struct host *host, uint64_t id, struct error *err)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk = cluster_disk_by_id(state, id);
    struct tree_walk walk = {
        .loop = host->loop,
        .cache = host->nodes,
        .bound = cluster_disk_bound(state, disk),
        .dead_is_done = true,
    };

    if (disk->has_root)
        walk.root = disk->root;
    return free_tree(host, &walk, id, err);
}
