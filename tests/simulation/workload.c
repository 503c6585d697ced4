/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/simulation/workload.h"

#define LIVE_PERCENT 40U

struct kind {
    uint32_t weight;
    bool is_change;
    void (*begin)(struct run *run);
};

static const struct kind kinds[] = {
    {420, true, io_write_begin},      {190, false, io_read_begin},
    {70, false, io_flush_begin},      {40, true, io_zero_begin},
    {40, true, io_trim_begin},        {10, false, io_bad_begin},
    {15, false, io_status_begin},     {45, false, admin_open_begin},
    {20, false, admin_close_begin},   {12, true, admin_create_begin},
    {25, true, admin_snapshot_begin}, {10, true, admin_clone_begin},
    {6, true, admin_rename_begin},    {7, true, admin_resize_begin},
    {6, true, admin_rollback_begin},  {2, false, admin_check_begin},
    {4, true, admin_import_begin},    {22, false, admin_remove_snaps_begin},
    {10, false, admin_remove_begin},  {5, false, admin_restore_begin},
    {4, false, admin_empty_begin},    {2, false, admin_keep_begin},
    {3, false, admin_scrub_begin},    {4, false, admin_diff_begin},
    {2, false, admin_usage_begin},
};

static uint32_t total_weight(void)
{
    uint32_t total = 0;
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        total += kinds[i].weight;
    return total;
}

static const struct kind *draw_kind(struct run *run)
{
    uint64_t draw = run_random(run, total_weight());
    const struct kind *kind = kinds;
    while (draw >= kind->weight)
        draw -= kind++->weight;
    return kind;
}

/* Stop before the store is full of what must be kept, unless that is the point. */
static bool may_change(struct run *run)
{
    struct host_status status;
    host_status(run->host, &status);
    if (status.failed)
        run->load.is_failing = true;
    if (status.free_bytes < status.capacity_bytes / 4)
        run->model.was_full = true;
    return run->profile.fills || run->load.is_failing ||
           status.live_bytes < status.capacity_bytes / 100 * LIVE_PERCENT;
}

static void tick(struct timer *timer)
{
    struct workload *load = container_of(timer, struct workload, tick);
    struct run *run = container_of(load, struct run, load);
    if (load->is_draining)
        return;
    uint64_t burst = run_between(run, 1, 4);
    for (uint64_t i = 0; i < burst && load->op_count < load->depth; i++) {
        const struct kind *kind = draw_kind(run);
        if (load->client_count == 0 && run_chance(run, 80))
            admin_open_begin(run);
        else if (!kind->is_change || may_change(run))
            kind->begin(run);
    }
    /* Now and then nobody does anything for long, so that what waits for time happens. */
    uint64_t pause_ns = run_random(run, 2000) == 0 ? run_random(run, 700 * NS_PER_S)
                                                   : run_random(run, load->pause_max_ns);
    timer_start(run->loop, timer, pause_ns + 1);
}

void workload_start(struct run *run)
{
    struct workload *load = &run->load;
    uint64_t deepest = run_chance(run, 5) ? 300 : run_chance(run, 50) ? 8 : 48;
    if (run->profile.is_small) /* what is in flight must fit, too */
        deepest = 8;
    load->depth = (uint32_t)run_between(run, 1, deepest);
    load->pause_max_ns = run_between(run, 10, 800) * NS_PER_US;
    load->is_draining = load->is_failing = load->is_trash_busy = false;
    load->is_trash_emptied = false;
    load->tick = (struct timer){.fire = tick};
    faults_on(run);
    timer_start(run->loop, &load->tick, 1);
}

bool workload_drained(struct run *run)
{
    struct client *client, *next;
    if (run->load.op_count > 0)
        return false;
    TAILQ_FOREACH_SAFE (client, &run->load.clients, link, next)
        client_leave(run, client);
    return run->load.op_count == 0; /* a leaving client may end an import */
}

void workload_check_hang(struct run *run)
{
    const struct op *oldest = TAILQ_FIRST(&run->load.ops);
    if (oldest == NULL)
        return;
    uint64_t age_ns = sim_world_now_ns(run->world) - oldest->started_ns;
    if (age_ns > run->profile.op_limit_ns)
        run_fail(run, "%s of %s is not done after %.3f s", oldest->name,
                 oldest->md != NULL ? oldest->md->name : "the host",
                 (double)age_ns / 1e9);
}

void workload_forget(struct run *run)
{
    struct workload *load = &run->load;
    TAILQ_INIT(&load->clients);
    TAILQ_INIT(&load->ops);
    load->client_count = load->op_count = 0;
}

/* --- operations --- */

struct op *op_begin(struct run *run, const char *name)
{
    struct op *op = run_alloc(sizeof *op);
    op->name = name;
    op->run = run;
    op->started_ns = sim_world_now_ns(run->world);
    op->removals = run->model.removals;
    TAILQ_INSERT_TAIL(&run->load.ops, op, link);
    run->load.op_count++;
    run->load.ops_begun++;
    return op;
}

void op_end(struct op *op, int result)
{
    struct run *run = op->run;
    run_note(run, "%s of %s%s%s: %s, begun at %.6f", op->name,
             op->md != NULL ? op->md->name : "the host", op->snap != NULL ? "@" : "",
             op->snap != NULL ? op->snap->name : "",
             result < 0 ? err_name(result) : "done", (double)op->started_ns / 1e9);
    TAILQ_REMOVE(&run->load.ops, op, link);
    run->load.op_count--;
    run->load.ops_done++;
    run->load.ops_failed += result < 0;
    free(op);
}

static void task_main(struct task_call *call)
{
    struct op *op = container_of(call, struct op, task);
    op->run_op(op);
}

void op_start_task(struct op *op, void (*fn)(struct op *op))
{
    op->run_op = fn;
    op->task = (struct task_call){.main = task_main, .name = op->name};
    task_start(op->run->loop, &op->task);
}

static bool snap_is_raced(const struct op *op, const struct model_snap *snap)
{
    return snap != NULL && (snap->is_removing || snap->removed_at > op->removals);
}

bool op_is_raced(const struct op *op)
{
    const struct model_disk *disk = op->md;
    return (disk != NULL && (disk->is_removing || disk->removed_at > op->removals)) ||
           snap_is_raced(op, op->snap) || snap_is_raced(op, op->to_snap);
}

bool op_found_nothing(const struct op *op, int result)
{
    return op_is_raced(op) && (result == -PLX_EMISSING || result == -PLX_EBUSY ||
                               result == -PLX_EPRECONDITION);
}

void op_check_result(struct op *op, int result, const char *text)
{
    if (!faults_allow(op->run, result))
        run_fail(op->run, "%s of %s failed: %s: %s", op->name,
                 op->md != NULL ? op->md->name : "the host", err_name(result),
                 text != NULL && text[0] ? text : err_text(result));
}
