#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
# builds: release asan
#
# Damage on the device: a block that rots fails reads of that block alone and is named by
# `check`; metadata that rots is refused, never believed.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

damage()
{
    /usr/bin/python3 "$TESTS/damage.py" "$@"
}

# copy NAME: a copy of the store, which is stopped, to be ruined.
copy()
{
    cp -r --sparse=always "$T/store" "$T/$1"
    unchecked "$T/$1"
}

# refuses NAME REGEX: `up` says in one line what is wrong, and changes nothing.
refuses()
{
    local before
    lib_stores+=("$T/$1") # should it start all the same
    before=$(stat -c "%y %s" "$T/$1/store")
    expect_error "$2" parallax up "$T/$1" --detach
    [ "$(stat -c "%y %s" "$T/$1/store")" = "$before" ] || fail "$1: the store was changed"
}

start_up "$T/store" --capacity 1G
parallax disk create web 8M
damage write "$(uri web)"
parallax snapshot create web@first
parallax clone web@first copy
parallax check --quiet || fail "damaged before it was damaged"
stop_daemon "$PARALLAX"

# --- data ---

copy rot
damage rot "$T/rot/store" 100 # that is block 100 of the disk, wherever it lies
start_up "$T/rot"
damage verify "$(uri web)" 100
damage verify "$(uri web@first)" 100
damage verify "$(uri copy)" 100
code=0
parallax check >"$T/out" || code=$?
[ "$code" -eq 1 ] || fail "check ended with $code"
grep -Eq "(web|copy).*offset 409600\b" "$T/out" ||
    fail "check does not name it: $(cat "$T/out")"

# What is written anew can be read again, but the snapshot cannot.
damage rewrite "$(uri web)" 100
damage verify "$(uri web)"
damage verify "$(uri web@first)" 100
stop_daemon "$T/rot"
start_up "$T/rot"
damage verify "$(uri web)"
damage verify "$(uri copy)" 100
stop_daemon "$T/rot"

# --- the superblock, the device, LevelDB ---

copy one-superblock
dd if=/dev/urandom of="$T/one-superblock/store" bs=4096 count=1 conv=notrunc status=none
start_up "$T/one-superblock"
damage verify "$(uri web)"
stop_daemon "$T/one-superblock"

copy no-superblock
dd if=/dev/urandom of="$T/no-superblock/store" bs=1M count=1 conv=notrunc status=none
refuses no-superblock "no-superblock/store.*not a store"

copy truncated
truncate -s $((256 << 20)) "$T/truncated/store"
refuses truncated "truncated/store.*(bytes|short|small|truncated)"

copy other
mkdir "$T/another"
start_up "$T/another" --capacity 1G
stop_daemon "$T/another"
cp "$T/another/store" "$T/other/store"
refuses other "other"

copy manifest
for file in "$T"/manifest/meta/MANIFEST-*; do
    dd if=/dev/urandom of="$file" bs=1 seek=20 count=40 conv=notrunc status=none
done
refuses manifest "manifest/meta"

# A log whose end is gone looks to LevelDB like one that was being written.
log=$(cd "$T/store/meta" && echo *.log)
size=$(stat -c %s "$T/store/meta/$log")
for at in 0 4 $((size / 3)) $((size - 10)); do
    copy "rotten-log-$at"
    dd if=/dev/urandom of="$T/rotten-log-$at/meta/$log" bs=1 seek="$at" count=40 \
        conv=notrunc status=none
    refuses "rotten-log-$at" "rotten-log-$at/meta.*damaged|metadata is older"
    copy "short-log-$at"
    truncate -s "$at" "$T/short-log-$at/meta/$log"
    refuses "short-log-$at" "short-log-$at/store: its metadata is older than the store"
done

# The original never noticed.
start_up "$T/store"
damage verify "$(uri web)"
parallax check
