/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A log and its members, one thing at a time: what each failure costs, what is waited for
 * and for how long, and what is not.
 */
#include "tests/unit/log_machine.h"

/* --- a member that dies --- */

/* Writes stand still for one roll; if nothing was under way, until it is known that there
 * is no connection any more. */
static async void dead_member(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 300 * NS_PER_MS);
    CHECK_EQ(status(t).member_count, 3);
    for (uint32_t round = 0; round < 2; round++) {
        bool is_busy = sim_world_random(t->world, 2) == 0;
        if (is_busy)
            append(t);
        task_sleep_ns(10 * NS_PER_US); /* now it is under way, and will be reset */
        kill_member(t, 3);
        load_for(t, 500 * NS_PER_MS);
        CHECK(t->stall_ns < (is_busy ? 0 : UNCONNECTED_NS) + ROLL_NS);
        CHECK_EQ(status(t).member_count, 2);
        CHECK(!is_whole(t, 2));
        member_returns(t, 3);
        task_sleep_ns(30 * NS_PER_S);
        load_for(t, 100 * NS_PER_MS);
        CHECK_EQ(status(t).member_count, 3);
    }
    CHECK(t->failures == 0 && t->downs == 0);
    CHECK_EQ(flush(t), 0);
}

/* The leader of the cluster dies with it: writes wait for the next one, and fail none. */
static async void dead_leader(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    t->cluster->has_no_leader = true;
    kill_member(t, 3);
    uint64_t away_ns = NS_PER_S + sim_world_random(t->world, 90 * NS_PER_S);
    uint64_t begun_ns = now_ns(t);
    uint64_t committed = t->committed;
    append(t);
    while (now_ns(t) - begun_ns < away_ns) {
        if (t->outstanding < OUTSTANDING)
            append(t);
        task_sleep_ns(100 * NS_PER_MS);
    }
    CHECK_EQ(t->committed, committed);
    if (away_ns > 40 * NS_PER_S)
        CHECK(strstr(status(t).text, "nobody leads") != NULL);
    t->cluster->has_no_leader = false;
    load_for(t, 300 * NS_PER_MS);
    CHECK(t->stall_ns < away_ns + NS_PER_S);
    CHECK(t->failures == 0 && t->downs == 0);
}

/* Nobody hears what became of the commands. What they opened does not stay open. */
static async void lost_answers(struct test *t)
{
    uint64_t lacking;
    CHECK_EQ(open_on(t, 1, false), 0);
    t->cluster->lose_percent = 60;
    for (uint32_t i = 0; i < 6; i++) {
        load_for(t, 50 * NS_PER_MS);
        member_of(t, 3)->fail_nth = 0; /* another roll */
        CHECK_EQ(flush(t), 0);
    }
    CHECK(t->cluster->losses > 0);
    t->cluster->lose_percent = 0;
    append(t);
    load_for(t, 12 * NS_PER_S); /* what comes late has come */
    CHECK_SOON(open_extents(t, &lacking, 1) <= 3, 20 * NS_PER_S);
    CHECK(t->failures == 0 && t->downs == 0);
    CHECK_EQ(log_close(take(t->log), &t->err), 0);
    CHECK_EQ(open_extents(t, &lacking, 1), 0);
}

static void set_group_main(struct task_call *call)
{
    struct test *t = container_of(call, struct test, side_call);
    set_group(t, IN_GROUP); /* the same, but it has another epoch */
    t->side_is_over = true;
}

/* The group changes between the choice of members and the command: they are chosen again,
 * and that is all. */
