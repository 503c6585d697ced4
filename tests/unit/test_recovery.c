/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What recovery decides, as a table; and stories of nodes that lack something. Random
 * work is in test_recovery_random.c.
 */
#include "tests/unit/recovery_machine.h"

/* --- decisions --- */

#define A COPY_RPC_ABSENT
#define O COPY_RPC_OPEN
#define S COPY_RPC_STOPPED
#define F COPY_RPC_FINAL

enum listed { NEW, OPEN, LISTED, LEFT, GONE }; /* LISTED: with length 10 */

struct row {
    enum listed listed;
    enum copy_rpc_state source;
    uint32_t source_length;
    enum copy_rpc_state local;
    uint32_t local_length;
    enum recovery_action action;
    uint32_t length;
};

static const struct row rows[] = {
    /* Newer than what is known, or still written: hands off. */
    {NEW, F, 10, A, 0, RECOVERY_NOTHING, 0},
    {NEW, A, 0, F, 10, RECOVERY_NOTHING, 0},
    {NEW, A, 0, O, 10, RECOVERY_NOTHING, 0},
    {OPEN, A, 0, O, 10, RECOVERY_NOTHING, 0},
    {OPEN, O, 10, A, 0, RECOVERY_NOTHING, 0},
    {OPEN, F, 10, S, 4, RECOVERY_NOTHING, 0},
    /* A final copy is there. */
    {LEFT, F, 10, A, 0, RECOVERY_COPY, 0},
    {LISTED, F, 10, A, 0, RECOVERY_COPY, 0},
    {LISTED, F, 9, A, 0, RECOVERY_CONFLICT, 0},
    {LEFT, F, 10, S, 0, RECOVERY_COPY, 0},
    {LEFT, F, 10, S, 9, RECOVERY_COPY, 0},
    {LEFT, F, 10, O, 9, RECOVERY_COPY, 0},
    {LEFT, F, 10, S, 10, RECOVERY_FINALIZE, 10},
    {LEFT, F, 10, S, 14, RECOVERY_FINALIZE, 10},
    {LEFT, F, 10, O, 14, RECOVERY_FINALIZE, 10},
    {LEFT, F, 10, F, 10, RECOVERY_NOTHING, 0},
    {LEFT, F, 10, F, 11, RECOVERY_CONFLICT, 0},
    /* It is not final there yet. */
    {LISTED, S, 12, A, 0, RECOVERY_FINALIZE_THERE, 10},
    {LISTED, O, 10, S, 12, RECOVERY_FINALIZE_THERE, 10},
    {LISTED, S, 9, A, 0, RECOVERY_WAIT, 0},
    {LISTED, S, 12, F, 10, RECOVERY_NOTHING, 0},
    {LEFT, S, 12, A, 0, RECOVERY_WAIT, 0},
    {LEFT, S, 0, A, 0, RECOVERY_NOTHING, 0},
    {LEFT, S, 12, F, 10, RECOVERY_NOTHING, 0},
    /* It is not there. */
    {LEFT, A, 0, A, 0, RECOVERY_NOTHING, 0},
    {LEFT, A, 0, F, 10, RECOVERY_ASK_DROP, 0},
    {LEFT, A, 0, S, 3, RECOVERY_ASK_DROP, 0},
    {LISTED, A, 0, F, 10, RECOVERY_NOTHING, 0},
    {LISTED, A, 0, S, 12, RECOVERY_FINALIZE, 10},
    {LISTED, A, 0, S, 9, RECOVERY_NOTHING, 0},
    /* Its disk is gone. */
    {GONE, F, 10, A, 0, RECOVERY_NOTHING, 0},
    {GONE, F, 10, F, 10, RECOVERY_DROP, 0},
    {GONE, A, 0, O, 10, RECOVERY_DROP, 0},
};

static struct copy_extent copy_in(enum copy_rpc_state state, uint32_t length)
{
    struct copy_extent copy = {.state = state, .length = length};
    if (state != A) {
        copy.disk = 3;
        copy.nonce = 5;
    }
    if (state == F) {
        copy.live = 2;
        copy.live_crc = 77;
    }
    return copy;
}

