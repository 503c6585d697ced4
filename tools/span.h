/* SPDX-License-Identifier: Apache-2.0 */
/* Spans of time as people write them: a number with one letter; and moments. */
#ifndef PARALLAX_TOOLS_SPAN_H
#define PARALLAX_TOOLS_SPAN_H

#include "runtime/base.h"
#include "runtime/error.h"

/* Longer ones are refused. */
#define SPAN_SECONDS_MAX (1000 * 366 * 24 * (uint64_t)3600)

/* "90s", "30m", "12h", "7d", "2w" and "0". -EINVAL with a text that says what is wrong.
 */
int span_parse(const char *text, uint64_t *ret_seconds, struct error *err);

/* In the largest unit that is exact: "0", "90m", "1d". What it prints, span_parse reads.
 */
struct span_text {
    char text[24];
};
struct span_text span_text(uint64_t seconds);

/* A moment in seconds since 1970: a span means so long before now_s, and "2026-01-31",
 * "2026-01-31T12:00" or "2026-01-31T12:00:00", with or without a Z, are in UTC. */
int moment_parse(const char *text, uint64_t now_s, uint64_t *ret_s, struct error *err);

/* "2026-01-31T12:00:00Z"; "never" for 0. */
struct moment_text {
    char text[32];
};
struct moment_text moment_text(uint64_t seconds);

#endif
