/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The member of a write set that is a store on another node. The other end of it is
 * blockstore/store_service.c.
 *
 * Happy path: each operation is one call; appends leave in the order they are made and
 * are answered as the store answers them. Their blocks are sent from where they lie.
 *
 * What can fail: memory for the call, and then nothing was sent; the node, the network.
 * Then the call ends with an error, in bounded time, and whether it was carried out is
 * unknown. For appends and syncs that is the end
 * of the extent (a forced roll); what takes a task is idempotent and may be repeated.
 * Headers come with their checksums and are decoded like foreign bytes, which they are.
 *
 * Nothing is under way when it is destroyed.
 */
#include "blockstore/store_rpc_format.h"
#include "replication/replica.h"

/* The log's own limits are shorter; these are for what nobody waits on. */
#define APPEND_TIMEOUT_NS (5 * NS_PER_S)
#define SYNC_TIMEOUT_NS   (30 * NS_PER_S)
#define TASK_TIMEOUT_NS   (30 * NS_PER_S)
#define READ_TIMEOUT_NS   (5 * NS_PER_S)

/* An append or a sync to a node to which there is no connection: that of the extent's
 * create was lost, so the node has died, or the way to it was cut for a moment. Only then
 * it can be made again so soon. */
#define UNCONNECTED_TIMEOUT_NS (300 * NS_PER_MS)

/* The same for what is only counted: the connection may have to be made. */
#define UNCONNECTED_USAGE_NS (NS_PER_S)

#define CALLS_KEPT 16U /* for reuse */

/* The call that an append, a sync or a read makes. */
struct remote_call {
    struct rpc_call call;
    struct replica_remote *remote;
    void *request;
    SLIST_ENTRY(remote_call) link;
};

struct replica_remote {
    struct replica replica;
    struct rpc *rpc;
    struct uid incarnation;
    SLIST_HEAD(, remote_call) kept;
    uint32_t kept_count;
};

static struct replica_remote *remote_of(struct replica *replica)
{
    return container_of(replica, struct replica_remote, replica);
}

static struct store_rpc_target target_of(const struct replica_remote *remote,
                                         struct address extent)
{
    return (struct store_rpc_target){.incarnation = remote->incarnation,
                                     .extent = le64_of(extent.v)};
}

/* --- calls without a task --- */

/* NULL: no memory. */
static struct remote_call *call_take(struct replica_remote *remote, void *request)
{
    struct remote_call *call = SLIST_FIRST(&remote->kept);
    if (call != NULL) {
        SLIST_REMOVE_HEAD(&remote->kept, link);
        remote->kept_count--;
    } else {
        call = malloc(sizeof *call);
    }
    if (call != NULL)
        *call = (struct remote_call){.remote = remote, .request = request};
    return call;
}

/* Gives the call back; its request. */
static void *call_done(struct rpc_call *done)
{
    struct remote_call *call = container_of(done, struct remote_call, call);
    struct replica_remote *remote = call->remote;
    void *request = call->request;
    buffer_put(call->call.payload.buffer);
    if (remote->kept_count >= CALLS_KEPT) {
        free(call);
        return request;
    }
    remote->kept_count++;
    SLIST_INSERT_HEAD(&remote->kept, call, link);
    return request;
}

static uint64_t timeout_of(const struct replica_remote *remote, uint64_t timeout_ns)
{
    bool is_connected = rpc_is_connected(remote->rpc, remote->replica.node);
    return is_connected ? timeout_ns : min_u64(timeout_ns, UNCONNECTED_TIMEOUT_NS);
}

/* --- what takes a task --- */

static async int call_wait_limit(struct replica_remote *remote, enum store_rpc_op op,
                                 const void *head, size_t head_len, uint64_t limit_ns,
                                 struct writer *ret, struct slice *ret_payload)
{
    struct rpc_call call = {.node = remote->replica.node,
                            .op = (uint16_t)op,
                            .head = head,
                            .head_len = (uint32_t)head_len,
                            .timeout_ns = limit_ns};
    return rpc_wait(remote->rpc, &call, ret, ret_payload);
}

