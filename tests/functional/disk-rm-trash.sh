#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 180
# builds: release asan
#
# A removed disk is in the trash and comes back whole, until its time is over or the trash
# is emptied; then its space comes back. Clones never notice.

. "$(dirname "$0")/lib.sh"
requires qemu-io jq

put()
{
    qemu-io -f raw "${@:2}" "$(uri "$1")" >"$T/qemu-io" || fail "$(cat "$T/qemu-io")"
}

disks()
{
    parallax disk ls --json | jq -r '[.[].name] | join(" ")'
}

trash()
{
    parallax trash ls --json | jq -r '[.[].name] | join(" ")'
}

live_is_below()
{
    [ "$(parallax status --json | jq -e .live_bytes)" -lt "$1" ]
}

trash_is_empty()
{
    [ -z "$(trash)" ]
}

start_up "$T/store" --capacity 1G
parallax disk create d 64M
put d -c "write -P 1 0 16M"
parallax snapshot create d@one
put d -c "write -P 2 0 16M"
parallax clone d@one copy

# --- what is refused ---
expect_error 'd\b.*snapshot' parallax disk rm d
expect_error 'nope.*no such' parallax disk rm nope
parallax disk create used 16M
mkfifo "$T/hold"
qemu-io -f raw "$(uri used)" <"$T/hold" >/dev/null &
client=$!
exec 8>"$T/hold"
echo 'write -P 7 0 4k' >&8
is_used()
{
    [ "$(parallax disk show used --json | jq .clients)" -eq 1 ]
}
wait_for 10 is_used
expect_error 'used.*(client|use|attached)' parallax disk rm used
exec 8>&-
wait "$client"
[ "$(disks)" = "copy d used" ] || fail "something was removed: $(disks)"

# --- into the trash and back ---
parallax disk rm d --recursive >"$T/out"
grep -q "'parallax trash restore d'" "$T/out" || fail "it does not say how to undo it"
[ "$(disks)" = "copy used" ] || fail "disk ls: $(disks)"
[ "$(trash)" = d ] || fail "trash ls: $(trash)"
parallax trash ls | grep -Eq '^d +64M ' || fail "trash ls"
[ "$(parallax status --json | jq .trash.disks)" -eq 1 ] || fail "status"
for command in 'disk show d' 'disk uri d' 'snapshot ls d' 'snapshot create d@x' \
    'clone d@one other' 'disk resize d 1G'; do
    # shellcheck disable=SC2086
    expect_error "removed: 'parallax trash restore d' brings it back" parallax $command
done
! qemu-io -f raw -r -c 'read 0 4k' "$(uri d)" >/dev/null 2>&1 || fail "it can be read"
put copy -r -c "read -P 1 0 16M"
put copy -c "write -P 5 0 1M"
stop_daemon "$PARALLAX"
start_up "$T/store"
[ "$(trash)" = d ] || fail "the trash after a restart: $(trash)"
parallax trash restore d
put d -r -c "read -P 2 0 16M"
put d@one -r -c "read -P 1 0 16M"
put d -c "write -P 3 0 1M"
[ -z "$(trash)" ] || fail "restored, but still in the trash"

# --- names ---
expect_error 'nope' parallax trash restore nope
expect_error 'nope' parallax trash empty nope
parallax disk rm used
parallax disk create used 32M
expect_error 'used.*exist' parallax trash restore used
parallax trash restore used old
put old -r -c "read -P 7 0 4k"
parallax disk rm used
parallax disk rm old
parallax disk create old 16M
put old -c "write -P 8 0 4k"
parallax disk rm old
[ "$(trash)" = "used old old" ] || fail "two of a name: $(trash)"
parallax trash restore old # the newer one
put old -r -c "read -P 8 0 4k"
parallax trash empty old
[ "$(trash)" = "used" ] || fail "trash empty NAME: $(trash)"

# --- for good ---
parallax disk rm d --recursive
parallax trash empty
[ -z "$(trash)" ] || fail "the trash is not empty"
expect_error 'd.*no such disk$' parallax disk show d
# What the clone shares with it stays.
wait_for 60 live_is_below $((25 << 20))
put copy -r -c "read -P 5 0 1M" -c "read -P 1 1M 15M"
parallax check

# --- how long ---
expect_error 'not a span' parallax trash keep tomorrow
parallax trash keep 2s
parallax disk rm old
[ "$(trash)" = old ] || fail "trash keep 2s: $(trash)"
wait_for 60 trash_is_empty
parallax trash keep 0
parallax disk create brief 16M
parallax disk rm brief >"$T/out"
[ ! -s "$T/out" ] || fail "it cannot be restored, but: $(cat "$T/out")"
[ -z "$(trash)" ] || fail "trash keep 0: $(trash)"
parallax trash keep 1d
parallax disk rm copy
[ "$(trash)" = copy ] || fail "trash keep 1d: $(trash)"
parallax check
