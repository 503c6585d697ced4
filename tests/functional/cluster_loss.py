# SPDX-License-Identifier: Apache-2.0
"""The store that knows all is lost; see cluster-loss.sh."""

import json
import os

import nbd

from cluster_hosts import (kill, nodes, parallax, say, start, status, uri, wait_for,
                           wait_until_healthy)
from judge import Judge

BLOCKS = 256


def write(host, name):
    """A disk that is written, flushed and closed."""
    judge = Judge(BLOCKS, os.getpid())
    parallax(host, "disk", "create", name, "16M")
    judge.attach(uri(host, name))
    for block in range(BLOCKS):
        judge.write_once(block)
    judge.flush()
    judge.detach()
    wait_for(f"{name} is closed", 60, lambda: not any(
        disk["served"] for disk in json.loads(parallax(host, "disk", "ls", "--json"))))
    return judge


def verify(host, name, judge):
    def is_served():
        try:
            judge.attach(uri(host, name))
        except nbd.Error as error:
            say(f"{name}: {error.string}")
            return False
        return True
    wait_for(f"{name} is served", 60, is_served)
    assert judge.verify() == 0
    judge.detach()


def are_down(host, count):
    return len(status(host)["members"]["nodes_down"]) == count


def three_vote(host):
    """And all of them are up: nobody is about to take the place of one that is gone."""
    voters = [node for node in nodes(host) if node["role"] in ("voter", "leader")]
    return len(voters) == 3 and all(node["state"].startswith("up") for node in voters)


def recovers(host):
    """What `status` shows an operator."""
    return "recovery" in parallax(host, "status")


def main():
    parallax(1, "pool", "set", "default", "--min-copies", "1")
    wait_until_healthy(1, 4, 5)
    judges = {"all": write(1, "all")}
    kill(5)
    wait_for("host 5 is down", 20, lambda: are_down(1, 1))
    judges["two"] = write(1, "two")
    kill(4)
    wait_for("host 4 is down", 20, lambda: are_down(1, 2))
    kill(1)
    start(4, 5)
    wait_for("host 1 is down", 30, lambda: are_down(5, 1))
    said = parallax(5, "node", "rm", "1", "--lost", check=False)
    assert said[0] != 0 and "--data-loss" in said[2], said
    say(said[2].strip())
    parallax(5, "node", "rm", "1", "--lost", "--data-loss")
    took = wait_for("no recovery is shown", 60,
                    lambda: not recovers(4) and not recovers(5))
    say(f"no recovery is shown after {took:.1f} s")
    for name, judge in judges.items():
        verify(5, name, judge)
    wait_for("another one votes for host 1", 30, lambda: three_vote(5))
    kill(4)
    wait_for("host 4 is down again", 30, lambda: are_down(5, 1))
    for name, judge in judges.items():
        verify(5, name, judge)
    say("host 5 has all of it alone")


main()
