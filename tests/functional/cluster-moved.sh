#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 200
#
# Hosts get other addresses: one under load, the leader, then all of them while they are
# stopped, so that none finds another by what it knows. What was written is there, and a
# copy of a store is refused wherever it says that it is.

. "$(dirname "$0")/lib.sh"
requires nbdcopy
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 3 --capacity 1G
wait_for 60 is_whole
parallax disk create web 16M
at() # NET I: where host I is in the network NET of this machine
{
    local before
    before=$(node_address "$2")
    echo "127.$1.0.$2:${before##*:}"
}

# Does host I know that node NODE is up, at ADDR?
knows()
{
    local json
    json=$(parallax -c "$T/$1" node show "$2" --json 2>/dev/null) &&
        grep -q "\"address\": \"$3\"" <<<"$json" && grep -q '"state": "up"' <<<"$json" &&
        grep -q '"connected": true' <<<"$json"
}

# What the folder of host I says of node NODE.
kept()
{
    parallax cluster addresses "$T/$1" | sed -n "s/^ *$2  \([^ ]*\).*/\1/p"
}

# --- what is refused while it runs ---
expect_error 'in use by parallaxd' parallax cluster addresses "$T/1"
parallax up "$T/alone" --detach --capacity 1G
stop_daemon "$T/alone"
expect_error 'is no node of a cluster' parallax cluster addresses "$T/alone"
expect_error 'is no node of a cluster' \
    parallax up "$T/alone" --detach --listen "$(at 1 9)"
expect_error 'No such file' parallax cluster addresses "$T/nothing"
[ ! -e "$T/nothing" ] || fail "a folder was made that is only looked at"

# --- one host moves, under load ---
/usr/bin/python3 - "$(uri web "$T/1")" "$T" <<'END' &
import nbd, os, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
folder, image, count = sys.argv[2], bytearray(16 << 20), 0
while not os.path.exists(folder + "/enough"):
    at = random.randrange(len(image) >> 14) << 14
    image[at:at + 16384] = data = random.randbytes(16384)
    h.pwrite(data, at)
    at = random.randrange(len(image) >> 14) << 14
    assert h.pread(16384, at) == image[at:at + 16384], at
    count += 1
    if count == 50:
        open(folder + "/loaded", "w").close()
h.flush()
open(folder + "/image", "wb").write(image)
END
load=$!
wait_for 30 test -e "$T/loaded"
stop_daemon "$T/3"
cp -a --sparse=always "$T/3" "$T/copy"
before=$(node_address 3)
expect_error 'HOST:PORT' parallax up "$T/3" --detach --listen here
expect_error 'they can reach' parallax up "$T/3" --detach --listen 0.0.0.0:7900
expect_error 'Cannot assign' parallax up "$T/3" --detach --listen 192.0.2.1:7900
expect_error 'already in use' parallax up "$T/3" --detach --listen "$(node_address 1)"
[ "$(kept 3 3)" = "$before" ] || fail "an address where it cannot listen was kept"
parallax up "$T/3" --detach --listen "$(at 3 3)"
wait_for 20 knows 1 3 "$(at 3 3)"
wait_for 20 knows 1 2 "$(node_address 2)"
wait_for 20 knows 2 3 "$(at 3 3)"

# Its copy may say what it likes, here or where it was.
expect_error 'another process runs as node 3' parallax up "$T/copy" --detach
expect_error 'another process runs as node 3' \
    parallax up "$T/copy" --detach --listen "$(at 4 3)"
[ "$(kept copy 3)" = "$before" ] || fail "a copy that was refused has moved"
knows 1 3 "$(at 3 3)" || fail "the copy has taken the node's place"
touch "$T/enough"
wait "$load" || fail "the load failed"
rm -r "$T/copy"

# --- the leader moves, and keeps its address without being told again ---
stop_daemon "$T/1"
parallax up "$T/1" --detach --listen "$(at 3 1)"
wait_for 20 knows 2 1 "$(at 3 1)"
stop_daemon "$T/1"
parallax up "$T/1" --detach
wait_for 20 knows 3 1 "$(at 3 1)"
wait_for 60 is_whole

# --- all move ---
stop_all()
{
    local i pid pids=()
    for i in 1 2 3; do
        pids+=("$(daemon_pid "$T/$i")")
    done
    kill -TERM "${pids[@]}"
    for pid in "${pids[@]}"; do
        wait_for 20 is_gone "$pid"
    done
}

# With the arguments of `up` for each host.
start_all()
{
    local i pid starting=()
    for i in 1 2 3; do
        # shellcheck disable=SC2086 # several words, or none
        parallax up "$T/$i" --detach ${1-} &
        starting+=($!)
        shift || true
    done
    for pid in "${starting[@]}"; do
        wait "$pid" || fail "a host does not start"
    done
}

# All are in the network NET, know it, and have what was written, as host I reads it.
check_all()
{
    local i k
    for i in 1 2 3; do
        for k in 1 2 3; do
            [ "$i" = "$k" ] || wait_for 30 knows "$i" "$k" "$(at "$1" "$k")"
        done
    done
    nbdcopy "$(uri web "$T/$2")" "$T/back"
    cmp "$T/image" "$T/back" || fail "the disk is another one"
    wait_for 60 is_whole
}

stop_all
all=("1=$(at 5 1)" "2=$(at 5 2)" "3=$(at 5 3)")
expect_error 'NODE=HOST:PORT' parallax cluster addresses "$T/1" "$(at 5 2)"
expect_error 'HOST:PORT' parallax cluster addresses "$T/1" 2=
expect_error 'a port is' parallax cluster addresses "$T/1" 2=127.0.0.1:0
expect_error 'it knows no node 9, only itself, 2, 3' \
    parallax cluster addresses "$T/1" "9=$(at 5 9)"
expect_error 'given twice' parallax cluster addresses "$T/1" "${all[@]}" "2=$(at 5 4)"
expect_error 'cannot both be at' parallax cluster addresses "$T/1" "2=$(at 3 3)"
expect_error 'no other options' parallaxd --cluster-addresses --listen "$(at 5 1)" "$T/1"
[ "$(kept 1 2)" = "$(node_address 2)" ] || fail "what was refused has changed something"
for i in 1 2 3; do
    parallax cluster addresses "$T/$i" "${all[@]}" | grep -q "^   $i .*(this node)$" ||
        fail "host $i does not say which it is"
done
start_all
check_all 5 2

# One is told of all, the others only of themselves.
stop_all
parallax cluster addresses "$T/2" "1=$(at 6 1)" "2=$(at 6 2)" "3=$(at 6 3)" >/dev/null
start_all "--listen $(at 6 1)" "" "--listen $(at 6 3)"
check_all 6 3
