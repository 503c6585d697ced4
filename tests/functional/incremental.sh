#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 300
# builds: release
#
# Increments: a full export and a chain of `export --since`, through sizes that change,
# restore every link bit by bit; a file that is cut, rotten or of another disk changes
# nothing; and clients of the meta context copy only what has changed.

. "$(dirname "$0")/lib.sh"
requires jq nbdinfo qemu-io
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

work()
{
    /usr/bin/python3 "$TESTS/incremental.py" "$@"
}

same()
{
    work compare "$(uri "$1")" "$(uri "$2")" || fail "$1 and $2 differ"
}

size()
{
    stat -c %s "$1"
}

start_up "$T/store" --capacity 4G
parallax disk create d 96M
work write "$(uri d)" 0
parallax snapshot create d@0

# --- a chain ---
resizes=(0 96M 128M 128M 64M 160M)
for i in 1 2 3 4 5; do
    parallax disk resize d "${resizes[i]}"
    [ "$i" -eq 3 ] || work write "$(uri d)" "$i" # and one that changes nothing
    parallax snapshot create "d@$i"
    parallax export "d@$i" --since $((i - 1)) "$T/$i.inc"
done
[ "$(size "$T/3.inc")" -eq 544 ] || fail "nothing has changed: $(size "$T/3.inc") bytes"
parallax export d@0 "$T/full.raw"
parallax import "$T/full.raw" r
parallax snapshot create r@0
for i in 1 2 3 4 5; do
    if [ "$i" -eq 2 ]; then
        parallax import - --onto r <"$T/$i.inc"
    else
        parallax import "$T/$i.inc" --onto r
    fi
    same "d@$i" "r@$i"
    same "d@$i" r
done
same d@0 r@0

# Over several links at once, and through a pipe.
parallax clone r@1 leap
parallax snapshot create leap@1
parallax export d@5 --since 1 - | parallax import - --onto leap
same d@5 leap@5

# --- in proportion to the change ---
parallax disk create big 1G
qemu-io -f raw -c 'write -P 1 0 256M' "$(uri big)" >/dev/null
parallax snapshot create big@a
qemu-io -f raw -c 'write -P 2 10M 1M' -c 'write -P 3 200M 8k' -c 'discard 100M 50M' \
    "$(uri big)" >/dev/null
parallax snapshot create big@b
parallax export big@b --since a "$T/big.inc"
[ "$(size "$T/big.inc")" -lt $((1200 << 10)) ] || fail "big.inc: $(size "$T/big.inc")"

# --- snapshot diff ---
[ "$(parallax snapshot diff big@a big@b --json |
    jq -c '[.[] | select(.zero | not) | [.offset, .length]]')" = \
    '[[10485760,1048576],[209715200,8192]]' ] ||
    fail "diff: $(parallax snapshot diff big@a)"
[ "$(parallax snapshot diff big@a big --json | jq '[.[] | .length] | add')" -eq \
    $((1048576 + 8192 + (50 << 20))) ] || fail "diff of the disk as it is"
[ "$(parallax snapshot diff big@b --json)" = '[]' ] || fail "nothing has changed since b"
parallax snapshot diff big@b big@a | grep -Eq '^ +10485760 +1048576$' || fail "backwards"

# --- what is refused, and changes nothing ---
parallax clone d@0 t
parallax snapshot create t@0
expect_error 'has a snapshot 1 already' parallax import "$T/1.inc" --onto r
expect_error 'has no snapshot 1, on which' parallax import "$T/2.inc" --onto t
expect_error 'an increment ends at a snapshot' parallax export d --since 0 "$T/x"
expect_error 'no snapshot nope' parallax export d@1 --since nope "$T/x"
expect_error 'has not changed since itself' parallax export d@1 --since 1 "$T/x"
expect_error 'is a file' parallax export d@1 --since 0 "$(uri t)"
expect_error 'is an increment: apply it with --onto' parallax import "$T/1.inc" new
expect_error 'is not an increment' parallax import "$T/full.raw" --onto t
[ ! -e "$T/x" ] || fail "a failed export left a file"
head -c 5000 "$T/1.inc" >"$T/cut.inc"
expect_error 'cut.inc: ends after 5000 bytes' parallax import "$T/cut.inc" --onto t
cat "$T/1.inc" "$T/2.inc" >"$T/both.inc"
expect_error 'does not stop at its end' parallax import "$T/both.inc" --onto t
cp "$T/1.inc" "$T/rot.inc"
printf 'rot' | dd of="$T/rot.inc" bs=1 seek=$(($(size "$T/1.inc") / 2)) conv=notrunc \
    status=none
expect_error 'rot.inc: is damaged: checksum' parallax import "$T/rot.inc" --onto t
same d@0 t
# A pipe is found out half-way: the disk goes back.
expect_error 'is damaged.*; t is rolled back to t@0' \
    bash -c "parallax import - --onto t <'$T/rot.inc'"
same d@0 t
[ "$(parallax snapshot ls t --json | jq length)" -eq 1 ] ||
    fail "a failed import left a snapshot"
qemu-io -f raw -c 'write -P 7 0 4k' "$(uri t)" >/dev/null
expect_error "has changed since t@0.*'parallax snapshot rollback t@0' drops" \
    parallax import "$T/1.inc" --onto t
parallax snapshot rollback t@0
parallax import "$T/1.inc" --onto t
same d@1 t

# --- the meta context ---
names=$(work contexts "$(uri big@b)" | sort | tr '\n' ' ')
[ "$names" = "base:allocation parallax:changed-since:a parallax:changed-since:b " ] ||
    fail "contexts: $names"
nbdinfo --map=parallax:changed-since:a --json "$(uri big@b)" >"$T/map"
[ "$(jq -c '[.[] | select(.type == 1) | [.offset, .length]]' "$T/map")" = \
    '[[10485760,1048576],[104857600,52428800],[209715200,8192]]' ] ||
    fail "nbdinfo --map: $(cat "$T/map")"
parallax clone big@a backup
copied=$(work copy "$(uri big@b)" a "$(uri backup)")
[ "$copied" -eq $((1048576 + 8192 + (50 << 20))) ] || fail "copied $copied bytes"
same big@b backup
# Of the disk as it is, too.
qemu-io -f raw -c 'write -P 9 1000M 4k' "$(uri big)" >/dev/null
[ "$(work copy "$(uri big)" b "$(uri backup)")" -eq 4096 ] || fail "changed since b"
same big backup
parallax check
