/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines for people. Lines are formatted on the caller's thread into a bounded ring
 * and written by a thread of the loop's, so that nothing on a data path waits for a
 * terminal or a disk; when the ring is full lines are counted and dropped, visibly.
 * One failure is logged once, by the one that handles it, with identities.
 */
#ifndef PARALLAX_RUNTIME_LOG_H
#define PARALLAX_RUNTIME_LOG_H

#include "runtime/base.h"

struct loop;
struct log;

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

void log_set_level(struct log *log, enum log_level level);
/* fd: where lines go (default 2). A simulated loop's lines go nowhere unless set. */
void log_set_fd(struct log *log, int fd);
void log_line(struct loop *loop, enum log_level level, const char *fmt, ...)
    attr_printf(3, 4);

#define log_error(loop, ...)   log_line(loop, LOG_ERROR, __VA_ARGS__)
#define log_warning(loop, ...) log_line(loop, LOG_WARNING, __VA_ARGS__)
#define log_info(loop, ...)    log_line(loop, LOG_INFO, __VA_ARGS__)
#define log_debug(loop, ...)   log_line(loop, LOG_DEBUG, __VA_ARGS__)

#endif
