#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""full-snapshots.py DIR STATE ACTION: the work of full-snapshots.sh.

STATE keeps what disk d, its snapshots and disk other must hold."""

import errno
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import time

import nbd

from model import SECTOR, Model, connect, content

PIECE = 256             # sectors in a write
REFUSALS = 5            # in a row, then it is full
SNAPSHOTS_COMPARED = 4  # each time
SLACK_BYTES = 16 << 20  # what fits may differ by from one time to another


class State:
    """models: name to content. Filling the disk other goes on at sector `next`."""

    def __init__(self):
        self.models, self.version, self.next = {}, 0, 0
        self.full_bytes = None          # what was live when it was full at first
        self.random = random.Random(6)

    def snapshots(self):
        return [name for name in self.models if "@" in name]


def uri(name):
    return f"nbd+unix:///{name}?socket={sys.argv[1]}/nbd.sock"


def parallax(*words):
    return subprocess.run(["parallax", *words], timeout=60, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def must(*words):
    done = parallax(*words)
    assert done.returncode == 0, f"parallax {' '.join(words)}: {done.stderr}"
    return done.stdout


def write(handle, model, state, sector):
    """False: no space. Then each sector may be old or new; which one is looked up."""
    state.version += 1
    count = min(PIECE, len(model.versions) - sector)
    data = b"".join(content(sector + i, state.version) for i in range(count))
    try:
        handle.pwrite(data, sector * SECTOR)
    except nbd.Error as error:
        assert error.errnum == errno.ENOSPC, error
        found = bytes(handle.pread(len(data), sector * SECTOR))
        for i in range(count):
            version = struct.unpack_from("<QQ", found, i * SECTOR)[1]
            assert version in (model.versions[sector + i], state.version), \
                f"sector {sector + i}: version {version} after a refused write"
            model.versions[sector + i] = version
        return False
    model.set(sector, count, state.version)
    return True


def is_full(handle, model, state, sector):
    """Refuses a write, and does so again: refusing makes the daemon look for space."""
    for _ in range(REFUSALS):
        if write(handle, model, state, sector):
            return False
        time.sleep(0.02)
    return True


def fill(state):
    """Writes half of d, makes a snapshot, and so on."""
    handle = connect(uri("d"))
    for name in ("d", "other"):
        size = connect(uri(name)).get_size()
        state.models[name] = Model(size // SECTOR)
    model = state.models["d"]
    while True:
        for _ in range(len(model.versions) // PIECE // 2):
            sector = state.random.randrange(len(model.versions) // PIECE) * PIECE
            if is_full(handle, model, state, sector):
                fill_other(state)
                state.full_bytes = live_bytes()
                return
        name = f"d@s{len(state.models)}"
        done = parallax("snapshot", "create", name)
        if done.returncode == 0:
            state.models[name] = model.copy()
        else:
            assert "no space" in done.stderr.lower(), done.stderr


def fill_other(state):
    handle, model = connect(uri("other")), state.models["other"]
    while not is_full(handle, model, state, state.next):
        state.next += PIECE
        assert state.next < len(model.versions), "more fits than there is"


def live_bytes():
    return json.loads(must("status", "--json"))["live_bytes"]


def remove_one(state):
    before = live_bytes()
    name = state.random.choice(state.snapshots())
    must("snapshot", "rm", name)
    del state.models[name]
    for _ in range(600):
        if live_bytes() < before:
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} is removed, and still {live_bytes()} bytes live")


def remove_while_writing(state):
    """A client writes to d over and over; the removals must not wait for it."""
    stop, failed = threading.Event(), []
    counts = {True: 0, False: 0}        # writes by their success

    def run():
        try:
            handle, model = connect(uri("d")), state.models["d"]
            rng = random.Random(state.version)
            while not stop.is_set():
                sector = rng.randrange(len(model.versions) // PIECE) * PIECE
                counts[write(handle, model, state, sector)] += 1
            handle.flush()
        except (nbd.Error, AssertionError) as error:
            failed.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    snapshots = state.snapshots()
    for name in state.random.sample(snapshots, len(snapshots) * 2 // 3):
        must("snapshot", "rm", name)
        del state.models[name]
    time.sleep(1)
    stop.set()
    thread.join()
    assert not failed, failed[0]
    assert counts[True], f"no space for any write: {counts}"


def remove_rest(state):
    must("snapshot", "rm", "d", "--older-than", "0")
    for name in state.snapshots():
        del state.models[name]


def verify(state):
    """All that is there, by name; disks and some snapshots by content."""
    found = json.loads(must("snapshot", "ls", "d", "--json"))
    names = sorted(f"d@{item['name']}" for item in found)
    assert names == sorted(state.snapshots()), f"{names}, not {state.snapshots()}"
    disks = {item["name"] for item in json.loads(must("disk", "ls", "--json"))}
    some = state.random.sample(names, min(len(names), SNAPSHOTS_COMPARED))
    for name in some + sorted(disks):
        state.models[name].compare(connect(uri(name)), name)


def fill_again(state):
    """As much fits as at first."""
    state.models["other"] = Model(len(state.models["other"].versions))
    state.next = 0
    fill_other(state)
    live = live_bytes()
    assert live > state.full_bytes - SLACK_BYTES, \
        f"only {live} bytes fit, {state.full_bytes} did at first"


ACTIONS = {"fill": fill, "fill-other": fill_other, "remove-one": remove_one,
           "remove-while-writing": remove_while_writing, "remove-rest": remove_rest,
           "verify": verify, "fill-again": fill_again}


def main():
    path, action = sys.argv[2:]
    state = State()
    if os.path.exists(path):
        with open(path, "rb") as file:
            state = pickle.load(file)
    if action == "count":
        print(len(state.snapshots()))
        return
    ACTIONS[action](state)
    with open(path, "wb") as file:
        pickle.dump(state, file)


main()
