#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""cluster_full.py FOLDER: the guests of cluster-full.sh, on two hosts.

Each disk is filled by several clients at once, so that batches are under way when stores
have no room any more. Every write is answered: written, or "no space"; what one that was
refused left is as some write left it, and stays. Lines on standard input say what to do
next, and each is answered by one: `fill`, `verify`, `trim`."""

import errno
import os
import struct
import sys
import threading
import time

import nbd

from model import SECTOR, Model, connect, content

CLIENTS = 4
PIECE = 128          # sectors in a write
ANSWER_SECONDS = 60  # a write takes no longer, full or not


class Client:
    """Owns sectors `first` to `end` of its disk."""

    def __init__(self, disk, first, end):
        self.disk, self.first, self.end = disk, first, end
        self.next = first
        self.handle = connect(disk.uri)
        self.error = None

    def write(self, sector):
        """False: no space. Then each sector may be old or new; which one is looked up."""
        model = self.disk.model
        version = self.disk.new_version()
        data = b"".join(content(sector + i, version) for i in range(PIECE))
        began = time.monotonic()
        try:
            self.handle.pwrite(data, sector * SECTOR)
        except nbd.Error as error:
            assert error.errnum == errno.ENOSPC, error
            found = bytes(self.handle.pread(PIECE * SECTOR, sector * SECTOR))
            for i in range(PIECE):
                now = struct.unpack_from("<QQ", found, i * SECTOR)[1]
                assert now in (model.versions[sector + i], version), \
                    f"sector {sector + i} is version {now} after a refused write"
                model.versions[sector + i] = now
            return False
        finally:
            took = time.monotonic() - began
            assert took < ANSWER_SECONDS, f"a write took {took:.0f} s"
        model.set(sector, PIECE, version)
        return True

    def fill(self):
        self.written = 0
        while self.write(self.next):
            self.written += 1
            self.next += PIECE
            if self.next == self.end:
                self.next = self.first
        self.handle.flush()

    def run(self):
        try:
            self.fill()
        except Exception as error: # the main thread tells
            self.error = error


class Disk:
    def __init__(self, folder, host, name):
        self.name = name
        self.uri = f"nbd+unix:///{name}?socket={folder}/{host}/nbd.sock"
        self.handle = connect(self.uri)
        self.sectors = self.handle.get_size() // SECTOR
        self.model = Model(self.sectors)
        self.lock = threading.Lock()
        self.version = 0
        part = self.sectors // CLIENTS
        self.clients = [Client(self, i * part, (i + 1) * part) for i in range(CLIENTS)]

    def new_version(self):
        with self.lock:
            self.version += 1
            return self.version


def fill(disks):
    """New data, behind what is there. Returns how many MiB that were."""
    clients = [client for disk in disks for client in disk.clients]
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        if client.error:
            raise client.error
    return sum(client.written for client in clients) * PIECE * SECTOR >> 20


def trim(disks):
    """The first half of each disk."""
    for disk in disks:
        half = disk.sectors // 2
        for first in range(0, half, 1 << 16):
            count = min(1 << 16, half - first)
            disk.handle.trim(count * SECTOR, first * SECTOR)
            disk.model.set(first, count, 0)
        disk.handle.flush()
    return 0


def verify(disks):
    for disk in disks:
        disk.model.compare(disk.handle, disk.name)
    return 0


def main():
    folder = sys.argv[1]
    disks = [Disk(folder, 1, "one"), Disk(folder, 2, "two")]
    actions = {"fill": fill, "trim": trim, "verify": verify}
    for line in sys.stdin:
        print(actions[line.strip()](disks), flush=True)
    os._exit(0)


main()
