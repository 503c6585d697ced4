/* SPDX-License-Identifier: Apache-2.0 */
/* CRC32C (Castagnoli, RFC 3720 B.4) by ISA-L, in its standard form:
 * crc32c("123456789") is 0xe3069283. */
#ifndef PARALLAX_RUNTIME_CRC32C_H
#define PARALLAX_RUNTIME_CRC32C_H

#include "runtime/base.h"

uint32_t crc32c(const void *bytes, size_t len);
/* Goes on from an earlier value: crc32c_more(crc32c(a), b) == crc32c(a then b). */
uint32_t crc32c_more(uint32_t crc, const void *bytes, size_t len);
/* Checks the library against known vectors; false means: do not start. */
bool crc32c_self_test(void);

#endif
