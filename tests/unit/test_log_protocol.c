/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Schedules that lose data if a rule of the log is missing, as stories of a log and its
 * members. doc/testing.md has the whole list, with those that other tests reach.
 */
#include "tests/unit/log_machine.h"

#define MEMBERS IN_GROUP /* nodes 1 to 3 */
#define OWNER   4U       /* has none of the copies, so that all of them can go down */

/* What is on its way to members still gets there. */
static async void owner_dies(struct test *t)
{
    log_abandon(take(t->log));
}

static void restart_member(struct test *t, uint64_t node, enum sim_end how)
{
    fake_restart(&t->media[node - 1], t->world, how);
    waitlist_wake_all(&member_of(t, node)->quiet);
}

static void restart_all(struct test *t, enum sim_end how)
{
    for (uint64_t node = 1; node <= MEMBERS; node++)
        restart_member(t, node, how);
}

/* The current extent ends as if it were full, and the next one gets some. */
static async void roll(struct test *t)
{
    CHECK_SOON(!address_is_null(log_end_extent(t->log)), NS_PER_S);
    load_for(t, 20 * NS_PER_MS);
}

/* --- rot --- */

/* The scan of a restart ended in the middle of what had been flushed. */
static void rot(struct test *t, uint64_t node, struct address extent)
{
    struct fake_extent *e = fake_find(&t->media[node - 1], extent);
    const struct fake_append *data = e->appends;
    CHECK_EQ(e->state, EXTENT_STOPPED);
    while (data->block + data->blocks < e->length / 2)
        data = data->next;
    e->length = data->block;
    e->is_rotten = true;
}

/* Recovery: what rotted is copied from the one that is sound. */
static void mend(struct test *t, uint64_t node, uint64_t from)
{
    const struct cluster_disk *disk = disk_state(t);
    struct fake_medium *medium = &t->media[node - 1];
    for (uint32_t i = 0; i < medium->count; i++) {
        struct fake_extent *e = &medium->extents[i];
        const struct log_extent *listed = fake_listed(disk, e->extent);
        if (!e->is_rotten)
            continue;
        CHECK(listed != NULL && listed->final);
        fake_install(e, fake_find(&t->media[from - 1], e->extent), listed->length);
        e->is_rotten = false;
    }
}

/* All that is in reach rotted within what was flushed. That this was flushed says only
 * the checkpoint: no batch has come since, and the roots name what is missing. */
static async void rot_then_take_over(struct test *t)
{
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    checkpoint(t);
    uint64_t covers = disk_state(t)->checkpoint.covers;
    struct address extent = disk_state(t)->extents[0].extent;
    CHECK_EQ(covers, t->committed);
    owner_dies(t);
    restart_all(t, SIM_KILL);
    rot(t, 1, extent);
    rot(t, 2, extent);
    uint32_t sound = fake_find(&t->media[2], extent)->length;
    silence_member(t, 3, true);
    CHECK_EQ(open_on(t, OWNER, false), -PLX_EDAMAGED);
    CHECK(strstr(t->err.text, "must hold batches up to") != NULL);
    member_returns(t, 3);
    CHECK_EQ(open_on(t, OWNER, false), 0);
    const struct log_extent *listed = fake_listed(disk_state(t), extent);
    CHECK(listed->final && listed->length == sound && listed->last_number == covers);
    mend(t, 1, 3);
    mend(t, 2, 3);
}

/* --- loss of power --- */

/* Of all stores, but the owner lives: it has what they lost. */
static async void power_lost_at_members(struct test *t)
{
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 100 * NS_PER_MS);
    restart_all(t, SIM_POWER_CUT);
    CHECK_EQ(flush(t), 0);
    CHECK_EQ(log_flushed_number(t->log), t->committed);
    owner_dies(t);
    restart_all(t, SIM_POWER_CUT);
    CHECK_EQ(open_on(t, OWNER, false), 0);
    CHECK_EQ(t->replayed, t->committed);
}

/* Of everything, with three extents unflushed at once: they keep what they happen to. */
static async void power_lost_with_three(struct test *t)
{
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 20 * NS_PER_MS);
    roll(t);
    roll(t);
    CHECK_EQ(log_flushed_number(t->log), 0);
    bool is_flushed = sim_world_random(t->world, 2) == 0;
    if (is_flushed) {
        CHECK_EQ(flush(t), 0);
        load_for(t, 20 * NS_PER_MS);
        roll(t);
        roll(t);
    }
    uint64_t flushed = log_flushed_number(t->log), sealed = log_last_number(t->log);
    CHECK(!is_flushed || flushed > 0);
    owner_dies(t);
    restart_all(t, SIM_POWER_CUT);
    CHECK_EQ(open_on(t, OWNER, false), 0);
    CHECK(t->replayed >= flushed && t->replayed <= sealed);
    CHECK_EQ(t->replayed_count, t->replayed); /* from the first on, without a gap */
    t->committed = t->replayed;
}

