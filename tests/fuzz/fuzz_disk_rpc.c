/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What hosts ask of each other about disks, and answer. One host of the simulator has
 * disks in every state, and clients of its own; the other is the attacker: he asks for
 * anything and answers anything, and the cluster believes what he does to its state. An
 * input is records, each
 *
 *   byte 0   low bits: what to do; SEALED: what follows is made right first
 *   byte 1   length of what follows
 *
 * Each request is answered once, each operation of a client ends, the host closes, and
 * all is put back.
 */
#include "tests/unit/host_machine.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

enum { SEALED = 0x80, DO_MASK = 0x0f };
enum {
    DO_READ, DO_HAND_OVER, DO_PREPARE, DO_HELD, /* the attacker asks */
    DO_ANSWER, /* and says what he answers to what he is asked next */
    DO_OPERATION, DO_OPEN, DO_CLOSE, DO_STATE, DO_STEP,
};

#define CALLS_MAX   48U
#define OPS_MAX     48U
#define OPEN_MAX    8U
#define ANSWERS_MAX 8U
#define ATTACKER    2U
#define WAITS_NS    (300 * NS_PER_S) /* in all */

static const char *const names[] = {"used", "idle", "closed", "there", "taken", "gone"};
#define DISKS ARRAY_LEN(names)

struct answer {
    int code; /* 1: none */
    uint8_t head[32];
    uint32_t head_len, payload_blocks;
    bool is_sealed;
};

struct asked {
    struct rpc_call call;
    uint32_t len_bytes; /* of a read */
    bool is_used, is_over;
};

struct client_op {
    struct op op;
    struct disk *disk;
    bool is_used;
};

static struct {
    struct hosts *h;
    struct rpc *rpc;
    struct buffer_pool *pool;
    const uint8_t *bytes;
    size_t len;
    struct rpc_request *held[HELD_MAX]; /* that he does not answer */
    uint32_t held_count;
    struct answer answers[ANSWERS_MAX];
    uint32_t answer_count;
    struct asked asked[CALLS_MAX];
    struct client_op ops[OPS_MAX];
    struct disk *open[OPEN_MAX];
    uint64_t ids[DISKS], version, waited_ns;
} s;

/* --- what is read of the input --- */

static uint8_t take_byte(void)
{
    if (s.len == 0)
        return 0;
    s.len--;
    return *s.bytes++;
}

static uint32_t take_bytes(void *to, uint32_t cap, uint32_t len)
{
    uint32_t n = (uint32_t)min_u64(min_u32(len, cap), s.len);
    memset(to, 0, cap);
    memcpy(to, s.bytes, n);
    s.bytes += n;
    s.len -= n;
    return n;
}

static const struct cluster_disk *state_of(uint64_t id)
{
    return cluster_disk_by_id(cluster_state(s.h->cluster), id);
}

static uint64_t applied(void)
{
    return cluster_state_applied(cluster_state(s.h->cluster));
}

/* --- the attacker is asked --- */

static void keep(struct rpc_request *request)
{
    if (s.held_count < HELD_MAX)
        s.held[s.held_count++] = request;
    else
        rpc_answer(request, -PLX_ELIMIT, NULL, 0, NULL, 0);
}

static void answer(struct rpc_request *request, const struct answer *with)
{
    struct disk_rpc_handed_over index = {.index = le64_of(applied())};
    uint32_t len = with->payload_blocks * (uint32_t)BLOCK_SIZE;
    const void *head = with->head;
    uint32_t head_len = with->head_len;
    struct slice payload = {0};
    if (with->is_sealed && request->op->number == DISK_RPC_READ &&
        request->head_len == sizeof(struct disk_rpc_read))
        len = le32_get(((const struct disk_rpc_read *)request->head)->len_bytes);
    if (with->is_sealed && request->op->number == DISK_RPC_HAND_OVER) {
        head = &index;
        head_len = sizeof index;
        len = 0;
    }
    if (len > 0)
        payload.buffer = buffer_create(s.pool, len);
    payload.len = len;
    if (payload.buffer != NULL)
        memset(payload.buffer->data, 7, len);
    rpc_answer(request, with->code, head, head_len, &payload, payload.buffer != NULL);
    buffer_put(payload.buffer);
}

