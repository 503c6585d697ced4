/* SPDX-License-Identifier: Apache-2.0 */
/* Recovery gives way to guests by as much as they do. */
#include "replication/room.h"
#include "tests/unit/check.h"

#define START_NS (5 * NS_PER_S)

static uint64_t ops; /* of guests, ever */

/* Seconds that one copier takes for `bytes` in pieces of 1 MiB, at 1 GiB/s and without
 * rests, beside guests that do so many operations a second. */
static double copy_seconds(uint64_t bytes, uint64_t ops_s)
{
    struct guest_load load = {0};
    struct room room = {0};
    uint64_t began_ops = ops, now_ns = START_NS;
    for (uint64_t at = 0; at < bytes; at += MIB) {
        now_ns += NS_PER_S / 1024;
        ops = began_ops + (now_ns - START_NS) * ops_s / NS_PER_S;
        now_ns += room_take(&room, MIB, guest_load_look(&load, ops, now_ns), now_ns);
    }
    return (double)(now_ns - START_NS) / (double)NS_PER_S;
}

static void rates(void)
{
    double alone = copy_seconds(GIB, 0), quiet = copy_seconds(GIB, 20);
    double half = copy_seconds(GIB, 500), busy = copy_seconds(GIB, 20000);
    CHECK(alone > 0.99 && alone < 1.01);
    CHECK(quiet < 2);
    CHECK(half > 8 && half < 14);
    CHECK(busy > 20 && busy < 23);
}

static void windows(void)
{
    struct guest_load load = {0};
    struct room room = {0};
    uint64_t now_ns = START_NS;
    CHECK_EQ(guest_load_look(&load, 1000, now_ns), 20); /* in 50 windows */
    CHECK_EQ(guest_load_look(&load, 1010, now_ns + 1), 20);
    CHECK_EQ(guest_load_look(&load, 1500, now_ns + 2), ROOM_BUSY_OPS);
    now_ns += ROOM_WINDOW_NS;
    CHECK_EQ(guest_load_look(&load, 1500, now_ns), ROOM_BUSY_OPS);
    now_ns += ROOM_WINDOW_NS;
    CHECK_EQ(guest_load_look(&load, 1501, now_ns), 1);
    now_ns += 10 * ROOM_WINDOW_NS;
    CHECK_EQ(guest_load_look(&load, 1502, now_ns), 1);
    now_ns += ROOM_WINDOW_NS;
    CHECK_EQ(guest_load_look(&load, 1502, now_ns), 0);
    /* What is owed is forgotten when they are quiet. */
    CHECK(room_take(&room, GIB, ROOM_BUSY_OPS, now_ns) > 20 * NS_PER_S);
    CHECK_EQ(room_take(&room, GIB, 0, now_ns + 1), 0);
    CHECK_EQ(room_take(&room, 0, 1, now_ns + 2), 0);
}

int main(void)
{
    windows();
    rates();
    return 0;
}
