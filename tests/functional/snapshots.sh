#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
# builds: release asan
#
# Many snapshots of a disk that goes on changing, clones of clones, and rollback: each
# has exactly the content of its moment.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_up "$T/store" --capacity 4G
parallax disk create d 8M
/usr/bin/python3 "$TESTS/snapshots.py" "$PARALLAX" first

# Once more from what is on disk.
stop_daemon "$PARALLAX"
start_up "$T/store"
/usr/bin/python3 "$TESTS/snapshots.py" "$PARALLAX" again
parallax check
