# SPDX-License-Identifier: Apache-2.0
"""What strangers send to the ports of a cluster: see cluster-strangers.sh.

A guest writes all the time. What is refused at once comes first; then hundreds of
connections to each host that say too little and are made again whenever they are closed.
Meanwhile a host that was killed comes back, and must be let in."""

import os
import random
import re
import selectors
import socket
import ssl
import struct
import sys
import threading
import time

from cluster_hosts import (T, is_healthy, kill, parallax, pid, say, start, uri,
                           wait_for, wait_until_healthy)
from judge import Judge

BLOCKS = 1024
GROWTH_MAX = 48 << 20  # of a daemon, over what it had with the guest
PATIENCE = 50          # less than the minute that one without a certificate may stay
SILENT = 300           # connections to each host
FRAME = struct.Struct("<IHHII")
MAGIC, HELLO, MESSAGE = 0x314d4c50, 1, 3
HOSTS = (1, 2, 3)


def port(host):
    return int(sys.argv[1]) + host


def connect(host):
    return socket.create_connection(("127.0.0.1", port(host)), timeout=PATIENCE)


def memory(host, key):
    with open(f"/proc/{pid(host)}/status", encoding="ascii") as file:
        return int(re.search(rf"^{key}:\s*(\d+) kB", file.read(), re.M)[1]) << 10


def log(host):
    with open(f"{T}/{host}/log", encoding="utf-8") as file:
        return file.read()


# --- connections that say nothing, or too little ---

class Silent(threading.Thread):
    """Connections that are made again as soon as they are closed. What each sends first
    is `begin`; then a byte of `more` now and then."""

    def __init__(self, host, count, begin=b"", more=b""):
        super().__init__(daemon=True)
        self.host, self.count, self.begin, self.more = host, count, begin, more
        self.halt = False
        self.closed = 0  # by the host
        self.selector = selectors.DefaultSelector()

    def add(self):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(("127.0.0.1", port(self.host)))
        self.selector.register(s, selectors.EVENT_READ | selectors.EVENT_WRITE, 0)

    def end(self, s):
        self.selector.unregister(s)
        s.close()

    def ready(self, s, events):
        if events & selectors.EVENT_WRITE:
            s.send(self.begin)
            self.selector.modify(s, selectors.EVENT_READ, 0)
        elif not s.recv(65536):
            raise ConnectionResetError

    def dribble(self):
        for key in list(self.selector.get_map().values()):
            at = key.data
            if key.events == selectors.EVENT_READ and at < len(self.more):
                try:
                    key.fileobj.send(self.more[at:at + 1])
                    self.selector.modify(key.fileobj, key.events, at + 1)
                except OSError:
                    pass  # found by `ready`

    def run(self):
        for _ in range(self.count):
            self.add()
        dribbled = time.monotonic()
        while not self.halt:
            time.sleep(0.05)
            for key, events in self.selector.select(0.05):
                try:
                    self.ready(key.fileobj, events)
                except OSError:
                    self.end(key.fileobj)
                    self.closed += 1
                    self.add()
            if time.monotonic() > dribbled + 0.5:
                self.dribble()
                dribbled = time.monotonic()
        for key in list(self.selector.get_map().values()):
            self.end(key.fileobj)


