#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
# builds: release asan
#
# Every command of the parallax program once, and the JSON it prints.

. "$(dirname "$0")/lib.sh"
requires jq

# json FILTER COMMAND...: jq FILTER on what COMMAND prints, which python reads, too.
json()
{
    local filter=$1
    shift
    "$@" >"$T/json" || fail "$*"
    python3 -m json.tool "$T/json" >/dev/null || fail "$*: no JSON"
    jq -r "$filter" "$T/json"
}

# same WHAT EXPECTED ACTUAL
same()
{
    [ "$2" = "$3" ] || fail "$1: '$3', not '$2'"
}

parallax --version | grep -q '^parallax [0-9]' || fail "no version"
parallax help | grep -q 'snapshot rollback' || fail "help does not list the commands"
parallax help clone | grep -q -- --count || fail "help of clone does not explain --count"
parallax disk create --help | grep -q 'NAME SIZE' || fail "--help of disk create"
parallax help snapshot | grep -q 'snapshot ls' || fail "help of a group"

start_up "$T/store" --capacity 2G
for name in store meta nbd.sock control.sock parallaxd.pid lock log; do
    [ -e "$PARALLAX/$name" ] || fail "no file $name"
done
same "control.sock's mode" 600 "$(stat -c %a "$PARALLAX/control.sock")"

# --- status ---
parallax status | grep -q '^health  *ok$' || fail "not healthy"
same health ok "$(json .health parallax status --json)"
same disks 0 "$(json .disks parallax status --json)"
[ "$(json .capacity_bytes parallax status --json)" -gt $((1900 << 20)) ] || fail capacity
[ "$(json .free_bytes parallax status --json)" -gt $((1500 << 20)) ] || fail free
same "status' NBD URI" "$(uri '')" "$(json '.nbd[0]' parallax status --json)"

# --- disks ---
same "no disks" '[]' "$(json . parallax disk ls --json)"
parallax disk create web01 10G
parallax disk create web02 4096
parallax disk create big 1.5T
same names 'big web01 web02' "$(json '[.[].name] | join(" ")' parallax disk ls --json)"
same sizes '1649267441664 10737418240 4096' \
    "$(json '[.[].size_bytes | tostring] | join(" ")' parallax disk ls --json)"
same fields 'number 0 null false 0' "$(json '.[1] | "\(.used_bytes | type) " +
    "\(.snapshots) \(.parent) \(.served) \(.clients)"' parallax disk ls --json)"
parallax disk ls | grep -Eq '^web01 +10G' || fail "disk ls"
parallax disk show web02 | grep -q '^size  *4K (4096 bytes)$' || fail "disk show"
parallax disk resize web02 8K
same resized 8192 "$(json .size_bytes parallax disk show web02 --json)"
parallax disk resize web02 4096
same shrunk 4096 "$(json .size_bytes parallax disk show web02 --json)"
parallax disk rename web02 web03
same renamed 'big web01 web03' "$(json '[.[].name] | join(" ")' parallax disk ls --json)"
same uri "$(uri web01)" "$(parallax disk uri web01)"

# --- snapshots and clones ---
same "no snapshots" '[]' "$(json . parallax snapshot ls web01 --json)"
parallax snapshot create web01@one
parallax snapshot create web01@two
same snapshots 'one two' \
    "$(json '[.[].name] | join(" ")' parallax snapshot ls web01 --json)"
same "snapshot's size" 10737418240 \
    "$(json '.[0].size_bytes' parallax snapshot ls web01 --json)"
parallax snapshot ls web01 | grep -Eq '^two +10G' || fail "snapshot ls"
same "number of snapshots" 2 "$(json .snapshots parallax disk show web01 --json)"
same "snapshot's uri" "$(uri web01@one)" "$(parallax disk uri web01@one)"
parallax snapshot rollback web01@one
parallax clone web01@one copy
same parent web01@one "$(json .parent parallax disk show copy --json)"
parallax clone web01 now
parallax clone web01@two lab --count 3
same clones 'lab-1 lab-2 lab-3' \
    "$(json '[.[].name | select(startswith("lab"))] | join(" ")' parallax disk ls --json)"
same "clones of a snapshot" 3 \
    "$(json '.[] | select(.name == "two").clones' parallax snapshot ls web01 --json)"

# --- what is removed, and what comes back ---
parallax snapshot rm web01@two
same "snapshots left" one \
    "$(json '[.[].name] | join(" ")' parallax snapshot ls web01 --json)"
same "diff" '[]' "$(json . parallax snapshot diff web01@one --json)"
parallax snapshot diff web01@one | grep -q '^0 ranges' || fail "snapshot diff"
parallax snapshot schedule web01 --every 1d --keep 7
same schedule '86400 7' "$(json '.[0] | "\(.every_seconds) \(.keep)"' \
    parallax snapshot schedule web01 --json)"
parallax snapshot schedule web01 --none
parallax disk set web01 --quota 1G
same quota 1073741824 "$(json .quota_bytes parallax disk show web01 --json)"
parallax disk set web01 --quota none
same "no quota" null "$(json .quota_bytes parallax disk show web01 --json)"
same usage 'number number number' "$(json '[.referenced_bytes, .exclusive_bytes,
    .shared_bytes | type] | join(" ")' parallax disk show web01 --json)"
same "usage of a snapshot" one \
    "$(json '.snapshot_usage[0].snapshot' parallax disk show web01 --json)"
parallax disk rm lab-3
same trash lab-3 "$(json '[.[].name] | join(" ")' parallax trash ls --json)"
parallax trash restore lab-3 lab-4
parallax disk rm lab-4
parallax trash empty lab-4
parallax trash keep 1d
parallax trash ls | grep -q '^NAME' || fail "trash ls"
parallax scrub
parallax scrub status >/dev/null || fail "scrub status"
parallax scrub pause
for key in live_bytes dead_bytes committed_bytes trash.disks reclaim.pending \
    compaction.runs; do
    same "status' $key" number "$(json ".$key | type" parallax status --json)"
done

# --- which daemon ---
(cd "$PARALLAX" && PARALLAX='' parallax -c . disk show copy >/dev/null) || fail "-c ."
env -u PARALLAX parallax -c "$PARALLAX" status >/dev/null || fail "-c DIR"
env -u PARALLAX parallax status -c "$PARALLAX/control.sock" >/dev/null || fail "-c SOCKET"

# --- check, restart, down ---
parallax check | grep -q 'all sound' || fail "check"
same findings 0 "$(json .findings parallax check --json)"
pid=$(daemon_pid "$PARALLAX")
parallax down
is_gone "$pid" || fail "down left a daemon"
[ ! -e "$PARALLAX/parallaxd.pid" ] || fail "down left parallaxd.pid"
port=$(first_port)
start_up "$T/store" --nbd "unix:$T/other.sock" --control "127.0.0.1:$port"
same "disks after a restart" 7 "$(json .disks parallax status --json)"
[ -S "$T/other.sock" ] || fail "--nbd"
env -u PARALLAX parallax -c "127.0.0.1:$port" status >/dev/null || fail "-c HOST:PORT"
stop_daemon "$PARALLAX"
