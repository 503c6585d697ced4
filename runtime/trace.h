/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trace points: a ring of the last few thousand events of a loop, each a static name
 * and three numbers, about 10 ns apiece. Printed when an assertion fails, on request,
 * and compared as text by the simulator's determinism test.
 */
#ifndef PARALLAX_RUNTIME_TRACE_H
#define PARALLAX_RUNTIME_TRACE_H

#include "runtime/base.h"

struct loop;
struct trace;

#define TRACE_EVENTS 4096U

/* name must be static. */
void trace(struct loop *loop, const char *name, uint64_t id, uint64_t a, uint64_t b);
/* Oldest first, one line each, to fd. Uses no allocation; fit for a signal handler. */
void trace_dump(const struct trace *t, int fd);
/* A digest over every event ever traced: equal runs have equal digests. */
uint64_t trace_digest(const struct trace *t);
/* Makes abort() (so also assert) print the trace of every loop of this process. */
void trace_dump_on_abort(void);

#endif
