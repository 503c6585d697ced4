/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <unistd.h>

#include "runtime/log.h"
#include "runtime/loop_internal.h"
#include "tests/unit/check.h"

static uint64_t fixed_wall_ns(const struct loop *loop)
{
    (void)loop;
    return UINT64_C(1700000000) * NS_PER_S + 42 * NS_PER_MS;
}

static const struct loop_ops fixed_ops = {.wall_ns = fixed_wall_ns};

static char *read_all(int fd)
{
    size_t cap = 1 << 20, len = 0;
    char *text = malloc(cap);
    ssize_t n;
    while ((n = read(fd, text + len, cap - 1 - len)) > 0)
        len += (size_t)n;
    text[len] = '\0';
    return text;
}

/* Without a writer nothing is written until a descriptor is set, then at once. */
static void test_direct(void)
{
    struct loop loop;
    CHECK_EQ(loop_init(&loop, &fixed_ops), 0);
    log_error(&loop, "into the void");
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    log_set_fd(loop_log(&loop), ends[1]);
    log_error(&loop, "disk %s:\nread", "web01");
    log_debug(&loop, "too much detail");
    log_set_level(loop_log(&loop), LOG_DEBUG);
    log_debug(&loop, "detail");
    log_set_level(loop_log(&loop), LOG_ERROR);
    log_warning(&loop, "not now");
    loop_done(&loop);
    close(ends[1]);
    char *text = read_all(ends[0]);
    CHECK_STR(text, "2023-11-14T22:13:20.042Z error: disk web01: read\n"
                    "2023-11-14T22:13:20.042Z debug: detail\n");
    free(text);
    close(ends[0]);
}

/* The end of the log writes what is in the ring, in order; a long line is cut. */
static void test_writer(void)
{
    struct loop loop;
    int ends[2];
    char huge[3000];
    memset(huge, 'x', sizeof huge - 1);
    huge[sizeof huge - 1] = '\0';
    CHECK_EQ(loop_init(&loop, &fixed_ops), 0);
    CHECK_EQ(log_start_writer(loop_log(&loop)), 0);
    CHECK_EQ(pipe(ends), 0);
    log_set_fd(loop_log(&loop), ends[1]);
    for (int i = 0; i < 500; i++)
        log_info(&loop, "line %d.", i);
    log_info(&loop, "%s", huge);
    loop_done(&loop);
    close(ends[1]);
    char *text = read_all(ends[0]);
    const char *at = text;
    for (int i = 0; i < 500; i++) {
        char want[32];
        snprintf(want, sizeof want, "info: line %d.\n", i);
        at = strstr(at, want);
        CHECK(at != NULL);
    }
    CHECK_EQ(strlen(strrchr(text, ' ')), 1024 - strlen("2023-11-14T22:13:20.042Z info:"));
    free(text);
    close(ends[0]);
}

/* While the reader is stuck the ring fills up; what is missing is said afterwards, and
 * what is there plus what is missing is all there was. */
static void test_dropped(void)
{
    enum { LINES = 10000 };
    struct loop loop;
    int ends[2];
    CHECK_EQ(loop_init(&loop, &fixed_ops), 0);
    CHECK_EQ(log_start_writer(loop_log(&loop)), 0);
    CHECK_EQ(pipe(ends), 0);
    log_set_fd(loop_log(&loop), ends[1]);
    for (int i = 0; i < LINES; i++)
        log_info(&loop, "a line like many others");
    /* loop_done waits for the reader, so that is another process. */
    int results[2];
    CHECK_EQ(pipe(results), 0);
    pid_t child = fork();
    if (child == 0) {
        close(ends[1]);
        char *text = read_all(ends[0]);
        long long lines = 0, dropped = 0;
        for (const char *at = text; (at = strstr(at, "like many")) != NULL; at++)
            lines++;
        for (const char *said = text; (said = strchr(said, '(')) != NULL; said++)
            dropped += strtoll(said + 1, NULL, 10);
        free(text);
        long long sums[2] = {lines, dropped};
        _exit(write(results[1], sums, sizeof sums) == sizeof sums ? 0 : 1);
    }
    loop_done(&loop);
    close(ends[1]);
    long long sums[2];
    CHECK_EQ(read(results[0], sums, sizeof sums), sizeof sums);
    CHECK(sums[1] > 0);
    CHECK_EQ(sums[0] + sums[1], LINES);
    close(ends[0]);
    close(results[0]);
    close(results[1]);
}

int main(void)
{
    test_direct();
    test_writer();
    test_dropped();
    return 0;
}