static void is_asked(void *arg, struct rpc_request *request)
{
    struct answer with;
    (void)arg;
    if (s.answer_count == 0) {
        keep(request);
        return;
    }
    with = s.answers[0];
    s.answer_count--;
    memmove(s.answers, s.answers + 1, s.answer_count * sizeof s.answers[0]);
    if (with.code == 1)
        keep(request);
    else
        answer(request, &with);
}

static void is_told(void *arg, struct rpc_request *request)
{
    (void)arg;
    CHECK_EQ(request->head_len, sizeof(struct disk_rpc_prepare));
}

static const struct rpc_op asked_read = {
    DISK_RPC_READ, "disk read", false, false, DISK_RPC_HEAD_MAX, 0, is_asked};
static const struct rpc_op asked_hand_over = {
    DISK_RPC_HAND_OVER, "hand over", false, false, DISK_RPC_HEAD_MAX, 0, is_asked};
static const struct rpc_op asked_prepare = {
    DISK_RPC_PREPARE, "prepare", true, false, DISK_RPC_HEAD_MAX, 0, is_told};
static const struct rpc_op *const attacker_ops[] = {&asked_read, &asked_hand_over,
                                                    &asked_prepare, NULL};

static void next_answer(bool is_sealed, uint32_t len)
{
    static const int codes[] = {0,
                                1,
                                -PLX_ENOTHERE,
                                -EAGAIN,
                                -PLX_ELIMIT,
                                -PLX_EPRECONDITION,
                                -PLX_EBUSY,
                                -PLX_EOWNED,
                                -PLX_EEPOCH,
                                -EINVAL,
                                -EIO};
    uint8_t control[34];
    struct answer with = {.is_sealed = is_sealed};
    len = take_bytes(control, sizeof control, len);
    with.code = codes[control[0] % ARRAY_LEN(codes)];
    with.payload_blocks = control[1];
    with.head_len = len > 2 ? len - 2 : 0;
    memcpy(with.head, control + 2, sizeof with.head);
    if (s.answer_count < ANSWERS_MAX)
        s.answers[s.answer_count++] = with;
    if (s.held_count == 0 || with.code == 1)
        return;
    s.answer_count--;
    answer(s.held[0], &with);
    memmove(s.held, s.held + 1, --s.held_count * sizeof s.held[0]);
}

/* --- the attacker asks --- */

static void is_answered(struct rpc_call *call)
{
    struct asked *asked = container_of(call, struct asked, call);
    CHECK(asked->is_used && !asked->is_over);
    if (call->op == DISK_RPC_READ && call->result == 0)
        CHECK_EQ(call->payload.len, asked->len_bytes);
    else
        CHECK(call->payload.buffer == NULL);
    if (call->op == DISK_RPC_HAND_OVER && call->result == 0)
        CHECK_EQ(call->answer_len, sizeof(struct disk_rpc_handed_over));
    buffer_put(call->payload.buffer);
    asked->is_over = true;
}