static async void chosen_again(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    t->cluster->latency_ns = 20 * NS_PER_MS;
    uint64_t before = t->cluster->preconditions;
    for (uint32_t i = 0; i < 100 && t->cluster->preconditions == before; i++) {
        t->side_is_over = false;
        t->side_call = (struct task_call){.main = set_group_main, .name = "side"};
        task_start(t->loop, &t->side_call);
        task_sleep_ns(sim_world_random(t->world, 20 * NS_PER_MS));
        member_of(t, 1)->fail_nth = 0; /* a roll: another extent is opened */
        load_for(t, 10 * NS_PER_MS);
        CHECK_SOON(t->side_is_over, NS_PER_S);
    }
    CHECK(t->cluster->preconditions > before);
    CHECK(t->failures == 0 && t->downs == 0);
}

/* No member takes anything for a while: the log goes on and on, and gives nothing up. */
static async void all_fail(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    for (uint64_t node = 1; node <= IN_GROUP; node++)
        member_of(t, node)->append_error_ppm = 1000000;
    append(t);
    task_sleep_ns(20 * NS_PER_S);
    CHECK_EQ(t->outstanding, 1);
    for (uint64_t node = 1; node <= IN_GROUP; node++)
        member_of(t, node)->append_error_ppm = 0;
    CHECK_SOON(t->outstanding == 0, 5 * NS_PER_S);
    CHECK(t->failures == 0 && t->downs == 0);
    CHECK_EQ(flush(t), 0);
}

/* --- members that are silent, or slow --- */

static async void silent_member(struct test *t)
{
    uint64_t limit_ns = LOG_APPEND_LIMIT_MS * NS_PER_MS;
    uint64_t node = 1 + sim_world_random(t->world, 3); /* also the one that is here */
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    silence_member(t, node, false);
    load_for(t, 3 * NS_PER_S);
    CHECK(t->stall_ns >= limit_ns);
    CHECK(t->stall_ns < limit_ns + LOG_CREATE_LIMIT_MS * NS_PER_MS + 300 * NS_PER_MS);
    CHECK(t->failures == 0 && t->downs == 0);
    CHECK_EQ(status(t).member_count, 2);
    uint64_t begun_ns = now_ns(t);
    member_returns(t, node);
    log_abandon(take(t->log));
    /* What the store here has begun is waited for, others are not. */
    if (node != 1)
        CHECK(now_ns(t) - begun_ns < 100 * NS_PER_MS);
}

/* Only a sync: its limit is another one. */
static async void slow_sync(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    append(t);
    task_sleep_ns(10 * NS_PER_MS);
    uint64_t begun_ns = now_ns(t);
    silence_member(t, 2, true);
    CHECK_EQ(flush(t), 0);
    uint64_t limit_ns = LOG_SYNC_LIMIT_MS * NS_PER_MS;
    CHECK(now_ns(t) - begun_ns >= limit_ns);
    CHECK(now_ns(t) - begun_ns < limit_ns + 300 * NS_PER_MS);
}

/* The log cannot do without it: it is waited for, and nothing is rolled. */
static async void slow_and_needed(struct test *t)
{
    t->min_copies = 3;
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    uint32_t extents = disk_state(t)->extent_count;
    CHECK_EQ(status(t).waiting_ns, 0);
    CHECK_EQ(status(t).text[0], '\0');
    member_of(t, 2)->delay_ns = 4 * NS_PER_S;
    append(t);
    task_sleep_ns(3 * NS_PER_S);
    CHECK_EQ(t->outstanding, 1);
    CHECK(strstr(status(t).text, "node 2") != NULL);
    CHECK(status(t).waiting_ns > 2 * NS_PER_S);
    task_sleep_ns(2 * NS_PER_S);
    CHECK_EQ(t->outstanding, 0);
    CHECK_EQ(t->moved, 0);
    CHECK_EQ(disk_state(t)->extent_count, extents);
    member_returns(t, 2);
}

/* Fills the pool but for so many bytes, with the smallest buffer last. */
static uint32_t hog(struct test *t, uint64_t left, struct buffer *ret_hogs[128])
{
    uint32_t count = 0;
    uint64_t limit = buffer_pool_limit_bytes(t->pool);
    for (uint64_t size = BUFFER_BYTES_MAX; size >= BLOCK_SIZE; size /= 4)
        while (buffer_pool_used_bytes(t->pool) + size + left <= limit)
            ret_hogs[count++] = buffer_create(t->pool, size);
    return count;
}

