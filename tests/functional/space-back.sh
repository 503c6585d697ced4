#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
# builds: release asan
#
# What is overwritten, discarded or removed gives its space back: a disk can be written
# many times over in a store that is hardly larger than it.

. "$(dirname "$0")/lib.sh"
requires qemu-io jq

put()
{
    qemu-io -f raw "${@:2}" "$(uri "$1")" >"$T/qemu-io" || fail "$(cat "$T/qemu-io")"
}

status()
{
    parallax status --json | jq -e ".$1"
}

used_is_below()
{
    [ "$(status used_bytes)" -lt "$1" ]
}

start_up "$T/store" --capacity 512M
parallax disk create d 128M

# Over and over: eight times what fits the disk, twice what fits the store.
for i in 1 2 3 4 5 6 7 8; do
    put d -c "write -P $i 0 128M"
done
put d -r -c "read -P 8 0 128M"
[ "$(status used_bytes)" -lt $((450 << 20)) ] || fail "used: $(status used_bytes)"
parallax disk show d >"$T/out" # which brings the map up to date
wait_for 60 used_is_below $((180 << 20))

# Discarded and zeroed.
put d -c "discard 0 64M" -c "write -z -u 64M 32M"
parallax disk show d >"$T/out"
wait_for 60 used_is_below $((80 << 20))
put d -r -c "read -P 0 0 96M" -c "read -P 8 96M 32M"
[ "$(parallax disk show d --json | jq .referenced_bytes)" -eq $((32 << 20)) ] ||
    fail "referenced: $(parallax disk show d --json)"

# Scattered: every second 4 KiB, so that no 64 KiB are free as a whole.
args=()
for ((i = 0; i < 4096; i++)); do
    args+=(-c "write -P 3 $((8 * i))k 4k")
done
put d -c "write -P 2 0 32M"
put d "${args[@]}"
parallax disk show d >"$T/out"
wait_for 90 used_is_below $((100 << 20))

# A shrunk disk, and a removed one.
parallax disk resize d 32M
wait_for 60 used_is_below $((60 << 20))
parallax disk rm d
parallax trash empty
wait_for 60 used_is_below $((12 << 20))
[ "$(status trash.disks)" -eq 0 ] || fail "the trash is not empty"
parallax check
stop_daemon "$PARALLAX"
start_up "$T/store"
used_is_below $((12 << 20)) || fail "used after a restart: $(status used_bytes)"
parallax check
