/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents are written, end, die; nodes die, come back with an older state, are declared
 * down, join the group and leave it; commands have unknown outcomes; and all the time
 * recovery makes whole what is not. At every moment a whole node has all that is live;
 * in the end all have that, and nothing else.
 *
 * Then the same, but once or twice the last whole member of the group is declared lost,
 * and the others are taken for whole. In the end all members have what one of them had
 * then, and recovery has nothing left to do.
 *
 *     test_recovery_random [FIRST_SEED [COUNT]]
 *     test_recovery_random loss [FIRST_SEED [COUNT]]
 */
#include <sys/wait.h>

#include "tests/unit/recovery_machine.h"

#define SEEDS        30U
#define FIRST_LOSS   31U /* 36 and 51 find what was wrong once */
#define SEEDS_LOSS   25U
#define SEEDS_FORKED 5U
#define STEPS        160U
#define TRIMS_MAX    64U

/* Blocks that somebody has to be told of. */
struct trim {
    struct model_copy *extent;
    struct op op;
};
static struct trim trims[TRIMS_MAX];
static uint32_t trim_count;
static bool is_calm; /* nobody dies any more */
static uint64_t last_whole; /* nothing is opened without it; 0: there is no such */

/* What the members had that were left when the last whole one was lost. */
static struct losses {
    uint8_t nodes;         /* those that were lost */
    uint32_t extent_count; /* older than the last loss */
    bool has_damaged;      /* an extent that is listed has no end any more */
    struct remains {
        bool is_final;
        uint32_t length; /* of the copy that is final, or the longest one */
        uint8_t live[BITMAP_BYTES];
    } at[EXTENTS_MAX];
} losses;

static bool is_up(uint64_t node)
{
    return c->nodes[node].is_up && c->nodes[node].is_booted;
}

static bool in_group(uint64_t node)
{
    return member_of(node) != NULL;
}

static bool has_bit(uint8_t bits, uint64_t node)
{
    return (bits >> node & 1) != 0;
}

static bool is_lost(uint64_t node)
{
    return has_bit(losses.nodes, node);
}

static void world_runs(uint32_t events)
{
    for (uint32_t i = any(events); i > 0; i--)
        sim_world_step(c->world);
}

/* --- extents --- */

/* Runs one op on each of these nodes at once; those that have done it. One may die on
 * the way. */
static uint8_t op_on(struct op op, uint8_t nodes, int *ret_rcs, bool may_die)
{
    struct op *ops[NODES_MAX + 1] = {NULL};
    uint32_t steps = 0,
             death = may_die && !is_calm && any(8) == 0 ? 1 + any(200) : UINT32_MAX;
    uint8_t done = 0, waiting = 0;
    for (uint64_t id = 1; id <= c->node_count; id++) {
        if (!has_bit(nodes, id) || !is_up(id))
            continue;
        ops[id] = malloc(sizeof *ops[id]);
        *ops[id] = op;
        op_start(ops[id], id);
        waiting |= (uint8_t)(1U << id);
    }
    while (waiting != 0) {
        CHECK(sim_world_step(c->world) && steps < 1000000);
        uint64_t victim = 1 + any(c->node_count);
        if (++steps == death && is_up(victim))
            node_kill(victim, any(2) == 0 ? SIM_KILL : SIM_POWER_CUT);
        for (uint64_t id = 1; id <= c->node_count; id++) {
            uint8_t bit = (uint8_t)(1U << id);
            if ((waiting & bit) == 0)
                continue;
            if (!is_up(id)) {
                waiting &= (uint8_t)~bit; /* its op is lost with it */
            } else if (ops[id]->is_done) {
                waiting &= (uint8_t)~bit;
                done |= bit;
                ret_rcs[id] = ops[id]->rc;
                free(ops[id]);
            }
        }
    }
    return done;
}

