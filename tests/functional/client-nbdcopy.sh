#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
#
# nbdcopy: into a disk, out of it, between disks, sparse, and from a snapshot while the
# disk goes on to other content.

. "$(dirname "$0")/lib.sh"
requires nbdcopy jq

used_bytes()
{
    parallax disk ls --json | jq -e ".[] | select(.name == \"$1\") | .used_bytes"
}

size=$((192 * 1024 * 1024))
"$TESTS/islands.py" "$T/one" $size 1
"$TESTS/islands.py" "$T/two" $size 2
start_up "$T/store" --capacity 4G
parallax disk create d $size

nbdcopy --destination-is-zero --flush "$T/one" "$(uri d)"
nbdcopy "$(uri d)" "$T/out"
cmp "$T/one" "$T/out" || fail "what was copied in did not come out"
stored=$(du --block-size=1 "$T/one" | cut -f 1)
[ "$(du --block-size=1 "$T/out" | cut -f 1)" -le $((stored * 5 / 4)) ] ||
    fail "the copy out is not sparse"
[ "$(used_bytes d)" -le $((stored * 3 / 2)) ] ||
    fail "the disk uses $(used_bytes d) bytes for $stored bytes of data"

# Zeroes are written where the old content was.
parallax snapshot create d@one
nbdcopy --flush --connections=4 --requests=64 "$T/two" "$(uri d)"
nbdcopy "$(uri d)" "$T/out"
cmp "$T/two" "$T/out" || fail "the disk is not what was copied over it"
nbdcopy --connections=4 --requests=64 "$(uri d@one)" "$T/out"
cmp "$T/one" "$T/out" || fail "the snapshot changed with its disk"

# From disk to disk, and back, one request at a time.
parallax disk create e $size
nbdcopy --destination-is-zero --allocated "$(uri d@one)" "$(uri e)"
nbdcopy --synchronous "$(uri e)" "$T/out"
cmp "$T/one" "$T/out" || fail "a copy between two disks differs"

# From a pipe and into one.
parallax disk create f $size
nbdcopy - "$(uri f)" <"$T/two"
nbdcopy "$(uri f)" - | cmp - "$T/two" || fail "a copy through pipes differs"

if nbdcopy "$T/two" "$(uri d@one)" 2>"$T/err"; then
    fail "a snapshot was written to"
fi