/* A call whose answer is its code. */
static async int call_wait(struct replica_remote *remote, enum store_rpc_op op,
                           const void *head, size_t head_len, struct writer *ret,
                           struct slice *ret_payload)
{
    return call_wait_limit(remote, op, head, head_len, TASK_TIMEOUT_NS, ret, ret_payload);
}

static async int remote_create(struct replica *replica, const struct replica_create *what)
{
    struct replica_remote *remote = remote_of(replica);
    struct store_rpc_create head = {.target = target_of(remote, what->extent),
                                    .disk = le64_of(what->disk),
                                    .epoch = le64_of(what->epoch),
                                    .nonce = le64_of(what->nonce),
                                    .index = le64_of(what->index),
                                    .slabs_hint = le32_of(what->slabs_hint),
                                    .flags = le32_of(what->keep_reserve
                                                         ? STORE_RPC_KEEP_RESERVE
                                                         : 0)};
    return call_wait_limit(remote, STORE_RPC_CREATE, &head, sizeof head, what->limit_ns,
                           NULL, NULL);
}

static void append_done(struct rpc_call *call)
{
    int result = call->result;
    struct replica_append *append = call_done(call);
    append->result = result;
    append->done(append);
}

static void remote_append(struct replica *replica, struct replica_append *append)
{
    struct replica_remote *remote = remote_of(replica);
    const struct store_append *store = &append->store;
    struct store_rpc_append head = {
        .target = target_of(remote, store->extent),
        .epoch = le64_of(store->epoch),
        .block = le32_of(store->block),
        .flags = le32_of(store->use_reserve ? STORE_RPC_USE_RESERVE : 0),
    };
    struct remote_call *call = call_take(remote, append);
    if (call == NULL) {
        append->result = -ENOMEM;
        append->done(append);
        return;
    }
    append->call = call;
    call->call = (struct rpc_call){.node = replica->node,
                                   .op = STORE_RPC_APPEND,
                                   .head = &head,
                                   .head_len = sizeof head,
                                   .slices = store->slices,
                                   .slice_count = store->slice_count,
                                   .timeout_ns = timeout_of(remote, APPEND_TIMEOUT_NS),
                                   .done = append_done};
    rpc_start(remote->rpc, &call->call);
}

static void sync_done(struct rpc_call *call)
{
    int result = call->result;
    struct replica_sync *sync = call_done(call);
    sync->result = result;
    sync->done(sync);
}

static void remote_sync(struct replica *replica, struct replica_sync *sync)
{
    struct replica_remote *remote = remote_of(replica);
    struct store_rpc_sync head = {.target = target_of(remote, sync->extent),
                                  .epoch = le64_of(sync->epoch)};
    struct remote_call *call = call_take(remote, sync);
    if (call == NULL) {
        sync->result = -ENOMEM;
        sync->done(sync);
        return;
    }
    sync->call = call;
    call->call = (struct rpc_call){.node = replica->node,
                                   .op = STORE_RPC_SYNC,
                                   .head = &head,
                                   .head_len = sizeof head,
                                   .timeout_ns = timeout_of(remote, SYNC_TIMEOUT_NS),
                                   .done = sync_done};
    rpc_start(remote->rpc, &call->call);
}

static void remote_cancel_append(struct replica *replica, struct replica_append *append)
{
    struct remote_call *call = append->call;
    rpc_cancel(remote_of(replica)->rpc, &call->call);
}

static void remote_cancel_sync(struct replica *replica, struct replica_sync *sync)
{
    struct remote_call *call = sync->call;
    rpc_cancel(remote_of(replica)->rpc, &call->call);
}