static struct recovery_facts facts_in(const struct row *row)
{
    return (struct recovery_facts){
        .is_opened = row->listed != NEW,
        .is_listed = row->listed == OPEN || row->listed == LISTED,
        .has_length = row->listed == LISTED,
        .length = row->listed == LISTED ? 10 : 0,
        .has_disk = row->listed != GONE,
        .source = copy_in(row->source, row->source_length),
        .local = copy_in(row->local, row->local_length),
    };
}

static void decisions(void)
{
    for (uint32_t i = 0; i < ARRAY_LEN(rows); i++) {
        const struct row *row = &rows[i];
        struct recovery_facts facts = facts_in(row);
        uint32_t length = 0;
        enum recovery_action action = recovery_decide(&facts, &length);
        if (action != row->action || length != row->length) {
            fprintf(stderr, "row %u: %d %u\n", i, action, length);
            exit(1);
        }
        /* Other bytes behind the same name: nothing is touched. */
        facts.local.nonce++;
        bool is_other = facts.source.state == F && facts.local.length > 0;
        action = recovery_decide(&facts, &length);
        if (is_other && row->listed != NEW && row->listed != OPEN && row->listed != GONE)
            CHECK_EQ(action, RECOVERY_CONFLICT);
    }
    /* It may be nowhere else. */
    struct recovery_facts facts = facts_in(&(struct row){LEFT, A, 0, F, 10, 0, 0});
    uint32_t length;
    facts.is_unsure = true;
    CHECK_EQ(recovery_decide(&facts, &length), RECOVERY_NOTHING);
    facts.local = copy_in(S, 0);
    CHECK_EQ(recovery_decide(&facts, &length), RECOVERY_ASK_DROP);
    /* Who has as much of it as a whole one need not wait for that one to end it. */
    facts = facts_in(&(struct row){LEFT, S, 12, S, 12, 0, 0});
    CHECK_EQ(recovery_decide(&facts, &length), RECOVERY_WAIT);
    facts.is_unsure = true;
    CHECK_EQ(recovery_decide(&facts, &length), RECOVERY_NOTHING);
    facts.local.length--;
    CHECK_EQ(recovery_decide(&facts, &length), RECOVERY_WAIT);
    /* What died there, and a list that ended at nothing. */
    facts = facts_in(&(struct row){LEFT, F, 10, F, 10, 0, 0});
    facts.source.live_crc++;
    CHECK_EQ(recovery_decide(&facts, &length), RECOVERY_MERGE);
    facts.source.live_crc--;
    facts.local.has_headers = true;
    CHECK_EQ(recovery_decide(&facts, &length), RECOVERY_MERGE);
    facts.source.has_headers = true;
    CHECK_EQ(recovery_decide(&facts, &length), RECOVERY_NOTHING);
    facts.local.has_headers = false;
    CHECK_EQ(recovery_decide(&facts, &length), RECOVERY_NOTHING);
    facts = facts_in(&(struct row){LISTED, A, 0, S, 4, 0, 0});
    facts.length = 0;
    CHECK_EQ(recovery_decide(&facts, &length), RECOVERY_DROP);
}

/* --- stories --- */

static void trim_on(const struct model_copy *x, const uint32_t *blocks, uint32_t count,
                    uint8_t nodes)
{
    struct op op = {.kind = OP_TRIM, .source = x->source, .count = count};
    memcpy(op.blocks, blocks, count * sizeof *blocks);
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (nodes >> id & 1)
            CHECK_EQ(op_run(op, id), 0);
}

static void trim(struct model_copy *x, uint8_t nodes, uint32_t every)
{
    uint32_t blocks[64], count = 0;
    for (uint32_t b = 1; b < x->length && count < ARRAY_LEN(blocks); b += every)
        if (!source_is_header(x->source, b)) {
            bitmap_set(x->dead, b);
            blocks[count++] = b;
        }
    trim_on(x, blocks, count, nodes);
}

static void trim_headers(struct model_copy *x, uint8_t nodes)
{
    x->headers_dead = true;
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (nodes >> id & 1)
            CHECK_EQ(
                op_run((struct op){.kind = OP_TRIM_HEADERS, .source = x->source}, id), 0);
}

