/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What another node asks of a store and of its copies: heads and payloads that can be
 * anything, to a store of the simulator that has one extent in each state. An input is
 * records, each
 *
 *   byte 0   low bits: the operation; SEALED: the head has the right length, and names
 *            this store and one of its extents; ALONE: all must be answered before
 *   byte 1   length of the head
 *   byte 2   length of the payload, in units of 64 bytes; a block for each from 192 on
 *   head
 *   payload
 *
 * Each request is answered once, the services end, and all memory is put back.
 */
#include "blockstore/copy_service.h"
#include "blockstore/store_service.h"
#include "tests/unit/extent_source.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

enum { SEALED = 0x80, ALONE = 0x40, OP_MASK = 0x0f };

#define BYTES    (32 * MIB)
#define EXTENT_1 address_of(1, 1, 0)
#define EXTENTS  4U

struct asked {
    struct rpc_request request; /* first: it is freed as this */
    uint8_t head[256];
};

static struct {
    struct store *store;
    struct buffer_pool *pool;
    struct store_service *service;
    struct copy_service *copies;
    struct uid incarnation;
    uint32_t under_way;
    const uint8_t *bytes;
    size_t len;
} s;

/* In place of the rpc's. */
void rpc_answer(struct rpc_request *request, int code, const void *head, size_t head_len,
                const struct slice *slices, uint32_t slice_count)
{
    CHECK(code <= 0 && s.under_way > 0);
    CHECK(head_len == 0 || head != NULL);
    CHECK(slice_count == 0 || (slice_count == 1 && slices[0].buffer != NULL &&
                               slices[0].len <= slices[0].buffer->capacity));
    s.under_way--;
    buffer_put(request->payload.buffer);
    free(request);
}

static async int admit(void *arg, struct address extent, uint64_t disk, uint64_t epoch,
                       uint64_t index)
{
    (void)arg, (void)extent, (void)disk, (void)epoch;
    task_yield();
    return index % 2 == 0 ? 0 : -PLX_EEPOCH;
}

static async int may_delete(void *arg, struct address extent)
{
    (void)arg;
    task_yield();
    return address_sequence(extent) % 2 == 0 ? 0 : -EAGAIN;
}

static bool is_whole(void *arg, uint16_t group)
{
    (void)arg;
    return group == 1;
}

static void wait_for_all(void)
{
    for (uint32_t i = 0; s.under_way > 0; i++) {
        CHECK(i < 100000);
        task_sleep_ns(NS_PER_MS);
    }
}

static uint32_t take_bytes(void *to, uint32_t len)
{
    uint32_t n = (uint32_t)min_u64(len, s.len);
    memset(to, 0, len);
    memcpy(to, s.bytes, n);
    s.bytes += n;
    s.len -= n;
    return n;
}

static void seal(struct asked *asked, const struct rpc_op *op)
{
    struct store_rpc_target target;
    memcpy(&target, asked->head, sizeof target);
    uint64_t which = le64_get(target.extent);
    target.incarnation = s.incarnation;
    if (which % 8 < EXTENTS)
        target.extent = le64_of(EXTENT_1.v + which % 8 * EXTENT_BLOCKS);
    else if (which % 8 == EXTENTS)
        target.extent = le64_of(0);
    memcpy(asked->head, &target, sizeof target);
    asked->request.head_len = op->head_max;
}

static void one_request(const uint8_t control[3])
{
    uint32_t which = (control[0] & OP_MASK) % (STORE_SERVICE_OPS + COPY_SERVICE_OPS);
    bool is_copies = which >= STORE_SERVICE_OPS;
    const struct rpc_op *op = is_copies ? &copy_service_ops[which - STORE_SERVICE_OPS]
                                        : &store_service_ops[which];
    uint32_t len = control[2] < 192 ? control[2] * 64U
                                    : (control[2] - 191U) * (uint32_t)BLOCK_SIZE;
    struct asked *asked = calloc(1, sizeof *asked);
    CHECK(asked != NULL && op->head_max <= sizeof asked->head);
    asked->request = (struct rpc_request){
        .op = op, .head = asked->head, .head_len = min_u32(control[1], op->head_max)};
    take_bytes(asked->head, control[1]);
    if (control[0] & SEALED)
        seal(asked, op);
    len = min_u32(len, op->payload_max);
    if (len > 0) {
        struct buffer *buffer = buffer_create(s.pool, len);
        CHECK(buffer != NULL);
        take_bytes(buffer->data, len);
        asked->request.payload = (struct slice){.buffer = buffer, .len = len};
    }
    s.under_way++;
    if (is_copies)
        copy_service_handle(s.copies, &asked->request);
    else
        store_service_handle(s.service, &asked->request);
}

/* The first is final, the second open, the third stopped; the fourth is not there. */
static void make_extents(struct sim_world *world, struct source *sources[3])
{
    uint32_t length;
    bool is_scanned;
    for (uint32_t i = 0; i < 3; i++) {
        struct address at = {EXTENT_1.v + (uint64_t)i * EXTENT_BLOCKS};
        sources[i] = source_of_disk(world, at, 3, 1, 20);
        CHECK_EQ(source_write(s.store, s.pool, sources[i], 20), 0);
    }
    CHECK_EQ(store_finalize_extent(s.store, EXTENT_1, 20), 0);
    CHECK_EQ(store_stop_extent(s.store, sources[2]->address, &length, &is_scanned), 0);
}

static void serve_all(struct body *body)
{
    struct store_service_options service = {.store = s.store, .loop = body->loop,
                                            .buffers = s.pool, .admit = admit,
                                            .may_delete = may_delete};
    struct copy_service_options copies = {.store = s.store, .loop = body->loop,
                                          .buffers = s.pool, .is_whole = is_whole};
    uint8_t control[3];
    CHECK_EQ(store_service_create(&service, &s.service), 0);
    CHECK_EQ(copy_service_create(&copies, &s.copies), 0);
    for (uint32_t i = 0; i < 40 && s.len >= sizeof control; i++) {
        take_bytes(control, sizeof control);
        if (control[0] & ALONE)
            wait_for_all();
        one_request(control);
    }
    store_service_stop(s.service);
    copy_service_stop(s.copies);
    wait_for_all();
    store_service_destroy(s.service);
    copy_service_destroy(s.copies);
}

static void run_body(struct body *body)
{
    struct error err = {0};
    struct store_usage usage;
    struct source *sources[3];
    struct kv *kv;
    struct store_options options = {
        .path = STORE_PATH, .capacity_bytes = BYTES, .no_idle_work = true};
    CHECK_EQ(kv_open(body->loop, KV_PATH, true, &kv, &err), 0);
    options.kv = kv;
    CHECK_EQ(store_create(body->loop, &options, CLUSTER_UID, &err), 0);
    options.capacity_bytes = 0;
    CHECK_EQ(store_open(body->loop, &options, &s.store, &err), 0);
    store_usage(s.store, &usage);
    s.incarnation = usage.incarnation;
    s.pool = buffer_pool_create(64 * MIB);
    make_extents(body->world, sources);
    serve_all(body);
    store_close(s.store);
    kv_close(kv);
    for (uint32_t i = 0; i < 3; i++)
        source_destroy(sources[i]);
    CHECK_EQ(buffer_pool_used_bytes(s.pool), 0);
    buffer_pool_destroy(s.pool);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    s.bytes = bytes;
    s.len = len;
    struct sim_world *world = sim_world_create(1);
    run_in_world(world, run_body, NULL);
    sim_world_destroy(world);
    return 0;
}
