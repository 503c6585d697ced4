/* SPDX-License-Identifier: Apache-2.0 */
/* When a loop looks again instead of sleeping. */
#include "runtime/spin.h"
#include "tests/unit/check.h"

#define STEP_NS NS_PER_US

static uint64_t now_ns = NS_PER_S;

/* Works, then waits. Returns how long it looked on. */
static uint64_t round_of(struct spin *spin, uint64_t work_ns, uint64_t wait_ns)
{
    uint64_t looked_ns = 0, end_ns;
    now_ns += work_ns;
    end_ns = now_ns + wait_ns;
    while (now_ns < end_ns && spin_idle(spin, now_ns)) {
        now_ns += STEP_NS;
        looked_ns += STEP_NS;
    }
    now_ns = end_ns;
    spin_found(spin, now_ns);
    return looked_ns;
}

static uint64_t rounds(struct spin *spin, uint32_t count, uint64_t work_ns,
                       uint64_t wait_ns)
{
    uint64_t last_ns = 0;
    for (uint32_t i = 0; i < count; i++)
        last_ns = round_of(spin, work_ns, wait_ns);
    return last_ns;
}

int main(void)
{
    struct spin spin = {0};
    /* Nothing was learned yet: it sleeps. Then it looks until what it waits for comes. */
    CHECK_EQ(round_of(&spin, 0, 80 * NS_PER_US), 0);
    CHECK_EQ(rounds(&spin, 50, 20 * NS_PER_US, 80 * NS_PER_US), 80 * NS_PER_US);
    CHECK_EQ(rounds(&spin, 50, 20 * NS_PER_US, SPIN_MAX_NS), SPIN_MAX_NS);
    /* An idle loop sleeps after a few waits, and learns again. */
    CHECK(rounds(&spin, 3, 20 * NS_PER_US, 20 * NS_PER_MS) < SPIN_MAX_NS);
    CHECK_EQ(rounds(&spin, 20, 20 * NS_PER_US, 20 * NS_PER_MS), 0);
    CHECK_EQ(rounds(&spin, 50, 20 * NS_PER_US, 80 * NS_PER_US), 80 * NS_PER_US);
    /* So does a busy one, as long as it is. */
    CHECK_EQ(rounds(&spin, 300, 60 * NS_PER_US, 30 * NS_PER_US), 0);
    CHECK_EQ(rounds(&spin, 300, 30 * NS_PER_US, 60 * NS_PER_US), 60 * NS_PER_US);
    /* A wait that is never learned from does not count twice. */
    spin_found(&spin, now_ns);
    spin_found(&spin, now_ns + NS_PER_S);
    CHECK_EQ(spin.idle_since_ns, 0);
    return 0;
}
