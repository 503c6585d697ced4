/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host opens its metadata, its store (which scans what was open), and the cluster
 * state; tidies up what an earlier process left half-way (imports that were never
 * published, extents whose disk or log no longer names them); and serves.
 *
 * Creating one leaves nothing behind if it fails: the store's file is removed by
 * whoever made the folder. An error of opening names the part that failed.
 *
 * Closing checkpoints and closes all disks first.
 */
#include "cow/reclaim.h"
#include "cow/rewrite.h"
#include "cow/schedule.h"
#include "cow/scrub.h"

#define BUFFERS_WAIT_NS (10 * NS_PER_S)
#define BUFFERS_LOOK_NS (10 * NS_PER_MS)
#define THIN_SHARE 5U /* less room than this part of what can be stored is said */

static void set_defaults(struct host_options *options)
{
    if (!options->node_cache_bytes)
        options->node_cache_bytes = NODE_CACHE_BYTES;
    if (!options->overlay_bytes)
        options->overlay_bytes = OVERLAY_BYTES_TOTAL;
    if (!options->retained_bytes)
        options->retained_bytes = RETAINED_BYTES_TOTAL;
    if (!options->checkpoint_log_bytes)
        options->checkpoint_log_bytes = CHECKPOINT_LOG_BYTES;
    if (!options->idle_close_ms)
        options->idle_close_ms = IDLE_CLOSE_MS;
}

static async int init_cluster(struct loop *loop, struct kv *kv, struct uid cluster_uid,
                              struct uid store_uid, struct error *err)
{
    struct cluster_options options = {
        .loop = loop, .kv = kv, .node = CLUSTER_FIRST_NODE};
    struct cluster *cluster;
    struct cluster_result result;
    struct cluster_command command = {
        .op = CLUSTER_INIT,
        .cluster = cluster_uid,
        .store = store_uid,
        .node = CLUSTER_FIRST_NODE,
        .wall_ns = loop_wall_ns(loop),
    };
    int rc = cluster_bootstrap(kv, CLUSTER_FIRST_NODE, err);

    if (rc == 0)
        rc = cluster_open(&options, &cluster, err);
    if (rc < 0)
        return rc;
    rc = cluster_submit(cluster, &command, &result);
    if (rc < 0)
        err_set(err, rc, "cluster: %s", result.text);
    cluster_close(cluster);
    return rc;
}

static async int create_parts(struct loop *loop, const struct host_options *options,
                              struct kv *kv, struct error *err)
{
    struct store_options store_options = {
        .path = options->store_path,
        .capacity_bytes = options->capacity_bytes,
        .kv = kv,
        .incarnation = options->incarnation,
        .no_idle_work = true,
    };
    struct store_usage usage;
    struct store *store;
    struct uid cluster = options->cluster;
    bool is_alone = uid_equal(cluster, (struct uid){{0}});
    int rc;

    if (is_alone)
        loop_random_bytes(loop, cluster.b, sizeof cluster.b);
    rc = store_create(loop, &store_options, cluster, err);
    if (rc < 0 || !is_alone)
        return rc;
    store_options.capacity_bytes = 0;
    rc = store_open(loop, &store_options, &store, err);
    if (rc < 0)
        return rc;
    store_usage(store, &usage);
    rc = init_cluster(loop, kv, cluster, usage.incarnation, err);
    store_close(store);
    return rc;
}

async int host_create(struct loop *loop, const struct host_options *options,
                      struct error *err)
{
    struct kv *kv;
    int rc = kv_open(loop, options->kv_path, true, &kv, err);

    if (rc < 0)
        return rc;
    rc = create_parts(loop, options, kv, err);
    kv_close(kv);
    return rc;
}

