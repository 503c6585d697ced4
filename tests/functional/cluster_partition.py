# SPDX-License-Identifier: Apache-2.0
"""Ways between hosts are cut under load; see cluster-partition.sh."""

import os
import subprocess
import sys
import time

import nbd

from cluster_hosts import leader, nodes, parallax, say, uri, wait_for, wait_until_healthy
from judge import Judge

COUNT = int(sys.argv[1])
HOSTS = list(range(1, COUNT + 1))
NETNS = os.environ["PLX_NETNS"]
BLOCKS = 2048
PATIENCE = 20  # seconds that a request may take, whatever is cut


def neighbour(here, there, *words):
    subprocess.run(["ip", "-n", f"{NETNS}-{here}", "neigh", words[0],
                    f"10.87.0.{there}", *words[1:], "dev", "eth0"], check=True)


def cut(*ways):
    """Nothing that HERE sends to THERE arrives any more, and nobody says so: it goes to a
    machine that does not exist."""
    for here, there in ways:
        neighbour(here, there, "replace", "lladdr", "02:00:00:00:00:01", "nud",
                  "permanent")


def heal(*ways):
    for here, there in ways:
        neighbour(here, there, "del")


def between(a, b):
    return [(a, b), (b, a)]


def around(host):
    return [way for other in HOSTS if other != host for way in between(host, other)]


def others(*hosts):
    return [host for host in HOSTS if host not in hosts]


def move(judge, host):
    """Lets another host serve, from here or from nowhere."""
    if judge.handle is not None:
        judge.detach()
    begun = time.monotonic()
    while True:
        try:
            judge.attach(uri(host, "web"))
            break
        except nbd.Error as error:
            assert time.monotonic() < begun + 30, error.string
            time.sleep(0.05)
    judge.write_once()
    return time.monotonic() - begun


def under_load(judge, words, ways, seconds=6):
    """The client notices nothing but a delay."""
    say(f"{words}: cut {ways}")
    judge.start()
    time.sleep(1)
    cut(*ways)
    time.sleep(seconds)
    errors = judge.stop(PATIENCE)
    stall = judge.stall
    assert not errors, f"the client was told {errors[:3]}"
    judge.verify()
    for _ in range(20):
        judge.write_once()
    return stall


def well_again(judge, words, serving, ways, stall):
    heal(*ways)
    healthy = wait_until_healthy(serving, *others(serving))
    judge.verify()
    say(f"{words}: longest write {stall:.3f} s, healthy {healthy:.1f} s after the cut")


def leader_and_owner(judge):
    """They do not reach each other. Somebody leads who reaches both."""
    leads = leader(1)
    serving = others(leads)[0]
    move(judge, serving)
    ways = between(leads, serving)
    stall = under_load(judge, "leader and owner", ways)
    wait_for("somebody else leads", PATIENCE,
             lambda: leader(serving) not in (leads, None))
    parallax(serving, "disk", "create", f"made{leads}", "1M", timeout=PATIENCE)
    well_again(judge, "leader and owner", serving, ways, stall)
    return serving


def leader_and_copy(judge):
    """The same with the leader as the owner."""
    leads = leader(1)
    move(judge, leads)
    ways = between(leads, others(leads)[0])
    well_again(judge, "leader and copy", leads, ways,
               under_load(judge, "leader and copy", ways))


def one_way(judge):
    """What the owner sends to one of the others is lost, what it hears is not."""
    serving = others(leader(1))[0]
    move(judge, serving)
    ways = [(serving, others(serving)[-1])]
    well_again(judge, "one way", serving, ways, under_load(judge, "one way", ways))


def lone_copy(judge):
    """One that only holds copies is cut off; asked for its state it soon says so."""
    leads = leader(1)
    move(judge, leads)
    alone = others(leads)[0]
    ways = around(alone)
    stall = under_load(judge, "lone copy", ways)
    begun = time.monotonic()
    assert "no majority" in parallax(alone, "status", timeout=PATIENCE)
    say(f"lone copy: its status took {time.monotonic() - begun:.3f} s")
    well_again(judge, "lone copy", leads, ways, stall)


def lone_leader(judge):
    """The leader, which serves nothing, is cut off."""
    leads = leader(1)
    serving = others(leads)[0]
    move(judge, serving)
    ways = around(leads)
    stall = under_load(judge, "lone leader", ways)
    well_again(judge, "lone leader", serving, ways, stall)


def half_a_leader(judge, words, ways_of):
    """Either all hear the leader, or it hears all, and not the other way round."""
    leads = leader(1)
    serving = others(leads)[0]
    move(judge, serving)
    ways = ways_of(leads)
    stall = under_load(judge, words, ways)
    assert leader(serving) not in (leads, None)
    well_again(judge, words, serving, ways, stall)


def deaf_leader(judge):
    half_a_leader(judge, "deaf leader",
                  lambda leads: [(other, leads) for other in others(leads)])


def mute_leader(judge):
    half_a_leader(judge, "mute leader",
                  lambda leads: [(leads, other) for other in others(leads)])


def lone_owner(judge):
    """The owner is cut off under load. Another host takes the disk, and what the former
    owner answers from then on is no write."""
    serving = leader(1)
    move(judge, serving)
    judge.start()
    time.sleep(1)
    ways = around(serving)
    say(f"lone owner: cut {ways}")
    cut(*ways)
    former = judge.leave()
    host = others(serving)[0]
    took = move(judge, host)
    judge.verify()
    for _ in range(20):
        judge.write_once()
    heal(*ways)
    judge.stop()
    for block in range(8):
        try:
            former.pwrite(bytes(4096), block * 4096)
        except nbd.Error:
            continue
        raise AssertionError("a former owner takes a write")
    judge.verify()
    healthy = wait_until_healthy(host, *others(host))
    judge.verify()
    say(f"lone owner: written elsewhere after {took:.3f} s, "
        f"healthy {healthy:.1f} s later")


STORIES = {story.__name__: story for story in
           (leader_and_owner, leader_and_copy, one_way, lone_copy, lone_leader,
            deaf_leader, mute_leader, lone_owner)}


def main():
    say("begin")
    parallax(1, "disk", "create", "web", "64M")
    wait_until_healthy(*HOSTS)
    assert len(nodes(1)) == COUNT
    judge = Judge(BLOCKS, os.getpid())
    for name in sys.argv[2:]:
        STORIES[name](judge)
    judge.detach()


main()
