/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes as people write them: binary, with one letter. */
#ifndef PARALLAX_TOOLS_SIZE_H
#define PARALLAX_TOOLS_SIZE_H

#include "runtime/base.h"
#include "runtime/error.h"

/* "4096", "512M", "10G", "1.5T"; K, M, G, T and P, in either case, may be followed by
 * "i" or "iB". -EINVAL with a text that says what is wrong. */
int size_parse(const char *text, uint64_t *ret_bytes, struct error *err);

/* The same for the size of a disk: not zero, a multiple of BLOCK_SIZE, and at most
 * DISK_BYTES_MAX. */
int size_parse_disk(const char *text, uint64_t *ret_bytes, struct error *err);

/* "0", "4K", "1.5G": exact when one decimal is, else rounded to it. By value, so that it
 * can be printed in place: size_text(n).text */
struct size_text {
    char text[24];
};
struct size_text size_text(uint64_t bytes);

#endif
