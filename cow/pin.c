/* SPDX-License-Identifier: Apache-2.0 */
/* A list is enough: there are as many pins as administrative calls under way. */
#include "cow/pin.h"

void pins_init(struct pins *pins)
{
    LIST_INIT(&pins->taken);
    waitlist_init(&pins->released);
}

void pin_take(struct pins *pins, struct pin *pin, enum pin_kind kind, uint64_t id)
{
    pin->kind = kind;
    pin->id = id;
    pin->parent = 0;
    LIST_INSERT_HEAD(&pins->taken, pin, link);
}

void pin_release(struct pins *pins, struct pin *pin)
{
    LIST_REMOVE(pin, link);
    waitlist_wake_all(&pins->released);
}

bool pin_is_taken(const struct pins *pins, enum pin_kind kind, uint64_t id)
{
    const struct pin *pin;

    LIST_FOREACH (pin, &pins->taken, link)
        if (pin->kind == kind && (pin->id == id || pin->id == PIN_ALL))
            return true;
    return false;
}

async void pin_wait(struct pins *pins, enum pin_kind kind, uint64_t id)
{
    while (pin_is_taken(pins, kind, id))
        waitlist_wait(&pins->released);
}
