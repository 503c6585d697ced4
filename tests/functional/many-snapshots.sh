#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
#
# 10,000 snapshots, 2,000 of each disk: each has the content of its moment, also after a
# crash, and the daemon's memory stays within doc/limits.md. Then they go, one by one and
# many at once, while guests write: that takes little of a processor, what stays is as it
# was, and the space comes back.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

snapshots()
{
    /usr/bin/python3 "$TESTS/many-snapshots.py" "$PARALLAX" "$@"
}

start_up "$T/store" --capacity 4G
snapshots make
snapshots verify
kill9_daemon "$PARALLAX"
start_up "$T/store"
snapshots verify
snapshots remove
parallax check