/* Of a roll record nobody hears, and of what comes behind it one does; by then the extent
 * has ended. What is in it goes elsewhere. */
static async void roll_unheard(struct test *t)
{
    struct buffer *hogs[128];
    t->min_copies = 3;
    CHECK_EQ(open_on(t, 1, false), 0);
    for (uint32_t i = 0; i < 2; i++) { /* then more than one is opened ahead */
        load_for(t, 20 * NS_PER_MS);
        CHECK_EQ(flush(t), 0);
        CHECK_SOON(!address_is_null(log_end_extent(t->log)), NS_PER_S);
    }
    silence_member(t, 2, false);
    member_of(t, 2)->is_mute = true;
    member_of(t, 2)->timeout_ns = 100 * NS_PER_MS;
    uint32_t count = hog(t, 2 * BLOCK_SIZE, hogs); /* a block, and the roll record */
    append(t);
    task_sleep_ns(10 * NS_PER_MS);
    member_returns(t, 2);
    while (count > 0)
        buffer_put(hogs[--count]);
    CHECK_SOON(!address_is_null(log_end_extent(t->log)), 80 * NS_PER_MS);
    CHECK_EQ(t->outstanding, 1);
    CHECK_SOON(t->outstanding == 0, 5 * NS_PER_S);
    CHECK(t->failures == 0 && t->downs == 0);
}

/* A member that does not answer a create costs a second, once. */
static async void silent_create(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    silence_member(t, 3, false);
    load_for(t, 200 * NS_PER_MS);
    CHECK(t->stall_ns < LOG_CREATE_LIMIT_MS * NS_PER_MS + ROLL_NS);
    CHECK_EQ(status(t).member_count, 2);
    uint64_t lacking;
    CHECK(open_extents(t, &lacking, 3) <= 3);
}

/* A create that is under way when the member is found to be silent is not waited for. */
static async void silent_in_create(struct test *t)
{
    uint64_t limit_ns = LOG_APPEND_LIMIT_MS * NS_PER_MS;
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    silence_member(t, 3, false);
    append(t);
    task_sleep_ns(limit_ns * 8 / 10);
    CHECK(!address_is_null(log_end_extent(t->log)));
    append(t); /* uses the one that is ahead, and another one is opened */
    CHECK_SOON(t->outstanding == 0, limit_ns * 2 / 10 + TICK_SLACK_NS + ROLL_NS);
    CHECK_EQ(status(t).member_count, 2);
}

/* --- too few --- */

static async void too_few(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    kill_member(t, 2);
    kill_member(t, 3);
    uint64_t committed = t->committed;
    for (uint32_t i = 0; i < OUTSTANDING; i++)
        append(t);
    uint64_t away_ns = 2 * NS_PER_S + sim_world_random(t->world, 100 * NS_PER_S);
    task_sleep_ns(away_ns);
    CHECK_EQ(t->committed, committed);
    CHECK_EQ(t->outstanding, OUTSTANDING);
    CHECK(strstr(status(t).text, "too few") != NULL);
    CHECK(status(t).waiting_ns > away_ns - 1500 * NS_PER_MS);
    member_returns(t, 2);
    CHECK_SOON(t->outstanding == 0, 3 * NS_PER_S);
    CHECK_EQ(flush(t), 0);
    CHECK_EQ(status(t).text[0], '\0');
    CHECK(t->failures == 0 && t->downs == 0);
}

