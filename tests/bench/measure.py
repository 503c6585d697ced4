# SPDX-License-Identifier: Apache-2.0
"""fio against an NBD server, with the CPU time and memory of the server beside it."""
import json
import os
import resource
import shlex
import subprocess
import time

TICK = os.sysconf("SC_CLK_TCK")

# name: (fio options, seconds to run; None: one pass over the disk)
WORKLOADS = {
    "randwrite q1": "--rw=randwrite --bs=4k --iodepth=1",
    "randwrite q1 flush": "--rw=randwrite --bs=4k --iodepth=1 --fsync=1",
    "randwrite q32": "--rw=randwrite --bs=4k --iodepth=32",
    "randwrite q32 flush": "--rw=randwrite --bs=4k --iodepth=32 --fsync=1",
    "randread q1": "--rw=randread --bs=4k --iodepth=1",
    "randread q32": "--rw=randread --bs=4k --iodepth=32",
    "mixed 70/30 q32": "--rw=randrw --rwmixread=70 --bs=4k --iodepth=32",
    "write 128k q8": "--rw=write --bs=128k --iodepth=8",
    "read 128k q8": "--rw=read --bs=128k --iodepth=8",
    "write 1m q8": "--rw=write --bs=1m --iodepth=8",
    "read 1m q8": "--rw=read --bs=1m --iodepth=8",
}
RANDOM = [w for w in WORKLOADS if "q8" not in w]
SEQUENTIAL = [w for w in WORKLOADS if "q8" in w]


def cpu_seconds(pid):
    """User and system time of a process so far, its ended children included."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return sum(int(x) for x in fields[11:15]) / TICK


def memory_bytes(pid):
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    return 0


def fio_command(uri, size, options):
    return shlex.split(
        f"fio --name=bench --thread --ioengine=nbd --uri={uri} --size={size} "
        f"--randrepeat=0 --norandommap --percentile_list=50:99:99.9 "
        f"--output-format=json {options}")


def parse(text):
    job = json.loads(text[text.index("{"):])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio failed with error {job['error']}")
    return job


def run_fio(uri, pid, size, options):
    """One run. Rates, latencies in us, CPU us per operation, memory of the server."""
    server = cpu_seconds(pid)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(fio_command(uri, size, options), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    server = cpu_seconds(pid) - server
    if done.returncode:
        raise RuntimeError(f"fio on {uri}: {(done.stderr or done.stdout)[-400:]}")
    job = parse(done.stdout)
    sides = [job["read"], job["write"]]
    count = sum(s["total_ios"] for s in sides)
    client = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)

    def weighted(value):
        return sum(s["total_ios"] * value(s) for s in sides) / max(count, 1)

    def percentile(name):
        return weighted(lambda s: s["clat_ns"].get("percentile", {}).get(name, 0)) / 1e3

    return {
        "iops": sum(s["iops"] for s in sides),
        "mbps": sum(s["bw_bytes"] for s in sides) / 1e6,
        "mean_us": weighted(lambda s: s["lat_ns"]["mean"]) / 1e3,
        "p99_us": percentile("99.000000"),
        "p999_us": percentile("99.900000"),
        "max_us": max(s["clat_ns"]["max"] for s in sides if s["total_ios"]) / 1e3,
        "server_us": server * 1e6 / max(count, 1),
        "client_us": client * 1e6 / max(count, 1),
        "memory_mib": memory_bytes(pid) / 2**20,
        "ios": count,
    }


def baseline(folder, seconds=1):
    """4 KiB direct appends of this disk at depth 1, us: to see when it is throttled."""
    path = os.path.join(folder, "baseline")
    done = subprocess.run(
        shlex.split(f"fio --name=b --filename={path} --size=64m --direct=1 --rw=write "
                    f"--bs=4k --ioengine=libaio --iodepth=1 --time_based "
                    f"--runtime={seconds} --output-format=json"),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    os.unlink(path)
    return parse(done.stdout)["write"]["lat_ns"]["mean"] / 1e3


def wait_until_rested(folder, limit_us=120, tries=30):
    """Virtual disks have a burst budget: waits until this one is fast again."""
    for _ in range(tries):
        if (took := baseline(folder)) < limit_us:
            return took
        time.sleep(5)
    return took
