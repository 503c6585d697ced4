#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""islands.py FILE BYTES SEED: makes a sparse image, with islands of random data of many
sizes, aligned and not, a tenth of the whole. The first and the last byte are data."""

import os
import random
import sys


def main():
    path, size, rng = sys.argv[1], int(sys.argv[2]), random.Random(int(sys.argv[3]))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.ftruncate(fd, size)
    os.pwrite(fd, b"\x01", 0)
    os.pwrite(fd, b"\xff", size - 1)
    left = size // 10
    while left > 0:
        length = rng.choice((1, 511, 4096, 4096, 10000, 65536, 1 << 20))
        length = min(length, size)
        offset = rng.randrange(size - length + 1)
        if rng.random() < 0.7:
            offset -= offset % 4096
        os.pwrite(fd, rng.randbytes(length), offset)
        left -= length


main()
