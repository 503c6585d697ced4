/* SPDX-License-Identifier: Apache-2.0 */
/* Runs one test body as a task on a real loop, in a folder of its own, or on a simulated
 * one, where folders are only names. */
#ifndef PARALLAX_TESTS_UNIT_ON_LOOPS_H
#define PARALLAX_TESTS_UNIT_ON_LOOPS_H

#include <ftw.h>
#include <unistd.h>

#include "runtime/runtime.h"
#include "runtime/sim.h"
#include "tests/unit/check.h"

#define BODY_LIMIT_NS (1000 * NS_PER_S)

struct body {
    struct task_call call;
    struct loop *loop;
    struct sim_world *world; /* NULL: a real loop */
    void (*run)(struct body *body);
    void *arg;
    char folder[256];
    bool is_over;
};

static inline void body_main(struct task_call *call)
{
    struct body *body = container_of(call, struct body, call);
    body->run(body);
    body->is_over = true;
    if (body->world == NULL)
        loop_stop(body->loop);
}

/* A path in the body's folder. One at a time. */
static inline const char *body_path(struct body *body, const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", body->folder, name);
    return path;
}

static inline int remove_one(const char *path, const struct stat *st, int type,
                             struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static inline void run_on_real(void (*run)(struct body *body))
{
    struct body body = {.run = run, .call = {.main = body_main, .name = "test"}};
    const char *tmp = getenv("TMPDIR");
    snprintf(body.folder, sizeof body.folder, "%s/parallax-test-XXXXXX",
             tmp != NULL ? tmp : "/tmp");
    CHECK(mkdtemp(body.folder) != NULL);
    body.loop = loop_create();
    CHECK(body.loop != NULL);
    task_start(body.loop, &body.call);
    loop_run(body.loop);
    CHECK(body.is_over);
    loop_destroy(body.loop);
    CHECK_EQ(nftw(body.folder, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

/* In a world that exists; the process is killed after the body has run. */
static inline void run_in_world(struct sim_world *world, void (*run)(struct body *body),
                                void *arg)
{
    struct body body = {.run = run,
                        .arg = arg,
                        .world = world,
                        .folder = "sim",
                        .call = {.main = body_main, .name = "test"}};
    body.loop = sim_process_create(world);
    task_start(body.loop, &body.call);
    CHECK(sim_world_run_until(world, &body.is_over, BODY_LIMIT_NS));
    sim_process_end(body.loop, SIM_KILL);
}

static inline void run_on_sim(void (*run)(struct body *body))
{
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct sim_world *world = sim_world_create(seed);
        run_in_world(world, run, NULL);
        sim_world_destroy(world);
    }
}

static inline void run_on_both(void (*run)(struct body *body))
{
    run_on_real(run);
    run_on_sim(run);
}

#endif
