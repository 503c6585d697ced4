/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/simulation/run.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define ROUNDS_MAX     6U
#define LIFE_SHORT     600U /* events: mostly dies while it recovers */
#define LIFE_LONG      20000U
#define BOOT_LIMIT_NS  (3600 * NS_PER_S)
#define CLOSE_LIMIT_NS (3600 * NS_PER_S)
#define TAIL_LINES     40

/* --- reporting --- */

/* The last lines of the trace; all of it with -v. */
static void print_trace(const struct run *run)
{
    FILE *file = tmpfile();
    long total = 0, nth = 0;
    int c, last = '\n';
    if (run->loop == NULL || file == NULL)
        return;
    trace_dump(loop_trace(run->loop), fileno(file));
    rewind(file);
    while ((c = getc(file)) != EOF)
        total += c == '\n';
    rewind(file);
    while ((c = getc(file)) != EOF) {
        if (run->is_verbose || nth >= total - TAIL_LINES) {
            if (last == '\n')
                printf("    ");
            putchar(c);
        }
        nth += c == '\n';
        last = c;
    }
    fclose(file);
}

void run_fail(struct run *run, const char *fmt, ...)
{
    va_list args;
    printf("seed %llu, profile %s, round %u of %u, at %.6f s: ",
           (unsigned long long)run->seed, run->profile.name, run->round, run->rounds,
           (double)sim_world_now_ns(run->world) / 1e9);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    printf("\n");
    print_trace(run);
    fflush(stdout);
    _exit(1);
}

void run_note(struct run *run, const char *fmt, ...)
{
    va_list args;
    if (!run->is_verbose)
        return;
    printf("%10.6f ", (double)sim_world_now_ns(run->world) / 1e9);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    printf("\n");
}

void *run_alloc(size_t bytes)
{
    void *p = calloc(1, bytes);
    if (p == NULL) {
        fprintf(stderr, "sim: no memory for %zu bytes\n", bytes);
        abort();
    }
    return p;
}

uint64_t run_between(struct run *run, uint64_t low, uint64_t high)
{
    return low + sim_world_random(run->world, high - low + 1);
}

/* --- processes --- */

static void process_begin(struct run *run, void (*main)(struct task_call *call),
                          const char *name)
{
    run->loop = sim_process_create(run->world);
    run->is_over = run->had_faults = false;
    run->task = (struct task_call){.main = main, .name = name};
    task_start(run->loop, &run->task);
    if (run->is_verbose)
        log_set_fd(loop_log(run->loop), STDOUT_FILENO);
}

static void process_end(struct run *run, enum sim_end how)
{
    run->digest = run->digest * 31 + trace_digest(loop_trace(run->loop));
    workload_forget(run);
    sim_process_end(run->loop, how);
    run->loop = NULL;
    run->host = NULL;
}

static async void create_main(struct task_call *call)
{
    struct run *run = container_of(call, struct run, task);
    struct error err = {0};
    int rc = host_create(run->loop, &run->options, &err);
    if (rc < 0)
        run_fail(run, "host_create: %s", err.text);
    run->is_over = true;
}

/* Opening a store syncs what it found, so what a kill left is as good as flushed. */
static void store_was_opened(struct run *run)
{
    struct model_disk *disk;
    TAILQ_FOREACH (disk, &run->model.disks, link)
        disk->line->flushed = disk->line->acked;
}

static async void verify_start(struct run *run)
{
    verify_names(run);
    verify_content(run, false);
    if (run_chance(run, 10))
        verify_check(run, false);
}

/* Everything, and then once more what space is held for it. */
static async void verify_last(struct run *run)
{
    verify_names(run);
    if (!run->is_count) {
        verify_restore(run);
        verify_names(run); /* of what was in the trash some was in doubt */
        verify_content(run, true);
    }
    if (run->is_count || run_chance(run, 50))
        verify_space(run);
    verify_check(run, false);
    if (run->is_count && run_chance(run, 30))
        verify_repair(run);
    if (run->is_count && run_chance(run, 30))
        verify_scrub(run);
}

