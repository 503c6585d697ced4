# SPDX-License-Identifier: Apache-2.0
"""The power of hosts is cut; see power.sh and cluster-power.sh.

    power_cuts.py ROUNDS SEED HOST..."""

import json
import os
import random
import subprocess
import sys
import threading
import time

import nbd

import power
import cluster_hosts
from cluster_hosts import T, leader, parallax, say, start, status, wait_for
from judge import BLOCK, DEPTH, Judge, parse

ROUNDS, SEED = int(sys.argv[1]), int(sys.argv[2])
HOSTS = sys.argv[3:]
BLOCKS = 1024
DISK = "web"
KEPT = 8  # snapshots, clones and disks of each kind, about
NOWHERE, THERE, TRASH = "nowhere", "there", "in the trash"


def uri(host, disk):
    return status(host)["nbd"][0].replace("///", f"///{disk}")


def wait_until_healthy():
    if len(HOSTS) > 1:
        return cluster_hosts.wait_until_healthy(*HOSTS)
    return wait_for("health is ok", 10, lambda: status(HOSTS[0])["health"] == "ok")


class Snapshot:
    """Of each block it has a write from `low` to `high`; once read, it is `found`."""

    def __init__(self, judge):
        self.low, self.high, self.found = list(judge.floor), None, None


class Administrator:
    """Makes and removes snapshots, clones and disks beside the judge. `places`: where
    each may be, more than one only while a command about it was not answered."""

    def __init__(self, judge, rng):
        self.judge, self.random = judge, rng
        self.places, self.snapshots, self.number, self.done = {}, {}, 0, 0

    def start(self, host):
        self.host, self.halt, self.errors = host, threading.Event(), []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def stop(self):
        """Returns what commands failed with; what they did is not known then. Again: the
        same."""
        self.halt.set()
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.errors

    def run(self):
        while not self.halt.is_set() and not self.errors:
            self.one()
            self.halt.wait(self.random.random() * 0.1)

    def command(self, name, before, after, *words):
        """True if it was done."""
        self.places[name] = {before, after}
        status, _, errors = parallax(self.host, *words, check=False)
        if status != 0:
            self.errors.append(f"{' '.join(words)}: {errors.strip()}")
            return False
        self.places[name] = {after}
        self.done += 1
        return True

    def one(self):
        sure = [name for name, places in self.places.items() if places == {THERE}]
        self.number += 1
        if len(sure) > self.random.randrange(2 * KEPT):
            name = self.random.choice(sure)
            if "@" in name:
                self.command(name, THERE, NOWHERE, "snapshot", "rm", name)
            else:
                self.command(name, THERE, TRASH, "disk", "rm", name)
        elif self.random.random() < 0.3:
            name = f"disk{self.number}"
            self.command(name, NOWHERE, THERE, "disk", "create", name, "1M")
        else:
            self.make_snapshot(f"{DISK}@s{self.number}")

    def make_snapshot(self, name):
        snapshot = self.snapshots[name] = Snapshot(self.judge)
        if not self.command(name, NOWHERE, THERE, "snapshot", "create", name):
            return
        snapshot.high = list(self.judge.sent)
        # It has been read from the log, so that what it has is flushed.
        self.judge.synced = list(map(max, self.judge.synced, snapshot.low))
        if self.random.random() < 0.3:
            clone = f"clone{self.number}"
            self.snapshots[clone] = snapshot
            self.command(clone, NOWHERE, THERE, "clone", name, clone)

    # --- what is there ---

    def verify(self, host):
        def names(*words):
            return {one["name"] for one in json.loads(parallax(host, *words, "--json"))}
        there = names("disk", "ls")
        there |= {f"{DISK}@{name}" for name in names("snapshot", "ls", DISK)}
        trash = names("trash", "ls")
        assert DISK in there, there
        unknown = (there | trash) - self.places.keys() - {DISK}
        assert not unknown, f"nobody made {unknown}"
        for name, places in list(self.places.items()):
            place = THERE if name in there else TRASH if name in trash else NOWHERE
            assert place in places, f"{name} is {place}, must be {places}"
            self.places[name] = {place}
            if name in self.snapshots and place == THERE:
                self.verify_content(host, name, self.snapshots[name])
            elif place == NOWHERE:
                self.snapshots.pop(name, None)

    def verify_content(self, host, name, snapshot):
        handle = nbd.NBD()
        handle.connect_uri(uri(host, name))
        data = handle.pread(BLOCKS * BLOCK, 0)
        handle.shutdown()
        found = [parse(block, data[block * BLOCK:(block + 1) * BLOCK])
                 for block in range(BLOCKS)]
        if snapshot.found is None:
            self.verify_moment(name, snapshot, found)
            snapshot.found = found
        assert found == snapshot.found, f"{name} is not what it was"

    def verify_moment(self, name, snapshot, found):
        """One moment of its disk, which never was before that again."""
        judge = self.judge
        newest = max(order for _, order in found)
        for block, (write, order) in enumerate(found):
            words = f"{name} block {block} has write {write}"
            low, high = snapshot.low[block], (snapshot.high or judge.sent)[block]
            assert low <= write <= high, f"{words}, must be {low} to {high}"
            assert write == 0 or judge.orders[block, write] == order, f"{words}: order"
            now = judge.floor[block]
            assert write <= now, f"{words}, but its disk is back at {now}"
            later = judge.orders.get((block, judge.next_write(block, write)), newest)
            assert newest < later + DEPTH, f"{words}, not {later}, but {newest}"


