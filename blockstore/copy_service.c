/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The service that offers copies.
 *
 * Happy path: each request gets a task. An inventory is a page of the table of extents; a
 * description two bitmaps; blocks are read in the order of the extent, checked by its
 * headers or its digest as they go, and sent from one buffer. Where a request for blocks
 * ended is remembered (a *cursor*), since without a digest a walk over the headers leads
 * there: the next request goes on from it.
 *
 * What can fail: a request that is malformed, or for another store, is refused before
 * anything is done. A block that does not fit, or cannot be read, is named as bad, and
 * its bytes are sent only to who asks for them. No memory, no buffer: -ENOMEM,
 * -PLX_ELIMIT, and the other side comes again.
 *
 * On close new requests are refused, those under way are waited for, and cursors go.
 */
#include "blockstore/copy_service.h"

#include "blockstore/inspect.h"

#define CURSORS_MAX 16U /* kept: at most 1.3 MiB each */
/* What one answer holds is read at once: four reads, one after the other, take a busy
 * device twice as long. */
#define FETCH_WINDOW_BYTES (COPY_RPC_FETCH_MAX * BLOCK_SIZE)
#define FETCHES_MAX 4U  /* at once; more wait */

struct cursor {
    struct inspect *ins; /* NULL: none. Not held while it is not busy */
    bool is_busy;
    uint64_t used; /* counts */
};

struct job {
    struct copy_service *service;
    struct rpc_request *request;
    struct address extent;
    struct task_call task;
};

struct copy_service {
    struct copy_service_options options;
    struct uid incarnation;
    bool is_closing;
    uint32_t job_count, fetch_count;
    uint64_t uses;
    struct waitlist idle, fetched;
    struct cursor cursors[CURSORS_MAX];
};

static void job_end(struct job *job, int code, const void *head, size_t len,
                    const struct slice *payload)
{
    struct copy_service *service = job->service;
    bool has_payload = payload != NULL && payload->buffer != NULL;
    rpc_answer(job->request, code, code == 0 ? head : NULL, code == 0 ? len : 0, payload,
               code == 0 && has_payload ? 1 : 0);
    if (has_payload)
        buffer_put(payload->buffer);
    free(job);
    if (--service->job_count == 0)
        waitlist_wake_all(&service->idle);
}

/* A buffer for the payload. -PLX_ELIMIT */
static int payload_make(const struct copy_service *service, uint64_t bytes,
                        struct slice *ret)
{
    *ret = (struct slice){.buffer = buffer_create(service->options.buffers, bytes)};
    return ret->buffer != NULL ? 0 : -PLX_ELIMIT;
}

static void payload_add(struct slice *payload, const void *bytes, size_t len)
{
    assert(payload->len + len <= payload->buffer->capacity);
    memcpy(payload->buffer->data + payload->len, bytes, len);
    payload->len += (uint32_t)len;
}

/* --- what is there --- */

static enum copy_rpc_state state_of(const struct extent_info *info)
{
    if (info->state == EXTENT_OPEN)
        return COPY_RPC_OPEN;
    return info->state == EXTENT_STOPPED ? COPY_RPC_STOPPED : COPY_RPC_FINAL;
}

/* What is known of an extent now. The map is of its live blocks, if it is final. */
static struct copy_extent describe(const struct copy_service *service,
                                   struct address extent, uint8_t *ret_live)
{
    struct store *store = service->options.store;
    struct extent_info info;
    struct copy_extent e = {.extent = extent, .state = COPY_RPC_ABSENT};
    if (store_extent_info(store, extent, &info) < 0)
        return e;
    e = (struct copy_extent){
        .extent = extent,
        .state = state_of(&info),
        .disk = info.disk,
        .epoch = info.epoch,
        .nonce = info.nonce,
        .length = info.length,
    };
    if (e.state != COPY_RPC_FINAL || store_live_map(store, extent, ret_live) < 0)
        return e;
    e.live = info.live;
    e.live_crc = crc32c(ret_live, BITMAP_BYTES);
    e.has_headers = info.has_headers;
    return e;
}

