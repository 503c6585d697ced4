#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
#
# A disk much larger than the store, written all over: each block takes two nodes of the
# map along, and the store is full. What was written is there, checkpoints still find
# room, also after one was cut off by a kill, trimming gives the space back, and the disk
# can be written again.
. "$(dirname "$0")/lib.sh"

requires parallax jq /usr/bin/python3
/usr/bin/python3 -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

start_up "$T/store" --capacity 256M
parallax disk create d 1T
for _ in 1 2 3; do
    /usr/bin/python3 "$TESTS/full-sparse.py" "$(uri d)" fill
    kill9_daemon "$PARALLAX"
    start_up "$T/store"
done
parallax check
/usr/bin/python3 "$TESTS/full-sparse.py" "$(uri d)" trim

is_empty()
{
    [ "$(parallax status --json | jq .live_bytes)" -lt $((64 << 20)) ]
}

wait_for 60 is_empty
/usr/bin/python3 "$TESTS/full-sparse.py" "$(uri d)" write
! grep -q "closed without a checkpoint" "$T/store/log" || fail "no checkpoint"
