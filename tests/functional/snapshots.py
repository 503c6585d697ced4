#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""snapshots.py DIR first|again: the work of snapshots.sh. Everything follows from the
seed, so the second run knows what the first one wrote without being told."""

import random
import subprocess
import sys

from model import Model, connect

SECTORS = 8 * 2048
SNAPSHOTS = 120
GENERATIONS = 12


class Story:
    """Replays the same steps on the models, and on the daemon if it is the first time."""

    def __init__(self, folder, is_first):
        self.folder = folder
        self.is_first = is_first
        self.random = random.Random(2008)
        self.version = 0
        self.contents = {"d": Model(SECTORS)}
        self.handles = {}

    def parallax(self, *words):
        if self.is_first:
            subprocess.run(["parallax", *words], check=True)

    def handle(self, name):
        if name not in self.handles:
            uri = f"nbd+unix:///{name}?socket={self.folder}/nbd.sock"
            self.handles[name] = connect(uri)
        return self.handles[name]

    def write(self, disk, writes):
        model = self.contents[disk]
        for _ in range(writes):
            self.version += 1
            sector = self.random.randrange(SECTORS - 64)
            count = self.random.choice((1, 8, 8, 8, 64))
            if self.is_first:
                model.write(self.handle(disk), sector, count, self.version)
            else:
                model.set(sector, count, self.version)

    def snapshot(self, name):
        self.parallax("snapshot", "create", name)
        self.contents[name] = self.contents[name.split("@")[0]].copy()

    def clone(self, source, name):
        self.parallax("clone", source, name)
        self.contents[name] = self.contents[source].copy()

    def rollback(self, name):
        self.parallax("snapshot", "rollback", name)
        self.contents[name.split("@")[0]] = self.contents[name].copy()

    def compare_all(self):
        self.handles.clear()
        for name, model in self.contents.items():
            model.compare(connect(f"nbd+unix:///{name}?socket={self.folder}/nbd.sock"),
                          name)


def main():
    story = Story(sys.argv[1], sys.argv[2] == "first")
    for number in range(SNAPSHOTS):
        story.write("d", 20)
        story.snapshot(f"d@s{number}")

    # Each clone of the clone before it, from its head or from a snapshot of it.
    parent = f"d@s{SNAPSHOTS // 2}"
    for number in range(GENERATIONS):
        story.clone(parent, f"child{number}")
        story.write(f"child{number}", 10)
        parent = f"child{number}"
        if number % 2:
            story.snapshot(f"child{number}@s")
            story.write(f"child{number}", 10)
            parent = f"child{number}@s"

    # Back and forth, with writes in between.
    for number in (7, SNAPSHOTS - 1, 0):
        story.handles.clear()
        story.rollback(f"d@s{number}")
        story.write("d", 10)
        story.snapshot(f"d@after-rollback-{number}")
        story.write("d", 10)
    story.compare_all()


main()
