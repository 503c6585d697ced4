/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CRC32C. ISA-L's crc32_iscsi works on the raw register: it neither sets all bits first
 * nor inverts the result, so both are done here. Its length is an int and its buffer is
 * not const, though it only reads it.
 */
#include "runtime/crc32c.h"

#include <isa-l/crc.h>

#define CHUNK_BYTES ((size_t)GIB)

uint32_t crc32c_more(uint32_t crc, const void *bytes, size_t len)
{
    unsigned char *at = (unsigned char *)(uintptr_t)bytes;
    uint32_t raw = ~crc;
    while (len > 0) {
        size_t n = len < CHUNK_BYTES ? len : CHUNK_BYTES;
        raw = crc32_iscsi(at, (int)n, raw);
        at += n;
        len -= n;
    }
    return ~raw;
}

uint32_t crc32c(const void *bytes, size_t len)
{
    return crc32c_more(0, bytes, len);
}

/* The vectors of RFC 3720 B.4 that are 32 bytes long, and the usual check value. */
bool crc32c_self_test(void)
{
    uint8_t zeros[32], ones[32], up[32], down[32];
    for (size_t i = 0; i < 32; i++) {
        zeros[i] = 0;
        ones[i] = 0xff;
        up[i] = (uint8_t)i;
        down[i] = (uint8_t)(31 - i);
    }
    const struct {
        const void *bytes;
        size_t len;
        uint32_t crc;
    } vectors[] = {
        {"", 0, 0},
        {"123456789", 9, 0xe3069283},
        {zeros, 32, 0x8a9136aa},
        {ones, 32, 0x62a8ab43},
        {up, 32, 0x46dd794e},
        {down, 32, 0x113fdb5c},
    };
    for (size_t i = 0; i < ARRAY_LEN(vectors); i++) {
        const uint8_t *bytes = vectors[i].bytes;
        size_t len = vectors[i].len;
        if (crc32c(bytes, len) != vectors[i].crc)
            return false;
        /* Short and unaligned pieces take other paths of the library. */
        for (size_t split = 0; split <= len; split++) {
            uint32_t crc = crc32c(bytes, split);
            if (crc32c_more(crc, bytes + split, len - split) != vectors[i].crc)
                return false;
        }
    }
    return true;
}
