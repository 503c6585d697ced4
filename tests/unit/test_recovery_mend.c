/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies with rot in them, also in what describes their blocks, become what the others
 * are. Nothing that is sound gets worse, and nobody waits for what nobody has.
 */

#include "blockstore/compact.h"
#include "tests/unit/recovery_machine.h"

#define BLOCKS 400U

static struct model_copy *x;

static struct extent *extent_of(uint64_t node)
{
    struct extent *e = extent_find(&c->nodes[node].store->extents, x->source->address);
    CHECK(e != NULL);
    return e;
}

static void flip(uint64_t node, uint64_t at)
{
    uint8_t byte;
    const char *path = node_path(&c->nodes[node], "store");
    CHECK_EQ(sim_file_peek(c->world, path, at + 99, &byte, 1), 0);
    byte ^= 8;
    CHECK_EQ(sim_file_poke(c->world, path, at + 99, &byte, 1), 0);
}

/* Also of a block that is dead. */
static void rot(uint64_t node, uint32_t block)
{
    uint64_t at = 0;
    CHECK_EQ(extent_place(extent_of(node), block, 1, &at), 1);
    flip(node, at);
}

static void rot_digest(uint64_t node)
{
    const struct extent *e = extent_of(node);
    uint64_t at = 0;
    CHECK(e->layout != NULL);
    CHECK(runs_find(&e->runs, pieces_of(e->stored) * PIECE_BLOCKS, 1, &at) > 0);
    flip(node, at);
}

/* The nth header behind the roll record, from 1 on. */
static uint32_t head(uint32_t n)
{
    uint32_t block = 0;
    while (n > 0)
        n -= source_is_header(x->source, ++block);
    return block;
}

/* The first block with data at or behind this one that is live. */
static uint32_t data(uint32_t block)
{
    while (source_is_header(x->source, block) || bitmap_get(x->dead, block))
        block++;
    return block;
}

static void trim_headers(uint8_t nodes)
{
    x->headers_dead = true;
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (nodes >> id & 1)
            CHECK_EQ(
                op_run((struct op){.kind = OP_TRIM_HEADERS, .source = x->source}, id), 0);
}

static void trim(uint8_t nodes, uint32_t every)
{
    struct op op = {.kind = OP_TRIM, .source = x->source};
    for (uint32_t b = 1; b < x->length && op.count < ARRAY_LEN(op.blocks); b += every)
        if (!source_is_header(x->source, b)) {
            bitmap_set(x->dead, b);
            op.blocks[op.count++] = b;
        }
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (nodes >> id & 1)
            CHECK_EQ(op_run(op, id), 0);
}

static void begin(uint64_t seed, uint32_t nodes, bool has_headers)
{
    cluster_make(seed, nodes, 3);
    x = write_extent(ALL3, BLOCKS);
    if (!has_headers)
        trim_headers(ALL3);
    for (uint64_t id = 1; id <= c->node_count; id++)
        node_apply_to(&c->nodes[id], c->command_count);
}

static void mend(uint64_t node)
{
    recovery_mend(c->nodes[node].recovery, x->source->address, true);
}

static uint32_t left(void)
{
    uint32_t count = 0;
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (c->nodes[id].is_booted)
            count += recovery_mends_left(c->nodes[id].recovery);
    return count;
}

static void wait_mended(void)
{
    uint64_t until_ns = sim_world_now_ns(c->world) + 100 * NS_PER_S;
    while (left() > 0) {
        CHECK(sim_world_now_ns(c->world) < until_ns);
        run_for(100 * NS_PER_MS);
    }
}

static void back_whole(uint64_t node)
{
    node_start(node);
    node_wait(node);
    set_down(node, false);
    wait_whole(60 * NS_PER_S);
}

static void down_for_all(uint64_t node)
{
    node_kill(node, SIM_POWER_CUT);
    set_down(node, true);
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (c->nodes[id].is_up)
            node_apply_to(&c->nodes[id], c->command_count);
}

