#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random moments under concurrent writes, flushes, trims, while snapshots and
clones come and go.

    crash_loop.py DIR ROUNDS SEED [--life SECONDS] [--capacity SIZE] [--full PERCENT]

Each writer has a stretch of a disk to itself and does one thing at a time, so what its
blocks may hold is known exactly: what was acknowledged last, or what was in flight when
the daemon died. A snapshot must hold, for every writer, the state after one of the
operations between its call and its answer; a clone is its snapshot. What was removed
stays away, and what was not stays as it is.

With --full, a disk that nobody else writes takes so much that the store stays that full
with live data. At the end everything is removed, and then nothing may be live.

Ends with 3 if the store was full: then what was acknowledged is there, but no more fits.
"""
import argparse
import collections
import errno
import json
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
SNAPSHOTS_KEPT = 30   # about; so that long runs need no more space than short ones
CLONES_KEPT = 8
COMMAND_WORDS = {"snapshot", "create", "rm", "clone", "disk", "trash", "empty"}
EXIT_FULL = 3

# Where a snapshot or a clone may be.
NOWHERE, THERE, TRASH = "nowhere", "there", "in the trash"


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
        self.begin()

    @classmethod
    def next_mark(cls):
        with cls.lock:
            cls.marks += 1
            return cls.marks

    def begin(self):
        """A new round, before anyone asks how much was done in it."""
        self.done = []            # (first, count, mark), acknowledged
        self.flying = None
        self.failed = self.full = None

    def run(self, uri, stop):
        try:
            handle = nbd.NBD()
            handle.connect_uri(uri(self.disk))
            while not stop.is_set():
                self.one(handle)
        except nbd.Error as error:
            if error.errnum == errno.ENOSPC:
                self.full = str(error)
            elif not stop.is_set():
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

    def was(self, part, low, high):
        """If the stretch was like this after one of those operations. Of one that found
        no space a part may be there, and stays."""
        if any(state == part for state in self.states(low, high)):
            return True
        return bool(self.full) and high > len(self.done) and self.misfit(part) is None

    def misfit(self, found):
        """The first block that is not what all operations of this round made of it, with
        the marks it may have; each block of the one in flight may be old or new."""
        sure = list(self.now)
        for first, count, mark in self.done:
            sure[first:first + count] = [mark] * count
        for block in range(BLOCKS):
            allowed = {sure[block]}
            if self.flying and self.flying[0] <= block < sum(self.flying[:2]):
                allowed.add(self.flying[2])
            if found[block] not in allowed:
                return block, allowed
        return None

    def adopt(self, found):
        """Checks what is there after the restart, and goes on from it."""
        misfit = self.misfit(found)
        if misfit:
            block, allowed = misfit
            raise SystemExit(f"disk {self.disk} block {self.start + block}: holds mark "
                             f"{found[block]}, must be one of {allowed}")
        self.now = found


class Full(Exception):
    """The store is full. Nothing is wrong; what was acknowledged was looked at."""


def is_full(text):
    return "no space" in text.lower()


class Thing:
    """A snapshot or a clone, by name. `places`: where it may be; more than one only while
    a command about it was not answered. Its content is not known before it was looked
    at: of a snapshot it is one of the moments of its disk between `low` and `high`, of
    a clone that of its snapshot."""

    def __init__(self, name, origin=None):
        self.name, self.origin = name, origin
        self.places = {NOWHERE, THERE}
        self.marks = self.low = self.high = None

    def is_sure(self, place):
        return self.places == {place}


class Ballast:
    """A disk that keeps the store as full as wished; its content tells its place."""
    name, chunk = "ballast", 1 << 20

    def __init__(self, loop, percent):
        self.loop, self.percent, self.chunks = loop, percent, 0

    def create(self):
        capacity = self.loop.status()["capacity_bytes"]
        self.loop.must("disk", "create", self.name, str(capacity))

    def open(self):
        handle = nbd.NBD()
        handle.connect_uri(self.loop.uri(self.name))
        return handle

    def place(self, chunk):
        return b"".join(content((chunk << 8) + i) for i in range(self.chunk // BLOCK))

    def adjust(self):
        status = self.loop.status()
        wanted = status["capacity_bytes"] * self.percent // 100
        more = (wanted - status["live_bytes"]) // self.chunk
        handle = self.open()
        for _ in range(max(more, 0)):
            handle.pwrite(self.place(self.chunks), self.chunks * self.chunk)
            self.chunks += 1
        for _ in range(min(max(-more, 0), self.chunks)):
            self.chunks -= 1
            handle.trim(self.chunk, self.chunks * self.chunk)
        handle.flush()
        handle.shutdown()

    def verify(self, count):
        handle = self.open()
        for i in random.sample(range(self.chunks), min(count, self.chunks)):
            if handle.pread(self.chunk, i * self.chunk) != self.place(i):
                raise SystemExit(f"ballast: MiB {i} is not what it was")
        handle.shutdown()


class Loop:
    def __init__(self, options):
        self.folder, self.options = options.folder, options
        self.random = random.Random(options.seed)
        self.ballast = Ballast(self, options.full) if options.full else None
        self.writers = [Writer(disk, i, self.random.random())
                        for disk in DISKS for i in range(WRITERS)]
        self.snapshots, self.clones = {}, {}    # name: Thing
        self.failed = None                      # what the administrator met
        self.full = None
        self.counts = collections.Counter()     # what was done
        self.rounds = 0

    def uri(self, disk):
        return f"nbd+unix:///{disk}?socket={self.folder}/nbd.sock"

    def command(self, *words):
        return subprocess.run(["parallax", "-c", self.folder, *words],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def must(self, *words):
        done = self.command(*words)
        if done.returncode and is_full(done.stderr):
            raise Full(done.stderr.strip())
        if done.returncode:
            raise SystemExit(f"parallax {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def status(self):
        return json.loads(self.must("status", "--json"))

    def up(self):
        subprocess.run(["parallax", "up", self.folder, "--capacity",
                        self.options.capacity, "--detach"], check=True)
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

    # --- the administrator ---

    def ask(self, stop, *words):
        """True if it was done, False if it was refused since a client is not quite gone.
        None: it may have been done. Only a kill or a full store may be the reason."""
        done = self.command(*words)
        if done.returncode == 0:
            self.counts[" ".join(w for w in words if w in COMMAND_WORDS)] += 1
            return True
        if "in use by" in done.stderr:
            return False
        if is_full(done.stderr):
            self.full = done.stderr.strip()
        elif not stop.is_set():
            self.failed = f"parallax {' '.join(words)}: {done.stderr.strip()}"
        stop.wait()
        return None

    def administer(self, number, stop):
        """Snapshots and clones come and go while the writers write."""
        i = 0
        while not stop.is_set():
            i += 1
            kind = self.random.random() * 2
            snapshots = self.sure(self.snapshots, THERE)
            clones = self.sure(self.clones, THERE)
            if kind < len(snapshots) / SNAPSHOTS_KEPT:
                self.remove_snapshot(self.random.choice(snapshots), stop)
            else:
                self.make(number, i, snapshots, stop)
            if self.random.random() * 4 < len(clones) / CLONES_KEPT:
                self.remove_clone(self.random.choice(clones), stop)
            if self.random.random() < 0.1:
                self.empty_trash(stop)
            stop.wait(self.random.random() * 0.1)

    @staticmethod
    def sure(things, place):
        return [thing for thing in things.values() if thing.is_sure(place)]

    def make(self, number, i, others, stop):
        """A snapshot, and sometimes a clone of it or of an older one."""
        disk = self.random.choice(DISKS)
        mine = [w for w in self.writers if w.disk == disk]
        snapshot = Thing(f"{disk}@r{number}-{i}")
        snapshot.low = [len(w.done) for w in mine]
        self.snapshots[snapshot.name] = snapshot
        if not self.ask(stop, "snapshot", "create", snapshot.name):
            return
        # One more may have been committed than its writer knows of.
        snapshot.high = [len(w.done) + 1 for w in mine]
        snapshot.places = {THERE}
        if self.random.random() < 0.3:
            older = self.random.choice(others or [snapshot])
            origin = self.random.choice([snapshot, older])
            clone = Thing(f"c{number}-{i}", origin)
            self.clones[clone.name] = clone
            if self.ask(stop, "clone", origin.name, clone.name):
                clone.places = {THERE}

    def remove_snapshot(self, snapshot, stop):
        snapshot.places = {THERE, NOWHERE}
        if self.ask(stop, "snapshot", "rm", snapshot.name):
            snapshot.places = {NOWHERE}

    def remove_clone(self, clone, stop):
        removed = {TRASH}
        if self.ballast:          # short of space, the daemon empties the trash itself
            removed.add(NOWHERE)
        clone.places = {THERE} | removed
        answer = self.ask(stop, "disk", "rm", clone.name)
        if answer is not None:
            clone.places = removed if answer else {THERE}

    def empty_trash(self, stop):
        trash = [clone for clone in self.clones.values() if TRASH in clone.places]
        for clone in trash:
            clone.places = clone.places | {NOWHERE}
        if self.ask(stop, "trash", "empty"):
            for clone in trash:
                clone.places = clone.places - {TRASH}

    # --- rounds ---

    def round(self, number):
        self.rounds += 1
        stop = threading.Event()
        for writer in self.writers:
            writer.begin()
        threads = [threading.Thread(target=w.run, args=(self.uri, stop))
                   for w in self.writers]
        threads.append(threading.Thread(target=self.administer, args=(number, stop)))
        for thread in threads:
            thread.start()
        time.sleep(self.options.life * (0.1 + self.random.random()))
        stop.set()                # errors from now on are due to the kill
        self.kill()
        for thread in threads:
            thread.join()
        for writer in self.writers:
            self.counts["operations"] += len(writer.done)
            if writer.failed:
                self.failed = f"disk {writer.disk}: {writer.failed}"
            if writer.full:
                self.full = f"disk {writer.disk}: {writer.full}"
        if self.failed:
            raise SystemExit(self.failed)
        self.up()
        self.verify()
        if self.full:
            raise Full(self.full)

    # --- what is there after a kill ---

    def marks(self, export):
        handle = nbd.NBD()
        handle.connect_uri(self.uri(export))
        data = handle.pread(SIZE, 0)
        handle.shutdown()
        return [mark_of(data[i:i + BLOCK]) for i in range(0, SIZE, BLOCK)]

    def names(self, *words):
        return {item["name"] for item in json.loads(self.must(*words, "--json"))}

    def verify(self):
        self.verify_places()
        for thing in [*self.snapshots.values(), *self.clones.values()]:
            if thing.is_sure(THERE) and thing.marks is None:
                self.look(thing)
        for disk in DISKS:
            found = self.marks(disk)
            for w in self.writers:
                if w.disk == disk:
                    w.adopt(found[w.start:w.start + BLOCKS])
        there = (self.sure(self.snapshots, THERE), self.sure(self.clones, THERE))
        for things in there:
            for thing in self.random.sample(things, min(2, len(things))):
                self.verify_content(thing)

    def verify_all(self):
        for thing in self.sure(self.snapshots, THERE) + self.sure(self.clones, THERE):
            self.verify_content(thing)

    def verify_content(self, thing):
        if self.marks(thing.name) != thing.marks:
            raise SystemExit(f"{thing.name} is not what it was")

    def verify_places(self):
        """Everything is where it may be and nowhere else, and nothing else is there."""
        disks = self.names("disk", "ls")
        for disk in DISKS:
            if disk not in disks:
                raise SystemExit(f"disk {disk} is gone")
        snapshots = {f"{disk}@{name}" for disk in DISKS
                     for name in self.names("snapshot", "ls", disk)}
        self.settle(self.snapshots, {THERE: snapshots, TRASH: set()})
        self.settle(self.clones, {THERE: disks - {*DISKS, Ballast.name},
                                  TRASH: self.names("trash", "ls")})

    @staticmethod
    def settle(things, found):
        for place, names in found.items():
            unknown = sorted(names - things.keys())
            if unknown:
                raise SystemExit(f"{unknown[0]} is {place}, and should not be at all")
        for thing in list(things.values()):
            places = {place for place, names in found.items() if thing.name in names}
            places = places or {NOWHERE}
            if len(places) > 1 or not places <= thing.places:
                raise SystemExit(f"{thing.name} is {' and '.join(sorted(places))}, must "
                                 f"be {' or '.join(sorted(thing.places))}")
            thing.places = places
            if places == {NOWHERE}:
                del things[thing.name]    # should it come back, nobody knows it

    def look(self, thing):
        """For the first time, in the round that made it."""
        found = self.marks(thing.name)
        origin = thing.origin
        if origin and origin.marks is None:    # removed since
            self.verify_moment(origin, thing.name, found)
            origin.marks = found
        if origin and origin.marks != found:
            raise SystemExit(f"clone {thing.name} is not its snapshot {origin.name}")
        if not origin:
            self.verify_moment(thing, thing.name, found)
        thing.marks = found

    def verify_moment(self, snapshot, name, found):
        mine = [w for w in self.writers if w.disk == snapshot.name.split("@")[0]]
        for i, w in enumerate(mine):
            high = snapshot.high[i] if snapshot.high else len(w.done) + 1
            part = found[w.start:w.start + BLOCKS]
            if not w.was(part, snapshot.low[i], high):
                raise SystemExit(f"{name}, writer {i}: no moment of its disk")


    # --- the end ---

    def remove_all(self):
        """Then the space of everything must have come back, to the block."""
        for disk in sorted(self.names("disk", "ls")):
            self.must("disk", "rm", disk, "--recursive")
        self.must("trash", "empty")
        for _ in range(600):
            status = self.status()
            if status["live_bytes"] == 0:
                return
            time.sleep(0.1)
        raise SystemExit(f"everything is removed, and {status['live_bytes']} bytes live")


def run(loop, options):
    loop.up()
    for disk in DISKS:
        loop.must("disk", "create", disk, str(SIZE))
    if loop.ballast:
        loop.ballast.create()
    ends = time.monotonic() + options.hours * 3600
    for number in range(options.rounds):
        if time.monotonic() >= ends:
            break
        if loop.ballast:
            loop.ballast.adjust()
        loop.round(number)
        if loop.ballast:
            loop.ballast.verify(20)
            loop.must("check")
            print(f"{number}: {loop.status()['live_bytes'] >> 20} MiB live, "
                  f"{dict(loop.counts)}", flush=True)
    loop.verify_all()
    if loop.ballast:
        loop.ballast.verify(loop.ballast.chunks)
    loop.must("check")
    loop.remove_all()
    loop.must("check")
    loop.must("down")


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("rounds", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("--life", type=float, default=0.5,
                        help="seconds that a daemon lives, about")
    parser.add_argument("--hours", type=float, default=24,
                        help="no round begins after so long")
    parser.add_argument("--capacity", default="16G")
    parser.add_argument("--full", type=int, help="percent of live data to keep")
    return parser.parse_args()


def main():
    options = arguments()
    loop = Loop(options)
    try:
        run(loop, options)
    except Full as full:
        print(f"{full}\n{dict(loop.counts)}", file=sys.stderr)
        sys.exit(EXIT_FULL)
    print(f"{loop.rounds} rounds, {dict(loop.counts)}")


if __name__ == "__main__":
    main()
