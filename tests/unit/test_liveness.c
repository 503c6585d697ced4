/* SPDX-License-Identifier: Apache-2.0 */
/* Windows of silence, tick by tick: who is marked, when, and who is not blamed. */
#include "replication/liveness.h"
#include "tests/unit/cluster_machine.h"

#define TICK      (LIVENESS_TICK_MS * NS_PER_MS)
#define OUT_TICKS 40U

struct eyes {
    struct machine m;
    struct liveness l;
    uint64_t now_ns;
    bool is_talking[8], is_broken[8], is_lost[8]; /* by node */
};

static bool is_connected(void *arg, uint64_t node)
{
    return !((struct eyes *)arg)->is_lost[node];
}

static struct eyes eyes_create(uint8_t nodes)
{
    struct eyes w = {.m = machine_create(), .now_ns = 77 * NS_PER_S};
    for (uint8_t i = 2; i <= nodes; i++)
        CHECK_EQ(RUN(&w.m, .op = CLUSTER_NODE_SET, .store = {{0xab, i}}), 0);
    for (unsigned i = 1; i < ARRAY_LEN(w.is_talking); i++)
        w.is_talking[i] = true;
    liveness_init(&w.l, OUT_TICKS * TICK);
    liveness_begin(&w.l, w.now_ns);
    return w;
}

static void eyes_done(struct eyes *w)
{
    liveness_done(&w->l);
    machine_done(&w->m);
}

/* Who talks does, and then there is a tick, this long after the last one. */
static void tick_after(struct eyes *w, uint64_t since_ns)
{
    w->now_ns += since_ns;
    for (uint64_t i = 1; i < ARRAY_LEN(w->is_talking); i++) {
        if (w->is_talking[i])
            liveness_heard(&w->l, i, w->now_ns - 1, w->is_broken[i]);
    }
    liveness_tick(&w->l, w->m.state, w->now_ns, is_connected, w);
}

static unsigned flags_of(const struct eyes *w, uint64_t node)
{
    return liveness_flags(&w->l, cluster_node_by_id(w->m.state, node));
}

/* The flags become what they should be; returns those of the node. */
static unsigned mark(struct eyes *w, uint64_t node)
{
    unsigned flags = flags_of(w, node);
    CHECK_EQ(RUN(&w->m, .op = CLUSTER_NODE_STATE, .node = node,
                 .old_flags = cluster_node_by_id(w->m.state, node)->flags,
                 .flags = flags & NODE_FLAGS_SETTABLE),
             0);
    return flags;
}

/* Ticks until the node's flags are these; at most `most`. */
static uint32_t ticks_until(struct eyes *w, uint64_t node, unsigned flags, uint32_t most)
{
    uint32_t count = 0;
    while (mark(w, node) != flags && count < most) {
        tick_after(w, TICK);
        count++;
    }
    CHECK_EQ(mark(w, node), flags);
    return count;
}

static void test_silent(void)
{
    struct eyes w = eyes_create(3);
    for (unsigned i = 0; i < 100; i++)
        tick_after(&w, TICK);
    CHECK_EQ(flags_of(&w, 1), 0);
    CHECK_EQ(flags_of(&w, 2), 0);
    w.is_talking[2] = false;
    CHECK_EQ(ticks_until(&w, 2, NODE_DOWN, 100), LIVENESS_SILENT_MS / LIVENESS_TICK_MS);
    CHECK_EQ(ticks_until(&w, 2, NODE_DOWN | NODE_OUT, 100), OUT_TICKS - 1);
    CHECK_EQ(flags_of(&w, 1), 0);
    for (unsigned i = 0; i < 100; i++)
        tick_after(&w, TICK);
    CHECK_EQ(flags_of(&w, 2), NODE_DOWN | NODE_OUT);
    w.is_talking[2] = true;
    CHECK_EQ(ticks_until(&w, 2, 0, 100), 1);
    eyes_done(&w);
}

/* Without a connection it goes faster; not if there is one again. */
static void test_lost(void)
{
    struct eyes w = eyes_create(2);
    tick_after(&w, TICK);
    tick_after(&w, TICK);
    w.is_talking[2] = false;
    w.is_lost[2] = true;
    CHECK_EQ(ticks_until(&w, 2, NODE_DOWN, 100), LIVENESS_LOST_MS / LIVENESS_TICK_MS);
    w.is_talking[2] = true;
    tick_after(&w, TICK);
    CHECK_EQ(mark(&w, 2), 0); /* whoever is heard lives, connected or not */
    w.is_talking[2] = w.is_lost[2] = false;
    CHECK_EQ(ticks_until(&w, 2, NODE_DOWN, 100), LIVENESS_SILENT_MS / LIVENESS_TICK_MS);
    eyes_done(&w);
}