static struct recovery_status status_of(uint64_t node)
{
    struct recovery_status status;
    recovery_status(c->nodes[node].recovery, &status);
    return status;
}

/* --- from sound copies --- */

/* Headers in a row, the roll record among them, and what only they tell of. */
static void headers(bool has_headers, uint32_t first)
{
    begin(1 + first, 3, has_headers);
    for (uint32_t i = first; i < first + 3; i++)
        rot(1, head(i));
    rot(1, data(head(first) + 1));
    rot(1, data(head(first + 2) + 1));
    rot(2, head(first + 5)); /* the other one has it */
    rot(3, data(BLOCKS - 20));
    mend(1);
    wait_mended();
    for (uint64_t id = 2; id <= 3; id++)
        mend(id);
    wait_mended();
    compare_all();
    end_all();
}

/* One got its copy without headers: its digest rots, then a header elsewhere. */
static void digests(void)
{
    begin(2, 4, false);
    trim(ALL3, 7);
    uint64_t more[] = {1, 2, 3, 4};
    CHECK(group_set(more, 4));
    wait_whole(60 * NS_PER_S);
    rot_digest(4);
    rot(4, data(head(3)));
    rot(1, head(2));
    rot(1, 0);
    mend(4);
    mend(1);
    wait_mended();
    CHECK(extent_of(1)->layout != NULL);
    rot_digest(1);
    mend(1);
    wait_mended();
    compare_all();
    end_all();
}

static void forget_header(uint64_t node, uint32_t block)
{
    bitmap_clear(extent_of(node)->headers, block);
    rot(node, block);
}

/* A restart found damage, and did not know some header for what it was. */
static void taken_for_data(bool dies_before)
{
    begin(3, 3, true);
    rot(1, head(2));
    forget_header(1, head(3));
    forget_header(1, head(4));
    if (dies_before)
        trim_headers(ALL3);
    CHECK_EQ(extent_of(1)->live - extent_of(2)->live, dies_before ? 2 : 0);
    mend(1);
    wait_mended();
    compare_all();
    if (!dies_before)
        trim_headers(ALL3);
    compare_all();
    end_all();
}

/* It was mended since, or copied, but is taken for data. */
static void sound_but_taken(bool dies_before)
{
    begin(3, 3, true);
    bitmap_clear(extent_of(1)->headers, head(3));
    if (dies_before)
        trim_headers(ALL3);
    mend(1);
    wait_mended();
    if (!dies_before)
        trim_headers(ALL3);
    compare_all();
    end_all();
}

/* --- copied as bad --- */

/* The one copy in reach has bad headers and a bad block. When others are, it and its copy
 * are mended, though nobody asks for it, and though the process is another by then. */
static void copied(bool has_headers, bool restarts)
{
    begin(4, 4, has_headers);
    rot(2, head(2));
    rot(2, head(3));
    rot(2, data(head(2) + 1));
    rot(2, data(200));
    down_for_all(1);
    down_for_all(3);
    uint64_t more[] = {1, 2, 3, 4};
    CHECK(group_set(more, 4));
    wait_whole(60 * NS_PER_S);
    CHECK(is_whole(4) && status_of(4).lost_blocks > 0);
    for (uint64_t id = 2; restarts && id <= 4; id += 2) {
        node_kill(id, SIM_POWER_CUT);
        node_start(id);
        node_wait(id);
        node_apply_to(&c->nodes[id], c->command_count);
    }
    run_for(60 * NS_PER_S);
    back_whole(1);
    wait_mended();
    back_whole(3);
    compare_all();
    end_all();
}

/* What one whole member does not know of its blocks another one does: so nothing that is
 * rotten there comes unseen. */
