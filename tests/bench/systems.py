# SPDX-License-Identifier: Apache-2.0
"""The systems that are compared: each serves one disk `img` on a Unix socket."""
import os
import shutil
import signal
import subprocess
import time


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def wait_for(path, seconds=20):
    for _ in range(seconds * 50):
        if os.path.exists(path):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{path} did not appear")


class Server:
    """A process of ours, ended by its pid."""
    pid = None

    def __init__(self, folder):
        self.folder = os.path.join(folder, self.name.replace(" ", "-"))
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        self.socket = os.path.join(self.folder, "nbd.sock")

    def spawn(self, *command):
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.pid = self.process.pid
        wait_for(self.socket)

    def uri(self, disk="img"):
        return f"nbd+unix:///{disk}?socket={self.socket}"

    def stop(self, keep=False):
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            self.process.wait()
            self.pid = None
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


class Parallax(Server):
    name = "parallax"

    def __init__(self, folder, build, capacity, size=None):
        super().__init__(folder)
        self.build, self.capacity = build, capacity
        self.start()
        if size:
            self.command("disk", "create", "img", size)

    def start(self):
        for stale in (self.socket, os.path.join(self.folder, "control.sock")):
            if os.path.exists(stale):
                os.unlink(stale)
        self.spawn(f"{self.build}/tools/parallax", "up", self.folder,
                   "--capacity", self.capacity)

    def command(self, *words):
        done = subprocess.run([f"{self.build}/tools/parallax", "-c", self.folder, *words],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"parallax {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()
        self.pid = None


class QemuNbd(Server):
    name = "qemu-nbd qcow2"

    def __init__(self, folder, size):
        super().__init__(folder)
        image = os.path.join(self.folder, "img.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", image, size)
        self.spawn("qemu-nbd", "-t", "-e", "16", "--cache=none", "--aio=native",
                   "--discard=unmap", "-f", "qcow2", "-k", self.socket, "-x", "img",
                   image)


class Nbdkit(Server):
    name = "nbdkit file"

    def __init__(self, folder, size):
        super().__init__(folder)
        image = os.path.join(self.folder, "img.raw")
        run("fallocate", "-l", size, image)
        # cache=none drops what it wrote from the page cache; the plugin has no O_DIRECT
        self.spawn("nbdkit", "-f", "-U", self.socket, "-e", "img", "file", image,
                   "cache=none")
