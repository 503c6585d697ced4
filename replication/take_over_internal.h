/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of a take-over share. The steps are those of doc/protocol.md:
 *
 *   log_open.c      1 the lease, 5 the cut, and the whole
 *   log_collect.c   2 stopping, 3 collecting, and how long to wait for whom
 *   take_over_plan.c  3 the decision
 *   log_again.c     4 what is not on every member is written again
 */
#ifndef PARALLAX_REPLICATION_TAKE_OVER_INTERNAL_H
#define PARALLAX_REPLICATION_TAKE_OVER_INTERNAL_H

#include "replication/disk_log_internal.h"
#include "replication/take_over_plan.h"

/* Once a copy that was stopped live has answered, it has all that was acknowledged; so
 * long others may add what was not. */
#define TAKE_OVER_SHORT_NS (200 * NS_PER_MS)
/* Copies that were found by a restart scan may have lost what others still have: so long
 * these are waited for. Then two such copies will do, one alone will not. */
#define TAKE_OVER_LONG_NS  (60 * NS_PER_S)
/* Then it fails and says who is missing; whoever wants the disk tries again. */
#define TAKE_OVER_WAIT_NS  (90 * NS_PER_S)
/* It says for whom it waits when it has waited for so long. */
#define TAKE_OVER_SAY_NS   (2 * NS_PER_S)
/* A member out of reach is asked again after so long. */
#define TAKE_OVER_RETRY_NS (200 * NS_PER_MS)
/* What is written again is read so much ahead of being flushed. */
#define TAKE_OVER_BYTES    (8 * MIB)

static_assert(TAKE_OVER_SHORT_NS < TAKE_OVER_LONG_NS, "the longer wait is longer");
static_assert(TAKE_OVER_LONG_NS < TAKE_OVER_WAIT_NS, "two copies get their chance");

struct take_over {
    const struct log_options *options;
    struct disk_log *log;
    struct take_over_plan plan;
    struct plan_extent *extents;
    struct cluster_cut *cuts;
    struct final_length *finals;
    uint32_t final_count;
    uint64_t found_flushed; /* on every member before anything was written again */
    struct error *err;
};

/* Steps 2 and 3: stops every extent on at least one member, and fills in the copies of
 * those that are enough. */
async int take_over_collect(struct take_over *over);

/* Step 4: writes the batches above found_flushed to extents of the new epoch, on all
 * their members, and flushes them. */
async int take_over_write_again(struct take_over *over);

#endif
