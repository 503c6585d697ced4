# SPDX-License-Identifier: Apache-2.0
"""Bars that concern this store alone: snapshots, clones, big disks, memory, restart."""
import concurrent.futures
import json
import random
import socket
import statistics
import subprocess
import time

import measure

LOAD = "--rw=randwrite --bs=4k --iodepth=32 --time_based --runtime={}"


def timed(function, *words):
    start = time.perf_counter()
    function(*words)
    return (time.perf_counter() - start) * 1e3


def fill(server, size, disk="img"):
    measure.run_fio(server.uri(disk), server.pid, size,
                    "--rw=write --bs=1m --iodepth=8 --end_fsync=1")


class Control:
    """The daemon's control socket, kept open: times a request without a process."""

    def __init__(self, server):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(f"{server.folder}/control.sock")
        self.lines = self.socket.makefile("r")

    def request(self, **words):
        self.socket.sendall(json.dumps(words).encode() + b"\n")
        while "ok" not in (answer := json.loads(self.lines.readline())):
            if "error" in answer:
                raise RuntimeError(f"{words}: {answer}")


def snapshots_under_load(server, size, count=50):
    """Time of a snapshot, and what writes felt meanwhile."""
    quiet = measure.run_fio(server.uri(), server.pid, size, LOAD.format(5))
    load = subprocess.Popen(measure.fio_command(server.uri(), size, LOAD.format(20)),
                            stdout=subprocess.PIPE, text=True)
    time.sleep(2)
    control, took = Control(server), []
    for i in range(count):
        start = time.perf_counter()
        control.request(op="snapshot.create", disk="img", snapshot=f"load{i}")
        took.append((time.perf_counter() - start) * 1e3)
        time.sleep(0.25)
    job = measure.parse(load.communicate()[0])
    return {
        f"snapshot under depth-32 writes, median of {count}, ms": statistics.median(took),
        "the longest of them, ms": max(took),
        "slowest write with snapshots, ms": job["write"]["clat_ns"]["max"] / 1e6,
        "slowest write without, ms": quiet["max_us"] / 1e3,
        "writes/s with four snapshots a second, of before":
            job["write"]["iops"] / quiet["iops"],
    }


def write_after_snapshot(server, size, reps=3):
    ratios = []
    for i in range(reps):
        before = measure.run_fio(server.uri(), server.pid, size, LOAD.format(4))
        server.command("snapshot", "create", f"img@after{i}")
        after = measure.run_fio(server.uri(), server.pid, size, LOAD.format(4))
        ratios.append(after["iops"] / before["iops"])
    return {"writes/s right after a snapshot, of before": statistics.median(ratios)}


def read_behind_snapshots(server, size, count=1000):
    reads = "--rw=randread --bs=4k --iodepth=32 --time_based --runtime=5"
    few = "--rw=randwrite --bs=4k --iodepth=32 --number_ios=50"
    before = [measure.run_fio(server.uri(), server.pid, size, reads)["iops"]
              for _ in range(2)]
    for i in range(count):
        if i % 20 == 0:
            measure.run_fio(server.uri(), server.pid, size, few)
        server.command("snapshot", "create", f"img@chain{i}")
    after = [measure.run_fio(server.uri(), server.pid, size, reads)["iops"]
             for _ in range(2)]
    return {f"reads/s with {count} snapshots behind, of before":
            statistics.median(after) / statistics.median(before)}


def thousand_clones(server, served=75):
    took = timed(server.command, "clone", "img", "many", "--count", "1000")

    def verify(i):
        options = ("--rw=randwrite --bs=4k --iodepth=4 --number_ios=200 --verify=crc32c "
                   "--do_verify=1 --verify_fatal=1 --verify_state_save=0 "
                   f"--randseed={i}")
        command = measure.fio_command(server.uri(f"many-{i}"), "64m", options)
        return subprocess.run(command, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode

    picked = random.sample(range(1, 1001), served)
    with concurrent.futures.ThreadPoolExecutor(served) as pool:
        bad = sum(code != 0 for code in pool.map(verify, picked))
    return {"1,000 clones with one command, ms": took,
            f"of {served} written and verified at once, wrong": bad}


def big_disk(server, size, big="100g", seconds=20):
    """Written at random all over: the map no longer fits the cache."""
    server.command("disk", "create", "big", big)
    measure.run_fio(server.uri("big"), server.pid, big, LOAD.format(3 * seconds))
    writes = LOAD.format(seconds // 2)
    reads = writes.replace("randwrite", "randread")
    run = {}
    for name, disk, extent in (("small", "img", size), ("big", "big", big)):
        run[name] = [measure.run_fio(server.uri(disk), server.pid, extent, work)["iops"]
                     for work in (writes, reads)]
    return {"100 GiB disk, writes/s of the small one's": run["big"][0] / run["small"][0],
            "100 GiB disk, reads/s of the small one's": run["big"][1] / run["small"][1]}


def hundred_disks(server, count=100):
    for i in range(count):
        server.command("disk", "create", f"d{i}", "1g")

    def write(i):
        command = measure.fio_command(
            server.uri(f"d{i}"), "1g",
            "--rw=randwrite --bs=4k --iodepth=4 --time_based --runtime=20")
        return subprocess.run(command, stdout=subprocess.DEVNULL).returncode

    peak = 0
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        jobs = [pool.submit(write, i) for i in range(count)]
        while not all(j.done() for j in jobs):
            peak = max(peak, measure.memory_bytes(server.pid))
            time.sleep(0.2)
    return {f"memory with {count} disks written at random, MiB": peak / 2**20,
            "failed": sum(j.result() != 0 for j in jobs)}


def restart(server, size="10g"):
    """kill -9 with 10 GiB written, and up to 256 MiB of log since the checkpoint."""
    server.command("disk", "create", "boot", size)
    fill(server, size, "boot")
    measure.run_fio(server.uri("boot"), server.pid, size,
                    "--rw=randwrite --bs=4k --iodepth=32 --io_size=120m")
    server.kill()
    up = timed(server.start)
    one = "--rw=randread --bs=4k --iodepth=1 --number_ios=1"
    served = up + timed(measure.run_fio, server.uri("boot"), server.pid, size, one)
    return {"up after kill -9, ms": up, "first read of the disk answered, ms": served}
