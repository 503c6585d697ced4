#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The work of incremental.sh:
incremental.py write URI SEED      scattered writes, zeroes and discards
incremental.py compare URI URI     both have the same size and content
incremental.py copy FROM BASE TO   copies what is changed in FROM since its snapshot BASE
                                   to TO, a URI or a raw image, found by block status;
                                   prints the bytes copied
incremental.py contexts URI        the names of all contexts, one a line"""

import os
import random
import sys

import nbd

BLOCK = 4096
CHUNK = 1 << 20
SINCE = "parallax:changed-since:"


def connect(uri, *contexts):
    handle = nbd.NBD()
    for context in contexts:
        handle.add_meta_context(context)
    handle.connect_uri(uri)
    return handle


def write(uri, seed):
    handle, rng = connect(uri), random.Random(int(seed))
    blocks = handle.get_size() // BLOCK
    for _ in range(200):
        kind = rng.randrange(4)
        count = min(rng.choice((1, 1, 2, 16, 300)), blocks)
        first = rng.randrange(blocks - count + 1)
        if kind == 0:
            handle.zero(count * BLOCK, first * BLOCK)
        elif kind == 1:
            handle.trim(count * BLOCK, first * BLOCK)
        else:
            handle.pwrite(rng.randbytes(count * BLOCK), first * BLOCK)
    handle.flush()
    handle.shutdown()


def compare(first, second):
    a, b = connect(first), connect(second)
    size = a.get_size()
    assert size == b.get_size(), f"{size} bytes, {b.get_size()} bytes"
    for offset in range(0, size, CHUNK):
        count = min(CHUNK, size - offset)
        assert a.pread(count, offset) == b.pread(count, offset), f"differ at {offset}"


def ranges(handle, context):
    """(offset, length, flags) of all of the disk."""
    found, size = [], handle.get_size()

    def keep(name, offset, entries, _error):
        if name != context:
            return 0
        for length, flags in zip(entries[::2], entries[1::2]):
            found.append((offset, length, flags))
            offset += length
        return 0

    at = 0
    while at < size:
        handle.block_status(min(size - at, 1 << 30), at, keep)
        at = found[-1][0] + found[-1][1]
    return found


class Image:
    """A raw image, written like a disk."""

    def __init__(self, path):
        self.file = open(path, "r+b", buffering=0)

    def pwrite(self, data, offset):
        assert os.pwrite(self.file.fileno(), data, offset) == len(data)

    def flush(self):
        os.fsync(self.file.fileno())

    def shutdown(self):
        self.file.close()


def copy(source, base, target):
    a = connect(source, SINCE + base)
    b = connect(target) if target.startswith("nbd") else Image(target)
    assert a.can_meta_context(SINCE + base)
    copied = 0
    for offset, length, flags in ranges(a, SINCE + base):
        assert flags in (0, 1), flags
        for at in range(offset, offset + length if flags else 0, CHUNK):
            count = min(CHUNK, offset + length - at)
            b.pwrite(bytes(a.pread(count, at)), at)
            copied += count
    b.flush()
    b.shutdown()
    print(copied)


def contexts(uri):
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(uri)
    handle.opt_list_meta_context(lambda name: print(name) or 0)
    handle.opt_abort()


def main():
    {"write": write, "compare": compare, "copy": copy,
     "contexts": contexts}[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
