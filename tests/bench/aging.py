# SPDX-License-Identifier: Apache-2.0
"""Bars of a store that lives for years: overwriting, full stores, deletion, scrub."""
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time

import measure
import scenarios
import systems

WRITE = "--rw=randwrite --bs=4k --iodepth=32"
GIB = 2**30


def status(server):
    return json.loads(server.command("status", "--json"))


def has_reclaimed(server):
    reclaim = status(server)["reclaim"]
    return reclaim["pending"] == 0 and not reclaim["running"]


def wait_until(condition, seconds=120):
    """Seconds until it holds."""
    start = time.perf_counter()
    while not condition():
        if time.perf_counter() - start > seconds:
            raise RuntimeError("it takes too long")
        time.sleep(0.02)
    return time.perf_counter() - start


def written_bytes(server):
    """What the daemon, LevelDB included, gave to the device."""
    with open(f"/proc/{server.pid}/io") as f:
        for line in f:
            if line.startswith("write_bytes"):
                return int(line.split()[1])
    return 0


def overwrite(server, size, gib, part=4):
    """Runs of `part` GiB of random writes: (rate, slowest write in ms, bytes written to
    the device for each of the guest's) of each."""
    runs = []
    for i in range(gib // part):
        before = written_bytes(server)
        run = measure.run_fio(server.uri(), server.pid, size,
                              f"{WRITE} --io_size={part}g")
        runs.append((run["iops"], run["max_us"] / 1e3,
                     (written_bytes(server) - before) / (part * GIB)))
        print("  %d GiB: %.0f/s, slowest %.0f ms, %.2f bytes for each, %d MiB used" %
              ((i + 1) * part, *runs[-1], status(server)["used_bytes"] >> 20),
              file=sys.stderr)
    return runs


def wear(folder, build, size, gib):
    """A disk of `size` on a store of 8 GiB, overwritten `gib` GiB at random."""
    server = systems.Parallax(folder, build, "8g", size)
    try:
        scenarios.fill(server, size)
        runs = overwrite(server, size, gib)
        return runs, status(server)["used_bytes"] / GIB
    finally:
        server.stop()


def bytes_for_each(runs):
    """Without the first run, which still finds space that was never used."""
    return sum(r[2] for r in runs[1:]) / max(len(runs) - 1, 1)


def half_full(folder, build):
    """40 GiB over a 4 GiB disk on an 8 GiB store."""
    runs, used = wear(folder, build, "4g", 40)
    return {
        "half full: writes/s, first 4 GiB": runs[0][0],
        "half full: writes/s, last 4 GiB": runs[-1][0],
        "half full: last of first": runs[-1][0] / runs[0][0],
        "half full: bytes to the device for each of the guest's": bytes_for_each(runs),
        "half full: slowest write, ms": max(r[1] for r in runs),
        "half full: space used at the end, GiB": used,
    }


def nearly_full(folder, build, percent, size):
    empty, _ = wear(folder, build, "4g", 4)
    runs, _ = wear(folder, build, size, 16)
    name = f"{percent} % full"
    return {
        f"{name}: writes/s, last 4 GiB": runs[-1][0],
        f"{name}: of an empty store's": runs[-1][0] / empty[0][0],
        f"{name}: bytes to the device for each of the guest's": bytes_for_each(runs),
        f"{name}: slowest write, ms": max(r[1] for r in runs),
    }


def full_80(folder, build):
    return nearly_full(folder, build, 80, "6552m")


def full_90(folder, build):
    return nearly_full(folder, build, 90, "7372m")


def hot_and_cold(folder, build):
    """Cold data written between hot data: how much space it pins in the end."""
    server = systems.Parallax(folder, build, "24g", "4g")
    try:
        server.command("disk", "create", "cold", "10g")
        chunk = "--rw=randwrite --bs=64k --iodepth=8 --io_size=256m"
        for i in range(40):
            measure.run_fio(server.uri("cold"), server.pid, "256m",
                            f"{chunk} --offset={i * 256}m")
            measure.run_fio(server.uri(), server.pid, "4g", chunk)
        measure.run_fio(server.uri(), server.pid, "4g", f"{WRITE} --io_size=16g")
        server.command("disk", "rm", "img")
        server.command("trash", "empty")
        time.sleep(30)
        used = status(server)["used_bytes"]
        live = status(server)["live_bytes"]
        return {"cold data written between hot: its space, of its size": used / live}
    finally:
        server.stop()


def deleting(folder, build, big="100g"):
    """A snapshot of a large disk, 1 % changed since: name gone, space back."""
    server = systems.Parallax(folder, build, "40g", None)
    result = {}
    try:
        server.command("disk", "create", "big", big)
        measure.run_fio(server.uri("big"), server.pid, big,
                        "--rw=randwrite --bs=4k --iodepth=32 --time_based --runtime=60")
        control = scenarios.Control(server)
        for name, work in (("1 MiB runs", "--rw=randwrite --bs=1m --iodepth=4"),
                           ("4 KiB at random", WRITE)):
            server.command("snapshot", "create", "big@a")
            measure.run_fio(server.uri("big"), server.pid, big, f"{work} --io_size=1g")
            server.command("snapshot", "create", "big@b")
            start = time.perf_counter()
            control.request(op="snapshot.rm", disk="big", snapshot="a")
            result[f"deleting a snapshot, {name}: name gone, ms"] = \
                (time.perf_counter() - start) * 1e3
            result[f"deleting a snapshot, {name}: background work, s"] = wait_until(
                lambda: has_reclaimed(server))
            control.request(op="snapshot.rm", disk="big", snapshot="b")
            wait_until(lambda: has_reclaimed(server))
        return result
    finally:
        server.stop()


def many_snapshots(folder, build, count=10000):
    server = systems.Parallax(folder, build, "24g", "4g")
    try:
        scenarios.fill(server, "4g")
        control = scenarios.Control(server)
        for i in range(count):
            if i % 100 == 0:
                measure.run_fio(server.uri(), server.pid, "4g",
                                f"{WRITE} --number_ios=64")
            control.request(op="snapshot.create", disk="img", snapshot=f"s{i}")
        load = "--rw=randrw --bs=4k --iodepth=4 --time_based --runtime={}"
        quiet = measure.run_fio(server.uri(), server.pid, "4g", load.format(5))
        busy = subprocess.Popen(
            measure.fio_command(server.uri(), "4g", load.format(30)),
            stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        start = time.perf_counter()
        server.command("snapshot", "rm", "img", "--keep-last", "0")
        wait_until(lambda: has_reclaimed(server), 600)
        took = time.perf_counter() - start
        job = measure.parse(busy.communicate()[0])
        p99 = max(job[s]["clat_ns"]["percentile"]["99.000000"] for s in ("read", "write"))
        return {f"deleting {count} snapshots, s": took,
                "guest p99 meanwhile, of before": p99 / 1e3 / quiet["p99_us"]}
    finally:
        server.stop()


def reclaiming(folder, build):
    """A whole disk without shares; export of an increment; scrub."""
    server = systems.Parallax(folder, build, "24g", "4g")
    try:
        scenarios.fill(server, "4g")
        server.command("snapshot", "create", "img@a")
        measure.run_fio(server.uri(), server.pid, "4g", f"{WRITE} --io_size=41m")
        server.command("snapshot", "create", "img@b")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            increment = scenarios.timed(server.command, "export", "img@b", "--since", "a",
                                        os.path.join(scratch, "increment"))
        server.command("disk", "create", "alone", "4g")
        scenarios.fill(server, "4g", "alone")
        time.sleep(12)
        used = status(server)["used_bytes"]
        server.command("disk", "rm", "alone")
        start = time.perf_counter()
        server.command("trash", "empty")
        wait_until(lambda: status(server)["used_bytes"] < used - 3.5 * GIB)
        result = {"export --since, 1 % of 4 GiB changed, ms": increment,
                  "reclaim of a 4 GiB disk without shares, s":
                      time.perf_counter() - start}
        result.update(scrubbing(server, folder))
        return result
    finally:
        server.stop()


def device_read_rate(folder, path, size="4g"):
    done = subprocess.run(
        shlex.split(f"fio --name=r --filename={path} --size={size} --direct=1 --rw=read "
                    f"--bs=1m --ioengine=libaio --iodepth=8 --readonly "
                    f"--output-format=json"), stdout=subprocess.PIPE, text=True)
    return measure.parse(done.stdout)["read"]["bw_bytes"]


def scrubbing(server, folder):
    load = "--rw=randrw --rwmixread=70 --bs=4k --iodepth=4 --time_based --runtime={}"
    device = device_read_rate(folder, os.path.join(server.folder, "store"))
    start = time.perf_counter()
    server.command("scrub", "start")

    def finished():
        state = json.loads(server.command("scrub", "status", "--json"))["state"]
        return state != "running"

    wait_until(finished, 300)
    took = time.perf_counter() - start
    done = json.loads(server.command("scrub", "status", "--json"))["done_bytes"]
    quiet = measure.run_fio(server.uri(), server.pid, "4g", load.format(5))["iops"]
    server.command("scrub", "start")
    busy = measure.run_fio(server.uri(), server.pid, "4g", load.format(5))["iops"]
    return {"scrub when idle, of the device's read rate": done / took / device,
            "guest beside a scrub, of without": busy / quiet}


SCENARIOS = (half_full, full_80, full_90, hot_and_cold, deleting, many_snapshots,
             reclaiming)
