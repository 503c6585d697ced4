/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/spin.h"

bool spin_idle(struct spin *spin, uint64_t now_ns)
{
    if (spin->idle_since_ns == 0)
        spin->idle_since_ns = now_ns;
    return !spin->is_busy && now_ns - spin->idle_since_ns < spin->limit_ns;
}

/* A wait is over. */
static void learn(struct spin *spin, uint64_t waited_ns)
{
    if (waited_ns > SPIN_MAX_NS)
        spin->limit_ns = spin->limit_ns >= SPIN_MIN_NS ? spin->limit_ns / 2 : 0;
    else if (waited_ns > spin->limit_ns)
        spin->limit_ns = min_u64(max_u64(2 * spin->limit_ns, SPIN_MIN_NS), SPIN_MAX_NS);
}

void spin_found(struct spin *spin, uint64_t now_ns)
{
    if (spin->idle_since_ns == 0)
        return;
    uint64_t waited_ns = now_ns - spin->idle_since_ns;
    spin->idle_since_ns = 0;
    spin->idle_ns += waited_ns;
    learn(spin, waited_ns);
    uint64_t passed_ns = now_ns - spin->window_ns;
    if (passed_ns < SPIN_WINDOW_NS)
        return;
    spin->is_busy = spin->idle_ns < passed_ns / 2;
    spin->window_ns = now_ns;
    spin->idle_ns = 0;
}
