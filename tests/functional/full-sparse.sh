#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
#
# A disk much larger than the store, written all over: each block takes two nodes of the
# map along, and the store is full. What was written is there, checkpoints still find
# room, trimming gives the space back, and the disk can be written again.
. "$(dirname "$0")/lib.sh"

requires parallax jq /usr/bin/python3
/usr/bin/python3 -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

start_up "$T/store" --capacity 256M
parallax disk create d 1T
/usr/bin/python3 "$TESTS/full-sparse.py" "$(uri d)" fill
parallax check
/usr/bin/python3 "$TESTS/full-sparse.py" "$(uri d)" trim

is_empty()
{
    [ "$(parallax status --json | jq .live_bytes)" -lt $((64 << 20)) ]
}

wait_for 60 is_empty
/usr/bin/python3 "$TESTS/full-sparse.py" "$(uri d)" write
! grep -q "closed without a checkpoint" "$T/store/log" || fail "no checkpoint"
