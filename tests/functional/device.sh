#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# A store on a block device: made, used, found again, and never made over something else.

. "$(dirname "$0")/lib.sh"
requires_root
requires losetup nbdcopy jq mke2fs e2fsck
requires_device /dev/loop-control

truncate -s 1G "$T/file"
device=$(losetup --find --show "$T/file") || skip "no free loop device"
cleanup_fn losetup --detach "$device"
folder=/var/lib/parallax/${device##*/}
[ ! -e "$folder" ] || skip "$folder is in use"
cleanup_fn rm -rf "$folder"

lib_stores+=("$folder")
export PARALLAX=$device

# Something of somebody else's is not overwritten.
mke2fs -q -t ext4 "$device" 64M
expect_error "$device: not empty" parallax up "$device" --detach
e2fsck -fn "$device" >"$T/out" 2>&1 || fail "the file system was touched: $(cat "$T/out")"
dd if=/dev/zero of="$device" bs=1M count=1 conv=fsync status=none

parallax up "$device" --detach
[ "$(parallax status --json | jq .capacity_bytes)" -le $((1 << 30)) ] || fail "capacity"
"$TESTS/islands.py" "$T/image" $((64 << 20)) 6
parallax import "$T/image" d
expect_error "in use" parallax up "$device" --detach
parallax down

parallax up "$device" --detach
nbdcopy "$(parallax disk uri d)" - | cmp - "$T/image" || fail "after a restart"
parallax check
parallax down

# Nor is a store whose metadata is elsewhere, as on a machine it was not made on.
mv "$folder" "$T/elsewhere"
expect_error "$device: holds a store already" parallax up "$device" --detach
rm -r "$folder"
mv "$T/elsewhere" "$folder"
parallax up "$device" --detach
nbdcopy "$(parallax disk uri d)" - | cmp - "$T/image" || fail "after all of this"
parallax down
