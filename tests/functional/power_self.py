# SPDX-License-Identifier: Apache-2.0
"""Do the disks of power.py keep what was synced, lose what was not, and tear it?"""

import mmap
import os
import random
import sys

import power

FOLDER = sys.argv[1]
LEN = 1 << 20


def put(name, byte, sync):
    """Past the file system's memory, so that the disk has it in any case."""
    data = mmap.mmap(-1, LEN)
    data.write(bytes([byte]) * LEN)
    fd = os.open(f"{FOLDER}/{name}", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    os.pwrite(fd, data, 0)
    if sync:
        os.fsync(fd)
    os.close(fd)


def get(name):
    with open(f"{FOLDER}/{name}", "rb") as file:
        return file.read()


def old_and_new(percent, lies=False):
    """Overwrites what was safe: `synced`, `unsynced`; what is there after a cut."""
    power.on(FOLDER, lies=False)
    for name in "synced", "unsynced":
        put(name, 1, True)
    power.off(FOLDER)
    power.on(FOLDER, lies=lies)
    put("synced", 2, True)
    put("unsynced", 2, False)
    lost, = power.cut([FOLDER], random, percent)
    power.on(FOLDER, lies=False)
    found = get("synced"), get("unsynced")
    power.off(FOLDER)
    return lost, *found


OLD, NEW = bytes([1]) * LEN, bytes([2]) * LEN
lost, synced, unsynced = old_and_new(percent=0)
assert lost >= LEN and synced == NEW and unsynced == OLD
lost, synced, unsynced = old_and_new(percent=100)
assert lost == 0 and synced == NEW and unsynced == NEW
lost, synced, unsynced = old_and_new(percent=50)
assert synced == NEW and unsynced not in (OLD, NEW) and set(unsynced) == {1, 2}
lost, synced, unsynced = old_and_new(percent=0, lies=True)
assert synced == unsynced == OLD
