#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random moments under concurrent writes, flushes, trims, snapshots, clones.

    crash_loop.py DIR ROUNDS SEED

Each writer has a stretch of a disk to itself and does one thing at a time, so what its
blocks may hold is known exactly: what was acknowledged last, or what was in flight when
the daemon died. A snapshot must hold, for every writer, the state after one of the
operations between its call and its answer; a clone is its snapshot.
"""
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time

import nbd

BLOCK = 4096
BLOCKS = 512          # of one writer
WRITERS = 3           # of one disk
DISKS = ("red", "blue")
SIZE = BLOCKS * WRITERS * BLOCK


def content(mark):
    return struct.pack("<Q", mark) * (BLOCK // 8)


def mark_of(data):
    """The write a block comes from; a torn or mixed one comes from none."""
    mark = struct.unpack_from("<Q", data)[0]
    if data != content(mark):
        raise SystemExit(f"a block is torn: begins with mark {mark}")
    return mark


class Writer:
    """One connection, one stretch. states: {block: mark} as it was after each operation
    since the round began; the last may be of one in flight."""
    marks = 0
    lock = threading.Lock()

    def __init__(self, disk, index, seed):
        self.disk, self.start = disk, index * BLOCKS
        self.random = random.Random(seed)
        self.now = [0] * BLOCKS
        self.done = []            # (first, count, mark) of this round, acknowledged
        self.flying = None
        self.failed = None

    @classmethod
    def next_mark(cls):
        with cls.lock:
            cls.marks += 1
            return cls.marks

    def run(self, uri, stop):
        self.done, self.flying, self.failed = [], None, None
        try:
            handle = nbd.NBD()
            handle.connect_uri(uri(self.disk))
            while not stop.is_set():
                self.one(handle)
        except nbd.Error as error:
            if not stop.is_set():
                self.failed = str(error)

    def one(self, handle):
        kind = self.random.random()
        count = self.random.choice((1, 1, 1, 2, 8, 40))
        first = self.random.randrange(BLOCKS - count + 1)
        at = (self.start + first) * BLOCK
        if kind < 0.08:
            handle.flush()
            return
        mark = 0 if kind < 0.16 else self.next_mark()
        self.flying = (first, count, mark)
        if kind < 0.12:
            handle.trim(count * BLOCK, at)
        elif kind < 0.16:
            handle.zero(count * BLOCK, at)
        else:
            flags = nbd.CMD_FLAG_FUA if kind < 0.25 else 0
            handle.pwrite(content(mark) * count, at, flags)
        self.done.append(self.flying)
        self.flying = None

    def states(self, low, high):
        """The stretch after `low` operations of this round, ... after `high`."""
        state = list(self.now)
        history = self.done + ([self.flying] if self.flying else [])
        for i, (first, count, mark) in enumerate(history[:high]):
            if i >= low:
                yield state
            state[first:first + count] = [mark] * count
        yield state

    def adopt(self, found):
        """Checks what is there after the restart, and goes on from it."""
        sure = list(self.now)
        for first, count, mark in self.done:
            sure[first:first + count] = [mark] * count
        for block in range(BLOCKS):
            allowed = {sure[block]}
            if self.flying and self.flying[0] <= block < sum(self.flying[:2]):
                allowed.add(self.flying[2])
            if found[block] not in allowed:
                raise SystemExit(
                    f"disk {self.disk} block {self.start + block}: holds mark "
                    f"{found[block]}, must be one of {allowed}")
        self.now = found


class Loop:
    def __init__(self, folder, seed):
        self.folder = folder
        self.random = random.Random(seed)
        self.writers = [Writer(disk, i, self.random.random())
                        for disk in DISKS for i in range(WRITERS)]
        self.snapshots = {}       # name: {writer index: marks}, once it was looked at
        self.counts = {"snapshots": 0, "clones": 0, "operations": 0}

    def uri(self, disk):
        return f"nbd+unix:///{disk}?socket={self.folder}/nbd.sock"

    def command(self, *words):
        return subprocess.run(["parallax", "-c", self.folder, *words],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def must(self, *words):
        done = self.command(*words)
        if done.returncode:
            raise SystemExit(f"parallax {' '.join(words)}: {done.stderr}")
        return done.stdout

    def up(self):
        subprocess.run(["parallax", "up", self.folder, "--capacity", "16G", "--detach"],
                       check=True)
        with open(f"{self.folder}/parallaxd.pid") as f:
            self.pid = int(f.read())

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        for _ in range(500):
            try:
                # Nobody may collect it; its threads end one by one.
                with open(f"/proc/{self.pid}/stat") as f:
                    is_dead = f.read().rsplit(")", 1)[1].split()[0] == "Z"
                if is_dead and len(os.listdir(f"/proc/{self.pid}/task")) == 1:
                    return
            except FileNotFoundError:
                return
            time.sleep(0.01)
        raise SystemExit("the daemon does not die")

    def administer(self, number, stop, wishes):
        """Snapshots and clones while the writers write. wishes: what was asked for."""
        i = 0
        while not stop.is_set():
            i += 1
            disk = self.random.choice(DISKS)
            name = f"{disk}@r{number}-{i}"
            mine = [w for w in self.writers if w.disk == disk]
            wish = {"name": name, "low": [len(w.done) for w in mine], "known": False}
            wishes.append(wish)
            if self.command("snapshot", "create", name).returncode == 0:
                # One more may have been committed than its writer knows of.
                wish["high"] = [len(w.done) + 1 for w in mine]
                wish["known"] = True
                self.counts["snapshots"] += 1
            if wish["known"] and self.random.random() < 0.3:
                clone = f"c{number}-{i}"
                wish["clone_known"] = self.command("clone", name, clone).returncode == 0
                wish["clone"] = clone
                self.counts["clones"] += wish["clone_known"]
            stop.wait(self.random.random() * 0.1)

    def round(self, number):
        stop, wishes = threading.Event(), []
        threads = [threading.Thread(target=w.run, args=(self.uri, stop))
                   for w in self.writers]
        threads.append(threading.Thread(target=self.administer,
                                        args=(number, stop, wishes)))
        for thread in threads:
            thread.start()
        time.sleep(0.05 + self.random.random() * 0.5)
        stop.set()                # errors from now on are due to the kill
        self.kill()
        for thread in threads:
            thread.join()
        for writer in self.writers:
            if writer.failed:
                raise SystemExit(f"disk {writer.disk}: {writer.failed}")
            self.counts["operations"] += len(writer.done)
        self.up()
        self.verify(wishes)

    def marks(self, export):
        handle = nbd.NBD()
        handle.connect_uri(self.uri(export))
        data = handle.pread(SIZE, 0)
        handle.shutdown()
        return [mark_of(data[i:i + BLOCK]) for i in range(0, SIZE, BLOCK)]

    def verify(self, wishes):
        names = self.names()
        for wish in wishes:
            self.verify_snapshot(wish, names)
        for disk in DISKS:
            found = self.marks(disk)
            for w in self.writers:
                if w.disk == disk:
                    w.adopt(found[w.start:w.start + BLOCKS])
        for name in self.random.sample(sorted(self.snapshots),
                                       min(2, len(self.snapshots))):
            if self.marks(name) != self.snapshots[name]:
                raise SystemExit(f"{name} is not what it was")

    def names(self):
        listed = set(line.split()[0] for line in
                     self.must("disk", "ls").splitlines()[1:])
        for disk in DISKS:
            lines = self.must("snapshot", "ls", disk).splitlines()[1:]
            listed |= {f"{disk}@{line.split()[0]}" for line in lines}
        return listed

    def verify_snapshot(self, wish, names):
        name = wish["name"]
        if name not in names:
            if wish["known"]:
                raise SystemExit(f"{name} was acknowledged and is gone")
            return
        found = self.marks(name)
        mine = [w for w in self.writers if w.disk == name.split("@")[0]]
        for i, w in enumerate(mine):
            high = wish["high"][i] if wish["known"] else len(w.done) + 1
            part = found[w.start:w.start + BLOCKS]
            if not any(state == part for state in w.states(wish["low"][i], high)):
                raise SystemExit(f"{name}, writer {i}: no moment of its disk")
        self.snapshots[name] = found
        if wish.get("clone_known") and wish["clone"] not in names:
            raise SystemExit(f"clone {wish['clone']} was acknowledged and is gone")
        if wish.get("clone") in names and self.marks(wish["clone"]) != found:
            raise SystemExit(f"clone {wish['clone']} is not its snapshot")


def main():
    folder, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    loop = Loop(folder, seed)
    loop.up()
    for disk in DISKS:
        loop.must("disk", "create", disk, str(SIZE))
    for number in range(rounds):
        loop.round(number)
    loop.must("check")
    loop.must("down")
    print(f"{rounds} rounds, {loop.counts}")


main()
