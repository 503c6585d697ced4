#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""full-store.py DIR STATE fill|refused|verify|grown: the work of full-store.sh.

`fill` writes to disk d until there is no space; `refused` tries again on d and on
other; `verify` reads all of d; `grown` writes again what was refused, and more."""

import errno
import os
import pickle
import struct
import sys
import time

import nbd

from model import SECTOR, Model, connect, content

PIECE = 128 # sectors in a write
SLACK_BYTES = 48 << 20 # what a start may find in a store that was full before


class State:
    def __init__(self, sectors):
        self.model = Model(sectors)
        self.version = 0
        self.next = 0 # the sector to write next


def write(handle, state, sector):
    """False: no space. Then each sector may be old or new; which one is looked up."""
    state.version += 1
    data = b"".join(content(sector + i, state.version) for i in range(PIECE))
    try:
        handle.pwrite(data, sector * SECTOR)
    except nbd.Error as error:
        assert error.errnum == errno.ENOSPC, error
        found = bytes(handle.pread(PIECE * SECTOR, sector * SECTOR))
        for i in range(PIECE):
            version = struct.unpack_from("<QQ", found, i * SECTOR)[1]
            assert version in (state.model.versions[sector + i], state.version)
            state.model.versions[sector + i] = version
        return False
    state.model.set(sector, PIECE, state.version)
    return True


def fill(handle, state):
    """Returns the number of writes until there was no space, and stayed none: the
    checkpoint that the first refusal causes may free a little."""
    count = refusals = 0
    while refusals < 20:
        if write(handle, state, state.next):
            state.next += PIECE
            count += 1
            refusals = 0
        else:
            refusals += 1
            time.sleep(0.05)
    handle.flush()
    return count


def refused(handle, state, other):
    count = fill(handle, state)
    assert count * PIECE * SECTOR < SLACK_BYTES, f"{count} writes into a full store"
    assert not write(handle, state, 0), "no space for new data, but for old"
    for offset in range(0, SLACK_BYTES, 1 << 20):
        try:
            other.pwrite(os.urandom(1 << 20), offset)
        except nbd.Error as error:
            assert error.errnum == errno.ENOSPC, error
            handle.flush()
            return
    raise AssertionError("another disk finds room in a full store")


def grown(handle, state):
    for _ in range(500):
        assert write(handle, state, state.next), "still no space"
        state.next += PIECE
    handle.flush()


def main():
    folder, path, action = sys.argv[1:]
    handle = connect(f"nbd+unix:///d?socket={folder}/nbd.sock")
    if os.path.exists(path):
        with open(path, "rb") as file:
            state = pickle.load(file)
    else:
        state = State(handle.get_size() // SECTOR)
    if action == "fill":
        fill(handle, state)
    elif action == "refused":
        refused(handle, state, connect(f"nbd+unix:///other?socket={folder}/nbd.sock"))
    elif action == "grown":
        grown(handle, state)
    else:
        state.model.compare(handle, "d")
    with open(path, "wb") as file:
        pickle.dump(state, file)


main()