/* Makes a head of 24 bytes right, but for what a request may well be wrong in. */
static void seal(unsigned what, uint8_t head[24])
{
    struct disk_rpc_read *read = (void *)head;
    struct disk_rpc_hand_over *hand_over = (void *)head;
    struct disk_rpc_held *held = (void *)head;
    if (what == DO_HELD) {
        held->index = le64_of(applied() + held->index.b[0] % 4 - 1);
        held->disk = le64_of(s.ids[held->disk.b[0] % DISKS]);
        if (held->version.b[0] < 192)
            held->version = le64_of(held->version.b[0] < 128 ? 0 : s.version);
        return;
    }
    uint64_t id = s.ids[head[0] % DISKS];
    read->disk = le64_of(id); /* the first of all */
    if (what == DO_READ) {
        read->offset_bytes = le64_of(read->offset_bytes.b[0] * (uint64_t)BLOCK_SIZE);
        if (read->len_bytes.b[1] < 192)
            read->len_bytes = le32_of((read->len_bytes.b[0] + 1U) * (uint32_t)BLOCK_SIZE);
    } else if (what == DO_HAND_OVER) {
        const struct cluster_disk *state = state_of(id);
        if (hand_over->epoch.b[0] < 192)
            hand_over->epoch = le64_of(state != NULL ? state->epoch : 0);
        hand_over->kind %= 4;
    }
}

static void ask(unsigned what, bool is_sealed, uint32_t len)
{
    static const uint16_t numbers[] = {
        [DO_READ] = DISK_RPC_READ,
        [DO_HAND_OVER] = DISK_RPC_HAND_OVER,
        [DO_PREPARE] = DISK_RPC_PREPARE,
        [DO_HELD] = DISK_RPC_HELD,
    };
    uint8_t head[24];
    struct asked *asked = NULL;
    len = take_bytes(head, sizeof head, len);
    if (is_sealed) {
        seal(what, head);
        len = what == DO_PREPARE ? 8 : sizeof head;
    }
    if (what == DO_PREPARE) {
        rpc_post(s.rpc, 1, DISK_RPC_PREPARE, head, len, NULL, 0);
        return;
    }
    for (uint32_t i = 0; i < CALLS_MAX && asked == NULL; i++)
        if (!s.asked[i].is_used || s.asked[i].is_over)
            asked = &s.asked[i];
    if (asked == NULL)
        return;
    *asked = (struct asked){
        .is_used = true,
        .len_bytes = le32_get(((const struct disk_rpc_read *)(void *)head)->len_bytes),
        .call = {.node = 1,
                 .op = numbers[what],
                 .head = head,
                 .head_len = len,
                 .timeout_ns = 100 * NS_PER_S,
                 .done = is_answered},
    };
    rpc_start(s.rpc, &asked->call);
}

/* --- clients of the host --- */

static void operation(uint32_t len)
{
    uint8_t control[5];
    struct client_op *op = NULL;
    take_bytes(control, sizeof control, len);
    struct disk *disk = s.open[control[1] % OPEN_MAX];
    for (uint32_t i = 0; i < OPS_MAX && op == NULL; i++)
        if (!s.ops[i].is_used)
            op = &s.ops[i];
    if (disk == NULL || op == NULL)
        return;
    static const enum disk_op kinds[] = {DISK_READ, DISK_WRITE, DISK_FLUSH, DISK_TRIM,
                                         DISK_ZERO};
    enum disk_op kind = kinds[control[0] % ARRAY_LEN(kinds)];
    uint64_t offset = control[2] * 4000U, bytes = (control[3] % 16 + 1) * 4000U;
    if (kind == DISK_FLUSH)
        offset = bytes = 0;
    op->is_used = true;
    op->disk = disk;
    op_init(&op->op, disk, kind, 0, offset, bytes, NULL);
    if (control[4] & 1)
        op->op.io.opened = 0; /* a former client */
    disk_submit(disk, &op->op.io);
}

/* Of a disk, or of all (NULL). */
static async void wait_for_operations(const struct disk *disk)
{
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        if (!s.ops[i].is_used || (disk != NULL && s.ops[i].disk != disk))
            continue;
        (void)op_wait(&s.ops[i].op, NULL);
        s.ops[i].is_used = false;
    }
}

