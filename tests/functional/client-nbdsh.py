#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""client-nbdsh.py DIR: one function for each behaviour, each on a fresh disk of 8 MiB
served by the daemon of DIR."""

import errno
import os
import random
import subprocess
import sys

import nbd

from model import connect

SIZE = 8 << 20
FOLDER = sys.argv[1]


def parallax(*words):
    subprocess.run(["parallax", *words], check=True)


def uri(name):
    return f"nbd+unix:///{name}?socket={FOLDER}/nbd.sock"


def expect_errno(number, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except nbd.Error as error:
        assert error.errnum == number, f"{error}: not {errno.errorcode[number]}"
        return
    raise AssertionError(f"should fail with {errno.errorcode[number]}")


def without_client_checks(handle):
    """libnbd then sends what it knows to be wrong."""
    handle.set_strict_mode(0)


def extents(handle, offset=0, length=SIZE, flags=0):
    """[(length, flags)] of base:allocation, neighbours of one kind merged."""
    found = []

    def add(context, begin, entries, _error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and begin == offset
        for size, kind in zip(entries[::2], entries[1::2]):
            if found and found[-1][1] == kind:
                found[-1] = (found[-1][0] + size, kind)
            else:
                found.append((size, kind))

    handle.block_status(length, offset, add, flags)
    return found


DATA = 0
HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO
ZERO = nbd.STATE_ZERO


def reads_zeroes_at_first(handle, _name):
    assert handle.pread(SIZE, 0) == bytes(SIZE)
    assert extents(handle) == [(SIZE, HOLE)]


def sizes_and_places(handle, _name):
    """From one byte up, across blocks, checked against a copy in memory."""
    rng = random.Random(1)
    copy = bytearray(SIZE)
    for length in (1, 2, 511, 512, 513, 4095, 4096, 4097, 8191, 65537, 1 << 20):
        for _ in range(12):
            offset = rng.randrange(SIZE - length + 1)
            data = rng.randbytes(length)
            handle.pwrite(data, offset)
            copy[offset:offset + length] = data
            assert handle.pread(length, offset) == data
    assert handle.pread(SIZE, 0) == copy


def first_and_last_byte(handle, _name):
    handle.pwrite(b"a", 0)
    handle.pwrite(b"z", SIZE - 1)
    assert handle.pread(SIZE, 0) == b"a" + bytes(SIZE - 2) + b"z"


def zero_lengths(handle, _name):
    """The protocol leaves their meaning open; they must harm nobody."""
    without_client_checks(handle)
    handle.pwrite(b"x" * 4096, 0)
    for request in (lambda: handle.pread(0, 5), lambda: handle.pwrite(b"", 5),
                    lambda: handle.trim(0, 5), lambda: handle.zero(0, 5),
                    lambda: handle.cache(0, 5), lambda: extents(handle, 5, 0)):
        try:
            request()
        except nbd.Error as error:
            assert error.errnum == errno.EINVAL, error
    assert handle.pread(4096, 0) == b"x" * 4096


def past_the_end(handle, _name):
    without_client_checks(handle)
    expect_errno(errno.EINVAL, handle.pread, 2, SIZE - 1)
    expect_errno(errno.ENOSPC, handle.pwrite, b"ab", SIZE - 1)
    expect_errno(errno.ENOSPC, handle.zero, 4096, SIZE - 1)
    expect_errno(errno.EINVAL, handle.pread, 1, 1 << 62)
    expect_errno(errno.EINVAL, handle.trim, 4096, SIZE)
    expect_errno(errno.EINVAL, handle.cache, 4096, SIZE)
    assert handle.pread(1, SIZE - 1) == b"\0"


def wrong_flags(handle, _name):
    without_client_checks(handle)
    expect_errno(errno.EINVAL, handle.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
    expect_errno(errno.EINVAL, handle.pwrite, b"ab", 0, nbd.CMD_FLAG_FAST_ZERO)
    assert handle.pread(2, 0) == b"\0\0"


def fua(handle, _name):
    for request in (lambda: handle.pwrite(b"f" * 10000, 3000, nbd.CMD_FLAG_FUA),
                    lambda: handle.zero(5000, 4000, nbd.CMD_FLAG_FUA),
                    lambda: handle.trim(4096, 8192, nbd.CMD_FLAG_FUA)):
        request()
    handle.flush()
    wanted = bytearray(16384)
    wanted[3000:13000] = b"f" * 10000
    wanted[4000:9000] = bytes(5000)
    wanted[8192:12288] = bytes(4096)
    assert handle.pread(16384, 0) == wanted


def trim(handle, _name):
    handle.pwrite(b"t" * SIZE, 0)
    handle.trim(1 << 20, 1 << 20)
    assert handle.pread(1 << 20, 1 << 20) == bytes(1 << 20)
    assert extents(handle) == [(1 << 20, DATA), (1 << 20, HOLE), (SIZE - (2 << 20), DATA)]
    # Parts of blocks may stay or become zeroes, what lies beside them stays.
    handle.trim(5000, 100)
    assert handle.pread(100, 0) == b"t" * 100
    assert handle.pread(100, 5100) == b"t" * 100
    assert handle.pread(4096 - 100, 100).strip(b"\0t") == b""


def zero(handle, _name):
    handle.pwrite(b"z" * SIZE, 0)
    handle.zero(1 << 20, 0)
    handle.zero(1 << 20, 1 << 20, nbd.CMD_FLAG_NO_HOLE)
    handle.zero(1 << 20, 2 << 20, nbd.CMD_FLAG_FAST_ZERO)
    handle.zero(1, 4 << 20)
    handle.zero(10001, (5 << 20) + 77)
    wanted = bytearray(b"z" * SIZE)
    wanted[0:3 << 20] = bytes(3 << 20)
    wanted[4 << 20] = 0
    wanted[(5 << 20) + 77:(5 << 20) + 77 + 10001] = bytes(10001)
    assert handle.pread(SIZE, 0) == wanted
    assert extents(handle, 0, 4096)[0][1] & ZERO


def zero_without_hole(handle, _name):
    """A store that only appends cannot set room aside; it takes the flag and zeroes."""
    handle.pwrite(b"h" * (1 << 20), 0)
    handle.zero(1 << 20, 0, nbd.CMD_FLAG_NO_HOLE)
    assert handle.pread(1 << 20, 0) == bytes(1 << 20)
    handle.pwrite(b"n" * 4096, 4096)
    assert handle.pread(12288, 0) == bytes(4096) + b"n" * 4096 + bytes(4096)


def fast_zero(handle, _name):
    """Either it is fast or it says that it is not, and then it changes nothing."""
    handle.pwrite(b"q" * 65536, 0)
    try:
        handle.zero(8192, 100, nbd.CMD_FLAG_FAST_ZERO)
        wanted = b"q" * 100 + bytes(8192) + b"q" * (65536 - 8292)
    except nbd.Error as error:
        assert error.errnum == errno.ENOTSUP, error
        wanted = b"q" * 65536
    assert handle.pread(65536, 0) == wanted


def cache(handle, _name):
    handle.pwrite(b"c" * 65536, 0)
    handle.cache(SIZE, 0)
    handle.cache(1, 77)
    assert handle.pread(65536, 0) == b"c" * 65536


def block_status(handle, _name):
    handle.pwrite(b"1", 40960)
    handle.pwrite(b"2" * 8192, 81920)
    assert extents(handle) == [(40960, HOLE), (4096, DATA), (36864, HOLE), (8192, DATA),
                               (SIZE - 90112, HOLE)]
    # One extent may reach past what was asked for, never more than one.
    one = extents(handle, 40960, 100, nbd.CMD_FLAG_REQ_ONE)
    assert len(one) == 1 and one[0][1] == DATA, one
    assert extents(handle, 41000, 50)[0][1] == DATA


def structured_replies(handle, _name):
    """Chunks together are what was asked for, each byte once, holes told apart."""
    handle.pwrite(b"s" * 4096, 8192)
    seen = bytearray(65536)

    def add(part, offset, status, _error):
        assert status in (nbd.READ_DATA, nbd.READ_HOLE)
        seen[offset:offset + len(part)] = bytes(byte | 1 for byte in part)

    data = handle.pread_structured(65536, 0, add)
    assert data == bytes(8192) + b"s" * 4096 + bytes(65536 - 12288)
    assert seen.count(0) == 0
    kinds = []
    handle.pread_structured(65536, 0, lambda *a: kinds.append(a[2]), nbd.CMD_FLAG_DF)
    assert len(kinds) == 1, kinds


def simple_replies(handle, name):
    handle.pwrite(b"p" * 10000, 1)
    old = nbd.NBD()
    old.set_request_structured_replies(False)
    old.connect_uri(uri(name))
    assert not old.get_structured_replies_negotiated()
    assert old.pread(20000, 0) == b"\0" + b"p" * 10000 + bytes(9999)
    old.pwrite(b"o" * 5, 100)
    old.flush()
    assert handle.pread(5, 100) == b"o" * 5
    without_client_checks(old)
    expect_errno(errno.EINVAL, old.pread, 2, SIZE - 1)
    assert old.pread(5, 100) == b"o" * 5


def oldest_handshake(handle, name):
    """A client that knows neither fixed newstyle options nor no-zeroes: EXPORT_NAME."""
    handle.pwrite(b"e" * 512, 512)
    old = nbd.NBD()
    old.set_handshake_flags(0)
    old.connect_uri(uri(name))
    assert old.get_protocol() == "newstyle"
    assert old.pread(512, 512) == b"e" * 512


def read_only_snapshot(handle, name):
    handle.pwrite(b"before" * 1000, 0)
    parallax("snapshot", "create", f"{name}@s")
    handle.pwrite(b"behind" * 1000, 0)
    snapshot = connect(uri(f"{name}@s"))
    without_client_checks(snapshot)
    assert snapshot.is_read_only()
    expect_errno(errno.EPERM, snapshot.pwrite, b"x", 0)
    expect_errno(errno.EPERM, snapshot.zero, 4096, 0)
    expect_errno(errno.EPERM, snapshot.trim, 4096, 0)
    snapshot.flush()
    assert snapshot.pread(6000, 0) == b"before" * 1000
    assert handle.pread(6000, 0) == b"behind" * 1000


def several_connections(handle, name):
    """What one wrote the others read at once, and the flush of one covers all."""
    others = [connect(uri(name)) for _ in range(4)]
    assert all(other.can_multi_conn() for other in others)
    for turn in range(20):
        writer = others[turn % 4]
        writer.pwrite(bytes([turn + 1]) * 5000, turn * 3000)
        for reader in others:
            assert reader.pread(5000, turn * 3000) == bytes([turn + 1]) * 5000
    others[0].flush()
    del others
    assert handle.pread(3000, 0) == b"\1" * 3000


def many_in_flight(handle, _name):
    """More requests than the server takes at once, in any order of answers."""
    buffers = [nbd.Buffer.from_bytearray(bytearray(os.urandom(4096)))
               for _ in range(1500)]
    cookies = [handle.aio_pwrite(buffers[i], i * 4096) for i in range(1500)]
    reads = []
    while cookies:
        handle.poll(-1)
        cookies = [c for c in cookies if not handle.aio_command_completed(c)]
    for i in range(1500):
        into = nbd.Buffer(4096)
        reads.append((handle.aio_pread(into, i * 4096), i, into))
    for cookie, i, into in reads:
        while not handle.aio_command_completed(cookie):
            handle.poll(-1)
        assert into.to_bytearray() == buffers[i].to_bytearray(), i


def largest_request(handle, _name):
    """32 MiB is what clients may send unasked; more may be refused, and harms nobody."""
    large = 32 << 20
    parallax("disk", "create", "large", "80M")
    big = connect(uri("large"))
    without_client_checks(big)
    data = os.urandom(1 << 20) * 32
    big.pwrite(data, 4096)
    assert big.pread(large, 4096) == data
    try:
        assert big.pread(large + 4096, 0) == bytes(4096) + data
    except nbd.Error as error:
        assert error.errnum in (errno.EINVAL, errno.EOVERFLOW, errno.ENOMEM), error
    handle.pwrite(b"ok", 0)


def tiny_disk(_handle, _name):
    parallax("disk", "create", "tiny", "4096")
    tiny = connect(uri("tiny"))
    assert tiny.get_size() == 4096
    tiny.pwrite(b"o" * 4096, 0)
    tiny.zero(96, 4000)
    assert tiny.pread(4096, 0) == b"o" * 4000 + bytes(96)
    assert extents(tiny, 0, 4096) == [(4096, DATA)]
    tiny.trim(4096, 0)
    assert tiny.pread(4096, 0) == bytes(4096)
    without_client_checks(tiny)
    expect_errno(errno.ENOSPC, tiny.pwrite, b"x", 4096)


TESTS = (reads_zeroes_at_first, sizes_and_places, first_and_last_byte, zero_lengths,
         past_the_end, wrong_flags, fua, trim, zero, zero_without_hole, fast_zero, cache,
         block_status, structured_replies, simple_replies, oldest_handshake,
         read_only_snapshot, several_connections, many_in_flight, largest_request,
         tiny_disk)


def main():
    failures = 0
    for number, test in enumerate(TESTS):
        name = f"d{number}"
        parallax("disk", "create", name, str(SIZE))
        handle = connect(uri(name))
        try:
            test(handle, name)
        except (AssertionError, nbd.Error, subprocess.CalledProcessError) as error:
            failures += 1
            line = error.__traceback__
            while line.tb_next and line.tb_next.tb_frame.f_code.co_filename == __file__:
                line = line.tb_next
            print(f"{test.__name__}, line {line.tb_lineno}: {error!r}")
    return 1 if failures else 0


sys.exit(main())