static void register_metrics(struct host *host)
{
    struct loop *loop = host->loop;

    host->reads = metric_counter(loop, "parallax_reads_total", "Reads done");
    host->writes = metric_counter(loop, "parallax_writes_total", "Writes done");
    host->flushes = metric_counter(loop, "parallax_flushes_total", "Flushes done");
    host->trims = metric_counter(loop, "parallax_trims_total", "Trims and zeroes done");
    host->errors = metric_counter(loop, "parallax_errors_total", "Operations failed");
    host->checkpoints =
        metric_counter(loop, "parallax_checkpoints_total", "Checkpoints tried");
    host->snapshots = metric_counter(loop, "parallax_snapshots_total", "Snapshots made");
    host->read_ns = metric_histogram(loop, "parallax_read_seconds", "Time of a read");
    host->write_ns = metric_histogram(loop, "parallax_write_seconds", "Time of a write");
    host->flush_ns = metric_histogram(loop, "parallax_flush_seconds", "Time of a flush");
    host->checkpoint_ns =
        metric_histogram(loop, "parallax_checkpoint_seconds", "Time of a checkpoint");
}

static void relief_done(struct log_flush *flush)
{
    container_of(flush, struct disk, relief)->relief_running = false;
}

/* Buffers are retained until they are flushed: flushes every disk. */
static void relief_run(struct work *work)
{
    struct host *host = container_of(work, struct host, relief);
    struct disk *disk;

    RB_FOREACH (disk, disk_tree, &host->disks) {
        if (!disk->log || disk->state != DISK_OPEN || disk->relief_running)
            continue;
        disk->relief_running = true;
        disk->relief = (struct log_flush){.done = relief_done};
        log_flush(disk->log, &disk->relief);
    }
}

static void pressure_run(struct work *work)
{
    struct host *host = container_of(work, struct host, pressure);

    loop_post(host->loop, &host->relief);
}

static struct host *host_new(struct loop *loop, const struct host_options *options)
{
    struct host *host = calloc(1, sizeof *host);

    if (!host)
        return NULL;
    host->loop = loop;
    host->options = *options;
    host->options.store_path = host->options.kv_path = NULL;
    host->options.parts = NULL;
    set_defaults(&host->options);
    host->overlay.limit_bytes = host->options.overlay_bytes;
    host->retained.limit_bytes = host->options.retained_bytes;
    waitlist_init(&host->retained.waiting);
    waitlist_init(&host->disks_changed);
    pins_init(&host->pins);
    RB_INIT(&host->disks);
    space_init(host);
    used_init(host);
    TAILQ_INIT(&host->checkpoint_queue);
    host->front_buffers = buffer_pool_create(NBD_BUFFER_BYTES);
    host->log_buffers = buffer_pool_create(LOG_BUFFER_BYTES);
    host->pressure.run = pressure_run;
    host->relief.run = relief_run;
    register_metrics(host);
    if (reclaim_create(host) < 0 || !host->front_buffers || !host->log_buffers) {
        reclaim_destroy(host);
        buffer_pool_destroy(host->front_buffers);
        buffer_pool_destroy(host->log_buffers);
        free(host);
        return NULL;
    }
    buffer_pool_on_pressure(host->front_buffers, &host->pressure);
    buffer_pool_on_pressure(host->log_buffers, &host->pressure);
    return host;
}

static void borrow_parts(struct host *host, const struct host_parts *parts)
{
    host->parts_are_borrowed = true;
    host->kv = parts->kv;
    host->store = parts->store;
    host->cluster = parts->cluster;
    host->directory = parts->directory;
    host->copies = parts->copies;
    host->copies_are_borrowed = parts->copies != NULL;
    host->rpc = parts->rpc;
    host->node = parts->node;
}

static bool has_other_nodes(const struct cluster_state *state)
{
    const struct cluster_node *node = NULL;
    uint32_t count = 0;

    while ((node = cluster_node_next(state, node)))
        count += (node->flags & NODE_GONE) == 0;
    return count > 1;
}

