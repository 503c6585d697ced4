#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The work of damage-metadata.sh: finds metadata in a store by what must stand in it
(doc/format-map.md, doc/format-store.md), and flips one bit of it.

damage_metadata.py leaf STORE BLOCK    each leaf of a map that names this block of a disk
                                       that damage.py has written
damage_metadata.py top STORE BLOCK     each node above such a leaf
damage_metadata.py header STORE DISK N the batch header with N before it; the disks that
                                       wrote are numbered from 1, as they were created
damage_metadata.py roll STORE DISK N   a roll record, which begins an extent
damage_metadata.py count STORE DISK    nothing; prints how many batch headers there are
damage_metadata.py byte FILE AT        that byte of any file"""

import mmap
import struct
import sys

from damage import BLOCK, BLOCK_SECTORS
from model import Model

FANOUT, ENTRY = 256, 16
CRC_IN_ENTRY = 8
MAGIC_HEADER = b"PLB1"
HEADER = "<4s2xH16xQQI"  # magic, kind, disk, extent, block in the extent
KINDS = {"header": 1, "roll": 2}
AT = 1000               # the byte of a block that is damaged


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff

def blocks_with(content, magic):
    """Where the blocks of the store are that begin so."""
    at = content.find(magic)
    while at >= 0:
        if at % BLOCK == 0:
            yield at // BLOCK
        at = content.find(magic, at + 1)


def headers(content, kind, disk):
    """In the order in which they were written."""
    found = []
    for block in blocks_with(content, MAGIC_HEADER):
        head = struct.unpack_from(HEADER, content, block * BLOCK)
        if (head[1], head[2]) == (kind, disk):
            found.append((head[3], head[4], block)) # extent, block in the extent
    return [block for _, _, block in sorted(found)]


def named_by(content, block, index):
    """The nodes whose entry `index` has the checksum of this block of the store."""
    crc = struct.pack("<I", crc32c(content[block * BLOCK:(block + 1) * BLOCK]))
    found, at = set(), content.find(crc)
    while at >= 0:
        if at % BLOCK == index * ENTRY + CRC_IN_ENTRY:
            found.add(at // BLOCK)
        at = content.find(crc, at + 1)
    return sorted(found)


def data_block(content, block):
    """Where this block of a disk lies that `damage.py write` has written."""
    model = Model((block + 1) * BLOCK_SECTORS)
    model.set(0, len(model.versions), 1)
    at = content.find(model.data(block * BLOCK_SECTORS, BLOCK_SECTORS))
    assert at >= 0 and at % BLOCK == 0, f"block {block} of the disk: {at}"
    return at // BLOCK


def find(content, what, numbers):
    """The blocks of the store to be damaged."""
    if what in KINDS:
        disk, number = numbers
        return [headers(content, KINDS[what], disk)[number]]
    block = numbers[0]
    leaves = named_by(content, data_block(content, block), block % FANOUT)
    if what == "leaf":
        return leaves
    return [top for leaf in leaves for top in named_by(content, leaf, block // FANOUT)]


def main():
    what, path = sys.argv[1:3]
    numbers = [int(word) for word in sys.argv[3:]]
    with open(path, "r+b") as store, mmap.mmap(store.fileno(), 0) as content:
        if what == "count":
            print(len(headers(content, KINDS["header"], numbers[0])))
            return
        if what == "byte":
            content[numbers[0]] ^= 1
            return
        blocks = find(content, what, numbers)
        assert blocks, f"no {what} in {path}"
        for block in blocks:
            content[block * BLOCK + AT] ^= 1


main()
