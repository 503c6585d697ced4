/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What happens to a cluster. Processes are killed, machines lose power, stand still and
 * come back; ways between them are blocked, in one direction or both; messages are late,
 * connections break. Several of these at a time, of any machines: nothing of it may do
 * more than to hold up guests, but for what doc/testing.md says of losing power.
 */
#include "tests/simulation/fleet.h"

static const struct fleet_profile profiles[] = {
    {.name = "none", .share = 5},
    {.name = "kill", .share = 30, .kills = 1},
    {.name = "power", .share = 20, .kills = 1, .cuts = 3},
    {.name = "pause", .share = 10, .pauses = 1},
    {.name = "network", .share = 15, .blocks = 3, .noises = 1},
    {.name = "all",
     .share = 20,
     .kills = 2,
     .cuts = 2,
     .pauses = 2,
     .blocks = 3,
     .noises = 2},
};

/* Those that came later. They are of other seeds, by the rest of a seed by 7, so that the
 * first have the histories that once found something. */
static const struct fleet_profile rot_profiles[] = {
    {.name = "rot", .share = 40, .kills = 2, .cuts = 1, .rots = 6},
    {.name = "rot-all",
     .share = 60,
     .kills = 2,
     .cuts = 1,
     .pauses = 1,
     .blocks = 2,
     .noises = 1,
     .rots = 8},
};
static const struct fleet_profile replace_profiles[] = {
    {.name = "replace", .share = 50, .kills = 2, .losses = 3},
    {.name = "replace-all",
     .share = 50,
     .kills = 2,
     .cuts = 1,
     .pauses = 1,
     .blocks = 2,
     .noises = 1,
     .losses = 4},
};

static const struct fleet_profile disk_profiles[] = {
    {.name = "slow", .share = 30, .kills = 1, .slows = 5},
    {.name = "full", .share = 35, .kills = 1, .fulls = 5},
    {.name = "disks-all",
     .share = 35,
     .kills = 2,
     .cuts = 1,
     .pauses = 1,
     .blocks = 2,
     .noises = 1,
     .slows = 3,
     .fulls = 3},
};

#define CLOCK_PPM_MAX 20000 /* 2 %, a hundred times what quartz does */

static const struct fleet_profile clock_profiles[] = {
    {.name = "clocks",
     .share = 40,
     .kills = 1,
     .pauses = 1,
     .steps = 6,
     .clock_ppm_max = CLOCK_PPM_MAX},
    {.name = "everything",
     .share = 60,
     .kills = 3,
     .cuts = 1,
     .pauses = 1,
     .blocks = 2,
     .noises = 1,
     .losses = 2,
     .slows = 1,
     .fulls = 1,
     .steps = 1,
     .clock_ppm_max = CLOCK_PPM_MAX},
};

static const struct {
    const struct fleet_profile *profiles;
    size_t count;
} by_rest[7] = {
    [0] = {profiles, ARRAY_LEN(profiles)},
    [1] = {profiles, ARRAY_LEN(profiles)},
    [2] = {rot_profiles, ARRAY_LEN(rot_profiles)},
    [3] = {replace_profiles, ARRAY_LEN(replace_profiles)},
    [4] = {disk_profiles, ARRAY_LEN(disk_profiles)},
    [5] = {profiles, ARRAY_LEN(profiles)},
    [6] = {clock_profiles, ARRAY_LEN(clock_profiles)},
};

bool faults_are_later(uint64_t seed)
{
    return by_rest[seed % ARRAY_LEN(by_rest)].profiles != profiles;
}

void faults_draw_profile(struct fleet *fleet)
{
    const struct fleet_profile *from = by_rest[fleet->seed % ARRAY_LEN(by_rest)].profiles;
    size_t count = by_rest[fleet->seed % ARRAY_LEN(by_rest)].count, i = 0;
    uint64_t draw = fleet_random(fleet, 100);
    while (i < count - 1 && draw >= from[i].share)
        draw -= from[i++].share;
    fleet->profile = &from[i];
    fleet->next_fault_ns = sim_world_now_ns(fleet->world) +
                           fleet_between(fleet, 1, 3000) * NS_PER_MS;
    for (uint32_t p = 1; p <= fleet->place_count; p++)
        faults_draw_clock(fleet, &fleet->places[p]);
}

static struct place *pick_place(struct fleet *fleet)
{
    struct place *place = &fleet->places[1 + fleet_random(fleet, fleet->place_count)];
    return place->state == PLACE_UP || place->state == PLACE_STARTING ? place : NULL;
}

