/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a store says of its copies: whom it answers, what it refuses, and that pages and
 * blocks are complete, whatever happens meanwhile. Node 2 asks node 1.
 */
#include "tests/unit/recovery_machine.h"

struct asking {
    struct task_call task;
    void (*run)(struct node *node);
    bool is_done;
};

static void asking_main(struct task_call *call)
{
    struct asking *asking = container_of(call, struct asking, task);
    asking->run(&c->nodes[2]);
    asking->is_done = true;
}

static void on_node(uint64_t id, void (*run)(struct node *node))
{
    struct asking asking = {.task = {.main = asking_main, .name = "asking"}, .run = run};
    task_start(c->nodes[id].loop, &asking.task);
    CHECK(sim_world_run_until(c->world, &asking.is_done, BODY_LIMIT_NS));
}

static struct model_copy *known;

static async int ask(struct node *node, uint16_t op, const void *head, size_t len)
{
    struct rpc_call call = {.node = 1,
                            .op = op,
                            .head = head,
                            .head_len = (uint32_t)len,
                            .timeout_ns = 10 * NS_PER_S};
    struct slice payload = {0};
    struct writer w = {0};
    int rc = rpc_wait(node->rpc, &call, &w, &payload);
    writer_done(&w);
    buffer_put(payload.buffer);
    return rc;
}

static struct store_rpc_target target(void)
{
    return (struct store_rpc_target){.incarnation = c->nodes[1].incarnation,
                                     .extent = le64_of(known->source->address.v)};
}

/* --- what is refused --- */

static async void refused_inventories(struct node *node)
{
    const struct copy_rpc_inventory good = {
        .target = target(), .group = le16_of(GROUP), .max = le16_of(10)};
    struct copy_rpc_inventory bad = good;
    CHECK_EQ(ask(node, COPY_RPC_INVENTORY, &good, sizeof good), 0);
    CHECK_EQ(ask(node, COPY_RPC_INVENTORY, &good, sizeof good - 1), -PLX_EFORMAT);
    bad.group = le16_of(0);
    CHECK_EQ(ask(node, COPY_RPC_INVENTORY, &bad, sizeof bad), -PLX_EFORMAT);
    bad.group = le16_of(77);
    CHECK_EQ(ask(node, COPY_RPC_INVENTORY, &bad, sizeof bad), -PLX_EPRECONDITION);
    bad = good;
    bad.max = le16_of(0);
    CHECK_EQ(ask(node, COPY_RPC_INVENTORY, &bad, sizeof bad), -PLX_EFORMAT);
    bad.max = le16_of(COPY_RPC_PAGE_MAX + 1);
    CHECK_EQ(ask(node, COPY_RPC_INVENTORY, &bad, sizeof bad), -PLX_EFORMAT);
    bad = good;
    bad.target.extent = le64_of(known->source->address.v + 1);
    CHECK_EQ(ask(node, COPY_RPC_INVENTORY, &bad, sizeof bad), -PLX_EFORMAT);
    bad = good;
    bad.target.incarnation.b[3] ^= 1;
    CHECK_EQ(ask(node, COPY_RPC_INVENTORY, &bad, sizeof bad), -PLX_EPRECONDITION);
}

static struct copy_rpc_fetch good_fetch(void)
{
    return (struct copy_rpc_fetch){
        .target = target(),
        .nonce = le64_of(known->source->nonce),
        .length = le32_of(known->length),
        .max = le32_of(COPY_RPC_FETCH_MAX),
    };
}

static async void refused_fetches(struct node *node)
{
    const struct copy_rpc_fetch good = good_fetch();
    struct copy_rpc_fetch bad = good;
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &good, sizeof good), 0);
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &good, sizeof good - 4), -PLX_EFORMAT);
    bad.max = le32_of(0);
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &bad, sizeof bad), -PLX_EFORMAT);
    bad.max = le32_of(COPY_RPC_FETCH_MAX + 1);
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &bad, sizeof bad), -PLX_EFORMAT);
    bad = good;
    bad.from = le32_of(known->length);
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &bad, sizeof bad), -PLX_EFORMAT);
    bad = good;
    bad.length = le32_of(EXTENT_BLOCKS + 1);
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &bad, sizeof bad), -PLX_EFORMAT);
    bad.length = le32_of(known->length + 1);
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &bad, sizeof bad), -PLX_EPRECONDITION);
    bad = good;
    bad.flags = le32_of(2);
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &bad, sizeof bad), -PLX_EFORMAT);
    bad = good;
    bad.nonce = le64_of(known->source->nonce + 1);
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &bad, sizeof bad), -PLX_EPRECONDITION);
    bad = good;
    bad.target.extent = le64_of(address_of(GROUP, 9999, 0).v);
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &bad, sizeof bad), -PLX_EMISSING);
    bad.target.extent = le64_of(address_of(0, 9999, 0).v);
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &bad, sizeof bad), -PLX_EFORMAT);
    bad = good;
    bad.target.incarnation.b[0] ^= 1;
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &bad, sizeof bad), -PLX_EPRECONDITION);
}