static async int open_own_parts(struct host *host, const struct host_options *options,
                                struct error *err)
{
    struct store_options store_options = {
        .path = options->store_path,
        .capacity_bytes = options->capacity_bytes,
        .no_idle_work = options->no_idle_work,
    };
    struct store_usage usage;
    int rc = kv_open(host->loop, options->kv_path, false, &host->kv, err);

    if (rc < 0)
        return rc;
    store_options.kv = host->kv;
    struct cluster_options cluster_options = {
        .loop = host->loop, .kv = host->kv, .node = CLUSTER_FIRST_NODE};
    rc = store_open(host->loop, &store_options, &host->store, err);
    if (rc < 0)
        return rc;
    rc = cluster_open(&cluster_options, &host->cluster, err);
    if (rc < 0)
        return err_add(err, rc, "%s", options->kv_path);
    store_usage(host->store, &usage);
    const struct cluster_state *state = cluster_state(host->cluster);
    if (!uid_equal(cluster_state_uid(state), usage.cluster))
        return err_set(err, -PLX_EFORMAT,
                       "%s: store and metadata belong to different clusters",
                       options->store_path);
    host->node = cluster_state_node_of_store(state, usage.incarnation);
    if (has_other_nodes(state))
        return err_set(err, -PLX_EFORMAT,
                       "%s: belongs to a node of a cluster, but what says so is missing "
                       "(folder node/)",
                       options->store_path);
    if (!host->node)
        return err_set(err, -PLX_EFORMAT, "%s: the cluster does not know this store",
                       options->store_path);
    return 0;
}

static int open_copies(struct host *host)
{
    const struct copies_options options = {
        .loop = host->loop,
        .cluster = host->cluster,
        .store = host->store,
        .node = host->node,
        .buffers = host->log_buffers,
    };
    int rc = host->copies ? 0 : copies_create(&options, &host->copies);

    if (rc < 0)
        return rc;
    if (!host->directory)
        host->directory = copies_directory(host->copies);
    host->nodes = node_cache_create(host->copies, host->options.node_cache_bytes);
    return host->nodes ? 0 : -ENOMEM;
}

static async int open_parts(struct host *host, const struct host_options *options,
                            struct error *err)
{
    int rc = 0;

    if (options->parts)
        borrow_parts(host, options->parts);
    else
        rc = open_own_parts(host, options, err);
    if (rc < 0)
        return rc;
    if (host->rpc) /* else nobody can take one */
        disk_table_watch(host);
    rc = open_copies(host);
    return rc < 0 ? err_set(err, rc, "%s", err_text(rc)) : 0;
}

/* What other hosts were sent lies in buffers of this one until it has left, or until its
 * connection is given up, which is sooner. */
static async void await_buffers(struct host *host)
{
    uint64_t until_ns = loop_now_ns(host->loop) + BUFFERS_WAIT_NS;

    while ((buffer_pool_used_bytes(host->front_buffers) > 0 ||
            buffer_pool_used_bytes(host->log_buffers) > 0) &&
           host->rpc && loop_now_ns(host->loop) < until_ns)
        task_sleep_ns(BUFFERS_LOOK_NS);
}

/* One that still has buffers out, of a peer that does not read, stays as it is. */
static void end_pool(const struct host *host, struct buffer_pool *pool)
{
    if (!host->rpc || buffer_pool_used_bytes(pool) == 0)
        buffer_pool_destroy(pool);
}

static async void host_free(struct host *host)
{
    timer_stop(host->loop, &host->stop_timer);
    loop_post_cancel(host->loop, &host->relief);
    space_done(host);
    disk_table_unwatch(host);
    if (host->nodes)
        node_cache_destroy(host->nodes);
    if (host->copies)
        copies_stop(host->copies);
    if (!host->copies_are_borrowed)
        copies_destroy(host->copies);
    if (host->cluster && !host->parts_are_borrowed)
        cluster_close(host->cluster);
    if (host->store && !host->parts_are_borrowed)
        store_close(host->store);
    if (host->kv && !host->parts_are_borrowed)
        kv_close(host->kv);
    await_buffers(host);
    end_pool(host, host->front_buffers);
    end_pool(host, host->log_buffers);
    reclaim_destroy(host);
    free(host->usage_cache);
    free(host);
}

