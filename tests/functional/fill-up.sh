#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
# builds: release asan
#
# A store that was filled by accident says what can be done, and what it says works: each
# step is taken from its messages alone.

. "$(dirname "$0")/lib.sh"
requires qemu-io jq

io()
{
    qemu-io -f raw "${@:2}" "$(uri "$1")" >"$T/qemu-io" 2>&1 &&
        ! grep -q 'failed' "$T/qemu-io"
}

# says TEXT: the status does.
says()
{
    parallax status >"$T/status"
    grep -q -- "$1" "$T/status"
}

warns_not()
{
    [ "$(parallax status --json | jq -r .warning)" = "" ]
}

start_up "$T/store" --capacity 512M
says '^health  *ok$' || fail "$(cat "$T/status")"
warns_not || fail "an empty store warns: $(parallax status --json | jq .warning)"
parallax disk create web 300M
parallax disk create db 1G
parallax disk create old 200M
says 'committed.*more than there is' || fail "over-commitment: $(cat "$T/status")"
io old -c 'write -P 9 0 64M' || fail "$(cat "$T/qemu-io")"
parallax disk create empty 200M
parallax disk rm empty
parallax disk rm old
io web -c 'write -P 1 0 96M' || fail "$(cat "$T/qemu-io")"
parallax snapshot create web@one
io web -c 'write -P 2 0 96M' || fail "$(cat "$T/qemu-io")"
io db -c 'write -P 3 0 64M' || fail "$(cat "$T/qemu-io")"

# --- the accident ---
! io db -c 'write -P 4 64M 600M' || fail "600 MiB fit"
grep -q 'No space left' "$T/qemu-io" || fail "it says: $(cat "$T/qemu-io")"
io web -r -c 'read -P 2 0 96M' || fail "reads suffer: $(cat "$T/qemu-io")"
says '^warning' || fail "no warning: $(cat "$T/status")"
trash=$(parallax trash ls --json | jq -r '.[].name')
[ "$trash" = empty ] || fail "in the trash after a guest was refused: $trash"
grep -q 'disk old in the trash went for good' "$T/store/log" || fail "the log is silent"
grep -q 'disk db: writes are refused: the store is full' "$T/store/log" ||
    fail "the log does not say that the store is full"
says '^health  *full' || fail "health: $(cat "$T/status")"
says "'parallax snapshot rm'" || fail "snapshots are not named: $(cat "$T/status")"
expect_error "no space|[Nn]o space" bash -c 'head -c 200M /dev/urandom |
    parallax import - imported'

# --- out of it: a snapshot, a discard ---
can_write()
{
    io web -c "write -P $1 128M $2"
}
parallax snapshot rm web@one
wait_for 60 can_write 6 64M
io db -c 'discard 64M 600M' || fail "a discard in a full store: $(cat "$T/qemu-io")"
wait_for 60 warns_not
can_write 7 64M || fail "still full: $(cat "$T/qemu-io")"

io web -r -c 'read -P 2 0 96M' -c 'read -P 7 128M 64M' || fail "$(cat "$T/qemu-io")"
io db -r -c 'read -P 3 0 64M' -c 'read -P 0 64M 600M' || fail "$(cat "$T/qemu-io")"
parallax check
stop_daemon "$PARALLAX"
start_up "$T/store"
warns_not || fail "after a restart: $(parallax status --json | jq .warning)"
parallax check
