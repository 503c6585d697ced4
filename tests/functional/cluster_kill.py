# SPDX-License-Identifier: Apache-2.0
"""Hosts are killed and stopped under load, one at a time; see cluster-kill.sh."""

import os
import signal
import sys
import time

import nbd

from cluster_hosts import (kill, leader, parallax, say, start, uri,
                           wait_until_healthy)
from judge import Judge

COUNT = int(sys.argv[1])
HOSTS = list(range(1, COUNT + 1))
BLOCKS = 2048


def others(*hosts):
    return [host for host in HOSTS if host not in hosts]


def under_load(judge, hurt, seconds):
    """Runs load, and `hurt` in the middle of it: no request may fail."""
    judge.start()
    time.sleep(1)
    hurt()
    time.sleep(seconds)
    errors = judge.stop()
    assert not errors, f"the client was told {errors[:3]}"
    return judge.stall


def serve_at(judge, host):
    """Attaches and writes once; how long that took."""
    begun = time.monotonic()
    while True:
        try:
            judge.attach(uri(host, "web"))
            break
        except nbd.Error as error:
            assert time.monotonic() < begun + 30, error.string
            time.sleep(0.05)
    attached = time.monotonic()
    judge.write_once()
    return attached - begun, time.monotonic() - attached


def copy_dies(judge, serving, host, words):
    """A host that only holds copies dies under load, and comes back."""
    say(f"{words}: host {host} is killed; {leader(serving)} leads")
    stall = under_load(judge, lambda: kill(host), 2)
    assert judge.verify() == 0
    start(host)
    healthy = wait_until_healthy(serving, host)
    say(f"{words}: longest write {stall:.3f} s, healthy {healthy:.1f} s after the start")


def owner_dies(judge, serving, host):
    """The serving host dies under load, and another one goes on."""
    say(f"owner: host {serving} is killed; {leader(host)} leads")
    judge.start()
    time.sleep(1)
    kill(serving)
    judge.stop()
    attach, write = serve_at(judge, host)
    judge.verify()
    say(f"owner: attached after {attach:.3f} s, first write took {write:.3f} s")
    stall = under_load(judge, lambda: None, 1)
    start(serving)
    healthy = wait_until_healthy(host, serving)
    judge.verify()
    say(f"owner: then the longest write {stall:.3f} s, healthy {healthy:.1f} s later")


def copy_stops(judge, serving, host):
    """A host that only holds copies stands still for a while."""
    say(f"stopped: host {host} stands still; {leader(serving)} leads")

    def stop():
        kill(host, signal.SIGSTOP)

    stall = under_load(judge, stop, 3)
    kill(host, signal.SIGCONT)
    healthy = wait_until_healthy(serving, host)
    judge.verify()
    say(f"stopped: longest write {stall:.3f} s, healthy {healthy:.1f} s later")


def owner_stops(judge, serving, host):
    """The serving host stands still until another one has the disk, and wakes up."""
    say(f"fenced: host {serving} stands still; {leader(serving)} leads")
    judge.start()
    time.sleep(1)
    kill(serving, signal.SIGSTOP)
    former = judge.leave()
    attach, write = serve_at(judge, host)
    judge.verify()
    for _ in range(20):
        judge.write_once()
    kill(serving, signal.SIGCONT)
    judge.stop()
    for block in range(8):
        try:
            former.pwrite(bytes(4096), block * 4096)
        except nbd.Error:
            continue
        raise AssertionError("a former owner takes a write")
    for _ in range(20):
        judge.write_once()
    judge.verify()
    healthy = wait_until_healthy(host, serving)
    judge.verify()
    say(f"fenced: attached after {attach:.3f} s, first write took {write:.3f} s, "
        f"healthy {healthy:.1f} s later")


def quiet(judge, serving):
    """Load without any failure, to compare with."""
    stall = under_load(judge, lambda: None, 0)
    say(f"quiet: {judge.acknowledged} writes in a second, longest {stall:.3f} s, "
        f"host {serving} serves")


def main():
    serving = 1
    parallax(serving, "disk", "create", "web", "64M")
    wait_until_healthy(*HOSTS)
    judge = Judge(BLOCKS, os.getpid())
    judge.attach(uri(serving, "web"))
    quiet(judge, serving)

    now = leader(serving)
    copy_dies(judge, serving, others(serving, now)[0], "copy")
    now = leader(serving)
    if now == serving:  # let another host serve
        judge.detach()
        serving = others(now)[0]
        attach, write = serve_at(judge, serving)
        say(f"moved: attach {attach:.3f} s, write {write:.3f} s")
    copy_dies(judge, serving, now, "leader")

    copy_stops(judge, serving, others(serving)[-1])
    next_one = others(serving)[0]
    owner_stops(judge, serving, next_one)
    serving = next_one
    next_one = others(serving)[-1]
    owner_dies(judge, serving, next_one)
    judge.detach()


main()