static void end(struct fleet *fleet, struct place *place, enum sim_end how)
{
    fleet_note(fleet, "machine %u %s", place->number,
               how == SIM_KILL ? "is killed" : "loses power");
    place_end(place, how);
    if (how == SIM_POWER_CUT)
        model_cut(&fleet->model, place->number);
    place->start_ns = sim_world_now_ns(fleet->world) +
                      fleet_between(fleet, 1, fleet_chance(fleet, 70) ? 1000 : 8000) *
                          NS_PER_MS;
}

static void stall(struct fleet *fleet, struct place *place)
{
    uint64_t duration_ns =
        fleet_between(fleet, 10, fleet_chance(fleet, 50) ? 1000 : 10000) * NS_PER_MS;
    fleet_note(fleet, "machine %u stands still for %llu ms", place->number,
               (unsigned long long)(duration_ns / NS_PER_MS));
    place->stalled_until_ns = sim_world_now_ns(fleet->world) + duration_ns;
    sim_process_stall(place->loop, duration_ns);
}

static void block(struct fleet *fleet, struct place *place)
{
    uint64_t kind = fleet_random(fleet, 4);
    bool is_all = kind < 2;
    fleet_note(fleet, "machine %u is cut off: %s%s", place->number,
               is_all ? "from all" : "from some",
               kind % 2 == 0 ? "" : ", in one direction");
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        if (i == place->number || (!is_all && fleet_chance(fleet, 50)))
            continue;
        sim_net_block(fleet->world, place->number, i, true);
        if (kind % 2 == 0)
            sim_net_block(fleet->world, i, place->number, true);
    }
    fleet->blocked_until_ns = sim_world_now_ns(fleet->world) +
                              fleet_between(fleet, 100, 9000) * NS_PER_MS;
}

static void noise(struct fleet *fleet)
{
    struct sim_faults *faults = sim_world_faults(fleet->world);
    faults->net_latency_max_ns = fleet_between(fleet, 1, 300) * NS_PER_MS;
    faults->net_reset_ppm = fleet_chance(fleet, 50) ? 3000 : 0;
    faults->net_stuck_ppm = fleet_chance(fleet, 50) ? 1000 : 0;
    fleet_note(fleet, "the network is bad");
    fleet->noise_until_ns = sim_world_now_ns(fleet->world) +
                            fleet_between(fleet, 100, 4000) * NS_PER_MS;
}

static void quiet(struct fleet *fleet)
{
    struct sim_faults *faults = sim_world_faults(fleet->world);
    faults->net_latency_max_ns = 300 * NS_PER_US;
    faults->net_reset_ppm = faults->net_stuck_ppm = 0;
    fleet->noise_until_ns = 0;
}

/* Some I/O takes so long that others do without its machine, some does not. */
static void slow_down(struct fleet *fleet, struct place *place)
{
    place->slow_ns = fleet_between(fleet, 5, fleet_chance(fleet, 50) ? 100 : 1500) *
                     NS_PER_MS;
    place->slow_until_ns = sim_world_now_ns(fleet->world) +
                           fleet_between(fleet, 100, 8000) * NS_PER_MS;
    fleet_note(fleet, "the disk of machine %u is slow, up to %llu ms", place->number,
               (unsigned long long)(place->slow_ns / NS_PER_MS));
    sim_process_slow_disk(place->loop, place->slow_ns);
}

static void speed_up(struct place *place)
{
    place->slow_ns = place->slow_until_ns = 0;
    if (place->loop != NULL)
        sim_process_slow_disk(place->loop, 0);
}

static void fill(struct fleet *fleet, struct place *place)
{
    uint64_t room = fleet_random(fleet, 4) * 256 * KIB;
    bool can_allocate = fleet_chance(fleet, 50);
    place->full_until_ns = sim_world_now_ns(fleet->world) +
                           fleet_between(fleet, 100, 12000) * NS_PER_MS;
    fleet_note(fleet, "machine %u has room for %llu KiB more", place->number,
               (unsigned long long)(room / KIB));
    (void)sim_file_set_room(fleet->world, place->store_path, room, can_allocate);
}

static void make_room(struct fleet *fleet, struct place *place)
{
    place->full_until_ns = 0;
    fleet_note(fleet, "machine %u has room again", place->number);
    (void)sim_file_set_room(fleet->world, place->store_path, UINT64_MAX / 2, true);
}

#define AHEAD_MAX_NS (30 * 86400 * NS_PER_S) /* of a machine that was not restarted */
#define STEP_MAX_S   (40U * 86400U)

