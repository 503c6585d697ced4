/* SPDX-License-Identifier: Apache-2.0 */
/* A lease that goes from owner to owner, with members that are silent, or lost. */
#include "tests/unit/log_machine.h"

/* It is another's: the log knows without asking anybody. */
static async void lease_is_lost(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    struct cluster_command take_it = {.op = CLUSTER_LEASE_TAKE,
                                      .disk = t->disk,
                                      .epoch = disk_state(t)->epoch,
                                      .node = 2,
                                      .force = true};
    CHECK_EQ(submit(t, &take_it), 0);
    task_sleep_ns(NS_PER_US);
    CHECK_EQ(t->downs, 1);
    CHECK_EQ(t->failure, -PLX_EEPOCH);
    append(t);
    CHECK_SOON(t->outstanding == 0, NS_PER_MS);
    CHECK_EQ(t->failures, 1);
    CHECK_EQ(flush(t), -PLX_EEPOCH);
    log_abandon(take(t->log));
    t->node = 2;
}

/* Of a node that is up only if somebody insists; the old owner gets nothing through. */
static async void taken_over(struct test *t)
{
    bool is_down = sim_world_random(t->world, 2) == 0;
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    log_abandon(take(t->log)); /* as when it dies */
    CHECK_EQ(open_on(t, 2, false), -PLX_EOWNED);
    CHECK(strstr(t->err.text, "node 1") != NULL);
    if (is_down)
        set_flags(t, 1, NODE_DOWN);
    CHECK_EQ(open_on(t, 2, !is_down), 0);
    CHECK(t->replayed >= t->committed);
    CHECK_EQ(disk_state(t)->owner, 2);
}

/* All that could have more are silent: it says for whom it waits. Then they are lost. */
static async void taken_over_lost(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    log_abandon(take(t->log));
    fake_restart(&t->media[0], t->world, SIM_KILL);
    silence_member(t, 2, true);
    silence_member(t, 3, true);
    uint64_t begun_ns = now_ns(t);
    CHECK_EQ(open_on(t, 1, false), -EHOSTUNREACH);
    CHECK(now_ns(t) - begun_ns < 130 * NS_PER_S);
    CHECK(strstr(t->err.text, "node 2, 3") != NULL);
    t->min_copies = 1;
    for (uint64_t node = 2; node <= 3; node++) {
        struct cluster_command gone = {
            .op = CLUSTER_NODE_GONE, .node = node, .force = true};
        set_flags(t, node, NODE_DOWN);
        CHECK_EQ(submit(t, &gone), 0);
    }
    begun_ns = now_ns(t);
    uint64_t sequence = next_sequence(t);
    CHECK_EQ(open_on(t, 1, false), 0);
    CHECK(now_ns(t) - begun_ns < NS_PER_S);
    CHECK(t->replayed >= t->committed);
    CHECK_EQ(next_sequence(t), sequence); /* all that are left have it */
}

/* Declared lost while it is waited for. */
static async void lost_meanwhile_side(struct test *t)
{
    task_sleep_ns(5 * NS_PER_S);
    t->min_copies = 2;
    struct cluster_command gone = {.op = CLUSTER_NODE_GONE, .node = 3, .force = true};
    set_flags(t, 3, NODE_DOWN);
    CHECK_EQ(submit(t, &gone), 0);
}

static void side_main(struct task_call *call)
{
    lost_meanwhile_side(container_of(call, struct test, side_call));
}

static async void lost_meanwhile(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    log_abandon(take(t->log));
    for (uint32_t i = 0; i < 2; i++)
        fake_restart(&t->media[i], t->world, SIM_KILL);
    silence_member(t, 3, true);
    t->side_call = (struct task_call){.main = side_main, .name = "side"};
    task_start(t->loop, &t->side_call);
    uint64_t begun_ns = now_ns(t);
    CHECK_EQ(open_on(t, 1, false), 0);
    CHECK(now_ns(t) - begun_ns < 7 * NS_PER_S && now_ns(t) - begun_ns > 4 * NS_PER_S);
    CHECK(t->replayed >= t->committed);
}

/* What was found must be written again, and there are too few for that. */
static async void again_too_few(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    append(t);
    task_sleep_ns(5 * NS_PER_MS);
    log_abandon(take(t->log));
    silence_member(t, 2, true);
    silence_member(t, 3, true);
    fake_owner_gone(&t->media[0]);
    uint64_t begun_ns = now_ns(t);
    CHECK_EQ(open_on(t, 1, false), -ETIMEDOUT);
    CHECK(now_ns(t) - begun_ns < 130 * NS_PER_S);
    CHECK(strstr(t->err.text, "too few") != NULL);
    member_returns(t, 2);
    member_returns(t, 3);
    CHECK_EQ(open_on(t, 1, false), 0);
    CHECK(t->replayed >= t->committed);
}

static void all_return(struct task_call *call)
{
    struct test *t = container_of(call, struct test, side_call);
    task_sleep_ns(5 * NS_PER_S);
    for (uint64_t node = 1; node <= IN_GROUP; node++)
        member_returns(t, node);
}

static void silence_all(struct test *t)
{
    for (uint64_t node = 1; node <= IN_GROUP; node++)
        silence_member(t, node, true);
    for (uint64_t node = 1; node <= IN_GROUP; node++)
        member_of(t, node)->timeout_ns = NS_PER_S;
    t->side_call = (struct task_call){.main = all_return, .name = "side"};
    task_start(t->loop, &t->side_call);
}

/* Who has what is needed may be out of reach for a while. */
static async void silent_at_replay(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    log_abandon(take(t->log));
    t->opened = silence_all;
    CHECK_EQ(open_on(t, 1, false), 0);
    t->opened = NULL;
    CHECK(t->replayed >= t->committed);
}

/* A member answers when the take-over is over, and who asked may be gone: it is asked
 * nothing more. */
static async void late_answer(struct test *t)
{
    struct fake_member *late = member_of(t, 3);
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    log_abandon(take(t->log));
    late->delay_ns = 2 * NS_PER_S;
    uint32_t walks = late->walks;
    CHECK_EQ(open_on(t, 1, false), 0);
    CHECK_EQ(late->walks, walks);
    task_sleep_ns(10 * NS_PER_S);
    CHECK_EQ(late->walks, walks);
    late->delay_ns = 0;
}

static const struct story STORIES[] = {
    {"lease is lost", lease_is_lost},
    {"taken over", taken_over},
    {"taken over, members lost", taken_over_lost},
    {"lost meanwhile", lost_meanwhile},
    {"again, too few", again_too_few},
    {"silent at the replay", silent_at_replay},
    {"late answer", late_answer},
};

int main(int argc, char **argv)
{
    return run_stories(STORIES, ARRAY_LEN(STORIES), argc, argv);
}
