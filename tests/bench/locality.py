#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Read locality: a disk is written at random, then read in order again and again, with
pauses in which it may be rewritten. Prints a Markdown table of each pass.

Run by hand; needs fio and three times the size of the disk, and takes some minutes."""
import argparse
import os
import shlex
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import measure  # noqa: E402
import systems  # noqa: E402

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COLD_S = 75  # ranges count as cold after 60 s, and are looked at every 10


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default=f"{TOP}/build/release")
    parser.add_argument("--folder", default="/var/tmp/parallax-bench")
    parser.add_argument("--mib", type=int, default=1024, help="size of the disk")
    parser.add_argument("--passes", type=int, default=5)
    return parser.parse_args()


def write_at_random(server, size):
    """Each block once, in random order."""
    command = (f"fio --name=scatter --thread --ioengine=nbd --uri={server.uri()} "
               f"--size={size} --rw=randwrite --bs=4k --iodepth=32 --randrepeat=0")
    subprocess.run(shlex.split(command), check=True, stdout=subprocess.DEVNULL)


def read_in_order(server, size, pattern):
    return measure.run_fio(server.uri(), server.pid, size,
                           f"--rw={pattern} --bs=128k --iodepth=8")


def written_bytes(pid):
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        for line in file:
            if line.startswith("write_bytes"):
                return int(line.split()[1])
    return 0


def main():
    options = arguments()
    size = f"{options.mib}m"
    server = systems.Parallax(options.folder, options.build,
                              f"{3 * options.mib + 512}m", size)
    try:
        write_at_random(server, size)
        time.sleep(COLD_S)
        print("| pass | MB/s | mean us | written in the pause behind it, MiB |")
        print("|---|---|---|---|")
        for number in range(1, options.passes + 1):
            run = read_in_order(server, size, "read")
            before = written_bytes(server.pid)
            time.sleep(COLD_S)
            written = (written_bytes(server.pid) - before) / 2**20
            print(f"| {number} | {run['mbps']:.0f} | {run['mean_us']:.0f} | "
                  f"{written:.0f} |", flush=True)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
