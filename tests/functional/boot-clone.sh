#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
#
# A real Debian from import to power cut: its image is imported as raw and as qcow2, the
# disk cloned 75 times, and a clone booted. While the guest writes, its disk is
# snapshotted; then it is powered off hard. Its file system is sound, the snapshot holds
# what was synced before it, and the gold image is what was imported.

. "$(dirname "$0")/lib.sh"
. "$TESTS/guest/lib.sh"
need_guest

start_up "$T/store" --capacity 8G
parallax import "$GUEST/root.raw" gold
parallax import "$GUEST/root.qcow2" gold-qcow2
nbdcopy "$(uri gold)" - | cmp - "$GUEST/root.raw" || fail "gold is not the raw image"
qemu-img compare -f raw -F qcow2 "$(uri gold-qcow2)" "$GUEST/root.qcow2" ||
    fail "gold-qcow2 is not the qcow2 image"
qemu-img compare -f raw -F raw "$(uri gold)" "$(uri gold-qcow2)" ||
    fail "the same image, imported twice, differs"

parallax clone gold lab --count 75
clones=$(parallax disk ls --json |
    jq '[.[] | select(.name | startswith("lab-"))] | length')
[ "$clones" -eq 75 ] || fail "$clones clones instead of 75"

start_guest lab-42
wait_for 60 has_synced 15
before=$(synced)
parallax snapshot create lab-42@running
after=$(synced)
wait_for 60 has_synced $((after + 10))
stop_guest
last=$(synced)

look_into lab-42@running snapshot
holds "$T/snapshot" "$before"
newest=$(find "$T/snapshot/srv/synced" -type f | wc -l)
[ "$newest" -le $((after + 1)) ] ||
    fail "the snapshot has $newest files; only $after were there when it was done"

look_into lab-42 powered-off
holds "$T/powered-off" "$last"
newest=$(find "$T/powered-off/srv/synced" -type f | wc -l)
[ "$newest" -le $((last + 1)) ] || fail "$newest files on the disk; $last were told"

# Nobody else saw any of it.
parallax export gold "$T/gold"
cmp "$T/gold" "$GUEST/root.raw" || fail "gold changed"
nbdcopy "$(uri lab-41)" - | cmp - "$GUEST/root.raw" || fail "another clone changed"
parallax check
echo "files: $before to $after at the snapshot, $last at the end"