static async void open_one(uint32_t len)
{
    static const enum disk_access ways[] = {DISK_READ_WRITE, DISK_INCOMING,
                                            DISK_READ_ONLY};
    uint8_t control[3];
    struct error err = {0};
    take_bytes(control, sizeof control, len);
    uint32_t at = control[2] % OPEN_MAX;
    const char *name = names[control[0] % DISKS];
    if (s.open[at] == NULL &&
        disk_open(s.h->parties[1].host, name, ways[control[1] % ARRAY_LEN(ways)],
                  &s.open[at], &err) < 0)
        CHECK(s.open[at] == NULL && err.text[0] != '\0');
}

/* A front end waits for the operations of its client. */
static async void close_one(uint32_t at)
{
    if (s.open[at] == NULL)
        return;
    wait_for_operations(s.open[at]);
    disk_close(take(s.open[at]));
}

/* --- what happens to the cluster's state --- */

static async void try_submit(const struct cluster_command *command)
{
    struct cluster_result result;
    (void)cluster_submit(s.h->cluster, command, &result);
}

static async void lease(enum cluster_op op, uint64_t id)
{
    const struct cluster_disk *state = state_of(id);
    if (state == NULL || (op == CLUSTER_LEASE_CLOSE && state->owner != ATTACKER))
        return;
    struct cluster_command command = {
        .op = op, .disk = id, .epoch = state->epoch, .node = ATTACKER};
    try_submit(&command);
}

static async void change_state(uint32_t len)
{
    uint8_t control[2];
    struct error err = {0};
    struct host *host = s.h->parties[1].host;
    take_bytes(control, sizeof control, len);
    uint32_t which = control[1] % DISKS;
    switch (control[0] % 9) {
    case 0:
        lease(CLUSTER_LEASE_TAKE, s.ids[which]);
        break;
    case 1:
        lease(CLUSTER_LEASE_CLOSE, s.ids[which]);
        break;
    case 2:
        party_flags(s.h, ATTACKER, NODE_DOWN);
        break;
    case 3:
        party_flags(s.h, ATTACKER, 0);
        break;
    case 4:
        (void)disk_remove(host, names[which],
                          control[1] & 0x80 ? DISK_REMOVE_RECURSIVE : 0, &err);
        break;
    case 5:
        (void)snapshot_create(host, names[which], "new", &err);
        break;
    case 6:
        (void)disk_resize(host, names[which], (control[1] + 1U) * (uint64_t)BLOCK_SIZE,
                          &err);
        break;
    case 7:
        (void)disk_pull(host, names[which], &err);
        break;
    default:
        (void)snapshot_rollback(host, names[which], "monday", &err);
    }
}

static async void wait_for(uint64_t unit_ns, uint32_t count)
{
    s.waited_ns += unit_ns * count;
    if (s.waited_ns < WAITS_NS)
        task_sleep_ns(unit_ns * count);
}

/* --- one input --- */

static async void act(void)
{
    unsigned what = take_byte();
    uint32_t len = take_byte() % 48U;
    uint32_t left = (uint32_t)(s.len - min_u64(s.len, len)); /* after this record */
    unsigned choice = what & DO_MASK;
    if (choice <= DO_HELD)
        ask(choice, what & SEALED, len);
    else if (choice == DO_ANSWER)
        next_answer(what & SEALED, len);
    else if (choice == DO_OPERATION)
        operation(len);
    else if (choice == DO_OPEN)
        open_one(len);
    else if (choice == DO_CLOSE)
        close_one(len % OPEN_MAX);
    else if (choice == DO_STATE)
        change_state(len);
    else
        wait_for(what & SEALED ? NS_PER_S : NS_PER_MS, len + 1);
    s.bytes += s.len - left;
    s.len = left;
}