static async void boot_main(struct task_call *call)
{
    struct run *run = container_of(call, struct run, task);
    struct host *host;
    run->boot_error.text[0] = '\0';
    run->boot_result = host_open(run->loop, &run->options, &host, &run->boot_error);
    if (run->boot_result < 0) {
        run->is_over = true;
        return;
    }
    run->host = host;
    store_was_opened(run);
    if (run->is_last)
        verify_last(run);
    else
        verify_start(run);
    run->is_booted = run->is_over = true;
    if (!run->is_last)
        workload_start(run);
}

static async void close_main(struct task_call *call)
{
    struct run *run = container_of(call, struct run, task);
    host_close(run->host);
    run->is_over = true;
}

/* An end in order syncs what was acknowledged. (What was only sealed may have been taken
 * back at the last moment, for want of space.) */
static void all_is_flushed(struct run *run)
{
    struct model_disk *disk;
    TAILQ_FOREACH (disk, &run->model.disks, link)
        disk->line->flushed = disk->line->acked;
}

static void step(struct run *run, uint64_t events, const bool *until)
{
    for (uint64_t i = 0; i < events && (until == NULL || !*until); i++) {
        if (!sim_world_step(run->world)) {
            if (run->is_over && !run->is_booted)
                return; /* the start has failed */
            run_fail(run, "nothing is left to do, but something is not done");
        }
        if (i % 256 == 255)
            workload_check_hang(run);
    }
}

/* *ret_status: how the host is before it closes, which nobody can ask afterwards. */
static void close_begin(struct run *run, struct host_status *ret_status)
{
    faults_off(run);
    run->load.is_draining = true;
    while (!workload_drained(run)) {
        if (!sim_world_step(run->world))
            run_fail(run, "operations are in flight, and nothing is left to do");
        workload_check_hang(run);
    }
    host_status(run->host, ret_status);
    run->task = (struct task_call){.main = close_main, .name = "sim close"};
    run->is_over = false;
    task_start(run->loop, &run->task);
}

static void close_in_order(struct run *run, struct host_status *ret_status)
{
    close_begin(run, ret_status);
    if (!sim_world_run_until(run->world, &run->is_over, CLOSE_LIMIT_NS))
        run_fail(run, "host_close does not end");
    if (!ret_status->failed && !run->profile.may_fail)
        all_is_flushed(run);
}

static void note_end(struct run *run, const struct host_status *status)
{
    run_note(run,
             "ends; %llu operations begun, %llu done, %llu of them failed; %llu KiB "
             "reclaimed, %llu compactions of %llu KiB",
             (unsigned long long)run->load.ops_begun,
             (unsigned long long)run->load.ops_done,
             (unsigned long long)run->load.ops_failed,
             (unsigned long long)(status->reclaim_freed_bytes / KIB),
             (unsigned long long)status->compact_runs,
             (unsigned long long)(status->compact_bytes_written / KIB));
}

/* One process from its start to its end. True if it did some work. */
static bool live(struct run *run)
{
    bool is_short = run_chance(run, 30);
    uint64_t longest = is_short ? LIFE_SHORT : LIFE_LONG;
    if (run->profile.is_small && !is_short) /* to fill the store many times over */
        longest *= 3;
    uint64_t events = run_between(run, 1, longest);
    enum ending ending = faults_ending(run);
    run->is_booted = false;
    if (run_chance(run, 10)) /* somebody made room */
        run->options.capacity_bytes += run_between(run, 1, 64) * MIB;
    run_note(run, "round %u: %llu events, then %s", run->round,
             (unsigned long long)events,
             ending == ENDING_KILL        ? "killed"
             : ending == ENDING_POWER_CUT ? "power cut"
                                          : "closed");
    process_begin(run, boot_main, "sim boot");
    if (run->profile.may_fail && !run->profile.media_rot && run_chance(run, 20))
        faults_on(run);
    if (is_short && ending != ENDING_CLEAN)
        step(run, events, NULL);
    else if (!sim_world_run_until(run->world, &run->is_over, BOOT_LIMIT_NS))
        run_fail(run, "the start does not end");
    if (run->is_over && !faults_allow(run, run->boot_result))
        run_fail(run, "host_open: %s", run->boot_error.text);
    bool worked = run->is_booted && !(is_short && ending != ENDING_CLEAN);
    if (worked)
        step(run, events, NULL);
    struct host_status status = {0};
    if (ending == ENDING_CLEAN && run->is_booted) {
        close_in_order(run, &status);
    } else if (worked && run_chance(run, 15)) { /* it dies while it closes */
        close_begin(run, &status);
        step(run, run_between(run, 1, 400), &run->is_over);
    } else if (worked) {
        host_status(run->host, &status);
    }
    faults_off(run);
    note_end(run, &status);
    bool cut = ending == ENDING_POWER_CUT ||
               (ending == ENDING_CLEAN && run->profile.cuts > 0 && run_chance(run, 50));
    process_end(run, cut ? SIM_POWER_CUT : SIM_KILL);
    if (!cut && run->profile.cuts > 0 && run_chance(run, 25)) {
        sim_power_cut_media(run->world, "machine/"); /* before anybody restarts it */
        cut = true;
    }
    model_crash(&run->model, cut, run->profile.may_lose);
    return worked;
}

