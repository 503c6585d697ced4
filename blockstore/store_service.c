/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The service that offers a store to other nodes.
 *
 * Happy path: a request becomes a job. Appends, syncs and reads go to the store at once,
 * without a task, in the order they came in; what has several steps gets a task. The
 * answer ends the job. An append's blocks go to the device from the buffer they came in.
 *
 * What can fail: a head of another length, or of another store, is refused before
 * anything is done. No memory for a job: -ENOMEM, and nothing was done. Everything else
 * is the store's own answer.
 *
 * On close new requests are refused, and those under way are waited for; then the rpc
 * ends, and after it the service. Answers may find no connection any more, which is the
 * rpc's business.
 */
#include "blockstore/store_service.h"

#include "blockstore/store_rpc_format.h"
#include "blockstore/trims.h"

#define JOBS_KEPT 64U /* for reuse */

struct job {
    struct store_service *service;
    struct rpc_request *request;
    const struct operation *operation;
    struct address extent;
    struct task_call task;
    struct store_append append;
    struct store_sync sync;
    struct store_read read;
    struct slice slice;
    struct iovec iov;
    SLIST_ENTRY(job) link;
};

struct operation {
    void (*direct)(struct job *job);        /* either starts it ... */
    async void (*on_task)(struct job *job); /* ... or does all of it */
};

struct store_service {
    struct store_service_options options;
    struct uid incarnation;
    bool is_closing;
    uint32_t job_count;
    struct waitlist idle;
    SLIST_HEAD(, job) kept;
    uint32_t kept_count;
};

/* --- jobs --- */

static void job_end(struct job *job, int code, const void *head, size_t len,
                    const struct slice *payload)
{
    struct store_service *service = job->service;
    rpc_answer(job->request, code, head, len, payload, payload != NULL ? 1 : 0);
    buffer_put(take(job->slice.buffer));
    if (service->kept_count < JOBS_KEPT) {
        service->kept_count++;
        SLIST_INSERT_HEAD(&service->kept, job, link);
    } else {
        free(job);
    }
    if (--service->job_count == 0)
        waitlist_wake_all(&service->idle);
}

static struct job *job_alloc(struct store_service *service)
{
    struct job *job = SLIST_FIRST(&service->kept);
    if (job == NULL)
        return malloc(sizeof *job);
    SLIST_REMOVE_HEAD(&service->kept, link);
    service->kept_count--;
    return job;
}

static void task_main(struct task_call *call)
{
    struct job *job = container_of(call, struct job, task);
    job->operation->on_task(job);
}

/* What every request must be. */
static int check_request(const struct store_service *service,
                         const struct rpc_request *request)
{
    struct store_rpc_target target;
    if (request->head_len != request->op->head_max)
        return -PLX_EFORMAT;
    if (service->is_closing)
        return -ESHUTDOWN;
    memcpy(&target, request->head, sizeof target);
    if (!uid_equal(target.incarnation, service->incarnation) &&
        !planted(PLANT_OTHER_STORE))
        return -PLX_EMISSING;
    return le64_get(target.extent) % EXTENT_BLOCKS == 0 ? 0 : -PLX_EFORMAT;
}

/* --- append, sync, read --- */

static void append_done(struct store_append *append)
{
    job_end(container_of(append, struct job, append), append->result, NULL, 0, NULL);
}

/* A planted bug. What it needs to know stands in the roll record. */
static async void create_and_append(struct task_call *call)
{
    struct job *job = container_of(call, struct job, task);
    struct store *store = job->service->options.store;
    struct header head;
    if (roll_decode(slice_data(job->slice), &head, NULL) == 0)
        (void)store_create_extent(store, job->extent, head.disk, head.epoch, head.nonce,
                                  1, false);
    store_append(store, &job->append);
}

static bool must_create(const struct job *job)
{
    struct extent_info info;
    return planted(PLANT_APPEND_CREATES) && job->append.block == 0 &&
           store_extent_info(job->service->options.store, job->extent, &info) < 0;
}

static void serve_append(struct job *job)
{
    struct store_rpc_append head;
    memcpy(&head, job->request->head, sizeof head);
    if (job->slice.buffer == NULL || job->slice.len % BLOCK_SIZE != 0 ||
        le32_get(head.block) >= EXTENT_BLOCKS) {
        job_end(job, -PLX_EFORMAT, NULL, 0, NULL);
        return;
    }
    job->append = (struct store_append){
        .extent = job->extent,
        .epoch = le64_get(head.epoch),
        .block = le32_get(head.block),
        .slices = &job->slice,
        .slice_count = 1,
        .use_reserve = (le32_get(head.flags) & STORE_RPC_USE_RESERVE) != 0,
        .done = append_done,
    };
    if (!must_create(job)) {
        store_append(job->service->options.store, &job->append);
        return;
    }
    job->task = (struct task_call){.main = create_and_append, .name = "planted"};
    task_start(job->service->options.loop, &job->task);
}

