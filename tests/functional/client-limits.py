#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""client-limits.py SOCKET: what hostile clients send, each attack by itself. After each
one a new client must be served again. What the daemon answers to an attack is its own
affair: an error or the end of the connection."""

import random
import socket
import struct
import sys
import time

SOCKET = sys.argv[1]
EXPORT = b"victim"
SIZE = 256 << 20

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO = 1, 2, 3, 6, 7
OPT_STRUCTURED_REPLY, OPT_LIST_META, OPT_SET_META = 8, 9, 10
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
REQUEST_MAGIC = 0x25609513
REPLY_MAGICS = (0x67446698, 0x668e33ef)
MAX32, MAX64 = (1 << 32) - 1, (1 << 64) - 1


class Client:
    def __init__(self, flags=3):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(SOCKET)
        if flags is not None:
            assert self.receive(16) == b"NBDMAGICIHAVEOPT"
            self.receive(2)
            self.send(struct.pack(">I", flags))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """False: the daemon has ended the connection."""
        try:
            self.socket.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def receive(self, length):
        """At most that much; less: the daemon has ended the connection."""
        data = b""
        try:
            while len(data) < length:
                part = self.socket.recv(length - len(data))
                if not part:
                    break
                data += part
        except ConnectionResetError:
            pass
        return data

    def option(self, number, data=b"", length=None):
        return self.send(b"IHAVEOPT" + struct.pack(
            ">II", number, len(data) if length is None else length) + data)

    def option_reply(self):
        """(type, data), or None when the connection is at its end."""
        header = self.receive(20)
        if len(header) < 20:
            return None
        kind, length = struct.unpack(">II", header[12:])
        return kind, self.receive(length)

    def go(self, name=EXPORT):
        self.option(OPT_GO, struct.pack(">I", len(name)) + name + b"\0\0")
        while True:
            reply = self.option_reply()
            assert reply is not None and reply[0] < 1 << 31, f"GO is answered by {reply}"
            if reply[0] == 1:
                return self

    def request(self, kind, offset=0, length=0, payload=b"", flags=0, cookie=7):
        return self.send(struct.pack(">IHHQQI", REQUEST_MAGIC, flags, kind, cookie,
                                     offset, length) + payload)

    def is_answered(self):
        """Is there an answer, be it an error, rather than the end of the connection?"""
        header = self.receive(16)
        return len(header) == 16 and struct.unpack(">I", header[:4])[0] in REPLY_MAGICS


def is_served():
    """A new client is served; soon, if others must first be given up."""
    begun = time.monotonic()
    while True:
        try:
            with Client() as client:
                client.go()
                assert client.request(READ, 0, 512) and client.is_answered()
                client.request(DISCONNECT)
                return
        except (AssertionError, OSError):
            assert time.monotonic() - begun < 20, "no new client is served any more"
            time.sleep(0.2)


# --- in the handshake ---

def says_nothing():
    clients = [Client(None) for _ in range(50)]
    is_served()
    del clients


def garbage_from_the_start():
    rng = random.Random(1)
    for _ in range(50):
        with Client(None) as client:
            client.send(rng.randbytes(rng.choice((1, 3, 4, 20, 1000, 100000))))


def unknown_client_flags():
    for flags in (MAX32, 4, 1 << 31):
        with Client(flags) as client:
            client.option(OPT_LIST)


def wild_option_lengths():
    for number in (0, OPT_EXPORT_NAME, OPT_LIST, OPT_GO, OPT_SET_META, 77, MAX32):
        for length in (MAX32, 1 << 31, 1 << 20, 65536, 4097):
            with Client() as client:
                client.option(number, b"x" * 100, length)
            with Client() as client:
                for _ in range(64):
                    if not client.option(number, b"x" * 65536, length):
                        break


def lying_lengths_within_options():
    name = b"victim"
    for data in (b"", b"\0", struct.pack(">I", MAX32),
                 struct.pack(">I", 7) + name + b"\0\0",
                 struct.pack(">I", 6) + name + b"\xff\xff", struct.pack(">I", 6) + name,
                 struct.pack(">I", 4097) + b"n" * 4097 + b"\0\0",
                 struct.pack(">I", 6) + name + struct.pack(">I", MAX32),
                 struct.pack(">I", 6) + name + struct.pack(">II", 1, MAX32) + b"base:",
                 struct.pack(">I", 6) + name + struct.pack(">I", 1000) +
                 (struct.pack(">I", 15) + b"base:allocation") * 999):
        for number in (OPT_INFO, OPT_GO, OPT_LIST_META, OPT_SET_META):
            with Client() as client:
                client.option(number, data)
                reply = client.option_reply()
                assert reply is None or reply[0] >= 1 << 31 or number in (
                    OPT_LIST_META, OPT_SET_META), f"option {number} {data[:20]}: {reply}"


def strange_names():
    for name in (b"\0", b"a\nb\x1b[2J", b"\xff" * 200, b"victim\0", b"../victim",
                 b"victim@", b"@", b"@@", b"victim@" + b"s" * 3000, b"%s%n" * 100):
        with Client() as client:
            client.option(OPT_GO, struct.pack(">I", len(name)) + name + b"\0\0")
            reply = client.option_reply()
            assert reply is not None and reply[0] >= 1 << 31, f"{name[:20]}: {reply}"
        with Client() as client:
            client.option(OPT_EXPORT_NAME, name)
            assert client.receive(10) == b"", f"EXPORT_NAME {name[:20]} is served"


def flood_of_options():
    """Answers are never read: sooner or later the daemon stops reading, or ends it."""
    for number in (OPT_LIST, OPT_STRUCTURED_REPLY, 99):
        with Client() as client:
            client.socket.settimeout(1)
            try:
                option = b"IHAVEOPT" + struct.pack(">II", number, 0)
                for _ in range(3000):
                    if not client.send(option * 100):
                        break
            except socket.timeout:
                pass


def byte_by_byte():
    with Client() as client:
        message = b"IHAVEOPT" + struct.pack(">III", OPT_GO, 12, 6) + EXPORT + b"\0\0"
        for byte in message:
            client.send(bytes([byte]))
            time.sleep(0.005)
        assert client.option_reply() is not None


def goes_away_at_every_byte():
    message = (struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">III", OPT_GO, 12, 6) +
               EXPORT + b"\0\0" +
               struct.pack(">IHHQQI", REQUEST_MAGIC, 0, WRITE, 1, 0, 32) + b"w" * 32)
    for length in range(len(message)):
        with Client(None) as client:
            client.send(message[:length])


# --- requests ---

def wrong_magic():
    with Client().go() as client:
        client.send(b"\0" * 28)
        assert not client.is_answered()


def wild_reads():
    with Client().go() as client:
        for offset, length in ((0, MAX32), (SIZE - 1, 2), (SIZE, 1), (1 << 63, 1),
                               (MAX64, 1), (MAX64, MAX32), (0, 33 << 20)):
            client.request(READ, offset, length)
            assert client.is_answered(), f"read {length} at {offset} ends the connection"


def wild_commands():
    for kind in (TRIM, ZEROES, CACHE, STATUS, 8, 99, 0xFFFF):
        with Client().go() as client:
            for offset, length, flags in ((0, MAX32, 0), (SIZE, 4096, 0),
                                          (SIZE - 1, MAX32, 0), (MAX64, MAX32, 0),
                                          (0, 0, 0), (0, 4096, 0xFFFF),
                                          (1 << 63, 1 << 31, 0xFFE0)):
                client.request(kind, offset, length, flags=flags)
                if not client.is_answered():
                    break


def wild_writes():
    for offset, length in ((0, MAX32), (0, 1 << 30), (SIZE - 1, 4096), (MAX64, 9)):
        with Client().go() as client:
            client.request(WRITE, offset, length, b"w" * 100)
        with Client().go() as client:
            client.request(WRITE, offset, length)
            for _ in range(1200):
                if not client.send(b"w" * 65536):
                    break


def vanishes_in_a_write():
    for length in (1, 27, 28, 29, 100, 4096, 100000):
        for _ in range(20):
            with Client().go() as client:
                message = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, WRITE, 1, 4096, 100000)
                client.send((message + b"v" * 100000)[:length])


def vanishes_with_answers_due():
    for requests in (1, 2, 5, 12, 32, 64) * 3:
        with Client().go() as client:
            client.socket.settimeout(0.2)
            try:
                for number in range(requests):
                    client.request(WRITE, number << 12, 4096, b"v" * 4096)
                    client.request(READ, number << 20, 1 << 20)
                client.request(FLUSH)
            except socket.timeout:
                pass # it takes no more until we take something


def never_reads():
    """32 clients ask for gigabytes and take nothing."""
    clients = [Client().go() for _ in range(32)]
    for client in clients:
        client.socket.setblocking(False)
    request = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 1, 0, 4 << 20)
    for _ in range(20):
        for client in clients:
            try:
                client.socket.send(request * 50)
            except OSError:
                pass
        time.sleep(0.1)
    is_other_disk_served()
    for client in clients:
        client.socket.close()


def half_writes_that_stay():
    """32 clients each begin many large writes and never end them."""
    clients = [Client().go() for _ in range(32)]
    for client in clients:
        client.socket.settimeout(0.2)
        try:
            for number in range(20):
                client.request(WRITE, number << 20, 1 << 20, b"h" * (1 << 20))
            client.request(WRITE, 0, 32 << 20, b"h" * 1000)
        except socket.timeout:
            pass
    is_other_disk_served()
    for client in clients:
        client.socket.close()


def is_other_disk_served():
    """The victim has all the clients it may have; the good one's disk has room."""
    with Client() as client:
        client.go(b"good")
        assert client.request(READ, 0, 4096) and client.is_answered()


