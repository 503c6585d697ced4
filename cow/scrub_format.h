/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the scrub keeps in the key-value store. doc/scrub.md describes it.
 *
 * Keys: "vs" for how far it is; "vf" and one byte for each line of its findings.
 */
#ifndef PARALLAX_COW_SCRUB_FORMAT_H
#define PARALLAX_COW_SCRUB_FORMAT_H

#include "runtime/format.h"

#define SCRUB_STATE_KEY      "vs"
#define SCRUB_FINDING_PREFIX "vf"
#define SCRUB_KEY_BYTES      2U

#define SCRUB_STATE_MAGIC   0x31535650U /* "PVS1" */
#define SCRUB_FINDING_MAGIC 0x31465650U /* "PVF1" */
#define SCRUB_VERSION       1U

enum {
    SCRUB_UNDER_WAY = 1U << 0, /* a pass has begun and not ended */
    SCRUB_PAUSED = 1U << 1,
    SCRUB_FLAGS_KNOWN = (1U << 2) - 1,
};

struct scrub_state_format {
    le32 magic;
    le16 version;
    le16 flags;
    le64 next;             /* the pass has seen to all extents below this address */
    le64 done_bytes, total_bytes;
    le64 findings;
    le64 started_wall_ns;  /* of this pass, or of the last one */
    le64 finished_wall_ns; /* of the last one that ended; 0: none */
    le64 counted_wall_ns;  /* the next automatic one is due so long after this */
    le64 limit_bytes_s;
    le32 skipped_count;
    /* Then skipped_count of le64, extents that were open; le32 CRC32C of all before. */
};
static_assert(sizeof(struct scrub_state_format) == 76, "no padding");

#define SCRUB_SKIPPED_MAX 256U

struct scrub_finding_format {
    le32 magic;
    le16 version;
    le16 len;
    le64 sequence;         /* lines are ordered by it */
    /* Then len bytes of text; le32 CRC32C of all before. */
};
static_assert(sizeof(struct scrub_finding_format) == 16, "no padding");

#define SCRUB_LINES_MAX 256U
#define SCRUB_LINE_MAX  512U /* bytes, with the NUL */

#endif
