/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/loop_internal.h"
#include "runtime/trace.h"
#include "tests/unit/check.h"

/* A loop of which only the clock works. */
static uint64_t fixed_now_ns(const struct loop *loop)
{
    (void)loop;
    return 1234567890123;
}

static const struct loop_ops fixed_ops = {.now_ns = fixed_now_ns};

static void read_all(int fd, char *ret, size_t cap)
{
    size_t len = 0;
    ssize_t n;
    while ((n = read(fd, ret + len, cap - 1 - len)) > 0)
        len += (size_t)n;
    ret[len] = '\0';
}

static void test_dump(struct loop *loop)
{
    trace(loop, "extent_append", 0x7f3a, 12, UINT64_MAX);
    trace(loop, "extent_stop", 0, 0, 1);
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    trace_dump(loop_trace(loop), ends[1]);
    close(ends[1]);
    char text[1000];
    read_all(ends[0], text, sizeof text);
    close(ends[0]);
    CHECK_STR(text, "1234567890123 extent_append 7f3a 12 18446744073709551615\n"
                    "1234567890123 extent_stop 0 0 1\n");
}

/* Names count by content, and every field and the order count. */
static void test_digest(void)
{
    static const char same_a[] = "same", same_b[] = "same";
    uint64_t digests[7];
    for (size_t i = 0; i < ARRAY_LEN(digests); i++) {
        struct loop loop;
        CHECK_EQ(loop_init(&loop, &fixed_ops), 0);
        if (i == 6)
            trace(&loop, "other", 2, 2, 3);
        trace(&loop, i == 1 ? same_b : same_a, i == 2 ? 9 : 1, i == 3 ? 9 : 2,
              i == 4 ? 9 : 3);
        if (i != 6)
            trace(&loop, i == 5 ? "othex" : "other", 2, 2, 3);
        digests[i] = trace_digest(loop_trace(&loop));
        loop_done(&loop);
    }
    CHECK(digests[0] == digests[1]);
    for (size_t i = 2; i < ARRAY_LEN(digests); i++)
        CHECK(digests[i] != digests[0]);
}

/* In a child: what abort prints is the last TRACE_EVENTS, oldest first. */
static void test_abort(void)
{
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        struct loop loop;
        if (loop_init(&loop, &fixed_ops) != 0)
            _exit(1);
        for (uint64_t i = 0; i < TRACE_EVENTS + 10; i++)
            trace(&loop, "event", i, 0, 0);
        trace_dump_on_abort();
        abort();
    }
    close(ends[1]);
    static char text[1 << 20];
    read_all(ends[0], text, sizeof text);
    close(ends[0]);
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    const char *first = strstr(text, ":\n1234567890123 event a 0 0\n");
    CHECK(first != NULL);
    const char *last = strstr(text, " event 1009 0 0\n");
    CHECK(last != NULL && last > first);
    CHECK(strstr(text, " event 9 0 0\n") == NULL);
}

int main(void)
{
    struct loop loop;
    CHECK_EQ(loop_init(&loop, &fixed_ops), 0);
    test_dump(&loop);
    loop_done(&loop);
    test_digest();
    test_abort();
    return 0;
}