/* A close that does not get on ends, and says why; the next owner finds everything. */
static async void close_too_few(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    append(t);
    task_sleep_ns(5 * NS_PER_MS);
    kill_member(t, 2);
    kill_member(t, 3);
    uint64_t begun_ns = now_ns(t);
    CHECK_EQ(log_close(take(t->log), &t->err), -ETIMEDOUT);
    CHECK(now_ns(t) - begun_ns < 40 * NS_PER_S);
    CHECK(strstr(t->err.text, "too few") != NULL);
    CHECK_EQ(disk_state(t)->owner, 1);
    member_returns(t, 2);
    member_returns(t, 3);
}

/* --- a better write set --- */

/* An idle disk, too, lets go of extents without a member that is back. */
static async void member_is_back(struct test *t)
{
    uint64_t lacking;
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    kill_member(t, 3);
    load_for(t, 100 * NS_PER_MS);
    CHECK(open_extents(t, &lacking, 3) > 0 && lacking > 0);
    CHECK(make_whole(t, 2) == -PLX_EPRECONDITION); /* they are written without it */
    member_returns(t, 3);
    uint64_t begun_ns = now_ns(t);
    CHECK_SOON((open_extents(t, &lacking, 3), lacking == 0), 8 * NS_PER_S);
    CHECK(now_ns(t) - begun_ns > 2 * NS_PER_S); /* it was avoided for a while */
    CHECK_EQ(make_whole(t, 2), 0);
    uint64_t submits = t->cluster->submits;
    bool is_soon = sim_world_random(t->world, 2) == 0;
    task_sleep_ns(is_soon ? NS_PER_S : 60 * NS_PER_S);
    CHECK_EQ(t->cluster->submits, submits); /* that was all */
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(status(t).member_count, 3);
    /* The second time it is avoided for longer. */
    kill_member(t, 3);
    load_for(t, 100 * NS_PER_MS);
    member_returns(t, 3);
    begun_ns = now_ns(t);
    CHECK_SOON((open_extents(t, &lacking, 3), lacking == 0), 12 * NS_PER_S);
    CHECK(now_ns(t) - begun_ns > (is_soon ? 5 : 2) * NS_PER_S);
    CHECK(is_soon || now_ns(t) - begun_ns < 8 * NS_PER_S);
}

/* The way to a member is cut for long, and only this host notices: it is tried in vain
 * again and again, which says nothing of what is when the way is there again. */
static async void long_cut(struct test *t)
{
    uint64_t lacking;
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    silence_member(t, 3, false);
    for (uint32_t i = 0; i < 100; i++) {
        append(t);
        task_sleep_ns(2 * NS_PER_S + sim_world_random(t->world, 2 * NS_PER_S));
    }
    CHECK(open_extents(t, &lacking, 3) > 0 && lacking > 0);
    member_returns(t, 3);
    CHECK_SOON((open_extents(t, &lacking, 3), lacking == 0), 10 * NS_PER_S);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(status(t).member_count, 3);
    CHECK(t->failures == 0 && t->downs == 0);
}

/* One that is out of reach each time when it is taken is tried less and less. */
static async void comes_and_goes(struct test *t)
{
    uint64_t lacking, rolls = 0, begun_ns = now_ns(t);
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    while (now_ns(t) - begun_ns < 200 * NS_PER_S) {
        open_extents(t, &lacking, 3);
        if (lacking == 0) {
            rolls++;
            kill_member(t, 3);
            load_for(t, 100 * NS_PER_MS);
            member_returns(t, 3);
        }
        append(t);
        task_sleep_ns(200 * NS_PER_MS);
    }
    CHECK(rolls >= 5 && rolls <= 9); /* 3, 6, 12, 24, 48, 48 s apart */
    CHECK(t->failures == 0 && t->downs == 0);
}

/* One that was restarted while nothing was written may be taken again at once. */
static async void restarted_idle(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    fake_restart(&t->media[2], t->world, SIM_KILL);
    load_for(t, 100 * NS_PER_MS);
    CHECK(t->stall_ns < 10 * NS_PER_MS); /* a roll, and not two */
    CHECK_EQ(status(t).member_count, 3);
    CHECK(is_whole(t, 2));
}