/* One that was away gets what it missed, and forgets what died. */
static void away(void)
{
    cluster_make(1, 3, 3);
    struct model_copy *known = write_extent(ALL3, 300);
    struct model_copy *dies = write_extent(ALL3, 40);
    trim_headers(known, ALL3);
    trim_headers(dies, ALL3);
    go_down(3);
    CHECK(!is_whole(3));
    struct model_copy *missed = write_extent(0x06, 500);
    trim_headers(missed, 0x06);
    struct model_copy *listed = open_extent(0x06, 60);
    for (uint64_t id = 1; id <= 2; id++)
        CHECK_EQ(
            op_run((struct op){.kind = OP_WRITE, .source = listed->source, .length = 60},
                   id),
            0);
    trim(known, 0x06, 3);
    trim(missed, 0x06, 4);
    trim(dies, 0x06, 1);
    CHECK_EQ(count_live(dies), 0);
    come_back(3);
    run_for(20 * NS_PER_S);
    /* An extent that is written without it: not whole yet. */
    CHECK(!is_whole(3));
    struct recovery_status status;
    recovery_status(c->nodes[3].recovery, &status);
    CHECK(status.groups == 1 && status.waiting == 1 && status.extents_done == 1);
    CHECK(strstr(status.what, "without this node") != NULL);
    /* It has its length; on node 2 nobody has said so. */
    uint32_t length = boundary_at_most(listed->source, 50);
    commit_length(listed, length, false);
    CHECK(finalize_on(listed, 1));
    wait_whole(20 * NS_PER_S);
    recovery_status(c->nodes[3].recovery, &status);
    CHECK_EQ(status.extents_done, 2);
    commit_length(listed, length, true);
    run_for(62 * NS_PER_S); /* whoever was not told looks once a minute */
    check_whole_now();
    recovery_status(c->nodes[3].recovery, &status);
    CHECK(status.groups == 0 && status.bytes_left == 0 && status.what[0] == '\0');
    compare_all();
    end_all();
}

/* What it heard of the dead is durable before it says that it is whole. */
static void cut_off(void)
{
    for (uint64_t seed = 1; seed <= seeds_of(8); seed++) {
        cluster_make(seed, 3, 3);
        struct model_copy *x = write_extent(ALL3, 60);
        trim_headers(x, ALL3);
        go_down(3);
        trim(x, 0x06, 2);
        come_back(3);
        while (!is_whole(3)) {
            node_apply_to(&c->nodes[3], c->command_count);
            CHECK(sim_world_step(c->world));
        }
        node_kill(3, SIM_POWER_CUT);
        node_start(3);
        node_wait(3);
        compare_all();
        end_all();
    }
}

/* A new member, and one that leaves. */
static void moved(void)
{
    cluster_make(2, 4, 3);
    for (uint32_t i = 0; i < 6; i++) {
        struct model_copy *x = write_extent(ALL3, 100 + i * 50);
        if (i % 2 == 0)
            trim_headers(x, ALL3);
        trim(x, ALL3, 2 + i);
    }
    uint64_t more[] = {1, 2, 3, 4}, fewer[] = {2, 3, 4};
    CHECK(group_set(more, 4));
    CHECK(!group_set(fewer, 3)); /* it is not whole yet */
    wait_whole(60 * NS_PER_S);
    compare_all();
    /* One that is still listed stays where its disk's next owner looks for it. */
    struct model_copy *listed = open_extent(0x1e, 20);
    for (uint64_t id = 1; id <= 4; id++)
        write_on(listed, id);
    commit_length(listed, 20, false);
    for (uint64_t id = 1; id <= 4; id++)
        CHECK(finalize_on(listed, id));
    CHECK(group_set(fewer, 3));
    for (uint64_t id = 1; id <= 4; id++)
        node_apply_to(&c->nodes[id], c->command_count);
    run_for(10 * NS_PER_S);
    struct store_usage usage;
    store_usage(c->nodes[1].store, &usage);
    CHECK_EQ(usage.extent_count, 1);
    commit_length(listed, 20, true);
    for (uint64_t id = 1; id <= 4; id++)
        node_apply_to(&c->nodes[id], c->command_count);
    run_for(10 * NS_PER_S);
    compare_all(); /* node 1 has nothing any more */
    /* A state of before it came says that node 4 is no member. Nothing follows from it.
     */
    node_kill(4, SIM_KILL);
    cluster_state_destroy(c->nodes[4].state);
    c->nodes[4].state = cluster_state_create();
    node_apply_to(&c->nodes[4], 8);
    CHECK(!recovery_may_serve(c->nodes[4].state, 4, GROUP));
    node_start(4);
    node_wait(4);
    run_for(10 * NS_PER_S);
    compare_all();
    end_all();
}