static async int remote_stop(struct replica *replica, struct address extent,
                             uint32_t *ret_length, bool *ret_restart_scanned)
{
    struct replica_remote *remote = remote_of(replica);
    struct store_rpc_target head = target_of(remote, extent);
    struct store_rpc_stopped answer;
    struct writer bytes = {0};
    int rc = call_wait(remote, STORE_RPC_STOP, &head, sizeof head, &bytes, NULL);
    if (rc == 0 && bytes.len != sizeof answer)
        rc = -PLX_EFORMAT;
    if (rc == 0) {
        memcpy(&answer, bytes.bytes, sizeof answer);
        *ret_length = le32_get(answer.length);
        *ret_restart_scanned = answer.restart_scanned != 0;
    }
    writer_done(&bytes);
    return rc != 0 || *ret_length <= EXTENT_BLOCKS ? rc : -PLX_EFORMAT;
}

static async int remote_finalize(struct replica *replica, struct address extent,
                                 uint32_t length)
{
    struct replica_remote *remote = remote_of(replica);
    struct store_rpc_finalize head = {.target = target_of(remote, extent),
                                      .length = le32_of(length)};
    return call_wait(remote, STORE_RPC_FINALIZE, &head, sizeof head, NULL, NULL);
}

static async int remote_trim_headers(struct replica *replica, struct address extent)
{
    struct replica_remote *remote = remote_of(replica);
    struct store_rpc_target head = target_of(remote, extent);
    return call_wait(remote, STORE_RPC_TRIM_HEADERS, &head, sizeof head, NULL, NULL);
}

/* --- headers --- */

struct remote_walk {
    struct address extent;
    header_fn *fn;
    void *arg;
    uint32_t count; /* told so far */
    bool more;
    uint32_t end;
    int code;
    int told;       /* fn's */
    struct entry entries[BATCH_BLOCKS];
    struct roll_entry rolls[ROLL_ENTRIES_MAX];
    uint8_t block[BLOCK_SIZE];
};

/* The next header of a page, with its zeros put back; -PLX_EFORMAT. */
static int read_header(struct reader *r, struct remote_walk *walk, struct header *ret)
{
    uint32_t len = read_u32(r);
    const uint8_t *bytes = read_bytes(r, len);
    if (bytes == NULL || len < sizeof(le32) || len > BLOCK_SIZE)
        return -PLX_EFORMAT;
    size_t content = len - sizeof(le32);
    memset(walk->block, 0, sizeof walk->block);
    memcpy(walk->block, bytes, content);
    memcpy(walk->block + BLOCK_SIZE - sizeof(le32), bytes + content, sizeof(le32));
    int rc = header_decode(walk->block, ret, walk->entries);
    if (rc == -PLX_EFORMAT)
        rc = roll_decode(walk->block, ret, walk->rolls);
    if (rc == 0 && !address_equal(ret->extent, walk->extent))
        rc = -PLX_EFORMAT;
    return rc;
}

static async int tell_page(struct remote_walk *walk, const void *bytes, size_t len,
                           uint32_t count)
{
    struct reader r = reader_of(bytes, len);
    for (uint32_t i = 0; walk->told == 0 && i < count; i++) {
        struct header head;
        int rc = read_header(&r, walk, &head);
        if (rc != 0)
            return rc;
        walk->told = walk->fn(walk->arg, &head, walk->entries, walk->rolls);
        walk->count++;
    }
    return r.left == 0 || walk->told != 0 ? 0 : -PLX_EFORMAT;
}

