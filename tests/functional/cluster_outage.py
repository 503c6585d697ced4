# SPDX-License-Identifier: Apache-2.0
"""Hosts go away and come back in another order; see cluster-outage.sh."""

import os
import subprocess
import threading
import time

import nbd

from cluster_hosts import (T, kill, parallax, say, start, status, uri, wait_for,
                           wait_until_healthy)
from judge import Judge

BLOCKS = 1024


def load(judge, seconds):
    judge.start()
    time.sleep(seconds)
    errors = judge.stop()
    assert not errors, f"the client was told {errors[:3]}"


def start_alone(host):
    """It can get no majority: the process lives, but is not ready."""
    return subprocess.Popen(["parallax", "up", f"{T}/{host}", "--detach"],
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def attach(judge, host, seconds):
    """Tries until it is served; how long that took."""
    begun = time.monotonic()
    while True:
        try:
            judge.attach(uri(host, "web"))
            return time.monotonic() - begun
        except nbd.Error as error:
            assert time.monotonic() < begun + seconds, error.string
            time.sleep(0.1)


def refuses(host, seconds):
    """Whoever asks it for the disk gets nothing, however often."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        h = nbd.NBD()
        try:
            h.connect_uri(uri(host, "web"))
        except nbd.Error:
            time.sleep(0.1)
            continue
        raise AssertionError(f"host {host} serves what it cannot know")


def staggered(judge):
    """Host 3 is away while the disk is written, and is the first to come back."""
    say("staggered: host 3 is away, host 1 is written, then both others go")
    load(judge, 0.5)
    kill(3)
    load(judge, 1)
    wait_for("host 1 says that host 3 is away", 20,
             lambda: "1 of 3 nodes not up" in status(1)["health"])
    judge.flush()
    kill(1)
    kill(2)
    alone = start_alone(3)
    time.sleep(1)
    refuses(3, 2)
    assert parallax(3, "disk", "ls", check=False)[0] == 3  # not ready
    start(2)
    assert alone.wait(30) == 0, alone.stderr.read()
    # Both have only what a restart found; what host 1 acknowledged may be more.
    waiter = threading.Thread(target=attach, args=(judge, 3, 60), daemon=True)
    waiter.start()
    time.sleep(3)
    start(1)
    begun = time.monotonic()
    waiter.join(60)
    took = time.monotonic() - begun
    assert judge.verify() == 0
    say(f"staggered: served {took:.1f} s after host 1 is back; "
        f"healthy after {wait_until_healthy(1, 2, 3):.1f} s")


def power_lost(judge, serving):
    say("power: all are killed")
    judge.start()
    time.sleep(1)
    for host in (1, 2, 3):
        kill(host)
    judge.stop()
    judge.power_was_lost()
    begun = time.monotonic()
    start(1, 2, 3)
    took = attach(judge, serving, 90)
    gone = judge.verify()
    say(f"power: served {time.monotonic() - begun:.1f} s after the start, {gone} writes "
        f"that were not flushed are gone; healthy after "
        f"{wait_until_healthy(1, 2, 3):.1f} s")


def majority_lost(judge, serving):
    say("majority: all but the one that serves are killed")
    gone = [host for host in (1, 2, 3) if host != serving]
    judge.start()
    time.sleep(0.5)
    for host in gone:
        kill(host)
    time.sleep(2)
    said = parallax(serving, "disk", "create", "x", "1M", check=False)
    assert said[0] != 0 and said[2].count("\n") == 1, said
    say(f"majority: {said[2].strip()}")
    said = parallax(serving, "disk", "ls", check=False)
    assert said[0] == 0 and "web" in said[1] and "known last" in said[2], said
    now = status(serving)
    assert not now["members"]["majority"] and "no majority" in now["health"], now
    time.sleep(1)
    start(*gone)
    errors = judge.stop()
    assert not errors, f"the client was told {errors[:3]}"
    say(f"majority: longest write {judge.stall:.1f} s; healthy after "
        f"{wait_until_healthy(1, 2, 3):.1f} s")
    assert judge.verify() == 0


def main():
    parallax(1, "disk", "create", "web", "64M")
    wait_until_healthy(1, 2, 3)
    judge = Judge(BLOCKS, os.getpid())
    judge.attach(uri(1, "web"))
    staggered(judge)
    power_lost(judge, 1)
    majority_lost(judge, 1)
    judge.detach()


main()