/* Its group got another member in its place, and was whole; then it is chosen again. */
static void chosen_again(void)
{
    uint64_t without[] = {1, 2, 4}, again[] = {1, 2, 3, 4};
    cluster_make(1, 4, 3);
    struct model_copy *known = write_extent(ALL3, 300), *dies = write_extent(ALL3, 40);
    trim_headers(known, ALL3);
    trim_headers(dies, ALL3);
    go_down(3);
    CHECK(group_set(without, 3));
    wait_whole(60 * NS_PER_S);
    CHECK(is_whole(4));
    trim(known, 0x16, 3);
    trim(dies, 0x16, 1);
    CHECK_EQ(count_live(dies), 0);
    write_extent(0x16, 200);
    CHECK(group_set(again, 4));
    CHECK(!is_whole(3));
    come_back(3); /* with what it had then */
    wait_whole(60 * NS_PER_S);
    compare_all();
    end_all();
}

/* Members go one after the other, and others take their places, while nobody has the disk
 * in hand whose extents they are. One has no length: it is nowhere else until it does. */
static void one_by_one(void)
{
    cluster_make(1, 6, 3);
    struct model_copy *x = write_extent(ALL3, 300);
    struct model_copy *open = open_extent(ALL3, 60);
    trim(x, ALL3, 3);
    for (uint64_t id = 1; id <= 3; id++)
        write_on(open, id);
    for (uint64_t gone = 1; gone <= 3; gone++) {
        uint64_t with[] = {gone, gone + 1, gone + 2, gone + 3};
        CHECK(group_set(with, 4));
        CHECK(!group_set(with + 1, 3));
        if (gone == 1) {
            run_for(60 * NS_PER_S);
            CHECK(!is_whole(4));
            CHECK(!group_set(with + 1, 3));
            commit_length(open, 60, false);
            for (uint64_t id = 1; id <= 3; id++)
                CHECK(finalize_on(open, id));
        }
        wait_whole(60 * NS_PER_S);
        CHECK(group_set(with + 1, 3));
        if (gone == 1)
            commit_length(open, 60, true);
        apply_everywhere();
        run_for(10 * NS_PER_S);
    }
    compare_all(); /* those that have left have nothing any more */
    end_all();
}

/* --- rot --- */

static void rot(uint64_t node, const struct model_copy *x, uint32_t block)
{
    uint64_t at = 0;
    uint8_t byte;
    struct extent *e = extent_find(&c->nodes[node].store->extents, x->source->address);
    CHECK(e != NULL && extent_place(e, block, 1, &at) == 1);
    const char *path = node_path(&c->nodes[node], "store");
    CHECK_EQ(sim_file_peek(c->world, path, at + 99, &byte, 1), 0);
    byte ^= 8;
    CHECK_EQ(sim_file_poke(c->world, path, at + 99, &byte, 1), 0);
}

struct mending {
    struct task_call task;
    struct store *store;
    struct address address;
    const void *bytes;
    bool is_done;
    int rc;
};

static void mending_main(struct task_call *call)
{
    struct mending *mending = container_of(call, struct mending, task);
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    memcpy(bytes, mending->bytes, BLOCK_SIZE);
    mending->rc = store_mend_block(mending->store, mending->address, bytes,
                                   crc32c(bytes, BLOCK_SIZE));
    free(bytes);
    mending->is_done = true;
}