/* Members that are up, all of them or some. */
static void do_open(void)
{
    uint8_t members = 0, all_ok = 0;
    int rcs[NODES_MAX + 1] = {0};
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (in_group(id) && is_up(id) && (any(8) > 0 || id == last_whole))
            members |= (uint8_t)(1U << id);
    if (members == 0 || c->extent_count >= EXTENTS_MAX)
        return;
    struct model_copy *x = open_extent(members, 2 + any(150));
    if (x == NULL)
        return;
    /* Some have more than what counts in the end. */
    uint32_t length = any(6) == 0
                          ? 0
                          : boundary_at_most(x->source, any(x->source->length + 1));
    bool is_ok = true;
    uint32_t first = any(c->node_count);
    for (uint64_t i = 0; i < c->node_count; i++) {
        uint64_t id = 1 + (first + i) % c->node_count;
        if (!has_bit(members, id) || !is_up(id))
            continue;
        if (any(4) == 0)
            run_for(any(4000) * NS_PER_MS);
        uint32_t more = length + any(x->source->length - length + 1);
        struct op op = {.kind = OP_WRITE,
                        .source = x->source,
                        .length = boundary_at_most(x->source, more)};
        uint8_t done = op_on(op, (uint8_t)(1U << id), rcs, true);
        is_ok = is_ok && done != 0 && rcs[id] == 0;
        all_ok |= done;
    }
    x->length = is_ok && all_ok == members ? length : 0;
}

static struct model_copy *pick(bool has_length, bool has_left)
{
    struct model_copy *found = NULL;
    uint32_t seen = 0;
    for (uint32_t i = 0; i < c->extent_count; i++) {
        struct model_copy *x = &c->extents[i];
        if (x->has_length == has_length && x->has_left == has_left && any(++seen) == 0)
            found = x;
    }
    return found;
}

static void finalize_some(struct model_copy *x)
{
    int rcs[NODES_MAX + 1] = {0};
    struct op op = {.kind = OP_FINALIZE, .source = x->source, .length = x->length};
    uint8_t done = op_on(op, x->members & (uint8_t)~x->finalized, rcs, true);
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (has_bit(done, id) && (rcs[id] == 0 || x->length == 0))
            x->finalized |= (uint8_t)(1U << id);
}

/* Has every whole member of its write set made it final? */
static bool has_ended(const struct model_copy *x)
{
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (has_bit(x->members, id) && !has_bit(x->finalized, id) && is_whole(id))
            return false;
    return true;
}

static void do_end(void)
{
    struct model_copy *x = pick(false, false);
    if (x != NULL)
        commit_length(x, x->length, false);
}

static void do_finalize(void)
{
    struct model_copy *x = pick(true, false);
    if (x == NULL)
        return;
    finalize_some(x);
    if (has_ended(x) && any(2) == 0)
        commit_length(x, x->length, true);
}

/* --- trims --- */

/* First those that are whole, so that whoever copies from them later has it from them;
 * then the others that are not down. */
static bool trim_pass(struct trim *t, bool whole, uint8_t *asked)
{
    int rcs[NODES_MAX + 1] = {0};
    uint8_t nodes = 0;
    for (uint64_t id = 1; id <= c->node_count; id++) {
        bool is_due = whole ? is_whole(id)
                            : in_group(id) && !has_bit(*asked, id) && !is_down(id);
        nodes |= (uint8_t)(is_due << id);
    }
    *asked |= nodes;
    if (op_on(t->op, nodes, rcs, true) != nodes)
        return false;
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (rcs[id] != 0 && rcs[id] != -PLX_EMISSING &&
            (whole || rcs[id] != -PLX_EPRECONDITION))
            return false;
    return true;
}

static bool trim_send(struct trim *t)
{
    uint8_t asked = 0;
    return trim_pass(t, true, &asked) && trim_pass(t, false, &asked);
}

static void trims_go_on(void)
{
    for (uint32_t i = 0; i < trim_count;) {
        if (trim_send(&trims[i]))
            trims[i] = trims[--trim_count];
        else
            i++;
    }
}

static void do_trim(void)
{
    struct model_copy *x = pick(true, any(4) > 0);
    if (x == NULL || x->length == 0 || !has_ended(x) || trim_count == TRIMS_MAX)
        return;
    struct trim *t = &trims[trim_count];
    *t = (struct trim){.extent = x, .op = {.kind = OP_TRIM, .source = x->source}};
    if (x->has_left && !x->headers_dead && any(3) == 0) {
        x->headers_dead = true;
        t->op.kind = OP_TRIM_HEADERS;
    } else {
        uint32_t every = 1 + any(3);
        for (uint32_t b = any(x->length); b < x->length && t->op.count < 64; b += every)
            if (!source_is_header(x->source, b)) {
                bitmap_set(x->dead, b);
                t->op.blocks[t->op.count++] = b;
            }
    }
    trim_count++;
    if (any(3) > 0)
        trims_go_on();
}

/* --- nodes --- */

