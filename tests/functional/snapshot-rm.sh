#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 180
# builds: release asan
#
# Snapshots go, one or many, with clones or without: what is left is what it was, and the
# space that only they held comes back.

. "$(dirname "$0")/lib.sh"
requires qemu-io jq

put()
{
    qemu-io -f raw "${@:2}" "$(uri "$1")" >"$T/qemu-io" || fail "$(cat "$T/qemu-io")"
}

snapshots()
{
    parallax snapshot ls d --json | jq -r '[.[].name] | join(" ")'
}

live()
{
    parallax status --json | jq -e .live_bytes
}

live_is_below()
{
    [ "$(live)" -lt "$1" ]
}

# has NAME PATTERN: 8 MiB at 0 of the disk or snapshot are this byte.
has()
{
    put "$1" -r -c "read -P $2 0 8M"
}

start_up "$T/store" --capacity 2G
parallax disk create d 64M
for i in 1 2 3 4 5 6 7 8; do
    put d -c "write -P $i 0 8M"
    parallax snapshot create "d@s$i"
done
put d -c "write -P 9 0 8M"
parallax clone d@s3 copy
full=$(live)
[ "$full" -gt $((72 << 20)) ] || fail "nine versions of 8 MiB are $full bytes"

# --- which ---
expect_error 'no snapshot nope' parallax snapshot rm d@nope
expect_error 'is not DISK@SNAP; old ones go with' parallax snapshot rm d
expect_error 'with an option it is the DISK' parallax snapshot rm d@s1 --keep-last 1
expect_error 'either' parallax snapshot rm d --keep-last 1 --older-than 1h
expect_error '--keep-last x: a number' parallax snapshot rm d --keep-last x
expect_error 'is not a time' parallax snapshot rm d --older-than soon
[ "$(snapshots)" = "s1 s2 s3 s4 s5 s6 s7 s8" ] || fail "an error removed: $(snapshots)"

parallax snapshot rm d@s5
[ "$(snapshots)" = "s1 s2 s3 s4 s6 s7 s8" ] || fail "snapshot rm: $(snapshots)"
expect_error 'no snapshot s5' parallax snapshot rm d@s5
expect_error '(no|s5)' parallax export d@s5 "$T/out"
[ "$(parallax snapshot rm d --older-than 1h)" = "removed 0" ] || fail "none is that old"
[ "$(parallax snapshot rm d --keep-last 3)" = "removed 4" ] || fail "--keep-last"
[ "$(snapshots)" = "s6 s7 s8" ] || fail "snapshot rm --keep-last: $(snapshots)"
parallax snapshot create d@s5 # the name is free

# s1, s2, s4 and s5 of 8 MiB each; the clone keeps s3.
wait_for 60 live_is_below $((full - (31 << 20)))
has d@s6 6
has d@s8 8
has d 9
has copy 3
put copy -c "write -P 33 4M 4M"
parallax check

# The one that was kept for a clone goes with the clone; then all go at once.
parallax disk rm copy
parallax trash empty
wait_for 60 live_is_below $((full - (39 << 20)))
removed=$(parallax snapshot rm d --older-than 0)
[ "$removed" = "removed 4" ] || fail "--older-than 0: $removed"
[ "$(snapshots)" = "" ] || fail "some are left: $(snapshots)"
wait_for 60 live_is_below $((16 << 20))
has d 9

# After a restart in the middle of it.
for i in 1 2 3 4; do
    parallax snapshot create "d@again$i"
    put d -c "write -P 1$i 0 8M"
done
parallax snapshot rm d --keep-last 1
kill9_daemon "$PARALLAX"
start_up "$T/store"
[ "$(snapshots)" = again4 ] || fail "after a restart: $(snapshots)"
has d@again4 13
has d 14
wait_for 60 live_is_below $((24 << 20))
parallax check