/* Whoever reads writes what is bad again; here it is the test. */
static void mend(uint64_t node, const struct model_copy *x, uint32_t block)
{
    struct mending mending = {.task = {.main = mending_main, .name = "mend"},
                              .store = c->nodes[node].store,
                              .address = address_plus(x->source->address, block),
                              .bytes = source_block(x->source, block)};
    task_start(c->nodes[node].loop, &mending.task);
    CHECK(sim_world_run_until(c->world, &mending.is_done, BODY_LIMIT_NS));
    CHECK_EQ(mending.rc, 0);
}

/* Rot at one member is no rot in the copy; rot everywhere costs one block. */
static void rotten(bool has_headers)
{
    cluster_make(3, 4, 3);
    struct model_copy *x = write_extent(ALL3, 400);
    if (!has_headers)
        trim_headers(x, ALL3);
    uint32_t one = 30, other = 200, all = 350, head = 250;
    while (source_is_header(x->source, one))
        one++;
    while (source_is_header(x->source, other))
        other++;
    while (source_is_header(x->source, all))
        all++;
    while (!source_is_header(x->source, head))
        head--;
    rot(1, x, one);
    rot(2, x, one);
    rot(3, x, other);
    for (uint64_t id = 1; id <= 3; id++)
        rot(id, x, all);
    if (has_headers)
        rot(2, x, head);
    uint64_t more[] = {1, 2, 3, 4};
    CHECK(group_set(more, 4));
    wait_whole(60 * NS_PER_S);
    struct recovery_status status;
    recovery_status(c->nodes[4].recovery, &status);
    CHECK_EQ(status.lost_blocks, 1);
    /* Then it lacks nothing but that one. */
    mend(1, x, one);
    mend(2, x, one);
    mend(3, x, other);
    if (has_headers)
        mend(2, x, head);
    for (uint64_t id = 1; id <= 4; id++)
        mend(id, x, all);
    compare_all();
    end_all();
}

/* --- members that fail --- */

/* The one that is copied from dies; another goes on. */
static void source_lost(void)
{
    for (uint64_t seed = 1; seed <= seeds_of(6); seed++) {
        cluster_make(seed, 4, 3);
        struct model_copy *x = write_extent(ALL3, 3000);
        trim_headers(x, ALL3);
        uint64_t more[] = {1, 2, 3, 4};
        CHECK(group_set(more, 4));
        node_apply_to(&c->nodes[4], c->command_count);
        struct metric *bytes = c->nodes[4].recovery->bytes_copied;
        while (bytes->value < MIB * (1 + seed))
            CHECK(sim_world_step(c->world));
        uint64_t source = 0;
        for (uint64_t id = 1; id <= 3; id++)
            if (c->nodes[id].served_bytes > 0)
                source = id;
        CHECK(source != 0);
        node_kill(source, SIM_KILL);
        set_down(source, true);
        wait_whole(120 * NS_PER_S);
        CHECK(bytes->value < (3000 + 300) * BLOCK_SIZE); /* it did not begin anew */
        come_back(source);
        wait_whole(60 * NS_PER_S);
        compare_all();
        end_all();
    }
}

/* The limit holds, and who asks sees how far it is. */
static void limited(void)
{
    c = NULL;
    cluster_make(5, 2, 1);
    struct model_copy *x = write_extent(0x02, 4000);
    (void)x;
    node_kill(2, SIM_KILL);
    c->options.limit_bytes_s = MIB;
    node_start(2);
    node_wait(2);
    run_for(1000 * NS_PER_S); /* does not count */
    uint64_t both[] = {1, 2};
    CHECK(group_set(both, 2));
    uint64_t begun_ns = sim_world_now_ns(c->world);
    for (uint64_t id = 1; id <= 2; id++)
        node_apply_to(&c->nodes[id], c->command_count);
    run_for(3 * NS_PER_S);
    struct recovery_status status;
    recovery_status(c->nodes[2].recovery, &status);
    CHECK(status.rate_bytes_s > MIB / 2 && status.rate_bytes_s < 2 * MIB);
    run_for(6 * NS_PER_S);
    recovery_status(c->nodes[2].recovery, &status);
    CHECK(status.groups == 1 && status.extents_left == 1);
    CHECK(status.bytes_left > 4 * MIB && status.bytes_left < 16 * MIB);
    CHECK(status.rate_bytes_s > MIB / 2 && status.rate_bytes_s < 2 * MIB);
    CHECK(status.left_s >= 4 && status.left_s < 40);
    wait_whole(60 * NS_PER_S);
    uint64_t took_ns = sim_world_now_ns(c->world) - begun_ns;
    CHECK(took_ns > 14 * NS_PER_S && took_ns < 20 * NS_PER_S);
    recovery_status(c->nodes[2].recovery, &status);
    CHECK_EQ(status.bytes_left, 0);
    compare_all();
    end_all();
}

