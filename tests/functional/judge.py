# SPDX-License-Identifier: Apache-2.0
"""A client of a disk that knows what the disk may say, whatever happens to its hosts.

Every block it writes says which block it is, and how often that one was written. At most
one write of a block is under way, so the writes of a block have an order, and each block
is a register of its own. A block must never hold

- less than its last acknowledged write, or than what a read saw before;
- a write that was never sent, or one that a later look showed not to have happened;
- part of one write and part of another.

What was acknowledged but not flushed may be gone only after a loss of power of all hosts
(`power_was_lost`), and then as if the last writes had not been, never some in between.
Reads that are under way beside writes are judged, too, and those of `verify`.
"""

import random
import select
import struct
import threading
import time
import zlib

import nbd

BLOCK = 4096
HEAD = struct.Struct("<QQI")  # block, its write, the order in which it was sent
DEPTH = 32
READS = 0.15                  # of all requests, beside writes
PER_SECOND = 3000             # requests; the hosts share the machine with this
MAX_BATCH = 256               # blocks of a read of verify


def content(block, write, order):
    head = HEAD.pack(block, write, order)
    body = head * ((BLOCK - 4) // HEAD.size)
    body += bytes(BLOCK - 4 - len(body))
    return body + struct.pack("<I", zlib.crc32(body))


def parse(block, data):
    """Which write of the block this is, and its order; (0, 0) if none ever was."""
    if not any(data):
        return 0, 0
    crc, = struct.unpack_from("<I", data, BLOCK - 4)
    assert zlib.crc32(data[:-4]) == crc, f"block {block} is torn: {data[:64].hex()}"
    its, write, order = HEAD.unpack_from(data)
    assert its == block, f"block {block} has what was written to block {its}"
    return write, order


class Judge:
    def __init__(self, blocks, seed):
        self.blocks = blocks
        self.random = random.Random(seed)
        self.sent = [0] * blocks    # the last write of each block
        self.floor = [0] * blocks   # no read may see less
        self.synced = [0] * blocks  # the same after a loss of power
        self.void = [set() for _ in range(blocks)]  # seen not to have happened
        self.lost_floor = None      # what was acknowledged before a loss of power
        self.pending = set()        # blocks with a write under way
        self.order = 0
        self.orders = {}            # (block, write): order, of those not flushed
        self.handle = None
        self.thread = None
        self.errors = []            # of the client's requests
        self.wrong = None           # the first finding
        self.requests = self.acknowledged = 0
        self.flush_every = 0.3      # seconds
        self.fua = 0.0              # share of writes that are flushed by themselves
        self.begin_stall()

    # --- the client's life ---

    def attach(self, uri):
        self.handle = nbd.NBD()
        self.handle.connect_uri(uri)
        assert self.handle.get_size() >= self.blocks * BLOCK

    def detach(self):
        self.handle.shutdown()
        self.handle = None

    def begin_stall(self):
        self.stall = self.gap = 0.0
        self.last_ack = time.monotonic()

    def start(self):
        """Load, until `stop`, or until the connection or a finding ends it."""
        self.halt = False
        self.errors = []
        self.begin_stall()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def stop(self, patience=60):
        """Ends the load and waits for what is under way; returns the errors."""
        self.halt = True
        self.thread.join(patience)
        assert not self.thread.is_alive(), \
            f"{self.inflight} requests have no answer after {patience} s"
        if self.wrong is not None:
            raise self.wrong
        return self.errors

    def leave(self):
        """No more requests; those under way stay so. Returns the handle."""
        self.halt = True
        handle, self.handle = self.handle, None
        return handle

    # --- load ---

    def run(self):
        self.inflight = 0
        self.since = {}  # the writes that wait, and since when
        try:
            self.loop()
        except nbd.Error as error:
            self.errors.append(error.string)
        except AssertionError as error:
            self.wrong = error
        for since in self.since.values():
            self.stall = max(self.stall, time.monotonic() - since)
        self.pending.clear()  # they may have happened, or not

    def loop(self):
        h = self.handle
        budget, then, flush_at = 0.0, time.monotonic(), time.monotonic() + 0.2
        while not (self.halt and self.inflight == 0) and self.wrong is None:
            now = time.monotonic()
            budget = min(budget + (now - then) * PER_SECOND, 2 * DEPTH)
            then = now
            if now >= flush_at and not self.halt:
                self.flush_begin()
                flush_at = now + self.flush_every
            while not self.halt and self.inflight < DEPTH and budget >= 1:
                self.request_begin()
                budget -= 1
            self.wait(h, 0.005)

    @staticmethod
    def wait(h, seconds):
        direction = h.aio_get_direction()
        events = select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0
        events |= select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
        poll = select.poll()
        poll.register(h.aio_get_fd(), events)
        for _, seen in poll.poll(int(seconds * 1000)):
            if seen & (select.POLLIN | select.POLLHUP | select.POLLERR):
                h.aio_notify_read()
            elif seen & select.POLLOUT:
                h.aio_notify_write()

    def request_begin(self):
        block = self.random.randrange(self.blocks)
        if self.random.random() < READS:
            self.read_begin(block)
            return
        while block in self.pending:
            block = self.random.randrange(self.blocks)
        self.write_begin(block)

    def begin(self, submit, done):
        """Submits a request; `done(ok)` runs once, at its end."""
        self.inflight += 1
        self.requests += 1

        def ended(error):
            self.inflight -= 1
            if error.value != 0:
                self.errors.append(f"errno {error.value}")
            try:
                done(error.value == 0)
            except AssertionError as wrong:
                self.wrong = self.wrong or wrong
            return 1

        submit(ended)

    def write_begin(self, block):
        self.sent[block] += 1
        self.order += 1
        write = self.sent[block]
        self.orders[block, write] = self.order
        self.pending.add(block)
        begun = self.since[block] = time.monotonic()
        flags = nbd.CMD_FLAG_FUA if self.fua and self.random.random() < self.fua else 0

        def done(ok):
            now = time.monotonic()
            self.stall = max(self.stall, now - begun)
            self.gap = max(self.gap, now - self.last_ack)
            self.last_ack = now
            self.pending.discard(block)
            del self.since[block]
            if ok:
                assert write not in self.void[block], \
                    f"block {block}: write {write} did not happen, and is acknowledged"
                self.acknowledged += 1
                self.floor[block] = max(self.floor[block], write)
                if flags:
                    self.synced[block] = max(self.synced[block], write)

        data = nbd.Buffer.from_bytearray(bytearray(content(block, write, self.order)))
        self.begin(lambda f: self.handle.aio_pwrite(data, block * BLOCK, f, flags), done)

    def read_begin(self, block):
        floor = self.floor[block]
        buffer = nbd.Buffer(BLOCK)

        handle = self.handle

        def done(ok):
            # A former owner may say what is old, or what never came to be.
            if ok and self.handle is handle:
                self.seen(block, bytes(buffer.to_bytearray()), floor)
            elif ok:
                parse(block, bytes(buffer.to_bytearray()))

        self.begin(lambda f: self.handle.aio_pread(buffer, block * BLOCK, f), done)

    def flush_begin(self):
        then = list(self.floor)

        def done(ok):
            if ok:
                self.synced = [max(a, b) for a, b in zip(self.synced, then)]

        self.begin(lambda f: self.handle.aio_flush(f), done)

    # --- what may be seen ---

    def seen(self, block, data, floor):
        write, order = parse(block, data)
        assert write >= floor, \
            f"block {block} is back at write {write}, {floor} was acknowledged or seen"
        assert write <= self.sent[block], f"block {block}: nobody sent write {write}"
        assert write not in self.void[block], f"block {block}: write {write} came late"
        assert write == 0 or self.orders[block, write] == order, f"block {block}: order"
        self.floor[block] = max(self.floor[block], write)
        return order

    def power_was_lost(self):
        """What was not flushed may be gone; verify looks that only the end is."""
        self.lost_floor, self.floor = self.floor, list(self.synced)

    def verify(self):
        """Reads everything. What it sees is what was: nothing may appear later. Returns
        how many acknowledged writes are gone, which only a loss of power may cause."""
        lost, self.lost_floor = self.lost_floor, None
        newest, first_lost, first_block = 0, self.order + 1, None
        for at in range(0, self.blocks, MAX_BATCH):
            count = min(MAX_BATCH, self.blocks - at)
            data = self.handle.pread(count * BLOCK, at * BLOCK)
            for block in range(at, at + count):
                begin = (block - at) * BLOCK
                order = self.seen(block, bytes(data[begin:begin + BLOCK]),
                                  self.floor[block])
                write = self.floor[block]
                newest = max(newest, order)
                if lost is not None and lost[block] > write:
                    gone = self.orders[block, self.next_write(block, write)]
                    if gone < first_lost:
                        first_lost, first_block = gone, block
                self.void[block].update(range(write + 1, self.sent[block] + 1))
        # Requests of one depth may have been taken in any order.
        assert newest < first_lost + DEPTH, \
            f"block {first_block} lost write {first_lost}, but {newest} is there"
        return sum(max(had - has, 0) for had, has in zip(lost or [], self.floor))

    def next_write(self, block, write):
        """The one after it that may have happened, if only in somebody's memory."""
        write += 1
        while write in self.void[block]:
            write += 1
        return write

    def write_once(self, block=None):
        """One write, waited for: how long it took."""
        if block is None:
            block = self.random.randrange(self.blocks)
        self.sent[block] += 1
        self.order += 1
        self.orders[block, self.sent[block]] = self.order
        begun = time.monotonic()
        self.handle.pwrite(content(block, self.sent[block], self.order), block * BLOCK)
        self.floor[block] = self.sent[block]
        return time.monotonic() - begun

    def flush(self):
        self.handle.flush()
        self.synced = list(self.floor)