static void final_check(struct run *run, bool all, bool count)
{
    struct host_status status;
    run->is_last = all;
    run->is_count = count;
    run->is_booted = false;
    process_begin(run, boot_main, "sim boot");
    if (!sim_world_run_until(run->world, &run->is_over, BOOT_LIMIT_NS))
        run_fail(run, "the last start does not end");
    if (run->boot_result < 0 && run->profile.media_rot) {
        process_end(run, SIM_KILL);
        return; /* an error is an answer; wrong bytes would not be */
    }
    if (run->boot_result < 0)
        run_fail(run, "host_open: %s", run->boot_error.text);
    close_in_order(run, &status);
    process_end(run, SIM_POWER_CUT);
    model_crash(&run->model, true, run->profile.may_lose);
}

/* The metadata is damaged: the host says so and does not start. */
static void damage_check(struct run *run)
{
    sim_kv_damage(run->world, KV_PATH);
    run->is_booted = false;
    process_begin(run, boot_main, "sim boot");
    if (!sim_world_run_until(run->world, &run->is_over, BOOT_LIMIT_NS))
        run_fail(run, "a start with damaged metadata does not end");
    if (run->boot_result == 0 || run->boot_error.text[0] == '\0')
        run_fail(run, "damaged metadata was not noticed");
    process_end(run, SIM_KILL);
}

void run_seed(uint64_t seed, bool is_verbose)
{
    struct run *run = run_alloc(sizeof *run);
    run->seed = seed;
    run->is_verbose = is_verbose;
    run->world = sim_world_create(seed);
    TAILQ_INIT(&run->load.clients);
    TAILQ_INIT(&run->load.ops);
    model_init(&run->model, run);
    faults_draw(run);
    run->rounds = (unsigned)run_between(run, 1, ROUNDS_MAX);
    run_note(run, "seed %llu, profile %s, %u rounds, %llu MiB", (unsigned long long)seed,
             run->profile.name, run->rounds,
             (unsigned long long)(run->options.capacity_bytes / MIB));
    process_begin(run, create_main, "sim create");
    if (!sim_world_run_until(run->world, &run->is_over, BOOT_LIMIT_NS))
        run_fail(run, "host_create does not end");
    process_end(run, run_chance(run, 50) ? SIM_KILL : SIM_POWER_CUT);
    for (run->round = 1; run->round <= run->rounds;)
        run->round += live(run);
    /* Once as the last process left it, and once more after an end in order; and what
     * was dead then has stayed dead. */
    final_check(run, false, false);
    final_check(run, true, false);
    final_check(run, true, true);
    if (run_chance(run, 5))
        damage_check(run);
    run_note(run, "digest %016llx, %.3f s, %llu operations",
             (unsigned long long)run->digest, (double)sim_world_now_ns(run->world) / 1e9,
             (unsigned long long)run->load.ops_done);
    if (is_verbose)
        printf("seed %llu passed, digest %016llx\n", (unsigned long long)seed,
               (unsigned long long)run->digest);
    sim_world_destroy(run->world);
    free(run);
}
