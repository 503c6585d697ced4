# SPDX-License-Identifier: Apache-2.0
"""migrate_guest.py FOLDER KERNEL INITRD BLOCKS: a guest that runs guest/stream.c moves
between the hosts of FOLDER/1 and FOLDER/2; see migrate-guest.sh."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import zlib

FOLDER, KERNEL, INITRD, BLOCKS = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
MOVES = 20
BLOCK = 4096
STEP = 7919
children = []


def fail(text):
    print(text, file=sys.stderr)
    sys.exit(1)


def wait_for(what, seconds, condition):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            fail(f"not within {seconds} s: {what}")
        time.sleep(0.01)


class Qemu:
    """One process, its QMP, and what its guest says on the console."""

    count = 0

    def __init__(self, node, incoming):
        Qemu.count += 1
        self.name = f"{FOLDER}/q{Qemu.count}"
        self.node = node
        export = "web?incoming" if incoming else "web"
        command = [
            "qemu-system-x86_64", "-M", "pc", "-accel", "tcg", "-m", "128",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", KERNEL, "-initrd", INITRD,
            "-append", "console=ttyS0 quiet loglevel=1 mitigations=off "
            "no_timer_check rdinit=/stream-init",
            "-chardev", f"socket,id=tty,path={self.name}.tty,server=on,wait=off,"
            f"logfile={self.name}.log", "-serial", "chardev:tty",
            "-qmp", f"unix:{self.name}.qmp,server=on,wait=off",
            "-blockdev", "driver=nbd,node-name=disk,server.type=unix,cache.direct=on,"
            f"server.path={FOLDER}/{node}/nbd.sock,export={export}",
            "-device", "virtio-blk-pci,drive=disk,romfile=",
        ]
        if incoming:
            command += ["-incoming", f"unix:{self.name}.move"]
        with open(f"{self.name}.err", "wb") as err:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                            stdout=err, stderr=err)
        children.append(self.process)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        wait_for(f"QMP of {self.name}", 30, self.connect)
        self.file = self.socket.makefile("rwb")
        self.file.readline()
        self.run("qmp_capabilities")

    def connect(self):
        if self.process.poll() is not None:
            with open(f"{self.name}.err", encoding="utf-8") as err:
                fail(f"qemu ended: {err.read()}")
        try:
            self.socket.connect(f"{self.name}.qmp")
            return True
        except OSError:
            return False

    def run(self, command, **arguments):
        request = {"execute": command, "arguments": arguments}
        self.file.write(json.dumps(request).encode() + b"\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "error" in answer:
                fail(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def said(self):
        try:
            with open(f"{self.name}.log", "rb") as log:
                return log.read().decode("latin1")
        except FileNotFoundError:
            return ""

    def last(self):
        """The newest number that the guest called safe here; 0: none yet."""
        text = self.said()
        if "ERROR" in text:
            fail(f"the guest says: {text[text.index('ERROR'):].strip()}")
        found = re.findall(r"SEQ (\d+)\r?\n", text)
        return int(found[-1]) if found else 0

    def goes_on(self):
        was = self.last()
        wait_for(f"the guest of {self.name} writes on", 60, lambda: self.last() > was)

    def type(self, text):
        with socket.socket(socket.AF_UNIX) as tty:
            tty.connect(f"{self.name}.tty")
            tty.sendall(text.encode())
            time.sleep(0.5)

    def quit(self):
        self.run("quit")
        self.process.wait(30)


def status_of(qemu):
    return qemu.run("query-migrate").get("status")


def cancel_one(source):
    there = Qemu(3 - source.node, True)
    source.run("migrate-set-parameters", **{"max-bandwidth": 1 << 20})
    source.run("migrate", uri=f"unix:{there.name}.move")
    time.sleep(0.5)
    source.run("migrate_cancel")
    wait_for("the migration is cancelled", 30,
             lambda: status_of(source) in ("cancelled", "failed"))
    there.process.wait(30)
    source.goes_on()


def move(source):
    """Returns the destination and how long the guest stood still, in ms."""
    there = Qemu(3 - source.node, True)
    source.goes_on()
    source.run("migrate-set-parameters",
               **{"max-bandwidth": 1 << 30, "downtime-limit": 300})
    source.run("migrate", uri=f"unix:{there.name}.move")
    wait_for("the migration ends", 60,
             lambda: status_of(source) in ("completed", "failed", "cancelled"))
    if status_of(source) != "completed":
        fail(f"the migration {status_of(source)}")
    time.sleep(0.1)
    pause_ms = source.run("query-migrate")["downtime"]
    wait_for("the guest runs there", 30,
             lambda: there.run("query-status")["status"] == "running")
    there.goes_on()
    return there, pause_ms


def try_to_write(source, there):
    """The old guest wakes up: it must not get anything onto the disk."""
    source.run("cont")
    wait_for("the old guest is refused", 60,
             lambda: re.search(r"ERROR (write|sync|read) \d+", source.said()))
    if "ERROR compare" in source.said():
        fail("the old guest read what it did not write")
    there.goes_on()


def check(node, last):
    image = f"{FOLDER}/image"
    subprocess.run(
        ["qemu-img", "convert", "--image-opts", "-O", "raw",
         f"driver=nbd,server.type=unix,server.path={FOLDER}/{node}/nbd.sock,export=web",
         image], check=True)
    with open(image, "rb") as file:
        data = file.read()
    if len(data) != BLOCKS * BLOCK:
        fail(f"the disk has {len(data)} bytes")
    first = max(1, last - BLOCKS + 1)
    newest = {seq * STEP % BLOCKS: seq for seq in range(first, last + 1)}
    for place in range(BLOCKS):
        block = data[place * BLOCK:(place + 1) * BLOCK]
        if place not in newest:
            if block.count(0) != BLOCK:
                fail(f"block {place} was never written, and is not empty")
            continue
        seq, where = struct.unpack_from("<QQ", block)
        crc, = struct.unpack_from("<I", block, BLOCK - 4)
        if (seq, where) != (newest[place], place) or crc != zlib.crc32(block[:-4]):
            fail(f"block {place} has number {seq} of {where}, not {newest[place]}")


def main():
    guest = Qemu(1, False)
    wait_for("the guest writes", 90, guest.last)
    cancel_one(guest)
    pauses = []
    for number in range(MOVES):
        there, pause_ms = move(guest)
        pauses.append(pause_ms)
        if number % 5 == 0:
            try_to_write(guest, there)
        guest.quit()
        guest = there
        guest.goes_on()
    guest.type("q")
    end = wait_for("the guest ends", 60,
                   lambda: re.search(r"END (\d+)\r?\n", guest.said()))
    last = int(end.group(1))
    guest.quit()
    check(guest.node, last)
    pauses.sort()
    print(f"{last} blocks, {MOVES} moves; the guest stood still for a median of "
          f"{pauses[len(pauses) // 2]} ms, at most {pauses[-1]} ms")


try:
    main()
finally:
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()
