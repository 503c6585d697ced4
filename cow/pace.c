/* SPDX-License-Identifier: Apache-2.0 */
#include "cow/pace.h"

#include "cow/disk_internal.h"

/* A sixteenth of the time is the background's: guests keep 0.9 of their speed. */
#define PACE_REST       15U
#define GUESTS_QUIET_NS (100 * NS_PER_MS) /* for so long after their last operation */
#define REST_MAX_NS     NS_PER_S          /* where one unit took very long */
#define REST_SLICE_NS   (50 * NS_PER_MS)
/* The loop's clock stands still while it is busy: a unit took at least this. */
#define NS_PER_KIB_MIN  256U

void pace_begin(struct pace *pace)
{
    uint64_t now_ns = loop_now_ns(pace->host->loop);

    pace->unit_began_ns = now_ns;
    pace->allowed_ns = max_u64(pace->allowed_ns, now_ns);
}

static bool guests_are_busy(struct pace *pace, uint64_t now_ns)
{
    if (pace->guest_ops != pace->host->guest_ops) {
        pace->guest_ops = pace->host->guest_ops;
        pace->guests_seen_ns = now_ns;
    }
    return pace->guests_seen_ns && now_ns - pace->guests_seen_ns < GUESTS_QUIET_NS;
}

static uint64_t rest_for(struct pace *pace, uint64_t bytes, uint64_t now_ns)
{
    uint64_t took_ns = max_u64(now_ns - pace->unit_began_ns,
                               bytes / KIB * NS_PER_KIB_MIN);
    uint64_t rest_ns = 0;

    if (guests_are_busy(pace, now_ns))
        rest_ns = min_u64(took_ns * PACE_REST * pace->parallel, REST_MAX_NS);
    if (pace->limit_bytes_s) {
        pace->allowed_ns += bytes * NS_PER_S / pace->limit_bytes_s * pace->parallel;
        if (pace->allowed_ns > now_ns)
            rest_ns = max_u64(rest_ns, pace->allowed_ns - now_ns);
        else
            pace->allowed_ns = now_ns; /* what was missed is not made good */
    }
    return rest_ns;
}

async void pace_rest(struct pace *pace, uint64_t bytes)
{
    struct loop *loop = pace->host->loop;
    uint64_t now_ns = loop_now_ns(loop);
    uint64_t until_ns = now_ns + rest_for(pace, bytes, now_ns);

    if (until_ns == now_ns)
        task_yield();
    while (now_ns < until_ns && !(pace->stop && *pace->stop)) {
        task_sleep_ns(min_u64(until_ns - now_ns, REST_SLICE_NS));
        now_ns = loop_now_ns(loop);
    }
    pace->unit_began_ns = loop_now_ns(loop);
}