/* A store that is out of service is as good as none. */
static void test_broken(void)
{
    struct eyes w = eyes_create(2);
    tick_after(&w, TICK);
    w.is_broken[2] = true;
    CHECK_EQ(ticks_until(&w, 2, NODE_DOWN, 100), 1);
    CHECK_EQ(ticks_until(&w, 2, NODE_DOWN | NODE_OUT, 100), OUT_TICKS - 1);
    w.is_broken[2] = false;
    CHECK_EQ(ticks_until(&w, 2, 0, 100), 1);
    eyes_done(&w);
}

/* The leader itself stood still: nobody is blamed, and nobody comes back by that. */
static void test_leader_stood_still(void)
{
    struct eyes w = eyes_create(3);
    tick_after(&w, TICK);
    w.is_talking[3] = false;
    ticks_until(&w, 3, NODE_DOWN, 100);
    w.is_talking[2] = false;
    tick_after(&w, 10 * NS_PER_S);
    CHECK_EQ(flags_of(&w, 2), 0);
    CHECK_EQ(flags_of(&w, 3), NODE_DOWN);
    CHECK_EQ(ticks_until(&w, 2, NODE_DOWN, 100), LIVENESS_SILENT_MS / LIVENESS_TICK_MS);
    /* Nor does it bring anybody nearer to being replaced. */
    uint32_t left = OUT_TICKS;
    for (unsigned i = 0; i < 20; i++, left--)
        tick_after(&w, 30 * NS_PER_S);
    CHECK_EQ(flags_of(&w, 2), NODE_DOWN);
    /* Late, but not so late: that counts. */
    w.is_talking[2] = true;
    CHECK_EQ(ticks_until(&w, 2, 0, 100), 1);
    w.is_talking[2] = false;
    tick_after(&w, 700 * NS_PER_MS);
    tick_after(&w, 700 * NS_PER_MS);
    CHECK_EQ(flags_of(&w, 2), 0);
    tick_after(&w, 700 * NS_PER_MS);
    CHECK_EQ(flags_of(&w, 2), NODE_DOWN);
    eyes_done(&w);
}

/* A new leader gives everybody a full window; marks of the one before it stand until it
 * has heard. */
static void test_new_leader(void)
{
    struct eyes w = eyes_create(3);
    tick_after(&w, TICK);
    w.is_talking[2] = w.is_talking[3] = false;
    ticks_until(&w, 2, NODE_DOWN | NODE_OUT, 100);
    w.now_ns += 5 * NS_PER_S;
    liveness_begin(&w.l, w.now_ns);
    tick_after(&w, TICK);
    CHECK_EQ(flags_of(&w, 2), NODE_DOWN | NODE_OUT);
    CHECK_EQ(flags_of(&w, 3), 0);
    CHECK_EQ(ticks_until(&w, 3, NODE_DOWN, 100),
             LIVENESS_SILENT_MS / LIVENESS_TICK_MS - 1);
    CHECK_EQ(flags_of(&w, 2), NODE_DOWN | NODE_OUT);
    w.is_talking[2] = true;
    CHECK_EQ(ticks_until(&w, 2, 0, 100), 1);
    eyes_done(&w);
}

/* Nodes come and go while it counts; what else is marked stays. */
static void test_nodes_change(void)
{
    struct eyes w = eyes_create(4);
    tick_after(&w, TICK);
    liveness_heard(&w.l, 5, w.now_ns, false); /* not known yet */
    CHECK(liveness_find(&w.l, 5) == NULL);
    CHECK_EQ(RUN(&w.m, .op = CLUSTER_NODE_SET, .store = {{0xab, 5}}), 0);
    CHECK_EQ(RUN(&w.m, .op = CLUSTER_NODE_GONE, .node = 2), 0);
    CHECK_EQ(RUN(&w.m, .op = CLUSTER_NODE_STATE, .node = 3, .flags = NODE_DRAINING), 0);
    w.is_talking[3] = w.is_talking[5] = false;
    tick_after(&w, TICK);
    CHECK(liveness_find(&w.l, 2) == NULL);
    CHECK(liveness_find(&w.l, 5) != NULL);
    CHECK_EQ(w.l.count, 4);
    ticks_until(&w, 3, NODE_DRAINING | NODE_DOWN, 100);
    ticks_until(&w, 5, NODE_DOWN, 100); /* it has not been heard even once */
    CHECK_EQ(flags_of(&w, 4), 0);
    CHECK_EQ(RUN(&w.m, .op = CLUSTER_NODE_GONE, .node = 5, .force = true), 0);
    tick_after(&w, TICK);
    CHECK_EQ(w.l.count, 3);
    CHECK_EQ(flags_of(&w, 5), NODE_GONE);
    eyes_done(&w);
}

int main(void)
{
    test_silent();
    test_lost();
    test_broken();
    test_leader_stood_still();
    test_new_leader();
    test_nodes_change();
    return 0;
}
