#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""restart.py DIR write|verify STATE: the work of restart.sh.

`write` writes at random to two disks until the daemon is gone. STATE then holds, for each
sector, the versions it may have: the last one acknowledged, and what was in flight.
`verify` reads the disks and fails if a sector has another; what it finds becomes the one
version of the sector."""

import os
import pickle
import random
import struct
import sys

import nbd

from model import SECTOR, Model, connect, content, describe

DISKS = ("one", "two")
CONNECTIONS = 2
DEPTH = 16


def uri(folder, name):
    return f"nbd+unix:///{name}?socket={folder}/nbd.sock"


class Disk:
    """What may be on a disk: `sure` has the acknowledged versions."""

    def __init__(self, sectors):
        self.sure = Model(sectors)
        self.maybe = {} # sector: versions in flight when the daemon ended
        self.version = 0
        self.acknowledged = 0

    def settle(self, sector, data):
        """The version that `data` is, which must be one of those that may be there."""
        allowed = {self.sure.versions[sector]} | self.maybe.get(sector, set())
        version = struct.unpack_from("<QQ", data)[1]
        assert version in allowed and data == content(sector, version), \
            f"sector {sector} should be one of the versions {sorted(allowed)} but is " \
            f"{describe(data)}"
        self.sure.versions[sector] = version


class Writer:
    """One connection; requests in flight never overlap those of any other."""

    def __init__(self, disk, address, busy, rng):
        self.disk, self.busy, self.random = disk, busy, rng
        self.handle = connect(address)
        self.inflight = [] # (cookie, sectors, version)

    def send(self):
        total = len(self.disk.sure.versions)
        count = self.random.choice((1, 3, 8, 8, 8, 64, 256))
        sector = self.random.randrange(max(1, total - count))
        sectors = range(sector, min(total, sector + count))
        if not self.busy.isdisjoint(sectors):
            return
        self.disk.version += 1
        version = self.disk.version
        data = b"".join(content(i, version) for i in sectors)
        flags = nbd.CMD_FLAG_FUA if self.random.random() < 0.05 else 0
        self.busy.update(sectors)
        self.inflight.append((None, sectors, version))
        cookie = self.handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)),
                                        sector * SECTOR, flags=flags)
        self.inflight[-1] = (cookie, sectors, version)

    def collect(self):
        """Takes what was acknowledged; raises nbd.Error when the daemon is gone."""
        for entry in list(self.inflight):
            cookie, sectors, version = entry
            if self.handle.aio_command_completed(cookie):
                self.disk.sure.set(sectors.start, len(sectors), version)
                self.busy.difference_update(sectors)
                self.inflight.remove(entry)
                self.disk.acknowledged += 1

    def step(self):
        while len(self.inflight) < DEPTH and self.random.random() < 0.9:
            self.send()
        if self.random.random() < 0.01:
            self.handle.aio_flush()
        self.handle.poll(5)
        self.collect()

    def give_up(self):
        try:
            self.collect()
        except nbd.Error:
            pass
        for _, sectors, version in self.inflight:
            for sector in sectors:
                self.disk.maybe.setdefault(sector, set()).add(version)


def write(folder, disks, ready):
    rng = random.Random(os.urandom(8))
    writers = []
    for name, disk in disks.items():
        busy = set()
        for _ in range(CONNECTIONS):
            writers.append(Writer(disk, uri(folder, name), busy, rng))
    for writer in writers:
        writer.step()
    with open(ready, "w"):
        pass
    try:
        while True:
            rng.choice(writers).step()
    except nbd.Error:
        pass # the daemon is gone
    for writer in writers:
        writer.give_up()
    for name, disk in disks.items():
        print(f"{name}: {disk.acknowledged} writes acknowledged")
        assert disk.acknowledged > 0


def verify(folder, disks):
    for name, disk in disks.items():
        handle = connect(uri(folder, name))
        for sector in disk.maybe:
            disk.settle(sector, bytes(handle.pread(SECTOR, sector * SECTOR)))
        disk.maybe = {}
        disk.acknowledged = 0
        disk.sure.compare(handle, name)


def main():
    folder, action, path = sys.argv[1:]
    if os.path.exists(path):
        with open(path, "rb") as file:
            disks = pickle.load(file)
    else:
        disks = {name: Disk(connect(uri(folder, name)).get_size() // SECTOR)
                 for name in DISKS}
    if action == "write":
        write(folder, disks, path + ".ready")
    else:
        verify(folder, disks)
    with open(path, "wb") as file:
        pickle.dump(disks, file)


main()
