/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents are written, end, die; nodes die, come back with an older state, are declared
 * down, join the group and leave it; commands have unknown outcomes; and all the time
 * recovery makes whole what is not. At every moment a whole node has all that is live;
 * in the end all have that, and nothing else.
 *
 *     test_recovery_random [FIRST_SEED [COUNT]]
 */
#include <sys/wait.h>

#include "tests/unit/recovery_machine.h"

#define SEEDS        30U
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
        if (in_group(id) && is_up(id) && any(8) > 0)
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
    if (node->is_up)
        return;
    /* Something is wrong with one of its copies; whoever is whole would miss it. */
    if (in_group(id) && !is_whole(id) && is_down(id) && c->extent_count > 0 &&
        any(2) == 0) {
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
        if (is_up(id) == is_down(id) && any(2) == 0)
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
    if (leaves && group->member_count <= 2)
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
        if (!x->has_left) {
            finalize_some(x);
            CHECK(has_ended(x));
            commit_length(x, x->length, true);
        }
    }
}

static void one_seed(uint64_t seed)
{
    trim_count = 0;
    is_calm = false;
    static const uint64_t limits[] = {0, 200 * KIB, MIB, 0, 4 * MIB};
    cluster_make(seed, 4, 3);
    c->options.limit_bytes_s = limits[seed % ARRAY_LEN(limits)];
    for (uint64_t id = 1; id <= c->node_count; id++)
        recovery_set_limit(c->nodes[id].recovery, c->options.limit_bytes_s);
    c->unknown_percent = any(3) * 10;
    c->no_leader_percent = any(3) * 10;
    sim_world_faults(c->world)->net_reset_ppm = any(3) * 500;
    for (uint32_t i = 0; i < STEPS; i++) {
        do_something();
        world_runs(400);
        check_whole_now();
    }
    calm_down();
    for (uint32_t i = 0; trim_count > 0; i++) {
        CHECK(i < 100);
        trims_go_on();
        run_for(100 * NS_PER_MS);
    }
    end_extents();
    wait_whole(600 * NS_PER_S);
    check_whole_now();
    for (uint64_t id = 1; id <= c->node_count; id++)
        node_apply_to(&c->nodes[id], c->command_count);
    run_for(2 * RECOVERY_SETTLE_MS * NS_PER_MS);
    compare_all();
    for (uint64_t id = 1; id <= c->node_count; id++)
        node_kill(id, SIM_KILL);
}

static void seeds_in_child(uint64_t first, uint64_t count)
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for (uint64_t seed = first; seed < first + count; seed++) {
            if (getenv("VERBOSE") != NULL)
                fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
            one_seed(seed);
        }
        _exit(0);
    }
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    if (status != 0)
        fprintf(stderr, "seeds from %llu on\n", (unsigned long long)first);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv)
{
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 0) : seeds_of(SEEDS);
    if (argc == 2) {
        one_seed(first);
        return 0;
    }
    for (uint64_t seed = first; seed < first + count; seed += SEEDS_FORKED)
        seeds_in_child(seed, min_u64(SEEDS_FORKED, first + count - seed));
    return 0;
}
