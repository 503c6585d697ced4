/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/simulation/faults.h"

#include "tests/simulation/run.h"

#define LIMIT_NS       (120 * NS_PER_S)
#define LIMIT_STUCK_NS (3000 * NS_PER_S)

static const struct profile profiles[] = {
    {.name = "none", .share = 6, .cleans = 1},
    {.name = "kill", .share = 14, .kills = 8, .cleans = 1},
    {.name = "power", .share = 20, .cuts = 8, .cleans = 1},
    {.name = "both", .share = 13, .kills = 4, .cuts = 4, .cleans = 1},
    {.name = "writes",
     .share = 7,
     .kills = 3,
     .cuts = 3,
     .cleans = 1,
     .faults = {.write_error_ppm = 20000},
     .may_fail = true},
    {.name = "reads",
     .share = 7,
     .cleans = 1,
     .faults = {.read_error_ppm = 3000, .rot_ppm = 10000},
     .may_fail = true,
     .media_rot = true},
    {.name = "sync",
     .share = 5,
     .cuts = 1,
     .faults = {.sync_error_ppm = 30000},
     .may_fail = true},
    {.name = "metadata",
     .share = 5,
     .kills = 1,
     .cuts = 1,
     .faults = {.kv_error_ppm = 20000},
     .may_fail = true},
    {.name = "rot",
     .share = 4,
     .kills = 2,
     .cuts = 2,
     .cleans = 1,
     .faults = {.read_error_ppm = 3000, .rot_ppm = 10000},
     .may_fail = true,
     .media_rot = true,
     .may_lose = true},
    {.name = "stuck",
     .share = 4,
     .kills = 3,
     .cuts = 3,
     .cleans = 1,
     .faults = {.stuck_ppm = 3000},
     .op_limit_ns = LIMIT_STUCK_NS},
    {.name = "full", .share = 5, .kills = 2, .cuts = 2, .cleans = 1, .fills = true},
    {.name = "small", .share = 10, .kills = 2, .cuts = 2, .cleans = 1, .is_small = true},
};

static void draw_options(struct run *run)
{
    struct host_options *options = &run->options;
    uint64_t mib = run->profile.fills      ? run_between(run, 48, 80)
                   : run->profile.is_small ? run_between(run, 40, 72)
                                           : run_between(run, 256, 1024);
    *options = (struct host_options){
        .store_path = STORE_PATH,
        .kv_path = KV_PATH,
        .capacity_bytes = mib * MIB,
        .node_cache_bytes = run_between(run, 1, 4) * MIB,
        .overlay_bytes = run_between(run, 1, 8) * MIB,
        .retained_bytes = run_between(run, 4, 16) * MIB,
        .checkpoint_log_bytes = run_between(run, 256, 4096) * KIB,
        .idle_close_ms = (uint32_t)run_between(run, 1, run_chance(run, 50) ? 20 : 5000),
        .no_idle_work = run_chance(run, 70),
        .sealed = model_sealed,
        .sealed_arg = &run->model,
    };
}

void faults_draw(struct run *run)
{
    struct profile *profile = &run->profile;
    uint64_t draw = run_random(run, 100);
    size_t i = 0;
    while (i < ARRAY_LEN(profiles) - 1 && draw >= profiles[i].share)
        draw -= profiles[i++].share;
    *profile = profiles[i];
    if (profile->op_limit_ns == 0)
        profile->op_limit_ns = LIMIT_NS;
    /* Often rare, sometimes dense. */
    uint32_t divisor = (uint32_t)1 << run_random(run, 6);
    profile->faults.write_error_ppm /= divisor;
    profile->faults.read_error_ppm /= divisor;
    profile->faults.rot_ppm /= divisor;
    profile->faults.sync_error_ppm /= divisor;
    profile->faults.kv_error_ppm /= divisor;
    profile->faults.latency_min_ns = run_between(run, 1, 50) * NS_PER_US;
    profile->faults.latency_max_ns =
        profile->faults.latency_min_ns +
        run_between(run, 1, run_chance(run, 30) ? 20000 : 300) * NS_PER_US;
    draw_options(run);
    run->is_bulky = !profile->fills && run_chance(run, profile->is_small ? 40 : 2);
    if (run->is_bulky && !profile->is_small)
        run->options.capacity_bytes = 500 * MIB;
    run->disks_max = (uint32_t)(run->is_bulky         ? 2
                                : profile->is_small   ? run_between(run, 2, 5)
                                : run_chance(run, 30) ? run_between(run, 1, 3)
                                                      : DISKS_MAX);
    faults_off(run);
}

void faults_on(struct run *run)
{
    *sim_world_faults(run->world) = run->profile.faults;
    run->had_faults = true;
}

void faults_off(struct run *run)
{
    const struct sim_faults *faults = &run->profile.faults;
    *sim_world_faults(run->world) = (struct sim_faults){
        .latency_min_ns = faults->latency_min_ns,
        .latency_max_ns = faults->latency_max_ns,
    };
}

enum ending faults_ending(struct run *run)
{
    const struct profile *profile = &run->profile;
    uint64_t draw = run_random(run, profile->kills + profile->cuts + profile->cleans);
    if (draw < profile->kills)
        return ENDING_KILL;
    return draw < profile->kills + profile->cuts ? ENDING_POWER_CUT : ENDING_CLEAN;
}

bool faults_allow(struct run *run, int result)
{
    struct host_status status;
    const struct profile *profile = &run->profile;
    if (result == 0 || profile->media_rot || (profile->may_fail && run->had_faults))
        return true;
    /* The last: a checkpoint had no space, and what is asked for needs one first. */
    if (!run->profile.fills ||
        (result != -PLX_EFULL && result != -ENOSPC && result != -PLX_EPRECONDITION))
        return false;
    host_status(run->host, &status);
    return status.free_bytes < status.capacity_bytes / 3;
}
