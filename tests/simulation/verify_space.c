/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the space is: everything was closed, all that could be reclaimed was, and now the
 * host must hold what the model can justify, and no more than SLACK blocks for each disk
 * and version on top. That everything which must be there is there, reading has shown.
 */
#include "tests/simulation/lose.h"
#include "tests/simulation/workload.h"

#define POLL_NS          (100 * NS_PER_MS)
#define CHECKS_MAX       20U
#define QUIET_LIMIT_NS   (3600 * NS_PER_S)
#define SLACK_OF_DISK    8U /* a dead list that is not forgotten yet, and its like */
#define SLACK_OF_VERSION 1U

/* --- host_check --- */

static void on_finding(void *arg, const char *line)
{
    struct run *run = arg;
    bool is_full = run->profile.fills && strstr(line, err_text(-PLX_EFULL)) != NULL;
    if (!faults_allow(run, -EIO) && !is_full)
        run_fail(run, "check: %s", line);
}

async void verify_check(struct run *run, bool beside_guests)
{
    struct check_callbacks callbacks = {.finding = on_finding, .arg = run};
    struct check_report report;
    struct error err = {0};
    int rc = host_check(run->host, 0, &callbacks, &report, &err);
    if (rc == -PLX_EBUSY && beside_guests)
        return; /* it gives up before it holds them up */
    /* Lists that a killed process left fill half of the room by themselves. */
    for (uint32_t i = 0; rc == -PLX_EBUSY && i < CHECKS_MAX; i++) {
        task_sleep_ns(POLL_NS);
        rc = host_check(run->host, 0, &callbacks, &report, &err);
    }
    if (!faults_allow(run, rc))
        run_fail(run, "check: %s", err.text);
    if (rc == 0 && (report.lost_blocks > 0 || report.dead_reachable > 0) &&
        !faults_allow(run, -EIO))
        run_fail(run, "check: %llu blocks are lost, %llu are reachable and dead",
                 (unsigned long long)report.lost_blocks,
                 (unsigned long long)report.dead_reachable);
}

/* --- accounting --- */

static bool is_quiet(const struct host_status *status)
{
    return status->open_disk_count == 0 && status->reclaim_pending == 0 &&
           !status->reclaim_running && !status->compacting;
}

/* Waits until disks are closed and nothing is left to reclaim. */
static async void wait_quiet(struct run *run, struct host_status *ret)
{
    uint64_t start_ns = sim_world_now_ns(run->world);
    host_status(run->host, ret);
    while (!is_quiet(ret)) {
        if (sim_world_now_ns(run->world) - start_ns > QUIET_LIMIT_NS)
            run_fail(run,
                     "after an hour %llu disks are open, %llu things wait to be "
                     "reclaimed%s%s",
                     (unsigned long long)ret->open_disk_count,
                     (unsigned long long)ret->reclaim_pending,
                     ret->reclaim_running ? ", which is under way" : "",
                     ret->compacting ? ", and it compacts" : "");
        task_sleep_ns(POLL_NS);
        host_status(run->host, ret);
    }
}

async void verify_space(struct run *run)
{
    struct host_status status;
    struct model_space space;
    if (run->profile.media_rot)
        return; /* what cannot be read cannot be walked */
    wait_quiet(run, &status);
    verify_trash(run);
    model_space(&run->model, &space);
    uint64_t live = status.live_bytes / BLOCK_SIZE;
    uint64_t most = space.data_blocks + space.node_blocks +
                    run->model.disk_count * SLACK_OF_DISK +
                    space.versions * SLACK_OF_VERSION;
    run_note(run,
             "space: %llu blocks live; %llu data and up to %llu nodes of %llu versions; "
             "%llu KiB used, %llu KiB dead",
             (unsigned long long)live, (unsigned long long)space.data_blocks,
             (unsigned long long)space.node_blocks, (unsigned long long)space.versions,
             (unsigned long long)(status.used_bytes / KIB),
             (unsigned long long)(status.dead_bytes / KIB));
    if (live > most)
        run_fail(
            run,
            "%llu blocks are live, %llu at most are justified: %llu of data and %llu "
            "of maps of %llu versions, and some for %u disks",
            (unsigned long long)live, (unsigned long long)most,
            (unsigned long long)space.data_blocks, (unsigned long long)space.node_blocks,
            (unsigned long long)space.versions, run->model.disk_count);
    if (live < space.least_blocks && !run->profile.may_lose)
        run_fail(run, "%llu blocks are live, and %llu hold data",
                 (unsigned long long)live, (unsigned long long)space.least_blocks);
}

/* --- lost space --- */

static void on_lost(void *arg, const char *line)
{
    uint32_t *findings = arg;
    (void)line;
    (*findings)++;
}

static async void check_lost(struct run *run, unsigned flags, uint64_t lost,
                             uint64_t repaired)
{
    uint32_t findings = 0;
    struct check_callbacks callbacks = {.finding = on_lost, .arg = &findings};
    struct check_report report;
    struct error err = {0};
    int rc = host_check(run->host, flags, &callbacks, &report, &err);
    if (rc < 0)
        run_fail(run, "check: %s", err.text);
    if (report.lost_blocks != lost || report.repaired_blocks != repaired ||
        (findings > 0) != (lost > 0))
        run_fail(run, "of %llu lost blocks a check finds %llu and frees %llu",
                 (unsigned long long)lost, (unsigned long long)report.lost_blocks,
                 (unsigned long long)report.repaired_blocks);
}

static size_t count_trash(struct run *run)
{
    struct trash_info *infos;
    size_t count;
    int rc = trash_list(run->host, &infos, &count);
    if (rc < 0)
        run_fail(run, "trash_list: %s", err_text(rc));
    free(infos);
    return count;
}

async void verify_repair(struct run *run)
{
    struct host_status before, status;
    if (run->profile.media_rot)
        return;
    wait_quiet(run, &before);
    size_t trashed = count_trash(run);
    uint32_t count = lose_blocks(run->host, (uint32_t)run_between(run, 1, 100));
    run_note(run, "%u blocks are lost", count);
    check_lost(run, 0, count, 0);
    check_lost(run, CHECK_REPAIR, count, count);
    check_lost(run, 0, 0, 0);
    if (count_trash(run) != trashed)
        return; /* the time of one of its disks was over meanwhile */
    host_status(run->host, &status);
    if (status.live_bytes != before.live_bytes)
        run_fail(run, "lost space was freed, but %llu bytes are live, not %llu",
                 (unsigned long long)status.live_bytes,
                 (unsigned long long)before.live_bytes);
}

/* --- scrub --- */

/* Everything is scrubbed, and nothing is found. */
async void verify_scrub(struct run *run)
{
    struct scrub_status status;
    struct error err = {0};
    uint64_t start_ns = sim_world_now_ns(run->world);
    int rc = scrub_start(run->host, 100 * GIB, &err);
    if (!faults_allow(run, rc))
        run_fail(run, "scrub: %s", err.text);
    scrub_status(run->host, &status);
    while (rc == 0 && status.running) {
        if (sim_world_now_ns(run->world) - start_ns > QUIET_LIMIT_NS)
            run_fail(run, "a scrub does not end in an hour");
        task_sleep_ns(POLL_NS);
        scrub_status(run->host, &status);
    }
    scrub_check(run);
}