static async void refused(struct node *node)
{
    struct store_rpc_target describe = target();
    refused_inventories(node);
    refused_fetches(node);
    CHECK_EQ(ask(node, COPY_RPC_DESCRIBE, &describe, sizeof describe), 0);
    CHECK_EQ(ask(node, COPY_RPC_DESCRIBE, &describe, 8), -PLX_EFORMAT);
    describe.extent = le64_of(address_of(77, 1, 0).v);
    CHECK_EQ(ask(node, COPY_RPC_DESCRIBE, &describe, sizeof describe),
             -PLX_EPRECONDITION);
}

/* A node that lacks something speaks for nothing; what blocks it has it gives. */
static async void not_whole(struct node *node)
{
    struct store_rpc_target describe = target();
    struct copy_rpc_inventory inventory = {
        .target = target(), .group = le16_of(GROUP), .max = le16_of(10)};
    struct copy_rpc_fetch fetch = good_fetch();
    CHECK_EQ(ask(node, COPY_RPC_DESCRIBE, &describe, sizeof describe),
             -PLX_EPRECONDITION);
    CHECK_EQ(ask(node, COPY_RPC_INVENTORY, &inventory, sizeof inventory),
             -PLX_EPRECONDITION);
    CHECK_EQ(ask(node, COPY_RPC_FETCH, &fetch, sizeof fetch), 0);
}

/* --- what is said --- */

static struct recovery_source source(void)
{
    return (struct recovery_source){.node = 1, .store = c->nodes[1].incarnation};
}

static async void fetched(struct node *node)
{
    struct recovery_source from = source();
    struct copy_description *d = calloc(1, sizeof *d);
    struct copy_blocks *blocks = calloc(1, sizeof *blocks);
    uint32_t next = 0, expected = 0, rounds = 0;
    CHECK_EQ(source_describe(node->recovery, &from, known->source->address, d), 0);
    CHECK(d->extent.state == COPY_RPC_FINAL && d->extent.length == known->length);
    CHECK_EQ(d->extent.has_headers, !known->headers_dead);
    for (uint32_t b = 0; b < known->length; b++) {
        CHECK_EQ(bitmap_get(d->live, b), block_is_live(known, b));
        if (d->extent.has_headers)
            CHECK_EQ(bitmap_get(d->headers, b), source_is_header(known->source, b));
    }
    c->nodes[1].served_bytes = 0;
    while (next < known->length) {
        struct slice payload = {0};
        uint32_t max = 1 + any(rounds < 8 ? COPY_RPC_FETCH_MAX : 40), at = 0;
        CHECK_EQ(source_fetch(node->recovery, &from, &d->extent, next, max, false, blocks,
                              &payload),
                 0);
        for (uint32_t i = 0; i < blocks->count; i++) {
            const struct copy_block *b = &blocks->at[i];
            while (expected < b->block)
                CHECK(!block_is_live(known, expected++));
            expected++;
            CHECK(block_is_live(known, b->block) && !b->is_bad && b->has_bytes);
            CHECK_EQ(b->is_header, source_is_header(known->source, b->block));
            CHECK_EQ(b->is_known, !b->is_header);
            CHECK(memcmp(slice_data(payload) + (size_t)at++ * BLOCK_SIZE,
                         source_block(known->source, b->block), BLOCK_SIZE) == 0);
        }
        buffer_put(payload.buffer);
        next = blocks->next;
        while (next < known->length && !block_is_live(known, next))
            next++; /* as recovery, which knows what is live */
        rounds++;
    }
    while (expected < known->length)
        CHECK(!block_is_live(known, expected++));
    CHECK(rounds > 1);
    /* It went from one request to the next, not from the beginning each time. */
    CHECK(c->nodes[1].served_bytes < (uint64_t)known->length * BLOCK_SIZE * 9 / 8);
    free(blocks);
    free(d);
}