static void sync_done(struct store_sync *sync)
{
    job_end(container_of(sync, struct job, sync), sync->result, NULL, 0, NULL);
}

static void serve_sync(struct job *job)
{
    struct store *store = job->service->options.store;
    struct store_rpc_sync head;
    struct extent_info info;
    memcpy(&head, job->request->head, sizeof head);
    int rc = store_extent_info(store, job->extent, &info);
    if (rc == 0 && info.state != EXTENT_OPEN && !planted(PLANT_SYNC_STOPPED))
        rc = -PLX_ESTOPPED;
    if (rc == 0 && info.epoch != le64_get(head.epoch))
        rc = -PLX_EEPOCH;
    if (rc != 0) {
        job_end(job, rc, NULL, 0, NULL);
        return;
    }
    job->sync.done = sync_done;
    store_sync(store, &job->sync);
}

static void read_done(struct store_read *read)
{
    struct job *job = container_of(read, struct job, read);
    job_end(job, read->result, NULL, 0, read->result == 0 ? &job->slice : NULL);
}

static void serve_read(struct job *job)
{
    struct store_rpc_read head;
    memcpy(&head, job->request->head, sizeof head);
    uint32_t block = le32_get(head.block), count = le32_get(head.count);
    if (job->slice.buffer != NULL || count == 0 || count > STORE_RPC_READ_BLOCKS ||
        block >= EXTENT_BLOCKS || count > EXTENT_BLOCKS - block) {
        job_end(job, -PLX_EFORMAT, NULL, 0, NULL);
        return;
    }
    uint32_t bytes = count * (uint32_t)BLOCK_SIZE;
    struct buffer *buffer = buffer_create(job->service->options.buffers, bytes);
    if (buffer == NULL) {
        job_end(job, -PLX_ELIMIT, NULL, 0, NULL);
        return;
    }
    job->slice = (struct slice){.buffer = buffer, .len = bytes};
    job->iov = (struct iovec){.iov_base = buffer->data, .iov_len = bytes};
    job->read = (struct store_read){.address = address_plus(job->extent, block),
                                    .count = count,
                                    .iov = &job->iov,
                                    .iov_count = 1,
                                    .done = read_done};
    store_read(job->service->options.store, &job->read);
}

/* --- what has several steps --- */

static async void serve_create(struct job *job)
{
    const struct store_service_options *options = &job->service->options;
    struct store_rpc_create head;
    memcpy(&head, job->request->head, sizeof head);
    uint64_t disk = le64_get(head.disk), epoch = le64_get(head.epoch);
    uint32_t slabs = le32_get(head.slabs_hint);
    if (slabs == 0 || slabs > EXTENT_SLABS || address_group(job->extent) == 0) {
        job_end(job, -PLX_EFORMAT, NULL, 0, NULL);
        return;
    }
    int rc = options->admit(options->arg, job->extent, disk, epoch,
                            le64_get(head.index));
    if (rc == 0)
        rc = store_create_extent(options->store, job->extent, disk, epoch,
                                 le64_get(head.nonce), slabs,
                                 le32_get(head.flags) & STORE_RPC_KEEP_RESERVE);
    job_end(job, rc, NULL, 0, NULL);
}

static async void serve_stop(struct job *job)
{
    uint32_t length = 0;
    bool restart_scanned = false;
    int rc = store_stop_extent(job->service->options.store, job->extent, &length,
                               &restart_scanned);
    struct store_rpc_stopped answer = {.length = le32_of(length),
                                       .restart_scanned = restart_scanned};
    job_end(job, rc, &answer, rc == 0 ? sizeof answer : 0, NULL);
}

static async void serve_finalize(struct job *job)
{
    struct store_rpc_finalize head;
    memcpy(&head, job->request->head, sizeof head);
    const struct store_service_options *options = &job->service->options;
    uint32_t length = le32_get(head.length);
    struct extent_info info;
    int rc = length <= EXTENT_BLOCKS ? 0 : -PLX_EFORMAT;
    if (rc == 0 && length == 0 &&
        store_extent_info(options->store, job->extent, &info) == 0)
        rc = options->may_delete(options->arg, job->extent);
    if (rc == 0)
        rc = store_finalize_extent(options->store, job->extent, length);
    job_end(job, rc, NULL, 0, NULL);
}