/* One page of headers, and what the store said of the walk. */
static async int walk_page(struct replica_remote *remote, struct remote_walk *walk)
{
    struct store_rpc_walk head = {.target = target_of(remote, walk->extent),
                                  .skip = le32_of(walk->count)};
    struct store_rpc_headers answer;
    struct writer bytes = {0};
    struct slice payload = {0};
    int rc = call_wait(remote, STORE_RPC_WALK, &head, sizeof head, &bytes, &payload);
    if (rc == 0 && bytes.len != sizeof answer)
        rc = -PLX_EFORMAT;
    if (rc == 0) {
        memcpy(&answer, bytes.bytes, sizeof answer);
        uint32_t count = le32_get(answer.count);
        walk->more = answer.more != 0 && count > 0; /* so it ends, whatever they say */
        walk->end = le32_get(answer.end);
        walk->code = -(int)min_u32(le32_get(answer.code), INT32_MAX);
        if (payload.buffer != NULL)
            rc = tell_page(walk, slice_data(payload), payload.len, count);
        else if (count > 0)
            rc = -PLX_EFORMAT;
    }
    buffer_put(payload.buffer);
    writer_done(&bytes);
    return rc;
}

static async int remote_walk(struct replica *replica, struct address extent,
                             header_fn *fn, void *arg, uint32_t *ret_end)
{
    struct remote_walk *walk = malloc(sizeof *walk); /* too large for a task's stack */
    if (walk == NULL)
        return -ENOMEM;
    *walk = (struct remote_walk){.extent = extent, .fn = fn, .arg = arg, .more = true};
    int rc = 0;
    while (rc == 0 && walk->told == 0 && walk->more && walk->count <= EXTENT_BLOCKS)
        rc = walk_page(remote_of(replica), walk);
    if (rc == 0)
        rc = walk->told != 0 ? walk->told : walk->code;
    if (ret_end != NULL)
        *ret_end = walk->end;
    free(walk);
    return rc;
}

/* --- reads --- */

static void copy_out(const struct store_read *read, const uint8_t *from)
{
    for (uint32_t i = 0; i < read->iov_count; i++) {
        memcpy(read->iov[i].iov_base, from, read->iov[i].iov_len);
        from += read->iov[i].iov_len;
    }
}

static void read_done(struct rpc_call *call)
{
    struct replica_read *read = container_of(call, struct remote_call, call)->request;
    read->result = call->result;
    if (read->result == 0 && (call->payload.buffer == NULL ||
                              call->payload.len != read->store.count * BLOCK_SIZE))
        read->result = -PLX_EFORMAT;
    if (read->result == 0)
        copy_out(&read->store, slice_data(call->payload));
    (void)call_done(call);
    read->done(read);
}

static void remote_read(struct replica *replica, struct replica_read *read)
{
    struct replica_remote *remote = remote_of(replica);
    uint32_t block = address_block(read->store.address);
    struct address extent = {read->store.address.v - block};
    struct store_rpc_read head = {.target = target_of(remote, extent),
                                  .block = le32_of(block),
                                  .count = le32_of(read->store.count)};
    assert(read->store.count <= STORE_RPC_READ_BLOCKS);
    struct remote_call *call = call_take(remote, read);
    if (call == NULL) {
        read->result = -ENOMEM;
        read->done(read);
        return;
    }
    read->call = call;
    call->call = (struct rpc_call){.node = replica->node,
                                   .op = STORE_RPC_READ,
                                   .head = &head,
                                   .head_len = sizeof head,
                                   .timeout_ns = READ_TIMEOUT_NS,
                                   .done = read_done};
    rpc_start(remote->rpc, &call->call);
}

static void remote_cancel_read(struct replica *replica, struct replica_read *read)
{
    struct remote_call *call = read->call;
    rpc_cancel(remote_of(replica)->rpc, &call->call);
}

/* --- many extents --- */

