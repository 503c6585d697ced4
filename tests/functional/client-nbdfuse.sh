#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
#
# nbdfuse makes a file of a disk, a loop device makes a block device of the file, and the
# kernel puts ext4 on it: files, fsync, a snapshot, unmount, fsck, mount again, and trim,
# which gives the space of deleted files back.

. "$(dirname "$0")/lib.sh"
requires_root
requires nbdfuse losetup mkfs.ext4 e2fsck fstrim fusermount3 jq
requires_device /dev/fuse
requires_device /dev/loop-control

fuse_pid=
loop=

attach()
{
    nbdfuse "$T/fuse/disk" "$(uri "$1")" 2>"$T/nbdfuse.err" &
    fuse_pid=$!
    wait_for 10 is_attached
    loop=$(losetup --find --show "$T/fuse/disk") || skip "no free loop device"
}

is_attached()
{
    is_running "$fuse_pid" || skip "nbdfuse cannot mount: $(cat "$T/nbdfuse.err")"
    [ -e "$T/fuse/disk" ]
}

loop_is_gone()
{
    ! losetup "$1" >/dev/null 2>&1
}

detach()
{
    umount -q "$T/mnt" || true
    if [ -n "$loop" ]; then
        losetup --detach "$loop"
        wait_for 10 loop_is_gone "$loop"
        loop=
    fi
    if [ -n "$fuse_pid" ]; then
        fusermount3 -u "$T/fuse" || true
        wait "$fuse_pid" || true
        fuse_pid=
    fi
}

used_bytes()
{
    parallax disk ls --json | jq -e '.[] | select(.name == "d") | .used_bytes'
}

mkdir "$T/fuse" "$T/mnt"
start_up "$T/store" --capacity 4G
parallax disk create d 512M
cleanup_fn detach

attach d
mkfs.ext4 -q -F "$loop"
mount "$loop" "$T/mnt"
dd if=/dev/urandom of="$T/mnt/large" bs=1M count=48 conv=fsync status=none
dd if=/dev/urandom of="$T/mnt/direct" bs=64k count=100 oflag=direct,sync status=none
for i in $(seq 200); do
    echo "$i" >"$T/mnt/file$i"
done
sync --file-system "$T/mnt"
(cd "$T/mnt" && sha256sum large direct file*) >"$T/sums"
parallax snapshot create d@synced
dd if=/dev/urandom of="$T/mnt/later" bs=1M count=160 conv=fsync status=none

umount "$T/mnt"
e2fsck -fn "$loop" >"$T/e2fsck" 2>&1 || fail "$(cat "$T/e2fsck")"
blockdev --flushbufs "$loop"
mount "$loop" "$T/mnt"
(cd "$T/mnt" && sha256sum --quiet --check "$T/sums") || fail "files changed"
fstrim "$T/mnt"
(cd "$T/mnt" && sha256sum --quiet --check "$T/sums") || fail "files changed by fstrim"

# Deleted and trimmed: `later` is in no snapshot, so its space comes back; that in the
# extent which is still written to (64 MiB) when the disk is closed.
used_is_below()
{
    [ "$(used_bytes)" -lt "$1" ]
}
before=$(used_bytes)
rm "$T/mnt/later"
sync --file-system "$T/mnt"
fstrim "$T/mnt"
parallax disk show d >"$T/out" # brings the map up to date
wait_for 60 used_is_below $((before - (80 << 20)))
detach
wait_for 60 used_is_below $((before - (150 << 20)))

# What was mounted when it was snapshotted: the journal is replayed, and all is there.
parallax clone d@synced c
attach c
e2fsck -p -E journal_only "$loop" >"$T/e2fsck" 2>&1 || [ $? -eq 1 ] ||
    fail "$(cat "$T/e2fsck")"
e2fsck -fn "$loop" >"$T/e2fsck" 2>&1 || fail "snapshot: $(cat "$T/e2fsck")"
mount "$loop" "$T/mnt"
(cd "$T/mnt" && sha256sum --quiet --check "$T/sums") || fail "the snapshot changed"
[ ! -e "$T/mnt/later" ] || fail "the snapshot has a file that came later"
detach
parallax check