static async void serve_trim_headers(struct job *job)
{
    int rc = store_trim_headers(job->service->options.store, job->extent);
    job_end(job, rc == -PLX_EMISSING ? 0 : rc, NULL, 0, NULL);
}

/* --- headers --- */

struct page {
    struct job *job;
    uint32_t seen, skip, count;
    bool more;
};

/* A header is a block that ends in zeros and its checksum: these go without saying. */
static int add_header(void *arg, const struct header *head, const struct entry *entries,
                      const struct roll_entry *rolls)
{
    struct page *page = arg;
    struct slice *slice = &page->job->slice;
    uint8_t block[BLOCK_SIZE];
    if (page->seen++ < page->skip)
        return 0;
    if (head->kind == HEADER_ROLL)
        roll_encode(head, rolls, block);
    else
        header_encode(head, entries, block);
    uint32_t len = BLOCK_SIZE - (uint32_t)sizeof(le32);
    while (len > 0 && block[len - 1] == 0)
        len--;
    le32 prefix = le32_of(len + (uint32_t)sizeof(le32));
    if (slice->len + sizeof prefix + len + sizeof(le32) > slice->buffer->capacity) {
        page->more = true;
        return -PLX_ELIMIT;
    }
    uint8_t *at = slice_data(*slice) + slice->len;
    memcpy(at, &prefix, sizeof prefix);
    memcpy(at + sizeof prefix, block, len);
    memcpy(at + sizeof prefix + len, block + BLOCK_SIZE - sizeof(le32), sizeof(le32));
    slice->len += (uint32_t)sizeof prefix + len + (uint32_t)sizeof(le32);
    page->count++;
    return 0;
}

static async void serve_walk(struct job *job)
{
    const struct store_service_options *options = &job->service->options;
    struct store_rpc_walk head;
    memcpy(&head, job->request->head, sizeof head);
    struct page page = {.job = job, .skip = le32_get(head.skip)};
    uint32_t end = 0;
    job->slice = (struct slice){
        .buffer = buffer_create(options->buffers, BUFFER_BYTES_MAX)};
    if (job->slice.buffer == NULL) {
        job_end(job, -PLX_ELIMIT, NULL, 0, NULL);
        return;
    }
    int rc = store_walk_headers(options->store, job->extent, add_header, &page, &end);
    if (page.more)
        rc = 0;
    struct store_rpc_headers answer = {.count = le32_of(page.count),
                                       .end = le32_of(end),
                                       .more = page.more,
                                       .code = le32_of((uint32_t)-rc)};
    job_end(job, 0, &answer, sizeof answer, page.count > 0 ? &job->slice : NULL);
}

/* --- many extents --- */

static async void serve_trim(struct job *job)
{
    struct store_rpc_trim head;
    struct store_rpc_trim_answer answer = {0};
    uint32_t not_final = 0;
    memcpy(&head, job->request->head, sizeof head);
    int rc = -PLX_EFORMAT;
    if (job->slice.buffer != NULL && le32_get(head.reserved) == 0 && job->extent.v == 0)
        rc = trims_check(slice_data(job->slice), job->slice.len,
                         le32_get(head.extent_count));
    if (rc == 0)
        rc = trims_apply(job->service->options.store, slice_data(job->slice),
                         job->slice.len, &not_final);
    answer.not_final = le32_of(not_final);
    job_end(job, rc, &answer, rc == 0 ? sizeof answer : 0, NULL);
}

static_assert(EXTENT_OPEN == 0 && EXTENT_STOPPED == 1 && EXTENT_FINAL == 2,
              "states as they are sent");

static struct store_rpc_extent extent_of(const struct extent_info *info)
{
    return (struct store_rpc_extent){
        .extent = le64_of(info->extent.v),
        .disk = le64_of(info->disk),
        .epoch = le64_of(info->epoch),
        .nonce = le64_of(info->nonce),
        .length = le32_of(info->length),
        .durable = le32_of(info->durable),
        .stored = le32_of(info->stored),
        .live = le32_of(info->live),
        .create_flags = le32_of(info->create_flags),
        .state = (uint8_t)info->state,
        .flags = (uint8_t)((info->has_headers ? STORE_RPC_HAS_HEADERS : 0) |
                           (info->restart_scanned ? STORE_RPC_RESTART_SCANNED : 0)),
    };
}

