/* SPDX-License-Identifier: Apache-2.0 */
#include "replication/room.h"

uint32_t guest_load_look(struct guest_load *load, uint64_t ops, uint64_t now_ns)
{
    uint64_t windows = (now_ns - load->since_ns) / ROOM_WINDOW_NS;
    uint64_t done = ops - load->seen;
    if (windows > 0) {
        /* Rounded up: the last of a few operations counts, too. */
        load->ops = (uint32_t)min_u64((done + windows - 1) / windows, ROOM_BUSY_OPS);
        load->seen = ops;
        load->since_ns = now_ns;
        return load->ops;
    }
    return (uint32_t)min_u64(max_u64(done, load->ops), ROOM_BUSY_OPS);
}

uint64_t room_take(struct room *room, uint64_t bytes, uint32_t busy, uint64_t now_ns)
{
    uint64_t full_ns = bytes * NS_PER_S / ROOM_BUSY_BYTES_S;
    room->until_ns = max_u64(room->until_ns, now_ns) + full_ns * busy / ROOM_BUSY_OPS;
    if (busy == 0)
        room->until_ns = now_ns;
    return room->until_ns - now_ns;
}
