/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a loop that has nothing to do looks again at once, or sleeps. To be woken takes
 * longer than most of what a loop waits for under light loads: an answer, a disk, the
 * client's next request. Nothing here suspends or makes a system call.
 *
 * It looks as long as what it waited for lately took, at most SPIN_MAX_NS, and twice as
 * long after a wait that was a little too long for it; a wait beyond SPIN_MAX_NS halves
 * that, so that an idle loop sleeps (as KVM's halt polling and QEMU's I/O threads do). A
 * loop that is busy for more than half of the time never spins: it is hardly ever asleep,
 * and what comes while it is will be done together.
 */
#ifndef PARALLAX_RUNTIME_SPIN_H
#define PARALLAX_RUNTIME_SPIN_H

#include "runtime/base.h"

#define SPIN_MIN_NS    (20 * NS_PER_US)
#define SPIN_MAX_NS    (200 * NS_PER_US)
#define SPIN_WINDOW_NS (2 * NS_PER_MS)

/* All zero at the start. */
struct spin {
    uint64_t limit_ns;      /* of this wait */
    uint64_t idle_since_ns; /* 0: it has something to do */
    uint64_t window_ns;     /* when this window began, */
    uint64_t idle_ns;       /* and what of it nothing was done */
    bool is_busy;           /* in the window before */
};

/* There is nothing to do. True: look again. */
bool spin_idle(struct spin *spin, uint64_t now_ns);
/* There is something to do. */
void spin_found(struct spin *spin, uint64_t now_ns);

#endif
