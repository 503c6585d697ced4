/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a simulated guest writes. The bytes follow from the number of the change and their
 * place on the disk, so nothing is kept, and what is read tells who wrote it: each sector
 * begins with the change's number and its own.
 */
#ifndef PARALLAX_TESTS_SIMULATION_CONTENT_H
#define PARALLAX_TESTS_SIMULATION_CONTENT_H

#include "runtime/runtime.h"

/* Bytes [offset, offset + len) of the disk, as change `id` writes them. */
void content_fill(uint64_t id, uint64_t offset_bytes, uint8_t *ret, size_t len);

/* Of a `mixed` change some blocks are all zeros. */
bool content_block_is_zero(uint64_t id, uint64_t block);

/* What a block claims to be, for a message. */
void content_describe(const uint8_t *block, char *ret, size_t cap);

#endif
