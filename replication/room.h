/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long recovery rests beside guests. Nothing here suspends.
 *
 * What guests did is counted in windows of 100 ms. In one with ROOM_BUSY_OPS or more of
 * their operations they are as busy as can be, and recovery gets ROOM_BUSY_BYTES_S in
 * each direction; with less of them it rests so much shorter after each piece, and with
 * none not at all. A guest that does little does not keep a cluster from being whole.
 */
#ifndef PARALLAX_REPLICATION_ROOM_H
#define PARALLAX_REPLICATION_ROOM_H

#include "runtime/base.h"

#define ROOM_BUSY_OPS     100U
#define ROOM_BUSY_BYTES_S (48 * MIB)
#define ROOM_WINDOW_NS    (100 * NS_PER_MS)
/* So many bytes of a large operation count as one. */
#define ROOM_OP_BYTES     (64 * KIB)

/* All zero at the start. */
struct guest_load {
    uint64_t since_ns; /* the window's beginning, */
    uint64_t seen;     /* and the operations ever counted then */
    uint32_t ops;      /* of the window before */
};

struct room {
    uint64_t until_ns; /* what was done is paid for then */
};

/* `ops`: all that were ever counted. Returns how busy guests are, at most
 * ROOM_BUSY_OPS. */
uint32_t guest_load_look(struct guest_load *load, uint64_t ops, uint64_t now_ns);
/* So many bytes were copied: how many ns to rest. What was missed is not made good. */
uint64_t room_take(struct room *room, uint64_t bytes, uint32_t busy, uint64_t now_ns);

#endif