struct filling {
    struct task_call task;
    struct node *node;
    uint32_t count;
    bool frees, is_done;
};

/* Newer than all that is known: nobody drops it. */
static struct address filler(uint32_t i)
{
    return address_of(9, 1000000 + i, 0);
}

/* Extents of nobody take the space; or give it back. */
static void filling_main(struct task_call *call)
{
    struct filling *f = container_of(call, struct filling, task);
    int rc = 0;
    for (uint32_t i = 1; f->frees && i <= f->count; i++)
        CHECK_EQ(store_delete_extent(f->node->store, filler(i)), 0);
    while (!f->frees && rc == 0) {
        rc = store_create_extent(f->node->store, filler(f->count + 1), 1, 1, 1, 32,
                                 false);
        f->count += rc == 0;
    }
    CHECK(f->frees || rc == -PLX_EFULL);
    f->is_done = true;
}

static void filling_run(struct filling *f)
{
    f->task = (struct task_call){.main = filling_main, .name = "filling"};
    f->is_done = false;
    task_start(f->node->loop, &f->task);
    CHECK(sim_world_run_until(c->world, &f->is_done, BODY_LIMIT_NS));
}

/* No space: it says so, waits, and goes on when there is some. */
static void full(void)
{
    cluster_make(6, 2, 1);
    write_extent(0x02, 3000);
    struct filling f = {.node = &c->nodes[2]};
    filling_run(&f);
    uint64_t both[] = {1, 2};
    CHECK(group_set(both, 2));
    for (uint64_t id = 1; id <= 2; id++)
        node_apply_to(&c->nodes[id], c->command_count);
    run_for(10 * NS_PER_S);
    struct recovery_status status;
    recovery_status(c->nodes[2].recovery, &status);
    CHECK(!is_whole(2) && strstr(status.what, "no space") != NULL);
    CHECK(status.bytes_left == 3000 * BLOCK_SIZE);
    f.frees = true;
    filling_run(&f);
    wait_whole(20 * NS_PER_S);
    compare_all();
    end_all();
}

/* Stopped in the middle, nothing is left of it but what is whole. */
struct stopping {
    struct task_call task;
    struct node *node;
    bool is_done;
};

static void stopping_main(struct task_call *call)
{
    struct stopping *s = container_of(call, struct stopping, task);
    struct node *node = s->node;
    recovery_stop(node->recovery);
    recovery_destroy(take(node->recovery));
    copy_service_stop(node->copies);
    store_service_stop(node->service);
    rpc_destroy(take(node->rpc));
    copy_service_destroy(node->copies);
    store_service_destroy(node->service);
    CHECK(SLIST_EMPTY(&node->store->installs));
    store_close(take(node->store));
    kv_close(node->kv);
    CHECK_EQ(buffer_pool_used_bytes(node->pool), 0);
    buffer_pool_destroy(node->pool);
    s->is_done = true;
}