static async int take_inventory(struct job *job, struct copy_rpc_page *ret_page,
                                struct slice *ret_payload)
{
    const struct copy_service *service = job->service;
    struct copy_rpc_inventory head;
    memcpy(&head, job->request->head, sizeof head);
    uint32_t max = le16_get(head.max), count = 0, listed = 0;
    uint16_t group = le16_get(head.group);
    uint8_t live[BITMAP_BYTES];
    bool more = false;
    if (max == 0 || max > COPY_RPC_PAGE_MAX || group == 0)
        return -PLX_EFORMAT;
    cleanup(free_ptr) struct address *extents = malloc(max * sizeof *extents);
    if (extents == NULL)
        return -ENOMEM;
    int rc = store_page_extents(service->options.store, group, job->extent, max, extents,
                                &count, &more);
    if (rc == 0 && !service->options.is_whole(service->options.arg, group))
        rc = -PLX_EPRECONDITION;
    if (rc == 0 && count > 0)
        rc = payload_make(service, count * sizeof(struct copy_rpc_extent), ret_payload);
    for (uint32_t i = 0; rc == 0 && i < count; i++) {
        struct copy_extent e = describe(service, extents[i], live);
        struct copy_rpc_extent wire;
        if (e.state == COPY_RPC_ABSENT)
            continue;
        copy_extent_encode(&e, &wire);
        payload_add(ret_payload, &wire, sizeof wire);
        listed++;
    }
    /* A page that others follow must lead on. */
    if (rc == 0 && more && listed == 0)
        rc = -PLX_ELIMIT;
    *ret_page = (struct copy_rpc_page){.count = le32_of(listed), .more = more};
    return rc;
}

static async void serve_inventory(struct task_call *call)
{
    struct job *job = container_of(call, struct job, task);
    struct copy_rpc_page page;
    struct slice payload = {0};
    int rc = take_inventory(job, &page, &payload);
    job_end(job, rc, &page, sizeof page, &payload);
}

static int describe_whole(struct job *job, struct copy_rpc_extent *ret,
                          struct slice *ret_payload)
{
    const struct copy_service *service = job->service;
    uint8_t live[BITMAP_BYTES], headers[BITMAP_BYTES];
    struct extent *e = extent_find(&service->options.store->extents, job->extent);
    if (!service->options.is_whole(service->options.arg, address_group(job->extent)))
        return -PLX_EPRECONDITION;
    struct copy_extent description = describe(service, job->extent, live);
    copy_extent_encode(&description, ret);
    if (description.state != COPY_RPC_FINAL)
        return 0;
    int rc = payload_make(service, 2 * (size_t)BITMAP_BYTES, ret_payload);
    if (rc != 0)
        return rc;
    payload_add(ret_payload, live, BITMAP_BYTES);
    if (description.has_headers) {
        memcpy(headers, e->headers, BITMAP_BYTES);
        bitmap_cut(headers, e->length);
        payload_add(ret_payload, headers, BITMAP_BYTES);
    }
    return 0;
}

static async void serve_describe(struct task_call *call)
{
    struct job *job = container_of(call, struct job, task);
    struct copy_rpc_extent head;
    struct slice payload = {0};
    int rc = describe_whole(job, &head, &payload);
    job_end(job, rc, &head, sizeof head, &payload);
}

/* --- cursors --- */

/* It has not come to this block of the extent yet, so that it can go on from where it is.
 * That may be before the block: what is dead between two requests is not asked for. */
static bool leads_to(const struct cursor *cursor, struct address extent, uint32_t block)
{
    return cursor->ins != NULL && address_equal(cursor->ins->address, extent) &&
           cursor->ins->block <= block;
}

/* The one that has the shortest way, else one that nobody uses. There is one, since there
 * are more than may be busy. */
static struct cursor *cursor_get(struct copy_service *service, struct address extent,
                                 uint32_t block)
{
    static_assert(CURSORS_MAX > FETCHES_MAX, "one is not busy");
    struct cursor *nearest = NULL, *oldest = NULL;
    for (uint32_t i = 0; i < CURSORS_MAX; i++) {
        struct cursor *cursor = &service->cursors[i];
        if (cursor->is_busy)
            continue;
        if (leads_to(cursor, extent, block) &&
            (nearest == NULL || cursor->ins->block > nearest->ins->block))
            nearest = cursor;
        if (oldest == NULL ||
            (oldest->ins != NULL && (cursor->ins == NULL || cursor->used < oldest->used)))
            oldest = cursor;
    }
    struct cursor *best = nearest != NULL ? nearest : oldest;
    if (nearest == NULL) {
        inspect_destroy(best->ins);
        best->ins = inspect_create(service->options.store, extent,
                                   FETCH_WINDOW_BYTES);
        if (best->ins == NULL)
            return NULL;
    }
    best->is_busy = true;
    best->used = ++service->uses;
    return best;
}

static void cursor_put(struct cursor *cursor, bool is_of_use)
{
    if (cursor->ins->extent != NULL)
        inspect_release(cursor->ins);
    if (!is_of_use)
        inspect_destroy(take(cursor->ins));
    cursor->is_busy = false;
}

/* --- blocks --- */

