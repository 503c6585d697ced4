# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# For tests that boot a guest; read after tests/functional/lib.sh. The guest's disk is one
# of the daemon's. guest/writer says what it does.

GUEST=$PARALLAX_SOURCE/build/test-cache/guest # what guest/build makes
SERIAL=$T/serial                              # what the guest has said
QEMU_PID=

# Makes the guest, if it is not there.
need_guest()
{
    requires_root
    requires mmdebstrap qemu-img qemu-system-x86_64 cpio depmod modprobe nbdcopy \
        mke2fs e2fsck debugfs apt-get dpkg-deb jq
    "$TESTS/guest/build" "$GUEST" || skip "no guest to boot"
    mkdir "$T/mnt"
    cleanup_fn umount -q "$T/mnt"
}

# start_guest DISK
start_guest()
{
    mkfifo "$T/keys"
    exec 8<>"$T/keys"
    qemu-system-x86_64 -accel tcg -cpu max -m 256 -nodefaults -display none -no-reboot \
        -serial stdio -kernel "$GUEST/vmlinuz" -initrd "$GUEST/initrd" \
        -append "console=ttyS0 quiet loglevel=1 mitigations=off no_timer_check" \
        -blockdev "driver=nbd,node-name=disk,server.type=unix,\
server.path=$PARALLAX/nbd.sock,export=$1,cache.direct=on,discard=unmap" \
        -device virtio-blk-pci,drive=disk,romfile= \
        <&8 >"$SERIAL" 2>"$T/qemu.err" &
    QEMU_PID=$!
    cleanup_fn stop_guest
}

# Pulls the plug.
stop_guest()
{
    [ -n "$QEMU_PID" ] || return 0
    kill -s KILL "$QEMU_PID" 2>/dev/null
    wait "$QEMU_PID" 2>/dev/null || true
    QEMU_PID=
}

# Types a line on the guest's console.
tell_guest()
{
    echo "$1" >&8
}

guest_runs()
{
    is_running "$QEMU_PID" || fail "the guest ended: $(cat "$T/qemu.err" "$SERIAL")"
}

# Has the guest printed a line that begins with the word WORD?
has_said()
{
    guest_runs
    grep -q "^$1 .*[[:cntrl:]]$" "$SERIAL"
}

# How many files the guest has told to be safe.
synced()
{
    grep -cE '^SYNCED [0-9]{4} [0-9a-f]{64}' "$SERIAL" || true
}

has_synced()
{
    guest_runs
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
    tr -d '\r' <"$SERIAL" | awk -v count="$2" \
        '$1 == "SYNCED" && seen++ < count { print $3 "  " $2 }' >"$T/sums"
    [ "$(wc -l <"$T/sums")" -eq "$2" ] || fail "no $2 checksums on the console"
    (cd "$1/srv/synced" && sha256sum --quiet --check "$T/sums") ||
        fail "$1: not what the guest synced"
}