static void unknown_there(void)
{
    for (uint64_t seed = 1; seed <= seeds_of(6); seed++) {
        begin(seed, 4, false);
        uint32_t bad = data(head(2) + 1);
        rot(2, head(2));
        rot(2, bad);
        uint64_t more[] = {1, 2, 3, 4};
        CHECK(group_set(more, 4));
        wait_whole(60 * NS_PER_S);
        CHECK_EQ(status_of(4).lost_blocks, 0);
        mend(2);
        wait_mended();
        compare_all();
        end_all();
    }
}

struct mending {
    struct task_call task;
    uint32_t block;
    int rc;
};

static void mending_main(struct task_call *call)
{
    struct mending *mending = container_of(call, struct mending, task);
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    memcpy(bytes, source_block(x->source, mending->block), BLOCK_SIZE);
    mending->rc = store_mend_block(c->nodes[2].store,
                                   address_plus(x->source->address, mending->block),
                                   bytes, x->source->crcs[mending->block]);
    free(bytes);
}

static bool is_sound_on(uint64_t node, uint32_t block)
{
    static uint8_t bytes[BLOCK_SIZE];
    uint64_t at = 0;
    CHECK_EQ(extent_place(extent_of(node), block, 1, &at), 1);
    const char *path = node_path(&c->nodes[node], "store");
    CHECK_EQ(sim_file_peek(c->world, path, at, bytes, BLOCK_SIZE), 0);
    return crc32c(bytes, BLOCK_SIZE) == x->source->crcs[block];
}

/* The block is mended there while it is copied: it counts as lost only if it is. */
static void mended_there(void)
{
    static struct mending mending;
    uint32_t sound = 0, seeds = 0;
    for (uint64_t seed = 1; seed <= seeds_of(60); seed++) {
        begin(seed, 4, seed % 2 == 0);
        uint32_t bad = data(200);
        rot(2, bad);
        down_for_all(1);
        down_for_all(3);
        uint64_t more[] = {1, 2, 3, 4};
        CHECK(group_set(more, 4));
        for (uint64_t id = 2; id <= 4; id += 2) /* nothing comes back to it */
            c->nodes[id].recovery->mend_count = RECOVERY_MENDS_MAX;
        node_apply_to(&c->nodes[4], c->command_count);
        while (status_of(4).bytes_done == 0)
            CHECK(sim_world_step(c->world));
        for (uint32_t steps = any(200); steps > 0; steps--)
            CHECK(sim_world_step(c->world));
        mending = (struct mending){.task = {.main = mending_main, .name = "mend"},
                                   .block = bad};
        task_start(c->nodes[2].loop, &mending.task);
        wait_whole(60 * NS_PER_S);
        CHECK_EQ(mending.rc, 0);
        CHECK_EQ(is_sound_on(4, bad), status_of(4).lost_blocks == 0);
        sound += is_sound_on(4, bad);
        seeds++;
        for (uint64_t id = 2; id <= 4; id += 2)
            c->nodes[id].recovery->mend_count = 0;
        end_all();
    }
    CHECK(seeds < 60 || (sound > 0 && sound < seeds));
}

/* All of an extent died, but for a header that one took for data: the others have nothing
 * of it any more. That keeps nobody from being whole. */
static void left_over(void)
{
    begin(8, 4, true);
    forget_header(1, head(3));
    trim_headers(ALL3);
    struct op op = {.kind = OP_TRIM, .source = x->source};
    for (uint32_t b = 0; b < x->length; b++) {
        if (!source_is_header(x->source, b))
            op.blocks[op.count++] = b;
        for (uint64_t id = 1; id <= 3 && (op.count == ARRAY_LEN(op.blocks) ||
                                          (b == x->length - 1 && op.count > 0));
             id++)
            CHECK_EQ(op_run(op, id), 0);
        op.count = op.count == ARRAY_LEN(op.blocks) ? 0 : op.count;
    }
    CHECK_EQ(extent_of(1)->live, 1);
    for (uint64_t id = 2; id <= 3; id++)
        CHECK(extent_find(&c->nodes[id].store->extents, x->source->address) == NULL);
    uint64_t more[] = {1, 2, 3, 4};
    CHECK(group_set(more, 4));
    wait_whole(60 * NS_PER_S);
    end_all();
}

