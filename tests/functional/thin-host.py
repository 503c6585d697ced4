#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""thin-host.py DIR STATE PATH: with disk d open, fills the file system by file PATH to
the last block, and goes on until the store can no longer write its metadata. From then
on changes fail, but all that was acknowledged is read. STATE is that of full-store.py."""

import errno
import os
import pickle
import subprocess
import sys

import nbd

from model import SECTOR, connect, content

PIECE = 128 # sectors in a write
TRIES_MAX = 4000


class State:
    pass


def fill(path):
    with open(path, "wb", buffering=0) as file:
        for piece in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(piece))
                    os.fsync(file.fileno())
            except OSError as error:
                assert error.errno == errno.ENOSPC, error


def change(handle, state, sector):
    """The errno, or 0. What fails leaves old or new content: it is looked up."""
    state.version += 1
    data = b"".join(content(sector + i, state.version) for i in range(PIECE))
    try:
        handle.pwrite(data, sector * SECTOR)
    except nbd.Error as error:
        found = bytes(handle.pread(PIECE * SECTOR, sector * SECTOR))
        for i in range(PIECE):
            now = found[i * SECTOR:(i + 1) * SECTOR]
            if now == data[i * SECTOR:(i + 1) * SECTOR]:
                state.model.versions[sector + i] = state.version
        return error.errnum
    state.model.set(sector, PIECE, state.version)
    return 0


def metadata_fails(folder):
    """Each new disk is a record of the metadata, and needs no data."""
    for i in range(TRIES_MAX):
        made = subprocess.run(["parallax", "-c", folder, "disk", "create", f"x{i}", "1M"],
                              capture_output=True, check=False)
        if made.returncode != 0:
            return
    raise AssertionError("metadata is written into a full file system")


def main():
    folder, path, other = sys.argv[1:]
    handle = connect(f"nbd+unix:///d?socket={folder}/nbd.sock")
    with open(path, "rb") as file:
        state = pickle.load(file)
    fill(other)
    metadata_fails(folder)
    codes = set()
    for i in range(TRIES_MAX):
        codes.add(change(handle, state, i * PIECE % (state.next - PIECE)))
        if codes - {0, errno.ENOSPC}:
            break
    assert codes - {0, errno.ENOSPC} == {errno.EIO}, codes
    assert change(handle, state, 0) == errno.EIO
    try:
        handle.flush()
        raise AssertionError("a flush of a store out of service")
    except nbd.Error as error:
        assert error.errnum == errno.EIO, error
    state.model.compare(handle, "d, of a store out of service")
    with open(path, "wb") as file:
        pickle.dump(state, file)


main()
