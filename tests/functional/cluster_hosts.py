# SPDX-License-Identifier: Apache-2.0
"""The hosts that start_cluster of lib.sh made: what they say, and how they are hurt."""

import json
import os
import signal
import subprocess
import time

T = os.environ["T"]


def say(text):
    print(f"{time.strftime('%T')} {text}", flush=True)


def parallax(host, *arguments, timeout=60, check=True):
    """Its standard output, or, if it may fail, (status, output, errors)."""
    done = subprocess.run(["parallax", "-c", f"{T}/{host}", *arguments], timeout=timeout,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if not check:
        return done.returncode, done.stdout, done.stderr
    assert done.returncode == 0, f"{arguments} at {host}: {done.stderr}"
    return done.stdout


def uri(host, disk):
    return f"nbd+unix:///{disk}?socket={T}/{host}/nbd.sock"


def pid(host):
    with open(f"{T}/{host}/parallaxd.pid", encoding="ascii") as file:
        return int(file.read())


def kill(host, number=signal.SIGKILL):
    """Returns once it is gone, or, with another signal, at once."""
    process = pid(host)
    os.kill(process, number)
    while number == signal.SIGKILL:
        try:
            with open(f"/proc/{process}/stat", encoding="ascii") as file:
                if file.read().rsplit(") ", 1)[1][0] == "Z" \
                        and len(os.listdir(f"/proc/{process}/task")) == 1:
                    return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)


def start(*hosts):
    """Together: alone they may have no majority."""
    begun = [subprocess.Popen(["parallax", "up", f"{T}/{host}", "--detach"],
                              stdin=subprocess.DEVNULL) for host in hosts]
    for host, process in zip(hosts, begun):
        assert process.wait(60) == 0, f"host {host} does not start"


def nodes(host):
    return json.loads(parallax(host, "node", "ls", "--json"))


def status(host):
    return json.loads(parallax(host, "status", "--json"))


def leader(host):
    for node in nodes(host):
        if node["role"] == "leader":
            return node["node"]
    return None


def wait_for(what, seconds, condition):
    """How long it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + seconds, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - begun


def is_healthy(host):
    now = status(host)
    return now["health"] == "ok" and now["members"]["groups_not_whole"] == 0 \
        and not now["members"]["nodes_down"] and now["members"]["majority"]


def all_vote(host):
    return sum(node["role"] in ("voter", "leader") for node in nodes(host)) >= \
        min(3, len(nodes(host)))


def wait_until_healthy(*hosts, seconds=60):
    begun = time.monotonic()
    try:
        for host in hosts:
            wait_for(f"host {host} says that all is well", seconds,
                     lambda host=host: is_healthy(host) and all_vote(host))
    except AssertionError:
        say(json.dumps([status(hosts[0]), nodes(hosts[0])], indent=1))
        raise
    return time.monotonic() - begun
