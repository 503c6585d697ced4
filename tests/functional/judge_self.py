# SPDX-License-Identifier: Apache-2.0
"""What the judge must find, and what it must not; see judge.sh."""

import sys
import time

import nbd

from judge import BLOCK, Judge, content

URI = sys.argv[1]
BLOCKS = 64


def finds(words, judge):
    try:
        judge.verify()
    except AssertionError as error:
        assert words in str(error), error
        return
    raise AssertionError(f"it did not find: {words}")


judge = Judge(BLOCKS, 1)
judge.attach(URI)
judge.start()
time.sleep(0.5)
assert not judge.stop() and judge.acknowledged > 0
judge.flush()
assert judge.verify() == 0

other = nbd.NBD()
other.connect_uri(URI)
block = max(range(BLOCKS), key=lambda b: judge.sent[b])
now, good = judge.sent[block], bytes(other.pread(BLOCK, block * BLOCK))
assert now >= 2

old = content(block, now - 1, judge.orders[block, now - 1])
other.pwrite(old, block * BLOCK)
finds("is back at write", judge)
other.pwrite(bytes(BLOCK), block * BLOCK)
finds("is back at write 0", judge)
other.pwrite(old[:512] + good[512:], block * BLOCK)
finds("is torn", judge)
other.pwrite(content(block, now + 1, judge.order + 1), block * BLOCK)
finds("nobody sent", judge)
other.pwrite(good, block * BLOCK)
other.pwrite(good, (block + 1) % BLOCKS * BLOCK)
finds("was written to block", judge)
other.pwrite(good, block * BLOCK)

# A write whose fate was not known, that was seen not to have happened, and comes late.
judge = Judge(BLOCKS, 2)
judge.attach(URI)
for b in range(BLOCKS):
    other.pwrite(bytes(BLOCK), b * BLOCK)
judge.sent[5] = judge.order = judge.orders[5, 1] = 1
assert judge.verify() == 0
other.pwrite(content(5, 1, 1), 5 * BLOCK)
finds("came late", judge)
other.pwrite(bytes(BLOCK), 5 * BLOCK)

# After a loss of power the last writes may be gone, but not one in between.
judge = Judge(BLOCKS, 3)
judge.attach(URI)
for b in range(BLOCKS):
    judge.write_once(b)
judge.power_was_lost()
other.pwrite(bytes(BLOCK), (BLOCKS - 1) * BLOCK)
assert judge.verify() == 1
judge.write_once(BLOCKS - 1)
judge.power_was_lost()
other.pwrite(bytes(BLOCK), 0)
finds("block 0 lost write 1", judge)
judge.write_once(0)
judge.flush()
judge.power_was_lost()
other.pwrite(bytes(BLOCK), 0)
finds("is back at write 0", judge)

# A write that never came to be is not what was lost first.
judge = Judge(BLOCKS, 3)
judge.attach(URI)
judge.write_once(0)
for b in range(1, BLOCKS):
    other.pwrite(bytes(BLOCK), b * BLOCK)
judge.sent[0] = 2
judge.order = judge.orders[0, 2] = 2
for b in range(1, BLOCKS):
    judge.write_once(b)
assert judge.verify() == 0
judge.flush()
judge.write_once(0)
judge.power_was_lost()
other.pwrite(content(0, 1, judge.orders[0, 1]), 0)
assert judge.verify() > 0