static async int remote_trim(struct replica *replica, struct slice trims,
                             uint32_t extent_count, uint32_t *ret_not_final)
{
    struct replica_remote *remote = remote_of(replica);
    struct store_rpc_trim head = {.target = target_of(remote, ADDRESS_NULL),
                                  .extent_count = le32_of(extent_count)};
    struct rpc_call call = {.node = replica->node,
                            .op = STORE_RPC_TRIM,
                            .head = &head,
                            .head_len = sizeof head,
                            .slices = &trims,
                            .slice_count = 1,
                            .timeout_ns = TASK_TIMEOUT_NS};
    struct store_rpc_trim_answer answer;
    struct writer bytes = {0};
    int rc = rpc_wait(remote->rpc, &call, &bytes, NULL);
    if (rc == 0 && bytes.len != sizeof answer)
        rc = -PLX_EFORMAT;
    if (rc == 0) {
        memcpy(&answer, bytes.bytes, sizeof answer);
        *ret_not_final = le32_get(answer.not_final);
    }
    writer_done(&bytes);
    return rc;
}

static int read_info(const struct store_rpc_extent *wire, uint64_t disk, uint64_t least,
                     struct extent_info *ret)
{
    *ret = (struct extent_info){
        .extent = {le64_get(wire->extent)},
        .disk = le64_get(wire->disk),
        .epoch = le64_get(wire->epoch),
        .nonce = le64_get(wire->nonce),
        .state = (enum extent_state)wire->state,
        .length = le32_get(wire->length),
        .durable = le32_get(wire->durable),
        .stored = le32_get(wire->stored),
        .live = le32_get(wire->live),
        .has_headers = (wire->flags & STORE_RPC_HAS_HEADERS) != 0,
        .restart_scanned = (wire->flags & STORE_RPC_RESTART_SCANNED) != 0,
        .create_flags = le32_get(wire->create_flags),
    };
    bool is_sound = ret->extent.v >= least && address_block(ret->extent) == 0 &&
                    address_group(ret->extent) != 0 && wire->state <= EXTENT_FINAL &&
                    ret->length <= EXTENT_BLOCKS && ret->durable <= ret->length &&
                    ret->live <= ret->stored && ret->stored <= EXTENT_BLOCKS &&
                    (disk == 0 || ret->disk == disk);
    return is_sound ? 0 : -PLX_EFORMAT;
}

static int read_infos(struct slice payload, const struct store_rpc_list *head,
                      uint32_t count, struct extent_info *ret_infos)
{
    uint64_t least = le64_get(head->target.extent);
    size_t len = payload.buffer != NULL ? payload.len : 0;
    if (count > le32_get(head->max) || len != count * sizeof(struct store_rpc_extent))
        return -PLX_EFORMAT;
    for (uint32_t i = 0; i < count; i++) {
        struct store_rpc_extent wire;
        memcpy(&wire, slice_data(payload) + i * sizeof wire, sizeof wire);
        int rc = read_info(&wire, le64_get(head->disk), least, &ret_infos[i]);
        if (rc != 0)
            return rc;
        least = ret_infos[i].extent.v + 1;
    }
    return 0;
}

static async int remote_list(struct replica *replica, uint64_t disk, struct address from,
                             uint32_t max, struct extent_info *ret_infos,
                             uint32_t *ret_count, bool *ret_more)
{
    struct replica_remote *remote = remote_of(replica);
    struct store_rpc_list head = {.target = target_of(remote, from),
                                  .disk = le64_of(disk),
                                  .max = le32_of(max)};
    struct store_rpc_extents answer = {0};
    struct writer bytes = {0};
    struct slice payload = {0};
    assert(max <= STORE_RPC_LIST_MAX);
    int rc = call_wait(remote, STORE_RPC_LIST, &head, sizeof head, &bytes, &payload);
    if (rc == 0 && bytes.len != sizeof answer)
        rc = -PLX_EFORMAT;
    if (rc == 0) {
        memcpy(&answer, bytes.bytes, sizeof answer);
        rc = read_infos(payload, &head, le32_get(answer.count), ret_infos);
    }
    if (rc == 0) {
        *ret_count = le32_get(answer.count);
        /* So it ends, whatever they say. */
        *ret_more = answer.more != 0 && *ret_count > 0;
    }
    buffer_put(payload.buffer);
    writer_done(&bytes);
    return rc;
}

