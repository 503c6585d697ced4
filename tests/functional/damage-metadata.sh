#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
# builds: release
#
# Rot in what describes the data: map nodes, batch headers, LevelDB's tables. What depends
# on it is refused, never answered with anything else; all other data stays readable;
# scrub names it, and so does check where reads need it. Map nodes are made again.

. "$(dirname "$0")/lib.sh"
requires jq qemu-io
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

damage()
{
    /usr/bin/python3 "$TESTS/damage.py" "$@"
}

# ruin NAME WHAT...: starts a copy of the store with one bit of WHAT flipped.
ruin()
{
    cp -r --sparse=always "$T/store" "$T/$1"
    unchecked "$T/$1"
    /usr/bin/python3 "$TESTS/damage_metadata.py" "$2" "$T/$1/store" "${@:3}"
    start_up "$T/$1"
}

scrub_is_finished()
{
    [ "$(parallax scrub status --json | jq -r .state)" = finished ]
}

# named_by_scrub REGEX: one line of it, and no more findings.
named_by_scrub()
{
    parallax scrub >"$T/out"
    wait_for 60 scrub_is_finished
    ! parallax scrub status >"$T/out" || fail "scrub finds nothing"
    grep -Eq "$1" "$T/out" || fail "scrub does not say $1: $(cat "$T/out")"
    grep -Eq '^findings +1$' "$T/out" || fail "scrub finds more: $(cat "$T/out")"
}

named_by_check()
{
    ! parallax check >"$T/out" || fail "check finds nothing"
    grep -Eq "$1" "$T/out" || fail "check does not say $1: $(cat "$T/out")"
}

# io COMMAND...: on web, all of which must work.
io()
{
    qemu-io -f raw "$@" "$(uri web)" >"$T/qemu-io" 2>&1 || fail "$(cat "$T/qemu-io")"
    ! grep -q failed "$T/qemu-io" || fail "$*: $(cat "$T/qemu-io")"
}

# reads_but [FIRST COUNT]: web, its snapshot and its clone are as written, but of these
# blocks none can be read.
reads_but()
{
    for name in web web@first copy; do
        damage verify "$(uri "$name")" "$@" || fail "$name, damaged: $*"
    done
    damage verify "$(uri other)" || fail "another disk"
}

# mended OFFSET: the node for it is made again.
mended()
{
    ! parallax check --repair >"$T/out" || fail "check finds nothing"
    grep -Eq ": offset $1: map node.*; rebuilt" "$T/out" || fail "$(cat "$T/out")"
    grep -q '^1 map node rebuilt' "$T/out" || fail "$(cat "$T/out")"
    parallax check
}

start_up "$T/store" --capacity 96M
parallax disk create other 2M
parallax disk create web 8M
damage write "$(uri other)"
damage write "$(uri web)" # 8 leaves and a node above them
parallax snapshot create web@first
parallax clone web@first copy
parallax check
stop_daemon "$PARALLAX"

# --- map nodes ---
ruin leaf leaf 700 # of the blocks from 512 to 767
reads_but 512 256
named_by_check 'disk (web|copy).*: offset 2097152: map node at level 0.*checksum'
named_by_scrub 'disk web: map node of level 0 for offset 2097152.*web@first'
# A disk is rid of it when all that it is for is replaced; until then it makes no
# checkpoint. It goes with its snapshots and clones; what it named is lost space then.
io -c 'write -P 5 2M 64k' -c 'read -P 5 2M 64k'
named_by_check 'disk web: .*the 1048576 bytes from offset 2097152 on'
io -c 'write -P 6 2112k 192k' -c 'discard 2304k 768k'
io -c 'read -P 5 2M 64k' -c 'read -P 6 2112k 192k' -c 'read -P 0 2304k 768k'
named_by_check '(copy|first).*: offset 2097152: map node' # after a checkpoint
! grep -q '^disk web: ' "$T/out" || fail "still: $(cat "$T/out")"
parallax disk rm copy >"$T/out"
parallax trash empty
parallax snapshot rm web@first
io -c 'write -P 7 2M 1M' -c 'read -P 7 2M 1M'
repaired()
{
    parallax check --repair >"$T/out"
}
wait_for 60 repaired
parallax check
stop_daemon "$PARALLAX"

ruin top top 700
reads_but 0 2048
named_by_check 'disk (web|copy).*: offset 0: map node at level 1.*checksum'
named_by_scrub 'disk web: map node of level 1 for offset 0.*web@first'
mended 0
reads_but
stop_daemon "$PARALLAX"