static void do_kill(void)
{
    uint64_t id = 1 + any(c->node_count);
    if (is_up(id))
        node_kill(id, any(2) == 0 ? SIM_KILL : SIM_POWER_CUT);
}

static void do_start(void)
{
    uint64_t id = 1 + any(c->node_count);
    struct node *node = &c->nodes[id];
    if (node->is_up || is_lost(id))
        return;
    /* Something is wrong with one of its copies; whoever is whole would miss it. */
    if (in_group(id) && !is_whole(id) && is_down(id) && c->extent_count > 0 &&
        losses.nodes == 0 && any(2) == 0) {
        struct model_copy *x = &c->extents[any(c->extent_count)];
        if (x->has_left && x->length > 0)
            node->short_copy = x->source->address;
    }
    node_start(id);
    if (any(4) > 0)
        node_wait(id);
}

/* What the leader sees. */
static void do_look(void)
{
    for (uint64_t id = 1; id <= c->node_count; id++) {
        if (!is_lost(id) && is_up(id) == is_down(id) && any(2) == 0)
            set_down(id, !is_up(id));
    }
}

static void do_members(void)
{
    const struct cluster_group *group = cluster_group_by_id(c->state, GROUP);
    uint64_t members[NODES_MAX];
    uint32_t count = 0;
    uint64_t other = 1 + any(c->node_count);
    bool leaves = in_group(other);
    if ((leaves && group->member_count <= 2) || is_lost(other))
        return;
    /* What only one of them has is with it. */
    if (leaves && losses.nodes != 0)
        return;
    for (uint32_t i = 0; i < group->member_count; i++)
        if (group->members[i].node != other)
            members[count++] = group->members[i].node;
    if (!leaves)
        members[count++] = other;
    if (count <= 4)
        (void)group_set(members, count); /* it may be refused */
}

static void do_apply(void)
{
    for (uint64_t id = 1; id <= c->node_count; id++) {
        struct node *node = &c->nodes[id];
        if (!is_up(id) || any(2) == 0)
            continue;
        uint64_t at = cluster_state_applied(node->state);
        node_apply_to(node, at + any(c->command_count - (uint32_t)at + 1));
    }
}

static void do_something(void)
{
    switch (any(24)) {
    case 0:
    case 1:
    case 2:
    case 3:
        do_open();
        break;
    case 4:
    case 5:
    case 6:
        do_end();
        break;
    case 7:
    case 8:
    case 9:
    case 10:
        do_finalize();
        break;
    case 11:
    case 12:
    case 13:
        do_trim();
        break;
    case 14:
        do_kill();
        break;
    case 15:
    case 16:
        do_start();
        break;
    case 17:
        do_look();
        break;
    case 18:
        do_members();
        break;
    case 19:
        trims_go_on();
        break;
    case 20:
        run_for(any(3000) * NS_PER_MS);
        break;
    default:
        do_apply();
    }
}

/* --- the end --- */

static void calm_down(void)
{
    is_calm = true;
    c->options.limit_bytes_s = 0;
    c->unknown_percent = c->no_leader_percent = 0;
    sim_world_faults(c->world)->net_reset_ppm = 0;
    for (uint64_t id = 1; id <= c->node_count; id++) {
        if (is_lost(id))
            continue;
        if (!c->nodes[id].is_up)
            node_start(id);
        if (!is_up(id))
            node_wait(id);
        if (is_down(id))
            set_down(id, false);
        recovery_set_limit(c->nodes[id].recovery, 0);
    }
}

static void end_extents(void)
{
    for (uint32_t i = 0; i < c->extent_count; i++) {
        struct model_copy *x = &c->extents[i];
        if (!x->has_length)
            commit_length(x, x->length, false);
        if (x->has_left)
            continue;
        finalize_some(x);
        /* A copy that is too short is filled up first. */
        for (uint32_t n = 0; losses.nodes != 0 && n < 100 && !has_ended(x); n++) {
            run_for(500 * NS_PER_MS);
            finalize_some(x);
        }
        CHECK(has_ended(x));
        commit_length(x, x->length, true);
    }
}

static void drain_trims(uint32_t tries)
{
    for (uint32_t i = 0; trim_count > 0; i++) {
        CHECK(i < tries);
        trims_go_on();
        run_for(100 * NS_PER_MS);
    }
}

static void apply_all(void)
{
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (c->nodes[id].is_up)
            node_apply_to(&c->nodes[id], c->command_count);
}

static void kill_all(void)
{
    for (uint64_t id = 1; id <= c->node_count; id++)
        if (c->nodes[id].is_up)
            node_kill(id, SIM_KILL);
}

