/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/simulation/fleet.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define FOUNDING_SEED   1000U /* and the number of nodes */
#define TICK_NS         (50 * NS_PER_MS)
#define FOUND_LIMIT_NS  (300 * NS_PER_S)
#define UP_LIMIT_NS     (120 * NS_PER_S)
#define DRAIN_LIMIT_NS  (300 * NS_PER_S)
#define WHOLE_LIMIT_NS  (600 * NS_PER_S)
#define VERIFY_LIMIT_NS (600 * NS_PER_S)
#define OP_LIMIT_NS     (200 * NS_PER_S) /* of an operation, all being well */
#define POOL_COPIES     3U
#define POOL_MIN_COPIES 2U

/* --- reporting --- */

/* What of the state of a node is not as it should be. */
static void print_state(const struct place *place)
{
    const struct cluster_state *state = place_state(place);
    const struct cluster_node *node = NULL;
    const struct cluster_group *group = NULL;
    struct recovery_status recovery;
    recovery_status(membership_recovery(place->membership), &recovery);
    printf("        applied %llu; %s\n", (unsigned long long)cluster_state_applied(state),
           recovery.what);
    while ((node = cluster_node_next(state, node)) != NULL) {
        if (node->flags != 0)
            printf("        node %llu has flags %u\n", (unsigned long long)node->id,
                   node->flags);
    }
    while ((group = cluster_group_next(state, group)) != NULL) {
        if (group->member_count != POOL_COPIES)
            printf("        group %u has %u members\n", group->id, group->member_count);
        for (uint32_t i = 0; i < group->member_count; i++) {
            if (group->members[i].missing_since != 0)
                printf("        group %u: node %llu lacks something since %llu\n",
                       group->id, (unsigned long long)group->members[i].node,
                       (unsigned long long)group->members[i].missing_since);
        }
    }
}

static void print_places(const struct fleet *fleet)
{
    static const char *const states[] = {"none",     "made", "off",
                                         "starting", "up",   "closing"};
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        const struct place *place = &fleet->places[i];
        printf("    machine %u is %s%s%s\n", i, states[place->state],
               place->has_failed ? ", has failed" : "",
               place->stalled_until_ns > sim_world_now_ns(fleet->world) ? ", stands still"
                                                                        : "");
        if (place->state == PLACE_UP)
            print_state(place);
        for (uint32_t n = 0; n < FLEET_GUESTS_MAX; n++) {
            const struct guest *g = &place->guests[n];
            if (g->begun_ns != 0)
                printf("        %s of %s since %.6f s\n", g->what,
                       g->md != NULL ? g->md->name : "?", (double)g->begun_ns / 1e9);
        }
    }
}

void fleet_fail(struct fleet *fleet, const char *fmt, ...)
{
    va_list args;
    printf(
        "seed %llu, %u nodes, profile %s, at %.6f s: ", (unsigned long long)fleet->seed,
        fleet->node_count, fleet->profile != NULL ? fleet->profile->name : "none yet",
        (double)sim_world_now_ns(fleet->world) / 1e9);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    printf("\n");
    print_places(fleet);
    fflush(stdout);
    _exit(1);
}

void fleet_note(struct fleet *fleet, const char *fmt, ...)
{
    va_list args;
    if (fleet->verbosity == 0)
        return;
    printf("%10.6f ", (double)sim_world_now_ns(fleet->world) / 1e9);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
}

uint64_t fleet_between(struct fleet *fleet, uint64_t low, uint64_t high)
{
    return low + sim_world_random(fleet->world, high - low + 1);
}

void fleet_run_until(struct fleet *fleet, const bool *flag, uint64_t limit_ns,
                     const char *what)
{
    if (!sim_world_run_until(fleet->world, flag, limit_ns))
        fleet_fail(fleet, "%s does not end", what);
}

/* --- time --- */

/* A process that does nothing, so that time goes on when there is no other. */
static void clock_main(struct task_call *call)
{
    (void)call;
    for (;;)
        task_sleep_ns(TICK_NS);
}

