#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 400
#
# The disk of a running guest, backed up: in full with nbdcopy, then what has changed
# since, in two ways: through the meta context parallax:changed-since, and with `export
# --since`. After each increment both copies are the snapshot, bit by bit, at the cost of
# what has changed; their file system is sound and holds what was synced. And what the
# guest removes and discards with fstrim gives its space back.

. "$(dirname "$0")/lib.sh"
. "$TESTS/guest/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"
need_guest

large=$((96 << 20)) # bytes the guest writes and removes again

size()
{
    stat -c %s "$1"
}

# Snapshots the disk of the running guest; the first `safe` files were synced before.
snapshot()
{
    safe=$(synced)
    parallax snapshot create "vm@$1"
}

# increment BASE NAME: brings both copies from vm@BASE to vm@NAME.
increment()
{
    local changed file
    changed=$(/usr/bin/python3 "$TESTS/incremental.py" copy "$(uri "vm@$2")" "$1" \
        "$T/backup")
    parallax export "vm@$2" --since "$1" "$T/$2.inc"
    parallax import "$T/$2.inc" --onto restored
    file=$(size "$T/$2.inc")
    echo "$1 to $2: $changed bytes by block status, $file in the increment"

    nbdcopy "$(uri "vm@$2")" "$T/now"
    cmp "$T/backup" "$T/now" || fail "vm@$2 is not what block status made of vm@$1"
    nbdcopy "$(uri restored)" - | cmp - "$T/now" || fail "vm@$2 is not what was imported"

    [ "$changed" -gt 0 ] || fail "nothing has changed from $1 to $2"
    [ "$changed" -lt $(($(size "$T/now") / 16)) ] || fail "$changed bytes have changed"
    [ "$file" -le $((changed + changed / 16 + 4096)) ] || fail "$2.inc: $file bytes"
}

used()
{
    parallax disk ls --json | jq -e '.[] | select(.name == "vm") | .used_bytes'
}

# Brings the disk's map up to date first, which else takes a while.
used_after_show()
{
    parallax disk show vm --json | jq -e .used_bytes
}

store_used()
{
    parallax status --json | jq -e .used_bytes
}

is_below()
{
    [ "$("$1")" -lt "$2" ]
}

start_up "$T/store" --capacity 8G
parallax import "$GUEST/root.raw" gold
parallax clone gold vm
start_guest vm

# --- a full backup, and a chain of increments ---
wait_for 90 has_synced 5
snapshot a
nbdcopy "$(uri vm@a)" "$T/backup"
parallax import "$T/backup" restored
parallax snapshot create restored@a
wait_for 60 has_synced $((safe + 10))
snapshot b
increment a b
safe_b=$safe
wait_for 60 has_synced $((safe + 10))
snapshot c
increment b c

# --- fstrim ---
tell_guest "fill $large"
wait_for 90 has_said FILLED
full=$(used_after_show)
store_full=$(store_used)
[ "$full" -ge "$large" ] || fail "a file of $large bytes, but used: $full"
tell_guest trim
wait_for 60 has_said TRIMMED
# Less than the file alone would take. What else is dead in the extent that is being
# written, 64 MiB at most, counts until that is full.
wait_for 90 is_below used_after_show $((large / 2))
echo "used: with a large file $full, trimmed $(used)"

# What came and went between two snapshots is in no increment.
snapshot d
increment c d
stop_guest

# --- what was restored ---
look_into restored@b b
holds "$T/b" "$safe_b"
look_into restored d
holds "$T/d" "$safe"
[ ! -e "$T/d/srv/large" ] || fail "what was removed is there"
look_into vm powered-off
holds "$T/powered-off" "$(synced)"

# Nobody uses the disk any more: what is left is what its snapshots differ in.
wait_for 60 is_below used $((32 << 20))
wait_for 60 is_below store_used $((store_full - large * 3 / 4))
echo "of the store: with a large file $store_full, at the end $(store_used)"
parallax check
