/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Take-over, step 3 of doc/protocol.md, as a decision: what was found of a disk's
 * extents goes in, the end of the log comes out. No clock, no I/O, no allocation.
 *
 *   1. A cut voids what an older epoch wrote above its number: a copy counts only up to
 *      there, and up to the committed length, if there is one.
 *   2. An extent must hold its numbers up to F, the highest number known to be flushed.
 *      Which its numbers are says its committed length, else a roll record that names it,
 *      else the first batch of the next extent that has any. A copy that ends before
 *      that is damaged. Of the others the longest counts.
 *   3. The log is the numbers above `covers` up to the first gap; a number may lie in
 *      several extents, with the same bytes.
 *   4. Of a number that lies in several extents the last one counts: a forced roll, or a
 *      take-over, wrote again only what was not flushed, and what a committed root names
 *      was flushed, so no root can name an earlier place.
 *   5. A number may stay where it counts if all members have it there: the extent is
 *      final; or all members have answered and have it; or a command says that it was
 *      flushed (rule 4: there); or it is known to be flushed and lies nowhere else. From
 *      the first number on of which none of this is sure, all is written again. It is not
 *      enough that a number is on all members of an earlier extent, nor that it is known
 *      to be flushed: its last place may be a dead take-over's, with one copy.
 *      Members that were declared lost count as if they had never been any.
 *   6. An extent without a committed length keeps its batches up to the last one that may
 *      stay and that no later extent has.
 */
#ifndef PARALLAX_REPLICATION_TAKE_OVER_PLAN_H
#define PARALLAX_REPLICATION_TAKE_OVER_PLAN_H

#include "replication/cluster_state.h"

/* What one member has of an extent. */
struct plan_copy {
    uint64_t node;
    uint32_t end;           /* sound up to this block, where this batch ends: */
    uint64_t end_number;
    uint64_t first, last;   /* numbers of its batches; 0, 0: none */
    bool is_broken;         /* a header inside its own length is bad */
    bool is_damaged;        /* out: does not count */
};

struct plan_extent {
    struct address extent;
    uint64_t epoch;
    bool is_final;          /* its length is committed: */
    uint32_t length;
    uint64_t last_number;
    bool is_skipped;        /* final, and nothing in it is above `covers`: not walked */
    bool is_rolled;         /* a roll record names it, with this last number: */
    uint64_t rolled_number;
    uint32_t copy_count;    /* members in reach */
    uint32_t member_count;  /* that were not declared lost */
    struct plan_copy copies[REPLICAS_MAX];
    /* out: */
    uint64_t first, last;   /* of the copy that counts, without what is void */
    uint64_t keep;          /* its last number that stays; 0: nothing */
    uint32_t source;        /* index of that copy */
};

struct take_over_plan {
    uint64_t covers;        /* the log begins after this number */
    uint64_t known_flushed; /* F */
    uint64_t committed;     /* the highest number that a command says is flushed; at
                             * least `covers`, at most F */
    const struct cluster_cut *cuts;
    uint32_t cut_count;
    struct plan_extent *extents; /* in order of sequence */
    uint32_t extent_count;
    /* out: */
    uint64_t last;          /* the end of the log */
    uint64_t flushed;       /* it and all before are on every member where they count */
};

/* 0, or -PLX_EDAMAGED with a text that names what is missing. */
int take_over_decide(struct take_over_plan *plan, struct error *err);

#endif