static void begin(uint64_t seed, uint32_t nodes)
{
    trim_count = 0;
    is_calm = false;
    losses = (struct losses){0};
    cluster_make(seed, nodes, 3);
    c->unknown_percent = any(3) * 10;
    c->no_leader_percent = any(3) * 10;
    sim_world_faults(c->world)->net_reset_ppm = any(3) * 500;
}

static void go_on(uint32_t steps)
{
    for (uint32_t i = 0; i < steps; i++) {
        do_something();
        world_runs(400);
        check_whole_from(losses.extent_count);
    }
}

static void one_seed(uint64_t seed)
{
    static const uint64_t limits[] = {0, 200 * KIB, MIB, 0, 4 * MIB};
    begin(seed, 4);
    c->options.limit_bytes_s = limits[seed % ARRAY_LEN(limits)];
    for (uint64_t id = 1; id <= c->node_count; id++)
        recovery_set_limit(c->nodes[id].recovery, c->options.limit_bytes_s);
    go_on(STEPS);
    calm_down();
    drain_trims(100);
    end_extents();
    wait_whole(600 * NS_PER_S);
    check_whole_now();
    apply_all();
    run_for(2 * RECOVERY_SETTLE_MS * NS_PER_MS);
    compare_all();
    kill_all();
}

/* --- losses --- */

static void remember(uint64_t node)
{
    struct store *store = c->nodes[node].store;
    uint8_t live[BITMAP_BYTES];
    for (uint32_t i = 0; i < c->extent_count; i++) {
        struct remains *at = &losses.at[i];
        struct extent_info info;
        if (store_extent_info(store, c->extents[i].source->address, &info) != 0)
            continue;
        if (info.state == EXTENT_FINAL)
            CHECK_EQ(store_live_map(store, c->extents[i].source->address, live), 0);
        for (uint32_t j = 0; info.state == EXTENT_FINAL && j < BITMAP_BYTES; j++)
            at->live[j] |= live[j];
        CHECK(info.state != EXTENT_FINAL || !at->is_final || at->length == info.length);
        if (info.state == EXTENT_FINAL || (!at->is_final && at->length < info.length))
            at->length = info.length;
        at->is_final = at->is_final || info.state == EXTENT_FINAL;
    }
}

static void some_work(void)
{
    static void (*const works[])(void) = {do_open, do_end, do_finalize, do_finalize,
                                          do_trim};
    for (uint32_t i = any(8); i > 0; i--) {
        works[any(ARRAY_LEN(works))]();
        world_runs(300);
    }
}

/* All members are up, but for one or another that is said to be down. */
static void all_up(void)
{
    for (uint64_t id = 1; id <= c->node_count; id++) {
        if (!in_group(id))
            continue;
        if (!c->nodes[id].is_up)
            node_start(id);
        if (!is_up(id))
            node_wait(id);
        if (is_down(id) && any(2) == 0)
            set_down(id, false);
    }
}

static void fall_behind(uint64_t id)
{
    remember(id);
    node_kill(id, any(2) == 0 ? SIM_KILL : SIM_POWER_CUT);
    if (is_down(id) && is_whole(id))
        set_down(id, false);
    if (!is_down(id))
        set_down(id, true);
}

/* What nobody has any more need not be there; a length that nobody knows will be one that
 * somebody has. */
static void count_losses(void)
{
    losses.extent_count = c->extent_count;
    for (uint32_t i = 0; i < c->extent_count; i++) {
        struct model_copy *x = &c->extents[i];
        struct remains *at = &losses.at[i];
        for (uint32_t b = 0; !at->is_final && b < at->length; b++)
            bitmap_set(at->live, b);
        if (!x->has_length)
            x->length = min_u32(x->length, boundary_at_most(x->source, at->length));
        if (x->has_length && !x->has_left && at->length < x->length) {
            losses.has_damaged = true;
            x->has_left = x->is_dead = true; /* nothing is done with it any more */
        }
    }
}

/* One member after the other falls behind; the last one is lost. Not node 1, which owns
 * the disk. */