/* --- pages --- */

#define MANY   900U
#define FIRST  5000U
#define SPREAD 20011U

static bool has_come[2 * MANY];

static struct address nth(uint32_t i)
{
    /* Spread, so that the table's order is none of theirs. */
    return address_of(3, FIRST + i * 7919 % SPREAD, 0);
}

struct adding {
    struct task_call task;
    bool is_done;
};

/* Extents come, and the table grows, while somebody goes through it. */
static void adding_main(struct task_call *call)
{
    struct adding *adding = container_of(call, struct adding, task);
    for (uint32_t i = MANY; i < 2 * MANY; i++) {
        uint32_t length;
        bool scanned;
        CHECK_EQ(store_stop_extent(c->nodes[2].store, nth(i), &length, &scanned), 0);
        has_come[i] = true;
    }
    adding->is_done = true;
}

static async void check_pages(struct store *store, uint32_t max)
{
    static struct address at[COPY_RPC_PAGE_MAX];
    static bool was_there[2 * MANY], is_seen[SPREAD];
    struct address from = address_of(3, 0, 0);
    bool more = true;
    memcpy(was_there, has_come, sizeof was_there);
    memset(is_seen, 0, sizeof is_seen);
    while (more) {
        uint32_t count = 0;
        CHECK_EQ(store_page_extents(store, 3, from, max, at, &count, &more), 0);
        CHECK(count <= max && (count == max || !more));
        for (uint32_t i = 0; i < count; i++) {
            CHECK(at[i].v >= from.v && address_group(at[i]) == 3);
            from.v = at[i].v + EXTENT_BLOCKS;
            is_seen[address_sequence(at[i]) - FIRST] = true;
        }
    }
    for (uint32_t j = 0; j < 2 * MANY; j++)
        CHECK(is_seen[address_sequence(nth(j)) - FIRST] || !was_there[j]);
}

static async void pages(struct node *node)
{
    struct adding adding = {.task = {.main = adding_main, .name = "adding"}};
    for (uint32_t i = 0; i < MANY; i++) {
        uint32_t length;
        bool scanned;
        CHECK_EQ(store_stop_extent(node->store, nth(i), &length, &scanned), 0);
        has_come[i] = true;
    }
    check_pages(node->store, 100);
    task_start(node->loop, &adding.task);
    while (!adding.is_done) {
        check_pages(node->store, 1 + any(1500));
        task_yield();
    }
    check_pages(node->store, 2 * MANY);
    for (uint32_t i = 0; i < 2 * MANY; i++)
        CHECK_EQ(store_delete_extent(node->store, nth(i)), 0);
}

int main(void)
{
    uint32_t dead[40];
    cluster_make(1, 2, 1);
    known = write_extent(0x02, 3000);
    on_node(2, refused);
    on_node(2, fetched);
    for (uint32_t i = 0; i < ARRAY_LEN(dead); i++) {
        dead[i] = 20 + i * 70;
        if (!source_is_header(known->source, dead[i]))
            bitmap_set(known->dead, dead[i]);
    }
    struct op op = {.kind = OP_TRIM, .source = known->source, .count = ARRAY_LEN(dead)};
    memcpy(op.blocks, dead, sizeof dead);
    CHECK_EQ(op_run(op, 1), 0);
    on_node(2, fetched);
    op.kind = OP_TRIM_HEADERS;
    CHECK_EQ(op_run(op, 1), 0);
    known->headers_dead = true;
    on_node(2, fetched);
    CHECK_EQ(COMMIT(.op = CLUSTER_GROUP_SET, .group = GROUP, .number = 1,
                    .member_count = 2, .members = {1, 2}),
             0);
    wait_whole(60 * NS_PER_S);
    set_down(1, true);
    node_apply_to(&c->nodes[1], c->command_count);
    on_node(2, not_whole);
    on_node(2, pages);
    for (uint64_t id = 1; id <= 2; id++)
        node_kill(id, SIM_KILL);
    return 0;
}
