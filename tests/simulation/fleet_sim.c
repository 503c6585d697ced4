/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fleet [-v [-v]] FIRST [LAST]: runs the histories of whole clusters of these seeds, each
 * in a child process that goes on from a cluster founded once for its size. One seed
 * alone runs in this process, with what the nodes log at -v -v. Ends with 1 if a seed
 * fails, at the latest after a few of them.
 */
#include <malloc.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/simulation/fleet.h"

#define FAILURES_MAX 10

static bool parse(const char *text, uint64_t *ret)
{
    char *end;
    errno = 0;
    *ret = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0' && end != text;
}

static struct fleet *founded[FLEET_NODES_MAX + 1];

/* True if the seed passes. */
static bool run_in_child(uint64_t seed, int verbosity)
{
    uint32_t size = fleet_size_of(seed);
    int status;
    if (founded[size] == NULL)
        founded[size] = fleet_found(size, 0);
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        perror("fleet: fork");
        exit(2);
    }
    if (child == 0) {
        founded[size]->verbosity = verbosity;
        fleet_run_seed(founded[size], seed);
        fflush(NULL);
        _exit(0);
    }
    if (waitpid(child, &status, 0) != child)
        return false;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    if (WIFSIGNALED(status))
        printf("seed %llu: signal %d\n", (unsigned long long)seed, WTERMSIG(status));
    printf("seed %llu FAILED; to repeat it: tests/sim --cluster %llu -v\n",
           (unsigned long long)seed, (unsigned long long)seed);
    return false;
}

int main(int argc, char **argv)
{
    uint64_t range[2] = {0, 0};
    int count = 0, verbosity = 0, failures = 0;
    bool good = true;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-v") == 0)
            verbosity++;
        else if (count < 2 && parse(argv[i], &range[count]))
            count++;
        else
            good = false;
    }
    /* Memory that comes and goes stays with the process. */
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
    if (!good || count == 0) {
        fprintf(stderr, "usage: fleet [-v [-v]] FIRST [LAST]\n");
        return 2;
    }
    if (count == 1) {
        fleet_run_seed(fleet_found(fleet_size_of(range[0]), verbosity), range[0]);
        fflush(NULL);
        _exit(0); /* what killed processes left is no leak */
    }
    for (uint64_t seed = range[0]; seed <= range[1]; seed++) {
        if (!run_in_child(seed, verbosity) && ++failures == FAILURES_MAX)
            return 1;
    }
    if (failures > 0)
        return 1;
    printf("seeds %llu to %llu passed\n", (unsigned long long)range[0],
           (unsigned long long)range[1]);
    return 0;
}