static void clock_start(struct fleet *fleet)
{
    static struct task_call call = {.main = clock_main, .name = "clock", .system = true};
    task_start(sim_process_create(fleet->world), &call);
}

void fleet_run_for(struct fleet *fleet, uint64_t duration_ns)
{
    uint64_t until_ns = sim_world_now_ns(fleet->world) + duration_ns;
    while (sim_world_now_ns(fleet->world) < until_ns && sim_world_step(fleet->world))
        ;
}

/* Until it is so; looked at now and then. */
static void run_until_so(struct fleet *fleet, bool (*is_so)(const struct fleet *fleet),
                         uint64_t limit_ns, const char *what)
{
    uint64_t until_ns = sim_world_now_ns(fleet->world) + limit_ns;
    while (!is_so(fleet)) {
        if (sim_world_now_ns(fleet->world) > until_ns)
            fleet_fail(fleet, "%s: not within %llu s", what,
                       (unsigned long long)(limit_ns / NS_PER_S));
        faults_tick(fleet);
        fleet_run_for(fleet, TICK_NS);
    }
}

/* --- what is well --- */

static bool all_are_up(const struct fleet *fleet)
{
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        if (fleet->places[i].state != PLACE_UP && fleet->places[i].state != PLACE_NONE)
            return false;
    }
    return true;
}

static bool nodes_are_well(const struct cluster_state *state)
{
    const struct cluster_node *node = NULL;
    while ((node = cluster_node_next(state, node)) != NULL) {
        if ((node->flags & NODE_GONE) == 0 && (node->flags & (NODE_DOWN | NODE_OUT)) != 0)
            return false;
    }
    return true;
}

static bool groups_are_whole(const struct cluster_state *state)
{
    const struct cluster_group *group = NULL;
    while ((group = cluster_group_next(state, group)) != NULL) {
        if (group->member_count != POOL_COPIES)
            return false;
        for (uint32_t i = 0; i < group->member_count; i++) {
            if (group->members[i].missing_since != 0)
                return false;
        }
    }
    return cluster_group_count(state) > 0;
}

bool fleet_has_all_copies(const struct fleet *fleet)
{
    const struct cluster_state *newest = NULL;
    if (!all_are_up(fleet))
        return false;
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        if (fleet->places[i].state == PLACE_NONE)
            continue;
        const struct cluster_state *state = place_state(&fleet->places[i]);
        if (newest == NULL ||
            cluster_state_applied(state) > cluster_state_applied(newest))
            newest = state;
    }
    return nodes_are_well(newest) && groups_are_whole(newest);
}

static bool all_is_whole(const struct fleet *fleet)
{
    const struct place *first = NULL;
    if (!fleet_has_all_copies(fleet) || fleet->replacement.is_under_way)
        return false;
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        const struct place *place = &fleet->places[i];
        if (place->state == PLACE_NONE)
            continue;
        if (first == NULL)
            first = place;
        if (cluster_state_applied(place_state(place)) !=
            cluster_state_applied(place_state(first)))
            return false;
    }
    return true;
}

/* --- founding --- */

struct fleet *fleet_found(uint32_t node_count, int verbosity)
{
    struct fleet *fleet = calloc(1, sizeof *fleet);
    if (fleet == NULL)
        abort();
    fleet->node_count = node_count;
    fleet->verbosity = verbosity;
    fleet->is_draining = true; /* no guests yet */
    fleet->idle_close_ms = 200;
    fleet->checkpoint_log_bytes = 1 * MIB;
    fleet->world = sim_world_create(FOUNDING_SEED + node_count);
    clock_start(fleet);
    model_begin(&fleet->model, POOL_MIN_COPIES);
    place_init(fleet, 1);
    place_found(&fleet->places[1], POOL_COPIES, POOL_MIN_COPIES);
    place_start(&fleet->places[1]);
    run_until_so(fleet, all_are_up, FOUND_LIMIT_NS, "the first node is up");
    for (uint32_t i = 2; i <= node_count; i++) {
        place_init(fleet, i);
        place_join(&fleet->places[i], &fleet->places[1]);
        place_start(&fleet->places[i]);
    }
    run_until_so(fleet, all_are_up, FOUND_LIMIT_NS, "all nodes are up");
    run_until_so(fleet, all_is_whole, FOUND_LIMIT_NS, "the founded cluster is whole");
    return fleet;
}