/* Into a new buffer of the job. Returns how many; -PLX_ELIMIT: there is none. */
static int put_extents(struct job *job, const struct extent_info *infos, size_t count,
                       uint32_t max)
{
    uint32_t n = (uint32_t)min_u64(count, max);
    if (n == 0)
        return 0;
    uint32_t len = n * (uint32_t)sizeof(struct store_rpc_extent);
    struct buffer *buffer = buffer_create(job->service->options.buffers, len);
    if (buffer == NULL)
        return -PLX_ELIMIT;
    job->slice = (struct slice){.buffer = buffer, .len = len};
    for (uint32_t i = 0; i < n; i++) {
        struct store_rpc_extent wire = extent_of(&infos[i]);
        memcpy(buffer->data + (size_t)i * sizeof wire, &wire, sizeof wire);
    }
    return (int)n;
}

static async void serve_list(struct job *job)
{
    struct store_rpc_list head;
    cleanup(free_ptr) struct extent_info *infos = NULL;
    size_t count = 0, first = 0;
    memcpy(&head, job->request->head, sizeof head);
    uint32_t max = le32_get(head.max);
    int rc = -PLX_EFORMAT;
    if (max > 0 && max <= STORE_RPC_LIST_MAX && le32_get(head.reserved) == 0)
        rc = store_list_extents(job->service->options.store, le64_get(head.disk), &infos,
                                &count);
    while (rc == 0 && first < count && infos[first].extent.v < job->extent.v)
        first++;
    if (rc == 0)
        rc = put_extents(job, infos + first, count - first, max);
    if (rc < 0) {
        job_end(job, rc, NULL, 0, NULL);
        return;
    }
    struct store_rpc_extents answer = {.count = le32_of((uint32_t)rc),
                                       .more = (uint32_t)rc < count - first};
    job_end(job, 0, &answer, sizeof answer, rc > 0 ? &job->slice : NULL);
}

static bool groups_are_sound(struct slice groups, uint32_t count)
{
    uint16_t last = 0;
    if (groups.buffer == NULL || groups.len != count * sizeof(le16))
        return false;
    for (uint32_t i = 0; i < count; i++) {
        le16 group;
        memcpy(&group, slice_data(groups) + i * sizeof group, sizeof group);
        if (le16_get(group) <= last)
            return false;
        last = le16_get(group);
    }
    return count > 0;
}

/* In place of the groups. Returns how many; -PLX_ELIMIT: there is no buffer. */
static int put_disks(struct job *job, const struct disk_blocks *disks, size_t count,
                     uint32_t max)
{
    uint32_t n = (uint32_t)min_u64(count, max);
    buffer_put(take(job->slice.buffer));
    if (n == 0)
        return 0;
    uint32_t len = n * (uint32_t)sizeof(struct store_rpc_disk);
    struct buffer *buffer = buffer_create(job->service->options.buffers, len);
    if (buffer == NULL)
        return -PLX_ELIMIT;
    job->slice = (struct slice){.buffer = buffer, .len = len};
    for (uint32_t i = 0; i < n; i++) {
        struct store_rpc_disk wire = {.disk = le64_of(disks[i].disk),
                                      .live = le64_of(disks[i].live)};
        memcpy(buffer->data + (size_t)i * sizeof wire, &wire, sizeof wire);
    }
    return (int)n;
}

static async void serve_usage(struct job *job)
{
    struct store_rpc_usage head;
    cleanup(free_ptr) struct disk_blocks *disks = NULL;
    size_t count = 0, first = 0;
    memcpy(&head, job->request->head, sizeof head);
    uint32_t max = le32_get(head.max), group_count = le32_get(head.group_count);
    int rc = -PLX_EFORMAT;
    if (max > 0 && max <= STORE_RPC_USAGE_MAX && job->extent.v == 0 &&
        group_count <= UINT16_MAX && groups_are_sound(job->slice, group_count))
        rc = store_count_live(job->service->options.store,
                              (const void *)slice_data(job->slice), group_count, &disks,
                              &count);
    while (rc == 0 && first < count && disks[first].disk <= le64_get(head.after))
        first++;
    if (rc == 0)
        rc = put_disks(job, disks + first, count - first, max);
    if (rc < 0) {
        job_end(job, rc, NULL, 0, NULL);
        return;
    }
    struct store_rpc_extents answer = {.count = le32_of((uint32_t)rc),
                                       .more = (uint32_t)rc < count - first};
    job_end(job, 0, &answer, sizeof answer, rc > 0 ? &job->slice : NULL);
}