class Story:
    def __init__(self):
        self.random = random.Random(SEED)
        self.judge = Judge(BLOCKS, SEED)
        self.administrator = Administrator(self.judge, random.Random(SEED + 1))
        self.serving, self.lost = HOSTS[0], 0

    def cut(self, *hosts):
        lost = power.cut([f"{T}/{host}" for host in hosts], self.random)
        self.lost += sum(lost)
        return f"disks lost {', '.join(str(bytes >> 10) for bytes in lost)} KiB"

    @staticmethod
    def power_on(*hosts):
        for host in hosts:
            power.on(f"{T}/{host}")

    def come_back(self, *hosts):
        """Sometimes only to lose power again while it starts."""
        self.power_on(*hosts)
        while self.random.random() < 0.3:
            begun = [subprocess.Popen(["parallax", "up", f"{T}/{host}", "--detach"],
                                      stderr=subprocess.DEVNULL) for host in hosts]
            time.sleep(self.random.random() * 0.3)
            say(f"again, while it starts: {self.cut(*hosts)}")
            for process in begun:
                process.wait()
            self.power_on(*hosts)
        start(*hosts)

    def attach(self, host, seconds=30):
        begun = time.monotonic()
        while True:
            try:
                self.judge.attach(uri(host, DISK))
                self.serving = host
                return time.monotonic() - begun
            except nbd.Error as error:
                assert time.monotonic() < begun + seconds, error.string
                time.sleep(0.05)

    def begin(self):
        """Commands let everything be synced now and then, so not always."""
        self.judge.flush_every = self.random.choice((0.05, 0.3, 2))
        self.judge.fua = self.random.choice((0, 0, 0.001, 0.1))
        self.judge.start()
        self.administrator.start(self.serving)
        if self.random.random() < 0.5:
            self.administrator.stop()
        time.sleep(0.2 + self.random.random() * 0.6)

    def end(self, *gone):
        """Clients of hosts that are gone may be told anything, others nothing."""
        errors = self.administrator.stop()
        errors += self.judge.stop()
        assert not errors or self.serving in gone, errors[:3]

    def others(self):
        others = [host for host in HOSTS if host != self.serving]
        self.random.shuffle(others)
        return others

    def roles(self, host):
        return f"host {self.serving} serves, {leader(host)} leads"

    def verify(self):
        gone = self.judge.verify()
        self.administrator.verify(self.serving)
        return gone

    # --- the cases ---

    def everywhere(self):
        """Or of too many: of all but one that does not serve."""
        gone = HOSTS
        if len(HOSTS) > 1 and self.random.random() < 0.3:
            gone = [self.serving, self.others()[0]]
        self.begin()
        say(f"cut: {', '.join(gone)}: {self.cut(*gone)}")
        self.end(*gone)
        begun = time.monotonic()
        self.come_back(*gone)
        self.judge.power_was_lost()
        self.attach(self.random.choice(HOSTS))
        attached = time.monotonic() - begun
        lost = self.verify()
        wait_until_healthy()
        say(f"attached {attached:.1f} s after all are back, healthy after "
            f"{time.monotonic() - begun:.1f} s; {lost} writes are gone, none was flushed")

    def stopped(self):
        """What an orderly end left is safe."""
        self.begin()
        self.end()
        self.judge.detach()
        parallax(self.serving, "down")
        say(f"stopped, then cut: {self.cut(self.serving)}")
        self.come_back(self.serving)
        self.attach(self.serving)
        assert self.verify() == 0

    def copy(self):
        """Of a host that does not serve the disk."""
        host = self.others()[0]
        self.begin()
        say(f"copy: {self.roles(self.serving)}, {host} is cut: {self.cut(host)}")
        time.sleep(0.5)
        self.end()
        assert self.verify() == 0
        self.come_back(host)
        healthy = wait_until_healthy()
        assert self.verify() == 0
        say(f"copy: longest write {self.judge.stall:.1f} s, "
            f"healthy {healthy:.1f} s later")

    def owner(self):
        host, gone = self.others()[0], self.serving
        self.begin()
        say(f"owner: {self.roles(host)}, {gone} is cut: {self.cut(gone)}")
        self.end(gone)
        took = self.attach(host)
        assert self.verify() == 0
        self.come_back(gone)
        healthy = wait_until_healthy()
        say(f"owner: attached after {took:.1f} s, healthy {healthy:.1f} s later")

    def all_others(self):
        """Only the host that serves stays, and has in memory what nobody flushed. When
        that is flushed, that host may lose power as well."""
        gone = self.others()
        self.begin()
        assert not self.administrator.stop()
        time.sleep(0.3)
        say(f"others: {self.roles(self.serving)}, the others are cut: {self.cut(*gone)}")
        self.come_back(*gone)
        time.sleep(0.3)
        self.end()
        self.judge.flush()
        say(f"others: longest write {self.judge.stall:.1f} s, host {self.serving} "
            f"is cut: {self.cut(self.serving)}")
        self.come_back(self.serving)
        took = self.attach(self.random.choice(HOSTS))
        assert self.verify() == 0
        healthy = wait_until_healthy()
        say(f"others: attached after {took:.1f} s, healthy {healthy:.1f} s later")

    def tell(self):
        say(f"{self.judge.acknowledged} writes, {self.administrator.done} commands, "
            f"disks lost {self.lost >> 10} KiB")
        assert self.lost > 0


def main():
    wait_until_healthy()
    story = Story()
    parallax(story.serving, "disk", "create", DISK, "16M")
    story.cut(*HOSTS)
    story.come_back(*HOSTS)
    wait_until_healthy()
    story.attach(story.serving)
    if len(HOSTS) > 1:
        cases = [story.everywhere, story.copy, story.owner, story.all_others]
    else:
        cases = [story.everywhere] * 4 + [story.stopped]
    for _ in range(ROUNDS):
        story.random.shuffle(cases)
        for case in cases:
            case()
    story.judge.detach()
    for host in HOSTS:
        parallax(host, "check")
    story.tell()


main()