uint32_t fleet_size_of(uint64_t seed)
{
    static const uint8_t sizes[] = {3, 4, 3, 5, 3, 3, 4, 3, 6, 3, 3, 5, 4, 3, 3, 9};
    return sizes[seed % ARRAY_LEN(sizes)];
}

/* --- one history --- */

static void draw(struct fleet *fleet)
{
    uint64_t seed = fleet->seed;
    fleet->guest_count = (uint32_t)fleet_between(fleet, 1, FLEET_GUESTS_MAX);
    /* Of how many operations it is follows from how often each guest comes. */
    uint64_t ops = fleet_between(fleet, 50, fleet_chance(fleet, 10) ? 2000 : 300);
    fleet->work_ns = fleet_between(fleet, 500, 12000) * NS_PER_MS;
    if (faults_are_later(seed)) /* longer, since their faults take longer */
        fleet->work_ns += 3 * NS_PER_S;
    fleet->pause_max_ns = 2 * fleet->work_ns * fleet->guest_count * fleet->node_count /
                          ops;
    fleet->checkpoint_log_bytes = fleet_between(fleet, 256, 2048) * KIB;
    fleet->idle_close_ms = (uint32_t)fleet_between(fleet, 1, 2000);
    faults_draw_profile(fleet);
}

static void work(struct fleet *fleet)
{
    uint64_t until_ns = sim_world_now_ns(fleet->world) + fleet->work_ns;
    fleet->is_draining = false;
    for (uint32_t i = 1; i <= fleet->place_count; i++)
        guests_start(&fleet->places[i]);
    while (sim_world_now_ns(fleet->world) < until_ns) {
        faults_tick(fleet);
        fleet_run_for(fleet, TICK_NS);
    }
}

static void verify_on(struct fleet *fleet, struct place *place)
{
    place_run(place, guests_verify);
    if (place->has_failed)
        fleet_fail(fleet, "machine %u cannot go on, and all is well", place->number);
}

/* From every machine, when all has become whole by itself. */
static void verify(struct fleet *fleet)
{
    fleet->is_healed = true;
    run_until_so(fleet, all_is_whole, WHOLE_LIMIT_NS, "all is whole");
    fleet_note(fleet, "all is whole");
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        if (fleet->places[i].state == PLACE_UP)
            verify_on(fleet, &fleet->places[i]);
    }
    fleet_rot_end(fleet);
    fleet_compare_copies(fleet);
}

void fleet_run_seed(struct fleet *fleet, uint64_t seed)
{
    fleet->seed = seed;
    sim_world_seed(fleet->world, seed);
    draw(fleet);
    fleet_note(fleet, "seed %llu, %u nodes, profile %s", (unsigned long long)seed,
               fleet->node_count, fleet->profile->name);
    place_run(&fleet->places[1 + fleet_random(fleet, fleet->node_count)], guests_prepare);
    work(fleet);
    fleet_note(fleet, "all is healed");
    fleet->is_draining = true;
    faults_heal(fleet);
    run_until_so(fleet, guests_are_done, DRAIN_LIMIT_NS, "the guests have ended");
    run_until_so(fleet, all_are_up, UP_LIMIT_NS, "all machines are up");
    run_until_so(fleet, fleet_is_replaced, UP_LIMIT_NS, "a machine is replaced");
    verify(fleet);
    fleet_note(fleet,
               "ends; %llu operations, %llu of them failed, %llu faults, %llu "
               "hand-overs; %016llx",
               (unsigned long long)fleet->ops_done, (unsigned long long)fleet->ops_failed,
               (unsigned long long)fleet->faults_done,
               (unsigned long long)fleet->hand_overs,
               (unsigned long long)sim_world_random(fleet->world, UINT64_MAX));
}
