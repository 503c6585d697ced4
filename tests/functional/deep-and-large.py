#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""deep-and-large.py DIR deep make|verify|remove|verify-last, or DIR large|large-again:
the work of deep-and-large.sh."""

import subprocess
import sys

import nbd

import incremental
from incremental import BLOCK
from model import SECTOR, content

DEPTH = 40
DEEP_BYTES = 1 << 20

LARGE_BLOCKS = 1 << 32
MAP_BLOCKS = (1 << 8, 1 << 16, 1 << 24) # below one entry of each level of a map
# Where 2^31 and 2^32 bytes, sectors, and blocks end.
EDGES = sorted({*MAP_BLOCKS, *(1 << n for n in (19, 20, 28, 29, 31)), LARGE_BLOCKS - 2})
EDGE = 2                # blocks on both sides of each


def uri(export):
    return f"nbd+unix:///{export}?socket={sys.argv[1]}/nbd.sock"


def connect(export):
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(uri(export))
    return handle


def parallax(*words):
    subprocess.run(["parallax", *words], check=True, timeout=60,
                   stdout=subprocess.DEVNULL)


def data(block, version):
    first = block * (BLOCK // SECTOR)
    return b"".join(content(first + i, version) for i in range(BLOCK // SECTOR))


def expect(handle, block, version, what):
    assert handle.pread(BLOCK, block * BLOCK) == data(block, version), \
        f"{what}: block {block} is not version {version}"


# --- clones of clones ---

def deep_version(generation, block):
    """Generation g writes block 0, and block g, which nobody writes after it."""
    if block == 0:
        return generation + 1
    return block + 1 if block <= generation else 0


def deep_make():
    parallax("disk", "create", "g0", str(DEEP_BYTES))
    for i in range(DEPTH):
        if i:
            # From a snapshot, and from the disk as it is.
            parallax("clone", f"g{i - 1}@s" if i % 4 else f"g{i - 1}", f"g{i}")
        handle = connect(f"g{i}")
        for block in {0, i}:
            handle.pwrite(data(block, i + 1), block * BLOCK)
        handle.shutdown()
        parallax("snapshot", "create", f"g{i}@s")


def deep_verify(generations):
    for i in generations:
        for name in (f"g{i}", f"g{i}@s"):
            handle = connect(name)
            for block in range(DEEP_BYTES // BLOCK):
                expect(handle, block, deep_version(i, block), name)
            handle.shutdown()


def deep_remove():
    """From the middle to both ends."""
    for i in sorted(range(1, DEPTH - 1), key=lambda i: abs(i - DEPTH // 2)):
        parallax("disk", "rm", f"g{i}", "--recursive")
    parallax("trash", "empty")
    deep_verify((0, DEPTH - 1))


def deep(action):
    if action == "make":
        deep_make()
    elif action == "verify":
        deep_verify(range(DEPTH))
    elif action == "remove":
        deep_remove()
    else:
        deep_verify((0, DEPTH - 1))


# --- 16 TiB ---

def near_edges():
    return [block for edge in EDGES for block in range(edge - EDGE, edge + EDGE)]


def changed(export, since):
    """The blocks that the meta context names."""
    name = incremental.SINCE + since
    handle = incremental.connect(uri(export), name)
    found = incremental.ranges(handle, name)
    handle.shutdown()
    assert sum(length for _, length, _ in found) == LARGE_BLOCKS * BLOCK
    return blocks_of(found, 1)


def blocks_of(ranges, wanted):
    return [block for offset, length, flags in ranges if flags == wanted
            for block in range(offset // BLOCK, (offset + length) // BLOCK)]


def large_verify(export, versions):
    """All that is written, what lies beside it, and that nothing else is."""
    handle = connect(export)
    for edge in EDGES:
        for block in range(edge - EDGE - 2, min(edge + EDGE + 2, LARGE_BLOCKS)):
            expect(handle, block, versions.get(block, 0), export)
    found = incremental.ranges(handle, nbd.CONTEXT_BASE_ALLOCATION)
    data_blocks = blocks_of(found, 0)
    assert data_blocks == sorted(versions), f"{export}: there is data at {data_blocks}"
    handle.shutdown()


def second():
    """What is written between the snapshots: the block left of each edge."""
    return {edge - 1: 2 for edge in EDGES}


def large():
    handle = connect("big")
    assert handle.get_size() == LARGE_BLOCKS * BLOCK
    one = dict.fromkeys(near_edges(), 1)
    for edge in EDGES: # one write over each edge
        blocks = range(edge - EDGE, edge + EDGE)
        handle.pwrite(b"".join(data(b, 1) for b in blocks), blocks[0] * BLOCK)
    large_verify("big", one)
    parallax("snapshot", "create", "big@one")
    for block, version in second().items():
        handle.pwrite(data(block, version), block * BLOCK)
    parallax("snapshot", "create", "big@two")
    large_verify("big@two", one | second())
    # All of it but the last 4 MiB.
    piece, at = (1 << 32) - (1 << 20), 0
    end = LARGE_BLOCKS * BLOCK - (4 << 20)
    while at < end:
        handle.trim(min(piece, end - at), at)
        at += piece
    handle.shutdown()
    large_again()


def large_again():
    one = dict.fromkeys(near_edges(), 1)
    two = one | second()
    last = {b: v for b, v in two.items() if b >= LARGE_BLOCKS - 1024}
    for export, versions in (("big", last), ("big@one", one), ("big@two", two)):
        large_verify(export, versions)
    assert changed("big@two", "one") == sorted(second())
    assert changed("big@one", "two") == sorted(second())
    gone = set(changed("big", "two"))
    assert two.keys() - last.keys() <= gone <= two.keys(), "changed by the trims"


def main():
    if sys.argv[2] == "deep":
        deep(sys.argv[3])
    elif sys.argv[2] == "large":
        large()
    else:
        large_again()


main()
