/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/crc32c.h"
#include "tests/unit/check.h"

/* The definition, bit by bit. */
static uint32_t slow_crc32c(const uint8_t *bytes, size_t len)
{
    uint32_t crc = ~0U;
    for (size_t i = 0; i < len; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ ((crc & 1) != 0 ? 0x82f63b78U : 0);
    }
    return ~crc;
}

int main(void)
{
    CHECK(crc32c_self_test());
    CHECK_EQ(crc32c("123456789", 9), 0xe3069283);
    static uint8_t bytes[20000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 256);
    const size_t lens[] = {0, 1, 7, 8, 63, 512, 4095, 4096, 4097, 16384};
    for (size_t i = 0; i < ARRAY_LEN(lens); i++) {
        for (size_t offset = 0; offset < 9; offset++) {
            const uint8_t *at = bytes + offset;
            CHECK_EQ(crc32c(at, lens[i]), slow_crc32c(at, lens[i]));
            uint32_t half = crc32c(at, lens[i] / 2);
            CHECK_EQ(crc32c_more(half, at + lens[i] / 2, lens[i] - lens[i] / 2),
                     slow_crc32c(at, lens[i]));
        }
    }
    return 0;
}
