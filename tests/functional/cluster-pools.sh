#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# builds: release
#
# Disks move from a pool with one copy to one with three, one with a client that goes on
# writing, one that nobody has open, one with a snapshot: afterwards any host may die, and
# all is there.

. "$(dirname "$0")/lib.sh"
requires nbdcopy jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 3 --capacity 1G
is_ok()
{
    is_whole && [ "$(parallax status --json | jq -r .health)" = ok ]
}
wait_for 60 is_ok
parallax pool create once --copies 1 --min-copies 1
has_groups()
{
    [ "$(parallax pool ls --json | jq '.[] | select(.name == "once").groups')" -ge 96 ]
}
wait_for 60 has_groups

# --- what is wrong ---
parallax disk create idle 64M --pool once
expect_error 'no such pool' parallax disk set idle --pool twice
expect_error 'no such disk' parallax disk set nothing --pool default
expect_error 'needs --quota SIZE, --quota none or --pool NAME' parallax disk set idle

# --- disks in the pool with one copy ---
head -c 24M /dev/urandom >"$T/idle"
nbdcopy "$T/idle" "$(uri idle "$T/2")"
parallax disk create kept 64M --pool once
head -c 8M /dev/urandom >"$T/kept1"
nbdcopy "$T/kept1" "$(uri kept)"
parallax snapshot create kept@one
head -c 4M /dev/urandom >"$T/kept2"
nbdcopy "$T/kept2" "$(uri kept)"
parallax disk create busy 64M --pool once
/usr/bin/python3 - "$(uri busy)" "$T/busy" "$T/held" "$T/stop" <<'END' &
import nbd, os, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
content = bytearray(random.randbytes(16 << 20))
for at in range(0, len(content), 1 << 20):
    h.pwrite(content[at:at + (1 << 20)], at)
open(sys.argv[3], "w").close()
while not os.path.exists(sys.argv[4]):
    block = random.randrange(len(content) // 4096) * 4096
    data = random.randbytes(4096)
    h.pwrite(data, block)
    content[block:block + 4096] = data
    assert h.pread(4096, block) == data
h.shutdown()
with open(sys.argv[2], "wb") as file:
    file.write(content)
END
client=$!
wait_for 60 test -e "$T/held"

# --- they move ---
for disk in idle kept busy; do
    parallax -c "$T/3" disk set "$disk" --pool default
    [ "$(parallax disk show "$disk" --json | jq -r .pool)" = default ] || fail "$disk"
done
has_moved()
{
    [ "$(parallax disk show "$1" --json | jq -r .moving)" = false ]
}
for disk in idle kept busy; do
    wait_for 100 has_moved "$disk"
done
touch "$T/stop"
wait "$client" || fail "the client of the busy disk"

# --- any host may die ---
compare()
{
    nbdcopy "$(uri "$1" "$T/$2")" "$T/back"
    cmp -n "$(stat -c %s "$T/$1")" "$T/$1" "$T/back" || fail "$1 is another one"
}
cp "$T/kept1" "$T/kept"
dd if="$T/kept2" of="$T/kept" conv=notrunc status=none
wait_for 60 is_ok
for host in 1 2 3; do
    other=$((host % 3 + 1))
    kill9_daemon "$T/$host"
    compare idle "$other"
    compare busy "$other"
    start_up "$T/$host"
    wait_for 100 is_ok
done
# What the snapshot shares with the disk has one copy still, and is what it was.
compare kept 1
nbdcopy "$(uri kept@one)" "$T/back"
cmp -n $((8 << 20)) "$T/kept1" "$T/back" || fail "the snapshot is another one"