struct fetch {
    struct copy_service *service;
    struct copy_rpc_fetch head;
    struct address extent;
    uint32_t from, max;
    uint32_t next, count;
    bool has_headers;
    struct slice payload;
    struct copy_rpc_block blocks[COPY_RPC_FETCH_MAX];
};

/* The extent must still be what the other side took it for. */
static int check_extent(const struct fetch *f, const struct extent *e)
{
    bool is_same = e->state == EXTENT_FINAL && e->nonce == le64_get(f->head.nonce) &&
                   e->length == le32_get(f->head.length);
    return is_same ? 0 : -PLX_EPRECONDITION;
}

static void add_block(struct fetch *f, const struct inspected *in)
{
    bool wants_bad = (le32_get(f->head.flags) & COPY_RPC_WANTS_BAD) != 0;
    struct copy_block block = {
        .block = in->block,
        .entry = in->entry,
        .is_known = in->is_known,
        .is_header = in->is_header,
        .is_bad = in->code != 0,
        .has_bytes = in->bytes != NULL && (in->code == 0 || wants_bad),
    };
    copy_block_encode(&block, &f->blocks[f->count++]);
    if (block.has_bytes)
        payload_add(&f->payload, in->bytes, BLOCK_SIZE);
}

/* What is asked for here is read, and so it is noticed. */
static void notice(const struct fetch *f, const struct inspect *ins,
                   const struct inspected *in)
{
    const struct copy_service_options *options = &f->service->options;
    bool is_bad = in->code != 0 &&
                  (in->is_header || extent_is_live(ins->extent, in->block, 1));
    bool has_digest = ins->extent->layout == NULL || ins->digest_code == 0;
    if (options->bad != NULL && (is_bad || !has_digest))
        options->bad(options->arg, f->extent);
}

/* From where the cursor is. */
static async int read_blocks(struct fetch *f, struct inspect *ins)
{
    struct inspected in;
    f->next = EXTENT_BLOCKS;
    while (f->count < f->max) {
        int more = inspect_next(ins, &in);
        if (more <= 0)
            return more;
        if (ins->extent->state != EXTENT_FINAL)
            return -PLX_EPRECONDITION;
        notice(f, ins, &in);
        if (in.block >= f->from && extent_is_live(ins->extent, in.block, 1))
            add_block(f, &in);
    }
    f->next = in.block + 1;
    return 0;
}

static async int read_with(struct fetch *f, struct inspect *ins)
{
    uint64_t serial = ins->serial, before = ins->bytes_read;
    int rc = inspect_resume(ins);
    if (rc == 0)
        rc = check_extent(f, ins->extent);
    if (rc != 0)
        return rc;
    /* In the middle of an extent only a digest says what a block is. */
    if (ins->block > 0 && ins->serial != serial && ins->extent->layout == NULL) {
        inspect_release(ins);
        ins->block = 0;
        ins->serial = 0;
        rc = inspect_resume(ins);
    }
    ins->from = f->from;
    if (rc == 0)
        rc = read_blocks(f, ins);
    if (rc == 0)
        f->has_headers = ins->extent->headers != NULL;
    if (ins->extent != NULL)
        inspect_release(ins);
    if (f->service->options.rest != NULL)
        f->service->options.rest(f->service->options.arg, ins->bytes_read - before);
    return rc;
}

static async int fetch(struct fetch *f)
{
    struct copy_service *service = f->service;
    while (service->fetch_count >= FETCHES_MAX)
        waitlist_wait(&service->fetched);
    service->fetch_count++;
    int rc = payload_make(service, (uint64_t)f->max * BLOCK_SIZE, &f->payload);
    struct cursor *cursor = rc == 0 ? cursor_get(service, f->extent, f->from) : NULL;
    if (rc == 0 && cursor == NULL)
        rc = -ENOMEM;
    if (cursor != NULL) {
        rc = read_with(f, cursor->ins);
        cursor_put(cursor, rc == 0 && f->next < EXTENT_BLOCKS && !service->is_closing);
    }
    service->fetch_count--;
    waitlist_wake_one(&service->fetched);
    return rc;
}

static int check_fetch(const struct fetch *f)
{
    uint32_t length = le32_get(f->head.length);
    if (f->max == 0 || f->max > COPY_RPC_FETCH_MAX || f->from >= length ||
        length > EXTENT_BLOCKS || (le32_get(f->head.flags) & ~COPY_RPC_WANTS_BAD) != 0)
        return -PLX_EFORMAT;
    return 0;
}

