/* SPDX-License-Identifier: Apache-2.0 */
/* A line on a terminal that says how far something is. */
#ifndef PARALLAX_TOOLS_PROGRESS_H
#define PARALLAX_TOOLS_PROGRESS_H

#include "runtime/base.h"

struct progress {
    const char *what; /* static */
    bool quiet;       /* also when standard error is no terminal */
    bool shown;
    uint64_t started_ns, shown_ns;
};

void progress_init(struct progress *progress, const char *what, bool quiet);
/* total UINT64_MAX: not known. Cheap when called often. */
void progress_show(struct progress *progress, uint64_t done_bytes, uint64_t total_bytes);
/* Takes the line away, before anything else is printed. */
void progress_clear(struct progress *progress);

#endif