/* What works by itself: snapshots by the clock, read locality, the scrub. */
static async int background_open(struct host *host, struct error *err)
{
    int rc = rewriter_open(host, err);

    if (rc == 0)
        rc = scheduler_open(host, err);
    return rc < 0 ? rc : scrub_open(host, err);
}

static async void background_close(struct host *host)
{
    scrub_close(host);
    scheduler_close(host);
    rewriter_close(host);
}

async int host_open(struct loop *loop, const struct host_options *options,
                    struct host **ret_host, struct error *err)
{
    struct host *host = host_new(loop, options);
    int rc;

    if (!host)
        return err_set(err, -ENOMEM, "out of memory");
    rc = open_parts(host, options, err);
    if (rc == 0)
        rc = host_tidy(host, err);
    if (rc == 0)
        rc = background_open(host, err);
    if (rc < 0) {
        background_close(host);
        host_free(host);
        return rc;
    }
    host_update_reserve(host);
    space_start(host);
    host_tidy_soon(host);
    reclaim_start(host);
    host_many_start(host);
    *ret_host = host;
    return 0;
}

/* --- the end --- */

/* A log that does not get on waits for members of other hosts, or for space there. */
static void stop_look(struct timer *timer)
{
    struct host *host = container_of(timer, struct host, stop_timer);
    uint64_t stops_ns = loop_now_ns(host->loop) - host->stop_ns;
    struct disk *disk;

    RB_FOREACH (disk, disk_tree, &host->disks) {
        struct log_status status = {.waiting_ns = 0};
        if (disk->log && !disk->down)
            log_status(disk->log, &status);
        if (min_u64(status.waiting_ns, stops_ns) < HOST_STOP_WAIT_MS * NS_PER_MS)
            continue;
        log_warning(host->loop, "disk %s: not waited for any more: %s", disk->name,
                    status.text);
        log_give_up(disk->log, -ESHUTDOWN);
    }
    timer_start(host->loop, timer, NS_PER_S);
}

void host_stop_soon(struct host *host)
{
    if (host->is_ending)
        return;
    host->is_ending = true;
    host->stop_ns = loop_now_ns(host->loop);
    host->stop_timer.fire = stop_look;
    timer_start(host->loop, &host->stop_timer, NS_PER_S);
}

async void host_close(struct host *host)
{
    host->is_stopping = true;
    host_stop_soon(host);
    background_close(host);
    host_many_stop(host);
    reclaim_stop(host);
    disk_table_close(host);
    used_stop(host);
    host_free(host);
}

struct cluster *host_cluster(struct host *host)
{
    return host->cluster;
}

uint64_t host_node(struct host *host)
{
    return host->node;
}

uint64_t host_guest_ops(const struct host *host)
{
    return host->guest_ops;
}

struct loop *host_loop(struct host *host)
{
    return host->loop;
}

struct buffer_pool *host_buffers(struct host *host)
{
    return host->front_buffers;
}

/* Merging its layers may write, at each level, a node for each leaf, though no more than
 * there are; a tenth of that are headers and lists. The same again, because one that is
 * cut off leaves all it wrote behind until the next has succeeded. */
uint64_t disk_merge_bytes(const struct disk *disk)
{
    const struct layer *layer;
    uint64_t blocks = 0;

    TAILQ_FOREACH (layer, &disk->layers, link) {
        uint64_t nodes = div_up_u64(disk->size_bytes, BLOCK_SIZE);
        do {
            nodes = div_up_u64(nodes, MAP_FANOUT);
            blocks += min_u64(layer->overlay.leaf_count, nodes);
        } while (nodes > 1);
    }
    return 2 * (blocks + blocks / 10) * BLOCK_SIZE;
}