static async void make_disks(void)
{
    struct host *host = s.h->parties[1].host;
    struct op op;
    for (uint32_t i = 0; i < DISKS; i++) {
        DO(disk_create(host, names[i], 1 * MIB, &err));
        s.ids[i] = disk_state(s.h, names[i])->id;
    }
    for (uint32_t i = 0; i < 2; i++) {
        DO(disk_open(host, names[i], DISK_READ_WRITE, &s.open[i], &err));
        op_start(&op, s.open[i], DISK_WRITE, 0, 4096, 5000, NULL);
        CHECK_EQ(op_wait(&op, NULL), 0);
    }
    disk_close(take(s.open[1]));
    DO(snapshot_create(host, "used", "monday", &err));
    CHECK_EQ(disk_find_snapshot(s.open[0], "monday", &s.version, NULL), 0);
    lease(CLUSTER_LEASE_TAKE, s.ids[3]);
    lease(CLUSTER_LEASE_TAKE, s.ids[4]);
    DO(disk_open(host, "there", DISK_INCOMING, &s.open[1], &err));
    DO(disk_remove(host, "gone", 0, &err));
}

static async void end(void)
{
    for (uint32_t i = 0; i < s.held_count; i++)
        rpc_answer(s.held[i], -ECONNRESET, NULL, 0, NULL, 0);
    s.held_count = 0;
    wait_for_operations(NULL);
    for (uint32_t i = 0; i < OPEN_MAX; i++)
        close_one(i);
    for (uint32_t i = 0; i < CALLS_MAX; i++)
        for (uint32_t tries = 0; s.asked[i].is_used && !s.asked[i].is_over; tries++) {
            CHECK(tries < 1000);
            task_sleep_ns(100 * NS_PER_MS);
        }
}

static void close_all(struct hosts *h)
{
    struct party *party = &h->parties[1];
    host_close(party->host);
    for (uint32_t i = 0; i < s.held_count; i++)
        rpc_answer(s.held[i], -ECONNRESET, NULL, 0, NULL, 0);
    rpc_destroy(party->rpc);
    rpc_destroy(s.rpc);
    CHECK_EQ(buffer_pool_used_bytes(party->pool), 0);
    CHECK_EQ(buffer_pool_used_bytes(s.pool), 0);
    buffer_pool_destroy(party->pool);
    buffer_pool_destroy(s.pool);
    hosts_close_parts(h);
}

static void run_body(struct body *body)
{
    struct hosts *h = container_of(body, struct hosts, body);
    s.h = h;
    hosts_open_parts(h);
    party_open(h, 1);
    s.pool = buffer_pool_create(16 * MIB);
    struct rpc_options options = {.loop = h->loop,
                                  .self = {.cluster = {{1}}, .node = ATTACKER},
                                  .buffers = s.pool,
                                  .ops = attacker_ops};
    DO(rpc_create(&options, &s.rpc, &err));
    DO(rpc_listen(s.rpc, party_address(ATTACKER), NULL, &err));
    CHECK_EQ(rpc_set_address(s.rpc, 1, party_address(1)), 0);
    make_disks();
    while (s.len >= 2)
        act();
    end();
    close_all(h);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct hosts *h = calloc(1, sizeof *h);
    CHECK(h != NULL);
    memset(&s, 0, sizeof s);
    s.bytes = bytes;
    s.len = len;
    h->world = sim_world_create(1);
    snprintf(h->store_path, sizeof h->store_path, "sim/store");
    snprintf(h->kv_path, sizeof h->kv_path, "sim/kv");
    h->body = (struct body){.run = run_body, .world = h->world};
    h->body.call = (struct task_call){.main = body_main, .name = "fuzz", .system = true};
    h->loop = h->body.loop = sim_process_create(h->world);
    if (getenv("TEST_LOG") != NULL)
        log_set_fd(loop_log(h->loop), 2);
    task_start(h->loop, &h->body.call);
    CHECK(sim_world_run_until(h->world, &h->body.is_over, BODY_LIMIT_NS));
    sim_process_end(h->loop, SIM_KILL);
    sim_world_destroy(h->world);
    free(h);
    return 0;
}
