#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""full-sparse.py URI fill|trim|write: the work of full-sparse.sh.

`fill` writes blocks all over the disk until 40 were refused, then reads them all;
`trim` discards the whole disk; `write` writes as many as must fit again."""

import errno
import os
import random
import sys

import nbd

BLOCK = 4096
DEPTH = 32
REFUSALS = 40
AGAIN = 2000


def content(place):
    return place.to_bytes(8, "little") * (BLOCK // 8)


def fill(handle, blocks):
    rng, written, refused = random.Random(1), [], []

    def put(place):
        def done(error):
            if error.value:
                assert error.value == errno.ENOSPC, os.strerror(error.value)
            (refused if error.value else written).append(place)
            return 1
        data = nbd.Buffer.from_bytearray(bytearray(content(place)))
        handle.aio_pwrite(data, place * BLOCK, completion=done)

    while len(refused) < REFUSALS or handle.aio_in_flight():
        while handle.aio_in_flight() < DEPTH and len(refused) < REFUSALS:
            put(rng.randrange(blocks))
        handle.poll(1000)
    for place in written:
        found = bytes(handle.pread(BLOCK, place * BLOCK))
        assert found == content(place), f"block {place}"
    print(f"{len(written)} blocks written and read")


def trim(handle, size):
    for offset in range(0, size, 1 << 30):
        handle.trim(1 << 30, offset)


def write(handle, blocks):
    rng = random.Random(2)
    for _ in range(AGAIN):
        place = rng.randrange(blocks)
        handle.pwrite(content(place), place * BLOCK)


def main():
    handle = nbd.NBD()
    handle.connect_uri(sys.argv[1])
    size = handle.get_size()
    if sys.argv[2] == "trim":
        trim(handle, size)
    else:
        {"fill": fill, "write": write}[sys.argv[2]](handle, size // BLOCK)
    handle.shutdown()


main()
