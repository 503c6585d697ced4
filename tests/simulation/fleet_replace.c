/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine is gone for good, with its store, and another one comes in its place: its
 * node is declared lost, and a new one, whose store is empty, joins; in either order,
 * while other things go wrong.
 *
 *      none --all is whole--> under way --declared lost, and joined, and up--> none
 *
 * Each of the two is an errand of some machine that is up. If that one ends, or the
 * command is refused (the node is not known to be down yet, there is no leader), it is
 * run again a while later, by whoever is up then.
 *
 * It begins only when everything is whole, and nothing else is lost or damaged before
 * everything is whole again: more than one copy is not lost at a time. Until it is known
 * that the node is down it may count as the last whole member of a group, if the others
 * were down for a moment, too. Then an operator has to say that losing it is fine. Here
 * it is: the others have all that was acknowledged.
 */
#include "tests/simulation/fleet.h"

#define RETRY_NS    (500 * NS_PER_MS)
#define PATIENCE_NS (20 * NS_PER_S) /* before --data-loss */

static bool is_gone(const struct place *by, uint64_t node)
{
    const struct cluster_node *it = cluster_node_by_id(place_state(by), node);
    return it != NULL && (it->flags & NODE_GONE) != 0;
}

static void errand_begin(struct fleet *fleet, struct errand *errand,
                         void (*main)(struct task_call *))
{
    errand->due_ns = sim_world_now_ns(fleet->world) + RETRY_NS;
    errand->by = fleet_any_up(fleet);
    if (errand->by == NULL)
        return;
    errand->starts = errand->by->starts;
    errand->is_running = true;
    errand->task = (struct task_call){.main = main, .name = "errand", .system = true};
    task_start(errand->by->loop, &errand->task);
}

/* Runs it until it is done. */
static void errand_tick(struct fleet *fleet, struct errand *errand,
                        void (*main)(struct task_call *))
{
    const struct place *by = errand->by;
    if (errand->is_running && by->starts == errand->starts && by->state != PLACE_OFF)
        return;
    errand->is_running = false;
    if (!errand->is_done && sim_world_now_ns(fleet->world) >= errand->due_ns)
        errand_begin(fleet, errand, main);
}

/* --- what is done --- */

static void declare(struct task_call *call)
{
    struct errand *errand = container_of(call, struct errand, task);
    struct replacement *r = container_of(errand, struct replacement, declaring);
    struct place *by = errand->by;
    struct fleet *fleet = by->fleet;
    struct cluster_command command = {.op = CLUSTER_NODE_GONE,
                                      .node = r->lost,
                                      .force = true,
                                      .data_loss = r->is_impatient};
    struct cluster_result result;
    (void)cluster_submit(membership_cluster(by->membership), &command, &result);
    if (is_gone(by, r->lost)) {
        errand->is_done = true;
        fleet_note(fleet, "machine %u has declared node %u lost%s", by->number, r->lost,
                   r->is_impatient ? ", with what only it had" : "");
    } else if (sim_world_now_ns(fleet->world) - r->begun_ns > PATIENCE_NS &&
               result.code == -PLX_EPRECONDITION) {
        fleet_note(fleet, "node %u is not declared lost: %s", r->lost, result.text);
        r->is_impatient = fleet->is_draining;
    }
    errand->is_running = false;
}

static void join(struct task_call *call)
{
    struct errand *errand = container_of(call, struct errand, task);
    struct replacement *r = container_of(errand, struct replacement, joining);
    struct place *newcomer = &errand->by->fleet->places[r->newcomer];
    errand->is_done = place_admit(newcomer, errand->by);
    errand->is_running = false;
}

/* --- its course --- */

static void begin(struct fleet *fleet, struct place *place)
{
    struct replacement *r = &fleet->replacement;
    fleet_note(fleet, "machine %u is lost for good", place->number);
    place_end(place, fleet_chance(fleet, 50) ? SIM_KILL : SIM_POWER_CUT);
    place_lose(place);
    model_cut(&fleet->model, place->number);
    uint64_t now_ns = sim_world_now_ns(fleet->world);
    *r = (struct replacement){.is_under_way = true,
                              .begun_ns = now_ns,
                              .lost = place->number,
                              .newcomer = fleet->place_count + 1};
    r->declaring.due_ns = now_ns + fleet_between(fleet, 1, 6000) * NS_PER_MS;
    r->joining.due_ns = now_ns + fleet_between(fleet, 1, 6000) * NS_PER_MS;
}

bool fleet_replace(struct fleet *fleet, struct place *place)
{
    if (fleet->replacement.is_under_way || fleet->place_count == FLEET_PLACES_MAX ||
        !fleet_has_all_copies(fleet))
        return false;
    begin(fleet, place);
    return true;
}

static void join_tick(struct fleet *fleet, struct replacement *r)
{
    struct place *newcomer = &fleet->places[r->newcomer];
    if (!r->joining.is_done && r->joining.due_ns > sim_world_now_ns(fleet->world))
        return;
    if (newcomer->state == PLACE_NONE)
        place_make(fleet, r->newcomer);
    errand_tick(fleet, &r->joining, join);
    if (r->joining.is_done && newcomer->state == PLACE_MADE)
        place_start(newcomer);
}

void fleet_replace_tick(struct fleet *fleet)
{
    struct replacement *r = &fleet->replacement;
    if (!r->is_under_way)
        return;
    errand_tick(fleet, &r->declaring, declare);
    join_tick(fleet, r);
    if (r->declaring.is_done && r->joining.is_done && fleet_has_all_copies(fleet)) {
        r->is_under_way = false;
        fleet_note(fleet, "machine %u has taken the place of machine %u", r->newcomer,
                   r->lost);
    }
}

bool fleet_is_replaced(const struct fleet *fleet)
{
    const struct replacement *r = &fleet->replacement;
    return !r->is_under_way || (r->declaring.is_done && r->joining.is_done);
}

void fleet_replace_soon(struct fleet *fleet)
{
    struct replacement *r = &fleet->replacement;
    uint64_t now_ns = sim_world_now_ns(fleet->world);
    r->declaring.due_ns = min_u64(r->declaring.due_ns, now_ns);
    r->joining.due_ns = min_u64(r->joining.due_ns, now_ns);
}
