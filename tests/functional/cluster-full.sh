#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 200
#
# All stores of a cluster are full at the same time: writes are answered "no space", none
# waits for ever and nothing acknowledged is lost; reads, questions about disks and
# snapshots go on; when a guest trims there is room again.

. "$(dirname "$0")/lib.sh"
requires jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 3 --capacity 128M
wait_for 60 is_whole
parallax disk create one 256M
parallax disk create two 256M
coproc guests { exec /usr/bin/python3 "$TESTS/cluster_full.py" "$T"; }

# Says what the guests answered.
guests()
{
    local answer
    echo "$1" >&"${guests[1]}"
    read -r -t 150 answer <&"${guests[0]}" || fail "guests: $1 failed"
    echo "$answer"
}

took=$(guests fill)
[ "$took" -gt 40 ] || fail "128M hold only $took MiB"
guests verify
for host in 1 2 3; do
    timeout 10 parallax -c "$T/$host" disk show one >"$T/out" ||
        fail "disk show on host $host of a full cluster"
done
[ "$(guests fill)" -lt 24 ] || fail "a full cluster was not full"
timeout 30 parallax snapshot create one@full || fail "no snapshot in a full cluster"
parallax snapshot rm one@full
guests trim
took=$(guests fill)
[ "$took" -gt 16 ] || fail "after half of it was trimmed there is room for $took MiB"
guests verify