/* What checkpoints of all open disks may need, and a slab and a roll record for each. No
 * more than a tenth of the store is kept for either, so that a small one stays of use:
 * checkpoints come sooner. The disks that other hosts have open write here, too; what
 * they need is not known, so at least that tenth, or 2 GiB of it, is kept for those. */
void host_renew_reserve(struct host *host)
{
    struct store_usage usage;
    struct disk *disk;

    host->merge_bytes = 0;
    RB_FOREACH (disk, disk_tree, &host->disks)
        host->merge_bytes += disk_merge_bytes(disk);
    store_usage(host->store, &usage);
    uint64_t storable = usage.capacity_bytes - usage.withheld_bytes;
    host->merge_bytes_max = storable / 10;
    uint64_t fixed = RESERVE_BYTES + host->disk_count * 2 * SLAB_BYTES;
    host->reserve_is_shared = host_has_others(host);
    uint64_t merge = host->merge_bytes;
    if (host->reserve_is_shared)
        merge = max_u64(merge, RESERVE_OTHERS_BYTES);
    host->reserve_bytes =
        min_u64(merge, host->merge_bytes_max) + min_u64(fixed, storable / 10);
    store_set_reserve(host->store, host->reserve_bytes);
    host->reserve_leaves = host->overlay.leaf_count;
    host->reserve_disks = host->disk_count;
}

void host_update_reserve(struct host *host)
{
    uint64_t leaves = host->overlay.leaf_count, before = host->reserve_leaves;
    uint64_t moved = leaves > before ? leaves - before : before - leaves;

    if (moved >= RESERVE_STEP_LEAVES || host->reserve_disks != host->disk_count ||
        host->reserve_is_shared != host_has_others(host))
        host_renew_reserve(host);
}

/* What guests may still write. What is dead but stored counts: compaction gives it back
 * when it is wanted. */
static uint64_t room_bytes(const struct host_status *status)
{
    uint64_t room = min_u64(status->free_bytes + status->dead_bytes,
                            status->capacity_bytes);

    return room > status->reserve_bytes ? room - status->reserve_bytes : 0;
}

/* What of the capacity there is space for. */
static uint64_t storable_bytes(const struct host_status *status)
{
    return status->capacity_bytes - status->withheld_bytes;
}

static void describe_health(const struct host_status *status, bool refuses, char *ret,
                            size_t cap)
{
    if (status->failed && status->failed_code == -ENOSPC)
        snprintf(ret, cap,
                 "failed: no room in the file system for metadata: make some, "
                 "and start again; reads go on");
    else if (status->failed)
        snprintf(ret, cap, "failed: the store is out of service, see the log");
    else if (refuses && status->withheld_bytes > 0)
        snprintf(ret, cap, "full: writes are refused: no room in the file system");
    else if (refuses)
        snprintf(ret, cap, "full: writes are refused");
    else if (room_bytes(status) < storable_bytes(status) / 20)
        snprintf(ret, cap, "nearly full");
    else
        snprintf(ret, cap, "ok");
}

/* The file system has less than the store may need: before that hurts, too. */
static bool describe_host(const struct host_status *status, char *ret, size_t cap)
{
    unsigned long long left = status->host_free_bytes / MIB;

    if (!status->has_host)
        return false;
    if (status->host_free_bytes < status->host_reserve_bytes / 2) {
        snprintf(ret, cap,
                 "the file system has only %llu MiB left; without any the metadata "
                 "cannot be written and the store is out of service: make room there",
                 left);
        return true;
    }
    if (status->withheld_bytes == 0 ||
        room_bytes(status) >= storable_bytes(status) / THIN_SHARE)
        return false;
    snprintf(ret, cap,
             "thin: the file system has only %llu MiB left, %llu MiB of them for "
             "metadata, and no room for %llu MiB of the capacity: make room there",
             left, (unsigned long long)(status->host_reserve_bytes / MIB),
             (unsigned long long)(status->withheld_bytes / MIB));
    return true;
}