static void stopped(void)
{
    for (uint64_t seed = 1; seed <= seeds_of(10); seed++) {
        cluster_make(seed, 3, 2);
        for (uint32_t i = 0; i < 3; i++)
            write_extent(0x06, 700);
        uint64_t more[] = {1, 2, 3};
        CHECK(group_set(more, 3));
        node_apply_to(&c->nodes[3], c->command_count);
        for (uint32_t i = any(3000); i > 0 && !is_whole(3); i--)
            sim_world_step(c->world);
        for (uint64_t id = 3; id >= 1; id--) {
            struct stopping s = {.node = &c->nodes[id],
                                 .task = {.main = stopping_main, .name = "stopping"}};
            s.node->is_booted = false;
            task_start(s.node->loop, &s.task);
            CHECK(sim_world_run_until(c->world, &s.is_done, BODY_LIMIT_NS));
            sim_process_end(s.node->loop, SIM_KILL);
            s.node->is_up = false;
        }
        for (uint64_t id = 1; id <= 3; id++) {
            node_start(id);
            node_wait(id);
        }
        wait_whole(60 * NS_PER_S);
        compare_all();
        end_all();
    }
}

/* --- what is young --- */

/* An extent is on the node that recovers before it is anywhere else. */
static void young(void)
{
    cluster_make(7, 3, 3);
    go_down(3);
    struct model_copy *older = open_extent(0x06, 20); /* keeps node 3 from being whole */
    write_on(older, 1);
    write_on(older, 2);
    come_back(3);
    node_apply_to(&c->nodes[3], c->command_count);
    struct model_copy *x = open_extent(ALL3, 50);
    write_on(x, 3);
    for (uint32_t i = 0; i < 200; i++) {
        struct extent_info info;
        run_for(50 * NS_PER_MS);
        CHECK_EQ(store_extent_info(c->nodes[3].store, x->source->address, &info), 0);
    }
    CHECK(!is_whole(3));
    write_on(x, 1);
    write_on(x, 2);
    commit_length(older, 20, false);
    commit_length(x, 50, false);
    for (uint64_t id = 1; id <= 3; id++)
        CHECK((id == 3 || finalize_on(older, id)) && finalize_on(x, id));
    wait_whole(20 * NS_PER_S);
    commit_length(older, 20, true);
    commit_length(x, 50, true);
    check_whole_now();
    compare_all();
    end_all();
}

/* Answers are on their way for long from now on. */
static void slow_net(bool is_slow)
{
    struct sim_faults *faults = sim_world_faults(c->world);
    faults->net_latency_min_ns = is_slow ? 400 * NS_PER_MS : 50 * NS_PER_US;
    faults->net_latency_max_ns = is_slow ? 401 * NS_PER_MS : 200 * NS_PER_US;
}

/* Node 3 has asked all others what they have, and has not heard it of the last. */
static void until_asked(void)
{
    uint32_t asked = c->nodes[2].asked;
    while (c->nodes[2].asked == asked) {
        node_apply_to(&c->nodes[3], c->command_count);
        CHECK(sim_world_step(c->world));
    }
}

/* Meanwhile an extent is written without it, from beginning to end. */
static void marked_again(void)
{
    cluster_make(8, 3, 3);
    write_extent(ALL3, 30);
    go_down(3);
    come_back(3);
    slow_net(true);
    until_asked();
    write_extent(0x06, 20);
    node_apply_to(&c->nodes[3], c->command_count);
    for (uint32_t i = 0; i < 50; i++) {
        run_for(50 * NS_PER_MS);
        check_whole_now();
    }
    slow_net(false);
    wait_whole(60 * NS_PER_S);
    compare_all();
    end_all();
}

/* Meanwhile one that it has, and the others had not, comes to them, ends, and leaves the
 * list. */
static void came_late(void)
{
    cluster_make(9, 3, 3);
    go_down(3);
    come_back(3);
    node_apply_to(&c->nodes[3], c->command_count);
    struct model_copy *x = open_extent(ALL3, 50);
    write_on(x, 3);
    slow_net(true);
    until_asked();
    write_on(x, 1);
    write_on(x, 2);
    commit_length(x, 50, false);
    for (uint64_t id = 1; id <= 3; id++)
        CHECK(finalize_on(x, id));
    commit_length(x, 50, true);
    node_apply_to(&c->nodes[3], c->command_count);
    for (uint32_t i = 0; i < 50; i++) {
        struct extent_info info;
        run_for(50 * NS_PER_MS);
        CHECK_EQ(store_extent_info(c->nodes[3].store, x->source->address, &info), 0);
    }
    slow_net(false);
    wait_whole(60 * NS_PER_S);
    compare_all();
    end_all();
}

