/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last whole member of a group is declared lost, and the others are taken for whole:
 * what any of them has must be on all of them in the end.
 */
#include "tests/unit/recovery_machine.h"

/* The one that had it final was declared lost. The longest copy is what is left, also if
 * it comes back last: until then nobody knows where it ends. */
static void ended_lost(bool is_last)
{
    cluster_make(11, 4, 3);
    struct model_copy *x = open_extent(ALL3, 60);
    uint32_t shorter = boundary_at_most(x->source, 30);
    for (uint64_t id = 1; id <= 3; id++)
        CHECK_EQ(op_run((struct op){.kind = OP_WRITE, .source = x->source,
                                    .length = id == 3 ? shorter : 60},
                        id),
                 0);
    CHECK(shorter > 0);
    go_down(2);
    go_down(3);
    commit_length(x, 60, false);
    CHECK(finalize_on(x, 1));
    commit_length(x, 60, true);
    go_down(1);
    CHECK(is_whole(1) && !is_whole(2) && !is_whole(3));
    CHECK_EQ(COMMIT(.op = CLUSTER_NODE_GONE, .node = 1, .force = true, .data_loss = true),
             0);
    if (is_last) {
        come_back(3);
        apply_everywhere();
        run_for(150 * NS_PER_S);
        CHECK(is_whole(3) && state_on(x, 3) == EXTENT_STOPPED);
    }
    come_back(2);
    if (!is_last)
        come_back(3);
    CHECK(is_whole(2) && is_whole(3));
    apply_everywhere();
    run_for(150 * NS_PER_S);
    check_whole_now();
    uint64_t more[] = {2, 3, 4};
    CHECK(group_set(more, 3));
    wait_whole(60 * NS_PER_S);
    for (uint64_t id = 2; id <= 4; id++) {
        struct extent_info info = {0};
        CHECK_EQ(store_extent_info(c->nodes[id].store, x->source->address, &info), 0);
        CHECK(info.state == EXTENT_FINAL && info.length == 60);
    }
    end_all();
}

/* Two members lacked something, each something else, when the last whole one was declared
 * lost. Both count as whole since; what only one of them has is no rubbish, even if it is
 * away for a moment later. */
static void taken_for_whole(void)
{
    cluster_make(14, 4, 3);
    struct model_copy *known = write_extent(ALL3, 40);
    go_down(3);
    struct model_copy *x = write_extent(0x06, 60);
    CHECK(known != NULL && x != NULL);
    go_down(2);
    go_down(1);
    CHECK(is_whole(1) && !is_whole(2) && !is_whole(3));
    CHECK_EQ(COMMIT(.op = CLUSTER_NODE_GONE, .node = 1, .force = true, .data_loss = true),
             0);
    come_back(2);
    come_back(3);
    CHECK(is_whole(2) && is_whole(3));
    apply_everywhere();
    run_for(150 * NS_PER_S);
    CHECK_EQ(state_on(x, 2), EXTENT_FINAL);
    CHECK_EQ(state_on(x, 3), EXTENT_FINAL); /* which has taken it over */
    go_down(2);
    CHECK(!is_whole(2));
    come_back(2);
    apply_everywhere();
    run_for(150 * NS_PER_S);
    CHECK_EQ(state_on(x, 2), EXTENT_FINAL);
    end_all();
}

/* The last whole one of the group is lost for good, with whatever only it had, when the
 * others, a bit for each, were down, too; these are up again. */
static void lose(uint64_t node, uint8_t others)
{
    for (uint64_t id = 1; id <= c->node_count; id++)
        if ((others >> id & 1) != 0 && c->nodes[id].is_up)
            go_down(id);
    go_down(node);
    CHECK_EQ(
        COMMIT(.op = CLUSTER_NODE_GONE, .node = node, .force = true, .data_loss = true),
        0);
    for (uint64_t id = 1; id <= c->node_count; id++)
        if ((others >> id & 1) != 0)
            come_back(id);
    apply_everywhere();
}

/* An extent is open without one of them when the last whole one is declared lost, and
 * goes on to be written. */
static void open_at_loss(void)
{
    cluster_make(15, 4, 3);
    go_down(1);
    struct model_copy *x = open_extent(0x0c, 60);
    write_on(x, 2);
    lose(3, 0x06);
    CHECK(is_whole(2) && is_whole(1));
    run_for(150 * NS_PER_S);
    commit_length(x, 60, false);
    CHECK(finalize_on(x, 2));
    commit_length(x, 60, true);
    apply_everywhere();
    run_for(150 * NS_PER_S);
    CHECK_EQ(state_on(x, 2), EXTENT_FINAL);
    CHECK_EQ(state_on(x, 1), EXTENT_FINAL);
    end_all();
}

/* The same two are taken for whole once more, in the life of a process that has seen all
 * that the other one had the first time. */
static void lost_twice(void)
{
    cluster_make(16, 4, 3);
    lose(3, 0x06);
    run_for(150 * NS_PER_S);
    uint64_t more[] = {1, 2, 4};
    CHECK(group_set(more, 3));
    struct model_copy *young = open_extent(0x14, 20); /* keeps 1 from being whole */
    CHECK(!is_whole(1));
    while (!is_whole(4)) {
        node_apply_to(&c->nodes[4], c->command_count);
        run_for(100 * NS_PER_MS);
    }
    struct model_copy *x = write_extent(0x14, 60);
    CHECK(young != NULL && x != NULL && !is_whole(1));
    go_down(2);
    lose(4, 0);
    come_back(2);
    apply_everywhere();
    CHECK(is_whole(2) && is_whole(1));
    run_for(150 * NS_PER_S);
    CHECK_EQ(state_on(x, 2), EXTENT_FINAL);
    CHECK_EQ(state_on(x, 1), EXTENT_FINAL);
    end_all();
}

