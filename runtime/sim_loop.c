/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated world: one queue of events, virtual time, random numbers, processes.
 *
 * A process is a loop whose wake and timer are two events of its own. Each step of the
 * world runs one of: one piece of posted work, the timers that are due, one completion.
 *
 * A process ends between steps. First its events are dropped, in their order: a write in
 * flight decides then what of it reached the medium, while the memory it comes from is
 * still there. Then its media lose what the cut takes, and only then its stacks go.
 */
#include "runtime/sim.h"

#include <stdio.h>

#include "runtime/net_internal.h"
#include "runtime/sim_internal.h"

/* 2026-01-01; people read it in logs. */
#define WALL_START_NS (1767225600 * NS_PER_S)
#define WALL_SKEW_NS  (5 * NS_PER_S)
/* How long one piece of work takes, so that a loop that is never idle sees time pass. */
#define WORK_MIN_NS  100U
#define WORK_MAX_NS  (2 * NS_PER_US)
#define STUCK_MIN_NS NS_PER_S
#define STUCK_MAX_NS (10 * NS_PER_S)

static int event_compare(const struct sim_event *a, const struct sim_event *b)
{
    if (a->time_ns != b->time_ns)
        return a->time_ns < b->time_ns ? -1 : 1;
    if (a->order != b->order)
        return a->order < b->order ? -1 : 1;
    return 0;
}

RB_PROTOTYPE(sim_event_tree, sim_event, node, event_compare)
RB_GENERATE(sim_event_tree, sim_event, node, event_compare)

void *sim_alloc(size_t bytes)
{
    void *p = calloc(1, bytes);
    if (p == NULL) {
        fprintf(stderr, "simulator: no memory for %zu bytes\n", bytes);
        abort();
    }
    return p;
}

/* --- random: xoshiro256** by Blackman and Vigna, seeded by splitmix64 --- */

static void random_seed(struct sim_world *world, uint64_t seed)
{
    for (size_t i = 0; i < ARRAY_LEN(world->random); i++) {
        seed += 0x9e3779b97f4a7c15U;
        uint64_t z = seed;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
        world->random[i] = z ^ (z >> 31);
    }
}

static uint64_t rotate_left(uint64_t n, unsigned bits)
{
    return (n << bits) | (n >> (64 - bits));
}

