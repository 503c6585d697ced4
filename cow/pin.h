/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pins: what somebody still reads, or is about to build on, does not go away. They live
 * in memory only, since whoever holds one ends with the process.
 *
 *   PIN_VERSION   the version is not collapsed
 *   PIN_HEAD      no list of dead blocks of the disk is begun, and no version collapses
 *                 that its root grew from or that was made of it since: the map that the
 *                 newest committed root names when the pin is taken stays whole
 *   PIN_BRANCHES  no version of the disk is collapsed, whichever it may be, and none
 *                 against its head: a branch point is being made and its number is not
 *                 known yet, or the head is about to move
 *   PIN_CLOSED    no client opens the disk or one of its snapshots: it is being removed
 *
 * A pin is taken between two suspensions: first the pin, then a look at the state.
 */
#ifndef PARALLAX_COW_PIN_H
#define PARALLAX_COW_PIN_H

#include "runtime/runtime.h"

enum pin_kind { PIN_VERSION, PIN_HEAD, PIN_BRANCHES, PIN_CLOSED };
#define PIN_ALL UINT64_MAX /* instead of an id: every version or disk */

struct pin {
    enum pin_kind kind;
    uint64_t id;     /* of the version or disk; 0: none */
    uint64_t parent; /* PIN_HEAD: what its root grew from when it was pinned; 0: none */
    LIST_ENTRY(pin) link;
};

struct pins {
    LIST_HEAD(, pin) taken;
    struct waitlist released; /* woken after each release */
};

void pins_init(struct pins *pins);
/* The memory of the pin is the caller's until it is released. */
void pin_take(struct pins *pins, struct pin *pin, enum pin_kind kind, uint64_t id);
void pin_release(struct pins *pins, struct pin *pin);
bool pin_is_taken(const struct pins *pins, enum pin_kind kind, uint64_t id);
/* Suspends until nobody has such a pin. */
async void pin_wait(struct pins *pins, enum pin_kind kind, uint64_t id);

#endif