# A part of it was written: its checkpoints go on when it was made again.
ruin mended leaf 700
io -c 'write -P 5 2M 64k'
mended 2097152
io -c 'read -P 5 2M 64k'
damage verify "$(uri web@first)"
damage verify "$(uri copy)"
damage write "$(uri web)"
reads_but
stop_daemon "$PARALLAX"

# --- headers ---
# No read needs them once their log was closed; scrub has nothing to compare with then.
for what in roll header; do
    ruin "closed-$what" "$what" 2 0
    reads_but
    parallax check
    named_by_scrub 'disk web: .*(header|tells of the blocks)'
    stop_daemon "$PARALLAX"
done

# A start needs those of a log that was not: what its disk holds cannot be read then; it
# is not given as it was at some earlier time.
headers=$(/usr/bin/python3 "$TESTS/damage_metadata.py" count "$T/store/store" 2)
start_up "$T/store"
io -c 'write -P 1 0 64k' -c flush -c 'write -P 2 0 64k' -c flush
parallax disk show web >"$T/out" # a checkpoint, which knows of these flushes
io -c 'write -P 3 0 64k' -c flush
kill9_daemon "$PARALLAX"
ruin open header 2 "$headers"
for at in 0 100k 4M; do
    qemu-io -f raw -r -c "read $at 4k" "$(uri web)" >"$T/qemu-io" 2>&1 || true
    grep -Eq "Input/output error|can't open" "$T/qemu-io" || fail "$(cat "$T/qemu-io")"
done
named_by_check 'disk web: '
damage verify "$(uri web@first)"
damage verify "$(uri copy)"
damage verify "$(uri other)"
stop_daemon "$PARALLAX"

# Nor when nothing but later headers of the log says that it was flushed. Its space is
# not given to others: with that bit as it was, all is there again.
start_up "$T/store"
io -r -c 'read -P 3 0 64k'
parallax disk show web >"$T/out"
stop_daemon "$PARALLAX"
headers=$(/usr/bin/python3 "$TESTS/damage_metadata.py" count "$T/store/store" 2)
start_up "$T/store"
io -c 'write -P 1 0 64k' -c flush -c 'write -P 2 64k 64k' -c flush \
    -c 'write -P 3 0 64k' -c flush
kill9_daemon "$PARALLAX"
ruin short header 2 "$headers"
grep -q 'the header in block .*, which was flushed, is damaged' "$T/short/log" ||
    fail "the start does not say so: $(cat "$T/short/log")"
qemu-io -f raw -r -c 'read 0 4k' "$(uri web)" >"$T/qemu-io" 2>&1 || true
grep -Eq "Input/output error|can't open" "$T/qemu-io" || fail "$(cat "$T/qemu-io")"
named_by_check 'disk web: '
damage verify "$(uri web@first)"
parallax clone web@first again # what can be done without it
damage verify "$(uri again)"
damage write "$(uri other)"
stop_daemon "$PARALLAX"
/usr/bin/python3 "$TESTS/damage_metadata.py" header "$T/short/store" 2 "$headers"
start_up "$T/short"
io -r -c 'read -P 3 0 64k' -c 'read -P 2 64k 64k'
stop_daemon "$PARALLAX"

start_up "$T/store"
io -r -c 'read -P 3 0 64k'
damage write "$(uri web)"
stop_daemon "$PARALLAX"

# --- tables of LevelDB ---
unchecked "$T/table"
# A bit may be in what nobody needs; else the store is refused in one line.
table=$(cd "$T/store/meta" && find . -name '*.ldb' -size +1k | sort | tail -n 1)
size=$(stat -c %s "$T/store/meta/$table")
refused=0
for at in $(seq 0 $((size / 16)) $((size - 1))); do
    rm -rf "$T/table"
    cp -r --sparse=always "$T/store" "$T/table"
    /usr/bin/python3 "$TESTS/damage_metadata.py" byte "$T/table/meta/$table" "$at"
    if parallax up "$T/table" --detach >"$T/out" 2>&1; then
        lib_stores+=("$T/table")
        export PARALLAX=$T/table
        reads_but
        stop_daemon "$T/table"
    else
        refused=$((refused + 1))
        [ "$(grep -c 'table.*meta' "$T/out")" -eq 1 ] || fail "it says: $(cat "$T/out")"
    fi
done
[ "$refused" -ge 8 ] || fail "only $refused of 17 were noticed"
