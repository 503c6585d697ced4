# SPDX-License-Identifier: Apache-2.0
"""What a disk must hold: a version number for each sector of 512 bytes. A sector of
version 0 is zeroes; that of version v says its own number and v, so content is never kept
and a mismatch names what is there instead."""

import array
import struct

import nbd

SECTOR = 512
CHUNK_SECTORS = 2048


def content(sector, version):
    if version == 0:
        return bytes(SECTOR)
    return struct.pack("<QQ", sector, version) * (SECTOR // 16)


def describe(data):
    """What a sector read from a disk claims to be."""
    if data == bytes(SECTOR):
        return "zeroes"
    sector, version = struct.unpack_from("<QQ", data)
    if data == content(sector, version):
        return f"version {version} of sector {sector}"
    return f"neither zeroes nor one whole version: {data[:32].hex()}..."


class Model:
    def __init__(self, sectors):
        self.versions = array.array("Q", bytes(8 * sectors))

    def copy(self):
        copied = Model(0)
        copied.versions = self.versions[:]
        return copied

    def data(self, sector, count):
        return b"".join(content(sector + i, self.versions[sector + i])
                        for i in range(count))

    def set(self, sector, count, version):
        for i in range(sector, sector + count):
            self.versions[i] = version

    def write(self, handle, sector, count, version, flags=0):
        self.set(sector, count, version)
        handle.pwrite(self.data(sector, count), sector * SECTOR, flags)

    def compare(self, handle, what):
        """Reads the whole disk; a difference ends the test."""
        total = len(self.versions)
        assert handle.get_size() == total * SECTOR, \
            f"{what}: {handle.get_size()} bytes, not {total * SECTOR}"
        for begin in range(0, total, CHUNK_SECTORS):
            count = min(CHUNK_SECTORS, total - begin)
            data = bytes(handle.pread(count * SECTOR, begin * SECTOR))
            if data != self.data(begin, count):
                self.report_difference(what, begin, data)

    def report_difference(self, what, begin, data):
        for i in range(len(data) // SECTOR):
            found = data[i * SECTOR:(i + 1) * SECTOR]
            wanted = self.versions[begin + i]
            if found != content(begin + i, wanted):
                raise AssertionError(f"{what}: sector {begin + i} should be version "
                                     f"{wanted} but is {describe(found)}")


def connect(uri):
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(uri)
    return handle