/* Nobody in reach knows where an extent ends. One that was taken for whole while it was
 * away has more of it than the other, or has it final; before it is back it is marked, as
 * an extent is opened without it. */
static void ended_without(bool is_final)
{
    cluster_make(17, 4, 3);
    struct model_copy *x = open_extent(ALL3, 60);
    uint32_t middle = boundary_at_most(x->source, 40);
    uint32_t length = is_final ? middle : 60;
    for (uint64_t id = 1; id <= 3; id++)
        CHECK_EQ(op_run((struct op){.kind = OP_WRITE,
                                    .source = x->source,
                                    .length = id == 1 && !is_final ? middle : 60},
                        id),
                 0);
    CHECK(middle > 0 && middle < 60);
    go_down(1);
    if (!is_final)
        go_down(2);
    commit_length(x, length, false);
    CHECK(finalize_on(x, 3));
    if (is_final)
        CHECK(finalize_on(x, 2));
    commit_length(x, length, true);
    if (is_final)
        go_down(2);
    lose(3, 0);
    CHECK(is_whole(2) && is_whole(1));
    come_back(1);
    apply_everywhere();
    run_for(150 * NS_PER_S);
    CHECK_EQ(state_on(x, 1), EXTENT_STOPPED);
    uint64_t more[] = {1, 2, 4};
    CHECK(group_set(more, 3));
    CHECK(write_extent(0x12, 20) != NULL);
    CHECK(is_whole(1) && !is_whole(2));
    apply_everywhere();
    run_for(150 * NS_PER_S);
    come_back(2);
    apply_everywhere();
    wait_whole(60 * NS_PER_S);
    run_for(150 * NS_PER_S);
    for (uint64_t id = 1; id <= 2; id++) {
        struct extent_info info = {0};
        CHECK_EQ(store_extent_info(c->nodes[id].store, x->source->address, &info), 0);
        CHECK_EQ(info.state, EXTENT_FINAL);
        CHECK_EQ(info.length, length);
    }
    check_whole_now();
    end_all();
}

/* One extent has to wait for a member that is not whole; that member waits for another
 * one, which can end at once. */
static void one_waits(void)
{
    struct model_copy *longer[3], *alone[3];
    cluster_make(18, 4, 3);
    for (uint32_t i = 0; i < 3; i++) {
        longer[i] = open_extent(ALL3, 60);
        for (uint64_t id = 1; id <= 3; id++)
            CHECK_EQ(op_run((struct op){.kind = OP_WRITE,
                                        .source = longer[i]->source,
                                        .length = id == 1 ? 1 : 60},
                            id),
                     0);
    }
    go_down(2);
    for (uint32_t i = 0; i < 3; i++) {
        alone[i] = open_extent(0x0a, 60);
        write_on(alone[i], 1);
        write_on(alone[i], 3);
    }
    go_down(1);
    for (uint32_t i = 0; i < 6; i++) {
        struct model_copy *x = i < 3 ? longer[i] : alone[i - 3];
        commit_length(x, 60, false);
        CHECK(finalize_on(x, 3));
        commit_length(x, 60, true);
    }
    lose(3, 0);
    come_back(1);
    uint64_t more[] = {1, 2, 4};
    CHECK(group_set(more, 3));
    CHECK(write_extent(0x12, 20) != NULL);
    CHECK(is_whole(1) && !is_whole(2));
    come_back(2);
    apply_everywhere();
    wait_whole(60 * NS_PER_S);
    run_for(150 * NS_PER_S);
    check_whole_now();
    end_all();
}

/* One of those that were taken for whole is away, and still counts: the others take over
 * from each other, and do not ask again and again until it is back. */
static void one_away(void)
{
    cluster_make(19, 4, 4);
    go_down(1);
    struct model_copy *x = write_extent(0x1c, 60);
    go_down(3);
    struct model_copy *y = write_extent(0x14, 60);
    go_down(2);
    lose(4, 0);
    CHECK(is_whole(1) && is_whole(2) && is_whole(3));
    come_back(1);
    come_back(2);
    apply_everywhere();
    run_for(150 * NS_PER_S);
    CHECK_EQ(state_on(x, 1), EXTENT_FINAL);
    CHECK_EQ(state_on(y, 1), EXTENT_FINAL);
    uint32_t asked = c->nodes[2].asked;
    run_for(100 * NS_PER_S);
    CHECK(c->nodes[2].asked - asked < 10);
    come_back(3);
    apply_everywhere();
    run_for(150 * NS_PER_S);
    CHECK_EQ(state_on(y, 3), EXTENT_FINAL);
    end_all();
}

int main(void)
{
    ended_lost(false);
    ended_lost(true);
    taken_for_whole();
    open_at_loss();
    lost_twice();
    ended_without(false);
    ended_without(true);
    one_waits();
    one_away();
    return 0;
}
