/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/simulation/content.h"

#include <stdio.h>

#define SECTOR 512U
#define WORDS  (SECTOR / sizeof(uint64_t))

static uint64_t mix(uint64_t n)
{
    n = (n ^ (n >> 30)) * 0xbf58476d1ce4e5b9U;
    n = (n ^ (n >> 27)) * 0x94d049bb133111ebU;
    return n ^ (n >> 31);
}

static void fill_sector(uint64_t id, uint64_t sector, uint64_t ret[WORDS])
{
    uint64_t word = mix(id * 0x9e3779b97f4a7c15U + sector);
    ret[0] = id;
    ret[1] = sector;
    for (size_t i = 2; i < WORDS; i++) {
        word = word * 6364136223846793005U + 1442695040888963407U;
        ret[i] = word;
    }
}

void content_fill(uint64_t id, uint64_t offset_bytes, uint8_t *ret, size_t len)
{
    uint64_t words[WORDS];
    while (len > 0) {
        size_t inside = (size_t)(offset_bytes % SECTOR);
        size_t part = SECTOR - inside < len ? SECTOR - inside : len;
        fill_sector(id, offset_bytes / SECTOR, words);
        memcpy(ret, (const uint8_t *)words + inside, part);
        offset_bytes += part;
        ret += part;
        len -= part;
    }
}

bool content_block_is_zero(uint64_t id, uint64_t block)
{
    return mix(id ^ mix(block)) % 4 == 0;
}

void content_describe(const uint8_t *block, char *ret, size_t cap)
{
    uint64_t words[WORDS], expected[WORDS];
    size_t used = 0;
    if (bytes_are_zero(block, BLOCK_SIZE)) {
        snprintf(ret, cap, "zeros");
        return;
    }
    ret[0] = '\0';
    for (uint32_t i = 0; i < BLOCK_SIZE / SECTOR && used + 1 < cap; i++) {
        memcpy(words, block + i * SECTOR, sizeof words);
        fill_sector(words[0], words[1], expected);
        int n;
        if (bytes_are_zero(words, sizeof words))
            n = snprintf(ret + used, cap - used, " 0");
        else if (memcmp(words, expected, sizeof words) == 0)
            n = snprintf(ret + used, cap - used, " %llu:%llu",
                         (unsigned long long)words[0], (unsigned long long)words[1]);
        else
            n = snprintf(ret + used, cap - used, " ?");
        used += n > 0 ? (size_t)n : 0;
    }
}
