/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/interrupt.h"

#include <signal.h>
#include <stddef.h>

/* A signal handler gets no argument, so this one flag belongs to the process. */
static volatile sig_atomic_t caught;

static void on_signal(int signo)
{
    (void)signo;
    caught = 1;
}

void interrupt_catch(void)
{
    struct sigaction action = {
        .sa_handler = on_signal,
        .sa_flags = (int)SA_RESETHAND, /* no SA_RESTART: calls that block return */
    };
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool interrupted(void)
{
    return caught != 0;
}
