/* SPDX-License-Identifier: Apache-2.0 */
/* The member of a write set that is a store in this process. */
#include "blockstore/trims.h"
#include "replication/replica.h"

struct replica_local {
    struct replica replica;
    struct store *store;
};

static struct store *store_of(struct replica *replica)
{
    return container_of(replica, struct replica_local, replica)->store;
}

/* The command was applied in this process. */
static async int local_create(struct replica *replica, const struct replica_create *what)
{
    return store_create_extent(store_of(replica), what->extent, what->disk, what->epoch,
                               what->nonce, what->slabs_hint, what->keep_reserve);
}

static void append_done(struct store_append *store)
{
    struct replica_append *append = container_of(store, struct replica_append, store);
    append->result = store->result;
    append->done(append);
}

static void local_append(struct replica *replica, struct replica_append *append)
{
    append->store.done = append_done;
    store_append(store_of(replica), &append->store);
}

static void sync_done(struct store_sync *store)
{
    struct replica_sync *sync = container_of(store, struct replica_sync, store);
    sync->result = store->result;
    sync->done(sync);
}

/* One sync of a store covers all its extents; the store shares it among all who wait. */
static void local_sync(struct replica *replica, struct replica_sync *sync)
{
    sync->store.done = sync_done;
    store_sync(store_of(replica), &sync->store);
}

static void local_cancel_append(struct replica *replica, struct replica_append *append)
{
    (void)replica, (void)append;
}

static void local_cancel_sync(struct replica *replica, struct replica_sync *sync)
{
    (void)replica, (void)sync;
}

static async int local_stop(struct replica *replica, struct address extent,
                            uint32_t *ret_length, bool *ret_restart_scanned)
{
    return store_stop_extent(store_of(replica), extent, ret_length, ret_restart_scanned);
}

static async int local_finalize(struct replica *replica, struct address extent,
                                uint32_t length)
{
    struct store *store = store_of(replica);
    struct extent_info info;
    int rc = store_extent_info(store, extent, &info);
    if (rc == -PLX_EMISSING && length == 0)
        return 0;
    if (rc == 0 && info.state == EXTENT_FINAL && info.length == length)
        return 0;
    if (rc == 0 && info.state == EXTENT_OPEN) {
        uint32_t stopped;
        bool restart_scanned;
        rc = store_stop_extent(store, extent, &stopped, &restart_scanned);
    }
    return rc != 0 ? rc : store_finalize_extent(store, extent, length);
}

static async int local_trim_headers(struct replica *replica, struct address extent)
{
    int rc = store_trim_headers(store_of(replica), extent);
    return rc == -PLX_EMISSING ? 0 : rc;
}

static async int local_walk(struct replica *replica, struct address extent, header_fn *fn,
                            void *arg, uint32_t *ret_end)
{
    return store_walk_headers(store_of(replica), extent, fn, arg, ret_end);
}

static void read_done(struct store_read *store)
{
    struct replica_read *read = container_of(store, struct replica_read, store);
    read->result = store->result;
    read->done(read);
}

static void local_read(struct replica *replica, struct replica_read *read)
{
    read->store.done = read_done;
    store_read(store_of(replica), &read->store);
}

static void local_cancel_read(struct replica *replica, struct replica_read *read)
{
    (void)replica, (void)read;
}

static async int local_trim(struct replica *replica, struct slice trims,
                            uint32_t extent_count, uint32_t *ret_not_final)
{
    (void)extent_count;
    return trims_apply(store_of(replica), slice_data(trims), trims.len, ret_not_final);
}

static async int local_list(struct replica *replica, uint64_t disk, struct address from,
                            uint32_t max, struct extent_info *ret_infos,
                            uint32_t *ret_count, bool *ret_more)
{
    cleanup(free_ptr) struct extent_info *infos = NULL;
    size_t count, first = 0;
    int rc = store_list_extents(store_of(replica), disk, &infos, &count);
    if (rc != 0)
        return rc;
    while (first < count && infos[first].extent.v < from.v)
        first++;
    *ret_count = (uint32_t)min_u64(count - first, max);
    *ret_more = *ret_count < count - first;
    for (uint32_t i = 0; i < *ret_count; i++)
        ret_infos[i] = infos[first + i];
    return 0;
}

static async int local_usage(struct replica *replica, struct slice groups, uint64_t after,
                             struct disk_blocks *ret_disks, uint32_t *ret_count,
                             bool *ret_more)
{
    cleanup(free_ptr) struct disk_blocks *disks = NULL;
    size_t count, first = 0;
    int rc = store_count_live(store_of(replica), (const void *)slice_data(groups),
                              groups.len / (uint32_t)sizeof(le16), &disks, &count);
    if (rc != 0)
        return rc;
    while (first < count && disks[first].disk <= after)
        first++;
    *ret_count = (uint32_t)min_u64(count - first, REPLICA_USAGE_MAX);
    *ret_more = *ret_count < count - first;
    for (uint32_t i = 0; i < *ret_count; i++)
        ret_disks[i] = disks[first + i];
    return 0;
}

static void local_destroy(struct replica *replica)
{
    free(container_of(replica, struct replica_local, replica));
}

static const struct replica_ops LOCAL_OPS = {
    .create = local_create,
    .append = local_append,
    .sync = local_sync,
    .cancel_append = local_cancel_append,
    .cancel_sync = local_cancel_sync,
    .stop = local_stop,
    .finalize = local_finalize,
    .trim_headers = local_trim_headers,
    .walk_headers = local_walk,
    .read = local_read,
    .cancel_read = local_cancel_read,
    .trim = local_trim,
    .list = local_list,
    .usage = local_usage,
    .destroy = local_destroy,
};

struct replica *replica_local_create(struct store *store, uint64_t node)
{
    struct replica_local *local = calloc(1, sizeof *local);
    if (local == NULL)
        return NULL;
    local->store = store;
    local->replica = (struct replica){.ops = &LOCAL_OPS, .node = node};
    return &local->replica;
}