/* What they have been asked until now they answer late. */
static void answered_late(struct task_call *call)
{
    struct test *t = container_of(call, struct test, side_call);
    task_sleep_ns(50 * NS_PER_MS);
    for (uint64_t node = 2; node <= MEMBERS; node++)
        member_of(t, node)->delay_ns = 0;
}

/* A restart cost one copy its end, and it answers at once; the others take their time. */
static async void lost_tail_answers_first(struct test *t)
{
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 100 * NS_PER_MS);
    owner_dies(t);
    restart_member(t, 1, SIM_POWER_CUT);
    uint64_t late_ns = sim_world_random(t->world, 20 * NS_PER_S);
    for (uint64_t node = 2; node <= MEMBERS; node++)
        member_of(t, node)->delay_ns = late_ns;
    t->side_call = (struct task_call){.main = answered_late, .name = "side"};
    task_start(t->loop, &t->side_call);
    CHECK_EQ(open_on(t, OWNER, false), 0);
    CHECK_EQ(t->replayed, t->committed);
}

/* A member loses its power twice while nothing is written, and answers both times. */
static async void restarted_twice(struct test *t)
{
    enum sim_end second = sim_world_random(t->world, 2) == 0 ? SIM_KILL : SIM_POWER_CUT;
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 100 * NS_PER_MS);
    restart_member(t, 2, SIM_POWER_CUT);
    task_sleep_ns(sim_world_random(t->world, 10 * NS_PER_MS));
    restart_member(t, 2, second);
    append(t);
    CHECK_SOON(t->outstanding == 0, ROLL_NS);
    CHECK_EQ(flush(t), 0);
    load_for(t, 20 * NS_PER_MS);
    owner_dies(t);
    silence_member(t, 1, true);
    silence_member(t, 3, true);
    t->min_copies = 1;
    struct log_extent last = disk_state(t)->extents[disk_state(t)->extent_count - 1];
    CHECK(fake_is_in(&last, 2));
    for (uint64_t node = 1; node <= MEMBERS; node += 2) {
        struct cluster_command gone = {
            .op = CLUSTER_NODE_GONE, .node = node, .force = true, .data_loss = true};
        set_flags(t, node, NODE_DOWN);
        CHECK_EQ(submit(t, &gone), 0);
    }
    CHECK_EQ(open_on(t, OWNER, false), 0);
    CHECK_EQ(t->replayed, t->committed); /* in an extent that it never lost */
}

/* --- two take-overs --- */

/* The first one sees two members that lost their ends, and writes on. The second one sees
 * the third, which has all that the former owner wrote: those numbers are others' now. */
static async void others_in_reach(struct test *t)
{
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 20 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    uint64_t flushed = log_flushed_number(t->log);
    load_for(t, 20 * NS_PER_MS);
    roll(t);
    roll(t);
    uint64_t sealed = log_last_number(t->log);
    owner_dies(t);
    restart_member(t, 1, SIM_POWER_CUT);
    restart_member(t, 2, SIM_POWER_CUT);
    restart_member(t, 3, SIM_KILL);
    silence_member(t, 3, true);
    CHECK_EQ(open_on(t, OWNER, false), 0);
    CHECK(t->replayed >= flushed && t->replayed < sealed);
    t->committed = t->replayed;
    for (uint32_t i = 0; i < 3; i++) {
        append(t);
        CHECK_SOON(t->outstanding == 0, 5 * NS_PER_S);
    }
    CHECK(t->committed > t->replayed && t->committed < sealed);
    owner_dies(t);
    member_returns(t, 3);
    silence_member(t, 1 + sim_world_random(t->world, 2), true);
    CHECK_EQ(open_on(t, OWNER, false), 0);
    CHECK_EQ(t->replayed, t->committed);
    CHECK_EQ(t->replayed_count, t->replayed);
}

/* A forced roll is under way, part of it on some members, when the owner dies, and then
 * one of those. */
static async void roll_half_done(struct test *t)
{
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 20 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    load_for(t, 100 * NS_PER_MS);
    kill_member(t, 3);
    member_of(t, 1)->delay_ns = sim_world_random(t->world, 20 * NS_PER_MS);
    append(t);
    task_sleep_ns(sim_world_random(t->world, 8 * ROLL_NS));
    owner_dies(t);
    member_of(t, 1)->delay_ns = 0;
    member_returns(t, 3);
    silence_member(t, 1 + sim_world_random(t->world, 2), true);
    CHECK_EQ(open_on(t, OWNER, false), 0);
    CHECK(t->replayed >= t->committed);
}

/* Nobody hears what became of half of the commands. Some are carried out late, when the
 * next owner is there, or the one after it. */
