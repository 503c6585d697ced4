/* SPDX-License-Identifier: Apache-2.0 */
/* What recovery does with one extent, from what is known of it. Pure. doc/recovery.md
 * says why. */
#ifndef PARALLAX_REPLICATION_RECOVERY_DECIDE_H
#define PARALLAX_REPLICATION_RECOVERY_DECIDE_H

#include "blockstore/copy_rpc.h"

struct recovery_facts {
    /* What the state of this node says. */
    bool is_opened;  /* some command it has applied has opened the extent */
    bool is_listed;  /* a disk lists it, */
    bool has_length; /* with a committed length */
    uint32_t length;
    bool has_disk;  /* the disk that the extent says it is of is there */
    bool is_unsure; /* that nobody has it says nothing: cluster_group.unsure_below */
    /* What a whole member has, which was asked after that, and what is here. */
    struct copy_extent source, local;
};

enum recovery_action {
    RECOVERY_NOTHING,
    RECOVERY_COPY,           /* all of it; what is here is stopped first */
    RECOVERY_FINALIZE,       /* what is here ends at *ret_length */
    RECOVERY_FINALIZE_THERE, /* what the source has ends at *ret_length; then look again
                              */
    RECOVERY_MERGE,          /* what is dead there is dead here */
    RECOVERY_DROP,           /* what is here is of nothing any more */
    RECOVERY_ASK_DROP,       /* the same, if all whole members say so */
    RECOVERY_WAIT,           /* somebody else has to do something first */
    RECOVERY_CONFLICT,       /* it cannot be so: nothing is touched */
};
enum recovery_action recovery_decide(const struct recovery_facts *facts,
                                     uint32_t *ret_length);

#endif
