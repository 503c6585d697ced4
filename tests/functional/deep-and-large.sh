#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 180
# builds: release
#
# Clones 40 deep, also when those in between are gone; and a disk of 16 TiB, the largest
# there is, with 2^32 blocks: writes, snapshots, diffs and trims at its end and around
# every place where a number of 32 bits ends.

. "$(dirname "$0")/lib.sh"
requires jq qemu-io
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

work()
{
    /usr/bin/python3 "$TESTS/deep-and-large.py" "$PARALLAX" "$@"
}

live_is_below()
{
    [ "$(parallax status --json | jq -e .live_bytes)" -lt "$1" ]
}

restart()
{
    kill9_daemon "$PARALLAX"
    start_up "$T/store"
}

start_up "$T/store" --capacity 2G

# --- deep ---
work deep make
work deep verify
restart
work deep verify
work deep remove # all but the first and the last
parallax check
restart
work deep verify-last
parallax check

# --- large ---
parallax disk create big 16T
[ "$(parallax disk show big --json | jq .size_bytes)" -eq $((16 << 40)) ] || fail "size"
work large
restart
work large-again
qemu-io -f raw -c "write -P 5 $((16 << 40)) 4k" "$(uri big)" >"$T/out" 2>&1 || true
! grep -q '^wrote' "$T/out" || fail "a write beyond the end: $(cat "$T/out")"
parallax check
for disk in big g0 g39; do
    parallax disk rm "$disk" --recursive >"$T/out"
done
parallax trash empty
wait_for 60 live_is_below 1
parallax check