static async void outcomes_lost(struct test *t)
{
    int rc = -PLX_EUNKNOWN;
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 20 * NS_PER_MS);
    roll(t);
    t->cluster->lose_percent = 50;
    roll(t);
    for (uint32_t i = 0; i < 3; i++) {
        owner_dies(t);
        for (uint32_t tries = 0; tries < 100; tries++) {
            uint64_t node = sim_world_random(t->world, 2) == 0 ? OWNER : 1;
            rc = open_on(t, node, true);
            if (rc == 0)
                break;
            task_sleep_ns(sim_world_random(t->world, 2 * NS_PER_S));
        }
        CHECK_EQ(rc, 0);
        CHECK_EQ(t->replayed, t->committed);
        CHECK_EQ(t->replayed_count, t->replayed);
        append(t);
        CHECK_SOON(t->outstanding == 0, 60 * NS_PER_S);
        if (t->failures > 0) /* a lease that was asked for before came late */
            CHECK_EQ(t->failure, -PLX_EEPOCH);
    }
    CHECK(t->cluster->losses > 0);
}

/* --- after a checkpoint --- */

/* All that was written has left the list; what comes next is numbered on. */
static async void nothing_since(struct test *t)
{
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 20 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    struct address extent = log_end_extent(t->log);
    CHECK(!address_is_null(extent));
    for (uint32_t i = 0; i < 20 && is_listed(t, extent); i++) {
        checkpoint(t);
        task_sleep_ns(100 * NS_PER_MS);
    }
    CHECK(!is_listed(t, extent));
    CHECK_EQ(disk_state(t)->checkpoint.covers, t->committed);
    owner_dies(t);
    CHECK_EQ(open_on(t, OWNER, false), 0);
    uint64_t committed = t->committed;
    append(t);
    CHECK_SOON(t->outstanding == 0, NS_PER_S);
    CHECK_EQ(t->committed, committed + 1);
}

/* --- former owners --- */

#define WEEKS_NS (21 * 24 * 3600 * NS_PER_S)

struct former {
    struct task_call call;
    struct test *t;
    struct disk_log *log;
    struct cluster *knows;
    uint64_t until_ns;
    bool is_over;
};

/* It hears of nothing any more. */
static void leave(struct test *t, struct former *former)
{
    *former = (struct former){.t = t, .log = take(t->log), .knows = t->cluster};
    t->cluster = fake_cluster_leave(t->cluster);
}

/* Nothing that it does is acknowledged, and it knows in the end. */
static async void wake(struct test *t, struct former *former)
{
    uint64_t committed = t->committed;
    uint32_t failures = t->failures;
    append_to(t, former->log, false);
    append_to(t, former->log, false);
    CHECK_SOON(t->outstanding == 0, 20 * NS_PER_S);
    CHECK_EQ(t->committed, committed);
    CHECK_EQ(t->failures, failures + 2);
    CHECK_EQ(t->failure, -PLX_EEPOCH);
    if (log_flushed_number(former->log) < log_committed_number(former->log))
        CHECK_EQ(flush_of(former->log), -PLX_EEPOCH);
    log_abandon(take(former->log));
    fake_cluster_destroy(take(former->knows));
}

/* For weeks it had nothing to do, and heard of nothing. It goes on in the extent that it
 * had, or in the one that it had opened ahead; they have ended, or are gone. */
static async void weeks_later(struct test *t)
{
    struct former former;
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    leave(t, &former);
    CHECK_EQ(open_on(t, 1, true), 0);
    CHECK_EQ(t->replayed, t->committed);
    bool is_closed = sim_world_random(t->world, 2) == 0;
    if (is_closed) {
        load_for(t, 20 * NS_PER_MS);
        CHECK_EQ(flush(t), 0);
        checkpoint(t);
        CHECK_EQ(log_close(take(t->log), &t->err), 0);
        task_sleep_ns(WEEKS_NS);
    }
    if (sim_world_random(t->world, 2) == 0)
        CHECK(!address_is_null(log_end_extent(former.log)));
    wake(t, &former);
}

static void slow_main(struct task_call *call)
{
    struct former *former = container_of(call, struct former, call);
    struct test *t = former->t;
    while (now_ns(t) < former->until_ns) {
        if (t->outstanding < OUTSTANDING)
            append_to(t, former->log, false);
        if (sim_world_random(t->world, 4) == 0)
            (void)log_end_extent(former->log);
        task_sleep_ns(200 * NS_PER_US);
    }
    former->is_over = true;
}

/* It is only slow, and writes all the time while another one takes over. Now and then it
 * goes on to an extent that it had opened ahead. */