/* The group gets another member: new extents have it, the old ones end. */
static async void group_changes(struct test *t)
{
    uint64_t lacking;
    bool is_idle = sim_world_random(t->world, 2) == 0;
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    if (sim_world_random(t->world, 2) == 0)
        CHECK_EQ(flush(t), 0);
    set_group(t, 4);
    if (!is_idle)
        load_for(t, 5 * NS_PER_S);
    CHECK_SOON((open_extents(t, &lacking, 4), lacking == 0), 8 * NS_PER_S);
    CHECK_EQ(make_whole(t, 3), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(status(t).member_count, 4);
    CHECK(t->stall_ns < ROLL_NS);
    CHECK_EQ(t->moved, 0);
    CHECK(t->failures == 0 && t->downs == 0);
}

/* Also one in which there is nothing, because there was no space. */
static async void nothing_in_it(struct test *t)
{
    uint64_t lacking;
    CHECK_EQ(open_on(t, 1, false), 0);
    for (uint32_t i = 0; i < NODES; i++)
        t->media[i].limit_blocks = 2; /* the roll record and no batch */
    append(t);
    CHECK_SOON(t->outstanding == 0, NS_PER_S);
    CHECK(t->failures == 1 && t->failure == -PLX_EFULL && t->downs == 0);
    CHECK_EQ(status(t).member_count, 3);
    for (uint32_t i = 0; i < NODES; i++)
        t->media[i].limit_blocks = UINT32_MAX;
    set_group(t, 4);
    CHECK_SOON((open_extents(t, &lacking, 4), lacking == 0), 8 * NS_PER_S);
}

/* But for its reserve. */
static void make_full(struct fake_medium *medium)
{
    medium->limit_blocks = medium->used_blocks + medium->used_blocks / 20 + 4;
}

/* One member has no space: the log goes on without it. When all have none writes fail;
 * and when all have some again all are taken. */
static async void full_members(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    make_full(&t->media[2]);
    uint64_t sequence = next_sequence(t);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(status(t).member_count, 2);
    CHECK(t->failures == 0 && t->stall_ns < ROLL_NS);
    CHECK(next_sequence(t) <= sequence + 2); /* this one, and one ahead */
    CHECK_EQ(flush(t), 0);
    t->media[2].limit_blocks = UINT32_MAX;
    task_sleep_ns(30 * NS_PER_S);
    for (uint32_t i = 0; i < IN_GROUP; i++)
        make_full(&t->media[i]);
    append(t);
    CHECK_SOON(t->outstanding == 0, NS_PER_S);
    CHECK(t->failures == 1 && t->failure == -PLX_EFULL && t->downs == 0);
    for (uint32_t i = 0; i < IN_GROUP; i++)
        t->media[i].limit_blocks = UINT32_MAX;
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(t->failures, 1);
    CHECK_EQ(status(t).member_count, 3);
}

/* The stores get full one after the other, so that what one refuses others have already.
 * That finds room in the reserve. What comes later is refused, and takes nothing of the
 * reserve, however often it is tried; what must find room does. */
static async void full_in_turn(struct test *t)
{
    uint64_t used = 0, later = 0;
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    for (uint32_t i = 0; i < IN_GROUP; i++) {
        struct fake_medium *medium = &t->media[i];
        uint64_t room = 100 + sim_world_random(t->world, 200);
        medium->limit_blocks = max_u64(5 * medium->used_blocks / 4, 2000);
        medium->used_blocks =
            medium->limit_blocks - medium->limit_blocks / 10 - room;
    }
    load_for(t, NS_PER_S);
    CHECK(t->failures > 0 && t->failure == -PLX_EFULL && t->downs == 0);
    for (uint32_t i = 0; i < IN_GROUP; i++)
        used += t->media[i].used_blocks;
    for (uint32_t i = 0; i < 100; i++) {
        append(t);
        if (i % 4 == 0)
            append_to(t, t->log, true);
        CHECK_SOON(t->outstanding == 0, 5 * NS_PER_S);
    }
    CHECK_EQ(flush(t), 0);
    for (uint32_t i = 0; i < IN_GROUP; i++)
        later += t->media[i].used_blocks;
    CHECK(t->downs == 0 && later - used < 25 * 2 * IN_GROUP + 60);
    uint64_t failures = t->failures;
    for (uint32_t i = 0; i < IN_GROUP; i++)
        t->media[i].limit_blocks = UINT32_MAX;
    load_for(t, 100 * NS_PER_MS);
    CHECK(t->failures <= failures + 1);
}

/* No more than so many blocks for guests before the reserve, at each of the group. */
static void make_nearly_full(struct test *t, const uint64_t room[IN_GROUP])
{
    for (uint32_t i = 0; i < IN_GROUP; i++) {
        struct fake_medium *medium = &t->media[i];
        medium->limit_blocks = max_u64(5 * medium->used_blocks / 4, 2000);
        medium->used_blocks =
            medium->limit_blocks - medium->limit_blocks / 10 - room[i];
    }
}

/* More is retained than the reserve has room for. All of it has its place, and is not
 * written a second time because something behind it found none. */
static async void full_and_unflushed(struct test *t)
{
    static const uint64_t ROOM[IN_GROUP] = {20, 60, 100};
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    make_nearly_full(t, ROOM);
    CHECK(log_retained_bytes(t->log) >
          2 * BLOCK_SIZE * fake_reserve(&t->media[0]));
    uint64_t appended = t->appended, moved = t->moved;
    while (t->failures == 0 && t->appended < appended + 200) {
        append(t);
        CHECK_SOON(t->outstanding < OUTSTANDING, 5 * NS_PER_S);
    }
    CHECK_SOON(t->outstanding == 0, 5 * NS_PER_S);
    CHECK(t->failures > 0 && t->failure == -PLX_EFULL && t->downs == 0);
    CHECK_EQ(t->moved, moved);
    append_to(t, t->log, true);
    CHECK_SOON(t->outstanding == 0, 5 * NS_PER_S);
    CHECK_EQ(flush(t), 0);
}

/* While there is no room for guests, what must find some is on its way to a member that
 * takes its time. Guests are not refused yet, for that may free some space; nor is it
 * tried over and over. */
static async void full_and_slow(struct test *t)
{
    static const uint64_t ROOM[IN_GROUP] = {10, 100, 100};
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    make_nearly_full(t, ROOM);
    t->min_copies = 3;
    member_of(t, 3)->delay_ns = 900 * NS_PER_MS;
    uint64_t submits = t->cluster->submits;
    for (uint32_t i = 0; i < 200; i++) {
        if (t->outstanding < OUTSTANDING)
            append(t);
        task_sleep_ns(100 * NS_PER_MS);
    }
    CHECK(t->cluster->submits - submits < 60);
    CHECK_SOON(t->outstanding == 0, 5 * NS_PER_S);
    CHECK(t->failures > 0 && t->failure == -PLX_EFULL && t->downs == 0);
}

/* None has room for an extent. Who failed otherwise is avoided then, and nobody else. */
static async void full_at_create(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    for (uint32_t i = 0; i < IN_GROUP; i++) {
        t->members[i].create_error = -PLX_EFULL;
        t->members[i].create_error_ppm = 1000000;
    }
    member_of(t, 3)->fail_nth = 0;
    uint64_t sequence = next_sequence(t);
    append(t);
    task_sleep_ns(2 * NS_PER_S);
    CHECK_EQ(t->outstanding, 1); /* others may have it, so it is not taken back */
    CHECK(next_sequence(t) < sequence + 10);
    for (uint32_t i = 0; i < IN_GROUP; i++)
        t->members[i].create_error_ppm = 0;
    load_for(t, 1500 * NS_PER_MS);
    CHECK(t->failures == 0 && t->downs == 0);
    struct log_status is = status(t);
    CHECK(is.member_count == 2 && is.members[0] == 1 && is.members[1] == 2);
}

/* A create that comes late does not come after the extent was closed. */
static async void late_create(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    member_of(t, 2)->create_error_ppm = 1000000;
    member_of(t, 3)->delay_ns = 300 * NS_PER_MS;
    load_for(t, NS_PER_S);
    CHECK(t->failures == 0 && t->downs == 0);
    CHECK(is_whole(t, 2)); /* so that check_closed looks at it */
    member_of(t, 2)->create_error_ppm = 0;
    task_sleep_ns(3 * NS_PER_S);
    checkpoint(t);
}

/* --- leaving the list --- */

/* An extent stays listed for a whole member that is silent, and leaves when that one is
 * known to be down, or lost. */
static async void leaving(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    struct address first = disk_state(t)->extents[0].extent;
    CHECK_EQ(flush(t), 0);
    CHECK(!address_is_null(log_end_extent(t->log)));
    silence_member(t, 3, false);
    checkpoint(t); /* commits its length */
    CHECK_SOON(fake_find(&t->media[0], first)->state == EXTENT_FINAL &&
                   fake_find(&t->media[1], first)->state == EXTENT_FINAL,
               2 * NS_PER_S);
    for (uint32_t i = 0; i < 3; i++) {
        task_sleep_ns(12 * NS_PER_S);
        checkpoint(t);
        CHECK(is_listed(t, first));
    }
    set_flags(t, 3, NODE_DOWN);
    CHECK(!is_whole(t, 2));
    /* A call to it may be under way. */
    CHECK_SOON((checkpoint(t), !is_listed(t, first)), 40 * NS_PER_S);
    CHECK_EQ(fake_find(&t->media[0], first)->state, EXTENT_FINAL);
    CHECK_EQ(fake_find(&t->media[1], first)->state, EXTENT_FINAL);
    CHECK_EQ(fake_find(&t->media[2], first)->state, EXTENT_OPEN);
}

/* A close with a member that is silent ends soon. */
static async void close_without(struct test *t)
{
    CHECK_EQ(open_on(t, 1, false), 0);
    load_for(t, 100 * NS_PER_MS);
    CHECK_EQ(flush(t), 0);
    silence_member(t, 2, true);
    uint64_t begun_ns = now_ns(t);
    CHECK_EQ(log_close(take(t->log), &t->err), 0);
    CHECK(now_ns(t) - begun_ns < 7 * NS_PER_S);
    CHECK_EQ(disk_state(t)->owner, 0);
    member_returns(t, 2);
}

static const struct story STORIES[] = {
    {"dead member", dead_member},
    {"dead leader", dead_leader},
    {"lost answers", lost_answers},
    {"chosen again", chosen_again},
    {"all fail", all_fail},
    {"silent member", silent_member},
    {"slow sync", slow_sync},
    {"slow and needed", slow_and_needed},
    {"a roll unheard", roll_unheard},
    {"silent create", silent_create},
    {"silent in a create", silent_in_create},
    {"too few", too_few},
    {"close, too few", close_too_few},
    {"member is back", member_is_back},
    {"long cut", long_cut},
    {"comes and goes", comes_and_goes},
    {"restarted while idle", restarted_idle},
    {"group changes", group_changes},
    {"nothing in it", nothing_in_it},
    {"full members", full_members},
    {"full in turn", full_in_turn},
    {"full and unflushed", full_and_unflushed},
    {"full and slow", full_and_slow},
    {"full at a create", full_at_create},
    {"late create", late_create},
    {"leaving the list", leaving},
    {"close without a member", close_without},
};

int main(int argc, char **argv)
{
    return run_stories(STORIES, ARRAY_LEN(STORIES), argc, argv);
}
