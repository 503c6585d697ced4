#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Folders whose disks lose what was never synced when their power is cut.

    power.py on FOLDER          mounts it: an ext4 of its own, made the first time, on a
                                loop device on power_disk.c; with `device` FOLDER is a
                                link to that device, with nothing on it
    power.py off FOLDER         ends its daemon with SIGKILL, and all of that
    power.py cycle FOLDER...    a cut that loses all that was not synced; then it is on

`cut` does what a power cut does: the daemons stand still at once, their disks lose some
of what was not synced, and take nothing more; then nothing of them is left in the
kernel's memory either. `on` is the power that comes back: the file system replays its
journal. Needs $POWER_DISK, the program; with $POWER_LIES its disks sync nothing."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

SIZE = 2 << 30
PIECES = (512, 4096, 4096, 65536)
PERCENTS = (0, 0, 5, 50, 95)


def run(*command, check=True):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=60)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def wait_for(what, condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def beside(folder, name=""):
    return os.path.join(f"{folder}.power", name)


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(str(text))


def read(path):
    with open(path, encoding="ascii") as file:
        return file.read().strip()


# --- its disk ---

def make(folder, kind):
    os.makedirs(beside(folder, "files"))
    medium = beside(folder, "medium")
    write(medium, "")
    os.truncate(medium, SIZE)
    if kind == "device":
        os.symlink("nowhere", folder)
        return
    os.makedirs(folder)
    # A torn superblock is not ours to survive, but would not pass its checksum. Nothing
    # is left to be initialized when it is mounted.
    run("mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "4096", "-J", "size=16", "-m", "0",
        "-O", "^metadata_csum,^resize_inode", "-E", "lazy_itable_init=0", medium)


def on(folder, kind="ext4", lies="POWER_LIES" in os.environ):
    is_new = not os.path.exists(beside(folder))
    if is_new:
        make(folder, kind)
    with open(beside(folder, "log"), "ab") as log:
        disk = subprocess.Popen([os.environ["POWER_DISK"], beside(folder, "medium"),
                                 beside(folder, "files"), *["lies"] * lies],
                                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    write(beside(folder, "pid"), disk.pid)
    path = beside(folder, "files/disk")
    wait_for(f"{path} is there",
             lambda: os.path.exists(path) or disk.poll() is not None)
    assert disk.poll() is None, read(beside(folder, "log"))
    for tries in range(5, 0, -1):  # others look for a free one, too
        loop = run("losetup", "--find", "--show", "--direct-io=on", path,
                   check=tries == 1)
        if loop:
            break
        time.sleep(0.1)
    write(beside(folder, "loop"), loop)
    assert read(f"/sys/block/{os.path.basename(loop)}/loop/dio") == "1"
    if os.path.islink(folder):
        os.unlink(folder)
        os.symlink(loop, folder)
        return
    run("mount", "-t", "ext4", "-o", "noatime", loop, folder)
    if is_new:
        os.rmdir(os.path.join(folder, "lost+found"))


def off(folder):
    """Whatever of it there is."""
    for pid in processes(folder):
        end(pid)
    if os.path.ismount(folder) and os.path.exists(os.path.join(folder, "log")):
        shutil.copy(os.path.join(folder, "log"), beside(folder, "daemon"))
    take_down(folder)
    if os.path.exists(beside(folder, "daemon")):  # for who wants to know why
        os.rename(beside(folder, "daemon"), os.path.join(folder, "log"))


def unmount(path):
    """Files of a process may stay open a little longer than it lives."""
    def is_unmounted():
        run("umount", path, check=False)
        return not os.path.ismount(path)
    wait_for(f"{path} is not busy", lambda: not os.path.ismount(path) or is_unmounted())


def has_loop(folder):
    """Once it is given back, another test may have the device."""
    with contextlib.suppress(FileNotFoundError):
        name = os.path.basename(read(beside(folder, "loop")))
        backing = read(f"/sys/block/{name}/loop/backing_file")
        return backing == os.path.realpath(beside(folder, "files/disk"))
    return False


def take_down(folder):
    unmount(folder)
    if has_loop(folder):
        run("losetup", "--detach", read(beside(folder, "loop")))
        wait_for("the loop device is given back", lambda: not has_loop(folder))
    if os.path.ismount(beside(folder, "files")):
        pid = int(read(beside(folder, "pid")))
        unmount(beside(folder, "files"))
        wait_for("the disk's process is gone", lambda: is_gone(pid))


# --- the cut ---

def processes(folder):
    """Of the daemon, also of one that just starts, and of commands for it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = read(f"/proc/{pid}/cmdline").split("\0")
            if folder in words and read(f"/proc/{pid}/comm").startswith("parallax"):
                found.append(int(pid))
    return found


def threads(pid):
    """Their states."""
    states = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = read(f"/proc/{pid}/task/{thread}/stat")
                states.append(stat.rsplit(") ", 1)[1][0])
    return states


def is_gone(pid):
    """A zombie counts, but not before its last thread has ended."""
    return threads(pid) in ([], ["Z"])


def end(pid, number=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    if number == signal.SIGKILL:
        wait_for(f"{pid} is gone", lambda: is_gone(pid))
    else:  # a thread that waits for its disk does not go on either
        wait_for(f"{pid} stands still", lambda: set(threads(pid)) <= set("TDZ"))


def cut(folders, rng, percent=None):
    """Returns what their disks lost, in bytes."""
    pids = [pid for folder in folders for pid in processes(folder)]
    for pid in pids:
        end(pid, signal.SIGSTOP)
    shares = [rng.choice(PERCENTS) for _ in folders]
    if percent is not None or rng.random() < 0.5:  # alike
        shares = [shares[0] if percent is None else percent for _ in folders]
    for folder, share in zip(folders, shares):
        write(beside(folder, "files/power"),
              f"{rng.choice(PIECES)} {share} {rng.randrange(1 << 31)}")
    lost = [int(read(beside(folder, "files/power")).split()[2]) for folder in folders]
    pids += [pid for folder in folders for pid in processes(folder)]
    for pid in pids:
        end(pid)
    for folder in folders:
        take_down(folder)
    return lost


def cycle(*folders):
    cut(folders, random, 0)
    for folder in folders:
        on(folder)


if __name__ == "__main__":
    {"on": on, "off": off, "cycle": cycle}[sys.argv[1]](*sys.argv[2:])
