/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "tools/size.h"

#define REFRESH_NS (200 * NS_PER_MS)
#define BAR_WIDTH  30

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

void progress_init(struct progress *progress, const char *what, bool quiet)
{
    *progress = (struct progress){.what = what, .quiet = quiet || !isatty(STDERR_FILENO)};
    progress->started_ns = now_ns();
}

static void print_bar(double part)
{
    char bar[BAR_WIDTH + 1];
    int full = (int)(part * BAR_WIDTH);
    for (int i = 0; i < BAR_WIDTH; i++)
        bar[i] = i < full ? '#' : '-';
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "[%s] %3d%%  ", bar, (int)(part * 100));
}

void progress_show(struct progress *progress, uint64_t done_bytes, uint64_t total_bytes)
{
    uint64_t now = now_ns();
    if (progress->quiet || now - progress->shown_ns < REFRESH_NS)
        return;
    progress->shown_ns = now;
    progress->shown = true;
    double seconds = (double)(now - progress->started_ns) / (double)NS_PER_S;
    double rate = seconds > 0 ? (double)done_bytes / seconds : 0;
    fprintf(stderr, "\r\033[K%s  ", progress->what);
    if (total_bytes != UINT64_MAX && total_bytes > 0)
        print_bar((double)done_bytes / (double)total_bytes);
    fprintf(stderr, "%s, %s/s", size_text(done_bytes).text,
            size_text((uint64_t)rate).text);
    if (total_bytes != UINT64_MAX && rate > 1 && done_bytes <= total_bytes) {
        uint64_t left = (uint64_t)((double)(total_bytes - done_bytes) / rate);
        fprintf(stderr, ", %" PRIu64 ":%02" PRIu64 " left", left / 60, left % 60);
    }
    fflush(stderr);
}

void progress_clear(struct progress *progress)
{
    if (progress->shown)
        fputs("\r\033[K", stderr);
    progress->shown = false;
}
