#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""snapshot_race.py DIR HISTORY run SEED COUNT|verify SEED: the work of snapshot-race.sh.

`run` writes to all disks with a log of every write, while several processes make COUNT
snapshots each, on one disk and on different ones, and take diffs. `verify` compares
every snapshot with that log, and diffs with the snapshots' content."""

import itertools
import json
import pickle
import random
import subprocess
import sys
import threading
import time

import nbd

import crash_loop
import incremental
from crash_loop import BLOCK, BLOCKS, DISKS, SIZE, WRITERS, mark_of

MAKERS = 3              # of snapshots, for each disk
PAUSE_S = 0.001         # at most, between two writes
CLOCK = itertools.count(1)


class Writer(crash_loop.Writer):
    """One that also knows when each operation was sent and when it was answered."""

    def begin(self):
        super().begin()
        self.times = []

    def one(self, handle):
        sent, before = next(CLOCK), len(self.done)
        super().one(handle)
        if len(self.done) > before: # not a flush
            self.times.append((sent, next(CLOCK)))
        time.sleep(self.random.random() * PAUSE_S)


class Stretch:
    """What one writer did, for the comparison."""

    def __init__(self, writer):
        self.disk, self.start = writer.disk, writer.start
        self.done, self.times = writer.done, writer.times

    def counts(self, parts):
        """For each (content, called, answered), in order of `called`: the numbers of
        operations after which the stretch was like this, and which the times allow."""
        state, at, found = [0] * BLOCKS, 0, []
        for part, called, answered in parts:
            while at < len(self.done) and self.times[at][1] < called:
                self.apply(state, at)
                at += 1
            guess, counts = list(state), []
            for count in range(at, len(self.done) + 1):
                if guess == part:
                    counts.append(count)
                if count == len(self.done) or self.times[count][0] > answered:
                    break
                self.apply(guess, count)
            found.append(counts)
        return found

    def apply(self, state, number):
        first, count, mark = self.done[number]
        state[first:first + count] = [mark] * count

    def sent(self, count):
        """When the last of so many operations was sent."""
        return self.times[count - 1][0] if count else 0

    def next_answered(self, count):
        """When the first that is not among so many operations was answered."""
        return self.times[count][1] if count < len(self.done) else next(CLOCK)

    def written(self, low, high):
        blocks = set()
        for first, count, _ in self.done[low:high]:
            blocks.update(range(self.start + first, self.start + first + count))
        return blocks


class Snapshot:
    def __init__(self, disk, name):
        self.disk, self.name = disk, name
        self.called = self.answered = None
        self.diffs = []         # (name of an older one, diff), taken during the race


class History:
    def __init__(self, writers, snapshots):
        self.stretches = [Stretch(w) for w in writers]
        self.snapshots = snapshots


def uri(export):
    return f"nbd+unix:///{export}?socket={sys.argv[1]}/nbd.sock"


def parallax(*words):
    return subprocess.run(["parallax", *words], check=True, timeout=120,
                          stdout=subprocess.PIPE, text=True).stdout


# --- the race ---

class Maker:
    def __init__(self, disk, number, seed, count):
        self.disk, self.number, self.count = disk, number, count
        self.random = random.Random(seed)
        self.made, self.failed = [], None

    def run(self):
        try:
            for i in range(self.count):
                self.one(i)
        except subprocess.SubprocessError as error:
            self.failed = str(error)

    def one(self, i):
        snapshot = Snapshot(self.disk, f"m{self.number}-{i}")
        snapshot.called = next(CLOCK)
        parallax("snapshot", "create", f"{self.disk}@{snapshot.name}")
        snapshot.answered = next(CLOCK)
        if self.made and self.random.random() < 0.3:
            older = self.random.choice(self.made[-3:]).name
            snapshot.diffs.append((older, diff(self.disk, older, snapshot.name)))
        self.made.append(snapshot)
        time.sleep(self.random.random() * 0.05)


def race(seed, count):
    rng, stop = random.Random(seed), threading.Event()
    writers = [Writer(disk, i, rng.random()) for disk in DISKS for i in range(WRITERS)]
    makers = [Maker(disk, i, rng.random(), count) for disk in DISKS
              for i in range(MAKERS)]
    writing = [threading.Thread(target=w.run, args=(uri, stop)) for w in writers]
    making = [threading.Thread(target=m.run) for m in makers]
    for thread in writing + making:
        thread.start()
    for thread in making:
        thread.join()
    stop.set()
    for thread in writing:
        thread.join()
    for one in writers + makers:
        failed = one.failed or getattr(one, "full", None)
        assert not failed, f"{one.disk}: {failed}"
    assert all(len(w.done) > count for w in writers), "no race: a writer hardly wrote"
    return History(writers, [s for m in makers for s in m.made])


# --- one point of the disk ---

def content(export):
    handle = nbd.NBD()
    handle.connect_uri(uri(export))
    data = handle.pread(SIZE, 0)
    handle.shutdown()
    return [mark_of(data[i:i + BLOCK]) for i in range(0, SIZE, BLOCK)]