/* An extent ended, and left the list, while a node of its write set was not counted; it
 * became whole by a sweep that had seen the extent open. */
static void ended_unheard(void)
{
    cluster_make(10, 4, 3);
    struct model_copy *x = open_extent(ALL3, 50);
    for (uint64_t id = 1; id <= 3; id++)
        write_on(x, id);
    commit_length(x, boundary_at_most(x->source, 40), false);
    CHECK(finalize_on(x, 1) && finalize_on(x, 2));
    commit_length(x, x->length, true);
    trim_on(x, &(uint32_t){source_is_header(x->source, 1) ? 2 : 1}, 1, 0x06);
    bitmap_set(x->dead, source_is_header(x->source, 1) ? 2 : 1);
    apply_everywhere();
    CHECK(is_whole(3));
    run_for(150 * NS_PER_S);
    check_whole_now();
    /* Another one can become whole from it. */
    uint64_t more[] = {1, 2, 3, 4};
    CHECK(group_set(more, 4));
    wait_whole(60 * NS_PER_S);
    compare_all();
    end_all();
}

/* A copy rotted while it was written, and a restart stopped it there; its node was not
 * away for long enough to be marked. */
static void ended_short(void)
{
    cluster_make(12, 3, 3);
    struct model_copy *x = open_extent(ALL3, 60);
    uint32_t shorter = boundary_at_most(x->source, 30);
    for (uint64_t id = 1; id <= 3; id++)
        CHECK_EQ(op_run((struct op){.kind = OP_WRITE,
                                    .source = x->source,
                                    .length = id == 3 ? shorter : 60},
                        id),
                 0);
    commit_length(x, boundary_at_most(x->source, 50), false);
    CHECK(shorter < x->length);
    CHECK(finalize_on(x, 1) && finalize_on(x, 2) && !finalize_on(x, 3));
    apply_everywhere();
    CHECK(is_whole(3));
    run_for(150 * NS_PER_S);
    CHECK(finalize_on(x, 3));
    commit_length(x, x->length, true);
    check_whole_now();
    compare_all();
    end_all();
}

/* The same, and there is nothing to end: it was empty, or is dead on all that had it. */
static void ended_with_nothing(bool was_full)
{
    cluster_make(15, 3, 3);
    struct model_copy *x = open_extent(ALL3, 50);
    for (uint64_t id = 1; id <= 3; id++)
        write_on(x, id);
    commit_length(x, was_full ? boundary_at_most(x->source, 40) : 0, false);
    CHECK(finalize_on(x, 1) && finalize_on(x, 2));
    commit_length(x, x->length, true);
    if (was_full) {
        trim(x, 0x06, 1);
        trim_headers(x, 0x06);
    }
    apply_everywhere();
    CHECK(is_whole(3));
    run_for(150 * NS_PER_S);
    for (uint64_t id = 1; id <= 3; id++) {
        struct extent_info info;
        CHECK_EQ(store_extent_info(c->nodes[id].store, x->source->address, &info),
                 -PLX_EMISSING);
    }
    check_whole_now();
    compare_all();
    end_all();
}

/* Who trims passed this node over, since it did not know that it is whole again. */
static void died_unheard(void)
{
    cluster_make(13, 3, 3);
    struct model_copy *x = write_extent(ALL3, 60);
    go_down(3);
    come_back(3);
    wait_whole(60 * NS_PER_S);
    trim(x, 0x06, 3);
    run_for(150 * NS_PER_S);
    check_whole_now();
    compare_all();
    end_all();
}

int main(void)
{
    decisions();
    away();
    cut_off();
    moved();
    chosen_again();
    one_by_one();
    rotten(false);
    rotten(true);
    in_child(source_lost);
    limited();
    full();
    stopped();
    young();
    marked_again();
    came_late();
    ended_unheard();
    ended_with_nothing(false);
    ended_with_nothing(true);
    ended_short();
    died_unheard();
    return 0;
}
