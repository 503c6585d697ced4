/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trace points. The digest takes in a name by its content, not its address, so that it
 * is the same in every process; the hashes are kept in a small table by address, as
 * names are static.
 */
#include "runtime/trace.h"

#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "runtime/loop_internal.h"

#define NAME_CACHE  256U /* a power of two */
#define DUMPED_MAX  64U  /* loops that abort() can print */
#define LINE_BYTES  256U
#define MIX         UINT64_C(0x9e3779b97f4a7c15)
#define FNV_START   UINT64_C(0xcbf29ce484222325)
#define FNV_PRIME   UINT64_C(0x100000001b3)

struct trace_event {
    const char *name;
    uint64_t time_ns, id, a, b;
};

struct name_hash {
    const char *name;
    uint64_t hash;
};

struct trace {
    uint64_t count; /* ever; the next goes to count % TRACE_EVENTS */
    uint64_t digest;
    struct name_hash names[NAME_CACHE];
    struct trace_event events[TRACE_EVENTS];
};

/* What abort() prints: a signal handler has no handle to find the loops by. */
static _Atomic(struct trace *) dumped[DUMPED_MAX];

struct trace *trace_create(void)
{
    struct trace *t = calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    for (size_t i = 0; i < DUMPED_MAX; i++) {
        struct trace *none = NULL;
        if (atomic_compare_exchange_strong(&dumped[i], &none, t))
            break;
    }
    return t;
}

void trace_destroy(struct trace *t)
{
    if (t == NULL)
        return;
    for (size_t i = 0; i < DUMPED_MAX; i++) {
        struct trace *mine = t;
        atomic_compare_exchange_strong(&dumped[i], &mine, NULL);
    }
    free(t);
}

static uint64_t name_hash(struct trace *t, const char *name)
{
    struct name_hash *known = &t->names[((uintptr_t)name >> 3) % NAME_CACHE];
    if (known->name == name)
        return known->hash;
    uint64_t hash = FNV_START;
    for (const char *c = name; *c != '\0'; c++)
        hash = (hash ^ (uint8_t)*c) * FNV_PRIME;
    *known = (struct name_hash){name, hash};
    return hash;
}

static uint64_t mix(uint64_t digest, uint64_t n)
{
    digest = (digest ^ n) * MIX;
    return digest ^ (digest >> 32);
}

void trace(struct loop *loop, const char *name, uint64_t id, uint64_t a, uint64_t b)
{
    struct trace *t = loop->trace;
    uint64_t now_ns = loop_now_ns(loop);
    t->events[t->count % TRACE_EVENTS] = (struct trace_event){name, now_ns, id, a, b};
    t->count++;
    uint64_t digest = mix(t->digest, name_hash(t, name));
    digest = mix(digest, now_ns);
    digest = mix(digest, id);
    digest = mix(digest, a);
    t->digest = mix(digest, b);
}

uint64_t trace_digest(const struct trace *t)
{
    return t->digest;
}

/* --- printing with nothing that a signal handler may not call --- */

struct line {
    char text[LINE_BYTES];
    size_t len;
};

static void put_char(struct line *line, char c)
{
    if (line->len < LINE_BYTES - 1) /* the last is for the newline */
        line->text[line->len++] = c;
}

static void put_text(struct line *line, const char *text)
{
    while (*text != '\0')
        put_char(line, *text++);
}

static void put_number(struct line *line, uint64_t n, unsigned base)
{
    char digits[20]; /* of UINT64_MAX in base 10 */
    size_t count = 0;
    do {
        digits[count++] = "0123456789abcdef"[n % base];
        n /= base;
    } while (n > 0);
    while (count > 0)
        put_char(line, digits[--count]);
}

static bool put_out(struct line *line, int fd)
{
    line->text[line->len++] = '\n';
    size_t done = 0;
    while (done < line->len) {
        ssize_t n = write(fd, line->text + done, line->len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

/* "time name id a b": nanoseconds, then the id in hexadecimal. */
void trace_dump(const struct trace *t, int fd)
{
    uint64_t first = t->count > TRACE_EVENTS ? t->count - TRACE_EVENTS : 0;
    for (uint64_t i = first; i < t->count; i++) {
        const struct trace_event *event = &t->events[i % TRACE_EVENTS];
        struct line line = {.len = 0};
        put_number(&line, event->time_ns, 10);
        put_char(&line, ' ');
        put_text(&line, event->name);
        put_char(&line, ' ');
        put_number(&line, event->id, 16);
        put_char(&line, ' ');
        put_number(&line, event->a, 10);
        put_char(&line, ' ');
        put_number(&line, event->b, 10);
        if (!put_out(&line, fd))
            return;
    }
}

static void on_abort(int signo)
{
    (void)signo;
    for (size_t i = 0; i < DUMPED_MAX; i++) {
        const struct trace *t = atomic_load(&dumped[i]);
        if (t == NULL || t->count == 0)
            continue;
        struct line line = {.len = 0};
        put_text(&line, "trace of loop ");
        put_number(&line, i, 10);
        put_char(&line, ':');
        put_out(&line, STDERR_FILENO);
        trace_dump(t, STDERR_FILENO);
    }
}

/* The handler returns and abort() then ends the process as without it. */
void trace_dump_on_abort(void)
{
    struct sigaction action = {.sa_handler = on_abort, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    sigaction(SIGABRT, &action, NULL);
}
