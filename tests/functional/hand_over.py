# SPDX-License-Identifier: Apache-2.0
"""Clients of a disk that goes from host to host; see hand-over.sh."""

import os
import random

import nbd

HOSTS = os.environ["HOSTS"]
SIZE = 16 << 20
BLOCK = 4096
MOVES = 20
CONNECTIONS = 3


def attach(node, incoming):
    """Several connections of one client."""
    client = []
    for _ in range(CONNECTIONS):
        h = nbd.NBD()
        h.set_export_name("web?incoming" if incoming else "web")
        h.connect_unix(f"{HOSTS}/{node}/nbd.sock")
        assert h.get_size() == SIZE and not h.is_read_only()
        client.append(h)
    return client


def detach(client):
    for h in client:
        h.shutdown()


def refused(call, words):
    try:
        call()
    except nbd.Error as error:
        assert words in error.string, error.string
        return
    raise AssertionError("it was not refused")


class Model:
    """What the disk must hold; writes go to it by several at once."""

    def __init__(self, seed):
        self.data = bytearray(SIZE)
        self.random = random.Random(seed)
        self.number = 0

    def write(self, client, count):
        """`count` writes at once on each connection, side by side."""
        places = self.random.sample(range(SIZE // BLOCK), count * len(client))
        waiting = []
        for i, place in enumerate(places):
            self.number += 1
            block = self.number.to_bytes(8, "little") * (BLOCK // 8)
            self.data[place * BLOCK:(place + 1) * BLOCK] = block
            h = client[i % len(client)]
            waiting.append((h, h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(block)),
                                            place * BLOCK)))
        for h, cookie in waiting:
            while not h.aio_command_completed(cookie):
                h.poll(-1)

    def check(self, client):
        for i, at in enumerate(range(0, SIZE, 1 << 20)):
            read = client[i % len(client)].pread(1 << 20, at)
            assert read == self.data[at:at + (1 << 20)], f"wrong below {at + (1 << 20)}"


model = Model(1)

# A migration that is cancelled: reads, a flush, and goodbye. Nothing has moved.
here = attach(1, False)
model.write(here, 50)
there = attach(2, True)
model.check(there)
there[0].flush()
detach(there)
refused(lambda: attach(2, False), "server policy prevents")
model.write(here, 50)
model.check(here)

# Back and forth.
node = 1
for move in range(MOVES):
    there = attach(3 - node, True)
    model.check(there)
    model.write(here, 20)
    here[0].flush()
    model.write(there, 20)  # it moves
    refused(lambda: here[1].pwrite(b"\1" * BLOCK, 0), "Input/output error")
    model.check(there)
    model.check(here)       # forwarded
    here[2].flush()         # late, and no harm
    model.write(there, 20)
    detach(here)
    here, node = there, 3 - node

# The new side is gone: a late write gets the disk back.
there = attach(3 - node, True)
model.write(there, 1)
detach(there)
model.write(here, 20)
model.check(here)
detach(here)