/* --- nobody has it --- */

static void rotten_everywhere(void)
{
    begin(5, 3, true);
    for (uint64_t id = 1; id <= 3; id++)
        rot(id, head(2));
    rot(1, data(200));
    for (uint64_t id = 1; id <= 3; id++)
        mend(id);
    wait_mended();
    for (uint64_t id = 1; id <= 3; id++)
        CHECK_EQ(c->nodes[id].recovery->mend_count, 1);
    uint64_t served = c->nodes[2].served_bytes;
    run_for(600 * NS_PER_S);
    CHECK_EQ(c->nodes[2].served_bytes, served); /* they do not keep each other busy */
    rot(3, head(2));                            /* it is what it was */
    for (uint64_t id = 1; id <= 3; id++)
        mend(id);
    wait_mended();
    compare_all();
    end_all();
}

/* A list full of what nobody has leaves room for what can be mended. */
static void full(void)
{
    struct mend_extent *it;
    begin(7, 3, true);
    rot(1, head(2));
    struct recovery *r = c->nodes[1].recovery;
    for (uint32_t i = 1; i <= RECOVERY_MENDS_MAX; i++)
        recovery_mend(r, address_of(GROUP, 9000 + i, 0), true);
    CHECK_EQ(r->mend_count, RECOVERY_MENDS_MAX);
    mend(1);
    TAILQ_FOREACH (it, &r->mends, link) {
        CHECK(!address_equal(it->extent, x->source->address));
        it->is_vain = true;
        it->due_ns = UINT64_MAX;
    }
    mend(1);
    CHECK_EQ(r->mend_count, RECOVERY_MENDS_MAX);
    wait_mended();
    compare_all();
    end_all();
}

/* One that is alone has nobody to ask. */
static void alone(void)
{
    cluster_make(6, 2, 1);
    x = write_extent(0x02, BLOCKS);
    node_apply_to(&c->nodes[1], c->command_count);
    rot(1, head(2));
    mend(1);
    run_for(10 * NS_PER_S);
    CHECK_EQ(c->nodes[1].recovery->mend_count, 0);
    end_all();
}

/* --- at any moment --- */

/* Killed, or without power; what is left is not worse, and is mended after that. */
static void cut_short(void)
{
    for (uint64_t seed = 1; seed <= seeds_of(12); seed++) {
        begin(seed, 3, seed % 2 == 0);
        trim(ALL3, 5);
        for (uint32_t i = 1; i < 4; i++)
            rot(1, head(1 + any(8)));
        rot(1, data(any(BLOCKS - 70)));
        mend(1);
        for (uint32_t steps = any(3000); steps > 0 && left() > 0; steps--)
            CHECK(sim_world_step(c->world));
        node_kill(1, seed % 3 == 0 ? SIM_KILL : SIM_POWER_CUT);
        node_start(1);
        node_wait(1);
        node_apply_to(&c->nodes[1], c->command_count);
        mend(1);
        wait_mended();
        compare_all();
        end_all();
    }
}

static void copied_before(void)
{
    copied(true, true);
    copied(false, true);
}

/* Processes are killed wherever they are, with what only their tasks know of. */
static void all(void)
{
    headers(true, 0);
    headers(true, 2);
    headers(false, 0);
    headers(false, 2);
    digests();
    taken_for_data(false);
    taken_for_data(true);
    sound_but_taken(false);
    sound_but_taken(true);
    copied(true, false);
    copied(false, false);
    copied_before();
    unknown_there();
    mended_there();
    left_over();
    rotten_everywhere();
    full();
    alone();
    cut_short();
}

int main(void)
{
    in_child(all);
    return 0;
}
