#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
#
# A real Debian from import to power cut: its image is imported as raw and as qcow2, the
# disk cloned 75 times, and a clone booted. While the guest writes, its disk is
# snapshotted; then it is powered off hard. Its file system is sound, the snapshot holds
# what was synced before it, and the gold image is what was imported.

. "$(dirname "$0")/lib.sh"
requires_root
requires mmdebstrap qemu-img qemu-system-x86_64 cpio depmod modprobe nbdcopy \
    mke2fs e2fsck debugfs apt-get dpkg-deb jq

guest=$PARALLAX_SOURCE/build/test-cache/guest
serial=$T/serial
qemu_pid=

start_guest()
{
    : >"$serial"
    qemu-system-x86_64 -accel tcg -cpu max -m 256 -nodefaults -display none -no-reboot \
        -serial "file:$serial" -kernel "$guest/vmlinuz" -initrd "$guest/initrd" \
        -append "console=ttyS0 quiet loglevel=1 mitigations=off no_timer_check" \
        -blockdev "driver=nbd,node-name=disk,server.type=unix,\
server.path=$PARALLAX/nbd.sock,export=$1,cache.direct=on,discard=unmap" \
        -device virtio-blk-pci,drive=disk,romfile= 2>"$T/qemu.err" </dev/null &
    qemu_pid=$!
    cleanup_fn stop_guest
}

# Pulls the plug.
stop_guest()
{
    [ -n "$qemu_pid" ] || return 0
    kill -s KILL "$qemu_pid" 2>/dev/null
    wait "$qemu_pid" 2>/dev/null || true
    qemu_pid=
}

# How many files the guest has told to be safe.
synced()
{
    grep -cE '^SYNCED [0-9]{4} [0-9a-f]{64}' "$serial" || true
}

has_synced()
{
    is_running "$qemu_pid" || fail "the guest ended: $(cat "$T/qemu.err" "$serial")"
    [ "$(synced)" -ge "$1" ]
}

# look_into DISK FOLDER: copies the disk out, lets the file system replay its journal as
# after any power cut, has it checked, and puts its files into FOLDER.
look_into()
{
    local image=$T/image
    parallax clone "$1" "look-$2"
    nbdcopy "$(uri "look-$2")" "$image"
    e2fsck -p -E journal_only "$image" >"$T/e2fsck" 2>&1 || [ $? -eq 1 ] ||
        fail "$1: journal: $(cat "$T/e2fsck")"
    e2fsck -fn "$image" >"$T/e2fsck" 2>&1 || fail "$1: $(cat "$T/e2fsck")"
    mkdir "$T/$2"
    if mount -o loop "$image" "$T/mnt" 2>/dev/null; then
        cp -a "$T/mnt/srv" "$T/$2/"
        umount "$T/mnt"
    else
        debugfs -R "rdump /srv $T/$2" "$image" 2>/dev/null
    fi
    rm "$image"
}

# holds FOLDER COUNT: are the first COUNT files of the guest there, as it wrote them?
holds()
{
    tr -d '\r' <"$serial" | awk '$1 == "SYNCED" { print $3 "  " $2 }' |
        head -n "$2" >"$T/sums"
    [ "$(wc -l <"$T/sums")" -eq "$2" ] || fail "no $2 checksums on the console"
    (cd "$1/srv/synced" && sha256sum --quiet --check "$T/sums") ||
        fail "$1: not what the guest synced"
}

"$TESTS/guest/build" "$guest" || skip "no guest to boot"
mkdir "$T/mnt"
cleanup_fn umount -q "$T/mnt"

start_up "$T/store" --capacity 8G
parallax import "$guest/root.raw" gold
parallax import "$guest/root.qcow2" gold-qcow2
nbdcopy "$(uri gold)" - | cmp - "$guest/root.raw" || fail "gold is not the raw image"
qemu-img compare -f raw -F qcow2 "$(uri gold-qcow2)" "$guest/root.qcow2" ||
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
cmp "$T/gold" "$guest/root.raw" || fail "gold changed"
nbdcopy "$(uri lab-41)" - | cmp - "$guest/root.raw" || fail "another clone changed"
parallax check
echo "files: $before to $after at the snapshot, $last at the end"