static int read_usage(struct slice payload, uint32_t count, uint64_t after,
                      struct disk_blocks *ret_disks)
{
    size_t len = payload.buffer != NULL ? payload.len : 0;
    if (count > STORE_RPC_USAGE_MAX || len != count * sizeof(struct store_rpc_disk))
        return -PLX_EFORMAT;
    for (uint32_t i = 0; i < count; i++) {
        struct store_rpc_disk wire;
        memcpy(&wire, slice_data(payload) + i * sizeof wire, sizeof wire);
        ret_disks[i] = (struct disk_blocks){le64_get(wire.disk), le64_get(wire.live)};
        if (ret_disks[i].disk <= after ||
            ret_disks[i].live > (uint64_t)EXTENT_SEQUENCE_MAX * EXTENT_BLOCKS)
            return -PLX_EFORMAT;
        after = ret_disks[i].disk;
    }
    return 0;
}

static async int remote_usage(struct replica *replica, struct slice groups,
                              uint64_t after, struct disk_blocks *ret_disks,
                              uint32_t *ret_count, bool *ret_more)
{
    struct replica_remote *remote = remote_of(replica);
    struct store_rpc_usage head = {
        .target = target_of(remote, ADDRESS_NULL),
        .after = le64_of(after),
        .max = le32_of(STORE_RPC_USAGE_MAX),
        .group_count = le32_of(groups.len / (uint32_t)sizeof(le16))};
    struct rpc_call call = {.node = replica->node,
                            .op = STORE_RPC_USAGE,
                            .head = &head,
                            .head_len = sizeof head,
                            .slices = &groups,
                            .slice_count = 1,
                            .timeout_ns = rpc_is_connected(remote->rpc, replica->node)
                                              ? TASK_TIMEOUT_NS
                                              : UNCONNECTED_USAGE_NS};
    struct store_rpc_extents answer = {0};
    struct writer bytes = {0};
    struct slice payload = {0};
    int rc = rpc_wait(remote->rpc, &call, &bytes, &payload);
    if (rc == 0 && bytes.len != sizeof answer)
        rc = -PLX_EFORMAT;
    if (rc == 0) {
        memcpy(&answer, bytes.bytes, sizeof answer);
        rc = read_usage(payload, le32_get(answer.count), after, ret_disks);
    }
    if (rc == 0) {
        *ret_count = le32_get(answer.count);
        *ret_more = answer.more != 0 && *ret_count > 0;
    }
    buffer_put(payload.buffer);
    writer_done(&bytes);
    return rc;
}

static void remote_destroy(struct replica *replica)
{
    struct replica_remote *remote = remote_of(replica);
    struct remote_call *call;
    while ((call = SLIST_FIRST(&remote->kept)) != NULL) {
        SLIST_REMOVE_HEAD(&remote->kept, link);
        free(call);
    }
    free(remote);
}

static const struct replica_ops REMOTE_OPS = {
    .create = remote_create,
    .append = remote_append,
    .sync = remote_sync,
    .cancel_append = remote_cancel_append,
    .cancel_sync = remote_cancel_sync,
    .stop = remote_stop,
    .finalize = remote_finalize,
    .trim_headers = remote_trim_headers,
    .walk_headers = remote_walk,
    .read = remote_read,
    .cancel_read = remote_cancel_read,
    .trim = remote_trim,
    .list = remote_list,
    .usage = remote_usage,
    .destroy = remote_destroy,
};

struct replica *replica_remote_create(struct rpc *rpc, uint64_t node,
                                      struct uid incarnation)
{
    struct replica_remote *remote = calloc(1, sizeof *remote);
    if (remote == NULL)
        return NULL;
    remote->rpc = rpc;
    remote->incarnation = incarnation;
    SLIST_INIT(&remote->kept);
    remote->replica = (struct replica){.ops = &REMOTE_OPS, .node = node};
    return &remote->replica;
}