def one_point(stretches, choices, least, name):
    """The least number of operations of each writer that `choices` and `least` allow, so
    that none is missing which was answered before one that is there was sent."""
    point = []
    for allowed, low in zip(choices, least):
        point.append(next((count for count in allowed if count >= low), None))
    while None not in point:
        newest = max(s.sent(count) for s, count in zip(stretches, point))
        late = [i for i, s in enumerate(stretches) if s.next_answered(point[i]) < newest]
        if not late:
            return point
        i = late[0]
        point[i] = next((count for count in choices[i] if count > point[i]), None)
    raise AssertionError(f"{name} is no point of its disk: the writers' stretches are as "
                         f"after {choices} operations, not before {least}")


def verify_points(history, disk):
    """Adds `content` and `counts` to each snapshot; returns them, oldest first."""
    stretches = [s for s in history.stretches if s.disk == disk]
    snapshots = sorted((s for s in history.snapshots if s.disk == disk),
                       key=lambda s: s.called)
    for s in snapshots:
        s.content = content(f"{disk}@{s.name}")
    choices = []
    for stretch in stretches:
        parts = [(s.content[stretch.start:stretch.start + BLOCKS], s.called, s.answered)
                 for s in snapshots]
        choices.append(stretch.counts(parts))
    by_name = {}
    for i, s in enumerate(snapshots):
        s.counts = [counts[i] for counts in choices]
        by_name[s.name] = s
    listed = [item["name"] for item in json.loads(parallax("snapshot", "ls", disk,
                                                           "--json"))]
    assert sorted(listed) == sorted(by_name), f"{disk}: the list is not what was made"
    least, ordered = [0] * len(stretches), [by_name[name] for name in listed]
    for s in ordered: # as made: nothing goes back
        least = one_point(stretches, s.counts, least, f"{disk}@{s.name}")
    return ordered


# --- diffs ---

def diff(disk, older, newer):
    """(offset, length, is zero) of what differs."""
    found = json.loads(parallax("snapshot", "diff", f"{disk}@{older}",
                                f"{disk}@{newer}" if newer else disk, "--json"))
    return [(item["offset"], item["length"], item["zero"]) for item in found]


def context_diff(disk, older, newer):
    name = incremental.SINCE + older
    handle = incremental.connect(uri(f"{disk}@{newer}"), name)
    found = [(offset, length, False) for offset, length, flags
             in incremental.ranges(handle, name) if flags]
    handle.shutdown()
    return found


def blocks_of(some):
    return f"{len(some)} blocks, the first of them {sorted(some)[:10]},"


def verify_diff(history, older, newer, found, what):
    named, at = set(), 0
    for offset, length, is_zero in found:
        assert offset >= at and length > 0 and (offset | length) % BLOCK == 0, \
            f"{what}: {length} at {offset}"
        at = offset + length
        blocks = range(offset // BLOCK, at // BLOCK)
        assert not is_zero or not any(newer.content[b] for b in blocks), \
            f"{what}: {length} at {offset} are not zeros"
        named.update(blocks)
    differ = {b for b in range(SIZE // BLOCK) if older.content[b] != newer.content[b]}
    assert differ <= named, f"{what}: {blocks_of(differ - named)} differ, too"
    stretches = [s for s in history.stretches if s.disk == older.disk]
    written = set()
    for stretch, a, b in zip(stretches, older.counts, newer.counts):
        written |= stretch.written(min(a + b), max(a + b))
    assert named <= written, \
        f"{what}: {blocks_of(named - written)} were not written in between"


def verify_diffs(history, snapshots, rng):
    disk, by_name = snapshots[0].disk, {s.name: s for s in snapshots}
    for s in snapshots:
        for older, found in s.diffs:
            verify_diff(history, by_name[older], s, found,
                        f"diff {disk}@{older} @{s.name}, while it raced")
    pairs = list(zip(snapshots, snapshots[1:]))
    pairs += [rng.sample(snapshots, 2) for _ in range(20)] # also backwards
    for i, (a, b) in enumerate(pairs):
        what = f"diff {disk}@{a.name} @{b.name}"
        verify_diff(history, a, b, context_diff(disk, a.name, b.name), what + ", NBD")
        if i % 2:
            verify_diff(history, a, b, diff(disk, a.name, b.name), what)


def main():
    path, action, seed = sys.argv[2], sys.argv[3], int(sys.argv[4])
    if action == "run":
        history = race(seed, int(sys.argv[5]))
        with open(path, "wb") as file:
            pickle.dump(history, file)
        print(f"{sum(len(s.done) for s in history.stretches)} writes, "
              f"{len(history.snapshots)} snapshots")
        return
    with open(path, "rb") as file:
        history = pickle.load(file)
    for disk in DISKS:
        snapshots = verify_points(history, disk)
        verify_diffs(history, snapshots, random.Random(seed))


main()
