/* SPDX-License-Identifier: Apache-2.0 */
/* Space that is lost on purpose. */
#ifndef PARALLAX_TESTS_SIMULATION_LOSE_H
#define PARALLAX_TESTS_SIMULATION_LOSE_H

#include "cow/cow.h"

/* Up to `wanted` dead blocks of final extents live again, as if the lists that named them
 * had been lost. Returns how many. */
uint32_t lose_blocks(struct host *host, uint32_t wanted);

#endif
