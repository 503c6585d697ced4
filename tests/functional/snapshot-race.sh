#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 180
# builds: release asan
#
# Snapshots race with writes and with each other, on one disk and on several: each equals
# one point of its disk's history, and what differs between two of them is what
# `snapshot diff` and the meta context name. By hand: SEED=N, SNAPSHOTS=N (for each of
# six that make them).

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

race()
{
    /usr/bin/python3 "$TESTS/snapshot_race.py" "$PARALLAX" "$T/history" "$@" ||
        fail "repeat with SEED=$seed (timing differs)"
}

seed=${SEED:-$RANDOM}
echo "SEED=$seed"
start_up "$T/store" --capacity 16G
parallax disk create red 6M
parallax disk create blue 6M
race run "$seed" "${SNAPSHOTS:-20}"
race verify "$seed"

# Once more from what is on disk.
kill9_daemon "$PARALLAX"
start_up "$T/store"
race verify "$((seed + 1))"
parallax check
