#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""client-good.py URI STOP: writes and reads at random, until the file STOP exists, and
checks each answer and that none takes long."""

import os
import random
import sys
import time

import nbd

from model import Model, connect

PAUSE_SECONDS_MAX = 10 # of a machine that other tests keep busy


def main():
    uri, stop = sys.argv[1:]
    handle, rng = connect(uri), random.Random(1)
    model = Model(handle.get_size() // 512)
    version, longest = 0, 0.0
    while not os.path.exists(stop):
        version += 1
        begun = time.monotonic()
        sector = rng.randrange(len(model.versions) - 16)
        flags = nbd.CMD_FLAG_FUA if version % 50 == 0 else 0
        model.write(handle, sector, 16, version, flags)
        sector = rng.randrange(len(model.versions) - 16)
        data = handle.pread(16 * 512, sector * 512)
        longest = max(longest, time.monotonic() - begun)
        assert data == model.data(sector, 16), f"sector {sector}"
        if version % 100 == 0:
            read_as_newcomer(uri, model, sector)
    model.compare(handle, "good")
    print(f"good client: {version} writes, the longest took {longest:.3f} s")
    assert longest < PAUSE_SECONDS_MAX


def read_as_newcomer(uri, model, sector):
    """Others may be refused for a moment while somebody holds all connections."""
    try:
        data = connect(uri).pread(16 * 512, sector * 512)
    except nbd.Error:
        return
    assert data == model.data(sector, 16), f"sector {sector}, on a new connection"


main()
