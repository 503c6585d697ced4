/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Happy path: log_line formats a line on the caller's stack and copies it to the ring;
 * the writer thread writes the ring's bytes, as many as lie together, without the lock,
 * and then gives their room back.
 *
 * What can fail: the ring is full: the line is counted, and when there is room again a
 * line says how many are missing. A write fails: those bytes are lost, as there is
 * nowhere else to complain.
 *
 * On close the writer empties the ring, then ends.
 */
#include "runtime/log.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "runtime/loop_internal.h"

#define RING_BYTES    ((size_t)(128 * KIB))
#define LINE_BYTES    1024U
#define WRITE_WAIT_MS 1000 /* for a reader that is behind, when fd does not block */

struct log {
    _Atomic int level;
    pthread_mutex_t lock; /* for all below */
    int fd;               /* -1: lines go nowhere */
    bool has_writer, stopping;
    uint64_t dropped;     /* lines, since the last one said so */
    uint64_t head, tail;  /* bytes ever put in and written; the ring is [tail, head) */
    pthread_cond_t appeared;
    pthread_t writer;
    char ring[RING_BYTES];
};

static void write_all(int fd, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, bytes, len);
        if (n > 0) {
            bytes += n;
            len -= (size_t)n;
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        struct pollfd pollfd = {.fd = fd, .events = POLLOUT};
        if (n == 0 || errno != EAGAIN || poll(&pollfd, 1, WRITE_WAIT_MS) <= 0)
            return;
    }
}

struct log *log_create(void)
{
    struct log *log = calloc(1, sizeof *log);
    if (log == NULL)
        return NULL;
    log->level = LOG_INFO;
    log->fd = -1;
    pthread_mutex_init(&log->lock, NULL);
    pthread_cond_init(&log->appeared, NULL);
    return log;
}

/* Needs the lock. */
static bool ring_put(struct log *log, const char *line, size_t len)
{
    if (len > RING_BYTES - (size_t)(log->head - log->tail))
        return false;
    size_t at = log->head % RING_BYTES;
    size_t first = (size_t)min_u64(len, RING_BYTES - at);
    memcpy(log->ring + at, line, first);
    memcpy(log->ring, line + first, len - first);
    log->head += len;
    return true;
}

/* Needs the lock. Says how many lines are missing, if any; false: no room for that. */
static bool report_dropped(struct log *log)
{
    if (log->dropped == 0)
        return true;
    char line[64];
    int n = snprintf(line, sizeof line, "(%llu log lines dropped)\n",
                     (unsigned long long)log->dropped);
    if (!ring_put(log, line, (size_t)n))
        return false;
    log->dropped = 0;
    return true;
}

/* Waits for bytes in the ring. False: there are none and there will be no more. */
static bool ring_wait(struct log *log)
{
    while (log->head == log->tail) {
        report_dropped(log); /* else it would have to wait for the next line */
        if (log->head != log->tail)
            break;
        if (log->stopping)
            return false;
        pthread_cond_wait(&log->appeared, &log->lock);
    }
    return true;
}

static void *writer_main(void *arg)
{
    struct log *log = arg;
    pthread_mutex_lock(&log->lock);
    while (ring_wait(log)) {
        size_t at = log->tail % RING_BYTES;
        size_t len = (size_t)min_u64(log->head - log->tail, RING_BYTES - at);
        int fd = log->fd;
        pthread_mutex_unlock(&log->lock);
        write_all(fd, log->ring + at, len);
        pthread_mutex_lock(&log->lock);
        log->tail += len;
    }
    pthread_mutex_unlock(&log->lock);
    return NULL;
}

int log_start_writer(struct log *log)
{
    assert(!log->has_writer);
    /* Signals are for the loop's thread. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    log->fd = STDERR_FILENO;
    int rc = pthread_create(&log->writer, NULL, writer_main, log);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    log->has_writer = rc == 0;
    return -rc;
}

void log_set_level(struct log *log, enum log_level level)
{
    log->level = (int)level;
}

void log_set_fd(struct log *log, int fd)
{
    pthread_mutex_lock(&log->lock);
    log->fd = fd;
    pthread_mutex_unlock(&log->lock);
}

/* "2025-01-31T12:00:00.123Z warning: " */
static size_t format_head(char *line, size_t cap, uint64_t wall_ns, enum log_level level)
{
    static const char *const words[] = {"error", "warning", "info", "debug"};
    time_t seconds = (time_t)(wall_ns / NS_PER_S);
    unsigned ms = (unsigned)(wall_ns % NS_PER_S / NS_PER_MS);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    size_t len = strftime(line, cap, "%Y-%m-%dT%H:%M:%S", &tm);
    int n = snprintf(line + len, cap - len, ".%03uZ %s: ", ms, words[level]);
    return len + (size_t)n;
}

/* A name from outside must not be able to fake a line of its own. */
static void blank_controls(char *text)
{
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            *text = ' ';
}

/* Ends with a newline; returns the length. */
static size_t attr_printf(5, 0) format_line(char *line, size_t cap, uint64_t wall_ns,
                                            enum log_level level, const char *fmt,
                                            va_list args)
{
    size_t head = format_head(line, cap, wall_ns, level);
    vsnprintf(line + head, cap - head, fmt, args);
    blank_controls(line + head);
    size_t len = strlen(line);
    line[len++] = '\n'; /* perhaps in place of the NUL */
    return len;
}

void log_line(struct loop *loop, enum log_level level, const char *fmt, ...)
{
    struct log *log = loop->log;
    if ((int)level > log->level)
        return;
    char line[LINE_BYTES];
    va_list args;
    va_start(args, fmt);
    size_t len = format_line(line, sizeof line, loop_wall_ns(loop), level, fmt, args);
    va_end(args);

    pthread_mutex_lock(&log->lock);
    if (log->has_writer) {
        if (!report_dropped(log) || !ring_put(log, line, len))
            log->dropped++;
        pthread_cond_signal(&log->appeared);
    } else if (log->fd >= 0) {
        write_all(log->fd, line, len);
    }
    pthread_mutex_unlock(&log->lock);
}

static void writer_stop(struct log *log)
{
    pthread_mutex_lock(&log->lock);
    log->stopping = true;
    pthread_cond_signal(&log->appeared);
    pthread_mutex_unlock(&log->lock);
    pthread_join(log->writer, NULL);
}

void log_destroy(struct log *log)
{
    if (log == NULL)
        return;
    if (log->has_writer)
        writer_stop(log);
    pthread_cond_destroy(&log->appeared);
    pthread_mutex_destroy(&log->lock);
    free(log);
}
