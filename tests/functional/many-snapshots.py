#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""many-snapshots.py DIR make|verify|remove: the work of many-snapshots.sh. Snapshot i of
a disk is taken behind write i, which goes to block i * STEP, modulo BLOCKS."""

import json
import random
import socket
import sys
import threading
import time

import nbd

import incremental
from model import SECTOR, content

DISKS = 5
SNAPSHOTS = 2000
KEPT = (1000, 1700, 1999)       # when all others are removed
BLOCK_SECTORS = 8
BLOCK = BLOCK_SECTORS * SECTOR
BLOCKS = 1024
STEP = 37
DAEMON_BYTES_MAX = 512 << 20    # doc/limits.md
# Measured: below 10 s. Each deletion may cost the same, however many there are; if it
# looked at all of the others it would be many times this.
REMOVAL_CPU_S = 60
# A disk may have some blocks of maps, lists and logs besides.
LIVE_BYTES = DISKS * (BLOCKS + len(KEPT) * BLOCKS + 64) * BLOCK


class Control:
    """A connection to the control socket."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(120)
        self.socket.connect(f"{sys.argv[1]}/control.sock")
        self.lines = self.socket.makefile("r")

    def request(self, **words):
        """The items and the answer."""
        self.socket.sendall(json.dumps(words).encode() + b"\n")
        items = []
        for line in self.lines:
            answer = json.loads(line)
            if "item" in answer:
                items.append(answer["item"])
            elif "ok" in answer:
                return items, answer["ok"]
            elif "error" in answer:
                raise SystemExit(f"{words}: {answer['error']['text']}")
        raise SystemExit(f"{words}: the daemon went away")


def connect(export):
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///{export}?socket={sys.argv[1]}/nbd.sock")
    return handle


def in_parallel(work):
    """Runs work(disk) for all disks at once."""
    failed = []

    def run(disk):
        try:
            work(disk)
        except (SystemExit, nbd.Error, OSError, AssertionError) as error:
            failed.append(f"{disk}: {error}")

    threads = [threading.Thread(target=run, args=(f"d{i}",)) for i in range(DISKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]


def block_of(i):
    return i * STEP % BLOCKS


def block_data(block, version):
    first = block * BLOCK_SECTORS
    return b"".join(content(first + i, version) for i in range(BLOCK_SECTORS))


def write(handle, i):
    block = block_of(i)
    handle.pwrite(block_data(block, i + 1), block * BLOCK)


def verify(export, last):
    """It is as after write `last`."""
    versions = [0] * BLOCKS
    for i in range(last + 1):
        versions[block_of(i)] = i + 1
    handle = connect(export)
    data = bytes(handle.pread(BLOCKS * BLOCK, 0))
    handle.shutdown()
    for block, version in enumerate(versions):
        found = data[block * BLOCK:(block + 1) * BLOCK]
        assert found == block_data(block, version), \
            f"{export}: block {block} is not version {version}"


def make(disk):
    control = Control()
    control.request(op="disk.create", name=disk, size_bytes=BLOCKS * BLOCK)
    handle = connect(disk)
    for i in range(SNAPSHOTS):
        write(handle, i)
        control.request(op="snapshot.create", disk=disk, snapshot=f"s{i}")
    handle.shutdown()


def verify_all():
    rng, control = random.Random(1), Control()
    for i in range(DISKS):
        disk = f"d{i}"
        names = [s["name"] for s in control.request(op="snapshot.list", disk=disk)[0]]
        assert names == [f"s{i}" for i in range(SNAPSHOTS)], f"{disk}: {names[:10]}..."
        for last in (*KEPT, *rng.sample(range(SNAPSHOTS), 5)):
            verify(f"{disk}@s{last}", last)
        verify(disk, SNAPSHOTS - 1)
    for first, last in ((0, 1), (5, 55), (1000, 1999), (1999, 3), (0, 1999)):
        verify_diff(control, "d0", first, last)
    memory = process_status("VmHWM") << 10
    assert memory < DAEMON_BYTES_MAX, f"the daemon has {memory} bytes"


def verify_diff(control, disk, first, last):
    expected = {block_of(i) for i in range(min(first, last) + 1, max(first, last) + 1)}
    items = control.request(op="snapshot.diff", disk=disk, **{"from": f"s{first}"},
                            to=f"s{last}")[0]
    context = f"{incremental.SINCE}s{first}"
    handle = incremental.connect(
        f"nbd+unix:///{disk}@s{last}?socket={sys.argv[1]}/nbd.sock", context)
    ranges = incremental.ranges(handle, context)
    for what, found in (("diff", [(item["offset"], item["length"]) for item in items]),
                        ("context", [r[:2] for r in ranges if r[2]])):
        blocks = {block for offset, length in found
                  for block in range(offset // BLOCK, (offset + length) // BLOCK)}
        assert blocks == expected, f"{what} of {disk}@s{first} and s{last}: {found}"


# --- removal ---

def process_id():
    with open(f"{sys.argv[1]}/parallaxd.pid") as file:
        return int(file.read())


def process_status(name):
    with open(f"/proc/{process_id()}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def cpu_seconds():
    with open(f"/proc/{process_id()}/stat") as file:
        words = file.read().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / 100


def remove(disk):
    """Three of four by itself, the others at once."""
    control, handle = Control(), connect(disk)
    for i in range(SNAPSHOTS):
        if i not in KEPT and (i % 2 or i >= SNAPSHOTS // 2):
            control.request(op="snapshot.rm", disk=disk, snapshot=f"s{i}")
        if i % 20 == 0:
            write(handle, i)
    removed = control.request(op="snapshot.rm", disk=disk, keep_last=len(KEPT))[1]
    assert removed["removed"] == SNAPSHOTS // 4, removed
    for i in range(SNAPSHOTS): # as it was before
        write(handle, i)
    handle.flush()
    handle.shutdown()


def wait_until_live_is_little(control):
    for _ in range(1500):
        status = control.request(op="status")[1]
        if status["live_bytes"] <= LIVE_BYTES and not status["reclaim"]["pending"]:
            return
        time.sleep(0.1)
    raise AssertionError(f"not within 150 s: {status}")


def remove_all():
    control, before = Control(), cpu_seconds()
    in_parallel(remove)
    wait_until_live_is_little(control)
    took = cpu_seconds() - before
    print(f"removed with {took:.1f} s of processor")
    assert took < REMOVAL_CPU_S, f"{took} s of processor"
    for i in range(DISKS):
        names = [s["name"] for s in control.request(op="snapshot.list", disk=f"d{i}")[0]]
        assert names == [f"s{i}" for i in KEPT], names
        for last in KEPT:
            verify(f"d{i}@s{last}", last)
        verify(f"d{i}", SNAPSHOTS - 1)


def main():
    {"make": lambda: in_parallel(make), "verify": verify_all,
     "remove": remove_all}[sys.argv[2]]()


main()