def client_hello():
    """The first bytes of a good handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


# --- connections that are refused at once ---

def is_refused(s, data):
    """The host ends the connection, however much more there is to come."""
    try:
        s.sendall(data)
        while receive_any(s):
            pass
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        pass
    finally:
        s.close()


def garbage():
    rng = random.Random(1)
    for host in HOSTS:
        for size in (6, 100, 5000, 1 << 20, 16 << 20):
            is_refused(connect(host), rng.randbytes(size))


def plain_http():
    for host in HOSTS:
        is_refused(connect(host), b"GET / HTTP/1.1\r\nHost: parallax\r\n\r\n")


def huge_records():
    """Lengths of TLS that claim what nobody needs."""
    for host in HOSTS:
        # A record of 65,535 bytes; a hello of 16 MiB, of which much comes.
        is_refused(connect(host), b"\x16\x03\x01\xff\xff" + b"\1" * 65535)
        part = b"\x16\x03\x01\x40\x00"
        is_refused(connect(host), part + b"\1\xff\xff\xff" + b"\0" * 16380 +
                   (part + b"\0" * 16384) * 1000)


def tls(host, certificate=None, version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate)
    if version is not None:
        context.maximum_version = version
    return context.wrap_socket(connect(host))


def receive(s, count):
    data = b""
    while len(data) < count:
        part = s.recv(count - len(data))
        assert part, f"the end after {data}"
        data += part
    return data


def receive_any(s):
    try:
        return s.recv(65536)
    except (ConnectionResetError, ssl.SSLEOFError):
        return b""


def greeted(host, certificate=None):
    s = tls(host, certificate)
    magic, version, kind, head_len, payload_len = FRAME.unpack(receive(s, FRAME.size))
    assert (magic, version, head_len, payload_len) == (MAGIC, 1, 0, 0)
    assert kind == HELLO, "it was not let in"
    return s


def old_tls():
    for host in HOSTS:
        try:
            tls(host, version=ssl.TLSVersion.TLSv1_2)
        except (ssl.SSLError, ConnectionResetError):
            continue
        raise AssertionError("TLS 1.2 is taken")


def frames(certificate=None):
    """From whoever is let in: without a certificate, or with that of a node."""
    most = 262144 if certificate else 65536
    for frame in (FRAME.pack(MAGIC, 1, MESSAGE, 0xffffffff, 0),
                  FRAME.pack(MAGIC, 1, MESSAGE, most + 1, 0),
                  FRAME.pack(MAGIC, 1, MESSAGE, 0, 0),
                  FRAME.pack(MAGIC, 1, MESSAGE, 16, 0xffffffff),
                  FRAME.pack(MAGIC, 1, MESSAGE, 16, (1 << 20) + 1),
                  FRAME.pack(MAGIC, 2, MESSAGE, 16, 0),
                  FRAME.pack(MAGIC, 1, HELLO, 16, 0),
                  FRAME.pack(MAGIC ^ 1, 1, MESSAGE, 16, 0),
                  FRAME.pack(MAGIC, 1, MESSAGE, 16, 0) + b"\xff" * 16,
                  b"GET / HTTP/1.1\r\n\r\n", random.Random(2).randbytes(70000)):
        is_refused(greeted(1, certificate), frame)


def nobodies():
    """Without a certificate, and without a word: for a few seconds, not for ever."""
    held = []
    for _ in range(40):
        s = tls(1)
        if FRAME.unpack(receive(s, FRAME.size))[2] == HELLO:
            held.append(s)
    assert 0 < len(held) < 40, f"{len(held)} were let in at once"
    for s in held:
        while receive_any(s):
            pass


def main():
    parallax(1, "disk", "create", "web", "64M")
    wait_until_healthy(*HOSTS)
    judge = Judge(BLOCKS, os.getpid())
    judge.attach(uri(1, "web"))
    judge.start()
    time.sleep(2)  # what the guest itself makes a daemon take
    before = {host: memory(host, "VmRSS") for host in HOSTS}
    for host in HOSTS:
        with open(f"/proc/{pid(host)}/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # forgets the peak

    hello = client_hello()
    silent = [Silent(host, SILENT) for host in HOSTS]
    silent += [Silent(host, 30, hello) for host in HOSTS]
    silent += [Silent(host, 30, b"", hello) for host in HOSTS]
    silent += [Silent(host, 10, b"G", b"ET / HTTP/1.1\r\n" * 10) for host in HOSTS]
    begun = time.monotonic()
    for attack in (garbage, plain_http, huge_records, old_tls, frames,
                   lambda: frames(f"{T}/3/node/cert.pem"), nobodies):
        attack()
    say(f"refused after {time.monotonic() - begun:.1f} s")
    for s in silent:
        s.start()
    time.sleep(2)
    for host in HOSTS:
        assert is_healthy(host), parallax(host, "status")
    kill(3)
    begun = time.monotonic()
    start(3)
    wait_for("host 3 is let in", 60, lambda: all(is_healthy(host) for host in HOSTS))
    say(f"host 3 is back after {time.monotonic() - begun:.1f} s")
    while time.monotonic() < begun + 4:
        time.sleep(0.1)
    errors = judge.stop()
    assert not errors, f"the client was told {errors[:3]}"
    for s in silent:
        s.halt = True
    for host in (1, 2):
        growth = memory(host, "VmHWM") - before[host]
        say(f"host {host} had {before[host] >> 20} MiB and took {growth >> 20} more")
        # The address sanitizer keeps what was freed.
        assert growth < GROWTH_MAX or "asan" in os.environ["PARALLAX_BUILD"]
    say(f"longest write {judge.stall:.1f} s, closed: {[s.closed for s in silent]}")
    assert judge.verify() == 0
    judge.detach()


main()
