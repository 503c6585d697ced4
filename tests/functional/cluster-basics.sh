#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
# builds: release asan
#
# Three hosts: what one is told all know; a disk is written at one and read at another;
# a second attach is refused and told why; requests go to whoever owns the disk.

. "$(dirname "$0")/lib.sh"
requires nbdcopy jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 3 --capacity 1G
all_vote()
{
    [ "$(parallax node ls --json | jq '[.[] | select(.role == "voter" or
        .role == "leader")] | length')" = 3 ]
}
wait_for 30 all_vote
wait_for 60 is_whole

# --- one state ---
for i in 1 2 3; do
    [ "$(parallax -c "$T/$i" node ls --json | jq length)" = 3 ] || fail "node ls at $i"
    parallax -c "$T/$i" disk create "disk$i" 64M
done
for i in 1 2 3; do
    [ "$(parallax -c "$T/$i" disk ls --json | jq -r '[.[].name] | join(" ")')" = \
        "disk1 disk2 disk3" ] || fail "disk ls at $i"
done
parallax -c "$T/2" pool create fast --copies 2 --min-copies 1 --domain host
[ "$(parallax -c "$T/3" pool ls --json | jq -r '.[] | select(.name == "fast") |
    "\(.copies) \(.min_copies) \(.domain)"')" = "2 1 host" ] || fail "pool ls"
parallax -c "$T/3" pool set fast --min-copies 2
[ "$(parallax pool ls --json | jq '.[] | select(.name == "fast").min_copies')" = 2 ] ||
    fail "pool set"
expect_error 'exists already' parallax pool create fast
expect_error 'no such pool' parallax pool set slow --copies 1
expect_error 'no such pool' parallax disk create x 1M --pool slow
parallax disk create quick 16M --pool fast
[ "$(parallax disk show quick --json | jq -r .pool)" = fast ] || fail "pool of a disk"

# --- written at one, read at another ---
head -c 24M /dev/urandom >"$T/data"
nbdcopy "$T/data" "$(uri disk1 "$T/1")"
parallax -c "$T/3" disk owner disk1 | grep -q '^node 1 at' || fail "disk owner"
nbdcopy "$(uri disk1 "$T/3")" "$T/back"
cmp -n $((24 << 20)) "$T/data" "$T/back" || fail "host 3 reads something else"
parallax disk owner disk1 | grep -q '^node 3 at' || fail "the owner did not change"

# --- in use ---
/usr/bin/python3 - "$(uri disk2 "$T/2")" "$T/held" "$T/done" <<'END' &
import nbd, os, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"at two" + bytes(506), 0)
open(sys.argv[2], "w").close()
while not os.path.exists(sys.argv[3]):
    time.sleep(0.05)
h.pwrite(b"at end" + bytes(506), 512)
h.flush()
h.shutdown()
END
holder=$!
wait_for 30 test -e "$T/held"
for i in 1 3; do
    expect_error 'disk2' nbdcopy "$(uri disk2 "$T/$i")" "$T/no"
    grep -q "disk2: .*node 2" "$T/$i/log" || fail "host $i does not say who has it"
done
# What is about it is done where it is, whoever is asked; also what is long.
parallax -c "$T/1" snapshot create disk2@one
parallax -c "$T/3" snapshot ls disk2 | grep -q '^one ' || fail "the snapshot"
parallax -c "$T/3" disk show disk2 | grep -q '^disk2 *512\|^disk2@one' || fail "usage"
parallax -c "$T/1" snapshot diff disk2@one | grep -q '^0 ranges' || fail "diff"
parallax -c "$T/3" clone disk2@one copy
expect_error 'in use by 1 client' parallax -c "$T/1" disk rm disk2 --recursive
expect_error 'no snapshot|no such' parallax -c "$T/1" snapshot rm disk2@none
[ "$(parallax -c "$T/1" disk show disk2 --json | jq .clients)" = null ] || fail "clients"
touch "$T/done"
wait $holder
nbdcopy "$(uri copy "$T/1")" "$T/copy"
[ "$(head -c 6 "$T/copy")" = "at two" ] || fail "the clone"
[ "$(nbdcopy "$(uri disk2 "$T/3")" - | dd bs=512 skip=1 count=1 iflag=fullblock \
    status=none | head -c 6)" = "at end" ] || fail "what came after the snapshot"

# --- names for nodes ---
parallax node show 2 | grep -q "^address *$(node_address 2)$" || fail "node show"
parallax node show "$(node_address 3)" | grep -q '^node *3$' || fail "by address"
expect_error 'no such node' parallax node show 9
expect_error 'no such node' parallax node drain nobody
expect_error 'is the one that was asked' parallax node rm 1
parallax status | grep -q '^cluster *3 nodes, 0 not up; this is node 1$' || fail status
parallax check

# --- health ---
is_ok()
{
    [ "$(parallax status --json | jq -r .health)" = ok ]
}
wait_for 60 is_ok
timeout 3 parallax top 1 >"$T/top" || [ $? = 124 ]
[ "$(grep -c '^health *ok$' "$T/top")" -ge 2 ] || fail "top"
grep -q "^ *3  $(node_address 3) .*up" "$T/top" || fail "top shows no nodes"
expect_error 'from 1 to 3600' parallax top 0
# One copy of each group: some are only at host 3.
parallax pool create once --copies 1 --min-copies 1
has_groups()
{
    [ "$(parallax pool ls --json | jq '.[] | select(.name == "once").groups')" -ge 96 ]
}
wait_for 60 has_groups
kill9_daemon "$T/3"
export PARALLAX=$T/1
wait_for 30 node_is 3 down
parallax status --json | jq -r .health | grep -q '^1 of 3 nodes not up' || fail "health"
expect_error 'drain it first' parallax node rm 3
expect_error 'only whole copy of [0-9]+ of' parallax node rm 3 --lost
expect_error 'give --lost, too' parallax node rm 3 --data-loss
node_is 3 down || fail "node 3 was removed"
parallax node rm 3 --lost --data-loss
[ "$(parallax node ls --json | jq length)" = 2 ] || fail "node 3 is still there"
unchecked "$T/3"
