/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream DEVICE BLOCKS: in a guest, writes blocks of 4 KiB, one at a time, each with its
 * number, its place and a checksum, to BLOCKS places in an order that comes back to each
 * after BLOCKS numbers. Reads earlier ones again and compares them. Every 32 it syncs,
 * and says "SEQ N" on the console: all up to N are safe. "ERROR ..." if anything fails,
 * and then it does nothing more. A "q" on the console ends it with "END N", N being the
 * last.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 4096U
#define STEP  7919U /* prime: no divisor of BLOCKS */

struct block {
    uint64_t seq, place;
    uint64_t words[(BLOCK - 24) / 8];
    uint32_t zero, crc; /* of all before */
};

static uint32_t crc32_of(const void *bytes, size_t len)
{
    const uint8_t *at = bytes;
    uint32_t crc = UINT32_MAX;
    while (len-- > 0) {
        crc ^= *at++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320U : 0);
    }
    return ~crc;
}

static void fail(const char *what, uint64_t seq)
{
    printf("ERROR %s %llu: %s\n", what, (unsigned long long)seq, strerror(errno));
    for (;;)
        pause();
}

static void make(struct block *block, uint64_t seq, uint64_t place)
{
    *block = (struct block){.seq = seq, .place = place};
    for (size_t i = 0; i < sizeof block->words / sizeof *block->words; i++)
        block->words[i] = (seq + i) * 0x9e3779b97f4a7c15U;
    block->crc = crc32_of(block, BLOCK - 4);
}

static void look_again(int fd, uint64_t seq, uint64_t blocks, struct block *read,
                       struct block *expected)
{
    uint64_t oldest = seq > blocks ? seq - blocks + 1 : 1;
    uint64_t back = oldest + (uint64_t)rand() % (seq - oldest + 1);
    uint64_t place = back * STEP % blocks;
    errno = 0;
    if (pread(fd, read, BLOCK, (off_t)(place * BLOCK)) != BLOCK)
        fail("read", back);
    make(expected, back, place);
    if (memcmp(read, expected, BLOCK) != 0)
        fail("compare", back);
}

static int is_told_to_end(void)
{
    char c;
    return read(0, &c, 1) == 1 && c == 'q';
}

int main(int argc, char **argv)
{
    static _Alignas(BLOCK) struct block write, read, expected;
    _Static_assert(sizeof write == BLOCK, "a block");
    uint64_t blocks = argc == 3 ? strtoull(argv[2], NULL, 10) : 0, seq;
    setvbuf(stdout, NULL, _IOLBF, 0);
    int fd = blocks > 0 ? open(argv[1], O_RDWR | O_DIRECT) : -1;
    if (fd < 0)
        fail("open", 0);
    fcntl(0, F_SETFL, O_NONBLOCK);
    for (seq = 1;; seq++) {
        uint64_t place = seq * STEP % blocks;
        make(&write, seq, place);
        if (pwrite(fd, &write, BLOCK, (off_t)(place * BLOCK)) != BLOCK)
            fail("write", seq);
        if (seq % 8 == 0)
            look_again(fd, seq, blocks, &read, &expected);
        if (seq % 32 == 0) {
            if (fdatasync(fd) < 0)
                fail("sync", seq);
            printf("SEQ %llu\n", (unsigned long long)seq);
            if (is_told_to_end())
                break;
        }
    }
    printf("END %llu\n", (unsigned long long)seq);
    for (;;)
        pause();
}
