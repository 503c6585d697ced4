/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A cluster (replication/cluster.h) that is nothing but its state: a command takes a
 * moment, and then it is applied. It can be without a leader, and lose answers. A node
 * may hear of nothing any more, as if it stood still. A test that includes this is linked
 * without the real one.
 */
#ifndef PARALLAX_TESTS_UNIT_FAKE_CLUSTER_H
#define PARALLAX_TESTS_UNIT_FAKE_CLUSTER_H

#include "replication/cluster.h"
#include "runtime/sim.h"
#include "tests/unit/check.h"

struct cluster {
    struct loop *loop;
    struct sim_world *world;
    struct cluster_state *state;
    struct cluster *others; /* this is what a node that hears of nothing knows of them */
    uint64_t latency_ns;
    bool has_no_leader;
    uint32_t lose_percent; /* answers; the command may be carried out, or not, or late */
    uint64_t submits, losses, preconditions; /* that were not met */
    TAILQ_HEAD(, cluster_watcher) watchers;
};

static inline struct cluster *fake_cluster_create(struct loop *loop,
                                                  struct sim_world *world)
{
    struct cluster *cluster = calloc(1, sizeof *cluster);
    CHECK(cluster != NULL);
    cluster->loop = loop;
    cluster->world = world;
    cluster->state = cluster_state_create();
    cluster->latency_ns = NS_PER_MS;
    TAILQ_INIT(&cluster->watchers);
    return cluster;
}

static inline void fake_cluster_destroy(struct cluster *cluster)
{
    CHECK(TAILQ_EMPTY(&cluster->watchers));
    cluster_state_destroy(cluster->state);
    free(cluster);
}

/* Whoever uses it hears of nothing from now on. What it submits is carried out by the
 * others: that is what is returned. */
static inline struct cluster *fake_cluster_leave(struct cluster *deaf)
{
    struct cluster *others = fake_cluster_create(deaf->loop, deaf->world);
    struct writer bytes = {0};
    struct error err;
    cluster_state_encode(deaf->state, &bytes);
    cluster_state_destroy(others->state);
    others->state = deaf->state;
    CHECK_EQ(cluster_state_decode(bytes.bytes, bytes.len, &deaf->state, &err), 0);
    writer_done(&bytes);
    deaf->others = others;
    return others;
}

const struct cluster_state *cluster_state(const struct cluster *cluster)
{
    return cluster->state;
}

int cluster_failure(const struct cluster *cluster)
{
    (void)cluster;
    return 0;
}

bool cluster_outcome_is_unknown(int code)
{
    return code == -PLX_EUNKNOWN;
}

void cluster_on_apply(struct cluster *cluster, struct cluster_watcher *watcher)
{
    TAILQ_INSERT_TAIL(&cluster->watchers, watcher, link);
}

void cluster_off_apply(struct cluster *cluster, struct cluster_watcher *watcher)
{
    TAILQ_REMOVE(&cluster->watchers, watcher, link);
}

static inline void fake_apply(struct cluster *cluster, const struct writer *bytes,
                              struct cluster_result *ret)
{
    uint64_t index = cluster_state_applied(cluster->state) + 1;
    cluster_state_apply(cluster->state, index, bytes->bytes, bytes->len, ret);
    ret->index = index;
    cluster->preconditions += ret->code == -PLX_EPRECONDITION;
    struct cluster_watcher *watcher, *next;
    TAILQ_FOREACH_SAFE (watcher, &cluster->watchers, link, next)
        watcher->applied(watcher);
}

struct fake_late {
    struct timer timer;
    struct cluster *cluster;
    struct writer bytes;
};

static inline void fake_late_fired(struct timer *timer)
{
    struct fake_late *late = container_of(timer, struct fake_late, timer);
    struct cluster_result ignored;
    fake_apply(late->cluster, &late->bytes, &ignored);
    writer_done(&late->bytes);
    free(late);
}

/* Nobody hears what becomes of it: it is carried out, or is not, or a while later. */
static inline void fake_lose(struct cluster *cluster, struct writer *bytes)
{
    struct cluster_result ignored;
    uint64_t how = sim_world_random(cluster->world, 3);
    cluster->losses++;
    if (how == 0) {
        fake_apply(cluster, bytes, &ignored);
    } else if (how == 1) {
        struct fake_late *late = calloc(1, sizeof *late);
        late->timer.fire = fake_late_fired;
        late->cluster = cluster;
        late->bytes = *bytes;
        *bytes = (struct writer){0};
        timer_start(cluster->loop, &late->timer,
                    sim_world_random(cluster->world, 3 * NS_PER_S));
    }
}

async int cluster_submit(struct cluster *cluster, const struct cluster_command *command,
                         struct cluster_result *ret_result)
{
    struct cluster_command numbered = *command;
    struct writer bytes = {0};
    if (cluster->others != NULL)
        return cluster_submit(cluster->others, command, ret_result);
    numbered.client = 0; /* in any order */
    cluster_command_encode(&numbered, &bytes);
    cluster->submits++;
    task_sleep_ns(cluster->latency_ns +
                  sim_world_random(cluster->world, cluster->latency_ns));
    *ret_result = (struct cluster_result){.code = -PLX_ENOLEADER};
    snprintf(ret_result->text, sizeof ret_result->text, "nobody leads");
    uint64_t begun_ns = loop_now_ns(cluster->loop);
    while (cluster->has_no_leader &&
           loop_now_ns(cluster->loop) - begun_ns < CLUSTER_SUBMIT_MS * NS_PER_MS)
        task_sleep_ns(10 * NS_PER_MS);
    if (!cluster->has_no_leader &&
        sim_world_random(cluster->world, 100) < cluster->lose_percent) {
        fake_lose(cluster, &bytes);
        ret_result->code = -PLX_EUNKNOWN;
        snprintf(ret_result->text, sizeof ret_result->text, "nobody knows");
    } else if (!cluster->has_no_leader) {
        fake_apply(cluster, &bytes, ret_result);
    }
    writer_done(&bytes);
    return ret_result->code;
}

#endif
