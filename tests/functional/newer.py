#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""newer.py store FILE | features FILE | state FOLDER: makes a store one that a newer
program has written: by the version of its superblock, by an incompatible feature, or by
the version of a record of consensus in its LevelDB (doc/format-store.md,
doc/format-consensus.md)."""

import glob
import os
import struct
import sys

SLAB = 1 << 20
BLOCK = 4096
LOG_BLOCK = 32768  # of LevelDB's log, whose records never cross one as a whole
SEQUENCE = 1 << 40  # after all that the store has


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def superblock(path, offset, field):
    with open(path, "r+b") as store:
        for at in 0, SLAB - BLOCK:
            store.seek(at)
            block = store.read(BLOCK)
            assert block[:8] == b"PLXSTORE"
            assert struct.unpack("<I", block[-4:])[0] == crc32c(block[:-4])
            block = block[:offset] + field + block[offset + len(field):-4]
            store.seek(at)
            store.write(block + struct.pack("<I", crc32c(block)))


def put(folder, key, value):
    """One write more in LevelDB's log."""
    batch = struct.pack("<QI", SEQUENCE, 1) + b"\1" + bytes([len(key)]) + key + \
        bytes([len(value)]) + value
    crc = crc32c(b"\1" + batch)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    record = struct.pack("<IHB", masked, len(batch), 1) + batch
    path = max(glob.glob(f"{folder}/*.log"))
    with open(path, "ab") as log:
        left = LOG_BLOCK - os.path.getsize(path) % LOG_BLOCK
        if left < len(record):
            log.write(bytes(left))
        log.write(record)


def main():
    what, path = sys.argv[1:]
    if what == "store":
        superblock(path, 8, struct.pack("<I", 99))
    elif what == "features":
        superblock(path, 24, struct.pack("<Q", 1 << 40))
    else:
        key, body = b"rv", struct.pack("<QQQ", 3, 1 << 30, 0)
        crc = crc32c(key + b"\2" + body)
        put(path, key, b"\2" + struct.pack("<I", crc) + body)


main()
