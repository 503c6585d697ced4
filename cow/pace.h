/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guests first: how background work makes room. After each unit of work it rests: not at
 * all while no guest does anything, else PACE_REST times as long as the unit took; and as
 * long as a limit of bytes a second demands.
 */
#ifndef PARALLAX_COW_PACE_H
#define PARALLAX_COW_PACE_H

#include "runtime/runtime.h"

struct host;

struct pace {
    struct host *host;
    uint64_t limit_bytes_s;    /* 0: none */
    uint32_t parallel;         /* tasks that share limit and time */
    const bool *stop;          /* ends a rest early */
    /* private: */
    uint64_t guest_ops;        /* when it last looked */
    uint64_t guests_seen_ns;   /* when they last did something; 0: never */
    uint64_t unit_began_ns;
    uint64_t allowed_ns;       /* by the limit, the next unit may begin then */
};

/* Before the first unit, and after a break. */
void pace_begin(struct pace *pace);
/* A unit of so many bytes is done. Rests, or at least lets others run. */
async void pace_rest(struct pace *pace, uint64_t bytes);

#endif