def flood_of_small_requests():
    with Client().go() as client:
        client.socket.settimeout(2)
        request = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, FLUSH, 1, 0, 0)
        try:
            for _ in range(300):
                client.send(request * 1000)
        except socket.timeout:
            pass


def more_connections_than_there_are():
    clients = []
    try:
        for _ in range(700):
            clients.append(Client(None))
    except BlockingIOError:
        pass # it takes no more for the moment
    is_served()
    for client in clients:
        client.socket.close()


def garbage_of_all_kinds():
    """Requests with random fields, mostly of right magic and known kind."""
    rng = random.Random(2)
    for _ in range(40):
        with Client().go() as client:
            client.socket.settimeout(1)
            try:
                for _ in range(200):
                    payload = rng.randbytes(rng.choice((0, 0, 10, 4096)))
                    client.request(
                        rng.randrange(10),
                        rng.choice((rng.randrange(SIZE), rng.getrandbits(64))),
                        rng.choice((len(payload), rng.randrange(1 << 16), MAX32)),
                        payload,
                        rng.choice((0, 0, 1, 0x1F, 0xFFFF)))
            except socket.timeout:
                pass


ATTACKS = (says_nothing, garbage_from_the_start, unknown_client_flags,
           wild_option_lengths, lying_lengths_within_options, strange_names,
           flood_of_options, byte_by_byte, goes_away_at_every_byte, wrong_magic,
           wild_reads, wild_commands, wild_writes, vanishes_in_a_write,
           vanishes_with_answers_due, never_reads, half_writes_that_stay,
           flood_of_small_requests, more_connections_than_there_are,
           garbage_of_all_kinds)


def main():
    failures = 0
    for attack in ATTACKS:
        begun = time.monotonic()
        try:
            attack()
            is_served()
            print(f"{attack.__name__}: {time.monotonic() - begun:.1f} s")
        except (AssertionError, OSError, struct.error) as error:
            failures += 1
            print(f"{attack.__name__}, line {error.__traceback__.tb_next.tb_lineno}: "
                  f"{error!r}")
    return 1 if failures else 0


sys.exit(main())