static uint64_t random_u64(struct sim_world *world)
{
    uint64_t *s = world->random;
    uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

uint64_t sim_world_random(struct sim_world *world, uint64_t n)
{
    assert(n > 0);
    return random_u64(world) % n;
}

uint64_t sim_random_between(struct sim_world *world, uint64_t low, uint64_t high)
{
    return high <= low ? low : low + sim_world_random(world, high - low + 1);
}

bool sim_chance(struct sim_world *world, uint32_t ppm)
{
    return ppm > 0 && sim_world_random(world, 1000000) < ppm;
}

/* --- events --- */

void sim_event_add(struct sim_process *process, struct sim_event *event,
                   uint64_t delay_ns)
{
    struct sim_world *world = process->world;
    assert(!event->is_pending && !process->is_ended);
    event->process = process;
    if (!add_u64(world->now_ns, delay_ns, &event->time_ns))
        event->time_ns = UINT64_MAX;
    event->time_ns = max_u64(event->time_ns, process->stalled_until_ns);
    /* Ties fall by the seed; the low half keeps the numbers apart. */
    event->order = (random_u64(world) << 32) | (uint32_t)world->event_count++;
    event->is_pending = true;
    struct sim_event *same = RB_INSERT(sim_event_tree, &world->events, event);
    assert(same == NULL);
    (void)same;
}

void sim_event_cancel(struct sim_world *world, struct sim_event *event)
{
    if (!event->is_pending)
        return;
    RB_REMOVE(sim_event_tree, &world->events, event);
    event->is_pending = false;
}

uint64_t sim_latency_ns(struct sim_process *process)
{
    struct sim_world *world = process->world;
    const struct sim_faults *faults = &world->faults;
    uint64_t ns = sim_random_between(world, faults->latency_min_ns,
                                     faults->latency_max_ns);
    if (sim_chance(world, faults->stuck_ppm))
        ns += sim_random_between(world, STUCK_MIN_NS, STUCK_MAX_NS);
    if (process->slow_max_ns > 0)
        ns += sim_random_between(world, 0, process->slow_max_ns);
    return ns;
}

struct pause {
    struct sim_event event;
    struct task *task;
    bool is_over;
};

static void pause_over(struct sim_event *event)
{
    struct pause *pause = container_of(event, struct pause, event);
    pause->is_over = true;
    task_wake(pause->task);
}

async void sim_pause(struct sim_process *process)
{
    struct pause pause = {.event.run = pause_over, .task = task_current()};
    sim_event_add(process, &pause.event, sim_latency_ns(process));
    while (!pause.is_over)
        task_park();
}

bool sim_must_fail(struct sim_world *world, uint32_t ppm)
{
    if (world->fail_nth >= 0 && world->fail_nth-- == 0) {
        world->failure_happened = true;
        return true;
    }
    return sim_chance(world, ppm);
}

void sim_fail_nth_io(struct sim_world *world, int64_t nth)
{
    world->fail_nth = nth;
    world->failure_happened = false;
}

bool sim_failure_happened(const struct sim_world *world)
{
    return world->failure_happened;
}

/* --- the loop of a process --- */

/* What the clock of a process gains in so long. */
static int64_t gain_ns(const struct sim_process *process, uint64_t ns)
{
    return (int64_t)ns / 1000000 * process->clock_ppm +
           (int64_t)ns % 1000000 * process->clock_ppm / 1000000;
}

static uint64_t now_ns(const struct loop *loop)
{
    const struct sim_process *process = container_of(loop, const struct sim_process,
                                                     loop);
    uint64_t since_ns = process->world->now_ns - process->clock_set_ns;
    return process->clock_ns + since_ns + (uint64_t)gain_ns(process, since_ns);
}

/* Until its clock says so, rounded up. */
static uint64_t until_ns(const struct sim_process *process, uint64_t deadline_ns)
{
    uint64_t clock_ns = now_ns(&process->loop);
    if (deadline_ns <= clock_ns)
        return 0;
    uint64_t ns = min_u64(deadline_ns - clock_ns, UINT64_MAX / 2);
    uint64_t rate = (uint64_t)(1000000 + process->clock_ppm);
    if (process->clock_ppm == 0)
        return ns;
    return ns / rate * 1000000 + ns % rate * 1000000 / rate + 3;
}

static uint64_t wall_ns(const struct loop *loop)
{
    const struct sim_process *process = container_of(loop, const struct sim_process,
                                                     loop);
    return WALL_START_NS + process->wall_offset_ns + process->world->now_ns;
}

static void random_bytes(struct loop *loop, void *ret, size_t len)
{
    struct sim_world *world = sim_process_of(loop)->world;
    uint8_t *at = ret;
    while (len > 0) {
        uint64_t n = random_u64(world);
        size_t part = len < sizeof n ? len : sizeof n;
        memcpy(at, &n, part);
        at += part;
        len -= part;
    }
}

static void wake(struct loop *loop)
{
    struct sim_process *process = sim_process_of(loop);
    if (process->is_ended || process->ready.is_pending)
        return;
    uint64_t delay_ns = sim_random_between(process->world, WORK_MIN_NS, WORK_MAX_NS);
    sim_event_add(process, &process->ready, delay_ns);
}

static void run_ready(struct sim_event *event)
{
    struct sim_process *process = event->process;
    if (loop_run_ready(&process->loop, 1))
        wake(&process->loop);
}

static void arm(struct loop *loop, uint64_t deadline_ns)
{
    struct sim_process *process = sim_process_of(loop);
    struct sim_world *world = process->world;
    sim_event_cancel(world, &process->timer);
    if (process->is_ended || deadline_ns == UINT64_MAX)
        return;
    process->deadline_ns = deadline_ns;
    sim_event_add(process, &process->timer, until_ns(process, deadline_ns));
}

static void fire_timers(struct sim_event *event)
{
    loop_fire_timers(&event->process->loop);
}

/* Operations start one by one here, in random order anyway. */
static void plug_nothing(struct loop *loop)
{
    (void)loop;
}

static const struct loop_ops sim_loop_ops = {
    .now_ns = now_ns,
    .wall_ns = wall_ns,
    .random_bytes = random_bytes,
    .wake = wake,
    .arm = arm,
    .file_open = sim_file_open,
    .kv_open = sim_kv_open,
    .net_create = sim_net_create,
    .plug = plug_nothing,
    .unplug = plug_nothing,
};

struct loop *sim_process_create(struct sim_world *world)
{
    struct sim_process *process = sim_alloc(sizeof *process);
    process->world = world;
    process->number = ++world->process_count;
    process->wall_offset_ns = sim_random_between(world, 0, WALL_SKEW_NS);
    process->ready.run = run_ready;
    process->timer.run = fire_timers;
    TAILQ_INIT(&process->handles);
    TAILQ_INIT(&process->nets);
    if (loop_init(&process->loop, &sim_loop_ops) != 0) {
        fprintf(stderr, "simulator: no memory for a loop\n");
        abort();
    }
    TAILQ_INSERT_TAIL(&world->processes, process, link);
    return &process->loop;
}

static void drop_events(struct sim_process *process)
{
    struct sim_world *world = process->world;
    struct sim_event *event, *next;
    RB_FOREACH_SAFE (event, sim_event_tree, &world->events, next) {
        if (event->process != process)
            continue;
        sim_event_cancel(world, event);
        if (event->drop != NULL)
            event->drop(event);
    }
}

void sim_process_end(struct loop *loop, enum sim_end how)
{
    struct sim_process *process = sim_process_of(loop);
    struct sim_world *world = process->world;
    assert(world->running != process && "a process cannot end itself");
    drop_events(process);
    process->is_ended = true;
    struct sim_handle *handle;
    while ((handle = TAILQ_FIRST(&process->handles)) != NULL)
        handle->free(handle);
    sim_net_end_process(process, how);
    /* Also those it had closed before. */
    struct sim_medium *medium;
    TAILQ_FOREACH (medium, &world->media, link) {
        if (how == SIM_POWER_CUT && medium->last_user_number == process->number)
            medium->power_cut(medium);
    }
    task_pool_abandon(loop->tasks);
    loop_done(loop);
    TAILQ_REMOVE(&world->processes, process, link);
    free(process);
}

void sim_process_stall(struct loop *loop, uint64_t duration_ns)
{
    struct sim_process *process = sim_process_of(loop);
    struct sim_world *world = process->world;
    struct sim_event *event, *next;
    assert(world->running != process);
    process->stalled_until_ns = world->now_ns + duration_ns;
    RB_FOREACH_SAFE (event, sim_event_tree, &world->events, next) {
        if (event->process != process || event->time_ns >= process->stalled_until_ns)
            continue;
        sim_event_cancel(world, event);
        sim_event_add(process, event, 0); /* behind where we are */
    }
}

void sim_process_slow_disk(struct loop *loop, uint64_t max_ns)
{
    sim_process_of(loop)->slow_max_ns = max_ns;
}

void sim_process_step_wall(struct loop *loop, int64_t by_ns)
{
    sim_process_of(loop)->wall_offset_ns += (uint64_t)by_ns;
}

void sim_process_set_clock(struct loop *loop, uint64_t ahead_ns, int32_t ppm)
{
    struct sim_process *process = sim_process_of(loop);
    assert(ppm >= -SIM_CLOCK_PPM_MAX && ppm <= SIM_CLOCK_PPM_MAX);
    process->clock_ns = now_ns(loop) + ahead_ns;
    process->clock_set_ns = process->world->now_ns;
    process->clock_ppm = ppm;
    if (process->timer.is_pending)
        arm(loop, process->deadline_ns);
}

/* --- media --- */

struct sim_medium *sim_medium_find(const struct sim_world *world, const char *path)
{
    struct sim_medium *medium;
    TAILQ_FOREACH (medium, &world->media, link) {
        if (strcmp(medium->path, path) == 0)
            return medium;
    }
    return NULL;
}

void sim_medium_add(struct sim_world *world, struct sim_medium *medium, const char *path)
{
    size_t size = strlen(path) + 1;
    medium->path = sim_alloc(size);
    memcpy(medium->path, path, size);
    TAILQ_INSERT_TAIL(&world->media, medium, link);
}

static void medium_free(struct sim_world *world, struct sim_medium *medium)
{
    assert(medium->user == NULL);
    TAILQ_REMOVE(&world->media, medium, link);
    free(medium->path);
    medium->free(medium);
}

void sim_media_remove(struct sim_world *world, const char *path)
{
    struct sim_medium *medium = sim_medium_find(world, path);
    if (medium != NULL)
        medium_free(world, medium);
}

void sim_power_cut_media(struct sim_world *world, const char *prefix)
{
    struct sim_medium *medium;
    TAILQ_FOREACH (medium, &world->media, link) {
        if (medium->user == NULL && strncmp(medium->path, prefix, strlen(prefix)) == 0)
            medium->power_cut(medium);
    }
}

void sim_handle_add(struct sim_process *process, struct sim_handle *handle,
                    struct sim_medium *medium)
{
    assert(medium->user == NULL);
    medium->user = process;
    medium->last_user_number = process->number;
    handle->medium = medium;
    handle->process = process;
    TAILQ_INSERT_TAIL(&process->handles, handle, link);
}

void sim_handle_remove(struct sim_handle *handle)
{
    handle->medium->user = NULL;
    TAILQ_REMOVE(&handle->process->handles, handle, link);
}

/* --- the world --- */

struct sim_world *sim_world_create(uint64_t seed)
{
    struct sim_world *world = sim_alloc(sizeof *world);
    random_seed(world, seed);
    RB_INIT(&world->events);
    TAILQ_INIT(&world->processes);
    TAILQ_INIT(&world->media);
    TAILQ_INIT(&world->listeners);
    TAILQ_INIT(&world->blocked);
    world->fail_nth = -1;
    world->faults.latency_min_ns = 20 * NS_PER_US;
    world->faults.latency_max_ns = 200 * NS_PER_US;
    world->faults.net_latency_min_ns = 50 * NS_PER_US;
    world->faults.net_latency_max_ns = 300 * NS_PER_US;
    return world;
}

void sim_world_destroy(struct sim_world *world)
{
    struct sim_process *process;
    while ((process = TAILQ_FIRST(&world->processes)) != NULL)
        sim_process_end(&process->loop, SIM_KILL);
    assert(RB_EMPTY(&world->events));
    struct sim_medium *medium;
    while ((medium = TAILQ_FIRST(&world->media)) != NULL)
        medium_free(world, medium);
    sim_net_free_world(world);
    free(world);
}

void sim_world_seed(struct sim_world *world, uint64_t seed)
{
    random_seed(world, seed);
}

uint64_t sim_world_now_ns(const struct sim_world *world)
{
    return world->now_ns;
}

struct sim_faults *sim_world_faults(struct sim_world *world)
{
    return &world->faults;
}

bool sim_world_step(struct sim_world *world)
{
    struct sim_event *event = RB_MIN(sim_event_tree, &world->events);
    if (event == NULL)
        return false;
    assert(world->running == NULL);
    sim_event_cancel(world, event);
    assert(event->time_ns >= world->now_ns);
    world->now_ns = event->time_ns;
    world->running = event->process;
    event->run(event); /* event may be gone */
    world->running = NULL;
    return true;
}

bool sim_world_run_until(struct sim_world *world, const bool *flag, uint64_t limit_ns)
{
    uint64_t end_ns;
    if (!add_u64(world->now_ns, limit_ns, &end_ns))
        end_ns = UINT64_MAX;
    while (!*flag) {
        const struct sim_event *next = RB_MIN(sim_event_tree, &world->events);
        if (next == NULL)
            return false;
        if (next->time_ns > end_ns) {
            world->now_ns = end_ns;
            return false;
        }
        sim_world_step(world);
    }
    return true;
}
