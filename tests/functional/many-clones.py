#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""many-clones.py DIR gold|write|compare: the work of many-clones.sh. Everything follows
from seeds, so each run knows what the others wrote."""

import random
import sys

import nbd

from model import SECTOR, Model, connect, content

SECTORS = 32 * 2048
WRITTEN = list(range(1, 1001, 14))[:70] + [996, 997, 998, 999, 1000]
UNTOUCHED = [2, 500, 995]
WRITES = 60
DEPTH = 4


def uri(name):
    return f"nbd+unix:///{name}?socket={sys.argv[1]}/nbd.sock"


def gold_writes():
    """(sector, count, version): a quarter of the disk, in pieces."""
    rng = random.Random(75)
    return [(rng.randrange(SECTORS - 64), 64, version) for version in range(1, 257)]


def clone_writes(number):
    rng = random.Random(number)
    return [(rng.randrange(SECTORS // 8 - 2) * 8, rng.choice((1, 8, 16)),
             number * 1000 + i) for i in range(WRITES)]


def gold_model():
    model = Model(SECTORS)
    for sector, count, version in gold_writes():
        model.set(sector, count, version)
    return model


def clone_model(number):
    model = gold_model()
    for sector, count, version in clone_writes(number):
        model.set(sector, count, version)
    return model


class Writer:
    """Writes to one clone, up to DEPTH requests in flight, never two in one place: these
    could overtake each other."""

    def __init__(self, number):
        self.handle = connect(uri(f"lab-{number}"))
        self.queue = clone_writes(number)
        self.inflight = []

    def step(self):
        """Sends what may be sent; false when all is done."""
        self.inflight = [(cookie, sectors) for cookie, sectors in self.inflight
                         if not self.handle.aio_command_completed(cookie)]
        while self.queue and len(self.inflight) < DEPTH:
            sector, count, version = self.queue[0]
            sectors = set(range(sector, sector + count))
            if any(sectors & others for _, others in self.inflight):
                break
            self.queue.pop(0)
            data = b"".join(content(i, version) for i in range(sector, sector + count))
            buffer = nbd.Buffer.from_bytearray(bytearray(data))
            cookie = self.handle.aio_pwrite(buffer, sector * SECTOR)
            self.inflight.append((cookie, sectors))
        if self.inflight:
            self.handle.poll(0)
        return bool(self.queue or self.inflight)


def write():
    writers = [Writer(number) for number in WRITTEN]
    busy = writers
    while busy:
        busy = [writer for writer in busy if writer.step()]
    for writer in writers:
        writer.handle.flush()


def compare():
    for number in WRITTEN:
        clone_model(number).compare(connect(uri(f"lab-{number}")), f"lab-{number}")
    for name in ["gold", "gold@base"] + [f"lab-{number}" for number in UNTOUCHED]:
        gold_model().compare(connect(uri(name)), name)


def main():
    if sys.argv[2] == "gold":
        handle, model = connect(uri("gold")), Model(SECTORS)
        for sector, count, version in gold_writes():
            model.write(handle, sector, count, version)
    elif sys.argv[2] == "write":
        write()
    else:
        compare()


main()
