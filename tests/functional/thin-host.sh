#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
#
# A store larger than its file system, which others fill, too: said at the start and by
# `status`; full before the metadata has no room, whatever happens then (a snapshot, a
# removal, a kill); of use again as soon as somebody makes room, without a restart. A file
# system filled to the last block ends the service but for reads of open disks.

. "$(dirname "$0")/lib.sh"
requires jq losetup mkfs.ext4 mount umount fallocate
requires_root
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

folder=$T/mnt/store

disk()
{
    /usr/bin/python3 "$TESTS/full-store.py" "$folder" "$T/state" "$@"
}

status()
{
    parallax status --json | jq -e ".$1"
}

# The text of `status` has a line that matches the extended regular expression REGEX.
says()
{
    parallax status >"$T/status"
    grep -Eq "$1" "$T/status" || fail "status does not say '$1': $(cat "$T/status")"
}

said()
{
    grep -Eq "$2" "$1" || fail "does not say '$2': $(cat "$1")"
}

# The log stays where a failed test shows it.
end_mount()
{
    end_daemon KILL "$folder"
    cp "$folder/log" "$T/log"
    umount "$T/mnt"
    losetup --detach "$1"
    mkdir "$folder"
    mv "$T/log" "$folder/log"
}

host_free()
{
    df --block-size=1 --output=avail "$T/mnt" | tail -n 1
}

truncate -s 300M "$T/image"
mkfs.ext4 -q -F -m 0 -b 4096 "$T/image"
mkdir "$T/mnt"
loop=$(losetup --find --show "$T/image") || skip "no free loop device"
if ! mount "$loop" "$T/mnt"; then
    losetup --detach "$loop"
    skip "cannot mount"
fi
cleanup_fn end_mount "$loop"
fallocate -l 60M "$T/mnt/other"

# What is too large is said, and nothing else comes of it.
start_up "$folder" --capacity 1G 2>"$T/said"
said "$T/said" '^parallaxd: warning: capacity 1G, but only [0-9.]+M can be stored here'
said "$folder/log" 'warning: capacity 1G, but only [0-9.]+M can be stored here'
[ "$(wc -l <"$T/said")" -eq 1 ] || fail "more than one line: $(cat "$T/said")"
says '^health  *ok$'
says '^host  *[0-9.]+M left in the file system'
[ "$(status host_free_bytes)" -gt 0 ] || fail "host_free_bytes: $(status host_free_bytes)"
[ "$(status withheld_bytes)" -gt $((800 << 20)) ] ||
    fail "withheld_bytes: $(status withheld_bytes)"

# Full: refused like in any full store; the metadata has room; all else goes on.
parallax disk create d 900M
parallax disk create other 16M
disk fill
used=$(status used_bytes)
[ "$used" -gt $((80 << 20)) ] || fail "only $used bytes could be used"
[ "$(host_free)" -gt $((32 << 20)) ] || fail "$(host_free) bytes are left for metadata"
says '^health  *full: .*file system'
says '^warning  *thin: the file system has only [0-9]+ MiB left'
disk verify
disk refused
parallax snapshot create d@full
disk verify
parallax disk rm other
disk verify

kill9_daemon "$folder"
start_up "$folder" 2>/dev/null
disk verify
parallax check || fail "check of a full store"
parallax disk create other 16M
disk refused

# Somebody makes room: the same daemon goes on.
rm "$T/mnt/other"
disk grown
disk verify
parallax snapshot rm d@full

# A capacity that has no effect is said, too.
stop_daemon "$folder"
start_up "$folder" --capacity 512M 2>"$T/said"
said "$T/said" '^parallaxd: warning: --capacity 512M has no effect: the store has 1G'
disk verify
parallax check

# Others fill it to the last block. When the metadata finds no room either, the store is
# out of service, but what was acknowledged can be read while its disk is open.
/usr/bin/python3 "$TESTS/thin-host.py" "$folder" "$T/state" "$T/mnt/other"
says "^health  *failed: no room in the file system for metadata"
kill9_daemon "$folder"
rm "$T/mnt/other"
start_up "$folder" 2>/dev/null
disk verify
disk fill
disk verify
parallax check
unchecked "$folder" # it is not mounted any more when the others are
stop_daemon "$folder"