/* --- the table --- */

#define OP(NUMBER, NAME, TYPE, PAYLOAD)                                                  \
    {                                                                                    \
        .number = STORE_RPC_##NUMBER, .name = "store " NAME,                             \
        .head_max = sizeof(struct TYPE), .payload_max = (PAYLOAD)                        \
    }

const struct rpc_op store_service_ops[STORE_SERVICE_OPS] = {
    OP(CREATE, "create", store_rpc_create, 0),
    OP(APPEND, "append", store_rpc_append, BUFFER_BYTES_MAX),
    OP(SYNC, "sync", store_rpc_sync, 0),
    OP(STOP, "stop", store_rpc_target, 0),
    OP(FINALIZE, "finalize", store_rpc_finalize, 0),
    OP(TRIM_HEADERS, "trim headers", store_rpc_target, 0),
    OP(WALK, "walk", store_rpc_walk, 0),
    OP(READ, "read", store_rpc_read, 0),
    OP(TRIM, "trim", store_rpc_trim, BUFFER_BYTES_MAX),
    OP(LIST, "list", store_rpc_list, 0),
    OP(USAGE, "usage", store_rpc_usage, 2 * UINT16_MAX),
};

static const struct operation OPERATIONS[STORE_SERVICE_OPS] = {
    [STORE_RPC_CREATE - STORE_RPC_CREATE] = {.on_task = serve_create},
    [STORE_RPC_APPEND - STORE_RPC_CREATE] = {.direct = serve_append},
    [STORE_RPC_SYNC - STORE_RPC_CREATE] = {.direct = serve_sync},
    [STORE_RPC_STOP - STORE_RPC_CREATE] = {.on_task = serve_stop},
    [STORE_RPC_FINALIZE - STORE_RPC_CREATE] = {.on_task = serve_finalize},
    [STORE_RPC_TRIM_HEADERS - STORE_RPC_CREATE] = {.on_task = serve_trim_headers},
    [STORE_RPC_WALK - STORE_RPC_CREATE] = {.on_task = serve_walk},
    [STORE_RPC_READ - STORE_RPC_CREATE] = {.direct = serve_read},
    [STORE_RPC_TRIM - STORE_RPC_CREATE] = {.on_task = serve_trim},
    [STORE_RPC_LIST - STORE_RPC_CREATE] = {.on_task = serve_list},
    [STORE_RPC_USAGE - STORE_RPC_CREATE] = {.on_task = serve_usage},
};

void store_service_handle(struct store_service *service, struct rpc_request *request)
{
    uint32_t which = request->op->number - STORE_RPC_CREATE;
    assert(which < STORE_SERVICE_OPS);
    int rc = check_request(service, request);
    struct job *job = rc == 0 ? job_alloc(service) : NULL;
    if (job == NULL) {
        rpc_answer(request, rc != 0 ? rc : -ENOMEM, NULL, 0, NULL, 0);
        return;
    }
    struct store_rpc_target target;
    memcpy(&target, request->head, sizeof target);
    *job = (struct job){.service = service,
                        .request = request,
                        .operation = &OPERATIONS[which],
                        .extent = {le64_get(target.extent)},
                        .slice = request->payload};
    request->payload.buffer = NULL;
    service->job_count++;
    if (job->operation->direct != NULL) {
        job->operation->direct(job);
        return;
    }
    job->task = (struct task_call){
        .main = task_main, .name = "store service", .system = true};
    task_start(service->options.loop, &job->task);
}

/* --- the whole --- */

int store_service_create(const struct store_service_options *options,
                         struct store_service **ret_service)
{
    struct store_service *service = calloc(1, sizeof *service);
    if (service == NULL)
        return -ENOMEM;
    struct store_usage usage;
    store_usage(options->store, &usage);
    service->options = *options;
    service->incarnation = usage.incarnation;
    waitlist_init(&service->idle);
    SLIST_INIT(&service->kept);
    *ret_service = service;
    return 0;
}

async void store_service_stop(struct store_service *service)
{
    service->is_closing = true;
    while (service->job_count > 0)
        waitlist_wait(&service->idle);
}

void store_service_destroy(struct store_service *service)
{
    struct job *job;
    if (service == NULL)
        return;
    assert(service->job_count == 0);
    while ((job = SLIST_FIRST(&service->kept)) != NULL) {
        SLIST_REMOVE_HEAD(&service->kept, link);
        free(job);
    }
    free(service);
}
