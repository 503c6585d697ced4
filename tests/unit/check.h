/* SPDX-License-Identifier: Apache-2.0 */
/* What a unit test needs: it ends with 1 and says where at the first thing wrong. */
#ifndef PARALLAX_TESTS_UNIT_CHECK_H
#define PARALLAX_TESTS_UNIT_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(cond)                                                                      \
    do {                                                                                 \
        if (!(cond)) {                                                                   \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond);         \
            exit(1);                                                                     \
        }                                                                                \
    } while (0)

/* Two integers; both are printed. */
#define CHECK_EQ(a, b)                                                                   \
    do {                                                                                 \
        long long a_ = (long long)(a), b_ = (long long)(b);                              \
        if (a_ != b_) {                                                                  \
            fprintf(stderr, "%s:%d: %s is %lld, not %s, %lld\n", __FILE__, __LINE__, #a, \
                    a_, #b, b_);                                                         \
            exit(1);                                                                     \
        }                                                                                \
    } while (0)

#define CHECK_STR(a, b)                                                                  \
    do {                                                                                 \
        const char *a_ = (a), *b_ = (b);                                                 \
        if (strcmp(a_, b_) != 0) {                                                       \
            fprintf(stderr, "%s:%d: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__, #a, \
                    a_, b_);                                                             \
            exit(1);                                                                     \
        }                                                                                \
    } while (0)

/* How many of so many seeds to run. Where each takes long, list-unit-tests sets a
 * divisor. */
static inline uint64_t seeds_of(uint64_t count)
{
    const char *divisor = getenv("TEST_SEEDS_DIVISOR");
    uint64_t by = divisor != NULL ? strtoull(divisor, NULL, 10) : 1;
    return by <= 1 ? count : by < count ? count / by : 1;
}

#endif
