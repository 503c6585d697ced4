#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
#
# qemu-img: convert in both directions, compare, map, info, bench.

. "$(dirname "$0")/lib.sh"
requires qemu-img jq

size=$((96 * 1024 * 1024))
"$TESTS/islands.py" "$T/raw" $size 3
start_up "$T/store" --capacity 4G
parallax disk create d $size

qemu-img convert -n -f raw -O raw -t none "$T/raw" "$(uri d)"
qemu-img compare -f raw -F raw "$T/raw" "$(uri d)" || fail "convert into a disk"

qemu-img convert -f raw -O qcow2 -c "$(uri d)" "$T/qcow2"
qemu-img compare -f raw -F qcow2 "$T/raw" "$T/qcow2" || fail "convert out of a disk"

parallax disk create e $size
qemu-img convert -n -f qcow2 -O raw -W -m 16 "$T/qcow2" "$(uri e)"
qemu-img compare -f raw -F raw "$(uri d)" "$(uri e)" || fail "convert out of order"

# What qemu-img takes to be data covers all the data, and little more.
data=$(qemu-img map -f raw --output=json "$(uri d)" |
    jq '[.[] | select(.data) | .length] | add')
stored=$(du --block-size=1 "$T/raw" | cut -f 1)
[ "$((data <= stored * 5 / 4 && data >= stored / 2))" -eq 1 ] ||
    fail "map says $data bytes of data; the image has $stored"

qemu-img info --output=json -f raw "$(uri d)" |
    jq -e ".\"virtual-size\" == $size" >/dev/null || fail "info"

# A snapshot can be read, compared and benched, but not written.
parallax snapshot create d@s
qemu-img bench -f raw -t none -c 2000 -d 32 -s 4096 -S 69632 "$(uri d@s)" >"$T/bench"
qemu-img bench -w -f raw -t none -c 2000 -d 32 -s 4096 -S 8192 --pattern=170 \
    --flush-interval=64 "$(uri d)" >"$T/bench"
qemu-img bench -w -f raw -t none -c 500 -d 8 -s 1000 -o 777 "$(uri d)" >"$T/bench"
qemu-img compare -f raw -F raw "$T/raw" "$(uri d@s)" || fail "the snapshot changed"
if qemu-img compare -f raw -F raw "$T/raw" "$(uri d)" >"$T/compare"; then
    fail "the bench wrote nothing"
fi
if qemu-img bench -w -f raw -c 1 "$(uri d@s)" >"$T/bench" 2>&1; then
    fail "a snapshot was written to"
fi
