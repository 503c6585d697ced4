#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
# builds: release asan
#
# A disk with a quota gets no space beyond it, others go on; with a larger quota, or after
# a discard, so does the disk.

. "$(dirname "$0")/lib.sh"
requires qemu-io jq

io()
{
    qemu-io -f raw "${@:2}" "$(uri "$1")" >"$T/qemu-io" 2>&1 &&
        ! grep -q 'failed' "$T/qemu-io"
}

start_up "$T/store" --capacity 1G
parallax disk create d 256M
parallax disk create other 256M
expect_error 'needs --quota' parallax disk set d
expect_error 'not a size' parallax disk set d --quota lots
expect_error 'above 0, or none' parallax disk set d --quota 0
expect_error 'nope.*no such' parallax disk set nope --quota 64M
parallax disk set d --quota 64M
[ "$(parallax disk show d --json | jq .quota_bytes)" -eq $((64 << 20)) ] || fail "quota"
parallax disk show d | grep -q '^quota  *64M$' || fail "disk show"

# A disk at its quota is no reason to empty the trash.
parallax disk create bin 16M
parallax disk rm bin
io d -c 'write -P 1 0 32M' || fail "below its quota: $(cat "$T/qemu-io")"
! io d -c 'write -P 2 32M 128M' || fail "it writes beyond its quota"
grep -q 'No space left' "$T/qemu-io" || fail "it says: $(cat "$T/qemu-io")"
io d -r -c 'read -P 1 0 32M' || fail "it cannot be read"
io other -c 'write -P 3 0 128M' || fail "another disk suffers: $(cat "$T/qemu-io")"
used=$(parallax disk show d --json | jq .used_bytes)
[ "$used" -le $((96 << 20)) ] || fail "it uses $used bytes"

parallax trash ls | grep -q bin || fail "the trash was emptied for a quota"

parallax disk set d --quota 256M
io d -c 'write -P 2 32M 64M' || fail "with a larger quota: $(cat "$T/qemu-io")"
parallax disk set d --quota none
[ "$(parallax disk show d --json | jq .quota_bytes)" = null ] || fail "none"

# Discards make room below a quota.
parallax disk set d --quota 100M
io d -c 'discard 0 96M' || fail "a discard: $(cat "$T/qemu-io")"
has_room()
{
    io d -c 'write -P 4 0 32M'
}
wait_for 60 has_room
io d -r -c 'read -P 4 0 32M' || fail "$(cat "$T/qemu-io")"

# It is kept.
stop_daemon "$PARALLAX"
start_up "$T/store"
[ "$(parallax disk show d --json | jq .quota_bytes)" -eq $((100 << 20)) ] || fail "kept"
parallax check
