# SPDX-License-Identifier: Apache-2.0
"""Situations that broke others, one function for each; see cluster-situations.sh."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import nbd

from cluster_hosts import (T, kill, parallax, pid, say, start, status, uri, wait_for,
                           wait_until_healthy)
from judge import Judge, content
from model import SECTOR, Model

TESTS = os.path.dirname(os.path.abspath(__file__))
BLOCK = 4096
PATIENCE = 20  # seconds that a request may take, whatever happens to copies


def judged(name, host, blocks=1024):
    parallax(1, "disk", "create", name, "64M")
    judge = Judge(blocks, len(name))
    attach(judge, name, host)
    return judge


def attach(judge, name, host):
    """Tries until it is served."""
    end = time.monotonic() + 30
    while True:
        try:
            judge.attach(uri(host, name))
            return
        except nbd.Error as error:
            assert time.monotonic() < end, error.string
            time.sleep(0.05)


def start_beside(host):
    """A host comes back while work goes on."""
    return subprocess.Popen(["parallax", "up", f"{T}/{host}", "--detach"],
                            stdin=subprocess.DEVNULL)


# --- a client that does what a file system may do ---

class Fsx:
    """Requests of any place and length in sectors, on a disk of which snapshots and
    clones are made, and which grows and shrinks."""

    def __init__(self, name, sectors):
        self.name, self.random, self.version = name, random.Random(7), 0
        self.models = {}  # of snapshots and clones
        parallax(1, "disk", "create", name, str(sectors * SECTOR))
        self.model = Model(sectors)
        self.attach()

    def attach(self):
        self.handle = nbd.NBD()
        self.handle.connect_uri(uri(1, self.name))

    def place(self):
        sectors = len(self.model.versions)
        at = self.random.randrange(sectors)
        return at, min(self.random.choice((1, 3, 8, 21, 64, 200)), sectors - at)

    def io(self):
        at, count = self.place()
        kind = self.random.randrange(10)
        self.version += 1
        if kind < 5:
            self.model.write(self.handle, at, count, self.version)
        elif kind == 5:
            self.model.set(at, count, 0)
            self.handle.zero(count * SECTOR, at * SECTOR)
        elif kind == 6:  # what is not a whole block may stay
            at, count = at & ~7, max(count & ~7, 8)
            count = min(count, len(self.model.versions) - at)
            self.model.set(at, count, 0)
            self.handle.trim(count * SECTOR, at * SECTOR)
        elif kind == 7:
            self.handle.flush()
        else:
            data = bytes(self.handle.pread(count * SECTOR, at * SECTOR))
            if data != self.model.data(at, count):
                self.model.report_difference(self.name, at, data)

    def snapshot(self):
        name = f"{self.name}@{self.version}"
        parallax(1, "snapshot", "create", name)
        self.models[name] = self.model.copy()

    def clone(self):
        """Of a snapshot; what is written to it is its own."""
        snapshot = self.random.choice([name for name in self.models if "@" in name])
        name = f"clone{self.version}"
        parallax(1, "clone", snapshot, name)
        self.models[name] = self.models[snapshot].copy()
        handle = nbd.NBD()
        handle.connect_uri(uri(1, name))
        self.models[name].write(handle, 5, 11, self.version)
        handle.shutdown()

    def resize(self):
        self.handle.shutdown()
        sectors = len(self.model.versions)
        now = self.random.choice((sectors // 2 & ~7, sectors, sectors * 2))
        parallax(1, "disk", "resize", self.name, str(now * SECTOR))
        self.model.versions = self.model.versions[:now]
        self.model.versions.extend([0] * (now - len(self.model.versions)))
        self.attach()

    def run(self, seconds):
        end, steps = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            steps += 1
            self.io()
            if steps % 300 == 50:
                self.snapshot()
            elif steps % 300 == 150:
                self.clone()
            elif steps % 300 == 250:
                self.resize()
        return steps

    def compare(self, host):
        self.handle.shutdown()
        for name, model in [(self.name, self.model), *self.models.items()]:
            handle = nbd.NBD()
            handle.connect_uri(uri(host, name))
            model.compare(handle, f"{name} at host {host}")
            handle.shutdown()
        self.attach()


def any_requests_while_copies_go_and_come_back():
    """Situation 1."""
    fsx = Fsx("fsx", 16384)
    steps = fsx.run(0.3)
    kill(3)
    steps += fsx.run(1)
    back = start_beside(3)
    steps += fsx.run(1.5)  # while it gets what it lacks
    assert back.wait(30) == 0
    wait_until_healthy(1, 3)
    kill(2)
    steps += fsx.run(0.5)
    fsx.compare(3)
    start(2)
    wait_until_healthy(1, 2, 3)
    say(f"fsx: {steps} steps, {len(fsx.models)} snapshots and clones")


# --- an owner that stands still ---

def paused_owner_wakes_with_writes_in_flight():
    """Situation 4. What it had taken, and what its client sends until it notices, must
    not land over what is written to the very same blocks elsewhere."""
    judge = judged("paused", 1)
    judge.start()
    time.sleep(0.5)
    kill(1, signal.SIGSTOP)
    time.sleep(0.2)  # more requests for it to find in its socket
    former = judge.leave()
    hot = sorted(judge.pending)
    assert hot, "nothing was in flight"
    attach(judge, "paused", 2)
    judge.verify()
    for block in hot:
        judge.write_once(block)
    kill(1, signal.SIGCONT)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        for block in hot:
            judge.write_once(block)
    judge.thread.join(30)
    assert not judge.thread.is_alive(), "the former owner answers nothing"
    late = 0
    for block in hot:
        try:
            former.pwrite(content(block, 1 << 40, 0), block * BLOCK)
        except nbd.Error:
            late += 1
    assert late == len(hot), "a former owner takes a write"
    judge.verify()
    former.shutdown()
    wait_until_healthy(1, 2, 3)
    judge.verify()
    judge.detach()
    attach(judge, "paused", 1)  # the former owner has it again
    judge.verify()
    judge.detach()
    say(f"paused: {len(hot)} writes were in flight")


# --- copies that go one after the other ---

def copies_fail_in_turn_and_come_back_in_another_order():
    """Situation 5, beside cluster-outage: under load one goes while the other is away."""
    judge = judged("turn", 1)
    judge.start()
    time.sleep(0.3)
    kill(3)
    time.sleep(0.7)
    kill(2)
    time.sleep(0.3)  # writes wait
    start(3)
    time.sleep(0.3)  # host 3 is not whole
    start(2)
    errors = judge.stop(PATIENCE)
    assert not errors, f"the client was told {errors[:3]}"
    judge.verify()
    healthy = wait_until_healthy(1, 2, 3, seconds=15)
    judge.verify()
    say(f"turn: longest write {judge.stall:.3f} s, healthy {healthy:.1f} s later")
    judge.detach()


# --- what was deleted ---

def live_bytes(host):
    return status(host)["live_bytes"]


def fill(name, megabytes):
    handle = nbd.NBD()
    handle.connect_uri(uri(1, name))
    for at in range(megabytes):
        handle.pwrite(random.Random(at).randbytes(1 << 20), at << 20)
    handle.flush()
    return handle


def deleted_while_a_copy_was_away():
    """Situation 9: disks, snapshots, and what was trimmed."""
    parallax(1, "disk", "create", "kept", "64M")
    handle = fill("kept", 24)
    parallax(1, "snapshot", "create", "kept@gone")
    handle.trim(12 << 20, 0)
    handle.shutdown()
    parallax(1, "disk", "create", "gone", "64M")
    fill("gone", 16).shutdown()
    before = live_bytes(1)
    kill(3)
    handle = nbd.NBD()
    handle.connect_uri(uri(1, "kept"))
    handle.trim(4 << 20, 12 << 20)
    handle.shutdown()
    parallax(1, "snapshot", "rm", "kept@gone")
    parallax(1, "disk", "rm", "gone")
    parallax(1, "trash", "empty", "gone")
    wait_for("space comes back", 30, lambda: live_bytes(1) < before - (30 << 20))
    start(3)
    healthy = wait_until_healthy(1, 2, 3)
    took = wait_for("nothing more is live at any host", 60,
                    lambda: len({live_bytes(host) for host in (1, 2, 3)}) == 1)
    for host in (1, 2, 3):
        assert json.loads(parallax(host, "trash", "ls", "--json")) == []
        disks = json.loads(parallax(host, "disk", "ls", "--json"))
        names = [disk["name"] for disk in disks]
        assert "kept" in names and "gone" not in names, names
        assert json.loads(parallax(host, "snapshot", "ls", "kept", "--json")) == []
    kill(2)  # so that what was away is read
    handle = nbd.NBD()
    handle.connect_uri(uri(3, "kept"))
    for at in range(24):
        wanted = random.Random(at).randbytes(1 << 20) if at >= 16 else bytes(1 << 20)
        assert bytes(handle.pread(1 << 20, at << 20)) == wanted, f"{at} MiB"
    handle.shutdown()
    start(2)
    wait_until_healthy(1, 2, 3)
    say(f"deleted: healthy {healthy:.1f} s after the start, equal {took:.1f} s later")


# --- a copy that is slow ---

def slow_copy():
    """Situation 10: one that is stopped three quarters of the time, never long enough to
    be taken for dead; then one that is cut to a tenth."""
    judge = judged("slow", 1)
    for stands, runs in ((0.15, 0.05), (0.45, 0.05)):
        judge.start()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            kill(3, signal.SIGSTOP)
            time.sleep(stands)
            kill(3, signal.SIGCONT)
            time.sleep(runs)
        errors = judge.stop(PATIENCE)
        assert not errors, f"the client was told {errors[:3]}"
        assert judge.stall < 5, f"a write took {judge.stall:.3f} s"
        judge.verify()
        say(f"slow: stands still for {stands} s of {stands + runs:.2f} s: "
            f"{judge.acknowledged} writes, the longest {judge.stall:.3f} s")
        judge.acknowledged = 0
    healthy = wait_until_healthy(1, 2, 3)
    judge.verify()
    judge.detach()
    say(f"slow: healthy {healthy:.1f} s later")


# --- a copy that rots ---

def damage(program, *arguments):
    done = subprocess.run(["/usr/bin/python3", f"{TESTS}/{program}.py",
                           *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"{program} {arguments}: {done.stderr}"
    return done.stdout


def rot_header(file, at):
    """One bit of the header of the batch that has this place, if it was not compacted."""
    for back in range(1, 256):
        file.seek(at - back * BLOCK)
        header = file.read(BLOCK)
        if header.startswith(b"PLB1"):
            file.seek(at - back * BLOCK + 2000)
            file.write(bytes([header[2000] ^ 1]))
            return


def rot_data(store, blocks, with_headers=False):
    """One bit of each of these blocks of the disk, wherever they lie."""
    model = Model((max(blocks) + 1) * BLOCK // SECTOR)
    model.set(0, len(model.versions), 1)
    wanted = {model.data(block * BLOCK // SECTOR, BLOCK // SECTOR) for block in blocks}
    with open(store, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for at in range(0, size, 1 << 20):
            file.seek(at)
            data = file.read(1 << 20)
            if not any(data[:BLOCK]) and data.count(0) == len(data):
                continue
            for i in range(0, len(data), BLOCK):
                if data[i:i + BLOCK] in wanted:
                    wanted.remove(data[i:i + BLOCK])
                    file.seek(at + i + 1000)
                    file.write(bytes([data[i + 1000] ^ 1]))
                    if with_headers:
                        rot_header(file, at + i)
    assert not wanted, "not all of the blocks are there"


def scrub_status(host):
    return json.loads(parallax(host, "scrub", "status", "--json", check=False)[1])


def scrubbed(host):
    parallax(host, "scrub", "start")
    wait_for("the scrub ends", 30, lambda: scrub_status(host)["state"] == "finished")
    return scrub_status(host)


def before_the_rot():
    """The disk is closed by the time when it is to rot."""
    parallax(1, "disk", "create", "rotten", "8M")
    damage("damage", "write", uri(1, "rotten"))
    handle = nbd.NBD()
    handle.connect_uri(uri(1, "rotten"))
    handle.flush()  # so that it is nowhere twice
    handle.shutdown()


def rot_in_one_copy():
    """Situation 7: data and metadata; read around, mended, and no source for others."""
    wait_for("the disk is closed", 30, lambda: json.loads(
        parallax(1, "disk", "owner", "rotten", "--json"))["node"] is None)
    store = f"{T}/3/store"
    kill(3)
    rot_data(store, (100, 101, 700))
    damage("damage_metadata", "leaf", store, 1500)
    damage("damage_metadata", "top", store, 300)
    kill(2)
    start(3)  # of each other copy one is left, at host 1
    damage("damage", "verify", uri(3, "rotten"))
    start(2)
    wait_until_healthy(1, 2, 3)
    rot_data(store, (1200, 1900), with_headers=True)
    first = scrubbed(3)
    assert first["findings"] >= 1, first
    wait_for("all is mended", 30, lambda: scrubbed(3)["findings"] == 0)
    kill(1)  # all of it is sound there now
    damage("damage", "verify", uri(3, "rotten"))
    start(1)
    wait_until_healthy(1, 2, 3)
    assert scrubbed(1)["findings"] == 0 and scrubbed(2)["findings"] == 0
    say(f"rot: {first['findings']} findings of the first scrub")


STORIES = {story.__name__: story for story in
           (slow_copy, rot_in_one_copy, deleted_while_a_copy_was_away,
            any_requests_while_copies_go_and_come_back,
            copies_fail_in_turn_and_come_back_in_another_order,
            paused_owner_wakes_with_writes_in_flight)}


def main():
    wait_until_healthy(1, 2, 3)
    before_the_rot()
    for name in sys.argv[1:] or STORIES:
        begun = time.monotonic()
        STORIES[name]()
        say(f"{name}: {time.monotonic() - begun:.1f} s")


main()