static void lose_last(void)
{
    uint64_t last = 0, first = any(c->node_count);
    is_calm = true;
    all_up();
    for (uint64_t id = 2; id <= c->node_count; id++)
        if (in_group(id) && is_whole(id) && (last == 0 || any(2) == 0))
            last = id;
    if (last == 0 || cluster_group_by_id(c->state, GROUP)->member_count < 3)
        return;
    memset(losses.at, 0, sizeof losses.at);
    last_whole = last;
    for (uint64_t i = 0; i < c->node_count; i++) {
        uint64_t id = 1 + (first + i) % c->node_count;
        if (!in_group(id) || id == last)
            continue;
        fall_behind(id);
        some_work();
    }
    last_whole = 0;
    CHECK(is_whole(last));
    node_kill(last, SIM_KILL);
    set_down(last, true);
    CHECK_EQ(COMMIT(.op = CLUSTER_NODE_GONE, .node = last, .force = true,
                    .data_loss = true),
             0);
    losses.nodes |= (uint8_t)(1U << last);
    count_losses();
}

/* Whatever of an extent was on any of them then is here, but for what died since. */
static async void look_at_old(struct store *store, uint32_t i)
{
    const struct model_copy *x = &c->extents[i];
    const struct remains *at = &losses.at[i];
    uint8_t live[BITMAP_BYTES];
    uint32_t length = min_u32(at->length, x->length), count = 0;
    struct extent_info info;
    for (uint32_t b = 0; b < length; b++)
        count += bitmap_get(at->live, b) && block_is_live(x, b);
    if (x->is_dead || count == 0)
        return;
    CHECK_EQ(store_extent_info(store, x->source->address, &info), 0);
    CHECK(info.state == EXTENT_FINAL && info.length >= length);
    CHECK_EQ(store_live_map(store, x->source->address, live), 0);
    for (uint32_t b = 0; b < length; b++)
        CHECK(!bitmap_get(at->live, b) || !block_is_live(x, b) || bitmap_get(live, b));
    compare_bytes(store, x);
}

static void look_main(struct task_call *call)
{
    struct comparison *cmp = container_of(call, struct comparison, task);
    for (uint32_t i = 0; i < losses.extent_count; i++)
        look_at_old(cmp->node->store, i);
    cmp->is_done = true;
}

static void look_at_all(void)
{
    for (uint64_t id = 1; id <= c->node_count; id++) {
        struct comparison cmp = {.node = &c->nodes[id],
                                 .task = {.main = look_main, .name = "look"}};
        struct recovery_status status;
        if (!in_group(id))
            continue;
        task_start(cmp.node->loop, &cmp.task);
        CHECK(sim_world_run_until(c->world, &cmp.is_done, BODY_LIMIT_NS));
        recovery_status(cmp.node->recovery, &status);
        CHECK(losses.has_damaged || (status.groups == 0 && status.what[0] == '\0'));
    }
}

static void one_loss(uint64_t seed)
{
    begin(seed, 5);
    for (uint32_t i = 1 + any(2); i > 0; i--) {
        go_on(any(STEPS));
        lose_last();
        is_calm = false;
    }
    go_on(any(STEPS));
    calm_down();
    apply_all();
    drain_trims(600);
    end_extents();
    wait_whole(600 * NS_PER_S);
    check_whole_from(losses.extent_count);
    apply_all();
    run_for(4 * RECOVERY_SETTLE_MS * NS_PER_MS);
    look_at_all();
    kill_all();
}

static void seeds_in_child(uint64_t first, uint64_t count, void (*run)(uint64_t seed))
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for (uint64_t seed = first; seed < first + count; seed++) {
            if (getenv("VERBOSE") != NULL)
                fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
            run(seed);
        }
        _exit(0);
    }
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    if (status != 0)
        fprintf(stderr, "seeds from %llu on\n", (unsigned long long)first);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void all_seeds(uint64_t first, uint64_t count, void (*run)(uint64_t seed))
{
    for (uint64_t seed = first; seed < first + count; seed += SEEDS_FORKED)
        seeds_in_child(seed, min_u64(SEEDS_FORKED, first + count - seed), run);
}

int main(int argc, char **argv)
{
    bool only_loss = argc > 1 && strcmp(argv[1], "loss") == 0;
    argc -= only_loss;
    argv += only_loss;
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 0) : 0;
    if (argc == 2) {
        (only_loss ? one_loss : one_seed)(first);
        return 0;
    }
    if (!only_loss)
        all_seeds(first, count != 0 ? count : seeds_of(SEEDS), one_seed);
    if (only_loss || argc == 1)
        all_seeds(argc > 1 ? first : FIRST_LOSS,
                  count != 0 ? count : seeds_of(SEEDS_LOSS), one_loss);
    return 0;
}