static void fetch_end(struct fetch *f, struct job *job, int rc)
{
    uint8_t answer[sizeof(struct copy_rpc_blocks) + sizeof f->blocks];
    struct copy_rpc_blocks head = {
        .count = le32_of(f->count),
        .next = le32_of(f->next),
        .flags = f->has_headers ? COPY_RPC_HAS_HEADERS : 0,
    };
    memcpy(answer, &head, sizeof head);
    memcpy(answer + sizeof head, f->blocks, f->count * sizeof f->blocks[0]);
    if (f->payload.len == 0)
        buffer_put(take(f->payload.buffer));
    job_end(job, rc, answer, sizeof head + f->count * sizeof f->blocks[0], &f->payload);
}

static async void serve_fetch(struct task_call *call)
{
    struct job *job = container_of(call, struct job, task);
    cleanup(free_ptr) struct fetch *f = malloc(sizeof *f);
    if (f == NULL) {
        job_end(job, -ENOMEM, NULL, 0, NULL);
        return;
    }
    *f = (struct fetch){.service = job->service, .extent = job->extent};
    memcpy(&f->head, job->request->head, sizeof f->head);
    f->from = le32_get(f->head.from);
    f->max = le32_get(f->head.max);
    int rc = check_fetch(f);
    if (rc == 0)
        rc = fetch(f);
    fetch_end(f, job, rc);
}

/* --- the table --- */

#define OP(NUMBER, NAME, TYPE)                                                           \
    {                                                                                    \
        .number = COPY_RPC_##NUMBER, .name = "copies " NAME,                             \
        .head_max = sizeof(struct TYPE)                                                  \
    }

const struct rpc_op copy_service_ops[COPY_SERVICE_OPS] = {
    OP(INVENTORY, "inventory", copy_rpc_inventory),
    OP(DESCRIBE, "describe", store_rpc_target),
    OP(FETCH, "fetch", copy_rpc_fetch),
};

static void (*const MAINS[COPY_SERVICE_OPS])(struct task_call *call) = {
    [COPY_RPC_INVENTORY - COPY_RPC_INVENTORY] = serve_inventory,
    [COPY_RPC_DESCRIBE - COPY_RPC_INVENTORY] = serve_describe,
    [COPY_RPC_FETCH - COPY_RPC_INVENTORY] = serve_fetch,
};

static int check_request(const struct copy_service *service,
                         const struct rpc_request *request, struct address *ret_extent)
{
    struct store_rpc_target target;
    if (request->head_len != request->op->head_max)
        return -PLX_EFORMAT;
    if (service->is_closing)
        return -ESHUTDOWN;
    memcpy(&target, request->head, sizeof target);
    if (!uid_equal(target.incarnation, service->incarnation))
        return -PLX_EPRECONDITION;
    ret_extent->v = le64_get(target.extent);
    return address_group(*ret_extent) != 0 && address_block(*ret_extent) == 0
               ? 0
               : -PLX_EFORMAT;
}

void copy_service_handle(struct copy_service *service, struct rpc_request *request)
{
    uint32_t which = request->op->number - COPY_RPC_INVENTORY;
    assert(which < COPY_SERVICE_OPS);
    struct address extent;
    int rc = check_request(service, request, &extent);
    struct job *job = rc == 0 ? malloc(sizeof *job) : NULL;
    if (job == NULL) {
        rpc_answer(request, rc != 0 ? rc : -ENOMEM, NULL, 0, NULL, 0);
        return;
    }
    *job = (struct job){
        .service = service,
        .request = request,
        .extent = extent,
        .task = {.main = MAINS[which], .name = "copy service", .system = true},
    };
    service->job_count++;
    task_start(service->options.loop, &job->task);
}

/* --- the whole --- */

int copy_service_create(const struct copy_service_options *options,
                        struct copy_service **ret_service)
{
    struct copy_service *service = calloc(1, sizeof *service);
    if (service == NULL)
        return -ENOMEM;
    struct store_usage usage;
    store_usage(options->store, &usage);
    service->options = *options;
    service->incarnation = usage.incarnation;
    waitlist_init(&service->idle);
    waitlist_init(&service->fetched);
    *ret_service = service;
    return 0;
}

async void copy_service_stop(struct copy_service *service)
{
    service->is_closing = true;
    while (service->job_count > 0)
        waitlist_wait(&service->idle);
    for (uint32_t i = 0; i < CURSORS_MAX; i++)
        inspect_destroy(take(service->cursors[i].ins));
}

void copy_service_destroy(struct copy_service *service)
{
    if (service == NULL)
        return;
    assert(service->job_count == 0);
    for (uint32_t i = 0; i < CURSORS_MAX; i++)
        assert(service->cursors[i].ins == NULL);
    free(service);
}
