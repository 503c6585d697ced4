#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
# builds: release
#
# A store that is full: writes get ENOSPC, reads and flushes go on, nothing is lost, also
# by a restart; with a larger --capacity writes go on. A failed import leaves nothing.

. "$(dirname "$0")/lib.sh"
requires jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

disk()
{
    /usr/bin/python3 "$TESTS/full-store.py" "$PARALLAX" "$T/state" "$@"
}

status()
{
    parallax status --json | jq -e ".$1"
}

# What can be asked of a full store, more than once.
is_full_and_sound()
{
    disk refused
    disk verify
    [ "$(status free_bytes)" -lt $((64 << 20)) ] || fail "free: $(status free_bytes)"
    disks=$(status disks)
    expect_error "[Nn]o space" parallax import "$T/image" imported
    [ "$(status disks)" -eq "$disks" ] || fail "a failed import left a disk"
    ! parallax disk show imported >"$T/out" 2>&1 || fail "a failed import left its disk"
}

/usr/bin/python3 "$TESTS/islands.py" "$T/image" $((600 << 20)) 5
start_up "$T/store" --capacity 256M
parallax disk create d 320M
parallax disk create other 16M
disk fill
used=$(status used_bytes)
[ "$used" -gt $((160 << 20)) ] || fail "only $used bytes of 256M could be used"
is_full_and_sound
parallax check || fail "check of a full store"

stop_daemon "$PARALLAX"
start_up "$T/store"
is_full_and_sound
kill9_daemon "$PARALLAX"
start_up "$T/store"
is_full_and_sound

stop_daemon "$PARALLAX"
start_up "$T/store" --capacity 512M
[ "$(status capacity_bytes)" -gt $((400 << 20)) ] || fail "it did not grow"
disk grown
disk verify
stop_daemon "$PARALLAX"
start_up "$T/store"
disk verify
parallax check
