/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim [-v] FIRST [LAST]: runs the histories of these seeds, each in a child process (a
 * killed simulated process leaves its memory behind). One seed alone runs in this one.
 * Ends with 1 at the first seed that fails.
 */
#include <malloc.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/simulation/run.h"

static bool parse(const char *text, uint64_t *ret)
{
    char *end;
    errno = 0;
    *ret = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0' && end != text;
}

/* True if the seed passes. */
static bool run_in_child(uint64_t seed, bool is_verbose)
{
    int status;
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        perror("sim: fork");
        exit(2);
    }
    if (child == 0) {
        run_seed(seed, is_verbose);
        fflush(NULL);
        _exit(0);
    }
    if (waitpid(child, &status, 0) != child)
        return false;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    if (WIFSIGNALED(status))
        printf("seed %llu: signal %d\n", (unsigned long long)seed, WTERMSIG(status));
    printf("seed %llu FAILED; to repeat it: tests/sim %llu -v\n",
           (unsigned long long)seed, (unsigned long long)seed);
    return false;
}

int main(int argc, char **argv)
{
    uint64_t range[2] = {0, 0};
    int count = 0;
    bool is_verbose = false, good = true;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-v") == 0)
            is_verbose = true;
        else if (count < 2 && parse(argv[i], &range[count]))
            count++;
        else
            good = false;
    }
    /* Memory that comes and goes stays with the process. */
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
    if (!good || count == 0) {
        fprintf(stderr, "usage: sim [-v] FIRST [LAST]\n");
        return 2;
    }
    if (count == 1) {
        run_seed(range[0], is_verbose);
        fflush(NULL);
        _exit(0); /* what killed processes left is no leak */
    }
    for (uint64_t seed = range[0]; seed <= range[1]; seed++) {
        if (!run_in_child(seed, is_verbose))
            return 1;
    }
    printf("seeds %llu to %llu passed\n", (unsigned long long)range[0],
           (unsigned long long)range[1]);
    return 0;
}
