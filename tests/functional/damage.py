#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The work of damage.sh:
damage.py write URI             fills the disk, each block with its own content
damage.py rot STORE BLOCK       finds that block in the store by its content, ruins it
damage.py verify URI [BLOCK [COUNT]]  the disk is as it was written; only BLOCK, or that
                                many from there on, reads as EIO
damage.py rewrite URI BLOCK     writes that block again"""

import errno
import mmap
import sys

import nbd

from model import SECTOR, Model, connect, content

BLOCK_SECTORS = 8
BLOCK = BLOCK_SECTORS * SECTOR


def filled(handle):
    model = Model(handle.get_size() // SECTOR)
    model.set(0, len(model.versions), 1)
    return model


def write(handle):
    model = filled(handle)
    for begin in range(0, len(model.versions), 1024):
        handle.pwrite(model.data(begin, 1024), begin * SECTOR)


def rewrite(handle, block):
    data = b"".join(content(block * BLOCK_SECTORS + i, 1) for i in range(BLOCK_SECTORS))
    handle.pwrite(data, block * BLOCK)


def rot(path, block):
    model = Model((block + 1) * BLOCK_SECTORS)
    model.set(0, len(model.versions), 1)
    with open(path, "r+b") as store, mmap.mmap(store.fileno(), 0) as device:
        at = device.find(model.data(block * BLOCK_SECTORS, BLOCK_SECTORS))
        assert at >= 0 and at % BLOCK == 0, f"block {block} is not in {path}: {at}"
        assert device.find(device[at:at + BLOCK], at + 1) < 0, "it is there twice"
        device[at + 1000] ^= 1 # a single bit


def verify(handle, broken):
    model = filled(handle)
    total = len(model.versions) // BLOCK_SECTORS
    for block in range(total):
        # Reads of many blocks, and of parts of some.
        if block in broken:
            for offset, length in ((0, BLOCK), (0, 512), (BLOCK - 1, 1),
                                   (-BLOCK, 3 * BLOCK)):
                begin = max(block * BLOCK + offset, 0)
                expect_io_error(handle, begin, min(length, total * BLOCK - begin))
            continue
        data = handle.pread(BLOCK, block * BLOCK)
        assert data == model.data(block * BLOCK_SECTORS, BLOCK_SECTORS), f"block {block}"


def expect_io_error(handle, offset, length):
    try:
        handle.pread(length, offset)
    except nbd.Error as error:
        assert error.errnum == errno.EIO, error
        return
    raise AssertionError(f"{length} bytes at {offset} could be read")


def main():
    action, where = sys.argv[1:3]
    block = int(sys.argv[3]) if len(sys.argv) > 3 else None
    if action == "rot":
        rot(where, block)
        return
    handle = connect(where)
    if action == "write":
        write(handle)
    elif action == "verify":
        count = int(sys.argv[4]) if len(sys.argv) > 4 else 1
        verify(handle, range(block, block + count) if len(sys.argv) > 3 else ())
    else:
        rewrite(handle, block)


if __name__ == "__main__":
    main()
