/* SPDX-License-Identifier: Apache-2.0 */
/* SIGINT and SIGTERM as a question, for commands that have something to clean up. */
#ifndef PARALLAX_TOOLS_INTERRUPT_H
#define PARALLAX_TOOLS_INTERRUPT_H

#include <stdbool.h>

/* From now on the first such signal interrupts system calls and is remembered; the
 * second one ends the process. */
void interrupt_catch(void);
bool interrupted(void);

#endif