static void step_wall(struct fleet *fleet, struct place *place)
{
    uint64_t most_s = fleet_chance(fleet, 50) ? 5 : STEP_MAX_S;
    int64_t step_ns = (int64_t)fleet_between(fleet, 0, most_s * 1000 * NS_PER_MS);
    if (fleet_chance(fleet, 50))
        step_ns = -step_ns;
    fleet_note(fleet, "the wall clock of machine %u jumps by %.3f s", place->number,
               (double)step_ns / 1e9);
    place->wall_step_ns += step_ns;
    sim_process_step_wall(place->loop, step_ns);
}

/* Of a machine that is new, or all of them. Its process runs on, if it has one. */
void faults_draw_clock(struct fleet *fleet, struct place *place)
{
    int32_t max = fleet->profile != NULL ? fleet->profile->clock_ppm_max : 0;
    if (max == 0)
        return;
    place->clock_ppm = (int32_t)fleet_random(fleet, 2 * (uint64_t)max + 1) - max;
    place->clock_ahead_max_ns = AHEAD_MAX_NS;
    if (place->loop != NULL)
        sim_process_set_clock(place->loop, 0, place->clock_ppm);
}

/* In the order of the fields of a profile. */
static void begin_kind(struct fleet *fleet, size_t kind, struct place *place)
{
    switch (kind) {
    case 0:
        end(fleet, place, SIM_KILL);
        break;
    case 1:
        end(fleet, place, fleet->has_power ? SIM_KILL : SIM_POWER_CUT);
        break;
    case 2:
        stall(fleet, place);
        break;
    case 3:
        block(fleet, place);
        break;
    case 4:
        noise(fleet);
        break;
    case 5:
        (void)fleet_replace(fleet, place);
        break;
    case 6:
        (void)fleet_rot(fleet, place);
        break;
    case 7:
        slow_down(fleet, place);
        break;
    case 8:
        fill(fleet, place);
        break;
    default:
        step_wall(fleet, place);
        break;
    }
}

static void begin_one(struct fleet *fleet)
{
    const struct fleet_profile *p = fleet->profile;
    const uint32_t odds[] = {p->kills,  p->cuts, p->pauses, p->blocks, p->noises,
                             p->losses, p->rots, p->slows,  p->fulls,  p->steps};
    uint32_t all = 0;
    for (size_t i = 0; i < ARRAY_LEN(odds); i++)
        all += odds[i];
    struct place *place = pick_place(fleet);
    if (all == 0 || place == NULL)
        return;
    uint64_t draw = fleet_random(fleet, all);
    size_t kind = 0;
    while (draw >= odds[kind])
        draw -= odds[kind++];
    fleet->faults_done++;
    begin_kind(fleet, kind, place);
}

void faults_tick(struct fleet *fleet)
{
    uint64_t now_ns = sim_world_now_ns(fleet->world);
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        struct place *place = &fleet->places[i];
        if (place->loop != NULL && place->has_failed && place->is_over)
            end(fleet, place, SIM_KILL);
        if (place->state == PLACE_OFF && now_ns >= place->start_ns)
            place_start(place);
        if (place->slow_until_ns != 0 && now_ns >= place->slow_until_ns)
            speed_up(place);
        if (place->full_until_ns != 0 && now_ns >= place->full_until_ns)
            make_room(fleet, place);
    }
    fleet_replace_tick(fleet);
    if (fleet->blocked_until_ns != 0 && now_ns >= fleet->blocked_until_ns) {
        sim_net_open_all(fleet->world);
        fleet->blocked_until_ns = 0;
        fleet_note(fleet, "all ways are open");
    }
    if (fleet->noise_until_ns != 0 && now_ns >= fleet->noise_until_ns)
        quiet(fleet);
    if (!fleet->is_draining && now_ns >= fleet->next_fault_ns) {
        begin_one(fleet);
        fleet->next_fault_ns =
            now_ns +
            fleet_between(fleet, 1, fleet_chance(fleet, 30) ? 300 : 5000) * NS_PER_MS;
    }
}

void faults_heal(struct fleet *fleet)
{
    sim_net_open_all(fleet->world);
    fleet->blocked_until_ns = 0;
    quiet(fleet);
    fleet_replace_soon(fleet);
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        struct place *place = &fleet->places[i];
        place->start_ns = 0;
        speed_up(place);
        if (place->full_until_ns != 0)
            make_room(fleet, place);
    }
}