static async void slow_owner(struct test *t)
{
    struct former former;
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 50 * NS_PER_MS);
    leave(t, &former);
    former.until_ns = now_ns(t) + NS_PER_S;
    former.call = (struct task_call){.main = slow_main, .name = "slow"};
    task_start(t->loop, &former.call);
    task_sleep_ns(sim_world_random(t->world, 20 * NS_PER_MS));
    CHECK_EQ(open_on(t, 1, true), 0);
    CHECK_SOON(former.is_over && t->outstanding == 0, 20 * NS_PER_S);
    CHECK(t->committed <= t->replayed);
    wake(t, &former);
}

/* --- members that are lost, or full --- */

/* An extent is opened ahead on two members, which die for ever before it is used. */
static async void ahead_is_lost(struct test *t)
{
    uint64_t lacking;
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 20 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    CHECK(!address_is_null(log_end_extent(t->log)));
    silence_member(t, 3, true);
    append(t); /* waits for node 3, and nobody is told */
    CHECK_SOON((open_extents(t, &lacking, 3), lacking > 0), 500 * NS_PER_MS);
    task_sleep_ns(sim_world_random(t->world, 2 * NS_PER_MS));
    owner_dies(t);
    member_returns(t, 3);
    t->min_copies = 1;
    for (uint64_t node = 1; node <= 2; node++) {
        struct cluster_command gone = {
            .op = CLUSTER_NODE_GONE, .node = node, .force = true, .data_loss = true};
        silence_member(t, node, true);
        set_flags(t, node, NODE_DOWN);
        CHECK_EQ(submit(t, &gone), 0);
    }
    CHECK_EQ(open_on(t, OWNER, false), 0);
    CHECK(t->replayed >= t->committed);
}

/* What was acknowledged has to be written again, and the stores are full but for what
 * they keep for this. */
static async void full_at_take_over(struct test *t)
{
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    load_for(t, 2 * NS_PER_MS);
    owner_dies(t);
    silence_member(t, 3, true); /* nobody knows what it has */
    for (uint32_t i = 0; i < MEMBERS; i++)
        t->media[i].limit_blocks = t->media[i].used_blocks * 10 / 9;
    CHECK_EQ(open_on(t, OWNER, false), 0);
    CHECK_EQ(t->replayed, t->committed);
    append(t);
    CHECK_SOON(t->outstanding == 0, 20 * NS_PER_S);
    CHECK(t->failures == 1 && t->failure == -PLX_EFULL);
    for (uint32_t i = 0; i < MEMBERS; i++)
        t->media[i].limit_blocks = UINT32_MAX;
}

/* Two members have no room for two batches, and say so; the third one has written both,
 * and is not heard. So their numbers must not come again with other bytes: the second of
 * them would be replayed behind what was written later. */
static async void full_here_unknown_there(struct test *t)
{
    uint8_t last[BLOCK_SIZE];
    CHECK_EQ(open_on(t, OWNER, false), 0);
    load_for(t, 20 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    silence_member(t, 3, false);
    member_of(t, 3)->is_mute = true;
    member_of(t, 3)->timeout_ns = 100 * NS_PER_MS;
    for (uint32_t i = 0; i < 2; i++)
        t->media[i].limit_blocks = t->media[i].used_blocks;
    t->watched_key = 5000;
    append_block(t, t->log, t->watched_key, 1, 1, false);
    append_block(t, t->log, t->watched_key, 2, 2, false);
    task_sleep_ns(NS_PER_S);
    for (uint32_t i = 0; i < 2; i++)
        t->media[i].limit_blocks = UINT32_MAX;
    member_returns(t, 3);
    append_block(t, t->log, t->watched_key, 3, 2, false);
    uint64_t begun_ns = now_ns(t);
    while (t->outstanding > 0) {
        CHECK(now_ns(t) - begun_ns < 20 * NS_PER_S);
        task_sleep_ns(20 * NS_PER_US);
    }
    owner_dies(t); /* before the extent that was left has a length */
    CHECK_EQ(open_on(t, OWNER, false), 0);
    memset(last, 3, sizeof last);
    CHECK_EQ(t->watched_crc, crc32c(last, sizeof last));
    CHECK_EQ(t->replayed, t->committed);
}

static const struct story STORIES[] = {
    {"rot, then a take-over", rot_then_take_over},
    {"power lost at the members", power_lost_at_members},
    {"power lost with three extents", power_lost_with_three},
    {"a lost tail answers first", lost_tail_answers_first},
    {"restarted twice", restarted_twice},
    {"others in reach", others_in_reach},
    {"a roll half done", roll_half_done},
    {"outcomes lost", outcomes_lost},
    {"nothing since the checkpoint", nothing_since},
    {"weeks later", weeks_later},
    {"a slow owner", slow_owner},
    {"what is ahead is lost", ahead_is_lost},
    {"full at the take-over", full_at_take_over},
    {"full here, unknown there", full_here_unknown_there},
};

int main(int argc, char **argv)
{
    return run_stories(STORIES, ARRAY_LEN(STORIES), argc, argv);
}