/* Thin disks promise more than there may be: said before it hurts. */
static void describe_warning(const struct host_status *status, char *ret, size_t cap)
{
    uint64_t storable = storable_bytes(status);
    uint64_t percent = storable ? room_bytes(status) * 100 / storable : 0;
    uint64_t over = status->capacity_bytes
                        ? status->committed_bytes * 10 / status->capacity_bytes
                        : 0;
    const char *hope = status->trash_bytes > 0       ? "; empty the trash"
                       : status->reclaim_pending > 0 ? "; more is being freed"
                                                      : "; remove snapshots or disks, or "
                                                        "make the store larger";

    ret[0] = '\0';
    if (describe_host(status, ret, cap) || percent >= 20)
        return;
    snprintf(ret, cap, "%s: %llu %% free, disks of %llu.%llu times the capacity%s",
             percent < 10 ? "nearly full" : "filling up", (unsigned long long)percent,
             (unsigned long long)over / 10, (unsigned long long)over % 10, hope);
}

static void count_disks(struct host *host, struct host_status *status)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_disk *disk = NULL;

    while ((disk = cluster_disk_next(state, disk))) {
        status->trash_count += (disk->flags & (DISK_TRASHED | DISK_REMOVED)) ==
                               DISK_TRASHED;
        if (!cluster_disk_is_visible(disk))
            continue;
        status->disk_count++;
        status->snapshot_count += disk->snapshot_count;
        status->committed_bytes += disk->size_bytes;
    }
}

void host_status(struct host *host, struct host_status *ret_status)
{
    struct store_usage usage;
    struct disk *open;

    store_usage(host->store, &usage);
    *ret_status = (struct host_status){
        .cluster = usage.cluster,
        .store = usage.incarnation,
        .capacity_bytes = usage.capacity_bytes,
        .used_bytes = usage.used_bytes,
        .free_bytes = usage.free_bytes,
        .live_bytes = usage.live_bytes,
        .dead_bytes = usage.dead_bytes,
        .reserve_bytes = host->reserve_bytes,
        .withheld_bytes = usage.withheld_bytes,
        .host_free_bytes = usage.host_free_bytes,
        .host_reserve_bytes = usage.host_reserve_bytes,
        .has_host = usage.has_host,
        .compacting = usage.compacting,
        .compact_runs = usage.compact_runs,
        .compact_bytes_read = usage.compact_bytes_read,
        .compact_bytes_written = usage.compact_bytes_written,
        .node_cache_used_bytes = node_cache_used_bytes(host->nodes),
        .overlay_used_bytes = host->overlay.used_bytes,
        .retained_used_bytes = host->retained.used_bytes,
        .failed = usage.failed || cluster_failure(host->cluster) != 0,
        .failed_code = usage.failed ? usage.failed_code : cluster_failure(host->cluster),
        .reclaim_pending = reclaim_pending(host),
        .reclaim_running = reclaim_is_busy(host),
        .reclaim_freed_bytes = host->reclaim->freed_blocks * BLOCK_SIZE,
    };
    count_disks(host, ret_status);
    RB_FOREACH (open, disk_tree, &host->disks)
        ret_status->open_disk_count += open->version == 0;
    if (ret_status->trash_count > 0)
        ret_status->trash_bytes = host_trash_bytes(host);
    bool refuses = host->refused_ns &&
                   loop_now_ns(host->loop) - host->refused_ns < REFUSES_NS;
    describe_health(ret_status, refuses, ret_status->health, sizeof ret_status->health);
    describe_warning(ret_status, ret_status->warning, sizeof ret_status->warning);
}

async void host_status_now(struct host *host, struct host_status *ret_status)
{
    store_look(host->store);
    host_count_used(host);
    host_status(host, ret_status);
}
